"""A peer-to-peer SIP node: a RELOAD overlay, a registrar and a proxy in one daemon."""

__version__ = "0.1.0"

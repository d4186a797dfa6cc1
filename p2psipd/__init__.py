"""A peer-to-peer SIP node: a RELOAD overlay, a registrar and a proxy in one daemon."""

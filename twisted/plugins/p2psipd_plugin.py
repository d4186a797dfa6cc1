"""Makes ``twistd p2psip`` known; nothing of ours is imported before it is used."""

from twisted.application.service import ServiceMaker

p2psipd = ServiceMaker(
    "p2psipd", "p2psipd.app", "A peer-to-peer SIP node (RELOAD overlay, registrar, proxy).", "p2psip"
)

"""What the SIP side of a node is told by its operator."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from p2psipd.net.sip_transports import Limits
from p2psipd.proto.sip.flow import Address
from p2psipd.proto.sip.registrar import Bounds

ALLOW: Final = "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE, REGISTER, INFO, UPDATE, PRACK, REFER, SUBSCRIBE, NOTIFY"
RETRY_AFTER: Final = "10"


class SipSettings(NamedTuple):
    """What the SIP side of a node is told (times in seconds; addresses are numeric host and port, 0 = any
    free one).

    `domains` are the SIP domains served (lower case), the first is the realm of requests that name our
    address instead of a domain; `node_id` and `overlay` this node's Node-ID and overlay name. `tls` is the
    p2psipd.net.tls.ServerTls of the SIPS listeners. `secret` (32 octets or more; empty: drawn at start) keys
    nonces and flow tokens. `public_host` is what Via and Record-Route name (empty: the listener's own
    address).
    """

    domains: tuple[str, ...]
    overlay: str
    node_id: bytes
    udp: tuple[Address, ...] = ()
    tcp: tuple[Address, ...] = ()
    tls_addresses: tuple[Address, ...] = ()
    tls: Any = None
    public_host: str = ""
    secret: bytes = b""
    bounds: Bounds = Bounds()
    limits: Limits = Limits()
    ring_seconds: float = 180.0

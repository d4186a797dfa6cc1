"""What the SIP side of a node is told by its operator."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from p2psipd.net.sip_transports import Limits
from p2psipd.proto.sip.authentication import ALGORITHMS
from p2psipd.proto.sip.digest import Algorithm
from p2psipd.proto.sip.flow import Address
from p2psipd.proto.sip.limits import SCANNERS, LimitSettings
from p2psipd.proto.sip.registrar import Bounds
from p2psipd.services.sip.call_book import CallLimits

ALLOW: Final = "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE, REGISTER, INFO, UPDATE, PRACK, REFER, SUBSCRIBE, NOTIFY"
RETRY_AFTER: Final = "10"


class SipSettings(NamedTuple):
    """What the SIP side of a node is told (times in seconds; addresses are numeric host and port, 0 = any
    free one).

    `domains` are the SIP domains served (lower case), the first is the realm of requests that name our
    address instead of a domain; `node_id` and `overlay` this node's Node-ID and overlay name. `tls` is the
    p2psipd.net.tls.ServerTls of the SIPS and secure WebSocket listeners (`secure_web`; `web` are those without TLS,
    `web_origins` the pages that may use them, none means all), `tls_client` the p2psipd.net.domain_tls.DomainTls for
    other domains (None: they are not dialled over TLS). `secret` (32 octets or more; empty: drawn at start) keys
    nonces and flow tokens. `public_host` is what Via and Record-Route name (empty: the listener's own
    address). `algorithms` are those of the digest challenge, most preferred first. A call
    rings for `ring_seconds` at most (timer C), and for `turn_seconds` where contacts of lower q wait for their turn.
    `recurse`: redirects of phones to users of the served domains are followed here. For
    users of `redirect_domains` (of `domains`) this node is a redirector and no proxy; `redirect_authenticates`: callers
    from phones prove who they are before they learn anything. `abuse` limits what sources and
    users may do, `scanners` are User-Agents that get no answer. Phones behind a NAT get a keep-alive every
    `keep_alive_seconds` (0: none).
    """

    domains: tuple[str, ...]
    overlay: str
    node_id: bytes
    udp: tuple[Address, ...] = ()
    tcp: tuple[Address, ...] = ()
    tls_addresses: tuple[Address, ...] = ()
    tls: Any = None
    secure_web: tuple[Address, ...] = ()
    web: tuple[Address, ...] = ()
    web_origins: tuple[str, ...] = ()
    tls_client: Any = None
    public_host: str = ""
    secret: bytes = b""
    bounds: Bounds = Bounds()
    limits: Limits = Limits()
    ring_seconds: float = 180.0
    turn_seconds: float = 30.0
    recurse: bool = True
    call_limits: CallLimits = CallLimits()
    redirect_domains: frozenset[str] = frozenset()
    redirect_authenticates: bool = True
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    abuse: LimitSettings = LimitSettings()
    scanners: tuple[str, ...] = SCANNERS
    keep_alive_seconds: float = 25.0

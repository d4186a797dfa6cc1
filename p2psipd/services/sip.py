"""SIP for phones and between nodes: listeners, transactions, registrar, proxy. (API published here; the code follows.)

How app.py wires it (nothing here imports another service):

    table = BindingTable()                                     # p2psipd.proto.sip.registrar: own bindings, in memory
    locator = Locator((OwnBindings(table, node_id, domains), OverlayBindings(location, table, node_id, domains)))      # p2psipd.services.locator
    interconnect = Interconnect(reactor, node_tls, trust_judge, listen=(host, port), app_attach=overlay.app_attach)   # p2psipd.net.interconnect
    service = SipService(settings, location=store, credentials=source, locate=locator.locate, connector=interconnect,
                         table=table, reactor=reactor, random=random.SystemRandom(), wall=time.time)
    service.setServiceParent(application)                      # a twisted Service: startService listens, stopService closes
    # when the overlay core orders DialApplication(node_id, application, addresses):
    interconnect.dial(node_id, addresses)

`location`: p2psipd.proto.sip.locating.LocationStore, `credentials`: CredentialSource (raw HA1 octets by algorithm token), `connector`:
NodeConnector or None. Status hooks: service.registrations(), service.calls(), service.ladder(call_id), service.counters (Counter by reason).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Address = tuple[str, int]


class SipSettings(NamedTuple):
    """What the SIP side of a node is told (times in seconds; addresses are (numeric host, port), port 0 = any free one).

    `domains` are the SIP domains served (lower case), the first is the default realm; `node_id` and `node_user` this node's
    Node-ID and certificate user name; `tls_context` makes the server context for the SIPS listeners (pyOpenSSL); `secret` (32
    octets or more; empty: drawn at start) keys nonces and flow tokens; `public_host` is what Via, Record-Route and
    Contact name (empty: the listener's own address).
    """

    domains: tuple[str, ...]
    overlay: str
    node_id: bytes
    node_user: str = ""
    udp: tuple[Address, ...] = ()
    tcp: tuple[Address, ...] = ()
    tls: tuple[Address, ...] = ()
    tls_context: Callable[[], Any] | None = None
    public_host: str = ""
    secret: bytes = b""
    min_expires: int = 60
    max_expires: int = 3600
    default_expires: int = 3600
    max_contacts: int = 10
    max_connections: int = 2000
    max_connections_per_address: int = 64
    ring_seconds: float = 180.0
    idle_seconds: float = 3720.0
    handshake_seconds: float = 5.0

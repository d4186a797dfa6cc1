"""The proxy's rules for one request: validation, routes, and the copy that is forwarded (RFC 3261 sections 16.3
to 16.6). What lives as long as a fork is in :mod:`p2psipd.proto.sip.fork`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from p2psipd.proto.sip.errors import MalformedMessage, SipError
from p2psipd.proto.sip.locating import Target, decode_gr
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.uri import SipUri, TelUri

DEFAULT_MAX_FORWARDS: Final = 70
DEFAULT_MAX_BREADTH: Final = 60
"""What a request without Max-Breadth is taken to have, and no request has more (RFC 5393 section 5.3.3)."""

SUPPORTED: Final = ("path", "outbound")
"""Option tags that Proxy-Require may name."""

_DEFAULT_PORTS: Final = {"sip": 5060, "sips": 5061}
_CONDITIONS: Final = frozenset({"max-breadth", "proxy-require"})
_ROUTABLE: Final = (SipUri, TelUri)
_TAG_OCTETS: Final = 8
_MAX_DIGITS: Final = 9


def _no_border(uri: SipUri) -> bool:
    return False


class Home(NamedTuple):
    """What this node answers to: (host, port) pairs of its listeners, its domains, its overlay name and
    Node-ID; `borders` knows the Route values of edges on this node (proto.sip.edge).
    """

    addresses: frozenset[tuple[str, int]]
    domains: frozenset[str]
    overlay: str
    node_id: bytes
    borders: Callable[[SipUri], bool] = _no_border

    def owns(self, uri: SipUri) -> bool:
        """True when `uri` names this node as a hop (a Route that it wrote, or an outbound-proxy setting of a
        phone).
        """
        port = uri.port or _DEFAULT_PORTS[uri.scheme]
        if (uri.host, port) in self.addresses:
            return True
        if uri.host == self.overlay and uri.gr:
            destinations = decode_gr(uri.gr)
            return destinations is not None and destinations.node_id == self.node_id
        if uri.host not in self.domains or uri.port is not None:
            return False
        return uri.user is None or self.borders(uri)

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts of our addresses."""
        return frozenset(host for host, _ in self.addresses)


class Refused(SipError):
    """The proxy does not forward the request; `status`, `reason` and `headers` answer it, `why` is for
    counters.
    """

    def __init__(
        self, status: int, reason: str | None = None, headers: Sequence[tuple[str, str]] = (), why: str = ""
    ) -> None:
        super().__init__(reason or "", status=status)
        self.headers = tuple(headers)
        self.why = why


# ---- one request -------------------------------------------------------------------------------------------


def validate(request: Request, own_hops: frozenset[tuple[str, int]], *, ends_here: bool = False) -> None:
    """Section 16.3 as far as it does not ask who the sender is; `own_hops` are the (host, port) of our own
    Vias. `ends_here`: it is answered by this node and goes no further, with whatever Max-Forwards (RFC 4475 section
    3.3.11).

    Raises Refused: 416 scheme, 483 Max-Forwards, 440 Max-Breadth, 482 loop, 420 Proxy-Require.
    """
    uri = request.uri
    if not isinstance(uri, _ROUTABLE):
        raise Refused(416, why="bad_scheme")
    if request.max_forwards == 0 and not ends_here:
        raise Refused(483, why="too_many_hops")
    if request.has_any(_CONDITIONS):
        if max_breadth(request) < 1:
            raise Refused(440, why="too_broad")
        unsupported = [tag for tag in request.proxy_require if tag not in SUPPORTED]
        if unsupported:
            raise Refused(420, None, [("Unsupported", ", ".join(unsupported))], "bad_extension")
    vias = request.vias
    if len(vias) > 1:
        tag = None
        for via in vias:
            branch = via.branch
            if branch and via.sent_by in own_hops:
                tag = tag or loop_tag(request)
                if branch.endswith(tag):
                    raise Refused(482, why="loop")


def max_breadth(request: Request) -> int:
    """How many branches of `request` may be open at one time, here and further on (RFC 5393 section 5.3.3)."""
    value = request.get("max-breadth")
    if value is None:
        return DEFAULT_MAX_BREADTH
    if not (value.isascii() and value.isdigit()) or len(value) > _MAX_DIGITS:
        raise MalformedMessage("bad Max-Breadth")
    return min(int(value), DEFAULT_MAX_BREADTH)


def loop_tag(request: Request) -> str:
    """The part of our branch that tells a loop from a spiral (RFC 5393 section 4.2.1): 16 hex digits over
    what routes it.
    """
    parts = [request.uri_text, request.from_tag or "", request.to_tag or "", request.call_id, str(request.cseq.number)]
    parts += request.get_all("route")
    if request.has("proxy-require"):
        parts += request.proxy_require
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=_TAG_OCTETS).hexdigest()


def take_routes(request: Request, home: Home) -> list[SipUri]:
    """Remove the Route values on top that name this node, and undo strict routing (section 16.4); what was
    removed, in order.

    With double Record-Route (RFC 5658) two of ours stand together: both go.
    """
    if not request.has("route"):
        return []
    uri = request.uri
    if isinstance(uri, SipUri) and uri.lr and home.owns(uri):
        # A strict router before us put our own Route into the Request-URI; the true one is the last Route.
        values = request.get_all("route")
        request.set_uri(_uri_in_brackets(values[-1]))
        if len(values) > 1:
            request.set("Route", ", ".join(values[:-1]))
        else:
            request.remove("route")
        return [uri, *take_routes(request, home)]
    taken: list[SipUri] = []
    for route in request.routes:
        hop = route.uri
        if not isinstance(hop, SipUri) or not home.owns(hop):
            break
        taken.append(hop)
    if len(taken) == len(request.routes):
        request.remove("route")
    else:
        for _ in taken:
            request.remove_first("route")
    return taken


def _uri_in_brackets(value: str) -> str:
    start, end = value.find("<"), value.rfind(">")
    if start < 0 or end < start:
        raise MalformedMessage("bad Route")
    return value[start + 1 : end]


def build(
    request: Request, target: Target, record_routes: Sequence[str] = (), breadth: int = DEFAULT_MAX_BREADTH
) -> Request:
    """The copy of `request` that goes to `target` (section 16.6 steps 1 to 6); `record_routes` in the order
    they stand, `breadth` its share of Max-Breadth.

    Our Via is pushed by the transaction layer.
    """
    made = request.copy()
    if target.uri != request.uri_text:
        made.set_uri(target.uri)
    hops = request.max_forwards
    made.set("Max-Forwards", str(DEFAULT_MAX_FORWARDS if hops is None else hops - 1))
    made.set("Max-Breadth", str(breadth))
    for value in reversed(record_routes):
        made.prepend("Record-Route", value)
    for value in reversed(target.route):
        made.prepend("Route", value)
    if target.flow is None and target.node_id is None and made.has("route"):
        top = made.routes[0].uri
        if isinstance(top, SipUri) and not top.lr:
            made.add("Route", f"<{made.uri_text}>")
            made.remove_first("route")
            made.set_uri(top)
    return made

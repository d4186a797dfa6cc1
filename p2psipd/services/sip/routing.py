"""The next hop of a request: what its Route values and Record-Route tokens say, and the flow that leads there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from p2psipd.proto.dns import NOT_KNOWN, Answer, Ask
from p2psipd.proto.sip.edge import Edge
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.locating import (
    Attempt,
    DomainIdentity,
    NodeConnector,
    NodeIdentity,
    NotLocated,
    Route,
    Target,
    Unreachable,
    decode_gr,
)
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.next_hops import DeadTargets, Hop, NoRoute, living_first, next_hops
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.record_route import RecordRouter, Token, UdpToken
from p2psipd.proto.sip.uri import SipUri, parse_uri

_TRANSPORTS: Final = frozenset({"UDP", "TCP", "TLS"})
_MAX_MOVED: Final = 10_000


class FlowGone(Refused):
    """The flow that our Route names is gone: 430. `user` ("user@domain", may be "") is whose it was."""

    def __init__(self, user: str) -> None:
        super().__init__(430, why="flow_gone")
        self.user = user


class Routing:
    """Finds next hops over the transports and the connector.

    `overlay` is the overlay's name in Route values; `ask` and `random` are those of RFC 3263, `now` monotonic
    seconds; `edges` are the ways to other domains, by name.
    """

    def __init__(
        self,
        overlay: str,
        router: RecordRouter,
        transports: Any,
        connector: NodeConnector | None,
        ask: Ask,
        random: Any,
        now: Callable[[], float],
        edges: Mapping[str, Edge],
    ) -> None:
        self._overlay = overlay
        self._router = router
        self._transports = transports
        self._connector = connector
        self._ask = ask
        self._random = random
        self._now = now
        self._edges = edges
        self._dead = DeadTargets()
        # Where a phone is that has moved during a dialog, by Call-ID and our token for its side.
        self._moved: dict[tuple[str, str], Flow] = {}
        self.too_large: Callable[[Flow, int], bool] = transports.too_large
        self.congestion_controlled = transports.congestion_controlled

    # ---- Record-Route and Route ------------------------------------------------------------------------------

    def record_route(self, flow: Flow, user: str, request: Request, outward: bool) -> str:
        """The Record-Route value for the side of `flow`, where `user` ("user@domain") is if a phone is there, and by
        which `request` goes on (`outward`) or has come.
        """
        peer = peer_of(flow)
        if peer is None:
            return self._router.value(flow, user, request.call_id)
        if isinstance(peer, DomainIdentity):
            return self._edges[peer.edge].record_route(flow, request, outward)
        return self._router.node_value(request.call_id)

    def with_route(self, target: Target, call_id: str) -> Target:
        """A target that knows, if it is another registrar, that a request without Route belongs to a dialog of ours."""
        if target.node_id is None:
            return target
        return target._replace(route=(self._router.route_to(target.node_id, call_id), *target.route))

    def drop_routes(self, request: Request) -> str | None:
        """Take off the Routes of another registrar of ours that stand on top; the user on its far side ("" if it
        does not say), None if there were none.
        """
        token = self._router.drop_routes(request)
        return None if token is None else token.user

    def record_routes(
        self, onward: Flow, came_on: Flow, callee: str, caller: str, request: Request
    ) -> tuple[str, ...]:
        """The Record-Route values for a call that came on one flow and goes on another, the onward side's first.

        Where a call crosses from a node to another domain, the edge's value alone serves both sides.
        """
        one = self.record_route(onward, callee, request, True)
        other = self.record_route(came_on, caller, request, False)
        sides = {type(peer_of(onward)), type(peer_of(came_on))}
        if sides == {NodeIdentity, DomainIdentity}:
            return (one,) if isinstance(peer_of(onward), DomainIdentity) else (other,)
        return one, other

    def released(self, came_on: Flow, request: Request) -> None:
        """We answered a request 503: what an edge remembers of it does not count."""
        peer = peer_of(came_on)
        if isinstance(peer, DomainIdentity):
            self._edges[peer.edge].released(request)

    def reported(self, went_on: Flow | None, came_on: Flow, response: Response) -> None:
        """A response that has a Reason: what a domain says of our own signature is its edge's to read; what it says of
        the signature of the domain that a request came from goes on to that.
        """
        peer = None if went_on is None else peer_of(went_on)
        if isinstance(peer, DomainIdentity) and not isinstance(peer_of(came_on), DomainIdentity):
            self._edges[peer.edge].reported(response)

    def crossing(
        self, request: Request, taken: Sequence[SipUri], came_on: Flow
    ) -> Coroutine[Any, Any, Sequence[Target]] | None:
        """The way on for a request of a dialog whose next hop is across the border; None for all others.

        `taken` are the Route values of ours. What came from outside goes inside, where the rest of its Route says,
        unless an edge brought the call through us from one domain to another.
        """
        peer = peer_of(came_on)
        if isinstance(peer, DomainIdentity):
            edge = self._edges[peer.edge]
            onward = edge.across(taken, came_on)
            return edge.along(onward, request) if onward else None
        for edge in self._edges.values():
            for uri in taken if edge.here else ():
                if uri.user and edge.owns(uri):
                    return edge.along(uri.user, request)
            if not edge.here and request.has("route"):
                top = request.routes[0].uri
                if isinstance(top, SipUri) and top.user and edge.owns(top):
                    return edge.along(top.user, request)
        return None

    def is_border(self, uri: SipUri) -> bool:
        """Whether a Route value is that of an edge on this node."""
        return any(edge.here and edge.owns(uri) for edge in self._edges.values())

    def along_dialog(self, request: Request, taken: Sequence[SipUri], outside: bool = False) -> Target:
        """The next hop of a request inside a dialog: the rest of its Route set, else the flow that our Route
        names. `taken` are the Route values of ours; `outside`: it came from another domain, which may name
        nothing but what we wrote. Raises Refused (403), FlowGone.

        Anybody can write a To tag and our address: who has none of our tokens is in no dialog that we have routed,
        and is led nowhere.
        """
        if request.has("route"):
            call_id = request.call_id
            if taken and not outside and not any(uri.user and self._router.read(uri.user, call_id) for uri in taken):
                raise Refused(403, "Not a Route of Ours", why="refused_token")
            return self.along_route(request, trusted=not outside)
        ours = next((uri for uri in reversed(taken) if not outside or not self.is_border(uri)), None)
        if ours is None or not ours.user:
            raise Refused(403, "Not a Route of Ours", why="refused_token")
        return self._along_token(request, ours.user)

    def _along_token(self, request: Request, text: str) -> Target:
        token = self._router.read(text, request.call_id)
        if token is None:
            raise Refused(403, "Not a Route of Ours", why="refused_token")
        flow = self._moved.get((request.call_id, text))
        if flow is None or not getattr(flow, "alive", True):
            flow = self._flow_of(token)
        if flow is None:
            raise FlowGone(token.user)
        return Target(request.uri_text, flow=flow)

    def _flow_of(self, token: Token) -> Flow | None:
        """The flow that a token names, if it is still there."""
        named, flow = token.flow, None
        if isinstance(named, UdpToken):
            listeners = self._transports.udp
            flow = listeners[named.listener].flow(named.remote) if named.listener < len(listeners) else None
        elif named is not None:
            flow = self._transports.connection(named.number)
        return flow

    def follow(self, request: Request, taken: Sequence[SipUri], flow: Flow) -> None:
        """A phone says, by a request that refreshes the target of its dialog, that it has moved (RFC 3665 section 3.7):
        what goes to it in this dialog goes there from now on, and not where our Record-Route says.

        `taken` are the Route values of ours, its own side's first. Who knows that token is a party of the dialog.
        """
        text = taken[0].user if taken else None
        contact = request.contacts[0].uri if request.has("contact") else None
        token = self._router.read(text, request.call_id) if text else None
        if text is None or token is None or not isinstance(contact, SipUri):
            return
        if flow.transport == "UDP" and contact.host == flow.remote[0]:
            # Not behind a NAT: its Contact says at which port.
            flow = flow.towards((contact.host, contact.port or 5060))
        key = (request.call_id, text)
        self._moved.pop(key, None)
        if flow != self._flow_of(token):
            if len(self._moved) >= _MAX_MOVED:
                del self._moved[next(iter(self._moved))]
            self._moved[key] = flow

    def along_route(self, request: Request, *, trusted: bool = False) -> Target:
        """The next hop that the top Route names: a node of the overlay, or where `trusted` (inside a dialog)
        anything. Raises Refused (400, 403).
        """
        hop = request.routes[0].uri
        if not isinstance(hop, SipUri):
            raise Refused(400, "Bad Route")
        if hop.host == self._overlay and hop.gr:
            destinations = decode_gr(hop.gr)
            if destinations is None:
                raise Refused(400, "Bad Route")
            return Target(request.uri_text, node_id=destinations.node_id)
        if not trusted:
            raise Refused(403, "Route Not Allowed", why="refused_route")
        return Target(request.uri_text)

    # ---- flows -----------------------------------------------------------------------------------------------

    def at_hand(self, target: Target) -> Flow | None:
        """The live flow to `target` that needs no waiting for."""
        flow: Any = target.flow
        if flow is None and target.node_id is not None and self._connector is not None:
            flow = self._connector.pooled(target.node_id)
        return flow if flow is not None and flow.alive else None

    def route(self, request: Request, target: Target) -> Route:
        """The tries by which `request`, the copy for `target`, may get there."""
        if target.node_id is not None or target.address is not None:
            return _OneTry(self._connect(target), request)
        if target.route_maker is not None:
            return target.route_maker(request, target)
        return _NextHops(request, self)

    async def _connect(self, target: Target) -> Flow:
        if target.node_id is not None:
            if self._connector is None:
                raise Unreachable("this node reaches no others")
            return await self._connector.connect(target.node_id)
        assert target.address is not None
        flow: Flow = await self._transports.reach(*target.address)
        return flow

    def hops(self, uri: SipUri) -> Any:
        """The hops for `uri`, what has just failed last (an asynchronous iterator, RFC 3263)."""
        hops = next_hops(uri, self._ask, self._random, transports=_TRANSPORTS)
        return living_first(hops, self._dead, self._now)

    async def reach(self, hop: Hop) -> Flow:
        """A flow to a hop. Raises Unreachable."""
        try:
            flow: Flow = await self._transports.reach(hop.transport, hop.host, hop.port, domain=hop.domain)
        except Unreachable:
            self.mark_dead(hop, None)
            raise
        return flow

    async def anew(self, flow: Flow, message: Request | Response) -> Flow | None:
        """In place of the connection by which a request came, and which is gone, one to where its Via says; `message`
        is the request or an answer to it (RFC 3261 section 18.2.2). None where the sender takes none: phones behind TLS
        and WebSockets wait for no connection, and a node that has lost us asks once more.
        """
        peer = peer_of(flow)
        if flow.transport != "TCP" or peer is not None:
            return flow if isinstance(peer, DomainIdentity) else None
        try:
            found: Flow = await self._transports.reach("TCP", flow.remote[0], message.top_via.sent_by[1])
        except Unreachable:
            return None
        return found

    def mark_dead(self, hop: Hop, last: Response | None) -> None:
        """A hop did not answer, or answered 503, with or without Retry-After: others come first for a while."""
        retry_after = None
        if last is not None:
            text = (last.get("retry-after") or "").split(";")[0].split("(")[0].strip()
            retry_after = float(text) if text.isdigit() and len(text) < 6 else None
        self._dead.mark(hop, self._now(), retry_after)


async def nothing_known(name: str, kind: str) -> Answer:
    """The DNS of a node that has none: numeric addresses alone are reached."""
    return NOT_KNOWN


class _OneTry:
    """The Route of a target that there is one way to."""

    def __init__(self, connecting: Any, request: Request) -> None:
        self._connecting = connecting
        self._request = request

    async def next(self, last: Response | None) -> Attempt | None:
        """See Route."""
        connecting, self._connecting = self._connecting, None
        return Attempt(await connecting, self._request) if connecting is not None else None


class _NextHops:
    """The Route of a URI by RFC 3263: the next hop after a 503, a failure, or a time-out without a response."""

    def __init__(self, request: Request, routing: Routing) -> None:
        # The copy that build() made: its top Route, or without one its Request-URI, is the next hop (RFC 3261
        # section 16.6 step 7).
        self._request = request
        self._routing = routing
        self._hops: Any = None
        self._hop: Hop | None = None

    async def next(self, last: Response | None) -> Attempt | None:
        """See Route. Raises NotLocated where the domain has no way in."""
        if last is not None and last.status != 503:
            return None
        request = self._request
        if self._hops is None:
            uri = request.routes[0].uri if request.has("route") else request.uri
            if not isinstance(uri, SipUri):
                raise Unreachable(f"{uri}: no way to get there")
            self._hops = self._routing.hops(uri)
        elif self._hop is not None:
            self._routing.mark_dead(self._hop, last)
        try:
            async for hop in self._hops:
                self._hop = hop
                try:
                    return Attempt(await self._routing.reach(hop), request)
                except Unreachable:
                    self._hop = None
        except NoRoute as error:
            raise NotLocated(error.status, error.reason) from None
        return None


def over_tls(target: Target) -> bool:
    """Whether a target is reached over TLS, like every node and every edge, or is a service in this process."""
    if target.node_id is not None or target.route_maker is not None:
        return True
    if target.flow is not None:
        return target.flow.transport in ("TLS", "WSS") or target.flow.remote[1] == 0
    hop = NameAddr.parse(target.route[0]).uri if target.route else parse_uri(target.uri)
    return isinstance(hop, SipUri) and target.address is None and (hop.is_secure or hop.transport == "tls")


def peer_of(flow: Any) -> NodeIdentity | DomainIdentity | None:
    """Who is at the other end; None for phones."""
    peer: NodeIdentity | DomainIdentity | None = flow.peer
    return peer

"""The next hop of a request: what its Route values and Record-Route tokens say, and the flow that leads there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import NodeConnector, Target, Unreachable, decode_gr
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.record_route import RecordRouter, UdpToken
from p2psipd.proto.sip.uri import SipUri


class Routing:
    """Finds next hops over the transports and the connector. `overlay` is the overlay's name in Route values."""

    def __init__(
        self,
        overlay: str,
        router: RecordRouter,
        transports: Any,
        connector: NodeConnector | None,
        resolver: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        self._overlay = overlay
        self._router = router
        self._transports = transports
        self._connector = connector
        self._resolver = resolver

    def record_route(self, flow: Flow) -> str:
        """The Record-Route value for the side of `flow`."""
        return self._router.value(flow) if peer_of(flow) is None else self._router.node_value

    def along_dialog(self, request: Request, taken: Sequence[SipUri]) -> Target:
        """The next hop of a request inside a dialog: the rest of its Route set, else the flow that our Route
        names. `taken` are the Route values of ours. Raises Refused (403, 430).
        """
        if request.has("route"):
            return self.along_route(request, trusted=True)
        token = taken[-1].user
        flow = self._flow_of(token) if token else None
        if flow is None:
            raise Refused(430, why="flow_gone")
        return Target(request.uri_text, flow=flow)

    def _flow_of(self, token: str) -> Flow | None:
        """The flow that a token of ours names. Raises Refused (403) for one that is not ours."""
        named = self._router.read(token)
        if named is None:
            raise Refused(403, "Not a Route of Ours", why="refused_token")
        if isinstance(named, UdpToken):
            listeners = self._transports.udp
            return listeners[named.listener].flow(named.remote) if named.listener < len(listeners) else None
        flow: Flow | None = self._transports.connection(named.number)
        return flow

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

    def at_hand(self, target: Target) -> Flow | None:
        """The live flow to `target` that needs no waiting for."""
        flow: Any = target.flow
        if flow is None and target.node_id is not None and self._connector is not None:
            flow = self._connector.pooled(target.node_id)
        return flow if flow is not None and flow.alive else None

    async def find(self, target: Target, request: Request) -> Flow:
        """A flow to `target`, for the copy of the request that goes there. Raises Unreachable."""
        if target.node_id is not None:
            if self._connector is None:
                raise Unreachable("this node reaches no others")
            return await self._connector.connect(target.node_id)
        if target.address is not None:
            flow: Flow = await self._transports.reach(*target.address)
            return flow
        # The copy that build() made: its top Route, or without one its Request-URI, is the next hop (16.6
        # step 7).
        hop = request.routes[0].uri if request.has("route") and request.routes[0].uri_text else request.uri
        if not isinstance(hop, SipUri):
            raise Unreachable(f"{hop.scheme}: no way to get there")
        transport = "TLS" if hop.is_secure else (hop.transport or "udp").upper()
        port = hop.port or (5061 if transport == "TLS" else 5060)
        host = hop.maddr or hop.host
        if not _is_numeric(host):
            try:
                host = (await self._resolver(host))[0]
            except Exception as error:
                raise Unreachable(f"{host}: {error}") from None
        reached: Flow = await self._transports.reach(transport, host, port)
        return reached


def peer_of(flow: Any) -> Any:
    """The NodeIdentity or DomainIdentity at the other end, None for phones."""
    return flow.peer


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()

"""SIP between nodes of one overlay: mutual TLS with overlay certificates, pooled by Node-ID (profile section
5).

To reach a node, its Node-ID is handed to ``app_attach``: an AppAttach request travels through the overlay,
the other node answers "active" and dials us, and the inbound connection whose certificate carries the wanted
Node-ID is the one that was asked for. One that answers "passive" is dialled. The AppAttach sender is the TLS
server, whoever dials (RFC 6940 section 6.5.1.13). When another node attaches to us, the overlay side calls
:meth:`Interconnect.dial`.

Connections stay open and are used in both directions. Both sides greet with a keep-alive (CRLF CRLF): under
TLS 1.3 the dialler learns only from the other side's first bytes that its certificate was accepted.

A node that hangs leaves its connections open. So whoever is sent something has to be heard of soon: if nothing at
all comes for half a second it is pinged, and after two more seconds without a word its connection is closed, which
fails the requests on it while their callers still wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.net.connections import Limits, Message, StreamFlow
from p2psipd.net.refusals import plain
from p2psipd.net.sip_transports import SipTransports
from p2psipd.net.tls import peer_certificate
from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.reload.peer_io import ApplicationAccepted
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import NodeIdentity, Unreachable

if TYPE_CHECKING:
    from p2psipd.net.tls import Judge, NodeTls

#: A connection that no message has used for this long is closed.
IDLE_SECONDS: Final = 900.0
#: A keep-alive goes over each connection this often; one that answered none since the last but one is dead.
KEEP_ALIVE_SECONDS: Final = 20.0
#: After something was sent: so long without a word and the other side is pinged, so long and it counts as dead.
ASK_SECONDS: Final = 0.5
DEAD_SECONDS: Final = 2.5

#: So long others are tried before a node that was lost or could not be reached.
DOUBT_SECONDS: Final = 60.0
_MOST_DOUBTFUL: Final = 10_000

_WAITING_FOR_ONE_NODE: Final = 1000


class _Dial(NamedTuple):
    addresses: tuple[Address, ...]
    serve: bool


class NodeFlow(StreamFlow):
    """A connection to a node.

    `watch` is called with each write's time; `waiting_since` is when the write went out that we wait to hear
    something after, None while we wait for nothing; `asked` is whether a ping has gone after it.
    """

    __slots__ = ("asked", "last_sent", "waiting_since", "watch")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.last_sent = 0.0
        self.waiting_since: float | None = None
        self.asked = False
        self.watch: Callable[[NodeFlow], None] | None = None

    def write(self, data: bytes) -> None:
        """Send `data`, after which the other side is to be heard of."""
        self.protocol.send(data)
        if self.watch is not None:
            self.watch(self)


class Interconnect:
    """A :class:`p2psipd.proto.sip.locating.NodeConnector` over real connections.

    `tls` and `judge` are those of the overlay's links; `listen` is a numeric (host, port), whose port should
    be what AppAttach candidates name; `app_attach(node_id)` sends an AppAttach and resolves when it is
    answered. `timeout` is how long a connection may take, AppAttach included. `counters` counts by reason.
    """

    def __init__(
        self,
        reactor: Any,
        tls: NodeTls,
        judge: Judge,
        *,
        listen: Address,
        app_attach: Callable[[bytes], Awaitable[object]],
        timeout: float = 5.0,
        limits: Limits | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.address: Address = listen
        self._log = Logger()
        self._clock = reactor
        self._tls = tls
        self._judge = judge
        self._app_attach = app_attach
        self._timeout = timeout
        self._limits = limits or Limits(idle=IDLE_SECONDS, per_address=256)
        self._transports: SipTransports | None = None
        self._doubtful: dict[bytes, float] = {}
        self._pool: dict[bytes, list[StreamFlow]] = {}
        # Under way, with what was asked for meanwhile.
        self._dialling: dict[bytes, _Dial | None] = {}
        self._waiting: dict[bytes, list[Deferred[Flow]]] = {}
        self._lost: Callable[[Flow], None] | None = None
        self._keeper: Any = None
        self._watched: dict[NodeFlow, None] = {}
        self._watcher: Any = None

    def start(self, receive: Callable[[Flow, Message], None], lost: Callable[[Flow], None]) -> None:
        """Listen. Raises twisted's CannotListenError."""
        self._lost = lost
        self._transports = SipTransports(
            self._clock,
            receive,
            _no_datagrams,
            self._gone,
            limits=self._limits,
            tls_client=self._tls,
            identify=self._identify,
            usable=self._usable,
            flow_class=NodeFlow,
        )
        self.address = self._transports.listen_nodes(self.address, self._tls)
        self._keeper = self._clock.callLater(KEEP_ALIVE_SECONDS, self._keep_alive_again)

    def stop(self) -> Deferred[Any] | None:
        """Close everything; those who wait get Unreachable."""
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        for node_id in list(self._waiting):
            self._fail(node_id, "this node is stopping")
        if self._transports is None:
            return None
        waiting = [d for d in self._transports.stop() if d is not None]
        return gatherResults(waiting, consumeErrors=True)

    def __len__(self) -> int:
        """How many connections are open."""
        return sum(len(flows) for flows in self._pool.values())

    def pooled(self, node_id: bytes) -> Flow | None:
        """A live flow to the node, if there is one."""
        for flow in self._pool.get(node_id, ()):
            if flow.alive:
                return flow
        return None

    def recheck(self) -> int:
        """Judge every open connection's certificate again (a newer configuration may have revoked it).

        Those refused are closed; how many that were.
        """
        closed = 0
        for flows in list(self._pool.values()):
            for flow in list(flows):
                try:
                    self._identify(flow.protocol.transport)
                except ValueError as error:
                    flow.protocol.drop("revoked", f"certificate refused: {error}")
                    closed += 1
        return closed

    async def connect(self, node_id: bytes) -> Flow:
        """A live flow to `node_id`: a pooled one, else AppAttach and what it brings. Raises Unreachable."""
        flow = self.pooled(node_id)
        if flow is not None:
            return flow
        waiters = self._waiting.setdefault(node_id, [])
        if len(waiters) >= _WAITING_FOR_ONE_NODE:
            raise Unreachable("too many calls wait for this node")
        result: Deferred[Flow] = Deferred()
        waiters.append(result)
        if len(waiters) == 1:
            self.counters["app_attach"] += 1
            deadline = self._clock.callLater(self._timeout, self._fail, node_id, "no connection in time")
            result.addBoth(_cancelled, deadline)
            Deferred.fromCoroutine(self._attach(node_id))
        return await result

    async def _attach(self, node_id: bytes) -> None:
        try:
            accepted = await self._app_attach(node_id)
        except Exception as error:
            # Whatever went wrong in the overlay, for the caller it means the same: the node can't be reached.
            self._log.info("AppAttach to {node} failed: {error}", node=node_id.hex(), error=str(error))
            self._fail(node_id, str(error) or type(error).__name__)
            return
        if isinstance(accepted, ApplicationAccepted) and accepted.role == b"passive":
            self.dial(node_id, accepted.addresses, serve=True)

    def _fail(self, node_id: bytes, reason: str) -> None:
        self.lost(node_id)
        for waiting in self._waiting.pop(node_id, []):
            self.counters["unreachable"] += 1
            waiting.errback(Failure(Unreachable(f"{node_id.hex()}: {reason}")))

    def dial(self, node_id: bytes, addresses: Sequence[Address], *, serve: bool = False) -> None:
        """Another node has attached to us: connect to it, as TLS client, at the first address that works.

        With `serve` it is we who attached, and the other side asked to be dialled: then we are the TLS server.

        A connection that we still have does not count: who attaches has none, so ours is dead without our knowing.
        The same holds for one that we are about to have: there is another after it.
        """
        wanted = _Dial(tuple(addresses), serve)
        if node_id in self._dialling:
            self._dialling[node_id] = wanted
        else:
            self._dialling[node_id] = None
            Deferred.fromCoroutine(self._dial(node_id, wanted))

    async def _dial(self, node_id: bytes, wanted: _Dial | None) -> None:
        try:
            while wanted is not None and self._keeper is not None:
                await self._dial_first_of(node_id, wanted.addresses, wanted.serve)
                wanted, self._dialling[node_id] = self._dialling[node_id], None
        finally:
            del self._dialling[node_id]

    async def _dial_first_of(self, node_id: bytes, addresses: tuple[Address, ...], serve: bool) -> None:
        assert self._transports is not None, "dial before start"
        reasons: list[str] = []
        for host, port in addresses:
            try:
                flow = await self._transports.dial("TLS", host, port, self._tls, serve=serve)
            except Unreachable as error:
                reasons.append(str(error))
                continue
            if flow.peer is not None and flow.peer.node_id == node_id:
                return
            reasons.append(f"{host}: another node answered")
        self.counters["dial_failed"] += 1
        reason = "; ".join(reasons) or "no address"
        self._log.info("could not dial {node} for SIP: {reason}", node=node_id.hex(), reason=plain(reason))

    def _identify(self, transport: Any) -> NodeIdentity:
        der = peer_certificate(transport)
        if der is None:
            raise ValueError("no certificate")
        certificate = self._judge(der)
        registrar = certificate.role is Role.REGISTRAR
        return NodeIdentity(certificate.node_id, certificate.user, registrar)

    def _usable(self, flow: StreamFlow) -> None:
        assert flow.peer is not None and isinstance(flow, NodeFlow), "identified before it is usable"
        flow.watch = self._watch
        node_id = flow.peer.node_id
        # The newest first: of an older one the other side may know no more.
        self._pool.setdefault(node_id, []).insert(0, flow)
        for waiting in self._waiting.pop(node_id, []):
            waiting.callback(flow)

    def _gone(self, flow: Flow) -> None:
        peer = getattr(flow, "peer", None)
        if peer is not None and peer.node_id in self._pool:
            flows = self._pool[peer.node_id]
            if flow in flows:
                flows.remove(flow)  # type: ignore[arg-type]
            if not flows:
                del self._pool[peer.node_id]
        if self._lost is not None:
            self._lost(flow)

    def lost(self, node_id: bytes) -> None:
        """The overlay has lost the node, or it could not be reached: it is doubtful until it is heard of."""
        self._doubtful.pop(node_id, None)
        self._doubtful[node_id] = self._clock.seconds() + DOUBT_SECONDS
        if len(self._doubtful) > _MOST_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]

    def is_doubtful(self, node_id: bytes) -> bool:
        """Whether the node has lately been lost or unreachable, so that others are tried before it."""
        return self._doubtful.get(node_id, 0.0) > self._clock.seconds() and self.pooled(node_id) is None

    def _watch(self, flow: NodeFlow) -> None:
        """Something was sent: the other side is to be heard of in time."""
        flow.last_sent = self._clock.seconds()
        if flow.waiting_since is None:
            flow.waiting_since, flow.asked = flow.last_sent, False
            self._watched[flow] = None
            if self._watcher is None:
                self._look_later()

    def _look_later(self) -> None:
        self._watcher = self._clock.callLater(ASK_SECONDS, self._look, self._clock.seconds() + ASK_SECONDS)

    def _look(self, due: float) -> None:
        """Every half second while anybody is waited for: one timer for all connections.

        Time in which this process itself stood still counts for nobody: what came in it has not been read yet.
        """
        self._watcher = None
        now = self._clock.seconds()
        late = now - due
        for flow in list(self._watched):
            heard = flow.protocol.last_heard
            if not flow.alive or flow.waiting_since is None or heard > flow.last_sent:
                flow.waiting_since = None
                del self._watched[flow]
            elif heard > flow.waiting_since:
                flow.waiting_since, flow.asked = flow.last_sent, False
            elif late > ASK_SECONDS:
                flow.waiting_since += late
            elif now - flow.waiting_since >= DEAD_SECONDS:
                flow.waiting_since = None
                del self._watched[flow]
                self.counters["silent"] += 1
                flow.protocol.drop("dead", "the other side hangs")
            elif not flow.asked:
                flow.asked = True
                flow.protocol.ping()
        if self._watched:
            self._look_later()

    def _keep_alive_again(self) -> None:
        self._keeper = self._clock.callLater(KEEP_ALIVE_SECONDS, self._keep_alive_again)
        self.keep_alive()

    def keep_alive(self) -> None:
        """Ping every connection (RFC 5626 section 3.5.1), and close those that are dead or idle.

        A node that has gone silently leaves no other sign: TCP alone would notice after a quarter of an hour.
        """
        now = self._clock.seconds()
        for flows in list(self._pool.values()):
            for flow in list(flows):
                if now - flow.protocol.last_heard > 1.5 * KEEP_ALIVE_SECONDS:
                    self.counters["dead"] += 1
                    flow.protocol.drop("dead", "no keep-alive was answered")
                elif now - flow.protocol.last_message > IDLE_SECONDS:
                    flow.protocol.drop("idle", gently=True)
                else:
                    flow.protocol.ping()


def _no_datagrams(flow: Flow, error: SipError) -> None:
    """Between nodes there is no UDP."""


def _cancelled(result: object, deadline: Any) -> object:
    if deadline.active():
        deadline.cancel()
    return result

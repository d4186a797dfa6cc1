"""SIP over UDP, TCP and TLS: listeners, the table of connections, keep-alives and limits (RFC 3261 section
18, RFC 5626).

:class:`SipTransports` turns bytes into parsed messages on flows, and nothing else: what a message means is
decided by whoever gave it ``receive``. A flow of this module has ``write(data)`` and ``alive``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.protocol import connectionDone as _done
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from p2psipd.net.datagrams import UdpListener
from p2psipd.net.tls import tls_factory
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import NodeIdentity, Unreachable
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.stream import KeepAlive, StreamParser

_PING: Final = b"\r\n\r\n"
_PONG: Final = b"\r\n"
_SWEEP_SECONDS: Final = 5.0

Message = Request | Response


class Limits(NamedTuple):
    """What connections may cost: numbers, seconds and octets.

    `silent` is how long a connection may live before its first message, `partial` how long one message may
    take to arrive, `idle` how long nothing may come at all, `stalled` how long a peer may refuse to read,
    `unread` how much it may leave unread.
    """

    connections: int = 2000
    per_address: int = 64
    connect: float = 5.0
    handshake: float = 5.0
    silent: float = 30.0
    partial: float = 30.0
    idle: float = 3720.0
    stalled: float = 20.0
    unread: int = 1024 * 1024


class StreamFlow(Flow):
    """A TCP or TLS connection; `write` queues bytes on it. `peer` is who is there, on connections between
    nodes.
    """

    __slots__ = ("peer", "protocol")

    def __init__(
        self,
        transport: str,
        remote: Address,
        local: Address,
        number: int,
        sent_by: Address,
        protocol: SipStreamProtocol,
    ) -> None:
        super().__init__(transport, remote, local, number, sent_by)
        self.protocol = protocol
        self.peer: NodeIdentity | None = None

    def towards(self, remote: Address) -> StreamFlow:
        """Itself: a connection leads to one place only."""
        return self

    def write(self, data: bytes) -> None:
        """Send `data`; a connection that is gone drops it."""
        self.protocol.send(data)

    @property
    def alive(self) -> bool:
        """Whether the connection is still open."""
        return self.protocol.alive


@implementer(IHandshakeListener)
class SipStreamProtocol(Protocol):
    """One TCP or TLS connection that speaks SIP."""

    def __init__(self, owner: SipTransports, number: int, transport_name: str, host: str, inbound: bool) -> None:
        self.number = number
        self.host = host
        self.inbound = inbound
        self.flow: Any = None
        self.alive = False
        self.usable = False
        self.messages = 0
        self.last_heard = 0.0
        self.last_message = 0.0
        self.since = 0.0
        self.partial_since: float | None = None
        self.stalled_since: float | None = None
        self.opened: Deferred[StreamFlow] | None = None
        self._name = transport_name
        self._owner = owner
        self._parser = StreamParser()
        self._unread = 0
        self._deadline: Any = None

    def connectionMade(self) -> None:
        """TCP is up; TLS still has to be."""
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        if self._name == "TCP":
            self._up()
        else:
            self._deadline = self._owner.clock.callLater(self._owner.limits.handshake, self._late)

    def _late(self) -> None:
        """The handshake took too long."""
        self._deadline = None
        self.drop("handshake")

    def handshakeCompleted(self) -> None:
        """TLS is up."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        identify = self._owner.identify
        try:
            self._up(identify(self.transport) if identify is not None else None)
        except ValueError as error:
            self._owner.log.info("connection of {host} refused: {error}", host=self.host, error=str(error))
            self.drop("refused")

    def _up(self, peer_identity: NodeIdentity | None = None) -> None:
        transport: Any = self.transport
        peer, here = transport.getPeer(), transport.getHost()
        transport.registerProducer(self, True)
        self.alive = True
        self.since = self.last_heard = self.last_message = self._owner.clock.seconds()
        self.flow = self._owner.opened(self, self._name, (peer.host, peer.port), (here.host, here.port))
        self.flow.peer = peer_identity
        if self._owner.greets:
            # Under TLS 1.3 only what the other side says shows that it has accepted our certificate.
            transport.write(_PING)
        else:
            self._usable()

    def _usable(self) -> None:
        self.usable = True
        if self.opened is not None:
            waiting, self.opened = self.opened, None
            waiting.callback(self.flow)
        self._owner.usable(self.flow)

    def dataReceived(self, data: bytes) -> None:
        """Bytes: messages go to the owner, a ping is answered, garbage closes the connection."""
        if not self.alive or self.flow is None:
            return
        now = self.last_heard = self._owner.clock.seconds()
        if not self.usable:
            self._usable()
        parser = self._parser
        try:
            items = parser.feed(data)
            for item in items:
                if item is KeepAlive.PING:
                    self._owner.counters["pings"] += 1
                    self.send(_PONG)
                elif isinstance(item, Request | Response):
                    self.messages += 1
                    self.last_message = now
                    self._owner.receive(self.flow, item)
                    if not self.alive:
                        return
            if parser.failed:
                parser.feed(b"")
        except SipError as error:
            self._garbage(error)
            return
        if not parser.pending:
            self.partial_since = None
        elif self.partial_since is None:
            self.partial_since = now

    def _garbage(self, error: SipError) -> None:
        """Framing is lost: answer what can be answered, and close (RFC 3261 section 18.3)."""
        if error.request is not None and error.request.method != "ACK":
            try:
                self.send(make_response(error.request, error.status, error.reason).encode())
            except SipError:
                # Not even its Via or From can be copied: there is nobody to answer.
                self._owner.counters["unanswerable"] += 1
        self.drop("malformed", gently=True)

    def send(self, data: bytes) -> None:
        """Queue `data`, unless the peer has left too much unread."""
        if not self.alive:
            return
        if self.stalled_since is not None:
            self._unread += len(data)
            if self._unread > self._owner.limits.unread:
                self.drop("slow")
                return
        transport: Any = self.transport
        transport.write(data)

    def pauseProducing(self) -> None:
        """The peer does not read as fast as we write; told again at each write while that lasts."""
        if self.stalled_since is None:
            self.stalled_since = self._owner.clock.seconds()
            self._unread = 0

    def resumeProducing(self) -> None:
        """The peer has caught up."""
        self.stalled_since = None

    def stopProducing(self) -> None:
        """The transport is closing."""
        self.stalled_since = None

    def drop(self, reason: str, *, gently: bool = False) -> None:
        """Close, counting `reason`; gently lets queued bytes out first."""
        self._owner.counters[f"closed_{reason}"] += 1
        self._owner.log.debug("connection of {host} closed: {reason}", host=self.host, reason=reason)
        transport: Any = self.transport
        if transport is None:
            return
        if gently:
            transport.unregisterProducer()
            transport.loseConnection()
        else:
            transport.abortConnection()

    def connectionLost(self, reason: Failure = _done) -> None:
        """Gone: tell everybody."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.alive = False
        if self.opened is not None:
            waiting, self.opened = self.opened, None
            waiting.errback(Failure(Unreachable(f"{self.host}: {reason.getErrorMessage()}")))
        self._owner.closed(self)

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Why this connection should be dropped now, or None."""
        if self.stalled_since is not None and now - self.stalled_since > limits.stalled:
            return "slow"
        if self.partial_since is not None and now - self.partial_since > limits.partial:
            return "partial"
        if not self.usable and self.alive and now - self.last_heard > limits.handshake:
            return "ungreeted"
        if (
            self.inbound
            and self.flow is not None
            and self.flow.peer is None
            and not self.messages
            and now - self.since > limits.silent
        ):
            return "silent"
        return "idle" if self.alive and now - self.last_heard > limits.idle else None


class _Accepting(Factory):
    """Makes the protocols of inbound connections, within the caps."""

    noisy = False

    def __init__(self, owner: SipTransports, name: str) -> None:
        self._owner = owner
        self._name = name

    def buildProtocol(self, addr: Any) -> SipStreamProtocol | None:
        return self._owner.accept(self._name, addr.host)


class _Dialling(ClientFactory[Protocol]):
    """Makes the one protocol of an outbound connection."""

    noisy = False

    def __init__(self, made: SipStreamProtocol) -> None:
        self._made = made

    def buildProtocol(self, addr: Any) -> SipStreamProtocol:
        return self._made

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        waiting, self._made.opened = self._made.opened, None
        if waiting is not None:
            waiting.errback(Failure(Unreachable(f"{self._made.host}: {reason.getErrorMessage()}")))


def _unnoticed(flow: StreamFlow) -> None:
    """The default of `usable`."""


class SipTransports:
    """All sockets of one SIP node, and the table of its connections.

    `receive(flow, message)` gets every parsed message; `malformed(flow, error)` every datagram that is none;
    `lost(flow)` every connection that has ended. `counters` counts why connections were refused and closed.
    Connections are found again by (transport, host, port) of the other side, so that one is used in both
    directions (RFC 3261 section 18.2.2).

    `identify(transport)` makes it the table of connections between nodes: it says who the other side of a
    completed TLS handshake is, or refuses with ValueError; both sides then greet with a keep-alive, and a
    connection is `usable` at the first bytes heard.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        receive: Callable[[Flow, Message], None],
        malformed: Callable[[Flow, SipError], None],
        lost: Callable[[Flow], None],
        *,
        limits: Limits | None = None,
        public_host: str = "",
        tls_client: Any = None,
        identify: Callable[[Any], NodeIdentity] | None = None,
        usable: Callable[[StreamFlow], None] | None = None,
    ) -> None:
        self.clock = reactor
        self.identify = identify
        self.greets = identify is not None
        self.usable = usable or _unnoticed
        self.receive = receive
        self.limits = limits or Limits()
        self.counters: Counter[str] = Counter()
        self.udp: list[UdpListener] = []
        self.listening: list[tuple[str, Address]] = []
        self._malformed = malformed
        self._lost = lost
        self._public_host = public_host
        self._tls_client = tls_client
        self._ports: list[Any] = []
        self._sent_by: dict[str, Address] = {}
        self._connections: dict[int, SipStreamProtocol] = {}
        self._by_remote: dict[tuple[str, str, int], StreamFlow] = {}
        self._per_address: Counter[str] = Counter()
        self._opening: dict[tuple[str, str, int], list[Deferred[Flow]]] = {}
        self._number = 0
        self._sweeper: Any = None

    # ---- listening -----------------------------------------------------------------------------------------

    def listen_udp(self, address: Address) -> Address:
        """Listen for datagrams; the address really bound. Raises twisted's CannotListenError."""
        listener = UdpListener(len(self.udp), self._datagram, self._public_host)
        self._ports.append(listener.listen(self.clock, address))
        self.udp.append(listener)
        self.listening.append(("UDP", listener.local))
        return listener.local

    def listen_tcp(self, address: Address) -> Address:
        """Listen for TCP connections; the address really bound."""
        return self._listen("TCP", address, _Accepting(self, "TCP"))

    def listen_tls(self, address: Address, tls: Any) -> Address:
        """Listen for TLS connections with the server side of `tls` (p2psipd.net.tls); the address really
        bound.
        """
        return self._listen("TLS", address, tls_factory(tls, False, _Accepting(self, "TLS"), self.clock))

    def _listen(self, name: str, address: Address, factory: Any) -> Address:
        port = self.clock.listenTCP(address[1], factory, backlog=512, interface=address[0])
        self._ports.append(port)
        host = port.getHost()
        self.listening.append((name, (host.host, host.port)))
        self._sent_by.setdefault(name, (self._public_host or host.host, host.port))
        if self._sweeper is None:
            self._sweeper = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        return host.host, host.port

    def stop(self) -> list[Any]:
        """Close every socket; what to wait for (Deferreds and None)."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        waiting = [port.stopListening() for port in self._ports]
        self._ports.clear()
        for protocol in list(self._connections.values()):
            protocol.drop("stopped", gently=True)
        return waiting

    # ---- inbound -------------------------------------------------------------------------------------------

    def _datagram(self, flow: Flow, data: bytes) -> None:
        try:
            message = parse_message(data)
        except SipError as error:
            self._malformed(flow, error)
            return
        self.receive(flow, message)

    def accept(self, name: str, host: str) -> SipStreamProtocol | None:
        """A protocol for a connection from `host`, or None where the caps are reached."""
        if len(self._connections) >= self.limits.connections:
            self.counters["refused_connections"] += 1
            return None
        if self._per_address[host] >= self.limits.per_address:
            self.counters["refused_per_address"] += 1
            return None
        return self._track(name, host, inbound=True)

    def _track(self, name: str, host: str, *, inbound: bool) -> SipStreamProtocol:
        self._number += 1
        protocol = SipStreamProtocol(self, self._number, name, host, inbound)
        self._connections[self._number] = protocol
        self._per_address[host] += 1
        return protocol

    def opened(self, protocol: SipStreamProtocol, name: str, remote: Address, local: Address) -> StreamFlow:
        """A connection is usable: its flow, entered in the table."""
        sent_by = self._sent_by.get(name) or (self._public_host or local[0], local[1])
        flow = StreamFlow(name, remote, local, protocol.number, sent_by, protocol)
        self._by_remote[(name, *remote)] = flow
        self.counters["opened"] += 1
        return flow

    def closed(self, protocol: SipStreamProtocol) -> None:
        """A connection has ended."""
        if self._connections.pop(protocol.number, None) is None:
            return
        self._per_address[protocol.host] -= 1
        if self._per_address[protocol.host] <= 0:
            del self._per_address[protocol.host]
        flow = protocol.flow
        if flow is not None:
            key = (flow.transport, *flow.remote)
            if self._by_remote.get(key) is flow:
                del self._by_remote[key]
            self._lost(flow)

    def _sweep(self) -> None:
        self._sweeper = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        now = self.clock.seconds()
        for protocol in list(self._connections.values()):
            reason = protocol.overdue(now, self.limits)
            if reason is not None:
                protocol.drop(reason)

    # ---- outbound ------------------------------------------------------------------------------------------

    def connection(self, number: int) -> StreamFlow | None:
        """The live connection with this number."""
        protocol = self._connections.get(number)
        return protocol.flow if protocol is not None and protocol.alive else None

    def __len__(self) -> int:
        return len(self._connections)

    async def reach(self, transport: str, host: str, port: int, *, fresh: bool = False) -> Flow:
        """A flow to a numeric `host`: a UDP listener of its address family, an open connection, or a new one.

        `fresh` passes an open connection over: the other side has said that it has none. Raises Unreachable.
        """
        if transport == "UDP":
            for listener in self.udp:
                if (":" in listener.local[0]) == (":" in host):
                    return listener.flow((host, port))
            raise Unreachable("no UDP listener of that address family")
        key = (transport, host, port)
        open_flow = self._by_remote.get(key)
        if not fresh and open_flow is not None and open_flow.protocol.usable and open_flow.alive:
            return open_flow
        if key in self._opening:
            shared: Deferred[Flow] = Deferred()
            self._opening[key].append(shared)
            return await shared
        waiters: list[Deferred[Flow]] = []
        self._opening[key] = waiters
        try:
            flow = await self._dial(transport, host, port)
        except Unreachable as error:
            del self._opening[key]
            for waiting in waiters:
                waiting.errback(Failure(Unreachable(str(error))))
            raise
        del self._opening[key]
        for waiting in waiters:
            waiting.callback(flow)
        return flow

    async def _dial(self, transport: str, host: str, port: int) -> Flow:
        if len(self._connections) >= self.limits.connections:
            raise Unreachable("too many connections")
        if transport not in ("TCP", "TLS") or (transport == "TLS" and self._tls_client is None):
            raise Unreachable(f"{transport} can't be dialled from here")
        protocol = self._track(transport, host, inbound=False)
        opened: Deferred[StreamFlow] = Deferred()
        protocol.opened = opened
        factory: Any = _Dialling(protocol)
        if transport == "TLS":
            factory = tls_factory(self._tls_client, True, factory, self.clock)
        self.clock.connectTCP(host, port, factory, timeout=self.limits.connect)
        if self._sweeper is None:
            self._sweeper = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        try:
            return await opened
        except Unreachable:
            self.closed(protocol)
            raise

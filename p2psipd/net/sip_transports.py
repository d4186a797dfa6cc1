"""SIP over UDP, TCP, TLS and WebSocket: listeners, the table of connections, and which of them to use (RFC 3261
section 18, RFC 5626, RFC 5923, RFC 7118).

:class:`SipTransports` turns bytes into parsed messages on flows, and nothing else: what a message means is
decided by whoever gave it ``receive``. A flow of this module has ``write(data)`` and ``alive``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.net.connections import Limits, Message, SipConnection, SipStream, StreamFlow
from p2psipd.net.datagrams import UdpListener, everybody
from p2psipd.net.domain_tls import DomainTls, speaks_for
from p2psipd.net.in_process import InProcess
from p2psipd.net.refusals import Refusals
from p2psipd.net.tls import NodeTls, peer_certificate, tls_factory
from p2psipd.net.tls_roles import EitherRole
from p2psipd.proto.identity.policy import sip_identities
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import NodeIdentity, Unreachable
from p2psipd.proto.sip.message import Request, parse_message

__all__ = ["Limits", "Message", "SipTransports", "StreamFlow"]

#: A request that is larger goes over TCP where the path MTU is not known (RFC 3261 section 18.1.1).
LARGEST_DATAGRAM: Final = 1300

_SWEEP_SECONDS: Final = 5.0
#: A host that takes no TCP is not asked again for so long, and not waited for longer than that the first time.
_UDP_ONLY_SECONDS: Final = 600.0
_TCP_PATIENCE: Final = 2.0
_KEPT_HOSTS: Final = 10_000
_TLS_PORT: Final = 5061
_ANY_HOST: Final = ("0.0.0.0", "::")

OriginPolicy = Callable[[str], bool]


class _Accepting(Factory):
    """Makes the protocols of inbound connections, within the caps."""

    noisy = False

    def __init__(self, owner: SipTransports, make: Callable[[int, str], SipConnection]) -> None:
        self.listener = ""
        self._owner = owner
        self._make = make

    def buildProtocol(self, addr: Any) -> SipConnection | None:
        return self._owner.accept((addr.host, addr.port), self._make, self.listener)


class _Dialling(ClientFactory[Protocol]):
    """Makes the one protocol of an outbound connection."""

    noisy = False

    def __init__(self, made: SipConnection) -> None:
        self._made = made

    def buildProtocol(self, addr: Any) -> SipConnection:
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
    `lost(flow)` every connection that has ended. `admit(host)` is asked for every datagram and every new connection
    before anything of it is read. `counters` counts why connections were refused and closed, and where it was no normal
    end, `refusals` tells the log so.

    A connection is found again by transport and address of the other side, and used in both directions (RFC 3261
    section 18.2.2). Over TLS it must also speak for the domain that is wanted; the address of one that was opened
    by the other side is its Via's, if that says "alias" and the certificate was verified (RFC 5923 section 8).

    `tls_client` dials over TLS: a DomainTls, or between nodes a NodeTls, which knows no domains. There
    `identify(transport)` says who the other side of a completed TLS handshake is, or refuses with ValueError; both
    sides then greet with a keep-alive (unless `greets` says no), and a connection is `usable` at the first bytes heard.
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
        admit: Callable[[str], bool] | None = None,
        flow_class: type[StreamFlow] = StreamFlow,
        greets: bool | None = None,
    ) -> None:
        self.clock = reactor
        self.identify = identify
        self.greets = identify is not None if greets is None else greets
        self.usable = usable or _unnoticed
        self.receive: Callable[[Flow, Message], None] = receive
        # Where it is set, it is asked whether a datagram is not even to be read.
        self.ignores: Callable[[Flow, bytes], bool] | None = None
        self.limits = limits or Limits()
        self.counters: Counter[str] = Counter()
        self.refusals = Refusals(self.log, reactor, "connections, datagrams or messages")
        self.udp: list[UdpListener] = []
        self.listening: list[tuple[str, Address]] = []
        self._malformed = malformed
        self._lost = lost
        self._public_host = public_host
        self._tls_client = tls_client
        self._admit = admit or everybody
        self._flow_class = flow_class
        self._ports: list[Any] = []
        self._connections: dict[int, SipConnection] = {}
        self._by_remote: dict[tuple[str, str, int], dict[StreamFlow, None]] = {}
        self._aliases: dict[StreamFlow, tuple[str, str, int]] = {}
        self._per_address: Counter[str] = Counter()
        self._opening: dict[tuple[str, str, int, str], list[Deferred[Flow]]] = {}
        self._udp_only: dict[Address, float] = {}
        self._number = 0
        self._sweeper: Any = None

    # ---- listening -----------------------------------------------------------------------------------------

    def queued(self) -> float:
        """What nobody has read yet of that UDP socket where most lies: 0 to 1."""
        return max([listener.queued() for listener in self.udp], default=0.0)

    def listen_udp(self, address: Address) -> Address:
        """Listen for datagrams; the address really bound. Raises twisted's CannotListenError."""
        listener = UdpListener(
            len(self.udp), self._datagram, self._public_host, self._admit, self.counters, self._not_taken
        )
        self._ports.append(listener.listen(self.clock, address))
        self.udp.append(listener)
        self.listening.append(("UDP", listener.local))
        return listener.local

    def listen_tcp(self, address: Address) -> Address:
        """Listen for TCP connections; the address really bound."""
        return self._listen("TCP", address, self._accepting_streams("TCP"))

    def listen_tls(self, address: Address, tls: Any) -> Address:
        """Listen for TLS connections with the server side of `tls` (p2psipd.net.tls); the address really
        bound.
        """
        accepting = self._accepting_streams("TLS")
        return self._listen("TLS", address, accepting, tls_factory(tls, False, accepting, self.clock))

    def listen_nodes(self, address: Address, tls: NodeTls) -> Address:
        """Listen for TLS connections of other nodes, who may be the server on them; the address really bound."""
        accepting = self._accepting_streams("TLS")
        return self._listen("TLS", address, accepting, EitherRole(tls, accepting, self.clock))

    def listen_web(self, address: Address, tls: Any = None, origins: OriginPolicy | None = None) -> Address:
        """Listen for WebSocket connections, over TLS (WSS) where `tls` is given; the address really bound.

        `origins(origin)` says whether pages from there may connect; None admits all.
        """
        from p2psipd.net.web import SipWebSocket, any_origin

        policy = origins or any_origin
        name = "WS" if tls is None else "WSS"
        accepting = _Accepting(self, lambda number, host: SipWebSocket(self, number, name, host, policy))
        factory = None if tls is None else tls_factory(tls, False, accepting, self.clock)
        return self._listen(name, address, accepting, factory)

    def attach(self, take: Callable[[bytes], None]) -> InProcess:
        """A connection to a service in this process, which gets what is sent to it by `take`; listening comes first."""
        self._number += 1
        connection = InProcess(self, self._number, self.listening[0][1], take)
        self._connections[self._number] = connection
        self._per_address[connection.host] += 1
        return connection

    def _accepting_streams(self, name: str) -> _Accepting:
        return _Accepting(self, lambda number, host: SipStream(self, number, name, host, True))

    def _listen(self, name: str, address: Address, accepting: _Accepting, factory: Any = None) -> Address:
        port = self.clock.listenTCP(address[1], factory or accepting, backlog=512, interface=address[0])
        self._ports.append(port)
        host = port.getHost()
        accepting.listener = f"{name} port {host.port}"
        self.listening.append((name, (host.host, host.port)))
        self._sweep_from_now_on()
        return host.host, host.port

    def stop(self) -> list[Any]:
        """Close every socket; what to wait for (Deferreds and None)."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        waiting = [port.stopListening() for port in self._ports]
        self._ports.clear()
        for connection in list(self._connections.values()):
            connection.drop("stopped", gently=True)
        return waiting

    # ---- inbound -------------------------------------------------------------------------------------------

    def _datagram(self, flow: Flow, data: bytes) -> None:
        if self.ignores is not None and self.ignores(flow, data):
            self.counters["datagrams_ignored"] += 1
            return
        try:
            message = parse_message(data)
        except SipError as error:
            self._not_taken(flow.remote, f"no SIP message: {error.reason}", flow.local)
            self._malformed(flow, error)
            return
        self.receive(flow, message)

    def _not_taken(self, remote: Address, reason: str, local: Address) -> None:
        """A datagram is dropped."""
        self.refusals.dropped("datagram", remote, reason, f"UDP port {local[1]}")

    def accept(
        self, remote: Address, make: Callable[[int, str], SipConnection], listener: str
    ) -> SipConnection | None:
        """A protocol for a connection from `remote` to `listener`, or None where it is not admitted or the caps are
        reached.
        """
        host = remote[0]
        if not self._admit(host):
            # Whoever admits has told whom it shuts out, and for how long.
            self.counters["refused_admission"] += 1
        elif len(self._connections) >= self.limits.connections:
            self.counters["refused_connections"] += 1
            self.refusals.accepted(remote, "too many connections", listener)
        elif self._per_address[host] >= self.limits.per_address:
            self.counters["refused_per_address"] += 1
            self.refusals.accepted(remote, "too many connections from this address", listener)
        else:
            connection = self._track(remote, make)
            connection.listener = listener
            return connection
        return None

    def _track(self, remote: Address, make: Callable[[int, str], SipConnection]) -> SipConnection:
        self._number += 1
        host = remote[0]
        connection = self._connections[self._number] = make(self._number, host)
        connection.port = remote[1]
        self._per_address[host] += 1
        return connection

    def opened(self, connection: SipConnection, remote: Address, local: Address) -> StreamFlow:
        """A connection is up: its flow, entered in the table."""
        name = connection.name
        flow = self._flow_class(
            name, remote, local, connection.number, self._sent_by(name, local, connection.inbound), connection
        )
        if not self.greets and name in ("TLS", "WSS") and getattr(connection.transport, "verified", False):
            flow.domains = sip_identities(peer_certificate(connection.transport) or b"")
        self._by_remote.setdefault((name, *remote), {})[flow] = None
        self.counters["opened"] += 1
        return flow

    def _sent_by(self, name: str, local: Address, inbound: bool) -> Address:
        """What Via and Record-Route name on a connection: where a new one would reach us (RFC 3261 section 18.1.1)."""
        if inbound:
            return self._public_host or local[0], local[1]
        listeners = [address for transport, address in self.listening if transport == name]
        fitting = [address for address in listeners if address[0] == local[0]]
        fitting += [address for address in listeners if (":" in address[0]) == (":" in local[0])]
        host, port = fitting[0] if fitting else local
        return self._public_host or (local[0] if host in _ANY_HOST else host), port

    def closed(self, connection: SipConnection) -> None:
        """A connection has ended."""
        if self._connections.pop(connection.number, None) is None:
            return
        self._per_address[connection.host] -= 1
        if self._per_address[connection.host] <= 0:
            del self._per_address[connection.host]
        flow = connection.flow
        if flow is not None:
            self._leave((flow.transport, *flow.remote), flow)
            alias = self._aliases.pop(flow, None)
            if alias is not None:
                self._leave(alias, flow)
            self._lost(flow)

    def _leave(self, key: tuple[str, str, int], flow: StreamFlow) -> None:
        flows = self._by_remote.get(key)
        if flows is not None:
            flows.pop(flow, None)
            if not flows:
                del self._by_remote[key]

    def alias(self, flow: Flow, request: Request) -> None:
        """Let requests to the address in `request`'s top Via use the connection that it came over, if its "alias"
        asks for that and the client has proved a domain (RFC 5923 section 8.2).
        """
        if not isinstance(flow, StreamFlow) or not flow.inbound or not flow.domains or flow in self._aliases:
            return
        via = request.top_via
        if "alias" in via.params:
            key = self._aliases[flow] = (flow.transport, flow.remote[0], via.port or _TLS_PORT)
            self._by_remote.setdefault(key, {})[flow] = None
            self.counters["aliases"] += 1

    def _sweep_from_now_on(self) -> None:
        if self._sweeper is None:
            self._sweeper = self.clock.callLater(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = self.clock.callLater(_SWEEP_SECONDS, self._sweep)
        now = self.clock.seconds()
        for connection in list(self._connections.values()):
            reason = connection.overdue(now, self.limits)
            if reason is not None:
                connection.drop(reason)

    # ---- outbound ------------------------------------------------------------------------------------------

    def connection(self, number: int) -> StreamFlow | None:
        """The live connection with this number."""
        found = self._connections.get(number)
        return found.flow if found is not None and found.alive else None

    def __len__(self) -> int:
        return len(self._connections)

    async def reach(self, transport: str, host: str, port: int, *, domain: str = "", fresh: bool = False) -> Flow:
        """A flow to a numeric `host`: a UDP listener of its address family, an open connection, or a new one.

        `domain` is whom a TLS server must prove to be (default: `host` itself). `fresh` passes open connections
        over: the other side has said that it has none. Raises Unreachable.
        """
        if transport == "UDP":
            for listener in self.udp:
                if (":" in listener.local[0]) == (":" in host):
                    return listener.flow((host, port))
            raise Unreachable("no UDP listener of that address family")
        domain = (domain or host) if transport == "TLS" and isinstance(self._tls_client, DomainTls) else ""
        found = None if fresh else self._open_to(transport, host, port, domain)
        return found or await self._dial_once(transport, host, port, domain)

    def _open_to(self, transport: str, host: str, port: int, domain: str) -> Flow | None:
        """An open connection that leads there, the newest first."""
        for flow in reversed(self._by_remote.get((transport, host, port), ())):
            usable = flow.protocol.usable and flow.alive and flow.protocol.closing_since is None
            if usable and (not domain or speaks_for(flow.domains, domain)):
                return flow
        return None

    async def _dial_once(self, transport: str, host: str, port: int, domain: str) -> Flow:
        """One new connection for all who want the same at the same time."""
        key = (transport, host, port, domain)
        if key in self._opening:
            shared: Deferred[Flow] = Deferred()
            self._opening[key].append(shared)
            return await shared
        waiters: list[Deferred[Flow]] = []
        self._opening[key] = waiters
        try:
            flow = await self._dial(transport, host, port, domain)
        except Unreachable as error:
            del self._opening[key]
            for waiting in waiters:
                waiting.errback(Failure(Unreachable(str(error))))
            raise
        del self._opening[key]
        for waiting in waiters:
            waiting.callback(flow)
        return flow

    async def _dial(self, transport: str, host: str, port: int, domain: str) -> Flow:
        if transport not in ("TCP", "TLS") or (transport == "TLS" and self._tls_client is None):
            raise Unreachable(f"{transport} can't be dialled from here")
        creator = self._tls_client
        if domain:
            try:
                creator = self._tls_client.towards(domain)
            except ValueError as error:
                raise Unreachable(f"{domain}: {error}") from None
        flow = await self.dial(transport, host, port, creator)
        if domain:
            shown = sip_identities(peer_certificate(flow.protocol.transport) or b"")
            flow.domains = tuple(dict.fromkeys((domain, *shown)))
            flow.alias = self._tls_client.shows_certificate
        return flow

    async def dial(
        self, transport: str, host: str, port: int, creator: Any = None, *, serve: bool = False
    ) -> StreamFlow:
        """A new connection to a numeric `host`; `creator` makes its TLS, of which we are the server with `serve`.

        Raises Unreachable.
        """
        if len(self._connections) >= self.limits.connections:
            raise Unreachable("too many connections")
        connection = self._track((host, port), lambda number, where: SipStream(self, number, transport, where, False))
        opened: Deferred[StreamFlow] = Deferred()
        connection.opened = opened
        factory: Any = _Dialling(connection)
        if transport == "TLS":
            factory = tls_factory(creator, not serve, factory, self.clock)
        connector = self.clock.connectTCP(host, port, factory, timeout=self.limits.connect)
        self._sweep_from_now_on()
        try:
            return await opened
        except Unreachable:
            self.closed(connection)
            raise
        except CancelledError:
            connector.disconnect()
            self.closed(connection)
            raise Unreachable(f"{host}: given up") from None

    # ---- large requests (RFC 3261 section 18.1.1) ----------------------------------------------------------

    def too_large(self, flow: Flow, octets: int) -> bool:
        """Whether a request of so many octets, its new Via among them, should not go over `flow`'s UDP."""
        return flow.transport == "UDP" and octets > LARGEST_DATAGRAM

    async def congestion_controlled(self, flow: Flow) -> Flow:
        """A TCP connection to where the UDP `flow` leads; `flow` itself where that can't be had, as for 10 minutes
        then.
        """
        now = self.clock.seconds()
        if self._udp_only.get(flow.remote, now) > now:
            return flow
        result: Deferred[Flow] = Deferred.fromCoroutine(self.reach("TCP", *flow.remote))
        try:
            return await result.addTimeout(_TCP_PATIENCE, self.clock)
        except (Unreachable, TimeoutError):
            if len(self._udp_only) >= _KEPT_HOSTS:
                self._udp_only.clear()
            self._udp_only[flow.remote] = now + _UDP_ONLY_SECONDS
            self.counters["large_over_udp"] += 1
            return flow

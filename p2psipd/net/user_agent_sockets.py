"""The sockets of our small phone: SIP over UDP, or over TCP and TLS with connections found by address, and the
keep-alives of both (RFC 5626 section 4.4)."""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Factory, Protocol
from twisted.python.failure import Failure

from p2psipd.proto.sip.agent_io import KeepAliveAnswered
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.stream import PING, PONG, KeepAlive, StreamParser
from p2psipd.proto.sip.transaction import TransportFailed

_BINDING_REQUEST: Final = b"\0\x01"
_BINDING_SUCCESS: Final = b"\x01\x01"
_STUN_COOKIE: Final = b"\x21\x12\xa4\x42"
_KEEP_BYTES: Final = 1 << 20
"""At most this much waits for one connection that is being opened."""


class Owner(TypingProtocol):
    """What the sockets need of the user agent."""

    reactor: Any
    random: Any
    bind: str

    def received(self, flow: Flow, message: Request | Response) -> None:
        """A message came in on `flow`."""

    def feed(self, item: object) -> None:
        """Hand an input to the core."""


def _refusal(error: SipError) -> bytes | None:
    """The answer to a request that could not be parsed, if one can be made."""
    if error.request is None or error.request.method == "ACK":
        return None
    try:
        return make_response(error.request, error.status, error.reason).encode()
    except SipError:
        return None


class Udp(DatagramProtocol):
    """SIP over UDP for one agent. Its keep-alives are STUN Binding requests (RFC 5626 section 4.4.2)."""

    def __init__(self, agent: Owner) -> None:
        self._agent = agent
        self._socket: Any = None

    @property
    def port(self) -> int:
        return int(self._socket.getHost().port)

    def listen(self, host: str, port: int) -> None:
        self._socket = self._agent.reactor.listenUDP(port, self, interface=host, maxPacketSize=65536)

    async def close(self) -> None:
        await maybeDeferred(self._socket.stopListening)

    def send(self, flow: Flow, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data, flow.remote)

    def keep_alive(self, flow: Flow) -> None:
        transaction = self._agent.random.getrandbits(96).to_bytes(12, "big")
        self.send(flow, _BINDING_REQUEST + b"\0\0" + _STUN_COOKIE + transaction)

    def drop(self, flow: Flow) -> None:
        """There is no connection to close."""

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        flow = Flow("UDP", (addr[0], addr[1]), (self._agent.bind, self.port))
        if datagram[:2] == _BINDING_SUCCESS and datagram[4:8] == _STUN_COOKIE:
            self._agent.feed(KeepAliveAnswered(flow))
            return
        if not datagram.strip(b"\r\n\0"):
            return
        try:
            message = parse_message(datagram)
        except SipError as error:
            refusal = _refusal(error)
            if refusal is not None:
                self.send(flow, refusal)
            return
        self._agent.received(flow, message)

    def connectionRefused(self) -> None:
        """Nobody listens there: the transactions' timers decide (ICMP is not to be trusted for more)."""


class Tcp(Factory):
    """SIP over TCP for one agent: a listening port, and connections found by the address of the far side.

    With `tls` (what makes TLS connections, for a server's certificate) connections are TLS, and there is no listening
    port: a phone has no certificate, and is reached by the connection that it opened.
    """

    noisy = False

    def __init__(self, agent: Owner, tls: Any = None) -> None:
        self.agent = agent
        self._tls = tls
        self._label = 0
        self._socket: Any = None
        self._serial = 0
        self._by_flow: dict[Flow, _SipStream] = {}
        self._by_remote: dict[Address, _SipStream] = {}
        self._closing: Deferred[None] | None = None

    @property
    def port(self) -> int:
        return self._label if self._socket is None else int(self._socket.getHost().port)

    def listen(self, host: str, port: int) -> None:
        if self._tls is None:
            self._socket = self.agent.reactor.listenTCP(port, self, interface=host)
        else:
            # A Contact of its own for each phone on this host, though nobody is meant to dial it.
            self._label = port or 49152 + self.agent.random.getrandbits(13)

    async def close(self) -> None:
        for stream in list(self._by_flow.values()):
            stream.close()
        if self._socket is not None:
            await maybeDeferred(self._socket.stopListening)
        if self._by_flow:
            self._closing = Deferred()
            await self._closing

    def buildProtocol(self, addr: Any) -> _SipStream:
        return _SipStream(self, (addr.host, addr.port))

    def flow(self, remote: Address) -> Flow:
        """A flow for a new connection."""
        self._serial += 1
        return Flow("TCP" if self._tls is None else "TLS", remote, (self.agent.bind, self.port), self._serial)

    def opened(self, stream: _SipStream) -> None:
        self._by_flow[stream.flow] = stream
        self._by_remote[stream.flow.remote] = stream

    def closed(self, stream: _SipStream) -> None:
        self._by_flow.pop(stream.flow, None)
        if self._by_remote.get(stream.flow.remote) is stream:
            del self._by_remote[stream.flow.remote]
        for flow in (stream.flow, *stream.used_by):
            self.agent.feed(TransportFailed(flow, None, stream.reason or "the connection was closed"))
        if self._closing is not None and not self._by_flow:
            closing, self._closing = self._closing, None
            closing.callback(None)

    def send(self, flow: Flow, data: bytes) -> None:
        """Send on the flow's own connection, else on one to its address, opened where there is none."""
        stream = self._stream(flow)
        if stream is None:
            stream = _SipStream(self, flow.remote)
            self.opened(stream)
            self._dial(stream)
        if flow != stream.flow:
            stream.used_by.add(flow)
        stream.send(data)

    def _stream(self, flow: Flow) -> _SipStream | None:
        return self._by_flow.get(flow) or self._by_remote.get(flow.remote)

    def _dial(self, stream: _SipStream) -> None:
        reactor = self.agent.reactor
        factory: Any = _Dial(stream)
        if self._tls is not None:
            from p2psipd.net.tls import tls_factory

            factory = tls_factory(self._tls, True, factory, reactor)
        reactor.connectTCP(*stream.flow.remote, factory, timeout=10, bindAddress=(self.agent.bind, 0))

    def keep_alive(self, flow: Flow) -> None:
        """Two line ends, which the far side answers with one; a flow that is gone has failed."""
        stream = self._stream(flow)
        if stream is None:
            self.agent.feed(TransportFailed(flow, None, "the connection was closed"))
        else:
            stream.send(PING)

    def drop(self, flow: Flow) -> None:
        """Close the connection of a flow that is silent; what it has not sent is lost."""
        stream = self._stream(flow)
        if stream is not None:
            stream.abort()


class _Dial(ClientFactory):
    """Opens one connection; a failure is the end of the stream."""

    noisy = False

    def __init__(self, stream: _SipStream) -> None:
        self._stream = stream

    def buildProtocol(self, addr: Any) -> _SipStream:
        return self._stream

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Nobody there: all that waited for the connection has failed."""
        self._stream.reason = reason.getErrorMessage()
        self._stream.gone()


class _SipStream(Protocol):
    """One connection: what is sent before it is open waits for it."""

    def __init__(self, network: Tcp, remote: Address) -> None:
        self._network = network
        self._parser = StreamParser()
        self._waiting = bytearray()
        self.flow = network.flow(remote)
        self.used_by: set[Flow] = set()
        self.reason = ""

    def connectionMade(self) -> None:
        self._network.opened(self)
        if self._waiting and self.transport is not None:
            self.transport.write(bytes(self._waiting))
            self._waiting.clear()

    def send(self, data: bytes) -> None:
        """Write, or keep for the moment the connection is open."""
        if self.transport is not None:
            self.transport.write(data)
        elif len(self._waiting) + len(data) <= _KEEP_BYTES:
            self._waiting += data

    def close(self) -> None:
        """Close an open connection, or forget one that is being opened."""
        if self.transport is not None:
            self.transport.loseConnection()
        else:
            self.gone()

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        if self.transport is not None and hasattr(self.transport, "abortConnection"):
            self.transport.abortConnection()
        else:
            self.close()

    def gone(self) -> None:
        """The connection is no more, or never was."""
        self._network.closed(self)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        while True:
            try:
                messages = self._parser.feed(data)
            except SipError as error:
                refusal = _refusal(error)
                if refusal is not None:
                    self.transport.write(refusal)
                self.transport.loseConnection()
                return
            for message in messages:
                if message is KeepAlive.PING:
                    self.transport.write(PONG)
                elif message is KeepAlive.PONG:
                    self._network.agent.feed(KeepAliveAnswered(self.flow))
                elif isinstance(message, Request | Response):
                    self._network.agent.received(self.flow, message)
            if not self._parser.failed:
                return
            data = b""

    def connectionLost(self, reason: Failure = Failure(Exception("closed"))) -> None:
        self.reason = getattr(self.transport, "refusal", "")
        self.gone()

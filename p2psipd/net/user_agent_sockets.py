"""The sockets of our small phone: SIP over UDP, or over TCP with connections found by address."""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Factory, Protocol
from twisted.python.failure import Failure

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.stream import KeepAlive, StreamParser
from p2psipd.proto.sip.transaction import TransportFailed

_KEEP_BYTES: Final = 1 << 20
"""At most this much waits for one connection that is being opened."""


class Owner(TypingProtocol):
    """What the sockets need of the user agent."""

    reactor: Any
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
    """SIP over UDP for one agent."""

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

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        flow = Flow("UDP", (addr[0], addr[1]), (self._agent.bind, self.port))
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
    """SIP over TCP for one agent: a listening port, and connections found by the address of the far side."""

    def __init__(self, agent: Owner) -> None:
        self.agent = agent
        self._socket: Any = None
        self._serial = 0
        self._by_flow: dict[Flow, _SipStream] = {}
        self._by_remote: dict[Address, _SipStream] = {}
        self._closing: Deferred[None] | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getHost().port)

    def listen(self, host: str, port: int) -> None:
        self._socket = self.agent.reactor.listenTCP(port, self, interface=host)

    async def close(self) -> None:
        for stream in list(self._by_flow.values()):
            stream.close()
        await maybeDeferred(self._socket.stopListening)
        if self._by_flow:
            self._closing = Deferred()
            await self._closing

    def buildProtocol(self, addr: Any) -> _SipStream:
        return _SipStream(self, (addr.host, addr.port))

    def flow(self, remote: Address) -> Flow:
        """A flow for a new connection."""
        self._serial += 1
        return Flow("TCP", remote, (self.agent.bind, self.port), self._serial)

    def opened(self, stream: _SipStream) -> None:
        self._by_flow[stream.flow] = stream
        self._by_remote[stream.flow.remote] = stream

    def closed(self, stream: _SipStream) -> None:
        self._by_flow.pop(stream.flow, None)
        if self._by_remote.get(stream.flow.remote) is stream:
            del self._by_remote[stream.flow.remote]
        for flow in (stream.flow, *stream.used_by):
            self.agent.feed(TransportFailed(flow, None, "the connection was closed"))
        if self._closing is not None and not self._by_flow:
            closing, self._closing = self._closing, None
            closing.callback(None)

    def send(self, flow: Flow, data: bytes) -> None:
        """Send on the flow's own connection, else on one to its address, opened where there is none."""
        stream = self._by_flow.get(flow) or self._by_remote.get(flow.remote)
        if stream is None:
            stream = _SipStream(self, flow.remote)
            self.opened(stream)
            self.agent.reactor.connectTCP(*flow.remote, _Dial(stream), timeout=10, bindAddress=(self.agent.bind, 0))
        if flow != stream.flow:
            stream.used_by.add(flow)
        stream.send(data)


class _Dial(ClientFactory):
    """Opens one connection; a failure is the end of the stream."""

    noisy = False

    def __init__(self, stream: _SipStream) -> None:
        self._stream = stream

    def buildProtocol(self, addr: Any) -> _SipStream:
        return self._stream

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Nobody there: all that waited for the connection has failed."""
        self._stream.gone()


class _SipStream(Protocol):
    """One connection: what is sent before it is open waits for it."""

    def __init__(self, network: Tcp, remote: Address) -> None:
        self._network = network
        self._parser = StreamParser()
        self._waiting = bytearray()
        self.flow = network.flow(remote)
        self.used_by: set[Flow] = set()

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
                    self.transport.write(b"\r\n")
                elif isinstance(message, Request | Response):
                    self._network.agent.received(self.flow, message)
            if not self._parser.failed:
                return
            data = b""

    def connectionLost(self, reason: Failure = Failure(Exception("closed"))) -> None:
        self.gone()

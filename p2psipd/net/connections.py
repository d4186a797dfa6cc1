"""One connection that speaks SIP: what TCP, TLS and WebSocket connections have in common, and the stream itself.

What a connection may cost is in :class:`Limits`; a :class:`Table` (SipTransports) owns the connections, and is told
what they hear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import Protocol
from twisted.internet.protocol import connectionDone as _done
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from p2psipd.net.refusals import DOES_NOT_READ, Refusals, reason_text
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import NodeIdentity, Unreachable
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.stream import PING, PONG, KeepAlive, StreamParser

Message = Request | Response

#: Seconds for the answers to who has said all that it had to say.
_LINGER = 2.0
#: Octets that wait for more: a few messages, so that nobody waits long for the first.
_GATHERED_AT_MOST = 4096


#: What the log says where a connection is dropped for a reason that tells all; of the others nothing, or what is given.
_WHY: Final = {
    "partial": "the rest of a message did not come in time",
    "silent": "no message in time",
    "slow": DOES_NOT_READ,
    "ungreeted": "not a word after the TLS handshake",
}


class Limits(NamedTuple):
    """What connections may cost: numbers, seconds and octets.

    `silent` is how long a connection may live before its first message, `partial` how long one message may
    take to arrive, `idle` how long nothing may come at all, `stalled` how long a peer may refuse to read,
    `unread` how much it may leave unread. `rate` is how many messages a second are read from one connection; the
    rest waits in the kernel, so that the other side is slowed down and loses nothing.
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
    rate: int = 5000


class Table(TypingProtocol):
    """What a connection asks and tells the table that it stands in."""

    clock: Any
    limits: Limits
    counters: Counter[str]
    log: Logger
    refusals: Refusals
    greets: bool
    identify: Callable[[Any], NodeIdentity] | None
    receive: Callable[[Flow, Message], None]

    def opened(self, connection: SipConnection, remote: Address, local: Address) -> StreamFlow:
        """The connection is up; its flow."""
        ...

    def usable(self, flow: StreamFlow) -> None:
        """The other side has accepted the connection."""
        ...

    def closed(self, connection: SipConnection) -> None:
        """The connection has ended."""
        ...


class StreamFlow(Flow):
    """A TCP, TLS or WebSocket connection; `write` queues one message on it.

    `peer` is who is there, on connections between nodes. `domains` are the identities of the other side's
    certificate where that was verified (RFC 5922 section 7.1), which makes nobody a node. `inbound` says who
    opened the connection.
    """

    __slots__ = ("domains", "inbound", "peer", "protocol")

    def __init__(
        self, transport: str, remote: Address, local: Address, number: int, sent_by: Address, protocol: SipConnection
    ) -> None:
        super().__init__(transport, remote, local, number, sent_by)
        self.protocol = protocol
        self.inbound = protocol.inbound
        self.peer: NodeIdentity | None = None
        self.domains: tuple[str, ...] = ()

    def towards(self, remote: Address) -> StreamFlow:
        """Itself: a connection leads to one place only."""
        return self

    def write(self, data: bytes) -> None:
        """Send `data`, one message; a connection that is gone drops it."""
        self.protocol.send(data)

    @property
    def alive(self) -> bool:
        """Whether the connection is still open."""
        return self.protocol.alive


@implementer(IHandshakeListener)
class SipConnection(Protocol):
    """A connection that carries SIP messages, whatever frames them.

    `name` is the Via transport, `listener` where an inbound connection came in, for the log, and `port` the other
    side's. Subclasses say what octets mean (`_heard`), how a message is framed (`send`), and
    when the connection is up (`_connected`). What is sent while octets are taken goes out together: many messages in
    one read are answered with few TLS records and system calls.
    """

    def __init__(self, owner: Table, number: int, transport_name: str, host: str, inbound: bool) -> None:
        self.name = transport_name
        self.number = number
        self.host = host
        self.port = 0
        self.listener = ""
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
        self.closing_since: float | None = None
        self.opened: Deferred[StreamFlow] | None = None
        self._owner = owner
        self._unread = 0
        self._hearing = False
        self._gathered = b""
        self._dropped = ""
        self._why = ""
        self._awaited = "TLS handshake"
        self._deadline: Any = None
        self._held: Any = None
        self._second = 0.0
        self._in_second = 0

    # ---- beginning -----------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """TCP is up; TLS still has to be."""
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self.since = self._owner.clock.seconds()
        if self.name in ("TCP", "WS"):
            self._connected()
        else:
            self._await_handshake()

    def _await_handshake(self) -> None:
        self._deadline = self._owner.clock.callLater(self._owner.limits.handshake, self._late)

    def _late(self) -> None:
        """The handshake took too long."""
        self._deadline = None
        self.drop("handshake", f"the {self._awaited} took too long")

    def _handshake_is_over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def handshakeCompleted(self) -> None:
        """TLS is up."""
        self._handshake_is_over()
        self._connected()

    def _connected(self) -> None:
        """What is below SIP is up."""
        self._up()

    def _up(self) -> None:
        """The connection takes messages, if the other side is who it should be."""
        transport: Any = self.transport
        identify = self._owner.identify
        try:
            peer_identity = identify(transport) if identify is not None else None
        except ValueError as error:
            self.drop("refused", f"certificate refused: {error}")
            return
        peer, here = transport.getPeer(), transport.getHost()
        transport.registerProducer(self, True)
        self.alive = True
        self.last_heard = self.last_message = self._owner.clock.seconds()
        self.flow = self._owner.opened(self, (peer.host, peer.port), (here.host, here.port))
        self.flow.peer = peer_identity
        if self._owner.greets:
            # Under TLS 1.3 only what the other side says shows that it has accepted our certificate.
            transport.write(PING)
        else:
            self._usable()

    def _usable(self) -> None:
        self.usable = True
        if self.opened is not None:
            waiting, self.opened = self.opened, None
            waiting.callback(self.flow)
        self._owner.usable(self.flow)

    # ---- receiving -----------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Octets of whatever is below SIP."""
        if not self.alive or self.flow is None or self.closing_since is not None:
            return
        now = self.last_heard = self._owner.clock.seconds()
        if not self.usable:
            self._usable()
        before = self.messages
        self._hearing = True
        try:
            unfinished = self._heard(data, now)
        finally:
            self._release()
        if not unfinished:
            self.partial_since = None
        elif self.partial_since is None or self.messages > before:
            self.partial_since = now
        self._pace(now, self.messages - before)

    def _heard(self, data: bytes, now: float) -> bool:
        """Take octets; whether an unfinished message is held back."""
        raise AssertionError("a connection is a stream or a WebSocket")

    def _take(self, message: Message, now: float) -> None:
        """One message has come."""
        self.messages += 1
        self.last_message = now
        self._owner.receive(self.flow, message)

    def _pace(self, now: float, count: int) -> None:
        """Read no more until the second is over from whoever sends more messages in it than anybody needs."""
        if now - self._second >= 1.0:
            self._second, self._in_second = now, 0
        self._in_second += count
        if self._in_second > self._owner.limits.rate and self._held is None and self.alive:
            self._owner.counters["slowed_down"] += 1
            transport: Any = self.transport
            transport.pauseProducing()
            self._held = self._owner.clock.callLater(max(0.0, self._second + 1.0 - now), self._read_again)

    def _read_again(self) -> None:
        self._held = None
        transport: Any = self.transport
        if self.alive and transport is not None:
            transport.resumeProducing()

    def _refuse(self, error: SipError) -> None:
        """Answer what is no message, if it can be answered (RFC 3261 section 18.3)."""
        if error.request is None or error.request.method == "ACK":
            return
        try:
            self.send(make_response(error.request, error.status, error.reason).encode())
        except SipError:
            # Not even its Via or From can be copied: there is nobody to answer.
            self._owner.counters["unanswerable"] += 1

    # ---- sending -------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send one message."""
        self._write(data)

    def _release(self) -> None:
        """Write what was held back, and hold nothing back from now on."""
        self._hearing = False
        if self._gathered:
            data, self._gathered = self._gathered, b""
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Queue octets, unless the peer has left too much unread."""
        if self._hearing:
            self._gathered += data
            if len(self._gathered) < _GATHERED_AT_MOST:
                return
            data, self._gathered = self._gathered, b""
        if not self.alive:
            return
        if self.stalled_since is not None:
            self._unread += len(data)
            if self._unread > self._owner.limits.unread:
                self.drop("slow")
                return
        transport: Any = self.transport
        transport.write(data)

    def ping(self) -> None:
        """Ask the other side whether it still lives (RFC 5626 section 3.5.1)."""
        self._write(PING)

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

    # ---- ending --------------------------------------------------------------------------------------------

    def drop(self, reason: str, why: str = "", *, gently: bool = False) -> None:
        """Close, counting `reason`; gently lets queued bytes out first. `why` is for the log, where that is to name
        the other side.
        """
        self._owner.counters[f"closed_{reason}"] += 1
        if not self._dropped:
            self._dropped, self._why = reason, why or _WHY.get(reason, "")
            self._tell(self._why)
        self._owner.log.debug("connection of {host} closed: {reason}", host=self.host, reason=reason)
        transport: Any = self.transport
        if transport is None:
            return
        if gently and self.closing_since is None:
            self._release()
            self.closing_since = self._owner.clock.seconds()
            if self.alive:
                transport.unregisterProducer()
            transport.loseConnection()
        else:
            transport.abortConnection()

    def _tell(self, why: str) -> None:
        """A line in the log, unless there is nothing to say, or somebody waits for the connection and is told."""
        if not why or self.opened is not None:
            return
        if self.inbound:
            self._owner.refusals.accepted((self.host, self.port), why, self.listener)
        else:
            self._owner.refusals.dialled((self.host, self.port), why)

    def _tell_failure(self, reason: Failure) -> None:
        """A connection that nobody has dropped is gone: a line in the log if that was in the midst of something."""
        transport: Any = self.transport
        failed = getattr(transport, "failed", False)
        if getattr(transport, "told", False):
            return
        if failed and transport.refusal:
            self._tell(f"certificate refused: {transport.refusal}")
        elif reason.check(ConnectionClosed) is None:
            self._tell(f"the TLS handshake failed: {reason_text(reason)}" if failed else reason_text(reason))
        elif unfinished := "the TLS handshake" if failed else self._unfinished:
            self._tell(f"closed in the midst of {unfinished}")

    @property
    def _unfinished(self) -> str:
        """What the other side has begun to say."""
        return "a message" if self.partial_since is not None else ""

    def connectionLost(self, reason: Failure = _done) -> None:
        """Gone: tell everybody."""
        self._handshake_is_over()
        if self._held is not None:
            self._held.cancel()
            self._held = None
        self.alive = False
        if not self._dropped:
            self._tell_failure(reason)
        if self.opened is not None:
            waiting, self.opened = self.opened, None
            # A refused certificate shows itself in TLS as no more than a lost connection.
            why = self._why or getattr(self.transport, "refusal", "") or reason_text(reason)
            waiting.errback(Failure(Unreachable(f"{self.host}: {why}")))
        self._owner.closed(self)

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Why this connection should be dropped now, or None."""
        if self.closing_since is not None:
            # TLS waits for the other side's farewell, and both wait for it to read.
            return "unclosed" if now - self.closing_since > limits.handshake else None
        if self.stalled_since is not None and now - self.stalled_since > limits.stalled:
            return "slow"
        if self.partial_since is not None and now - self.partial_since > limits.partial:
            return "partial"
        if not self.usable and self.alive and now - self.last_heard > limits.handshake:
            return "ungreeted"
        if self._must_speak and not self.messages and now - self.since > limits.silent:
            return "silent"
        return "idle" if self.alive and now - self.last_heard > limits.idle else None

    @property
    def _must_speak(self) -> bool:
        """Whoever connects to us has something to say; nodes may wait with it."""
        return self.inbound and self.flow is not None and self.flow.peer is None


@implementer(IHalfCloseableProtocol)
class SipStream(SipConnection):
    """One TCP or TLS connection, its messages cut by Content-Length (RFC 3261 section 18.3)."""

    def __init__(self, owner: Table, number: int, transport_name: str, host: str, inbound: bool) -> None:
        super().__init__(owner, number, transport_name, host, inbound)
        self._parser = StreamParser()
        self._ending: Any = None
        self._unanswered = 0

    def send(self, data: bytes) -> None:
        """Send one message; the last answer that an ended connection waited for closes it."""
        super().send(data)
        if self._unanswered and data.startswith(b"SIP/2.0 ") and data[8:9] != b"1":
            self._unanswered -= 1
            if self._ending is not None and not self._unanswered:
                self._ending.reset(0)

    def readConnectionLost(self) -> None:
        """The other side sends no more, but may still read: the answers that it waits for have a moment to go out."""
        if self.alive and self.closing_since is None:
            self._ending = self._owner.clock.callLater(_LINGER if self._unanswered else 0, self._end)

    def _end(self) -> None:
        self._ending = None
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """We never end but all at once."""

    def connectionLost(self, reason: Failure = _done) -> None:
        """Gone, whoever ended it."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        super().connectionLost(reason)

    def _heard(self, data: bytes, now: float) -> bool:
        """Messages go to the owner, a ping is answered, garbage closes the connection."""
        parser = self._parser
        try:
            for item in parser.feed(data):
                if item is KeepAlive.PING:
                    self._owner.counters["pings"] += 1
                    self._write(PONG)
                elif isinstance(item, Request | Response):
                    if isinstance(item, Request) and item.method != "ACK":
                        self._unanswered += 1
                    self._take(item, now)
                    if not self.alive or self.closing_since is not None:
                        return False
            if parser.failed:
                parser.feed(b"")
        except SipError as error:
            self._refuse(error)
            self.drop("malformed", f"no SIP message: {error.reason}", gently=True)
            return False
        return parser.unfinished

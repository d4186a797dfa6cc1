"""Asking name servers: UDP from random ports, TCP for what is too long, the next server for one that fails.

Replies are taken only from the server that was asked, at the port it was asked from (connected sockets), with the
identifier and the question of the query; anything else is dropped and counted while the wait goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.protocols.basic import Int16StringReceiver

from p2psipd.net.dns_messages import FORMERR, NOTIMP, NXDOMAIN, BadReply, Question, Reply, answers, read_reply

__all__ = ["DnsServers"]

#: Sockets for each server, and queries after which a socket (and so its port) is replaced.
_SOCKETS: Final = 4
_USES: Final = 500
_MAX_TCP: Final = 64
#: A server that did not answer is asked last for so long.
_DOWN_SECONDS: Final = 30.0
_CODES: Final = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED"}


class RandomSource(Protocol):
    """Dice that an attacker can't guess, such as random.SystemRandom."""

    def getrandbits(self, k: int, /) -> int:
        """An integer of `k` random bits."""
        ...


class _Failure(NamedTuple):
    """No usable reply. `silent`: the server may yet answer a second time of asking."""

    reason: str
    silent: bool


class _Waiting(NamedTuple):
    question: Question
    result: Deferred[bytes | _Failure]
    timer: Any


class _Socket(DatagramProtocol):
    """One connected UDP socket and the queries sent from it."""

    noisy = False

    def __init__(self, server: tuple[str, int], random: RandomSource, counters: Counter[str]) -> None:
        self.uses = 0
        self._server = server
        self._random = random
        self._counters = counters
        self._waiting: dict[int, _Waiting] = {}
        self._port: Any = None

    def open(self, reactor: Any) -> None:
        """Bind to a port of the kernel's choice. Raises OSError or CannotListenError."""
        interface = "::" if ":" in self._server[0] else "0.0.0.0"
        self._port = reactor.listenUDP(0, self, interface=interface, maxPacketSize=65535)
        try:
            self._port.connect(*self._server)
        except OSError:
            self._port.stopListening()
            raise

    def ask(self, reactor: Any, question: Question, seconds: float, edns: bool) -> Deferred[bytes | _Failure]:
        """Send one query; fires with the reply's octets or a failure, never with an error."""
        identifier = self._random.getrandbits(16)
        while identifier in self._waiting:
            identifier = self._random.getrandbits(16)
        result: Deferred[bytes | _Failure] = Deferred()
        timer = reactor.callLater(seconds, self._end, identifier, _Failure("no answer in time", True))
        self._waiting[identifier] = _Waiting(question, result, timer)
        self.uses += 1
        self._counters["queries"] += 1
        try:
            self._port.write(question.query(identifier, edns))
        except OSError as error:
            self._end(identifier, _Failure(f"can't be sent: {error.strerror}", False))
        return result

    def _end(self, identifier: int, outcome: bytes | _Failure) -> None:
        waiting = self._waiting.pop(identifier, None)
        if waiting is None:
            return
        if waiting.timer.active():
            waiting.timer.cancel()
        elif isinstance(outcome, _Failure):
            self._counters["timeouts"] += 1
        waiting.result.callback(outcome)
        if self.uses >= _USES:
            self.close_when_idle()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """A reply, or what somebody would like to be taken for one."""
        identifier = int.from_bytes(datagram[:2], "big")
        waiting = self._waiting.get(identifier)
        if waiting is None or not answers(datagram, waiting.question):
            self._counters["bogus"] += 1
            return
        self._end(identifier, datagram)

    def connectionRefused(self) -> None:
        """Nobody listens there (ICMP port unreachable)."""
        self.fail(_Failure("nobody listens", False))

    def stopProtocol(self) -> None:
        """Closed; not always by us: the epoll reactor closes a socket on which such an ICMP message arrives."""
        self._port = None
        self.fail(_Failure("nobody listens", False))

    def fail(self, failure: _Failure) -> None:
        """End all that waits."""
        for identifier in list(self._waiting):
            self._end(identifier, failure)

    @property
    def usable(self) -> bool:
        """Whether queries may be sent from here."""
        return self._port is not None and self.uses < _USES

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def close_when_idle(self) -> None:
        """Close the socket once nothing waits on it."""
        if self.idle and self._port is not None:
            port, self._port = self._port, None
            port.stopListening()

    def close(self) -> Deferred[None] | None:
        """Close the socket now; what waits fails."""
        self.fail(_Failure("shut down", False))
        port, self._port = self._port, None
        return port.stopListening() if port is not None else None


class _Stream(Int16StringReceiver):
    """One query over TCP (RFC 7766 section 8: two octets of length before each message)."""

    MAX_LENGTH = 65535
    factory: _StreamFactory

    def connectionMade(self) -> None:
        """Ask."""
        self.sendString(self.factory.question.query(self.factory.identifier))  # type: ignore[no-untyped-call]

    def stringReceived(self, string: bytes) -> None:
        """The reply; nothing else was asked on this connection."""
        if int.from_bytes(string[:2], "big") == self.factory.identifier and answers(string, self.factory.question):
            self.factory.end(string)
        else:
            self.factory.end(_Failure("an answer to another question", False))
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: object = None) -> None:
        """Closed: by us after the reply, or by the server before it."""
        self.factory.end(_Failure("closed the connection", False))


class _StreamFactory(ClientFactory):
    noisy = False
    protocol = _Stream  # type: ignore[assignment]

    def __init__(self, question: Question, identifier: int) -> None:
        self.question = question
        self.identifier = identifier
        self.result: Deferred[bytes | _Failure] = Deferred()

    def end(self, outcome: bytes | _Failure) -> None:
        """The first outcome counts."""
        if not self.result.called:
            self.result.callback(outcome)

    def clientConnectionFailed(self, connector: object, reason: object) -> None:
        """Refused, or no answer in time."""
        self.end(_Failure("no TCP connection", False))


class _Server:
    """One name server."""

    def __init__(
        self, reactor: Any, address: tuple[str, int], random: RandomSource, counters: Counter[str], trusted: bool
    ) -> None:
        self.address = address
        self.trusted = trusted
        self.down_until = 0.0
        self._reactor = reactor
        self._random = random
        self._counters = counters
        self._sockets: list[_Socket] = []
        self._retired: list[_Socket] = []
        self._streams: set[Any] = set()

    async def ask(self, question: Question, seconds: float) -> Reply | _Failure:
        """One try: a datagram, once more without EDNS or over TCP where the server wants that."""
        outcome = await self._datagram(question, seconds, True)
        if isinstance(outcome, bytes) and outcome[3] & 0xF in (FORMERR, NOTIMP):
            outcome = await self._datagram(question, seconds, False)
        if isinstance(outcome, bytes) and outcome[2] & 0x02:
            outcome = await self._stream(question, seconds)
        if isinstance(outcome, _Failure):
            return outcome
        try:
            reply = read_reply(outcome, question)
        except BadReply as error:
            return _Failure(str(error), False)
        if reply.truncated:
            return _Failure("truncated even over TCP", False)
        if reply.code not in (0, NXDOMAIN):
            return _Failure(_CODES.get(reply.code, f"response code {reply.code}"), False)
        if reply.referral:
            return _Failure("a referral to other servers", False)
        return reply if self.trusted else reply._replace(authentic=False)

    async def _datagram(self, question: Question, seconds: float, edns: bool) -> bytes | _Failure:
        try:
            chosen = self._socket()
        except Exception as error:
            # Twisted's CannotListenError and the kernel's OSError: no port, no descriptor, no such network.
            return _Failure(f"no socket: {error}", False)
        return await chosen.ask(self._reactor, question, seconds, edns)

    def _socket(self) -> _Socket:
        index = self._random.getrandbits(8) % _SOCKETS
        if index < len(self._sockets):
            chosen = self._sockets[index]
            if chosen.usable:
                return chosen
            self._sockets.pop(index)
            self._retired = [old for old in self._retired if not old.idle]
            self._retired.append(chosen)
            chosen.close_when_idle()
        made = _Socket(self.address, self._random, self._counters)
        made.open(self._reactor)
        self._sockets.append(made)
        return made

    async def _stream(self, question: Question, seconds: float) -> bytes | _Failure:
        if len(self._streams) >= _MAX_TCP:
            return _Failure("too many TCP connections", False)
        self._counters["tcp"] += 1
        factory = _StreamFactory(question, self._random.getrandbits(16))
        connector = self._reactor.connectTCP(*self.address, factory, timeout=seconds)
        self._streams.add(connector)
        timer = self._reactor.callLater(seconds, factory.end, _Failure("no answer over TCP in time", True))
        try:
            return await factory.result
        finally:
            if timer.active():
                timer.cancel()
            connector.disconnect()
            self._streams.discard(connector)

    def close(self) -> list[Deferred[None]]:
        """Close all sockets; what waits fails."""
        for connector in list(self._streams):
            connector.disconnect()
        closing = [found.close() for found in self._sockets + self._retired]
        self._sockets, self._retired = [], []
        return [closed for closed in closing if closed is not None]


class DnsServers:
    """Several name servers as one: asked in order, over and over until the time is up.

    In the first round all servers together get an eighth of `timeout_seconds`, in each further one twice as much
    as before: a lost datagram costs little, and a slow server still has its time. One that has said no (SERVFAIL,
    REFUSED, nonsense) is not asked again for the same question; one that has kept silent is asked last for 30 s.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[tuple[str, int]],
        random: RandomSource,
        timeout_seconds: float,
        counters: Counter[str],
        validating: Container[str] = (),
    ) -> None:
        """The AD bit of those counts that are on this machine (RFC 6840 section 5.8), and of the hosts `validating`."""
        self._reactor = reactor
        self._servers = [
            _Server(reactor, address, random, counters, address[0] in validating or ip_address(address[0]).is_loopback)
            for address in addresses
        ]
        self._timeout = timeout_seconds

    @property
    def validates(self) -> bool:
        """Whether one of them is trusted with DNSSEC."""
        return any(server.trusted for server in self._servers)

    async def exchange(self, question: Question, trusted: bool = False) -> Reply | str:
        """The reply to `question`, or in a few words why there is none; of the `trusted` servers alone if so asked."""
        now = self._reactor.seconds()
        end, share = now + self._timeout, self._timeout / (8 * max(1, len(self._servers)))
        waiting = sorted(self._servers, key=lambda server: server.down_until > now)
        failure = "no name server"
        if trusted:
            waiting = [server for server in waiting if server.trusted]
            failure = "no name server that is trusted with DNSSEC"
        while waiting:
            for server in list(waiting):
                left = end - self._reactor.seconds()
                if left <= 0.0:
                    return failure
                outcome = await server.ask(question, min(share, left))
                if isinstance(outcome, Reply):
                    server.down_until = 0.0
                    return outcome
                failure = f"{server.address[0]}: {outcome.reason}"
                if outcome.silent:
                    server.down_until = self._reactor.seconds() + _DOWN_SECONDS
                else:
                    waiting.remove(server)
            share *= 2.0
        return failure

    def close(self) -> Deferred[list[None]]:
        """Close all sockets; fires when that is done."""
        return gatherResults([closed for server in self._servers for closed in server.close()], consumeErrors=True)

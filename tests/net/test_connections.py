"""One SIP connection over a transport in memory."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs
from twisted.python.failure import Failure

from p2psipd.net.connections import Limits, Message, SipStream
from p2psipd.net.refusals import Refusals
from p2psipd.proto.sip.message import Request, make_response
from tests.net.sip_remotes import OPTIONS, told


class Writes(StringTransport):
    """A transport that remembers each write, and its end."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to delay."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to keep."""

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def loseConnection(self) -> None:
        self.calls.append(b"closed")

    def unregisterProducer(self) -> None:
        """As often as one likes."""


class Answering:
    """A table whose user answers each request with this body."""

    def __init__(self, body: bytes = b"") -> None:
        self.clock, self.limits, self.log = Clock(), Limits(), Logger("p2psipd.test")
        self.refusals = Refusals(self.log, self.clock)
        self.counters: Counter[str] = Counter()
        self.greets = False
        self.identify = None
        self.body = body

    def opened(self, connection: Any, remote: Any, local: Any) -> Any:
        return SimpleNamespace(peer=None, protocol=connection)

    def usable(self, flow: Any) -> None:
        """Nobody waits."""

    def closed(self, connection: Any) -> None:
        """Nobody counts."""

    def receive(self, flow: Any, message: Message) -> None:
        assert isinstance(message, Request)
        answer = make_response(message, 200)
        answer.set_body(self.body, "text/plain")
        flow.protocol.send(answer.encode())


def connected(body: bytes = b"") -> tuple[SipStream, Writes]:
    stream, transport = SipStream(Answering(body), 1, "TCP", "127.0.0.1", True), Writes()  # type: ignore[arg-type]
    stream.makeConnection(transport)
    return stream, transport


def test_answers_to_one_read_go_out_together() -> None:
    """In their order, in one write; what is sent afterwards goes at once, and what is much is not held back."""
    stream, transport = connected()
    stream.dataReceived(OPTIONS * 3 + b"\r\n\r\n" + OPTIONS[:20])
    (together,) = transport.calls
    assert together.count(b"SIP/2.0 200") == 3 and together.endswith(b"\r\n\r\n\r\n")
    stream.send(b"later")
    assert transport.calls[1:] == [b"later"]
    stream, transport = connected(bytes(3000))
    stream.dataReceived(OPTIONS * 5)
    assert [call.count(b"SIP/2.0 200") for call in transport.calls] == [2, 2, 1]


def test_answers_go_out_before_a_close() -> None:
    """Octets that are no SIP end the connection, after the answers to what came before them in the same read."""
    stream, transport = connected()
    stream.dataReceived(OPTIONS + b"GET / HTTP/1.1\r\n\r\n")
    assert transport.calls[0].startswith(b"SIP/2.0 200") and transport.calls[-1] == b"closed"


def said(*dropped: str, octets: bytes = b"", inbound: bool = True) -> list[str]:
    """What the log says of a connection that gets `octets`, is dropped for these reasons, and then is gone."""
    stream, transport = SipStream(Answering(), 1, "TCP", "192.0.2.1", inbound), Writes()  # type: ignore[arg-type]
    stream.listener = "TCP port 5060"
    stream.makeConnection(transport)
    with capturedLogs() as events:
        stream.dataReceived(octets)
        for reason in dropped:
            stream.drop(reason, gently=True)
        stream.connectionLost(Failure(ConnectionDone()))
    return told(events)


def test_the_log_names_who_is_cut_off_and_why() -> None:
    """One line a connection, whatever follows on the first reason; of one that we opened, where to."""
    cut = "connection from 192.0.2.1 to TCP port 5060 ended: "
    assert said("silent") == [cut + "no message in time"]
    assert said("partial", "unclosed") == [cut + "the rest of a message did not come in time"]
    assert said("ungreeted") == [cut + "not a word after the TLS handshake"]
    assert said("slow", "slow") == [cut + "the other side does not read"]
    assert said("slow", inbound=False) == ["connection to 192.0.2.1 ended: the other side does not read"]
    assert said(octets=b"GET / HTTP/1.1\r\n\r\n") == [cut + "no SIP message: bad start line"]
    assert said(octets=b"A" * 70_000) == [cut + "no SIP message: header too large"]
    assert said(octets=OPTIONS[:50]) == [cut + "closed in the midst of a message"]


def test_the_log_says_nothing_of_a_normal_end() -> None:
    """Closed by the other side, by our stop, for idleness: no operator needs to see that."""
    for dropped, octets in (((), b""), ((), OPTIONS), ((), b"\r\n\r\n"), (("stopped",), OPTIONS), (("idle",), OPTIONS)):
        assert said(*dropped, octets=octets) == []
    assert said("stopped", "slow") == []

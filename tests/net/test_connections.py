"""One SIP connection over a transport in memory."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger

from p2psipd.net.connections import Limits, Message, SipStream
from p2psipd.proto.sip.message import Request, make_response
from tests.net.sip_remotes import OPTIONS


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


class Answering:
    """A table whose user answers each request with this body."""

    def __init__(self, body: bytes = b"") -> None:
        self.clock, self.limits, self.log = Clock(), Limits(), Logger()
        self.counters: Counter[str] = Counter()
        self.greets = False
        self.identify = None
        self.body = body

    def opened(self, connection: Any, remote: Any, local: Any) -> Any:
        return SimpleNamespace(peer=None, protocol=connection)

    def usable(self, flow: Any) -> None:
        """Nobody waits."""

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

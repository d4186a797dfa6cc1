"""The far ends of SIP transports under test, and what these have told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, formatEvent
from twisted.trial.unittest import TestCase

from p2psipd.net.refusals import endpoint_text
from p2psipd.net.sip_transports import Limits, Message, SipTransports
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow

HOST = "127.1.250.1"
OPTIONS = (
    b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP 127.1.250.9:5060;branch=z9hG4bK1;rport\r\nFrom: <sip:a@b>;tag=1\r\n"
    b"To: <sip:x>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Let the reactor run until `condition` holds."""
    end = reactor.seconds() + seconds
    while not condition():
        if reactor.seconds() > end:
            raise AssertionError("it did not happen in time")
        await deferLater(reactor, 0.005)


def told(events: list[dict[str, Any]]) -> list[str]:
    """What the log has heard of us that an operator sees, the number of the other side's port left out."""
    ours = [event for event in events if event["log_namespace"].startswith("p2psipd")]
    lines = [formatEvent(event) for event in ours if event["log_level"] >= LogLevel.info]
    return [re.sub(r"( (?:from|to) \d+\.\d+\.\d+\.\d+):\d+", r"\1", line) for line in lines]


class Remote(Protocol):
    """A plain TCP client that keeps what it hears."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = False
        self.address = ""

    def connectionMade(self) -> None:
        here: Any = self.transport
        self.address = endpoint_text((here.getHost().host, here.getHost().port))

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: object = None) -> None:
        self.closed = True


class RemoteUdp(DatagramProtocol):
    """A UDP client that keeps what it hears."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        self.data.append(datagram)


class Recorder:
    """What the transports told."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, Message]] = []
        self.malformed: list[SipError] = []
        self.lost: list[Flow] = []

    def receive(self, flow: Flow, message: Message) -> None:
        self.messages.append((flow, message))

    def on_malformed(self, flow: Flow, error: SipError) -> None:
        self.malformed.append(error)

    def on_lost(self, flow: Flow) -> None:
        self.lost.append(flow)


class TransportsCase(TestCase):
    """Transports that are stopped after each test, and far ends that are closed."""

    timeout = 30

    def setUp(self) -> None:
        self.heard = Recorder()
        self.remotes: list[Remote] = []

    def make(self, *, admit: Any = None, tls_client: Any = None, **limits: Any) -> SipTransports:
        heard = self.heard
        transports = SipTransports(
            reactor,
            heard.receive,
            heard.on_malformed,
            heard.on_lost,
            limits=Limits(**limits),
            admit=admit,
            tls_client=tls_client,
        )

        def stop() -> Deferred[Any]:
            waiting = transports.stop()
            for remote in self.remotes:
                if remote.transport is not None:
                    remote.transport.loseConnection()
            done = Deferred.fromCoroutine(until(lambda: not len(transports) and all(r.closed for r in self.remotes)))
            return gatherResults([done, *[d for d in waiting if d is not None]])

        self.addCleanup(stop)
        return transports

    async def dial(self, address: tuple[str, int]) -> Remote:
        remote = Remote()
        factory: ClientFactory[Protocol] = ClientFactory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: remote  # type: ignore[method-assign, assignment]
        reactor.connectTCP(*address, factory)
        await until(lambda: remote.transport is not None or remote.closed)
        self.remotes.append(remote)
        return remote

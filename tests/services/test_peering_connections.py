"""Connections with other domains over real sockets: kept, shared, used backwards, and bounded; time is the test's."""

from __future__ import annotations

import time
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from p2psipd.net.peer_tls import PeerTls
from p2psipd.net.sip_transports import Limits
from p2psipd.proto.identity.policy import CertificateRefused, Step, TrustAnchors, read_certificate
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import PeeringPolicy, PeerSettings
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import DomainIdentity, Unreachable
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.next_hops import Hop
from p2psipd.services.peering.connections import PeerConnections
from tests.net.sip_remotes import told
from tests.proto.identity.domain_certificates import TestAuthority, dns, ec_key

A_HOST, B_HOST = "127.1.90.1", "127.1.90.2"
NOW = time.time()
CA, OTHER_CA = TestAuthority(wall=NOW), TestAuthority("Other CA", wall=NOW)
MESSAGE = (
    b"MESSAGE sip:bob@b.test SIP/2.0\r\nVia: SIP/2.0/TLS edge.a.test:%d;branch=z9hG4bK1;alias\r\n"
    b"From: <sip:alice@a.test>;tag=1\r\nTo: <sip:bob@b.test>\r\nCall-ID: 1\r\nCSeq: 1 MESSAGE\r\n"
    b"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
)


class HalfVirtual:
    """The real reactor with a clock that only the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.callLater, self.seconds = self.clock.callLater, self.clock.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Side:
    """The connections of one domain, and what came over them."""

    def __init__(self, host: str, *domains: str, limits: Limits = Limits(), ca: TestAuthority = CA) -> None:
        key = ec_key(21)
        der = ca.issue(dns(*domains), key)
        own = OwnCertificates([OwnCertificate(domains[0], read_certificate(der), (der,), key, domains)])
        policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([CA.der])))
        self.time = HalfVirtual()
        self.refused: list[tuple[str, str, Step, bool]] = []
        self.clients: list[Step] = []
        tls = PeerTls(policy, own, lambda: NOW, refused=lambda refusal, _: self.clients.append(refusal.step))
        self.connections = PeerConnections(self.time, tls, limits, self._note)
        self.came: list[tuple[Flow, Request]] = []
        self.lost: list[Flow] = []
        self._waiting: list[Deferred[None]] = []
        ((self.host, self.port),) = self.connections.start([(host, 0)], self._receive, self._gone)

    def _note(self, domain: str, host: str, refusal: CertificateRefused, by_peer: bool) -> None:
        self.refused.append((domain, host, refusal.step, by_peer))

    def _receive(self, flow: Flow, message: Any) -> None:
        self.came.append((flow, message))
        self._something()

    def _gone(self, flow: Flow) -> None:
        self.lost.append(flow)
        self._something()

    def _something(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def next(self) -> None:
        """Wait until something comes or a connection goes."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        await waiting.addTimeout(5, reactor)  # type: ignore[arg-type]

    def hop(self, domain: str) -> Hop:
        """This side as a server of `domain`."""
        return Hop("TLS", self.host, self.port, domain)

    def stop(self) -> Deferred[Any]:
        return gatherResults([each for each in self.connections.stop() if isinstance(each, Deferred)])


class Plain(Protocol):
    """A client that does what the test says; `closed` fires when it is closed."""

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()

    def connectionLost(self, reason: object = None) -> None:
        self.closed.callback(None)


class ConnectionTests(TestCase):
    """Two domains on loopback."""

    timeout = 20

    def side(self, host: str, *domains: str, **parts: Any) -> Side:
        """One of them; it ends with the test."""
        made = Side(host, *domains, **parts)
        self.addCleanup(made.stop)
        return made

    async def test_peering_043_two_at_once_share_a_connection(self) -> None:
        """Requests to the same server at once, and later ones, use one connection; each end knows who is there."""
        a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test")
        reach = a.connections.reach
        first, second = await gatherResults(
            [ensureDeferred(reach(b.hop("b.test"), "a.test")) for _ in range(2)]  # type: ignore[arg-type]
        )
        assert first is second is await reach(b.hop("b.test"), "a.test")
        first.write(MESSAGE % a.port)
        await b.next()
        assert len(b.connections) == len(a.connections) == 1
        (flow, request), *_ = b.came
        assert flow.peer == DomainIdentity(("a.test",), "peering") and request.method == "MESSAGE"  # type: ignore[attr-defined]

    async def test_peering_043_another_domain_at_the_same_address(self) -> None:
        """A domain that the server's certificate names, too, goes over the same connection; another is refused."""
        a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test", "c.test")
        first = await a.connections.reach(b.hop("b.test"), "a.test")
        assert await a.connections.reach(b.hop("c.test"), "a.test") is first
        with self.assertRaises(Unreachable) as caught:
            await a.connections.reach(b.hop("d.test"), "a.test")
        assert "step domain" in str(caught.exception) and first.alive  # type: ignore[attr-defined]
        with self.assertRaises(Unreachable) as caught:
            await a.connections.reach(b.hop("b.test"), "x.test")
        assert "x.test" in str(caught.exception)

    async def test_peering_043_backwards_over_the_peers_connection(self) -> None:
        """RFC 5923: where its Via says so, requests to a peer go over the connection that it has opened."""
        a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test")
        out = await a.connections.reach(b.hop("b.test"), "a.test")
        out.write(MESSAGE % a.port)
        await b.next()
        (flow, request), *_ = b.came
        b.connections.alias(flow, request)
        back = await b.connections.reach(Hop("TLS", flow.remote[0], a.port, "a.test"), "b.test")
        assert back is flow and len(a.connections) == 1

    async def test_peering_044_a_refusal_names_its_step(self) -> None:
        """An authority that is not ours: Unreachable says so, to everybody who waited."""
        a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test", ca=OTHER_CA)
        for _ in range(2):
            with self.assertRaises(Unreachable) as caught:
                await a.connections.reach(b.hop("b.test"), "a.test")
            assert "step authority" in str(caught.exception)
        assert a.refused == [("b.test", B_HOST, Step.AUTHORITY, False)] * 2
        assert b.clients == [Step.AUTHORITY] * 2, "the server is told by the alert"

    async def test_a_connection_that_cannot_be_made_ends(self) -> None:
        """A name that TLS cannot say: whoever waits is told at once, and the next try begins anew."""
        a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test")
        for _ in range(2):
            waiting: Deferred[Flow] = ensureDeferred(a.connections.reach(b.hop("b\u00fccher.test"), "a.test"))  # type: ignore[arg-type]
            with self.assertRaises(Unreachable):
                await waiting.addTimeout(2, reactor)  # type: ignore[arg-type]
            assert self.flushLoggedErrors(UnicodeEncodeError)

    async def test_peering_044_refused_after_the_handshake(self) -> None:
        """TLS 1.3: our handshake is over when the server refuses our certificate; the lost connection says so, once."""
        a, b = self.side(A_HOST, "a.test", ca=OTHER_CA), self.side(B_HOST, "b.test")
        with capturedLogs() as events:
            flow = await a.connections.reach(b.hop("b.test"), "a.test")
            flow.write(MESSAGE % a.port)
            await a.next()
            await self.turn()
        assert a.lost == [flow] and not b.came and b.clients == [Step.AUTHORITY]
        assert told(events) == [], "whoever keeps refusals has a line for it"
        assert a.refused == [("b.test", B_HOST, Step.AUTHORITY, True)]
        older = self.side(B_HOST, "b.test")
        for context in older.connections._tls._contexts.values():
            context.set_options(SSL.OP_NO_TLSv1_3)
        with self.assertRaises(Unreachable) as caught:
            await a.connections.reach(older.hop("b.test"), "a.test")
        assert "alert unknown_ca" in str(caught.exception), "TLS 1.2: within it"
        assert a.refused[1:] == a.refused[:1]
        refusal = a.connections.refused_by_peer(flow)
        assert refusal is not None and "alert unknown_ca" in refusal.detail

    async def test_peering_073_a_handshake_has_its_time(self) -> None:
        """Who opens a connection and never begins TLS is closed after `handshake` seconds."""
        b = self.side(B_HOST, "b.test")
        silent = await connectProtocol(TCP4ClientEndpoint(reactor, b.host, b.port), Plain())
        await self.accepted(b)
        with capturedLogs() as events:
            b.time.clock.advance(Limits().handshake + 0.1)
            await silent.closed.addTimeout(5, reactor)  # type: ignore[arg-type]
        assert b.connections.counters["closed_handshake"] == 1
        (line,) = told(events)
        assert line == f"connection from 127.0.0.1 to TLS port {b.port} ended: the TLS handshake took too long"

    async def accepted(self, side: Side) -> None:
        """Wait until the kernel's connection is the side's."""
        while not side.connections.counters["opened"] and not side.time.clock.getDelayedCalls():
            await self.turn()
        for _ in range(20):
            await self.turn()

    async def turn(self) -> None:
        """Let the reactor go round once."""
        waiting: Deferred[None] = Deferred()
        reactor.callLater(0.005, waiting.callback, None)  # type: ignore[attr-defined]
        await waiting

    async def test_peering_073_a_message_has_its_time(self) -> None:
        """Half a message that never goes on, and a connection over which nothing comes, are closed in their time."""
        for sent, reason in ((MESSAGE[:80], "closed_partial"), (b"", "closed_idle")):
            a, b = self.side(A_HOST, "a.test"), self.side(B_HOST, "b.test", limits=Limits(idle=35.0))
            flow = await a.connections.reach(b.hop("b.test"), "a.test")
            if sent:
                flow.write(sent)
            for _ in range(20):
                await self.turn()
            while not b.connections.counters[reason]:
                assert b.time.clock.seconds() < 60.0
                b.time.clock.advance(5.0)
            await a.next()
            assert b.connections.counters[reason] == 1, b.connections.counters
            assert not a.connections.peer(flow)

    async def test_peering_073_connections_of_one_address_are_counted(self) -> None:
        """Above `per_address` a new connection is closed at once; those that are open stay."""
        b = self.side(B_HOST, "b.test", limits=Limits(per_address=2))
        sides = [self.side(A_HOST, "a.test") for _ in range(3)]
        flows = [await each.connections.reach(b.hop("b.test"), "a.test") for each in sides[:2]]
        with self.assertRaises(Unreachable):
            await sides[2].connections.reach(b.hop("b.test"), "a.test")
        assert b.connections.counters["refused_per_address"] == 1
        assert all(flow.alive for flow in flows)  # type: ignore[attr-defined]

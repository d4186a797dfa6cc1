"""The overlay service over a core that does as it is told, and over real cores and sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from p2psipd.net.links import LinkLimits, Links
from p2psipd.proto.identity.certificate import CertificateError, Role, parse_certificate
from p2psipd.proto.identity.signing import Credential
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import Forbidden, NotFound, ReloadError, RequestTimeout
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION, SIP_REGISTRATION
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.proto.reload.sip_usage import ProxyRegistration
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.reload.wire import NodeDestination
from p2psipd.services import overlay as module
from p2psipd.services.overlay import LeftOverlay, OverlayObserver, OverlayService, TrustKeeper
from p2psipd.services.overlay_factory import OverlayNode, client_session, make_overlay
from tests.net.identities import OVERLAY, Identity, authority, node

LIMITS = LinkLimits(50, 50, 50, 50, 2.0, 2.0, 1 << 20)
OWN = node(1, role=Role.REGISTRAR)
PONG = peer_io.Pong(NodeId(bytes(16)), 1, 0.01, 0)


class Fault(Exception):
    """An error in a core."""


class ScriptedCore:
    """A core that keeps its inputs and answers with what the test has laid out for their class."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.script: dict[type, Callable[[Any], list[Any]]] = {}

    def start(self, now: float, wall: float) -> Sequence[Any]:
        return self.script.get(object, lambda _: [])(None)

    def receive(self, item: Any, now: float, wall: float) -> list[Any]:
        self.inputs.append(item)
        return self.script.get(type(item), lambda _: [])(item)

    def next_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float, wall: float) -> list[Any]:
        return []


class MemoryStore:
    """A record store that keeps what it was given and can be full."""

    def __init__(self) -> None:
        self.pending: list[Any] = []
        self.written: list[list[Any]] = []
        self.remembered: list[Any] = []
        self.full = False
        self.closed = False

    def write(self, changes: Sequence[Any]) -> None:
        self.pending += changes

    def flush(self) -> bool:
        if not self.full and self.pending:
            self.written.append(self.pending)
            self.pending = []
        return not self.full

    def remember_peers(self, peers: Sequence[Any]) -> None:
        self.remembered += peers

    def forget_peer(self, node_id: bytes) -> None:
        self.remembered.append(node_id)

    def maintain(self, wall: float) -> None:
        """Nothing to tidy."""

    def close(self) -> None:
        self.flush()
        self.closed = True


class Garbage:
    """A LinkUser that sends some octets on its link, as much as it can, until that is closed."""

    def __init__(self, octets: bytes, closed: Deferred[str]) -> None:
        self.octets = octets
        self.closed = closed
        self.links: Links | None = None

    def link_up(self, link: int, certificate: bytes, address: tuple[str, int], attempt: int | None) -> None:
        assert self.links is not None
        self.links.send(link, self.octets)
        self.links.flush()

    def link_failed(self, attempt: int, reason: str) -> None:
        self.closed.errback(Fault(reason))

    def link_down(self, link: int, reason: str) -> None:
        self.closed.callback(reason)

    def link_bytes(self, link: int, data: bytes) -> None:
        """What comes back is of no interest."""


def credential_of(identity: Identity) -> Credential:
    return Credential(parse_certificate(identity.certificate), identity.key)


def configuration(sequence: int = 1, **more: Any) -> OverlayConfiguration:
    return OverlayConfiguration(
        overlay_name=OVERLAY, sequence=sequence, root_certs=(authority(OVERLAY).certificate,), **more
    )


class ScriptedTests(SynchronousTestCase):
    """One service over a scripted core, on a clock that the test turns."""

    def setUp(self) -> None:
        self.core = ScriptedCore()
        self.store = MemoryStore()
        self.clock = MemoryReactorClock()
        self.observer = OverlayObserver()
        self.document = Path(self.mktemp())
        self.trust = TrustKeeper(configuration().trust())
        self.overlay = self.make(("127.0.0.1", 6084))
        self.overlay.startService()

    def make(self, listen: tuple[str, int] | None) -> OverlayService:
        return OverlayService(
            self.clock,
            self.core,
            configuration=configuration(),
            credential=credential_of(OWN),
            tls=OWN.tls(),
            limits=LIMITS,
            listen=listen,
            store=self.store,  # type: ignore[arg-type]
            document=str(self.document),
            observer=self.observer,
            wall=lambda: 1000.0,
        )

    def ask(self, coroutine: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def perform(self, *outputs: Any) -> None:
        """Have the core give these outputs."""
        self.core.script[peer_io.LinkFailed] = lambda _: list(outputs)
        self.overlay.link_failed(0, "")

    def test_why_a_node_does_not_join_is_in_the_log(self) -> None:
        """Each reason why there is no link is told once while the node is outside, and no more once it is inside."""
        with capturedLogs() as events:
            for reason in ("refused", "refused", "timed out"):
                self.overlay.link_failed(0, reason)
            self.assertEqual(self.overlay.last_failure, "timed out")
            self.perform(peer_io.Joined())
            self.overlay.link_failed(0, "gone")
        lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(lines, ["not joined yet: refused", "not joined yet: timed out", "not joined yet: "])

    def test_answers_by_ref(self) -> None:
        """Each request gets the outcome that carries its own ref, in whatever order they come."""
        first, second = self.ask(self.overlay.ping(NodeId(b"a" * 16))), self.ask(self.overlay.ping())
        one, two = (item.ref for item in self.core.inputs)
        self.perform(peer_io.Completed(two, "second"), peer_io.Completed(one, "first"))
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), ("first", "second"))

    def test_answer_at_once(self) -> None:
        """An outcome that comes with the request itself is not lost."""
        self.core.script[peer_io.Ping] = lambda item: [peer_io.Completed(item.ref, PONG)]
        self.assertEqual(self.successResultOf(self.ask(self.overlay.ping())), PONG)

    def test_failure_is_typed(self) -> None:
        """What the core fails with is what the caller gets."""
        self.core.script[peer_io.Fetch] = lambda item: [peer_io.Failed(item.ref, NotFound("nothing"))]
        self.failureResultOf(self.ask(self.overlay.fetch("bob@overlay.example", [1])), NotFound)

    def test_names_and_kinds(self) -> None:
        """A text is a Resource Name, octets are a Resource-ID; a bare kind asks for all its values."""
        self.ask(self.overlay.fetch("bob@overlay.example", [SIP_REGISTRATION]))
        specifier = StoredDataSpecifier(PROXY_REGISTRATION, keys=(b"k",))
        self.ask(self.overlay.fetch(ResourceId(b"r" * 16), [specifier]))
        asked = [(item.resource, item.specifiers) for item in self.core.inputs]
        expected = [
            (resource_id("bob@overlay.example"), (StoredDataSpecifier(SIP_REGISTRATION),)),
            (b"r" * 16, (specifier,)),
        ]
        self.assertEqual(asked, expected)

    def test_cancel_abandons(self) -> None:
        """A caller that no longer waits makes the core abandon the request; a late outcome hurts nobody."""
        answer = self.ask(self.overlay.ping())
        ref = self.core.inputs[0].ref
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual(self.core.inputs[1:], [peer_io.Abandon(ref)])
        self.perform(peer_io.Completed(ref, PONG))

    def test_deadline(self) -> None:
        """A request with a deadline of its own ends with RequestTimeout and is abandoned."""
        answer = self.ask(self.overlay.fetch("x", [1], seconds=2.0))
        self.clock.advance(2.0)
        self.failureResultOf(answer, RequestTimeout)
        self.assertIsInstance(self.core.inputs[-1], peer_io.Abandon)

    def test_forgotten_request(self) -> None:
        """A request that the core forgets ends all the same."""
        answer = self.ask(self.overlay.ping())
        self.clock.pump([module.MAINTAIN_SECONDS] * 3)
        self.failureResultOf(answer, RequestTimeout)

    def test_core_fails_at_request(self) -> None:
        """A core that fails at a request fails that request and nothing else."""

        def fail(item: Any) -> list[Any]:
            raise Fault("in the core")

        self.core.script[peer_io.Ping] = fail
        self.failureResultOf(self.ask(self.overlay.ping()), ReloadError)
        self.assertEqual(len(self.flushLoggedErrors(Fault)), 1)
        self.core.script[peer_io.Probe] = lambda item: [peer_io.Completed(item.ref, "well")]
        self.assertEqual(self.successResultOf(self.ask(self.overlay.probe(NodeId(bytes(16))))), "well")

    def test_stop_ends_requests(self) -> None:
        """Who waits when the node stops is told, and afterwards nothing can be asked."""
        answer, joined = self.ask(self.overlay.ping()), self.overlay.when_joined()
        self.successResultOf(self.overlay.stopService())
        self.failureResultOf(answer, LeftOverlay)
        self.failureResultOf(joined, LeftOverlay)
        self.failureResultOf(self.ask(self.overlay.ping()), LeftOverlay)
        self.assertTrue(self.store.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_joined(self) -> None:
        """Who waits for the node to join is told when it has; who asks later, at once."""
        waiting = self.overlay.when_joined()
        self.assertNoResult(waiting)
        self.perform(peer_io.Joined())
        self.successResultOf(waiting)
        self.successResultOf(self.overlay.when_joined())

    def test_client_joins_nothing(self) -> None:
        """A client counts as joined when it knows its first peer."""
        self.overlay = self.make(None)
        self.overlay.startService()
        waiting = self.overlay.when_joined()
        self.perform(peer_io.PeerJoined(NodeId(b"p" * 16)))
        self.successResultOf(waiting)

    def test_records_are_written_in_groups(self) -> None:
        """Changes are written together, at most 50 ms after the first of them."""
        self.perform(peer_io.WriteRecords(("a",)))  # type: ignore[arg-type]
        self.clock.advance(0.04)
        self.perform(peer_io.WriteRecords(("b", "c")))  # type: ignore[arg-type]
        self.assertEqual(self.store.written, [])
        self.clock.advance(0.01)
        self.assertEqual(self.store.written, [["a", "b", "c"]])

    def test_full_disk(self) -> None:
        """What could not be written is tried again until it is."""
        self.store.full = True
        self.perform(peer_io.WriteRecords(("a",)))  # type: ignore[arg-type]
        self.clock.advance(0.05)
        self.clock.advance(module.RETRY_FLUSH_SECONDS)
        self.store.full = False
        self.clock.advance(module.RETRY_FLUSH_SECONDS)
        self.assertEqual(self.store.written, [["a"]])

    def test_peers_are_remembered(self) -> None:
        """A peer worth dialling after a restart is kept with its addresses, one that left is forgotten."""
        self.perform(peer_io.RememberPeer(NodeId(b"p" * 16), (("192.0.2.1", 1),)))
        self.perform(peer_io.RememberPeer(NodeId(b"p" * 16), ()))
        known, forgotten = self.store.remembered
        self.assertEqual((known.node_id, known.addresses, known.seen_at), (b"p" * 16, (("192.0.2.1", 1),), 1000.0))
        self.assertEqual(forgotten, b"p" * 16)

    def test_new_configuration(self) -> None:
        """A newer document replaces the file whole, and the observers hear of it."""
        heard: list[OverlayConfiguration] = []
        self.observer.configuration_changed = heard.append  # type: ignore[method-assign]
        self.document.write_bytes(b"old")
        newer = configuration(2, document=b"new document")
        self.perform(peer_io.ConfigurationChanged(newer))
        self.assertEqual(self.document.read_bytes(), b"new document")
        self.assertEqual((heard, self.overlay.configuration.sequence), ([newer], 2))

    def test_a_document_that_cannot_be_written_is_written_later(self) -> None:
        """A full disk leaves the old document whole and nothing beside it; it is tried again every minute."""
        self.document.write_bytes(b"old")
        with patch.object(module.os, "fsync", side_effect=OSError(28, "No space left on device")):
            self.perform(peer_io.ConfigurationChanged(configuration(2, document=b"new document")))
            self.clock.advance(module.MAINTAIN_SECONDS)
        self.assertTrue(self.overlay.is_document_unwritten)
        self.assertEqual((self.document.read_bytes(), list(self.document.parent.glob("*.new"))), (b"old", []))
        self.clock.advance(module.MAINTAIN_SECONDS)
        self.assertEqual((self.document.read_bytes(), self.overlay.is_document_unwritten), (b"new document", False))

    def test_new_configuration_revokes(self) -> None:
        """The trust that links judge by is that of the newer document."""
        self.assertEqual(self.trust.judge(OWN.certificate).node_id, OWN.node_id)
        self.trust.adopt(configuration(2, bad_nodes=frozenset({OWN.node_id})))
        with self.assertRaises(CertificateError):
            self.trust.judge(OWN.certificate)

    def test_dialled_application(self) -> None:
        """An order to dial for an application reaches whoever speaks that application."""
        dialled: list[Any] = []
        self.observer.dial_application = lambda *order: dialled.append(order)  # type: ignore[method-assign]
        self.perform(peer_io.DialApplication(NodeId(b"p" * 16), 5061, (("192.0.2.1", 1),)))
        self.assertEqual(dialled, [(b"p" * 16, 5061, (("192.0.2.1", 1),))])

    def test_misbehaviour_is_counted(self) -> None:
        """Each rule that another node broke is counted by its word, however many there are."""
        for _ in range(50):
            self.perform(peer_io.Misbehaved(None, NodeId(b"p" * 16), "signature", "does not verify"))
        self.assertEqual(self.overlay.misbehaviour, {"signature": 50})

    def test_refused_requests_are_told(self) -> None:
        """One line names who asked, the method and the error; ten a second, however many there are."""
        refused = peer_io.Refused(None, NodeId(b"p" * 16), "AppAttach", Forbidden("not you"))
        with capturedLogs() as lines:
            for _ in range(50):
                self.perform(refused)
        texts = [text for text in map(formatEvent, lines) if "refused" in text]
        self.assertEqual(texts, [f"peer {'70' * 16}: AppAttach refused: Error_Forbidden: not you"] * 10)

    def test_leave_is_bounded(self) -> None:
        """A hand-over that takes too long is given up."""
        left = self.ask(self.overlay.leave(5.0))
        self.clock.advance(5.0)
        self.assertFalse(self.successResultOf(left))
        self.core.script[peer_io.Leave] = lambda item: [peer_io.Completed(item.ref, None)]
        self.assertTrue(self.successResultOf(self.ask(self.overlay.leave(5.0))))


class RealTests(TestCase):
    """Real cores over loopback."""

    timeout = 30

    def peer(self, identity: Identity, **parameters: Any) -> OverlayNode:
        """A peer that listens somewhere on loopback."""
        from socket import create_server

        with create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        made = make_overlay(
            reactor,
            configuration(),
            credential_of(identity),
            PeerParameters(addresses=(address,), **parameters),
            LIMITS,
            listen=address,
            now=reactor.seconds(),  # type: ignore[attr-defined]
        )
        made.service.startService()
        self.addCleanup(made.service.stopService)
        return made

    async def test_client_stores_and_fetches(self) -> None:
        """A short-lived client stores a signed value and reads it back verified; a forbidden one is refused."""
        first = self.peer(OWN, first=True)
        address = first.service.address
        assert address is not None
        registrar = node(7, role=Role.REGISTRAR)
        registration = ProxyRegistration(
            "bob@overlay.example",
            (NodeDestination(NodeId(registrar.node_id)),),
            "sip:bob@192.0.2.1",
            expires_at=int(time.time()) + 60,
        )
        value = peer_io.StoreValue(registration.encode(), 60, registration.key)
        async with client_session(reactor, configuration(), credential_of(registrar), bootstrap=[address]) as overlay:
            stored = await overlay.store("bob@overlay.example", PROXY_REGISTRATION, [value])
            self.assertEqual(stored.node, OWN.node_id)
            fetched = await overlay.fetch("bob@overlay.example", [PROXY_REGISTRATION, SIP_REGISTRATION])
            (read,) = fetched.values
            self.assertEqual((read.value, read.signer.node_id), (registration.encode(), registrar.node_id))
            self.assertEqual((await overlay.ping(NodeId(OWN.node_id))).node, OWN.node_id)
            with self.assertRaises(Forbidden):
                await overlay.store("carol@overlay.example", PROXY_REGISTRATION, [value])
            nothing = await overlay.fetch("nobody@overlay.example", [PROXY_REGISTRATION])
            self.assertEqual(nothing.values, ())

    async def test_two_peers(self) -> None:
        """A second peer joins the first, links with it and leaves in order."""
        first = self.peer(OWN, first=True)
        assert first.service.address is not None
        second = self.peer(node(2, role=Role.REGISTRAR), bootstrap=(first.service.address,))
        await second.service.when_joined()
        self.assertEqual({c.node_id for _, c in second.service.neighbours()}, {OWN.node_id})
        self.assertTrue(await second.service.leave(5.0))

    async def test_member_sends_garbage(self) -> None:
        """A node with a good certificate that sends no RELOAD loses its link, is counted, and nobody else minds."""
        first = self.peer(OWN, first=True)
        address = first.service.address
        assert address is not None
        for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 1000, b"\x80" + bytes(4) + b"\xff\xff\xff" + bytes(70000)):
            mallory = node(9)
            closed: Deferred[str] = Deferred()
            user = Garbage(garbage, closed)
            links = user.links = Links(reactor, mallory.tls(), user, LIMITS, node_ids=lambda der: [OWN.node_id])
            self.addCleanup(lambda links=links: Deferred.fromCoroutine(links.stop()))
            links.open(1, [address])
            await closed
        self.assertGreaterEqual(sum(first.service.misbehaviour.values()), 2)
        async with client_session(reactor, configuration(), credential_of(node(7)), bootstrap=[address]) as overlay:
            self.assertEqual((await overlay.ping(NodeId(OWN.node_id))).node, OWN.node_id)

    async def test_client_of_another_overlay(self) -> None:
        """A client whose certificate is of another overlay is not let in, and the message says so."""
        first = self.peer(OWN, first=True)
        assert first.service.address is not None
        stranger = node(3, "other.example", role=Role.REGISTRAR)
        with self.assertRaises(RequestTimeout) as raised:
            async with client_session(
                reactor, configuration(), credential_of(stranger), bootstrap=[first.service.address], seconds=0.5
            ):
                self.fail("was let in")
        self.assertIn("no peer of overlay.example let us in", str(raised.exception))
        self.assertEqual(len(first.service.links), 0)

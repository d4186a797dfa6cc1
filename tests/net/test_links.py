"""Links between nodes over real loopback sockets: who gets in, what it may cost, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, TestCase

from p2psipd.net.links import LinkLimits, Links
from p2psipd.net.refusals import endpoint_text
from p2psipd.net.tls import KeyLog
from p2psipd.proto.identity.certificate import parse_certificate
from tests.net.identities import Identity, node

LIMITS = LinkLimits(
    links=20,
    links_per_address=10,
    handshakes=8,
    handshakes_per_address=4,
    handshake_seconds=2.0,
    connect_seconds=2.0,
    write_buffer=1 << 20,
)
ALICE, BOB = node(1), node(2)
STRANGER = node(3, "other.example")
EXPIRED = node(4, issued_at=1_000_000_000.0)


class Recorder:
    """A LinkUser that keeps what it was told; ``until`` waits for it."""

    def __init__(self) -> None:
        self.up: list[tuple[int, bytes, tuple[str, int], int | None]] = []
        self.failed: list[tuple[int, str]] = []
        self.down: list[tuple[int, str]] = []
        self.data: dict[int, bytes] = {}
        self.chunks = 0
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def link_up(self, link: int, certificate: bytes, address: tuple[str, int], attempt: int | None) -> None:
        self.up.append((link, certificate, address, attempt))
        self._told()

    def link_failed(self, attempt: int, reason: str) -> None:
        self.failed.append((attempt, reason))
        self._told()

    def link_down(self, link: int, reason: str) -> None:
        self.down.append((link, reason))
        self._told()

    def link_bytes(self, link: int, data: bytes) -> None:
        self.chunks += 1
        self.data[link] = self.data.get(link, b"") + data
        self._told()

    def until(self, condition: Callable[[], object]) -> Deferred[None]:
        """Fires when ``condition`` holds after something was told."""
        waiting: Deferred[None] = Deferred()
        if condition():
            waiting.callback(None)
        else:
            waiting.addTimeout(10, reactor)
            self._waiting.append((condition, waiting))
        return waiting

    def _told(self) -> None:
        ready = [pair for pair in self._waiting if pair[0]()]
        self._waiting = [pair for pair in self._waiting if pair not in ready]
        for _, waiting in ready:
            waiting.callback(None)


class Raw(Protocol):
    """A TCP client without TLS; ``closed`` fires when the other side hangs up."""

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: object = None) -> None:
        self.closed.callback(None)


class LinksTests(TestCase):
    """Each test has two nodes: ``bob`` listens, ``alice`` dials."""

    timeout = 20

    def setUp(self) -> None:
        self.bob = Recorder()
        self.bobs = self.links(BOB, self.bob)
        self.alice = Recorder()
        self.alices = self.links(ALICE, self.alice)
        self.address = self.bobs.listen(("127.0.0.1", 0))

    def links(self, identity: Identity, user: Recorder, limits: LinkLimits = LIMITS, **more: object) -> Links:
        def node_ids(der: bytes) -> tuple[bytes, ...]:
            return parse_certificate(der).node_ids

        links = Links(reactor, identity.tls(**more), user, limits, node_ids=node_ids)  # type: ignore[arg-type]
        self.addCleanup(lambda: Deferred.fromCoroutine(links.stop()))
        return links

    def raw(self) -> Raw:
        """A connection to bob without TLS."""
        raw = Raw()
        reactor.connectTCP(*self.address, ClientFactory.forProtocol(lambda: raw))
        return raw

    async def connected(self) -> tuple[int, int]:
        """A link from alice to bob: its number at alice and at bob."""
        self.alices.open(7, [self.address], BOB.node_id)
        await self.alice.until(lambda: self.alice.up)
        await self.bob.until(lambda: self.bob.up)
        return self.alice.up[0][0], self.bob.up[0][0]

    async def test_octets_both_ways(self) -> None:
        """A dialled link is told with its attempt and the other side's certificate, an accepted one
        without, and carries octets both ways.
        """
        here, there = await self.connected()
        self.assertEqual(self.alice.up, [(here, BOB.certificate, self.address, 7)])
        self.assertEqual(self.bob.up[0][1], ALICE.certificate)
        self.assertIsNone(self.bob.up[0][3])
        self.alices.send(here, b"ping")
        self.alices.flush()
        await self.bob.until(lambda: self.bob.data.get(there) == b"ping")
        self.bobs.send(there, b"pong")
        self.bobs.flush()
        await self.alice.until(lambda: self.alice.data.get(here) == b"pong")
        self.assertEqual([info.tls for info in self.alices.info()], ["TLSv1.3"])

    async def test_one_write_a_flush(self) -> None:
        """All that is sent on a link before a flush leaves as one TLS record."""
        here, there = await self.connected()
        for part in (b"an acknowledgement", b" and ", b"an answer"):
            self.alices.send(here, part)
        self.alices.flush()
        await self.bob.until(lambda: self.bob.data.get(there) == b"an acknowledgement and an answer")
        self.assertEqual(self.bob.chunks, 1)

    async def test_close(self) -> None:
        """A closed link first delivers what was sent on it; the closer is not told, the other side is."""
        here, there = await self.connected()
        self.alices.send(here, b"bye")
        self.alices.close(here, "done")
        await self.bob.until(lambda: self.bob.down)
        self.assertEqual((self.bob.data[there], self.bob.down[0][0]), (b"bye", there))
        self.assertEqual((self.alice.down, len(self.alices)), ([], 0))

    async def test_refused_after_handshake(self) -> None:
        """Under TLS 1.3 the dialler is refused after its handshake: its link goes down before any octet."""
        strangers = Recorder()
        self.alices = self.links(STRANGER._replace(root=BOB.root, overlay=BOB.overlay), strangers)
        self.alices.open(1, [self.address])
        await strangers.until(lambda: strangers.down)
        self.assertEqual([link for link, *_ in strangers.up], [link for link, _ in strangers.down])
        self.assertEqual((strangers.data, self.bob.up), ({}, []))
        self.assertEqual(self.bobs.counts.get("certificate_refused"), 1)

    async def test_other_overlay_dialled(self) -> None:
        """A listener whose certificate is of another overlay fails the attempt and is named."""
        stranger = Recorder()
        address = self.links(STRANGER, stranger).listen(("127.0.0.1", 0))
        self.alices.open(3, [address])
        await self.alice.until(lambda: self.alice.failed)
        self.assertEqual(self.alice.failed[0][0], 3)
        self.assertIn(f"127.0.0.1:{address[1]}", self.alice.failed[0][1])
        self.assertIn("certificate refused", self.alice.failed[0][1])
        self.assertEqual((self.alice.up, stranger.up), ([], []))

    async def test_expired(self) -> None:
        """An expired certificate is refused in both directions."""
        late = Recorder()
        lates = self.links(EXPIRED, late)
        self.alices.open(1, [lates.listen(("127.0.0.1", 0))])
        await self.alice.until(lambda: self.alice.failed)
        lates.open(1, [self.address])
        await late.until(lambda: late.down or late.failed)
        self.assertEqual((self.alice.up, self.bob.up), ([], []))

    async def test_wrong_node(self) -> None:
        """An attempt for one Node-ID does not end at another node: the next address is tried."""
        carol = Recorder()
        address = self.links(node(9), carol).listen(("127.0.0.1", 0))
        self.alices.open(1, [address, self.address], BOB.node_id)
        await self.alice.until(lambda: self.alice.up)
        self.assertEqual(self.alice.up[0][1], BOB.certificate)

    async def test_addresses_in_order(self) -> None:
        """Addresses are tried in order, names as well; with none left every reason is given."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = closed.getsockname()
        self.alices.open(1, [dead, ("localhost", self.address[1])])
        await self.alice.until(lambda: self.alice.up)
        self.alices.open(2, [dead, ("no-such-host.invalid", 1)])
        self.alices.open(3, [])
        await self.alice.until(lambda: len(self.alice.failed) == 2)
        reasons = dict(self.alice.failed)
        self.assertEqual(reasons[3], "no address")
        self.assertIn(f"127.0.0.1:{dead[1]}", reasons[2])
        self.assertIn("no-such-host.invalid:1", reasons[2])

    async def test_ipv6(self) -> None:
        """Links work over IPv6, listening and dialling."""
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                raise SkipTest("no IPv6 here") from None
        address = self.bobs.listen(("::1", 0))
        self.alices.open(1, [address], BOB.node_id)
        await self.alice.until(lambda: self.alice.up)
        self.assertEqual(self.alice.up[0][2], address)

    async def test_half_open_handshake(self) -> None:
        """A connection that completes no handshake is closed after its deadline."""
        self.bobs.limits = LIMITS._replace(handshake_seconds=0.2)
        await self.raw().closed
        self.assertEqual(self.bobs.counts, {"handshake_timeout": 1, "handshake_failed": 1})
        self.assertEqual((self.bobs.handshaking, self.bob.up), (0, []))

    async def test_silent_listener(self) -> None:
        """A listener that takes connections and says nothing fails the attempt in time."""
        silent = socket.socket()
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        self.alices.limits = LIMITS._replace(handshake_seconds=0.2)
        self.alices.open(1, [silent.getsockname()])
        await self.alice.until(lambda: self.alice.failed)
        self.assertIn("too long", self.alice.failed[0][1])

    async def test_garbage(self) -> None:
        """Octets that are no TLS end the connection, and only that one."""
        here, there = await self.connected()
        raw = self.raw()
        await deferLater(reactor, 0.05)
        assert raw.transport is not None
        raw.transport.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        await raw.closed
        self.alices.send(here, b"still there")
        self.alices.flush()
        await self.bob.until(lambda: self.bob.data.get(there) == b"still there")

    async def test_caps(self) -> None:
        """Connections above a cap are closed at once, without TLS, and the others are left alone."""
        for name, capped, kept in (
            ("handshakes_per_address", 2, 2),
            ("handshakes", 2, 2),
            ("links_per_address", 3, 3),
            ("links", 3, 3),
        ):
            self.bobs.limits = LIMITS._replace(**{name: capped})
            before = self.bobs.counts.get("refused_limit", 0)
            raws = [self.raw() for _ in range(5)]
            refused = 5 - kept
            for _ in range(200):
                if self.bobs.counts.get("refused_limit", 0) - before == refused:
                    break
                await deferLater(reactor, 0.005)
            self.assertEqual(self.bobs.counts.get("refused_limit", 0) - before, refused, name)
            self.assertEqual(self.bobs.handshaking, kept)
            for raw in raws:
                assert raw.transport is not None
                raw.transport.abortConnection()
                await raw.closed
            while self.bobs.handshaking:
                await deferLater(reactor, 0.005)
        here, _ = await self.connected()
        self.assertTrue(here)

    async def test_unread(self) -> None:
        """A neighbour that does not read is dropped when the limit of unread octets is passed, and the log names it."""
        here, there = await self.connected()
        self.bobs._links[there].transport.transport.pauseProducing()
        with capturedLogs() as events:
            for _ in range(400):
                self.alices.send(here, bytes(65536))
                self.alices.flush()
                if self.alice.down:
                    break
        said = [formatEvent(event) for event in events]
        self.assertEqual(said, [f"connection to {endpoint_text(self.address)} ended: the other side does not read"])
        self.assertEqual(self.alice.down, [(here, "the other side does not read")])
        self.assertEqual(len(self.alices), 0)

    async def test_stop(self) -> None:
        """After stop nothing listens, no connection is left, and the other side is told."""
        await self.connected()
        await self.bobs.stop()
        await self.alice.until(lambda: self.alice.down)
        self.alices.open(2, [self.address])
        await self.alice.until(lambda: self.alice.failed)
        self.assertEqual(len(self.bobs), 0)

    async def test_keylog(self) -> None:
        """With a key log the secrets of a connection are written, and TLS stays at 1.2, which tshark reads
        whole.
        """
        path = self.mktemp()
        self.alices = self.links(ALICE, self.alice, keylog=KeyLog(path))
        await self.connected()
        self.assertEqual([info.tls for info in self.alices.info()], ["TLSv1.2"])
        with open(path) as lines:
            self.assertTrue(lines.read().startswith("CLIENT_RANDOM "))

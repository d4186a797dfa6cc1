"""Services announced and found in an overlay that is a dictionary (RFC 7374)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from p2psipd.proto.reload.errors import ReloadError, RequestTimeout
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.peer_io import StoreValue
from p2psipd.proto.reload.redir import RedirServiceProvider, tree_resource
from p2psipd.services.service_directory import LIFETIME_SECONDS, ServiceDirectory


class Value:
    """A verified value, as far as the directory looks at it."""

    def __init__(self, key: bytes, value: bytes | None) -> None:
        self.key, self.exists, self.value = key, value is not None, value or b""


class Outcome:
    def __init__(self, values: list[Value]) -> None:
        self.values = values


class MemoryOverlay:
    """What all nodes of a test see."""

    def __init__(self) -> None:
        self.held: dict[bytes, dict[bytes, bytes | None]] = {}
        self.error: ReloadError | None = None
        self.fetches = self.stores = 0

    def when_joined(self) -> Deferred[None]:
        return succeed(None)

    async def fetch(self, resource: Any, kinds: Iterable[Any], *, fresh: bool = False) -> Any:
        self.fetches += 1
        if self.error is not None:
            raise self.error
        return Outcome([Value(key, value) for key, value in self.held.get(resource, {}).items()])

    async def store(self, name: Any, kind: int, values: Sequence[StoreValue]) -> Any:
        self.stores += 1
        if self.error is not None:
            raise self.error
        for value in values:
            assert value.key is not None and value.lifetime == LIFETIME_SECONDS
            self.held.setdefault(name, {})[value.key] = value.value


class DirectoryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.overlay = Clock(), MemoryOverlay()

    def node(self, number: int) -> tuple[NodeId, ServiceDirectory]:
        own = NodeId(bytes([number]) * 16)
        return own, ServiceDirectory(self.clock, self.overlay, own, 10, random.Random(number))

    def found(self, directory: ServiceDirectory, namespace: str = "peering") -> set[NodeId]:
        return set(self.successResultOf(Deferred.fromCoroutine(directory.providers(namespace))))

    def test_offered_is_found_by_others(self) -> None:
        """Every node that offers a service is found by one that does not, in its own namespace only."""
        offering = [self.node(number) for number in (3, 90, 200)]
        for _, directory in offering:
            directory.offer("peering")
            directory.startService()
        _, seeker = self.node(7)
        self.assertEqual(self.found(seeker), {own for own, _ in offering})
        self.assertEqual(self.found(seeker, "gateway"), set())

    def test_renewed_before_it_expires(self) -> None:
        """A registration is made anew at nine tenths of its life."""
        _, directory = self.node(3)
        directory.offer("peering")
        directory.startService()
        before = self.overlay.stores
        self.clock.advance(0.89 * LIFETIME_SECONDS)
        self.assertEqual(self.overlay.stores, before)
        self.clock.advance(0.02 * LIFETIME_SECONDS)
        self.assertEqual(self.overlay.stores, 2 * before)

    def test_a_failed_registration_is_tried_again(self) -> None:
        """A node that cannot register yet tries again after five seconds."""
        own, directory = self.node(3)
        self.overlay.error = RequestTimeout("not now")
        directory.offer("peering")
        directory.startService()
        self.overlay.error = None
        self.clock.advance(5)
        self.assertEqual(self.found(self.node(9)[1]), {own})

    def test_who_stops_is_no_longer_found(self) -> None:
        """Stopping stores the non-existence of every entry and ends the renewals."""
        _, directory = self.node(3)
        directory.offer("peering")
        directory.startService()
        self.successResultOf(directory.stopService())
        self.assertEqual(self.found(self.node(9)[1]), set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answers_are_remembered_and_forgotten(self) -> None:
        """Who was found is not asked for again for half a minute, unless he could not be reached."""
        own, directory = self.node(3)
        directory.offer("peering")
        directory.startService()
        _, seeker = self.node(9)
        self.found(seeker)
        asked = self.overlay.fetches
        self.assertEqual(self.found(seeker), {own})
        self.assertEqual(self.overlay.fetches, asked)
        seeker.forget("peering")
        self.found(seeker)
        self.assertGreater(self.overlay.fetches, asked)

    def test_entries_of_other_places_do_not_count(self) -> None:
        """A record that names another namespace or tree node than the one it lies in is passed over."""
        liar = NodeId(b"\x05" * 16)
        entry = RedirServiceProvider((), "gateway", 0, 0).encode()
        self.overlay.held[tree_resource("peering", 0, 0)] = {liar: entry, b"short": entry, b"\x06" * 16: b"\xff"}
        self.assertEqual(self.found(self.node(9)[1]), set())

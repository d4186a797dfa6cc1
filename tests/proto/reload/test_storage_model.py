"""Storage against a model of a few lines: whatever happens in whatever order, both agree."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2psipd.proto.identity.signing import NullCredential, NullTrust, NullVerifier, null_certificate
from p2psipd.proto.reload import errors
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.messages import (
    DataValue,
    DictionaryEntry,
    FetchReq,
    StoredData,
    StoredDataSpecifier,
    StoredDataValue,
)
from p2psipd.proto.reload.storage import Storage
from p2psipd.proto.reload.values import sign_value
from tests.proto.reload.storage_world import (
    ALICE,
    AT_ALICE,
    CONFIGURATION,
    DICTIONARY,
    OVERLAY,
    SINGLE,
    WALL,
    Disk,
    node_id,
    request,
)

CERTIFICATE = null_certificate(node_id(1), ALICE, OVERLAY)
SIGNER = NullCredential(CERTIFICATE)
CERTIFICATES = {CERTIFICATE.hash: CERTIFICATE.der}
MAX_COUNT = {SINGLE: 1, DICTIONARY: 3}

entries = st.sampled_from([(SINGLE, b""), *[(DICTIONARY, bytes([i])) for i in range(5)]])
contents = st.one_of(st.none(), st.binary(max_size=3))
offsets = st.integers(-3, 3) | st.sampled_from([-100_000, 59_000, 61_000])
lifetimes = st.sampled_from([0, 1, 10, 100])


class Entry(NamedTuple):
    """What the model knows of an entry."""

    storage_time: int
    content: bytes | None
    expires_at: float


class Wanted(NamedTuple):
    """A value that is to be stored."""

    kind: int
    key: bytes
    content: bytes | None
    storage_time: int
    lifetime: int

    def signed(self) -> StoredData:
        """The value as it travels."""
        data = DataValue(self.content is not None, self.content or b"")
        value: StoredDataValue = data if self.kind == SINGLE else DictionaryEntry(self.key, data)
        return sign_value(AT_ALICE, self.kind, value, self.storage_time, self.lifetime, CERTIFICATE, SIGNER.sign)


class StorageAgainstModel(RuleBasedStateMachine):
    """One resource, one owner, two kinds, a clock that only runs forward, a disk that is always written."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = WALL
        self.disk = Disk()
        self.held: dict[tuple[int, bytes], Entry] = {}
        self.floors: dict[tuple[int, bytes], int] = {}
        self.generations = {SINGLE: 0, DICTIONARY: 0}

    @initialize()
    def start(self) -> None:
        """Begin with nothing."""
        self.storage = Storage(CONFIGURATION, NullTrust(OVERLAY), NullVerifier())

    def wanted(self, place: tuple[int, bytes], content: bytes | None, offset: int, lifetime: int) -> Wanted:
        """A value whose storage time lies near the clock's or, for small offsets, near the entry's own."""
        near = self.floors.get(place, int(self.wall * 1000)) if abs(offset) < 10 else int(self.wall * 1000)
        return Wanted(*place, content, max(0, near + offset), lifetime)

    def expected(self, values: list[Wanted], generation: int) -> type[ReloadError] | None:
        """The error that answers a Store, in the order of the checks."""
        kinds = {value.kind for value in values}
        if generation and any(self.generations[kind] != generation for kind in kinds):
            return errors.GenerationCounterTooLow
        floors = dict(self.floors)
        for value in values:
            floor = floors.get(value[:2], -1)
            if value.storage_time <= floor:
                return errors.DataTooOld
            if value.storage_time > max(self.wall * 1000 + 60_000, floor + 1000):
                return errors.InvalidMessage
            floors[value[:2]] = value.storage_time
        return errors.DataTooLarge if any(self.overfull(values, kind) for kind in kinds) else None

    def overfull(self, values: list[Wanted], kind: int) -> bool:
        """Whether these values would make more of a kind than it may have, and more than there are."""
        before = {place for place, entry in self.held.items() if place[0] == kind and entry.content is not None}
        after = set(before)
        for value in values:
            if value.kind == kind:
                (after.discard if value.content is None else after.add)(value[:2])
        return len(after) > max(MAX_COUNT[kind], len(before))

    def apply(self, values: list[Wanted]) -> None:
        """Take over values in the model; only the last of an entry counts for its lifetime."""
        for value in {value[:2]: value for value in values}.values():
            old = self.held.get(value[:2])
            expires_at = self.wall + value.lifetime
            if value.content is None and old is not None:
                expires_at = max(expires_at, old.expires_at)
            self.held[value[:2]] = Entry(value.storage_time, value.content, expires_at)
            self.floors[value[:2]] = value.storage_time

    @rule(
        specs=st.lists(st.tuples(entries, contents, offsets, lifetimes), min_size=1, max_size=4),
        generation=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def store(self, specs: list[tuple[tuple[int, bytes], bytes | None, int, int]], generation: int) -> None:
        """An original Store succeeds or fails as the model says, and fails without a trace."""
        # A request holds its values kind by kind, and so they are judged.
        first = [place[0] for place, *_ in specs]
        values = [self.wanted(*spec) for spec in sorted(specs, key=lambda spec: first.index(spec[0][0]))]
        wanted = max(0, self.generations[values[0].kind] + generation) if generation else 0
        error = self.expected(values, wanted)
        message = request(*[(value.kind, value.signed()) for value in values], generation=wanted)
        try:
            result = self.storage.store(message, CERTIFICATE, CERTIFICATES, self.wall)
        except ReloadError as raised:
            assert type(raised) is error, raised
            return
        assert error is None
        self.disk.write(result.changes)
        self.apply(values)
        for kind in {value.kind for value in values}:
            self.generations[kind] += 1
        self.forget_expired()

    @rule(place=entries, content=contents, offset=offsets, lifetime=lifetimes, generation=st.integers(1, 9))
    def replicate(
        self, place: tuple[int, bytes], content: bytes | None, offset: int, lifetime: int, generation: int
    ) -> None:
        """A replica is taken if it is newer than all that was ever known and there is room, else it is
        not."""
        value = self.wanted(place, content, offset, lifetime)
        message = request((value.kind, value.signed()), generation=generation, replica=1)
        result = self.storage.store_replica(message, CERTIFICATES, self.wall)
        self.disk.write(result.changes)
        newer = value.storage_time > self.floors.get(place, -1)
        taken = newer and not self.overfull([value], value.kind)
        assert result.accepted == taken
        assert len(result.refused) == (newer and not taken)
        present = any(kind == value.kind for kind, _ in self.held)
        if taken:
            self.apply([value])
        if generation > self.generations[value.kind] and (taken or present):
            self.generations[value.kind] = generation
        elif taken:
            self.generations[value.kind] += 1
        self.forget_expired()

    @rule(seconds=st.sampled_from([0.5, 1, 9, 100]))
    def time_passes(self, seconds: float) -> None:
        """Values expire exactly when their time has come."""
        self.wall += seconds
        due = self.storage.next_expiry()
        assert due is None or not self.held or due <= min(entry.expires_at for entry in self.held.values())
        self.forget_expired()

    def forget_expired(self) -> None:
        """Let model and storage drop what has expired."""
        self.held = {place: entry for place, entry in self.held.items() if entry.expires_at > self.wall}
        self.disk.write(self.storage.expire(self.wall))

    @rule()
    def hand_over(self) -> None:
        """A resource handed over leaves no floors for what was held; the generation only where marks
        remain."""
        self.disk.write(self.storage.drop_resource(AT_ALICE))
        kinds = {kind for kind, _ in self.held}
        for place in self.held:
            del self.floors[place]
        self.held = {}
        for kind in kinds:
            if not any(place[0] == kind for place in self.floors):
                self.generations[kind] = 0

    @rule()
    def restart(self) -> None:
        """After a restart from the disk everything is as it was."""
        before = self.storage
        self.storage = Storage(CONFIGURATION, NullTrust(OVERLAY), NullVerifier())
        assert self.storage.load(list(self.disk.rows.values()), self.wall) == ()
        assert self.storage.stored_bytes == before.stored_bytes
        assert self.storage.resource_digest(AT_ALICE) == before.resource_digest(AT_ALICE)
        assert sorted(self.storage.entries(self.wall)) == sorted(before.entries(self.wall))

    @invariant()
    def agrees(self) -> None:
        """A Fetch tells the model's values, lifetimes and generations, and nothing else."""
        specifiers = (StoredDataSpecifier(SINGLE), StoredDataSpecifier(DICTIONARY, keys=()))
        answer, _ = self.storage.fetch(FetchReq(AT_ALICE, specifiers), self.wall)
        found: dict[tuple[int, bytes], tuple[int, bytes | None, int]] = {}
        for response in answer.kinds:
            assert response.generation == self.generations[response.kind]
            for stored in response.values:
                key, data = stored.value if isinstance(stored.value, DictionaryEntry) else (b"", stored.value)
                assert isinstance(data, DataValue)
                if stored.storage_time:
                    content = data.value if data.exists else None
                    found[response.kind, key] = (stored.storage_time, content, stored.lifetime)
        expected = {
            place: (entry.storage_time, entry.content, int(entry.expires_at - self.wall))
            for place, entry in self.held.items()
        }
        assert found == expected
        assert len(self.storage) == len(self.held)
        assert self.storage.resource_count == bool(self.held)


StorageAgainstModel.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestStorageAgainstModel = StorageAgainstModel.TestCase

"""The dictionary in which a peer holds values, and its accounts: no rule of RFC 6940 is judged here.

`Holdings` keeps together what must stay together when a value comes or goes: the values themselves, how
many and how large they are, the signers' certificates, a digest of each resource, the timers of expiry, and
the high-water marks that values leave behind.  `storage.Storage` decides what comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate
from p2psipd.proto.reload.high_water import HighWater
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.messages import DataValue, StoredData
from p2psipd.proto.reload.records import (
    DropCertificate,
    DropGeneration,
    DropRecord,
    PutCertificate,
    PutGeneration,
    PutMark,
    PutRecord,
    RecordChange,
    RecordRow,
)
from p2psipd.proto.reload.security import CERT_HASH, CERT_HASH_NODE_ID, HASH_SHA256, Signature, SignerIdentity
from p2psipd.proto.reload.values import data_of, entry_digest, entry_value

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import TrustPolicy
    from p2psipd.proto.reload.kinds import Kind

_VALUE_OVERHEAD: Final = 500
_TIMER_SLACK: Final = 1000


def cost(stored: StoredData, key: bytes) -> int:
    """What a value costs in memory, roughly, octets."""
    return len(data_of(stored.value).value) + len(key) + len(stored.signature.value) + _VALUE_OVERHEAD


class Held:
    """A stored value: `stored` as it came, gone at `expires_at`.

    `until` is how long a mark of its entry will be needed: as long as any certificate that signed it is
    valid.
    """

    __slots__ = ("digest", "expires_at", "signer", "size", "stored", "until")

    def __init__(
        self,
        resource: ResourceId,
        kind: int,
        key: bytes,
        stored: StoredData,
        signer: NodeCertificate,
        expires_at: float,
        until: float,
    ) -> None:
        self.stored = stored
        self.signer = signer
        self.expires_at = expires_at
        self.until = until
        self.size = cost(stored, key)
        self.digest = entry_digest(resource, kind, key, stored)

    @property
    def exists(self) -> bool:
        """False for a removal."""
        return data_of(self.stored.value).exists

    def remaining(self, wall: float) -> StoredData:
        """The value with the lifetime that is left, in whole seconds (RFC 6940 section 7.4.1.1)."""
        storage_time, _, value, signature = self.stored
        return StoredData(storage_time, max(0, int(self.expires_at - wall)), value, signature)


class Slot:
    """The values of one kind at one resource by entry key; `present` of them exist, the others are
    removals."""

    __slots__ = ("generation", "held", "present")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.held: dict[bytes, Held] = {}
        self.present = 0


class HeldResource:
    """What is held at one resource; `digest` is the exclusive or of its entries' digests."""

    __slots__ = ("digest", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.digest = 0


class Holdings:
    """Values by resource, kind and entry key.

    `count` values, removals included, cost about `octets`.  Methods that change something append to, or
    return, the changes that make it durable.
    """

    def __init__(self, max_marks: int) -> None:
        self.resources: dict[ResourceId, HeldResource] = {}
        self.high_water = HighWater(max_marks)
        self.count = 0
        self.octets = 0
        self._certificates: dict[bytes, tuple[NodeCertificate, int]] = {}
        # An entry whose value was refreshed meanwhile is out of date; `expire` looks again.
        self._timers: list[tuple[float, ResourceId, int, bytes]] = []

    # Looking

    def slot(self, resource: ResourceId, kind: int) -> Slot | None:
        """The values of a kind at a resource; None if there are none."""
        home = self.resources.get(resource)
        return None if home is None else home.slots.get(kind)

    def get(self, resource: ResourceId, kind: int, key: bytes) -> Held | None:
        """One value."""
        home = self.resources.get(resource)
        slot = None if home is None else home.slots.get(kind)
        return None if slot is None else slot.held.get(key)

    def generation(self, resource: ResourceId, kind: int) -> int:
        """The generation counter of a kind, also when its values are gone; 0 if there never were any."""
        slot = self.slot(resource, kind)
        return self.high_water.generation(resource, kind) if slot is None else slot.generation

    def storage_time(self, resource: ResourceId, kind: int, key: bytes) -> int:
        """The highest storage time of an entry, also when it is gone; -1 if unknown."""
        held = self.get(resource, kind, key)
        return self.high_water.storage_time(resource, kind, key) if held is None else held.stored.storage_time

    def needed_until(self, resource: ResourceId, kind: int, key: bytes) -> float:
        """How long a mark of the entry is needed because of what was stored so far."""
        held = self.get(resource, kind, key)
        return self.high_water.until(resource, kind, key) if held is None else held.until

    def signers(self) -> Iterable[NodeCertificate]:
        """The certificates of all signers."""
        return [certificate for certificate, _ in self._certificates.values()]

    # Changing

    def put(self, resource: ResourceId, kind: int, key: bytes, held: Held, changes: list[RecordChange]) -> None:
        """Hold a value in place of what was there."""
        old = self.get(resource, kind, key)
        if held.signer.hash not in self._certificates:
            changes.append(PutCertificate(held.signer.hash, held.signer.der))
        self._insert(resource, kind, key, held, old)
        changes += self.high_water.replaced(resource, kind, key)
        changes.append(_row(resource, kind, key, held))
        if old is not None:
            self._release(old.signer, changes)

    def _insert(self, resource: ResourceId, kind: int, key: bytes, held: Held, old: Held | None) -> None:
        home = self.resources.get(resource)
        if home is None:
            home = self.resources[resource] = HeldResource()
        slot = home.slots.get(kind)
        if slot is None:
            slot = home.slots[kind] = Slot(self.high_water.generation(resource, kind))
        if old is None:
            self.count += 1
        else:
            home.digest ^= old.digest
            slot.present -= old.exists
            self.octets -= old.size
        slot.held[key] = held
        slot.present += held.exists
        home.digest ^= held.digest
        self.octets += held.size
        certificate, uses = self._certificates.get(held.signer.hash, (held.signer, 0))
        self._certificates[held.signer.hash] = (certificate, uses + 1)
        if len(self._timers) > 2 * self.count + _TIMER_SLACK:
            self._rebuild_timers()
        else:
            heappush(self._timers, (held.expires_at, resource, kind, key))

    def _rebuild_timers(self) -> None:
        """Refreshed values leave their old timers behind; too many of them are thrown out at once."""
        self._timers = [
            (held.expires_at, resource, kind, key)
            for resource, home in self.resources.items()
            for kind, slot in home.slots.items()
            for key, held in slot.held.items()
        ]
        heapify(self._timers)

    def set_generation(self, resource: ResourceId, kind: int, generation: int, changes: list[RecordChange]) -> None:
        """Set the generation counter of a kind that has values."""
        slot = self.slot(resource, kind)
        if slot is not None:
            slot.generation = generation
            changes.append(PutGeneration(resource, kind, generation))

    def remove(self, resource: ResourceId, kind: int, key: bytes, *, mark: bool) -> list[RecordChange]:
        """Hold a value no longer; with `mark` its storage time stays behind."""
        home = self.resources[resource]
        slot = home.slots[kind]
        held = slot.held.pop(key)
        slot.present -= held.exists
        home.digest ^= held.digest
        self.count -= 1
        self.octets -= held.size
        changes: list[RecordChange] = [DropRecord(resource, kind, key)]
        self._release(held.signer, changes)
        if not slot.held:
            del home.slots[kind]
            if not home.slots:
                del self.resources[resource]
        if mark:
            time = held.stored.storage_time
            marked = self.high_water.keep(resource, kind, key, time, held.until, slot.generation)
            changes += self._still_needed(marked)
        elif not slot.held and not self.high_water.keep_generation(resource, kind, slot.generation):
            changes.append(DropGeneration(resource, kind))
        return changes

    def _still_needed(self, changes: list[RecordChange]) -> list[RecordChange]:
        """The generation of a kind whose last mark went stays while there are values."""
        return [
            change
            for change in changes
            if not (isinstance(change, DropGeneration) and self.slot(change.resource, change.kind) is not None)
        ]

    def _release(self, signer: NodeCertificate, changes: list[RecordChange]) -> None:
        certificate, uses = self._certificates[signer.hash]
        if uses > 1:
            self._certificates[signer.hash] = (certificate, uses - 1)
        else:
            del self._certificates[signer.hash]
            changes.append(DropCertificate(signer.hash))

    def remove_where(self, condition: Callable[[Held], bool]) -> list[RecordChange]:
        """Remove every value that meets a condition; marks stay."""
        places = [
            (resource, kind, key)
            for resource, home in self.resources.items()
            for kind, slot in home.slots.items()
            for key, held in slot.held.items()
            if condition(held)
        ]
        return [change for place in places for change in self.remove(*place, mark=True)]

    # Time

    def expire(self, wall: float) -> list[RecordChange]:
        """Drop the values and marks whose time has come."""
        changes: list[RecordChange] = []
        timers = self._timers
        while timers and timers[0][0] <= wall:
            _, resource, kind, key = heappop(timers)
            held = self.get(resource, kind, key)
            if held is not None and held.expires_at <= wall:
                changes += self.remove(resource, kind, key, mark=True)
        changes += self._still_needed(self.high_water.expire(wall))
        return changes

    def next_expiry(self) -> float | None:
        """The wall time at which `expire` next has something to do."""
        values = self._timers[0][0] if self._timers else None
        marks = self.high_water.next_at()
        return min((at for at in (values, marks) if at is not None), default=None)

    # Restart

    def load(
        self, rows: Iterable[RecordRow], kinds: Mapping[int, Kind], trust: TrustPolicy, wall: float
    ) -> list[RecordChange]:
        """Take up what a record store kept; returns the changes that tidy it."""
        rows = list(rows)
        changes: list[RecordChange] = []
        ders = {row.hash: row.der for row in rows if isinstance(row, PutCertificate)}
        for row in rows:
            if isinstance(row, PutMark):
                # The mark itself is on the disk already; only what it may have pushed out is a change.
                changes += self.high_water.keep(*row, 0)[1:]
        for row in rows:
            if isinstance(row, PutRecord):
                self._restore(row, ders.get(row.signer), kinds, trust, wall, changes)
        places = {(row.resource, row.kind) for row in rows if isinstance(row, PutRecord)}
        for row in rows:
            if isinstance(row, PutGeneration):
                slot = self.slot(row.resource, row.kind)
                if slot is not None:
                    slot.generation = row.generation
                elif not self.high_water.keep_generation(*row) and (row.resource, row.kind) not in places:
                    changes.append(DropGeneration(row.resource, row.kind))
        for home in self.resources.values():
            for slot in home.slots.values():
                slot.generation = max(1, slot.generation)
        named = {row.signer for row in rows if isinstance(row, PutRecord)}
        changes += [DropCertificate(hash_) for hash_ in ders if hash_ not in named]
        changes += self.expire(wall)
        return changes

    def _restore(
        self,
        row: PutRecord,
        der: bytes | None,
        kinds: Mapping[int, Kind],
        trust: TrustPolicy,
        wall: float,
        changes: list[RecordChange],
    ) -> None:
        kind = kinds.get(row.kind)
        if kind is None:
            return  # a kind that may come back with the next document; the record store forgets it in time
        resource, key = row.resource, row.key
        try:
            value = entry_value(kind.data_model, key, DataValue(row.exists, row.value))
            if der is None:
                raise ValueError("a record without its certificate")
            signer = trust.check(der, wall)
        except CertificateError as error:
            if error.reason == "date" and row.expires_at > wall:
                return  # our own clock is wrong: keep the file as it is
            changes.append(DropRecord(resource, kind.id, key))
            if row.until > wall:
                changes += self.high_water.keep(resource, kind.id, key, row.storage_time, row.until, 0)
            return
        except ValueError:
            changes.append(DropRecord(resource, kind.id, key))
            return
        type_ = CERT_HASH_NODE_ID if row.identity else CERT_HASH
        identity = SignerIdentity(type_, HASH_SHA256, row.identity or row.signer)
        signature = Signature(row.hash_algorithm, row.signature_algorithm, identity, row.signature)
        lifetime = max(0, int(row.expires_at - wall))
        stored = StoredData(row.storage_time, lifetime, value, signature)
        expires_at = min(row.expires_at, signer.not_after)
        held = Held(resource, kind.id, key, stored, signer, expires_at, row.until)
        self._insert(resource, kind.id, key, held, self.get(resource, kind.id, key))
        changes += self.high_water.replaced(resource, kind.id, key)


def _row(resource: ResourceId, kind: int, key: bytes, held: Held) -> PutRecord:
    storage_time, _, value, signature = held.stored
    data = data_of(value)
    identity = signature.identity.certificate_hash if signature.identity.type == CERT_HASH_NODE_ID else b""
    return PutRecord(
        resource, kind, key, storage_time, held.expires_at, held.until, data.exists, data.value,
        held.signer.hash, identity, signature.hash_algorithm, signature.signature_algorithm, signature.value,
    )  # fmt: skip

"""The data storage protocol of RFC 6940 section 7: what a peer holds for others, and the rules of its
methods.

`Storage` is a dictionary in memory, resource by resource and kind by kind.  It judges Stores, answers
Fetch, Stat and Find, and lets values expire; whether this peer is responsible, and whether a sender of
replicas is plausible, is the peer core's question.  Every method that changes something returns
`RecordChange` objects for the record store.

Readings of the RFC, where it leaves a choice:

- A storage time more than 60 s ahead of our clock is refused with Error_Invalid_Message.  The RFC has no
code for it:
  Data_Too_Old means the opposite (a client would answer it by counting up, section 7), Forbidden is about
  permission, and Invalid_Message is for what fits no other code and carries a text.  It is refused because
  it would lock its own owner out.  One step of a second beyond the value that it replaces is always
  allowed, so that an owner whose clock was set back can go on; replicas are taken as they are, since their
  first holder has judged them.
- A generation counter that is not ours but higher is answered like a lower one, with
Generation_Counter_Too_Low: the
  Store must fail (section 7.4.1.1), and only this error tells the right counter.
- A full node says Forbidden: Data_Too_Large is about the limits of a kind (section 7.4.1.2).
- A value is kept until its lifetime ends or its signer's certificate expires, as section 7.1 permits; a
removal at
  least as long as what it removes would have lived, as section 7.4.1.3 advises the owner to ask.
- A Fetch with generation 0 wants the values in any case, even where nothing was ever stored.
- Nonexistent elements of an array are synthesized for the gaps, and beyond its end only up to the kind's
max-count.
- Replicas are judged entry by entry (the overlay's profile, section 3).  Their generation is taken over if
it is
  higher; if it is not, and values changed, ours goes up by one: a conditional Fetch must notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate
from p2psipd.proto.reload.errors import (
    DataTooLarge,
    DataTooOld,
    Forbidden,
    GenerationCounterTooLow,
    InvalidMessage,
    ReloadError,
    UnknownKind,
)
from p2psipd.proto.reload.holdings import Held, Holdings, Slot, cost
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.kinds import Kind, check_access
from p2psipd.proto.reload.messages import (
    APPEND,
    ArrayEntry,
    ArrayEntryMeta,
    DataModel,
    DataValue,
    DictionaryEntryMeta,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    FindAns,
    FindReq,
    MetaData,
    MetaDataValue,
    StatAns,
    StatKindResponse,
    StatReq,
    StoreAns,
    StoredData,
    StoredDataSpecifier,
    StoredMetaData,
    StoreKindData,
    StoreKindResponse,
    StoreReq,
    unknown_kinds_info,
)
from p2psipd.proto.reload.records import RecordChange, RecordRow, array_key
from p2psipd.proto.reload.security import HASH_SHA256, NO_SIGNATURE
from p2psipd.proto.reload.storage_results import (
    HeldEntry,
    RefusedEntry,
    Replica,
    ReplicaResult,
    StorageLimits,
    StoreResult,
)
from p2psipd.proto.reload.values import (
    KnownSignatures,
    Signer,
    SignerFinder,
    StorageConfiguration,
    check_form,
    check_signature,
    data_of,
    entry_key,
    entry_value,
    supersedes,
)

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import TrustPolicy
    from p2psipd.proto.identity.signing import Verifier

__all__ = [
    "HeldEntry",
    "RefusedEntry",
    "Replica",
    "ReplicaResult",
    "Storage",
    "StorageLimits",
    "StoreResult",
]

_NOTHING: Final = DataValue(False, b"")
_MAX_KEY: Final = 255
_MAX_ARRAY_LENGTH: Final = 1024
_REMOVALS_PER_VALUE: Final = 4
_REMOVALS_AT_LEAST: Final = 32
_STEP_AHEAD_MS: Final = 1000
_MAX_GENERATION: Final = 1 << 63


class _Incoming:
    """A value of a Store on its way through the checks."""

    __slots__ = ("data", "key", "kind", "signer", "stored")

    def __init__(self, kind: Kind, key: bytes, stored: StoredData, data: DataValue, signer: Signer) -> None:
        self.kind = kind
        self.key = key
        self.stored = stored
        self.data = data
        self.signer = signer


class Storage:
    """The values that this node holds, and the rules of section 7.

    `configuration` gives the kinds and what access policies need; `trust` and `verifier` are the real ones
    or the simulator's; `known` are the signatures on values that need not be verified again.  Wall times are Unix
    seconds.  Nothing but `ReloadError` is raised for what other nodes send.
    """

    def __init__(
        self,
        configuration: StorageConfiguration,
        trust: TrustPolicy,
        verifier: Verifier,
        limits: StorageLimits | None = None,
    ) -> None:
        self._rules = configuration
        self._kinds = configuration.kinds
        self._trust = trust
        self._verifier = verifier
        self.known = KnownSignatures()
        self._limits = StorageLimits() if limits is None else limits
        self._holdings = Holdings(self._limits.max_marks)

    # What there is

    def __len__(self) -> int:
        """How many values are held, removals included."""
        return self._holdings.count

    def __contains__(self, resource: ResourceId) -> bool:
        """Whether anything is held at a resource, be it expired or a removal."""
        return resource in self._holdings.resources

    @property
    def stored_bytes(self) -> int:
        """What the values cost in memory, roughly."""
        return self._holdings.octets

    @property
    def resource_count(self) -> int:
        """How many resources hold something (Probe's num_resources)."""
        return len(self._holdings.resources)

    def resources(self) -> Iterable[ResourceId]:
        """The Resource-IDs under which something is held."""
        return self._holdings.resources.keys()

    def entries(self, wall: float) -> Iterator[HeldEntry]:
        """Everything held, one row a value, for an operator."""
        for resource, home in self._holdings.resources.items():
            for kind, slot in home.slots.items():
                for key, held in slot.held.items():
                    stored = held.remaining(wall)
                    data = data_of(stored.value)
                    yield HeldEntry(
                        resource, kind, slot.generation, key, data.exists, len(data.value),
                        stored.storage_time, stored.lifetime, held.signer.user,
                    )  # fmt: skip

    def reconfigure(
        self, configuration: StorageConfiguration, trust: TrustPolicy, wall: float
    ) -> tuple[RecordChange, ...]:
        """A newer configuration document is in force: what revoked nodes signed goes."""
        self._rules = configuration
        self._kinds = configuration.kinds
        self._trust = trust
        refused = {signer.hash for signer in self._holdings.signers() if not self._trusted(signer, wall)}
        if not refused:
            return ()
        return tuple(self._holdings.remove_where(lambda held: held.signer.hash in refused))

    def _trusted(self, signer: NodeCertificate, wall: float) -> bool:
        try:
            self._trust.check(signer.der, wall)
        except CertificateError as error:
            return error.reason == "date"  # that is a matter of expiry
        return True

    # Store (section 7.4.1)

    def store(
        self,
        request: StoreReq,
        signer: NodeCertificate,
        certificates: Mapping[bytes, bytes],
        wall: float,
        node_id: bytes | None = None,
    ) -> StoreResult:
        """An original Store: accepted whole, or a `ReloadError` is raised and nothing has changed.

        `signer` signed the StoreReq (with `node_id`, if its certificate has several); `certificates` are
        those of the security block, SHA-256 -> DER.  The checks run from the cheap to the dear.
        """
        if request.replica_number != 0:
            raise InvalidMessage(f"replica number {request.replica_number} in an original Store")
        kinds = self._known([data.kind for data in request.kinds])
        resource = request.resource
        signers = SignerFinder(certificates, self._trust, wall)
        items: list[_Incoming] = []
        for data, kind in zip(request.kinds, kinds, strict=True):
            for stored in data.values:
                item = self._examine(resource, kind, stored, signers)
                if item.signer.certificate != signer or node_id not in (None, item.signer.node_id):
                    check_access(kind, resource, signer, stored.value, self._rules, node_id=node_id)
                items.append(item)
        self._check_generations(resource, request.kinds)
        pending = self._check_order(resource, items, wall)
        self._check_room(resource, pending.values())
        for item in items:
            check_signature(resource, item.kind, item.stored, item.signer.certificate, self._verifier, self.known)
        changes: list[RecordChange] = []
        for item in pending.values():
            self._put(resource, item, wall, changes)
        for data in request.kinds:
            if data.values:
                self._holdings.set_generation(
                    resource, data.kind, self._holdings.generation(resource, data.kind) + 1, changes
                )
        return StoreResult(self._answer(resource, request.kinds), tuple(changes))

    def _known(self, kinds: list[int]) -> list[Kind]:
        """The definitions of kinds named once each, else UnknownKind (section 7.4.1.2) or InvalidMessage."""
        try:
            known = [self._kinds[kind] for kind in kinds]
        except KeyError:
            unknown = [kind for kind in kinds if kind not in self._kinds]
            text = " ".join(f"{kind:#x}" for kind in unknown[:16])
            raise UnknownKind(f"unknown kinds {text}", unknown_kinds_info(unknown)) from None
        if len(kinds) > 1 and len(set(kinds)) != len(kinds):
            raise InvalidMessage("a kind is named twice")
        return known

    def _examine(self, resource: ResourceId, kind: Kind, stored: StoredData, signers: SignerFinder) -> _Incoming:
        """Form, signer, permission and size of one value."""
        data = check_form(kind, stored)
        signer = signers.find(stored.signature.identity)
        check_access(kind, resource, signer.certificate, stored.value, self._rules, node_id=signer.node_id)
        if len(data.value) > kind.max_size:
            raise DataTooLarge(f"{kind.name}: a value of {len(data.value)} octets, at most {kind.max_size}")
        key = entry_key(stored.value)
        if len(key) > _MAX_KEY:
            raise DataTooLarge(f"{kind.name}: a key of {len(key)} octets, at most {_MAX_KEY}")
        return _Incoming(kind, key, stored, data, signer)

    def _check_generations(self, resource: ResourceId, kinds: tuple[StoreKindData, ...]) -> None:
        for data in kinds:
            if data.generation and data.generation != self._holdings.generation(resource, data.kind):
                raise GenerationCounterTooLow(
                    f"kind {data.kind:#x}: generation {data.generation} expected",
                    self._answer(resource, kinds).encode(),
                )

    def _check_order(
        self, resource: ResourceId, items: list[_Incoming], wall: float
    ) -> dict[tuple[int, bytes], _Incoming]:
        """Storage times and counts, values in turn; appended elements get their index.  What is left to
        put."""
        pending: dict[tuple[int, bytes], _Incoming] = {}
        for item in items:
            kind = item.kind.id
            if isinstance(item.stored.value, ArrayEntry) and item.stored.value.index == APPEND:
                self._append(resource, item, pending)
            earlier = pending.get((kind, item.key))
            known = (
                self._holdings.storage_time(resource, kind, item.key)
                if earlier is None
                else earlier.stored.storage_time
            )
            storage_time = item.stored.storage_time
            if storage_time <= known:
                raise DataTooOld(f"{item.kind.name}: storage time {storage_time} is not after {known}")
            if storage_time > max((wall + self._limits.max_ahead) * 1000, known + _STEP_AHEAD_MS):
                raise InvalidMessage(f"{item.kind.name}: storage time {storage_time} is in the future")
            pending[kind, item.key] = item
        self._check_counts(resource, pending)
        return pending

    def _append(self, resource: ResourceId, item: _Incoming, pending: dict[tuple[int, bytes], _Incoming]) -> None:
        """Give an element stored at 0xffffffff the index after the last one (section 7.4.1.1)."""
        slot = self._holdings.slot(resource, item.kind.id)
        elements = {} if slot is None else {key: held.stored for key, held in slot.held.items()}
        elements |= {key: other.stored for (kind, key), other in pending.items() if kind == item.kind.id}
        if any(_is_same_element(stored, item.stored) for stored in elements.values()):
            raise DataTooOld(f"{item.kind.name}: this element has been appended already")
        item.key = array_key(int.from_bytes(max(elements), "big") + 1) if elements else array_key(0)
        entry = ArrayEntry(int.from_bytes(item.key, "big"), item.data)
        item.stored = item.stored._replace(value=entry)

    def _check_counts(self, resource: ResourceId, pending: Mapping[tuple[int, bytes], _Incoming]) -> None:
        """The kind's max-count, for values that exist; removals and the length of arrays have wider
        limits."""
        added: dict[int, list[int]] = {}
        for (kind, key), item in pending.items():
            totals = added.setdefault(kind, [0, 0])
            slot = self._holdings.slot(resource, kind)
            held = None if slot is None else slot.held.get(key)
            totals[0] += item.data.exists
            if held is None:
                totals[1] += 1
            else:
                totals[0] -= held.exists
            array = item.kind.data_model is DataModel.ARRAY
            if array and int.from_bytes(key, "big") >= max(_MAX_ARRAY_LENGTH, item.kind.max_count):
                raise DataTooLarge(f"{item.kind.name}: array index {int.from_bytes(key, 'big')}")
        for kind, (present, entries) in added.items():
            slot = self._holdings.slot(resource, kind)
            name, limit = self._kinds[kind].name, self._kinds[kind].max_count
            if present > 0 and present + (0 if slot is None else slot.present) > limit:
                raise DataTooLarge(f"{name}: more than {limit} values")
            with_removals = limit * _REMOVALS_PER_VALUE + _REMOVALS_AT_LEAST
            if entries > 0 and entries + (0 if slot is None else len(slot.held)) > with_removals:
                raise DataTooLarge(f"{name}: more than {with_removals} values and removals")

    def _check_room(self, resource: ResourceId, items: Iterable[_Incoming]) -> None:
        """This node's own limits."""
        if resource not in self._holdings.resources and len(self._holdings.resources) >= self._limits.max_resources:
            raise Forbidden(f"this node is full: {len(self._holdings.resources)} resources")
        growth = 0
        for item in items:
            held = self._holdings.get(resource, item.kind.id, item.key)
            growth += cost(item.stored, item.key) - (0 if held is None else held.size)
        if growth > 0 and self._holdings.octets + growth > self._limits.max_bytes:
            raise Forbidden(f"this node is full: {self._holdings.octets} octets")

    def _answer(self, resource: ResourceId, kinds: Iterable[StoreKindData]) -> StoreAns:
        responses = [StoreKindResponse(data.kind, self._holdings.generation(resource, data.kind), ()) for data in kinds]
        return StoreAns(tuple(responses))

    # Replicas

    def store_replica(self, request: StoreReq, certificates: Mapping[bytes, bytes], wall: float) -> ReplicaResult:
        """A replica Store, entry by entry: one bad or old entry never sinks the others.

        `InvalidMessage` only if it is no replica Store.  That the sender is plausible is checked before.
        """
        if request.replica_number == 0:
            raise InvalidMessage("replica number 0 in a replica Store")
        resource = request.resource
        signers = SignerFinder(certificates, self._trust, wall)
        changes: list[RecordChange] = []
        refused: list[RefusedEntry] = []
        newer: list[StoreKindData] = []
        newer_signers: dict[bytes, bytes] = {}
        accepted = 0
        high_water = self._holdings.high_water
        known = [data for data in request.kinds if data.kind in self._kinds]
        for data in request.kinds:
            ours: list[StoredData] = []
            before = accepted
            for stored in data.values:
                key = entry_key(stored.value)
                held = self._holdings.get(resource, data.kind, key)
                if held is not None and not supersedes(stored, held.stored):
                    if held.expires_at - wall >= 1 and supersedes(held.stored, stored):
                        ours.append(held.remaining(wall))
                        newer_signers[held.signer.hash] = held.signer.der
                    continue
                if stored.storage_time > high_water.storage_time(resource, data.kind, key):
                    try:
                        self._take(resource, data, stored, signers, wall, changes)
                        accepted += 1
                    except ReloadError as error:
                        refused.append(RefusedEntry(data.kind, key, error))
            self._merge_generation(resource, data, accepted > before, changes)
            if ours:
                newer.append(StoreKindData(data.kind, self._holdings.generation(resource, data.kind), tuple(ours)))
        return ReplicaResult(
            self._answer(resource, known), tuple(changes), accepted, tuple(newer),
            tuple(newer_signers.values()), tuple(refused),
        )  # fmt: skip

    def _take(
        self,
        resource: ResourceId,
        data: StoreKindData,
        stored: StoredData,
        signers: SignerFinder,
        wall: float,
        changes: list[RecordChange],
    ) -> None:
        """Take one replicated value that is newer than what is known, or raise."""
        kind = self._kinds.get(data.kind)
        if kind is None:
            raise UnknownKind(f"unknown kind {data.kind:#x}", unknown_kinds_info([data.kind]))
        if not 1 <= data.generation < _MAX_GENERATION:
            raise InvalidMessage(f"{kind.name}: generation {data.generation} in a replica Store")
        if isinstance(stored.value, ArrayEntry) and stored.value.index == APPEND:
            raise InvalidMessage(f"{kind.name}: a replica is stored at its index")
        item = self._examine(resource, kind, stored, signers)
        self._check_counts(resource, {(kind.id, item.key): item})
        self._check_room(resource, (item,))
        check_signature(resource, kind, stored, item.signer.certificate, self._verifier, self.known)
        self._put(resource, item, wall, changes)

    def _merge_generation(
        self, resource: ResourceId, data: StoreKindData, changed: bool, changes: list[RecordChange]
    ) -> None:
        slot = self._holdings.slot(resource, data.kind)
        if slot is None or data.generation >= _MAX_GENERATION:
            return
        if data.generation > slot.generation:
            self._holdings.set_generation(resource, data.kind, data.generation, changes)
        elif changed:
            self._holdings.set_generation(resource, data.kind, slot.generation + 1, changes)

    def _put(self, resource: ResourceId, item: _Incoming, wall: float, changes: list[RecordChange]) -> None:
        """Hold a value that passed every check; it lives from now on for its lifetime (section 7)."""
        kind, key, signer = item.kind.id, item.key, item.signer.certificate
        expires_at = wall + min(item.stored.lifetime, self._limits.max_lifetime)
        old = self._holdings.get(resource, kind, key)
        if old is not None and not item.data.exists:
            expires_at = max(expires_at, old.expires_at)
        expires_at = min(expires_at, signer.not_after)
        until = max(signer.not_after, self._holdings.needed_until(resource, kind, key))
        held = Held(resource, kind, key, item.stored, signer, expires_at, until)
        self._holdings.put(resource, kind, key, held, changes)

    # Time and restart

    def expire(self, wall: float) -> tuple[RecordChange, ...]:
        """Drop the values and marks whose time has come."""
        return tuple(self._holdings.expire(wall))

    def next_expiry(self) -> float | None:
        """The wall time at which `expire` next has something to do."""
        return self._holdings.next_expiry()

    def load(self, rows: Iterable[RecordRow], wall: float) -> tuple[RecordChange, ...]:
        """Take up what a record store kept; returns the changes that tidy it.

        Our own file is believed as to signatures, but not as to certificates: what is no longer trusted is
        left out.  Values that expired while the node was down leave their marks.
        """
        return tuple(self._holdings.load(rows, self._kinds, self._trust, wall))

    # Fetch, Stat, Find (sections 7.4.2 to 7.4.4)

    def fetch(self, request: FetchReq, wall: float) -> tuple[FetchAns, tuple[bytes, ...]]:
        """The answer, and the certificates (DER) of the values' signers for its security block."""
        responses = []
        signers: dict[bytes, bytes] = {}
        for kind, specifier, generation, slot in self._specified(request):
            values = []
            if not _unchanged(specifier, generation):
                for key, held in _select(kind, specifier, slot, wall):
                    if held is None:
                        value = entry_value(kind.data_model, key, _NOTHING)
                        values.append(StoredData(0, 0, value, NO_SIGNATURE))
                    else:
                        values.append(held.remaining(wall))
                        signers[held.signer.hash] = held.signer.der
            responses.append(FetchKindResponse(kind.id, generation, tuple(values)))
        return FetchAns(tuple(responses)), tuple(signers.values())

    def stat(self, request: StatReq, wall: float) -> StatAns:
        """What Fetch would answer, with metadata in place of the values."""
        responses = []
        for kind, specifier, generation, slot in self._specified(request):
            values = []
            if not _unchanged(specifier, generation):
                for key, held in _select(kind, specifier, slot, wall):
                    stored = None if held is None else held.remaining(wall)
                    values.append(_metadata(kind.data_model, key, stored))
            responses.append(StatKindResponse(kind.id, generation, tuple(values)))
        return StatAns(tuple(responses))

    def _specified(self, request: FetchReq | StatReq) -> list[tuple[Kind, StoredDataSpecifier, int, Slot | None]]:
        specifiers = request.specifiers
        kinds = self._known([specifier.kind for specifier in specifiers])
        home = self._holdings.resources.get(request.resource)
        found = []
        for kind, specifier in zip(kinds, specifiers, strict=True):
            slot = None if home is None else home.slots.get(kind.id)
            generation = (
                self._holdings.high_water.generation(request.resource, kind.id) if slot is None else slot.generation
            )
            found.append((kind, specifier, generation, slot))
        return found

    def find(self, request: FindReq, distance: Callable[[bytes, bytes], int]) -> FindAns:
        """For each kind the nearest resource that has a value of it; all zeros if there is none, or no such
        kind.

        Looks at every resource once (about 1 us each), whatever the number of kinds.  That this node is
        responsible for the resource that was asked for is checked before.
        """
        if len(set(request.kinds)) != len(request.kinds):
            raise InvalidMessage("a kind is named twice")
        target = request.resource
        nothing = ResourceId(bytes(len(target)))
        best: dict[int, tuple[int, ResourceId]] = {}
        wanted = [kind for kind in request.kinds if kind in self._kinds]
        for resource, home in self._holdings.resources.items():
            here = [kind for kind in wanted if (slot := home.slots.get(kind)) is not None and slot.present]
            if here:
                candidate = (distance(resource, target), resource)
                for kind in here:
                    if kind not in best or candidate < best[kind]:
                        best[kind] = candidate
        return FindAns(tuple((kind, best[kind][1] if kind in best else nothing) for kind in request.kinds))

    # Replication and anti-entropy

    def records_of(self, resource: ResourceId, wall: float) -> Replica | None:
        """Everything at a resource with its remaining lifetimes, ready for a replica StoreReq; None if
        nothing."""
        batches = self.replica_batches(resource, wall, 1 << 32)
        return batches[0] if batches else None

    def replica_batches(self, resource: ResourceId, wall: float, max_octets: int) -> tuple[Replica, ...]:
        """The same in parts whose values and certificates take at most about `max_octets` each.

        A value that is larger by itself is a part of its own.
        """
        home = self._holdings.resources.get(resource)
        if home is None:
            return ()
        batches: list[Replica] = []
        kinds: dict[int, list[StoredData]] = {}
        signers: dict[bytes, bytes] = {}
        size = 0

        def finish() -> None:
            data = [StoreKindData(k, home.slots[k].generation, tuple(values)) for k, values in kinds.items()]
            batches.append(Replica(resource, tuple(data), tuple(signers.values())))

        for kind, slot in home.slots.items():
            for held in slot.held.values():
                if held.expires_at - wall < 1:
                    continue
                cost = held.size + (0 if held.signer.hash in signers else len(held.signer.der))
                if kinds and size + cost > max_octets:
                    finish()
                    kinds, signers, size = {}, {}, 0
                    cost = held.size + len(held.signer.der)
                kinds.setdefault(kind, []).append(held.remaining(wall))
                signers[held.signer.hash] = held.signer.der
                size += cost
        if kinds:
            finish()
        return tuple(batches)

    def drop_resource(self, resource: ResourceId) -> tuple[RecordChange, ...]:
        """Forget the values at a resource that others hold now.  No marks stay: the values may come back."""
        home = self._holdings.resources.get(resource)
        if home is None:
            return ()
        places = [(kind, key) for kind, slot in home.slots.items() for key in slot.held]
        return tuple(change for place in places for change in self._holdings.remove(resource, *place, mark=False))

    def resource_digest(self, resource: ResourceId) -> bytes:
        """8 octets that are equal on nodes that hold the same values; zeros for nothing.  Kept up to date,
        so free."""
        home = self._holdings.resources.get(resource)
        return bytes(8) if home is None else home.digest.to_bytes(8, "big")

    def digest(self, resources: Iterable[ResourceId]) -> bytes:
        """16 octets for a set of resources in any order: how many are held, and the exclusive or of their
        digests."""
        count = combined = 0
        for resource in resources:
            home = self._holdings.resources.get(resource)
            if home is not None:
                count += 1
                combined ^= home.digest
        return count.to_bytes(8, "big") + combined.to_bytes(8, "big")


def _is_same_element(stored: StoredData, appended: StoredData) -> bool:
    """Whether an element was appended before: the index, which is not signed, does not count."""
    return (
        stored.storage_time == appended.storage_time
        and stored.signature == appended.signature
        and data_of(stored.value) == data_of(appended.value)
    )


def _unchanged(specifier: StoredDataSpecifier, generation: int) -> bool:
    """Whether the requester has seen this generation already (section 7.4.2.1)."""
    return specifier.generation != 0 and specifier.generation == generation


def _select(
    kind: Kind, specifier: StoredDataSpecifier, slot: Slot | None, wall: float
) -> list[tuple[bytes, Held | None]]:
    """The entries that a specifier asks for; None for one that is not there."""
    held = {} if slot is None else slot.held
    keys: Iterable[bytes]
    if kind.data_model is DataModel.DICTIONARY:
        if not specifier.keys:
            return [(key, one) for key, one in held.items() if one.expires_at > wall]
        keys = dict.fromkeys(specifier.keys)
    elif kind.data_model is DataModel.ARRAY:
        keys = _array_keys(kind, specifier, held, wall)
    else:
        keys = (b"",)
    selected: list[tuple[bytes, Held | None]] = []
    for key in keys:
        one = held.get(key)
        selected.append((key, one if one is not None and one.expires_at > wall else None))
    return selected


def _array_keys(kind: Kind, specifier: StoredDataSpecifier, held: Mapping[bytes, Held], wall: float) -> Iterable[bytes]:
    """The indexes in the ranges (no range: all): up to the array's end, or to max-count where a range names
    its end."""
    live = [key for key, one in held.items() if one.expires_at > wall]
    end = int.from_bytes(max(live), "big") + 1 if live else 0
    for first, last in specifier.ranges or ((0, APPEND),):
        stop = end if last == APPEND else min(last + 1, max(end, kind.max_count))
        yield from map(array_key, range(first, stop))


def _metadata(model: DataModel, key: bytes, stored: StoredData | None) -> StoredMetaData:
    """What Stat says of a value; the hash covers the value with its four length octets (section 7.4.3.2)."""
    data = _NOTHING if stored is None else data_of(stored.value)
    octets = len(data.value).to_bytes(4, "big") + data.value
    meta = MetaData(data.exists, len(data.value), HASH_SHA256, sha256(octets).digest())
    value: MetaDataValue = meta
    if model is DataModel.DICTIONARY:
        value = DictionaryEntryMeta(key, meta)
    elif model is DataModel.ARRAY:
        value = ArrayEntryMeta(int.from_bytes(key, "big"), meta)
    if stored is None:
        return StoredMetaData(0, 0, value)
    return StoredMetaData(stored.storage_time, stored.lifetime, value)

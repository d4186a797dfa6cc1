"""The data storage protocol of RFC 6940 section 7: what a peer holds for others. (signatures first)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.records import RecordChange, RecordRow

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate, Trust
    from p2psipd.proto.identity.signing import Verifier
    from p2psipd.proto.reload.kinds import Kind
    from p2psipd.proto.reload.messages import (
        FetchAns,
        FetchReq,
        FindAns,
        FindReq,
        StatAns,
        StatReq,
        StoreAns,
        StoreKindData,
        StoreReq,
    )


class StorageLimits(NamedTuple):
    """Bounds of one node's storage, whatever the overlay's kinds allow."""

    max_bytes: int = 256 * 1024 * 1024
    max_resources: int = 200_000
    max_marks: int = 100_000
    max_lifetime: int = 30 * 86400
    max_ahead: float = 60.0


class StoreResult(NamedTuple):
    """An accepted Store.  The caller puts the replica list into `answer` and hands `changes` to the record store."""

    answer: StoreAns
    changes: tuple[RecordChange, ...]


class RefusedEntry(NamedTuple):
    """One entry of a replica Store that was not taken, and why."""

    kind: int
    key: bytes
    error: ReloadError


class ReplicaResult(NamedTuple):
    """What became of a replica Store, entry by entry.

    `newer` holds our values that are newer than what came: the caller sends them back as a replica Store with
    `newer_certificates`.
    """

    answer: StoreAns
    changes: tuple[RecordChange, ...]
    accepted: int
    newer: tuple[StoreKindData, ...]
    newer_certificates: tuple[bytes, ...]
    refused: tuple[RefusedEntry, ...]


class Replica(NamedTuple):
    """Everything held at a resource, ready for a replica StoreReq, with the certificates that verify it."""

    resource: ResourceId
    kinds: tuple[StoreKindData, ...]
    certificates: tuple[bytes, ...]


class ValueCheck(Protocol):
    """A usage's own rule for a value of its kind; raises a `ReloadError` (Forbidden, say) if it is broken."""

    def __call__(self, resource: ResourceId, key: bytes, value: bytes, signer: NodeCertificate) -> None: ...


class Storage:
    """The values this node holds."""

    def __init__(
        self,
        kinds: Mapping[int, Kind],
        trust: Trust,
        verifier: Verifier,
        limits: StorageLimits | None = None,
        checks: Mapping[int, ValueCheck] | None = None,
    ) -> None: ...

    def reconfigure(self, kinds: Mapping[int, Kind], trust: Trust, wall: float) -> tuple[RecordChange, ...]:
        """A newer configuration document: drops what revoked nodes signed."""

    def store(self, request: StoreReq, signer: NodeCertificate, certificates: Mapping[bytes, bytes],
              wall: float) -> StoreResult:
        """An original Store (replica_number 0).  `certificates`: SHA-256 hash -> DER of the security block."""

    def store_replica(self, request: StoreReq, certificates: Mapping[bytes, bytes], wall: float) -> ReplicaResult:
        """A replica Store, entry by entry."""

    def fetch(self, request: FetchReq, wall: float) -> tuple[FetchAns, tuple[bytes, ...]]:
        """Answer a Fetch; the DER certificates of the values' signers go into the answer's security block."""

    def stat(self, request: StatReq, wall: float) -> StatAns:
        """Answer a Stat."""

    def find(self, request: FindReq, wall: float, distance: Callable[[bytes, bytes], int]) -> FindAns:
        """Answer a Find."""

    def expire(self, wall: float) -> tuple[RecordChange, ...]:
        """Drop what has expired."""

    def next_expiry(self) -> float | None:
        """Wall time at which `expire` next has something to do."""

    def resources(self) -> Iterable[ResourceId]:
        """Resource-IDs under which a value is held."""

    def records_of(self, resource: ResourceId, wall: float) -> Replica | None:
        """All values at a resource with their remaining lifetimes; None if there are none."""

    def drop_resource(self, resource: ResourceId, wall: float) -> tuple[RecordChange, ...]:
        """Forget the values at a resource (others hold it now)."""

    def resource_digest(self, resource: ResourceId) -> bytes:
        """8 octets that are equal on nodes that hold the same values; zeros for nothing."""

    def digest(self, resources: Iterable[ResourceId]) -> bytes:
        """16 octets for a set of resources, whatever their order."""

    def load(self, rows: Iterable[RecordRow], wall: float) -> tuple[RecordChange, ...]:
        """Take up what a record store kept; returns the changes that tidy it."""

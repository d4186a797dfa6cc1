"""What goes into and comes out of `Storage`: its limits, and the results of its methods."""

from __future__ import annotations

from typing import NamedTuple

from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.messages import StoreAns, StoreKindData
from p2psipd.proto.reload.records import RecordChange


class StorageLimits(NamedTuple):
    """Bounds of one node's storage, beside what the kinds allow.

    `max_bytes` of memory, roughly; `max_lifetime` in seconds, to which longer lifetimes are cut (the
    lifetime is not signed); `max_ahead` how many seconds a storage time may be ahead of our clock.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_resources: int = 200_000
    max_marks: int = 100_000
    max_lifetime: int = 30 * 86400
    max_ahead: float = 60.0


class StoreResult(NamedTuple):
    """An accepted Store.  The caller puts the replicas into `answer` and gives `changes` to the record
    store."""

    answer: StoreAns
    changes: tuple[RecordChange, ...]


class RefusedEntry(NamedTuple):
    """One entry of a replica Store that was not taken, and why."""

    kind: int
    key: bytes
    error: ReloadError


class ReplicaResult(NamedTuple):
    """What became of a replica Store, entry by entry.

    `accepted` values were new to us.  `newer` holds our values that are newer than what came: the caller
    sends them back as a replica Store, with `newer_certificates` in its security block.  Values that we
    hold already count as neither.  The answer is a StoreAns whatever was refused, for `kinds` that are
    known here.
    """

    answer: StoreAns
    changes: tuple[RecordChange, ...]
    accepted: int
    newer: tuple[StoreKindData, ...]
    newer_certificates: tuple[bytes, ...]
    refused: tuple[RefusedEntry, ...]


class Replica(NamedTuple):
    """Values held at a resource, ready for a replica StoreReq, with the certificates (DER) that verify
    them."""

    resource: ResourceId
    kinds: tuple[StoreKindData, ...]
    certificates: tuple[bytes, ...]


class HeldEntry(NamedTuple):
    """One held value as an operator sees it; `lifetime` in seconds is what remains, `size` the value's
    octets."""

    resource: ResourceId
    kind: int
    generation: int
    key: bytes
    exists: bool
    size: int
    storage_time: int
    lifetime: int
    user: str

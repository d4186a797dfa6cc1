"""An overlay in miniature for storage tests: one authority, certificates of every role, values signed by
anyone."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

from p2psipd.proto.identity.certificate import (
    Authority,
    Role,
    Trust,
    create_authority,
    generate_private_key,
    parse_certificate,
    role_name,
)
from p2psipd.proto.identity.signing import Credential, RealVerifier
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.kinds import STANDARD_KINDS, USER_MATCH, Kind
from p2psipd.proto.reload.messages import (
    ArrayEntry,
    DataModel,
    DataValue,
    DictionaryEntry,
    StoredData,
    StoredDataValue,
    StoreKindData,
    StoreReq,
)
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.records import (
    DropCertificate,
    DropGeneration,
    DropMark,
    DropRecord,
    PutCertificate,
    PutGeneration,
    PutMark,
    PutRecord,
    RecordChange,
    RecordRow,
)
from p2psipd.proto.reload.storage import ReplicaResult, Storage, StorageLimits, StoreResult
from p2psipd.proto.reload.values import sign_value

WALL = 1_800_000_000.0
NOW_MS = int(WALL * 1000)
OVERLAY = "overlay.example"
DAY = 86400.0

# Three kinds with small limits, of each data model, that only their user may write.
SINGLE, ARRAY, DICTIONARY = 0xF1000001, 0xF1000002, 0xF1000003
KINDS = {
    **STANDARD_KINDS,
    SINGLE: Kind(SINGLE, "SINGLE", DataModel.SINGLE, USER_MATCH, 1, 100),
    ARRAY: Kind(ARRAY, "ARRAY", DataModel.ARRAY, USER_MATCH, 4, 100),
    DICTIONARY: Kind(DICTIONARY, "DICTIONARY", DataModel.DICTIONARY, USER_MATCH, 3, 100),
}
CONFIGURATION = OverlayConfiguration(overlay_name=OVERLAY, kinds=KINDS)

ALICE = "alice@overlay.example"
AT_ALICE = resource_id(ALICE)


@cache
def authority(name: str) -> Authority:
    """An overlay's certificate authority."""
    return create_authority(name, WALL - 100 * DAY)


def node_id(number: int) -> bytes:
    """A Node-ID for tests."""
    return sha256(b"node %d" % number).digest()[:16]


def credential(
    user: str | Role = ALICE, number: int = 1, days: float = 10, issued: float = WALL, overlay: str = OVERLAY
) -> Credential:
    """A certificate of the overlay for a user name or role, with its key; the same one for the same
    arguments."""
    return _credential(user, number, days, issued, overlay)


@cache
def _credential(user: str | Role, number: int, days: float, issued: float, overlay: str) -> Credential:
    key = generate_private_key()
    own = node_id(number)
    name = role_name(user, own, overlay) if isinstance(user, Role) else user
    der = authority(overlay).issue(key.public_key(), own, name, issued, days * DAY)
    return Credential(parse_certificate(der), key)


def trust(*revoked: bytes) -> Trust:
    """Who is trusted in the overlay."""
    return Trust([authority(OVERLAY).certificate], OVERLAY, revoked)


def data(value: bytes | None) -> DataValue:
    """A DataValue; None: nonexistent."""
    return DataValue(value is not None, value or b"")


def entry(kind: int, value: bytes | None, key: bytes | int | None = None) -> StoredDataValue:
    """A value of the data model that `kind` has."""
    model = KINDS[kind].data_model
    if model is DataModel.DICTIONARY:
        assert isinstance(key, bytes)
        return DictionaryEntry(key, data(value))
    if model is DataModel.ARRAY:
        assert isinstance(key, int)
        return ArrayEntry(key, data(value))
    return data(value)


def signed(
    kind: int,
    value: bytes | None,
    key: bytes | int | None = None,
    *,
    by: Credential | None = None,
    at: int = NOW_MS,
    lifetime: int = 3600,
    resource: ResourceId = AT_ALICE,
) -> StoredData:
    """A value signed by `by` (alice) with storage time `at`."""
    owner = credential() if by is None else by
    return sign_value(resource, kind, entry(kind, value, key), at, lifetime, owner.certificate, owner.sign)


def request(
    *values: tuple[int, StoredData],
    generation: int = 0,
    resource: ResourceId = AT_ALICE,
    replica: int = 0,
) -> StoreReq:
    """A StoreReq with (kind, value) pairs, all kinds with the same generation."""
    kinds: dict[int, list[StoredData]] = {}
    for kind, stored in values:
        kinds.setdefault(kind, []).append(stored)
    parts = [StoreKindData(kind, generation, tuple(stored)) for kind, stored in kinds.items()]
    return StoreReq(resource, replica, tuple(parts))


def certificates(*owners: Credential) -> dict[bytes, bytes]:
    """What a security block with these certificates holds."""
    return {one.certificate.hash: one.certificate.der for one in owners or (credential(),)}


class Holder:
    """A peer's storage with short ways to use it."""

    def __init__(self, limits: StorageLimits | None = None) -> None:
        self.storage = Storage(CONFIGURATION, trust(), RealVerifier(), limits)

    def store(
        self,
        *values: tuple[int, StoredData],
        generation: int = 0,
        by: Credential | None = None,
        owners: tuple[Credential, ...] = (),
        resource: ResourceId = AT_ALICE,
        wall: float = WALL,
    ) -> StoreResult:
        """An original Store sent by `by` (alice), with the certificates of `owners` (the sender's)."""
        sender = credential() if by is None else by
        return self.storage.store(
            request(*values, generation=generation, resource=resource),
            sender.certificate,
            certificates(*(owners or (sender,))),
            wall,
        )

    def replicate(
        self,
        *values: tuple[int, StoredData],
        generation: int = 1,
        owners: tuple[Credential, ...] = (),
        resource: ResourceId = AT_ALICE,
        wall: float = WALL,
    ) -> ReplicaResult:
        """A replica Store."""
        message = request(*values, generation=generation, resource=resource, replica=1)
        return self.storage.store_replica(message, certificates(*owners), wall)


class Disk:
    """A record store in memory: keeps what the changes say."""

    def __init__(self) -> None:
        self.rows: dict[tuple[type, object], RecordRow] = {}

    def write(self, changes: tuple[RecordChange, ...]) -> None:
        """Apply changes as a record store does."""
        drops = {
            DropRecord: PutRecord, DropGeneration: PutGeneration, DropMark: PutMark, DropCertificate: PutCertificate
        }  # fmt: skip
        for change in changes:
            if isinstance(change, PutRecord | PutMark):
                self.rows[type(change), tuple(change[:3])] = change
            elif isinstance(change, PutGeneration):
                self.rows[PutGeneration, tuple(change[:2])] = change
            elif isinstance(change, PutCertificate):
                self.rows[PutCertificate, (change.hash,)] = change
            else:
                self.rows.pop((drops[type(change)], tuple(change)))

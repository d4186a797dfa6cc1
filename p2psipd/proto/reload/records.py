"""What the storage core asks to be made durable, and what it takes back after a restart.

`Storage` lives in memory; each of its methods that changes something returns `RecordChange` objects, and
the record store (`store.sqlite`) writes them behind.  All of them are plain values, all times in them are
wall time (Unix seconds), so that they mean the same after a restart.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2psipd.proto.reload.ids import ResourceId

SINGLE_KEY: Final = b""
"""The entry key of a single value.  An array entry's is its index as four big-endian octets, a dictionary
entry's the dictionary key itself."""


def array_key(index: int) -> bytes:
    """The entry key of the array element at `index`."""
    return index.to_bytes(4, "big")


class PutRecord(NamedTuple):
    """Insert or replace one stored value.

    `signer` is the SHA-256 hash of the signer's certificate; the certificate itself travels once, as
    `PutCertificate`.  `expires_at` already includes what the lifetime said when the value came. `until` is
    how long its high-water mark will be needed afterwards.  `identity` is the hash in the SignerIdentity if
    that is of type cert_hash_node_id, empty for cert_hash.
    """

    resource: ResourceId
    kind: int
    key: bytes
    storage_time: int
    expires_at: float
    until: float
    exists: bool
    value: bytes
    signer: bytes
    identity: bytes
    hash_algorithm: int
    signature_algorithm: int
    signature: bytes


class DropRecord(NamedTuple):
    """A stored value is gone: expired, handed over, or its signer was revoked."""

    resource: ResourceId
    kind: int
    key: bytes


class PutGeneration(NamedTuple):
    """The generation counter of a kind at a resource."""

    resource: ResourceId
    kind: int
    generation: int


class DropGeneration(NamedTuple):
    """Nothing is left that the generation counter could protect."""

    resource: ResourceId
    kind: int


class PutMark(NamedTuple):
    """A high-water mark: the entry is gone, but nothing with a storage time up to `storage_time` may come
    back.

    Needed until `until`, when the last certificate that signed the entry has expired.
    """

    resource: ResourceId
    kind: int
    key: bytes
    storage_time: int
    until: float


class DropMark(NamedTuple):
    """A high-water mark is no longer needed."""

    resource: ResourceId
    kind: int
    key: bytes


class PutCertificate(NamedTuple):
    """The certificate of a value's signer, by its SHA-256 hash."""

    hash: bytes
    der: bytes


class DropCertificate(NamedTuple):
    """No stored value is signed by this certificate any more."""

    hash: bytes


RecordChange = (
    PutRecord
    | DropRecord
    | PutGeneration
    | DropGeneration
    | PutMark
    | DropMark
    | PutCertificate
    | DropCertificate
)
RecordRow = PutRecord | PutGeneration | PutMark | PutCertificate
"""What `Storage.load` takes: the rows that a record store kept are the very objects that created them."""

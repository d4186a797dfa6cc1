"""Stored values one by one: whose they are, whether they are genuine, and how a reader checks an answer.

What a holder and a reader have in common (RFC 6940 sections 7.1 and 7.4.2.2): the signer of a value is
found by its SignerIdentity among the certificates that came along, the certificate is trusted now, its
owner may write this kind at this resource, and the signature holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b, sha256
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, remember
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage, ReloadError
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.kinds import Kind, StorageRules, check_access
from p2psipd.proto.reload.messages import (
    ArrayEntry,
    DataModel,
    DataValue,
    DictionaryEntry,
    FetchAns,
    StoredData,
    StoredDataValue,
)
from p2psipd.proto.reload.records import SINGLE_KEY, array_key
from p2psipd.proto.reload.security import (
    CERT_HASH,
    CERT_HASH_NODE_ID,
    HASH_NONE,
    HASH_SHA256,
    IDENTITY_NONE,
    SIGNATURE_ANONYMOUS,
    Signature,
    SignerIdentity,
    value_signature_input,
)

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import TrustPolicy
    from p2psipd.proto.identity.signing import Verifier

# A value signed under a certificate with several Node-IDs is searched for among the certificates of the
# message; more than this many are not looked at, so that a message full of certificates costs no more than
# an honest one.
_MAX_CERTIFICATES_SEARCHED: Final = 32
_ENTRY: Final = Struct(">IHQ")
_SIGNATURES_KNOWN: Final = 1000


class StorageConfiguration(StorageRules, Protocol):
    """What storage needs of the overlay's configuration; `OverlayConfiguration` is one."""

    @property
    def kinds(self) -> Mapping[int, Kind]:
        """The kinds of the overlay, by Kind-ID."""
        ...


class Signer(NamedTuple):
    """Who signed: a certificate whose form is right, and the one of its Node-IDs that the signature
    indicates."""

    certificate: NodeCertificate
    node_id: bytes


def entry_key(value: StoredDataValue) -> bytes:
    """The key of a value within its kind: see `records.SINGLE_KEY`."""
    if isinstance(value, DictionaryEntry):
        return value.key
    if isinstance(value, ArrayEntry):
        return array_key(value.index)
    return SINGLE_KEY


def entry_value(model: DataModel, key: bytes, data: DataValue) -> StoredDataValue:
    """The inverse of `entry_key`; ValueError if the key does not fit the model."""
    if model is DataModel.DICTIONARY:
        return DictionaryEntry(key, data)
    if model is DataModel.ARRAY:
        if len(key) != 4:
            raise ValueError("the key of an array entry has 4 octets")
        return ArrayEntry(int.from_bytes(key, "big"), data)
    if key:
        raise ValueError("a single value has no key")
    return data


def data_of(value: StoredDataValue) -> DataValue:
    """The DataValue inside a value of any model."""
    return value if isinstance(value, DataValue) else value.value


def fits_model(value: StoredDataValue, model: DataModel) -> bool:
    """Whether a value has the form of its kind's data model."""
    if model is DataModel.DICTIONARY:
        return isinstance(value, DictionaryEntry)
    if model is DataModel.ARRAY:
        return isinstance(value, ArrayEntry)
    return isinstance(value, DataValue)


def signer_identity(certificate: NodeCertificate, node_id: bytes | None = None) -> SignerIdentity:
    """How a signature by `certificate` names its signer (RFC 6940 section 6.3.4)."""
    if len(certificate.node_ids) == 1:
        return SignerIdentity(CERT_HASH, HASH_SHA256, certificate.hash)
    indicated = certificate.node_ids[0] if node_id is None else node_id
    return SignerIdentity(CERT_HASH_NODE_ID, HASH_SHA256, sha256(indicated + certificate.der).digest())


def is_unsigned(signature: Signature) -> bool:
    """Whether a signature has one of the special values that only synthesized data may have."""
    return (
        signature.identity.type == IDENTITY_NONE
        or signature.hash_algorithm == HASH_NONE
        or signature.signature_algorithm == SIGNATURE_ANONYMOUS
    )


class SignerFinder:
    """Finds signers among the certificates of one message, and trusts them, at one instant.

    `certificates` maps the SHA-256 of the DER to the DER.  Each signer is looked for once, found or not, so
    that a message full of values costs one check of each certificate.
    """

    __slots__ = ("_certificates", "_found", "_trust", "_wall")

    def __init__(self, certificates: Mapping[bytes, bytes], trust: TrustPolicy, wall: float) -> None:
        self._certificates = certificates
        self._trust = trust
        self._wall = wall
        self._found: dict[SignerIdentity, Signer | str] = {}

    def find(self, identity: SignerIdentity) -> Signer:
        """The signer that `identity` names.

        `Forbidden` if its certificate did not come along or is not valid now, or if the identity's type is
        not the one that the certificate's number of Node-IDs demands (section 6.3.4).
        """
        found = self._found.get(identity)
        if found is None:
            found = self._found[identity] = self._look(identity)
        if isinstance(found, str):
            raise Forbidden(found)
        return found

    def _look(self, identity: SignerIdentity) -> Signer | str:
        if identity.hash_algorithm != HASH_SHA256:
            return f"the signer's certificate is named by hash {identity.hash_algorithm}, not SHA-256"
        if identity.type != CERT_HASH:
            return self._look_by_node(identity.certificate_hash)
        der = self._certificates.get(identity.certificate_hash)
        if der is None:
            return "the signer's certificate did not come along"
        try:
            certificate = self._check(der)
        except CertificateError as error:
            return f"the signer's certificate: {error.detail}"
        if len(certificate.node_ids) != 1:
            return "a certificate with several Node-IDs is named by type cert_hash_node_id"
        return Signer(certificate, certificate.node_ids[0])

    def _look_by_node(self, wanted: bytes) -> Signer | str:
        for _, der in zip(range(_MAX_CERTIFICATES_SEARCHED), self._certificates.values(), strict=False):
            try:
                certificate = self._check(der)
            except CertificateError:
                continue  # an authority's certificate, say
            if len(certificate.node_ids) > 1:
                for node_id in certificate.node_ids:
                    if sha256(node_id + der).digest() == wanted:
                        return Signer(certificate, node_id)
        return "the signer's certificate did not come along, or is not valid"

    def _check(self, der: bytes) -> NodeCertificate:
        return self._trust.check(der, self._wall, tuple(self._certificates.values()))


def check_form(kind: Kind, stored: StoredData) -> DataValue:
    """What can be judged from a value alone: `Forbidden` for an unsigned one, `InvalidMessage` for a wrong
    form.

    A nonexistent value is empty (section 7.4.1.3).  A value that fails this could never have been stored.
    """
    if is_unsigned(stored.signature):
        raise Forbidden(f"{kind.name}: an unsigned value; only synthesized data has no signature")
    if not fits_model(stored.value, kind.data_model):
        raise InvalidMessage(f"{kind.name}: the value is not of data model {kind.data_model.value}")
    data = data_of(stored.value)
    if data.value and not data.exists:
        raise InvalidMessage(f"{kind.name}: a nonexistent value with {len(data.value)} octets")
    return data


class KnownSignatures:
    """Signatures on values that this node made or has verified: these exact octets, under this exact certificate.

    A value comes again as its own copy and in answers to reads; the arithmetic need not be done again.  Whether its
    signer is still trusted and whether it has run out is not remembered, but judged each time.
    """

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int = _SIGNATURES_KNOWN) -> None:
        self._limit = limit
        self._known: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, certificate: NodeCertificate, signature: Signature, signed: bytes) -> None:
        """`signature` over `signed` by `certificate` is good."""
        remember(self._known, _token(certificate, signature, signed), None, self._limit)

    def verify(self, certificate: NodeCertificate, signature: Signature, signed: bytes, verifier: Verifier) -> bool:
        """Whether it is good: known, or verified now and known from now on."""
        token = _token(certificate, signature, signed)
        if token in self._known:
            return True
        hash_algorithm, signature_algorithm, _, value = signature
        if not verifier.verify(certificate, hash_algorithm, signature_algorithm, signed, value):
            return False
        remember(self._known, token, None, self._limit)
        return True


def _token(certificate: NodeCertificate, signature: Signature, signed: bytes) -> bytes:
    """What stands for all that a verification depends on; every part has its length or a fixed one."""
    hash_algorithm, signature_algorithm, _, value = signature
    head = bytes((hash_algorithm, signature_algorithm)) + len(value).to_bytes(2, "big")
    return blake2b(b"".join((certificate.hash, head, value, signed)), digest_size=32).digest()


def check_signature(
    resource: ResourceId,
    kind: Kind,
    stored: StoredData,
    certificate: NodeCertificate,
    verifier: Verifier,
    known: KnownSignatures,
) -> None:
    """`Forbidden` unless the signature on the value holds (section 7.1): the dear part, so the last one."""
    signature = stored.signature
    signed = value_signature_input(
        resource,
        kind.id,
        stored.storage_time,
        stored.value.encode_for_signature(),
        signature.identity.encode(),
    )
    if not known.verify(certificate, signature, signed, verifier):
        raise Forbidden(f"{kind.name}: wrong signature on the value by {certificate.user}")


def entry_digest(resource: ResourceId, kind: int, key: bytes, stored: StoredData) -> int:
    """64 bits that two holders of the same value agree on: identity of the entry, storage time and signature.

    Lifetime is left out (it runs), generation too (it is a counter of the holder).
    """
    head = _ENTRY.pack(kind, len(key), stored.storage_time)
    octets = b"".join((resource, head, key, stored.signature.value))
    return int.from_bytes(blake2b(octets, digest_size=8).digest(), "big")


def supersedes(new: StoredData, old: StoredData) -> bool:
    """Whether a replica's value replaces another one: the later storage time wins (section 7.4.1.1).

    Of two values with the same storage time the one with the greater signature wins, so that all holders
    end up with the same one whatever the order in which they saw them.
    """
    if new.storage_time != old.storage_time:
        return new.storage_time > old.storage_time
    return new.signature.value > old.signature.value


def sign_value(
    resource: ResourceId,
    kind: int,
    value: StoredDataValue,
    storage_time: int,
    lifetime: int,
    certificate: NodeCertificate,
    sign: SignFunction,
    node_id: bytes | None = None,
    known: KnownSignatures | None = None,
) -> StoredData:
    """A value ready for a StoreReq, signed as section 7.1 says.

    `storage_time` in milliseconds since 1970, `lifetime` in seconds; `sign` is the credential's method, and `known`
    gets the signature to know it by.
    """
    identity = signer_identity(certificate, node_id)
    signed = value_signature_input(
        resource, kind, storage_time, value.encode_for_signature(), identity.encode()
    )
    hash_algorithm, signature_algorithm, octets = sign(signed)
    signature = Signature(hash_algorithm, signature_algorithm, identity, octets)
    if known is not None:
        known.add(certificate, signature, signed)
    return StoredData(storage_time, lifetime, value, signature)


class SignFunction(Protocol):
    """`Credential.sign` and its like: hash algorithm, signature algorithm and the signature over `data`."""

    def __call__(self, data: bytes, /) -> tuple[int, int, bytes]: ...


# Reading an answer


class VerifiedValue(NamedTuple):
    """A value from an answer whose signature, signer and policy were checked.

    `exists` false: the owner removed it, and the removal is as genuine as a value.  `lifetime` is what
    remains.
    """

    kind: int
    key: bytes
    exists: bool
    value: bytes
    storage_time: int
    lifetime: int
    signer: NodeCertificate
    stored: StoredData


class RejectedValue(NamedTuple):
    """A value from an answer that must not be used (section 7.4.2.2), and why."""

    kind: int
    key: bytes
    error: ReloadError


class VerifiedAnswer(NamedTuple):
    """What a FetchAns is worth: `partial` answers had values that were discarded.

    `generations` has every kind of the answer; of an entry that comes twice only the newest is in `values`.
    """

    values: tuple[VerifiedValue, ...]
    rejected: tuple[RejectedValue, ...]
    generations: Mapping[int, int]

    @property
    def partial(self) -> bool:
        """Whether something was discarded, which section 7.4.2.2 wants told."""
        return bool(self.rejected)


class FreshnessGuard:
    """The highest storage time that this reader has seen of each entry, bounded (RFC 6940 section 13.5.3).

    A value older than one seen before is a roll-back, whoever signed it.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._seen: OrderedDict[tuple[bytes, int, bytes], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def newest(self, resource: ResourceId, kind: int, key: bytes) -> int:
        """The highest storage time seen of an entry, -1 for none."""
        return self._seen.get((resource, kind, key), -1)

    def admit(self, resource: ResourceId, kind: int, key: bytes, storage_time: int) -> bool:
        """Remember the value; False if a newer one of the same entry was seen before."""
        seen = self._seen
        entry = (resource, kind, key)
        known = seen.pop(entry, -1)
        seen[entry] = max(known, storage_time)
        if len(seen) > self._limit:
            seen.popitem(last=False)
        return storage_time >= known


def verify_fetched(
    resource: ResourceId,
    answer: FetchAns,
    certificates: Mapping[bytes, bytes],
    configuration: StorageConfiguration,
    trust: TrustPolicy,
    verifier: Verifier,
    wall: float,
    guard: FreshnessGuard | None = None,
    signatures: KnownSignatures | None = None,
) -> VerifiedAnswer:
    """Check every value of a FetchAns as a reader must (section 7.4.2.2).

    Synthesized values ("nothing here") are no values and appear nowhere.  Everything wrong is in
    `rejected`, nothing is raised.  `guard` adds the check against roll-back; `signatures` are those that need no
    arithmetic.
    """
    if signatures is None:
        signatures = KnownSignatures()
    values: dict[tuple[int, bytes], VerifiedValue] = {}
    rejected: list[RejectedValue] = []
    generations: dict[int, int] = {}
    signers = SignerFinder(certificates, trust, wall)
    for response in answer.kinds:
        generations[response.kind] = response.generation
        kind = configuration.kinds.get(response.kind)
        for stored in response.values:
            key = entry_key(stored.value)
            if not data_of(stored.value).exists and is_unsigned(stored.signature):
                continue
            try:
                if kind is None:
                    raise InvalidMessage(f"kind {response.kind:#x} is not known")
                found = _verify_one(resource, kind, key, stored, signers, configuration, verifier, signatures)
                if guard is not None and not guard.admit(resource, kind.id, key, stored.storage_time):
                    raise Forbidden(f"{kind.name}: older than a value seen before")
            except ReloadError as error:
                rejected.append(RejectedValue(response.kind, key, error))
                continue
            known = values.get((kind.id, key))
            if known is None or supersedes(stored, known.stored):
                values[kind.id, key] = found
    return VerifiedAnswer(tuple(values.values()), tuple(rejected), generations)


def _verify_one(
    resource: ResourceId,
    kind: Kind,
    key: bytes,
    stored: StoredData,
    signers: SignerFinder,
    rules: StorageRules,
    verifier: Verifier,
    known: KnownSignatures,
) -> VerifiedValue:
    data = check_form(kind, stored)
    certificate, node_id = signers.find(stored.signature.identity)
    check_access(kind, resource, certificate, stored.value, rules, node_id=node_id)
    check_signature(resource, kind, stored, certificate, verifier, known)
    storage_time, lifetime, _, _ = stored
    return VerifiedValue(
        kind.id, key, data.exists, data.value, storage_time, lifetime, certificate, stored
    )

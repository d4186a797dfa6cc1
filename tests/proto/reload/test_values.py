"""What a reader makes of an answer, and how signers are found."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import parse_certificate
from p2psipd.proto.identity.signing import (
    Credential,
    NullCredential,
    NullTrust,
    NullVerifier,
    RealVerifier,
    null_certificate,
)
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage
from p2psipd.proto.reload.messages import (
    ArrayEntry,
    DataModel,
    DataValue,
    DictionaryEntry,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    StoredData,
    StoredDataSpecifier,
)
from p2psipd.proto.reload.security import (
    CERT_HASH,
    CERT_HASH_NODE_ID,
    HASH_SHA1,
    HASH_SHA256,
    NO_SIGNATURE,
    SignerIdentity,
    value_signature_input,
)
from p2psipd.proto.reload.storage import Storage
from p2psipd.proto.reload.values import (
    FreshnessGuard,
    KnownSignatures,
    SignerFinder,
    VerifiedAnswer,
    entry_key,
    entry_value,
    sign_value,
    signer_identity,
    verify_fetched,
)
from tests.proto.identity.certificates import KEY, email, odd_certificate, uri
from tests.proto.reload.storage_world import (
    ALICE,
    ARRAY,
    AT_ALICE,
    CONFIGURATION,
    DICTIONARY,
    NOW_MS,
    OVERLAY,
    SINGLE,
    WALL,
    Holder,
    authority,
    certificates,
    credential,
    node_id,
    request,
    signed,
    trust,
)


def answer(*values: tuple[int, StoredData], generation: int = 1) -> FetchAns:
    """A FetchAns with (kind, value) pairs."""
    kinds = [FetchKindResponse(kind, generation, (stored,)) for kind, stored in values]
    return FetchAns(tuple(kinds))


def read(fetched: FetchAns, ders: dict[bytes, bytes] | None = None, guard: FreshnessGuard | None = None,
         wall: float = WALL) -> VerifiedAnswer:  # fmt: skip
    """What a reader accepts of an answer."""
    known = certificates() if ders is None else ders
    return verify_fetched(AT_ALICE, fetched, known, CONFIGURATION, trust(), RealVerifier(), wall, guard)


def test_fetched_values_are_verified_end_to_end() -> None:
    """What a holder answers, a reader verifies with nothing but the answer's certificates."""
    holder = Holder()
    holder.store(
        (SINGLE, signed(SINGLE, b"v", lifetime=100)),
        (ARRAY, signed(ARRAY, b"a", 0xFFFFFFFF)),
        (DICTIONARY, signed(DICTIONARY, None, b"k")),
    )
    specifiers = tuple(StoredDataSpecifier(kind, keys=(b"k", b"missing")) for kind in (SINGLE, ARRAY, DICTIONARY))
    fetched, ders = holder.storage.fetch(FetchReq(AT_ALICE, specifiers), WALL + 1)
    result = read(fetched, {sha256(der).digest(): der for der in ders})
    assert [(value.kind, value.key, value.exists, value.value) for value in result.values] == [
        (SINGLE, b"", True, b"v"),
        (ARRAY, b"\0\0\0\0", True, b"a"),
        (DICTIONARY, b"k", False, b""),
    ]
    assert result.values[0].lifetime == 99 and result.values[0].signer == credential().certificate
    assert result.generations == {SINGLE: 1, ARRAY: 1, DICTIONARY: 1} and not result.partial


def test_bad_values_are_dropped_and_reported() -> None:
    """Wrong signature, unknown signer, wrong policy, wrong model, unknown kind, unsigned existence: each is
    discarded and reported, the good value beside them is returned."""
    bob = credential("bob@overlay.example", 2)
    good = (DICTIONARY, signed(DICTIONARY, b"v", b"good"))
    bad = [
        (DICTIONARY, signed(DICTIONARY, b"v", b"1")._replace(storage_time=5)),
        (DICTIONARY, signed(DICTIONARY, b"v", b"2", by=credential(ALICE, 9))),
        (DICTIONARY, signed(DICTIONARY, b"v", b"3", by=bob)),
        (DICTIONARY, signed(SINGLE, b"v")),
        (0xF1FFFFF1, signed(SINGLE, b"v")),
        (DICTIONARY, signed(DICTIONARY, b"v", b"5")._replace(signature=NO_SIGNATURE)),
    ]
    result = read(answer(good, *bad), certificates(credential(), bob))
    assert [value.key for value in result.values] == [b"good"]
    assert [type(one.error) for one in result.rejected] == [
        Forbidden, Forbidden, Forbidden, InvalidMessage, InvalidMessage, Forbidden
    ]  # fmt: skip
    assert result.partial


def test_a_known_signature_is_one_of_these_octets_under_this_certificate() -> None:
    """What was verified, or signed here, is not verified again; anything that differs in one place is."""
    counted: list[bytes] = []

    class Counting(RealVerifier):
        def verify(self, certificate: Any, hash_algorithm: int, algorithm: int, data: bytes, value: bytes) -> bool:
            counted.append(data)
            return super().verify(certificate, hash_algorithm, algorithm, data, value)

    known, bob = KnownSignatures(limit=3), credential("bob@overlay.example", 2).certificate
    signer = credential()
    good = sign_value(
        AT_ALICE, SINGLE, DataValue(True, b"v"), NOW_MS, 60, signer.certificate, signer.sign, known=known
    )
    data = value_signature_input(
        AT_ALICE, SINGLE, NOW_MS, good.value.encode_for_signature(), good.signature.identity.encode()
    )
    verifier = Counting()
    assert known.verify(signer.certificate, good.signature, data, verifier) and not counted
    altered = good.signature.value[:-1] + bytes((good.signature.value[-1] ^ 1,))
    for certificate, signature, octets in (
        (bob, good.signature, data),
        (signer.certificate, good.signature, data + b"x"),
        (signer.certificate, good.signature._replace(value=altered), data),
        (signer.certificate, good.signature._replace(hash_algorithm=2), data),
    ):
        assert not known.verify(certificate, signature, octets, verifier)
        assert not known.verify(certificate, signature, octets, verifier)
    assert len(counted) == 8 and len(known) == 1
    for extra in range(5):
        known.add(bob, good.signature, bytes((extra,)))
    assert len(known) == 3
    assert known.verify(signer.certificate, good.signature, data, verifier) and len(counted) == 9


def test_expiry_is_judged_though_the_signature_is_known() -> None:
    """A value whose signer's certificate has ended since it was verified is refused."""
    known, fetched = KnownSignatures(), answer((SINGLE, signed(SINGLE, b"v")))
    late = credential().certificate.not_after + 1
    for wall, good in ((WALL, 1), (WALL, 1), (late, 0)):
        result = verify_fetched(
            AT_ALICE, fetched, certificates(), CONFIGURATION, trust(), RealVerifier(), wall, signatures=known
        )
        assert len(result.values) == good and len(result.rejected) == 1 - good


def test_synthesized_values_are_no_values() -> None:
    """An unsigned nonexistent value says that the holder knows nothing: neither a value nor a fault."""
    nothing = StoredData(0, 0, DictionaryEntry(b"k", DataValue(False, b"")), NO_SIGNATURE)
    result = read(answer((DICTIONARY, nothing)))
    assert result.values == () and not result.partial


def test_value_of_an_expired_certificate_is_discarded() -> None:
    """The current time is compared to the certificate's validity (section 7.1)."""
    assert read(answer((SINGLE, signed(SINGLE, b"v"))), wall=WALL + 11 * 86400).partial


def test_newest_of_an_entry_wins() -> None:
    """Of one entry twice in an answer the value with the latest storage time counts."""
    old, new = (SINGLE, signed(SINGLE, b"old")), (SINGLE, signed(SINGLE, b"new", at=NOW_MS + 1))
    assert [value.value for value in read(answer(old, new)).values] == [b"new"]
    assert [value.value for value in read(answer(new, old)).values] == [b"new"]


def test_reader_notices_a_roll_back() -> None:
    """A value older than one seen before is discarded (section 13.5.3); the memory for that is bounded."""
    guard = FreshnessGuard(limit=3)
    old, new = (SINGLE, signed(SINGLE, b"old")), (SINGLE, signed(SINGLE, b"new", at=NOW_MS + 1))
    assert read(answer(new), guard=guard).values
    assert read(answer(new), guard=guard).values
    assert read(answer(old), guard=guard).partial
    for i in range(10):
        guard.admit(AT_ALICE, DICTIONARY, bytes([i]), 1)
    assert len(guard) == 3


@given(st.sampled_from(DataModel), st.binary(max_size=8), st.booleans(), st.binary(max_size=8))
def test_entry_keys_round_trip(model: DataModel, key: bytes, exists: bool, octets: bytes) -> None:
    """entry_value is the inverse of entry_key, and refuses only keys that no value of the model has."""
    data = DataValue(exists, octets)
    try:
        value = entry_value(model, key, data)
    except ValueError:
        assert (model, len(key) == 4) in ((DataModel.ARRAY, False), (DataModel.SINGLE, len(key) == 4))
        return
    assert entry_key(value) == key
    assert isinstance(value, {"SINGLE": DataValue, "ARRAY": ArrayEntry, "DICTIONARY": DictionaryEntry}[model.value])


def several_ids() -> Credential:
    """A user's certificate with two Node-IDs, as another authority may give; ours gives only one."""
    names = [uri(node_id(7)), uri(node_id(8)), email(ALICE)]
    return Credential(parse_certificate(odd_certificate(authority=authority(OVERLAY), names=names)), KEY)


def test_certificate_with_several_node_ids() -> None:
    """Its signer is named by H(Node-ID || certificate), and only so (section 6.3.4)."""
    certificate = several_ids().certificate
    der = certificate.der
    finder = SignerFinder({certificate.hash: der, **certificates()}, trust(), WALL)
    for node in certificate.node_ids:
        identity = signer_identity(certificate, node)
        assert identity == SignerIdentity(CERT_HASH_NODE_ID, HASH_SHA256, sha256(node + der).digest())
        assert finder.find(identity) == (certificate, node)
    for wrong in (
        SignerIdentity(CERT_HASH, HASH_SHA256, certificate.hash),
        SignerIdentity(CERT_HASH_NODE_ID, HASH_SHA256, sha256(node_id(9) + der).digest()),
        SignerIdentity(CERT_HASH, HASH_SHA1, certificate.hash),
    ):
        with pytest.raises(Forbidden):
            finder.find(wrong)


def test_value_under_several_node_ids_survives_a_restart() -> None:
    """A value signed under one of several Node-IDs is stored, written and taken up with the same identity."""
    owner = several_ids()
    value = entry_value(DataModel.SINGLE, b"", DataValue(True, b"v"))
    stored = sign_value(AT_ALICE, SINGLE, value, NOW_MS, 60, owner.certificate, owner.sign, node_id(8))
    storage = Storage(CONFIGURATION, trust(), RealVerifier())
    changes = storage.store(request((SINGLE, stored)), owner.certificate, certificates(owner), WALL, node_id(8)).changes
    again = Storage(CONFIGURATION, trust(), RealVerifier())
    again.load(changes, WALL)  # type: ignore[arg-type]
    fetched, _ = again.fetch(FetchReq(AT_ALICE, (StoredDataSpecifier(SINGLE),)), WALL)
    assert read(fetched, certificates(owner)).values[0].value == b"v"


def test_simulated_identities_work_the_same() -> None:
    """With the simulator's null certificates a value is stored, read back, and a wrong signature refused."""
    certificate = null_certificate(node_id(1), ALICE, OVERLAY)
    storage = Storage(CONFIGURATION, NullTrust(OVERLAY), NullVerifier())
    signer = NullCredential(certificate)
    ders = {certificate.hash: certificate.der}
    value = DictionaryEntry(b"k", DataValue(True, b"v"))
    stored = sign_value(AT_ALICE, DICTIONARY, value, NOW_MS, 60, certificate, signer.sign)
    forged = stored._replace(storage_time=NOW_MS + 1, signature=stored.signature._replace(value=b"forged"))
    storage.store(request((DICTIONARY, stored)), certificate, ders, WALL)
    with pytest.raises(Forbidden):
        storage.store(request((DICTIONARY, forged)), certificate, ders, WALL)
    fetched, _ = storage.fetch(FetchReq(AT_ALICE, (StoredDataSpecifier(DICTIONARY, keys=()),)), WALL)
    read_back = verify_fetched(AT_ALICE, fetched, ders, CONFIGURATION, NullTrust(OVERLAY), NullVerifier(), WALL)
    assert [value.value for value in read_back.values] == [b"v"]

"""The golden RELOAD messages, judged by the second reading of RFC 6940."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.checker.signatures import (
    ECDSA,
    FETCH_ANS,
    IANA_KINDS,
    RSA,
    STORE_REQ,
    MalformedError,
    Message,
    Model,
    RefusedError,
    Signature,
    StoredValue,
    check,
    check_value,
    decode,
    join,
    signer_of,
    stored_values,
    verify,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "reload"
NOT_MESSAGES = re.compile(r"certificate_|fragment_|frame_")
MESSAGES = sorted(path.stem for path in VECTORS.glob("*.hex") if not NOT_MESSAGES.match(path.stem))
MODELS = {**IANA_KINDS, 0xF0000005: Model.ARRAY}  # private use; the vectors' comments call it an array
APPEND = 0xFFFFFFFF


def octets_of(name: str) -> bytes:
    """The octets of a vector, its comments left out."""
    lines = (VECTORS / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


ALICE, PEER = octets_of("certificate_alice"), octets_of("certificate_peer")


def request_of(name: str) -> Message | None:
    """The request that a Fetch answer answers; other messages stand alone."""
    return decode(octets_of("fetch_req")) if name == "fetch_ans" else None


def signed_values(name: str) -> list[StoredValue]:
    """The stored values of a vector that somebody signed."""
    values = stored_values(decode(octets_of(name)), MODELS, request_of(name))
    return [value for value in values if not value.synthesized]


VALUES = [
    pytest.param(value, id=f"{name}-{place}")
    for name in ("store_req", "store_remove_req", "fetch_ans")
    for place, value in enumerate(signed_values(name))
]


def with_field(whole: Message | StoredValue, field: str, octets: bytes) -> Message | StoredValue:
    """A copy in which the named field holds these octets."""
    change: dict[str, Any] = {field: octets}
    return replace(whole, **change)


def altered(octets: bytes) -> Iterator[bytes]:
    """The octets with one bit turned, once for each bit."""
    for place in range(len(octets) * 8):
        turned = bytearray(octets)
        turned[place // 8] ^= 0x80 >> place % 8
        yield bytes(turned)


@pytest.mark.parametrize("name", MESSAGES)
def test_message_verifies(name: str) -> None:
    """The message's signature and those of its values verify with the keys of the README's certificates."""
    message = decode(octets_of(name))
    verdict = check(message, MODELS, request_of(name))
    asked = message.code % 2 == 1 and message.code != 0xFFFF
    # a replica is stored by a peer, not by the one who owns the value
    assert verdict.signer == (ALICE if asked and name != "store_remove_req" else PEER)
    assert set(verdict.values) <= {ALICE, None}
    assert set(message.certificates) == {verdict.signer, *verdict.values} - {None}


def test_nothing_is_left_unchecked() -> None:
    """The Store requests and Fetch answers among the vectors are those whose values are checked here."""
    carriers = {name for name in MESSAGES if decode(octets_of(name)).code in (STORE_REQ, FETCH_ANS)}
    assert carriers == {"store_req", "store_remove_req", "fetch_ans"}
    assert [len(signed_values(name)) for name in ("store_req", "store_remove_req", "fetch_ans")] == [4, 1, 2]
    assert {param.values[0].model for param in VALUES} == set(Model)


def test_joined_fragments_verify() -> None:
    """The two fragments, in either order, give the whole message and its signature."""
    first, second = octets_of("fragment_1"), octets_of("fragment_2")
    whole = decode(octets_of("whole"))
    assert join([first, second]) == join([second, first]) == whole
    assert check(join([first, second])).signer == ALICE


@pytest.mark.parametrize("value", VALUES)
def test_value_verifies(value: StoredValue) -> None:
    """A stored value's signature verifies with its owner's key."""
    assert signer_of(value.signature, [PEER, ALICE]) == ALICE
    verify(value.signature, ALICE, value.signed())


@pytest.mark.parametrize("name", ["ping_req", "extensions", "store_remove_req", "error_exp_a"])
@pytest.mark.parametrize("field", ["overlay", "transaction_id", "contents"])
def test_altered_message_fails(name: str, field: str) -> None:
    """Any one bit turned in a field that the message's signature covers makes it fail."""
    message = decode(octets_of(name))
    signer = signer_of(message.signature, message.certificates)
    for octets in altered(getattr(message, field)):
        with pytest.raises(RefusedError, match="does not verify"):
            verify(message.signature, signer, with_field(message, field, octets).signed())


@pytest.mark.parametrize("name", ["ping_req", "store_req", "fetch_ans"])
def test_altered_octet_on_the_wire_fails(name: str) -> None:
    """A bit turned in any octet from the contents to the end of the message makes the message fail."""
    octets = octets_of(name)
    start = octets.index(decode(octets).contents)
    for place in range(start, len(octets)):
        turned = bytearray(octets)
        turned[place] ^= 1
        with pytest.raises((MalformedError, RefusedError)):
            check(decode(bytes(turned)), MODELS, request_of(name))


def test_octets_of_the_header_that_may_change() -> None:
    """Of the header only overlay and transaction are signed: what else may take any value can be changed."""
    octets = octets_of("ping_req")
    open_octets = set()
    for place in range(octets.index(decode(octets).contents)):
        turned = bytearray(octets)
        turned[place] ^= 1
        try:
            check(decode(bytes(turned)))
        except (MalformedError, RefusedError):
            continue
        open_octets.add(place)
    configuration_sequence, ttl, reserved_bits = {8, 9}, {11}, {12}
    max_response_length, destination_list = set(range(28, 32)), set(range(38, 56))
    assert open_octets == configuration_sequence | ttl | reserved_bits | max_response_length | destination_list


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", ["resource", "kind", "storage_time", "entry"])
def test_altered_value_fails(value: StoredValue, field: str) -> None:
    """Any one bit turned in a field that a value's signature covers makes it fail."""
    for octets in altered(getattr(value, field)):
        with pytest.raises(RefusedError, match="does not verify"):
            verify(value.signature, ALICE, with_field(value, field, octets).signed())


@pytest.mark.parametrize("value", VALUES)
def test_altered_identity_of_value_fails(value: StoredValue) -> None:
    """The signer's identity is itself signed: with the right key but a bit turned there the value fails."""
    for identity in altered(value.signature.identity):
        changed = replace(value, signature=replace(value.signature, identity=identity))
        with pytest.raises(RefusedError, match="does not verify"):
            verify(changed.signature, ALICE, changed.signed())
        with pytest.raises((MalformedError, RefusedError)):
            signer_of(changed.signature, [ALICE, PEER])


@pytest.mark.parametrize("name", ["ping_req", "ping_ans"])
def test_altered_identity_of_message_fails(name: str) -> None:
    """The identity of a message's signer is signed too."""
    message = decode(octets_of(name))
    signer = signer_of(message.signature, message.certificates)
    for identity in altered(message.signature.identity):
        changed = replace(message, signature=replace(message.signature, identity=identity))
        with pytest.raises(RefusedError, match="does not verify"):
            verify(changed.signature, signer, changed.signed())


@pytest.mark.parametrize("value", VALUES)
def test_altered_signature_of_value_fails(value: StoredValue) -> None:
    """Any one bit turned in the signature's own value makes it fail, and so does the other's key."""
    for octets in altered(value.signature.value):
        with pytest.raises(RefusedError, match="does not verify"):
            verify(replace(value.signature, value=octets), ALICE, value.signed())
    with pytest.raises(RefusedError, match="does not verify"):
        verify(value.signature, PEER, value.signed())


@pytest.mark.parametrize("name", ["store_req", "store_remove_req", "fetch_ans"])
def test_lifetime_is_not_signed_with_the_value(name: str) -> None:
    """Each value verifies with every bit of its lifetime turned in the body, while the message does not."""
    message, request = decode(octets_of(name)), request_of(name)
    for place, value in enumerate(stored_values(message, MODELS, request)):
        if value.synthesized:
            continue
        turned = bytes(octet ^ 0xFF for octet in value.lifetime)
        before, after = value.storage_time + value.lifetime, value.storage_time + turned
        body, contents = (part.replace(before, after) for part in (message.body, message.contents))
        changed = replace(message, body=body, contents=contents)
        found = stored_values(changed, MODELS, request)[place]
        assert found == replace(value, lifetime=turned)
        verify(found.signature, ALICE, found.signed())
        with pytest.raises(RefusedError, match="does not verify"):
            check(changed, MODELS, request)


def test_index_is_signed_as_zero() -> None:
    """An appended entry keeps its signature at the index where the answer puts it (section 7.4.2.2)."""
    (appended,) = [value for value in signed_values("store_req") if value.index == APPEND]
    (fetched,) = [value for value in signed_values("fetch_ans") if value.index == 1]
    assert appended.signature == fetched.signature
    assert appended.signed() == fetched.signed()
    with pytest.raises(RefusedError, match="does not verify"):
        verify(fetched.signature, ALICE, replace(fetched, entry=b"\0\0\0\1" + fetched.entry[4:]).signed())


@pytest.mark.parametrize("value", VALUES)
def test_resource_id_is_signed_with_its_length(value: StoredValue) -> None:
    """Without the length octet of the Resource-ID (section 6.3.1.1) no value verifies."""
    with pytest.raises(RefusedError, match="does not verify"):
        verify(value.signature, ALICE, value.signed()[1:])


def test_unsigned_value_is_for_answers_only() -> None:
    """The synthesized value passes in the Fetch answer; in a Store it is refused (7.4.1.1)."""
    answer, store = decode(octets_of("fetch_ans")), decode(octets_of("store_req"))
    values = stored_values(answer, MODELS, request_of("fetch_ans"))
    (synthesized,) = [value for value in values if value.synthesized]
    assert check(answer, MODELS, request_of("fetch_ans")).values == [ALICE, None, ALICE]
    with pytest.raises(RefusedError, match="identity type 3"):
        check_value(store, synthesized)
    with pytest.raises(RefusedError, match="identity type 3"):
        check_value(answer, replace(synthesized, exists=True))


def test_removed_value_is_signed() -> None:
    """A removed value does not exist, yet an answer that carries it needs its owner's signature (7.4.2.2)."""
    answer = decode(octets_of("fetch_ans"))
    (removed,) = signed_values("store_remove_req")
    assert not removed.exists
    assert check_value(answer, removed) == ALICE
    with pytest.raises(RefusedError, match="does not verify"):
        check_value(answer, replace(removed, storage_time=bytes(8)))


def test_answer_needs_its_own_request() -> None:
    """A Fetch answer is not judged without the request of its transaction, which names the Resource-ID."""
    message = decode(octets_of("fetch_ans"))
    for request in (None, decode(octets_of("fetch_all_req")), decode(octets_of("store_req"))):
        with pytest.raises(MalformedError, match="its request is needed"):
            check(message, MODELS, request)


def test_rsa_signature() -> None:
    """RSASSA-PKCS1-v1_5 with SHA-256, which no vector uses but all must support (6.3.4), is understood."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name, day = x509.Name([]), datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    value = key.sign(b"signed", padding.PKCS1v15(), hashes.SHA256())
    verify(Signature(4, RSA, b"", value), certificate, b"signed")
    with pytest.raises(RefusedError, match="does not verify"):
        verify(Signature(4, RSA, b"", value), certificate, b"Signed")
    with pytest.raises(RefusedError, match="differ"):
        verify(Signature(4, ECDSA, b"", value), certificate, b"signed")

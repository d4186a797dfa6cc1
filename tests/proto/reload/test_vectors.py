"""The golden vectors: what the codec reads from them, and that it writes the same octets."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.reload.errors import ErrorCode, ReloadError, UnknownExtension, UnsupportedForwardingOption
from p2psipd.proto.reload.framing import (
    AckFrame,
    AckHistory,
    DataFrame,
    FrameDecoder,
    encode_ack,
    encode_data,
)
from p2psipd.proto.reload.ids import WILDCARD, NodeId, ResourceId, overlay_hash, resource_id
from p2psipd.proto.reload.messages import (
    APPEND,
    BODY_BY_CODE,
    AppAttachAns,
    AppAttachReq,
    ArrayEntry,
    ArrayEntryMeta,
    AttachAns,
    AttachReq,
    Body,
    ConfigUpdateAns,
    ConfigUpdateReq,
    DataModel,
    DataValue,
    DictionaryEntry,
    DictionaryEntryMeta,
    ErrorResponse,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    FindAns,
    FindReq,
    IceCandidate,
    JoinAns,
    JoinReq,
    LeaveAns,
    LeaveReq,
    MetaData,
    PingAns,
    PingReq,
    ProbeAns,
    ProbeReq,
    RouteQueryAns,
    RouteQueryReq,
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
    UpdateAns,
    UpdateReq,
    decode_body,
)
from p2psipd.proto.reload.security import (
    CERT_HASH,
    HASH_SHA256,
    NO_SIGNATURE,
    SIGNATURE_ECDSA,
    SecurityBlock,
    Signature,
    SignerIdentity,
    message_signature_input,
    value_signature_input,
)
from p2psipd.proto.reload.wire import (
    DESTINATION_CRITICAL,
    FORWARD_CRITICAL,
    Extension,
    ForwardingHeader,
    ForwardingOption,
    MessageContents,
    NodeDestination,
    OpaqueDestination,
    Reassembler,
    ResourceDestination,
    check_extensions,
    check_options,
    decode_contents,
    decode_header,
    encode_message,
    fragment,
)
from tests.vectors.reload_vectors import MESSAGE_NAMES, NAMES, NOT_MESSAGES, load

ARRAY_KIND = 0xF0000005
KINDS = {1: DataModel.DICTIONARY, 2: DataModel.SINGLE, ARRAY_KIND: DataModel.ARRAY}
ALICE = NodeId(bytes(range(0xA1, 0xB1)))
PEER = NodeId(bytes(range(0xB1, 0xC1)))
THIRD = NodeId(bytes(range(0xC1, 0xD1)))
FOURTH = NodeId(bytes(range(0xD1, 0xE1)))
BOB = resource_id("bob@overlay.example")
TIME = 1767225600000

HOST4 = IceCandidate("192.0.2.1", 6084, 4, b"1", 0x7E0000FF, 1)
HOST6 = IceCandidate("2001:db8::1", 6084, 4, b"2", 0x7D0000FF, 1, None, ((b"network-cost", b"50"),))
SRFLX = IceCandidate("198.51.100.7", 40000, 4, b"3", 0x640000FF, 2, ("192.0.2.1", 6084))

SIP_VALUE = b'\x02\x00\x2c\x00\x16(& (sip.audio="TRUE"))\x00\x12\x01\x10' + ALICE
TURN_VALUE = b"\x01\x01\x06\xc0\x00\x02\x09\x0d\x96"


def signature(value: bytes) -> Signature:
    """A signature by alice."""
    digest = hashlib.sha256(load("certificate_alice")).digest()
    identity = SignerIdentity(CERT_HASH, HASH_SHA256, digest)
    return Signature(HASH_SHA256, SIGNATURE_ECDSA, identity, value)


def stored(name: str, kind: int, number: int) -> Signature:
    """The signature of a stored value in a vector: ECDSA gives another one each time, so it is read, not made."""
    kinds = body_of(name).kinds  # type: ignore[attr-defined]
    (values,) = [item.values for item in kinds if item.kind == kind]
    found: Signature = values[number].signature
    assert found == signature(found.value)
    return found


def dictionary(name: str, number: int = 0) -> StoredData:
    """The registration that the vectors store."""
    entry = DictionaryEntry(ALICE, DataValue(True, SIP_VALUE))
    return StoredData(TIME, 3600, entry, stored(name, 1, number))


def array(name: str, number: int, index: int, value: bytes, lifetime: int) -> StoredData:
    """An array entry that the vectors store."""
    entry = ArrayEntry(index, DataValue(True, value))
    return StoredData(TIME, lifetime, entry, stored(name, ARRAY_KIND, number))


def metadata(value: bytes) -> MetaData:
    """What Stat tells of a value."""
    digest = hashlib.sha256(len(value).to_bytes(4, "big") + value).digest()
    return MetaData(True, len(value), HASH_SHA256, digest)


SPECIFIERS = (
    StoredDataSpecifier(1, 3, None, (ALICE, THIRD)),
    StoredDataSpecifier(2),
    StoredDataSpecifier(ARRAY_KIND, 0, ((0, 1), (7, APPEND))),
)
DOCUMENT = (
    b'<overlay xmlns="urn:ietf:params:xml:ns:p2p:config-base"><configuration instance-name="overlay.example" '
    b'sequence="8"/></overlay>'
)
KIND_BLOCK = (
    b'<kind-block xmlns="urn:ietf:params:xml:ns:p2p:config-base"><kind id="4026531845"><data-model>ARRAY'
    b"</data-model></kind></kind-block>"
)


def expected_bodies() -> dict[str, Body]:
    """What each vector's body says."""
    removal = DictionaryEntry(ALICE, DataValue(False, b""))
    missing = DictionaryEntry(THIRD, DataValue(False, b""))
    store_req = StoreReq(
        BOB,
        0,
        (
            StoreKindData(1, 0, (dictionary("store_req"),)),
            StoreKindData(
                2, 99, (StoredData(TIME, 86400, DataValue(True, TURN_VALUE), stored("store_req", 2, 0)),)
            ),
            StoreKindData(
                ARRAY_KIND,
                107,
                (array("store_req", 0, 0, b"foo", 86400), array("store_req", 1, APPEND, b"bar", 33200)),
            ),
        ),
    )
    fetch_ans = FetchAns(
        (
            FetchKindResponse(1, 4, (dictionary("fetch_ans"), StoredData(0, 0, missing, NO_SIGNATURE))),
            FetchKindResponse(2, 100, ()),
            FetchKindResponse(ARRAY_KIND, 108, (array("fetch_ans", 0, 1, b"bar", 33100),)),
        )
    )
    stat_ans = StatAns(
        (
            StatKindResponse(
                1, 4, (StoredMetaData(TIME, 3500, DictionaryEntryMeta(ALICE, metadata(SIP_VALUE))),)
            ),
            StatKindResponse(2, 100, (StoredMetaData(TIME, 86000, metadata(TURN_VALUE)),)),
            StatKindResponse(
                ARRAY_KIND,
                108,
                (
                    StoredMetaData(TIME, 80000, ArrayEntryMeta(0, metadata(b"foo"))),
                    StoredMetaData(TIME, 33100, ArrayEntryMeta(1, metadata(b"bar"))),
                ),
            ),
        )
    )
    removed = StoredData(TIME + 1000, 3600, removal, stored("store_remove_req", 1, 0))
    password, other = b"Zr0Q8p3y9kXwT1mB7nVcLd", b"q2W4e6R8t0Y1u3I5o7P9aS"
    return {
        "probe_req": ProbeReq((1, 2, 3)),
        "probe_ans": ProbeAns(((1, 125000000), (2, 42), (3, 86400))),
        "attach_req": AttachReq(b"4bc1", password, b"passive", (HOST4, HOST6, SRFLX), True),
        "attach_ans": AttachAns(b"9ae7", other, b"active", (HOST4,), False),
        "app_attach_req": AppAttachReq(b"4bc1", password, 5061, b"actpass", (HOST4,)),
        "app_attach_ans": AppAttachAns(b"9ae7", other, 5061, b"active", (HOST6,)),
        "store_req": store_req,
        "store_ans": StoreAns(
            (
                StoreKindResponse(1, 1, (THIRD, FOURTH)),
                StoreKindResponse(2, 100),
                StoreKindResponse(ARRAY_KIND, 108, (THIRD,)),
            )
        ),
        "store_remove_req": StoreReq(BOB, 3, (StoreKindData(1, 5, (removed,)),)),
        "fetch_req": FetchReq(BOB, SPECIFIERS),
        "fetch_ans": fetch_ans,
        "fetch_all_req": FetchReq(BOB, (StoredDataSpecifier(1, 0, None, ()),)),
        "stat_req": StatReq(BOB, SPECIFIERS),
        "stat_ans": stat_ans,
        "find_req": FindReq(BOB, (1, 2)),
        "find_ans": FindAns(((1, resource_id("alice@overlay.example")), (2, ResourceId(bytes(16))))),
        "join_req": JoinReq(ALICE, b"plug-in"),
        "join_ans": JoinAns(b"welcome"),
        "leave_req": LeaveReq(ALICE),
        "leave_ans": LeaveAns(),
        "update_req": UpdateReq(b"\x01routing state"),
        "update_ans": UpdateAns(),
        "route_query_req": RouteQueryReq(True, ResourceDestination(BOB)),
        "route_query_ans": RouteQueryAns(THIRD),
        "ping_req": PingReq(b"padding"),
        "ping_ans": PingAns(0x0123456789ABCDEF, TIME),
        "config_update_config_req": ConfigUpdateReq(1, DOCUMENT),
        "config_update_kind_req": ConfigUpdateReq(2, b"", (KIND_BLOCK,)),
        "config_update_ans": ConfigUpdateAns(),
        "lists_and_options": PingReq(),
        "extensions": PingReq(),
        "whole": PingReq(bytes(range(256)) * 2),
        **{f"error_{code.name.lower()}": ErrorResponse(int(code), error_info(code)) for code in ErrorCode},
    }


def error_info(code: ErrorCode) -> bytes:
    """The error_info of an error's vector."""
    if code is ErrorCode.GENERATION_COUNTER_TOO_LOW:
        return StoreAns((StoreKindResponse(1, 9),)).encode()
    if code is ErrorCode.UNKNOWN_KIND:
        return bytes.fromhex("08 f00000aa f00000ab")
    words = code.name.title().replace("Ttl", "TTL").replace("_With_", "_with_")
    return f"what went wrong: {words}".encode()


def parts(name: str) -> tuple[ForwardingHeader, MessageContents, bytes, SecurityBlock]:
    """A vector's header, contents, the contents' octets, security block."""
    header, offset = decode_header(load(name))
    return header, *decode_contents(load(name), offset)


def body_of(name: str) -> Body:
    """A vector's body."""
    contents = parts(name)[1]
    return decode_body(contents.code, contents.body, KINDS)


def test_there_is_a_vector_for_every_message_and_error() -> None:
    """All message codes and all error codes of the RFC occur among the vectors, and each vector is expected."""
    expected = expected_bodies()
    assert {int(body.code) for body in expected.values()} == set(BODY_BY_CODE)
    errors = {body.error_code for body in expected.values() if isinstance(body, ErrorResponse)}
    assert errors == {int(code) for code in ErrorCode}
    assert set(expected) == set(MESSAGE_NAMES)
    assert set(NAMES) == set(MESSAGE_NAMES) | NOT_MESSAGES


@pytest.mark.parametrize("name", MESSAGE_NAMES)
def test_bodies_are_read_and_written(name: str) -> None:
    """A vector's body says what is expected, and the expected body is written as the vector's octets."""
    body = expected_bodies()[name]
    assert body_of(name) == body
    contents = parts(name)[1]
    assert (contents.code, contents.body) == (body.code, body.encode())


@pytest.mark.parametrize("name", MESSAGE_NAMES)
def test_messages_are_read_and_written(name: str) -> None:
    """Header, contents and security block of a vector are as expected, and written again octet by octet."""
    header, contents, octets, block = parts(name)
    assert header == expected_header(name, header.transaction_id)
    assert contents.encode() == octets
    assert encode_message(header, octets, block) == load(name)


EXTENSIONS = (Extension(1, False, b"may be ignored"), Extension(0x7777, True, b""))
OPTIONS = (ForwardingOption(1, 4, b"abc"), ForwardingOption(200, 3, b""))
TO_NODE = {
    "app_attach_req", "config_update_config_req", "config_update_kind_req", "extensions", "join_req", "leave_req",
    "route_query_req", "update_req", "whole",
}  # fmt: skip


def expected_header(name: str, transaction_id: int) -> ForwardingHeader:
    """What a vector's header says, but for the transaction id."""
    overlay = overlay_hash("overlay.example")
    if name == "lists_and_options":
        via = (
            NodeDestination(ALICE),
            OpaqueDestination(b"\x81\x02"),
            OpaqueDestination(b"\x01\x02\x03\x04\x05"),
        )
        destinations = (
            NodeDestination(PEER),
            OpaqueDestination(b"state of B"),
            ResourceDestination(ResourceId(b"\x0f" * 20)),
        )
        return ForwardingHeader(overlay, 7, 17, 0, True, transaction_id, 0, via, destinations, OPTIONS)
    to: NodeDestination | ResourceDestination = ResourceDestination(BOB)
    if name.endswith("_ans") or name.startswith("error_"):
        to = NodeDestination(ALICE)
    elif name in TO_NODE:
        to = NodeDestination(PEER)
    elif name == "store_remove_req":
        to = NodeDestination(THIRD)
    elif name == "ping_req":
        to = NodeDestination(WILDCARD)
    limit = 5000 if name == "fetch_req" else 0
    return ForwardingHeader(overlay, 7, 20, 0, True, transaction_id, limit, (), (to,))


def test_options_and_extensions_of_the_vectors() -> None:
    """The critical option and extension, which nobody knows, are reported as the RFC's errors."""
    header, *_ = parts("lists_and_options")
    for flag in (FORWARD_CRITICAL, DESTINATION_CRITICAL):
        with pytest.raises(UnsupportedForwardingOption):
            check_options(header, flag, known=(1,))
        check_options(header, flag, known=(200,))
    contents = parts("extensions")[1]
    assert contents.extensions == EXTENSIONS
    with pytest.raises(UnknownExtension):
        check_extensions(contents, known=(1,))


def test_answers_and_requests_share_their_transaction() -> None:
    """An answer's vector has the transaction id of its request's."""
    for name in MESSAGE_NAMES:
        if name.endswith("_ans"):
            request = name[:-3] + "req" if name != "config_update_ans" else "config_update_config_req"
            assert parts(name)[0].transaction_id == parts(request)[0].transaction_id


# -- signatures


def key_of(signed: Signature) -> ec.EllipticCurvePublicKey:
    """The key of the certificate that a signature names."""
    for name in ("certificate_alice", "certificate_peer"):
        der = load(name)
        if hashlib.sha256(der).digest() == signed.identity.certificate_hash:
            key = x509.load_der_x509_certificate(der).public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            return key
    raise AssertionError("signed with no certificate of the vectors")


@pytest.mark.parametrize("name", MESSAGE_NAMES)
def test_message_signatures_verify(name: str) -> None:
    """Each vector's signature is valid over the input of section 6.3.4, and its certificate is in the block."""
    header, _, octets, block = parts(name)
    assert block.signature[:2] == (HASH_SHA256, SIGNATURE_ECDSA)
    assert block.signature.identity.certificate_hash in {
        hashlib.sha256(der).digest() for der in block.certificates
    }
    data = message_signature_input(
        header.overlay, header.transaction_id, octets, block.signature.identity.encode()
    )
    key = key_of(block.signature)
    key.verify(block.signature.value, data, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(block.signature.value, data + b"\x00", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("name", ["store_req", "store_remove_req", "fetch_ans"])
def test_value_signatures_verify(name: str) -> None:
    """Each stored value's signature is valid over the input of section 7.1, array entries with index 0."""
    body = body_of(name)
    assert isinstance(body, StoreReq | FetchAns)
    verified = 0
    for item in body.kinds:
        for value in item.values:
            if value.signature == NO_SIGNATURE:
                continue
            data = value_signature_input(
                BOB,
                item.kind,
                value.storage_time,
                value.value.encode_for_signature(),
                value.signature.identity.encode(),
            )
            key_of(value.signature).verify(value.signature.value, data, ec.ECDSA(hashes.SHA256()))
            verified += 1
    assert verified == {"store_req": 4, "store_remove_req": 1, "fetch_ans": 2}[name]


# -- fragments and frames


def test_fragments_of_the_vectors() -> None:
    """The two fragments join to the whole message, and the whole message is cut into the two."""
    whole, first, second = load("whole"), load("fragment_1"), load("fragment_2")
    reassembler = Reassembler()
    results = []
    for data in (second, first):
        header, offset = decode_header(data)
        results.append(reassembler.add(ALICE, header, data, offset, now=0.0))
    assert results == [None, whole]
    header, offset = decode_header(whole)
    assert fragment(whole, header, offset, 32 + len(first)) == [first, second]


def test_frames_of_the_vectors() -> None:
    """A DATA and an ACK frame are read and written as in the vectors, and the bitmap is the history's."""
    data, ack = load("frame_data"), load("frame_ack")
    assert FrameDecoder().feed(data + ack) == [DataFrame(5, b"RELOAD message"), AckFrame(5, 0b100110)]
    assert (encode_data(5, b"RELOAD message"), encode_ack(5, 0b100110)) == (data, ack)
    history = AckHistory()
    assert [history.note(sequence) for sequence in (0, 3, 4, 5)][-1] == 0b100110


@settings(max_examples=1000)
@given(name=st.sampled_from(MESSAGE_NAMES), data=st.data())
def test_mutated_vectors_raise_only_reload_errors(name: str, data: st.DataObject) -> None:
    """A vector with octets changed, removed or added anywhere is a message or a ReloadError."""
    octets = bytearray(load(name))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(octets)))
        stop = start + data.draw(st.integers(0, 4))
        octets[start:stop] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):  # let it get beyond the header's own length
        octets[16:20] = len(octets).to_bytes(4, "big")
    mutated = bytes(octets)
    try:
        header, offset = decode_header(mutated)
        contents, signed, block = decode_contents(mutated, offset)
        body = decode_body(contents.code, contents.body, KINDS)
    except ReloadError:
        return
    assert contents.encode() == signed
    written = encode_message(header, signed, block)
    assert decode_header(written)[0] == header
    assert decode_body(contents.code, body.encode(), KINDS) == body

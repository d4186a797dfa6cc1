"""Message bodies: round trips, strictness, and what arbitrary octets lead to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.octets import opaque8, opaque16, opaque24, opaque32, u16, u32, u64
from p2psipd.proto.reload import errors
from p2psipd.proto.reload.errors import ErrorCode, InvalidMessage, ReloadError, UnknownKind
from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.messages import (
    APPEND,
    BODY_BY_CODE,
    DTLS_UDP_SR,
    TLS_TCP_FH_NO_ICE,
    ArrayEntry,
    AttachReq,
    Body,
    ConfigUpdateReq,
    DataModel,
    DataValue,
    DictionaryEntry,
    ErrorResponse,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    FindReq,
    IceCandidate,
    JoinReq,
    MessageCode,
    PingAns,
    ProbeAns,
    ProbeReq,
    RouteQueryReq,
    StatAns,
    StoreAns,
    StoredData,
    StoredDataSpecifier,
    StoreKindData,
    StoreReq,
    decode_body,
    is_request,
    unknown_kinds_info,
)
from p2psipd.proto.reload.security import NO_SIGNATURE
from tests.proto.reload.strategies import BODIES, KINDS, bodies

RESOURCE = ResourceId(bytes(range(16)))
NODE = NodeId(b"\x01" * 16)
STORED = StoredData(5, 6, DictionaryEntry(b"key", DataValue(True, b"value")), NO_SIGNATURE)
HOST = IceCandidate("192.0.2.1", 6084, TLS_TCP_FH_NO_ICE, b"1", 7, 1)


def attach(candidates: bytes) -> bytes:
    """An AttachReq's octets with these candidates."""
    return opaque8(b"u") + opaque8(b"p") + opaque8(b"passive") + opaque16(candidates) + b"\x00"


def candidate(address: bytes, *, link: int = TLS_TCP_FH_NO_ICE, kind: int = 1, related: bytes = b"") -> bytes:
    """A candidate's octets."""
    return address + bytes((link,)) + opaque8(b"f") + u32(1) + bytes((kind,)) + related + opaque16(b"")


V4 = b"\x01\x06\xc0\x00\x02\x01\x17\xc4"


def test_every_code_of_the_registry_has_its_body() -> None:
    """The registry of RFC 6940 section 14.8 and the body classes are the same set, and so are the strategies."""
    assert set(BODY_BY_CODE) == {int(code) for code in MessageCode}
    assert set(BODIES) == set(BODY_BY_CODE.values())
    for code, body in BODY_BY_CODE.items():
        name = MessageCode(code).name
        expected = "ErrorResponse" if name == "ERROR" else name.title().replace("_", "")
        assert body.__name__ == expected


def test_requests_are_odd() -> None:
    """A request's code is odd and its answer's is one more; an error is no request (section 6.3.3)."""
    for code, body in BODY_BY_CODE.items():
        assert is_request(code) == body.__name__.endswith("Req")
        if is_request(code):
            assert BODY_BY_CODE[code + 1].__name__ == body.__name__[:-3] + "Ans"


@settings(max_examples=400)
@given(body=bodies)
def test_round_trip(body: Body) -> None:
    """Every body comes back from its octets as it was, and is written again the same."""
    written = body.encode()
    read = decode_body(body.code, written, KINDS)
    assert read == body
    assert type(read) is type(body)
    assert read.encode() == written


@settings(max_examples=1000)
@given(code=st.sampled_from(sorted(BODY_BY_CODE)), data=st.binary(max_size=120))
def test_arbitrary_octets_raise_only_reload_errors(code: int, data: bytes) -> None:
    """Any octets are a body or a ReloadError, and a body that was read can be written."""
    try:
        body = decode_body(code, data, KINDS)
    except ReloadError:
        return
    assert decode_body(code, body.encode(), KINDS) == body


@settings(max_examples=400)
@given(body=bodies, data=st.data())
def test_mutated_bodies_raise_only_reload_errors(body: Body, data: st.DataObject) -> None:
    """A body with some octets overwritten, removed or added is a body or a ReloadError."""
    octets = bytearray(body.encode())
    position = data.draw(st.integers(0, len(octets)))
    removed = data.draw(st.integers(0, 3))
    octets[position : position + removed] = data.draw(st.binary(max_size=3))
    try:
        decode_body(body.code, bytes(octets), KINDS)
    except ReloadError:
        pass


WHOLLY_PLUG_IN = {"UpdateReq", "UpdateAns", "RouteQueryAns"}


@given(body=bodies.filter(lambda body: type(body).__name__ not in WHOLLY_PLUG_IN), data=st.data())
def test_every_octet_counts(body: Body, data: st.DataObject) -> None:
    """A body cut short or with octets after its end is refused; only plug-in bodies have no length of their own."""
    octets = body.encode()
    with pytest.raises(InvalidMessage):
        decode_body(body.code, octets + data.draw(st.binary(min_size=1, max_size=4)), KINDS)
    if octets:
        with pytest.raises(InvalidMessage):
            decode_body(body.code, octets[: data.draw(st.integers(0, len(octets) - 1))], KINDS)


def test_unknown_message_code() -> None:
    """A code without a body is an InvalidMessage."""
    for code in (0, 5, 6, 0xB, 0x1B, 0x23, 0x27, 0x8000):
        with pytest.raises(InvalidMessage):
            decode_body(code, b"")


@pytest.mark.parametrize("send_update", [2, 255])
def test_booleans_are_strict(send_update: int) -> None:
    """A Boolean that is neither 0 nor 1 makes a body invalid (section 6.3.1.1)."""
    with pytest.raises(InvalidMessage):
        AttachReq.decode(attach(b"")[:-1] + bytes((send_update,)))
    with pytest.raises(InvalidMessage):
        RouteQueryReq.decode(bytes((send_update,)) + b"\x01\x10" + NODE + opaque16(b""))


def test_exists_is_strict() -> None:
    """A value's and its metadata's ``exists`` is 0 or 1."""
    octets = bytearray(FetchAns((FetchKindResponse(1, 1, (STORED,)),)).encode())
    assert octets[4 + 16 + 16 + 5] == 1
    octets[4 + 16 + 16 + 5] = 2
    with pytest.raises(InvalidMessage, match="Boolean"):
        FetchAns.decode(bytes(octets), KINDS)
    meta = u64(1) + u32(1) + b"\x02" + u32(0) + b"\x04" + opaque8(b"")
    kind = u32(2) + u64(1) + opaque32(opaque32(meta))
    with pytest.raises(InvalidMessage, match="Boolean"):
        StatAns.decode(opaque32(kind), KINDS)


def test_node_ids_of_zeros_are_invalid() -> None:
    """All zeros is no Node-ID, in a body as in a header."""
    with pytest.raises(InvalidMessage):
        JoinReq.decode(bytes(16) + opaque16(b""))
    with pytest.raises(InvalidMessage):
        JoinReq(NodeId(bytes(16))).encode()
    with pytest.raises(InvalidMessage):
        StoreAns.decode(opaque16(u32(1) + u64(1) + opaque16(NODE + bytes(16))))
    with pytest.raises(InvalidMessage):
        StoreAns.decode(opaque16(u32(1) + u64(1) + opaque16(NODE + b"\x01")))


def test_resource_id_lengths() -> None:
    """A Resource-ID in a request has 1 to 254 octets (section 6.3.1.1)."""
    for resource in (b"", bytes(255)):
        with pytest.raises(InvalidMessage):
            FindReq.decode(opaque8(resource) + opaque8(b""))
        with pytest.raises(InvalidMessage):
            FindReq(ResourceId(resource), ()).encode()
    assert FindReq.decode(opaque8(bytes(254)) + opaque8(b"")).resource == bytes(254)


def test_unknown_kinds_are_all_named() -> None:
    """A storage request with unknown kinds is Error_Unknown_Kind, whose info lists each once (section 7.4.1.2)."""
    strange = {7: DataModel.SINGLE, 8: DataModel.ARRAY, **KINDS}
    request = FetchReq(
        RESOURCE,
        (
            StoredDataSpecifier(7),
            StoredDataSpecifier(1, 0, None, ()),
            StoredDataSpecifier(8, 0, ((0, 1),)),
            StoredDataSpecifier(7, 1),
        ),
    )
    assert FetchReq.decode(request.encode(), strange) == request
    with pytest.raises(UnknownKind) as caught:
        FetchReq.decode(request.encode(), KINDS)
    assert caught.value.info == opaque8(u32(7) + u32(8))
    store = StoreReq(RESOURCE, 0, (StoreKindData(7, 0, ()), StoreKindData(1, 0, (STORED,))))
    with pytest.raises(UnknownKind) as caught:
        StoreReq.decode(store.encode(), KINDS)
    assert caught.value.info == opaque8(u32(7))
    with pytest.raises(UnknownKind):
        StoreReq.decode(store.encode())


def test_the_list_of_unknown_kinds_fits() -> None:
    """However many kinds are unknown, the info's one-octet length holds: 63 are named."""
    request = FetchReq(RESOURCE, tuple(StoredDataSpecifier(kind) for kind in range(1000, 1100)))
    with pytest.raises(UnknownKind) as caught:
        FetchReq.decode(request.encode(), KINDS)
    assert caught.value.info == unknown_kinds_info(range(1000, 1063))
    assert len(caught.value.info) == 253


def test_a_malformed_body_with_unknown_kinds_is_invalid() -> None:
    """Malformed octets are reported as such even where an unknown kind precedes them."""
    octets = opaque32(u32(7) + u64(0) + opaque32(b"??") + u32(1))
    with pytest.raises(InvalidMessage):
        FetchAns.decode(octets, KINDS)


def test_a_kind_is_stored_and_found_once() -> None:
    """A Store or Find that names a kind twice is refused (sections 7.4.1.1 and 7.4.4.1)."""
    twice = u32(1) + u64(0) + opaque32(b"")
    with pytest.raises(InvalidMessage, match="twice"):
        StoreReq.decode(opaque8(RESOURCE) + b"\x00" + opaque32(twice + twice), KINDS)
    with pytest.raises(InvalidMessage, match="twice"):
        FindReq.decode(opaque8(RESOURCE) + opaque8(u32(1) + u32(1)))
    with pytest.raises(InvalidMessage, match="twice"):
        FindReq(RESOURCE, (1, 1)).encode()


@pytest.mark.parametrize("ranges", [((2, 1),), ((0, 5), (5, 6)), ((4, 9), (0, APPEND))])
def test_array_ranges(ranges: tuple[tuple[int, int], ...]) -> None:
    """A range runs forwards and ranges do not overlap (section 7.4.2.1)."""
    octets = b"".join(u32(first) + u32(last) for first, last in ranges)
    specifier = u32(16) + u64(0) + opaque16(opaque16(octets))
    with pytest.raises(InvalidMessage, match="range"):
        FetchReq.decode(opaque8(RESOURCE) + opaque16(specifier), KINDS)
    with pytest.raises(InvalidMessage, match="range"):
        FetchReq(RESOURCE, (StoredDataSpecifier(16, 0, ranges),)).encode()


def test_inner_lengths_must_agree() -> None:
    """A length that says less or more than the structure inside it has is refused."""
    octets = bytearray(FetchAns((FetchKindResponse(1, 1, (STORED,)),)).encode())
    for position in (3, 4 + 15, 4 + 16 + 3):  # of the list, of the values, of the StoredData
        for change in (-1, 1):
            changed = bytearray(octets)
            changed[position] += change
            with pytest.raises(InvalidMessage):
                FetchAns.decode(bytes(changed), KINDS)


def test_the_signed_form_of_an_array_entry_has_index_zero() -> None:
    """Whatever index an entry got, it is signed with 0; other values are signed as they travel (7.4.2.2)."""
    value = DataValue(True, b"x")
    assert ArrayEntry(9, value).encode_for_signature() == ArrayEntry(0, value).encode()
    assert ArrayEntry(APPEND, value).encode()[:4] == b"\xff\xff\xff\xff"
    assert value.encode_for_signature() == value.encode()
    assert STORED.value.encode_for_signature() == STORED.value.encode()


def test_candidates_with_and_without_ice_are_not_mixed() -> None:
    """One list holds candidates with ICE or without, never both (section 6.5.1.1)."""
    mixed = candidate(V4) + candidate(V4, link=DTLS_UDP_SR)
    with pytest.raises(InvalidMessage, match="mixed"):
        AttachReq.decode(attach(mixed))
    with pytest.raises(InvalidMessage, match="mixed"):
        AttachReq(b"", b"", b"", (HOST, HOST._replace(overlay_link=DTLS_UDP_SR)), False).encode()


def test_a_candidate_with_an_unknown_address_type_is_left_out() -> None:
    """An unknown address type is skipped by its length, and the other candidates are used (section 6.3.1.1)."""
    unknown = candidate(b"\x09\x03abc") + candidate(V4) + candidate(V4, kind=2, related=b"\x08\x00")
    assert AttachReq.decode(attach(unknown)).candidates == (
        IceCandidate("192.0.2.1", 6084, TLS_TCP_FH_NO_ICE, b"f", 1, 1),
    )


@pytest.mark.parametrize(
    "octets",
    [
        candidate(b"\x00\x00"),
        candidate(b"\x01\x07" + V4[2:] + b"\x00"),
        candidate(b"\x02\x06" + V4[2:]),
        candidate(V4, link=0),
        candidate(V4, kind=0),
        candidate(V4, kind=3),
        candidate(V4, kind=2),
    ],
    ids=["address type 0", "long IPv4", "short IPv6", "link 0", "type 0", "type 3", "no related address"],
)
def test_malformed_candidates(octets: bytes) -> None:
    """Types that are invalid or reserved, wrong lengths and a missing related address are refused."""
    with pytest.raises(InvalidMessage):
        AttachReq.decode(attach(octets))


@pytest.mark.parametrize(
    "wrong",
    [
        HOST._replace(host="example.com"),
        HOST._replace(port=65536),
        HOST._replace(priority=-1),
        HOST._replace(type=2),
        HOST._replace(related=("192.0.2.1", 1)),
        HOST._replace(type=3, related=("192.0.2.1", 1)),
        HOST._replace(overlay_link=0),
        HOST._replace(foundation=bytes(256)),
    ],
)
def test_what_does_not_fit_is_not_written(wrong: IceCandidate) -> None:
    """A candidate that could not be read back is refused when written, as a ReloadError."""
    with pytest.raises(InvalidMessage):
        AttachReq(b"", b"", b"", (wrong,), False).encode()


@pytest.mark.parametrize(
    "body",
    [
        PingAns(2**64, 0),
        PingAns(-1, 0),
        ProbeReq((256,)),
        ProbeReq((0,)),
        ProbeAns(((1, 2**32),)),
        StoreReq(RESOURCE, 256, ()),
        StoreReq(RESOURCE, 0, (StoreKindData(2**32, 0, ()),)),
        StoreReq(RESOURCE, 0, (StoreKindData(1, 0, (STORED._replace(lifetime=-1),)),)),
        FetchReq(RESOURCE, (StoredDataSpecifier(1, 0, ((0, 1),), ()),)),
        ErrorResponse(65536),
        ErrorResponse(2, bytes(65536)),
        ConfigUpdateReq(1, b"", (b"x",)),
        ConfigUpdateReq(2, b"x"),
        ConfigUpdateReq(3),
    ],
)
def test_values_out_of_range_are_not_written(body: Body) -> None:
    """A body whose values don't fit their fields raises InvalidMessage when written, nothing else."""
    with pytest.raises(InvalidMessage):
        body.encode()


def test_probe_information() -> None:
    """Unknown information of another length is skipped, known one must have 4 octets, type 0 is invalid."""
    known = b"\x02\x04" + u32(5)
    assert ProbeAns.decode(opaque16(b"\x09\x02??" + known)).information == ((2, 5),)
    assert ProbeAns.decode(opaque16(b"\x09\x04" + u32(1))).information == ((9, 1),)
    for wrong in (b"\x03\x02??", b"\x00\x04" + u32(1), b"\x02\x04\x00"):
        with pytest.raises(InvalidMessage):
            ProbeAns.decode(opaque16(wrong))
    with pytest.raises(InvalidMessage):
        ProbeReq.decode(opaque8(b"\x01\x00"))


def test_config_update_lengths_and_types() -> None:
    """An unknown or invalid type, and a length that disagrees with what it covers, are refused (6.5.4.1)."""
    document = opaque24(b"<overlay/>")
    assert ConfigUpdateReq.decode(b"\x01" + opaque32(document)).config_data == b"<overlay/>"
    for octets in (
        b"\x00" + opaque32(document),
        b"\x03" + opaque32(document),
        b"\x01" + u32(len(document) + 1) + document,
        b"\x01" + u32(len(document) - 1) + document,
        b"\x02" + opaque32(opaque24(u16(5) + b"ab")),
    ):
        with pytest.raises(InvalidMessage):
            ConfigUpdateReq.decode(octets)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_errors_travel(code: ErrorCode) -> None:
    """Each error code is raised, answered, read and raised again as the same class with the same info."""
    error = errors.error_for(code, b"because")
    response = ErrorResponse.of(error)
    assert response == ErrorResponse(int(code), b"because")
    again = ErrorResponse.decode(response.encode()).error()
    assert type(again) is type(error)
    assert (again.code, again.info) == (code, b"because")
    assert str(again).startswith("Error_")


def test_each_error_class_has_its_code() -> None:
    """All codes but the two experimental ones have a class, and its name is the RFC's."""
    named = {code for code in ErrorCode if code not in (ErrorCode.EXP_A, ErrorCode.EXP_B)}
    assert set(errors.ERROR_BY_CODE) == named
    for code, error in errors.ERROR_BY_CODE.items():
        assert errors.error_name(code).replace("_", "").lower() == f"error{error.__name__}".lower()


def test_an_error_code_of_tomorrow_is_kept() -> None:
    """A code that RFC 6940 does not name is a plain ReloadError with that code."""
    error = ErrorResponse(0x15, b"Underlay").error()
    assert type(error) is ReloadError
    assert (error.code, error.info, str(error)) == (0x15, b"Underlay", "Error_0x15: Underlay")


def test_error_info_is_the_detail_in_utf8() -> None:
    """Unless it is given, the info is the detail as UTF-8, cut so that it always fits."""
    assert errors.NotFound("weg für immer").info == "weg für immer".encode()
    assert len(ErrorResponse.of(errors.NotFound("ü" * 100_000)).encode()) < 65536
    assert errors.Forbidden("text", b"\x00").info == b"\x00"
    assert errors.error_for(ErrorCode.UNKNOWN_KIND, b"\x04\xf0\x00\x00\x01").detail == ""

"""Forwarding header, contents, transit and fragments."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.octets import opaque8, opaque16, opaque32, u16, u32
from p2psipd.proto.reload.errors import (
    IncompatibleWithOverlay,
    InvalidMessage,
    MessageTooLarge,
    ReloadError,
    UnknownExtension,
    UnsupportedForwardingOption,
)
from p2psipd.proto.reload.ids import NodeId, ResourceId, distance, node_id, overlay_hash, resource_id
from p2psipd.proto.reload.security import (
    CERT_HASH,
    NO_SIGNATURE,
    SecurityBlock,
    Signature,
    SignerIdentity,
    message_signature_input,
    value_signature_input,
)
from p2psipd.proto.reload.wire import (
    DESTINATION_CRITICAL,
    FORWARD_CRITICAL,
    RESPONSE_COPY,
    Extension,
    ForwardingHeader,
    ForwardingOption,
    MessageContents,
    NodeDestination,
    OpaqueDestination,
    Reassembler,
    ResourceDestination,
    answer_destinations,
    answer_options,
    check_extensions,
    check_options,
    decode_contents,
    decode_header,
    encode_message,
    fragment,
    transit,
)
from tests.proto.reload import strategies

A, B, C = (NodeId(bytes((number,)) * 16) for number in (1, 2, 3))
HEADER = ForwardingHeader(0xA860D069, 7, 20, 0, True, 99, 0, (), (NodeDestination(B),))
BLOCK = SecurityBlock((), NO_SIGNATURE)
CONTENTS = MessageContents(0x17, opaque16(b"padding"))
MESSAGE = encode_message(HEADER, CONTENTS.encode(), BLOCK)


def message_with(*, via: bytes = b"", destinations: bytes = b"\x01\x10" + B, options: bytes = b"") -> bytes:
    """A message whose header carries these octets as its lists."""
    head = bytearray(HEADER.encode(0)[:38])
    head[32:38] = u16(len(via)) + u16(len(destinations)) + u16(len(options))
    lists = via + destinations + options
    head[16:20] = u32(len(head) + len(lists) + 3)
    return bytes(head) + lists + b"end"


# -- header


@settings(max_examples=300)
@given(header=strategies.headers, tail=st.binary(max_size=30))
def test_header_round_trip(header: ForwardingHeader, tail: bytes) -> None:
    """Every header comes back as it was, with the offset of what follows it."""
    data = header.encode(len(tail)) + tail
    assert decode_header(data) == (header, len(data) - len(tail))


@settings(max_examples=500)
@given(data=st.data())
def test_any_header_raises_only_reload_errors(data: st.DataObject) -> None:
    """Arbitrary octets, also behind a plausible beginning or in the lists, are a header or a ReloadError."""
    octets = data.draw(
        st.one_of(
            st.binary(max_size=80),
            st.binary(max_size=80).map(lambda rest: MESSAGE[:32] + rest),
            st.builds(
                message_with,
                via=st.binary(max_size=40),
                destinations=st.binary(max_size=40),
                options=st.binary(max_size=40),
            ),
        )
    )
    try:
        header, offset = decode_header(octets)
    except ReloadError:
        return
    tail = octets[offset:]
    assert decode_header(header.encode(len(tail)) + tail)[0] == header


@pytest.mark.parametrize(
    ("position", "octets", "error"),
    [
        (0, b"\x52", InvalidMessage),
        (10, b"\x01", IncompatibleWithOverlay),
        (10, b"\x0b", IncompatibleWithOverlay),
        (12, b"\x40", InvalidMessage),
        (12, b"\xe0", InvalidMessage),
        (12, b"\xc1", InvalidMessage),
        (16, b"\x00\x00\x00\x25", InvalidMessage),
        (32, b"\xff\xff", InvalidMessage),
        (34, b"\x00\x00", InvalidMessage),
        (36, b"\x00\x01", InvalidMessage),
    ],
    ids=[
        "token",
        "version 0.1",
        "version 1.1",
        "fragment's high bit",
        "first reserved bit",
        "last reserved bit",
        "length",
        "via length",
        "no destination",
        "options length",
    ],
)
def test_fixed_fields_are_checked(position: int, octets: bytes, error: type[ReloadError]) -> None:
    """Token, version, reserved bits and lengths are what section 6.3.2 says, or the message is refused."""
    changed = MESSAGE[:position] + octets + MESSAGE[position + len(octets) :]
    with pytest.raises(error):
        decode_header(changed)


def test_the_length_is_that_of_the_message() -> None:
    """A message with an octet more or less than its header says is refused."""
    for data in (MESSAGE + b"\x00", MESSAGE[:-1], MESSAGE[:37], b""):
        with pytest.raises(InvalidMessage):
            decode_header(data)


RESOURCE = b"\x02\x04\x03abc"
NODE = b"\x01\x10" + A


@pytest.mark.parametrize(
    ("via", "destinations"),
    [
        (RESOURCE, NODE),
        (b"", RESOURCE + NODE),
        (b"", RESOURCE + RESOURCE),
        (b"", b"\x01\x10" + bytes(16)),
        (b"\x01\x10" + bytes(16), NODE),
        (b"", b"\x01\x0f" + bytes(15)),
        (b"", b"\x01\x11" + bytes(17)),
        (b"", b"\x01\x10" + A[:15]),
        (b"", b"\x02\x04\x04abc"),
        (b"", b"\x02\x05\x03abcd"),
        (b"", b"\x02\x01\x00"),
        (b"", b"\x02\x00"),
        (b"", b"\x03\x00"),
        (b"", b"\x03\x03\x01ab"),
        (b"", b"\x00\x00"),
        (b"", b"\x04\x00"),
        (b"\x7f\x00", NODE),
        (b"", b"\x80"),
        (b"", b"\x01"),
    ],
)
def test_malformed_lists(via: bytes, destinations: bytes) -> None:
    """Resources out of place, Node-IDs of zeros or another length, lengths that disagree and unknown types fail."""
    with pytest.raises(InvalidMessage):
        decode_header(message_with(via=via, destinations=destinations))


def test_both_forms_of_an_opaque_id() -> None:
    """Two octets with the top bit set are an opaque ID, the same as in the long form (section 6.3.2.2)."""
    header, _ = decode_header(message_with(via=b"\x81\x02\x03\x03\x02\x81\x02\x03\x03\x02\x01\x02"))
    assert header.via == (
        OpaqueDestination(b"\x81\x02"),
        OpaqueDestination(b"\x81\x02"),
        OpaqueDestination(b"\x01\x02"),
    )
    assert OpaqueDestination(b"\x81\x02").encode() == b"\x81\x02"
    assert OpaqueDestination(b"\x01\x02").encode() == b"\x03\x03\x02\x01\x02"


def test_resources_are_last_when_written() -> None:
    """A header with a resource in its Via List, or before the end of its Destination List, is not written."""
    resource = ResourceDestination(ResourceId(b"abc"))
    for wrong in (
        HEADER._replace(via=(resource,)),
        HEADER._replace(destinations=(resource, NodeDestination(B))),
        HEADER._replace(destinations=()),
    ):
        with pytest.raises(InvalidMessage):
            wrong.encode(0)
    assert decode_header(HEADER._replace(destinations=(NodeDestination(B), resource)).encode(0))


@pytest.mark.parametrize(
    "wrong",
    [
        HEADER._replace(ttl=256),
        HEADER._replace(transaction_id=-1),
        HEADER._replace(overlay=2**32),
        HEADER._replace(fragment_offset=2**24),
        HEADER._replace(via=(NodeDestination(B),) * 4000),
        HEADER._replace(destinations=(NodeDestination(NodeId(b"short")),)),
        HEADER._replace(destinations=(ResourceDestination(ResourceId(b"")),)),
        HEADER._replace(destinations=(ResourceDestination(ResourceId(bytes(255))),)),
        HEADER._replace(destinations=(OpaqueDestination(bytes(255)),)),
        HEADER._replace(options=(ForwardingOption(1, 0, bytes(65536)),)),
        HEADER._replace(options=(ForwardingOption(0, 0, b""),)),
    ],
)
def test_what_does_not_fit_a_header_is_not_written(wrong: ForwardingHeader) -> None:
    """A value beyond its field raises InvalidMessage when written, nothing else."""
    with pytest.raises(InvalidMessage):
        wrong.encode(0)


# -- options and extensions


def test_critical_options_are_reported_to_whom_they_concern() -> None:
    """An unknown option stops a forwarder or an answerer exactly if its flag says so (section 6.3.2.3)."""
    forwarder = HEADER._replace(options=(ForwardingOption(9, FORWARD_CRITICAL, b""),))
    answerer = HEADER._replace(options=(ForwardingOption(9, DESTINATION_CRITICAL, b""),))
    harmless = HEADER._replace(options=(ForwardingOption(9, RESPONSE_COPY, b""),))
    with pytest.raises(UnsupportedForwardingOption):
        check_options(forwarder, FORWARD_CRITICAL)
    with pytest.raises(UnsupportedForwardingOption):
        check_options(answerer, DESTINATION_CRITICAL, known=(1,))
    check_options(forwarder, DESTINATION_CRITICAL)
    check_options(answerer, FORWARD_CRITICAL)
    check_options(forwarder, FORWARD_CRITICAL, known=(9,))
    check_options(harmless, FORWARD_CRITICAL | DESTINATION_CRITICAL)


def test_copied_options_lose_their_flags() -> None:
    """An answer carries the options marked RESPONSE_COPY without the three flags, other bits kept."""
    request = HEADER._replace(
        options=(
            ForwardingOption(1, 0x0F, b"x"),
            ForwardingOption(2, 0x03, b"y"),
            ForwardingOption(3, 4, b""),
        )
    )
    assert answer_options(request) == (ForwardingOption(1, 0x08, b"x"), ForwardingOption(3, 0, b""))


@pytest.mark.parametrize("options", [b"\x00\x00\x00\x00", b"\x01\x00\x00", b"\x01\x00\x00\x05abc"])
def test_malformed_options(options: bytes) -> None:
    """Option type 0, a head cut off and a value cut off are refused."""
    with pytest.raises(InvalidMessage):
        decode_header(message_with(options=options))


def test_critical_extensions() -> None:
    """An unknown extension is an error only if it is critical (section 6.3.3)."""
    plain = MessageContents(1, b"", (Extension(7, False, b""),))
    critical = MessageContents(1, b"", (Extension(7, True, b""),))
    check_extensions(plain)
    check_extensions(critical, known=(7,))
    with pytest.raises(UnknownExtension):
        check_extensions(critical)


# -- contents and security block


@settings(max_examples=300)
@given(contents=strategies.contents, block=strategies.security_blocks, before=st.binary(max_size=5))
def test_contents_round_trip(contents: MessageContents, block: SecurityBlock, before: bytes) -> None:
    """Contents and security block come back, with the very octets that are signed."""
    octets = contents.encode()
    assert decode_contents(before + octets + block.encode(), len(before)) == (contents, octets, block)


@settings(max_examples=500)
@given(data=st.data())
def test_any_contents_raise_only_reload_errors(data: st.DataObject) -> None:
    """Arbitrary octets, also in place of some of a good message's, are contents or a ReloadError."""
    good = (
        CONTENTS.encode()
        + SecurityBlock((b"der",), Signature(4, 3, SignerIdentity(CERT_HASH, 4, bytes(32)), b"s")).encode()
    )
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    octets = good[:start] + data.draw(st.binary(max_size=8)) + good[stop:]
    try:
        contents, signed, block = decode_contents(octets, 0)
    except ReloadError:
        return
    assert contents.encode() == signed
    assert signed + block.encode() == octets


SIGNATURE = b"\x04\x03\x01\x00\x04\x04\x02hh" + opaque16(b"s")


@pytest.mark.parametrize(
    "octets",
    [
        u16(0) + opaque32(b"") + opaque32(b"") + opaque16(b"") + SIGNATURE,
        u16(0x8000) + opaque32(b"") + opaque32(b"") + opaque16(b"") + SIGNATURE,
        u16(0xFFFE) + opaque32(b"") + opaque32(b"") + opaque16(b"") + SIGNATURE,
        u16(1) + opaque32(b"") + opaque32(b"\x00\x00\x00" + opaque32(b"")) + opaque16(b"") + SIGNATURE,
        u16(1) + opaque32(b"") + opaque32(b"\x00\x07\x02" + opaque32(b"")) + opaque16(b"") + SIGNATURE,
        u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"\x01" + opaque16(b"pgp")) + SIGNATURE,
        u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"") + SIGNATURE + b"\x00",
        u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"") + b"\x04\x03\x00\x00\x00" + opaque16(b""),
        u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"") + b"\x04\x03\x04\x00\x00" + opaque16(b""),
        u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"") + b"\x00\x00\x03\x00\x01x" + opaque16(b""),
        u16(1)
        + opaque32(b"")
        + opaque32(b"")
        + opaque16(b"")
        + b"\x04\x03\x01\x00\x05\x04\x02hhx"
        + opaque16(b""),
    ],
    ids=[
        "code 0",
        "reserved code",
        "last reserved code",
        "extension 0",
        "critical is 2",
        "OpenPGP",
        "octet left over",
        "identity 0",
        "unknown identity",
        "identity none with octets",
        "identity's lengths",
    ],
)
def test_malformed_contents(octets: bytes) -> None:
    """Invalid and reserved numbers, loose Booleans, lengths that disagree and octets left over are refused."""
    with pytest.raises(InvalidMessage):
        decode_contents(octets, 0)
    assert decode_contents(u16(1) + opaque32(b"") + opaque32(b"") + opaque16(b"") + SIGNATURE, 0)


def test_what_does_not_fit_contents_is_not_written() -> None:
    """Values beyond their fields raise InvalidMessage, in contents, block and signature inputs alike."""
    identity = SignerIdentity(CERT_HASH, 4, bytes(256))
    for write in (
        MessageContents(65536, b"").encode,
        MessageContents(1, b"", (Extension(65536, False, b""),)).encode,
        SecurityBlock((bytes(65536),), NO_SIGNATURE).encode,
        SecurityBlock((bytes(60000), bytes(60000)), NO_SIGNATURE).encode,
        Signature(4, 3, SignerIdentity(CERT_HASH, 4, b""), bytes(65536)).encode,
        Signature(256, 3, SignerIdentity(CERT_HASH, 4, b""), b"").encode,
        identity.encode,
        lambda: value_signature_input(bytes(256), 1, 1, b"", b""),
        lambda: value_signature_input(b"r", -1, 1, b"", b""),
        lambda: message_signature_input(2**32, 1, b"", b""),
    ):
        with pytest.raises(InvalidMessage):
            write()


def test_signature_inputs() -> None:
    """Message: overlay, transaction, contents, identity; value: resource with its length, kind, time, value."""
    identity = SignerIdentity(CERT_HASH, 4, b"hash").encode()
    assert identity == b"\x01\x00\x06\x04\x04hash"
    assert message_signature_input(1, 2, b"contents", identity) == (
        b"\x00\x00\x00\x01" + b"\x00\x00\x00\x00\x00\x00\x00\x02" + b"contents" + identity
    )
    assert value_signature_input(b"abc", 1, 2, b"value", identity) == (
        opaque8(b"abc") + b"\x00\x00\x00\x01" + b"\x00\x00\x00\x00\x00\x00\x00\x02" + b"value" + identity
    )


def test_identifiers() -> None:
    """Resource-IDs are the first 16 octets of SHA-256, overlays the last 4 of SHA-1, distance is XOR."""
    assert resource_id("bob@overlay.example") == hashlib.sha256(b"bob@overlay.example").digest()[:16]
    assert resource_id(b"\xff") == hashlib.sha256(b"\xff").digest()[:16]
    assert (
        overlay_hash("overlay.example").to_bytes(4, "big") == hashlib.sha1(b"overlay.example").digest()[-4:]
    )
    assert distance(b"\x0f" + bytes(15), b"\xf0" + bytes(15)) == 0xFF << 120
    assert distance(A, A) == 0
    assert node_id(A) == A
    for wrong in (bytes(16), bytes(15), b"\x01" * 17):
        with pytest.raises(InvalidMessage):
            node_id(wrong)


# -- on the way


@settings(max_examples=300)
@given(
    header=strategies.headers,
    tail=st.binary(max_size=30),
    previous=strategies.nodes,
    popped=st.integers(0, 2),
    ttl=strategies.u8,
)
def test_transit(header: ForwardingHeader, tail: bytes, previous: NodeId, popped: int, ttl: int) -> None:
    """A message passed on equals one written anew with the new lists and TTL, tail and options unchanged."""
    data = header.encode(len(tail)) + tail
    read, offset = decode_header(data)
    via = (*read.via, NodeDestination(previous))
    destinations = read.destinations[min(popped, len(read.destinations) - 1) :]
    passed = transit(data, read, offset, via=via, destinations=destinations, ttl=ttl)
    expected = header._replace(via=via, destinations=destinations, ttl=ttl)
    assert passed == expected.encode(len(tail)) + tail
    assert transit(data, read, offset, via=read.via, destinations=read.destinations, ttl=read.ttl) == data


def test_transit_replaces_a_compressed_list() -> None:
    """A Via List that is not the old one with more entries is written as given (list compression)."""
    header = HEADER._replace(via=(NodeDestination(A), NodeDestination(C)))
    data = header.encode(3) + b"end"
    via = (OpaqueDestination(b"\x80\x01"),)
    destinations = (NodeDestination(C), *header.destinations)
    passed = transit(data, *decode_header(data), via=via, destinations=destinations, ttl=19)
    assert passed == header._replace(via=via, destinations=destinations, ttl=19).encode(3) + b"end"


def test_transit_lists_must_fit() -> None:
    """Lists beyond 65535 octets or empty, and a TTL below 0, raise InvalidMessage, nothing else."""
    header, offset = decode_header(MESSAGE)
    with pytest.raises(InvalidMessage):
        transit(MESSAGE, header, offset, via=(), destinations=(), ttl=1)
    with pytest.raises(InvalidMessage):
        transit(
            MESSAGE, header, offset, via=(NodeDestination(A),) * 4000, destinations=header.destinations, ttl=1
        )
    with pytest.raises(InvalidMessage):
        transit(MESSAGE, header, offset, via=(), destinations=header.destinations, ttl=-1)


def test_answers_go_back_the_way_of_the_request() -> None:
    """The RFC's example: E got the request from D with Via [A, B, C] and answers to [D, C, B, A] (6.1.2)."""
    a, b, c, d = (NodeDestination(NodeId(bytes((number,)) * 16)) for number in range(1, 5))
    assert answer_destinations((a, b, c), d.node) == (d, c, b, a)
    assert answer_destinations((), a.node) == (a,)


# -- fragments


def long_message(size: int, *, transaction_id: int = 99, via: int = 0) -> bytes:
    """A message with ``size`` octets after its header."""
    header = HEADER._replace(transaction_id=transaction_id, via=(NodeDestination(A),) * via)
    return header.encode(size) + random.Random(size).randbytes(size)


@given(
    size=st.integers(0, 20_000), mtu=st.integers(0, 3000), again=st.integers(0, 2000), seed=st.integers(0, 99)
)
def test_fragments_join(size: int, mtu: int, again: int, seed: int) -> None:
    """Cut for one link and cut again for a narrower, arriving in any order and twice, a message is whole again."""
    message = long_message(size)
    pieces = []
    for piece in fragment(message, *decode_header(message), mtu):
        pieces += fragment(piece, *decode_header(piece), again)
    if len(pieces) > 1:
        pieces += pieces
    random.Random(seed).shuffle(pieces)
    reassembler = Reassembler()
    joined = [reassembler.add(A, *_split(piece), now=0.0) for piece in pieces]
    assert message in joined
    assert set(joined) <= {message, None}


def _split(data: bytes) -> tuple[ForwardingHeader, bytes, int]:
    header, offset = decode_header(data)
    return header, data, offset


@given(size=st.integers(0, 20_000), mtu=st.integers(300, 3000), via=st.integers(0, 5))
def test_fragments_are_as_the_rfc_says(size: int, mtu: int, via: int) -> None:
    """Equal parts of at least 256 octets with 32 to spare for the Via List, or one piece as it was (6.7)."""
    message = long_message(size, via=via)
    header, offset = decode_header(message)
    pieces = fragment(message, header, offset, mtu)
    if len(pieces) == 1:
        room = mtu - 32 - offset
        assert pieces == [message]
        assert len(message) <= mtu or room < 256 or size // -(-size // room) < 256
        return
    bodies = [len(piece) - offset for piece in pieces]
    assert min(bodies) >= 256
    assert max(bodies) - min(bodies) <= 1
    assert max(map(len, pieces)) <= mtu - 32
    heads = [decode_header(piece)[0] for piece in pieces]
    assert [head.last_fragment for head in heads] == [False] * (len(pieces) - 1) + [True]
    assert {head.via for head in heads} == {header.via}
    assert not any(head.is_whole for head in heads)


def test_a_whole_message_needs_no_joining() -> None:
    """What is no fragment is given back at once and leaves nothing behind."""
    reassembler = Reassembler()
    assert reassembler.add(A, *_split(MESSAGE), now=0.0) == MESSAGE
    assert (len(reassembler), reassembler.octets, reassembler.next_expiry()) == (0, 0, None)


def test_fragments_of_different_sources_are_kept_apart() -> None:
    """The same transaction id from two sources is two messages."""
    message = long_message(1200)
    first, second, *rest = fragment(message, *decode_header(message), 600)
    reassembler = Reassembler()
    assert reassembler.add(A, *_split(first), now=0.0) is None
    for piece in (second, *rest):
        assert reassembler.add(B, *_split(piece), now=0.0) is None
    assert len(reassembler) == 2


def test_incomplete_messages_expire() -> None:
    """Fragments are kept for 15 seconds from the first of them, however many more arrive."""
    message = long_message(1200)
    pieces = fragment(message, *decode_header(message), 600)
    reassembler = Reassembler()
    reassembler.add(A, *_split(pieces[0]), now=100.0)
    reassembler.add(A, *_split(pieces[1]), now=114.0)
    assert reassembler.next_expiry() == 115.0
    assert reassembler.expire(114.9) == 0
    assert reassembler.expire(115.0) == 1
    assert (len(reassembler), reassembler.octets, reassembler.next_expiry()) == (0, 0, None)
    assert reassembler.add(A, *_split(pieces[-1]), now=115.0) is None


@given(
    pieces=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 2), st.integers(0, 900), st.integers(0, 600), st.booleans()
        ),
        max_size=60,
    )
)
def test_the_reassembler_is_bounded(pieces: list[tuple[int, int, int, int, bool]]) -> None:
    """Whatever fragments arrive, messages, octets and message size stay within their limits."""
    reassembler = Reassembler(max_message=1000, max_messages=3, max_octets=1500, max_fragments=4)
    for source, transaction, start, size, last in pieces:
        header = HEADER._replace(transaction_id=transaction, fragment_offset=start, last_fragment=last)
        data = header.encode(size) + bytes(size)
        try:
            joined = reassembler.add(bytes((source,)), *_split(data), now=0.0)
        except ReloadError:
            joined = None
        if joined is not None:
            assert decode_header(joined)[0].is_whole
            assert len(joined) <= 1000 + 100
        assert len(reassembler) <= 3
        assert 0 <= reassembler.octets <= 1500
    reassembler.expire(15.0)
    assert (len(reassembler), reassembler.octets) == (0, 0)


def test_a_greedy_source_does_not_shut_out_another() -> None:
    """When room is short, the source that holds most loses its oldest message."""
    reassembler = Reassembler(max_messages=4)
    other = long_message(1200, transaction_id=1)
    pieces = fragment(other, *decode_header(other), 600)
    assert reassembler.add(B, *_split(pieces[0]), now=0.0) is None
    for number in range(50):
        flood = long_message(1200, transaction_id=1000 + number)
        reassembler.add(A, *_split(fragment(flood, *decode_header(flood), 600)[0]), now=1.0)
    results = [reassembler.add(B, *_split(piece), now=2.0) for piece in pieces[1:]]
    assert results[-1] == other


def part(start: int, size: int, *, last: bool = False) -> tuple[ForwardingHeader, bytes, int]:
    """A fragment of ``size`` octets at ``start``."""
    return _split(HEADER._replace(fragment_offset=start, last_fragment=last).encode(size) + bytes(size))


@pytest.mark.parametrize(
    ("before", "then", "error"),
    [
        ((part(300, 300, last=True),), part(600, 300), InvalidMessage),
        ((part(300, 300, last=True),), part(500, 300, last=True), InvalidMessage),
        ((part(600, 300),), part(300, 300, last=True), InvalidMessage),
        ((), part(300, 0), InvalidMessage),
        ((), part(65000, 300), MessageTooLarge),
        (tuple(part(10 * number, 10) for number in range(256)), part(2560, 10), MessageTooLarge),
    ],
    ids=["beyond the last", "two ends", "last before others", "empty", "too large", "too many"],
)
def test_contradicting_fragments(
    before: tuple[tuple[ForwardingHeader, bytes, int], ...],
    then: tuple[ForwardingHeader, bytes, int],
    error: type[ReloadError],
) -> None:
    """Fragments that contradict each other or exceed a limit drop the message with a ReloadError."""
    reassembler = Reassembler()
    for piece in before:
        assert reassembler.add(A, *piece, now=0.0) is None
    with pytest.raises(error):
        reassembler.add(A, *then, now=0.0)
    assert (len(reassembler), reassembler.octets) == (0, 0)

"""Reader and writers of octets."""

from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto import octets
from p2psipd.proto.octets import OctetsError, Reader

READS = ("u8", "u16", "u24", "u32", "u64", "boolean", "opaque8", "opaque16", "opaque24", "opaque32")
LISTS = ("list8", "list16", "list24", "list32")


@pytest.mark.parametrize(("name", "size"), [("u8", 1), ("u16", 2), ("u24", 3), ("u32", 4), ("u64", 8)])
def test_integers_are_big_endian_and_bounded(name: str, size: int) -> None:
    """An integer of n octets goes out and comes back for 0 and 2^8n-1; one beyond either end is an OctetsError."""
    write = getattr(octets, name)
    for value in (0, 1, 256**size - 1):
        written = write(value)
        assert written == value.to_bytes(size, "big")
        reader = Reader(written)
        assert getattr(reader, name)() == value
        assert reader.at_end
    for value in (-1, 256**size):
        with pytest.raises(OctetsError):
            write(value)


@given(size=st.integers(1, 4), body=st.binary(max_size=255), after=st.binary(max_size=3))
def test_opaque_round_trip(size: int, body: bytes, after: bytes) -> None:
    """A length of one to four octets and its body are read back, and what follows stays unread."""
    name = f"opaque{8 * size}"
    written = getattr(octets, name)(body)
    assert written == len(body).to_bytes(size, "big") + body
    reader = Reader(written + after)
    assert getattr(reader, name)() == body
    assert reader.rest() == after


def test_too_long_a_body_is_refused() -> None:
    """A body that its length octets cannot count is an OctetsError, not an OverflowError."""
    with pytest.raises(OctetsError):
        octets.opaque8(bytes(256))
    with pytest.raises(OctetsError):
        octets.opaque16(bytes(65536))


@given(
    data=st.binary(max_size=40),
    start=st.integers(-2, 42),
    end=st.integers(-2, 42),
    calls=st.lists(st.sampled_from(READS + LISTS), max_size=12),
)
def test_nothing_is_read_beyond_the_range(data: bytes, start: int, end: int, calls: list[str]) -> None:
    """Whatever is read, the cursor stays within start..end, and every failure is an OctetsError."""
    try:
        reader = Reader(data, start, end)
        for name in calls:
            before = reader.position
            result = getattr(reader, name)()
            assert start <= before <= reader.position <= end
            if name in LISTS:
                assert reader.position <= result <= end
            if isinstance(result, bytes):
                assert reader.data[reader.position - len(result) : reader.position] == result
        reader.take(end - reader.position)
        reader.expect_end()
    except OctetsError:
        pass


@given(data=st.binary(max_size=20), size=st.integers(0, 25))
def test_take_and_unpack_stop_at_the_end(data: bytes, size: int) -> None:
    """take and unpack give exactly the octets asked for or raise, leaving the cursor where it was."""
    layout = Struct(f">{size}s")
    for read in (lambda reader: reader.take(size), lambda reader: reader.unpack(layout)[0]):
        reader = Reader(data + b"not ours", 0, len(data))
        if size <= len(data):
            assert read(reader) == data[:size]
            assert reader.position == size
        else:
            with pytest.raises(OctetsError):
                read(reader)
            assert reader.position == 0


def test_boolean_is_zero_or_one() -> None:
    """Every octet but 0 and 1 is refused as a Boolean (RFC 6940 section 6.3.1.1)."""
    assert Reader(b"\x00").boolean() is False
    assert Reader(b"\x01").boolean() is True
    for value in range(2, 256):
        with pytest.raises(OctetsError):
            Reader(bytes((value,))).boolean()


def test_expectations() -> None:
    """expect and expect_end raise unless the cursor stands exactly there."""
    reader = Reader(b"\x02ab")
    stop = reader.list8()
    assert stop == 3
    reader.u8()
    with pytest.raises(OctetsError):
        reader.expect(stop)
    with pytest.raises(OctetsError):
        reader.expect_end()
    reader.u8()
    reader.expect(stop)
    reader.expect_end()

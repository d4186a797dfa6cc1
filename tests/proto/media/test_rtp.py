"""RTP: the packet codec and the receiver's account."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.media.errors import MediaError
from p2psipd.proto.media.rtp import Reception, RtpPacket, decode_packet

PACKETS = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 71),
    sequence=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(0, 0xFFFFFFFF),
    payload=st.binary(max_size=200),
    marker=st.booleans(),
    csrc=st.lists(st.integers(0, 0xFFFFFFFF), max_size=15).map(tuple),
    extension=st.none()
    | st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=5).map(lambda octets: octets * 4)),
)


@given(PACKETS)
def test_round_trip(packet: RtpPacket) -> None:
    """A packet decodes to what was encoded."""
    assert decode_packet(packet.encode()) == packet


@given(st.binary(max_size=100))
def test_any_octets(data: bytes) -> None:
    """Arbitrary octets give a packet or MediaError, nothing else."""
    try:
        decode_packet(data)
    except MediaError:
        return
    assert data[0] >> 6 == 2


def test_known_octets() -> None:
    """The fixed header lies as in RFC 3550 section 5.1."""
    packet = RtpPacket(8, 0x1234, 0x01020304, 0xAABBCCDD, b"xy", True)
    assert packet.encode() == bytes.fromhex("8088123401020304aabbccdd") + b"xy"


def test_padding_is_taken_off() -> None:
    """Padding counts itself and is no payload (RFC 3550 section 5.1)."""
    data = bytearray(RtpPacket(0, 1, 2, 3, b"voice").encode() + b"\0\0\3")
    data[0] |= 0x20
    assert decode_packet(bytes(data)).payload == b"voice"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 11,
        b"\x40" + bytes(11),
        b"\x81" + bytes(11),
        b"\x90" + bytes(11),
        b"\xa0" + bytes(11),
        b"\xa0" + bytes(10) + b"\xff",
        b"\x80\xc8" + bytes(10),
    ],
)
def test_refused(data: bytes) -> None:
    """Short, foreign, overrunning and RTCP packets are refused."""
    with pytest.raises(MediaError):
        decode_packet(data)


def test_fields_out_of_range() -> None:
    """What does not fit a field is the package's error too."""
    for packet in (
        RtpPacket(0, 0x10000, 0, 0, b""),
        RtpPacket(0, 0, 0, 0, b"", csrc=tuple(range(16))),
        RtpPacket(0, 0, 0, 0, b"", extension=(0, b"abc")),
    ):
        with pytest.raises(MediaError):
            packet.encode()


def _receive(sequences: list[int], ssrc: int = 7) -> Reception:
    reception = Reception()
    for index, sequence in enumerate(sequences):
        packet = RtpPacket(0, sequence & 0xFFFF, sequence * 160 & 0xFFFFFFFF, ssrc, bytes(160))
        reception.receive(packet, index * 0.02)
    return reception


@pytest.mark.parametrize(
    ("sequences", "received", "lost", "late", "repeated"),
    [
        ([1, 2, 3, 4], 4, 0, 0, 0),
        ([1, 2, 5, 6], 4, 2, 0, 0),
        ([1, 3, 2, 4], 4, 0, 1, 0),
        ([1, 2, 2, 3, 2], 3, 0, 0, 2),
        ([65534, 65535, 65536, 65537], 4, 0, 0, 0),
        ([10, 9, 11], 3, 0, 1, 0),
        # A stray jump is dropped, and two packets in a row at the new place are a restart.
        ([1, 2, 20000, 3], 3, 0, 0, 0),
        ([1, 2, 20000, 20001, 20002], 4, 0, 0, 0),
    ],
)
def test_account(sequences: list[int], received: int, lost: int, late: int, repeated: int) -> None:
    """Loss, lateness, repetition, wrap and restart are told apart (RFC 3550 appendix A.1)."""
    reception = _receive(sequences)
    assert (reception.received, reception.lost, reception.late, reception.repeated) == (
        received,
        lost,
        late,
        repeated,
    )


@given(st.lists(st.integers(0, 0xFFFF), max_size=60))
def test_account_never_goes_negative(sequences: list[int]) -> None:
    """Whatever comes, every accepted packet was expected."""
    reception = _receive(sequences)
    assert 0 <= reception.received <= len(sequences)
    assert reception.lost >= 0


def test_even_pace_has_no_jitter() -> None:
    """Packets at their pace have no jitter; one that is 16 ms late has an eighth of a millisecond's samples
    more."""
    assert _receive(list(range(50))).jitter == pytest.approx(0, abs=1e-6)
    reception = _receive([0, 1])
    reception.receive(RtpPacket(0, 2, 320, 7, b""), 0.056)
    assert reception.jitter == pytest.approx(0.016 * 8000 / 16)

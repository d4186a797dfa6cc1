"""Frames, acknowledgements and the round-trip estimate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.reload.errors import InvalidMessage, MessageTooLarge, ReloadError
from p2psipd.proto.reload.framing import (
    INITIAL_RTO,
    MAX_UNACKED,
    AckFrame,
    AckHistory,
    DataFrame,
    Frame,
    FrameDecoder,
    FramedLink,
    encode_ack,
    encode_data,
)

sequences = st.integers(0, 0xFFFFFFFF)
frames = st.one_of(
    st.builds(DataFrame, sequences, st.binary(max_size=60)), st.builds(AckFrame, sequences, sequences)
)


def encode(frame: Frame) -> bytes:
    """The frame's octets."""
    return encode_data(*frame) if isinstance(frame, DataFrame) else encode_ack(*frame)


@settings(max_examples=300)
@given(sent=st.lists(frames, max_size=8), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    """However the stream is cut into pieces, the same frames come out in order and nothing stays behind."""
    stream = b"".join(map(encode, sent))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = FrameDecoder()
    received: list[Frame] = []
    for start, stop in zip(edges, edges[1:], strict=False):
        received += decoder.feed(stream[start:stop])
    assert received == sent
    assert [type(frame) for frame in received] == [type(frame) for frame in sent]
    assert decoder.buffered == 0


def test_octet_by_octet() -> None:
    """A frame that arrives one octet at a time is complete with its last one."""
    stream = encode_data(7, b"message") + encode_ack(7, 2)
    decoder = FrameDecoder()
    received = [decoder.feed(stream[at : at + 1]) for at in range(len(stream))]
    assert [frame for some in received for frame in some] == [DataFrame(7, b"message"), AckFrame(7, 2)]
    assert received[14] == [DataFrame(7, b"message")]


@settings(max_examples=300)
@given(pieces=st.lists(st.binary(max_size=40), max_size=10))
def test_garbage_raises_only_reload_errors_and_is_not_kept(pieces: list[bytes]) -> None:
    """Arbitrary octets are frames or a ReloadError; what is kept never exceeds one frame of the allowed size."""
    decoder = FrameDecoder(max_message=64)
    link = FramedLink(max_message=64)
    for piece in pieces:
        try:
            decoder.feed(piece)
        except ReloadError:
            assert decoder.buffered == 0
        assert decoder.buffered < 64 + 8
        try:
            link.receive(piece, 0.0)
        except ReloadError:
            pass


def test_a_giant_length_is_refused_before_it_arrives() -> None:
    """A length beyond the maximum is refused as soon as it can be read, and nothing is kept."""
    decoder = FrameDecoder(max_message=1000)
    assert decoder.feed(b"\x80\x00\x00\x00\x00\xff\xff") == []
    with pytest.raises(MessageTooLarge):
        decoder.feed(b"\xff")
    assert decoder.buffered == 0
    assert FrameDecoder(max_message=1000).feed(encode_data(0, bytes(1000))) == [DataFrame(0, bytes(1000))]
    with pytest.raises(MessageTooLarge):
        FrameDecoder(max_message=1000).feed(encode_data(0, bytes(1001)))


@pytest.mark.parametrize("first", [0, 1, 22, 127, 130, 255])
def test_an_unknown_frame_type_ends_the_stream(first: int) -> None:
    """A frame is data (128) or ack (129); after anything else the stream stays unreadable."""
    decoder = FrameDecoder()
    with pytest.raises(InvalidMessage):
        decoder.feed(bytes((first,)))
    with pytest.raises(InvalidMessage):
        decoder.feed(encode_data(0, b"message"))


def test_what_a_frame_cannot_hold() -> None:
    """A message of 2^24 octets is MessageTooLarge and uses up no sequence number."""
    link = FramedLink()
    with pytest.raises(MessageTooLarge):
        link.send(bytes(1 << 24), 0.0)
    assert link.send(b"", 0.0) == encode_data(0, b"")


# -- acknowledgements


def model(arrived: list[int]) -> int:
    """Section 6.6.2 by the letter: bit N-M for each M of the arrived with N-32 < M < N."""
    *before, last = arrived
    bits = 0
    for sequence in before:
        if last - 32 < sequence < last:
            bits |= 1 << (last - sequence)
    return bits


@given(steps=st.lists(st.sampled_from((1, 1, 1, 1, 2, 3, 31, 32, 33, 100)), max_size=60), first=sequences)
def test_the_bitmap_is_the_letter_of_the_rfc(steps: list[int], first: int) -> None:
    """Bit N-M (bit 0 is the least significant) is set for each M in the window, also across the wrap at 2^32."""
    history = AckHistory()
    arrived = [first]
    assert history.note(first) == 0
    for step in steps:
        arrived.append(arrived[-1] + step)
        assert history.note(arrived[-1] % 2**32) == model(arrived)


def test_late_and_repeated_sequences() -> None:
    """A sequence number that comes late gets the bits of those before it, and counts from then on."""
    history = AckHistory()
    assert [history.note(sequence) for sequence in (10, 13)] == [0, 1 << 3]
    assert history.note(11) == 1 << 1
    assert history.note(14) == (1 << 1) | (1 << 3) | (1 << 4)
    assert history.note(14) == (1 << 1) | (1 << 3) | (1 << 4)
    assert history.note(50) == 0
    assert history.note(10) == 0


def test_sequences_start_at_zero_and_are_acknowledged_in_order() -> None:
    """The first frame has sequence 0, each one more; every message is acknowledged at once (section 6.6.2)."""
    alice, bob = FramedLink(), FramedLink()
    stream = b"".join(alice.send(message, 0.0) for message in (b"one", b"two", b"three"))
    assert stream == encode_data(0, b"one") + encode_data(1, b"two") + encode_data(2, b"three")
    messages, acks = bob.receive(stream, 0.5)
    assert messages == [b"one", b"two", b"three"]
    assert acks == encode_ack(0, 0) + encode_ack(1, 0b10) + encode_ack(2, 0b110)
    assert alice.receive(acks, 1.0) == ([], b"")
    assert (alice.oldest_unacked_at, alice.unacked) == (None, 0)


def test_oldest_unacked() -> None:
    """The oldest message that was not acknowledged dates the link's silence; a later ack covers earlier ones."""
    link = FramedLink()
    assert link.oldest_unacked_at is None
    for number in range(4):
        link.send(b"x", 10.0 + number)
    assert link.oldest_unacked_at == 10.0
    link.receive(encode_ack(0, 0), 14.0)
    assert link.oldest_unacked_at == 11.0
    link.receive(encode_ack(2, 0b110), 14.0)
    assert (link.oldest_unacked_at, link.unacked) == (13.0, 1)
    link.receive(encode_ack(2, 0b110), 14.0)
    assert (link.oldest_unacked_at, link.unacked) == (13.0, 1)


@pytest.mark.parametrize("sequence", [1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_ack_of_what_was_never_sent(sequence: int) -> None:
    """Acknowledging a sequence number that was not used yet is garbage: the link is to be closed."""
    link = FramedLink()
    with pytest.raises(InvalidMessage):
        link.receive(encode_ack(0, 0), 0.0)
    link = FramedLink()
    link.send(b"x", 0.0)
    with pytest.raises(InvalidMessage):
        link.receive(encode_ack(sequence, 0), 0.0)


def test_a_silent_neighbour_costs_bounded_memory() -> None:
    """Of ever so many unacknowledged messages only the first thousands are remembered, and acks still work."""
    link = FramedLink()
    for _ in range(MAX_UNACKED + 10):
        link.send(b"", 1.0)
    assert link.unacked == MAX_UNACKED
    link.receive(encode_ack(MAX_UNACKED + 5, 0), 2.0)
    assert link.unacked == 0


# -- round trips


def measured(*rtts: float) -> FramedLink:
    """A link on which messages took these round-trip times, one after the other."""
    link = FramedLink()
    for sequence, rtt in enumerate(rtts):
        link.send(b"x", 100.0 * sequence)
        link.receive(encode_ack(sequence, 0), 100.0 * sequence + rtt)
    return link


def test_the_estimate_is_rfc_6298() -> None:
    """First srtt = R and rttvar = R/2; then 1/8 and 1/4 of the news; rto = srtt + 4 rttvar, up to the next ms."""
    link = FramedLink()
    assert (link.srtt, link.rttvar, link.rto) == (None, None, INITIAL_RTO)
    link = measured(0.2)
    assert (link.srtt, link.rttvar) == (pytest.approx(0.2), pytest.approx(0.1))
    assert link.rto == pytest.approx(0.6)
    link = measured(0.2, 0.4)
    assert link.rttvar == pytest.approx(0.75 * 0.1 + 0.25 * 0.2)
    assert link.srtt == pytest.approx(0.875 * 0.2 + 0.125 * 0.4)
    assert link.rto == pytest.approx(0.225 + 4 * 0.125, abs=0.0011)
    assert link.rto >= 0.225 + 4 * 0.125 - 1e-9


def test_the_timeout_has_a_floor() -> None:
    """On a fast link the timeout is 100 ms, however steady the round trips are."""
    assert measured(*[0.001] * 50).rto == 0.1
    assert measured(0.0, 0.0).rto == 0.1


@given(rtts=st.lists(st.floats(0, 60), min_size=1, max_size=30))
def test_the_estimate_stays_within_what_was_measured(rtts: list[float]) -> None:
    """srtt lies between the smallest and largest measurement, and the timeout is never below srtt or the floor."""
    link = measured(*rtts)
    assert link.srtt is not None
    assert min(rtts) - 1e-6 <= link.srtt <= max(rtts) + 1e-6
    assert link.rto >= max(0.1, link.srtt - 1e-6)


def test_only_the_acknowledged_message_is_measured() -> None:
    """Messages that a later acknowledgement covers give no measurement of their own."""
    link = FramedLink()
    link.send(b"x", 0.0)
    link.send(b"x", 9.9)
    link.receive(encode_ack(1, 0b10), 10.0)
    assert link.srtt == pytest.approx(0.1)

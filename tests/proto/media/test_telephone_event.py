"""Telephone events (RFC 4733) and WAV files as a phone sends them."""

from __future__ import annotations

import io
import math
import wave
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.media.errors import MediaError
from p2psipd.proto.media.telephone_event import DIGITS, DigitReceiver, DigitSender, TelephoneEvent, decode_event
from p2psipd.proto.media.tone import tone_shares
from p2psipd.proto.media.wav import Playback, read_wav


def packets(digits: str) -> list[tuple[bytes, int, bool]]:
    """Everything that sending these digits puts on the wire."""
    sender, found = DigitSender(160), []
    sender.add(digits)
    timestamp = 1000
    while not sender.idle:
        packet = sender.next(timestamp)
        if packet is not None:
            found.append(packet)
        timestamp += 160
    return found


def test_one_digit_on_the_wire() -> None:
    """A key of 100 ms: one timestamp, durations that grow by the packet time, the end three times, one marker."""
    sent = packets("5")
    events = [decode_event(payload) for payload, _, _ in sent]
    assert [event.duration for event in events] == [160, 320, 480, 640, 800, 800, 800]
    assert [event.end for event in events] == [False] * 4 + [True] * 3
    assert {timestamp for _, timestamp, _ in sent} == {1000}
    assert [first for _, _, first in sent] == [True] + [False] * 6


@given(st.text(DIGITS, max_size=12), st.randoms(use_true_random=False))
def test_digits_arrive_once(digits: str, chance: object) -> None:
    """Whatever is repeated or (short of a whole event) lost on the way, each key is recognized once, in order."""
    receiver, heard = DigitReceiver(), ""
    for payload, timestamp, _ in packets(digits):
        event = decode_event(payload)
        if not event.end and chance.random() < 0.5:  # type: ignore[attr-defined]
            continue
        for _ in range(chance.choice((1, 1, 2))):  # type: ignore[attr-defined]
            heard += receiver.receive(payload, timestamp)
    assert heard == digits


def test_a_lost_end_is_told_with_the_next_key() -> None:
    """If all three end packets are lost, the next event completes the one before (RFC 4733 section 2.5.2.2)."""
    receiver, heard = DigitReceiver(), ""
    for payload, timestamp, _ in packets("12"):
        if not (decode_event(payload).end and decode_event(payload).event == 1):
            heard += receiver.receive(payload, timestamp)
    assert heard == "12"


@given(st.binary(max_size=12))
def test_any_octets(octets: bytes) -> None:
    """Octets are an event, or refused with the package's own error; an event is written as it was read."""
    try:
        event = decode_event(octets)
    except MediaError:
        assert len(octets) < 4
        return
    assert decode_event(event.encode()) == event


def test_what_is_no_key() -> None:
    """Letters beyond D are no keys, and event codes beyond 15 no digits."""
    with pytest.raises(ValueError, match="no 'x'"):
        DigitSender(160).add("1x")
    assert TelephoneEvent(16, True, 0, 0).digit == ""


def wav(rate: int, channels: int, hertz: float, width: int = 2) -> io.BytesIO:
    """One second of a tone."""
    file = io.BytesIO()
    samples = array("h")
    for index in range(rate):
        samples.extend([round(8000 * math.sin(2 * math.pi * hertz * index / rate))] * channels)
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    file.seek(0)
    return file


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (44100, 2), (48000, 2), (6000, 1)])
def test_a_tone_stays_the_tone(rate: int, channels: int) -> None:
    """Whatever rate and channels a file has, what is sent is as long and sounds the same."""
    samples = read_wav(wav(rate, channels, 600))
    assert abs(len(samples) - 8000) <= 1
    assert tone_shares(samples, (600,))[600] > 0.95


def test_files_that_cannot_be_sent() -> None:
    """The error says what was expected and what the file has."""
    with pytest.raises(MediaError, match="16 bits.*this file has 8 bits"):
        read_wav(wav(8000, 1, 600, width=1))
    with pytest.raises(MediaError, match="expected a WAV file"):
        read_wav(io.BytesIO(b"no file"))


def test_silence_follows_the_end() -> None:
    """A file that has been sent is followed by silence."""
    playback = Playback(array("h", [1, 2, 3]))
    assert playback.samples(2).tolist() == [1, 2]
    assert playback.samples(2).tolist() == [3, 0]
    assert playback.samples(2).tolist() == [0, 0]

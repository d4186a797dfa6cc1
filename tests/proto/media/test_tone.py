"""Tones are made without clicks and recognised through G.711 and loss."""

from __future__ import annotations

from array import array

import pytest

from p2psipd.proto.media.g711 import PCMA, PCMU, decode, encode
from p2psipd.proto.media.tone import ToneGenerator, energy, tone_shares


@pytest.mark.parametrize("codec", [PCMU, PCMA])
def test_a_tone_is_recognised(codec: str) -> None:
    """A tone that went through the codec has nearly all energy at its frequency and none at another."""
    heard = decode(encode(ToneGenerator(440).samples(8000), codec), codec)
    shares = tone_shares(heard, (440, 880))
    assert shares[440] > 0.99
    assert shares[880] < 0.01


def test_pieces_fit_together() -> None:
    """Samples in pieces of 20 ms are the samples in one piece."""
    pieces = ToneGenerator(941)
    assert sum((pieces.samples(160) for _ in range(5)), array("h")) == ToneGenerator(941).samples(800)


def test_a_lost_packet_does_not_hide_a_tone() -> None:
    """A gap that shifts the phase leaves the tone recognised."""
    tone = ToneGenerator(441)
    heard = tone.samples(4000)
    tone.samples(171)
    heard += tone.samples(4000)
    assert tone_shares(heard, (441,))[441] > 0.8


def test_silence_has_no_tone() -> None:
    """Nothing, and zeros, have no share of any tone."""
    assert tone_shares(array("h"), (440,)) == {440: 0}
    assert tone_shares(array("h", bytes(1600)), (440,)) == {440: 0}
    assert energy(array("h")) == 0


@pytest.mark.parametrize(("frequency", "level"), [(0, 0.5), (4000, 0.5), (440, 0), (440, 1.5)])
def test_impossible_tones(frequency: float, level: float) -> None:
    """What can't be sent at 8 kHz and 16 bits is refused at once."""
    with pytest.raises(ValueError):
        ToneGenerator(frequency, level)

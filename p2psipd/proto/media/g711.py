"""G.711 (ITU-T G.711; RFC 3551 section 4.5.14): mu-law and A-law between octets and 16-bit samples.

One octet is one sample of 1/8000 second. Samples are `array("h")`, full scale +-32768. Tables are made on
first use (about 10 ms each for encoding), so that importing this costs nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from functools import cache
from typing import Final

SAMPLE_RATE: Final = 8000

PCMU: Final = "PCMU"
PCMA: Final = "PCMA"

SILENCE: Final = {PCMU: 0xFF, PCMA: 0xD5}
"""The octet of a zero sample (positive zero), by codec."""


def _mulaw_value(octet: int) -> int:
    """The 16-bit sample of one mu-law octet: sign, three bits of segment, four of step; 33 is the bias in 14
    bits."""
    inverted = ~octet & 0xFF
    magnitude = ((((inverted & 0x0F) << 1) + 33) << (inverted >> 4 & 7)) - 33
    return -magnitude * 4 if inverted & 0x80 else magnitude * 4


def _alaw_value(octet: int) -> int:
    """The 16-bit sample of one A-law octet; even bits are inverted on the wire (G.711 table 1a, note 2)."""
    plain = octet ^ 0x55
    segment = plain >> 4 & 7
    step = ((plain & 0x0F) << 1) + 1
    magnitude = step if segment == 0 else (step + 32) << (segment - 1)
    return magnitude * 8 if plain & 0x80 else -magnitude * 8


@cache
def _decoding(codec: str) -> array[int]:
    value = {PCMU: _mulaw_value, PCMA: _alaw_value}[codec]
    return array("h", (value(octet) for octet in range(256)))


@cache
def _encoding(codec: str) -> bytes:
    """Octets by (sample + 32768) >> 2: each of the 16,384 14-bit samples takes the nearest decodable value.

    Nearest value is what the decision levels of G.711 tables 1a and 2a say: they lie half-way between
    outputs.
    """
    decoded = _decoding(codec)
    # Mu-law has two zeros, the positive one (0xFF) sorted last: that one stands for sample 0.
    order = sorted(range(256), key=lambda octet: (decoded[octet], octet))
    values = [decoded[octet] for octet in order]
    table = bytearray(16384)
    for index in range(16384):
        sample = (index << 2) - 32768 + 2
        place = min(bisect_left(values, sample), 255)
        if place and sample - values[place - 1] < values[place] - sample:
            place -= 1
        table[index] = order[place]
    return bytes(table)


def encode(samples: array[int], codec: str) -> bytes:
    """Samples (16 bit, 8 kHz) as octets of `codec`, PCMU or PCMA; KeyError for another codec."""
    table = _encoding(codec)
    return bytes(table[(sample + 32768) >> 2] for sample in samples)


def decode(octets: bytes, codec: str) -> array[int]:
    """Octets of `codec`, PCMU or PCMA, as samples (16 bit, 8 kHz); every octet is valid."""
    table = _decoding(codec)
    return array("h", [table[octet] for octet in octets])

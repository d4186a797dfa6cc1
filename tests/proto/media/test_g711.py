"""G.711: octets and samples of both laws."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.media.g711 import PCMA, PCMU, SILENCE, decode, encode

BOTH = pytest.mark.parametrize("codec", [PCMU, PCMA])


@BOTH
def test_every_octet_survives_decoding_and_encoding(codec: str) -> None:
    """Encoding undoes decoding for each octet, but for the second zero of mu-law."""
    octets = bytes(range(256))
    again = encode(decode(octets, codec), codec)
    different = [(before, after) for before, after in zip(octets, again, strict=True) if before != after]
    assert different == ([(0x7F, 0xFF)] if codec == PCMU else [])


@pytest.mark.parametrize(
    ("codec", "octet", "sample"),
    [
        (PCMU, 0x00, -32124),
        (PCMU, 0x80, 32124),
        (PCMU, 0xFF, 0),
        (PCMU, 0x7E, -8),
        (PCMU, 0xCE, 988),
        (PCMA, 0x2A, -32256),
        (PCMA, 0xAA, 32256),
        (PCMA, 0xD5, 8),
        (PCMA, 0x55, -8),
        (PCMA, 0x85, 4224),
    ],
)
def test_known_values(codec: str, octet: int, sample: int) -> None:
    """Octets decode to the values of ITU-T G.711 tables 1 and 2, scaled to 16 bits."""
    assert decode(bytes([octet]), codec)[0] == sample


@BOTH
def test_silence(codec: str) -> None:
    """A zero sample is the codec's octet of silence."""
    assert encode(array("h", [0]), codec) == bytes([SILENCE[codec]])


@BOTH
@given(sample=st.integers(-32768, 32767))
def test_error_is_bounded(codec: str, sample: int) -> None:
    """A sample comes back within half a step: about 3 % of its size, and 4 bits of its full scale below
    that."""
    heard = decode(encode(array("h", [sample]), codec), codec)[0]
    assert abs(heard - sample) <= max(16, abs(sample) // 16 + 16, abs(sample) - 32124)

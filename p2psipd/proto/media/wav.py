"""Audio from WAV files as a phone of 8 kHz can send it: channels mixed, the rate changed, 16 bits a sample."""

from __future__ import annotations

import sys
import wave
from array import array
from typing import IO, Final

from p2psipd.proto.media.errors import MediaError
from p2psipd.proto.media.g711 import SAMPLE_RATE

MAX_SECONDS: Final = 3600


def read_wav(file: IO[bytes]) -> array[int]:
    """The samples of an open WAV file, 16 bit, mono, 8 kHz; MediaError that says what was expected.

    Channels are averaged. Other rates are resampled: downwards each sample is the mean of the time that it covers
    (which keeps most of what lies above 4 kHz out), upwards on a straight line between neighbours.
    """
    try:
        with wave.open(file, "rb") as source:
            channels, width, rate = source.getnchannels(), source.getsampwidth(), source.getframerate()
            if width != 2 or not 1 <= channels <= 8 or not 4000 <= rate <= 192000:
                raise MediaError(
                    f"expected PCM of 16 bits, 4 to 192 kHz, up to 8 channels; this file has {8 * width} bits, "
                    f"{rate} Hz, {channels} channels"
                )
            octets = source.readframes(min(source.getnframes(), MAX_SECONDS * rate))
    except (wave.Error, EOFError) as error:
        raise MediaError(f"expected a WAV file of PCM samples: {error}") from None
    samples = array("h", octets[: len(octets) - len(octets) % (2 * channels)])
    if sys.byteorder == "big":
        samples.byteswap()
    if channels > 1:
        samples = array("h", (sum(samples[at : at + channels]) // channels for at in range(0, len(samples), channels)))
    return samples if rate == SAMPLE_RATE else _resample(samples, rate)


def _resample(samples: array[int], rate: int) -> array[int]:
    """`samples` at `rate` as samples at 8 kHz."""
    count = len(samples) * SAMPLE_RATE // rate
    step = rate / SAMPLE_RATE
    made = array("h")
    for index in range(count):
        start = index * step
        first = int(start)
        last = int(start + step)
        if last > first + 1:
            made.append(sum(samples[first:last]) // (last - first))
        else:
            after = samples[min(first + 1, len(samples) - 1)]
            made.append(round(samples[first] + (after - samples[first]) * (start - first)))
    return made


class Playback:
    """Samples sent once; silence after their end. It stands where a `ToneGenerator` may stand."""

    __slots__ = ("_at", "_samples")

    def __init__(self, samples: array[int]) -> None:
        self._samples = samples
        self._at = 0

    def samples(self, count: int) -> array[int]:
        """The next `count` samples."""
        part = self._samples[self._at : self._at + count]
        self._at += count
        if len(part) < count:
            part.extend([0] * (count - len(part)))
        return part

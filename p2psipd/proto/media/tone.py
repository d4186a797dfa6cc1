"""Tones: made for a call that nobody speaks into, and recognised in what a call received (Goertzel)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Final

from p2psipd.proto.media.g711 import SAMPLE_RATE

DEFAULT_LEVEL: Final = 0.25
"""Amplitude of a generated tone as a share of full scale: -15 dBov, comfortable on a phone's ear piece."""


class ToneGenerator:
    """An endless sine of `frequency` Hz; `samples(n)` continues where the last call ended, without a
    click."""

    __slots__ = ("_amplitude", "_phase", "_step", "frequency")

    def __init__(self, frequency: float, level: float = DEFAULT_LEVEL) -> None:
        if not 0 < frequency < SAMPLE_RATE / 2:
            raise ValueError(f"a tone lies between 0 and {SAMPLE_RATE // 2} Hz, not at {frequency}")
        if not 0 < level <= 1:
            raise ValueError("the level is a share of full scale, above 0 and at most 1")
        self.frequency = frequency
        self._amplitude = 32767 * level
        self._step = 2 * math.pi * frequency / SAMPLE_RATE
        self._phase = 0.0

    def samples(self, count: int) -> array[int]:
        """The next `count` 16-bit samples."""
        amplitude, step, phase = self._amplitude, self._step, self._phase
        made = array("h", [round(amplitude * math.sin(phase + step * index)) for index in range(count)])
        self._phase = (phase + step * count) % (2 * math.pi)
        return made


def energy(samples: array[int]) -> float:
    """The mean square of the samples (0 for none)."""
    return sum(sample * sample for sample in samples) / len(samples) if samples else 0.0


def tone_power(samples: array[int], frequency: float, block: int = 800) -> float:
    """The mean square that a sine of `frequency` Hz contributes to `samples`.

    Goertzel's recursion on blocks of a tenth of a second, powers averaged: ten blocks a second hear a tone
    through a lost packet, which shifts the phase and would cancel a single long sum. Resolution is about 10
    Hz.
    """
    coefficient = 2 * math.cos(2 * math.pi * frequency / SAMPLE_RATE)
    total = 0.0
    blocks = 0
    for start in range(0, len(samples), block):
        part = samples[start : start + block]
        if len(part) < block and blocks:
            break
        before = last = 0.0
        for sample in part:
            before, last = last, sample + coefficient * last - before
        magnitude = last * last + before * before - coefficient * last * before
        total += 2 * magnitude / (len(part) * len(part))
        blocks += 1
    return total / blocks if blocks else 0.0


def tone_shares(samples: array[int], frequencies: Iterable[float]) -> dict[float, float]:
    """For each frequency its share (0 to about 1) of the whole energy: 1 is a pure tone, 0 silence or another
    tone."""
    whole = energy(samples)
    if not whole:
        return dict.fromkeys(frequencies, 0.0)
    return {frequency: min(1.0, tone_power(samples, frequency) / whole) for frequency in frequencies}

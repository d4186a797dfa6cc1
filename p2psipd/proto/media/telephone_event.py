"""Telephone events (RFC 4733): the keys of a phone sent as RTP packets of their own payload type.

One event is several packets with the timestamp of its beginning and a growing duration; the last one is sent
three times with the end bit, so that the loss of a packet loses no key.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from p2psipd.proto.media.errors import MediaError

DIGITS: Final = "0123456789*#ABCD"
"""The keys by their event code (RFC 4733 section 3.2, table 3)."""
DEFAULT_VOLUME: Final = 10
"""dBm0 below zero."""
DEFAULT_SECONDS: Final = 0.1
END_COPIES: Final = 3
"""How often the end of an event is sent (RFC 4733 section 2.5.1.4)."""

_EVENT: Final = struct.Struct("!BBH")
_END: Final = 0x80
_VOLUME: Final = 0x3F


class TelephoneEvent(NamedTuple):
    """The payload of one packet (RFC 4733 section 2.3): event code, end bit, volume, duration in timestamp units."""

    event: int
    end: bool
    volume: int
    duration: int

    def encode(self) -> bytes:
        """The four octets; MediaError for a field out of its range."""
        try:
            return _EVENT.pack(self.event, self.end << 7 | self.volume & _VOLUME, self.duration)
        except struct.error as error:
            raise MediaError(f"a field of a telephone event is out of range: {error}") from None

    @property
    def digit(self) -> str:
        """The key, "" for an event that is none (a flash hook, a fax tone)."""
        return DIGITS[self.event] if self.event < len(DIGITS) else ""


def decode_event(payload: bytes) -> TelephoneEvent:
    """The first event of a payload (further ones repeat older events, section 2.6); MediaError if there is none."""
    if len(payload) < _EVENT.size:
        raise MediaError("a telephone event has four octets")
    event, flags, duration = _EVENT.unpack_from(payload)
    return TelephoneEvent(event, bool(flags & _END), flags & _VOLUME, duration)


class DigitSender:
    """The events of digits that wait to be sent, a packet's worth at a time.

    `next(timestamp)` gives (payload, timestamp of the event, is it its first packet) for the packet that is due, None
    while nothing is to be said; a pause of one packet time or more lies between two digits.
    """

    __slots__ = ("_copies", "_digits", "_duration", "_pause", "_sent", "_started", "_step")

    def __init__(self, step: int, seconds: float = DEFAULT_SECONDS, rate: int = 8000) -> None:
        self._step = step
        self._duration = max(step, round(seconds * rate / step) * step)
        self._digits: list[int] = []
        self._started: int | None = None
        self._sent = 0
        self._copies = 0
        self._pause = 0

    def add(self, digits: str) -> None:
        """Send these as well; ValueError for what is no key of a phone."""
        codes = [DIGITS.find(digit) for digit in digits.upper()]
        if -1 in codes:
            raise ValueError(f"a phone has the keys {DIGITS}, and no {digits[codes.index(-1)]!r}")
        self._digits += codes

    @property
    def idle(self) -> bool:
        """Everything has been sent."""
        return not self._digits and not self._pause

    def next(self, timestamp: int) -> tuple[bytes, int, bool] | None:
        """What to send in the packet whose time is `timestamp`."""
        if self._pause:
            self._pause -= 1
            return None
        if not self._digits:
            return None
        first = self._started is None
        if self._started is None:
            self._started, self._sent, self._copies = timestamp, 0, 0
        self._sent = min(self._sent + self._step, self._duration)
        end = self._sent == self._duration
        self._copies += end
        payload = TelephoneEvent(self._digits[0], end, DEFAULT_VOLUME, self._sent).encode()
        started = self._started
        if self._copies == END_COPIES:
            del self._digits[0]
            self._started = None
            self._pause = 2
        return payload, started, first


class DigitReceiver:
    """Recognizes digits: each event once, however many of its packets arrive.

    An event is told at its end, or when the next one begins (its end was lost).
    """

    __slots__ = ("_current", "_told")

    def __init__(self) -> None:
        self._current: tuple[int, TelephoneEvent] | None = None
        self._told: int | None = None

    def receive(self, payload: bytes, timestamp: int) -> str:
        """The digits that this packet completes, mostly ""; MediaError if it carries no event."""
        event = decode_event(payload)
        if timestamp == self._told:
            return ""
        found = ""
        if self._current is not None and self._current[0] != timestamp:
            if (timestamp - self._current[0]) & 0xFFFFFFFF >= 0x80000000:
                return ""
            found = self._current[1].digit
        self._current = (timestamp, event)
        if event.end:
            found += event.digit
            self._told, self._current = timestamp, None
        return found

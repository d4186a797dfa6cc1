"""SIP-date: reading, the canonical form, writing (RFC 3261 section 20.17, RFC 4474 section 9)."""

from __future__ import annotations

import re
from calendar import timegm
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["SipDate", "parse_sip_date", "write_sip_date"]

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SPACE: Final = r"[ \t\r\n]++"
_DATE: Final = re.compile(
    rf"({'|'.join(_DAYS)}),{_SPACE}([0-9]{{1,2}}){_SPACE}({'|'.join(_MONTHS)}){_SPACE}([0-9]{{4}}){_SPACE}"
    rf"([0-9]{{2}}):([0-9]{{2}}):([0-9]{{2}}){_SPACE}GMT",
    re.IGNORECASE,
)


class SipDate(NamedTuple):
    """A date: ``text`` in the canonical form that is signed, ``seconds`` since 1970."""

    text: str
    seconds: int


@lru_cache(maxsize=256)
def parse_sip_date(text: str) -> SipDate:
    """The date in the value of a Date header.  Raises ValueError.

    The canonical form has one space for each white space, and "Thu", "Feb", "GMT" in that case; the day of
    the week stays as it was written even where it is wrong, for so it was signed.
    """
    match = _DATE.fullmatch(text.strip()) if len(text) < 64 else None
    if match is None:
        raise ValueError("not a SIP date")
    day_name, day, month_name, year, hour, minute, second = match.groups()
    month = _MONTHS.index(month_name.capitalize()) + 1
    # A leap second is the first second of the next minute.
    moment = datetime(int(year), month, int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC)
    if int(second) > 60:
        raise ValueError("not a SIP date")
    seconds = timegm(moment.timetuple()) + (second == "60")
    canonical = f"{day_name.capitalize()}, {day} {month_name.capitalize()} {year} {hour}:{minute}:{second} GMT"
    return SipDate(canonical, seconds)


def write_sip_date(wall: float) -> str:
    """The value of a Date header for a time in unix seconds."""
    moment = datetime.fromtimestamp(int(wall), UTC)
    name, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{name}, {moment.day:02d} {month} {moment.year:04d} {moment:%H:%M:%S} GMT"

"""Who is listened to at all, and how often: sources that do nothing but harm are shut out before their octets are
read, and nobody may send more than a node can bear.

What a source is blamed for fills a bucket that leaks with time; when it runs over, the source is shut out for a
while, twice as long each time. A challenge counts until it is answered, so that whoever proves to be a user owes
nothing. Over UDP an address can be forged: what needs no answer from us is not held against an address from which
somebody has lately proved to be a user.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple, TypeVar

_Value = TypeVar("_Value")

SCANNERS: Final = ("friendly-scanner", "sipvicious", "sipcli", "sip-scan", "sundayddr", "pplsip", "vaxsipuseragent")
"""What scanners of the Internet call themselves in User-Agent, in lower case."""

_TABLE: Final = 20_000
_PROVED: Final = 5
"""So many times as many sources that have proved themselves are known: as many as there may be registrations."""
_LONGEST_SHUT_SECONDS: Final = 3600.0
_FORGET_SHUT_SECONDS: Final = 7200.0


class LimitSettings(NamedTuple):
    """`points` of blame shut a source out for `shut_seconds`, and `points_forgiven` leak away a second.

    `messages_per_source` and `requests_per_user` are rates a second, with as many at once; 0 is no limit. A source is
    known for `proved_seconds` after somebody there has proved to be a user: no shorter than registrations live.
    """

    points: int = 2000
    points_forgiven: float = 20.0
    shut_seconds: float = 30.0
    messages_per_source: int = 20_000
    requests_per_user: int = 1000
    proved_seconds: float = 3600.0


class Blame(NamedTuple):
    """One kind of offence: its points, and whether a forged source address suffices to commit it."""

    points: int
    forgeable: bool


MALFORMED: Final = Blame(2, True)
CHALLENGED: Final = Blame(1, True)
SCANNER: Final = Blame(50, True)
WRONG_PASSWORD: Final = Blame(20, False)
"""A wrong answer to a challenge of ours: whoever gives it has received the challenge."""


class Rates:
    """Token buckets by key: so many a second, and as many at once. The one longest untouched goes when there are too
    many.
    """

    __slots__ = ("_buckets", "_rate", "_table")

    def __init__(self, rate: int, table: int = _TABLE) -> None:
        self._rate = rate
        self._table = table
        self._buckets: OrderedDict[Hashable, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> bool:
        """Take one; False if there is none left."""
        rate = self._rate
        if not rate:
            return True
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._table:
                self._buckets.popitem(last=False)
            self._buckets[key] = [rate - 1.0, now]
            return True
        left = min(rate, bucket[0] + (now - bucket[1]) * rate)
        bucket[1] = now
        bucket[0] = left - 1.0 if left >= 1.0 else left
        self._buckets.move_to_end(key)
        return left >= 1.0


class Sources:
    """The sources of a node's messages, by numeric host. `now` is monotonic seconds throughout."""

    __slots__ = ("_blamed", "_proved", "_rates", "_settings", "_shut", "_table", "counters")

    def __init__(self, settings: LimitSettings = LimitSettings(), table: int = _TABLE) -> None:
        self._settings = settings
        self._table = table
        self._rates = Rates(settings.messages_per_source, table)
        self._blamed: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._shut: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._proved: OrderedDict[str, float] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def admit(self, host: str, now: float) -> bool:
        """Whether a message or connection from `host` is looked at."""
        if self._shut:
            shut = self._shut.get(host)
            if shut is not None and now < shut[0]:
                self.counters["shut_out"] += 1
                return False
        if not self._rates.take(host, now):
            self.counters["too_many_messages"] += 1
            return False
        return True

    def blame(self, host: str, offence: Blame, now: float) -> bool:
        """Hold an offence against `host`; True if that shuts it out."""
        if offence.forgeable and self.knows(host, now):
            return False
        level, at = self._blamed.pop(host, (0.0, now))
        level = max(0.0, level - (now - at) * self._settings.points_forgiven) + offence.points
        if level <= self._settings.points:
            _remember(self._blamed, host, (level, now), self._table)
            return False
        self._shut_out(host, now)
        return True

    def _shut_out(self, host: str, now: float) -> None:
        before = self._shut.pop(host, None)
        seconds = self._settings.shut_seconds
        if before is not None and now - before[0] < _FORGET_SHUT_SECONDS:
            seconds = min(2 * before[1], _LONGEST_SHUT_SECONDS)
        _remember(self._shut, host, (now + seconds, seconds), self._table)
        self.counters["shut"] += 1

    def proved(self, host: str, now: float) -> None:
        """Somebody at `host` has proved to be a user: the challenge that led to it is forgiven."""
        _remember(self._proved, host, now, _PROVED * self._table)
        blamed = self._blamed.get(host)
        if blamed is not None:
            self._blamed[host] = (max(0.0, blamed[0] - CHALLENGED.points), blamed[1])

    def knows(self, host: str, now: float) -> bool:
        """Whether somebody at `host` has lately proved to be a user."""
        proved_at = self._proved.get(host)
        return proved_at is not None and now - proved_at < self._settings.proved_seconds

    def shut(self, now: float) -> dict[str, float]:
        """The hosts that are shut out, and for how many seconds more."""
        return {host: until - now for host, (until, _) in self._shut.items() if until > now}


def _remember(table: OrderedDict[str, _Value], key: str, value: _Value, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)

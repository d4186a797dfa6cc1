"""Guessing of passwords, counted and slowed by address and by user, in bounded memory.

Every wrong password fills three buckets that leak with time: that of the address, that of the user at this
address, and that of the user wherever it is tried. Who is slowed gets a challenge as before and learns
nothing, because nothing is looked at. Nobody is locked out by what others do elsewhere: where a user is being
guessed from many addresses, each address still has one try, and an address that has proved the user before is
not held responsible for its neighbours behind the same NAT.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from ipaddress import IPv6Address
from typing import Final, NamedTuple

_TABLE: Final = 20_000


class GuessLimits(NamedTuple):
    """So many wrong passwords at once, and seconds until one of them is forgiven."""

    of_user_at_address: int = 5
    user_at_address_seconds: float = 10.0
    of_address: int = 20
    address_seconds: float = 3.0
    of_user: int = 50
    user_seconds: float = 5.0


class _Buckets:
    """How full each bucket is; the one longest untouched goes when there are too many."""

    __slots__ = ("_levels", "_limit", "_seconds")

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def level(self, key: Hashable, now: float) -> float:
        """How many wrong passwords are still held against `key`."""
        found = self._levels.get(key)
        return 0.0 if found is None else max(0.0, found[0] - (now - found[1]) / self._seconds)

    def add(self, key: Hashable, now: float) -> None:
        """One more."""
        self._levels[key] = (self.level(key, now) + 1, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._limit:
            self._levels.popitem(last=False)

    def empty(self, key: Hashable) -> None:
        """Nothing is held against `key` any more."""
        self._levels.pop(key, None)

    def above(self, level: float, now: float) -> dict[Hashable, int]:
        """The keys with at least so many, and how many."""
        found = {key: self.level(key, now) for key in self._levels}
        return {key: round(value) for key, value in found.items() if value >= level}


class Guesses:
    """Judges who may try a password now. `now` is monotonic seconds; addresses are numeric hosts."""

    def __init__(self, limits: GuessLimits = GuessLimits(), table: int = _TABLE) -> None:
        self._limits = limits
        self._addresses = _Buckets(limits.address_seconds, table)
        self._users = _Buckets(limits.user_seconds, table)
        self._pairs = _Buckets(limits.user_at_address_seconds, table)
        self._proved: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._table = table

    def may_try(self, address: str, user: str, now: float) -> bool:
        """Whether a password of `user` that comes from `address` is looked at."""
        limits, place = self._limits, _network(address)
        pair = self._pairs.level((place, user), now)
        if pair > limits.of_user_at_address - 1:
            return False
        if (place, user) in self._proved:
            return True
        if self._addresses.level(place, now) > limits.of_address - 1:
            return False
        return pair <= 0 or self._users.level(user, now) <= limits.of_user - 1

    def wrong(self, address: str, user: str, now: float) -> None:
        """A wrong password, or one of a user whom there is not."""
        place = _network(address)
        self._pairs.add((place, user), now)
        self._addresses.add(place, now)
        self._users.add(user, now)

    def right(self, address: str, user: str) -> None:
        """`user` has proved itself from `address`."""
        key = (_network(address), user)
        self._pairs.empty(key)
        self._proved[key] = None
        self._proved.move_to_end(key)
        if len(self._proved) > self._table:
            self._proved.popitem(last=False)

    def slowed(self, now: float) -> dict[str, dict[str, int]]:
        """The addresses and the users that are slowed now, with the wrong passwords that are held against them."""
        addresses = self._addresses.above(self._limits.of_address, now)
        users = self._users.above(self._limits.of_user, now)
        return {
            "addresses": {str(key): count for key, count in addresses.items()},
            "users": {str(key): count for key, count in users.items()},
        }


def _network(address: str) -> str:
    """What one guesser has: an IPv4 address, or 64 bits of an IPv6 one."""
    if ":" not in address:
        return address
    try:
        return str(IPv6Address(int(IPv6Address(address.partition("%")[0])) >> 64 << 64))
    except ValueError:
        return address

"""Numbers by their first digits: the table under number ranges, the routing table and gateways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["MAX_DIGITS", "PrefixTable", "prefixes_of_range"]

#: E.164 section 6: the digits of an international number, without "+".
MAX_DIGITS: Final = 15

T = TypeVar("T")


class PrefixTable(Generic[T]):
    """Values by prefix; the longest prefix of a number wins. Prefixes and numbers are digits without "+"."""

    def __init__(self) -> None:
        self._values: dict[str, T] = {}
        self._longest = 0

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return iter(self._values.items())

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._values

    def add(self, prefix: str, value: T) -> None:
        """Set the value of `prefix` ("" stands for every number). Raises ValueError if it is no prefix."""
        if not (prefix == "" or (prefix.isascii() and prefix.isdigit())) or len(prefix) > MAX_DIGITS:
            raise ValueError(f"expected a prefix of digits, not {prefix!r}")
        self._values[prefix] = value
        self._longest = max(self._longest, len(prefix))

    def find(self, number: str) -> tuple[str, T] | None:
        """(prefix, value) of the longest prefix of `number`."""
        for length in range(min(self._longest, len(number)), -1, -1):
            found = self._values.get(number[:length])
            if found is not None:
                return number[:length], found
        return None


def prefixes_of_range(first: str, last: str) -> list[str]:
    """The fewest prefixes that stand for all numbers from `first` to `last`, both of the same length.

    Raises ValueError if they are no such pair.
    """
    if not (first.isdigit() and last.isdigit() and len(first) == len(last) <= MAX_DIGITS and first <= last):
        raise ValueError(f"expected a first and a last number of the same length, not {first}-{last}")
    width, low, high = len(first), int(first), int(last)
    prefixes = []
    while low <= high:
        # The largest block of 10^n numbers that begins here and does not reach beyond the end.
        size, digits = 1, width
        while digits > 0 and low % (size * 10) == 0 and low + size * 10 - 1 <= high:
            size, digits = size * 10, digits - 1
        prefixes.append(f"{low:0{width}d}"[:digits])
        low += size
    return prefixes

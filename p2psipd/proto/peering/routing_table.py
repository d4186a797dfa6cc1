"""Where numbers go by agreement: a table of prefixes, as lines of text (seed section 4.1.4).

One table form serves two ends: number ranges that stand in for an ENUM tree or come before it, and the routing table,
which is the last resort. A line is a prefix or a range and then one or more URIs, alternatives in order:

    +1212              sip:{number}@gw1.carrier.example;user=phone  sip:{number}@gw2.carrier.example;user=phone
    +442079460000-+442079460999   sip:{number}@london.example
    *                  sip:{number}@everything.example

``{number}`` is the number in global form, with ;ext and ;isub where they were dialled; ``{digits}`` is without "+".
``#`` begins a comment. The longest prefix of a number counts, and only that one.
"""

from __future__ import annotations

from typing import Final

from p2psipd.proto.peering.prefixes import PrefixTable, prefixes_of_range
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.uri import SipUri

__all__ = ["RoutingTable", "RoutingTableError", "parse_routing_table"]

MAX_LINES: Final = 1_000_000
MAX_ALTERNATIVES: Final = 16
_EXAMPLE: Final = "+12125551212"


class RoutingTableError(Exception):
    """The text is at fault; `faults` are (line, what was expected), and the message lists the first of them."""

    def __init__(self, faults: list[tuple[int, str]]) -> None:
        super().__init__("; ".join([f"line {line}: {text}" for line, text in faults[:10]]))
        self.faults = faults


class RoutingTable:
    """Alternatives by prefix."""

    def __init__(self) -> None:
        self._table: PrefixTable[tuple[str, ...]] = PrefixTable()

    def __len__(self) -> int:
        return len(self._table)

    def add(self, prefix: str, templates: tuple[str, ...]) -> None:
        """Set the alternatives of `prefix` (digits). Raises ValueError for what can't give a SIP URI."""
        if not 0 < len(templates) <= MAX_ALTERNATIVES:
            raise ValueError(f"expected 1 to {MAX_ALTERNATIVES} URIs")
        for template in templates:
            try:
                _filled(template, _EXAMPLE, _EXAMPLE)
            except SipError as error:
                raise ValueError(f"expected a SIP URI with {{number}}, not {template}: {error}") from None
        if prefix in self._table:
            raise ValueError(f"the prefix {prefix} stands here a second time")
        self._table.add(prefix, templates)

    def find(self, number: str, subscriber: str = "", routing_number: str = "") -> tuple[SipUri, ...]:
        """The URIs for "+digits", in the order to try them; () without an entry.

        `subscriber` is what takes the place of {number}: the number and its parameters (RFC 3966), by default
        the number alone. `routing_number` decides instead of the number where that was ported (RFC 4694).
        """
        found = self._table.find((routing_number or number).removeprefix("+"))
        if found is None:
            return ()
        return tuple([_filled(template, number, subscriber or number) for template in found[1]])

    def prefix_of(self, number: str) -> str | None:
        """The prefix that decides about "+digits"."""
        found = self._table.find(number.removeprefix("+"))
        return None if found is None else found[0]


def _filled(template: str, number: str, subscriber: str) -> SipUri:
    digits = number.removeprefix("+")
    return SipUri.parse(template.replace("{number}", subscriber).replace("{digits}", digits))


def parse_routing_table(text: str) -> RoutingTable:
    """The table in `text`. Raises RoutingTableError with every fault."""
    table = RoutingTable()
    faults: list[tuple[int, str]] = []
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise RoutingTableError([(MAX_LINES, f"expected at most {MAX_LINES} lines")])
    for count, line in enumerate(lines, 1):
        words = _words(line)
        if not words:
            continue
        try:
            for prefix in _prefixes(words[0]):
                table.add(prefix, tuple(words[1:]))
        except ValueError as error:
            faults.append((count, str(error)))
    if faults:
        raise RoutingTableError(faults)
    return table


def _words(line: str) -> list[str]:
    """Words up to a comment: a "#" after white space, because URIs may hold one."""
    words = line.split()
    for index, word in enumerate(words):
        if word.startswith("#"):
            return words[:index]
    return words


def _prefixes(word: str) -> list[str]:
    if word == "*":
        return [""]
    first, dash, last = word.partition("-")
    if dash:
        return prefixes_of_range(first.removeprefix("+"), last.removeprefix("+"))
    digits = word.removeprefix("+")
    if not digits.isdigit():
        raise ValueError(f"expected +digits, a range +digits-+digits, or *, not {word}")
    return [digits]

"""ENUM: the URIs that the DNS publishes for a telephone number (RFC 6116, and for carriers RFC 5527).

Everything in a zone is a stranger's text. Records that are malformed, not understood or hostile are passed over one
by one and never end a query; rules that are not terminal are followed at most five times, with at most six look-ups
a number in all; regular expressions are POSIX extended ones, run by RE2 in time linear in the number. (The match is
the leftmost longest, as POSIX says. How it is shared out among groups that could each take more is RE2's choice.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import re2

from p2psipd.proto.dns import Ask, Naptr, Other, Status
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, TelUri, Uri, parse_uri

__all__ = [
    "CARRIER_SERVICES",
    "CarrierRoot",
    "EnumOutcome",
    "EnumResult",
    "USER_SERVICES",
    "branch_position",
    "carrier_enum",
    "domain_of",
    "substitute",
    "user_enum",
]

MAX_HOPS: Final = 5
MAX_QUERIES: Final = 6
_MAX_RULES: Final = 64
_MAX_RESULTS: Final = 8
_MAX_TEXT: Final = 255
_EBL: Final = "TYPE65300"
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
#: Enumservices and the schemes that each may lead to (RFC 3764, 5028, 3953, 4769).
_SCHEMES: Final = {
    "sip": ("sip", "sips"),
    "im": ("im",),
    "pres": ("pres",),
    "pstn:sip": ("sip", "sips"),
    "pstn:tel": ("tel",),
}
USER_SERVICES: Final = ("sip", "pres", "im")
CARRIER_SERVICES: Final = ("sip", "pstn:sip", "pstn:tel")
# RFC 5527 section 5.
_TWO_DIGITS: Final = frozenset(
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86"
    " 90 91 92 93 94 95 98".split()
)


class EnumResult(NamedTuple):
    """One URI that ENUM gave, and for which enumservice ("sip", "im", "pres", "pstn:sip", "pstn:tel")."""

    service: str
    uri: Uri


class EnumOutcome(NamedTuple):
    """What a look-up gave, the preferred first. `temporary`: part of the DNS could not be asked, so that an
    empty result does not mean that the number has no records.
    """

    results: tuple[EnumResult, ...] = ()
    temporary: bool = False


class CarrierRoot(NamedTuple):
    """A tree of carrier records: "cc" puts `label` after the country code, as RFC 5527 says; "none" is a tree
    of its own (RFC 5526), where the label is not used; "txt" asks at ``label.digit.root`` for the position; "ebl" asks
    there, or without label at ``digit.root``, for an EBL record, which says position, label and root of the branch
    (draft-ietf-enum-branch-location-record, never an RFC, with the type number that SIP proxies use for it).
    """

    root: str = "e164.arpa"
    label: str = "i"
    algorithm: str = "cc"


def domain_of(number: str, root: str, label: str = "", position: int = 0) -> str:
    """The domain of "+digits" (RFC 6116 section 3.2), with `label` after so many digits (RFC 5527 section 4)."""
    digits = list(number.removeprefix("+"))
    if label:
        digits.insert(position, label)
    return ".".join([*reversed(digits), root])


def branch_position(number: str) -> int:
    """After how many digits of "+digits" the carriers' branch begins (RFC 5527 section 5)."""
    digits = number.removeprefix("+")
    if digits[:1] in ("1", "7"):
        return 1
    if digits[:2] in _TWO_DIGITS:
        return 2
    if digits[:3] in ("388", "881"):
        return 4
    if digits[:3] in ("878", "882"):
        return 5
    if digits[:3] == "883":
        return 6 if digits[3:4] < "5" else 7
    return 3


async def user_enum(
    number: str, ask: Ask, roots: Sequence[str] = ("e164.arpa",), absent: Iterable[str] = ()
) -> EnumOutcome:
    """The SIP, IM and presence URIs of "+digits" in the first root that has any.

    Numbers that begin with one of `absent` (country codes, digits) are known not to be in the tree: no query.
    """
    if number.removeprefix("+").startswith(tuple(absent)):
        return EnumOutcome()
    temporary = False
    for root in roots:
        search = _Search(number, ask, USER_SERVICES)
        await search.follow(domain_of(number, root), 0)
        if search.results:
            return EnumOutcome(tuple(search.results), temporary)
        temporary = temporary or search.temporary
    return EnumOutcome((), temporary)


async def carrier_enum(number: str, ask: Ask, roots: Sequence[CarrierRoot]) -> EnumOutcome:
    """The URIs of the carrier of "+digits": for each root E2U+sip before E2U+pstn, the first root that has any."""
    temporary = False
    for root in roots:
        name = await _carrier_domain(number, ask, root)
        if name is None:
            temporary = True
            continue
        if not name:
            continue
        search = _Search(number, ask, CARRIER_SERVICES)
        await search.follow(name, 0)
        if search.results:
            results = sorted(search.results, key=lambda result: CARRIER_SERVICES.index(result.service))
            return EnumOutcome(tuple(results), temporary)
        temporary = temporary or search.temporary
    return EnumOutcome((), temporary)


async def _carrier_domain(number: str, ask: Ask, root: CarrierRoot) -> str | None:
    """The name to ask for; None if the position of the branch can't be learned now, "" if there surely is none."""
    if root.algorithm == "none":
        return domain_of(number, root.root)
    position = branch_position(number)
    if root.algorithm == "ebl":
        answer = await ask(domain_of(number[: position + 1], root.root, root.label, position), _EBL)
        if answer.status is Status.FAILED:
            return None
        branches = [_branch(record.data) for record in answer.records if isinstance(record, Other)]
        branch = next((branch for branch in branches if branch is not None and branch[0] < len(number)), None)
        return "" if branch is None else domain_of(number, branch[2], branch[1], branch[0])
    if root.algorithm == "txt":
        answer = await ask(domain_of(number[: position + 1], root.root, root.label, position), "TXT")
        if answer.status is Status.FAILED:
            return None
        texts = [str(text) for record in answer.records for text in getattr(record, "strings", ())]
        told = next((int(text) for text in texts if text.isascii() and text.isdigit() and len(text) <= 2), position)
        position = min(told, len(number) - 1)
    return domain_of(number, root.root, root.label, position)


def _branch(data: bytes) -> tuple[int, str, str] | None:
    """The position, separator and apex in an EBL record; None for what is none."""
    try:
        position, length = data[0], data[1]
        separator, at = data[2 : 2 + length].decode("ascii"), 2 + length
        labels = []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii").lower())
            at += 1 + data[at]
    except (IndexError, UnicodeDecodeError):
        return None
    plain = all(_LABEL.fullmatch(label) for label in (*labels, *(separator.split(".") if separator else ())))
    return (position, separator.lower(), ".".join(labels)) if plain and labels and at + 1 == len(data) else None


class _Search:
    """The rules of one number in one tree."""

    def __init__(self, number: str, ask: Ask, services: Sequence[str]) -> None:
        self.results: list[EnumResult] = []
        self.temporary = False
        self._number = number
        self._ask = ask
        self._services = services
        self._visited: set[str] = set()
        self._applied = 0

    async def follow(self, name: str, hops: int) -> None:
        """The rules at `name` in their order; one that leads on is followed where it stands."""
        if name in self._visited or hops > MAX_HOPS or len(self._visited) >= MAX_QUERIES:
            return
        self._visited.add(name)
        answer = await self._ask(name, "NAPTR")
        if answer.status is Status.FAILED:
            self.temporary = True
            return
        rules = [record for record in answer.records if isinstance(record, Naptr)]
        for rule in sorted(rules, key=lambda rule: (rule.order, rule.preference)):
            if len(self.results) >= _MAX_RESULTS:
                return
            flags = rule.flags.lower()
            if flags == "":
                if rule.replacement != ".":
                    await self.follow(rule.replacement, hops + 1)
            elif flags == "u" and self._applied < _MAX_RULES:
                self._applied += 1
                self._apply(rule)

    def _apply(self, rule: Naptr) -> None:
        for service in _services(rule.service):
            if service not in self._services:
                continue
            uri = _uri(substitute(rule.regexp, self._number) or "", _SCHEMES[service])
            if uri is not None:
                self.results.append(EnumResult(service, uri))
                return


def _services(text: str) -> list[str]:
    """The enumservices of a service field, "type" or "type:subtype" (RFC 6116 section 3.4.3); [] if it is none.

    "sip+E2U" is how RFC 2916 wrote it, and some zones still do. "sips" was never registered, but is clear.
    """
    words = text.lower().split("+")
    if words[0] == "e2u":
        words = words[1:]
    elif words[-1] == "e2u" and len(words) == 2:
        words = words[:-1]
    else:
        return []
    bare = [word for word in words if not word.startswith("p-")]
    return [{"sips": "sip", "sip:sip": "sip", "sips:sips": "sip"}.get(word, word) for word in bare]


def _uri(text: str, schemes: Sequence[str]) -> Uri | None:
    if not 0 < len(text) <= 4 * _MAX_TEXT:
        return None
    try:
        uri = parse_uri(text)
    except SipError:
        return None
    if uri.scheme not in schemes:
        return None
    usable = (isinstance(uri, SipUri) and uri.host) or (isinstance(uri, TelUri) and uri.is_global)
    return uri if usable or (isinstance(uri, OpaqueUri) and "@" in text) else None


# ---- substitution expressions (RFC 3402 section 3.2) -------------------------------------------------------


def substitute(expression: str, subject: str) -> str | None:
    """The result of a substitution expression; None if it is malformed or does not match.

    The result is the replacement with its back references, not `subject` with a part replaced: a rule yields a
    whole new string.
    """
    compiled = _compile(expression)
    if compiled is None:
        return None
    pattern, pieces = compiled
    match = pattern.search(subject)
    if match is None:
        return None
    return "".join([piece if isinstance(piece, str) else match.group(piece) or "" for piece in pieces])


@lru_cache(64)
def _compile(expression: str) -> tuple[Any, tuple[str | int, ...]] | None:
    """The pattern, and the replacement as texts and numbers of groups."""
    parts = _split(expression)
    if parts is None:
        return None
    ere, replacement, flags = parts
    options = re2.Options()
    options.posix_syntax = options.longest_match = options.one_line = True
    # Not POSIX, but \d is written in zones and can mean only one thing.
    options.perl_classes = True
    options.case_sensitive = flags != "i"
    options.log_errors = False
    options.max_mem = 1 << 17
    try:
        pattern = re2.compile(ere, options)
    except (re2.error, ValueError):
        return None
    pieces = _pieces(replacement)
    groups: int = pattern.groups
    if not pieces or any(isinstance(piece, int) and piece > groups for piece in pieces):
        return None
    return pattern, pieces


def _split(expression: str) -> tuple[str, str, str] | None:
    """(pattern, replacement, flags): exactly three delimiters that no backslash stands before."""
    delimiter = expression[:1]
    if not delimiter or len(expression) > _MAX_TEXT or delimiter in "0123456789\\iI" or delimiter.isspace():
        return None
    parts, escaped = [""], False
    for char in expression[1:]:
        if escaped:
            parts[-1] += char if char == delimiter else f"\\{char}"
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == delimiter:
            parts.append("")
        else:
            parts[-1] += char
    if escaped or len(parts) != 3 or not parts[0] or not parts[1] or parts[2].lower() not in ("", "i"):
        return None
    return parts[0], parts[1], parts[2].lower()


def _pieces(replacement: str) -> tuple[str | int, ...]:
    pieces: list[str | int] = []
    escaped = False
    for char in replacement:
        if escaped:
            pieces.append(int(char) if char in "123456789" else char)
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            pieces.append(char)
    return tuple(pieces)

"""The TNAuthList extension: for which telephone numbers a certificate speaks (RFC 8226 section 9).

    TNAuthorizationList ::= SEQUENCE SIZE (1..MAX) OF TNEntry
    TNEntry ::= CHOICE { spc [0] IA5String, range [1] SEQUENCE { start IA5String, count INTEGER }, one [2] IA5String }

with explicit tags.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509

__all__ = ["NumberAuthority", "number_authority", "parse_tn_auth_list"]

_TN_AUTH_LIST: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.26")
_MAX_ENTRIES: Final = 10_000
_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_IA5_STRING: Final = 0x16


class NumberAuthority(NamedTuple):
    """What a certificate may sign for: ``providers`` are service provider codes, ``ranges`` (first number,
    how many), a single number being a range of one.
    """

    providers: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, int], ...] = ()

    def covers(self, number: str) -> bool:
        """Whether the canonical ``number`` (digits, "#", "*") is one of these.

        A range counts up the digits of its first number, and never to more digits (section 9).
        """
        for start, count in self.ranges:
            if number == start:
                return True
            if len(number) == len(start) and number.isdigit() and start.isdigit():
                if int(start) <= int(number) < int(start) + count:
                    return True
        return False


@lru_cache(maxsize=512)
def number_authority(certificate: x509.Certificate) -> NumberAuthority | None:
    """The extension of a certificate, None where it has none or one that cannot be read."""
    try:
        extension = certificate.extensions.get_extension_for_oid(_TN_AUTH_LIST).value
        return parse_tn_auth_list(extension.public_bytes())
    except (x509.ExtensionNotFound, ValueError):
        return None


def parse_tn_auth_list(der: bytes) -> NumberAuthority:
    """The list in the extension's octets.  Raises ValueError."""
    tag, entries, end = _element(der, 0)
    if tag != _SEQUENCE or end != len(der):
        raise ValueError("not a TNAuthorizationList")
    providers: set[str] = set()
    ranges: list[tuple[str, int]] = []
    position = 0
    while position < len(entries):
        tag, content, position = _element(entries, position)
        if len(ranges) + len(providers) >= _MAX_ENTRIES:
            raise ValueError("too many entries")
        if tag == 0xA0:
            providers.add(_string(content))
        elif tag == 0xA1:
            ranges.append(_range(content))
        elif tag == 0xA2:
            ranges.append((_string(content), 1))
        else:
            raise ValueError("unknown kind of entry")
    return NumberAuthority(frozenset(providers), tuple(ranges))


def _range(der: bytes) -> tuple[str, int]:
    tag, content, end = _element(der, 0)
    if tag != _SEQUENCE or end != len(der):
        raise ValueError("not a range of numbers")
    _, _, middle = _element(content, 0)
    tag, count, end = _element(content, middle)
    if tag != _INTEGER or end != len(content) or not 1 <= len(count) <= 8:
        raise ValueError("not a count")
    return _string(content[:middle]), int.from_bytes(count, "big", signed=True)


def _string(der: bytes) -> str:
    tag, content, end = _element(der, 0)
    if tag != _IA5_STRING or end != len(der) or len(content) > 64:
        raise ValueError("not an IA5String")
    return content.decode("ascii")


def _element(der: bytes, position: int) -> tuple[int, bytes, int]:
    """Tag, content and end of the element at ``position`` (X.690 section 10: definite lengths)."""
    if position + 2 > len(der):
        raise ValueError("cut off")
    tag, length, start = der[position], der[position + 1], position + 2
    if length & 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 3 or start + octets > len(der):
            raise ValueError("bad length")
        length, start = int.from_bytes(der[start : start + octets], "big"), start + octets
    if start + length > len(der):
        raise ValueError("cut off")
    return tag, der[start : start + length], start + length

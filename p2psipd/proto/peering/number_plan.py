"""What people dial, made E.164 numbers, and what must never leave the house: emergency and short codes.

The facts about national plans are those of the `phonenumbers` library (libphonenumber). Its answers are taken only
where it calls the result a valid number, and only after emergency and short codes: it would make +1911 of 911.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

import phonenumbers
from phonenumbers import PhoneNumberFormat, shortnumberinfo

from p2psipd.proto.sip.parameters import Parameters

__all__ = ["Dialled", "Kind", "NumberPlan", "is_e164"]

_SEPARATORS: Final = re.compile(r"[-.() ]")
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_DIAL_STRING: Final = re.compile(r"\+?[0-9*#]{1,32}")


class Kind(Enum):
    """What a dialled number is: E.164 and maybe somebody else's, for the emergency services, a code with a
    meaning at home only, or nothing that the plan knows.
    """

    GLOBAL = "global"
    EMERGENCY = "emergency"
    SHORT = "short"
    UNKNOWN = "unknown"


class Dialled(NamedTuple):
    """`number` is "+digits" when GLOBAL, else what was dialled without separators."""

    kind: Kind
    number: str


def is_e164(number: str) -> bool:
    """Whether `number` has the form "+digits" of an international number, 7 to 15 digits (E.164 section 6)."""
    return _E164.fullmatch(number) is not None


class NumberPlan:
    """The number plan of a place.

    `region` is its ISO 3166 code ("US", "GB"). `emergency` are numbers besides the region's own, `short_codes`
    numbers that stay at home, `prefixes` replaces the beginning of a dial string before everything else, the
    longest match first (an access code: {"9011": "+"}). Raises ValueError for an unknown region.
    """

    def __init__(
        self,
        region: str,
        emergency: Iterable[str] = (),
        short_codes: Iterable[str] = (),
        prefixes: Mapping[str, str] | None = None,
    ) -> None:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"expected the code of a region such as US or GB, not {region!r}")
        self.region = region
        self._emergency = frozenset(emergency)
        self._short_codes = frozenset(short_codes)
        self._prefixes = sorted((prefixes or {}).items(), key=lambda item: -len(item[0]))

    def is_emergency(self, number: str) -> bool:
        """Whether this reaches the emergency services here, as it was dialled."""
        if number in self._emergency:
            return True
        digits = number.removeprefix("+")
        if number.startswith("+") and is_e164(number):
            return False
        return digits in self._emergency or _is_emergency(digits, self.region)

    def read(
        self, dialled: str, parameters: Parameters | None = None, domains: frozenset[str] = frozenset()
    ) -> Dialled:
        """What was dialled: the number of a tel: URI or of a user part, with the parameters of RFC 3966.

        A phone-context that is a domain of ours means this plan (RFC 3966 section 5.1.5); another domain is a
        plan that we do not know.
        """
        number = _SEPARATORS.sub("", dialled)
        if not _DIAL_STRING.fullmatch(number):
            return Dialled(Kind.UNKNOWN, number)
        if self.is_emergency(number):
            return Dialled(Kind.EMERGENCY, number)
        context = _SEPARATORS.sub("", (parameters.get("phone-context") if parameters else None) or "")
        if number.startswith("+"):
            return Dialled(Kind.GLOBAL if is_e164(number) else Kind.UNKNOWN, number)
        if context.startswith("+"):
            return self._valid(f"{context}{number}", number)
        if context and _domain(parameters) not in domains:
            return Dialled(Kind.UNKNOWN, number)
        for prefix, replacement in self._prefixes:
            if number.startswith(prefix):
                number = replacement + number[len(prefix) :]
                if self.is_emergency(number):
                    return Dialled(Kind.EMERGENCY, number)
                if is_e164(number):
                    return Dialled(Kind.GLOBAL, number)
                break
        if number in self._short_codes or _is_short(number, self.region):
            return Dialled(Kind.SHORT, number)
        return self._valid(number, number)

    def _valid(self, text: str, dialled: str) -> Dialled:
        found = _valid_number(text, self.region)
        return Dialled(Kind.GLOBAL, found) if found else Dialled(Kind.UNKNOWN, dialled)


def _domain(parameters: Parameters | None) -> str:
    return ((parameters.get("phone-context") if parameters else None) or "").lower()


@lru_cache(4096)
def _valid_number(text: str, region: str) -> str:
    """The E.164 form of what is dialled in `region`; "" if the plan has no such number."""
    try:
        parsed = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return ""
    if not phonenumbers.is_valid_number(parsed):
        return ""
    return phonenumbers.format_number(parsed, PhoneNumberFormat.E164)


@lru_cache(1024)
def _is_emergency(number: str, region: str) -> bool:
    return bool(shortnumberinfo.is_emergency_number(number, region))


@lru_cache(1024)
def _is_short(number: str, region: str) -> bool:
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    return bool(shortnumberinfo.is_possible_short_number_for_region(parsed, region)) and not (
        phonenumbers.is_valid_number(parsed)
    )

"""Parameters behind a header's value, read without the SIP core: ``;name=token``, ``;name="text"``, ``;name=<uri>``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["IdentitySyntaxError", "read_parameters"]

_TOKEN: Final = r"[A-Za-z0-9\-.!%*_+`'~]++"
_PARAMETER: Final = re.compile(
    rf";\s*+({_TOKEN})(?:\s*+=\s*+(?:\"((?:[^\"\\]|\\.)*+)\"|<([^<>\s\"]*+)>|([^\s;\"<>]++)))?+\s*+", re.DOTALL
)


class IdentitySyntaxError(ValueError):
    """An Identity or Identity-Info header, or a token, is not of the form that its RFC gives it."""


def read_parameters(text: str) -> dict[str, str]:
    """Names in lower case to values, quotation marks and brackets taken off; "" for a name alone.

    ``text`` begins with the first semicolon or is empty.  Raises IdentitySyntaxError for anything else, and
    for a name that is given twice.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            raise IdentitySyntaxError("bad parameter")
        name = match[1].lower()
        if name in found:
            raise IdentitySyntaxError(f"{name} given twice")
        found[name] = next((value for value in match.groups()[1:] if value is not None), "")
        position = match.end()
    return found

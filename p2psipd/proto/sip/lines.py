"""How header lines are read: what each says, decoded once for the many messages that have it (RFC 3261 section 7.3).

Only `fields` imports this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from p2psipd.proto.sip.errors import MalformedMessage
from p2psipd.proto.sip.headers import CSeq, NameAddr, Via, split_list
from p2psipd.proto.sip.names import written
from p2psipd.proto.sip.parameters import LONGEST_REMEMBERED

V = TypeVar("V")

_FOLD = re.compile(r"\r\n[ \t]++")
_DIGITS = re.compile(r"[0-9]++")
_CALL_ID = re.compile(r"[!-~\x80-\U0010ffff]++")
_MAX_SECONDS = 2**32 - 1

REQUIRED: Final = ("via", "from", "to", "call-id", "cseq")
"""The headers without which there is no message (RFC 3261 section 8.1.1), but Max-Forwards."""


class Lines(dict[bytes, V]):
    """What lines say by `read` of their values, which are unfolded and without white space around them; remembered.

    Bounded as `Remembered` is. MalformedMessage for an empty value, where it is `needed`, and as `read` says.
    """

    __slots__ = ("_limit", "_needed", "_read")

    def __init__(self, read: Callable[[str], V], limit: int, *, needed: bool = False) -> None:
        super().__init__()
        self._read: Callable[[str], V] = read
        self._limit = limit
        self._needed = needed

    def __missing__(self, line: bytes) -> V:
        text = line[line.index(b":") + 1 :].decode("utf-8", "replace")
        if "\n" in text:
            text = _FOLD.sub(" ", text)
        text = text.strip(" \t\r\n")
        if not text and self._needed:
            name = line.partition(b":")[0].decode("ascii", "replace").strip()
            raise MalformedMessage(f"missing {written(name)}")
        value = self._read(text)
        if len(line) < LONGEST_REMEMBERED:
            if len(self) >= self._limit:
                self.clear()
            self[line] = value
        return value


def _call_id(text: str) -> str:
    if not _CALL_ID.fullmatch(text):
        raise MalformedMessage("bad Call-ID")
    return text


def _hops(text: str) -> int:
    if not _DIGITS.fullmatch(text) or len(text) > 16 or int(text) > 255:
        raise MalformedMessage("bad Max-Forwards")
    return int(text)


def _expires(text: str) -> int | None:
    if not _DIGITS.fullmatch(text):
        return None
    return min(int(text), _MAX_SECONDS) if len(text) < 20 else _MAX_SECONDS


def _vias(text: str) -> tuple[Via, ...]:
    return (Via.parse(text),) if "," not in text else tuple([Via.parse(each) for each in split_list(text)])


def _addresses(text: str) -> tuple[NameAddr, ...]:
    # An empty line of a list header is a list without members.
    return tuple([NameAddr.parse(each) for each in split_list(text)]) if text else ()


def _hop_addresses(text: str) -> tuple[NameAddr, ...]:
    """The addresses of a Route, Record-Route or Path line, their URIs read as well."""
    found = _addresses(text)
    for address in found:
        _ = address.uri
    return found


def _contact_addresses(text: str) -> tuple[NameAddr, ...]:
    """The addresses of the only Contact line, their URIs and q read as well; none for "*"."""
    found = _addresses(text) if text != "*" else ()
    for address in found:
        _ = (address.uri, address.q)
    return found


VALUES: Final[Lines[str]] = Lines(str, 4096)
CALL_IDS: Final = Lines(_call_id, 4096, needed=True)
HOPS: Final = Lines(_hops, 256)
SECONDS: Final = Lines(_expires, 256)
CSEQS: Final = Lines(CSeq.parse, 1024, needed=True)
ADDRESS: Final = Lines(NameAddr.parse, 4096, needed=True)
ADDRESSES: Final = Lines(_addresses, 4096)
VIAS: Final = Lines(_vias, 4096, needed=True)
_HOP_ADDRESSES: Final = Lines(_hop_addresses, 4096)

UNDERSTOOD: Final[Mapping[str, tuple[str, Lines[Any]]]] = {
    "via": ("vias", VIAS),
    "from": ("from_", ADDRESS),
    "to": ("to", ADDRESS),
    "call-id": ("call_id", CALL_IDS),
    "cseq": ("cseq", CSEQS),
    "max-forwards": ("max_forwards", HOPS),
    "contact": ("contacts", Lines(_contact_addresses, 4096)),
    "route": ("routes", _HOP_ADDRESSES),
    "record-route": ("record_routes", _HOP_ADDRESSES),
    "path": ("paths", _HOP_ADDRESSES),
}
"""The headers of a request that must be understood: the message's property, and how a line is read."""

UNDERSTOOD_OF_RESPONSE: Final[Mapping[str, tuple[str, Lines[Any]]]] = {name: UNDERSTOOD[name] for name in REQUIRED}
"""The same of a response."""

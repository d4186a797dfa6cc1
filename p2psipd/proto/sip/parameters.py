"""The ``;name=value`` lists of URIs and header values, kept as they came (RFC 3261 sections 7.3.1, 19.1.1, 25.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from p2psipd.proto.sip.errors import MalformedMessage

__all__ = ["LONGEST_REMEMBERED", "TOKEN", "Parameters", "Remembered", "check_text"]

MAX_COUNT = 256
LONGEST_REMEMBERED = 256
K = TypeVar("K", str, bytes)
V = TypeVar("V")
TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]"
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Header parameters.  Wider than the grammar where nothing can be confused: IPv6 with or without brackets
# (RFC 5118 section 4.5), '=' inside values (base64), UTF-8, and an empty value.
_ITEM = rf"\s*+;\s*+({TOKEN}++)(?:\s*+=\s*+({_QUOTED}|[^\s;,\"<>?]*+))?"
_ITEMS = re.compile(rf"(?:{_ITEM})*+\s*+", re.DOTALL)
_EACH = re.compile(_ITEM, re.DOTALL)
_PLAIN = re.compile(rf"(?:;{TOKEN}++(?:=[^\s;,\"<>?]*+)?)*+")
# URI parameters: paramchar = unreserved / escaped / "[" / "]" / "/" / ":" / "&" / "+" / "$".
_URI_NAME = r"(?:[A-Za-z0-9\-_.!~*'()\[\]/:&+$]++|%[0-9A-Fa-f]{2})++"
_URI_VALUE = r"(?:[A-Za-z0-9\-_.!~*'()\[\]/:&+$=,]++|%[0-9A-Fa-f]{2})*+"
_URI_ITEMS = re.compile(rf"(?:;{_URI_NAME}(?:={_URI_VALUE})?)*+")


def check_text(text: str) -> str:
    """`text` itself; MalformedMessage if it could break out of a header line (CR, LF)."""
    if "\n" in text or "\r" in text:
        raise MalformedMessage("line end in a header value")
    return text


class Remembered(dict[K, V]):
    """`read` of a key, remembered: the same lines and values come back in each message of a call or a phone.

    Bounded: a long key is read each time, and when there are `limit` they are all forgotten. What `read` gives must be
    immutable, because it is shared.
    """

    __slots__ = ("_limit", "_read")

    def __init__(self, read: Callable[[K], V], limit: int) -> None:
        super().__init__()
        self._read: Callable[[K], V] = read
        self._limit = limit

    def __missing__(self, key: K) -> V:
        value = self._read(key)
        if len(key) < LONGEST_REMEMBERED:
            if len(self) >= self._limit:
                self.clear()
            self[key] = value
        return value


class Parameters:
    """An ordered, immutable list of parameters: names compare without case, values are verbatim.

    Values keep their quotes.  ``str()`` gives ``;a=b;c``, verbatim what was parsed.  Of repeated names the
    first counts.
    """

    __slots__ = ("_items", "_text")

    _items: tuple[tuple[str, str | None], ...]
    _text: str

    def __init__(self, items: Iterable[tuple[str, str | None]] = ()) -> None:
        """From (name, value) pairs; value None means no "=".

        Raises MalformedMessage for what is no parameter.
        """
        pairs = tuple(items)
        text = ""
        for name, value in pairs:
            piece = f";{name}" if value is None else f";{name}={value}"
            if not _EACH.fullmatch(check_text(piece)):
                raise MalformedMessage("bad parameter")
            text += piece
        self._items = pairs
        self._text = text

    @classmethod
    def trusted(cls, items: tuple[tuple[str, str | None], ...], text: str) -> Parameters:
        """From pairs and a text that are known to be well formed and to agree."""
        made = cls.__new__(cls)
        made._items = items
        made._text = text
        return made

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """Parameters of a header value: "" or text that begins with ";".  Raises MalformedMessage."""
        if not text:
            return NO_PARAMETERS
        if len(text) > MAX_COUNT and text.count(";") > MAX_COUNT:
            raise MalformedMessage("too many parameters")
        if _PLAIN.fullmatch(text):
            made = cls.__new__(cls)
            made._items, made._text = _split(text), text
            return made
        if not _ITEMS.fullmatch(text):
            raise MalformedMessage("bad parameters")
        pairs: list[tuple[str, str | None]] = [(match[1], match[2]) for match in _EACH.finditer(text)]
        return cls.trusted(tuple(pairs), text.strip())

    @classmethod
    def parse_uri(cls, text: str) -> Parameters:
        """Parameters of a SIP URI (no white space, no quotes).  Raises MalformedMessage."""
        if not text:
            return NO_PARAMETERS
        if len(text) > MAX_COUNT and text.count(";") > MAX_COUNT:
            raise MalformedMessage("too many URI parameters")
        if not _URI_ITEMS.fullmatch(text):
            raise MalformedMessage("bad URI parameters")
        return cls.trusted(_split(text), text)

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value, "" for a parameter without one, or `default` when absent."""
        if not self._items:
            return default
        for key, value in self._items:
            if key == name:
                return value if value is not None else ""
        lower = name.lower()
        for key, value in self._items:
            if key.lower() == lower:
                return value if value is not None else ""
        return default

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        lower = name.lower()
        for key, _ in self._items:
            if key == name or key.lower() == lower:
                return True
        return False

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return bool(self._items)

    def with_param(self, name: str, value: str | None = None) -> Parameters:
        """The same list with `name` set: in its place if it was there, else last."""
        lower = name.lower()
        pairs = list(self._items)
        for index, (key, _) in enumerate(pairs):
            if key.lower() == lower:
                pairs[index] = (key, value)
                return Parameters(pairs)
        return Parameters([*pairs, (name, value)])

    def without(self, *names: str) -> Parameters:
        """The same list without these names."""
        dropped = {name.lower() for name in names}
        kept = [pair for pair in self._items if pair[0].lower() not in dropped]
        return self if len(kept) == len(self._items) else Parameters(kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Parameters({self._text!r})"


def _split(text: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of a text that has neither quotes nor white space and begins with ";"."""
    if text.count(";") == 1:
        name, equals, value = text[1:].partition("=")
        return ((name, value if equals else None),)
    pairs: list[tuple[str, str | None]] = []
    for piece in text[1:].split(";"):
        name, equals, value = piece.partition("=")
        pairs.append((name, value if equals else None))
    return tuple(pairs)


NO_PARAMETERS = Parameters()

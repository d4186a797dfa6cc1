"""What requests and responses have in common: header lines kept as they came, decoded on demand (RFC 3261 section 7).

`message` exports it; nothing else imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Self, TypeVar

from p2psipd.proto.sip.errors import MalformedMessage, MessageTooLarge
from p2psipd.proto.sip.headers import MAX_MEMBERS, CSeq, NameAddr, Via, split_list
from p2psipd.proto.sip.lines import (
    ADDRESS,
    ADDRESSES,
    CALL_IDS,
    CSEQS,
    HOPS,
    REQUIRED,
    SECONDS,
    UNDERSTOOD,
    UNDERSTOOD_OF_RESPONSE,
    VALUES,
    VIAS,
    Lines,
)
from p2psipd.proto.sip.names import CANONICAL, LIST_HEADERS, canonical, written
from p2psipd.proto.sip.parameters import Remembered, check_text

__all__ = ["Message"]

T = TypeVar("T")

_SINGLE = ("from", "to", "call-id", "cseq", "max-forwards", "content-type", "expires")
_REQUIRED = frozenset(REQUIRED)


class Message:
    """What requests and responses have in common.  Typed properties raise MalformedMessage when first read.

    After `check()` has passed none of them raises, but for a response's Contact, Route, Record-Route, Path
    and Max-Forwards.  `body` is the octets as they came; `set_body` replaces it.
    """

    # What has been decoded is in `__dict__`, by the names of the properties.
    __slots__ = ("__dict__", "_has_length", "_lines", "_names", "body")

    is_request = False

    _has_length: bool
    _lines: list[bytes]
    _names: list[str]
    body: bytes

    def __init__(self, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self._names = []
        self._lines = []
        self._has_length = False
        self.body = body
        self._append(headers)

    def _append(self, headers: Iterable[tuple[str, str]]) -> None:
        for name, value in headers:
            lower, beginning = _named[name]
            if "\n" in value or "\r" in value:
                check_text(value)
            if lower != "content-length":
                self._names.append(lower)
                self._lines.append(beginning + value.encode("utf-8", "replace"))

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """(canonical name, raw line without its line end), in order.  A copy."""
        return list(zip(self._names, self._lines, strict=True))

    def has(self, name: str) -> bool:
        """Whether there is such a header."""
        return (CANONICAL.get(name) or canonical(name)) in self._names

    def has_any(self, names: frozenset[str]) -> bool:
        """Whether there is a header of one of these canonical names."""
        return not names.isdisjoint(self._names)

    def get(self, name: str) -> str | None:
        """The value of the first line of this name, unfolded, not split at commas.

        Octets that are not UTF-8 show as U+FFFD; the line itself keeps them.
        """
        lower = CANONICAL.get(name) or canonical(name)
        if lower not in self._names:
            return None
        return VALUES[self._lines[self._names.index(lower)]]

    def get_all(self, name: str) -> list[str]:
        """All values of this name; those of list headers are split at commas (RFC 3261 section 7.3.1)."""
        lower = CANONICAL.get(name) or canonical(name)
        count = self._names.count(lower)
        if not count:
            return []
        if count == 1:
            values = [VALUES[self._lines[self._names.index(lower)]]]
        else:
            values = [
                VALUES[line] for key, line in zip(self._names, self._lines, strict=True) if key == lower
            ]
        if lower not in LIST_HEADERS:
            return values
        members: list[str] = []
        for value in values:
            # An empty line of a list header (Supported:, Allow:, Accept:) is a list without members.
            members += split_list(value) if value else ()
            if len(members) > MAX_MEMBERS:
                raise MessageTooLarge(f"too many values of {lower}")
        return members

    def _need(self, lower: str) -> bytes:
        """The first line of this name."""
        names = self._names
        if lower not in names:
            raise MalformedMessage(f"missing {written(lower)}")
        return self._lines[names.index(lower)]

    @cached_property
    def top_via(self) -> Via:
        """The first Via value."""
        return VIAS[self._need("via")][0]

    @cached_property
    def vias(self) -> tuple[Via, ...]:
        """All Via values, top first."""
        return self._members("via", VIAS)

    @cached_property
    def cseq(self) -> CSeq:
        """The CSeq."""
        return CSEQS[self._need("cseq")]

    @cached_property
    def call_id(self) -> str:
        """The Call-ID."""
        return CALL_IDS[self._need("call-id")]

    @cached_property
    def from_(self) -> NameAddr:
        """The From address."""
        return ADDRESS[self._need("from")]

    @cached_property
    def to(self) -> NameAddr:
        """The To address."""
        return ADDRESS[self._need("to")]

    @property
    def from_tag(self) -> str | None:
        """The From tag; None when absent (RFC 2543 clients)."""
        return self.from_.tag

    @property
    def to_tag(self) -> str | None:
        """The To tag; None outside a dialog."""
        return self.to.tag

    def _members(self, name: str, read: Lines[tuple[T, ...]]) -> tuple[T, ...]:
        """The values of all lines of this name."""
        names = self._names
        if names.count(name) == 1:
            return read[self._lines[names.index(name)]]
        found: list[T] = []
        for key, line in zip(names, self._lines, strict=True):
            if key == name:
                found += read[line]
                if len(found) > MAX_MEMBERS:
                    raise MessageTooLarge(f"too many values of {name}")
        return tuple(found)

    def _addresses(self, name: str) -> tuple[NameAddr, ...]:
        return self._members(name, ADDRESSES) if name in self._names else ()

    @property
    def contact_star(self) -> bool:
        """Whether Contact is "*" (RFC 3261 section 10.2.2)."""
        names = self._names
        if names.count("contact") != 1:
            return False
        line = self._lines[names.index("contact")]
        return b"*" in line and VALUES[line] == "*"

    @property
    def size(self) -> int:
        """About how many octets the message has on the wire, without its first line."""
        return len(self.body) + sum(map(len, self._lines)) + 2 * len(self._lines) + 2

    @cached_property
    def contacts(self) -> tuple[NameAddr, ...]:
        """The Contact addresses; () for "*" (see `contact_star`), which may not stand among others."""
        return () if self.contact_star else self._addresses("contact")

    @cached_property
    def routes(self) -> tuple[NameAddr, ...]:
        """The Route set, top first."""
        return self._addresses("route")

    @cached_property
    def record_routes(self) -> tuple[NameAddr, ...]:
        """The Record-Route values, top first."""
        return self._addresses("record-route")

    @cached_property
    def paths(self) -> tuple[NameAddr, ...]:
        """The Path values, top first (RFC 3327)."""
        return self._addresses("path")

    @cached_property
    def max_forwards(self) -> int | None:
        """0 to 255, or None when absent."""
        return HOPS[self._need("max-forwards")] if "max-forwards" in self._names else None

    @property
    def expires(self) -> int | None:
        """The Expires header in seconds, at most 2^32-1; None when absent or no number (RFC 3261 section 10.2.1.1)."""
        names = self._names
        return SECONDS[self._lines[names.index("expires")]] if "expires" in names else None

    @property
    def content_type(self) -> str | None:
        """The Content-Type with its parameters, or None."""
        return self.get("content-type")

    def _tokens(self, name: str) -> tuple[str, ...]:
        """Members of a plain token list; stray commas, which phones do send, are passed over."""
        values = [VALUES[line] for key, line in zip(self._names, self._lines, strict=True) if key == name]
        return tuple([member.strip() for member in ",".join(values).split(",") if member.strip()])

    def _tags(self, name: str) -> tuple[str, ...]:
        """Option tags, lower case."""
        return tuple([tag.lower() for tag in self._tokens(name)]) if name in self._names else ()

    @property
    def require(self) -> tuple[str, ...]:
        """Option tags of Require, lower case."""
        return self._tags("require")

    @property
    def proxy_require(self) -> tuple[str, ...]:
        """Option tags of Proxy-Require, lower case."""
        return self._tags("proxy-require")

    @property
    def supported(self) -> tuple[str, ...]:
        """Option tags of Supported, lower case."""
        return self._tags("supported")

    @property
    def allow(self) -> tuple[str, ...]:
        """Methods of Allow; they are case-sensitive."""
        return self._tokens("allow")

    # -- editing -------------------------------------------------------------------------------------------

    def _changed(self, lower: str) -> None:
        values = self.__dict__
        if lower == "via":
            values.pop("vias", None)
            values.pop("top_via", None)
        elif lower in UNDERSTOOD:
            values.pop(UNDERSTOOD[lower][0], None)

    def push_via(self, via: Via | str) -> None:
        """Put a Via above all others."""
        names = self._names
        at = names.index("via") if "via" in names else 0
        self._lines.insert(at, _line("Via", str(via)))
        names.insert(at, "via")
        self._changed("via")
        if isinstance(via, Via):
            self.top_via = via

    def pop_via(self) -> Via:
        """Take the topmost Via off.  Raises MalformedMessage when there is none."""
        via = self.top_via
        self.remove_first("via")
        return via

    def set_via_received(self, host: str, port: int) -> Via:
        """Write into the top Via where the request came from (RFC 3261 section 18.2.1, RFC 3581).

        Returns the Via as it is then.
        """
        via = self.top_via
        stamped = via.stamped(host, port)
        if stamped is not via:
            at = self._names.index("via")
            value = VALUES[self._lines[at]]
            rest = split_list(value)[1:] if "," in value else []
            self._lines[at] = _line("Via", ", ".join([str(stamped), *rest]) if rest else str(stamped))
            vias = self.__dict__.get("vias")
            self._changed("via")
            self.top_via = stamped
            if vias is not None:
                self.vias = (stamped, *vias[1:])
        return stamped

    def set(self, name: str, value: str) -> None:
        """Make this the only line of that name: in the place of the first one, else at the end.

        Content-Length is not for setting: it follows the body.
        """
        lower, line = canonical(name), _line(name, value)
        if lower == "content-length":
            return
        if lower not in self._names:
            self._names.append(lower)
            self._lines.append(line)
            # That there is none may have been read, and remembered.
            self._changed(lower)
            return
        at = self._names.index(lower)
        if self._names.count(lower) > 1:
            self.remove(lower)
            self._names.insert(at, lower)
            self._lines.insert(at, line)
        else:
            self._lines[at] = line
            self._changed(lower)

    def add(self, name: str, value: str) -> None:
        """Add a line after the last one of that name, else at the end (not Content-Length, see `set`)."""
        lower, line = canonical(name), _line(name, value)
        if lower == "content-length":
            return
        at = len(self._names)
        if lower in self._names:
            at -= self._names[::-1].index(lower)
        self._names.insert(at, lower)
        self._lines.insert(at, line)
        self._changed(lower)

    def add_raw(self, name: str, line: bytes) -> None:
        """Add a line at the end as another message has it (an entry of its `headers`)."""
        self._names.append(name)
        self._lines.append(line)
        self._changed(name)

    def prepend(self, name: str, value: str) -> None:
        """Add a line before the first one of that name, else after the last Via (not Content-Length)."""
        lower, line = canonical(name), _line(name, value)
        if lower == "content-length":
            return
        if lower in self._names:
            at = self._names.index(lower)
        elif "via" in self._names:
            at = len(self._names) - self._names[::-1].index("via")
        else:
            at = 0
        self._names.insert(at, lower)
        self._lines.insert(at, line)
        self._changed(lower)

    def remove(self, name: str) -> bool:
        """Drop all lines of this name; whether there were any."""
        lower = canonical(name)
        if lower not in self._names:
            return False
        kept = [pair for pair in zip(self._names, self._lines, strict=True) if pair[0] != lower]
        self._names = [pair[0] for pair in kept]
        self._lines = [pair[1] for pair in kept]
        self._has_length &= lower != "content-length"
        self._changed(lower)
        return True

    def remove_first(self, name: str) -> str | None:
        """Drop the first value of a header (of a list header: the first member); that value, or None."""
        lower = canonical(name)
        if lower not in self._names:
            return None
        at = self._names.index(lower)
        if lower == "via" and b'"' not in (line := self._lines[at]):
            first, comma, rest = line.partition(b",")
            if comma:
                self._lines[at] = b"Via: " + rest.strip()
            else:
                del self._names[at], self._lines[at]
            self._changed(lower)
            return VALUES[first]
        value = VALUES[self._lines[at]]
        members = split_list(value) if lower in LIST_HEADERS and "," in value else [value]
        if len(members) > 1:
            self._lines[at] = _line(name, ", ".join(members[1:]))
        else:
            del self._names[at], self._lines[at]
        self._changed(lower)
        return members[0]

    def add_to_tag(self, tag: str) -> None:
        """Give the To, which has none, a tag (RFC 3261 section 8.2.6.2)."""
        at = self._names.index("to")
        self._lines[at] = b"%s;tag=%s" % (self._lines[at].rstrip(), check_text(tag).encode("utf-8", "replace"))
        self.__dict__.pop("to", None)

    def set_body(self, data: bytes, content_type: str | None = None) -> None:
        """Replace the body; Content-Length follows.  None or b"" as type and data drops Content-Type."""
        self.body = data
        self.remove("content-length")
        if content_type is not None:
            self.set("Content-Type", content_type)
        elif not data:
            self.remove("content-type")

    # -- checking and writing ------------------------------------------------------------------------------

    def _check_headers(self) -> None:
        """Decode all headers that must be understood before the message is used.  Raises SipError.

        Where a response says that requests lead (Contact, Record-Route) is judged by who reads it: a proxy passes it on
        as it is (RFC 3261 section 16.3), and one that drops an answer for it leaves the caller without any.
        """
        names, lines, values = self._names, self._lines, self.__dict__
        understood = UNDERSTOOD if self.is_request else UNDERSTOOD_OF_RESPONSE
        present = set(names)
        if not present >= _REQUIRED:
            raise MalformedMessage(f"missing {written(next(name for name in REQUIRED if name not in present))}")
        if len(present) == len(names):
            for name, line in zip(names, lines, strict=True):
                known = understood.get(name)
                if known is not None:
                    values[known[0]] = known[1][line]
        else:
            self._read_repeated(understood)
        self.top_via = self.vias[0]
        _ = (self.from_.uri, self.to.uri)

    def _read_repeated(self, understood: Mapping[str, tuple[str, Lines[Any]]]) -> None:
        """The same where a name stands in more than one line."""
        names, found = self._names, dict[str, Any]()
        for name in _SINGLE:
            if names.count(name) > 1:
                raise MalformedMessage(f"more than one {written(name)}")
        for name, line in zip(names, self._lines, strict=True):
            known = understood.get(name)
            if known is not None:
                attribute, read = known
                before = found.get(attribute)
                found[attribute] = read[line] if before is None else before + read[line]
                if before is not None and len(found[attribute]) > MAX_MEMBERS:
                    raise MessageTooLarge(f"too many values of {name}")
        if "contacts" in found and names.count("contact") > 1:
            # Among others no "*" may stand.
            found["contacts"] = self._members("contact", ADDRESSES)
        self.__dict__.update(found)

    def _encoded(self, start: str) -> bytes:
        """The octets; Content-Length is added if it is not there (RFC 3261 section 18.3)."""
        first = start.encode("utf-8", "replace")
        if self._has_length:
            return b"\r\n".join((first, *self._lines, b"", self.body))
        length = b"Content-Length: %d" % len(self.body)
        return b"\r\n".join((first, *self._lines, length, b"", self.body))

    def _copied(self) -> Self:
        """A copy of all but the start line; values and body are shared, being immutable."""
        made = self.__class__.__new__(self.__class__)
        made._names = self._names.copy()
        made._lines = self._lines.copy()
        made.__dict__.update(self.__dict__)
        made._has_length = self._has_length
        made.body = self.body
        return made


def _line(name: str, value: str) -> bytes:
    if "\n" in value or "\r" in value:
        check_text(value)
    return _named[name][1] + value.encode("utf-8", "replace")


def _name(name: str) -> tuple[str, bytes]:
    """The canonical name, and how its lines begin."""
    return canonical(name), f"{written(name)}: ".encode("utf-8", "replace")


_named = Remembered(_name, 256)

"""SIP messages: lazy and byte-preserving (RFC 3261 section 7).

A message is its start line, its header lines as they came, and its body.  Values are decoded when first
read; edits replace, insert or drop whole lines, so that everything nobody touched leaves as it came, in its
order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Self, TypeVar

from p2psipd.proto.sip.errors import (
    MalformedMessage,
    MalformedUri,
    MessageTooLarge,
    SipError,
    UnsupportedVersion,
)
from p2psipd.proto.sip.headers import MAX_MEMBERS, CSeq, NameAddr, Via, split_list
from p2psipd.proto.sip.names import LIST_HEADERS, RAW_NAMES, REASONS, canonical, canonical_raw, written
from p2psipd.proto.sip.parameters import check_text
from p2psipd.proto.sip.uri import SipUri, Uri, parse_uri

__all__ = ["REASONS", "Message", "Request", "Response", "make_response", "parse_head", "parse_message"]

MAX_LINES = 512

_FOLD = re.compile(r"\r\n[ \t]++")
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_REQUEST_LINE = re.compile(rb"([A-Za-z0-9\-.!%*_+`'~]++) ([!-~]++) ([Ss][Ii][Pp]/[0-9]++\.[0-9]++)")
_STATUS_LINE = re.compile(rb"([Ss][Ii][Pp]/[0-9]++\.[0-9]++) ([0-9]{3})(?: (.*+))?", re.DOTALL)
_METHOD = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]++")
_URI_TEXT = re.compile(r"[!#-;=?-~]++")
_DIGITS = re.compile(r"[0-9]++")
_CALL_ID = re.compile(r"[!-~\x80-\U0010ffff]++")
_HOPS = {str(hops): hops for hops in range(256)}
_SINGLE = ("from", "to", "call-id", "cseq", "max-forwards", "content-type", "expires")
_REQUIRED = ("via", "from", "to", "call-id", "cseq")
_ADDRESS_HEADERS = frozenset({"contact", "route", "record-route", "path"})
_TOKEN_HEADERS = frozenset({"require", "proxy-require", "supported", "allow"})
_COPIED = frozenset({"via", "from", "to", "call-id", "cseq"})
_DIALOG_METHODS = frozenset({"INVITE", "SUBSCRIBE", "NOTIFY", "REFER", "UPDATE"})

T = TypeVar("T")


class Message:
    """What requests and responses have in common.  Typed properties raise MalformedMessage when first read.

    After `check()` has passed none of them raises.  `body` is the octets as they came.
    """

    __slots__ = ("_cache", "_has_length", "_lines", "_names", "body")

    is_request = False

    _cache: dict[str, Any]
    _has_length: bool
    _lines: list[bytes]
    _names: list[str]
    body: bytes

    def __init__(self, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self._names = []
        self._lines = []
        self._cache = {}
        self._has_length = False
        self.body = body
        for name, value in headers:
            self._names.append(canonical(name))
            self._lines.append(_line(name, value))
        self.remove("content-length")

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """(canonical name, raw line without its line end), in order.  A copy."""
        return list(zip(self._names, self._lines, strict=True))

    def has(self, name: str) -> bool:
        """Whether there is such a header."""
        return canonical(name) in self._names

    def get(self, name: str) -> str | None:
        """The value of the first line of this name, unfolded, not split at commas.

        Octets that are not UTF-8 show as U+FFFD; the line itself keeps them.
        """
        lower = canonical(name)
        if lower not in self._names:
            return None
        return _value(self._lines[self._names.index(lower)])

    def get_all(self, name: str) -> list[str]:
        """All values of this name; those of list headers are split at commas (RFC 3261 section 7.3.1)."""
        lower = canonical(name)
        if self._names.count(lower) == 1:
            values = [_value(self._lines[self._names.index(lower)])]
        else:
            values = [
                _value(line) for key, line in zip(self._names, self._lines, strict=True) if key == lower
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

    def _need(self, lower: str) -> str:
        names = self._names
        value = _value(self._lines[names.index(lower)]) if lower in names else ""
        if not value:
            raise MalformedMessage(f"missing {written(lower)}")
        return value

    @property
    def top_via(self) -> Via:
        """The first Via value."""
        found: Via | None = self._cache.get("top_via")
        if found is None:
            value = self._need("via")
            found = Via.parse(split_list(value)[0] if "," in value else value)
            self._cache["top_via"] = found
        return found

    @property
    def vias(self) -> tuple[Via, ...]:
        """All Via values, top first."""
        found: tuple[Via, ...] | None = self._cache.get("via")
        if found is None:
            if self._names.count("via") == 1 and b"," not in self._lines[self._names.index("via")]:
                found = (Via.parse(self._need("via")),)
            else:
                found = tuple([Via.parse(value) for value in self.get_all("via")])
            self._cache["via"] = found
        return found

    @property
    def cseq(self) -> CSeq:
        """The CSeq."""
        found: CSeq | None = self._cache.get("cseq")
        if found is None:
            found = self._cache["cseq"] = CSeq.parse(self._need("cseq"))
        return found

    @property
    def call_id(self) -> str:
        """The Call-ID."""
        found: str | None = self._cache.get("call-id")
        if found is None:
            found = self._need("call-id")
            if not _CALL_ID.fullmatch(found):
                raise MalformedMessage("bad Call-ID")
            self._cache["call-id"] = found
        return found

    @property
    def from_(self) -> NameAddr:
        """The From address."""
        found: NameAddr | None = self._cache.get("from")
        if found is None:
            found = self._cache["from"] = NameAddr.parse(self._need("from"))
        return found

    @property
    def to(self) -> NameAddr:
        """The To address."""
        found: NameAddr | None = self._cache.get("to")
        if found is None:
            found = self._cache["to"] = NameAddr.parse(self._need("to"))
        return found

    @property
    def from_tag(self) -> str | None:
        """The From tag; None when absent (RFC 2543 clients)."""
        return self.from_.tag

    @property
    def to_tag(self) -> str | None:
        """The To tag; None outside a dialog."""
        return self.to.tag

    def _addresses(self, name: str) -> tuple[NameAddr, ...]:
        found: tuple[NameAddr, ...] | None = self._cache.get(name)
        if found is None:
            if name not in self._names:
                return ()
            found = self._cache[name] = tuple([NameAddr.parse(value) for value in self.get_all(name)])
        return found

    @property
    def contact_star(self) -> bool:
        """Whether Contact is "*" (RFC 3261 section 10.2.2)."""
        names = self._names
        return names.count("contact") == 1 and _value(self._lines[names.index("contact")]) == "*"

    @property
    def contacts(self) -> tuple[NameAddr, ...]:
        """The Contact addresses; () for "*" (see `contact_star`), which may not stand among others."""
        return () if self.contact_star else self._addresses("contact")

    @property
    def routes(self) -> tuple[NameAddr, ...]:
        """The Route set, top first."""
        return self._addresses("route")

    @property
    def record_routes(self) -> tuple[NameAddr, ...]:
        """The Record-Route values, top first."""
        return self._addresses("record-route")

    @property
    def paths(self) -> tuple[NameAddr, ...]:
        """The Path values, top first (RFC 3327)."""
        return self._addresses("path")

    @property
    def max_forwards(self) -> int | None:
        """0 to 255, or None when absent."""
        value = self.get("max-forwards")
        if value is None:
            return None
        hops = _HOPS.get(value)
        if hops is None:
            if not _DIGITS.fullmatch(value) or len(value) > 16 or int(value) > 255:
                raise MalformedMessage("bad Max-Forwards")
            hops = int(value)
        return hops

    @property
    def expires(self) -> int | None:
        """The Expires header in seconds, at most 2^32-1; None when absent or no number (RFC 3261 section
        10.2.1.1).
        """
        value = self.get("expires")
        if value is None or not _DIGITS.fullmatch(value):
            return None
        return min(int(value), 2**32 - 1) if len(value) < 20 else 2**32 - 1

    @property
    def content_length(self) -> int:
        """The length of the body in octets."""
        return len(self.body)

    @property
    def content_type(self) -> str | None:
        """The Content-Type with its parameters, or None."""
        return self.get("content-type")

    def _tokens(self, name: str) -> tuple[str, ...]:
        return tuple([value.lower() for value in self.get_all(name)]) if name in self._names else ()

    @property
    def require(self) -> tuple[str, ...]:
        """Option tags of Require, lower case."""
        return self._tokens("require")

    @property
    def proxy_require(self) -> tuple[str, ...]:
        """Option tags of Proxy-Require, lower case."""
        return self._tokens("proxy-require")

    @property
    def supported(self) -> tuple[str, ...]:
        """Option tags of Supported, lower case."""
        return self._tokens("supported")

    @property
    def allow(self) -> tuple[str, ...]:
        """Methods of Allow; they are case-sensitive."""
        return tuple(self.get_all("allow")) if "allow" in self._names else ()

    # -- editing -------------------------------------------------------------------------------------------

    def _changed(self, lower: str) -> None:
        self._cache.pop(lower, None)
        if lower == "via":
            self._cache.pop("top_via", None)

    def push_via(self, via: Via | str) -> None:
        """Put a Via above all others."""
        names = self._names
        at = names.index("via") if "via" in names else 0
        self._lines.insert(at, f"Via: {check_text(str(via))}".encode("utf-8", "replace"))
        names.insert(at, "via")
        self._changed("via")
        if isinstance(via, Via):
            self._cache["top_via"] = via

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
            value = _value(self._lines[at])
            rest = split_list(value)[1:] if "," in value else []
            self._lines[at] = _line("Via", ", ".join([str(stamped), *rest]))
            self._changed("via")
            self._cache["top_via"] = stamped
        return stamped

    def set(self, name: str, value: str) -> None:
        """Make this the only line of that name: in the place of the first one, else at the end."""
        lower, line = canonical(name), _line(name, value)
        self._has_length &= lower != "content-length"
        if lower not in self._names:
            self._names.append(lower)
            self._lines.append(line)
            return
        at = self._names.index(lower)
        self.remove(lower)
        self._names.insert(at, lower)
        self._lines.insert(at, line)

    def add(self, name: str, value: str) -> None:
        """Add a line after the last one of that name, else at the end."""
        lower, line = canonical(name), _line(name, value)
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
        """Add a line before the first one of that name, else after the last Via."""
        lower, line = canonical(name), _line(name, value)
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
        value = _value(self._lines[at])
        members = split_list(value) if lower in LIST_HEADERS and "," in value else [value]
        if len(members) > 1:
            self._lines[at] = _line(name, ", ".join(members[1:]))
        else:
            del self._names[at], self._lines[at]
        self._changed(lower)
        return members[0]

    def set_body(self, data: bytes, content_type: str | None = None) -> None:
        """Replace the body; Content-Length follows.  None or b"" as type and data drops Content-Type."""
        self.body = data
        self.remove("content-length")
        if content_type is not None:
            self.set("Content-Type", content_type)
        elif not data:
            self.remove("content-type")

    # -- checking and writing ------------------------------------------------------------------------------

    def check(self) -> None:
        """Decode all that a proxy or user agent must understand.

        Raises MalformedMessage whose `request` is this message if it is a request that may be answered (no
        ACK).
        """
        try:
            self._check()
        except SipError as error:
            error.request = self if isinstance(self, Request) and self.method != "ACK" else None
            raise

    def _check(self) -> None:
        names = self._names
        present = set(names)
        if not present.issuperset(_REQUIRED):
            raise MalformedMessage(
                f"missing {written(next(name for name in _REQUIRED if name not in present))}"
            )
        if len(present) != len(names):
            for name in _SINGLE:
                if names.count(name) > 1:
                    raise MalformedMessage(f"more than one {written(name)}")
        vias = self.vias
        if not vias:
            raise MalformedMessage("missing Via")
        self._cache["top_via"] = vias[0]
        _ = (self.call_id, self.cseq, self.from_.uri, self.to.uri, self.max_forwards)
        for name in _ADDRESS_HEADERS & present:
            for address in self.contacts if name == "contact" else self._addresses(name):
                _ = (address.uri, address.q) if name == "contact" else address.uri
        for name in _TOKEN_HEADERS & present:
            self.get_all(name)

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
        made._cache = self._cache.copy()
        made._has_length = self._has_length
        made.body = self.body
        return made


class Request(Message):
    """A request.  `method` is case-sensitive; `uri_text` is the Request-URI as it is written."""

    __slots__ = ("_uri_text", "method")

    is_request = True

    def __init__(
        self, method: str, uri_text: str | Uri, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        """Raises MalformedMessage for what can't stand in a message."""
        super().__init__(headers, body)
        if not _METHOD.fullmatch(method):
            raise MalformedMessage("bad method")
        self.method = method
        self._uri_text = ""
        self.set_uri(uri_text)

    @property
    def uri_text(self) -> str:
        """The Request-URI as text."""
        return self._uri_text

    @property
    def uri(self) -> Uri:
        """The Request-URI.  Raises MalformedUri."""
        found: Uri | None = self._cache.get("uri")
        if found is None:
            found = self._cache["uri"] = parse_uri(self._uri_text)
        return found

    def set_uri(self, uri: Uri | str) -> None:
        """Replace the Request-URI.  Raises MalformedUri."""
        text = str(uri)
        if not _URI_TEXT.fullmatch(text):
            raise MalformedUri("bad Request-URI")
        self._uri_text = text
        self._cache.pop("uri", None)

    def _check(self) -> None:
        super()._check()
        if self.cseq.method != self.method:
            raise MalformedMessage("CSeq does not fit the method")
        uri = self.uri
        # RFC 3261 section 19.1.1: headers must not stand in a Request-URI.
        if isinstance(uri, SipUri) and uri.headers:
            raise MalformedMessage("headers in the Request-URI")

    def encode(self) -> bytes:
        """The request as octets, always with a Content-Length."""
        return self._encoded(f"{self.method} {self._uri_text} SIP/2.0")

    def copy(self) -> Request:
        """An independent copy."""
        made = self._copied()
        made.method = self.method
        made._uri_text = self._uri_text
        return made

    def __repr__(self) -> str:
        return f"Request({self.method} {self._uri_text})"


class Response(Message):
    """A response.  `status` is 100 to 699; `reason` may be empty."""

    __slots__ = ("reason", "status")

    def __init__(
        self,
        status: int,
        reason: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> None:
        """Raises MalformedMessage for what can't stand in a message.

        The reason defaults to the RFC's phrase.
        """
        super().__init__(headers, body)
        if not 100 <= status <= 699:
            raise MalformedMessage("bad status code")
        self.status = status
        self.reason = check_text(REASONS.get(status, "") if reason is None else reason)

    @property
    def is_final(self) -> bool:
        """Whether the status is 200 or above."""
        return self.status >= 200

    def encode(self) -> bytes:
        """The response as octets, always with a Content-Length."""
        return self._encoded(f"SIP/2.0 {self.status} {self.reason}")

    def copy(self) -> Response:
        """An independent copy."""
        made = self._copied()
        made.status = self.status
        made.reason = self.reason
        return made

    def __repr__(self) -> str:
        return f"Response({self.status} {self.reason})"


def _line(name: str, value: str) -> bytes:
    return f"{written(name)}: {check_text(value)}".encode("utf-8", "replace")


def _value(line: bytes) -> str:
    text = line[line.index(b":") + 1 :].decode("utf-8", "replace")
    if "\n" in text:
        text = _FOLD.sub(" ", text)
    return text.strip(" \t\r\n")


def parse_message(datagram: bytes) -> Request | Response:
    """One datagram (or one WebSocket frame) as a message; octets beyond Content-Length are ignored.

    RFC 3261 section 18.3.  Only framing and start line are judged here; `check()` judges the headers.
    Raises SipError, whose `request` is set when there is something to answer to.
    """
    head, separator, body = datagram.partition(b"\r\n\r\n")
    if datagram[:1] in b"\r\n" or head.count(b"\n") != head.count(b"\r\n"):
        head, separator, body = _split_liberal(datagram)
    message, length = parse_head(head)
    message.body = body
    answerable = message if isinstance(message, Request) and message.method != "ACK" else None
    if not separator:
        raise MalformedMessage("no empty line after the headers", request=answerable)
    if length is not None:
        if length > len(body):
            raise MalformedMessage("Content-Length beyond the datagram", request=answerable)
        if length < len(body):
            message.body = body[:length]
    return message


def _split_liberal(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Head, separator and body of a message with leading line ends or with bare LFs; the head with CRLFs."""
    start = len(data) - len(data.lstrip(b"\r\n"))
    end = _HEAD_END.search(data, start)
    if end is None:
        return _LINE_END.sub(b"\r\n", data[start:]).rstrip(b"\r\n"), b"", b""
    return _LINE_END.sub(b"\r\n", data[start : end.start()]), b"\r\n\r\n", data[end.end() :]


def parse_head(head: bytes) -> tuple[Request | Response, int | None]:
    """A message without its body, from start line and headers (CRLF between), and its Content-Length.

    Raises SipError as `parse_message` does.
    """
    lines = head.split(b"\r\n")
    start = lines.pop(0)
    if len(lines) > MAX_LINES:
        raise MessageTooLarge("too many header lines")
    fault: SipError | None = None
    names: list[str] = []
    known = RAW_NAMES
    folded = False
    for line in lines:
        name = line.partition(b":")[0]
        key = known.get(name)
        if key is None:
            if line[:1] in b" \t":
                folded = True
                key = ""
            else:
                try:
                    if name is line or len(name) == len(line):
                        raise MalformedMessage("header line without a colon")
                    key = canonical_raw(name)
                except MalformedMessage as error:
                    fault = fault or error
                    key = "\0"
        names.append(key)
    if folded or fault:
        names, lines = _join_folded(names, lines)
    if b"\r" in head and head.count(b"\r") != head.count(b"\r\n"):
        fault = fault or MalformedMessage("bare CR in a header")
        # The answer copies lines of the request, and must not carry the fault on.
        lines = [_BARE_CR.sub(b" ", line) for line in lines]
    message = _parse_start(start, names, lines, fault)
    length = None
    if "content-length" in names:
        length = _parse_length(message, names, lines)
    return message, length


def _join_folded(names: list[str], lines: list[bytes]) -> tuple[list[str], list[bytes]]:
    """Continuation lines (name "") put to the line that they continue; unreadable lines ("\\0") dropped."""
    kept: list[tuple[str, list[bytes]]] = []
    for name, line in zip(names, lines, strict=True):
        if name:
            kept.append((name, [line]))
        elif kept:
            kept[-1][1].append(line)
    kept = [pair for pair in kept if pair[0] != "\0"]
    return [name for name, _ in kept], [b"\r\n".join(parts) for _, parts in kept]


def _parse_length(message: Request | Response, names: list[str], lines: list[bytes]) -> int:
    answerable = message if isinstance(message, Request) and message.method != "ACK" else None
    if names.count("content-length") > 1:
        raise MalformedMessage("more than one Content-Length", request=answerable)
    value = lines[names.index("content-length")].partition(b":")[2].strip()
    if not value.isdigit() or len(value) > 10:
        raise MalformedMessage("bad Content-Length", request=answerable)
    message._has_length = True
    return int(value)


def _bare(kind: type[T], names: list[str], lines: list[bytes]) -> T:
    made: Any = kind.__new__(kind)
    made._names, made._lines, made._cache, made._has_length, made.body = names, lines, {}, False, b""
    result: T = made
    return result


def _parse_start(
    start: bytes, names: list[str], lines: list[bytes], fault: SipError | None
) -> Request | Response:
    match = _REQUEST_LINE.fullmatch(start)
    if match:
        method, uri, version = match.groups()
        request = _bare(Request, names, lines)
        request.method = method.decode("ascii")
        request._uri_text = uri.decode("ascii")
        if fault is None:
            if version.upper() != b"SIP/2.0":
                fault = UnsupportedVersion("SIP version not supported")
            elif not _URI_TEXT.fullmatch(request._uri_text):
                fault = MalformedUri("bad Request-URI")
            else:
                return request
        fault.request = request if request.method != "ACK" else None
        raise fault
    match = _STATUS_LINE.fullmatch(start)
    if match:
        version, status, reason = match.groups()
        if fault is not None:
            raise fault
        if version.upper() != b"SIP/2.0" or not b"100" <= status <= b"699":
            raise MalformedMessage("bad status line")
        response = _bare(Response, names, lines)
        response.status = int(status)
        response.reason = (reason or b"").decode("utf-8", "replace")
        return response
    raise MalformedMessage("bad start line", request=_salvage(start, names, lines))


def _salvage(start: bytes, names: list[str], lines: list[bytes]) -> Request | None:
    """A request to answer to, if the start line at least begins like one and there is a Via to send the
    answer along.
    """
    method = start.partition(b" ")[0].decode("ascii", "replace")
    if (
        not _METHOD.fullmatch(method)
        or method == "ACK"
        or method.upper().startswith("SIP/")
        or "via" not in names
    ):
        return None
    request = _bare(Request, names, lines)
    request.method = method
    request._uri_text = "sip:invalid.invalid"
    return request


def make_response(
    request: Request,
    status: int,
    reason: str | None = None,
    to_tag: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """A response to `request` (RFC 3261 section 8.2.6): Via, From, To, Call-ID, CSeq copied as they came.

    `to_tag` is appended to a To without tag, except for 100.  Record-Route is copied into answers that form
    a dialog (section 12.1.1), Timestamp into 100.  Works for malformed requests too (what is missing stays
    missing).
    """
    response = Response(status, reason, headers)
    names: list[str] = []
    lines: list[bytes] = []
    with_route = 101 <= status <= 299 and request.method in _DIALOG_METHODS
    for name, line in zip(request._names, request._lines, strict=True):
        if (
            name in _COPIED
            or (name == "record-route" and with_route)
            or (name == "timestamp" and status == 100)
        ):
            if name == "to" and to_tag is not None and status > 100 and not _has_tag(request):
                line = b"%s;tag=%s" % (line.rstrip(), check_text(to_tag).encode("utf-8", "replace"))
            names.append(name)
            lines.append(line)
    response._names = names + response._names
    response._lines = lines + response._lines
    return response


def _has_tag(request: Request) -> bool:
    try:
        return "tag" in request.to.params
    except SipError:
        return True

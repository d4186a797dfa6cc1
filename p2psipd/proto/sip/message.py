"""SIP messages: lazy and byte-preserving (RFC 3261 section 7).

A message is its start line, its header lines as they came, and its body.  Values are decoded when first
read; edits replace, insert or drop whole lines, so that everything nobody touched leaves as it came, in its
order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

from p2psipd.proto.sip.errors import (
    MalformedMessage,
    MalformedUri,
    MessageTooLarge,
    SipError,
    UnsupportedVersion,
)
from p2psipd.proto.sip.fields import Message
from p2psipd.proto.sip.names import METHODS, RAW_NAMES, REASONS, canonical_raw
from p2psipd.proto.sip.parameters import Remembered, check_text
from p2psipd.proto.sip.uri import SipUri, Uri, parse_uri

__all__ = ["REASONS", "Message", "Request", "Response", "make_response", "parse_head", "parse_message"]

MAX_LINES = 512

_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
# How nearly every request begins; the other expression reads what else may.
_USUAL_REQUEST_LINE = re.compile(rb"([A-Z]++) ([!#-;=?-~]++) SIP/2\.0")
_REQUEST_LINE = re.compile(rb"([A-Za-z0-9\-.!%*_+`'~]++) ([!-~]++) ([Ss][Ii][Pp]/[0-9]++\.[0-9]++)")
_STATUS_LINE = re.compile(rb"([Ss][Ii][Pp]/[0-9]++\.[0-9]++) ([0-9]{3})(?: (.*+))?", re.DOTALL)
_METHOD = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]++")
_URI_TEXT = re.compile(r"[!#-;=?-~]++")
_COPIED = frozenset({"via", "from", "to", "call-id", "cseq"})
_COPIED_IN_DIALOG = _COPIED | {"record-route"}
_COPIED_TO_100 = _COPIED | {"timestamp"}
_DIALOG_METHODS = frozenset({"INVITE", "SUBSCRIBE", "NOTIFY", "REFER", "UPDATE"})

T = TypeVar("T")


class Request(Message):
    """A request.  `method` is case-sensitive; `uri_text` is the Request-URI as it is written (see `set_uri`)."""

    __slots__ = ("method", "uri_text")

    is_request = True

    def __init__(
        self, method: str, uri_text: str | Uri, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        """Raises MalformedMessage for what can't stand in a message."""
        super().__init__(headers, body)
        if not _METHOD.fullmatch(method):
            raise MalformedMessage("bad method")
        self.method = method
        self.uri_text = ""
        self.set_uri(uri_text)

    @cached_property
    def uri(self) -> Uri:
        """The Request-URI.  Raises MalformedUri."""
        return parse_uri(self.uri_text)

    def set_uri(self, uri: Uri | str) -> None:
        """Replace the Request-URI.  Raises MalformedUri."""
        text = str(uri)
        if not _URI_TEXT.fullmatch(text):
            raise MalformedUri("bad Request-URI")
        self.uri_text = text
        self.__dict__.pop("uri", None)

    def check(self) -> None:
        """Decode all that a proxy or user agent must understand, the Request-URI included.

        Raises SipError; its `request` is this one unless it is an ACK, which is never answered.
        """
        try:
            self._check_headers()
            if self.cseq.method != self.method:
                # RFC 4475 section 3.1.2.18: of a method that nobody knows it may be the CSeq that is right.
                status = 400 if self.method in METHODS else 501
                raise MalformedMessage("CSeq does not fit the method", status=status)
            uri = self.uri = parse_uri(self.uri_text)
            # RFC 3261 section 19.1.1: headers must not stand in a Request-URI.
            if isinstance(uri, SipUri) and uri.headers:
                raise MalformedMessage("headers in the Request-URI")
        except SipError as error:
            error.request = self if self.method != "ACK" else None
            raise

    def encode(self) -> bytes:
        """The request as octets, always with a Content-Length."""
        return self._encoded(f"{self.method} {self.uri_text} SIP/2.0")

    def copy(self) -> Request:
        """An independent copy."""
        made = self._copied()
        made.method = self.method
        made.uri_text = self.uri_text
        return made

    def __repr__(self) -> str:
        return f"Request({self.method} {self.uri_text})"


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

    def encode(self) -> bytes:
        """The response as octets, always with a Content-Length."""
        return self._encoded(f"SIP/2.0 {self.status} {self.reason}")

    def check(self) -> None:
        """Decode all that a proxy or user agent must understand. Raises SipError."""
        self._check_headers()

    def copy(self) -> Response:
        """An independent copy."""
        made = self._copied()
        made.status = self.status
        made.reason = self.reason
        return made

    def __repr__(self) -> str:
        return f"Response({self.status} {self.reason})"


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
    if separator and (length is None or length == len(body)):
        return message
    answerable = message if isinstance(message, Request) and message.method != "ACK" else None
    if not separator:
        raise MalformedMessage("no empty line after the headers", request=answerable)
    if length is not None and length > len(body):
        raise MalformedMessage("Content-Length beyond the datagram", request=answerable)
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
    line_ends = len(lines)
    if line_ends > MAX_LINES:
        raise MessageTooLarge("too many header lines")
    fault: SipError | None = None
    known = RAW_NAMES.get
    names = []
    for line in lines:
        name, colon, _ = line.partition(b":")
        names.append(known(name, "") if colon else "")
    if "" in names:
        names, lines, fault = _read_names(lines)
    if head.count(b"\r") != line_ends:
        fault = fault or MalformedMessage("bare CR in a header")
        # The answer copies lines of the request, and must not carry the fault on.
        lines = [b"\r\n".join([part.replace(b"\r", b" ") for part in line.split(b"\r\n")]) for line in lines]
    usual = _USUAL_REQUEST_LINE.fullmatch(start)
    message: Request | Response
    if usual and fault is None:
        message = _bare(Request, names, lines)
        message.method, message.uri_text = usual[1].decode("ascii"), usual[2].decode("ascii")
    else:
        message = _parse_start(start, names, lines, fault)
    if "content-length" not in names:
        return message, None
    try:
        if names.count("content-length") > 1:
            raise MalformedMessage("more than one Content-Length")
        length = _read_length[lines[names.index("content-length")]]
    except MalformedMessage as error:
        error.request = message if isinstance(message, Request) and message.method != "ACK" else None
        raise
    message._has_length = True
    return message, length


def _read_names(lines: list[bytes]) -> tuple[list[str], list[bytes], SipError | None]:
    """The names of lines of which some are continued, unusual, or no headers: names, joined lines, and the fault."""
    fault: SipError | None = None
    names: list[str] = []
    known = RAW_NAMES
    folded = False
    for line in lines:
        name = line.partition(b":")[0]
        key = known.get(name)
        if key is None or len(name) == len(line):
            if line[:1] in b" \t":
                folded = True
                key = ""
            else:
                try:
                    if len(name) == len(line):
                        raise MalformedMessage("header line without a colon")
                    key = canonical_raw(name)
                except MalformedMessage as error:
                    fault = fault or error
                    key = "\0"
        names.append(key)
    if folded or fault:
        names, lines = _join_folded(names, lines)
    return names, lines, fault


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


def _length(line: bytes) -> int:
    value = line.partition(b":")[2].strip()
    if not value.isdigit() or len(value) > 10:
        raise MalformedMessage("bad Content-Length")
    return int(value)


_read_length = Remembered(_length, 1024)


def _bare(kind: type[T], names: list[str], lines: list[bytes]) -> T:
    made: Any = kind.__new__(kind)
    made._names, made._lines, made._has_length, made.body = names, lines, False, b""
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
        request.uri_text = uri.decode("ascii")
        if fault is None:
            if version.upper() != b"SIP/2.0":
                fault = UnsupportedVersion("SIP version not supported")
            elif not _URI_TEXT.fullmatch(request.uri_text):
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
    """A request to answer to, if the start line begins like one and there is a Via to answer along."""
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
    request.uri_text = "sip:invalid.invalid"
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
    if not 100 <= status <= 699:
        raise MalformedMessage("bad status code")
    names: list[str] = []
    lines: list[bytes] = []
    with_route = 101 <= status <= 299 and request.method in _DIALOG_METHODS
    copied = _COPIED_IN_DIALOG if with_route else _COPIED_TO_100 if status == 100 else _COPIED
    for name, line in zip(request._names, request._lines, strict=True):
        if name in copied:
            names.append(name)
            lines.append(line)
    response = _bare(Response, names, lines)
    response.status = status
    response.reason = REASONS.get(status, "") if reason is None else check_text(reason)
    if to_tag is not None and status > 100 and "to" in names and not _has_tag(request):
        tag = check_text(to_tag).encode("utf-8", "replace")
        for at, name in enumerate(names):
            if name == "to":
                lines[at] = b"%s;tag=%s" % (lines[at].rstrip(), tag)
    elif "to" in request.__dict__:
        response.to = request.to
    response._append(headers)
    return response


def _has_tag(request: Request) -> bool:
    try:
        return "tag" in request.to.params
    except SipError:
        return True

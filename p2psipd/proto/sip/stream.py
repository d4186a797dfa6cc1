"""SIP over byte streams (RFC 3261 section 18.3) and the keep-alives between messages (RFC 5626 sections
3.5.1 and 4.4.1).
"""

from __future__ import annotations

import re
from enum import Enum

from p2psipd.proto.sip.errors import MalformedMessage, MessageTooLarge, SipError
from p2psipd.proto.sip.message import Request, Response, parse_head

__all__ = ["PING", "PONG", "KeepAlive", "StreamParser"]

PING = b"\r\n\r\n"
"""The question whether the other side lives."""
PONG = b"\r\n"
"""The answer to a KeepAlive.PING."""

_BARE_LF = re.compile(rb"\r?\n")


class KeepAlive(Enum):
    """Line ends between messages: a double CRLF asks for a single one."""

    PING = "ping"
    PONG = "pong"


class StreamParser:
    """Cuts a TCP or TLS stream into messages.  Octets that come one at a time cost no more than all at once.

    `max_header` and `max_body` are octets.  A fault ends the stream: `feed` first returns the messages
    before it, and raises it (a SipError, `request` set if it is to be answered before closing) when there
    are none left to return.
    """

    __slots__ = ("_buffer", "_fault", "_lone", "_max_body", "_max_header", "_message", "_missing", "_scanned")

    def __init__(self, max_header: int = 65536, max_body: int = 65536) -> None:
        self._max_header = max_header
        self._max_body = max_body
        self._buffer = bytearray()
        self._scanned = 0
        self._message: Request | Response | None = None
        self._missing = 0
        self._lone = False
        self._fault: SipError | None = None

    @property
    def pending(self) -> int:
        """Octets of an unfinished message that are held back."""
        return len(self._buffer)

    @property
    def unfinished(self) -> bool:
        """Whether the rest of a message is still to come."""
        return self._message is not None or bool(self._buffer)

    @property
    def failed(self) -> SipError | None:
        """The fault that ended the stream, raised or still to be raised."""
        return self._fault

    def feed(self, data: bytes) -> list[Request | Response | KeepAlive]:
        """What is complete with these octets.  Raises SipError; see the class."""
        found: list[Request | Response | KeepAlive] = []
        if self._fault is None:
            self._buffer += data
            try:
                while self._step(found):
                    continue
            except SipError as error:
                self._fault = error
                self._buffer.clear()
                self._message = None
        if self._fault is not None and not found:
            raise self._fault
        return found

    def _step(self, found: list[Request | Response | KeepAlive]) -> bool:
        """Take one message, or the line ends before one, off the buffer; False when more octets are needed.
        """
        buffer = self._buffer
        if self._message is None:
            if not buffer:
                return False
            if self._scanned == 0 and buffer[0] in b"\r\n":
                return self._line_ends(found)
            head = self._take_head()
            if head is None:
                return False
            self._begin(head)
        if self._message is None or len(buffer) < self._missing:
            return False
        if self._missing:
            self._message.body = bytes(buffer[: self._missing])
            del buffer[: self._missing]
        found.append(self._message)
        self._message = None
        return True

    def _take_head(self) -> bytes | None:
        """Start line and headers off the buffer, CRLF between them; None when more octets are needed."""
        buffer = self._buffer
        start = max(0, self._scanned - 3)
        # The empty line, after a line end of either kind; two searches for octets are faster than an expression.
        end = buffer.find(b"\n\r\n", start)
        bare = buffer.find(b"\n\n", start, end + 1 if end >= 0 else len(buffer))
        end, behind = (bare, bare + 2) if bare >= 0 else (end, end + 3)
        if (behind if end >= 0 else len(buffer)) > self._max_header:
            raise MessageTooLarge("header too large")
        if end < 0:
            self._scanned = len(buffer)
            return None
        head = bytes(buffer[:end]).removesuffix(b"\r")
        del buffer[:behind]
        self._scanned = 0
        self._lone = False
        return head if head.count(b"\n") == head.count(b"\r\n") else _BARE_LF.sub(b"\r\n", head)

    def _begin(self, head: bytes) -> None:
        message, length = parse_head(head)
        answerable = message if isinstance(message, Request) and message.method != "ACK" else None
        if length is None:
            raise MalformedMessage("Content-Length is needed on a stream", request=answerable)
        if length > self._max_body:
            raise MessageTooLarge("body too large", request=answerable)
        self._message = message
        self._missing = length

    def _line_ends(self, found: list[Request | Response | KeepAlive]) -> bool:
        """A lone CRLF at the end of what has come is a pong at once; when its second half follows, it was a ping."""
        buffer = self._buffer
        count = len(buffer) - len(buffer.lstrip(b"\r\n"))
        # A CR at the very end may be the first half of a line end.
        if count == len(buffer) and buffer[count - 1] == 13:
            count -= 1
        if not count:
            return False
        ends = buffer.count(b"\n", 0, count)
        del buffer[:count]
        if not ends:
            return True
        if ends >= 2 or self._lone:
            # However many there are, one answer tells the other side that we live.
            found.append(KeepAlive.PING)
            self._lone = False
        else:
            found.append(KeepAlive.PONG)
            self._lone = not buffer or buffer == b"\r"
        return True

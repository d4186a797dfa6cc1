"""Log lines about what was refused or cut: bounded in number and length, each with the address that it came from."""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

Endpoint = tuple[str, int]

#: Lines that are logged in one second; the rest is only counted.
LINES_PER_SECOND: Final = 10
#: Why whoever leaves too much unread is cut.
DOES_NOT_READ: Final = "the other side does not read"
#: Characters of one reason.
_LONGEST: Final = 300


class Refusals:
    """Writes lines into ``log``, at most :data:`LINES_PER_SECOND`.  How many ``what`` were left out is told before the
    next line.
    """

    def __init__(self, log: Logger, clock: Any, what: str = "connections") -> None:
        self._log = log
        self._clock = clock
        self._what = what
        self._second = 0
        self._lines = 0

    def accepted(self, address: Endpoint, reason: str, at: str = "") -> None:
        """A connection that ``address`` opened, to our listener ``at``, is refused or cut."""
        if at:
            self._line("connection from {address} to {at} ended: {reason}", address, reason, at=at)
        else:
            self._line("connection from {address} ended: {reason}", address, reason)

    def dialled(self, address: Endpoint, reason: str) -> None:
        """A connection that we opened to ``address`` is cut."""
        self._line("connection to {address} ended: {reason}", address, reason)

    def dropped(self, what: str, address: Endpoint, reason: str, at: str) -> None:
        """A datagram or message, as ``what`` says, that came to our listener ``at`` is not taken."""
        self._line(what + " from {address} to {at} dropped: {reason}", address, reason, at=at)

    def _line(self, words: str, address: Endpoint, reason: str, **fields: str) -> None:
        second = int(self._clock.seconds())
        if second != self._second:
            if self._lines > LINES_PER_SECOND:
                left_out = self._lines - LINES_PER_SECOND
                self._log.info("{count} more {what} refused", count=left_out, what=self._what)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LINES_PER_SECOND:
            self._log.info(words, address=endpoint_text(address), reason=plain(reason), **fields)


def plain(text: str) -> str:
    """``text``, part of which may be a stranger's, as one line of limited length without control characters."""
    text = text[:_LONGEST]
    return text if text.isprintable() else repr(text)[1:-1]


def endpoint_text(endpoint: Endpoint) -> str:
    """Host and port as people and configuration files write them, an IPv6 address in brackets."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason_text(failure: Failure) -> str:
    """Why a connection failed or ended, in short, for people."""
    value = failure.value
    arguments = getattr(value, "args", ())
    if arguments and isinstance(arguments[0], list):
        # OpenSSL's error stack: (library, function, reason) triples.
        return "; ".join(str(entry[-1]) for entry in arguments[0] if entry) or "TLS error"
    return str(value).rstrip(".") or type(value).__name__

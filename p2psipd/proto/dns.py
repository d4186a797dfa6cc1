"""What the DNS says, as plain values, and the seam to whoever asks it (RFC 1035, 2782, 3403).

Names are text without the final dot, in lower case; the root is ".". A question is answered with an
:class:`Answer`: found, certainly nothing there, or not known now. The three must never be mixed up: a server
that fails says nothing about what a domain publishes (RFC 3263 section 4.3 fails over, never down to less).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple

__all__ = ["NOT_KNOWN", "NO_RECORD", "A", "Aaaa", "Answer", "Ask", "Naptr", "Other", "Record", "Srv", "Status", "Txt"]


class Naptr(NamedTuple):
    """A naming authority pointer (RFC 3403 section 4.1). Texts are as published; octets that are no UTF-8 are
    U+FFFD. `replacement` is "." when there is none.
    """

    order: int
    preference: int
    flags: str
    service: str
    regexp: str
    replacement: str


class Srv(NamedTuple):
    """A server of a service (RFC 2782); target "." says that there is no such service."""

    priority: int
    weight: int
    port: int
    target: str


class A(NamedTuple):
    """An IPv4 address, in dotted decimals."""

    address: str


class Aaaa(NamedTuple):
    """An IPv6 address, as RFC 5952 writes it."""

    address: str


class Txt(NamedTuple):
    """The character strings of one TXT record."""

    strings: tuple[str, ...]


class Other(NamedTuple):
    """A record of another type, as its RDATA stood in the message with names written out."""

    type: str
    data: bytes


Record = Naptr | Srv | A | Aaaa | Txt | Other


class Status(Enum):
    """How a look-up ended. NONE: the name or the type surely does not exist (RFC 2308). FAILED: no server
    gave an answer that can be trusted, by time-out, SERVFAIL, REFUSED, nonsense, or a DNSSEC fault.
    """

    FOUND = "found"
    NONE = "none"
    FAILED = "failed"


class Answer(NamedTuple):
    """The outcome of one look-up: `records` of the type asked for (only when FOUND, at least one, in no
    meaningful order), seconds for which it may be kept, and whether DNSSEC vouched for it. `reason` says in
    a few words why it FAILED.
    """

    status: Status
    records: tuple[Record, ...] = ()
    ttl_seconds: float = 0.0
    authentic: bool = False
    reason: str = ""


NO_RECORD = Answer(Status.NONE)
NOT_KNOWN = Answer(Status.FAILED, reason="not asked")

Ask = Callable[[str, str], Awaitable[Answer]]
"""``await ask("example.net", "SRV")``: one look-up, CNAME and DNAME followed. Never raises for what the network
says; a name that can't be asked for (a label of more than 63 octets) is NONE.
"""

"""DNS messages: one question as octets, and what a reply to it says (RFC 1035 section 4, RFC 2308, RFC 6891).

Names and record data are read with dnspython. The rest, which is what costs time in a full message codec, is the
header and a walk over the records: a reply matters only for the records of the answer, and for whether the authority
section has an SOA.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from p2psipd.proto.dns import A, Aaaa, Naptr, Other, Record, Srv, Txt

__all__ = ["BadReply", "Question", "Reply", "ask_for", "canonical", "read_reply"]

#: The UDP size we offer: one that passes everywhere without fragments.
EDNS_OCTETS: Final = 1232
#: More records than this in a section are an attack or a mistake; nobody's servers or numbers need them.
MAX_RECORDS: Final = 256
FORMERR: Final = 1
NXDOMAIN: Final = 3
NOTIMP: Final = 4
_HEADER: Final = struct.Struct("!HHHHHH")
_RECORD: Final = struct.Struct("!HHiH")
_OPT: Final = struct.pack("!BHHIH", 0, 41, EDNS_OCTETS, 0, 0)
_IN: Final = 1
_SOA: Final = 6
_NS: Final = 2
_CNAME: Final = 5
_DNAME: Final = 39
_POINTER_TO_QUESTION: Final = 0xC00C


class BadReply(Exception):
    """The octets are no reply that can be understood; the message says in a few words why."""


class Question(NamedTuple):
    """What is asked: the canonical name, the type in letters, and the question section as octets."""

    name: str
    type: str
    section: bytes

    def query(self, identifier: int, edns: bool = True) -> bytes:
        """The whole query: recursion desired, and AD, which asks for the verdict of DNSSEC (RFC 6840 5.7)."""
        header = _HEADER.pack(identifier, 0x0120, 1, 0, 0, 1 if edns else 0)
        return header + self.section + _OPT if edns else header + self.section


class Reply(NamedTuple):
    """What a server said.

    `records` are (owner, seconds to live, record) of the answer section, of the type asked for; `aliases` maps
    an owner to where its CNAME points, `branches` to where its DNAME points, both with seconds to live.
    `negative_seconds` is for how long the absence may be remembered, None without an SOA. `referral`: the server
    names others and answers nothing itself.
    """

    code: int
    truncated: bool
    authentic: bool
    records: tuple[tuple[str, float, Record], ...]
    aliases: dict[str, tuple[str, float]]
    branches: dict[str, tuple[str, float]]
    negative_seconds: float | None
    referral: bool


def canonical(name: str) -> str:
    """A name as the DNS values write it: lower case, no final dot; the root is "."."""
    lower = name.lower()
    if lower[-1:] == "." and lower[-2:] != "\\.":
        lower = lower[:-1]
    return lower or "."


def ask_for(name: str, type: str) -> Question | None:
    """The question for a canonical name; None if such a name can't exist (RFC 1035 section 2.3.4)."""
    try:
        wire = dns.name.from_text(name).to_wire() or b""
    except (dns.exception.DNSException, UnicodeError, ValueError):
        return None
    return Question(name, type, wire + struct.pack("!HH", dns.rdatatype.from_text(type), _IN))


def answers(message: bytes, question: Question) -> bool:
    """Whether `message` is a reply to `question`: the response bit, a plain query, and the question echoed."""
    if len(message) < 12 or message[2] & 0xF8 != 0x80:
        return False
    section = question.section
    if message[4:6] == b"\0\1":
        return message[12 : 12 + len(section)].lower() == section.lower()
    # Servers that do not know EDNS may answer with a bare header (RFC 6891 section 7).
    return message[4:6] == b"\0\0" and message[3] & 0xF in (FORMERR, NOTIMP)


def read_reply(message: bytes, question: Question) -> Reply:
    """The reply in `message`, of which :func:`answers` has said that it is one. Raises BadReply."""
    _, flags, questions, answer_count, authority_count, _ = _HEADER.unpack_from(message)
    code, truncated = flags & 0xF, bool(flags & 0x0200)
    if truncated or code not in (0, NXDOMAIN) or not questions:
        return Reply(code, truncated, False, (), {}, {}, None, False)
    if answer_count > MAX_RECORDS or authority_count > MAX_RECORDS:
        raise BadReply(f"{max(answer_count, authority_count)} records")
    walk = _Walk(message, 12 + len(question.section), question)
    try:
        for _ in range(answer_count):
            walk.answer()
        for _ in range(authority_count):
            walk.authority()
    except (dns.exception.DNSException, struct.error, IndexError, ValueError) as error:
        raise BadReply(f"malformed reply ({type(error).__name__})") from None
    negative = walk.soa_seconds
    authoritative, recursive = bool(flags & 0x0400), bool(flags & 0x0080)
    nothing = not walk.records and not walk.aliases and not walk.branches
    referral = nothing and code == 0 and negative is None and walk.delegates and not (authoritative or recursive)
    authentic = bool(flags & 0x0020)
    return Reply(code, False, authentic, tuple(walk.records), walk.aliases, walk.branches, negative, referral)


class _Walk:
    """Record after record of one reply."""

    def __init__(self, message: bytes, offset: int, question: Question) -> None:
        self._message = message
        self._offset = offset
        self._question = question
        self._wanted = int(dns.rdatatype.from_text(question.type))
        self.records: list[tuple[str, float, Record]] = []
        self.aliases: dict[str, tuple[str, float]] = {}
        self.branches: dict[str, tuple[str, float]] = {}
        self.soa_seconds: float | None = None
        self.delegates = False

    def _next(self) -> tuple[str, int, int, int, int]:
        """(owner, type, class, seconds to live, length of the data); the data is then at the offset."""
        message, offset = self._message, self._offset
        if message[offset : offset + 2] == b"\xc0\x0c":
            owner, offset = self._question.name, offset + 2
        else:
            name, used = dns.name.from_wire(message, offset)
            owner, offset = _text(name), offset + used
        kind, network, seconds, length = _RECORD.unpack_from(message, offset)
        self._offset = offset + 10
        if self._offset + length > len(message):
            raise IndexError
        # A TTL with the highest bit set is 0 (RFC 2181 section 8).
        return owner, kind, network, max(seconds, 0), length

    def _data(self, kind: int, length: int) -> Any:
        return dns.rdata.from_wire(
            dns.rdataclass.IN, dns.rdatatype.RdataType(kind), self._message, self._offset, length
        )

    def answer(self) -> None:
        """One record of the answer section."""
        owner, kind, network, seconds, length = self._next()
        if network == _IN and kind in (self._wanted, _CNAME, _DNAME):
            data = self._data(kind, length)
            if kind == self._wanted:
                self.records.append((owner, seconds, _record(kind, data)))
            elif kind == _CNAME:
                self.aliases[owner] = _text(data.target), seconds
            else:
                self.branches[owner] = _text(data.target), seconds
        self._offset += length

    def authority(self) -> None:
        """One record of the authority section."""
        _, kind, network, seconds, length = self._next()
        if network == _IN and kind == _SOA:
            # RFC 2308 section 5: the lesser of the SOA's own time and its last field.
            self.soa_seconds = min(seconds, self._data(kind, length).minimum)
        elif kind == _NS:
            self.delegates = True
        self._offset += length


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() or "."


def _record(kind: int, data: Any) -> Record:
    if kind == 35:
        return Naptr(
            data.order,
            data.preference,
            _string(data.flags),
            _string(data.service),
            _string(data.regexp),
            _text(data.replacement),
        )
    if kind == 33:
        return Srv(data.priority, data.weight, data.port, _text(data.target))
    if kind == 1:
        return A(data.address)
    if kind == 28:
        return Aaaa(data.address)
    if kind == 16:
        return Txt(tuple([_string(string) for string in data.strings]))
    return Other(dns.rdatatype.to_text(dns.rdatatype.RdataType(kind)), data.to_wire() or b"")


def _string(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")

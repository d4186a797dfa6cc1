"""The records that a domain publishes to be reached by peers, as lines of a zone file (draft-mahy 4.2.1, 4.2.2).

Only TLS is offered. RFC 3263 section 4.1 wants NAPTR records for TCP and UDP as well; a domain that offers these
must listen there, which is the operator's decision and not made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from p2psipd.proto.dns import A, Aaaa, Naptr, Record, Srv
from p2psipd.proto.peering.enum import CarrierRoot, branch_position, domain_of, substitute
from p2psipd.proto.peering.prefixes import prefixes_of_range
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.uri import SipUri

__all__ = ["PublishedServer", "ZoneRecord", "domain_records", "number_records", "zone_text"]

TTL_SECONDS: Final = 3600
_MAX_STRING: Final = 255
_LABEL: Final = re.compile("[A-Za-z0-9_-]{1,63}")
_EXAMPLE_DIGITS: Final = "212555121200000"


class PublishedServer(NamedTuple):
    """A host of the domain that listens for peers: its name, port, addresses, and SRV priority and weight."""

    host: str
    port: int = 5061
    addresses: tuple[str, ...] = ()
    priority: int = 10
    weight: int = 10


class ZoneRecord(NamedTuple):
    """One record to publish; ``str()`` is its line in a zone file."""

    name: str
    record: Record

    def __str__(self) -> str:
        return f"{self.name}. {TTL_SECONDS} IN {_written(self.record)}"


def zone_text(records: Iterable[ZoneRecord]) -> str:
    """The lines of `records`, each once, in their order."""
    return "".join([f"{line}\n" for line in dict.fromkeys([str(record) for record in records])])


def domain_records(domain: str, servers: Sequence[PublishedServer]) -> list[ZoneRecord]:
    """NAPTR, SRV and address records of `domain`. Raises ValueError for what is no name, and without a server."""
    if not servers:
        raise ValueError("expected at least one server")
    domain = _name(domain)
    servers = [server._replace(host=_name(server.host)) for server in servers]
    service = f"_sips._tcp.{domain}"
    records = [ZoneRecord(domain, Naptr(10, 10, "s", "SIPS+D2T", "", service))]
    for server in servers:
        records.append(ZoneRecord(service, Srv(server.priority, server.weight, server.port, server.host)))
    for server in servers:
        for address in server.addresses:
            records.append(ZoneRecord(server.host, Aaaa(address) if ":" in address else A(address)))
    return records


def number_records(
    numbers: str, template: str, *, root: str = "e164.arpa", carrier: CarrierRoot | None = None
) -> list[ZoneRecord]:
    """The ENUM records of "+digits" (one number), "+digits*" (all that begin so) or "+first-+last".

    `template` is the SIP URI with {number} where the number stands in global form, for example
    "sip:{number}@example.net;user=phone". With `carrier` they are E2U+sip and E2U+pstn:sip records in that tree,
    else E2U+sip in the users' tree under `root`. Prefixes become wildcards: an operator who delegates or fills names
    below one must repeat it there (RFC 4592). Raises ValueError for what makes no record.
    """
    regexp = _expression(template)
    root = _name(root)
    if carrier is not None:
        carrier = carrier._replace(root=_name(carrier.root))
    services = ("E2U+sip",) if carrier is None else ("E2U+sip", "E2U+pstn:sip")
    records = []
    for digits, whole in _blocks(numbers):
        if carrier is None:
            name = domain_of(digits, root)
        else:
            position = branch_position(f"+{digits}")
            if carrier.algorithm != "none" and len(digits) < position:
                raise ValueError(f"expected at least the country code, not +{digits}")
            label = "" if carrier.algorithm == "none" else carrier.label
            name = _name(domain_of(digits, carrier.root, label, position))
        for preference, service in enumerate(services, 1):
            rule = Naptr(100, 10 * preference, "u", service, regexp, ".")
            records.append(ZoneRecord(name if whole else f"*.{name}", rule))
    return records


def _name(text: str) -> str:
    """A host or domain name as a zone file takes it before the last dot. Raises ValueError."""
    name = text.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"expected a domain name, not {text!r}")
    return name


def _blocks(numbers: str) -> list[tuple[str, bool]]:
    """(digits, whether that is a whole number) of a number, a prefix or a range."""
    first, dash, last = numbers.replace(" ", "").partition("-")
    if dash:
        first, last = first.removeprefix("+"), last.removeprefix("+")
        return [(prefix, len(prefix) == len(first)) for prefix in prefixes_of_range(first, last)]
    digits = first.removeprefix("+")
    bare = digits.removesuffix("*")
    if not bare.isascii() or not bare.isdigit() or len(bare) > 15:
        raise ValueError(f"expected +digits, +digits* or +first-+last, not {numbers}")
    return [(bare, bare == digits)]


def _expression(template: str) -> str:
    """The substitution expression that makes the URI of `template` from a number. Raises ValueError."""
    before, found, after = template.partition("{number}")
    if "!" in template or "\\" in template or "{" in before + after:
        raise ValueError(f"expected a URI without ! and \\, with {{number}} at most once, not {template}")
    regexp = f"!^(.*)$!{before}\\1{after}!" if found else f"!^.*$!{template}!"
    try:
        SipUri.parse(substitute(regexp, f"+{_EXAMPLE_DIGITS}") or "")
    except SipError as error:
        raise ValueError(f"expected a SIP URI, not {template}: {error.reason}") from None
    if len(regexp.encode()) > _MAX_STRING:
        raise ValueError(f"expected a shorter URI: a record holds {_MAX_STRING} octets")
    return regexp


# ---- a record as a zone file has it (RFC 1035 section 5.1) -------------------------------------------------


def _written(record: Record) -> str:
    match record:
        case Naptr():
            strings = " ".join([_quoted(text) for text in (record.flags, record.service, record.regexp)])
            return f"NAPTR {record.order} {record.preference} {strings} {_full(record.replacement)}"
        case Srv():
            return f"SRV {record.priority} {record.weight} {record.port} {_full(record.target)}"
        case A():
            return f"A {record.address}"
        case Aaaa():
            return f"AAAA {record.address}"
        case _:
            raise ValueError(f"no record of ours: {record}")


def _full(name: str) -> str:
    return "." if name == "." else f"{name}."


def _quoted(text: str) -> str:
    """A character string: backslash and quote escaped, what is not printable ASCII as its decimal octet."""
    return '"' + "".join([_octet(octet) for octet in text.encode()]) + '"'


def _octet(octet: int) -> str:
    char = chr(octet)
    if char in '"\\':
        return f"\\{char}"
    return char if 32 <= octet < 127 else f"\\{octet:03d}"

"""Whether a domain can be reached by peers: the whole procedure against its live DNS and TLS, step by step (line 64).

The walk is that of a peer which sends to the domain (p2psipd.proto.sip.next_hops), but it looks at every record where
the peer would stop at the first that works, and says what is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from typing import Final, NamedTuple

from p2psipd.proto.dns import A, Aaaa, Answer, Ask, Naptr, Srv, Status
from p2psipd.proto.sip.next_hops import Hop

__all__ = ["Finding", "Probe", "ProbeResult", "Verdict", "check_domain"]

_MAX_SERVERS: Final = 16
_MAX_PROBES: Final = 32
_SECURE: Final = "SIPS+D2T"


class Verdict(Enum):
    """OK, WARNING (works, but not for everybody or not by the RFC), FAULT (peers do not get through here)."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """What one step found: `step` names the record or the address, `text` says it in words."""

    verdict: Verdict
    step: str
    text: str


class ProbeResult(NamedTuple):
    """How a TLS connection to a hop went: whether its certificate is the domain's and it let us in, and in words."""

    ok: bool
    text: str


Probe = Callable[[Hop], Awaitable[ProbeResult]]
"""Connects to a hop by TLS, checks the certificate, and closes. Never raises for what the network does."""


async def check_domain(domain: str, ask: Ask, probe: Probe) -> AsyncIterator[Finding]:
    """Every step on the way to `domain` (lower case), with what is wrong there."""
    names: list[str] = []
    answer = await ask(domain, "NAPTR")
    for finding in _of_naptr(domain, answer, names):
        yield finding
    own_name = f"_sips._tcp.{domain}"
    published = bool(names)
    if answer.status is not Status.FAILED and own_name not in names:
        names.append(own_name)
    hops: list[Hop] = []
    absent = 0
    for name in names[:_MAX_SERVERS]:
        answer = await ask(name, "SRV")
        absent += answer.status is Status.NONE
        for finding in _of_srv(name, answer, published and name != own_name):
            yield finding
        for server in _servers(answer):
            async for finding in _addresses(server.target, server.port, domain, ask, hops):
                yield finding
    if names and absent == len(names):
        async for finding in _addresses(domain, 5061, domain, ask, hops):
            yield finding
    reached = 0
    for hop in list(dict.fromkeys(hops))[:_MAX_PROBES]:
        result = await probe(hop)
        reached += result.ok
        yield Finding(Verdict.OK if result.ok else Verdict.FAULT, f"TLS {_at(hop)}", result.text)
    if reached:
        yield Finding(Verdict.OK, domain, f"can be reached by peers at {reached} of {len(set(hops))} addresses")
    else:
        yield Finding(Verdict.FAULT, domain, "cannot be reached by peers")


def _of_naptr(domain: str, answer: Answer, names: list[str]) -> list[Finding]:
    """What the NAPTR records say; the SRV names of the secure ones are added to `names`."""
    step = f"NAPTR {domain}"
    if answer.status is Status.FAILED:
        return [Finding(Verdict.FAULT, step, f"cannot be looked up: {answer.reason}")]
    rules = sorted([record for record in answer.records if isinstance(record, Naptr)])
    offered = {rule.service.upper() for rule in rules if rule.service.upper().startswith(("SIP+", "SIPS+"))}
    if not offered:
        return [Finding(Verdict.WARNING, step, f"missing: expected a record for {_SECURE}; peers ask for SRV instead")]
    findings = []
    for rule in rules:
        if rule.service.upper() != _SECURE:
            continue
        if rule.flags.lower() != "s" or rule.regexp or rule.replacement == ".":
            text = 'malformed: expected the flag "s", no regular expression, and the name of an SRV record'
            findings.append(Finding(Verdict.FAULT, step, text))
        else:
            names.append(rule.replacement)
            findings.append(Finding(Verdict.OK, step, f"{_SECURE} leads to {rule.replacement}"))
    if not names:
        found = ", ".join(sorted(offered))
        findings.append(Finding(Verdict.FAULT, step, f"missing: {_SECURE}; there is only {found}, and no TLS"))
    elif not {"SIP+D2T", "SIP+D2U"} <= offered:
        text = "no SIP+D2T and SIP+D2U: RFC 3263 section 4.1 asks for them, peers need only TLS"
        findings.append(Finding(Verdict.WARNING, step, text))
    return findings


def _of_srv(name: str, answer: Answer, referred: bool) -> list[Finding]:
    step = f"SRV {name}"
    if answer.status is Status.FAILED:
        return [Finding(Verdict.FAULT, step, f"cannot be looked up: {answer.reason}")]
    if answer.status is Status.NONE:
        if referred:
            return [Finding(Verdict.FAULT, step, "missing, and a NAPTR record leads to it")]
        text = "missing: RFC 3263 asks for it even beside NAPTR; without both, peers try port 5061 of the domain"
        return [Finding(Verdict.WARNING, step, text)]
    servers = _servers(answer)
    if not servers:
        return [Finding(Verdict.FAULT, step, 'says with the target "." that the service is not offered')]
    shown = ", ".join([f"{one.target}:{one.port} (priority {one.priority}, weight {one.weight})" for one in servers])
    return [Finding(Verdict.OK, step, shown)]


def _servers(answer: Answer) -> list[Srv]:
    records = [record for record in answer.records if isinstance(record, Srv) and record.target != "."]
    return sorted(records)[:_MAX_SERVERS]


async def _addresses(name: str, port: int, domain: str, ask: Ask, hops: list[Hop]) -> AsyncIterator[Finding]:
    """The addresses of one server, added to `hops`."""
    under_way = [(kind, ask(name, kind)) for kind in ("AAAA", "A")]
    found = []
    for kind, waiting in under_way:
        answer = await waiting
        if answer.status is Status.FAILED:
            yield Finding(Verdict.FAULT, f"{kind} {name}", f"cannot be looked up: {answer.reason}")
        found += [record.address for record in answer.records if isinstance(record, A | Aaaa)]
    hops += [Hop("TLS", address, port, domain) for address in found]
    if found:
        yield Finding(Verdict.OK, f"A/AAAA {name}", ", ".join(found))
    else:
        yield Finding(Verdict.FAULT, f"A/AAAA {name}", "missing: the name has no address")


def _at(hop: Hop) -> str:
    return f"[{hop.host}]:{hop.port}" if ":" in hop.host else f"{hop.host}:{hop.port}"

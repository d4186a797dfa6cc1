"""What would happen to a call and why, without sending it (`p2psip peering explain`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from p2psipd.proto.dns import Answer
from p2psipd.proto.peering.identity import check_from
from p2psipd.proto.peering.targets import Candidate, Place, analyse, candidates
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.locating import LocationUnavailable
from p2psipd.proto.sip.message import Request, parse_message
from p2psipd.proto.sip.next_hops import NoRoute
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import TelUri, parse_uri
from p2psipd.services.peering.outbound import Outbound, Owner

_MOST_CANDIDATES: Final = 8
_MOST_HOPS: Final = 8


class Step(NamedTuple):
    """One step: what was looked at, what came of it, and whether that ends the way ("ok", "no", "info")."""

    step: str
    result: str
    verdict: str = "ok"


class _Asking:
    """The DNS client, with a note of each question and answer."""

    def __init__(self, outbound: Outbound, steps: list[Step]) -> None:
        self._ask = outbound.ask
        self._steps = steps

    async def __call__(self, name: str, kind: str) -> Answer:
        answer = await self._ask(name, kind)
        shown = ", ".join(" ".join(str(part) for part in record) for record in answer.records[:4])
        text = shown or (f"failed: {answer.reason}" if answer.reason else "none")
        self._steps.append(Step(f"DNS {kind} {name}", text, "info"))
        return answer


async def explain(outbound: Outbound, target: str, sender: str, owner: Owner) -> list[dict[str, Any]]:
    """The steps that a call of `sender` (an AOR or a SIP URI) to `target` (a URI, or what is dialled) would take, in
    their order. `owner` says whose a number is.
    """
    steps: list[Step] = []
    source = sender if ":" in sender.partition("@")[0] else f"sip:{sender}"
    if ":" not in target:
        # What is dialled is a user of the caller's own domain, as a phone writes it.
        target = f"sip:{target}" if "@" in target else f"sip:{target}@{source.rpartition('@')[2]}"
    try:
        uri, request = parse_uri(target), _request(target, source)
    except SipError as error:
        return [Step("target", f"not a URI: {error.reason}", "no")._asdict()]
    try:
        await _explain(outbound, uri, request, steps, owner)
    except LocationUnavailable as error:
        steps.append(Step("answer", f"503 Service Unavailable: {error}", "no"))
    except (NoRoute, Refused) as error:
        detail = getattr(error, "detail", "") or error.reason
        steps.append(Step("answer", f"{error.status} {error.reason}: {detail}", "no"))
    return [step._asdict() for step in steps]


def _request(target: str, source: str) -> Request:
    made = parse_message(
        f"INVITE {target} SIP/2.0\r\nVia: SIP/2.0/TLS localhost;branch=z9hG4bKexplain\r\nMax-Forwards: 70\r\n"
        f"From: <{source}>;tag=1\r\nTo: <{target}>\r\nCall-ID: explain\r\nCSeq: 1 INVITE\r\n"
        f"Content-Length: 0\r\n\r\n".encode("utf-8", "surrogateescape")
    )
    assert isinstance(made, Request), "it was written as one"
    return made


async def _explain(outbound: Outbound, uri: Any, request: Request, steps: list[Step], owner: Owner) -> None:
    peering = outbound.peering()
    analysis = analyse(uri, outbound.rules)
    number = f", number {analysis.number}" if analysis.number else ""
    steps.append(Step("target", f"{analysis.place.value}{number}"))
    if analysis.place is Place.EMERGENCY:
        target = peering.emergency
        steps.append(Step("emergency", str(target) if target else "404: no target is set", "ok" if target else "no"))
        return
    if analysis.place is Place.HOME:
        steps.append(Step("answer", "handled in our own domain; nothing is sent to a peer"))
        return
    user = await owner(TelUri(f"tel:{analysis.number}") if analysis.number else uri)
    if user is not None:
        steps.append(Step("answer", f"the number stands for {user}; nothing is sent to a peer"))
        return
    outbound.check_target(analysis)
    if analysis.domain:
        steps.append(Step("target policy", f"{analysis.domain} is allowed"))
    own = check_from(request, peering.own.domains)
    attest = await outbound.attests(request)
    steps.append(Step("from", f"{request.from_.uri_text}: sent in the name of {own}, attestation {attest}"))
    through = peering.policy.goes_through(own)
    if through:
        steps.append(Step("federation", f"{own} sends through {', '.join(through)}"))
    asking = _Asking(outbound, steps)
    count = 0
    found = candidates(analysis, asking, peering.sources, outbound.rules)
    async for candidate in found:
        count += 1
        steps.append(Step(candidate.stage.value, str(candidate.uri)))
        if candidate.home:
            steps.append(Step("answer", "404 Not Found: a number of our own domain that nobody has", "no"))
            return
        await _explain_hops(outbound, candidate, through, own, steps, asking)
        if count == _MOST_CANDIDATES:
            return


async def _explain_hops(
    outbound: Outbound, candidate: Candidate, through: Sequence[str], own: str, steps: list[Step], asking: _Asking
) -> None:
    peering = outbound.peering()
    hops = 0
    try:
        async for hop in outbound.hops_of(candidate, through, asking):
            certificate = outbound.certificate(own, hop)
            settings = peering.policy.settings(hop.domain)
            kinds = " and ".join(kind.value for kind in settings.send) or "none"
            dead = " (did not answer of late: tried last)" if outbound.dead.holds(hop, outbound.now()) else ""
            terms = f"its certificate must name {hop.domain}; we show {certificate.name}; Identity: {kinds}"
            steps.append(Step(f"server {hops + 1}", f"{hop.transport} {hop.host}:{hop.port}{dead}; {terms}"))
            hops += 1
            if hops == _MOST_HOPS:
                return
    except NoRoute as error:
        steps.append(Step("servers", f"{error.status} {error.reason}: {error.detail}", "no"))

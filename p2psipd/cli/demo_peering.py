"""`p2psip demo-peering`: two overlays that are two domains, their own name server, and two calls between them."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from p2psipd.cli.console import Negative, emit, json_option, step
from p2psipd.cli.demo import ALICE_TONE, BOB_TONE, heard, interrupt, ladder, run_reactor
from p2psipd.control import Control, ControlRefused, ControlUnreachable
from p2psipd.lab import LabError
from p2psipd.lab_files import SIP_PORT
from p2psipd.peering_lab import Domain, PeeringLab

_TALK_SECONDS = 2.5
_COLUMNS = {"alice": 10, "a": 34, "b": 58, "bob": 82}
_WIDTH = 90


@click.command("demo-peering")
@click.option("--peers", default=4, show_default=True, type=click.IntRange(2, 50), help="How many peers a domain has.")
@json_option
def demo_peering(peers: int, as_json: bool) -> None:
    """Start two overlays, a.test and b.test, and let alice of the one call bob of the other, by address and by number.

    The exit code is 0 only if both calls were set up, each heard the other's tone, the caller's Identity was
    verified, and both were hung up in order. Needs knotd (Debian's package knot).
    """
    signal.signal(signal.SIGTERM, interrupt)
    directory = Path(tempfile.mkdtemp(prefix="p2psip-peering-"))
    lab: PeeringLab | None = None
    try:
        with step(f"certificates, zones and configuration of two domains with {peers} peers each", as_json):
            lab = PeeringLab.create(directory, peers=peers)
        with step("starting knotd and both overlays, each peer its own twistd process", as_json):
            lab.up()
        report = run_reactor(lambda: place_calls(lab, as_json))
    except (LabError, ControlUnreachable, ControlRefused) as error:
        raise Negative(str(error)) from None
    finally:
        if lab is not None:
            lab.end()
        shutil.rmtree(directory, ignore_errors=True)
    emit(report, as_json, render)
    if not report["ok"]:
        raise click.exceptions.Exit(1)


async def place_calls(lab: PeeringLab, quiet: bool = True) -> dict[str, Any]:
    """Alice calls bob by his address and by his number; what happened (JSON types)."""
    from twisted.internet import reactor

    from p2psipd.net.user_agent import UserAgent, UserAgentError, answer_with_tone

    one, other = lab.domains
    alice, bob = (
        UserAgent(
            reactor,
            domain.lab.aor(name),
            domain.lab.user(name).password,
            server=(domain.lab.host(1), SIP_PORT),
        )
        for domain, name in ((one, "alice"), (other, "bob"))
    )
    report: dict[str, Any] = {"ok": False, "domains": [one.name, other.name], "calls": []}
    try:
        with step(f"alice registers at a peer of {one.name}, bob at one of {other.name}; neither is an edge", quiet):
            await alice.register()
            await bob.register()
        bob.on_call = answer_with_tone(BOB_TONE)
        for target in (f"sip:bob@{other.name}", f"sip:{other.numbers[0]}@{one.name};user=phone"):
            with step(f"alice calls {target}", quiet):
                report["calls"].append(await _call(lab, alice, bob, target))
        report["ok"] = all(call["ok"] for call in report["calls"])
    except UserAgentError as error:
        report["error"] = str(error)
    finally:
        await alice.stop()
        await bob.stop()
    return report


async def _call(lab: PeeringLab, alice: Any, bob: Any, target: str) -> dict[str, Any]:
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    started = len(alice.ladder), len(bob.ladder)
    # The phones' clock is the reactor's, the edges' the wall clock.
    ahead = time.time() - reactor.seconds()
    call = await alice.call(target, tone=ALICE_TONE, timeout=10)
    await deferLater(reactor, _TALK_SECONDS)
    answered = next(iter(bob.calls.values()))
    sides = {"alice": heard(call, BOB_TONE), "bob": heard(answered, ALICE_TONE)}
    cause = await call.hang_up()
    await answered.ended()
    phones = alice.ladder[started[0] :] + bob.ladder[started[1] :]
    began = min(entry.at for entry in phones)
    arrows: list[dict[str, Any]] = [
        {"ms": arrow.ms, "between": ("alice", "a") if arrow.side == "alice" else ("b", "bob"), "text": arrow.text,
         "leftward": arrow.to_phone == (arrow.side == "alice")}
        for arrow in ladder(alice, bob, started)
    ]  # fmt: skip
    across, identity = _border(lab, began + ahead)
    arrows = sorted(arrows + across, key=itemgetter("ms"))
    return {
        "target": target,
        "setup_ms": round((call.established_at - call.started_at) * 1000, 1),
        "heard": sides,
        "cause": cause,
        "identity": identity,
        "ladder": arrows,
        "ok": all(side["ok"] for side in sides.values()) and bool(across) and identity["verified"],
    }


def _border(lab: PeeringLab, began: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What went over the border, as the first domain's edge saw it, and what the second one's made of the Identity."""
    one, other = lab.domains
    arrows = []
    for control in _edges(one):
        for message in _messages(control, began):
            outward = message["destination"] == f"domain {other.name}"
            if outward or message["source"] == f"domain {other.name}":
                arrows.append(
                    {
                        "ms": round((message["at"] - began) * 1000, 1),
                        "between": ("a", "b"),
                        "text": _short(message["line"]),
                        "leftward": not outward,
                    }
                )
    admitted = 0
    for control in _edges(other):
        admitted += control.get("/peering/refusals")["admitted"]
    return arrows, {"verified": admitted > 0, "admitted": admitted}


def _edges(domain: Domain) -> list[Control]:
    return [domain.lab.control(number) for number in domain.edges]


def _messages(control: Control, began: float) -> list[dict[str, Any]]:
    """What an edge saw of the calls since then; another edge may have carried them."""
    found: list[dict[str, Any]] = []
    for call in control.get("/calls"):
        if call["started_at"] > began - 0.5:
            found += control.get("/calls/ladder", call_id=call["call_id"])["messages"]
    return found


def _short(line: str) -> str:
    words = line.split()
    return words[1] if words[0] == "SIP/2.0" else words[0]


# ---- for people ------------------------------------------------------------------------------------------------


def render(report: dict[str, Any]) -> str:
    """The ladders of both calls and what they show."""
    lines: list[str] = []
    for call in report["calls"]:
        lines += [f"alice calls {call['target']}", _heads(report["domains"])]
        lines += [_arrow_line(arrow) for arrow in call["ladder"]]
        for name, side in call["heard"].items():
            other = "bob" if name == "alice" else "alice"
            lines.append(
                f"{name} heard {other}'s {side['tone_hz']:.0f} Hz for {side['seconds']:.1f} s, phone to phone: "
                f"{100 * side['share']:.0f} % of what was received{'' if side['ok'] else ', WHICH IS NOT A CALL'}"
            )
        proof = "verified and admitted" if call["identity"]["verified"] else "NOT ADMITTED"
        lines += [f"alice's Identity was {proof} at {report['domains'][1]}'s edge"]
        lines += [f"call set up in {call['setup_ms']:.1f} ms, ended: {call['cause']}", ""]
    lines.append("it works" if report["ok"] else f"IT DID NOT WORK: {report.get('error', 'look above')}")
    return "\n".join(lines)


def _heads(domains: list[str]) -> str:
    heads = {"alice": "alice", "a": domains[0], "b": domains[1], "bob": "bob"}
    line = [" "] * _WIDTH
    for name, at in _COLUMNS.items():
        start = at - len(heads[name]) // 2
        line[start : start + len(heads[name])] = heads[name]
    line[:7] = "     ms"
    return "".join(line).rstrip()


def _arrow_line(arrow: dict[str, Any]) -> str:
    line = [" "] * _WIDTH
    for at in _COLUMNS.values():
        line[at] = "|"
    line[: len(f"{arrow['ms']:7.1f}")] = f"{arrow['ms']:7.1f}"
    left, right = arrow["between"]
    begin, end = _COLUMNS[left] + 1, _COLUMNS[right]
    label = f" {arrow['text']} "[: end - begin - 4].center(end - begin - 2, "-")
    line[begin:end] = f"<-{label}" if arrow["leftward"] else f"{label}->"
    return "".join(line).rstrip()

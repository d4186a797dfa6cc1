"""`p2psip demo`: an overlay of real processes, two phones of our own, one call, and what happened."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from p2psipd.cli.console import Negative, emit, json_option, short, step
from p2psipd.control import Control, ControlRefused, ControlUnreachable
from p2psipd.lab import DEFAULT_NETWORK, Lab, LabError, free_network, is_free
from p2psipd.lab_files import SIP_PORT

if TYPE_CHECKING:
    from p2psipd.net.user_agent import UserAgent, UserCall

_Result = TypeVar("_Result")

ALICE_TONE = 440.0
BOB_TONE = 880.0
_TALK_SECONDS = 3.0
_LIMIT_SECONDS = 55.0
# Of what a side received, the share that must be the other side's tone, and the seconds that must have
# arrived.
_TONE_SHARE = 0.9
_HEARD_SECONDS = 2.0


class Arrow(NamedTuple):
    """One message of the ladder: when (milliseconds after the first), between which two of the four, and
    what.
    """

    ms: float
    side: str
    to_phone: bool
    text: str


@click.command()
@click.option("--peers", default=8, show_default=True, type=click.IntRange(2, 100), help="How many peers.")
@click.option("--lab", "existing", metavar="D", default=None, help="Use the lab in D, and leave it running.")
@json_option
def demo(peers: int, existing: str | None, as_json: bool) -> None:
    """Start a lab of PEERS processes, let alice call bob through it, and show what happened.

    The exit code is 0 only if both registered, the call was set up, each heard the other's tone, and the call
    was hung up in order.
    """
    try:
        if existing is not None:
            report = _talk(Lab.open(existing), as_json)
        else:
            report = _whole(peers, as_json)
    except (LabError, ControlUnreachable, ControlRefused) as error:
        raise Negative(str(error)) from None
    emit(report, as_json, render)
    if not report["ok"]:
        raise click.exceptions.Exit(1)


def _whole(peers: int, quiet: bool) -> dict[str, Any]:
    """A lab of its own for one call; its processes and files are gone afterwards, whatever happened."""
    signal.signal(signal.SIGTERM, interrupt)
    directory = Path(tempfile.mkdtemp(prefix="p2psip-demo-"))
    lab: Lab | None = None
    try:
        lab = _lab(directory, peers, quiet)
        return _talk(lab, quiet)
    finally:
        if lab is not None:
            lab.kill_all()
        shutil.rmtree(directory, ignore_errors=True)


def interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends the demo as ctrl-C does, so that the peers end with it."""
    raise KeyboardInterrupt


def _talk(lab: Lab, quiet: bool) -> dict[str, Any]:
    return run_reactor(lambda: place_call(lab, quiet))


def _lab(directory: Path, peers: int, quiet: bool) -> Lab:
    network = DEFAULT_NETWORK if is_free(DEFAULT_NETWORK) else free_network()
    with step(f"certificates and configuration of {peers} peers, alice and bob", quiet) as progress:
        lab = Lab.create(directory, peers, network=network, progress=progress)
    try:
        with step(f"starting {peers} peers, each its own twistd process", quiet) as progress:
            lab.on_progress(progress)
            lab.up()
        with step("storing what alice and bob need to register", quiet):
            lab.provision()
    except BaseException:
        lab.kill_all()
        raise
    return lab


def run_reactor(main: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run `main` under a reactor of this process, within the limit of time; its result or its error."""
    from twisted.internet import reactor
    from twisted.internet.defer import CancelledError, Deferred, TimeoutError
    from twisted.python.failure import Failure

    # Twisted's own clock follows the wall clock and would jump with it.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    outcome: list[Any] = []

    given_up: list[Deferred[None]] = []

    def begin() -> None:
        running = Deferred.fromCoroutine(main()).addTimeout(_LIMIT_SECONDS, reactor)

        def give_up() -> Deferred[None]:
            given_up.append(Deferred())
            running.cancel()
            return given_up[0]

        def finished(result: Any) -> None:
            outcome.append(result)
            if given_up:
                given_up[0].callback(None)
            else:
                reactor.removeSystemEventTrigger(interrupted)
                reactor.stop()

        # Ctrl-C and SIGTERM stop the reactor: before that the phones hang up and let go of their ports.
        interrupted = reactor.addSystemEventTrigger("before", "shutdown", give_up)
        running.addBoth(finished)

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome or (isinstance(outcome[0], Failure) and outcome[0].check(CancelledError)):
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        if outcome[0].check(TimeoutError):
            raise LabError(f"the call did not come about within {_LIMIT_SECONDS:.0f} s")
        outcome[0].raiseException()
    result: _Result = outcome[0]
    return result


async def place_call(lab: Lab, quiet: bool = True) -> dict[str, Any]:
    """Register alice and bob at two peers of the lab, let them talk, and tell all about it (JSON types)."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    from p2psipd.net.user_agent import UserAgent, UserAgentError, answer_with_tone

    at_alice, at_bob = _places(lab)
    alice, bob = (
        UserAgent(reactor, lab.aor(name), lab.user(name).password, server=(lab.host(number), SIP_PORT))
        for name, number in (("alice", at_alice), ("bob", at_bob))
    )
    report: dict[str, Any] = {"ok": False, "peers": len(lab.peers), "alice_at": at_alice, "bob_at": at_bob}
    try:
        with step(f"alice registers at peer {at_alice}, bob at peer {at_bob}", quiet):
            await alice.register()
            await bob.register()
        report["record"] = where(lab, at_alice, lab.aor("bob"))
        bob.on_call = answer_with_tone(BOB_TONE)
        started = len(alice.ladder), len(bob.ladder)
        with step(f"alice calls bob, and they talk for {_TALK_SECONDS:.0f} s", quiet):
            call = await alice.call(lab.aor("bob"), tone=ALICE_TONE, timeout=10)
            report["setup_ms"] = _ms(call.established_at, call.started_at)
            report["ringing_ms"] = _ms(call.ringing_at, call.started_at)
            await deferLater(reactor, _TALK_SECONDS)
            answered = next(iter(bob.calls.values()))
            report["heard"] = {"alice": heard(call, BOB_TONE), "bob": heard(answered, ALICE_TONE)}
            report["cause"] = await call.hang_up()
            await answered.ended()
            report["ladder"] = [arrow._asdict() for arrow in ladder(alice, bob, started)]
            await alice.unregister()
            await bob.unregister()
        report["ok"] = report["record"]["verified"] and all(side["ok"] for side in report["heard"].values())
    except UserAgentError as error:
        report["error"] = str(error)
    finally:
        await alice.stop()
        await bob.stop()
    return report


def _places(lab: Lab) -> tuple[int, int]:
    """The peers where alice and bob register: alice's is not the one that holds bob's record, if there is a
    choice, so that looking him up goes through the overlay.
    """
    at_bob = min(6, len(lab.peers))
    holder = where(lab, at_bob, lab.aor("bob"))["held_by_peer"]
    others = [number for number in (3, 4, 2, 1) if number in lab.peers and number != at_bob]
    return next((number for number in others if number != holder), others[0]), at_bob


def _ms(at: float | None, since: float) -> float | None:
    return None if at is None else round((at - since) * 1000, 1)


def heard(call: UserCall, tone: float) -> dict[str, Any]:
    """What one side received: the share of the other's tone in it, and whether that is a call one can have.
    """
    received = call.received_tone((ALICE_TONE, BOB_TONE))
    share = received["power"][tone]
    return {
        "tone_hz": tone,
        "share": round(share, 3),
        "seconds": round(received["seconds"], 2),
        "lost": received["lost"],
        "ok": share >= _TONE_SHARE and received["seconds"] >= _HEARD_SECONDS,
    }


def ladder(alice: UserAgent, bob: UserAgent, since: tuple[int, int]) -> list[Arrow]:
    """The messages of both phones in the order of time, from the given places in their own ladders on."""
    entries = [("alice", entry) for entry in alice.ladder[since[0] :]]
    entries += [("bob", entry) for entry in bob.ladder[since[1] :]]
    entries.sort(key=lambda pair: pair[1].at)
    if not entries:
        return []
    began = entries[0][1].at
    arrows = []
    for side, entry in entries:
        words = entry.line.split()
        if words[0] == "SIP/2.0":
            text = f"{words[1]} {entry.method}" if entry.method else words[1]
        else:
            text = words[0]
        arrows.append(Arrow(round((entry.at - began) * 1000, 1), side, entry.direction == "<-", text))
    return arrows


def where(lab: Lab, number: int, aor: str) -> dict[str, Any]:
    """Which peer holds the record of `aor`, as peer `number` finds it: hops and milliseconds, from its trace.
    """
    numbers = {state.status["node_id"]: state.number for state in lab.status() if state.status}
    control = Control(lab.peer_directory(number) / "control.sock")
    way = control.get("/trace", name=aor)
    found = control.get("/get", name=aor)
    return {
        "aor": aor,
        "asked_at": number,
        "held_by": way["answered_by"],
        "held_by_peer": numbers.get(way["answered_by"]),
        "hops": way["hop_count"],
        "ms": way["ms"],
        "verified": bool(found["found"] and found["verified"]),
        "values": [value["value"] for value in found["values"]],
        "signed_by": [value["signer"] for value in found["values"]],
    }


_COLUMNS = {"alice": 10, "near": 34, "far": 52, "bob": 76}


def render(report: dict[str, Any]) -> str:
    """The report for people: the ladder, then what it shows."""
    lines = [*_ladder_lines(report), ""]
    record = report.get("record")
    if record:
        holder = f"peer {record['held_by_peer']}" if record["held_by_peer"] else short(record["held_by"])
        lines.append(
            f"bob's record is held by {holder} ({short(record['held_by'])}): found from peer "
            f"{record['asked_at']} over {record['hops']} hop{'' if record['hops'] == 1 else 's'} "
            f"in {record['ms']:.1f} ms"
        )
        signers = ", ".join(short(signer) for signer in record["signed_by"]) or "nobody"
        lines.append(
            f"  it says {'; '.join(record['values']) or 'nothing'}, signed by {signers}"
            f"{', verified' if record['verified'] else ', NOT VERIFIED'}"
        )
    for name, side in report.get("heard", {}).items():
        other = "bob" if name == "alice" else "alice"
        lines.append(
            f"{name} heard {other}'s {side['tone_hz']:.0f} Hz for {side['seconds']:.1f} s: "
            f"{100 * side['share']:.0f} % of what was received, {side['lost']} packets lost"
            f"{'' if side['ok'] else ', WHICH IS NOT A CALL'}"
        )
    if report.get("setup_ms") is not None:
        lines.append(f"call set up in {report['setup_ms']:.1f} ms, ended: {report.get('cause', 'not at all')}")
    lines.append("it works" if report["ok"] else f"IT DID NOT WORK: {report.get('error', 'look above')}")
    return "\n".join(lines)


def _ladder_lines(report: dict[str, Any]) -> list[str]:
    arrows = report.get("ladder", [])
    if not arrows:
        return []
    heads = {
        "alice": "alice",
        "near": f"peer {report['alice_at']}",
        "far": f"peer {report['bob_at']}",
        "bob": "bob",
    }
    line = [" "] * 84
    for name, at in _COLUMNS.items():
        start = at - len(heads[name]) // 2
        line[start : start + len(heads[name])] = heads[name]
    line[:7] = "     ms"
    return ["".join(line).rstrip()] + [_arrow_line(arrow) for arrow in arrows]


def _arrow_line(arrow: dict[str, Any]) -> str:
    """One message as a line of the ladder; the overlay lies between the two peers."""
    line = [" "] * 84
    for at in _COLUMNS.values():
        line[at] = "|"
    line[: len(f"{arrow['ms']:7.1f}")] = f"{arrow['ms']:7.1f}"
    left, right = ("alice", "near") if arrow["side"] == "alice" else ("far", "bob")
    begin, end = _COLUMNS[left] + 1, _COLUMNS[right]
    to_left = arrow["to_phone"] == (arrow["side"] == "alice")
    label = f" {arrow['text']} "[: end - begin - 4].center(end - begin - 2, "-")
    line[begin:end] = f"<-{label}" if to_left else f"{label}->"
    return "".join(line).rstrip()

"""Two overlays of several edges each: calls between them both ways, and what is left when an edge of each dies."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2psipd.cli.demo_peering import place_calls, render
from p2psipd.peering_lab import Domain, PeeringLab

from .phones import outcome, ua
from .waiting import spin, wait_until

EDGES = 3


@pytest.fixture(scope="module")
def world() -> Iterator[PeeringLab]:
    """a.test with alice and b.test with bob; the first peer of each is no edge."""
    directory = Path(tempfile.mkdtemp(prefix="p2psip-peering-"))
    lab = PeeringLab.create(
        directory,
        peers=EDGES + 1,
        edges=EDGES,
        users=(("alice", "anna"), ("bob", "bert")),
        send="both",
    )
    try:
        lab.up()
        yield lab
    finally:
        lab.end()
        shutil.rmtree(directory, ignore_errors=True)


def carried_by(domain: Domain) -> list[int]:
    """The edges with a call that has not ended."""
    living = [number for number in domain.edges if domain.lab.pid(number) is not None]
    return [number for number in living if open_calls(domain, number)]


def open_calls(domain: Domain, number: int) -> list[Any]:
    """The calls of a peer that are answered and have not ended."""
    calls = domain.lab.control(number).get("/calls")
    return [call for call in calls if call["answered_at"] and not call["ended_at"]]


def is_acknowledged(domain: Domain) -> bool:
    """Whether the callee's registrar has passed on the ACK of its call: any edge may have brought it."""
    control = domain.lab.control(1)
    for call in open_calls(domain, 1):
        messages = control.get("/calls/ladder", call_id=call["call_id"])["messages"]
        if any(each["line"].startswith("ACK") and each["source"] == "here" for each in messages):
            return True
    return False


def call(world: PeeringLab, caller: tuple[int, str], callee: tuple[int, str], target: str, seconds: float) -> Any:
    """Both phones of a call that is under way: (who calls, who answers)."""
    one, other = world.domains[caller[0]], world.domains[callee[0]]
    answering = ua(other.lab, "answer", callee[1], 1, "--tone", "880", "--wait", "20")
    assert answering.stderr is not None and answering.stderr.readline()
    calling = ua(one.lab, "call", caller[1], 1, target, "--tone", "440", "--seconds", str(seconds))
    return calling, answering


def talked(phones: Any) -> None:
    """Both heard the other's tone, and the call ended in order for both."""
    calling, answering = outcome(phones[0], seconds=40), outcome(phones[1], seconds=40)
    for said, tone in ((calling, "880"), (answering, "440")):
        assert said["ok"] and said["heard"]["power"][tone] > 0.9, said
    assert answering["cause"] == "hung up by the far side", answering


@pytest.mark.foreign("knotd")
def test_the_demonstration(world: PeeringLab) -> None:
    """Alice reaches bob by address and by number, and the report shows what crossed the border."""
    report = spin(place_calls(world))
    assert report["ok"], report.get("error", report)
    shown = render(report)
    assert shown.endswith("it works") and shown.count("alice's Identity was verified") == 2
    crossed = [arrow["text"] for arrow in report["calls"][0]["ladder"] if arrow["between"] == ("a", "b")]
    assert crossed[0] == "INVITE" and {"200", "ACK", "BYE"} <= set(crossed)


@pytest.mark.foreign("knotd")
def test_calls_survive_an_edge_of_each_side(world: PeeringLab) -> None:
    """An established call ends by BYE through other edges; new ones find them, both ways, by name and by number."""
    a, b = world.domains
    long = call(world, (0, "alice"), (1, "bob"), "sip:bob@b.test", 10.0)
    wait_until(lambda: is_acknowledged(b), "the call is set up", 10.0)
    for domain in (a, b):
        for number in carried_by(domain):
            domain.lab.kill(number)
    began = time.monotonic()
    talked(call(world, (0, "anna"), (1, "bert"), "sip:bert@b.test", 1.5))
    talked(call(world, (1, "bert"), (0, "anna"), "sip:anna@a.test", 1.5))
    assert time.monotonic() - began < 20
    talked(long)
    talked(call(world, (1, "bert"), (0, "alice"), f"sip:{a.numbers[0]}@b.test;user=phone", 1.5))

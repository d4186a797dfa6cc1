"""Many peers of a lab die at once, with a word (the system closes their connections) or without (they just stop)."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from p2psipd.control import ControlRefused
from p2psipd.lab import Lab
from p2psipd.lab_files import User

from .conftest import end_lab, make_lab

PEERS = 24
RECORDS = 120
COPIES = 8
KIND = "DIGEST-CREDENTIAL"
#: Peers where the phones of the demo register; they survive, so that there is somebody to call.
PHONES_AT = (3, 6)


class Search(NamedTuple):
    """What looking for every record from the survivors gave."""

    found: set[str]
    seconds: list[float]

    @property
    def p99(self) -> float:
        """The 99th percentile of the times, in seconds."""
        return sorted(self.seconds)[math.ceil(0.99 * len(self.seconds)) - 1]


@pytest.fixture(scope="module")
def lab_of_24() -> Iterator[Lab]:
    """24 peers that hold a record for each of 120 users, each on eight of them."""
    lab = make_lab(PEERS)
    try:
        lab.up()
        lab.provision([*lab.users, *(User.of(f"user{number}") for number in range(RECORDS))])
        yield lab
    finally:
        end_lab(lab)


@pytest.fixture
def large_lab(lab_of_24: Lab) -> Lab:
    """The lab with whatever an earlier test did to it mended: all peers live, know each other, hold copies."""
    for number in lab_of_24.peers:
        lab_of_24.thaw(number)
        lab_of_24.start(number)
    lab_of_24.wait_joined(lab_of_24.peers, 60)
    lab_of_24.wait_acquainted(60)
    wait_for_copies(lab_of_24, 60)
    return lab_of_24


def alive(lab: Lab) -> list[int]:
    """Peers that answer."""
    return [state.number for state in lab.status() if state.state == "joined"]


def holders(lab: Lab) -> dict[str, set[int]]:
    """For each resource that has a password record, the living peers that hold it."""
    found: dict[str, set[int]] = {}
    for number in alive(lab):
        for row in lab.control(number).get("/records"):
            if row["kind"] == KIND:
                found.setdefault(row["resource"], set()).add(number)
    return found


def wait_for_copies(lab: Lab, seconds: float) -> float:
    """Wait until every record has its copies on living peers; how long it took."""
    began = time.monotonic()
    wanted = min(COPIES, len(alive(lab)))
    while True:
        counts = Counter(len(on) for on in holders(lab).values())
        if counts and min(counts) >= wanted:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"copies of a record after {seconds} s: {counts}"
        time.sleep(0.5)


def search(lab: Lab, survivors: list[int]) -> Search:
    """Ask for every user's record, each at another of the survivors."""
    found, seconds = set(), []
    for number in range(RECORDS):
        control = lab.control(survivors[number % len(survivors)])
        began = time.monotonic()
        try:
            answer = control.get("/get", name=f"user{number}@{lab.overlay_name}", kind=KIND)
        except ControlRefused as error:
            answer = {"found": False, "resource": str(error)}
        seconds.append(time.monotonic() - began)
        if answer["found"]:
            found.add(answer["resource"])
    return Search(found, seconds)


def call(lab: Lab) -> dict[str, object]:
    """The demo's call between two surviving peers. As a phone does, try again when it was told 503: a registrar
    may find the record's own peer silent before anybody has noticed that it is.
    """
    command = [sys.executable, "-m", "p2psipd.cli.main", "demo", "--lab", str(lab.directory), "--json"]
    for turn in (1, 2, 3):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if turn == 3 or "503" not in ran.stdout:
            break
        print("told 503, trying again")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report: dict[str, object] = json.loads(ran.stdout)
    return report


def strike(lab: Lab, count: int, which: signal.Signals) -> list[int]:
    """Let `count` peers die at once, the founder and the bootstrap peers first; the survivors."""
    dead = [number for number in lab.peers if number not in PHONES_AT][:count]
    pids = [lab.pid(number) for number in dead]
    for number, pid in zip(dead, pids, strict=True):
        assert pid is not None, number
        lab.signal(number, which)
    return [number for number in lab.peers if number not in dead]


@pytest.mark.parametrize("which", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_seven_deaths_lose_nothing(large_lab: Lab, which: signal.Signals) -> None:
    """Seven of 24 peers die: every record is found at once, phones call, and the copies are back in a minute."""
    survivors = strike(large_lab, 7, which)
    searched = search(large_lab, survivors)
    print(f"{which.name}: p99 {searched.p99 * 1000:.0f} ms, max {max(searched.seconds) * 1000:.0f} ms")
    assert len(searched.found) == RECORDS
    assert searched.p99 <= 1.0
    assert call(large_lab)["ok"]
    took = wait_for_copies(large_lab, 60)
    print(f"{which.name}: {COPIES} copies again {took:.1f} s after the call")


def test_twelve_deaths_lose_what_had_no_other_holder(large_lab: Lab) -> None:
    """Twelve of 24 die: what has a surviving holder is found at once, and the loss is within the bound of chance.

    The bound is the chance that all eight holders are among the dead: C(N-8, k-8) / C(N, k) of the records;
    three standard deviations are added to its mean.
    """
    before = holders(large_lab)
    survivors = strike(large_lab, 12, signal.SIGKILL)
    searched = search(large_lab, survivors)
    spared = {resource for resource, on in before.items() if on & set(survivors)}
    lost = RECORDS - len(searched.found)
    chance = math.comb(PEERS - COPIES, 12 - COPIES) / math.comb(PEERS, 12)
    print(f"12 deaths: {lost} of {RECORDS} lost, {RECORDS * chance:.2f} expected, p99 {searched.p99 * 1000:.0f} ms")
    people = len(before) - RECORDS
    assert len(searched.found) >= len(spared) - people
    assert lost <= RECORDS * chance + 3 * math.sqrt(RECORDS * chance * (1 - chance))
    assert searched.p99 <= 1.0
    assert call(large_lab)["ok"]
    wait_for_copies(large_lab, 60)

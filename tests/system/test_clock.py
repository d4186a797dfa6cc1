"""The wall clock of a lab jumps by an hour, forward and back: neither a timer nor a phone notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from p2psipd.control import ControlRefused, ControlUnreachable
from p2psipd.net.user_agent import UserAgent

from .conftest import end_lab, make_lab
from .waiting import spin

HOUR = 3600
#: Long enough for the timers of an idle link to come due several times.
CALM_SECONDS = 2.5


class SteppedLab:
    """A lab of three whose processes read the wall clock with an offset that can be changed while they run."""

    def __init__(self) -> None:
        self.lab = make_lab(3)
        self._offset = self.lab.directory / "offset"
        self.step(0)
        (library,) = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        self._environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def start(self) -> None:
        """Start the peers, and store the users' passwords."""
        for number in self.lab.peers:
            self.lab.start(number, environment=self._environment)
            self.lab.wait_joined([number], 30)
        self.lab.wait_acquainted(30)
        self.lab.provision()

    def step(self, seconds: int) -> None:
        """Set the offset of the wall clock."""
        self._offset.write_text(f"{seconds:+d}\n")

    def is_calm(self, seconds: float) -> bool:
        """Whether for so long every peer has all its links, and nobody is thought dead."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for state in self.lab.status():
                status = state.status
                if status is None or not status["joined"] or status["peers"] != 2 or status["links"] < 2:
                    return False
            time.sleep(0.25)
        return not any("lost" in self.lab.log_tail(number, 1000) for number in self.lab.peers)

    def certificate_seconds(self) -> float:
        """How long the certificate of a peer is good for, by its wall clock."""
        return float(self.lab.control(1).get("/status")["certificate_seconds"])

    def seconds_left(self, name: str) -> list[int]:
        """How much longer the bindings of a user last, as peer 2 finds them in the overlay."""
        found = self.lab.control(2).get("/get", name=self.lab.aor(name))
        return [value["seconds_left"] for value in found["values"]]


@pytest.fixture
def stepped() -> Iterator[SteppedLab]:
    """The lab, all peers joined, no offset yet."""
    stepped = SteppedLab()
    try:
        stepped.start()
        yield stepped
    finally:
        end_lab(stepped.lab)


@pytest.mark.foreign("faketime")
def test_the_clock_jumps(stepped: SteppedLab) -> None:
    """An hour forward breaks no link; an hour back leaves every timer going, so that a silent peer is noticed."""
    lab = stepped.lab
    certificate = stepped.certificate_seconds()
    up = lab.control(2).get("/status")["up_seconds"]
    began = time.monotonic()
    stepped.step(HOUR)
    assert stepped.is_calm(CALM_SECONDS)
    # The peers did see the jump: their certificates have an hour less to go.
    assert certificate - stepped.certificate_seconds() == pytest.approx(HOUR, abs=60)
    assert lab.control(2).get("/status")["up_seconds"] - up == pytest.approx(time.monotonic() - began, abs=1.0)
    stepped.step(0)
    assert stepped.is_calm(CALM_SECONDS)
    other = lab.control(2).get("/status")["node_id"]
    assert lab.control(1).get("/ping", node=other)["ms"] < 1000
    spin(text_across_jumps(stepped))
    third = lab.control(3).get("/status")["node_id"]
    lab.freeze(3)
    for number in (1, 2):
        with suppress(ControlRefused, ControlUnreachable):
            lab.control(number, timeout=0.5).get("/ping", node=third)
    lab.wait_acquainted(10)


async def text_across_jumps(stepped: SteppedLab) -> None:
    """Bob's registration lasts as long as it would have without the jumps, and can be made anew after each. After them
    carol registers for the first time, and alice at the peer that was bob's.
    """
    lab = stepped.lab
    alice, bob, carol, moved = phones = [
        UserAgent(reactor, lab.aor(name), lab.user(name).password, server=(lab.host(number), 5060))
        for name, number in (("alice", 1), ("bob", 3), ("carol", 3), ("alice", 3))
    ]
    try:
        granted = await alice.register()
        # The record outlives what the phone was told by half, so that not every refresh is written.
        stored = granted * 1.5 + 1
        for offset in (HOUR, 0):
            assert await bob.register() == granted
            stepped.step(offset)
            # Two seconds until the registrar looks at the clock, and some for a busy machine.
            for _ in range(100):
                left = stepped.seconds_left("bob")
                if left and stored - 60 < left[0] <= stored:
                    break
                await deferLater(reactor, 0.1)
            assert len(left) == 1 and stored - 60 < left[0] <= stored
            assert await alice.message(lab.aor("bob"), "hello") == 200
        assert await carol.register() == await moved.register() == granted
        await bob.unregister()
        assert await alice.message(lab.aor("bob"), "hello") == 480
    finally:
        for phone in phones:
            await phone.stop()

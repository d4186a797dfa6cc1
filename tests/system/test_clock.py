"""The wall clock of a lab jumps by an hour, forward and back: no timer notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import end_lab, make_lab

HOUR = 3600
#: Long enough for the timers of an idle link to come due several times.
CALM_SECONDS = 3.0


class SteppedLab:
    """A lab of three whose processes read the wall clock with an offset that can be changed while they run."""

    def __init__(self) -> None:
        self.lab = make_lab(3)
        self._offset = self.lab.directory / "offset"
        self.step(0)
        (library,) = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        for number in self.lab.peers:
            self.lab.start(number, environment=environment)
            self.lab.wait_joined([number], 30)
        self.lab.wait_acquainted(30)

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

    def clock_offset(self) -> float:
        """How far the clock of a peer is off, as another process of this machine sees it in the peer's log."""
        status = self.lab.control(1).get("/status")
        return float(status["certificate_seconds"])


@pytest.fixture
def stepped() -> Iterator[SteppedLab]:
    """The lab, all peers joined, no offset yet."""
    stepped = SteppedLab()
    yield stepped
    end_lab(stepped.lab)


@pytest.mark.foreign("faketime")
def test_the_clock_jumps(stepped: SteppedLab) -> None:
    """An hour forward breaks no link; an hour back leaves every timer going, so that a silent peer is noticed."""
    lab = stepped.lab
    certificate = stepped.clock_offset()
    up = lab.control(2).get("/status")["up_seconds"]
    began = time.monotonic()
    stepped.step(HOUR)
    assert stepped.is_calm(CALM_SECONDS)
    # The peers did see the jump: their certificates have an hour less to go.
    assert certificate - stepped.clock_offset() == pytest.approx(HOUR, abs=60)
    assert lab.control(2).get("/status")["up_seconds"] - up == pytest.approx(time.monotonic() - began, abs=1.0)
    stepped.step(0)
    assert stepped.is_calm(CALM_SECONDS)
    other = lab.control(2).get("/status")["node_id"]
    assert lab.control(1).get("/ping", node=other)["ms"] < 1000
    lab.freeze(3)
    lab.wait_acquainted(30)

"""A peer is killed while it takes records, again and again: what it had acknowledged it still has."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.lab import Lab

from .conftest import end_lab, make_lab
from .waiting import wait_until

KILLS = 20
#: What was acknowledged at least so long before the kill must be there (the group commit's time is in it).
SETTLED_SECONDS = 0.2
#: How long stores go on before each kill; a little longer each time, so that the kill meets every phase.
FIRST_SECONDS, STEP_SECONDS = 0.25, 0.01


@pytest.fixture
def lonely_lab() -> Iterator[Lab]:
    """A lab of one peer: nobody else can help it to its records."""
    lab = make_lab(1)
    try:
        lab.up()
        yield lab
    finally:
        end_lab(lab)


#: Known peers are committed within a second, unless a record takes them along sooner.
REMEMBERED_SECONDS = 1.2
#: The first, who founds the overlay and is a bootstrap node; the two others are nobody's.
FOUNDER, KILLED, NEIGHBOUR = 1, 4, 5


@pytest.fixture
def lab_with_hidden_peers() -> Iterator[Lab]:
    """Peers 4 and 5 of a lab have joined through peer 1; the document names none but peers 1 to 3."""
    lab = make_lab(5)
    try:
        for number in (FOUNDER, KILLED, NEIGHBOUR):
            lab.start(number)
            lab.wait_joined([number], 30)
        lab.wait_acquainted(30)
        yield lab
    finally:
        end_lab(lab)


class Writer:
    """The process that stores; its lines are read by a thread."""

    def __init__(self, lab: Lab) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("writer.py")), str(lab.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def go(self) -> None:
        """Begin to store."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line."""
        return self._lines.get(timeout=20)

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(10)


@pytest.fixture
def writer(lonely_lab: Lab) -> Iterator[Writer]:
    """The process that stores in the lonely lab."""
    writer = Writer(lonely_lab)
    yield writer
    writer.stop()


def test_acknowledged_records_survive_kills(lonely_lab: Lab, writer: Writer) -> None:
    """Killed 20 times during stores, a peer restarts each time with every record acknowledged 200 ms before."""
    acknowledged: dict[str, float] = {}
    node_id = lonely_lab.control(1).get("/status")["node_id"]
    for turn in range(KILLS):
        writer.go()
        lines = [writer.line()]
        time.sleep(FIRST_SECONDS + turn * STEP_SECONDS)
        killed_at = time.monotonic()
        lonely_lab.kill(1)
        while lines[-1] != "end":
            assert not lines[-1].startswith("error"), lines[-1]
            at, resource = lines[-1].split()
            acknowledged[resource] = float(at)
            lines.append(writer.line())
        lonely_lab.start(1)
        lonely_lab.wait_joined([1], 20)
        control = lonely_lab.control(1)
        assert control.get("/status")["node_id"] == node_id
        held = {row["resource"] for row in control.get("/records")}
        settled = {resource for resource, at in acknowledged.items() if at < killed_at - SETTLED_SECONDS}
        assert settled <= held, (turn, len(settled - held), len(settled))
        # What was too young may be gone; what has come back once must come back every time.
        acknowledged = {resource: at for resource, at in acknowledged.items() if resource in held}
    assert len(acknowledged) > 10 * KILLS


def test_killed_peer_knows_its_neighbours(lab_with_hidden_peers: Lab) -> None:
    """A killed peer comes back by itself to neighbours that no document names, when every bootstrap node is dead."""
    lab = lab_with_hidden_peers
    me, neighbour = (lab.control(number).get("/status")["node_id"] for number in (KILLED, NEIGHBOUR))
    time.sleep(REMEMBERED_SECONDS)
    lab.kill(FOUNDER)
    lab.kill(KILLED)
    lab.start(KILLED)
    lab.wait_joined([KILLED], 20)
    control = lab.control(KILLED)
    assert control.get("/status")["node_id"] == me
    wait_until(lambda: [row["node"] for row in control.get("/peers")] == [neighbour], "a link to the neighbour")

"""JSON lines: nobody waits for the disk, nothing is written twice, and files may be moved away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from p2psipd.store import json_lines
from p2psipd.store.json_lines import JsonLines


class Thread:
    """A thread that works when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Callable[[], None], Callable[[OSError | None], None]]] = []

    def __call__(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        self.work.append((work, done))

    def run(self) -> None:
        while self.work:
            work, done = self.work.pop(0)
            try:
                work()
            except OSError as error:
                done(error)
            else:
                done(None)


def test_lines_gather_while_one_batch_is_written(tmp_path: Path) -> None:
    """The caller never waits: of what comes while the disk is busy there is one further batch, in order."""
    thread = Thread()
    lines = JsonLines(str(tmp_path / "calls"), thread)
    for number in range(5):
        lines.append(json.dumps(number))
    assert len(thread.work) == 1
    assert not (tmp_path / "calls").exists()
    thread.run()
    assert (tmp_path / "calls").read_text() == "0\n1\n2\n3\n4\n"


def test_a_slow_disk_costs_lines_not_memory(tmp_path: Path, monkeypatch: object) -> None:
    """Beyond the backlog lines are lost and counted."""
    thread = Thread()
    lines = JsonLines(str(tmp_path / "calls"), thread)
    for _ in range(json_lines.BACKLOG + 3):
        lines.append("x")
    assert lines.lost == 2
    thread.run()
    assert len((tmp_path / "calls").read_text().splitlines()) == json_lines.BACKLOG + 1


def test_rotation_by_hand_and_by_size(tmp_path: Path) -> None:
    """After `reopen` a moved file is left alone; a file that is full becomes .1 by itself."""
    thread = Thread()
    lines = JsonLines(str(tmp_path / "calls"), thread, max_octets=6)
    lines.append("one")
    thread.run()
    (tmp_path / "calls").rename(tmp_path / "moved")
    lines.append("1")
    thread.run()
    assert (tmp_path / "moved").read_text() == "one\n1\n"
    lines.reopen()
    for text in ("two two", "three"):
        lines.append(text)
        thread.run()
    assert (tmp_path / "calls.1").read_text() == "two two\n"
    assert (tmp_path / "calls").read_text() == "three\n"
    lines.close()


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    """A fault is kept for the operator, its lines are counted as lost, and writing goes on when it is mended."""
    thread = Thread()
    lines = JsonLines(str(tmp_path / "nowhere" / "calls"), thread)
    lines.append("one")
    thread.run()
    assert "nowhere" in lines.fault and lines.lost == 1
    (tmp_path / "nowhere").mkdir()
    lines.append("two")
    thread.run()
    assert (tmp_path / "nowhere" / "calls").read_text() == "two\n" and not lines.fault


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    """What waits at the end is written, after the batch that is under way and never into its middle."""
    thread = Thread()
    lines = JsonLines(str(tmp_path / "calls"), thread)
    lines.append("one")
    lines.append("two")
    lines.close()
    assert not (tmp_path / "calls").exists()
    thread.run()
    assert (tmp_path / "calls").read_text() == "one\ntwo\n"
    idle = JsonLines(str(tmp_path / "idle"), thread)
    idle.close()
    assert not (tmp_path / "idle").exists()

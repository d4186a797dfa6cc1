"""Work in a child process: what comes back, and what becomes of faults."""

from __future__ import annotations

import os

import pytest

from p2psipd.config.apart import apart


def test_work_is_done_in_a_child() -> None:
    """The result comes back, and what the work changed does not."""
    changed: list[int] = []

    def work() -> int:
        changed.append(1)
        return os.getpid()

    assert apart(work) != os.getpid() and not changed


@pytest.mark.parametrize("fault", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_fault_is_met_here(fault: type[BaseException]) -> None:
    """Work that fails in the child, however it does, ends the child alone and is told by doing it here."""
    here = os.getpid()

    def work() -> int:
        raise fault(os.getpid())

    with pytest.raises(fault) as raised:
        apart(work)
    assert os.getpid() == here and raised.value.args == (here,)


def test_without_a_child_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not fork does the work itself."""

    def refused() -> int:
        raise PermissionError

    monkeypatch.setattr(os, "fork", refused)
    assert apart(os.getpid) == os.getpid()

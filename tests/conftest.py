"""What all tests share: foreign programs are asked for by a mark, and what was left out is said aloud."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from twisted.trial.unittest import SynchronousTestCase

# The suite draws the same examples on every run; `pytest --hypothesis-profile explore` draws new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("suite")

_left_out: dict[str, str] = {}
_ALL_WANTED = bool(os.environ.get("P2PSIPD_TEST_ALL"))


def missing_programs(marks: Iterator[pytest.Mark]) -> list[str]:
    """Names in the `foreign` marks that are not programs on the PATH, sorted."""
    wanted = {name for mark in marks for name in mark.args}
    return sorted(name for name in wanted if shutil.which(name) is None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a program that this machine does not have."""
    for item in items:
        missing = missing_programs(item.iter_markers("foreign"))
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember every test that was left out, and why."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _left_out[report.nodeid] = reason.removeprefix("Skipped: ")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where the whole suite is demanded, a test left out is a failure of the run."""
    if _ALL_WANTED and _left_out and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last lines say what was not run."""
    if not _left_out:
        return
    verdict = "NOT RUN, and the whole suite was demanded" if _ALL_WANTED else "not run"
    terminalreporter.write_sep("-", verdict, yellow=not _ALL_WANTED, red=_ALL_WANTED)
    for nodeid, reason in sorted(_left_out.items()):
        terminalreporter.write_line(f"{nodeid}: {reason}")


@pytest.fixture(autouse=True)
def temporary_paths(request: pytest.FixtureRequest) -> None:
    """What a trial test asks `mktemp` for lies with the other temporary files, not in the checkout."""
    if isinstance(request.instance, SynchronousTestCase):
        directory, numbers = request.getfixturevalue("tmp_path"), count()
        request.instance.mktemp = lambda: str(directory / str(next(numbers)))


@pytest.fixture(scope="session")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The name server of all tests, a tests.knot.Knot over the zones of tests/vectors/dns."""
    from tests.knot import ZONES, Knot

    server = Knot(tmp_path_factory.mktemp("knot"), sorted(ZONES.glob("*.zone")))
    yield server
    server.stop()

"""One lab for all tests that need real processes: it is started once, and what one test breaks it mends itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.lab import Lab, free_network

LAB_PEERS = 8


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is a test of real processes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)


def make_lab(peers: int, *, users: tuple[str, ...] = ("alice", "bob", "carol"), log_level: str = "info") -> Lab:
    """A new lab in a short temporary directory, on a network that nobody uses; started by its caller."""
    directory = tempfile.mkdtemp(prefix="p2psip-test-")
    return Lab.create(directory, peers, users=users, network=free_network(), log_level=log_level)


def end_lab(lab: Lab) -> None:
    """Kill what is left of a lab, and clear its directory away."""
    lab.kill_all()
    shutil.rmtree(lab.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[Lab]:
    """Eight peers of lab.example with the users alice, bob and carol provisioned. Nobody may kill its peers."""
    lab = make_lab(LAB_PEERS)
    try:
        lab.up()
        lab.provision()
        yield lab
    finally:
        end_lab(lab)


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """The shared lab, with all of its peers joined."""
    shared_lab.wait_joined(shared_lab.peers, 30)
    return shared_lab

"""The shipped configuration file: it starts as it stands after the two commands that its header names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.control import Control
from p2psipd.lab import Lab, free_network
from p2psipd.lab_files import LabFiles

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name that holds nothing but a copy of the example, as peer 1 of a lab."""
    root = Path(tempfile.mkdtemp(prefix="p2psip-test-"))
    (root / "peer1").mkdir()
    shutil.copy(ROOT / "etc" / "p2psipd.toml", root / "peer1")
    yield root / "peer1"
    shutil.rmtree(root)


def test_example_starts(directory: Path) -> None:
    """The header's commands make what the file names, `check` finds no fault, and the node founds its overlay."""
    file = directory / "p2psipd.toml"
    network = free_network()
    # Its addresses may be taken on this machine; nothing else in it is changed.
    file.write_text(file.read_text().replace("127.0.0.1:", f"{network}.1:"))
    header = file.read_text().split("\n\n[overlay]")[0]
    commands = re.findall(r"^#   p2psip ((?:overlay|ca) .*)$", header, re.MULTILINE)
    assert len(commands) == 2
    for command in [*commands, "check p2psipd.toml"]:
        ran = subprocess.run(
            [sys.executable, "-m", "p2psipd.cli.main", *command.split()],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("ok: overlay.example, roles peer sip, node ")
    lab = Lab(directory.parent, LabFiles(directory.parent, 1, network, "overlay.example", ()))
    try:
        lab.up(20)
        assert Control(directory / "control.sock").get("/status")["overlay"] == "overlay.example"
    finally:
        lab.kill_all()

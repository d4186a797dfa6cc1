"""The lab as a user has it: made, looked into, harmed and mended by the verbs of p2psip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from p2psipd.lab import Lab

P2PSIP = [sys.executable, "-m", "p2psipd.cli.main"]


def p2psip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for it."""
    return subprocess.run([*P2PSIP, *arguments], capture_output=True, text=True, timeout=60)


def answer(lab: Lab, number: int, *arguments: str) -> Any:
    """The JSON that a verb prints about a peer of the lab."""
    ran = p2psip("-n", str(lab.peer_directory(number)), *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_every_peer_has_joined(lab: Lab) -> None:
    """`lab status` tells of every peer that it has joined, each with a Node-ID of its own."""
    ran = p2psip("lab", "status", "--dir", str(lab.directory), "--json")
    assert ran.returncode == 0, ran.stdout
    states = json.loads(ran.stdout)
    assert [state["state"] for state in states] == ["joined"] * len(lab.peers)
    assert len({state["status"]["node_id"] for state in states}) == len(lab.peers)


def test_status_and_peers(lab: Lab) -> None:
    """A peer tells who it is and whom it knows; in a small overlay that is everybody."""
    status = answer(lab, 2, "status")
    assert status["joined"] is True
    assert status["overlay"] == lab.overlay_name
    assert p2psip("-n", str(lab.peer_directory(2)), "status").stdout.startswith("peer ")
    listed = p2psip("-n", str(lab.peer_directory(2)), "peers")
    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) >= len(lab.peers) - 1


def test_ping(lab: Lab) -> None:
    """A node answers a ping through the overlay; a Node-ID that nobody has does not."""
    other = answer(lab, 5, "status")["node_id"]
    assert answer(lab, 2, "ping", other)["node"] == other
    nobody = p2psip("-n", str(lab.peer_directory(2)), "ping", "00" * 15 + "01")
    assert nobody.returncode == 1


def test_a_user_can_be_looked_up(lab: Lab) -> None:
    """Nobody is registered under a name that was never used: `get` says so with exit code 1."""
    ran = p2psip("-n", str(lab.peer_directory(1)), "get", f"sip:nobody@{lab.overlay_name}")
    assert ran.returncode == 1, ran.stdout


def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    """A control socket where nobody answers is exit code 69 and one line that names it."""
    ran = p2psip("-n", str(tmp_path / "control.sock"), "status")
    assert ran.returncode == 69
    assert "control.sock" in ran.stderr

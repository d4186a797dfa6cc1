"""The call of the demo, on the shared lab."""

from __future__ import annotations

import json
import subprocess
import sys

from p2psipd.lab import Lab


def test_alice_calls_bob(lab: Lab) -> None:
    """Two phones at two peers call each other, each hears the other's tone, and the record's holder is named."""
    command = [sys.executable, "-m", "p2psipd.cli.main", "demo", "--lab", str(lab.directory), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["ok"] is True
    assert report["heard"]["alice"]["tone_hz"] == 880
    assert report["record"]["held_by_peer"] in lab.peers
    texts = [arrow["text"] for arrow in report["ladder"]]
    assert texts[0] == "INVITE"
    assert "BYE" in texts

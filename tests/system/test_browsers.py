"""Phones of other projects in a headless browser: SIP over WebSocket (RFC 7118) at two peers of the lab, one over TLS,
the other without, so that Wireshark can read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from p2psipd.lab import Lab
from p2psipd.lab_files import WS_PORT, WSS_PORT

from .capture import WARNING, capturing

BROWSERS = Path(__file__).parent / "browsers"
PAGE_HOST = "127.1.252.13"


@pytest.fixture(scope="module")
def phones() -> Path:
    """The directory of the phones, with the npm packages of its lock file installed."""
    lock, installed = BROWSERS / "package-lock.json", BROWSERS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=BROWSERS, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        installed.touch()
    return BROWSERS


def key_hash(certificate: Path) -> str:
    """The base64 SHA-256 of a certificate's public key, by which Chromium is told to trust it."""
    key = load_pem_x509_certificate(certificate.read_bytes()).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(octets).digest()).decode("ascii")


def sip_in(capture: Path, more: str = "") -> list[str]:
    """What Wireshark finds of SIP in a capture: method or status of each message that fits the filter."""
    command = ["tshark", "-n", "-r", str(capture), "-Y", f"sip{more}", "-T", "fields", "-e", "sip.Method"]
    done = subprocess.run([*command, "-e", "sip.Status-Code"], capture_output=True, text=True, timeout=60, check=True)
    return ["".join(line.split("\t")) for line in done.stdout.splitlines()]


@pytest.mark.foreign("node", "npm", "chromium-headless-shell", "tshark", "tcpdump")
def test_jssip_and_sip_js_through_two_peers(lab: Lab, phones: Path, tmp_path: Path) -> None:
    """JsSIP at peer 2 and SIP.js at peer 7 register, send each other messages, call each other in turn, and leave;
    Wireshark finds no fault in what it reads of it.
    """

    def phone(library: str, name: str, server: str) -> dict[str, str]:
        return {"library": library, "server": server, "uri": lab.aor(name), "password": lab.user(name).password}

    settings: dict[str, Any] = {
        "host": PAGE_HOST,
        "spki": key_hash(Path(lab.directory) / "sip.pem"),
        "alice": phone("jssip", "alice", f"wss://{lab.host(2)}:{WSS_PORT}"),
        "bob": phone("sip.js", "bob", f"ws://{lab.host(7)}:{WS_PORT}"),
    }
    chromium = shutil.which("chromium-headless-shell") or ""
    command = ["node", str(phones / "drive.mjs"), chromium, str(tmp_path / "profile"), json.dumps(settings)]
    capture = tmp_path / "ws.pcap"
    with capturing(capture, lab.files.network, WS_PORT):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "registered": True,
        "message to bob": ["bob says grüß", "200"],
        "message to alice": ["alice says grüß", "200"],
        "call to bob": "ended",
        "call to alice": "ended",
        "unregistered": True,
    }
    read = sip_in(capture)
    assert {"REGISTER", "MESSAGE", "INVITE", "ACK", "BYE", "100", "180", "200", "401", "407"} <= set(read), read
    assert not sip_in(capture, f" && (_ws.malformed || _ws.expert.severity >= {WARNING})")

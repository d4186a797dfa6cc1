"""The `ua` verbs: how a server is written, and a call between two processes."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from p2psipd.cli.ua import parse_server

P2PSIP = [sys.executable, "-m", "p2psipd.cli.main", "ua"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.1.3:5070", ("127.0.1.3", 5070, "udp")),
        ("127.0.1.3", ("127.0.1.3", 5060, "udp")),
        ("sip.example:5062;tcp", ("sip.example", 5062, "tcp")),
        ("sip.example;transport=TCP", ("sip.example", 5060, "tcp")),
        ("[2001:db8::1]:5062", ("2001:db8::1", 5062, "udp")),
        ("[2001:db8::1]", ("2001:db8::1", 5060, "udp")),
    ],
)
def test_servers(text: str, expected: tuple[str, int, str]) -> None:
    """Port 5060 and UDP are understood where nothing else is said."""
    assert parse_server(text) == expected


@pytest.mark.parametrize("text", ["", ":5060", "host:", "host:x", "host:0", "host:70000", "host;sctp", "host;tls"])
def test_no_servers(text: str) -> None:
    """What is no host:port with udp or tcp is a usage error."""
    with pytest.raises(click.BadParameter):
        parse_server(text)


@pytest.mark.system
def test_a_call_between_two_processes() -> None:
    """`ua call` and `ua answer` hear each other's tone, and both say so in JSON with exit code 0."""
    bob = ["--user", "bob@127.0.9.31", "--bind", "127.0.9.31", "--port", "25080", "--tone", "880", "--json"]
    alice = ["--user", "alice@127.0.9.32", "--bind", "127.0.9.32", "--tone", "440", "--seconds", "0.5", "--json"]
    with subprocess.Popen(
        [*P2PSIP, "answer", *bob, "--wait", "20"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as answering:
        try:
            assert answering.stderr is not None
            assert "answers at" in answering.stderr.readline()
            calling = subprocess.run(
                [*P2PSIP, "call", "bob@127.0.9.31:25080", *alice], capture_output=True, text=True, timeout=30
            )
            heard_by_bob = json.loads(answering.communicate(timeout=30)[0])
        finally:
            answering.kill()
    assert (calling.returncode, answering.returncode) == (0, 0)
    heard_by_alice = json.loads(calling.stdout)
    assert heard_by_alice["heard"]["power"]["880"] > 0.9
    assert heard_by_bob["heard"]["power"]["440"] > 0.9


def test_a_call_that_fails_says_why() -> None:
    """Where nobody listens the exit code is 1 and the reason on standard error."""
    failed = subprocess.run(
        [*P2PSIP, "call", "bob@127.0.9.31:25081", "--user", "a@b", "--transport", "tcp"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert failed.returncode == 1
    assert "503" in failed.stderr

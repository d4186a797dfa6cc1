"""The `ua` verbs: how a server is written, and a call between two processes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import wave
from array import array
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from p2psipd.cli.ua import parse_server, target_uri, ua

P2PSIP = [sys.executable, "-m", "p2psipd.cli.main", "ua"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.1.3:5070", ("127.0.1.3", 5070, "udp")),
        ("127.0.1.3", ("127.0.1.3", 5060, "udp")),
        ("sip.example:5062;tcp", ("sip.example", 5062, "tcp")),
        ("sip.example;transport=TCP", ("sip.example", 5060, "tcp")),
        ("sip.example;tls", ("sip.example", 5061, "tls")),
        ("[2001:db8::1]:5062", ("2001:db8::1", 5062, "udp")),
        ("[2001:db8::1]", ("2001:db8::1", 5060, "udp")),
    ],
)
def test_servers(text: str, expected: tuple[str, int, str]) -> None:
    """Port 5060 (over TLS 5061) and UDP are understood where nothing else is said."""
    assert parse_server(text) == expected


@pytest.mark.parametrize("text", ["", ":5060", "host:", "host:x", "host:0", "host:70000", "host;sctp", "host;ws"])
def test_no_servers(text: str) -> None:
    """What is no host:port with udp, tcp or tls is a usage error."""
    with pytest.raises(click.BadParameter):
        parse_server(text)


def two_phones(answer: list[str], caller: list[str], host: int = 31) -> tuple[Any, Any]:
    """`ua answer` in one process and another verb in a second one, which gets bob's address after its name; the JSON of
    both, whose exit codes are 0."""
    bob = ["--user", f"bob@127.1.60.{host}", "--bind", f"127.1.60.{host}", "--port", "60080", "--json", "--wait", "20"]
    alice = ["--user", "alice@127.1.60.32", "--bind", "127.1.60.32", "--json"]
    verb, *rest = caller
    with subprocess.Popen(
        [*P2PSIP, "answer", *bob, *answer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as answering:
        try:
            assert answering.stderr is not None
            assert "answers at" in answering.stderr.readline()
            calling = subprocess.run(
                [*P2PSIP, verb, f"bob@127.1.60.{host}:60080", *rest, *alice], capture_output=True, text=True, timeout=30
            )
            output, errors = answering.communicate(timeout=30)
        finally:
            answering.kill()
    assert (calling.returncode, answering.returncode) == (0, 0), calling.stderr + errors
    return json.loads(calling.stdout), json.loads(output)


@pytest.mark.system
def test_a_call_between_two_processes(tmp_path: Path) -> None:
    """`ua call` plays a file and sends keys, `ua answer` sends a tone and records; both say in JSON what they heard."""
    question, recording = tmp_path / "question.wav", tmp_path / "recording.wav"
    with wave.open(str(question), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        samples = (round(8000 * math.sin(2 * math.pi * 440 * at / 16000)) for at in range(32000))
        file.writeframes(array("h", samples).tobytes())
    heard_by_alice, heard_by_bob = two_phones(
        ["--tone", "880", "--record", str(recording)],
        ["call", "--play", str(question), "--seconds", "1.2", "--dtmf", "7#", "--hold", "0.6-0.8"],
    )
    assert heard_by_alice["heard"]["power"]["880"] > 0.6
    assert heard_by_bob["heard"]["power"]["440"] > 0.4 > heard_by_bob["heard"]["power"]["880"]
    assert heard_by_bob["digits"] == "7#"
    with wave.open(str(recording)) as file:
        assert file.getnframes() == round(8000 * heard_by_bob["heard"]["seconds"]) > 0


@pytest.mark.system
def test_a_text_between_two_processes() -> None:
    """`ua message` sends a text, and `ua answer --messages 1` prints it and ends."""
    sent, came = two_phones(["--messages", "1"], ["message", "grüß dich"], 33)
    assert sent["status"] == 200
    assert came["texts"] == [{"from": "sip:alice@127.1.60.32", "text": "grüß dich"}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["register", "--user", "a@b"], "--server"),
        (["register", "--user", "a", "--server", "127.0.0.1"], "name@domain"),
        (["register", "--user", "a@b", "--server", "127.0.0.1", "--server", "127.0.0.2;tcp"], "same transport"),
        (["call", "b@c", "--user", "a@b", "--hold", "2-1"], "ends after it began"),
        (["call", "b@c", "--user", "a@b", "--play", "/nowhere.wav"], "No such file"),
        (["answer", "--user", "a@b", "--reject", "200"], "300 to 699"),
        (["answer", "--user", "a@b", "--wait", "-1"], "--wait"),
        (["call", "b@c", "--user", "a@b", "--dtmf", "1x"], "0123456789*#ABCD"),
        (["call", "b@c", "--user", "a@b", "--record", "/nowhere/x.wav"], "/nowhere/x.wav"),
        (["call", "b@c", "--user", "a@b", "--tone", "4000"], "0<x<4000"),
        (["call", "b@c", "--user", "a@b", "--ring", "-1"], "--ring"),
        (["call", "b@c", "--user", "a@b", "--port", "70000"], "65535"),
    ],
)
def test_usage(arguments: list[str], expected: str) -> None:
    """What can't be done is refused with exit code 2 and a line that says what was expected."""
    result = CliRunner().invoke(ua, arguments)
    assert result.exit_code == 2
    assert expected in result.output


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("911", "sip:911@a.test"),
        ("*21#", "sip:*21%23@a.test"),
        ("echo@b.test", "sip:echo@b.test"),
        ("bob@127.0.0.1:5070", "sip:bob@127.0.0.1:5070"),
        ("tel:+1212", "tel:+1212"),
    ],
)
def test_what_is_dialled_is_meant_in_the_own_domain(text: str, uri: str) -> None:
    """Digits alone are a number of the phone's domain; an address may go without its scheme."""
    assert target_uri(text, "sip:alice@a.test") == uri


def test_a_call_that_fails_says_why() -> None:
    """Where nobody listens the exit code is 1 and the reason on standard error."""
    failed = subprocess.run(
        [*P2PSIP, "call", "bob@127.1.9.31:25081", "--user", "a@b", "--transport", "tcp"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert failed.returncode == 1
    assert "503" in failed.stderr


def test_a_phone_that_is_interrupted() -> None:
    """A signal ends what is under way: exit code 1 and one word, no trace of Python."""
    with subprocess.Popen(
        [*P2PSIP, "answer", "--user", "bob@127.1.60.33", "--bind", "127.1.60.33"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as answering:
        assert answering.stderr is not None
        assert "answers at" in answering.stderr.readline()
        answering.send_signal(signal.SIGINT)
        output, errors = answering.communicate(timeout=20)
    assert (answering.returncode, output, errors) == (1, "", "interrupted\n")

"""The verbs that ask a node, against a control socket with canned answers."""

from __future__ import annotations

import http.server
import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner, Result

from p2psipd.cli.main import main

NODE = "4d1c68" + "0" * 26
CALL = {
    "call_id": "a84b4c76",
    "from": "sip:alice@o",
    "to": "sip:bob@o",
    "came_from": "phone UDP 192.0.2.7:5060",
    "went_to": f"node {NODE}",
    "identity": "digest",
    "started_at": 10.0,
    "seconds": None,
    "cause": "486",
    "ended_by": "",
}

ANSWERS: dict[str, Any] = {
    "/status": {
        "node_id": NODE,
        "overlay": "overlay.example",
        "joined": True,
        "up_seconds": 273_600.0,
        "roles": ["peer", "sip"],
        "peers": 23,
        "links": 12,
        "records": 412,
        "registrations": 2,
        "calls": None,
        "problems": ["the certificate expires in 2.0 days: renew it and reload"],
    },
    "/peers": [
        {"node": NODE, "address": "198.51.100.12:6084", "direction": "out", "rtt_ms": 12.25},
        {"node": "9a" * 16, "address": "198.51.100.13:6084", "direction": "in", "rtt_ms": None},
    ],
    "/ping": {"node": NODE, "hops": 2, "ms": 31.0, "clock_offset_seconds": 0.001},
    "/get": {
        "name": "sip:bob@overlay.example",
        "found": True,
        "verified": True,
        "answered_by": NODE,
        "hops": 1,
        "ms": 1.5,
        "values": [{"kind": "PROXY-REGISTRATION", "value": "sip:bob@192.0.2.7", "signer": "abcd" * 8 + "@registrar.o"}],
    },
    "/trace": {
        "answered_by": NODE,
        "hop_count": 1,
        "ms": 2.0,
        "hops": [{"node": NODE, "distance_bits": 118, "ms": 1.9, "responsible": True}],
    },
    "/records": [],
    "/registrations": [{"aor": "sip:bob@overlay.example", "contact": "sip:bob@192.0.2.7"}],
    "/peering/explain": [
        {"step": "target", "result": "peer", "verdict": "ok"},
        {"step": "answer", "result": "502 No Secure Route: b.test publishes no SIPS+D2T", "verdict": "no"},
    ],
    "/peering/refusals": {
        "admitted": 12,
        "counts": {"refused_from": 2},
        "last": [
            {
                "at": 10.0,
                "method": "INVITE",
                "from": "sip:eve@c.test",
                "to": "sip:bob@o",
                "status": 403,
                "reason": "Unsupported Peer",
                "step": "from",
                "domain": "c.test",
                "authority": "CN=Test CA",
                "why": "refused",
            },
            {
                "at": 11.0,
                "method": "TLS",
                "from": "192.0.2.9",
                "to": "",
                "status": 0,
                "reason": "",
                "step": "date",
                "domain": "d.test",
                "authority": "",
                "why": "expired",
            },
        ],
    },
    "/calls": [CALL],
    "/calls/ladder": {
        "call": CALL,
        "messages": [
            {"at": 10.0, "source": "UDP 192.0.2.7:5060", "destination": "here", "line": "INVITE sip:bob@o SIP/2.0"},
            {"at": 10.001, "source": "here", "destination": f"node {NODE}", "line": "INVITE sip:bob@o SIP/2.0"},
            {"at": 10.5, "source": f"node {NODE}", "destination": "here", "line": "SIP/2.0 486 Busy Here"},
        ],
    },
}


class FakeNode(http.server.BaseHTTPRequestHandler):
    """Answers from the table; nothing is held under the name of nobody, and node 00 does not answer."""

    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        """One request."""
        split = urlsplit(self.path)
        parameters = dict(parse_qsl(split.query))
        self.asked.append((split.path, parameters))
        status, answer = 200, ANSWERS.get(split.path)
        if "nobody" in parameters.get("name", ""):
            answer = {"found": False, "values": []}
        elif parameters.get("node", "").startswith("00"):
            status, answer = 504, {"error": "nobody answered"}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        """A Unix socket has no address."""
        return "-"


@pytest.fixture
def node() -> Iterator[Path]:
    """The directory of a fake node, in a place with a short name."""
    with tempfile.TemporaryDirectory(prefix="p2psip-") as directory:
        server = socketserver.ThreadingUnixStreamServer(f"{directory}/control.sock", FakeNode)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        FakeNode.asked.clear()
        yield Path(directory)
        server.shutdown()
        thread.join()
        server.server_close()


def ask(node: Path, *words: str) -> Result:
    """Run a verb against the fake node."""
    return CliRunner().invoke(main, ["-n", str(node), *words])


def test_status_has_what_matters_in_a_line(node: Path) -> None:
    """`status` is one line, then a line for each problem; what the node does not know is left out."""
    ran = ask(node, "status")
    assert ran.exit_code == 0
    first, problem = ran.output.splitlines()
    assert first == (
        "peer 4d1c6800… overlay.example  joined  up 3d4h  roles peer,sip  23 peers  12 links  412 records  "
        "2 phones  health: look below"
    )
    assert "certificate expires" in problem


def test_peers_and_empty_lists(node: Path) -> None:
    """Lists are tables with a heading, unknown values a dash; an empty list is one word."""
    lines = ask(node, "peers").output.splitlines()
    assert lines[0].split() == ["node", "address", "direction", "rtt_ms"]
    assert lines[2].split() == ["9a9a9a9a…", "198.51.100.13:6084", "in", "-"]
    assert ask(node, "records").output == "none\n"


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["status"], "/status"),
        (["peers"], "/peers"),
        (["ping", NODE], "/ping"),
        (["get", "sip:bob@overlay.example"], "/get"),
        (["trace", "sip:bob@overlay.example"], "/trace"),
        (["records"], "/records"),
        (["registrations"], "/registrations"),
        (["peering", "refusals"], "/peering/refusals"),
        (["calls"], "/calls"),
        (["calls", "show", "a84b4c76"], "/calls/ladder"),
    ],
)
def test_json_is_the_answer_itself(node: Path, words: list[str], path: str) -> None:
    """With --json every verb prints the node's own answer, and without it something for people."""
    ran = ask(node, *words, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output) == ANSWERS[path]
    assert FakeNode.asked[-1][0] == path
    assert ask(node, *words).output.strip()


def test_get_and_trace_show_who_answered(node: Path) -> None:
    """`get` shows the record and who answered; `trace` shows each hop."""
    got = ask(node, "get", "sip:bob@overlay.example").output
    assert "abcdabcd…@registrar.o" in got
    assert "sip:bob@192.0.2.7" in got
    assert NODE in got
    assert "118" in ask(node, "trace", "sip:bob@overlay.example").output


def test_the_ladder_of_a_call(node: Path) -> None:
    """`calls show` draws the caller, this node and whoever it turned to, an arrow for each message."""
    shown = ask(node, "calls", "show", "a84b").output.splitlines()
    head = next(at for at, line in enumerate(shown) if "here" in line)
    assert [line.split() for line in shown[head:]] == [
        ["UDP", "192.0.2.7:5060", "here", "node", f"{NODE[:8]}…"],
        ["0.0", "|--------", "INVITE", "-------->|", "|"],
        ["1.0", "|", "|--------", "INVITE", "-------->|"],
        ["500.0", "|", "|<-----", "486", "Busy", "Here", "----|"],
    ]
    listed = ask(node, "calls").output
    assert "486" in listed and "sip:bob@o" in listed and f"node {NODE[:8]}…" in listed


def test_peering_explain_ends_with_what_the_call_would_get(node: Path) -> None:
    """Each step is a line with its verdict; a way that leads nowhere is exit code 1."""
    ran = ask(node, "peering", "explain", "sip:x@b.test", "--from", "sip:alice@o")
    assert ran.exit_code == 1
    assert ran.output.splitlines()[-1].split(maxsplit=1) == [
        "no",
        "answer: 502 No Secure Route: b.test publishes no SIPS+D2T",
    ]
    assert FakeNode.asked[-1] == ("/peering/explain", {"target": "sip:x@b.test", "from": "sip:alice@o"})
    steps = json.loads(ask(node, "peering", "explain", "+1212", "--from", "sip:alice@o", "--json").stdout)
    assert steps == ANSWERS["/peering/explain"]


def test_peering_refusals_name_rule_domain_and_authority(node: Path) -> None:
    """Counts by rule, then each refusal with the step, domain and authority that made it."""
    shown = ask(node, "peering", "refusals").output
    assert "12 admitted" in shown and "2  refused_from" in shown
    assert "TLS from 192.0.2.9: handshake refused" in shown
    assert "403 Unsupported Peer" in shown and "step from, domain c.test, authority CN=Test CA" in shown


def test_negative_answers(node: Path) -> None:
    """Nothing found and nobody there are exit code 1, in words and in JSON."""
    assert ask(node, "get", "sip:nobody@overlay.example").exit_code == 1
    silent = ask(node, "ping", "00" * 16)
    assert silent.exit_code == 1
    assert "nobody answered" in silent.output
    assert json.loads(ask(node, "ping", "00" * 16, "--json").stdout) == {"error": "nobody answered"}


def test_node_that_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a daemon the exit code is 69, wherever the socket was said to be."""
    assert ask(tmp_path, "status").exit_code == 69
    assert "no node answers" in json.loads(ask(tmp_path, "status", "--json").stdout)["error"]
    monkeypatch.setenv("P2PSIPD_CONTROL", str(tmp_path / "else.sock"))
    ran = CliRunner().invoke(main, ["status"])
    assert ran.exit_code == 69
    assert "else.sock" in ran.output


@pytest.mark.parametrize("words", [("ping", "zz"), ("ping", "0" * 33), ("get", ""), ("trace", "")])
def test_what_cannot_be_asked_is_a_usage_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    """What is no Node-ID and no name is exit code 2, whether a node is there or not."""
    assert ask(tmp_path, *words).exit_code == 2


def test_check_lists_all_faults(tmp_path: Path) -> None:
    """A configuration file at fault is exit code 78 with file, line and key of every fault; so in JSON."""
    file = tmp_path / "peer.toml"
    file.write_text('[overlay]\ndocument = "overlay.xml"\n[peer]\nlisen = "127.0.0.1:1"\n')
    ran = CliRunner().invoke(main, ["check", str(file)])
    assert ran.exit_code == 78
    assert f"{file}:4: peer.lisen" in ran.output
    assert len(ran.output.splitlines()) >= 3
    answer = json.loads(CliRunner().invoke(main, ["check", str(file), "--json"]).stdout)
    assert answer["ok"] is False
    assert {"file", "line", "key", "message"} <= answer["faults"][0].keys()
    assert CliRunner().invoke(main, ["check", str(tmp_path / "none.toml")]).exit_code == 78

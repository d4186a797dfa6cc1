"""The echo user, call records and our own phone at the peers of a lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2psipd.lab import Lab

from .phones import Baresip, outcome, ua
from .waiting import wait_until

PHONE = "127.1.253.11"
NOT_ECHO = 5
"""A peer without the role: there the user is found through the overlay."""


def the_record(lab: Lab, number: int, caller: str) -> dict[str, Any]:
    """The last line that a peer wrote of a call to the echo user; it is on disk soon after the BYE."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        file = lab.peer_directory(number) / "calls.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        found[:] = [each for each in records if each["from"] == caller and "echo@" in each["to"]]
        return bool(found)

    wait_until(written, f"a record of a call from {caller} at peer {number}")
    return found[-1]


@pytest.mark.foreign("baresip")
def test_baresip_hears_itself(lab: Lab, tmp_path: Path) -> None:
    """baresip at a peer that does not offer it calls echo@ like any user, and hears its own tone. Both nodes have a
    record of the call: who, where, how long, who hung up; and the ladder of it.
    """
    alice = lab.user("alice")
    node = f"{lab.host(NOT_ECHO)}:5060"
    with Baresip(tmp_path, "alice", alice.password, lab.overlay_name, PHONE, node, tone=440) as phone:
        phone.connect()
        phone.wait_registered()
        phone.command("dial", lab.aor("echo"))
        phone.wait_for("CALL_ESTABLISHED")
        phone.hold(1.5)
        phone.command("hangup")
        phone.wait_for("CALL_CLOSED")
        heard = phone.heard(440, 880)
    assert heard[440] > 0.8 and heard[880] < 0.05, heard
    record = the_record(lab, NOT_ECHO, lab.aor("alice"))
    assert (record["identity"], record["user"]) == ("digest", f"alice@{lab.overlay_name}")
    assert (record["cause"], record["ended_by"]) == ("BYE", "caller")
    assert record["came_from"].startswith(f"phone UDP {PHONE}:")
    kind, _, far = record["went_to"].partition(" ")
    assert kind == "node" and 1 < record["seconds"] < 5
    (echo_at,) = [n for n in (1, 2) if lab.control(n).get("/status")["node_id"] == far]
    there = the_record(lab, echo_at, lab.aor("alice"))
    assert (there["call_id"], there["went_to"]) == (record["call_id"], "service")
    assert there["came_from"] == f"node {record['node']}"
    shown = lab.control(NOT_ECHO).get("/calls/ladder", call_id=record["call_id"][:10])
    assert shown["call"] == record
    methods = [step["line"].split()[0] for step in shown["messages"] if not step["line"].startswith("SIP/")]
    assert methods.count("INVITE") == 3 and methods.count("BYE") == 2, methods


def test_our_phone_over_tls(lab: Lab) -> None:
    """`p2psip ua call` over TLS checks the node's certificate against the domain, sends keys, and hears both come back;
    with the wrong authorities, or for another name, it does not call at all."""
    trust = ["--ca", str(lab.directory / "sip.pem"), "--seconds", "1.2"]
    server = f"{lab.host(NOT_ECHO)};tls"
    options = ["--tone", "440", "--dtmf", "5#", *trust]
    heard = outcome(ua(lab, "call", "alice", NOT_ECHO, lab.aor("echo"), *options, server=server))
    assert heard["heard"]["power"]["440"] > 0.7 and heard["digits"] == "5#", heard
    strange = [
        ua(lab, "call", "alice", NOT_ECHO, lab.aor("echo"), *trust, "--server-name", "o.example", server=server),
        ua(lab, "call", "alice", NOT_ECHO, lab.aor("echo"), server=server),
    ]
    assert "o.example" in outcome(strange[0], fails=True)["error"]
    assert "refused" in outcome(strange[1], fails=True)["error"]


def test_our_phone_at_two_peers(lab: Lab) -> None:
    """With two servers the phone has a registration of each, of one instance (RFC 5626), and is called once."""
    servers = ["--server", f"{lab.host(4)};tcp"]
    taking = ua(lab, "answer", "bob", 3, *servers, "--tone", "880", "--wait", "20", server=f"{lab.host(3)};tcp")
    rows: list[dict[str, Any]] = []

    def both() -> bool:
        answers = [lab.control(number).get("/registrations") for number in (3, 4)]
        rows[:] = [row for answer in answers for row in answer if row["aor"] == lab.aor("bob")]
        return len(rows) == 2

    wait_until(both, "bob's registrations")
    assert sorted(row["reg_id"] for row in rows) == [1, 2], rows
    assert len({row["instance"] for row in rows}) == 1 and rows[0]["instance"]
    calling = outcome(ua(lab, "call", "alice", NOT_ECHO, lab.aor("bob"), "--tone", "440", "--seconds", "1"))
    taken = outcome(taking)
    assert calling["heard"]["power"]["880"] > 0.8 and taken["heard"]["power"]["440"] > 0.8

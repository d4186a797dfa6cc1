"""Three overlays: a1.test sends and receives through a2.test; b.test peers with a2.test alone. And a policy reload."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2psipd.peering_lab import PEERING_PORT, Domain, PeeringLab
from p2psipd.proto.identity.certificate import generate_private_key

from .phones import outcome, ua
from .waiting import wait_until

A1, A2, B = range(3)
FEDERATION = '\n[[federation]]\ndomain = "a1.test"\nthrough = ["a2.test"]\n'


@pytest.fixture(scope="module")
def world() -> Iterator[PeeringLab]:
    """The last peer of each overlay is its edge; the DNS leads calls for a1.test to the edge of a2.test."""
    directory = Path(tempfile.mkdtemp(prefix="p2psip-federation-"))
    lab = PeeringLab.create(
        directory,
        ("a1.test", "a2.test", "b.test"),
        peers=2,
        users=(("alice",), ("anna",), ("bob",)),
        numbers=(("+12125551212",), (), ("+442071838750",)),
    )
    try:
        federate(lab)
        lab.up()
        yield lab
    finally:
        lab.end()
        shutil.rmtree(directory, ignore_errors=True)


def policy(domain: Domain) -> Path:
    """The policy file of the edge."""
    return domain.lab.peer_directory(domain.edges[0]) / "peering.toml"


def federate(lab: PeeringLab) -> None:
    """Entries on all sides; b.test accepts a2.test alone, whose certificate is also a1.test's."""
    one, two, other = lab.domains
    inside = f'servers = "sip:{one.lab.host(one.edges[0])}:{PEERING_PORT}"\n'
    for domain, more in ((one, ""), (two, inside), (other, "")):
        text = policy(domain).read_text() + FEDERATION + more
        if domain is other:
            text = text.replace('domains = ["a1.test", "a2.test"]', 'domains = ["a2.test"]')
        if domain is two:
            text = text.replace('domains = ["a2.test"]', 'domains = ["a2.test", "a1.test"]', 1)
        policy(domain).write_text(text)
    key = generate_private_key()
    (two.lab.directory / "domain.pem").write_bytes(lab.authority.issue("a2.test", key, "a1.test"))
    (two.lab.directory / "domain.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    zones = lab.directory / "zones"
    outside, edge = zones / "a1.test.zone", f"edge{one.edges[0]}.a1.test."
    lines = [line for line in outside.read_text().splitlines(True) if not (edge in line.split()[0] and " A " in line)]
    outside.write_text("".join(lines) + f"{edge} 60 IN A {two.lab.host(two.edges[0])}\n")


def call(world: PeeringLab, caller: tuple[int, str], callee: tuple[int, str], target: str) -> dict[str, Any]:
    """A call with audio both ways that the callee ends normally; what the callee's edge recorded."""
    one, other = world.domains[caller[0]], world.domains[callee[0]]
    answering = ua(other.lab, "answer", callee[1], 1, "--tone", "880", "--wait", "20")
    assert answering.stderr is not None and answering.stderr.readline()
    calling = ua(one.lab, "call", caller[1], 1, target, "--tone", "440", "--seconds", "1.0")
    for said, tone in ((outcome(calling, seconds=40), "880"), (outcome(answering, seconds=40), "440")):
        assert said["ok"] and said["heard"]["power"][tone] > 0.9, said
    control = other.lab.control(other.edges[0])
    wait_until(lambda: all(each["ended_at"] for each in control.get("/calls")), "the BYE has passed", 5.0)
    recorded: dict[str, Any] = control.get("/calls")[-1]
    return recorded


@pytest.mark.foreign("knotd")
def test_peering_094_sends_through_another(world: PeeringLab) -> None:
    """alice@a1.test reaches bob through a2.test, with the Identity of a1.test intact, and hangs up along that way."""
    recorded = call(world, (A1, "alice"), (B, "bob"), "sip:bob@b.test")
    assert recorded["identity"] == "TN-Validation-Passed rfc8224" and "a1.test" in recorded["from"]
    assert recorded["cause"] == "BYE"
    passed = world.domains[A2].lab.control(2).get("/calls")[-1]
    assert passed["call_id"] == recorded["call_id"] and passed["cause"] == "BYE"


@pytest.mark.foreign("knotd")
def test_peering_095_receives_through_another(world: PeeringLab) -> None:
    """bob@b.test reaches alice@a1.test through a2.test, which the DNS names; so do the users of a2.test itself."""
    recorded = call(world, (B, "bob"), (A1, "alice"), "sip:alice@a1.test")
    assert recorded["identity"] == "TN-Validation-Passed rfc8224" and "b.test" in recorded["from"]
    assert world.domains[A2].lab.control(2).get("/calls")[-1]["call_id"] == recorded["call_id"]
    recorded = call(world, (A2, "anna"), (A1, "alice"), "sip:alice@a1.test")
    assert "a2.test" in recorded["from"]


@pytest.mark.foreign("knotd")
def test_peering_095_nobody_there(world: PeeringLab) -> None:
    """A user that a1.test does not have is 404 all the way back."""
    bob = ("call", "bob", 1)
    said = outcome(ua(world.domains[B].lab, *bob, "sip:nobody@a1.test", "--seconds", "1"), fails=True, seconds=30)
    assert said["status"] == 404, said


@pytest.mark.foreign("knotd")
def test_peering_072_a_faulty_policy_changes_nothing(world: PeeringLab) -> None:
    """At SIGHUP a policy with a fault is told in the log and the old one stays in force; a good one is used at once."""
    other = world.domains[B]
    number = other.edges[0]
    good, log = policy(other).read_text(), other.lab.peer_directory(number) / "log"
    policy(other).write_text(good.replace('domains = ["a2.test"]', 'domains = ["a2.test"'))
    pid = other.lab.pid(number)
    assert pid is not None
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: "not reloaded" in log.read_text(), "the fault is in the log", 5.0)
    assert "peering.toml" in log.read_text().partition("not reloaded")[2]
    call(world, (A2, "anna"), (B, "bob"), "sip:bob@b.test")
    denied = good.replace('domains = ["a2.test"]', 'domains = ["a2.test"]\ndeny = ["a2.test"]')
    policy(other).write_text(denied)
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: "reloaded: " in log.read_text().replace("not reloaded: ", ""), "the policy is used", 5.0)
    said = outcome(
        ua(world.domains[A2].lab, "call", "anna", 1, "sip:bob@b.test", "--seconds", "1"), fails=True, seconds=30
    )
    assert said["status"] == 403, said
    refused = other.lab.control(number).get("/peering/refusals")
    assert refused["counts"].get("refused_deny"), refused

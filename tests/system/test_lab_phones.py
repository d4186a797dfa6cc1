"""Phones and test programs of other projects at the peers of a lab: any peer registers them, and they call each
other through the overlay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2psipd.lab import Lab

from .phones import (
    Sipp,
    baresip_pair,
    call_with_audio,
    free_ports,
    outcome,
    sipp_register,
    sipsak_options,
    sipsak_register,
    sipsak_unregister,
    ua,
)

INSTANCE = "<urn:uuid:00000000-0000-4000-8000-000000000005>"
PHONE_A, PHONE_B = "127.1.252.11", "127.1.252.12"


@pytest.mark.foreign("sipsak")
def test_sipsak_at_every_peer(lab: Lab) -> None:
    """OPTIONS and a registration with digest pass at any peer, one after the other for the same user."""
    password = lab.user("carol").password
    for number in lab.peers:
        host = lab.host(number)
        assert sipsak_options(host).returncode == 0
        done = sipsak_register("carol", password, f"sip:carol@{PHONE_A}:17000", host)
        assert done.returncode == 0, f"peer {number}: {done.stdout}{done.stderr}"


@pytest.mark.foreign("sipsak")
def test_wrong_password_is_refused_everywhere(lab: Lab) -> None:
    """No peer registers a phone that has not the user's password, and nobody is registered by trying."""
    for number in lab.peers:
        done = sipsak_register("nora", "guessed", f"sip:nora@{PHONE_A}:17001", lab.host(number))
        assert done.returncode != 0, f"peer {number}: {done.stdout}"
    for number in (1, 5):
        done = sipsak_register("bob", "guessed", f"sip:bob@{PHONE_A}:17001", lab.host(number))
        assert done.returncode != 0, f"peer {number}: {done.stdout}"
    assert not any("17001" in value["value"] for value in record(lab, 4, "bob"))


def test_unknown_user_is_not_found(lab: Lab) -> None:
    """A call to a user whom nobody knows is answered 404, at any peer."""
    for number in (2, 8):
        refused = outcome(ua(lab, "call", "alice", number, lab.aor("nobody")), fails=True)
        assert refused["status"] == 404, refused


@pytest.mark.foreign("baresip")
def test_baresip_pair_at_two_peers(lab: Lab, tmp_path: Path) -> None:
    """A baresip at peer 3 and another at peer 6 call each other, each in turn; both hear the other's tone."""
    alice, bob = lab.user("alice"), lab.user("bob")
    ends = (
        ("alice", alice.password, PHONE_A, f"{lab.host(3)}:5060"),
        ("bob", bob.password, PHONE_B, f"{lab.host(6)}:5060"),
    )
    for name, caller, callee in (("there", ends[0], ends[1]), ("back", ends[1], ends[0])):
        with baresip_pair(tmp_path / name, lab.overlay_name, caller, callee) as (first, second):
            call_with_audio(first, second)


@pytest.mark.foreign("sipp", "sipsak")
def test_sipp_calls_between_peers(lab: Lab, tmp_path: Path) -> None:
    """Ten SIPp calls from peer 2 to a phone that SIPp registered at peer 7, without one failure."""
    password = lab.user("bob").password
    callee_port, register_port = free_ports(PHONE_B, 2)
    (caller_port,) = free_ports(PHONE_A)
    domain = lab.overlay_name
    sipp_register(
        tmp_path, "bob", password, domain, PHONE_B, register_port, f"{lab.host(7)}:5060", contact_port=callee_port
    )
    with (
        Sipp(tmp_path, "callee", PHONE_B, callee_port, calls=10) as callee,
        Sipp(
            tmp_path,
            "caller",
            PHONE_A,
            caller_port,
            f"{lab.host(2)}:5060",
            service="bob",
            keys=(("domain", domain), ("caller", "alice")),
            user="alice",
            password=lab.user("alice").password,
            calls=10,
        ) as caller,
    ):
        caller.wait()
        callee.wait()
    assert sipsak_unregister("bob", password, lab.host(5)).returncode == 0


def record(lab: Lab, number: int, name: str) -> list[dict[str, Any]]:
    """The bindings of one of the people, as a peer finds them in the overlay."""
    values: list[dict[str, Any]] = lab.control(number).get("/get", name=lab.aor(name))["values"]
    return values


def call_carol(lab: Lab, directory: Path, caller_at: int, port: int) -> None:
    """Alice at a peer calls carol's phone, which answers at this port; SIPp at both ends."""
    directory.mkdir()
    (caller_port,) = free_ports(PHONE_A)
    with (
        Sipp(directory, "callee", PHONE_B, port) as callee,
        Sipp(
            directory,
            "caller",
            PHONE_A,
            caller_port,
            f"{lab.host(caller_at)}:5060",
            service="carol",
            keys=(("domain", lab.overlay_name), ("caller", "alice")),
            user="alice",
            password=lab.user("alice").password,
        ) as caller,
    ):
        caller.wait()
        callee.wait()


@pytest.mark.foreign("sipp", "sipsak")
def test_carol_moves_and_leaves(lab: Lab, tmp_path: Path) -> None:
    """A phone that registers at another peer, from another address, is called there from every peer, its old one too;
    when it un-registers, at a third one, it can be reached from none.
    """
    password = lab.user("carol").password
    sipsak_unregister("carol", password, lab.host(1))
    ports = free_ports(PHONE_B, 4)
    for turn, at in enumerate((2, 7)):
        sipp_register(
            tmp_path,
            "carol",
            password,
            lab.overlay_name,
            PHONE_B,
            ports[2 + turn],
            f"{lab.host(at)}:5060",
            contact_port=ports[turn],
            instance=INSTANCE,
        )
        node = lab.control(at).get("/status")["node_id"]
        (binding,) = record(lab, 4, "carol")
        assert str(ports[turn]) in binding["value"] and node.startswith(binding["signer"].partition("@")[0]), binding
        for caller_at in (4, 2):
            call_carol(lab, tmp_path / f"{turn}-{caller_at}", caller_at, ports[turn])
    assert sipsak_unregister("carol", password, lab.host(5)).returncode == 0
    for caller_at in (4, 7):
        refused = outcome(ua(lab, "call", "alice", caller_at, lab.aor("carol")), fails=True)
        assert refused["status"] == 480, refused

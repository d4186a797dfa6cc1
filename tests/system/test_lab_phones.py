"""Phones and test programs of other projects at the peers of a lab: any peer registers them, and they call each
other through the overlay."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2psipd.lab import Lab

from .phones import (
    Sipp,
    baresip_pair,
    call_with_audio,
    free_ports,
    sipp_register,
    sipsak_options,
    sipsak_register,
    sipsak_unregister,
)

PHONE_A, PHONE_B = "127.0.252.11", "127.0.252.12"


@pytest.mark.foreign("sipsak")
def test_sipsak_at_every_peer(lab: Lab) -> None:
    """OPTIONS and a registration with digest pass at any peer, one after the other for the same user."""
    password = lab.user("carol").password
    for number in lab.peers:
        host = lab.host(number)
        assert sipsak_options(host).returncode == 0
        done = sipsak_register("carol", password, f"sip:carol@{PHONE_A}:17000", host)
        assert done.returncode == 0, f"peer {number}: {done.stdout}{done.stderr}"


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

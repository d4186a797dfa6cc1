"""What harmful sources get from the SIP service: as little as possible, and soon nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from p2psipd.proto.sip.limits import SCANNERS, LimitSettings
from p2psipd.proto.sip.message import parse_message
from p2psipd.services.sip.abuse import Door

from .sip_world import Node, Phone, World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A flow, as far as the door looks at it."""

    def __init__(self, host: str, peer: Any = None) -> None:
        self.remote, self.peer = (host, 5060), peer


def request(agent: str) -> Any:
    return parse_message(
        b"OPTIONS sip:100@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1\r\n"
        b"From: <sip:100@192.0.2.9>;tag=1\r\nTo: <sip:100@192.0.2.1>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n"
        b"User-Agent: " + agent.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    )


def door(**limits: Any) -> Door:
    return Door(LimitSettings(**limits), SCANNERS, Clock(), Counter())


def test_scanners_get_no_answer() -> None:
    """A request whose User-Agent is a known scanner's gets none; its source is shut out when it goes on."""
    one = door()
    attacker = Source("192.0.2.9")
    assert not one.is_scanner(attacker, request("baresip v1.0.0"))
    assert sum(one.is_scanner(attacker, request("Friendly-Scanner")) for _ in range(41)) == 41
    assert not one.admit("192.0.2.9") and one.admit("192.0.2.10")
    assert one.statistics()["sources_shut"] == 1


def test_wrong_passwords_shut_out() -> None:
    """A hundred wrong passwords are the end of it, for the source that gave them."""
    one = door()
    for _ in range(101):
        one.refused(Source("192.0.2.9"), "digest_wrong")
    assert not one.admit("192.0.2.9")


def test_nodes_are_not_held_to_anything() -> None:
    """What other nodes of the overlay forward is not theirs."""
    one = door(points=1)
    for _ in range(100):
        one.refused(Source("192.0.2.9", peer="node"), "challenged")
    assert one.admit("192.0.2.9")


def test_users_have_a_rate() -> None:
    """One user's requests above the rate are refused, others' are not."""
    one = door(requests_per_user=3)
    assert [one.may_send("alice") for _ in range(5)] == [True, True, True, False, False]
    assert one.may_send("bob")


@pytest.fixture
def world() -> World:
    return World()


def test_a_scanner_meets_silence(world: World) -> None:
    """The service answers a phone's OPTIONS and not a scanner's."""
    node = Node(world, 1, "10.0.0.1")
    phone = Phone(world, "alice", ("10.1.0.1", 5070), node)
    for agent, answered in (("friendly-scanner", False), ("phone", True)):
        made = phone.request("OPTIONS", "sip:10.0.0.1")
        made.set("User-Agent", agent)
        phone.send(made)
        assert phone.quiet() is not answered

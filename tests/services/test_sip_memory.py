"""What calls and registrations leave behind in a node: nothing, and nothing for the garbage collector."""

from __future__ import annotations

import gc

from p2psipd.proto.sip.fork import Branch, ForwardingContext

from .sip_world import DOMAIN, Node, Phone, World, ack_for, in_dialog


def living(*kinds: type) -> int:
    """Objects of these classes."""
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def test_a_call_leaves_no_circles() -> None:
    """When the last timer of a call, a refused one and a BYE has run, their forks are gone without any collection."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = (Phone(world, name, (f"10.1.0.{n}", 5060), node) for n, name in enumerate(("alice", "bob"), 1))
    bob.register()
    gc.collect()
    before = living(ForwardingContext, Branch)
    gc.disable()
    try:
        for status in (200, 486):
            first = alice.request("INVITE", f"sip:bob@{DOMAIN}")
            alice.send(first)
            challenge = alice.take_response(407)
            alice.send(ack_for(first, challenge))
            again = alice.answer_challenge(first, challenge)
            alice.send(again)
            invite = bob.take_request("INVITE")
            bob.respond(invite, status)
            answer = alice.take_response(status)
            if status == 200:
                alice.send(in_dialog(alice, "ACK", answer, answer.cseq.number))
                bob.take_request("ACK")
                alice.send(in_dialog(alice, "BYE", answer))
                bob.respond(bob.take_request("BYE"), 200)
                alice.take_response(200)
            else:
                alice.send(ack_for(again, answer))
                bob.take_request("ACK")
        world.pass_time(100.0, 1.0)
        assert living(ForwardingContext, Branch) == before
    finally:
        gc.enable()
    assert node.service.statistics()["transactions_lingering"] == 0

"""Call flows of RFC 3665 on a virtual clock: 3.6, where a redirector stands before the proxy, 3.7 behind a NAT, and
3.10, where somebody waits for half a minute. The others are in tests/system/test_rfc3665.py."""

from __future__ import annotations

from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.uri import SipUri

from .sip_world import DOMAIN, Node, Phone, World, ack_for, in_dialog, in_dialog_of_callee

OFFER = b"v=0\r\no=bob 1 1 IN IP4 10.1.0.2\r\ns=-\r\nc=IN IP4 10.1.0.2\r\nt=0 0\r\nm=audio 49172 RTP/AVP 0\r\n"
INSTANCE = '+sip.instance="<urn:uuid:00000000-0000-4000-8000-000000000001>";reg-id=1'


def test_rfc3665_3_6_redirect_and_proxy_with_sdp_in_ack() -> None:
    """A redirector tells alice where bob is; a proxy takes her there; the INVITE has no body, the offer is in the 200
    and the answer in the ACK, and all three arrive as they were sent.
    """
    world = World()
    redirector = Node(world, 1, "10.0.0.1", settings={"redirect_domains": frozenset({DOMAIN})})
    proxy = Node(world, 2, "10.0.0.2")
    bob = Phone(world, "bob", ("10.1.0.2", 5070), proxy)
    bob.connect()
    assert bob.register(f"<{bob.contact}>;{INSTANCE}", headers=[("Supported", "outbound")]).status == 200
    alice = Phone(world, "alice", ("10.1.0.1", 5070), redirector)
    moved = alice.ask(alice.request("INVITE", bob.aor))
    assert isinstance(moved, Response) and moved.status == 302 and moved.to_tag
    (contact,) = moved.contacts
    assert isinstance(contact.uri, SipUri) and contact.uri.gr
    alice.send(ack_for(alice.last, moved))
    assert alice.quiet() and bob.quiet()

    alice.node = proxy
    first = alice.request("INVITE", contact.uri_text, to=f"<{bob.aor}>")
    alice.send(first)
    challenged = alice.take_response(407)
    alice.send(ack_for(first, challenged))
    invite = alice.answer_challenge(first, challenged)
    alice.send(invite)
    came = bob.take_request("INVITE")
    assert came.uri_text == bob.contact and came.body == b"" and came.get("to") == f"<{bob.aor}>"
    bob.respond(came, 180)
    alice.take_response(180)
    headers = [("Contact", f"<{bob.contact}>"), ("Content-Type", "application/sdp")]
    ok = make_response(came, 200, to_tag=f"tag-{bob.user}", headers=headers)
    ok.body = OFFER
    bob.send(ok)
    accepted = alice.take_response(200)
    assert accepted.body == OFFER
    ack = in_dialog(alice, "ACK", accepted, invite.cseq.number)
    ack.body = OFFER.replace(b"bob", b"alice")
    ack.add("Content-Type", "application/sdp")
    alice.send(ack)
    acknowledged = bob.take_request("ACK")
    assert acknowledged.body == ack.body and acknowledged.get("content-type") == "application/sdp"
    bob.send(in_dialog_of_callee(bob, "BYE", came))
    alice.respond(alice.take_request("BYE"), 200)
    bob.take_response(200)


def test_rfc3665_3_7_address_change_behind_a_nat() -> None:
    """What comes for bob in this dialog goes where his re-INVITE came from; in his other one, where it always went."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = Phone(world, "alice", ("10.1.0.1", 5070), node), Phone(world, "bob", ("10.1.0.2", 5070), node)
    bob.contact = "sip:bob@192.168.7.7:5070"
    assert bob.register().status == 200
    calls = []
    for _ in range(2):
        alice.send(first := alice.request("INVITE", bob.aor))
        alice.send(ack_for(first, challenged := alice.take_response(407)))
        alice.send(alice.answer_challenge(first, challenged))
        came = bob.take_request("INVITE")
        bob.respond(came, 200)
        accepted = alice.take_response(200)
        alice.send(in_dialog(alice, "ACK", accepted, alice.cseq))
        bob.take_request("ACK")
        calls.append((came, accepted))
    moved = Phone(world, "bob", ("10.1.0.9", 6000), node)
    moved.contact = bob.contact
    moved.send(in_dialog_of_callee(moved, "INVITE", calls[0][0], 7))
    alice.respond(alice.take_request("INVITE"), 200)
    moved.take_response(200)
    for (_, accepted), phone in zip(calls, (moved, bob), strict=True):
        alice.send(in_dialog(alice, "BYE", accepted))
        phone.respond(phone.take_request("BYE"), 200)
        alice.take_response(200)
    assert bob.quiet() and moved.quiet()


def test_rfc3665_3_10_no_response_from_user_agent() -> None:
    """Bob's phone is silent: his proxy sends the INVITE seven times in 32 seconds (17.1.1.2); then it refuses, with 408
    (RFC 3261 16.8 and 16.7 step 6) where this flow writes 480, and each hop acknowledges.
    """
    world = World()
    one, two = Node(world, 1, "10.0.0.1"), Node(world, 2, "10.0.0.2")
    bob = Phone(world, "bob", ("10.1.0.2", 5070), two)
    assert bob.register().status == 200
    alice = Phone(world, "alice", ("10.1.0.1", 5070), one)
    first = alice.request("INVITE", bob.aor)
    alice.send(first)
    challenged = alice.take_response(407)
    alice.send(ack_for(first, challenged))
    invite = alice.answer_challenge(first, challenged)
    alice.send(invite)
    world.pass_time(31.9)
    assert all(isinstance(each, Response) and each.status == 100 for each in alice.inbox) and alice.inbox
    invites = [each for each in bob.inbox if isinstance(each, Request)]
    assert [each.method for each in invites] == ["INVITE"] * 7
    assert len({each.encode() for each in invites}) == 1
    world.pass_time(0.3)
    refused = alice.take_response(408)
    assert refused.to_tag and refused.cseq == invite.cseq
    alice.send(ack_for(invite, refused))
    world.trace.clear()
    world.pass_time(40.0)
    assert not world.trace and alice.quiet()

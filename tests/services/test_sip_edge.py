"""What strangers and parties of a call may not bring about by what they write into their messages."""

from __future__ import annotations

import pytest

from p2psipd.proto.sip.message import Response

from .sip_world import DOMAIN, Node, Phone, World, in_dialog
from .test_sip_calls import Diary, answered_call, invite, phones

PRESIDENT = ("P-Asserted-Identity", f"<sip:president@{DOMAIN}>")


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def pair(diary: Diary) -> tuple[Phone, Phone]:
    world = World()
    return phones(world, Node(world, 1, "10.0.0.1", observers=(diary,)))


@pytest.mark.parametrize(
    ("route", "tag", "status"),
    [("<sip:10.0.0.1:5060;lr>", "", 403), ("<sip:made-up@10.0.0.1:5060;lr>", "", 403), ("", "another", 481)],
)
def test_refused_bye_does_not_end_the_record(
    pair: tuple[Phone, Phone], diary: Diary, route: str, tag: str, status: int
) -> None:
    """A BYE that we refuse, or of another dialog, ends no call: nobody talks on at no cost."""
    alice, bob = pair
    bye = in_dialog(alice, "BYE", answered_call(alice, bob))
    if route:
        bye.set("Route", route)
    if tag:
        bye.set("To", f"<{bob.aor}>;tag={tag}")
    alice.send(bye)
    if not route:
        bob.respond(bob.take_request("BYE"), 481)
    alice.take_response(status)
    assert diary.lines == ["began", "answered"]


def test_nobody_asserts_an_identity_within_a_dialog(pair: tuple[Phone, Phone]) -> None:
    """RFC 3325 section 5: what a phone asserts of itself goes no further, in requests and in responses."""
    alice, bob = pair
    update = in_dialog(alice, "UPDATE", answered_call(alice, bob))
    update.add(*PRESIDENT)
    alice.send(update)
    received = bob.take_request("UPDATE")
    assert not received.has("p-asserted-identity")
    bob.respond(received, 200, [PRESIDENT])
    answered = alice.take_response(200)
    assert isinstance(answered, Response) and not answered.has("p-asserted-identity")


def test_options_for_the_node_with_an_unknown_requirement_is_420(pair: tuple[Phone, Phone]) -> None:
    """RFC 3261 section 8.2.2.3: who requires what we do not know is told so by the user agent that this node is."""
    alice, _ = pair
    request = alice.request("OPTIONS", f"sip:{DOMAIN}", [("Require", "path, telepathy")])
    alice.send(request)
    assert alice.take_response(420).get("unsupported") == "telepathy"


def test_calls_of_one_call_id_are_limited_like_others(pair: tuple[Phone, Phone]) -> None:
    """A second INVITE outside a dialog under the names of an open call is 403: else no limit of calls would hold."""
    alice, bob = pair
    first = invite(alice, bob.aor)
    bob.take_request("INVITE")
    request = alice.request("INVITE", bob.aor, call_id=first.call_id)
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    alice.take_response(403)
    assert bob.quiet()


def test_cancel_from_another_host_cancels_nothing(pair: tuple[Phone, Phone]) -> None:
    """RFC 3261 section 22.1: nobody is asked who sends a CANCEL, so it has to come from where its INVITE came."""
    alice, bob = pair
    asked = invite(alice, bob.aor)
    ringing = bob.take_request("INVITE")
    bob.respond(ringing, 180)
    alice.take_response(180)
    mallory = Phone(alice.world, "mallory", ("10.1.0.66", 5070), alice.node, "no matter")
    cancel = mallory.request("CANCEL", bob.aor, call_id=asked.call_id, cseq=asked.cseq.number)
    for name in ("Via", "From", "To"):
        cancel.set(name, asked.get(name) or "")
    mallory.send(cancel)
    alice.world.settle()
    assert bob.quiet()
    bob.respond(ringing, 200)
    alice.take_response(200)


@pytest.mark.parametrize("transport", ["UDP", "TCP", "TLS", "WSS"])
def test_sips_reaches_phones_over_tls_alone(pair: tuple[Phone, Phone], transport: str) -> None:
    """RFC 5630 section 5.3: a request for a sips: URI whose user has no TLS connection is 480 with Warning 380."""
    alice, bob = pair
    if transport != "UDP":
        bob.connect()
        assert bob.flow is not None
        bob.flow.transport = transport
        bob.register()
    request = alice.request("MESSAGE", bob.aor.replace("sip:", "sips:"))
    if transport in ("TLS", "WSS"):
        alice.send(request)
        alice.send(alice.answer_challenge(request, alice.take_response(407)))
        bob.respond(bob.take_request("MESSAGE"), 200)
        alice.take_response(200)
    else:
        answered = alice.ask(request)
        assert isinstance(answered, Response) and answered.status == 480
        assert answered.get("warning") == f'380 {DOMAIN} "SIPS Not Allowed"'
        assert bob.quiet()


CLAIMS = ("P-Asserted-Identity", "P-Preferred-Identity", "Remote-Party-ID")


def test_nobody_claims_another_identity_at_the_beginning(pair: tuple[Phone, Phone]) -> None:
    """RFC 3325 section 5: beside the From that it has proved, nothing that a phone says of itself goes further."""
    alice, bob = pair
    request = alice.request("MESSAGE", bob.aor, [(name, PRESIDENT[1]) for name in CLAIMS])
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    received = bob.take_request("MESSAGE")
    assert not any(received.has(name.lower()) for name in CLAIMS)


@pytest.mark.parametrize(("privacy", "told"), [("none", True), ("header; id", False)])
def test_privacy_keeps_the_identity_from_phones(pair: tuple[Phone, Phone], privacy: str, told: bool) -> None:
    """RFC 3325 section 9.3: with Privacy: id the identity that we assert goes to no phone."""
    alice, bob = pair
    request = alice.request(
        "MESSAGE", bob.aor, [("Privacy", privacy)], from_=f"<sip:alice@{alice.node.address[0]}>;tag=1"
    )
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    assert bob.take_request("MESSAGE").has("p-asserted-identity") is told

"""The call flows of RFC 3665 with real nodes between two phones, message by message: what each phone gets, with the
header fields that decide, and what went over each leg of each proxy.

Sections 2.1 to 2.5, 3.2 to 3.4, 3.7 to 3.9 and 3.11. Those with a redirector, and those where somebody waits for half a
minute, are in tests/services/test_rfc3665.py. In 3.1 no proxy takes part; 3.5 is in test_kamailio_next_hop.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.lab import Lab
from p2psipd.proto.sip.message import Request, Response

from .sip_capture import SipCapture, sip_capture
from .sip_line import Line, registered, sdp, word

ALICE, BOB, ELSEWHERE = "127.1.110.1", "127.1.110.2", "127.1.110.3"
ONE, TWO = 2, 7
"""The peers that are alice's proxy and bob's."""


@pytest.fixture(scope="module")
def capture(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipCapture]:
    """All of SIP that the lab speaks during these tests."""
    with sip_capture(tmp_path_factory.mktemp("rfc3665") / "flows.pcap", shared_lab.files.network) as running:
        yield running


@pytest.fixture
def phone(lab: Lab, capture: SipCapture) -> type[Line]:
    """Makes phones, whose messages are captured."""
    return Line


def alice_at(lab: Lab, number: int, host: str = ALICE) -> Line:
    """Alice's phone, whose proxy is this peer."""
    return Line("alice", lab.overlay_name, lab.user("alice").password, host, f"{lab.host(number)}:5060")


def bob_at(lab: Lab, number: int, host: str = BOB) -> Line:
    """Bob's phone, whose proxy is this peer."""
    return Line("bob", lab.overlay_name, lab.user("bob").password, host, f"{lab.host(number)}:5060")


def legs(lab: Lab, number: int, call_id: str) -> list[str]:
    """What a proxy says of a call: "alice> INVITE" came from alice, "INVITE >peer" went to another node. Without 100
    Trying, which depends on the time, and repetitions.
    """
    names = {f"UDP {ALICE}:5060": "alice", f"UDP {BOB}:5060": "bob", f"UDP {ELSEWHERE}:5060": "bob elsewhere"}
    story: list[str] = []
    for step in lab.control(number).get("/calls/ladder", call_id=call_id)["messages"]:
        first, second = str(step["line"]).split(" ")[:2]
        said = second if first == "SIP/2.0" else first
        inbound = step["destination"] == "here"
        there = str(step["source" if inbound else "destination"])
        name = "peer" if there.startswith("node ") else names[there]
        told = f"{name}> {said}" if inbound else f"{said} >{name}"
        if said != "100" and (not story or story[-1] != told):
            story.append(told)
    return story


def forwarded(request: Request, sent: Request, hops: int) -> None:
    """RFC 3261 16.6: the request that arrived is the one that was sent, `hops` proxies further on."""
    assert len(request.vias) == hops + 1 and request.max_forwards == 70 - hops
    assert request.vias[-1].branch == sent.vias[0].branch and request.vias[-1].params.get("received")
    for name in ("from", "to", "call-id", "cseq", "contact", "content-type"):
        assert request.get(name) == sent.get(name), name
    assert request.body == sent.body and not request.has("route") and not request.has("proxy-authorization")


def answered(response: Response, sent: Request, made: Response) -> None:
    """RFC 3261 16.7: the response that arrived is the one that the other phone made, with the caller's Via alone."""
    assert [via.branch for via in response.vias] == [sent.vias[0].branch]
    for name in ("from", "to", "call-id", "cseq", "contact"):
        assert response.get(name) == made.get(name), name
    assert response.get_all("record-route") == made.get_all("record-route") and response.body == made.body


def answer_call(caller: Line, callee: Line, invite: Request, incoming: Request) -> Response:
    """180, 200 and ACK, each as it should be at the other end; the 200 of the caller."""
    for status in (180, 200):
        callee.respond(incoming, status)
        made = callee.sent[-1]
        assert isinstance(made, Response)
        accepted = caller.take(status)
        answered(accepted, invite, made)
    caller.send(caller.within("ACK", accepted))
    ack = callee.take_request("ACK")
    assert ack.uri_text == callee.contact.strip("<>") and not ack.has("route")
    assert ack.cseq.number == invite.cseq.number and ack.to_tag == accepted.to_tag
    return accepted


def hang_up(one: Line, other: Line, begun: Request | Response) -> None:
    """BYE from one to the other within the dialog that `begun` made, and its 200."""
    bye = one.within("BYE", begun)
    one.send(bye)
    came = other.take_request("BYE")
    assert came.uri_text == other.contact.strip("<>") and not came.has("route")
    assert came.get("from") == bye.get("from") and came.get("to") == bye.get("to") and came.cseq == bye.cseq
    other.respond(came, 200)
    assert one.take(200).cseq.method == "BYE"


# ---- section 2: registration -------------------------------------------------------------------------------


def test_rfc3665_2_1_successful_new_registration(lab: Lab, phone: type[Line]) -> None:
    """REGISTER, 401 with a challenge for the realm, REGISTER with credentials, 200 with the Contact and its time."""
    with bob_at(lab, TWO) as bob:
        answer = bob.register(headers={"Expires": "600"})
        assert bob.story() == ["401 REGISTER", "200 REGISTER"]
        challenged, first, second = bob.received[0], bob.sent[0], bob.sent[1]
        assert isinstance(challenged, Response) and isinstance(first, Request) and isinstance(second, Request)
        for response, request in ((challenged, first), (answer, second)):
            assert response.cseq == request.cseq and response.call_id == request.call_id and response.to_tag
            assert response.get("from") == request.get("from") and response.vias[0].branch == request.vias[0].branch
        challenges = challenged.get_all("www-authenticate")
        assert challenges and all(f'realm="{lab.overlay_name}"' in each and "nonce=" in each for each in challenges)
        assert not challenged.has("contact")
        assert f"{bob.contact};expires=600" in answer.get_all("contact")


def test_rfc3665_2_2_update_of_contact_list(lab: Lab, phone: type[Line]) -> None:
    """A second Contact, which is no SIP URI, is added; the 200 lists both."""
    with bob_at(lab, TWO) as bob:
        bob.register(headers={"Expires": "600"})
        answer = bob.register("<mailto:bob@biloxi.example.com>")
        assert sorted(each.uri_text for each in answer.contacts) == ["mailto:bob@biloxi.example.com", bob.contact[1:-1]]
        assert all(each.expires and each.expires > 590 for each in answer.contacts)


def test_rfc3665_2_3_request_for_current_contact_list(lab: Lab, phone: type[Line]) -> None:
    """A REGISTER without Contact changes nothing and is told everything; at any registrar."""
    with bob_at(lab, TWO) as bob:
        bob.register(headers={"Expires": "600"})
        told = {contact.uri_text for contact in bob.register("").contacts}
        assert bob.contact[1:-1] in told
    with bob_at(lab, ONE) as bob:
        assert {contact.uri_text for contact in bob.register("").contacts} == told


def test_rfc3665_2_4_cancellation_of_registration(lab: Lab, phone: type[Line]) -> None:
    """Contact * with Expires 0 removes everything; the 200 lists nothing, here and elsewhere."""
    with bob_at(lab, TWO) as bob:
        bob.register(headers={"Expires": "600"})
        assert not bob.register("*", {"Expires": "0"}).has("contact")
    with bob_at(lab, ONE) as bob:
        assert not bob.register("").has("contact")


def test_rfc3665_2_5_unsuccessful_registration(lab: Lab, phone: type[Line]) -> None:
    """REGISTER, 401, REGISTER with a wrong password, 401 with a fresh challenge that is not stale; nothing is bound."""
    with bob_at(lab, TWO) as bob:
        bob.password = "wrong"
        assert bob.register().status == 401
        assert bob.story() == ["401 REGISTER", "401 REGISTER"]
        first, second = (message.get_all("www-authenticate") for message in bob.received)
        assert first != second and not any("stale=true" in each.lower() for each in second)
    with bob_at(lab, TWO) as bob:
        assert not bob.register("").has("contact")


# ---- section 3: sessions -----------------------------------------------------------------------------------


def test_rfc3665_3_2_through_two_proxies(lab: Lab, phone: type[Line]) -> None:
    """INVITE, 407, ACK; INVITE, 180, 200, ACK; BYE by the callee, 200: at both phones and on all three legs."""
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        assert incoming.uri_text == bob.contact[1:-1]
        forwarded(incoming, invite, 2)
        accepted = answer_call(alice, bob, invite, incoming)
        assert accepted.get_all("record-route") == incoming.get_all("record-route") != []
        hang_up(bob, alice, incoming)
        story = [each for each in alice.story() if each != "100 INVITE"]
        assert story == ["407 INVITE", "180 INVITE", "200 INVITE", "BYE"]
        assert legs(lab, ONE, invite.call_id) == [
            "alice> INVITE", "407 >alice", "alice> ACK", "alice> INVITE", "INVITE >peer", "peer> 180", "180 >alice",
            "peer> 200", "200 >alice", "alice> ACK", "ACK >peer", "peer> BYE", "BYE >alice", "alice> 200", "200 >peer",
        ]  # fmt: skip
        assert legs(lab, TWO, invite.call_id) == [
            "peer> INVITE", "INVITE >bob", "bob> 180", "180 >peer", "bob> 200", "200 >peer", "peer> ACK", "ACK >bob",
            "bob> BYE", "BYE >peer", "peer> 200", "200 >bob",
        ]  # fmt: skip


def test_rfc3665_3_3_multiple_proxy_authentication(lab: Lab, phone: type[Line]) -> None:
    """What is behind bob's address demands credentials for a realm of its own: its challenge reaches alice, and her
    answer to it passes our proxies, which take out that for their own realm alone.
    """
    challenge = ("Proxy-Authenticate", 'Digest realm="biloxi.example.com", qop="auth", nonce="c1e22c41", algorithm=MD5')
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, ONE) as alice:
        invite = alice.invite(bob.aor)
        alice.send(invite)
        ours = alice.take(407)
        alice.acknowledge(invite, ours)
        second = alice.authorized(invite, ours)
        alice.send(second)
        bob.respond(bob.take_request("INVITE"), 407, [challenge])
        assert bob.take_request("ACK").cseq.number == second.cseq.number
        theirs = alice.take(407)
        assert theirs.get_all("proxy-authenticate") == [challenge[1]]
        alice.acknowledge(second, theirs)
        third = alice.authorized(invite, ours, theirs)
        # The nonce of ours is used a second time.
        third.set("CSeq", f"{second.cseq.number + 1} INVITE")
        values = third.get_all("proxy-authorization")
        third.remove("proxy-authorization")
        fresh = alice.invite(bob.aor)
        alice.send(fresh)
        challenged = alice.take(407)
        alice.acknowledge(fresh, challenged)
        third.add("Proxy-Authorization", alice.authorized(third, challenged).get_all("proxy-authorization")[0])
        third.add("Proxy-Authorization", values[1])
        alice.send(third)
        incoming = bob.take_request("INVITE")
        assert incoming.get_all("proxy-authorization") == [values[1]]
        bob.respond(incoming, 200)
        accepted = alice.take(200)
        alice.send(alice.within("ACK", accepted))
        bob.take_request("ACK")
        hang_up(alice, bob, accepted)


def test_rfc3665_3_4_proxy_failure(lab: Lab, phone: type[Line]) -> None:
    """Alice's first proxy says nothing; at the second one, which is bob's too, the call succeeds over one proxy."""
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, TWO) as alice:
        request = alice.invite(bob.aor)
        alice.send(request, (f"{lab.files.network}.99", 5060))
        assert alice.quiet(0.1)
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        forwarded(incoming, invite, 1)
        answer_call(alice, bob, invite, incoming)
        hang_up(bob, alice, incoming)
        assert legs(lab, TWO, invite.call_id) == [
            "alice> INVITE", "407 >alice", "alice> ACK", "alice> INVITE", "INVITE >bob", "bob> 180", "180 >alice",
            "bob> 200", "200 >alice", "alice> ACK", "ACK >bob", "bob> BYE", "BYE >alice", "alice> 200", "200 >bob",
        ]  # fmt: skip


def test_rfc3665_3_7_reinvite_after_an_address_change(lab: Lab, phone: type[Line]) -> None:
    """Bob's address changes during the call: his re-INVITE from the new one, with a new Contact and a new offer,
    reaches alice, and what she sends then reaches him there.
    """
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, ONE) as alice, bob_at(lab, TWO, ELSEWHERE) as moved:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        answer_call(alice, bob, invite, incoming)
        again = moved.within("INVITE", incoming, sdp(ELSEWHERE, 2))
        moved.send(again)
        came = alice.take_request("INVITE")
        assert came.contacts[0].uri_text == moved.contact[1:-1] and came.body == again.body
        assert came.get("to") == again.get("to") and came.cseq == again.cseq
        alice.respond(came, 200)
        assert moved.take(200).contacts[0].uri_text == alice.contact[1:-1]
        ack = moved.within("ACK", incoming)
        ack.set("CSeq", f"{again.cseq.number} ACK")
        moved.send(ack)
        assert alice.take_request("ACK").cseq.number == again.cseq.number
        # Her route set is that of the beginning, her remote target is bob's new Contact (RFC 3261 12.2.1.2).
        bye = alice.within("BYE", next(each for each in alice.received if word(each) == "200 INVITE"))
        bye.set_uri(moved.contact[1:-1])
        alice.send(bye)
        moved.respond(moved.take_request("BYE"), 200)
        alice.take(200)
        assert bob.quiet()


def test_rfc3665_3_8_no_answer(lab: Lab, phone: type[Line]) -> None:
    """Alice gives up while bob's phone rings: CANCEL is answered by each hop and goes on, 487 and ACK likewise."""
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        # RFC 3261 17.2.1: nobody has answered for 200 ms, and alice is told to be patient.
        assert bob.quiet(0.3)
        bob.respond(incoming, 180)
        alice.take(180)
        assert alice.story()[1] == "100 INVITE"
        names = ("via", "max-forwards", "from", "to", "call-id")
        lines = [(name, invite.get(name) or "") for name in names]
        alice.send(Request("CANCEL", invite.uri_text, [*lines, ("cseq", f"{invite.cseq.number} CANCEL")]))
        assert alice.take(200).cseq.method == "CANCEL"
        cancel = bob.take_request("CANCEL")
        assert cancel.uri_text == incoming.uri_text and cancel.cseq.number == incoming.cseq.number
        assert [via.branch for via in cancel.vias] == [incoming.vias[0].branch] and not cancel.has("route")
        assert cancel.get("from") == incoming.get("from") and cancel.get("to") == incoming.get("to")
        bob.respond(cancel, 200)
        bob.respond(incoming, 487)
        ack = bob.take_request("ACK")
        assert [via.branch for via in ack.vias] == [incoming.vias[0].branch] and ack.to_tag == "callee"
        refused = alice.take(487)
        assert refused.to_tag == "callee" and refused.cseq == invite.cseq
        alice.acknowledge(invite, refused)
        assert alice.quiet() and bob.quiet()
        # F12 and F14, the answers to a proxy's own CANCEL, end there, and are in no ladder.
        assert set(legs(lab, ONE, invite.call_id)) == {
            "alice> INVITE", "407 >alice", "alice> ACK", "INVITE >peer", "peer> 180", "180 >alice", "alice> CANCEL",
            "200 >alice", "CANCEL >peer", "peer> 487", "487 >alice", "ACK >peer",
        }  # fmt: skip
        assert set(legs(lab, TWO, invite.call_id)) == {
            "peer> INVITE", "INVITE >bob", "bob> 180", "180 >peer", "peer> CANCEL", "200 >peer", "CANCEL >bob",
            "bob> 487", "ACK >bob", "487 >peer", "peer> ACK",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("rings", "status"), [(False, 486), (True, 480)], ids=["3_9_busy", "3_11_temporarily_unavailable"]
)
def test_rfc3665_refused(lab: Lab, phone: type[Line], rings: bool, status: int) -> None:
    """Bob's phone refuses, at once or when it has rung: the refusal goes back, and is acknowledged hop by hop."""
    with registered(bob_at(lab, TWO)) as bob, alice_at(lab, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        if rings:
            bob.respond(incoming, 180)
            alice.take(180)
        bob.respond(incoming, status)
        ack = bob.take_request("ACK")
        assert [via.branch for via in ack.vias] == [incoming.vias[0].branch] and ack.to_tag == "callee"
        refused = alice.take(status)
        made = bob.sent[-1]
        assert isinstance(made, Response)
        answered(refused, invite, made)
        alice.acknowledge(invite, refused)
        assert alice.quiet() and bob.quiet()
        ringing = ["bob> 180", "180 >peer"] if rings else []
        assert sorted(legs(lab, TWO, invite.call_id)) == sorted([
            "peer> INVITE", "INVITE >bob", *ringing, f"bob> {status}", "ACK >bob", f"{status} >peer", "peer> ACK",
        ])  # fmt: skip


@pytest.mark.foreign("tshark", "tcpdump")
def test_wireshark_reads_it_all(lab: Lab, capture: SipCapture) -> None:
    """No message of these flows is malformed to Wireshark, and it has no complaint about one; it has seen them all."""
    seen = capture.messages()
    assert {"REGISTER", "INVITE", "ACK", "CANCEL", "BYE"} <= seen
    assert {"100", "180", "200", "401", "407", "480", "486", "487"} <= seen
    assert not capture.faults()


def test_no_node_has_a_fault(lab: Lab) -> None:
    """Nothing went wrong inside the two proxies, and no call is left."""
    for number in (ONE, TWO):
        log = Path(lab.peer_directory(number), "log").read_text(errors="replace")
        assert "Traceback" not in log, log[-3000:]

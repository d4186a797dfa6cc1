"""The SIP service among phones and nodes in memory: the flows of RFC 3665, and what may not pass."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from p2psipd.proto.sip.locating import NodeIdentity, decode_gr
from p2psipd.proto.sip.message import Request, Response, make_response

from .sip_world import DOMAIN, Node, Phone, World, ack_for, in_dialog, in_dialog_of_callee


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def node(world: World) -> Node:
    return Node(world, 1, "10.0.0.1")


@pytest.fixture
def alice(world: World, node: Node) -> Phone:
    return Phone(world, "alice", ("10.1.0.1", 5070), node)


@pytest.fixture
def bob(world: World, node: Node) -> Phone:
    return Phone(world, "bob", ("10.1.0.2", 5070), node)


@pytest.fixture
def far_bob(world: World) -> Phone:
    return Phone(world, "bob", ("10.2.0.2", 5070), Node(world, 2, "10.0.0.2"))


def call(alice: Phone, bob: Phone) -> tuple[Request, Response]:
    """Alice calls, bob rings and answers, alice acknowledges: bob's INVITE and alice's 200."""
    ringing_or = alice.request("INVITE", bob.aor)
    alice.send(ringing_or)
    challenge = alice.take_response(407)
    alice.send(ack_for(ringing_or, challenge))
    again = alice.answer_challenge(ringing_or, challenge)
    alice.send(again)
    invite = bob.take_request("INVITE")
    bob.respond(invite, 180)
    alice.take_response(180)
    bob.respond(invite, 200)
    answered = alice.take_response(200)
    alice.send(in_dialog(alice, "ACK", answered, cseq=again.cseq.number))
    bob.take_request("ACK")
    return invite, answered


def test_registration_is_challenged_written_and_answered(world: World, node: Node, bob: Phone) -> None:
    """RFC 3665 2.1: REGISTER, 401, REGISTER, 200; the binding is in the location store before the 200."""
    answered = bob.register()
    assert answered.status == 200
    assert [each.uri_text for each in answered.contacts] == [bob.contact]
    assert answered.contacts[0].expires == 600
    assert answered.get("date") is not None
    (binding,) = world.location.entries[bob.aor].values()
    assert (binding.contact, binding.node_id, binding.call_id) == (bob.contact, node.node_id, "reg-bob")
    assert node.service.registrations()[0]["aor"] == bob.aor


def test_wrong_password_is_challenged_again(node: Node, bob: Phone) -> None:
    """RFC 3665 2.5: credentials that do not fit are answered 401 again, and nothing is registered."""
    bob.password = "guess"
    assert bob.register().status == 401
    assert node.service.registrations() == []


def test_unknown_user_looks_like_a_wrong_password(world: World, node: Node, bob: Phone) -> None:
    """Nobody learns which users exist: an unknown user gets the same 401s, and no look-up before the
    first.
    """
    ghost = Phone(world, "ghost", ("10.1.0.9", 5070), node, password="x")
    request = ghost.request("REGISTER", f"sip:{DOMAIN}", [("Contact", f"<{ghost.contact}>")], to=f"<{ghost.aor}>")
    ghost.send(request)
    first = ghost.take_response(401)
    assert world.credentials.asked == []
    ghost.send(ghost.answer_challenge(request, first))
    world.pass_time(0.3)
    second = ghost.take_response(401)
    bob.password = "guess"
    real = bob.register()
    assert [(name) for name, _ in second.headers] == [(name) for name, _ in real.headers]


def test_nobody_registers_for_another(node: Node, alice: Phone) -> None:
    """RFC 3261 10.3 step 4: an authenticated user may change only its own bindings: 403."""
    request = alice.request("REGISTER", f"sip:{DOMAIN}", [("Contact", f"<{alice.contact}>")], to=f"<sip:bob@{DOMAIN}>")
    answered = alice.ask(request)
    assert isinstance(answered, Response) and answered.status == 403
    assert node.service.registrations() == []


def test_failed_write_is_503_with_retry_after(world: World, node: Node, bob: Phone) -> None:
    """A binding that could not be stored is not acknowledged: 503 with Retry-After, and nothing is left
    behind.
    """
    world.location.broken = True
    answered = bob.register()
    assert answered.status == 503 and answered.get("retry-after") is not None
    assert node.service.registrations() == []


def test_call_within_one_node(world: World, node: Node, alice: Phone, bob: Phone) -> None:
    """RFC 3665 3.2: INVITE, 407, INVITE, 180, 200, ACK, BYE, 200 through one proxy."""
    bob.register()
    invite, answered = call(alice, bob)
    assert invite.uri_text == bob.contact
    assert invite.max_forwards == 69
    assert len(invite.vias) == 2
    assert not invite.has("proxy-authorization")
    alice.send(in_dialog(alice, "BYE", answered))
    bye = bob.take_request("BYE")
    assert bye.uri_text == bob.contact and not bye.has("route")
    bob.respond(bye, 200)
    alice.take_response(200)
    (call_id,) = node.service.ladders()
    lines = [step.line for step in node.service.ladder(call_id)]
    assert [line.split()[0] for line in lines].count("ACK") == 3
    assert lines[0].startswith("INVITE") and lines[-1] == "SIP/2.0 200 OK"


def test_callee_hangs_up(alice: Phone, bob: Phone) -> None:
    """A BYE of the callee follows the Record-Route back to the caller, without a challenge."""
    bob.register()
    invite, _ = call(alice, bob)
    bob.send(in_dialog_of_callee(bob, "BYE", invite))
    bye = alice.take_request("BYE")
    alice.respond(bye, 200)
    bob.take_response(200)


def test_call_between_two_nodes(world: World, node: Node, alice: Phone, far_bob: Phone) -> None:
    """A call to a phone of another node goes over one pooled connection, both ways, and its BYE either
    way.
    """
    far_bob.register()
    invite, answered = call(alice, far_bob)
    assert invite.uri_text == far_bob.contact
    values = [each.uri for each in invite.record_routes]
    assert [getattr(uri, "scheme", "") for uri in values] == ["sip", "sips", "sips", "sip"]
    named = [decode_gr(getattr(uri, "gr", "") or "") for uri in values]
    assert [each.node_id if each else None for each in named] == [None, b"\2" * 16, b"\1" * 16, None]
    alice.send(in_dialog(alice, "BYE", answered))
    bye = far_bob.take_request("BYE")
    assert not bye.has("route")
    far_bob.respond(bye, 200)
    alice.take_response(200)
    invite, _ = call(alice, far_bob)
    far_bob.send(in_dialog_of_callee(far_bob, "BYE", invite))
    alice.respond(alice.take_request("BYE"), 200)
    far_bob.take_response(200)
    assert node.connector.attached == [b"\2" * 16]
    assert far_bob.node.connector.attached == []


def test_forking_to_two_phones_cancels_the_slower(world: World, node: Node, alice: Phone, bob: Phone) -> None:
    """RFC 3261 16.7 step 10: when one of bob's phones answers, the other one's branch is cancelled."""
    second = Phone(world, "bob", ("10.1.0.3", 5070), node)
    bob.register()
    second.register()
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    alice.send(alice.answer_challenge(request, challenge))
    invites = bob.take_request("INVITE"), second.take_request("INVITE")
    bob.respond(invites[0], 180)
    second.respond(invites[1], 180)
    alice.take_response(180), alice.take_response(180)
    second.respond(invites[1], 200)
    alice.take_response(200)
    cancel = bob.take_request("CANCEL")
    bob.respond(cancel, 200)
    bob.respond(invites[0], 487)
    bob.take_request("ACK")
    assert alice.quiet()


def test_cancel_of_a_ringing_call(alice: Phone, bob: Phone) -> None:
    """RFC 3665 3.8: CANCEL is answered 200, the phone is cancelled, and the INVITE ends with 487."""
    bob.register()
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    again = alice.answer_challenge(request, challenge)
    alice.send(again)
    invite = bob.take_request("INVITE")
    bob.respond(invite, 180)
    alice.take_response(180)
    cancel = ack_for(again, Response(100, headers=[("To", again.get("to") or "")]))
    cancel = Request("CANCEL", again.uri_text, [(n, v) for n, v in _lines(cancel) if n != "CSeq"])
    cancel.add("CSeq", f"{again.cseq.number} CANCEL")
    alice.send(cancel)
    assert alice.take_response(200).cseq.method == "CANCEL"
    bob.respond(bob.take_request("CANCEL"), 200)
    bob.respond(invite, 487)
    bob.take_request("ACK")
    final = alice.take_response(487)
    assert final.cseq.method == "INVITE"


def _lines(request: Request) -> list[tuple[str, str]]:
    return [(n, request.get(n) or "") for n in ("Via", "Max-Forwards", "From", "To", "Call-ID", "CSeq")]


@pytest.mark.parametrize("status", [486, 603, 404, 302])
def test_refusal_reaches_the_caller(alice: Phone, bob: Phone, status: int) -> None:
    """RFC 3665 3.9 to 3.11: a phone's final refusal is passed on, and acknowledged hop by hop."""
    bob.register()
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    again = alice.answer_challenge(request, challenge)
    alice.send(again)
    invite = bob.take_request("INVITE")
    bob.respond(invite, status)
    assert bob.take_request("ACK").cseq.number == invite.cseq.number
    final = alice.take_response(status)
    alice.send(ack_for(again, final))
    assert bob.quiet()


def test_phone_that_never_answers_is_a_timeout(world: World, alice: Phone, bob: Phone) -> None:
    """RFC 3665 3.10: nothing comes back from the callee's phone: 408 after 64*T1."""
    bob.register()
    world.lose = lambda data: data.startswith(b"INVITE") and bob.contact.encode() in data
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    alice.send(alice.answer_challenge(request, challenge))
    world.pass_time(33.0, step=0.5)
    alice.take_response(408)


def test_timer_c_ends_a_call_that_rings_for_ever(world: World, alice: Phone, bob: Phone) -> None:
    """RFC 3261 16.8: after timer C a ringing branch is cancelled, and its 487 goes to the caller."""
    bob.register()
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    alice.send(alice.answer_challenge(request, challenge))
    invite = bob.take_request("INVITE")
    bob.respond(invite, 180)
    alice.take_response(180)
    world.pass_time(180.2, step=1.0)
    bob.respond(bob.take_request("CANCEL"), 200)
    bob.respond(invite, 487)
    bob.take_request("ACK")
    alice.take_response(487)


def test_message_to_another_node(alice: Phone, far_bob: Phone) -> None:
    """RFC 3428: MESSAGE goes through like any request, its body untouched, without Record-Route."""
    far_bob.register()
    body = "grüß dich\r\n".encode()
    request = alice.request("MESSAGE", far_bob.aor, [("Content-Type", "text/plain")], body=body)
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    message = far_bob.take_request("MESSAGE")
    assert message.body == body and not message.has("record-route")
    far_bob.respond(message, 200)
    alice.take_response(200)


@pytest.mark.parametrize("status", [200, 486])
@pytest.mark.parametrize("value", ["<sip:bob@[fe80::1%25eth0]:5060>", "<<bob>>", "bob"])
def test_answer_with_a_contact_that_cannot_be_read(alice: Phone, far_bob: Phone, value: str, status: int) -> None:
    """RFC 3261 16.3: what a proxy need not understand passes as it is; the caller would wait in vain otherwise."""
    far_bob.register()
    request = alice.request("MESSAGE", far_bob.aor)
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    far_bob.respond(far_bob.take_request("MESSAGE"), status, [("Contact", value)])
    assert alice.take_response(status).get("contact") == value


def test_answer_that_has_lost_the_caller(alice: Phone, bob: Phone) -> None:
    """RFC 3261 16.7 step 3: an answer without the caller's Via goes no further; the caller hears of a bad gateway."""
    bob.register()
    request = alice.request("MESSAGE", bob.aor)
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    answer = make_response(bob.take_request("MESSAGE"), 200)
    answer.set("Via", str(answer.top_via))
    bob.send(answer)
    alice.take_response(502)


def test_options_for_the_node_needs_no_credentials(alice: Phone) -> None:
    """RFC 3261 11.2: OPTIONS addressed to the node itself is answered with what it can do."""
    alice.send(alice.request("OPTIONS", "sip:10.0.0.1:5060", from_="<sip:probe@10.1.0.1>;tag=1"))
    assert "INVITE" in alice.take_response(200).allow


def test_max_forwards_of_what_ends_here(alice: Phone) -> None:
    """RFC 4475 3.3.11: who is the last one takes a request as if its Max-Forwards were positive; who forwards: 483."""
    for method, uri, status in (
        ("OPTIONS", "sip:10.0.0.1:5060", 200),
        ("REGISTER", f"sip:{DOMAIN}", 401),
        ("OPTIONS", f"sip:bob@{DOMAIN}", 483),
        ("MESSAGE", f"sip:bob@{DOMAIN}", 483),
    ):
        asked = alice.request(method, uri)
        asked.set("Max-Forwards", "0")
        alice.send(asked)
        assert alice.take_response(status).cseq.method == method


def test_unregistered_user_is_480(alice: Phone) -> None:
    """RFC 3261 16.5: a user of a served domain without bindings is not available."""
    request = alice.request("MESSAGE", f"sip:bob@{DOMAIN}")
    answered = alice.ask(request)
    assert isinstance(answered, Response) and answered.status == 480


def test_unknown_user_is_404(alice: Phone) -> None:
    """RFC 3261 21.4.5: a user of a served domain who has no password does not exist."""
    answered = alice.ask(alice.request("MESSAGE", f"sip:nobody@{DOMAIN}"))
    assert isinstance(answered, Response) and answered.status == 404


def test_foreign_sender_is_refused(world: World, node: Node) -> None:
    """Who is no user of a served domain sends nothing through this proxy: 403, before any look-up."""
    mallory = Phone(world, "mallory", ("10.1.0.6", 5070), node, password="x")
    mallory.send(mallory.request("MESSAGE", f"sip:bob@{DOMAIN}", from_="<sip:m@elsewhere.example>;tag=1"))
    mallory.take_response(403)
    assert world.credentials.asked == []


def test_spoofed_from_is_refused(bob: Phone, alice: Phone) -> None:
    """RFC 3261 22.3: alice's password does not make her bob."""
    bob.register()
    request = alice.request("MESSAGE", f"sip:bob@{DOMAIN}", from_=f"<sip:bob@{DOMAIN}>;tag=1")
    answered = alice.ask(request)
    assert isinstance(answered, Response) and answered.status == 403


def test_replayed_credentials_are_stale(bob: Phone, alice: Phone) -> None:
    """RFC 7616 section 3.4: a nonce count is good once; the second use is challenged with stale=true."""
    bob.register()
    request = alice.request("MESSAGE", bob.aor)
    alice.send(request)
    again = alice.answer_challenge(request, alice.take_response(407))
    alice.send(again)
    bob.respond(bob.take_request("MESSAGE"), 200)
    alice.take_response(200)
    replay = again.copy()
    replay.set("Via", "SIP/2.0/UDP 10.1.0.1:5070;branch=z9hG4bK-replay;rport")
    alice.send(replay)
    assert "stale=true" in (alice.take_response(407).get("proxy-authenticate") or "")


def test_forged_route_token_is_refused(alice: Phone, bob: Phone) -> None:
    """Nobody makes the proxy send to a place of its own choosing: a Route that we did not write is 403."""
    bob.register()
    _, answered = call(alice, bob)
    bye = in_dialog(alice, "BYE", answered)
    forged = [value.replace("<sip:", "<sip:A", 1) for value in bye.get_all("route")]
    bye.set("Route", ", ".join(forged))
    alice.send(bye)
    alice.take_response(403)
    assert bob.quiet()


@pytest.mark.parametrize("further", ["", ", <sip:10.1.0.99;lr>"])
def test_route_token_of_another_call_is_refused(node: Node, alice: Phone, bob: Phone, further: str) -> None:
    """What one has seen in a call's Route is no way past the password, neither to its phone nor to anywhere else."""
    bob.register()
    _, answered = call(alice, bob)
    seen = in_dialog(alice, "BYE", answered).get_all("route")
    message = alice.request("MESSAGE", bob.aor)
    message.set("To", f"<{bob.aor}>;tag=made-up")
    message.set("Route", ", ".join(seen) + further)
    alice.send(message)
    alice.take_response(403)
    assert bob.quiet() and node.service.counters["refused_token"] == 1


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE", "ACK"])
def test_made_up_dialog_relays_nowhere(node: Node, alice: Phone, bob: Phone, method: str) -> None:
    """A To tag and a Route with our address do not make us carry a stranger's request to the Route after it."""
    host, port = node.address
    victim = f"{bob.address[0]}:{bob.address[1]}"
    forged = alice.request(method, f"sip:x@{victim}")
    forged.set("To", f"<sip:x@{victim}>;tag=made-up")
    forged.set("Route", f"<sip:{host}:{port};lr>, <sip:{victim};lr>")
    alice.send(forged)
    if method != "ACK":
        alice.take_response(403)
    assert bob.quiet()
    assert node.service.counters["ack_dropped" if method == "ACK" else "refused_token"] == 1


def test_node_may_not_assert_foreign_users(world: World, node: Node, far_bob: Phone) -> None:
    """Profile section 7: over a peer's connection a From needs a registrar's certificate, or the user's
    own.
    """
    far_bob.register()
    target = far_bob.node
    assert node.connector is not None
    request = Request(
        "MESSAGE",
        far_bob.aor,
        [
            ("Via", "SIP/2.0/TLS 10.9.0.1:5062;branch=z9hG4bK-x"),
            ("Max-Forwards", "69"),
            ("From", f"<sip:alice@{DOMAIN}>;tag=1"),
            ("To", f"<{far_bob.aor}>"),
            ("Call-ID", "x"),
            ("CSeq", "1 MESSAGE"),
        ],
    )
    for identity, passes in (
        (NodeIdentity(b"\1" * 16, f"x@peer.{DOMAIN}", False), False),
        (NodeIdentity(b"\1" * 16, f"carol@{DOMAIN}", False), False),
        (NodeIdentity(b"\1" * 16, f"alice@{DOMAIN}", False), True),
        (NodeIdentity(b"\1" * 16, f"x@registrar.{DOMAIN}", True), True),
    ):
        node.connector.pool.clear()
        target.connector.pool.clear()
        node.connector.identity = identity
        world.connectors[identity.node_id] = node.connector
        flow = _connected(node, target.node_id)
        request.set("Via", f"SIP/2.0/TLS 10.9.0.1:5062;branch=z9hG4bK-{identity.user}")
        flow.write(request.encode())
        world.settle()
        assert bool(far_bob.inbox) is passes, identity
        far_bob.inbox.clear()
    assert target.service.counters["refused_assertion"] == 2


def _connected(node: Node, node_id: bytes) -> object:
    results: list[object] = []
    Deferred.fromCoroutine(node.connector.connect(node_id)).addBoth(results.append)
    return results[0]


def test_phone_set_up_with_an_address_calls_other_nodes(alice: Phone, far_bob: Phone) -> None:
    """A phone that knows its node's address and no domain is asserted by its proven name (RFC 3325), also for its BYE;
    what a phone asserts itself is removed."""
    far_bob.register()
    alice.aor = "sip:alice@10.0.0.1"
    far_bob.aor = "sip:bob@10.0.0.1"
    invite, answered = call(alice, far_bob)
    assert invite.get("p-asserted-identity") == f"<sip:alice@{DOMAIN}>"
    alice.send(in_dialog(alice, "BYE", answered))
    far_bob.respond(far_bob.take_request("BYE"), 200)
    alice.take_response(200)
    alice.aor = f"sip:alice@{DOMAIN}"
    spoof = alice.request("MESSAGE", f"sip:bob@{DOMAIN}", [("P-Asserted-Identity", f"<sip:carol@{DOMAIN}>")])
    alice.send(spoof)
    alice.send(alice.answer_challenge(spoof, alice.take_response(407)))
    assert not far_bob.take_request("MESSAGE").has("p-asserted-identity")


def test_node_asks_in_vain_for_an_unknown_user(world: World, alice: Phone, far_bob: Phone) -> None:
    """Profile section 7: what a node sends is resolved in own bindings only; stale records are looked up
    afresh once.
    """
    far_bob.register()
    far_bob.node.table.drop(far_bob.aor, next(iter(world.location.entries[far_bob.aor])))
    request = alice.request("MESSAGE", far_bob.aor)
    answered = alice.ask(request)
    assert isinstance(answered, Response) and answered.status == 404
    assert alice.node.service.counters["relocated"] == 1


def test_lost_connection_is_430_between_nodes_and_480_for_phones(world: World, alice: Phone, far_bob: Phone) -> None:
    """RFC 5626 5.3: the flow of an outbound phone is gone; its owner says 430, and the caller hears 480."""
    far_bob.connect()
    contact = f'<{far_bob.contact}>;+sip.instance="<urn:uuid:00000000-0000-1000-8000-000000000001>";reg-id=1'
    assert far_bob.register(contact, headers=[("Supported", "path, outbound")]).get("require") == "outbound"
    far_bob.disconnect()
    request = alice.request("MESSAGE", far_bob.aor)
    answered = alice.ask(request)
    assert isinstance(answered, Response) and answered.status == 480
    assert any("430" in line for _, _, line in world.trace)


def test_unreachable_node_is_a_server_error(alice: Phone, far_bob: Phone) -> None:
    """RFC 3261 16.9: a node that can't be reached counts as 503, which is passed on as 500."""
    far_bob.register()
    alice.node.connector.refuse.add(far_bob.node.node_id)
    answered = alice.ask(alice.request("MESSAGE", far_bob.aor))
    assert isinstance(answered, Response) and answered.status == 500


def test_phone_over_tcp_is_called_over_its_connection(alice: Phone, bob: Phone) -> None:
    """RFC 3261 18.2.2, RFC 5923: a phone that registered over TCP gets calls and BYE over the same
    connection.
    """
    bob.connect()
    bob.register()
    invite, answered = call(alice, bob)
    assert invite.top_via.transport == "TCP"
    alice.send(in_dialog(alice, "BYE", answered))
    bob.respond(bob.take_request("BYE"), 200)
    alice.take_response(200)


def ringing(alice: Phone, far_bob: Phone) -> Request:
    """Alice, over TCP, calls bob at another node, whose phone rings: his INVITE."""
    far_bob.register()
    alice.connect()
    request = alice.request("INVITE", far_bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    alice.send(alice.answer_challenge(request, challenge))
    invite = far_bob.take_request("INVITE")
    far_bob.respond(invite, 180)
    alice.take_response(180)
    return invite


def test_caller_who_vanishes(alice: Phone, far_bob: Phone) -> None:
    """RFC 3261 16.10: where the caller's connection breaks and cannot be had anew, no phone is left ringing."""
    invite = ringing(alice, far_bob)
    alice.disconnect()
    far_bob.respond(far_bob.take_request("CANCEL"), 200)
    far_bob.respond(invite, 487)
    far_bob.take_request("ACK")
    assert not alice.node.service.statistics()["calls_open"]


def test_caller_whose_node_dies(alice: Phone, far_bob: Phone) -> None:
    """The same where a node is lost: its caller, or whoever stands in for it, begins anew."""
    ringing(alice, far_bob)
    alice.node.connector.die()
    far_bob.take_request("CANCEL")


def test_answer_over_another_connection(world: World, alice: Phone, far_bob: Phone) -> None:
    """RFC 3261 18.2.2: the answer to a request whose connection is gone goes over a new one to where its Via says."""
    world.listen_tcp.add(alice.address)
    invite = ringing(alice, far_bob)
    alice.disconnect()
    world.settle()
    far_bob.respond(invite, 200)
    assert alice.take_response(200).cseq.method == "INVITE"


def test_loop_is_detected(alice: Phone, node: Node) -> None:
    """RFC 5393 4.2: a request that comes back unchanged is 482."""
    from p2psipd.proto.sip.proxy import loop_tag

    request = alice.request("MESSAGE", f"sip:bob@{DOMAIN}")
    branch = f"z9hG4bKabc{loop_tag(request)}"
    request.add("Via", f"SIP/2.0/UDP 10.0.0.1:5060;branch={branch}")
    alice.send(request)
    alice.take_response(482)


@pytest.mark.parametrize(
    ("change", "status"),
    [(("Max-Forwards", "0"), 483), (("Proxy-Require", "magic"), 420)],
)
def test_requests_that_may_not_be_forwarded(alice: Phone, change: tuple[str, str], status: int) -> None:
    """RFC 3261 16.3: no hops left is 483, an unknown Proxy-Require is 420 with Unsupported."""
    request = alice.request("MESSAGE", f"sip:bob@{DOMAIN}")
    request.set(*change)
    alice.send(request)
    answered = alice.take_response(status)
    assert (answered.get("unsupported") == "magic") is (status == 420)


def test_unknown_scheme_is_416(alice: Phone) -> None:
    """RFC 3261 16.3 step 2: a Request-URI of a scheme that nobody here understands."""
    alice.send(alice.request("MESSAGE", "unknown:bob"))
    alice.take_response(416)


def test_garbage_is_answered_or_dropped(world: World, node: Node, alice: Phone) -> None:
    """Bytes that are no SIP leave no trace but a count; a broken request gets 400."""
    node.transports.datagram_in(alice.address, node.address, b"\xff" * 400)
    node.transports.datagram_in(alice.address, node.address, b"HELLO\r\n\r\n" * 20)
    assert alice.quiet()
    request = alice.request("MESSAGE", f"sip:bob@{DOMAIN}")
    request.remove("call-id")
    alice.send(request)
    alice.take_response(400)
    assert node.service.counters["malformed"] + node.service.counters["rejected"] == 3


def test_nothing_is_left_of_a_call(world: World, node: Node, alice: Phone, far_bob: Phone) -> None:
    """When its timers have run out, a call, a refused one and a message leave nothing but counters and the ladder."""
    far_bob.register()
    _, answered = call(alice, far_bob)
    alice.send(in_dialog(alice, "BYE", answered))
    far_bob.respond(far_bob.take_request("BYE"), 200)
    alice.take_response(200)
    alice.send(alice.request("INVITE", far_bob.aor))
    alice.ask(alice.request("MESSAGE", f"sip:nobody@{DOMAIN}"))
    world.pass_time(40.0, step=0.5)
    for service in (node.service, far_bob.node.service):
        statistics = service.statistics()
        assert (statistics["transactions_open"], statistics["transactions_lingering"]) == (0, 0), statistics
        assert (statistics["forks_open"], statistics["requests_waiting"]) == (0, 0), statistics


def test_cancel_while_the_user_is_looked_up(world: World, alice: Phone, bob: Phone) -> None:
    """RFC 3261 16.10: a CANCEL that comes before anybody was called ends the INVITE with 487, and nobody is called."""
    bob.register()
    waiting: list[Deferred[None]] = []
    bindings = world.location.bindings

    async def slow(aor: str, fresh: bool = False) -> object:
        waiting.append(Deferred())
        await waiting[-1]
        return await bindings(aor, fresh)

    world.location.bindings = slow  # type: ignore[method-assign, assignment]
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    again = alice.answer_challenge(request, challenge)
    alice.send(again)
    world.settle()
    cancel = Request("CANCEL", again.uri_text, [(n, v) for n, v in _lines(again) if n != "CSeq"])
    cancel.add("CSeq", f"{again.cseq.number} CANCEL")
    alice.send(cancel)
    alice.take_response(200)
    alice.take_response(487)
    waiting[0].callback(None)
    assert bob.quiet() and alice.quiet()


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_registrations_outlive_a_jump_of_the_clock(world: World, node: Node, bob: Phone, jump: float) -> None:
    """When the wall clock jumps, bindings keep the seconds that they have left: here, and in the overlay."""
    bob.register(expires=60)
    world.pass_time(10.0)
    world.epoch += jump
    (own,) = node.service.registrations()
    assert own["expires_in"] == pytest.approx(50, abs=1)
    world.pass_time(3.0)
    (stored,) = world.location.entries[bob.aor].values()
    assert stored.expires_at - world.wall() == pytest.approx(47 + 30, abs=1), "half a lifetime longer"
    world.pass_time(48.0)
    assert not node.service.registrations()


INSTANCE = '+sip.instance="<urn:uuid:00000000-0000-4000-8000-000000000001>"'


def test_phone_that_moved_on_is_called_where_it_is(world: World, alice: Phone, bob: Phone, far_bob: Phone) -> None:
    """A phone that registers at another node is called there from its old node too, which forgets it then."""
    bob.register(f"<{bob.contact}>;{INSTANCE}")
    world.pass_time(1.0)
    far_bob.cseq = bob.cseq
    assert far_bob.register(f"<{far_bob.contact}>;{INSTANCE}").status == 200
    invite, _ = call(alice, far_bob)
    assert invite.uri_text == far_bob.contact
    assert bob.quiet()
    assert not bob.node.service.registrations()


def test_phone_that_came_back_is_called_where_it_is(world: World, alice: Phone, bob: Phone, far_bob: Phone) -> None:
    """What another node stored before the phone registered here says nothing against it."""
    far_bob.register(f"<{far_bob.contact}>;{INSTANCE}")
    (old,) = world.location.entries[bob.aor].values()
    world.pass_time(1.0)
    bob.cseq = far_bob.cseq
    assert bob.register(f"<{bob.contact}>;{INSTANCE}").status == 200
    world.location.entries[bob.aor][old.key] = old
    invite, _ = call(alice, bob)
    assert invite.uri_text == bob.contact

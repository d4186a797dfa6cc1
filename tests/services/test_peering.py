"""Direct peering through the whole SIP service of an edge: what goes out, what comes in, and what fails on the way."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from uuid import UUID

import pytest
from twisted.logger import capturedLogs, formatEvent

from p2psipd.proto.identity.passport import parse_identity_header, read_full_token
from p2psipd.proto.peering.peers import Federation, PeerSettings
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.sip.locating import LocationUnavailable, NotLocated, Origin, Query
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.uri import SipUri, parse_uri
from p2psipd.services.peering.elsewhere import EdgesElsewhere
from tests.proto.dns_zone import finished

from .peering_border import Border, Elsewhere
from .sip_world import DOMAIN, Phone, in_dialog

BOB = "sip:bob@b.test"


def answer(server: Elsewhere, request: Request, status: int, **headers: str) -> Response:
    """A server answers."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if request.method == "INVITE" and status < 300:
        pairs.append(("Contact", "<sip:bob@b.test>"))
    response = make_response(request, status, to_tag="b", headers=pairs)
    server.send(response)
    return response


def branch(request: Request) -> str:
    return request.top_via.branch or ""


@pytest.mark.parametrize("failure", ["refused", "503", "silent", "lost"])
def test_peering_038_another_server_is_tried(failure: str) -> None:
    """After a refused connection, 503, or 32 s of silence the next server gets the same request in a new branch."""
    border = Border()
    border.first.refuses = failure == "refused"
    border.call(BOB, "MESSAGE" if failure == "silent" else "INVITE")
    tried = [border.second.take()] if failure == "refused" else [border.first.take()]
    if failure == "503":
        answer(border.first, tried[0], 503)
    elif failure == "silent":
        border.world.pass_time(33, 1.0)
    elif failure == "lost":
        flow = border.first.flow
        assert flow is not None
        flow.alive = False
        border.first.refuses = True
        border.connections.lost(flow)
    if failure == "refused":
        assert [hop.host for hop, _, _ in border.connections.dialled] == ["10.2.0.1", "10.2.0.2"]
        return
    again = border.second.take()
    assert branch(again) != branch(tried[0]) and again.cseq == tried[0].cseq
    assert again.call_id == tried[0].call_id and again.uri_text == tried[0].uri_text == BOB


@pytest.mark.parametrize("status", [404, 408, 486, 500, 603])
def test_peering_038_an_answer_is_an_answer(status: int) -> None:
    """Any final response but 503 ends the search, and after a 1xx a 408 of the other side does, too."""
    border = Border()
    border.call(BOB)
    invite = border.first.take()
    if status == 408:
        answer(border.first, invite, 180)
    answer(border.first, invite, status)
    assert border.second.quiet()
    final = border.alice.take()
    while isinstance(final, Response) and final.status < 200:
        final = border.alice.take()
    assert isinstance(final, Response) and final.status == status


def test_peering_038_a_failed_server_is_avoided() -> None:
    """The next request does not ask it first, until the 30 s of the blacklist are over."""
    border = Border()
    border.first.refuses = True
    border.call(BOB, "MESSAGE")
    answer(border.second, border.second.take(), 200)
    border.alice.take_response(200)
    border.first.refuses = False
    border.call(BOB, "MESSAGE")
    assert border.first.quiet()
    answer(border.second, border.second.take(), 200)
    border.alice.take_response(200)
    border.world.pass_time(40)
    border.call(BOB, "MESSAGE")
    assert border.first.take().method == "MESSAGE"


def test_peering_039_ack_and_cancel_go_where_the_invite_went() -> None:
    """Both go to the second server, over its connection and in the INVITE's branch, and neither is signed."""
    border = Border()
    border.first.refuses = True
    invite = border.call(BOB)
    sent = border.second.take()
    answer(border.second, sent, 180)
    border.alice.take_response(180)
    border.alice.send(
        Request(
            "CANCEL",
            invite.uri_text,
            [
                (name, invite.get(name) or "") for name in ("via", "max-forwards", "from", "to", "call-id")
            ] + [("CSeq", f"{invite.cseq.number} CANCEL")],
        )
    )  # fmt: skip
    border.alice.take_response(200)
    cancel = border.second.take()
    assert cancel.method == "CANCEL" and branch(cancel) == branch(sent) and not cancel.has("identity")
    answer(border.second, cancel, 200)
    answer(border.second, sent, 487)
    ack = border.second.take()
    assert ack.method == "ACK" and branch(ack) == branch(sent) and not ack.has("identity")
    assert border.first.quiet()
    border.alice.take_response(487)


def test_peering_040_all_servers_fail() -> None:
    """Where all said 503 the caller gets 500; an INVITE that nobody answered ends with 408, others with nothing."""
    border = Border()
    border.call(BOB)
    answer(border.first, border.first.take(), 503)
    answer(border.second, border.second.take(), 503)
    border.alice.take_response(500)
    silent = Border()
    silent.call(BOB)
    silent.world.pass_time(70, 1.0)
    silent.alice.take_response(408)
    silent = Border()
    silent.call(BOB, "MESSAGE")
    silent.world.pass_time(70, 1.0)
    assert silent.alice.quiet()


def test_peering_044_nobody_proves_to_be_the_domain() -> None:
    """Every connection refused: 502, nothing was sent."""
    border = Border()
    border.first.refuses = border.second.refuses = True
    border.call(BOB)
    assert border.alice.take_response(502).reason == "No Secure Connection"
    assert border.counters["route_502"] == 1 and border.counters["peer_unreachable"] == 2


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_peering_044_refused_after_the_handshake(method: str) -> None:
    """Under TLS 1.3 a peer refuses our certificate when the request is under way: the next server gets it, for a while
    it comes last, and where all refuse the caller gets 502, as if the handshake had failed.
    """

    def refuses(border: Border, server: Elsewhere) -> None:
        assert server.take().method == method
        flow, server.flow = server.flow, None
        assert flow is not None
        flow.alive = False
        border.connections.refused.add(flow)
        border.connections.lost(flow)

    border = Border()
    border.call(BOB, method)
    refuses(border, border.first)
    refuses(border, border.second)
    assert border.alice.take_response(502).reason == "No Secure Connection"
    border = Border()
    border.call(BOB, method)
    refuses(border, border.first)
    answer(border.second, border.second.take(), 404)
    border.alice.take_response(404)
    assert method == "MESSAGE" or border.second.take().method == "ACK"
    border.call(BOB, method)
    assert border.second.take().method == method and border.first.quiet()


def test_peering_053_the_sender_is_authenticated_first() -> None:
    """Who is not who the From says is refused 403, who proves nothing 407; nothing is looked up, nothing sent."""
    border = Border()
    border.zone.asked.clear()
    request = border.alice.request("MESSAGE", BOB, from_=f"<sip:bob@{DOMAIN}>;tag=1")
    got = border.alice.ask(request)
    assert isinstance(got, Response) and got.status == 403
    border.alice.send(border.alice.request("MESSAGE", BOB))
    border.alice.take_response(407)
    assert not border.zone.asked and not border.connections.dialled


def test_peering_054_a_foreign_from_is_not_sent() -> None:
    """Not even anonymous@anonymous.invalid: 403 for the caller."""
    border = Border()
    request = border.alice.request("MESSAGE", BOB, from_="<sip:anonymous@anonymous.invalid>;tag=1")
    got = border.alice.ask(request)
    assert isinstance(got, Response) and got.status == 403
    assert border.first.quiet() and border.second.quiet()


@pytest.mark.parametrize("uri", ["sip:2125551212", "sip:12ab"])
def test_peering_055_a_bad_number_is_not_sent(uri: str) -> None:
    """A From with user=phone that is no telephone-subscriber: 400 Bad From Number."""
    border = Border()
    border.alice.user = uri.removeprefix("sip:")
    border.world.credentials.passwords[border.alice.user] = "wonder"
    got = border.alice.ask(border.alice.request("MESSAGE", BOB, from_=f"<{uri}@{DOMAIN};user=phone>;tag=1"))
    assert isinstance(got, Response) and (got.status, got.reason) == (400, "Bad From Number")
    assert border.first.quiet()


NUMBER, OTHER = f"<sip:+12125551212@{DOMAIN};user=phone>;tag=1", f"<sip:+12125550000@{DOMAIN};user=phone>;tag=1"


@pytest.mark.parametrize(("user", "sender", "attest"), [("", "", "A"), ("", NUMBER, "A"), ("+12125550000", OTHER, "B")])
def test_peering_053_attestation_says_how_the_caller_was_known(user: str, sender: str, attest: str) -> None:
    """shaken: A for the caller's own address and a number that is hers by a signed alias, B for a number that she can
    only log in as; the origid is one UUID for all tries of a call, and another for the next call.
    """
    border = Border(settings=PeerSettings(shaken=True))
    if user:
        border.alice.user = user
        border.world.credentials.passwords[user] = "wonder"
    seen = []
    for _ in range(2):
        border.call(BOB, "MESSAGE", from_=sender)
        for server, status in ((border.first, 503), (border.second, 404)):
            request = server.take()
            token = read_full_token(parse_identity_header(request.get("identity") or ""))
            assert token.ppt == "shaken" and token.claims.attest == attest
            assert str(UUID(token.claims.origid)) == token.claims.origid
            seen.append(token.claims.origid)
            answer(server, request, status)
        border.alice.take_response(404)
        border.world.pass_time(40)
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_peering_053_only_owned_numbers_by_policy() -> None:
    """With numbers = "owned" a From number without an alias of the caller is 403; her own goes out as before."""
    border = Border(numbers="owned")
    border.call(BOB, "MESSAGE", from_=NUMBER)
    answer(border.first, border.first.take(), 404)
    border.alice.take_response(404)
    border.alice.user = "+12125550000"
    border.world.credentials.passwords[border.alice.user] = "wonder"
    got = border.alice.ask(border.alice.request("MESSAGE", BOB, from_=OTHER))
    assert isinstance(got, Response) and (got.status, got.reason) == (403, "Not Your Number")
    assert border.first.quiet() and border.second.quiet()


def test_peering_054_a_user_may_call_anonymously() -> None:
    """anonymous@ our domain goes out for any user who has proved to be one: signed, with attestation B, and nothing in
    it names the caller, who has its limits all the same; without the password there is no call.
    """
    border = Border(settings=PeerSettings(shaken=True))
    sender = f'"Anonymous" <sip:anonymous@{DOMAIN}>;tag=1'
    border.alice.contact = "sip:10.1.0.1:5070"
    border.call(BOB, from_=sender)
    sent = border.first.take()
    token = read_full_token(parse_identity_header(sent.get("identity") or ""))
    assert token.claims.attest == "B" and token.claims.orig.value == f"sip:anonymous@{DOMAIN}"
    users = [(route.uri.user or "").removeprefix("x.") for route in sent.record_routes if isinstance(route.uri, SipUri)]
    tokens = [urlsafe_b64decode(text + "=" * (-len(text) % 4)) for text in users]
    assert any(b"anonymous" in each for each in tokens)
    for written_by_the_phone in ("via", "call-id"):
        sent.remove(written_by_the_phone)
    assert all(b"alice" not in each for each in (sent.encode(), *tokens))
    assert border.node.service._calls._of_user["alice@overlay.example"] == 1
    border.alice.password = "guessed"
    got = border.alice.ask(border.alice.request("MESSAGE", BOB, from_=sender))
    assert isinstance(got, Response) and got.status == 407


def test_peering_060_option_tags_pass() -> None:
    """Require and Supported of the caller arrive as they were; we add none, and a 420 goes back to who asked."""
    border = Border()
    border.call(BOB, headers=[("Require", "100rel, foo"), ("Supported", "timer")])
    sent = border.first.take()
    assert sent.get_all("require") == ["100rel", "foo"] and sent.get_all("supported") == ["timer"]
    answer(border.first, sent, 420, Unsupported="foo")
    assert border.first.take().method == "ACK"
    assert border.alice.take_response(420).get("unsupported") == "foo"
    border.call(BOB, "MESSAGE")
    assert not border.first.take().has("require")


def test_peering_061_a_compact_token_is_repeated_in_full_once() -> None:
    """After 438 the same server gets the full form in a new branch, after another 438 the caller gets it."""
    border = Border()
    border.call(BOB, "MESSAGE")
    compact = border.first.take()
    assert (compact.get("identity") or "").startswith("..")
    answer(border.first, compact, 438)
    full = border.first.take()
    assert (full.get("identity") or "").startswith("ey") and branch(full) != branch(compact)
    answer(border.first, full, 438)
    border.alice.take_response(438)
    assert border.first.quiet() and border.second.quiet()


def test_peering_062_rfc_4320() -> None:
    """A request of a peer that is no INVITE gets no 1xx but 100, that after 3.5 s at most, and never a 408."""
    border = Border()
    border.first.send(border.foreign("MESSAGE"))
    message = border.alice.take_request("MESSAGE")
    border.alice.respond(message, 180)
    border.world.pass_time(3.4)
    assert border.first.quiet()
    border.world.pass_time(0.7)
    hundred = border.first.take(provisional=True)
    assert hundred.status == 100
    border.world.pass_time(70, 1.0)
    assert not any(isinstance(each, Response) and each.status == 408 for each in border.first.inbox)


def test_peering_065_some_calls_are_refused_though_all_is_published() -> None:
    """What the policy denies is refused case by case, on a connection that is open."""
    border = Border(accept_domains=["b.test", "c.test"], deny=["c.test"])
    border.first.send(border.foreign())
    border.alice.take_request("MESSAGE")
    border.other.send(border.foreign(domain="c.test"))
    refused = border.other.take()
    assert (refused.status, refused.reason) == (403, "Unsupported Peer")


def test_peering_072_a_reload_holds_on_open_connections() -> None:
    """The next request after it is judged by the new policy, without a new connection."""
    border = Border()
    border.first.send(border.foreign())
    message = border.alice.take_request("MESSAGE")
    border.alice.respond(message, 200)
    assert border.first.take().status == 200
    border.set_policy(accept_domains=[])
    border.first.send(border.foreign())
    assert border.first.take().status == 403
    border.set_policy()
    border.first.send(border.foreign())
    border.alice.take_request("MESSAGE")


def established(border: Border) -> tuple[Request, Response]:
    """A call from bob to alice."""
    invite = border.foreign("INVITE")
    border.first.send(invite)
    border.alice.respond(border.alice.take_request("INVITE"), 200)
    response = border.first.take()
    assert response.status == 200
    return invite, response


def within(border: Border, method: str, invite: Request, response: Response, number: int) -> Request:
    """A request of bob inside of the call."""
    border.alice.calls += 1
    lines = [
        ("Via", f"SIP/2.0/TLS n1.b.test;branch=z9hG4bKin{border.alice.calls}"),
        ("Max-Forwards", "70"),
        ("From", invite.get("from") or ""),
        ("To", response.get("to") or ""),
        ("Call-ID", invite.call_id),
        ("CSeq", f"{number} {method}"),
        *(("Route", value) for value in reversed(response.get_all("record-route"))),
    ]
    return Request(method, response.contacts[0].uri_text, lines)


def test_peering_087_a_route_is_no_licence_to_sign() -> None:
    """Inside a dialog nobody is asked for a password: our Route is good for the caller of its dialog alone, and gets
    nobody else's request signed or into ours, whoever has seen it.
    """
    border = Border()
    border.call(BOB)
    sent = border.first.take()
    (value,) = [each for each in sent.get_all("record-route") if "x." in each]
    answer(border.first, sent, 200, Record_Route=", ".join(sent.get_all("record-route")))
    response = border.alice.take_response(200)
    border.alice.send(in_dialog(border.alice, "ACK", response, sent.cseq.number))
    assert border.first.take().method == "ACK"
    eve = Phone(border.world, "eve", ("10.66.0.1", 5070), border.node)
    for sender, call_id in ((f"<sip:boss@{DOMAIN}>;tag=1", sent.call_id), (sent.get("from") or "", "other@call")):
        forged = [("Route", value)]
        eve.send(eve.request("MESSAGE", BOB, forged, to=f"<{BOB}>;tag=x", from_=sender, call_id=call_id))
        assert eve.take_response(403).reason == "Not Your Dialog"
    assert border.first.quiet()
    inward = border.foreign("MESSAGE", To=f"<sip:boss@{DOMAIN}>;tag=x", Call_ID=sent.call_id, Route=value)
    border.first.send(inward)
    assert border.first.take().reason == "Not Your Dialog"
    border.alice.send(in_dialog(border.alice, "BYE", response))
    assert border.first.take().method == "BYE"


def test_peering_090_the_next_response_says_which_identity_was_bad() -> None:
    """RFC 9410: the first response but 100 names the header that was bad beside a good one, the others do not; where
    all are bad the refusal names each.
    """
    border = Border()
    invite = border.foreign("INVITE")
    invite.prepend("Identity", "..AAAA;info=<https://b.test/dead>")
    border.first.send(invite)
    ringing = border.alice.take_request("INVITE")
    border.alice.respond(ringing, 180)
    reason = 'STIR;cause=436;text="Bad Identity Info";ppi="..AAAA"'
    assert border.first.take().get_all("reason") == [reason]
    border.alice.respond(ringing, 200)
    assert not border.first.take().has("reason")
    bad = border.foreign("MESSAGE")
    bad.set("Identity", "..AAAA;info=<https://b.test/dead>")
    bad.add("Identity", "..BBBB;info=<https://b.test/gone>")
    border.first.send(bad)
    assert border.first.take().get_all("reason") == [reason, reason.replace("AAAA", "BBBB")]


def test_peering_090_what_is_said_of_our_identity_stays_here() -> None:
    """RFC 9410 section 7: a Reason of STIR is counted and logged, and no phone of ours sees it; other Reasons pass."""
    border = Border()
    border.call(BOB)
    sent = border.first.take()
    said = 'STIR ;cause=436 ;text="Bad Identity Info" ;ppi="..x", Q.850;cause=16;text="Terminated"'
    answer(border.first, sent, 183, Reason=said)
    assert border.alice.take_response(183).get_all("reason") == ['Q.850;cause=16;text="Terminated"']
    answer(border.first, sent, 486, Reason='stir;cause=438;text="Invalid Identity Header"')
    assert not border.alice.take_response(486).has("reason")
    assert border.counters["identity_reported"] == 2


def test_peering_086_inside_a_dialog_our_route_decides() -> None:
    """Without our Route, with one that was made up, or with a foreign one on top: 403, and nothing moves."""
    border = Border()
    invite, response = established(border)
    border.first.send(within(border, "ACK", invite, response, 1))
    border.alice.take_request("ACK")
    for routes in (
        [],
        [f"<sip:x.AAAAAAAAAAAAAAAA@{DOMAIN};lr>"],
        ["<sip:c.test;lr>", *response.get_all("record-route")],
    ):
        bye = within(border, "BYE", invite, response, 2)
        bye.remove("route")
        for value in routes:
            bye.add("Route", value)
        border.first.send(bye)
        refused = border.first.take()
        assert (refused.status, refused.reason) == (403, "Unexpected Route"), routes
    assert border.alice.quiet()


def test_peering_087_a_dialog_belongs_to_its_peer() -> None:
    """Another domain that copies the dialog's requests gets 403; the peer itself ends the call."""
    border = Border(accept_domains=["b.test", "c.test"])
    invite, response = established(border)
    border.first.send(within(border, "ACK", invite, response, 1))
    border.alice.take_request("ACK")
    border.other.send(within(border, "BYE", invite, response, 2))
    stolen = border.other.take()
    assert (stolen.status, stolen.reason) == (403, "Not Your Dialog")
    border.other.send(within(border, "ACK", invite, response, 1))
    assert border.other.quiet() and border.alice.quiet()
    border.first.send(within(border, "BYE", invite, response, 3))
    border.alice.respond(border.alice.take_request("BYE"), 200)
    assert border.first.take().status == 200


def test_peering_088_not_authorised_is_unsupported_peer() -> None:
    """Exactly this line, for a request; no response at all to an ACK."""
    border = Border()
    border.other.send(border.foreign(domain="c.test"))
    assert border.other.take().encode().startswith(b"SIP/2.0 403 Unsupported Peer\r\n")
    border.other.send(border.foreign("ACK", domain="c.test"))
    assert border.other.quiet()
    assert [each["step"] for each in border.edge.refusals] == ["none", "none"]


def test_peering_092_both_directions_of_a_dialog_come_through_us() -> None:
    """Alice's BYE to bob takes our Route off and goes to his server; the Record-Route names our domain."""
    border = Border()
    border.call(BOB)
    sent = border.first.take()
    (value,) = [each for each in sent.get_all("record-route") if "x." in each]
    assert f"@{DOMAIN};lr" in value
    answer(border.first, sent, 200, Record_Route=", ".join(sent.get_all("record-route")))
    response = border.alice.take_response(200)
    border.alice.send(in_dialog(border.alice, "ACK", response, sent.cseq.number))
    assert border.first.take().method == "ACK"
    border.alice.send(in_dialog(border.alice, "BYE", response))
    bye = border.first.take()
    assert bye.method == "BYE" and not bye.has("route") and bye.has("identity")


def test_a_flood_of_refusals_does_not_fill_the_log() -> None:
    """Each is answered and counted; of one second 20 lines are written, then how many there were besides."""
    border = Border(accept_domains=[])
    with capturedLogs() as events:
        for _ in range(30):
            border.first.send(border.foreign())
            assert border.first.take().status == 403
        border.world.pass_time(1.0)
        border.first.send(border.foreign())
    lines = [formatEvent(event) for event in events if event["log_namespace"].endswith("PeeringEdge")]
    assert border.counters["refused_none"] == 31 and len(border.edge.refusals) == 31
    assert len(lines) == 22 and lines[20] == "10 more were refused within one second"


def test_peering_043_a_dialog_keeps_to_the_connection_that_is_open() -> None:
    """Of the servers of its Route a BYE takes the one that a connection is open to, though another comes first in the
    DNS; without one the first that did not fail of late.
    """
    border = Border()
    border.first.refuses = True
    border.call(BOB)
    sent = border.second.take()
    answer(border.second, sent, 200, Record_Route=f"<sip:b.test;lr>, {', '.join(sent.get_all('record-route'))}")
    response = border.alice.take_response(200)
    border.alice.send(in_dialog(border.alice, "ACK", response, sent.cseq.number))
    assert border.second.take().method == "ACK"
    border.first.refuses = False
    border.world.pass_time(40)
    border.alice.send(in_dialog(border.alice, "INFO", response))
    assert border.second.take().method == "INFO" and border.first.flow is None
    border.second.flow = None
    border.alice.send(in_dialog(border.alice, "BYE", response))
    assert border.first.take().method == "BYE"


def test_peering_094_our_domain_sends_through_another() -> None:
    """By a federation's entry a call to b.test goes to the servers of c.test, signed by us, its target unchanged."""
    border = Border(federations=[Federation(DOMAIN, ("c.test",))])
    border.call(BOB, "MESSAGE")
    sent = border.other.take()
    assert sent.uri_text == BOB and sent.has("identity") and border.first.quiet()
    assert [hop.domain for hop, _, _ in border.connections.dialled] == ["c.test"]


def test_peering_094_nobody_else_is_relayed() -> None:
    """What another domain sends us for a third one is 404, whoever it is from."""
    border = Border()
    request = border.foreign()
    request.set_uri("sip:carol@c.test")
    border.first.send(request)
    assert border.first.take().status == 404 and border.other.quiet()


def test_peering_095_another_domain_receives_for_us() -> None:
    """A domain of a federation that ends TLS for c.test hands on its requests: judged as c.test's by its Identity."""
    border = Border(accept_domains=["b.test"], federations=[Federation("c.test", ("b.test",))])
    border.first.send(border.foreign(domain="c.test"))
    asserted = border.alice.take_request("MESSAGE").get("p-asserted-identity") or ""
    assert "sip:bob@c.test" in asserted and "verstat=TN-Validation-Passed" in asserted
    border = Border(accept_domains=["b.test"])
    border.first.send(border.foreign(domain="c.test"))
    assert border.first.take().status == 403


# ---- nodes that are no edge --------------------------------------------------------------------------------------


class Directory:
    """Edges of the overlay; `broken` makes the look-up fail."""

    def __init__(self, *nodes: bytes) -> None:
        self.nodes, self.broken = list(nodes), False

    async def providers(self, namespace: str) -> list[bytes]:
        if self.broken:
            raise ReloadError("timeout")
        assert namespace == "peering"
        return list(self.nodes)


def elsewhere(*nodes: bytes) -> tuple[EdgesElsewhere, Directory]:
    directory = Directory(*nodes)
    step = EdgesElsewhere(directory, b"\1" * 16, [DOMAIN], lambda node: node == b"\2" * 16, ("112", "999"))  # type: ignore[arg-type]
    return step, directory


@pytest.mark.parametrize("uri", [BOB, "tel:+12125551212", "im:bob@b.test", "urn:service:sos"])
def test_peering_what_leaves_goes_to_an_edge(uri: str) -> None:
    """Other domains, numbers, messaging and emergency go to the edges that the overlay knows, as alternatives."""
    step, directory = elsewhere(b"\1" * 16, b"\2" * 16, b"\3" * 16)
    found = finished(step(Query(parse_uri(uri), Origin.PHONE, 0.0)))  # type: ignore[arg-type]
    assert found is not None
    # Itself it does not ask, and last the one that could lately not be reached.
    assert [each.node_id for each in found] == [b"\3" * 16, b"\2" * 16]
    assert len({each.instance for each in found}) == 1
    assert finished(step(Query(parse_uri(uri), Origin.NODE, 0.0))) is None  # type: ignore[arg-type]
    directory.broken = True
    with pytest.raises(LocationUnavailable):
        finished(step(Query(parse_uri(uri), Origin.PHONE, 0.0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uri", "helps"),
    [
        ("urn:service:sos", True),
        ("URN:service:sos.police", True),
        ("urn:service:sosonly", False),
        ("urn:service:counseling", False),
        ("tel:999;phone-context=+44", True),
        ("tel:9-9-9;phone-context=+44", True),
        ("tel:9991234;phone-context=+44", False),
        (f"sip:112@{DOMAIN}", True),
        (f"sip:1-1-2@{DOMAIN};user=phone", True),
        (f"sip:911@{DOMAIN}", False),
        ("sip:112@b.test", False),
    ],
)
def test_peering_008_an_emergency_elsewhere(uri: str, helps: bool) -> None:
    """A node that is no edge knows the emergency numbers of its own configuration; such calls go to an edge first."""
    step, directory = elsewhere(b"\2" * 16)
    assert step.is_emergency(parse_uri(uri)) is helps
    assert bool(finished(step.emergency(Query(parse_uri(uri), Origin.PHONE, 0.0)))) is helps  # type: ignore[arg-type]
    assert finished(step.emergency(Query(parse_uri(uri), Origin.PEER, 0.0))) is None  # type: ignore[arg-type]
    directory.nodes.clear()
    assert finished(step.emergency(Query(parse_uri(uri), Origin.PHONE, 0.0))) is None  # type: ignore[arg-type]


def test_peering_what_is_ours_stays() -> None:
    """An address of our domain is no edge's business; without an edge a dialog's request is 503."""
    step, directory = elsewhere(b"\2" * 16)
    assert finished(step(Query(SipUri.parse(f"sip:bob@{DOMAIN}"), Origin.PHONE, 0.0))) is None  # type: ignore[arg-type]
    directory.nodes.clear()
    bye = Request("BYE", BOB, [("Call-ID", "1"), ("CSeq", "1 BYE")])
    with pytest.raises(NotLocated) as caught:
        finished(step.along("x.abc", bye))  # type: ignore[arg-type]
    assert caught.value.status == 503

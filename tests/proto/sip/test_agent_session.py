"""The user agent inside a call: hold, glare, UPDATE, session timers, INFO; and its outbound registrations."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent import Agent
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.sdp import make_offer, parse_sdp
from p2psipd.proto.sip.transaction import MessageReceived, SendMessage, TransportFailed

from .test_agent import ALICE, BOB, Wire, dial, established, pair


def directions(wire: Wire, who: Address) -> list[tuple[bool, bool]]:
    """(sending, receiving) after each change that this side was told of."""
    return [(event.audio.sending, event.audio.receiving) for event in wire.of(who, io.CallChanged)]


def test_hold_and_resume() -> None:
    """The holder offers sendonly and hears nothing, the held side sends nothing; resuming mends both (RFC 3264 8.4)."""
    wire, call = established()
    wire.feed(ALICE, io.Hold(1))
    wire.run(0.5)
    assert directions(wire, ALICE) == [(True, False)]
    assert directions(wire, BOB) == [(False, True)]
    wire.feed(ALICE, io.Hold(1, False))
    wire.run(0.5)
    assert directions(wire, ALICE)[-1] == directions(wire, BOB)[-1] == (True, True)
    offers = [parse_sdp(m.body) for a, m in wire.sent if a == ALICE and isinstance(m, Request) and m.method == "INVITE"]
    assert [offer.version for offer in offers] == [1, 2, 3]
    assert len({offer.session_id for offer in offers}) == 1


def test_both_hold() -> None:
    """Who is held and holds as well offers inactive, and after one side resumes the other's hold remains."""
    wire, call = established()
    wire.feed(ALICE, io.Hold(1))
    wire.run(0.5)
    wire.feed(BOB, io.Hold(call))
    wire.run(0.5)
    assert directions(wire, ALICE)[-1] == directions(wire, BOB)[-1] == (False, False)
    wire.feed(ALICE, io.Hold(1, False))
    wire.run(0.5)
    assert directions(wire, BOB)[-1] == (True, False)
    wire.feed(BOB, io.Hold(call, False))
    wire.run(0.5)
    assert directions(wire, ALICE)[-1] == directions(wire, BOB)[-1] == (True, True)


def test_glare() -> None:
    """Crossing re-INVITEs get 491, and both are tried again: the callee within 2 s, the caller after 2.1 s (14.1)."""
    wire, call = established()
    wire.feed(ALICE, io.Hold(1))
    wire.feed(BOB, io.Hold(call))
    began = wire.now
    wire.run(0.1)
    assert wire.count(491) == 2
    wire.run(10)
    assert wire.now - began > 10
    assert directions(wire, ALICE)[-1] == directions(wire, BOB)[-1] == (False, False)


def test_a_refused_hold_leaves_the_call() -> None:
    """A re-INVITE that is refused changes nothing, and is told (RFC 3261 section 14.1)."""
    wire, call = established()

    def refuse(message: Request | Response) -> bool:
        if isinstance(message, Request) and message.method == "INVITE":
            reply = make_response(message, 488)
            wire.feed(ALICE, MessageReceived(Flow("UDP", BOB, ALICE), parse_message(reply.encode())))
            return True
        return False

    wire.lose = refuse
    wire.feed(ALICE, io.Hold(1))
    wire.run(1)
    assert wire.of(ALICE, io.ChangeRefused) == [io.ChangeRefused(1, 488, "Not Acceptable Here")]
    wire.lose = lambda message: False
    wire.feed(ALICE, io.Hold(1))
    wire.run(1)
    assert directions(wire, BOB) == [(False, True)]


def test_a_change_that_nobody_answers_ends_the_call() -> None:
    """No answer to a re-INVITE counts as 408 and ends the dialog (RFC 3261 section 12.2.1.2)."""
    wire, call = established()
    wire.lose = lambda message: isinstance(message, Request) and message.method == "INVITE"
    wire.feed(ALICE, io.Hold(1))
    wire.run(40)
    assert [event.cause for event in wire.of(ALICE, io.CallEnded)] == ["408 Request Timeout"]
    assert len(wire.of(BOB, io.CallEnded)) == 1


def inside(wire: Wire, method: str, headers: list[tuple[str, str]], body: bytes = b"", kind: str = "") -> Response:
    """A request of alice's phone in the call, sent to bob; bob's answer."""
    invite = next(message for _, message in wire.sent if isinstance(message, Request))
    answer = next(message for _, message in wire.sent if isinstance(message, Response) and message.status == 200)
    number = 100 + len(wire.sent)
    lines = [
        ("Via", f"SIP/2.0/UDP {ALICE[0]}:{ALICE[1]};branch=z9hG4bKin{number}"),
        ("Max-Forwards", "70"),
        ("From", invite.get("from") or ""),
        ("To", answer.get("to") or ""),
        ("Call-ID", invite.call_id),
        ("CSeq", f"{number} {method}"),
        *headers,
    ]
    request = Request(method, invite.uri_text, lines)
    if body:
        request.set_body(body, kind)
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), request))
    response = wire.sent[-1][1]
    assert isinstance(response, Response)
    return response


def test_update_with_an_offer() -> None:
    """UPDATE is answered at once with a session description, and the change is told (RFC 3311 section 5.2)."""
    wire, call = established()
    offer = make_offer(ALICE[0], 4100, 1, version=2, direction="sendonly").encode()
    response = inside(wire, "UPDATE", [("Contact", "<sip:alice@127.0.0.1:5071>")], offer, "application/sdp")
    assert response.status == 200
    assert parse_sdp(response.body).media[0].direction == "recvonly"
    assert [event.audio.port for event in wire.of(BOB, io.CallChanged)] == [4100]


def test_update_while_our_offer_is_open() -> None:
    """An offer that crosses ours is refused with 491, an UPDATE without one is not (RFC 3311 section 5.2)."""
    wire, call = established()
    wire.feed(BOB, io.Hold(call))
    offer = make_offer(ALICE[0], 4100, 1, version=2).encode()
    assert inside(wire, "UPDATE", [], offer, "application/sdp").status == 491
    assert inside(wire, "UPDATE", []).status == 200


@pytest.mark.parametrize(
    ("kind", "body", "status", "digits"),
    [
        ("application/dtmf-relay", b"Signal=5\r\nDuration=160\r\n", 200, "5"),
        ("application/dtmf-relay", b"Signal= *\nDuration= 250", 200, "*"),
        ("application/dtmf-relay", b"Signal=11\r\n", 200, "#"),
        ("application/dtmf", b"7", 200, "7"),
        ("application/dtmf-relay", b"Duration=160\r\n", 400, ""),
        ("application/dtmf-relay", b"Signal=\xff\r\n", 400, ""),
        ("text/plain", b"5", 415, ""),
        ("", b"", 200, ""),
    ],
)
def test_digits_in_info(kind: str, body: bytes, status: int, digits: str) -> None:
    """Keys in an INFO are told; a body of another type is 415, one without a key 400, none at all 200 (RFC 2976)."""
    wire, call = established()
    assert inside(wire, "INFO", [], body, kind).status == status
    assert "".join(event.digits for event in wire.of(BOB, io.DigitsReceived)) == digits


def test_info_and_update_outside_a_call() -> None:
    """Without a dialog both get 481."""
    wire, call = established()
    wire.feed(BOB, io.HangUp(call))
    wire.run(0.1)
    assert inside(wire, "INFO", []).status == inside(wire, "UPDATE", []).status == 481


# ---- session timers


def timed(seconds: int) -> tuple[Wire, int]:
    """A call of alice's, who asks for a session interval."""
    wire = Wire()
    wire.agent(ALICE, "alice", session_seconds=seconds)
    wire.agent(BOB, "bob")
    call = dial(wire)
    wire.feed(BOB, io.Answer(call, 4002))
    wire.run(0.2)
    return wire, call


def test_the_caller_refreshes_the_session() -> None:
    """The refresher sends UPDATE at half the interval, as long as the call lasts (RFC 4028 section 10)."""
    wire, call = timed(100)
    wire.run(49)
    assert wire.count("UPDATE") == 0
    wire.run(300)
    assert wire.count("UPDATE") == 6
    assert not wire.of(ALICE, io.CallEnded) and not wire.of(BOB, io.CallEnded)


def test_a_session_that_is_not_refreshed_ends() -> None:
    """Who waits for refreshes hangs up a third of the interval, at most 32 s, before its end (section 10)."""
    wire, call = timed(120)
    wire.lose = lambda message: isinstance(message, Request) and message.method == "UPDATE"
    wire.run(87)
    assert not wire.of(BOB, io.CallEnded)
    wire.run(3)
    assert [event.cause for event in wire.of(BOB, io.CallEnded)] == ["the session was not refreshed"]


def test_a_caller_that_takes_no_update_is_refreshed_by_reinvite() -> None:
    """When the interval was a proxy's wish and the caller knows no timer, the callee refreshes, by re-INVITE if it must
    (section 9, table 2)."""
    wire = pair()
    offer = make_offer(ALICE[0], 4000, 7).encode()
    lines = [
        ("Via", f"SIP/2.0/UDP {ALICE[0]}:{ALICE[1]};branch=z9hG4bKold"),
        ("Max-Forwards", "70"),
        ("From", "<sip:old@127.0.0.1>;tag=1"),
        ("To", "<sip:bob@127.0.0.2>"),
        ("Call-ID", "old"),
        ("CSeq", "1 INVITE"),
        ("Contact", "<sip:old@127.0.0.1:5071>"),
        ("Session-Expires", "100"),
    ]
    invite = Request("INVITE", "sip:bob@127.0.0.2:5072", lines)
    invite.set_body(offer, "application/sdp")
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), invite))
    wire.feed(BOB, io.Answer(-1, 4002))
    accepted = next(m for _, m in wire.sent if isinstance(m, Response) and m.status == 200)
    assert accepted.get("session-expires") == "100;refresher=uas"
    assert "timer" not in accepted.require
    via = ("Via", f"SIP/2.0/UDP {ALICE[0]};branch=z9hG4bKoldack")
    ack = Request("ACK", "sip:bob@127.0.0.2:5072", [via, *lines[1:5]])
    ack.set("To", accepted.get("to") or "")
    ack.add("CSeq", "1 ACK")
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), ack))
    assert wire.of(BOB, io.CallEstablished)
    wire.run(51)
    again = next(m for a, m in wire.sent if a == BOB and isinstance(m, Request) and m.method == "INVITE")
    assert parse_sdp(again.body) == parse_sdp(accepted.body)


def test_too_small_an_interval() -> None:
    """An interval below 90 s is refused with 422 and Min-SE (section 9), and asked for longer after a 422 (7.4)."""
    wire, call = established()
    response = inside(wire, "UPDATE", [("Session-Expires", "30"), ("Supported", "timer")])
    assert (response.status, response.get("min-se")) == (422, "90")
    wire = Wire()
    wire.agent(ALICE, "alice", session_seconds=90)
    wire.feed(ALICE, io.Invite(1, "sip:bob@127.0.0.2:5072", 4000))
    invite = wire.sent[0][1]
    assert isinstance(invite, Request)
    refusal = make_response(invite, 422, headers=[("Min-SE", "600")])
    wire.feed(ALICE, MessageReceived(Flow("UDP", BOB, ALICE), parse_message(refusal.encode())))
    again = [m for _, m in wire.sent if isinstance(m, Request) and m.method == "INVITE"][-1]
    assert (again.get("session-expires"), again.get("min-se"), again.cseq.number) == ("600", "600", 2)


# ---- outbound (RFC 5626)

EDGES: tuple[Address, Address] = (("127.0.0.3", 5060), ("127.0.0.4", 5060))
INSTANCE = "urn:uuid:00000000-0000-4000-8000-00000000000a"


class Edges:
    """Alice with flows to two edges; what she sends is answered at once."""

    def __init__(self) -> None:
        contact = f"sip:alice@{ALICE[0]}:{ALICE[1]};transport=tcp"
        aor = "sip:alice@overlay.example"
        settings = io.AgentSettings(aor, contact, ALICE[0], "alice", "secret", True, instance=INSTANCE)
        self.flows = [Flow("TCP", edge, ALICE) for edge in EDGES]
        self.agent = Agent(settings, self.flows[0], random.Random(4), self.flows[1:])
        self.now = 0.0
        self.registers: list[tuple[Address, Request]] = []
        self.others: list[tuple[Address, Request]] = []
        self.events: list[Any] = []
        self.pings: list[tuple[float, Address]] = []
        self.silent = False

    def feed(self, item: Any) -> None:
        self._take(self.agent.receive(item, self.now))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.agent.next_timer()) is not None and at <= end:
            self.now = max(at, self.now)
            self._take(self.agent.handle_timer(self.now))
        self.now = end

    def _take(self, outputs: list[Any]) -> None:
        for output in outputs:
            if isinstance(output, io.SendKeepAlive):
                self.pings.append((self.now, output.flow.remote))
                if not self.silent:
                    self.feed(io.KeepAliveAnswered(output.flow))
            elif not isinstance(output, SendMessage):
                self.events.append(output)
            else:
                request = parse_message(output.data)
                assert isinstance(request, Request)
                if request.method != "REGISTER":
                    self.others.append((output.flow.remote, request))
                    continue
                self.registers.append((output.flow.remote, request))
                contact = request.contacts[0].with_param("expires", "600")
                headers = [("Contact", str(contact)), ("Require", "outbound"), ("Flow-Timer", "30")]
                answer = make_response(request, 200, None, "r", headers)
                self.feed(MessageReceived(output.flow, parse_message(answer.encode())))


def test_two_registrations_of_one_instance() -> None:
    """Each edge gets a REGISTER with the same instance and a reg-id of its own (RFC 5626 section 4.2)."""
    edges = Edges()
    edges.feed(io.Register())
    assert [edge for edge, _ in edges.registers] == list(EDGES)
    contacts = [str(request.contacts[0]) for _, request in edges.registers]
    assert all(f'+sip.instance="<{INSTANCE}>"' in contact for contact in contacts)
    assert ["reg-id=1" in contacts[0], "reg-id=2" in contacts[1]] == [True, True]
    assert all({"outbound", "path"} <= set(request.supported) for _, request in edges.registers)
    assert len({request.call_id for _, request in edges.registers}) == 2


def test_keep_alives_follow_the_flow_timer() -> None:
    """A keep-alive leaves on each flow after 80 to 100 % of Flow-Timer, again and again (section 4.4)."""
    edges = Edges()
    edges.feed(io.Register())
    edges.run(300)
    for edge in EDGES:
        times = [0.0, *(at for at, remote in edges.pings if remote == edge)]
        gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
        assert len(gaps) >= 10 and all(24 <= gap <= 30 for gap in gaps)
        assert len(set(gaps)) > 5


def test_a_silent_flow_is_closed_and_registered_anew() -> None:
    """Without an answer within ten seconds the flow is closed and registered again (section 4.4.1)."""
    edges = Edges()
    edges.feed(io.Register())
    edges.silent = True
    edges.run(41)
    closed = [event.flow.remote for event in edges.events if isinstance(event, io.CloseFlow)]
    assert sorted(closed) == sorted(EDGES)
    edges.silent = False
    edges.run(3)
    assert sorted(edge for edge, _ in edges.registers[2:]) == sorted(EDGES)


def test_a_dead_edge_is_gone_around() -> None:
    """When the first flow is lost, requests go by the second, and the first is registered anew (section 4.3, 4.5)."""
    edges = Edges()
    edges.feed(io.Register())
    edges.feed(TransportFailed(edges.flows[0], None, "closed"))
    edges.feed(io.Invite(1, "sip:bob@overlay.example", 4000))
    assert edges.others[-1][0] == EDGES[1]
    assert edges.others[-1][1].contacts[0].uri == parse_message(edges.others[-1][1].encode()).contacts[0].uri
    assert ";ob" in str(edges.others[-1][1].contacts[0])
    edges.run(3)
    assert [edge for edge, _ in edges.registers].count(EDGES[0]) == 2
    edges.feed(io.Invite(2, "sip:bob@overlay.example", 4000))
    assert edges.others[-1][0] == EDGES[0]

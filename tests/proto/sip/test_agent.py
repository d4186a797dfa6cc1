"""The user agent core: two of them, or one and a registrar, on a virtual wire."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent import Agent
from p2psipd.proto.sip.digest import Algorithm, Credentials, challenges, ha1, verify
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.sdp import make_offer
from p2psipd.proto.sip.transaction import (
    MessageReceived,
    RequestReceived,
    SendMessage,
    SendResponse,
    TransactionLayer,
    TransportFailed,
)

ALICE: Address = ("127.0.0.1", 5071)
BOB: Address = ("127.0.0.2", 5072)
REGISTRAR: Address = ("127.0.0.3", 5060)
DELAY = 0.01


class Wire:
    """Datagrams between machines on a virtual clock; `lose(datagram)` says which don't arrive."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.machines: dict[Address, Any] = {}
        self.events: dict[Address, list[Any]] = {}
        self.sent: list[tuple[Address, Request | Response]] = []
        self.lose: Callable[[Request | Response], bool] = lambda message: False
        self._flying: list[tuple[float, int, Address, Address, bytes]] = []
        self._count = 0

    def add(self, address: Address, machine: Any) -> None:
        """Put a machine at an address."""
        self.machines[address] = machine
        self.events[address] = []

    def agent(self, address: Address, name: str, server: bool = False, **changes: Any) -> Agent:
        """Put a user agent at an address."""
        contact = f"sip:{name}@{address[0]}:{address[1]}"
        aor = f"sip:{name}@overlay.example" if server else contact
        setting = io.AgentSettings(aor, contact, address[0], name, "secret", server)._replace(**changes)
        flow = Flow("UDP", REGISTRAR if server else address, address)
        agent = Agent(setting, flow, random.Random(name))
        self.add(address, agent)
        return agent

    def feed(self, address: Address, item: object) -> None:
        """Hand an input to the machine there."""
        self._perform(address, self.machines[address].receive(item, self.now))

    def _perform(self, address: Address, outputs: list[Any]) -> None:
        for output in outputs:
            if not isinstance(output, SendMessage):
                self.events[address].append(output)
                continue
            message = parse_message(output.data)
            self.sent.append((address, message))
            if not self.lose(message):
                self._count += 1
                heapq.heappush(self._flying, (self.now + DELAY, self._count, address, output.flow.remote, output.data))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while True:
            timers = [(at, address) for address, m in self.machines.items() if (at := m.next_timer()) is not None]
            timer = min(timers, default=None)
            arrival = self._flying[0][0] if self._flying else None
            times = [at for at in (arrival, timer[0] if timer else None) if at is not None]
            if not times or min(times) > end:
                break
            if arrival is not None and arrival == min(times):
                self.now, _, source, target, data = heapq.heappop(self._flying)
                if target in self.machines:
                    self.feed(target, MessageReceived(Flow("UDP", source, target), parse_message(data)))
            elif timer is not None:
                self.now = max(self.now, timer[0])
                self._perform(timer[1], self.machines[timer[1]].handle_timer(self.now))
        self.now = end

    def of(self, address: Address, kind: type) -> list[Any]:
        """Events of one class that a machine has told."""
        return [event for event in self.events[address] if isinstance(event, kind)]

    def count(self, what: str | int) -> int:
        """How many requests of a method, or responses of a status, were sent."""
        return sum(
            what == (message.method if isinstance(message, Request) else message.status) for _, message in self.sent
        )


class Registrar:
    """Answers REGISTER with digest; everything else is refused with 404."""

    def __init__(self, password: str = "secret", granted: int = 100) -> None:
        self.password = password
        self.granted = granted
        self.least = 0
        self.seen: list[Request] = []
        self._layer = TransactionLayer(random.Random(9))

    def next_timer(self) -> float | None:
        return self._layer.next_timer()

    def handle_timer(self, now: float) -> list[Any]:
        return self._settle(self._layer.handle_timer(now), now)

    def receive(self, item: Any, now: float) -> list[Any]:
        return self._settle(self._layer.receive(item, now), now)

    def _settle(self, outputs: list[Any], now: float) -> list[Any]:
        sends = [output for output in outputs if isinstance(output, SendMessage)]
        for output in outputs:
            if isinstance(output, RequestReceived) and output.transaction is not None:
                self.seen.append(output.request)
                answer = self._answer(output.request)
                sends += self._layer.receive(SendResponse(output.transaction, answer), now)
        return [output for output in sends if isinstance(output, SendMessage)]

    def _answer(self, request: Request) -> Response:
        if request.method != "REGISTER":
            return make_response(request, 404, None, "r")
        given = request.get("authorization")
        secret = ha1(Algorithm.MD5, "alice", "overlay.example", self.password)
        if given is None or not verify(Credentials.parse(given), "REGISTER", secret):
            lines = challenges("overlay.example", f"nonce{len(self.seen)}", [Algorithm.MD5], False)
            return make_response(request, 401, None, "r", [("WWW-Authenticate", line) for line in lines])
        if (request.expires or 0) < self.least and request.expires:
            return make_response(request, 423, None, "r", [("Min-Expires", str(self.least))])
        expires = 0 if request.expires == 0 else max(self.granted, self.least)
        contact = request.contacts[0].with_param("expires", str(expires))
        return make_response(request, 200, None, "r", [("Contact", str(contact))] if expires else [])


def pair() -> Wire:
    """Alice and bob, who can call each other directly."""
    wire = Wire()
    wire.agent(ALICE, "alice")
    wire.agent(BOB, "bob")
    return wire


def dial(wire: Wire) -> int:
    """Alice calls bob; the number that bob's side gives the call."""
    wire.feed(ALICE, io.Invite(1, "sip:bob@127.0.0.2:5072", 4000))
    wire.run(0.1)
    incoming = wire.of(BOB, io.IncomingCall)
    assert [event.caller for event in incoming] == ["sip:alice@127.0.0.1:5071"]
    return int(incoming[0].call)


def established() -> tuple[Wire, int]:
    """A call that is up, and bob's number for it."""
    wire = pair()
    call = dial(wire)
    wire.feed(BOB, io.Answer(call, 4002))
    wire.run(0.2)
    assert wire.of(ALICE, io.CallEstablished)
    assert wire.of(BOB, io.CallEstablished)
    return wire, call


def test_a_call_is_set_up_and_ended_by_the_caller() -> None:
    """INVITE, 180, 200, ACK, BYE, 200; both sides know the other's audio address."""
    wire, call = established()
    assert [event.status for event in wire.of(ALICE, io.CallRinging)] == [180]
    heard = wire.of(ALICE, io.CallEstablished)[0].audio
    assert (heard.host, heard.port, heard.codec, heard.sending, heard.receiving) == (
        BOB[0],
        4002,
        "PCMU",
        True,
        True,
    )
    assert wire.of(BOB, io.CallEstablished)[0].audio.port == 4000
    wire.feed(ALICE, io.HangUp(1))
    wire.run(0.2)
    assert wire.of(ALICE, io.CallEnded) == [io.CallEnded(1, io.HUNG_UP_HERE, 200)]
    assert wire.of(BOB, io.CallEnded) == [io.CallEnded(call, io.HUNG_UP_THERE, 200)]


def test_the_callee_hangs_up() -> None:
    """BYE goes the other way as well."""
    wire, call = established()
    wire.feed(BOB, io.HangUp(call))
    wire.run(0.2)
    assert wire.of(ALICE, io.CallEnded) == [io.CallEnded(1, io.HUNG_UP_THERE, 200)]


def test_crossing_byes_end_the_call_once() -> None:
    """When both hang up in the same moment, each side is told once."""
    wire, call = established()
    wire.feed(ALICE, io.HangUp(1))
    wire.feed(BOB, io.HangUp(call))
    wire.run(1)
    assert len(wire.of(ALICE, io.CallEnded)) == len(wire.of(BOB, io.CallEnded)) == 1


def test_cancel_before_the_answer() -> None:
    """Hanging up while it rings is a CANCEL; the callee answers the INVITE with 487."""
    wire = pair()
    call = dial(wire)
    wire.feed(ALICE, io.HangUp(1))
    wire.run(1)
    assert wire.count("CANCEL") == wire.count(487) == 1
    assert wire.of(ALICE, io.CallEnded) == [io.CallEnded(1, io.CANCELLED, 487)]
    assert wire.of(BOB, io.CallEnded)[0].call == call


def test_an_answer_that_crosses_the_cancel_is_hung_up() -> None:
    """A 200 that comes after CANCEL was sent is acknowledged and ended by BYE (RFC 3261 section 9.1)."""
    wire = pair()
    call = dial(wire)
    wire.feed(ALICE, io.HangUp(1))
    wire.feed(BOB, io.Answer(call, 4002))
    wire.run(1)
    assert wire.of(ALICE, io.CallEnded) == [io.CallEnded(1, io.CANCELLED, 200)]
    assert wire.count("BYE") == 1
    assert len(wire.of(BOB, io.CallEnded)) == 1


@pytest.mark.parametrize("status", [404, 486, 603])
def test_refusals_are_told_with_their_status(status: int) -> None:
    """A refused call ends with the status that the callee gave."""
    wire = pair()
    wire.feed(BOB, io.Reject(dial(wire), status))
    wire.run(0.1)
    assert [event.status for event in wire.of(ALICE, io.CallEnded)] == [status]


def test_nobody_there() -> None:
    """A call to an address where nobody is ends after 64*T1 with 408."""
    wire = pair()
    wire.feed(ALICE, io.Invite(1, "sip:ghost@127.0.0.8", 4000))
    wire.run(33)
    assert [event.status for event in wire.of(ALICE, io.CallEnded)] == [408]


@pytest.mark.parametrize("target", ["nonsense", "sip:bob@host.example", "mailto:bob@x", "sip:bob@x>\r\nEvil: yes"])
def test_targets_that_cannot_be_called(target: str) -> None:
    """A target that is no URI, or has no address while there is no server, ends the call at once."""
    wire = pair()
    wire.feed(ALICE, io.Invite(1, target, 4000))
    assert len(wire.of(ALICE, io.CallEnded)) == 1
    assert not wire.sent


def test_the_answer_is_repeated_until_the_ack_comes() -> None:
    """2xx is sent again at T1, 2*T1, ... although its transaction is over (RFC 3261 section 13.3.1.4)."""
    wire = pair()
    call = dial(wire)
    wire.lose = lambda message: message.is_request and message.cseq.method == "ACK" and wire.now < 1004
    wire.feed(BOB, io.Answer(call, 4002))
    wire.run(10)
    assert wire.count(200) >= 3
    assert wire.of(BOB, io.CallEstablished)
    assert len(wire.of(ALICE, io.CallEstablished)) == 1


def test_without_an_ack_the_call_is_ended() -> None:
    """After 64*T1 without ACK the callee hangs up."""
    wire = pair()
    call = dial(wire)
    wire.lose = lambda message: isinstance(message, Request) and message.method == "ACK"
    wire.feed(BOB, io.Answer(call, 4002))
    wire.run(40)
    assert [event.cause for event in wire.of(BOB, io.CallEnded)] == ["no ACK came"]
    assert len(wire.of(ALICE, io.CallEnded)) == 1


def test_hanging_up_before_the_ack_waits_for_it() -> None:
    """The callee sends no BYE before the ACK has come (RFC 3261 section 15)."""
    wire = pair()
    call = dial(wire)
    wire.feed(BOB, io.Answer(call, 4002))
    wire.feed(BOB, io.HangUp(call))
    assert wire.count("BYE") == 0
    wire.run(1)
    assert wire.count("BYE") == 1
    assert len(wire.of(ALICE, io.CallEnded)) == 1


def reinvite(wire: Wire, port: int, direction: str, cseq: int = 5, body: bytes | None = None) -> None:
    """Alice's phone changes its audio, as many phones do for hold."""
    invite = next(message for address, message in wire.sent if isinstance(message, Request))
    answer = next(message for _, message in wire.sent if isinstance(message, Response) and message.status == 200)
    request = invite.copy()
    request.remove("Via")
    request.set("Via", f"SIP/2.0/UDP {ALICE[0]}:{ALICE[1]};branch=z9hG4bKre{cseq}")
    request.set("To", answer.get("to") or "")
    request.set("CSeq", f"{cseq} INVITE")
    offer = make_offer(ALICE[0], port, 1, version=2, direction=direction).encode()
    request.set_body(offer if body is None else body, "application/sdp")
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), request))
    ack = request.copy()
    ack.remove("Via")
    acked = Request("ACK", request.uri_text, [("Via", f"SIP/2.0/UDP {ALICE[0]};branch=z9hG4bKack{cseq}")])
    for name in ("From", "To", "Call-ID"):
        acked.add(name, request.get(name.lower()) or "")
    acked.add("CSeq", f"{cseq} ACK")
    acked.add("Max-Forwards", "70")
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), acked))


def test_a_reinvite_changes_the_audio() -> None:
    """Hold and another port are taken over once the ACK is there (RFC 3261 section 14.2)."""
    wire, call = established()
    reinvite(wire, 4100, "sendonly")
    changed = wire.of(BOB, io.CallChanged)
    assert [(event.audio.port, event.audio.sending, event.audio.receiving) for event in changed] == [
        (4100, False, True)
    ]


def test_a_reinvite_that_offers_nothing_usable_leaves_the_call() -> None:
    """488 to a re-INVITE changes nothing (RFC 3261 section 14.2)."""
    wire, call = established()
    reinvite(wire, 4100, "sendrecv", body=b"v=0\r\no=- 1 1 IN IP4 h\r\ns=-\r\nm=video 4 RTP/AVP 99\r\n")
    assert wire.count(488) == 1
    assert not wire.of(BOB, io.CallEnded)
    reinvite(wire, 4200, "sendrecv", cseq=6)
    assert wire.of(BOB, io.CallChanged)[0].audio.port == 4200


def test_requests_for_no_dialog_get_481() -> None:
    """BYE and re-INVITE with tags of a dialog that is not there are answered 481."""
    wire, call = established()
    wire.feed(ALICE, io.HangUp(1))
    wire.run(0.1)
    reinvite(wire, 4100, "sendrecv")
    assert wire.count(481) == 1


def test_text_and_options() -> None:
    """MESSAGE is told and answered 200, OPTIONS lists what is allowed."""
    wire = pair()
    wire.feed(ALICE, io.SendText(5, "sip:bob@127.0.0.2:5072", "grüß dich"))
    wire.feed(ALICE, io.SendOptions(6, "sip:bob@127.0.0.2:5072"))
    wire.run(0.2)
    assert wire.of(BOB, io.TextReceived) == [io.TextReceived("sip:alice@127.0.0.1:5071", "grüß dich")]
    assert sorted(event[:2] for event in wire.of(ALICE, io.RequestAnswered)) == [(5, 200), (6, 200)]
    options = next(m for _, m in wire.sent if isinstance(m, Response) and m.cseq.method == "OPTIONS")
    assert "INVITE" in options.allow


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("PUBLISH", [], b"", 405),
        ("OPTIONS", [("Require", "100rel")], b"", 420),
        ("MESSAGE", [("Content-Type", "text/html")], b"<p>", 415),
        ("MESSAGE", [("Content-Type", "text/plain")], b"x" * 20000, 513),
        ("INVITE", [("Contact", "<sip:a@127.0.0.1>"), ("Content-Type", "text/plain")], b"x", 415),
        ("INVITE", [("Contact", "<sip:a@127.0.0.1>"), ("Content-Type", "application/sdp")], b"x", 488),
        ("INVITE", [], b"", 400),
    ],
)
def test_what_a_phone_refuses(method: str, headers: list[tuple[str, str]], body: bytes, status: int) -> None:
    """What is not understood is answered with the status of RFC 3261 section 8.2, and nothing is told."""
    wire = pair()
    lines = [
        ("Via", "SIP/2.0/UDP 127.0.0.1:5071;branch=z9hG4bKx"),
        ("Max-Forwards", "70"),
        ("From", "<sip:x@x>;tag=1"),
        ("To", "<sip:bob@x>"),
        ("Call-ID", "c"),
        ("CSeq", f"1 {method}"),
        *headers,
    ]
    wire.feed(BOB, MessageReceived(Flow("UDP", ALICE, BOB), Request(method, "sip:bob@127.0.0.2", lines, body)))
    assert wire.count(status) == 1
    assert wire.events[BOB] == []


def with_registrar(registrar: Registrar) -> Wire:
    """Alice, and a registrar that she may register at."""
    wire = Wire()
    wire.add(REGISTRAR, registrar)
    wire.agent(ALICE, "alice", server=True)
    return wire


def test_registration_with_digest_and_refresh() -> None:
    """401 is answered with credentials, and the registration renewed at nine tenths of its time."""
    registrar = Registrar(granted=100)
    wire = with_registrar(registrar)
    wire.feed(ALICE, io.Register())
    wire.run(1)
    assert wire.of(ALICE, io.RegistrationChanged) == [io.RegistrationChanged(True, 200, "OK", 100)]
    assert [request.cseq.number for request in registrar.seen] == [1, 2]
    assert len({request.call_id for request in registrar.seen}) == 1
    wire.run(88)
    assert len(registrar.seen) == 2
    wire.run(3)
    assert len(registrar.seen) == 4
    wire.feed(ALICE, io.Unregister())
    wire.run(300)
    assert wire.of(ALICE, io.RegistrationChanged)[-1].registered is False
    assert len(registrar.seen) == 6


def test_a_wrong_password_is_not_tried_forever() -> None:
    """A second 401 without stale ends the attempt, and nothing is repeated by itself."""
    registrar = Registrar(password="other")
    wire = with_registrar(registrar)
    wire.feed(ALICE, io.Register())
    wire.run(4000)
    assert [event.status for event in wire.of(ALICE, io.RegistrationChanged)] == [401]
    assert len(registrar.seen) == 2


def test_too_brief_an_interval_is_asked_for_longer() -> None:
    """423 is answered with the registrar's Min-Expires (RFC 3261 section 10.2.8)."""
    registrar = Registrar()
    registrar.least = 3600
    wire = with_registrar(registrar)
    wire.feed(ALICE, io.Register())
    wire.run(1)
    assert wire.of(ALICE, io.RegistrationChanged) == [io.RegistrationChanged(True, 200, "OK", 3600)]


def test_a_silent_registrar_is_asked_again() -> None:
    """Without an answer the registration is reported lost and tried again, ever more seldom."""
    wire = Wire()
    wire.agent(ALICE, "alice", server=True)
    wire.feed(ALICE, io.Register())
    wire.run(400)
    told = wire.of(ALICE, io.RegistrationChanged)
    assert 3 <= len(told) <= 6
    assert {event.status for event in told} == {408}


def test_a_lost_connection_is_registered_anew() -> None:
    """When the connection to the registrar closes, a registered phone comes back within two seconds."""
    flow = Flow("TCP", REGISTRAR, ALICE)
    settings = io.AgentSettings("sip:alice@overlay.example", "sip:alice@127.0.0.1:5071", ALICE[0], "alice")
    agent = Agent(settings, flow, random.Random(1))
    agent.receive(TransportFailed(flow), 10.0)
    assert agent.next_timer() is None
    agent.receive(io.Register(), 20.0)
    told = agent.receive(TransportFailed(flow, None, "closed"), 30.0)
    assert told == [io.RegistrationChanged(False, 503, "closed")]
    again = agent.handle_timer(32.0)
    assert [parse_message(output.data).cseq.method for output in again if isinstance(output, SendMessage)] == [
        "REGISTER"
    ]


def test_too_many_calls() -> None:
    """Beyond max_calls incoming calls are busy and outgoing ones refused."""
    wire = Wire()
    wire.agent(ALICE, "alice", max_calls=3)
    wire.agent(BOB, "bob", max_calls=2)
    for number in (1, 2, 3, 4):
        wire.feed(ALICE, io.Invite(number, "sip:bob@127.0.0.2:5072", 4000))
    wire.run(0.2)
    assert sorted((event.call, event.status) for event in wire.of(ALICE, io.CallEnded)) == [
        (3, 486),
        (4, 486),
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(
        st.tuples(
            st.sampled_from([ALICE, BOB]),
            st.sampled_from(["dial", "answer", "reject", "hang up", "hold", "resume"]),
            st.sampled_from([0.0, 0.005, 0.015, 0.1, 1.0]),
        ),
        max_size=10,
    ),
)
def test_every_call_ends_on_both_sides(seed: int, steps: list[tuple[Address, str, float]]) -> None:
    """Under loss and whatever the users do, each call that is hung up in the end is told ended exactly
    once."""
    wire = pair()
    chance = random.Random(seed)
    wire.lose = lambda message: chance.random() < 0.2
    dialled = {ALICE: 0, BOB: 0}
    target = {ALICE: "sip:bob@127.0.0.2:5072", BOB: "sip:alice@127.0.0.1:5071"}
    for who, what, pause in steps:
        incoming = [event.call for event in wire.of(who, io.IncomingCall)]
        if what == "dial":
            dialled[who] += 1
            wire.feed(who, io.Invite(dialled[who], target[who], 4000))
        elif what == "hang up":
            for call in [*range(1, dialled[who] + 1), *incoming]:
                wire.feed(who, io.HangUp(call))
        elif what in ("hold", "resume"):
            for call in [*range(1, dialled[who] + 1), *incoming]:
                wire.feed(who, io.Hold(call, what == "hold"))
        else:
            for call in incoming:
                wire.feed(who, io.Answer(call, 4002) if what == "answer" else io.Reject(call))
        wire.run(pause)
    for _ in range(3):
        for who in (ALICE, BOB):
            incoming = [event.call for event in wire.of(who, io.IncomingCall)]
            for call in [*range(1, dialled[who] + 1), *incoming]:
                wire.feed(who, io.HangUp(call))
        wire.run(120)
    for who in (ALICE, BOB):
        started = [*range(1, dialled[who] + 1), *(event.call for event in wire.of(who, io.IncomingCall))]
        assert sorted(event.call for event in wire.of(who, io.CallEnded)) == sorted(started)
        assert wire.machines[who].next_timer() is None

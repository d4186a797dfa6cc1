"""Forks as the proxy suite of reSIProcate tries them: parallel, by q and mixed, CANCEL races, losses, redirects."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from p2psipd.proto.sip.message import Request, Response

from .sip_world import DOMAIN, Node, Phone, World, ack_for, in_dialog


class Device(Phone):
    """A phone that does by itself what its plan says: "180 486@2" is 180 at once and 486 two seconds after the INVITE.

    It honours a CANCEL, unless the plan says "deaf". A status with a name, "302=carol", redirects to that user.
    """

    def __init__(self, world: World, name: str, number: int, node: Node, plan: str, user: str = "bob") -> None:
        super().__init__(world, user, ("10.1.0.2", 6000 + number), node)
        self.name = name
        self.deaf = "deaf" in plan
        self.steps = [step.partition("@")[::2] for step in plan.split() if step != "deaf"]
        self.due: list[tuple[float, Request, str]] = []
        self.invited_at: float | None = None
        self.cancelled = False
        self.final = 0
        self.acks = 0

    def act(self) -> None:
        """Take what came, and do what is due."""
        now = self.world.clock.seconds()
        while self.inbox:
            message = self.inbox.popleft()
            if isinstance(message, Response):
                continue
            if message.method == "INVITE" and self.invited_at is None:
                self.invited_at, self.invite = now, message
                self.due = [(now + float(delay or 0), message, what) for what, delay in self.steps]
            elif message.method == "CANCEL":
                self.cancelled = True
                self.respond(message, 200)
                if not self.deaf and not self.final:
                    self.due = [(now, self.invite, "487")]
            elif message.method == "ACK":
                self.acks += 1
        for at, invite, what in [each for each in self.due if each[0] <= now]:
            self.due.remove((at, invite, what))
            status, _, other = what.partition("=")
            headers = [("Contact", f"<sip:{other}@{DOMAIN}>")] if other else []
            self.final = int(status) if int(status) >= 200 else self.final
            self.respond(invite, int(status), headers)


class Case(NamedTuple):
    """Phones of bob as "q: plan", and what alice and they are to see.

    `answer` is alice's final status (the first, should there be more), `invited` the phones that got the INVITE in
    that order with the second in which they did, `cancelled` those that got a CANCEL. `gives_up` is when alice
    sends CANCEL.
    """

    name: str
    devices: tuple[str, ...]
    answer: int
    invited: str
    cancelled: str = ""
    gives_up: float | None = None


CASES = (
    Case("one answers, the other is cancelled", ("1: 180 200@1", "1: 180"), 200, "a0 b0", "b"),
    Case("a refusal waits for the others", ("1: 486", "1: 180 200@2"), 200, "a0 b0"),
    Case("the lowest of 4xx", ("1: 486", "1: 180 404@1"), 404, "a0 b0"),
    Case("a client error is better than a server's", ("1: 503", "1: 486@1"), 486, "a0 b0"),
    Case("503 goes up as 500", ("1: 503", "1: 503@1"), 500, "a0 b0"),
    Case("a redirect is better than a refusal", ("1: 486", "1: 302@1"), 302, "a0 b0"),
    Case("6xx ends the others", ("1: 603@1", "1: 180"), 603, "a0 b0", "b"),
    Case("2xx before 6xx", ("1: 180 603@2", "1: 180 200@1"), 200, "a0 b0", "a"),
    Case("6xx, and yet somebody answers", ("1: 603@1", "1: 180 200@2 deaf"), 200, "a0 b0", "b"),
    Case("a dead phone keeps nobody from answering", ("1:", "1: 180 200@3"), 200, "a0 b0", ""),
    Case("a dead phone and a refusal", ("1:", "1: 486"), 486, "a0 b0"),
    Case("three at once", ("1: 180", "1: 180", "1: 180 200@4"), 200, "a0 b0 c0", "ab"),
    Case("lower q after a refusal", ("1: 486@2", "0.5: 180 200@1"), 200, "a0 b2"),
    Case("lower q is not reached", ("1: 180 200@2", "0.5: 200"), 200, "a0"),
    Case("lower q is not tried after 6xx", ("1: 600@1", "0.5: 200"), 600, "a0"),
    Case("lower q after two refusals", ("1: 486", "1: 480@3", "0.5: 180 404"), 404, "a0 b0 c3"),
    Case("lower q when the turn is over", ("1: 180", "0.5: 180 200@1"), 200, "a0 b30", "a"),
    Case("three turns", ("0.2: 200", "0.9: 500@1", "0.5: 486@1"), 200, "b0 c1 a2"),
    Case("lower q after a dead phone", ("1:", "0.5: 200"), 200, "a0 b30", ""),
    Case("the caller gives up", ("1: 180", "1: 180"), 487, "a0 b0", "ab", 2.0),
    Case("the caller gives up before lower q", ("1: 180", "0.5: 200"), 487, "a0", "a", 2.0),
    Case("answer and CANCEL cross", ("1: 180 200@2 deaf",), 200, "a0", "", 2.0),
    Case("a phone that ignores CANCEL", ("1: 180 deaf",), 487, "a0", "a", 2.0),
    Case("the caller gives up at a dead phone", ("1:",), 487, "a0", "", 2.0),
)


class Stage:
    """Alice, bob's devices, and what happened."""

    def __init__(self, world: World, node: Node, alice: Phone, devices: list[Device]) -> None:
        self.world, self.node, self.alice, self.devices = world, node, alice, devices
        self.finals: list[int] = []
        self.answer: Response | None = None
        self.asked: Request | None = None

    def call(self, uri: str) -> None:
        """Alice's INVITE, past the challenge."""
        request = self.alice.request("INVITE", uri)
        self.alice.send(request)
        challenge = self.alice.take_response(407)
        self.alice.send(ack_for(request, challenge))
        self.asked = self.alice.answer_challenge(request, challenge)
        self.began = self.world.clock.seconds()
        self.alice.send(self.asked)

    def run(self, seconds: float, gives_up: float | None = None) -> None:
        """Let time pass; alice acknowledges what she gets."""
        assert self.asked is not None
        end = self.began + seconds
        while self.world.clock.seconds() < end:
            self.world.settle()
            for device in self.devices:
                device.act()
            self.world.settle()
            if gives_up is not None and self.world.clock.seconds() >= self.began + gives_up:
                gives_up = None
                self.alice.send(_cancel_of(self.asked))
                self.world.settle()
            self._listen()
            self.world.clock.advance(0.25)
        self.world.settle()
        self._listen()

    def _listen(self) -> None:
        assert self.asked is not None
        while self.alice.inbox:
            message = self.alice.inbox.popleft()
            if isinstance(message, Response) and message.status >= 200 and message.cseq.method == "INVITE":
                self.finals.append(message.status)
                if message.status < 300:
                    self.answer = message
                    self.alice.send(in_dialog(self.alice, "ACK", message, self.asked.cseq.number))
                else:
                    self.alice.send(ack_for(self.asked, message))


def _cancel_of(request: Request) -> Request:
    names = ("Via", "Max-Forwards", "From", "To", "Call-ID")
    made = Request("CANCEL", request.uri_text, [(name, request.get(name) or "") for name in names])
    made.add("CSeq", f"{request.cseq.number} CANCEL")
    return made


def stage_of(plans: tuple[str, ...], **settings: object) -> Stage:
    """Bob's devices are registered with the q of their plans."""
    world = World(alice="wonder", bob="builder", carol="singer")
    node = Node(world, 1, "10.0.0.1", settings=settings)
    alice = Phone(world, "alice", ("10.1.0.1", 5070), node)
    devices = []
    for number, text in enumerate(plans):
        q, _, plan = text.partition(":")
        q, _, user = q.partition(" ")
        device = Device(world, "abcdefgh"[number], number, node, plan, user or "bob")
        assert device.register(f"<{device.contact}>;q={q}").status == 200
        devices.append(device)
    return Stage(world, node, alice, devices)


def invited(stage: Stage) -> str:
    times = {each.name: each.invited_at - stage.began for each in stage.devices if each.invited_at is not None}
    return " ".join(f"{name}{times[name]:.0f}" for name in sorted(times, key=lambda each: (times[each], each)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_fork(case: Case) -> None:
    """RFC 3261 16.6, 16.7, 16.10: who is asked when, whom the caller hears, who is cancelled; and nothing is left."""
    stage = stage_of(case.devices)
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(70.0, case.gives_up)
    assert stage.finals[0] == case.answer
    assert set(stage.finals) == {case.answer}, "one outcome"
    assert invited(stage) == case.invited
    assert "".join(each.name for each in stage.devices if each.cancelled) == case.cancelled
    for device in stage.devices:
        assert device.acks > 0 or not device.final, "every final response is acknowledged"
    stage.world.pass_time(70.0, step=1.0)
    statistics = stage.node.service.statistics()
    assert (statistics["transactions_open"], statistics["forks_open"]) == (0, 0)
    assert statistics["calls_open"] == (case.answer == 200)


@pytest.mark.parametrize("lost", [b"SIP/2.0 180", b"SIP/2.0 200 OK", b"INVITE", b"ACK", b"SIP/2.0 486"])
@pytest.mark.parametrize("plan", ["180 200@1 200@1.5 200@2.5", "180 486@1 486@1.5 486@2.5"])
def test_first_of_each_kind_is_lost(lost: bytes, plan: str) -> None:
    """17.1, 17.2: whichever message is lost once on the way, the call has the same outcome."""
    stage = stage_of((f"1: {plan}",))
    gone: list[bytes] = []

    def lose(data: bytes) -> bool:
        if data.startswith(lost) and len([each for each in gone if each == data[:40]]) < 1:
            gone.append(data[:40])
            return True
        return False

    stage.call(f"sip:bob@{DOMAIN}")
    stage.world.lose = lose
    # Alice repeats what she sends over UDP, as her transaction layer would.
    for _ in range(2):
        assert stage.asked is not None
        stage.alice.send(stage.asked)
        stage.run(stage.world.clock.seconds() - stage.began + 1.0)
    stage.run(40.0)
    assert set(stage.finals) == {200 if "200" in plan else 486}
    assert stage.devices[0].acks > 0


def test_redirect_to_another_user_is_followed() -> None:
    """16.5: a phone that redirects to a user of ours makes that user's phone ring; the caller sees no 302."""
    stage = stage_of(("1: 302=carol@1", "1 carol: 180 200@1"))
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(5.0)
    assert stage.finals == [200] and invited(stage) == "a0 b1"


def test_redirects_in_a_circle_end() -> None:
    """16.5: nobody is asked twice; the redirect that leads nowhere new is the answer."""
    stage = stage_of(("1: 302=carol", "1 carol: 302=bob"))
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(5.0)
    assert stage.finals == [302] and invited(stage) == "a0 b0"


def test_redirect_to_nobody() -> None:
    """A redirect to a user of ours who is not there is 480, as if that user had been called."""
    stage = stage_of(("1: 302=carol",))
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(5.0)
    assert stage.finals == [480]


def test_redirect_is_the_callers_business_where_the_operator_says_so() -> None:
    """With `recurse` off, and for targets outside, the 302 goes to the caller with its Contact."""
    stage = stage_of(("1: 302=carol", "1 carol: 200"), recurse=False)
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(5.0)
    assert stage.finals == [302] and invited(stage) == "a0"


@pytest.mark.parametrize(
    ("plans", "answer", "seen"),
    [
        (("1: 305=carol",), 480, "a0"),
        (("1: 305=carol@1", "1: 404@2"), 404, "a0 b0"),
        (("1: 305=carol@1", "0.5: 200"), 200, "a0 b1"),
        (("1: 380=carol", "1 carol: 200"), 380, "a0"),
    ],
)
def test_nobody_is_sent_to_another_proxy(plans: tuple[str, ...], answer: int, seen: str) -> None:
    """21.3.4: a 305 names a proxy and no user, so it is not followed, nor passed on: it counts as 480. The Contact of a
    380 means nothing and is not followed either.
    """
    stage = stage_of(plans)
    stage.call(f"sip:bob@{DOMAIN}")
    stage.run(5.0)
    assert stage.finals == [answer] and invited(stage) == seen


def test_breadth_is_divided() -> None:
    """RFC 5393 5.3.3: the branches share Max-Breadth; what does not fit waits for a branch to end."""
    stage = stage_of(("1: 486@2", "1: 486@3", "1: 486@1"))
    request = stage.alice.request("INVITE", f"sip:bob@{DOMAIN}", [("Max-Breadth", "2")])
    stage.alice.send(request)
    challenge = stage.alice.take_response(407)
    stage.alice.send(ack_for(request, challenge))
    stage.asked, stage.began = stage.alice.answer_challenge(request, challenge), stage.world.clock.seconds()
    stage.alice.send(stage.asked)
    stage.world.settle()
    breadths = [
        message.get("max-breadth")
        for device in stage.devices
        for message in device.inbox
        if isinstance(message, Request) and message.method == "INVITE"
    ]
    assert breadths == ["1", "1"]
    stage.run(8.0)
    assert stage.finals == [486] and invited(stage) == "a0 b0 c2"


def test_rfc2543_caller(world_of_two: tuple[World, Phone, Phone]) -> None:
    """17.2.3: a caller without the magic cookie is answered, and its ACKs end the retransmissions."""
    world, alice, bob = world_of_two
    request = alice.request("INVITE", bob.aor)
    request.set("Via", "SIP/2.0/UDP 10.1.0.1:5070;branch=1")
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    world.pass_time(5.0, step=0.5)
    assert alice.quiet(), "the 407 was acknowledged"
    again = alice.answer_challenge(request, challenge)
    again.set("Via", "SIP/2.0/UDP 10.1.0.1:5070")
    alice.send(again)
    alice.send(again)
    invite = bob.take_request("INVITE")
    assert bob.quiet(), "a retransmission is no new call"
    bob.respond(invite, 486)
    alice.send(ack_for(again, alice.take_response(486)))
    world.pass_time(5.0, step=0.5)
    assert alice.quiet()


@pytest.fixture
def world_of_two() -> tuple[World, Phone, Phone]:
    world = World()
    node = Node(world, 1, "10.0.0.1")
    bob = Phone(world, "bob", ("10.1.0.2", 5070), node)
    bob.register()
    return world, Phone(world, "alice", ("10.1.0.1", 5070), node), bob


@pytest.mark.parametrize("listens", [True, False])
def test_large_request_goes_over_tcp(world_of_two: tuple[World, Phone, Phone], listens: bool) -> None:
    """18.1.1: above 1300 octets the next hop is tried over TCP first, and where there is none, over UDP."""
    world, alice, bob = world_of_two
    if listens:
        world.listen_tcp.add(bob.address)
    request = alice.request("MESSAGE", bob.aor, [("Content-Type", "text/plain")], body=b"x" * 1200)
    alice.send(request)
    alice.send(alice.answer_challenge(request, alice.take_response(407)))
    message = bob.take_request("MESSAGE")
    assert message.vias[0].transport == ("TCP" if listens else "UDP")


def test_session_timer_headers_pass(world_of_two: tuple[World, Phone, Phone]) -> None:
    """RFC 4028 8.1: a proxy without wishes of its own leaves Session-Expires and Min-SE alone, and passes a 422 on."""
    _, alice, bob = world_of_two
    wanted = [("Session-Expires", "100;refresher=uac"), ("Min-SE", "90"), ("Supported", "timer")]
    request = alice.request("INVITE", bob.aor, wanted)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    alice.send(alice.answer_challenge(request, challenge))
    invite = bob.take_request("INVITE")
    assert [(name, invite.get(name)) for name, _ in wanted] == wanted
    bob.respond(invite, 422, [("Min-SE", "120")])
    assert alice.take_response(422).get("min-se") == "120"


@pytest.mark.parametrize(("breadth", "status"), [("0", 440), ("x", 400)])
def test_bad_breadth(world_of_two: tuple[World, Phone, Phone], breadth: str, status: int) -> None:
    """RFC 5393 5.3.1: Max-Breadth is a positive integer; nothing left of it is 440."""
    _, alice, bob = world_of_two
    alice.send(alice.request("INVITE", bob.aor, [("Max-Breadth", breadth)]))
    alice.take_response(status)

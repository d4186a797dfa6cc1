"""Calls as the SIP service counts them: limits, overload, drain, redirects, and who is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2psipd.proto.sip.calls import Call
from p2psipd.proto.sip.edge import Admitted
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.limits import LimitSettings
from p2psipd.proto.sip.locating import DomainIdentity, NodeIdentity, Query, Target, decode_gr, encode_gr
from p2psipd.proto.sip.message import Request, Response, parse_message
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import SipUri
from p2psipd.services.sip.call_book import CallLimits
from p2psipd.services.sip.load import Load

from .sip_world import DOMAIN, MemoryFlow, Node, Phone, World, ack_for, in_dialog, in_dialog_of_callee


class Diary:
    """A CallObserver that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.calls: list[Call] = []

    def began(self, call: Call) -> None:
        self.lines.append("began")
        self.calls.append(call)

    def ringing(self, call: Call) -> None:
        self.lines.append("ringing")

    def answered(self, call: Call) -> None:
        self.lines.append("answered")

    def ended(self, call: Call) -> None:
        self.lines.append(f"ended {call.cause}")


def phones(world: World, node: Node) -> tuple[Phone, Phone]:
    """Alice, and bob, who is registered."""
    bob = Phone(world, "bob", ("10.1.0.2", 5070), node)
    assert bob.register().status == 200
    return Phone(world, "alice", ("10.1.0.1", 5070), node), bob


def invite(alice: Phone, uri: str) -> Request:
    """Alice's INVITE, past the challenge."""
    request = alice.request("INVITE", uri)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    again = alice.answer_challenge(request, challenge)
    alice.send(again)
    return again


def answered_call(alice: Phone, bob: Phone) -> Response:
    """A call that stands."""
    asked = invite(alice, bob.aor)
    bob.respond(bob.take_request("INVITE"), 200, [("Session-Expires", "120;refresher=uac")])
    answer = alice.take_response(200)
    alice.send(in_dialog(alice, "ACK", answer, asked.cseq.number))
    bob.take_request("ACK")
    return answer


def test_observer_of_a_call() -> None:
    """Began, ringing, answered, ended: each once, with who, where and when; a BYE of either side ends it."""
    world, diary = World(), Diary()
    node = Node(world, 1, "10.0.0.1", observers=(diary,))
    alice, bob = phones(world, node)
    asked = invite(alice, bob.aor)
    at_bob = bob.take_request("INVITE")
    world.pass_time(1.0)
    bob.respond(at_bob, 180)
    bob.respond(at_bob, 180)
    world.pass_time(1.0)
    bob.respond(at_bob, 200)
    bob.respond(at_bob, 200)
    world.settle()
    alice.inbox.clear()
    assert diary.lines == ["began", "ringing", "answered"]
    (call,) = diary.calls
    assert (call.caller, call.callee, call.user, call.identity) == (alice.aor, bob.aor, f"alice@{DOMAIN}", "digest")
    assert (call.came_on.remote, call.went_on.remote, call.target) == (alice.address, bob.address, bob.contact)
    assert (call.ringing_at - call.began_at, call.answered_at - call.began_at) == (pytest.approx(1), pytest.approx(2))
    bob.inbox.clear()
    bob.send(in_dialog_of_callee(bob, "BYE", at_bob))
    alice.respond(alice.take_request("BYE"), 200)
    bob.take_response(200)
    assert diary.lines[3:] == ["ended BYE"] and call.call_id == asked.call_id
    assert node.service.statistics()["calls_open"] == 0


@pytest.mark.parametrize("status", [486, 603])
def test_observer_of_a_refused_call(status: int) -> None:
    """A refused call ends with its status, and it is said who refused; a call that nobody may make never begins."""
    world, diary = World(), Diary()
    alice, bob = phones(world, Node(world, 1, "10.0.0.1", observers=(diary,)))
    invite(alice, bob.aor)
    bob.respond(bob.take_request("INVITE"), status)
    alice.take_response(status)
    alice.send(alice.request("INVITE", bob.aor, from_=f"<sip:mallory@{DOMAIN}>;tag=1"))
    alice.take_response(407)
    assert diary.lines == ["began", f"ended {status}"]
    assert (diary.calls[0].went_on.remote, diary.calls[0].target) == (bob.address, bob.contact)


def test_call_whose_end_was_lost() -> None:
    """RFC 4028: a call with a session interval is over when nobody has refreshed it."""
    world, diary = World(), Diary()
    alice, bob = phones(world, Node(world, 1, "10.0.0.1", observers=(diary,)))
    answered_call(alice, bob)
    world.pass_time(170.0, step=1.0)
    assert diary.lines[-1] == "answered"
    world.pass_time(20.0, step=1.0)
    assert diary.lines[-1] == "ended lost"


def test_refreshed_call_goes_on() -> None:
    """RFC 4028 8: an accepted re-INVITE or UPDATE with Session-Expires starts the interval anew."""
    world, diary = World(), Diary()
    alice, bob = phones(world, Node(world, 1, "10.0.0.1", observers=(diary,)))
    answer = answered_call(alice, bob)
    for _ in range(3):
        world.pass_time(100.0, step=1.0)
        bob.inbox.clear()
        alice.send(in_dialog(alice, "UPDATE", answer))
        bob.respond(bob.take_request("UPDATE"), 200, [("Session-Expires", "120;refresher=uac")])
        alice.take_response(200)
    assert diary.lines[-1] == "answered"


def plain_call(alice: Phone, bob: Phone) -> Response:
    """A call that stands, without a session interval."""
    asked = invite(alice, bob.aor)
    bob.respond(bob.take_request("INVITE"), 200)
    answer = alice.take_response(200)
    alice.send(in_dialog(alice, "ACK", answer, asked.cseq.number))
    bob.take_request("ACK")
    return answer


def test_call_whose_phones_are_gone() -> None:
    """A call whose phones both vanish ends with their registrations, within ten minutes: it does not count for its
    user any more. As long as one of them is registered it goes on.
    """
    world, diary = World(), Diary()
    node = Node(world, 1, "10.0.0.1", observers=(diary,), settings={"call_limits": CallLimits(per_user=1)})
    alice, bob = phones(world, node)
    assert alice.register(expires=1800).status == 200
    plain_call(alice, bob)
    world.pass_time(1799.0, step=0.3)
    assert diary.lines[-1] == "answered", "bob's registration has run out, alice's has not"
    invite(alice, bob.aor)
    alice.take_response(403)
    world.pass_time(610.0, step=0.3)
    assert diary.lines[-1] == "ended lost"
    bob.inbox.clear(), alice.inbox.clear()
    assert bob.register().status == 200
    invite(alice, bob.aor)
    bob.take_request("INVITE")


def test_call_of_phones_that_never_registered_here() -> None:
    """Of a caller who has registered nowhere, and a callee at another node, nothing is known: the call has four hours
    from its last re-INVITE or UPDATE.
    """
    world, diary = World(), Diary()
    near, far = Node(world, 1, "10.0.0.1", observers=(diary,)), Node(world, 2, "10.0.0.2")
    alice = Phone(world, "alice", ("10.1.0.1", 5070), near)
    bob = Phone(world, "bob", ("10.1.0.2", 5070), far)
    bob.register()
    answer = plain_call(alice, bob)
    world.pass_time(3 * 3600.0, step=60.0)
    bob.inbox.clear()
    alice.send(in_dialog(alice, "UPDATE", answer))
    bob.respond(bob.take_request("UPDATE"), 200)
    alice.take_response(200)
    world.pass_time(3.9 * 3600.0, step=60.0)
    assert diary.lines[-1] == "answered"
    world.pass_time(0.2 * 3600.0, step=60.0)
    assert diary.lines[-1] == "ended lost"


@pytest.mark.parametrize(("status", "over"), [(481, True), (491, False)])
def test_call_of_which_the_other_side_knows_nothing(status: int, over: bool) -> None:
    """12.2.1.2: a re-INVITE that is answered 481 says that the dialog is gone; another refusal does not."""
    world, diary = World(), Diary()
    alice, bob = phones(world, Node(world, 1, "10.0.0.1", observers=(diary,)))
    answer = plain_call(alice, bob)
    alice.send(in_dialog(alice, "INVITE", answer))
    bob.respond(bob.take_request("INVITE"), status)
    alice.take_response(status)
    assert diary.lines[-1] == ("ended lost" if over else "answered")


def test_calls_of_one_user_are_limited() -> None:
    """More calls of one user than allowed are 403; one that ends makes room, and others are not concerned."""
    world = World(alice="wonder", bob="builder", carol="singer")
    node = Node(world, 1, "10.0.0.1", settings={"call_limits": CallLimits(per_user=2)})
    alice, bob = phones(world, node)
    invite(alice, bob.aor), invite(alice, bob.aor)
    first = bob.take_request("INVITE")
    bob.take_request("INVITE")
    invite(alice, bob.aor)
    refused = alice.take_response(403)
    assert refused.reason == "Too Many Calls"
    invite(Phone(world, "carol", ("10.1.0.3", 5070), node), bob.aor)
    bob.take_request("INVITE")
    bob.respond(first, 486)
    alice.take_response(486)
    bob.inbox.clear()
    invite(alice, bob.aor)
    bob.take_request("INVITE")
    assert node.service.counters["too_many_calls_of_user"] == 1


def test_calls_of_one_peer_are_limited() -> None:
    """More calls from one node than allowed are 503 with Retry-After, whoever makes them."""
    world = World()
    near, far = Node(world, 1, "10.0.0.1"), Node(world, 2, "10.0.0.2", settings={"call_limits": CallLimits(per_peer=1)})
    alice = Phone(world, "alice", ("10.1.0.1", 5070), near)
    bob = Phone(world, "bob", ("10.1.0.2", 5070), far)
    bob.register()
    invite(alice, bob.aor)
    bob.take_request("INVITE")
    invite(alice, bob.aor)
    assert alice.take_response(500).status == 500, "16.7 step 6: a 503 of the next hop is 500 to the caller"
    assert far.service.counters["too_many_calls_of_peer"] == 1


def test_draining_node_takes_no_new_calls() -> None:
    """New calls get 503 with Retry-After, without a transaction; when the running one has ended, so has the drain."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = phones(world, node)
    answer = answered_call(alice, bob)
    ended: list[object] = []
    world.pass_time(40.0, step=1.0)
    node.service.drain(30.0).addCallback(ended.append)
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    assert alice.take_response(503).get("retry-after") is not None
    alice.send(ack_for(request, Response(503, headers=[("To", f"<{bob.aor}>;tag=1")])))
    assert node.service.statistics()["transactions_lingering"] == 0
    assert bob.register().status == 503, "no phone relies on a node that is about to end"
    alice.send(in_dialog(alice, "BYE", answer))
    bob.respond(bob.take_request("BYE"), 200)
    alice.take_response(200)
    assert not ended
    world.pass_time(1.0)
    assert ended == [None]


def test_drain_has_an_end() -> None:
    """A call that goes on for longer than that keeps the node no longer than it was told."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    answered_call(*phones(world, node))
    ended: list[object] = []
    node.service.drain(10.0).addCallback(ended.append)
    world.pass_time(9.0)
    assert not ended
    world.pass_time(2.0)
    assert ended == [None]


def test_load_is_refused_by_parts() -> None:
    """A reactor that is busy or late, or leaves datagrams unread, refuses a little more each time, none for one bad
    look; much more at once where many lie there, and all where there are too many transactions.
    """
    world = World()
    parts: list[float] = []
    cpu, crowd, unread = [0.0], [0], [0.0]
    load = Load(world.clock, lambda: crowd[0], 100, parts.append, lambda: unread[0], lambda: cpu[0])
    load.start()

    def look(busy: float, late: float = 0.0, queued: float = 0.0) -> None:
        cpu[0] += busy * (0.1 + late)
        unread[0] = queued
        world.clock.advance(0.1 + late)

    look(1.0)
    look(0.5)
    assert parts == [], "once is nothing"
    for _ in range(4):
        look(0.99)
    assert parts == pytest.approx([0.04, 0.08, 0.12])
    look(0.2, late=0.5)
    assert parts[-1] == pytest.approx(0.16), "late is as bad as busy"
    look(0.3, queued=0.15)
    assert parts[-1] == pytest.approx(0.2), "so are some unread datagrams, though others have the processor"
    look(0.3, queued=0.5)
    assert parts[-1] == pytest.approx(0.45), "where it is many, calls under way are about to suffer"
    look(0.3, queued=0.4)
    assert parts[-1] == pytest.approx(0.45), "it has helped"
    look(0.3)
    assert parts[-1] == pytest.approx(0.43)
    look(0.3, queued=1.0)
    look(0.3, queued=1.0)
    assert parts[-1] == pytest.approx(0.95)
    for _ in range(50):
        look(0.5)
    assert parts[-1] == 0.0
    crowd[0] = 90
    look(0.1)
    assert parts[-1] == 1.0
    load.stop()
    assert not world.clock.getDelayedCalls()


@pytest.mark.parametrize(("part", "of_stranger", "of_phone"), [(0.25, 5, 0), (0.5, 10, 0)])
def test_part_of_the_calls_is_refused(part: float, of_stranger: int, of_phone: int) -> None:
    """Overloaded, the node answers its part of new calls 503, first of all those from where nobody has proved to be a
    user; calls that stand, and registrations, are not touched.
    """
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = phones(world, node)
    node.service._new_calls.refuse(part)
    for caller, refused in ((alice, of_stranger), (bob, of_phone)):
        statuses = []
        for _ in range(10):
            caller.send(caller.request("INVITE", alice.aor))
            answer = caller.take()
            assert isinstance(answer, Response)
            statuses.append(answer.status)
        assert sorted(statuses) == [407] * (10 - refused) + [503] * refused
    assert bob.register().status == 200
    assert node.service.statistics()["calls_refused_percent"] == 100 * part


def test_strangers_are_not_even_read() -> None:
    """Where refusing all that is new from strangers does not suffice, no answer is wasted on it, and others are refused
    in part; a call for help is read from anybody.
    """
    world = World()
    node = Node(world, 1, "10.0.0.1", is_emergency=lambda uri: isinstance(uri, SipUri) and uri.user == "112")
    alice, bob = phones(world, node)
    node.service._new_calls.refuse(0.75)
    for uri in (bob.aor, "sip:"):
        alice.send(alice.request("INVITE", uri))
    assert alice.quiet()
    statuses = []
    for _ in range(10):
        bob.send(bob.request("INVITE", alice.aor))
        answer = bob.take()
        assert isinstance(answer, Response)
        statuses.append(answer.status)
    assert sorted(statuses) == [407] * 5 + [503] * 5
    alice.send(alice.request("INVITE", f"sip:112@{DOMAIN}"))
    alice.take_response(407)
    assert alice.register().status == 200
    node.service._new_calls.refuse(0.5)
    alice.send(alice.request("INVITE", bob.aor))
    alice.take_response(407)


def test_who_has_been_challenged_registers_first() -> None:
    """When all phones come back at once, part of the first REGISTERs is left to its repetition, most of all of phones
    that nobody knows; who answers a challenge gets to the end.
    """
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = phones(world, node)
    node.service._new_calls.refuse(0.75)
    for phone, answers in ((bob, 5), (alice, 2)):
        for number in range(10):
            phone.send(phone.request("REGISTER", f"sip:{DOMAIN}", to=f"<{phone.aor}>", call_id=f"reg{number}"))
        world.settle()
        assert len(phone.inbox) == answers
        challenge = phone.take_response(401)
        phone.inbox.clear()
        phone.send(phone.answer_challenge(phone.request("REGISTER", f"sip:{DOMAIN}", to=f"<{phone.aor}>"), challenge))
        phone.take_response(200)


# ---- redirects


def test_redirector_tells_where_the_user_is() -> None:
    """8.3: 302 with every contact, best first; no call passes, and what only we can reach is a GRUU that comes back."""
    world = World()
    node = Node(world, 1, "10.0.0.1", settings={"redirect_domains": frozenset({DOMAIN})})
    alice, bob = phones(world, node)
    bob.register(f"<{bob.contact}>;q=0.4")
    second = Phone(world, "bob", ("10.1.0.3", 5070), node)
    second.contact = "sip:bob@192.168.7.7:5070"
    second.register(f"<{second.contact}>;q=0.9")
    invite(alice, bob.aor)
    answer = alice.take_response(302)
    contacts = answer.contacts
    assert [each.q for each in contacts] == [0.9, 0.4]
    assert contacts[1].uri_text == bob.contact
    behind = contacts[0].uri
    assert isinstance(behind, SipUri) and behind.gr and behind.host == DOMAIN
    named = decode_gr(behind.gr)
    assert named is not None and named.node_id == node.node_id
    assert bob.quiet() and second.quiet()
    invite(alice, str(behind))
    assert second.take_request("INVITE").uri_text == second.contact


@pytest.mark.parametrize(("user", "status"), [("bob", 302), ("nobody", 404), ("alice", 480)])
def test_open_redirector(user: str, status: int) -> None:
    """Where the operator allows it, callers need no password to be told; who is not there is 480 or 404 as ever."""
    world = World()
    settings = {"redirect_domains": frozenset({DOMAIN}), "redirect_authenticates": False}
    alice, _ = phones(world, Node(world, 1, "10.0.0.1", settings=settings))
    request = alice.request("INVITE", f"sip:{user}@{DOMAIN}")
    alice.send(request)
    alice.take_response(status)


def test_open_redirector_carries_nothing_for_strangers() -> None:
    """What it cannot redirect, a number or another way out, it carries for users with a password alone, and so it does
    for a Route through it into the overlay; such a call counts like any other.
    """

    async def way_out(query: Query) -> Sequence[Target] | None:
        there = Target("sip:gateway@10.1.0.2:5070", address=("UDP", "10.1.0.2", 5070))
        return [there] if "+44" in str(query.uri) else None

    world = World()
    settings = {"redirect_domains": frozenset({DOMAIN}), "redirect_authenticates": False}
    node = Node(world, 1, "10.0.0.1", settings=settings, steps=(way_out,))
    alice, bob = phones(world, node)
    stranger = alice.request("INVITE", f"sip:+442071838750@{DOMAIN}", from_=f"<sip:anybody@{DOMAIN}>;tag=1")
    alice.send(stranger)
    assert alice.take_response(407).has("proxy-authenticate")
    there = f"<sip:{DOMAIN};gr={encode_gr(bytes([2]) * 16)};lr>"
    alice.send(alice.request("INVITE", bob.aor, [("Route", f"<sip:10.0.0.1:5060;lr>, {there}")]))
    alice.take_response(407)
    assert bob.quiet() and node.service.statistics()["calls_open"] == 0
    invite(alice, f"sip:+442071838750@{DOMAIN}")
    assert bob.take_request("INVITE").uri_text == "sip:gateway@10.1.0.2:5070"
    assert node.service.statistics()["calls_open"] == 1


# ---- other domains


class Border:
    """An Edge with one connection, to example.net; `refuse` makes it refuse what comes in."""

    name = "border"
    here = True
    addresses = frozenset({("192.0.2.1", 5061)})

    def __init__(self, world: World) -> None:
        self.sent: list[Request | Response] = []
        self.given_back: list[str] = []
        self.refuse = False
        self.flow = MemoryFlow("TLS", ("192.0.2.50", 5061), ("10.0.0.9", 5061), 7, self._take)
        self.flow.peer = DomainIdentity(("example.net",), self.name)  # type: ignore[assignment]
        self.world = world
        self.stopped = False

    def _take(self, flow: Flow, data: bytes) -> None:
        self.sent.append(parse_message(data))

    def start(self, receive: object, lost: object) -> None:
        self.receive = receive

    def stop(self) -> None:
        self.stopped = True

    async def admit(self, flow: Flow, request: Request, wall: float) -> Admitted:
        if self.refuse:
            raise Refused(403, "Not From There")
        return Admitted("TN-Validation-Passed rfc8224 A")

    def reported(self, response: Response) -> None:
        """Nothing is signed here."""

    def released(self, request: Request) -> None:
        self.given_back.append(request.call_id)

    def record_route(self, flow: Flow, request: Request, outward: bool) -> str:
        return "<sip:x.TICKET@overlay.example;lr>"

    def owns(self, uri: SipUri) -> bool:
        return uri.user == "x.TICKET"

    def across(self, taken: Sequence[SipUri], flow: Flow) -> str:
        return ""

    async def along(self, token: str, request: Request) -> list[Target]:
        assert token == "x.TICKET"
        return [Target(request.uri_text, flow=self.flow)]

    def deliver(self, request: Request) -> None:
        assert callable(self.receive)
        self.receive(self.flow, request)
        self.world.settle()


def test_calls_for_help_are_not_limited() -> None:
    """No limit stops a call to the emergency services, of phones or of other nodes; who calls is asked all the same."""
    world = World()
    limits = CallLimits(per_user=1, per_peer=1, all=1)
    settings = {"call_limits": limits, "abuse": LimitSettings(requests_per_user=0.01)}
    node = Node(world, 1, "10.0.0.1", settings=settings, is_emergency=lambda uri: "bob" in str(uri))
    alice, bob = phones(world, node)
    for _ in range(3):
        invite(alice, bob.aor)
        bob.take_request("INVITE")
    assert node.service.statistics()["calls_open"] == 3
    invite(alice, "sip:carol@overlay.example")
    assert alice.take_response(503).status == 503


@pytest.mark.parametrize("trouble", ["drain", "overload"])
def test_calls_for_help_pass_a_node_in_trouble(trouble: str) -> None:
    """A node that ends, or refuses new calls for having too much to do, takes those to the emergency services."""
    world = World()
    node = Node(world, 1, "10.0.0.1", is_emergency=lambda uri: "bob" in str(uri))
    alice, bob = phones(world, node)
    if trouble == "drain":
        node.service.drain(30.0)
    else:
        node.service._new_calls.refuse(0.5)
    alice.send(alice.request("INVITE", "sip:carol@overlay.example"))
    assert alice.take_response(503).has("retry-after")
    invite(alice, bob.aor)
    assert bob.take_request("INVITE").method == "INVITE"


def test_calls_for_help_need_no_overlay_to_know_the_caller() -> None:
    """Where nobody can be asked for a password, other calls are 503; who calls for help goes on, unproved. A wrong
    password is refused as ever.
    """
    world = World()
    node = Node(world, 1, "10.0.0.1", is_emergency=lambda uri: "bob" in str(uri))
    alice, bob = phones(world, node)
    world.credentials.broken = True
    other = alice.ask(alice.request("MESSAGE", "sip:carol@overlay.example"))
    assert isinstance(other, Response) and other.status == 503
    invite(alice, bob.aor)
    world.pass_time(1.0)
    assert not bob.take_request("INVITE").has("proxy-authorization")
    assert node.service.counters["emergency_unproved"] == 1
    (made,) = node.service._calls._calls.values()
    assert (made.identity, made.user) == ("unproved", "") and not node.service._calls._of_user
    world.credentials.broken = False
    alice.password = "guessed"
    asked = alice.ask(alice.request("MESSAGE", bob.aor))
    assert isinstance(asked, Response) and asked.status == 407


def test_calls_for_help_are_known_by_their_to() -> None:
    """What another node brings to whoever takes emergency calls is spared, too; what another domain brings is not."""
    world = World()
    node = Node(world, 1, "10.0.0.1", is_emergency=lambda uri: str(uri) == "urn:service:sos")
    _, bob = phones(world, node)
    node.service._new_calls.refuse(1.0)
    request = bob.request("INVITE", bob.aor, to="<urn:service:sos>")
    inside = MemoryFlow("TLS", ("10.0.0.2", 5061), ("10.0.0.1", 5061), 1, lambda flow, data: None)
    outside = MemoryFlow("TLS", ("10.0.0.3", 5061), ("10.0.0.1", 5061), 2, lambda flow, data: None)
    inside.peer = NodeIdentity(b"\2" * 16, "", True)
    outside.peer = DomainIdentity(("b.test",), "peering")  # type: ignore[assignment]
    assert node.service._admission.calls_for_help(inside, request)
    assert not node.service._admission.calls_for_help(outside, request)
    request.set_uri("urn:service:sos")
    assert not node.service._admission.calls_for_help(outside, request)


def test_another_domain_is_told_who_does_not_exist() -> None:
    """A call of another domain to a user that we do not have is 404, to one that is not there 480."""
    world = World()
    border = Border(world)
    node = Node(world, 1, "10.0.0.1", edges=(border,))
    stranger = Phone(world, "carol", ("192.0.2.50", 5061), node, password="none")
    for user, status in (("nobody", 404), ("bob", 480)):
        border.deliver(stranger.request("INVITE", f"sip:{user}@{DOMAIN}", from_="<sip:carol@example.net>;tag=c"))
        answer = border.sent[-1]
        assert isinstance(answer, Response) and answer.status == status


def test_other_domains_register_nobody() -> None:
    """A REGISTER over a connection with another domain is 403, and not even challenged: it was judged by no policy."""
    world = World()
    border = Border(world)
    node = Node(world, 1, "10.0.0.1", edges=(border,))
    stranger = Phone(world, "alice", ("192.0.2.50", 5061), node)
    plain = stranger.request("REGISTER", f"sip:{DOMAIN}", to=f"<{stranger.aor}>")
    proved = stranger.request(
        "REGISTER", f"sip:{DOMAIN}", [("Authorization", 'Digest username="alice"')], to=plain.to.uri_text
    )
    for asked in (plain, proved):
        border.deliver(asked)
        answer = border.sent[-1]
        assert isinstance(answer, Response) and answer.status == 403 and not answer.has("www-authenticate")
    assert not world.credentials.asked


def test_what_we_answer_503_may_come_again() -> None:
    """The edge hears of each admitted request that we answered 503 ourselves, and of no other."""
    world = World()
    border = Border(world)
    node = Node(world, 1, "10.0.0.1", edges=(border,))
    stranger = Phone(world, "carol", ("192.0.2.50", 5061), node, password="none")
    for broken in (False, True):
        world.location.broken = broken
        border.deliver(stranger.request("INVITE", f"sip:bob@{DOMAIN}", from_="<sip:carol@example.net>;tag=c"))
    answer = border.sent[-1]
    assert isinstance(answer, Response) and answer.status == 503
    assert border.given_back == [answer.call_id]


@pytest.mark.parametrize("refused", [False, True])
def test_call_from_another_domain(refused: bool) -> None:
    """A request of an edge's flow is judged by the edge, looked up unchallenged, and its dialog goes both ways."""
    world = World()
    border = Border(world)
    border.refuse = refused
    diary = Diary()
    node = Node(world, 1, "10.0.0.1", edges=(border,), observers=(diary,))
    _, bob = phones(world, node)
    stranger = Phone(world, "carol", ("192.0.2.50", 5061), node, password="none")
    asked = stranger.request("INVITE", bob.aor, from_="<sip:carol@example.net>;tag=c")
    border.deliver(asked)
    if refused:
        assert [each.status for each in border.sent if isinstance(each, Response)] == [403]
        return
    at_bob = bob.take_request("INVITE")
    assert diary.calls[0].identity == "TN-Validation-Passed rfc8224 A"
    assert at_bob.record_routes[1].uri_text == border.record_route(border.flow, asked, False).strip("<>")
    bob.respond(at_bob, 200)
    world.settle()
    answer = border.sent[-1]
    assert isinstance(answer, Response) and answer.status == 200
    border.deliver(in_dialog(stranger, "ACK", answer, asked.cseq.number))
    bob.take_request("ACK")
    bob.send(in_dialog_of_callee(bob, "BYE", at_bob))
    world.settle()
    bye = border.sent[-1]
    assert isinstance(bye, Request) and bye.method == "BYE" and not bye.has("route")
    node.service.stopService()
    assert border.stopped


def test_challenge_of_an_invite_is_sent_once() -> None:
    """8.2.7: nobody has a 407 repeated to a forged address: it leaves no transaction, and its ACK is ignored."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = phones(world, node)
    request = alice.request("INVITE", bob.aor)
    alice.send(request)
    first = alice.take_response(407)
    world.pass_time(40.0, step=0.3)
    assert alice.quiet() and node.service.statistics()["transactions_lingering"] == 0
    alice.send(request)
    assert alice.take_response(407).to_tag == first.to_tag
    alice.send(ack_for(request, first))
    world.settle()
    again = alice.answer_challenge(request, first)
    made_up = again.copy()
    made_up.set("Proxy-Authorization", (again.get("proxy-authorization") or "").replace('nonce="', 'nonce="A'))
    tagged = alice.request("INVITE", bob.aor)
    tagged.set("To", f"<{bob.aor}>;tag=made-up")
    for each in (made_up, tagged):
        alice.send(each)
        alice.take_response(407)
        world.pass_time(40.0, step=0.3)
        assert alice.quiet() and node.service.statistics()["transactions_lingering"] == 0
    alice.send(again)
    bob.take_request("INVITE")

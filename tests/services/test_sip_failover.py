"""What fails on the way: nodes that hang or die, next hops of RFC 3263, flows that are gone; dialogs that go on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2psipd.proto.dns import A, Answer, Srv, Status
from p2psipd.proto.sip.locating import Attempt, Query, Route, Target
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.uri import SipUri

from .sip_world import DOMAIN, Node, Phone, World, ack_for, in_dialog, in_dialog_of_callee

INSTANCE = '+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'


def invite(alice: Phone, uri: str) -> Request:
    """Alice's INVITE, past the challenge."""
    request = alice.request("INVITE", uri)
    alice.send(request)
    alice.send(ack_for(request, challenge := alice.take_response(407)))
    again = alice.answer_challenge(request, challenge)
    alice.send(again)
    return again


class Flows:
    """Alice at one node; bob's one phone with flows to two others (the same Contact and instance over each)."""

    def __init__(self, flows: int = 2) -> None:
        self.world = World()
        self.near = Node(self.world, 1, "10.0.0.1")
        self.alice = Phone(self.world, "alice", ("10.1.0.1", 5070), self.near)
        self.alice.register()
        self.nodes = [Node(self.world, 2 + n, f"10.0.0.{2 + n}") for n in range(flows)]
        self.ends = [Phone(self.world, "bob", ("10.1.0.2", 5070 + n), node) for n, node in enumerate(self.nodes)]
        for number, end in enumerate(self.ends):
            end.connect()
            end.contact = "sip:bob@10.1.0.2;ob"
            contact = f"<{end.contact}>;{INSTANCE};reg-id={number + 1}"
            assert end.register(contact, headers=[("Supported", "path, outbound")]).status == 200

    def invited(self) -> list[Phone]:
        """The flows over which an INVITE came."""
        self.world.settle()
        return [
            end for end in self.ends if any(isinstance(each, Request) and each.method == "INVITE" for each in end.inbox)
        ]


def test_one_instance_rings_once() -> None:
    """RFC 5626 5.3: of the flows of one instance one is used."""
    flows = Flows()
    invite(flows.alice, flows.ends[0].aor)
    assert len(flows.invited()) == 1


def test_dead_node_is_passed_by() -> None:
    """A phone with flows to two nodes, of which one has died, rings once, over the other one, at once."""
    flows = Flows()
    invite(flows.alice, flows.ends[0].aor)
    (first,) = flows.invited()
    flows = Flows()
    dead = flows.nodes[flows.ends.index(next(e for e in flows.ends if e.address == first.address))]
    dead.connector.die()
    began = flows.world.clock.seconds()
    invite(flows.alice, flows.ends[0].aor)
    (rang,) = flows.invited()
    assert rang.node is not dead and flows.world.clock.seconds() - began < 1.0


def test_hung_node_is_passed_by() -> None:
    """A node that takes the INVITE and says nothing is suspected in 1.2 s: the phone rings over its other flow, and
    what it answers reaches the caller, well within 5 s.
    """
    flows = Flows()
    for node in flows.nodes:
        flows.world.hung = {node.node_id}
        invite(flows.alice, flows.ends[0].aor)
        flows.world.pass_time(1.5)
        (rang,) = flows.invited()
        assert rang.node is not node
        at_bob = rang.take_request("INVITE")
        rang.respond(at_bob, 180)
        rang.respond(at_bob, 200)
        flows.alice.take_response(180)
        flows.alice.take_response(200)
        flows.world.hung = set()
        flows.alice.inbox.clear()
    assert flows.near.service.counters["node_silent"] >= 1


def test_hung_node_without_another_way() -> None:
    """Where the node that hangs is the only way, the caller has a final answer within 5 s, and late words are heard."""
    flows = Flows(1)
    flows.world.hung = {flows.nodes[0].node_id}
    invite(flows.alice, flows.ends[0].aor)
    flows.world.pass_time(1.5)
    assert flows.alice.quiet()
    flows.world.pass_time(3.5)
    flows.alice.take_response(408)


def test_node_that_wakes_up_in_time() -> None:
    """A node that was slow, and not hung, keeps its call: nobody is cancelled."""
    flows = Flows(1)
    flows.world.slow = {flows.nodes[0].node_id: 2.0}
    invite(flows.alice, flows.ends[0].aor)
    flows.world.pass_time(2.5)
    assert flows.near.service.counters["node_silent"] == 1
    (bob,) = flows.invited()
    flows.world.pass_time(5.0)
    bob.respond(bob.take_request("INVITE"), 200)
    flows.alice.take_response(200)
    assert bob.quiet() and flows.alice.quiet()


def standing_call(flows: Flows) -> tuple[Phone, Request, Response]:
    """A call that bob took: the flow that it took, his INVITE and alice's 200."""
    asked = invite(flows.alice, flows.ends[0].aor)
    (taken,) = flows.invited()
    at_bob = taken.take_request("INVITE")
    taken.respond(at_bob, 200)
    answer = flows.alice.take_response(200)
    flows.alice.send(in_dialog(flows.alice, "ACK", answer, asked.cseq.number))
    taken.take_request("ACK")
    return taken, at_bob, answer


def test_bye_survives_the_callees_registrar() -> None:
    """Profile section 7: the node that record-routed has died; the BYE finds the phone over its other flow."""
    flows = Flows()
    taken, _, answer = standing_call(flows)
    taken.node.connector.die()
    flows.alice.send(in_dialog(flows.alice, "BYE", answer))
    (other,) = (end for end in flows.ends if end is not taken)
    bye = other.take_request("BYE")
    assert bye.uri_text == other.contact and not bye.has("route")
    other.respond(bye, 200)
    flows.alice.take_response(200)


def test_bye_survives_the_callers_registrar() -> None:
    """The other way round: the caller has registered anew elsewhere with the same Contact, and bob hangs up."""
    flows = Flows()
    taken, at_bob, _ = standing_call(flows)
    flows.near.connector.die()
    third = Node(flows.world, 9, "10.0.0.9")
    del flows.world.phones[flows.alice.address]
    moved = Phone(flows.world, "alice", flows.alice.address, third)
    moved.cseq = 100
    moved.register()
    taken.send(in_dialog_of_callee(taken, "BYE", at_bob))
    moved.respond(moved.take_request("BYE"), 200)
    taken.take_response(200)


def test_bye_that_comes_to_another_registrar() -> None:
    """RFC 5626: a phone whose registrar has died sends its BYE to another one, with the dead one's Route on top."""
    flows = Flows()
    taken, at_bob, _ = standing_call(flows)
    taken.node.connector.die()
    (other,) = (end for end in flows.ends if end is not taken)
    other.send(in_dialog_of_callee(other, "BYE", at_bob))
    flows.alice.respond(flows.alice.take_request("BYE"), 200)
    other.take_response(200)


def answered_call(flows: Flows) -> tuple[Phone, Request, Request, Response]:
    """A call that bob has just taken: the flow that he took it on, alice's INVITE, bob's, and alice's 200."""
    asked = invite(flows.alice, flows.ends[0].aor)
    (taken,) = flows.invited()
    at_bob = taken.take_request("INVITE")
    taken.respond(at_bob, 200)
    return taken, asked, at_bob, flows.alice.take_response(200)


def test_ack_survives_the_callees_registrar() -> None:
    """13.2.2.4: the registrar of the callee dies between the 200 and its ACK, which finds the phone like the BYE."""
    flows = Flows()
    taken, asked, _, answer = answered_call(flows)
    taken.node.connector.die()
    flows.alice.send(in_dialog(flows.alice, "ACK", answer, asked.cseq.number))
    (other,) = (end for end in flows.ends if end is not taken)
    ack = other.take_request("ACK")
    assert ack.uri_text == other.contact and not ack.has("route")


def test_ack_that_comes_to_another_registrar() -> None:
    """The registrar of the caller has died: its ACK comes to another one with the dead one's Route on top."""
    flows = Flows()
    taken, asked, _, answer = answered_call(flows)
    flows.near.connector.die()
    third = Node(flows.world, 9, "10.0.0.9")
    flows.alice.node = third
    flows.alice.send(in_dialog(flows.alice, "ACK", answer, asked.cseq.number))
    taken.take_request("ACK")


def test_ack_after_a_new_connection() -> None:
    """The phone's connection broke when it had answered; the ACK goes over the one with which it has come back."""
    flows = Flows(1)
    (bob,) = flows.ends
    _, asked, _, answer = answered_call(flows)
    bob.disconnect()
    bob.connect()
    bob.contact = "sip:bob@10.1.0.2;ob"
    bob.register(f"<{bob.contact}>;{INSTANCE};reg-id=1", headers=[("Supported", "path, outbound")])
    flows.alice.send(in_dialog(flows.alice, "ACK", answer, asked.cseq.number))
    bob.take_request("ACK")


def test_large_ack_goes_over_tcp() -> None:
    """18.1.1: an ACK that answers a large offer goes over TCP where the phone takes it, like any request."""
    world = World()
    node = Node(world, 1, "10.0.0.1")
    alice, bob = Phone(world, "alice", ("10.1.0.1", 5070), node), Phone(world, "bob", ("10.1.0.2", 5070), node)
    bob.register()
    world.listen_tcp.add(bob.address)
    for octets, transport in ((100, "UDP"), (1500, "TCP")):
        asked = invite(alice, bob.aor)
        bob.respond(bob.take_request("INVITE"), 200)
        ack = in_dialog(alice, "ACK", alice.take_response(200), asked.cseq.number)
        ack.body = b"a" * octets
        alice.send(ack)
        assert bob.take_request("ACK").top_via.transport == transport


def test_ack_of_a_refusal_goes_no_further() -> None:
    """17.1.1.3: the ACK of a refusal that left no transaction, and comes from another node, is not the phone's."""
    flows = Flows(1)
    flows.nodes[0].service._new_calls.refuse(1.0)
    invite(flows.alice, flows.ends[0].aor)
    flows.alice.take_response(500)
    flows.world.settle()
    assert any(what.startswith("ACK") and to == "node 02" for _, to, what in flows.world.trace)
    assert flows.ends[0].quiet()


def test_ack_to_nobody() -> None:
    """Where the phone is nowhere to be found, or nobody of ours wrote the Route, an ACK is dropped and counted."""
    flows = Flows(1)
    taken, asked, _, answer = answered_call(flows)
    taken.node.connector.die()
    before = flows.near.service.counters["ack_dropped"]
    ack = in_dialog(flows.alice, "ACK", answer, asked.cseq.number)
    flows.alice.send(ack)
    forged = ack.copy()
    forged.set("Route", "<sip:AAAA@10.0.0.77;lr>")
    flows.alice.send(forged)
    flows.world.settle()
    assert flows.near.service.counters["ack_dropped"] == before + 2


def test_bye_to_nobody() -> None:
    """Where the phone of the dialog is nowhere to be found, the BYE is answered 481 at once."""
    flows = Flows(1)
    taken, _, answer = standing_call(flows)
    taken.node.connector.die()
    flows.alice.send(in_dialog(flows.alice, "BYE", answer))
    flows.alice.take_response(481)


def test_bye_after_a_new_connection() -> None:
    """A phone that lost its connection and has come back over another one is still in its dialog."""
    flows = Flows(1)
    (bob,) = flows.ends
    _, _, answer = standing_call(flows)
    bob.disconnect()
    bob.connect()
    bob.contact = "sip:bob@10.1.0.2;ob"
    bob.register(f"<{bob.contact}>;{INSTANCE};reg-id=1", headers=[("Supported", "path, outbound")])
    flows.alice.send(in_dialog(flows.alice, "BYE", answer))
    bob.take_request("BYE")


def test_bye_after_a_new_connection_from_another_port() -> None:
    """The Contact of a phone that comes over TCP may name the port of its connection; that changes with each one."""
    flows = Flows(1)
    (bob,) = flows.ends
    _, _, answer = standing_call(flows)
    bob.disconnect()
    bob.connect()
    bob.contact = "sip:bob@10.1.0.2:49152"
    bob.register(f"<{bob.contact}>")
    flows.alice.send(in_dialog(flows.alice, "BYE", answer))
    bob.take_request("BYE")


# ---- next hops


class Gateway:
    """A step of the locator for one outside domain, and its two servers, of which the first one is ill."""

    SERVERS = (("10.5.0.1", 5060), ("10.5.0.2", 5060))

    def __init__(self, illness: int | None) -> None:
        self.world = World()
        self.illness = illness
        self.asked: list[tuple[str, str]] = []
        self.node = Node(self.world, 1, "10.0.0.1", steps=(self.step,), ask=self.ask)
        self.alice = Phone(self.world, "alice", ("10.1.0.1", 5070), self.node)
        self.servers = [Phone(self.world, "bob", address, self.node) for address in self.SERVERS]

    async def step(self, query: Query) -> Sequence[Target] | None:
        if isinstance(query.uri, SipUri) and query.uri.host == "gateway.example":
            return (Target(str(query.uri)),)
        return None

    async def ask(self, name: str, kind: str) -> Answer:
        self.asked.append((name, kind))
        if (name, kind) == ("_sip._udp.gateway.example", "SRV"):
            found = [Srv(1 + n, 0, 5060, f"s{n}.gateway.example") for n in range(2)]
            return Answer(Status.FOUND, tuple(found))
        if kind == "A" and name.endswith(".gateway.example"):
            return Answer(Status.FOUND, (A(self.SERVERS[int(name[1])][0]),))
        return Answer(Status.NONE)


def test_next_server_after_503() -> None:
    """RFC 3263 4.3: a 503 makes the next server be asked, with a new branch; the first one is last for a while."""
    gateway = Gateway(503)
    alice, (first, second) = gateway.alice, gateway.servers
    invite(alice, "sip:bob@gateway.example")
    at_first = first.take_request("INVITE")
    first.respond(at_first, 503, [("Retry-After", "60")])
    first.take_request("ACK")
    at_second = second.take_request("INVITE")
    assert at_second.top_via.branch != at_first.top_via.branch and at_second.uri_text == at_first.uri_text
    second.respond(at_second, 180)
    alice.take_response(180)
    second.respond(at_second, 486)
    assert second.take_request("ACK").top_via.branch == at_second.top_via.branch
    alice.take_response(486)
    invite(alice, "sip:carol@gateway.example")
    second.take_request("INVITE")
    assert first.quiet()


def test_next_server_after_silence() -> None:
    """RFC 3263 4.3: a server from which nothing came in 64*T1 is given up for the next one."""
    gateway = Gateway(None)
    first, second = gateway.servers
    invite(gateway.alice, "sip:bob@gateway.example")
    gateway.world.pass_time(33.0, step=0.5)
    first.take_request("INVITE")
    second.respond(second.take_request("INVITE"), 200)
    gateway.alice.take_response(200)


def test_a_refusal_is_no_reason_to_ask_elsewhere() -> None:
    """RFC 3263 4.3: any other answer stands; the CANCEL goes where the INVITE went."""
    gateway = Gateway(None)
    first, second = gateway.servers
    invite(gateway.alice, "sip:bob@gateway.example")
    first.respond(first.take_request("INVITE"), 500)
    gateway.alice.take_response(500)
    assert second.quiet()


def test_domain_without_a_way() -> None:
    """RFC 3263: a domain that has no records at all is 404, not a timeout."""
    gateway = Gateway(None)

    async def nothing(name: str, kind: str) -> Answer:
        return Answer(Status.NONE)

    gateway.node.service._routing._ask = nothing
    invite(gateway.alice, "sip:bob@gateway.example")
    gateway.alice.take_response(404)


class Tries:
    """A Route of two tries over the same flow; the second one follows a 428 and says so in the request."""

    def __init__(self, request: Request, flow: object) -> None:
        self.request, self.flow = request, flow
        self.outcomes: list[int] = []

    async def next(self, last: Response | None) -> Attempt | None:
        self.outcomes.append(last.status if last is not None else 0)
        made = self.request.copy()
        if last is not None and last.status != 428:
            return None
        if last is not None:
            made.set("Identity", "now with it")
        return Attempt(self.flow, made) if len(self.outcomes) < 3 else None  # type: ignore[arg-type]


@pytest.mark.parametrize(("second", "answer"), [(200, 200), (428, 428), (403, 403)])
def test_route_maker(second: int, answer: int) -> None:
    """A target's own Route is asked after every failure whether it has another try; else the last outcome stands."""
    world = World()
    made: list[Tries] = []

    def route(request: Request, target: Target) -> Route:
        made.append(Tries(request, node.transports.udp[0].flow(("10.5.0.1", 5060))))
        return made[0]

    async def step(query: Query) -> Sequence[Target] | None:
        return (Target(str(query.uri), route_maker=route),)

    node = Node(world, 1, "10.0.0.1", steps=(step,))
    alice, other = Phone(world, "alice", ("10.1.0.1", 5070), node), Phone(world, "bob", ("10.5.0.1", 5060), node)
    invite(alice, "sip:bob@elsewhere.example")
    other.respond(other.take_request("INVITE"), 428)
    other.take_request("ACK")
    again = other.take_request("INVITE")
    assert again.get("identity") == "now with it" and len(again.record_routes) == 2
    other.respond(again, second)
    alice.take_response(answer)
    assert made[0].outcomes == ([0, 428] if second == 200 else [0, 428, second])


def test_unregistered_domain_of_ours_needs_no_dns() -> None:
    """A user of ours is never looked up in the DNS."""
    gateway = Gateway(None)
    invite(gateway.alice, f"sip:bob@{DOMAIN}")
    gateway.alice.take_response(480)
    assert gateway.asked == []

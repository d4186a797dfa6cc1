"""The Kademlia plug-in among real peer cores, on a virtual clock."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest

from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage, ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId, distance, resource_id
from p2psipd.proto.reload.kademlia import Remembered
from p2psipd.proto.reload.kinds import CERTIFICATE_BY_NODE, TURN_SERVICE
from p2psipd.proto.reload.member_list import KademliaParameters, node_of, number_of
from p2psipd.proto.reload.membership import Delta
from p2psipd.proto.reload.messages import FetchReq, MessageCode, StoredDataSpecifier
from p2psipd.proto.reload.records import array_key
from p2psipd.proto.reload.topology import Answer
from p2psipd.proto.reload.topology_messages import UpdateReq
from p2psipd.proto.reload.wire import ResourceDestination
from tests.proto.reload.stapled import Node, World

EVERYTHING = (StoredDataSpecifier(CERTIFICATE_BY_NODE, 0, ((0, 0xFFFFFFFF),), None),)


def store_own_certificate(node: Node) -> peer_io.StoreOutcome:
    """Each node's certificate by node is a record that its owner may store (NODE-MATCH)."""
    outcome = node.ask(
        lambda ref: peer_io.Store(
            ref,
            resource_id(node.peer.node_id),
            CERTIFICATE_BY_NODE,
            (peer_io.StoreValue(node.certificate.der, 36_000, position=0),),
        )
    )
    assert isinstance(outcome, peer_io.StoreOutcome), outcome
    return outcome


def fetch_certificate(asker: Node, owner: Node) -> peer_io.FetchOutcome:
    outcome = asker.ask(lambda ref: peer_io.Fetch(ref, resource_id(owner.peer.node_id), EVERYTHING))
    assert isinstance(outcome, peer_io.FetchOutcome), outcome
    return outcome


def holders(world: World, owner: Node) -> list[Node]:
    resource = resource_id(owner.peer.node_id)
    return [n for n in world.nodes if n.alive and n.frozen is None and resource in n.storage.resources()]


def members(node: Node) -> int:
    count = node.peer.topology.status()["members"]
    assert isinstance(count, int)
    return count


@pytest.fixture
def sixteen() -> World:
    """Sixteen peers, each of which has stored its certificate."""
    world = World(seed=3)
    world.overlay(16)
    for node in world.nodes:
        store_own_certificate(node)
    world.run(5)
    return world


def test_every_peer_knows_every_other(sixteen: World) -> None:
    """While the overlay is small each peer knows all members and is linked to all."""
    for node in sixteen.nodes:
        assert members(node) == 16
        assert len(list(node.peer.linked())) == 15


def test_a_record_is_held_by_the_eight_nearest(sixteen: World) -> None:
    """A record lies on the eight peers nearest to its Resource-ID by XOR, and nowhere else."""
    for owner in sixteen.nodes:
        resource = int.from_bytes(resource_id(owner.peer.node_id), "big")
        nearest = sorted(sixteen.nodes, key=lambda n: int.from_bytes(n.peer.node_id, "big") ^ resource)[:8]
        assert {n.number for n in holders(sixteen, owner)} == {n.number for n in nearest}


def test_who_stores_and_is_a_holder_keeps_its_own_copy(sixteen: World) -> None:
    """A holder that stores is sent no copy: it keeps what it has stored when the answer names it, and all eight have
    it at once.
    """
    storing, resource = next(
        (node, resource)
        for node in sixteen.nodes
        for index in range(1, 5)  # NODE-MULTIPLE: where this node may write
        if 0 < _rank(sixteen, node, resource := resource_id(node.peer.node_id + bytes((index,)))) < 8
    )
    stores = f"request-{MessageCode.STORE_REQ:#x}"
    before = {node.number: node.peer.counts[stores] for node in sixteen.nodes}
    value = peer_io.StoreValue(b"turn", 3600)
    outcome = storing.ask(lambda ref: peer_io.Store(ref, resource, TURN_SERVICE, (value,)))
    assert isinstance(outcome, peer_io.StoreOutcome) and storing.peer.node_id in outcome.replicas
    sixteen.run(1)
    held = [node for node in sixteen.nodes if resource in node.storage.resources()]
    assert sorted(_rank(sixteen, node, resource) for node in held) == list(range(8))
    asked = {node.number: node.peer.counts[stores] - before[node.number] for node in held}
    assert asked == {node.number: int(node is not storing) for node in held}


def _rank(world: World, node: Node, resource: bytes) -> int:
    """How many nodes are nearer to a resource."""
    return sum(distance(one.peer.node_id, resource) < distance(node.peer.node_id, resource) for one in world.nodes)


def test_a_fetch_takes_one_round_trip(sixteen: World) -> None:
    """Knowing all members, a peer asks a linked holder directly."""
    for asker in sixteen.nodes[:4]:
        for owner in sixteen.nodes:
            outcome = fetch_certificate(asker, owner)
            assert outcome.values[0].value == owner.certificate.der
            assert outcome.hops <= 1
            assert outcome.seconds <= 2 * sixteen.delay + 1e-6


def test_a_read_of_nothing_ends_at_the_responsible_peer(sixteen: World) -> None:
    """A Fetch of what nobody holds does not wander among the holders: each hop after the first holder is nearer."""
    world = sixteen
    resource = resource_id("nobody")
    nearest = sorted(world.nodes, key=lambda n: int.from_bytes(n.peer.node_id, "big") ^ int.from_bytes(resource, "big"))
    ranks = {node.peer.node_id: rank for rank, node in enumerate(nearest, 1)}
    answers: list[Answer] = []
    for asker in nearest:
        # The farther from the resource a holder is, the quicker it seems.
        asker.peer.rtt = lambda node: 1 / ranks[node]  # type: ignore[method-assign]
    for asker in nearest:
        asker.peer.request(ResourceDestination(resource), FetchReq(resource, EVERYTHING), answers.append)
        asker.perform(asker.peer._out)
    world.run(0.5)
    assert [answer.node for answer in answers] == [nearest[0].peer.node_id] * 16
    assert max(answer.hops for answer in answers) <= 3


@pytest.mark.parametrize("dead", [5, 7])
def test_nothing_is_lost_when_fewer_than_eight_die(sixteen: World, dead: int) -> None:
    """Seven simultaneous deaths leave every record found at once, and eight copies again soon after."""
    victims = random.Random(dead).sample(sixteen.nodes[1:], dead)
    for victim in victims:
        sixteen.kill(victim)
    survivors = [n for n in sixteen.nodes if n not in victims]
    for number, owner in enumerate(sixteen.nodes):
        outcome = fetch_certificate(survivors[number % len(survivors)], owner)
        assert outcome.values and outcome.seconds <= 1.0
    sixteen.run(30)
    for owner in sixteen.nodes:
        assert len(holders(sixteen, owner)) == min(8, len(survivors))
    assert all(members(n) == len(survivors) for n in survivors)


def test_silent_peers_are_noticed_without_tcp(sixteen: World) -> None:
    """Peers that stop without closing anything are routed around at once and buried after some seconds."""
    victims = random.Random(1).sample(sixteen.nodes[1:], 6)
    for victim in victims:
        victim.frozen = []
    survivors = [n for n in sixteen.nodes if n not in victims]
    for number, owner in enumerate(sixteen.nodes):
        outcome = fetch_certificate(survivors[number % len(survivors)], owner)
        assert outcome.values and outcome.seconds <= 1.0
    sixteen.run(40)
    for owner in sixteen.nodes:
        assert len(holders(sixteen, owner)) == 8
    assert all(members(n) == len(survivors) for n in survivors)


def test_the_only_holder_left_reads_its_own_copy(sixteen: World) -> None:
    """Who holds a record whose other holders are all silent finds it at once, though it is not responsible for it."""
    owner = sixteen.nodes[4]
    resource = resource_id(owner.peer.node_id)
    last = next(n for n in holders(sixteen, owner) if not n.peer.topology.responsible(resource))
    for victim in holders(sixteen, owner):
        if victim is not last:
            victim.frozen = []
    for victim in sixteen.nodes:
        if victim.frozen is not None:
            last.put(peer_io.Ping(next(sixteen.refs), victim.peer.node_id))
    sixteen.run(1.0)
    assert not last.peer.topology.readers(resource) and not last.peer.topology.responsible(resource)
    outcome = fetch_certificate(last, owner)
    assert outcome.values and outcome.seconds <= 1.0


def test_a_peer_that_was_only_stopped_comes_back(sixteen: World) -> None:
    """A stopped and continued process refutes its death and holds its records again."""
    sleeper = sixteen.nodes[5]
    sleeper.frozen = []
    sixteen.run(40)
    late, sleeper.frozen = sleeper.frozen, None
    for item in late:
        sleeper.put(item)
    sleeper.tick()
    sixteen.run(90)
    assert all(members(n) == 16 for n in sixteen.nodes)
    for owner in sixteen.nodes:
        assert len(holders(sixteen, owner)) == 8


def test_leaving_hands_over(sixteen: World) -> None:
    """A peer that leaves first gives each of its records to the node that inherits it."""
    leaver = sixteen.nodes[7]
    leaver.ask(lambda ref: peer_io.Leave(ref))
    sixteen.kill(leaver)
    sixteen.run(0.5)
    for owner in sixteen.nodes:
        assert len(holders(sixteen, owner)) == 8
    sixteen.run(5)
    assert all(members(n) == 15 for n in sixteen.nodes if n is not leaver)
    assert not any(isinstance(e, peer_io.PeerLost) and e.reason != "left" for n in sixteen.nodes for e in n.events)


def test_a_partition_heals(sixteen: World) -> None:
    """Two halves that lost each other go on alone, meet again through bootstrap addresses and known peers, and
    afterwards agree on members and records."""
    side = {n.number: n.number % 2 for n in sixteen.nodes}
    sixteen.cut = lambda a, b: side[a.number] != side[b.number]
    sixteen.run(60)
    assert all(members(n) == 8 for n in sixteen.nodes)
    sixteen.cut = lambda a, b: False
    sixteen.run(240)
    assert [members(n) for n in sixteen.nodes] == [16] * 16
    for owner in sixteen.nodes:
        assert len(holders(sixteen, owner)) == 8
        assert fetch_certificate(sixteen.nodes[0], owner).values


def test_a_newcomer_receives_what_it_must_hold() -> None:
    """By the time a newcomer is ready it holds every record of its neighbourhood."""
    world = World(seed=8)
    world.overlay(10)
    for node in world.nodes:
        store_own_certificate(node)
    world.run(2)
    newcomer = world.add()
    world.run(20, until=lambda: newcomer.peer.topology.ready)
    for owner in world.nodes[:10]:
        resource = int.from_bytes(resource_id(owner.peer.node_id), "big")
        nearest = sorted(world.nodes, key=lambda n: int.from_bytes(n.peer.node_id, "big") ^ resource)[:8]
        if newcomer in nearest:
            assert newcomer in holders(world, owner)


def test_refused_after_the_handshake_is_no_link(sixteen: World) -> None:
    """A dialler whose certificate is refused after its own handshake is done counts no link, tells nobody, and
    goes on trying elsewhere."""
    world = sixteen
    outcast = world.add()
    world.refuse_after_handshake |= {(outcast.number, n.number) for n in world.nodes}
    world.run(20)
    assert not list(outcast.peer.linked())
    assert not outcast.peer.topology.ready
    assert all(members(n) == 16 for n in world.nodes[:16])


def test_who_was_held_up_itself_blames_no_link(sixteen: World) -> None:
    """After a second in which a node did not run its timers come before the acknowledgements that wait to be read:
    no link is suspect, and requests still go out."""
    node = sixteen.nodes[3]
    before = node.peer.counts.get("link-suspect", 0)
    for other in sixteen.nodes[4:]:
        node.put(peer_io.Ping(next(sixteen.refs), other.peer.node_id))
    node.frozen = []
    sixteen.run(1.0)
    waiting, node.frozen = node.frozen, None
    node.perform(node.peer.handle_timer(sixteen.now, sixteen.wall))
    assert len(list(node.peer.linked())) == 15
    for item in waiting:
        node.put(item)
    sixteen.run(5)
    assert node.peer.counts.get("link-suspect", 0) == before


def test_holders_in_doubt_are_asked_at_once_where_there_are_no_others(sixteen: World) -> None:
    """Who has just seen every neighbour leave something unacknowledged asks all holders, and not only the way to them:
    where most have fallen silent together the one that is left is among those in doubt."""
    asker, owner = sixteen.nodes[0], sixteen.nodes[9]
    holders = asker.peer.topology.replica_nodes(resource_id(owner.peer.node_id))
    left = next(n for n in sixteen.nodes if n.peer.node_id == holders[-1] and n is not asker)
    for link in asker.peer.links:
        link.suspect = True
    for node in sixteen.nodes[1:]:
        if node is not left:
            node.frozen = []
    began = sixteen.now
    assert fetch_certificate(asker, owner).values
    assert sixteen.now - began < 0.3


def test_a_trace_waits_for_a_link_as_any_request_does(sixteen: World) -> None:
    """While no link towards the resource is in use a trace waits."""
    asker, owner = sixteen.nodes[0], sixteen.nodes[9]
    for link in asker.peer.links:
        link.suspect = True
    sixteen.at(sixteen.now + 0.5, lambda: [setattr(link, "suspect", False) for link in asker.peer.links])
    hops = asker.ask(lambda ref: peer_io.Trace(ref, resource_id(owner.peer.node_id)))
    assert hops[-1].responsible


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_the_wall_clock_jumps_an_hour(sixteen: World, step: float) -> None:
    """A step of the wall clock moves no timer, kills no link and makes no record unreadable."""
    before = [dict(n.peer.counts) for n in sixteen.nodes]
    sixteen.wall_offset += step
    sixteen.run(70)
    for node, counts in zip(sixteen.nodes, before, strict=True):
        assert node.peer.counts.get("link-suspect", 0) == counts.get("link-suspect", 0)
        assert members(node) == 16
        updates = node.peer.counts.get("request-0x13", 0) - counts.get("request-0x13", 0)
        assert updates < 300
    for owner in sixteen.nodes:
        assert fetch_certificate(sixteen.nodes[3], owner).values


def test_records_can_be_stored_after_the_wall_clock_was_set_back(sixteen: World) -> None:
    """What was stored while all clocks were ahead is stored again, and what one clock alone had refused; an entry that
    is new is not as late as the others were.
    """
    world, (owner, other, third) = sixteen, sixteen.nodes[3:6]
    world.wall_offset += 3600
    store_own_certificate(owner)
    world.wall_offset -= 3600
    assert fetch_certificate(world.nodes[9], owner).values
    again = peer_io.StoreValue(owner.certificate.der, 36_000, position=0)
    new = again._replace(position=1)
    for value in (again, again, new, new):
        outcome = owner.ask(
            lambda ref, value=value: peer_io.Store(
                ref, resource_id(owner.peer.node_id), CERTIFICATE_BY_NODE, (value,)
            )
        )
        assert isinstance(outcome, peer_io.StoreOutcome), outcome
    times = {value.key: value.storage_time for value in fetch_certificate(owner, owner).values}
    assert times[array_key(0)] > (world.wall + 3000) * 1000 and times[array_key(1)] < (world.wall + 1) * 1000

    world.wall_offset += 3600
    ref = next(world.refs)
    other.put(
        peer_io.Store(
            ref,
            resource_id(other.peer.node_id),
            CERTIFICATE_BY_NODE,
            (peer_io.StoreValue(other.certificate.der, 36_000, position=0),),
        )
    )
    world.wall_offset -= 3600
    world.run(1)
    assert isinstance(other.outcomes[ref], InvalidMessage) and "future" in other.outcomes[ref].detail
    store_own_certificate(other)
    assert fetch_certificate(third, other).values


def test_a_node_that_cannot_be_dialled_is_no_peer(sixteen: World) -> None:
    """The admitting peer dials the newcomer back; where that fails the Join is refused (Forbidden)."""
    world = sixteen
    hidden = world.add()
    del world.by_address[hidden.peer.parameters.addresses[0]]
    world.run(30)
    assert not hidden.peer.topology.ready
    assert all(members(n) == 16 for n in world.nodes[:16])


@pytest.mark.parametrize("role", [Role.USER, Role.PROVISIONING])
def test_clients_store_and_fetch_without_joining(sixteen: World, role: Role) -> None:
    """A client links to a peer, reads through it, and is never counted as a member."""
    client = sixteen.add(role=role)
    sixteen.run(3)
    assert fetch_certificate(client, sixteen.nodes[4]).values
    assert all(members(n) == 16 for n in sixteen.nodes[:16])


def test_a_client_never_resumes_as_a_member(sixteen: World) -> None:
    """A client that finds nobody of those whom it remembers waits; it is no member who could go on alone."""
    remembered = (Remembered(sixteen.nodes[4].peer.node_id, (("127.9.9.9", 6084),)),)
    sixteen.cut = lambda a, b: True
    client = sixteen.add(role=Role.USER, remembered=remembered)
    sixteen.run(30)
    assert not client.peer.topology.ready
    sixteen.cut = lambda a, b: False
    sixteen.run(20)
    store_own_certificate(client)
    assert not client.storage.resource_count


def test_an_overlay_may_keep_clients_out() -> None:
    """With clients-permitted false (RFC 6940 section 11.1) a client's link is closed, a peer's is not."""
    world = World()
    world.configuration = attrs.evolve(world.configuration, clients_permitted=False)
    world.overlay(3)
    client = world.add(role=Role.USER)
    world.run(5)
    assert not list(client.peer.linked())
    assert world.nodes[0].peer.counts["link-client"] >= 1


def test_remembered_peers_need_no_bootstrap(sixteen: World) -> None:
    """A restarted peer comes back through the peers that it remembers, with its Node-ID."""
    known = sixteen.nodes[4]
    remembered = (Remembered(known.peer.node_id, known.peer.parameters.addresses),)
    back = sixteen.add(remembered=remembered)
    del sixteen.by_address[sixteen.nodes[0].address]
    sixteen.run(20)
    assert back.peer.topology.ready
    assert members(back) == 17


def twin_of(world: World, node: Node, **extra: Any) -> Node:
    """A node elsewhere with the certificate and key of `node`, as where a whole machine was copied."""
    own_random, world.random = world.random, random.Random()
    world.random.getrandbits = lambda bits: int.from_bytes(node.peer.node_id, "big")  # type: ignore[method-assign]
    twin = world.add(**extra)
    world.random = own_random
    assert twin.peer.node_id == node.peer.node_id
    return twin


def test_a_second_node_with_our_certificate_is_told_of(sixteen: World) -> None:
    """Where a node's whole state was copied both go on as members; within some minutes one hears of the other."""
    node = sixteen.nodes[4]
    twin = twin_of(sixteen, node, remembered=[Remembered(n.peer.node_id, (n.address,)) for n in sixteen.nodes[5:12]])
    sixteen.run(300)
    told = [e for n in (node, twin) for e in n.events if isinstance(e, peer_io.Misbehaved) and e.reason == "identity"]
    assert told and any(one.address[0] in told[0].detail for one in (node, twin))
    assert not any(isinstance(e, peer_io.Misbehaved) for n in sixteen.nodes[5:16] for e in n.events)


def test_a_last_life_far_ahead_is_no_twin(sixteen: World) -> None:
    """A node that was a member while its clock was two days ahead, and has another address now, hears of itself again
    and again: it says nothing."""
    node = sixteen.nodes[4]
    topology = node.peer.topology
    ahead = topology._make_entry(topology.own_entry.state, topology.own_entry.incarnation + 2 * 86_400_000)
    ahead = ahead._replace(addresses=(("127.8.8.8", 6084),))
    for _ in range(3):
        node.events.clear()
        update = UpdateReq(Delta((ahead,) * 400).encode())
        sixteen.nodes[5].peer.send(node.peer.node_id, update)
        sixteen.run(5)
        assert not any(isinstance(e, peer_io.Misbehaved) for e in node.events)


def test_who_gets_no_answer_is_told_of_a_possible_twin(sixteen: World) -> None:
    """A copy without the state of its original does not get in: the answers go to the original."""
    twin = twin_of(sixteen, sixteen.nodes[4])
    sixteen.run(60)
    assert not twin.peer.topology.ready and sixteen.nodes[4].peer.topology.ready
    (told,) = [e for e in twin.events if isinstance(e, peer_io.Misbehaved)]
    assert told.reason == "unanswered" and "another node with our certificate" in told.detail


def test_all_come_back_at_once() -> None:
    """RFC 6940 6.4.2.1: when all have died and start together, there is no member to admit anybody: they take turns."""
    before = World(7).overlay(5)
    remembered = [Remembered(node.peer.node_id, (node.address,)) for node in before]
    world = World(7)
    for number in range(5):
        others = tuple(each for each in remembered if each is not remembered[number])
        world.add(first=number == 0, remembered=others)
    assert [node.peer.node_id for node in world.nodes] == [each.node for each in remembered]
    world.run(20)
    assert all(node.peer.topology.ready and members(node) == 5 for node in world.nodes)


def test_a_newcomer_among_those_who_come_back_waits_for_them() -> None:
    """Who was never a member does not found a second overlay, though its Node-ID is the first in the order."""
    before = World(7).overlay(4)
    new = min(before, key=lambda node: node.peer.node_id)
    world = World(7)
    for node in before:
        others = [each for each in before if each is not node]
        remembered = tuple(Remembered(each.peer.node_id, (each.address,)) for each in others)
        world.add(remembered=() if node is new else remembered)
    world.run(15)
    assert not world.nodes[before.index(new)].peer.topology.ready
    world.run(25)
    assert all(node.peer.topology.ready and members(node) == 4 for node in world.nodes)


def test_only_the_first_may_found() -> None:
    """A node without `first` that reaches nobody stays outside (RFC 6940 section 6.4.2.1)."""
    world = World()
    lonely = world.add()
    world.run(60)
    assert not lonely.peer.topology.ready
    outcome = lonely.ask(lambda ref: peer_io.Fetch(ref, resource_id("x"), EVERYTHING), within=30)
    assert isinstance(outcome, ReloadError)


def test_buckets_serve_an_overlay_beyond_full_membership() -> None:
    """Beyond the membership limit peers keep k-buckets, and every record is still found over few hops."""
    parameters = KademliaParameters(full_membership=20, max_links=24, siblings=8, bucket_size=6)
    world = World(seed=5, kademlia=parameters)
    world.overlay(60)
    world.run(60)
    assert all(n.peer.topology.status()["mode"] == "k-buckets" for n in world.nodes)
    assert sum(len(n.peer.topology.members()) for n in world.nodes) / 60 < 50
    for owner in world.nodes[::4]:
        assert store_own_certificate(owner).replicas
    rng = random.Random(2)
    for owner in world.nodes[::4]:
        outcome = fetch_certificate(rng.choice(world.nodes), owner)
        assert outcome.values and outcome.hops <= 4


def test_links_beyond_the_limit_are_given_up_without_suspicion() -> None:
    """With more peers than links a peer releases slow links; nobody takes that for a death, and every record is
    found over a holder or one relay."""
    parameters = KademliaParameters(max_links=20, siblings=8)
    world = World(seed=6, kademlia=parameters)
    world.overlay(50)
    slow = set(world.nodes[::3])
    world.extra_delay = lambda a, b: 0.05 if a in slow or b in slow else 0.0
    world.run(120)
    assert not any(isinstance(e, peer_io.PeerLost) for n in world.nodes for e in n.events)
    assert all(members(n) == 50 for n in world.nodes)
    assert all(len(list(n.peer.linked())) < 45 for n in world.nodes)
    for owner in world.nodes[::5]:
        store_own_certificate(owner)
    world.run(1)
    rng = random.Random(3)
    for owner in world.nodes[::5]:
        for asker in rng.sample(world.nodes, 5):
            outcome = fetch_certificate(asker, owner)
            assert outcome.values and outcome.hops <= 2


def test_a_user_certificate_may_not_join(sixteen: World) -> None:
    """Join and Update from anything but peer and registrar names are Forbidden."""
    intruder = sixteen.add(role=Role.USER)
    sixteen.run(2)
    target = sixteen.nodes[0]
    from p2psipd.proto.reload.messages import JoinReq, UpdateReq

    answers: list[object] = []
    for body in (JoinReq(intruder.peer.node_id, b""), UpdateReq(b"\x07")):
        intruder.peer.send(target.peer.node_id, body, lambda answer: answers.append(answer.error))
        intruder.perform(intruder.peer._out)
        sixteen.run(2)
    assert len(answers) == 2 and all(isinstance(a, Forbidden) for a in answers), answers


def test_who_may_send_copies() -> None:
    """A holder takes them from every member, others from the 16 nearest to the resource as they know them."""
    world = World(seed=4)
    nodes = world.overlay(21)
    chance = random.Random(4)
    verdicts = set()
    for _ in range(40):
        resource = ResourceId(chance.randbytes(16))
        target = int.from_bytes(resource, "big")
        for node in nodes:
            own = number_of(node.peer.node_id)
            others = sorted((number_of(n.peer.node_id) for n in nodes if n is not node), key=target.__xor__)
            holds = own in sorted([own, *others], key=target.__xor__)[:8]
            for sender in (others[0], others[7], others[15], others[16], others[19]):
                expected = holds or sender in others[:16]
                assert node.peer.topology.may_replicate(resource, node_of(sender)) is expected
                verdicts.add((holds, sender in others[:16], expected))
    assert verdicts == {(True, True, True), (True, False, True), (False, True, True), (False, False, False)}


def test_a_small_overlay_takes_copies_from_everyone() -> None:
    """Who knows fewer than 16 others has none to compare a sender with."""
    node, chance = World(seed=4).overlay(9)[0], random.Random(4)
    for _ in range(20):
        assert node.peer.topology.may_replicate(ResourceId(chance.randbytes(16)), NodeId(chance.randbytes(16)))


def test_a_client_counts_itself_among_no_holders() -> None:
    """It is no member, however near its Node-ID is to a resource; of the others it knows whom it is linked to."""
    world = World(seed=4)
    world.overlay(9)
    client = world.add(role=Role.USER).peer
    world.run(5)
    assert list(client.topology.replica_set(ResourceId(client.node_id))) == list(client.linked()) != []

"""What a node does with a message that came in (RFC 6940 section 6.1), and what it remembers of it."""

from __future__ import annotations

import random

import pytest

from p2psipd.proto.identity.signing import null_certificate
from p2psipd.proto.reload.errors import TtlExceeded, UnsupportedForwardingOption
from p2psipd.proto.reload.ids import WILDCARD, NodeId, ResourceId
from p2psipd.proto.reload.link_table import Link, LinkTable
from p2psipd.proto.reload.routing import Deliver, Drop, Forward, Router, ViaStore
from p2psipd.proto.reload.transactions import REQUEST_LIFETIME, AnswerCache
from p2psipd.proto.reload.wire import (
    FORWARD_CRITICAL,
    Destination,
    ForwardingHeader,
    ForwardingOption,
    NodeDestination,
    OpaqueDestination,
    ResourceDestination,
)


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(16, "big"))


def to(number: int) -> NodeDestination:
    return NodeDestination(node(number))


def resource(number: int) -> ResourceDestination:
    return ResourceDestination(ResourceId(number.to_bytes(16, "big")))


OWN, LEFT, RIGHT, PREVIOUS = 0x50, 0x10, 0x90, 0x20


class Line:
    """A topology in which we are responsible for 0x40 to 0x5f and know a way to either side."""

    def responsible(self, target: bytes) -> bool:
        return 0x40 <= int.from_bytes(target, "big") < 0x60

    def may_read(self, resource: ResourceId) -> bool:
        return resource[-1] == 0x91

    def next_hop(self, target: bytes, exclude: NodeId | None = None, reading: bool = False) -> NodeId | None:
        hop = node(LEFT if int.from_bytes(target, "big") < OWN else RIGHT)
        return None if hop == exclude else hop


@pytest.fixture
def links() -> LinkTable:
    """Links to both sides and to a client, 0x51."""
    table = LinkTable(node(OWN))
    for number in (LEFT, RIGHT, PREVIOUS, 0x51):
        certificate = null_certificate(node(number), "x@peer.example", "example")
        link = Link(number, certificate, ("127.0.0.1", number), False, 0.0, 65000)
        table.add(link)
        table.confirm(link)
    return table


@pytest.fixture
def via_store() -> ViaStore:
    return ViaStore(random.Random(1).getrandbits, limit=3)


@pytest.fixture
def router(links: LinkTable, via_store: ViaStore) -> Router:
    return Router(node(OWN), links, Line(), via_store)  # type: ignore[arg-type]


def header(*destinations: Destination, via: tuple[Destination, ...] = (), ttl: int = 5) -> ForwardingHeader:
    return ForwardingHeader(1, 0, ttl, 0, True, 7, 0, via, destinations)


def route(router: Router, *destinations: Destination, request: bool = True, **fields: object) -> object:
    return router.route(header(*destinations, **fields), node(PREVIOUS), request, 100.0)  # type: ignore[arg-type]


def test_our_node_id_alone_is_for_us(router: Router) -> None:
    """The only entry names us: delivered."""
    assert route(router, to(OWN)) == Deliver(True)


def test_our_node_id_before_others_is_taken_off(router: Router) -> None:
    """Source routing: our entry goes, the message goes on to the next."""
    assert route(router, to(OWN), to(OWN), to(RIGHT)) == Forward(node(RIGHT), (to(PREVIOUS),), (to(RIGHT),))


def test_a_resource_of_ours_is_for_us(router: Router) -> None:
    """We are responsible for it: delivered, but not as addressed to our Node-ID."""
    assert route(router, resource(0x44)) == Deliver(False)


def test_a_copy_may_be_read(router: Router) -> None:
    """A Fetch or Stat that passes a holder of a copy ends there; any other request goes on."""
    copy = header(resource(0x91))
    assert router.route(copy, node(PREVIOUS), True, 0.0, reading=True) == Deliver(False)
    assert isinstance(router.route(copy, node(PREVIOUS), True, 0.0), Forward)


def test_the_wildcard_is_consumed(router: Router) -> None:
    """A wildcard is never forwarded (section 6.1.1), not even one of our own."""
    assert route(router, NodeDestination(WILDCARD)) == Deliver(False)
    assert router.route(header(NodeDestination(WILDCARD)), None, True, 0.0) == Drop("wildcard")


def test_a_resource_of_others_goes_towards_it(router: Router) -> None:
    """The topology names the next hop."""
    assert route(router, resource(0x99)) == Forward(node(RIGHT), (to(PREVIOUS),), (resource(0x99),))


def test_a_linked_node_gets_it_directly(router: Router) -> None:
    """A node in the connection table, a client too, even if we are responsible for its Node-ID."""
    assert route(router, to(0x51)) == Forward(node(0x51), (to(PREVIOUS),), (to(0x51),))


def test_an_unlinked_node_of_our_own_region_is_dropped(router: Router) -> None:
    """Nobody could be nearer to it than we are (section 6.1.1)."""
    assert route(router, to(0x52)) == Drop("no-route")


def test_a_suspect_link_is_not_used(router: Router, links: LinkTable) -> None:
    """A link that does not acknowledge is as good as none: the topology's way is taken, or there is no route."""
    certificate = null_certificate(node(0x95), "x@peer.example", "example")
    added = Link(0x95, certificate, ("127.0.0.1", 1), False, 0.0, 65000)
    links.add(added)
    links.confirm(added)
    for number in (0x51, 0x95):
        link = links.to(node(number))
        assert link is not None
        link.suspect = True
    assert route(router, to(0x51)) == Drop("no-route")
    assert route(router, to(0x95)) == Forward(node(RIGHT), (to(PREVIOUS),), (to(0x95),))


def test_never_back_to_where_it_came_from(router: Router) -> None:
    """The topology is asked for a hop other than the previous one; without it the message is dropped."""
    decision = router.route(header(resource(0x99)), node(RIGHT), True, 0.0)
    assert decision == Drop("no-route")


def test_our_own_message_carries_no_via_entry(router: Router) -> None:
    """The Via List starts empty: what we originate is not signed off by ourselves."""
    assert router.route(header(resource(0x99), ttl=0), None, True, 0.0) == Forward(node(RIGHT), (), (resource(0x99),))


def test_an_answer_gathers_no_via_list(router: Router) -> None:
    """Nothing is sent in answer to an answer."""
    assert route(router, to(RIGHT), request=False) == Forward(node(RIGHT), (), (to(RIGHT),))


def test_ttl_counts_only_when_passing_on(router: Router) -> None:
    """At 0 a message for us is delivered, another one exceeded its TTL."""
    assert route(router, to(OWN), ttl=0) == Deliver(True)
    with pytest.raises(TtlExceeded):
        route(router, to(RIGHT), ttl=0)


def test_an_option_that_forwarders_must_know(router: Router) -> None:
    """FORWARD_CRITICAL and unknown: it is not passed on; at its destination the flag says nothing."""
    option = (ForwardingOption(3, FORWARD_CRITICAL, b""),)
    with pytest.raises(UnsupportedForwardingOption):
        router.route(header(to(RIGHT))._replace(options=option), node(PREVIOUS), True, 0.0)
    assert router.route(header(to(OWN))._replace(options=option), node(PREVIOUS), True, 0.0) == Deliver(True)


def test_a_long_via_list_is_compressed_and_expanded(router: Router) -> None:
    """Eight entries become one opaque ID; an answer that names us and it goes back along the reversed list."""
    long = tuple(to(n) for n in (1, 2, 3, 4, 5, 6, 7))
    forward = route(router, resource(0x99), via=long)
    assert isinstance(forward, Forward)
    (opaque,) = forward.via
    assert isinstance(opaque, OpaqueDestination) and len(opaque.opaque_id) == 8
    back = router.route(header(to(OWN), opaque), node(RIGHT), False, 101.0)
    assert back == Forward(node(PREVIOUS), (), (to(PREVIOUS), *long[::-1]))


def test_a_short_via_list_stays(via_store: ViaStore) -> None:
    """State is kept only where it saves something."""
    short = tuple(to(n) for n in range(1, 8))
    assert via_store.compress(short, 0.0) == short
    assert len(via_store) == 0


def test_an_unknown_opaque_id_is_dropped(router: Router) -> None:
    """Not ours, or forgotten."""
    assert route(router, OpaqueDestination(b"\x80\x01")) == Drop("opaque-unknown")


def test_opaque_ids_that_lead_to_themselves_end(router: Router, via_store: ViaStore) -> None:
    """Expansion is bounded, whatever a Via List held."""
    (first,) = via_store.compress((to(OWN),) * 8, 100.0)
    (second,) = via_store.compress((first,) * 8, 100.0)
    (third,) = via_store.compress((second,) * 8, 100.0)
    assert route(router, third, to(RIGHT)) == Drop("loop")


def test_via_lists_are_forgotten(via_store: ViaStore) -> None:
    """Beyond the limit, or after a request's lifetime, the oldest go first."""
    long = tuple(to(n) for n in range(1, 10))
    made = [via_store.compress(long, float(n))[0] for n in range(4)]
    assert isinstance(made[0], OpaqueDestination) and via_store.expand(made[0].opaque_id) is None
    assert isinstance(made[3], OpaqueDestination) and via_store.expand(made[3].opaque_id) == long[::-1]
    via_store.compress(long, 60.0)
    assert len(via_store) == 1


def test_answers_are_kept_for_a_request_s_lifetime() -> None:
    """A request under way stands there without an answer; afterwards a repeat is a new request."""
    cache = AnswerCache()
    key = (node(1), 5)
    assert cache.find(key, 0.0) == (False, None)
    cache.put(key, None, 0.0)
    assert cache.find(key, 1.0) == (True, None)
    cache.put(key, b"answer", 2.0)
    assert cache.find(key, 2.0 + REQUEST_LIFETIME) == (True, b"answer")
    assert cache.find(key, 2.1 + REQUEST_LIFETIME) == (False, None)


def test_kept_answers_are_bounded() -> None:
    """In number and in octets; the oldest go first, and an answer replaced counts once."""
    cache = AnswerCache(limit=10, max_octets=1000)
    for number in range(20):
        cache.put((node(1), number), b"x", 0.0)
    assert len(cache) == 10
    for _ in range(5):
        cache.put((node(2), 1), bytes(600), 1.0)
    assert cache.find((node(2), 1), 1.0) == (True, bytes(600))
    cache.put((node(2), 2), bytes(600), 2.0)
    assert cache.find((node(2), 1), 2.0) == (False, None)
    assert cache.find((node(2), 2), 2.0) == (True, bytes(600))

"""Any bytes on a link of the peer core: nothing raises, and nobody but their sender notices."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import Forbidden, NotFound, UnknownKind
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.kinds import CERTIFICATE_BY_NODE
from p2psipd.proto.reload.membership import (
    Delta,
    MemberDigest,
    MemberSummary,
    PageRequest,
    Pushed,
    RecordDigest,
    RecordSummary,
)
from p2psipd.proto.reload.messages import (
    AppAttachReq,
    FetchReq,
    FindReq,
    JoinReq,
    LeaveReq,
    PingAns,
    PingReq,
    ProbeReq,
    RouteQueryReq,
    StatReq,
    StoredDataSpecifier,
    StoreReq,
    UpdateReq,
)
from p2psipd.proto.reload.wire import Destination, NodeDestination, OpaqueDestination, ResourceDestination
from tests.proto.reload.by_hand import Hand
from tests.proto.reload.stapled import Node, World

quick = settings(max_examples=150, deadline=None)


@cache
def four() -> tuple[World, Node, Hand]:
    """A small overlay that all examples share, one of its peers, and a well-behaved neighbour of that."""
    world = World(seed=12)
    world.overlay(4)
    return world, world.nodes[1], Hand(world.nodes[1])


def nobody_else_noticed() -> None:
    """The node still answers its other neighbour, and its own links stand."""
    world, node, friend = four()
    assert isinstance(friend.ask(PingReq()), PingAns)
    assert not friend.closed
    assert len([n for n in world.nodes if n is node or node.peer.is_linked(n.peer.node_id)]) == 4


def leave(hand: Hand) -> None:
    """The stranger goes."""
    hand.world.close(hand, hand.link, "done")  # type: ignore[arg-type]
    hand.world.run(0.1)


@quick
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4))
def test_any_bytes_close_at_most_their_own_link(chunks: list[bytes]) -> None:
    """Octets that are no frames close the link that they came over, and only that one."""
    hand = Hand(four()[1])
    for chunk in chunks:
        hand.octets(chunk)
    if chunks[0] and chunks[0][0] not in (128, 129):
        assert list(hand.closed.values()) == ["malformed frame"]
    leave(hand)
    nobody_else_noticed()


@quick
@given(st.binary(max_size=400), st.booleans())
def test_any_message_in_a_good_frame(data: bytes, token: bool) -> None:
    """Octets in a frame that are no message are dropped and counted; the link stays."""
    hand = Hand(four()[1])
    message = b"\xd2\x45\x4c\x4f" + data if token else data
    hand.send(message)
    assert not hand.closed
    leave(hand)
    nobody_else_noticed()


@quick
@given(st.data())
def test_a_good_message_with_octets_changed(data: st.DataObject) -> None:
    """A valid request with a few octets replaced, cut or doubled raises nothing."""
    hand = Hand(four()[1])
    hand.strict = False  # a changed Destination List may lead back to it
    message = bytearray(hand.message(PingReq(b"something"), via=(NodeDestination(hand.node_id),)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        match data.draw(st.sampled_from("rcd")):
            case "r":
                message[at] = data.draw(st.integers(0, 255))
            case "c":
                del message[at : at + data.draw(st.integers(1, 40))]
            case _:
                message[at:at] = message[at : at + data.draw(st.integers(1, 40))]
        message = message or bytearray(b"\0")
    hand.send(bytes(message))
    leave(hand)
    nobody_else_noticed()


def test_who_is_refused_is_told_by_name() -> None:
    """An error that the asker has brought upon itself is an event; that something is not there is none."""
    node = four()[1]
    hand = Hand(node, Role.USER, "mallory@overlay.example")
    node.events.clear()
    assert isinstance(hand.ask(FetchReq(ResourceId(bytes(16)), (StoredDataSpecifier(99),))), UnknownKind)
    assert isinstance(hand.ask(JoinReq(hand.node_id, b"")), Forbidden)
    assert isinstance(hand.ask(AppAttachReq(b"u", b"p", 99, b"passive", ())), NotFound)
    told = [event for event in node.events if isinstance(event, peer_io.Refused)]
    assert [(event.node, event.method, type(event.error)) for event in told] == [
        (hand.node_id, "Fetch", UnknownKind),
        (hand.node_id, "Join", Forbidden),
    ]
    assert all(event.link == hand.theirs for event in told)
    leave(hand)


identifiers = st.one_of(
    st.binary(min_size=16, max_size=16).filter(any),
    st.builds(lambda n: four()[0].nodes[n].peer.node_id, st.integers(0, 3)),
    st.just(b"\xff" * 16),
)
last = st.one_of(
    st.builds(NodeDestination, identifiers),
    st.builds(ResourceDestination, st.binary(min_size=1, max_size=254)),
    st.builds(OpaqueDestination, st.binary(min_size=3, max_size=20)),
)
between = st.one_of(st.builds(NodeDestination, identifiers), st.builds(OpaqueDestination, st.binary(max_size=4)))
numbers = st.integers(0, 2**32 - 1)
updates = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda s: Delta((), tuple(s)).encode(), st.lists(st.tuples(identifiers, numbers), max_size=3)),
    st.builds(lambda t, w: PageRequest(t, w).encode(), identifiers, st.integers(0, 65535)),
    st.builds(MemberDigest, st.lists(st.tuples(numbers, numbers), min_size=16, max_size=16)).map(MemberDigest.encode),
    st.builds(
        lambda r, reply, m: MemberSummary(r, reply, tuple(m)).encode(),
        st.integers(0, 65535),
        st.booleans(),
        st.lists(st.tuples(identifiers, numbers, st.integers(0, 255)), max_size=4),
    ),
    st.builds(lambda n, d: RecordDigest(n, d).encode(), numbers, numbers),
    st.builds(
        lambda reply, r: RecordSummary(reply, tuple(r)).encode(),
        st.booleans(),
        st.lists(st.tuples(st.binary(max_size=20), st.binary(min_size=8, max_size=8)), max_size=4),
    ),
    st.just(Pushed().encode()),
)
resources = st.one_of(st.binary(min_size=1, max_size=30), st.just(resource_id("x")))
specifiers = st.builds(
    lambda ranges: (StoredDataSpecifier(CERTIFICATE_BY_NODE, 0, tuple(ranges), None),),
    st.lists(st.just((0, 0xFFFFFFFF)), max_size=1),
)
requests = st.one_of(
    st.builds(UpdateReq, updates),
    st.builds(JoinReq, identifiers, st.binary(max_size=20)),
    st.builds(LeaveReq, identifiers, updates),
    st.builds(RouteQueryReq, st.booleans(), last, st.binary(max_size=5)),
    st.builds(ProbeReq, st.lists(st.integers(1, 255), max_size=4).map(tuple)),
    st.builds(FetchReq, resources, specifiers),
    st.builds(StatReq, resources, specifiers),
    st.builds(FindReq, resources, st.just((CERTIFICATE_BY_NODE,))),
    st.builds(lambda r, n: StoreReq(r, n, ()), resources, st.integers(0, 255)),
)


@settings(max_examples=300, deadline=None)
@given(
    requests,
    st.lists(between, max_size=4),
    st.one_of(st.none(), last),
    st.lists(between, max_size=12),
    st.integers(0, 25),
    st.integers(0, 2000),
)
def test_any_signed_request_over_any_path(
    body: UpdateReq, through: list[Destination], end: Destination | None, via: list[Destination], ttl: int, limit: int
) -> None:
    """Whatever a peer with a certificate signs, to whomever, its neighbour goes on as before."""
    hand = Hand(four()[1])
    destinations = None if end is None else (*through, end)
    hand.ask(body, destinations, via=tuple(via), ttl=ttl, max_response_length=limit)
    assert not hand.closed
    leave(hand)
    nobody_else_noticed()

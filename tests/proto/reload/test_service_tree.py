"""The walks of ReDiR over a tree that is a dictionary (RFC 7374 sections 4.3, 4.5 and 7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.service_tree import Place, Tree, look_up, register

IDS = st.binary(min_size=16, max_size=16).map(NodeId)
#: Node-IDs that crowd together, so that walks go deep.
NEAR = st.binary(min_size=1, max_size=1).map(lambda last: NodeId(bytes(15) + last))


class Dictionary:
    """All tree nodes of one namespace; `own` is who enters."""

    def __init__(self) -> None:
        self.held: dict[Place, set[NodeId]] = defaultdict(set)
        self.own = NodeId(bytes(16))
        self.asked: list[Place] = []

    async def providers(self, place: Place) -> Collection[NodeId]:
        self.asked.append(place)
        return set(self.held[place])

    async def enter(self, place: Place) -> None:
        self.held[place].add(self.own)


def finished(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


def four_bits(number: int) -> NodeId:
    """The identifier of the RFC's examples, whose space has four bits."""
    return NodeId(bytes([number << 4]) + bytes(15))


def example() -> tuple[Tree, Dictionary]:
    """Section 7.1: nodes 2, 3, 7 and 4 have registered, in this order."""
    tree, nodes = Tree(2), Dictionary()
    for number in (2, 3, 7, 4):
        nodes.own = four_bits(number)
        finished(register(tree, nodes, nodes.own))
    return tree, nodes


def test_figure_4() -> None:
    """After the registrations of section 7.1 the tree is that of figure 4."""
    _, nodes = example()
    held = {place: sorted(one[0] >> 4 for one in ids) for place, ids in nodes.held.items() if ids}
    assert held == {
        Place(0, 0): [2, 3, 4, 7],
        Place(1, 0): [2, 3, 4, 7],
        Place(2, 0): [2, 3],
        Place(2, 1): [4, 7],
        Place(3, 1): [3],
    }


def test_look_up_of_section_7_2() -> None:
    """Node 5 finds its successor 7 with the one fetch of tree node (2,1)."""
    tree, nodes = example()
    nodes.asked.clear()
    assert finished(look_up(tree, nodes, four_bits(5))) == four_bits(7)
    assert nodes.asked == [Place(2, 1)]


def test_no_successor_gives_some_provider() -> None:
    """Above the highest provider there is no successor: one of the root's is taken."""
    tree, nodes = example()
    assert finished(look_up(tree, nodes, four_bits(12))) == four_bits(2)


def test_nobody_there() -> None:
    """In an empty tree nothing is found, with at most one fetch a level."""
    nodes = Dictionary()
    assert finished(look_up(Tree(10), nodes, four_bits(1))) is None
    assert len(nodes.asked) == 3


@settings(max_examples=60)
@given(st.lists(st.one_of(IDS, NEAR), min_size=1, max_size=40, unique=True), st.one_of(IDS, NEAR), st.integers(2, 10))
def test_every_provider_is_found(providers: list[NodeId], key: NodeId, branching: int) -> None:
    """A look-up from any key ends at a provider, and every provider is found from its own identifier."""
    tree, nodes = Tree(branching), Dictionary()
    for _ in range(2):
        for own in providers:
            nodes.own = own
            finished(register(tree, nodes, own))
    assert finished(look_up(tree, nodes, key)) in providers
    for own in providers:
        assert finished(look_up(tree, nodes, own)) == own


@given(st.lists(NEAR, min_size=2, max_size=20, unique=True), NEAR, st.randoms(use_true_random=False))
def test_lost_records_end_the_walk(providers: list[NodeId], key: NodeId, random: Any) -> None:
    """With records missing anywhere the walk still ends, within the depth of the tree."""
    tree, nodes = Tree(2), Dictionary()
    for own in providers:
        nodes.own = own
        finished(register(tree, nodes, own))
    for held in nodes.held.values():
        for one in sorted(held):
            if random.random() < 0.5:
                held.discard(one)
    nodes.asked.clear()
    finished(look_up(tree, nodes, key))
    assert len(nodes.asked) <= 130

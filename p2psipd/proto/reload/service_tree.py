"""Finding and announcing services in the ReDiR tree: the two walks of RFC 7374 sections 4.3 and 4.5.

The tree itself is :mod:`p2psipd.proto.reload.redir`; how a tree node is read and written was handed in, as a
:class:`TreeNodes`, so the walks run over a dictionary in a test and over the overlay in a node.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple, Protocol

from p2psipd.proto.reload.ids import NODE_ID_LENGTH, NodeId

STARTING_LEVEL: Final = 2
"""Where both walks begin (RFC 7374 section 4.2)."""

_BITS: Final = 8 * NODE_ID_LENGTH
_MAX_NUMBER: Final = 0xFFFF
"""The greatest level and node number that a RedirServiceProvider can carry."""


class Place(NamedTuple):
    """A tree node: its level and its number there, from the left."""

    level: int
    node: int


class TreeNodes(Protocol):
    """The tree of one namespace."""

    async def providers(self, place: Place) -> Collection[NodeId]:
        """The Node-IDs of the providers in a tree node, with none where there is nothing."""
        ...

    async def enter(self, place: Place) -> None:
        """Store this node's own RedirServiceProvider in a tree node."""
        ...


class Tree:
    """The shape of a ReDiR tree: `branching` children, and as many intervals, to a tree node."""

    def __init__(self, branching: int) -> None:
        self.branching = branching

    def place(self, level: int, key: NodeId) -> Place:
        """The tree node that is responsible for the interval I(level, key)."""
        return Place(level, int.from_bytes(key, "big") * self.branching**level >> _BITS)

    def same_interval(self, level: int, one: NodeId, other: NodeId) -> bool:
        """Whether both lie in one interval of `level`: the intervals of a level are the tree nodes of the next."""
        return self.place(level + 1, one) == self.place(level + 1, other)

    def reaches(self, level: int, key: NodeId) -> bool:
        """Whether the tree has a tree node for `key` at `level` whose numbers fit into a record."""
        return 0 <= level <= _BITS and self.place(level, key).node <= _MAX_NUMBER


async def register(tree: Tree, nodes: TreeNodes, own: NodeId) -> list[Place]:
    """Enter `own` wherever section 4.3 wants it; the places.

    The record goes to the starting level in any case, upwards for as long as `own` is the first or the last of
    its interval, and downwards until it is alone in its interval.
    """
    entered: list[Place] = []
    level = STARTING_LEVEL
    while level >= 0:
        place = tree.place(level, own)
        others = await nodes.providers(place)
        await nodes.enter(place)
        entered.append(place)
        if not _is_outermost(tree, level, own, others):
            break
        level -= 1
    level = STARTING_LEVEL
    while tree.reaches(level, own):
        place = tree.place(level, own)
        others = await nodes.providers(place)
        if level > STARTING_LEVEL and _is_outermost(tree, level, own, others):
            await nodes.enter(place)
            entered.append(place)
        if not any(other != own and tree.same_interval(level, own, other) for other in others):
            break
        level += 1
    return entered


def _is_outermost(tree: Tree, level: int, own: NodeId, others: Collection[NodeId]) -> bool:
    """Whether no provider of its interval lies below `own`, or none above."""
    inside = [other for other in others if other != own and tree.same_interval(level, own, other)]
    return all(other > own for other in inside) or all(other < own for other in inside)


async def look_up(tree: Tree, nodes: TreeNodes, key: NodeId) -> NodeId | None:
    """The provider that follows `key` most closely, or some provider where none follows; None if there is none.

    Section 4.5 with its temporary cache, which also ends the walk where it would go up and down for ever: between
    two tree nodes of which one has lost a record.
    """
    seen: dict[int, Collection[NodeId]] = {}
    level = STARTING_LEVEL
    while level >= 0 and level not in seen and tree.reaches(level, key):
        found = seen[level] = await nodes.providers(tree.place(level, key))
        inside = [one for one in found if tree.same_interval(level, key, one)]
        if not any(one >= key for one in found):
            level -= 1
        elif any(one < key for one in inside) and any(one > key for one in inside):
            level += 1
        else:
            break
    known = {one for found in seen.values() for one in found}
    followers = [one for one in known if one >= key]
    return min(followers, default=None) or min(known, default=None)

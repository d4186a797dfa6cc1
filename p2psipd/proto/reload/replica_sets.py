"""Who holds a resource: the members nearest to it by XOR, kept by the resource's first bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.member_list import node_of
from p2psipd.proto.reload.membership import ID_BITS, IdSet

_SETS_KEPT: Final = 20_000


class ReplicaSets:
    """The replica sets of one state of the membership; `renew` begins the next.

    Which of two members is nearer to a target is decided by the target's bit at which the two first differ.  So
    targets that are alike down to the last bit at which any two members do have the same holders in the same order,
    and one answer serves them all: in an overlay of 100 some 13 bits, whatever the number of records.
    """

    def __init__(self, live: IdSet, own: int, copies: int) -> None:
        self._live = live
        self._own = own
        self._copies = copies
        self._with_own = False
        self._shift = 0
        self._sets: dict[int, Sequence[NodeId]] = {}

    def renew(self, with_own: bool) -> None:
        """The members have changed; `with_own`: we are one ourselves."""
        self._with_own = with_own
        members = sorted([*self._live, self._own])
        alike = min((one ^ next_one for one, next_one in pairwise(members)), default=0)
        self._shift = max(0, alike.bit_length() - 1) if len(members) > 1 else ID_BITS
        self._sets = {}

    def of(self, number: int) -> Sequence[NodeId]:
        """The members that must hold the resource with this number, nearest first, ourselves among them if so."""
        prefix = number >> self._shift
        nodes = self._sets.get(prefix)
        if nodes is None:
            numbers = self._live.nearest(number, self._copies)
            if self._with_own:
                numbers = sorted([*numbers, self._own], key=number.__xor__)[: self._copies]
            nodes = tuple([node_of(one) for one in numbers])
            if len(self._sets) >= _SETS_KEPT:
                self._sets.clear()
            self._sets[prefix] = nodes
        return nodes

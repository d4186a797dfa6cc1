"""Symmetric recursive routing (RFC 6940 sections 6.1 and 6.2): what a node does with a message that came in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.proto.reload.errors import TtlExceeded
from p2psipd.proto.reload.ids import WILDCARD, NodeId
from p2psipd.proto.reload.wire import (
    FORWARD_CRITICAL,
    Destination,
    ForwardingHeader,
    NodeDestination,
    OpaqueDestination,
    ResourceDestination,
    check_options,
)

if TYPE_CHECKING:
    from p2psipd.proto.reload.link_table import LinkTable
    from p2psipd.proto.reload.topology import Topology

_MAX_VIA = 8
_STATE_FOR = 15.0


class Deliver(NamedTuple):
    """The message is for this node."""

    to_own_id: bool


class Forward(NamedTuple):
    """Pass it on to `node` with these lists."""

    node: NodeId
    via: tuple[Destination, ...]
    destinations: tuple[Destination, ...]


class Drop(NamedTuple):
    """Discard it in silence, as the RFC says; `reason` is for counting."""

    reason: str


_TO_OWN_ID = Deliver(True)
_TO_WHOEVER = Deliver(False)


class ViaStore:
    """List compression (section 6.1.2): a long Via List becomes a short opaque ID that only we can expand.

    The lists are kept for `_STATE_FOR` seconds, longer than a request lives; the oldest go first.
    """

    def __init__(self, random_bits: Callable[[int], int], limit: int = 10_000) -> None:
        self._random_bits = random_bits
        self._limit = limit
        self._lists: OrderedDict[bytes, tuple[float, tuple[Destination, ...]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lists)

    def compress(self, via: tuple[Destination, ...], now: float) -> tuple[Destination, ...]:
        """`via` itself while it is short, else one opaque ID."""
        if len(via) < _MAX_VIA:
            return via
        opaque = self._random_bits(64).to_bytes(8, "big")
        self._lists[opaque] = (now, via)
        while self._lists:
            oldest = next(iter(self._lists))
            if len(self._lists) <= self._limit and now - self._lists[oldest][0] <= _STATE_FOR:
                break
            del self._lists[oldest]
        return (OpaqueDestination(opaque),)

    def expand(self, opaque: bytes) -> tuple[Destination, ...] | None:
        """The Destination List that the opaque ID stands for: its Via List reversed."""
        found = self._lists.get(opaque)
        return None if found is None else found[1][::-1]


class Router:
    """Decides; sends nothing."""

    def __init__(self, own: NodeId, links: LinkTable, topology: Topology, via_store: ViaStore) -> None:
        self._own = own
        self._links = links
        self._topology = topology
        self._via_store = via_store

    def route(
        self, header: ForwardingHeader, previous: NodeId | None, is_request: bool, now: float, reading: bool = False
    ) -> Deliver | Forward | Drop:
        """What to do with a message that came from `previous` (None: it is ours); `reading`: a Fetch or Stat.

        :raises TtlExceeded: it may not go farther.
        :raises UnsupportedForwardingOption: an option that each forwarder must understand.
        """
        destinations = header.destinations
        for _ in range(len(destinations) + 8):
            first = destinations[0]
            if isinstance(first, NodeDestination):
                node = first.node
                if node == self._own:
                    if len(destinations) == 1:
                        return _TO_OWN_ID
                    destinations = destinations[1:]
                    continue
                if node == WILDCARD:
                    return _TO_WHOEVER if previous is not None else Drop("wildcard")
                hop = self._hop_to_node(node, previous)
            elif isinstance(first, ResourceDestination):
                # While we are no member nothing is ours, whatever the distances say.
                if self._topology.responsible(first.resource) or (reading and self._topology.may_read(first.resource)):
                    return _TO_WHOEVER
                hop = self._topology.next_hop(first.resource, previous, reading)
            else:
                assert isinstance(first, OpaqueDestination)
                expanded = self._via_store.expand(first.opaque_id)
                if expanded is None:
                    return Drop("opaque-unknown")
                destinations = expanded + destinations[1:]
                continue
            if hop is None:
                return Drop("no-route")
            if previous is None:
                return Forward(hop, header.via, destinations)
            if header.ttl == 0:
                raise TtlExceeded(f"at {self._own.hex()}")
            check_options(header, FORWARD_CRITICAL)
            via = header.via
            if is_request:
                via = self._via_store.compress((*header.via, NodeDestination(previous)), now)
            return Forward(hop, via, destinations)
        return Drop("loop")

    def _hop_to_node(self, node: NodeId, previous: NodeId | None) -> NodeId | None:
        """Straight down a link if there is one (section 6.1.2), else towards it; nowhere if we are nearest."""
        link = self._links.to(node)
        if link is not None and not link.suspect:
            return node
        if self._topology.responsible(node):
            return None
        return self._topology.next_hop(node, previous)

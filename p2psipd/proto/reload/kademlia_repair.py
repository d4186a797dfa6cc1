"""Keeping every record on its holders: pushes to a newcomer, comparison between siblings, hand-over.

Two siblings compare the resources that both must hold by one 16-byte digest; only if it differs do they list
resources, and only what differs is stored across (`docs/kademlia-topology.md` section 6).  This runs every
`repair_for` seconds and half a second after a death, and never needs the publisher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.membership import Pushed, RecordDigest, RecordSummary
from p2psipd.proto.reload.messages import UpdateReq
from p2psipd.proto.reload.topology import TopologyHost

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUMMARY_ROWS = 1500
_NOT_HELD = bytes(8)
_COMPARED_FOR = 2.0


class Holders(Protocol):
    """What the repair asks of the topology."""

    def replica_set(self, resource: ResourceId) -> Sequence[NodeId]:
        """The holders of `resource`, nearest first, ourselves among them if so."""

    def siblings(self) -> list[NodeId]:
        """The nearest live peers."""

    @property
    def ready(self) -> bool:
        """Whether we are a member."""


class RecordRepair:
    """The part of the Kademlia plug-in that moves records."""

    def __init__(self, host: TopologyHost, holders: Holders, repair_for: float) -> None:
        self._host = host
        self._holders = holders
        self._repair_for = repair_for
        self._soon_at: float | None = None
        self._handing_over: set[ResourceId] = set()
        self._compared_at: dict[NodeId, float] = {}

    def start(self) -> None:
        """Begin the regular comparison."""
        host = self._host
        host.call_at(host.now + self._repair_for * (0.5 + host.random_bits(8) / 512), self._regular)

    def _regular(self) -> None:
        host = self._host
        host.call_at(host.now + self._repair_for * (0.75 + host.random_bits(8) / 512), self._regular)
        self._compare_all()

    def soon(self, delay: float) -> None:
        """Compare with all siblings `delay` seconds from now, once for any number of calls until then, and once
        more some seconds later, when news of further changes has come in."""
        if self._soon_at is None:
            host = self._host
            self._soon_at = host.now + delay * (1 + host.random_bits(8) / 256)
            host.call_at(self._soon_at, self._now)
            host.call_at(host.now + delay + 8.0, self._compare_all)

    def _now(self) -> None:
        self._soon_at = None
        self._compare_all()

    def _compare_all(self) -> None:
        if not self._holders.ready:
            return
        host = self._host
        own = host.node_id
        if len(self._compared_at) > 1000:
            self._compared_at.clear()
        digests: dict[NodeId, list[int]] = {n: [0, 0] for n in self._holders.siblings()}
        for resource in list(host.resources()):
            holders = self._holders.replica_set(resource)
            if own not in holders:
                self._hand_to_holder(resource, holders)
                continue
            digest = int.from_bytes(host.resource_digest(resource), "big")
            for node in holders:
                row = digests.get(node)
                if row is not None:
                    row[0] += 1
                    row[1] ^= digest
        for node, (count, digest) in digests.items():
            # One digest serves both sides, so a pair that has just compared is left alone.
            recent = host.now - self._compared_at.get(node, float("-inf")) < _COMPARED_FOR
            if count and host.is_linked(node) and not (recent and node < own):
                host.send(node, UpdateReq(RecordDigest(count, digest).encode()))

    def _shared(self, node: NodeId) -> list[tuple[ResourceId, bytes]]:
        own = self._host.node_id
        rows = []
        for resource in self._host.resources():
            holders = self._holders.replica_set(resource)
            if node in holders and own in holders:
                rows.append((resource, self._host.resource_digest(resource)))
        return rows

    def on_digest(self, node: NodeId, theirs: RecordDigest) -> None:
        """Answer with our list if our digest differs."""
        self._compared_at[node] = self._host.now
        rows = self._shared(node)
        digest = 0
        for _, one in rows:
            digest ^= int.from_bytes(one, "big")
        if (len(rows), digest) == (theirs.resources, theirs.digest):
            return
        pages: list[Sequence[tuple[ResourceId, bytes]]] = [
            rows[at : at + _SUMMARY_ROWS] for at in range(0, len(rows), _SUMMARY_ROWS)
        ]
        if len(pages) <= 1:
            self._send(node, RecordSummary(False, tuple(rows)))
            return
        # Several pages cannot say what is *not* held; push everything, the receiver keeps what is new to it.
        self._host.push_records(node, [r for r, _ in rows])
        for page in pages:
            self._send(node, RecordSummary(True, tuple((r, _NOT_HELD) for r, _ in page)))

    def on_summary(self, node: NodeId, theirs: RecordSummary) -> None:
        """Push what the other lacks or has otherwise; ask for what we lack."""
        host = self._host
        listed = dict(theirs.records)
        mine = dict(self._shared(node))
        if theirs.reply:
            host.push_records(node, [r for r, d in listed.items() if mine.get(r, d) != d])
            return
        host.push_records(node, [r for r, d in mine.items() if listed.get(r) != d])
        wanted = tuple((r, mine.get(r, _NOT_HELD)) for r, d in listed.items() if mine.get(r) != d)
        for at in range(0, len(wanted), _SUMMARY_ROWS):
            self._send(node, RecordSummary(True, wanted[at : at + _SUMMARY_ROWS]))

    def push_to_joiner(self, node: NodeId) -> None:
        """A node near us is joining: give it what it will have to hold, then say that this was all.

        Of the present holders only the two nearest push; all say `Pushed`, so the newcomer knows when its whole
        neighbourhood has spoken.
        """
        host = self._host
        number = int.from_bytes(node, "big")
        resources = []
        for resource in host.resources():
            holders = self._holders.replica_set(resource)
            target = int.from_bytes(resource, "big")
            last = int.from_bytes(holders[-1], "big") if holders else 0
            if host.node_id in holders[:2] and (len(holders) < 8 or number ^ target < last ^ target):
                resources.append(resource)

        def pushed(_: bool) -> None:
            self._send(node, Pushed())

        host.push_records(node, resources, pushed)

    def hand_over(self, done: Callable[[], None]) -> None:
        """We leave: give each record to the node that becomes its last holder."""
        host = self._host
        own = host.node_id
        parcels: dict[NodeId, list[ResourceId]] = {}
        for resource in host.resources():
            holders = [n for n in self._holders.replica_set(resource) if n != own]
            for node in holders[-2:]:
                parcels.setdefault(node, []).append(resource)
        waiting = set(parcels)

        def handed(node: NodeId) -> Callable[[bool], None]:
            def one(_: bool) -> None:
                waiting.discard(node)
                if not waiting:
                    done()

            return one

        for node, resources in parcels.items():
            host.push_records(node, resources, handed(node))
        if not parcels:
            done()

    def _hand_to_holder(self, resource: ResourceId, holders: Sequence[NodeId]) -> None:
        """We hold what is no longer ours: give it to a holder, and forget it when that was taken."""
        if resource in self._handing_over:
            return
        node = next((n for n in holders if self._host.is_linked(n)), None)
        if node is None:
            return
        self._handing_over.add(resource)

        def handed(taken: bool) -> None:
            self._handing_over.discard(resource)
            if taken and self._host.node_id not in self._holders.replica_set(resource):
                self._host.drop_resource(resource)

        self._host.push_records(node, [resource], handed)

    def _send(self, node: NodeId, update: RecordSummary | Pushed) -> None:
        self._host.send(node, UpdateReq(update.encode()))

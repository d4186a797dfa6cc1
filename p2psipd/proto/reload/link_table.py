"""The open links of a node: who is at the other end, whether it still acknowledges, which of two to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from p2psipd.proto.reload.framing import FramedLink
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.topology import Address

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate

_KEPT_MESSAGES = 64
_KEPT_OCTETS = 256 * 1024


class Link:
    """One TLS connection.

    `confirmed`: bytes came from the other side, so it has accepted our certificate (under TLS 1.3 the dialler
    learns that no earlier).  `suspect`: it has not acknowledged within its retransmission timeout.
    """

    __slots__ = (
        "address",
        "certificate",
        "confirmed",
        "dialled",
        "framed",
        "id",
        "kept",
        "kept_octets",
        "node",
        "opened_at",
        "received_at",
        "suspect",
    )

    def __init__(
        self, link_id: int, certificate: NodeCertificate, address: Address, dialled: bool, now: float, max_message: int
    ) -> None:
        self.id = link_id
        self.certificate = certificate
        self.node = NodeId(certificate.node_id)
        self.address = address
        self.dialled = dialled
        self.opened_at = now
        self.received_at = now
        self.confirmed = not dialled
        self.suspect = False
        self.framed = FramedLink(max_message)
        self.kept: list[tuple[float, bytes]] = []
        self.kept_octets = 0

    def frame(self, message: bytes, now: float) -> bytes:
        """The octets to write for `message`, which is kept until the other side has acknowledged it."""
        octets = self.framed.send(message, now)
        self.kept.append((now, message))
        self.kept_octets += len(message)
        if len(self.kept) > _KEPT_MESSAGES or self.kept_octets > _KEPT_OCTETS:
            self._prune(now)
        return octets

    def _prune(self, now: float) -> None:
        oldest = self.framed.oldest_unacked_at
        while self.kept and (
            oldest is None
            or self.kept[0][0] < oldest
            or len(self.kept) > _KEPT_MESSAGES
            or self.kept_octets > _KEPT_OCTETS
        ):
            self.kept_octets -= len(self.kept.pop(0)[1])

    def all_acknowledged(self) -> None:
        """Nothing is on its way any more, so nothing need be kept."""
        self.kept.clear()
        self.kept_octets = 0

    def unacknowledged(self) -> list[bytes]:
        """The messages that may be lost with this link (a bounded number), oldest first; forgets them."""
        self._prune(0.0)
        messages = [message for _, message in self.kept]
        self.kept.clear()
        self.kept_octets = 0
        return messages

    def opened_by(self, own: NodeId) -> NodeId:
        """The node that dialled."""
        return own if self.dialled else self.node


class LinkTable:
    """Links by id, and for each node the one in use."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._by_id: dict[int, Link] = {}
        self._by_node: dict[NodeId, Link] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._by_id.values()))

    def get(self, link_id: int) -> Link | None:
        """The link with this id."""
        return self._by_id.get(link_id)

    def add(self, link: Link) -> None:
        """A new connection; it is used only once it is confirmed."""
        self._by_id[link.id] = link

    def to(self, node: NodeId) -> Link | None:
        """The link in use to `node`."""
        return self._by_node.get(node)

    def quickest(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Those of `nodes` with a link in use that is not suspect, by their smoothed round trip, unknown ones last."""
        by_node = self._by_node
        found: list[tuple[float, int, NodeId]] = []
        for node in nodes:
            link = by_node.get(node)
            if link is not None and not link.suspect:
                found.append((link.framed.srtt or 1.0, len(found), node))
        found.sort()
        return [node for _, _, node in found]

    def nodes(self) -> list[NodeId]:
        """Nodes with a link in use that is not suspect."""
        return [node for node, link in self._by_node.items() if not link.suspect]

    def confirm(self, link: Link) -> Link | None:
        """Put a confirmed link to use; returns the surplus link, if there were two.

        Of two links between the same nodes both sides keep the one that the smaller Node-ID opened; of two
        opened by the same node, the newer, since the older may be a leftover of a life before a restart.
        """
        link.confirmed = True
        other = self._by_node.get(link.node)
        if other is None or other is link:
            self._by_node[link.node] = link
            return None
        opener, other_opener = link.opened_by(self._own), other.opened_by(self._own)
        newer = opener == other_opener and link.id > other.id
        if opener < other_opener or newer or other.suspect:
            self._by_node[link.node] = link
            return other
        return link

    def remove(self, link: Link) -> bool:
        """The connection is gone; whether it was the one in use and no other confirmed one replaces it."""
        self._by_id.pop(link.id, None)
        if self._by_node.get(link.node) is not link:
            return False
        del self._by_node[link.node]
        for other in self._by_id.values():
            if other.node == link.node and other.confirmed:
                self._by_node[link.node] = other
                return False
        return True

"""The seam between the peer core and a topology plug-in (RFC 6940 sections 4.5 and 6.4).

The peer core (`peer.Peer`) speaks RELOAD: links, routing of messages, transactions, signatures, storage.
A topology plug-in decides *where*: who is responsible, who holds copies, which link is the next hop, whom to
link to, and how nodes join, stabilise and leave.  A plug-in sees the core only as `TopologyHost` and is seen
only as `Topology`; a second plug-in (CHORD-RELOAD, say) is one more class and one more row in `TOPOLOGIES`
of `peer`'s caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from p2psipd.proto.reload.ids import NodeId, ResourceId

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.identity.signing import Signer
    from p2psipd.proto.reload.errors import ReloadError
    from p2psipd.proto.reload.incoming import IncomingRequest
    from p2psipd.proto.reload.messages import AttachReq, Body, RouteQueryReq
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration

Address = tuple[str, int]
"""Host (numeric IPv4 or IPv6 text) and TCP port of a listener."""


class Answer(NamedTuple):
    """What a request sent by the core or the plug-in got back.

    `body` is None when the request failed; `error` then says why.  `seconds` is the time from the first
    transmission to the answer.  `hops` counts the links the answer crossed (1 = directly).
    """

    body: Body | None
    error: ReloadError | None
    node: NodeId | None
    certificates: Mapping[bytes, bytes]
    seconds: float
    hops: int


OnAnswer = Callable[[Answer], None]


class TopologyHost(Protocol):
    """What the peer core offers to a plug-in.  `now` (monotonic seconds) and `wall` (Unix seconds) are the
    instant of the input being handled."""

    now: float
    wall: float

    node_id: NodeId
    credential: Signer
    configuration: OverlayConfiguration

    def random_bits(self, bits: int) -> int:
        """A random integer below 2**bits."""

    def linked(self) -> Iterable[NodeId]:
        """Nodes with a confirmed link, suspected ones left out."""

    def quickest(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Those of `nodes` that a usable link leads to, the quickest first."""

    def is_linked(self, node: NodeId) -> bool:
        """Whether a confirmed, unsuspected link to `node` is open."""

    def rtt(self, node: NodeId) -> float | None:
        """Smoothed round-trip time of the link to `node`, seconds; None before the first measurement."""

    def idle_for(self, node: NodeId) -> float:
        """Seconds since the last bytes from `node`; infinity without a link."""

    def attach_request(self) -> AttachReq:
        """An Attach that offers our own listeners and asks for an Update once the link is up."""

    def dial(self, addresses: Sequence[Address], node: NodeId | None) -> None:
        """Open a link; `link_up` or `dial_failed` follows."""

    def drop_link(self, node: NodeId, reason: str) -> None:
        """Close the link to `node`, if any, without `link_down` being called."""

    def send(
        self, node: NodeId, body: Body, on_answer: OnAnswer | None = None, certificates: Iterable[bytes] = ()
    ) -> None:
        """Send a signed request to `node` over the link to it (nothing is sent without one)."""

    def send_to_resource(self, target: ResourceId, body: Body, on_answer: OnAnswer, via: NodeId | None = None) -> None:
        """Send a signed request to whoever is responsible for `target`, through `via` if given."""

    def push_records(
        self,
        node: NodeId,
        resources: Iterable[ResourceId],
        done: Callable[[bool], None] | None = None,
    ) -> None:
        """Store what we hold under `resources` to `node` as replicas; `done(True)` once all were taken."""

    def resources(self) -> Iterable[ResourceId]:
        """Resource-IDs under which we hold anything."""

    def resource_digest(self, resource: ResourceId) -> bytes:
        """8 bytes that are equal on two nodes that hold the same values under `resource`."""

    def drop_resource(self, resource: ResourceId) -> None:
        """Forget what is held under `resource`: other nodes hold it now."""

    def call_at(self, at: float, action: Callable[[], None]) -> object:
        """Run `action` at the monotonic instant `at`."""

    def check_certificate(self, der: bytes) -> NodeCertificate | None:
        """The certificate if it belongs to this overlay, is in date and not revoked; else None."""

    def verify(self, certificate: NodeCertificate, data: bytes, signature: bytes) -> bool:
        """Whether `signature`, as `sign` makes it, is `certificate`'s over `data`."""

    def sign(self, data: bytes) -> bytes:
        """Our signature over `data`: two octets of algorithm, then the value."""

    def misbehaved(self, node: NodeId | None, reason: str, detail: str) -> None:
        """Count and report a fault of another node."""

    def joined(self) -> None:
        """This node is now a full member: it is responsible for its share."""

    def member_changed(self, node: NodeId, alive: bool, reason: str, addresses: tuple[Address, ...]) -> None:
        """A peer came or went (for events and for the table of remembered peers)."""


class Topology(Protocol):
    """A topology plug-in (RFC 6940 section 6.4.1)."""

    name: str
    """The string in the configuration document's topology-plugin element."""

    def start(self) -> None:
        """Begin to join (or found the overlay)."""

    @property
    def ready(self) -> bool:
        """Whether this node is a member that may be responsible for data."""

    @property
    def complete(self) -> bool:
        """Whether it means to know every member, and so every holder of a record."""

    def responsible(self, target: bytes) -> bool:
        """Whether this node is the one that answers for `target` (a Resource-ID or unknown Node-ID)."""

    def may_read(self, resource: ResourceId) -> bool:
        """Whether a Fetch or Stat for `resource` that came here may be answered here, as by a holder of a copy."""

    def nearest(self, resource: ResourceId) -> NodeId | None:
        """The other node that is responsible for `resource`, where our view is complete enough to know it."""

    def next_hop(self, target: bytes, exclude: NodeId | None = None, reading: bool = False) -> NodeId | None:
        """The linked node to which a message for `target` goes next; None when none is nearer than we are.

        `reading` says that it is a Fetch or Stat, which any holder of a copy may answer.
        """

    def replica_nodes(self, resource: ResourceId) -> Sequence[NodeId]:
        """Who holds copies besides the responsible node, when that is us: nearest first."""

    def readers(self, resource: ResourceId) -> Sequence[NodeId]:
        """Linked nodes that should hold a copy of `resource`, the one to ask first first."""

    def relays(self, resource: ResourceId) -> Sequence[NodeId]:
        """Linked nodes that have links to the holders of `resource`, the one to ask first first."""

    def plausible_answerer(self, resource: ResourceId, node: NodeId, reading: bool = False) -> bool:
        """RFC 6940 section 6.3.4, check 2: `node` is at least as near to `resource` as our neighbours.

        The answer to a Fetch or Stat (`reading`) may also come from any holder of a copy.
        """

    def may_replicate(self, resource: ResourceId, sender: NodeId) -> bool:
        """Whether a replica Store for `resource` from `sender` is plausible."""

    def link_up(self, node: NodeId, certificate: NodeCertificate, address: Address, dialled: bool) -> None:
        """A link was confirmed by the first bytes from the other side."""

    def link_down(self, node: NodeId, reason: str) -> None:
        """The last link to `node` is gone, or it no longer acknowledges."""

    def dial_failed(self, node: NodeId | None, addresses: Sequence[Address], reason: str) -> None:
        """A `dial` came to nothing."""

    def on_join(self, request: IncomingRequest) -> Body | None:
        """Answer a Join (None: answered later by `request.answer` or `request.fail`)."""

    def on_leave(self, request: IncomingRequest) -> Body | None:
        """Answer a Leave."""

    def on_update(self, request: IncomingRequest) -> Body | None:
        """Answer an Update."""

    def on_route_query(self, request: IncomingRequest, query: RouteQueryReq) -> Body | None:
        """Answer a RouteQuery."""

    def send_update(self, node: NodeId) -> None:
        """Tell `node` our view of the overlay (the send_update flags of Attach and RouteQuery)."""

    def credential_changed(self) -> None:
        """The host's certificate was renewed; what was signed with the old one must be signed anew."""

    def leave(self, done: Callable[[], None]) -> None:
        """Hand over what we hold and say goodbye; `done` is called when that is finished."""

    def responsible_parts_per_billion(self) -> int:
        """The share of the Resource-ID space this node is responsible for (Probe's responsible_set)."""

    def status(self) -> Mapping[str, object]:
        """Facts for an operator: state, member counts, estimated size."""

    def members(self) -> Sequence[Mapping[str, object]]:
        """One row a known member: node (hex), addresses, state, bucket."""

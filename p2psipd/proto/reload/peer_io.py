"""What goes into the peer core and what comes out of it.

Inputs are facts (`LinkUp`) or wishes of the local user (`Fetch`, with a `ref` that the outcome carries back);
outputs are orders to the network side (`SendToLink`), outcomes (`Completed`, `Failed`) and events, which are
in the past tense (`PeerJoined`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.topology import Address

if TYPE_CHECKING:
    from p2psipd.proto.identity.signing import Signer
    from p2psipd.proto.reload.messages import StoredDataSpecifier
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.proto.reload.records import RecordChange
    from p2psipd.proto.reload.values import VerifiedValue


# -- inputs ------------------------------------------------------------------------------------------------


class LinkUp(NamedTuple):
    """A TLS connection is open.  `certificate` is the other side's DER; `attempt` names our OpenLink, None if
    the other side dialled."""

    link: int
    certificate: bytes
    address: Address
    attempt: int | None


class LinkFailed(NamedTuple):
    """An OpenLink came to nothing."""

    attempt: int
    reason: str


class LinkDown(NamedTuple):
    """A connection is gone."""

    link: int
    reason: str


class LinkBytes(NamedTuple):
    """Octets from a connection, as they came."""

    link: int
    data: bytes


class StoreValue(NamedTuple):
    """One value to store: dictionary `key` or array `position` (None: append) or neither; `value` None removes."""

    value: bytes | None
    lifetime: int
    key: bytes | None = None
    position: int | None = None


class Store(NamedTuple):
    """Store values of one kind under a Resource Name (or Resource-ID), signed with `credential` (None: ours)."""

    ref: int
    name: str | bytes | ResourceId
    kind: int
    values: tuple[StoreValue, ...]
    credential: Signer | None = None


class Fetch(NamedTuple):
    """Fetch and verify the values at a resource; `fresh` asks the responsible peer, not the nearest replica."""

    ref: int
    resource: ResourceId
    specifiers: tuple[StoredDataSpecifier, ...]
    fresh: bool = False


class Stat(NamedTuple):
    """Ask for the metadata at a resource."""

    ref: int
    resource: ResourceId
    specifiers: tuple[StoredDataSpecifier, ...]


class Find(NamedTuple):
    """Ask which resource nearest to `resource` holds each kind."""

    ref: int
    resource: ResourceId
    kinds: tuple[int, ...]


class Ping(NamedTuple):
    """Ping a node, or (with `resource`) whoever is responsible for it."""

    ref: int
    node: NodeId | None = None
    resource: ResourceId | None = None


class Probe(NamedTuple):
    """Ask a node for its share of the space, its number of resources and its uptime."""

    ref: int
    node: NodeId


class Trace(NamedTuple):
    """Find the path to whoever is responsible for `resource`, hop by hop, by RouteQuery."""

    ref: int
    resource: ResourceId


class AppAttach(NamedTuple):
    """Ask `node` for a connection for `application`; `node` will dial us (we are the TLS server)."""

    ref: int
    node: NodeId
    application: int


class Leave(NamedTuple):
    """Hand over and leave the overlay."""

    ref: int


class Abandon(NamedTuple):
    """The local user no longer waits for `ref`."""

    ref: int


class NewConfiguration(NamedTuple):
    """The operator handed us a newer signed configuration document."""

    document: bytes


class NewCredential(NamedTuple):
    """Our certificate was renewed (same Node-ID)."""

    credential: Signer


PeerInput = (
    LinkUp
    | LinkFailed
    | LinkDown
    | LinkBytes
    | Store
    | Fetch
    | Stat
    | Find
    | Ping
    | Probe
    | Trace
    | AppAttach
    | Leave
    | Abandon
    | NewConfiguration
    | NewCredential
)


# -- outcomes ----------------------------------------------------------------------------------------------


class FetchOutcome(NamedTuple):
    """Verified values (removals among them), generation by kind, who answered, links crossed, seconds."""

    values: tuple[VerifiedValue, ...]
    generations: Mapping[int, int]
    node: NodeId
    hops: int
    seconds: float


class StoreOutcome(NamedTuple):
    """The responsible peer, the peers that it sent replicas to, the new generation, seconds."""

    node: NodeId
    replicas: tuple[NodeId, ...]
    generation: int
    seconds: float


class Pong(NamedTuple):
    """Who answered a Ping, over how many links, in how many seconds; their clock in milliseconds."""

    node: NodeId
    hops: int
    seconds: float
    time: int


class Answered(NamedTuple):
    """The body of any other answer."""

    body: object
    node: NodeId
    hops: int
    seconds: float


class TraceHop(NamedTuple):
    """One step of a Trace: the node, its distance to the target in bits, seconds to ask it, if it ends here."""

    node: NodeId
    distance_bits: int
    seconds: float
    responsible: bool


class ApplicationAccepted(NamedTuple):
    """The node accepted an AppAttach and is going to dial us; its own candidates, in case it cannot."""

    node: NodeId
    application: int
    addresses: tuple[Address, ...]
    role: bytes


# -- outputs -----------------------------------------------------------------------------------------------


class SendToLink(NamedTuple):
    """Write octets to a connection."""

    link: int
    data: bytes


class OpenLink(NamedTuple):
    """Dial `addresses` in order; accept only `node`'s certificate if it is given."""

    attempt: int
    addresses: tuple[Address, ...]
    node: NodeId | None


class CloseLink(NamedTuple):
    """Close a connection; no LinkDown is needed for it."""

    link: int
    reason: str


class Completed(NamedTuple):
    """The outcome of the input with this `ref`."""

    ref: int
    result: object


class Failed(NamedTuple):
    """The input with this `ref` failed."""

    ref: int
    error: ReloadError


class WriteRecords(NamedTuple):
    """Make these changes durable."""

    changes: tuple[RecordChange, ...]


class RememberPeer(NamedTuple):
    """A peer worth dialling after a restart; no addresses: forget it."""

    node: NodeId
    addresses: tuple[Address, ...]


class DialApplication(NamedTuple):
    """Another node asked for a connection: dial it as TLS client and expect its certificate."""

    node: NodeId
    application: int
    addresses: tuple[Address, ...]


class Joined(NamedTuple):
    """We are a full member now."""


class PeerJoined(NamedTuple):
    """A peer became a member, as far as we know."""

    node: NodeId


class PeerLost(NamedTuple):
    """A peer died or left."""

    node: NodeId
    reason: str


class Misbehaved(NamedTuple):
    """Another node broke a rule; `reason` is a fixed word for counting, `detail` is for people."""

    link: int | None
    node: NodeId | None
    reason: str
    detail: str


class Refused(NamedTuple):
    """A request of `node` was answered with an error that it has brought upon itself; `link` is its own, if it came
    straight from there, and `method` the RFC's name.
    """

    link: int | None
    node: NodeId
    method: str
    error: ReloadError


class Replicated(NamedTuple):
    """A replica holder acknowledged its copy of a Store that we accepted."""

    resource: ResourceId
    node: NodeId


class ConfigurationChanged(NamedTuple):
    """A newer configuration document is in force."""

    configuration: OverlayConfiguration


PeerOutput = (
    SendToLink
    | OpenLink
    | CloseLink
    | Completed
    | Failed
    | WriteRecords
    | RememberPeer
    | DialApplication
    | Joined
    | PeerJoined
    | PeerLost
    | Misbehaved
    | Refused
    | Replicated
    | ConfigurationChanged
)

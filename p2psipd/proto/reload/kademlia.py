"""The P2PSIPD-KADEMLIA topology plug-in (`docs/kademlia-topology.md`).

Every peer knows every other as long as the overlay is small (`full_membership`), and keeps k-buckets beyond.
Who is responsible follows from the XOR distance among the live peers known; knowledge travels as member
entries signed by their subjects, in Updates on open links.  Records are compared and repaired by
`RecordRepair`; the wire forms and the table are in `membership`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.proto.identity.certificate import role_of
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage
from p2psipd.proto.reload.ids import NodeId, ResourceId, overlay_hash
from p2psipd.proto.reload.kademlia_repair import RecordRepair
from p2psipd.proto.reload.membership import (
    ID_BITS,
    RANGES,
    Delta,
    IdSet,
    Member,
    MemberDigest,
    MemberEntry,
    MemberState,
    MemberSummary,
    PageRequest,
    Pushed,
    RecordDigest,
    RecordSummary,
    Standing,
    decode_update,
)
from p2psipd.proto.reload.messages import (
    AttachAns,
    Body,
    JoinAns,
    JoinReq,
    LeaveAns,
    LeaveReq,
    PingReq,
    RouteQueryAns,
    RouteQueryReq,
    UpdateAns,
    UpdateReq,
)
from p2psipd.proto.reload.topology import Address, Answer, TopologyHost
from p2psipd.proto.reload.wire import NodeDestination, ResourceDestination

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.reload.incoming import IncomingRequest

_ALL = (1 << ID_BITS) - 1
_VERIFY_SLICE = 40  # entries: about 8 ms of signature checks
_DELTA_OCTETS = 48_000  # entries and their certificates in one Update


class KademliaParameters(NamedTuple):
    """The plug-in's constants; times in seconds."""

    copies: int = 8
    siblings: int = 16
    bucket_size: int = 16
    max_links: int = 150
    full_membership: int = 5000
    gossip_fanout: int = 4
    gossip_for: float = 0.5
    maintain_for: float = 1.0
    ping_siblings_for: float = 5.0
    ping_others_for: float = 30.0
    compare_members_for: float = 30.0
    repair_for: float = 60.0
    partition_for: float = 60.0
    suspect_for: float = 10.0
    dead_for: float = 600.0
    join_for: float = 10.0


class Remembered(NamedTuple):
    """A peer known from the last run."""

    node: NodeId
    addresses: tuple[Address, ...]


class State(Enum):
    """How far this node has come."""

    STARTING = "starting"
    JOINING = "joining"
    READY = "ready"
    LEAVING = "leaving"


class Kademlia:
    """The plug-in.  See `topology.Topology` for what each method promises."""

    name = "P2PSIPD-KADEMLIA"

    def __init__(
        self,
        host: TopologyHost,
        parameters: KademliaParameters,
        *,
        addresses: Sequence[Address],
        bootstrap: Sequence[Address],
        remembered: Sequence[Remembered] = (),
        first: bool = False,
        client: bool = False,
    ) -> None:
        self._host = host
        self._p = parameters
        self._addresses = tuple(addresses)
        self._bootstrap = tuple(bootstrap)
        self._remembered = tuple(remembered)
        self._first = first
        self._client = client
        self._own = int.from_bytes(host.node_id, "big")
        self._overlay_hash = overlay_hash(host.configuration.overlay_name)
        self._state = State.STARTING
        self._members: dict[NodeId, Member] = {}
        self._live = IdSet()
        self._routable = IdSet()
        self._range_digests = [[0, 0] for _ in range(RANGES)]
        self._unverified: list[tuple[MemberEntry, bytes, NodeId | None]] = []
        self._gossip: dict[NodeId, NodeId | None] = {}
        self._gossip_suspects: dict[NodeId, int] = {}
        self._gossip_armed = False
        self._certificates_sent: dict[NodeId, set[bytes]] = {}
        self._dialled_back: set[NodeId] = set()
        self._pending_joins: dict[NodeId, IncomingRequest] = {}
        self._wanted_since: dict[NodeId, float] = {}
        self._dialling: set[NodeId] = set()
        self._admitting: NodeId | None = None
        self._admitted_at = 0.0
        self._not_pushed: set[NodeId] = set()
        self._attach_at = 0.0
        self._set_cache: dict[ResourceId, tuple[int, list[NodeId]]] = {}
        self._version = 0
        self._complete_at = -1
        self._complete = True
        self._entry = self._make_entry(MemberState.JOINING, int(host.wall * 1000))
        self._repair = RecordRepair(host, self, parameters.repair_for)

    # -- who is nearest ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether this node may be responsible for data."""
        return self._state is State.READY

    @property
    def complete(self) -> bool:
        """Whether we mean to know every member, or only buckets."""
        if self._complete_at != self._version:
            self._complete_at = self._version
            limit = self._p.full_membership
            self._complete = len(self._live) <= limit and self.estimated_size() <= limit
        return self._complete

    def estimated_size(self) -> int:
        """The overlay's size from the density of our siblings: k members within the distance of the k-th."""
        count = self._p.siblings
        if len(self._live) <= count:
            return len(self._live) + 1
        farthest = self._live.nearest(self._own, count)[-1] ^ self._own
        return max(len(self._routable), int(count * (_ALL / max(1, farthest))))

    def responsible(self, target: bytes) -> bool:
        """Whether no live peer is nearer to `target` than we are."""
        if not self.ready:
            return False
        number = _number(target)
        nearest = self._live.nearest(number, 1)
        return not nearest or self._own ^ number < nearest[0] ^ number

    def next_hop(self, target: bytes, exclude: NodeId | None = None) -> NodeId | None:
        """The linked peer nearest to `target`, if it is nearer than we are (or we are no member)."""
        number = _number(target)
        limit = self._own ^ number if self.ready else _ALL + 1
        for candidate in self._routable.nearest(number, 4):
            if candidate ^ number >= limit:
                return None
            node = _node(candidate)
            if node != exclude and self._host.is_linked(node):
                return node
        if not self.ready and not len(self._routable):
            return next((n for n in self._host.linked() if n != exclude), None)
        return None

    def replica_set(self, resource: ResourceId) -> list[NodeId]:
        """The live peers that must hold `resource`, ourselves among them if so, nearest first."""
        cached = self._set_cache.get(resource)
        if cached is not None and cached[0] == self._version:
            return cached[1]
        number = _number(resource)
        numbers = self._live.nearest(number, self._p.copies)
        if self.ready:
            numbers = sorted([*numbers, self._own], key=number.__xor__)[: self._p.copies]
        nodes = [_node(n) for n in numbers]
        if len(self._set_cache) > 20_000:
            self._set_cache.clear()
        self._set_cache[resource] = (self._version, nodes)
        return nodes

    def replica_nodes(self, resource: ResourceId) -> Sequence[NodeId]:
        """The other holders, nearest first."""
        return [n for n in self.replica_set(resource) if n != self._host.node_id]

    def readers(self, resource: ResourceId) -> Sequence[NodeId]:
        """Linked holders, the quickest first; none where our view of that region is not complete."""
        if not self.complete:
            return ()
        host = self._host
        linked = [n for n in self.replica_set(resource) if n != host.node_id and host.is_linked(n)]
        return sorted(linked, key=lambda n: host.rtt(n) or 1.0)

    def plausible_answerer(self, resource: ResourceId, node: NodeId) -> bool:
        """RFC 6940 section 6.3.4 check 2, with the eight nearest *linked* peers as the Neighbor Table."""
        number = _number(resource)
        limit = _number(node) ^ number
        return all(n ^ number >= limit for n in self._routable.nearest(self._own, 8) if self._host.is_linked(_node(n)))

    def may_replicate(self, resource: ResourceId, sender: NodeId) -> bool:
        """Whether `sender` is, as far as we know, near enough to hold `resource` itself."""
        number = _number(resource)
        near = self._live.nearest(number, 2 * self._p.copies)
        return len(near) < 2 * self._p.copies or _number(sender) ^ number <= near[-1] ^ number

    def siblings(self) -> list[NodeId]:
        """The nearest live peers."""
        return [_node(n) for n in self._live.nearest(self._own, self._p.siblings)]

    # -- joining -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Found the overlay, resume our place, or join through a bootstrap peer."""
        host = self._host
        self._state = State.JOINING
        if self._first and not self._remembered:
            self._become_ready()
        number = self._own
        for peer in sorted(self._remembered, key=lambda p: _number(p.node) ^ number)[: self._p.siblings]:
            self._dial(peer.node, peer.addresses)
        self._dial_bootstrap()
        if self._remembered:
            host.call_at(host.now + self._p.join_for, self._resume_alone)
        host.call_at(host.now + self._p.maintain_for, self._maintain)
        for action, period in (
            (self._compare_members, self._p.compare_members_for),
            (self._find_partition, self._p.partition_for),
            (self._ping_idle, self._p.ping_siblings_for),
            (self._forget_dead, self._p.dead_for / 4),
        ):
            self._repeat(action, period)
        self._repair.start()

    def preload(self, members: Iterable[tuple[MemberEntry, bytes]], linked: Iterable[NodeId] = ()) -> None:
        """Be a settled member that already knows `members` (entry, certificate), and routes over the links to
        those in `linked`: for simulations."""
        for entry, certificate in members:
            if entry.node != self._host.node_id:
                member = Member(entry, certificate, self._host.now)
                self._members[entry.node] = member
                self._count_in_ranges(member, 1)
        self._live.load(m.number for m in self._members.values() if m.counts)
        self._routable.load(_number(node) for node in linked)
        self._version += 1
        self._first = True
        self._remembered = ()

    @property
    def own_entry(self) -> MemberEntry:
        """What we now say of ourselves."""
        return self._entry

    def _resume_alone(self) -> None:
        # Only a node that was a member before may go on without meeting anybody (RFC 6940 section 6.4.2.1).
        if self._state is State.JOINING and not any(True for _ in self._host.linked()):
            self._become_ready()

    def _attach_through(self, node: NodeId) -> None:
        host = self._host
        if self._client or self._state is not State.JOINING or self._admitting or host.now < self._attach_at:
            return
        self._attach_at = host.now + self._p.join_for / 2
        target = ResourceId(((self._own + 1) & _ALL).to_bytes(16, "big"))
        host.send_to_resource(target, host.attach_request(), self._attached, via=node)

    def _attached(self, answer: Answer) -> None:
        if self._state is not State.JOINING or answer.node is None or not isinstance(answer.body, AttachAns):
            return
        self._admitting = answer.node
        if self._host.is_linked(answer.node):
            self._join_at(answer.node)
        else:
            self._host.call_at(self._host.now + self._p.join_for / 2, self._admission_overdue)

    def _admission_overdue(self) -> None:
        if self._state is State.JOINING and not self._admitted_at:
            self._admitting = None
            self._attach_at = 0.0

    def _join_at(self, node: NodeId) -> None:
        self._host.send(node, JoinReq(self._host.node_id, b""), self._joined)
        self._host.call_at(self._host.now + self._p.join_for, self._admission_overdue)

    def _joined(self, answer: Answer) -> None:
        if self._state is not State.JOINING or self._admitted_at:
            return
        if answer.node is None or not isinstance(answer.body, JoinAns):
            self._admission_overdue()
            return
        self._admitted_at = self._host.now
        self._send(answer.node, PageRequest(self._host.node_id, 0 if self.complete else 4 * self._p.siblings))
        self._host.call_at(self._host.now + 0.5, self._finish_joining)

    def _finish_joining(self) -> None:
        """Ready once every sibling we can reach has pushed, or after `join_for` seconds without all of them."""
        if self._state is not State.JOINING:
            return
        host = self._host
        waited = host.now - self._admitted_at
        siblings = self.siblings()
        settled = (
            bool(siblings)
            and not self._unverified
            and all(n not in self._dialling and n not in self._not_pushed and host.is_linked(n) for n in siblings)
        )
        if settled or waited > self._p.join_for:
            self._become_ready()
        else:
            host.call_at(host.now + 0.1, self._finish_joining)

    def _become_ready(self) -> None:
        self._state = State.READY
        self._entry = self._make_entry(MemberState.READY, self._entry.incarnation + 1)
        self._version += 1
        for node in list(self._host.linked()):
            self._send(node, Delta((self._entry,)))
        self._host.joined()
        self._repair.soon(1.0)

    def on_join(self, request: IncomingRequest) -> Body | None:
        """Admit a node that we could dial ourselves: one that cannot be dialled is no peer."""
        body = request.body
        assert isinstance(body, JoinReq)
        if body.node != request.node or not request.direct:
            raise Forbidden("a Join must be signed by, and come over the link of, the joining node")
        self._check_role(request.signer)
        if not self.ready:
            raise Forbidden("this node is not a member itself yet")
        if request.node in self._dialled_back:
            return JoinAns(b"")
        self._pending_joins[request.node] = request
        self._host.call_at(self._host.now + self._p.join_for / 2, lambda: self._refuse_join(request.node))
        return None

    def _refuse_join(self, node: NodeId) -> None:
        request = self._pending_joins.pop(node, None)
        if request is not None:
            request.fail(Forbidden("the joining node could not be dialled at its candidate addresses"))

    def _check_role(self, certificate: NodeCertificate) -> None:
        if not role_of(certificate.user, self._host.configuration.overlay_name).routes:
            raise Forbidden(f"{certificate.user} is not the name of a peer")

    # -- links ---------------------------------------------------------------------------------------------

    def link_up(self, node: NodeId, certificate: NodeCertificate, address: Address, dialled: bool) -> None:
        """Say hello; go on with whatever waited for this link."""
        self._dialling.discard(node)
        self._wanted_since.pop(node, None)
        self._certificates_sent[node] = set()
        if dialled:
            self._dialled_back.add(node)
            request = self._pending_joins.pop(node, None)
            if request is not None:
                request.answer(JoinAns(b""))
        if not self._client:
            self._send_entries(node, [(self._entry, self._host.credential.certificate.der)])
        member = self._members.get(node)
        if member is not None and member.standing is Standing.SUSPECT:
            self._set_standing(member, Standing.LIVE)
        if member is not None and member.counts:
            self._routable.add(member.number)
        if self._state is State.JOINING:
            if node == self._admitting and not self._admitted_at:
                self._join_at(node)
            elif not self._admitting:
                self._attach_through(node)
        elif self.ready and dialled:
            self._send(node, self._member_digest())

    def link_down(self, node: NodeId, reason: str) -> None:
        """Suspect the node and dial it again: a refusal proves it dead."""
        self._certificates_sent.pop(node, None)
        self._dialled_back.discard(node)
        self._not_pushed.discard(node)
        self._routable.discard(_number(node))
        member = self._members.get(node)
        if member is None or member.standing is Standing.DEAD:
            return
        if member.entry.state is MemberState.LEFT:
            return
        self._set_standing(member, Standing.SUSPECT)
        if self._state is not State.LEAVING:
            self._dial(node, member.entry.addresses)
            self._host.call_at(self._host.now + self._p.suspect_for, lambda: self._suspicion_over(node))

    def dial_failed(self, node: NodeId | None, addresses: Sequence[Address], reason: str) -> None:
        """A member that we suspected and that does not accept links is dead."""
        if node is None:
            return
        self._dialling.discard(node)
        self._wanted_since[node] = self._host.now
        self._refuse_join(node)
        member = self._members.get(node)
        if member is not None and member.standing is Standing.SUSPECT:
            self._bury(member, reason)
        elif member is not None and member.standing is Standing.LIVE and not self._host.is_linked(node):
            self._set_standing(member, Standing.SUSPECT)
            self._host.call_at(self._host.now + self._p.suspect_for, lambda: self._suspicion_over(node))

    def _dial(self, node: NodeId, addresses: Sequence[Address]) -> None:
        if node in self._dialling or self._host.is_linked(node) or node == self._host.node_id or not addresses:
            return
        self._dialling.add(node)
        self._host.dial(addresses, node)

    def _dial_bootstrap(self) -> None:
        known = {
            a
            for m in self._members.values()
            if m.counts and self._host.is_linked(m.entry.node)
            for a in m.entry.addresses
        }
        for address in self._bootstrap:
            if address not in self._addresses and address not in known:
                self._host.dial((address,), None)

    def _maintain(self) -> None:
        """Open the links we want, close what is far too much."""
        host = self._host
        host.call_at(host.now + self._p.maintain_for * (0.75 + host.random_bits(8) / 512), self._maintain)
        if self._state is State.JOINING and not self._admitting:
            linked = next(iter(host.linked()), None)
            if linked is None:
                self._dial_bootstrap()
            else:
                self._attach_through(linked)
        budget = 8 - len(self._dialling)
        for node in self._wanted_links():
            if budget <= 0:
                break
            member = self._members.get(node)
            if member is None or host.is_linked(node) or node in self._dialling:
                continue
            since = self._wanted_since.setdefault(node, host.now)
            # The smaller Node-ID dials at once; the other waits, so that two links are rarely opened.
            if host.node_id < node or host.now - since > 2 * self._p.maintain_for or self._state is State.JOINING:
                self._dial(node, member.entry.addresses)
                budget -= 1

    def _wanted_links(self) -> list[NodeId]:
        """Siblings first, then the members of each bucket, about `max_links` in all."""
        nodes = self.siblings()
        if len(self._live) <= self._p.max_links:
            return nodes + [_node(n) for n in self._live if _node(n) not in nodes]
        chosen = set(nodes)
        buckets = max(1, (len(self._live) // self._p.siblings).bit_length())
        share = max(8, (self._p.max_links - len(nodes)) // buckets)
        for bucket in range(ID_BITS - 1, ID_BITS - 1 - buckets, -1):
            missing = share - len(self._routable.in_bucket(self._own, bucket))
            numbers = list(self._live.in_bucket(self._own, bucket)) if missing > 0 else []
            start = self._host.random_bits(16) % len(numbers) if numbers else 0
            for number in (numbers[start:] + numbers[:start])[:missing]:
                node = _node(number)
                if node not in chosen and not self._host.is_linked(node):
                    chosen.add(node)
                    nodes.append(node)
        return nodes

    def _ping_idle(self) -> None:
        near = set(self.siblings())
        for node in list(self._host.linked()):
            limit = self._p.ping_siblings_for if node in near else self._p.ping_others_for
            if self._host.idle_for(node) >= limit:
                self._host.send(node, PingReq(b""))

    def _find_partition(self) -> None:
        """Dial bootstrap addresses and a buried member again: an answer means another half to merge with."""
        if self._state is not State.READY:
            return
        self._dial_bootstrap()
        dead = [m for m in self._members.values() if m.standing is Standing.DEAD]
        for _ in range(min(2, len(dead))):
            member = dead[self._host.random_bits(32) % len(dead)]
            self._dial(member.entry.node, member.entry.addresses)

    # -- what we are told ----------------------------------------------------------------------------------

    def on_update(self, request: IncomingRequest) -> Body | None:
        """Every kind of Update; only peers may send one, and only over their own link."""
        body = request.body
        assert isinstance(body, UpdateReq)
        self._check_role(request.signer)
        if not request.direct:
            raise Forbidden("an Update comes over the link of its sender")
        node = request.node
        update = decode_update(body.data)
        match update:
            case Delta():
                self._learn(update, node, request)
            case PageRequest():
                self._send_page(node, update)
            case MemberDigest():
                self._compare_digest(node, update)
            case MemberSummary():
                self._compare_summary(node, update)
            case RecordDigest():
                self._repair.on_digest(node, update)
            case RecordSummary():
                self._repair.on_summary(node, update)
            case Pushed():
                self._not_pushed.discard(node)
        return UpdateAns(b"")

    def _learn(self, delta: Delta, sender: NodeId, request: IncomingRequest) -> None:
        for entry in delta.entries:
            if entry.node == self._host.node_id:
                if entry.incarnation > self._entry.incarnation:
                    self._refute(entry.incarnation)
                continue
            known = self._members.get(entry.node)
            if known is not None and known.entry.incarnation >= entry.incarnation:
                if known.standing is not Standing.LIVE and entry.node == sender:
                    # It speaks to us itself, so it lives; let it say so to all with a new incarnation.
                    self._tell_suspected(sender, known)
                continue
            certificate = request.certificates.get(entry.certificate_hash)
            if certificate is None and known is not None and known.entry.certificate_hash == entry.certificate_hash:
                certificate = known.certificate
            if certificate is None and entry.certificate_hash == request.signer.hash:
                certificate = request.signer.der
            if certificate is not None:
                self._unverified.append((entry, certificate, sender))
        for node, incarnation in delta.suspects:
            self._on_suspicion(node, incarnation, sender)
        if self._unverified:
            self._verify_some()

    def _verify_some(self) -> None:
        batch, self._unverified = self._unverified[:_VERIFY_SLICE], self._unverified[_VERIFY_SLICE:]
        for entry, der, sender in batch:
            known = self._members.get(entry.node)
            if known is not None and known.entry.incarnation >= entry.incarnation:
                continue
            if self._entry_is_genuine(entry, der):
                self._accept(entry, der, sender)
            else:
                self._host.misbehaved(sender, "member-entry", f"entry of {entry.node.hex()} is not genuine")
        if self._unverified:
            self._host.call_at(self._host.now + 0.001, self._verify_some)

    def _entry_is_genuine(self, entry: MemberEntry, der: bytes) -> bool:
        certificate = self._host.check_certificate(der)
        return (
            certificate is not None
            and certificate.hash == entry.certificate_hash
            and certificate.node_id == entry.node
            and role_of(certificate.user, self._host.configuration.overlay_name).routes
            and self._host.verify(certificate, entry.signed_octets(self._overlay_hash), entry.signature)
        )

    def _accept(self, entry: MemberEntry, der: bytes, sender: NodeId | None) -> None:
        host = self._host
        member = self._members.get(entry.node)
        was_live = member is not None and member.counts
        if member is None:
            member = self._members[entry.node] = Member(entry, der, host.now)
        else:
            self._count_in_ranges(member, -1)
            member.entry, member.certificate, member.since = entry, der, host.now
            member.standing = Standing.LIVE
        self._count_in_ranges(member, 1)
        if member.counts:
            self._live.add(member.number)
            if host.is_linked(entry.node):
                self._routable.add(member.number)
        else:
            self._live.discard(member.number)
            self._routable.discard(member.number)
        if member.counts != was_live:
            self._version += 1
            reason = "ready" if member.counts else entry.state.name.lower()
            host.member_changed(entry.node, member.counts, reason, entry.addresses)
        told_by_itself = sender == entry.node and len(self._live) <= self._p.max_links
        if entry.state is not MemberState.JOINING and not told_by_itself and self._state is State.READY:
            # In a small overlay everybody has a link to everybody and the subject itself tells them all.
            self._spread(entry.node, sender)
        if entry.state is MemberState.JOINING and sender == entry.node:
            self._repair.push_to_joiner(entry.node)
        elif entry.state is MemberState.LEFT:
            self._repair.soon(0.5)
        elif member.counts and not was_live:
            if self._state is State.JOINING:
                self._meet_sibling(entry.node)
            else:
                self._repair.soon(1.0)
            if not self.complete:
                self._trim()

    def _meet_sibling(self, node: NodeId) -> None:
        siblings = self.siblings()
        if node in siblings:
            self._not_pushed.add(node)
            member = self._members[node]
            self._dial(node, member.entry.addresses)
        self._not_pushed &= set(siblings)

    def _on_suspicion(self, node: NodeId, incarnation: int, sender: NodeId) -> None:
        if node == self._host.node_id:
            if incarnation >= self._entry.incarnation:
                self._refute(incarnation)
            return
        member = self._members.get(node)
        if member is None or member.standing is not Standing.LIVE or member.entry.incarnation > incarnation:
            return
        if self._host.is_linked(node):
            self._host.send(node, PingReq(b""))
            self._tell_suspected(node, member)
            return
        self._set_standing(member, Standing.SUSPECT)
        self._gossip_suspects[node] = incarnation
        self._arm_gossip()
        if node in self.siblings() or len(self._live) < self._p.max_links:
            self._dial(node, member.entry.addresses)
        self._host.call_at(self._host.now + self._p.suspect_for, lambda: self._suspicion_over(node))

    def _tell_suspected(self, node: NodeId, member: Member) -> None:
        self._send(node, Delta((), ((node, member.entry.incarnation),)))

    def _refute(self, incarnation: int) -> None:
        self._entry = self._make_entry(self._entry.state, incarnation + 1)
        for node in list(self._host.linked()):
            self._send(node, Delta((self._entry,)))

    def _suspicion_over(self, node: NodeId) -> None:
        member = self._members.get(node)
        if member is not None and member.standing is Standing.SUSPECT:
            if self._host.is_linked(node):
                self._set_standing(member, Standing.LIVE)
            elif node not in self._dialling:
                self._bury(member, "no sign of life")

    def _bury(self, member: Member, reason: str) -> None:
        self._set_standing(member, Standing.DEAD)
        self._gossip_suspects[member.entry.node] = member.entry.incarnation
        self._arm_gossip()
        self._host.member_changed(member.entry.node, False, reason, member.entry.addresses)
        self._repair.soon(0.5)

    def _set_standing(self, member: Member, standing: Standing) -> None:
        self._count_in_ranges(member, -1)
        member.standing = standing
        member.since = self._host.now
        self._count_in_ranges(member, 1)
        if member.counts:
            self._live.add(member.number)
            if self._host.is_linked(member.entry.node):
                self._routable.add(member.number)
        else:
            self._live.discard(member.number)
            self._routable.discard(member.number)
        self._version += 1

    def _forget_dead(self) -> None:
        limit = self._host.now - self._p.dead_for
        for node, member in list(self._members.items()):
            gone = member.standing is Standing.DEAD or member.entry.state is not MemberState.READY
            if gone and member.since < limit and not self._host.is_linked(node):
                self._count_in_ranges(member, -1)
                del self._members[node]

    def _trim(self) -> None:
        """Beyond full membership: keep the siblings (twice over) and `bucket_size` members of each bucket."""
        keep = set(self._live.nearest(self._own, 2 * self._p.siblings))
        for bucket in range(ID_BITS - 1, -1, -1):
            numbers = self._live.in_bucket(self._own, bucket)
            if not numbers and bucket < ID_BITS - 64:
                break
            extra = [n for n in numbers if n not in keep]
            if len(extra) > self._p.bucket_size:
                extra.sort(key=lambda n: (not self._host.is_linked(_node(n)), self._host.rtt(_node(n)) or 1.0))
                for number in extra[self._p.bucket_size :]:
                    if not self._host.is_linked(_node(number)):
                        self._live.discard(number)
                        self._routable.discard(number)
                        self._count_in_ranges(self._members.pop(_node(number)), -1)
                        self._version += 1

    # -- what we tell --------------------------------------------------------------------------------------

    def _make_entry(self, state: MemberState, incarnation: int) -> MemberEntry:
        host = self._host
        entry = MemberEntry(host.node_id, state, incarnation, self._addresses, host.credential.certificate.hash, b"")
        return entry._replace(signature=host.sign(entry.signed_octets(self._overlay_hash)))

    def _send(self, node: NodeId, update: Delta | PageRequest | MemberDigest | MemberSummary) -> None:
        self._host.send(node, UpdateReq(update.encode()))

    def _send_entries(
        self, node: NodeId, entries: Sequence[tuple[MemberEntry, bytes]], suspects: tuple[tuple[NodeId, int], ...] = ()
    ) -> None:
        """Deltas of bounded size, with each certificate once a link."""
        sent = self._certificates_sent.setdefault(node, set())
        batch: list[MemberEntry] = []
        certificates: list[bytes] = []
        octets = 0
        for entry, der in entries:
            batch.append(entry)
            octets += 160
            if entry.certificate_hash not in sent:
                sent.add(entry.certificate_hash)
                certificates.append(der)
                octets += len(der) + 3
            if octets > _DELTA_OCTETS:
                self._host.send(node, UpdateReq(Delta(tuple(batch)).encode()), None, certificates)
                batch, certificates, octets = [], [], 0
        if batch or suspects:
            self._host.send(node, UpdateReq(Delta(tuple(batch), suspects).encode()), None, certificates)

    def _send_page(self, node: NodeId, page: PageRequest) -> None:
        count = page.wanted or len(self._live)
        entries = [(self._entry, self._host.credential.certificate.der)]
        for number in self._live.nearest(_number(page.target), count):
            member = self._members[_node(number)]
            entries.append((member.entry, member.certificate))
        self._send_entries(node, entries)

    def _spread(self, node: NodeId, sender: NodeId | None) -> None:
        self._gossip[node] = sender
        self._arm_gossip()

    def _arm_gossip(self) -> None:
        if not self._gossip_armed:
            self._gossip_armed = True
            jitter = 0.5 + self._host.random_bits(8) / 256
            self._host.call_at(self._host.now + self._p.gossip_for * jitter, self._tell_news)

    def _tell_news(self) -> None:
        """Pass on what is new to a few links: rumours spread in O(log N) rounds, comparison fills the gaps."""
        self._gossip_armed = False
        news, self._gossip = self._gossip, {}
        suspects, self._gossip_suspects = tuple(self._gossip_suspects.items()), {}
        entries = [(self._members[n].entry, self._members[n].certificate) for n in news if n in self._members]
        links = list(self._host.linked())
        for _ in range(min(self._p.gossip_fanout, len(links))):
            at = self._host.random_bits(32) % len(links)
            node = links.pop(at)
            self._send_entries(node, [(e, c) for e, c in entries if news[e.node] != node and e.node != node], suspects)

    def _member_digest(self) -> MemberDigest:
        rows = [(count, digest) for count, digest in self._range_digests]
        if self.ready:
            at = self._own >> (ID_BITS - 4)
            rows[at] = (rows[at][0] + 1, rows[at][1] ^ _fingerprint(self._entry))
        return MemberDigest(tuple(rows))

    def _count_in_ranges(self, member: Member, sign: int) -> None:
        if member.standing is not Standing.LIVE or member.entry.state is not MemberState.READY:
            return
        row = self._range_digests[member.number >> (ID_BITS - 4)]
        row[0] += sign
        row[1] ^= _fingerprint(member.entry)

    def _compare_members(self) -> None:
        links = list(self._host.linked())
        if links and self.ready and self.complete:
            self._send(links[self._host.random_bits(32) % len(links)], self._member_digest())
        elif links and self.ready:
            self._refresh_buckets(links)

    def _refresh_buckets(self, links: list[NodeId]) -> None:
        node = links[self._host.random_bits(32) % len(links)]
        self._send(node, PageRequest(self._host.node_id, 2 * self._p.siblings))
        target = NodeId(self._host.random_bits(ID_BITS).to_bytes(16, "big"))
        self._send(node, PageRequest(target, self._p.bucket_size))

    def _compare_digest(self, node: NodeId, theirs: MemberDigest) -> None:
        if not self.complete:
            return
        differing = 0
        for at, (mine, other) in enumerate(zip(self._member_digest().ranges, theirs.ranges, strict=True)):
            if mine != other:
                differing |= 1 << at
        if differing:
            self._send(node, self._summary(differing, reply=False))

    def _summary(self, ranges: int, reply: bool) -> MemberSummary:
        rows = [(self._host.node_id, self._entry.incarnation, int(self.ready))]
        for member in self._members.values():
            if ranges >> (member.number >> (ID_BITS - 4)) & 1 and member.entry.state is not MemberState.JOINING:
                rows.append((member.entry.node, member.entry.incarnation, int(member.counts)))
        return MemberSummary(ranges, reply, tuple(rows))

    def _compare_summary(self, node: NodeId, theirs: MemberSummary) -> None:
        """Send what the other lacks, and ask (by our own summary) for what we lack."""
        seen: dict[NodeId, tuple[int, int]] = {n: (i, alive) for n, i, alive in theirs.members}
        missing = []
        behind = False
        for member in self._members.values():
            if theirs.ranges >> (member.number >> (ID_BITS - 4)) & 1:
                incarnation, _ = seen.get(member.entry.node, (-1, 0))
                if member.entry.incarnation > incarnation and member.entry.state is not MemberState.JOINING:
                    missing.append((member.entry, member.certificate))
        for other, (incarnation, alive) in seen.items():
            known = self._members.get(other)
            if other == self._host.node_id:
                if not alive and incarnation >= self._entry.incarnation and self.ready:
                    self._refute(incarnation)
            elif alive and (known is None or known.entry.incarnation < incarnation):
                behind = True
            elif not alive and known is not None and known.counts and known.entry.incarnation <= incarnation:
                self._on_suspicion(other, incarnation, node)
        if missing:
            self._send_entries(node, missing)
        if behind and not theirs.reply:
            self._send(node, self._summary(theirs.ranges, reply=True))

    def send_update(self, node: NodeId) -> None:
        """Our own entry, and the members nearest to `node`."""
        self._send_page(node, PageRequest(node, 2 * self._p.siblings))

    # -- route query, leaving, facts -----------------------------------------------------------------------

    def on_route_query(self, request: IncomingRequest, query: RouteQueryReq) -> Body | None:
        """Where we would send a message for that destination: next hop, and whether it ends here."""
        if query.send_update and request.direct:
            self.send_update(request.node)
        match query.destination:
            case NodeDestination(node=node):
                target: bytes = node
            case ResourceDestination(resource=resource):
                target = resource
            case _:
                raise Forbidden("opaque destinations are not translated for others")
        if target == self._host.node_id or self.responsible(target):
            return RouteQueryAns(b"\x01" + self._host.node_id)
        hop = NodeId(target) if self._host.is_linked(NodeId(target)) else self.next_hop(target)
        return RouteQueryAns(b"\x00" + (hop or self._host.node_id))

    def on_leave(self, request: IncomingRequest) -> Body | None:
        """The node goes on purpose: its signed LEFT entry is in the Leave's own data."""
        body = request.body
        assert isinstance(body, LeaveReq)
        if body.node != request.node or not request.direct:
            raise Forbidden("a Leave must be signed by, and come over the link of, the leaving node")
        update = decode_update(body.data) if body.data else Delta(())
        if not isinstance(update, Delta):
            raise InvalidMessage("a Leave carries a delta with the leaver's entry")
        self._learn(update, request.node, request)
        return LeaveAns()

    def leave(self, done: Callable[[], None]) -> None:
        """Hand our records to those who inherit them, then tell all links."""
        if self._state is not State.READY:
            done()
            return
        self._state = State.LEAVING
        self._version += 1
        self._repair.hand_over(lambda: self._say_goodbye(done))

    def _say_goodbye(self, done: Callable[[], None]) -> None:
        self._entry = self._make_entry(MemberState.LEFT, self._entry.incarnation + 1)
        data = Delta((self._entry,)).encode()
        links = list(self._host.linked())
        waiting = set(links)

        def answered(node: NodeId) -> Callable[[Answer], None]:
            def one(_: Answer) -> None:
                waiting.discard(node)
                if not waiting:
                    done()

            return one

        for node in links:
            self._host.send(node, LeaveReq(self._host.node_id, data), answered(node))
        if not links:
            done()

    def responsible_parts_per_billion(self) -> int:
        """Our share of the space, estimated from its density around us."""
        return 1_000_000_000 // max(1, self.estimated_size()) if self.ready else 0

    def status(self) -> Mapping[str, object]:
        """State and counts."""
        return {
            "topology": self.name,
            "state": self._state.value,
            "members": len(self._live) + int(self.ready),
            "suspects": sum(1 for m in self._members.values() if m.standing is Standing.SUSPECT),
            "dead": sum(1 for m in self._members.values() if m.standing is Standing.DEAD),
            "estimated_size": self.estimated_size(),
            "mode": "full membership" if self.complete else "k-buckets",
        }

    def members(self) -> Sequence[Mapping[str, object]]:
        """One row a member that we know."""
        return [
            {
                "node": node.hex(),
                "addresses": [f"{h}:{p}" for h, p in member.entry.addresses],
                "state": member.entry.state.name.lower(),
                "standing": member.standing.value,
                "bucket": (member.number ^ self._own).bit_length() - 1,
            }
            for node, member in self._members.items()
        ]

    def _repeat(self, action: Callable[[], None], period: float) -> None:
        def again() -> None:
            if self._state is not State.LEAVING:
                action()
                self._host.call_at(self._host.now + period * (0.75 + self._host.random_bits(8) / 512), again)

        self._host.call_at(self._host.now + period * self._host.random_bits(8) / 256, again)


def _fingerprint(entry: MemberEntry) -> int:
    octets = entry.node + entry.incarnation.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(octets, digest_size=8).digest(), "big")


def _number(identifier: bytes) -> int:
    return int.from_bytes(identifier[:16], "big")


def _node(number: int) -> NodeId:
    return NodeId(number.to_bytes(16, "big"))

"""The P2PSIPD-KADEMLIA topology plug-in (`docs/kademlia-topology.md`).

Every peer knows every other as long as the overlay is small (`full_membership`), and keeps k-buckets beyond.
Who is responsible follows from the XOR distance among the live peers known; knowledge travels as member
entries signed by their subjects, in Updates on open links.  Records are compared and repaired by
`RecordRepair`; the wire forms and the table are in `membership`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.proto.identity.certificate import role_of
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage
from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.kademlia_repair import RecordRepair
from p2psipd.proto.reload.member_list import ALL_BITS, KademliaParameters, MemberList, node_of, number_of
from p2psipd.proto.reload.membership import (
    ID_BITS,
    Delta,
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
    Unlink,
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
from p2psipd.proto.reload.replica_sets import ReplicaSets
from p2psipd.proto.reload.topology import Address, Answer, TopologyHost
from p2psipd.proto.reload.wire import NodeDestination, ResourceDestination

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.reload.incoming import IncomingRequest


# The members nearest to a resource, in multiples of the copies, among whom reads look for a quick way round.
_AROUND = 5
_LEAST_IN_BUCKET = 4
_MANY_UNANSWERED = 6


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


class Kademlia(MemberList):
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
        super().__init__(host, parameters, addresses)
        self._bootstrap = tuple(bootstrap)
        self._remembered = tuple(remembered)
        self._first = first
        self._client = client
        self._state = State.STARTING
        self._dialled_back: set[NodeId] = set()
        self._released: set[NodeId] = set()
        self._pending_joins: dict[NodeId, IncomingRequest] = {}
        self._wanted_since: dict[NodeId, float] = {}
        self._dialling: set[NodeId] = set()
        self._admitting: NodeId | None = None
        self._admitted_at = 0.0
        self._not_pushed: set[NodeId] = set()
        # A neighbour that joins at the same time says `Pushed` before it counts as a sibling.
        self._has_pushed: set[NodeId] = set()
        self._attach_at = 0.0
        self._unanswered = 0
        self._replica_sets = ReplicaSets(self._live, self._own, parameters.copies)
        self._replica_sets_at = -1
        self._repair = RecordRepair(host, self, parameters.repair_for)

    # -- who is nearest ------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether this node may be responsible for data."""
        return self._state is State.READY

    def responsible(self, target: bytes) -> bool:
        """Whether no live peer is nearer to `target` than we are."""
        if not self.ready:
            return False
        number = number_of(target)
        nearest = self._live.nearest(number, 1)
        return not nearest or self._own ^ number < nearest[0] ^ number

    def may_read(self, resource: ResourceId) -> bool:
        """Whether we hold a copy and are meant to."""
        return self.ready and resource in self._host.resources() and self._host.node_id in self.replica_set(resource)

    def nearest(self, resource: ResourceId) -> NodeId | None:
        """The first of the holders, if we know all members and it is not ourselves."""
        holders = self.replica_set(resource) if self.complete else ()
        return holders[0] if holders and holders[0] != self._host.node_id else None

    def next_hop(self, target: bytes, exclude: NodeId | None = None, reading: bool = False) -> NodeId | None:
        """The linked peer nearest to `target`, if it is nearer than we are (or we are no member).

        A Fetch or Stat goes to the quickest linked holder instead, or else to the quickest linked peer among
        those around the holders, who have links to all of them.
        """
        number = number_of(target)
        if reading:
            hop = self._towards_holder(ResourceId(target), exclude)
            if hop is not None:
                return hop
        limit = self._own ^ number if self.ready else ALL_BITS + 1
        for candidate in self._routable.nearest(number, 4):
            if candidate ^ number >= limit:
                return None
            node = node_of(candidate)
            if node != exclude and self._host.is_linked(node):
                return node
        if not self.ready and not len(self._routable):
            return next((n for n in self._host.linked() if n != exclude), None)
        return None

    def replica_set(self, resource: ResourceId) -> Sequence[NodeId]:
        """The live peers that must hold `resource`, ourselves among them if so, nearest first."""
        if self._replica_sets_at != self._version:
            self._replica_sets_at = self._version
            self._replica_sets.renew(self.ready)
        return self._replica_sets.of(number_of(resource))

    def _towards_holder(self, resource: ResourceId, exclude: NodeId | None) -> NodeId | None:
        if not self.complete or self._host.node_id in self.replica_set(resource):
            # A holder without a copy sends it nearer and nearer, or it would wander among the holders.
            return None
        quickest = self.readers(resource) or self.relays(resource)
        return next((n for n in quickest if n != exclude), None)

    def relays(self, resource: ResourceId) -> Sequence[NodeId]:
        """Linked peers around the holders of `resource`, who have links to many of them; the quickest first."""
        if not self.complete:
            return ()
        number = number_of(resource)
        limit = self._own ^ number if self.ready else ALL_BITS + 1
        around = self._live.nearest(number, _AROUND * self._p.copies)[self._p.copies :]
        return self._host.quickest([node_of(n) for n in around if n ^ number < limit])

    def replica_nodes(self, resource: ResourceId) -> Sequence[NodeId]:
        """The other holders, nearest first."""
        return [n for n in self.replica_set(resource) if n != self._host.node_id]

    def readers(self, resource: ResourceId) -> Sequence[NodeId]:
        """Linked holders, the quickest first; none where our view of that region is not complete."""
        if not self.complete:
            return ()
        return self._host.quickest(self.replica_nodes(resource))

    def plausible_answerer(self, resource: ResourceId, node: NodeId, reading: bool = False) -> bool:
        """RFC 6940 section 6.3.4 check 2, with the eight nearest *linked* peers as the Neighbor Table."""
        if reading and node in self.replica_set(resource):
            return True
        number = number_of(resource)
        limit = number_of(node) ^ number
        return all(
            n ^ number >= limit for n in self._routable.nearest(self._own, 8) if self._host.is_linked(node_of(n))
        )

    def may_replicate(self, resource: ResourceId, sender: NodeId) -> bool:
        """Whether `sender` is, as far as we know, near enough to hold `resource` itself, or we must hold it.

        Who held it among other members (in the other half of a healed partition, or while many were silent) may be
        far by now, and is rid of it only when a holder takes it.
        """
        number = number_of(resource)
        copies = self._p.copies
        near = self._live.nearest(number, copies)
        if len(near) < copies or (self.ready and self._own ^ number < near[-1] ^ number):
            return True
        near = self._live.nearest(number, 2 * copies)
        return len(near) < 2 * copies or number_of(sender) ^ number <= near[-1] ^ number

    # -- joining -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Found the overlay, resume our place, or join through a bootstrap peer."""
        host = self._host
        self._state = State.JOINING
        if self._first and not self._remembered:
            self._become_ready()
        number = self._own
        for peer in sorted(self._remembered, key=lambda p: number_of(p.node) ^ number)[: self._p.siblings]:
            self._dial(peer.node, peer.addresses)
        self._dial_bootstrap()
        if self._remembered and not self._client:
            host.call_at(host.now + self._p.join_for, self._resume)
        host.call_at(host.now + self._p.maintain_for, self._maintain)
        for action, period in (
            (self._compare_members, self._p.compare_members_for),
            (self._find_partition, self._p.partition_for),
            (self._ping_idle, self._p.ping_siblings_for / 4),
            (self._release_slow_link, self._p.release_for),
            (self._forget_dead, self._p.dead_for / 4),
        ):
            self._repeat(action, period)
        self._repair.start()

    def settle(self, members: Iterable[tuple[MemberEntry, bytes]], linked: Iterable[NodeId] = ()) -> None:
        """Before `start`: be a settled member that knows `members` and routes over `linked` (for simulations)."""
        self.preload(members, linked)
        self._first = True
        self._remembered = ()

    def _resume(self, turn: int = 0) -> None:
        """Go on without being admitted where nobody is a member any more, after the end of all of them at once.

        Only a node that was a member before may (RFC 6940 section 6.4.2.1). Those who meet each other at this take
        turns by their Node-IDs, so that the first one admits the others.
        """
        if self._state is not State.JOINING:
            return
        before = sum(number_of(node) < self._own for node in self._host.linked())
        if before <= turn and not self._admitted_at and not len(self._live):
            self._become_ready()
        else:
            self._host.call_at(self._host.now + self._p.join_for, lambda: self._resume(turn + 1))

    def _attach_through(self, node: NodeId) -> None:
        host = self._host
        if self._client or self._state is not State.JOINING or self._admitting or host.now < self._attach_at:
            return
        self._attach_at = host.now + self._p.join_for / 2
        self._unanswered += 1
        if self._unanswered == _MANY_UNANSWERED:
            detail = "no answer to our Attaches: no founder, no way to a member, or another node with our certificate"
            host.misbehaved(None, "unanswered", detail)
        target = ResourceId(((self._own + 1) & ALL_BITS).to_bytes(16, "big"))
        host.send_to_resource(target, host.attach_request(), self._attached, via=node)

    def _attached(self, answer: Answer) -> None:
        if answer.node is not None:
            self._unanswered = 0
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
        self._has_pushed.clear()
        self._entry = self._make_entry(MemberState.READY, self._entry.incarnation + 1)
        self._version += 1
        for node in list(self._host.linked()):
            self._send(node, Delta((self._entry,)))
        self._host.joined()
        self._repair.soon(1.0)
        for soon in (1.0, 3.0):
            # Those who joined at the same moment may have missed each other's news.
            self._host.call_at(self._host.now + soon, self._compare_members)

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
        self._has_pushed.discard(node)
        self._routable.discard(number_of(node))
        if node in self._released:
            # It told us that it would close the link, and that it lives.
            self._released.discard(node)
            return
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
        """Open the links we want."""
        if self._state is State.LEAVING:
            return
        host = self._host
        host.call_at(host.now + self._p.maintain_for * (0.75 + host.random_bits(8) / 512), self._maintain)
        if self._state is State.JOINING and not self._admitting:
            linked = next(iter(host.linked()), None)
            if linked is None:
                self._dial_bootstrap()
            else:
                self._attach_through(linked)
        budget = 8 - len(self._dialling)
        usable = set(host.linked())
        for node in self._wanted_links():
            if budget <= 0:
                break
            member = self._members.get(node)
            if node in usable or member is None or node in self._dialling:
                continue
            since = self._wanted_since.setdefault(node, host.now)
            # The smaller Node-ID dials at once; the other waits, so that two links are rarely opened.
            if host.node_id < node or host.now - since > 2 * self._p.maintain_for or self._state is State.JOINING:
                self._dial(node, member.entry.addresses)
                budget -= 1

    def _wanted_links(self) -> list[NodeId]:
        """Siblings first, then members at random: anywhere while all are known (a read wants any of eight
        holders), else a share of each bucket; about `max_links` in all."""
        nodes = self.siblings()
        if len(self._live) <= self._p.max_links:
            near = set(nodes)
            return nodes + [node for node in map(node_of, self._live) if node not in near]
        chosen = set(nodes)
        # Greedy routing must find a way into every bucket, whatever the draw; beyond full membership that is all.
        share = _LEAST_IN_BUCKET if self.complete else self._link_share()
        for bucket in range(ID_BITS - 1, ID_BITS - 1 - self._buckets(), -1):
            missing = share - len(self._routable.in_bucket(self._own, bucket))
            numbers = list(self._live.in_bucket(self._own, bucket)) if missing > 0 else []
            start = self._host.random_bits(16) % len(numbers) if numbers else 0
            chosen.update(map(node_of, (numbers[start:] + numbers[:start])[:missing]))
        if self.complete:
            for _ in range(min(8, self._p.max_links - len(self._routable))):
                chosen.add(node_of(self._live.at(self._host.random_bits(32) % len(self._live))))
        return nodes + sorted(chosen - set(nodes))

    def _release_slow_link(self) -> None:
        """Where there are more peers than links: give up the slowest link (of a full bucket, beyond full
        membership).

        Maintenance opens another at random in its place, so that in time the links are to near peers (proximity
        neighbour selection).
        """
        host = self._host
        if not self.ready or len(self._live) <= self._p.max_links:
            return
        kept = set(self._live.nearest(self._own, 2 * self._p.siblings))
        buckets: dict[int, list[tuple[float, NodeId]]] = {}
        for node in host.linked():
            number = number_of(node)
            rtt = host.rtt(node)
            if number in self._routable and number not in kept and rtt is not None:
                bucket = (number ^ self._own).bit_length() - 1
                if len(self._routable.in_bucket(self._own, bucket)) > _LEAST_IN_BUCKET:
                    buckets.setdefault(0 if self.complete else bucket, []).append((rtt, node))
        slowest: tuple[float, NodeId] | None = None
        for links in buckets.values():
            links.sort()
            surplus = len(self._routable) > 1.25 * self._p.max_links
            if len(links) >= self._link_share() and (surplus or links[-1][0] > 1.25 * links[len(links) // 2][0]):
                slowest = max(slowest or links[-1], links[-1])
        if slowest is not None:
            self._release(slowest[1])

    def _release(self, node: NodeId) -> None:
        def answered(answer: Answer) -> None:
            if isinstance(answer.body, UpdateAns):
                self._routable.discard(number_of(node))
                self._host.drop_link(node, "released")

        self._host.send(node, UpdateReq(Unlink().encode()), answered)

    def _link_share(self) -> int:
        """Links that we want besides those to siblings: in all, or in each bucket beyond full membership."""
        if self.complete:
            return self._p.max_links - 2 * self._p.siblings
        return max(8, (self._p.max_links - self._p.siblings) // self._buckets())

    def _buckets(self) -> int:
        """How many buckets are farther than our siblings."""
        return max(1, (len(self._live) // self._p.siblings).bit_length())

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
                if self._state is State.JOINING:
                    self._has_pushed.add(node)
            case Unlink():
                if node in self.siblings():
                    raise Forbidden("the link to a sibling stays open")
                self._released.add(node)
        return UpdateAns(b"")

    def _is_dialling(self, node: NodeId) -> bool:
        return node in self._dialling

    def _learned(self, member: Member, sender: NodeId | None, was_live: bool) -> None:
        entry = member.entry
        if entry.state is MemberState.JOINING and sender == entry.node:
            self._repair.push_to_joiner(entry.node)
        elif entry.state is MemberState.LEFT:
            self._repair_near(entry.node, 0.5)
        elif member.counts and not was_live:
            if self._state is State.JOINING:
                self._meet_sibling(entry.node)
            else:
                self._repair_near(entry.node, 1.0)

    def _buried(self, member: Member) -> None:
        self._repair_near(member.entry.node, 0.5)

    def _repair_near(self, node: NodeId, delay: float) -> None:
        """A member came or went: compare records soon, if it may be a holder of any that we hold."""
        near = self._live.nearest(self._own, 2 * self._p.siblings)
        if len(near) < 2 * self._p.siblings or number_of(node) ^ self._own <= near[-1] ^ self._own:
            self._repair.soon(delay)

    def _meet_sibling(self, node: NodeId) -> None:
        siblings = self.siblings()
        if node in siblings:
            if node not in self._has_pushed:
                self._not_pushed.add(node)
            member = self._members[node]
            self._dial(node, member.entry.addresses)
        self._not_pushed &= set(siblings)

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

    def credential_changed(self) -> None:
        """Our entry names our certificate, so all must hear of the new one before the old one expires."""
        if not self._client:
            self._announce(self._entry.incarnation + 1)

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

    def _repeat(self, action: Callable[[], None], period: float) -> None:
        def again() -> None:
            if self._state is not State.LEAVING:
                action()
                self._host.call_at(self._host.now + period * (0.75 + self._host.random_bits(8) / 512), again)

        self._host.call_at(self._host.now + period * self._host.random_bits(8) / 256, again)

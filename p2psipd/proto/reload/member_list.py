"""Who is in the overlay: learning it, doubting it, passing it on (`docs/kademlia-topology.md` sections 4 and 5).

`MemberList` is the part of the Kademlia plug-in that keeps the members.  Entries are verified in slices; news go
to a few links at random and comparison by digest fills the gaps; a death is a suspicion that its subject may
refute, as in SWIM.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.proto.identity.certificate import role_of
from p2psipd.proto.reload.ids import NodeId, overlay_hash
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
    Standing,
)
from p2psipd.proto.reload.messages import PingReq, UpdateReq
from p2psipd.proto.reload.topology import Address, TopologyHost

if TYPE_CHECKING:
    from p2psipd.proto.reload.incoming import IncomingRequest

ALL_BITS = (1 << ID_BITS) - 1
_VERIFY_SLICE = 40  # entries: about 8 ms of signature checks
_DELTA_OCTETS = 48_000  # entries and their certificates in one Update
_SUMMARY_ROWS = 2_000  # of 25 octets in one Update
_MAX_UNVERIFIED = 20_000
_TWIN_TOLD_FOR = 600.0
_MAX_AHEAD = 86_400_000  # ms: nobody's word makes our incarnation run away


class KademliaParameters(NamedTuple):
    """The plug-in's constants; times in seconds."""

    copies: int = 8
    siblings: int = 16
    bucket_size: int = 16
    max_links: int = 200
    full_membership: int = 5000
    gossip_fanout: int = 4
    gossip_for: float = 0.5
    maintain_for: float = 1.0
    ping_siblings_for: float = 10.0
    ping_others_for: float = 60.0
    compare_members_for: float = 30.0
    repair_for: float = 60.0
    partition_for: float = 60.0
    release_for: float = 10.0
    suspect_for: float = 10.0
    dead_for: float = 600.0
    join_for: float = 10.0


class MemberList(ABC):
    """The members that a node knows, and its own entry among them."""

    def __init__(self, host: TopologyHost, parameters: KademliaParameters, addresses: Sequence[Address]) -> None:
        self._host = host
        self._p = parameters
        self._addresses = tuple(addresses)
        self._own = int.from_bytes(host.node_id, "big")
        self._overlay_hash = overlay_hash(host.configuration.overlay_name)
        self._members: dict[NodeId, Member] = {}
        self._twin_told_at = float("-inf")
        self._live = IdSet()
        self._routable = IdSet()
        self._range_digests = [[0, 0] for _ in range(RANGES)]
        self._unverified: list[tuple[MemberEntry, bytes, NodeId | None]] = []
        self._gossip: dict[NodeId, NodeId | None] = {}
        self._gossip_suspects: dict[NodeId, int] = {}
        self._suspicions_told: dict[NodeId, int] = {}
        self._gossip_armed = False
        self._certificates_sent: dict[NodeId, set[bytes]] = {}
        self._version = 0
        self._complete_at = -1
        self._complete = True
        self._entry = self._make_entry(MemberState.JOINING, int(host.wall * 1000))

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether we are a member ourselves."""

    @abstractmethod
    def _dial(self, node: NodeId, addresses: Sequence[Address]) -> None:
        """Open a link to a member unless there is one."""

    @abstractmethod
    def _is_dialling(self, node: NodeId) -> bool:
        """Whether a link to `node` is being opened."""

    @abstractmethod
    def _learned(self, member: Member, sender: NodeId | None, was_live: bool) -> None:
        """A newer entry of a member was verified and taken."""

    @abstractmethod
    def _buried(self, member: Member) -> None:
        """A member is held to be dead."""

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
        return max(len(self._routable), int(count * (ALL_BITS / max(1, farthest))))

    def siblings(self) -> list[NodeId]:
        """The nearest live peers."""
        return [node_of(n) for n in self._live.nearest(self._own, self._p.siblings)]

    def preload(self, members: Iterable[tuple[MemberEntry, bytes]], linked: Iterable[NodeId] = ()) -> None:
        """Be a settled member that already knows `members` (entry, certificate), and routes over the links to
        those in `linked`: for simulations."""
        for entry, certificate in members:
            if entry.node != self._host.node_id:
                member = Member(entry, certificate, self._host.now)
                self._members[entry.node] = member
                self._count_in_ranges(member, 1)
        self._live.load(m.number for m in self._members.values() if m.counts)
        self._routable.load(number_of(node) for node in linked)
        self._version += 1

    @property
    def own_entry(self) -> MemberEntry:
        """What we now say of ourselves."""
        return self._entry

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

    # -- what we are told ----------------------------------------------------------------------------------

    def _learn(self, delta: Delta, sender: NodeId, request: IncomingRequest) -> None:
        own: MemberEntry | None = None
        for entry in delta.entries:
            if len(self._unverified) >= _MAX_UNVERIFIED:
                self._host.misbehaved(sender, "member-entry", "more entries than can be verified")
                break
            if entry.node == self._host.node_id:
                if own is None or entry.incarnation > own.incarnation:
                    own = entry
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
        if own is not None:
            self._hear_of_ourselves(own, sender)
        for node, incarnation in delta.suspects:
            self._on_suspicion(node, incarnation, sender)
        if self._unverified:
            self._verify_some()

    def _hear_of_ourselves(self, entry: MemberEntry, sender: NodeId) -> None:
        """Something newer than what we say: from our last life, under a clock that was ahead, or from a node that has
        our key as well.  Neither of two such nodes gets all the answers to its requests.
        """
        host = self._host
        if not self._entry.incarnation < entry.incarnation <= host.wall * 1000 + _MAX_AHEAD:
            return
        if entry.addresses != self._addresses and host.now >= self._twin_told_at + _TWIN_TOLD_FOR:
            if not self._entry_is_genuine(entry, host.credential.certificate.der):
                host.misbehaved(sender, "member-entry", "an entry of this node's own is not genuine")
                return
            self._twin_told_at = host.now
            where = ", ".join(f"{address} port {port}" for address, port in entry.addresses)
            host.misbehaved(None, "identity", f"a node at {where} has the same certificate and key as this one")
        self._refute(entry.incarnation)

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
        if entry.state is not MemberState.JOINING and not told_by_itself and self.ready:
            # In a small overlay everybody has a link to everybody and the subject itself tells them all.
            self._spread(entry.node, sender)
        self._learned(member, sender, was_live)
        if member.counts and not was_live and not self.complete:
            self._trim()

    def _on_suspicion(self, node: NodeId, incarnation: int, sender: NodeId) -> None:
        if node == self._host.node_id:
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
        self._spread_suspicion(node, incarnation)
        if node in self.siblings() or len(self._live) < self._p.max_links:
            self._dial(node, member.entry.addresses)
        self._host.call_at(self._host.now + self._p.suspect_for, lambda: self._suspicion_over(node))

    def _tell_suspected(self, node: NodeId, member: Member) -> None:
        self._send(node, Delta((), ((node, member.entry.incarnation),)))

    def _refute(self, incarnation: int) -> None:
        """Somebody doubts us, or knows more of us than we: say it again with a higher incarnation."""
        own = self._entry.incarnation
        if own <= incarnation <= max(own, self._host.wall * 1000 + _MAX_AHEAD):
            self._announce(incarnation + 1)

    def _announce(self, incarnation: int) -> None:
        self._entry = self._make_entry(self._entry.state, incarnation)
        for node in list(self._host.linked()):
            self._send(node, Delta((self._entry,)))

    def _suspicion_over(self, node: NodeId) -> None:
        member = self._members.get(node)
        if member is not None and member.standing is Standing.SUSPECT:
            if self._host.is_linked(node):
                self._set_standing(member, Standing.LIVE)
            elif not self._is_dialling(node):
                self._bury(member, "no sign of life")

    def _spread_suspicion(self, node: NodeId, incarnation: int) -> None:
        """Tell of a suspicion, once an incarnation: who is told waits for a refutation and buries by itself."""
        if self._suspicions_told.get(node, -1) < incarnation:
            self._suspicions_told[node] = incarnation
            self._gossip_suspects[node] = incarnation
            self._arm_gossip()

    def _bury(self, member: Member, reason: str) -> None:
        self._set_standing(member, Standing.DEAD)
        self._spread_suspicion(member.entry.node, member.entry.incarnation)
        self._host.member_changed(member.entry.node, False, reason, member.entry.addresses)
        self._buried(member)

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
                self._suspicions_told.pop(node, None)
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
                extra.sort(key=lambda n: (not self._host.is_linked(node_of(n)), self._host.rtt(node_of(n)) or 1.0))
                for number in extra[self._p.bucket_size :]:
                    if not self._host.is_linked(node_of(number)):
                        self._live.discard(number)
                        self._routable.discard(number)
                        self._count_in_ranges(self._members.pop(node_of(number)), -1)
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
            octets += 66 + 20 * len(entry.addresses) + len(entry.signature)
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
        for number in self._live.nearest(number_of(page.target), count):
            member = self._members[node_of(number)]
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
        self._send_summaries(node, differing, reply=False)

    def _send_summaries(self, node: NodeId, ranges: int, reply: bool) -> None:
        """The members of some ranges, in as many Updates as they need; our own row is in each."""
        rows: list[list[tuple[NodeId, int, int]]] = [[] for _ in range(RANGES)]
        for member in self._members.values():
            if member.entry.state is not MemberState.JOINING:
                row = (member.entry.node, member.entry.incarnation, int(member.counts))
                rows[member.number >> (ID_BITS - 4)].append(row)
        own = (self._host.node_id, self._entry.incarnation, int(self.ready))
        told, some = 0, [own]
        for at in range(RANGES):
            if ranges >> at & 1:
                if told and len(some) + len(rows[at]) > _SUMMARY_ROWS:
                    self._send(node, MemberSummary(told, reply, tuple(some)))
                    told, some = 0, [own]
                told |= 1 << at
                some += rows[at]
        if told:
            self._send(node, MemberSummary(told, reply, tuple(some)))

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
                if not alive and self.ready:
                    self._refute(incarnation)
            elif alive and (known is None or known.entry.incarnation < incarnation):
                behind = True
            elif not alive and known is not None and known.counts and known.entry.incarnation <= incarnation:
                self._on_suspicion(other, incarnation, node)
        if missing:
            self._send_entries(node, missing)
        if behind and not theirs.reply:
            self._send_summaries(node, theirs.ranges, reply=True)


def _fingerprint(entry: MemberEntry) -> int:
    octets = entry.node + entry.incarnation.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(octets, digest_size=8).digest(), "big")


def number_of(identifier: bytes) -> int:
    """The first 128 bits of an identifier as an integer."""
    return int.from_bytes(identifier[:16], "big")


def node_of(number: int) -> NodeId:
    """The Node-ID of an integer."""
    return NodeId(number.to_bytes(16, "big"))

"""Peers for a simulated world: identities, cores, and an overlay that stands already (`converged`).

With `sign="null"` signatures have the size of real ones and cost nothing; with `sign="real"` every key is
derived from the seed and every signature is made and verified, so that a run replays octet for octet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from p2psipd.proto.identity.certificate import (
    Authority,
    Role,
    Trust,
    TrustPolicy,
    create_authority,
    parse_certificate,
    role_name,
)
from p2psipd.proto.identity.signing import (
    HASH_SHA256,
    SIGNATURE_ECDSA,
    Credential,
    NullCredential,
    NullTrust,
    NullVerifier,
    RealVerifier,
    SignatureValue,
    Signer,
    Verifier,
    null_certificate,
)
from p2psipd.proto.reload.framing import MIN_RTO
from p2psipd.proto.reload.kademlia import Kademlia
from p2psipd.proto.reload.link_table import Link
from p2psipd.proto.reload.member_list import KademliaParameters
from p2psipd.proto.reload.membership import MemberEntry, MemberState
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer import Peer
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.proto.reload.storage import Storage
from p2psipd.sim.world import WALL_START, Address, SimNode, World

OVERLAY_NAME: Final = "sim.example"
PORT: Final = 6084
SIGNATURES: Final = ("null", "real")
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BOOTSTRAPS: Final = 3
_DETERMINISTIC: Final = ec.ECDSA(SHA256(), deterministic_signing=True)


class SimPeer:
    """One peer of the overlay: its node in the world, its core and what it stores."""

    __slots__ = ("born_at", "joined_at", "node", "node_id", "number", "peer", "storage")

    def __init__(self, node: SimNode, peer: Peer, storage: Storage) -> None:
        self.node = node
        self.peer = peer
        self.storage = storage
        self.node_id = peer.node_id
        self.number = int.from_bytes(peer.node_id, "big")
        self.born_at = node.world.now
        self.joined_at: float | None = None

    @property
    def topology(self) -> Kademlia:
        """The peer's topology plug-in."""
        topology = self.peer.topology
        assert isinstance(topology, Kademlia)
        return topology


class _Identities:
    """Draws Node-IDs and makes the credentials for them."""

    def __init__(self, sign: str, random: Random) -> None:
        if sign not in SIGNATURES:
            raise ValueError(f"signatures are null or real, not {sign!r}")
        self._random = random
        self._authority: Authority | None = None
        self.trust: TrustPolicy
        self.verifier: Verifier
        if sign == "real":
            self._authority = create_authority(OVERLAY_NAME, WALL_START, self._key())
            self.trust = Trust((self._authority.certificate,), OVERLAY_NAME, frozenset())
            self.verifier = RealVerifier()
        else:
            self.trust = NullTrust(OVERLAY_NAME)
            self.verifier = NullVerifier()

    def _key(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(1 + self._random.getrandbits(256) % (_P256_ORDER - 1), ec.SECP256R1())

    def make(self, wall: float) -> Signer:
        """A new registrar peer's credential."""
        node_id = self._random.getrandbits(128).to_bytes(16, "big")
        user = role_name(Role.REGISTRAR, node_id, OVERLAY_NAME)
        if self._authority is None:
            return NullCredential(null_certificate(node_id, user, OVERLAY_NAME))
        key = self._key()
        der = self._authority.issue(key.public_key(), node_id, user, wall)
        return ReplayedCredential(parse_certificate(der), key)


class ReplayedCredential(Credential):
    """Signs the same data with the same octets each time (RFC 6979), where a node draws nonces."""

    def sign(self, data: bytes) -> SignatureValue:
        """The signature over ``data``."""
        key = cast(ec.EllipticCurvePrivateKey, self.private_key)
        return SignatureValue(HASH_SHA256, SIGNATURE_ECDSA, key.sign(data, _DETERMINISTIC))


class SimOverlay:
    """The peers of one world. `on_output(peer, output)` hears their outcomes and events."""

    def __init__(
        self,
        world: World,
        *,
        sign: str = "null",
        kademlia: KademliaParameters | None = None,
        configuration: OverlayConfiguration | None = None,
    ) -> None:
        self.world = world
        self.kademlia = kademlia or KademliaParameters()
        self.configuration = configuration or OverlayConfiguration(
            overlay_name=OVERLAY_NAME, domain_patterns=(r"sim\.example",)
        )
        self.random = Random(world.random.getrandbits(64))
        self.peers: list[SimPeer] = []
        self.on_output: Callable[[SimPeer, object], None] = _ignore
        self._identities = _Identities(sign, self.random)
        self._count = 0

    def add(self, *, first: bool = False, bootstrap: Sequence[Address] = ()) -> SimPeer:
        """A new peer, not started: `start` it."""
        self._count += 1
        address = (f"10.{self._count >> 16}.{self._count >> 8 & 255}.{self._count & 255}", PORT)
        credential = self._identities.make(self.world.wall)
        storage = Storage(self.configuration, self._identities.trust, self._identities.verifier)
        peer = Peer(
            credential,
            self.configuration,
            self._identities.trust,
            self._identities.verifier,
            storage,
            Random(self.random.getrandbits(64)),
            PeerParameters(addresses=(address,), bootstrap=tuple(bootstrap), first=first, kademlia=self.kademlia),
            now=self.world.now,
            wall=self.world.wall,
        )
        node = self.world.add(address, credential.certificate.der)
        node.core = peer
        made = SimPeer(node, peer, storage)
        node.on_output = lambda _, output: self.on_output(made, output)
        self.peers.append(made)
        return made

    def start(self, peer: SimPeer) -> None:
        """Let it begin to join (or found the overlay)."""
        peer.node.run(peer.peer.start)

    def join(self) -> SimPeer:
        """A new peer that joins through some live ones."""
        ready = self.ready()
        chosen = self.random.sample(ready, min(_BOOTSTRAPS, len(ready)))
        peer = self.add(bootstrap=[other.node.address for other in chosen])
        self.start(peer)
        return peer

    def ready(self) -> list[SimPeer]:
        """Live members, in order of birth."""
        return [peer for peer in self.peers if peer.node.frozen is None and peer.topology.ready]

    def remove(self, peer: SimPeer, *, silent: bool = False) -> None:
        """The peer dies: by reset, or silently. A silent one stays in the world as a frozen node."""
        self.peers.remove(peer)
        if silent:
            self.world.freeze(peer.node)
        else:
            self.world.kill(peer.node)

    def converge(self, count: int) -> None:
        """`count` peers that all know each other and have the links that they would have opened."""
        made = [self.add(first=True) for _ in range(count)]
        for peer in made:
            self.start(peer)
        entries = [(_ready_entry(peer), peer.node.certificate) for peer in made]
        links = self._choose_links(made)
        for peer in made:
            peer.topology.settle(entries, [made[other].node_id for other in links[peer.number]])
        index = {peer.number: at for at, peer in enumerate(made)}
        for peer in made:
            for other in links[peer.number]:
                if index[peer.number] < other:
                    self._connect(peer, made[other])

    def _choose_links(self, peers: Sequence[SimPeer]) -> dict[int, list[int]]:
        """For each peer (by number) the indices of those it is linked to: siblings, and a share of each
        bucket.

        The core's own maintenance opens links at random within a bucket and gives up slow ones; what it has
        arrived at after some hours is modelled by the quickest of eight times as many drawn at random.
        """
        numbers = sorted((peer.number, at) for at, peer in enumerate(peers))
        order = [number for number, _ in numbers]
        linked: list[set[int]] = [set() for _ in peers]

        def link(a: int, b: int) -> None:
            linked[a].add(b)
            linked[b].add(a)

        parameters = self.kademlia
        for at, peer in enumerate(peers):
            if len(peers) - 1 <= parameters.max_links:
                near = [other for _, other in numbers if other != at]
            else:
                near = [other for _, other in _nearest(numbers, order, peer.number, parameters.siblings)]
            for other in near:
                link(at, other)
        if len(peers) - 1 > parameters.max_links:
            for at, peer in enumerate(peers):
                for members, share in self._shares(peers, order, numbers, at):
                    missing = max(0, share - sum(other in linked[at] for other in members))
                    free = [other for other in members if other not in linked[at]]
                    drawn = self.random.sample(free, min(len(free), 8 * missing))
                    drawn.sort(key=lambda other: self.world.latency.one_way(peer.node.place, peers[other].node.place))
                    for other in drawn[:missing]:
                        link(at, other)
        return {peer.number: sorted(linked[at]) for at, peer in enumerate(peers)}

    def _shares(
        self, peers: Sequence[SimPeer], order: Sequence[int], numbers: Sequence[tuple[int, int]], at: int
    ) -> Iterator[tuple[list[int], int]]:
        """Among whom (indices) a peer chooses how many links: all peers, or bucket by bucket beyond full
        membership."""
        parameters = self.kademlia
        buckets = max(1, (len(peers) // parameters.siblings).bit_length())
        share = max(8, (parameters.max_links - parameters.siblings) // buckets)
        complete = len(peers) <= parameters.full_membership
        if complete:
            share = 4
        for bucket in range(127, 127 - buckets, -1):
            low = ((peers[at].number >> bucket) ^ 1) << bucket
            first = bisect_left(order, low)
            members = [other for _, other in numbers[first : bisect_left(order, low + (1 << bucket))]]
            yield members, min(share, len(members))
        if complete:
            yield [other for other in range(len(peers)) if other != at], parameters.max_links

    def _connect(self, a: SimPeer, b: SimPeer) -> None:
        """A link that has stood for a while: both cores have it, with its round-trip time measured."""
        near, far = self.world.connect(a.node, b.node)
        limit = self.configuration.max_message_size + 4096
        for end, own, other, dialled in ((near, a, b, True), (far, b, a, False)):
            link = Link(
                end.id,
                other.peer.credential.certificate,
                other.node.address,
                dialled,
                self.world.now,
                limit,
            )
            rtt = 2 * end.delay
            link.framed.srtt, link.framed.rttvar = rtt, rtt / 20
            link.framed.rto = max(MIN_RTO, rtt * 1.2)
            own.peer.links.add(link)
            own.peer.links.confirm(link)


def _nearest(
    numbers: Sequence[tuple[int, int]], order: Sequence[int], target: int, count: int
) -> list[tuple[int, int]]:
    """The `count` pairs whose number is nearest to `target` by XOR, `target` itself left out."""
    bits = 128
    first, last = 0, len(order)
    while bits:
        low = (target >> (bits - 1)) << (bits - 1)
        lower = bisect_left(order, low, first, last)
        upper = bisect_left(order, low + (1 << (bits - 1)), lower, last)
        if upper - lower <= count:
            break
        first, last, bits = lower, upper, bits - 1
    near = sorted(numbers[first:last], key=lambda pair: pair[0] ^ target)
    return [pair for pair in near if pair[0] != target][:count]


def _ready_entry(peer: SimPeer) -> MemberEntry:
    """The entry that a member tells of itself."""
    entry = peer.topology.own_entry
    assert entry.state is MemberState.READY
    return entry


def _ignore(peer: SimPeer, output: object) -> None:
    """Nobody listens."""

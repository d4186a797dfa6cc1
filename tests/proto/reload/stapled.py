"""Real peer cores stapled together in memory: one heap of events, a fixed delay on each link, no sockets."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from p2psipd.proto.identity.certificate import Role, create_authority, parse_certificate, role_name
from p2psipd.proto.identity.signing import (
    Credential,
    NullCredential,
    NullTrust,
    NullVerifier,
    RealVerifier,
    Signer,
    null_certificate,
)
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.member_list import KademliaParameters
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer import Peer, PeerParameters
from p2psipd.proto.reload.storage import Storage

OVERLAY = "overlay.example"
WALL = 1_800_000_000.0


class Node:
    """One peer and its end of the links."""

    def __init__(self, world: World, number: int, parameters: PeerParameters, role: Role) -> None:
        self.world = world
        self.number = number
        self.address = parameters.addresses[0] if parameters.addresses else (f"127.9.0.{number}", 0)
        node_id = world.random.getrandbits(128).to_bytes(16, "big")
        user = f"user{number}@{OVERLAY}" if role is Role.USER else role_name(role, node_id, OVERLAY)
        self.configuration = world.configuration
        trust: Any
        verifier: Any
        self.credential: Signer
        if world.authority is None:
            self.credential = NullCredential(null_certificate(node_id, user, OVERLAY))
            trust, verifier = NullTrust(OVERLAY), NullVerifier()
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            der = world.authority.issue(key.public_key(), node_id, user, world.wall)
            self.credential = Credential(parse_certificate(der), key)
            trust, verifier = world.configuration.trust(), RealVerifier()
        self.certificate = self.credential.certificate
        self.storage = Storage(self.configuration, trust, verifier)
        self.peer = Peer(
            self.credential,
            self.configuration,
            trust,
            verifier,
            self.storage,
            random.Random(number),
            parameters,
            now=world.now,
            wall=world.wall,
            make_trust=lambda c: c.trust() if world.authority else NullTrust(OVERLAY, c.bad_nodes),
            read_document=world.read_document,
        )
        self.alive = True
        self.frozen: list[peer_io.PeerInput] | None = None
        self.links: dict[int, tuple[Node, int]] = {}
        self.outcomes: dict[int, Any] = {}
        self.events: list[Any] = []
        self.armed: float | None = None

    def put(self, item: peer_io.PeerInput) -> None:
        """Feed one input now."""
        if not self.alive:
            return
        if self.frozen is not None:
            self.frozen.append(item)
            return
        self.perform(self.peer.receive(item, self.world.now, self.world.wall))

    def perform(self, outputs: list[peer_io.PeerOutput]) -> None:
        """Carry out outputs."""
        for output in outputs:
            match output:
                case peer_io.SendToLink(link, data):
                    self.world.sent(self, link, data)
                case peer_io.OpenLink(attempt, addresses, _):
                    self.world.dial(self, attempt, addresses)
                case peer_io.CloseLink(link, reason):
                    self.world.close(self, link, reason)
                case peer_io.Completed(ref, result):
                    self.outcomes[ref] = result
                case peer_io.Failed(ref, error):
                    self.outcomes[ref] = error
                case _:
                    self.events.append(output)
        self.arm()

    def arm(self) -> None:
        """Schedule the core's next timer."""
        at = self.peer.next_timer()
        if at is not None and (self.armed is None or at < self.armed - 1e-9):
            self.armed = at
            self.world.at(at, self.tick)

    def tick(self) -> None:
        """The core's timer is due."""
        if not self.alive or self.armed is None or self.world.now < self.armed - 1e-9:
            return
        self.armed = None
        if self.frozen is None:
            self.perform(self.peer.handle_timer(self.world.now, self.world.wall))

    def ask(self, item: Callable[[int], peer_io.PeerInput], within: float = 20.0) -> Any:
        """Feed a wish and run the world until its outcome is there."""
        ref = next(self.world.refs)
        self.put(item(ref))
        self.world.run(until=lambda: ref in self.outcomes, seconds=within)
        return self.outcomes.get(ref)


class World:
    """Time, links and nodes."""

    def __init__(
        self, seed: int = 1, delay: float = 0.01, kademlia: KademliaParameters | None = None, real: bool = False
    ) -> None:
        self.authority = create_authority(OVERLAY, WALL) if real else None
        self.random = random.Random(seed)
        self.now = 1000.0
        self.wall_offset = WALL - self.now
        self.delay = delay
        self.kademlia = kademlia or KademliaParameters()
        self.configuration = OverlayConfiguration(
            overlay_name=OVERLAY,
            domain_patterns=(r"overlay\.example",),
            root_certs=(self.authority.certificate,) if self.authority else (),
        )
        self.read_document: Any = None
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.refs = itertools.count(1)
        self.link_ids = itertools.count(1)
        self.nodes: list[Node] = []
        self.by_address: dict[tuple[str, int], Node] = {}
        self.refuse_after_handshake: set[tuple[int, int]] = set()
        self.cut: Callable[[Node, Node], bool] = lambda a, b: False
        self.extra_delay: Callable[[Node, Node], float] = lambda a, b: 0.0
        self.frames = 0
        self.octets = 0

    @property
    def wall(self) -> float:
        return self.now + self.wall_offset

    def at(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (at, next(self.order), action))

    def run(self, seconds: float = 10.0, until: Callable[[], bool] | None = None) -> None:
        """Let time pass until the condition holds or the seconds are over."""
        end = self.now + seconds
        while self.heap and self.heap[0][0] <= end:
            if until is not None and until():
                return
            at, _, action = heapq.heappop(self.heap)
            self.now = max(self.now, at)
            action()
        if until is None or not until():
            self.now = end

    def add(self, *, first: bool = False, role: Role = Role.REGISTRAR, **extra: Any) -> Node:
        """A new node, started."""
        number = len(self.nodes) + 1
        address = (f"127.9.{number // 250}.{number % 250 + 1}", 6084)
        client = role not in (Role.PEER, Role.REGISTRAR)
        bootstrap = (self.nodes[0].address,) if self.nodes else ()
        parameters = PeerParameters(
            addresses=() if client else (address,),
            bootstrap=bootstrap,
            first=first,
            client=client,
            kademlia=self.kademlia,
            **extra,
        )
        node = Node(self, number, parameters, role)
        self.nodes.append(node)
        self.by_address[address] = node
        node.perform(node.peer.start(self.now, self.wall))
        return node

    def overlay(self, count: int) -> list[Node]:
        """`count` peers that have all joined."""
        self.add(first=True)
        for _ in range(count - 1):
            node = self.add()
            self.run(30, until=lambda node=node: node.peer.topology.ready)
            assert node.peer.topology.ready, f"node {node.number} did not join"
        self.run(3)
        return self.nodes

    def dial(self, node: Node, attempt: int, addresses: tuple[tuple[str, int], ...]) -> None:
        target = next((self.by_address[a] for a in addresses if a in self.by_address), None)

        def arrive() -> None:
            if target is None or not target.alive:
                self.at(self.now + self.delay, lambda: node.put(peer_io.LinkFailed(attempt, "connection refused")))
                return
            if self.cut(node, target) or target.frozen is not None:
                self.at(self.now + 5, lambda: node.put(peer_io.LinkFailed(attempt, "handshake timed out")))
                return
            mine, theirs = next(self.link_ids), next(self.link_ids)
            node.links[mine], target.links[theirs] = (target, theirs), (node, mine)
            node.put(peer_io.LinkUp(mine, target.certificate.der, addresses[0], attempt))
            if (node.number, target.number) in self.refuse_after_handshake:
                self.close(target, theirs, "refused")
                return
            self.at(
                self.now + self.delay,
                lambda: target.put(peer_io.LinkUp(theirs, node.certificate.der, node.address, None)),
            )

        self.at(self.now + 3 * self.delay, arrive)

    def sent(self, node: Node, link: int, data: bytes) -> None:
        self.frames += 1
        self.octets += len(data)
        if link not in node.links:
            return
        other, theirs = node.links[link]
        if self.cut(node, other):
            return
        delay = self.delay + self.extra_delay(node, other)
        self.at(self.now + delay, lambda: other.put(peer_io.LinkBytes(theirs, data)))

    def close(self, node: Node, link: int, reason: str) -> None:
        if link in node.links:
            other, theirs = node.links.pop(link)
            other.links.pop(theirs, None)
            self.at(self.now + self.delay, lambda: other.put(peer_io.LinkDown(theirs, reason)))

    def kill(self, node: Node) -> None:
        """SIGKILL: the kernel closes its links."""
        for link in list(node.links):
            self.close(node, link, "connection reset")
        node.alive = False

"""The virtual-time world: nodes that are protocol cores, and the network between them.

One heap of events, one clock. Nothing here reads the machine's clock or any randomness but the seeded one, so
that a world replays exactly. What a core asks of the network (`OpenLink`, `SendToLink`, `CloseLink`) happens
as on real machines:

- A link is a reliable stream with its own one-way delay. Writes that a core makes in one step leave as one; a
lost
  segment (`loss`) delays its write, and all after it, as TCP's retransmission would.
- Opening one costs three round trips (TCP, then TLS with certificates). Nobody there: refused after one. No
answer
  (silent or cut off): failed after `dial_timeout`.
- `kill` is SIGKILL: the node's links are reset. `freeze` is SIGSTOP: its links stay open and it does nothing,
what is
  sent to it waits in buffers; `thaw` lets it go on. `partition` cuts groups apart: what is sent across waits,
  and arrives after `heal` where the link still stands on the receiver's side.
- `refuse_after_handshake`: under TLS 1.3 the dialler believes its link up before the other side has judged
its
  certificate; such a dialler gets LinkUp and then LinkDown with no byte between.
- `jump_wall` steps the wall clock of one node or of all; monotonic time never jumps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, Protocol

from p2psipd.proto.reload.peer_io import (
    CloseLink,
    LinkBytes,
    LinkDown,
    LinkFailed,
    LinkUp,
    OpenLink,
    SendToLink,
)
from p2psipd.sim.latency import LatencyModel, Place

Address = tuple[str, int]

START: Final = 1000.0
"""Monotonic seconds at which a world begins."""
WALL_START: Final = 1_800_000_000.0
"""The wall clock at the same instant (15 January 2027)."""
HANDSHAKE_ROUND_TRIPS: Final = 3
LEAST_RETRANSMISSION: Final = 0.2
"""The floor of TCP's retransmission timeout, seconds."""


class Core(Protocol):
    """What a node runs: `proto.reload.peer.Peer`, or a stand-in with the same face."""

    def receive(self, item: Any, now: float, wall: float) -> list[Any]:
        """Take one input."""
        ...

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        ...

    def handle_timer(self, now: float, wall: float) -> list[Any]:
        """Do what is due."""
        ...


class LinkEnd:
    """One side of a link. `peer` is the other side, `arrives_at` when the last thing sent from here gets
    there."""

    __slots__ = ("arrives_at", "delay", "held", "id", "node", "open", "peer")

    def __init__(self, link: int, node: SimNode, delay: float) -> None:
        self.id = link
        self.node = node
        self.delay = delay
        self.peer: LinkEnd = self
        self.open = True
        self.arrives_at = 0.0
        self.held: list[bytes | str] = []


class SimNode:
    """One node of the world.

    `certificate` is what the other side of a link is shown; `on_output` gets all outputs that are not for the
    network. `messages` and `octets` count what it wrote. `group` is its side of a partition.
    """

    __slots__ = (
        "address",
        "alive",
        "armed",
        "certificate",
        "core",
        "dials",
        "frozen",
        "group",
        "links",
        "listening",
        "messages",
        "name",
        "octets",
        "on_output",
        "place",
        "refuses",
        "wall_offset",
        "world",
    )

    def __init__(self, world: World, name: int, address: Address, certificate: bytes, place: Place) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.certificate = certificate
        self.place = place
        self.core: Core | None = None
        self.alive = True
        self.listening = True
        self.frozen: deque[Any] | None = None
        self.group = 0
        self.refuses: Callable[[SimNode], bool] | None = None
        self.links: dict[int, LinkEnd] = {}
        self.dials = 0
        self.armed: float | None = None
        self.messages = 0
        self.octets = 0
        self.wall_offset = 0.0
        self.on_output: Callable[[SimNode, Any], None] = _drop

    def feed(self, item: Any) -> None:
        """Hand an input to the core now; a frozen node takes it when it is thawed, a dead one never."""
        if self.frozen is not None:
            self.frozen.append(item)
        elif self.alive and self.core is not None:
            world = self.world
            self.perform(self.core.receive(item, world.now, world.wall + self.wall_offset))

    def run(self, step: Callable[[float, float], list[Any]]) -> None:
        """Perform what a method of the core returns that takes `now` and `wall`, such as `Peer.start`."""
        self.perform(step(self.world.now, self.world.wall + self.wall_offset))

    def perform(self, outputs: list[Any]) -> None:
        """Carry out outputs in order; writes to one link leave together, as a reactor's turn writes them."""
        writes: dict[int, list[bytes]] | None = None
        world = self.world
        for output in outputs:
            kind = output.__class__
            if kind is SendToLink:
                if writes is None:
                    writes = {}
                pending = writes.get(output.link)
                if pending is None:
                    writes[output.link] = [output.data]
                else:
                    pending.append(output.data)
            elif kind is CloseLink:
                if writes is not None and output.link in writes:
                    self._write(output.link, writes.pop(output.link))
                world.close(self, output.link)
            elif kind is OpenLink:
                world.dial(self, output.attempt, output.addresses)
            else:
                self.on_output(self, output)
        if writes is not None:
            for link, parts in writes.items():
                self._write(link, parts)
        self.arm()

    def _write(self, link: int, parts: list[bytes]) -> None:
        end = self.links.get(link)
        if end is not None:
            self.messages += len(parts)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self.octets += len(data)
            self.world.send(end, data)

    def arm(self) -> None:
        """See that the core's next timer is on the heap."""
        if self.core is None or not self.alive:
            return
        at = self.core.next_timer()
        if at is not None and (self.armed is None or at < self.armed):
            self.armed = at
            self.world.at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        if self.armed != at or not self.alive:
            return
        if self.frozen is not None:
            self.armed = None
            return
        self.armed = None
        core = self.core
        if core is None:
            return
        world = self.world
        due = core.next_timer()
        if due is not None and due <= world.now:
            self.perform(core.handle_timer(world.now, world.wall + self.wall_offset))
        else:
            self.arm()


def _drop(node: SimNode, output: Any) -> None:
    """Nobody cares for a node's events."""


class World:
    """Clock, events, nodes and links.

    `loss` is the probability that one segment is lost; `dial_timeout` the seconds after which an unanswered
    dial fails.
    """

    def __init__(self, latency: LatencyModel, seed: int = 1, *, loss: float = 0.0, dial_timeout: float = 5.0) -> None:
        if not 0 <= loss < 1:
            raise ValueError("loss is a probability below 1")
        self.random = Random(seed)
        self.latency = latency
        self.loss = loss
        self.dial_timeout = dial_timeout
        self.now = START
        self.wall_offset = WALL_START - START
        self.events = 0
        self.nodes: list[SimNode] = []
        self.by_address: dict[Address, SimNode] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._link_count = 0
        self._orphans: list[LinkEnd] = []

    @property
    def wall(self) -> float:
        """Unix seconds, before a node's own offset."""
        return self.now + self.wall_offset

    # ---- time

    def at(self, at: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` at the instant `at`; events of one instant keep their order."""
        self._order += 1
        heappush(self._heap, (at, self._order, action, arguments))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most so many seconds, or until the condition holds; whether it does (True without
        one)."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            if until is not None and until():
                return True
            at, _, action, arguments = heappop(heap)
            if at > self.now:
                self.now = at
            self.events += 1
            action(*arguments)
        if until is not None and until():
            return True
        self.now = max(self.now, end)
        return until is None

    def jump_wall(self, seconds: float, node: SimNode | None = None) -> None:
        """Step the wall clock of one node, or of all; no timer notices."""
        if node is None:
            self.wall_offset += seconds
        else:
            node.wall_offset += seconds

    # ---- nodes

    def add(self, address: Address, certificate: bytes, place: Place | None = None) -> SimNode:
        """A new node; its core is set by the caller. An address that was a dead node's is taken over."""
        node = SimNode(self, len(self.nodes), address, certificate, place or self.latency.place(self.random))
        self.nodes.append(node)
        self.by_address[address] = node
        return node

    def kill(self, node: SimNode, reason: str = "connection reset") -> None:
        """The process is gone; its kernel resets its links."""
        if not node.alive:
            return
        node.alive = False
        node.frozen = None
        for end in list(node.links.values()):
            self._shut(end, reason)
        if self.by_address.get(node.address) is node:
            del self.by_address[node.address]
        node.core = None

    def freeze(self, node: SimNode) -> None:
        """The node stops silently: links stay open, nothing is processed."""
        if node.alive and node.frozen is None:
            node.frozen = deque()

    def thaw(self, node: SimNode) -> None:
        """The node goes on, with all that has been waiting for it."""
        waiting, node.frozen = node.frozen, None
        for item in waiting or ():
            node.feed(item)
        node.arm()

    def partition(self, groups: Iterable[Iterable[SimNode]]) -> None:
        """Cut the network: nodes of different groups, and those in none, reach only their own kind."""
        for node in self.nodes:
            node.group = 0
        for number, group in enumerate(groups, 1):
            for node in group:
                node.group = number

    def heal(self) -> None:
        """One network again; what waited is sent on."""
        for node in self.nodes:
            node.group = 0
        for node in self.nodes:
            for end in list(node.links.values()):
                self._release(end)
        for end in self._orphans:
            self._release(end)
        self._orphans.clear()

    # ---- links

    def dial(self, node: SimNode, attempt: int, addresses: tuple[Address, ...]) -> None:
        """Open a link from `node` to the first of `addresses` that answers."""
        if not addresses:
            self.at(self.now, node.feed, LinkFailed(attempt, "no address"))
            return
        self._knock(node, attempt, addresses, 0)

    def _knock(self, node: SimNode, attempt: int, addresses: tuple[Address, ...], index: int) -> None:
        """Try one address: TCP's first round trip."""
        target = self.by_address.get(addresses[index])
        if target is None or not target.listening:
            delay = self.latency.one_way(node.place, node.place if target is None else target.place)
            self._next_address(node, attempt, addresses, index, max(2 * delay, 0.001), "connection refused")
            return
        delay = self.latency.one_way(node.place, target.place)
        if target.frozen is not None or target.group != node.group:
            self._next_address(node, attempt, addresses, index, self.dial_timeout, "timed out")
            return
        trips = 2 * HANDSHAKE_ROUND_TRIPS
        self.at(self.now + (trips - 1) * delay, self._accept, node, target, attempt, addresses, index, delay)

    def _next_address(
        self, node: SimNode, attempt: int, addresses: tuple[Address, ...], index: int, after: float, reason: str
    ) -> None:
        if index + 1 < len(addresses):
            self.at(self.now + after, self._knock, node, attempt, addresses, index + 1)
        else:
            self.at(self.now + after, node.feed, LinkFailed(attempt, reason))

    def _accept(
        self,
        node: SimNode,
        target: SimNode,
        attempt: int,
        addresses: tuple[Address, ...],
        index: int,
        delay: float,
    ) -> None:
        """The handshake's last flight reaches the listener: half a round trip later the dialler has its
        link."""
        if not node.alive:
            return
        if not target.alive:
            self._next_address(node, attempt, addresses, index, delay, "connection reset")
            return
        if target.frozen is not None or node.frozen is not None or target.group != node.group:
            self._next_address(node, attempt, addresses, index, self.dial_timeout, "handshake timed out")
            return
        near, far = self.connect(node, target, delay)
        near.arrives_at = far.arrives_at = self.now + delay
        self.at(self.now + delay, self._dialled, near, attempt)
        if target.refuses is not None and target.refuses(node):
            self.at(self.now + delay, self._shut, far, "certificate refused")
            return
        target.feed(LinkUp(far.id, node.certificate, node.address, None))

    def _dialled(self, end: LinkEnd, attempt: int) -> None:
        node = end.node
        if end.open:
            node.feed(LinkUp(end.id, end.peer.node.certificate, end.peer.node.address, attempt))

    def connect(self, a: SimNode, b: SimNode, delay: float | None = None) -> tuple[LinkEnd, LinkEnd]:
        """A link that stands already, for worlds that begin converged; neither core is told. `a` is the
        dialler."""
        delay = self.latency.one_way(a.place, b.place) if delay is None else delay
        self._link_count += 2
        near, far = LinkEnd(self._link_count - 1, a, delay), LinkEnd(self._link_count, b, delay)
        near.peer, far.peer = far, near
        a.links[near.id] = near
        b.links[far.id] = far
        return near, far

    def send(self, end: LinkEnd, data: bytes | str) -> None:
        """Put octets on a link, or its end: the reason that the other side will give for it."""
        if end.held or end.node.group != end.peer.node.group:
            end.held.append(data)
            return
        arrives = self.now + end.delay
        if self.loss:
            timeout = max(LEAST_RETRANSMISSION, 2 * end.delay)
            while self.random.random() < self.loss:
                arrives += timeout
                timeout *= 2
        if arrives < end.arrives_at:
            arrives = end.arrives_at
        end.arrives_at = arrives
        self._order += 1
        heappush(self._heap, (arrives, self._order, self._arrive, (end.peer, data)))

    def _arrive(self, end: LinkEnd, data: bytes | str) -> None:
        if not end.open:
            return
        if isinstance(data, str):
            end.open = False
            end.node.links.pop(end.id, None)
            end.node.feed(LinkDown(end.id, data))
        else:
            end.node.feed(LinkBytes(end.id, data))

    def close(self, node: SimNode, link: int) -> None:
        """A core closes its end; the other side learns of it when the last octets have arrived."""
        end = node.links.get(link)
        if end is not None:
            self._shut(end, "closed by the far side")

    def _shut(self, end: LinkEnd, reason: str) -> None:
        if not end.open:
            return
        end.open = False
        end.node.links.pop(end.id, None)
        self.send(end, reason)
        if end.held:
            self._orphans.append(end)

    def _release(self, end: LinkEnd) -> None:
        """Send what a partition held up."""
        held, end.held = end.held, []
        for data in held:
            self.send(end, data)

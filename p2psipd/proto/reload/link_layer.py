"""The link layer of the peer core: time, outputs, timers, and the connections to other nodes.

Which of two links to keep, when a link counts as silent, and what becomes of messages that a failing link may
have lost (RFC 6940 sections 6.5 and 6.6).
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from p2psipd.proto.identity.certificate import CertificateError, TrustPolicy
from p2psipd.proto.identity.signing import Signer, Verifier
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import NodeId, overlay_hash
from p2psipd.proto.reload.link_table import Link, LinkTable
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_parameters import PeerParameters, Randomness
from p2psipd.proto.reload.sealing import Opener
from p2psipd.proto.reload.topology import Address, Topology
from p2psipd.proto.reload.wire import NodeDestination, ResourceDestination, decode_header

_CONFIRM_FOR = 5.0
_SURPLUS_FOR = 2.0
_WATCH_FOR = 0.1
# So late a timer, and this node itself was held up; so soon what came meanwhile has been read.
_HELD_UP = 0.05
_READ_IN = 0.02
_LATEST_HEDGE = 0.4


class Timer:
    """Something to do later; without an `action` (it was cancelled) nobody wakes up for it."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """It need not be done any more."""
        self.action = None


class LinkLayer(ABC):
    """A node's links.  The layers above it are `Messaging` and `Peer`."""

    topology: Topology

    def __init__(
        self,
        credential: Signer,
        configuration: OverlayConfiguration,
        trust: TrustPolicy,
        verifier: Verifier,
        random: Randomness,
        parameters: PeerParameters,
        now: float,
        wall: float,
    ) -> None:
        self.now = now
        self.wall = wall
        self.started_at = now
        self.credential = credential
        self.configuration = configuration
        self.parameters = parameters
        self.node_id = NodeId(credential.certificate.node_id)
        self.links = LinkTable(self.node_id)
        self.overlay_hash = overlay_hash(configuration.overlay_name)
        self.opener = Opener(trust, verifier, self.overlay_hash)
        self.counts: dict[str, int] = {}
        self._random = random
        self._out: list[peer_io.PeerOutput] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self._attempts: dict[int, tuple[NodeId | None, tuple[Address, ...]]] = {}
        self._attempt_count = 0
        self._busy: set[int] = set()
        self._watch_armed = False
        self._watch_due = now
        self._watch_again = False
        self._update_wanted: set[NodeId] = set()

    @abstractmethod
    def _message(self, previous: NodeId, data: bytes) -> None:
        """A whole frame's message came from `previous`."""

    @abstractmethod
    def _route_gained(self) -> None:
        """A link was put to use."""

    @abstractmethod
    def _greet(self, link: Link) -> None:
        """Say anything on `link`: its dialler waits for our first bytes."""

    # -- time and outputs ----------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """Monotonic seconds at which `handle_timer` wants to be called."""
        timers = self._timers
        while timers and timers[0][2].action is None:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def handle_timer(self, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Do what is due."""

        def due() -> None:
            while self._timers and self._timers[0][0] <= now:
                action = heapq.heappop(self._timers)[2].action
                if action is not None:
                    action()

        return self._run(due, now, wall)

    def _run(self, action: Callable[[], None], now: float, wall: float) -> list[peer_io.PeerOutput]:
        self.now, self.wall = now, wall
        out: list[peer_io.PeerOutput] = []
        self._out = out
        action()
        return out

    def emit(self, output: peer_io.PeerOutput) -> None:
        """Add an output."""
        self._out.append(output)

    def count(self, reason: str) -> None:
        """Count an event that is worth a number but no output."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def call_at(self, at: float, action: Callable[[], None]) -> Timer:
        """Run `action` at the monotonic instant `at`, unless the timer is cancelled."""
        self._timer_count += 1
        timer = Timer(action)
        heapq.heappush(self._timers, (at, self._timer_count, timer))
        return timer

    def random_bits(self, bits: int) -> int:
        """A random integer below 2**bits."""
        return self._random.getrandbits(bits)

    def misbehaved(self, node: NodeId | None, reason: str, detail: str) -> None:
        """Count and report a fault of another node."""
        self.count(f"misbehaved-{reason}")
        link = None if node is None else self.links.to(node)
        self.emit(peer_io.Misbehaved(None if link is None else link.id, node, reason, detail))

    # -- links ---------------------------------------------------------------------------------------------

    def _link_up(self, item: peer_io.LinkUp) -> None:
        expected = None
        addresses: tuple[Address, ...] = ()
        if item.attempt is not None:
            expected, addresses = self._attempts.pop(item.attempt, (None, ()))
        try:
            certificate = self.opener.trust.check(item.certificate, self.wall)
        except CertificateError as error:
            self._refuse_link(item, expected, addresses, "certificate", str(error))
            return
        node = NodeId(certificate.node_id)
        if expected is not None and node != expected:
            self._refuse_link(item, expected, addresses, "node-id", f"{node.hex()} answered for {expected.hex()}")
            return
        if not self.configuration.clients_permitted and not certificate.role.routes:
            self._refuse_link(item, expected, addresses, "client", f"{certificate.user}: clients are not permitted")
            return
        if node == self.node_id:
            self._refuse_link(item, expected, addresses, "self", "a link to ourselves")
            return
        limit = self.configuration.max_message_size + 4096
        link = Link(item.link, certificate, item.address, item.attempt is not None, self.now, limit)
        self.links.add(link)
        if link.confirmed:
            self._confirm(link)
        else:
            self.call_at(self.now + _CONFIRM_FOR, lambda: self._unconfirmed(link))

    def _refuse_link(
        self, item: peer_io.LinkUp, expected: NodeId | None, addresses: tuple[Address, ...], reason: str, detail: str
    ) -> None:
        self.emit(peer_io.CloseLink(item.link, reason))
        self.emit(peer_io.Misbehaved(item.link, expected, reason, f"{item.address[0]}:{item.address[1]}: {detail}"))
        self.count(f"link-{reason}")
        if item.attempt is not None:
            self.topology.dial_failed(expected, addresses, detail)

    def _unconfirmed(self, link: Link) -> None:
        if not link.confirmed and self.links.get(link.id) is link:
            self.emit(peer_io.CloseLink(link.id, "silent after the handshake"))
            self._link_gone(link, "silent after the handshake")

    def _confirm(self, link: Link) -> None:
        known = self.links.to(link.node) is not None
        surplus = self.links.confirm(link)
        if surplus is not None:
            self.call_at(self.now + _SURPLUS_FOR, lambda: self._close_surplus(surplus))
        if not known or link.dialled:
            self.topology.link_up(link.node, link.certificate, link.address, link.dialled)
        else:
            self._greet(link)
        self._route_gained()
        if link.node in self._update_wanted:
            self._update_wanted.discard(link.node)
            self.topology.send_update(link.node)

    def _close_surplus(self, link: Link) -> None:
        if self.links.get(link.id) is link and self.links.to(link.node) is not link:
            self.links.remove(link)
            self.emit(peer_io.CloseLink(link.id, "two links to one node"))

    def _link_down(self, item: peer_io.LinkDown) -> None:
        link = self.links.get(item.link)
        if link is not None:
            self._link_gone(link, item.reason)

    def _link_gone(self, link: Link, reason: str) -> None:
        self._busy.discard(link.id)
        in_use = self.links.remove(link)
        if in_use:
            self._reroute(link)
            self.topology.link_down(link.node, reason)
        elif not link.confirmed:
            # The other side judged our certificate only after we thought the handshake done.
            self.topology.dial_failed(link.node, (link.address,), f"refused after the handshake: {reason}")

    def _link_failed(self, item: peer_io.LinkFailed) -> None:
        node, addresses = self._attempts.pop(item.attempt, (None, ()))
        self.topology.dial_failed(node, addresses, item.reason)

    def dial(self, addresses: Sequence[Address], node: NodeId | None) -> None:
        """Open a link."""
        self._attempt_count += 1
        self._attempts[self._attempt_count] = (node, tuple(addresses))
        self.emit(peer_io.OpenLink(self._attempt_count, tuple(addresses), node))

    def is_dialling(self, node: NodeId) -> bool:
        """Whether a link to `node` is being opened."""
        return any(wanted == node for wanted, _ in self._attempts.values())

    def drop_link(self, node: NodeId, reason: str) -> None:
        """Close the link to `node`."""
        link = self.links.to(node)
        if link is not None:
            self.links.remove(link)
            self._busy.discard(link.id)
            self.emit(peer_io.CloseLink(link.id, reason))

    def linked(self) -> Iterable[NodeId]:
        """Nodes with a usable link."""
        return self.links.nodes()

    def is_linked(self, node: NodeId) -> bool:
        """Whether a usable link to `node` is open."""
        link = self.links.to(node)
        return link is not None and not link.suspect

    def quickest(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """Those of `nodes` that a usable link leads to, the quickest first."""
        return self.links.quickest(nodes)

    def rtt(self, node: NodeId) -> float | None:
        """Smoothed round-trip time, seconds."""
        link = self.links.to(node)
        return None if link is None else link.framed.srtt

    def hedge_after(self, node: NodeId) -> float:
        """Seconds after which an answer from `node` is late: srtt + 4 rttvar, at least 100 ms, at most 400 ms
        (one slow handshake on a busy machine makes the first estimate of a link seconds long)."""
        link = self.links.to(node)
        return _LATEST_HEDGE if link is None else min(link.framed.rto, _LATEST_HEDGE)

    def idle_for(self, node: NodeId) -> float:
        """Seconds since the last bytes from `node`."""
        link = self.links.to(node)
        return float("inf") if link is None else self.now - link.received_at

    def _link_bytes(self, item: peer_io.LinkBytes) -> None:
        link_id, data = item
        link = self.links.get(link_id)
        if link is None:
            return
        framed = link.framed
        try:
            messages, acks = framed.receive(data, self.now)
        except ReloadError as error:
            self.emit(peer_io.CloseLink(link.id, "malformed frame"))
            self.misbehaved(link.node, "framing", str(error))
            self._link_gone(link, "malformed frame")
            return
        link.received_at = self.now
        if not framed.unacked:
            self._busy.discard(link_id)
            link.all_acknowledged()
            if link.suspect:
                link.suspect = False
                if link.confirmed:
                    self._route_gained()
        if acks:
            self._out.append(peer_io.SendToLink(link_id, acks))
        if not link.confirmed:
            self._confirm(link)
        for message in messages:
            self._message(link.node, message)

    def _write(self, link: Link, message: bytes) -> None:
        self._out.append(peer_io.SendToLink(link.id, link.frame(message, self.now)))
        self._busy.add(link.id)
        if not self._watch_armed:
            self._watch_in(max(_WATCH_FOR, link.framed.rto))

    def _watch_in(self, seconds: float) -> None:
        self._watch_armed = True
        self._watch_due = self.now + seconds
        self.call_at(self._watch_due, self._watch)

    def _watch(self) -> None:
        """Suspect links that do not acknowledge in time, give up those that stay silent.

        If it was this node that was held up, acknowledgements may have come and not been read: it looks again.
        """
        self._watch_armed = False
        self._watch_again = not self._watch_again and self.now - self._watch_due > _HELD_UP
        if self._watch_again:
            self._watch_in(_READ_IN)
            return
        for link_id in list(self._busy):
            link = self.links.get(link_id)
            oldest = None if link is None else link.framed.oldest_unacked_at
            if link is None or oldest is None:
                self._busy.discard(link_id)
                continue
            waited = self.now - oldest
            if waited > max(self.parameters.dead_after, 4 * link.framed.rto):
                self.emit(peer_io.CloseLink(link.id, "no acknowledgement"))
                self._link_gone(link, f"no acknowledgement for {waited:.1f} s")
            elif waited > link.framed.rto and not link.suspect:
                link.suspect = True
                self.count("link-suspect")
                self._reroute(link)
        if self._busy and not self._watch_armed:
            self._watch_in(_WATCH_FOR)

    def _reroute(self, link: Link) -> None:
        """Send what this link may have lost another way round, unless it was for that very node."""
        for message in link.unacknowledged():
            header, _ = decode_header(message)
            first = header.destinations[0]
            hop: NodeId | None = None
            if isinstance(first, NodeDestination) and first.node != link.node:
                other = self.links.to(first.node)
                usable = other is not None and not other.suspect
                hop = first.node if usable else self.topology.next_hop(first.node, link.node)
            elif isinstance(first, ResourceDestination):
                hop = self.topology.next_hop(first.resource, link.node)
            other = None if hop is None else self.links.to(hop)
            if other is not None and other is not link:
                self.count("rerouted")
                self._write(other, message)

    def want_update(self, node: NodeId) -> None:
        """`node` asked (send_update in Attach) for an Update as soon as the link is up."""
        self._update_wanted.add(node)

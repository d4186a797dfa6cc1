"""One Fetch of the local user, over as many requests as it takes.

It goes to the quickest linked holder first and is hedged: when that answer is late by its link's own measure,
the next holder is asked as well, each with a request of its own.  Nothing found at a replica is no answer; the
responsible peer and one more are asked before a record is declared absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import Forbidden, NotFound, ReloadError, RequestTimeout
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.messages import FetchAns, FetchReq
from p2psipd.proto.reload.topology import Answer
from p2psipd.proto.reload.values import VerifiedAnswer
from p2psipd.proto.reload.wire import Destination, NodeDestination, ResourceDestination

if TYPE_CHECKING:
    from p2psipd.proto.reload.link_layer import Timer
    from p2psipd.proto.reload.peer import Peer
    from p2psipd.proto.reload.user_requests import UserRequests

#: Seconds after which a Fetch without an answer has failed.
FETCH_FOR = 10.0
# A holder whose round trip is longer than this is no quick one: in a wide area others know a quicker.
_SLOW = 0.1
_RELAYS_BESIDE_A_HOLDER = 3
_RELAYS_ALONE = 6
# Seconds in which the responsible peer should have answered, wherever it is, and after which to look for others.
_RESPONSIBLE_LATE = 1.0
_LOOK_AGAIN = 0.2
_DOUBTED_AT_ONCE = 3


class FetchJob:
    """One Fetch of the local user, over several requests if need be."""

    __slots__ = (
        "_asked",
        "_asked_responsible",
        "_body",
        "_empty",
        "_empty_from_others",
        "_empty_from_responsible",
        "_error",
        "_hedge_timer",
        "_item",
        "_open",
        "_peer",
        "_readers",
        "_silent",
        "_started_at",
        "_user",
    )

    def __init__(self, peer: Peer, user: UserRequests, item: peer_io.Fetch) -> None:
        self._peer = peer
        self._user = user
        self._item = item
        self._body = FetchReq(item.resource, user.complete_specifiers(item.specifiers))
        self._started_at = peer.now
        self._readers = [] if item.fresh else list(peer.topology.readers(item.resource))
        self._asked: set[NodeId] = set()
        self._silent: set[NodeId] = set()
        self._open = 0
        self._asked_responsible = False
        self._empty_from_responsible: Answer | None = None
        self._empty_from_others = 0
        self._empty: list[VerifiedAnswer] = []
        self._error: ReloadError | None = None
        self._hedge_timer: Timer | None = None

    def start(self) -> None:
        if (self._readers or self._peer.topology.responsible(self._item.resource)) and self._found_here():
            return
        self._user.give_up_later(self)
        self._ask_first()

    def _found_here(self) -> bool:
        """Answer with our own copy, if there is one and it will do."""
        peer, item = self._peer, self._item
        if item.fresh or item.resource not in peer.storage:
            return False
        answer, certificates = peer.storage.fetch(self._body, peer.wall)
        found = {c.hash: c.der for c in map(peer.check_certificate, certificates) if c is not None}
        verified = self._user.verify(item.resource, answer, found)
        if verified.values:
            self._done(verified, Answer(answer, None, peer.node_id, found, 0.0, 0))
        return bool(verified.values)

    def _ask_first(self) -> None:
        """The quickest linked holder; where that is none or a slow one, a few relays near the holders as well, each of
        whom asks the holder that is quickest from there.

        How far a relay is from its holders nobody has told us, so the quickest of several answers is taken: in a wide
        area (median round trip 139 ms) that halves the reads that take longer than 200 ms.
        """
        peer = self._peer
        slow = not self._readers or (peer.rtt(self._readers[0]) or 0.0) > _SLOW
        relays = peer.topology.relays(self._item.resource) if slow and not self._item.fresh else ()
        relays = relays[: _RELAYS_BESIDE_A_HOLDER if self._readers else _RELAYS_ALONE]
        for relay in relays:
            self._asked_responsible = True
            self._send(ResourceDestination(self._item.resource), responsible=True, via=relay)
        if self._readers or not relays:
            self._ask_next()
        else:
            # There and on to a holder: each of the two hops may be as late as the first.
            late = 2 * min(map(peer.hedge_after, relays))
            self._hedge_timer = peer.call_at(peer.now + late, self._hedge)

    @property
    def ref(self) -> int:
        """The user's number of this Fetch."""
        return self._item.ref

    def overdue(self) -> None:
        """It has taken too long."""
        self._user.fail(self._item.ref, self._error or RequestTimeout(f"no answer in {FETCH_FOR} s"))

    def _ask_next(self) -> None:
        """Ask as many holders again as were asked before; where none is left, the responsible peer and the holders
        whose links are in doubt; hedge if that is slow.

        Where seven of eight holders have fallen silent at once the eighth is asked after three hedges, not seven.
        """
        peer = self._peer
        late = _RESPONSIBLE_LATE
        nodes = self._next_readers()
        if not nodes:
            nodes = self._last_resort() if self._asked or self._asked_responsible else self._in_doubt()
            self._ask_responsible()
        for node in nodes:
            self._ask(node)
        if self._asked and not self._item.fresh:
            late = min(map(peer.hedge_after, nodes), default=_LOOK_AGAIN)
            if len(self._asked) > 1:
                # Not one slow answer but trouble: other holders may be known soon, or links be trusted again.
                late = min(late, _LOOK_AGAIN)
        self._hedge_timer = peer.call_at(peer.now + late, self._hedge)

    def _next_readers(self) -> list[NodeId]:
        """The holders to ask now, the quickest first; since the first were chosen a link may have come into doubt."""
        linked = self._peer.quickest(self._readers) if self._asked else self._readers
        count = max(1, len(self._asked))
        self._readers = linked[count:]
        return linked[:count]

    def _ask(self, node: NodeId) -> None:
        self._asked.add(node)
        self._silent.add(node)
        # Where the responsible peer has died in the meantime, its word is that of the next in line.
        responsible = self._item.fresh and node == self._peer.topology.nearest(self._item.resource)
        self._send(NodeDestination(node), responsible=responsible, node=node)

    def _in_doubt(self) -> list[NodeId]:
        """Some holders whose links have left something unacknowledged: asked at once where there are no others.  Not
        all: it may be our own line that is choked."""
        peer = self._peer
        if self._item.fresh or not peer.topology.complete:
            return []
        nodes = peer.topology.replica_nodes(self._item.resource)
        return [n for n in nodes if (link := peer.links.to(n)) is not None and link.suspect][:_DOUBTED_AT_ONCE]

    def _last_resort(self) -> list[NodeId]:
        """Holders whose links are in doubt. Who wants it fresh gets it, where the responsible peer is silent for a
        second, from the next in line, who may be it by now."""
        peer = self._peer
        nodes = [n for n in peer.topology.replica_nodes(self._item.resource) if n not in self._asked]
        if self._item.fresh:
            return [n for n in nodes if peer.is_linked(n)][:1]
        return [n for n in nodes if peer.links.to(n) is not None]

    def _ask_responsible(self) -> None:
        if not self._asked_responsible:
            self._asked_responsible = True
            nearest = self._peer.topology.nearest(self._item.resource) if self._item.fresh else None
            # Under way to a Resource-ID any holder may answer; who wants it fresh names the responsible peer.
            target = ResourceDestination(self._item.resource) if nearest is None else NodeDestination(nearest)
            if nearest is not None:
                self._asked.add(nearest)
            self._send(target, responsible=True)

    def _hedge(self) -> None:
        if not self._user.waiting(self._item.ref) or self._found_here():
            # Nobody else was there to ask at first, and none has answered: of eight holders we are the one left.
            return
        if self._open and not self._nothing_there():
            before = self._open
            self._ask_next()
            if self._open > before:
                self._peer.count("hedged")

    def _send(
        self, target: Destination, responsible: bool, via: NodeId | None = None, node: NodeId | None = None
    ) -> None:
        self._open += 1

        def answered(answer: Answer) -> None:
            if node is not None:
                self._silent.discard(node)
            self._answered(answer, responsible)

        self._peer.request(target, self._body, answered, via=via)

    def _answered(self, answer: Answer, responsible: bool) -> None:
        self._open -= 1
        if not self._user.waiting(self._item.ref):
            return
        if isinstance(answer.body, FetchAns):
            verified = self._user.verify(self._item.resource, answer.body, answer.certificates)
            for rejected in verified.rejected:
                self._peer.misbehaved(answer.node, "value", str(rejected.error))
            if verified.values or (self._unchanged(answer.body) and not verified.rejected):
                self._done(verified, answer)
                return
            self._empty.append(verified)
        elif isinstance(answer.error, NotFound):
            self._empty.append(VerifiedAnswer((), (), {}))
        else:
            self._error = answer.error or Forbidden("not a FetchAns")
            self._go_on()
            return
        if responsible:
            self._empty_from_responsible = answer
        else:
            self._empty_from_others += 1
        self._go_on()

    def _unchanged(self, answer: FetchAns) -> bool:
        """A conditional Fetch (section 7.4.2.1) found the generation that the reader has already."""
        asked = {s.kind: s.generation for s in self._item.specifiers if s.generation}
        return bool(asked) and any(asked.get(kind.kind) == kind.generation for kind in answer.kinds)

    def _nothing_there(self) -> bool:
        """Conclude that there is nothing: the responsible peer and one more say so, and nobody is in doubt.

        When many have just fallen silent, those who say so may be heirs who were not given their copies yet, while the
        one holder left is only slow.
        """
        empty = self._empty_from_responsible
        if empty is None or not (self._empty_from_others or not (self._readers or self._open)):
            return False
        links = self._peer.links
        for node in self._peer.topology.replica_nodes(self._item.resource):
            link = links.to(node)
            if link is not None and link.suspect and node not in self._asked:
                self._ask(node)
        if any(links.to(node) is not None for node in self._silent):
            return False
        self._done(VerifiedAnswer((), (), self._empty[-1].generations), empty)
        return True

    def _go_on(self) -> None:
        if self._nothing_there():
            return
        if not self._asked_responsible:
            self._ask_responsible()
        if self._readers and not self._empty_from_others:
            self._ask(self._readers.pop(0))
        elif not self._open:
            nodes = self._last_resort()
            if nodes:
                for node in nodes:
                    self._ask(node)
            elif self._empty and self._error is None:
                self._user.fail(self._item.ref, RequestTimeout("only replicas answered, and they hold nothing"))
            else:
                self._user.fail(self._item.ref, self._error or RequestTimeout("no holder answered"))

    def _done(self, verified: VerifiedAnswer, answer: Answer) -> None:
        assert answer.node is not None
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
        seconds = self._peer.now - self._started_at
        self._user.complete(
            self._item.ref,
            peer_io.FetchOutcome(verified.values, verified.generations, answer.node, answer.hops, seconds),
        )

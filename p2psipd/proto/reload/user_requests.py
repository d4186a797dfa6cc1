"""What the local user of a node asks the overlay for: store, fetch, ping, trace, AppAttach.

A Fetch goes to the quickest linked holder first and is hedged: when that answer is late by its link's own
measure, the next holder is asked as well, each with a request of its own.  Nothing found at a replica is no
answer; the responsible peer and one more are asked before a record is declared absent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import (
    Forbidden,
    InvalidMessage,
    NotFound,
    ReloadError,
    RequestTimeout,
    UnknownKind,
)
from p2psipd.proto.reload.ids import NodeId, ResourceId, distance, resource_id
from p2psipd.proto.reload.messages import (
    APPEND,
    AppAttachAns,
    AppAttachReq,
    ArrayEntry,
    Body,
    DataModel,
    DataValue,
    DictionaryEntry,
    FetchAns,
    FetchReq,
    FindReq,
    PingAns,
    PingReq,
    ProbeReq,
    RouteQueryAns,
    RouteQueryReq,
    StatReq,
    StoreAns,
    StoredDataSpecifier,
    StoredDataValue,
    StoreKindData,
    StoreReq,
)
from p2psipd.proto.reload.sealing import Sealer
from p2psipd.proto.reload.topology import Answer
from p2psipd.proto.reload.values import FreshnessGuard, VerifiedAnswer, sign_value, verify_fetched
from p2psipd.proto.reload.wire import Destination, NodeDestination, ResourceDestination

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.reload.link_layer import Timer
    from p2psipd.proto.reload.peer import Peer

_TRACE_HOPS = 20
_FETCH_FOR = 10.0
_STORE_TRIES = 3
_REPLICATING_FOR = 2.0
# A holder whose round trip is longer than this is no quick one: in a wide area others know a quicker.
_SLOW = 0.1
_RELAYS_BESIDE_A_HOLDER = 3
_RELAYS_ALONE = 6
# Seconds in which the responsible peer should have answered, wherever it is, and after which to look for others.
_RESPONSIBLE_LATE = 1.0
_LOOK_AGAIN = 0.2
_DOUBTED_AT_ONCE = 3
# A trace waits so long for a link that leads towards its resource.
_ROUTE_FOR = 3.0


class UserRequests:
    """The asking half of the peer core."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._jobs: dict[int, object] = {}
        self._last_storage_time = 0
        self._stored_at: dict[ResourceId, float] = {}
        self._fetching: deque[tuple[float, _FetchJob]] = deque()
        self._fetching_armed = False
        self.guard = FreshnessGuard()
        self.handlers: dict[type, Callable[..., None]] = {
            peer_io.Store: self._store,
            peer_io.Fetch: self._fetch,
            peer_io.Stat: self._stat,
            peer_io.Find: self._find,
            peer_io.Ping: self._ping,
            peer_io.Probe: self._probe,
            peer_io.Trace: self._trace,
            peer_io.AppAttach: self._app_attach,
            peer_io.Abandon: self._abandon,
        }

    def _abandon(self, item: peer_io.Abandon) -> None:
        self._jobs.pop(item.ref, None)

    def _begin(self, ref: int, job: object = True) -> None:
        self._jobs[ref] = job

    def waiting(self, ref: int) -> bool:
        """Whether the user still wants the outcome."""
        return ref in self._jobs

    def complete(self, ref: int, result: object) -> None:
        """The outcome of `ref`, unless it was abandoned or is known already."""
        if self._jobs.pop(ref, None) is not None:
            self._peer.emit(peer_io.Completed(ref, result))

    def fail(self, ref: int, error: ReloadError) -> None:
        """The failure of `ref`, likewise."""
        if self._jobs.pop(ref, None) is not None:
            self._peer.emit(peer_io.Failed(ref, error))

    # -- single requests -----------------------------------------------------------------------------------

    def _simple(self, ref: int, target: Destination, body: Body, outcome: Callable[[Answer], object]) -> None:
        self._begin(ref)

        def answered(answer: Answer) -> None:
            if answer.error is not None:
                self.fail(ref, answer.error)
            else:
                self.complete(ref, outcome(answer))

        self._peer.request(target, body, answered)

    def _ping(self, item: peer_io.Ping) -> None:
        def pong(answer: Answer) -> object:
            assert isinstance(answer.body, PingAns) and answer.node is not None
            return peer_io.Pong(answer.node, answer.hops, answer.seconds, answer.body.time)

        self._simple(item.ref, _target(item.node, item.resource), PingReq(b""), pong)

    def _probe(self, item: peer_io.Probe) -> None:
        self._simple(item.ref, NodeDestination(item.node), ProbeReq((1, 2, 3)), _answered)

    def complete_specifiers(self, specifiers: tuple[StoredDataSpecifier, ...]) -> tuple[StoredDataSpecifier, ...]:
        """Where a caller names neither ranges nor keys, all of an array or dictionary is meant."""
        kinds = self._peer.configuration.kinds
        whole = []
        for one in specifiers:
            kind, generation, ranges, keys = one
            model = kinds[kind].data_model if kind in kinds else None
            if model is DataModel.ARRAY and ranges is None:
                one = StoredDataSpecifier(kind, generation, ((0, 0xFFFFFFFF),), keys)
            elif model is DataModel.DICTIONARY and keys is None:
                one = StoredDataSpecifier(kind, generation, ranges, ())
            whole.append(one)
        return tuple(whole)

    def _stat(self, item: peer_io.Stat) -> None:
        self._simple(
            item.ref,
            ResourceDestination(item.resource),
            StatReq(item.resource, self.complete_specifiers(item.specifiers)),
            _answered,
        )

    def _find(self, item: peer_io.Find) -> None:
        self._simple(item.ref, ResourceDestination(item.resource), FindReq(item.resource, item.kinds), _answered)

    def _app_attach(self, item: peer_io.AppAttach) -> None:
        peer = self._peer
        own = peer.parameters.applications.get(item.application, ())
        body = AppAttachReq(b"", b"", item.application, b"actpass", peer.candidates(own))

        def accepted(answer: Answer) -> object:
            assert isinstance(answer.body, AppAttachAns) and answer.node is not None
            addresses = tuple((c.host, c.port) for c in answer.body.candidates)
            return peer_io.ApplicationAccepted(answer.node, item.application, addresses, answer.body.role)

        self._simple(item.ref, NodeDestination(item.node), body, accepted)

    # -- store ---------------------------------------------------------------------------------------------

    def storage_time(self) -> int:
        """Milliseconds since 1970, higher than any that we gave before."""
        self._last_storage_time = max(int(self._peer.wall * 1000), self._last_storage_time + 1)
        return self._last_storage_time

    def _store(self, item: peer_io.Store, tries: int = 0) -> None:
        peer = self._peer
        kind = peer.configuration.kinds.get(item.kind)
        self._begin(item.ref)
        if kind is None:
            self.fail(item.ref, InvalidMessage(f"kind {item.kind:#x} is not in the configuration document"))
            return
        resource = item.name if isinstance(item.name, bytes) and len(item.name) == 16 else resource_id(item.name)
        resource = ResourceId(resource)
        if len(self._stored_at) > 10_000:
            self._stored_at.clear()
        self._stored_at[resource] = peer.now
        credential = item.credential or peer.credential
        values = tuple(
            sign_value(
                resource,
                item.kind,
                _stored_value(kind.data_model, value),
                self.storage_time(),
                value.lifetime,
                credential.certificate,
                credential.sign,
                known=peer.storage.known,
            )
            for value in item.values
        )
        body = StoreReq(resource, 0, (StoreKindData(item.kind, 0, values),))
        sealer = None if item.credential is None else Sealer(credential, peer.overlay_hash)

        def answered(answer: Answer) -> None:
            if isinstance(answer.body, StoreAns) and answer.node is not None:
                one = answer.body.kinds[0] if answer.body.kinds else None
                if one is not None and item.credential is None and peer.node_id in one.replicas:
                    self._keep_copy(body, one.generation, credential.certificate)
                self.complete(
                    item.ref,
                    peer_io.StoreOutcome(
                        answer.node, one.replicas if one else (), one.generation if one else 0, answer.seconds
                    ),
                )
            elif answer.error is not None and _may_pass(answer.error) and tries < _STORE_TRIES:
                # The peer that answered lost its responsibility while the request travelled.
                peer.call_at(peer.now + 0.2 * (tries + 1), lambda: self._retry_store(item, tries + 1))
            else:
                self.fail(item.ref, answer.error or InvalidMessage("not a StoreAns"))

        peer.request(
            ResourceDestination(resource), body, answered, certificates=(credential.certificate.der,), sealer=sealer
        )

    def _keep_copy(self, stored: StoreReq, generation: int, signer: NodeCertificate) -> None:
        """Hold what we have stored, as one of its replicas: nobody sends it back (section 2 of the plug-in), but for
        arrays, because where an entry was appended is known to the responsible peer alone.
        """
        peer = self._peer
        if not any(peer.configuration.kinds[kind.kind].data_model is DataModel.ARRAY for kind in stored.kinds):
            kinds = tuple(kind._replace(generation=generation) for kind in stored.kinds)
            copy = StoreReq(stored.resource, 1, kinds)
            peer.write(peer.storage.store_replica(copy, {signer.hash: signer.der}, peer.wall).changes)

    def _retry_store(self, item: peer_io.Store, tries: int) -> None:
        if self.waiting(item.ref):
            self._store(item, tries)

    # -- fetch ---------------------------------------------------------------------------------------------

    def _fetch(self, item: peer_io.Fetch) -> None:
        self._begin(item.ref)
        unknown = [s.kind for s in item.specifiers if s.kind not in self._peer.configuration.kinds]
        if unknown:
            self.fail(item.ref, UnknownKind(f"kind {unknown[0]:#x} is not in the configuration document"))
            return
        if self._peer.now - self._stored_at.get(item.resource, float("-inf")) < _REPLICATING_FOR:
            # Copies may still be under way to the holder that we would ask: who wrote reads at the source.
            item = item._replace(fresh=True)
        _FetchJob(self._peer, self, item).start()

    def give_up_later(self, job: _FetchJob) -> None:
        """Let `job` fail if it is not done in time.  All may take equally long, so they wait in a queue."""
        fetching, jobs = self._fetching, self._jobs
        while fetching and fetching[0][1].ref not in jobs:
            fetching.popleft()
        fetching.append((self._peer.now + _FETCH_FOR, job))
        if not self._fetching_armed:
            self._fetching_armed = True
            self._peer.call_at(fetching[0][0], self._give_up)

    def _give_up(self) -> None:
        fetching = self._fetching
        while fetching and (fetching[0][0] <= self._peer.now or not self.waiting(fetching[0][1].ref)):
            _, job = fetching.popleft()
            if self.waiting(job.ref):
                job.overdue()
        self._fetching_armed = bool(fetching)
        if fetching:
            self._peer.call_at(fetching[0][0], self._give_up)

    # -- trace ---------------------------------------------------------------------------------------------

    def _trace(self, item: peer_io.Trace) -> None:
        """Ask hop after hop where it would send a message for the resource (RouteQuery, section 6.4.2.4)."""
        self._begin(item.ref)
        self._trace_from_here(item, self._peer.now + _ROUTE_FOR)

    def _trace_from_here(self, item: peer_io.Trace, until: float) -> None:
        """Take the first step; like any request it may wait for a link that has just gone to be opened again."""
        peer = self._peer
        if not self.waiting(item.ref):
            return
        if peer.topology.responsible(item.resource):
            self.complete(item.ref, (_hop(peer.node_id, item.resource, 0.0, True),))
            return
        first = peer.topology.next_hop(item.resource)
        if first is not None:
            self._trace_on(item, [], first)
        elif peer.now < until:
            peer.call_at(peer.now + 0.1, lambda: self._trace_from_here(item, until))
        else:
            self.fail(item.ref, NotFound("no link leads towards the resource"))

    def _trace_on(self, item: peer_io.Trace, hops: list[peer_io.TraceHop], node: NodeId) -> None:
        through = tuple(NodeDestination(hop.node) for hop in hops if hop.node != self._peer.node_id)
        query = RouteQueryReq(False, ResourceDestination(item.resource), b"")

        def answered(answer: Answer) -> None:
            if not isinstance(answer.body, RouteQueryAns) or len(answer.body.data) != 17:
                self.fail(item.ref, answer.error or InvalidMessage(f"{node.hex()} gave no next hop"))
                return
            ends, following = answer.body.data[0] == 1, NodeId(answer.body.data[1:])
            hops.append(_hop(node, item.resource, answer.seconds, ends))
            if ends:
                self.complete(item.ref, tuple(hops))
            elif len(hops) >= _TRACE_HOPS or following in [hop.node for hop in hops]:
                self.fail(item.ref, InvalidMessage(f"the path loops at {following.hex()}"))
            else:
                self._trace_on(item, hops, following)

        self._peer.request(NodeDestination(node), query, answered, through=through)


class _FetchJob:
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
        verified = self._verify(answer, found)
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
        self._user.fail(self._item.ref, self._error or RequestTimeout(f"no answer in {_FETCH_FOR} s"))

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
            verified = self._verify(answer.body, answer.certificates)
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

    def _verify(self, answer: FetchAns, certificates: Mapping[bytes, bytes]) -> VerifiedAnswer:
        peer = self._peer
        return verify_fetched(
            self._item.resource,
            answer,
            certificates,
            peer.configuration,
            peer.opener.trust,
            peer.opener.verifier,
            peer.wall,
            self._user.guard,
            peer.storage.known,
        )

    def _done(self, verified: VerifiedAnswer, answer: Answer) -> None:
        assert answer.node is not None
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
        seconds = self._peer.now - self._started_at
        self._user.complete(
            self._item.ref,
            peer_io.FetchOutcome(verified.values, verified.generations, answer.node, answer.hops, seconds),
        )


def _target(node: NodeId | None, resource: ResourceId | None) -> Destination:
    if node is not None:
        return NodeDestination(node)
    if resource is not None:
        return ResourceDestination(resource)
    raise InvalidMessage("a Ping needs a node or a resource")


def _answered(answer: Answer) -> object:
    assert answer.node is not None
    return peer_io.Answered(answer.body, answer.node, answer.hops, answer.seconds)


def _hop(node: NodeId, resource: ResourceId, seconds: float, ends: bool) -> peer_io.TraceHop:
    return peer_io.TraceHop(node, distance(node, resource).bit_length(), seconds, ends)


def _may_pass(error: ReloadError) -> bool:
    return isinstance(error, (RequestTimeout,)) or (isinstance(error, Forbidden) and "responsible" in error.detail)


def _stored_value(model: DataModel, value: peer_io.StoreValue) -> StoredDataValue:
    data = DataValue(value.value is not None, value.value or b"")
    match model:
        case DataModel.DICTIONARY:
            return DictionaryEntry(value.key or b"", data)
        case DataModel.ARRAY:
            return ArrayEntry(APPEND if value.position is None else value.position, data)
        case DataModel.SINGLE:
            return data

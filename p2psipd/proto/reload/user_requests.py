"""What the local user of a node asks the overlay for: store, fetch, ping, trace, AppAttach."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import (
    DataTooOld,
    Forbidden,
    InvalidMessage,
    NotFound,
    ReloadError,
    RequestTimeout,
    UnknownKind,
)
from p2psipd.proto.reload.fetch_job import FETCH_FOR, FetchJob
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
from p2psipd.proto.reload.values import FreshnessGuard, VerifiedAnswer, entry_key, sign_value, verify_fetched
from p2psipd.proto.reload.wire import Destination, NodeDestination, ResourceDestination

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.reload.peer import Peer

_TRACE_HOPS = 20
_STORE_TRIES = 3
# Milliseconds by which storage times may run ahead of the clock, so that no two are alike.
_TIE_MS = 1000
_MOST_TIME = 2**64 - 1
_REPLICATING_FOR = 2.0
# A trace waits so long for a link that leads towards its resource.
_ROUTE_FOR = 3.0


class UserRequests:
    """The asking half of the peer core."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._waiting: set[int] = set()
        self._last_storage_time = 0
        self._stored_at: dict[ResourceId, float] = {}
        self._fetching: deque[tuple[float, FetchJob]] = deque()
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
        self._waiting.discard(item.ref)

    def waiting(self, ref: int) -> bool:
        """Whether the user still wants the outcome."""
        return ref in self._waiting

    def complete(self, ref: int, result: object) -> None:
        """The outcome of `ref`, unless it was abandoned or is known already."""
        if ref in self._waiting:
            self._waiting.remove(ref)
            self._peer.emit(peer_io.Completed(ref, result))

    def fail(self, ref: int, error: ReloadError) -> None:
        """The failure of `ref`, likewise."""
        if ref in self._waiting:
            self._waiting.remove(ref)
            self._peer.emit(peer_io.Failed(ref, error))

    # -- single requests -----------------------------------------------------------------------------------

    def _simple(self, ref: int, target: Destination, body: Body, outcome: Callable[[Answer], object]) -> None:
        self._waiting.add(ref)

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

    def _storage_time(self, resource: ResourceId, kind: int, value: StoredDataValue) -> int:
        """Milliseconds since 1970: later than all that this reader has seen of the entry, and no two alike.

        Where the wall clock was set back, times that were given before count for their own entries alone.
        """
        now, last = int(self._peer.wall * 1000), self._last_storage_time
        self._last_storage_time = last + 1 if now <= last < now + _TIE_MS else now
        newest = min(self.guard.newest(resource, kind, entry_key(value)), _MOST_TIME - 1)
        return max(self._last_storage_time, newest + 1)

    def _store(self, item: peer_io.Store, tries: int = 0) -> None:
        peer = self._peer
        kind = peer.configuration.kinds.get(item.kind)
        self._waiting.add(item.ref)
        if kind is None:
            self.fail(item.ref, InvalidMessage(f"kind {item.kind:#x} is not in the configuration document"))
            return
        resource = item.name if isinstance(item.name, bytes) and len(item.name) == 16 else resource_id(item.name)
        resource = ResourceId(resource)
        if len(self._stored_at) > 10_000:
            self._stored_at.clear()
        self._stored_at[resource] = peer.now
        credential = item.credential or peer.credential
        plain = [_stored_value(kind.data_model, value) for value in item.values]
        values = tuple(
            sign_value(
                resource,
                item.kind,
                stored,
                self._storage_time(resource, item.kind, stored),
                value.lifetime,
                credential.certificate,
                credential.sign,
                known=peer.storage.known,
            )
            for value, stored in zip(item.values, plain, strict=True)
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
            elif isinstance(answer.error, DataTooOld) and answer.node is not None and not tries:
                self._see_newest(answer.node, resource, item)
            else:
                self.fail(item.ref, answer.error or InvalidMessage("not a StoreAns"))

        peer.request(
            ResourceDestination(resource), body, answered, certificates=(credential.certificate.der,), sealer=sealer
        )

    def _see_newest(self, node: NodeId, resource: ResourceId, item: peer_io.Store) -> None:
        """Something was stored by a clock ahead of ours, maybe our own before it was set back: read it, and store
        again with a time that is later.
        """
        asked = FetchReq(resource, self.complete_specifiers((StoredDataSpecifier(item.kind),)))

        def answered(answer: Answer) -> None:
            if isinstance(answer.body, FetchAns):
                self.verify(resource, answer.body, answer.certificates)
            self._retry_store(item, 1)

        self._peer.request(NodeDestination(node), asked, answered)

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
        self._waiting.add(item.ref)
        unknown = [s.kind for s in item.specifiers if s.kind not in self._peer.configuration.kinds]
        if unknown:
            self.fail(item.ref, UnknownKind(f"kind {unknown[0]:#x} is not in the configuration document"))
            return
        if self._peer.now - self._stored_at.get(item.resource, float("-inf")) < _REPLICATING_FOR:
            # Copies may still be under way to the holder that we would ask: who wrote reads at the source.
            item = item._replace(fresh=True)
        FetchJob(self._peer, self, item).start()

    def give_up_later(self, job: FetchJob) -> None:
        """Let `job` fail if it is not done in time.  All may take equally long, so they wait in a queue."""
        fetching, waiting = self._fetching, self._waiting
        while fetching and fetching[0][1].ref not in waiting:
            fetching.popleft()
        fetching.append((self._peer.now + FETCH_FOR, job))
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

    def verify(self, resource: ResourceId, answer: FetchAns, certificates: Mapping[bytes, bytes]) -> VerifiedAnswer:
        """What of an answer is good, as the local user must judge it."""
        peer = self._peer
        return verify_fetched(
            resource,
            answer,
            certificates,
            peer.configuration,
            peer.opener.trust,
            peer.opener.verifier,
            peer.wall,
            self.guard,
            peer.storage.known,
        )

    # -- trace ---------------------------------------------------------------------------------------------

    def _trace(self, item: peer_io.Trace) -> None:
        """Ask hop after hop where it would send a message for the resource (RouteQuery, section 6.4.2.4)."""
        self._waiting.add(item.ref)
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

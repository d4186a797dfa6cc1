"""How a node answers each method of RFC 6940: link management (6.5), storage (7.4), configuration (6.3.2.1).

A handler returns the answer's body, or None if the answer comes later, and raises the `ReloadError` that is
to be sent instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import ConfigTooNew, ConfigTooOld, Forbidden, InvalidMessage, NotFound, ReloadError
from p2psipd.proto.reload.ids import NodeId, distance
from p2psipd.proto.reload.incoming import IncomingRequest
from p2psipd.proto.reload.messages import (
    CONFIG_UPDATE_CONFIG,
    PROBE_NUM_RESOURCES,
    PROBE_RESPONSIBLE_SET,
    PROBE_UPTIME,
    AppAttachAns,
    AppAttachReq,
    AttachAns,
    AttachReq,
    Body,
    ConfigUpdateAns,
    ConfigUpdateReq,
    DataModel,
    FetchReq,
    FindReq,
    MessageCode,
    PingAns,
    ProbeAns,
    ProbeReq,
    RouteQueryReq,
    StatReq,
    StoreAns,
    StoreReq,
)
from p2psipd.proto.reload.overlay_config import newer
from p2psipd.proto.reload.storage_messages import A_COPY
from p2psipd.proto.reload.topology import Answer
from p2psipd.proto.reload.wire import NodeDestination

if TYPE_CHECKING:
    from p2psipd.proto.reload.link_messages import IceCandidate
    from p2psipd.proto.reload.peer import Peer

ANY_SEQUENCE = 65535
_COUNTERS = {int(code): f"request-{code:#x}" for code in MessageCode}
_CONFIG_PUSH_FOR = 1.0


class Methods:
    """The answering half of the peer core."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pushed_at: dict[NodeId, float] = {}
        topology = peer.topology
        self._handlers: dict[int, Callable[[IncomingRequest], Body | None]] = {
            MessageCode.PING_REQ: self._ping,
            MessageCode.PROBE_REQ: self._probe,
            MessageCode.ATTACH_REQ: self._attach,
            MessageCode.APP_ATTACH_REQ: self._app_attach,
            MessageCode.JOIN_REQ: topology.on_join,
            MessageCode.LEAVE_REQ: topology.on_leave,
            MessageCode.UPDATE_REQ: topology.on_update,
            MessageCode.ROUTE_QUERY_REQ: self._route_query,
            MessageCode.STORE_REQ: self._store,
            MessageCode.FETCH_REQ: self._fetch,
            MessageCode.STAT_REQ: self._stat,
            MessageCode.FIND_REQ: self._find,
            MessageCode.CONFIG_UPDATE_REQ: self._config_update,
        }

    def handle(self, request: IncomingRequest) -> None:
        """Answer a request, now or later, with its body or the error."""
        handler = self._handlers.get(request.code)
        self._peer.count(_COUNTERS.get(request.code, "request-unknown"))
        try:
            if handler is None:
                raise InvalidMessage(f"method {request.code:#x} is not served")
            body = handler(request)
        except ReloadError as error:
            request.fail(error)
        else:
            if body is not None:
                request.answer(body)

    # -- link management -----------------------------------------------------------------------------------

    def _ping(self, request: IncomingRequest) -> Body:
        return PingAns(self._peer.random_bits(64), int(self._peer.wall * 1000))

    def _probe(self, request: IncomingRequest) -> Body:
        body = request.body
        assert isinstance(body, ProbeReq)
        peer = self._peer
        known: dict[int, Callable[[], int]] = {
            PROBE_RESPONSIBLE_SET: peer.topology.responsible_parts_per_billion,
            PROBE_NUM_RESOURCES: lambda: peer.storage.resource_count,
            PROBE_UPTIME: lambda: int(peer.now - peer.started_at),
        }
        return ProbeAns(tuple((kind, known[kind]()) for kind in body.types if kind in known))

    def _attach(self, request: IncomingRequest) -> Body:
        """The requester is passive: we dial it (RFC 6940 section 6.5.1), which also tests that it can be."""
        body = request.body
        assert isinstance(body, AttachReq)
        peer = self._peer
        addresses = _addresses(body.candidates)
        if request.node == peer.node_id:
            raise Forbidden("an Attach to oneself")
        if addresses and not peer.is_dialling(request.node):
            # One dial at a time for each node, wherever it says that it is.
            peer.dial(addresses, request.node)
        if body.send_update:
            peer.want_update(request.node)
        return AttachAns(b"", b"", b"active", peer.candidates(peer.parameters.addresses), False)

    def _app_attach(self, request: IncomingRequest) -> Body:
        """We are active: we dial the requester's candidates, who is the TLS server (section 6.5.2)."""
        body = request.body
        assert isinstance(body, AppAttachReq)
        peer = self._peer
        own = peer.parameters.applications.get(body.application)
        if own is None:
            raise NotFound(f"application {body.application} is not served here")
        if not request.addressed_to_us:
            raise Forbidden("an AppAttach is addressed to a Node-ID")
        addresses = _addresses(body.candidates)
        if not addresses or body.role == b"active":
            return AppAttachAns(b"", b"", body.application, b"passive", peer.candidates(own))
        peer.emit(peer_io.DialApplication(request.node, body.application, addresses))
        return AppAttachAns(b"", b"", body.application, b"active", peer.candidates(own))

    def _route_query(self, request: IncomingRequest) -> Body | None:
        body = request.body
        assert isinstance(body, RouteQueryReq)
        return self._peer.topology.on_route_query(request, body)

    # -- storage -------------------------------------------------------------------------------------------

    def _store(self, request: IncomingRequest) -> Body:
        body = request.body
        assert isinstance(body, StoreReq)
        if body.replica_number:
            return self._store_replica(request, body)
        peer = self._peer
        if not peer.topology.responsible(body.resource):
            raise Forbidden("this node is not responsible for the resource")
        result = peer.storage.store(body, request.signer, request.certificates, peer.wall)
        peer.write(result.changes)
        replicas = self._replicate(body, result.answer, request)
        return StoreAns(tuple(kind._replace(replicas=replicas) for kind in result.answer.kinds))

    def _replicate(self, body: StoreReq, answer: StoreAns, request: IncomingRequest) -> tuple[NodeId, ...]:
        """Send what was accepted to the other holders; the Store is answered without waiting for them.

        Whoever stores and is a holder itself has the values: by its own name in the answer it knows that it is to keep
        them.
        """
        peer = self._peer
        nodes = peer.topology.replica_nodes(body.resource)
        if not nodes:
            return ()
        models = {kind.id: kind.data_model for kind in peer.configuration.kinds.values()}
        kinds, certificates = body.kinds, tuple(request.certificates.values())
        array = any(models[kind.kind] is DataModel.ARRAY for kind in kinds)
        if array:
            # Where an entry was appended only the storage knows its index.
            replica = peer.storage.records_of(body.resource, peer.wall)
            if replica is not None:
                kinds, certificates = replica.kinds, replica.certificates
        generations = {kind.kind: kind.generation for kind in answer.kinds}
        copies = tuple(kind._replace(generation=generations.get(kind.kind, kind.generation)) for kind in kinds)

        def copied(result: Answer) -> None:
            if isinstance(result.body, StoreAns) and result.node is not None:
                peer.emit(peer_io.Replicated(body.resource, result.node))
            else:
                peer.count("replica-refused")

        others = nodes if array else [node for node in nodes if node != request.node]
        peer.request_each(others, StoreReq(body.resource, A_COPY, copies), copied, certificates)
        return tuple(nodes)

    def _store_replica(self, request: IncomingRequest, body: StoreReq) -> Body:
        peer = self._peer
        if not request.signer.role.routes:
            raise Forbidden("replicas come from peers only")
        if not peer.topology.may_replicate(body.resource, request.node):
            raise Forbidden("the sender is too far from the resource to hold it")
        result = peer.storage.store_replica(body, request.certificates, peer.wall)
        peer.write(result.changes)
        for refused in result.refused:
            peer.misbehaved(request.node, "replica", f"kind {refused.kind:#x}: {refused.error}")
        if result.newer:
            peer.request(
                NodeDestination(request.node),
                StoreReq(body.resource, A_COPY, result.newer),
                lambda _: None,
                certificates=result.newer_certificates,
            )
        return result.answer

    def _fetch(self, request: IncomingRequest) -> Body | None:
        body = request.body
        assert isinstance(body, FetchReq)
        answer, certificates = self._peer.storage.fetch(body, self._peer.wall)
        request.answer(answer, certificates)
        return None

    def _stat(self, request: IncomingRequest) -> Body:
        body = request.body
        assert isinstance(body, StatReq)
        return self._peer.storage.stat(body, self._peer.wall)

    def _find(self, request: IncomingRequest) -> Body:
        body = request.body
        assert isinstance(body, FindReq)
        if not self._peer.topology.responsible(body.resource):
            raise NotFound("this node is not responsible for the resource")
        return self._peer.storage.find(body, distance)

    # -- configuration -------------------------------------------------------------------------------------

    def check_configuration_sequence(self, sequence: int, code: int, node: NodeId) -> None:
        """RFC 6940 section 6.3.2.1: both sides must have the same document.

        :raises ConfigTooOld: the requester's is older; it is sent ours.
        :raises ConfigTooNew: the requester's is newer than ours.
        """
        own = self._peer.configuration.sequence
        if sequence == own or (sequence == ANY_SEQUENCE and code == MessageCode.CONFIG_UPDATE_REQ):
            return
        if newer(sequence, own):
            raise ConfigTooNew(f"sequence {sequence}, ours is {own}")
        self._push_document(node)
        raise ConfigTooOld(f"sequence {sequence}, ours is {own}")

    def configuration_differs(self, node: NodeId, ours_is_newer: bool) -> None:
        """A request of ours was refused for its configuration sequence; it is repeated by its timer."""
        if ours_is_newer:
            self._push_document(node)

    def _push_document(self, node: NodeId) -> None:
        peer = self._peer
        if peer.now - self._pushed_at.get(node, float("-inf")) < _CONFIG_PUSH_FOR:
            return
        if len(self._pushed_at) > 10_000:
            self._pushed_at.clear()
        self._pushed_at[node] = peer.now
        peer.request(
            NodeDestination(node),
            ConfigUpdateReq(CONFIG_UPDATE_CONFIG, peer.configuration.document),
            lambda _: None,
            sequence=ANY_SEQUENCE,
        )

    def _config_update(self, request: IncomingRequest) -> Body:
        body = request.body
        assert isinstance(body, ConfigUpdateReq)
        if body.type != CONFIG_UPDATE_CONFIG:
            # Kind updates come inside a whole new document here; a single kind has no sequence of its own.
            raise Forbidden("kinds change by a new configuration document only")
        self.new_document(body.config_data)
        return ConfigUpdateAns()

    def new_document(self, document: bytes) -> None:
        """Adopt a newer document that a configuration signer of the present one signed, and pass it on.

        :raises Forbidden: wrong signature, another overlay, malformed.
        """
        peer = self._peer
        configuration = peer.read_document(document)
        if configuration.sequence == peer.configuration.sequence:
            return
        if not newer(configuration.sequence, peer.configuration.sequence):
            raise ConfigTooOld(f"document {configuration.sequence}, ours is {peer.configuration.sequence}")
        peer.adopt(configuration)
        for node in list(peer.linked()):
            self._push_document(node)


def _addresses(candidates: tuple[IceCandidate, ...]) -> tuple[tuple[str, int], ...]:
    return tuple((c.host, c.port) for c in sorted(candidates, key=lambda c: -c.priority)[:8])

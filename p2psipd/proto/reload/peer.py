"""The peer core: a RELOAD node without its sockets (RFC 6940 sections 6 and 7).

`Peer` takes facts and wishes (`peer_io`) with the time, and gives back what to do.  Its layers are the links
(`link_layer`), the messages (`messaging`) and, here, storage and configuration; a topology plug-in decides who
is where (`topology`); answering methods live in `methods`, what the local user asks for in `user_requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from p2psipd.proto.identity.certificate import TrustPolicy
from p2psipd.proto.identity.signing import Signer, Verifier
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import Forbidden
from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.incoming import IncomingRequest
from p2psipd.proto.reload.kademlia import Kademlia
from p2psipd.proto.reload.link_table import Link
from p2psipd.proto.reload.messages import CANDIDATE_HOST, TLS_TCP_FH_NO_ICE, AttachReq, IceCandidate, StoreAns, StoreReq
from p2psipd.proto.reload.messaging import Messaging
from p2psipd.proto.reload.methods import Methods
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_parameters import PeerParameters, Randomness
from p2psipd.proto.reload.sealing import Sealer
from p2psipd.proto.reload.storage_messages import A_COPY
from p2psipd.proto.reload.topology import Address, Answer, Topology, TopologyHost
from p2psipd.proto.reload.user_requests import UserRequests
from p2psipd.proto.reload.wire import NodeDestination

if TYPE_CHECKING:
    from p2psipd.proto.reload.records import RecordChange
    from p2psipd.proto.reload.storage import Storage
    from p2psipd.proto.reload.storage_results import Replica

_PUSH_WINDOW = 16
_CHECK_LINKS_FOR = 60.0

ReadDocument = Callable[[bytes, OverlayConfiguration, float], OverlayConfiguration]
"""Parses and verifies a newer document against the present one at a wall time; raises Forbidden."""


class TopologyFactory(Protocol):
    """Makes the topology plug-in that the configuration document names."""

    def __call__(self, host: TopologyHost, parameters: PeerParameters) -> Topology:
        """The plug-in for `host`."""


def kademlia(host: TopologyHost, parameters: PeerParameters) -> Topology:
    """The factory of P2PSIPD-KADEMLIA."""
    return Kademlia(
        host,
        parameters.kademlia,
        addresses=parameters.addresses,
        bootstrap=parameters.bootstrap,
        remembered=parameters.remembered,
        first=parameters.first,
        client=parameters.client,
    )


TOPOLOGIES: Mapping[str, TopologyFactory] = {Kademlia.name: kademlia}


class Peer(Messaging):
    """One node.  Call `start` once, then `receive` and `handle_timer`; perform what they return, in order."""

    def __init__(
        self,
        credential: Signer,
        configuration: OverlayConfiguration,
        trust: TrustPolicy,
        verifier: Verifier,
        storage: Storage,
        random: Randomness,
        parameters: PeerParameters,
        *,
        now: float,
        wall: float,
        make_trust: Callable[[OverlayConfiguration], TrustPolicy] | None = None,
        read_document: ReadDocument | None = None,
    ) -> None:
        factory = TOPOLOGIES.get(configuration.topology_plugin)
        if factory is None:
            raise Forbidden(f"topology plug-in {configuration.topology_plugin} is not one of {', '.join(TOPOLOGIES)}")
        super().__init__(credential, configuration, trust, verifier, random, parameters, now, wall)
        self.storage = storage
        self._make_trust = make_trust
        self._read_document = read_document
        self._expiry_armed: float | None = None
        self._use(factory(self, parameters))
        self._methods = Methods(self)
        self._user = UserRequests(self)
        self._handlers: dict[type, Callable[..., None]] = {
            peer_io.LinkBytes: self._link_bytes,
            peer_io.LinkUp: self._link_up,
            peer_io.LinkDown: self._link_down,
            peer_io.LinkFailed: self._link_failed,
            peer_io.Leave: self._leave,
            peer_io.NewConfiguration: lambda item: self._methods.new_document(item.document),
            peer_io.NewCredential: self._new_credential,
            **self._user.handlers,
        }

    def start(self, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Begin to join."""
        return self._run(self._start, now, wall)

    def receive(self, item: peer_io.PeerInput, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Take one input; returns the outputs in the order in which to perform them."""
        self.now, self.wall = now, wall
        out: list[peer_io.PeerOutput] = []
        self._out = out
        self._handlers[item.__class__](item)
        return out

    def _start(self) -> None:
        self.arm_expiry()
        self.call_at(self.now + _CHECK_LINKS_FOR, self._check_links)
        self.topology.start()

    def _handle(self, request: IncomingRequest) -> None:
        self._methods.handle(request)

    def _check_sequence(self, sequence: int, code: int, node: NodeId) -> None:
        self._methods.check_configuration_sequence(sequence, code, node)

    def _configuration_differs(self, node: NodeId, ours_is_newer: bool) -> None:
        self._methods.configuration_differs(node, ours_is_newer)

    # -- what a topology plug-in is offered ------------------------------------------------------------------

    def attach_request(self) -> AttachReq:
        """An Attach with our listeners as candidates."""
        return AttachReq(b"", b"", b"passive", self.candidates(self.parameters.addresses), True)

    def candidates(self, addresses: Iterable[Address]) -> tuple[IceCandidate, ...]:
        """No-ICE host candidates (RFC 6940 section 6.5.1.7)."""
        return tuple(
            IceCandidate(host, port, TLS_TCP_FH_NO_ICE, b"1", 0x7EFFFFFF - at, CANDIDATE_HOST)
            for at, (host, port) in enumerate(addresses)
        )

    def resources(self) -> Iterable[ResourceId]:
        """Resource-IDs under which we hold anything."""
        return self.storage.resources()

    def resource_digest(self, resource: ResourceId) -> bytes:
        """8 bytes, equal where the same values are held."""
        return self.storage.resource_digest(resource)

    def drop_resource(self, resource: ResourceId) -> None:
        """Forget a resource that others hold now."""
        self.write(self.storage.drop_resource(resource))

    def push_records(
        self,
        node: NodeId,
        resources: Iterable[ResourceId],
        done: Callable[[bool], None] | None = None,
    ) -> None:
        """Store to `node` what we hold under `resources`, a window of requests at a time."""
        queue = list(resources)
        queue.reverse()
        batches: list[Replica] = []
        state = {"open": 0, "taken": True}
        limit = self.configuration.max_message_size * 3 // 4

        def more() -> None:
            while state["open"] < _PUSH_WINDOW and (batches or queue):
                if not batches:
                    batches.extend(self.storage.replica_batches(queue.pop(), self.wall, limit))
                    continue
                replica = batches.pop()
                state["open"] += 1
                self.count("replica-pushed")
                body = StoreReq(replica.resource, A_COPY, replica.kinds)
                self.request(NodeDestination(node), body, answered, certificates=replica.certificates)
            if not (queue or batches or state["open"]) and done is not None:
                done(bool(state["taken"]))

        def answered(answer: Answer) -> None:
            state["open"] -= 1
            state["taken"] = bool(state["taken"]) and isinstance(answer.body, StoreAns)
            more()

        more()

    def joined(self) -> None:
        """We are a member."""
        self.emit(peer_io.Joined())

    def member_changed(self, node: NodeId, alive: bool, reason: str, addresses: tuple[Address, ...]) -> None:
        """A peer came or went."""
        if alive:
            self.emit(peer_io.PeerJoined(node))
            self.emit(peer_io.RememberPeer(node, addresses))
        else:
            self.emit(peer_io.PeerLost(node, reason))
            if reason == "left":
                self.emit(peer_io.RememberPeer(node, ()))

    # -- storage, configuration, leaving ---------------------------------------------------------------------

    def write(self, changes: tuple[RecordChange, ...]) -> None:
        """Hand changes of the storage to the record store."""
        if changes:
            self.emit(peer_io.WriteRecords(changes))
            self.arm_expiry()

    def arm_expiry(self) -> None:
        """See to it that the storage expires values in time; the wall clock is looked at again each minute."""
        at = self.storage.next_expiry()
        if at is None:
            return
        due = self.now + min(60.0, max(0.05, at - self.wall))
        if self._expiry_armed is None or due < self._expiry_armed - 0.05:
            self._expiry_armed = due
            self.call_at(due, self._expire)

    def _expire(self) -> None:
        if self._expiry_armed is not None and self.now >= self._expiry_armed - 0.001:
            self._expiry_armed = None
            self.write(self.storage.expire(self.wall))
            self.arm_expiry()

    def read_document(self, document: bytes) -> OverlayConfiguration:
        """The configuration document, if a signer of the present one signed it.

        :raises Forbidden: it is not acceptable.
        """
        if self._read_document is None:
            raise Forbidden("this node takes no configuration documents from others")
        return self._read_document(document, self.configuration, self.wall)

    def adopt(self, configuration: OverlayConfiguration) -> None:
        """Put a newer configuration document in force."""
        self.configuration = configuration
        self._models.clear()
        self._models.update({k.id: k.data_model for k in configuration.kinds.values()})
        if self._make_trust is not None:
            self.opener.trust = self._make_trust(configuration)
        self.write(self.storage.reconfigure(configuration, self.opener.trust, self.wall))
        for link in self.links:
            if self.check_certificate(link.certificate.der) is None:
                self._cut(link, "certificate revoked")
        self.emit(peer_io.ConfigurationChanged(configuration))

    def _cut(self, link: Link, reason: str) -> None:
        self.emit(peer_io.CloseLink(link.id, reason))
        self._link_gone(link, reason)

    def _check_links(self) -> None:
        """A link does not outlive the certificate that it was opened with: who has a new one dials anew."""
        self.call_at(self.now + _CHECK_LINKS_FOR, self._check_links)
        for link in self.links:
            if link.certificate.not_after < self.wall:
                self._cut(link, "certificate expired")

    def _new_credential(self, item: peer_io.NewCredential) -> None:
        if item.credential.certificate.node_id != self.node_id:
            raise Forbidden("a renewed certificate must keep the Node-ID")
        self.credential = item.credential
        self._sealer = Sealer(item.credential, self.overlay_hash)
        self.topology.credential_changed()

    def _leave(self, item: peer_io.Leave) -> None:
        self.topology.leave(lambda: self.emit(peer_io.Completed(item.ref, None)))

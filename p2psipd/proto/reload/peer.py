"""The peer core: a RELOAD node without its sockets (RFC 6940 sections 6 and 7).

`Peer` takes facts and wishes (`peer_io`) with the time, and gives back what to do.  It owns links, routing,
transactions and storage; a topology plug-in decides who is where (`topology`); answering methods live in
`methods`, what the local user asks for in `user_requests`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, TrustPolicy
from p2psipd.proto.identity.signing import SignatureValue, Signer, Verifier
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import (
    ErrorCode,
    Forbidden,
    InvalidMessage,
    MessageTooLarge,
    ReloadError,
    RequestTimeout,
    ResponseTooLarge,
    TtlExceeded,
)
from p2psipd.proto.reload.ids import NodeId, ResourceId, overlay_hash
from p2psipd.proto.reload.incoming import IncomingRequest
from p2psipd.proto.reload.kademlia import Kademlia, KademliaParameters, Remembered
from p2psipd.proto.reload.link_table import Link, LinkTable
from p2psipd.proto.reload.messages import (
    CANDIDATE_HOST,
    TLS_TCP_FH_NO_ICE,
    AttachReq,
    Body,
    DataModel,
    ErrorResponse,
    IceCandidate,
    PingReq,
    StoreAns,
    StoreReq,
    decode_body,
    is_request,
)
from p2psipd.proto.reload.methods import Methods
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.routing import Deliver, Drop, Forward, Router, ViaStore
from p2psipd.proto.reload.sealing import Opener, Sealer
from p2psipd.proto.reload.topology import Address, Answer, OnAnswer, Topology, TopologyHost
from p2psipd.proto.reload.transactions import MAX_SENDS, AnswerCache, Outstanding
from p2psipd.proto.reload.user_requests import UserRequests
from p2psipd.proto.reload.wire import (
    DESTINATION_CRITICAL,
    Destination,
    ForwardingHeader,
    NodeDestination,
    Reassembler,
    ResourceDestination,
    answer_destinations,
    answer_options,
    check_extensions,
    check_options,
    decode_contents,
    decode_header,
    transit,
)

if TYPE_CHECKING:
    from p2psipd.proto.reload.records import RecordChange
    from p2psipd.proto.reload.storage import Storage
    from p2psipd.proto.reload.storage_results import Replica

_CONFIRM_FOR = 5.0
_SURPLUS_FOR = 2.0
_WATCH_FOR = 0.1
_PUSH_WINDOW = 16


ReadDocument = Callable[[bytes, OverlayConfiguration, float], OverlayConfiguration]
"""Parses and verifies a newer document against the present one at a wall time; raises Forbidden."""


class Randomness(Protocol):
    """`random.SystemRandom` in a node, a seeded `random.Random` in the simulator."""

    def getrandbits(self, k: int, /) -> int:
        """A random integer below 2**k."""


class PeerParameters(NamedTuple):
    """What one node is told about itself; addresses are (numeric host, port), times seconds.

    `applications` maps an Application-ID to the addresses where we accept its AppAttach connections.
    `client` nodes store and route for nobody (RFC 6940 section 4.2).
    """

    addresses: tuple[Address, ...] = ()
    bootstrap: tuple[Address, ...] = ()
    remembered: tuple[Remembered, ...] = ()
    applications: Mapping[int, tuple[Address, ...]] = {}
    first: bool = False
    client: bool = False
    dead_after: float = 2.0
    kademlia: KademliaParameters = KademliaParameters()


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


class Peer:
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
            raise Forbidden(
                f"topology plug-in {configuration.topology_plugin} is not one of {', '.join(TOPOLOGIES)}"
            )
        self.now = now
        self.wall = wall
        self.started_at = now
        self.credential = credential
        self.configuration = configuration
        self.parameters = parameters
        self.storage = storage
        self.node_id = NodeId(credential.certificate.node_id)
        self.links = LinkTable(self.node_id)
        self.overlay_hash = overlay_hash(configuration.overlay_name)
        self.opener = Opener(trust, verifier, self.overlay_hash)
        self.counts: dict[str, int] = {}
        self._make_trust = make_trust
        self._read_document = read_document
        self._random = random
        self._sealer = Sealer(credential, self.overlay_hash)
        self._models: dict[int, DataModel] = {k.id: k.data_model for k in configuration.kinds.values()}
        self._out: list[peer_io.PeerOutput] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._attempts: dict[int, tuple[NodeId | None, tuple[Address, ...]]] = {}
        self._attempt_count = 0
        self._outstanding: dict[int, Outstanding] = {}
        self._answers = AnswerCache()
        self._reassembler = Reassembler()
        self._busy: set[int] = set()
        self._watch_armed = False
        self._update_wanted: set[NodeId] = set()
        self.topology: Topology = factory(self, parameters)
        self._router = Router(self.node_id, self.links, self.topology, ViaStore(random.getrandbits))
        self._methods = Methods(self)
        self._user = UserRequests(self)
        self._expiry_armed: float | None = None
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

    # -- the machine ---------------------------------------------------------------------------------------

    def start(self, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Begin to join."""
        return self._run(self._start, now, wall)

    def receive(self, item: peer_io.PeerInput, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Take one input; returns the outputs in the order in which to perform them."""
        handler = self._handlers[type(item)]
        return self._run(lambda: handler(item), now, wall)

    def next_timer(self) -> float | None:
        """Monotonic seconds at which `handle_timer` wants to be called."""
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float, wall: float) -> list[peer_io.PeerOutput]:
        """Do what is due."""

        def due() -> None:
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

        return self._run(due, now, wall)

    def _run(self, action: Callable[[], None], now: float, wall: float) -> list[peer_io.PeerOutput]:
        self.now, self.wall = now, wall
        out: list[peer_io.PeerOutput] = []
        self._out = out
        action()
        return out

    def _start(self) -> None:
        self.arm_expiry()
        self.topology.start()

    def emit(self, output: peer_io.PeerOutput) -> None:
        """Add an output."""
        self._out.append(output)

    def count(self, reason: str) -> None:
        """Count an event that is worth a number but no output."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        """Run `action` at the monotonic instant `at`."""
        self._timer_count += 1
        heapq.heappush(self._timers, (at, self._timer_count, action))

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
            self._refuse_link(
                item, expected, addresses, "node-id", f"{node.hex()} answered for {expected.hex()}"
            )
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
        self,
        item: peer_io.LinkUp,
        expected: NodeId | None,
        addresses: tuple[Address, ...],
        reason: str,
        detail: str,
    ) -> None:
        self.emit(peer_io.CloseLink(item.link, reason))
        self.emit(
            peer_io.Misbehaved(item.link, expected, reason, f"{item.address[0]}:{item.address[1]}: {detail}")
        )
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
            # The dialler waits for our first bytes, and nothing else need be said on a second link.
            self.request(NodeDestination(link.node), PingReq(b""), _ignore, on=link)
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

    def rtt(self, node: NodeId) -> float | None:
        """Smoothed round-trip time, seconds."""
        link = self.links.to(node)
        return None if link is None else link.framed.srtt

    def hedge_after(self, node: NodeId) -> float:
        """Seconds after which an answer from `node` is late: srtt + 4 rttvar, at least 100 ms."""
        link = self.links.to(node)
        return 0.5 if link is None else link.framed.rto

    def idle_for(self, node: NodeId) -> float:
        """Seconds since the last bytes from `node`."""
        link = self.links.to(node)
        return float("inf") if link is None else self.now - link.received_at

    def _link_bytes(self, item: peer_io.LinkBytes) -> None:
        link = self.links.get(item.link)
        if link is None:
            return
        try:
            messages, acks = link.framed.receive(item.data, self.now)
        except ReloadError as error:
            self.emit(peer_io.CloseLink(link.id, "malformed frame"))
            self.misbehaved(link.node, "framing", str(error))
            self._link_gone(link, "malformed frame")
            return
        link.received_at = self.now
        if link.framed.oldest_unacked_at is None:
            self._busy.discard(link.id)
            link.suspect = False
        if acks:
            self.emit(peer_io.SendToLink(link.id, acks))
        if not link.confirmed:
            self._confirm(link)
        for message in messages:
            self._message(link.node, message)

    def _write(self, link: Link, message: bytes) -> None:
        self.emit(peer_io.SendToLink(link.id, link.frame(message, self.now)))
        self._busy.add(link.id)
        if not self._watch_armed:
            self._watch_armed = True
            self.call_at(self.now + max(_WATCH_FOR, link.framed.rto), self._watch)

    def _watch(self) -> None:
        """Suspect links that do not acknowledge in time, give up those that stay silent."""
        self._watch_armed = False
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
            self._watch_armed = True
            self.call_at(self.now + _WATCH_FOR, self._watch)

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

    # -- messages coming in --------------------------------------------------------------------------------

    def _message(self, previous: NodeId, data: bytes) -> None:
        try:
            header, offset = decode_header(data)
        except ReloadError as error:
            self.misbehaved(previous, "malformed", str(error))
            return
        if header.overlay != self.overlay_hash:
            self.misbehaved(previous, "overlay", f"message for overlay {header.overlay:08x}")
            return
        # A later fragment has no message code; the Via List of an answer does no harm if it grows.
        request = header.fragment_offset > 0 or is_request(int.from_bytes(data[offset : offset + 2], "big"))
        try:
            if header.ttl > self.configuration.initial_ttl:
                raise TtlExceeded(f"ttl {header.ttl} is above the overlay's initial-ttl")
            if len(data) > self.configuration.max_message_size:
                raise MessageTooLarge(f"{len(data)} bytes, at most {self.configuration.max_message_size}")
            decision = self._router.route(header, previous, request, self.now)
        except ReloadError as error:
            self.misbehaved(previous, "routing", str(error))
            if request:
                self._reply(header, previous, None, error, ())
            return
        if isinstance(decision, Forward):
            link = self.links.to(decision.node)
            if link is not None:
                self.count("forwarded")
                self._write(
                    link,
                    transit(
                        data,
                        header,
                        offset,
                        via=decision.via,
                        destinations=decision.destinations,
                        ttl=header.ttl - 1,
                    ),
                )
        elif isinstance(decision, Drop):
            self.count(f"dropped-{decision.reason}")
        else:
            self._deliver(previous, header, data, offset, decision)

    def _deliver(
        self, previous: NodeId, header: ForwardingHeader, data: bytes, offset: int, decision: Deliver
    ) -> None:
        if not header.is_whole:
            try:
                whole = self._reassembler.add(previous, header, data, offset, self.now)
            except ReloadError as error:
                self.misbehaved(previous, "fragment", str(error))
                return
            if whole is None:
                return
            data = whole
            header, offset = decode_header(data)
        try:
            contents, octets, block = decode_contents(data, offset)
            signer, certificates = self.opener.open(header.transaction_id, octets, block, self.wall)
        except ReloadError as error:
            # RFC 6940 section 6.3.4: a message that does not verify is dropped and not processed.
            self.misbehaved(
                previous, "signature" if isinstance(error, Forbidden) else "malformed", str(error)
            )
            return
        if is_request(contents.code):
            key = (NodeId(signer.node_id), header.transaction_id)
            seen, answer = self._answers.find(key, self.now)
            if seen:
                if answer is not None:
                    self._route_own(answer, previous)
                return
            try:
                self._check_request(header, contents.code, previous, signer)
                check_extensions(contents)
                body = decode_body(contents.code, contents.body, self._models)
            except ReloadError as error:
                self._reply(header, previous, None, error, ())
                return
            self._answers.put(key, None, self.now)
            request = IncomingRequest(
                contents.code,
                body,
                signer,
                previous,
                certificates,
                self.configuration.initial_ttl - header.ttl + 1,
                decision.to_own_id,
                lambda result, extra: self._reply(header, previous, key, result, extra),
            )
            self._methods.handle(request)
        else:
            self._answer(header, contents.code, contents.body, signer, certificates)

    def _check_request(
        self, header: ForwardingHeader, code: int, previous: NodeId, signer: NodeCertificate
    ) -> None:
        check_options(header, DESTINATION_CRITICAL)
        self._methods.check_configuration_sequence(
            header.configuration_sequence, code, NodeId(signer.node_id)
        )

    def _reply(
        self,
        header: ForwardingHeader,
        previous: NodeId,
        key: tuple[NodeId, int] | None,
        result: Body | ReloadError,
        certificates: Iterable[bytes],
    ) -> None:
        if isinstance(result, ReloadError):
            self.count(f"error-{result.code}")
            result = ErrorResponse.of(result)
        answer_header = ForwardingHeader(
            self.overlay_hash,
            self.configuration.sequence,
            self.configuration.initial_ttl,
            0,
            True,
            header.transaction_id,
            0,
            (),
            answer_destinations(header.via, previous),
            answer_options(header),
        )
        message = self._sealer.seal(answer_header, result.code, result.encode(), certificates)
        limit = header.max_response_length
        if (limit and len(message) > limit) or len(message) > self.configuration.max_message_size:
            error = ErrorResponse.of(ResponseTooLarge(f"{len(message)} bytes"))
            message = self._sealer.seal(answer_header, error.code, error.encode())
        if key is not None:
            self._answers.put(key, message, self.now)
        self._route_own(message, previous)

    def _route_own(self, message: bytes, previous: NodeId) -> None:
        link = self.links.to(previous)
        if link is None:
            hop = self.topology.next_hop(previous)
            link = None if hop is None else self.links.to(hop)
        if link is not None:
            self._write(link, message)

    def _answer(
        self,
        header: ForwardingHeader,
        code: int,
        octets: bytes,
        signer: NodeCertificate,
        certificates: Mapping[bytes, bytes],
    ) -> None:
        waiting = self._outstanding.get(header.transaction_id)
        if waiting is None:
            self.count("answer-late")
            return
        node = NodeId(signer.node_id)
        if waiting.node is not None and node != waiting.node:
            self.misbehaved(node, "answerer", f"answered for {waiting.node.hex()}")
            return
        if waiting.resource is not None and not self.topology.plausible_answerer(waiting.resource, node):
            self.count("answer-implausible")
            return
        error: ReloadError | None = None
        body: Body | None = None
        try:
            if code not in (waiting.answer_code, ErrorResponse.code):
                raise InvalidMessage(f"code {code:#x} does not answer the request")
            body = decode_body(code, octets, waiting.kinds)
        except ReloadError as fault:
            self.misbehaved(node, "answer", str(fault))
            return
        if isinstance(body, ErrorResponse):
            error, body = body.error(), None
            if error.code in (ErrorCode.CONFIG_TOO_OLD, ErrorCode.CONFIG_TOO_NEW):
                # Once both have the same document the repeat is accepted (RFC 6940 section 6.3.2.1).
                self._methods.configuration_differs(node, error.code == ErrorCode.CONFIG_TOO_NEW)
                return
        del self._outstanding[header.transaction_id]
        hops = self.configuration.initial_ttl - header.ttl + 1
        waiting.on_answer(Answer(body, error, node, certificates, self.now - waiting.started_at, hops))

    # -- requests going out --------------------------------------------------------------------------------

    def request(
        self,
        target: Destination,
        body: Body,
        on_answer: OnAnswer,
        *,
        through: tuple[Destination, ...] = (),
        via: NodeId | None = None,
        certificates: Iterable[bytes] = (),
        sealer: Sealer | None = None,
        sequence: int | None = None,
        on: Link | None = None,
    ) -> int:
        """Send a signed request to `target`, by way of `through`; returns the transaction id.

        `via` pins the first node, `on` the very link of the first transmission.  A request to ourselves is answered at once.
        """
        node = target.node if isinstance(target, NodeDestination) else None
        resource = target.resource if isinstance(target, ResourceDestination) else None
        transaction_id = self._random.getrandbits(64)
        if (
            not through
            and via is None
            and (node == self.node_id or (resource is not None and self.topology.responsible(resource)))
        ):
            self._local(body, on_answer, certificates, node is not None, sealer or self._sealer)
            return transaction_id
        header = ForwardingHeader(
            self.overlay_hash,
            self.configuration.sequence if sequence is None else sequence,
            self.configuration.initial_ttl,
            0,
            True,
            transaction_id,
            0,
            (),
            (*through, target),
        )
        message = (sealer or self._sealer).seal(header, body.code, body.encode(), certificates)
        waiting = Outstanding(
            transaction_id,
            body.code + 1,
            message,
            (*through, target)[0],
            node,
            resource,
            via,
            self._models,
            on_answer,
            self.now,
        )
        self._outstanding[transaction_id] = waiting
        self._transmit(waiting, on)
        return transaction_id

    def _local(
        self, body: Body, on_answer: OnAnswer, certificates: Iterable[bytes], to_own_id: bool, sealer: Sealer
    ) -> None:
        signer = sealer.credential.certificate
        bucket = {self.opener.trust.check(der, self.wall).hash: der for der in (*certificates, signer.der)}

        def reply(result: Body | ReloadError, extra: Iterable[bytes]) -> None:
            failed = isinstance(result, ReloadError)
            found = {self.opener.trust.check(der, self.wall).hash: der for der in extra}
            on_answer(
                Answer(
                    None if failed else result,
                    result if failed else None,
                    self.node_id,
                    found,
                    0.0,
                    0,  # type: ignore[arg-type]
                )
            )

        self._methods.handle(
            IncomingRequest(body.code, body, signer, self.node_id, bucket, 0, to_own_id, reply)
        )

    def _transmit(self, waiting: Outstanding, on: Link | None = None) -> None:
        waiting.sends += 1
        waiting.sent_at = self.now
        link = on or self._first_link(waiting)
        if link is not None:
            message = waiting.message
            sequence = self.configuration.sequence.to_bytes(2, "big")
            if waiting.sends > 1 and message[8:10] not in (sequence, b"\xff\xff"):
                message = waiting.message = message[:8] + sequence + message[10:]
            self._write(link, message)
        else:
            self.count("unroutable")
        self.call_at(
            self.now + self.configuration.reliability_timer_ms / 1000,
            lambda: self._reliability_timer(waiting),
        )

    def _first_link(self, waiting: Outstanding) -> Link | None:
        if waiting.via is not None:
            link = self.links.to(waiting.via)
            if link is not None:
                return link
        target = waiting.target
        hop: NodeId | None = None
        if isinstance(target, NodeDestination):
            link = self.links.to(target.node)
            if link is not None:
                return link
            hop = self.topology.next_hop(target.node)
        elif isinstance(target, ResourceDestination):
            hop = self.topology.next_hop(target.resource)
        return None if hop is None else self.links.to(hop)

    def _reliability_timer(self, waiting: Outstanding) -> None:
        if self._outstanding.get(waiting.transaction_id) is not waiting:
            return
        if waiting.sends < MAX_SENDS:
            self.count("retransmitted")
            self._transmit(waiting)
            return
        del self._outstanding[waiting.transaction_id]
        error = RequestTimeout(
            f"no answer to {MAX_SENDS} transmissions in {self.now - waiting.started_at:.1f} s"
        )
        waiting.on_answer(Answer(None, error, None, {}, self.now - waiting.started_at, 0))

    def forget(self, transaction_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._outstanding.pop(transaction_id, None)

    # -- what a topology plug-in is offered ------------------------------------------------------------------

    def random_bits(self, bits: int) -> int:
        """A random integer below 2**bits."""
        return self._random.getrandbits(bits)

    def send(
        self, node: NodeId, body: Body, on_answer: OnAnswer | None = None, certificates: Iterable[bytes] = ()
    ) -> None:
        """A signed request to a linked node."""
        if self.links.to(node) is not None:
            self.request(NodeDestination(node), body, on_answer or _ignore, certificates=certificates)

    def send_to_resource(
        self, target: ResourceId, body: Body, on_answer: OnAnswer, via: NodeId | None = None
    ) -> None:
        """A signed request to whoever is responsible for `target`."""
        self.request(ResourceDestination(target), body, on_answer, via=via)

    def attach_request(self) -> AttachReq:
        """An Attach with our listeners as candidates."""
        return AttachReq(b"", b"", b"passive", self.candidates(self.parameters.addresses), True)

    def candidates(self, addresses: Iterable[Address]) -> tuple[IceCandidate, ...]:
        """No-ICE host candidates (RFC 6940 section 6.5.1.7)."""
        return tuple(
            IceCandidate(host, port, TLS_TCP_FH_NO_ICE, b"1", 0x7EFFFFFF - at, CANDIDATE_HOST)
            for at, (host, port) in enumerate(addresses)
        )

    def want_update(self, node: NodeId) -> None:
        """`node` asked (send_update in Attach) for an Update as soon as the link is up."""
        self._update_wanted.add(node)

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
        replica_number: int,
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
                body = StoreReq(replica.resource, replica_number, replica.kinds)
                self.request(NodeDestination(node), body, answered, certificates=replica.certificates)
            if not (queue or batches or state["open"]) and done is not None:
                done(bool(state["taken"]))

        def answered(answer: Answer) -> None:
            state["open"] -= 1
            state["taken"] = bool(state["taken"]) and isinstance(answer.body, StoreAns)
            more()

        more()

    def check_certificate(self, der: bytes) -> NodeCertificate | None:
        """The certificate, if it is valid in this overlay now."""
        try:
            return self.opener.trust.check(der, self.wall)
        except CertificateError:
            return None

    def sign(self, data: bytes) -> bytes:
        """Our signature over `data`: two octets of algorithm, then the value."""
        signature = self.credential.sign(data)
        return bytes((signature.hash_algorithm, signature.signature_algorithm)) + signature.value

    def verify(self, certificate: NodeCertificate, data: bytes, signature: bytes) -> bool:
        """Whether `signature` (as `sign` makes it) is `certificate`'s over `data`."""
        if len(signature) < 3:
            return False
        value = SignatureValue(signature[0], signature[1], signature[2:])
        return self.opener.verifier.verify(
            certificate, value.hash_algorithm, value.signature_algorithm, data, value.value
        )

    def misbehaved(self, node: NodeId | None, reason: str, detail: str) -> None:
        """Count and report a fault of another node."""
        self.count(f"misbehaved-{reason}")
        link = None if node is None else self.links.to(node)
        self.emit(peer_io.Misbehaved(None if link is None else link.id, node, reason, detail))

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
                self.emit(peer_io.CloseLink(link.id, "certificate revoked"))
                self._link_gone(link, "certificate revoked")
        self.emit(peer_io.ConfigurationChanged(configuration))

    def _new_credential(self, item: peer_io.NewCredential) -> None:
        if item.credential.certificate.node_id != self.node_id:
            raise Forbidden("a renewed certificate must keep the Node-ID")
        self.credential = item.credential
        self._sealer = Sealer(item.credential, self.overlay_hash)

    def _leave(self, item: peer_io.Leave) -> None:
        self.topology.leave(lambda: self.emit(peer_io.Completed(item.ref, None)))


def _ignore(_: Answer) -> None:
    """Nobody waits for this answer."""

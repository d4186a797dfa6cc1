"""The message layer of the peer core: routing, signatures, requests and their answers (RFC 6940 6.1 to 6.3)."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, TrustPolicy
from p2psipd.proto.identity.signing import Signer, Verifier
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.bodies import method_name
from p2psipd.proto.reload.errors import (
    ConfigTooNew,
    ConfigTooOld,
    ErrorCode,
    Forbidden,
    InProgress,
    InvalidMessage,
    MessageTooLarge,
    NotFound,
    ReloadError,
    RequestTimeout,
    ResponseTooLarge,
    TtlExceeded,
)
from p2psipd.proto.reload.ids import WILDCARD, NodeId, ResourceId
from p2psipd.proto.reload.incoming import IncomingRequest
from p2psipd.proto.reload.link_layer import LinkLayer
from p2psipd.proto.reload.link_table import Link
from p2psipd.proto.reload.messages import Body, DataModel, ErrorResponse, MessageCode, PingReq, decode_body, is_request
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_parameters import PeerParameters, Randomness
from p2psipd.proto.reload.routing import Deliver, Drop, Forward, Router, ViaStore
from p2psipd.proto.reload.sealing import Sealer
from p2psipd.proto.reload.topology import Answer, OnAnswer, Topology
from p2psipd.proto.reload.transactions import MAX_SENDS, AnswerCache, Key, Outstanding
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
    decode_header,
    transit,
)

READING = (int(MessageCode.FETCH_REQ), int(MessageCode.STAT_REQ))
"""Requests that any holder of a copy may answer (only Store is bound to the responsible peer, section 7.4.1.1)."""

# Errors that are answered every day, where nobody has done anything wrong.
_ORDINARY = (NotFound, ConfigTooOld, ConfigTooNew, InProgress, ResponseTooLarge)
_IDS_DRAWN = 32
_ALL_64_BITS = (1 << 64) - 1


class Messaging(LinkLayer):
    """Messages of one node: passed on, delivered, sent and repeated."""

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
        super().__init__(credential, configuration, trust, verifier, random, parameters, now, wall)
        self._sealer = Sealer(credential, self.overlay_hash)
        self._models: dict[int, DataModel] = {k.id: k.data_model for k in configuration.kinds.values()}
        self._transaction_ids: list[int] = []
        self._outstanding: dict[Key, Outstanding] = {}
        self._awaiting: deque[tuple[float, Outstanding]] = deque()
        self._awaiting_armed = False
        self._unsent: dict[Key, None] = {}
        self._answers = AnswerCache()
        self._reassembler = Reassembler(max_message=configuration.max_message_size)
        self._via_store = ViaStore(random.getrandbits)

    def _use(self, topology: Topology) -> None:
        self.topology = topology
        self._router = Router(self.node_id, self.links, topology, self._via_store)

    @abstractmethod
    def _handle(self, request: IncomingRequest) -> None:
        """Answer a verified request."""

    @abstractmethod
    def _check_sequence(self, sequence: int, code: int, node: NodeId) -> None:
        """Raise unless the requester has our configuration document."""

    @abstractmethod
    def _configuration_differs(self, node: NodeId, ours_is_newer: bool) -> None:
        """A request of ours was refused for its configuration sequence."""

    def _greet(self, link: Link) -> None:
        self.request(NodeDestination(link.node), PingReq(b""), _ignore, on=link)

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
        if len(header.via) > self.configuration.initial_ttl:
            # Each hop adds at most one entry and takes one from the TTL; longer lists only fill memories.
            self.misbehaved(previous, "malformed", f"a Via List of {len(header.via)} entries")
            return
        # A later fragment has no message code; the Via List of an answer does no harm if it grows.
        code = 0 if header.fragment_offset else int.from_bytes(data[offset : offset + 2], "big")
        request = header.fragment_offset > 0 or is_request(code)
        try:
            if header.ttl > self.configuration.initial_ttl:
                raise TtlExceeded(f"ttl {header.ttl} is above the overlay's initial-ttl")
            if len(data) > self.configuration.max_message_size:
                raise MessageTooLarge(f"{len(data)} bytes, at most {self.configuration.max_message_size}")
            decision = self._router.route(header, previous, request, self.now, code in READING)
            if decision.__class__ is Forward:
                self._pass_on(data, header, offset, decision)
        except ReloadError as error:
            self.misbehaved(previous, "routing", str(error))
            if request:
                self._reply(header, previous, None, error, ())
            return
        if decision.__class__ is Deliver:
            self._deliver(previous, header, data, offset, decision)
        elif decision.__class__ is Drop:
            self.count(f"dropped-{decision.reason}")

    def _pass_on(self, data: bytes, header: ForwardingHeader, offset: int, decision: Forward) -> None:
        link = self.links.to(decision.node)
        if link is not None:
            message = transit(
                data, header, offset, via=decision.via, destinations=decision.destinations, ttl=header.ttl - 1
            )
            self.count("forwarded")
            self._write(link, message)

    def _deliver(self, previous: NodeId, header: ForwardingHeader, data: bytes, offset: int, decision: Deliver) -> None:
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
            contents, signer, certificates = self.opener.open(header.transaction_id, data, offset, self.wall)
        except ReloadError as error:
            # RFC 6940 section 6.3.4: a message that does not verify is dropped and not processed.
            self.misbehaved(previous, "signature" if isinstance(error, Forbidden) else "malformed", str(error))
            return
        if is_request(contents.code):
            # To read twice does no harm, so the answer to a read need not be kept for its repeat (section 6.2.1).
            key = None if contents.code in READING else (NodeId(signer.node_id), header.transaction_id)
            if key is not None:
                seen, answer = self._answers.find(key, self.now)
                if seen:
                    if answer is not None:
                        self._answer_again(answer, header, previous)
                    return
            try:
                self._check_request(header, contents.code, previous, signer)
                check_extensions(contents)
                body = decode_body(contents.code, contents.body, self._models)
            except ReloadError as error:
                self._refused(signer, contents.code, previous, error)
                self._reply(header, previous, None, error, ())
                return

            def reply(result: Body | ReloadError, extra: Iterable[bytes]) -> None:
                if isinstance(result, ReloadError):
                    self._refused(signer, contents.code, previous, result)
                self._reply(header, previous, key, result, extra)

            request = IncomingRequest(
                contents.code,
                body,
                signer,
                previous,
                certificates,
                self.configuration.initial_ttl - header.ttl + 1,
                decision.to_own_id,
                reply,
            )
            self._handle(request)
            if key is not None and not request.answered:
                self._answers.put(key, None, self.now)
        else:
            self._answer(header, contents.code, contents.body, signer, certificates)

    def _refused(self, signer: NodeCertificate, code: int, previous: NodeId, error: ReloadError) -> None:
        if not isinstance(error, _ORDINARY):
            node = NodeId(signer.node_id)
            link = self.links.to(node) if node == previous else None
            self.emit(peer_io.Refused(None if link is None else link.id, node, method_name(code), error))

    def _check_request(self, header: ForwardingHeader, code: int, previous: NodeId, signer: NodeCertificate) -> None:
        check_options(header, DESTINATION_CRITICAL)
        self._check_sequence(header.configuration_sequence, code, NodeId(signer.node_id))

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
        message = self._answer_octets(header, previous, result, certificates)
        if len(message) > self.configuration.max_message_size:
            message = self._too_large(header, previous, message)
        if key is not None:
            self._answers.put(key, message, self.now)
        limit = header.max_response_length
        if limit and len(message) > limit:
            message = self._too_large(header, previous, message)
        self._route_own(message, previous)

    def _answer_octets(
        self, header: ForwardingHeader, previous: NodeId, body: Body, certificates: Iterable[bytes] = ()
    ) -> bytes:
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
            answer_options(header) if header.options else (),
        )
        return self._sealer.seal(answer_header, body.code, body.encode(), certificates)

    def _too_large(self, header: ForwardingHeader, previous: NodeId, answer: bytes) -> bytes:
        error = ErrorResponse.of(ResponseTooLarge(f"{len(answer)} bytes"))
        return self._answer_octets(header, previous, error)

    def _answer_again(self, answer: bytes, header: ForwardingHeader, previous: NodeId) -> None:
        """Send an answer given before to a repeat of its request that may have come another way, or with another
        max_response_length: no signature covers the Destination List, which leads back along the path of this one."""
        limit = header.max_response_length
        if limit and len(answer) > limit:
            message = self._too_large(header, previous, answer)
        else:
            old, offset = decode_header(answer)
            back = answer_destinations(header.via, previous)
            message = transit(answer, old, offset, via=(), destinations=back, ttl=old.ttl)
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
        node = NodeId(signer.node_id)
        waiting = self._outstanding.get(header.transaction_id)
        if waiting is None:
            waiting = self._outstanding.get((header.transaction_id, node))
        if waiting is None:
            self.count("answer-late")
            return
        if waiting.node is not None and node != waiting.node:
            self.misbehaved(node, "answerer", f"answered for {waiting.node.hex()}")
            return
        if waiting.resource is not None and not self.topology.plausible_answerer(
            waiting.resource, node, waiting.answer_code - 1 in READING
        ):
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
                self._configuration_differs(node, error.code == ErrorCode.CONFIG_TOO_NEW)
                return
        del self._outstanding[waiting.key]
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

        `via` pins the first node, `on` the very link of the first transmission.  A request to
        ourselves is answered at once.
        """
        # Whoever is at the other end may answer for the wildcard (RFC 6940 section 6.3.4).
        node = target.node if isinstance(target, NodeDestination) and target.node != WILDCARD else None
        resource = target.resource if isinstance(target, ResourceDestination) else None
        transaction_id = self._transaction_id()
        if (
            not through
            and via is None
            and (node == self.node_id or (resource is not None and self.topology.responsible(resource)))
        ):
            self._local(body, on_answer, certificates, node is not None, sealer or self._sealer)
            return transaction_id
        path = (*through, target)
        try:
            sealed = (sealer or self._sealer).seal_contents(transaction_id, body.code, body.encode(), certificates)
            message = self._request_octets(transaction_id, path, sealed, sequence)
        except MessageTooLarge as error:
            on_answer(Answer(None, error, None, {}, 0.0, 0))
            return transaction_id
        waiting = Outstanding(
            transaction_id, body.code + 1, message, path[0], node, resource, via, self._models, on_answer, self.now
        )
        self._outstanding[transaction_id] = waiting
        self._transmit(waiting, on)
        return transaction_id

    def request_each(
        self, nodes: Iterable[NodeId], body: Body, on_answer: OnAnswer, certificates: Collection[bytes] = ()
    ) -> None:
        """Send the same signed request to each of `nodes`; `on_answer` is called for each, at once where it fails at
        once.

        No signature covers the Destination List (RFC 6940 section 6.3.4), so neighbours get one transaction with one
        signature, over their own links only.  A node that is not linked gets a transaction of its own: peers on the
        way may know the way back by the transaction id (section 6.1.2).
        """
        transaction_id = self._transaction_id()
        sealed: bytes | None = None
        for node in nodes:
            target = NodeDestination(node)
            link = self.links.to(node)
            if link is None:
                self.request(target, body, on_answer, certificates=certificates)
                continue
            try:
                if sealed is None:
                    sealed = self._sealer.seal_contents(transaction_id, body.code, body.encode(), certificates)
                message = self._request_octets(transaction_id, (target,), sealed)
            except MessageTooLarge as error:
                on_answer(Answer(None, error, None, {}, 0.0, 0))
                continue
            key = (transaction_id, node)
            waiting = Outstanding(
                key, body.code + 1, message, target, node, None, None, self._models, on_answer, self.now
            )
            self._outstanding[key] = waiting
            self._transmit(waiting, link)

    def _request_octets(
        self, transaction_id: int, path: tuple[Destination, ...], sealed: bytes, sequence: int | None = None
    ) -> bytes:
        """A request with its header.

        :raises MessageTooLarge: for the overlay; the neighbour would close the link, and with it lose what others
            have on the way.
        """
        configuration = self.configuration
        header = ForwardingHeader(
            self.overlay_hash,
            configuration.sequence if sequence is None else sequence,
            configuration.initial_ttl,
            0,
            True,
            transaction_id,
            0,
            (),
            path,
        )
        message = header.encode(len(sealed)) + sealed
        if len(message) > configuration.max_message_size:
            raise MessageTooLarge(f"{len(message)} bytes, at most {configuration.max_message_size}")
        return message

    def _transaction_id(self) -> int:
        """64 random bits, drawn many at a time: the system's randomness is dear to ask."""
        if not self._transaction_ids:
            drawn = self._random.getrandbits(64 * _IDS_DRAWN)
            self._transaction_ids = [drawn >> 64 * at & _ALL_64_BITS for at in range(_IDS_DRAWN)]
        return self._transaction_ids.pop()

    def _local(
        self, body: Body, on_answer: OnAnswer, certificates: Iterable[bytes], to_own_id: bool, sealer: Sealer
    ) -> None:
        signer = sealer.credential.certificate
        bucket = self.opener.by_hash((*certificates, signer.der))

        def reply(result: Body | ReloadError, extra: Iterable[bytes]) -> None:
            found = self.opener.by_hash(extra)
            if isinstance(result, ReloadError):
                on_answer(Answer(None, result, self.node_id, found, 0.0, 0))
            else:
                on_answer(Answer(result, None, self.node_id, found, 0.0, 0))

        self._handle(IncomingRequest(body.code, body, signer, self.node_id, bucket, 0, to_own_id, reply))

    def _transmit(self, waiting: Outstanding, on: Link | None = None) -> None:
        waiting.sends += 1
        waiting.sent_at = self.now
        link = on or self._first_link(waiting)
        if link is not None:
            if waiting.sends > 1:
                self._renew_sequence(waiting)
            self._write(link, waiting.message)
        else:
            self.count("unroutable")
            self._unsent[waiting.key] = None
        awaiting, outstanding = self._awaiting, self._outstanding
        while awaiting and awaiting[0][1].key not in outstanding:
            awaiting.popleft()
        awaiting.append((self.now + self.configuration.reliability_timer_ms / 1000, waiting))
        if not self._awaiting_armed:
            self._awaiting_armed = True
            self.call_at(awaiting[0][0], self._look_for_answers)

    def _renew_sequence(self, waiting: Outstanding) -> None:
        """A repeat carries the configuration sequence of now, which no signature covers."""
        message = waiting.message
        sequence = self.configuration.sequence.to_bytes(2, "big")
        if message[8:10] not in (sequence, b"\xff\xff"):
            waiting.message = message[:8] + sequence + message[10:]

    def _route_gained(self) -> None:
        """A link came up: what found no way at its last transmission goes now, not at its next timer."""
        unsent, self._unsent = self._unsent, {}
        for key in unsent:
            waiting = self._outstanding.get(key)
            link = None if waiting is None else self._first_link(waiting)
            if waiting is None or link is None:
                continue
            self._write(link, waiting.message)

    def _first_link(self, waiting: Outstanding) -> Link | None:
        if waiting.via is not None:
            link = self.links.to(waiting.via)
            if link is not None and not (link.suspect and waiting.sends > 1):
                return link
        target = waiting.target
        hop: NodeId | None = None
        if isinstance(target, NodeDestination):
            link = self.links.to(target.node)
            if link is not None or waiting.is_shared:
                return link
            hop = self.topology.next_hop(target.node)
        elif isinstance(target, ResourceDestination):
            hop = self.topology.next_hop(target.resource, None, waiting.answer_code - 1 in READING)
        return None if hop is None else self.links.to(hop)

    def _look_for_answers(self) -> None:
        """Repeat what is still not answered.  Each transmission waits equally long, so they wait in a queue: a
        timer of its own for each would outlive nearly every request.
        """
        awaiting = self._awaiting
        while awaiting and (awaiting[0][0] <= self.now or awaiting[0][1].key not in self._outstanding):
            _, waiting = awaiting.popleft()
            if self._outstanding.get(waiting.key) is waiting:
                self._reliability_timer(waiting)
        self._awaiting_armed = bool(awaiting)
        if awaiting:
            self.call_at(awaiting[0][0], self._look_for_answers)

    def _reliability_timer(self, waiting: Outstanding) -> None:
        if waiting.sends < MAX_SENDS:
            self.count("retransmitted")
            self._transmit(waiting)
            return
        del self._outstanding[waiting.key]
        error = RequestTimeout(f"no answer to {MAX_SENDS} transmissions in {self.now - waiting.started_at:.1f} s")
        waiting.on_answer(Answer(None, error, None, {}, self.now - waiting.started_at, 0))

    def forget(self, transaction_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._outstanding.pop(transaction_id, None)

    def send(
        self, node: NodeId, body: Body, on_answer: OnAnswer | None = None, certificates: Iterable[bytes] = ()
    ) -> None:
        """A signed request to a linked node."""
        if self.links.to(node) is not None:
            self.request(NodeDestination(node), body, on_answer or _ignore, certificates=certificates)

    def send_to_resource(self, target: ResourceId, body: Body, on_answer: OnAnswer, via: NodeId | None = None) -> None:
        """A signed request to whoever is responsible for `target`."""
        self.request(ResourceDestination(target), body, on_answer, via=via)

    # -- signatures ----------------------------------------------------------------------------------------

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
        return self.opener.verifier.verify(certificate, signature[0], signature[1], data, signature[2:])


def _ignore(_: Answer) -> None:
    """Nobody waits for this answer."""

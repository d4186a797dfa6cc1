"""The peer core against a neighbour worked by hand: what it refuses, repeats, passes on and answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import pytest

from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.identity.signing import NullCredential, null_certificate
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import (
    ConfigTooNew,
    ConfigTooOld,
    Forbidden,
    InvalidMessage,
    MessageTooLarge,
    NotFound,
    ReloadError,
    RequestTimeout,
    ResponseTooLarge,
    TtlExceeded,
    UnknownExtension,
    UnknownKind,
    UnsupportedForwardingOption,
)
from p2psipd.proto.reload.ids import WILDCARD, NodeId, resource_id
from p2psipd.proto.reload.kinds import CERTIFICATE_BY_NODE, SIP_REGISTRATION
from p2psipd.proto.reload.messages import (
    CANDIDATE_HOST,
    CONFIG_UPDATE_KIND,
    TLS_TCP_FH_NO_ICE,
    AppAttachAns,
    AppAttachReq,
    ArrayEntry,
    AttachAns,
    AttachReq,
    Body,
    ConfigUpdateAns,
    ConfigUpdateReq,
    DataValue,
    FetchAns,
    FetchReq,
    FindAns,
    FindReq,
    IceCandidate,
    JoinReq,
    LeaveReq,
    PingAns,
    PingReq,
    ProbeAns,
    ProbeReq,
    RouteQueryAns,
    RouteQueryReq,
    StatAns,
    StatReq,
    StoreAns,
    StoredDataSpecifier,
    StoreKindData,
    StoreReq,
    UpdateReq,
)
from p2psipd.proto.reload.peer import Peer
from p2psipd.proto.reload.sealing import Sealer
from p2psipd.proto.reload.topology import Answer
from p2psipd.proto.reload.values import sign_value
from p2psipd.proto.reload.wire import (
    DESTINATION_CRITICAL,
    FORWARD_CRITICAL,
    RESPONSE_COPY,
    Extension,
    ForwardingOption,
    MessageContents,
    NodeDestination,
    OpaqueDestination,
    ResourceDestination,
    decode_header,
    fragment,
)
from tests.proto.reload.by_hand import HASH, Hand, Heard, is_error, misbehaviours, read
from tests.proto.reload.stapled import OVERLAY, WALL, Node, World

ALL_OF_IT = (StoredDataSpecifier(CERTIFICATE_BY_NODE, 0, ((0, 0xFFFFFFFF),), None),)
MILLISECONDS = int(WALL * 1000)


@pytest.fixture
def lone() -> Node:
    """A peer that is the whole overlay, and therefore responsible for everything."""
    return World(seed=5).add(first=True)


@pytest.fixture
def hand(lone: Node) -> Hand:
    """A neighbour of the lone peer that has not joined."""
    return Hand(lone)


def own_certificate(hand: Hand, storage_time: int = MILLISECONDS, value: bytes = b"certificate") -> StoreReq:
    """A Store of the neighbour's CERTIFICATE_BY_NODE, as it may make it."""
    resource = resource_id(hand.node_id)
    data = ArrayEntry(0, DataValue(True, value))
    credential = NullCredential(hand.certificate)
    stored = sign_value(resource, CERTIFICATE_BY_NODE, data, storage_time, 3600, hand.certificate, credential.sign)
    return StoreReq(resource, 0, (StoreKindData(CERTIFICATE_BY_NODE, 0, (stored,)),))


def fetch_of(hand: Hand) -> FetchReq:
    return FetchReq(resource_id(hand.node_id), ALL_OF_IT)


def test_a_cancelled_timer_wakes_nobody() -> None:
    """What need not be done any more is neither done nor a reason to be called."""
    peer, done = World(seed=5).add(first=True).peer, []
    first = peer.next_timer()
    assert first is not None
    soon = peer.call_at(first - 0.02, lambda: done.append("soon"))
    peer.call_at(first - 0.01, lambda: done.append("later"))
    assert peer.next_timer() == first - 0.02
    soon.cancel()
    assert peer.next_timer() == first - 0.01
    peer.call_at(first - 0.005, lambda: done.append("never")).cancel()
    peer.handle_timer(first - 0.001, 0.0)
    assert done == ["later"]
    assert peer.next_timer() == first


# -- signatures and repeats --------------------------------------------------------------------------------


def test_a_forged_signature_is_dropped_and_counted(lone: Node, hand: Hand) -> None:
    """A message whose signature does not verify is neither processed nor answered (RFC 6940 section 6.3.4)."""
    message = hand.message(own_certificate(hand))
    assert hand.ask_octets(message[:-1] + bytes((message[-1] ^ 1,))) is None
    assert lone.peer.counts["misbehaved-signature"] == 1
    assert misbehaviours(lone) == ["signature"]
    assert lone.storage.resource_count == 0


def test_a_signer_without_a_valid_certificate_is_dropped(lone: Node, hand: Hand) -> None:
    """Expired, of another overlay, or not in the message at all: the message is dropped."""
    node = hand.node_id
    for certificate in (
        null_certificate(node, "x@overlay.example", OVERLAY, not_after=WALL - 1),
        null_certificate(node, "x@other.example", "other.example"),
    ):
        hand.sealer = Sealer(NullCredential(certificate), HASH)
        assert hand.ask(PingReq()) is None
    assert lone.peer.counts["misbehaved-signature"] == 2


def test_a_replayed_store_is_answered_the_same_and_done_once(lone: Node, hand: Hand) -> None:
    """A repeat within the request's lifetime gets the answer of the first, and nothing is stored again."""
    message = hand.message(own_certificate(hand))
    first = hand.ask_octets(message)
    assert isinstance(first, StoreAns) and first.kinds[0].generation == 1
    writes = sum(isinstance(event, peer_io.WriteRecords) for event in lone.events)
    assert hand.ask_octets(message) == first
    assert sum(isinstance(event, peer_io.WriteRecords) for event in lone.events) == writes


def test_the_answer_to_a_read_is_not_kept(lone: Node, hand: Hand) -> None:
    """A repeated Fetch is processed again, to an equal answer (RFC 6940 section 6.2.1), and costs no memory."""
    hand.ask(own_certificate(hand))
    message = hand.message(fetch_of(hand))
    first = hand.ask_octets(message)
    assert isinstance(first, FetchAns) and len(first.kinds[0].values) == 1
    kept = len(lone.peer._answers)
    assert hand.ask_octets(message) == first
    assert lone.peer.counts["request-0x9"] == 2
    assert len(lone.peer._answers) == kept


def test_a_store_replayed_after_its_lifetime_is_too_old(lone: Node, hand: Hand) -> None:
    """After 15 seconds the answer is forgotten, and the storage time protects the value."""
    message = hand.message(own_certificate(hand))
    assert isinstance(hand.ask_octets(message), StoreAns)
    lone.world.run(16)
    answer = hand.ask_octets(message)
    assert isinstance(answer, ReloadError) and answer.code == 0x9


def test_the_answer_to_a_repeat_goes_back_the_way_of_the_repeat(lone: Node, hand: Hand) -> None:
    """A requester repeats because the first path may be dead, so the answer takes the second one."""
    other = Hand(lone)
    origin = NodeId(bytes(15) + b"\x07")
    message = hand.message(PingReq(), transaction=99, via=(NodeDestination(origin),))
    hand.send(message)
    other.send(message)
    (first,), (second,) = ([h for h in one.heard if isinstance(h.body, PingAns)] for one in (hand, other))
    assert first.header.destinations == (NodeDestination(hand.node_id), NodeDestination(origin))
    assert second.header.destinations == (NodeDestination(other.node_id), NodeDestination(origin))
    assert first.body == second.body


def test_an_answer_from_another_node_is_not_taken(lone: Node, hand: Hand) -> None:
    """The answer to a message sent to a Node-ID must be signed by that node (section 6.3.4)."""
    liar = Hand(lone)
    lone.put(peer_io.Ping(1, hand.node_id))
    lone.world.run(0.1)
    request = hand.requests(PingReq)[-1].header
    liar.send(liar.message(PingAns(1, 2), transaction=request.transaction_id))
    assert 1 not in lone.outcomes and "answerer" in misbehaviours(lone)
    hand.send(hand.message(PingAns(1, 2), transaction=request.transaction_id))
    assert lone.outcomes[1].node == hand.node_id


def test_an_answer_of_the_wrong_kind_is_not_taken(lone: Node, hand: Hand) -> None:
    """An answer has its request's code plus one, or is an error."""
    lone.put(peer_io.Ping(1, hand.node_id))
    lone.world.run(0.1)
    request = hand.requests(PingReq)[-1].header
    hand.send(hand.message(ConfigUpdateAns(), transaction=request.transaction_id))
    assert 1 not in lone.outcomes and misbehaviours(lone) == ["answer"]


# -- the forwarding header ---------------------------------------------------------------------------------


def test_a_message_of_another_overlay_is_dropped(lone: Node, hand: Hand) -> None:
    """The overlay field must be ours (section 6.3.2); local policy is to drop in silence."""
    assert hand.ask(PingReq(), overlay=HASH ^ 1) is None
    assert misbehaviours(lone) == ["overlay"]


def test_a_message_of_another_version_is_dropped(lone: Node, hand: Hand) -> None:
    """A version that is not 1.0 cannot be read on."""
    message = bytearray(hand.message(PingReq()))
    message[10] = 0x0B
    assert hand.ask_octets(bytes(message)) is None
    assert misbehaviours(lone) == ["malformed"]


def test_ttl_exceeded_on_the_way(lone: Node, hand: Hand) -> None:
    """A message for another node that arrives with TTL 0 goes no farther, and its sender is told."""
    other = Hand(lone)
    answer = hand.ask(PingReq(), (NodeDestination(other.node_id),), ttl=0)
    assert is_error(answer, TtlExceeded)
    assert not other.requests(PingReq)


def test_ttl_zero_at_its_destination_is_fine(hand: Hand) -> None:
    """The TTL only limits passing on."""
    assert isinstance(hand.ask(PingReq(), ttl=0), PingAns)


def test_a_ttl_above_the_initial_one_is_refused(hand: Hand) -> None:
    """Error_TTL_Exceeded for a TTL that nobody may start with (section 6.3.2)."""
    assert is_error(hand.ask(PingReq(), ttl=21), TtlExceeded)


def test_passing_on_takes_from_the_ttl_and_adds_to_the_via_list(lone: Node, hand: Hand) -> None:
    """A forwarder appends the node that it received from, and leaves contents and signature alone."""
    other = Hand(lone)
    message = hand.message(PingReq(b"pad"), (NodeDestination(other.node_id),))
    hand.send(message)
    (heard,) = [h for h in other.requests(PingReq) if h.body.padding]
    assert (heard.header.ttl, heard.header.via) == (19, (NodeDestination(hand.node_id),))
    assert heard.data[-200:] == message[-200:]


def test_an_answer_is_passed_on_without_a_via_list(lone: Node, hand: Hand) -> None:
    """Only requests need to be found back from."""
    other = Hand(lone)
    way = (NodeDestination(lone.peer.node_id), NodeDestination(other.node_id))
    hand.send(hand.message(PingAns(1, 2), way))
    (heard,) = [h for h in other.heard if isinstance(h.body, PingAns)]
    assert heard.header.via == () and heard.header.destinations == (NodeDestination(other.node_id),)


def test_a_message_for_an_unknown_node_is_dropped_by_the_one_responsible(lone: Node, hand: Hand) -> None:
    """A Node-ID that is ours to know and not connected: silence (section 6.1.1)."""
    assert hand.ask(PingReq(), (NodeDestination(NodeId(b"\x11" * 16)),)) is None
    assert lone.peer.counts["dropped-no-route"] == 1


def test_the_wildcard_is_whoever_reads_it(lone: Node, hand: Hand) -> None:
    """A message to the wildcard Node-ID is consumed by the neighbour, and any signer may answer ours."""
    assert isinstance(hand.ask(PingReq(), (NodeDestination(WILDCARD),)), PingAns)
    answers: list[Any] = []
    (link,) = lone.peer.links
    lone.peer.request(NodeDestination(WILDCARD), PingReq(), answers.append, on=link)
    lone.perform(lone.peer._out)
    lone.world.run(0.1)
    request = hand.requests(PingReq)[-1].header
    hand.send(hand.message(PingAns(1, 2), transaction=request.transaction_id))
    assert answers[0].node == hand.node_id


def test_an_unknown_opaque_id_is_dropped(lone: Node, hand: Hand) -> None:
    """Only the node that made an opaque ID can expand it (section 6.1.3)."""
    hand.send(hand.message(PingAns(1, 2), (OpaqueDestination(b"never made"),)))
    assert lone.peer.counts["dropped-opaque-unknown"] == 1


def test_a_via_list_longer_than_any_path_is_refused(lone: Node, hand: Hand) -> None:
    """A hop adds one entry and takes one from the TTL, so more entries than that only fill memories."""
    assert hand.ask(PingReq(), via=(NodeDestination(hand.node_id),) * 21) is None
    assert misbehaviours(lone) == ["malformed"]


def test_lists_that_do_not_fit_when_expanded_raise_nothing(lone: Node, hand: Hand) -> None:
    """An opaque ID that expands beside a destination list of full length is the sender's fault, not ours."""
    other = Hand(lone)
    hand.send(hand.message(PingReq(b"x"), (NodeDestination(other.node_id),), via=(NodeDestination(hand.node_id),) * 18))
    (opaque,) = other.requests(PingReq)[-1].header.via
    assert isinstance(opaque, OpaqueDestination)
    many = (opaque, *(NodeDestination(other.node_id),) * 3600)
    other.send(other.message(PingAns(1, 2), many))
    assert misbehaviours(lone) == ["routing"]
    assert isinstance(other.ask(PingReq()), PingAns)


def test_forwarding_options(lone: Node, hand: Hand) -> None:
    """Whoever must understand an option and does not says so; one marked RESPONSE_COPY comes back unmarked."""
    other = Hand(lone)
    there = (NodeDestination(other.node_id),)
    answer = hand.ask(PingReq(), there, options=(ForwardingOption(9, FORWARD_CRITICAL, b""),))
    assert is_error(answer, UnsupportedForwardingOption)
    answer = hand.ask(PingReq(), options=(ForwardingOption(9, DESTINATION_CRITICAL, b""),))
    assert is_error(answer, UnsupportedForwardingOption)
    assert isinstance(hand.ask(PingReq(), options=(ForwardingOption(9, RESPONSE_COPY, b"here"),)), PingAns)
    assert hand.heard[-1].header.options == (ForwardingOption(9, 0, b"here"),)


def test_a_critical_message_extension(hand: Hand) -> None:
    """An extension that must be understood and is not: Error_Unknown_Extension (section 6.3.3)."""
    for critical, kind in ((False, PingAns), (True, UnknownExtension)):
        message = hand.message(PingReq())
        header, offset = decode_header(message)
        contents = MessageContents(PingReq.code, PingReq().encode(), (Extension(7, critical, b"?"),)).encode()
        old = MessageContents(PingReq.code, PingReq().encode()).encode()
        tail = contents + message[offset + len(old) :]
        answer = hand.ask_octets(header.encode(len(tail)) + tail)
        assert type(answer) is kind


def test_an_unknown_method_is_an_invalid_message(lone: Node, hand: Hand) -> None:
    """A request of a code that we do not serve is answered Error_Invalid_Message."""

    class Experiment(PingReq):
        code = 0x23

    assert is_error(hand.ask(Experiment()), InvalidMessage)


def test_a_malformed_body_is_an_invalid_message(hand: Hand) -> None:
    """A signed request whose body does not decode is told so."""

    class Broken(PingReq):
        def _write(self) -> bytes:
            return b"\xff\xff"

    assert is_error(hand.ask(Broken()), InvalidMessage)


def test_max_response_length(hand: Hand) -> None:
    """An answer that is longer than the requester wants is replaced by Error_Response_Too_Large."""
    assert isinstance(hand.ask(own_certificate(hand, value=bytes(2000))), StoreAns)
    assert is_error(hand.ask(fetch_of(hand), max_response_length=900), ResponseTooLarge)
    assert isinstance(hand.ask(fetch_of(hand), max_response_length=9000), FetchAns)


def test_a_message_above_the_overlay_s_limit_is_refused(hand: Hand) -> None:
    """Error_Message_Too_Large for a message that the configuration does not allow (section 6.6)."""
    assert is_error(hand.ask(PingReq(bytes(64_900))), MessageTooLarge)


def test_our_own_message_above_the_limit_never_leaves(lone: Node, hand: Hand) -> None:
    """A Store that fits in no message fails at once; sent, it would cost us the link."""
    world = lone.world
    second = world.add()
    world.run(10, until=lambda: second.peer.topology.ready)
    owner = second.peer.node_id
    values = tuple(peer_io.StoreValue(bytes(9000), 60, position=n) for n in range(8))
    outcomes = [
        node.ask(lambda ref: peer_io.Store(ref, resource_id(owner), CERTIFICATE_BY_NODE, values))
        for node in (lone, second)
    ]
    assert any(is_error(outcome, MessageTooLarge) for outcome in outcomes)
    assert lone.peer.is_linked(owner)


def test_fragments_are_joined_at_the_destination(hand: Hand) -> None:
    """Fragments that arrive in any order are one message; each alone is nothing (section 6.7)."""
    message = hand.message(own_certificate(hand, value=bytes(2000)))
    header, offset = decode_header(message)
    pieces = fragment(message, header, offset, 600)
    assert len(pieces) > 3
    for piece in pieces[:0:-1]:
        assert hand.ask_octets(piece) is None
    assert isinstance(hand.ask_octets(pieces[0]), StoreAns)


def test_fragments_are_passed_on_as_they_are(lone: Node, hand: Hand) -> None:
    """A node on the way routes each fragment by its own header and joins nothing."""
    other = Hand(lone)
    message = hand.message(PingReq(random.Random(1).randbytes(1500)), (NodeDestination(other.node_id),))
    pieces = fragment(message, *decode_header(message), 600)
    other.heard.clear()
    arrived: list[bytes] = []
    other.put = lambda item: arrived.append(getattr(item, "data", b""))  # type: ignore[method-assign]
    for piece in pieces:
        hand.send(piece)
    assert sum(piece[-100:] in data for piece in pieces for data in arrived) == len(pieces)


# -- our own requests --------------------------------------------------------------------------------------


def test_a_request_is_sent_five_times_with_one_transaction_id(lone: Node, hand: Hand) -> None:
    """Every overlay-reliability-timer the same request again, five in all, then Error_Request_Timeout."""
    outcome = lone.ask(lambda ref: peer_io.Ping(ref, hand.node_id))
    assert is_error(outcome, RequestTimeout)
    pings = hand.requests(PingReq)
    assert len(pings) == 5
    assert len({heard.header.transaction_id for heard in pings}) == 1
    assert 5.0 <= lone.world.now - 1000 < 6.0


def test_an_answer_ends_the_repeats(lone: Node, hand: Hand) -> None:
    """After the answer nothing is sent again, and a second answer is only counted."""
    lone.put(peer_io.Ping(1, hand.node_id))
    lone.world.run(1.5)
    number = hand.requests(PingReq)[-1].header.transaction_id
    for _ in range(2):
        hand.send(hand.message(PingAns(1, 2), transaction=number))
    lone.world.run(5)
    assert lone.outcomes[1].time == 2
    assert len(hand.requests(PingReq)) == 2
    assert lone.peer.counts["answer-late"] == 1


def each(node: Node, nodes: Sequence[NodeId], body: Body, answers: list[Answer], *certificates: bytes) -> None:
    """Have `node` send `body` to each of `nodes` now."""
    send = partial(node.peer.request_each, nodes, body, answers.append, certificates)
    node.peer.call_at(node.world.now, send)
    node.arm()
    node.world.run(0.5)


def test_neighbours_are_sent_one_signed_request(lone: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several nodes get the same transaction, signed once; each answers, and is repeated to, for itself."""
    hands = [Hand(lone) for _ in range(3)]
    stranger = Hand(lone)
    answers: list[Answer] = []
    lone.world.run(1)
    nodes = [hand.node_id for hand in hands]
    signed: list[bytes] = []
    sign = NullCredential.sign
    monkeypatch.setattr(NullCredential, "sign", lambda self, data: (signed.append(data), sign(self, data))[1])
    each(lone, nodes, PingReq(b"to all"), answers)
    assert len(signed) == 1
    heard = [hand.requests(PingReq)[-1] for hand in hands]
    assert [one.header.destinations for one in heard] == [(NodeDestination(node),) for node in nodes]
    assert len({one.data[decode_header(one.data)[1] :] for one in heard}) == 1
    (number,) = {one.header.transaction_id for one in heard}

    before = [len(hand.requests(PingReq)) for hand in hands]
    for hand in (hands[0], hands[0], stranger):
        hand.send(hand.message(PingAns(1, 2), transaction=number))
    assert [answer.node for answer in answers] == [nodes[0]]
    assert lone.peer.counts["answer-late"] == 2
    lone.world.run(1)
    assert [len(hand.requests(PingReq)) for hand in hands] == [before[0], before[1] + 1, before[2] + 1]
    assert {hand.requests(PingReq)[-1].header.transaction_id for hand in hands} == {number}
    hands[2].send(hands[2].message(PingAns(3, 4), transaction=number))
    lone.world.run(10)
    assert [answer.node for answer in answers[:2]] == [nodes[0], nodes[2]]
    assert [type(answer.error) for answer in answers[2:]] == [RequestTimeout]


def test_who_is_no_neighbour_gets_a_transaction_of_its_own(lone: Node) -> None:
    """Peers on the way may know an answer's way back by its transaction id (section 6.1.2)."""
    hands = [Hand(lone) for _ in range(2)]
    behind = NodeId(bytes(15) + b"\x01")
    other = null_certificate(bytes(15) + b"\x02", "other@overlay.example", OVERLAY).der
    lone.world.run(1)
    lone.peer.topology.next_hop = lambda *_: hands[0].node_id  # type: ignore[method-assign]
    each(lone, [behind, *(hand.node_id for hand in hands)], PingReq(b"to all"), [], other)
    sent = [heard for hand in hands for heard in hand.requests(PingReq) if heard.body.padding == b"to all"]
    assert all(other in heard.data for heard in sent)
    numbers = {heard.header.destinations[0]: heard.header.transaction_id for heard in sent}
    direct = {numbers[NodeDestination(hand.node_id)] for hand in hands}
    assert len(sent) == 3
    assert len(direct) == 1 and numbers[NodeDestination(behind)] not in direct


def test_what_several_were_sent_goes_over_their_own_links_only(lone: Node) -> None:
    """Nobody passes it on, who might be one of them: it waits for the link to come back."""
    hands = [Hand(lone) for _ in range(2)]
    answers: list[Answer] = []
    lone.world.run(1)
    lone.peer.topology.next_hop = lambda *_: hands[1].node_id  # type: ignore[method-assign]
    each(lone, [hand.node_id for hand in hands], PingReq(b"to all"), answers)
    lone.put(peer_io.LinkDown(hands[0].theirs, "gone"))
    lone.world.run(10)
    addressed = {heard.header.destinations[0] for heard in hands[1].requests(PingReq) if heard.body.padding}
    assert addressed == {NodeDestination(hands[1].node_id)}
    assert [type(answer.error) for answer in answers] == [RequestTimeout] * 2


def test_what_found_no_link_goes_in_the_order_it_was_sent(lone: Node) -> None:
    """When a link comes up; the order depends on nothing but what happened, so that a run can be repeated."""
    hand = Hand(lone)
    lone.world.run(1)
    lone.put(peer_io.LinkDown(hand.theirs, "gone"))
    nodes = [NodeId(bytes(15) + bytes((number,))) for number in range(1, 30)]
    lone.peer.topology.next_hop = lambda *_: next(iter(lone.peer.linked()), None)  # type: ignore[method-assign]
    each(lone, nodes, PingReq(b"later"), [])
    again = Hand(lone)
    lone.world.run(0.1)
    late = [heard.header.destinations[0] for heard in again.requests(PingReq) if heard.body.padding]
    assert late == [NodeDestination(node) for node in nodes]


def test_more_than_fits_fails_at_once_for_each(lone: Node) -> None:
    """A message above the overlay's limit, or with more certificates than a security block holds, never leaves."""
    hands = [Hand(lone) for _ in range(2)]
    lone.world.run(1)
    for body, certificates in ((PingReq(bytes(65000)), ()), (PingReq(b"x"), (bytes(40000), bytes(40001)))):
        answers: list[Answer] = []
        each(lone, [hand.node_id for hand in hands], body, answers, *certificates)
        assert [type(answer.error) for answer in answers] == [MessageTooLarge] * 2
        lone.peer.request(NodeDestination(hands[0].node_id), body, answers.append, certificates=certificates)
        assert type(answers[-1].error) is MessageTooLarge


def test_a_repeat_is_asked_for_its_own_max_response_length(lone: Node, hand: Hand) -> None:
    """Who repeats another's request with no room for the answer does not spoil the answer to it."""
    store = own_certificate(hand)
    small = hand.message(store, transaction=77, max_response_length=1)
    assert is_error(hand.ask_octets(small), ResponseTooLarge)
    assert isinstance(hand.ask(store, transaction=77), StoreAns)
    assert is_error(hand.ask_octets(small), ResponseTooLarge)
    assert lone.peer.counts["request-0x7"] == 1


def test_the_copies_of_a_record_are_one_signed_request() -> None:
    """The responsible peer signs once for all other holders, and learns who has taken it; a holder that it has no
    link to gets the same another way."""
    world = World(seed=9)
    world.overlay(9)
    stores: list[tuple[NodeId, Heard]] = []
    for node in world.nodes:

        def deliver(previous: NodeId, header: Any, data: bytes, *rest: Any, node: Node = node) -> None:
            heard = read(data)
            if isinstance(heard.body, StoreReq):
                stores.append((node.peer.node_id, heard))
            Peer._deliver(node.peer, previous, header, data, *rest)

        node.peer._deliver = deliver  # type: ignore[method-assign]

    value = peer_io.StoreValue(b"certificate", 3600, position=0)
    for cut in (False, True):
        stores.clear()
        owner = world.nodes[cut]
        resource = resource_id(owner.peer.node_id)
        responsible = next(node for node in world.nodes if node.peer.topology.responsible(resource))
        holders = list(responsible.peer.topology.replica_nodes(resource))
        if cut:
            # The owner is sent a copy as well, since the kind is an array.
            last = next(n for n in reversed(holders) if n != owner.peer.node_id)
            far = next(node for node in world.nodes if node.peer.node_id == last)
            for node, other in ((far, responsible), (responsible, far)):
                node.peer.call_at(world.now, partial(node.peer.drop_link, other.peer.node_id, "released"))
                node.arm()
            world.run(0.1)
            assert not responsible.peer.is_linked(last)
            hop = next(n for n in holders if n not in (last, owner.peer.node_id))
            responsible.peer.topology.next_hop = lambda *_, hop=hop: hop  # type: ignore[method-assign, misc]
        responsible.events.clear()
        owner.ask(partial(peer_io.Store, name=resource, kind=CERTIFICATE_BY_NODE, values=(value,)))
        world.run(0.4)
        copies = {node: heard for node, heard in stores if heard.body.replica_number}
        assert sum(resource in node.storage for node in world.nodes) == 8
        assert set(copies) >= set(holders)
        assert {heard.body.replica_number for heard in copies.values()} == {1}
        told = {event.node for event in responsible.events if isinstance(event, peer_io.Replicated)}
        assert told == set(holders)
        numbers = [copies[node].header.transaction_id for node in holders]
        assert len(set(numbers)) == 1 + cut
        if cut:
            assert numbers.count(copies[last].header.transaction_id) == 1


def test_an_own_certificate_that_expired_is_no_exception(lone: Node) -> None:
    """What a node asks itself after its certificate's last day fails with a RELOAD error, if at all."""
    lone.world.wall_offset += 5e9
    outcome = lone.ask(lambda ref: peer_io.Fetch(ref, resource_id("x"), ALL_OF_IT, fresh=True))
    assert isinstance(outcome, peer_io.FetchOutcome) and not outcome.values


def test_a_fetch_of_an_unknown_kind_fails(lone: Node) -> None:
    """A kind that is not in the configuration document is the local user's mistake."""
    outcome = lone.ask(lambda ref: peer_io.Fetch(ref, resource_id("x"), (StoredDataSpecifier(0x7777),)))
    assert is_error(outcome, UnknownKind)


# -- links -------------------------------------------------------------------------------------------------


def test_a_link_with_an_expired_certificate_is_closed(lone: Node) -> None:
    """A TLS connection whose certificate is out of date is no link."""
    late = Hand(lone, not_after=WALL - 1)
    lone.world.run(1)
    assert late.closed and misbehaviours(lone) == ["certificate"]
    assert not list(lone.peer.linked())


def test_a_link_ends_with_its_certificate(lone: Node) -> None:
    """A link is cut within a minute of the last day of the certificate that it was opened with."""
    soon = Hand(lone, not_after=WALL + 100)
    lone.world.run(99)
    assert not soon.closed
    lone.world.run(62)
    assert list(soon.closed.values()) == ["certificate expired"]


def test_a_link_to_oneself_is_closed(lone: Node) -> None:
    """Whoever shows our own certificate is no neighbour."""
    lone.put(peer_io.LinkUp(77, lone.certificate.der, ("127.8.1.1", 1), None))
    assert misbehaviours(lone) == ["self"]
    assert not list(lone.peer.linked())


def test_a_dialled_node_with_another_node_id_is_closed(lone: Node, hand: Hand) -> None:
    """We dial for a Node-ID; another node that answers there is closed and reported (section 6.5.1.11)."""
    wanted = NodeId(b"\x42" * 16)
    hand.listen()
    lone.peer.dial((hand.address,), wanted)
    lone.perform(lone.peer._out)
    lone.world.run(1)
    assert misbehaviours(lone) == ["node-id"]
    assert len(hand.closed) == 1 and hand.link not in hand.closed


def test_a_dialled_link_is_no_link_before_the_first_bytes(lone: Node, hand: Hand) -> None:
    """Under TLS 1.3 the other side may still refuse our certificate: silence for five seconds closes it."""
    silent = Hand(lone)
    silent.listen()
    lone.put(peer_io.LinkDown(silent.theirs, "gone"))
    lone.peer.dial((silent.address,), silent.node_id)
    lone.perform(lone.peer._out)
    lone.world.run(4)
    assert not lone.peer.is_linked(silent.node_id)
    lone.world.run(2)
    assert "silent after the handshake" in silent.closed.values()


def test_of_two_links_both_sides_keep_the_same(lone: Node) -> None:
    """The link that the smaller Node-ID opened stays; the other is closed a little later."""
    other = lone.world.add()
    lone.world.run(10, until=lambda: other.peer.topology.ready)
    lone.world.run(5)
    assert len(list(lone.peer.links)) == len(list(other.peer.links)) == 1
    smaller = min(lone, other, key=lambda node: node.peer.node_id)
    (link,) = smaller.peer.links
    assert link.dialled


# -- methods -----------------------------------------------------------------------------------------------


def candidate(host: str, port: int, priority: int = 1) -> IceCandidate:
    return IceCandidate(host, port, TLS_TCP_FH_NO_ICE, b"1", priority, CANDIDATE_HOST)


def test_attach_is_answered_active_with_candidates_and_dialled(lone: Node, hand: Hand) -> None:
    """The one who asks is passive; the one who answers is active and dials, and sends the wanted Update once
    that link is up (sections 6.5.1 and 6.4.2.3)."""
    hand.listen()
    answer = hand.ask(AttachReq(b"", b"", b"passive", (candidate(*hand.address),), True))
    assert isinstance(answer, AttachAns) and answer.role == b"active" and not answer.send_update
    assert [(c.host, c.port, c.overlay_link, c.type) for c in answer.candidates] == [
        (*lone.address, TLS_TCP_FH_NO_ICE, CANDIDATE_HOST)
    ]
    new = max(hand.links)
    assert new != hand.link
    before = len(hand.requests(UpdateReq))
    hand.link = new
    hand.send(hand.message(PingReq()))
    assert len(hand.requests(UpdateReq)) > before


def test_the_best_candidate_is_dialled_first(lone: Node, hand: Hand) -> None:
    """Candidates are tried by priority, eight at the most, and one dial at a time for each node."""
    candidates = tuple(candidate("127.8.9.9", port, port) for port in range(1, 12))
    orders: list[Any] = []
    lone.world.dial = lambda node, attempt, addresses: orders.append(addresses)  # type: ignore[method-assign]
    hand.ask(AttachReq(b"", b"", b"passive", candidates, False))
    assert orders == [tuple(("127.8.9.9", port) for port in range(11, 3, -1))]
    hand.ask(AttachReq(b"", b"", b"passive", candidates, False))
    assert len(orders) == 1


def test_app_attach(lone: Node, hand: Hand) -> None:
    """An application that we serve: we are active and dial; the passive role stays where the other cannot be
    dialled or wants to dial; an unknown application is not found (section 6.5.2)."""
    served = World(seed=6).add(first=True, applications={5061: (("127.9.0.1", 5061),)})
    caller = Hand(served)
    theirs = (candidate("127.8.0.5", 5061),)
    answer = caller.ask(AppAttachReq(b"", b"", 5061, b"actpass", theirs))
    assert isinstance(answer, AppAttachAns) and answer.role == b"active"
    assert [(c.host, c.port) for c in answer.candidates] == [("127.9.0.1", 5061)]
    assert peer_io.DialApplication(caller.node_id, 5061, (("127.8.0.5", 5061),)) in served.events
    assert caller.ask(AppAttachReq(b"", b"", 5061, b"actpass", ())).role == b"passive"
    assert caller.ask(AppAttachReq(b"", b"", 5061, b"active", theirs)).role == b"passive"
    assert is_error(caller.ask(AppAttachReq(b"", b"", 5999, b"actpass", theirs)), NotFound)
    somewhere = (ResourceDestination(resource_id("somewhere")),)
    assert is_error(caller.ask(AppAttachReq(b"", b"", 5061, b"actpass", theirs), somewhere), Forbidden)


def test_probe(lone: Node, hand: Hand) -> None:
    """Share of the space in parts per billion, resources held, seconds up; unknown questions are left out."""
    hand.ask(own_certificate(hand))
    lone.world.run(40)
    answer = hand.ask(ProbeReq((1, 2, 3, 200)))
    assert isinstance(answer, ProbeAns)
    facts = dict(answer.information)
    assert facts[1] == 1_000_000_000 and facts[2] == 1 and facts[3] in (40, 41) and len(facts) == 3


def test_stat_fetch_and_find(hand: Hand) -> None:
    """A stored value can be fetched, described and found by whoever asks the responsible peer."""
    assert isinstance(hand.ask(own_certificate(hand)), StoreAns)
    resource = resource_id(hand.node_id)
    there = (ResourceDestination(resource),)
    fetched = hand.ask(fetch_of(hand), there)
    assert isinstance(fetched, FetchAns) and fetched.kinds[0].values[0].value.value.value == b"certificate"
    described = hand.ask(StatReq(resource, ALL_OF_IT), there)
    assert isinstance(described, StatAns) and described.kinds[0].values[0].value.value.value_length == 11
    near = (ResourceDestination(resource_id("near")),)
    found = hand.ask(FindReq(resource_id("near"), (CERTIFICATE_BY_NODE, SIP_REGISTRATION)), near)
    assert isinstance(found, FindAns)
    assert found.results == ((CERTIFICATE_BY_NODE, resource), (SIP_REGISTRATION, bytes(16)))


def test_an_unknown_kind_is_named_in_the_error(hand: Hand) -> None:
    """Error_Unknown_Kind lists the kinds that are not in the document (section 7.4.1.2)."""
    answer = hand.ask(FetchReq(resource_id("x"), (StoredDataSpecifier(0x7777),)))
    assert is_error(answer, UnknownKind) and answer.info == b"\x04\x00\x00\x77\x77"


def test_route_query(lone: Node, hand: Hand) -> None:
    """One octet that says whether the path ends, then the next node; ours is the end of every path here."""
    answer = hand.ask(RouteQueryReq(False, ResourceDestination(resource_id("x")), b""))
    assert answer == RouteQueryAns(b"\x01" + lone.peer.node_id)
    answer = hand.ask(RouteQueryReq(False, NodeDestination(hand.node_id), b""))
    assert isinstance(answer, RouteQueryAns) and len(answer.data) == 17
    assert is_error(hand.ask(RouteQueryReq(False, OpaqueDestination(b"x"), b"")), Forbidden)


def test_a_replica_comes_from_a_peer_only(lone: Node) -> None:
    """A client cannot smuggle values past the responsible peer's checks with a replica number."""
    client = Hand(lone, Role.USER)
    store = attrs.evolve(own_certificate(client), replica_number=1)
    assert is_error(client.ask(store), Forbidden)
    assert lone.storage.resource_count == 0


@pytest.mark.parametrize("role", [Role.USER, Role.PROVISIONING])
def test_a_client_may_not_join_nor_update(lone: Node, role: Role) -> None:
    """Join and Update are for peer and registrar certificates: Error_Forbidden."""
    client = Hand(lone, role)
    assert is_error(client.ask(JoinReq(client.node_id)), Forbidden)
    assert is_error(client.ask(UpdateReq(b"\x07")), Forbidden)


def test_join_and_leave_come_over_the_link_of_their_subject(lone: Node, hand: Hand) -> None:
    """For another Node-ID, or passed on by another node, they are Forbidden (sections 6.4.2.1 and 6.4.2.2)."""
    other = Hand(lone)
    for body in (JoinReq(other.node_id), LeaveReq(other.node_id)):
        assert is_error(hand.ask(body), Forbidden)
        message = other.message(body)
        assert is_error(hand.ask_octets(message), Forbidden)


# -- the configuration document ----------------------------------------------------------------------------


def documented(world: World) -> None:
    """Documents of this world are "sequence" or "sequence bad-node"; "forged" is signed by nobody."""

    def read_document(document: bytes, present: Any, wall: float) -> Any:
        words = document.split()
        if not words[0].isdigit():
            raise Forbidden("not signed by a configuration signer")
        bad = frozenset(bytes.fromhex(word.decode()) for word in words[1:])
        return attrs.evolve(present, sequence=int(words[0]), document=document, bad_nodes=bad)

    world.read_document = read_document


@pytest.fixture
def ten() -> World:
    """Ten peers that take documents."""
    world = World(seed=9)
    documented(world)
    world.overlay(10)
    return world


def test_a_new_document_spreads_to_all(ten: World) -> None:
    """One peer is given a newer document, and within seconds all have it and still understand each other."""
    ten.nodes[3].put(peer_io.NewConfiguration(b"5"))
    ten.run(3)
    assert {node.peer.configuration.sequence for node in ten.nodes} == {5}
    changes = [e for n in ten.nodes for e in n.events if isinstance(e, peer_io.ConfigurationChanged)]
    assert len(changes) == 10
    outcome = ten.nodes[0].ask(lambda ref: peer_io.Ping(ref, resource=resource_id("x")))
    assert isinstance(outcome, peer_io.Pong)


def test_sequence_numbers_wrap(ten: World) -> None:
    """65535 is no sequence number, so 0 follows 65534."""
    for document in (b"30000", b"60000", b"65534", b"0"):
        ten.nodes[0].put(peer_io.NewConfiguration(document))
        ten.run(3)
        assert {node.peer.configuration.sequence for node in ten.nodes} == {int(document)}


def test_a_request_under_an_older_document(ten: World) -> None:
    """Error_Config_Too_Old, and the requester is sent the newer document under sequence 65535."""
    node = ten.nodes[0]
    hand = Hand(node)
    node.peer.adopt(attrs.evolve(node.configuration, sequence=7, document=b"7"))
    assert is_error(hand.ask(PingReq()), ConfigTooOld)
    update = hand.requests(ConfigUpdateReq)[-1]
    assert update.body.config_data == b"7" and update.header.configuration_sequence == 65535
    assert isinstance(hand.ask(PingReq(), configuration_sequence=7), PingAns)


def test_a_request_under_a_newer_document(ten: World) -> None:
    """Error_Config_Too_New; what the requester then pushes is taken although the sequences differ."""
    node = ten.nodes[0]
    hand = Hand(node)
    assert is_error(hand.ask(PingReq(), configuration_sequence=9), ConfigTooNew)
    answer = hand.ask(ConfigUpdateReq(1, b"9"), configuration_sequence=65535)
    assert isinstance(answer, ConfigUpdateAns)
    assert isinstance(hand.ask(PingReq(), configuration_sequence=9), PingAns)


@pytest.mark.parametrize("newer_side", [0, 1])
def test_a_refused_request_is_repeated_after_the_update(ten: World, newer_side: int) -> None:
    """Whichever side was behind, the requester's repeat is accepted once both have the same document."""
    pair = ten.nodes[:2]
    ahead = pair[newer_side].peer
    ahead.adopt(attrs.evolve(ahead.configuration, sequence=3, document=b"3"))
    outcome = pair[0].ask(lambda ref: peer_io.Ping(ref, pair[1].peer.node_id))
    assert isinstance(outcome, peer_io.Pong) and 0.9 < outcome.seconds < 2.1
    assert {node.peer.configuration.sequence for node in pair} == {3}


def test_documents_that_are_not_taken(ten: World) -> None:
    """A forged document is Forbidden, an older one too old, the present one taken for granted, and kinds
    alone are not updated."""
    node = ten.nodes[0]
    node.put(peer_io.NewConfiguration(b"20"))
    hand = Hand(node)
    for body, expected in (
        (ConfigUpdateReq(1, b"forged"), Forbidden),
        (ConfigUpdateReq(1, b"19"), ConfigTooOld),
        (ConfigUpdateReq(1, b"20"), ConfigUpdateAns),
        (ConfigUpdateReq(CONFIG_UPDATE_KIND, b"", (b"<kind/>",)), Forbidden),
    ):
        assert type(hand.ask(body, configuration_sequence=65535)) is expected
    assert node.peer.configuration.sequence == 20


def test_only_a_config_update_ignores_the_sequence(ten: World) -> None:
    """65535 stands in no other request."""
    hand = Hand(ten.nodes[0])
    assert isinstance(hand.ask(PingReq(), configuration_sequence=65535), ReloadError)


def test_a_bad_node_is_cut_off(ten: World) -> None:
    """A document that names a bad node closes every link to it, and the overlay goes on without it."""
    bad = ten.nodes[6]
    ten.nodes[0].put(peer_io.NewConfiguration(b"2 " + bad.peer.node_id.hex().encode()))
    ten.run(60)
    rest = [node for node in ten.nodes if node is not bad]
    assert all(not node.peer.is_linked(bad.peer.node_id) for node in rest)
    assert all(node.peer.topology.status()["members"] == 9 for node in rest)
    assert not list(bad.peer.linked())


def test_a_renewed_certificate_is_told_to_all(ten: World) -> None:
    """A node with a new certificate signs with it, and the others' entries of it name the new certificate."""
    node = ten.nodes[4]
    renewed = null_certificate(node.peer.node_id, node.certificate.user, OVERLAY, not_before=1.0)
    node.put(peer_io.NewCredential(NullCredential(renewed)))
    ten.run(2)
    for other in ten.nodes:
        if other is not node:
            assert other.peer.topology._members[node.peer.node_id].certificate == renewed.der  # type: ignore[attr-defined]


# -- a long way --------------------------------------------------------------------------------------------


def test_a_long_source_route_there_and_back(ten: World) -> None:
    """Over more hops than a Via List may have entries the list is compressed to an opaque ID, which its maker
    expands on the way back."""
    first, *rest = ten.nodes
    through = tuple(NodeDestination(node.peer.node_id) for node in (*rest[:-1], *rest[:-1][::-1][1:]))
    answers: list[Any] = []
    first.peer.request(NodeDestination(rest[-1].peer.node_id), PingReq(), answers.append, through=through)
    first.perform(first.peer._out)
    ten.run(2)
    assert isinstance(answers[0].body, PingAns)
    assert answers[0].node == rest[-1].peer.node_id and answers[0].hops == 16
    assert sum(len(node.peer._via_store) for node in ten.nodes) >= 1

"""Transactions over a bad network, and under any order of inputs (RFC 3261 section 17, RFC 6026)."""

from __future__ import annotations

import heapq
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.transaction import (
    Cancel,
    Input,
    Limits,
    MessageReceived,
    Output,
    RequestReceived,
    ResponseReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    SendStateless,
    Timers,
    TransactionEnded,
    TransactionFailed,
    TransactionLayer,
    TransactionTimedOut,
    TransportFailed,
)

A, B = ("192.0.2.1", 5060), ("192.0.2.2", 5060)


def layer_is_empty(layer: TransactionLayer) -> bool:
    """No transaction, no index entry and no timer is left."""
    tables = (
        layer._servers,
        layer._clients,
        layer._server_names,
        layer._client_names,
        layer._by_flow,
        layer._lingering,
    )
    return layer.next_timer() is None and not any(tables) and layer._table.armed == 0


def new_request(method: str, number: int) -> Request:
    return Request(
        method,
        "sip:bob@b",
        [
            ("Max-Forwards", "70"),
            ("From", "<sip:alice@a>;tag=a"),
            ("To", "<sip:bob@b>"),
            ("Call-ID", f"c{number}"),
            ("CSeq", f"1 {method}"),
        ],
    )


class Network:
    """A caller's and a callee's layer with users, and between them a network that loses, doubles and reorders.

    Delays stay below 0.4 s: RFC 3261 promises recognition of copies only for what arrives within 64*T1.
    """

    def __init__(self, seed: int, transport: str, loss: float, double: float, slow: bool = False) -> None:
        self.slow = slow
        self.dice = random.Random(seed)
        self.loss, self.double = (loss, double) if transport == "UDP" else (0.0, 0.0)
        self.flows = (Flow(transport, B, A, 1), Flow(transport, A, B, 1))
        self.layers = (TransactionLayer(random.Random(seed + 1)), TransactionLayer(random.Random(seed + 2)))
        self.now = 0.0
        self.events: list[tuple[float, int, int, Input]] = []
        self.count = 0
        self.last_arrival = [0.0, 0.0]
        self.finals: dict[object, list[int]] = {}
        self.over: Counter[object] = Counter()
        self.lost: set[object] = set()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.answered: dict[str, int] = {}
        self.open: dict[str, Request] = {}
        self.acked: set[str] = set()
        # Answers to requests other than INVITE on the wire: when the request came, when what was sent.
        self.came: dict[str, float] = {}
        self.plain: list[tuple[float, int]] = []
        self.finally_at: list[tuple[float, str]] = []

    def later(self, delay: float, side: int, item: Input) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, side, item))

    def put(self, side: int, item: Input) -> None:
        if isinstance(item, SendResponse) and not self.may_respond(item):
            return
        self.perform(side, self.layers[side].receive(item, self.now))

    def may_respond(self, item: SendResponse) -> bool:
        """The callee's user answers finally once, and repeats a 2xx until it is ACKed (13.3.1.4)."""
        name, status = item.transaction, item.response.status
        call = item.response.call_id
        if status < 200:
            return name not in self.answered
        if self.answered.setdefault(name, status) != status:
            return False
        self.finally_at.append((self.now, call))
        if status < 300 and item.response.cseq.method == "INVITE" and call not in self.acked and self.now < 200:
            self.later(1.0, 1, item)
        return True

    def perform(self, side: int, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendMessage(_, data, _):
                    self.watch(data)
                    self.carry(1 - side, data)
                case RequestReceived():
                    self.serve(output)
                case ResponseReceived(key, response, _) if response.status >= 200:
                    self.finals.setdefault(key, []).append(response.status)
                    if response.status < 300 and response.cseq.method == "INVITE":
                        number = int(response.call_id[1:])
                        self.put(0, SendStateless(self.flows[0], new_request("ACK", number)))
                case TransactionTimedOut(key) | TransactionFailed(key, _) if side == 0:
                    self.lost.add(key)
                case TransactionEnded(key):
                    self.over[key if side == 0 else f"B{key}"] += 1

    def answered_after(self, call: str) -> float:
        """How long the callee's user took to answer a BYE that it got."""
        return next((at - self.came[call] for at, each in self.finally_at if each == call), 0.0)

    def watch(self, data: bytes) -> None:
        message = parse_message(data)
        if isinstance(message, Response) and message.cseq.method == "BYE":
            self.plain.append((self.now - self.came[message.call_id], message.status))

    def carry(self, to: int, data: bytes) -> None:
        for _ in range(1 + (self.dice.random() < self.double)):
            if self.dice.random() >= self.loss:
                delay = self.dice.random() * 0.4
                if self.loss == 0 and self.double == 0:
                    delay = max(delay, self.last_arrival[to] - self.now)
                    self.last_arrival[to] = self.now + delay
                self.later(delay, to, MessageReceived(self.flows[to], parse_message(data)))

    def serve(self, item: RequestReceived) -> None:
        request, name = item.request, item.transaction
        if name is None:
            self.acked.add(request.call_id)
            return
        self.requests[(request.method, request.call_id)] += 1
        if request.method == "CANCEL":
            self.put(1, SendResponse(name, make_response(request, 200 if item.invite else 481, to_tag="t")))
            if item.invite:
                self.put(1, SendResponse(item.invite, make_response(self.open[item.invite], 487, to_tag="t")))
            return
        self.open[name] = request
        if request.method == "BYE":
            self.came[request.call_id] = self.now
            self.later(self.dice.random(), 1, SendResponse(name, make_response(request, 183, to_tag="t")))
            self.later(self.dice.random(), 1, SendResponse(name, make_response(request, 100)))
        if request.method == "INVITE" and self.dice.random() < 0.7:
            self.later(self.dice.random(), 1, SendResponse(name, make_response(request, 180, to_tag="t")))
        final = self.dice.choice((200, 200, 302, 404, 486, 603))
        patience = 10
        if request.method == "BYE" and self.slow:
            final, patience = self.dice.choice((200, 404, 408)), 60
        self.later(self.dice.random() * patience, 1, SendResponse(name, make_response(request, final, to_tag="t")))

    def run(self, until: float) -> None:
        while True:
            times = [(layer.next_timer(), side) for side, layer in enumerate(self.layers)]
            due = [(at, side) for at, side in times if at is not None]
            at, side = min(due, default=(float("inf"), 0))
            if self.events and self.events[0][0] <= at:
                self.now, _, side, item = heapq.heappop(self.events)
                if self.now > until:
                    return
                self.put(side, item)
            elif at <= until:
                self.now = at
                self.perform(side, self.layers[side].handle_timer(at))
            else:
                return


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["UDP", "TCP"]),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.sampled_from([0.0, 0.3]),
    st.lists(st.sampled_from(["INVITE", "CANCELLED", "BYE"]), min_size=1, max_size=6),
)
def test_bad_network(seed: int, transport: str, loss: float, double: float, calls: list[str]) -> None:
    """Whatever is lost, doubled and reordered: each request reaches its user once at most.

    Each client hears one kind of final response, or of a timeout, and then of the end; nothing is left behind.
    """
    net = Network(seed, transport, loss, double)
    for number, kind in enumerate(calls):
        method = "BYE" if kind == "BYE" else "INVITE"
        net.put(0, SendRequest(net.flows[0], new_request(method, number), number))
        if kind == "CANCELLED":
            net.later(net.dice.random() * 8, 0, Cancel(number))
    net.run(2000.0)
    assert max(net.requests.values(), default=0) <= 1
    for number, kind in enumerate(calls):
        finals = net.finals.get(number, [])
        accepted = [status for status in finals if status < 300]
        assert net.over[number] == 1
        assert len(finals) <= 1 or (len(accepted) == len(finals) and kind != "BYE")
        assert bool(finals) or number in net.lost
        if transport == "TCP" or loss == 0.0:
            assert finals and number not in net.lost
    assert all(count == 1 for count in net.over.values()) and len(net.over) >= len(calls)
    assert all(layer_is_empty(layer) for layer in net.layers)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(["UDP", "TCP"]), st.sampled_from([0.0, 0.3]))
def test_rfc4320_on_the_wire(seed: int, transport: str, loss: float) -> None:
    """RFC 4320 4: to a request other than INVITE no 1xx but 100 is sent, over UDP no 100 in the first 3.5 s, a 100 at
    that time where nothing else was said, never 408, and nothing at all when the client has given up.
    """
    net = Network(seed, transport, loss, loss, slow=True)
    for number in range(4):
        net.put(0, SendRequest(net.flows[0], new_request("BYE", number), number))
    net.run(2000.0)
    statuses = {status for _, status in net.plain}
    assert 408 not in statuses and 183 not in statuses
    assert all(after <= 64.0 + 0.5 for after, _ in net.plain)
    early = [after for after, status in net.plain if status == 100 and after < 3.499]
    assert not early or transport == "TCP"
    unanswered = {call for call, at in net.came.items() if net.answered_after(call) > 3.5}
    assert sum(status == 100 for _, status in net.plain) >= len(unanswered)
    assert all(layer_is_empty(layer) for layer in net.layers)


class AnyOrder(RuleBasedStateMachine):
    """One layer; its users and the network do anything at any time."""

    @initialize(linger=st.sampled_from([0, 1, 3, 100]), limit=st.sampled_from([2, 100]))
    def begin(self, linger: int, limit: int) -> None:
        self.layer = TransactionLayer(random.Random(1), Timers(), Limits(limit, linger))
        self.now = 0.0
        self.flow = (Flow("UDP", B, A), Flow("TCP", B, A, 7))
        self.sent: dict[int, bytes] = {}
        self.served: dict[str, Request] = {}
        self.finals: Counter[object] = Counter()
        self.started: set[object] = set()
        self.over: Counter[object] = Counter()
        self.accepted: set[object] = set()

    def put(self, item: Input) -> None:
        self.perform(self.layer.receive(item, self.now))

    def perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendMessage(_, data, int(key)) if data.startswith((b"INVITE", b"BYE")):
                    self.sent[key] = data
                case SendMessage(_, data, _):
                    parse_message(data).check()
                case RequestReceived(str(name), _, request, _):
                    assert name not in self.served
                    self.served[name] = request
                    self.started.add(name)
                case ResponseReceived(key, response, _) if key is not None:
                    assert self.over[key] == 0
                    if response.status >= 200:
                        if response.status < 300 and response.cseq.method == "INVITE":
                            assert self.finals[key] == 0
                            self.accepted.add(key)
                        else:
                            assert key not in self.accepted
                            self.finals[key] += 1
                case TransactionTimedOut(key) | TransactionFailed(key, _):
                    assert self.over[key] == 0
                case TransactionEnded(key):
                    self.over[key] += 1

    @rule(
        number=st.integers(0, 3),
        method=st.sampled_from(["INVITE", "BYE", "CANCEL", "ACK"]),
        tcp=st.booleans(),
        old=st.booleans(),
    )
    def request_comes(self, number: int, method: str, tcp: bool, old: bool) -> None:
        request = new_request(method, number)
        request.push_via("SIP/2.0/UDP 192.0.2.2" + ("" if old else f";branch=z9hG4bK{number}"))
        self.put(MessageReceived(self.flow[tcp], request))

    @rule(index=st.integers(0, 20), status=st.sampled_from([100, 180, 200, 302, 408, 487, 603]))
    def user_answers(self, index: int, status: int) -> None:
        if self.served:
            name = sorted(self.served)[index % len(self.served)]
            self.put(SendResponse(name, make_response(self.served[name], status, to_tag="t")))

    @rule(method=st.sampled_from(["INVITE", "BYE"]), tcp=st.booleans())
    def user_asks(self, method: str, tcp: bool) -> None:
        key = len(self.started) + 1000
        self.started.add(key)
        self.put(SendRequest(self.flow[tcp], new_request(method, key), key))

    @rule(index=st.integers(0, 20), status=st.sampled_from([100, 180, 200, 302, 486, 603]), tag=st.sampled_from("tu"))
    def response_comes(self, index: int, status: int, tag: str) -> None:
        if self.sent:
            key = sorted(self.sent)[index % len(self.sent)]
            request = parse_message(self.sent[key])
            assert isinstance(request, Request)
            self.put(MessageReceived(self.flow[0], make_response(request, status, to_tag=tag)))

    @rule(index=st.integers(0, 20))
    def user_cancels(self, index: int) -> None:
        if self.sent:
            self.put(Cancel(sorted(self.sent)[index % len(self.sent)]))

    @rule(tcp=st.booleans())
    def flow_fails(self, tcp: bool) -> None:
        self.put(TransportFailed(self.flow[tcp]))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 31.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.layer.handle_timer(self.now))

    @invariant()
    def once_at_most(self) -> None:
        assert all(count <= 1 for count in self.finals.values()) and all(count <= 1 for count in self.over.values())

    def teardown(self) -> None:
        if not hasattr(self, "layer"):
            return
        for _ in range(10_000):
            at = self.layer.next_timer()
            if at is None:
                break
            self.now = max(self.now, at)
            self.perform(self.layer.handle_timer(self.now))
        assert layer_is_empty(self.layer)
        assert {name for name, count in self.over.items() if count == 1} == self.started


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_answer_to_a_response_object() -> None:
    """A response that arrives for a request that was never sent touches nothing."""
    layer = TransactionLayer(random.Random(1))
    stranger = new_request("BYE", 1)
    stranger.push_via("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKnever")
    response: Response = make_response(stranger, 200, to_tag="t")
    assert layer.receive(MessageReceived(Flow("UDP", B, A), response), 0.0) == [] and layer_is_empty(layer)

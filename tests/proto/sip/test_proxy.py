"""The stateful proxy's rules (RFC 3261 section 16), without a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.fork import (
    Answered,
    Branch,
    CancelBranch,
    Cancelled,
    Failed,
    Finished,
    Forward,
    ForwardingContext,
    Located,
    Output,
    Relocate,
    Respond,
    choose_best,
)
from p2psipd.proto.sip.ladder import Ladder
from p2psipd.proto.sip.locating import Target, encode_gr
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.proxy import Home, Refused, build, loop_tag, take_routes, validate
from p2psipd.proto.sip.record_route import RecordRouter, StreamToken, Token, UdpToken, writer_mark
from p2psipd.proto.sip.shared_secret import OwnSecret

NODE, OTHER = b"\1" * 16, b"\2" * 16
CALL = "3848276298220188511@atlanta.example.com"
HOME = Home(
    frozenset({("192.0.2.1", 5060), ("192.0.2.1", 5061)}), frozenset({"overlay.example"}), "overlay.example", NODE
)
OUR_HOPS = HOME.addresses


def request(method: str = "INVITE", uri: str = "sip:bob@overlay.example", **headers: str) -> Request:
    lines = [
        ("Via", "SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bKa"),
        ("Max-Forwards", "70"),
        ("From", "<sip:alice@overlay.example>;tag=1"),
        ("To", "<sip:bob@overlay.example>"),
        ("Call-ID", "c1"),
        ("CSeq", f"1 {method}"),
    ]
    made = Request(method, uri, lines)
    for name, value in headers.items():
        made.set(name.replace("_", "-"), value)
    return made


class Fork:
    """A context with its branches, driven by the test."""

    def __init__(self, *targets: Target, method: str = "INVITE", **options: bool) -> None:
        self.request = request(method)
        self.context = ForwardingContext(self.request, 180.0, **options)
        self.now = 0.0
        self.outputs = self.context.receive(Located(targets), self.now)
        self.branches: list[Branch] = [each.branch for each in self.outputs if isinstance(each, Forward)]

    def answer(self, index: int, status: int, **headers: str) -> list[Output]:
        lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
        response = make_response(self.request, status, to_tag=f"t{index}", headers=lines)
        return self.take(self.context.receive(Answered(self.branches[index], response), self.now))

    def fail(self, index: int, status: int) -> list[Output]:
        return self.take(self.context.receive(Failed(self.branches[index], status), self.now))

    def take(self, outputs: list[Output]) -> list[Output]:
        self.branches += [each.branch for each in outputs if isinstance(each, Forward)]
        return outputs


def target(name: str, **fields: object) -> Target:
    return Target(f"sip:{name}@192.0.2.77")._replace(**fields)


def kinds(outputs: list[Output]) -> list[str]:
    return [f"Respond {each.response.status}" if isinstance(each, Respond) else type(each).__name__ for each in outputs]


# ---- forks


def test_first_answer_wins_and_the_rest_is_cancelled() -> None:
    """16.7 steps 5 and 10: a 2xx goes up at once, every other branch is cancelled, and its 487 goes
    nowhere.
    """
    fork = Fork(target("a"), target("b"), target("c"))
    assert kinds(fork.outputs) == ["Forward"] * 3
    assert kinds(fork.answer(0, 180)) == ["Respond 180"]
    assert kinds(fork.answer(1, 200)) == ["Respond 200", "CancelBranch", "CancelBranch"]
    assert kinds(fork.answer(0, 487)) == []
    assert kinds(fork.answer(2, 487)) == ["Finished"]


def test_second_answer_of_an_invite_goes_up_too() -> None:
    """16.7 step 5: every 2xx to an INVITE is forwarded, also one that crossed the CANCEL, and its
    retransmissions.
    """
    fork = Fork(target("a"), target("b"))
    fork.answer(0, 200)
    assert kinds(fork.answer(1, 200)) == ["Respond 200", "Finished"]
    assert kinds(fork.answer(1, 200)) == ["Respond 200"]
    message = Fork(target("a"), target("b"), method="MESSAGE")
    assert kinds(message.answer(0, 200)) == ["Respond 200"]
    assert kinds(message.answer(1, 200)) == ["Finished"]


def test_trying_stays_here() -> None:
    """16.7 step 5: 100 is never forwarded."""
    assert kinds(Fork(target("a")).answer(0, 100)) == []


def test_nothing_goes_up_while_a_branch_is_open() -> None:
    """16.7 step 6: a final response that is no 2xx waits until every branch has ended."""
    fork = Fork(target("a"), target("b"))
    assert kinds(fork.answer(0, 486)) == []
    assert kinds(fork.answer(1, 404)) == ["Respond 404", "Finished"]


def test_global_failure_cancels_and_waits() -> None:
    """16.7 step 5: 6xx cancels the other branches, and goes up when they have ended."""
    fork = Fork(target("a"), target("b"))
    assert kinds(fork.answer(0, 603)) == ["CancelBranch"]
    assert kinds(fork.answer(1, 487)) == ["Respond 603", "Finished"]


@pytest.mark.parametrize(
    ("statuses", "best"),
    [
        ((404, 302), 302),
        ((486, 407), 407),
        ((500, 404), 404),
        ((408, 486), 486),
        ((603, 302), 603),
        ((404, 480), 404),
    ],
)
def test_best_response(statuses: tuple[int, ...], best: int) -> None:
    """16.7 step 6: 6xx first, else the lowest class, and in 4xx what lets the caller mend its request."""
    assert choose_best([make_response(request(), status) for status in statuses]).status == best


def test_challenges_are_gathered() -> None:
    """16.7 step 7: the challenges of all branches stand in the 401 or 407 that is forwarded."""
    fork = Fork(target("a"), target("b"))
    fork.answer(0, 401, WWW_Authenticate='Digest realm="a", nonce="1"')
    (respond, _) = fork.answer(1, 407, Proxy_Authenticate='Digest realm="b", nonce="2"')
    assert isinstance(respond, Respond)
    assert respond.response.get_all("www-authenticate") == ['Digest realm="a", nonce="1"']
    assert respond.response.get_all("proxy-authenticate") == ['Digest realm="b", nonce="2"']


def test_service_unavailable_of_a_branch_is_500() -> None:
    """16.7 step 6: 503 says something about that branch, not about this proxy."""
    assert kinds(Fork(target("a")).answer(0, 503)) == ["Respond 500", "Finished"]


@pytest.mark.parametrize("status", [404, 430, 503])
def test_dialog_whose_other_side_is_forgotten(status: int) -> None:
    """12.2.1.2: the answer of a node that has forgotten the phone tells the caller that the dialog is gone."""
    fork = Fork(method="BYE")
    fork.request.set("To", "<sip:bob@overlay.example>;tag=2")
    context = ForwardingContext(fork.request)
    (forward,) = context.receive(Located([target("a", node_id=b"n" * 16)]), 0.0)
    assert isinstance(forward, Forward)
    answered = Answered(forward.branch, make_response(fork.request, status))
    assert kinds(context.receive(answered, 0.0)) == ["Respond 481", "Finished"]


def test_nowhere_to_go() -> None:
    """16.5: no target at all is answered at once."""
    assert kinds(Fork().outputs) == ["Respond 480", "Finished"]


def test_cancel_before_during_and_after() -> None:
    """16.10: CANCEL ends a look-up with 487, cancels open branches, and does nothing once there is an
    answer.
    """
    waiting = ForwardingContext(request())
    assert kinds(waiting.receive(Cancelled(), 0.0)) == ["Respond 487", "Finished"]
    assert waiting.receive(Located([target("a")]), 0.0) == []
    fork = Fork(target("a"), target("b"))
    assert kinds(fork.context.receive(Cancelled(), 0.0)) == ["CancelBranch", "CancelBranch"]
    assert fork.context.receive(Cancelled(), 0.0) == []
    fork.answer(0, 487)
    assert kinds(fork.answer(1, 487)) == ["Respond 487", "Finished"]
    answered = Fork(target("a"))
    answered.answer(0, 200)
    assert answered.context.receive(Cancelled(), 0.0) == []


def test_cancelled_phone_that_stays_silent() -> None:
    """16.8: a branch that does not honour its CANCEL ends by itself, and the caller hears 487."""
    fork = Fork(target("a"))
    fork.answer(0, 180)
    fork.context.receive(Cancelled(), 10.0)
    assert fork.context.next_timer() == 42.0
    assert fork.context.handle_timer(41.0) == []
    assert kinds(fork.context.handle_timer(42.0)) == ["Respond 487", "Finished"]


def test_timer_c() -> None:
    """16.8: CANCEL where a provisional response came, 408 where nothing did; each provisional response starts
    it anew.
    """
    fork = Fork(target("a"), target("b"))
    fork.now = 100.0
    fork.answer(0, 180)
    assert fork.context.next_timer() == 180.0
    assert kinds(fork.context.handle_timer(180.0)) == ["CancelBranch"]
    assert fork.branches[1].response is not None
    assert kinds(fork.context.handle_timer(280.0)) == ["CancelBranch"]
    assert kinds(fork.answer(0, 487)) == ["Respond 487", "Finished"]


def test_alternatives_of_one_instance() -> None:
    """RFC 5626 5.3: flows of one instance are tried one after the other, never at once; a refusal is
    final.
    """
    fork = Fork(target("a", instance="i"), target("b", instance="i"), target("c"))
    assert len(fork.branches) == 2
    assert kinds(fork.fail(0, 430)) == ["Forward"]
    assert fork.branches[2].target.uri == "sip:b@192.0.2.77"
    fork.answer(1, 486)
    assert kinds(fork.answer(2, 404)) == ["Respond 404", "Finished"]
    refused = Fork(target("a", instance="i"), target("b", instance="i"))
    assert kinds(refused.answer(0, 486)) == ["Respond 486", "Finished"]


def test_answer_that_comes_after_its_branch_was_given_up() -> None:
    """16.7 step 5: a 2xx that is slower than timer C is still the answer, and ends the alternative that was begun."""
    fork = Fork(target("a", instance="i"), target("b", instance="i"))
    fork.take(fork.context.handle_timer(200.0))
    assert len(fork.branches) == 2
    assert kinds(fork.answer(0, 200)) == ["Respond 200", "CancelBranch"]
    assert kinds(fork.fail(1, 408)) == ["Finished"]
    waiting = Fork(target("a"), may_relocate=True)
    assert kinds(waiting.fail(0, 430)) == ["Relocate"]
    assert kinds(waiting.answer(0, 200)) == ["Respond 200", "Finished"]
    assert waiting.context.receive(Located([target("b")]), 0.0) == []


def test_stale_records_are_looked_up_once_more() -> None:
    """Profile section 7: 430, or 404 of a node, asks for one fresh look-up; what was tried is not tried
    again.
    """
    fork = Fork(target("a", node_id=OTHER), may_relocate=True)
    assert kinds(fork.answer(0, 404)) == ["Relocate"]
    again = fork.take(fork.context.receive(Located([target("a", node_id=OTHER), target("z")]), 0.0))
    assert kinds(again) == ["Forward"]
    assert kinds(fork.answer(1, 200)) == ["Respond 200", "Finished"]
    vain = Fork(target("a", node_id=OTHER), may_relocate=True, hide_flow=True)
    assert kinds(vain.fail(0, 430)) == ["Relocate"]
    assert kinds(vain.context.receive(Located([]), 0.0)) == ["Respond 480", "Finished"]
    assert isinstance(Relocate(), Relocate) and isinstance(Finished(), Finished)


def test_failures_count_once() -> None:
    """A timeout or transport failure after the final response changes nothing."""
    fork = Fork(target("a"), target("b"))
    fork.answer(0, 486)
    assert fork.fail(0, 408) == []
    assert kinds(fork.fail(1, 408)) == ["Respond 486", "Finished"]
    assert not any(isinstance(each, CancelBranch) for each in fork.outputs)


# ---- one request


def test_request_validation() -> None:
    """16.3: Max-Forwards 0 is 483, an unknown scheme 416, an unknown Proxy-Require 420."""
    for made, status in (
        (request(Max_Forwards="0"), 483),
        (request(uri="magic:bob"), 416),
        (request(Proxy_Require="magic"), 420),
    ):
        with pytest.raises(Refused) as caught:
            validate(made, OUR_HOPS)
        assert caught.value.status == status
    validate(request(uri="tel:+15551234"), OUR_HOPS)
    validate(request(Max_Forwards="0"), OUR_HOPS, ends_here=True)


def test_loop_and_spiral() -> None:
    """RFC 5393 4.2: the same request again is a loop; one whose Request-URI has changed is a spiral, and
    passes.
    """
    looped = request()
    looped.add("Via", f"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKxyz{loop_tag(looped)}")
    with pytest.raises(Refused) as caught:
        validate(looped, OUR_HOPS)
    assert caught.value.status == 482
    looped.set_uri("sip:carol@overlay.example")
    validate(looped, OUR_HOPS)


def test_own_routes_are_taken_off() -> None:
    """16.4: Route values on top that name us go, by address, by domain, and by our Node-ID; the next one
    stays.
    """
    made = request(
        Route=(
            "<sip:tok@192.0.2.1;lr>, <sip:overlay.example;lr>, "
            f"<sips:p2p@overlay.example;gr={encode_gr(NODE)};lr>, <sips:p2p@overlay.example;gr={encode_gr(OTHER)};lr>"
        )
    )
    assert [uri.user for uri in take_routes(made, HOME)] == ["tok", None, "p2p"]
    assert len(made.routes) == 1
    assert take_routes(made, HOME) == []


def test_strict_router_before_us() -> None:
    """16.4: our Route in the Request-URI is replaced by the last Route value."""
    made = request(uri="sip:tok@192.0.2.1;lr", Route="<sip:192.0.2.5;lr>, <sip:bob@192.0.2.77>")
    (taken,) = take_routes(made, HOME)
    assert taken.user == "tok"
    assert made.uri_text == "sip:bob@192.0.2.77"
    assert [each.uri_text for each in made.routes] == ["sip:192.0.2.5;lr"]


def test_forwarded_copy() -> None:
    """16.6: a new Request-URI, one hop less, Record-Route and Path on top; the original is untouched."""
    made = request(Record_Route="<sip:first;lr>")
    out = build(made, Target("sip:bob@192.0.2.77", route=("<sip:edge;lr>",)), ["<sip:out;lr>", "<sip:in;lr>"])
    assert (out.uri_text, out.max_forwards) == ("sip:bob@192.0.2.77", 69)
    assert [each.uri_text for each in out.record_routes] == ["sip:out;lr", "sip:in;lr", "sip:first;lr"]
    assert [each.uri_text for each in out.routes] == ["sip:edge;lr"]
    assert (made.max_forwards, made.has("route")) == (70, False)
    made.remove("max-forwards")
    assert build(made, Target("sip:x@y")).max_forwards == 70


def test_strict_router_after_us() -> None:
    """16.6 step 6: for a next hop without lr the Request-URI goes to the end of Route, and the hop into its
    place.
    """
    out = build(request(Route="<sip:old.example>, <sip:next.example;lr>"), Target("sip:bob@192.0.2.77"))
    assert out.uri_text == "sip:old.example"
    assert [each.uri_text for each in out.routes] == ["sip:next.example;lr", "sip:bob@192.0.2.77"]


# ---- Record-Route


def test_tokens_name_flows_and_nobody_forges_them() -> None:
    """A token comes back as the flow and the user it was made for; changed, or of another key or call: nothing."""
    router = RecordRouter(OwnSecret(b"s" * 32), 7, "overlay.example", NODE)
    udp = Flow("UDP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 3)
    v6 = Flow("UDP", ("2001:db8::7", 40000), ("2001:db8::1", 5060), 1)
    tcp = Flow("TCP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 99)
    for flow, read in ((udp, UdpToken(3, udp.remote)), (v6, UdpToken(1, v6.remote)), (tcp, StreamToken(99))):
        for user in ("", "bob@overlay.example"):
            token = router.token(flow, user, CALL)
            assert router.read(token, CALL) == Token(writer_mark(NODE), user, read)
            assert router.read(token[:-1], CALL) is None and router.read(token, "another@call") is None
            assert RecordRouter(OwnSecret(b"t" * 32), 7, "overlay.example", NODE).read(token, CALL) is None
    assert router.read("p2p", CALL) is None and router.read("", CALL) is None


def test_what_is_remembered_of_tokens_is_small() -> None:
    """A token is read whatever its Call-ID; with one of many octets it is not remembered."""
    router = RecordRouter(OwnSecret(b"s" * 32), 7, "overlay.example", NODE)
    tcp = Flow("TCP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 99)
    for call_id, kept in ((CALL, 1), ("x" * 60_000, 1)):
        token = router.read(router.token(tcp, "", call_id), call_id)
        assert token is not None and len(router._known) == kept


def test_tokens_of_the_dead_say_who_is_meant() -> None:
    """A restarted node, or another registrar, reads whose flow it was, and no flow of its own."""
    secrets = OwnSecret(b"s" * 32)
    router = RecordRouter(secrets, 7, "overlay.example", NODE)
    tcp = Flow("TCP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 99)
    udp = Flow("UDP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 3)
    restarted = RecordRouter(secrets, 8, "overlay.example", NODE)
    other = RecordRouter(secrets, 9, "overlay.example", OTHER)
    named = Token(writer_mark(NODE), "bob@overlay.example", None)
    by_tcp, by_udp = (router.token(each, named.user, CALL) for each in (tcp, udp))
    assert restarted.read(by_tcp, CALL) == named
    assert restarted.read(by_udp, CALL) == named._replace(flow=UdpToken(3, udp.remote))
    assert other.read(by_tcp, CALL) == other.read(by_udp, CALL) == named


def test_routes_of_a_dead_registrar_are_dropped() -> None:
    """The values that one other registrar wrote go together, down to its last one; those of anybody else stay."""
    secrets = OwnSecret(b"s" * 32)
    dead, other = (RecordRouter(secrets, 7, "overlay.example", each) for each in (OTHER, b"\3" * 16))
    reader = RecordRouter(secrets, 7, "overlay.example", NODE)
    tcp = Flow("TCP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 99)
    bye = request("BYE")
    call = bye.call_id
    others = other.node_value(call)
    for value in (dead.node_value(call), dead.value(tcp, "bob@overlay.example", call), others, "<sip:192.0.2.9;lr>"):
        bye.add("Route", value)
    token = reader.drop_routes(bye)
    assert token is not None and token.user == "bob@overlay.example"
    assert bye.get_all("route") == [others, "<sip:192.0.2.9;lr>"]
    token = reader.drop_routes(bye)
    assert token is not None and token.user == ""
    assert reader.drop_routes(bye) is None and len(bye.routes) == 1


def test_ladder_is_bounded() -> None:
    """The log keeps the last calls, and of each call so many messages; unknown calls have none."""
    ladder = Ladder(calls=2, steps=3)
    flow = Flow("UDP", ("198.51.100.7", 40000), ("192.0.2.1", 5060), 3)
    for number in range(3):
        ladder.begin(f"c{number}")
    assert ladder.call_ids() == ["c1", "c2"]
    for _ in range(5):
        ladder.sent(b"INVITE sip:b SIP/2.0\r\ni: c2\r\n\r\n", lambda: 5.0, flow)
    assert [step.line for step in ladder.steps("c2")] == ["INVITE sip:b SIP/2.0"] * 3
    assert ladder.steps("c0") == [] == ladder.steps("other")
    assert isinstance(make_response(request(), 200), Response)


# ---- whatever happens

_STATUSES = st.sampled_from([100, 180, 200, 302, 401, 404, 430, 486, 487, 503, 603])
_STEPS = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 5), _STATUSES),
    st.tuples(st.just("fail"), st.integers(0, 5), st.sampled_from([408, 430, 503])),
    st.tuples(st.just("cancel"), st.just(0), st.just(0)),
    st.tuples(st.just("time"), st.just(0), st.sampled_from([1, 40, 200])),
    st.tuples(st.just("locate"), st.integers(0, 3), st.just(0)),
)


@given(
    st.sampled_from(["INVITE", "MESSAGE"]),
    st.integers(0, 4),
    st.booleans(),
    st.booleans(),
    st.lists(_STEPS, max_size=25),
)
def test_caller_gets_one_final_response(
    method: str, count: int, same_instance: bool, relocates: bool, steps: list[tuple[str, int, int]]
) -> None:
    """Whatever comes in whatever order: at most one final response that is no 2xx, none after a 2xx, one end, and with
    every branch ended there is an end."""
    targets = [target(str(number), instance="i" if same_instance else "") for number in range(count)]
    fork = Fork(*targets, method=method, may_relocate=relocates)
    context, seen, now = fork.context, list(fork.outputs), 0.0
    for name, index, value in steps:
        branch = fork.branches[index % len(fork.branches)] if fork.branches else None
        if name == "answer" and branch is not None:
            response = make_response(fork.request, value, to_tag="t")
            seen += fork.take(context.receive(Answered(branch, response), now))
        elif name == "fail" and branch is not None:
            seen += fork.take(context.receive(Failed(branch, value), now))
        elif name == "cancel":
            seen += fork.take(context.receive(Cancelled(), now))
        elif name == "locate":
            seen += fork.take(context.receive(Located([target(f"new{index}")]), now))
        elif name == "time":
            now += value
            seen += fork.take(context.handle_timer(now))
    finals = [each.response.status for each in seen if isinstance(each, Respond) and each.response.status >= 200]
    assert len([each for each in finals if each >= 300]) <= 1
    assert not any(each >= 300 for each in finals[1:])
    assert sum(isinstance(each, Finished) for each in seen) == int(context.finished)
    waiting = any(isinstance(each, Relocate) for each in seen) and not finals
    if all(each.response is not None for each in fork.branches) and not waiting:
        assert finals and context.finished

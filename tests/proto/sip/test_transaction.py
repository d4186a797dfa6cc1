"""The four transaction machines on a virtual clock (RFC 3261 section 17, RFC 6026, RFC 4320)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.transaction import (
    Cancel,
    Input,
    Limits,
    MessageReceived,
    MessageRejected,
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

UDP = Flow("UDP", ("192.0.2.2", 5060), ("192.0.2.1", 5060))
TCP = Flow("TCP", ("192.0.2.2", 49152), ("192.0.2.1", 5060), connection=1, sent_by=("192.0.2.1", 5060))


class Bench:
    """A layer, a clock, and what came out with its times."""

    def __init__(self, timers: Timers = Timers(trying_after=None), limits: Limits = Limits()) -> None:
        self.layer = TransactionLayer(random.Random(1), timers, limits)
        self.now = 0.0
        self.log: list[tuple[float, Output]] = []

    def put(self, item: Input) -> list[Output]:
        outputs = self.layer.receive(item, self.now)
        self.log += [(self.now, output) for output in outputs]
        return outputs

    def until(self, end: float) -> list[tuple[float, Output]]:
        """Run the timers up to `end`; what came out of them."""
        seen: list[tuple[float, Output]] = []
        while (at := self.layer.next_timer()) is not None and at <= end:
            assert at >= self.now, "time runs forward"
            self.now = at
            outputs = self.layer.handle_timer(at)
            seen += [(round(at, 3), output) for output in outputs]
        self.now = end
        self.log += seen
        return seen

    def sends(self, since: int = 0) -> list[float]:
        return [round(at, 3) for at, output in self.log[since:] if isinstance(output, SendMessage)]

    def empty(self) -> bool:
        layer = self.layer
        indexes = (layer._servers, layer._clients, layer._server_names, layer._client_names, layer._by_flow)
        return layer.next_timer() is None and not any(indexes) and not layer._lingering and layer._table.armed == 0


def new_request(method: str = "INVITE", branch: str | None = "z9hG4bKone", **headers: str) -> Request:
    """A request as a client sends it; without `branch` there is no Via yet."""
    made = Request(
        method,
        "sip:bob@example.com",
        [
            ("Max-Forwards", "70"),
            ("From", "<sip:alice@example.com>;tag=a"),
            ("To", "<sip:bob@example.com>"),
            ("Call-ID", "c1"),
            ("CSeq", f"1 {method}"),
            *headers.items(),
        ],
    )
    if branch is not None:
        made.push_via(f"SIP/2.0/UDP 192.0.2.2:5060;branch={branch}" if branch else "SIP/2.0/UDP 192.0.2.2:5060")
    return made


def of(outputs: list[Output] | list[tuple[float, Output]], kind: type) -> list[object]:
    """The outputs of one class."""
    plain = [output[1] if type(output) is tuple else output for output in outputs]
    return [output for output in plain if isinstance(output, kind)]


def only_send(outputs: list[Output]) -> SendMessage:
    sent = of(outputs, SendMessage)
    assert len(sent) == 1 and isinstance(sent[0], SendMessage)
    return sent[0]


def parsed(output: SendMessage) -> Request | Response:
    message = parse_message(output.data)
    message.check()
    return message


def started(bench: Bench, method: str = "INVITE", flow: Flow = UDP, key: object = "k") -> Request:
    """Start a client transaction; the request as it was sent."""
    sent = parsed(only_send(bench.put(SendRequest(flow, new_request(method, None), key))))
    assert isinstance(sent, Request)
    return sent


def answered(bench: Bench, sent: Request, status: int, flow: Flow = UDP, tag: str = "b") -> list[Output]:
    """The other side's response comes in."""
    return bench.put(MessageReceived(flow, parse_message(make_response(sent, status, to_tag=tag).encode())))


def arrived(bench: Bench, method: str = "INVITE", flow: Flow = UDP, branch: str = "z9hG4bKone") -> tuple[str, Request]:
    """A new request comes in; its transaction and the request."""
    (received,) = bench.put(MessageReceived(flow, new_request(method, branch)))
    assert isinstance(received, RequestReceived) and received.transaction is not None
    return received.transaction, received.request


def respond(bench: Bench, name: str, request: Request, status: int) -> list[Output]:
    return bench.put(SendResponse(name, make_response(request, status, to_tag="b")))


# -- INVITE client (17.1.1, RFC 6026 section 7.2) ------------------------------------------------------------------


def test_invite_client_repeats_and_times_out() -> None:
    """Timer A doubles from T1; timer B ends it after 64*T1 with a timeout."""
    bench = Bench()
    started(bench)
    seen = bench.until(100)
    assert bench.sends() == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert seen[-2:] == [(32.0, TransactionTimedOut("k")), (32.0, TransactionEnded("k"))] and bench.empty()


def test_invite_client_over_tcp_does_not_repeat() -> None:
    """Timer A does not run on reliable transports; timer B does."""
    bench = Bench()
    started(bench, flow=TCP)
    bench.until(100)
    assert bench.sends() == [0] and of(bench.log, TransactionTimedOut) == [TransactionTimedOut("k")] and bench.empty()


def test_invite_client_stops_on_provisional() -> None:
    """A 1xx stops the repeating and timer B; every 1xx goes to the user."""
    bench = Bench()
    sent = started(bench)
    for status in (100, 180, 180):
        (output,) = answered(bench, sent, status)
        assert isinstance(output, ResponseReceived) and output.transaction == "k" and output.response.status == status
    assert bench.until(100) == []


def test_invite_client_failure_is_acked() -> None:
    """A 3xx-6xx is ACKed by the layer on every copy, told to the user once, and the transaction ends after timer D.

    The ACK has the INVITE's Request-URI, top Via, From, Call-ID, CSeq number Route; the response's To (17.1.1.3).
    """
    bench = Bench()
    request = new_request("INVITE", None, Route="<sip:r1;lr>")
    sent = parsed(only_send(bench.put(SendRequest(UDP, request, "k"))))
    assert isinstance(sent, Request)
    outputs = answered(bench, sent, 486)
    ack = parsed(only_send(outputs))
    assert isinstance(ack, Request) and ack.method == "ACK" and ack.uri_text == sent.uri_text
    assert ack.vias == (sent.top_via,) and ack.cseq == (1, "ACK") and ack.to_tag == "b" and ack.call_id == "c1"
    assert ack.get("from") == sent.get("from") and [str(route) for route in ack.routes] == ["<sip:r1;lr>"]
    assert len(of(outputs, ResponseReceived)) == 1
    again = answered(bench, sent, 486)
    assert only_send(again).data == ack.encode() and not of(again, ResponseReceived)
    assert answered(bench, sent, 200) == [], "a final response after another one is nothing"
    assert bench.until(31.9) == [] and bench.until(33) == [(32.0, TransactionEnded("k"))] and bench.empty()


def test_invite_client_failure_over_tcp_ends_at_once() -> None:
    """Timer D is zero on reliable transports."""
    bench = Bench()
    outputs = answered(bench, started(bench, flow=TCP), 404, TCP)
    assert [type(output) for output in outputs] == [SendMessage, ResponseReceived, TransactionEnded] and bench.empty()


@pytest.mark.parametrize("flow", [UDP, TCP])
def test_invite_client_accepted(flow: Flow) -> None:
    """All 2xx of all branches go to the user for 64*T1, none is ACKed by the layer (RFC 6026 section 7.2)."""
    bench = Bench()
    sent = started(bench, flow=flow)
    for tag in ("b", "b", "other"):
        (output,) = answered(bench, sent, 200, flow, tag)
        assert isinstance(output, ResponseReceived) and output.transaction == "k"
    assert answered(bench, sent, 486, flow) == [] and answered(bench, sent, 180, flow) == []
    assert bench.until(33) == [(32.0, TransactionEnded("k"))] and bench.empty()


def test_stray_2xx() -> None:
    """After the end a 2xx to an INVITE of ours is told without transaction; other strays are dropped (RFC 6026)."""
    bench = Bench()
    sent = started(bench)
    bench.until(40)
    (output,) = answered(bench, sent, 200)
    assert isinstance(output, ResponseReceived) and output.transaction is None
    assert answered(bench, sent, 486) == [] and answered(bench, sent, 180) == []
    options = started(bench, "OPTIONS", key="o")
    bench.until(80)
    assert answered(bench, options, 200) == []


@pytest.mark.parametrize("method", ["INVITE", "OPTIONS"])
def test_branch_in_capitals(method: str) -> None:
    """7.3.1: a token means the same in any case, also in the branch that comes back."""
    bench = Bench()
    response = make_response(started(bench, method), 200, to_tag="b")
    text = response.encode().decode()
    branch = response.top_via.branch or ""
    (output, *_) = bench.put(MessageReceived(UDP, parse_message(text.replace(branch, branch.upper()).encode())))
    assert isinstance(output, ResponseReceived) and output.transaction == "k"


# -- other client transactions (17.1.2) ----------------------------------------------------------------------------


def test_plain_client_repeats_and_times_out() -> None:
    """Timer E doubles up to T2; timer F ends it after 64*T1."""
    bench = Bench()
    started(bench, "OPTIONS")
    seen = bench.until(100)
    assert bench.sends() == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert seen[-2:] == [(32.0, TransactionTimedOut("k")), (32.0, TransactionEnded("k"))] and bench.empty()


def test_plain_client_in_proceeding() -> None:
    """After a 1xx it goes on repeating every T2, and timer F still runs."""
    bench = Bench()
    sent = started(bench, "OPTIONS")
    answered(bench, sent, 100)
    bench.until(100)
    assert bench.sends() == [0, 0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5]
    assert of(bench.log, TransactionTimedOut) and bench.empty()


@pytest.mark.parametrize(("flow", "ends_at"), [(UDP, 5.0), (TCP, 0.0)])
def test_plain_client_completes(flow: Flow, ends_at: float) -> None:
    """The final response is told once; copies are absorbed during timer K (T4, or none on reliable transports)."""
    bench = Bench()
    sent = started(bench, "BYE", flow)
    outputs = answered(bench, sent, 200, flow)
    assert len(of(outputs, ResponseReceived)) == 1 and answered(bench, sent, 200, flow) == []
    bench.until(50)
    assert (ends_at, TransactionEnded("k")) in bench.log and bench.empty() and bench.sends() == [0]


def test_our_via() -> None:
    """The layer's Via has the flow's sent-by, a new branch with the caller's tag, rport on UDP; the request stays."""
    bench, request = Bench(), new_request("OPTIONS", None)
    before = request.encode()
    flow = Flow("UDP", ("192.0.2.2", 5060), ("10.0.0.1", 5060), sent_by=("proxy.example.com", 0))
    one = parsed(only_send(bench.put(SendRequest(flow, request, 1, "-loop")))).top_via
    two = parsed(only_send(bench.put(SendRequest(TCP, request, 2)))).top_via
    assert (one.transport, one.host, one.port, one.rport) == ("UDP", "proxy.example.com", None, 0)
    assert one.branch is not None and one.branch.startswith("z9hG4bK") and one.branch.endswith("-loop")
    assert (two.transport, two.sent_by, two.rport) == ("TCP", ("192.0.2.1", 5060), None) and two.branch != one.branch
    assert request.encode() == before


def test_misuse_is_an_error() -> None:
    """A key that is in use and an ACK are refused without harm to what is running."""
    bench = Bench()
    started(bench)
    for request in (new_request("OPTIONS", None), new_request("ACK", None)):
        with pytest.raises(SipError):
            bench.put(SendRequest(UDP, request, "k"))
    assert bench.layer.open_count == 1


def test_stateless() -> None:
    """An ACK for a 2xx is sent once with a Via of its own; a response as it is; nothing is remembered."""
    bench = Bench()
    ack = parsed(only_send(bench.put(SendStateless(UDP, new_request("ACK", None)))))
    assert ack.top_via.host == "192.0.2.1" and ack.top_via.branch is not None
    response = make_response(new_request(), 200, to_tag="x")
    assert only_send(bench.put(SendStateless(TCP, response))).data == response.encode() and bench.empty()


# -- INVITE server (17.2.1, RFC 6026 section 7.1) ------------------------------------------------------------------


def test_automatic_trying() -> None:
    """If the user is silent for 200 ms the layer sends 100 to an INVITE, and repeats it for copies of the INVITE."""
    bench = Bench(Timers())
    _, request = arrived(bench)
    ((at, output),) = bench.until(5)
    assert at == 0.2 and isinstance(output, SendMessage)
    trying = parsed(output)
    assert isinstance(trying, Response) and trying.status == 100 and trying.vias == request.vias
    assert only_send(bench.put(MessageReceived(UDP, new_request()))).data == output.data


def test_no_automatic_trying_after_an_answer() -> None:
    """Any response of the user's makes the 100 needless."""
    bench = Bench(Timers())
    name, request = arrived(bench)
    respond(bench, name, request, 180)
    assert bench.until(30) == []


def test_invite_server_failure() -> None:
    """A failure is repeated by timer G up to T2 until the ACK; copies get it again; timer I absorbs."""
    bench = Bench()
    name, request = arrived(bench)
    first = only_send(respond(bench, name, request, 486))
    bench.until(10)
    assert bench.sends() == [0, 0.5, 1.5, 3.5, 7.5]
    assert only_send(bench.put(MessageReceived(UDP, new_request()))).data == first.data
    ack = new_request("ACK")
    assert bench.put(MessageReceived(UDP, ack)) == [] and bench.put(MessageReceived(UDP, new_request("ACK"))) == []
    assert bench.put(MessageReceived(UDP, new_request())) == [], "a late copy of the INVITE is absorbed too"
    assert bench.until(60) == [(15.0, TransactionEnded(name))] and bench.empty()


def test_invite_server_without_ack() -> None:
    """Without ACK timer H tells the user after 64*T1."""
    bench = Bench()
    name, request = arrived(bench)
    respond(bench, name, request, 486)
    seen = bench.until(60)
    assert seen[-2:] == [(32.0, TransactionTimedOut(name)), (32.0, TransactionEnded(name))] and bench.empty()


def test_invite_server_failure_over_tcp() -> None:
    """On reliable transports nothing is repeated and the ACK ends it at once."""
    bench = Bench()
    name, request = arrived(bench, flow=TCP)
    respond(bench, name, request, 486)
    bench.until(10)
    assert bench.sends() == [0] and bench.put(MessageReceived(TCP, new_request("ACK"))) == [TransactionEnded(name)]
    assert bench.empty()


def test_invite_server_accepted() -> None:
    """After a 2xx copies are absorbed and the user's repeated 2xx sent, for 64*T1; no failure any more."""
    bench = Bench()
    name, request = arrived(bench)
    respond(bench, name, request, 200)
    assert bench.put(MessageReceived(UDP, new_request())) == [] and len(respond(bench, name, request, 200)) == 1
    assert respond(bench, name, request, 486) == [] and respond(bench, name, request, 180) == []
    (output,) = bench.put(MessageReceived(UDP, new_request("ACK", "z9hG4bKack")))
    assert isinstance(output, RequestReceived) and output.transaction is None and output.request.method == "ACK"
    assert bench.until(60) == [(32.0, TransactionEnded(name))] and bench.empty()
    assert respond(bench, name, request, 200) == [], "then it is discarded"


def test_second_final_is_ignored() -> None:
    """A user that answers twice is sent once."""
    bench = Bench()
    name, request = arrived(bench)
    assert len(respond(bench, name, request, 486)) == 1
    assert respond(bench, name, request, 200) == [] and respond(bench, name, request, 180) == []


def test_forgotten_invite() -> None:
    """An INVITE that its user never answers is given up with 408 after `abandon_after`, and the user told."""
    bench = Bench(Timers(trying_after=None, abandon_after=200))
    name, _ = arrived(bench)
    seen = bench.until(300)
    sent = parsed(only_send([output for _, output in seen]))
    assert isinstance(sent, Response) and sent.status == 408
    assert [output for _, output in seen[1:]] == [TransactionTimedOut(name), TransactionEnded(name)] and bench.empty()


# -- RFC 2543 clients (17.2.3) -------------------------------------------------------------------------------------


def test_rfc2543_matching() -> None:
    """Without the cookie a copy is known by URI, tags, Call-ID, CSeq and Via; its ACK by the To tag we sent."""
    bench = Bench()
    name, request = arrived(bench, branch="")
    assert bench.put(MessageReceived(UDP, new_request("INVITE", ""))) == []
    other = new_request("INVITE", "")
    other.set("Call-ID", "c2")
    assert of(bench.put(MessageReceived(UDP, other)), RequestReceived)
    respond(bench, name, request, 486)
    stranger, ack = new_request("ACK", ""), new_request("ACK", "")
    stranger.set("To", "<sip:bob@example.com>;tag=other")
    ack.set("To", "<sip:bob@example.com>;tag=b")
    assert of(bench.put(MessageReceived(UDP, stranger)), RequestReceived)
    assert bench.put(MessageReceived(UDP, ack)) == []


def test_rfc2543_ack_for_2xx() -> None:
    """In Accepted the ACK of an RFC 2543 client, which matches, goes to the user (RFC 6026 section 6)."""
    bench = Bench()
    name, request = arrived(bench, branch="")
    respond(bench, name, request, 200)
    ack = new_request("ACK", "")
    ack.set("To", "<sip:bob@example.com>;tag=b")
    (output,) = bench.put(MessageReceived(UDP, ack))
    assert isinstance(output, RequestReceived) and (output.transaction, output.invite) == (None, name)


# -- other server transactions (17.2.2, RFC 4320) ------------------------------------------------------------------


def test_plain_server() -> None:
    """The user gets the request once; the final response is repeated for copies during timer J, then the end."""
    bench = Bench()
    name, request = arrived(bench, "BYE")
    assert bench.put(MessageReceived(UDP, new_request("BYE"))) == []
    first = only_send(respond(bench, name, request, 200))
    assert only_send(bench.put(MessageReceived(UDP, new_request("BYE")))).data == first.data
    assert respond(bench, name, request, 404) == []
    assert bench.until(60) == [(32.0, TransactionEnded(name))] and bench.empty()


def test_plain_server_over_tcp() -> None:
    """Timer J is zero on reliable transports."""
    bench = Bench()
    name, request = arrived(bench, "BYE", TCP)
    assert respond(bench, name, request, 200)[-1] == TransactionEnded(name) and bench.empty()


def test_rfc4320_provisionals() -> None:
    """To other requests than INVITE: no 1xx but 100, no 100 over UDP before 3.5 s, and then one by itself."""
    bench = Bench()
    name, request = arrived(bench, "OPTIONS")
    assert respond(bench, name, request, 180) == [] and respond(bench, name, request, 100) == []
    ((at, output),) = bench.until(30)
    assert at == 3.5 and isinstance(output, SendMessage) and b" 100 " in output.data
    name, request = arrived(bench, "OPTIONS", TCP, "z9hG4bKtwo")
    assert len(respond(bench, name, request, 100)) == 1, "on reliable transports a 100 may go at any time"


def test_rfc4320_no_408() -> None:
    """A 408 to another request than INVITE is never sent; copies of the request stay absorbed."""
    bench = Bench()
    name, request = arrived(bench, "OPTIONS")
    assert respond(bench, name, request, 408) == [] and bench.put(MessageReceived(UDP, new_request("OPTIONS"))) == []
    assert bench.until(40) == [(32.0, TransactionEnded(name))] and bench.empty()


def test_unanswered_request_ends() -> None:
    """A request that its user never answers ends silently when its client has given up."""
    bench = Bench()
    name, _ = arrived(bench, "OPTIONS")
    bench.until(40)
    assert bench.log[-1] == (32.0, TransactionEnded(name)) and bench.empty()


# -- CANCEL (9) ----------------------------------------------------------------------------------------------------


def test_cancel_waits_for_a_provisional() -> None:
    """CANCEL goes out with the first 1xx, on the INVITE's branch, with its URI, tags and CSeq number; 487 ends all."""
    bench = Bench()
    sent = started(bench)
    assert bench.put(Cancel("k", "SIP;cause=200")) == []
    cancel = parsed(only_send(answered(bench, sent, 180)))
    assert isinstance(cancel, Request) and cancel.method == "CANCEL" and cancel.vias == (sent.top_via,)
    assert cancel.cseq == (1, "CANCEL") and cancel.to_tag is None and cancel.get("reason") == "SIP;cause=200"
    assert bench.put(Cancel("k")) == [], "once"
    assert answered(bench, cancel, 200) == [], "its own answer is not told"
    assert len(of(answered(bench, sent, 487), ResponseReceived)) == 1
    bench.until(100)
    assert bench.log[-1][1] == TransactionEnded("k") and len(of(bench.log, TransactionEnded)) == 1 and bench.empty()


def test_cancel_without_an_end() -> None:
    """If nothing final follows a CANCEL for 64*T1, the INVITE has timed out (9.1)."""
    bench = Bench()
    sent = started(bench, flow=TCP)
    answered(bench, sent, 180, TCP)
    assert len(bench.put(Cancel("k"))) == 1
    assert bench.until(100)[-2:] == [(32.0, TransactionTimedOut("k")), (32.0, TransactionEnded("k"))] and bench.empty()


@pytest.mark.parametrize("status", [200, 486])
def test_cancel_too_late(status: int) -> None:
    """After a final response there is nothing to cancel."""
    bench = Bench()
    answered(bench, started(bench), status)
    assert bench.put(Cancel("k")) == []


def test_cancel_received() -> None:
    """A CANCEL is a transaction of its own and names the INVITE that it cancels; None if there is none."""
    bench = Bench()
    invite, _ = arrived(bench)
    (output,) = bench.put(MessageReceived(UDP, new_request("CANCEL")))
    assert isinstance(output, RequestReceived) and output.invite == invite and output.transaction not in (None, invite)
    (output,) = bench.put(MessageReceived(UDP, new_request("CANCEL", "z9hG4bKstray")))
    assert isinstance(output, RequestReceived) and output.invite is None


# -- transports ----------------------------------------------------------------------------------------------------


def test_received_and_answers_route() -> None:
    """received and rport are filled in, and answers go where RFC 3261 18.2.2 and RFC 3581 say."""
    bench = Bench()
    nat = Flow("UDP", ("198.51.100.7", 1024), ("192.0.2.1", 5060))
    for via, remote in (
        ("SIP/2.0/UDP 10.0.0.9:5070;branch=z9hG4bKa;rport", ("198.51.100.7", 1024)),
        ("SIP/2.0/UDP 10.0.0.9:5070;branch=z9hG4bKb", ("198.51.100.7", 5070)),
        ("SIP/2.0/UDP phone.example.com;branch=z9hG4bKc;maddr=203.0.113.1", ("198.51.100.7", 5060)),
    ):
        request = new_request("OPTIONS", None)
        request.push_via(via)
        (received,) = bench.put(MessageReceived(nat, request))
        assert isinstance(received, RequestReceived) and received.transaction is not None
        assert received.request.top_via.received == "198.51.100.7"
        assert only_send(respond(bench, received.transaction, received.request, 200)).flow.remote == remote


def test_malformed_request_is_answered() -> None:
    """A malformed request gets its 400 and is reported; a malformed response or ACK only reported."""
    bench = Bench()
    bad = new_request("OPTIONS")
    bad.remove("Call-ID")
    sent, rejected = bench.put(MessageReceived(UDP, bad))
    assert (
        isinstance(sent, SendMessage)
        and sent.data.startswith(b"SIP/2.0 400 ")
        and isinstance(rejected, MessageRejected)
    )
    for message in (new_request("ACK"), make_response(new_request(), 200)):
        message.remove("Call-ID")
        (rejected,) = bench.put(MessageReceived(UDP, message))
        assert isinstance(rejected, MessageRejected)
    assert bench.empty()


def test_flow_failure() -> None:
    """When a connection goes, its client transactions fail and end; INVITE servers stay to absorb copies (RFC 6026)."""
    bench = Bench()
    started(bench, flow=TCP)
    started(bench, "OPTIONS", key="udp")
    invite, _ = arrived(bench, flow=TCP)
    options, _ = arrived(bench, "OPTIONS", TCP, "z9hG4bKtwo")
    outputs = bench.put(TransportFailed(TCP, reason="gone"))
    assert {output.transaction for output in of(outputs, TransactionFailed)} == {"k", invite, options}  # type: ignore[attr-defined]
    assert {output.transaction for output in of(outputs, TransactionEnded)} == {"k", options}  # type: ignore[attr-defined]
    assert bench.put(TransportFailed(TCP)) == [], "told once"
    assert bench.put(MessageReceived(TCP, new_request())) == []
    assert bench.put(TransportFailed(transaction="udp")) == [
        TransactionFailed("udp", "transport failure"),
        TransactionEnded("udp"),
    ]


# -- limits and memory ---------------------------------------------------------------------------------------------


def test_overload() -> None:
    """Beyond the limit of open transactions requests get 503 with Retry-After and clients fail; ACKs still pass."""
    bench = Bench(limits=Limits(open=2))
    arrived(bench)
    started(bench)
    sent, rejected = bench.put(MessageReceived(UDP, new_request("OPTIONS", "z9hG4bKmore")))
    assert isinstance(sent, SendMessage) and b" 503 " in sent.data and b"Retry-After: " in sent.data
    assert isinstance(rejected, MessageRejected) and rejected.error.status == 503
    outputs = bench.put(SendRequest(UDP, new_request("OPTIONS", None), "x"))
    assert [type(output) for output in outputs] == [TransactionFailed, TransactionEnded]
    assert of(bench.put(MessageReceived(UDP, new_request("ACK", "z9hG4bKack"))), RequestReceived)


def test_what_is_spared_has_more_room() -> None:
    """Above the limit, and while all is shed, what is spared still gets in, up to a twentieth more than the limit."""
    bench = Bench(limits=Limits(open=20))
    bench.layer._spares = lambda flow, request: request.get("priority") == "emergency"

    def came(number: int, priority: str) -> bool:
        request = new_request("MESSAGE", f"z9hG4bK{number}")
        request.set("Priority", priority)
        return bool(of(bench.put(MessageReceived(UDP, request)), RequestReceived))

    bench.layer.shedding = 1.0
    assert not came(0, "normal") and came(1, "emergency")
    bench.layer.shedding = 0.0
    assert all(came(number, "normal") for number in range(2, 21))
    assert not came(21, "normal") and came(22, "emergency") and not came(23, "emergency")


@pytest.mark.parametrize(
    ("shedding", "refused"), [(0.25, (0, 50)), (0.5, (0, 100)), (0.75, (50, 100)), (1.0, (100, 100))]
)
def test_strangers_are_shed_first(shedding: float, refused: tuple[int, int]) -> None:
    """Too much is refused from those that nobody knows; from others only where that does not suffice, or at the end."""
    for known, expected in zip((True, False), refused, strict=True):
        bench = Bench()
        bench.layer._knows = lambda flow, known=known: known
        bench.layer.shedding = shedding
        for number in range(100):
            bench.put(MessageReceived(UDP, new_request("INVITE", f"z9hG4bK{number}")))
        answers = [each.data for _, each in bench.log if isinstance(each, SendMessage) and b" 503 " in each.data]
        assert len(answers) == expected
        waits = {line for answer in answers for line in answer.split(b"\r\n") if line.startswith(b"Retry-After")}
        assert len(waits) > 4 or not expected, "they do not all come back at once"


def test_lingering_is_bounded() -> None:
    """Of answered transactions the oldest go early when there are too many."""
    bench = Bench(limits=Limits(lingering=10))
    ended = 0
    for number in range(100):
        name, request = arrived(bench, "OPTIONS", branch=f"z9hG4bK{number}")
        ended += len(of(respond(bench, name, request, 200), TransactionEnded))
    assert ended == 90 and bench.layer.lingering_count == 10 and len(bench.layer._table) < 200


@pytest.mark.parametrize("flow", [UDP, TCP])
def test_calls_leave_nothing(flow: Flow) -> None:
    """After 2,000 calls each way tables and timers are empty, and they stay small meanwhile."""
    bench = Bench(Timers(), Limits(lingering=500))
    for number in range(2000):
        status = (200, 486)[number % 2]
        sent = started(bench, flow=flow, key=number)
        answered(bench, sent, 180, flow)
        answered(bench, sent, status, flow)
        name, request = arrived(bench, flow=flow, branch=f"z9hG4bK{number}")
        respond(bench, name, request, status)
        bench.put(MessageReceived(flow, new_request("ACK", f"z9hG4bK{number}")))
        bench.until(bench.now + 0.01)
        bench.log.clear()
        assert len(bench.layer._table) < 5000
    bench.until(bench.now + 700)
    assert bench.empty() and not bench.layer._table


def test_timer_order_is_stable() -> None:
    """Calling handle_timer early does nothing; after a long pause each thing due happens once."""
    bench = Bench()
    started(bench, "OPTIONS")
    assert bench.layer.handle_timer(0.4) == []
    outputs = bench.layer.handle_timer(31.0)
    assert len(of(outputs, SendMessage)) == 1
    outputs = bench.layer.handle_timer(1000.0)
    assert outputs[-1] == TransactionEnded("k")


def test_replayable() -> None:
    """The same seed gives the same octets."""
    make: Callable[[], bytes] = lambda: only_send(Bench().put(SendRequest(UDP, new_request("OPTIONS", None), 1))).data  # noqa: E731
    assert make() == make()


class Unproved(NamedTuple):
    """What a refusal is made of."""

    status: int = 401
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = (("WWW-Authenticate", 'Digest realm="x"'),)


@pytest.mark.parametrize("method", ["REGISTER", "INVITE", "MESSAGE"])
def test_refused_without_a_transaction(method: str) -> None:
    """RFC 3261 section 8.2.7: what is refused at the door leaves nothing behind, and each copy gets the same To tag."""
    layer = TransactionLayer(random.Random(1), refuse=lambda flow, request: Unproved())
    answers = []
    for now in (0.0, 0.5):
        (sent,) = layer.receive(MessageReceived(UDP, new_request(method)), now)
        assert isinstance(sent, SendMessage) and sent.transaction is None
        answers.append(parse_message(sent.data))
    first, again = answers
    assert isinstance(first, Response) and first.status == 401 and first.to_tag and first.has("www-authenticate")
    assert first.encode() == again.encode() and layer.open_count == layer.lingering_count == 0
    assert layer.next_timer() is None
    outputs = layer.receive(MessageReceived(UDP, new_request("CANCEL", "z9hG4bKc")), 1.0)
    assert isinstance(outputs[-1], RequestReceived)

"""What is fuzzed, each a function of bytes that returns if all is well: only SipError is caught, the rest is a fault.

`fuzz.py` beside it runs one of them under atheris; `test_fuzz.py` runs all of them, and the kept corpus without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

from p2psipd.proto.sip.authentication import DigestGate, Verdict
from p2psipd.proto.sip.digest import Algorithm, Challenge, Credentials, NonceIssuer, NonceState, answer, choose, ha1
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.proto.sip.stream import KeepAlive, StreamParser
from p2psipd.proto.sip.transaction import (
    Cancel,
    Input,
    Limits,
    MessageReceived,
    Output,
    RequestReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    Timers,
    TransactionEnded,
    TransactionLayer,
    TransportFailed,
)
from p2psipd.proto.sip.uri import SipUri

UDP = Flow("UDP", ("192.0.2.77", 5060), ("192.0.2.1", 5060))
TCP = Flow("TCP", ("192.0.2.78", 40000), ("192.0.2.1", 5060), connection=1)


# ---- the parser --------------------------------------------------------------------------------------------


def _read_all(message: Request | Response) -> None:
    """Every typed reading of a message that has passed `check`: none of them may raise, but where requests lead that
    follow a response."""
    _ = (message.vias, message.top_via, message.cseq, message.call_id, message.from_tag, message.to_tag)
    _ = (message.expires, message.contact_star)
    if message.is_request:
        _read_addresses(message)
    else:
        with suppress(SipError):
            _read_addresses(message)
    _ = (message.require, message.proxy_require, message.supported, message.allow, message.content_type)


def _read_addresses(message: Request | Response) -> None:
    _ = (message.routes, message.record_routes, message.paths, message.max_forwards)
    for contact in message.contacts:
        uri = contact.uri
        _ = (contact.q, contact.expires, contact.display, hash(uri), uri == message.from_.uri)
        if isinstance(uri, SipUri):
            _ = (uri.aor, uri.gr, uri.lr, uri.ob, uri.maddr, uri.transport, uri.without_params("lr"))


def _edit(message: Request | Response) -> None:
    """What a proxy does to a checked message; the result is well formed again."""
    message.set_via_received("2001:db8::1", 5060)
    message.push_via("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx")
    message.prepend("Record-Route", "<sip:192.0.2.1;lr>")
    message.set("Max-Forwards", "69")
    message.remove_first("route")
    again = parse_message(message.encode())
    again.check()
    if again.encode() != message.encode():
        raise AssertionError("an edited message is read differently")


def parser(data: bytes) -> None:
    """A datagram: whatever it holds, SipError or a message that leaves as it came and can be edited."""
    try:
        message = parse_message(data)
        message.check()
    except SipError as error:
        if error.request is not None:
            parse_message(make_response(error.request, error.status, error.reason, "t").encode())
        return
    _read_all(message)
    encoded = message.encode()
    again = parse_message(encoded)
    again.check()
    if again.encode() != encoded or again.body != message.body or again.headers != parse_message(encoded).headers:
        raise AssertionError("a message does not survive being written and read")
    _edit(message.copy())
    if message.encode() != encoded:
        raise AssertionError("editing a copy has changed the original")


# ---- the stream framer -------------------------------------------------------------------------------------


def _framed(data: bytes, cuts: list[int]) -> tuple[list[bytes], bool]:
    """The messages of a stream that comes in these pieces, and whether it ended in a fault."""
    framer = StreamParser(4096, 4096)
    found: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        try:
            found += [item.encode() for item in framer.feed(data[begin:end]) if not isinstance(item, KeepAlive)]
        except SipError:
            return found, True
        if framer.pending > 8192 + len(data):
            raise AssertionError("more is held back than has come")
    with suppress(SipError):
        found += [item.encode() for item in framer.feed(b"") if not isinstance(item, KeepAlive)]
    return found, framer.failed is not None


def stream(data: bytes) -> None:
    """A byte stream, its first two octets saying how it is cut: the messages do not depend on the pieces."""
    if len(data) < 2:
        return
    step, data = data[0] * 4 + 1, data[2:]
    cuts = list(range(step, len(data), step))
    if _framed(data, []) != _framed(data, cuts):
        raise AssertionError("what is read depends on how the stream is cut")


# ---- the transaction layer ---------------------------------------------------------------------------------

SEPARATOR = b"\n%%\n"
_MAX_STEPS = 64


class _LayerRun:
    """A transaction layer between a network and a user that both do as the fuzzer says."""

    def __init__(self) -> None:
        self.layer = TransactionLayer(random.Random(1), Timers(), Limits(12, 12))
        self.now = 0.0
        self.servers: list[tuple[str, Request]] = []
        self.requests: list[Request] = []
        self.live: set[object] = set()
        self.keys = 0

    def feed(self, item: Input) -> None:
        self._look(self.layer.receive(item, self.now))

    def _look(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, SendMessage):
                sent = parse_message(output.data)
                if isinstance(sent, Request):
                    self.requests = [*self.requests[-3:], sent]
            elif isinstance(output, RequestReceived) and output.transaction is not None:
                self.live.add(output.transaction)
                self.servers = [*self.servers[-3:], (output.transaction, output.request)]
            elif isinstance(output, TransactionEnded):
                # Exactly once each: a second one raises KeyError.
                self.live.remove(output.transaction)
        if self.layer.open_count > 12 + 4 or self.layer.lingering_count > 12:
            raise AssertionError("limits are not kept")

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._look(self.layer.handle_timer(self.now))
        due = self.layer.next_timer()
        if due is not None and due <= self.now:
            raise AssertionError("a timer is due after handle_timer")

    def step(self, action: bytes, rest: bytes) -> None:
        """One action of the network or of the user."""
        number = rest[0] if rest else 0
        if action in b"<(":
            with suppress(SipError):
                self.feed(MessageReceived(UDP if action == b"<" else TCP, parse_message(rest)))
        elif action == b">" and self.servers:
            name, request = self.servers[number % len(self.servers)]
            self.feed(SendResponse(name, make_response(request, _STATUSES[number % len(_STATUSES)], to_tag="t")))
        elif action == b"s" and self.servers:
            self.keys += 1
            self.live.add(self.keys)
            flow, request = UDP if number & 1 else TCP, self.servers[-1][1]
            if request.method == "ACK":
                self.live.discard(self.keys)
            else:
                self.feed(SendRequest(flow, request, self.keys))
        elif action == b"r" and self.requests:
            request = self.requests[number % len(self.requests)]
            with suppress(SipError):
                answered = make_response(request, _STATUSES[number % len(_STATUSES)], to_tag="u").encode()
                self.feed(MessageReceived(UDP if number & 64 else TCP, parse_message(answered)))
        elif action == b"c":
            self.feed(Cancel(number % (self.keys + 1)))
        elif action == b"t":
            self.wait(number / 8)
        elif action == b"f":
            self.feed(TransportFailed(flow=TCP if number & 1 else UDP))


_STATUSES = (100, 180, 183, 200, 202, 302, 401, 404, 408, 480, 486, 487, 503, 600)


def transaction(data: bytes) -> None:
    """Steps of a network and a user in any order: limits hold, each transaction ends once, and all end."""
    run = _LayerRun()
    for piece in data.split(SEPARATOR)[:_MAX_STEPS]:
        run.step(piece[:1], piece[1:])
    for _ in range(40):
        run.wait(700.0)
    if run.live or run.layer.open_count or run.layer.lingering_count or run.layer.next_timer() is not None:
        raise AssertionError("transactions are left when all timers have run")


# ---- digest ------------------------------------------------------------------------------------------------

_KEY = OwnSecret(bytes(32))
# Made at 1000.0 under that key; the corpus has answers to it.
_NONCE = "AAAAAAAPQkDjsMRC47DEQiJlsfVPTD2tliEvScHI-sF0aPjC"
_KNOWN = {each.value: bytes.fromhex(ha1(each, "alice", "r.example", "wonder")) for each in Algorithm}
_REQUEST = (
    b"REGISTER sip:r.example SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1\r\nFrom: <sip:alice@r.example>;tag=1\r\n"
    b"To: <sip:alice@r.example>\r\nCall-ID: 1\r\nCSeq: 1 REGISTER\r\n"
)


def digest(data: bytes) -> None:
    """A header value as credentials, as a challenge and as a nonce: nobody is let in who does not know the password."""
    text = data.decode("utf-8", "replace")
    with suppress(SipError):
        Challenge.parse(text)
    chosen = choose([text])
    if chosen is not None:
        with suppress(SipError):
            made = Credentials.parse(answer(chosen, "alice", "wonder", "REGISTER", "sip:r.example", "c0ffee"))
            if made.username != "alice" or made.nonce != chosen.nonce:
                raise AssertionError("our own answer is not understood")
    if NonceIssuer(_KEY).open(text, 1000.0).state is NonceState.VALID and text != _NONCE:
        raise AssertionError("a nonce was forged")
    try:
        request = parse_message(_REQUEST + b"Authorization: " + data.replace(b"\n", b"") + b"\r\n\r\n")
        assert isinstance(request, Request)
        gate = DigestGate(_KEY, random.Random(2))
        credentials = gate.presented(request, "r.example", proxy=False)
    except SipError:
        return
    if credentials is None:
        return
    nonce = gate.nonce(credentials, 1000.0)
    verdict = gate.check(credentials, request, None, nonce)
    if verdict is Verdict.GOOD:
        raise AssertionError("an unknown user was let in")
    gate.check(credentials, request, _KNOWN, nonce)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "parser": parser, "stream": stream, "transaction": transaction, "digest": digest
}  # fmt: skip

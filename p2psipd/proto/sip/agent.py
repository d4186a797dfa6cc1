"""A user agent core (RFC 3261 sections 8, 10, 11, 13 to 15): registers, calls, answers, sends and takes
messages.

Small on purpose: one audio stream of G.711, no reliable provisional responses, no transfer. It serves the
tests, the demonstration and the `ua` verb; inputs and outputs are in `agent_io`. A pure core: time and
randomness come from outside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent_call import ACK_WAIT, T1, T2, Call, CallState, Unacknowledged, session_of
from p2psipd.proto.sip.agent_registration import USER_AGENT, Registration
from p2psipd.proto.sip.dialog import MAX_FORWARDS, Dialog
from p2psipd.proto.sip.digest import answer as digest_answer
from p2psipd.proto.sip.digest import choose
from p2psipd.proto.sip.errors import MalformedUri, SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.sdp import CONTENT_TYPE
from p2psipd.proto.sip.transaction import (
    Cancel,
    MessageReceived,
    RequestReceived,
    ResponseReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    SendStateless,
    TransactionEnded,
    TransactionFailed,
    TransactionLayer,
    TransactionTimedOut,
    TransportFailed,
)
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, Uri, parse_uri

ALLOW: Final = "INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE"
DIGEST_ATTEMPTS: Final = 3
MAX_TEXT: Final = 16384


class _Pending:
    """A request of ours that waits for its final answer. `acks` are the ACKs sent, by To tag, for repeated
    2xx."""

    __slots__ = ("acks", "attempts", "flow", "kind", "ref", "request")

    def __init__(self, kind: str, ref: int, request: Request, flow: Flow, attempts: int = 0) -> None:
        self.kind = kind
        self.ref = ref
        self.request = request
        self.flow = flow
        self.attempts = attempts
        self.acks: dict[str, tuple[Flow, Request]] = {}


class Agent:
    """The core of one user agent.

    `flow` leads to the registrar and outbound proxy (settings.server) or, without one, gives the local
    address that requests leave from. `random` needs only `getrandbits`. Outputs are `SendMessage` and those
    of `agent_io`.
    """

    def __init__(self, settings: io.AgentSettings, flow: Flow, random: Any) -> None:
        self._settings = settings
        self._flow = flow
        self._random = random
        self._transactions = TransactionLayer(random)
        self._out: list[Any] = []
        self._pending: dict[Hashable, _Pending] = {}
        self._calls: dict[int, Call] = {}
        self._serial = 0
        self._incoming = 0
        self._registration = Registration(settings, random)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            MessageReceived: self._layer,
            TransportFailed: self._on_transport_failed,
            io.Register: self._on_register,
            io.Unregister: self._on_unregister,
            io.Invite: self._on_invite,
            io.Answer: self._on_answer,
            io.Reject: self._on_reject,
            io.HangUp: self._on_hang_up,
            io.SendText: self._on_send_text,
            io.SendOptions: self._on_send_options,
        }
        self._requests: dict[str, Callable[[RequestReceived, float], None]] = {
            "INVITE": self._on_invited,
            "ACK": self._on_acknowledged,
            "BYE": self._on_bye,
            "CANCEL": self._on_cancelled,
            "OPTIONS": self._on_options,
            "MESSAGE": self._on_text,
        }

    # ---- the machine

    def receive(self, item: Any, now: float, wall: float = 0.0) -> list[Any]:
        """Take one input; `wall` is not used."""
        self._handlers[item.__class__](item, now)
        return self._flush()

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        times = [call.unacknowledged.at for call in self._calls.values() if call.unacknowledged is not None]
        for at in (self._transactions.next_timer(), self._registration.due_at):
            if at is not None:
                times.append(at)
        return min(times, default=None)

    def handle_timer(self, now: float, wall: float = 0.0) -> list[Any]:
        """Do what is due: the transactions' timers, 2xx to be repeated, the registration's refresh."""
        for output in self._transactions.handle_timer(now):
            self._take(output, now)
        for call in list(self._calls.values()):
            if call.unacknowledged is not None and call.unacknowledged.at <= now:
                self._repeat_answer(call, call.unacknowledged, now)
        due_at = self._registration.due_at
        if due_at is not None and due_at <= now:
            self._send_register(now)
        return self._flush()

    def _flush(self) -> list[Any]:
        out, self._out = self._out, []
        return out

    def _token(self) -> str:
        return f"{self._random.getrandbits(80):020x}"

    # ---- between us and the transaction layer

    def _layer(self, item: Any, now: float) -> None:
        for output in self._transactions.receive(item, now):
            self._take(output, now)

    def _take(self, output: Any, now: float) -> None:
        """Perform or pass on one output of the transaction layer."""
        match output:
            case SendMessage():
                self._out.append(output)
            case RequestReceived():
                self._on_request(output, now)
            case ResponseReceived():
                self._on_response(output, now)
            case TransactionTimedOut():
                self._on_no_answer(output.transaction, 408, "Request Timeout", now)
            case TransactionFailed():
                self._on_no_answer(output.transaction, 503, output.reason or "Service Unavailable", now)
            case TransactionEnded():
                self._pending.pop(output.transaction, None)

    def _send(self, pending: _Pending, now: float) -> Hashable:
        """Send a request in a transaction of its own; its key."""
        self._serial += 1
        key = (pending.kind, pending.ref, self._serial)
        self._pending[key] = pending
        call = self._calls.get(pending.ref) if pending.kind == "invite" else None
        if call is not None:
            call.key = key
        self._layer(SendRequest(pending.flow, pending.request, key), now)
        return key

    def _respond(
        self,
        received: RequestReceived,
        status: int,
        now: float,
        headers: Iterable[tuple[str, str]] = (),
        tag: str = "",
    ) -> None:
        response = make_response(received.request, status, None, tag or self._token(), headers)
        if received.transaction is not None:
            self._layer(SendResponse(received.transaction, response), now)

    def _flow_to(self, uri: Uri) -> Flow:
        """The flow for a request whose next hop is `uri`; SipError if it can't be told without a server."""
        if isinstance(uri, SipUri):
            address = (uri.host, uri.port or 5060)
            if self._settings.server and address == self._flow.remote:
                return self._flow
            if _is_address(uri.host):
                return Flow(self._flow.transport, address, self._flow.local, None, self._flow.sent_by)
        if self._settings.server:
            return self._flow
        raise SipError(f"without a server {uri} must have an IP address for its host", status=478)

    def _new_request(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> tuple[Request, Flow]:
        """A request outside any dialog (RFC 3261 section 8.1.1) and the flow for it; SipError for a bad
        target."""
        uri = parse_uri(target)
        if isinstance(uri, OpaqueUri):
            raise MalformedUri(f"{target} can't be called")
        lines = [
            ("Max-Forwards", MAX_FORWARDS),
            ("From", f"<{self._settings.aor}>;tag={self._token()}"),
            ("To", f"<{target}>"),
            ("Call-ID", self._token()),
            ("CSeq", f"1 {method}"),
            ("User-Agent", USER_AGENT),
        ]
        flow = self._flow if self._settings.server else self._flow_to(uri)
        return Request(method, target, [*lines, *headers], body), flow

    # ---- answers to our requests

    def _on_response(self, received: ResponseReceived, now: float) -> None:
        response = received.response
        pending = self._pending.get(received.transaction)
        if pending is None:
            return
        try:
            if response.status < 200:
                self._on_provisional(pending, response)
            elif response.status in (401, 407) and self._authorize(pending, response, now):
                self._pending.pop(received.transaction, None)
            else:
                self._on_final(pending, response.status, response.reason, response, now)
        except SipError as error:
            # An answer that can't be read is no answer (RFC 3261 section 8.1.3.1 has 500 for it).
            if response.status >= 200:
                self._on_final(pending, 500, error.reason, None, now)

    def _on_no_answer(self, key: Hashable, status: int, reason: str, now: float) -> None:
        pending = self._pending.get(key)
        if pending is not None:
            self._on_final(pending, status, reason, None, now)

    def _authorize(self, pending: _Pending, response: Response, now: float) -> bool:
        """Repeat a challenged request with credentials (RFC 3261 section 22.2); False if that is hopeless."""
        asked, given = ("www-authenticate", "Authorization")
        if response.status == 407:
            asked, given = ("proxy-authenticate", "Proxy-Authorization")
        challenge = choose(response.get_all(asked))
        if challenge is None or pending.attempts >= DIGEST_ATTEMPTS:
            return False
        if pending.request.has(given.lower()) and not challenge.stale:
            return False
        call = self._calls.get(pending.ref)
        if call is not None and call.state is CallState.CANCELLING:
            return False
        request = pending.request.copy()
        cseq = request.cseq
        request.set("CSeq", f"{cseq.number + 1} {cseq.method}")
        request.set(
            given,
            digest_answer(
                challenge,
                self._settings.user,
                self._settings.password,
                request.method,
                request.uri_text,
                self._token(),
                1,
                request.body,
            ),
        )
        if pending.kind == "register":
            self._registration.cseq = cseq.number + 1
        elif pending.kind == "bye" and call is not None and call.dialog is not None:
            call.dialog.local_cseq = cseq.number + 1
        elif pending.kind == "invite" and call is not None:
            call.request = request
        self._send(_Pending(pending.kind, pending.ref, request, pending.flow, pending.attempts + 1), now)
        return True

    def _on_final(self, pending: _Pending, status: int, reason: str, response: Response | None, now: float) -> None:
        """A request of ours is answered for good; `response` is None if nobody did, or not legibly."""
        if pending.kind == "register":
            told = self._registration.answered(pending.request, status, reason, response, now)
            if told is None:
                self._send_register(now)
            else:
                self._out.append(told)
        elif pending.kind == "invite":
            if response is not None and status < 300:
                self._on_accepted(pending, response, now)
            else:
                self._on_refused(pending, status, reason)
        elif pending.kind == "bye":
            call = self._calls.get(pending.ref)
            if call is not None:
                self._end(call, call.ending or io.HUNG_UP_HERE, 200)
        elif pending.kind == "request":
            self._out.append(io.RequestAnswered(pending.ref, status, reason))

    # ---- registration

    def _on_register(self, item: io.Register, now: float) -> None:
        self._registration.want(True)
        self._send_register(now)

    def _on_unregister(self, item: io.Unregister, now: float) -> None:
        self._registration.want(False)
        self._send_register(now)

    def _send_register(self, now: float) -> None:
        self._send(_Pending("register", 0, self._registration.request(), self._flow), now)

    def _on_transport_failed(self, item: TransportFailed, now: float) -> None:
        self._layer(item, now)
        flow = item.flow
        if flow is not None and flow.reliable and flow.remote == self._flow.remote:
            self._registration.connection_lost(now)

    # ---- calling (RFC 3261 section 13.2)

    def _headers(self) -> list[tuple[str, str]]:
        return [("Contact", f"<{self._settings.contact}>"), ("Allow", ALLOW)]

    def _on_invite(self, item: io.Invite, now: float) -> None:
        if len(self._calls) >= self._settings.max_calls or item.call in self._calls:
            self._out.append(io.CallEnded(item.call, "too many calls at once", 486))
            return
        try:
            request, flow = self._new_request("INVITE", item.target, self._headers())
        except SipError as error:
            self._out.append(io.CallEnded(item.call, error.reason, error.status))
            return
        call = Call(
            item.call,
            request,
            flow,
            self._settings.media_host,
            self._random.getrandbits(62),
            outgoing=True,
            tag="",
        )
        call.port = item.port
        request.set_body(call.offer(), CONTENT_TYPE)
        self._calls[item.call] = call
        self._send(_Pending("invite", item.call, request, flow), now)

    def _on_provisional(self, pending: _Pending, response: Response) -> None:
        call = self._calls.get(pending.ref)
        if pending.kind != "invite" or call is None or response.status == 100:
            return
        early = session_of(response)
        if early is not None:
            call.remote = early
        if response.status not in call.told and call.state is CallState.CALLING:
            call.told.add(response.status)
            self._out.append(io.CallRinging(call.ref, response.status))

    def _on_accepted(self, pending: _Pending, response: Response, now: float) -> None:
        """A 2xx to our INVITE: acknowledge it each time it comes; only the first makes the call."""
        tag = response.to_tag or ""
        repeated = pending.acks.get(tag)
        if repeated is not None:
            self._layer(SendStateless(*repeated), now)
            return
        dialog = Dialog.of_caller(pending.request, response)
        flow = self._flow_to(dialog.next_hop)
        ack = dialog.ack(pending.request.cseq.number)
        for name in ("Authorization", "Proxy-Authorization"):
            # The ACK carries the INVITE's credentials (RFC 3261 section 22.1).
            value = pending.request.get(name.lower())
            if value is not None:
                ack.set(name, value)
        if len(pending.acks) < self._settings.max_calls:
            pending.acks[tag] = (flow, ack)
        self._layer(SendStateless(flow, ack), now)
        call = self._calls.get(pending.ref)
        if call is None or call.state not in (CallState.CALLING, CallState.CANCELLING):
            # A second branch of a fork answered as well, or the user has gone: hang up on it.
            self._send(_Pending("forked", 0, dialog.request("BYE"), flow), now)
            return
        call.dialog = dialog
        if call.state is CallState.CANCELLING:
            self._send_bye(call, io.CANCELLED, now)
            return
        try:
            answered = session_of(response)
            audio = call.take_answer(response.body if answered is not None else b"")
        except SipError as error:
            self._send_bye(call, error.reason, now)
            return
        call.state = CallState.ESTABLISHED
        self._out.append(io.CallEstablished(call.ref, audio))

    def _on_refused(self, pending: _Pending, status: int, reason: str) -> None:
        call = self._calls.get(pending.ref)
        if call is None:
            return
        if call.state is CallState.CANCELLING:
            self._end(call, io.CANCELLED, 487)
        elif call.state is CallState.CALLING:
            self._end(call, f"{status} {reason}", status)

    # ---- ending

    def _on_hang_up(self, item: io.HangUp, now: float) -> None:
        call = self._calls.get(item.call)
        if call is None:
            return
        match call.state:
            case CallState.CALLING:
                call.state = CallState.CANCELLING
                self._layer(Cancel(call.key), now)
            case CallState.RINGING:
                self._on_reject(io.Reject(item.call, 603), now)
            case CallState.ANSWERED:
                # No BYE before the ACK has come (RFC 3261 section 15).
                call.ending = io.HUNG_UP_HERE
            case CallState.ESTABLISHED:
                self._send_bye(call, io.HUNG_UP_HERE, now)

    def _send_bye(self, call: Call, cause: str, now: float) -> None:
        assert call.dialog is not None
        call.state = CallState.ENDING
        call.ending = cause
        call.unacknowledged = None
        request = call.dialog.request("BYE", [("User-Agent", USER_AGENT)])
        self._send(_Pending("bye", call.ref, request, self._flow_in(call)), now)

    def _flow_in(self, call: Call) -> Flow:
        """The flow for a request in a call: where its next hop lies, else the way that the INVITE came."""
        assert call.dialog is not None
        try:
            return self._flow_to(call.dialog.next_hop)
        except SipError:
            return call.flow

    def _end(self, call: Call, cause: str, status: int) -> None:
        del self._calls[call.ref]
        self._out.append(io.CallEnded(call.ref, cause, status))

    # ---- other requests

    def _on_send_text(self, item: io.SendText, now: float) -> None:
        body = item.text.encode()
        self._ask(item.ref, "MESSAGE", item.target, [("Content-Type", "text/plain;charset=UTF-8")], body, now)

    def _on_send_options(self, item: io.SendOptions, now: float) -> None:
        headers = [*self._headers(), ("Accept", CONTENT_TYPE)]
        self._ask(item.ref, "OPTIONS", item.target, headers, b"", now)

    def _ask(self, ref: int, method: str, target: str, headers: list[tuple[str, str]], body: bytes, now: float) -> None:
        try:
            request, flow = self._new_request(method, target, headers, body)
        except SipError as error:
            self._out.append(io.RequestAnswered(ref, error.status, error.reason))
            return
        self._send(_Pending("request", ref, request, flow), now)

    # ---- requests of others (RFC 3261 section 8.2)

    def _on_request(self, received: RequestReceived, now: float) -> None:
        request = received.request
        handler = self._requests.get(request.method)
        try:
            if handler is None:
                self._respond(received, 405, now, [("Allow", ALLOW)])
            elif request.method in ("ACK", "CANCEL"):
                handler(received, now)
            elif isinstance(request.uri, OpaqueUri):
                self._respond(received, 416, now)
            elif request.require:
                self._respond(received, 420, now, [("Unsupported", ", ".join(request.require))])
            else:
                handler(received, now)
        except SipError as error:
            if received.transaction is not None:
                headers = [("Accept", CONTENT_TYPE)] if error.status == 415 else []
                self._respond(received, error.status, now, headers)

    def _find(self, request: Request) -> Call | None:
        """The call that a request of the far side belongs to."""
        for call in self._calls.values():
            if call.dialog is not None and call.dialog.matches(request, from_remote=True):
                return call
        return None

    def _on_invited(self, received: RequestReceived, now: float) -> None:
        """A new call, or a re-INVITE where the To has a tag already (RFC 3261 sections 13.3 and 14.2)."""
        request = received.request
        if request.to_tag is not None:
            self._on_reinvited(received, now)
            return
        if len(self._calls) >= self._settings.max_calls:
            self._respond(received, 486, now)
            return
        if any(_merges(call, request) for call in self._calls.values()):
            self._respond(received, 482, now)
            return
        remote = session_of(request)
        tag = self._token()
        dialog = Dialog.of_callee(request, tag)
        self._incoming -= 1
        call = Call(
            self._incoming,
            request,
            received.flow,
            self._settings.media_host,
            self._random.getrandbits(62),
            outgoing=False,
            tag=tag,
        )
        call.transaction = received.transaction or ""
        call.remote = remote
        call.dialog = dialog
        self._calls[call.ref] = call
        self._respond(received, 180, now, self._headers(), tag)
        caller = NameAddr.parse(dialog.remote)
        self._out.append(io.IncomingCall(call.ref, str(caller.uri), request.uri_text))

    def _on_answer(self, item: io.Answer, now: float) -> None:
        call = self._calls.get(item.call)
        if call is None or call.state is not CallState.RINGING:
            return
        call.port = item.port
        try:
            body = call.describe()
        except SipError as error:
            self._on_reject(io.Reject(item.call, error.status), now)
            return
        call.state = CallState.ANSWERED
        self._accept(call, call.request, call.transaction, body, now)

    def _accept(self, call: Call, request: Request, transaction: str, body: bytes, now: float) -> None:
        """Send a 2xx to an INVITE, to be repeated until its ACK comes (RFC 3261 section 13.3.1.4)."""
        response = make_response(request, 200, None, call.tag, self._headers())
        response.set_body(body, CONTENT_TYPE)
        call.unacknowledged = Unacknowledged(transaction, response, request.cseq.number, now + T1, T1, now + ACK_WAIT)
        self._layer(SendResponse(transaction, response), now)

    def _repeat_answer(self, call: Call, waiting: Unacknowledged, now: float) -> None:
        """Send a 2xx once more, or end a call whose ACK never came."""
        if now >= waiting.until:
            self._send_bye(call, "no ACK came", now)
            return
        interval = min(2 * waiting.interval, T2)
        call.unacknowledged = waiting._replace(at=min(now + interval, waiting.until), interval=interval)
        self._layer(SendResponse(waiting.transaction, waiting.response), now)

    def _on_reject(self, item: io.Reject, now: float) -> None:
        call = self._calls.get(item.call)
        if call is None or call.state is not CallState.RINGING:
            return
        response = make_response(call.request, item.status, None, call.tag)
        self._layer(SendResponse(call.transaction, response), now)
        self._end(call, f"refused here with {item.status}", item.status)

    def _on_reinvited(self, received: RequestReceived, now: float) -> None:
        request = received.request
        call = self._find(request)
        if call is None or call.dialog is None:
            self._respond(received, 481, now)
            return
        if not call.dialog.accept(request):
            self._respond(received, 500, now)
            return
        if call.state is not CallState.ESTABLISHED or call.unacknowledged is not None:
            wait = self._random.getrandbits(16) % 10
            self._respond(received, 500, now, [("Retry-After", str(wait))])
            return
        before = (call.remote, call.local, call.version, call.audio)
        call.remote = session_of(request)
        try:
            body = call.describe()
        except SipError:
            call.remote, call.local, call.version, call.audio = before
            raise
        call.tag = call.dialog.local_tag
        call.dialog.refresh_target(request)
        self._accept(call, request, received.transaction or "", body, now)

    def _on_acknowledged(self, received: RequestReceived, now: float) -> None:
        call = self._find(received.request)
        if call is None or call.unacknowledged is None or received.request.cseq.number != call.unacknowledged.cseq:
            return
        call.unacknowledged = None
        try:
            # With an offer in the INVITE the 2xx was the answer, and a body here means nothing.
            offered_by_us = call.remote is None
            if offered_by_us and session_of(received.request) is None:
                raise SipError("the ACK has no session description", status=488)
            audio = call.take_answer(received.request.body if offered_by_us else b"")
        except SipError as error:
            self._send_bye(call, error.reason, now)
            return
        if call.ending is not None:
            self._send_bye(call, call.ending, now)
        elif call.state is CallState.ANSWERED:
            call.state = CallState.ESTABLISHED
            self._out.append(io.CallEstablished(call.ref, audio))
        else:
            self._out.append(io.CallChanged(call.ref, audio))

    def _on_bye(self, received: RequestReceived, now: float) -> None:
        call = self._find(received.request)
        if call is None or call.dialog is None:
            self._respond(received, 481, now)
            return
        if not call.dialog.accept(received.request):
            self._respond(received, 500, now)
            return
        self._respond(received, 200, now)
        if call.state is CallState.RINGING:
            # A BYE in an early dialog ends the call like a CANCEL (RFC 3261 section 15.1.2).
            self._layer(SendResponse(call.transaction, make_response(call.request, 487, None, call.tag)), now)
        self._end(call, call.ending or io.HUNG_UP_THERE, 200)

    def _on_cancelled(self, received: RequestReceived, now: float) -> None:
        if received.invite is None:
            self._respond(received, 481, now)
            return
        call = next((call for call in self._calls.values() if call.transaction == received.invite), None)
        self._respond(received, 200, now, (), call.tag if call is not None else "")
        if call is not None and call.state is CallState.RINGING:
            self._layer(SendResponse(call.transaction, make_response(call.request, 487, None, call.tag)), now)
            self._end(call, "cancelled by the caller", 487)

    def _on_options(self, received: RequestReceived, now: float) -> None:
        self._respond(received, 200, now, [*self._headers(), ("Accept", f"{CONTENT_TYPE}, text/plain")])

    def _on_text(self, received: RequestReceived, now: float) -> None:
        request = received.request
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        if kind != "text/plain":
            self._respond(received, 415, now, [("Accept", "text/plain")])
            return
        if len(request.body) > MAX_TEXT:
            self._respond(received, 513, now)
            return
        self._respond(received, 200, now)
        sender = NameAddr.parse(request.get("from") or "")
        self._out.append(io.TextReceived(str(sender.uri), request.body.decode("utf-8", "replace")))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _merges(call: Call, request: Request) -> bool:
    """Is `request` the same INVITE that reached us by another way already (RFC 3261 section 8.2.2.2)?"""
    first = call.request
    return (
        not call.outgoing
        and first.call_id == request.call_id
        and first.from_tag == request.from_tag
        and first.cseq == request.cseq
    )

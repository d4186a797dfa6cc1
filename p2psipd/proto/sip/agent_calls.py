"""The user agent's calls: INVITE and what belongs to it (RFC 3261 sections 13 to 15), used by
`p2psipd.proto.sip.agent`. What happens inside an established call is in `agent_session`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent_call import ACK_WAIT, T1, T2, Call, CallState, Unacknowledged, session_of
from p2psipd.proto.sip.agent_client import USER_AGENT, Client, Outcome, Pending
from p2psipd.proto.sip.agent_session import Session
from p2psipd.proto.sip.dialog import Dialog
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.sdp import CONTENT_TYPE
from p2psipd.proto.sip.session_timer import MIN_SE, answer_request, take_answer, too_brief
from p2psipd.proto.sip.transaction import RequestReceived, SendResponse, SendStateless


class Calls:
    """All calls of one agent. `inputs` and `requests` say which methods take what."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: dict[int, Call] = {}
        self._incoming = 0
        self._session = Session(client, self._find, self._accept, self._send_bye)
        self.inputs: dict[type, Callable[[Any, float], None]] = {
            io.Invite: self._on_invite,
            io.Answer: self._on_answer,
            io.Reject: self._on_reject,
            io.HangUp: self._on_hang_up,
            io.Hold: self._on_hold,
        }
        self.requests: dict[str, Callable[[RequestReceived, float], None]] = {
            "INVITE": self._on_invited,
            "ACK": self._on_acknowledged,
            "BYE": self._on_bye,
            "CANCEL": self._on_cancelled,
            "UPDATE": self._session.on_update,
            "INFO": self._session.on_info,
        }

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        return min((at for call in self._calls.values() if (at := call.next_timer()) is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """2xx to be repeated, changes to be tried again, sessions to be refreshed or given up."""
        for call in list(self._calls.values()):
            if call.unacknowledged is not None and call.unacknowledged.at <= now:
                self._repeat_answer(call, call.unacknowledged, now)
            if call.state is CallState.ESTABLISHED:
                self._session.handle_timer(call, now)

    # ---- calling (RFC 3261 section 13.2)

    def _on_invite(self, item: io.Invite, now: float) -> None:
        client = self._client
        settings = client.settings
        if len(self._calls) >= settings.max_calls or item.call in self._calls:
            client.out.append(io.CallEnded(item.call, "too many calls at once", 486))
            return
        headers = client.contact_headers()
        if settings.session_seconds:
            headers.append(("Session-Expires", str(max(MIN_SE, settings.session_seconds))))
        try:
            request, flow = client.request("INVITE", item.target, headers)
        except SipError as error:
            client.out.append(io.CallEnded(item.call, error.reason, error.status))
            return
        call = Call(item.call, request, flow, settings.media_host, client.random.getrandbits(62), outgoing=True, tag="")
        call.port = item.port
        request.set_body(call.offer(), CONTENT_TYPE)
        self._calls[item.call] = call
        self._send_invite(call, request, now)

    def _send_invite(self, call: Call, request: Request, now: float) -> None:
        """Send the INVITE of a call, the first one or one that is repeated with other headers."""

        def restated(again: Request) -> bool:
            if call.state is CallState.CANCELLING:
                return False
            call.request = again
            return True

        call.request = request
        pending = Pending(
            request, call.flow, self._invite_ended, ref=call.ref, progressed=self._on_provisional, restated=restated
        )
        self._client.send(pending, now)

    def _on_provisional(self, pending: Pending, response: Response) -> None:
        call = self._calls.get(pending.ref)
        if call is None or response.status == 100:
            return
        early = session_of(response)
        if early is not None:
            call.remote = early
        if response.status not in call.told and call.state is CallState.CALLING:
            call.told.add(response.status)
            self._client.out.append(io.CallRinging(call.ref, response.status))

    def _invite_ended(self, pending: Pending, outcome: Outcome, now: float) -> None:
        if outcome.response is not None and outcome.status < 300:
            self._on_accepted(pending, outcome.response, now)
        else:
            self._on_refused(pending, outcome, now)

    def _on_accepted(self, pending: Pending, response: Response, now: float) -> None:
        """A 2xx to our INVITE: acknowledge it each time it comes; only the first makes the call."""
        client = self._client
        tag = response.to_tag or ""
        repeated = pending.acks.get(tag)
        if repeated is not None:
            client.feed(SendStateless(*repeated), now)
            return
        dialog = Dialog.of_caller(pending.request, response)
        flow = self._flow_towards(dialog, pending.flow)
        self._session.acknowledge(pending, dialog, flow, tag, now)
        call = self._calls.get(pending.ref)
        if call is None or call.state not in (CallState.CALLING, CallState.CANCELLING):
            # A second branch of a fork answered as well, or the user has gone: hang up on it.
            client.send(Pending(dialog.request("BYE"), flow, _unheard), now)
            return
        call.dialog = dialog
        call.updates = "UPDATE" in response.allow
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
        call.session = take_answer(response, now)
        client.out.append(io.CallEstablished(call.ref, audio))

    def _on_refused(self, pending: Pending, outcome: Outcome, now: float) -> None:
        call = self._calls.get(pending.ref)
        if call is None:
            return
        if call.state is CallState.CANCELLING:
            self._end(call, io.CANCELLED, 487)
        elif call.state is CallState.CALLING:
            longer = _longer_interval(pending.request, outcome)
            if longer is not None:
                self._send_invite(call, longer, now)
            else:
                self._end(call, f"{outcome.status} {outcome.reason}", outcome.status)

    # ---- ending

    def _on_hang_up(self, item: io.HangUp, now: float) -> None:
        call = self._calls.get(item.call)
        if call is None:
            return
        match call.state:
            case CallState.CALLING:
                call.state = CallState.CANCELLING
                self._client.cancel(call.ref, now)
            case CallState.RINGING:
                self._on_reject(io.Reject(item.call, 603), now)
            case CallState.ANSWERED:
                # No BYE before the ACK has come (RFC 3261 section 15).
                call.ending = io.HUNG_UP_HERE
            case CallState.ESTABLISHED:
                self._send_bye(call, io.HUNG_UP_HERE, now)

    def _send_bye(self, call: Call, cause: str, now: float) -> None:
        dialog = call.dialog
        assert dialog is not None
        call.state = CallState.ENDING
        call.ending = cause
        call.unacknowledged = None
        call.change_at = None

        def ended(pending: Pending, outcome: Outcome, now: float) -> None:
            if call.ref in self._calls:
                self._end(call, call.ending or io.HUNG_UP_HERE, 200)

        request = dialog.request("BYE", [("User-Agent", USER_AGENT)])
        pending = Pending(request, self._flow_towards(dialog, call.flow), ended, restated=renumber(dialog))
        self._client.send(pending, now)

    def _flow_towards(self, dialog: Dialog, last: Flow) -> Flow:
        """The flow for a request in a dialog: where its next hop lies, else the way that the INVITE took."""
        try:
            return self._client.flow_to(dialog.next_hop)
        except SipError:
            return last

    def _end(self, call: Call, cause: str, status: int) -> None:
        del self._calls[call.ref]
        self._client.out.append(io.CallEnded(call.ref, cause, status))

    def _on_hold(self, item: io.Hold, now: float) -> None:
        call = self._calls.get(item.call)
        if call is not None and call.state is CallState.ESTABLISHED:
            self._session.hold(call, item.on, now)

    # ---- being called (RFC 3261 section 13.3)

    def _find(self, request: Request) -> Call | None:
        """The call that a request of the far side belongs to."""
        for call in self._calls.values():
            if call.dialog is not None and call.dialog.matches(request, from_remote=True):
                return call
        return None

    def _on_invited(self, received: RequestReceived, now: float) -> None:
        """A new call, or a re-INVITE where the To has a tag already (RFC 3261 sections 13.3 and 14.2)."""
        request, client = received.request, self._client
        if too_brief(request):
            client.respond(received, 422, now, [("Min-SE", str(MIN_SE))])
            return
        if request.to_tag is not None:
            self._session.on_reinvited(received, now)
            return
        if any(_merges(call, request) for call in self._calls.values()):
            client.respond(received, 482, now)
            return
        if len(self._calls) >= client.settings.max_calls:
            client.respond(received, 486, now)
            return
        remote = session_of(request)
        tag = client.token()
        dialog = Dialog.of_callee(request, tag)
        self._incoming -= 1
        call = Call(
            self._incoming,
            request,
            received.flow,
            client.settings.media_host,
            client.random.getrandbits(62),
            outgoing=False,
            tag=tag,
        )
        call.transaction = received.transaction or ""
        call.remote = remote
        call.dialog = dialog
        call.updates = "UPDATE" in request.allow
        self._calls[call.ref] = call
        client.respond(received, 180, now, client.contact_headers(), tag)
        caller = NameAddr.parse(dialog.remote)
        client.out.append(io.IncomingCall(call.ref, str(caller.uri), request.uri_text))

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
        headers, call.session = answer_request(request, now)
        response = make_response(request, 200, None, call.tag, [*self._client.contact_headers(), *headers])
        response.set_body(body, CONTENT_TYPE)
        call.unacknowledged = Unacknowledged(transaction, response, request.cseq.number, now + T1, T1, now + ACK_WAIT)
        self._client.feed(SendResponse(transaction, response), now)

    def _repeat_answer(self, call: Call, waiting: Unacknowledged, now: float) -> None:
        """Send a 2xx once more, or end a call whose ACK never came."""
        if now >= waiting.until:
            self._send_bye(call, "no ACK came", now)
            return
        interval = min(2 * waiting.interval, T2)
        call.unacknowledged = waiting._replace(at=min(now + interval, waiting.until), interval=interval)
        self._client.feed(SendResponse(waiting.transaction, waiting.response), now)

    def _on_reject(self, item: io.Reject, now: float) -> None:
        call = self._calls.get(item.call)
        if call is None or call.state is not CallState.RINGING:
            return
        response = make_response(call.request, item.status, None, call.tag)
        self._client.feed(SendResponse(call.transaction, response), now)
        self._end(call, f"refused here with {item.status}", item.status)

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
            self._client.out.append(io.CallEstablished(call.ref, audio))
        else:
            self._client.out.append(io.CallChanged(call.ref, audio))

    def _on_bye(self, received: RequestReceived, now: float) -> None:
        client = self._client
        call = self._find(received.request)
        if call is None or call.dialog is None:
            client.respond(received, 481, now)
            return
        if not call.dialog.accept(received.request):
            client.respond(received, 500, now)
            return
        client.respond(received, 200, now)
        if call.state is CallState.RINGING:
            # A BYE in an early dialog ends the call like a CANCEL (RFC 3261 section 15.1.2).
            client.feed(SendResponse(call.transaction, make_response(call.request, 487, None, call.tag)), now)
        self._end(call, call.ending or io.HUNG_UP_THERE, 200)

    def _on_cancelled(self, received: RequestReceived, now: float) -> None:
        client = self._client
        if received.invite is None:
            client.respond(received, 481, now)
            return
        call = next((call for call in self._calls.values() if call.transaction == received.invite), None)
        client.respond(received, 200, now, (), call.tag if call is not None else "")
        if call is not None and call.state is CallState.RINGING:
            client.feed(SendResponse(call.transaction, make_response(call.request, 487, None, call.tag)), now)
            self._end(call, "cancelled by the caller", 487)


def renumber(dialog: Dialog) -> Callable[[Request], bool]:
    """What keeps a dialog's CSeq in step with a request that is repeated with credentials."""

    def restated(request: Request) -> bool:
        dialog.local_cseq = request.cseq.number
        return True

    return restated


def _unheard(pending: Pending, outcome: Outcome, now: float) -> None:
    """The answer to a BYE that ends what never was a call of the user's."""


def _longer_interval(request: Request, outcome: Outcome) -> Request | None:
    """The INVITE with the interval that a 422 demands (RFC 4028 section 7.4); None if that was not the matter."""
    least = outcome.response.get("min-se") if outcome.response is not None and outcome.status == 422 else None
    seconds = (least or "").partition(";")[0].strip()
    asked = request.get("session-expires")
    if asked is None or not (seconds.isascii() and seconds.isdigit()) or len(seconds) > 9:
        return None
    if int(seconds) <= int(asked):
        return None
    again = request.copy()
    again.set("Session-Expires", seconds)
    again.set("Min-SE", seconds)
    again.set("CSeq", f"{request.cseq.number + 1} INVITE")
    return again


def _merges(call: Call, request: Request) -> bool:
    """Is `request` the same INVITE that reached us by another way already (RFC 3261 section 8.2.2.2)?"""
    first = call.request
    return (
        not call.outgoing
        and first.call_id == request.call_id
        and first.from_tag == request.from_tag
        and first.cseq == request.cseq
    )

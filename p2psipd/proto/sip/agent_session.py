"""What happens inside an established call of the user agent: re-INVITE and UPDATE both ways (RFC 3261 section 14,
RFC 3311), hold (RFC 3264 section 8.4), session timers (RFC 4028), INFO with digits. Used by `agent_calls`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2psipd.proto.media.telephone_event import DIGITS
from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent_call import Call, CallState, Change, session_of
from p2psipd.proto.sip.agent_client import Client, Outcome, Pending
from p2psipd.proto.sip.dialog import Dialog
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.sdp import CONTENT_TYPE
from p2psipd.proto.sip.session_timer import MIN_SE, Expiry, SessionTimer, answer_request, take_answer, too_brief
from p2psipd.proto.sip.transaction import RequestReceived, SendStateless

DTMF_RELAY: Final = "application/dtmf-relay"
DTMF: Final = "application/dtmf"


class Session:
    """Offers, answers and timers inside calls.

    `find` names the call of a request, `accept` sends the 2xx to a re-INVITE, `end` hangs up for a cause.
    """

    def __init__(
        self,
        client: Client,
        find: Callable[[Request], Call | None],
        accept: Callable[[Call, Request, str, bytes, float], None],
        end: Callable[[Call, str, float], None],
    ) -> None:
        self._client = client
        self._find = find
        self._accept = accept
        self._end = end

    # ---- our offers

    def hold(self, call: Call, on: bool, now: float) -> None:
        """Put the far side on hold or take it back; nothing happens if that is so already."""
        if call.held != on:
            call.held = on
            self._change(call, now)

    def handle_timer(self, call: Call, now: float) -> None:
        """A change that waited for its turn, the refresh of a session, or the end of one that nobody refreshed."""
        if call.change_at is not None and call.change_at <= now:
            self._change(call, now)
        timer = call.session
        if timer is None or timer.at > now:
            return
        if not timer.ours:
            self._end(call, "the session was not refreshed", now)
        elif call.change is not None or call.unacknowledged is not None:
            call.session = timer._replace(at=now + 1)
        else:
            # If this refresh leads to nothing, there is time for another one before the session expires.
            call.session = timer._replace(at=now + timer.interval / 4)
            self._refresh(call, timer, now)

    def _change(self, call: Call, now: float) -> None:
        """Offer the far side what we want now, as soon as no other offer is under way."""
        call.change_at = None
        if call.change is not None or call.unacknowledged is not None:
            call.change_at = now + self._pause(call)
            return
        before = Change(call.local, call.remote, call.audio, False)
        body = call.offer()
        call.change = before
        self._send(call, "INVITE", body, now)

    def _refresh(self, call: Call, timer: SessionTimer, now: float) -> None:
        """Refresh a session (RFC 4028 section 10): by UPDATE where the far side takes it, else by re-INVITE."""
        body = b"" if call.updates else call.repeat_offer()
        call.change = Change(call.local, call.remote, call.audio, True)
        self._send(call, "UPDATE" if call.updates else "INVITE", body, now)

    def _send(self, call: Call, method: str, body: bytes, now: float) -> None:
        dialog = call.dialog
        assert dialog is not None
        headers = self._client.contact_headers()
        if call.session is not None:
            refresher = "uac" if call.session.ours else "uas"
            headers.append(("Session-Expires", str(Expiry(call.session.interval, refresher))))
        request = dialog.request(method, headers)
        if body:
            request.set_body(body, CONTENT_TYPE)

        def restated(again: Request) -> bool:
            dialog.local_cseq = again.cseq.number
            return call.state is CallState.ESTABLISHED

        def finished(pending: Pending, outcome: Outcome, now: float) -> None:
            self._changed(call, dialog, pending, outcome, now)

        try:
            flow = self._client.flow_to(dialog.next_hop)
        except SipError:
            flow = call.flow
        self._client.send(Pending(request, flow, finished, restated=restated), now)

    def _changed(self, call: Call, dialog: Dialog, pending: Pending, outcome: Outcome, now: float) -> None:
        """Our re-INVITE or UPDATE has been answered for good."""
        response = outcome.response
        if response is not None and outcome.status < 300:
            if pending.request.method == "INVITE":
                tag = response.to_tag or ""
                if tag in pending.acks:
                    self._client.feed(SendStateless(*pending.acks[tag]), now)
                    return
                dialog.refresh_target(response)
                self.acknowledge(pending, dialog, pending.flow, tag, now)
            self._agreed(call, dialog, response, now)
            return
        change, call.change = call.change, None
        if call.state is not CallState.ESTABLISHED or change is None:
            return
        call.local, call.remote, call.audio = change.local, change.remote, change.audio
        if outcome.status in (408, 481):
            # The far side knows the call no more (RFC 3261 section 12.2.1.2).
            self._end(call, f"{outcome.status} {outcome.reason}", now)
        elif change.refresh:
            call.updates = call.updates and outcome.status not in (405, 501)
        elif outcome.status == 491:
            call.change_at = now + self._pause(call)
        else:
            call.held = not call.held
            self._client.out.append(io.ChangeRefused(call.ref, outcome.status, outcome.reason))

    def _agreed(self, call: Call, dialog: Dialog, response: Response, now: float) -> None:
        """A 2xx to our re-INVITE or UPDATE."""
        change, call.change = call.change, None
        if call.state is not CallState.ESTABLISHED or change is None:
            return
        dialog.refresh_target(response)
        call.session = take_answer(response, now)
        try:
            if session_of(response) is None:
                if not change.refresh:
                    raise SipError("a re-INVITE was accepted without a session description", status=488)
                return
            audio = call.take_answer(response.body)
        except SipError as error:
            self._end(call, error.reason, now)
            return
        if not change.refresh or audio != change.audio:
            self._client.out.append(io.CallChanged(call.ref, audio))

    def _pause(self, call: Call) -> float:
        """How long to wait after a 491 (RFC 3261 section 14.1): whoever made the Call-ID waits longer."""
        drawn: int = self._client.random.getrandbits(16)
        return 2.1 + drawn % 191 / 100 if call.outgoing else drawn % 201 / 100

    def acknowledge(self, pending: Pending, dialog: Dialog, flow: Flow, tag: str, now: float) -> None:
        """Send the ACK for a 2xx (RFC 3261 section 13.2.2.4) and keep it for repetitions of the 2xx."""
        ack = dialog.ack(pending.request.cseq.number)
        for name in ("Authorization", "Proxy-Authorization"):
            # The ACK carries the INVITE's credentials (RFC 3261 section 22.1).
            value = pending.request.get(name.lower())
            if value is not None:
                ack.set(name, value)
        if len(pending.acks) < self._client.settings.max_calls:
            pending.acks[tag] = (flow, ack)
        self._client.feed(SendStateless(flow, ack), now)

    # ---- theirs

    def _in_order(self, received: RequestReceived, now: float) -> Call | None:
        """The call of a request inside a dialog; None if it has been answered (481, or 500 out of order)."""
        call = self._find(received.request)
        if call is None or call.dialog is None:
            self._client.respond(received, 481, now)
            return None
        if not call.dialog.accept(received.request):
            self._client.respond(received, 500, now)
            return None
        return call

    def _busy(self, call: Call, received: RequestReceived, now: float) -> bool:
        """Refuse an offer while another one is open: 491 if ours is, 500 if we have yet to finish theirs (RFC 3261
        section 14.2, RFC 3311 section 5.2).
        """
        if call.change is not None:
            self._client.respond(received, 491, now)
            return True
        if call.state is not CallState.ESTABLISHED or call.unacknowledged is not None:
            wait = self._client.random.getrandbits(16) % 10
            self._client.respond(received, 500, now, [("Retry-After", str(wait))])
            return True
        return False

    def on_reinvited(self, received: RequestReceived, now: float) -> None:
        """A re-INVITE (RFC 3261 section 14.2)."""
        request = received.request
        call = self._in_order(received, now)
        if call is None or call.dialog is None or self._busy(call, received, now):
            return
        body = self._answer(call, session_of(request) is None, request)
        call.tag = call.dialog.local_tag
        call.dialog.refresh_target(request)
        self._accept(call, request, received.transaction or "", body, now)

    def _answer(self, call: Call, unoffered: bool, request: Request) -> bytes:
        """Our answer to the offer in a request, or with none our offer; SipError leaves everything as it was."""
        before = (call.remote, call.local, call.version, call.audio)
        call.remote = None if unoffered else session_of(request)
        try:
            return call.describe()
        except SipError:
            call.remote, call.local, call.version, call.audio = before
            raise

    def on_update(self, received: RequestReceived, now: float) -> None:
        """UPDATE (RFC 3311 section 5.2): a new offer, or a session refreshed without one."""
        request, client = received.request, self._client
        if too_brief(request):
            client.respond(received, 422, now, [("Min-SE", str(MIN_SE))])
            return
        call = self._in_order(received, now)
        if call is None or call.dialog is None:
            return
        offered = session_of(request) is not None
        if offered and self._busy(call, received, now):
            return
        body = self._answer(call, False, request) if offered else b""
        call.dialog.refresh_target(request)
        headers, timer = answer_request(request, now)
        if call.state is CallState.ESTABLISHED:
            call.session = timer
        if body:
            headers.append(("Content-Type", CONTENT_TYPE))
        client.respond(received, 200, now, [*client.contact_headers(), *headers], call.dialog.local_tag, body)
        if offered and call.audio is not None:
            client.out.append(io.CallChanged(call.ref, call.audio))

    def on_info(self, received: RequestReceived, now: float) -> None:
        """INFO with digits, as gateways and old phones send them; an empty one is a question whether we live."""
        request = received.request
        call = self._in_order(received, now)
        if call is None:
            return
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        if request.body and kind not in (DTMF_RELAY, DTMF):
            self._client.respond(received, 415, now, [("Accept", f"{DTMF_RELAY}, {DTMF}")])
            return
        digits = _digits(request.body, relay=kind == DTMF_RELAY)
        if request.body and not digits:
            self._client.respond(received, 400, now)
            return
        self._client.respond(received, 200, now)
        if digits:
            self._client.out.append(io.DigitsReceived(call.ref, digits))


def _digits(body: bytes, *, relay: bool) -> str:
    """The key in an INFO: after "Signal=" (dtmf-relay), or the body itself; "" if there is none."""
    text = body[:256].decode("ascii", "replace")
    if relay:
        pairs = dict(line.partition("=")[::2] for line in text.splitlines())
        text = next((value for name, value in pairs.items() if name.strip().lower() == "signal"), "")
    digit = text.strip().upper()
    # Some write the keys of the last column and row by their event codes.
    digit = {"10": "*", "11": "#"}.get(digit, digit)
    return digit if len(digit) == 1 and digit in DIGITS else ""

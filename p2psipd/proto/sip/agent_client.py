"""The user agent's dealings with the transaction layer: requests sent, challenged and answered (used by
`p2psipd.proto.sip.agent` and its parts)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.dialog import MAX_FORWARDS
from p2psipd.proto.sip.digest import answer as digest_answer
from p2psipd.proto.sip.digest import choose
from p2psipd.proto.sip.errors import MalformedUri, SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.transaction import (
    Cancel,
    RequestReceived,
    ResponseReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    TransactionEnded,
    TransactionFailed,
    TransactionLayer,
    TransactionTimedOut,
)
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, Uri, parse_uri

ALLOW: Final = "INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE, UPDATE, INFO"
DIGEST_ATTEMPTS: Final = 3
USER_AGENT: Final = "p2psipd-ua"


class Outcome(NamedTuple):
    """How a request of ours ended: a final status, and the response unless there was none, or none legible."""

    status: int
    reason: str
    response: Response | None


class Pending:
    """A request of ours that waits for its final answer.

    `finished(pending, outcome, now)` is called once for it, and again for each further 2xx to an INVITE;
    `progressed(pending, response)` for provisional ones. `restated(request)` is told when the request is sent again
    with credentials, and may forbid it by returning False. `acks` are the ACKs sent, by To tag, for repeated 2xx.
    """

    __slots__ = ("acks", "attempts", "finished", "flow", "progressed", "ref", "request", "restated")

    def __init__(
        self,
        request: Request,
        flow: Flow,
        finished: Callable[[Pending, Outcome, float], None],
        *,
        ref: int = 0,
        progressed: Callable[[Pending, Response], None] | None = None,
        restated: Callable[[Request], bool] | None = None,
        attempts: int = 0,
    ) -> None:
        self.request = request
        self.flow = flow
        self.finished = finished
        self.ref = ref
        self.progressed = progressed
        self.restated = restated
        self.attempts = attempts
        self.acks: dict[str, tuple[Flow, Request]] = {}


class Client:
    """Sends requests in transactions, answers challenges (RFC 3261 section 22.2), and tells how they ended.

    `flows` lead to the registrars (settings.server); `on_request` gets what others ask of us. `out` gathers the outputs
    of the whole agent until it takes them with `flush`.
    """

    def __init__(
        self,
        settings: io.AgentSettings,
        flows: Sequence[Flow],
        random: Any,
        on_request: Callable[[RequestReceived, float], None],
    ) -> None:
        self.settings = settings
        self.flows = tuple(flows)
        self.flow = self.flows[0]
        self.random = random
        self.out: list[Any] = []
        self._on_request = on_request
        self._transactions = TransactionLayer(random)
        self._pending: dict[Hashable, Pending] = {}
        self._serial = 0
        self.next_timer = self._transactions.next_timer

    def flush(self) -> list[Any]:
        """What has been put out since the last call."""
        out, self.out = self.out, []
        return out

    def token(self) -> str:
        """A new tag, Call-ID or cnonce."""
        return f"{self.random.getrandbits(80):020x}"

    # ---- the transaction layer

    def feed(self, item: Any, now: float) -> None:
        """An input of the transaction layer."""
        for output in self._transactions.receive(item, now):
            self._take(output, now)

    def handle_timer(self, now: float) -> None:
        """The transactions' timers."""
        for output in self._transactions.handle_timer(now):
            self._take(output, now)

    def _take(self, output: Any, now: float) -> None:
        match output:
            case SendMessage():
                self.out.append(output)
            case RequestReceived():
                self._on_request(output, now)
            case ResponseReceived():
                self._on_response(output, now)
            case TransactionTimedOut():
                self._on_no_answer(output.transaction, Outcome(408, "Request Timeout", None), now)
            case TransactionFailed():
                self._on_no_answer(output.transaction, Outcome(503, output.reason or "Service Unavailable", None), now)
            case TransactionEnded():
                self._pending.pop(output.transaction, None)

    def send(self, pending: Pending, now: float) -> Hashable:
        """Send a request in a transaction of its own; its key."""
        self._serial += 1
        key = (pending.ref, self._serial)
        self._pending[key] = pending
        self.feed(SendRequest(pending.flow, pending.request, key), now)
        return key

    def cancel(self, ref: int, now: float) -> None:
        """Cancel the INVITE that is under way for call `ref` (RFC 3261 section 9.1)."""
        for key, pending in list(self._pending.items()):
            if ref and pending.ref == ref:
                self.feed(Cancel(key), now)

    def respond(
        self,
        received: RequestReceived,
        status: int,
        now: float,
        headers: Iterable[tuple[str, str]] = (),
        tag: str = "",
        body: bytes = b"",
    ) -> None:
        """Answer a request of another; an ACK gets none. A `body` is of the type that `headers` name."""
        if received.transaction is not None:
            response = make_response(received.request, status, None, tag or self.token(), headers)
            if body:
                response.set_body(body)
            self.feed(SendResponse(received.transaction, response), now)

    # ---- requests outside dialogs

    def request(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> tuple[Request, Flow]:
        """A request outside any dialog (RFC 3261 section 8.1.1) and the flow for it; SipError for a bad target."""
        uri = parse_uri(target)
        if isinstance(uri, OpaqueUri):
            raise MalformedUri(f"{target} can't be called")
        lines = [
            ("Max-Forwards", MAX_FORWARDS),
            ("From", f"<{self.settings.aor}>;tag={self.token()}"),
            ("To", f"<{target}>"),
            ("Call-ID", self.token()),
            ("CSeq", f"1 {method}"),
            ("User-Agent", USER_AGENT),
        ]
        flow = self.flow if self.settings.server else self.flow_to(uri)
        return Request(method, target, [*lines, *headers], body), flow

    def contact_headers(self) -> list[tuple[str, str]]:
        """Contact, Allow and Supported of requests and answers that make a dialog."""
        # "ob" asks the edge to keep the dialog on this flow (RFC 5626 section 4.3).
        contact = self.settings.contact + (";ob" if self.settings.instance else "")
        return [("Contact", f"<{contact}>"), ("Allow", ALLOW), ("Supported", "timer")]

    def flow_to(self, uri: Uri) -> Flow:
        """The flow for a request whose next hop is `uri`; SipError if it can't be told without a server."""
        if isinstance(uri, SipUri):
            secure = uri.is_secure or (uri.transport or "").upper() == "TLS"
            address = (uri.host, uri.port or (5061 if secure else 5060))
            if self.settings.server:
                for flow in (self.flow, *self.flows):
                    if address == flow.remote:
                        return flow
            if _is_address(uri.host):
                return Flow(self.flow.transport, address, self.flow.local, None, self.flow.sent_by)
        if self.settings.server:
            return self.flow
        raise SipError(f"without a server {uri} must have an IP address for its host", status=478)

    # ---- answers to our requests

    def _on_response(self, received: ResponseReceived, now: float) -> None:
        response = received.response
        pending = self._pending.get(received.transaction)
        if pending is None:
            return
        try:
            if response.status < 200:
                if pending.progressed is not None:
                    pending.progressed(pending, response)
            elif response.status in (401, 407) and self._authorize(pending, response, now):
                self._pending.pop(received.transaction, None)
            else:
                pending.finished(pending, Outcome(response.status, response.reason, response), now)
        except SipError as error:
            # An answer that can't be read is no answer (RFC 3261 section 8.1.3.1 has 500 for it).
            if response.status >= 200:
                pending.finished(pending, Outcome(500, error.reason, None), now)

    def _on_no_answer(self, key: Hashable, outcome: Outcome, now: float) -> None:
        pending = self._pending.get(key)
        if pending is not None:
            pending.finished(pending, outcome, now)

    def _authorize(self, pending: Pending, response: Response, now: float) -> bool:
        """Repeat a challenged request with credentials (RFC 3261 section 22.2); False if that is hopeless."""
        asked, given = ("www-authenticate", "Authorization")
        if response.status == 407:
            asked, given = ("proxy-authenticate", "Proxy-Authorization")
        challenge = choose(response.get_all(asked))
        if challenge is None or pending.attempts >= DIGEST_ATTEMPTS:
            return False
        if pending.request.has(given.lower()) and not challenge.stale:
            return False
        request = pending.request.copy()
        cseq = request.cseq
        request.set("CSeq", f"{cseq.number + 1} {cseq.method}")
        request.set(
            given,
            digest_answer(
                challenge,
                self.settings.user,
                self.settings.password,
                request.method,
                request.uri_text,
                self.token(),
                1,
                request.body,
            ),
        )
        if pending.restated is not None and not pending.restated(request):
            return False
        again = Pending(
            request,
            pending.flow,
            pending.finished,
            ref=pending.ref,
            progressed=pending.progressed,
            restated=pending.restated,
            attempts=pending.attempts + 1,
        )
        self.send(again, now)
        return True


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

"""A user agent core (RFC 3261 sections 8, 10, 11, 13 to 15): registers, calls, answers, sends and takes
messages.

One audio stream of G.711 with telephone events, hold and resumption, session timers, outbound registrations (RFC
5626); no reliable provisional responses, no transfer. It serves the tests, the demonstration, the echo service and
the `ua` verb; inputs and outputs are in `agent_io`. A pure core: time and randomness come from outside. Its parts:
`agent_client` (requests and challenges), `agent_calls` and `agent_session` (calls), `agent_registration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent_calls import Calls
from p2psipd.proto.sip.agent_client import ALLOW, Client, Outcome, Pending
from p2psipd.proto.sip.agent_registration import Registration
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.sdp import CONTENT_TYPE
from p2psipd.proto.sip.session_timer import OPTION
from p2psipd.proto.sip.transaction import MessageReceived, RequestReceived, TransportFailed
from p2psipd.proto.sip.uri import OpaqueUri

MAX_TEXT: Final = 16384


class Agent:
    """The core of one user agent.

    `flow` leads to the registrar and outbound proxy (settings.server) or, without one, gives the local
    address that requests leave from; `more` are flows to further registrars (with settings.instance).
    `random` needs only `getrandbits`. Outputs are `SendMessage` and those of `agent_io`.
    """

    def __init__(self, settings: io.AgentSettings, flow: Flow, random: Any, more: Sequence[Flow] = ()) -> None:
        flows = (flow, *more)
        self._client = Client(settings, flows, random, self._on_request)
        self._calls = Calls(self._client)
        self._registrations = [Registration(settings, each, random, n) for n, each in enumerate(flows, 1)]
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            MessageReceived: self._on_message,
            TransportFailed: self._on_transport_failed,
            io.KeepAliveAnswered: self._on_keep_alive_answered,
            io.Register: self._on_register,
            io.Unregister: self._on_unregister,
            io.SendText: self._on_send_text,
            io.SendOptions: self._on_send_options,
            **self._calls.inputs,
        }
        self._requests: dict[str, Callable[[RequestReceived, float], None]] = {
            "OPTIONS": self._on_options,
            "MESSAGE": self._on_text,
            **self._calls.requests,
        }

    # ---- the machine

    def receive(self, item: Any, now: float, wall: float = 0.0) -> list[Any]:
        """Take one input; `wall` is not used."""
        self._handlers[item.__class__](item, now)
        return self._client.flush()

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        times = [self._client.next_timer(), self._calls.next_timer()]
        times += [registration.next_timer() for registration in self._registrations]
        return min((at for at in times if at is not None), default=None)

    def handle_timer(self, now: float, wall: float = 0.0) -> list[Any]:
        """Do what is due: transactions, calls, registrations and their keep-alives."""
        self._client.handle_timer(now)
        self._calls.handle_timer(now)
        for registration in self._registrations:
            if registration.answer_by is not None and registration.answer_by <= now:
                self._client.out.append(io.CloseFlow(registration.flow))
                self._flow_lost(registration, now)
            if registration.keep_alive_at is not None and registration.keep_alive_at <= now:
                registration.keep_alive_sent(now)
                self._client.out.append(io.SendKeepAlive(registration.flow))
            if registration.due_at is not None and registration.due_at <= now:
                self._send_register(registration, now)
        return self._client.flush()

    def _on_message(self, item: MessageReceived, now: float) -> None:
        self._client.feed(item, now)

    # ---- registration

    def _on_register(self, item: io.Register, now: float) -> None:
        for registration in self._registrations:
            registration.want(True)
            self._send_register(registration, now)

    def _on_unregister(self, item: io.Unregister, now: float) -> None:
        for registration in self._registrations:
            registration.want(False)
            self._send_register(registration, now)

    def _send_register(self, registration: Registration, now: float) -> None:
        def restated(request: Request) -> bool:
            registration.cseq = request.cseq.number
            return True

        def finished(pending: Pending, outcome: Outcome, now: float) -> None:
            others = any(each.registered for each in self._registrations if each is not registration)
            told = registration.answered(
                pending.request, outcome.status, outcome.reason, outcome.response, now, others=others
            )
            if told is None:
                self._send_register(registration, now)
            else:
                self._client.out.append(told)
            self._choose_flow()

        request = registration.request()
        self._client.send(Pending(request, registration.flow, finished, restated=restated), now)

    def _choose_flow(self) -> None:
        """New requests go by the first flow that stands (RFC 5626 section 4.3), by the first of all if none does."""
        standing = [each.flow for each in self._registrations if each.registered]
        self._client.flow = standing[0] if standing else self._registrations[0].flow

    def _on_transport_failed(self, item: TransportFailed, now: float) -> None:
        self._client.feed(item, now)
        flow = item.flow
        if flow is not None and flow.reliable:
            for registration in self._registrations:
                if flow.remote == registration.flow.remote:
                    self._flow_lost(registration, now)

    def _flow_lost(self, registration: Registration, now: float) -> None:
        registration.connection_lost(now)
        self._choose_flow()

    def _on_keep_alive_answered(self, item: io.KeepAliveAnswered, now: float) -> None:
        for registration in self._registrations:
            if item.flow.remote == registration.flow.remote:
                registration.answer_by = None

    # ---- requests outside dialogs

    def _on_send_text(self, item: io.SendText, now: float) -> None:
        body = item.text.encode()
        self._ask(item.ref, "MESSAGE", item.target, [("Content-Type", "text/plain;charset=UTF-8")], body, now)

    def _on_send_options(self, item: io.SendOptions, now: float) -> None:
        headers = [*self._client.contact_headers(), ("Accept", CONTENT_TYPE)]
        self._ask(item.ref, "OPTIONS", item.target, headers, b"", now)

    def _ask(self, ref: int, method: str, target: str, headers: list[tuple[str, str]], body: bytes, now: float) -> None:
        def finished(pending: Pending, outcome: Outcome, now: float) -> None:
            self._client.out.append(io.RequestAnswered(ref, outcome.status, outcome.reason))

        try:
            request, flow = self._client.request(method, target, headers, body)
        except SipError as error:
            self._client.out.append(io.RequestAnswered(ref, error.status, error.reason))
            return
        self._client.send(Pending(request, flow, finished), now)

    # ---- requests of others (RFC 3261 section 8.2)

    def _on_request(self, received: RequestReceived, now: float) -> None:
        request, client = received.request, self._client
        handler = self._requests.get(request.method)
        try:
            unknown = [name for name in request.require if name.lower() != OPTION]
            if handler is None:
                client.respond(received, 405, now, [("Allow", ALLOW)])
            elif request.method in ("ACK", "CANCEL"):
                handler(received, now)
            elif isinstance(request.uri, OpaqueUri):
                client.respond(received, 416, now)
            elif unknown:
                client.respond(received, 420, now, [("Unsupported", ", ".join(unknown))])
            else:
                handler(received, now)
        except SipError as error:
            if received.transaction is not None:
                headers = [("Accept", CONTENT_TYPE)] if error.status == 415 else []
                client.respond(received, error.status, now, headers)

    def _on_options(self, received: RequestReceived, now: float) -> None:
        headers = [*self._client.contact_headers(), ("Accept", f"{CONTENT_TYPE}, text/plain")]
        self._client.respond(received, 200, now, headers)

    def _on_text(self, received: RequestReceived, now: float) -> None:
        request, client = received.request, self._client
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        if kind != "text/plain":
            client.respond(received, 415, now, [("Accept", "text/plain")])
            return
        if len(request.body) > MAX_TEXT:
            client.respond(received, 513, now)
            return
        client.respond(received, 200, now)
        sender = NameAddr.parse(request.get("from") or "")
        client.out.append(io.TextReceived(str(sender.uri), request.body.decode("utf-8", "replace")))

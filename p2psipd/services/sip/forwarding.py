"""Forks on their way: what the forwarding contexts order, and what the transactions of their branches report
(RFC 3261 section 16).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from twisted.logger import Logger

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.fork import (
    Answered,
    Branch,
    CancelBranch,
    Cancelled,
    Failed,
    Forward,
    ForwardingContext,
    Located,
    Output,
    Recurse,
    Relocate,
    Respond,
    Silent,
)
from p2psipd.proto.sip.locating import Attempt, DomainIdentity, LocationUnavailable, NotLocated, Target, Unreachable
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.proxy import Home, Refused, build, take_routes
from p2psipd.proto.sip.transaction import Cancel, RequestReceived, SendRequest, SendResponse, SendStateless
from p2psipd.proto.sip.uri import SipUri
from p2psipd.services.sip.call_book import CallBook
from p2psipd.services.sip.clock import Clocks
from p2psipd.services.sip.routing import FlowGone, Routing, over_tls, peer_of

_MAKES_DIALOG: Final = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY"})

_NOT_HUNG_UP: Final = frozenset({401, 403, 407})
"""Answers to a BYE after which its call goes on: somebody must first say, or may never say, who he is."""

TARGET_REFRESH: Final = frozenset({"INVITE", "UPDATE"})

_HEARD_AFTER: Final = 1.2
"""Another node sends 100 within 0.2 s; one that has said nothing by now is suspected, and another way begun."""
_LOST_AFTER: Final = 3.8
"""A node that has said nothing by now is given up, so that the caller has its answer within 5 s."""

_OUR_VIA: Final = 120
"""Octets that the transaction layer still adds to a request."""

Work = Coroutine[Any, Any, None]


def _is_private(message: Request | Response) -> bool:
    """Whether phones may not be told whose message this is (RFC 3325 sections 5 and 9.3)."""
    privacy = message.get("privacy")
    return privacy is not None and "id" in (value.strip() for value in privacy.lower().split(";"))


class _Try:
    """The key of a branch's second and further client transactions (compared by identity)."""

    __slots__ = ("branch",)

    def __init__(self, branch: Branch) -> None:
        self.branch = branch


class Forwarder:
    """The forks that are under way.

    `feed` hands inputs to the transaction layer, `start` runs what must wait for something, `relocate` looks a
    user up afresh and calls :meth:`forward`, `recurse` does that for the contacts of a redirect, `heirs` finds the
    phone of a dialog whose registrar or flow is gone, `new_tag` draws a To tag. `home` may change when listeners are
    added.
    """

    log = Logger()

    def __init__(
        self,
        routing: Routing,
        clocks: Clocks,
        calls: CallBook,
        counters: Counter[str],
        home: Home,
        *,
        reactor: Any,
        feed: Callable[[object], None],
        start: Callable[[Work], None],
        relocate: Callable[[ForwardingContext], Work],
        recurse: Callable[[ForwardingContext, Sequence[tuple[SipUri, float]]], Work],
        heirs: Callable[[Request, Flow, str], Coroutine[Any, Any, Sequence[Target]]],
        new_tag: Callable[[], str],
    ) -> None:
        self.home = home
        self._routing = routing
        self._clocks = clocks
        self._calls = calls
        self._counters = counters
        self._reactor = reactor
        self._feed = feed
        self._start = start
        self._relocate = relocate
        self._recurse = recurse
        self._heirs = heirs
        self._new_tag = new_tag
        self._contexts: dict[Any, ForwardingContext] = {}
        # INVITEs to other nodes, in the order in which something should be heard; then those that are suspected.
        self._unheard: deque[tuple[float, Branch]] = deque()
        self._suspected: deque[tuple[float, Branch]] = deque()
        self._listener: Any = None

    def __len__(self) -> int:
        return len(self._contexts)

    def stop(self) -> None:
        """No more timers."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    # ---- from the service --------------------------------------------------------------------------------------

    def begin(self, context: ForwardingContext) -> None:
        """A request has come that is to be answered; its CANCEL finds it from now on."""
        self._contexts[context.transaction] = context

    def forward(self, context: ForwardingContext, targets: Sequence[Target]) -> None:
        """The request may go to these places (none: 480), for a sips: URI to those that are reached over TLS (RFC 5630
        section 5.3).
        """
        request = context.request
        if targets and isinstance(request.uri, SipUri) and request.uri.is_secure:
            targets = [target for target in targets if over_tls(target)]
            if not targets:
                warning = ("Warning", f'380 {request.uri.host} "SIPS Not Allowed"')
                self.refuse(context, make_response(request, 480, headers=[warning]))
                return
        self._perform(context, context.receive(Located(targets), self._clocks.now()))

    def refuse(self, context: ForwardingContext, response: Response) -> None:
        """The request goes nowhere; unless its CANCEL was quicker, this is its answer."""
        if not context.finished:
            self._counters[f"answered_{response.status}"] += 1
            outputs = context.receive(Located((), response.status), self._clocks.now())
            self._perform(context, outputs, response)

    def answer(self, context: ForwardingContext, response: Response) -> None:
        """Answer a request here; unless its CANCEL was quicker."""
        if not context.finished:
            context.finished = True
            self._respond(context, response)

    def reply(self, transaction: Any, response: Response) -> None:
        """Send a response; one made here gets its To tag here (RFC 3261 section 8.2.6.2)."""
        if response.status > 100 and response.to_tag is None:
            response.add_to_tag(self._new_tag())
        self._feed(SendResponse(transaction, response))

    def acknowledge(self, flow: Flow, request: Request) -> None:
        """An ACK for a 2xx follows its Route; it is no transaction and gets no answer (RFC 3261 section
        13.2.2.4). Like every request of a dialog it may come in place of a registrar that has died.
        """
        try:
            if request.max_forwards == 0:
                raise Refused(483)
            taken = take_routes(request, self.home)
            if not taken:
                # Without one of our Routes it is the ACK of a refusal that left no transaction.
                user = self._routing.drop_routes(request)
                if user is None:
                    raise Refused(404)
                if not request.has("route"):
                    raise FlowGone(user)
            crossing = self._routing.crossing(request, taken, flow)
            if crossing is not None:
                self._start(self._acknowledge_across(crossing, request))
                return
            target = self._routing.along_dialog(request, taken, isinstance(peer_of(flow), DomainIdentity))
            made = build(request, target)
        except FlowGone as gone:
            self._start(self._acknowledge_anew(flow, request, gone.user))
            return
        except SipError:
            self._counters["ack_dropped"] += 1
            return
        onward = self._routing.at_hand(target)
        if onward is not None:
            self._acknowledge_on(onward, made)
        else:
            self._start(self._acknowledge_when_found(flow, request, target))

    async def _acknowledge_across(self, crossing: Coroutine[Any, Any, Sequence[Target]], request: Request) -> None:
        """To another domain, by the first edge that can be reached."""
        try:
            targets = await crossing
        except (SipError, NotLocated, LocationUnavailable):
            targets = ()
        if not await self._acknowledged(request, targets):
            self._counters["ack_dropped"] += 1

    async def _acknowledge_when_found(self, flow: Flow, request: Request, target: Target) -> None:
        if not await self._acknowledged(request, [target]):
            await self._acknowledge_anew(flow, request, self._routing.drop_routes(request) or "")

    async def _acknowledge_anew(self, flow: Flow, request: Request, user: str) -> None:
        """To where the phone of `user` is now that has the dialog."""
        heirs: Sequence[Target] = () if request.has("route") else await self._heirs(request, flow, user)
        targets = [self._routing.with_route(target, request.call_id) for target in heirs]
        if not await self._acknowledged(request, targets):
            self._counters["ack_dropped"] += 1

    async def _acknowledged(self, request: Request, targets: Sequence[Target]) -> bool:
        """Send an ACK to the first of these that can be reached."""
        for target in targets:
            try:
                made = build(request, target)
                onward = self._routing.at_hand(target)
                attempt = Attempt(onward, made) if onward else await self._routing.route(made, target).next(None)
            except (Unreachable, NotLocated, SipError):
                continue
            if attempt is not None:
                self._acknowledge_on(attempt.flow, attempt.request)
                return True
        return False

    def _acknowledge_on(self, flow: Flow, made: Request) -> None:
        # An ACK is large only where it answers the offer of a 200.
        if made.body and flow.transport == "UDP" and self._routing.too_large(flow, made.size + _OUR_VIA):
            self._start(self._acknowledge_large(flow, made))
        else:
            self._feed(SendStateless(flow, made))

    async def _acknowledge_large(self, flow: Flow, made: Request) -> None:
        self._feed(SendStateless(await self._routing.congestion_controlled(flow), made))

    def cancel(self, event: RequestReceived) -> None:
        """A CANCEL is answered here, and the fork that it names is cancelled (section 16.10)."""
        context = self._contexts.get(event.invite) if event.invite is not None else None
        if context is not None and context.flow.remote[0] != event.flow.remote[0]:
            # RFC 3261 section 22.1: a CANCEL cannot be challenged, but it has to come from where its request came.
            context = None
        status = 481 if context is None else 200
        self.reply(event.transaction, make_response(event.request, status))
        if context is not None:
            self._perform(context, context.receive(Cancelled(), self._clocks.now()))

    # ---- from the transactions ---------------------------------------------------------------------------------

    def answered(self, key: object, response: Response) -> None:
        """A response to the request of a branch; what belongs to no branch is dropped (RFC 6026 section 7.3)."""
        branch = key.branch if isinstance(key, _Try) else key
        if not isinstance(branch, Branch):
            self._counters["stray_response"] += 1
            return
        response.pop_via()
        if not response.has("via"):
            # Meant for us (section 16.7 step 3): who answers has lost the caller, and will not answer once more.
            self._counters["stray_response"] += 1
            if response.status >= 200 and branch.key is key:
                self._fail(branch, 502)
            return
        if branch.key is not key and response.status >= 300:
            return
        if response.has("reason"):
            self._routing.reported(branch.flow, branch.context.flow, response)
        context, call = branch.context, branch.context.call
        if call is not None and response.status > 100 and (response.status < 300 or call.went_on is None):
            call.went_on, call.target, call.binding = branch.flow, branch.target.uri, branch.target.binding
        if response.status >= 300 and branch.route is not None and not branch.cancelled and branch.response is None:
            self._start(self._try_again(branch, response, response.status))
            return
        self._perform(context, context.receive(Answered(branch, response), self._clocks.now()))

    def failed(self, key: object, status: int) -> None:
        """A transaction of a branch ended without a final response: 408 or 503 stands for it. Or the connection is gone
        by which a request came.
        """
        context = self._contexts.get(key)
        if context is not None:
            if context.invite and not context.finished:
                self._start(self._caller_lost(context))
            return
        branch = key.branch if isinstance(key, _Try) else key
        if not isinstance(branch, Branch) or branch.key is not key:
            return
        self._counters["timed_out" if status == 408 else "transport_failed"] += 1
        again = branch.route is not None and not branch.cancelled and branch.response is None
        if again and not (status == 408 and branch.heard):
            self._start(self._try_again(branch, None, status))
        else:
            self._fail(branch, status)

    async def _caller_lost(self, context: ForwardingContext) -> None:
        """Nobody is left ringing for a caller whom no answer reaches (RFC 3261 sections 16.10 and 18.2.2)."""
        if await self._routing.anew(context.flow, context.request) is None:
            self._counters["caller_lost"] += 1
            self._perform(context, context.receive(Cancelled(), self._clocks.now()))

    def ended(self, transaction: object) -> None:
        """Nothing more will come of a transaction."""
        context = self._contexts.pop(transaction, None)
        if context is None:
            return
        if context.call is not None and not context.call.answered_at:
            self._calls.end(context.call, "lost")
        context.let_go()

    def sweep(self) -> None:
        """Now and then: timer C of calls."""
        now = self._clocks.now()
        for context in [c for c in self._contexts.values() if c.invite and not c.finished]:
            due = context.next_timer()
            if due is not None and due <= now:
                self._counters["rang_too_long"] += 1
                self._perform(context, context.handle_timer(now))

    # ---- orders of a context -----------------------------------------------------------------------------------

    def _perform(self, context: ForwardingContext, outputs: Sequence[Output], instead: Response | None = None) -> None:
        """Do what the context orders; `instead` is the full answer where the context only knew a status."""
        for output in outputs:
            match output:
                case Forward(branch):
                    self._launch(branch)
                case Respond(response):
                    self._respond(context, instead or response)
                case CancelBranch(branch):
                    self._feed(Cancel(branch.key))
                case Relocate():
                    self._counters["relocated"] += 1
                    self._start(self._relocate(context))
                case Recurse(contacts):
                    self._counters["redirect_followed"] += 1
                    self._start(self._recurse(context, contacts))

    def _respond(self, context: ForwardingContext, response: Response) -> None:
        request = context.request
        if peer_of(context.flow) is None and _is_private(response):
            response.remove("p-asserted-identity")
        if context.reasons and response.status > 100:
            for reason in context.reasons:
                response.add("Reason", reason)
            context.reasons = ()
        if response.status == 503:
            self._routing.released(context.flow, request)
        if context.call is not None:
            self._calls.responded(context.call, response, context.cancelled)
        if response.status >= 200 and request.to_tag is not None:
            if request.method in TARGET_REFRESH:
                self._calls.refreshed(request, response)
            elif request.method == "BYE" and response.status not in _NOT_HUNG_UP:
                self._calls.hung_up(request)
        self.reply(context.transaction, response)

    def _launch(self, branch: Branch) -> None:
        """Send the request of `branch`: at once where the flow is at hand, else when it is found."""
        target = branch.target
        if target.node_id is not None and branch.context.invite:
            self._listen_for(branch)
        flow = self._routing.at_hand(target)
        if flow is not None:
            self._send(branch, build(branch.context.request, target, (), branch.breadth), flow)
        elif target.flow is not None:
            self._fail(branch, 430)
        else:
            self._start(self._first_try(branch))

    async def _first_try(self, branch: Branch) -> None:
        try:
            plain = build(branch.context.request, branch.target, (), branch.breadth)
        except SipError as error:
            self._unreachable(branch, error)
            self._fail(branch, 503)
            return
        branch.route = self._routing.route(plain, branch.target)
        await self._try_again(branch, None, 503)
        if branch.target.node_id is not None or branch.target.address is not None:
            branch.route = None

    async def _try_again(self, branch: Branch, last: Response | None, status: int) -> None:
        """The next try of the branch's route; without one the last outcome stands: `last`, or `status` alone."""
        attempt: Attempt | None = None
        if branch.route is not None:
            try:
                attempt = await branch.route.next(last)
            except (NotLocated, Refused) as error:
                # There is no way out, or not for this request: the caller is to hear why.
                self._unreachable(branch, error)
                last = make_response(branch.context.request, error.status, error.reason or None)
            except (Unreachable, SipError) as error:
                self._unreachable(branch, error)
        if branch.response is not None:
            return
        if branch.cancelled:
            # The caller gave up, or timer C fired, while we were still looking for the way.
            self._fail(branch, 487)
        elif attempt is not None:
            branch.heard = False
            self._send(branch, attempt.request, attempt.flow)
        elif last is not None:
            context = branch.context
            self._perform(context, context.receive(Answered(branch, last), self._clocks.now()))
        else:
            self._fail(branch, status)

    def _unreachable(self, branch: Branch, error: Exception) -> None:
        self._counters["unreachable"] += 1
        self.log.info("no way to {uri}: {error}", uri=branch.target.uri, error=str(error))

    def _send(self, branch: Branch, made: Request, flow: Flow) -> None:
        """Put our Record-Route values on the copy for this branch, and send it."""
        context = branch.context
        request = context.request
        if request.method in _MAKES_DIALOG and request.to_tag is None:
            binding = branch.target.binding
            callee = binding.aor.removeprefix("sip:") if binding is not None else ""
            for value in reversed(self._routing.record_routes(flow, context.flow, callee, context.user, request)):
                made.prepend("Record-Route", value)
        if flow.transport == "UDP" and self._routing.too_large(flow, made.size + _OUR_VIA):
            self._start(self._send_large(branch, made, flow))
        else:
            self._send_on(branch, made, flow)

    async def _send_large(self, branch: Branch, made: Request, flow: Flow) -> None:
        """RFC 3261 section 18.1.1: a large request goes over TCP, where that is to be had."""
        onward = await self._routing.congestion_controlled(flow)
        if branch.cancelled or branch.response is not None:
            self._fail(branch, 487)
        else:
            self._send_on(branch, made, onward)

    def _send_on(self, branch: Branch, made: Request, flow: Flow) -> None:
        if peer_of(flow) is None and _is_private(made):
            made.remove("p-asserted-identity")
        if branch.flow is not None:
            branch.key = _Try(branch)
        branch.flow = flow
        self._feed(SendRequest(flow, made, branch.key, branch.context.tag))

    def _fail(self, branch: Branch, status: int) -> None:
        context = branch.context
        self._perform(context, context.receive(Failed(branch, status), self._clocks.now()))

    # ---- nodes that hang ---------------------------------------------------------------------------------------

    def _listen_for(self, branch: Branch) -> None:
        """A node has so long to say something to an INVITE; from one that hangs, no other sign may come for long."""
        self._unheard.append((self._clocks.now() + _HEARD_AFTER, branch))
        if self._listener is None:
            self._listener = self._reactor.callLater(_HEARD_AFTER, self._listen)

    def _listen(self) -> None:
        self._listener = None
        now = self._clocks.now()
        while self._unheard and self._unheard[0][0] <= now:
            _, branch = self._unheard.popleft()
            if not branch.heard and branch.response is None:
                self._counters["node_silent"] += 1
                self._suspected.append((now + _LOST_AFTER - _HEARD_AFTER, branch))
                self._keep_silence(branch, False)
        while self._suspected and self._suspected[0][0] <= now:
            self._keep_silence(self._suspected.popleft()[1], True)
        due = [queue[0][0] for queue in (self._unheard, self._suspected) if queue]
        if due and self._listener is None:
            self._listener = self._reactor.callLater(max(0.0, min(due) - now), self._listen)

    def _keep_silence(self, branch: Branch, lost: bool) -> None:
        context = branch.context
        self._perform(context, context.receive(Silent(branch, lost), self._clocks.now()))

"""Forks on their way: what the forwarding contexts order, and what the transactions of their branches report
(RFC 3261 section 16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from twisted.logger import Logger

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.ladder import Ladder
from p2psipd.proto.sip.locating import Target, Unreachable
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.proxy import (
    Answered,
    Branch,
    CancelBranch,
    Cancelled,
    Failed,
    Forward,
    ForwardingContext,
    Home,
    Located,
    Output,
    Refused,
    Relocate,
    Respond,
    build,
    take_routes,
)
from p2psipd.proto.sip.transaction import Cancel, RequestReceived, SendRequest, SendResponse, SendStateless
from p2psipd.services.sip.clock import Clocks
from p2psipd.services.sip.routing import Routing

_MAKES_DIALOG: Final = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY"})

Work = Coroutine[Any, Any, None]


class Forwarder:
    """The forks that are under way.

    `feed` hands inputs to the transaction layer, `start` runs what must wait for something, `relocate` looks a
    user up afresh and calls :meth:`forward`, `new_tag` draws a To tag. `home` may change when listeners are
    added.
    """

    log = Logger()

    def __init__(
        self,
        routing: Routing,
        clocks: Clocks,
        ladder: Ladder,
        counters: Counter[str],
        home: Home,
        *,
        feed: Callable[[object], None],
        start: Callable[[Work], None],
        relocate: Callable[[ForwardingContext], Work],
        new_tag: Callable[[], str],
    ) -> None:
        self.home = home
        self._routing = routing
        self._clocks = clocks
        self._ladder = ladder
        self._counters = counters
        self._feed = feed
        self._start = start
        self._relocate = relocate
        self._new_tag = new_tag
        self._contexts: dict[Any, ForwardingContext] = {}

    # ---- from the service --------------------------------------------------------------------------------------

    def begin(self, context: ForwardingContext) -> None:
        """A request has come that is to be answered; its CANCEL finds it from now on."""
        self._contexts[context.transaction] = context

    def forward(self, context: ForwardingContext, targets: Sequence[Target]) -> None:
        """The request may go to these places (none: 480)."""
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
            self.reply(context.transaction, response)

    def reply(self, transaction: Any, response: Response) -> None:
        """Send a response; one made here gets its To tag here (RFC 3261 section 8.2.6.2)."""
        if response.to_tag is None and response.status > 100:
            response.set("To", f"{response.get('to')};tag={self._new_tag()}")
        self._feed(SendResponse(transaction, response))

    def acknowledge(self, flow: Flow, request: Request) -> None:
        """An ACK for a 2xx follows its Route; it is no transaction and gets no answer (RFC 3261 section
        13.2.2.4).
        """
        try:
            if request.max_forwards == 0:
                raise Refused(483)
            taken = take_routes(request, self.home)
            if not taken:
                raise Refused(404)
            target = self._routing.along_dialog(request, taken)
            made = build(request, target)
        except SipError:
            self._counters["ack_dropped"] += 1
            return
        onward = self._routing.at_hand(target)
        if onward is not None:
            self._feed(SendStateless(onward, made))
        else:
            self._start(self._acknowledge_when_found(target, made))

    async def _acknowledge_when_found(self, target: Target, made: Request) -> None:
        try:
            onward = await self._routing.find(target, made)
        except Unreachable:
            self._counters["ack_dropped"] += 1
            return
        self._feed(SendStateless(onward, made))

    def cancel(self, event: RequestReceived) -> None:
        """A CANCEL is answered here, and the fork that it names is cancelled (section 16.10)."""
        context = self._contexts.get(event.invite) if event.invite is not None else None
        status = 481 if context is None else 200
        self.reply(event.transaction, make_response(event.request, status))
        if context is not None:
            self._perform(context, context.receive(Cancelled(), self._clocks.now()))

    # ---- from the transactions ---------------------------------------------------------------------------------

    def answered(self, branch: object, response: Response) -> None:
        """A response to the request of a branch; what belongs to no branch is dropped (RFC 6026 section 7.3)."""
        if not isinstance(branch, Branch):
            self._counters["stray_response"] += 1
            return
        response.pop_via()
        if not response.has("via"):
            self._counters["stray_response"] += 1
            return
        context = branch.context
        self._perform(context, context.receive(Answered(branch, response), self._clocks.now()))

    def failed(self, branch: object, status: int) -> None:
        """The transaction of a branch ended without a final response: 408 or 503 stands for it."""
        if isinstance(branch, Branch):
            self._counters["timed_out" if status == 408 else "transport_failed"] += 1
            self._fail(branch, status)

    def ended(self, transaction: object) -> None:
        """Nothing more will come of a transaction."""
        self._contexts.pop(transaction, None)

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
                    self._feed(Cancel(branch))
                case Relocate():
                    self._counters["relocated"] += 1
                    self._start(self._relocate(context))

    def _respond(self, context: ForwardingContext, response: Response) -> None:
        request = context.request
        if context.invite and response.status >= 200 and request.to_tag is None:
            if response.status < 300:
                self._ladder.answered(request.call_id, self._clocks.wall())
            elif response.status not in (401, 407):
                self._ladder.ended(request.call_id, self._clocks.wall(), str(response.status))
        elif request.method == "BYE":
            self._ladder.ended(request.call_id, self._clocks.wall(), "BYE")
        self.reply(context.transaction, response)

    def _launch(self, branch: Branch) -> None:
        """Send the request of `branch`: at once where the flow is at hand, else when it is found."""
        target = branch.target
        flow = self._routing.at_hand(target)
        if flow is not None:
            self._launch_on(branch, self._built(branch, flow), flow)
        elif target.flow is not None:
            self._fail(branch, 430)
        else:
            self._start(self._launch_when_found(branch))

    async def _launch_when_found(self, branch: Branch) -> None:
        try:
            plain = build(branch.context.request, branch.target)
            flow = await self._routing.find(branch.target, plain)
        except (Unreachable, SipError) as error:
            self._counters["unreachable"] += 1
            self.log.info("no way to {uri}: {error}", uri=branch.target.uri, error=str(error))
            self._fail(branch, 503)
            return
        if branch.cancelled or branch.response is not None:
            # The caller gave up, or timer C fired, while we were still looking for the way.
            self._fail(branch, 487)
            return
        self._launch_on(branch, self._built(branch, flow), flow)

    def _built(self, branch: Branch, flow: Flow) -> Request:
        request = branch.context.request
        routes: list[str] = []
        if request.method in _MAKES_DIALOG and request.to_tag is None:
            routes = [self._routing.record_route(flow), self._routing.record_route(branch.context.flow)]
        return build(request, branch.target, routes)

    def _launch_on(self, branch: Branch, request: Request, flow: Flow) -> None:
        self._feed(SendRequest(flow, request, branch, branch.context.tag))

    def _fail(self, branch: Branch, status: int) -> None:
        context = branch.context
        self._perform(context, context.receive(Failed(branch, status), self._clocks.now()))

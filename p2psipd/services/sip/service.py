"""The SIP service: its life, its wire, and the ordered steps that a request meets, from top to bottom in
:meth:`SipService._route`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.net.coroutines import run
from p2psipd.net.driver import Driver
from p2psipd.net.in_process import InProcess
from p2psipd.net.sip_transports import Message, SipTransports
from p2psipd.proto.dns import Ask
from p2psipd.proto.sip.authentication import DigestGate, Gatekeeper, Owner, disown
from p2psipd.proto.sip.calls import CallObserver
from p2psipd.proto.sip.edge import Edge
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.fork import ForwardingContext
from p2psipd.proto.sip.ladder import Ladder, Step
from p2psipd.proto.sip.locating import (
    CredentialSource,
    DomainIdentity,
    Locate,
    LocationStore,
    LocationUnavailable,
    NodeConnector,
    NodeIdentity,
    NotLocated,
    Origin,
    Query,
    Target,
)
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.proxy import Home, Refused, loop_tag, take_routes, validate
from p2psipd.proto.sip.record_route import RecordRouter
from p2psipd.proto.sip.registrar import SUPPORTED, BindingTable, Registrar, RegistrationRefused
from p2psipd.proto.sip.shared_secret import OwnSecret, SharedSecret
from p2psipd.proto.sip.transaction import (
    MessageReceived,
    MessageRejected,
    RequestReceived,
    ResponseReceived,
    SendMessage,
    SendStateless,
    TransactionEnded,
    TransactionFailed,
    TransactionLayer,
    TransactionTimedOut,
    TransportFailed,
)
from p2psipd.proto.sip.uri import SipUri, Uri
from p2psipd.services.sip.abuse import Door
from p2psipd.services.sip.admission import COUNTED, NOBODY_ASKED, Admission
from p2psipd.services.sip.call_book import CallBook
from p2psipd.services.sip.clock import Clocks
from p2psipd.services.sip.forwarding import TARGET_REFRESH, Forwarder
from p2psipd.services.sip.keep_alives import KeepAlives
from p2psipd.services.sip.new_calls import NewCalls
from p2psipd.services.sip.redirecting import redirection
from p2psipd.services.sip.registering import Registering
from p2psipd.services.sip.relocating import Relocating, origin_of
from p2psipd.services.sip.routing import FlowGone, Routing, nothing_known, peer_of
from p2psipd.services.sip.settings import ALLOW, RETRY_AFTER, SipSettings

_NOT_NOTED: Final = frozenset({"ACK", "REGISTER"})
"""Requests that are in the ladder of their call already, or belong to none."""
_NO_DOMAINS: Final[frozenset[str]] = frozenset()
_SWEEP_SECONDS: Final = 2.0
_MAX_ROUTING: Final = 5000
"""Requests whose routing waits for something (credentials, the overlay); more are answered 503."""


class SipService(Service):
    """The SIP side of a node; see the package's docstring for how it is made.

    `counters` counts by reason what was refused, dropped, challenged and routed; `listening` names the
    sockets.
    """

    log = Logger()

    def __init__(
        self,
        settings: SipSettings,
        *,
        location: LocationStore,
        credentials: CredentialSource,
        locate: Locate,
        connector: NodeConnector | None,
        table: BindingTable,
        reactor: Any,
        random: Any,
        wall: Callable[[], float],
        transports: Any = None,
        ask: Ask = nothing_known,
        edges: Sequence[Edge] = (),
        observers: Sequence[CallObserver] = (),
        secrets: SharedSecret | None = None,
        owner: Owner | None = None,
        is_emergency: Callable[[Uri], bool] = lambda uri: False,
    ) -> None:
        """`secrets` are shared with the other registrars (None: this node's own, from `settings.secret`); `owner` says
        whose a number is, `is_emergency` which calls no limit stops; `ask` the DNS; `edges` are the ways to other
        domains; `observers` are told of calls. `transports` takes the place of real sockets in tests: a callable like
        SipTransports.
        """
        self.setName("sip")  # type: ignore[no-untyped-call]
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._recursed = frozenset(settings.domains) if settings.recurse else _NO_DOMAINS
        self._locate = locate
        self._connector = connector
        self._table = table
        self._reactor = reactor
        self._clocks = Clocks(reactor, wall, self._clock_jumped)
        self._ladder = Ladder()
        self._door = Door(settings.abuse, settings.scanners, self._clocks.now, self.counters)
        self._edges = {edge.name: edge for edge in edges}
        secrets = secrets or OwnSecret(settings.secret or random.getrandbits(256).to_bytes(32, "big"))
        home = Home(frozenset(), frozenset(settings.domains), settings.overlay, settings.node_id)
        digest = DigestGate(secrets, random, settings.node_id, wall() - 1.0, settings.algorithms)
        self._gate = Gatekeeper(home, settings.domains[0], digest, credentials, self._clocks, owner=owner)
        registered = lambda aor: bool(table.of(aor, wall()))  # noqa: E731
        self._calls = CallBook(settings.call_limits, observers, self._clocks.wall, RETRY_AFTER, registered)
        self._admission = admission = Admission(
            settings,
            self._gate,
            self._edges,
            self._door,
            self._calls,
            self._clocks,
            self._ladder,
            self.counters,
            is_emergency,
        )
        self._layer = TransactionLayer(
            random, refuse=admission.unproved, spares=admission.calls_for_help, knows=admission.knows
        )
        self._driver = self._new_driver()
        self._transports = self._new_transports(transports or SipTransports)
        self._new_calls = NewCalls(reactor, self._layer, self._calls, self._transports, admission, self.counters)
        registrar = Registrar(location, table, settings.node_id, settings.bounds)
        self._registering = Registering(self._gate, registrar, table, self._clocks)
        self._routing = Routing(
            settings.overlay,
            RecordRouter(secrets, random.getrandbits(32), settings.overlay, settings.node_id),
            self._transports,
            connector,
            ask,
            random,
            self._clocks.now,
            self._edges,
        )
        self._forwarder = self._new_forwarder(home)
        self._relocating = Relocating(locate, self._gate, self._routing, self._forwarder, self._clocks, self.counters)
        self._keep_alives = KeepAlives(table, settings.keep_alive_seconds, self.counters)
        self._waiting = 0
        self._sweeper: Any = None

    def _new_transports(self, make: Callable[..., Any]) -> Any:
        settings = self._settings
        return make(
            self._reactor,
            self._received,
            self._malformed,
            self._flow_lost,
            limits=settings.limits,
            public_host=settings.public_host,
            admit=self._door.admit,
            tls_client=settings.tls_client,
        )

    def _new_forwarder(self, home: Home) -> Forwarder:
        return Forwarder(
            self._routing,
            self._clocks,
            self._calls,
            self.counters,
            home,
            reactor=self._reactor,
            feed=self._driver.feed,
            start=self._start,
            relocate=lambda context: self._relocating.relocate(context),
            recurse=lambda context, contacts: self._relocating.recurse(context, contacts),
            heirs=lambda request, flow, user: self._relocating.heirs(request, flow, user),
            new_tag=self._layer.new_tag,
        )

    def _new_driver(self) -> Driver:
        return Driver(
            self._layer,
            {
                SendMessage: self._send,
                RequestReceived: self._request,
                ResponseReceived: self._response,
                TransactionTimedOut: lambda event: self._forwarder.failed(event.transaction, 408),
                TransactionFailed: lambda event: self._forwarder.failed(event.transaction, 503),
                TransactionEnded: lambda event: self._forwarder.ended(event.transaction),
                MessageRejected: self._rejected,
            },
            self._reactor,
            name="sip",
            # 0.0: the transaction layer has no use for the wall clock.
            wall=float,
        )

    # ---- life ----------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen. Raises twisted's CannotListenError."""
        super().startService()  # type: ignore[no-untyped-call]
        settings, transports = self._settings, self._transports
        for address in settings.udp:
            transports.listen_udp(address)
        for address in settings.tcp:
            transports.listen_tcp(address)
        for address in settings.tls_addresses:
            transports.listen_tls(address, settings.tls)
        origins = frozenset(settings.web_origins)
        policy = origins.__contains__ if origins else None
        for address in settings.secure_web:
            transports.listen_web(address, settings.tls, policy)
        for address in settings.web:
            transports.listen_web(address, None, policy)
        if self._connector is not None:
            self._connector.start(self._received, self._flow_lost)
        for edge in self._edges.values():
            edge.start(self._received, self._flow_lost)
        addresses = {address for _, address in transports.listening}
        if settings.public_host:
            addresses |= {(settings.public_host, port) for _, port in addresses}
        if self._connector is not None:
            addresses.add(self._connector.address)
        addresses = addresses.union(*(edge.addresses for edge in self._edges.values()))
        home = self._gate.home._replace(addresses=frozenset(addresses), borders=self._routing.is_border)
        self._gate.home = self._forwarder.home = home
        self._sweeper = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)
        self._new_calls.start()

    def drain(self, seconds: float) -> Deferred[None]:
        """Take no new calls (503 with Retry-After), let the running ones go on; resolves when there is none any
        more, or after `seconds`.
        """
        return self._new_calls.drain(seconds)

    def stopService(self) -> Deferred[Any]:
        """Close everything; resolves when the sockets are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._driver.stop()
        self._new_calls.stop()
        self._forwarder.stop()
        waiting = list(self._transports.stop())
        if self._connector is not None:
            waiting.append(self._connector.stop())
        waiting += [edge.stop() for edge in self._edges.values()]
        return gatherResults([d for d in waiting if isinstance(d, Deferred)], consumeErrors=True)

    @property
    def listening(self) -> list[tuple[str, Address]]:
        """(transport, (host, port)) of each socket."""
        return list(self._transports.listening)

    def attach(self, take: Callable[[bytes], None]) -> InProcess:
        """A connection to a user agent in this process (echo); started first. `take` gets the messages for it."""
        attached: InProcess = self._transports.attach(take)
        return attached

    def _sweep(self) -> None:
        """Every two seconds: timer C of calls, bindings that have run out, keep-alives, and a look at the clock."""
        self._sweeper = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)
        self._forwarder.sweep()
        self._calls.sweep()
        wall = self._clocks.wall()
        self._table.expire(wall)
        self._keep_alives.sweep(self._clocks.now(), wall)

    def _clock_jumped(self, seconds: float) -> None:
        """Bindings and calls keep the seconds that they have left."""
        self._calls.move(seconds)
        if len(self._table):
            self._table.move(seconds)
            self._reactor.callLater(0, lambda: Deferred.fromCoroutine(self._registering.announce()))

    # ---- what the operator asks ----------------------------------------------------------------------------

    def registrations(self) -> list[dict[str, object]]:
        """The living bindings that this node owns, a row for each contact and flow."""
        wall = self._clocks.wall()
        return [
            {
                "aor": own.binding.aor,
                "contact": own.binding.contact,
                "instance": own.binding.instance_id,
                "reg_id": own.binding.reg_id or None,
                "flow": own.binding.received,
                "reachable": own.flow is not None,
                "expires_in": round(own.binding.expires_at - wall),
                "user_agent": own.binding.user_agent,
                "node": own.binding.node_id.hex(),
            }
            for own in self._table
            if own.binding.expires_at > wall
        ]

    def ladders(self) -> list[str]:
        """The Call-IDs of the last calls, oldest first."""
        return self._ladder.call_ids()

    def ladder(self, call_id: str) -> list[Step]:
        """The messages of one call."""
        return self._ladder.steps(call_id)

    def statistics(self) -> dict[str, int]:
        """Counters by reason, those of the transports, and what is open now."""
        guessed = self._gate.guesses.slowed(self._clocks.now())
        return {
            **self.counters,
            **self._door.statistics(),
            **{f"transport_{name}": count for name, count in self._transports.counters.items()},
            "transactions_open": self._layer.open_count,
            "transactions_lingering": self._layer.lingering_count,
            "forks_open": len(self._forwarder),
            "calls_open": len(self._calls),
            "calls_refused_percent": round(100 * self._layer.shedding),
            "requests_waiting": self._waiting,
            "registrations": len(self._table),
            "guessing_addresses": len(guessed["addresses"]),
            "guessed_users": len(guessed["users"]),
        }

    # ---- from and to the wire ------------------------------------------------------------------------------

    def _received(self, flow: Flow, message: Message) -> None:
        if isinstance(message, Request):
            if message.method == "ACK":
                # The ACK of a refusal goes no further than its transaction, and belongs into the ladder all the same.
                try:
                    self._ladder.received(message, self._clocks.wall, flow)
                except SipError:
                    pass  # The transaction layer rejects it.
            if self._door.is_scanner(flow, message):
                return
        self._driver.feed(MessageReceived(flow, message))

    def _malformed(self, flow: Flow, error: SipError) -> None:
        """A datagram that is no SIP message: answered if it can be, else dropped (RFC 3261 section 18.3)."""
        self.counters["malformed"] += 1
        self._door.malformed(flow)
        request = error.request
        if request is not None and request.method != "ACK":
            try:
                response = make_response(request, error.status, error.reason, self._layer.new_tag())
            except SipError:
                return
            self._driver.feed(SendStateless(flow, response))

    def _flow_lost(self, flow: Flow) -> None:
        self._table.flow_lost(flow)
        self._driver.feed(TransportFailed(flow=flow, reason="connection lost"))

    def _send(self, order: SendMessage) -> None:
        flow: Any = order.flow
        if flow.reliable and not flow.alive and flow.transport == "TCP" and order.data.startswith(b"SIP/2.0 "):
            self._start(self._answer_anew(flow, order.data))
        else:
            flow.write(order.data)
        self._ladder.sent(order.data, self._clocks.wall, flow)

    async def _answer_anew(self, flow: Flow, data: bytes) -> None:
        """Send a response whose connection is gone on another one to the same place, if it takes any."""
        found: Any = await self._routing.anew(flow, parse_message(data))
        if found is not None:
            found.write(data)

    def _rejected(self, event: MessageRejected) -> None:
        self.counters["rejected"] += 1
        self.log.debug("rejected from {flow}: {reason}", flow=event.flow, reason=event.error.reason)

    # ---- requests and responses ----------------------------------------------------------------------------

    def _response(self, event: ResponseReceived) -> None:
        self._ladder.received(event.response, self._clocks.wall, event.flow)
        if peer_of(event.flow) is None:
            disown(event.response)
        self._forwarder.answered(event.transaction, event.response)

    def _request(self, event: RequestReceived) -> None:
        request, flow, transaction = event.request, event.flow, event.transaction
        method = request.method
        self.counters[method if method in COUNTED else "other_method"] += 1
        if method == "INVITE" and request.to_tag is None:
            self._ladder.begin(request.call_id)
        if method not in _NOT_NOTED:
            self._ladder.received(request, self._clocks.wall, flow)
        if flow.transport == "TLS" and peer_of(flow) is None:
            self._transports.alias(flow, request)
        if method == "ACK":
            if isinstance(peer_of(flow), DomainIdentity):
                self._start(self._acknowledge_from_outside(flow, request))
            else:
                self._forwarder.acknowledge(flow, request)
        elif method == "CANCEL":
            self._forwarder.cancel(event)
        elif self._waiting >= _MAX_ROUTING and not self._admission.calls_for_help(flow, request):
            self.counters["overload"] += 1
            headers = [("Retry-After", RETRY_AFTER)]
            self._forwarder.reply(transaction, make_response(request, 503, headers=headers))
        elif method == "REGISTER":
            self._start(self._register(event))
        else:
            inside = isinstance(peer_of(flow), NodeIdentity)
            context = ForwardingContext(
                request,
                self._settings.ring_seconds,
                turn_for=self._settings.turn_seconds,
                may_relocate=not inside,
                hide_flow=not inside,
                recurse=_NO_DOMAINS if inside else self._recursed,
                transaction=transaction,
                flow=flow,
            )
            self._forwarder.begin(context)
            self._start(self._serve(context))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            waiting = run(work)
        except Exception:
            self._broken(Failure())
            return
        if waiting is not None:
            self._waiting += 1
            waiting.addErrback(self._broken).addBoth(self._waited)

    def _waited(self, result: object) -> None:
        self._waiting -= 1

    def _broken(self, failure: Failure) -> None:
        self.counters["fault"] += 1
        self.log.failure("a request could not be served", failure=failure)

    async def _acknowledge_from_outside(self, flow: Flow, request: Request) -> None:
        """An ACK of another domain passes if its peer may send it; a refusal has no answer."""
        try:
            await self._admission.judge(flow, request)
        except SipError:
            self.counters["ack_dropped"] += 1
            return
        self._forwarder.acknowledge(flow, request)

    async def _register(self, event: RequestReceived) -> None:
        """A REGISTER is answered here, and never forked (RFC 3261 section 10.3)."""
        request, flow = event.request, event.flow
        try:
            if isinstance(peer_of(flow), DomainIdentity):
                # Phones register at our listeners for phones; no policy of peering lets another domain do so.
                raise Refused(403, "Not For Other Domains", why="register_from_outside")
            if self._new_calls.draining:
                # What is promised now nobody keeps: the phone had better go elsewhere while its call goes on.
                raise Refused(503, headers=[("Retry-After", RETRY_AFTER)], why="draining")
            validate(request, self._gate.home.addresses, ends_here=True)
            take_routes(request, self._gate.home)
            response = await self._registering.register(request, flow)
            self._door.proved(flow)
            self.counters["registered"] += 1
        except Exception as error:
            response = self._refusal(request, flow, error)
            self.counters[f"answered_{response.status}"] += 1
        self._forwarder.reply(event.transaction, response)

    async def _serve(self, context: ForwardingContext) -> None:
        """Route one request; whatever refuses it on the way becomes its answer."""
        try:
            await self._route(context)
        except Exception as error:
            self._forwarder.refuse(context, self._refusal(context.request, context.flow, error))

    def _refusal(self, request: Request, flow: Flow, error: Exception) -> Response:
        """The answer to a request that `error` has stopped; counted, and logged where it is our own fault."""
        if isinstance(error, Refused | RegistrationRefused):
            self.counters[error.why or "refused"] += 1
            self._door.refused(flow, error.why)
            return make_response(request, error.status, error.reason or None, headers=error.headers)
        if isinstance(error, LocationUnavailable):
            self.log.warn("the location service failed: {error}", error=str(error))
            return make_response(request, 503, headers=[("Retry-After", RETRY_AFTER)])
        if isinstance(error, NotLocated):
            return make_response(request, error.status, error.reason)
        if isinstance(error, SipError):
            return make_response(request, error.status, error.reason or None)
        self.counters["fault"] += 1
        self.log.failure("{method} could not be routed", Failure(error), method=request.method)
        return make_response(request, 500)

    async def _route(self, context: ForwardingContext) -> None:
        """A request from top to bottom: validity, routes, who asks, policy, where to, forward."""
        request, flow = context.request, context.flow
        forwarder, home = self._forwarder, self._gate.home
        asked = request.method == "OPTIONS" and self._gate.is_node(self._gate.place(request.uri))
        validate(request, home.addresses, ends_here=asked)
        peer = peer_of(flow)
        outside = isinstance(peer, DomainIdentity)
        # Whether the Route of what comes from outside is all ours is part of the judgement.
        proved, context.reasons = await self._admission.judge(flow, request) if outside else NOBODY_ASKED
        new = request.to_tag is None
        if new and request.has("route"):
            # It covers the Routes, of which some go now.
            context.tag = loop_tag(request)
        taken = take_routes(request, home)
        if not new and (taken or request.has("route")) and await self._within_dialog(context, taken):
            return
        uri = self._gate.place(request.uri)
        if request.method == "OPTIONS" and self._gate.is_node(uri):
            forwarder.answer(context, _capabilities(request))
            return
        redirected = not request.has("route") and self._redirected(uri, flow)
        if peer is not None and not outside:
            await self._admission.judge(flow, request)
        if not redirected or self._settings.redirect_authenticates:
            await self._admission.admit(context, proved, begins=not redirected)
        if request.has("route"):
            forwarder.forward(context, [self._routing.along_route(request)])
            return
        origin = origin_of(flow)
        targets = await self._locate(Query(uri, origin, self._clocks.wall()))
        if not targets and origin is not Origin.NODE:
            with suppress(LocationUnavailable):
                await self._gate.must_exist(uri)
        if redirected and targets and isinstance(uri, SipUri):
            redirect = redirection(request, uri, targets)
            if redirect is not None:
                self.counters["redirected"] += 1
                forwarder.answer(context, redirect)
                return
            # Whoever may ask a redirector: what goes on from here, to a number, a service, another domain, is known.
            await self._admission.admit(context, proved, known=self._settings.redirect_authenticates)
        if new and not context.tag:
            context.tag = loop_tag(request)
        forwarder.forward(context, targets)

    def _redirected(self, uri: Uri, flow: Flow) -> bool:
        """Whether this node tells the caller where the user is, and does not go there itself: not for other nodes,
        and not for GRUUs, which only we can reach.
        """
        domains = self._settings.redirect_domains
        if not domains or not isinstance(uri, SipUri) or uri.host not in domains:
            return False
        return not uri.gr and not isinstance(peer_of(flow), NodeIdentity)

    async def _within_dialog(self, context: ForwardingContext, taken: Sequence[SipUri]) -> bool:
        """Forward a request that follows the Route set of its dialog; False if that was not written by us.

        One whose registrar has died comes to another one: what the dead one wrote is passed over.
        """
        request, flow = context.request, context.flow
        targets: Sequence[Target]
        user = None if taken else self._routing.drop_routes(request)
        if not taken and user is None:
            return False
        outside = isinstance(peer_of(flow), DomainIdentity)
        if not outside:
            await self._admission.judge(flow, request)
        if peer_of(flow) is None:
            disown(request)
            if request.method in TARGET_REFRESH:
                self._routing.follow(request, taken, flow)
        try:
            crossing = self._routing.crossing(request, taken, flow)
            if crossing is not None:
                targets = await crossing
            elif not taken and not request.has("route"):
                raise FlowGone(user or "")
            else:
                targets = [self._routing.along_dialog(request, taken, outside)]
        except FlowGone as gone:
            targets = await self._relocating.heirs(request, flow, gone.user)
            if not targets:
                if peer_of(flow) is None:
                    raise Refused(481, why=gone.why) from None
                raise
        self._forwarder.forward(context, targets)
        return True


def _capabilities(request: Request) -> Response:
    """The 200 to an OPTIONS for this node (RFC 3261 section 11.2); 420 where it requires what nobody here knows."""
    unsupported = [tag for tag in request.require if tag not in SUPPORTED]
    if unsupported:
        return make_response(request, 420, headers=[("Unsupported", ", ".join(unsupported))])
    headers = [("Allow", ALLOW), ("Accept", "*/*"), ("Supported", ", ".join(SUPPORTED))]
    return make_response(request, 200, headers=headers)

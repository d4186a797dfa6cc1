"""SIP for phones and between nodes: listeners, transactions, registrar, proxy.

How app.py wires it (nothing here imports another service; `domains` is the tuple of served domains)::

    table = BindingTable()                                # p2psipd.proto.sip.registrar: own bindings, in memory
    locator = Locator((                                   # p2psipd.services.locator
        OwnBindings(table, node_id, domains),
        OverlayBindings(location, table, node_id, domains),
    ))
    interconnect = Interconnect(                          # p2psipd.net.interconnect
        reactor, node_tls, judge, listen=(host, port), app_attach=overlay.app_attach
    )
    service = SipService(
        settings, location=store, credentials=source, locate=locator.locate, connector=interconnect,
        table=table, reactor=reactor, random=random.SystemRandom(), wall=time.time,
    )
    service.setServiceParent(application)                 # startService listens, stopService closes
    # when the overlay core orders DialApplication(node_id, application, addresses):
    interconnect.dial(node_id, addresses)

The seams are Protocols in :mod:`p2psipd.proto.sip.locating`. What a request meets on its way is read from top
to bottom in :meth:`SipService._route`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.net.coroutines import run
from p2psipd.net.driver import Driver
from p2psipd.net.resolving import resolve
from p2psipd.net.sip_transports import Limits, Message, SipTransports
from p2psipd.proto.sip.authentication import DigestGate, Gatekeeper
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.ladder import Ladder, Step
from p2psipd.proto.sip.locating import (
    CredentialSource,
    Locate,
    LocationStore,
    LocationUnavailable,
    NodeConnector,
    NotLocated,
    Origin,
    Query,
    Target,
    Unreachable,
    aor_of,
    decode_gr,
)
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
    loop_tag,
    take_routes,
    validate,
)
from p2psipd.proto.sip.record_route import RecordRouter, UdpToken
from p2psipd.proto.sip.registrar import BindingTable, Bounds, Registrar, RegistrationRefused
from p2psipd.proto.sip.transaction import (
    Cancel,
    MessageReceived,
    MessageRejected,
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
from p2psipd.proto.sip.uri import SipUri

ALLOW: Final = "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE, REGISTER, INFO, UPDATE, PRACK, REFER, SUBSCRIBE, NOTIFY"
RETRY_AFTER: Final = "10"

_MAKES_DIALOG: Final = frozenset({"INVITE", "SUBSCRIBE", "REFER", "NOTIFY"})
_SWEEP_SECONDS: Final = 2.0
_JUMP_SECONDS: Final = 2.0
"""The wall clock may go so much faster or slower than the monotonic one between two looks; else it has jumped."""
_MAX_ROUTING: Final = 5000
"""Requests whose routing waits for something (credentials, the overlay); more are answered 503."""


class SipSettings(NamedTuple):
    """What the SIP side of a node is told (times in seconds; addresses are numeric host and port, 0 = any
    free one).

    `domains` are the SIP domains served (lower case), the first is the realm of requests that name our
    address instead of a domain; `node_id` and `overlay` this node's Node-ID and overlay name. `tls` is the
    p2psipd.net.tls.ServerTls of the SIPS listeners. `secret` (32 octets or more; empty: drawn at start) keys
    nonces and flow tokens. `public_host` is what Via and Record-Route name (empty: the listener's own
    address).
    """

    domains: tuple[str, ...]
    overlay: str
    node_id: bytes
    udp: tuple[Address, ...] = ()
    tcp: tuple[Address, ...] = ()
    tls_addresses: tuple[Address, ...] = ()
    tls: Any = None
    public_host: str = ""
    secret: bytes = b""
    bounds: Bounds = Bounds()
    limits: Limits = Limits()
    ring_seconds: float = 180.0


class _Undated:
    """The transaction layer in the shape that the driver knows: it has no use for the wall clock."""

    def __init__(self, layer: TransactionLayer) -> None:
        self._layer = layer
        self.next_timer = layer.next_timer

    def receive(self, item: Any, now: float, wall: float) -> list[Any]:
        """One input."""
        return self._layer.receive(item, now)

    def handle_timer(self, now: float, wall: float) -> list[Any]:
        """What is due."""
        return self._layer.handle_timer(now)


class SipService(Service):
    """The SIP side of a node; see the module's docstring for how it is made.

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
        resolver: Callable[[str], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        """`transports` takes the place of real sockets in tests: a callable like SipTransports."""
        self.setName("sip")  # type: ignore[no-untyped-call]
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._locate = locate
        self._connector = connector
        self._table = table
        self._reactor = reactor
        self._read_wall = wall
        self._wall_ahead = wall() - self._now()
        self._jumped = False
        self._resolver = resolver or (lambda host: resolve(reactor, host))
        self._ladder = Ladder()
        self._layer = TransactionLayer(random)
        self._driver = self._new_driver()
        secret = settings.secret or random.getrandbits(256).to_bytes(32, "big")
        self._digest = DigestGate(secret, random, settings.node_id, wall() - 1.0)
        self._router = RecordRouter(secret, random.getrandbits(32), settings.overlay, settings.node_id)
        self._transports = (transports or SipTransports)(
            reactor,
            self._received,
            self._malformed,
            self._flow_lost,
            limits=settings.limits,
            public_host=settings.public_host,
        )
        self._home = Home(frozenset(), frozenset(settings.domains), settings.overlay, settings.node_id)
        self._gate = Gatekeeper(self._home, settings.domains[0], self._digest, credentials)
        self._registrar = Registrar(location, table, settings.node_id, settings.bounds)
        self._contexts: dict[Any, ForwardingContext] = {}
        self._locks: dict[str, DeferredLock] = {}
        self._routing = 0
        self._sweeper: Any = None

    def _new_driver(self) -> Driver:
        return Driver(
            _Undated(self._layer),
            {
                SendMessage: self._send,
                RequestReceived: self._request,
                ResponseReceived: self._response,
                TransactionTimedOut: self._timed_out,
                TransactionFailed: self._failed,
                TransactionEnded: self._ended,
                MessageRejected: self._rejected,
            },
            self._reactor,
            name="sip",
            wall=self._wall,
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
        addresses = {address for _, address in transports.listening}
        if settings.public_host:
            addresses |= {(settings.public_host, port) for _, port in addresses}
        self._home = self._home._replace(addresses=frozenset(addresses))
        self._gate.home = self._home
        if self._connector is not None:
            self._connector.start(self._received, self._flow_lost)
        self._sweeper = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)

    def stopService(self) -> Deferred[Any]:
        """Close everything; resolves when the sockets are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._driver.stop()
        waiting = list(self._transports.stop())
        if self._connector is not None:
            waiting.append(self._connector.stop())
        return gatherResults([d for d in waiting if isinstance(d, Deferred)], consumeErrors=True)

    @property
    def listening(self) -> list[tuple[str, Address]]:
        """(transport, (host, port)) of each socket."""
        return list(self._transports.listening)

    # ---- what the operator asks ----------------------------------------------------------------------------

    def registrations(self) -> list[dict[str, object]]:
        """The living bindings that this node owns."""
        wall = self._wall()
        return [
            {
                "aor": own.binding.aor,
                "contact": own.binding.contact,
                "expires_in": round(own.binding.expires_at - wall),
                "received": own.binding.received,
                "reachable": own.flow is not None,
                "user_agent": own.binding.user_agent,
            }
            for own in self._table
            if own.binding.expires_at > wall
        ]

    def calls(self) -> list[dict[str, object]]:
        """The last calls, oldest first (see Ladder.calls)."""
        return self._ladder.calls()

    def ladder(self, call_id: str) -> list[Step]:
        """The messages of one call."""
        return self._ladder.steps(call_id)

    def statistics(self) -> dict[str, int]:
        """Counters by reason, those of the transports, and what is open now."""
        return {
            **self.counters,
            **{f"transport_{name}": count for name, count in self._transports.counters.items()},
            "transactions_open": self._layer.open_count,
            "transactions_lingering": self._layer.lingering_count,
            "registrations": len(self._table),
        }

    # ---- from and to the wire ------------------------------------------------------------------------------

    def _received(self, flow: Flow, message: Message) -> None:
        self._driver.feed(MessageReceived(flow, message))

    def _malformed(self, flow: Flow, error: SipError) -> None:
        """A datagram that is no SIP message: answered if it can be, else dropped (RFC 3261 section 18.3)."""
        self.counters["malformed"] += 1
        request = error.request
        if request is not None and request.method != "ACK":
            try:
                response = make_response(request, error.status, error.reason)
            except SipError:
                return
            self._driver.feed(SendStateless(flow, response))

    def _flow_lost(self, flow: Flow) -> None:
        self._table.flow_lost(flow)
        self._driver.feed(TransportFailed(flow=flow, reason="connection lost"))

    def _send(self, order: SendMessage) -> None:
        flow: Any = order.flow
        flow.write(order.data)
        self._ladder.sent(order.data, self._wall(), flow)

    def _rejected(self, event: MessageRejected) -> None:
        self.counters["rejected"] += 1
        self.log.debug("rejected from {flow}: {reason}", flow=event.flow, reason=event.error.reason)

    # ---- transactions --------------------------------------------------------------------------------------

    def _request(self, event: RequestReceived) -> None:
        request, flow, transaction = event.request, event.flow, event.transaction
        method = request.method
        self.counters[method if method in _COUNTED else "other_method"] += 1
        if method == "INVITE" and request.to_tag is None:
            self._ladder.begin(request.call_id, request.from_.uri_text, request.uri_text, self._wall())
        self._note(flow, request)
        if method == "ACK":
            self._acknowledge(flow, request)
        elif method == "CANCEL":
            self._cancel(event)
        elif self._routing >= _MAX_ROUTING:
            self.counters["overload"] += 1
            headers = [("Retry-After", RETRY_AFTER)]
            self._reply(transaction, make_response(request, 503, headers=headers))
        else:
            context = ForwardingContext(
                request,
                self._settings.ring_seconds,
                may_relocate=_peer(flow) is None,
                hide_flow=_peer(flow) is None,
                transaction=transaction,
                flow=flow,
            )
            self._contexts[transaction] = context
            self._start(self._serve(context))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            waiting = run(work)
        except Exception:
            self._broken(Failure())
            return
        if waiting is not None:
            self._routing += 1
            waiting.addErrback(self._broken).addBoth(self._routed)

    def _routed(self, result: object) -> None:
        self._routing -= 1

    def _broken(self, failure: Failure) -> None:
        self.counters["fault"] += 1
        self.log.failure("a request could not be served", failure=failure)

    async def _serve(self, context: ForwardingContext) -> None:
        """Route one request; whatever refuses it on the way becomes its answer."""
        request = context.request
        try:
            await self._route(context)
            return
        except (Refused, RegistrationRefused) as error:
            self.counters[error.why or "refused"] += 1
            response = make_response(request, error.status, error.reason or None, headers=error.headers)
        except NotLocated as error:
            response = make_response(request, error.status, error.reason)
        except LocationUnavailable as error:
            self.log.warn("the location service failed: {error}", error=str(error))
            response = make_response(request, 503, headers=[("Retry-After", RETRY_AFTER)])
        except SipError as error:
            response = make_response(request, error.status, error.reason or None)
        except Exception:
            self.counters["fault"] += 1
            self.log.failure("{method} could not be routed", method=request.method)
            response = make_response(request, 500)
        if not context.finished:
            self.counters[f"answered_{response.status}"] += 1
            self._perform(context, context.receive(Located((), response.status), self._now()), response)

    async def _route(self, context: ForwardingContext) -> None:
        """A request from top to bottom: validity, routes, who asks, policy, where to, forward."""
        request, flow = context.request, context.flow
        validate(request, self._home.addresses)
        context.tag = loop_tag(request) if request.to_tag is None else ""
        taken = take_routes(request, self._home)
        if request.method == "REGISTER":
            self._answer(context, await self._register(request, flow))
            return
        if taken and request.to_tag is not None:
            self._gate.check_assertion(flow, request)
            self._forward(context, [self._along_dialog(request, taken)])
            return
        uri = self._gate.place(request.uri)
        if request.method == "OPTIONS" and self._gate.is_node(uri):
            self._answer(context, _capabilities(request))
            return
        self._gate.check_assertion(flow, request)
        if _peer(flow) is None:
            await self._gate.prove(request, self._wall())
        if request.has("route"):
            self._forward(context, [self._along_route(request)])
            return
        origin = Origin.PHONE if _peer(flow) is None else Origin.NODE
        targets = await self._locate(Query(uri, origin, self._wall()))
        if not targets and origin is Origin.PHONE:
            with suppress(LocationUnavailable):
                await self._gate.must_exist(uri)
        self._forward(context, targets)

    # ---- registrar -----------------------------------------------------------------------------------------

    async def _register(self, request: Request, flow: Flow) -> Response:
        """A REGISTER: proved, planned, written where bindings are kept, and only then answered (section
        10.3).
        """
        uri = await self._gate.registering(flow, request, self._wall())
        aor = aor_of(uri.bare())
        async with self._turn(aor):
            response = await self._registrar.change(request, aor, flow, self._wall())
        self.counters["registered"] += 1
        return response

    @asynccontextmanager
    async def _turn(self, aor: str) -> AsyncIterator[None]:
        """What changes the bindings of one user goes one after the other."""
        lock = self._locks.setdefault(aor, DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if not lock.locked and not lock.waiting:
                self._locks.pop(aor, None)

    async def _announce(self) -> None:
        """Store the bindings of this node anew: the wall clock, by which they run out, has jumped."""
        aors = dict.fromkeys(own.binding.aor for own in self._table)
        self.log.info("the clock has jumped: {count} users' bindings are stored anew", count=len(aors))
        for aor in aors:
            try:
                async with self._turn(aor):
                    await self._registrar.renew(aor, self._wall())
            except LocationUnavailable as error:
                self.log.warn("{error}; found again when the phone registers next", error=error)

    # ---- where to ------------------------------------------------------------------------------------------

    def _along_dialog(self, request: Request, taken: list[SipUri]) -> Target:
        """The next hop of a request inside a dialog: the rest of its Route set, else the flow that our Route
        names.
        """
        if request.has("route"):
            return self._along_route(request, trusted=True)
        token = taken[-1].user
        flow = self._flow_of(token) if token else None
        if flow is None:
            raise Refused(430, why="flow_gone")
        return Target(request.uri_text, flow=flow)

    def _flow_of(self, token: str) -> Flow | None:
        """The flow that a token of ours names. Raises Refused (403) for one that is not ours."""
        named = self._router.read(token)
        if named is None:
            raise Refused(403, "Not a Route of Ours", why="refused_token")
        if isinstance(named, UdpToken):
            listeners = self._transports.udp
            return listeners[named.listener].flow(named.remote) if named.listener < len(listeners) else None
        flow: Flow | None = self._transports.connection(named.number)
        return flow

    def _along_route(self, request: Request, *, trusted: bool = False) -> Target:
        """The next hop that the top Route names: a node of the overlay, or inside a dialog anything."""
        hop = request.routes[0].uri
        if not isinstance(hop, SipUri):
            raise Refused(400, "Bad Route")
        if hop.host == self._settings.overlay and hop.gr:
            destinations = decode_gr(hop.gr)
            if destinations is None:
                raise Refused(400, "Bad Route")
            return Target(request.uri_text, node_id=destinations.node_id)
        if not trusted:
            raise Refused(403, "Route Not Allowed", why="refused_route")
        return Target(request.uri_text)

    async def _flow_to(self, target: Target, request: Request) -> Flow:
        """A flow to `target`. Raises Unreachable."""
        if target.node_id is not None:
            if self._connector is None:
                raise Unreachable("this node reaches no others")
            return await self._connector.connect(target.node_id)
        if target.address is not None:
            flow: Flow = await self._transports.reach(*target.address)
            return flow
        # The copy that build() made: its top Route, or without one its Request-URI, is the next hop (16.6
        # step 7).
        hop = request.routes[0].uri if request.has("route") and request.routes[0].uri_text else request.uri
        if not isinstance(hop, SipUri):
            raise Unreachable(f"{hop.scheme}: no way to get there")
        transport = "TLS" if hop.is_secure else (hop.transport or "udp").upper()
        port = hop.port or (5061 if transport == "TLS" else 5060)
        host = hop.maddr or hop.host
        if not _is_numeric(host):
            try:
                host = (await self._resolver(host))[0]
            except Exception as error:
                raise Unreachable(f"{host}: {error}") from None
        reached: Flow = await self._transports.reach(transport, host, port)
        return reached

    # ---- forwarding ----------------------------------------------------------------------------------------

    def _now(self) -> float:
        now: float = self._reactor.seconds()
        return now

    def _wall(self) -> float:
        """Unix time.  Where it has jumped, bindings keep the seconds that they have left."""
        wall = self._read_wall()
        ahead = wall - self._now()
        jump, self._wall_ahead = ahead - self._wall_ahead, ahead
        if abs(jump) > _JUMP_SECONDS and len(self._table):
            self._table.move(jump)
            self._jumped = True
        return wall

    def _forward(self, context: ForwardingContext, targets: Sequence[Target]) -> None:
        self._perform(context, context.receive(Located(targets), self._now()))

    def _answer(self, context: ForwardingContext, response: Response) -> None:
        """Answer a request here; unless its CANCEL was quicker."""
        if not context.finished:
            context.finished = True
            self._reply(context.transaction, response)

    def _reply(self, transaction: Any, response: Response) -> None:
        """Send a response; one made here gets its To tag here (RFC 3261 section 8.2.6.2)."""
        if response.to_tag is None and response.status > 100:
            response.set("To", f"{response.get('to')};tag={self._layer.new_tag()}")
        self._driver.feed(SendResponse(transaction, response))

    def _perform(self, context: ForwardingContext, outputs: Sequence[Output], instead: Response | None = None) -> None:
        """Do what the context orders; `instead` is the full answer where the context only knew a status."""
        for output in outputs:
            match output:
                case Forward(branch):
                    self._launch(branch)
                case Respond(response):
                    self._respond(context, instead or response)
                case CancelBranch(branch):
                    self._driver.feed(Cancel(branch))
                case Relocate():
                    self.counters["relocated"] += 1
                    self._start(self._relocate(context))

    def _respond(self, context: ForwardingContext, response: Response) -> None:
        request = context.request
        if context.invite and response.status >= 200 and request.to_tag is None:
            if response.status < 300:
                self._ladder.answered(request.call_id, self._wall())
            elif response.status not in (401, 407):
                self._ladder.ended(request.call_id, self._wall(), str(response.status))
        elif request.method == "BYE":
            self._ladder.ended(request.call_id, self._wall(), "BYE")
        self._reply(context.transaction, response)

    def _launch(self, branch: Branch) -> None:
        """Send the request of `branch`: at once where the flow is at hand, else when it is found."""
        target = branch.target
        flow = self._flow_at_hand(target)
        if flow is not None:
            self._launch_on(branch, self._built(branch, flow), flow)
        elif target.flow is not None:
            self._fail_branch(branch, 430)
        else:
            self._start(self._launch_when_found(branch))

    def _flow_at_hand(self, target: Target) -> Flow | None:
        """The live flow to `target` that needs no waiting for."""
        flow: Any = target.flow
        if flow is None and target.node_id is not None and self._connector is not None:
            flow = self._connector.pooled(target.node_id)
        return flow if flow is not None and flow.alive else None

    async def _launch_when_found(self, branch: Branch) -> None:
        try:
            plain = build(branch.context.request, branch.target)
            flow = await self._flow_to(branch.target, plain)
        except (Unreachable, SipError) as error:
            self.counters["unreachable"] += 1
            self.log.info("no way to {uri}: {error}", uri=branch.target.uri, error=str(error))
            self._fail_branch(branch, 503)
            return
        if branch.cancelled or branch.response is not None:
            # The caller gave up, or timer C fired, while we were still looking for the way.
            self._fail_branch(branch, 487)
            return
        self._launch_on(branch, self._built(branch, flow), flow)

    def _built(self, branch: Branch, flow: Flow) -> Request:
        request = branch.context.request
        routes: list[str] = []
        if request.method in _MAKES_DIALOG and request.to_tag is None:
            routes = [self._record_route(flow), self._record_route(branch.context.flow)]
        return build(request, branch.target, routes)

    def _record_route(self, flow: Flow) -> str:
        return self._router.value(flow) if _peer(flow) is None else self._router.node_value

    def _launch_on(self, branch: Branch, request: Request, flow: Flow) -> None:
        self._driver.feed(SendRequest(flow, request, branch, branch.context.tag))

    def _fail_branch(self, branch: Branch, status: int) -> None:
        context = branch.context
        self._perform(context, context.receive(Failed(branch, status), self._now()))

    async def _relocate(self, context: ForwardingContext) -> None:
        """The record was out of date: look once more, afresh (profile section 7)."""
        targets: Sequence[Target] = ()
        try:
            uri = self._gate.place(context.request.uri)
            targets = await self._locate(Query(uri, Origin.PHONE, self._wall(), fresh=True))
        except (NotLocated, LocationUnavailable) as error:
            self.log.info("nothing newer is known: {error}", error=str(error))
        self._forward(context, targets)

    def _acknowledge(self, flow: Flow, request: Request) -> None:
        """An ACK for a 2xx follows its Route; it is no transaction and gets no answer (RFC 3261 section
        13.2.2.4).
        """
        try:
            if request.max_forwards == 0:
                raise Refused(483)
            taken = take_routes(request, self._home)
            if not taken:
                raise Refused(404)
            target = self._along_dialog(request, taken)
            made = build(request, target)
        except SipError:
            self.counters["ack_dropped"] += 1
            return
        onward = self._flow_at_hand(target)
        if onward is not None:
            self._driver.feed(SendStateless(onward, made))
        else:
            self._start(self._acknowledge_when_found(target, made))

    async def _acknowledge_when_found(self, target: Target, made: Request) -> None:
        try:
            onward = await self._flow_to(target, made)
        except Unreachable:
            self.counters["ack_dropped"] += 1
            return
        self._driver.feed(SendStateless(onward, made))

    def _cancel(self, event: RequestReceived) -> None:
        """A CANCEL is answered here, and the fork that it names is cancelled (section 16.10)."""
        context = self._contexts.get(event.invite) if event.invite is not None else None
        status = 481 if context is None else 200
        self._reply(event.transaction, make_response(event.request, status))
        if context is not None:
            self._perform(context, context.receive(Cancelled(), self._now()))

    # ---- answers -------------------------------------------------------------------------------------------

    def _response(self, event: ResponseReceived) -> None:
        branch, response = event.transaction, event.response
        self._note(event.flow, response)
        if not isinstance(branch, Branch):
            # RFC 6026 section 7.3: a proxy does not forward a response to a transaction that it has
            # forgotten.
            self.counters["stray_response"] += 1
            return
        response.pop_via()
        if not response.has("via"):
            self.counters["stray_response"] += 1
            return
        context = branch.context
        self._perform(context, context.receive(Answered(branch, response), self._now()))

    def _timed_out(self, event: TransactionTimedOut) -> None:
        if isinstance(event.transaction, Branch):
            self.counters["timed_out"] += 1
            self._fail_branch(event.transaction, 408)

    def _failed(self, event: TransactionFailed) -> None:
        if isinstance(event.transaction, Branch):
            self.counters["transport_failed"] += 1
            self._fail_branch(event.transaction, 503)

    def _ended(self, event: TransactionEnded) -> None:
        self._contexts.pop(event.transaction, None)

    def _sweep(self) -> None:
        """Every two seconds: timer C of calls, bindings that have run out, and a look at the clock."""
        self._sweeper = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)
        now = self._now()
        for context in [c for c in self._contexts.values() if c.invite and not c.finished]:
            due = context.next_timer()
            if due is not None and due <= now:
                self.counters["rang_too_long"] += 1
                self._perform(context, context.handle_timer(now))
        self._table.expire(self._wall())
        if self._jumped:
            self._jumped = False
            Deferred.fromCoroutine(self._announce())

    def _note(self, flow: Flow, message: Message) -> None:
        """A received message in the ladder of its call."""
        if message.call_id in self._ladder:
            if isinstance(message, Request):
                line = f"{message.method} {message.uri_text} SIP/2.0"
            else:
                line = f"SIP/2.0 {message.status} {message.reason}"
            self._ladder.note(message.call_id, self._wall(), flow, False, line.encode("utf-8", "replace"))


_COUNTED: Final = frozenset({"REGISTER", "INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "MESSAGE"})


def _peer(flow: Any) -> Any:
    """The NodeIdentity at the other end, None for phones."""
    return flow.peer


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _capabilities(request: Request) -> Response:
    """The 200 to an OPTIONS for this node (RFC 3261 section 11.2)."""
    headers = [("Allow", ALLOW), ("Accept", "*/*"), ("Supported", "path, outbound")]
    return make_response(request, 200, headers=headers)

"""Requests that leave the overlay for another domain or a telephone number: the initiating side of direct peering.

:meth:`Outbound.__call__` is a step of the locator: it says that a target is another domain's, and gives the way
there as a Route of many tries. :class:`Ways` finds them lazily: candidates (draft-mahy 4.1.1 to 4.1.4), and for each
the servers of its domain (RFC 3263, TLS alone). :class:`PeeringRoute` sends: a connection by mutual TLS, the From
rules, Date, and Identity last (draft-mahy 4.1.5 to 4.1.7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from twisted.logger import Logger

from p2psipd.config.peering import Peering
from p2psipd.proto.dns import Ask
from p2psipd.proto.identity.policy import normal_domain
from p2psipd.proto.peering.identity import (
    Signing,
    asserts_number,
    attestation,
    check_from,
    from_domain,
    retry_after,
    sign_request,
)
from p2psipd.proto.peering.own_certificates import OwnCertificate
from p2psipd.proto.peering.targets import Analysis, Candidate, Place, TargetRules, analyse, candidates
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import (
    Attempt,
    LocationUnavailable,
    NotLocated,
    Origin,
    Query,
    Route,
    Target,
    Unreachable,
)
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.next_hops import DeadTargets, Hop, NoRoute, is_numeric, living_first, message_hops, next_hops
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri
from p2psipd.services.peering import INSTANCE

#: Whose a number of ours is: the user's AOR, None for a number that stands for nobody here.
Owner = Callable[[Uri], Awaitable[str | None]]
_TLS: Final = frozenset({"TLS"})


class Connections(Protocol):
    """Opens and keeps connections to other domains by mutual TLS."""

    async def reach(self, hop: Hop, own_domain: str, certificate: str = "") -> Flow:
        """A connection to a hop in the name of `own_domain`; `certificate` names the one of ours to show.

        A kept one where RFC 5923 allows it. Raises Unreachable; its message says which step refused.
        """
        ...

    def is_open(self, hop: Hop, own_domain: str) -> bool:
        """Whether `reach` has such a connection at hand."""
        ...

    def refused_by_peer(self, flow: Flow) -> object:
        """Whether the other side of a lost connection refused our certificate: what was sent on it was never read."""
        ...


class Way(NamedTuple):
    """One server to try: for which candidate, where, and the domain that its certificate must name.

    `candidate` is None inside a dialog, where the Request-URI stays as it is.
    """

    candidate: Candidate | None
    hop: Hop


class Outbound:
    """The initiating side. `peering` is the policy in force, `domains` are our SIP domains; `now` is monotonic, `wall`
    unix seconds; `find_home` finds our users and numbers, `owner` says whose a number is; `counters` count refusals by
    reason.
    """

    log = Logger()

    def __init__(
        self,
        peering: Callable[[], Peering],
        domains: frozenset[str],
        ask: Ask,
        connections: Connections,
        random: Any,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        find_home: Callable[[Query], Awaitable[Sequence[Target] | None]],
        owner: Owner,
        counters: Counter[str],
    ) -> None:
        self.peering = peering
        self.domains = domains
        self.ask = ask
        self.random = random
        self.now = now
        self.wall = wall
        self.counters = counters
        self.dead = DeadTargets()
        self._connections = connections
        self._find_home = find_home
        self._owner = owner

    # ---- a locator step ----------------------------------------------------------------------------------------

    async def __call__(self, query: Query) -> Sequence[Target] | None:
        """Another domain's target, or a number: one Target with its Route. None for what is ours.

        Raises NotLocated: 403 for a domain that we do not send to, 404 and 416 for what leads nowhere.
        """
        try:
            analysis = analyse(query.uri, self.rules)
            self.check_target(analysis)
        except NoRoute as error:
            raise self._refusal(error) from None
        if analysis.place not in (Place.DOMAIN, Place.MESSAGING, Place.NUMBER):
            return None
        home = await self._at_home(analysis, query) if analysis.place is Place.NUMBER else None
        return (self._target(analysis, query),) if home is None else home

    async def _at_home(self, analysis: Analysis, query: Query) -> Sequence[Target] | None:
        """Where a number leads that is one of ours after all: dialled as a number of this place, or said to be ours by
        ENUM. None for other people's numbers. What ENUM says is kept, so that nobody is asked twice.

        Raises NotLocated: 404 for a number that ENUM calls ours and nobody has, 480 where its user is not there.
        """
        uri = query.uri
        query = query._replace(origin=Origin.PHONE)
        dialled = uri.number if isinstance(uri, TelUri) else uri.unescaped_user if isinstance(uri, SipUri) else ""
        if not dialled.startswith("+"):
            try:
                return await self._find_home(query._replace(uri=TelUri(f"tel:{analysis.number}")))
            except NotLocated as error:
                if error.status != 404:
                    raise
        try:
            async for candidate in candidates(analysis, self.ask, self.peering().sources, self.rules):
                if candidate.home:
                    return await self._find_home(query._replace(uri=candidate.uri)) or ()
                break
        except NoRoute as error:
            raise self._refusal(error) from None
        return None

    def _target(self, analysis: Analysis, query: Query, *, emergency: bool = False) -> Target:
        """The target of a request, with its Route; an `emergency` goes whatever domains the policy excludes."""
        relays = query.origin is Origin.PEER

        def make(request: Request, target: Target) -> Route:
            ways = self.ways(analysis, "" if relays else from_domain(request), judged=not emergency)
            return PeeringRoute(self, request, ways, relays=relays, urgent=emergency)

        return Target(str(analysis.uri), instance=INSTANCE, route_maker=make)

    async def emergency(self, query: Query) -> Sequence[Target] | None:
        """The step before all others: calls to the emergency services, whoever makes them (draft-mahy 4.1.1)."""
        if query.origin is Origin.PEER or not self.is_emergency(query.uri):
            return None
        uri = self.peering().emergency
        self.counters["emergency"] += 1
        if uri is None:
            self.log.error("an emergency call ({uri}) has nowhere to go: [emergency] target is not set", uri=query.uri)
            raise NotLocated(404, "No Emergency Service")
        if uri.host not in self.domains:
            return (self._target(Analysis(Place.DOMAIN, uri, domain=uri.host), query, emergency=True),)
        found = await self._find_home(query._replace(uri=uri, origin=Origin.PHONE))
        if not found:
            self.log.error("an emergency call ({uri}) reaches nobody: {target}", uri=query.uri, target=uri)
        return found or ()

    def is_emergency(self, uri: Uri) -> bool:
        """Whether a target is the emergency services: urn:service:sos, or a number of theirs by our plan."""
        try:
            return analyse(uri, self.rules).place is Place.EMERGENCY
        except NoRoute:
            return False

    @property
    def rules(self) -> TargetRules:
        """How targets are read."""
        return TargetRules(self.domains, self.peering().plan)

    def check_target(self, analysis: Analysis) -> None:
        """Refuse a domain that the policy excludes, before anybody is asked (draft-mahy 4.1.5). Raises NoRoute."""
        if analysis.domain and not self.peering().targets.permits(analysis.domain):
            raise NoRoute(403, "Target Not Allowed", f"{analysis.domain}: the policy excludes it")

    def _refusal(self, error: NoRoute) -> NotLocated:
        self.counters[f"target_{error.status}"] += 1
        self.log.info("not sent: {detail}", detail=error.detail)
        return NotLocated(error.status, error.reason)

    # ---- the ways ----------------------------------------------------------------------------------------------

    async def ways(self, analysis: Analysis, own_domain: str = "", *, judged: bool = True) -> AsyncIterator[Way]:
        """The servers to try for a target, in order. Raises NoRoute when there is none at all.

        `own_domain` sends through others where a federation says so: then these are the servers of those. `judged`:
        domains that the policy excludes are passed over.
        """
        through = self.peering().policy.goes_through(own_domain) if own_domain else ()
        last: NoRoute | None = None
        given = 0
        async for candidate in candidates(analysis, self.ask, self.peering().sources, self.rules):
            if candidate.home:
                raise NoRoute(404, "Not Found", f"{candidate.uri}: a number of ours that nobody has")
            if judged and not self.peering().targets.permits(candidate.uri.host):
                last = NoRoute(403, "Target Not Allowed", f"{candidate.uri.host}: the policy excludes it")
                continue
            try:
                async for hop in self.hops_of(candidate, through):
                    given += 1
                    yield Way(candidate, hop)
            except NoRoute as error:
                # The next candidate may still be reached: a carrier's alternative, or the routing table's entry.
                last = error
        if not given and last is not None:
            raise last

    async def hops_of(self, candidate: Candidate, through: Sequence[str], ask: Ask | None = None) -> AsyncIterator[Hop]:
        """The servers of one candidate, or of the domains that its call goes through; the living ones first."""
        ask = ask or self.ask
        for uri in [SipUri.parse(f"sip:{domain}") for domain in through] or [candidate.uri]:
            if candidate.messaging is not None and not through:
                found = message_hops(candidate.messaging, ask, self.random, transports=_TLS, tls_only=True)
            elif (servers := self.peering().policy.servers(uri.host)) is not None:
                found = self._servers(servers, uri.host, ask)
            else:
                found = next_hops(uri, ask, self.random, transports=_TLS, tls_only=True)
            async for hop in living_first(found, self.dead, self.now):
                yield hop

    async def _servers(self, servers: SipUri, domain: str, ask: Ask) -> AsyncIterator[Hop]:
        """The servers of a domain that receives through us, where the policy says; they prove to be that domain."""
        async for hop in next_hops(servers.replace(scheme="sips"), ask, self.random, transports=_TLS):
            yield hop._replace(domain=domain)

    async def dialog_ways(self, request: Request, other: str) -> AsyncIterator[Way]:
        """The servers for a request inside a dialog with the domain `other`: by its next Route, else its
        Request-URI; a numeric address there is proved by the name `other`, as the connection was. Of several servers
        that are the same to the DNS those come first that a connection is open to (RFC 5923), and the dead ones last.
        """
        own = _speaker(request, self.peering().own.domains)
        uri = request.routes[0].uri if request.has("route") else request.uri
        if not isinstance(uri, SipUri):
            raise NoRoute(416, "Unsupported URI Scheme", f"{uri}: no way to get there")
        servers = self.peering().policy.servers(other)
        if servers is not None:
            async for hop in self._open_first(self._servers(servers, other, self.ask), own):
                yield Way(None, hop)
            return
        given = 0
        try:
            found = next_hops(uri.replace(scheme="sips"), self.ask, self.random, transports=_TLS)
            async for hop in self._open_first(found, own, other):
                given += 1
                yield Way(None, hop)
        except NoRoute:
            if normal_domain(uri.host) == other:
                raise
        if not given or is_numeric(uri.host):
            # What the other side wrote leads nowhere from here; any of its domain's servers knows the dialog.
            home = SipUri.parse(f"sip:{other}")
            found = next_hops(home, self.ask, self.random, transports=_TLS, tls_only=True)
            async for hop in self._open_first(found, own):
                yield Way(None, hop)

    async def _open_first(self, hops: AsyncIterator[Hop], own: str, other: str = "") -> AsyncIterator[Hop]:
        """`hops`, those first that a connection in the name of `own` is open to, those last that failed of late."""
        later = []
        fault: NoRoute | None = None
        try:
            async for hop in hops:
                proved = hop._replace(domain=other) if other and is_numeric(hop.domain) else hop
                if self._connections.is_open(proved, own):
                    yield proved
                else:
                    later.append(proved)
        except NoRoute as error:
            fault = error
        for hop in sorted(later, key=lambda hop: self.dead.holds(hop, self.now())):
            yield hop
        if fault is not None:
            raise fault

    def dialog_route(self, other: str) -> Callable[[Request, Target], Route]:
        """The Route of a request inside a dialog with the domain `other`."""

        def make(request: Request, target: Target) -> Route:
            return PeeringRoute(self, request, self.dialog_ways(request, other), other=other)

        return make

    # ---- sending -----------------------------------------------------------------------------------------------

    def was_refused(self, flow: Flow) -> bool:
        """Whether a connection was lost because the peer did not take our certificate."""
        return bool(self._connections.refused_by_peer(flow))

    async def attests(self, request: Request) -> str:
        """The attestation of a request of our own users (RFC 8588): registrars let only those through who have proved
        to be the user in From, or the owner of its number. "A" for a user and a number with an owner; "B" for another
        number, whoever may log in by its name, where the overlay cannot be asked, and for who is anonymous.

        Raises Refused (403) for such a number where the policy lets only owned ones go out.
        """
        sender = request.from_.uri
        owned = True
        if isinstance(sender, SipUri) and sender.unescaped_user.lower() == "anonymous":
            return attestation(True, False)
        if asserts_number(sender):
            try:
                owned = await self._owner(sender) is not None
            except LocationUnavailable:
                owned = False
        if not owned and request.to_tag is None and self.peering().file.identity.numbers == "owned":
            raise Refused(403, "Not Your Number", why="from number")
        return attestation(True, owned)

    def certificate(self, own_domain: str, hop: Hop) -> OwnCertificate:
        """The certificate that we show to a hop in the name of `own_domain` (draft-mahy 4.1.6). Raises Refused."""
        peering = self.peering()
        found = peering.own.for_tls(own_domain, peering.policy.settings(hop.domain).certificate)
        if found is None:
            raise Refused(403, "No Certificate For This Domain", why="certificate")
        return found

    async def connect(self, hop: Hop, own_domain: str) -> Flow:
        """A connection to `hop`. Raises Unreachable: then others come first for a while."""
        certificate = self.certificate(own_domain, hop)
        try:
            return await self._connections.reach(hop, own_domain, certificate.name)
        except Unreachable as error:
            self.dead.mark(hop, self.now())
            self.counters["peer_unreachable"] += 1
            self.log.info("{domain} at {host}:{port}: {error}", **hop._asdict(), error=str(error))
            raise


class PeeringRoute:
    """A Route (proto.sip.locating) over the ways to a peer.

    `relays`: the request came from another domain, and may only go on where a federation lets it. `other` is the
    peer's domain inside a dialog. `urgent` is a call to the emergency services: no From, Date or certificate stops it,
    and what cannot be signed goes out as it is.
    """

    log = Logger()

    def __init__(
        self,
        outbound: Outbound,
        request: Request,
        ways: AsyncIterator[Way],
        *,
        relays: bool = False,
        other: str = "",
        urgent: bool = False,
    ) -> None:
        self._urgent = urgent
        self._outbound = outbound
        self._request = request
        self._ways = ways
        self._relays = relays
        self._other = other
        self._way: Way | None = None
        self._flow: Flow | None = None
        self._taken = 0
        self._signing: Signing | None = None
        self._refusals = 0
        self._origid = ""

    async def next(self, last: Response | None) -> Attempt | None:
        """See Route. Raises NotLocated where there is no way, Refused where the request may not go out."""
        again = None
        if last is not None and self._way is not None and self._signing is not None:
            again = retry_after(last.status, self._signing, self._refusals)
            if last.status in (436, 437):
                self.log.error(
                    "{domain} answered {status} {reason}: our certificate's URL or authority is at fault",
                    domain=self._way.hop.domain,
                    status=last.status,
                    reason=last.reason,
                )
        if again is not None and self._way is not None:
            self._refusals += 1
            return await self._try(self._way, again)
        if last is not None and last.status != 503:
            return None
        if last is None and self._flow is not None and self._outbound.was_refused(self._flow):
            self._taken -= 1
        if self._way is not None:
            self._outbound.dead.mark(self._way.hop, self._outbound.now(), _retry_seconds(last))
        try:
            async for way in self._ways:
                try:
                    return await self._try(way, None)
                except Unreachable:
                    continue
        except NoRoute as error:
            if self._way is None:
                self._outbound.counters[f"route_{error.status}"] += 1
                self.log.info("not sent: {detail}", detail=error.detail)
                raise NotLocated(error.status, error.reason) from None
        if not self._taken:
            # Nobody was found who proved to be the domain and took our certificate.
            self._outbound.counters["route_502"] += 1
            raise NotLocated(502, "No Secure Connection")
        return None

    async def _try(self, way: Way, signing: Signing | None) -> Attempt:
        outbound = self._outbound
        own_domain = self._own_domain()
        signing = signing or await self._first_signing(way, own_domain)
        flow = await outbound.connect(way.hop, own_domain)
        request = self._request.copy()
        if way.candidate is not None and str(way.candidate.uri) != request.uri_text:
            request.set_uri(str(way.candidate.uri))
        # What nodes of one overlay tell each other about the caller ends here (RFC 3325 section 7).
        request.remove("p-asserted-identity")
        self._way = way
        self._signing = signing
        peering = outbound.peering()
        if self._urgent:
            # A phone whose clock is wrong: with our own Date it can be signed.
            request.remove("date")
        try:
            sign_request(request, self._signing, peering.own, peering.identity_url, outbound.wall())
        except Refused as error:
            if not self._urgent:
                raise
            self.log.error("an emergency call goes out without Identity: {reason}", reason=error.reason)
        self._flow = flow
        self._taken += 1
        return Attempt(flow, request)

    def _own_domain(self) -> str:
        """In whose name it goes out. Raises Refused."""
        request, peering = self._request, self._outbound.peering()
        domain = from_domain(request)
        if self._relays:
            uri = request.uri
            ours = peering.policy.relays(domain, uri.host if isinstance(uri, SipUri) else "", peering.own.domains)
            if not ours:
                raise Refused(404, why="relay")
            return ours
        if request.to_tag is not None:
            return _speaker(request, peering.own.domains)
        if self._urgent:
            return domain if domain in peering.own.domains else peering.own.domains[0]
        return check_from(request, peering.own.domains)

    async def _first_signing(self, way: Way, own_domain: str) -> Signing:
        outbound, request = self._outbound, self._request
        settings = outbound.peering().policy.settings(way.hop.domain)
        if not settings.shaken and (self._relays or outbound.peering().file.identity.numbers == "any"):
            return Signing.towards(settings)
        # A call for help goes out also where nobody could be asked for the caller's password.
        known = not self._relays and not self._urgent
        attest = await outbound.attests(request) if known else attestation(False, False)
        if settings.shaken:
            # One for each call: only our log can tell which are the same caller's (RFC 8588 section 10).
            self._origid = self._origid or _uuid(outbound.random)
            message = "{call}: attestation {attest}, origid {origid}, for {sender}"
            sender = request.from_.uri_text
            self.log.info(message, call=request.call_id, attest=attest, origid=self._origid, sender=sender)
        return Signing.towards(settings, attest, self._origid, own_domain if self._relays else "")


def _speaker(request: Request, own_domains: Sequence[str]) -> str:
    """Who of us speaks in a dialog: in the other direction From is the peer's, then To says it (draft-mahy 4.1.7)."""
    to = request.to.uri
    names = [from_domain(request), normal_domain(to.host) if isinstance(to, SipUri) else "", *own_domains]
    return next(name for name in names if name in own_domains)


def _uuid(random: Any) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _retry_seconds(last: Response | None) -> float | None:
    text = "" if last is None else (last.get("retry-after") or "").split(";")[0].split("(")[0].strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None

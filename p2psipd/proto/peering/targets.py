"""What a request's target is, before anybody is asked: ours, another domain's, a number, an emergency
(draft-mahy-speermint-direct-peering 4.1.1).

:func:`analyse` looks at the Request-URI alone. :func:`candidates` then finds the SIP URIs to send to, in order and
only as far as they are wanted: for a number user ENUM, then carrier ENUM, then the routing table (draft-mahy 4.1.2 to
4.1.4); other targets are themselves. What comes out goes to RFC 3263 (p2psipd.proto.sip.next_hops).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from p2psipd.proto.dns import Ask
from p2psipd.proto.peering.enum import CarrierRoot, EnumOutcome, carrier_enum, user_enum
from p2psipd.proto.peering.number_plan import Kind, NumberPlan, is_e164
from p2psipd.proto.peering.routing_table import RoutingTable
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.next_hops import NoRoute, message_target
from p2psipd.proto.sip.parameters import NO_PARAMETERS, Parameters
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, TelUri, Uri

__all__ = [
    "Analysis",
    "Candidate",
    "DomainPolicy",
    "NumberSources",
    "Place",
    "Stage",
    "TargetRules",
    "analyse",
    "candidates",
]

_SOS: Final = re.compile(r"urn:service:sos(\.[a-z0-9.-]+)?", re.IGNORECASE)
#: What a user part looks like that was dialled and not spelt.
_DIALLED: Final = re.compile(r"\+?[0-9*#().-]+")
#: Of a number's parameters those that go on with it; the others end here (RFC 3966 section 3). Their values become
#: part of a user part, so that only what is harmless there is kept.
_KEPT: Final = ("ext", "isub")
_KEPT_VALUE: Final = re.compile(r"[0-9A-Za-z.()*-]{1,32}")


class Place(Enum):
    """Where a target belongs: HOME (our domains, our users, our short codes: never peering), EMERGENCY,
    DOMAIN (another domain), MESSAGING (an im: or pres: URI of one), NUMBER (somebody's E.164 number).
    """

    HOME = "home"
    EMERGENCY = "emergency"
    DOMAIN = "domain"
    MESSAGING = "messaging"
    NUMBER = "number"


class Analysis(NamedTuple):
    """`uri` is the target as it came; `number` "+digits" and `subscriber` the same with ;ext and ;isub, both
    only for NUMBER. `domain` is the domain that the policy judges, for DOMAIN and MESSAGING.
    """

    place: Place
    uri: Uri
    number: str = ""
    subscriber: str = ""
    domain: str = ""


class TargetRules(NamedTuple):
    """`domains` are ours and those of our federation: a target there is never a peer's. `plan` reads what was
    dialled; without one only numbers in global form are numbers.
    """

    domains: frozenset[str]
    plan: NumberPlan | None = None


def analyse(uri: Uri, rules: TargetRules) -> Analysis:
    """What `uri` is. Raises NoRoute: 404 for a number that cannot be made global, 416 for a scheme that leads
    nowhere.
    """
    if isinstance(uri, SipUri):
        if uri.host not in rules.domains:
            return Analysis(Place.DOMAIN, uri, domain=uri.host)
        return _at_home(uri, rules)
    if isinstance(uri, TelUri):
        found = _dialled(uri, uri.number, uri.params, rules)
        if found is not None:
            return found
        raise NoRoute(404, "Not Found", f"{uri}: no number that can be reached from here")
    if _SOS.fullmatch(str(uri)):
        return Analysis(Place.EMERGENCY, uri)
    if uri.scheme in ("im", "pres"):
        try:
            target = message_target(uri)
        except SipError as error:
            raise NoRoute(404, "Not Found", f"{uri}: {error}") from None
        if target.host in rules.domains:
            return Analysis(Place.HOME, target)
        return Analysis(Place.MESSAGING, uri, domain=target.host)
    raise NoRoute(416, "Unsupported URI Scheme", f"{uri.scheme}: no way to get there")


def _at_home(uri: SipUri, rules: TargetRules) -> Analysis:
    """A SIP URI of a domain of ours: a number if it was dialled and is not a code of this house."""
    user, _, rest = uri.unescaped_user.partition(";")
    marked = (uri.params.get("user") or "").lower() in ("phone", "dialstring")
    if marked or _DIALLED.fullmatch(user):
        try:
            parameters = Parameters.parse_uri(f";{rest}") if rest else NO_PARAMETERS
        except SipError:
            return Analysis(Place.HOME, uri)
        found = _dialled(uri, user, parameters, rules)
        if found is not None:
            return found
    return Analysis(Place.HOME, uri)


def _dialled(uri: SipUri | TelUri, user: str, parameters: Parameters, rules: TargetRules) -> Analysis | None:
    """A number or an emergency; None for what the plan does not send anywhere."""
    if rules.plan is None:
        number = re.sub(r"[-.() ]", "", user)
        kind = Kind.GLOBAL if is_e164(number) else Kind.UNKNOWN
    else:
        kind, number = rules.plan.read(user, parameters, rules.domains)
    if kind is Kind.EMERGENCY:
        return Analysis(Place.EMERGENCY, uri)
    if kind is not Kind.GLOBAL:
        return None
    kept = [
        (name, value)
        for name, value in parameters
        if name.lower() in _KEPT and value is not None and _KEPT_VALUE.fullmatch(value)
    ]
    return Analysis(Place.NUMBER, uri, number, f"{number}{Parameters(kept)}")


# ---- whom we send to at all --------------------------------------------------------------------------------


class DomainPolicy:
    """Which domains we peer with: all but `denied`, or only `allowed` where that is given.

    A domain stands for the domains below it, too; the longest name that fits decides, and a denied one beats an
    allowed one of the same length.
    """

    def __init__(self, denied: Iterable[str] = (), allowed: Iterable[str] | None = None) -> None:
        self._denied = frozenset(denied)
        self._allowed = None if allowed is None else frozenset(allowed)

    def permits(self, domain: str) -> bool:
        """Whether requests may go to `domain` (lower case)."""
        labels = domain.split(".")
        for start in range(len(labels)):
            name = ".".join(labels[start:])
            if name in self._denied:
                return False
            if self._allowed is not None and name in self._allowed:
                return True
        return self._allowed is None


# ---- from a number to SIP URIs -----------------------------------------------------------------------------


class Stage(Enum):
    """What gave a candidate."""

    TARGET = "target"
    PRIVATE_ENUM = "private ENUM"
    USER_RANGES = "user ranges"
    USER_ENUM = "user ENUM"
    CARRIER_RANGES = "carrier ranges"
    CARRIER_ENUM = "carrier ENUM"
    ROUTING_TABLE = "routing table"


class Candidate(NamedTuple):
    """One URI to send the request to, and what gave it. `messaging` is the im: or pres: URI that it stands for
    and that RFC 3861 resolves (message_hops). `home`: the number is a resource of ours after all; it is not
    looked up by ENUM again.
    """

    uri: SipUri
    stage: Stage
    messaging: OpaqueUri | None = None
    home: bool = False


class NumberSources(NamedTuple):
    """Where numbers are looked up. Empty roots leave a stage out.

    `private_roots` are asked first, and may say that a number is ours. `user_ranges` and `carrier_ranges` are
    tables that come before the ENUM stage of their name; to replace it, leave its roots empty. `absent_codes`
    are country codes without records in the user trees.
    """

    private_roots: tuple[str, ...] = ()
    user_ranges: RoutingTable | None = None
    user_roots: tuple[str, ...] = ("e164.arpa",)
    absent_codes: tuple[str, ...] = ()
    carrier_ranges: RoutingTable | None = None
    carrier_roots: tuple[CarrierRoot, ...] = ()
    routing_table: RoutingTable | None = None


async def candidates(
    analysis: Analysis, ask: Ask, sources: NumberSources, rules: TargetRules
) -> AsyncIterator[Candidate]:
    """The URIs to try for a DOMAIN, MESSAGING or NUMBER, in order.

    Of a number, a user's own records end the search; a carrier's are followed by the routing table, which is
    asked only when the next candidate is wanted, that is when the carrier could not be reached. Raises NoRoute:
    404 when nothing is known of the number, 503 when that could not be found out.
    """
    if isinstance(analysis.uri, SipUri) and analysis.place is Place.DOMAIN:
        yield Candidate(analysis.uri, Stage.TARGET)
    elif isinstance(analysis.uri, OpaqueUri) and analysis.place is Place.MESSAGING:
        yield Candidate(message_target(analysis.uri), Stage.TARGET, analysis.uri)
    elif analysis.place is Place.NUMBER:
        search = _NumberSearch(analysis, ask, sources, rules)
        given = 0
        async for candidate in search.run():
            given += 1
            yield candidate
        if not given:
            raise search.verdict()


class _NumberSearch:
    """The stages for one number."""

    def __init__(self, analysis: Analysis, ask: Ask, sources: NumberSources, rules: TargetRules) -> None:
        self._analysis = analysis
        self._ask = ask
        self._sources = sources
        self._rules = rules
        self._temporary = False
        self._number = analysis.number

    def verdict(self) -> NoRoute:
        """Why there is no candidate."""
        if self._temporary:
            return NoRoute(503, "DNS Failure", f"{self._number}: ENUM could not be asked")
        return NoRoute(404, "No Route To Peer", f"{self._number}: no ENUM records and no entry in the routing table")

    async def run(self) -> AsyncIterator[Candidate]:
        """Stage after stage."""
        users = await self._users()
        for candidate in users:
            yield candidate
        if users:
            return
        found, ported = await self._carriers()
        for candidate in found:
            yield candidate
        if self._sources.routing_table is not None:
            for uri in self._by_table(self._sources.routing_table, ported):
                yield self._candidate(uri, Stage.ROUTING_TABLE)

    async def _users(self) -> list[Candidate]:
        sources = self._sources
        if sources.private_roots:
            found = self._usable(await user_enum(self._number, self._ask, sources.private_roots), Stage.PRIVATE_ENUM)
            if found:
                return found
        if sources.user_ranges is not None:
            uris = self._by_table(sources.user_ranges, "")
            if uris:
                return [self._candidate(uri, Stage.USER_RANGES) for uri in uris]
        outcome = await user_enum(self._number, self._ask, sources.user_roots, sources.absent_codes)
        return self._usable(outcome, Stage.USER_ENUM)

    async def _carriers(self) -> tuple[list[Candidate], str]:
        """The carrier's URIs, and the routing number where the number was ported (RFC 4769, RFC 4694)."""
        sources = self._sources
        if sources.carrier_ranges is not None:
            uris = self._by_table(sources.carrier_ranges, "")
            if uris:
                return [self._candidate(uri, Stage.CARRIER_RANGES) for uri in uris], ""
        outcome = await carrier_enum(self._number, self._ask, sources.carrier_roots)
        ported = ""
        for result in outcome.results:
            if isinstance(result.uri, TelUri) and not ported:
                ported = _routing_number(result.uri)
        return self._usable(outcome, Stage.CARRIER_ENUM), ported

    def _usable(self, outcome: EnumOutcome, stage: Stage) -> list[Candidate]:
        self._temporary = self._temporary or outcome.temporary
        found = []
        for result in outcome.results:
            if isinstance(result.uri, SipUri):
                found.append(self._candidate(result.uri, stage))
            elif isinstance(result.uri, OpaqueUri):
                try:
                    target = message_target(result.uri)
                except (NoRoute, SipError):
                    # A stranger's record that leads nowhere: the next one counts.
                    continue
                home = target.host in self._rules.domains
                found.append(Candidate(target, stage, None if home else result.uri, home))
        return found

    def _candidate(self, uri: SipUri, stage: Stage) -> Candidate:
        return Candidate(uri, stage, None, uri.host in self._rules.domains)

    def _by_table(self, table: RoutingTable, ported: str) -> Sequence[SipUri]:
        """The entries for the number, or for the switch that a ported one is at now."""
        return table.find(self._number, self._analysis.subscriber, ported)


def _routing_number(uri: TelUri) -> str:
    """The global routing number "+digits" of a tel: URI that carries one, else "" (RFC 4694 section 5)."""
    routing = re.sub(r"[-.()]", "", uri.params.get("rn") or "")
    return routing if is_e164(routing) else ""

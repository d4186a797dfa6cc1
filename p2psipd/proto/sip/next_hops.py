"""Where a request for a URI goes: transport, addresses and ports, in the order to try them (RFC 3263, 7984, 3861).

:func:`next_hops` turns a SIP URI into :class:`Hop` values one by one, asking the DNS only as far as they are
taken. It never changes the URI. Failover is the caller's: it takes the next hop after a 503, a transport
failure, or a time-out without any response (RFC 3263 section 4.3). :class:`DeadTargets` remembers for a short
time what did not answer, and :func:`living_first` puts it last.

Decisions where the RFCs leave room:

- A look-up that failed is never taken for "no record": 503, and no way less secure than the one that could not be
  looked up is taken.
- Without NAPTR records all supported transports are looked up by SRV, the most secure first.
- Certificates are compared with the domain of the URI alone (RFC 5922 section 7.3), so every hop carries it.
- Addresses of one SRV target come in the order of the policy table of RFC 6724; targets are never mixed.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple, Protocol

from p2psipd.proto.dns import A, Aaaa, Ask, Naptr, Srv, Status
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, unescape

__all__ = [
    "ALL_FAMILIES",
    "DeadTargets",
    "Hop",
    "NoRoute",
    "in_srv_order",
    "is_numeric",
    "living_first",
    "message_hops",
    "message_target",
    "next_hops",
]

#: Hops of one URI, its servers, the addresses of one server, and look-ups that failed (each may take as long as a name
#: server is waited for): what a hostile zone can make us try.
MAX_HOPS: Final = 32
MAX_SERVERS: Final = 32
MAX_ADDRESSES: Final = 8
MAX_FAILURES: Final = 4
ALL_FAMILIES: Final = frozenset({4, 6})
DEAD_SECONDS: Final = 30.0
_MAX_DEAD_SECONDS: Final = 300.0

_DEFAULT_PORTS: Final = {"UDP": 5060, "TCP": 5060, "TLS": 5061, "WS": 80, "WSS": 443}
_SECURE: Final = frozenset({"TLS", "WSS"})
# RFC 3263 section 4.1 and RFC 7118 section 10.2.
_NAPTR_SERVICES: Final = {"SIPS+D2T": "TLS", "SIP+D2T": "TCP", "SIP+D2U": "UDP", "SIPS+D2W": "WSS", "SIP+D2W": "WS"}
_SRV_LABELS: Final = {"TLS": "_sips._tcp", "TCP": "_sip._tcp", "UDP": "_sip._udp"}
_PARAMETERS: Final = {"udp": "UDP", "tcp": "TCP", "tls": "TLS", "ws": "WS", "wss": "WSS"}
_SECURED: Final = {"tcp": "TLS", "tls": "TLS", "ws": "WSS", "wss": "WSS"}
# What else may stand below _im and _pres (IANA): there it is, and we do not speak it.
_FOREIGN_MESSAGING: Final = "_xmpp"


class RandomSource(Protocol):
    """Dice for the weights of RFC 2782."""

    def random(self) -> float:
        """At least 0.0, below 1.0."""
        ...


class Hop(NamedTuple):
    """One place to send to: transport (UDP, TCP, TLS, WS or WSS), numeric address, port, and the domain that
    the server's certificate must carry: that of the URI, before any DNS (RFC 5922 section 7.3).
    """

    transport: str
    host: str
    port: int
    domain: str


class NoRoute(Exception):
    """There is no hop: `status` and `reason` answer the request, `detail` tells the operator why.

    503: the DNS could not be asked. 404: the domain has no such service. 502: it has, but nothing that we may
    or can use.
    """

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.status = status
        self.reason = reason
        self.detail = detail or reason


def is_numeric(host: str) -> bool:
    """Whether `host` is an IP address (IPv6 without brackets)."""
    if ":" not in host and not host[-1:].isdigit():
        return False
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def next_hops(
    uri: SipUri,
    ask: Ask,
    random: RandomSource,
    *,
    transports: frozenset[str],
    tls_only: bool = False,
    families: frozenset[int] = ALL_FAMILIES,
) -> AsyncIterator[Hop]:
    """The hops for `uri`, in order, at most 32.

    `transports` are those that we can use, `families` the IP versions. `tls_only` is the rule for public peers:
    whatever the URI or the DNS offers besides TLS is passed over, and a numeric host, which no certificate can
    prove, is refused. Raises NoRoute when there is no hop at all.
    """
    if tls_only:
        transports &= {"TLS"}
    search = _Search(ask, random, transports, families, uri.host, uri.is_secure or tls_only)
    async for hop in _limited(search.of_uri(uri, tls_only), search):
        yield hop


def message_target(uri: OpaqueUri) -> SipUri:
    """The SIP URI of an im: or pres: URI (RFC 3861, RFC 3860 section 3): the same user and domain.

    Raises NoRoute(404) for one without a domain, MalformedUri (RFC 3261 section 19.1.1) for one that is no URI.
    """
    address = str(uri).partition(":")[2].partition("?")[0]
    user, at, domain = address.rpartition("@")
    if not at or not user or is_numeric(domain.strip("[]")):
        raise NoRoute(404, "Not Found", f"{uri}: expected {uri.scheme}:user@domain")
    return SipUri.parse(f"sip:{user}@{unescape(domain)}")


async def message_hops(
    uri: OpaqueUri,
    ask: Ask,
    random: RandomSource,
    *,
    transports: frozenset[str],
    tls_only: bool = False,
    families: frozenset[int] = ALL_FAMILIES,
) -> AsyncIterator[Hop]:
    """The hops for an im: or pres: URI by RFC 3861: the servers of ``_im._sip`` or ``_pres._sip``, and only
    where the domain has no SRV record for this service at all, its own addresses.

    The records name no transport: TLS, else TCP, else UDP, whichever of them `transports` has.
    """
    domain = message_target(uri).host
    usable = transports & {"TLS"} if tls_only else transports
    search = _Search(ask, random, usable, families, domain, tls_only)
    async for hop in _limited(search.of_messaging(f"_{uri.scheme}", domain), search):
        yield hop


async def _limited(hops: AsyncIterator[Hop], search: _Search) -> AsyncIterator[Hop]:
    seen: set[Hop] = set()
    async for hop in hops:
        if hop not in seen:
            seen.add(hop)
            yield hop
            if len(seen) == MAX_HOPS:
                return
    if not seen:
        raise search.verdict()


class _Search:
    """One run of the procedure: what is asked, and what stood in the way."""

    def __init__(
        self,
        ask: Ask,
        random: RandomSource,
        transports: frozenset[str],
        families: frozenset[int],
        domain: str,
        secure: bool,
    ) -> None:
        self._ask = ask
        self._random = random
        self._transports = transports
        self._families = families
        self._domain = domain
        self._secure = secure
        self._failure = ""
        self._refusal = ""
        self._servers_left = MAX_SERVERS
        self._failures_left = MAX_FAILURES

    def verdict(self) -> NoRoute:
        """Why there is no hop."""
        if self._failure:
            return NoRoute(503, "DNS Failure", self._failure)
        if self._refusal:
            reason = "No Secure Route" if self._secure else "No Usable Route"
            return NoRoute(502, reason, self._refusal)
        return NoRoute(404, "No Such Domain", f"{self._domain}: neither SRV nor address records")

    # ---- RFC 3263 section 4 --------------------------------------------------------------------------------

    async def of_uri(self, uri: SipUri, tls_only: bool) -> AsyncIterator[Hop]:
        """Section 4.1 and 4.2 for `uri`."""
        target = uri.maddr.strip("[]").lower() if uri.maddr else uri.host
        transport = self._given(uri, tls_only) if uri.transport else self._usual()
        if transport is None:
            return
        if is_numeric(target):
            if tls_only:
                self._refusal = f"{target}: a numeric address has no domain that a certificate could prove"
            elif (6 if ":" in target else 4) in self._families:
                yield Hop(transport, target, uri.port or _DEFAULT_PORTS[transport], self._domain)
            else:
                self._refusal = f"{target}: not an address family of ours"
        elif uri.port is not None:
            async for hop in self._at_addresses(transport, target, uri.port):
                yield hop
        else:
            choices = await self._naptr(target) if uri.transport is None else None
            if choices:
                transport = choices[0][0]
            elif choices is None:
                choices = self._srv_names(target, None if uri.transport is None else transport)
            async for hop in self._at_services(choices, target, transport):
                yield hop

    def _given(self, uri: SipUri, tls_only: bool) -> str | None:
        """The transport that the URI asks for, or None if we may not or can't use it."""
        name = uri.transport or ""
        # A sip: URI that says tcp means TCP: under tls_only there is no way to it.
        transport = (_SECURED if uri.is_secure else _PARAMETERS).get(name)
        if transport is None or transport not in self._transports:
            why = "only TLS is allowed here" if tls_only else "not a transport of ours"
            self._refusal = f"{uri.scheme}: with transport={name}: {why}"
            return None
        return transport

    def _usual(self) -> str | None:
        """The transport where nothing says which: UDP for sip, TLS for sips (section 4.1)."""
        for transport in ("TLS",) if self._secure else ("UDP", "TCP", "TLS"):
            if transport in self._transports:
                return transport
        self._refusal = "no transport of ours fits"
        return None

    async def _naptr(self, target: str) -> list[tuple[str, str]] | None:
        """(transport, SRV name) by preference; None when the domain has no NAPTR records for SIP."""
        answer = await self._ask(target, "NAPTR")
        if answer.status is Status.FAILED:
            self._failure = f"NAPTR {target}: {answer.reason}"
            return []
        choices, others = [], []
        records = [record for record in answer.records if isinstance(record, Naptr)]
        for record in sorted(records, key=lambda naptr: (naptr.order, naptr.preference)):
            service = record.service.upper()
            if not service.startswith(("SIP+D2", "SIPS+D2")):
                continue
            transport = _NAPTR_SERVICES.get(service)
            fits = transport in self._transports and (transport in _SECURE or not self._secure)
            if transport is None or not fits:
                others.append(service)
            elif record.flags.lower() == "s" and not record.regexp and record.replacement != ".":
                choices.append((transport, record.replacement))
        if not choices and others:
            self._refusal = f"NAPTR {target}: only {', '.join(sorted(set(others)))}"
            return []
        return choices[:MAX_SERVERS] or None

    def _srv_names(self, target: str, transport: str | None) -> list[tuple[str, str]]:
        allowed = ("TLS",) if self._secure else ("TLS", "TCP", "UDP")
        wanted = [name for name in allowed if name in self._transports] if transport is None else [transport]
        return [(name, f"{_SRV_LABELS[name]}.{target}") for name in wanted if name in _SRV_LABELS]

    async def _at_services(self, choices: Sequence[tuple[str, str]], target: str, transport: str) -> AsyncIterator[Hop]:
        """The servers of each SRV name in turn; where no name has any record, the addresses of `target` for
        `transport`.
        """
        exists = bool(self._failure or self._refusal)
        for chosen, name in choices:
            if self._failure and chosen not in _SECURE:
                # What could not be looked up may have been the more secure way (RFC 3263 section 7).
                return
            if self._failures_left <= 0:
                return
            servers = await self._servers(name)
            exists = exists or servers is not None
            for server in servers or ():
                if not self._goes_on():
                    return
                async for hop in self._at_addresses(chosen, server.target, server.port):
                    yield hop
        if not exists and not self._failure:
            async for hop in self._at_addresses(transport, target, _DEFAULT_PORTS[transport]):
                yield hop

    async def _servers(self, name: str) -> list[Srv] | None:
        """The SRV records of `name` in the order to try; None when there is none, or none could be had."""
        answer = await self._ask(name, "SRV")
        if answer.status is Status.FAILED:
            self._failure = f"SRV {name}: {answer.reason}"
            self._failures_left -= 1
        if answer.status is not Status.FOUND:
            return None
        records = [record for record in answer.records if isinstance(record, Srv)]
        offered = [record for record in records if record.target != "." and record.port]
        if not offered:
            self._refusal = f"SRV {name}: the domain says that it does not offer this service"
        nearest = sorted(offered, key=lambda record: record.priority)[:MAX_SERVERS]
        return in_srv_order(nearest, self._random)

    async def _at_addresses(self, transport: str, name: str, port: int) -> AsyncIterator[Hop]:
        """Every address of `name` (RFC 7984 section 4), asked for both families at once."""
        kinds = [kind for family, kind in ((6, "AAAA"), (4, "A")) if family in self._families]
        under_way = [self._ask(name, kind) for kind in kinds]
        answers = [await answer for answer in under_way]
        found = [
            record.address
            for answer in answers
            for record in answer.records[:MAX_ADDRESSES]
            if isinstance(record, A | Aaaa)
        ]
        for address in _in_policy_order(found):
            yield Hop(transport, address, port, self._domain)
        if not found and any(answer.status is Status.FAILED for answer in answers):
            self._failures_left -= 1
            for kind, answer in zip(kinds, answers, strict=True):
                if answer.status is Status.FAILED:
                    self._failure = f"{kind} {name}: {answer.reason}"

    def _goes_on(self) -> bool:
        """Whether one more server is tried."""
        self._servers_left -= 1
        return self._servers_left >= 0 and self._failures_left > 0

    # ---- RFC 3861 ------------------------------------------------------------------------------------------

    async def of_messaging(self, service: str, domain: str) -> AsyncIterator[Hop]:
        """Section 4 of RFC 3861 for the service ``_im`` or ``_pres``."""
        transport = next((name for name in ("TLS", "TCP", "UDP") if name in self._transports), None)
        if transport is None:
            self._refusal = "no transport of ours fits"
            return
        servers = await self._servers(f"{service}._sip.{domain}")
        for server in servers or ():
            if not self._goes_on():
                return
            async for hop in self._at_addresses(transport, server.target, server.port):
                yield hop
        if servers is not None or self._failure:
            return
        foreign = f"{service}.{_FOREIGN_MESSAGING}.{domain}"
        answer = await self._ask(foreign, "SRV")
        if answer.status is Status.FAILED:
            self._failure = f"SRV {foreign}: {answer.reason}"
        elif answer.status is Status.NONE:
            async for hop in self._at_addresses(transport, domain, _DEFAULT_PORTS[transport]):
                yield hop
        else:
            raise NoRoute(404, "Not Found", f"{domain} offers {service[1:]} by other protocols than SIP only")


# ---- orders ------------------------------------------------------------------------------------------------


def in_srv_order(records: Iterable[Srv], random: RandomSource) -> list[Srv]:
    """By priority, then drawn by weight (RFC 2782, "Usage rules")."""
    ordered: list[Srv] = []
    levels: dict[int, list[Srv]] = {}
    for record in records:
        levels.setdefault(record.priority, []).append(record)
    for _, level in sorted(levels.items()):
        # Weight 0 first: it is then drawn only when the dice show nothing at all.
        remaining = sorted(level, key=lambda record: record.weight > 0)
        while remaining:
            drawn = int(random.random() * (sum(record.weight for record in remaining) + 1))
            for index, record in enumerate(remaining):
                drawn -= record.weight
                if drawn <= 0:
                    ordered.append(remaining.pop(index))
                    break
    return ordered


# RFC 6724 section 2.1: prefixes and precedences, without what we can't know here (source addresses).
_POLICY: Final = [
    (ip_network("::1/128"), 50),
    (ip_network("2002::/16"), 30),
    (ip_network("2001::/32"), 5),
    (ip_network("fc00::/7"), 3),
    (ip_network("::/96"), 1),
    (ip_network("fec0::/10"), 1),
    (ip_network("3ffe::/16"), 1),
]
_IPV4_PRECEDENCE: Final = 35
_IPV6_PRECEDENCE: Final = 40


def _precedence(text: str) -> int:
    address = ip_address(text)
    if not isinstance(address, IPv6Address) or address.ipv4_mapped is not None:
        return _IPV4_PRECEDENCE
    return next((value for network, value in _POLICY if address in network), _IPV6_PRECEDENCE)


def _in_policy_order(addresses: list[str]) -> list[str]:
    return sorted(addresses, key=_precedence, reverse=True) if len(addresses) > 1 else addresses


# ---- what did not answer -----------------------------------------------------------------------------------


class DeadTargets:
    """Servers that failed of late, shared by all requests, so that not each pays for the same dead one.

    A server stays here for the Retry-After of its 503 (at most 300 s), else 30 s. At most `capacity` are
    remembered; the oldest go first.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._until: dict[tuple[str, str, int], float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def mark(self, hop: Hop, now: float, seconds: float | None = None) -> None:
        """`hop` failed at `now` (monotonic seconds); `seconds` is its Retry-After."""
        key = hop[:3]
        self._until.pop(key, None)
        while len(self._until) >= self._capacity:
            del self._until[next(iter(self._until))]
        lifetime = DEAD_SECONDS if seconds is None else min(max(seconds, 0.0), _MAX_DEAD_SECONDS)
        self._until[key] = now + lifetime

    def forget(self, hop: Hop) -> None:
        """`hop` has answered."""
        self._until.pop(hop[:3], None)

    def holds(self, hop: Hop, now: float) -> bool:
        """Whether `hop` should be passed over now."""
        until = self._until.get(hop[:3])
        if until is None:
            return False
        if until <= now:
            del self._until[hop[:3]]
            return False
        return True


async def living_first(hops: AsyncIterable[Hop], dead: DeadTargets, now: Callable[[], float]) -> AsyncIterator[Hop]:
    """`hops` without those of `dead`; these follow at the end, so that where everything is dead the list counts
    for nothing.
    """
    passed_over = []
    async for hop in hops:
        if dead.holds(hop, now()):
            passed_over.append(hop)
        else:
            yield hop
    for hop in passed_over:
        yield hop

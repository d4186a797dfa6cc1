"""The DNS client: look-ups with a cache, on the reactor's own sockets (RFC 1034, 2308, 5452, 6672).

:meth:`DnsClient.ask` is what the cores know as ``Ask``. Equal questions under way are merged; what was found is kept
for its TTL, what was surely not there for as long as its SOA says, and a failure not at all: it says nothing about
the domain. CNAME and DNAME are followed, here and not by the askers.

DNSSEC: for the domains that require it, only answers with the AD bit count. That bit is the verdict of the name
server, so it counts only from servers on the same machine, and from those that are said to validate and to be reached
over a path that nobody else can write to (RFC 6840 section 5.8); the others are not even asked. (Validating here would
mean to carry root keys and clocks into every node, for what each resolver does.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from p2psipd.net.dns_messages import NXDOMAIN, Question, Reply, ask_for, canonical
from p2psipd.net.dns_servers import DnsServers, RandomSource
from p2psipd.proto.dns import NO_RECORD, A, Aaaa, Answer, Record, Status

__all__ = ["DnsClient", "client_for", "hosts_of", "name_servers"]

#: Aliases followed for one look-up.
MAX_ALIASES: Final = 8
MAX_SECONDS: Final = 86400.0
MAX_NEGATIVE_SECONDS: Final = 3600.0
_MAX_UNDER_WAY: Final = 4096
_HOSTS_SECONDS: Final = 60.0
_MAX_FILE_OCTETS: Final = 1_000_000
_LOCALHOST: Final = {"localhost": ("127.0.0.1", "::1")}


class DnsClient(Service):
    """Looks names up, over the given servers. As a service of a node it closes its sockets at the end.

    `servers` are numeric addresses and ports, asked in order. `hosts` maps canonical names to addresses (see
    :func:`hosts_of`); of such a name the DNS is asked nothing at all, so that it works where there is no DNS.
    Names at or below one of `dnssec` are believed only with the word of a server that DNSSEC vouches for them, which
    servers on this machine and those of `validating` (addresses) can give. A look-up takes at most `timeout_seconds`
    for each name that it is led to. At most `capacity` answers are kept.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[tuple[str, int]],
        random: RandomSource,
        *,
        timeout_seconds: float = 5.0,
        hosts: Mapping[str, Sequence[str]] = _LOCALHOST,
        dnssec: Iterable[str] = (),
        validating: Iterable[str] = (),
        capacity: int = 20_000,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._servers = DnsServers(
            reactor, servers, random, timeout_seconds, self.counters, frozenset(validating)
        )
        self._hosts = hosts
        self._dnssec = tuple([canonical(domain) for domain in dnssec])
        self._capacity = capacity
        self._cache: dict[tuple[str, str], tuple[float, Answer]] = {}
        self._under_way: dict[tuple[str, str], list[Deferred[Answer]]] = {}

    def ask(self, name: str, type: str) -> Deferred[Answer]:
        """Look `name` up; begins at once, never fails. See :data:`p2psipd.proto.dns.Ask`."""
        result: Deferred[Answer] = Deferred()
        key = (canonical(name), type)
        known = self._known(key)
        if known is not None:
            self.counters["cached"] += 1
            result.callback(known)
            return result
        waiting = self._under_way.get(key)
        if waiting is not None:
            self.counters["merged"] += 1
            waiting.append(result)
            return result
        question = ask_for(*key)
        if question is None:
            result.callback(NO_RECORD)
        elif len(self._under_way) >= _MAX_UNDER_WAY:
            result.callback(Answer(Status.FAILED, reason="too many look-ups under way"))
        else:
            self._under_way[key] = [result]
            Deferred.fromCoroutine(self._run(key, question)).addErrback(self._broken, key)
        return result

    async def addresses(self, host: str) -> list[str]:
        """The addresses of `host`, itself when it is numeric; [] when there is none, or none could be had."""
        try:
            return [str(ip_address(host))]
        except ValueError:
            under_way = [self.ask(host, "AAAA"), self.ask(host, "A")]
        answers = [await answer for answer in under_way]
        return [record.address for answer in answers for record in answer.records if isinstance(record, A | Aaaa)]

    def flush(self) -> None:
        """Forget everything that was looked up."""
        self._cache.clear()

    def close(self) -> Deferred[list[None]]:
        """Close the sockets; look-ups under way end as failures. Fires when that is done."""
        return self._servers.close()

    def startService(self) -> None:
        """Say what cannot work; sockets are opened when they are needed."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._dnssec and not self._servers.validates:
            message = "no name server is trusted with DNSSEC ([dns] validating): nothing is found of {domains}"
            self.log.warn(message, domains=", ".join(self._dnssec))

    def stopService(self) -> Deferred[list[None]]:
        """As :meth:`close`."""
        super().stopService()  # type: ignore[no-untyped-call]
        return self.close()

    # ---- one look-up ---------------------------------------------------------------------------------------

    async def _run(self, key: tuple[str, str], question: Question) -> None:
        answer = await self._look_up(question)
        if answer.status is Status.FAILED:
            self.counters["failed"] += 1
        elif answer.ttl_seconds > 0.0:
            self._keep(key, answer)
        self._finish(key, answer)

    def _broken(self, failure: Any, key: tuple[str, str]) -> Any:
        """A fault of ours must leave no asker waiting."""
        self._finish(key, Answer(Status.FAILED, reason=f"internal error: {failure.getErrorMessage()}"))
        return failure

    def _finish(self, key: tuple[str, str], answer: Answer) -> None:
        for result in self._under_way.pop(key, ()):
            # One who has stopped waiting has cancelled his Deferred.
            if not result.called:
                result.callback(answer)

    async def _look_up(self, question: Question) -> Answer:
        name, seconds, authentic = question.name, MAX_SECONDS, True
        required = any(name == domain or name.endswith(f".{domain}") or domain == "." for domain in self._dnssec)
        seen = {name}
        while True:
            reply = await self._servers.exchange(question, required)
            if isinstance(reply, str):
                return Answer(Status.FAILED, reason=reply)
            authentic = authentic and reply.authentic
            while (alias := _alias(reply, name)) is not None:
                name, seconds = alias[0], min(seconds, alias[1])
                if name in seen or len(seen) > MAX_ALIASES:
                    return Answer(Status.FAILED, reason=f"alias loop at {name}")
                seen.add(name)
            if required and not authentic:
                return Answer(Status.FAILED, reason="not vouched for by DNSSEC")
            records = [(life, record) for owner, life, record in reply.records if owner == name]
            if records:
                seconds = min([seconds, *[life for life, _ in records]])
                found = tuple(dict.fromkeys([record for _, record in records]))
                return Answer(Status.FOUND, found, seconds, authentic)
            led = name != question.name and reply.negative_seconds is None and reply.code != NXDOMAIN
            following = ask_for(name, question.type) if led else None
            if following is None:
                seconds = min(seconds, reply.negative_seconds or 0.0, MAX_NEGATIVE_SECONDS)
                return Answer(Status.NONE, (), seconds, authentic)
            question = following

    # ---- what is known -------------------------------------------------------------------------------------

    def _known(self, key: tuple[str, str]) -> Answer | None:
        host = key[0]
        while host.startswith("_"):
            host = host.partition(".")[2]
        if host in self._hosts:
            return _from_hosts(self._hosts[host] if host == key[0] else (), key[1])
        kept = self._cache.get(key)
        if kept is None:
            return None
        if kept[0] <= self._reactor.seconds():
            del self._cache[key]
            return None
        return kept[1]

    def _keep(self, key: tuple[str, str], answer: Answer) -> None:
        self._cache.pop(key, None)
        while len(self._cache) >= self._capacity:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (self._reactor.seconds() + answer.ttl_seconds, answer)


def _alias(reply: Reply, name: str) -> tuple[str, float] | None:
    """Where the CNAME of `name` points, or the DNAME of a domain above it (RFC 6672 section 2.2)."""
    found = reply.aliases.get(name)
    if found is not None or not reply.branches:
        return found
    labels = name.split(".")
    for start in range(1, len(labels)):
        branch = reply.branches.get(".".join(labels[start:]))
        if branch is not None:
            return ".".join([*labels[:start], branch[0]]), branch[1]
    return None


def _from_hosts(addresses: Sequence[str], type: str) -> Answer:
    found: tuple[Record, ...] = ()
    if type == "A":
        found = tuple([A(address) for address in addresses if ":" not in address])
    elif type == "AAAA":
        found = tuple([Aaaa(address) for address in addresses if ":" in address])
    return Answer(Status.FOUND if found else Status.NONE, found, _HOSTS_SECONDS)


def client_for(
    reactor: Any,
    servers: Sequence[tuple[str, int]],
    timeout_seconds: float,
    dnssec: Iterable[str],
    random: RandomSource,
    validating: Iterable[str] = (),
) -> DnsClient:
    """The client of a node: the servers of its configuration, else the machine's, and the machine's hosts file."""
    return DnsClient(
        reactor,
        servers or name_servers(),
        random,
        timeout_seconds=timeout_seconds,
        hosts=hosts_of(),
        dnssec=dnssec,
        validating=validating,
    )


# ---- the machine's own files -------------------------------------------------------------------------------


def name_servers(path: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """The name servers of the machine, the first three as everywhere else; its own port 53 when it names none."""
    found = []
    for words in _lines(path):
        if words[0] == "nameserver" and len(words) > 1 and _is_address(words[1]):
            found.append((words[1], 53))
    return found[:3] or [("127.0.0.1", 53)]


def hosts_of(path: Path = Path("/etc/hosts")) -> dict[str, Sequence[str]]:
    """The names of the machine's hosts file, and "localhost" always (RFC 6761 section 6.3)."""
    found: dict[str, list[str]] = {}
    for words in _lines(path):
        if _is_address(words[0]):
            for name in words[1:]:
                found.setdefault(canonical(name), []).append(words[0])
    return {**_LOCALHOST, **found}


def _lines(path: Path) -> list[list[str]]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_OCTETS).decode("utf-8", "replace")
    except OSError:
        # Neither file has to exist: then nothing is configured in it.
        return []
    lines = [line.split("#")[0].split(";")[0].split() for line in text.splitlines()]
    return [words for words in lines if words]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True

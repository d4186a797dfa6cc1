"""The DNS client, RFC 3263 and ENUM against knot: good zones, malformed ones, and zones made to hurt."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import dns.rdata
import pytest
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from p2psipd.net.dns import DnsClient
from p2psipd.proto.dns import A, Aaaa, Naptr, Record, Srv, Status, Txt
from p2psipd.proto.peering.enum import CarrierRoot, carrier_enum, user_enum
from p2psipd.proto.sip.next_hops import MAX_HOPS, NoRoute, message_hops, next_hops
from p2psipd.proto.sip.uri import OpaqueUri, SipUri
from tests.knot import Knot

T = TypeVar("T")
ALL = frozenset({"UDP", "TCP", "TLS"})


async def gathered(items: AsyncIterator[T]) -> list[T]:
    """Everything that an async iterator gives."""
    return [item async for item in items]


def told(type: str, line: str) -> Record:
    """A line of kdig as the value that we should have."""
    data: Any = dns.rdata.from_text("IN", type, line)
    if type == "NAPTR":
        texts = [octets.decode("utf-8", "replace") for octets in (data.flags, data.service, data.regexp)]
        replacement = data.replacement.to_text(True).lower()
        return Naptr(data.order, data.preference, *texts, replacement if replacement != "@" else ".")
    if type == "SRV":
        target = data.target.to_text(True).lower()
        return Srv(data.priority, data.weight, data.port, target if target != "@" else ".")
    if type == "TXT":
        return Txt(tuple(octets.decode() for octets in data.strings))
    return A(data.address) if type == "A" else Aaaa(data.address)


@pytest.mark.foreign("knotd", "kdig")
@pytest.mark.usefixtures("of_knot")
class KnotTests(TestCase):
    """Look-ups at knot."""

    timeout = 20
    knot: Knot

    @pytest.fixture
    def of_knot(self, knot: Knot) -> None:
        """The server, and a client of it."""
        type(self).knot = knot

    def setUp(self) -> None:
        self.client = DnsClient(reactor, [self.knot.address], random.SystemRandom(), timeout_seconds=2.0)
        self.addCleanup(self.client.close)

    async def test_the_same_as_kdig(self) -> None:
        """For every kind of record, aliases and wildcards too, our values are those that knot's own client prints."""
        asked = [
            ("b.test", "NAPTR"),
            ("_sips._tcp.b.test", "SRV"),
            ("_sips._tcp.no-service.b.test", "SRV"),
            ("n1.b.test", "A"),
            ("n1.b.test", "AAAA"),
            ("txt.b.test", "TXT"),
            ("many.b.test", "A"),
            ("x.y.wild.b.test", "A"),
            ("4.1.2.1.5.5.5.2.1.2.1.e164.arpa", "NAPTR"),
            ("1.0.2.4.4.ienum.test", "NAPTR"),
        ]
        for name, type in asked:
            answer = await self.client.ask(name, type)
            assert answer.status is Status.FOUND, (name, answer)
            expected = sorted([told(type, line) for line in self.knot.kdig(name, type)])
            assert sorted(answer.records) == expected, name
        assert self.client.counters["tcp"] == 1

    async def test_aliases_and_absence(self) -> None:
        """CNAME and DNAME lead on; NXDOMAIN and an empty answer are NONE for as long as the SOA says."""
        for name in ("alias.b.test", "n1.branch.b.test"):
            assert (await self.client.ask(name, "A")).records == (A("192.0.2.1"),)
        for name, type in (("nobody.b.test", "A"), ("n2.b.test", "AAAA"), ("alias.b.test", "SRV"), ("b.test", "AAAA")):
            answer = await self.client.ask(name, type)
            assert (answer.status, answer.ttl_seconds) == (Status.NONE, 60.0), name
            assert self.knot.kdig(name, type) in ([], ["elsewhere.b.test.", "n1.b.test."])

    async def test_what_a_server_refuses_is_not_absent(self) -> None:
        """A zone that the server does not have (REFUSED), and one that it delegates, are FAILED."""
        for name in ("elsewhere.example", "x.delegated.hostile.test"):
            assert (await self.client.ask(name, "A")).status is Status.FAILED

    async def test_circles_and_chains(self) -> None:
        """Aliases in a circle, to themselves, and forty in a row fail, quickly and after few queries."""
        begun = time.monotonic()
        for name in (
            "a.hostile.test",
            "self.hostile.test",
            "outside.b.test",
            "chain1.hostile.test",
            "x.down.hostile.test",
        ):
            before = self.client.counters["queries"]
            assert (await self.client.ask(name, "A")).status is Status.FAILED, name
            assert self.client.counters["queries"] - before <= 10
        assert time.monotonic() - begun < 1.0

    async def test_absurd_counts(self) -> None:
        """A thousand records are FAILED, and a request for the domain 503; two hundred servers give at most 32 hops."""
        begun = time.process_time()
        answer = await self.client.ask("absurd.hostile.test", "AAAA")
        assert (answer.status, "1000 records" in answer.reason) == (Status.FAILED, True)
        with pytest.raises(NoRoute) as caught:
            await gathered(self.hops("sips:bob@hostile.test"))
        assert caught.value.status == 503
        with pytest.raises(NoRoute) as caught:
            await gathered(self.hops("sips:bob@wide.hostile.test"))
        assert caught.value.status == 404
        assert self.client.counters["queries"] < 8 + 2 * MAX_HOPS
        assert time.process_time() - begun < 0.5

    def hops(self, text: str, tls_only: bool = False) -> AsyncIterator[Any]:
        """Next hops by knot's records."""
        return next_hops(SipUri.parse(text), self.client.ask, random.Random(1), transports=ALL, tls_only=tls_only)

    async def test_next_hops(self) -> None:
        """NAPTR, SRV and addresses of a domain as RFC 3263 wants them, with TLS only and without."""
        secure = await gathered(self.hops("sip:bob@b.test", tls_only=True))
        assert {hop.transport for hop in secure} == {"TLS"}
        assert {hop.host for hop in secure[:3]} == {"192.0.2.1", "192.0.2.2", "2001:db8::1"}
        assert (secure[3].host, secure[3].port) == ("2001:db8::3", 5071)
        every = await gathered(self.hops("sip:bob@b.test"))
        assert [hop.transport for hop in every[4:]] == ["TCP", "TCP", "UDP", "UDP"]
        assert [hop.host for hop in await gathered(self.hops("sip:bob@b.test:5070"))] == ["192.0.2.9"]
        with pytest.raises(NoRoute) as caught:
            await gathered(self.hops("sips:bob@no-service.b.test"))
        assert caught.value.status == 502

    async def test_messaging(self) -> None:
        """im: takes the servers of _im._sip; pres: finds only XMPP there and is 404."""
        found = await gathered(
            message_hops(OpaqueUri("im:bob@b.test"), self.client.ask, random.Random(1), transports=ALL, tls_only=True)
        )
        assert {(hop.host, hop.port) for hop in found} == {("192.0.2.1", 5099), ("2001:db8::1", 5099)}
        with pytest.raises(NoRoute) as caught:
            await gathered(
                message_hops(OpaqueUri("pres:bob@b.test"), self.client.ask, random.Random(1), transports=ALL)
            )
        assert caught.value.status == 404

    async def test_enum(self) -> None:
        """Numbers lead to their URIs past malformed, hostile and circular records."""
        expected = {
            "+12125551212": ["sip:2125551212@b.test;user=phone"],
            "+12125551213": ["sip:12125551213@next.b.test"],
            "+12125551214": ["sip:good@b.test"],
            "+12125551215": ["sip:good@b.test"],
            "+12125551219": [],
        }
        for number, uris in expected.items():
            outcome = await user_enum(number, self.client.ask)
            assert ([str(result.uri) for result in outcome.results], outcome.temporary) == (uris, False), number

    async def test_peering_026_carrier_enum_through_dname(self) -> None:
        """The carriers' branch may be moved by DNAME to a tree of its own (RFC 5527 section 6)."""
        outcome = await carrier_enum("+442079460123", self.client.ask, [CarrierRoot()])
        assert [(result.service, str(result.uri)) for result in outcome.results] == [
            ("sip", "sip:+442079460123@c.test"),
            ("pstn:sip", "sip:+442079460123@pstn.c.test;user=phone"),
        ]

    async def test_many_at_once(self) -> None:
        """Four hundred different names at once are all answered."""
        waiting = [self.client.ask(f"n{n}.wild.b.test", "A") for n in range(400)]
        assert {answer.records for answer in await gatherResults(waiting)} == {(A("192.0.2.77"),)}

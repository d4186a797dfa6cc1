"""The DNS client against a server of the test's own that lies, is silent and fails, over real loopback sockets."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.basic import Int16StringReceiver
from twisted.trial.unittest import TestCase

from p2psipd.net.dns import DnsClient, hosts_of, name_servers
from p2psipd.net.dns_messages import BadReply, answers, ask_for, canonical, read_reply
from p2psipd.proto.dns import A, Aaaa, Naptr, Other, Srv, Status, Txt
from p2psipd.proto.peering.targets import Analysis, NumberSources, Place, TargetRules, candidates
from p2psipd.proto.sip.next_hops import Hop, NoRoute, next_hops
from p2psipd.proto.sip.uri import TelUri

HOST, OTHER = "127.1.70.11", "127.1.70.12"
SOA = "b.test. 30 IN SOA ns.b.test. h.b.test. 1 2 3 4 20"
Handler = Callable[[dns.message.Message], "dns.message.Message | bytes | list[bytes] | None"]


def reply(
    query: dns.message.Message, *answer: str, code: int = 0, authority: tuple[str, ...] = (), flags: int = 0
) -> dns.message.Message:
    """A reply with these records, as lines of a zone file."""
    made = dns.message.make_response(query, recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(code))
    made.flags |= flags
    for section, lines in ((made.answer, answer), (made.authority, authority)):
        for line in lines:
            name, seconds, _, kind, data = line.split(" ", 4)
            section.append(dns.rrset.from_text(name, int(seconds), "IN", kind, data))
    return made


class Server(DatagramProtocol):
    """A name server on a loopback address: `handle` gives what to send back, None for silence."""

    def __init__(self, handle: Handler, host: str = HOST, tcp: Handler | None = None) -> None:
        self.handle = handle
        self.asked: list[str] = []
        self.ports: set[int] = set()
        self.identifiers: list[int] = []
        self.streams = 0
        self.udp = reactor.listenUDP(0, self, interface=host)
        self.address = (host, self.udp.getHost().port)
        factory = Factory.forProtocol(_Stream)
        factory.server, factory.handle = self, tcp or handle
        self.tcp = reactor.listenTCP(self.address[1], factory, interface=host)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        query = self.read(datagram)
        self.ports.add(addr[1])
        self.identifiers.append(query.id)
        answer = self.handle(query)
        for part in answer if isinstance(answer, list) else [answer]:
            if part is not None:
                self.transport.write(part if isinstance(part, bytes) else part.to_wire(), addr)

    def read(self, octets: bytes) -> dns.message.Message:
        query = dns.message.from_wire(octets)
        self.asked.append(f"{query.question[0].name} {dns.rdatatype.to_text(query.question[0].rdtype)}")
        return query

    async def close(self) -> None:
        await gatherResults([self.udp.stopListening(), self.tcp.stopListening()])


class _Stream(Int16StringReceiver):
    def stringReceived(self, string: bytes) -> None:
        self.factory.server.streams += 1
        answer = self.factory.handle(self.factory.server.read(string))
        if answer is None:
            self.transport.abortConnection()
        else:
            self.sendString(answer if isinstance(answer, bytes) else answer.to_wire(max_size=65535))


class _Aged:
    """The reactor with a clock that can be set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def seconds(self) -> float:
        return reactor.seconds() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class DnsTests(TestCase):
    """Look-ups."""

    timeout = 20

    def serve(self, handle: Handler, **options: Any) -> Server:
        server = Server(handle, **options)
        self.addCleanup(lambda: server.udp.stopListening())
        self.addCleanup(lambda: server.tcp.stopListening())
        return server

    def client(self, *servers: Server | tuple[str, int], **options: Any) -> DnsClient:
        addresses = [server.address if isinstance(server, Server) else server for server in servers]
        options.setdefault("timeout_seconds", 8.0)
        self.aged = _Aged()
        made = DnsClient(self.aged, addresses, random.SystemRandom(), **options)
        self.addCleanup(made.close)
        return made

    async def test_every_record_type(self) -> None:
        """NAPTR, SRV, A, AAAA and TXT come as values; of other types the data comes as it is."""
        lines = {
            "NAPTR": 'b.test. 60 IN NAPTR 10 20 "u" "E2U+sip" "!^(.*)$!sip:\\\\1@B.test!" Next.B.test.',
            "SRV": "b.test. 60 IN SRV 1 2 5061 N1.b.test.",
            "A": "b.test. 60 IN A 192.0.2.1",
            "AAAA": "b.test. 60 IN AAAA 2001:DB8:0:0::1",
            "TXT": 'b.test. 60 IN TXT "one" "two"',
            "MX": "b.test. 60 IN MX 5 m.b.test.",
        }
        client = self.client(self.serve(lambda query: reply(query, lines[_type(query)])))
        found = {kind: (await client.ask("B.TEST.", kind)).records for kind in lines}
        assert found == {
            "NAPTR": (Naptr(10, 20, "u", "E2U+sip", "!^(.*)$!sip:\\1@B.test!", "next.b.test"),),
            "SRV": (Srv(1, 2, 5061, "n1.b.test"),),
            "A": (A("192.0.2.1"),),
            "AAAA": (Aaaa("2001:db8::1"),),
            "TXT": (Txt(("one", "two")),),
            "MX": (Other("MX", b"\0\5\1m\1b\4test\0"),),
        }

    async def test_peering_020_answers_are_kept_for_their_time(self) -> None:
        """Within the TTL there is no second query, after it there is; absence is kept for as long as the SOA says."""
        server = self.serve(
            lambda query: (
                reply(query, "b.test. 60 IN A 192.0.2.1")
                if _type(query) == "A"
                else reply(query, code=3, authority=(SOA,))
            )
        )
        client = self.client(server)
        for kind, status, seconds in (("A", Status.FOUND, 60), ("AAAA", Status.NONE, 20)):
            server.asked.clear()
            for _ in range(3):
                answer = await client.ask("b.test", kind)
                assert (answer.status, answer.ttl_seconds) == (status, seconds)
            self.aged.ahead += seconds - 1
            await client.ask("b.test", kind)
            assert len(server.asked) == 1
            self.aged.ahead += 2
            await client.ask("b.test", kind)
            assert len(server.asked) == 2

    async def test_failures_are_not_absence_and_not_kept(self) -> None:
        """SERVFAIL, REFUSED, a referral and nonsense are FAILED, and the next look-up asks again."""
        referral = dns.flags.RA
        kinds: list[Handler] = [
            lambda query: reply(query, code=2),
            lambda query: reply(query, code=5),
            lambda query: _without(reply(query, authority=("test. 60 IN NS ns.other.",)), referral),
            lambda query: _absurd(query),
            lambda query: reply(query, "b.test. 60 IN A 192.0.2.1").to_wire()[:-13],
        ]
        for handle in kinds:
            server = self.serve(handle)
            client = self.client(server)
            for _ in range(2):
                answer = await client.ask("b.test", "A")
                assert answer.status is Status.FAILED
                assert answer.reason
            assert len(server.asked) == 2
            await server.close()

    async def test_no_soa_is_absence_for_once(self) -> None:
        """An empty answer without an SOA is absence, and is not remembered (RFC 2308 section 2.2)."""
        server = self.serve(lambda query: reply(query))
        client = self.client(server)
        for _ in range(2):
            assert (await client.ask("b.test", "A")).status is Status.NONE
        assert len(server.asked) == 2

    async def test_equal_questions_are_asked_once(self) -> None:
        """A hundred askers of one name, in any case, cost one query; one who gives up does not stop the others."""
        server = self.serve(lambda query: reply(query, "b.test. 60 IN A 192.0.2.1"))
        client = self.client(server)
        waiting = [client.ask(name, "A") for name in ("b.test", "B.Test.") * 50]
        waiting[0].addErrback(lambda failure: None)
        waiting[0].cancel()
        for answer in await gatherResults(waiting[1:]):
            assert answer.records == (A("192.0.2.1"),)
        assert len(server.asked) == 1

    async def test_the_next_server_answers_for_one_that_does_not(self) -> None:
        """Silence, SERVFAIL and a closed port lead to the next server; the silent one is asked last afterwards."""
        good = self.serve(lambda query: reply(query, f"{query.question[0].name} 60 IN A 192.0.2.1"), host=OTHER)
        silent = self.serve(lambda query: None)
        failing = self.serve(lambda query: reply(query, code=2))
        client = self.client(silent, failing, (HOST, 1), good)
        assert (await client.ask("one.test", "A")).status is Status.FOUND
        assert (await client.ask("two.test", "A")).status is Status.FOUND
        assert (len(silent.asked), len(failing.asked), len(good.asked)) == (1, 2, 2)

    async def test_nobody_listens(self) -> None:
        """A closed port fails every look-up at once, however often the kernel closes our sockets for it."""
        client = self.client((HOST, 1), timeout_seconds=10.0)
        for n in range(20):
            answer = await client.ask(f"n{n}.test", "A")
            assert (answer.status, "nobody listens" in answer.reason) == (Status.FAILED, True)

    async def test_silence_everywhere_ends_in_time(self) -> None:
        """With no answer the look-up fails after its time, having asked several times, each time more patiently."""
        server = self.serve(lambda query: None)
        client = self.client(server, timeout_seconds=0.1)
        begun = reactor.seconds()
        assert (await client.ask("b.test", "A")).status is Status.FAILED
        assert reactor.seconds() - begun < 1.0
        assert 2 <= len(server.asked) <= 4

    async def test_a_lost_datagram_is_sent_again(self) -> None:
        """One lost query costs an eighth of the time, not the look-up."""
        seen: list[int] = []

        def handle(query: dns.message.Message) -> dns.message.Message | None:
            seen.append(query.id)
            return None if len(seen) == 1 else reply(query, "b.test. 60 IN A 192.0.2.1")

        client = self.client(self.serve(handle), timeout_seconds=0.8)
        assert (await client.ask("b.test", "A")).status is Status.FOUND
        assert seen[0] != seen[1]

    async def test_answers_of_strangers_do_not_count(self) -> None:
        """Another identifier, another question, a query sent back and another sender are dropped; the wait goes on."""
        good = "b.test. 60 IN A 192.0.2.1"

        def handle(query: dns.message.Message) -> list[bytes]:
            wrong = reply(query, "b.test. 60 IN A 192.0.2.66")
            true = reply(query, good).to_wire()
            octets = bytearray(wrong.to_wire())
            other = dns.message.make_query("c.test", "A", id=query.id)
            identifier = bytes([octets[0] ^ 1]) + bytes(octets[1:])
            asked = bytes(octets[:2]) + bytes([octets[2] & 0x7F]) + bytes(octets[3:])
            elsewhere = reply(other, "c.test. 60 IN A 192.0.2.66").to_wire()
            return [identifier, asked, elsewhere, b"", b"\0" * 12, b"\xff" * 40, true]

        server = self.serve(handle)
        client = self.client(server)
        stranger = self.serve(lambda query: None, host=OTHER)

        def spoof(query: dns.message.Message) -> list[bytes]:
            forged = reply(query, "b.test. 60 IN A 192.0.2.66").to_wire()
            for port in server.ports:
                stranger.transport.write(forged, ("127.0.0.1", port))
            return handle(query)

        assert (await client.ask("b.test", "A")).records == (A("192.0.2.1"),)
        server.handle = spoof
        client.flush()
        assert (await client.ask("b.test", "A")).records == (A("192.0.2.1"),)
        assert client.counters["bogus"] == 12

    async def test_identifiers_and_ports_vary(self) -> None:
        """Queries come from several ports with identifiers that do not repeat in order, and ports are given up."""
        server = self.serve(lambda query: reply(query, code=3, authority=(SOA,)))
        client = self.client(server)
        for start in range(0, 2400, 100):
            await gatherResults([client.ask(f"n{start + n}.test", "A") for n in range(100)])
        assert len(server.ports) >= 6
        steps = {later - earlier for earlier, later in zip(server.identifiers, server.identifiers[1:], strict=False)}
        assert len(steps) > 1000

    async def test_what_is_cut_off_comes_by_tcp(self) -> None:
        """A reply with TC is asked for again over TCP; one that fails there is a failure."""
        many = [f"b.test. 60 IN A 192.0.2.{n}" for n in range(200)]
        server = self.serve(lambda query: reply(query, flags=dns.flags.TC), tcp=lambda query: reply(query, *many))
        answer = await self.client(server).ask("b.test", "A")
        assert len(answer.records) == 200
        assert server.streams == 1
        endings: list[Handler] = [
            lambda query: None,
            lambda query: reply(query, flags=dns.flags.TC),
            lambda query: b"\0" * 20,
            lambda query: _absurd(query),
        ]
        for ending in endings:
            broken = self.serve(lambda query: reply(query, flags=dns.flags.TC), tcp=ending, host=OTHER)
            assert (await self.client(broken).ask("b.test", "A")).status is Status.FAILED
            await broken.close()

    async def test_servers_without_edns(self) -> None:
        """A server that answers FORMERR to EDNS, even with a bare header, is asked without it."""

        def handle(query: dns.message.Message) -> dns.message.Message | bytes:
            if query.edns < 0:
                return reply(query, "b.test. 60 IN A 192.0.2.1")
            return struct.pack("!HHHHHH", query.id, 0x8001, 0, 0, 0, 0)

        assert (await self.client(self.serve(handle)).ask("b.test", "A")).status is Status.FOUND

    async def test_aliases(self) -> None:
        """CNAME and DNAME are followed inside a reply and by further queries; the shortest TTL counts."""
        zone = {
            "a.test.": ("a.test. 50 IN CNAME b.test.", "b.test. 40 IN CNAME c.test."),
            "c.test.": ("c.test. 60 IN A 192.0.2.1",),
            "x.old.test.": ("old.test. 30 IN DNAME c.test.",),
            "x.c.test.": ("x.c.test. 60 IN A 192.0.2.2",),
        }
        server = self.serve(lambda query: reply(query, *zone[str(query.question[0].name)]))
        client = self.client(server)
        answer = await client.ask("a.test", "A")
        assert (answer.records, answer.ttl_seconds) == ((A("192.0.2.1"),), 40)
        assert (await client.ask("x.old.test", "A")).records == (A("192.0.2.2"),)

    async def test_alias_loops_end(self) -> None:
        """Aliases in a circle, and a chain without end, fail after a few queries."""

        def circle(query: dns.message.Message) -> dns.message.Message:
            name = str(query.question[0].name)
            return reply(query, f"{name} 60 IN CNAME {'b.test.' if name == 'a.test.' else 'a.test.'}")

        def chain(query: dns.message.Message) -> dns.message.Message:
            name = str(query.question[0].name)
            return reply(query, f"{name} 60 IN CNAME x{name}")

        def branch(query: dns.message.Message) -> dns.message.Message:
            return reply(query, "test. 60 IN DNAME x.test.")

        for handle in (circle, chain, branch):
            server = self.serve(handle)
            answer = await self.client(server).ask("a.test", "A")
            assert (answer.status, "loop" in answer.reason) == (Status.FAILED, True)
            assert len(server.asked) < 12
            await server.close()

    async def test_required_dnssec(self) -> None:
        """Where a domain requires DNSSEC, an answer or an absence without AD is FAILED; elsewhere it is believed."""
        flags = [0]
        server = self.serve(
            lambda query: (
                reply(query, f"{query.question[0].name} 60 IN A 192.0.2.1", flags=flags[0])
                if _type(query) == "A"
                else reply(query, authority=(SOA,), flags=flags[0])
            )
        )
        client = self.client(server, dnssec=["B.test"])
        for name, status in (("b.test", Status.FAILED), ("x.b.test", Status.FAILED), ("notb.test", Status.FOUND)):
            assert (await client.ask(name, "A")).status is status
        assert (await client.ask("b.test", "AAAA")).status is Status.FAILED
        flags[0] = dns.flags.AD
        answer = await client.ask("b.test", "A")
        assert (answer.status, answer.authentic) == (Status.FOUND, True)
        assert (await client.ask("b.test", "AAAA")).status is Status.NONE

    async def test_peering_033_unsigned_is_refused_at_every_step(self) -> None:
        """Where a domain, or the tree of the numbers, requires DNSSEC, one unsigned answer on the way is 503, any;
        nothing less is taken instead, and where all are signed the server is found.
        """
        zone = {
            ("2.1.2.1.5.5.5.2.1.2.1.e164.arpa.", "NAPTR"): '10 10 "u" "E2U+sip" "!^.*$!sip:bob@b.test!" .',
            ("b.test.", "NAPTR"): '10 10 "s" "SIPS+D2T" "" _sips._tcp.b.test.',
            ("_sips._tcp.b.test.", "SRV"): "10 1 5061 n1.b.test.",
            ("n1.b.test.", "A"): "192.0.2.1",
            ("n1.b.test.", "AAAA"): "2001:db8::1",
        }
        unsigned: list[str] = []

        def handle(query: dns.message.Message) -> dns.message.Message:
            name, kind = str(query.question[0].name), _type(query)
            flags = 0 if kind in unsigned or name in unsigned else dns.flags.AD
            found = zone.get((name, kind))
            records = (f"{name} 60 IN {kind} {found}",) if found else ()
            return reply(query, *records, authority=() if found else (SOA,), flags=flags)

        server = self.serve(handle)

        async def found(number: str = "+12125551212") -> list[Hop]:
            ask = self.client(server, dnssec=["b.test", "e164.arpa"]).ask
            analysis = Analysis(Place.NUMBER, TelUri(f"tel:{number}"), number, number)
            rules = TargetRules(frozenset({"a.test"}))
            async for candidate in candidates(analysis, ask, NumberSources(), rules):
                hops = next_hops(candidate.uri, ask, random.Random(1), transports={"TLS"}, tls_only=True)
                return [hop async for hop in hops]
            return []

        assert [hop.host for hop in await found()] == ["2001:db8::1", "192.0.2.1"]
        for faults in (["2.1.2.1.5.5.5.2.1.2.1.e164.arpa."], ["b.test."], ["SRV"], ["A", "AAAA"]):
            unsigned[:] = faults
            with self.assertRaises(NoRoute) as caught:
                await found()
            assert caught.exception.status == 503, faults
        unsigned[:] = ["A"]
        assert [hop.host for hop in await found()] == ["2001:db8::1"], "of two families the signed one counts"

    async def test_only_trusted_servers_vouch(self) -> None:
        """AD counts from servers on this machine and those that are named; others are not asked where it matters."""

        def handle(query: dns.message.Message) -> dns.message.Message:
            return reply(query, "b.test. 60 IN A 192.0.2.1", flags=dns.flags.AD)

        servers = [self.serve(handle) for _ in range(2)]
        client = self.client(*servers, dnssec=["b.test"])
        far, near = client._servers._servers
        far.trusted = False
        assert (await client.ask("b.test", "A")).authentic
        assert not servers[0].asked and len(servers[1].asked) == 1
        near.trusted = False
        client.flush()
        answer = await client.ask("b.test", "A")
        assert (answer.status, answer.reason) == (Status.FAILED, "no name server that is trusted with DNSSEC")
        other = await self.client(*servers).ask("b.test", "A")
        assert other.authentic
        with capturedLogs() as said:
            client.startService()
        assert "nothing is found of b.test" in (formatEvent(said[-1]) or "")
        made = self.client(("192.0.2.53", 53), ("192.0.2.54", 53), ("::1", 53), validating=["192.0.2.54"])
        assert [server.trusted for server in made._servers._servers] == [False, True, True]

    async def test_names_that_cannot_be(self) -> None:
        """What is no domain name does not exist; nothing is asked."""
        server = self.serve(lambda query: None)
        client = self.client(server)
        for name in ("x" * 64 + ".test", ".".join(["x" * 60] * 6), "a..b", "\udcff.test", "a\\400.test"):
            assert (await client.ask(name, "A")).status is Status.NONE
        assert server.asked == []

    async def test_hosts_come_first(self) -> None:
        """Of names of the hosts file, and of localhost, nothing is asked, their services included."""
        server = self.serve(lambda query: None)
        client = self.client(server, hosts={"pbx": ["192.0.2.1", "2001:db8::1"], "localhost": ["127.0.0.1"]})
        assert await client.addresses("PBX") == ["2001:db8::1", "192.0.2.1"]
        for name, type in (("localhost", "AAAA"), ("pbx", "NAPTR"), ("_sips._tcp.pbx", "SRV"), ("_sip.pbx", "A")):
            assert (await client.ask(name, type)).status is Status.NONE
        assert await client.addresses("192.0.2.7") == ["192.0.2.7"]
        assert server.asked == []

    async def test_the_cache_is_bounded(self) -> None:
        """Beyond its capacity the oldest entries go."""
        server = self.serve(lambda query: reply(query, f"{query.question[0].name} 60 IN A 192.0.2.1"))
        client = self.client(server, capacity=5)
        for n in range(8):
            await client.ask(f"n{n}.test", "A")
        await client.ask("n7.test", "A")
        assert len(server.asked) == 8
        await client.ask("n0.test", "A")
        assert len(server.asked) == 9

    async def test_closing_ends_what_waits(self) -> None:
        """When the client is closed, look-ups under way fail at once."""
        client = self.client(self.serve(lambda query: None), timeout_seconds=10.0)
        waiting = client.ask("b.test", "A")
        await deferLater(reactor, 0.0)
        await client.close()
        assert (await waiting).status is Status.FAILED


def _type(query: dns.message.Message) -> str:
    return dns.rdatatype.to_text(query.question[0].rdtype)


def _without(message: dns.message.Message, flag: int) -> dns.message.Message:
    message.flags &= ~flag
    return message


def _absurd(query: dns.message.Message) -> bytes:
    """A reply that claims thousands of records."""
    octets = bytearray(reply(query, "b.test. 60 IN A 192.0.2.1").to_wire())
    octets[6:8] = b"\x10\x00"
    return bytes(octets)


def test_machine_files(tmp_path: Path) -> None:
    """resolv.conf gives at most three numeric servers, and hosts names for addresses; absent files are empty ones."""
    (tmp_path / "resolv.conf").write_text(
        "search x\nnameserver 192.0.2.1 # one\nnameserver bad\n;nameserver 192.0.2.9\nnameserver 2001:db8::1\n"
        "nameserver 192.0.2.3\nnameserver 192.0.2.4\nnameserver\n"
    )
    found = name_servers(tmp_path / "resolv.conf")
    assert found == [("192.0.2.1", 53), ("2001:db8::1", 53), ("192.0.2.3", 53)]
    assert name_servers(tmp_path / "none") == [("127.0.0.1", 53)]
    (tmp_path / "hosts").write_bytes(b"192.0.2.1 Pbx pbx.test # x\n2001:db8::1 pbx\nnonsense y\n\xff\xfe\n")
    hosts = hosts_of(tmp_path / "hosts")
    assert hosts["pbx"] == ["192.0.2.1", "2001:db8::1"]
    assert hosts["localhost"] == ("127.0.0.1", "::1")
    assert "y" not in hosts


QUESTION = ask_for("b.test", "NAPTR")
GOOD = reply(
    dns.message.make_query("b.test", "NAPTR"),
    'b.test. 60 IN NAPTR 10 20 "u" "E2U+sip" "!^.*$!sip:x@b.test!" .',
    "b.test. 60 IN CNAME c.test.",
    authority=(SOA,),
).to_wire()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_any_reply(noise: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever octets arrive, they are no reply, a reply, or BadReply."""
    assert QUESTION is not None
    changed = bytearray(GOOD)
    for place, value in changes:
        changed[place] = value
    for message in (noise, GOOD[:12] + QUESTION.section + noise, bytes(changed), bytes(changed)[: len(noise)]):
        if answers(message, QUESTION):
            try:
                read_reply(message, QUESTION)
            except BadReply:
                continue


def test_names_in_one_form() -> None:
    """Case and the final dot do not tell names apart; an escaped dot is no final dot."""
    assert [canonical(name) for name in ("B.Test.", "b.test", ".", "", "a\\.")] == [
        "b.test",
        "b.test",
        ".",
        ".",
        "a\\.",
    ]

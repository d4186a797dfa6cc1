"""The echo user: found, called, echoed, limited; as the node sees it, without a socket for SIP."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from p2psipd.proto.media.rtp import RtpPacket, decode_packet
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Binding, LocationUnavailable, Origin, Query, encode_gr
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.sdp import make_offer, parse_sdp
from p2psipd.proto.sip.uri import parse_uri
from p2psipd.services.echo import LIFETIME, EchoService, EchoSettings

NODE = bytes(range(16))
PHONE = ("192.0.2.7", 4000)


class Ports(Clock):
    """A clock on which UDP ports can be taken, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[int, Any] = {}

    def listenUDP(self, port: int, protocol: Any, interface: str) -> Any:
        if port in self.taken:
            raise CannotListenError(interface, port, OSError("taken"))
        self.taken[port] = protocol
        protocol.transport = Socket(self, port)
        return protocol.transport


class Socket:
    """A UDP port that keeps what is written."""

    def __init__(self, ports: Ports, port: int) -> None:
        self.ports, self.port = ports, port
        self.written: list[tuple[bytes, tuple[str, int]]] = []

    def write(self, data: bytes, address: tuple[str, int]) -> None:
        self.written.append((data, address))

    def stopListening(self) -> None:
        del self.ports.taken[self.port]


class Location:
    """What the overlay would hold; `away` says that it can't be asked."""

    def __init__(self) -> None:
        self.writes: list[tuple[list[Binding], list[Binding]]] = []
        self.away = False

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        return ()

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        if self.away:
            raise LocationUnavailable("not joined")
        self.writes.append((list(puts), list(removes)))


class Node:
    """The node's end of the connection."""

    def __init__(self) -> None:
        self.flow = Flow("TCP", ("127.0.0.1", 0), ("192.0.2.1", 5060))
        self.take: Callable[[bytes], None] = lambda data: None
        self.heard: list[Request | Response] = []

    def attach(self, take: Callable[[bytes], None]) -> Node:
        self.take = take
        return self

    def put(self, message: Request | Response) -> None:
        self.heard.append(message)


class EchoTests(SynchronousTestCase):
    """One echo user on a virtual clock."""

    def setUp(self) -> None:
        self.clock, self.location, self.node = Ports(), Location(), Node()
        settings = EchoSettings(("o.example",), NODE, "echo", "192.0.2.1", (30001, 30005), 2, 60.0)
        self.echo = EchoService(
            settings, location=self.location, reactor=self.clock, random=random.Random(1), wall=lambda: 5000.0
        )
        self.echo.attach = self.node.attach
        self.echo.startService()
        self.addCleanup(lambda: self.echo.running and self.echo.stopService())

    def invite(self, number: int = 1) -> Response:
        """Somebody calls; the final answer."""
        lines = [
            ("Via", f"SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK{number}"),
            ("Max-Forwards", "70"),
            ("From", "<sip:alice@o.example>;tag=1"),
            ("To", "<sip:echo@o.example>"),
            ("Call-ID", f"c{number}"),
            ("CSeq", "1 INVITE"),
            ("Contact", "<sip:alice@192.0.2.7>"),
        ]
        request = Request("INVITE", "sip:echo@o.example", lines)
        request.set_body(make_offer(*PHONE, 1).encode(), "application/sdp")
        self.node.take(request.encode())
        answer = self.node.heard[-1]
        assert isinstance(answer, Response)
        if answer.status == 200:
            ack = [*lines[1:3], ("To", answer.get("to") or ""), lines[4], ("CSeq", "1 ACK")]
            via = ("Via", f"SIP/2.0/TCP 192.0.2.1;branch=z9hG4bKa{number}")
            self.node.take(Request("ACK", "sip:echo@o.example", [via, *ack]).encode())
        return answer

    def rtp(self, answer: Response) -> tuple[Any, list[tuple[bytes, tuple[str, int]]]]:
        """The port that a 200 names, and what leaves it."""
        port = parse_sdp(answer.body).media[0].port
        protocol = self.clock.taken[port]
        return protocol, protocol.transport.written

    def query(self, uri: str, origin: Origin = Origin.PHONE) -> Any:
        waiting = self.echo.locate(Query(parse_uri(uri), origin, 5000.0))
        try:
            waiting.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("the step waits for nothing")

    def test_it_is_found(self) -> None:
        """It is stored as an entry of its own node with the instance that all echo nodes share, anew at half its time,
        sooner after a failure, and removed before the node leaves."""
        self.location.away = True
        self.clock.advance(0)
        self.location.away = False
        self.clock.advance(5)
        self.clock.advance(LIFETIME / 2)
        self.assertEqual(len(self.location.writes), 2)
        ((binding,), removed) = self.location.writes[0]
        self.assertEqual((binding.aor, binding.node_id, removed), ("sip:echo@o.example", NODE, []))
        self.assertTrue(binding.instance_id.startswith("urn:uuid:") and binding.reg_id)
        self.assertEqual(binding.expires_at, 5000.0 + LIFETIME)
        with self.assertRaises(StopIteration):
            self.echo.withdraw().send(None)
        self.assertEqual([each.key for each in self.location.writes[-1][1]], [binding.key])

    def test_the_step(self) -> None:
        """Calls to it are answered here, from phones and nodes alike; other users, other domains, and what is meant for
        another node's echo are somebody else's."""
        for origin in Origin:
            (target,) = self.query("sip:echo@o.example", origin)
            self.assertIs(target.flow, self.node.flow)
        own = encode_gr(NODE, b"k" * 16)
        self.assertIsNotNone(self.query(f"sip:echo@o.example;gr={own}", Origin.NODE))
        other = encode_gr(NODE[::-1], b"k" * 16)
        for uri in (f"sip:echo@o.example;gr={other}", "sip:bob@o.example", "sip:echo@elsewhere.example", "tel:+4912"):
            self.assertIsNone(self.query(uri))

    def test_what_comes_goes_back(self) -> None:
        """Each packet goes back to where it came from, the same but for its SSRC."""
        port, written = self.rtp(self.invite())
        packet = RtpPacket(0, 7, 160, 99, b"hello")
        port.datagramReceived(packet.encode(), PHONE)
        ((data, address),) = written
        back = decode_packet(data)
        self.assertEqual((back._replace(ssrc=99), address), (packet, PHONE))
        self.assertNotEqual(back.ssrc, 99)

    def test_only_to_the_caller(self) -> None:
        """The first source is the caller, and stays it, unless the host of its SDP speaks up; nobody else, nothing that
        is no RTP, and no flood is sent back."""
        port, written = self.rtp(self.invite())
        data = RtpPacket(0, 7, 160, 99, b"hello").encode()
        nat, stranger = ("198.51.100.1", 9000), ("203.0.113.5", 9)
        for source in (nat, stranger, nat, PHONE, nat, (PHONE[0], 4010)):
            port.datagramReceived(data, source)
        self.assertEqual([address for _, address in written], [nat, nat, PHONE])
        for junk in (b"", b"\x80" * 11, b"\0" * 40, b"\x80" * 1501):
            port.datagramReceived(junk, PHONE)
        self.assertEqual(len(written), 3)
        for _ in range(1000):
            port.datagramReceived(data, PHONE)
        self.assertLessEqual(len(written), 200)
        self.clock.advance(1)
        port.datagramReceived(data, PHONE)
        self.assertEqual(written[-1][1], PHONE)

    def test_limits(self) -> None:
        """More calls than allowed are busy; a call that lasts too long is hung up on, and its port is free again."""
        self.assertEqual([self.invite(number).status for number in (1, 2, 3)], [200, 200, 486])
        self.assertEqual(sorted(self.clock.taken), [30002, 30004])
        self.clock.advance(61)
        byes = [m for m in self.node.heard if isinstance(m, Request)]
        self.assertEqual([m.method for m in byes], ["BYE", "BYE"])
        for bye in byes:
            reply = Response(200, "OK", [(n, bye.get(n) or "") for n in ("Via", "From", "To", "Call-ID", "CSeq")])
            self.node.take(reply.encode())
        self.assertEqual((self.clock.taken, self.echo.statistics()["open"]), ({}, 0))

    def test_no_port(self) -> None:
        """Without a free port the call is refused with 503."""
        self.clock.taken.update({30002: None, 30004: None})
        self.assertEqual(self.invite().status, 503)
        del self.clock.taken[30004]
        self.assertEqual(parse_sdp(self.invite(2).body).media[0].port, 30004)

    def test_what_the_node_says_is_read(self) -> None:
        """Octets that are no message are counted and change nothing."""
        self.node.take(b"garbage")
        self.assertEqual(self.echo.statistics()["malformed"], 1)
        self.assertEqual(self.invite().status, 200)

"""The messages of RFC 4475 and RFC 5118 on the wire of a node: what a proxy and registrar answer, forward or drop.

What the parser makes of each stands in tests/proto/sip/test_torture.py; this is the second half of that table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import NodeIdentity, Query, Target
from p2psipd.proto.sip.message import Request, Response, parse_message
from p2psipd.proto.sip.registrar import BindingTable
from p2psipd.services.sip import SipService, SipSettings

from .sip_world import Address, MemoryFlow, MemoryTransports, Phone, World

VECTORS = Path(__file__).parents[1] / "vectors" / "sip"
DOMAINS = (
    "example.com", "example.net", "example.org", "chair-dnrc.example.com", "company.com", "east.example.com",
    "ift.client.example.net", "ss1.example.net", "registrar.example.com", "host.example.net", "2001:db8::10",
    "2001:db8::10:5070", "2001:db8::192.0.2.1",
)  # fmt: skip
NODE, STRANGER, CALLEE = ("192.0.2.1", 5060), ("192.0.2.77", 5060), ("192.0.2.99", 5060)
OVERLAY = "overlay.example"
SILENCE = 0

# What a stranger at a phone's address gets, to whom nobody has given a password: the parser's refusals, those that
# come before "who are you?", and the challenge.
ANSWERED = {
    "badinv01": 400, "clerr": 400, "ncl": 400, "scalar02": 400, "quotbal": 400, "ltgtruri": 400, "lwsruri": 400,
    "lwsstart": 400, "trws": 400, "escruri": 400, "regbadct": 400, "badaspec": 400, "baddn": 400, "badvers": 505,
    "mismatch01": 400, "mismatch02": 501, "insuf": 400, "multi01": 400, "mcl01": 400, "ipv6-bad": 400,
    "unkscm": 416, "novelsc": 416, "unksm2": 400, "bext01": 420, "zeromf": 483,
    "scalarlg": SILENCE, "bigcode": SILENCE, "unreason": SILENCE, "noreason": SILENCE, "bcast": SILENCE,
    "regaut01": 401, "cparam01": 401, "cparam02": 401, "regescrt": 401, "escnull": 401, "dblreq": 401,
    "ipv6-good": 401, "port-ambiguous": 401, "port-unambiguous": 401,
    "wsinv": 407, "intmeth": 407, "esc01": 407, "esc02": 407, "lwsdisp": 407, "longreq": 407, "semiuri": 407,
    "transports": 407, "mpart01": 407, "baddate": 407, "badbranch": 407, "invut": 407, "sdp01": 407, "inv2543": 407,
    "ipv6-in-sdp": 407, "mult-ip-in-header": 407, "mult-ip-in-sdp": 407, "ipv4-mapped-ipv6": 407,
    "via-received-param-no-delim": 200, "via-received-param-with-delim": 407,
    "ipv6-bug-abnf-3-colons": 407, "ipv6-correct-abnf-2-colons": 407,
}  # fmt: skip
FORWARDED = [name for name, status in ANSWERED.items() if status == 407 and not name.startswith("via-received-param")]


def data_of(name: str) -> bytes:
    return next(VECTORS.glob(f"rfc*/{name}.dat")).read_bytes()


class Wire(World):
    """A world whose network keeps what leaves the node."""

    def __init__(self) -> None:
        super().__init__(**{"watson": "elementary", "user": "secret", "null-%00-null": "nothing"})
        self.sent: list[tuple[Address, bytes]] = []

    def send(self, transport: str, source: Address, destination: Address, data: bytes) -> None:
        if source == NODE:
            self.sent.append((destination, data))
        super().send(transport, source, destination, data)

    def answers(self) -> list[Response]:
        """What was answered, 100 Trying left out."""
        messages = [parse_message(data) for _, data in self.sent]
        return [each for each in messages if isinstance(each, Response) and each.status != 100]


class Link:
    """A connector that has one connection, from a registrar of the overlay whose word counts."""

    address = ("192.0.2.1", 5062)

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.flow = MemoryFlow(
            "TLS", ("192.0.2.2", 40000), ("192.0.2.1", 5062), 1, lambda _, data: self.sent.append(data)
        )
        self.flow.peer = NodeIdentity(bytes(16), f"{bytes(16).hex()}@registrar.{OVERLAY}", True)

    def start(self, receive: Any, lost: Any) -> None:
        self.receive = receive

    def stop(self) -> None:
        """Nothing is open."""

    def pooled(self, node_id: bytes) -> Flow | None:
        return None


class Edge:
    """A node that serves the domains of all these messages, and knows every callee at one address."""

    def __init__(self) -> None:
        self.world = Wire()
        self.transports = MemoryTransports(self.world)
        self.link = Link()
        self.address = NODE

        async def locate(query: Query) -> Sequence[Target]:
            return [Target(str(query.uri), address=("UDP", *CALLEE))]

        self.service = SipService(
            SipSettings(domains=DOMAINS, overlay=OVERLAY, node_id=b"\1" * 16, udp=(NODE,)),
            location=self.world.location,
            credentials=self.world.credentials,
            locate=locate,
            connector=self.link,  # type: ignore[arg-type]
            table=BindingTable(),
            reactor=self.world.clock,
            random=random.Random(1),
            wall=self.world.wall,
            transports=self.transports,
        )
        self.service.startService()

    def from_stranger(self, data: bytes) -> None:
        """A datagram from somebody unknown."""
        self.transports.datagram_in(STRANGER, NODE, data)
        self.world.settle()

    def from_node(self, data: bytes) -> None:
        """A message over the connection of the other registrar."""
        self.link.receive(self.link.flow, parse_message(data))
        self.world.settle()


@pytest.fixture
def edge() -> Edge:
    """A node with nothing on its mind."""
    return Edge()


def test_every_message_is_in_the_table() -> None:
    """Each message of both RFCs has one outcome on the wire."""
    assert {path.stem for path in VECTORS.glob("rfc*/*.dat")} == set(ANSWERED)


@pytest.mark.parametrize("name", ANSWERED)
def test_answer_to_a_stranger(edge: Edge, name: str) -> None:
    """One answer with the RFC's code, to where the datagram came from, or silence; and the node is well."""
    edge.from_stranger(data_of(name))
    assert [each.status for each in edge.world.answers()] == ([ANSWERED[name]] if ANSWERED[name] else [])
    assert {destination[0] for destination, _ in edge.world.sent} <= {STRANGER[0]}
    assert edge.service.counters["fault"] == 0
    edge.from_stranger(data_of("unkscm").replace(b"branch=", b"branch=z9hG4bKagain"))
    assert edge.world.answers()[-1].status == 416


@pytest.mark.parametrize("name", FORWARDED)
def test_forwarded_by_the_proxy(edge: Edge, name: str) -> None:
    """What a proxy need not understand goes on untouched: all lines but Via, Max-Forwards and ours, and the body."""
    came = parse_message(data_of(name))
    # Routes through proxies elsewhere: this node is no way there, for nobody.
    came.remove("route")
    edge.from_node(came.encode())
    requests = [(destination, data) for destination, data in edge.world.sent if not data.startswith(b"SIP/2.0")]
    assert [destination for destination, _ in requests] == [CALLEE]
    came, went = parse_message(data_of(name)), parse_message(requests[0][1])
    assert isinstance(came, Request) and isinstance(went, Request)
    went.check()
    assert went.method == came.method and went.body == came.body
    ours = ("via", "max-forwards", "max-breadth", "max-breadth", "record-route", "route", "content-length")
    kept = [line for line_name, line in came.headers if line_name not in ours]
    assert [line for line_name, line in went.headers if line_name not in ours] == kept
    assert [via.branch for via in went.vias[1:]] == [via.branch for via in came.vias]


def test_bext01_unsupported(edge: Edge) -> None:
    """RFC 4475 3.3.5: a proxy's 420 names the tags of Proxy-Require, and no others."""
    edge.from_stranger(data_of("bext01"))
    assert edge.world.answers()[0].get("unsupported") == "noproxiessupportthis, nordoanyproxiessupportthis"


def test_bcast_is_not_sent_on(edge: Edge) -> None:
    """RFC 4475 3.3.10: a response goes back along its transaction, never to what its second Via says."""
    edge.from_node(data_of("invut"))
    invite = parse_message(next(data for _, data in edge.world.sent if data.startswith(b"INVITE")))
    edge.world.sent.clear()
    forged = parse_message(data_of("bcast"))
    forged.remove("via")
    forged.push_via("SIP/2.0/UDP 255.255.255.255;branch=z9hG4bK1saber23")
    forged.push_via(str(invite.top_via))
    forged.set("CSeq", str(invite.cseq))
    edge.transports.datagram_in(CALLEE, NODE, forged.encode())
    edge.world.settle()
    assert edge.world.sent == [] and any(data.startswith(b"SIP/2.0 200") for data in edge.link.sent)


def register(edge: Edge, name: str, user: str) -> Response:
    """The REGISTER of the vector, sent again with the credentials of `user`, and the answer."""
    phone = Phone(edge.world, user, STRANGER, edge)  # type: ignore[arg-type]
    request = parse_message(data_of(name))
    assert isinstance(request, Request)
    response = phone.ask(request)
    assert isinstance(response, Response) and response.status == 200, response.encode()
    return response


def fetch(edge: Edge, name: str, user: str) -> Response:
    """The bindings, asked for with a REGISTER without Contact (RFC 3261 section 10.2.3)."""
    phone = edge.world.phones[STRANGER]
    request = parse_message(data_of(name))
    assert isinstance(request, Request)
    request.remove("contact")
    request.set("Call-ID", "fetch")
    request.set("Via", f"SIP/2.0/UDP {STRANGER[0]};branch=z9hG4bKfetch")
    response = phone.ask(request)
    assert isinstance(response, Response) and response.status == 200, response.encode()
    return response


def test_cparam01_is_registered(edge: Edge) -> None:
    """RFC 4475 3.3.12: a Contact parameter that nobody knows never becomes one of the URI."""
    for response in (register(edge, "cparam01", "watson"), fetch(edge, "cparam01", "watson")):
        (contact,) = response.contacts
        assert "unknownparam" not in contact.uri_text and "unknownparam" in contact.params


def test_cparam02_is_registered(edge: Edge) -> None:
    """RFC 4475 3.3.13: a URI parameter that nobody knows is kept in the URI."""
    for response in (register(edge, "cparam02", "watson"), fetch(edge, "cparam02", "watson")):
        (contact,) = response.contacts
        assert contact.uri_text.endswith(";unknownparam") and "unknownparam" not in contact.params


def test_regescrt_is_registered(edge: Edge) -> None:
    """RFC 4475 3.3.14: the escaped Route header in a Contact URI is kept, and fetched again."""
    for response in (register(edge, "regescrt", "user"), fetch(edge, "regescrt", "user")):
        (contact,) = response.contacts
        assert "?Route=%3Csip:sip.example.com%3E" in contact.uri_text


def test_regaut01_is_challenged_anew(edge: Edge) -> None:
    """RFC 4475 3.3.7: credentials of a scheme that nobody knows count as none: a new challenge, of a scheme we know."""
    edge.from_stranger(data_of("regaut01"))
    (answer,) = edge.world.answers()
    assert all(value.startswith("Digest ") for value in answer.get_all("www-authenticate"))
    assert edge.world.credentials.asked == []

"""A world with a border: overlay.example has an edge, and other domains are flows in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from p2psipd.config.peering import Peering, PeeringFile
from p2psipd.config.tables import read_table
from p2psipd.proto.identity.policy import TrustAnchors
from p2psipd.proto.peering.crossing import Crossings
from p2psipd.proto.peering.identity import Signing, sign_request
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeerIdentity, PeeringPolicy, PeerSettings
from p2psipd.proto.peering.replay import ReplayCache
from p2psipd.proto.peering.targets import DomainPolicy, NumberSources
from p2psipd.proto.peering.verification import CertificateUnavailable, IdentityVerifier
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import DomainIdentity, Query, Target, Unreachable
from p2psipd.proto.sip.message import Request, Response, parse_message
from p2psipd.proto.sip.next_hops import Hop
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.proto.sip.uri import Uri
from p2psipd.services.peering.connections import EDGE
from p2psipd.services.peering.edge import PeeringEdge
from p2psipd.services.peering.outbound import Outbound
from tests.proto.dns_zone import Zone
from tests.proto.identity.domain_certificates import WALL, dns, ec_key
from tests.proto.peering.peering_world import CA, own_certificate

from .sip_world import DOMAIN, MemoryFlow, Node, Phone, World

LISTENER = ("10.0.0.1", 5065)
#: b.test has two servers, c.test one.
ZONE = {
    "b.test NAPTR": ['10 10 "s" "SIPS+D2T" "" _sips._tcp.b.test'],
    "_sips._tcp.b.test SRV": ["10 1 5061 n1.b.test", "20 1 5061 n2.b.test"],
    "n1.b.test A": ["10.2.0.1"],
    "n2.b.test A": ["10.2.0.2"],
    "c.test NAPTR": ['10 10 "s" "SIPS+D2T" "" _sips._tcp.c.test'],
    "_sips._tcp.c.test SRV": ["10 1 5061 n1.c.test"],
    "n1.c.test A": ["10.3.0.1"],
}


class Elsewhere:
    """A server of another domain: what came to it, over which flow."""

    def __init__(self, border: Border, domain: str, host: str) -> None:
        self.border, self.domain, self.host = border, domain, host
        self.inbox: list[Request | Response] = []
        self.flow: MemoryFlow | None = None
        self.refuses = False

    def opened(self, inbound: bool = False) -> MemoryFlow:
        """A connection between it and our edge."""

        def deliver(flow: MemoryFlow, data: bytes) -> None:
            self.border.world.queue.append(lambda: self.inbox.append(parse_message(data)))

        number = 1000 + len(self.border.connections.peers)
        flow = MemoryFlow("TLS", (self.host, 5061), LISTENER, number, deliver)
        flow.peer = DomainIdentity((self.domain,), EDGE)  # type: ignore[assignment]
        chain = [CA.issue(dns(self.domain), ec_key(3))]
        policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([CA.der])))
        self.border.connections.peers[flow] = (
            policy.client(chain, WALL) if inbound else policy.server(self.domain, chain, WALL)
        )
        self.flow = flow
        return flow

    def send(self, message: Request | Response) -> None:
        """Over its connection, which is opened if there is none."""
        flow = self.flow or self.opened(inbound=True)
        data = message.encode()
        self.border.world.queue.append(lambda: self.border.connections.receive(flow, parse_message(data)))
        self.border.world.settle()

    def take(self, *, provisional: bool = False) -> Any:
        """The next message; 100 is passed over unless it is asked for."""
        self.border.world.settle()
        while self.inbox:
            message = self.inbox.pop(0)
            if provisional or not (isinstance(message, Response) and message.status == 100):
                return message
        raise AssertionError(f"{self.host} got nothing")

    def quiet(self) -> bool:
        """Nothing came."""
        self.border.world.settle()
        return not self.inbox


class MemoryConnections:
    """In place of PeerConnections."""

    def __init__(self, border: Border) -> None:
        self.border = border
        self.peers: dict[Flow, PeerIdentity] = {}
        self.dialled: list[tuple[Hop, str, str]] = []
        self.refused: set[Flow] = set()

    def start(self, listen: Any, receive: Callable[[Flow, Any], None], lost: Callable[[Flow], None]) -> list[Any]:
        self.receive, self.lost = receive, lost
        return [LISTENER]

    def stop(self) -> list[Any]:
        return []

    def peer(self, flow: Flow) -> PeerIdentity | None:
        return self.peers.get(flow)

    def alias(self, flow: Flow, request: Request) -> None:
        """None here."""

    def is_open(self, hop: Hop, own_domain: str) -> bool:
        server = self.border.servers.get(hop.host)
        return server is not None and server.domain == hop.domain and server.flow is not None and server.flow.alive

    def refused_by_peer(self, flow: Flow) -> bool:
        return flow in self.refused

    async def reach(self, hop: Hop, own_domain: str, certificate: str = "") -> Flow:
        self.dialled.append((hop, own_domain, certificate))
        server = self.border.servers.get(hop.host)
        if server is None or server.refuses or server.domain != hop.domain:
            raise Unreachable(f"{hop.host}: refused")
        return server.flow or server.opened()


class Border:
    """The world, our one node with its edge, alice, and the servers of b.test and c.test."""

    def __init__(self, zone: dict[str, list[str]] | None = None, **policy: Any) -> None:
        self.world = World()
        self.world.epoch = WALL
        self.zone = Zone({**ZONE, **(zone or {})})
        self.servers = {
            host: Elsewhere(self, domain, host)
            for host, domain in (("10.2.0.1", "b.test"), ("10.2.0.2", "b.test"), ("10.3.0.1", "c.test"))
        }
        self.first, self.second, self.other = self.servers.values()
        self.certificates = [own_certificate(kind, (DOMAIN,)) for kind in IdentityKind]
        self.theirs = {
            domain: OwnCertificates([own_certificate(kind, (domain,)) for kind in IdentityKind])
            for domain in ("b.test", "c.test")
        }
        self.connections = MemoryConnections(self)
        self.counters: Counter[str] = Counter()
        self.set_policy(**policy)
        self.outbound = Outbound(
            lambda: self.peering,
            frozenset({DOMAIN}),
            self.zone.ask,
            self.connections,
            random.Random(1),
            now=self.world.clock.seconds,
            wall=self.world.wall,
            find_home=self._find_home,
            owner=self._owner,
            counters=self.counters,
        )
        self.edge = PeeringEdge(
            lambda: self.peering,
            self.connections,  # type: ignore[arg-type]
            self.outbound,
            IdentityVerifier(self._fetch, ReplayCache()),
            Crossings(OwnSecret(b"of all edges" * 3)),
            frozenset({DOMAIN}),
            [LISTENER],
            self.counters,
        )
        self.node = Node(self.world, 1, "10.0.0.1", steps=(self.outbound,), edges=(self.edge,), owner=self._owner)
        self.alice = Phone(self.world, "alice", ("10.1.0.1", 5070), self.node)
        self.alice.register()

    def set_policy(
        self,
        settings: PeerSettings | None = None,
        targets: DomainPolicy | None = None,
        numbers: str = "any",
        **policy: Any,
    ) -> None:
        """What is in force from now on, as after a reload."""
        policy.setdefault("accept_domains", ["b.test"])
        settings = (settings or PeerSettings())._replace(anchors=TrustAnchors([CA.der]))
        certificate = {"domains": [DOMAIN], "certificate": "x", "key": "x"}
        identity = {"url": "https://{domain}/identity", "numbers": numbers}
        file = read_table(PeeringFile, {"identity": identity, "certificate": [certificate]})
        self.peering = Peering(
            file,
            PeeringPolicy(settings, **policy),
            OwnCertificates(self.certificates),
            (),
            targets or DomainPolicy(),
            None,
            NumberSources(),
            None,
        )

    async def _find_home(self, query: Query) -> Sequence[Target] | None:
        return None

    async def _owner(self, uri: Uri) -> str | None:
        """Of the numbers of this domain alice has one."""
        return self.alice.aor if "+12125551212" in str(uri) else None

    async def _fetch(self, url: str) -> Sequence[bytes]:
        for own in self.theirs.values():
            for one in own.certificates:
                if url.endswith(one.certificate.fingerprint[:8]):
                    return one.chain
        raise CertificateUnavailable("404")

    # ---- messages ----------------------------------------------------------------------------------------------

    def call(
        self, uri: str, method: str = "INVITE", headers: Sequence[tuple[str, str]] = (), from_: str = ""
    ) -> Request:
        """Alice's request, past the challenge."""
        from .sip_world import ack_for

        request = self.alice.request(method, uri, headers, from_=from_)
        self.alice.send(request)
        challenge = self.alice.take_response(407)
        if method == "INVITE":
            self.alice.send(ack_for(request, challenge))
        again = self.alice.answer_challenge(request, challenge)
        self.alice.send(again)
        self.world.settle()
        return again

    def foreign(self, method: str = "MESSAGE", domain: str = "b.test", **headers: str) -> Request:
        """A request of bob at another domain to alice, signed; ``Name=value`` replaces a header."""
        self.alice.calls += 1
        number = self.alice.calls
        values = {
            "Via": f"SIP/2.0/TLS n1.{domain};branch=z9hG4bK{number}",
            "Max-Forwards": "70",
            "From": f"<sip:bob@{domain}>;tag=1",
            "To": f"<sip:alice@{DOMAIN}>",
            "Call-ID": f"{number}@{domain}",
            "CSeq": f"1 {method}",
            "Contact": f"<sip:bob@n1.{domain}>",
        }
        values.update({name.replace("_", "-"): value for name, value in headers.items()})
        request = Request(method, f"sip:alice@{DOMAIN}", [pair for pair in values.items() if pair[1]], b"")
        return self.signed(request, domain)

    def signed(self, request: Request, domain: str = "b.test") -> Request:
        """With the Identity of another domain."""

        def url(own: OwnCertificate, domain: str, kind: IdentityKind) -> str:
            return f"https://{domain}/{own.certificate.fingerprint[:8]}"

        signing = Signing((IdentityKind.RFC8224,), full_form=True)
        sign_request(request, signing, self.theirs[domain], url, self.world.wall())
        return request

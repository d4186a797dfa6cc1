"""Two domains for tests of Identity: a.test signs, b.test verifies; certificates are fetched from a dictionary."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from cryptography import x509

from p2psipd.proto.identity.policy import TrustAnchors, read_certificate
from p2psipd.proto.peering.admission import Admission, admit
from p2psipd.proto.peering.identity import Signing, sign_request
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeerIdentity, PeeringPolicy, PeerSettings
from p2psipd.proto.peering.replay import ReplayCache
from p2psipd.proto.peering.verification import CertificateUnavailable, IdentityVerifier, Verification
from p2psipd.proto.sip.message import Request, parse_message
from p2psipd.proto.sip.uri import SipUri
from tests.proto.identity.domain_certificates import WALL, TestAuthority, dns, ec_key, rsa_key

T = TypeVar("T")

CA = TestAuthority()
OTHER_CA = TestAuthority("Other CA")
ANCHORS = TrustAnchors([CA.der])
KINDS = (IdentityKind.RFC4474, IdentityKind.RFC8224)
TLS_A = CA.issue(dns("a.test"), ec_key(3))

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"
FINGERPRINT = b"a=fingerprint:sha-256 AA:BB:CC\r\n"


def own_certificate(
    kind: IdentityKind, domains: Sequence[str] = ("a.test",), *, ca: TestAuthority = CA, **parts: Any
) -> OwnCertificate:
    """A signing certificate of the right key for ``kind``."""
    key = rsa_key(1) if kind is IdentityKind.RFC4474 else ec_key(4)
    der = ca.issue(dns(*domains), key, **parts)
    return OwnCertificate(f"{kind.value}-{domains[0]}", read_certificate(der), (der,), key, tuple(domains))


def url_of(own: OwnCertificate, domain: str, kind: IdentityKind) -> str:
    """Where the tests serve a certificate."""
    return f"https://{domain}/{own.certificate.fingerprint[:8]}"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")


def request(method: str = "INVITE", body: bytes = SDP, call_id: str = "abc@a.test", **headers: str) -> Request:
    """A request from alice at a.test to bob at b.test; ``Name=value`` replaces a header, "" drops it."""
    values = {
        "Via": "SIP/2.0/TLS edge.a.test;branch=z9hG4bK1",
        "From": "Alice <sip:alice@a.test>;tag=1",
        "To": "<sip:bob@b.test>",
        "Call-ID": call_id,
        "CSeq": f"7 {method}",
        "Contact": "<sip:alice@192.0.2.1>",
        "Max-Forwards": "70",
    }
    if body:
        values["Content-Type"] = "application/sdp"
    values.update({name.replace("_", "-"): value for name, value in headers.items()})
    return Request(method, "sip:bob@b.test", [(name, value) for name, value in values.items() if value], body)


class World:
    """A signer of a.test and a receiver b.test at time ``wall``."""

    def __init__(self, *kinds: IdentityKind, settings: PeerSettings | None = None, **policy: Any) -> None:
        self.wall = WALL
        self.own = OwnCertificates([own_certificate(kind) for kind in KINDS])
        self.signing = Signing(kinds or (IdentityKind.RFC8224,))
        self.settings = (settings or PeerSettings())._replace(anchors=ANCHORS)
        policy.setdefault("accept_domains", ["a.test"])
        self.policy = PeeringPolicy(self.settings, **policy)
        self.served: dict[str, Sequence[bytes]] = {}
        self.fetched: list[str] = []
        self.replays = ReplayCache()
        self.verifier = IdentityVerifier(self.fetch, self.replays)
        self.peer = self.policy.client([TLS_A], WALL)

    async def fetch(self, url: str) -> Sequence[bytes]:
        """The certificate at ``url``, as the net layer would give it."""
        self.fetched.append(url)
        for own in self.own.certificates:
            for kind in KINDS:
                if url == url_of(own, "a.test", kind):
                    return own.chain
        if url not in self.served:
            raise CertificateUnavailable("404")
        return self.served[url]

    def sign(self, message: Request, **changes: Any) -> Request:
        """``message`` signed, sent and parsed again."""
        sign_request(message, self.signing._replace(**changes), self.own, url_of, self.wall)
        return resent(message)

    def verify(self, message: Request, hosts: frozenset[str] | None = None, **more: Any) -> Verification:
        """What the receiver finds."""
        return run(self.verifier.verify(message, self.policy, self.wall, hosts, **more))

    def admit(self, message: Request, peer: PeerIdentity | None = None) -> Admission:
        """What the receiver decides."""
        return run(
            admit(
                message,
                peer or self.peer,
                self.policy,
                self.verifier,
                self.wall,
                serves=lambda domain: domain == "b.test",
                owns=lambda uri: isinstance(uri, SipUri) and uri.host == "edge.b.test" and uri.user == "token",
            )
        )


def resent(message: Request, *edits: tuple[bytes, bytes]) -> Request:
    """The request as it arrives, with octets replaced on the way."""
    octets = message.encode()
    for old, new in edits:
        assert old in octets, old
        octets = octets.replace(old, new)
    parsed = parse_message(octets)
    assert isinstance(parsed, Request)
    return parsed


def load(der: bytes) -> x509.Certificate:
    """A certificate."""
    return x509.load_der_x509_certificate(der)

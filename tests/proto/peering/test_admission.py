"""Who may peer, and which requests of a peer come in."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.identity.policy import CertificateRefused, SanMatch, Step, TrustAnchors, Usage, fingerprint
from p2psipd.proto.peering.peers import Federation, IdentityKind, PeeringPolicy, PeerSettings
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.message import Request, parse_message
from tests.proto.identity.domain_certificates import (
    CLIENT_AUTH,
    DAY,
    SERVER_AUTH,
    WALL,
    TestAuthority,
    dns,
    self_signed,
    uris,
)
from tests.proto.peering.peering_world import ANCHORS, CA, KINDS, OTHER_CA, TLS_A, World, request, resent

BOTH = TrustAnchors([CA.der, OTHER_CA.der])
DEFAULT = PeerSettings(anchors=BOTH)


def client(policy: PeeringPolicy, der: bytes) -> Any:
    return policy.client([der], WALL)


def refusal(policy: PeeringPolicy, *chain: bytes, server: str = "") -> CertificateRefused:
    with pytest.raises(CertificateRefused) as refused:
        policy.server(server, chain, WALL) if server else policy.client(chain, WALL)
    return refused.value


# ---- certificates of connections ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("der", "step"),
    [
        (CA.issue(dns("b.test"), not_after=WALL - 1), Step.DATE),
        (CA.issue(dns("b.test"), not_before=WALL + 1), Step.DATE),
        (TestAuthority("Unknown").issue(dns("b.test")), Step.AUTHORITY),
        (self_signed(dns("b.test")), Step.AUTHORITY),
        (CA.issue(dns("c.test")), Step.DOMAIN),
        (CA.issue(dns("*.b.test", "*.test")), Step.DOMAIN),
        (CA.issue(dns("sip.b.test")), Step.DOMAIN),
        (CA.issue(dns("c.test"), subject="b.test"), Step.DOMAIN),
        (CA.issue(uris("sip:bob@b.test")), Step.DOMAIN),
        (CA.issue(uris("sip:c.test") + dns("b.test")), Step.DOMAIN),
        (CA.issue(dns("b.test"), usages=[CLIENT_AUTH]), Step.USAGE),
    ],
)
def test_peering_044_bad_server_certificates(der: bytes, step: Step) -> None:
    """Expired, not yet valid, of nobody known, for another name, a wildcard, a suffix, a user: refused by step."""
    assert refusal(PeeringPolicy(DEFAULT), der, server="b.test").step is step


def test_peering_045_the_original_domain_counts() -> None:
    """What SRV named is no identity that we asked for; a sip URI, a DNS name or a lone common name of the domain is."""
    policy = PeeringPolicy(DEFAULT)
    assert refusal(policy, CA.issue(dns("node7.hosting.test")), server="b.test").step is Step.DOMAIN
    for der in (CA.issue(uris("sip:b.test")), CA.issue(dns("x.test", "B.test")), CA.issue(None, subject="b.test")):
        assert "b.test" in policy.server("b.test", [der], WALL).domains


def test_peering_043_other_names_of_a_server_allow_reuse() -> None:
    """The identities of a connection are all names of the certificate that count, and no others."""
    identity = PeeringPolicy(DEFAULT).server("b.test", [CA.issue(dns("b.test", "c.test"))], WALL)
    assert identity.domains == {"b.test", "c.test"}


def test_peering_067_client_certificates() -> None:
    """A client's certificate is judged alike, and a revoked one is refused."""
    revoked = CA.issue(dns("a.test"))
    policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([CA.der], crls=[CA.revocation_list(revoked)])))
    assert refusal(policy, revoked).step is Step.REVOKED
    assert refusal(policy).step is Step.FORM
    assert client(policy, TLS_A).domains == {"a.test"}


def test_peering_068_a_certificate_without_sip_identity() -> None:
    """A valid certificate that names only a mail address is refused by the step domain."""
    refused = refusal(PeeringPolicy(DEFAULT), CA.issue([x509.RFC822Name("alice@a.test")]))
    assert refused.step is Step.DOMAIN and "no SIP identity" in refused.detail


def test_settings_of_a_peer_judge_its_names() -> None:
    """Own pins, a looser rule for names, and a server's certificate as client hold for that peer alone."""
    alone = self_signed(dns("b.test", "c.test"))
    loose = CA.issue(uris("sip:x.test") + dns("d.test", "e.test"))
    web = CA.issue(dns("e.test", "f.test"), usages=[SERVER_AUTH])
    policy = PeeringPolicy(
        DEFAULT,
        [
            PeerSettings("b.test", anchors=TrustAnchors(pins=[fingerprint(alone)])),
            PeerSettings("d.test", anchors=BOTH, san_match=SanMatch.ANY),
            PeerSettings("e.test", anchors=BOTH, client_usage=Usage.SERVER_AS_CLIENT),
        ],
    )
    assert client(policy, alone).domains == {"b.test"}
    assert client(policy, alone).authorities["b.test"].pinned
    assert client(policy, loose).domains == {"x.test", "d.test"}
    assert client(policy, web).domains == {"e.test"}
    assert refusal(policy, CA.issue(dns("b.test"))).step is Step.AUTHORITY


# ---- authorisation -----------------------------------------------------------------------------------------


def test_peering_069_by_domain() -> None:
    """b.test is allowed, c.test of the same authority gets exactly 403 Unsupported Peer."""
    policy = PeeringPolicy(DEFAULT, accept_domains=["B.test"])
    assert policy.authorise(client(policy, CA.issue(dns("b.test")))).step == "domain"
    decision = policy.authorise(client(policy, CA.issue(dns("c.test"))))
    assert (decision.allowed, decision.step, decision.domain) == (False, "none", "c.test")
    assert "CN=Test CA" in str(decision)


def test_peering_070_by_authority() -> None:
    """Any domain under the listed authority, none under another that TLS believes."""
    policy = PeeringPolicy(DEFAULT, accept_authorities=[fingerprint(CA.der)])
    assert policy.authorise(client(policy, CA.issue(dns("any.test")))).step == "authority"
    assert not policy.authorise(client(policy, OTHER_CA.issue(dns("any.test")))).allowed


def test_peering_071_both_models_and_the_deny_list() -> None:
    """Either rule is enough; the deny list beats both, on any name of the certificate."""
    policy = PeeringPolicy(
        DEFAULT, accept_domains=["b.test"], accept_authorities=[fingerprint(CA.der)], deny=["evil.test"]
    )
    assert policy.authorise(client(policy, OTHER_CA.issue(dns("b.test")))).allowed
    assert policy.authorise(client(policy, CA.issue(dns("x.test")))).allowed
    decision = policy.authorise(client(policy, CA.issue(dns("b.test", "evil.test"))))
    assert (decision.allowed, decision.step) == (False, "deny")


def test_peering_072_a_new_policy_holds_for_the_next_request() -> None:
    """The same connection, the same request: another policy, another answer."""
    world = World(*KINDS)
    assert world.admit(world.sign(request())).status == 0
    world.policy = PeeringPolicy(world.settings)
    again = world.admit(world.sign(request(CSeq="8 INVITE")))
    assert (again.status, again.reason) == (403, "Unsupported Peer")


def test_peering_072_open_connections_outlive_nothing() -> None:
    """A certificate that expires or is revoked while its connection is open is refused with the next request."""
    world = World(*KINDS)
    assert world.admit(world.sign(request())).status == 0
    revoked = TrustAnchors([CA.der], crls=[CA.revocation_list(TLS_A)])
    world.policy = PeeringPolicy(world.settings._replace(anchors=revoked), accept_domains=["a.test"])
    answer = world.admit(world.sign(request(CSeq="8 INVITE")))
    assert (answer.status, answer.reason, answer.step) == (403, "Unsupported Peer", "revoked")
    world = World(settings=PeerSettings(required=False))
    world.wall = WALL + 31 * DAY
    assert world.admit(request()).step == "date"


def test_many_names_cost_nothing_more_with_each_request() -> None:
    """Who a certificate of a thousand names is, is found out once."""
    policy = PeeringPolicy(DEFAULT)
    peer = client(policy, CA.issue(dns(*(f"n{number}.test" for number in range(1000)))))
    began = time.perf_counter()
    for _ in range(1000):
        assert policy.again(peer, WALL) is peer
    assert time.perf_counter() - began < 0.2


def test_a_server_that_sends_requests_is_judged_as_a_server() -> None:
    """Over a connection that we opened the other side's certificate stays a server's."""
    world = World(settings=PeerSettings(required=False))
    web = CA.issue(dns("a.test"), usages=[SERVER_AUTH])
    dialled = world.policy.server("a.test", [web], WALL)
    assert world.admit(request(), dialled).status == 0


def test_peering_030_the_deny_list_holds_for_targets() -> None:
    """A domain on the deny list is no target either."""
    policy = PeeringPolicy(DEFAULT, deny=["evil.test"])
    assert policy.is_denied("Evil.test.") and not policy.is_denied("good.test")


# ---- requests ----------------------------------------------------------------------------------------------


def unsigned(**headers: str) -> World:
    return World(settings=PeerSettings(required=False), **headers)


def test_peering_074_only_requests_for_us() -> None:
    """A foreign or numeric Request-URI is 404: we relay for nobody; sips and tel are for us as sip is."""
    world = unsigned()
    for uri, status in (
        ("sip:x@c.test", 404),
        ("sip:b@192.0.2.1:5061", 404),
        ("sips:b@B.test", 0),
        ("tel:+12125551212", 0),
    ):
        message = request()
        message.set_uri(uri)
        assert world.admit(message).status == status


def test_peering_075_a_route_that_is_left_is_refused() -> None:
    """Our own top Route is consumed; another one behind or before it is 403."""
    world = unsigned()
    ours = "<sip:token@edge.b.test;lr>"
    assert world.admit(request(Route=ours)).status == 0
    for route in ("<sip:c.test;lr>", f"{ours}, <sip:c.test;lr>"):
        answer = world.admit(request(Route=route))
        assert (answer.status, answer.reason, answer.step) == (403, "Unexpected Route", "route")


def test_peering_076_ack_and_cancel_need_no_identity() -> None:
    """Identity is asked of neither, though it is required."""
    world = World(*KINDS)
    for method in ("ACK", "CANCEL"):
        assert world.admit(request(method, body=b"")).status == 0
    assert world.admit(request()).status == 428


def test_peering_083_the_from_is_the_peers() -> None:
    """A From domain that the TLS certificate does not name is 403 Unsupported Peer, though its Identity is valid."""
    world = World(*KINDS)
    stranger = world.policy.client([CA.issue(dns("c.test"))], WALL)
    world.policy = PeeringPolicy(world.settings, accept_domains=["a.test", "c.test"])
    answer = world.admit(world.sign(request()), stranger)
    assert (answer.status, answer.reason, answer.step) == (403, "Unsupported Peer", "from")
    assert world.admit(world.sign(request()), world.peer).status == 0


def test_peering_083_numbers_without_a_domain_are_refused() -> None:
    """A From that is a tel URI belongs to no domain of the certificate."""
    assert unsigned().admit(request(From="<tel:+12125551212>;tag=1")).step == "from"


def test_peering_085_any_name_of_the_certificate_will_do() -> None:
    """With several names in the client certificate the second is as good a From as the first."""
    world = unsigned(accept_domains=["z.test"])
    peer = world.policy.client([CA.issue(dns("z.test", "a.test"))], WALL)
    assert world.admit(request(), peer).status == 0


def in_dialog(**headers: str) -> Any:
    return request("BYE", b"", To="<sip:bob@b.test>;tag=2", **headers)


def test_peering_086_in_dialog_requests() -> None:
    """The top Route must be ours; Identity may be absent, but a bad one is 438."""
    world = World(*KINDS)
    ours = "<sip:token@edge.b.test;lr>"
    assert world.admit(in_dialog(Route=ours)).status == 0
    for route in ("", "<sip:other@edge.b.test;lr>", f"<sip:c.test;lr>, {ours}"):
        answer = world.admit(in_dialog(Route=route))
        assert (answer.status, answer.reason) == (403, "Unexpected Route")
    signed = world.sign(in_dialog(Route=ours))
    assert world.admit(signed).verification.verstat == "TN-Validation-Passed"
    bad = resent(world.sign(in_dialog(Route=ours, CSeq="9 BYE")), (b"To: <sip:bob@b.test>", b"To: <sip:eve@b.test>"))
    assert world.admit(bad).status == 438


def test_peering_088_exactly_unsupported_peer() -> None:
    """Whoever is not authorised is told so in these words, before anything else is looked at."""
    world = World(*KINDS, accept_domains=["other.test"])
    message = request(Route="<sip:c.test;lr>", Identity="nonsense")
    answer = world.admit(message)
    assert (answer.status, answer.reason) == (403, "Unsupported Peer")
    assert "step none" in str(answer) and "a.test" in str(answer)
    assert world.fetched == []


def test_peering_091_routing_is_judged_before_identity() -> None:
    """A request that is not for us costs no fetch."""
    world = World(*KINDS)
    message = request()
    message.set_uri("sip:x@c.test")
    assert world.admit(world.sign(message)).status == 404
    assert world.fetched == []


def test_peering_094_a_federated_domain_comes_through_another() -> None:
    """A1's calls come over A2's connection only where an entry allows that hop; the Identity stays A1's."""
    world = World(*KINDS, accept_domains=["a2.test"])
    middle = world.policy.client([CA.issue(dns("a2.test"))], WALL)
    refused = world.admit(world.sign(request()), middle)
    assert refused.step == "from" and "nor a federation names the domain of From" in str(refused)
    world.policy = PeeringPolicy(
        world.settings, accept_domains=["a2.test"], federations=[Federation("A.test", ("a2.test",))]
    )
    answer = world.admit(world.sign(request()), middle)
    assert (answer.status, answer.verification.kind) == (0, IdentityKind.RFC4474)
    assert world.policy.goes_through("a.test") == ("a2.test",) and world.policy.goes_through("x.test") == ()
    assert not PeeringPolicy(
        world.settings, deny=["a.test"], federations=[Federation("a.test", ("a2.test",))]
    ).may_send_from(middle, "a.test")


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_requests_are_answered(data: st.DataObject) -> None:
    """A signed request with any octet changed, doubled or dropped is a fault of SIP, or gets an answer."""
    world = World(*KINDS)
    octets = world.sign(request()).encode()
    at = data.draw(st.integers(0, len(octets) - 1))
    damaged = octets[:at] + data.draw(st.binary(max_size=2)) + octets[at + 1 :]
    try:
        parsed = parse_message(damaged)
        parsed.check()
        assert isinstance(parsed, Request)
        status = world.admit(parsed).status
    except SipError:
        return
    assert status in (0, 400, 403, 404, 428, 436, 437, 438)


def test_an_admission_says_what_was_decided() -> None:
    """The record names rule, domain, authority and what the Identity is worth."""
    world = World(*KINDS)
    text = str(world.admit(world.sign(request())))
    assert "a.test" in text and "CN=Test CA" in text and "TN-Validation-Passed (rfc4474)" in text
    assert ANCHORS.roots == (CA.der,)


def test_peering_095_who_relays_for_whom() -> None:
    """A federation lets requests of its domain, and to it, go on through us and come over its others; no one else's."""
    world = World()
    federations = [Federation("Inner.test", ("a.test", "a2.test"))]
    policy = PeeringPolicy(world.settings, accept_domains=["a.test"], federations=federations)
    assert policy.relays("inner.test", "b.test", {"a2.test"}) == "a2.test"
    assert policy.relays("b.test", "inner.test", {"a.test", "a2.test"}) == "a.test"
    assert policy.relays("b.test", "c.test", {"a.test"}) == policy.relays("inner.test", "b.test", {"b.test"}) == ""
    peer = policy.client([TLS_A], world.wall)
    assert policy.may_send_from(peer, "x.test", "inner.test") and policy.may_send_from(peer, "inner.test", "b.test")
    assert not policy.may_send_from(peer, "x.test", "b.test") and not policy.may_send_from(peer, "", "inner.test")
    assert policy.servers("inner.test") is policy.servers("b.test") is None

"""Our side of Identity: which requests are signed, in whose name, and what a refusal is worth."""

from __future__ import annotations

import pytest
from cryptography import x509

from p2psipd.proto.identity.passport import parse_identity_header, read_full_token
from p2psipd.proto.identity.sip_date import write_sip_date
from p2psipd.proto.peering.identity import Signing, attestation, check_from, retry_after, sign_request
from p2psipd.proto.peering.own_certificates import OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeerSettings
from p2psipd.proto.sip.proxy import Refused
from tests.proto.identity.domain_certificates import WALL
from tests.proto.peering.peering_world import KINDS, World, own_certificate, request, url_of

METHODS = ("INVITE", "OPTIONS", "MESSAGE", "SUBSCRIBE", "REFER", "PUBLISH", "NOTIFY")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:], KINDS])
def test_peering_051_new_requests_are_signed(method: str, kinds: tuple[IdentityKind, ...]) -> None:
    """Every out-of-dialog request gets the configured kinds, RFC 4474 first, and each verifies."""
    world = World(*kinds)
    signed = world.sign(request(method, body=b""))
    values = signed.get_all("Identity")
    assert len(values) == len(kinds)
    assert values[0].startswith('"') is (IdentityKind.RFC4474 in kinds)
    assert signed.has("Identity-Info") is (IdentityKind.RFC4474 in kinds)
    assert world.verify(signed).kind is kinds[0]


@pytest.mark.parametrize("method", ["CANCEL", "ACK", "REGISTER"])
def test_peering_052_some_methods_are_never_signed(method: str) -> None:
    """CANCEL must not bear Identity, ACK and REGISTER get none."""
    assert not World(*KINDS).sign(request(method, body=b"")).has("Identity")


def test_peering_054_the_from_is_of_our_domain_even_if_anonymous() -> None:
    """anonymous@a.test may go out, anonymous@anonymous.invalid and foreign domains may not."""
    assert check_from(request(From="<sip:anonymous@A.test>;tag=1"), ("a.test",)) == "a.test"
    for foreign in ("<sip:anonymous@anonymous.invalid>;tag=1", "<sip:alice@b.test>;tag=1", "<tel:+12125551212>;tag=1"):
        with pytest.raises(Refused) as refused:
            check_from(request(From=foreign), ("a.test",))
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("user", "good"),
    [
        ("+12125551212", True),
        ("+1-212-555-1212", True),
        ("4092;phone-context=+12125554000", True),
        ("2125551212", False),
        ("alice", False),
        ("+1212x", False),
        ("+", False),
    ],
)
def test_peering_055_user_phone_needs_a_telephone_subscriber(user: str, good: bool) -> None:
    """With user=phone the user part is a number as RFC 3966 writes it; else 400 Bad From Number."""
    phone = request(From=f"<sip:{user}@a.test;user=phone>;tag=1")
    if good:
        assert check_from(phone, ("a.test",)) == "a.test"
    else:
        with pytest.raises(Refused) as refused:
            check_from(phone, ("a.test",))
        assert (refused.value.status, refused.value.reason) == (400, "Bad From Number")
    assert check_from(request(From=f"<sip:{user.partition(';')[0]}@a.test>;tag=1"), ("a.test",)) == "a.test"


def test_peering_057_a_foreign_from_is_not_signed() -> None:
    """In the backwards direction of a retargeted call the From is another domain's: it goes out unsigned."""
    assert not World(*KINDS).sign(request(From="<sip:carol@c.test>;tag=1")).has("Identity")


def test_peering_058_date_is_added_or_judged() -> None:
    """A Date is added where there is none; the user's may be 10 minutes (RFC 4474) or 60 seconds off, else 403."""
    world = World(IdentityKind.RFC4474)
    assert world.sign(request()).get("Date") == write_sip_date(world.wall)
    assert world.sign(request(Date=write_sip_date(world.wall - 599))).has("Identity")
    for kind, seconds in ((IdentityKind.RFC4474, 601), (IdentityKind.RFC8224, 61), (IdentityKind.RFC8224, -61)):
        with pytest.raises(Refused) as refused:
            World(kind).sign(request(Date=write_sip_date(world.wall - seconds)))
        assert (refused.value.status, refused.value.reason) == (403, "Stale Date")
    assert b"Content-Length: " in world.sign(request()).encode()


def test_no_signature_outside_of_the_certificates_validity() -> None:
    """A certificate that has run out since the start signs nothing more."""
    world = World()
    world.own = OwnCertificates([own_certificate(IdentityKind.RFC8224, not_after=world.wall - 1)])
    with pytest.raises(Refused) as refused:
        world.sign(request())
    assert refused.value.status == 500


def test_peering_061_one_retry_after_438_and_428() -> None:
    """438 to the compact form: once more in full form, never twice; 428 to an unsigned request: once signed."""
    compact = Signing((IdentityKind.RFC8224,))
    again = retry_after(438, compact, 0)
    assert again == compact._replace(full_form=True)
    assert retry_after(438, again, 1) is None
    assert retry_after(438, again, 0) is None
    unsigned = retry_after(428, Signing(()), 0)
    assert unsigned is not None and unsigned.kinds == (IdentityKind.RFC8224,)
    for status in (436, 437, 403, 503):
        assert retry_after(status, compact, 0) is None


def test_peering_094_what_another_domain_signed_stays() -> None:
    """An Identity that is there already is neither removed nor doubled."""
    world = World(IdentityKind.RFC4474)
    signed = world.sign(request())
    before = signed.encode()
    assert world.sign(signed).encode() == before
    first = signed.get_all("Identity")
    both = world.sign(signed, kinds=KINDS).get_all("Identity")
    assert len(both) == 2 and both[:1] == first


def test_a_token_of_somebody_else_does_not_stop_ours() -> None:
    """Whatever Identity a phone wrote, ours is put beside it, once."""
    world = World()
    signed = world.sign(request(Identity="..c2ln;info=<https://a.test/other>"))
    assert len(signed.get_all("Identity")) == 2 and world.verify(signed).status == 0
    assert len(world.sign(signed).get_all("Identity")) == 2


def test_attestation_follows_how_the_caller_was_authenticated() -> None:
    """A for the caller's own identity, B for an authenticated caller with another number, C for a gateway."""
    assert [attestation(True, True), attestation(True, False), attestation(False, True)] == ["A", "B", "C"]


def test_a_gateway_signs_numbers_that_its_certificate_covers() -> None:
    """What only came in through us is signed with C, if it is a number without Identity and our certificate is one for
    numbers; a plain domain certificate would be refused for it, and what another signed stays as it is.
    """
    plain = OwnCertificates([own_certificate(IdentityKind.RFC8224)])
    list_of_provider = bytes.fromhex("3008a00616043730394a")
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.26"), list_of_provider)
    provider = OwnCertificates([own_certificate(IdentityKind.RFC8224, extra=[(extension, False)])])
    signing = Signing.towards(PeerSettings(shaken=True), "C", "123e4567-e89b-12d3-a456-426655440000", "a.test")
    number = "<sip:+12125551212@c.test;user=phone>;tag=1"

    def signed(own: OwnCertificates, sender: str, **headers: str) -> list[str]:
        message = request(From=sender, **headers)
        sign_request(message, signing, own, url_of, WALL)
        return message.get_all("Identity")

    (value,) = signed(provider, number)
    assert read_full_token(parse_identity_header(value)).claims.attest == "C"
    assert len(signed(provider, "<tel:+12125551212>;tag=1")) == 1
    assert signed(plain, number) == [] == signed(provider, "<sip:carol@c.test>;tag=1")
    theirs = "..c2ln;info=<https://c.test/theirs>"
    assert signed(provider, number, Identity=theirs) == [theirs]


def test_shaken_is_in_full_form() -> None:
    """A token with ppt is always in full form, and says attestation and origid."""
    world = World()
    signing = Signing.towards(PeerSettings(shaken=True), "A", "123e4567-e89b-12d3-a456-426655440000")
    message = request(From="<sip:+12125551212@a.test;user=phone>;tag=1")
    found = world.verify(world.sign(message, **signing._asdict()))
    assert (found.status, found.attest, found.origid) == (0, "A", signing.origid)
    assert found.verstat == "TN-Validation-Passed"

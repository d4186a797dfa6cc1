"""Which domains a certificate speaks for, and which certificates are believed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.policy import (
    CertificateRefused,
    SanMatch,
    Step,
    TrustAnchors,
    Usage,
    fingerprint,
    normal_domain,
    read_certificate,
)
from tests.proto.identity.domain_certificates import (
    CLIENT_AUTH,
    CODE_SIGNING,
    DAY,
    SERVER_AUTH,
    SIP_DOMAIN,
    WALL,
    TestAuthority,
    dns,
    rsa_key,
    self_signed,
    uris,
)

CA = TestAuthority()
OTHER_CA = TestAuthority("Other CA")
ANCHORS = TrustAnchors([CA.der])


def identities(
    names: list[x509.GeneralName] | None, match: SanMatch = SanMatch.RFC5922, subject: str = "x"
) -> set[str]:
    return set(read_certificate(CA.issue(names, subject=subject)).identities(match))


def refusal(
    anchors: TrustAnchors, chain: list[bytes], usage: Usage = Usage.CLIENT, wall: float = WALL
) -> CertificateRefused:
    with pytest.raises(CertificateRefused) as refused:
        anchors.check(chain, wall, usage)
    return refused.value


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (dns("A.test", "b.test."), {"a.test", "b.test"}),
        (uris("sip:a.test") + dns("x.test"), {"a.test"}),
        (uris("SIP:A.test;transport=tls", "sip:c.test:5061"), {"a.test", "c.test"}),
        (uris("sip:alice@a.test") + dns("x.test"), {"x.test"}),
        (uris("sips:a.test", "https://a.test/"), set()),
        (dns("*.a.test", ".a.test", "192.0.2.1"), set()),
        ([x509.RFC822Name("alice@a.test")], set()),
        (uris("sip:a.test?x=bob@b.test"), set()),
    ],
)
def test_identities_of_alternative_names(names: list[x509.GeneralName], expected: set[str]) -> None:
    """sip URIs without userinfo count, DNS names only where there is no such URI, nothing else ever."""
    assert identities(names) == expected


def test_the_common_name_counts_only_without_alternative_names() -> None:
    """RFC 5922 section 7.1 step 2: if and only if subjectAltName does not appear."""
    assert identities(None, subject="A.test") == {"a.test"}
    assert identities(None, subject="Example Company") == set()
    assert identities([x509.RFC822Name("a@a.test")], subject="a.test") == set()


def test_the_looser_rule_takes_both_kinds_of_names() -> None:
    """san_match=any: a DNS name counts beside a sip URI."""
    names = uris("sip:a.test", "sip:u@c.test") + dns("x.test")
    assert identities(names, SanMatch.ANY) == {"a.test", "x.test"}


def test_names_are_compared_whole() -> None:
    """RFC 5922 section 7.2: no suffixes, no wildcards, no case."""
    certificate = read_certificate(CA.issue(dns("b.test", "*.c.test")))
    assert certificate.speaks_for("B.TEST.")
    assert not certificate.speaks_for("sub.b.test")
    assert not certificate.speaks_for("test")
    assert not certificate.speaks_for("x.c.test")
    assert not certificate.speaks_for("*.c.test")
    assert not certificate.speaks_for("")


def test_thousands_of_names_are_refused_quickly() -> None:
    """A certificate with thousands of names is refused by form, in bounded time."""
    big = CA.issue(dns(*(f"{number}.example.test" for number in range(2900))))
    began = time.perf_counter()
    with pytest.raises(CertificateRefused) as refused:
        read_certificate(big)
    assert refused.value.step is Step.FORM
    assert time.perf_counter() - began < 0.2


@pytest.mark.parametrize(
    ("usages", "usage", "accepted"),
    [
        (None, Usage.CLIENT, True),
        ([SIP_DOMAIN], Usage.CLIENT, True),
        ([x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], Usage.SERVER, True),
        ([CLIENT_AUTH], Usage.CLIENT, True),
        ([SERVER_AUTH], Usage.CLIENT, False),
        ([SERVER_AUTH], Usage.SERVER_AS_CLIENT, True),
        ([CLIENT_AUTH], Usage.SERVER, False),
        ([CODE_SIGNING], Usage.SIGNER, False),
        ([SERVER_AUTH], Usage.SIGNER, True),
    ],
)
def test_extended_key_usage(usages: list[x509.ObjectIdentifier] | None, usage: Usage, accepted: bool) -> None:
    """sipDomain, any and none at all are good for everything (RFC 5924), TLS usages for their side."""
    chain = [CA.issue(dns("a.test"), usages=usages)]
    if accepted:
        assert ANCHORS.check(chain, WALL, usage).authority.name == "CN=Test CA"
    else:
        assert refusal(ANCHORS, chain, usage).step is Step.USAGE


def test_dates_are_checked_every_time() -> None:
    """A certificate that was good and has been kept is refused once it has run out."""
    chain = [CA.issue(dns("a.test"), not_after=WALL + 60)]
    assert ANCHORS.check(chain, WALL, Usage.CLIENT).valid_until == WALL + 60
    refused = refusal(ANCHORS, chain, wall=WALL + 61)
    assert (refused.step, refused.domain, refused.authority) == (Step.DATE, "a.test", "CN=Test CA")
    assert refusal(ANCHORS, chain, wall=WALL - 2 * DAY).step is Step.DATE


def test_only_configured_authorities_count() -> None:
    """A certificate of another authority, or of nobody, is refused by the authority step."""
    assert refusal(ANCHORS, [OTHER_CA.issue(dns("a.test"))]).step is Step.AUTHORITY
    assert refusal(ANCHORS, [self_signed(dns("a.test"))]).step is Step.AUTHORITY
    assert refusal(TrustAnchors(), [CA.issue(dns("a.test"))]).step is Step.AUTHORITY
    assert refusal(ANCHORS, [CA.der]).step is Step.AUTHORITY
    assert refusal(ANCHORS, []).step is Step.FORM


def test_a_pinned_certificate_needs_no_authority() -> None:
    """A pin names one certificate: its issuer and usage do not matter, its dates do."""
    alone = self_signed(dns("a.test"))
    other = OTHER_CA.issue(dns("a.test"), usages=[CODE_SIGNING])
    anchors = TrustAnchors(pins=[fingerprint(alone), fingerprint(other).upper()])
    assert anchors.check([alone], WALL, Usage.CLIENT).authority.pinned
    assert anchors.check([other], WALL, Usage.SERVER).authority.fingerprint == fingerprint(other)
    assert refusal(anchors, [alone], wall=WALL + 2000 * DAY).step is Step.DATE


def test_intermediates_come_along_and_must_be_authorities() -> None:
    """A chain is followed over its intermediates; one that may not sign, or not this name, breaks it."""
    good = TestAuthority("Intermediate", parent=CA)
    leaf = good.issue(dns("a.test"))
    assert ANCHORS.check([leaf, good.der], WALL, Usage.SERVER).authority.name == "CN=Test CA"
    assert refusal(ANCHORS, [leaf := good.issue(dns("a.test"))]).step is Step.AUTHORITY
    no_authority = TestAuthority("Leaf", parent=CA, ca=False)
    assert refusal(ANCHORS, [no_authority.issue(dns("a.test")), no_authority.der]).step is Step.AUTHORITY
    not_signing = TestAuthority("Weak", parent=CA, key_usage=False, extra=[(x509.KeyUsage(True, *[False] * 8), True)])
    assert refusal(ANCHORS, [not_signing.issue(dns("a.test")), not_signing.der]).step is Step.AUTHORITY
    constrained = TestAuthority(
        "Constrained", parent=CA, extra=[(x509.NameConstraints([x509.DNSName("b.test")], None), True)]
    )
    assert refusal(ANCHORS, [constrained.issue(uris("sip:a.test")), constrained.der]).step is Step.AUTHORITY
    assert ANCHORS.check([constrained.issue(uris("sip:x.b.test")), constrained.der], WALL, Usage.SERVER)


def test_an_authority_made_by_openssl_req_is_good_enough() -> None:
    """An authority without key usage and key identifiers, as "openssl req -x509" makes it, may be configured."""
    plain = TestAuthority("Plain", key_usage=False)
    anchors = TrustAnchors([plain.der])
    assert anchors.check([plain.issue(None, subject="a.test")], WALL, Usage.CLIENT).certificate.speaks_for("a.test")


def test_weak_keys_are_refused() -> None:
    """An RSA key of 1024 bits is no identity any more."""
    assert refusal(ANCHORS, [CA.issue(dns("a.test"), rsa_key(0, 1024))]).step is Step.KEY


def test_revocation_lists() -> None:
    """A revoked certificate is refused, others are not; a list out of date refuses; a forged one is no list."""
    bad, good = CA.issue(dns("a.test")), CA.issue(dns("b.test"))
    anchors = TrustAnchors([CA.der], crls=[CA.revocation_list(bad)])
    refused = refusal(anchors, [bad])
    assert (refused.step, refused.domain) == (Step.REVOKED, "a.test")
    assert anchors.check([good], WALL, Usage.CLIENT).valid_until == WALL + 7 * DAY
    assert refusal(anchors, [good], wall=WALL + 8 * DAY).step is Step.REVOKED
    forged = TestAuthority("Test CA", OTHER_CA.key).revocation_list(good)
    assert TrustAnchors([CA.der], crls=[forged]).check([good], WALL, Usage.CLIENT)
    with pytest.raises(CertificateRefused):
        TrustAnchors([CA.der], crls=[b"nonsense"])


def test_a_refusal_says_which_rule_refused() -> None:
    """The message holds step, domain and authority, for the log."""
    text = str(refusal(ANCHORS, [OTHER_CA.issue(dns("c.test"))]))
    assert "step authority" in text and "domain c.test" in text and "authority CN=Other CA" in text


@given(st.binary(max_size=200))
def test_any_octets_are_refused_by_form(octets: bytes) -> None:
    """Whatever is no certificate raises the one error of this module."""
    with pytest.raises(CertificateRefused):
        read_certificate(octets)


@given(st.text(max_size=80))
def test_normal_domains_are_stable(text: str) -> None:
    """A normalised name is its own normal form, and a wildcard is never one."""
    name = normal_domain(text)
    assert normal_domain(name) == name and "*" not in name


@pytest.mark.foreign("openssl")
def test_openssl_judges_the_chains_alike(tmp_path: Path) -> None:
    """What "openssl verify" says of chains, dates and revocation, we say too."""
    intermediate = TestAuthority("Intermediate", parent=CA)
    revoked = CA.issue(dns("revoked.test"))
    cases = {
        "good": [CA.issue(dns("a.test"), usages=[CLIENT_AUTH])],
        "through": [intermediate.issue(dns("a.test")), intermediate.der],
        "foreign": [OTHER_CA.issue(dns("a.test"))],
        "expired": [CA.issue(dns("a.test"), not_after=WALL - 60)],
        "revoked": [revoked],
        "codesigning": [CA.issue(dns("a.test"), usages=[CODE_SIGNING])],
        "alone": [self_signed(dns("a.test"))],
    }
    lists = [CA.revocation_list(revoked), intermediate.revocation_list()]
    anchors = TrustAnchors([CA.der], crls=lists)
    for name, chain in cases.items():
        ours = True
        try:
            anchors.check(chain, WALL, Usage.CLIENT)
        except CertificateRefused:
            ours = False
        assert ours is _openssl_verifies(tmp_path, chain, lists), name
        assert ours is (name in ("good", "through")), name


def _openssl_verifies(directory: Path, chain: list[bytes], lists: list[bytes]) -> bool:
    def pems(kind: str, items: list[bytes]) -> str:
        path = directory / f"{kind}.pem"
        load = x509.load_der_x509_crl if kind == "crls" else x509.load_der_x509_certificate
        from cryptography.hazmat.primitives.serialization import Encoding

        path.write_bytes(b"".join(load(item).public_bytes(Encoding.PEM) for item in items))
        return str(path)

    command = ["openssl", "verify", "-purpose", "sslclient", "-attime", str(int(WALL)), "-crl_check"]
    command += ["-CAfile", pems("roots", [CA.der]), "-CRLfile", pems("crls", lists)]
    if chain[1:]:
        command += ["-untrusted", pems("between", chain[1:])]
    return subprocess.run([*command, pems("leaf", chain[:1])], capture_output=True).returncode == 0

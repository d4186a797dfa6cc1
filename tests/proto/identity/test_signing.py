"""Signatures with a node's key, and the simulator's stand-ins."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import CertificateError, Role, generate_private_key, parse_certificate
from p2psipd.proto.identity.signing import (
    Credential,
    NullCredential,
    NullTrust,
    NullVerifier,
    RealVerifier,
    null_certificate,
    verify,
)
from tests.proto.identity.certificates import KEY, NODE, OTHER_NODE, OVERLAY, WALL, credential, odd_certificate

RSA_KEY = rsa.generate_private_key(65537, 2048)


@given(st.binary(max_size=200))
def test_ecdsa_round_trip(data: bytes) -> None:
    """A signature verifies over its own data and over no other."""
    signer = credential()
    made = signer.sign(data)
    assert made[:2] == (4, 3)
    assert RealVerifier().verify(signer.certificate, *made[:2], data, made.value)
    assert not verify(signer.certificate, *made[:2], data + b"x", made.value)


def test_signing_is_deterministic() -> None:
    """The same data gives the same octets, so that simulations with real signatures replay (RFC 6979)."""
    assert credential().sign(b"data") == credential().sign(b"data")


def test_rsa_round_trip() -> None:
    """RSASSA-PKCS1-v1_5 with SHA-256, the RFC's mandatory algorithm, is made and verified for RSA keys."""
    signer = Credential(parse_certificate(odd_certificate(public_key=RSA_KEY.public_key())), RSA_KEY)
    made = signer.sign(b"data")
    assert made[:2] == (4, 1) and signer.private_key is RSA_KEY
    assert verify(signer.certificate, 4, 1, b"data", made.value)
    assert not verify(signer.certificate, 4, 3, b"data", made.value), "an ECDSA signature by an RSA key"
    assert not verify(signer.certificate, 2, 1, b"data", made.value), "SHA-1 is not accepted"


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80))
def test_any_signature_is_judged(hash_algorithm: int, signature_algorithm: int, value: bytes) -> None:
    """Any algorithms and any octets are judged false without an exception."""
    assert not verify(credential().certificate, hash_algorithm, signature_algorithm, b"data", value)


def test_credential_must_match() -> None:
    """A certificate with another's private key is refused when they are put together."""
    with pytest.raises(CertificateError) as caught:
        Credential(credential().certificate, generate_private_key())
    assert caught.value.reason == "key"
    assert credential().private_key is KEY


def test_null_credential_for_simulation() -> None:
    """The simulator's signature has a real one's size, is accepted as it is, and noticed when altered."""
    certificate = null_certificate(NODE, f"{NODE.hex()}@peer.{OVERLAY}", OVERLAY)
    made = NullCredential(certificate).sign(b"data")
    assert 70 <= len(made.value) <= 72 and certificate.role is Role.PEER
    assert NullVerifier().verify(certificate, *made[:2], b"data", made.value)
    assert not NullVerifier().verify(certificate, *made[:2], b"data", made.value[:-1] + b"x")
    assert not verify(certificate, *made[:2], b"data", made.value), "no key verifies it"


def test_null_trust_judges_as_trust_does() -> None:
    """The simulator's trust reads its own certificates and refuses other overlays, dates and revoked nodes."""
    certificate = null_certificate(NODE, "alice@overlay.example", OVERLAY, WALL - 1, WALL + 1)
    judge = NullTrust(OVERLAY, frozenset({OTHER_NODE}))
    assert judge.check(certificate.der, WALL) == certificate
    assert 400 < len(certificate.der) < 600
    for der, wall, reason in (
        (certificate.der, WALL + 2, "date"),
        (null_certificate(NODE, "a@b.example", "b.example").der, WALL, "overlay"),
        (null_certificate(OTHER_NODE, "a@overlay.example", OVERLAY).der, WALL, "revoked"),
        (odd_certificate(), WALL, "form"),
        (certificate.der[:20], WALL, "form"),
    ):
        with pytest.raises(CertificateError) as caught:
            judge.check(der, wall)
        assert caught.value.reason == reason

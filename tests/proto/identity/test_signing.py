"""Signatures with a node's key, and the simulator's stand-ins."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
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


def test_others_agree() -> None:
    """OpenSSL verifies what is signed here, and what it signs is verified here."""
    signer = credential()
    KEY.public_key().verify(signer.sign(b"data").value, b"data", ECDSA(SHA256()))
    assert verify(signer.certificate, 4, 3, b"data", KEY.sign(b"data", ECDSA(SHA256())))


def test_compressed_point() -> None:
    """A certificate may hold its point compressed (RFC 5480 section 2.2)."""
    der = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    compressed = null_certificate(NODE, "alice@" + OVERLAY, OVERLAY)
    compressed.key_info = head + der
    assert verify(compressed, 4, 3, b"data", KEY.sign(b"data", ECDSA(SHA256())))


@pytest.mark.parametrize("fault", ["zero", "order", "trailing", "long form", "huge"])
def test_odd_signatures(fault: str) -> None:
    """Numbers out of range and octets that are not the one encoding of a signature are refused."""
    good = KEY.sign(b"data", ECDSA(SHA256()))
    r, s = decode_dss_signature(good)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    odd = {
        "zero": encode_dss_signature(0, s),
        "order": encode_dss_signature(r + order, s),
        "trailing": good + b"\0",
        "long form": b"\x30\x81" + good[1:],
        "huge": b"\x30" * 65536,
    }[fault]
    assert not verify(credential().certificate, 4, 3, b"data", odd)


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
    assert not NullVerifier().verify(certificate, *made[:2], b"data", made.value[:-1] + bytes((made.value[-1] ^ 1,)))
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

"""Authorities and certificates of SIP domains for tests, right in everything that is not named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

WALL = 1_800_000_000.0
DAY = 86_400

SIP_DOMAIN = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.20")
SERVER_AUTH = x509.ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = x509.ExtendedKeyUsageOID.CLIENT_AUTH
CODE_SIGNING = x509.ExtendedKeyUsageOID.CODE_SIGNING


@lru_cache
def ec_key(which: int = 0) -> ec.EllipticCurvePrivateKey:
    """A P-256 key; the same number is the same key."""
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache
def rsa_key(which: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key; the same number is the same key."""
    return rsa.generate_private_key(65537, bits)


def dns(*names: str) -> list[x509.GeneralName]:
    """DNS names, wildcards and other oddities included."""
    return [x509.DNSName._init_without_validation(name) for name in names]


def uris(*names: str) -> list[x509.GeneralName]:
    """URIs."""
    return [x509.UniformResourceIdentifier(name) for name in names]


def domain_name(common_name: str) -> x509.Name:
    """A distinguished name with this common name; "" makes an empty one."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def der(certificate: x509.Certificate) -> bytes:
    """Its octets."""
    return certificate.public_bytes(Encoding.DER)


def pem(key: Any) -> bytes:
    """A private key as PEM (PKCS#8)."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class TestAuthority:
    """A certificate authority: ``certificate`` (x509), ``der``, and what it issues."""

    __test__ = False

    def __init__(
        self,
        name: str = "Test CA",
        key: Any = None,
        parent: TestAuthority | None = None,
        *,
        wall: float = WALL,
        extra: Sequence[tuple[Any, bool]] = (),
        key_usage: bool = True,
        ca: bool = True,
        path_length: int | None = None,
    ) -> None:
        self.name, self.key, self.wall = name, key or ec_key(sum(name.encode())), wall
        extensions: list[tuple[Any, bool]] = [(x509.BasicConstraints(ca, path_length), True), *extra]
        if key_usage:
            extensions.append((x509.KeyUsage(True, False, False, False, False, True, True, False, False), True))
        self.certificate = make(name, self.key, parent or self, extensions, wall - 10 * DAY, wall + 1000 * DAY)
        self.der = der(self.certificate)

    def issue(
        self,
        names: Sequence[x509.GeneralName] | None,
        key: Any = None,
        *,
        subject: str = "",
        usages: Sequence[x509.ObjectIdentifier] | None = None,
        extra: Sequence[tuple[Any, bool]] = (),
        not_before: float | None = None,
        not_after: float | None = None,
    ) -> bytes:
        """A certificate (DER); no subjectAltName where ``names`` is None."""
        extensions = list(extra)
        if names is not None:
            extensions.append((x509.SubjectAlternativeName(names), not subject))
        if usages is not None:
            extensions.append((x509.ExtendedKeyUsage(usages), False))
        start = self.wall - DAY if not_before is None else not_before
        end = self.wall + 30 * DAY if not_after is None else not_after
        return der(make(subject, key or ec_key(1), self, extensions, start, end))

    def revocation_list(self, *revoked: bytes, until: float | None = None) -> bytes:
        """A CRL (DER) with the serial numbers of these certificates."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(domain_name(self.name))
            .last_update(_date(self.wall - DAY))
            .next_update(_date(self.wall + 7 * DAY if until is None else until))
        )
        for one in revoked:
            serial = x509.load_der_x509_certificate(one).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(entry.revocation_date(_date(self.wall - DAY)).build())
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.DER)


def make(
    subject: str,
    key: Any,
    issuer: TestAuthority,
    extensions: Sequence[tuple[Any, bool]],
    not_before: float,
    not_after: float,
) -> x509.Certificate:
    """A certificate of exactly these parts; the signer does not look at what it signs."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(domain_name(subject))
        .issuer_name(domain_name(issuer.name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(not_before))
        .not_valid_after(_date(not_after))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer.key, SHA256())


def self_signed(names: Sequence[x509.GeneralName], key: Any = None, wall: float = WALL) -> bytes:
    """A certificate that nobody vouches for."""
    chosen = key or ec_key(1)
    return TestAuthority("self", chosen, wall=wall, ca=False, extra=[(x509.SubjectAlternativeName(names), False)]).der


def _date(wall: float) -> datetime:
    return datetime.fromtimestamp(int(wall), UTC)

"""Our own certificates for peering: which one goes with which domain, and whether it is fit for use.

One certificate may serve TLS and sign Identity, or each its own: RFC 4474 needs an RSA key, RFC 8224 one on P-256.
``OwnCertificate.fault`` finds at the start and at a reload what peers would refuse later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from p2psipd.proto.identity.policy import DomainCertificate, SanMatch, normal_domain
from p2psipd.proto.peering.peers import IdentityKind

__all__ = ["CertificateUse", "OwnCertificate", "OwnCertificates", "PrivateKey", "served_name", "warnings_of"]

PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey

_DAY: Final = 86_400
#: From then on before the end of a certificate the log says so.
WARNING_DAYS: Final = 14


class CertificateUse(Enum):
    """What a certificate is configured for."""

    TLS = "tls"
    IDENTITY = "identity"


class OwnCertificate(NamedTuple):
    """A certificate of ours with its chain (DER, leaf first) and key, for ``domains`` and ``uses``.

    ``name`` is how the configuration calls it and how it is served: unique, a file name.
    """

    name: str
    certificate: DomainCertificate
    chain: tuple[bytes, ...]
    key: PrivateKey
    domains: tuple[str, ...]
    uses: frozenset[CertificateUse] = frozenset(CertificateUse)

    def fits(self, kind: IdentityKind) -> bool:
        """Whether it can sign this kind of Identity."""
        if CertificateUse.IDENTITY not in self.uses:
            return False
        if kind is IdentityKind.RFC4474:
            return isinstance(self.key, RSAPrivateKey)
        return isinstance(self.key, EllipticCurvePrivateKey) and isinstance(self.key.curve, SECP256R1)

    def fault(self, wall: float) -> str:
        """What peers would refuse about it at ``wall``, in words for the operator; "" for nothing."""
        if self.certificate.public_key != self.key.public_key():
            return "expected the key of this certificate"
        if wall > self.certificate.not_after:
            return f"expected a valid certificate: it expired on {_date(self.certificate)}"
        if wall < self.certificate.not_before:
            return "expected a valid certificate: it is not valid yet"
        for domain in self.domains:
            # Our certificate must pass everybody's rule, and the stricter one is the default elsewhere too.
            if not self.certificate.speaks_for(domain, SanMatch.RFC5922):
                return f"domain {domain} not in certificate"
        return ""


class OwnCertificates:
    """All our certificates, found by domain, use and kind.  The first that fits in the order of the file wins."""

    __slots__ = ("certificates",)

    def __init__(self, certificates: Iterable[OwnCertificate]) -> None:
        self.certificates = tuple(certificates)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that we speak for in TLS, in the order of the file, each once."""
        found = [d for c in self.certificates if CertificateUse.TLS in c.uses for d in c.domains]
        return tuple(dict.fromkeys(map(normal_domain, found)))

    def for_tls(self, domain: str, name: str = "") -> OwnCertificate | None:
        """The certificate to show in TLS in the name of ``domain``; ``name`` asks for one in particular, which
        still must speak for the domain.
        """
        return self._find(domain, name, CertificateUse.TLS)

    def for_identity(self, domain: str, kind: IdentityKind) -> OwnCertificate | None:
        """The certificate that signs ``kind`` for From addresses of ``domain``; None where we must not sign."""
        wanted = normal_domain(domain)
        for own in self.certificates:
            if own.fits(kind) and wanted and own.certificate.speaks_for(wanted):
                return own
        return None

    def _find(self, domain: str, name: str, use: CertificateUse) -> OwnCertificate | None:
        wanted = normal_domain(domain)
        for own in self.certificates:
            if use in own.uses and name in ("", own.name) and wanted and own.certificate.speaks_for(wanted):
                return own
        return None

    def by_name(self, name: str) -> OwnCertificate | None:
        """The certificate that the configuration calls ``name``."""
        return next((own for own in self.certificates if own.name == name), None)


def served_name(own: OwnCertificate, kind: IdentityKind) -> str:
    """The last segment of the URL of a certificate."""
    return f"{own.certificate.fingerprint[:16]}.{'cer' if kind is IdentityKind.RFC4474 else 'pem'}"


def warnings_of(certificates: Sequence[OwnCertificate], wall: float) -> list[str]:
    """A sentence for each certificate that runs out within 14 days, or has."""
    return [
        f"certificate {own.name} of {', '.join(own.domains)} "
        f"{'expires' if wall <= own.certificate.not_after else 'expired'} on {_date(own.certificate)}"
        for own in certificates
        if own.certificate.not_after < wall + WARNING_DAYS * _DAY
    ]


def _date(certificate: DomainCertificate) -> str:
    return f"{certificate.loaded.not_valid_after_utc:%Y-%m-%d}"

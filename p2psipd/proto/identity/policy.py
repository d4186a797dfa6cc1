"""Which SIP domains a certificate speaks for, and whether it is to be believed (RFC 5922, 5924, 5280).

``read_certificate`` finds the names, ``TrustAnchors.check`` verifies a chain up to a configured authority or
finds the certificate pinned.  What is refused is refused with the step that did it, the domain and the
authority, so that a log line says what to change.

Names are compared whole, without case and without wildcards (RFC 5922 section 7.2).  Times are unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from p2psipd.proto.identity.certificate import PARSE_FAULTS, CertificateError, load_root, remember
from p2psipd.proto.identity.p256 import VerifyingKey

__all__ = [
    "Authority",
    "CertificateRefused",
    "CheckedCertificate",
    "DomainCertificate",
    "SanMatch",
    "Step",
    "TrustAnchors",
    "Usage",
    "fingerprint",
    "has_identity",
    "ip_identities",
    "normal_domain",
    "read_certificate",
    "sip_identities",
]

MAXIMUM_CERTIFICATE_SIZE: Final = 64 * 1024
#: Public authorities sign a hundred or two; what has thousands is made to cost us time.
MAXIMUM_NAMES: Final = 1000
MAXIMUM_INTERMEDIATES: Final = 6
MINIMUM_RSA_BITS: Final = 2048
MAXIMUM_RSA_BITS: Final = 8192

_CACHED_SIZE: Final = 8 * 1024
_CHECKED_CACHE_SIZE: Final = 1024
_SIP_DOMAIN: Final = "1.3.6.1.5.5.7.3.20"
_ANY_USAGE: Final = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string
_SERVER_AUTH: Final = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
_CLIENT_AUTH: Final = ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+")
_SIP_URI: Final = re.compile(r"sip:([^@;?:/\[\]]++)(?::[0-9]{1,5})?(?:[;?][^@]*+)?", re.IGNORECASE)


class SanMatch(Enum):
    """Which subjectAltName entries count.

    RFC5922: URIs of the scheme sip; DNS names only where there is no such URI.  ANY: both, the looser rule
    that some peers need ("DNS or URI, one of which has to match").
    """

    RFC5922 = "rfc5922"
    ANY = "any"


class Usage(Enum):
    """What a certificate is presented for, and with that which extended key usages permit it.

    id-kp-sipDomain and anyExtendedKeyUsage always do, and so does a certificate that has no such extension
    (RFC 5924 section 5).  Public authorities know sipDomain not at all and clientAuth no more, so TLS's own
    usages are taken beside them; SERVER_AS_CLIENT takes a server's certificate from a client, for the peers
    where that is configured.  SIGNER is the certificate behind an Identity header.
    """

    SERVER = (_SERVER_AUTH,)
    CLIENT = (_CLIENT_AUTH,)
    SERVER_AS_CLIENT = (_CLIENT_AUTH, _SERVER_AUTH)
    SIGNER = (_SERVER_AUTH, _CLIENT_AUTH, "")

    @property
    def permitted(self) -> frozenset[str]:
        """The key purposes (dotted) of which a restricted certificate must have one."""
        return frozenset((_SIP_DOMAIN, _ANY_USAGE, *self.value)) - {""}


class Step(Enum):
    """The step of the check that refused a certificate; also the word for counters."""

    FORM = "form"
    KEY = "key"
    DATE = "date"
    AUTHORITY = "authority"
    REVOKED = "revoked"
    USAGE = "usage"
    DOMAIN = "domain"


class CertificateRefused(ValueError):
    """A certificate is not acceptable: ``step`` refused it, for ``domain`` (its first name), under
    ``authority`` (its issuer's name); ``detail`` says what was expected.  Names are "" where not known.
    """

    def __init__(self, step: Step, detail: str, domain: str = "", authority: str = "") -> None:
        super().__init__(f"step {step.value}: {detail} (domain {domain or '?'}, authority {authority or '?'})")
        self.step = step
        self.detail = detail
        self.domain = domain
        self.authority = authority


@lru_cache(maxsize=4096)
def normal_domain(text: str) -> str:
    """``text`` as a DNS name in lower case without a final dot; "" if it is none (a wildcard, an address)."""
    name = text.lower().removesuffix(".")
    if len(name) > 253 or not _DOMAIN.fullmatch(name) or name.rpartition(".")[2].isdigit():
        return ""
    return name


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate as 64 hexadecimal digits."""
    return sha256(der).hexdigest()


class DomainCertificate:
    """A certificate as it was read; nothing is said about trust.

    ``uri_domains`` are the hosts of its sip URIs without userinfo, ``dns_domains`` its DNS names, both
    normalised; ``common_name`` that of the subject if it is a DNS name and there is no subjectAltName at all;
    ``addresses`` its IP addresses as text.  ``purposes`` are its extended key usages (dotted), None without
    the extension.  ``verifying_key`` is for ES256, None for a key that is not on P-256.
    """

    __slots__ = (
        "addresses",
        "common_name",
        "der",
        "dns_domains",
        "fingerprint",
        "issuer",
        "loaded",
        "not_after",
        "not_before",
        "public_key",
        "purposes",
        "uri_domains",
        "verifying_key",
    )

    def __init__(self, der: bytes, loaded: x509.Certificate) -> None:
        self.der = der
        self.loaded = loaded
        self.fingerprint = fingerprint(der)
        self.issuer = loaded.issuer.rfc4514_string()[:200]
        self.not_before = loaded.not_valid_before_utc.timestamp()
        self.not_after = loaded.not_valid_after_utc.timestamp()
        key = self.public_key = _accepted_key(loaded.public_key())
        self.verifying_key: VerifyingKey | None = None
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            self.verifying_key = VerifyingKey(key)
        self.uri_domains, self.dns_domains, self.addresses, self.common_name = _names(loaded)
        self.purposes = _purposes(loaded)

    def identities(self, match: SanMatch = SanMatch.RFC5922) -> frozenset[str]:
        """The SIP domains that it speaks for (RFC 5922 section 7.1); none is possible."""
        if match is SanMatch.ANY and (self.uri_domains or self.dns_domains):
            return self.uri_domains | self.dns_domains
        return self.uri_domains or self.dns_domains or self.common_name

    def speaks_for(self, domain: str, match: SanMatch = SanMatch.RFC5922) -> bool:
        """Whether ``domain`` is among its identities, compared whole (RFC 5922 section 7.2)."""
        return normal_domain(domain) in self.identities(match)

    @property
    def domain(self) -> str:
        """One of its names, for the log."""
        names = self.identities(SanMatch.ANY)
        return min(names) if names else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DomainCertificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"DomainCertificate({self.domain} {self.fingerprint[:16]})"


def read_certificate(der: bytes) -> DomainCertificate:
    """The names, dates and key of a certificate.  Raises ``CertificateRefused`` (steps form and key)."""
    return _read_small(der) if len(der) <= _CACHED_SIZE else _read(der)


def sip_identities(der: bytes, match: SanMatch = SanMatch.RFC5922) -> tuple[str, ...]:
    """The domains that a certificate (DER) speaks for, sorted; one that cannot be read speaks for none."""
    try:
        return tuple(sorted(read_certificate(der).identities(match)))
    except CertificateRefused:
        return ()


def ip_identities(der: bytes) -> tuple[str, ...]:
    """The IP addresses in a certificate (DER): what a URI with a numeric host is compared with."""
    try:
        return tuple(sorted(read_certificate(der).addresses))
    except CertificateRefused:
        return ()


def has_identity(identities: Iterable[str], domain: str) -> bool:
    """Whether ``domain`` is among ``identities``: as whole names, in any case (RFC 5922 section 7.2)."""
    wanted = normal_domain(domain)
    return bool(wanted) and any(normal_domain(identity) == wanted for identity in identities)


def _read(der: bytes) -> DomainCertificate:
    if len(der) > MAXIMUM_CERTIFICATE_SIZE:
        raise CertificateRefused(Step.FORM, f"{len(der)} octets, at most {MAXIMUM_CERTIFICATE_SIZE} are read")
    try:
        return DomainCertificate(der, x509.load_der_x509_certificate(der))
    except CertificateRefused:
        raise
    except PARSE_FAULTS as fault:
        raise CertificateRefused(Step.FORM, f"not a readable certificate: {str(fault)[:200]}") from None


# Only small ones are kept, so that the cache is bounded in octets too.
_read_small = lru_cache(maxsize=512)(_read)


def _accepted_key(key: object) -> EllipticCurvePublicKey | RSAPublicKey:
    if isinstance(key, EllipticCurvePublicKey):
        return key
    if isinstance(key, RSAPublicKey):
        if not MINIMUM_RSA_BITS <= key.key_size <= MAXIMUM_RSA_BITS:
            limits = f"{MINIMUM_RSA_BITS} to {MAXIMUM_RSA_BITS} expected"
            raise CertificateRefused(Step.KEY, f"RSA key of {key.key_size} bits; {limits}")
        return key
    raise CertificateRefused(Step.KEY, "neither an elliptic curve key nor an RSA key")


_Names = frozenset[str]


def _names(loaded: x509.Certificate) -> tuple[_Names, _Names, _Names, _Names]:
    """URI domains, DNS domains, IP addresses, and the common name where RFC 5922 section 7.1 lets it count."""
    none: _Names = frozenset()
    try:
        names = list(loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        common = [str(part.value) for part in loaded.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        return none, none, none, frozenset(map(normal_domain, common[-1:])) - {""}
    if len(names) > MAXIMUM_NAMES:
        raise CertificateRefused(Step.FORM, f"{len(names)} names, at most {MAXIMUM_NAMES} are read")
    uris = {_uri_domain(name.value) for name in names if isinstance(name, x509.UniformResourceIdentifier)}
    dns = {normal_domain(name.value) for name in names if isinstance(name, x509.DNSName)}
    addresses = {str(name.value) for name in names if isinstance(name, x509.IPAddress)}
    return frozenset(uris - {""}), frozenset(dns - {""}), frozenset(addresses), none


def _uri_domain(uri: str) -> str:
    """The host of a sip URI without userinfo; "" for any other (RFC 5922 section 7.1: "sips" is another)."""
    match = _SIP_URI.fullmatch(uri)
    return normal_domain(match[1]) if match else ""


def _purposes(loaded: x509.Certificate) -> frozenset[str] | None:
    try:
        usage = loaded.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return frozenset(purpose.dotted_string for purpose in usage)


# ---- trust -------------------------------------------------------------------------------------------------


class Authority(NamedTuple):
    """Who vouched for a certificate: a root (``name`` and ``fingerprint`` of it), or, where ``pinned``, the
    operator who named this very certificate (``fingerprint`` is then its own).
    """

    name: str
    fingerprint: str
    pinned: bool = False


class CheckedCertificate(NamedTuple):
    """A certificate that is believed, by whom, and between which times that holds (unix seconds)."""

    certificate: DomainCertificate
    authority: Authority
    valid_from: float
    valid_until: float


class _RevocationList(NamedTuple):
    """One CRL, read: ``issuer`` is the DER of its issuer's name."""

    loaded: x509.CertificateRevocationList
    issuer: bytes
    serials: frozenset[int]
    until: float


class TrustAnchors:
    """A set of authorities, pinned certificates and revocation lists, and the check against them.

    ``roots`` and ``crls`` are DER, ``pins`` are fingerprints (``fingerprint``).  Immutable: a new
    configuration makes a new one.  Good results are kept until the first certificate of the chain or the
    revocation list runs out.  Raises ``CertificateRefused`` for material that cannot be used.
    """

    __slots__ = ("_checked", "_lists", "_store", "crls", "pins", "roots")

    def __init__(self, roots: Iterable[bytes] = (), pins: Iterable[str] = (), crls: Iterable[bytes] = ()) -> None:
        try:
            loaded = [load_root(der) for der in roots]
        except CertificateError as fault:
            raise CertificateRefused(Step.AUTHORITY, fault.detail) from None
        self._store = Store(loaded) if loaded else None
        self.roots = tuple(_der(root) for root in loaded)
        self.pins = frozenset(pin.lower().replace(":", "") for pin in pins)
        self.crls = tuple(crls)
        self._lists = tuple(_read_crl(der) for der in self.crls)
        self._checked: dict[tuple[bytes, Usage], CheckedCertificate] = {}

    def check(self, chain: Sequence[bytes], wall: float, usage: Usage) -> CheckedCertificate:
        """The first certificate of ``chain`` (DER, leaf first, intermediates in any order), if it is to be
        believed at ``wall``; else ``CertificateRefused``.

        0.3 ms the first time, 1 us from then on.  A pinned certificate needs no authority and no usage, only
        its dates must be right.
        """
        if not chain:
            raise CertificateRefused(Step.FORM, "no certificate")
        known = self._checked.get((chain[0], usage))
        if known is not None and known.valid_from <= wall <= known.valid_until:
            return known
        certificate = read_certificate(chain[0])
        _check_dates(certificate, wall)
        if certificate.fingerprint in self.pins:
            authority = Authority("pinned", certificate.fingerprint, pinned=True)
            checked = CheckedCertificate(certificate, authority, certificate.not_before, certificate.not_after)
        else:
            _check_usage(certificate, usage, certificate)
            checked = self._check_chain(certificate, chain[1:], wall, usage)
        if len(chain[0]) <= _CACHED_SIZE:
            remember(self._checked, (chain[0], usage), checked, _CHECKED_CACHE_SIZE)
        return checked

    def _check_chain(
        self, certificate: DomainCertificate, others: Sequence[bytes], wall: float, usage: Usage
    ) -> CheckedCertificate:
        links = self._path(certificate, others, wall)
        # A root that is presented as a leaf has vouched for itself only.
        if len(links) < 2:
            raise _refused(Step.AUTHORITY, "an authority's own certificate", certificate)
        for issuer in links[1:]:
            _check_issuer(certificate, issuer)
            if issuer is not links[-1]:
                _check_usage(read_certificate(_der(issuer)), usage, certificate)
        until = self._check_revocation(certificate, links, wall)
        root = links[-1]
        return CheckedCertificate(
            certificate,
            Authority(root.subject.rfc4514_string()[:200], fingerprint(_der(root))),
            max(link.not_valid_before_utc.timestamp() for link in links),
            min(until, *(link.not_valid_after_utc.timestamp() for link in links)),
        )

    def _path(self, certificate: DomainCertificate, others: Sequence[bytes], wall: float) -> list[x509.Certificate]:
        """Leaf to root, signatures, dates, constraints and criticality verified (RFC 5280 section 6)."""
        if self._store is None:
            raise _refused(Step.AUTHORITY, "no authority is configured, and the certificate is not pinned", certificate)
        try:
            between = [x509.load_der_x509_certificate(der) for der in others[:MAXIMUM_INTERMEDIATES]]
            return _verifier(self._store, wall).verify(certificate.loaded, between).chain
        except VerificationError as fault:
            detail = f"no chain to a configured authority: {str(fault)[:200]}"
            if certificate.loaded.issuer == certificate.loaded.subject:
                detail = "self-signed, neither pinned nor a configured authority"
            raise _refused(Step.AUTHORITY, detail, certificate) from None
        except PARSE_FAULTS as fault:
            raise _refused(Step.FORM, f"an intermediate is not readable: {fault}", certificate) from None

    def _check_revocation(
        self, certificate: DomainCertificate, links: Sequence[x509.Certificate], wall: float
    ) -> float:
        """Whether a configured list revokes a link; when the first of the lists that were used runs out.

        An issuer without a list is not asked; a list that is out of date says nothing any more, and refuses.
        """
        until = float("inf")
        for link, issuer in zip(links, links[1:], strict=False):
            name = issuer.subject.public_bytes()
            for crl in self._lists:
                if crl.issuer != name or not _signed_by(crl.loaded, issuer):
                    continue
                if wall > crl.until:
                    detail = f"the revocation list of {issuer.subject.rfc4514_string()[:100]} is out of date"
                    raise _refused(Step.REVOKED, detail, certificate)
                if link.serial_number in crl.serials:
                    raise _refused(Step.REVOKED, f"serial number {link.serial_number:x} is revoked", certificate)
                until = min(until, crl.until)
        return until


def _refused(step: Step, detail: str, certificate: DomainCertificate) -> CertificateRefused:
    return CertificateRefused(step, detail, certificate.domain, certificate.issuer)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# What the library leaves to us where the policy is this liberal is checked beside it: keys, key usage, extended
# key usage, names.  Its own web policy would refuse a certificate without subjectAltName, every authority made
# by "openssl req -x509", and a server's certificate shown by a client.
_ISSUERS: Final = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_LEAVES: Final = ExtensionPolicy.permit_all()


def _verifier(store: Store, wall: float) -> ClientVerifier:
    time = datetime.fromtimestamp(wall, UTC).replace(tzinfo=None)
    builder = PolicyBuilder().store(store).time(time).max_chain_depth(MAXIMUM_INTERMEDIATES)
    return builder.extension_policies(ca_policy=_ISSUERS, ee_policy=_LEAVES).build_client_verifier()


def _check_dates(certificate: DomainCertificate, wall: float) -> None:
    if certificate.not_before <= wall <= certificate.not_after:
        return
    if wall < certificate.not_before:
        state = f"not valid before {certificate.loaded.not_valid_before_utc:%Y-%m-%d %H:%M:%S}Z"
    else:
        state = f"expired on {certificate.loaded.not_valid_after_utc:%Y-%m-%d %H:%M:%S}Z"
    raise _refused(Step.DATE, state, certificate)


def _check_usage(holder: DomainCertificate, usage: Usage, certificate: DomainCertificate) -> None:
    """The usages of ``holder``, ``certificate`` itself or an intermediate above it."""
    if holder.purposes is not None and not holder.purposes & usage.permitted:
        whose = "" if holder is certificate else "an intermediate's "
        detail = f"{whose}extended key usage does not permit {usage.name.lower().replace('_', ' ')}"
        raise _refused(Step.USAGE, detail, certificate)
    if holder is not certificate:
        return
    try:
        key_usage = holder.loaded.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not key_usage.digital_signature:
        raise _refused(Step.USAGE, "key usage without digitalSignature", certificate)


def _check_issuer(certificate: DomainCertificate, issuer: x509.Certificate) -> None:
    """What an issuer must be beyond the library's checks: allowed to sign, and within its name constraints."""
    _accepted_key(issuer.public_key())
    for extension in issuer.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            raise _refused(Step.AUTHORITY, "an issuer that may not sign certificates", certificate)
        if isinstance(value, x509.NameConstraints):
            _check_constraints(certificate, value)


def _check_constraints(certificate: DomainCertificate, constraints: x509.NameConstraints) -> None:
    """Constraints on DNS names apply to whatever we read as a domain: sip URIs and common names too."""
    permitted = [name.value for name in constraints.permitted_subtrees or () if isinstance(name, x509.DNSName)]
    excluded = [name.value for name in constraints.excluded_subtrees or () if isinstance(name, x509.DNSName)]
    for domain in certificate.identities(SanMatch.ANY):
        below = not permitted or any(_within(domain, tree) for tree in permitted)
        if not below or any(_within(domain, tree) for tree in excluded):
            raise _refused(Step.AUTHORITY, f"an issuer that may not name {domain}", certificate)


def _within(domain: str, tree: str) -> bool:
    tree = tree.lower().removeprefix(".")
    return not tree or domain == tree or domain.endswith("." + tree)


def _read_crl(der: bytes) -> _RevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        for extension in crl.extensions:
            if extension.critical:
                raise CertificateRefused(Step.REVOKED, "a revocation list that does not cover all of its issuer's")
        until = crl.next_update_utc.timestamp() if crl.next_update_utc is not None else float("inf")
        return _RevocationList(crl, crl.issuer.public_bytes(), frozenset(entry.serial_number for entry in crl), until)
    except CertificateRefused:
        raise
    except PARSE_FAULTS as fault:
        raise CertificateRefused(Step.REVOKED, f"not a readable revocation list: {fault}") from None


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return isinstance(key, EllipticCurvePublicKey | RSAPublicKey) and crl.is_signature_valid(key)

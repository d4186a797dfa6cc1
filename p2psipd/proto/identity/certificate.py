"""Node certificates: their form, their chain to the overlay's authority, and their roles (RFC 6940 section
11.3).

A certificate of an overlay has an empty subject and a critical subjectAltName that holds nothing but one URI
``reload://<hex Destination List>@<overlay>/`` for each Node-ID and exactly one rfc822Name, the user name.
``parse_certificate`` checks that form, ``Trust.check`` that a certificate is valid here and now, and an
``Authority`` makes certificates.

Node-IDs are plain ``bytes`` and times unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha1, sha256
from typing import Final, NamedTuple, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtensionOID, NameOID
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError

from p2psipd.proto.identity.p256 import VerifyingKey

PublicKey = EllipticCurvePublicKey | RSAPublicKey

NODE_ID_LENGTH: Final = 16
MAXIMUM_NODE_IDS: Final = 16
MAXIMUM_CERTIFICATE_SIZE: Final = 16 * 1024
MINIMUM_RSA_BITS: Final = 2048
MAXIMUM_RSA_BITS: Final = 8192
MAXIMUM_INTERMEDIATES: Final = 4
_MAXIMUM_USER_NAME: Final = 254
_MAXIMUM_OVERLAY_NAME: Final = 200
_PARSE_CACHE_SIZE: Final = 8192
_TRUST_CACHE_SIZE: Final = 8192
_URI_SCHEME: Final = "reload://"
_DESTINATION_NODE: Final = 1

_K = TypeVar("_K")
_V = TypeVar("_V")


class CertificateError(ValueError):
    """A certificate, a request or a chain is not acceptable.

    ``reason`` is one word for counters: ``form``, ``overlay``, ``date``, ``revoked``, ``chain``, ``role``,
    ``key``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Role(Enum):
    """What a certificate's user name makes of its owner.

    PEER routes and stores; REGISTRAR is a peer that also vouches for phones; PROVISIONING stores the users'
    credentials; SIGNER signs configuration documents and kinds, and is no node; USER is a person's device.
    """

    PEER = "peer"
    REGISTRAR = "registrar"
    PROVISIONING = "provisioning"
    SIGNER = "configuration"
    USER = "user"

    @property
    def routes(self) -> bool:
        """Whether such a node may Join, Update, route and store for others."""
        return self is Role.PEER or self is Role.REGISTRAR


# Names under these subdomains of the overlay are given by the authority alone, with the Node-ID before the
# "@".
_ROLE_BY_LABEL: Final = {role.value: role for role in Role if role is not Role.USER}


def role_of(user: str, overlay: str) -> Role:
    """The role that a user name stands for; anything but ``…@peer|registrar|provisioning.<overlay>`` is a
    USER.

    That the part before the "@" is the certificate's own Node-ID is a matter of the certificate's form, which
    ``parse_certificate`` checks.
    """
    label, dot, rest = user.rpartition("@")[2].partition(".")
    if dot and rest.lower() == overlay.lower():
        return _ROLE_BY_LABEL.get(label.lower(), Role.USER)
    return Role.USER


def role_name(role: Role, node_id: bytes, overlay: str) -> str:
    """The user name of a node with this role: ``<node-id-hex>@<role>.<overlay>``.  Not for Role.USER."""
    if role is Role.USER:
        raise CertificateError("role", "a user's name is its own, it does not follow from the Node-ID")
    return f"{node_id.hex()}@{role.value}.{overlay.lower()}"


class NodeCertificate:
    """A certificate whose form is right; whether it is trusted is another question (``Trust.check``).

    ``der`` and ``hash`` (SHA-256 of it) identify it, ``node_ids`` are its Node-IDs in order, ``node_id`` the
    first (nearly always the only one), ``user`` its user name, ``overlay`` the lower-case name of its overlay,
    ``role`` what the user name stands for, ``key_info`` the SubjectPublicKeyInfo of its key (DER; empty in the
    simulator), ``not_before`` and ``not_after`` unix seconds.  Equality and hash go by the DER.
    """

    __slots__ = (
        "_verifying_key",
        "der",
        "hash",
        "key_info",
        "node_id",
        "node_ids",
        "not_after",
        "not_before",
        "overlay",
        "role",
        "user",
    )

    def __init__(
        self,
        der: bytes,
        node_ids: tuple[bytes, ...],
        user: str,
        overlay: str,
        key_info: bytes,
        not_before: float,
        not_after: float,
    ) -> None:
        self.der = der
        self.hash = sha256(der).digest()
        self.node_ids = node_ids
        self.node_id = node_ids[0]
        self.user = user
        self.overlay = overlay
        self.key_info = key_info
        self.not_before = not_before
        self.not_after = not_after
        self.role = role_of(user, overlay)
        self._verifying_key: VerifyingKey | RSAPublicKey | None = None

    @property
    def public_key(self) -> PublicKey:
        """The key, read anew (10 us): one that is kept takes 2 KB."""
        return accepted_key(load_der_public_key(self.key_info))

    @property
    def verifying_key(self) -> VerifyingKey | RSAPublicKey:
        """What verifies signatures made with the certificate's key."""
        key = self._verifying_key
        if key is None:
            public_key = self.public_key
            key = public_key if isinstance(public_key, RSAPublicKey) else VerifyingKey(public_key)
            self._verifying_key = key
        return key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeCertificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"NodeCertificate({self.node_ids[0].hex()} {self.user})"


class TrustPolicy(Protocol):
    """Who decides whether a certificate belongs to this overlay: ``Trust``, or ``NullTrust`` in the
    simulator.
    """

    def check(self, der: bytes, wall: float, intermediates: Sequence[bytes] = ()) -> NodeCertificate:
        """The certificate, valid at ``wall``; else ``CertificateError``."""
        ...


_HOST: Final = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*"
_USER_NAME: Final = re.compile(rf"[!-?A-~]+@{_HOST}")
_URI: Final = re.compile(rf"reload://([0-9A-Fa-f]+)@({_HOST})/", re.IGNORECASE)
# What the reading of a hostile certificate raises.
PARSE_FAULTS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)
# The extensions that this module or the chain verification understands; another one that is critical is
# refused.
_KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
)

_parsed: dict[bytes, NodeCertificate] = {}


def parse_certificate(der: bytes) -> NodeCertificate:
    """The node certificate in ``der``, its form checked as the module's text says; results are kept by DER.

    Nothing is said about trust: neither dates nor issuer are looked at.  Raises ``CertificateError``.
    """
    known = _parsed.get(der)
    if known is not None:
        return known
    certificate = _parse(der)
    remember(_parsed, der, certificate, _PARSE_CACHE_SIZE)
    return certificate


def _parse(der: bytes) -> NodeCertificate:
    if len(der) > MAXIMUM_CERTIFICATE_SIZE:
        raise CertificateError("form", f"certificate of {len(der)} octets, at most {MAXIMUM_CERTIFICATE_SIZE}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.version is not x509.Version.v3:
            raise CertificateError("form", "not an X.509 version 3 certificate")
        # len() counts the relative distinguished names.
        if len(certificate.subject.rdns) > 0:
            raise CertificateError("form", "the subject must be empty")
        public_key = accepted_key(certificate.public_key())
        node_ids, overlay, user = _alternative_names(certificate.extensions)
        _check_leaf_constraints(certificate.extensions)
        not_before = certificate.not_valid_before_utc.timestamp()
        not_after = certificate.not_valid_after_utc.timestamp()
    except CertificateError:
        raise
    except PARSE_FAULTS as fault:
        raise CertificateError("form", f"not a readable certificate: {fault}") from None
    key_info = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    parsed = NodeCertificate(der, node_ids, user, overlay, key_info, not_before, not_after)
    if parsed.role is not Role.USER and user.lower() != role_name(parsed.role, node_ids[0], overlay):
        raise CertificateError("role", f"user name {user} does not begin with the certificate's own Node-ID")
    if parsed.role is not Role.USER and len(node_ids) != 1:
        raise CertificateError("role", f"a {parsed.role.value} certificate has one Node-ID, not {len(node_ids)}")
    return parsed


def accepted_key(key: object) -> PublicKey:
    """``key`` if it is of a kind that the overlay uses: P-256, or RSA of 2048 to 8192 bits."""
    if isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise CertificateError("key", f"curve {key.curve.name}; P-256 expected")
        return key
    if isinstance(key, RSAPublicKey):
        if not MINIMUM_RSA_BITS <= key.key_size <= MAXIMUM_RSA_BITS:
            raise CertificateError("key", f"RSA key of {key.key_size} bits; 2048 to 8192 expected")
        return key
    raise CertificateError("key", "neither an elliptic curve key on P-256 nor an RSA key")


def _alternative_names(extensions: x509.Extensions) -> tuple[tuple[bytes, ...], str, str]:
    """Node-IDs, overlay and user name of the subjectAltName (RFC 6940 section 11.3)."""
    try:
        extension = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise CertificateError("form", "no subjectAltName") from None
    if not extension.critical:
        # RFC 5280 section 4.2.1.6 demands it beside an empty subject; OpenSSL does not look.
        raise CertificateError("form", "the subject is empty, so subjectAltName must be critical")
    node_ids: list[bytes] = []
    overlays: set[str] = set()
    users: list[str] = []
    for name in extension.value:
        if isinstance(name, x509.UniformResourceIdentifier):
            node_id, overlay = parse_reload_uri(name.value)
            node_ids.append(node_id)
            overlays.add(overlay)
        elif isinstance(name, x509.RFC822Name):
            users.append(name.value)
        else:
            raise CertificateError("form", f"{type(name).__name__} in subjectAltName; only URI and rfc822Name may be")
    if not 1 <= len(node_ids) <= MAXIMUM_NODE_IDS or len(set(node_ids)) != len(node_ids):
        raise CertificateError("form", f"1 to {MAXIMUM_NODE_IDS} different Node-IDs expected, got {len(node_ids)}")
    if len(overlays) != 1:
        raise CertificateError("form", "URIs of several overlays in one certificate")
    if len(users) != 1:
        raise CertificateError("form", f"exactly one rfc822Name expected, got {len(users)}")
    return tuple(node_ids), overlays.pop(), check_user_name(users[0])


def check_user_name(user: str) -> str:
    """``user`` if it is a possible user name (visible ASCII, one "@", a host name behind it)."""
    if len(user) > _MAXIMUM_USER_NAME or not _USER_NAME.fullmatch(user):
        raise CertificateError("form", f"user name {user[:80]!r} is not of the form name@domain")
    return user


def parse_reload_uri(uri: str) -> tuple[bytes, str]:
    """Node-ID and lower-case overlay name of a RELOAD URI that names one node (RFC 6940 section 14.15)."""
    match = _URI.fullmatch(uri) if len(uri) <= 512 else None
    if match is None:
        raise CertificateError("form", f"{uri[:80]!r} is not reload://HEX@OVERLAY/")
    digits = match.group(1)
    destination = bytes.fromhex(digits) if len(digits) % 2 == 0 else b""
    if len(destination) < 2 or destination[0] != _DESTINATION_NODE or destination[1] != len(destination) - 2:
        raise CertificateError("form", f"{uri[:80]!r} does not hold one destination of type node")
    node_id = destination[2:]
    if not 16 <= len(node_id) <= 20 or node_id in (bytes(len(node_id)), b"\xff" * len(node_id)):
        raise CertificateError("form", f"{node_id.hex()} is not a Node-ID")
    return node_id, match.group(2).lower()


def reload_uri(node_id: bytes, overlay: str) -> str:
    """The URI of a node: ``reload://01<length><node-id>@<overlay>/``."""
    return f"{_URI_SCHEME}{_DESTINATION_NODE:02x}{len(node_id):02x}{node_id.hex()}@{overlay.lower()}/"


def _check_leaf_constraints(extensions: x509.Extensions) -> None:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise CertificateError("chain", "an authority's certificate, not a node's")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise CertificateError("form", "keyUsage without digitalSignature")
        if extension.critical and extension.oid not in _KNOWN_EXTENSIONS:
            raise CertificateError("form", f"critical extension {extension.oid.dotted_string} is not known")


class Trust:
    """Decides which certificates are valid in one overlay under one configuration document.

    ``roots`` are the DER of the root certificates, ``revoked`` the Node-IDs of ``bad-node`` (they revoke
    every certificate that holds them, RFC 6940 section 11.1), ``self_signed_digest`` is "sha1" or "sha256"
    where the document permits self-signed certificates (section 11.3.1).  Immutable: a new document makes a
    new ``Trust``. Good results are kept by DER for as long as the whole chain is valid.
    """

    __slots__ = ("_self_signed_digest", "_store", "_valid", "node_id_length", "overlay_name", "revoked")

    def __init__(
        self,
        roots: Iterable[bytes],
        overlay_name: str,
        revoked: Iterable[bytes] = (),
        *,
        self_signed_digest: str | None = None,
        node_id_length: int = NODE_ID_LENGTH,
    ) -> None:
        loaded = [load_root(der) for der in roots]
        if self_signed_digest not in (None, "sha1", "sha256"):
            raise CertificateError("form", f"digest {self_signed_digest}; sha1 or sha256 expected")
        if not loaded and self_signed_digest is None:
            raise CertificateError("chain", "no root certificate, and self-signed certificates are not permitted")
        self._store = Store(loaded) if loaded else None
        self._self_signed_digest = self_signed_digest
        self.overlay_name = overlay_name.lower()
        self.revoked = frozenset(revoked)
        self.node_id_length = node_id_length
        self._valid: dict[bytes, tuple[NodeCertificate, float, float]] = {}

    def check(self, der: bytes, wall: float, intermediates: Sequence[bytes] = ()) -> NodeCertificate:
        """The certificate, if it is valid in this overlay at ``wall``; else ``CertificateError``.

        ``intermediates`` are the DER of authorities between it and a root (those that came along in a
        SecurityBlock or handshake).  About 0.12 ms the first time, 1 us from then on.
        """
        known = self._valid.get(der)
        if known is not None and known[1] <= wall <= known[2]:
            return known[0]
        certificate = parse_certificate(der)
        if certificate.overlay != self.overlay_name:
            raise CertificateError("overlay", f"a certificate of overlay {certificate.overlay}")
        for node_id in certificate.node_ids:
            if len(node_id) != self.node_id_length:
                raise CertificateError("form", f"Node-ID of {len(node_id)} octets, {self.node_id_length} expected")
            if node_id in self.revoked:
                raise CertificateError("revoked", f"Node-ID {node_id.hex()} is revoked")
        if not certificate.not_before <= wall <= certificate.not_after:
            state = "not yet valid" if wall < certificate.not_before else "expired"
            raise CertificateError("date", f"the certificate of {certificate.user} is {state}")
        loaded = x509.load_der_x509_certificate(der)
        if self._self_signed_digest is not None and loaded.issuer == loaded.subject:
            self._check_self_signed(certificate, loaded)
            valid_from, valid_until = certificate.not_before, certificate.not_after
        else:
            valid_from, valid_until = self._check_chain(loaded, wall, intermediates)
        remember(self._valid, der, (certificate, valid_from, valid_until), _TRUST_CACHE_SIZE)
        return certificate

    def _check_chain(self, leaf: x509.Certificate, wall: float, intermediates: Sequence[bytes]) -> tuple[float, float]:
        """Verify up to a root; the time within which every certificate of the chain is valid."""
        if self._store is None:
            raise CertificateError("chain", "only self-signed certificates are accepted in this overlay")
        verifier = _verifier(self._store, wall)
        try:
            between = [x509.load_der_x509_certificate(der) for der in intermediates[:MAXIMUM_INTERMEDIATES]]
            chain = verifier.verify(leaf, between).chain
        except VerificationError as fault:
            raise CertificateError("chain", f"no chain to a root of {self.overlay_name}: {fault}") from None
        except PARSE_FAULTS as fault:
            raise CertificateError("form", f"an intermediate certificate is not readable: {fault}") from None
        return (
            max(link.not_valid_before_utc.timestamp() for link in chain),
            min(link.not_valid_after_utc.timestamp() for link in chain),
        )

    def _check_self_signed(self, certificate: NodeCertificate, loaded: x509.Certificate) -> None:
        """Node-ID = high-order bits of the digest of SubjectPublicKeyInfo (RFC 6940 section 11.3.1)."""
        if certificate.role not in (Role.PEER, Role.USER):
            # Anyone may choose a name here, and these names carry rights over other people's records.
            raise CertificateError("role", f"a self-signed certificate cannot be a {certificate.role.value}'s")
        try:
            loaded.verify_directly_issued_by(loaded)
        except (InvalidSignature, *PARSE_FAULTS):
            raise CertificateError("chain", "the certificate's signature over itself is wrong") from None
        assert self._self_signed_digest is not None
        expected = self_signed_node_ids(
            certificate.public_key, len(certificate.node_ids), self._self_signed_digest, self.node_id_length
        )
        if expected != certificate.node_ids:
            raise CertificateError("key", "the Node-ID is not the digest of the public key")


def _verifier(store: Store, wall: float) -> ClientVerifier:
    time = datetime.fromtimestamp(wall, UTC).replace(tzinfo=None)
    return PolicyBuilder().store(store).time(time).max_chain_depth(MAXIMUM_INTERMEDIATES).build_client_verifier()


def remember(cache: dict[_K, _V], key: _K, value: _V, size: int) -> None:
    """Put ``value`` into a cache of at most ``size`` entries; the oldest entry makes room."""
    if len(cache) >= size and key not in cache:
        del cache[next(iter(cache))]
    cache[key] = value


def load_root(der: bytes) -> x509.Certificate:
    """A root certificate; ``CertificateError`` unless it is an authority's (basicConstraints, keyUsage)."""
    try:
        root = x509.load_der_x509_certificate(der)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise CertificateError("chain", "a root certificate without basicConstraints") from None
    except PARSE_FAULTS as fault:
        raise CertificateError("form", f"not a readable root certificate: {fault}") from None
    if not constraints.ca:
        raise CertificateError("chain", "a root certificate that is not an authority's")
    return root


def self_signed_node_ids(
    public_key: PublicKey, count: int, digest: str, length: int = NODE_ID_LENGTH
) -> tuple[bytes, ...]:
    """The Node-IDs of a self-signed certificate (RFC 6940 section 11.3.1): one plain, several with an index
    before.
    """
    hash_function = sha1 if digest == "sha1" else sha256
    info = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if count == 1:
        return (hash_function(info).digest()[:length],)
    return tuple(hash_function(index.to_bytes(4, "big") + info).digest()[:length] for index in range(1, count + 1))


# ---- what makes certificates ----

# All are signed deterministically (RFC 6979): the same keys and times give the same octets, so that a
# simulation with real certificates replays from its seed.

DAY: Final = 86_400
MAXIMUM_LIFETIME: Final = 30 * DAY
# A clock that is set back by an hour does not make what was issued just now invalid.
_BACKDATED_FOR: Final = 7_200


class CertificateRequest(NamedTuple):
    """What a PKCS#10 request asks for: a certificate for ``public_key`` under the user name ``user``."""

    public_key: PublicKey
    user: str


class Authority:
    """An overlay's certificate authority: its certificate (DER) and private key, and ``issue``."""

    __slots__ = ("_loaded", "certificate", "overlay_name", "private_key")

    def __init__(self, certificate: bytes, private_key: EllipticCurvePrivateKey, overlay_name: str) -> None:
        self.certificate = certificate
        self.private_key = private_key
        self.overlay_name = overlay_name.lower()
        self._loaded = load_root(certificate)
        if self._loaded.public_key() != private_key.public_key():
            raise CertificateError("key", "the authority's private key does not belong to its certificate")

    def issue(
        self,
        public_key: PublicKey,
        node_id: bytes,
        user: str,
        wall: float,
        lifetime_seconds: float = MAXIMUM_LIFETIME,
    ) -> bytes:
        """A node's certificate (DER), valid from two hours before ``wall`` for at most 30 days from it.

        The caller draws ``node_id`` so that nobody can foresee it (RFC 6940 section 11.3).  Names under the
        reserved subdomains must be those of ``role_name``.  A signer of configuration documents works offline
        and its certificate must outlive the documents: it may be given any lifetime.  ``CertificateError`` on
        a bad name, Node-ID, key or lifetime.
        """
        limit = MAXIMUM_LIFETIME if role_of(user, self.overlay_name) is not Role.SIGNER else float("inf")
        if not 0 < lifetime_seconds <= limit:
            raise CertificateError("date", f"lifetime {lifetime_seconds:.0f} s; a node's is 1 s to {limit:.0f} s")
        check_user_name(user)
        accepted_key(public_key)
        names = [
            x509.UniformResourceIdentifier(reload_uri(node_id, self.overlay_name)),
            x509.RFC822Name(user),
        ]
        der = self._sign(public_key, names, wall, lifetime_seconds)
        # What we issue must pass our own judgement: a wrong Node-ID or name is found here and not at the
        # other end.
        return parse_certificate(der).der

    def _sign(
        self, public_key: PublicKey, names: list[x509.GeneralName], wall: float, lifetime_seconds: float
    ) -> bytes:
        agrees = isinstance(public_key, EllipticCurvePublicKey)
        authority_key = self._loaded.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._loaded.subject)
            .public_key(public_key)
            .serial_number(_serial_number(public_key, repr(names).encode(), wall))
            .not_valid_before(_date(wall - _BACKDATED_FOR))
            .not_valid_after(_date(wall + lifetime_seconds))
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True, key_agreement=agrees), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False
            )
        )
        return builder.sign(self.private_key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def create_authority(
    overlay_name: str,
    wall: float,
    private_key: EllipticCurvePrivateKey | None = None,
    lifetime_seconds: float = 3650 * DAY,
) -> Authority:
    """A new authority for an overlay, with a self-signed root certificate.

    Without ``private_key`` a fresh P-256 key is drawn from the operating system: this is a provisioning tool,
    called by commands and tests, never by a core.
    """
    overlay_name = overlay_name.lower()
    if not re.fullmatch(_HOST, overlay_name) or len(overlay_name) > _MAXIMUM_OVERLAY_NAME:
        raise CertificateError("form", f"{overlay_name[:80]!r} is not a DNS name, so it cannot name an overlay")
    key = generate_private_key() if private_key is None else private_key
    common_name = f"{overlay_name} authority"[-64:]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(_serial_number(key.public_key(), overlay_name.encode(), wall))
        .not_valid_before(_date(wall - _BACKDATED_FOR))
        .not_valid_after(_date(wall + lifetime_seconds))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256(), ecdsa_deterministic=True)
    )
    return Authority(certificate.public_bytes(Encoding.DER), key, overlay_name)


def self_signed_certificate(
    private_key: EllipticCurvePrivateKey,
    user: str,
    overlay_name: str,
    wall: float,
    *,
    digest: str = "sha256",
    lifetime_seconds: float = MAXIMUM_LIFETIME,
) -> bytes:
    """A self-generated certificate with one Node-ID, the digest of its key (RFC 6940 section 11.3.1), as
    DER.
    """
    public_key = private_key.public_key()
    (node_id,) = self_signed_node_ids(public_key, 1, digest)
    names = [
        x509.UniformResourceIdentifier(reload_uri(node_id, overlay_name)),
        x509.RFC822Name(check_user_name(user)),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(public_key)
        .serial_number(_serial_number(public_key, user.encode(), wall))
        .not_valid_before(_date(wall - _BACKDATED_FOR))
        .not_valid_after(_date(wall + lifetime_seconds))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_agreement=True), critical=True)
        .sign(private_key, SHA256(), ecdsa_deterministic=True)
    )
    return parse_certificate(certificate.public_bytes(Encoding.DER)).der


def generate_private_key() -> EllipticCurvePrivateKey:
    """A fresh P-256 key from the operating system's randomness; for commands and tests, never for a core."""
    return ec.generate_private_key(SECP256R1())


def create_request(private_key: EllipticCurvePrivateKey, user: str) -> bytes:
    """A PKCS#10 request (DER) for ``user``: empty subject, the name as the only rfc822Name (RFC 6940 section
    11.3).
    """
    names = x509.SubjectAlternativeName([x509.RFC822Name(check_user_name(user))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(private_key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def read_request(der: bytes) -> CertificateRequest:
    """What a PKCS#10 request asks for.

    Its signature must be right, its subject empty, and its subjectAltName (critical or not) must hold exactly
    one rfc822Name.  Node-IDs that it proposes are ignored: the server draws them.  ``CertificateError``,
    whose reason is "user" for a name that cannot be and anything else for a bad request (the RFC's
    username_not_available, bad_CSR).
    """
    if len(der) > MAXIMUM_CERTIFICATE_SIZE:
        raise CertificateError("form", f"request of {len(der)} octets, at most {MAXIMUM_CERTIFICATE_SIZE}")
    try:
        request = x509.load_der_x509_csr(der)
        public_key = accepted_key(request.public_key())
        if not request.is_signature_valid:
            raise CertificateError("form", "the request's signature is wrong")
        if len(request.subject.rdns) > 0:
            raise CertificateError("form", "the request's subject must be empty")
        names = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except CertificateError:
        raise
    except x509.ExtensionNotFound:
        raise CertificateError("form", "the request has no subjectAltName") from None
    except PARSE_FAULTS as fault:
        raise CertificateError("form", f"not a readable request: {fault}") from None
    users = [name.value for name in names if isinstance(name, x509.RFC822Name)]
    others = [name for name in names if not isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier)]
    if others or len(users) != 1:
        raise CertificateError("form", "the request must name exactly one rfc822Name, and nothing but URIs beside it")
    try:
        return CertificateRequest(public_key, check_user_name(users[0]))
    except CertificateError as fault:
        raise CertificateError("user", fault.detail) from None


def _serial_number(public_key: PublicKey, names: bytes, wall: float) -> int:
    """126 bits that differ for every key, name and time: as unique as drawn ones, and they need no
    randomness.
    """
    info = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = sha256(info + names + repr(wall).encode()).digest()
    return int.from_bytes(digest[:16], "big") >> 2 | 1


def _date(wall: float) -> datetime:
    return datetime.fromtimestamp(int(wall), UTC)


def _key_usage(
    *,
    digital_signature: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )

"""Signatures with a node's key, and their verification (RFC 6940 section 6.3.4).

The algorithm numbers are those of TLS 1.2 (RFC 5246 section 7.4.1.4.1), as RELOAD carries them.  We sign with
ECDSA on P-256 and SHA-256, and verify that and RSASSA-PKCS1-v1_5 with SHA-256, the RFC's mandatory algorithm;
anything else does not verify.  What octets are signed is the business of ``proto.reload.security``.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate
from p2psipd.proto.identity.p256 import SigningKey, VerifyingKey

HASH_SHA256: Final = 4
SIGNATURE_RSA: Final = 1
SIGNATURE_ECDSA: Final = 3

PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey

_SHA256: Final = SHA256()
_RSA_PADDING: Final = PKCS1v15()


class SignatureValue(NamedTuple):
    """A signature and its algorithms, ready for RELOAD's Signature structure."""

    hash_algorithm: int
    signature_algorithm: int
    value: bytes


class Signer(Protocol):
    """Something that signs as one node: ``Credential``, or ``NullCredential`` in the simulator."""

    certificate: NodeCertificate

    def sign(self, data: bytes) -> SignatureValue:
        """The signature over ``data``."""
        ...


class Verifier(Protocol):
    """What verifies a signature: ``RealVerifier``, or ``NullVerifier`` in the simulator."""

    def verify(
        self,
        certificate: NodeCertificate,
        hash_algorithm: int,
        signature_algorithm: int,
        data: bytes,
        signature: bytes,
    ) -> bool:
        """Whether ``signature`` over ``data`` was made with the key of ``certificate``."""
        ...


class Credential:
    """A certificate with its private key; ``CertificateError`` if they do not belong together."""

    __slots__ = ("_signing_key", "certificate", "private_key")

    def __init__(self, certificate: NodeCertificate, private_key: PrivateKey) -> None:
        if certificate.public_key != private_key.public_key():
            raise CertificateError(
                "key", f"the private key does not belong to the certificate of {certificate.user}"
            )
        self.certificate = certificate
        #: For TLS and for unwrapping keys.
        self.private_key = private_key
        self._signing_key = private_key if isinstance(private_key, RSAPrivateKey) else SigningKey(private_key)

    def sign(self, data: bytes) -> SignatureValue:
        """The signature over ``data``: ECDSA (20 us) for a P-256 key, PKCS#1 v1.5 for an RSA key."""
        key = self._signing_key
        if isinstance(key, SigningKey):
            return SignatureValue(HASH_SHA256, SIGNATURE_ECDSA, key.sign(data))
        return SignatureValue(HASH_SHA256, SIGNATURE_RSA, key.sign(data, _RSA_PADDING, _SHA256))


def verify(
    certificate: NodeCertificate,
    hash_algorithm: int,
    signature_algorithm: int,
    data: bytes,
    signature: bytes,
) -> bool:
    """Whether ``signature`` over ``data`` was made with the key of ``certificate``; 65 us for P-256.

    False as well for an algorithm that is not accepted or does not fit the key.  Never raises.
    """
    if hash_algorithm != HASH_SHA256 or not certificate.key_info:
        return False
    key = certificate.verifying_key
    if isinstance(key, VerifyingKey):
        return signature_algorithm == SIGNATURE_ECDSA and key.verify(data, signature)
    if signature_algorithm != SIGNATURE_RSA:
        return False
    try:
        key.verify(signature, data, _RSA_PADDING, _SHA256)
    except InvalidSignature:
        return False
    return True


class RealVerifier:
    """Verifies with the keys of the certificates."""

    __slots__ = ()

    def verify(
        self,
        certificate: NodeCertificate,
        hash_algorithm: int,
        signature_algorithm: int,
        data: bytes,
        signature: bytes,
    ) -> bool:
        """See the function ``verify``."""
        return verify(certificate, hash_algorithm, signature_algorithm, data, signature)


# ---- for the simulator: the same sizes on the wire, no cryptography ----

NULL_SIGNATURE: Final = b"\x00null signature".ljust(71, b"\x00")
_NULL_MAGIC: Final = b"\x00null certificate"
_NULL_LAYOUT: Final = Struct(">dd16sBB")
# As long as a certificate that our authority issues to a peer.
_NULL_CERTIFICATE_SIZE: Final = 430


class NullCredential:
    """Signs without cryptography: 71 octets that say nothing.  Only a ``NullVerifier`` accepts them."""

    __slots__ = ("certificate",)

    def __init__(self, certificate: NodeCertificate) -> None:
        self.certificate = certificate

    def sign(self, data: bytes) -> SignatureValue:
        """The same octets whatever ``data`` is."""
        return SignatureValue(HASH_SHA256, SIGNATURE_ECDSA, NULL_SIGNATURE)


class NullVerifier:
    """Accepts exactly what a ``NullCredential`` makes, so that an altered signature is noticed in a
    simulation too.
    """

    __slots__ = ()

    def verify(
        self,
        certificate: NodeCertificate,
        hash_algorithm: int,
        signature_algorithm: int,
        data: bytes,
        signature: bytes,
    ) -> bool:
        """Whether ``signature`` is the null signature."""
        return signature == NULL_SIGNATURE


def null_certificate(
    node_id: bytes, user: str, overlay: str, not_before: float = 0.0, not_after: float = 4e9
) -> NodeCertificate:
    """A certificate for the simulator: its "DER" is 430 octets that ``NullTrust`` reads, it has no key."""
    user_octets, overlay_octets = user.encode(), overlay.lower().encode()
    head = _NULL_MAGIC + _NULL_LAYOUT.pack(
        not_before, not_after, node_id, len(user_octets), len(overlay_octets)
    )
    der = (head + user_octets + overlay_octets).ljust(_NULL_CERTIFICATE_SIZE, b"\x00")
    return NodeCertificate(der, (node_id,), user, overlay.lower(), b"", not_before, not_after)


class NullTrust:
    """``Trust`` for the simulator: accepts what ``null_certificate`` makes, if overlay, dates and bad-node
    allow it.
    """

    __slots__ = ("_known", "overlay_name", "revoked")

    def __init__(self, overlay_name: str, revoked: frozenset[bytes] = frozenset()) -> None:
        self.overlay_name = overlay_name.lower()
        self.revoked = revoked
        self._known: dict[bytes, NodeCertificate] = {}

    def check(self, der: bytes, wall: float, intermediates: Sequence[bytes] = ()) -> NodeCertificate:
        """The certificate in ``der``; ``CertificateError`` as from ``Trust.check``."""
        certificate = self._known.get(der)
        if certificate is None:
            certificate = self._known[der] = _read_null_certificate(der)
        if certificate.overlay != self.overlay_name:
            raise CertificateError("overlay", f"a certificate of overlay {certificate.overlay}")
        if certificate.node_id in self.revoked:
            raise CertificateError("revoked", f"Node-ID {certificate.node_id.hex()} is revoked")
        if not certificate.not_before <= wall <= certificate.not_after:
            raise CertificateError("date", f"the certificate of {certificate.user} is not valid now")
        return certificate


def _read_null_certificate(der: bytes) -> NodeCertificate:
    offset = len(_NULL_MAGIC)
    if not der.startswith(_NULL_MAGIC) or len(der) < offset + _NULL_LAYOUT.size:
        raise CertificateError("form", "not a certificate of the simulator")
    not_before, not_after, node_id, user_length, overlay_length = _NULL_LAYOUT.unpack_from(der, offset)
    offset += _NULL_LAYOUT.size
    user = der[offset : offset + user_length].decode("ascii", "replace")
    overlay = der[offset + user_length : offset + user_length + overlay_length].decode("ascii", "replace")
    return NodeCertificate(der, (node_id,), user, overlay, b"", not_before, not_after)

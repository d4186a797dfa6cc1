"""Signing what we send and checking what we get: the security block of whole messages (RFC 6940 section 6.3.4)."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, TrustPolicy, remember
from p2psipd.proto.reload.errors import Forbidden
from p2psipd.proto.reload.security import (
    CERT_HASH,
    HASH_SHA256,
    X509,
    SecurityBlock,
    SignerIdentity,
    message_signature_input,
)
from p2psipd.proto.reload.wire import ForwardingHeader, MessageContents

if TYPE_CHECKING:
    from p2psipd.proto.identity.signing import Signer, Verifier

_U16 = Struct(">H")
_CERTIFICATE = Struct(">BH")
_HASHES_KEPT = 2048


class Sealer:
    """Builds signed messages with one credential; what never changes between messages is prepared once."""

    def __init__(self, credential: Signer, overlay_hash: int) -> None:
        certificate = credential.certificate
        self.credential = credential
        self._overlay_hash = overlay_hash
        self.identity = SignerIdentity(CERT_HASH, HASH_SHA256, certificate.hash)
        self._identity_octets = self.identity.encode()
        self._own = _CERTIFICATE.pack(X509, len(certificate.der)) + certificate.der
        self._own_block = _U16.pack(len(self._own)) + self._own

    def seal(self, header: ForwardingHeader, code: int, body: bytes, certificates: Iterable[bytes] = ()) -> bytes:
        """The whole message.  `certificates` (DER) travel beside our own for what is signed inside the body."""
        contents = MessageContents(code, body).encode()
        data = message_signature_input(self._overlay_hash, header.transaction_id, contents, self._identity_octets)
        hash_algorithm, signature_algorithm, value = self.credential.sign(data)
        block = self._block(certificates) if certificates else self._own_block
        tail = b"".join(
            (
                contents,
                block,
                bytes((hash_algorithm, signature_algorithm)),
                self._identity_octets,
                _U16.pack(len(value)),
                value,
            )
        )
        return header.encode(len(tail)) + tail


    def _block(self, certificates: Iterable[bytes]) -> bytes:
        own = self.credential.certificate.der
        others = b"".join([_CERTIFICATE.pack(X509, len(der)) + der for der in certificates if der != own])
        return _U16.pack(len(self._own) + len(others)) + self._own + others if others else self._own_block


class Opener:
    """Checks the signature and the signer's certificate of a message."""

    def __init__(self, trust: TrustPolicy, verifier: Verifier, overlay_hash: int) -> None:
        self.trust = trust
        self.verifier = verifier
        self._overlay_hash = overlay_hash
        self._hashes: dict[bytes, bytes] = {}

    def by_hash(self, certificates: Iterable[bytes]) -> dict[bytes, bytes]:
        """SHA-256 -> DER.  The hashes of certificates seen before are kept: nearly all come again and again."""
        found: dict[bytes, bytes] = {}
        for der in certificates:
            digest = self._hashes.get(der)
            if digest is None:
                digest = sha256(der).digest()
                remember(self._hashes, der, digest, _HASHES_KEPT)
            found[digest] = der
        return found

    def open(
        self, transaction_id: int, contents: bytes, block: SecurityBlock, wall: float
    ) -> tuple[NodeCertificate, dict[bytes, bytes]]:
        """The signer, and SHA-256 -> DER of all certificates in the block.

        :raises Forbidden: no certificate of the signer, one that is not trusted, or a wrong signature.
        """
        signature = block.signature
        identity = signature.identity
        if identity.type != CERT_HASH or identity.hash_algorithm != HASH_SHA256:
            # Several Node-IDs in one certificate (type 2) are never issued in our overlays.
            raise Forbidden("the signer is not identified by the SHA-256 hash of its certificate")
        certificates = self.by_hash(block.certificates)
        der = certificates.get(identity.certificate_hash)
        if der is None:
            raise Forbidden("the signer's certificate is not in the message")
        try:
            signer = self.trust.check(der, wall)
        except CertificateError as error:
            raise Forbidden(f"the signer's certificate: {error}") from None
        data = message_signature_input(self._overlay_hash, transaction_id, contents, identity.encode())
        if not self.verifier.verify(
            signer, signature.hash_algorithm, signature.signature_algorithm, data, signature.value
        ):
            raise Forbidden("the message's signature is wrong")
        return signer, certificates

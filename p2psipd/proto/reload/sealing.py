"""Signing what we send and checking what we get: the security block of whole messages (RFC 6940 section 6.3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING

from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, TrustPolicy, remember
from p2psipd.proto.reload.errors import Forbidden, MessageTooLarge
from p2psipd.proto.reload.security import (
    CERT_HASH,
    HASH_SHA256,
    X509,
    SignerIdentity,
    message_signature_input,
)
from p2psipd.proto.reload.wire import ForwardingHeader, MessageContents, decode_contents

if TYPE_CHECKING:
    from p2psipd.proto.identity.signing import Signer, Verifier

_U16 = Struct(">H")
_CERTIFICATE = Struct(">BH")
_CODE_LENGTH = Struct(">HI")
_NO_EXTENSIONS = bytes(4)
_EXTENSIONS_BUCKET = Struct(">IH")
_SIGNATURE = Struct(">BB37sH")
_BY_SHA256 = bytes((CERT_HASH, 0, 34, HASH_SHA256, 32))
_KNOWN_CERTIFICATES = 2048
_KNOWN_OCTETS = 2048  # honest certificates are shorter

_Parts = tuple[MessageContents, bytes, bytes, int, int, bytes, Mapping[bytes, bytes]]
"""Contents, their octets, SignerIdentity, the two algorithms and the value of the signature, certificates by hash."""


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
        sealed = self.seal_contents(header.transaction_id, code, body, certificates)
        return header.encode(len(sealed)) + sealed

    def seal_contents(
        self, transaction_id: int, code: int, body: bytes, certificates: Iterable[bytes] = ()
    ) -> bytes:
        """What follows the header: of that, the signature covers the transaction id alone.

        :raises MessageTooLarge: more certificates than a security block has room for.
        """
        contents = _CODE_LENGTH.pack(code, len(body)) + body + _NO_EXTENSIONS
        data = message_signature_input(self._overlay_hash, transaction_id, contents, self._identity_octets)
        hash_algorithm, signature_algorithm, value = self.credential.sign(data)
        block = self._block(certificates) if certificates else self._own_block
        return b"".join(
            (
                contents,
                block,
                bytes((hash_algorithm, signature_algorithm)),
                self._identity_octets,
                _U16.pack(len(value)),
                value,
            )
        )

    def _block(self, certificates: Iterable[bytes]) -> bytes:
        own = self.credential.certificate.der
        others = b"".join([_CERTIFICATE.pack(X509, len(der)) + der for der in certificates if der != own])
        if len(self._own) + len(others) > 0xFFFF:
            raise MessageTooLarge(f"{len(others)} bytes of certificates")
        return _U16.pack(len(self._own) + len(others)) + self._own + others if others else self._own_block


class Opener:
    """Checks the signature and the signer's certificate of a message.

    Nearly all messages have no extensions, and certificates that came before: `_known_form` reads these quickly.
    """

    def __init__(self, trust: TrustPolicy, verifier: Verifier, overlay_hash: int) -> None:
        self.trust = trust
        self.verifier = verifier
        self._overlay_hash = overlay_hash
        # DER -> its SHA-256, and the DER again: looking up an object that was looked up before is quicker.
        self._known: dict[bytes, tuple[bytes, bytes]] = {}

    def by_hash(self, certificates: Iterable[bytes]) -> dict[bytes, bytes]:
        """SHA-256 -> DER."""
        found: dict[bytes, bytes] = {}
        for der in certificates:
            digest, same = self._known.get(der) or (sha256(der).digest(), der)
            found[digest] = same
        return found

    def open(
        self, transaction_id: int, data: bytes, offset: int, wall: float
    ) -> tuple[MessageContents, NodeCertificate, Mapping[bytes, bytes]]:
        """What follows the header of a whole message: its contents, its signer, and SHA-256 -> DER of all
        certificates in its security block.

        :raises InvalidMessage: it is malformed.
        :raises Forbidden: no certificate of the signer, one that is not trusted, or a wrong signature.
        """
        known = self._known_form(data, offset)
        contents, octets, identity, hash_algorithm, signature_algorithm, value, certificates = (
            known or self._any_form(data, offset)
        )
        der = certificates.get(identity[5:])
        if der is None:
            raise Forbidden("the signer's certificate is not in the message")
        try:
            signer = self.trust.check(der, wall)
        except CertificateError as error:
            raise Forbidden(f"the signer's certificate: {error}") from None
        signed = message_signature_input(self._overlay_hash, transaction_id, octets, identity)
        if not self.verifier.verify(signer, hash_algorithm, signature_algorithm, signed, value):
            raise Forbidden("the message's signature is wrong")
        if known is None:
            for digest, der in certificates.items():
                if len(der) <= _KNOWN_OCTETS:
                    remember(self._known, der, (digest, der), _KNOWN_CERTIFICATES)
        return contents, signer, certificates

    def _known_form(self, data: bytes, offset: int) -> _Parts | None:
        """The parts of a message of the usual form with known certificates, None for any other."""
        known_certificates = self._known
        certificates: dict[bytes, bytes] = {}
        try:
            code, length = _CODE_LENGTH.unpack_from(data, offset)
            body_end = offset + 6 + length
            extensions, size = _EXTENSIONS_BUCKET.unpack_from(data, body_end)
            position = body_end + 6
            signature_at = position + size
            if extensions or not 0 < code < 0x8000:
                return None
            while position < signature_at:
                kind, size = _CERTIFICATE.unpack_from(data, position)
                start = position + 3
                position = start + size
                known = known_certificates.get(data[start:position])
                if known is None or kind != X509:
                    return None
                certificates[known[0]] = known[1]
            hash_algorithm, signature_algorithm, identity, size = _SIGNATURE.unpack_from(data, signature_at)
        except StructError:
            return None
        value = data[signature_at + 41 :]
        if position != signature_at or len(value) != size or not identity.startswith(_BY_SHA256):
            return None
        octets = data[offset : body_end + 4]
        contents = MessageContents(code, octets[6:-4])
        return contents, octets, identity, hash_algorithm, signature_algorithm, value, certificates

    def _any_form(self, data: bytes, offset: int) -> _Parts:
        contents, octets, block = decode_contents(data, offset)
        hash_algorithm, signature_algorithm, identity, value = block.signature
        if identity.type != CERT_HASH or identity.hash_algorithm != HASH_SHA256:
            # Several Node-IDs in one certificate (type 2) are never issued in our overlays.
            raise Forbidden("the signer is not identified by the SHA-256 hash of its certificate")
        certificates = self.by_hash(block.certificates)
        return contents, octets, identity.encode(), hash_algorithm, signature_algorithm, value, certificates

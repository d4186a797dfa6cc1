"""Signatures and the security block (RFC 6940 sections 6.3.4 and 7.1): what is signed, but no keys.

Readings of the RFC, where it leaves a choice:

- ``resource_id`` in a value's signature input is a ResourceId as it travels, so it carries its length octet.
- The SignerIdentity in either input is the whole structure, with its type and length octets.
- An unknown identity type or certificate type makes the message unreadable: nothing could be verified with
  it.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from p2psipd.proto.octets import OctetsError, Reader, opaque8
from p2psipd.proto.reload.errors import InvalidMessage

# HashAlgorithm and SignatureAlgorithm of the TLS registries (RFC 5246 section 7.4.1.4.1).
HASH_NONE: Final = 0
HASH_SHA1: Final = 2
HASH_SHA256: Final = 4
HASH_SHA384: Final = 5
HASH_SHA512: Final = 6
SIGNATURE_ANONYMOUS: Final = 0
SIGNATURE_RSA: Final = 1
SIGNATURE_ECDSA: Final = 3

# SignerIdentityType
CERT_HASH: Final = 1
CERT_HASH_NODE_ID: Final = 2
IDENTITY_NONE: Final = 3

# CertificateType of RFC 6091
X509: Final = 0

_IDENTITY = Struct(">BH")
_IDENTITY_HASH = Struct(">BHBB")
_ALGORITHM_IDENTITY = Struct(">BBBH")
_SIGNATURE = Struct(">BBBHBB")
_CERT_HASH_SHA256 = Struct(">BBBHBB32sH")
_CERT_HASH_SIZE: Final = _CERT_HASH_SHA256.size
_SIGNATURE_NONE = Struct(">BBBH")
_CERTIFICATE = Struct(">BH")
_U16 = Struct(">H")
_VALUE_INPUT = Struct(">IQ")
_MESSAGE_INPUT = Struct(">IQ")


class SignerIdentity(NamedTuple):
    """Who signed (section 6.3.4).

    ``type`` is CERT_HASH (hash of the DER), CERT_HASH_NODE_ID (hash of Node-ID and DER), or IDENTITY_NONE, for
    which the hash algorithm is 0 and the hash is empty.
    """

    type: int
    hash_algorithm: int
    certificate_hash: bytes

    def encode(self) -> bytes:
        """The whole structure, type and length included, as it also enters signature inputs."""
        try:
            if self.type == IDENTITY_NONE:
                return b"\x03\x00\x00"
            digest = self.certificate_hash
            return _IDENTITY_HASH.pack(self.type, 2 + len(digest), self.hash_algorithm, len(digest)) + digest
        except StructError as error:
            raise InvalidMessage(f"signer identity does not fit: {error}") from None


class Signature(NamedTuple):
    """A signature with its algorithms (TLS numbers), the signer's identity, and its value."""

    hash_algorithm: int
    signature_algorithm: int
    identity: SignerIdentity
    value: bytes

    def encode(self) -> bytes:
        """The structure as it follows a stored value or ends a message."""
        hash_algorithm, signature_algorithm, identity, value = self
        try:
            identity_type, identity_hash, digest = identity
            size = len(digest)
            if identity_type == CERT_HASH and size == 32:  # nearly always
                head = _CERT_HASH_SHA256.pack(
                    hash_algorithm, signature_algorithm, CERT_HASH, 34, identity_hash, 32, digest, len(value)
                )
                return head + value
            if identity_type == IDENTITY_NONE:
                head = _SIGNATURE_NONE.pack(hash_algorithm, signature_algorithm, IDENTITY_NONE, 0)
            else:
                head = _SIGNATURE.pack(
                    hash_algorithm, signature_algorithm, identity_type, 2 + size, identity_hash, size
                )
                return b"".join((head, digest, _U16.pack(len(value)), value))
            return head + _U16.pack(len(value)) + value
        except StructError as error:
            raise InvalidMessage(f"signature does not fit: {error}") from None


NO_IDENTITY: Final = SignerIdentity(IDENTITY_NONE, HASH_NONE, b"")
# What a storing peer puts beside a value that it knows nothing of (RFC 6940 section 7.4.2.2).
NO_SIGNATURE: Final = Signature(HASH_NONE, SIGNATURE_ANONYMOUS, NO_IDENTITY, b"")


class SecurityBlock(NamedTuple):
    """The third part of a message: X.509 certificates (DER) and the message's signature."""

    certificates: tuple[bytes, ...]
    signature: Signature

    def encode(self) -> bytes:
        """The block as it ends a message."""
        try:
            bucket = b"".join([_CERTIFICATE.pack(X509, len(der)) + der for der in self.certificates])
            return _U16.pack(len(bucket)) + bucket + self.signature.encode()
        except StructError as error:
            raise InvalidMessage(f"certificates do not fit in a security block: {error}") from None


def read_signature(reader: Reader) -> Signature:
    """Read a Signature; raises ``OctetsError``, the calling decoder turns it into ``InvalidMessage``."""
    data, position, end = reader.data, reader.position, reader.end
    value_at = position + _CERT_HASH_SIZE
    if value_at <= end:
        hash_algorithm, signature_algorithm, kind, length, identity_hash, size, digest, value_size = (
            _CERT_HASH_SHA256.unpack_from(data, position)
        )
        stop = value_at + value_size
        if kind == CERT_HASH and length == 34 and size == 32 and stop <= end:  # nearly always, so without detours
            reader.position = stop
            identity = SignerIdentity(CERT_HASH, identity_hash, digest)
            return Signature(hash_algorithm, signature_algorithm, identity, data[value_at:stop])
    return _read_other_signature(reader)


def _read_other_signature(reader: Reader) -> Signature:
    hash_algorithm, signature_algorithm, identity_type, length = reader.unpack(_ALGORITHM_IDENTITY)
    if identity_type == CERT_HASH or identity_type == CERT_HASH_NODE_ID:
        stop = reader.position + length
        identity_hash = reader.u8()
        identity = SignerIdentity(identity_type, identity_hash, reader.opaque8())
        reader.expect(stop)
    elif identity_type == IDENTITY_NONE:
        if length:
            raise OctetsError("a signer identity of type none is not empty")
        identity = NO_IDENTITY
    else:
        raise OctetsError(f"unknown signer identity type {identity_type}")
    return Signature(hash_algorithm, signature_algorithm, identity, reader.opaque16())


def read_security_block(reader: Reader) -> SecurityBlock:
    """Read a SecurityBlock; raises ``OctetsError``, the calling decoder turns it into ``InvalidMessage``."""
    stop = reader.list16()
    certificates = []
    while reader.position < stop:
        certificate_type, length = reader.unpack(_CERTIFICATE)
        if certificate_type != X509:
            raise OctetsError(f"unknown certificate type {certificate_type}")
        certificates.append(reader.take(length))
    reader.expect(stop)
    return SecurityBlock(tuple(certificates), read_signature(reader))


def value_signature_input(
    resource: bytes, kind: int, storage_time: int, encoded_value: bytes, identity: bytes
) -> bytes:
    """What the signer of a stored value signs (RFC 6940 section 7.1).

    ``encoded_value`` is the StoredDataValue's octets, for an array entry with its index set to zero
    (``ArrayEntry.encode_for_signature``); ``identity`` is ``SignerIdentity.encode()``.
    """
    try:
        return b"".join((opaque8(resource), _VALUE_INPUT.pack(kind, storage_time), encoded_value, identity))
    except (OctetsError, StructError) as error:
        raise InvalidMessage(f"signature input does not fit: {error}") from None


def message_signature_input(
    overlay_hash: int, transaction_id: int, contents: bytes, identity: bytes
) -> bytes:
    """What the originator of a message signs (RFC 6940 section 6.3.4).

    ``contents`` is the MessageContents' octets as they travel; ``identity`` is ``SignerIdentity.encode()``.
    """
    try:
        return _MESSAGE_INPUT.pack(overlay_hash, transaction_id) + contents + identity
    except StructError as error:
        raise InvalidMessage(f"signature input does not fit: {error}") from None

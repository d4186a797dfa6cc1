"""A second reading of RFC 6940: decodes a RELOAD message and checks its signatures, sharing nothing with p2psipd.

Only what the signatures need is decoded. Chains, validity dates and permissions are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

RELO_TOKEN = bytes.fromhex("d2454c4f")
VERSION_1_0 = 0x0A
FRAGMENTED = 0x80000000
LAST_FRAGMENT = 0x40000000
FRAGMENT_OFFSET = 0x00FFFFFF

STORE_REQ, FETCH_REQ, FETCH_ANS = 0x7, 0x9, 0xA

X509_CERTIFICATE = 0  # CertificateType, RFC 6091
CERT_HASH, NO_SIGNER = 1, 3  # SignerIdentityType, section 6.3.4
HASHES = {4: hashes.SHA256(), 5: hashes.SHA384(), 6: hashes.SHA512()}  # HashAlgorithm, RFC 5246
RSA, ECDSA = 1, 3  # SignatureAlgorithm, RFC 5246


class Model(Enum):
    """How the values of a kind are laid out (section 7.2)."""

    SINGLE = "single value"
    ARRAY = "array"
    DICTIONARY = "dictionary"


IANA_KINDS: Mapping[int, Model] = {
    0x1: Model.DICTIONARY,  # SIP-REGISTRATION, RFC 7904
    0x2: Model.SINGLE,  # TURN-SERVICE
    0x3: Model.ARRAY,  # CERTIFICATE_BY_NODE
    0x10: Model.ARRAY,  # CERTIFICATE_BY_USER
}


class MalformedError(Exception):
    """The octets are not what the RFC's structures allow."""


class RefusedError(Exception):
    """A signature does not stand, or its signer is unknown."""


class Reader:
    """Takes fields off the front of some octets."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.position = 0

    @property
    def left(self) -> int:
        """How many octets were not taken yet."""
        return len(self._octets) - self.position

    def take(self, count: int) -> bytes:
        """The next `count` octets."""
        if count > self.left:
            raise MalformedError(f"{count} octets wanted at {self.position}, {self.left} left")
        self.position += count
        return self._octets[self.position - count : self.position]

    def number(self, width: int) -> int:
        """An unsigned integer of `width` octets."""
        return int.from_bytes(self.take(width), "big")

    def opaque(self, width: int) -> bytes:
        """A vector after its length of `width` octets, without that length."""
        return self.take(self.number(width))

    def inside(self, width: int) -> Reader:
        """A reader of the vector that stands after its length of `width` octets."""
        return Reader(self.opaque(width))

    def boolean(self) -> bool:
        """A Boolean, which is 0 or 1 (section 6.3.1.1)."""
        value = self.number(1)
        if value > 1:
            raise MalformedError(f"{value} is no Boolean")
        return value == 1

    def since(self, start: int) -> bytes:
        """What was taken from position `start` on."""
        return self._octets[start : self.position]

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise MalformedError(f"{self.left} octets too many")


@dataclass(frozen=True)
class Signature:
    """A Signature structure (section 6.3.4); `identity` is the SignerIdentity as it travels."""

    hash_algorithm: int
    signature_algorithm: int
    identity: bytes
    value: bytes


@dataclass(frozen=True)
class Header:
    """The forwarding header's fixed part (section 6.3.2) and what follows header and lists."""

    overlay: bytes
    transaction_id: bytes
    fragment: int
    rest: bytes


@dataclass(frozen=True)
class Message:
    """What the signature of a whole message is about; `contents` is MessageContents as it travels."""

    overlay: bytes
    transaction_id: bytes
    code: int
    body: bytes
    contents: bytes
    certificates: tuple[bytes, ...]
    signature: Signature

    def signed(self) -> bytes:
        """The input to the message's signature (section 6.3.4)."""
        return self.overlay + self.transaction_id + self.contents + self.signature.identity


@dataclass(frozen=True)
class StoredValue:
    """A StoredData at its place; `entry` is StoredDataValue as it is signed, an array's index set to zero."""

    resource: bytes
    kind: bytes
    storage_time: bytes
    lifetime: bytes
    model: Model
    index: int | None
    exists: bool
    entry: bytes
    signature: Signature

    def signed(self) -> bytes:
        """The input to the value's signature (section 7.1); the Resource-ID keeps its length octet (6.3.1.1)."""
        resource_id = bytes([len(self.resource)]) + self.resource
        return resource_id + self.kind + self.storage_time + self.entry + self.signature.identity

    @property
    def synthesized(self) -> bool:
        """Whether this is the unsigned answer for a value that does not exist (section 7.4.2.2)."""
        unsigned = Signature(0, 0, bytes([NO_SIGNER, 0, 0]), b"")
        return not self.exists and self.signature == unsigned


@dataclass
class Verdict:
    """The certificates (DER) of those who signed a message and each of its values; None: synthesized."""

    signer: bytes
    values: list[bytes | None] = field(default_factory=list)


def decode_header(octets: bytes) -> Header:
    """Decode the forwarding header of a message or fragment (section 6.3.2)."""
    reader = Reader(octets)
    if reader.take(4) != RELO_TOKEN:
        raise MalformedError("no RELOAD message")
    overlay = reader.take(4)
    reader.take(2)  # configuration_sequence
    if reader.number(1) != VERSION_1_0:
        raise MalformedError("another version")
    reader.take(1)  # ttl
    fragment = reader.number(4)
    if not fragment & FRAGMENTED:
        raise MalformedError("the high bit of fragment is clear")
    if reader.number(4) != len(octets):
        raise MalformedError("length is not that of the message")
    transaction_id = reader.take(8)
    reader.take(4)  # max_response_length
    lists = [reader.number(2) for _ in ("via list", "destination list", "options")]
    reader.take(sum(lists))
    return Header(overlay, transaction_id, fragment, reader.take(reader.left))


def decode(octets: bytes) -> Message:
    """Decode a whole message (sections 6.3.2 to 6.3.4)."""
    header = decode_header(octets)
    if not header.fragment & LAST_FRAGMENT or header.fragment & FRAGMENT_OFFSET:
        raise MalformedError("a fragment")
    return _decode_rest(header)


def join(fragments: Sequence[bytes]) -> Message:
    """Decode the message whose fragments these are, in any order (section 6.7)."""
    headers = sorted(map(decode_header, fragments), key=lambda header: header.fragment & FRAGMENT_OFFSET)
    rest = b""
    for header in headers:
        if (header.overlay, header.transaction_id) != (headers[0].overlay, headers[0].transaction_id):
            raise MalformedError("fragments of several messages")
        if header.fragment & FRAGMENT_OFFSET != len(rest):
            raise MalformedError("a gap between fragments")
        if bool(header.fragment & LAST_FRAGMENT) != (header is headers[-1]):
            raise MalformedError("the last fragment is not marked so")
        rest += header.rest
    return _decode_rest(replace(headers[0], rest=rest))


def _decode_rest(header: Header) -> Message:
    reader = Reader(header.rest)
    code = reader.number(2)
    body = reader.opaque(4)
    extensions = reader.inside(4)
    contents = reader.since(0)
    while extensions.left:
        extensions.take(2)
        extensions.boolean()
        extensions.opaque(4)
    certificates = []
    bucket = reader.inside(2)
    while bucket.left:
        if bucket.number(1) != X509_CERTIFICATE:
            raise MalformedError("a certificate that is not X.509")
        certificates.append(bucket.opaque(2))
    signature = _decode_signature(reader)
    reader.end()
    return Message(header.overlay, header.transaction_id, code, body, contents, tuple(certificates), signature)


def _decode_signature(reader: Reader) -> Signature:
    hash_algorithm, signature_algorithm = reader.number(1), reader.number(1)
    start = reader.position
    reader.take(1)
    reader.opaque(2)
    return Signature(hash_algorithm, signature_algorithm, reader.since(start), reader.opaque(2))


def resource_of(message: Message) -> bytes:
    """The Resource-ID, without its length, that a Store or Fetch request is about (sections 7.4.1.1, 7.4.2.1)."""
    if message.code not in (STORE_REQ, FETCH_REQ):
        raise MalformedError(f"a message of code {message.code} names no Resource-ID")
    return Reader(message.body).opaque(1)


def stored_values(
    message: Message, models: Mapping[int, Model] = IANA_KINDS, request: Message | None = None
) -> list[StoredValue]:
    """The values in a Store request (7.4.1.1) or Fetch answer (7.4.2.2), which needs its request; else none."""
    body = Reader(message.body)
    if message.code == STORE_REQ:
        resource = body.opaque(1)
        body.take(1)  # replica_number
    elif message.code == FETCH_ANS:
        if request is None or request.code != FETCH_REQ or request.transaction_id != message.transaction_id:
            raise MalformedError("a Fetch answer names no Resource-ID: its request is needed")
        resource = resource_of(request)
    else:
        return []
    values = []
    kinds = body.inside(4)
    body.end()
    while kinds.left:
        kind = kinds.take(4)
        model = models.get(int.from_bytes(kind, "big"))
        if model is None:
            raise MalformedError(f"the data model of kind {kind.hex()} is not known")
        kinds.take(8)  # generation
        several = kinds.inside(4)
        while several.left:
            values.append(_decode_stored_data(several.inside(4), resource, kind, model))
    return values


def _decode_stored_data(reader: Reader, resource: bytes, kind: bytes, model: Model) -> StoredValue:
    storage_time, lifetime = reader.take(8), reader.take(4)
    index, start = None, reader.position
    if model is Model.ARRAY:
        index = reader.number(4)
        start = reader.position
    elif model is Model.DICTIONARY:
        reader.opaque(2)
    exists = reader.boolean()
    reader.opaque(4)
    entry = reader.since(start)
    if model is Model.ARRAY:
        entry = bytes(4) + entry
    signature = _decode_signature(reader)
    reader.end()
    return StoredValue(resource, kind, storage_time, lifetime, model, index, exists, entry, signature)


def signer_of(signature: Signature, certificates: Sequence[bytes]) -> bytes:
    """The one of the certificates (DER) that the SignerIdentity is the hash of (section 6.3.4)."""
    reader = Reader(signature.identity)
    identity_type = reader.number(1)
    identity = reader.inside(2)
    reader.end()
    if identity_type != CERT_HASH:
        raise RefusedError(f"identity type {identity_type} is not cert_hash")
    algorithm = HASHES.get(identity.number(1))
    if algorithm is None:
        raise RefusedError("the hash of the certificate is of an unknown kind")
    wanted = identity.opaque(1)
    identity.end()
    for certificate in certificates:
        digest = hashes.Hash(algorithm)
        digest.update(certificate)
        if digest.finalize() == wanted:
            return certificate
    raise RefusedError("the signer's certificate is not there")


def verify(signature: Signature, certificate: bytes, signed: bytes) -> None:
    """Refuse unless the certificate's key made the signature over the input `signed`."""
    algorithm = HASHES.get(signature.hash_algorithm)
    if algorithm is None:
        raise RefusedError(f"hash algorithm {signature.hash_algorithm}")
    key = x509.load_der_x509_certificate(certificate).public_key()
    try:
        if signature.signature_algorithm == ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature.value, signed, ec.ECDSA(algorithm))
        elif signature.signature_algorithm == RSA and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.value, signed, padding.PKCS1v15(), algorithm)
        else:
            raise RefusedError(f"signature algorithm {signature.signature_algorithm} and the signer's key differ")
    except InvalidSignature:
        raise RefusedError("the signature does not verify") from None


def check(message: Message, models: Mapping[int, Model] = IANA_KINDS, request: Message | None = None) -> Verdict:
    """Check the message's signature and that of every stored value in it."""
    verdict = Verdict(signer_of(message.signature, message.certificates))
    verify(message.signature, verdict.signer, message.signed())
    for value in stored_values(message, models, request):
        verdict.values.append(check_value(message, value))
    return verdict


def check_value(message: Message, value: StoredValue) -> bytes | None:
    """The certificate (DER) of who signed a value in the message; None: synthesized, as only an answer may be."""
    if message.code == FETCH_ANS and value.synthesized:
        return None
    signer = signer_of(value.signature, message.certificates)
    verify(value.signature, signer, value.signed())
    return signer

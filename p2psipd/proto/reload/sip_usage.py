"""The values that the SIP usage stores: registrations, and the users' digest credentials.

SipRegistration is RFC 7904 section 3.2.  The others belong to private kinds of ours; all their structures
begin like SipRegistration, with a type and a length, so that a reader can tell what it does not know.  In TLS
presentation language (RFC 6940 section 6.3.1)::

    struct { uint8 type; uint32 length; select (type) {
        case binding(1):
            opaque      aor<1..2^16-1>;                    UTF-8, without "sip:"
            Destination destination_list<3..2^16-1>;       the owning peer
            opaque      contact<1..2^16-1>;                the Contact URI
            opaque      path_uri<0..2^16-1>  path<0..2^16-1>;
            uint16      q;                                 thousandths, 0 to 1000
            opaque      instance_id<0..2^16-1>;            empty: none
            uint32      reg_id;                            0: none
            opaque      call_id<0..2^16-1>;
            uint32      cseq;
            uint64      expires_at;                        unix seconds
            Parameter   parameters<0..2^16-1>;             the Contact's other parameters
            Extension   extensions<0..2^16-1>;             for what is not invented yet
        case alias(2):
            opaque      aor<1..2^16-1>;                    the name that stands for
            opaque      target<1..2^16-1>;                 this AOR
            Extension   extensions<0..2^16-1>;
    } } ProxyRegistration;

    struct { opaque name<1..2^8-1>; Boolean has_value; opaque value<0..2^16-1>; } Parameter;
    struct { uint16 type; opaque value<0..2^16-1>; } Extension;

    struct { uint32 epoch; opaque nonce[12]; opaque ciphertext<16..2^16-1>; } DigestCredential;
    struct { uint8 algorithm; opaque ha1<1..2^8-1>; } HashedPassword; HashedPassword plaintext<0..2^16-1>;
    struct { uint32 epoch; opaque ephemeral_key<65>; opaque wrapped_key<40>; } DigestKey;

A decoder raises ``InvalidMessage`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from hashlib import md5, sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512_256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2psipd.proto.octets import OctetsError, Reader, opaque8, opaque16, opaque32, u8, u16, u32, u64
from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.wire import Destination, read_destination

MAXIMUM_Q: Final = 1000


# ---- SIP-REGISTRATION (RFC 7904) ----


class SipRegistrationUri(NamedTuple):
    """To reach me, look up this AOR (sip_registration_uri): ``uri`` is an AOR."""

    uri: str

    def encode(self) -> bytes:
        """The whole SipRegistration; ``InvalidMessage`` if something does not fit."""
        return _sip_registration(_URI, _opaque_text(self.uri))


class SipRegistrationRoute(NamedTuple):
    """To reach me, connect to this node (sip_registration_route).

    ``contact_prefs`` is a contact predicate of RFC 3840 as text, ``destination_list`` has at least one entry.
    """

    contact_prefs: str
    destination_list: tuple[Destination, ...]

    def encode(self) -> bytes:
        """The whole SipRegistration; ``InvalidMessage`` if something does not fit."""
        return _sip_registration(_ROUTE, _opaque_text(self.contact_prefs) + _write_destinations(self.destination_list))


SipRegistration = SipRegistrationUri | SipRegistrationRoute


def decode_sip_registration(data: bytes) -> SipRegistration:
    """Read a SipRegistration (RFC 7904 section 3.2); an unknown type is ``InvalidMessage`` as well."""
    try:
        reader = Reader(data)
        registration_type = reader.u8()
        stop = reader.list16()
        registration: SipRegistration
        if registration_type == _URI:
            registration = SipRegistrationUri(_text(reader.opaque16()))
        elif registration_type == _ROUTE:
            registration = SipRegistrationRoute(_text(reader.opaque16()), _read_destinations(reader))
        else:
            raise InvalidMessage(f"SipRegistration: type {registration_type} is not known")
        reader.expect(stop)
        reader.expect_end()
    except OctetsError as error:
        raise InvalidMessage(f"SipRegistration: {error}") from None
    return registration


_URI: Final = 1
_ROUTE: Final = 2


def _sip_registration(registration_type: int, data: bytes) -> bytes:
    try:
        return u8(registration_type) + opaque16(data)
    except OctetsError as error:
        raise InvalidMessage(f"SipRegistration: {error}") from None


# ---- PROXY-REGISTRATION ----

_BINDING: Final = 1
_ALIAS: Final = 2
BINDING_KEY_LENGTH: Final = 16
# An alias has a key of another length, so that a removal, which has no value, still says what it removes.
_ALIAS_KEY_PREFIX: Final = b"\x02"


class ProxyRegistration(NamedTuple):
    """One binding of a conventional phone, vouched for by a registrar peer.

    ``aor`` is without "sip:"; ``destination_list`` leads to the owning peer; ``contact`` and ``path`` are
    URIs as text; ``q`` is in thousandths; ``reg_id`` 0 and ``instance_id`` "" mean none; ``expires_at`` is
    unix seconds; ``parameters`` are the Contact's other parameters with their values, None for one without
    "="; ``extensions`` are (type, octets) of later inventions, kept as they came.
    """

    aor: str
    destination_list: tuple[Destination, ...]
    contact: str
    path: tuple[str, ...] = ()
    q: int = MAXIMUM_Q
    instance_id: str = ""
    reg_id: int = 0
    call_id: str = ""
    cseq: int = 0
    expires_at: int = 0
    parameters: tuple[tuple[str, str | None], ...] = ()
    extensions: tuple[tuple[int, bytes], ...] = ()

    @property
    def key(self) -> bytes:
        """The dictionary key of this binding."""
        return binding_key(self.contact, self.instance_id, self.reg_id)

    def encode(self) -> bytes:
        """The value as it is stored; ``InvalidMessage`` if something does not fit or is missing."""
        if not self.aor or not self.contact or not 0 <= self.q <= MAXIMUM_Q:
            raise InvalidMessage("ProxyRegistration: an AOR, a Contact and q of 0 to 1000 thousandths are needed")
        try:
            body = b"".join(
                (
                    _opaque_text(self.aor),
                    _write_destinations(self.destination_list),
                    _opaque_text(self.contact),
                    opaque16(b"".join([_opaque_text(uri) for uri in self.path])),
                    u16(self.q),
                    _opaque_text(self.instance_id),
                    u32(self.reg_id),
                    _opaque_text(self.call_id),
                    u32(self.cseq),
                    u64(self.expires_at),
                    opaque16(b"".join([_parameter(name, value) for name, value in self.parameters])),
                    _write_extensions(self.extensions),
                )
            )
            return u8(_BINDING) + opaque32(body)
        except OctetsError as error:
            raise InvalidMessage(f"ProxyRegistration: {error}") from None


class ProxyAlias(NamedTuple):
    """A name or number that stands for an AOR; stored by the provisioning side."""

    aor: str
    target: str
    extensions: tuple[tuple[int, bytes], ...] = ()

    @property
    def key(self) -> bytes:
        """The dictionary key of this alias."""
        return alias_key(self.target)

    def encode(self) -> bytes:
        """The value as it is stored; ``InvalidMessage`` if something does not fit or is missing."""
        if not self.aor or not self.target:
            raise InvalidMessage("ProxyAlias: a name and its target are needed")
        try:
            body = _opaque_text(self.aor) + _opaque_text(self.target) + _write_extensions(self.extensions)
            return u8(_ALIAS) + opaque32(body)
        except OctetsError as error:
            raise InvalidMessage(f"ProxyAlias: {error}") from None


def binding_key(contact: str, instance_id: str = "", reg_id: int = 0) -> bytes:
    """The dictionary key of a binding: 128 bits of SHA-256 over instance-id and reg-id, else over the Contact
    URI.

    With an instance-id the octets are ``instance-id;reg-id`` with the number in decimal (0 without one), so
    that a phone that registers again from another address replaces its binding (RFC 5626 section 6).
    """
    identity = f"{instance_id};{reg_id}" if instance_id else contact
    return sha256(identity.encode("utf-8", "surrogateescape")).digest()[:BINDING_KEY_LENGTH]


def alias_key(target: str) -> bytes:
    """The dictionary key of an alias: 17 octets, a 2 and 128 bits of SHA-256 over its target."""
    return _ALIAS_KEY_PREFIX + sha256(target.encode("utf-8", "surrogateescape")).digest()[:BINDING_KEY_LENGTH]


def is_alias_key(key: bytes) -> bool:
    """Whether a dictionary key of PROXY-REGISTRATION is an alias's."""
    return len(key) == BINDING_KEY_LENGTH + 1 and key.startswith(_ALIAS_KEY_PREFIX)


def decode_proxy_registration(data: bytes) -> ProxyRegistration | ProxyAlias:
    """Read a value of PROXY-REGISTRATION; ``InvalidMessage`` for anything malformed or of unknown type."""
    try:
        reader = Reader(data)
        registration_type = reader.u8()
        stop = reader.list32()
        registration: ProxyRegistration | ProxyAlias
        if registration_type == _BINDING:
            registration = _read_binding(reader)
        elif registration_type == _ALIAS:
            aor, target = _text(reader.opaque16()), _text(reader.opaque16())
            registration = ProxyAlias(aor, target, _read_extensions(reader))
            if not aor or not target:
                raise InvalidMessage("ProxyRegistration: an alias without name or target")
        else:
            raise InvalidMessage(f"ProxyRegistration: type {registration_type} is not known")
        reader.expect(stop)
        reader.expect_end()
    except OctetsError as error:
        raise InvalidMessage(f"ProxyRegistration: {error}") from None
    return registration


class RegistrationClaim(NamedTuple):
    """What a value of PROXY-REGISTRATION says of where it belongs: all that its access policy asks."""

    is_alias: bool
    aor: str
    key: bytes


def read_claim(data: bytes) -> RegistrationClaim:
    """The AOR and the dictionary key that a value demands; ``InvalidMessage`` if its fields do not fill it.

    Every holder and every reader asks this of every value, so it steps over the fields that do not matter here;
    ``decode_proxy_registration`` looks into those.
    """
    claim: RegistrationClaim | None = None
    try:
        stop = 5 + int.from_bytes(data[1:5], "big")
        aor = 7 + (data[5] << 8 | data[6])  # where this opaque<0..2^16-1> ends, and so on
        if data[0] == _ALIAS:
            target = aor + 2 + (data[aor] << 8 | data[aor + 1])
            position = target + 2 + (data[target] << 8 | data[target + 1])
            if target > aor + 2:
                key = _ALIAS_KEY_PREFIX + _hashed(data[aor + 2 : target])
                claim = RegistrationClaim(True, _text(data[7:aor]), key)
        elif data[0] == _BINDING:
            destinations = aor + 2 + (data[aor] << 8 | data[aor + 1])
            contact = destinations + 2 + (data[destinations] << 8 | data[destinations + 1])
            q = contact + 2 + (data[contact] << 8 | data[contact + 1])
            instance = q + 4 + (data[q + 2] << 8 | data[q + 3])
            call_id = instance + 6 + (data[instance + 4] << 8 | data[instance + 5])
            parameters = call_id + 14 + (data[call_id + 12] << 8 | data[call_id + 13])
            position = parameters + 2 + (data[parameters] << 8 | data[parameters + 1])
            if destinations > aor + 2 and contact > destinations + 2:
                identity = data[destinations + 2 : contact]
                if instance > q + 4:
                    reg_id = int.from_bytes(data[instance : instance + 4], "big")
                    identity = b"%b;%d" % (data[q + 4 : instance], reg_id)
                claim = RegistrationClaim(False, _text(data[7:aor]), _hashed(identity))
        else:
            raise InvalidMessage(f"ProxyRegistration: type {data[0]} is not known")
    except IndexError:
        stop = position = -1
    if claim is None or not claim.aor or not position == stop == len(data):
        raise InvalidMessage("ProxyRegistration: a field is missing, cut off, or followed by octets too many")
    return claim


def _hashed(identity: bytes) -> bytes:
    return sha256(identity).digest()[:BINDING_KEY_LENGTH]


def _read_binding(reader: Reader) -> ProxyRegistration:
    aor = _text(reader.opaque16())
    destinations = _read_destinations(reader)
    contact = _text(reader.opaque16())
    path = []
    stop = reader.list16()
    while reader.position < stop:
        path.append(_text(reader.opaque16()))
    reader.expect(stop)
    q = reader.u16()
    if not aor or not contact or q > MAXIMUM_Q:
        raise InvalidMessage("ProxyRegistration: no AOR, no Contact, or q beyond 1000 thousandths")
    instance_id, reg_id = _text(reader.opaque16()), reader.u32()
    call_id, cseq, expires_at = _text(reader.opaque16()), reader.u32(), reader.u64()
    parameters: list[tuple[str, str | None]] = []
    stop = reader.list16()
    while reader.position < stop:
        name, has_value, value = _text(reader.opaque8()), reader.boolean(), _text(reader.opaque16())
        if not name or (value and not has_value):
            raise InvalidMessage("ProxyRegistration: a parameter without a name, or with a value it does not have")
        parameters.append((name, value if has_value else None))
    reader.expect(stop)
    return ProxyRegistration(
        aor, destinations, contact, tuple(path), q, instance_id, reg_id, call_id, cseq, expires_at,
        tuple(parameters), _read_extensions(reader),
    )  # fmt: skip


def _parameter(name: str, value: str | None) -> bytes:
    if not name:
        raise InvalidMessage("ProxyRegistration: a parameter without a name")
    return opaque8(_octets(name)) + u8(value is not None) + _opaque_text(value or "")


def _write_extensions(extensions: Sequence[tuple[int, bytes]]) -> bytes:
    return opaque16(b"".join([u16(extension_type) + opaque16(value) for extension_type, value in extensions]))


def _read_extensions(reader: Reader) -> tuple[tuple[int, bytes], ...]:
    extensions = []
    stop = reader.list16()
    while reader.position < stop:
        extensions.append((reader.u16(), reader.opaque16()))
    reader.expect(stop)
    return tuple(extensions)


# ---- DIGEST-CREDENTIAL ----


class DigestAlgorithm(IntEnum):
    """The digest algorithms of RFC 8760, with our numbers for them: for "alice" as authentication user name, and for
    "alice@realm".
    """

    MD5 = 1
    SHA_256 = 2
    SHA_512_256 = 3
    MD5_OF_AOR = 17
    SHA_256_OF_AOR = 18
    SHA_512_256_OF_AOR = 19


EPOCH_KEY_LENGTH: Final = 32
NONCE_LENGTH: Final = 12
_HA1_LENGTH: Final = {each: 16 if each.name.startswith("MD5") else 32 for each in DigestAlgorithm}


class DigestCredential(NamedTuple):
    """A user's HA1 values, encrypted under the key of ``epoch``."""

    epoch: int
    nonce: bytes
    ciphertext: bytes

    def encode(self) -> bytes:
        """The value as it is stored; ``InvalidMessage`` if something does not fit."""
        if len(self.nonce) != NONCE_LENGTH:
            raise InvalidMessage(f"DigestCredential: nonce of {len(self.nonce)} octets, {NONCE_LENGTH} expected")
        try:
            return u32(self.epoch) + self.nonce + opaque16(self.ciphertext)
        except OctetsError as error:
            raise InvalidMessage(f"DigestCredential: {error}") from None

    @classmethod
    def decode(cls, data: bytes) -> DigestCredential:
        """Read a value of DIGEST-CREDENTIAL; ``InvalidMessage`` for anything malformed."""
        try:
            reader = Reader(data)
            credential = cls(reader.u32(), reader.take(NONCE_LENGTH), reader.opaque16())
            reader.expect_end()
        except OctetsError as error:
            raise InvalidMessage(f"DigestCredential: {error}") from None
        return credential


def hashed_passwords(username: str, realm: str, password: str) -> dict[DigestAlgorithm, bytes]:
    """H(username ":" realm ":" password) under each algorithm, as raw octets (RFC 7616 section 3.4.2), and the same
    for the username with "@" and the realm behind it: phones write either.
    """
    made = {}
    for name, first in ((username, DigestAlgorithm.MD5), (f"{username}@{realm}", DigestAlgorithm.MD5_OF_AOR)):
        text = f"{name}:{realm}:{password}".encode("utf-8", "surrogateescape")
        truncated = Hash(SHA512_256())
        truncated.update(text)
        hashes = (md5(text, usedforsecurity=False).digest(), sha256(text).digest(), truncated.finalize())
        made.update({DigestAlgorithm(first + index): ha1 for index, ha1 in enumerate(hashes)})
    return made


def seal(
    epoch_key: bytes,
    epoch: int,
    nonce: bytes,
    resource: ResourceId,
    kind: int,
    passwords: Mapping[DigestAlgorithm, bytes],
) -> DigestCredential:
    """Encrypt HA1 values with AES-256-GCM, bound to resource, kind and epoch.

    ``nonce`` is 12 octets that are never used twice with this key: the caller draws them.
    """
    plaintext = opaque16(b"".join([u8(algorithm) + opaque8(ha1) for algorithm, ha1 in sorted(passwords.items())]))
    ciphertext = _cipher(epoch_key).encrypt(_nonce(nonce), plaintext, _associated_data(resource, kind, epoch))
    return DigestCredential(epoch, nonce, ciphertext)


def open_credential(
    credential: DigestCredential, epoch_key: bytes, resource: ResourceId, kind: int
) -> dict[DigestAlgorithm, bytes]:
    """The HA1 values that ``seal`` encrypted; algorithms that are not known here are left out.

    ``InvalidMessage`` if it was sealed under another key or for another resource, kind or epoch.
    """
    associated = _associated_data(resource, kind, credential.epoch)
    try:
        plaintext = _cipher(epoch_key).decrypt(_nonce(credential.nonce), credential.ciphertext, associated)
    except InvalidTag:
        raise InvalidMessage("DigestCredential: does not open with the key of its epoch") from None
    passwords = {}
    try:
        reader = Reader(plaintext)
        stop = reader.list16()
        while reader.position < stop:
            number, ha1 = reader.u8(), reader.opaque8()
            if number in _HA1_LENGTH:
                algorithm = DigestAlgorithm(number)
                if len(ha1) != _HA1_LENGTH[algorithm]:
                    raise InvalidMessage(f"DigestCredential: {algorithm.name} value of {len(ha1)} octets")
                passwords[algorithm] = ha1
        reader.expect(stop)
        reader.expect_end()
    except OctetsError as error:
        raise InvalidMessage(f"DigestCredential: {error}") from None
    return passwords


def derive_key(epoch_key: bytes, purpose: str) -> bytes:
    """A 256-bit key that every registrar of the epoch can derive, for one ``purpose``.

    "digest nonce" signs the nonces of digest challenges, "route token" those of Record-Route.
    """
    return HKDF(SHA256(), 32, None, b"p2psipd " + purpose.encode()).derive(epoch_key)


def _cipher(epoch_key: bytes) -> AESGCM:
    if len(epoch_key) != EPOCH_KEY_LENGTH:
        raise InvalidMessage(f"an epoch key has {EPOCH_KEY_LENGTH} octets, not {len(epoch_key)}")
    return AESGCM(epoch_key)


def _nonce(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_LENGTH:
        raise InvalidMessage(f"a nonce has {NONCE_LENGTH} octets, not {len(nonce)}")
    return nonce


def _associated_data(resource: bytes, kind: int, epoch: int) -> bytes:
    try:
        return opaque8(resource) + u32(kind) + u32(epoch)
    except OctetsError as error:
        raise InvalidMessage(f"DigestCredential: {error}") from None


# ---- DIGEST-KEY ----


class DigestKey(NamedTuple):
    """The key of ``epoch``, wrapped so that one registrar alone can unwrap it.

    ``ephemeral_key`` is an uncompressed P-256 point (65 octets), ``wrapped_key`` RFC 3394's 40 octets.
    """

    epoch: int
    ephemeral_key: bytes
    wrapped_key: bytes

    def encode(self) -> bytes:
        """The value as it is stored; ``InvalidMessage`` if something does not fit."""
        try:
            return u32(self.epoch) + opaque8(self.ephemeral_key) + opaque8(self.wrapped_key)
        except OctetsError as error:
            raise InvalidMessage(f"DigestKey: {error}") from None

    @classmethod
    def decode(cls, data: bytes) -> DigestKey:
        """Read a value of DIGEST-KEY; ``InvalidMessage`` for anything malformed."""
        try:
            reader = Reader(data)
            key = cls(reader.u32(), reader.opaque8(), reader.opaque8())
            reader.expect_end()
        except OctetsError as error:
            raise InvalidMessage(f"DigestKey: {error}") from None
        return key


def digest_key_resource(overlay_name: str) -> ResourceId:
    """Where the wrapped keys of an overlay are stored: H("digest-key." overlay)."""
    return resource_id(digest_key_name(overlay_name))


def digest_key_name(overlay_name: str) -> str:
    """The Resource Name of DIGEST-KEY in an overlay."""
    return f"digest-key.{overlay_name.lower()}"


def digest_key_entry(node_id: bytes, epoch: int) -> bytes:
    """The dictionary key of one registrar's wrapped key: Node-ID and epoch.

    With the epoch in it the keys of two epochs stand side by side while the credentials are encrypted anew.
    """
    try:
        return node_id + u32(epoch)
    except OctetsError as error:
        raise InvalidMessage(f"DigestKey: {error}") from None


def wrap_epoch_key(
    epoch_key: bytes,
    epoch: int,
    node_id: bytes,
    public_key: object,
    ephemeral: EllipticCurvePrivateKey,
) -> DigestKey:
    """Wrap an epoch's key for the registrar ``node_id``, whose certificate holds ``public_key`` on P-256.

    ECDH with the ``ephemeral`` key (the caller draws a fresh one for each registrar), HKDF-SHA256 bound to
    Node-ID and epoch, AES key wrap (RFC 3394).  ``InvalidMessage`` for another kind of key.
    """
    if not isinstance(public_key, EllipticCurvePublicKey) or not isinstance(public_key.curve, SECP256R1):
        raise InvalidMessage("DigestKey: a registrar needs a key on P-256 to be given the epoch's key")
    if len(epoch_key) != EPOCH_KEY_LENGTH:
        raise InvalidMessage(f"an epoch key has {EPOCH_KEY_LENGTH} octets, not {len(epoch_key)}")
    wrapping_key = _wrapping_key(ephemeral.exchange(ECDH(), public_key), node_id, epoch)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return DigestKey(epoch, point, aes_key_wrap(wrapping_key, epoch_key))


def unwrap_epoch_key(key: DigestKey, node_id: bytes, private_key: object) -> bytes:
    """The epoch's key (32 octets) with the registrar's own private key; ``InvalidMessage`` if it is not for
    it.
    """
    if not isinstance(private_key, EllipticCurvePrivateKey):
        raise InvalidMessage("DigestKey: only a P-256 key can unwrap")
    try:
        ephemeral = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), key.ephemeral_key)
        shared = private_key.exchange(ECDH(), ephemeral)
        epoch_key = aes_key_unwrap(_wrapping_key(shared, node_id, key.epoch), key.wrapped_key)
    except (ValueError, InvalidUnwrap):
        raise InvalidMessage("DigestKey: not wrapped for this registrar") from None
    if len(epoch_key) != EPOCH_KEY_LENGTH:
        raise InvalidMessage(f"DigestKey: a key of {len(epoch_key)} octets")
    return epoch_key


def _wrapping_key(shared: bytes, node_id: bytes, epoch: int) -> bytes:
    return HKDF(SHA256(), 32, None, b"p2psipd digest-key" + digest_key_entry(node_id, epoch)).derive(shared)


# ---- pieces ----


def _octets(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"text cannot be UTF-8: {error}") from None


def _opaque_text(text: str) -> bytes:
    try:
        return opaque16(_octets(text))
    except OctetsError as error:
        raise InvalidMessage(f"text does not fit: {error}") from None


def _text(octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"text is not UTF-8: {error}") from None


def _write_destinations(destinations: Sequence[Destination]) -> bytes:
    if not destinations:
        raise InvalidMessage("an empty destination list")
    try:
        return opaque16(b"".join([entry.encode() for entry in destinations]))
    except OctetsError as error:
        raise InvalidMessage(f"destination list: {error}") from None


def _read_destinations(reader: Reader) -> tuple[Destination, ...]:
    destinations = []
    stop = reader.list16()
    while reader.position < stop:
        destinations.append(read_destination(reader))
    reader.expect(stop)
    if not destinations:
        raise InvalidMessage("an empty destination list")
    return tuple(destinations)

"""The bodies of link management: Attach, AppAttach, Ping, ConfigUpdate (RFC 6940 section 6.5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import ClassVar, Final, NamedTuple, Self

import attrs

from p2psipd.proto.octets import OctetsError, Reader, opaque8, opaque16, opaque24, u16, u32
from p2psipd.proto.reload.bodies import Body, Kinds, MessageCode

# OverlayLinkType (RFC 6940 section 14.10)
DTLS_UDP_SR: Final = 1
DTLS_UDP_SR_NO_ICE: Final = 3
TLS_TCP_FH_NO_ICE: Final = 4
EXP_LINK: Final = 5

# CandType (section 6.5.1.1)
CANDIDATE_HOST: Final = 1
CANDIDATE_SRFLX: Final = 2
CANDIDATE_RELAY: Final = 4

# ConfigUpdateType (section 6.5.4.1)
CONFIG_UPDATE_CONFIG: Final = 1
CONFIG_UPDATE_KIND: Final = 2

_IPV4: Final = 1
_IPV6: Final = 2
_ADDRESS_SIZE: Final = {_IPV4: 6, _IPV6: 18}
_ADDRESS_HEAD = Struct(">BB")
_PRIORITY_TYPE = Struct(">IB")
_PING_ANS = Struct(">QQ")


class IceCandidate(NamedTuple):
    """An address at which a node can be reached (section 6.5.1.1).

    ``host`` is an IPv4 or IPv6 address as text; ``overlay_link`` an OverlayLinkType; ``type`` a CANDIDATE_...
    number; ``related`` the base address, for every type but host; ``extensions`` are pairs of name and value.
    """

    host: str
    port: int
    overlay_link: int
    foundation: bytes
    priority: int
    type: int
    related: tuple[str, int] | None = None
    extensions: tuple[tuple[bytes, bytes], ...] = ()


def write_address(host: str, port: int) -> bytes:
    """IpAddressPort (section 6.3.1.1); raises ``OctetsError`` if ``host`` is not an address."""
    try:
        address = ip_address(host)
    except ValueError as error:
        raise OctetsError(str(error)) from None
    head = b"\x01\x06" if address.version == 4 else b"\x02\x12"
    return head + address.packed + u16(port)


def read_address(reader: Reader) -> tuple[str, int] | None:
    """IpAddressPort; None for an unknown address type, which its length lets us skip (section 6.3.1.1)."""
    address_type, length = reader.unpack(_ADDRESS_HEAD)
    known_length = _ADDRESS_SIZE.get(address_type)
    if not address_type:
        raise OctetsError("address type 0 is invalid")
    if known_length is None:
        reader.take(length)
        return None
    if length != known_length:
        raise OctetsError(f"an address of type {address_type} has {known_length} octets, not {length}")
    octets = reader.take(length - 2)
    address = IPv4Address(octets) if address_type == _IPV4 else IPv6Address(octets)
    return str(address), reader.u16()


def _write_candidates(candidates: tuple[IceCandidate, ...]) -> bytes:
    _check_links(candidates)
    parts = []
    for candidate in candidates:
        parts += [
            write_address(candidate.host, candidate.port),
            _octet(candidate.overlay_link),
            opaque8(candidate.foundation),
            _PRIORITY_TYPE.pack(candidate.priority, candidate.type),
        ]
        _check_candidate_type(candidate.type)
        if (candidate.related is None) != (candidate.type == CANDIDATE_HOST):
            raise OctetsError("every candidate but a host candidate has a related address")
        if candidate.related is not None:
            parts.append(write_address(*candidate.related))
        extensions = [opaque16(name) + opaque16(value) for name, value in candidate.extensions]
        parts.append(opaque16(b"".join(extensions)))
    return opaque16(b"".join(parts))


def _octet(value: int) -> bytes:
    if not 0 < value < 256:
        raise OctetsError(f"{value} is not a type of one octet")
    return bytes((value,))


def _check_candidate_type(value: int) -> None:
    if value not in (CANDIDATE_HOST, CANDIDATE_SRFLX, CANDIDATE_RELAY):
        raise OctetsError(f"unknown candidate type {value}")


def _check_links(candidates: tuple[IceCandidate, ...]) -> None:
    links = {candidate.overlay_link for candidate in candidates}
    if DTLS_UDP_SR in links and links & {DTLS_UDP_SR_NO_ICE, TLS_TCP_FH_NO_ICE}:
        raise OctetsError("candidates with ICE and without ICE are mixed")


def _read_candidates(reader: Reader) -> tuple[IceCandidate, ...]:
    stop = reader.list16()
    candidates = []
    while reader.position < stop:
        candidate = _read_candidate(reader)
        if candidate is not None:
            candidates.append(candidate)
    reader.expect(stop)
    found = tuple(candidates)
    _check_links(found)
    return found


def _read_candidate(reader: Reader) -> IceCandidate | None:
    """One candidate; None if it has an address of an unknown type, so that the others can still be used."""
    address = read_address(reader)
    overlay_link = reader.u8()
    if not overlay_link:
        raise OctetsError("overlay link type 0 is invalid")
    foundation = reader.opaque8()
    priority, candidate_type = reader.unpack(_PRIORITY_TYPE)
    _check_candidate_type(candidate_type)
    related = None
    usable = address is not None
    if candidate_type != CANDIDATE_HOST:
        related = read_address(reader)
        usable = usable and related is not None
    stop = reader.list16()
    extensions = []
    while reader.position < stop:
        extensions.append((reader.opaque16(), reader.opaque16()))
    reader.expect(stop)
    if address is None or not usable:
        return None
    return IceCandidate(
        *address, overlay_link, foundation, priority, candidate_type, related, tuple(extensions)
    )


@attrs.frozen
class _AttachBody(Body):
    """AttachReqAns (section 6.5.1.1)."""

    ufrag: bytes
    password: bytes
    role: bytes
    candidates: tuple[IceCandidate, ...]
    send_update: bool

    def _write(self) -> bytes:
        return b"".join(
            (
                opaque8(self.ufrag),
                opaque8(self.password),
                opaque8(self.role),
                _write_candidates(self.candidates),
                b"\x01" if self.send_update else b"\x00",
            )
        )

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(
            reader.opaque8(), reader.opaque8(), reader.opaque8(), _read_candidates(reader), reader.boolean()
        )


class AttachReq(_AttachBody):
    """Asks for an overlay link; the role, ``passive``, is not judged here (section 6.5.1.1)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.ATTACH_REQ


class AttachAns(_AttachBody):
    """Agrees to an overlay link; the role is ``active`` (section 6.5.1.2)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.ATTACH_ANS


@attrs.frozen
class _AppAttachBody(Body):
    """AppAttachReq and AppAttachAns (section 6.5.2): the application comes before the role."""

    ufrag: bytes
    password: bytes
    application: int
    role: bytes
    candidates: tuple[IceCandidate, ...]

    def _write(self) -> bytes:
        return b"".join(
            (
                opaque8(self.ufrag),
                opaque8(self.password),
                u16(self.application),
                opaque8(self.role),
                _write_candidates(self.candidates),
            )
        )

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(
            reader.opaque8(), reader.opaque8(), reader.u16(), reader.opaque8(), _read_candidates(reader)
        )


class AppAttachReq(_AppAttachBody):
    """Asks for a connection of an application, named by its port number (section 6.5.2.1)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.APP_ATTACH_REQ


class AppAttachAns(_AppAttachBody):
    """Agrees to a connection of an application (section 6.5.2.2)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.APP_ATTACH_ANS


@attrs.frozen
class PingReq(Body):
    """Is anybody there; ``padding`` probes for sizes (section 6.5.3.1)."""

    code: ClassVar[int] = MessageCode.PING_REQ
    padding: bytes = b""

    def _write(self) -> bytes:
        return opaque16(self.padding)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(reader.opaque16())


@attrs.frozen
class PingAns(Body):
    """A random ``response_id`` of 64 bits and the ``time`` in milliseconds since 1970 (section 6.5.3.2)."""

    code: ClassVar[int] = MessageCode.PING_ANS
    response_id: int
    time: int

    def _write(self) -> bytes:
        return _PING_ANS.pack(self.response_id, self.time)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(*reader.unpack(_PING_ANS))


@attrs.frozen
class ConfigUpdateReq(Body):
    """A newer configuration document, or kind definitions (section 6.5.4.1).

    For CONFIG_UPDATE_CONFIG ``config_data`` is the document and ``kinds`` is empty; for CONFIG_UPDATE_KIND
    ``kinds`` are kind-block elements in UTF-8 and ``config_data`` is empty.
    """

    code: ClassVar[int] = MessageCode.CONFIG_UPDATE_REQ
    type: int
    config_data: bytes = b""
    kinds: tuple[bytes, ...] = ()

    def _write(self) -> bytes:
        if self.type == CONFIG_UPDATE_CONFIG and not self.kinds:
            rest = opaque24(self.config_data)
        elif self.type == CONFIG_UPDATE_KIND and not self.config_data:
            rest = opaque24(b"".join([opaque16(kind) for kind in self.kinds]))
        else:
            raise OctetsError(f"type {self.type} does not go with what is given")
        return bytes((self.type,)) + u32(len(rest)) + rest

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        update_type = reader.u8()
        stop = reader.list32()
        if update_type == CONFIG_UPDATE_CONFIG:
            body = cls(update_type, reader.opaque24())
        elif update_type == CONFIG_UPDATE_KIND:
            kinds_stop = reader.list24()
            descriptions = []
            while reader.position < kinds_stop:
                descriptions.append(reader.opaque16())
            reader.expect(kinds_stop)
            body = cls(update_type, b"", tuple(descriptions))
        else:
            raise OctetsError(f"unknown type of configuration update {update_type}")
        reader.expect(stop)
        return body


@attrs.frozen
class ConfigUpdateAns(Body):
    """Empty (section 6.5.4.2)."""

    code: ClassVar[int] = MessageCode.CONFIG_UPDATE_ANS

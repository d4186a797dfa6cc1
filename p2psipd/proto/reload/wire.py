"""A RELOAD message on the wire: forwarding header, contents, security block (RFC 6940 sections 6.3.2 to 6.3.4).

A peer on the way needs ``decode_header`` and ``transit`` only; both work on the message's own octets and leave what
follows the header untouched.  Fragments are cut and joined in ``fragments``.

Readings of the RFC, where it leaves a choice:

- An unknown Destination type makes the header unreadable (no other type has ever been registered).
- A two-octet opaque ID with its top bit set is always written in the short form; both forms are read.
- The six reserved bits of the fragment field must be zero; the high bit must be set.
"""

from __future__ import annotations

from collections.abc import Collection
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

import attrs

from p2psipd.proto.octets import OctetsError, Reader, opaque8
from p2psipd.proto.reload.errors import (
    IncompatibleWithOverlay,
    InvalidMessage,
    UnknownExtension,
    UnsupportedForwardingOption,
)
from p2psipd.proto.reload.ids import (
    INVALID_NODE_ID,
    MAX_RESOURCE_ID_LENGTH,
    NODE_ID_LENGTH,
    NodeId,
    ResourceId,
    overlay_hash,
)
from p2psipd.proto.reload.security import SecurityBlock, read_security_block

__all__ = [
    "DESTINATION_CRITICAL",
    "FORWARD_CRITICAL",
    "RESPONSE_COPY",
    "Destination",
    "Extension",
    "ForwardingHeader",
    "ForwardingOption",
    "MessageContents",
    "NodeDestination",
    "OpaqueDestination",
    "ResourceDestination",
    "answer_destinations",
    "answer_options",
    "check_extensions",
    "check_options",
    "decode_contents",
    "decode_header",
    "encode_message",
    "overlay_hash",
    "read_destination",
    "transit",
]

RELO_TOKEN: Final = 0xD2454C4F
VERSION: Final = 0x0A
HEADER_LENGTH: Final = 38
MAX_FRAGMENT_OFFSET: Final = 0xFFFFFF

# Flags of a forwarding option (RFC 6940 section 6.3.2.3)
FORWARD_CRITICAL: Final = 0x01
DESTINATION_CRITICAL: Final = 0x02
RESPONSE_COPY: Final = 0x04

_NODE: Final = 1
_RESOURCE: Final = 2
_OPAQUE: Final = 3
_NODE_HEAD: Final = bytes((_NODE, NODE_ID_LENGTH))
_NODE_SIZE: Final = 2 + NODE_ID_LENGTH

_HIGH_BIT: Final = 0x80000000
_LAST_FRAGMENT: Final = 0x40000000
_RESERVED: Final = 0x3F000000

_HEADER = Struct(">IIHBBIIQIHHH")
_OPTION = Struct(">BBH")
_CODE_LENGTH = Struct(">HI")
_EXTENSION = Struct(">HBI")
_U32 = Struct(">I")
_TTL_LENGTH = Struct(">B4sI12sHHH")


@attrs.frozen
class NodeDestination:
    """A node to pass through or to reach."""

    node: NodeId

    def encode(self) -> bytes:
        """Type, length and Node-ID; ``InvalidMessage`` if the length is wrong."""
        if len(self.node) != NODE_ID_LENGTH:
            raise InvalidMessage(f"a Node-ID has {NODE_ID_LENGTH} octets, not {len(self.node)}")
        return _NODE_HEAD + self.node


@attrs.frozen
class ResourceDestination:
    """The peer responsible for a resource; only as the last entry of a Destination List."""

    resource: ResourceId

    def encode(self) -> bytes:
        """Type, length, then the Resource-ID with its own length octet; ``InvalidMessage`` if the length is wrong."""
        size = len(self.resource)
        if not 0 < size <= MAX_RESOURCE_ID_LENGTH:
            raise InvalidMessage(f"a Resource-ID has 1 to {MAX_RESOURCE_ID_LENGTH} octets, not {size}")
        return bytes((_RESOURCE, size + 1, size)) + self.resource


@attrs.frozen
class OpaqueDestination:
    """Something that only the peer which wrote it can read (list compression, RFC 6940 section 6.1.2)."""

    opaque_id: bytes

    def encode(self) -> bytes:
        """The short form for two octets with the top bit set, otherwise type, length and opaque<0..2^8-1>."""
        opaque_id = self.opaque_id
        size = len(opaque_id)
        if size == 2 and opaque_id[0] & 0x80:
            return opaque_id
        if size > 254:
            raise InvalidMessage(f"an opaque ID has at most 254 octets, not {size}")
        return bytes((_OPAQUE, size + 1, size)) + opaque_id


Destination = NodeDestination | ResourceDestination | OpaqueDestination


class ForwardingOption(NamedTuple):
    """One option of the forwarding header: its type, flags and value."""

    type: int
    flags: int
    value: bytes

    def encode(self) -> bytes:
        """The option as it travels."""
        if not self.type:
            raise InvalidMessage("forwarding option type 0 is invalid")
        return _OPTION.pack(self.type, self.flags, len(self.value)) + self.value


class ForwardingHeader(NamedTuple):
    """The forwarding header (RFC 6940 section 6.3.2).

    ``overlay`` is ``overlay_hash(name)``; ``fragment_offset`` counts octets after the header; a whole message has
    offset 0 and ``last_fragment``; ``max_response_length`` 0 means no limit.
    """

    overlay: int
    configuration_sequence: int
    ttl: int
    fragment_offset: int
    last_fragment: bool
    transaction_id: int
    max_response_length: int
    via: tuple[Destination, ...]
    destinations: tuple[Destination, ...]
    options: tuple[ForwardingOption, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the message is not a fragment of a larger one."""
        return self.last_fragment and not self.fragment_offset

    def encode(self, body_length: int) -> bytes:
        """The header of a message with ``body_length`` octets after it; ``InvalidMessage`` if something won't fit."""
        if any(isinstance(entry, ResourceDestination) for entry in (*self.via, *self.destinations[:-1])):
            raise InvalidMessage("a Resource-ID stands only at the end of a Destination List")
        if self.fragment_offset > MAX_FRAGMENT_OFFSET:
            raise InvalidMessage(f"fragment offset {self.fragment_offset} exceeds 24 bits")
        fragment = _HIGH_BIT | (_LAST_FRAGMENT if self.last_fragment else 0) | self.fragment_offset
        via = b"".join([entry.encode() for entry in self.via])
        destinations = b"".join([entry.encode() for entry in self.destinations])
        try:
            options = b"".join([option.encode() for option in self.options])
            length = HEADER_LENGTH + len(via) + len(destinations) + len(options)
            head = _HEADER.pack(
                RELO_TOKEN, self.overlay, self.configuration_sequence, VERSION, self.ttl, fragment,
                length + body_length, self.transaction_id, self.max_response_length,
                len(via), len(destinations), len(options),
            )  # fmt: skip
        except StructError as error:
            raise InvalidMessage(f"forwarding header does not fit: {error}") from None
        return head + via + destinations + options


class Extension(NamedTuple):
    """A message extension (RFC 6940 section 6.3.3)."""

    type: int
    critical: bool
    contents: bytes


class MessageContents(NamedTuple):
    """The second part of a message: its code, the encoded body and extensions."""

    code: int
    body: bytes
    extensions: tuple[Extension, ...] = ()

    def encode(self) -> bytes:
        """The part of the message that its signature covers."""
        try:
            head = _CODE_LENGTH.pack(self.code, len(self.body))
            extensions = b"".join(
                [
                    _EXTENSION.pack(extension.type, extension.critical, len(extension.contents)) + extension.contents
                    for extension in self.extensions
                ]
            )
            return b"".join((head, self.body, _U32.pack(len(extensions)), extensions))
        except StructError as error:
            raise InvalidMessage(f"message contents do not fit: {error}") from None


def decode_header(data: bytes) -> tuple[ForwardingHeader, int]:
    """Read the forwarding header of a whole message or a fragment; the header and the offset of what follows.

    Raises ``InvalidMessage``, or ``IncompatibleWithOverlay`` for another protocol version.  The overlay hash,
    configuration sequence and TTL are for the caller to judge.
    """
    try:
        (
            token, overlay, sequence, version, ttl, fragment, length, transaction_id, max_response_length,
            via_length, destinations_length, options_length,
        ) = _HEADER.unpack_from(data)  # fmt: skip
    except StructError:
        raise InvalidMessage(f"a message of {len(data)} octets is shorter than its header") from None
    if token != RELO_TOKEN:
        raise InvalidMessage("not a RELOAD message")
    if version != VERSION:
        raise IncompatibleWithOverlay(f"RELOAD version {version / 10} is not 1.0")
    if fragment & (_HIGH_BIT | _RESERVED) != _HIGH_BIT:
        raise InvalidMessage(f"fragment field {fragment:#x} has its high bit unset or reserved bits set")
    via_end = HEADER_LENGTH + via_length
    destinations_end = via_end + destinations_length
    offset = destinations_end + options_length
    if length != len(data) or offset > length:
        raise InvalidMessage(f"header says {offset} of {length} octets, the message has {len(data)}")
    if not destinations_length:
        raise InvalidMessage("the Destination List is empty")
    header = ForwardingHeader(
        overlay,
        sequence,
        ttl,
        fragment & MAX_FRAGMENT_OFFSET,
        fragment & _LAST_FRAGMENT != 0,
        transaction_id,
        max_response_length,
        _destinations(data, HEADER_LENGTH, via_end, False) if via_length else (),
        _destinations(data, via_end, destinations_end, True),
        _options(data, destinations_end, offset) if options_length else (),
    )
    return header, offset


def _destinations(data: bytes, position: int, end: int, resource_allowed: bool) -> tuple[Destination, ...]:
    entries: list[Destination] = []
    append = entries.append
    while position < end:
        stop = position + _NODE_SIZE
        if data[position : position + 2] == _NODE_HEAD and stop <= end:  # nearly always, so without detours
            node = data[position + 2 : stop]
            if node == INVALID_NODE_ID:
                raise InvalidMessage("the Node-ID of all zeros is invalid")
            append(NodeDestination(NodeId(node)))
            position = stop
            continue
        entry, position = _other_destination(data, position, end)
        if isinstance(entry, ResourceDestination) and not (resource_allowed and position == end):
            raise InvalidMessage("a Resource-ID stands only at the end of a Destination List")
        append(entry)
    return tuple(entries)


def _other_destination(data: bytes, position: int, end: int) -> tuple[Destination, int]:
    if position + 2 > end:
        raise InvalidMessage("a destination is cut off")
    kind = data[position]
    if kind & 0x80:
        return OpaqueDestination(data[position : position + 2]), position + 2
    stop = position + 2 + data[position + 1]
    if stop > end:
        raise InvalidMessage("a destination is cut off")
    value = data[position + 2 : stop]
    if kind == _NODE:
        if len(value) != NODE_ID_LENGTH:
            raise InvalidMessage(f"a Node-ID has {NODE_ID_LENGTH} octets, not {len(value)}")
        if value == INVALID_NODE_ID:
            raise InvalidMessage("the Node-ID of all zeros is invalid")
        return NodeDestination(NodeId(value)), stop
    if kind != _RESOURCE and kind != _OPAQUE:
        raise InvalidMessage(f"unknown destination type {kind}")
    # Resource-IDs and opaque IDs carry their own length inside the destination's.
    if not value or value[0] != len(value) - 1:
        raise InvalidMessage("the two lengths of a destination disagree")
    if kind == _OPAQUE:
        return OpaqueDestination(value[1:]), stop
    if len(value) == 1:
        raise InvalidMessage("a Resource-ID is empty")
    return ResourceDestination(ResourceId(value[1:])), stop


def read_destination(reader: Reader) -> Destination:
    """Read one Destination inside a body; raises ``InvalidMessage``."""
    entry, reader.position = _other_destination(reader.data, reader.position, reader.end)
    return entry


def _options(data: bytes, position: int, end: int) -> tuple[ForwardingOption, ...]:
    reader = Reader(data, position, end)
    options = []
    try:
        while not reader.at_end:
            option_type, flags, length = reader.unpack(_OPTION)
            if not option_type:
                raise InvalidMessage("forwarding option type 0 is invalid")
            options.append(ForwardingOption(option_type, flags, reader.take(length)))
    except OctetsError as error:
        raise InvalidMessage(f"forwarding options: {error}") from None
    return tuple(options)


def check_options(header: ForwardingHeader, critical: int, known: Collection[int] = ()) -> None:
    """Raise ``UnsupportedForwardingOption`` for an option that must be understood and is not in ``known``.

    ``critical`` is FORWARD_CRITICAL for a peer that would forward the message, DESTINATION_CRITICAL for the node
    that would answer it (RFC 6940 section 6.3.2.3).
    """
    for option in header.options:
        if option.flags & critical and option.type not in known:
            raise UnsupportedForwardingOption(f"forwarding option {option.type} is not supported")


def answer_options(header: ForwardingHeader) -> tuple[ForwardingOption, ...]:
    """The options that an answer must copy from its request, with the three flags cleared (section 6.3.2.3)."""
    flags = FORWARD_CRITICAL | DESTINATION_CRITICAL | RESPONSE_COPY
    return tuple(
        option._replace(flags=option.flags & ~flags) for option in header.options if option.flags & RESPONSE_COPY
    )


def decode_contents(data: bytes, offset: int) -> tuple[MessageContents, bytes, SecurityBlock]:
    """Read what follows the header of a whole message: contents, the contents' own octets, security block.

    The octets are what the signature covers.  Raises ``InvalidMessage`` for anything malformed, a message code that
    is 0 or reserved, or octets left over.
    """
    try:
        reader = Reader(data, offset)
        code, length = reader.unpack(_CODE_LENGTH)
        body = reader.take(length)
        extensions = _read_extensions(reader)
        contents_octets = data[offset : reader.position]
        block = read_security_block(reader)
        reader.expect_end()
    except OctetsError as error:
        raise InvalidMessage(f"message contents: {error}") from None
    if not code or 0x8000 <= code < 0xFFFF:
        raise InvalidMessage(f"message code {code:#x} is reserved")
    return MessageContents(code, body, extensions), contents_octets, block


def _read_extensions(reader: Reader) -> tuple[Extension, ...]:
    stop = reader.list32()
    if reader.position == stop:
        return ()
    extensions = []
    while reader.position < stop:
        extension_type = reader.u16()
        if not extension_type:
            raise OctetsError("message extension type 0 is invalid")
        critical = reader.boolean()
        extensions.append(Extension(extension_type, critical, reader.opaque32()))
    reader.expect(stop)
    return tuple(extensions)


def check_extensions(contents: MessageContents, known: Collection[int] = ()) -> None:
    """Raise ``UnknownExtension`` for a critical extension whose type is not in ``known`` (RFC 6940 section 6.3.3)."""
    for extension in contents.extensions:
        if extension.critical and extension.type not in known:
            raise UnknownExtension(f"message extension {extension.type} is not known")


def encode_message(header: ForwardingHeader, contents: bytes, block: SecurityBlock) -> bytes:
    """A whole message from its header, the encoded contents, and the security block that signs them."""
    tail = contents + block.encode()
    return header.encode(len(tail)) + tail


def transit(
    data: bytes,
    header: ForwardingHeader,
    offset: int,
    *,
    via: tuple[Destination, ...],
    destinations: tuple[Destination, ...],
    ttl: int,
) -> bytes:
    """The message ``data`` with other lists and another TTL, as a peer passes it on.

    ``header`` and ``offset`` are what ``decode_header(data)`` gave.  Everything else, the options and all that
    follows the header, is copied as it stands.
    """
    via_octets = data[HEADER_LENGTH : HEADER_LENGTH]
    old_via = int.from_bytes(data[32:34], "big")
    old_destinations = int.from_bytes(data[34:36], "big")
    options_length = int.from_bytes(data[36:38], "big")
    options_start = HEADER_LENGTH + old_via + old_destinations
    # A list that is passed on unchanged, or grew at its end, keeps the octets it came with.
    kept = len(header.via)
    if via[:kept] == header.via:
        via_octets = data[HEADER_LENGTH : HEADER_LENGTH + old_via]
        added = via[kept:]
    else:
        added = via
    if added:
        via_octets += b"".join([entry.encode() for entry in added])
    if destinations == header.destinations:
        destination_octets = data[HEADER_LENGTH + old_via : options_start]
    else:
        destination_octets = b"".join([entry.encode() for entry in destinations])
    length = HEADER_LENGTH + len(via_octets) + len(destination_octets) + len(data) - options_start
    try:
        changed = _TTL_LENGTH.pack(
            ttl, data[12:16], length, data[20:32], len(via_octets), len(destination_octets), options_length
        )
    except StructError as error:
        raise InvalidMessage(f"forwarding header does not fit: {error}") from None
    return b"".join((data[:11], changed, via_octets, destination_octets, data[options_start:]))


def answer_destinations(via: tuple[Destination, ...], previous_hop: NodeId) -> tuple[Destination, ...]:
    """The Destination List of an answer: the node that the request came from, then its Via List reversed (6.2.2)."""
    return (NodeDestination(previous_hop), *via[::-1])

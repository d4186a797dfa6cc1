"""A RELOAD message on the wire: forwarding header, contents, security block (RFC 6940 sections 6.3.2-4).

A peer on the way needs ``decode_header`` and ``transit`` only; both work on the message's own octets and
leave what follows the header untouched.

Readings of the RFC, where it leaves a choice:

- An unknown Destination type makes the header unreadable (no other type has ever been registered).
- A two-octet opaque ID with its top bit set is always written in the short form; both forms are read.
- The six reserved bits of the fragment field must be zero; the high bit must be set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

import attrs

from p2psipd.proto.octets import OctetsError, Reader
from p2psipd.proto.reload.errors import (
    IncompatibleWithOverlay,
    InvalidMessage,
    MessageTooLarge,
    ReloadError,
    UnknownExtension,
    UnsupportedForwardingOption,
)
from p2psipd.proto.reload.ids import (
    INVALID_NODE_ID,
    MAX_RESOURCE_ID_LENGTH,
    NODE_ID_LENGTH,
    NodeId,
    ResourceId,
)
from p2psipd.proto.reload.security import SecurityBlock, read_security_block

RELO_TOKEN: Final = 0xD2454C4F
VERSION: Final = 0x0A
HEADER_LENGTH: Final = 38
MAX_FRAGMENT_OFFSET: Final = 0xFFFFFF
# RFC 6940 section 6.7: what a fragment holds at least, and what stays free for the Via List to grow.
MIN_FRAGMENT_BODY: Final = 256
FRAGMENT_RESERVE: Final = 32

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
_NO_EXTENSIONS: Final = bytes(4)
_TTL_LENGTH = Struct(">B4sI12sHHH")


@attrs.define(unsafe_hash=True)
class NodeDestination:
    """A node to pass through or to reach."""

    node: NodeId

    def encode(self) -> bytes:
        """Type, length and Node-ID; ``InvalidMessage`` if the length is wrong."""
        if len(self.node) != NODE_ID_LENGTH:
            raise InvalidMessage(f"a Node-ID has {NODE_ID_LENGTH} octets, not {len(self.node)}")
        return _NODE_HEAD + self.node


@attrs.define(unsafe_hash=True)
class ResourceDestination:
    """The peer responsible for a resource; only as the last entry of a Destination List."""

    resource: ResourceId

    def encode(self) -> bytes:
        """Type, length, the Resource-ID with its own length octet; ``InvalidMessage`` if it is too long."""
        size = len(self.resource)
        if not 0 < size <= MAX_RESOURCE_ID_LENGTH:
            raise InvalidMessage(f"a Resource-ID has 1 to {MAX_RESOURCE_ID_LENGTH} octets, not {size}")
        return bytes((_RESOURCE, size + 1, size)) + self.resource


@attrs.define(unsafe_hash=True)
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

    ``overlay`` is ``overlay_hash(name)``; ``fragment_offset`` counts octets after the header; a whole message
    has offset 0 and ``last_fragment``; ``max_response_length`` 0 means no limit.
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
        """The header before ``body_length`` octets; ``InvalidMessage`` if it cannot be."""
        if not self.destinations:
            raise InvalidMessage("the Destination List is empty")
        if self.fragment_offset > MAX_FRAGMENT_OFFSET:
            raise InvalidMessage(f"fragment offset {self.fragment_offset} exceeds 24 bits")
        fragment = _HIGH_BIT | (_LAST_FRAGMENT if self.last_fragment else 0) | self.fragment_offset
        via = _write_destinations(self.via) if self.via else b""
        *through, target = self.destinations
        destinations = target.encode()
        if through:
            destinations = _write_destinations(through) + destinations
        try:
            options = b"".join([option.encode() for option in self.options]) if self.options else b""
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
            if not self.extensions:
                return head + self.body + _NO_EXTENSIONS
            extensions = b"".join(
                [
                    _EXTENSION.pack(extension_type, critical, len(value)) + value
                    for extension_type, critical, value in self.extensions
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
    destinations: tuple[Destination, ...]
    if destinations_length == _NODE_SIZE and data[via_end : via_end + 2] == _NODE_HEAD:  # nearly always
        destinations = (NodeDestination(_node(data[via_end + 2 : destinations_end])),)
    else:
        destinations = _destinations(data, via_end, destinations_end, True)
    header = ForwardingHeader(
        overlay,
        sequence,
        ttl,
        fragment & MAX_FRAGMENT_OFFSET,
        fragment & _LAST_FRAGMENT != 0,
        transaction_id,
        max_response_length,
        _destinations(data, HEADER_LENGTH, via_end, False) if via_length else (),
        destinations,
        _options(data, destinations_end, offset) if options_length else (),
    )
    return header, offset


def _write_destinations(entries: Iterable[Destination]) -> bytes:
    """A Via List, or what precedes the last entry of a Destination List: no resource may stand there."""
    octets = []
    for entry in entries:
        if isinstance(entry, ResourceDestination):
            raise InvalidMessage("a Resource-ID stands only at the end of a Destination List")
        octets.append(entry.encode())
    return b"".join(octets)


def _node(octets: bytes) -> NodeId:
    if octets == INVALID_NODE_ID:
        raise InvalidMessage("the Node-ID of all zeros is invalid")
    return NodeId(octets)


def _destinations(data: bytes, position: int, end: int, resource_allowed: bool) -> tuple[Destination, ...]:
    entries: list[Destination] = []
    append = entries.append
    while position < end:
        stop = position + _NODE_SIZE
        if data[position : position + 2] == _NODE_HEAD and stop <= end:  # nearly always, so without detours
            append(NodeDestination(_node(data[position + 2 : stop])))
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
        return NodeDestination(_node(value)), stop
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

    ``critical`` is FORWARD_CRITICAL for a peer that would forward the message, DESTINATION_CRITICAL for the
    node that would answer it (RFC 6940 section 6.3.2.3).
    """
    for option in header.options:
        if option.flags & critical and option.type not in known:
            raise UnsupportedForwardingOption(f"forwarding option {option.type} is not supported")


def answer_options(header: ForwardingHeader) -> tuple[ForwardingOption, ...]:
    """The options that an answer must copy from its request, with the flags cleared (section 6.3.2.3)."""
    flags = FORWARD_CRITICAL | DESTINATION_CRITICAL | RESPONSE_COPY
    return tuple(
        option._replace(flags=option.flags & ~flags)
        for option in header.options
        if option.flags & RESPONSE_COPY
    )


def decode_contents(data: bytes, offset: int) -> tuple[MessageContents, bytes, SecurityBlock]:
    """Read what follows the header of a whole message: contents, the contents' own octets, security block.

    The octets are what the signature covers.  Raises ``InvalidMessage`` for anything malformed, a message
    code that is 0 or reserved, or octets left over.
    """
    try:
        reader = Reader(data, offset)
        code, length = reader.unpack(_CODE_LENGTH)
        body = reader.take(length)
        extensions: tuple[Extension, ...] = ()
        if data[reader.position : reader.position + 4] == _NO_EXTENSIONS:
            reader.position += 4
        else:
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
    """Raise ``UnknownExtension`` for a critical extension whose type is not in ``known`` (section 6.3.3)."""
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

    ``header`` and ``offset`` are what ``decode_header(data)`` gave.  Everything else, the options and all
    that follows the header, is copied as it stands.
    """
    old_via = int.from_bytes(data[32:34], "big")
    old_destinations = int.from_bytes(data[34:36], "big")
    options_length = int.from_bytes(data[36:38], "big")
    options_start = HEADER_LENGTH + old_via + old_destinations
    # A list that is passed on unchanged, or grew at its end, keeps the octets it came with.
    kept = len(header.via)
    if via[:kept] == header.via:
        via_octets = data[HEADER_LENGTH : HEADER_LENGTH + old_via]
        if len(via) > kept:
            via_octets += _write_destinations(via[kept:])
    else:
        via_octets = _write_destinations(via)
    if destinations == header.destinations:
        destination_octets = data[HEADER_LENGTH + old_via : options_start]
    else:
        if not destinations:
            raise InvalidMessage("the Destination List is empty")
        destination_octets = _write_destinations(destinations[:-1]) + destinations[-1].encode()
    length = HEADER_LENGTH + len(via_octets) + len(destination_octets) + len(data) - options_start
    try:
        changed = _TTL_LENGTH.pack(
            ttl, data[12:16], length, data[20:32], len(via_octets), len(destination_octets), options_length
        )
    except StructError as error:
        raise InvalidMessage(f"forwarding header does not fit: {error}") from None
    return b"".join((data[:11], changed, via_octets, destination_octets, data[options_start:]))


def answer_destinations(via: tuple[Destination, ...], previous_hop: NodeId) -> tuple[Destination, ...]:
    """An answer's Destination List: the node it came from, then its Via List reversed (section 6.2.2)."""
    return (NodeDestination(previous_hop), *via[::-1])


def fragment(data: bytes, header: ForwardingHeader, offset: int, path_mtu: int) -> list[bytes]:
    """``data`` cut into equal fragments for a link of ``path_mtu`` octets (RFC 6940 section 6.7).

    ``header`` and ``offset`` are what ``decode_header(data)`` gave; ``data`` may itself be a fragment.  32
    octets stay free for the Via List to grow.  Where a fragment could not hold 256 octets after its header,
    or nothing needs cutting, the list holds ``data`` alone.
    """
    if len(data) <= path_mtu:
        return [data]
    body_length = len(data) - offset
    room = path_mtu - FRAGMENT_RESERVE - offset
    pieces = -(-body_length // room) if room >= MIN_FRAGMENT_BODY else 0
    if not pieces or body_length // pieces < MIN_FRAGMENT_BODY:
        return [data]
    small, longer = divmod(body_length, pieces)
    fragments = []
    start = offset
    for number in range(pieces):
        stop = start + small + (number < longer)
        head = header._replace(
            fragment_offset=header.fragment_offset + start - offset,
            last_fragment=header.last_fragment and number == pieces - 1,
        )
        fragments.append(head.encode(stop - start) + data[start:stop])
        start = stop
    return fragments


class _Partial:
    """The fragments of one message that have arrived."""

    __slots__ = ("first", "pieces", "size", "started_at", "total")

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.first: ForwardingHeader | None = None
        self.pieces: dict[int, bytes] = {}
        self.size = 0
        self.total: int | None = None

    def join(self) -> bytes | None:
        """The body, once there is no gap; pieces that overlap (a path was cut twice) count once."""
        if self.total is None or self.size < self.total:
            return None
        parts: list[bytes] = []
        position = 0
        for start, piece in sorted(self.pieces.items()):
            if start > position:
                return None
            if start + len(piece) > position:
                parts.append(piece[position - start :])
                position = start + len(piece)
        return b"".join(parts) if position == self.total else None


class Reassembler:
    """Joins the fragments that are addressed to this node (RFC 6940 section 6.7).

    Bounded: at most ``max_messages`` incomplete messages, ``max_octets`` in all of them, ``max_fragments`` in
    one, ``max_message`` octets after a joined header, each kept for ``lifetime`` seconds.  Where room is
    short, the oldest message of the source that holds most of it gives way, so that one source cannot shut
    out the others.
    """

    def __init__(
        self,
        *,
        max_message: int = 65000,
        max_messages: int = 64,
        max_octets: int = 1_000_000,
        max_fragments: int = 256,
        lifetime: float = 15.0,
    ) -> None:
        self._max_message = max_message
        self._max_messages = max_messages
        self._max_octets = max_octets
        self._max_fragments = max_fragments
        self._lifetime = lifetime
        self._partials: dict[tuple[bytes, int], _Partial] = {}
        self.octets = 0

    def __len__(self) -> int:
        return len(self._partials)

    def next_expiry(self) -> float | None:
        """When the oldest incomplete message is to be dropped by ``expire``, or None if there is none."""
        for partial in self._partials.values():  # in the order of arrival
            return partial.started_at + self._lifetime
        return None

    def expire(self, now: float) -> int:
        """Drop what has stayed incomplete for its lifetime; how many messages that were."""
        old = []
        for key, partial in self._partials.items():
            if partial.started_at + self._lifetime > now:
                break
            old.append(key)
        for key in old:
            self._drop(key)
        return len(old)

    def add(
        self, source: bytes, header: ForwardingHeader, data: bytes, offset: int, now: float
    ) -> bytes | None:
        """Take a message or fragment from ``source``; the whole message if it is complete, else None.

        ``source`` tells senders apart that use the same transaction id (the previous hop, or the first Via
        entry). The joined message has the header of its first fragment.  Raises ``InvalidMessage`` for
        fragments that contradict each other and ``MessageTooLarge`` for too large a message; what had arrived
        of it is dropped.
        """
        if header.is_whole:
            return data
        self.expire(now)
        key = (source, header.transaction_id)
        partial = self._partials.get(key)
        if partial is None:
            partial = self._partials[key] = _Partial(now)
        body = data[offset:]
        stop = header.fragment_offset + len(body)
        try:
            self._check(partial, header, stop)
        except ReloadError:
            self._drop(key)
            raise
        known = partial.pieces.get(header.fragment_offset)
        if known is None or len(known) < len(body):
            grown = len(body) - (0 if known is None else len(known))
            partial.pieces[header.fragment_offset] = body
            partial.size += grown
            self.octets += grown
        if header.last_fragment:
            partial.total = stop
        if not header.fragment_offset:
            partial.first = header
        joined = partial.join()
        if joined is not None and partial.first is not None:
            self._drop(key)
            return partial.first._replace(last_fragment=True).encode(len(joined)) + joined
        while self.octets > self._max_octets or len(self._partials) > self._max_messages:
            self._make_room()
        return None

    def _check(self, partial: _Partial, header: ForwardingHeader, stop: int) -> None:
        if stop > self._max_message:
            raise MessageTooLarge(f"fragments reach to {stop} octets, at most {self._max_message} are joined")
        if stop == header.fragment_offset:
            raise InvalidMessage("a fragment is empty")
        ends = partial.total if not header.last_fragment else stop
        if ends is not None:
            reached = max((start + len(piece) for start, piece in partial.pieces.items()), default=0)
            if max(stop, reached) > ends or partial.total not in (None, ends):
                raise InvalidMessage("fragments reach beyond the last one")
        if len(partial.pieces) >= self._max_fragments and header.fragment_offset not in partial.pieces:
            raise MessageTooLarge(f"more than {self._max_fragments} fragments")

    def _make_room(self) -> None:
        held: dict[bytes, int] = {}
        for (source, _), partial in self._partials.items():
            held[source] = held.get(source, 0) + partial.size
        greedy = max(held, key=held.__getitem__)
        self._drop(next(key for key in self._partials if key[0] == greedy))

    def _drop(self, key: tuple[bytes, int]) -> None:
        self.octets -= self._partials.pop(key).size

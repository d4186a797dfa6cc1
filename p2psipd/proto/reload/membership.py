"""What Kademlia peers tell each other about who is in the overlay: the wire form of Updates, and the table.

Wire form (`docs/kademlia-topology.md` section 4): the data of an UpdateReq is one byte of type and a body.
All of it is carried in signed RELOAD messages; member entries are signed again by their subject, because they
are passed on by others (RFC 6940 section 13.6.3).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, IntEnum
from typing import NamedTuple

from p2psipd.proto.octets import OctetsError, Reader, opaque8, opaque16, opaque32
from p2psipd.proto.reload.addresses import Address, decode_address, encode_address
from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import NodeId, ResourceId

ID_BITS = 128
_LABEL = b"P2PSIPD-KADEMLIA member\0"
_ENTRY_HEAD = struct.Struct("!16sBQ")
_NOTICE = struct.Struct("!16sQ")
_SUMMARY = struct.Struct("!16sQB")
_RANGE = struct.Struct("!IQ")
RANGES = 16
MAX_ADDRESSES = 8


class MemberState(IntEnum):
    """What a node says of itself."""

    JOINING = 0
    READY = 1
    LEFT = 2


class MemberEntry(NamedTuple):
    """A node's signed statement about itself.  `incarnation` orders its statements (higher is newer).

    `signature` is two octets of algorithm and the value over `signed_octets`, by the key of the certificate whose
    SHA-256 is `certificate_hash`.
    """

    node: NodeId
    state: MemberState
    incarnation: int
    addresses: tuple[Address, ...]
    certificate_hash: bytes
    signature: bytes

    def signed_octets(self, overlay_hash: int) -> bytes:
        """The octets that `signature` covers."""
        return _LABEL + overlay_hash.to_bytes(4, "big") + self._unsigned()

    def _unsigned(self) -> bytes:
        return (
            _ENTRY_HEAD.pack(self.node, self.state, self.incarnation)
            + opaque8(b"".join(encode_address(a) for a in self.addresses))
            + opaque8(self.certificate_hash)
        )

    def encode(self) -> bytes:
        """The entry as it stands in a delta."""
        return self._unsigned() + opaque16(self.signature)


def decode_entry(reader: Reader) -> MemberEntry:
    """One entry from `reader`.

    :raises InvalidMessage: unknown state, too many addresses, malformed octets.
    """
    node, state, incarnation = _ENTRY_HEAD.unpack(reader.take(_ENTRY_HEAD.size))
    if state > MemberState.LEFT:
        raise InvalidMessage(f"member state {state} is unknown")
    addresses_reader = Reader(reader.opaque8())
    addresses: list[Address] = []
    while not addresses_reader.at_end:
        addresses.append(decode_address(addresses_reader))
        if len(addresses) > MAX_ADDRESSES:
            raise InvalidMessage(f"a member has more than {MAX_ADDRESSES} addresses")
    certificate_hash = reader.opaque8()
    return MemberEntry(
        NodeId(node), MemberState(state), incarnation, tuple(addresses), certificate_hash, reader.opaque16()
    )


class UpdateType(IntEnum):
    """First byte of an UpdateReq's data."""

    DELTA = 1
    PAGE_REQUEST = 2
    MEMBER_DIGEST = 3
    MEMBER_SUMMARY = 4
    RECORD_DIGEST = 5
    RECORD_SUMMARY = 6
    PUSHED = 7
    UNLINK = 8


class Delta(NamedTuple):
    """Entries that are new to the receiver, and (node, incarnation) pairs suspected to be dead."""

    entries: tuple[MemberEntry, ...]
    suspects: tuple[tuple[NodeId, int], ...] = ()

    def encode(self) -> bytes:
        """UpdateReq data."""
        return (
            bytes([UpdateType.DELTA])
            + opaque32(b"".join(e.encode() for e in self.entries))
            + opaque32(b"".join(_NOTICE.pack(n, i) for n, i in self.suspects))
        )


class PageRequest(NamedTuple):
    """Asks for the `wanted` members nearest to `target` (0: all of them); they come as Deltas."""

    target: NodeId
    wanted: int

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.PAGE_REQUEST]) + self.target + self.wanted.to_bytes(2, "big")


class MemberDigest(NamedTuple):
    """For each sixteenth of the identifier space: number of members, XOR of their fingerprints."""

    ranges: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.MEMBER_DIGEST]) + b"".join(_RANGE.pack(*r) for r in self.ranges)


class MemberSummary(NamedTuple):
    """All members of the ranges whose bit is set in `ranges`; `reply` set asks for no summary back."""

    ranges: int
    reply: bool
    members: tuple[tuple[NodeId, int, int], ...]

    def encode(self) -> bytes:
        """UpdateReq data; each member is (node, incarnation, 1 if held to be alive)."""
        return (
            bytes([UpdateType.MEMBER_SUMMARY])
            + self.ranges.to_bytes(2, "big")
            + bytes([self.reply])
            + opaque32(b"".join(_SUMMARY.pack(*m) for m in self.members))
        )


class RecordDigest(NamedTuple):
    """Number of resources that the sender thinks both nodes must hold, and the XOR of their digests."""

    resources: int
    digest: int

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.RECORD_DIGEST]) + _RANGE.pack(self.resources, self.digest)


class RecordSummary(NamedTuple):
    """Resources with their 8-byte digests (zeros: not held).  `reply` set: push what differs, ask no more."""

    reply: bool
    records: tuple[tuple[ResourceId, bytes], ...]

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.RECORD_SUMMARY, self.reply]) + opaque32(
            b"".join(opaque8(r) + d for r, d in self.records)
        )


class Pushed(NamedTuple):
    """All that the receiver must hold and the sender had was pushed to it."""

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.PUSHED])


class Unlink(NamedTuple):
    """The sender is alive but will close this link, for which it has no use."""

    def encode(self) -> bytes:
        """UpdateReq data."""
        return bytes([UpdateType.UNLINK])


Update = Delta | PageRequest | MemberDigest | MemberSummary | RecordDigest | RecordSummary | Pushed | Unlink


def decode_update(data: bytes) -> Update:
    """The data of an UpdateReq of this topology.

    :raises InvalidMessage: anything that is not one well-formed update.
    """
    try:
        reader = Reader(data)
        update = _decode(UpdateType(reader.u8()), reader)
        reader.expect_end()
    except (OctetsError, ValueError, struct.error) as error:
        raise InvalidMessage(f"malformed Update: {error}") from error
    return update


def _decode(kind: UpdateType, reader: Reader) -> Update:
    match kind:
        case UpdateType.DELTA:
            entries_reader = Reader(reader.opaque32())
            entries = []
            while not entries_reader.at_end:
                entries.append(decode_entry(entries_reader))
            notices = reader.opaque32()
            return Delta(tuple(entries), tuple((NodeId(n), i) for n, i in _NOTICE.iter_unpack(notices)))
        case UpdateType.PAGE_REQUEST:
            return PageRequest(NodeId(reader.take(16)), reader.u16())
        case UpdateType.MEMBER_DIGEST:
            octets = reader.take(RANGES * _RANGE.size)
            return MemberDigest(tuple((c, d) for c, d in _RANGE.iter_unpack(octets)))
        case UpdateType.MEMBER_SUMMARY:
            ranges, reply = reader.u16(), reader.u8()
            members = tuple((NodeId(n), i, s) for n, i, s in _SUMMARY.iter_unpack(reader.opaque32()))
            return MemberSummary(ranges, bool(reply), members)
        case UpdateType.RECORD_DIGEST:
            count, digest = _RANGE.unpack(reader.take(_RANGE.size))
            return RecordDigest(count, digest)
        case UpdateType.RECORD_SUMMARY:
            reply = bool(reader.u8())
            records_reader = Reader(reader.opaque32())
            records = []
            while not records_reader.at_end:
                records.append((ResourceId(records_reader.opaque8()), records_reader.take(8)))
            return RecordSummary(reply, tuple(records))
        case UpdateType.PUSHED:
            return Pushed()
        case UpdateType.UNLINK:
            return Unlink()


class Standing(Enum):
    """What we hold a member to be."""

    LIVE = "live"
    SUSPECT = "suspect"
    DEAD = "dead"


class Member:
    """A row of the table: the newest verified entry of a node and what we think of it."""

    __slots__ = ("certificate", "entry", "number", "since", "standing")

    def __init__(self, entry: MemberEntry, certificate: bytes, since: float) -> None:
        self.entry = entry
        self.certificate = certificate
        self.number = int.from_bytes(entry.node, "big")
        self.standing = Standing.LIVE
        self.since = since

    @property
    def counts(self) -> bool:
        """Whether it may be responsible for data: ready by its own word, alive by ours."""
        return self.standing is Standing.LIVE and self.entry.state is MemberState.READY


class IdSet:
    """Identifiers (as integers) kept sorted, so that the nearest by XOR are found in some microseconds."""

    __slots__ = ("_bits", "_sorted")

    def __init__(self, bits: int = ID_BITS) -> None:
        self._bits = bits
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sorted)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._sorted, number)
        return at < len(self._sorted) and self._sorted[at] == number

    def at(self, index: int) -> int:
        """The identifier at a place in the order, for drawing one at random."""
        return self._sorted[index]

    def load(self, numbers: Iterable[int]) -> None:
        """Replace the contents."""
        self._sorted = sorted(set(numbers))

    def add(self, number: int) -> None:
        """Add one; adding it twice is the same as once."""
        if number not in self:
            insort(self._sorted, number)

    def discard(self, number: int) -> None:
        """Remove one, if it is there."""
        at = bisect_left(self._sorted, number)
        if at < len(self._sorted) and self._sorted[at] == number:
            del self._sorted[at]

    def nearest(self, target: int, count: int) -> list[int]:
        """The `count` identifiers nearest to `target` by XOR, nearest first.

        Identifiers that share a prefix with the target stand together in the sorted list, so the search
        widens such a stretch, one bit at a time, until it holds enough.
        """
        numbers = self._sorted
        total = len(numbers)
        if total <= count * 2:
            return sorted(numbers, key=target.__xor__)[:count]
        bits = max(0, self._bits - (total // count).bit_length())
        while True:
            low = (target >> bits) << bits
            first = bisect_left(numbers, low)
            last = bisect_left(numbers, low + (1 << bits), first)
            if last - first >= count or bits >= self._bits:
                break
            bits += 1
        return sorted(numbers[first:last], key=target.__xor__)[:count]

    def in_bucket(self, own: int, bucket: int) -> Sequence[int]:
        """Identifiers whose highest bit that differs from `own` is bit number `bucket`."""
        low = ((own >> bucket) ^ 1) << bucket
        first = bisect_left(self._sorted, low)
        return self._sorted[first : bisect_left(self._sorted, low + (1 << bucket), first)]

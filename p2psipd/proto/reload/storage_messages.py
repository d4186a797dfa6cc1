"""The bodies of the data storage protocol: Store, Fetch, Stat, Find (RFC 6940 section 7).

The data model of a value does not travel: it comes from the kind's definition, so decoders take the models of
the known kinds.  Readings of the RFC, where it leaves a choice:

- The numbers of an ArrayRange are unsigned (the text calls 0xffffffff the last index, the structure says
  int32).
- A dictionary or array specifier always holds its list; "all keys" is the empty list, not an absent one.
- An unknown kind in any storage body is ``UnknownKind`` and names all the unknown ones; lengths allow
  skipping them.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import ClassVar, Final, NamedTuple, Self

import attrs

from p2psipd.proto.octets import OctetsError, Reader, opaque8, opaque16, opaque32
from p2psipd.proto.reload.bodies import Body, DataModel, Kinds, MessageCode
from p2psipd.proto.reload.errors import UnknownKind
from p2psipd.proto.reload.ids import (
    INVALID_NODE_ID,
    MAX_RESOURCE_ID_LENGTH,
    NODE_ID_LENGTH,
    NodeId,
    ResourceId,
    node_id,
)
from p2psipd.proto.reload.security import Signature, read_signature

APPEND: Final = 0xFFFFFFFF
"""The index that appends to an array when stored, and means the last element in a range."""

# error_info of Error_Unknown_Kind has a one-octet length.
_MAX_UNKNOWN_KINDS: Final = 63

_KIND = Struct(">I")
_RANGE = Struct(">II")
_STORED = Struct(">IQI")
_KIND_HEAD = Struct(">IQI")
_REPLICAS_HEAD = Struct(">IQH")
_SPECIFIER = Struct(">IQH")
_EXISTS_LENGTH = Struct(">BI")
_INDEX_EXISTS_LENGTH = Struct(">IBI")
_META = Struct(">BIBB")
_U16 = Struct(">H")
_U32 = Struct(">I")


class DataValue(NamedTuple):
    """A value, or its absence (section 7.2.1)."""

    exists: bool
    value: bytes

    def encode(self) -> bytes:
        """The value as it travels and as it is signed."""
        return _EXISTS_LENGTH.pack(self.exists, len(self.value)) + self.value

    def encode_for_signature(self) -> bytes:
        """The same octets as ``encode``."""
        return _EXISTS_LENGTH.pack(self.exists, len(self.value)) + self.value


class ArrayEntry(NamedTuple):
    """An element of an array with its index (section 7.2.2)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an entry
    value: DataValue

    def encode(self) -> bytes:
        """The entry as it travels."""
        exists, value = self.value
        return _INDEX_EXISTS_LENGTH.pack(self.index, exists, len(value)) + value

    def encode_for_signature(self) -> bytes:
        """The entry with index 0, as it is signed: an append does not know its index (section 7.4.2.2)."""
        exists, value = self.value
        return _INDEX_EXISTS_LENGTH.pack(0, exists, len(value)) + value


class DictionaryEntry(NamedTuple):
    """An entry of a dictionary with its key (section 7.2.3)."""

    key: bytes
    value: DataValue

    def encode(self) -> bytes:
        """The entry as it travels and as it is signed."""
        key, (exists, value) = self
        return b"".join((_U16.pack(len(key)), key, _EXISTS_LENGTH.pack(exists, len(value)), value))

    def encode_for_signature(self) -> bytes:
        """The same octets as ``encode``."""
        return self.encode()


StoredDataValue = DataValue | ArrayEntry | DictionaryEntry


class StoredData(NamedTuple):
    """A signed value: ``storage_time`` in milliseconds since 1970, ``lifetime`` in seconds (section 7)."""

    storage_time: int
    lifetime: int
    value: StoredDataValue
    signature: Signature

    def encode(self) -> bytes:
        """The structure with its leading length."""
        storage_time, lifetime, value, signature = self
        octets, signed = value.encode(), signature.encode()
        return b"".join((_STORED.pack(12 + len(octets) + len(signed), storage_time, lifetime), octets, signed))


class MetaData(NamedTuple):
    """What Stat tells of a value: the hash covers the value with its four length octets (section 7.4.3.2)."""

    exists: bool
    value_length: int
    hash_algorithm: int
    hash_value: bytes

    def encode(self) -> bytes:
        """The structure as it travels."""
        exists, value_length, hash_algorithm, digest = self
        return _META.pack(exists, value_length, hash_algorithm, len(digest)) + digest


class ArrayEntryMeta(NamedTuple):
    """Metadata of an array element."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an entry
    value: MetaData

    def encode(self) -> bytes:
        """The structure as it travels."""
        return _U32.pack(self.index) + self.value.encode()


class DictionaryEntryMeta(NamedTuple):
    """Metadata of a dictionary entry."""

    key: bytes
    value: MetaData

    def encode(self) -> bytes:
        """The structure as it travels."""
        return opaque16(self.key) + self.value.encode()


MetaDataValue = MetaData | ArrayEntryMeta | DictionaryEntryMeta


class StoredMetaData(NamedTuple):
    """Metadata beside the storage time and remaining lifetime (section 7.4.3.2)."""

    storage_time: int
    lifetime: int
    value: MetaDataValue

    def encode(self) -> bytes:
        """The structure with its leading length, which like StoredData's counts all that follows it."""
        rest = self.value.encode()
        return _STORED.pack(12 + len(rest), self.storage_time, self.lifetime) + rest


class StoreKindData(NamedTuple):
    """The values of one kind to store; ``generation`` 0 means "whatever there is" (section 7.4.1.1)."""

    kind: int
    generation: int
    values: tuple[StoredData, ...]


class StoreKindResponse(NamedTuple):
    """A kind's generation after a Store, and who holds copies (section 7.4.1.2)."""

    kind: int
    generation: int
    replicas: tuple[NodeId, ...] = ()


class StoredDataSpecifier(NamedTuple):
    """What to fetch of a kind (section 7.4.2.1).

    ``ranges`` (first and last index, both inclusive) for an array, ``keys`` for a dictionary (empty: all of
    them), neither for a single value.  ``generation`` is the last one seen, 0 to get the values in any case.
    """

    kind: int
    generation: int = 0
    ranges: tuple[tuple[int, int], ...] | None = None
    keys: tuple[bytes, ...] | None = None


class FetchKindResponse(NamedTuple):
    """A kind's generation and values (section 7.4.2.2)."""

    kind: int
    generation: int
    values: tuple[StoredData, ...]


class StatKindResponse(NamedTuple):
    """A kind's generation and the metadata of its values (section 7.4.3.2)."""

    kind: int
    generation: int
    values: tuple[StoredMetaData, ...]


def unknown_kinds_info(kinds: Iterable[int]) -> bytes:
    """``error_info`` of Error_Unknown_Kind (section 7.4.1.2): ``KindId<0..2^8-1>``, so at most 63 of them."""
    return opaque8(b"".join([_KIND.pack(kind) for kind in list(kinds)[:_MAX_UNKNOWN_KINDS]]))


def _unknown(kinds: list[int]) -> UnknownKind:
    distinct = list(dict.fromkeys(kinds))[:_MAX_UNKNOWN_KINDS]
    return UnknownKind(
        "unknown kinds " + " ".join(f"{kind:#x}" for kind in distinct), unknown_kinds_info(distinct)
    )


def _write_resource(resource: ResourceId) -> bytes:
    if not 0 < len(resource) <= MAX_RESOURCE_ID_LENGTH:
        raise OctetsError(f"a Resource-ID has 1 to {MAX_RESOURCE_ID_LENGTH} octets, not {len(resource)}")
    return opaque8(resource)


def _read_resource(reader: Reader) -> ResourceId:
    resource = reader.opaque8()
    if not 0 < len(resource) <= MAX_RESOURCE_ID_LENGTH:
        raise OctetsError(f"a Resource-ID has 1 to {MAX_RESOURCE_ID_LENGTH} octets, not {len(resource)}")
    return ResourceId(resource)


def _read_data_value(reader: Reader) -> DataValue:
    exists, size = reader.unpack(_EXISTS_LENGTH)
    if exists > 1:
        raise OctetsError(f"a Boolean is 0 or 1, not {exists}")
    return DataValue(exists == 1, reader.take(size))


def read_value(reader: Reader, model: DataModel) -> StoredDataValue:
    """Read a StoredDataValue of the given model; raises ``OctetsError``."""
    if model is DataModel.DICTIONARY:
        return DictionaryEntry(reader.opaque16(), _read_data_value(reader))
    if model is DataModel.ARRAY:
        return ArrayEntry(reader.u32(), _read_data_value(reader))
    return _read_data_value(reader)


def read_stored_data(reader: Reader, model: DataModel) -> StoredData:
    """Read one StoredData of the given model, as a record store also keeps it; raises ``OctetsError``."""
    length, storage_time, lifetime = reader.unpack(_STORED)
    stop = reader.position + length - 12
    stored = StoredData(storage_time, lifetime, read_value(reader, model), read_signature(reader))
    reader.expect(stop)
    return stored


def _read_metadata(reader: Reader) -> MetaData:
    exists, value_length, hash_algorithm, size = reader.unpack(_META)
    if exists > 1:
        raise OctetsError(f"a Boolean is 0 or 1, not {exists}")
    return MetaData(exists == 1, value_length, hash_algorithm, reader.take(size))


def _read_stored_metadata(reader: Reader, model: DataModel) -> StoredMetaData:
    length, storage_time, lifetime = reader.unpack(_STORED)
    stop = reader.position + length - 12
    value: MetaDataValue
    if model is DataModel.DICTIONARY:
        value = DictionaryEntryMeta(reader.opaque16(), _read_metadata(reader))
    elif model is DataModel.ARRAY:
        value = ArrayEntryMeta(reader.u32(), _read_metadata(reader))
    else:
        value = _read_metadata(reader)
    reader.expect(stop)
    return StoredMetaData(storage_time, lifetime, value)


def _write_kind_values(kind: int, generation: int, values: tuple[StoredData | StoredMetaData, ...]) -> bytes:
    octets = b"".join([value.encode() for value in values])
    return _KIND_HEAD.pack(kind, generation, len(octets)) + octets


def _read_kind_values(reader: Reader, kinds: Kinds) -> list[tuple[int, int, tuple[StoredData, ...]]]:
    """A list of kind, generation and StoredData values behind a four-octet length."""
    stop = reader.list32()
    unknown: list[int] = []
    found = []
    while reader.position < stop:
        kind, generation, size = reader.unpack(_KIND_HEAD)
        model = kinds.get(kind)
        if model is None:
            unknown.append(kind)
            reader.take(size)
            continue
        values_stop = reader.position + size
        values = []
        while reader.position < values_stop:
            values.append(read_stored_data(reader, model))
        reader.expect(values_stop)
        found.append((kind, generation, tuple(values)))
    reader.expect(stop)
    if unknown:
        raise _unknown(unknown)
    return found


def _check_distinct(kinds: Iterable[int]) -> None:
    """A Store or Find names a kind only once (sections 7.4.1.1 and 7.4.4.1)."""
    seen = list(kinds)
    if len(seen) > 1 and len(set(seen)) != len(seen):
        raise OctetsError("a kind is named twice")


def _write_specifier(specifier: StoredDataSpecifier) -> bytes:
    kind, generation, ranges, keys = specifier
    if ranges is not None and keys is not None:
        raise OctetsError("a specifier has ranges or keys, not both")
    model = b""
    if keys is not None:
        model = opaque16(b"".join([opaque16(key) for key in keys]))
    elif ranges is not None:
        _check_ranges(ranges)
        model = opaque16(b"".join([_RANGE.pack(first, last) for first, last in ranges]))
    return _SPECIFIER.pack(kind, generation, len(model)) + model


def _check_ranges(ranges: tuple[tuple[int, int], ...]) -> None:
    previous = -1
    for first, last in sorted(ranges):
        if first > last:
            raise OctetsError(f"array range {first}..{last} runs backwards")
        if first <= previous:
            raise OctetsError("array ranges overlap")
        previous = last


def _read_specifiers(reader: Reader, kinds: Kinds) -> tuple[StoredDataSpecifier, ...]:
    list_stop = reader.list16()
    unknown: list[int] = []
    specifiers = []
    while reader.position < list_stop:
        kind, generation, length = reader.unpack(_SPECIFIER)
        stop = reader.position + length
        model = kinds.get(kind)
        if model is None:
            unknown.append(kind)
            reader.take(length)
            continue
        ranges = keys = None
        if model is DataModel.DICTIONARY:
            keys = _read_keys(reader)
        elif model is DataModel.ARRAY:
            ranges = _read_ranges(reader)
        reader.expect(stop)
        specifiers.append(StoredDataSpecifier(kind, generation, ranges, keys))
    reader.expect(list_stop)
    if unknown:
        raise _unknown(unknown)
    return tuple(specifiers)


def _read_keys(reader: Reader) -> tuple[bytes, ...]:
    stop = reader.list16()
    if stop == reader.position:
        return ()
    keys = []
    while reader.position < stop:
        keys.append(reader.opaque16())
    reader.expect(stop)
    return tuple(keys)


def _read_ranges(reader: Reader) -> tuple[tuple[int, int], ...]:
    stop = reader.list16()
    ranges: list[tuple[int, int]] = []
    while reader.position < stop:
        first, last = reader.unpack(_RANGE)
        ranges.append((first, last))
    reader.expect(stop)
    found = tuple(ranges)
    _check_ranges(found)
    return found


A_COPY: Final = 1
"""The ``replica_number`` of all copies, so that one message serves all who hold them."""


@attrs.define(unsafe_hash=True)
class StoreReq(Body):
    """Stores values at a resource; ``replica_number`` 0 for the owner's own Store (section 7.4.1.1)."""

    code: ClassVar[int] = MessageCode.STORE_REQ
    resource: ResourceId
    replica_number: int
    kinds: tuple[StoreKindData, ...]

    def _write(self) -> bytes:
        _check_distinct([data.kind for data in self.kinds])
        if not 0 <= self.replica_number < 256:
            raise OctetsError(f"replica number {self.replica_number} does not fit in an octet")
        kinds = b"".join([_write_kind_values(*data) for data in self.kinds])
        return b"".join((_write_resource(self.resource), bytes((self.replica_number,)), opaque32(kinds)))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        resource = _read_resource(reader)
        replica_number = reader.u8()
        data = tuple([StoreKindData(*item) for item in _read_kind_values(reader, kinds)])
        _check_distinct([item.kind for item in data])
        return cls(resource, replica_number, data)


@attrs.define(unsafe_hash=True)
class StoreAns(Body):
    """What a Store brought about; also the error_info of Generation_Counter_Too_Low (section 7.4.1.2)."""

    code: ClassVar[int] = MessageCode.STORE_ANS
    kinds: tuple[StoreKindResponse, ...]

    def _write(self) -> bytes:
        parts = []
        for kind, generation, replicas in self.kinds:
            nodes = b"".join([node_id(replica) for replica in replicas])
            parts.append(_REPLICAS_HEAD.pack(kind, generation, len(nodes)) + nodes)
        return opaque16(b"".join(parts))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        stop = reader.list16()
        responses = []
        while reader.position < stop:
            kind, generation, size = reader.unpack(_REPLICAS_HEAD)
            octets = reader.take(size)
            starts = range(0, size, NODE_ID_LENGTH)
            replicas = tuple([NodeId(octets[at : at + NODE_ID_LENGTH]) for at in starts])
            if size % NODE_ID_LENGTH or INVALID_NODE_ID in replicas:
                raise OctetsError("the replicas are not a list of Node-IDs")
            responses.append(StoreKindResponse(kind, generation, replicas))
        reader.expect(stop)
        return cls(tuple(responses))


@attrs.define(unsafe_hash=True)
class _FetchBody(Body):
    """FetchReq and StatReq have the same fields."""

    resource: ResourceId
    specifiers: tuple[StoredDataSpecifier, ...]

    def _write(self) -> bytes:
        specifiers = b"".join([_write_specifier(specifier) for specifier in self.specifiers])
        return _write_resource(self.resource) + opaque16(specifiers)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(_read_resource(reader), _read_specifiers(reader, kinds))


class FetchReq(_FetchBody):
    """Asks for values at a resource (section 7.4.2.1)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.FETCH_REQ


@attrs.define(unsafe_hash=True)
class FetchAns(Body):
    """The values, kind by kind (section 7.4.2.2)."""

    code: ClassVar[int] = MessageCode.FETCH_ANS
    kinds: tuple[FetchKindResponse, ...]

    def _write(self) -> bytes:
        return opaque32(b"".join([_write_kind_values(*response) for response in self.kinds]))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(tuple([FetchKindResponse(*item) for item in _read_kind_values(reader, kinds)]))


class StatReq(_FetchBody):
    """Asks for metadata of values at a resource (section 7.4.3.1)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.STAT_REQ


@attrs.define(unsafe_hash=True)
class StatAns(Body):
    """The metadata, kind by kind (section 7.4.3.2)."""

    code: ClassVar[int] = MessageCode.STAT_ANS
    kinds: tuple[StatKindResponse, ...]

    def _write(self) -> bytes:
        return opaque32(b"".join([_write_kind_values(*response) for response in self.kinds]))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        stop = reader.list32()
        unknown: list[int] = []
        responses = []
        while reader.position < stop:
            kind, generation, size = reader.unpack(_KIND_HEAD)
            model = kinds.get(kind)
            if model is None:
                unknown.append(kind)
                reader.take(size)
                continue
            values_stop = reader.position + size
            values = []
            while reader.position < values_stop:
                values.append(_read_stored_metadata(reader, model))
            reader.expect(values_stop)
            responses.append(StatKindResponse(kind, generation, tuple(values)))
        reader.expect(stop)
        if unknown:
            raise _unknown(unknown)
        return cls(tuple(responses))


@attrs.define(unsafe_hash=True)
class FindReq(Body):
    """Asks for the resource nearest to ``resource`` that has values of each kind (section 7.4.4.1)."""

    code: ClassVar[int] = MessageCode.FIND_REQ
    resource: ResourceId
    kinds: tuple[int, ...]

    def _write(self) -> bytes:
        _check_distinct(self.kinds)
        return _write_resource(self.resource) + opaque8(b"".join([_KIND.pack(kind) for kind in self.kinds]))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        resource = _read_resource(reader)
        stop = reader.list8()
        wanted = []
        while reader.position < stop:
            wanted.append(reader.u32())
        reader.expect(stop)
        _check_distinct(wanted)
        return cls(resource, tuple(wanted))


@attrs.define(unsafe_hash=True)
class FindAns(Body):
    """Pairs of kind and nearest Resource-ID, which is zero (all octets, or none at all) if there is none."""

    code: ClassVar[int] = MessageCode.FIND_ANS
    results: tuple[tuple[int, ResourceId], ...]

    def _write(self) -> bytes:
        parts = []
        for kind, closest in self.results:
            if len(closest) > MAX_RESOURCE_ID_LENGTH:
                raise OctetsError(f"a Resource-ID of {len(closest)} octets is too long")
            parts.append(_KIND.pack(kind) + opaque8(closest))
        return opaque16(b"".join(parts))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        stop = reader.list16()
        results = []
        while reader.position < stop:
            kind = reader.u32()
            closest = reader.opaque8()
            if len(closest) > MAX_RESOURCE_ID_LENGTH:
                raise OctetsError(f"a Resource-ID of {len(closest)} octets is too long")
            results.append((kind, ResourceId(closest)))
        reader.expect(stop)
        return cls(tuple(results))

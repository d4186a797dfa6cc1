"""The bodies that topology plug-ins use: Join, Leave, Update, RouteQuery, Probe (RFC 6940 section 6.4.2)."""

from __future__ import annotations

from struct import Struct
from typing import ClassVar, Final, Self

import attrs

from p2psipd.proto.octets import OctetsError, Reader, opaque8, opaque16
from p2psipd.proto.reload.bodies import Body, Kinds, MessageCode
from p2psipd.proto.reload.ids import NODE_ID_LENGTH, NodeId, node_id
from p2psipd.proto.reload.wire import Destination, read_destination

# ProbeInformationType (RFC 6940 section 14.13)
PROBE_RESPONSIBLE_SET: Final = 1
PROBE_NUM_RESOURCES: Final = 2
PROBE_UPTIME: Final = 3

_PROBE_INFORMATION = Struct(">BBI")
_PROBE_HEAD = Struct(">BB")


@attrs.frozen
class _NodeBody(Body):
    """A Node-ID and data that belongs to the topology plug-in."""

    node: NodeId
    data: bytes = b""

    def _write(self) -> bytes:
        return node_id(self.node) + opaque16(self.data)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(node_id(reader.take(NODE_ID_LENGTH)), reader.opaque16())


@attrs.frozen
class _PlugInBody(Body):
    """A body that is wholly the topology plug-in's."""

    data: bytes = b""

    def _write(self) -> bytes:
        return self.data

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(reader.rest())


class JoinReq(_NodeBody):
    """A node takes its place: its Node-ID and plug-in data (section 6.4.2.1)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.JOIN_REQ


@attrs.frozen
class JoinAns(Body):
    """The join is granted; plug-in data (section 6.4.2.1)."""

    code: ClassVar[int] = MessageCode.JOIN_ANS
    data: bytes = b""

    def _write(self) -> bytes:
        return opaque16(self.data)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(reader.opaque16())


class LeaveReq(_NodeBody):
    """A node goes: its Node-ID and plug-in data (section 6.4.2.2)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.LEAVE_REQ


@attrs.frozen
class LeaveAns(Body):
    """Empty (section 6.4.2.2)."""

    code: ClassVar[int] = MessageCode.LEAVE_ANS


class UpdateReq(_PlugInBody):
    """Routing state; the whole body is plug-in data without a length (section 6.4.2.3)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.UPDATE_REQ


class UpdateAns(_PlugInBody):
    """Success; our plug-in leaves it empty (section 6.4.2.3)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.UPDATE_ANS


@attrs.frozen
class RouteQueryReq(Body):
    """Asks where the receiver would route a message for ``destination`` (section 6.4.2.4.1)."""

    code: ClassVar[int] = MessageCode.ROUTE_QUERY_REQ
    send_update: bool
    destination: Destination
    data: bytes = b""

    def _write(self) -> bytes:
        return (b"\x01" if self.send_update else b"\x00") + self.destination.encode() + opaque16(self.data)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(reader.boolean(), read_destination(reader), reader.opaque16())


class RouteQueryAns(_PlugInBody):
    """The answer; the whole body is plug-in data without a length (section 6.4.2.4.2)."""

    __slots__ = ()
    code: ClassVar[int] = MessageCode.ROUTE_QUERY_ANS


@attrs.frozen
class ProbeReq(Body):
    """Asks for pieces of status information, by PROBE_... type (section 6.4.2.5.1)."""

    code: ClassVar[int] = MessageCode.PROBE_REQ
    types: tuple[int, ...] = ()

    def _write(self) -> bytes:
        try:
            types = bytes(self.types)
        except ValueError as error:
            raise OctetsError(str(error)) from None
        _check_probe_types(self.types)
        return opaque8(types)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        types = tuple(reader.opaque8())
        _check_probe_types(types)
        return cls(types)


@attrs.frozen
class ProbeAns(Body):
    """``information`` is pairs of type and unsigned 32-bit value (section 6.4.2.5.2).

    All registered types hold such a number.  An unregistered one of another length is skipped when read, as
    the structure's length octet is there to allow.
    """

    code: ClassVar[int] = MessageCode.PROBE_ANS
    information: tuple[tuple[int, int], ...] = ()

    def _write(self) -> bytes:
        _check_probe_types(tuple(probe_type for probe_type, _ in self.information))
        return opaque16(b"".join([_PROBE_INFORMATION.pack(name, 4, n) for name, n in self.information]))

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        stop = reader.list16()
        information = []
        while reader.position < stop:
            probe_type, length = reader.unpack(_PROBE_HEAD)
            _check_probe_types((probe_type,))
            if length == 4:
                information.append((probe_type, reader.u32()))
            elif probe_type <= PROBE_UPTIME:
                raise OctetsError(f"probe information {probe_type} has 4 octets, not {length}")
            else:
                reader.take(length)
        reader.expect(stop)
        return cls(tuple(information))


def _check_probe_types(types: tuple[int, ...]) -> None:
    if 0 in types:
        raise OctetsError("probe information type 0 is invalid")

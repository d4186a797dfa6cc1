"""The service discovery usage, ReDiR (RFC 7374): the stored value, where it is stored, and the tree's
intervals.

Readings of the RFC, where it leaves a choice: in the Resource Name ``namespace || level || node`` the two
numbers are the 16-bit integers that RedirServiceProvider carries; ``extension`` is the ``length`` octets that
end the structure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2psipd.proto.octets import OctetsError, Reader, opaque16, u8, u16
from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import NODE_ID_LENGTH, ResourceId, resource_id
from p2psipd.proto.reload.wire import Destination, read_destination

DEFAULT_BRANCHING_FACTOR: Final = 10
# From this level on even a tree with branching factor 2 has one node for every single Node-ID.
_DEEPEST_LEVEL: Final = 8 * NODE_ID_LENGTH


class RedirServiceProvider(NamedTuple):
    """One provider of a service in one node of the tree (RFC 7374 section 4.1)."""

    destination_list: tuple[Destination, ...]
    namespace: str
    level: int
    node: int
    extension_type: int = 0
    extension: bytes = b""

    def encode(self) -> bytes:
        """The structure; ``InvalidMessage`` if something does not fit."""
        try:
            return b"".join(
                (
                    u8(self.extension_type),
                    opaque16(b"".join([entry.encode() for entry in self.destination_list])),
                    opaque16(self.namespace.encode()),
                    u16(self.level),
                    u16(self.node),
                    opaque16(self.extension),
                )
            )
        except OctetsError as error:
            raise InvalidMessage(f"RedirServiceProvider: {error}") from None

    @classmethod
    def decode(cls, data: bytes) -> RedirServiceProvider:
        """Read the structure; ``InvalidMessage`` for anything malformed."""
        try:
            reader = Reader(data)
            extension_type = reader.u8()
            destinations = []
            stop = reader.list16()
            while reader.position < stop:
                destinations.append(read_destination(reader))
            reader.expect(stop)
            namespace = reader.opaque16().decode()
            level, node, extension = reader.u16(), reader.u16(), reader.opaque16()
            reader.expect_end()
        except (OctetsError, UnicodeDecodeError) as error:
            raise InvalidMessage(f"RedirServiceProvider: {error}") from None
        return cls(tuple(destinations), namespace, level, node, extension_type, extension)

    @property
    def resource(self) -> ResourceId:
        """The Resource-ID of the tree node that this value belongs to."""
        return tree_resource(self.namespace, self.level, self.node)


def tree_resource(namespace: str, level: int, node: int) -> ResourceId:
    """The Resource-ID of a tree node: H(namespace, level, node)."""
    try:
        return resource_id(namespace.encode() + u16(level) + u16(node))
    except OctetsError as error:
        raise InvalidMessage(f"no such tree node: {error}") from None


def belongs_to_node(node_id: bytes, level: int, node: int, branching_factor: int) -> bool:
    """Whether a Node-ID lies in one of the intervals of tree node (``level``, ``node``), which together are
    ``[2^128 node / b^level, 2^128 (node + 1) / b^level)`` (RFC 7374 section 3).
    """
    if not 0 <= level <= _DEEPEST_LEVEL or branching_factor < 2:
        return False
    nodes: int = branching_factor**level
    return int.from_bytes(node_id, "big") * nodes >> 8 * len(node_id) == node

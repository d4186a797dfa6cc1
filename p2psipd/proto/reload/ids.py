"""Node-IDs, Resource-IDs and Kind-IDs (RFC 6940 section 6.3.1.1), and the overlay's hash and distance.

Our overlays use 128-bit Node-IDs and Resource-IDs.  Both are plain ``bytes`` under a ``NewType``: routing
tables hash and compare them by the million, and a wrapper would cost more than it protects.
"""

from __future__ import annotations

from hashlib import sha1, sha256
from typing import Final, NewType

from p2psipd.proto.reload.errors import InvalidMessage

NodeId = NewType("NodeId", bytes)
ResourceId = NewType("ResourceId", bytes)
KindId = NewType("KindId", int)

NODE_ID_LENGTH: Final = 16
RESOURCE_ID_LENGTH: Final = 16
# RFC 6940 section 6.3.1.1 limits a Resource-ID to 254 octets although its length octet could say 255.
MAX_RESOURCE_ID_LENGTH: Final = 254

# "Whoever is at the other end of this link" (RFC 6940 section 6.1.1).
WILDCARD: Final = NodeId(b"\xff" * NODE_ID_LENGTH)
INVALID_NODE_ID: Final = NodeId(bytes(NODE_ID_LENGTH))


def node_id(data: bytes) -> NodeId:
    """``data`` as a Node-ID; ``InvalidMessage`` unless it is 16 octets and not all zero."""
    if len(data) != NODE_ID_LENGTH:
        raise InvalidMessage(f"a Node-ID has {NODE_ID_LENGTH} octets, not {len(data)}")
    if data == INVALID_NODE_ID:
        raise InvalidMessage("the Node-ID of all zeros is invalid")
    return NodeId(data)


def resource_id(name: str | bytes) -> ResourceId:
    """The Resource-ID of a Resource Name: the first 128 bits of SHA-256 over its UTF-8 octets."""
    octets = name.encode() if isinstance(name, str) else name
    return ResourceId(sha256(octets).digest()[:RESOURCE_ID_LENGTH])


def distance(a: bytes, b: bytes) -> int:
    """The XOR distance of two identifiers of equal length, as an unsigned integer."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def overlay_hash(overlay_name: str) -> int:
    """The header's ``overlay`` field: the low 32 bits of SHA-1 of the name (RFC 6940 section 6.3.2)."""
    return int.from_bytes(sha1(overlay_name.encode(), usedforsecurity=False).digest()[-4:], "big")

"""STUN Binding, the responder's half (RFC 8489): so a SIP port answers keep-alives (RFC 5626 section 3.5.2)."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from struct import Struct
from typing import Final

_HEADER: Final = Struct(">HHI12s")
_ATTRIBUTE: Final = Struct(">HH")
_XOR_MAPPED: Final = Struct(">BBH")
_COOKIE: Final = 0x2112A442
_BINDING_REQUEST: Final = 0x0001
_BINDING_SUCCESS: Final = 0x0101
_BINDING_ERROR: Final = 0x0111
_ERROR_CODE: Final = 0x0009
_UNKNOWN_ATTRIBUTES: Final = 0x000A
_XOR_MAPPED_ADDRESS: Final = 0x0020
_KNOWN: Final = frozenset({0x0006, 0x0008})
"""USERNAME and MESSAGE-INTEGRITY: a responder without credentials ignores them (section 6.3)."""


def binding_response(datagram: bytes, source: tuple[str, int]) -> bytes | None:
    """The answer to a Binding request that came from `source` (numeric host, port); None for all else.

    Success with XOR-MAPPED-ADDRESS, or error 420 naming comprehension-required attributes that are not known
    (section 6.3.1).
    """
    if len(datagram) < _HEADER.size:
        return None
    kind, length, cookie, transaction = _HEADER.unpack_from(datagram)
    if kind != _BINDING_REQUEST or cookie != _COOKIE or length % 4 or length != len(datagram) - _HEADER.size:
        return None
    unknown = _unknown_attributes(datagram)
    if unknown is None:
        return None
    if unknown:
        return _refusal(transaction, unknown)
    return _message(_BINDING_SUCCESS, transaction, _attribute(_XOR_MAPPED_ADDRESS, _xored(source, transaction)))


def is_stun(datagram: bytes) -> bool:
    """Whether a datagram bears the magic cookie of STUN messages (section 5)."""
    return datagram[4:8] == _COOKIE.to_bytes(4, "big")


def _unknown_attributes(datagram: bytes) -> list[int] | None:
    """Comprehension-required attributes (below 0x8000) that we do not know; None where they overrun the message."""
    unknown, offset = [], _HEADER.size
    while offset < len(datagram):
        if offset + _ATTRIBUTE.size > len(datagram):
            return None
        kind, length = _ATTRIBUTE.unpack_from(datagram, offset)
        offset += _ATTRIBUTE.size + length + (-length % 4)
        if kind < 0x8000 and kind not in _KNOWN:
            unknown.append(kind)
    return unknown if offset == len(datagram) else None


def _xored(source: tuple[str, int], transaction: bytes) -> bytes:
    """The value of XOR-MAPPED-ADDRESS (section 14.2)."""
    address = ip_address(source[0].partition("%")[0])
    mask = _COOKIE.to_bytes(4, "big") + transaction
    family = 1 if isinstance(address, IPv4Address) else 2
    octets = bytes(a ^ b for a, b in zip(address.packed, mask, strict=False))
    return _XOR_MAPPED.pack(0, family, source[1] ^ (_COOKIE >> 16)) + octets


def _refusal(transaction: bytes, unknown: list[int]) -> bytes:
    text = b"Unknown Attribute"
    kinds = b"".join(kind.to_bytes(2, "big") for kind in dict.fromkeys(unknown))
    attributes = _attribute(_ERROR_CODE, bytes((0, 0, 4, 20)) + text) + _attribute(_UNKNOWN_ATTRIBUTES, kinds)
    return _message(_BINDING_ERROR, transaction, attributes)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _message(kind: int, transaction: bytes, attributes: bytes) -> bytes:
    return _HEADER.pack(kind, len(attributes), _COOKIE, transaction) + attributes

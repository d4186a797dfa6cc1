"""IpAddressPort of RFC 6940 section 6.3.1.1 as (host text, port) pairs."""

from __future__ import annotations

import ipaddress

from p2psipd.proto.octets import Reader
from p2psipd.proto.reload.errors import InvalidMessage

Address = tuple[str, int]

_IPV4, _IPV6 = 1, 2


def encode_address(address: Address) -> bytes:
    """`address` (numeric host, port) as an IpAddressPort structure."""
    packed = ipaddress.ip_address(address[0]).packed
    kind = _IPV4 if len(packed) == 4 else _IPV6
    return bytes([kind, len(packed) + 2]) + packed + address[1].to_bytes(2, "big")


def decode_address(reader: Reader) -> Address:
    """The IpAddressPort at the reader.

    :raises InvalidMessage: a type other than IPv4 and IPv6, or a length that does not fit it.
    """
    kind, length = reader.u8(), reader.u8()
    if (kind, length) not in ((_IPV4, 6), (_IPV6, 18)):
        raise InvalidMessage(f"address type {kind} of {length} bytes")
    packed = reader.take(length - 2)
    return str(ipaddress.ip_address(packed)), reader.u16()

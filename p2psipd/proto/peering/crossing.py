"""What an edge writes into Record-Route: the domain, and a token that every edge of the domain understands.

The value is ``<sip:TOKEN@a.test;lr>`` with an identity of our certificate as its host (RFC 5922 section 7.5), and
the same towards both sides. So a request of the dialog reaches the domain by RFC 3263, at any edge, and a request
from inside may take any edge: calls and their BYE go on when the edge that began them has died. The token names
the other domain and the edge, under a key that all registrars share.

It cannot be left out: the phones of an overlay are no TLS servers of their domain, so that a BYE straight to one would
find no way in.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from p2psipd.proto.sip.shared_secret import ROUTE_TOKENS, SharedSecret

__all__ = ["Crossings"]

_MAC_OCTETS: Final = 12
_EDGE_OCTETS: Final = 16
_MAX_TOKEN: Final = 400
_KEPT: Final = 1000
_PREFIX: Final = "x."


class Crossings:
    """Makes and reads the tokens of calls that cross the border of our domains.

    `edge` is the Node-ID (16 octets) of the edge that writes them: the others ask it first, while it lives.
    """

    def __init__(self, secrets: SharedSecret, edge: bytes = bytes(_EDGE_OCTETS)) -> None:
        self._secrets = secrets
        self._edge = edge
        self._values: dict[tuple[str, str], str] = {}
        self._keys: Sequence[bytes] = ()

    def value(self, own: str, other: str) -> str:
        """The Record-Route value for a call between our domain `own` and the domain `other`."""
        keys = self._secrets.keys(ROUTE_TOKENS)
        if keys is not self._keys or len(self._values) > _KEPT:
            self._values.clear()
            self._keys = keys
        found = self._values.get((own, other))
        if found is None:
            data = self._edge + other.encode("ascii", "replace")
            token = urlsafe_b64encode(_mac(keys[0], data) + data).decode("ascii").rstrip("=")
            found = self._values[(own, other)] = f"<sip:{_PREFIX}{token}@{own};lr>"
        return found

    @staticmethod
    def looks_so(user: str) -> bool:
        """Whether the user part of a Route may be a token of ours: enough to find who can tell."""
        return user.startswith(_PREFIX) and len(user) <= _MAX_TOKEN

    def other(self, user: str) -> str | None:
        """The other domain of the call whose token this is; None for what no edge of ours has written."""
        data = self._open(user)
        return None if data is None else data[_EDGE_OCTETS:].decode("ascii", "replace")

    @staticmethod
    def writer(user: str) -> bytes:
        """The Node-ID of the edge that claims to have written a token: enough to ask it first; b"" without one."""
        return _split(user)[1][:_EDGE_OCTETS]

    def _open(self, user: str) -> bytes | None:
        mac, data = _split(user)
        genuine = any(compare_digest(mac, _mac(key, data)) for key in self._secrets.keys(ROUTE_TOKENS))
        return data if genuine and len(data) > _EDGE_OCTETS else None


def _split(user: str) -> tuple[bytes, bytes]:
    """The authenticator and the data of a token; empty for what is none."""
    text = user[len(_PREFIX) :] if Crossings.looks_so(user) else ""
    try:
        octets = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        return b"", b""
    return octets[:_MAC_OCTETS], octets[_MAC_OCTETS:]


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2b(data, key=key, digest_size=_MAC_OCTETS, person=b"p2psipd crossing").digest()

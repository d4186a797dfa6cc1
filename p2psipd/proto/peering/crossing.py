"""What an edge writes into Record-Route: the domain, and a token that every edge of the domain understands.

The value is ``<sip:TOKEN@a.test;lr>`` with an identity of our certificate as its host (RFC 5922 section 7.5), and
the same towards both sides. So a request of the dialog reaches the domain by RFC 3263, at any edge, and a request
from inside may take any edge: calls and their BYE go on when the edge that began them has died. The token names
the other domain and the edge, under a key that all registrars share.

It also names the dialog, by its Call-ID and by who of us is in it: a request inside a dialog is not asked for a
password, but goes out with our signature. A token that was good for others would be a licence to sign as anybody.

It cannot be left out: the phones of an overlay are no TLS servers of their domain, so that a BYE straight to one would
find no way in.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from p2psipd.proto.sip.shared_secret import ROUTE_TOKENS, SharedSecret
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri

__all__ = ["Crossings", "mark_of"]

_MAC_OCTETS: Final = 12
_EDGE_OCTETS: Final = 16
_MARK_OCTETS: Final = 8
_NAMED_FROM: Final = _EDGE_OCTETS + _MARK_OCTETS
_MAX_TOKEN: Final = 400
_PREFIX: Final = "x."


class Crossings:
    """Makes and reads the tokens of calls that cross the border of our domains.

    `edge` is the Node-ID (16 octets) of the edge that writes them: the others ask it first, while it lives.
    """

    def __init__(self, secrets: SharedSecret, edge: bytes = bytes(_EDGE_OCTETS)) -> None:
        self._secrets = secrets
        self._edge = edge

    def value(self, own: str, other: str, mark: bytes) -> str:
        """The Record-Route value for the dialog `mark` (:func:`mark_of`) of our domain `own` and the domain `other`."""
        data = self._edge + mark + other.encode("ascii", "replace")
        token = urlsafe_b64encode(_mac(self._secrets.keys(ROUTE_TOKENS)[0], data) + data).decode("ascii").rstrip("=")
        return f"<sip:{_PREFIX}{token}@{own};lr>"

    @staticmethod
    def looks_so(user: str) -> bool:
        """Whether the user part of a Route may be a token of ours: enough to find who can tell."""
        return user.startswith(_PREFIX) and len(user) <= _MAX_TOKEN

    def other(self, user: str) -> str | None:
        """The other domain of the call whose token this is; None for what no edge of ours has written."""
        data = self._open(user)
        return None if data is None else data[_NAMED_FROM:].decode("ascii", "replace")

    def is_of(self, user: str, mark: bytes) -> bool:
        """Whether this token is one of ours, for the dialog `mark`."""
        data = self._open(user)
        return data is not None and data[_EDGE_OCTETS:_NAMED_FROM] == mark

    @staticmethod
    def writer(user: str) -> bytes:
        """The Node-ID of the edge that claims to have written a token: enough to ask it first; b"" without one."""
        return _split(user)[1][:_EDGE_OCTETS]

    def _open(self, user: str) -> bytes | None:
        mac, data = _split(user)
        genuine = any(compare_digest(mac, _mac(key, data)) for key in self._secrets.keys(ROUTE_TOKENS))
        return data if genuine and len(data) > _NAMED_FROM else None


def mark_of(call_id: str, party: Uri) -> bytes:
    """What tells a dialog from others: its Call-ID, and who on our side is in it: From of what goes out, To of what
    comes in, each time the same (RFC 3261 section 12.2.1.1), as far as phones agree on that: user and host.
    """
    if isinstance(party, SipUri):
        name = f"{party.unescaped_user.partition(';')[0]}@{party.host}"
    else:
        name = party.number if isinstance(party, TelUri) else str(party)
    text = f"{call_id}\0{name}".encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=_MARK_OCTETS, person=b"p2psipd dialog").digest()


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

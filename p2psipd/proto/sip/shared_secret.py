"""Keys that every registrar of the overlay can make: for nonces and for flow tokens (profile section 4).

A nonce or a token that one registrar issued is recognised by the others, and by itself after a restart,
because the key is derived from what all of them share: the key of the DIGEST-KEY epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import digest
from typing import Final, Protocol

#: The purposes for which there are keys.
NONCES: Final = "digest nonce"
ROUTE_TOKENS: Final = "route token"


class SharedSecret(Protocol):
    """Gives keys by purpose."""

    def keys(self, purpose: str) -> Sequence[bytes]:
        """Keys of 32 octets for `purpose`: what is issued now is signed with the first; what any of them signed is
        accepted.

        Never empty. It may answer differently later (a new epoch has begun), so it is asked each time; that is
        cheap. As long as nothing changes it answers with the same object.
        """
        ...


class OwnSecret:
    """The secret of one node alone: what it issued holds across its restarts, and nowhere else."""

    __slots__ = ("_keys", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[str, tuple[bytes, ...]] = {}

    def keys(self, purpose: str) -> Sequence[bytes]:
        """See :class:`SharedSecret`."""
        found = self._keys.get(purpose)
        if found is None:
            found = self._keys[purpose] = (digest(self._secret, b"p2psipd " + purpose.encode(), "sha256"),)
        return found

"""Which signed requests were accepted already (RFC 4474 section 13.1)."""

from __future__ import annotations

from hashlib import blake2b
from heapq import heappop, heappush
from typing import Final

from p2psipd.proto.sip.message import Request

__all__ = ["ReplayCache", "replay_key"]

MAXIMUM_ENTRIES: Final = 250_000


def replay_key(request: Request) -> bytes:
    """16 octets for Call-ID, From tag, CSeq number and method.

    The Call-ID alone would refuse every later request of a dialog, and the second try of a challenged one.
    """
    parts = (request.call_id, request.from_tag or "", str(request.cseq.number), request.method)
    return blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


class ReplayCache:
    """Keys of accepted requests, each for as long as its Date would be accepted again.

    Bounded: when it is full the entry makes room that would end first.  A key is put in only once its request was
    accepted: the same signed request comes again with a new branch after a 503 of ours (RFC 3263 section 4.3).
    """

    __slots__ = ("_ends", "_limit", "_until", "evicted")

    def __init__(self, limit: int = MAXIMUM_ENTRIES) -> None:
        self._limit = limit
        self._until: dict[bytes, float] = {}
        # Soonest first; the two kinds of Identity have windows of a minute and of an hour.
        self._ends: list[tuple[float, bytes]] = []
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._until)

    def holds(self, key: bytes, wall: float) -> bool:
        """Whether a request with this key was accepted, and could be again."""
        until = self._until.get(key)
        return until is not None and wall <= until

    def add(self, key: bytes, until: float, wall: float) -> None:
        """Remember an accepted request until this time (unix seconds)."""
        ends = self._ends
        # Two for each new one: in the long run all, and never many at once.
        for _ in range(2):
            if not ends or ends[0][0] >= wall:
                break
            self._end(*heappop(ends))
        if len(ends) >= self._limit:
            self._end(*heappop(ends))
            self.evicted += 1
        self._until[key] = until
        heappush(ends, (until, key))

    def _end(self, until: float, key: bytes) -> None:
        # One that was removed may be there again, until another time.
        if self._until.get(key) == until:
            del self._until[key]

    def remove(self, key: bytes) -> None:
        """Forget a request that was not carried on after all."""
        self._until.pop(key, None)

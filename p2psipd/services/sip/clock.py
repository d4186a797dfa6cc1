"""The two clocks of the SIP side, and what happens when the wall clock jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.task import deferLater

_JUMP_SECONDS: Final = 2.0
"""The wall clock may go so much faster or slower than the monotonic one between two looks; else it has jumped."""

_LOOK_SECONDS: Final = 0.1
"""What happens between two looks is dated by the old time, and moves with the rest where the clock has jumped."""


class Clocks:
    """`now` is the reactor's time, `wall` unix time; `jumped` is told by how many seconds the latter has jumped."""

    def __init__(self, reactor: Any, wall: Callable[[], float], jumped: Callable[[float], None]) -> None:
        self.now: Callable[[], float] = reactor.seconds
        self._read_wall = wall
        self._jumped = jumped
        self._ahead: float = wall() - self.now()
        self._look_at = self.now() + _LOOK_SECONDS
        self._reactor = reactor

    async def wait(self, seconds: float) -> None:
        """Return after so many seconds."""
        await deferLater(self._reactor, seconds)

    def wall(self) -> float:
        """Unix time, from the monotonic clock but where it is time to look how far the two are apart."""
        now = self.now()
        if now >= self._look_at:
            self._look(now)
        return now + self._ahead

    def _look(self, now: float) -> None:
        self._look_at = now + _LOOK_SECONDS
        ahead = self._read_wall() - now
        jump, self._ahead = ahead - self._ahead, ahead
        if abs(jump) > _JUMP_SECONDS:
            self._jumped(jump)

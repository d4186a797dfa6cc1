"""The two clocks of the SIP side, and what happens when the wall clock jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.task import deferLater

_JUMP_SECONDS: Final = 2.0
"""The wall clock may go so much faster or slower than the monotonic one between two looks; else it has jumped."""


class Clocks:
    """`now` is the reactor's time, `wall` unix time; `jumped` is told by how many seconds the latter has jumped."""

    def __init__(self, reactor: Any, wall: Callable[[], float], jumped: Callable[[float], None]) -> None:
        self.now: Callable[[], float] = reactor.seconds
        self._read_wall = wall
        self._jumped = jumped
        self._ahead = wall() - self.now()
        self._reactor = reactor

    async def wait(self, seconds: float) -> None:
        """Return after so many seconds."""
        await deferLater(self._reactor, seconds)

    def wall(self) -> float:
        """Unix time."""
        wall = self._read_wall()
        ahead = wall - self.now()
        jump, self._ahead = ahead - self._ahead, ahead
        if abs(jump) > _JUMP_SECONDS:
            self._jumped(jump)
        return wall

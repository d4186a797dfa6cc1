"""Whether the node has more to do than it can, and what part of new calls it must refuse to keep its head up.

A flood over UDP does not make a busy reactor late: what is too much waits in the socket's buffer and is lost there,
messages of calls that are under way among it. So it is the depth of that queue that counts most: it says what is too
much whoever else has the processor. New calls are refused long before it is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

_EVERY: Final = 0.1
_LATE: Final = 0.45
_BUSY: Final = 0.97
_QUEUED: Final = 0.1
_DEEP: Final = 0.25
_MORE: Final = 0.04
_LESS: Final = 0.02
_MOST_PART: Final = 0.95
_ENOUGH: Final = 0.8
"""From this part of the transactions that may be open, every new call is refused."""


class Load:
    """`refuse(part)` is told which part of new calls (0 to 1) is to be refused, whenever that changes.

    Ten times a second: more by a 25th where the reactor was late by more than 0.45 s, its thread had more than 97 % of
    a processor, or `queued()`, the datagrams that wait unread, was above a tenth (about 30 ms of work), twice in a row;
    more at once, by half of that, where it is above a quarter and does not fall; less by a fiftieth else. `open_count`
    are open transactions, of which there may be `most`. `cpu` gives the seconds of processor time of this thread.
    """

    def __init__(
        self,
        reactor: Any,
        open_count: Callable[[], int],
        most: int,
        refuse: Callable[[float], None],
        queued: Callable[[], float],
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._reactor = reactor
        self._open_count = open_count
        self._most = most
        self._refuse = refuse
        self._queued = queued
        self._cpu = cpu
        self._looked_at = 0.0
        self._cpu_then = 0.0
        self._call: Any = None
        self._was_hard = False
        self.part = 0.0
        self.lag = 0.0
        self.busy = 0.0
        self.queued = 0.0

    def start(self) -> None:
        """Look from now on."""
        self._looked_at, self._cpu_then = self._reactor.seconds(), self._cpu()
        self._call = self._reactor.callLater(_EVERY, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        now, cpu = self._reactor.seconds(), self._cpu()
        passed = now - self._looked_at
        self.lag = passed - _EVERY
        self.busy = (cpu - self._cpu_then) / passed
        before, self.queued = self.queued, self._queued()
        hard = self.lag > _LATE or self.busy > _BUSY or self.queued > _QUEUED
        if self._open_count() > _ENOUGH * self._most:
            part = 1.0
        elif self.queued > _DEEP:
            part = self.part if self.queued < before else min(_MOST_PART, self.part + self.queued / 2)
        elif hard:
            part = min(_MOST_PART, self.part + _MORE) if self._was_hard else self.part
        else:
            part = max(0.0, self.part - _LESS)
        self._was_hard = hard
        if part != self.part:
            self.part = part
            self._refuse(part)
        self.start()

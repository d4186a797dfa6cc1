"""The timers of all transactions of a node (RFC 3261 section 17); only `transaction` imports it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """What has two timers: when each is due (monotonic seconds), None while it is not armed."""

    repeat_at: float | None
    expire_at: float | None


T = TypeVar("T", bound=Timed)


class TimerTable(Generic[T]):
    """What is due when.

    Nearly all timers are armed for one of the same few `delays`, and of those what is armed later is due later: each
    such delay has a queue, and a heap has the others. An entry whose timer has been moved or stopped since stays where
    it is until its time comes, or until most entries are such. `armed` is the number of timers that will go off.
    """

    __slots__ = ("_count", "_entries", "_first", "_heap", "_queues", "armed")

    def __init__(self, delays: Iterable[float]) -> None:
        self._queues: dict[float, deque[tuple[float, T]]] = {delay: deque() for delay in delays}
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0
        self._entries = 0
        # What is due first, if that is known: when, whose, and the queue that it heads (None: the heap).
        self._first: tuple[float, T, deque[tuple[float, T]] | None] | None = None
        self.armed = 0

    def __len__(self) -> int:
        return self._entries

    def repeat(self, timed: T, now: float, delay: float) -> None:
        """Arm the one timer, in place of what it was armed for."""
        if timed.repeat_at is None:
            self.armed += 1
        timed.repeat_at = now + delay
        self._add(timed, timed.repeat_at, delay)

    def expire(self, timed: T, now: float, delay: float) -> None:
        """Arm the other timer, in place of what it was armed for."""
        if timed.expire_at is None:
            self.armed += 1
        timed.expire_at = now + delay
        self._add(timed, timed.expire_at, delay)

    def stop_repeat(self, timed: T) -> None:
        """Stop the one timer."""
        if timed.repeat_at is not None:
            timed.repeat_at = None
            self.armed -= 1

    def stop(self, timed: T) -> None:
        """Stop both."""
        self.armed -= (timed.repeat_at is not None) + (timed.expire_at is not None)
        timed.repeat_at = timed.expire_at = None

    def _add(self, timed: T, at: float, delay: float) -> None:
        self._entries += 1
        if self._first is not None and at < self._first[0]:
            self._first = None
        queue = self._queues.get(delay)
        if queue is not None:
            queue.append((at, timed))
        else:
            self._count += 1
            heappush(self._heap, (at, self._count, timed))
        if self._entries > 2 * self.armed + 64:
            self._sweep()

    def _sweep(self) -> None:
        """Most entries are of timers stopped long ago: free what they hold."""
        for delay, queue in self._queues.items():
            self._queues[delay] = deque([e for e in queue if e[0] == e[1].repeat_at or e[0] == e[1].expire_at])
        self._heap = [e for e in self._heap if e[0] == e[2].repeat_at or e[0] == e[2].expire_at]
        heapify(self._heap)
        self._entries = len(self._heap) + sum(map(len, self._queues.values()))
        self._first = None

    def _find(self) -> tuple[float, T, deque[tuple[float, T]] | None] | None:
        """The first entry that counts; what does not count is dropped."""
        found: tuple[float, T, deque[tuple[float, T]] | None] | None = None
        for queue in self._queues.values():
            while queue:
                at, timed = queue[0]
                if at == timed.repeat_at or at == timed.expire_at:
                    if found is None or at < found[0]:
                        found = at, timed, queue
                    break
                queue.popleft()
                self._entries -= 1
        heap = self._heap
        while heap:
            at, _, timed = heap[0]
            if at == timed.repeat_at or at == timed.expire_at:
                return (at, timed, None) if found is None or at < found[0] else found
            heappop(heap)
            self._entries -= 1
        return found

    def next(self) -> float | None:
        """When the next timer is due."""
        first = self._first
        if first is None or (first[0] != first[1].repeat_at and first[0] != first[1].expire_at):
            first = self._first = self._find()
        return None if first is None else first[0]

    def due(self, now: float) -> tuple[T, bool] | None:
        """Whose timer is due next, if one is by `now`, and whether it is `expire`; it is not armed any more."""
        soonest = self.next()
        if soonest is None or soonest > now or self._first is None:
            return None
        at, timed, queue = self._first
        self._first = None
        if queue is None:
            heappop(self._heap)
        else:
            queue.popleft()
        self._entries -= 1
        self.armed -= 1
        expires = at == timed.expire_at
        if expires:
            timed.expire_at = None
        else:
            timed.repeat_at = None
        return timed, expires

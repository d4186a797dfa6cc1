"""What a holder remembers of values that are gone, so that nobody brings them back.

A stored value protects itself: an older one is refused.  When it has expired, its storage time stays behind
as a high-water mark until the certificates that signed the entry have expired too, for until then a copy of
an old Store would still verify.  The generation counter of a kind stays with the marks, so that it never
runs backwards. Bounded: beyond the limit the marks that were touched longest ago go first.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.records import DropGeneration, DropMark, PutMark, RecordChange

NEVER: Final = -1
"""The storage time of what was never stored: every real one is higher."""
_SLACK: Final = 1000


class _Marks:
    """The marks of one kind at one resource: (storage time, until) by entry key."""

    __slots__ = ("generation", "times")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.times: dict[bytes, tuple[int, float]] = {}

    def until(self) -> float:
        """When the last of the marks may go."""
        return max((until for _, until in self.times.values()), default=0.0)


class HighWater:
    """High-water marks by resource, kind and entry."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._marks: dict[tuple[ResourceId, int], _Marks] = {}
        self._count = 0
        # (until, resource, kind); an entry may be out of date, `expire` looks again.
        self._timers: list[tuple[float, ResourceId, int]] = []

    def __len__(self) -> int:
        return self._count

    def storage_time(self, resource: ResourceId, kind: int, key: bytes) -> int:
        """The mark of an entry, or NEVER."""
        marks = self._marks.get((resource, kind))
        return NEVER if marks is None else marks.times.get(key, (NEVER, 0.0))[0]

    def until(self, resource: ResourceId, kind: int, key: bytes) -> float:
        """How long the mark of an entry is needed; 0 if there is none."""
        marks = self._marks.get((resource, kind))
        return 0.0 if marks is None else marks.times.get(key, (NEVER, 0.0))[1]

    def generation(self, resource: ResourceId, kind: int) -> int:
        """The generation counter that a kind had when its last value went; 0 if unknown."""
        marks = self._marks.get((resource, kind))
        return 0 if marks is None else marks.generation

    def keep(
        self, resource: ResourceId, kind: int, key: bytes, storage_time: int, until: float, generation: int
    ) -> list[RecordChange]:
        """Leave a mark."""
        place = (resource, kind)
        marks = self._marks.pop(place, None) or _Marks(generation)
        self._marks[place] = marks  # now the one touched last
        marks.generation = max(marks.generation, generation)
        if key not in marks.times:
            self._count += 1
        marks.times[key] = (storage_time, until)
        self._arm(until, place)
        changes: list[RecordChange] = [PutMark(resource, kind, key, storage_time, until)]
        while self._count > self._limit:
            changes += self._forget_place(next(iter(self._marks)))
        return changes

    def replaced(self, resource: ResourceId, kind: int, key: bytes) -> list[RecordChange]:
        """A newer value of the entry was stored: its own storage time is the mark from now on."""
        marks = self._marks.get((resource, kind))
        if marks is None or marks.times.pop(key, None) is None:
            return []
        self._count -= 1
        if not marks.times:
            del self._marks[resource, kind]
        return [DropMark(resource, kind, key)]

    def restore(self, mark: PutMark) -> None:
        """Take up a mark from the record store."""
        self.keep(*mark, 0)

    def keep_generation(self, resource: ResourceId, kind: int, generation: int) -> bool:
        """Leave the generation with the marks of a kind that has no values; False if it has no marks
        either."""
        marks = self._marks.get((resource, kind))
        if marks is not None:
            marks.generation = max(marks.generation, generation)
        return marks is not None

    def next_at(self) -> float | None:
        """When `expire` next has something to do."""
        return self._timers[0][0] if self._timers else None

    def expire(self, wall: float) -> list[RecordChange]:
        """Forget the marks that are no longer needed.

        Here as in `keep` a DropGeneration goes with the last mark; the caller leaves it out if values remain.
        """
        changes: list[RecordChange] = []
        while self._timers and self._timers[0][0] <= wall:
            _, resource, kind = heappop(self._timers)
            marks = self._marks.get((resource, kind))
            if marks is not None and marks.until() <= wall:
                changes += self._forget_place((resource, kind))
        return changes

    def _arm(self, until: float, place: tuple[ResourceId, int]) -> None:
        if len(self._timers) > 2 * self._count + _SLACK:
            # Refreshed entries have left their old timers behind.
            self._timers = [(marks.until(), *where) for where, marks in self._marks.items()]
            heapify(self._timers)
        heappush(self._timers, (until, *place))

    def _forget_place(self, place: tuple[ResourceId, int]) -> list[RecordChange]:
        marks = self._marks.pop(place)
        self._count -= len(marks.times)
        changes: list[RecordChange] = [DropMark(*place, key) for key in marks.times]
        changes.append(DropGeneration(*place))
        return changes

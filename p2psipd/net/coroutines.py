"""Running a coroutine that mostly needs not wait, without the cost of a Deferred when it does not."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred


def run(work: Coroutine[Any, Any, None]) -> Deferred[None] | None:
    """Run `work` as far as it gets without waiting.

    None: it has ended. Else the Deferred of the rest, which Twisted carries on. What `work` raises before it first
    waits is raised here; what it raises later fails the Deferred.
    """
    try:
        waiting = work.send(None)
    except StopIteration:
        return None
    return Deferred.fromCoroutine(_rest(work, waiting))


async def _rest(work: Coroutine[Any, Any, None], waiting: Any) -> None:
    await _Resumed(work, waiting)


class _Resumed:
    """What a coroutine still has to do that has begun, and waits for the Deferred `waiting`."""

    def __init__(self, work: Coroutine[Any, Any, None], waiting: Any) -> None:
        self._work = work
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, None]:
        waiting = self._waiting
        while True:
            step: Callable[[], Any]
            try:
                result = yield waiting
            except BaseException as error:
                step = partial(self._work.throw, error)
            else:
                step = partial(self._work.send, result)
            try:
                waiting = step()
            except StopIteration:
                return

"""Waiting in a plain test: for a coroutine on Twisted's reactor, for a condition outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_Result = TypeVar("_Result")


def spin(coroutine: Coroutine[Any, Any, _Result], seconds: float = 30.0) -> _Result:
    """Run the reactor until `coroutine` has ended; its result or its error, TimeoutError after `seconds`.

    The reactor is stopped as twisted.trial stops it between tests (crash), so that it can run again.
    """
    from twisted.internet import reactor

    outcome: list[Any] = []

    def ended(result: Any) -> None:
        outcome.append(result)
        reactor.crash()  # type: ignore[attr-defined]

    waiting = Deferred.fromCoroutine(coroutine).addTimeout(seconds, reactor).addBoth(ended)  # type: ignore[arg-type]
    if not outcome:
        reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined]
    if not outcome:
        waiting.cancel()
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: _Result = outcome[0]
    return result


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Ask `condition` again and again until it is true; AssertionError that says `what` was waited for."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)

"""Coroutines that mostly need not wait."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from p2psipd.net.coroutines import run


async def _record(waits: list[Deferred[int]], done: list[object]) -> None:
    for wait in waits:
        try:
            done.append(await wait)
        except LookupError as error:
            done.append(type(error))


def test_what_need_not_wait_has_ended() -> None:
    """Without anything to wait for the coroutine has run to its end when `run` returns."""
    done: list[object] = []
    fired: Deferred[int] = Deferred()
    fired.callback(1)
    assert run(_record([fired], done)) is None
    assert done == [1]


def test_the_rest_goes_on_when_it_can() -> None:
    """Results and failures reach the coroutine one after the other, and its end fires the Deferred."""
    done: list[object] = []
    waits: list[Deferred[int]] = [Deferred(), Deferred(), Deferred()]
    rest = run(_record(waits, done))
    assert rest is not None and done == []
    ended: list[object] = []
    rest.addBoth(ended.append)
    waits[0].callback(1)
    waits[1].errback(LookupError())
    assert done == [1, LookupError] and ended == []
    waits[2].callback(3)
    assert done == [1, LookupError, 3] and ended == [None]


def test_what_it_raises_is_raised_or_fails_the_deferred() -> None:
    """Before the first wait an exception comes out of `run`; later it fails the Deferred."""

    async def fails(waits: list[Deferred[int]]) -> None:
        for wait in waits:
            await wait
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run(fails([]))
    wait: Deferred[int] = Deferred()
    rest = run(fails([wait]))
    assert rest is not None
    failures: list[object] = []
    rest.addErrback(lambda failure: failures.append(failure.type))
    wait.callback(1)
    assert failures == [ValueError]

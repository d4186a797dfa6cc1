"""The driver runs a core to completion, keeps one timer, and survives a core that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from p2psipd.net.driver import FAULT_PAUSE, Driver


class Say(NamedTuple):
    """An output: say a word."""

    word: str


class Shout(NamedTuple):
    """Another output."""

    word: str


class Fault(Exception):
    """What the core below raises."""


class Echo:
    """A core that says each word; ``timers`` are the instants at which it wants to be called."""

    def __init__(self) -> None:
        self.timers: list[float] = []
        self.fired: list[float] = []
        self.fails_at_timer = False

    def receive(self, item: str, now: float, wall: float) -> list[object]:
        if item == "fail":
            raise Fault(item)
        if item == "later":
            self.timers.append(now + 10)
            return []
        return [Shout(item)] if item.isupper() else [Say(item), Say(f"{item}!")]

    def next_timer(self) -> float | None:
        return min(self.timers, default=None)

    def handle_timer(self, now: float, wall: float) -> list[object]:
        if self.fails_at_timer:
            raise Fault("timer")
        self.fired.append(now)
        self.timers = [at for at in self.timers if at > now]
        return [Say("due")]


class DriverTests(SynchronousTestCase):
    """One core, a clock that the test turns, and a list of what was performed."""

    def setUp(self) -> None:
        self.core = Echo()
        self.clock = Clock()
        self.done: list[str] = []
        self.said: Callable[[Say], object] = lambda output: self.done.append(output.word)
        self.driver = self.make()

    def make(self, **more: Callable[[object], object]) -> Driver:
        return Driver(
            self.core,
            {Say: lambda output: self.said(output)},
            self.clock,
            name="echo",
            flush=lambda: self.done.append("flush"),
            wall=lambda: 0.0,
            **more,
        )

    def test_one_flush_a_run(self) -> None:
        """All outputs of one run are performed before the one flush, so they leave in one write."""
        self.driver.feed("a")
        self.assertEqual(self.done, ["a", "a!", "flush"])

    def test_input_during_outputs_waits(self) -> None:
        """What is fed while outputs are performed is taken after the last of them."""

        def said(output: Say) -> None:
            self.done.append(output.word)
            if output.word == "a":
                self.driver.feed("b")

        self.said = said
        self.driver.feed("a")
        self.assertEqual(self.done, ["a", "a!", "b", "b!", "flush"])

    def test_input_during_flush_is_taken(self) -> None:
        """What is fed by the flush (a connection lost in a write) is not left in the inbox."""
        fed = []

        def flush() -> None:
            if not fed:
                fed.append(True)
                self.driver.feed("b")

        self.driver = Driver(self.core, {Say: self.said}, self.clock, name="echo", flush=flush)
        self.driver.feed("a")
        self.assertEqual(self.done, ["a", "a!", "b", "b!"])

    def test_dispatch_by_class(self) -> None:
        """An output without a handler of its own goes to ``otherwise``, and all are counted by class."""
        rest: list[object] = []
        driver = self.make(otherwise=rest.append)
        driver.feed("A")
        driver.feed("a")
        self.assertEqual(rest, [Shout("A")])
        self.assertEqual(driver.outputs, {Shout: 1, Say: 2})
        self.assertEqual(driver.inputs, {str: 2})

    def test_one_delayed_call(self) -> None:
        """However many timers a core has, one delayed call is kept, at the earliest."""
        for _ in range(3):
            self.driver.feed("later")
            self.clock.advance(1)
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [10])
        for _ in range(12):
            self.clock.advance(1)
        self.assertEqual(self.core.fired, [10, 11, 12])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timer_moved_later(self) -> None:
        """A timer that moved later is not handled early."""
        self.driver.feed("later")
        self.core.timers = [15.0]
        self.driver.feed("a")
        self.clock.advance(10)
        self.assertEqual(self.core.fired, [])
        self.clock.advance(5)
        self.assertEqual(self.core.fired, [15])

    def test_timer_moved_sooner(self) -> None:
        """A timer that moved sooner is handled when it is due."""
        self.driver.feed("later")
        self.core.timers = [2.0]
        self.driver.feed("a")
        self.clock.advance(2)
        self.assertEqual(self.core.fired, [2])

    def test_core_fails_at_input(self) -> None:
        """A core that raises is logged with the input, the input's source is told, and the next input
        works.
        """
        sources: list[object] = []
        self.driver = self.make(on_fault=sources.append)
        self.driver.feed("fail")
        self.driver.feed("a")
        self.assertEqual(sources, ["fail"])
        self.assertEqual(self.done, ["flush", "a", "a!", "flush"])
        self.assertEqual(self.driver.faults, 1)
        self.assertEqual(len(self.flushLoggedErrors(Fault)), 1)

    def test_core_fails_at_timer(self) -> None:
        """A core whose timer fails each time is not called in a tight loop."""
        self.core.fails_at_timer = True
        self.driver.feed("later")
        self.clock.advance(10)
        self.clock.pump([FAULT_PAUSE / 10] * 25)
        self.assertEqual(len(self.flushLoggedErrors(Fault)), 3)

    def test_performing_fails(self) -> None:
        """An output that cannot be performed does not keep the next from being performed."""

        def said(output: Say) -> None:
            if output.word == "a":
                raise Fault("perform")
            self.done.append(output.word)

        self.said = said
        self.driver.feed("a")
        self.assertEqual(self.done, ["a!", "flush"])
        self.assertEqual(len(self.flushLoggedErrors(Fault)), 1)

    def test_stopped(self) -> None:
        """After stop nothing is taken and no call is left."""
        self.driver.feed("later")
        self.driver.stop()
        self.driver.feed("a")
        self.assertEqual((self.done, self.clock.getDelayedCalls()), (["flush"], []))

"""Runs one protocol core on the reactor: performs its outputs and keeps its one timer armed.

The driver is the only place where a core meets time.  It runs to completion: what is fed while outputs are
performed waits its turn, so that a user who answers a request from inside the notification does not reorder
anything.  When the inbox is empty, ``flush`` is called once, so that all that was written to one connection
in a run leaves in one write (an acknowledgement together with the answer).
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from p2psipd.proto.machine import Machine

#: After a fault in ``handle_timer`` the next call waits this long, so that a core that fails each time does
#: not spin.
FAULT_PAUSE: Final = 1.0

#: After a timer the next one waits at least this long, so that many timers close together cost one call.
TIMER_GRAIN: Final = 0.01

#: How much of an offending input is logged.
_LOGGED: Final = 400


#: What a core is asked to do at an instant (monotonic and Unix seconds); returns outputs.
Action = Callable[[float, float], Iterable[object]]


class _Call:
    """The input that stands for "do this now" (the timer is due, the core starts)."""

    def __init__(self, name: str, action: Action) -> None:
        self.name = name
        self.action = action

    def __repr__(self) -> str:
        return self.name


class Driver:
    """Feeds one core and performs what it orders.

    ``handlers`` maps the class of an output or event to what performs it; an output of another class goes
    to ``otherwise``.  ``on_fault`` is told of the input at which the core raised (never of the timer); it
    should close the connection the input came from.  ``wall`` is the Unix time.

    ``inputs`` and ``outputs`` count what went in and came out, by class, for the metrics; ``trace``
    switches one debug line a step.
    """

    def __init__(
        self,
        core: Machine[Any, Any],
        handlers: Mapping[type, Callable[[Any], object]],
        clock: IReactorTime,
        *,
        name: str,
        otherwise: Callable[[Any], object] | None = None,
        flush: Callable[[], object] | None = None,
        on_fault: Callable[[object], object] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.inputs: defaultdict[type, int] = defaultdict(int)
        self.outputs: defaultdict[type, int] = defaultdict(int)
        self.faults = 0
        self.trace = False
        self._log = Logger(namespace=f"p2psipd.{name}")
        self._core = core
        self._timer_due = _Call("timer", core.handle_timer)
        self._handlers = handlers
        self._clock = clock
        self._otherwise: Callable[[Any], object] = otherwise or self._unknown
        self._flush = flush
        self._on_fault = on_fault
        self._wall = wall
        self._inbox: deque[object] = deque()
        self._running = False
        self._stopped = False
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0
        self._not_before = 0.0

    def feed(self, item: object) -> None:
        """Hand ``item`` to the core, now or after what is being performed.  After :meth:`stop` it is
        dropped.
        """
        if self._running:
            self._inbox.append(item)
        elif not self._stopped:
            self._run(item)

    def stop(self) -> None:
        """No more inputs, no more timer."""
        self._stopped = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def call(self, action: Action) -> None:
        """Have ``action``, a method of the core, give outputs as an input would; for what is done once
        (start).
        """
        self.feed(_Call(getattr(action, "__name__", "call"), action))

    def _run(self, item: object) -> None:
        self._running = True
        inbox = self._inbox
        try:
            self._step(item)
            while True:
                while inbox:
                    self._step(inbox.popleft())
                if self._flush is None:
                    break
                self._flush()
                # Flushing may lose a connection, and so feed.
                if not inbox:
                    break
        finally:
            self._running = False
        if not self._stopped:
            self._arm()

    def _step(self, item: object) -> None:
        kind = item.__class__
        self.inputs[kind] += 1
        now = self._clock.seconds()
        try:
            if kind is _Call:
                outputs = cast(_Call, item).action(now, self._wall())
            else:
                outputs = self._core.receive(item, now, self._wall())
        except Exception:
            self._fault(item, now)
            return
        if self.trace and (outputs or kind is not _Call):
            self._log.debug("{name}: {item} -> {outputs}", name=self.name, item=_Brief(item), outputs=_Brief(outputs))
        counts, handlers = self.outputs, self._handlers
        for output in outputs:
            kind = output.__class__
            counts[kind] += 1
            try:
                handlers.get(kind, self._otherwise)(output)
            except Exception:
                self._log.failure("could not perform {output}", output=_Brief(output))

    def _fault(self, item: object, now: float) -> None:
        """The core failed: say at what, close where it came from, and go on."""
        self.faults += 1
        self._log.failure("{name} failed at {item}", name=self.name, item=_Brief(item))
        if item is self._timer_due:
            self._not_before = now + FAULT_PAUSE
        elif self._on_fault is not None and not isinstance(item, _Call):
            try:
                self._on_fault(item)
            except Exception:
                self._log.failure("could not close the source of {item}", item=_Brief(item))

    def _unknown(self, output: object) -> None:
        self._log.warn("nobody performs {output}", output=_Brief(output))

    def _arm(self) -> None:
        """See that the delayed call fires no later than the core asks.

        One that fires too early is left alone: timers mostly move later (each acknowledgement moves the next
        retransmission), and one early call is cheaper than moving the timer at each step.
        """
        at = self._core.next_timer()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        at = max(at, self._not_before)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        at = self._core.next_timer()
        if at is not None and max(at, self._not_before) <= self._clock.seconds():
            self._not_before = max(self._not_before, self._clock.seconds() + TIMER_GRAIN)
            self.feed(self._timer_due)
        else:
            self._arm()


class _Brief:
    """An input or output in a log line: shortened, and only formatted when the line is really written."""

    __slots__ = ("_item",)

    def __init__(self, item: object) -> None:
        self._item = item

    def __repr__(self) -> str:
        text = repr(self._item)
        return text if len(text) <= _LOGGED else f"{text[:_LOGGED]}... ({len(text)} characters)"

    __str__ = __repr__

"""The shape of a protocol core: what the driver calls, and nothing more."""

from __future__ import annotations

from typing import Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Output = TypeVar("Output")


class Machine(Protocol[Item, Output]):
    """A protocol core without I/O: inputs and time go in, outputs come back in the order to perform them.

    ``now`` is monotonic seconds and drives every timer; ``wall`` is Unix seconds and is used only for what
    the RFCs date (storage times, certificates).  A core never keeps either clock itself.
    """

    def receive(self, item: Item, now: float, wall: float) -> list[Output]:
        """Take one input; the outputs that it causes."""
        ...

    def next_timer(self) -> float | None:
        """The ``now`` at which ``handle_timer`` wants to be called, or None if nothing is waiting."""
        ...

    def handle_timer(self, now: float, wall: float) -> list[Output]:
        """Do whatever is due at ``now``; calling too early is harmless and returns no outputs."""
        ...

"""Keep-alives towards phones behind a NAT that would lose their mapping: who speaks UDP, and has not taken that upon
itself (RFC 5626 section 3.5).

The node that owns a flow sends them, and nobody else: only from its address do they pass the NAT.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from p2psipd.proto.sip.locating import behind_nat
from p2psipd.proto.sip.registrar import BindingTable, OwnBinding

_OCTETS: Final = b"\r\n\r\n"
"""What every phone passes over between messages (RFC 3261 section 7.5)."""


class KeepAlives:
    """Goes through the users of `table` once in `seconds` (0: never), a part at each :meth:`sweep`."""

    def __init__(self, table: BindingTable, seconds: float, counters: Counter[str]) -> None:
        self._table = table
        self._seconds = seconds
        self._counters = counters
        self._users: list[str] = []
        self._count = 0
        self._begun_at = float("-inf")

    def sweep(self, now: float, wall: float) -> None:
        """Called every second or so: send what is due, spread over the round."""
        if not self._seconds:
            return
        gone = now - self._begun_at
        if gone >= self._seconds:
            self._serve(len(self._users), wall)
            self._users, self._begun_at, gone = self._table.users(), now, 0.0
            self._count = len(self._users)
        left = int(self._count * (1 - gone / self._seconds))
        self._serve(len(self._users) - left, wall)

    def _serve(self, count: int, wall: float) -> None:
        for _ in range(count):
            for own in self._table.of(self._users.pop(), wall):
                flow: Any = own.flow
                if _needs_it(own):
                    flow.write(_OCTETS)
                    self._counters["keep_alives"] += 1


def _needs_it(own: OwnBinding) -> bool:
    """Whether a phone is behind a NAT, and does not keep its flow itself as those do that have a reg-id."""
    binding, flow, _ = own
    if flow is None or flow.reliable or binding.reg_id or binding.path:
        return False
    return behind_nat(binding, flow.remote[0])

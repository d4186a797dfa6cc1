"""A connection whose other end is in this process: services that are user agents (echo, later voice mail and
conferences) speak SIP with the node as phones do, without a socket."""

from __future__ import annotations

from collections.abc import Callable

from p2psipd.net.connections import Limits, Message, SipConnection, Table
from p2psipd.proto.sip.flow import Address


class InProcess(SipConnection):
    """The node's end. What the node writes reaches `take` in the next turn of the reactor; `put` is what the service
    says. In messages it is a TCP connection from 127.0.0.1 (port 0, which no real one has) to `local`.
    """

    def __init__(self, owner: Table, number: int, local: Address, take: Callable[[bytes], None]) -> None:
        super().__init__(owner, number, "TCP", "127.0.0.1", True)
        self._deliver = take
        self.alive = self.usable = True
        self.flow = owner.opened(self, ("127.0.0.1", 0), local)

    def send(self, data: bytes) -> None:
        """Hand a message to the service, not before whoever sends it has finished its turn."""
        if self.alive:
            self._owner.clock.callLater(0, self._deliver, data)

    def put(self, message: Message) -> None:
        """A message of the service; nothing happens when the node has closed."""
        if self.alive:
            self._take(message, self._owner.clock.seconds())

    def drop(self, reason: str, why: str = "", *, gently: bool = False) -> None:
        """Close, counting `reason`."""
        if self.alive:
            self.alive = False
            self._owner.counters[f"closed_{reason}"] += 1
            self._owner.closed(self)

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Never: whoever is in this process needs no watching."""
        return None

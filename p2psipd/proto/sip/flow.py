"""A flow: where a message came from or goes to (RFC 5626 section 1, RFC 3261 section 18)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

__all__ = ["Address", "Flow"]

Address = tuple[str, int]


class Flow:
    """One direction-less path: a connection, or a pair of UDP addresses. Immutable, compared by value.

    `transport` is "UDP", "TCP", "TLS", "WS" or "WSS"; `remote` and `local` are (host, port) of the socket,
    IPv6 hosts without brackets; `connection` tells two connections between the same addresses apart (any
    hashable: a counter); `sent_by` is the (host, port) that we write into our Via on this flow (default:
    `local`; port 0 means "write none"); with `alias` that Via also asks the other side to send its requests the same
    way (RFC 5923). Transports may subclass it to hang their own state on it.
    """

    __slots__ = ("_hash", "alias", "connection", "local", "reliable", "remote", "secure", "sent_by", "transport")

    def __init__(
        self,
        transport: str,
        remote: Address,
        local: Address,
        connection: Hashable = None,
        sent_by: Address | None = None,
    ) -> None:
        self.transport = transport
        self.remote = remote
        self.local = local
        self.connection = connection
        self.sent_by = sent_by or local
        self.alias = False
        self.reliable = transport != "UDP"
        self.secure = transport in ("TLS", "WSS")
        self._hash = hash((transport, remote, local, connection))

    def towards(self, remote: Address) -> Flow:
        """The flow from the same local socket to another address (UDP: answers go where the Via says)."""
        return Flow(self.transport, remote, self.local, self.connection, self.sent_by)

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if not isinstance(other, Flow):
            return NotImplemented
        return (
            self._hash == other._hash
            and self.remote == other.remote
            and self.local == other.local
            and self.transport == other.transport
            and self.connection == other.connection
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Flow({self.transport} {self.local[0]}:{self.local[1]} -> {self.remote[0]}:{self.remote[1]})"

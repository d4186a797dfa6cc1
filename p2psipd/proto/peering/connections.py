"""Which open TLS connection may carry a request to a domain (RFC 5922 section 7.3, RFC 5923).

An address alone says nothing: a connection is reused only for domains that its certificate proves, and only in the
name of From domains that our own certificate on it proves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from p2psipd.proto.identity.policy import normal_domain
from p2psipd.proto.peering.own_certificates import OwnCertificate
from p2psipd.proto.peering.peers import PeerIdentity

__all__ = ["ConnectionTable"]

C = TypeVar("C")


class _Entry(NamedTuple, Generic[C]):
    connection: C
    own: OwnCertificate
    peer: PeerIdentity


class ConnectionTable(Generic[C]):
    """Open connections by the address that a look-up would give: (numeric host, port).

    For a connection that we dialled that is where we dialled; for one that a peer opened and whose request bore
    "alias" in the Via it is the address of that Via (received and sent-by port, RFC 5923 section 8.2), which
    the caller enters with ``add`` in the same way.
    """

    __slots__ = ("_addresses", "_entries")

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], list[_Entry[C]]] = {}
        self._addresses: dict[C, set[tuple[str, int]]] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def add(self, connection: C, address: tuple[str, int], own: OwnCertificate, peer: PeerIdentity) -> None:
        """``connection`` reaches ``address``; ``own`` is the certificate that we showed on it."""
        addresses = self._addresses.setdefault(connection, set())
        if address not in addresses:
            addresses.add(address)
            self._entries.setdefault(address, []).append(_Entry(connection, own, peer))

    def remove(self, connection: C) -> None:
        """It is closed."""
        for address in self._addresses.pop(connection, ()):
            left = [entry for entry in self._entries[address] if entry.connection != connection]
            if left:
                self._entries[address] = left
            else:
                del self._entries[address]

    def find(self, address: tuple[str, int], domain: str, from_domain: str) -> C | None:
        """A connection to ``address`` for a request to ``domain`` in the name of ``from_domain``, or None."""
        wanted = normal_domain(domain)
        for entry in self._entries.get(address, ()):
            if wanted in entry.peer.authorities and entry.own.certificate.speaks_for(from_domain):
                return entry.connection
        return None

    def find_any(self, addresses: Iterable[tuple[str, int]], domain: str, from_domain: str) -> C | None:
        """As ``find``, over the addresses of one look-up in their order."""
        found = (self.find(address, domain, from_domain) for address in addresses)
        return next((connection for connection in found if connection is not None), None)

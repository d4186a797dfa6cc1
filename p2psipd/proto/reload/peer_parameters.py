"""What a node is told about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from p2psipd.proto.reload.kademlia import Remembered
from p2psipd.proto.reload.member_list import KademliaParameters
from p2psipd.proto.reload.topology import Address


class Randomness(Protocol):
    """`random.SystemRandom` in a node, a seeded `random.Random` in the simulator."""

    def getrandbits(self, k: int, /) -> int:
        """A random integer below 2**k."""


class PeerParameters(NamedTuple):
    """What one node is told about itself; addresses are (numeric host, port), times seconds.

    `applications` maps an Application-ID to the addresses where we accept its AppAttach connections.
    `client` nodes store and route for nobody (RFC 6940 section 4.2).
    """

    addresses: tuple[Address, ...] = ()
    bootstrap: tuple[Address, ...] = ()
    remembered: tuple[Remembered, ...] = ()
    applications: Mapping[int, tuple[Address, ...]] = {}
    first: bool = False
    client: bool = False
    dead_after: float = 2.0
    kademlia: KademliaParameters = KademliaParameters()

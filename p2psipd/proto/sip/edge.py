"""The seam to what brings SIP in from and out to others than phones and nodes: other domains, later gateways.

The SIP service starts its edges with its own listeners, asks the edge about each request that comes in on one of
its flows, and lets it name its flows in Record-Route. How requests go *out* through an edge is a locator step
whose targets bear a `route_maker` (:mod:`p2psipd.proto.sip.locating`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response


class Edge(Protocol):
    """A way in and out. Its flows have `write(data)`, `alive` and `peer`, a DomainIdentity whose `edge` is `name`."""

    @property
    def name(self) -> str:
        """Unique among the edges of a node."""
        ...

    @property
    def addresses(self) -> frozenset[tuple[str, int]]:
        """The (host, port) pairs that its Via and Record-Route values bear; known after `start`."""
        ...

    def start(self, receive: Callable[[Flow, Request | Response], None], lost: Callable[[Flow], None]) -> None:
        """Begin; messages go to `receive`, ended connections to `lost`."""
        ...

    def stop(self) -> object:
        """Close everything; a Deferred or None."""
        ...

    async def admit(self, flow: Flow, request: Request, wall: float) -> None:
        """Judge a request that came in on `flow`: who sends it, in whose name, may it (unix seconds `wall`).

        It may edit the request (add P-Asserted-Identity, take off what is not trusted). Raises Refused.
        """
        ...

    def record_route(self, flow: Flow) -> str:
        """The Record-Route value for the side of `flow`: one of `addresses`, and in the user part a token that
        nobody else can make.
        """
        ...

    def flow_of(self, token: str) -> Flow | None:
        """The live flow that a token of this edge names; None for one that is not ours or whose flow is gone."""
        ...

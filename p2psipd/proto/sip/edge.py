"""The seam to what brings SIP in from and out to others than phones and nodes: other domains, later gateways.

The SIP service starts its edges with its own listeners, asks the edge about each request that comes in on one of
its flows, and lets it name its flows in Record-Route. How requests go *out* through an edge is a locator step
whose targets bear a `route_maker` (:mod:`p2psipd.proto.sip.locating`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Target
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.uri import SipUri


class Admitted(NamedTuple):
    """A request that may come in: what was proved about the caller, in a few words for the call's record, and values of
    Reason for the next response to it but 100, for whoever signed it (RFC 9410).
    """

    proved: str = ""
    reasons: tuple[str, ...] = ()


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

    async def admit(self, flow: Flow, request: Request, wall: float) -> Admitted:
        """Judge a request that came in on `flow`: who sends it, in whose name, may it (unix seconds `wall`).

        It may edit the request (add P-Asserted-Identity, take off what is not trusted). Raises Refused.
        """
        ...

    def released(self, request: Request) -> None:
        """An admitted request was answered 503 here: its sender may try again with the same signature."""
        ...

    def reported(self, response: Response) -> None:
        """A response of the other side to a request of ours has a Reason: what it says of our own signature is taken
        out, as it is for nobody behind us.
        """
        ...

    @property
    def here(self) -> bool:
        """Whether the border is on this node. An edge on other nodes only knows how to get there."""
        ...

    def record_route(self, flow: Flow, request: Request, outward: bool) -> str:
        """The Record-Route value for both sides of the dialog that `request` may make over `flow`, one of its
        connections, by which it goes out (`outward`) or has come in: with a token that nobody else can make in the user
        part, and that is good for this dialog alone.
        """
        ...

    def owns(self, uri: SipUri) -> bool:
        """Whether a Route value is one that an edge of our domains wrote, here or elsewhere."""
        ...

    def across(self, taken: Sequence[SipUri], flow: Flow) -> str:
        """The user part of the one of our Route values `taken` by which a request that came in on `flow` goes out
        again, to yet another domain; "" where it goes inside.
        """
        ...

    async def along(self, token: str, request: Request) -> Sequence[Target]:
        """Where a request of a dialog goes on that crosses the border outwards; `token` is the user part of our Route.

        Any edge carries on a dialog that another one began. Several targets are alternatives. Raises Refused,
        NotLocated, LocationUnavailable.
        """
        ...

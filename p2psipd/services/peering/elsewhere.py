"""Direct peering on a node that is no edge itself: the edges of the domain are found in the overlay (RFC 7374).

Every node with phones has this. A request for another domain or a number goes to an edge over the connections
between nodes; so does a request of a dialog whose Route names the domain with an edge's token. Several edges are
alternatives, tried one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from p2psipd.proto.peering.crossing import Crossings
from p2psipd.proto.peering.peers import UNSUPPORTED_PEER
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.sip.edge import Admitted
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import LocationUnavailable, NotLocated, Origin, Query, Target, is_dialled
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri
from p2psipd.services.peering import INSTANCE

if TYPE_CHECKING:
    from p2psipd.proto.reload.ids import NodeId
    from p2psipd.proto.sip.message import Request, Response

#: The namespace under which edges are announced.
NAMESPACE: Final = "peering"
_MOST_EDGES: Final = 4
_SOS: Final = re.compile(r"urn:service:sos(\.[a-z0-9.-]+)?", re.IGNORECASE)
_SEPARATORS: Final = re.compile(r"[-.() ]")


class Directory(Protocol):
    """Who offers a service; ``services.service_directory.ServiceDirectory`` is one."""

    async def providers(self, namespace: str) -> list[NodeId]:
        """The nodes that offer it, in random order."""
        ...


class EdgesElsewhere:
    """The edges of our domains on other nodes; also the :class:`~p2psipd.proto.sip.edge.Edge` without listeners that
    knows their Route values.
    """

    here = False
    name = "edges elsewhere"

    def __init__(
        self,
        directory: Directory,
        own: bytes,
        domains: Sequence[str],
        is_doubtful: Callable[[bytes], bool],
        emergency_numbers: Iterable[str] = (),
    ) -> None:
        """`is_doubtful` says which nodes could lately not be reached: they are tried last. `emergency_numbers` are
        those that are dialled here for help.
        """
        self._directory = directory
        self._emergency_numbers = frozenset(emergency_numbers)
        self._is_doubtful = is_doubtful
        self._own = own
        self._domains = frozenset(domains)

    async def __call__(self, query: Query) -> Sequence[Target] | None:
        """The locator's step: targets that are not ours go to an edge, if there is one."""
        if query.origin is not Origin.PHONE or not self._leaves(query):
            return None
        return await self.targets(str(query.uri)) or None

    async def emergency(self, query: Query) -> Sequence[Target] | None:
        """The step before all others: a call for help goes to an edge, whoever may be registered under that number."""
        if query.origin is not Origin.PHONE or not self.is_emergency(query.uri):
            return None
        return await self.targets(str(query.uri)) or None

    def is_emergency(self, uri: Uri) -> bool:
        """Whether a target is the emergency services, so that no limit of this node stops it; the edges judge again."""
        if isinstance(uri, SipUri):
            dialled = uri.unescaped_user.partition(";")[0] if uri.host in self._domains else ""
        elif isinstance(uri, TelUri):
            dialled = uri.number
        else:
            return _SOS.fullmatch(str(uri)) is not None
        return bool(dialled) and _SEPARATORS.sub("", dialled) in self._emergency_numbers

    def _leaves(self, query: Query) -> bool:
        uri = query.uri
        if isinstance(uri, SipUri):
            return uri.host not in self._domains or is_dialled(uri)
        return isinstance(uri, TelUri) or uri.scheme in ("im", "pres") or self.is_emergency(uri)

    async def targets(self, uri: str, first: bytes = b"") -> list[Target]:
        """The edges as alternatives, `first` before the others. Raises LocationUnavailable."""
        try:
            found = await self._directory.providers(NAMESPACE)
        except ReloadError as error:
            raise LocationUnavailable(f"the edges of the domain could not be asked for: {error}") from error
        found.sort(key=lambda node: (self._is_doubtful(node), node != first))
        return [Target(uri, node_id=node, instance=INSTANCE) for node in found if node != self._own][:_MOST_EDGES]

    # ---- as an Edge --------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> frozenset[Address]:
        """None: the listeners are elsewhere."""
        return frozenset()

    def start(self, receive: Callable[[Flow, Request | Response], None], lost: Callable[[Flow], None]) -> None:
        """Nothing comes in here."""

    def stop(self) -> None:
        """There is nothing to close."""

    async def admit(self, flow: Flow, request: Request, wall: float) -> Admitted:
        """No request comes from another domain here."""
        raise Refused(*UNSUPPORTED_PEER)

    def released(self, request: Request) -> None:
        """Nothing was remembered."""

    def reported(self, response: Response) -> None:
        """No response of another domain comes here."""

    def record_route(self, flow: Flow, request: Request, outward: bool) -> str:
        """No flow of this node crosses the border."""
        raise ValueError(f"{flow} is no connection with another domain")

    def owns(self, uri: SipUri) -> bool:
        """Whether a Route value is one that an edge of our domains wrote; the edge itself makes sure."""
        return uri.host in self._domains and uri.user is not None and Crossings.looks_so(uri.user)

    def across(self, taken: Sequence[SipUri], flow: Flow) -> str:
        """No request comes from another domain here."""
        return ""

    async def along(self, token: str, request: Request) -> Sequence[Target]:
        """A request of a dialog that crosses the border: the edge where it began, or any other. Raises NotLocated."""
        found = await self.targets(request.uri_text, Crossings.writer(token))
        if not found:
            raise NotLocated(503, "No Edge Reachable")
        return found

"""Looking somebody up once more for a request that is on its way: afresh, in a dialog, or after a redirect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from twisted.logger import Logger

from p2psipd.proto.sip.authentication import Gatekeeper
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.fork import ForwardingContext
from p2psipd.proto.sip.locating import Locate, LocationUnavailable, NodeIdentity, NotLocated, Origin, Query, Target
from p2psipd.proto.sip.message import Request, make_response
from p2psipd.proto.sip.uri import SipUri, parse_uri
from p2psipd.services.sip.clock import Clocks
from p2psipd.services.sip.forwarding import Forwarder
from p2psipd.services.sip.routing import Routing, peer_of

_AOR_CHARACTERS: Final = "@-_.!~*'()&=+$,;?/"


class Relocating:
    """What a fork orders when its targets were not, or are no longer, the right ones."""

    log = Logger()

    def __init__(
        self,
        locate: Locate,
        gate: Gatekeeper,
        routing: Routing,
        forwarder: Forwarder,
        clocks: Clocks,
        counters: Counter[str],
    ) -> None:
        self._locate = locate
        self._gate = gate
        self._routing = routing
        self._forwarder = forwarder
        self._clocks = clocks
        self._counters = counters

    async def heirs(self, request: Request, flow: Flow, user: str) -> Sequence[Target]:
        """Where the phone of `user` ("user@domain") is that has the dialog of this request, which came on `flow`: its
        own flow, or its registrar, is gone.

        Where no token says whose it is, another node may have found the phone here, and have said so by its GRUU.
        """
        try:
            if not user:
                return await self._found_by_node(request, flow)
            uri = SipUri.parse("sip:" + quote(user, safe=_AOR_CHARACTERS))
            found = await self._locate(Query(uri, origin_of(flow), self._clocks.wall(), fresh=True))
        except (NotLocated, LocationUnavailable, SipError):
            return ()
        same = [each for each in found if each.binding is not None and _is_same_phone(request, each.binding.contact)]
        self._counters["dialog_found_anew"] += bool(same)
        return same

    async def _found_by_node(self, request: Request, flow: Flow) -> Sequence[Target]:
        uri = request.uri
        if not isinstance(peer_of(flow), NodeIdentity) or not isinstance(uri, SipUri) or not uri.gr:
            return ()
        self._gate.check_assertion(flow, request)
        return await self._locate(Query(uri, Origin.NODE, self._clocks.wall()))

    async def relocate(self, context: ForwardingContext) -> None:
        """The record was out of date: look once more, afresh (profile section 7)."""
        targets: Sequence[Target] = ()
        request = context.request
        if request.to_tag is not None:
            user = self._routing.drop_routes(request)
            targets = await self.heirs(request, context.flow, user) if user and not request.has("route") else ()
            if not targets:
                self._forwarder.refuse(context, make_response(request, 481))
                return
        else:
            try:
                uri = self._gate.place(request.uri)
                targets = await self._locate(Query(uri, origin_of(context.flow), self._clocks.wall(), fresh=True))
            except (NotLocated, LocationUnavailable) as error:
                self.log.info("nothing newer is known: {error}", error=str(error))
        self._forwarder.forward(context, targets)

    async def recurse(self, context: ForwardingContext, contacts: Sequence[tuple[SipUri, float]]) -> None:
        """A phone has redirected the call to other users of ours (RFC 3261 section 16.5)."""
        targets: list[Target] = []
        for uri, q in contacts:
            try:
                found = await self._locate(Query(uri.bare(), origin_of(context.flow), self._clocks.wall()))
            except (NotLocated, LocationUnavailable) as error:
                self.log.info("redirected to {uri} in vain: {error}", uri=str(uri), error=str(error))
                continue
            targets += [target._replace(q=q) for target in found]
        self._forwarder.forward(context, targets)


def _is_same_phone(request: Request, contact: str) -> bool:
    """Whether a Contact is that of the phone which the request is for: over TCP or TLS it names another port each time
    that the phone connects anew. Another phone of this user with the same address knows nothing of the dialog (481).
    """
    if contact == request.uri_text:
        return True
    asked, here = request.uri, parse_uri(contact)
    if not isinstance(asked, SipUri) or not isinstance(here, SipUri):
        return False
    return asked.user is not None and (asked.user, asked.host) == (here.user, here.host)


def origin_of(flow: Flow) -> Origin:
    """Who asks, when a request came on `flow`."""
    peer = peer_of(flow)
    if peer is None:
        return Origin.PHONE
    return Origin.NODE if isinstance(peer, NodeIdentity) else Origin.PEER

"""Who may send a request, which are calls for help, and what is answered before anything is kept of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from p2psipd.proto.sip.authentication import Gatekeeper, disown
from p2psipd.proto.sip.digest import NO_NONCE, NonceState
from p2psipd.proto.sip.edge import Admitted, Edge
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.fork import ForwardingContext
from p2psipd.proto.sip.ladder import Ladder
from p2psipd.proto.sip.locating import DomainIdentity, LocationUnavailable
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.proxy import Refused, validate
from p2psipd.proto.sip.uri import SipUri, Uri, parse_uri
from p2psipd.services.sip.abuse import Door
from p2psipd.services.sip.call_book import CallBook
from p2psipd.services.sip.clock import Clocks
from p2psipd.services.sip.routing import peer_of
from p2psipd.services.sip.settings import RETRY_AFTER, SipSettings

COUNTED: Final = frozenset({"REGISTER", "INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "MESSAGE"})
NOBODY_ASKED: Final = Admitted()
_REQUEST_LINE: Final = 500


class Admission:
    """Asked about each new request: by the transaction layer before there is a transaction, by the service while it is
    routed, and where there is too much to do about octets that nobody has read yet.
    """

    def __init__(
        self,
        settings: SipSettings,
        gate: Gatekeeper,
        edges: Mapping[str, Edge],
        door: Door,
        calls: CallBook,
        clocks: Clocks,
        ladder: Ladder,
        counters: Counter[str],
        is_emergency: Callable[[Uri], bool],
    ) -> None:
        self.knows = door.knows
        self._settings = settings
        self._gate = gate
        self._edges = edges
        self._door = door
        self._calls = calls
        self._clocks = clocks
        self._ladder = ladder
        self._counters = counters
        self._is_emergency = is_emergency

    async def judge(self, flow: Flow, request: Request) -> Admitted:
        """What another node, or another domain, may say in whose name; phones pass here. Raises Refused."""
        peer = peer_of(flow)
        if isinstance(peer, DomainIdentity):
            return await self._edges[peer.edge].admit(flow, request, self._clocks.wall())
        if peer is not None:
            self._gate.check_assertion(flow, request)
        return NOBODY_ASKED

    def calls_for_help(self, flow: Flow, request: Request) -> bool:
        """Whether this is a new request to the emergency services: no limit stops it, nor the end of this node.

        Another node may have put the address of whoever takes such calls in place of what was called: To still says it.
        """
        peer = peer_of(flow)
        if isinstance(peer, DomainIdentity) or request.to_tag is not None:
            return False
        called = (request.uri, request.to.uri) if peer is not None else (request.uri,)
        return any(self._is_emergency(self._gate.place(uri)) for uri in called)

    def is_call_of_stranger(self, flow: Flow, data: bytes) -> bool:
        """Whether a datagram is a call, but none for help, from where nobody has lately proved to be a user."""
        if not data.startswith((b"INVITE ", b"MESSAGE ")) or self.knows(flow):
            return False
        try:
            uri = parse_uri(data[:_REQUEST_LINE].split(b" ", 2)[1].decode())
        except (SipError, UnicodeDecodeError):
            return True
        return not self._is_emergency(self._gate.place(uri))

    def unproved(self, flow: Flow, request: Request) -> Refused | None:
        """The answer to a phone's request that presents nothing: no transaction is made for it (RFC 3261 section
        8.2.7), so that nobody makes us repeat the answer to an INVITE whose sender is forged. One that presents over
        UDP what nobody has given to its address is no better.
        """
        method = request.method
        registers = method == "REGISTER"
        if registers and isinstance(peer_of(flow), DomainIdentity):
            return None
        presents = request.has("authorization" if registers else "proxy-authorization")
        if presents and (method != "INVITE" or flow.reliable):
            return None
        in_dialog = request.to_tag is not None and request.has("route")
        if not registers and (in_dialog or method == "OPTIONS" or peer_of(flow) is not None):
            return None
        if not registers and self._settings.redirect_domains and not self._settings.redirect_authenticates:
            return None
        wall = self._clocks.wall()
        nonce = self._gate.presented(flow, request, wall) if presents else NO_NONCE
        if nonce.for_source:
            return None
        try:
            validate(request, self._gate.home.addresses, ends_here=registers)
            if registers:
                refused = self._gate.challenge_registrant(flow, request, wall)
            else:
                refused = self._gate.challenge_caller(flow, request, wall, stale=nonce.state is NonceState.STALE)
        except Refused as error:
            refused = error
        except SipError:
            return None
        self._counters[method if method in COUNTED else "other_method"] += 1
        if method == "INVITE":
            self._ladder.begin(request.call_id)
            self._ladder.received(request, self._clocks.wall, flow)
        self._counters[refused.why or "refused"] += 1
        self._counters[f"answered_{refused.status}"] += 1
        self._door.refused(flow, refused.why)
        return refused

    async def admit(self, context: ForwardingContext, proved: str, *, known: bool = False, begins: bool = True) -> None:
        """A phone must prove who sends a request, unless that is `known`, and keep to its limits; a call `begins`.

        Who calls for help is asked who it is, like anybody, so that help can call back. But neither a limit
        stops the call, nor that nobody can be asked for the password.
        """
        request, flow = context.request, context.flow
        emergency, user = self.calls_for_help(flow, request), context.user
        if peer_of(flow) is None and not known:
            try:
                unnamed = await self._gate.prove(flow, request, self._clocks.wall())
                self._door.proved(flow)
                # Our Record-Route names the sender; who is anonymous has limits all the same.
                user = unnamed or _sender(request)
            except LocationUnavailable:
                if not emergency:
                    raise
                # In the call's record nobody has proved to call, and it counts against nobody's limit.
                user, proved = "", "unproved"
                self._counters["emergency_unproved"] += 1
                disown(request)
                request.remove("proxy-authorization")
            context.user = _sender(request)
            if not emergency and not self._door.may_send(user):
                raise Refused(503, headers=[("Retry-After", RETRY_AFTER)], why="too_many_requests")
        if request.method == "INVITE" and begins:
            context.call = self._calls.begin(request, flow, user, limited=not emergency, proved=proved)


def _sender(request: Request) -> str:
    """Who has proved to send a request, by one name however From is written."""
    uri = request.from_.uri
    return uri.aor if isinstance(uri, SipUri) else request.from_.uri_text

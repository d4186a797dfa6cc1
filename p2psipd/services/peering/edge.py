"""The edge of our domains: what comes in from other domains, and how dialogs cross the border (draft-mahy 4.2).

:class:`PeeringEdge` is an :class:`~p2psipd.proto.sip.edge.Edge` of the SIP service.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from p2psipd.config.peering import Peering
from p2psipd.proto.identity.policy import CertificateRefused
from p2psipd.proto.peering.admission import Admission, admit
from p2psipd.proto.peering.crossing import Crossings, mark_of
from p2psipd.proto.peering.identity import from_domain
from p2psipd.proto.peering.peers import UNSUPPORTED_PEER, PeerIdentity
from p2psipd.proto.peering.verification import IdentityVerifier
from p2psipd.proto.sip.edge import Admitted
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import DomainIdentity, Target
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import SipUri
from p2psipd.services.peering import INSTANCE
from p2psipd.services.peering.connections import EDGE, PeerConnections
from p2psipd.services.peering.outbound import Outbound

_REMEMBERED_REFUSALS: Final = 200
_LINES_A_SECOND: Final = 20
_STIR: Final = re.compile(r"\s*STIR\s*;", re.IGNORECASE)


class PeeringEdge:
    """See the module. `domains` are our SIP domains, `listen` the TLS addresses; `counters` counts decisions; `trace`
    switches one debug line for each request that is admitted.
    """

    here = True
    name = EDGE
    log = Logger()

    def __init__(
        self,
        peering: Callable[[], Peering],
        connections: PeerConnections,
        outbound: Outbound,
        verifier: IdentityVerifier,
        crossings: Crossings,
        domains: frozenset[str],
        listen: Sequence[Address],
        counters: Counter[str],
    ) -> None:
        self._peering = peering
        self._connections = connections
        self._outbound = outbound
        self._verifier = verifier
        self._crossings = crossings
        self._domains = domains
        self._listen = tuple(listen)
        self._addresses: frozenset[Address] = frozenset()
        self.counters = counters
        self.trace = False
        self.refusals: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED_REFUSALS)
        self._second = 0
        self._lines = 0

    # ---- life --------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> frozenset[Address]:
        """Our listeners' addresses."""
        return self._addresses

    def start(self, receive: Callable[[Flow, Request | Response], None], lost: Callable[[Flow], None]) -> None:
        """Listen. Raises twisted's CannotListenError."""
        self._addresses = frozenset(self._connections.start(self._listen, receive, lost))

    def stop(self) -> Deferred[Any]:
        """Close everything."""
        return gatherResults([one for one in self._connections.stop() if isinstance(one, Deferred)], consumeErrors=True)

    # ---- who comes in ------------------------------------------------------------------------------------------

    async def admit(self, flow: Flow, request: Request, wall: float) -> Admitted:
        """The checks of the receiving side (proto.peering.admission). Raises Refused.

        What is admitted bears in P-Asserted-Identity who sent it, as far as that was verified (verstat).
        """
        peer = self._connections.peer(flow)
        if peer is None:
            raise Refused(*UNSUPPORTED_PEER, why="peering_gone")
        self._connections.alias(flow, request)
        admission = await admit(
            request,
            peer,
            self._peering().policy,
            self._verifier,
            wall,
            serves=lambda domain: domain in self._domains or self._relays(from_domain(request), domain),
            owns=self.owns,
        )
        if not admission.status and request.to_tag is not None and not self._is_party(request, peer):
            admission = admission._replace(status=403, reason="Not Your Dialog", step="dialog")
        self._note(admission, request, wall)
        if admission.status:
            headers = [("Reason", value) for value in admission.verification.reasons]
            raise Refused(admission.status, admission.reason, headers, why=f"peering_{admission.step}")
        request.remove("p-asserted-identity")
        request.remove("p-preferred-identity")
        if request.to_tag is None:
            request.set("P-Asserted-Identity", _asserted(request, admission))
        return Admitted(admission.verification.summary, admission.verification.reasons)

    def reported(self, response: Response) -> None:
        """What a peer says of our Identity goes to the log, and no further: it names the token (RFC 9410 section 7)."""
        values = response.get_all("reason")
        theirs = [value for value in values if not _STIR.match(value)]
        for value in values:
            if _STIR.match(value):
                self.counters["identity_reported"] += 1
                self.log.warn("{call}: of our Identity: {reason}", call=response.call_id, reason=value[:200])
        if len(theirs) < len(values):
            response.remove("reason")
            for value in theirs:
                response.add("Reason", value)

    def released(self, request: Request) -> None:
        """What we answered 503 may come again, to us as to any other edge (RFC 3263 section 4.3)."""
        self._verifier.forget(request)

    def _note(self, admission: Admission, request: Request, wall: float) -> None:
        self.counters[f"refused_{admission.step}" if admission.status else "admitted"] += 1
        if not admission.status:
            if self.trace:
                self.log.debug("{method} {admission}", method=request.method, admission=admission)
            return
        words = "{method} {call}: {admission}"
        self._warn(wall, words, method=request.method, call=request.call_id, admission=admission)
        self.refusals.append(
            {
                "at": wall,
                "method": request.method,
                "from": request.from_.uri_text,
                "to": request.uri_text,
                "status": admission.status,
                "reason": admission.reason,
                "step": admission.step,
                "domain": admission.from_domain or admission.decision.domain,
                "authority": admission.verification.authority or admission.decision.authority,
                "why": admission.why,
            }
        )

    def note_handshake(self, refusal: CertificateRefused, host: str, wall: float) -> None:
        """A client at `host` was refused in its TLS handshake: no request of it ever came."""
        self.counters[f"refused_tls_{refusal.step.value}"] += 1
        self._warn(wall, "TLS from {host}: {refusal}", host=host, refusal=refusal)
        self._keep(refusal, wall, host, "")

    def note_dialled(self, domain: str, host: str, refusal: CertificateRefused, by_peer: bool, *, wall: float) -> None:
        """A server of `domain` at `host`, which we dialled, was refused in its handshake, or refused us (`by_peer`),
        under TLS 1.3 soon after it.
        """
        self.counters[f"refused_{'by_peer' if by_peer else 'server'}_{refusal.step.value}"] += 1
        self._warn(wall, "TLS to {domain} at {host}: {refusal}", domain=domain, host=host, refusal=refusal)
        self._keep(refusal, wall, "us", f"{domain} at {host}")

    def _warn(self, wall: float, words: str, **fields: Any) -> None:
        """Into the log, unless it has many lines of this second: a flood is counted, and does not fill the disk."""
        if int(wall) != self._second:
            untold, self._second, self._lines = self._lines - _LINES_A_SECOND, int(wall), 0
            if untold > 0:
                self.log.warn("{untold} more were refused within one second", untold=untold)
        self._lines += 1
        if self._lines <= _LINES_A_SECOND:
            self.log.warn(words, **fields)

    def _keep(self, refusal: CertificateRefused, wall: float, one: str, other: str) -> None:
        self.refusals.append(
            {
                "at": wall,
                "method": "TLS",
                "from": one,
                "to": other,
                "status": 0,
                "reason": "",
                "step": refusal.step.value,
                "domain": refusal.domain,
                "authority": refusal.authority,
                "why": refusal.detail,
            }
        )

    def _relays(self, one: str, other: str) -> bool:
        """Whether a federation lets requests between these two domains go on through us."""
        return bool(self._peering().policy.relays(one, other, self._domains))

    def _is_party(self, request: Request, peer: PeerIdentity) -> bool:
        """Whether the dialog that a request names was begun with this peer, or with one that it stands for, and with
        the user of ours in To.
        """
        policy = self._peering().policy
        for route in request.routes:
            uri = route.uri
            if isinstance(uri, SipUri) and self.owns(uri):
                other = self._crossings.other(uri.user or "") or ""
                ours = self._crossings.is_of(uri.user or "", mark_of(request.call_id, request.to.uri))
                return ours and (other in peer.domains or policy.may_send_from(peer, other))
        return False

    # ---- dialogs across the border -----------------------------------------------------------------------------

    def record_route(self, flow: Flow, request: Request, outward: bool) -> str:
        """The value for both sides of a call over `flow`, a connection with another domain."""
        peer: Any = getattr(flow, "peer", None)
        other = peer.domains[0] if isinstance(peer, DomainIdentity) else ""
        own = self._peering().own.domains
        mark = mark_of(request.call_id, request.from_.uri if outward else request.to.uri)
        return self._crossings.value(next((each for each in own if each in self._domains), own[0]), other, mark)

    def owns(self, uri: SipUri) -> bool:
        """Whether a Route value is one that an edge of our domains wrote."""
        if uri.user is None or not Crossings.looks_so(uri.user):
            return False
        return uri.host in self._domains and self._crossings.other(uri.user) is not None

    def across(self, taken: Sequence[SipUri], flow: Flow) -> str:
        """The token that leads to yet another domain, where a federation brought the call through us."""
        peer: Any = getattr(flow, "peer", None)
        users = [uri.user for uri in taken if uri.user and self.owns(uri)]
        sides = {self._crossings.other(user) or "": user for user in users}
        near = next((each for each in sides if isinstance(peer, DomainIdentity) and each in peer.domains), "")
        return next((user for far, user in sides.items() if far != near and near and self._relays(near, far)), "")

    async def along(self, token: str, request: Request) -> Sequence[Target]:
        """The way on for a request of a dialog that goes out to the other domain. Raises Refused (403), for one of
        another user than the dialog's, too: we would sign it.
        """
        other = self._crossings.other(token)
        if not other:
            raise Refused(403, "Not a Route of Ours", why="refused_token")
        if not self._crossings.is_of(token, mark_of(request.call_id, request.from_.uri)):
            raise Refused(403, "Not Your Dialog", why="refused_token")
        return (Target(request.uri_text, instance=INSTANCE, route_maker=self._outbound.dialog_route(other)),)


def _asserted(request: Request, admission: Admission) -> str:
    """Who sends a request, for the phones of our domains (RFC 3325), with what its Identity is worth (verstat)."""
    uri = request.from_.uri
    if not isinstance(uri, SipUri):
        return f"<{request.from_.uri_text}>"
    verstat = f";verstat={admission.verification.verstat}"
    if (uri.params.get("user") or "").lower() == "phone":
        # It belongs to the number: 3GPP TS 24.229 section 7.2A.20.
        return f"<{uri.scheme}:{uri.user}{verstat}@{uri.bare().hostport};user=phone>"
    return f"<{uri.bare()}>{verstat}"

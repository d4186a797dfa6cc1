"""Connections with other domains: mutual TLS, kept and used again where RFC 5922 and RFC 5923 allow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.net.peer_tls import NoOwnCertificate, PeerTls, own_of, peer_of, refusal_of, refused_by_peer
from p2psipd.net.sip_transports import Limits, Message, SipTransports, StreamFlow
from p2psipd.proto.identity.policy import CertificateRefused
from p2psipd.proto.peering.connections import ConnectionTable
from p2psipd.proto.peering.peers import PeerIdentity
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import DomainIdentity, Unreachable
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.next_hops import Hop

EDGE: Final = "peering"
_TLS_PORT: Final = 5061
_Key = tuple[str, str, int, str, str]
#: Told of a server that we dialled: its domain and host, the refusal, and whether it was the one that refused.
Refused = Callable[[str, str, CertificateRefused, bool], None]


def _unnoticed(domain: str, host: str, refusal: CertificateRefused, by_peer: bool) -> None:
    """Nobody keeps refusals."""


class PeerConnections:
    """All connections of one edge. `tls` makes them; `counters` counts why they were refused or closed; `refused` is
    told when a certificate was, ours or that of a server.
    """

    log = Logger()

    def __init__(self, reactor: Any, tls: PeerTls, limits: Limits, refused: Refused = _unnoticed) -> None:
        self._refused = refused
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._tls = tls
        self._limits = limits
        self._table: ConnectionTable[StreamFlow] = ConnectionTable()
        self._peers: dict[Flow, PeerIdentity] = {}
        self._dialled: dict[Flow, str] = {}
        self._opening: dict[_Key, list[Deferred[Flow]]] = {}
        self._transports: SipTransports | None = None
        self._lost: Callable[[Flow], None] | None = None

    def start(
        self, listen: Sequence[Address], receive: Callable[[Flow, Message], None], lost: Callable[[Flow], None]
    ) -> list[Address]:
        """Listen; the addresses really bound. Raises twisted's CannotListenError."""
        self._lost = lost
        self._transports = SipTransports(
            self._reactor,
            receive,
            _no_datagrams,
            self._gone,
            limits=self._limits,
            identify=self._identify,
            greets=False,
            usable=self._usable,
        )
        self.counters = self._transports.counters
        return [self._transports.listen_tls(address, self._tls.server) for address in listen]

    def stop(self) -> list[Any]:
        """Close everything; what to wait for."""
        return self._transports.stop() if self._transports is not None else []

    def __len__(self) -> int:
        return len(self._peers)

    def peer(self, flow: Flow) -> PeerIdentity | None:
        """Who is at the other end, as the handshake found."""
        return self._peers.get(flow)

    def _identify(self, transport: Any) -> Any:
        peer = peer_of(transport)
        if peer is None:
            raise ValueError("no certificate")
        return DomainIdentity(tuple(sorted(peer.domains)), EDGE)

    def _usable(self, flow: StreamFlow) -> None:
        peer = peer_of(flow.protocol.transport)
        assert peer is not None, "identified before it is usable"
        self._peers[flow] = peer

    def _gone(self, flow: Flow) -> None:
        self._peers.pop(flow, None)
        if isinstance(flow, StreamFlow):
            self._table.remove(flow)
            domain, refusal = self._dialled.pop(flow, ""), self.refused_by_peer(flow)
            if refusal is not None and domain:
                self._refused(domain, flow.remote[0], refusal, True)
        if self._lost is not None:
            self._lost(flow)

    async def reach(self, hop: Hop, own_domain: str, certificate: str = "") -> Flow:
        """A connection to `hop` in the name of `own_domain`; `certificate` names the one of ours to show.

        One that is open is used again where its two certificates prove both names, whatever the address says (RFC
        5923 section 8). Raises Unreachable; the message names the step, domain and authority of a refusal.
        """
        found = self._table.find((hop.host, hop.port), hop.domain, own_domain)
        if found is not None:
            if self.is_open(hop, own_domain):
                return found
            # Expired, revoked, or no longer believed since a reload: whoever waits on it may finish, nobody begins.
            self._table.remove(found)
        key = (hop.host, hop.domain, hop.port, own_domain, certificate)
        waiting: Deferred[Flow] = Deferred()
        waiters = self._opening.setdefault(key, [])
        waiters.append(waiting)
        if len(waiters) == 1:
            Deferred.fromCoroutine(self._dial(key)).addErrback(self._broken, key)
        return await waiting

    def is_open(self, hop: Hop, own_domain: str) -> bool:
        """Whether a connection to `hop` in the name of `own_domain` is there, and proves its domain still."""
        found = self._table.find((hop.host, hop.port), hop.domain, own_domain)
        return found is not None and found.alive and self._still_proves(found, hop.domain)

    def refused_by_peer(self, flow: Flow) -> CertificateRefused | None:
        """How the other side of a connection that is lost refused our certificate: under TLS 1.3 one only learns that
        after the handshake, when a request may be under way. None where it did not.
        """
        return refused_by_peer(flow.protocol.transport) if isinstance(flow, StreamFlow) else None

    def _still_proves(self, flow: Flow, domain: str) -> bool:
        """Whether the certificate at the other end is, by the policy in force, still one of `domain`."""
        peer = self._peers.get(flow)
        try:
            return peer is not None and domain in self._tls.again(peer).domains
        except CertificateRefused:
            return False

    async def _dial(self, key: _Key) -> None:
        host, domain, port, own_domain, certificate = key
        try:
            creator = self._tls.towards(domain, own_domain, certificate)
        except NoOwnCertificate as error:
            raise Unreachable(str(error)) from None
        if self._transports is None:
            raise Unreachable("this edge is not started")
        try:
            flow = await self._transports.dial("TLS", host, port, creator)
        except Unreachable:
            ours, theirs = refusal_of(creator.transport), refused_by_peer(creator.transport)
            refusal = ours or theirs
            if refusal is None:
                raise
            self._refused(domain, host, refusal, ours is None)
            raise Unreachable(f"{host}: {refusal}") from None
        transport = flow.protocol.transport
        peer, own = peer_of(transport), own_of(transport)
        if peer is None or own is None:
            raise Unreachable(f"{domain}: no certificate was shown")
        # Whoever waits may ask for it again before the transports have said that it is usable.
        self._peers[flow] = peer
        self._dialled[flow] = domain
        self._table.add(flow, (host, port), own, peer)
        for waiter in self._opening.pop(key, []):
            waiter.callback(flow)

    def _broken(self, failure: Failure, key: _Key) -> None:
        if failure.check(Unreachable) is None:
            self.log.failure("{domain} could not be dialled", failure=failure, domain=key[1])
        reason = Failure(Unreachable(failure.getErrorMessage()))
        for waiter in self._opening.pop(key, []):
            waiter.errback(reason)

    def alias(self, flow: Flow, request: Request) -> None:
        """Use a peer's connection for requests to it, where its Via asks for that (RFC 5923 section 8.2)."""
        via = request.top_via
        # Most Vias have none, and need not be split into their parameters to see that.
        if "alias" not in str(via).lower() or "alias" not in via.params:
            return
        if not isinstance(flow, StreamFlow) or not flow.inbound:
            return
        peer, own = self._peers.get(flow), own_of(flow.protocol.transport)
        if peer is not None and own is not None:
            self._table.add(flow, (flow.remote[0], via.port or _TLS_PORT), own, peer)


def _no_datagrams(flow: Flow, error: SipError) -> None:
    """Between domains there is no UDP."""

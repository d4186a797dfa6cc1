"""The overlay's links: TLS over TCP between nodes, listening and dialling (RFC 6940 section 6.6.5).

Octets go up and down as they are; framing and acknowledgements are the core's business
(``proto.reload.framing``). A :class:`LinkUser` is told what happens.  Every link has a number, never used
twice.

What an attacker may cost is bounded here: connections in all and from one address, handshakes under way,
the time a handshake may take, and what a neighbour may leave unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, cast
from typing import Protocol as TypingProtocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IListeningPort,
    IPushProducer,
    IReactorTCP,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from p2psipd.net.refusals import DOES_NOT_READ, Endpoint, Refusals, endpoint_text, reason_text
from p2psipd.net.resolving import resolve
from p2psipd.net.tls import NodeTls, peer_certificate, protocol_version, tls_factory

#: A closed link whose other side does not answer the TLS closing is cut after this many seconds.
CLOSE_SECONDS: Final = 2.0
_BACKLOG: Final = 256


class LinkLimits(NamedTuple):
    """What the links may cost.  Counts, seconds and octets; the configuration's ``[peer]`` section holds
    defaults.
    """

    links: int
    links_per_address: int
    handshakes: int
    handshakes_per_address: int
    handshake_seconds: float
    connect_seconds: float
    write_buffer: int


class LinkUser(TypingProtocol):
    """Who is told about links."""

    def link_up(self, link: int, certificate: bytes, address: Endpoint, attempt: int | None) -> None:
        """The TLS handshake is complete and the other side's certificate (DER) accepted by us.

        ``attempt`` is the number given to :meth:`Links.open`, None for a link that the other side opened.
        """

    def link_failed(self, attempt: int, reason: str) -> None:
        """No address of this attempt led to a link."""

    def link_down(self, link: int, reason: str) -> None:
        """A link that was up is gone, unless it was closed by :meth:`Links.close`."""

    def link_bytes(self, link: int, data: bytes) -> None:
        """Octets from the other side, in order, cut anywhere."""


class LinkInfo(NamedTuple):
    """A link as shown to the operator; ``opened_at`` on the reactor's clock, octets without TLS."""

    link: int
    address: Endpoint
    outgoing: bool
    tls: str
    opened_at: float
    received: int
    sent: int


@implementer(IHandshakeListener, IPushProducer)
class LinkProtocol(Protocol):
    """One connection, over TLS."""

    def __init__(self, links: Links, host: str, dial: _Dial | None) -> None:
        self.link = 0
        self.address: Endpoint = (host, 0)
        self.opened_at = 0.0
        self.received = 0
        self.sent = 0
        self.closing = False
        self.pending: list[bytes] = []
        self.tls = ""
        self.outgoing = dial is not None
        self.host = host
        self._links = links
        self._dial = dial
        self._deadline: IDelayedCall | None = None
        self._paused = False
        self._unread = 0
        self._up = False

    def connectionMade(self) -> None:
        """TCP is there; the handshake has its deadline."""
        self._tls = cast(TLSMemoryBIOProtocol, self.transport)
        tcp = cast(ITCPTransport, self.transport)
        tcp.setTcpNoDelay(True)
        tcp.setTcpKeepAlive(True)
        peer = tcp.getPeer()
        if isinstance(peer, IPv4Address | IPv6Address):
            self.address = (peer.host, peer.port)
        self._deadline = self._links.clock.callLater(
            self._links.limits.handshake_seconds, self._handshake_late
        )
        self._links.handshake_began(self)

    def _handshake_late(self) -> None:
        self._deadline = None
        self._links.count("handshake_timeout")
        self.cut("the TLS handshake took too long")

    def handshakeCompleted(self) -> None:
        """TLS is there; under TLS 1.3 the acceptor may still refuse the dialler."""
        if self.closing:
            return
        self._stop_deadline()
        certificate = peer_certificate(self.transport)
        if certificate is None:
            self.cut("no certificate")
            return
        self._tls.registerProducer(self, True)
        self.tls = protocol_version(self.transport)
        self.opened_at = self._links.clock.seconds()
        self._up = True
        self._links.handshake_ended(self)
        self._links.up(self, certificate, self._dial)

    def dataReceived(self, data: bytes) -> None:
        """Octets of a link that is up; a link being closed is deaf."""
        if not self.closing:
            self.received += len(data)
            self._links.user.link_bytes(self.link, data)

    def write_queued(self) -> None:
        """Write all that is :attr:`pending`, as one TLS write."""
        pending, self.pending = self.pending, []
        if not pending or self.closing:
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        self.sent += len(data)
        if self._paused:
            self._unread += len(data)
            if self._unread > self._links.limits.write_buffer:
                self._links.unread(self)
                return
        self._tls.write(data)

    def pauseProducing(self) -> None:
        """The socket takes no more: from here on what is written counts as unread."""
        self._paused = True

    def resumeProducing(self) -> None:
        """All has been written."""
        self._paused = False
        self._unread = 0

    def stopProducing(self) -> None:
        """The connection is gone; ``connectionLost`` follows."""
        self._paused = False

    def close(self) -> None:
        """Write what is kept, close TLS in order, and cut the connection if that takes too long."""
        if self.closing:
            return
        self.write_queued()
        self.closing = True
        if self._up:
            self._tls.unregisterProducer()
        self._tls.loseConnection()
        if self._deadline is None:
            self._deadline = self._links.clock.callLater(CLOSE_SECONDS, self._close_late)

    def _close_late(self) -> None:
        self._deadline = None
        self._tls.abortConnection()

    def cut(self, reason: str) -> None:
        """Reset the connection at once; ``link_down`` or the dial's failure says ``reason``."""
        if self.closing:
            return
        self.closing = True
        self._stop_deadline()
        self._links.lost(self, reason, self._up, self._dial)
        self._tls.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; tell it once."""
        self._stop_deadline()
        self._links.gone(self)
        if not self.closing:
            self.closing = True
            self._links.lost(self, reason_text(reason), self._up, self._dial)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Dial:
    """One attempt: the addresses that are left, tried in order until one leads to the wanted node."""

    def __init__(self, attempt: int, addresses: Iterator[Endpoint], node_id: bytes | None) -> None:
        self.attempt = attempt
        self.addresses = addresses
        self.node_id = node_id
        self.reasons: list[str] = []
        self.over = False


class _ListenFactory(Factory):
    noisy = False

    def __init__(self, links: Links) -> None:
        self._links = links

    def buildProtocol(self, addr: IAddress | None) -> LinkProtocol | None:
        return self._links.accept(addr)


class _DialFactory(ClientFactory[Protocol]):
    noisy = False

    def __init__(self, links: Links, dial: _Dial, endpoint: Endpoint) -> None:
        self._links = links
        self._dial = dial
        self._endpoint = endpoint

    def buildProtocol(self, addr: IAddress | None) -> LinkProtocol:
        return LinkProtocol(self._links, self._endpoint[0], self._dial)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._links.next_address(self._dial, f"{endpoint_text(self._endpoint)}: {reason_text(reason)}")


class Links:
    """All links of one node.

    ``node_ids`` turns a certificate (DER) into the Node-IDs in it; it is only asked about certificates that
    the handshake has accepted.  ``source`` is the host that dialled connections come from, None for the
    system's choice. ``counts`` are totals by result, for the metrics.
    """

    def __init__(
        self,
        reactor: object,
        tls: NodeTls,
        user: LinkUser,
        limits: LinkLimits,
        *,
        node_ids: Callable[[bytes], Sequence[bytes]],
        source: str | None = None,
    ) -> None:
        self.user = user
        self.limits = limits
        self.clock = cast(IReactorTime, reactor)
        self.counts: dict[str, int] = {}
        self.refusals = Refusals(Logger(namespace="p2psipd.links"), reactor)
        self._log = Logger(namespace="p2psipd.links")
        self._reactor = cast(IReactorTCP, reactor)
        self._tls = tls
        self._node_ids = node_ids
        self._source = source
        self._next_link = 1
        self._links: dict[int, LinkProtocol] = {}
        self._connections: dict[LinkProtocol, None] = {}
        self._hosts: dict[str, int] = {}
        self._handshakes: dict[LinkProtocol, None] = {}
        self._handshake_hosts: dict[str, int] = {}
        self._dirty: list[LinkProtocol] = []
        self._dials: set[_Dial] = set()
        self._ports: list[IListeningPort] = []
        self._stopped = False
        self._all_gone: Deferred[None] | None = None

    # -- for the owner -----------------------------------------------------------------------------

    def listen(self, address: Endpoint) -> Endpoint:
        """Take connections at ``address``; the address in use.  Raises twisted's CannotListenError."""
        factory = tls_factory(self._tls, False, _ListenFactory(self), self.clock)
        # A factory that wraps another is a ServerFactory by duty, not by class.
        port = self._reactor.listenTCP(address[1], cast(Any, factory), _BACKLOG, address[0])
        self._ports.append(port)
        bound = cast(IPv4Address | IPv6Address, port.getHost())
        return (bound.host, bound.port)

    def open(self, attempt: int, addresses: Iterable[Endpoint], node_id: bytes | None = None) -> None:
        """Dial ``addresses`` in order until one answers with a good certificate (that names ``node_id``, if
        given).

        Ends in ``link_up`` or ``link_failed`` with this ``attempt``, never before this call returns.
        """
        dial = _Dial(attempt, iter(tuple(addresses)), node_id)
        self._dials.add(dial)
        self.clock.callLater(0, self.next_address, dial, None)

    def send(self, link: int, data: bytes) -> None:
        """Send octets on a link, at the next :meth:`flush`; nothing happens when the link is gone."""
        protocol = self._links.get(link)
        if protocol is not None:
            if not protocol.pending:
                self._dirty.append(protocol)
            protocol.pending.append(data)

    def flush(self) -> None:
        """Write what was sent since the last flush, one write a link."""
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for protocol in dirty:
                protocol.write_queued()

    def close(self, link: int, reason: str = "") -> None:
        """Close a link after what was sent on it; ``link_down`` is not called for it."""
        protocol = self._links.pop(link, None)
        if protocol is not None:
            self._log.debug(
                "closing link {link} to {address}: {reason}",
                link=link,
                address=protocol.address,
                reason=reason,
            )
            protocol.close()

    def cut(self, link: int, reason: str) -> None:
        """Reset a link at once; ``link_down`` is called with ``reason``."""
        protocol = self._links.get(link)
        if protocol is not None:
            protocol.cut(reason)

    async def stop(self) -> None:
        """Listen no more and close everything; ends when all connections are gone."""
        self._stopped = True
        for dial in self._dials:
            dial.over = True
        self._dials.clear()
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        self._links.clear()
        for protocol in tuple(self._connections):
            protocol.close()
        if self._connections:
            self._all_gone = Deferred()
            await self._all_gone

    def info(self) -> list[LinkInfo]:
        """The links that are up."""
        return [
            LinkInfo(p.link, p.address, p.outgoing, p.tls, p.opened_at, p.received, p.sent)
            for p in self._links.values()
        ]

    @property
    def handshaking(self) -> int:
        """Connections whose handshake is under way."""
        return len(self._handshakes)

    def __len__(self) -> int:
        return len(self._links)

    # -- for the protocols and factories -----------------------------------------------------------

    def accept(self, addr: IAddress | None) -> LinkProtocol | None:
        """A protocol for an incoming connection, or None where a limit is reached."""
        host = addr.host if isinstance(addr, IPv4Address | IPv6Address) else ""
        limits = self.limits
        if self._stopped or len(self._connections) >= limits.links:
            reason = "too many links"
        elif self._hosts.get(host, 0) >= limits.links_per_address:
            reason = "too many links from this address"
        elif len(self._handshakes) >= limits.handshakes:
            reason = "too many handshakes"
        elif self._handshake_hosts.get(host, 0) >= limits.handshakes_per_address:
            reason = "too many handshakes from this address"
        else:
            return LinkProtocol(self, host, None)
        self.count("refused_limit")
        self.refusals.accepted((host, getattr(addr, "port", 0)), reason)
        return None

    def handshake_began(self, protocol: LinkProtocol) -> None:
        """TCP is connected."""
        self._connections[protocol] = None
        self._hosts[protocol.host] = self._hosts.get(protocol.host, 0) + 1
        self._handshakes[protocol] = None
        self._handshake_hosts[protocol.host] = self._handshake_hosts.get(protocol.host, 0) + 1

    def handshake_ended(self, protocol: LinkProtocol) -> None:
        """TLS is there, or will never be."""
        if protocol in self._handshakes:
            del self._handshakes[protocol]
            _less(self._handshake_hosts, protocol.host)

    def gone(self, protocol: LinkProtocol) -> None:
        """The connection no longer exists."""
        self.handshake_ended(protocol)
        if protocol in self._connections:
            del self._connections[protocol]
            _less(self._hosts, protocol.host)
        if not self._connections and self._all_gone is not None:
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)

    def up(self, protocol: LinkProtocol, certificate: bytes, dial: _Dial | None) -> None:
        """A handshake is complete: a new link, unless it leads to the wrong node or nobody wants it any
        more.
        """
        if dial is not None:
            if dial.over:
                protocol.close()
                return
            if dial.node_id is not None and dial.node_id not in self._node_ids(certificate):
                protocol.cut("another node answered")
                return
            dial.over = True
            self._dials.discard(dial)
        self.count("dialled" if dial is not None else "accepted")
        protocol.link = self._next_link
        self._next_link += 1
        self._links[protocol.link] = protocol
        self.user.link_up(
            protocol.link, certificate, protocol.address, dial.attempt if dial is not None else None
        )

    def unread(self, protocol: LinkProtocol) -> None:
        """A neighbour leaves too much unread: its link is cut."""
        self.count("unread_dropped")
        tell = self.refusals.dialled if protocol.outgoing else self.refusals.accepted
        tell(protocol.address, DOES_NOT_READ)
        protocol.cut(DOES_NOT_READ)

    def lost(self, protocol: LinkProtocol, reason: str, was_up: bool, dial: _Dial | None) -> None:
        """A connection failed or ended, for ``reason``."""
        if protocol.link:
            if self._links.pop(protocol.link, None) is not None:
                self.user.link_down(protocol.link, reason)
            return
        if refusal := getattr(protocol.transport, "refusal", ""):
            reason = f"certificate refused: {refusal}"
            self.count("certificate_refused")
        elif not was_up:
            self.count("handshake_failed")
        if dial is not None:
            self.next_address(dial, f"{endpoint_text(protocol.address)}: {reason}")
        else:
            self.refusals.accepted(protocol.address, reason)

    def next_address(self, dial: _Dial, reason: str | None) -> None:
        """Try the next address of an attempt, or report that there is none."""
        if reason is not None:
            dial.reasons.append(reason)
        if dial.over:
            return
        if len(self._connections) >= self.limits.links:
            dial.reasons.append("too many links")
        elif (endpoint := next(dial.addresses, None)) is not None:
            self._connect(dial, endpoint)
            return
        dial.over = True
        self._dials.discard(dial)
        self.count("dial_failed")
        self.user.link_failed(dial.attempt, "; ".join(dial.reasons) or "no address")

    def count(self, result: str) -> None:
        """One more of ``result``."""
        self.counts[result] = self.counts.get(result, 0) + 1

    def _connect(self, dial: _Dial, endpoint: Endpoint) -> None:
        host, port = endpoint
        try:
            version = ip_address(host).version
        except ValueError:
            resolve(self._reactor, host).addCallbacks(
                self._resolved, self._unresolved, callbackArgs=(dial, port), errbackArgs=(dial, endpoint)
            )
            return
        source = self._source
        bind = (source, 0) if source and ip_address(source).version == version else None
        factory = tls_factory(self._tls, True, _DialFactory(self, dial, endpoint), self.clock)
        self._reactor.connectTCP(host, port, factory, self.limits.connect_seconds, bind)

    def _resolved(self, hosts: Sequence[str], dial: _Dial, port: int) -> None:
        rest = tuple(dial.addresses)
        dial.addresses = iter([*((host, port) for host in hosts), *rest])
        self.next_address(dial, None)

    def _unresolved(self, failure: Failure, dial: _Dial, endpoint: Endpoint) -> None:
        self.next_address(dial, f"{endpoint_text(endpoint)}: {failure.getErrorMessage()}")


def _less(counts: dict[str, int], key: str) -> None:
    """One less of ``key``; zero is not kept."""
    left = counts.get(key, 0) - 1
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)

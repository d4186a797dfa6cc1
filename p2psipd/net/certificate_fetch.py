"""Getting the certificates behind Identity headers over http and https, and serving our own.

A URL in a header is a stranger's wish that we connect somewhere, so every fetch is guarded: only http and https, no
private address unless it is configured (looked at after each look-up and at each redirect, and the connection goes to
the very address that was looked at), 64 KiB, three seconds in all. Equal fetches are merged, results are kept, and so
are failures for a short time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from OpenSSL import crypto
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, TimeoutError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from twisted.web.resource import Resource
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site
from zope.interface import implementer

from p2psipd.proto.identity.chain import read_chain
from p2psipd.proto.peering.own_certificates import CertificateUse, OwnCertificates, served_name
from p2psipd.proto.peering.peers import IdentityKind
from p2psipd.proto.peering.verification import CertificateUnavailable

Network = IPv4Network | IPv6Network

MAXIMUM_SIZE: Final = 64 * 1024
#: Octets before a body: status line and headers, which twisted.web reads without a limit.
_MAXIMUM_HEAD: Final = 32 * 1024
FETCH_SECONDS: Final = 3.0
MAXIMUM_REDIRECTS: Final = 3
#: How long a certificate and a failure are kept. A new certificate of a peer has a new URL (RFC 4474 section 9).
KEPT_FOR: Final = 3600.0
FAILURE_KEPT_FOR: Final = 30.0
MAXIMUM_KEPT: Final = 1000
MAXIMUM_PENDING: Final = 64
#: Of one host, so that one whose certificates never arrive does not stand in the way of the others'.
MAXIMUM_PENDING_OF_HOST: Final = 8
_NAT64: Final = IPv6Network("64:ff9b::/96")
_MAXIMUM_URL: Final = 2048
_MOST_ADDRESSES: Final = 4


class _Kept(NamedTuple):
    """One result: a chain, or why there is none, until a time of the reactor's clock."""

    chain: Sequence[bytes]
    fault: str
    until: float


class _Refused(Exception):
    """What came, or where it would come from, is not to be had; the message says why."""


class CertificateFetcher:
    """Fetches certificate chains; its :meth:`fetch` is what the verifier asks.

    ``addresses(host)`` gives numeric addresses of a name (the node's DNS client), ``private_networks`` may be
    connected to though they are not public, ``roots`` (DER) are believed for https servers. ``counters`` counts
    fetches, hits and failures.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: Callable[[str], Awaitable[Sequence[str]]],
        *,
        roots: Iterable[bytes] = (),
        private_networks: Sequence[Network] = (),
    ) -> None:
        self._clock: IReactorTime = reactor
        trust = _trust(roots)
        self._endpoints = _GuardedEndpoints(reactor, addresses, tuple(private_networks), trust)
        self._agent: Any = Agent.usingEndpointFactory(reactor, self._endpoints)
        self._kept: dict[str, _Kept] = {}
        self._waiting: dict[str, list[Deferred[_Kept]]] = {}
        self._pending: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()

    def update(self, roots: Iterable[bytes], private_networks: Sequence[Network]) -> None:
        """Use these from the next fetch on; what failed before may be tried again at once."""
        self._endpoints.trust = _trust(roots)
        self._endpoints.private_networks = tuple(private_networks)
        self._kept = {url: kept for url, kept in self._kept.items() if not kept.fault}

    async def fetch(self, url: str) -> Sequence[bytes]:
        """The chain at ``url`` (DER, leaf first). Raises CertificateUnavailable."""
        kept = self._kept.get(url)
        if kept is not None and kept.until > self._clock.seconds():
            self.counters["kept"] += 1
        elif url in self._waiting:
            self.counters["merged"] += 1
            waiting: Deferred[_Kept] = Deferred()
            self._waiting[url].append(waiting)
            kept = await waiting
        else:
            kept = await self._first(url)
        if kept.fault:
            raise CertificateUnavailable(kept.fault)
        return kept.chain

    async def _first(self, url: str) -> _Kept:
        """Fetch, keep, and tell all who asked meanwhile."""
        host = _host_of(url)
        if len(self._waiting) >= MAXIMUM_PENDING or self._pending[host] >= MAXIMUM_PENDING_OF_HOST:
            # Not kept: it says nothing about this URL.
            self.counters["refused"] += 1
            return _Kept((), "too many certificates are being fetched", 0.0)
        self.counters["fetched"] += 1
        waiting = self._waiting[url] = []
        self._pending[host] += 1
        result = _Kept((), "the fetch was given up", 0.0)
        try:
            result = await self._within_limits(url)
        finally:
            del self._waiting[url]
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]
            self._keep(url, result)
            for deferred in waiting:
                deferred.callback(result)
        return result

    def _keep(self, url: str, result: _Kept) -> None:
        if result.until > 0.0 and len(url) <= _MAXIMUM_URL:
            self._kept.pop(url, None)
            if len(self._kept) >= MAXIMUM_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[url] = result

    async def _within_limits(self, url: str) -> _Kept:
        now = self._clock.seconds
        try:
            body = await ensureDeferred(self._get(url)).addTimeout(FETCH_SECONDS, self._clock)
            return _Kept(read_chain(body), "", now() + KEPT_FOR)
        except ValueError as error:
            fault = f"no certificate: {str(error)[:200]}"
        except Exception as error:
            # Whatever goes wrong on the way there, from the look-up to the last octet, means the same here.
            fault = _reason(error)
        self.counters["failed"] += 1
        return _Kept((), fault, now() + FAILURE_KEPT_FOR)

    async def _get(self, url: str) -> bytes:
        """The body at ``url``, redirects followed."""
        headers = Headers({b"Accept": [b"application/pkix-cert, application/pem-certificate-chain, */*"]})
        for _ in range(1 + MAXIMUM_REDIRECTS):
            scheme = _checked_scheme(url)
            response: IResponse = await self._agent.request(b"GET", url.encode("ascii"), headers)
            if response.code not in (301, 302, 303, 307, 308):
                return await self._body(response)
            location = (response.headers.getRawHeaders(b"location") or [b""])[0].decode("ascii", "replace")
            response.deliverBody(_Discard())
            url = urljoin(url, location)
            if scheme == "https" and _checked_scheme(url) != "https":
                raise _Refused("redirected from https to http")
        raise _Refused(f"more than {MAXIMUM_REDIRECTS} redirects")

    async def _body(self, response: IResponse) -> bytes:
        if response.code != 200:
            response.deliverBody(_Discard())
            raise _Refused(f"status {response.code}")
        collected = _Body()
        response.deliverBody(collected)
        return await collected.done


def _reason(error: Exception) -> str:
    """Why there is no certificate, in words for the record of a refusal."""
    if isinstance(error, _Refused):
        return str(error)[:200]
    inside = getattr(error, "reasons", ())
    if inside:
        # twisted.web's ResponseNeverReceived and its like hold what happened.
        return _reason(inside[0].value)
    if isinstance(error, ConnectionAborted):
        return f"more than {_MAXIMUM_HEAD} octets of headers"
    if isinstance(error, CancelledError | DeferredTimeout | TimeoutError):
        return f"not there within {FETCH_SECONDS:g} s"
    return f"{type(error).__name__}: {str(error)[:200]}"


def _checked_scheme(url: str) -> str:
    """The scheme of a URL that may be fetched; raises _Refused for others."""
    try:
        parts = urlsplit(url)
        allowed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        allowed = False
    if not allowed or len(url) > _MAXIMUM_URL or not url.isascii() or any(c.isspace() for c in url):
        raise _Refused("not an http or https URL")
    return parts.scheme


def _certificate(der: bytes) -> Certificate:
    return Certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, der))


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _trust(roots: Iterable[bytes]) -> Any:
    return trustRootFromCertificates([_certificate(der) for der in roots])


class _Discard(Protocol):
    """A body that nobody wants to read."""

    def connectionMade(self) -> None:
        """Read no more."""
        stop = getattr(self.transport, "loseConnection", None)
        if stop is not None:
            stop()


class _Body(Protocol):
    """Collects a body up to the limit; beyond it the connection is closed at once."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(self._give_up)
        self._pieces: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        """The next octets."""
        self._size += len(data)
        if self._size <= MAXIMUM_SIZE:
            self._pieces.append(data)
            return
        self._pieces.clear()
        self._abort()
        self._finish(Failure(_Refused(f"more than {MAXIMUM_SIZE} octets")))

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:
        """All is there, or the connection broke."""
        # A server that names no length and closes has said all that it wanted.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._finish(b"".join(self._pieces))
        else:
            self._finish(reason)

    def _finish(self, result: bytes | Failure) -> None:
        done, self.done = self.done, Deferred()
        if not done.called:
            done.callback(result)

    def _give_up(self, _: Deferred[bytes]) -> None:
        self._abort()

    def _abort(self) -> None:
        abort = getattr(self.transport, "abortConnection", None) or getattr(self.transport, "loseConnection", None)
        if abort is not None:
            abort()


@implementer(IAgentEndpointFactory)
class _GuardedEndpoints:
    """Endpoints that look at the address before they connect to it."""

    def __init__(
        self,
        reactor: Any,
        addresses: Callable[[str], Awaitable[Sequence[str]]],
        private_networks: tuple[Network, ...],
        trust: Any,
    ) -> None:
        self.reactor = reactor
        self.addresses = addresses
        self.private_networks = private_networks
        self.trust = trust

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        """The endpoint of one request."""
        endpoint: IStreamClientEndpoint = _GuardedEndpoint(self, uri)
        return endpoint

    def permits(self, address: str) -> bool:
        """Whether we may connect there: public, or in a configured network."""
        found = ip_address(address)
        if isinstance(found, IPv6Address):
            # An IPv4 address in IPv6 clothes is what it is inside.
            inside = found.ipv4_mapped or found.sixtofour
            found = IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else inside or found
        if found.is_global and not found.is_multicast:
            return True
        return any(found in network for network in self.private_networks)


@implementer(IStreamClientEndpoint)
class _GuardedEndpoint:
    """Connects to a permitted address of a host, the next one where one is dead; by TLS in the host's name where the
    URL says https.
    """

    def __init__(self, guard: _GuardedEndpoints, uri: Any) -> None:
        self._guard = guard
        self._uri = uri

    def connect(self, factory: Any) -> Deferred[Any]:
        """As IStreamClientEndpoint says."""
        factory.noisy = False
        return ensureDeferred(self._connect(factory)).addCallback(_bounded)

    async def _connect(self, factory: Any) -> Any:
        host = self._uri.host.decode("ascii")
        try:
            found: Sequence[str] = [str(ip_address(host.strip("[]")))]
        except ValueError:
            found = await self._guard.addresses(host)
        permitted = [address for address in found if self._guard.permits(address)]
        if not found:
            raise _Refused(f"{host} has no address")
        if not permitted:
            raise _Refused(f"{host} is at {found[0]}, a private address")
        tried = permitted[:_MOST_ADDRESSES]
        for address in tried[:-1]:
            try:
                return await self._endpoint(host, address, FETCH_SECONDS / len(tried)).connect(factory)
            except ConnectError:
                continue
        return await self._endpoint(host, tried[-1], FETCH_SECONDS).connect(factory)

    def _endpoint(self, host: str, address: str, seconds: float) -> Any:
        endpoint: Any = HostnameEndpoint(self._guard.reactor, address, self._uri.port, timeout=seconds)
        if self._uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(host, trustRoot=self._guard.trust), endpoint)
        return endpoint


def _bounded(protocol: Any) -> Any:
    """The client's protocol, cut off when more comes than a head and a body may have."""
    left, receive = _MAXIMUM_HEAD + MAXIMUM_SIZE, protocol.dataReceived

    def data_received(data: bytes) -> None:
        nonlocal left
        left -= len(data)
        if left >= 0:
            receive(data)
        else:
            protocol.transport.abortConnection()

    protocol.dataReceived = data_received
    return protocol


# ---- serving our own ---------------------------------------------------------------------------------------


class ServedCertificates(Resource):
    """Our certificates, each under the last segment of the URL that we put into Identity headers.

    :meth:`update` takes new ones; the old stay for a while, as requests that they signed are still on their way
    (RFC 4474 section 9: an hour will do).
    """

    isLeaf = True

    def __init__(self, clock: IReactorTime, path: str, own: OwnCertificates) -> None:
        """``path`` is that of the configured URL, "/identity" for "https://a.test/identity"."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._path = path.rstrip("/").encode("ascii", "replace")
        self._served: dict[bytes, tuple[bytes, bytes, float]] = {}
        self.update(own)

    def update(self, own: OwnCertificates) -> None:
        """Serve these from now on, and those of before for another hour."""
        now = self._clock.seconds()
        left = {name: entry for name, entry in self._served.items() if entry[2] > now}
        self._served = {name: (kind, body, min(end, now + KEPT_FOR)) for name, (kind, body, end) in left.items()}
        for one in own.certificates:
            if CertificateUse.IDENTITY in one.uses:
                der, forever = one.chain[0], float("inf")
                chain = b"".join(_pem(link) for link in one.chain)
                self._served[served_name(one, IdentityKind.RFC4474).encode()] = (b"application/pkix-cert", der, forever)
                self._served[served_name(one, IdentityKind.RFC8224).encode()] = (
                    b"application/pem-certificate-chain",
                    chain,
                    forever,
                )

    def render_GET(self, request: WebRequest) -> bytes:
        """The certificate, or 404."""
        directory, _, name = (request.path or b"").rpartition(b"/")
        found = self._served.get(name) if directory == self._path else None
        if found is None or found[2] <= self._clock.seconds():
            request.setResponseCode(404)
            request.setHeader(b"content-type", b"text/plain")
            return b"no such certificate\n"
        request.setHeader(b"content-type", found[0])
        request.setHeader(b"cache-control", b"max-age=3600")
        return found[1]

    def site(self) -> Site:
        """The factory for a listener; a connection that says nothing is closed after ten seconds."""
        return _QuietSite(self, timeout=10)  # type: ignore[no-untyped-call]


class _QuietSite(Site):
    """A site that does not write a line into the node's log for each request."""

    noisy = False

    def log(self, request: Any) -> None:
        """Not logged: the counters of the verifiers on the other side say as much."""


def _pem(der: bytes) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_PEM, crypto.load_certificate(crypto.FILETYPE_ASN1, der))

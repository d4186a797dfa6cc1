"""The listeners where our certificates are served, under the URL that our Identity headers bear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, gatherResults
from twisted.protocols.policies import WrappingFactory

from p2psipd.net.certificate_fetch import ServedCertificates
from p2psipd.net.peer_tls import PeerTls
from p2psipd.net.tls import tls_factory
from p2psipd.proto.peering.own_certificates import OwnCertificates

#: Connections at a time, in all and from one address: a verifier needs one, for a moment.
MOST_CONNECTIONS: Final = 256
MOST_OF_ADDRESS: Final = 32


class CertificateServer:
    """Serves `own` under the path of `url` ("https://{domain}:8443/identity"), over TLS if that says so.

    A client that names one of our domains is shown the certificate of that domain; `tls` follows a reload by itself.
    """

    def __init__(self, reactor: Any, url: str, own: OwnCertificates, tls: PeerTls) -> None:
        parts = urlsplit(url.replace("{domain}", "domain"))
        self._reactor = reactor
        self._tls = tls if parts.scheme == "https" else None
        self._served = ServedCertificates(reactor, parts.path, own)
        self._ports: list[Any] = []

    def update(self, own: OwnCertificates) -> None:
        """Serve these from now on."""
        self._served.update(own)

    def listen(self, addresses: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Listen; the addresses really bound. Raises twisted's CannotListenError."""
        bound = []
        for host, port in addresses:
            factory: Any = self._served.site()
            if self._tls is not None:
                factory = tls_factory(self._tls.public, False, factory, self._reactor)
            listening = self._reactor.listenTCP(port, _Capped(factory), interface=host)
            self._ports.append(listening)
            bound.append((listening.getHost().host, listening.getHost().port))
        return bound

    def stop(self) -> Deferred[Any]:
        """Close the listeners."""
        ports, self._ports = self._ports, []
        waiting = [port.stopListening() for port in ports]
        return gatherResults([one for one in waiting if isinstance(one, Deferred)], consumeErrors=True)


class _Capped(WrappingFactory):
    """A factory whose connections are limited; one more is closed as soon as it is open, before any TLS."""

    noisy = False

    def __init__(self, wrapped: Any) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self._of_address: Counter[str] = Counter()

    def buildProtocol(self, addr: Any) -> Any:
        """None for a connection too many."""
        if len(self.protocols) >= MOST_CONNECTIONS or self._of_address[addr.host] >= MOST_OF_ADDRESS:
            return None
        return super().buildProtocol(addr)

    def registerProtocol(self, p: Any) -> None:
        """A connection is open."""
        super().registerProtocol(p)  # type: ignore[no-untyped-call]
        self._of_address[p.getPeer().host] += 1

    def unregisterProtocol(self, p: Any) -> None:
        """It has ended."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        host = p.getPeer().host
        self._of_address[host] -= 1
        if not self._of_address[host]:
            del self._of_address[host]

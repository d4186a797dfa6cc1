"""The listeners where our certificates are served, under the URL that our Identity headers bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, gatherResults

from p2psipd.net.certificate_fetch import ServedCertificates
from p2psipd.net.peer_tls import PeerTls
from p2psipd.net.tls import tls_factory
from p2psipd.proto.peering.own_certificates import OwnCertificates


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
            listening = self._reactor.listenTCP(port, factory, interface=host)
            self._ports.append(listening)
            bound.append((listening.getHost().host, listening.getHost().port))
        return bound

    def stop(self) -> Deferred[Any]:
        """Close the listeners."""
        ports, self._ports = self._ports, []
        waiting = [port.stopListening() for port in ports]
        return gatherResults([one for one in waiting if isinstance(one, Deferred)], consumeErrors=True)

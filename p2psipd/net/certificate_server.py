"""The listeners where our certificates are served, under the URL that our Identity headers bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.ssl import CertificateOptions

from p2psipd.net.certificate_fetch import ServedCertificates
from p2psipd.proto.peering.own_certificates import CertificateUse, OwnCertificate, OwnCertificates


class CertificateServer:
    """Serves `own` under the path of `url` ("https://{domain}:8443/identity"), over TLS if that says so.

    A client that names one of our domains is shown the certificate of that domain.
    """

    def __init__(self, reactor: Any, url: str, own: OwnCertificates) -> None:
        parts = urlsplit(url.replace("{domain}", "domain"))
        self._reactor = reactor
        self._secure = parts.scheme == "https"
        self._served = ServedCertificates(reactor, parts.path, own)
        self._ports: list[Any] = []
        self._contexts: dict[bytes, SSL.Context] = {}
        self._first: SSL.Context | None = None
        self._choose_from(own)

    def _choose_from(self, own: OwnCertificates) -> None:
        self._contexts = {}
        for one in own.certificates if self._secure else ():
            if CertificateUse.TLS in one.uses:
                context = _context(one)
                context.set_tlsext_servername_callback(self._named)
                for domain in one.domains:
                    self._contexts.setdefault(domain.encode(), context)
        self._first = next(iter(self._contexts.values()), None)

    def _named(self, connection: SSL.Connection) -> None:
        context = self._contexts.get((connection.get_servername() or b"").lower())
        if context is not None:
            connection.set_context(context)

    def update(self, own: OwnCertificates) -> None:
        """Serve these from now on."""
        self._served.update(own)
        self._choose_from(own)

    def listen(self, addresses: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Listen; the addresses really bound. Raises twisted's CannotListenError."""
        bound = []
        for host, port in addresses:
            site = self._served.site()
            if self._secure:
                listening = self._reactor.listenSSL(port, site, self, interface=host)
            else:
                listening = self._reactor.listenTCP(port, site, interface=host)
            self._ports.append(listening)
            bound.append((listening.getHost().host, listening.getHost().port))
        return bound

    def getContext(self) -> SSL.Context:
        """The context of new connections, as twisted's ContextFactory has it."""
        assert self._first is not None, "the policy has a certificate for TLS"
        return self._first

    def stop(self) -> Deferred[Any]:
        """Close the listeners."""
        ports, self._ports = self._ports, []
        waiting = [port.stopListening() for port in ports]
        return gatherResults([one for one in waiting if isinstance(one, Deferred)], consumeErrors=True)


def _context(own: OwnCertificate) -> SSL.Context:
    options: Any = CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(own.key),
        certificate=crypto.X509.from_cryptography(own.certificate.loaded),
        extraCertChain=[
            crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)) for der in own.chain[1:]
        ],
        acceptableProtocols=[b"http/1.1"],
    )
    context: SSL.Context = options.getContext()
    return context

"""TLS towards SIP servers of other domains: the dialling side, with domain certificates (RFC 5922).

The chain is OpenSSL's matter, against the operator's authorities or the system's; the server must then speak for
the domain that was asked for, compared whole and without wildcards. What differs per connection is the domain, so
that :meth:`DomainTls.towards` makes the creator that Twisted wants.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from p2psipd.net.tls import CertificateFileError, KeyLog, chain_fault, new_context
from p2psipd.proto.identity.policy import has_identity, ip_identities, sip_identities


class DomainTls:
    """What this node needs to dial other domains over TLS.

    `authorities` is a PEM file of root certificates ("" takes the system's); `certificate` and `key` are shown to
    servers that ask for one (both "" shows none). Raises CertificateFileError when a file cannot be used.
    """

    def __init__(
        self, authorities: str = "", certificate: str = "", key: str = "", *, keylog: KeyLog | None = None
    ) -> None:
        self._files = (authorities, certificate, key)
        self._keylog = keylog
        self._context = self._make()
        # The system's roots are megabytes: a node that dials nobody does without them.
        self._complete = bool(authorities)

    @property
    def shows_certificate(self) -> bool:
        """Whether servers can know who we are, and so use our connection in their direction (RFC 5923)."""
        return bool(self._files[1])

    def reload(self) -> None:
        """Read the files again; on an error what was stays, and CertificateFileError is raised."""
        self._context = self._make()
        self._complete = bool(self._files[0])

    def _make(self) -> SSL.Context:
        authorities, certificate, key = self._files
        context = new_context(b"p2psipd-domains", self._keylog)
        try:
            if authorities:
                context.load_verify_locations(authorities)
            if certificate:
                context.use_certificate_chain_file(certificate)
                context.use_privatekey_file(key)
                context.check_privatekey()
        except (SSL.Error, OSError) as error:
            detail = error.args[0] if error.args else error
            raise CertificateFileError(f"{' '.join(filter(None, self._files))}: {detail}") from None
        context.set_verify(SSL.VERIFY_PEER, _verify)
        return context

    def towards(self, domain: str) -> DomainConnections:
        """The creator of connections to servers of `domain`, a name or a numeric host.

        Raises ValueError for what can be neither.
        """
        if not self._complete:
            self._context.set_default_verify_paths()
            self._complete = True
        return DomainConnections(self._context, domain)


@implementer(IOpenSSLClientConnectionCreator)
class DomainConnections:
    """Creates connections to servers of one domain."""

    def __init__(self, context: SSL.Context, domain: str) -> None:
        self._context = context
        self.domain = domain
        self._name = b"" if _is_numeric(domain) else domain.encode("idna")

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection whose server must speak for the domain; names it in the handshake (RFC 5922 section 7.8)."""
        connection = SSL.Connection(self._context, None)
        # The callback of OpenSSL knows the connection alone; newer versions of Twisted set this very thing.
        wanting: Any = protocol
        wanting.wanted_domain = self.domain
        connection.set_app_data(protocol)
        if self._name:
            connection.set_tlsext_host_name(self._name)
        return connection


def speaks_for(identities: Iterable[str], domain: str) -> bool:
    """Whether `domain`, a name or a numeric host, is among the `identities` of a certificate (RFC 5922 section 7.2)."""
    known = tuple(identities)
    if _is_numeric(domain):
        return str(ip_address(domain)) in known
    return has_identity(known, domain)


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _verify(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """OpenSSL's callback, once a certificate of the chain, the root first; False refuses."""
    protocol = connection.get_app_data()
    domain = protocol.wanted_domain
    if not ok:
        return _refuse(protocol, f"its certificate was refused: {chain_fault(error)}")
    if depth:
        return True
    der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    found = ip_identities(der) if _is_numeric(domain) else sip_identities(der)
    if not speaks_for(found, domain):
        named = ", ".join(found[:5]) or "nobody"
        return _refuse(protocol, f"its certificate is {named}'s, not {domain}'s")
    return True


def _refuse(protocol: Any, reason: str) -> bool:
    """Keep the reason where TlsProtocol.refusal shows it; always False."""
    protocol.refusal = reason
    return False

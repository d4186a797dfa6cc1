"""TLS with other SIP domains: both sides show and judge certificates (RFC 5922, direct peering 4.1.6 and 4.2.3).

OpenSSL proves possession and builds the chain; dates, authorities and revocation are refused there, so that the
other side gets the alert that says which. Whom a certificate speaks for, by whose rules, is the policy's to say
(:class:`p2psipd.proto.peering.peers.PeeringPolicy`), with which the handshake ends. A refusal is kept with its
step, domain and authority for the log (:func:`refusal_of`); who is there when it went well is :func:`peer_of`.

Under TLS 1.3 the dialler's handshake is complete before the acceptor has judged its certificate: that refusal
arrives as a lost connection, and its alert (:func:`refused_by_peer`) says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from p2psipd.net.tls import KeyLog, new_context
from p2psipd.proto.identity.policy import CertificateRefused, Step, read_certificate
from p2psipd.proto.peering.own_certificates import CertificateUse, OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import PeerIdentity, PeeringPolicy

__all__ = ["NoOwnCertificate", "PeerTls", "own_of", "peer_of", "refusal_of", "refused_by_peer"]

#: OpenSSL's X509_V_ERR numbers, with the step that they stand for and words for the log.
_ERRORS = {
    9: (Step.DATE, "not valid yet"),
    10: (Step.DATE, "expired"),
    12: (Step.REVOKED, "its revocation list is out of date"),
    18: (Step.AUTHORITY, "self-signed"),
    19: (Step.AUTHORITY, "under an authority that is not configured"),
    20: (Step.AUTHORITY, "under an authority that is not configured"),
    21: (Step.AUTHORITY, "under an authority that is not configured"),
    23: (Step.REVOKED, "revoked"),
}
_NO_AUTHORITY = frozenset({18, 19, 20, 21})
#: No revocation list of this issuer (not every authority has one here), and a purpose, which the policy judges:
#: OpenSSL would take no server's certificate from a client.
_LEFT_TO_POLICY = frozenset({3, 26})

#: Alerts by which the other side refuses our certificate (RFC 8446 section 6.2), and at which step it did.
_ALERTS = {
    40: ("handshake_failure", Step.FORM),
    42: ("bad_certificate", Step.FORM),
    43: ("unsupported_certificate", Step.USAGE),
    44: ("certificate_revoked", Step.REVOKED),
    45: ("certificate_expired", Step.DATE),
    46: ("certificate_unknown", Step.DOMAIN),
    48: ("unknown_ca", Step.AUTHORITY),
    49: ("access_denied", Step.DOMAIN),
    116: ("certificate_required", Step.FORM),
}
_HANDSHAKE_FAILURE, _CERTIFICATE_REQUIRED = 40, 116

#: Judges a chain (DER, leaf first) at the end of a handshake; raises CertificateRefused.
_Judge = Callable[[list[bytes]], PeerIdentity]
#: Told of the refusal of a client, and from which host it came.
_Refused = Callable[[CertificateRefused, str], None]


class NoOwnCertificate(Exception):
    """No certificate of ours speaks for the domain in whose name we were to connect."""


class _Handshake:
    """What is known about one connection; an attribute of its TLS protocol."""

    __slots__ = ("alert", "chain", "judge", "own", "peer", "pinning", "refusal", "refused")

    def __init__(self, judge: _Judge, own: OwnCertificate, pinning: bool, refused: _Refused | None) -> None:
        self.judge = judge
        self.own = own
        self.pinning = pinning
        self.refused = refused
        self.chain: dict[int, bytes] = {}
        self.peer: PeerIdentity | None = None
        self.refusal: CertificateRefused | None = None
        self.alert = 0


def peer_of(transport: Any) -> PeerIdentity | None:
    """Who is at the other end of a TLS transport of :class:`PeerTls`; None before the handshake's end."""
    handshake = _handshake_of(transport)
    return handshake.peer if handshake is not None else None


def own_of(transport: Any) -> OwnCertificate | None:
    """The certificate that we show on a TLS transport of :class:`PeerTls`."""
    handshake = _handshake_of(transport)
    return handshake.own if handshake is not None else None


def refusal_of(transport: Any) -> CertificateRefused | None:
    """Why we refused the other side's certificate, if we did."""
    handshake = _handshake_of(transport)
    return handshake.refusal if handshake is not None else None


def refused_by_peer(transport: Any) -> CertificateRefused | None:
    """How the other side refused our certificate, in or after the handshake, if it did; None where it did not."""
    handshake = _handshake_of(transport)
    if handshake is None or handshake.alert not in _ALERTS:
        return None
    (name, step), own = _ALERTS[handshake.alert], handshake.own
    words = f"it refuses our certificate {own.name}: alert {name}"
    return CertificateRefused(step, words, own.domains[0], own.certificate.issuer)


def _handshake_of(transport: Any) -> _Handshake | None:
    found = getattr(transport, "peer_handshake", None)
    return found if isinstance(found, _Handshake) else None


class PeerTls:
    """Makes the connections with other domains. `wall` gives unix seconds; `refused` is told which client was refused
    in its handshake, and why (who is dialled and refused is told to the dialler, by :func:`refusal_of`).

    One context for each of our certificates; all believe the same authorities, those of the whole policy, and
    what each peer may come under is judged at the end of the handshake. :meth:`update` takes a new policy and new
    certificates for the connections to come; the judgement of open ones is the policy's with each request.
    """

    def __init__(
        self,
        policy: PeeringPolicy,
        own: OwnCertificates,
        wall: Callable[[], float],
        *,
        refused: _Refused | None = None,
        keylog: KeyLog | None = None,
    ) -> None:
        self._wall = wall
        self._refused = refused
        self._keylog = keylog
        self._install(policy, own)

    def update(self, policy: PeeringPolicy, own: OwnCertificates) -> None:
        """Use these from the next connection on."""
        self._install(policy, own)

    def again(self, peer: PeerIdentity) -> PeerIdentity:
        """Whom the certificate of an open connection speaks for by now. Raises CertificateRefused."""
        return self._policy.again(peer, self._wall())

    def _install(self, policy: PeeringPolicy, own: OwnCertificates) -> None:
        contexts = {domain: certificate for domain in own.domains if (certificate := own.for_tls(domain)) is not None}
        if not contexts:
            raise NoOwnCertificate("no certificate of ours is for TLS")
        made = {one.name: self._context(one, policy) for one in own.certificates if CertificateUse.TLS in one.uses}
        self._policy, self._own, self._contexts, self._by_domain = policy, own, made, contexts
        self._public = self._shows(next(iter(contexts.values())))
        self._pinning = any(anchors.pins for anchors in policy.anchors)

    def _shows(self, own: OwnCertificate) -> SSL.Context:
        """A context that shows a certificate of ours, or that of the domain that a client names."""
        context = new_context(b"p2psipd-peers", self._keylog)
        context.use_certificate(own.certificate.loaded)
        for der in own.chain[1:]:
            context.add_extra_chain_cert(x509.load_der_x509_certificate(der))
        context.use_privatekey(own.key)
        context.check_privatekey()
        context.set_tlsext_servername_callback(self._choose)
        return context

    def _context(self, own: OwnCertificate, policy: PeeringPolicy) -> SSL.Context:
        """A context that moreover demands a certificate of the other side."""
        context = self._shows(own)
        store = context.get_cert_store()
        if store is not None:
            lists = [crl for anchors in policy.anchors for crl in anchors.crls]
            for der in dict.fromkeys(root for anchors in policy.anchors for root in anchors.roots):
                store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))
            for der in dict.fromkeys(lists):
                store.add_crl(x509.load_der_x509_crl(der))
            if lists:
                store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
        context.set_info_callback(_notice)
        return context

    def _choose(self, connection: SSL.Connection) -> None:
        """Show the certificate of the domain that the client named, if we have it (RFC 5922 section 7.8)."""
        name = connection.get_servername()
        own = self._by_domain.get((name or b"").decode("ascii", "replace").lower().removesuffix("."))
        if own is None:
            return
        handshake = _handshake_of(connection.get_app_data())
        if handshake is not None:
            handshake.own = own
        # What was asked of the client stays as it was: the connection took that from its first context.
        connection.set_context(self._contexts[own.name])

    @property
    def public(self) -> AcceptedPeers:
        """The creator of connections for everybody: our certificates are served over https to whoever asks."""
        return AcceptedPeers(self._served)

    def _served(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._public, None)
        connection.set_app_data(protocol)
        return connection

    @property
    def server(self) -> AcceptedPeers:
        """The creator of connections that peers open to us."""
        return AcceptedPeers(self._accepted)

    def _accepted(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        own = next(iter(self._by_domain.values()))
        policy = self._policy

        def judge(chain: list[bytes]) -> PeerIdentity:
            return policy.client(chain, self._wall())

        connection = SSL.Connection(self._contexts[own.name], None)
        return _attached(connection, protocol, _Handshake(judge, own, self._pinning, self._refused))

    def towards(self, domain: str, from_domain: str, certificate: str = "") -> DialledPeer:
        """The creator of one connection to ``domain`` (the one that was asked for, before any look-up) in the name of
        ``from_domain``; ``certificate`` asks for one of ours by name. Raises NoOwnCertificate, and what OpenSSL or a
        name that is none raise: later, in the midst of Twisted, nobody would be told.
        """
        own = self._own.for_tls(from_domain, certificate)
        if own is None:
            raise NoOwnCertificate(f"no certificate of ours speaks for {from_domain}")
        policy = self._policy
        connection = SSL.Connection(self._contexts[own.name], None)
        connection.set_tlsext_host_name(domain.removesuffix(".").encode("ascii"))

        def judge(chain: list[bytes]) -> PeerIdentity:
            return policy.server(domain, chain, self._wall())

        return DialledPeer(connection, _Handshake(judge, own, self._pinning, None))


def _attached(connection: SSL.Connection, protocol: TLSMemoryBIOProtocol, handshake: _Handshake) -> SSL.Connection:
    # OpenSSL's callbacks know the connection alone.  Newer versions of Twisted keep the protocol there too.
    connection.set_app_data(protocol)
    protocol.peer_handshake = handshake  # type: ignore[attr-defined]
    return connection


@implementer(IOpenSSLServerConnectionCreator)
class AcceptedPeers:
    """Creates the accepting side of connections; follows :meth:`PeerTls.update`."""

    def __init__(self, create: Callable[[TLSMemoryBIOProtocol], SSL.Connection]) -> None:
        self._create = create

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection that asks for the client's certificate."""
        return self._create(protocol)


@implementer(IOpenSSLClientConnectionCreator)
class DialledPeer:
    """The dialling side of one connection to a domain. `transport` is what is known of it, also if it fails."""

    def __init__(self, connection: SSL.Connection, handshake: _Handshake) -> None:
        self._connection = connection
        self._handshake = handshake
        self.transport: TLSMemoryBIOProtocol | None = None

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """The connection, whose server must speak for the domain."""
        self.transport = protocol
        return _attached(self._connection, protocol, self._handshake)


def _verify(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """OpenSSL's callback, for each certificate of the chain, the leaf (depth 0) last; False refuses."""
    protocol = connection.get_app_data()
    handshake: _Handshake = protocol.peer_handshake
    der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
    handshake.chain[depth] = der
    try:
        # Whether a certificate without a known authority is pinned is only known when its leaf is.
        if not ok and error not in _LEFT_TO_POLICY and not (handshake.pinning and error in _NO_AUTHORITY):
            raise _openssl_refusal(der, error)
        if ok and depth == 0:
            chain = [handshake.chain[at] for at in sorted(handshake.chain)]
            handshake.chain.clear()
            handshake.peer = handshake.judge(chain)
    except CertificateRefused as refused:
        handshake.refusal = refused
        protocol.refusal = str(refused)
        _tell(protocol, handshake, refused)
        return False
    return True


def _notice(connection: SSL.Connection, where: int, result: int) -> None:
    """OpenSSL's callback for what happens to a connection: alerts tell who refuses whom where no certificate does."""
    handshake = _handshake_of(connection.get_app_data()) if where & SSL.SSL_CB_ALERT else None
    if handshake is None:
        # Nothing to tell, or somebody fetches our certificates and shows none.
        return
    alert = result & 0xFF
    if where & SSL.SSL_CB_READ:
        handshake.alert = alert if alert in _ALERTS else handshake.alert
        told = refused_by_peer(connection.get_app_data()) if alert in _ALERTS else None
        if told is not None and (handshake.peer is None or handshake.refused is None):
            _tell(connection.get_app_data(), handshake, told)
    elif handshake.refused is not None and handshake.peer is None and handshake.refusal is None:
        if alert in (_CERTIFICATE_REQUIRED, _HANDSHAKE_FAILURE):
            # TLS 1.2 has one alert for both.
            words = "no certificate" + (" or no cipher in common" if alert == _HANDSHAKE_FAILURE else "")
            handshake.refusal = CertificateRefused(Step.FORM, words)
            _tell(connection.get_app_data(), handshake, handshake.refusal)


def _tell(protocol: Any, handshake: _Handshake, refusal: CertificateRefused) -> None:
    """Tell of a client's refusal; of a server's, the dialler will."""
    protocol.told = True
    if handshake.refused is not None:
        handshake.refused(refusal, getattr(protocol.getPeer(), "host", ""))


def _openssl_refusal(der: bytes, error: int) -> CertificateRefused:
    step, words = _ERRORS.get(error, (Step.AUTHORITY, f"refused by OpenSSL with error {error}"))
    try:
        certificate = read_certificate(der)
    except CertificateRefused as refused:
        return CertificateRefused(step, f"{words}; {refused.detail}")
    return CertificateRefused(step, words, certificate.domain, certificate.issuer)

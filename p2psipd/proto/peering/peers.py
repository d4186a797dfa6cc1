"""Who may peer with us and on what terms: the policy of direct peering, without its file.

``PeeringPolicy`` answers four questions: whom a TLS certificate speaks for (RFC 5922, with each peer's own
authorities and looser rules), whether that peer is authorised (by domain, by authority, with a deny list above
both), for which From domains it may send (federation), and how we treat it (``PeerSettings``).  It is immutable;
a reload makes a new one, which every connection sees with its next request.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from p2psipd.proto.identity.certificate import remember
from p2psipd.proto.identity.policy import (
    Authority,
    CertificateRefused,
    CheckedCertificate,
    DomainCertificate,
    SanMatch,
    Step,
    TrustAnchors,
    Usage,
    normal_domain,
    read_certificate,
)
from p2psipd.proto.sip.uri import SipUri

__all__ = [
    "Decision",
    "Federation",
    "IdentityKind",
    "PeerIdentity",
    "PeerSettings",
    "PeeringPolicy",
    "Standing",
    "UNSUPPORTED_PEER",
]

_KNOWN_SIZE: Final = 1024

#: What a peer is told that is not authorised, letter by letter (direct peering, section 4.2.4).
UNSUPPORTED_PEER: Final = (403, "Unsupported Peer")


class IdentityKind(StrEnum):
    """The two mechanisms that share the name of the Identity header."""

    RFC4474 = "rfc4474"
    RFC8224 = "rfc8224"


class PeerSettings(NamedTuple):
    """How one peer is treated; the settings of domain "" hold for every peer without its own.

    ``send`` are the kinds of Identity that we put into requests to it, in this order (RFC 4474 first: verifiers
    are known that look at the first header only), ``accept`` those that we verify, ``required`` whether a
    request must bear one of them.  ``full_form`` and ``shaken`` say how RFC 8224 tokens are written;
    "shaken" is always in full form.  ``anchors`` are its authorities, pins and revocation lists,
    ``client_usage`` is SERVER_AS_CLIENT where it shows a server's certificate as a client.
    ``certificate`` names the own certificate to use with it, "" the one of the From domain.
    ``any_identity_host`` lets its signing certificates lie anywhere, as with telephone number authorities;
    otherwise they must be served by a domain that its TLS certificate names.
    """

    domain: str = ""
    send: tuple[IdentityKind, ...] = (IdentityKind.RFC8224,)
    accept: frozenset[IdentityKind] = frozenset(IdentityKind)
    required: bool = True
    full_form: bool = False
    shaken: bool = False
    san_match: SanMatch = SanMatch.RFC5922
    anchors: TrustAnchors = TrustAnchors()
    client_usage: Usage = Usage.CLIENT
    certificate: str = ""
    any_identity_host: bool = False


class PeerIdentity(NamedTuple):
    """Who is at the other end of a TLS connection, as its certificate proves: the domains that it speaks for
    and who vouched for each of them. ``chain`` (DER) and ``dialled`` let a later policy judge it again.
    """

    certificate: DomainCertificate
    authorities: Mapping[str, Authority]
    chain: tuple[bytes, ...] = ()
    dialled: bool = False

    @property
    def domains(self) -> frozenset[str]:
        """All domains that it speaks for."""
        return frozenset(self.authorities)

    @property
    def name(self) -> str:
        """One of the domains, for the log."""
        return min(self.authorities)


class Decision(NamedTuple):
    """Whether a peer is authorised, and the one rule that said so: ``step`` is "deny", "domain", "authority" or
    "none"; ``domain`` and ``authority`` are what the rule looked at.
    """

    allowed: bool
    step: str
    domain: str
    authority: str

    def __str__(self) -> str:
        verdict = "authorised" if self.allowed else "refused"
        return f"{verdict} by step {self.step} (domain {self.domain or '?'}, authority {self.authority or '?'})"


class Standing(NamedTuple):
    """What the certificate of a connection comes to: whom it speaks for, whether that peer is authorised, and between
    which times (unix seconds) that holds.
    """

    peer: PeerIdentity
    decision: Decision
    valid_from: float
    valid_until: float


class Federation(NamedTuple):
    """``domain`` sends and receives through ``through``: its calls may come over connections of these domains, where it
    is our own its calls go out and come in through them, and where one of them is our own, its calls go on through us.

    ``servers`` (a SIP URI) is where it is reached itself, as the DNS names those through whom it receives.
    """

    domain: str
    through: tuple[str, ...]
    servers: SipUri | None = None


class PeeringPolicy:
    """The whole policy.

    ``accept_domains`` and ``accept_authorities`` (fingerprints of roots) are the two models of authorisation,
    alone or together; ``deny`` (domains) is above both.  ``default`` holds for every domain that has no entry
    in ``peers``.  Domains are normalised here.
    """

    __slots__ = (
        "_accept_authorities",
        "_accept_domains",
        "_deny",
        "_federations",
        "_known",
        "_peers",
        "_signers",
        "default",
    )

    def __init__(
        self,
        default: PeerSettings,
        peers: Iterable[PeerSettings] = (),
        *,
        accept_domains: Iterable[str] = (),
        accept_authorities: Iterable[str] = (),
        deny: Iterable[str] = (),
        federations: Iterable[Federation] = (),
    ) -> None:
        self.default = default
        # It is asked with every request, and a certificate may have many names.
        self._known: dict[tuple[bytes, Usage | None], Standing] = {}
        # By domain the certificate that last signed for it.
        self._signers: dict[str, CheckedCertificate] = {}
        self._peers = {normal_domain(peer.domain): peer for peer in peers}
        self._accept_domains = frozenset(map(normal_domain, accept_domains)) - {""}
        self._accept_authorities = frozenset(accept_authorities)
        self._deny = frozenset(map(normal_domain, deny)) - {""}
        self._federations = {
            normal_domain(entry.domain): entry._replace(through=tuple(map(normal_domain, entry.through)))
            for entry in federations
        }

    def settings(self, domain: str) -> PeerSettings:
        """How requests to and from ``domain`` are treated."""
        return self._peers.get(normal_domain(domain), self.default)

    @property
    def anchors(self) -> tuple[TrustAnchors, ...]:
        """Every set of authorities that some peer may come under, the default's first, each once."""
        return tuple(dict.fromkeys((self.default.anchors, *(peer.anchors for peer in self._peers.values()))))

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Every authority (DER) that some peer may come under, each once: where certificates are fetched from is
        believed on the word of any, as each certificate is judged by itself.
        """
        return tuple(dict.fromkeys(root for anchors in self.anchors for root in anchors.roots))

    # -- who is it -----------------------------------------------------------------------------------------

    def client(self, chain: Sequence[bytes], wall: float) -> PeerIdentity:
        """Whom a TLS client's certificate (``chain``, DER, leaf first) speaks for at ``wall``.

        Each name counts by the settings of its own domain: its rule for names, its authorities, its usage.
        Raises CertificateRefused when no name is left: the step that refused the last one, or step domain for
        a certificate without any SIP identity.
        """
        return self._standing(chain, wall, None).peer

    def server(self, domain: str, chain: Sequence[bytes], wall: float) -> PeerIdentity:
        """As ``client``, for the TLS server that we dialled as ``domain`` (RFC 5922 section 7.3): that name,
        the one that was asked for before any look-up, must be among those that count.
        """
        wanted = normal_domain(domain)
        settings = self.settings(wanted)
        checked = settings.anchors.check(chain, wall, Usage.SERVER)
        if not checked.certificate.speaks_for(wanted, settings.san_match):
            raise _not_named(checked.certificate, wanted)
        return self._standing(chain, wall, Usage.SERVER).peer

    def again(self, peer: PeerIdentity, wall: float) -> PeerIdentity:
        """As ``standing``, when it is only asked whom the certificate speaks for."""
        return self.standing(peer, wall).peer

    def standing(self, peer: PeerIdentity, wall: float) -> Standing:
        """How the peer of an open connection stands by this policy, at this time; a microsecond.

        A connection outlives certificates, revocation lists and policies.  Raises CertificateRefused.
        """
        return self._standing(peer.chain, wall, Usage.SERVER if peer.dialled else None)

    def signer(
        self, domain: str, chain: Sequence[bytes], wall: float, *, by_number: bool = False
    ) -> CheckedCertificate:
        """The certificate behind an Identity header of a request From ``domain``, checked on every request.

        It must speak for that domain (RFC 4474 section 13.4, RFC 8224 section 8.4), unless it is to answer for
        a telephone number (``by_number``, RFC 8224 section 8.2).  Raises CertificateRefused.
        """
        known = self._signers.get(domain)
        if known is not None and chain and known.certificate.der == chain[0]:
            if known.valid_from <= wall <= known.valid_until:
                return known
        settings = self.settings(domain)
        checked = settings.anchors.check(chain, wall, Usage.SIGNER)
        if checked.certificate.speaks_for(domain, settings.san_match):
            remember(self._signers, domain, checked, _KNOWN_SIZE)
        elif not by_number:
            raise _not_named(checked.certificate, domain)
        return checked

    def _standing(self, chain: Sequence[bytes], wall: float, usage: Usage | None) -> Standing:
        if not chain:
            raise CertificateRefused(Step.FORM, "no certificate")
        known = self._known.get((chain[0], usage))
        if known is not None and known.valid_from <= wall <= known.valid_until:
            return known
        certificate = read_certificate(chain[0])
        found: dict[str, Authority] = {}
        refusal: CertificateRefused | None = None
        # The names of most certificates have the same settings: each of these is checked once.
        checks: dict[tuple[TrustAnchors, Usage], CheckedCertificate | CertificateRefused] = {}
        for name in certificate.identities(SanMatch.ANY):
            settings = self.settings(name)
            if not certificate.speaks_for(name, settings.san_match):
                continue
            key = (settings.anchors, usage or settings.client_usage)
            if key not in checks:
                checks[key] = _check(*key, chain, wall)
            result = checks[key]
            if isinstance(result, CertificateRefused):
                refusal = result
            else:
                found[name] = result.authority
        if found:
            identity = PeerIdentity(certificate, found, tuple(chain), usage is Usage.SERVER)
            good = [one for one in checks.values() if isinstance(one, CheckedCertificate)]
            window = max(one.valid_from for one in good), min(one.valid_until for one in good)
            standing = Standing(identity, self.authorise(identity), *window)
            remember(self._known, (chain[0], usage), standing, _KNOWN_SIZE)
            return standing
        if refusal is None:
            self.default.anchors.check(chain, wall, usage or self.default.client_usage)
            raise CertificateRefused(Step.DOMAIN, "no SIP identity in it", "", certificate.issuer)
        raise refusal

    # -- may it --------------------------------------------------------------------------------------------

    def authorise(self, peer: PeerIdentity) -> Decision:
        """Whether ``peer`` may send us requests at all; what is not allowed gets UNSUPPORTED_PEER."""
        for name in sorted(peer.certificate.identities(SanMatch.ANY) & self._deny):
            return Decision(False, "deny", name, peer.certificate.issuer)
        for name in sorted(peer.domains & self._accept_domains):
            return Decision(True, "domain", name, peer.authorities[name].name)
        for name, authority in sorted(peer.authorities.items()):
            if authority.fingerprint in self._accept_authorities:
                return Decision(True, "authority", name, authority.name)
        return Decision(False, "none", peer.name, peer.authorities[peer.name].name)

    def is_denied(self, domain: str) -> bool:
        """Whether the deny list names ``domain``: neither calls to it nor calls from it."""
        return normal_domain(domain) in self._deny

    def may_send_from(self, peer: PeerIdentity, from_domain: str, to_domain: str = "") -> bool:
        """Whether requests From this domain to that one may come over a connection of ``peer``: its own, or by
        federation of either.

        A domain on the deny list may not, whoever brings it.
        """
        wanted = normal_domain(from_domain)
        if not wanted or wanted in self._deny:
            return False
        if wanted in peer.authorities:
            return True
        return not peer.domains.isdisjoint((*self.goes_through(wanted), *self.goes_through(to_domain)))

    def goes_through(self, domain: str) -> tuple[str, ...]:
        """The domains through which requests of our own ``domain`` go out; () sends them out itself."""
        found = self._federations.get(normal_domain(domain))
        return () if found is None else found.through

    def servers(self, domain: str) -> SipUri | None:
        """Where a domain is reached that the DNS does not lead to; None for all others."""
        found = self._federations.get(normal_domain(domain))
        return None if found is None else found.servers

    def relays(self, one: str, other: str, own: Container[str]) -> str:
        """The one of our ``own`` domains in whose name requests between two others go on; "" where none does."""
        brought = (*self.goes_through(one), *self.goes_through(other))
        return next((domain for domain in brought if domain in own), "")


def _check(
    anchors: TrustAnchors, usage: Usage, chain: Sequence[bytes], wall: float
) -> CheckedCertificate | CertificateRefused:
    try:
        return anchors.check(chain, wall, usage)
    except CertificateRefused as refused:
        return refused


def _not_named(certificate: DomainCertificate, domain: str) -> CertificateRefused:
    named = ", ".join(sorted(certificate.identities(SanMatch.ANY))[:5]) or "nobody"
    return CertificateRefused(Step.DOMAIN, f"it speaks for {named}, not for {domain}", domain, certificate.issuer)

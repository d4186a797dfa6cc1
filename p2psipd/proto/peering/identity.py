"""Identity headers of a request: what is signed in it, how we sign, and what to do when a peer refuses it.

The forms are those of ``proto.identity.rfc4474`` and ``proto.identity.passport``; here they meet a request.
``sign_request`` must be the last step before the transaction layer: From, To, Call-ID, CSeq, Date, Contact and
body are signed and may not change behind it; Via, Route, Record-Route and the Request-URI may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from p2psipd.proto.identity import passport, rfc4474
from p2psipd.proto.identity.passport import Claims, Identifier
from p2psipd.proto.identity.policy import normal_domain
from p2psipd.proto.identity.sip_date import SipDate, parse_sip_date, write_sip_date
from p2psipd.proto.identity.tn_auth_list import number_authority
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeerSettings
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.parameters import Remembered
from p2psipd.proto.sip.proxy import Refused
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri, parse_uri

__all__ = [
    "FRESH_FOR",
    "Signing",
    "asserts_number",
    "attestation",
    "check_from",
    "claims_of",
    "date_of",
    "digest_of",
    "from_domain",
    "identifier_of",
    "retry_after",
    "sign_request",
]

#: How far the Date of a request may be off where a peer verifies it, in seconds (RFC 4474 section 6, RFC 8224
#: section 6.2 step 4).
FRESH_FOR: Final = {IdentityKind.RFC4474: 3600, IdentityKind.RFC8224: 60}
#: How far the Date that a user wrote may be off where we sign (RFC 4474 section 5, RFC 8224 section 6.1 step 3).
_SIGNED_FOR: Final = {IdentityKind.RFC4474: 600, IdentityKind.RFC8224: 60}
#: CANCEL must not bear Identity, an ACK cannot be refused, and REGISTER stays at home (RFC 4474 section 9).
UNSIGNED_METHODS: Final = frozenset({"CANCEL", "ACK", "REGISTER"})
_SDP_TYPES: Final = ("application/sdp", "multipart/")

#: Where a certificate of ours is served, for a From domain and a kind.
IdentityUrl = Callable[[OwnCertificate, str, IdentityKind], str]


# ---- what is signed ----------------------------------------------------------------------------------------


def from_domain(request: Request) -> str:
    """The domain of the From address, normalised; "" for a telephone number or an address without a name."""
    uri = request.from_.uri
    return normal_domain(uri.host) if isinstance(uri, SipUri) else ""


def date_of(request: Request) -> SipDate:
    """The one Date of a request.  Raises ValueError where it is missing, repeated or no date."""
    values = request.get_all("Date")
    if len(values) != 1:
        raise ValueError("not one Date")
    return parse_sip_date(values[0])


def digest_of(request: Request, date: SipDate) -> bytes:
    """The digest-string of RFC 4474 section 9."""
    contacts = request.contacts
    contact = "*" if request.contact_star else contacts[0].uri_text if contacts else ""
    cseq = request.cseq
    return rfc4474.digest_string(
        request.from_.uri_text,
        request.to.uri_text,
        request.call_id,
        cseq.number,
        cseq.method,
        date.text,
        contact,
        request.body,
    )


def identifier_of(uri: Uri) -> tuple[Identifier, str]:
    """What stands for ``uri`` in a token, and its raw user part (RFC 8224 section 8)."""
    if isinstance(uri, SipUri):
        user = uri.user or ""
        phone = (uri.params.get("user") or "").lower() == "phone"
        return passport.identify(uri.scheme, user, uri.host, phone), user.partition(";")[0]
    if isinstance(uri, TelUri):
        number = str(uri)[4:]
        return passport.identify("tel", number, "", True), number.partition(";")[0]
    return Identifier("uri", str(uri).lower()), ""


#: By the text of a URI: who calls and who is called come again.
_identified: Final = Remembered[str, Identifier](lambda text: identifier_of(parse_uri(text))[0], 4096)


def claims_of(request: Request, iat: int, attest: str = "", origid: str = "") -> Claims:
    """What a token of RFC 8224 section 4.1 says of a request."""
    keys: tuple[tuple[str, str], ...] = ()
    if request.body and (request.content_type or "").lower().startswith(_SDP_TYPES):
        keys = passport.media_keys(request.body)
    orig, dest = _identified[request.from_.uri_text], _identified[request.to.uri_text]
    return Claims(orig, (dest,), iat, keys, attest, origid)


# ---- signing -----------------------------------------------------------------------------------------------


class Signing(NamedTuple):
    """How one try of a request is signed: the kinds in their order, whether tokens are in full form, and for
    "shaken" the attestation ("" for a baseline token) and the origid (a UUID). `gateway` is our domain that signs for
    the number of a caller who only came in through us.
    """

    kinds: tuple[IdentityKind, ...]
    full_form: bool = False
    attest: str = ""
    origid: str = ""
    gateway: str = ""

    @classmethod
    def towards(cls, settings: PeerSettings, attest: str = "", origid: str = "", gateway: str = "") -> Signing:
        """As the settings of the peer want it first."""
        if not settings.shaken:
            return cls(settings.send, settings.full_form)
        return cls(settings.send, True, attest, origid, gateway)


def attestation(authenticated: bool, owns_identity: bool) -> str:
    """How far we answer for the caller (RFC 8588 section 4).

    "A": we authenticated the caller, and the From is the caller's own address or number; "B": authenticated,
    but From is not known to be the caller's; "C": it only came in through us.
    """
    if not authenticated:
        return "C"
    return "A" if owns_identity else "B"


def asserts_number(uri: Uri) -> bool:
    """Whether a From address is one of a telephone number, to a verifier of RFC 8224 (section 8.1)."""
    return identifier_of(uri)[0].kind == "tn"


def check_from(request: Request, own_domains: Sequence[str]) -> str:
    """The domain in whose name a new request goes out.  Raises Refused where it must not.

    The From must be of a domain of ours also where the caller is anonymous, and with user=phone its user part
    must be a telephone-subscriber: a global number, or a local one with its phone-context (RFC 3966).
    """
    uri = request.from_.uri
    domain = from_domain(request)
    if not isinstance(uri, SipUri) or domain not in own_domains:
        raise Refused(403, "Foreign From Address", why="from domain")
    if (uri.params.get("user") or "").lower() == "phone" and not is_telephone_subscriber(uri.user or ""):
        raise Refused(400, "Bad From Number", why="from number")
    return domain


def is_telephone_subscriber(user: str) -> bool:
    """Whether a user part says a telephone number as RFC 3966 writes it."""
    number, _, parameters = user.partition(";")
    if number.startswith("+"):
        return bool(passport.canonical_number(number)) and not set(number[1:]) - set("0123456789-.()")
    local = bool(number) and not set(number) - set("0123456789ABCDEFabcdef*#-.()")
    return local and any(part.lower().startswith("phone-context=") for part in parameters.split(";"))


def sign_request(
    request: Request, signing: Signing, own: OwnCertificates, url: IdentityUrl, wall: float
) -> tuple[IdentityKind, ...]:
    """Add Identity headers to ``request``, and a Date where it has none; the kinds that were added.

    Nothing is added for a From of another domain (RFC 4474 section 5.1: a request in the backwards direction of
    a retargeted call), no second RFC 4474 pair, and no second token of ours: what is there already stays as it is.
    A number that came in through us (``gateway``) without Identity is signed where a certificate of ours may.
    Raises Refused (403) for a Date that is too far off for a kind or outside of our certificate.
    """
    domain = signing.gateway or from_domain(request)
    if request.method in UNSIGNED_METHODS or not domain:
        return ()
    values = request.get_all("Identity")
    if signing.gateway and (values or not asserts_number(request.from_.uri)):
        return ()
    added: list[IdentityKind] = []
    for kind in signing.kinds:
        certificate = own.for_identity(domain, kind)
        if certificate is None or (signing.gateway and not _may_sign(certificate, kind, request.from_.uri)):
            continue
        where = url(certificate, domain, kind)
        if _is_signed(values, kind, where):
            continue
        date = _dated(request, kind, certificate, wall)
        if kind is IdentityKind.RFC4474:
            _sign_rfc4474(request, certificate, where, date)
        else:
            _sign_rfc8224(request, certificate, where, date, signing)
        added.append(kind)
    return tuple(added)


def _may_sign(own: OwnCertificate, kind: IdentityKind, uri: Uri) -> bool:
    """Whether a certificate is one of a provider, or for the number in ``uri``, whoever calls from it (RFC 8226)."""
    numbers = number_authority(own.certificate.loaded) if kind is IdentityKind.RFC8224 else None
    return numbers is not None and bool(numbers.providers or numbers.covers(identifier_of(uri)[0].value))


def _is_signed(values: Sequence[str], kind: IdentityKind, url: str) -> bool:
    """Whether a request with these Identity headers takes no other of this kind with the certificate at ``url``.

    RFC 4474 allows one; of RFC 8224 there may be several, and whoever wrote the others, ours is only one.
    """
    if kind is IdentityKind.RFC4474:
        return any(map(rfc4474.is_rfc4474, values))
    return any(f"<{url}>" in value for value in values)


def _dated(request: Request, kind: IdentityKind, own: OwnCertificate, wall: float) -> SipDate:
    if not request.has("Date"):
        request.set("Date", write_sip_date(wall))
    try:
        date = date_of(request)
    except ValueError:
        raise Refused(400, "Bad Date", why="date") from None
    if abs(date.seconds - wall) > _SIGNED_FOR[kind]:
        raise Refused(403, "Stale Date", why="date")
    certificate = own.certificate
    for moment in (date.seconds, wall):
        if not certificate.not_before <= moment <= certificate.not_after:
            raise Refused(500, "No Valid Certificate", why="certificate")
    return date


def _sign_rfc4474(request: Request, own: OwnCertificate, url: str, date: SipDate) -> None:
    if not isinstance(own.key, RSAPrivateKey):
        raise TypeError("RFC 4474 needs an RSA key")
    signature = rfc4474.sign(own.key, digest_of(request, date))
    # Before any token: verifiers are known that look at the first header only.
    request.prepend("Identity", rfc4474.write_identity(signature))
    request.set("Identity-Info", rfc4474.write_identity_info(url))


def _sign_rfc8224(request: Request, own: OwnCertificate, url: str, date: SipDate, signing: Signing) -> None:
    if not isinstance(own.key, EllipticCurvePrivateKey):
        raise TypeError("RFC 8224 needs a P-256 key")
    header = passport.sign(own.key, url, claims_of(request, date.seconds, signing.attest, signing.origid))
    if not signing.full_form and not signing.attest:
        header = header._replace(header="", payload="")
    request.add("Identity", passport.write_identity_header(header))


def retry_after(status: int, sent: Signing, already: int) -> Signing | None:
    """How to sign the one more try that a refusal of our Identity is worth; None for no other try.

    After a 438 to a compact form the full form (RFC 8224 section 6.1.1), after a 428 to an unsigned request a
    signed one; never twice (``already`` counts the tries after refusals so far).  436 and 437 are faults of
    our configuration, which no other try would mend.
    """
    if already:
        return None
    if status == 438 and IdentityKind.RFC8224 in sent.kinds and not sent.full_form:
        return sent._replace(full_form=True)
    if status == 428 and not sent.kinds:
        return sent._replace(kinds=(IdentityKind.RFC8224,), full_form=True)
    return None

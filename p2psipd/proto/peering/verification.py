"""Verifying the Identity of a request from a peer: RFC 4474 section 6 and RFC 8224 section 6.2, one procedure.

The checks stand in the order of their cost: syntax, Date and replay first, then what a token claims, then the
certificate (which may have to be fetched), its chain, and the signature last.  A request is bad only if all its
Identity headers are (RFC 8224 section 6.2.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from p2psipd.proto.identity import passport, rfc4474
from p2psipd.proto.identity.passport import SHAKEN, Claims, Identifier, IdentityHeader
from p2psipd.proto.identity.policy import CertificateRefused, CheckedCertificate, DomainCertificate, normal_domain
from p2psipd.proto.identity.rfc4474 import IdentityInfo, IdentitySyntaxError
from p2psipd.proto.identity.sip_date import SipDate
from p2psipd.proto.identity.tn_auth_list import number_authority
from p2psipd.proto.peering.identity import (
    FRESH_FOR,
    claims_of,
    date_of,
    digest_of,
    from_domain,
    identifier_of,
    is_telephone_subscriber,
)
from p2psipd.proto.peering.peers import IdentityKind, PeeringPolicy, PeerSettings
from p2psipd.proto.peering.replay import ReplayCache, replay_key
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.uri import SipUri, Uri

__all__ = ["CertificateUnavailable", "FetchChain", "IdentityVerifier", "Verification"]

#: More Identity headers than that in one request are not looked at.
MAXIMUM_HEADERS: Final = 4

PASSED: Final = "TN-Validation-Passed"
FAILED: Final = "TN-Validation-Failed"
UNKNOWN: Final = "No-TN-Validation"

USE_IDENTITY: Final = (428, "Use Identity Header")
USE_SUPPORTED: Final = (428, "Use Supported PASSporT Format")
BAD_INFO: Final = (436, "Bad Identity Info")
UNSUPPORTED: Final = (437, "Unsupported Credential")
INVALID: Final = (438, "Invalid Identity Header")
INVALID_PASSPORT: Final = (438, "Invalid PASSporT")
STALE: Final = (403, "Stale Date")
REPLAYED: Final = (403, "Replayed Request")
BAD_DATE: Final = (400, "Bad Date")
REPEATED: Final = (400, "Repeated Identity-Info")


class CertificateUnavailable(Exception):
    """The certificate behind a URL could not be had; the message says why."""


#: Gets the certificate chain (DER, leaf first) at a URL; raises CertificateUnavailable.
FetchChain = Callable[[str], Awaitable[Sequence[bytes]]]


class Verification(NamedTuple):
    """The result for one request, for whoever decides, logs or passes it on.

    ``status`` and ``reason`` answer the request; 0 lets it pass.  ``verstat`` is what travels inwards (3GPP TS
    24.229): passed, failed, or nothing to validate.  ``kind``, ``attest``, ``origid``, ``url``, ``authority``
    describe the header that was valid, "" or None where there was none; ``authority`` is also who refused.
    ``step`` is the step that refused ("" if none did), ``detail`` its words.  ``replay`` is to be remembered
    once the request is accepted: key and time, None where nothing was verified.  ``reasons`` are values of Reason
    that tell the signers of several headers which of them were bad (RFC 9410 sections 5 and 6).
    """

    status: int = 0
    reason: str = ""
    verstat: str = UNKNOWN
    kind: IdentityKind | None = None
    attest: str = ""
    origid: str = ""
    url: str = ""
    authority: str = ""
    step: str = ""
    detail: str = ""
    replay: tuple[bytes, float] | None = None
    reasons: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What was proved, for the record of a call: "TN-Validation-Passed rfc8224 A", "No-TN-Validation"."""
        return " ".join(filter(None, (self.verstat, self.kind, self.attest)))


class _Case(NamedTuple):
    """What is judged: ``request`` From ``domain``, its Date if it has one, at ``wall``, by ``policy``; ``info_hosts``
    as :meth:`IdentityVerifier.verify` says, ``replay`` what to remember of it.
    """

    request: Request
    domain: str
    date: SipDate | None
    wall: float
    policy: PeeringPolicy
    info_hosts: Container[str] | None
    replay: tuple[bytes, float]


class _Refusal(Exception):
    """One header is not valid: the answer that it alone would get, the step and why."""

    def __init__(self, answer: tuple[int, str], step: str, detail: str, authority: str = "", url: str = "") -> None:
        super().__init__(detail)
        self.answer, self.step, self.detail, self.authority, self.url = answer, step, detail, authority, url
        self.signature = ""


# Of several refusals the answer is that of the header that came furthest (RFC 8224 section 6.2.2).
_RANK: Final = {428: 0, 400: 1, 403: 2, 436: 3, 437: 4, 438: 5}
_REPORTED: Final = frozenset({403, 436, 437, 438})


class IdentityVerifier:
    """Verifies requests under a policy.  ``replays`` is shared by all connections of a node."""

    __slots__ = ("_fetch", "_replays")

    def __init__(self, fetch: FetchChain, replays: ReplayCache) -> None:
        self._fetch = fetch
        self._replays = replays

    async def verify(
        self,
        request: Request,
        policy: PeeringPolicy,
        wall: float,
        info_hosts: Container[str] | None = None,
        required: bool | None = None,
    ) -> Verification:
        """Verify ``request`` at ``wall`` by the settings of its From domain.

        ``info_hosts`` are the domains in which the URL of the certificate must lie (those of the TLS
        connection), None for anywhere; ``required`` overrides the settings (within a dialog nothing is).
        Never raises for what a request holds.
        """
        domain = from_domain(request)
        settings = policy.settings(domain)
        # Where no kind is accepted nothing can be required.
        must = bool(settings.accept) and (settings.required if required is None else required)
        found, refusals = self._candidates(request, settings)
        if not found and not refusals:
            return Verification(*USE_IDENTITY, step="identity") if must else Verification()
        if not found and all(refusal.answer[0] == 428 for refusal in refusals):
            return _answer(refusals) if must else Verification()
        if found:
            date = None
            if request.has("Date"):
                try:
                    date = date_of(request)
                except ValueError:
                    return Verification(*BAD_DATE, FAILED, step="date", detail="no valid Date")
            key = replay_key(request)
            if self._replays.holds(key, wall):
                return Verification(*REPLAYED, FAILED, step="replay", detail="accepted before")
            # Any of its headers could let it in again, not only the one that is verified.
            window = found[0].fresh_for if len(found) == 1 else max(one.fresh_for for one in found)
            until = wall + 2 * window if date is None else date.seconds + window
            case = _Case(request, domain, date, wall, policy, info_hosts, (key, until))
            for candidate in found:
                try:
                    result = await candidate.verify(case, self._fetch)
                except _Refusal as refusal:
                    refusal.signature = candidate.identifier
                    refusals.append(refusal)
                else:
                    # The same request may have come again, and in, while a certificate was being fetched.
                    if self._replays.holds(key, wall):
                        return Verification(*REPLAYED, FAILED, step="replay", detail="accepted before")
                    return result if not refusals else result._replace(reasons=_reasons(refusals))
        return _answer(refusals)

    def accepted(self, verification: Verification, wall: float) -> None:
        """The request went on: it is a replay from now on."""
        if verification.replay is not None:
            self._replays.add(*verification.replay, wall)

    def forget(self, request: Request) -> None:
        """We answered an accepted request 503 in the end: its sender may try again with the same signature."""
        self._replays.remove(replay_key(request))

    def _candidates(self, request: Request, settings: PeerSettings) -> tuple[list[_Rfc4474 | _Rfc8224], list[_Refusal]]:
        """The Identity headers that can be verified, in their order, and why the others cannot."""
        found: list[_Rfc4474 | _Rfc8224] = []
        refusals: list[_Refusal] = []
        for value in request.get_all("Identity")[:MAXIMUM_HEADERS]:
            try:
                if rfc4474.is_rfc4474(value):
                    if IdentityKind.RFC4474 in settings.accept:
                        found.append(_read_rfc4474(request, value))
                elif IdentityKind.RFC8224 in settings.accept:
                    found.append(_read_rfc8224(value))
            except _Refusal as refusal:
                refusals.append(refusal)
        if len(found) > 1 and sum(isinstance(one, _Rfc4474) for one in found) > 1:
            repeated = _Refusal(INVALID, "syntax", "several Identity headers of RFC 4474")
            return [one for one in found if isinstance(one, _Rfc8224)], [*refusals, repeated]
        return found, refusals


def _answer(refusals: Sequence[_Refusal]) -> Verification:
    worst = max(refusals, key=lambda refusal: _RANK[refusal.answer[0]])
    return Verification(
        *worst.answer,
        FAILED,
        url=worst.url,
        authority=worst.authority,
        step=worst.step,
        detail=worst.detail,
        reasons=_reasons(refusals) if len(refusals) > 1 else (),
    )


def _reasons(refusals: Sequence[_Refusal]) -> tuple[str, ...]:
    """A value of Reason for each bad header, by its signature (ppi); one that is ignored (428) has none."""
    found = []
    for refusal in refusals:
        status, phrase = refusal.answer
        if status in _REPORTED:
            named = f';ppi="..{refusal.signature}"' if refusal.signature else ""
            found.append(f'STIR;cause={status};text="{phrase}"{named}')
    return tuple(found)


def _read_rfc4474(request: Request, value: str) -> _Rfc4474:
    infos = request.get_all("Identity-Info")
    if not infos:
        raise _Refusal(BAD_INFO, "syntax", "no Identity-Info")
    if len(infos) > 1:
        raise _Refusal(REPEATED, "syntax", "several Identity-Info headers")
    try:
        info = rfc4474.parse_identity_info(infos[0])
    except IdentitySyntaxError as error:
        raise _Refusal(BAD_INFO, "syntax", f"Identity-Info: {error}") from None
    if info.algorithm not in ("", rfc4474.ALGORITHM):
        raise _Refusal(UNSUPPORTED, "algorithm", f"algorithm {info.algorithm[:32]}", url=info.uri)
    try:
        return _Rfc4474(info, rfc4474.parse_identity(value))
    except IdentitySyntaxError as error:
        raise _Refusal(INVALID, "syntax", f"Identity: {error}", url=info.uri) from None


def _read_rfc8224(value: str) -> _Rfc8224:
    try:
        header = passport.parse_identity_header(value)
    except IdentitySyntaxError as error:
        raise _Refusal(INVALID, "syntax", f"Identity: {error}") from None
    if header.ppt not in ("", SHAKEN) or (header.ppt and header.compact):
        # To be ignored as if it were not there (RFC 8224 section 6.2 step 1).
        raise _Refusal(USE_SUPPORTED, "ppt", f"ppt {header.ppt[:32]}", url=header.info)
    if not header.info:
        raise _Refusal(BAD_INFO, "syntax", "no info parameter")
    if header.algorithm != passport.ALGORITHM:
        raise _Refusal(UNSUPPORTED, "algorithm", f"algorithm {header.algorithm[:32]}", url=header.info)
    return _Rfc8224(header)


@lru_cache(maxsize=256)
def _place_of(url: str) -> tuple[str, str]:
    """Scheme and host of a URL, "" where it is none; kept, because all requests of a domain name the same."""
    try:
        parts = urlsplit(url)
        return parts.scheme.lower(), normal_domain(parts.hostname or "")
    except ValueError:
        return "", ""


def _check_host(url: str, info_hosts: Container[str] | None) -> None:
    """The certificate must be served by a domain that the connection is authenticated for."""
    scheme, host = _place_of(url)
    if scheme not in ("http", "https"):
        raise _Refusal(BAD_INFO, "fetch", "neither http nor https", url=url)
    if info_hosts is not None and host not in info_hosts:
        raise _Refusal(UNSUPPORTED, "host", f"the TLS connection is not {host or 'a domain'}'s", url=url)


async def _chain(fetch: FetchChain, url: str) -> Sequence[bytes]:
    try:
        return await fetch(url)
    except CertificateUnavailable as fault:
        raise _Refusal(BAD_INFO, "fetch", str(fault), url=url) from None


def _check_fresh(window: int, seconds: int, wall: float, url: str) -> None:
    if abs(seconds - wall) > window:
        raise _Refusal(STALE, "date", f"{seconds - wall:+.0f} s off", url=url)


def _passed(request: Request) -> str:
    """What a number that is none gets, however valid its signature: nothing was validated."""
    uri = request.from_.uri
    if isinstance(uri, SipUri) and (uri.params.get("user") or "").lower() == "phone":
        if not is_telephone_subscriber(uri.user or ""):
            return UNKNOWN
    return PASSED


def _is_same(uri: Uri, ours: Identifier, claimed: Sequence[Identifier]) -> bool:
    """Whether one of the claimed identifiers is that of ``uri``, ``ours``."""
    if ours in claimed:
        return True
    _, user = identifier_of(uri)
    return any(passport.same_identifier(ours, user, one) for one in claimed)


def _may_sign_for(certificate: DomainCertificate, number: str) -> bool:
    """By its numbers, or by its provider code ("shaken"); a domain's certificate has neither (RFC 8226 section 9)."""
    numbers = number_authority(certificate.loaded)
    return numbers is not None and (numbers.covers(number) or bool(numbers.providers))


class _Rfc4474:
    """One Identity and Identity-Info pair."""

    __slots__ = ("info", "signature")

    kind = IdentityKind.RFC4474
    fresh_for = FRESH_FOR[kind]
    #: No token that RFC 9410 could name.
    identifier = ""

    def __init__(self, info: IdentityInfo, signature: bytes) -> None:
        self.info = info
        self.signature = signature

    async def verify(self, case: _Case, fetch: FetchChain) -> Verification:
        """The positive result; raises _Refusal."""
        url, date, request = self.info.uri, case.date, case.request
        if date is None:
            raise _Refusal(STALE, "date", "no Date", url=url)
        _check_fresh(self.fresh_for, date.seconds, case.wall, url)
        _check_host(url, case.info_hosts)
        chain = await _chain(fetch, url)
        try:
            # The From domain is compared every time, wherever the certificate came from.
            checked = case.policy.signer(case.domain, chain, case.wall)
        except CertificateRefused as refused:
            raise _Refusal(UNSUPPORTED, refused.step.value, refused.detail, refused.authority, url) from None
        authority = checked.authority.name
        if not checked.valid_from <= date.seconds <= checked.valid_until:
            raise _Refusal(UNSUPPORTED, "date", "Date outside of the certificate's validity", authority, url)
        if not rfc4474.verify(checked.certificate.public_key, digest_of(request, date), self.signature):
            raise _Refusal(INVALID, "signature", "the signature is not over this request", authority, url)
        verstat = _passed(request)
        return Verification(verstat=verstat, kind=self.kind, url=url, authority=authority, replay=case.replay)


class _Rfc8224:
    """One Identity header with a token."""

    __slots__ = ("header",)

    kind = IdentityKind.RFC8224
    fresh_for = FRESH_FOR[kind]

    def __init__(self, header: IdentityHeader) -> None:
        self.header = header

    @property
    def identifier(self) -> str:
        """The signature, which tells this token from others."""
        return self.header.signature

    async def verify(self, case: _Case, fetch: FetchChain) -> Verification:
        """The positive result; raises _Refusal."""
        header, date, request = self.header, case.date, case.request
        url, compact = header.info, header.compact
        if date is not None:
            _check_fresh(self.fresh_for, date.seconds, case.wall, url)
        elif compact:
            raise _Refusal(STALE, "date", "no Date", url=url)
        claims = claims_of(request, date.seconds if date is not None else 0)
        # Signers are known that write no Date; theirs is the signed time in the token.
        if not compact and (date is None or not passport.says_exactly(header, claims)):
            claims = self._check_claims(request, claims, case.wall)
        _check_host(url, case.info_hosts)
        chain = await _chain(fetch, url)
        checked = self._certificate(case, chain, claims)
        key = checked.certificate.verifying_key
        valid = passport.verify_compact(key, header, claims) if compact else passport.verify_full(key, header)
        if not valid:
            raise _Refusal(INVALID, "signature", "the signature is not over this token", checked.authority.name, url)
        return Verification(
            verstat=_passed(request),
            kind=self.kind,
            attest=claims.attest,
            origid=claims.origid,
            url=url,
            authority=checked.authority.name,
            replay=case.replay,
        )

    def _check_claims(self, request: Request, ours: Claims, wall: float) -> Claims:
        """The claims of a full form, if they are those of the request (RFC 8224 section 6.2.4).

        The caller is always the From of the request: the token must agree, it is never believed instead.
        """
        url = self.header.info
        try:
            token = passport.read_full_token(self.header)
        except IdentitySyntaxError as error:
            raise _Refusal(INVALID_PASSPORT, "token", str(error), url=url) from None
        if token.algorithm != passport.ALGORITHM or token.x5u != url or token.ppt != self.header.ppt:
            raise _Refusal(INVALID, "token", "the token's header differs from the parameters", url=url)
        claims = token.claims
        _check_fresh(self.fresh_for, claims.iat, wall, url)
        if not _is_same(request.from_.uri, ours.orig, (claims.orig,)):
            raise _Refusal(INVALID, "token", "orig is not the From of this request", url=url)
        if not _is_same(request.to.uri, ours.dest[0], claims.dest):
            raise _Refusal(INVALID, "token", "dest is not the To of this request", url=url)
        # "shaken" tokens leave the media keys out, and other signers are not known to.
        if claims.mky != ours.mky and (claims.mky or token.ppt != SHAKEN):
            raise _Refusal(INVALID, "token", "mky is not of this request's media", url=url)
        return claims

    def _certificate(self, case: _Case, chain: Sequence[bytes], claims: Claims) -> CheckedCertificate:
        """The certificate behind the header, if it may sign for the caller (RFC 8224 section 8)."""
        policy, domain, wall, url = case.policy, case.domain, case.wall, self.header.info
        number = passport.canonical_number(claims.orig.value) if claims.orig.kind == "tn" else ""
        try:
            checked = policy.signer(domain, chain, wall, by_number=bool(number))
            if number and not _may_sign_for(checked.certificate, number):
                # It may still be the domain's own.
                policy.signer(domain, chain, wall)
        except CertificateRefused as refused:
            raise _Refusal(UNSUPPORTED, refused.step.value, refused.detail, refused.authority, url) from None
        for moment in (claims.iat, claims.iat if case.date is None else case.date.seconds):
            if not checked.valid_from <= moment <= checked.valid_until:
                words = "Date outside of the certificate's validity"
                raise _Refusal(UNSUPPORTED, "date", words, checked.authority.name, url)
        return checked

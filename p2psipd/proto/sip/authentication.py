"""Who may go on: digest challenges and their check, and who may assert whom (RFC 3261 section 22, profile section 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from hmac import compare_digest
from typing import Final, Protocol

from p2psipd.proto.sip.digest import (
    Algorithm,
    Credentials,
    NonceCounts,
    NonceIssuer,
    NonceState,
    challenges,
    verify,
)
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.locating import NodeIdentity
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.uri import SipUri

#: In the order of the challenge's lines (RFC 8760 section 2.4: most preferred first). MD5 leads because phones from
#: before that RFC look at the first line alone and give up at a name that they do not know (sipsak, SIPp).
ALGORITHMS: Final = (Algorithm.MD5, Algorithm.SHA_256)

#: User agents that fail at the first line with an algorithm that they do not know, wherever it stands: libre before 2.
_KNOWS_MD5_ALONE: Final = re.compile(r"baresip v[01]\.", re.IGNORECASE)

_NOBODY: Final = {Algorithm.MD5.value: bytes(16), Algorithm.SHA_256.value: bytes(32)}
_MAX_CREDENTIALS: Final = 8


class RandomSource(Protocol):
    """What randomness a core needs."""

    def getrandbits(self, k: int, /) -> int:
        """`k` random bits."""
        ...


class Verdict(Enum):
    """What a presented digest is worth."""

    GOOD = "good"
    STALE = "stale"
    WRONG = "wrong"


class DigestGate:
    """Challenges requests and checks what comes back.

    `key` makes nonces, `issuer` names this node in them; whoever shares the key recognises them as stale ones.
    Nonces from before `since` (unix seconds: the start of the process) are stale.

    The digest-uri is not compared with the Request-URI: phones and test tools differ in what they write there, and
    the nonce count already makes each answer good for one request.
    """

    def __init__(
        self,
        key: bytes,
        random: RandomSource,
        issuer: bytes = b"",
        since: float = 0.0,
        algorithms: tuple[Algorithm, ...] = ALGORITHMS,
    ) -> None:
        self._issuer = NonceIssuer(key, issuer=issuer)
        self._counts = NonceCounts(since=since)
        self._random = random
        self._algorithms = algorithms

    def challenge(
        self, request: Request, realm: str, wall: float, *, proxy: bool, stale: bool = False
    ) -> list[tuple[str, str]]:
        """The header lines of a 401 to `request`, or with `proxy` of a 407."""
        name = "Proxy-Authenticate" if proxy else "WWW-Authenticate"
        algorithms = self._algorithms
        if Algorithm.MD5 in algorithms and _KNOWS_MD5_ALONE.match(request.get("user-agent") or ""):
            algorithms = (Algorithm.MD5,)
        nonce = self._issuer.issue(wall, self._random)
        return [(name, value) for value in challenges(realm, nonce, algorithms, stale)]

    def presented(self, request: Request, realm: str, *, proxy: bool) -> Credentials | None:
        """The credentials in `request` for `realm`, if there are any that can be read."""
        name = "proxy-authorization" if proxy else "authorization"
        for value in request.get_all(name)[:_MAX_CREDENTIALS]:
            try:
                credentials = Credentials.parse(value)
            except SipError:
                continue
            if credentials.realm == realm:
                return credentials
        return None

    def check(
        self,
        credentials: Credentials,
        request: Request,
        known: Mapping[str, bytes] | None,
        wall: float,
    ) -> Verdict:
        """Judge `credentials` against the user's HA1 values (None: unknown user, who takes as long to refuse)."""
        state = self._issuer.check(credentials.nonce, wall)
        secret = (known or _NOBODY).get(credentials.algorithm.value)
        if state is NonceState.FORGED or secret is None:
            return Verdict.WRONG
        right = verify(credentials, request.method, secret.hex(), request.body)
        if not right or known is None:
            return Verdict.WRONG
        if state is NonceState.STALE:
            return Verdict.STALE
        issued_at = self._issuer.issued_at(credentials.nonce)
        if issued_at is None or not self._counts.accept(credentials.nonce, credentials.nc, issued_at):
            return Verdict.STALE
        return Verdict.GOOD


def names_user(credentials: Credentials, uri: SipUri, domain: str) -> bool:
    """Whether the authenticated user name is the user of `uri`: "alice" or "alice@domain"."""
    user = uri.unescaped_user.encode("utf-8", "surrogateescape")
    given = credentials.username.encode("utf-8", "surrogateescape")
    return bool(user) and (compare_digest(given, user) or compare_digest(given, user + b"@" + domain.encode()))


def may_assert(peer: NodeIdentity, uri: object, domains: frozenset[str]) -> bool:
    """Whether a node may send a request in the name of `uri` (its From): the table of profile section 2.

    A registrar may for any user of the served domains, a user's own node for its address of record alone.
    """
    if not isinstance(uri, SipUri):
        return False
    if peer.registrar:
        return uri.host in domains
    return uri.aor == peer.user

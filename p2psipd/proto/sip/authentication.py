"""Who may go on: digest challenges and their check, and who may assert whom (RFC 3261 section 22, profile
section 7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from hmac import compare_digest
from typing import Any, Final, Protocol

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
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.locating import CredentialSource, NodeIdentity
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.proxy import Home, Refused
from p2psipd.proto.sip.uri import SipUri, Uri

#: In the order of the challenge's lines (RFC 8760 section 2.4: most preferred first). MD5 leads because
#: phones from before that RFC look at the first line alone and give up at a name that they do not know
#: (sipsak, SIPp).
ALGORITHMS: Final = (Algorithm.MD5, Algorithm.SHA_256)

#: User agents that fail at the first line with an algorithm that they do not know, wherever it stands: libre
#: before 2.
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

    `key` makes nonces, `issuer` names this node in them; whoever shares the key recognises them as stale
    ones. Nonces from before `since` (unix seconds: the start of the process) are stale.

    The digest-uri is not compared with the Request-URI: phones and test tools differ in what they write
    there, and the nonce count already makes each answer good for one request.
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
        """Judge `credentials` against the user's HA1 values (None: unknown user, who takes as long to
        refuse).
        """
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


class Gatekeeper:
    """Decides whether a request may go on, for the proxy and the registrar.

    `home` may change when listeners are added; `domain` is the one that our own addresses stand for, in the
    URIs of phones that were set up with an IP address. Every refusal is raised as Refused.
    """

    def __init__(self, home: Home, domain: str, digest: DigestGate, credentials: CredentialSource) -> None:
        self.home = home
        self._domain = domain
        self._digest = digest
        self._credentials = credentials

    def place(self, uri: Uri) -> Uri:
        """A Request-URI, with our address replaced by the domain."""
        if (
            isinstance(uri, SipUri)
            and uri.host not in self.home.domains
            and (uri.host, uri.port or 5060) in self.home.addresses
        ):
            return uri.replace(host=self._domain, port=None)
        return uri

    def is_node(self, uri: object) -> bool:
        """Whether a Request-URI, as `place` gave it, names this node itself and no user."""
        return isinstance(uri, SipUri) and uri.user is None and uri.host in self.home.domains

    def _identity(self, uri: Uri) -> SipUri:
        """A From or To as a URI of a domain that is served."""
        if isinstance(uri, SipUri):
            if uri.host not in self.home.domains and uri.host in self.home.hosts:
                uri = uri.replace(host=self._domain, port=None)
            if uri.host in self.home.domains:
                return uri
        raise Refused(403, "Not a User of This Domain", why="refused_domain")

    def check_assertion(self, flow: Any, request: Request) -> None:
        """Profile section 7: what another node may say in whose name; phones pass here. `flow.peer` says who it is.

        P-Asserted-Identity counts before From, where there is one (RFC 3325: the nodes are a trust domain). What a
        registrar sends inside a dialog passes: the dialog was begun, and judged, with its first request.
        """
        peer = flow.peer
        if peer is None or (peer.registrar and request.to_tag is not None):
            return
        asserted = request.get("p-asserted-identity")
        uri = NameAddr.parse(asserted).uri if asserted else request.from_.uri
        if not may_assert(peer, uri, self.home.domains):
            raise Refused(403, "Not Yours to Assert", why="refused_assertion")

    async def prove(self, request: Request, wall: float) -> None:
        """407 until the sender has proved to be the user in From (RFC 3261 section 22.3).

        What it asserts itself is removed. A phone that was set up with our address instead of the domain gets the
        name asserted that it has proved, because other nodes know nothing of that address.
        """
        sender = request.from_.uri
        user = self._identity(sender)
        await self._demand(request, user, wall, proxy=True)
        request.remove("proxy-authorization")
        request.remove("p-asserted-identity")
        if user is not sender:
            request.set("P-Asserted-Identity", f"<{user.bare()}>")

    async def registering(self, flow: Any, request: Request, wall: float) -> SipUri:
        """The user whose bindings a REGISTER is about, once it has proved to be that user (section 10.3 steps
        1 to 5).

        401 before anything is looked up; 404 for a domain that is not served.
        """
        if flow.peer is not None:
            raise Refused(403, why="refused_assertion")
        try:
            user = self._identity(request.to.uri)
            self._identity(request.uri)
        except Refused:
            raise Refused(404, "Not a Domain of Ours", why="refused_domain") from None
        await self._demand(request, user, wall, proxy=False)
        return user

    async def must_exist(self, uri: Uri) -> None:
        """404 for a user of ours without a password, whom nobody can have registered (RFC 3261 section 21.4.5)."""
        if isinstance(uri, SipUri) and uri.user and uri.host in self.home.domains:
            if await self._credentials.ha1(uri.unescaped_user, uri.host) is None:
                raise Refused(404, why="unknown_user")

    async def _demand(self, request: Request, uri: SipUri, wall: float, *, proxy: bool) -> None:
        """Pass only who proves by digest to be the user of `uri`; nothing is looked up for who presents
        nothing.
        """
        realm = uri.host
        presented = self._digest.presented(request, realm, proxy=proxy)
        verdict = None
        if presented is not None:
            known = await self._credentials.ha1(presented.username.partition("@")[0], realm)
            verdict = self._digest.check(presented, request, known, wall)
        if verdict is not Verdict.GOOD or presented is None:
            stale = verdict is Verdict.STALE
            headers = self._digest.challenge(request, realm, wall, proxy=proxy, stale=stale)
            why = "challenged" if verdict is None else f"digest_{verdict.value}"
            raise Refused(407 if proxy else 401, headers=headers, why=why)
        if not names_user(presented, uri, realm):
            raise Refused(403, "Not Your Name", why="refused_identity")

"""Who may go on: digest challenges and their check, and who may assert whom (RFC 3261 section 22, profile
section 7).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from hmac import compare_digest
from typing import Any, Final, Protocol

from p2psipd.proto.sip.digest import (
    NO_NONCE,
    Algorithm,
    Credentials,
    NonceCounts,
    NonceIssuer,
    NonceState,
    OpenedNonce,
    challenges,
    user_of,
    verify,
)
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.guessing import Guesses
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.locating import CredentialSource, LocationUnavailable, NodeIdentity
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.proxy import Home, Refused
from p2psipd.proto.sip.shared_secret import SharedSecret
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri

#: In the order of the challenge's lines (RFC 8760 section 2.4: most preferred first). MD5 leads because
#: phones from before that RFC look at the first line alone and give up at a name that they do not know
#: (sipsak, SIPp).
ALGORITHMS: Final = (Algorithm.MD5, Algorithm.SHA_256, Algorithm.SHA_512_256)

#: User agents that fail at an algorithm that they do not know, wherever it stands: libre before 2 at the first line,
#: JsSIP 3 and SIP.js 0.21 at the last, the only one that they keep.
_KNOWS_MD5_ALONE: Final = re.compile(r"baresip v[01]\.|JsSIP |SIP\.js/", re.IGNORECASE)

_NOBODY: Final = {Algorithm.MD5: bytes(16), Algorithm.SHA_256: bytes(32), Algorithm.SHA_512_256: bytes(32)}
_MAX_CREDENTIALS: Final = 8
_CLAIMS: Final = ("p-asserted-identity", "p-preferred-identity", "remote-party-id")
_TEMPLATES: Final = 100

#: Every refusal of a password takes so many seconds: longer than a look-up, so that nobody can tell by the time
#: whether a user was known here, known elsewhere, or nowhere.
REFUSAL_SECONDS: Final = 0.25


class RandomSource(Protocol):
    """What randomness a core needs."""

    def getrandbits(self, k: int, /) -> int:
        """`k` random bits."""
        ...


class Verdict(StrEnum):
    """What a presented digest is worth."""

    GOOD = "good"
    STALE = "stale"
    WRONG = "wrong"


class DigestGate:
    """Challenges requests and checks what comes back.

    `secrets` make nonces, `issuer` names this node in them; whoever shares the secrets takes them. Which counts of
    those from before `since` (unix seconds: the start of the process), and of those of others, were used is not known
    here (see NonceCounts).

    The digest-uri is not compared with the Request-URI: phones and test tools differ in what they write
    there, and the nonce count already makes each answer good for one request.
    """

    def __init__(
        self,
        secrets: SharedSecret,
        random: RandomSource,
        issuer: bytes = b"",
        since: float = 0.0,
        algorithms: Sequence[Algorithm] = ALGORITHMS,
    ) -> None:
        self._issuer = NonceIssuer(secrets, issuer=issuer)
        self._counts = NonceCounts(since=since)
        self._random = random
        self._algorithms = tuple(algorithms)
        self._templates: dict[tuple[str, bool, bool], list[tuple[str, str]]] = {}

    def challenge(
        self, request: Request, realm: str, wall: float, *, proxy: bool, stale: bool = False, source: str = ""
    ) -> list[tuple[str, str]]:
        """The header lines of a 401 to `request`, or with `proxy` of a 407, to the address `source`."""
        name = "Proxy-Authenticate" if proxy else "WWW-Authenticate"
        plain = _KNOWS_MD5_ALONE.match(request.get("user-agent") or "") is not None
        nonce = self._issuer.issue(wall, self._random, source)
        return [(name, before + nonce + after) for before, after in self._template(realm, stale, plain)]

    def _template(self, realm: str, stale: bool, md5_alone: bool) -> list[tuple[str, str]]:
        """Each challenge line, before and after its nonce."""
        key = (realm, stale, md5_alone)
        found = self._templates.get(key)
        if found is None:
            algorithms = self._algorithms
            if md5_alone and Algorithm.MD5 in algorithms:
                algorithms = (Algorithm.MD5,)
            if len(self._templates) >= _TEMPLATES:
                self._templates.clear()
            found = []
            for line in challenges(realm, "?", algorithms, stale):
                before, _, after = line.partition("?")
                found.append((before, after))
            self._templates[key] = found
        return found

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

    def nonce(self, credentials: Credentials, wall: float, source: str = "") -> OpenedNonce:
        """What the nonce of `credentials` is worth, presented from `source`; nothing needs to be looked up for it."""
        return self._issuer.open(credentials.nonce, wall, source)

    def check(
        self, credentials: Credentials, request: Request, known: Mapping[str, bytes] | None, nonce: OpenedNonce
    ) -> Verdict:
        """Judge `credentials` with this `nonce` against the user's HA1 values (None: unknown user, who takes as long
        to refuse).
        """
        secret = (known or _NOBODY).get(credentials.algorithm)
        if nonce.state is NonceState.FORGED or secret is None:
            return Verdict.WRONG
        right = verify(credentials, request.method, secret.hex(), request.body)
        # Empty is what is known of a user in the other form of the name alone: as good as nobody.
        if not right or not known:
            return Verdict.WRONG
        if nonce.state is NonceState.STALE:
            return Verdict.STALE
        if not self._counts.accept(credentials.nonce, credentials.nc, nonce.issued_at, nonce.own, nonce.opened_at):
            return Verdict.STALE
        return Verdict.GOOD


def _consume(request: Request, realm: str) -> None:
    """Take out the credentials for `realm`; those for proxies further on stay (RFC 3261 section 22.3)."""
    values = request.get_all("proxy-authorization")
    request.remove("proxy-authorization")
    for value in values if len(values) > 1 else ():
        try:
            ours = Credentials.parse(value).realm == realm
        except SipError:
            ours = False
        if not ours:
            request.add("Proxy-Authorization", value)


def disown(message: Request | Response) -> None:
    """Take out what a phone says of who it is besides From: nobody believes that (RFC 3325 section 5)."""
    for name in _CLAIMS:
        if message.has(name):
            message.remove(name)


def names_user(credentials: Credentials, uri: SipUri, domain: str) -> bool:
    """Whether the authenticated user name is the user of `uri`: "alice" or "alice@domain"."""
    user = uri.unescaped_user.encode("utf-8", "surrogateescape")
    given = credentials.username.encode("utf-8", "surrogateescape")
    return bool(user) and (compare_digest(given, user) or compare_digest(given, user + b"@" + domain.encode()))


def _is_anonymous(uri: SipUri) -> bool:
    """Whether a From address says that its user wants to stay unnamed, at a domain that answers for it."""
    return uri.unescaped_user.lower() == "anonymous"


def may_assert(peer: NodeIdentity, uri: object) -> bool:
    """Whether a node may send a request in the name of `uri` (its From): the table of profile section 2.

    A registrar may for anybody: it answers for the users of the served domains, and as an edge passes on what it
    has admitted from other domains. A user's own node may for its address of record alone.
    """
    if peer.registrar:
        return isinstance(uri, SipUri | TelUri)
    return isinstance(uri, SipUri) and uri.aor == peer.user


class Waiting(Protocol):
    """The clock as the gate needs it."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    async def wait(self, seconds: float) -> None:
        """Return after so many seconds."""
        ...


Owner = Callable[[SipUri], Awaitable[str | None]]
"""The AOR ("sip:alice@domain") that a number of ours stands for; None where it is no such number."""


class Gatekeeper:
    """Decides whether a request may go on, for the proxy and the registrar.

    `home` may change when listeners are added; `domain` is the one that our own addresses stand for, in the
    URIs of phones that were set up with an IP address. `owner` says whose a number is: its owner may use it in
    From, and register it. `guesses` counts wrong passwords. Every refusal is raised as Refused.
    """

    def __init__(
        self,
        home: Home,
        domain: str,
        digest: DigestGate,
        credentials: CredentialSource,
        waiting: Waiting,
        *,
        guesses: Guesses | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.home = home
        self.guesses = guesses or Guesses()
        self._domain = domain
        self._digest = digest
        self._credentials = credentials
        self._waiting = waiting
        self._owner = owner

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
            if uri.host in self.home.domains:
                return uri
            if uri.host in self.home.hosts:
                return uri.replace(host=self._domain, port=None)
        raise Refused(403, "Not a User of This Domain", why="refused_domain")

    def check_assertion(self, flow: Any, request: Request) -> None:
        """Profile section 7: what another node may say in whose name; phones pass here. `flow.peer` says who it is.

        P-Asserted-Identity counts before From, where there is one (RFC 3325: the nodes are a trust domain). What a
        registrar sends inside a dialog passes: the dialog was begun, and judged, with its first request.
        """
        peer = flow.peer
        if peer is None or (peer.registrar and request.to_tag is not None):
            return
        asserted = request.get_all("p-asserted-identity")
        uris = [NameAddr.parse(value).uri for value in asserted] or [request.from_.uri]
        if not all(may_assert(peer, uri) for uri in uris):
            raise Refused(403, "Not Yours to Assert", why="refused_assertion")

    async def prove(self, flow: Any, request: Request, wall: float) -> str:
        """407 until the sender has proved to be the user in From (RFC 3261 section 22.3), or, where that is anonymous,
        any user of the domain: who it was ("alice@domain"), and "" where From says it.

        What it asserts itself is removed. A phone that was set up with our address instead of the domain gets the
        name asserted that it has proved, because other nodes know nothing of that address.
        """
        sender = request.from_.uri
        user = self._identity(sender)
        name = await self._demand(flow, request, user, wall, proxy=True)
        _consume(request, user.host)
        disown(request)
        if user is not sender:
            request.set("P-Asserted-Identity", f"<{user.bare()}>")
        return f"{name.partition('@')[0]}@{user.host}" if _is_anonymous(user) else ""

    async def registering(self, flow: Any, request: Request, wall: float) -> SipUri:
        """The user whose bindings a REGISTER is about, once it has proved to be that user (section 10.3 steps
        1 to 5).

        401 before anything is looked up; 404 for a domain that is not served.
        """
        user = self._registrant(flow, request)
        await self._demand(flow, request, user, wall, proxy=False)
        return user

    def challenge_registrant(self, flow: Any, request: Request, wall: float) -> Refused:
        """The 401 to a REGISTER that presents nothing. Raises Refused for one that proof would not help."""
        realm = self._registrant(flow, request).host
        headers = self._digest.challenge(request, realm, wall, proxy=False, source=flow.remote[0])
        return Refused(401, headers=headers, why="challenged")

    def challenge_caller(self, flow: Any, request: Request, wall: float, *, stale: bool = False) -> Refused:
        """The 407 to another request that presents nothing, or what was given to another address (`stale`). Raises
        Refused for one that proof would not help.
        """
        realm = self._identity(request.from_.uri).host
        headers = self._digest.challenge(request, realm, wall, proxy=True, stale=stale, source=flow.remote[0])
        return Refused(407, headers=headers, why="challenged")

    def presented(self, flow: Any, request: Request, wall: float) -> OpenedNonce:
        """What the nonce is worth that a caller presents; a forged one where there is none."""
        uri = request.from_.uri
        realm = self._domain if not isinstance(uri, SipUri) or uri.host in self.home.hosts else uri.host
        credentials = self._digest.presented(request, realm, proxy=True)
        return NO_NONCE if credentials is None else self._digest.nonce(credentials, wall, flow.remote[0])

    def _registrant(self, flow: Any, request: Request) -> SipUri:
        if flow.peer is not None:
            raise Refused(403, why="refused_assertion")
        uri = request.to.uri
        if not isinstance(uri, SipUri):
            # RFC 4475 section 3.3.4: what is registered is an address of record, which is a SIP URI.
            raise Refused(400, "To Is No SIP URI", why="refused_domain")
        try:
            user = self._identity(uri)
            self._identity(request.uri)
        except Refused:
            raise Refused(404, "Not a Domain of Ours", why="refused_domain") from None
        return user

    async def must_exist(self, uri: Uri) -> None:
        """404 for a user of ours without a password, whom nobody can have registered (RFC 3261 section 21.4.5)."""
        if isinstance(uri, SipUri) and uri.user and uri.host in self.home.domains:
            if await self._credentials.ha1(uri.unescaped_user, uri.host) is None:
                raise Refused(404, why="unknown_user")

    async def _demand(self, flow: Any, request: Request, uri: SipUri, wall: float, *, proxy: bool) -> str:
        """Pass only who proves by digest to be the user of `uri`; by what name. A caller (`proxy`) may be anonymous.

        Nothing is looked up for who presents nothing, a nonce that nobody here made, or too many wrong passwords; and
        a refusal takes the same time whether or not there is such a user.
        """
        realm, source = uri.host, flow.remote[0]
        presented = self._digest.presented(request, realm, proxy=proxy)
        stale = False
        if presented is None:
            why = "challenged"
        else:
            verdict, why = await self._judge(presented, request, realm, wall, source)
            if verdict is Verdict.GOOD:
                named = names_user(presented, uri, realm) or (proxy and _is_anonymous(uri))
                if not (named or await self._owns(presented, uri, realm)):
                    raise Refused(403, "Not Your Name", why="refused_identity")
                return presented.username
            stale = verdict is Verdict.STALE
        headers = self._digest.challenge(request, realm, wall, proxy=proxy, stale=stale, source=source)
        raise Refused(407 if proxy else 401, headers=headers, why=why)

    async def _judge(
        self, presented: Credentials, request: Request, realm: str, wall: float, source: str
    ) -> tuple[Verdict, str]:
        """The verdict, and a word for counting.

        LocationUnavailable (503) where not everybody could be asked who may know the password, and none of those who
        could has the right one: whether or not one of them knows the user, the answer is the same. It counts as a
        wrong password, which costs no phone anything that waits as long as Retry-After says.
        """
        began = self._waiting.now()
        user = user_of(presented.username, realm) or ""
        nonce = self._digest.nonce(presented, wall, source)
        if nonce.state is NonceState.FORGED:
            return Verdict.WRONG, "digest_forged"
        if not self.guesses.may_try(source, user, began):
            return Verdict.WRONG, "digest_slowed"
        failed: LocationUnavailable | None = None
        verdict = Verdict.WRONG
        for fresh in (False, True):
            # Asked afresh: perhaps the password has just been changed, or the user been added.
            try:
                known = await self._credentials.ha1(presented.username, realm, fresh) if user else None
            except LocationUnavailable as error:
                failed = error
                break
            verdict = self._digest.check(presented, request, known, nonce)
            if verdict is not Verdict.WRONG:
                break
        if verdict is Verdict.GOOD:
            self.guesses.right(source, user)
        elif verdict is Verdict.WRONG:
            if nonce.for_source:
                self.guesses.wrong(source, user, began)
            await self._waiting.wait(max(0.0, REFUSAL_SECONDS - (self._waiting.now() - began)))
        if failed is not None:
            raise failed
        return verdict, f"digest_{verdict}"

    async def _owns(self, presented: Credentials, uri: SipUri, realm: str) -> bool:
        """Whether `uri` is a number of the user that has proved itself."""
        aor = await self._owner(uri) if self._owner is not None else None
        if aor is None:
            return False
        user = presented.username if "@" in presented.username else f"{presented.username}@{realm}"
        return compare_digest(aor.encode("utf-8", "surrogateescape"), f"sip:{user}".encode("utf-8", "surrogateescape"))

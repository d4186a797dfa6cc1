"""Digest authentication for both sides (RFC 7616, RFC 8760, RFC 3261 section 22).

The server keeps no nonces: a nonce carries its time and who made it under a keyed hash (`NonceIssuer`).  What it
does keep, in bounded memory, is which nonce counts it has seen (`NonceCounts`).
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, StrEnum
from hashlib import blake2b, md5, sha256
from hmac import compare_digest
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives import hashes

from p2psipd.proto.sip.errors import MalformedMessage
from p2psipd.proto.sip.headers import quote, unquote
from p2psipd.proto.sip.parameters import TOKEN, check_text
from p2psipd.proto.sip.shared_secret import NONCES, SharedSecret

__all__ = [
    "NO_NONCE",
    "Algorithm",
    "Challenge",
    "Credentials",
    "NonceCounts",
    "NonceIssuer",
    "NonceState",
    "OpenedNonce",
    "answer",
    "challenges",
    "choose",
    "ha1",
    "user_of",
    "verify",
]

_PARAM = re.compile(rf'[\s,]*+({TOKEN}++)\s*+=\s*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,"]*+)\s*+(?=,|$)', re.DOTALL)
_PARAMS = re.compile(rf'(?:[\s,]*+{TOKEN}++\s*+=\s*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,"]*+)\s*+(?=,|$))*+', re.DOTALL)
_HEX8 = re.compile(r"[0-9A-Fa-f]{8}")
_MAX_LENGTH = 8192
_SOURCES = 10_000
_NEEDED = frozenset({"realm", "nonce", "uri", "response"})


class _Random(Protocol):
    def getrandbits(self, k: int, /) -> int: ...


def _md5(data: bytes) -> str:
    return md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return sha256(data).hexdigest()


def _sha512_256(data: bytes) -> str:
    digest = hashes.Hash(hashes.SHA512_256())
    digest.update(data)
    return digest.finalize().hex()


class Algorithm(StrEnum):
    """The hash algorithms of RFC 8760 section 2.1; the value is the token."""

    MD5 = "MD5"
    SHA_256 = "SHA-256"
    SHA_512_256 = "SHA-512-256"


_HASHES: dict[Algorithm, Callable[[bytes], str]] = {
    Algorithm.MD5: _md5,
    Algorithm.SHA_256: _sha256,
    Algorithm.SHA_512_256: _sha512_256,
}
_BY_TOKEN = {algorithm.value.lower(): (algorithm, False) for algorithm in Algorithm} | {
    f"{algorithm.value.lower()}-sess": (algorithm, True) for algorithm in Algorithm
}


def ha1(algorithm: Algorithm, user: str, realm: str, password: str) -> str:
    """H(user:realm:password) in lower-case hex (RFC 7616 section 3.4.2).

    As good as the password itself: keep it so.
    """
    return _HASHES[algorithm](f"{user}:{realm}:{password}".encode("utf-8", "replace"))


def user_of(username: str, realm: str) -> str | None:
    """The user that an authentication user name means: phones write "alice" or "alice@realm"; None for others."""
    user, at, domain = username.partition("@")
    return user if user and (not at or domain == realm) else None


def _parse_parameters(text: str) -> dict[str, str]:
    """The auth-params of a Digest header value, names in lower case, values unquoted.

    Raises MalformedMessage.
    """
    scheme, _, rest = text.strip().partition(" ")
    if scheme.lower() != "digest":
        raise MalformedMessage("not the Digest scheme")
    if len(rest) > _MAX_LENGTH:
        raise MalformedMessage("credentials too long")
    rest = rest.rstrip(" \t\r\n,")
    if not _PARAMS.fullmatch(rest):
        raise MalformedMessage("bad digest parameters")
    pairs: list[tuple[str, str]] = _PARAM.findall(rest)
    found = {name.lower(): unquote(value) if "\\" in value else value.strip('"') for name, value in pairs}
    if len(found) != len(pairs):
        raise MalformedMessage("repeated digest parameter")
    return found


class Challenge(NamedTuple):
    """A WWW-Authenticate or Proxy-Authenticate value.

    `algorithm_token` keeps a "-sess" that a server asked for.
    """

    realm: str
    nonce: str
    algorithm: Algorithm = Algorithm.MD5
    qop: tuple[str, ...] = ("auth",)
    stale: bool = False
    opaque: str | None = None
    domain: str | None = None
    session: bool = False

    @classmethod
    def parse(cls, text: str) -> Challenge:
        """Raises MalformedMessage, also for a scheme or algorithm that is not understood."""
        found = _parse_parameters(text)
        algorithm, session = _algorithm(found.get("algorithm", "MD5"))
        if "realm" not in found or "nonce" not in found:
            raise MalformedMessage("challenge without realm or nonce")
        qop = tuple([option.strip().lower() for option in found["qop"].split(",")]) if "qop" in found else ()
        return cls(
            found["realm"],
            found["nonce"],
            algorithm,
            qop,
            found.get("stale", "").lower() == "true",
            found.get("opaque"),
            found.get("domain"),
            session,
        )

    def __str__(self) -> str:
        token = self.algorithm.value + ("-sess" if self.session else "")
        parts = [f"realm={quote(self.realm)}", f"nonce={quote(self.nonce)}", f"algorithm={token}"]
        if self.qop:
            parts.append(f'qop="{",".join(self.qop)}"')
        if self.stale:
            parts.append("stale=true")
        if self.opaque is not None:
            parts.append(f"opaque={quote(self.opaque)}")
        if self.domain is not None:
            parts.append(f"domain={quote(self.domain)}")
        return "Digest " + ", ".join(parts)


def _algorithm(token: str) -> tuple[Algorithm, bool]:
    found = _BY_TOKEN.get(token.lower())
    if found is None:
        raise MalformedMessage("unknown digest algorithm")
    return found


def challenges(
    realm: str, nonce: str, algorithms: Sequence[Algorithm] = (Algorithm.SHA_256, Algorithm.MD5), stale: bool = False
) -> list[str]:
    """One header value an algorithm, in the given order: most preferred first (RFC 8760 section 2.3)."""
    return [str(Challenge(realm, nonce, algorithm, ("auth",), stale)) for algorithm in algorithms]


class Credentials(NamedTuple):
    """An Authorization or Proxy-Authorization value of the Digest scheme.

    `nc` is 0 and `qop` None for RFC 2069 clients.
    """

    username: str
    realm: str
    nonce: str
    uri: str
    response: str
    algorithm: Algorithm
    session: bool
    qop: str | None
    nc: int
    nc_text: str
    cnonce: str
    opaque: str | None

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """Raises MalformedMessage, also for other schemes and algorithms."""
        found = _parse_parameters(text)
        algorithm, session = _algorithm(found.get("algorithm", "MD5"))
        username = found["username"] if "username" in found else _extended_username(found)
        if not found.keys() >= _NEEDED:
            raise MalformedMessage("incomplete credentials")
        qop = found["qop"].lower() if "qop" in found else None
        count, cnonce = found.get("nc", ""), found.get("cnonce", "")
        if qop is not None:
            if qop not in ("auth", "auth-int"):
                raise MalformedMessage("unknown qop")
            if not _HEX8.fullmatch(count) or not cnonce:
                raise MalformedMessage("qop without nc and cnonce")
            if count == "00000000":
                raise MalformedMessage("nc counts from 1")
        elif session and not cnonce:
            raise MalformedMessage("session algorithm without cnonce")
        return cls(
            username,
            found["realm"],
            found["nonce"],
            found["uri"],
            found["response"].lower(),
            algorithm,
            session,
            qop,
            int(count, 16) if qop is not None else 0,
            count,
            cnonce,
            found.get("opaque"),
        )


def _extended_username(found: dict[str, str]) -> str:
    """The user name that is no quoted string (RFC 7616 section 3.4)."""
    extended = found.get("username*", "")
    charset, _, rest = extended.partition("'")
    _, apostrophe, encoded = rest.partition("'")
    if charset.lower() != "utf-8" or not apostrophe:
        raise MalformedMessage("credentials without a user name")
    try:
        return unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise MalformedMessage("user name is not UTF-8") from None


def _response(
    algorithm: Algorithm,
    secret: str,
    nonce: str,
    method: str,
    uri: str,
    qop: str | None,
    nc: str,
    cnonce: str,
    session: bool,
    body: bytes,
) -> str:
    """The request-digest (RFC 7616 sections 3.4.1 to 3.4.3; without qop as RFC 2617 section 3.2.2.1)."""
    digest = _HASHES[algorithm]
    if session:
        secret = digest(f"{secret}:{nonce}:{cnonce}".encode("utf-8", "replace"))
    last = f":{digest(body)}" if qop == "auth-int" else ""
    ha2 = digest(f"{method}:{uri}{last}".encode("utf-8", "replace"))
    between = "" if qop is None else f"{nc}:{cnonce}:{qop}:"
    return digest(f"{secret}:{nonce}:{between}{ha2}".encode("utf-8", "replace"))


def verify(credentials: Credentials, method: str, secret: str, body: bytes = b"") -> bool:
    """Whether the response fits HA1 `secret`, which must be of `credentials.algorithm`.

    Compares in constant time.

    The nonce, its count and whether `credentials.uri` is acceptable are the caller's to judge.
    """
    expected = _response(
        credentials.algorithm,
        secret,
        credentials.nonce,
        method,
        credentials.uri,
        credentials.qop,
        credentials.nc_text,
        credentials.cnonce,
        credentials.session,
        body,
    )
    return compare_digest(expected.encode(), credentials.response.encode("utf-8", "replace"))


def answer(
    challenge: Challenge,
    user: str,
    secret: str,
    method: str,
    uri: str,
    cnonce: str,
    nc: int = 1,
    body: bytes = b"",
    *,
    is_ha1: bool = False,
) -> str:
    """The Authorization or Proxy-Authorization value that answers a challenge.

    `secret` is the password, or HA1 with `is_ha1`.  `nc` counts the uses of this nonce from 1.  Of the
    offered qop values auth is taken, else auth-int, else none (RFC 2069 servers).
    """
    algorithm, realm, nonce = challenge.algorithm, challenge.realm, challenge.nonce
    qop = next((option for option in ("auth", "auth-int") if option in challenge.qop), None)
    if not is_ha1:
        secret = ha1(algorithm, user, realm, secret)
    count = f"{nc:08x}"
    response = _response(algorithm, secret, nonce, method, uri, qop, count, cnonce, challenge.session, body)
    token = algorithm.value + ("-sess" if challenge.session else "")
    parts = [
        f"username={quote(user)}",
        f"realm={quote(realm)}",
        f"nonce={quote(nonce)}",
        f'uri="{check_text(uri)}"',
        f'response="{response}"',
        f"algorithm={token}",
    ]
    if qop is not None:
        parts += [f"qop={qop}", f"nc={count}"]
    if qop is not None or challenge.session:
        parts.append(f"cnonce={quote(cnonce)}")
    if challenge.opaque is not None:
        parts.append(f"opaque={quote(challenge.opaque)}")
    return "Digest " + ", ".join(parts)


def choose(values: Iterable[str], supported: Iterable[Algorithm] = tuple(Algorithm)) -> Challenge | None:
    """The first of these challenges that is understood; others are ignored (RFC 8760 section 2.4)."""
    usable = frozenset(supported)
    for value in values:
        try:
            challenge = Challenge.parse(value)
        except MalformedMessage:
            continue
        if challenge.algorithm in usable and (not challenge.qop or {"auth", "auth-int"} & set(challenge.qop)):
            return challenge
    return None


class NonceState(Enum):
    """A nonce is one of our registrars' and fresh; or genuine, but old or another address's (stale=true); or forged."""

    VALID = "valid"
    STALE = "stale"
    FORGED = "forged"


class OpenedNonce(NamedTuple):
    """What a nonce says: its state, when it was made (wall seconds), whether for the address that presents it,
    whether by this issuer, and when it was looked at.
    """

    state: NonceState
    issued_at: float = 0.0
    for_source: bool = False
    own: bool = False
    opened_at: float = 0.0


_NONCE_OCTETS = 36
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/", b"+/  ")
NO_NONCE = OpenedNonce(NonceState.FORGED)
"""What is said of anything that is no nonce of ours."""


class NonceIssuer:
    """Makes and recognises nonces without remembering them: time, issuer, the address that asked and a count of 32 bits
    under a keyed hash. The count begins anywhere.

    Registrars that share `secrets` take each other's nonces, and their own after a restart. A nonce that is presented
    from another address than it was given to is stale, so that nobody can guess passwords, or repeat what he has
    overheard, in the name of an address at which he hears no answers. `issuer` is a name of this node; `lifetime` is
    seconds. 48 characters of base64url each.
    """

    __slots__ = ("_issued", "_issuer", "_lifetime", "_secrets", "_sources")

    def __init__(self, secrets: SharedSecret, lifetime: float = 300.0, issuer: bytes = b"") -> None:
        self._secrets = secrets
        self._lifetime = lifetime
        self._issuer = sha256(issuer).digest()[:4]
        self._issued: int | None = None
        self._sources: dict[tuple[bytes, str], bytes] = {}

    def issue(self, wall: float, random: _Random, source: str = "") -> str:
        """A new nonce for who asks from the address `source`."""
        stamp = max(0, int(wall * 1000)).to_bytes(8, "big")
        if self._issued is None:
            self._issued = random.getrandbits(32)
        self._issued = (self._issued + 1) & 0xFFFFFFFF
        key = self._secrets.keys(NONCES)[0]
        head = stamp + self._issuer + self._source(key, source) + self._issued.to_bytes(4, "big")
        signed = head + _mac(key, head)
        return b2a_base64(signed, newline=False).translate(_TO_URL).decode("ascii")

    def _source(self, key: bytes, source: str) -> bytes:
        """What stands for an address: keyed, or who has many could look for one of his that is like another's."""
        known = self._sources.get((key, source))
        if known is None:
            if len(self._sources) >= _SOURCES:
                self._sources.clear()
            name = source.encode("utf-8", "surrogateescape")
            known = blake2b(name, key=key, digest_size=4, person=b"p2psipd source").digest()
            self._sources[key, source] = known
        return known

    def open(self, nonce: str, wall: float, source: str = "") -> OpenedNonce:
        """What this nonce is now, presented from `source`. One from more than a minute in the future is stale."""
        if len(nonce) != 48 or not nonce.isascii():
            return NO_NONCE
        try:
            raw = a2b_base64(nonce.encode("ascii").translate(_FROM_URL))
        except (Base64Error, ValueError):
            return NO_NONCE
        # One text a nonce: the decoder skips characters outside its alphabet.
        if len(raw) != _NONCE_OCTETS:
            return NO_NONCE
        head, mac = raw[:20], raw[20:]
        for key in self._secrets.keys(NONCES):
            if compare_digest(mac, _mac(key, head)):
                break
        else:
            return NO_NONCE
        issued_at = int.from_bytes(head[:8], "big") / 1000
        for_source = head[12:16] == self._source(key, source)
        valid = for_source and -60 <= wall - issued_at <= self._lifetime
        own = head[8:12] == self._issuer
        return OpenedNonce(NonceState.VALID if valid else NonceState.STALE, issued_at, for_source, own, wall)


def _mac(key: bytes, head: bytes) -> bytes:
    return blake2b(head, key=key, digest_size=16).digest()


class NonceCounts:
    """Which counts of which nonces have been used (RFC 7616 section 3.4, nc): each is accepted once.

    Counts may arrive out of order within a window of 64.  At most `limit` nonces are remembered; of those
    forgotten, and of all issued before one of them, nothing is accepted any more.  That bar counts for nothing while
    it lies in the future: the clock has been set back, and no new nonce would be above it.

    A nonce of another registrar, or one issued before `since` (wall seconds: the start of the process), may have been
    used where nobody here has seen it.  The first count of such a nonce that comes is accepted, and none below it: a
    client counts up, so those were for others.  An answer that somebody has overheard can thus be repeated at a
    registrar that has seen neither it nor a later one, from the same address, within the nonce's lifetime; what cannot
    be judged at all, a use without count, is not accepted.
    """

    __slots__ = ("_forgotten_until", "_limit", "_seen", "_since")

    _WINDOW = 64
    _ALL = 2**_WINDOW - 1

    def __init__(self, limit: int = 50_000, since: float = float("-inf")) -> None:
        self._limit = limit
        self._since = since
        self._forgotten_until = float("-inf")
        self._seen: OrderedDict[str, tuple[float, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def accept(self, nonce: str, count: int, issued_at: float, own: bool = True, wall: float = float("inf")) -> bool:
        """Whether `count` (1 up; 0: a client without qop, which gets one use) of this genuine nonce is new, at `wall`;
        `own`: it was made here.

        False means: challenge again with stale=true.  Call it only after the response has been verified.
        """
        known = self._seen.get(nonce)
        if known is None:
            all_seen = own and issued_at > self._since
            if issued_at <= self._forgotten_until <= wall or not (all_seen or count):
                return False
            self._seen[nonce] = (issued_at, count, 1 if all_seen else self._ALL)
            if len(self._seen) > self._limit:
                _, (forgotten, _, _) = self._seen.popitem(last=False)
                if forgotten <= wall:
                    self._forgotten_until = max(self._forgotten_until, forgotten)
            return True
        _, highest, window = known
        if count > highest:
            shift = count - highest
            window = (window << shift | 1) & self._ALL if shift < self._WINDOW else 1
            self._seen[nonce] = (issued_at, count, window)
            return True
        bit = 1 << (highest - count) if highest - count < self._WINDOW else 0
        if not bit or window & bit:
            return False
        self._seen[nonce] = (issued_at, highest, window | bit)
        return True

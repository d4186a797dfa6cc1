"""PASSporT tokens and the Identity header that carries them (RFC 8224, RFC 8225, "shaken" of RFC 8588).

A token is signed JSON: who calls (``orig``), who is called (``dest``), when (``iat``), the fingerprints of the
media keys (``mky``).  The full form carries header and payload, the compact form only the signature: the
verifier makes the rest from the request.  ES256 is the one algorithm (RFC 8225 section 8).

Everything here is text and octets; the mapping from a request is ``proto.peering.identity``.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from p2psipd.proto.identity.header_parameters import IdentitySyntaxError, read_parameters
from p2psipd.proto.identity.p256 import VerifyingKey

__all__ = [
    "ALGORITHM",
    "SHAKEN",
    "Claims",
    "FullToken",
    "Identifier",
    "IdentityHeader",
    "IdentitySyntaxError",
    "canonical_number",
    "identify",
    "is_global_number",
    "media_keys",
    "parse_identity_header",
    "read_full_token",
    "same_identifier",
    "says_exactly",
    "sign",
    "verify_compact",
    "verify_full",
    "write_identity_header",
]

ALGORITHM: Final = "ES256"
SHAKEN: Final = "shaken"

_MAX_HEADER: Final = 16 * 1024
_MAX_FINGERPRINTS: Final = 32
_MAX_DESTINATIONS: Final = 64
_HEADER: Final = re.compile(r"\s*+([A-Za-z0-9_\-]*+)\.([A-Za-z0-9_\-]*+)\.([A-Za-z0-9_\-]++)\s*+(;.*+)?+", re.DOTALL)
_NOT_NUMBER: Final = re.compile(r"[^0-9#*]++")
_NUMBER_USER: Final = re.compile(r"\+?[0-9\-.()]++")
_GLOBAL: Final = re.compile(r"[1-9][0-9]{6,14}")
_ESCAPE: Final = re.compile(r"%([0-9a-f]{2})")
_UNRESERVED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_FINGERPRINT: Final = re.compile(rb"^a=fingerprint:[ \t]*+([!-~]++)[ \t]++([0-9A-Fa-f:]++)[ \t]*+\r?$", re.MULTILINE)
_HASH: Final = SHA256()
# RFC 6979: the same token twice is the same text.
_SIGN: Final = ECDSA(_HASH, deterministic_signing=True)


class Identifier(NamedTuple):
    """Who calls or is called: ``kind`` is "tn" (a canonical number) or "uri" (a canonical URI)."""

    kind: str
    value: str


class Claims(NamedTuple):
    """What is signed.  ``iat`` in unix seconds; ``mky`` pairs of (alg, dig) in the order of ``media_keys``.

    ``attest`` ("A", "B", "C") and ``origid`` (a UUID) belong to "shaken" alone; ``attest`` "" makes a baseline
    token without ppt.
    """

    orig: Identifier
    dest: tuple[Identifier, ...]
    iat: int
    mky: tuple[tuple[str, str], ...] = ()
    attest: str = ""
    origid: str = ""

    @property
    def ppt(self) -> str:
        """The PASSporT type: "shaken", or "" for the baseline."""
        return SHAKEN if self.attest else ""


class IdentityHeader(NamedTuple):
    """One Identity header: the token's three parts as base64url, and the parameters ("" where missing)."""

    header: str
    payload: str
    signature: str
    info: str
    algorithm: str
    ppt: str

    @property
    def compact(self) -> bool:
        """Whether only the signature is there (RFC 8225 section 7)."""
        return not self.header and not self.payload


class FullToken(NamedTuple):
    """What a full form says, syntax checked, nothing verified."""

    algorithm: str
    x5u: str
    ppt: str
    claims: Claims


# ---- canonical forms ---------------------------------------------------------------------------------------


def canonical_number(text: str) -> str:
    """Digits, "#" and "*" of a number, and nothing else (RFC 8224 section 8.3)."""
    return _NOT_NUMBER.sub("", text)


def is_global_number(number: str) -> bool:
    """Whether a canonical number can be an E.164 number with country code: 7 to 15 digits, the first no 0."""
    return bool(_GLOBAL.fullmatch(number))


def identify(scheme: str, user: str, host: str, phone: bool) -> Identifier:
    """What stands for a URI in a token (RFC 8224 sections 8.1, 8.3 and 8.5).

    ``user`` is the raw user part, for "tel" the number with its parameters.  It is a telephone number in a tel
    URI, with user=phone (``phone``), and with a leading "+"; if what it says is no E.164 number, or is local
    to a phone-context, the URI stands for itself.
    """
    number, _, parameters = user.partition(";")
    if scheme == "tel" or phone or number.startswith("+"):
        canonical = canonical_number(number)
        if is_global_number(canonical) and "phone-context=" not in parameters.lower():
            return Identifier("tn", canonical)
    if scheme == "tel":
        return Identifier("uri", f"tel:{_normal(user)}")
    at = f"{_normal(user)}@" if user else ""
    shown = f"[{host}]" if ":" in host else host
    return Identifier("uri", f"{scheme.lower()}:{at}{shown.lower()}")


def same_identifier(ours: Identifier, user: str, claimed: Identifier) -> bool:
    """Whether a token's identifier is the one that the request shows (``ours``, of a URI with ``user``).

    Some signers leave the "+" in numbers, and some call a number what is not marked as one: a user part of
    digits and separators counts as the number that it spells.
    """
    if claimed.kind == "tn":
        number = canonical_number(claimed.value)
        if ours.kind == "tn":
            return bool(number) and number == ours.value
        return bool(_NUMBER_USER.fullmatch(user)) and bool(number) and number == canonical_number(user)
    return claimed == ours


def _normal(text: str) -> str:
    """Lower case, escapes of unreserved characters undone, the others in upper case (RFC 3986 section 6.2.2)."""

    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character.lower() if character in _UNRESERVED else match[0].upper()

    return _ESCAPE.sub(one, text.lower())


def media_keys(body: bytes) -> tuple[tuple[str, str], ...]:
    """The fingerprints of an SDP body as (alg, dig), without colons, each once, sorted (RFC 8225 section 5.2.2).

    At most 32 are read.
    """
    if b"a=fingerprint:" not in body:
        return ()
    found = set()
    for match in _FINGERPRINT.finditer(body):
        found.add((match[1].decode("ascii").lower(), match[2].decode("ascii").replace(":", "").upper()))
        if len(found) == _MAX_FINGERPRINTS:
            break
    return tuple(sorted(found, key=lambda pair: (pair[0] + pair[1]).encode()))


# ---- making ------------------------------------------------------------------------------------------------


def sign(key: EllipticCurvePrivateKey, info: str, claims: Claims) -> IdentityHeader:
    """The Identity header for ``claims``, in full form; ``info`` is where the certificate is.

    The key is one on P-256.  ``IdentityHeader._replace(header="", payload="")`` is the compact form.
    """
    header, payload = _written_header(info, claims.ppt), _written_payload(claims)
    r, s = decode_dss_signature(key.sign(f"{header}.{payload}".encode("ascii"), _SIGN))
    signature = _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    return IdentityHeader(header, payload, signature, info, ALGORITHM, claims.ppt)


def write_identity_header(identity: IdentityHeader) -> str:
    """The value of the header (RFC 8224 section 4)."""
    ppt = f";ppt={identity.ppt}" if identity.ppt else ""
    token = f"{identity.header}.{identity.payload}.{identity.signature}"
    return f"{token};info=<{identity.info}>;alg={identity.algorithm or ALGORITHM}{ppt}"


# Base64url of the deterministic serialisation: no white space, keys in order (RFC 8225 section 9).


@lru_cache(maxsize=256)
def _written_header(info: str, ppt: str) -> str:
    """The first part of every token that one certificate signs."""
    named = f'"ppt":{encode_basestring(ppt)},' if ppt else ""
    return _base64(f'{{"alg":"{ALGORITHM}",{named}"typ":"passport","x5u":{encode_basestring(info)}}}')


def _written_payload(claims: Claims) -> str:
    attest = f'"attest":{encode_basestring(claims.attest)},' if claims.attest else ""
    mky = ""
    if claims.mky:
        keys = [f'{{"alg":{encode_basestring(alg)},"dig":{encode_basestring(dig)}}}' for alg, dig in claims.mky]
        mky = f'"mky":[{",".join(keys)}],'
    kind, value = claims.orig
    origid = f',"origid":{encode_basestring(claims.origid)}' if claims.attest else ""
    orig = f'"orig":{{"{kind}":{encode_basestring(value)}}}'
    return _base64(f'{{{attest}{_written_dest(claims.dest)},"iat":{claims.iat},{mky}{orig}{origid}}}')


def _written_dest(dest: tuple[Identifier, ...]) -> str:
    members = [f'"{kind}":[{encode_basestring(value)}]' for kind, value in dest]
    if len(members) > 1:
        texts: dict[str, list[str]] = {}
        for kind, value in sorted(dest, key=lambda one: one.kind):
            texts.setdefault(kind, []).append(encode_basestring(value))
        members = [f'"{kind}":[{",".join(values)}]' for kind, values in texts.items()]
    return f'"dest":{{{",".join(members)}}}'


_TO_URL_ALPHABET: Final = bytes.maketrans(b"+/", b"-_")


def _base64(data: str | bytes) -> str:
    octets = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return b2a_base64(octets, newline=False).translate(_TO_URL_ALPHABET, b"=").decode("ascii")


# ---- reading -----------------------------------------------------------------------------------------------


def parse_identity_header(value: str) -> IdentityHeader:
    """One Identity header of RFC 8224, folded or not.  Raises IdentitySyntaxError.

    A header without info has "" there; an algorithm that is not written is ES256.
    """
    match = _HEADER.fullmatch(value) if len(value) <= _MAX_HEADER else None
    if match is None:
        raise IdentitySyntaxError("not a token and its parameters")
    header, payload, signature, parameters = match.groups()
    if bool(header) != bool(payload):
        raise IdentitySyntaxError("neither the full nor the compact form")
    return IdentityHeader(header, payload, signature, *_read_parameters(parameters or ""))


@lru_cache(maxsize=256)
def _read_parameters(text: str) -> tuple[str, str, str]:
    """Info, algorithm and ppt; kept, because all headers that one certificate signs have the same."""
    found = read_parameters(text)
    return found.get("info", ""), found.get("alg") or ALGORITHM, found.get("ppt", "").lower()


def says_exactly(identity: IdentityHeader, claims: Claims) -> bool:
    """Whether a full form says ``claims`` and no more in the one way to write them (RFC 8225 section 9), which most
    signers follow: then nothing of it needs to be read.
    """
    return (
        identity.ppt == claims.ppt
        and identity.header == _written_header(identity.info, claims.ppt)
        and identity.payload == _written_payload(claims)
    )


def read_full_token(identity: IdentityHeader) -> FullToken:
    """What the full form says.  Raises IdentitySyntaxError for what is no PASSporT.

    Read liberally: numbers with "+", "iat" as a string of digits, and any order of keys are known in the wild.
    """
    header, payload = _decode_header(identity.header), _decode(identity.payload)
    if header.get("typ") != "passport":
        raise IdentitySyntaxError("typ is not passport")
    iat = payload.get("iat")
    if isinstance(iat, str) and iat.isascii() and iat.isdigit() and len(iat) < 12:
        iat = int(iat)
    if not isinstance(iat, int) or isinstance(iat, bool) or not 0 <= iat < 2**40:
        raise IdentitySyntaxError("iat is no time")
    orig = _identifiers(payload.get("orig"))
    if len(orig) != 1:
        raise IdentitySyntaxError("orig is not one identity")
    attest, origid = _text(payload, "attest"), _text(payload, "origid")
    ppt = _text(header, "ppt").lower()
    if ppt == SHAKEN and (attest not in ("A", "B", "C") or not origid):
        raise IdentitySyntaxError("shaken without attest and origid")
    claims = Claims(orig[0], _identifiers(payload.get("dest")), iat, _media_key_claims(payload), attest, origid)
    return FullToken(_text(header, "alg"), _text(header, "x5u"), ppt, claims)


def _decode(text: str) -> dict[str, Any]:
    try:
        found = _JSON.decode(_octets(text).decode("utf-8"))
    except (ValueError, RecursionError):
        raise IdentitySyntaxError("not JSON in base64url") from None
    if not isinstance(found, dict):
        raise IdentitySyntaxError("not a JSON object")
    return found


#: All tokens that one certificate signs have the same header; nobody changes what is given out here.
_decode_header = lru_cache(maxsize=256)(_decode)


def _octets(text: str) -> bytes:
    try:
        return a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raise IdentitySyntaxError("not base64url") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key given twice")
    return made


_JSON: Final = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str):
        raise IdentitySyntaxError(f"{key} is no string")
    return value


def _identifiers(item: object) -> tuple[Identifier, ...]:
    if not isinstance(item, dict):
        raise IdentitySyntaxError("an identity is no JSON object")
    found: list[Identifier] = []
    for kind in ("tn", "uri"):
        if kind not in item:
            continue
        values = item[kind] if isinstance(item[kind], list) else [item[kind]]
        if len(values) > _MAX_DESTINATIONS:
            raise IdentitySyntaxError(f"more than {_MAX_DESTINATIONS} of {kind}")
        for value in values:
            if not isinstance(value, str):
                raise IdentitySyntaxError(f"{kind} is not text")
            found.append(Identifier(kind, value))
    if not found:
        raise IdentitySyntaxError("no identity of a known kind")
    return tuple(found)


def _media_key_claims(payload: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if "mky" not in payload:
        return ()
    items = payload["mky"] if isinstance(payload["mky"], list) else [payload["mky"]]
    if len(items) > _MAX_FINGERPRINTS or not all(isinstance(item, dict) for item in items):
        raise IdentitySyntaxError("mky is no list of keys")
    pairs = [(_text(item, "alg").lower(), _text(item, "dig").replace(":", "").upper()) for item in items]
    return tuple(sorted(pairs, key=lambda pair: (pair[0] + pair[1]).encode("utf-8", "replace")))


# ---- verifying ---------------------------------------------------------------------------------------------


def verify_full(key: VerifyingKey | None, identity: IdentityHeader) -> bool:
    """Whether the signature is that of ``key`` over header and payload as they were sent; None never is one."""
    return _verify(key, f"{identity.header}.{identity.payload}", identity.signature)


def verify_compact(key: VerifyingKey | None, identity: IdentityHeader, claims: Claims) -> bool:
    """Whether the signature is that of ``key`` over the token that ``claims`` make (RFC 8225 section 7)."""
    signed = f"{_written_header(identity.info, identity.ppt)}.{_written_payload(claims)}"
    return _verify(key, signed, identity.signature)


def _verify(key: VerifyingKey | None, signed: str, signature: str) -> bool:
    if key is None:
        return False
    try:
        octets = _octets(signature)
    except IdentitySyntaxError:
        return False
    if len(octets) != 64:
        return False
    r, s = int.from_bytes(octets[:32], "big"), int.from_bytes(octets[32:], "big")
    return key.verify(signed.encode("ascii"), encode_dss_signature(r, s))

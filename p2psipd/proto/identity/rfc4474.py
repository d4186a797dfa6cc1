"""The Identity and Identity-Info headers of RFC 4474: digest-string, signing, verifying.

A domain signs From, To, Call-ID, CSeq, Date, Contact and body of a request with the key of its certificate,
and Identity-Info says where the certificate is.  RFC 8224 obsoletes it under the same header name: a value
that begins with a quotation mark is of this kind (``is_rfc4474``).

Everything here is text and octets; the mapping from a request is ``proto.peering.identity``.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1

from p2psipd.proto.identity.header_parameters import IdentitySyntaxError, read_parameters

__all__ = [
    "ALGORITHM",
    "IdentityInfo",
    "IdentitySyntaxError",
    "digest_string",
    "is_rfc4474",
    "parse_identity",
    "parse_identity_info",
    "sign",
    "verify",
    "write_identity",
    "write_identity_info",
]

#: The one value of "alg" that was ever defined (RFC 4474 section 14.7).
ALGORITHM: Final = "rsa-sha1"

_MAX_SIGNATURE: Final = 4096
_MAX_INFO: Final = 2048
_WHITE: Final = re.compile(r"[ \t\r\n]++")
_INFO: Final = re.compile(r"\s*+<([^<>\s\"]++)>\s*+(;.*+)?+", re.DOTALL)
# sha1WithRSAEncryption is all that this header can carry; nobody may choose a weaker or a stronger one.
_HASH: Final = SHA1()
_PADDING: Final = PKCS1v15()


class IdentityInfo(NamedTuple):
    """Where the certificate is, and the algorithm in lower case ("" where the parameter is missing)."""

    uri: str
    algorithm: str


def is_rfc4474(identity: str) -> bool:
    """Whether the value of an Identity header is of this kind, and not a token of RFC 8224."""
    return identity.lstrip().startswith('"')


def digest_string(
    from_uri: str, to_uri: str, call_id: str, cseq: int, method: str, date: str, contact: str, body: bytes
) -> bytes:
    """The octets that are signed (RFC 4474 section 9).

    URIs are the addr-specs as they stand in the headers, ``date`` the canonical form of ``parse_sip_date``,
    ``contact`` "" where there is none, ``body`` everything behind the empty line.
    """
    head = f"{from_uri}|{to_uri}|{call_id}|{cseq} {method}|{date}|{contact}|"
    return head.encode("utf-8", "surrogateescape") + body


def sign(key: RSAPrivateKey, digest: bytes) -> bytes:
    """The signature over a digest-string, always the same for the same input; 0.4 ms for 2048 bits."""
    return key.sign(digest, _PADDING, _HASH)


def verify(key: object, digest: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over a digest-string was made with ``key``; False for a key that is not RSA."""
    if not isinstance(key, RSAPublicKey):
        return False
    try:
        key.verify(signature, digest, _PADDING, _HASH)
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def write_identity(signature: bytes) -> str:
    """The value of the Identity header."""
    return f'"{b64encode(signature).decode("ascii")}"'


def write_identity_info(uri: str) -> str:
    """The value of the Identity-Info header."""
    return f"<{uri}>;alg={ALGORITHM}"


def parse_identity(value: str) -> bytes:
    """The signature in an Identity header, folded or not.  Raises IdentitySyntaxError."""
    text = value.strip()
    if len(text) > _MAX_SIGNATURE or len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise IdentitySyntaxError("not a quoted signature")
    try:
        return b64decode(_WHITE.sub("", text[1:-1]), validate=True)
    except (Base64Error, ValueError):
        raise IdentitySyntaxError("not base64") from None


def parse_identity_info(value: str) -> IdentityInfo:
    """URI and algorithm of an Identity-Info header.  Raises IdentitySyntaxError.

    "alg" must be written (section 9), but signers are known that leave it out: they get the one there is.
    """
    match = _INFO.fullmatch(value) if len(value) <= _MAX_INFO else None
    if match is None:
        raise IdentitySyntaxError("not <URI> and parameters")
    return IdentityInfo(match[1], read_parameters(match[2] or "").get("alg", "").lower())

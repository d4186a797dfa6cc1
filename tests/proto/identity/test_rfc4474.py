"""RFC 4474: the examples of its Appendix B byte for byte, and the forms of its headers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity import rfc4474
from p2psipd.proto.identity.rfc4474 import IdentitySyntaxError, digest_string, parse_identity, parse_identity_info
from p2psipd.proto.identity.sip_date import parse_sip_date, write_sip_date
from p2psipd.proto.sip.message import Request, parse_message
from tests.proto.identity.domain_certificates import ec_key

VECTORS = Path(__file__).parents[2] / "vectors" / "rfc4474"
# What the signer of the BYE added: the message before had no Date.
SIGNED_AT = "Thu, 21 Feb 2002 14:19:51 GMT"
EXAMPLES = (("invite", "atlanta"), ("bye", "biloxi"))


def example(name: str, kind: str = "message") -> Request:
    octets = (VECTORS / f"{name}.{kind}").read_bytes()
    # The printed Content-Length counts line ends as one, and the BYE lacks its empty line.
    octets = re.sub(rb"Content-Length: .*\r\n", b"", octets)
    message = parse_message(octets if b"\r\n\r\n" in octets else octets + b"\r\n")
    assert isinstance(message, Request)
    return message


def digest_of(request: Request) -> bytes:
    return digest_string(
        request.from_.uri_text,
        request.to.uri_text,
        request.call_id,
        request.cseq.number,
        request.method,
        parse_sip_date(request.get("Date") or SIGNED_AT).text,
        request.contacts[0].uri_text if request.contacts else "",
        request.body,
    )


@pytest.mark.parametrize(("name", "domain"), EXAMPLES)
def test_peering_059_the_signatures_of_the_rfc_are_reproduced(name: str, domain: str) -> None:
    """Canonical string, hash and signature of both examples come out byte for byte."""
    digest = digest_of(example(name))
    assert digest == (VECTORS / f"{name}.canonical").read_bytes()
    assert hashlib.sha1(digest).hexdigest() in (VECTORS / f"{name}.sha1").read_text()
    key = load_pem_private_key((VECTORS / f"{domain}.privkey").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    signature = rfc4474.sign(key, digest)
    assert signature == (VECTORS / f"{name}.signed").read_bytes()
    written = "".join((VECTORS / f"{name}.signed.enc").read_text().split())
    assert rfc4474.write_identity(signature) == f'"{written}"'


@pytest.mark.parametrize(("name", "domain"), EXAMPLES)
def test_peering_079_the_folded_headers_of_the_rfc_verify(name: str, domain: str) -> None:
    """The signed messages verify with the printed key, folded as they are."""
    request = example(name, "identity")
    key = load_pem_public_key((VECTORS / f"{domain}.pubkey").read_bytes())
    identity = request.get("Identity")
    assert identity is not None and rfc4474.is_rfc4474(identity)
    signature = parse_identity(identity)
    assert rfc4474.verify(key, digest_of(request), signature)
    assert not rfc4474.verify(key, digest_of(request) + b" ", signature)
    assert not rfc4474.verify(ec_key().public_key(), digest_of(request), signature)
    info = parse_identity_info(request.get("Identity-Info") or "")
    assert info.algorithm == "rsa-sha1" and info.uri.endswith(f"/{domain}.cer")


def test_dates_are_made_canonical() -> None:
    """One space each, the RFC's capitals; seconds since 1970; nothing else is a date."""
    expected = "Thu, 21 Feb 2002 13:02:03 GMT"
    assert parse_sip_date("thu,  21 FEB\t2002 13:02:03 gmt").text == expected
    assert write_sip_date(parse_sip_date(expected).seconds) == expected
    for wrong in ("", "Thu, 31 Feb 2002 13:02:03 GMT", "Thu, 21 Feb 2002 13:02:03 CET", "1", expected * 3):
        with pytest.raises(ValueError):
            parse_sip_date(wrong)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<https://a.test/a.cer>;alg=rsa-sha1", ("https://a.test/a.cer", "rsa-sha1")),
        ('<http://a.test/a.cer> ; x="a;alg=b" ; ALG = RSA-SHA1', ("http://a.test/a.cer", "rsa-sha1")),
        ("<https://a.test/a.cer>", ("https://a.test/a.cer", "")),
    ],
)
def test_identity_info_is_read(value: str, expected: tuple[str, str]) -> None:
    """URI in brackets and the alg parameter, which some signers leave out."""
    assert parse_identity_info(value) == expected


@pytest.mark.parametrize("value", ["", "https://a.test/", "<>;alg=rsa-sha1", "<https://a.test/>;alg=a;alg=b", "<a b>"])
def test_identity_info_that_is_none(value: str) -> None:
    """What has no URI in brackets, or alg twice, is a fault."""
    with pytest.raises(IdentitySyntaxError):
        parse_identity_info(value)


@given(st.text(max_size=100))
def test_any_header_value_raises_one_error(text: str) -> None:
    """Whatever stands in the headers, only this package's error comes out."""
    for parse in (parse_identity, parse_identity_info):
        try:
            parse(text)
        except IdentitySyntaxError:
            continue

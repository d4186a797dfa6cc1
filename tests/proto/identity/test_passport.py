"""PASSporT tokens: canonical forms, both forms of the header, and what other programs say of our tokens."""

from __future__ import annotations

import json
import subprocess
import time
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey
from jwcrypto import jwk as jwcrypto_jwk
from jwcrypto import jws as jwcrypto_jws

from p2psipd.proto.identity.p256 import VerifyingKey
from p2psipd.proto.identity.passport import (
    Claims,
    Identifier,
    IdentityHeader,
    IdentitySyntaxError,
    canonical_number,
    identify,
    media_keys,
    parse_identity_header,
    read_full_token,
    same_identifier,
    says_exactly,
    sign,
    verify_compact,
    verify_full,
    write_identity_header,
)
from p2psipd.proto.identity.policy import read_certificate
from p2psipd.proto.identity.tn_auth_list import NumberAuthority, number_authority, parse_tn_auth_list
from tests.proto.identity.domain_certificates import TestAuthority, dns, ec_key, pem, rsa_key

INFO = "https://a.test/identity.pem"
KEY = ec_key(1)
CLAIMS = Claims(Identifier("tn", "12155550121"), (Identifier("uri", "sip:bob@b.test"),), 1443208345)
SHAKEN_CLAIMS = Claims(
    Identifier("tn", "12155550121"),
    (Identifier("tn", "12155550131"),),
    1443208345,
    attest="A",
    origid="123e4567-e89b-12d3-a456-426655440000",
)


def decoded(part: str) -> str:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (("tel", "+1-215-555-0121", "", False), ("tn", "12155550121")),
        (("sip", "+12155550121", "a.test", False), ("tn", "12155550121")),
        (("sip", "12155551212", "example.com", True), ("tn", "12155551212")),
        (("sip", "12155551212", "example.com", False), ("uri", "sip:12155551212@example.com")),
        (("sip", "+1(215)555.0121;isub=7", "a.test", True), ("tn", "12155550121")),
        (
            ("sip", "4092;phone-context=+12125554000", "a.test", True),
            ("uri", "sip:4092;phone-context=+12125554000@a.test"),
        ),
        (("tel", "911", "", False), ("uri", "tel:911")),
        (("sip", "Alice%41%2F%2d", "A.Test", False), ("uri", "sip:alicea%2F-@a.test")),
        (("SIPS", "alice", "2001:db8::1", False), ("uri", "sips:alice@[2001:db8::1]")),
        (("sip", "", "a.test", False), ("uri", "sip:a.test")),
    ],
)
def test_canonical_identities(uri: tuple[str, str, str, bool], expected: tuple[str, str]) -> None:
    """RFC 8224 sections 8.1, 8.3 and 8.5: numbers to digits, URIs to scheme:user@host in lower case."""
    assert identify(*uri) == expected


def test_serialisation_is_deterministic() -> None:
    """No white space, keys in order at all levels, integers (RFC 8225 section 9); twice the same is the same."""
    made = sign(KEY, INFO, CLAIMS._replace(mky=(("sha-256", "021A"), ("sha-256", "4AAD"))))
    assert decoded(made.header) == '{"alg":"ES256","typ":"passport","x5u":"https://a.test/identity.pem"}'
    assert decoded(made.payload) == (
        '{"dest":{"uri":["sip:bob@b.test"]},"iat":1443208345,'
        '"mky":[{"alg":"sha-256","dig":"021A"},{"alg":"sha-256","dig":"4AAD"}],"orig":{"tn":"12155550121"}}'
    )
    assert sign(KEY, INFO, CLAIMS) == sign(KEY, INFO, CLAIMS)


def test_media_keys_are_sorted_and_each_once() -> None:
    """The example of RFC 8225 section 5.2.2, with one line twice and line ends of both kinds."""
    body = (
        b"v=0\r\na=fingerprint:sha-256 4A:AD:B9\r\nm=audio 9 RTP/AVP 0\r\n"
        b"a=fingerprint:SHA-256 02:1A:CC\na=fingerprint:sha-256 4a:ad:b9\r\na=fingerprint: \r\n"
    )
    assert media_keys(body) == (("sha-256", "021ACC"), ("sha-256", "4AADB9"))
    assert media_keys(b"a=rtpmap:0 PCMU/8000") == ()


@pytest.mark.parametrize("claims", [CLAIMS, SHAKEN_CLAIMS])
def test_full_and_compact_forms_verify(claims: Claims) -> None:
    """A header written and read again verifies in both forms; any other claim does not."""
    made = sign(KEY, INFO, claims)
    full = parse_identity_header(write_identity_header(made))
    assert full == made and not full.compact
    assert verify_full(VerifyingKey(KEY.public_key()), full)
    assert read_full_token(full).claims == claims
    compact = parse_identity_header(write_identity_header(made._replace(header="", payload="")))
    assert compact.compact
    assert verify_compact(VerifyingKey(KEY.public_key()), compact, claims)
    assert not verify_compact(VerifyingKey(KEY.public_key()), compact, claims._replace(iat=claims.iat + 1))
    assert not verify_full(VerifyingKey(ec_key(2).public_key()), full)
    for odd in (rsa_key(), ec.generate_private_key(ec.SECP384R1())):
        certificate = read_certificate(TestAuthority().issue(dns("a.test"), odd))
        assert certificate.verifying_key is None and not verify_full(certificate.verifying_key, full)
    assert not verify_full(VerifyingKey(KEY.public_key()), full._replace(signature=full.signature[:-4]))


def _texts() -> st.SearchStrategy[str]:
    return st.text(max_size=20)


@given(
    st.sampled_from(["tn", "uri"]),
    _texts(),
    st.lists(st.tuples(st.sampled_from(["tn", "uri"]), _texts()), min_size=1, max_size=3),
    st.lists(st.tuples(_texts(), _texts()), max_size=2),
    st.sampled_from(["", "A"]),
    _texts(),
)
def test_what_is_written_is_deterministic_json(
    kind: str, value: str, dest: list[tuple[str, str]], mky: list[tuple[str, str]], attest: str, info: str
) -> None:
    """Any claims are written as a JSON library writes them without white space and with sorted keys, and a token that
    was written so, and no other, is known without being read.
    """
    orig, called = Identifier(kind, value), tuple(Identifier(*one) for one in dest)
    claims = Claims(orig, called, 1443208345, tuple(mky), attest, "id" if attest else "")
    made = sign(KEY, info, claims)
    expected: dict[str, object] = {"iat": claims.iat, "orig": {kind: value}}
    expected["dest"] = {name: [text for one, text in dest if one == name] for name in {one for one, _ in dest}}
    if mky:
        expected["mky"] = [{"alg": alg, "dig": dig} for alg, dig in mky]
    if attest:
        expected |= {"attest": attest, "origid": "id"}
    written = json.dumps(expected, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    assert decoded(made.payload) == written
    assert json.loads(decoded(made.header))["x5u"] == info
    assert says_exactly(made, claims)
    assert not says_exactly(made, claims._replace(iat=claims.iat + 1))
    assert not says_exactly(made, claims._replace(attest="B", origid="id"))
    assert not says_exactly(made._replace(ppt="div"), claims)
    assert not says_exactly(made._replace(info=info + "x"), claims)
    assert not says_exactly(made._replace(header=made.header[:-1]), claims)


def test_headers_as_they_come_in_the_wild() -> None:
    """Parameters in any order, ppt quoted or not, info folded, white space around."""
    made = sign(KEY, INFO, SHAKEN_CLAIMS)
    token = f"{made.header}.{made.payload}.{made.signature}"
    for value in (
        f'{token};ppt="shaken";alg=ES256;info=<{INFO}>',
        f"{token} ; info=<{INFO}> ; ppt = Shaken",
        f"{token};info=<{INFO}>;ppt=shaken;x",
    ):
        assert parse_identity_header(value) == made
    assert parse_identity_header("..c2ln;alg=ES256").info == ""


@pytest.mark.parametrize(
    "value", ["", '"abc"', "a.b", "a..b;info=<x>", "a.b.c info=<x>", "..;info=<x>", "..c;info=<x>;info=<y>"]
)
def test_headers_that_are_none(value: str) -> None:
    """What is neither the full nor the compact form is a fault."""
    with pytest.raises(IdentitySyntaxError):
        parse_identity_header(value)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"{",
        b"[" * 5000,
        b'{"iat":1,"iat":2,"orig":{"tn":"1"},"dest":{"tn":["2"]}}',
        b'{"iat":1,"orig":{"tn":["1","3"]},"dest":{"tn":["2"]}}',
        b'{"iat":true,"orig":{"tn":"1"},"dest":{"tn":["2"]}}',
        b'{"iat":1,"orig":{"tn":1},"dest":{"tn":["2"]}}',
        b'{"iat":1,"orig":{"tn":"1"}}',
        b'{"iat":1,"orig":{"tn":"1"},"dest":{"tn":["2"]},"mky":3}',
    ],
)
def test_payloads_that_are_no_passport(payload: bytes) -> None:
    """Every malformed payload raises the one error."""
    from base64 import urlsafe_b64encode

    text = urlsafe_b64encode(payload).rstrip(b"=").decode()
    header = sign(KEY, INFO, CLAIMS).header
    with pytest.raises(IdentitySyntaxError):
        read_full_token(IdentityHeader(header, text, "c2ln", INFO, "ES256", ""))


def test_peering_090_a_plus_in_numbers_is_tolerated() -> None:
    """Reading is liberal: "+1..." in a token is the number that the request shows, marked as one or not."""
    ours = identify("tel", "+12155550121", "", False)
    assert same_identifier(ours, "+12155550121", Identifier("tn", "+1-215-555-0121"))
    unmarked = identify("sip", "12155550121", "a.test", False)
    assert same_identifier(unmarked, "12155550121", Identifier("tn", "12155550121"))
    assert not same_identifier(unmarked, "12155550121", Identifier("tn", "12155550122"))
    assert not same_identifier(identify("sip", "alice", "a.test", False), "alice", Identifier("tn", ""))
    assert not same_identifier(ours, "+12155550121", Identifier("uri", "sip:+12155550121@a.test"))


@given(st.text(max_size=120))
def test_any_header_value_raises_one_error(text: str) -> None:
    """Whatever stands in the header, only this package's error comes out."""
    try:
        identity = parse_identity_header(text)
        read_full_token(identity)
    except IdentitySyntaxError:
        return


# RFC 8224 section 4.1.1, and the key of RFC 8225 appendix A.2 with which it was made.
RFC_TOKEN = (
    "eyJhbGciOiJFUzI1NiIsInR5cCI6InBhc3Nwb3J0IiwieDV1IjoiaHR0cHM6Ly9jZXJ0LmV4YW1wbGUub3JnL3Bhc3Nwb3J0LmNlciJ9."
    "eyJkZXN0Ijp7InVyaSI6WyJzaXA6YWxpY2VAZXhhbXBsZS5jb20iXX0sImlhdCI6IjE0NDMyMDgzNDUiLCJvcmlnIjp7InRuIjoiMTIxNTU1"
    "NTEyMTIifX0.rq3pjT1hoRwakEGjHCnWSwUnshd0-zJ6F1VOgFWSjHBr8Qjpjlk-cpFYpFYsojNCpTzO3QfPOlckGaS6hEck7w"
    ";info=<https://biloxi.example.org/biloxi.cert>"
)
RFC_KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8HNbQd/TmvCKwPKHkMF9fScavGeH
78YTU8qLS8I5HLHSSmlATLcslQMhNC/OhlWBYC626nIlo7XeebYS7Sb37g==
-----END PUBLIC KEY-----
"""


def test_the_token_of_the_rfc_verifies() -> None:
    """The full form printed in RFC 8224 verifies with the printed key, its iat written as a string; the
    compact form does not, as that string cannot be made again.
    """
    header = parse_identity_header(RFC_TOKEN)
    key = VerifyingKey(load_pem_public_key(RFC_KEY))  # type: ignore[arg-type]
    assert header.info == "https://biloxi.example.org/biloxi.cert"
    assert verify_full(key, header)
    token = read_full_token(header)
    assert token.x5u == "https://cert.example.org/passport.cer"
    assert token.claims == Claims(
        Identifier("tn", "12155551212"), (Identifier("uri", "sip:alice@example.com"),), 1443208345
    )
    assert not verify_compact(key, header._replace(header="", payload="", info=token.x5u), token.claims)


def test_joserfc_and_jwcrypto_agree() -> None:
    """Two other libraries verify our tokens, and we verify theirs over the same octets."""
    made = sign(KEY, INFO, SHAKEN_CLAIMS)
    token = f"{made.header}.{made.payload}.{made.signature}"
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    seen = jws.deserialize_compact(token, ECKey.import_key(public), algorithms=["ES256"], registry=LIBERAL)
    assert json.loads(seen.payload)["origid"] == SHAKEN_CLAIMS.origid
    other = jwcrypto_jws.JWS()
    other.deserialize(token)
    other.verify(jwcrypto_jwk.JWK.from_pem(public))
    theirs = jwcrypto_jws.JWS(decoded(made.payload))
    theirs.add_signature(jwcrypto_jwk.JWK.from_pem(pem(KEY)), None, decoded(made.header))
    header, payload, signature = theirs.serialize(compact=True).split(".")
    assert (header, payload) == (made.header, made.payload)
    assert verify_full(VerifyingKey(KEY.public_key()), made._replace(signature=signature))


class _Liberal(jws.JWSRegistry):
    """ "ppt" is no header that the library knows."""

    def check_header(self, header: dict[str, object]) -> None:
        assert header["ppt"] == "shaken"


LIBERAL = _Liberal()


@pytest.mark.foreign("secsipidx")
def test_secsipidx_agrees(tmp_path: Path) -> None:
    """The program behind Kamailio's secsipid checks our full token, and signs one that we verify and read."""
    private = tmp_path / "key.pem"
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    public = tmp_path / "public.pem"
    public.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    ours = tmp_path / "identity"
    claims = SHAKEN_CLAIMS._replace(iat=int(time.time()))
    ours.write_text(write_identity_header(sign(KEY, INFO, claims)))
    check = ["secsipidx", "-c", "-fidentity", str(ours), "-fpubkey", str(public), "-expire", "60"]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0 and "ok" in checked.stdout + checked.stderr
    ours.write_text(write_identity_header(sign(ec_key(2), INFO, claims)))
    assert subprocess.run(check, capture_output=True).returncode != 0
    command = ["secsipidx", "-sign-full", "-o", "12155550121", "-d", "12155550131", "-a", "B"]
    command += ["-x5u", INFO, "-k", str(private)]
    theirs = parse_identity_header(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    assert verify_full(VerifyingKey(KEY.public_key()), theirs)
    token = read_full_token(theirs)
    assert (token.ppt, token.claims.attest, token.x5u) == ("shaken", "B", INFO)
    assert canonical_number(token.claims.dest[0].value) == "12155550131"


# SEQUENCE { [0] "709J", [1] { "12155551000", 1000 }, [2] "442079460000" }, by hand.
LIST = bytes.fromhex("302da00616043730394aa1133011160b3132313535353531303030020203e8a20e160c")
LIST += b"442079460000"


def test_number_authority_of_a_certificate() -> None:
    """TNAuthList (RFC 8226): providers, ranges and single numbers; a certificate without it has none."""
    ca = TestAuthority()
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.26"), LIST)
    certificate = x509.load_der_x509_certificate(ca.issue(dns("a.test"), extra=[(extension, False)]))
    found = number_authority(certificate)
    assert found == NumberAuthority(frozenset({"709J"}), (("12155551000", 1000), ("442079460000", 1)))
    assert found.covers("12155551999") and found.covers("442079460000")
    assert not found.covers("12155552000") and not found.covers("2155551000") and not found.covers("#12155551000")
    assert number_authority(x509.load_der_x509_certificate(ca.issue(dns("a.test")))) is None


@given(st.integers(0, len(LIST) - 1), st.integers(0, 255))
def test_damaged_lists_raise_one_error(position: int, octet: int) -> None:
    """A damaged TNAuthList raises ValueError or is another list."""
    damaged = LIST[:position] + bytes((octet,)) + LIST[position + 1 :]
    for octets in (damaged, LIST[:position]):
        try:
            parse_tn_auth_list(octets)
        except ValueError:
            continue

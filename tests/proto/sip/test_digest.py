"""Digest authentication (RFC 2617, RFC 7616, RFC 8760) from both sides."""

from __future__ import annotations

import hashlib
import random
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.sip.digest import (
    _HASHES,
    Algorithm,
    Challenge,
    Credentials,
    NonceCounts,
    NonceIssuer,
    NonceState,
    answer,
    challenges,
    choose,
    ha1,
    verify,
)
from p2psipd.proto.sip.errors import MalformedMessage, SipError
from p2psipd.proto.sip.shared_secret import OwnSecret

KEY = OwnSecret(b"key")


def state(issuer: NonceIssuer, nonce: str, wall: float) -> NonceState:
    return issuer.open(nonce, wall).state


RFC2617 = (
    'Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
    'uri="/dir/index.html", qop=auth, nc=00000001, cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1", '
    'opaque="5ccc069c403ebaf9f0171e9517f40e41"'
)
RFC7616 = (
    'Digest username="Mufasa",\r\n realm="http-auth@example.org",\r\n uri="/dir/index.html",\r\n algorithm={},\r\n'
    ' nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001,'
    ' cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="{}",'
    ' opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


@pytest.mark.parametrize(
    ("text", "algorithm", "password"),
    [
        (RFC2617, Algorithm.MD5, "Circle Of Life"),
        (RFC7616.format("MD5", "8ca523f5e9506fed4657c9700eebdbec"), Algorithm.MD5, "Circle of Life"),
        (
            RFC7616.format("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
            Algorithm.SHA_256,
            "Circle of Life",
        ),
    ],
    ids=["rfc2617-3.5", "rfc7616-3.9.1-md5", "rfc7616-3.9.1-sha256"],
)
def test_rfc_examples(text: str, algorithm: Algorithm, password: str) -> None:
    """The RFCs' own responses are accepted, and with another password, method or body of the value refused."""
    credentials = Credentials.parse(text)
    secret = ha1(algorithm, "Mufasa", credentials.realm, password)
    assert credentials.algorithm is algorithm and credentials.nc == 1
    assert verify(credentials, "GET", secret)
    assert not verify(credentials, "POST", secret)
    assert not verify(credentials, "GET", ha1(algorithm, "Mufasa", credentials.realm, password + "x"))
    assert not verify(credentials._replace(uri="/dir/other.html"), "GET", secret)
    assert not verify(credentials._replace(nc_text="00000002"), "GET", secret)


def test_sha_512_256() -> None:
    """SHA-512-256 is SHA-512/256 of FIPS 180-4 (its example "abc"), in 64 hex digits (RFC 8760 section 2.2)."""
    assert _HASHES[Algorithm.SHA_512_256](b"abc") == "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"
    assert len(ha1(Algorithm.SHA_512_256, "a", "b", "c")) == 64


def test_rfc7616_3_9_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The RFC's SHA-512-256 example was computed with SHA-512 cut to 256 bits: with that hash, and only so, it fits."""
    credentials = Credentials.parse(
        'Digest username*=UTF-8\'\'J%C3%A4s%C3%B8n%20Doe, realm="api@example.org", uri="/doe.json",'
        ' algorithm=SHA-512-256, nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK", nc=00000001,'
        ' cnonce="NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v", qop=auth,'
        ' response="ae66e67d6b427bd3f120414a82e4acff38e8ecd9101d6c861229025f607a79dd"'
    )
    assert credentials.username == "Jäsøn Doe"
    user, realm, password = credentials.username, credentials.realm, "Secret, or not?"
    assert not verify(credentials, "GET", ha1(Algorithm.SHA_512_256, user, realm, password))
    monkeypatch.setitem(_HASHES, Algorithm.SHA_512_256, lambda data: hashlib.sha512(data).hexdigest()[:64])
    assert verify(credentials, "GET", ha1(Algorithm.SHA_512_256, user, realm, password))


def test_rfc8760_empty_body() -> None:
    """qop=auth-int hashes the body; without one, the empty string (RFC 8760 section 2.6, bullet 7)."""
    challenge = Challenge("r", "n", Algorithm.SHA_256, ("auth-int",))
    credentials = Credentials.parse(answer(challenge, "u", "p", "INVITE", "sip:a@b", "c"))
    secret = ha1(Algorithm.SHA_256, "u", "r", "p")
    assert credentials.qop == "auth-int" and verify(credentials, "INVITE", secret)
    assert not verify(credentials, "INVITE", secret, b"changed")


@given(
    st.sampled_from(Algorithm),
    st.sampled_from([("auth",), (), ("auth-int", "auth"), ("auth-int",)]),
    st.booleans(),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=20),
    st.integers(1, 2**32 - 1),
)
def test_client_and_server_agree(
    algorithm: Algorithm, qop: tuple[str, ...], session: bool, user: str, password: str, body: bytes, nc: int
) -> None:
    """What answer() writes verify() accepts: every algorithm, qop, session form and user name."""
    challenge = Challenge('re"alm', "nonce", algorithm, qop, opaque="op", session=session)
    assert Challenge.parse(str(challenge)) == challenge
    text = answer(challenge, user, password, "REGISTER", "sip:h", "cn", nc, body)
    credentials = Credentials.parse(text)
    secret = ha1(algorithm, user, 're"alm', password)
    assert credentials.username == user and credentials.opaque == "op" and verify(credentials, "REGISTER", secret, body)
    assert answer(challenge, user, secret, "REGISTER", "sip:h", "cn", nc, body, is_ha1=True) == text


def test_challenges_and_choice() -> None:
    """One challenge an algorithm, the preferred one on top; the client takes the first that it understands."""
    offered = challenges("r", "n", (Algorithm.SHA_512_256, Algorithm.SHA_256, Algorithm.MD5), stale=True)
    assert [Challenge.parse(value).algorithm.value for value in offered] == ["SHA-512-256", "SHA-256", "MD5"]
    assert all(Challenge.parse(value).stale and Challenge.parse(value).qop == ("auth",) for value in offered)
    others = ["Basic realm=x", 'Digest realm="r", nonce="n", algorithm=SHA3-999', 'Digest realm="r"']
    best = choose([*others, *offered], (Algorithm.MD5, Algorithm.SHA_256))
    assert best is not None and best.algorithm is Algorithm.SHA_256 and choose(others) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Basic dTpw",
        "Digest",
        'Digest username="a"',
        RFC2617.replace("nc=00000001", "nc=1"),
        RFC2617.replace("nc=00000001", "nc=00000000"),
        RFC2617.replace("qop=auth", "qop=other"),
        RFC2617 + ', realm="twice"',
        RFC2617.replace('"0a4f113b"', '""'),
        RFC2617 + ", algorithm=unknown",
        RFC2617.replace('"Mufasa"', '"Mufasa'),
        RFC2617.replace("username=", "username*="),
        RFC2617 + ", x" * 5000,
        "NoOneKnowsThisScheme opaque-data=here",
    ],
)
def test_malformed_credentials(text: str) -> None:
    """Credentials that are incomplete, of another scheme or of unknown algorithm are refused."""
    with pytest.raises(MalformedMessage):
        Credentials.parse(text)


def test_extended_user_name() -> None:
    """username* carries UTF-8 (RFC 7616 section 3.4)."""
    text = RFC2617.replace('username="Mufasa"', "username*=UTF-8''J%C3%A4s%C3%B8n%20Doe")
    assert Credentials.parse(text).username == "Jäsøn Doe"


@given(st.text())
def test_arbitrary_text(text: str) -> None:
    """Any text gives a value or SipError."""
    for parse in (Credentials.parse, Challenge.parse):
        for prefix in ("", "Digest ", 'Digest realm="r", nonce="n", uri="u", response="x", username="y", '):
            try:
                parse(prefix + text)
            except SipError:
                continue


def test_long_credentials_are_bounded(within_10_ms: None) -> None:
    """64 KB of parameters cost at most 10 ms."""
    for text in (
        "Digest " + "a=b," * 16000,
        'Digest a="' + "\\a" * 30000,
        "Digest " + " " * 60000,
        "Digest " + "a" * 8000,
    ):
        with pytest.raises(MalformedMessage):
            Credentials.parse(text)


def test_nonce_life() -> None:
    """A nonce is valid for its lifetime, then stale, at every registrar that shares the key; else forged."""
    source = random.Random(1)
    here, there = NonceIssuer(KEY, 300, b"here"), NonceIssuer(KEY, 300, b"there")
    nonce = here.issue(1000.0, source)
    assert state(here, nonce, 1000.0) is NonceState.VALID and state(here, nonce, 1300.0) is NonceState.VALID
    assert state(here, nonce, 1300.1) is NonceState.STALE and state(here, nonce, 900.0) is NonceState.STALE
    assert there.open(nonce, 1000.0) == (NonceState.VALID, 1000.0, True, False, 1000.0)
    assert state(there, nonce, 1300.1) is NonceState.STALE
    assert state(NonceIssuer(OwnSecret(b"other")), nonce, 1000.0) is NonceState.FORGED
    assert state(NonceIssuer(KEY, 300, b"here"), nonce, 1000.0) is NonceState.VALID, "survives a restart"
    assert here.issue(1000.0, source) != nonce


def test_nonce_of_another_address() -> None:
    """A nonce serves the address that it was given to; presented from another one it is stale and says so."""
    issuer = NonceIssuer(KEY)
    nonce = issuer.issue(1000.0, random.Random(1), "192.0.2.7")
    assert issuer.open(nonce, 1000.0, "192.0.2.7") == (NonceState.VALID, 1000.0, True, True, 1000.0)
    assert issuer.open(nonce, 1000.0, "192.0.2.8") == (NonceState.STALE, 1000.0, False, True, 1000.0)


def test_nobody_can_look_for_an_address_like_another() -> None:
    """What stands for an address in a nonce depends on the key; the one that signed it is the one that counts."""
    keys = (b"one", b"two")
    makers = [NonceIssuer(OwnSecret(key)) for key in keys]
    nonces = [each.issue(1000.0, random.Random(1), "192.0.2.7") for each in makers]
    marks = {urlsafe_b64decode(nonce)[12:16] for nonce in nonces}
    assert len(marks) == 2
    for maker, nonce in zip(makers, nonces, strict=True):
        assert [maker.open(nonce, 1000.0, host).for_source for host in ("192.0.2.7", "192.0.2.8")] == [True, False]


def test_a_new_epoch() -> None:
    """After a change of the shared key the nonces that the old one signed are still known, as long as it is given."""

    class Epochs:
        given: tuple[bytes, ...] = (b"one",)

        def keys(self, purpose: str) -> tuple[bytes, ...]:
            return self.given

    epochs = Epochs()
    issuer = NonceIssuer(epochs)
    nonce = issuer.issue(1000.0, random.Random(1))
    epochs.given = (b"two", b"one")
    assert state(issuer, nonce, 1000.0) is NonceState.VALID
    later = issuer.issue(1000.0, random.Random(1))
    epochs.given = (b"two",)
    assert state(issuer, nonce, 1000.0) is NonceState.FORGED and state(issuer, later, 1000.0) is NonceState.VALID


@given(st.one_of(st.text(), st.text("ABab01-_=", min_size=48, max_size=48)))
def test_foreign_nonces_are_forged(text: str) -> None:
    """Whatever somebody makes up is forged, and raises nothing."""
    assert state(NonceIssuer(KEY), text, 0.0) is NonceState.FORGED


@given(st.lists(st.integers(1, 200), max_size=100))
def test_each_count_once(counts: list[int]) -> None:
    """No count of a nonce is accepted twice; a new highest one always is; one within the window once."""
    seen, highest, table = set(), 0, NonceCounts()
    for count in counts:
        accepted = table.accept("n", count, 1.0)
        assert not (accepted and count in seen)
        if count > highest:
            assert accepted
        elif count not in seen and highest - count < 64:
            assert accepted
        seen |= {count} if accepted else set()
        highest = max(highest, count)


def test_one_text_a_nonce() -> None:
    """A nonce is genuine in the letters in which it was given, and in no others that decode alike."""
    issuer, source = NonceIssuer(KEY), random.Random(1)
    texts = [issuer.issue(1000.0 + each, source) for each in range(40)]
    others = [text.replace("-", "+").replace("_", "/") for text in texts]
    for text, other in zip(texts, others, strict=True):
        assert state(issuer, other, 1000.0) is (NonceState.VALID if text == other else NonceState.FORGED)
    assert texts != others


def test_a_clock_that_is_set_back_refuses_nobody() -> None:
    """What was forgotten of nonces from later than now bars no nonce of now; it does again when the time has come."""
    table = NonceCounts(limit=10)
    for each in range(10):
        assert table.accept(f"before {each}", 1, 5000.0 + each, wall=5000.0 + each)
    for each in range(30):
        assert table.accept(f"after {each}", 1, 1000.0 + each, wall=1000.0 + each)
    assert not table.accept("after 0", 1, 1000.0, wall=1100.0), "forgotten"
    table = NonceCounts(limit=1)
    assert table.accept("a", 1, 5000.0, wall=5000.0) and table.accept("b", 1, 5001.0, wall=5001.0)
    assert table.accept("c", 1, 1000.0, wall=1000.0), "5000 bars it no more"
    assert not table.accept("a", 1, 5000.0, wall=5001.0), "but what is from then"


def test_counts_are_bounded() -> None:
    """The table forgets the oldest nonce, and accepts nothing of what it has forgotten."""
    table = NonceCounts(limit=100, since=10.0)
    for number in range(1000):
        assert table.accept(f"n{number}", 1, 11.0 + number)
    assert len(table) == 100 and not table.accept("n5", 1, 16.0) and not table.accept("n999", 1, 1010.0)
    assert table.accept("n999", 2, 1010.0)


@pytest.mark.parametrize(("issued_at", "own"), [(9.0, True), (11.0, False)])
def test_counts_of_which_not_all_were_seen(issued_at: float, own: bool) -> None:
    """Of a nonce of another registrar, or of before the start, the first count that comes is accepted and all higher
    ones, none twice and none below: they may have been used. Without a count nothing is accepted.
    """
    table = NonceCounts(since=10.0)
    assert not table.accept("n", 0, issued_at, own)
    assert table.accept("n", 7, issued_at, own)
    assert not any(table.accept("n", count, issued_at, own) for count in (7, 6, 1))
    assert table.accept("n", 9, issued_at, own) and table.accept("n", 8, issued_at, own)
    assert not any(table.accept("n", count, issued_at, own) for count in (9, 8, 7, 6))

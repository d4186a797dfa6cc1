"""Record-Route values between domains: every edge reads them, nobody else can make them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.peering.crossing import Crossings, mark_of
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.proto.sip.uri import SipUri, parse_uri

ONE, OTHER = Crossings(OwnSecret(b"k" * 32)), Crossings(OwnSecret(b"k" * 32))

MARK = mark_of("1@a.test", parse_uri("sip:alice@a.test"))


def token(value: str) -> str:
    uri = NameAddr.parse(value).uri
    assert isinstance(uri, SipUri) and uri.user is not None
    return uri.user


def test_peering_092_the_route_names_our_domain() -> None:
    """The host is our domain, without a port, and the value is loose; another edge reads the peer's domain in it."""
    uri = NameAddr.parse(ONE.value("a.test", "b.test", MARK)).uri
    assert isinstance(uri, SipUri) and (uri.host, uri.port, uri.lr) == ("a.test", None, True)
    assert OTHER.other(token(ONE.value("a.test", "b.test", MARK))) == "b.test"


@pytest.mark.parametrize(
    ("call_id", "party", "same"),
    [
        ("1@a.test", "sip:alice@A.test", True),
        ("1@a.test", "sips:%61lice@a.test:5061;transport=tcp", True),
        ("2@a.test", "sip:alice@a.test", False),
        ("1@a.test", "sip:carol@a.test", False),
        ("1@a.test", "sip:alice@b.test", False),
        ("1@a.test", "tel:+1212", False),
    ],
)
def test_peering_087_a_token_is_good_for_one_dialog(call_id: str, party: str, same: bool) -> None:
    """Every edge sees whether a token belongs to a Call-ID and a party of ours, however the party is written."""
    text = token(ONE.value("a.test", "b.test", MARK))
    assert OTHER.is_of(text, mark_of(call_id, parse_uri(party))) is same
    assert not OTHER.is_of(text[:-2] + "AA", MARK)


def test_forged_tokens() -> None:
    """A token of another key, a changed one, and other domains' users are nobody's."""
    good = token(ONE.value("a.test", "b.test", MARK))
    assert Crossings(OwnSecret(b"x" * 32)).other(good) is None
    assert ONE.other(good[:-2]) is None and ONE.other("x.") is None and ONE.other("alice") is None
    assert ONE.other("x." + "A" * 1000) is None


@given(st.text(max_size=60))
def test_any_user_part(text: str) -> None:
    """Any user part is read without an error, and is not ours."""
    assert ONE.other(text) is None and ONE.other("x." + text) is None


@pytest.mark.parametrize("key", [0, 1])
def test_a_new_epoch(key: int) -> None:
    """After a new key began, tokens of the old one are still read, and new ones are of the new key."""

    class Epochs:
        def __init__(self) -> None:
            self.held = (b"a" * 32,)

        def keys(self, purpose: str) -> tuple[bytes, ...]:
            return self.held

    epochs = Epochs()
    crossings = Crossings(epochs)
    old = token(crossings.value("a.test", "b.test", MARK))
    epochs.held = (b"b" * 32, b"a" * 32)
    new = token(crossings.value("a.test", "b.test", MARK))
    assert old != new and crossings.other((old, new)[key]) == "b.test"

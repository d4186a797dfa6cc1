"""URIs: parsing, comparison (RFC 3261 section 19.1.4, RFC 3966 section 5), addresses-of-record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.sip.errors import MalformedMessage, MalformedUri, SipError, UnsupportedScheme
from p2psipd.proto.sip.headers import NameAddr, Via, quote, split_list, unquote
from p2psipd.proto.sip.parameters import Parameters
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, TelUri, escape_user, parse_uri, unescape


def test_parts() -> None:
    """All parts of a SIP URI are found, and its text stays verbatim."""
    text = "sips:alice:p%40ss@Atlanta.Example.COM:5070;transport=TCP;lr;x=%41?subject=a&priority=urgent"
    uri = SipUri.parse(text)
    assert (uri.scheme, uri.user, uri.password, uri.host, uri.port) == (
        "sips",
        "alice",
        "p%40ss",
        "atlanta.example.com",
        5070,
    )
    assert uri.transport == "tcp" and uri.lr and uri.is_secure and uri.params.get("X") == "%41"
    assert uri.headers == "subject=a&priority=urgent" and str(uri) == text and uri.aor == "alice@atlanta.example.com"


# RFC 3261 section 19.1.4, its examples and rules.
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtlanTa.CoM;Transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
        ("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on"),
        (
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
        ),
        (
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
        ),
        ("sip:a@[2001:DB8::1]", "sip:a@[2001:db8::1]"),
        ("tel:+1-201-555-0123", "TEL:+12015550123"),
        ("tel:7042;phone-context=example.com", "tel:70-42;phone-context=EXAMPLE.com"),
        ("URN:service:sos", "urn:service:sos"),
    ],
)
def test_equal(left: str, right: str) -> None:
    """Equivalent URIs are equal and have equal hashes."""
    assert parse_uri(left) == parse_uri(right) and hash(parse_uri(left)) == hash(parse_uri(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
        ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
        ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
        ("sip:carol@chicago.com;security=off", "sip:carol@chicago.com;security=on"),
        ("sip:a@b", "sips:a@b"),
        ("sip:a%3Bb@c", "sip:a;b@c"),
        ("tel:+12015550123", "tel:12015550123"),
        ("tel:7042;phone-context=a.example", "tel:7042;phone-context=b.example"),
        ("urn:service:sos", "urn:service:SOS"),
    ],
)
def test_different(left: str, right: str) -> None:
    """URIs that differ in what counts are not equal."""
    assert parse_uri(left) != parse_uri(right)


@pytest.mark.parametrize(
    "text",
    [
        "sip:",
        "sip:@host",
        "sip:a@",
        "sip:a@b@c",
        "sip:a b@c",
        "sip:a@h:99999",
        "sip:a@h:x",
        "sip:%zz@h",
        "sip:a@[::1",
        "sip:a@[g::1]",
        "sip:a@[1:2:3]",
        "sip:a@h;",
        "sip:a@h;;x",
        "sip:ä@h",
        'sip:a@h;x="y"',
        "nonsense",
        "1:x",
        "",
        "tel:",
        "tel:abc xyz",
        "tel:+-",
        "http://a b",
        "sip:a@h\r\nX: y",
    ],
)
def test_malformed(text: str) -> None:
    """What is no URI raises MalformedUri (400)."""
    with pytest.raises(MalformedUri) as caught:
        parse_uri(text)
    assert caught.value.status == 400


def test_other_schemes() -> None:
    """A SIP URI is asked for by SipUri.parse: another scheme is 416; parse_uri keeps it as it is."""
    with pytest.raises(UnsupportedScheme) as caught:
        SipUri.parse("urn:service:sos")
    assert caught.value.status == 416
    assert isinstance(parse_uri("urn:service:sos"), OpaqueUri) and isinstance(parse_uri("tel:110"), TelUri)


@pytest.mark.parametrize(
    ("text", "aor"),
    [
        ("sip:bob@Example.COM:5080;transport=tcp", "bob@example.com"),
        ("sip:b%6Fb@h", "bob@h"),
        ("sip:Bob@h", "Bob@h"),
        ("sip:example.com", "example.com"),
        ("sip:user%40example.com@h", "user@example.com@h"),
        ("sip:%C3%A4@h", "ä@h"),
        ("sip:%ff%41@h", "%FFA@h"),
        ("sip:a%00b@h", "a\0b@h"),
        ("sip:a:secret@[::1]", "a@::1"),
    ],
)
def test_aor(text: str, aor: str) -> None:
    """The address-of-record is unescaped, its host in lower case, without port, password and parameters."""
    assert SipUri.parse(text).aor == aor


def test_edits() -> None:
    """Edits give new URIs; the old one stays."""
    uri = SipUri.parse("sip:a@h:5070;lr?x=y")
    assert str(uri.with_param("transport", "tcp")) == "sip:a@h:5070;lr;transport=tcp?x=y"
    assert str(uri.bare()) == "sip:a@h:5070" and str(uri.without_params("LR")) == "sip:a@h:5070?x=y"
    assert str(uri.replace(host="2001:db8::1", user=None)) == "sip:[2001:db8::1]:5070;lr?x=y"
    assert str(uri) == "sip:a@h:5070;lr?x=y"


@pytest.mark.parametrize("changes", [{"user": "a b"}, {"host": "h\r\nX:"}, {"port": 70000}, {"scheme": "http"}])
def test_edits_are_checked(changes: dict[str, object]) -> None:
    """No part can break out of the URI."""
    with pytest.raises(SipError):
        SipUri.parse("sip:a@h").replace(**changes)  # type: ignore[arg-type]


@given(st.text(max_size=30).filter(bool))
def test_escape_round_trip(user: str) -> None:
    """Any user name escapes to a URI that gives it back."""
    name = user.encode("utf-8", "replace").decode()
    assert SipUri("h", user=escape_user(name)).unescaped_user == name


@given(st.text())
def test_any_text_is_safe(text: str) -> None:
    """Whatever the text: a value or MalformedMessage, for every parser of this level."""
    for parse in (parse_uri, SipUri.parse, NameAddr.parse_list, Via.parse, Parameters.parse, split_list):
        try:
            parse(text)
        except SipError:
            continue
    assert isinstance(unescape(text), str) and isinstance(unquote(text), str)


@pytest.mark.parametrize(
    "text",
    [
        "sip:" + "a" * 60000,
        "sip:" + "%41" * 20000 + "@",
        "sip:a@" + "b." * 30000 + "!",
        "sip:h" + ";a" * 30000 + "?",
        "tel:" + "-" * 60000,
        "sip:" + "a:" * 30000,
    ],
)
def test_long_uris_are_linear(text: str, within_10_ms: object) -> None:
    """64 KB of anything costs at most 10 ms (measured by the fixture)."""
    try:
        parse_uri(text)
    except SipError:
        return


def test_name_addr_forms() -> None:
    """Display names, quoted or not; parameters after the bracket are the header's."""
    one = NameAddr.parse('"Mr. \\"W\\", x" <sip:w@h;a=b>;tag=1;+sip.instance="<urn:uuid:0,1>"')
    assert one.display == 'Mr. "W", x' and one.tag == "1" and str(one.uri) == "sip:w@h;a=b"
    assert one.params.get("+SIP.instance") == '"<urn:uuid:0,1>"'
    two = NameAddr.parse("sip:w@h;tag=2")
    assert two.tag == "2" and str(two.uri) == "sip:w@h" and str(two) == "sip:w@h;tag=2"
    assert str(NameAddr("sip:a@h", 'A "B"').with_param("q", "0.5")) == '"A \\"B\\"" <sip:a@h>;q=0.5'


def test_contact_list() -> None:
    """Commas inside quotes and brackets do not split."""
    found = NameAddr.parse_list('"A, a" <sip:a@x;p=1>;q=0.7 , <sip:b,c@y>;expires=10,sip:d@z')
    assert [str(address.uri) for address in found] == ["sip:a@x;p=1", "sip:b,c@y", "sip:d@z"]
    assert (found[0].q, found[1].expires, found[2].expires) == (0.7, 10, None)


@pytest.mark.parametrize("text", ["a,,b", ",a", "a,", 'a,"b', "a,<b"])
def test_bad_lists(text: str) -> None:
    """Empty members and unbalanced quotes or brackets are refused."""
    with pytest.raises(MalformedMessage):
        split_list(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("4294967296", 2**32 - 1), ("9" * 5000, 2**32 - 1), ("x", None)]
)
def test_contact_expires(text: str, seconds: int | None) -> None:
    """An expires beyond 32 bits is the largest one; one that is no number is as if absent (RFC 3261 10.2.1.1)."""
    assert NameAddr.parse(f"<sip:a@h>;expires={text}").expires == seconds


def test_via_marks() -> None:
    """received and rport are written as RFC 3581 section 4 says, the rest stays verbatim."""
    asked = Via.parse('SIP/2.0/UDP Host.example ;branch=z9hG4bKx;rport;Foo="a b"')
    marked = asked.stamped("192.0.2.9", 1024)
    assert str(marked) == 'SIP/2.0/UDP Host.example ;branch=z9hG4bKx;rport=1024;Foo="a b";received=192.0.2.9'
    assert (marked.rport, marked.received, marked.branch) == (1024, "192.0.2.9", "z9hG4bKx")
    assert Via.parse(str(marked)).params == marked.params
    same = Via.parse("SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKx")
    assert same.stamped("192.0.2.9", 1024) is same
    liar = Via.parse("SIP/2.0/UDP h;received=192.0.2.66;rport=7;branch=z9hG4bKx").stamped("192.0.2.9", 1024)
    assert (liar.received, liar.rport) == ("192.0.2.9", 1024)


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40))
def test_quote_round_trip(text: str) -> None:
    """Any text without line ends survives a quoted-string, alone and as a display name."""
    assert unquote(quote(text)) == text
    if text:
        assert NameAddr.parse(str(NameAddr("sip:a@h", text))).display == text


@pytest.mark.parametrize("value", ["a\r\nX: y", "a b", "a;b", "a,b", '"a'])
def test_parameters_are_checked(value: str) -> None:
    """A parameter value can neither end its parameter nor its header line."""
    with pytest.raises(MalformedMessage):
        Parameters().with_param("x", value)

"""Messages: reading, editing by whole lines, writing; bad input (RFC 3261 section 7)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2psipd.proto.sip.errors import MalformedMessage, SipError, UnsupportedVersion
from p2psipd.proto.sip.headers import CSeq, Via
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.uri import SipUri

BODY = b"v=0\r\ns=\xff\xfe\x00\r\n\r\nx"
INVITE = (
    b"INVITE sip:bob@biloxi.example.com SIP/2.0\r\n"
    b"v: SIP/2.0/UDP a.example.com;branch=z9hG4bKa1 , SIP/2.0/TCP b.example.com;branch=z9hG4bKb1\r\n"
    b"Via: SIP/2.0/TLS c.example.com;branch=z9hG4bKc1\r\n"
    b"Max-Forwards:70\r\n"
    b"X-Unknown:  kept,  as is ;;\r\n"
    b"Record-Route: <sip:p1.example.com;lr>,\r\n <sip:p2.example.com;lr>\r\n"
    b'f: "A. Lice" <sip:alice@atlanta.example.com>;tag=9fx\r\n'
    b"To: Bob <sip:bob@biloxi.example.com>\r\n"
    b"Call-ID: 3848@atlanta.example.com\r\n"
    b"CSeq: 2 INVITE\r\n"
    b"Route: <sip:r1.example.com;lr>, <sip:r2.example.com;lr>\r\n"
    b"Contact: <sip:alice@client.example.com>\r\n"
    b"Supported: \r\n"
    b"Timestamp: 54\r\n"
    b"Content-Type: application/sdp\r\n"
    b"l: %d\r\n\r\n" % len(BODY) + BODY
)


def invite() -> Request:
    message = parse_message(INVITE)
    assert isinstance(message, Request)
    return message


def test_reading() -> None:
    """Typed values, compact names, joined and repeated headers."""
    message = invite()
    message.check()
    assert [via.host for via in message.vias] == ["a.example.com", "b.example.com", "c.example.com"]
    assert message.top_via.branch == "z9hG4bKa1" and message.cseq == CSeq(2, "INVITE")
    assert message.from_tag == "9fx" and message.to_tag is None and message.from_.display == "A. Lice"
    assert [str(route) for route in message.routes] == ["<sip:r1.example.com;lr>", "<sip:r2.example.com;lr>"]
    assert message.get("x-unknown") == "kept,  as is ;;" and message.get_all("X-Unknown") == ["kept,  as is ;;"]
    assert message.supported == () and message.expires is None and message.max_forwards == 70
    assert message.body == BODY and message.content_type == "application/sdp"
    assert message.uri == SipUri.parse("sip:bob@biloxi.example.com") and message.encode() == INVITE


def test_proxy_edits() -> None:
    """What a proxy does changes its own lines; all others leave as they came."""
    message = invite()
    message.push_via("SIP/2.0/UDP me;branch=z9hG4bKme")
    message.prepend("Record-Route", "<sip:me;lr>")
    message.set("Max-Forwards", "69")
    assert message.remove_first("Route") == "<sip:r1.example.com;lr>"
    message.set_uri("sip:bob@192.0.2.4")
    assert message.top_via.branch == "z9hG4bKme" and len(message.vias) == 4
    lines = message.encode().split(b"\r\n")
    assert lines[0] == b"INVITE sip:bob@192.0.2.4 SIP/2.0" and lines[1] == b"Via: SIP/2.0/UDP me;branch=z9hG4bKme"
    untouched = [line for line in INVITE.split(b"\r\n")[1:] if not line.startswith((b"Max", b"Route"))]
    assert [
        line
        for line in lines[1:]
        if not line.startswith((b"Via: SIP/2.0/UDP me", b"Record-Route: <sip:me", b"Max", b"Route"))
    ] == untouched
    assert b"Route: <sip:r2.example.com;lr>" in lines and b"Max-Forwards: 69" in lines
    assert [str(route.uri) for route in message.record_routes] == [
        "sip:me;lr",
        "sip:p1.example.com;lr",
        "sip:p2.example.com;lr",
    ]


def test_option_tags() -> None:
    """Stray commas between option tags, which phones do send, are passed over; tags compare in lower case."""
    message = invite()
    message.set("Supported", "100rel,, Path ,")
    message.add("k", "outbound")
    message.set("Allow", "INVITE, ack,")
    message.check()
    assert message.supported == ("100rel", "path", "outbound") and message.allow == ("INVITE", "ack")


def test_pop_via() -> None:
    """The top Via goes, also out of a line that it shares; the last one leaves none."""
    message = invite()
    assert [message.pop_via().host for _ in range(3)] == ["a.example.com", "b.example.com", "c.example.com"]
    with pytest.raises(MalformedMessage):
        message.pop_via()


def test_received_is_written() -> None:
    """received goes into the top value of a shared Via line and nowhere else."""
    message = invite()
    message.set_via_received("192.0.2.9", 1024)
    assert [via.received for via in message.vias] == ["192.0.2.9", None, None]
    assert message.top_via.received == "192.0.2.9"
    assert message.top_via.params == (again := Via.parse(str(message.top_via)).params)
    assert str(message.top_via.params) == str(again) and str(again).startswith(";")


def test_copy_is_independent() -> None:
    """Edits of a copy don't show in the original."""
    message = invite()
    copy = message.copy()
    copy.pop_via()
    copy.set("To", "<sip:x@y>;tag=1")
    copy.set_uri("sip:other@h")
    assert message.encode() == INVITE and message.to_tag is None and copy.to_tag == "1"


def test_edits_show_in_typed_values() -> None:
    """A value read before an edit is read anew after it."""
    message = invite()
    assert message.to_tag is None and message.cseq.number == 2 and len(message.contacts) == 1
    message.set("To", "<sip:x@y>;tag=2")
    message.set("CSeq", "3 INVITE")
    message.add("Contact", "<sip:two@h>")
    assert message.to_tag == "2" and message.cseq.number == 3 and len(message.contacts) == 2
    assert message.remove("m") and message.contacts == ()
    assert message.paths == ()
    message.set("Contact", "<sip:three@h>")
    message.set("Path", "<sip:p;lr>")
    assert len(message.contacts) == len(message.paths) == 1


def test_content_length_follows_the_body() -> None:
    """Content-Length is always written and fits the body."""
    message = Request("MESSAGE", "sip:a@b", [("Content-Length", "99")], b"hi")
    assert message.encode().endswith(b"Content-Length: 2\r\n\r\nhi")
    message = invite()
    message.set_body(b"x", "text/plain")
    assert b"l: " not in message.encode() and message.encode().endswith(b"Content-Length: 1\r\n\r\nx")
    for edit in (message.set, message.add, message.prepend):
        edit("l", "7")
    assert message.encode().count(b"Content-Length") == 1
    message.set_body(b"")
    assert message.content_type is None and message.encode().endswith(b"Content-Length: 0\r\n\r\n")


def test_contact_star() -> None:
    """ "*" is no address; among addresses it is malformed."""
    message = invite()
    message.set("Contact", "*")
    message.check()
    assert message.contact_star and message.contacts == ()
    message.add("Contact", "<sip:a@b>")
    with pytest.raises(MalformedMessage):
        message.check()


def test_liberal_line_ends() -> None:
    """Leading line ends and bare LFs are read; what leaves has CRLF."""
    bare = b"\r\n\n" + INVITE.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n") + b"\n\n" + BODY
    message = parse_message(bare)
    message.check()
    assert message.encode() == INVITE


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"SIP/2.0\r\nv", b"SIP/3.0\r\nv", 505),
        (b"Max-Forwards:70", b"Max-Forwards: 256", 400),
        (b"CSeq: 2", b"CSeq: 2147483648", 400),
        (b"CSeq: 2 INVITE", b"CSeq: 2 BYE", 400),
        (b"X-Un", b"X Un", 400),
        (b"X-Unknown:", b"X-Unknown", 400),
        (b"Max-Forwards:70", b"Max-Forwards", 400),
        (b"To: Bob", b"From: Bob", 400),
        (b"l: ", b"l: -", 400),
        (b"kept", b"ke\rpt", 400),
        (b"Route: <", b"Route: ", 400),
        (b"Call-ID: 3848", b"Call-ID: 38 48", 400),
        (b"Timestamp: 54", b"Content-Length: 22", 400),
        (b"Contact: <sip:alice", b"Contact: <sip:ali%zze", 400),
        (b"INVITE sip:bob@biloxi.example.com SIP/2.0", b"INVITE sip:bob@bil\xc3\xb6xi.example.com SIP/2.0", 400),
        (b"CSeq: 2 INVITE\r\n", b"", 400),
        (b"Contact: <sip", b"Contact: ,<sip", 400),
    ],
)
def test_bad_requests_can_be_answered(old: bytes, new: bytes, status: int) -> None:
    """A malformed request raises its status and carries what an answer needs."""
    assert old in INVITE
    with pytest.raises(SipError) as caught:
        parse_message(INVITE.replace(old, new, 1)).check()
    assert caught.value.status == status and caught.value.request is not None
    answer = make_response(caught.value.request, status, caught.value.reason, to_tag="t")
    assert parse_message(answer.encode()).get_all("via") == invite().get_all("via")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"hello",
        b"\x00" * 100,
        b"SIP/2.0 99 x\r\n\r\n",
        b"SIP/2.0 1000 x\r\n\r\n",
        b"ACK  sip:a SIP/2.0\r\n\r\n",
        INVITE.replace(b"INVITE", b"ACK").replace(b"l: ", b"l: -"),
        b"SIP/2.0 200 OK\r\nbad\r\n\r\n",
    ],
)
def test_what_has_no_answer(data: bytes) -> None:
    """Garbage, bad responses and bad ACKs are never answered."""
    with pytest.raises(SipError) as caught:
        parse_message(data).check()
    assert caught.value.request is None


def test_version_error_is_505() -> None:
    """Another SIP version has its own error class."""
    with pytest.raises(UnsupportedVersion):
        parse_message(INVITE.replace(b"SIP/2.0\r\nv", b"SIP/7.0\r\nv"))


def test_make_response() -> None:
    """Responses copy what RFC 3261 section 8.2.6.2 says, with a To tag except on 100."""
    trying = make_response(invite(), 100)
    assert trying.to_tag is None and trying.get("timestamp") == "54" and not trying.has("record-route")
    ok = make_response(invite(), 200, to_tag="x1", headers=[("Contact", "<sip:bob@h>")])
    ok.check()
    assert ok.to_tag == "x1" and len(ok.record_routes) == 2 and ok.reason == "OK" and not ok.has("timestamp")
    assert ok.vias == invite().vias and ok.cseq == (2, "INVITE") and str(ok.contacts[0].uri) == "sip:bob@h"
    refused = make_response(ok_request(), 486, to_tag="other")
    assert refused.to_tag == "mine" and not refused.has("record-route")


def ok_request() -> Request:
    message = invite()
    message.set("To", "<sip:bob@biloxi.example.com>;tag=mine")
    return message


@pytest.mark.parametrize(
    ("name", "value"), [("X", "a\r\nEvil: 1"), ("X", "a\nb"), ("X\r\nEvil", "1"), ("X Y", "1"), ("", "1")]
)
def test_no_header_injection(name: str, value: str) -> None:
    """Neither a name nor a value can begin another header line."""
    message = invite()
    for edit in (message.set, message.add, message.prepend):
        with pytest.raises(SipError):
            edit(name, value)
    with pytest.raises(SipError):
        make_response(message, 200, "OK\r\nEvil: 1")
    with pytest.raises(SipError):
        message.push_via("SIP/2.0/UDP a\r\nEvil: 1")
    with pytest.raises(SipError):
        message.set_uri("sip:a b")
    assert message.encode() == INVITE


HEADER_NAMES = [
    "Via",
    "v",
    "From",
    "To",
    "Call-ID",
    "CSeq",
    "Contact",
    "Route",
    "Max-Forwards",
    "Content-Length",
    "Supported",
    "X",
    "Expires",
]
PIECES = st.sampled_from(
    [
        "INVITE",
        "sip:a@b",
        "SIP/2.0",
        " ",
        "\r\n",
        "\n",
        ":",
        ";",
        ",",
        "<",
        ">",
        '"',
        "\\",
        "=",
        "tag=1",
        "*",
        "@",
        "%41",
        "[::1]",
        "1",
        "2 INVITE",
        "z9hG4bK1",
        "SIP/2.0/UDP h;branch=",
        "ä",
        "\x00",
        "\r\n\r\n",
        *[f"\r\n{n}: " for n in HEADER_NAMES],
    ]
)


@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=60).map(lambda parts: "".join(parts).encode())))
def test_arbitrary_bytes(data: bytes) -> None:
    """Any octets give a message or SipError; what `check` passed can be read and written without an exception."""
    try:
        message = parse_message(data)
    except SipError:
        return
    message.encode()
    try:
        message.check()
    except SipError:
        return
    read_all(message)
    assert parse_message(message.encode()).encode() == message.encode()


@example(INVITE.index(b"\nMax"), b"\x00", 0)
@settings(max_examples=500)
@given(st.integers(0, len(INVITE)), st.binary(max_size=4), st.integers(0, 3))
def test_mutated_message(at: int, insert: bytes, drop: int) -> None:
    """A good message with a few octets changed gives a message or SipError, and its answer can be formed."""
    data = INVITE[:at] + insert + INVITE[at + drop :]
    try:
        message = parse_message(data)
        message.check()
    except SipError as error:
        if error.request is not None:
            parse_message(make_response(error.request, error.status, error.reason, "t").encode())
        return
    read_all(message)


def read_all(message: Request | Response) -> None:
    """Every typed property."""
    assert message.vias and message.call_id and message.cseq and message.from_.uri and message.to.uri
    _ = (message.from_tag, message.to_tag)
    if message.is_request:
        _ = (message.contacts, message.routes, message.record_routes, message.paths, message.max_forwards)
    _ = (
        message.expires,
        message.require,
        message.proxy_require,
        message.supported,
        message.allow,
    )
    if isinstance(message, Request):
        assert message.uri.scheme


START = b"INVITE sip:a@b SIP/2.0\r\n"
REST = INVITE.partition(b"\r\n")[2]


def filled(pattern: bytes, count: int = 65000) -> bytes:
    return (pattern * (count // len(pattern) + 1))[:count]


@pytest.mark.parametrize(
    "data",
    [
        START + filled(b"Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\n") + b"\r\n" + REST,
        START + filled(b"a:\r\n") + b"\r\n",
        START + b"Contact: " + filled(b"<sip:a@b>,") + b"\r\n" + REST,
        START + b"Via: " + filled(b" ") + b"\r\n" + REST,
        START + b"Via: " + filled(b"SIP/2.0/UDP h,") + b"\r\n" + REST,
        START + b"X:" + filled(b"\r\n ") + b"\r\n" + REST,
        START + b"Contact: " + filled(b'"\\"') + b"\r\n" + REST,
        START + b"Contact: <sip:a@b>" + filled(b";a") + b"\r\n" + REST,
        START + b"Contact: <sip:a@b" + filled(b";a=%41") + b">\r\n" + REST,
        START + b"To: " + filled(b"a ") + b"\r\n" + REST,
        START + b"Supported: " + filled(b"a, ") + b"\r\n" + REST,
        filled(b"\r\n"),
        filled(b"INVITE "),
        filled(b" "),
        START + b"Route: " + filled(b"<") + b"\r\n" + REST,
        b"INVITE sip:" + filled(b"a@") + b" SIP/2.0\r\n" + REST,
        START + b"Contact: " + filled(b"sip:a;") + b"\r\n" + REST,
        START + b"CSeq: " + filled(b"1") + b"\r\n\r\n",
        START + b"Via: SIP/2.0/UDP h" + filled(b";rport ;a") + b"\r\n" + REST,
        INVITE[: -len(BODY)] + filled(b"x"),
    ],
    ids=range(20),
)
def test_large_messages_are_bounded(data: bytes, within_10_ms: None) -> None:
    """64 KB of anything: parsed, checked and answered within 10 ms of CPU."""
    try:
        message = parse_message(data)
        message.check()
        message.set_via_received("192.0.2.1", 5060)
        message.encode()
    except SipError as error:
        if error.request is not None:
            make_response(error.request, error.status, to_tag="t").encode()

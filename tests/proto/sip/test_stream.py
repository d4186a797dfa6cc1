"""Stream framing (RFC 3261 section 18.3) and keep-alives (RFC 5626 sections 3.5.1 and 4.4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.sip.errors import MalformedMessage, MessageTooLarge, SipError
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.stream import KeepAlive, StreamParser

Found = list[Request | Response | KeepAlive]


def message(number: int, body: bytes = b"", length: bytes | None = None) -> bytes:
    return (
        b"MESSAGE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h;branch=z9hG4bK%d\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\n"
        b"Call-ID: x\r\nCSeq: %d MESSAGE\r\nl: %s\r\n\r\n"
        % (number, number, b"%d" % len(body) if length is None else length)
    ) + body


STREAM = message(1, b"one\r\n\r\n") + b"\r\n\r\n" + message(2) + message(3, b"\x00\xff" * 50) + b"\r\n" + message(4)
SHAPE = [(1, b"one\r\n\r\n"), (2, b""), (3, b"\x00\xff" * 50), (4, b"")]


def shape(found: Found) -> list[tuple[int, bytes]]:
    return [(item.cseq.number, item.body) for item in found if not isinstance(item, KeepAlive)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_cut(cuts: list[int]) -> None:
    """However the stream is cut into pieces, the same messages come out, and a ping is among what comes."""
    parser, found = StreamParser(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for begin, end in zip(edges, edges[1:], strict=False):
        found += parser.feed(STREAM[begin:end])
    assert shape(found) == SHAPE and KeepAlive.PING in found and parser.pending == 0


def test_octet_by_octet_is_linear() -> None:
    """A 60 KB message that comes in single octets is read once: the search never starts over."""
    data = b"MESSAGE sip:a@b SIP/2.0\r\nX: " + b"x" * 30000 + b"\r\nl: 30000\r\n\r\n" + b"y" * 30000
    parser, found = StreamParser(), []
    for octet in data:
        found += parser.feed(bytes([octet]))
    assert len(found) == 1 and isinstance(found[0], Request) and len(found[0].body) == 30000


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"\r\n\r\n"], [KeepAlive.PING]),
        ([b"\r\n"], [KeepAlive.PONG]),
        ([b"\r\n", b"\r\n"], [KeepAlive.PONG, KeepAlive.PING]),
        ([b"\r", b"\n\r", b"\n"], [KeepAlive.PONG, KeepAlive.PING]),
        ([b"\r\n" * 500], [KeepAlive.PING]),
        ([b"\r"], []),
    ],
)
def test_keep_alives(pieces: list[bytes], expected: list[KeepAlive]) -> None:
    """A double CRLF is a ping also when it comes in parts; a lone one is a pong; many are one ping."""
    parser, found = StreamParser(), []
    for piece in pieces:
        found += parser.feed(piece)
    assert found == expected


@pytest.mark.parametrize("bad", [b"", b"-1", b"x", b"5, 5", b"99999999999", b"70000"])
def test_bad_length_ends_the_stream(bad: bytes) -> None:
    """Messages before the fault are delivered; the fault is raised next, for ever, with the request to answer."""
    parser = StreamParser()
    found = parser.feed(message(1) + message(2, length=bad) + message(3))
    assert shape(found) == [(1, b"")] and parser.failed is not None
    for _ in range(2):
        with pytest.raises(SipError) as caught:
            parser.feed(message(4))
        assert caught.value.request is not None and caught.value.request.cseq.number == 2
    assert parser.pending == 0


def test_length_is_needed() -> None:
    """A message without Content-Length can't be told from what follows (RFC 3261 section 20.14)."""
    with pytest.raises(MalformedMessage):
        StreamParser().feed(message(1).replace(b"l: 0\r\n", b""))


def test_header_limit() -> None:
    """Octets without an end of headers are held back up to the limit and no further."""
    parser = StreamParser(max_header=1000)
    parser.feed(b"x" * 1000)
    with pytest.raises(MessageTooLarge):
        parser.feed(b"x")
    assert parser.pending == 0


def test_body_limit() -> None:
    """A body beyond the limit is refused when it is announced, not when it has come."""
    with pytest.raises(MessageTooLarge) as caught:
        StreamParser(max_body=10).feed(message(1, length=b"11"))
    assert caught.value.status == 513 and caught.value.request is not None


def test_stray_cr_is_skipped() -> None:
    """A CR that begins no line end does not hold up the messages after it."""
    parser = StreamParser()
    assert parser.feed(b"\r") == [] and shape(parser.feed(message(1))) == [(1, b"")]


@settings(max_examples=400)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.just(message(1)), st.sampled_from([b"\r\n", b"\r", b"\n", b"l: 3"])))
)
def test_arbitrary_octets(pieces: list[bytes]) -> None:
    """Any octets give messages or SipError, and what is held back stays within the limits."""
    parser = StreamParser(max_header=200, max_body=50)
    for piece in pieces:
        try:
            parser.feed(piece)
        except SipError:
            assert parser.pending == 0
        assert parser.pending <= 200 + 50

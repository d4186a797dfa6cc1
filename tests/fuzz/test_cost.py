"""What 64 KB of hostile text cost: at most 10 ms, and no more than in proportion to their length.

CPU time, the best of several tries: a busy machine makes tries slower, never faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from p2psipd.proto.sip.digest import Challenge, Credentials
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.message import make_response, parse_message
from p2psipd.proto.sip.stream import StreamParser

SIZE = 65536
LIMIT = 0.010
TRIES = 12

PIECES = (
    ";", ",", "a=b;", ";a", ";a=", '"', '\\"', '"a"', '";', "\\", "<", ">", "<>", "<a>,", " ", "\t", "%41", "%", ".",
    "a.", "a-", "a", "1", ":", "::", "[", "]", "?", "&a=b", "=", "@", "/", "\r\n ", " \r\n\t", "\xe9", "\0", "a,",
    "sip:", "<sip:a>,",
)  # fmt: skip
STARTS = {
    "Via": "SIP/2.0/UDP a;branch=z9hG4bK1",
    "From": "<sip:a@b>;tag=1",
    "To": "<sip:b>",
    "Call-ID": "1",
    "CSeq": "1 REGISTER",
    "Contact": "<sip:a@b>",
    "Route": "<sip:a;lr>",
    "Max-Forwards": "70",
    "Authorization": 'Digest username="a", realm="b", nonce="c", uri="d", response="e"',
    "Require": "path",
    "Expires": "60",
    "Content-Length": "0",
    "X-Unknown": "x",
}
SHAPES: dict[str, Callable[[int], bytes]] = {
    "line ends": lambda size: b"\r\n" * (size // 2) + message(),
    "many headers": lambda size: message(b"X: y\r\n" * (size // 6)),
    "many Vias": lambda size: message(b"Via: SIP/2.0/UDP a;branch=z9hG4bK1\r\n" * (size // 36)),
    "many Contacts": lambda size: message(b"m: <sip:a@b>;q=0.1\r\n" * (size // 21)),
    "many Routes on one line": lambda size: message(b"Route: " + b",".join([b"<sip:a;lr>"] * (size // 11)) + b"\r\n"),
    "bare LF": lambda size: message(b"X: y\n" * (size // 5)),
    "bare CR": lambda size: message(b"X: " + b"\r" * size + b"\r\n"),
    "no colon": lambda size: message(b"x" * size + b"\r\n"),
    "folds": lambda size: message(b"Contact: <sip:a>\r\n" + b" ;a=b\r\n" * (size // 7)),
    "long method": lambda size: b"X" * size + message()[8:],
    "long Request-URI": lambda size: message().replace(b"sip:x", b"sip:" + b"a;" * (size // 2), 1),
    "escaped Request-URI": lambda size: message().replace(b"sip:x", b"sip:" + b"%41" * (size // 3) + b"@x", 1),
    "body": lambda size: message() + b"\xff" * size,
}


def message(more: bytes = b"", **values: str) -> bytes:
    """A REGISTER with these values and these lines."""
    lines = {name: values.get(name, value) for name, value in STARTS.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
    return b"REGISTER sip:x SIP/2.0\r\n" + head + more + b"\r\n"


def read(data: bytes) -> None:
    """All that is done with a message from a stranger: cut from a stream, judged, refused."""
    with suppress(SipError):
        StreamParser(4 * SIZE, 4 * SIZE).feed(data)
    try:
        got = parse_message(data)
        got.check()
    except SipError as error:
        if error.request is not None:
            make_response(error.request, error.status, error.reason, "t").encode()
        return
    for value in got.get_all("authorization"):
        with suppress(SipError):
            Credentials.parse(value)
        with suppress(SipError):
            Challenge.parse(value)
    _ = (got.contacts, got.routes, got.require, got.supported, got.expires, got.encode())


def cost(data: bytes, enough: float) -> float:
    """CPU seconds of the best try; no more tries than it takes to come below `enough`."""
    best = float("inf")
    for _ in range(TRIES):
        began = time.process_time()
        read(data)
        best = min(best, time.process_time() - began)
        if best < enough:
            break
    return best


def bounded(make: Callable[[int], bytes], what: str) -> None:
    """64 KB in 10 ms, and in no more than eight times the time of 16 KB (quadratic would be sixteen)."""
    spent = cost(make(SIZE), LIMIT / 4)
    assert spent < LIMIT, f"{what}: {spent * 1e3:.1f} ms"
    if spent > LIMIT / 4:
        quarter = cost(make(SIZE // 4), spent / 8)
        assert spent < 8 * quarter + 1e-3, f"{what}: {quarter * 1e3:.2f} ms for a quarter, {spent * 1e3:.2f} ms for all"


@pytest.mark.parametrize("header", STARTS)
def test_long_values(header: str) -> None:
    """Any piece of syntax repeated up to 64 KB in any header that we read costs at most 10 ms."""
    for piece in PIECES:
        for start in (STARTS[header], ""):
            bounded(
                lambda size, start=start, piece=piece: message(**{header: start + piece * (size // len(piece))}),  # type: ignore[misc]
                f"{header}: {start}{piece!r}...",
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes(shape: str) -> None:
    """Many lines, long lines, folds and bodies of 64 KB cost at most 10 ms."""
    bounded(SHAPES[shape], shape)

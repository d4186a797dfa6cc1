"""Lines about refused connections: few, short, and of one line each."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs, formatEvent

from p2psipd.net.refusals import LINES_PER_SECOND, Refusals, endpoint_text, plain

ADDRESS = ("2001:db8::1", 4711)


def test_endpoints_as_people_write_them() -> None:
    """An IPv6 address stands in brackets before its port."""
    assert [endpoint_text(each) for each in (("192.0.2.1", 6084), ADDRESS)] == ["192.0.2.1:6084", "[2001:db8::1]:4711"]


def test_what_a_line_says() -> None:
    """Who, where, and why; a field that is not there is not logged."""
    refusals = Refusals(Logger(), Clock())
    with capturedLogs() as events:
        refusals.accepted(ADDRESS, "no certificate")
        refusals.accepted(ADDRESS, "no certificate", "TLS port 5062")
        refusals.dialled(ADDRESS, "it does not read")
        refusals.dropped("datagram", ADDRESS, "no SIP", "UDP port 5060")
    assert [formatEvent(event) for event in events] == [
        "connection from [2001:db8::1]:4711 ended: no certificate",
        "connection from [2001:db8::1]:4711 to TLS port 5062 ended: no certificate",
        "connection to [2001:db8::1]:4711 ended: it does not read",
        "datagram from [2001:db8::1]:4711 to UDP port 5060 dropped: no SIP",
    ]
    assert "at" not in events[0]


def test_few_lines_a_second() -> None:
    """Of a flood some lines are written in each second; the next line tells how many were left out."""
    clock: Any = Clock()
    refusals = Refusals(Logger(), clock, "connections or datagrams")
    with capturedLogs() as events:
        for _ in range(LINES_PER_SECOND + 90):
            refusals.accepted(ADDRESS, "no TLS")
        assert len(events) == LINES_PER_SECOND
        clock.advance(1.0)
        refusals.accepted(ADDRESS, "no TLS")
        clock.advance(1.0)
        refusals.accepted(ADDRESS, "no TLS")
    said = [formatEvent(event) for event in events[LINES_PER_SECOND:]]
    assert [line.partition(" ended")[0] for line in said] == [
        "90 more connections or datagrams refused",
        "connection from [2001:db8::1]:4711",
        "connection from [2001:db8::1]:4711",
    ]


def test_a_strangers_text_is_one_short_line() -> None:
    """Line ends, escapes and what turns the direction of writing are shown as what they are; length is bounded."""
    assert plain("user 'a' of caf\u00e9") == "user 'a' of caf\u00e9"
    assert plain("a\nb\x1b[31m\u202e\udcff") == "a\\nb\\x1b[31m\\u202e\\udcff"
    assert len(plain("x" * 10_000)) == 300
    assert plain("\0" * 10_000).isprintable() and len(plain("\0" * 10_000)) <= 1200

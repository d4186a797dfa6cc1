"""What the demo shows: the ladder and the words, from a report as the call makes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2psipd.cli.demo import heard, ladder, render


def entry(at: float, direction: str, line: str, method: str = "INVITE") -> SimpleNamespace:
    """One message in a phone's own ladder."""
    return SimpleNamespace(at=at, direction=direction, line=line, method=method)


@pytest.fixture
def report() -> dict[str, Any]:
    """A call that worked."""
    alice: Any = SimpleNamespace(
        ladder=[
            entry(1.0, "->", "REGISTER sip:lab.example SIP/2.0", "REGISTER"),
            entry(5.0, "->", "INVITE sip:bob@lab.example SIP/2.0"),
            entry(5.03, "<-", "SIP/2.0 180 Ringing"),
        ]
    )
    bob: Any = SimpleNamespace(
        ladder=[
            entry(5.01, "<-", "INVITE sip:bob@127.0.0.1:5 SIP/2.0"),
            entry(5.02, "->", "SIP/2.0 180 Ringing"),
        ]
    )
    return {
        "ok": True,
        "alice_at": 3,
        "bob_at": 6,
        "record": {
            "held_by": "ab" * 16,
            "held_by_peer": 5,
            "asked_at": 3,
            "hops": 1,
            "ms": 2.3456,
            "verified": True,
            "values": ["sip:bob@192.0.2.7 at node"],
            "signed_by": ["cd" * 16 + "@registrar.x"],
        },
        "heard": {"bob": {"tone_hz": 440.0, "share": 0.98, "seconds": 3.0, "lost": 0, "ok": True}},
        "setup_ms": 41.2,
        "cause": "hung up",
        "ladder": [arrow._asdict() for arrow in ladder(alice, bob, (1, 0))],
    }


def test_ladder_is_in_the_order_of_time(report: dict[str, Any]) -> None:
    """Both phones' messages come in one order, from the call's beginning, each arrow on its own side."""
    assert [(a["ms"], a["side"], a["to_phone"], a["text"]) for a in report["ladder"]] == [
        (0.0, "alice", False, "INVITE"),
        (10.0, "bob", True, "INVITE"),
        (20.0, "bob", False, "180 INVITE"),
        (30.0, "alice", True, "180 INVITE"),
    ]
    lines = render(report).splitlines()
    assert lines[0].split() == ["ms", "alice", "peer", "3", "peer", "6", "bob"]
    near, far = (lines[0].index(name) for name in ("peer 3", "peer 6"))
    assert lines[1].index("INVITE") < near
    assert lines[2].index("INVITE") > far
    assert "->|" in lines[1]
    assert "|<-" in lines[3]


def test_what_it_shows_is_said(report: dict[str, Any]) -> None:
    """Holder, hops, milliseconds and what was heard are in words, and the last line is the verdict."""
    text = render(report)
    assert "held by peer 5" in text
    assert "1 hop in 2.3 ms" in text
    assert "it says sip:bob@192.0.2.7 at node, signed by cdcdcdcd…, verified" in text
    assert "440 Hz for 3.0 s: 98 %" in text
    assert text.endswith("it works")


def test_a_call_that_failed_says_so() -> None:
    """Without a call there is no ladder, and the verdict gives the reason."""
    text = render({"ok": False, "alice_at": 3, "bob_at": 6, "error": "sip:bob@lab.example: 404 Not Found"})
    assert text.strip() == "IT DID NOT WORK: sip:bob@lab.example: 404 Not Found"


@pytest.mark.parametrize(("share", "seconds", "good"), [(0.97, 3.0, True), (0.3, 3.0, False), (0.97, 0.4, False)])
def test_a_tone_must_have_been_heard(share: float, seconds: float, good: bool) -> None:
    """A call counts only if most of what arrived is the other side's tone, for most of the time."""
    call: Any = SimpleNamespace(
        received_tone=lambda tones: {"power": dict.fromkeys(tones, share), "seconds": seconds, "lost": 0}
    )
    assert heard(call, 880.0)["ok"] is good

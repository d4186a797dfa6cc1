"""Call records: what a node keeps and writes of each call."""

from __future__ import annotations

import json
from pathlib import Path

from p2psipd.proto.sip.calls import Call
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import DomainIdentity, NodeIdentity
from p2psipd.services.call_records import CallRecords
from p2psipd.store.json_lines import JsonLines

NODE = bytes(range(16))


class Far(Flow):
    """A flow with somebody at its end."""

    def __init__(self, port: int = 5070, peer: object = None) -> None:
        super().__init__("UDP", ("192.0.2.7", port), ("192.0.2.1", 5060))
        self.peer = peer


def a_call(call_id: str = "c1", came_on: Flow | None = None) -> Call:
    """A call that has just begun."""
    call = Call(call_id, "tag", "sip:alice@o", "sip:bob@o", came_on or Far(), "alice@o", 100.0)
    call.identity = "digest"
    return call


def now_here(work: object, done: object) -> None:
    """A thread that works at once."""
    work()  # type: ignore[operator]
    done(None)  # type: ignore[operator]


def test_one_line_a_call(tmp_path: Path) -> None:
    """When a call has ended, and not before, its line has both sides, the times, and who hung up."""
    records = CallRecords(NODE, JsonLines(str(tmp_path / "calls"), now_here))
    call = a_call()
    records.began(call)
    call.ringing_at, call.answered_at = 101.0, 103.5
    call.went_on, call.target = Far(6000, NodeIdentity(NODE[::-1], "x", True)), "sip:bob@192.0.2.9"
    records.ringing(call)
    records.answered(call)
    assert not (tmp_path / "calls").exists()
    assert records.calls()[0]["ended_at"] is None
    call.ended_at, call.cause, call.ended_by = 110.0, "BYE", "callee"
    records.ended(call)
    (line,) = (tmp_path / "calls").read_text().splitlines()
    assert json.loads(line) == records.calls()[0] == {
        "call_id": "c1", "from": "sip:alice@o", "to": "sip:bob@o", "node": NODE.hex(),
        "came_from": "phone UDP 192.0.2.7:5070", "went_to": f"node {NODE[::-1].hex()}", "target": "sip:bob@192.0.2.9",
        "identity": "digest", "user": "alice@o", "started_at": 100.0, "ringing_at": 101.0, "answered_at": 103.5,
        "ended_at": 110.0, "seconds": 6.5, "cause": "BYE", "ended_by": "callee",
    }  # fmt: skip


def test_the_sides_of_a_call() -> None:
    """A phone, a node, another domain and a service in the process are told apart; a call that went nowhere says so."""
    records = CallRecords(NODE, None)
    domain = DomainIdentity(("example.net", "example.org"), "peering")
    for number, flow in enumerate((Far(peer=domain), Far(0))):
        records.began(a_call(str(number), flow))
    assert [row["came_from"] for row in records.calls()] == ["domain example.net,example.org", "service"]
    assert {row["went_to"] for row in records.calls()} == {""}


def test_memory_is_bounded() -> None:
    """Only the last calls are kept, open ones apart from those that have ended."""
    records = CallRecords(NODE, None, kept=3)
    for number in range(50):
        call = a_call(str(number))
        records.began(call)
        if number % 10:
            call.ended_at = 1.0
            records.ended(call)
    ids = [row["call_id"] for row in records.calls()]
    assert ids == ["47", "48", "49", "0", "10", "20", "30", "40"]
    for number in range(100):
        records.began(a_call(f"open{number}"))
    assert len(records.calls()) == 3 + 30

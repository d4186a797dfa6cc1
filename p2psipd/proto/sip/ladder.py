"""What happened in the last calls: a bounded log of who sent which message to whom, and when."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final, NamedTuple

from p2psipd.proto.sip.flow import Flow

_CALL_ID: Final = re.compile(rb"\r?\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_USUAL: Final = b"\r\nCall-ID: "
_MAX_LINE: Final = 200


class Step(NamedTuple):
    """One message on the wire: unix seconds, where from and to ("here" is this node), and its start line."""

    at: float
    source: str
    destination: str
    line: str


class _Call:
    """One call; `steps` are (wall, flow, outbound, start of the message)."""

    __slots__ = ("answered_at", "callee", "caller", "cause", "ended_at", "started_at", "steps")

    def __init__(self, caller: str, callee: str, started_at: float) -> None:
        self.caller = caller
        self.callee = callee
        self.started_at = started_at
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.cause = ""
        self.steps: list[tuple[float, Flow, bool, bytes]] = []


class Ladder:
    """The last `calls` calls with at most `steps` messages each, by Call-ID."""

    def __init__(self, calls: int = 200, steps: int = 100) -> None:
        self._limit = calls
        self._steps = steps
        self._calls: OrderedDict[str, _Call] = OrderedDict()

    def begin(self, call_id: str, caller: str, callee: str, wall: float) -> None:
        """A call begins; an INVITE that is repeated with credentials goes on with the old entry."""
        if call_id in self._calls:
            return
        while len(self._calls) >= self._limit:
            self._calls.popitem(last=False)
        self._calls[call_id] = _Call(caller, callee, wall)

    def note(self, call_id: str, wall: float, flow: Flow, outbound: bool, start: bytes) -> None:
        """A message of a call that is logged; `start` begins with its start line."""
        call = self._calls.get(call_id)
        if call is not None and len(call.steps) < self._steps:
            call.steps.append((wall, flow, outbound, start))

    def sent(self, data: bytes, wall: float, flow: Flow) -> None:
        """Bytes that left on `flow`; to which call they belong stands in them."""
        start = data.find(_USUAL)
        if start >= 0:
            start += len(_USUAL)
            call_id = data[start : data.find(b"\r\n", start)]
        else:
            match = _CALL_ID.search(data)
            if match is None:
                return
            call_id = match[1]
        self.note(call_id.decode("utf-8", "surrogateescape").strip(), wall, flow, True, data)

    def answered(self, call_id: str, wall: float) -> None:
        """The call was answered."""
        call = self._calls.get(call_id)
        if call is not None and call.answered_at is None:
            call.answered_at = wall

    def ended(self, call_id: str, wall: float, cause: str) -> None:
        """The call is over: "BYE", or the status that ended it."""
        call = self._calls.get(call_id)
        if call is not None and call.ended_at is None:
            call.ended_at, call.cause = wall, cause

    def __contains__(self, call_id: object) -> bool:
        return call_id in self._calls

    def calls(self) -> list[dict[str, object]]:
        """What is known of each call, oldest first; times are unix seconds."""
        return [
            {
                "call_id": call_id,
                "from": call.caller,
                "to": call.callee,
                "started_at": call.started_at,
                "answered_at": call.answered_at,
                "ended_at": call.ended_at,
                "cause": call.cause,
                "messages": len(call.steps),
            }
            for call_id, call in self._calls.items()
        ]

    def steps(self, call_id: str) -> list[Step]:
        """The messages of one call, in order; an unknown call has none."""
        call = self._calls.get(call_id)
        return [_step(*entry) for entry in call.steps] if call is not None else []


def _step(at: float, flow: Flow, outbound: bool, start: bytes) -> Step:
    peer = getattr(flow, "peer", None)
    if peer is None:
        there = f"{flow.transport} {flow.remote[0]}:{flow.remote[1]}"
    else:
        # Another domain's connection has names and no Node-ID.
        node_id = getattr(peer, "node_id", b"")
        there = f"node {node_id.hex()}" if node_id else f"domain {peer.domains[0]}"
    line = start[: start.find(b"\r\n")] if b"\r\n" in start else start
    text = line[:_MAX_LINE].decode("utf-8", "replace")
    return Step(at, "here", there, text) if outbound else Step(at, there, "here", text)

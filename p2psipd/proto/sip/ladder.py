"""What happened in the last calls: a bounded log of who sent which message to whom, and when."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response

_CALL_ID: Final = re.compile(rb"\r?\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_USUAL: Final = b"\r\nCall-ID: "
_MAX_LINE: Final = 200


class Step(NamedTuple):
    """One message on the wire: unix seconds, where from and to ("here" is this node), and its start line."""

    at: float
    source: str
    destination: str
    line: str


class Ladder:
    """The last `calls` calls with at most `steps` messages each, by Call-ID."""

    def __init__(self, calls: int = 200, steps: int = 100) -> None:
        self._limit = calls
        self._steps = steps
        # Of each message: unix seconds, flow, whether it left here, the beginning of it.
        self._calls: OrderedDict[str, list[tuple[float, Flow, bool, bytes]]] = OrderedDict()

    def begin(self, call_id: str) -> None:
        """A call begins; an INVITE that is repeated with credentials goes on with the old entry."""
        if call_id in self._calls:
            return
        while len(self._calls) >= self._limit:
            self._calls.popitem(last=False)
        self._calls[call_id] = []

    def received(self, message: Request | Response, wall: Callable[[], float], flow: Flow) -> None:
        """A message that came on `flow`. Raises MalformedMessage where its Call-ID can't be read."""
        steps = self._calls.get(message.call_id)
        if steps is not None and len(steps) < self._steps:
            if isinstance(message, Request):
                line = f"{message.method} {message.uri_text} SIP/2.0"
            else:
                line = f"SIP/2.0 {message.status} {message.reason}"
            steps.append((wall(), flow, False, line.encode("utf-8", "replace")))

    def sent(self, data: bytes, wall: Callable[[], float], flow: Flow) -> None:
        """Bytes that left on `flow`; to which call they belong stands in them."""
        start = data.find(_USUAL) + len(_USUAL)
        if start >= len(_USUAL):
            call_id = data[start : data.find(b"\r\n", start)]
        else:
            match = _CALL_ID.search(data)
            if match is None:
                return
            call_id = match[1]
        steps = self._calls.get(call_id.decode("utf-8", "surrogateescape").strip())
        if steps is not None and len(steps) < self._steps:
            steps.append((wall(), flow, True, data))

    def __contains__(self, call_id: object) -> bool:
        return call_id in self._calls

    def call_ids(self) -> list[str]:
        """The calls that are logged, oldest first."""
        return list(self._calls)

    def steps(self, call_id: str) -> list[Step]:
        """The messages of one call, in order; an unknown call has none."""
        return [_step(*entry) for entry in self._calls.get(call_id, ())]


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

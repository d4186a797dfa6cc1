"""The record of each call: one JSON line when it has ended, and the last ones in memory for ``p2psip calls``.

The fields are an interface.  Times are unix seconds, ``null`` for what has not happened:

    call_id, from, to       the Call-ID; who called; who was asked for (URIs)
    node                    this node; the other node's record of the same call has the same call_id
    came_from, went_to      what is at each side: "phone UDP 192.0.2.7:5060", "node <Node-ID>", "domain example.net",
                            "service" (in this process: echo)
    target                  the URI of the branch that rang or answered last, else of the first one that refused
    identity, user          what was proved about the caller ("digest", "node", ...), and who proved to call
    started_at, ringing_at, answered_at, ended_at, seconds
    cause                   "BYE", a final status such as "486", "cancelled", "lost"
    ended_by                "caller" or "callee" where somebody hung up
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from typing import Any, Final

from twisted.application.service import Service
from twisted.logger import Logger

from p2psipd.proto.sip.calls import Call
from p2psipd.proto.sip.locating import DomainIdentity, NodeIdentity
from p2psipd.store.json_lines import JsonLines

KEPT: Final = 1000
"""Calls that are kept in memory, the oldest ended ones going first; open ones beyond ten times as many are not kept."""


class CallRecords(Service):
    """A :class:`p2psipd.proto.sip.calls.CallObserver` that keeps records.  ``file`` None keeps them in memory alone.

    As a service it closes the file after the SIP service, whose last calls it still writes.
    """

    log = Logger()

    def __init__(self, node_id: bytes, file: JsonLines | None, kept: int = KEPT) -> None:
        self.setName("call-records")  # type: ignore[no-untyped-call]
        self.counters: Counter[str] = Counter()
        self._node = node_id.hex()
        self._file = file
        self._kept = kept
        self._open: OrderedDict[Call, None] = OrderedDict()
        self._ended: OrderedDict[Call, None] = OrderedDict()
        self._said_fault = ""

    def stopService(self) -> None:
        """Write what is left."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._file is not None:
            self._file.close()

    def reopen(self) -> None:
        """The file has been moved away: go on in a new one."""
        if self._file is not None:
            self._file.reopen()

    # ---- told by the SIP service -----------------------------------------------------------------------------

    def began(self, call: Call) -> None:
        """A call has begun."""
        if len(self._open) < 10 * self._kept:
            self._open[call] = None

    def ringing(self, call: Call) -> None:
        """It rings; the time stands in the call."""

    def answered(self, call: Call) -> None:
        """It was answered; the time stands in the call."""

    def ended(self, call: Call) -> None:
        """It is over: its line is written."""
        self._open.pop(call, None)
        self._ended[call] = None
        while len(self._ended) > self._kept:
            self._ended.popitem(last=False)
        self.counters["ended"] += 1
        if self._file is not None:
            self._file.append(json.dumps(self._record(call), ensure_ascii=False))
            self._tell_of(self._file)

    def _tell_of(self, file: JsonLines) -> None:
        """A line in the log when writing fails, and when it works again."""
        if file.fault != self._said_fault:
            self._said_fault = file.fault
            if file.fault:
                self.log.error("call records are lost: {fault}", fault=file.fault)
            else:
                self.log.info("call records are written again; {count} were lost", count=file.lost)

    # ---- asked by the operator -------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """What keeps records from being written, "" if nothing does and none was lost."""
        if self._file is None or not self._file.lost:
            return ""
        return self._file.fault or f"{self._file.lost} were lost"

    def calls(self) -> list[dict[str, Any]]:
        """The last calls, those that have ended first, then the open ones; each in the order of its kind."""
        return [self._record(call) for call in (*self._ended, *self._open)]

    def _record(self, call: Call) -> dict[str, Any]:
        answered, ended = call.answered_at, call.ended_at
        return {
            "call_id": call.call_id,
            "from": call.caller,
            "to": call.callee,
            "node": self._node,
            "came_from": side(call.came_on),
            "went_to": side(call.went_on) if call.went_on is not None else "",
            "target": call.target,
            "identity": call.identity,
            "user": call.user,
            "started_at": _time(call.began_at),
            "ringing_at": _time(call.ringing_at),
            "answered_at": _time(answered),
            "ended_at": _time(ended),
            "seconds": round(ended - answered, 3) if answered and ended else None,
            "cause": call.cause,
            "ended_by": call.ended_by,
        }


def side(flow: Any) -> str:
    """Who is at the other end of a flow, in words."""
    peer = getattr(flow, "peer", None)
    host, port = flow.remote
    if isinstance(peer, NodeIdentity):
        return f"node {peer.node_id.hex()}"
    if isinstance(peer, DomainIdentity):
        return f"domain {','.join(peer.domains)}"
    if not port:
        return "service"
    return f"phone {flow.transport} {f'[{host}]' if ':' in host else host}:{port}"


def _time(at: float) -> float | None:
    return round(at, 3) if at else None

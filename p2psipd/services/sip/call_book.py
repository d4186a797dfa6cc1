"""The calls that pass this node: how many each user and each peer has, and who is told of them.

A proxy sees a call begin with its INVITE and end with its BYE; a BYE may get lost. A call with a session interval
(RFC 4028) is over when that has passed without a refresh, any other one after four hours without a re-INVITE or
UPDATE; either when somebody hears that the other side knows nothing of it (RFC 3261 section 12.2.1.2), or when those of
our users who are in it have been registered here and are no more: their phones are gone, and would not say so. A party
that hangs up after that is served as ever; only the record has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from p2psipd.proto.sip.calls import Call, CallObserver
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import DomainIdentity, NodeIdentity
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.proxy import Refused

_LONGEST: Final = 4 * 3600.0
_GRACE: Final = 64.0
_LOOK_AGAIN: Final = 300.0
"""So often it is asked whether the phones of a call are still there; they are gone when the answer is no twice."""
_DIALOG_GONE: Final = (408, 481)
_SWEPT_AT_A_TIME: Final = 1000


class CallLimits(NamedTuple):
    """Calls at a time: of one user (more are 403), of one node or domain that sends them, and in all (503 with
    Retry-After). 0: no limit.
    """

    per_user: int = 100
    per_peer: int = 10_000
    all: int = 50_000


class _Watch:
    """When an open call is looked at, and when it is over (unix seconds); the users in it who were registered here when
    it was answered, and whether none of them was at the last look.
    """

    __slots__ = ("doubted", "look_at", "over_at", "users")

    def __init__(self, over_at: float) -> None:
        self.look_at = self.over_at = over_at
        self.users: tuple[str, ...] = ()
        self.doubted = False


class CallBook:
    """Open calls. `wall` is unix time; `retry_after` the value of that header in refusals; `registered` says whether a
    user ("sip:alice@domain") has a living binding at this node.
    """

    def __init__(
        self,
        limits: CallLimits,
        observers: Sequence[CallObserver],
        wall: Callable[[], float],
        retry_after: str,
        registered: Callable[[str], bool] = lambda aor: False,
    ) -> None:
        self._limits = limits
        self._observers = tuple(observers)
        self._wall = wall
        self._retry = (("Retry-After", retry_after),)
        self._calls: dict[tuple[str, str], Call] = {}
        self._registered = registered
        self._watched: dict[Call, _Watch] = {}
        self._of_user: Counter[str] = Counter()
        self._of_peer: Counter[object] = Counter()

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, request: Request, flow: Flow, user: str, *, limited: bool = True, proved: str = "") -> Call | None:
        """A new INVITE whose sender is proved (`user`, "user@domain", for phones). Raises Refused: 403 or 503.

        None for one of a call that is open: it has come round again (a spiral), or the other branch of a fork. A call
        to the emergency services is counted, and not `limited`. `proved` is what an Edge found out about the caller, or
        "unproved" for a phone that could not be asked to prove itself.
        """
        key = (request.call_id, request.from_tag or "")
        if key in self._calls:
            if self._calls[key].cseq != request.cseq.number:
                # Else any number of calls would be one, and no limit would ever be reached.
                raise Refused(403, "Call Is Open", why="call_is_open")
            return None
        limits = self._limits
        peer = _peer_of(flow)
        if limited and limits.all and len(self._calls) >= limits.all:
            raise Refused(503, headers=self._retry, why="too_many_calls")
        if peer is not None:
            if limited and limits.per_peer and self._of_peer[peer] >= limits.per_peer:
                raise Refused(503, headers=self._retry, why="too_many_calls_of_peer")
            self._of_peer[peer] += 1
        elif user:
            if limited and limits.per_user and self._of_user[user] >= limits.per_user:
                raise Refused(403, "Too Many Calls", why="too_many_calls_of_user")
            self._of_user[user] += 1
        wall = self._wall()
        call = Call(*key, _caller(request), request.uri_text, flow, user, wall)
        call.cseq = request.cseq.number
        call.identity = proved or ("digest" if peer is None else "node" if isinstance(peer, bytes) else "edge")
        self._calls[key] = call
        self._watched[call] = _Watch(wall + _LONGEST)
        for observer in self._observers:
            observer.began(call)
        return call

    def responded(self, call: Call, response: Response, cancelled: bool) -> None:
        """A response to the INVITE goes back to the caller."""
        status = response.status
        if call.ended_at or status == 100:
            return
        if status < 200:
            if not call.ringing_at:
                call.ringing_at = self._wall()
                for observer in self._observers:
                    observer.ringing(call)
        elif status >= 300:
            call.ended_by = "caller" if cancelled else ""
            self.end(call, "cancelled" if cancelled else str(status))
        elif not call.answered_at:
            call.answered_at = self._wall()
            call.to_tag = response.to_tag or ""
            self._refresh(call, response)
            watch = self._watched[call]
            watch.users = tuple(filter(self._registered, _users_in(call)))
            if watch.users:
                watch.look_at = min(watch.over_at, call.answered_at + _LOOK_AGAIN)
            for observer in self._observers:
                observer.answered(call)

    def refreshed(self, request: Request, response: Response) -> None:
        """A re-INVITE or UPDATE was answered: the call goes on (RFC 4028 section 8.1), or is over where the other side
        knows nothing of it.
        """
        call = self._of(request)
        if call is None:
            return
        if response.status < 300:
            self._refresh(call, response)
        elif response.status in _DIALOG_GONE and _is_in(request, call):
            self.end(call, "lost")

    def hung_up(self, request: Request) -> None:
        """The BYE of a call has been answered. It ends the dialog that both its tags name (RFC 3261 section 15.1.2)."""
        call = self._of(request)
        if call is not None and _is_in(request, call):
            call.ended_by = "caller" if request.from_tag == call.from_tag else "callee"
            self.end(call, "BYE")

    def end(self, call: Call, cause: str) -> None:
        """The call is over."""
        if call.ended_at:
            return
        call.ended_at, call.cause = self._wall(), cause
        del self._calls[(call.call_id, call.from_tag)]
        del self._watched[call]
        peer = _peer_of(call.came_on)
        if peer is None:
            _less(self._of_user, call.user)
        else:
            _less(self._of_peer, peer)
        for observer in self._observers:
            observer.ended(call)

    def sweep(self) -> None:
        """Now and then: forget calls whose end was lost."""
        wall = self._wall()
        due = [(call, watch) for call, watch in self._watched.items() if watch.look_at <= wall][:_SWEPT_AT_A_TIME]
        for call, watch in due:
            gone = not any(map(self._registered, watch.users))
            if watch.over_at <= wall or (gone and watch.doubted):
                self.end(call, "lost")
            else:
                watch.doubted = gone
                watch.look_at = min(watch.over_at, wall + _LOOK_AGAIN)

    def move(self, seconds: float) -> None:
        """The wall clock has jumped by so much; calls keep the time that they have left."""
        for watch in self._watched.values():
            watch.look_at += seconds
            watch.over_at += seconds

    def _of(self, request: Request) -> Call | None:
        """The call of a request inside it, of either side."""
        call_id = request.call_id
        return self._calls.get((call_id, request.from_tag or "")) or self._calls.get((call_id, request.to_tag or ""))

    def _refresh(self, call: Call, response: Response) -> None:
        text = (response.get("session-expires") or "").partition(";")[0].strip()
        interval = float(text) + _GRACE if text.isascii() and text.isdigit() and len(text) < 8 else _LONGEST
        watch = self._watched[call]
        watch.over_at = self._wall() + interval
        watch.look_at = min(watch.look_at, watch.over_at) if watch.users else watch.over_at


def _is_in(request: Request, call: Call) -> bool:
    """Whether a request belongs to the dialog that was answered first, and not to that of another branch."""
    return {request.from_tag or "", request.to_tag or ""} == {call.from_tag, call.to_tag}


def _users_in(call: Call) -> list[str]:
    """The users of ours whose phones are at this node, as AORs."""
    users = [f"sip:{call.user}"] if call.user and _peer_of(call.came_on) is None else []
    if call.binding is not None and call.went_on.peer is None:
        users.append(call.binding.aor)
    return users


def _caller(request: Request) -> str:
    asserted = request.get("p-asserted-identity")
    if asserted:
        return asserted.partition("<")[2].partition(">")[0] or asserted
    try:
        return request.from_.uri_text
    except SipError:
        return ""


def _peer_of(flow: Any) -> object | None:
    """By what the calls of a node or domain are counted; None for phones."""
    peer = flow.peer
    if isinstance(peer, NodeIdentity):
        return peer.node_id
    return peer.domains if isinstance(peer, DomainIdentity) else None


def _less(counts: Counter[Any], key: object) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        counts.pop(key, None)

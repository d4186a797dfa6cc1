"""One request on its way to one or more places: the response context of RFC 3261 section 16.7, a core without I/O.

It gets Located, Answered, Failed, Silent and Cancelled, and orders Forward, Respond, CancelBranch, Relocate,
Recurse and Finished. Locating, connections and the tries by which one target is reached are the caller's.

Order of the branches: equal q in parallel, lower q only after every higher branch has ended (section 16.6), and
never more at a time than Max-Breadth allows (RFC 5393 section 5.3.3): what does not fit waits for a branch to end.
Targets of one instance are alternatives: the next one is tried when the one before could not be reached (RFC
5626 section 5.3), or has kept silent where it should have said something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.locating import Route, Target
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.proxy import max_breadth
from p2psipd.proto.sip.uri import SipUri

MAX_BRANCHES: Final = 32
"""A request never goes to more places than this, one after the other or at a time."""

MAX_RECURSIONS: Final = 5
"""So many redirects of one request are followed here; further ones go to the caller."""

_CANCEL_WAIT: Final = 32.0
_RESUBMISSION: Final = (401, 407, 415, 420, 484)
"""Among 4xx these are preferred: they let the caller mend its request (section 16.7 step 6)."""
_FOLLOWED: Final = (300, 301, 302)
"""These say where the user is; a 380 has its alternatives in the body."""
_UNREACHED: Final = (408, 430, 503)
"""The target was not reached: another way to the same instance is tried (RFC 5626 section 5.3)."""


class Branch:
    """One target of a fork, and the key of its first client transaction (compared by identity).

    `response` is its final answer (one made here for a timeout or a failure), None while it is open. `heard` says
    that something came back, if only a 100. `key`, `route` and `flow` are kept here for the caller: the
    transaction under way, the tries to come, and where the last one went.
    """

    __slots__ = (
        "breadth",
        "cancelled",
        "context",
        "deadline",
        "flow",
        "heard",
        "key",
        "response",
        "route",
        "superseded",
        "target",
        "turn_ends",
    )

    def __init__(self, context: ForwardingContext, target: Target, breadth: int) -> None:
        self.context = context
        self.target = target
        self.breadth = breadth
        self.response: Response | None = None
        self.heard = False
        self.cancelled = False
        self.superseded = False
        self.deadline: float | None = None
        self.turn_ends: float | None = None
        self.key: Any = self
        self.route: Route | None = None
        self.flow: Any = None


class Located(NamedTuple):
    """Input: where the request may go; none at all is answered with `status`."""

    targets: Sequence[Target]
    status: int = 480
    reason: str | None = None


class Answered(NamedTuple):
    """Input: a response on a branch, our Via already taken off."""

    branch: Branch
    response: Response


class Failed(NamedTuple):
    """Input: the branch got no answer: `status` 408 (timeout), 503 (transport), 430 (its flow is gone)."""

    branch: Branch
    status: int


class Silent(NamedTuple):
    """Input: nothing at all has come back where something should have by now.

    Another way is begun beside it, if there is one; with `lost` the branch is given up (408).
    """

    branch: Branch
    lost: bool = False


class Cancelled(NamedTuple):
    """Input: the caller sent CANCEL (and has its 200)."""


class Forward(NamedTuple):
    """Output: send the request on this branch, or feed Failed."""

    branch: Branch


class Respond(NamedTuple):
    """Output: send this response to the caller."""

    response: Response


class CancelBranch(NamedTuple):
    """Output: send CANCEL on this branch."""

    branch: Branch


class Relocate(NamedTuple):
    """Output: the records that led here are out of date: look the user up afresh, once, and feed Located."""


class Recurse(NamedTuple):
    """Output: a redirect is followed: look these (URI, q) up and feed one Located."""

    contacts: tuple[tuple[SipUri, float], ...]


class Finished(NamedTuple):
    """Output: the last one; every branch has ended."""


Input = Located | Answered | Failed | Silent | Cancelled
Output = Forward | Respond | CancelBranch | Relocate | Recurse | Finished


class ForwardingContext:
    """One request on its way to one or more targets.

    `request` is what was received (routes already taken). `ring_for` is timer C in seconds; where lower q waits,
    a branch may ring only `turn_for` seconds. `may_relocate` allows one fresh look-up when every branch says that
    the records were old (430, or a node that knows nothing of the user, or can't be reached). `hide_flow` answers
    480 for 430: what happened to a flow of the callee is nothing to a phone (RFC 5626 section 5.3). Redirects to
    users of `recurse` (domains) are followed. A 305 counts as 480: whoever is called does not choose the proxy through
    which others go on, past the ones that know them; the next lower q, and the other phones, are tried.

    `transaction`, `flow` (how the request came), `tag` (for its branches), `user` (who proved to send it,
    "user@domain"), `call` and `reasons` (values of Reason for the next response but 100) are only kept here, for the
    caller.
    """

    __slots__ = (
        "_answered",
        "_breadth",
        "_followed",
        "_looking",
        "_queue",
        "_recurse",
        "_ring_for",
        "_spares",
        "_turn_for",
        "branches",
        "call",
        "cancelled",
        "finished",
        "flow",
        "hide_flow",
        "invite",
        "may_relocate",
        "reasons",
        "request",
        "tag",
        "transaction",
        "user",
    )

    def __init__(
        self,
        request: Request,
        ring_for: float = 180.0,
        *,
        turn_for: float = 30.0,
        may_relocate: bool = False,
        hide_flow: bool = False,
        recurse: frozenset[str] = frozenset(),
        transaction: Any = None,
        flow: Any = None,
    ) -> None:
        self.request = request
        self.transaction = transaction
        self.flow = flow
        self.tag = ""
        self.call: Any = None
        self.user = ""
        self.reasons: tuple[str, ...] = ()
        self.invite = request.method == "INVITE"
        self.branches: list[Branch] = []
        self.cancelled = False
        self.finished = False
        self.may_relocate = may_relocate
        self.hide_flow = hide_flow
        self._recurse = recurse
        self._followed: set[str] | None = None
        self._ring_for = ring_for
        self._turn_for = turn_for
        self._answered = False
        self._breadth = 0
        # Look-ups whose Located has not come; the first one is under way from the beginning.
        self._looking = 1
        self._queue: list[Target] = []
        self._spares: list[Target] = []

    def receive(self, item: Input, now: float) -> list[Output]:
        """Take one input; the orders that follow."""
        match item:
            case Answered(branch, response):
                return self._take(branch, response, now)
            case Located(targets, status, reason):
                return self._locate(targets, status, reason, now)
            case Failed(branch, status):
                if branch.response is not None:
                    return []
                return self._final(branch, make_response(self.request, status), now)
            case Silent(branch, lost):
                return self._silent(branch, lost, now)
            case Cancelled():
                return self._cancel(now)
        return []

    def next_timer(self) -> float | None:
        """When the first branch has rung for too long, or has not honoured its CANCEL."""
        return min((due for b in self.branches if (due := _due(b)) is not None), default=None)

    def handle_timer(self, now: float) -> list[Output]:
        """Timer C (section 16.8): CANCEL where something was heard, else as if 408 had come."""
        outputs: list[Output] = []
        for branch in list(self.branches):
            due = _due(branch)
            if due is None or due > now:
                continue
            if branch.heard and not branch.cancelled:
                outputs.append(self._cancel_branch(branch, now))
            else:
                outputs += self._give_up(branch, now)
        return outputs

    def let_go(self) -> None:
        """The transaction is over. The branches know this context and themselves: of a finished one the circles are
        broken here, so that what a call held is free at once and not when the garbage is collected.
        """
        if self.finished:
            for branch in self.branches:
                branch.key = None
            self.branches = []

    # ---- places to go

    def _locate(self, targets: Sequence[Target], status: int, reason: str | None, now: float) -> list[Output]:
        self._looking -= 1
        if self._answered or self.finished:
            return []
        if self.cancelled:
            return self._settle(now, status, reason)
        room = MAX_BRANCHES - len(self.branches) - len(self._queue)
        if len(targets) == 1 and not self.branches and not self._queue:
            fresh: Sequence[Target] = targets
        else:
            known = {(b.target.uri, b.target.node_id, b.target.flow) for b in self.branches}
            known |= {(t.uri, t.node_id, t.flow) for t in (*self._queue, *self._spares)}
            fresh = [t for t in targets if (t.uri, t.node_id, t.flow) not in known][:room]
        if fresh:
            if not self.branches:
                self._breadth = max_breadth(self.request)
            taken = {b.target.instance for b in self.branches if b.response is None}
            for target in fresh:
                if target.instance and target.instance in taken:
                    self._spares.append(target)
                else:
                    taken.add(target.instance)
                    self._queue.append(target)
            if len(self._queue) > 1:
                self._queue.sort(key=_falling_q)
        return self._settle(now, status, reason)

    def _proceed(self, now: float) -> list[Output]:
        """Begin what may be begun now: the next group of equal q, as far as the breadth goes."""
        queue = self._queue
        if not queue or self.cancelled or self._answered:
            return []
        level = min((b.target.q for b in self.branches if b.response is None), default=queue[0].q)
        count = 0
        while count < len(queue) and queue[count].q >= level and count < self._breadth:
            count += 1
        if not count:
            return []
        group, self._queue = queue[:count], queue[count:]
        return [self._start(target, -(-self._breadth // (count - n)), now) for n, target in enumerate(group)]

    def _start(self, target: Target, share: int, now: float) -> Forward:
        if share > 1 and target.node_id is not None:
            # Should the node keep silent, another way is begun beside it.
            share -= 1
        self._breadth -= share
        branch = Branch(self, target, share)
        if self.invite:
            branch.deadline = now + self._ring_for
            if self._queue and self._queue[-1].q < target.q:
                branch.turn_ends = now + self._turn_for
        self.branches.append(branch)
        return Forward(branch)

    def _spare_of(self, branch: Branch) -> Target | None:
        instance = branch.target.instance
        for index, target in enumerate(self._spares):
            if target.instance == instance:
                return self._spares.pop(index)
        return None

    # ---- what comes back

    def _take(self, branch: Branch, response: Response, now: float) -> list[Output]:
        status = response.status
        if branch.response is not None:
            return self._late(response, now) if self.invite and 200 <= status < 300 else []
        branch.heard = True
        branch.superseded = False
        if status >= 200:
            return self._final(branch, response, now)
        if status == 100:
            return []
        if self.invite and not branch.cancelled:
            branch.deadline = now + self._ring_for
        return [] if self._answered else [Respond(response)]

    def _late(self, response: Response, now: float) -> list[Output]:
        """A 2xx on a branch that had ended: repeated, or quicker than our CANCEL, or slower than our patience.

        It still goes to the caller (section 16.7 step 5), and is the answer if there was none yet.
        """
        outputs: list[Output] = [Respond(response)]
        if not self._answered:
            self._answered = True
            outputs += self._cancel_rest(now)
            outputs += self._settle(now)
        return outputs

    def _final(self, branch: Branch, response: Response, now: float) -> list[Output]:
        if response.status == 305:
            response = make_response(self.request, 480)
        branch.response = response
        self._breadth += branch.breadth
        status = response.status
        outputs: list[Output] = []
        if status < 300:
            if self.invite or not self._answered:
                self._answered = True
                outputs.append(Respond(response))
            outputs += self._cancel_rest(now)
        elif status >= 600:
            outputs += self._cancel_rest(now)
        elif status in _UNREACHED and not self.cancelled and not self._answered:
            spare = self._spare_of(branch) if self._spares else None
            if spare is not None:
                branch.superseded = True
                outputs.append(self._start(spare, branch.breadth, now))
        elif status in _FOLLOWED and self._recurse and not self.cancelled and not self._answered:
            outputs += self._follow(branch, response)
        return outputs + self._settle(now)

    def _silent(self, branch: Branch, lost: bool, now: float) -> list[Output]:
        if branch.heard or branch.response is not None or branch.cancelled or self._answered:
            return []
        if lost:
            return self._give_up(branch, now)
        if self.request.to_tag is not None:
            # The phone has a dialog: a second copy of the request would confuse it.
            return []
        spare = self._spare_of(branch) if self._breadth > 0 else None
        if spare is not None:
            branch.superseded = True
            return [self._start(spare, 1, now)]
        return self._look_again()

    def _give_up(self, branch: Branch, now: float) -> list[Output]:
        outputs: list[Output] = [] if branch.cancelled else [self._cancel_branch(branch, now)]
        return outputs + self._final(branch, make_response(self.request, 408), now)

    def _look_again(self) -> list[Output]:
        if not self.may_relocate or self.cancelled:
            return []
        self.may_relocate = False
        self._looking += 1
        return [Relocate()]

    def _follow(self, branch: Branch, response: Response) -> list[Output]:
        """The contacts of a redirect that are users of ours are called here; the others are the caller's business."""
        followed = self._followed = self._followed or {self._asked_for()}
        ours: list[tuple[SipUri, float]] = []
        others = []
        try:
            for contact in response.contacts:
                uri = contact.uri
                if not isinstance(uri, SipUri) or uri.host not in self._recurse or not uri.user:
                    others.append(contact)
                elif uri.aor not in followed and len(followed) <= MAX_RECURSIONS:
                    followed.add(uri.aor)
                    ours.append((uri, 1.0 if contact.q is None else contact.q))
        except SipError:
            return []
        if not ours:
            return []
        if others:
            left = response.copy()
            left.set("Contact", ", ".join(str(contact) for contact in others))
            branch.response = left
        else:
            branch.superseded = True
        self._looking += 1
        return [Recurse(tuple(ours))]

    def _asked_for(self) -> str:
        uri = self.request.uri
        return uri.aor if isinstance(uri, SipUri) else self.request.uri_text

    # ---- cancelling

    def _cancel(self, now: float) -> list[Output]:
        if self.cancelled or self._answered or self.finished:
            return []
        self.cancelled = True
        if not any(branch.response is None for branch in self.branches):
            return self._end(make_response(self.request, 487))
        return self._cancel_rest(now)

    def _cancel_rest(self, now: float) -> list[Output]:
        self._spares.clear()
        self._queue.clear()
        if len(self.branches) == 1 or not self.invite:
            # The one that answered, or the one to cancel; only INVITEs are cancelled (section 9.1).
            only = self.branches[0]
            wanted = self.invite and only.response is None and not only.cancelled
            return [self._cancel_branch(only, now)] if wanted else []
        return [self._cancel_branch(b, now) for b in self.branches if b.response is None and not b.cancelled]

    def _cancel_branch(self, branch: Branch, now: float) -> CancelBranch:
        branch.cancelled = True
        branch.turn_ends = None
        branch.deadline = now + _CANCEL_WAIT
        return CancelBranch(branch)

    # ---- the answer

    def _settle(self, now: float, status: int = 480, reason: str | None = None) -> list[Output]:
        """After each step: begin what waits; when nothing is open any more, the best answer goes up (section
        16.7 step 6).
        """
        outputs: list[Output] = self._proceed(now) if self._queue else []
        if outputs or any(branch.response is None for branch in self.branches):
            return outputs
        if self._answered:
            self.finished = True
            return [Finished()]
        if self._looking > 0 and not self.cancelled:
            return []
        counted = [b for b in self.branches if b.response is not None and not b.superseded]
        if self.cancelled and not counted:
            return self._end(make_response(self.request, 487))
        if not counted:
            return self._end(make_response(self.request, status, reason))
        if all(_is_stale(b) for b in counted) and (again := self._look_again()):
            return again
        best = choose_best([b.response for b in counted if b.response is not None])
        if best.status in (404, 430, 503) and self.request.to_tag is not None and all(_is_stale(b) for b in counted):
            # The other side's registrar, or what it knew, is gone, and the phone is nowhere else: so is the dialog.
            return self._end(make_response(self.request, 481))
        return self._end(self._upstream(best))

    def _upstream(self, best: Response) -> Response:
        """What the caller is told for `best` (section 16.7 step 6)."""
        if self.cancelled and best.status == 408:
            return make_response(self.request, 487)
        if best.status == 503:
            return make_response(self.request, 500)
        if best.status == 430 and self.hide_flow:
            return make_response(self.request, 480)
        return best

    def _end(self, response: Response) -> list[Output]:
        self._answered = self.finished = True
        return [Respond(response), Finished()]


def _falling_q(target: Target) -> float:
    return -target.q


def _due(branch: Branch) -> float | None:
    if branch.response is not None:
        return None
    if branch.turn_ends is not None:
        return branch.turn_ends
    return branch.deadline


def _is_stale(branch: Branch) -> bool:
    """Whether the answer says that the record which led here is out of date (profile section 7)."""
    status = branch.response.status if branch.response is not None else 0
    if branch.target.node_id is None or (status == 408 and branch.heard):
        return status == 430
    return status in (404, 408, 430, 503)


def choose_best(responses: Sequence[Response]) -> Response:
    """The best of the final, non-2xx `responses` (section 16.7 steps 6 and 7): 6xx, else the lowest class.

    Challenges of all 401 and 407 are gathered into a 401 or 407 that is chosen.
    """
    best = min(responses, key=_rank)
    if best.status in (401, 407) and len(responses) > 1:
        best = best.copy()
        for other in responses:
            if other.status not in (401, 407):
                continue
            for name in ("WWW-Authenticate", "Proxy-Authenticate"):
                for value in other.get_all(name):
                    if value not in best.get_all(name):
                        best.add(name, value)
    return best


def _rank(response: Response) -> tuple[int, int, int]:
    status = response.status
    if status >= 600:
        return (0, 0, status)
    # A timeout made here or a dead flow says less than any answer of a phone in its class.
    weight = 0 if status in _RESUBMISSION else 2 if status in _UNREACHED else 1
    return (status // 100, weight, status)

"""The stateful proxy's rules: request validation, routes, forwarding, forks and the best response (RFC 3261
section 16).

What looks at one request stands in functions (:func:`validate`, :func:`take_routes`, :func:`build`); what
lives as long as a fork is :class:`ForwardingContext`, a core without I/O. It gets Located, Answered, Failed
and Cancelled, and orders Forward, Respond, CancelBranch, Relocate and Finished. Locating, connections and
Record-Route values are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from p2psipd.proto.sip.errors import MalformedMessage, SipError
from p2psipd.proto.sip.locating import Target, decode_gr
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.uri import SipUri, TelUri

DEFAULT_MAX_FORWARDS: Final = 70
MAX_BRANCHES: Final = 16
"""A request is never forked to more places than this."""

SUPPORTED: Final = ("path", "outbound")
"""Option tags that Proxy-Require may name."""

_CANCEL_WAIT: Final = 32.0
_DEFAULT_PORTS: Final = {"sip": 5060, "sips": 5061}
_TAG_OCTETS: Final = 8
_RESUBMISSION: Final = (401, 407, 415, 420, 484)
"""Among 4xx these are preferred: they let the caller mend its request (section 16.7 step 6)."""
_UNREACHED: Final = (408, 430, 503)
"""The target was not reached: another way to the same instance is tried (RFC 5626 section 5.3)."""


class Home(NamedTuple):
    """What this node answers to: (host, port) pairs of its listeners, its domains, its overlay name and
    Node-ID.
    """

    addresses: frozenset[tuple[str, int]]
    domains: frozenset[str]
    overlay: str
    node_id: bytes

    def owns(self, uri: SipUri) -> bool:
        """True when `uri` names this node as a hop (a Route that it wrote, or an outbound-proxy setting of a
        phone).
        """
        port = uri.port or _DEFAULT_PORTS[uri.scheme]
        if (uri.host, port) in self.addresses:
            return True
        if uri.host == self.overlay and uri.gr:
            destinations = decode_gr(uri.gr)
            return destinations is not None and destinations.node_id == self.node_id
        return uri.host in self.domains and uri.user is None and uri.port is None

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts of our addresses."""
        return frozenset(host for host, _ in self.addresses)


class Refused(SipError):
    """The proxy does not forward the request; `status`, `reason` and `headers` answer it, `why` is for
    counters.
    """

    def __init__(
        self, status: int, reason: str | None = None, headers: Sequence[tuple[str, str]] = (), why: str = ""
    ) -> None:
        super().__init__(reason or "", status=status)
        self.headers = tuple(headers)
        self.why = why


# ---- one request -------------------------------------------------------------------------------------------


def validate(request: Request, own_hops: frozenset[tuple[str, int]]) -> None:
    """Section 16.3 as far as it does not ask who the sender is; `own_hops` are the (host, port) of our own
    Vias.

    Raises Refused: 416 scheme, 483 Max-Forwards, 482 loop, 420 Proxy-Require.
    """
    uri = request.uri
    if not isinstance(uri, SipUri | TelUri):
        raise Refused(416, why="bad_scheme")
    if request.max_forwards == 0:
        raise Refused(483, why="too_many_hops")
    if request.has("proxy-require"):
        unsupported = [tag for tag in request.proxy_require if tag not in SUPPORTED]
        if unsupported:
            raise Refused(420, None, [("Unsupported", ", ".join(unsupported))], "bad_extension")
    vias = request.vias
    if len(vias) > 1:
        tag = None
        for via in vias:
            branch = via.branch
            if branch and via.sent_by in own_hops:
                tag = tag or loop_tag(request)
                if branch.endswith(tag):
                    raise Refused(482, why="loop")


def loop_tag(request: Request) -> str:
    """The part of our branch that tells a loop from a spiral (RFC 5393 section 4.2.1): 16 hex digits over
    what routes it.
    """
    parts = [request.uri_text, request.from_tag or "", request.to_tag or "", request.call_id, str(request.cseq.number)]
    parts += request.get_all("route")
    if request.has("proxy-require"):
        parts += request.proxy_require
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=_TAG_OCTETS).hexdigest()


def take_routes(request: Request, home: Home) -> list[SipUri]:
    """Remove the Route values on top that name this node, and undo strict routing (section 16.4); what was
    removed, in order.

    With double Record-Route (RFC 5658) two of ours stand together: both go.
    """
    if not request.has("route"):
        return []
    uri = request.uri
    if isinstance(uri, SipUri) and uri.lr and home.owns(uri):
        # A strict router before us put our own Route into the Request-URI; the true one is the last Route.
        values = request.get_all("route")
        request.set_uri(_uri_in_brackets(values[-1]))
        if len(values) > 1:
            request.set("Route", ", ".join(values[:-1]))
        else:
            request.remove("route")
        return [uri, *take_routes(request, home)]
    taken: list[SipUri] = []
    for route in request.routes:
        hop = route.uri
        if not isinstance(hop, SipUri) or not home.owns(hop):
            break
        taken.append(hop)
    for _ in taken:
        request.remove_first("route")
    return taken


def _uri_in_brackets(value: str) -> str:
    start, end = value.find("<"), value.rfind(">")
    if start < 0 or end < start:
        raise MalformedMessage("bad Route")
    return value[start + 1 : end]


def build(request: Request, target: Target, record_routes: Sequence[str] = ()) -> Request:
    """The copy of `request` that goes to `target` (section 16.6 steps 1 to 6); `record_routes` in the order
    they stand.

    Our Via is pushed by the transaction layer.
    """
    made = request.copy()
    if target.uri != request.uri_text:
        made.set_uri(target.uri)
    hops = request.max_forwards
    made.set("Max-Forwards", str(DEFAULT_MAX_FORWARDS if hops is None else hops - 1))
    for value in reversed(record_routes):
        made.prepend("Record-Route", value)
    for value in reversed(target.route):
        made.prepend("Route", value)
    if target.flow is None and target.node_id is None and made.has("route"):
        top = made.routes[0].uri
        if isinstance(top, SipUri) and not top.lr:
            made.add("Route", f"<{made.uri_text}>")
            made.remove_first("route")
            made.set_uri(top)
    return made


# ---- one fork ----------------------------------------------------------------------------------------------


class Branch:
    """One client transaction of a fork; also its key in the transaction layer (compared by identity).

    `response` is its final answer (one made here for a timeout or a failure), None while it is open.
    """

    __slots__ = ("cancelled", "context", "deadline", "provisional", "response", "target")

    def __init__(self, context: ForwardingContext, target: Target) -> None:
        self.context = context
        self.target = target
        self.response: Response | None = None
        self.provisional = False
        self.cancelled = False
        self.deadline: float | None = None


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


class Finished(NamedTuple):
    """Output: the last one; every branch has ended."""


Input = Located | Answered | Failed | Cancelled
Output = Forward | Respond | CancelBranch | Relocate | Finished


class ForwardingContext:
    """One request on its way to one or more targets: the response context of section 16.7.

    `request` is what was received (routes already taken); `ring_for` is timer C in seconds. `may_relocate`
    allows one fresh look-up when every branch says that the records were old (430, or 404 of a node).
    `hide_flow` answers 480 for 430: what happened to a flow of the callee is nothing to a phone (RFC 5626
    section 5.3).

    Targets of one instance are alternatives: the next is tried when one can't be reached. `transaction`,
    `flow` (how the request came) and `tag` (for its branches) are only kept here, for the caller.
    """

    __slots__ = (
        "_answered",
        "_ring_for",
        "_spares",
        "_superseded",
        "branches",
        "cancelled",
        "finished",
        "flow",
        "hide_flow",
        "invite",
        "may_relocate",
        "request",
        "tag",
        "transaction",
    )

    def __init__(
        self,
        request: Request,
        ring_for: float = 180.0,
        *,
        may_relocate: bool = False,
        hide_flow: bool = False,
        transaction: Any = None,
        flow: Any = None,
    ) -> None:
        self.request = request
        self.transaction = transaction
        self.flow = flow
        self.tag = ""
        self.invite = request.method == "INVITE"
        self.branches: list[Branch] = []
        self.cancelled = False
        self.finished = False
        self.may_relocate = may_relocate
        self.hide_flow = hide_flow
        self._ring_for = ring_for
        self._answered = False
        self._spares: list[Target] = []
        self._superseded: list[Branch] = []

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
            case Cancelled():
                return self._cancel(now)
        return []

    def next_timer(self) -> float | None:
        """When the first branch has rung for too long, or has not honoured its CANCEL."""
        return min((b.deadline for b in self.branches if b.deadline is not None and b.response is None), default=None)

    def handle_timer(self, now: float) -> list[Output]:
        """Timer C (section 16.8): CANCEL where something was heard, else as if 408 had come."""
        outputs: list[Output] = []
        for branch in self.branches:
            if branch.response is not None or branch.deadline is None or branch.deadline > now:
                continue
            if branch.provisional and not branch.cancelled:
                outputs.append(self._cancel_branch(branch, now))
            else:
                outputs += self._final(branch, make_response(self.request, 408), now)
        return outputs

    # ---- inputs

    def _locate(self, targets: Sequence[Target], status: int, reason: str | None, now: float) -> list[Output]:
        if self._answered or self.finished:
            return []
        tried = {(b.target.uri, b.target.node_id, b.target.flow) for b in self.branches}
        fresh = [t for t in targets if (t.uri, t.node_id, t.flow) not in tried][:MAX_BRANCHES]
        if self.cancelled or not fresh:
            if any(branch.response is None for branch in self.branches):
                return []
            if self.cancelled:
                return self._end(make_response(self.request, 487))
            return self._choose() if self.branches else self._end(make_response(self.request, status, reason))
        instances: set[str] = set()
        outputs: list[Output] = []
        for target in fresh:
            if target.instance and target.instance in instances:
                self._spares.append(target)
            else:
                instances.add(target.instance)
                outputs.append(self._start(target, now))
        return outputs

    def _start(self, target: Target, now: float) -> Forward:
        branch = Branch(self, target)
        if self.invite:
            branch.deadline = now + self._ring_for
        self.branches.append(branch)
        return Forward(branch)

    def _take(self, branch: Branch, response: Response, now: float) -> list[Output]:
        status = response.status
        if branch.response is not None:
            return self._late(response, now) if self.invite and 200 <= status < 300 else []
        if status >= 200:
            return self._final(branch, response, now)
        branch.provisional = True
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
            if all(branch.response is not None for branch in self.branches):
                self.finished = True
                outputs.append(Finished())
        return outputs

    def _final(self, branch: Branch, response: Response, now: float) -> list[Output]:
        branch.response = response
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
            spare = self._spare_of(branch)
            if spare is not None:
                self._superseded.append(branch)
                return [self._start(spare, now)]
        if any(other.response is None for other in self.branches):
            return outputs
        if not self._answered:
            return outputs + self._choose()
        self.finished = True
        outputs.append(Finished())
        return outputs

    def _spare_of(self, branch: Branch) -> Target | None:
        for index, target in enumerate(self._spares):
            if target.instance == branch.target.instance:
                return self._spares.pop(index)
        return None

    def _cancel(self, now: float) -> list[Output]:
        if self.cancelled or self._answered or self.finished:
            return []
        self.cancelled = True
        if not self.branches:
            return self._end(make_response(self.request, 487))
        return self._cancel_rest(now)

    def _cancel_rest(self, now: float) -> list[Output]:
        self._spares.clear()
        if not self.invite:
            return []
        return [self._cancel_branch(b, now) for b in self.branches if b.response is None and not b.cancelled]

    def _cancel_branch(self, branch: Branch, now: float) -> CancelBranch:
        branch.cancelled = True
        branch.deadline = now + _CANCEL_WAIT
        return CancelBranch(branch)

    # ---- the answer

    def _choose(self) -> list[Output]:
        counted = [b for b in self.branches if b.response is not None and b not in self._superseded]
        if self.may_relocate and not self.cancelled and counted and all(_is_stale(b) for b in counted):
            self.may_relocate = False
            return [Relocate()]
        best = choose_best([b.response for b in counted if b.response is not None])
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


def _is_stale(branch: Branch) -> bool:
    """Whether the answer says that the record which led here is out of date (profile section 7)."""
    status = branch.response.status if branch.response is not None else 0
    return status == 430 or (status == 404 and branch.target.node_id is not None)


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

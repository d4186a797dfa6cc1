"""What the SIP service tells about calls: one :class:`Call` from its INVITE to its BYE, and who is told.

A call record, an accounting system, or a voice mailbox that waits for unanswered calls is one CallObserver.
"""

from __future__ import annotations

from typing import Any, Protocol

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Binding


class Call:
    """One call that passes this node, as far as a proxy can know it. Observers may read it and keep it.

    `caller` and `callee` are URIs as text: who called (the asserted identity, else From) and the Request-URI that
    was asked for; `cseq` is the INVITE's; `user` is who proved to call, "user@domain", "" where another node or domain
    vouches. `came_on` is the flow of the INVITE, `went_on` the flow of the branch that rang or answered last, else of
    the first one that refused; their `peer` says who is there (None: a phone; NodeIdentity; DomainIdentity). `target`
    is the URI of that branch, and `binding` the Binding that led there, None where the callee is no user of ours.
    `identity` is what was proved about the caller: "digest", "node", "edge", what an Edge said, or "unproved". Times
    are unix seconds, 0 for what has not happened. `ended_by` is "caller" or "callee", "" where nobody hung up.
    """

    __slots__ = (
        "answered_at",
        "began_at",
        "binding",
        "call_id",
        "callee",
        "caller",
        "came_on",
        "cause",
        "cseq",
        "ended_at",
        "ended_by",
        "from_tag",
        "identity",
        "ringing_at",
        "target",
        "to_tag",
        "user",
        "went_on",
    )

    def __init__(
        self, call_id: str, from_tag: str, caller: str, callee: str, came_on: Flow, user: str, began_at: float
    ) -> None:
        self.call_id = call_id
        self.from_tag = from_tag
        self.to_tag = ""
        self.cseq = 0
        self.caller = caller
        self.callee = callee
        self.came_on: Any = came_on
        self.went_on: Any = None
        self.target = ""
        self.binding: Binding | None = None
        self.user = user
        self.identity = ""
        self.cause = ""
        self.began_at = began_at
        self.ringing_at = 0.0
        self.answered_at = 0.0
        self.ended_at = 0.0
        self.ended_by = ""


class CallObserver(Protocol):
    """Is told of calls as they happen; must be quick, and may not raise. Times stand in the call."""

    def began(self, call: Call) -> None:
        """An INVITE outside a dialog was admitted (its sender is proved)."""
        ...

    def ringing(self, call: Call) -> None:
        """The first provisional answer above 100."""
        ...

    def answered(self, call: Call) -> None:
        """The first 2xx."""
        ...

    def ended(self, call: Call) -> None:
        """The call is over; `call.cause` says how: "BYE", a final status ("486"), "cancelled", "lost"."""
        ...

"""What goes into the transaction layer and what comes out of it; `transaction` exports all of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response


class RandomSource(Protocol):
    """Where branches and tags come from: `random.Random` in a simulation, `random.SystemRandom` in a node."""

    def getrandbits(self, k: int, /) -> int:
        """An integer of `k` random bits."""
        ...


class Refusal(Protocol):
    """Why a request is refused before there is a transaction: what its answer is made of."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def reason(self) -> str:
        """The reason phrase; "" is the RFC's."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """Further header lines."""
        ...


class Timers(NamedTuple):
    """Seconds (RFC 3261 section 17.1.1.1, table 4)."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    trying_after: float | None = 0.2
    """How long after an INVITE the layer sends 100 if its user sent nothing; None: never."""
    abandon_after: float = 600.0
    """An INVITE without any word, on either side, for so long is over (a proxy's timer C is far below it)."""


class Limits(NamedTuple):
    """How many transactions may be open, and how many answered ones may linger for retransmissions."""

    open: int = 20_000
    lingering: int = 20_000


class MessageReceived(NamedTuple):
    """A parsed message came in on `flow`.

    The layer checks it and marks its top Via; the message is then the layer's.
    """

    flow: Flow
    message: Request | Response


class SendRequest(NamedTuple):
    """Start a client transaction.

    `key` is the caller's name for it, unique among its live ones, and the transaction's id in all outputs.
    The layer pushes our Via (`flow.sent_by`, a new branch with `branch_tag` appended) onto a copy: the
    request must not have it.
    """

    flow: Flow
    request: Request
    key: Hashable
    branch_tag: str = ""


class SendResponse(NamedTuple):
    """Answer a server transaction.  Unknown ids are ignored (RFC 6026 section 8.3).

    A 2xx to INVITE may be given again while the transaction lives.  To other requests, 1xx but 100, an
    early 100 over UDP and any 408 are not sent (RFC 4320).
    """

    transaction: str
    response: Response


class SendStateless(NamedTuple):
    """Send and forget: an ACK for a 2xx (our Via is pushed onto a copy), or a response as it is."""

    flow: Flow
    message: Request | Response


class Cancel(NamedTuple):
    """Cancel a client INVITE (RFC 3261 section 9.1), now or when its first provisional response comes.

    `reason` is the value of a Reason header for the CANCEL (RFC 3326).  The CANCEL's own outcome is not
    reported; if no final response to the INVITE follows in 64*T1, TransactionTimedOut is.
    """

    key: Hashable
    reason: str | None = None


class TransportFailed(NamedTuple):
    """The transport could not send, or a connection is gone.

    For all transactions of `flow` (over UDP: those that we began), or for the one of a SendMessage.
    """

    flow: Flow | None = None
    transaction: Hashable = None
    reason: str = "transport failure"


class SendMessage(NamedTuple):
    """Octets to put on `flow`; `transaction` is to be named in a TransportFailed if that is impossible."""

    flow: Flow
    data: bytes
    transaction: Hashable = None


class RequestReceived(NamedTuple):
    """A new request, its top Via marked with received and rport.

    ACK: `transaction` is None, `invite` the accepted INVITE if it can be known (RFC 2543 clients).  CANCEL:
    answer its own `transaction` (200, or 481); `invite` is the transaction that it cancels, None if there
    is none.
    """

    transaction: str | None
    flow: Flow
    request: Request
    invite: str | None = None


class ResponseReceived(NamedTuple):
    """A response to a SendRequest, our Via still on top: every 1xx, one final, each 2xx to an INVITE.

    `transaction` is its key; None for a 2xx to an INVITE whose transaction is gone (a user agent ACKs it, a
    proxy drops it, RFC 6026 section 7.3).
    """

    transaction: Hashable
    response: Response
    flow: Flow


class TransactionTimedOut(NamedTuple):
    """Client: no final response, to be taken as 408.  INVITE server: no ACK came, or its user forgot it."""

    transaction: Hashable


class TransactionFailed(NamedTuple):
    """The transport failed: on the client side as 503; on the server side the answer could not be delivered."""

    transaction: Hashable
    reason: str


class TransactionEnded(NamedTuple):
    """Nothing more will come of this transaction.

    Comes exactly once for each key and each server transaction.
    """

    transaction: Hashable


class MessageRejected(NamedTuple):
    """A malformed message, or one more than the limits allow; its answer, if any, has been sent."""

    flow: Flow
    error: SipError


Input = MessageReceived | SendRequest | SendResponse | SendStateless | Cancel | TransportFailed
Output = (
    SendMessage
    | RequestReceived
    | ResponseReceived
    | TransactionTimedOut
    | TransactionFailed
    | TransactionEnded
    | MessageRejected
)

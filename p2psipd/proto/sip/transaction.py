"""The transaction layer (RFC 3261 section 17, with RFC 6026 and RFC 4320).

One object holds all transactions, their index and their timers.  It is a Machine on monotonic time
(``now``, seconds); it dates nothing, and has no use for ``wall``.  A transaction is a small record with two
timers: *repeat* (timers A, E, G, and the moment for an automatic 100) and *expire* (B, D, F, H, I, J, K, L,
M).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import Enum, auto
from hashlib import blake2b
from typing import Any

from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import Via
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.transaction_items import (
    Cancel,
    Input,
    Limits,
    MessageReceived,
    MessageRejected,
    Output,
    RandomSource,
    Refusal,
    RequestReceived,
    ResponseReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    SendStateless,
    Timers,
    TransactionEnded,
    TransactionFailed,
    TransactionTimedOut,
    TransportFailed,
)
from p2psipd.proto.sip.transaction_timers import TimerTable

__all__ = [
    "COOKIE",
    "Cancel",
    "Input",
    "Limits",
    "MessageReceived",
    "MessageRejected",
    "Output",
    "RandomSource",
    "Refusal",
    "RequestReceived",
    "ResponseReceived",
    "SendMessage",
    "SendRequest",
    "SendResponse",
    "SendStateless",
    "State",
    "Timers",
    "TransactionEnded",
    "TransactionFailed",
    "TransactionLayer",
    "TransactionTimedOut",
    "TransportFailed",
]

COOKIE = "z9hG4bK"
_Key = tuple[Hashable, ...]
_RETRY_AFTER = tuple(str(seconds) for seconds in range(5, 13))
"""Who was refused together does not come back together."""
_RESERVED_PART = 20
_SHED = frozenset({"INVITE", "MESSAGE", "SUBSCRIBE", "REFER", "PUBLISH"})
"""What a node that is overloaded, or about to end, refuses outside of dialogs."""


class State(Enum):
    """The states of the four machines (RFC 6026 section 7)."""

    CALLING = auto()
    TRYING = auto()
    PROCEEDING = auto()
    ACCEPTED = auto()
    COMPLETED = auto()
    CONFIRMED = auto()
    ENDED = auto()


class _Transaction:
    """What client and server transactions have in common."""

    __slots__ = (
        "data",
        "expire_at",
        "failed",
        "flow",
        "index",
        "interval",
        "invite",
        "name",
        "repeat_at",
        "request",
        "state",
    )

    def __init__(self, name: Hashable, index: _Key, flow: Flow, invite: bool, state: State) -> None:
        self.name = name
        self.index = index
        self.flow = flow
        self.invite = invite
        self.state = state
        self.request: Request | None = None
        self.data: bytes | None = None
        self.interval = 0.0
        self.repeat_at: float | None = None
        self.expire_at: float | None = None
        self.failed = False


class _Client(_Transaction):
    """`data` is what is repeated: the request, and once a final response to an INVITE has come, its ACK."""

    __slots__ = ("cancel", "silent")

    def __init__(self, name: Hashable, index: _Key, flow: Flow, invite: bool) -> None:
        super().__init__(name, index, flow, invite, State.CALLING if invite else State.TRYING)
        self.cancel: Cancel | None = None
        self.silent = False


class _Server(_Transaction):
    """`data` is the last response sent, `request` what it answers: only routes and credentials of it may change."""

    __slots__ = ("began_at", "to_tag")

    began_at: float
    to_tag: str | None


class TransactionLayer:
    """All transactions of one node.

    `receive` takes an Input, `handle_timer` does what is due; both return Outputs in the order to perform
    them.  `shedding` (0 to 1) says how much of the new requests outside of dialogs is refused by a 503 for which no
    transaction is made: up to a half from strangers alone, from there on also from those that `knows` says have proved
    who they are, at 1 from everybody.  Only a misuse by the local user raises (SendRequest with a key that is in use,
    or an ACK): SipError.

    `refuse` is asked about each new request but ACK and CANCEL before a transaction is made for it: what it
    refuses is answered and forgotten (RFC 3261 section 8.2.7).  `spares` is asked about requests that are to be
    refused because there are too many: what it spares has a twentieth more room, and is never shed.
    """

    def __init__(
        self,
        random: RandomSource,
        timers: Timers = Timers(),
        limits: Limits = Limits(),
        refuse: Callable[[Flow, Request], Refusal | None] | None = None,
        spares: Callable[[Flow, Request], bool] = lambda flow, request: False,
        knows: Callable[[Flow], bool] = lambda flow: True,
    ) -> None:
        self.shedding = 0.0
        self._refuse = refuse
        self._spares = spares
        self._knows = knows
        self._most = limits.open + limits.open // _RESERVED_PART
        self._tag_key = random.getrandbits(128).to_bytes(16, "big")
        self._to_shed = 0.0
        self._draws = 0
        self._timers = timers
        self._limits = limits
        self._timeout = 64 * timers.t1
        self._until_t2 = _until_t2(timers)
        self._servers: dict[_Key, _Server] = {}
        self._server_names: dict[str, _Server] = {}
        self._clients: dict[_Key, _Client] = {}
        self._client_names: dict[Hashable, _Client] = {}
        self._fresh: list[_Server] = []
        self._by_flow: dict[Flow, dict[_Transaction, None]] = {}
        # A plain dict finds its oldest entry only past all those that were deleted before it.
        self._lingering: OrderedDict[_Transaction, None] = OrderedDict()
        self._begun = 0
        self._out: list[Output] = []
        self._table: TimerTable[_Transaction] = TimerTable(
            (timers.trying_after or timers.t1, timers.t1, self._until_t2, timers.t4, self._timeout)
        )
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            SendRequest: self._start_client,
            SendResponse: self._send_response,
            SendStateless: self._send_stateless,
            Cancel: self._cancel,
            TransportFailed: self._transport_failed,
        }

    # -- the machine's face --------------------------------------------------------------------------------

    def receive(self, item: Input, now: float, wall: float = 0.0) -> list[Output]:
        """Take one input; what to do because of it."""
        if type(item) is not MessageReceived:
            self._handlers[type(item)](item, now)
        elif isinstance(item.message, Request):
            self._request_received(item.flow, item.message, now)
        else:
            self._response_received(item.flow, item.message, now)
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        if self._fresh:
            self._await_answers()
        return self._table.next()

    def handle_timer(self, now: float, wall: float = 0.0) -> list[Output]:
        """Do what is due at `now`."""
        self._await_answers()
        while (due := self._table.due(now)) is not None:
            transaction, expired = due
            if expired:
                self._expired(transaction, now)
            else:
                self._repeat(transaction, now)
        out, self._out = self._out, []
        return out

    def _send_response(self, item: SendResponse, now: float) -> None:
        server = self._server_names.get(item.transaction)
        if server is not None:
            self._respond(server, item.response, now)

    @property
    def most_open(self) -> int:
        """So many may wait for a final response; requests beyond are refused."""
        return self._limits.open

    @property
    def open_count(self) -> int:
        """Transactions that wait for a final response."""
        return len(self._servers) + len(self._clients) - len(self._lingering)

    @property
    def lingering_count(self) -> int:
        """Transactions kept for retransmissions only."""
        return len(self._lingering)

    def new_branch(self, tag: str = "") -> str:
        """A new branch: the cookie, 80 bits that nobody can foretell, `tag` (RFC 3261 section 8.1.1.7)."""
        return f"{COOKIE}{self._drawn(10)}{tag}"

    def new_tag(self) -> str:
        """A new From or To tag: 64 bits that nobody can foretell (RFC 3261 section 19.3)."""
        return self._drawn(8)

    def _drawn(self, octets: int) -> str:
        """So many octets, as hexadecimal digits, that only we can tell from random ones: a count, keyed."""
        self._draws += 1
        return blake2b(self._draws.to_bytes(8, "big"), key=self._tag_key, digest_size=octets).hexdigest()

    # -- timers and bookkeeping ----------------------------------------------------------------------------

    def _linger(self, transaction: _Transaction, state: State, now: float, seconds: float) -> None:
        """Answered: keep it only for retransmissions.  Under pressure the oldest such go early."""
        transaction.state = state
        if transaction.repeat_at is not None:
            self._table.stop_repeat(transaction)
        self._table.expire(transaction, now, seconds)
        self._lingering[transaction] = None
        if len(self._lingering) > self._limits.lingering:
            self._end(next(iter(self._lingering)))

    def _end(self, transaction: _Transaction) -> None:
        if transaction.state is State.ENDED:
            return
        transaction.state = State.ENDED
        self._table.stop(transaction)
        transaction.request = transaction.data = None
        self._lingering.pop(transaction, None)
        peers = self._by_flow.get(transaction.flow)
        if peers is not None:
            peers.pop(transaction, None)
            if not peers:
                del self._by_flow[transaction.flow]
        if isinstance(transaction, _Client):
            del self._clients[transaction.index]
            if transaction.silent:
                return
            del self._client_names[transaction.name]
        elif isinstance(transaction, _Server):
            del self._servers[transaction.index]
            del self._server_names[str(transaction.name)]
        self._out.append(TransactionEnded(transaction.name))

    def _expired(self, transaction: _Transaction, now: float) -> None:
        waiting = transaction not in self._lingering
        if isinstance(transaction, _Server):
            if transaction.invite and (waiting or transaction.state is State.COMPLETED):
                if waiting and transaction.request is not None:
                    self._send(transaction, make_response(transaction.request, 408, to_tag=self.new_tag()).encode())
                self._out.append(TransactionTimedOut(transaction.name))
        elif isinstance(transaction, _Client) and waiting and not transaction.silent:
            self._out.append(TransactionTimedOut(transaction.name))
        self._end(transaction)

    def _repeat(self, transaction: _Transaction, now: float) -> None:
        """Timers A, E and G; on a server transaction that has not answered, time for a 100."""
        if isinstance(transaction, _Server) and transaction not in self._lingering:
            if transaction.request is not None and transaction.data is None:
                transaction.data = make_response(transaction.request, 100).encode()
                transaction.state = State.PROCEEDING
                self._send(transaction, transaction.data)
            self._table.expire(transaction, now, self._patience(transaction) - now)
            return
        if transaction.data is None:
            return
        self._send(transaction, transaction.data)
        transaction.interval *= 2
        if transaction.state is State.PROCEEDING:
            transaction.interval = self._timers.t2
        elif transaction.state is not State.CALLING:
            transaction.interval = min(transaction.interval, self._timers.t2)
        self._table.repeat(transaction, now, transaction.interval)

    def _patience(self, server: _Server) -> float:
        """Until when an unanswered server transaction waits for its user."""
        return server.began_at + (self._timers.abandon_after if server.invite else self._timeout)

    def _send(self, transaction: _Transaction, data: bytes) -> None:
        silent = isinstance(transaction, _Client) and transaction.silent
        self._out.append(SendMessage(transaction.flow, data, None if silent else transaction.name))

    # -- server side ---------------------------------------------------------------------------------------

    def _request_received(self, flow: Flow, request: Request, now: float) -> None:
        try:
            request.check()
        except SipError as error:
            self._reject(flow, error)
            return
        method = request.method
        via = request.top_via
        index = _server_index(request, via, "INVITE" if method == "ACK" else method)
        server = self._servers.get(index)
        if method == "ACK":
            self._ack_received(flow, request, server, now)
        elif server is not None:
            if server.data is not None and server.state in (State.PROCEEDING, State.COMPLETED):
                self._send(server, server.data)
        elif self._is_too_much(flow, request):
            self._reject(flow, SipError("Service Unavailable", status=503, request=request))
        elif self._refuse is None or method == "CANCEL" or not self._refused(flow, request, self._refuse):
            self._start_server(flow, request, index, now)

    def _refused(self, flow: Flow, request: Request, refuse: Callable[[Flow, Request], Refusal | None]) -> bool:
        refusal = refuse(flow, request)
        if refusal is None:
            return False
        via = request.set_via_received(*flow.remote)
        # The same tag for each copy of the request, without remembering any.
        tag = blake2b(str(via).encode("utf-8", "replace"), key=self._tag_key, digest_size=8).hexdigest()
        answer = make_response(request, refusal.status, refusal.reason or None, tag, refusal.headers)
        self._out.append(SendMessage(_flow_back(flow, via), answer.encode()))
        return True

    def _is_too_much(self, flow: Flow, request: Request) -> bool:
        """Whether there are too many transactions for one more, or this one is of the part that is shed."""
        open_count = self.open_count
        if open_count < self._limits.open and not (self.shedding and self._is_shed(flow, request)):
            return False
        return open_count >= self._most or not self._spares(flow, request)

    def _is_shed(self, flow: Flow, request: Request) -> bool:
        if request.method not in _SHED or request.to_tag is not None:
            return False
        part = 2.0 * self.shedding
        if self._knows(flow):
            part -= 1.0
        self._to_shed += min(max(part, 0.0), 1.0)
        if self._to_shed < 1.0:
            return False
        self._to_shed -= 1.0
        return True

    def _reject(self, flow: Flow, error: SipError) -> None:
        request = error.request
        if request is not None:
            tag = self.new_tag()
            wait = _RETRY_AFTER[int(tag[-1], 16) % len(_RETRY_AFTER)]
            headers = [("Retry-After", wait)] if error.status == 503 else []
            try:
                via = request.set_via_received(*flow.remote)
                flow_back = _flow_back(flow, via)
            except SipError:
                flow_back = flow
            answer = make_response(request, error.status, error.reason, tag, headers)
            self._out.append(SendMessage(flow_back, answer.encode()))
        self._out.append(MessageRejected(flow, error))

    def _start_server(self, flow: Flow, request: Request, index: _Key, now: float) -> None:
        via = request.set_via_received(*flow.remote)
        self._begun += 1
        name = f"s{self._begun}"
        invite = request.method == "INVITE"
        server = _Server(name, index, _flow_back(flow, via), invite, State.PROCEEDING if invite else State.TRYING)
        server.request, server.began_at, server.to_tag = request, now, None
        self._servers[index] = server
        self._server_names[name] = server
        if server.flow.reliable:
            self._by_flow.setdefault(server.flow, {})[server] = None
        self._fresh.append(server)
        cancelled = None
        if request.method == "CANCEL":
            original = self._servers.get(_server_index(request, request.top_via, "INVITE", index))
            cancelled = str(original.name) if original is not None else None
        self._out.append(RequestReceived(name, flow, request, cancelled))

    def _await_answers(self) -> None:
        """Arm the timers of server transactions that their user has not answered at once, as it does with most.

        The end of one that is never answered is armed when its automatic 100 is due: few get there.
        """
        fresh, self._fresh = self._fresh, []
        for server in fresh:
            if server.request is None or server.data is not None:
                continue
            if not server.invite:
                # RFC 4320 section 4.1: by the time timer E would have reached T2.
                self._table.repeat(server, server.began_at, self._until_t2)
            elif self._timers.trying_after is not None:
                self._table.repeat(server, server.began_at, self._timers.trying_after)
            else:
                self._table.expire(server, server.began_at, self._timers.abandon_after)

    def _ack_received(self, flow: Flow, request: Request, server: _Server | None, now: float) -> None:
        if server is not None and server.to_tag is not None and request.to_tag not in (None, server.to_tag):
            server = None
        if server is None or server.state is State.ACCEPTED:
            request.set_via_received(*flow.remote)
            self._out.append(RequestReceived(None, flow, request, str(server.name) if server else None))
        elif server.state is State.COMPLETED:
            server.data = None
            server.state = State.CONFIRMED
            self._table.stop_repeat(server)
            if server.flow.reliable:
                self._end(server)
            else:
                self._table.expire(server, now, self._timers.t4)

    def _respond(self, server: _Server, response: Response, now: float) -> None:
        if server in self._lingering:
            if server.state is State.ACCEPTED and 200 <= response.status < 300:
                self._send(server, response.encode())
            return
        if not server.invite:
            self._respond_plain(server, response, now)
            return
        data = response.encode()
        self._send(server, data)
        if response.status < 200:
            server.data = data
            self._table.stop_repeat(server)
            self._table.expire(server, now, self._timers.abandon_after)
            return
        server.request = server.data = None
        if response.status < 300:
            self._note_tag(server, response)
            self._linger(server, State.ACCEPTED, now, self._timeout)
            return
        server.data = data
        self._note_tag(server, response)
        self._linger(server, State.COMPLETED, now, self._timeout)
        if not server.flow.reliable and server.state is State.COMPLETED:
            server.interval = self._timers.t1
            self._table.repeat(server, now, server.interval)

    def _note_tag(self, server: _Server, response: Response) -> None:
        """An RFC 2543 client's ACK is told from others' by the To tag (RFC 3261 section 17.2.3)."""
        if len(server.index) != _NEW_INDEX:
            try:
                server.to_tag = response.to_tag
            except SipError:
                server.to_tag = None

    def _respond_plain(self, server: _Server, response: Response, now: float) -> None:
        """To a request other than INVITE, within RFC 4320 section 4."""
        status = response.status
        if status < 200:
            early = not server.flow.reliable and now < server.began_at + self._until_t2
            if status == 100 and not early:
                server.data = response.encode()
                server.state = State.PROCEEDING
                self._table.stop_repeat(server)
                self._table.expire(server, now, self._patience(server) - now)
                self._send(server, server.data)
            return
        server.request = server.data = None
        if status != 408:
            server.data = response.encode()
            self._out.append(SendMessage(server.flow, server.data, server.name))
        if server.flow.reliable:
            self._end(server)
        else:
            self._linger(server, State.COMPLETED, now, self._timeout)

    # -- client side ---------------------------------------------------------------------------------------

    def _via(self, flow: Flow, branch: str) -> Via:
        host, port = flow.sent_by
        flag = ("alias" if flow.alias else None) if flow.reliable else "rport"
        return Via.own(flow.transport, host, port or None, branch, flag)

    def _start_client(self, item: SendRequest, now: float) -> None:
        flow, request, key, branch_tag = item
        if request.method == "ACK" or key in self._client_names:
            raise SipError("an ACK has no transaction, and keys are unique", status=500)
        if self.open_count >= self._most:
            self._out += (TransactionFailed(key, "too many transactions"), TransactionEnded(key))
            return
        branch = self.new_branch(branch_tag)
        sent = request.copy()
        sent.push_via(self._via(flow, branch))
        client = _Client(key, (branch, request.method), flow, request.method == "INVITE")
        self._client_names[key] = client
        self._launch(client, sent, now)

    def _launch(self, client: _Client, sent: Request, now: float) -> None:
        self._clients[client.index] = client
        self._by_flow.setdefault(client.flow, {})[client] = None
        data = sent.encode()
        if client.invite:
            client.request = sent
        if not client.flow.reliable:
            client.data = data
            client.interval = self._timers.t1
            self._table.repeat(client, now, client.interval)
        self._table.expire(client, now, self._timeout)
        self._send(client, data)

    def _send_stateless(self, item: SendStateless, now: float) -> None:
        flow, message = item
        if isinstance(message, Request):
            message = message.copy()
            message.push_via(self._via(flow, self.new_branch()))
        self._out.append(SendMessage(flow, message.encode()))

    def _response_received(self, flow: Flow, response: Response, now: float) -> None:
        try:
            response.check()
        except SipError as error:
            self._out.append(MessageRejected(flow, error))
            return
        via, method = response.top_via, response.cseq.method
        client = self._clients.get((via.branch, method))
        if client is None and via.branch is not None:
            # A token is the same in capitals (RFC 3261 section 7.3.1); ours have none beyond the cookie.
            client = self._clients.get((COOKIE + via.branch[len(COOKIE) :].lower(), method))
        if client is None:
            # RFC 3261 section 18.1.2: only what was sent by us.
            mine = via.host == flow.sent_by[0].lower() and via.sent_by[1] == (flow.sent_by[1] or via.default_port)
            if mine and method == "INVITE" and 200 <= response.status < 300:
                self._out.append(ResponseReceived(None, response, flow))
        elif client.invite:
            self._invite_answered(client, response, flow, now)
        else:
            self._plain_answered(client, response, flow, now)

    def _invite_answered(self, client: _Client, response: Response, flow: Flow, now: float) -> None:
        status = response.status
        if client in self._lingering:
            if client.state is State.ACCEPTED:
                if 200 <= status < 300:
                    self._out.append(ResponseReceived(client.name, response, flow))
            elif status >= 300 and client.data is not None:
                self._send(client, client.data)
            return
        if status < 200:
            client.state = State.PROCEEDING
            client.data = None
            self._table.stop_repeat(client)
            if client.cancel is None:
                self._table.expire(client, now, self._timers.abandon_after)
            self._out.append(ResponseReceived(client.name, response, flow))
            if client.cancel is not None and client.request is not None:
                self._send_cancel(client, client.request, now)
            return
        request, client.request, client.data = client.request, None, None
        if status >= 300 and request is not None:
            ack = _ack_for(request, response).encode()
            client.data = ack
            self._send(client, ack)
        self._out.append(ResponseReceived(client.name, response, flow))
        if status < 300:
            self._linger(client, State.ACCEPTED, now, self._timeout)
        elif client.flow.reliable:
            self._end(client)
        else:
            self._linger(client, State.COMPLETED, now, self._timeout)

    def _plain_answered(self, client: _Client, response: Response, flow: Flow, now: float) -> None:
        if client in self._lingering:
            return
        if not client.silent:
            self._out.append(ResponseReceived(client.name, response, flow))
        if response.status < 200:
            client.state = State.PROCEEDING
        elif client.flow.reliable:
            self._end(client)
        else:
            client.data = None
            self._linger(client, State.COMPLETED, now, self._timers.t4)

    def _cancel(self, item: Cancel, now: float) -> None:
        client = self._client_names.get(item.key)
        if client is None or not client.invite or client.cancel is not None or client in self._lingering:
            return
        client.cancel = item
        if client.state is State.PROCEEDING and client.request is not None:
            self._send_cancel(client, client.request, now)

    def _send_cancel(self, client: _Client, request: Request, now: float) -> None:
        """Once, and from here on the INVITE has 64*T1 to be answered (RFC 3261 section 9.1)."""
        reason = client.cancel.reason if client.cancel is not None else None
        index = (client.index[0], "CANCEL")
        if index in self._clients or client.request is None:
            return
        cancel = _derived(request, "CANCEL")
        if reason is not None:
            cancel.add("Reason", reason)
        self._table.expire(client, now, self._timeout)
        child = _Client(None, index, client.flow, False)
        child.silent = True
        self._launch(child, cancel, now)

    # -- transport faults ----------------------------------------------------------------------------------

    def _transport_failed(self, item: TransportFailed, now: float) -> None:
        touched: list[_Transaction] = []
        if item.flow is not None:
            touched += self._by_flow.get(item.flow, ())
        if item.transaction is not None:
            found = self._client_names.get(item.transaction) or self._server_names.get(str(item.transaction))
            if found is not None:
                touched.append(found)
        for transaction in touched:
            self._failed(transaction, item.reason)

    def _failed(self, transaction: _Transaction, reason: str) -> None:
        if transaction.failed or transaction.state is State.ENDED:
            return
        silent = isinstance(transaction, _Client) and transaction.silent
        if isinstance(transaction, _Client) and transaction in self._lingering:
            return
        transaction.failed = True
        if not silent:
            self._out.append(TransactionFailed(transaction.name, reason))
        # RFC 6026 section 7.1: an INVITE server transaction stays, to absorb retransmissions.
        if not (isinstance(transaction, _Server) and transaction.invite):
            self._end(transaction)


# A server transaction is found by branch, sent-by and method; RFC 2543's by more (RFC 3261 section 17.2.3).
_NEW_INDEX = 4


def _server_index(request: Request, via: Via, method: str, like: _Key | None = None) -> _Key:
    """The index of a request under `method`; with `like`, of the same request's other method."""
    if like is not None:
        return (*like[:-1], method)
    branch = via.branch
    if branch is not None and len(branch) > len(COOKIE) and branch.startswith(COOKIE):
        return (branch.lower(), via.host, via.port or 0, method)
    return (request.uri_text, request.from_tag, request.call_id, request.cseq.number, str(via), "2543", method)


def _flow_back(flow: Flow, via: Via) -> Flow:
    """Where answers go (RFC 3261 section 18.2.2, RFC 3581 section 4).

    A maddr of the request is not followed: it would let anybody aim our answers at a third party.
    """
    if flow.reliable or (via.asks_port and via.rport):
        return flow
    host, port = flow.remote
    back = via.port if via.port is not None else via.default_port
    return flow if back == port else flow.towards((host, back))


def _until_t2(timers: Timers) -> float:
    """How long it takes timer E to be reset to T2 (RFC 4320 section 4.1): 3.5 s with the default values."""
    total, interval = 0.0, timers.t1
    while interval < timers.t2:
        total += interval
        interval *= 2
    return total


_DERIVED = frozenset({"from", "to", "call-id", "route"})


def _derived(request: Request, method: str) -> Request:
    """CANCEL or ACK of a sent INVITE: its Request-URI, top Via, From, To, Call-ID, CSeq number and Routes."""
    made = Request(method, request.uri_text, [("Via", str(request.top_via)), ("Max-Forwards", "70")])
    for name, line in request.headers:
        if name in _DERIVED:
            made.add_raw(name, line)
    made.set("CSeq", f"{request.cseq.number} {method}")
    return made


def _ack_for(request: Request, response: Response) -> Request:
    """The ACK for a non-2xx response (RFC 3261 section 17.1.1.3): as CANCEL, with the response's To."""
    ack = _derived(request, "ACK")
    ack.set("To", response.get("to") or "")
    return ack

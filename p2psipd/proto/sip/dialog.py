"""Dialogs of a user agent: the state that two phones share for a call (RFC 3261 section 12)."""

from __future__ import annotations

from collections.abc import Iterable

from p2psipd.proto.sip.errors import MalformedMessage
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.uri import SipUri, Uri

MAX_FORWARDS = "70"


class Dialog:
    """One dialog: identifiers, sequence numbers, route set and remote target (RFC 3261 section 12).

    `local` and `remote` are the From and To values that we write (with tags); `remote_target` is where
    requests go in the end, `routes` what they pass. `remote_cseq` is None until the far side sent a request
    in the dialog.
    """

    __slots__ = (
        "call_id",
        "local",
        "local_cseq",
        "local_tag",
        "remote",
        "remote_cseq",
        "remote_tag",
        "remote_target",
        "routes",
    )

    def __init__(
        self,
        call_id: str,
        local: str,
        remote: str,
        remote_target: Uri,
        routes: Iterable[NameAddr] = (),
        local_cseq: int = 1,
        remote_cseq: int | None = None,
    ) -> None:
        self.call_id = call_id
        self.local = local
        self.remote = remote
        self.local_tag = NameAddr.parse(local).tag or ""
        self.remote_tag = NameAddr.parse(remote).tag or ""
        self.remote_target = remote_target
        self.routes = tuple(routes)
        self.local_cseq = local_cseq
        self.remote_cseq = remote_cseq

    @classmethod
    def of_caller(cls, request: Request, response: Response) -> Dialog:
        """The dialog that `response` (a 2xx, or a 1xx with a To tag) makes at the one who sent `request`.

        RFC 3261 section 12.1.2: the route set is Record-Route in reverse order. MalformedMessage without a
        Contact.
        """
        return cls(
            response.call_id,
            _value(request, "from"),
            _value(response, "to"),
            _contact_of(response),
            reversed(response.record_routes),
            request.cseq.number,
        )

    @classmethod
    def of_callee(cls, request: Request, local_tag: str) -> Dialog:
        """The dialog that answering `request` makes at the one who received it (RFC 3261 section 12.1.1)."""
        to = NameAddr.parse(_value(request, "to")).with_param("tag", local_tag)
        return cls(
            request.call_id,
            str(to),
            _value(request, "from"),
            _contact_of(request),
            request.record_routes,
            0,
            request.cseq.number,
        )

    @property
    def next_hop(self) -> Uri:
        """Where the next request is sent: the first route, else the remote target."""
        return self.routes[0].uri if self.routes else self.remote_target

    def matches(self, message: Request | Response, *, from_remote: bool) -> bool:
        """Does `message` belong to this dialog? `from_remote`: a request of the far side, else a response to
        ours."""
        near, far = (message.to_tag, message.from_tag) if from_remote else (message.from_tag, message.to_tag)
        return (
            message.call_id == self.call_id
            and (near or "") == self.local_tag
            and (far or "") == self.remote_tag
        )

    def request(self, method: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Request:
        """A new request in the dialog, its CSeq one higher (RFC 3261 section 12.2.1.1); our Via is yet to
        come."""
        self.local_cseq += 1
        return self._build(method, self.local_cseq, headers, body)

    def ack(self, cseq: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Request:
        """The ACK for a 2xx to our INVITE of number `cseq` (RFC 3261 section 13.2.2.4)."""
        return self._build("ACK", cseq, headers, body)

    def _build(self, method: str, cseq: int, headers: Iterable[tuple[str, str]], body: bytes) -> Request:
        target: Uri = self.remote_target
        routes = [str(route) for route in self.routes]
        first = self.routes[0].uri if self.routes else None
        if isinstance(first, SipUri) and not first.lr:
            # A strict router wants itself in the Request-URI and the target at the end (RFC 3261 section
            # 12.2.1.1).
            routes = [*routes[1:], f"<{target}>"]
            target = first
        lines = [("Route", route) for route in routes]
        lines += [
            ("Max-Forwards", MAX_FORWARDS),
            ("From", self.local),
            ("To", self.remote),
            ("Call-ID", self.call_id),
            ("CSeq", f"{cseq} {method}"),
        ]
        return Request(method, str(target), [*lines, *headers], body)

    def accept(self, request: Request) -> bool:
        """Note a request of the far side; False if its CSeq is not higher than the last (500: section
        12.2.2).

        An ACK has the number of its INVITE and is always in order.
        """
        number = request.cseq.number
        if request.method == "ACK":
            return True
        if self.remote_cseq is not None and number <= self.remote_cseq:
            return False
        self.remote_cseq = number
        return True

    def refresh_target(self, message: Request | Response) -> None:
        """Take the Contact of a target refresh (a re-INVITE or the 2xx to one) as the new remote target."""
        contacts = message.contacts
        if contacts:
            self.remote_target = contacts[0].uri


def _value(message: Request | Response, name: str) -> str:
    value = message.get(name)
    if value is None:
        raise MalformedMessage(f"no {name} header")
    return value


def _contact_of(message: Request | Response) -> Uri:
    contacts = message.contacts
    if not contacts:
        raise MalformedMessage("a message that makes a dialog has a Contact")
    return contacts[0].uri

"""SIP over WebSocket, the server's side (RFC 7118), for browsers.

One connection: the HTTP upgrade, then one SIP message a WebSocket message. wsproto knows RFC 6455; nothing here
waits for the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from p2psipd.net.connections import Limits, SipConnection, Table
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.message import parse_message
from p2psipd.proto.sip.stream import PING, PONG

if TYPE_CHECKING:
    from wsproto.events import Event

SUBPROTOCOL: Final = "sip"
MAX_MESSAGE: Final = 128 * 1024
"""Octets of one WebSocket message, about header and body of the largest message that a stream may carry."""
QUIET_SECONDS: Final = 30.0
"""A connection that has been silent for so long is pinged: browsers send no keep-alives of their own (section 6)."""
DEAD_SECONDS: Final = 90.0

_MAX_HANDSHAKE: Final = 16 * 1024

OriginPolicy = Callable[[str], bool]
"""Whether pages of this origin ("https://phone.example", "" where none is named) may connect."""


def any_origin(origin: str) -> bool:
    """Every origin may connect: what is done here needs a SIP password, not a cookie."""
    return True


class SipWebSocket(SipConnection):
    """One WebSocket connection. Until the upgrade is done it is not `alive`."""

    def __init__(self, owner: Table, number: int, name: str, host: str, origins: OriginPolicy = any_origin) -> None:
        super().__init__(owner, number, name, host, True)
        self._origins = origins
        self._socket = WSConnection(ConnectionType.SERVER)
        self._handshake_octets = 0
        self._parts: list[bytes] = []
        self._size = 0

    # ---- the upgrade (RFC 6455 section 4.2) ----------------------------------------------------------------

    def _connected(self) -> None:
        """TCP or TLS is up; the deadline of the handshake now holds for the upgrade."""
        self._awaited = "upgrade to WebSocket"
        self._await_handshake()

    def dataReceived(self, data: bytes) -> None:
        """Octets of the upgrade request, then of frames."""
        if self.alive:
            super().dataReceived(data)
        elif self.closing_since is None:
            self._upgrade(data)

    def _upgrade(self, data: bytes) -> None:
        self._handshake_octets += len(data)
        if self._handshake_octets > _MAX_HANDSHAKE:
            self._reject(431, "the request is too long")
            return
        try:
            self._socket.receive_data(data)
            events = list(self._socket.events())
        except RemoteProtocolError as error:
            hint = error.event_hint if isinstance(error.event_hint, RejectConnection) else RejectConnection()
            self._reject(hint.status_code, str(error), hint.headers)
            return
        except ValueError:
            # Octets in the request line or a header that are no text.
            self._reject(400, "the request cannot be read")
            return
        for event in events:
            if isinstance(event, Request):
                self._judge(event)
                return

    def _judge(self, request: Request) -> None:
        """Accept the upgrade, or say why not."""
        origin = _header(request, b"origin")
        if SUBPROTOCOL not in (name.lower() for name in request.subprotocols):
            self._reject(400, 'the subprotocol "sip" is not offered')
        elif not self._origins(origin):
            self._reject(403, "this origin is not allowed", origin=origin)
        else:
            wanted = next(name for name in request.subprotocols if name.lower() == SUBPROTOCOL)
            self._handshake_is_over()
            rest = self._socket.send(AcceptConnection(subprotocol=wanted))
            transport: Any = self.transport
            transport.write(rest)
            self._up()

    def _reject(self, status: int, why: str, headers: Any = (), *, origin: str = "") -> None:
        """An HTTP answer to what is no upgrade that we take; the log is told of which `origin` it was."""
        text = why.encode("ascii", "replace") + b"\n"
        answer = RejectConnection(
            status_code=status,
            headers=[
                *headers,
                (b"Content-Type", b"text/plain"),
                (b"Content-Length", str(len(text)).encode()),
                (b"Connection", b"close"),
            ],
            has_body=True,
        )
        try:
            data = self._socket.send(answer) + self._socket.send(RejectData(text))
        except (LocalProtocolError, ValueError):
            # What came was not even HTTP: h11 has no connection left to answer on.
            data = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        transport: Any = self.transport
        transport.write(data)
        told = f"{why}: {origin}" if origin else why
        self.drop("no_websocket", f"no upgrade to WebSocket: {told}", gently=True)

    # ---- frames --------------------------------------------------------------------------------------------

    def _heard(self, data: bytes, now: float) -> bool:
        """Take frames; whether a message is unfinished."""
        try:
            self._socket.receive_data(data)
            for event in self._socket.events():
                self._frame(event, now)
                if not self.alive or self.closing_since is not None:
                    return False
        except (RemoteProtocolError, LocalProtocolError):
            self._close(CloseReason.PROTOCOL_ERROR)
            return False
        return bool(self._parts)

    def _frame(self, event: Event, now: float) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            part = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            self._size += len(part)
            if self._size > MAX_MESSAGE:
                self._close(CloseReason.MESSAGE_TOO_BIG)
                return
            self._parts.append(part)
            if event.message_finished:
                whole = b"".join(self._parts)
                self._parts, self._size = [], 0
                self._message(whole, now)
        elif isinstance(event, Ping):
            self._write(self._socket.send(event.response()))
        elif isinstance(event, CloseConnection):
            # What wsproto finds wrong (RFC 6455 section 7.4.1) comes as a close, too, with the code to answer.
            self._close(event.code, echo=True)
        elif not isinstance(event, Pong):
            self._close(CloseReason.PROTOCOL_ERROR)

    def _message(self, data: bytes, now: float) -> None:
        """One SIP message, or a keep-alive (RFC 5626 section 3.5.1, allowed by RFC 7118 section 6)."""
        if not data.strip(b"\r\n"):
            if data == PING:
                self._owner.counters["pings"] += 1
                self.send(PONG)
            return
        try:
            message = parse_message(data)
        except SipError as error:
            # Unlike a stream's, the framing still holds: only this message is lost.
            self._owner.counters["malformed_web"] += 1
            remote = (self.host, self.port)
            self._owner.refusals.dropped("message", remote, f"no SIP message: {error.reason}", self.listener)
            self._refuse(error)
            return
        self._take(message, now)

    def send(self, data: bytes) -> None:
        """Send one message: as text, or binary where it is no UTF-8 (section 4.2)."""
        if not self.alive or self.closing_since is not None:
            return
        event: Event
        try:
            event = TextMessage(data.decode("utf-8"))
        except UnicodeDecodeError:
            event = BytesMessage(data)
        self._write(self._socket.send(event))

    def ping(self) -> None:
        """Ask the browser whether it still lives (RFC 6455 section 5.5.2)."""
        if self.alive and self.closing_since is None:
            self._write(self._socket.send(Ping()))

    # ---- ending --------------------------------------------------------------------------------------------

    def _close(self, code: int, *, echo: bool = False) -> None:
        """Say why with a close frame, and end (RFC 6455 section 7.1)."""
        if code in (CloseReason.NO_STATUS_RCVD, CloseReason.ABNORMAL_CLOSURE):
            # These two never stand in a frame (section 7.4.1).
            code = CloseReason.NORMAL_CLOSURE
        self._write(self._socket.send(CloseConnection(code)))
        wished = echo and code in (CloseReason.NORMAL_CLOSURE, CloseReason.GOING_AWAY)
        # From 3000 on a code is the phone's own word for why it goes (section 7.4.2).
        why = "" if wished or code >= 3000 else f"the WebSocket failed with code {int(code)}"
        super().drop("by_browser" if wished else "protocol", why, gently=True)

    def drop(self, reason: str, why: str = "", *, gently: bool = False) -> None:
        """Close, counting `reason`; a browser that is left gently is told with a close frame."""
        if gently and self.alive and self.closing_since is None:
            self._write(self._socket.send(CloseConnection(CloseReason.GOING_AWAY)))
        super().drop(reason, why, gently=gently)

    @property
    def _unfinished(self) -> str:
        return "the upgrade to WebSocket" if self.flow is None and self._handshake_octets else super()._unfinished

    def overdue(self, now: float, limits: Limits) -> str | None:
        """Why this connection should be dropped now, or None; one that is quiet is pinged."""
        reason = super().overdue(now, limits)
        if reason is None and self.alive:
            quiet = now - self.last_heard
            if quiet > DEAD_SECONDS:
                return "dead"
            if quiet > QUIET_SECONDS:
                self.ping()
        return reason


def _header(request: Request, wanted: bytes) -> str:
    for name, value in request.extra_headers:
        if name.lower() == wanted:
            return value.decode("latin-1")
    return ""

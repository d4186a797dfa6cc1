"""A user that is a machine: calls to ``echo@domain`` are answered, and what the caller says comes back.

How it is found: it is called like any user, so it is registered like one, and not by a ReDiR namespace as services
that nodes choose for themselves are.  Every node that offers it stores a PROXY-REGISTRATION entry of its own under
the user's address, as a registrar does for a phone, with itself as the way to it.  All these entries bear one
instance-id, with a reg-id for each node: to a proxy they are flows of one device, which are tried in turn and never
rung together (RFC 5626 section 5.3).  A node that offers it answers itself, by its locator step.

It speaks SIP as a user agent at the other end of a connection inside the process, so that it is routed, recorded and
charged like a phone.  Media is reflected packet by packet from a port of its own (:class:`p2psipd.net.media.RtpEcho`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple
from typing import Protocol as TypingProtocol
from uuid import NAMESPACE_URL, uuid5

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from p2psipd.net.driver import Driver
from p2psipd.net.media import RtpEcho
from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent import Agent
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import (
    Binding,
    LocationStore,
    LocationUnavailable,
    Query,
    Target,
    binding_key,
    decode_gr,
)
from p2psipd.proto.sip.message import Request, Response, parse_message
from p2psipd.proto.sip.transaction import MessageReceived, SendMessage
from p2psipd.proto.sip.uri import SipUri

LIFETIME: Final = 600.0
"""Seconds that its entry lives; it is stored anew at half of them."""
_RETRY: Final = 5.0


class Connection(TypingProtocol):
    """Our end of the connection to the node (:class:`p2psipd.net.in_process.InProcess`)."""

    flow: Any

    def put(self, message: Request | Response) -> None:
        """Say something to the node."""
        ...


class EchoSettings(NamedTuple):
    """``domains`` served, the user's name in them, the address for media and its ports (first and last, of which the
    even ones are used), and the limits: calls at once, seconds a call.
    """

    domains: tuple[str, ...]
    node_id: bytes
    user: str
    host: str
    ports: tuple[int, int]
    max_calls: int
    max_seconds: float


class EchoService(Service):
    """The user.  ``attach`` opens the connection to the node: it is set before the service starts, which is after the
    node's SIP service has started.

    ``statistics()`` counts calls and packets.
    """

    log = Logger()

    def __init__(
        self,
        settings: EchoSettings,
        *,
        location: LocationStore,
        reactor: Any,
        random: Any,
        wall: Callable[[], float],
    ) -> None:
        self.setName("echo")  # type: ignore[no-untyped-call]
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self.attach: Callable[[Callable[[bytes], None]], Connection] | None = None
        self._location = location
        self._reactor = reactor
        self._random = random
        self._wall = wall
        self._connection: Connection | None = None
        self._driver: Driver | None = None
        self._flow: Flow | None = None
        self._calls: dict[int, tuple[RtpEcho, Any]] = {}
        self._ports = self._all_ports()
        self._publishing: Any = None
        self._withdrawn = False

    # ---- life ----------------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Take up the connection, and have the user found."""
        super().startService()  # type: ignore[no-untyped-call]
        assert self.attach is not None
        self._connection = self.attach(self._received)
        local = self._connection.flow.local
        self._flow = Flow("TCP", local, ("127.0.0.1", 0))
        settings = io.AgentSettings(
            self._aors[0], self._contact, self._settings.host, self._settings.user, max_calls=self._settings.max_calls
        )
        self._driver = Driver(
            Agent(settings, self._flow, self._random),
            {
                SendMessage: self._send,
                io.IncomingCall: self._called,
                io.CallEstablished: self._audio,
                io.CallChanged: self._audio,
                io.CallEnded: self._ended,
                io.DigitsReceived: lambda event: None,
                io.TextReceived: lambda event: None,
            },
            self._reactor,
            name="echo",
        )
        self._withdrawn = False
        self._publish_soon(0.0)

    def stopService(self) -> None:
        """Hang up; whoever stops a whole node has `withdraw` done before it leaves the overlay."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._publish_no_more()
        if self._driver is not None:
            for call in list(self._calls):
                self._driver.feed(io.HangUp(call))
            self._driver.stop()
            self._driver = None
        for call in list(self._calls):
            self._ended(io.CallEnded(call, "", 0))

    def statistics(self) -> dict[str, int]:
        """Calls open and answered, packets echoed and dropped."""
        return {"open": len(self._calls), **self.counters}

    # ---- where it is ---------------------------------------------------------------------------------------

    @property
    def _aors(self) -> tuple[str, ...]:
        return tuple(f"sip:{self._settings.user}@{domain}" for domain in self._settings.domains)

    @property
    def _contact(self) -> str:
        """What a call's Request-URI becomes; requests find the way by their Route, or by this node's own step."""
        return f"sip:{self._settings.user}@{self._settings.domains[0]}"

    async def locate(self, query: Query) -> Sequence[Target] | None:
        """The locator's step: calls to the user are answered here, wherever they come from."""
        uri = query.uri
        if (
            self._connection is None
            or not isinstance(uri, SipUri)
            or uri.unescaped_user != self._settings.user
            or uri.host not in self._settings.domains
        ):
            return None
        gruu = decode_gr(uri.gr) if uri.gr else None
        if gruu is not None and gruu.node_id not in (b"", self._settings.node_id):
            return None
        return (Target(self._contact, flow=self._connection.flow),)

    def _binding(self, aor: str, expires_at: float) -> Binding:
        instance = uuid5(NAMESPACE_URL, aor).urn
        reg_id = 1 + int.from_bytes(self._settings.node_id[:4], "big") % (2**31 - 1)
        return Binding(
            aor,
            binding_key(self._contact, instance, reg_id),
            self._contact,
            self._settings.node_id,
            instance_id=instance,
            reg_id=reg_id,
            expires_at=expires_at,
            user_agent="echo",
            stored_at=self._wall(),
        )

    def _publish_soon(self, seconds: float) -> None:
        if not self._withdrawn:
            self._publishing = self._reactor.callLater(seconds, self._publish_now)

    def _publish_now(self) -> None:
        self._publishing = None
        Deferred.fromCoroutine(self._publish()).addErrback(
            lambda failure: self.log.failure("the echo user could not be stored", failure=failure)
        )

    async def _publish(self) -> None:
        """Store our entries, again at half their time, and soon after a failure."""
        pause = LIFETIME / 2
        try:
            for aor in self._aors:
                await self._location.write(aor, [self._binding(aor, self._wall() + LIFETIME)], [])
        except LocationUnavailable as error:
            self.log.debug("{error}", error=error)
            pause = _RETRY
        self._publish_soon(pause)

    def _publish_no_more(self) -> None:
        self._withdrawn = True
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None

    async def withdraw(self) -> None:
        """Have the user found here no more, while the overlay still listens; calls go on."""
        self._publish_no_more()
        for aor in self._aors:
            try:
                await self._location.write(aor, [], [self._binding(aor, self._wall() + LIFETIME)])
            except LocationUnavailable as error:
                self.log.debug("{error}; the entry runs out by itself", error=error)
                return

    # ---- calls ---------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        if self._driver is not None and self._flow is not None:
            try:
                message = parse_message(data)
            except SipError:
                # The node has read it before; what it passes on is a message.
                self.counters["malformed"] += 1
                return
            self._driver.feed(MessageReceived(self._flow, message))

    def _send(self, order: SendMessage) -> None:
        if self._connection is not None:
            self._connection.put(parse_message(order.data))

    def _called(self, event: io.IncomingCall) -> None:
        """Answer at once, if there is a port to hear the caller at."""
        assert self._driver is not None
        port = self._take_port()
        if port is None:
            self.counters["no_port"] += 1
            self._driver.feed(io.Reject(event.call, 503))
            return
        echo, number = port
        self.counters["answered"] += 1
        timer = self._reactor.callLater(self._settings.max_seconds, self._too_long, event.call)
        self._calls[event.call] = (echo, timer)
        self._driver.feed(io.Answer(event.call, number))

    def _too_long(self, call: int) -> None:
        self.counters["too_long"] += 1
        if self._driver is not None:
            self._driver.feed(io.HangUp(call))

    def _audio(self, event: io.CallEstablished | io.CallChanged) -> None:
        entry = self._calls.get(event.call)
        if entry is not None:
            entry[0].begin((event.audio.host, event.audio.port), event.audio.sending)

    def _ended(self, event: io.CallEnded) -> None:
        entry = self._calls.pop(event.call, None)
        if entry is not None:
            echo, timer = entry
            echo.stop()
            if timer.active():
                timer.cancel()
            self.counters.update({f"packets_{name}": count for name, count in echo.counts.items()})

    def _all_ports(self) -> Iterator[int]:
        """The even ports of the range, over and over: one that was just freed is not taken again at once."""
        first, last = self._settings.ports
        first += first % 2
        while True:
            yield from range(first, last + 1, 2)

    def _take_port(self) -> tuple[RtpEcho, int] | None:
        first, last = self._settings.ports
        for _ in range((last - first) // 2 + 1):
            number = next(self._ports)
            echo = RtpEcho(self._random, self._reactor.seconds)
            try:
                echo.listen(self._reactor, self._settings.host, number)
            except CannotListenError:
                continue
            return echo, number
        return None

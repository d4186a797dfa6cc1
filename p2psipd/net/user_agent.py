"""Our own small phone on the reactor: the agent core on UDP, TCP or TLS, with an RTP session for each call.

    agent = UserAgent(reactor, "sip:alice@overlay.example", "secret", server=("127.0.1.3", 5060))
    await agent.register()
    call = await agent.call("sip:bob@overlay.example", tone=440)
    ...
    call.received_tone((880,))      # {"power": {880: 0.99}, "seconds": 3.0, "lost": 0, ...}
    await call.hang_up()
    await agent.stop()

The callee says beforehand what happens with a call: `agent.on_call = answer_with_tone(880)`. Without a server
an agent is called at its own address and calls URIs whose host is an IP address.
"""

from __future__ import annotations

import random as _random
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from p2psipd.net.driver import Driver
from p2psipd.net.media import MAX_DIGITS, AudioStream, RtpSession, Source
from p2psipd.net.user_agent_sockets import Tcp, Udp
from p2psipd.proto.media.tone import ToneGenerator
from p2psipd.proto.media.wav import Playback
from p2psipd.proto.sip import agent_io as io
from p2psipd.proto.sip.agent import Agent
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response, parse_message
from p2psipd.proto.sip.sdp import AudioParameters
from p2psipd.proto.sip.transaction import MessageReceived, SendMessage
from p2psipd.proto.sip.uri import SipUri

LADDER_LENGTH: Final = 2000
ANSWER_WAIT: Final = 30.0


class UserAgentError(Exception):
    """What was asked of a user agent did not happen; `status` is the SIP status that says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RegistrationFailed(UserAgentError):
    """The registrar refused, or nobody answered."""


class CallFailed(UserAgentError):
    """The call was not established."""


class LadderEntry(NamedTuple):
    """One message on the wire: monotonic seconds, "->" sent or "<-" received, the start line, and the CSeq's
    method."""

    at: float
    direction: str
    line: str
    method: str


class UserCall:
    """One call. `incoming` tells the direction, `remote` is the other's URI, `cause` why it ended (None
    before).

    `established_at` and `started_at` are on the reactor's clock; `status` is the final SIP status once it
    ended.
    """

    def __init__(self, agent: UserAgent, ref: int, remote: str, source: Source | None, *, incoming: bool) -> None:
        self._agent = agent
        self._waiting: list[Deferred[None]] = []
        self._ending: list[Deferred[None]] = []
        self._changing: list[Deferred[io.CallChanged | io.ChangeRefused]] = []
        self._info_digits = ""
        self._rtp = RtpSession(agent.reactor, agent.bind, agent.random, source)
        self.ref = ref
        self.remote = remote
        self.incoming = incoming
        self.started_at: float = agent.reactor.seconds()
        self.ringing_at: float | None = None
        self.established_at: float | None = None
        self.cause: str | None = None
        self.status = 0
        self.audio: AudioParameters | None = None

    @property
    def is_established(self) -> bool:
        """Both sides agreed on audio and nobody has hung up."""
        return self.established_at is not None and self.cause is None

    def answer(self, tone: float | None = None, play: array[int] | None = None) -> None:
        """Answer an incoming call, sending `tone` Hz or the samples `play` (silence if neither). The call is up when
        `established()` fires."""
        self._rtp.play(make_source(tone, play))
        try:
            self._rtp.listen()
        except CannotListenError:
            self._agent.feed(io.Reject(self.ref, 500))
            return
        self._agent.feed(io.Answer(self.ref, self._rtp.port))

    def reject(self, status: int = 486) -> None:
        """Refuse an incoming call: 486 busy, 603 declined, 480 not there."""
        self._agent.feed(io.Reject(self.ref, status))

    async def established(self) -> None:
        """Wait until the call is up; CallFailed if it ends before."""
        if self.established_at is None and self.cause is None:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting
        if self.established_at is None:
            raise CallFailed(f"{self.remote}: {self.cause}", self.status)

    async def ended(self) -> str:
        """Wait until the call is over; the cause."""
        if self.cause is None:
            waiting: Deferred[None] = Deferred()
            self._ending.append(waiting)
            await waiting
        return self.cause or ""

    async def hang_up(self) -> str:
        """End the call, or the attempt to call; returns the cause once the far side has answered (or was
        given up)."""
        if self.cause is None:
            self._agent.feed(io.HangUp(self.ref))
        return await self.ended()

    @property
    def is_held(self) -> bool:
        """The far side wants to hear nothing of us now."""
        return self.audio is not None and not self.audio.sending

    @property
    def digits(self) -> str:
        """The keys that came so far, as telephone events or by INFO."""
        return self._rtp.digits + self._info_digits

    def send_digits(self, digits: str) -> None:
        """Send keys as telephone events (RFC 4733). ValueError for what is no key, UserAgentError if the far side
        takes none."""
        if not self._rtp.takes_digits:
            raise UserAgentError(f"{self.remote} takes no telephone events", 488)
        self._rtp.send_digits(digits)

    @property
    def is_sending_digits(self) -> bool:
        """Keys are still on their way out."""
        return self._rtp.sends_digits

    async def hold(self, on: bool = True) -> None:
        """Put the far side on hold, or with `on` False take it back; UserAgentError if it refused."""
        if not self.is_established:
            raise UserAgentError(f"{self.remote}: there is no call to hold", 481)
        waiting: Deferred[io.CallChanged | io.ChangeRefused] = Deferred()
        self._changing.append(waiting)
        self._agent.feed(io.Hold(self.ref, on))
        told = await waiting
        if isinstance(told, io.ChangeRefused):
            raise UserAgentError(f"{self.remote}: {told.status} {told.reason}", told.status)

    def received_tone(self, frequencies: Iterable[float] = (440.0, 880.0)) -> dict[str, Any]:
        """What was heard so far: see `RtpSession.received_tone`."""
        return self._rtp.received_tone(frequencies)

    def write_wav(self, path: str | Path) -> None:
        """Write what was heard so far as a WAV file."""
        self._rtp.write_wav(path)

    # ---- told by the agent

    def _open_audio(self) -> int:
        self._rtp.listen()
        return self._rtp.port

    def _is_ringing(self) -> None:
        if self.ringing_at is None:
            self.ringing_at = self._agent.reactor.seconds()

    def _has_digits(self, digits: str) -> None:
        self._info_digits = (self._info_digits + digits)[-MAX_DIGITS:]

    def _has_changed(self, told: io.CallChanged | io.ChangeRefused) -> None:
        waiting, self._changing = self._changing, []
        for deferred in waiting:
            deferred.callback(told)

    def _has_audio(self, audio: AudioParameters) -> None:
        self.audio = audio
        self._rtp.begin(
            AudioStream(
                audio.host if isIPAddress(audio.host) or isIPv6Address(audio.host) else "",
                audio.port,
                audio.payload_type,
                audio.codec,
                audio.sending,
                audio.receiving,
                audio.events,
            )
        )
        if self.established_at is None:
            self.established_at = self._agent.reactor.seconds()
            _fire(self._waiting)

    def _has_ended(self, cause: str, status: int) -> None:
        self.cause = cause
        self.status = status
        self._rtp.stop()
        self._has_changed(io.ChangeRefused(self.ref, status, cause))
        _fire(self._waiting)
        _fire(self._ending)


def _fire(waiting: list[Deferred[None]]) -> None:
    """Fire and forget every waiter."""
    while waiting:
        waiting.pop().callback(None)


def make_source(tone: float | None, play: array[int] | None = None) -> Source | None:
    """What a call sends: samples, else a tone in Hz, else (None) silence."""
    if play is not None:
        return Playback(play)
    return None if tone is None else ToneGenerator(tone)


def answer_with_tone(tone: float | None) -> Callable[[UserCall], None]:
    """What `UserAgent.on_call` may be: answer each call at once and send this tone."""

    def answer(call: UserCall) -> None:
        call.answer(tone)

    return answer


class UserAgent:
    """A phone: one address of record, one transport.

    `server` is (host, port) of the registrar and outbound proxy, or None to be called directly; `transport`
    "udp", "tcp" or "tls"; `bind` the local IP address for SIP and audio, `port` the local SIP port (0: any).
    With `instance` ("urn:uuid:...") the phone is an outbound one (RFC 5626), which registers with `more_servers` as
    well and keeps all flows alive. Over TLS the server's certificate must be good for `server_name` (default: the
    server's name, where it is one, else the domain of `aor`; RFC 5922) by the authorities in the PEM file `ca_file`
    ("": the system's); CertificateFileError if that can't be read. `session_seconds`: RFC 4028.
    `on_call(call)` and `on_message(sender, text)` tell of what comes; a call that nobody takes is refused
    with 480. `ladder` lists the last messages sent and received.
    """

    def __init__(
        self,
        reactor: Any,
        aor: str,
        password: str = "",
        *,
        server: Address | None = None,
        transport: str = "udp",
        bind: str = "127.0.0.1",
        port: int = 0,
        user: str | None = None,
        expires: int = 600,
        random: Any = None,
        more_servers: Sequence[Address] = (),
        instance: str = "",
        ca_file: str = "",
        server_name: str = "",
        session_seconds: int = 0,
    ) -> None:
        if transport not in ("udp", "tcp", "tls"):
            raise ValueError(f"transport is udp, tcp or tls, not {transport}")
        if transport == "tls" and server is None:
            raise ValueError("over TLS there must be a server: a phone has no certificate to be called with")
        if more_servers and not (server and instance):
            raise ValueError("several registrations are for a phone with a server and an instance (RFC 5626)")
        self.reactor = reactor
        self.aor = aor
        self.bind = bind
        self.random = random or _random.SystemRandom()
        self.on_call: Callable[[UserCall], object] | None = None
        self.on_message: Callable[[str, str], object] | None = None
        self.ladder: list[LadderEntry] = []
        self.calls: dict[int, UserCall] = {}
        self.registered = False
        self._identity = SipUri.parse(aor)
        self._user = user or self._identity.unescaped_user or ""
        self._password = password
        self._servers = (server, *more_servers) if server is not None else ()
        self._instance = instance
        self._ca_file = ca_file
        self._server_name = server_name
        self._session_seconds = session_seconds
        self._transport = transport.upper()
        self._port = port
        self._expires = expires
        self._network: Udp | Tcp | None = None
        self._driver: Driver | None = None
        self._next = 0
        self._registering: list[Deferred[io.RegistrationChanged]] = []
        self._answered: dict[int, io.RegistrationChanged] = {}
        self._asking: dict[int, Deferred[io.RequestAnswered]] = {}

    @property
    def has_server(self) -> bool:
        """Is there a registrar to register at?"""
        return bool(self._servers)

    @property
    def registrations(self) -> list[io.RegistrationChanged]:
        """What each registrar said last, in their order; those that have not answered are missing."""
        return [self._answered[number] for number in sorted(self._answered)]

    @property
    def contact(self) -> str:
        """The URI under which this device is reached; `start()` comes first."""
        assert self._network is not None
        return str(
            SipUri(self.bind, user=self._identity.user, port=self._network.port).with_param(
                "transport", self._transport.lower()
            )
        )

    async def start(self) -> None:
        """Take the local port; called by whatever needs it. CannotListenError if the port is taken."""
        if self._network is not None:
            return
        network = Udp(self) if self._transport == "UDP" else Tcp(self, self._make_tls())
        network.listen(self.bind, self._port)
        self._network = network
        local = (self.bind, network.port)
        servers = [await self._resolved(server) for server in self._servers]
        settings = io.AgentSettings(
            self.aor,
            self.contact,
            self.bind,
            self._user,
            self._password,
            self.has_server,
            self._expires,
            instance=self._instance,
            session_seconds=self._session_seconds,
        )
        flows = [Flow(self._transport, remote, local) for remote in servers or [local]]
        core = Agent(settings, flows[0], self.random, flows[1:])
        self._driver = Driver(
            core,
            {
                SendMessage: self._send,
                io.SendKeepAlive: self._keep_alive,
                io.CloseFlow: self._close_flow,
                io.RegistrationChanged: self._on_registration,
                io.IncomingCall: self._on_incoming,
                io.CallRinging: lambda event: self._with_call(event.call, UserCall._is_ringing),
                io.CallEstablished: self._on_audio,
                io.CallChanged: self._on_audio,
                io.ChangeRefused: self._on_change_refused,
                io.DigitsReceived: lambda event: self._with_call(
                    event.call, lambda call: call._has_digits(event.digits)
                ),
                io.CallEnded: self._on_ended,
                io.TextReceived: self._on_text,
                io.RequestAnswered: self._on_answered,
            },
            self.reactor,
            name="user-agent",
        )

    async def _resolved(self, server: Address) -> Address:
        if isIPAddress(server[0]) or isIPv6Address(server[0]):
            return server
        return await self.reactor.resolve(server[0]), server[1]

    def _make_tls(self) -> Any:
        """What makes TLS connections to the servers; None without TLS."""
        if self._transport != "TLS":
            return None
        from p2psipd.net.domain_tls import DomainTls

        host = self._servers[0][0]
        named = "" if isIPAddress(host) or isIPv6Address(host) else host
        return DomainTls(self._ca_file).towards(self._server_name or named or self._identity.host)

    async def stop(self) -> None:
        """Hang up on everything without waiting for answers, and free the ports."""
        for call in list(self.calls.values()):
            self.feed(io.HangUp(call.ref))
        for call in list(self.calls.values()):
            self._on_ended(io.CallEnded(call.ref, "the user agent was stopped", 487))
        if self._driver is not None:
            self._driver.stop()
            self._driver = None
        if self._network is not None:
            network, self._network = self._network, None
            await network.close()

    async def register(self) -> int:
        """Register and stay registered; the seconds granted. RegistrationFailed with the registrar's words
        otherwise. Of several registrars one that agrees is enough."""
        changed = await self._registration(io.Register())
        if not changed.registered:
            raise RegistrationFailed(f"{self.aor}: {changed.status} {changed.reason}", changed.status)
        return changed.expires

    async def unregister(self) -> None:
        """Remove this device's registration; RegistrationFailed if the registrar did not agree."""
        changed = await self._registration(io.Unregister())
        if not 200 <= changed.status < 300:
            raise RegistrationFailed(f"{self.aor}: {changed.status} {changed.reason}", changed.status)

    async def call(
        self, target: str, tone: float | None = None, timeout: float = ANSWER_WAIT, play: array[int] | None = None
    ) -> UserCall:
        """Call `target` and send `tone` Hz, or the samples `play`; returns the established call. CallFailed if it was
        refused, or if nobody answered within `timeout` seconds (the attempt is then cancelled)."""
        call = await self.dial(target, tone, play)
        timer = self.reactor.callLater(timeout, lambda: self.feed(io.HangUp(call.ref)))
        try:
            await call.established()
        finally:
            if timer.active():
                timer.cancel()
        return call

    async def dial(self, target: str, tone: float | None = None, play: array[int] | None = None) -> UserCall:
        """Begin to call `target`, without waiting for an answer: `established()` and `hang_up()` are the
        call's."""
        await self.start()
        self._next += 1
        call = UserCall(self, self._next, target, make_source(tone, play), incoming=False)
        self.calls[call.ref] = call
        try:
            port = call._open_audio()
        except CannotListenError as error:
            del self.calls[call.ref]
            raise CallFailed(str(error), 500) from error
        self.feed(io.Invite(call.ref, target, port))
        return call

    async def message(self, target: str, text: str) -> int:
        """Send a text (SIP MESSAGE); the status of the answer, whatever it is."""
        return (await self._ask(lambda ref: io.SendText(ref, target, text))).status

    async def options(self, target: str) -> int:
        """Ask `target` what it can do (OPTIONS); the status of the answer, whatever it is."""
        return (await self._ask(lambda ref: io.SendOptions(ref, target))).status

    def feed(self, item: object) -> None:
        """Hand an input to the core; nothing happens after `stop()`."""
        if self._driver is not None:
            self._driver.feed(item)

    # ---- network

    def received(self, flow: Flow, message: Request | Response) -> None:
        """A message came in on `flow`."""
        self._note("<-", message)
        self.feed(MessageReceived(flow, message))

    def _send(self, order: SendMessage) -> None:
        if self._network is not None:
            try:
                self._note("->", parse_message(order.data))
            except SipError:
                # The ladder is for people; what it can't show is sent all the same.
                self.ladder.append(LadderEntry(self.reactor.seconds(), "->", "?", ""))
            self._network.send(order.flow, order.data)

    def _keep_alive(self, order: io.SendKeepAlive) -> None:
        if self._network is not None:
            self._network.keep_alive(order.flow)

    def _close_flow(self, order: io.CloseFlow) -> None:
        if self._network is not None:
            self._network.drop(order.flow)

    def _note(self, direction: str, message: Request | Response) -> None:
        if isinstance(message, Request):
            line = f"{message.method} {message.uri_text} SIP/2.0"
        else:
            line = f"SIP/2.0 {message.status} {message.reason}"
        try:
            method = message.cseq.method
        except SipError:
            method = ""
        if len(self.ladder) >= LADDER_LENGTH:
            del self.ladder[: LADDER_LENGTH // 2]
        self.ladder.append(LadderEntry(self.reactor.seconds(), direction, line, method))

    # ---- events of the core

    async def _registration(self, order: io.Register | io.Unregister) -> io.RegistrationChanged:
        await self.start()
        waiting: Deferred[io.RegistrationChanged] = Deferred()
        self._registering.append(waiting)
        self._answered.clear()
        self.feed(order)
        return await waiting

    async def _ask(self, order: Callable[[int], object]) -> io.RequestAnswered:
        await self.start()
        self._next += 1
        waiting: Deferred[io.RequestAnswered] = Deferred()
        self._asking[self._next] = waiting
        self.feed(order(self._next))
        return await waiting

    def _on_registration(self, event: io.RegistrationChanged) -> None:
        self._answered[event.registrar] = event
        told = self.registrations
        self.registered = any(each.registered for each in told)
        if len(told) < len(self._servers):
            return
        best = next((each for each in told if 200 <= each.status < 300), event)
        waiting, self._registering = self._registering, []
        for deferred in waiting:
            deferred.callback(best)

    def _on_answered(self, event: io.RequestAnswered) -> None:
        waiting = self._asking.pop(event.ref, None)
        if waiting is not None:
            waiting.callback(event)

    def _on_incoming(self, event: io.IncomingCall) -> None:
        call = UserCall(self, event.call, event.caller, None, incoming=True)
        self.calls[call.ref] = call
        if self.on_call is None:
            call.reject(480)
        else:
            self.on_call(call)

    def _with_call(self, ref: int, action: Callable[[UserCall], None]) -> None:
        call = self.calls.get(ref)
        if call is not None:
            action(call)

    def _on_audio(self, event: io.CallEstablished | io.CallChanged) -> None:
        self._with_call(event.call, lambda call: call._has_audio(event.audio))
        if isinstance(event, io.CallChanged):
            self._with_call(event.call, lambda call: call._has_changed(event))

    def _on_change_refused(self, event: io.ChangeRefused) -> None:
        self._with_call(event.call, lambda call: call._has_changed(event))

    def _on_ended(self, event: io.CallEnded) -> None:
        call = self.calls.pop(event.call, None)
        if call is not None:
            call._has_ended(event.cause, event.status)

    def _on_text(self, event: io.TextReceived) -> None:
        if self.on_message is not None:
            self.on_message(event.sender, event.text)

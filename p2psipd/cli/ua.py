"""`p2psip ua`: a small phone, for trying an overlay out and for scripts.

    p2psip ua register --user alice@overlay.example --password secret --server 127.0.1.3:5060
    p2psip ua answer   --user bob@overlay.example --password secret --server 127.0.1.6 --tone 880 --seconds 20
    p2psip ua call sip:bob@overlay.example --user alice@overlay.example --password secret --server 127.0.1.3
    --play question.wav --record answer.wav --dtmf 42#

With --server given twice the phone registers with both (RFC 5626) and stays reachable when one of them dies. These
verbs are nodes themselves: Twisted is imported when one of them runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from p2psipd.cli.console import EXIT_NEGATIVE, emit, json_option

if TYPE_CHECKING:
    from array import array

    from p2psipd.net.user_agent import UserAgent, UserCall

_TRANSPORTS = ("udp", "tcp", "tls")


class Phone(NamedTuple):
    """Who the phone is, where it registers, and what is printed of its work."""

    aor: str
    password: str
    servers: tuple[tuple[str, int], ...]
    transport: str
    bind: str
    port: int
    instance: str
    ca_file: str
    server_name: str
    session_seconds: int
    ladder: bool
    as_json: bool


def parse_server(text: str) -> tuple[str, int, str]:
    """`host[:port][;transport=tcp]` or `host[:port][;tcp]` as (host, port, transport); click.BadParameter
    otherwise. Without a port it is 5060, over TLS 5061."""
    address, _, option = text.partition(";")
    transport = option.lower().removeprefix("transport=") or "udp"
    host, colon, port = address.rpartition(":")
    if not colon or host.endswith(":") or address.endswith("]"):
        host, port = address, "5061" if transport == "tls" else "5060"
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"expected host:port, not {text!r}")
    if transport not in _TRANSPORTS:
        raise click.BadParameter(f"the transport is udp, tcp or tls, not {transport!r}")
    return host, int(port), transport


def target_uri(text: str, aor: str) -> str:
    """A URI, or `bob@host:port` with the scheme left out, or what is dialled, in the domain of the phone's user."""
    if re.fullmatch(r"[+0-9*#]+", text):
        return f"sip:{text.replace('#', '%23')}@{aor.partition('@')[2]}"
    scheme, colon, _ = text.partition(":")
    return text if colon and "@" not in scheme and "." not in scheme else f"sip:{text}"


_PORT = click.IntRange(0, 65535)
_COUNT = click.IntRange(0)
_DURATION = click.FloatRange(0)
_HERTZ = click.FloatRange(0, 4000, min_open=True, max_open=True)

_PHONE_OPTIONS = (
    click.option("--user", required=True, metavar="ADDRESS", help="Who the phone is: alice@overlay.example."),
    click.option("--password", envvar="P2PSIP_PASSWORD", default="", help="Its password; better in $P2PSIP_PASSWORD."),
    click.option(
        "--server",
        "servers",
        multiple=True,
        metavar="HOST[:PORT][;TRANSPORT]",
        help="Registrar and proxy: 127.0.1.3:5060;tcp. Given twice: registered with both. "
        "Without one, calls go straight to the address called.",
    ),
    click.option("--bind", default="", metavar="IP", help="Local address; default 127.0.0.1 for a loopback server."),
    click.option("--port", default=0, metavar="PORT", type=_PORT, help="Local SIP port; default any."),
    click.option("--transport", type=click.Choice(["udp", "tcp"]), help="Without a server: udp (default) or tcp."),
    click.option(
        "--ca",
        "ca_file",
        type=click.Path(exists=True, dir_okay=False),
        help="Over TLS: the authorities that the server's certificate is checked by (PEM); default the system's.",
    ),
    click.option(
        "--server-name",
        default="",
        metavar="NAME",
        help="Over TLS: whose certificate it must be; default the server's name, or the user's domain for an address.",
    ),
    click.option("--outbound", is_flag=True, help="Keep the flow alive and be called back on it (RFC 5626)."),
    click.option(
        "--instance", default="", metavar="URN", help="Which device this is; default one of this host and user."
    ),
    click.option(
        "--session", "session_seconds", default=0, metavar="SECONDS", type=_COUNT, help="Session interval (RFC 4028)."
    ),
    click.option("--ladder", is_flag=True, help="Print every message sent and received."),
    json_option,
)


def _phone_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb has; the verb gets them as one `Phone`."""

    @wraps(command)
    def verb(
        user: str,
        password: str,
        servers: tuple[str, ...],
        bind: str,
        port: int,
        transport: str | None,
        ca_file: str | None,
        server_name: str,
        outbound: bool,
        instance: str,
        session_seconds: int,
        ladder: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        aor = user if user.startswith(("sip:", "sips:")) else f"sip:{user}"
        if "@" not in aor:
            raise click.BadParameter("--user is name@domain")
        parsed = [parse_server(server) for server in servers]
        if len({kind for _, _, kind in parsed}) > 1:
            raise click.BadParameter("all servers have the same transport")
        local = bind or (_local_address(parsed[0][0]) if parsed else "127.0.0.1")
        if not (outbound or instance or len(parsed) > 1):
            device = ""
        else:
            device = instance or _instance(aor, local)
        phone = Phone(
            aor,
            password,
            tuple((host, number) for host, number, _ in parsed),
            parsed[0][2] if parsed else transport or "udp",
            local,
            port,
            device,
            ca_file or "",
            server_name,
            session_seconds,
            ladder,
            as_json,
        )
        command(phone, **options)

    decorated: Callable[..., Any] = verb
    for option in reversed(_PHONE_OPTIONS):
        decorated = option(decorated)
    return decorated


def _instance(aor: str, local: str) -> str:
    """The name of this device, the same at every start (RFC 5626 section 4.1)."""
    import socket
    import uuid

    return uuid.uuid5(uuid.NAMESPACE_URL, f"{aor} {socket.gethostname()} {local}").urn


def _local_address(server: str) -> str:
    """The local address from which the server is reached (no packet is sent for this)."""
    import socket

    if server.startswith("127.") or server == "localhost":
        return "127.0.0.1"
    try:
        family, *_, address = socket.getaddrinfo(server, 5060, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise click.BadParameter(f"{server}: {error}") from error


def _run(phone: Phone, work: Callable[[UserAgent], Awaitable[dict[str, Any]]], render: Callable[[Any], str]) -> None:
    """Run `work` with an agent on a reactor of this process, print its result, and leave with the exit code."""
    import time

    from twisted.internet import reactor as installed
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import CannotListenError, ReactorNotRunning

    from p2psipd.net.tls import CertificateFileError
    from p2psipd.net.user_agent import UserAgent, UserAgentError

    reactor: Any = installed
    # A step of the wall clock must not disturb timers.
    reactor.seconds = time.monotonic
    try:
        agent = UserAgent(
            reactor,
            phone.aor,
            phone.password,
            server=phone.servers[0] if phone.servers else None,
            more_servers=phone.servers[1:],
            transport=phone.transport,
            bind=phone.bind,
            port=phone.port,
            instance=phone.instance,
            ca_file=phone.ca_file,
            server_name=phone.server_name,
            session_seconds=phone.session_seconds,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    result: dict[str, Any] = {}
    code = EXIT_NEGATIVE

    async def main() -> None:
        nonlocal code
        try:
            result.update(await work(agent))
            code = 0
        except UserAgentError as error:
            result.update(ok=False, status=error.status, error=str(error))
        except (CertificateFileError, CannotListenError) as error:
            result.update(ok=False, error=str(error))
        except CancelledError:
            result.update(ok=False, error="interrupted")
        except Exception as error:
            result.update(ok=False, error=f"{type(error).__name__}: {error}")
        finally:
            await agent.stop()

    def stop(_: object) -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    def begin() -> None:
        running = Deferred.fromCoroutine(main())

        def interrupt() -> Deferred[None]:
            # A signal stops the reactor; what is under way ends first, an open call with a BYE.
            running.cancel()
            return running

        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        running.addBoth(stop)

    reactor.callWhenRunning(begin)
    reactor.run()
    steps = [[round(entry.at, 4), entry.direction, entry.line] for entry in agent.ladder]
    _print(phone, result, code, steps, render)


def _print(phone: Phone, result: dict[str, Any], code: int, steps: list[Any], render: Callable[[Any], str]) -> None:
    if phone.ladder and phone.as_json:
        result["ladder"] = steps
    elif phone.ladder:
        start = steps[0][0] if steps else 0.0
        for at, direction, line in steps:
            click.echo(f"{at - start:9.3f} {direction} {line}", err=True)
    if code and not phone.as_json:
        click.echo(result.get("error", "failed"), err=True)
    else:
        emit(result, phone.as_json, render)
    sys.stdout.flush()
    sys.exit(code)


def _describe(call: UserCall, tones: tuple[float, ...]) -> dict[str, Any]:
    """One finished call as JSON."""
    heard = call.received_tone(tones)
    heard["power"] = {f"{frequency:g}": round(share, 4) for frequency, share in heard["power"].items()}
    setup = None if call.established_at is None else round(call.established_at - call.started_at, 4)
    return {
        "ok": True,
        "remote": call.remote,
        "cause": call.cause,
        "setup_seconds": setup,
        "heard": heard,
        "digits": call.digits,
    }


def _call_text(result: Any) -> str:
    heard = result["heard"]
    tones = ", ".join(f"{hertz} Hz {share:.0%}" for hertz, share in heard["power"].items())
    lines = [
        f"{result['remote']}: {result['cause']}; up after {result['setup_seconds']} s",
        f"heard {heard['seconds']} s in {heard['packets']} packets, {heard['lost']} lost; energy: {tones}",
    ]
    if result["digits"]:
        lines.append(f"keys: {result['digits']}")
    return "\n".join([*lines, *_texts_lines(result)])


def _texts_lines(result: Any) -> list[str]:
    return [f"{text['from']}: {text['text']}" for text in result.get("texts", ())]


def _sleep(reactor: Any, seconds: float) -> Any:
    from twisted.internet.task import deferLater

    return deferLater(reactor, seconds, lambda: None)


_TONES = (440.0, 880.0)
_FAREWELL_SECONDS = 3.0


def _listened(tone: float | None) -> tuple[float, ...]:
    return _TONES if tone is None or tone in _TONES else (*_TONES, tone)


def _read(file: str | None) -> array[int] | None:
    """The samples of a WAV file to be played; click.BadParameter that says what was expected."""
    if file is None:
        return None
    from p2psipd.proto.media.errors import MediaError
    from p2psipd.proto.media.wav import read_wav

    try:
        with open(file, "rb") as stream:
            return read_wav(stream)
    except (OSError, MediaError) as error:
        raise click.BadParameter(f"{file}: {error}") from None


def _parse_hold(text: str | None) -> tuple[float, float] | None:
    """`FROM-TO`, in seconds after the call is up; click.BadParameter otherwise."""
    if text is None:
        return None
    start, _, end = text.partition("-")
    try:
        hold = float(start), float(end)
    except ValueError:
        raise click.BadParameter(f"expected two times such as 1-2.5, not {text!r}") from None
    if not 0 <= hold[0] < hold[1]:
        raise click.BadParameter("a hold ends after it began")
    return hold


def _writable(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """A file that can be written when the call is over; click.BadParameter otherwise, before anybody is called."""
    if name is not None and (Path(name).is_dir() or not Path(name).absolute().parent.is_dir()):
        raise click.BadParameter(f"{name}: no file can be written there")
    return name


def _keys(context: click.Context, option: click.Parameter, digits: str) -> str:
    """Keys that a phone has; click.BadParameter otherwise."""
    from p2psipd.proto.media.telephone_event import DIGITS

    if not set(digits.upper()) <= set(DIGITS):
        raise click.BadParameter(f"a phone has the keys {DIGITS}, not {digits!r}")
    return digits


def _audio_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both sides of a call can do."""
    for option in (
        click.option("--tone", type=_HERTZ, help="Send a tone of so many Hz; default silence."),
        click.option("--play", metavar="FILE.wav", help="Send what is in a WAV file, then silence."),
        click.option("--record", metavar="FILE.wav", callback=_writable, help="Write what was heard to a WAV file."),
        click.option(
            "--dtmf",
            default="",
            metavar="KEYS",
            callback=_keys,
            help="Send these keys (RFC 4733) when the call is up.",
        ),
        click.option("--hold", metavar="FROM-TO", help="Put the far side on hold, in seconds after the call is up."),
    ):
        command = option(command)
    return command


async def _talk(call: UserCall, reactor: Any, dtmf: str, hold: tuple[float, float] | None, seconds: float) -> None:
    """What happens in an established call: keys, hold, and after `seconds` (0: never) our BYE."""
    began = reactor.seconds()
    if dtmf:
        call.send_digits(dtmf)
    for at, on in ((hold[0], True), (hold[1], False)) if hold else ():
        await _sleep(reactor, max(0.0, began + at - reactor.seconds()))
        if call.is_established:
            await call.hold(on)
    if not seconds:
        await call.ended()
        return
    await _sleep(reactor, max(0.0, began + seconds - reactor.seconds()))
    while call.is_established and call.is_sending_digits:
        await _sleep(reactor, 0.1)
    await call.hang_up()


async def _leave(agent: UserAgent) -> None:
    """Unregister, also where nothing came of it all; a registrar that says nothing to it is not waited for."""
    from twisted.internet.defer import Deferred, TimeoutError

    from p2psipd.net.user_agent import UserAgentError

    if agent.has_server:
        with suppress(TimeoutError, UserAgentError):
            await Deferred.fromCoroutine(agent.unregister()).addTimeout(_FAREWELL_SECONDS, agent.reactor)


@click.group()
def ua() -> None:
    """A small phone of G.711 audio: register, call, answer, message."""


@ua.command()
@_phone_options
@click.option(
    "--seconds", default=0.0, type=_DURATION, help="Stay registered for so long, then unregister; 0: leave at once."
)
def register(phone: Phone, seconds: float) -> None:
    """Register this phone, with digest if it is asked for; unregister again after --seconds."""

    async def work(agent: UserAgent) -> dict[str, Any]:
        granted = await agent.register()
        registrars = [
            {"server": f"{host}:{port}", "registered": told.registered, "status": told.status, "expires": told.expires}
            for (host, port), told in zip(phone.servers, agent.registrations, strict=False)
        ]
        if seconds:
            try:
                await _sleep(agent.reactor, seconds)
            finally:
                await _leave(agent)
        return {
            "ok": True, "aor": agent.aor, "contact": agent.contact, "expires": granted, "registrars": registrars
        }  # fmt: skip

    if not phone.servers:
        raise click.UsageError("to register, say where: --server HOST:PORT")
    _run(phone, work, _registered_text)


def _registered_text(result: Any) -> str:
    lines = [f"{result['aor']} is registered at {result['contact']} for {result['expires']} s"]
    if len(result["registrars"]) > 1:
        lines += [f"  {each['server']}: {each['status']}" for each in result["registrars"]]
    return "\n".join(lines)


@ua.command()
@click.argument("target")
@_phone_options
@_audio_options
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=_DURATION,
    help="Hang up after so long; 0: leave that to the callee.",
)
@click.option(
    "--ring",
    default=30.0,
    show_default=True,
    type=_DURATION,
    help="Give up if nobody has answered after so many seconds.",
)
def call(
    phone: Phone,
    target: str,
    tone: float | None,
    play: str | None,
    record: str | None,
    dtmf: str,
    hold: str | None,
    seconds: float,
    ring: float,
) -> None:
    """Call TARGET (sip:bob@overlay.example), send a tone or a file, say what was heard, hang up."""
    samples, held = _read(play), _parse_hold(hold)

    async def work(agent: UserAgent) -> dict[str, Any]:
        placed = await agent.call(target_uri(target, phone.aor), tone, ring, samples)
        await _talk(placed, agent.reactor, dtmf, held, seconds)
        if record:
            placed.write_wav(record)
        return _describe(placed, _listened(tone))

    _run(phone, work, _call_text)


@ua.command()
@_phone_options
@_audio_options
@click.option(
    "--seconds", default=0.0, type=_DURATION, help="Hang up after so long; 0: leave that to the caller."
)
@click.option(
    "--wait",
    default=60.0,
    show_default=True,
    type=_DURATION,
    help="Give up if nobody has called after so many seconds.",
)
@click.option(
    "--messages", default=0, metavar="COUNT", type=_COUNT, help="Do not wait for a call but for so many texts."
)
@click.option("--reject", default=0, metavar="STATUS", help="Refuse the call with this status, for example 486.")
def answer(
    phone: Phone,
    tone: float | None,
    play: str | None,
    record: str | None,
    dtmf: str,
    hold: str | None,
    seconds: float,
    wait: float,
    messages: int,
    reject: int,
) -> None:
    """Register (with --server), answer the first call, say what was heard and which texts came."""
    samples, held = _read(play), _parse_hold(hold)
    if reject and not 300 <= reject <= 699:
        raise click.BadParameter("--reject is a final status from 300 to 699")

    async def work(agent: UserAgent) -> dict[str, Any]:
        post = _Post(agent, tone, samples, messages, reject)
        await agent.start()
        if agent.has_server:
            await agent.register()
        click.echo(f"{agent.aor} answers at {agent.contact}", err=True)
        result: dict[str, Any] = {"ok": True}
        try:
            taken = await post.first(wait)
            if taken is not None and reject:
                result.update(remote=taken.remote, cause=await taken.ended())
            elif taken is not None:
                await taken.established()
                await _talk(taken, agent.reactor, dtmf, held, seconds)
                if record:
                    taken.write_wav(record)
                result = _describe(taken, _listened(tone))
        finally:
            await _leave(agent)
        return {**result, "texts": post.texts}

    _run(phone, work, lambda result: _call_text(result) if "heard" in result else "\n".join(_answer_lines(result)))


def _answer_lines(result: Any) -> list[str]:
    lines = [f"{result['remote']}: {result['cause']}"] if "remote" in result else []
    return [*lines, *_texts_lines(result)]


class _Post:
    """What comes to a phone that answers: one call, or some texts; further calls are busy."""

    def __init__(
        self, agent: UserAgent, tone: float | None, samples: array[int] | None, messages: int, reject: int
    ) -> None:
        from twisted.internet.defer import Deferred

        self.texts: list[dict[str, str]] = []
        self._agent = agent
        self._tone = tone
        self._samples = samples
        self._messages = messages
        self._reject = reject
        self._first: Deferred[UserCall | None] = Deferred()
        agent.on_call = self._call
        agent.on_message = self._text

    def _call(self, incoming: UserCall) -> None:
        if self._first.called or self._messages:
            incoming.reject(486)
        elif self._reject:
            incoming.reject(self._reject)
            self._first.callback(incoming)
        else:
            incoming.answer(self._tone, self._samples)
            self._first.callback(incoming)

    def _text(self, sender: str, text: str) -> None:
        self.texts.append({"from": sender, "text": text})
        if self._messages and len(self.texts) >= self._messages and not self._first.called:
            self._first.callback(None)

    async def first(self, wait: float) -> UserCall | None:
        """The first call, None when enough texts have come; CallFailed if that is not so within `wait` seconds."""
        from p2psipd.net.user_agent import CallFailed

        what = f"fewer than {self._messages} texts came" if self._messages else "nobody called"
        timer = self._agent.reactor.callLater(
            wait, lambda: self._first.errback(CallFailed(f"{what} in {wait:g} s", 408))
        )
        try:
            return await self._first
        finally:
            if timer.active():
                timer.cancel()


@ua.command()
@click.argument("target")
@click.argument("text")
@_phone_options
def message(phone: Phone, target: str, text: str) -> None:
    """Send TEXT to TARGET (SIP MESSAGE); `ua answer --messages 1` takes one."""
    from p2psipd.net.user_agent import UserAgentError

    async def work(agent: UserAgent) -> dict[str, Any]:
        status = await agent.message(target_uri(target, phone.aor), text)
        if not 200 <= status < 300:
            raise UserAgentError(f"{target}: {status}", status)
        return {"ok": True, "target": target, "status": status}

    _run(phone, work, lambda result: f"{result['target']}: {result['status']}")

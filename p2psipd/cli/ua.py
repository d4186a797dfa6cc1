"""`p2psip ua`: a small phone, for trying an overlay out and for scripts.

    p2psip ua register --user alice@overlay.example --password secret --server 127.0.1.3:5060
    p2psip ua answer   --user bob@overlay.example --password secret --server 127.0.1.6 --tone 880 --seconds 20
    p2psip ua call sip:bob@overlay.example --user alice@overlay.example --password secret --server 127.0.1.3
    --tone 440

These verbs are nodes themselves: Twisted is imported when one of them runs.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from p2psipd.cli.console import EXIT_NEGATIVE, emit, json_option

if TYPE_CHECKING:
    from p2psipd.net.user_agent import UserAgent, UserCall


class Identity(NamedTuple):
    """Who the phone is and where it registers."""

    aor: str
    password: str
    server: tuple[str, int] | None
    transport: str
    bind: str
    port: int


def parse_server(text: str) -> tuple[str, int, str]:
    """`host[:port][;transport=tcp]` or `host[:port][;tcp]` as (host, port, transport); click.BadParameter
    otherwise."""
    address, _, option = text.partition(";")
    transport = option.lower().removeprefix("transport=") or "udp"
    host, colon, port = address.rpartition(":")
    if not colon or host.endswith(":") or address.endswith("]"):
        host, port = address, "5060"
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"expected host:port, not {text!r}")
    if transport not in ("udp", "tcp"):
        raise click.BadParameter(f"the transport is udp or tcp, not {transport!r}")
    return host, int(port), transport


def _target(text: str) -> str:
    """A URI, or `bob@host:port` with the scheme left out."""
    scheme, colon, _ = text.partition(":")
    return text if colon and "@" not in scheme and "." not in scheme else f"sip:{text}"


def _identity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb of the phone has."""
    for option in (
        click.option(
            "--user", required=True, metavar="ADDRESS", help="Who the phone is: alice@overlay.example."
        ),
        click.option(
            "--password",
            envvar="P2PSIP_PASSWORD",
            default="",
            help="Its password; better in $P2PSIP_PASSWORD.",
        ),
        click.option(
            "--server",
            metavar="HOST[:PORT][;TRANSPORT]",
            help="Registrar and proxy: 127.0.1.3:5060;tcp. "
            "Without one, calls go straight to the address called.",
        ),
        click.option(
            "--bind", default="", metavar="IP", help="Local address; default 127.0.0.1 for a loopback server."
        ),
        click.option("--port", default=0, metavar="PORT", help="Local SIP port; default any."),
        click.option(
            "--transport", type=click.Choice(["udp", "tcp"]), help="Without a server: udp (default) or tcp."
        ),
        click.option("--ladder", is_flag=True, help="Print every message sent and received."),
        json_option,
    ):
        command = option(command)
    return command


def _identity(
    user: str, password: str, server: str | None, bind: str, port: int, transport: str | None
) -> Identity:
    aor = user if user.startswith(("sip:", "sips:")) else f"sip:{user}"
    if "@" not in aor:
        raise click.BadParameter("--user is name@domain")
    if server is None:
        return Identity(aor, password, None, transport or "udp", bind or "127.0.0.1", port)
    host, server_port, kind = parse_server(server)
    return Identity(aor, password, (host, server_port), kind, bind or _local_address(host), port)


def _local_address(server: str) -> str:
    """The local address from which the server is reached (no packet is sent for this)."""
    import socket

    if server.startswith("127.") or server == "localhost":
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((server, 5060))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise click.BadParameter(f"{server}: {error}") from error


def _run(
    identity: Identity, work: Callable[[UserAgent], Awaitable[dict[str, Any]]]
) -> tuple[dict[str, Any], int]:
    """Run `work` with an agent on a reactor of this process; the result (with the ladder) and the exit
    code."""
    import time

    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred

    from p2psipd.net.user_agent import UserAgent, UserAgentError

    reactor: Any = installed
    # A step of the wall clock must not disturb timers.
    reactor.seconds = time.monotonic
    agent = UserAgent(
        reactor,
        identity.aor,
        identity.password,
        server=identity.server,
        transport=identity.transport,
        bind=identity.bind,
        port=identity.port,
    )
    result: dict[str, Any] = {}
    code = 0

    async def main() -> None:
        nonlocal code
        try:
            result.update(await work(agent))
        except UserAgentError as error:
            result.update(ok=False, status=error.status, error=str(error))
            code = EXIT_NEGATIVE
        except Exception as error:
            result.update(ok=False, error=f"{type(error).__name__}: {error}")
            code = EXIT_NEGATIVE
        finally:
            await agent.stop()
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
    reactor.run()
    result["ladder"] = [[round(entry.at, 4), entry.direction, entry.line] for entry in agent.ladder]
    return result, code


def _finish(
    outcome: tuple[dict[str, Any], int], as_json: bool, ladder: bool, render: Callable[[Any], str]
) -> None:
    """Print the outcome and leave with its exit code."""
    result, code = outcome
    steps = result.pop("ladder")
    if ladder and not as_json:
        start = steps[0][0] if steps else 0.0
        for at, direction, line in steps:
            click.echo(f"{at - start:9.3f} {direction} {line}", err=True)
    if ladder and as_json:
        result["ladder"] = steps
    if code and not as_json:
        click.echo(result.get("error", "failed"), err=True)
    else:
        emit(result, as_json, render)
    sys.stdout.flush()
    sys.exit(code)


def _describe(call: UserCall, tones: tuple[float, ...]) -> dict[str, Any]:
    """One finished call as JSON."""
    heard = call.received_tone(tones)
    heard["power"] = {f"{frequency:g}": round(share, 4) for frequency, share in heard["power"].items()}
    setup = None if call.established_at is None else round(call.established_at - call.started_at, 4)
    return {"ok": True, "remote": call.remote, "cause": call.cause, "setup_seconds": setup, "heard": heard}


def _call_text(result: Any) -> str:
    heard = result["heard"]
    tones = ", ".join(f"{hertz} Hz {share:.0%}" for hertz, share in heard["power"].items())
    return (
        f"{result['remote']}: {result['cause']}; up after {result['setup_seconds']} s\n"
        f"heard {heard['seconds']} s in {heard['packets']} packets, {heard['lost']} lost; energy: {tones}"
    )


def _sleep(reactor: Any, seconds: float) -> Any:
    from twisted.internet.task import deferLater

    return deferLater(reactor, seconds, lambda: None)


_TONES = (440.0, 880.0)


def _listened(tone: float | None) -> tuple[float, ...]:
    return _TONES if tone is None or tone in _TONES else (*_TONES, tone)


@click.group()
def ua() -> None:
    """A small phone of G.711 audio: register, call, answer, message."""


@ua.command()
@_identity_options
@click.option(
    "--seconds", default=0.0, help="Stay registered for so long, then unregister; 0: leave at once."
)
def register(
    user: str,
    password: str,
    server: str | None,
    bind: str,
    port: int,
    transport: str | None,
    ladder: bool,
    as_json: bool,
    seconds: float,
) -> None:
    """Register this phone, with digest if it is asked for; unregister again after --seconds."""

    async def work(agent: UserAgent) -> dict[str, Any]:
        granted = await agent.register()
        if seconds:
            await _sleep(agent.reactor, seconds)
            await agent.unregister()
        return {"ok": True, "aor": agent.aor, "contact": agent.contact, "expires": granted}

    identity = _identity(user, password, server, bind, port, transport)
    if identity.server is None:
        raise click.UsageError("to register, say where: --server HOST:PORT")
    _finish(
        _run(identity, work),
        as_json,
        ladder,
        lambda result: f"{result['aor']} is registered at {result['contact']} for {result['expires']} s",
    )


@ua.command()
@click.argument("target")
@_identity_options
@click.option("--tone", type=float, help="Send a tone of so many Hz; default silence.")
@click.option("--record", metavar="FILE.wav", help="Write what was heard to a WAV file.")
@click.option("--seconds", default=3.0, show_default=True, help="Hang up after so long.")
def call(
    target: str,
    user: str,
    password: str,
    server: str | None,
    bind: str,
    port: int,
    transport: str | None,
    ladder: bool,
    as_json: bool,
    tone: float | None,
    record: str | None,
    seconds: float,
) -> None:
    """Call TARGET (sip:bob@overlay.example), send a tone, say what was heard, hang up."""

    async def work(agent: UserAgent) -> dict[str, Any]:
        placed = await agent.call(_target(target), tone)
        await _sleep(agent.reactor, seconds)
        await placed.hang_up()
        if record:
            placed.write_wav(record)
        return _describe(placed, _listened(tone))

    _finish(_run(_identity(user, password, server, bind, port, transport), work), as_json, ladder, _call_text)


@ua.command()
@_identity_options
@click.option("--tone", type=float, help="Send a tone of so many Hz; default silence.")
@click.option("--record", metavar="FILE.wav", help="Write what was heard to a WAV file.")
@click.option("--seconds", default=0.0, help="Hang up after so long; 0: leave that to the caller.")
@click.option(
    "--wait", default=60.0, show_default=True, help="Give up if nobody has called after so many seconds."
)
def answer(
    user: str,
    password: str,
    server: str | None,
    bind: str,
    port: int,
    transport: str | None,
    ladder: bool,
    as_json: bool,
    tone: float | None,
    record: str | None,
    seconds: float,
    wait: float,
) -> None:
    """Register (with --server), answer the first call, say what was heard."""

    async def work(agent: UserAgent) -> dict[str, Any]:
        taken = await _one_call(agent, tone, wait)
        await taken.established()
        if seconds:
            await _sleep(agent.reactor, seconds)
            await taken.hang_up()
        else:
            await taken.ended()
        if record:
            taken.write_wav(record)
        if identity.server is not None:
            await agent.unregister()
        return _describe(taken, _listened(tone))

    identity = _identity(user, password, server, bind, port, transport)
    _finish(_run(identity, work), as_json, ladder, _call_text)


async def _one_call(agent: UserAgent, tone: float | None, wait: float) -> UserCall:
    """Announce ourselves, and answer the first call; CallFailed if none comes within `wait` seconds."""
    from twisted.internet.defer import Deferred

    from p2psipd.net.user_agent import CallFailed

    calling: Deferred[UserCall] = Deferred()

    def take(incoming: UserCall) -> None:
        if calling.called:
            incoming.reject(486)
            return
        incoming.answer(tone)
        calling.callback(incoming)

    agent.on_call = take
    await agent.start()
    if agent.has_server:
        await agent.register()
    click.echo(f"{agent.aor} answers at {agent.contact}", err=True)
    timer = agent.reactor.callLater(
        wait, lambda: calling.errback(CallFailed(f"nobody called in {wait:g} s", 408))
    )
    try:
        return await calling
    finally:
        if timer.active():
            timer.cancel()


@ua.command()
@click.argument("target")
@click.argument("text")
@_identity_options
def message(
    target: str,
    text: str,
    user: str,
    password: str,
    server: str | None,
    bind: str,
    port: int,
    transport: str | None,
    ladder: bool,
    as_json: bool,
) -> None:
    """Send TEXT to TARGET (SIP MESSAGE)."""
    from p2psipd.net.user_agent import UserAgentError

    async def work(agent: UserAgent) -> dict[str, Any]:
        status = await agent.message(_target(target), text)
        if not 200 <= status < 300:
            raise UserAgentError(f"{target}: {status}", status)
        return {"ok": True, "target": target, "status": status}

    _finish(
        _run(_identity(user, password, server, bind, port, transport), work),
        as_json,
        ladder,
        lambda result: f"{result['target']}: {result['status']}",
    )

"""`p2psip lab`: an overlay of real processes on this machine, by hand."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from p2psipd.cli.console import Negative, emit, json_option, seconds, short, step, table
from p2psipd.lab import DEFAULT_NETWORK, Lab, LabError, PeerState, check_network, check_user
from p2psipd.lab_files import OVERLAY_PORT, SIP_PORT, SIPS_PORT

_dir_option = click.option(
    "--dir",
    "directory",
    default=".lab",
    show_default=True,
    metavar="D",
    type=click.Path(file_okay=False),
    help="The directory that is the lab.",
)


@click.group()
def lab() -> None:
    """An overlay of real processes on this machine."""


def _open(directory: str) -> Lab:
    try:
        return Lab.open(directory)
    except LabError as error:
        raise Negative(str(error)) from None


def _network(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A network that a lab can have; click.BadParameter otherwise, before anything is written."""
    try:
        return check_network(value)
    except LabError as error:
        raise click.BadParameter(str(error)) from None


def _users(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Names that users can have; click.BadParameter otherwise, before anything is written."""
    try:
        return tuple(check_user(name) for name in value)
    except LabError as error:
        raise click.BadParameter(str(error)) from None


@lab.command()
@click.option("--peers", default=8, show_default=True, type=click.IntRange(1, 250), help="How many peers.")
@_dir_option
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="NAME",
    callback=_users,
    help="One more user, besides alice and bob.",
)
@click.option(
    "--network",
    default=DEFAULT_NETWORK,
    show_default=True,
    callback=_network,
    help="Peer K listens on NETWORK.K.",
)
@click.option("--debug", is_flag=True, help="Let the peers log every step.")
@json_option
@click.pass_context
def up(
    context: click.Context,
    peers: int,
    directory: str,
    users: tuple[str, ...],
    network: str,
    debug: bool,
    as_json: bool,
) -> None:
    """Make a lab if there is none in the directory, start every peer, and wait until all have joined."""
    names = tuple(dict.fromkeys(("alice", "bob", *users)))
    try:
        if (Path(directory) / "lab.json").exists():
            made = Lab.open(directory)
            _refuse_another(context, made, names)
        else:
            with step(f"writing certificates and configuration of {peers} peers", as_json) as progress:
                made = Lab.create(
                    directory,
                    peers,
                    users=names,
                    network=network,
                    log_level="debug" if debug else "info",
                    progress=progress,
                )
        with step(f"starting {made.files.peers} peers", as_json) as progress:
            made.on_progress(progress)
            took = made.up()
        with step("storing the users' credentials", as_json):
            made.provision()
    except LabError as error:
        raise Negative(str(error)) from None
    emit(
        {**made.files.description(), "directory": str(made.directory), "seconds": round(took, 3)},
        as_json,
        _guide,
    )


def _refuse_another(context: click.Context, made: Lab, names: tuple[str, ...]) -> None:
    """End with a usage error if the options that were given ask for another lab than the one there is."""
    files = made.files
    people = [user.name for user in files.users]
    asked = context.params
    another = {
        "peers": (asked["peers"] != files.peers, f"{files.peers} peers"),
        "users": (set(names) != set(people), f"the users {', '.join(people)}"),
        "network": (asked["network"] != files.network, f"the network {files.network}"),
        "debug": (files.log_level != "debug", f"the log level {files.log_level}"),
    }
    has = [
        text
        for option, (differs, text) in another.items()
        if differs and context.get_parameter_source(option) is not ParameterSource.DEFAULT
    ]
    if has:
        raise click.UsageError(
            f"the lab in {made.directory} has {' and '.join(has)}: give another --dir, "
            f"or clear this one away with p2psip lab down --remove --dir {made.directory}"
        )


def _guide(made: dict[str, Any]) -> str:
    """How to point a phone at the lab, and how to look inside."""
    directory, domain = made["directory"], made["overlay_name"]
    shown = Path(directory)
    if shown.is_relative_to(Path.cwd()):
        directory = str(shown.relative_to(Path.cwd()))
    network, last = made["network"], made["peers"]
    users = [f"  {user['name']}@{domain}, password {user['password']}" for user in made["users"]]
    return "\n".join(
        [
            f"{last} peers of {domain} are up: peer K has {network}.K, overlay port {OVERLAY_PORT}, "
            f"SIP {SIP_PORT} (UDP, TCP), SIPS {SIPS_PORT}.",
            "",
            "A phone on this machine: any peer is its registrar and its outbound proxy, for example",
            f"  registrar and proxy {network}.{min(3, last)}:{SIP_PORT}, domain {domain}, one of the users",
            *users,
            f"  with baresip: see etc/lab/baresip; over TLS trust {directory}/sip.pem",
            "A call without a phone of your own:",
            f"  p2psip ua call echo@{domain} --user {made['users'][0]['name']}@{domain} "
            f"--password {made['users'][0]['password']} --server {network}.{min(3, last)} --tone 440",
            "  p2psip ua answer --help    p2psip ua call --help",
            "",
            "Look inside, at any peer:",
            f"  p2psip -n {directory}/peer1 status",
            f"  p2psip -n {directory}/peer1 peers",
            f"  p2psip -n {directory}/peer1 trace sip:bob@{domain}",
            f"  p2psip -n {directory}/peer1 get sip:bob@{domain}",
            f"  p2psip lab status --dir {directory}",
            "Do harm, and watch it heal:",
            f"  p2psip lab kill {last} --dir {directory}",
            f"  p2psip lab start {last} --dir {directory}",
            "End it:",
            f"  p2psip lab down --dir {directory}",
        ]
    )


@lab.command()
@_dir_option
@json_option
def status(directory: str, as_json: bool) -> None:
    """How every peer is. The exit code is 1 unless all have joined."""
    made = _open(directory)
    states = made.status()
    emit([_state(state) for state in states], as_json, _status_table)
    if any(state.state != "joined" for state in states):
        raise click.exceptions.Exit(1)


def _state(state: PeerState) -> dict[str, Any]:
    return {
        "peer": state.number,
        "state": state.state,
        "pid": state.pid,
        "address": state.address,
        "status": state.status,
    }


def _status_table(states: list[dict[str, Any]]) -> str:
    rows = []
    for state in states:
        inner = state["status"] or {}
        rows.append(
            (
                state["peer"],
                state["state"],
                state["pid"] or "-",
                state["address"],
                short(str(inner.get("node_id", "-"))),
                inner.get("peers", "-"),
                inner.get("links", "-"),
                inner.get("records", "-"),
                inner.get("registrations", "-"),
                seconds(float(inner["up_seconds"])) if "up_seconds" in inner else "-",
            )
        )
    heading = ("peer", "state", "pid", "address", "node", "peers", "links", "records", "phones", "up")
    return table(rows, heading)


@lab.command()
@click.argument("numbers", nargs=-1, required=True, type=click.IntRange(min=1), metavar="K...")
@click.option("--stop", is_flag=True, help="Silence it instead (SIGSTOP): its connections stay open.")
@_dir_option
@json_option
def kill(numbers: tuple[int, ...], stop: bool, directory: str, as_json: bool) -> None:
    """Kill peers at once and without a word (SIGKILL)."""
    made = _open(directory)
    try:
        alive = [number for number in numbers if made.pid(number) is not None]
        for number in alive:
            made.signal(number, signal.SIGSTOP if stop else signal.SIGKILL)
    except LabError as error:
        raise Negative(str(error)) from None
    verb = "stopped" if stop else "killed"
    emit(
        {verb: alive},
        as_json,
        lambda value: f"{verb}: {', '.join(map(str, value[verb])) or 'none was alive'}",
    )
    if not alive:
        raise click.exceptions.Exit(1)


@lab.command()
@click.argument("numbers", nargs=-1, required=True, type=click.IntRange(min=1), metavar="K...")
@_dir_option
@json_option
def start(numbers: tuple[int, ...], directory: str, as_json: bool) -> None:
    """Start peers again (or let stopped ones go on) and wait until they have joined."""
    made = _open(directory)
    try:
        with step(f"starting {', '.join(map(str, numbers))}", as_json) as progress:
            made.on_progress(progress)
            for number in numbers:
                made.thaw(number)
                made.start(number)
            made.wait_joined(numbers)
    except LabError as error:
        raise Negative(str(error)) from None
    emit({"started": list(numbers)}, as_json, lambda _value: "joined")


@lab.command()
@_dir_option
@click.option("--remove", is_flag=True, help="Clear the directory away, too.")
@json_option
def down(directory: str, remove: bool, as_json: bool) -> None:
    """End every peer of the lab; its files stay unless --remove is given."""
    made = _open(directory)
    alive = sum(made.pid(number) is not None for number in made.peers)
    with step(f"ending {alive} peers", as_json):
        killed = made.down()
    if remove:
        for name in made.files.names():
            path = made.directory / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not any(made.directory.iterdir()):
            made.directory.rmdir()
    result = {"ended": alive, "killed": killed, "removed": remove}
    emit(result, as_json, lambda value: f"{value['ended']} peers ended")

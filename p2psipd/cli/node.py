"""The verbs that ask a running node over its control socket, and `check`, which reads a configuration file."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2psipd.cli.console import ConfigFault, Negative, NotReached, emit, json_option, seconds, short, table
from p2psipd.control import Control, ControlRefused, ControlUnreachable

if TYPE_CHECKING:
    from p2psipd.config import Material, NodeConfig

SOCKET = "control.sock"
SYSTEM_SOCKET = Path("/run/p2psipd") / SOCKET


def control_path(chosen: str | None) -> Path:
    """The control socket that `--node` (a socket, or the directory of a node) or the place we are in means."""
    if chosen:
        path = Path(chosen)
        return path / SOCKET if path.is_dir() else path
    here = Path(SOCKET)
    return here if here.exists() else SYSTEM_SOCKET


def ask(resource: str, timeout: float = 20.0, **parameters: str | int | None) -> Any:
    """The node's answer to GET `resource`. Ends the verb with 69 if it is not reached, with 1 if it says no."""
    context = click.get_current_context()
    try:
        return Control(control_path(context.find_root().obj), timeout).get(resource, **parameters)
    except ControlUnreachable as error:
        raise NotReached(str(error)) from None
    except ControlRefused as error:
        raise Negative(str(error)) from None


def facts(pairs: dict[str, Any]) -> str:
    """`name value` lines for a few facts; what is empty or unknown is left out."""
    return table([(name, _text(value)) for name, value in pairs.items() if value not in (None, "", [], {})])


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case list() | tuple():
            return ", ".join(map(_text, value))
        case dict():
            return " ".join(f"{name}={_text(inner)}" for name, inner in value.items())
        case _:
            return str(value)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """How the node is: who, where, how long, what is wrong."""
    emit(ask("/status"), as_json, render_status)


def render_status(answer: dict[str, Any]) -> str:
    """One line for what matters, then a line for each problem with its remedy."""
    counts = [
        f"{answer[key]} {word}"
        for key, word in (
            ("peers", "peers"),
            ("links", "links"),
            ("records", "records"),
            ("registrations", "phones"),
            ("calls", "calls"),
        )
        if isinstance(answer.get(key), int)
    ]
    problems = answer.get("problems", [])
    health = "look below" if problems else "ok" if answer.get("joined") else "joining"
    line = "  ".join(
        [
            f"peer {short(str(answer.get('node_id', '?')))} {answer.get('overlay', '')}",
            "joined" if answer.get("joined") else "not joined",
            f"up {seconds(float(answer.get('up_seconds', 0)))}",
            f"roles {','.join(answer.get('roles', []))}",
            *counts,
            f"health: {health}",
        ]
    )
    return "\n".join([line, *(f"  ! {problem}" for problem in problems)])


@click.command()
@json_option
def peers(as_json: bool) -> None:
    """The peers it has links with, with round-trip times."""
    emit(ask("/peers"), as_json, render_rows)


def _hexadecimal(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    value = value.removesuffix("…")  # as `peers` prints it
    if not re.fullmatch("[0-9A-Fa-f]{1,32}", value):
        raise click.BadParameter("expected a Node-ID: up to 32 hexadecimal digits")
    return value


def _not_empty(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value:
        raise click.BadParameter("expected a name")
    return value


@click.command()
@click.argument("node_id", metavar="NODE", callback=_hexadecimal)
@json_option
def ping(node_id: str, as_json: bool) -> None:
    """Ask NODE (hexadecimal Node-ID, or its beginning) through the overlay whether it is there."""
    emit(ask("/ping", node=node_id), as_json, render_facts)


@click.command()
@click.argument("name", metavar="NAME", callback=_not_empty)
@click.option("--kind", default=None, help="Only this kind of record, by name or number.")
@json_option
def get(name: str, kind: str | None, as_json: bool) -> None:
    """Fetch and verify what the overlay holds under NAME, for example sip:bob@overlay.example."""
    answer = ask("/get", name=name, kind=kind)
    emit(answer, as_json, render_facts)
    if not answer.get("values"):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("name", metavar="NAME", callback=_not_empty)
@json_option
def trace(name: str, as_json: bool) -> None:
    """The way to NAME through the overlay: each hop with milliseconds, and who answered."""
    emit(ask("/trace", name=name), as_json, render_facts)


@click.command()
@json_option
def records(as_json: bool) -> None:
    """What this node stores for the overlay."""
    emit(ask("/records"), as_json, render_rows)


@click.command()
@json_option
def registrations(as_json: bool) -> None:
    """The phones that registered here: user, contact, instance, flow, expiry."""
    emit(ask("/registrations"), as_json, render_rows)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def calls(context: click.Context, as_json: bool) -> None:
    """The last calls of this node, open ones at the end; `calls show` has the ladder of one."""
    if context.invoked_subcommand is None:
        emit(ask("/calls"), as_json, render_calls)


@calls.command()
@click.argument("call_id", metavar="CALL-ID")
@json_option
def show(call_id: str, as_json: bool) -> None:
    """One call, named by its Call-ID or the beginning of it: its record, and each message at this node."""
    emit(ask("/calls/ladder", call_id=call_id), as_json, render_call)


def render_calls(answer: Any) -> str:
    """A line for each call; --json has all that is known."""
    return render_rows(
        [
            {
                "call": str(call["call_id"])[:16],
                "from": call["from"],
                "to": call["to"],
                "came_from": _place(call["came_from"]),
                "went_to": _place(call["went_to"]),
                "identity": call["identity"],
                "started_at": call["started_at"],
                "seconds": call["seconds"],
                "ended": " by ".join(filter(None, (call["cause"], call["ended_by"]))) or "open",
            }
            for call in answer
        ]
    )


def _place(text: str) -> str:
    kind, _, rest = text.partition(" ")
    return f"{kind} {short(rest)}" if kind == "node" else text


def render_call(answer: dict[str, Any]) -> str:
    """The record as lines, then the ladder: this node in the middle of those with whom it spoke."""
    record = {name: _cell(name, value) for name, value in (answer["call"] or {}).items() if value not in (None, "")}
    return "\n".join([facts(record), *ladder_lines(answer["messages"])]).lstrip("\n")


_WIDTH = 26


def ladder_lines(messages: list[dict[str, Any]]) -> list[str]:
    """The messages of one call as arrows between `here` and the others; times are milliseconds after the first."""
    if not messages:
        return []
    others = list(dict.fromkeys(name for step in messages for name in (step["source"], step["destination"])))
    # Who spoke first stands on the left, this node beside it, whoever it turned to on the right.
    others.remove("here")
    places = {name: column for column, name in enumerate([*others[:1], "here", *others[1:]])}
    head = [" "] * (14 + _WIDTH * len(places))
    for name, column in places.items():
        shown = _place(name)[: _WIDTH - 2]
        start = max(9, 12 + column * _WIDTH - len(shown) // 2)
        head[start : start + len(shown)] = shown
    lines = ["".join(head).rstrip()]
    for step in messages:
        line = [" "] * (14 + _WIDTH * len(places))
        for column in places.values():
            line[12 + column * _WIDTH] = "|"
        line[:9] = f"{(step['at'] - messages[0]['at']) * 1000:9.1f}"
        low, high = sorted((places[step["source"]], places[step["destination"]]))
        begin, end = 13 + low * _WIDTH, 12 + high * _WIDTH
        label = f" {_short_line(step['line'], end - begin - 6)} ".center(end - begin - 2, "-")
        line[begin:end] = f"{label}->" if places[step["source"]] == low else f"<-{label}"
        lines.append("".join(line).rstrip())
    return lines


def _short_line(line: str, room: int) -> str:
    """A start line as a ladder shows it: the method, or the status and as much of its reason as there is room for."""
    first, _, rest = line.partition(" ")
    words = rest.split() if first.startswith("SIP/") else [first]
    while len(words) > 1 and len(" ".join(words)) > room:
        words.pop()
    return " ".join(words)[:room]


def render_rows(answer: Any) -> str:
    """A list of like objects as a table, its columns headed by the names of the first one's fields."""
    rows = answer if isinstance(answer, list) else next((v for v in answer.values() if isinstance(v, list)), [])
    if not rows:
        return "none"
    names = list(rows[0])
    return table([[_cell(name, row.get(name)) for name in names] for row in rows], names)


def _cell(name: str, value: Any) -> str:
    """One cell: identifiers by their beginning, times of the day as such; --json has them whole."""
    if value is None or value == "":
        return "-"
    if isinstance(value, str) and name in ("node", "node_id", "resource", "key"):
        return short(value)
    if isinstance(value, str) and name == "signer":
        user, _, domain = value.partition("@")
        return f"{short(user)}@{domain}"
    if isinstance(value, float) and name.endswith("_at"):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return _text(value)


def render_facts(answer: dict[str, Any]) -> str:
    """The plain facts of an answer as lines, and each list in it as a table below."""
    plain = {name: value for name, value in answer.items() if not _is_table(value)}
    tables = [render_rows(value) for value in answer.values() if _is_table(value)]
    return "\n".join(part for part in (facts(plain), *tables) if part)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def check(file: str, as_json: bool) -> None:
    """Check the configuration FILE and what it names; every fault is a line with file, line and key."""
    from p2psipd import config

    try:
        checked, material = config.load_all(file, os.environ)
    except config.ConfigError as error:
        if as_json:
            emit({"ok": False, "faults": [fault._asdict() for fault in error.faults]}, True, str)
            raise click.exceptions.Exit(config.EXIT_CONFIG) from None
        raise ConfigFault(str(error)) from None
    emit({"ok": True, **_summary(checked, material)}, as_json, _render_check)


def _summary(checked: NodeConfig, material: Material) -> dict[str, Any]:
    certificate = material.credential.certificate
    return {
        "overlay": material.configuration.overlay_name,
        "roles": list(checked.node.roles),
        "node_id": certificate.node_id.hex(),
        "user": certificate.user,
        "certificate_seconds": round(certificate.not_after - time.time()),
    }


def _render_check(answer: dict[str, Any]) -> str:
    left = seconds(float(answer["certificate_seconds"]))
    return (
        f"ok: {answer['overlay']}, roles {' '.join(answer['roles'])}, node {short(answer['node_id'])}, "
        f"certificate {left} left"
    )

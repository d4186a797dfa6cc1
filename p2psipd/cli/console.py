"""What every verb shares: the exit codes, `--json`, plain tables, and progress on standard error.

Imports nothing but click and the standard library: a verb that asks a running node starts in a tenth of a
second.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_NOT_REACHED = 69
EXIT_CONFIG = 78

_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option: Callable[[_Command], _Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON value instead of text."
)


class _Ended(click.ClickException):
    """A verb that ends with a message on standard error, and with `--json` with `{"error": ...}` as its JSON value."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        context = click.get_current_context(silent=True)
        self.as_json = context is not None and bool(context.params.get("as_json"))

    def show(self, file: Any = None) -> None:
        """Print it."""
        if self.as_json:
            click.echo(json.dumps({"error": self.message}, indent=2, ensure_ascii=False))
        super().show(file)


class Negative(_Ended):
    """The question was understood and the answer is no: nothing found, nobody answered (exit code 1)."""

    exit_code = EXIT_NEGATIVE


class NotReached(_Ended):
    """The daemon did not answer on its control socket (exit code 69, sysexits.h EX_UNAVAILABLE)."""

    exit_code = EXIT_NOT_REACHED


class ConfigFault(click.ClickException):
    """A configuration file is at fault; the message has a line for each fault (exit code 78, EX_CONFIG)."""

    exit_code = EXIT_CONFIG

    def show(self, file: Any = None) -> None:
        """The faults as they are: each line begins with file and line, as editors like it."""
        click.echo(self.message, file=file or sys.stderr)


def emit(value: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print `value` (JSON types) as one JSON document, or as `render` words it for people."""
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    text = render(value)
    if text:
        click.echo(text)


def table(rows: Sequence[Sequence[object]], heading: Sequence[str] = ()) -> str:
    """Rows in columns, two blanks apart; numbers to the right. Plain text, so that grep and cut work on it.
    """
    lines = [[str(cell) for cell in row] for row in rows]
    if heading:
        lines.insert(0, list(heading))
    if not lines:
        return ""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    right = [bool(rows) and isinstance(rows[0][at], int | float) for at in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def short(node_id: str) -> str:
    """A Node-ID (32 hexadecimal digits) as people compare it: the first eight."""
    return node_id if len(node_id) <= 10 else f"{node_id[:8]}…"


def seconds(value: float) -> str:
    """A duration in two units at most: `3d4h`, `12m05s`, `7.3s`, `41 ms`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


@contextmanager
def step(text: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Announce a step that may take more than a second, on standard error, and its duration when it is done.

    Yields a function that rewrites the line with how far the step is (on a terminal; elsewhere nothing is
    rewritten).
    """
    started = time.monotonic()
    terminal = sys.stderr.isatty()

    def progress(so_far: str) -> None:
        if terminal and not quiet:
            click.echo(f"\r\x1b[K{text} {so_far}", nl=False, err=True)

    if not quiet:
        click.echo(f"{text} ...", nl=not terminal, err=True)
    try:
        yield progress
    except BaseException:
        if terminal and not quiet:
            click.echo("", err=True)
        raise
    if not quiet:
        start = "\r\x1b[K" if terminal else ""
        click.echo(f"{start}{text}: done in {seconds(time.monotonic() - started)}", err=True)

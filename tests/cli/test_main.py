"""The command as a whole: every verb is there, helps, and can speak JSON."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from p2psipd.cli.console import seconds, short, step, table
from p2psipd.cli.main import VERBS, main


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb that does something, with the words that lead to it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner, (*path, name))
    else:
        yield path, command


def test_help_lists_every_verb() -> None:
    """`p2psip --help` has a line for each verb of the table, and names the exit codes."""
    shown = CliRunner().invoke(main, ["--help"]).output
    for name, verb in VERBS.items():
        assert f"  {name} " in shown
        assert verb.help[:20] in shown
    assert "69" in shown


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_has_json_and_help(name: str) -> None:
    """Each verb, and each verb of a group, has --json and a sentence of help."""
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    for path, leaf in leaves(command, (name,)):
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert "--json" in options, path
        assert leaf.help, path


def test_unknown_verb_is_a_usage_error() -> None:
    """A verb that does not exist is exit code 2 and is named."""
    ran = CliRunner().invoke(main, ["fly"])
    assert ran.exit_code == 2
    assert "fly" in ran.output


def test_a_file_that_cannot_be_written_is_one_line() -> None:
    """Whatever a verb reads or writes, what the system refuses is one line with the file's name, never a traceback."""
    ran = CliRunner().invoke(main, ["lab", "up", "--dir", "/proc/none"])
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1] == "Error: /proc/none: No such file or directory"


def test_tables_and_durations() -> None:
    """Columns are as wide as their widest cell, numbers stand to the right, durations have two units."""
    assert table([("a", 1), ("bcd", 22)], ("who", "n")) == "who   n\na     1\nbcd  22"
    assert table([]) == ""
    assert [seconds(value) for value in (0.0412, 7.34, 725, 3700, 273_600)] == [
        "41 ms",
        "7.3 s",
        "12m05s",
        "1h01m",
        "3d4h",
    ]
    assert short("ab" * 16) == "abababab…"


def test_steps_say_how_long_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    """A step is announced and ends with its duration, on standard error; a quiet one says nothing."""
    with step("baking") as progress:
        progress("half")
    with step("resting", quiet=True):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("baking ...\nbaking: done in ")
    assert "resting" not in shown.err

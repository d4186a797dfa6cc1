"""The `sim` verb: durations, the table, JSON, and usage errors."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from p2psipd.cli.sim import parse_duration, sim

SMALL = ["--peers", "9", "--minutes", "0.2", "--records", "10", "--quiet"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("60m", 3600), ("1.5h", 5400), ("200ms", 0.2), ("2d", 172800)]
)
def test_durations(text: str, seconds: float) -> None:
    """A number with a unit, seconds without one."""
    assert parse_duration(None, None, text) == seconds
    assert parse_duration(None, None, None) is None


@pytest.mark.parametrize("text", ["", "0", "0m", "-3s", "1w", "m", "1e3"])
def test_no_durations(text: str) -> None:
    """Anything else is a usage error that says what was expected."""
    with pytest.raises(click.BadParameter, match="such as 90s"):
        parse_duration(None, None, text)


def test_the_table_has_the_figures() -> None:
    """The table names the latency model and has success, hops, times, messages, octets and copies."""
    result = CliRunner().invoke(sim, [*SMALL, "--churn", "10m"])
    assert result.exit_code == 0, result.output
    for what in (
        "king-like",
        "look-ups that succeeded",
        "hops",
        "p50 / p99",
        "messages a node",
        "octets a node",
        "copies",
    ):
        assert what in result.output


def test_json_is_the_same_on_every_run() -> None:
    """Two runs of one seed print the same octets, and every figure is there."""
    first, second = (CliRunner().invoke(sim, [*SMALL, "--puts", "0", "--json"]).stdout for _ in range(2))
    assert first == second
    value = json.loads(first)
    assert value["lookups"]["success"] == 1
    assert value["copies"]["mean"] == 8
    assert value["parameters"]["seed"] == 1


@pytest.mark.parametrize("wrong", [["--peers", "0"], ["--churn", "soon"], ["--sign", "wax"], ["--loss", "2"]])
def test_usage_errors(wrong: list[str]) -> None:
    """A value out of bounds ends with exit code 2 before anything runs."""
    assert CliRunner().invoke(sim, wrong).exit_code == 2

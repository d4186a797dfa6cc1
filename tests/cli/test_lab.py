"""The options of `p2psip lab up`: which are refused, before anything is written or started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2psipd.cli.main import main


def up(directory: Path, *options: str) -> Result:
    """Run `p2psip lab up`."""
    return CliRunner().invoke(main, ["lab", "up", "--dir", str(directory), *options])


@pytest.mark.parametrize("options", [("--network", "300.1.1"), ("--user", "bad user")])
def test_options_that_cannot_be(tmp_path: Path, options: tuple[str, str]) -> None:
    """A network or a name that cannot be is a usage error of one line, and nothing is left behind."""
    ran = up(tmp_path / "new", *options)
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[-1].startswith(f"Error: Invalid value for '{options[0]}': ")
    assert options[1] in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()

"""The options of `p2psip lab up`: which are refused, before anything is written or started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2psipd.cli.main import main
from p2psipd.lab import Lab
from p2psipd.lab_files import LabFiles, User


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A lab of two in `tmp_path` with the user carol; how many peers it had whenever it was brought up."""
    started: list[int] = []
    monkeypatch.setattr(Lab, "up", lambda self: started.append(self.files.peers) or 0.0)
    monkeypatch.setattr(Lab, "provision", lambda self: None)
    Lab.create(tmp_path, 2, users=("alice", "bob", "carol"), network="127.1.9")
    return started


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


@pytest.mark.parametrize(
    "options",
    [(), ("--peers", "2"), ("--user", "carol"), ("--user", "alice", "--user", "carol"), ("--network", "127.1.9")],
)
def test_the_same_lab_again(tmp_path: Path, started: list[int], options: tuple[str, ...]) -> None:
    """Options that say what the lab is, or none, bring it up again."""
    assert up(tmp_path, *options).exit_code == 0
    assert started == [2]


@pytest.mark.parametrize(
    ("options", "has"),
    [
        (("--peers", "8"), "2 peers"),
        (("--peers", "3", "--network", "127.0.1"), "2 peers and the network 127.1.9"),
        (("--user", "dave"), "the users alice, bob, carol"),
        (("--debug",), "the log level info"),
    ],
)
def test_another_lab_than_there_is(tmp_path: Path, started: list[int], options: tuple[str, ...], has: str) -> None:
    """Options that the lab in the directory was not made with, be they the defaults, are refused with what it has."""
    ran = up(tmp_path, *options)
    assert ran.exit_code == 2
    assert ran.stderr.splitlines()[-1] == (
        f"Error: the lab in {tmp_path} has {has}: give another --dir, "
        f"or clear this one away with p2psip lab down --remove --dir {tmp_path}"
    )
    assert started == []


def test_debug_is_remembered(tmp_path: Path, started: list[int]) -> None:
    """A lab made with --debug takes it again; one whose lab.json is older and does not say logs at info."""
    for _ in range(2):
        assert up(tmp_path / "new", "--peers", "1", "--debug").exit_code == 0
    assert 'log_level = "debug"' in (tmp_path / "new" / "peer1" / "p2psipd.toml").read_text()
    older = LabFiles(tmp_path, 1, "127.1.9", "lab.example", (User.of("alice"),)).description()
    del older["log_level"]
    assert LabFiles.from_description(tmp_path, older).log_level == "info"

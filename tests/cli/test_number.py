"""The verbs that give users telephone numbers, on an overlay of one dictionary."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2psipd.cli import number as module
from p2psipd.cli.main import main
from p2psipd.proto.sip.uri import parse_uri
from p2psipd.services.numbers import OverlayNumbers

from .test_user import World
from .test_user import world as world

NUMBER = "+12125551212"


@pytest.fixture
def office(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """An overlay with alice and bob in it."""
    from p2psipd.cli import user

    monkeypatch.setattr(module, "with_overlay", user.with_overlay)
    for name in ("alice", "bob"):
        world.good("add", name, "--password", "secret")
    return world


def run(office: World, verb: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["number", verb, "--dir", str(office.directory), *arguments])


def good(office: World, verb: str, *arguments: str) -> Any:
    result = run(office, verb, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def owner(office: World) -> str | None:
    return asyncio.run(OverlayNumbers(office.overlay, ("overlay.example",)).owner(parse_uri(f"tel:{NUMBER}")))


def test_added_number_stands_for_its_user(office: World) -> None:
    """After add the overlay says whose the number is; given to another user, it is that one's."""
    assert good(office, "add", "+1 (212) 555-1212", "alice") == {
        "number": f"{NUMBER}@overlay.example",
        "user": "alice@overlay.example",
    }
    assert owner(office) == "sip:alice@overlay.example"
    good(office, "add", NUMBER, "bob")
    assert owner(office) == "sip:bob@overlay.example"
    assert good(office, "list") == [{"number": f"{NUMBER}@overlay.example", "user": "bob@overlay.example"}]


def test_removed_number_stands_for_nobody(office: World) -> None:
    """After remove nobody has the number, and it is not removed twice."""
    good(office, "add", NUMBER, "alice")
    good(office, "remove", NUMBER)
    assert owner(office) is None
    assert run(office, "remove", NUMBER).exit_code == 1
    assert good(office, "list") == []


def test_refresh_stores_numbers_anew(office: World) -> None:
    """The weekly refresh of passwords renews the numbers, too."""
    good(office, "add", NUMBER, "alice")
    office.overlay.held.clear()
    office.run("refresh")
    assert owner(office) == "sip:alice@overlay.example"


@pytest.mark.parametrize("digits", ["12125551212", "+0123", "+1234567890123456", "911", "alice"])
def test_only_global_numbers(office: World, digits: str) -> None:
    """What is no global number is a usage error."""
    assert run(office, "add", digits, "alice").exit_code == 2


def test_only_known_users(office: World) -> None:
    """A number for a user that was not added here is refused."""
    assert run(office, "add", NUMBER, "mallory").exit_code == 1

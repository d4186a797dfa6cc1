"""`p2psip number`: telephone numbers that stand for users.

A number becomes a signed alias in the overlay (RFC 7904 section 4.2 step 2): calls to it reach the user's phones,
and the user may call with it as From (`sip:+12125551212@overlay.example;user=phone`).
"""

from __future__ import annotations

import re
from typing import Any

import click

from p2psipd.cli.console import Negative, emit, json_option, table
from p2psipd.cli.overlay import faults_of
from p2psipd.cli.provisioning import Place, opened, place_options, with_overlay
from p2psipd.overlay_files import check_aor
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.provisioning_files import ProvisioningFiles
from p2psipd.services.provisioning import Provisioner

_VISUAL_SEPARATORS = re.compile(r"[-.() ]")
_GLOBAL_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")


@click.group()
def number() -> None:
    """Telephone numbers: which user each stands for."""


@number.command()
@click.argument("digits", metavar="NUMBER")
@click.argument("name")
@place_options
@json_option
def add(place: Place, digits: str, name: str, as_json: bool) -> None:
    """Have NUMBER (+12125551212, RFC 3966) stand for the user NAME, instead of whom it stood for."""
    with opened(place) as (files, configuration, _):
        target = check_aor(name, configuration)
        if target not in files.users:
            raise Negative(f"{target} is no user that was added here (p2psip user list)")
        alias = _alias(digits, configuration)
        before = files.numbers.get(alias)

        async def work(provisioner: Provisioner) -> None:
            await provisioner.put_alias(alias, target)
            if before not in (None, target):
                await provisioner.remove_alias(alias, str(before))

        with_overlay(place, files, configuration, work)
        files.note_number(alias, target)
    emit({"number": alias, "user": target}, as_json, lambda done: f"{done['number']} stands for {done['user']}")


@number.command()
@click.argument("digits", metavar="NUMBER")
@place_options
@json_option
def remove(place: Place, digits: str, as_json: bool) -> None:
    """NUMBER stands for nobody any more."""
    with opened(place) as (files, configuration, _):
        alias = _alias(digits, configuration)
        target = files.numbers.get(alias)
        if target is None:
            raise Negative(f"{alias} is no number that was added here (p2psip number list)")

        async def work(provisioner: Provisioner) -> None:
            await provisioner.remove_alias(alias, target)

        with_overlay(place, files, configuration, work)
        files.forget_number(alias)
    emit({"removed": alias}, as_json, lambda done: f"{done['removed']} removed")


@number.command("list")
@place_options
@json_option
def list_numbers(place: Place, as_json: bool) -> None:
    """The numbers that were added from this directory."""
    with faults_of(place.directory), ProvisioningFiles.open(place.directory) as files:
        found = [{"number": alias, "user": target} for alias, target in files.numbers.items()]
    emit(found, as_json, _render_list)


def _render_list(found: list[dict[str, Any]]) -> str:
    return table([[entry["number"], entry["user"]] for entry in found], ("number", "user")) if found else "none"


def _alias(digits: str, configuration: OverlayConfiguration) -> str:
    """The name under which a global number is stored: "+12125551212@" and the overlay's first domain."""
    plain = _VISUAL_SEPARATORS.sub("", digits)
    if not _GLOBAL_NUMBER.fullmatch(plain):
        raise click.UsageError(f"{digits}: a global number expected, + and at most 15 digits (RFC 3966)")
    return f"{plain}@{configuration.domains[0]}"

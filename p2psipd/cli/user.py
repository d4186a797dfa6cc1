"""`p2psip user`: passwords of phones.

A user's password becomes six HA1 values (MD5, SHA-256, SHA-512-256; user name: what is before the "@", and the whole;
realm: the domain), sealed under the current epoch's key and stored in the overlay; the key is stored
wrapped for every registrar. These verbs are client nodes for a moment: Twisted is imported when one of them
runs.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import click

from p2psipd.cli.console import EXIT_NEGATIVE, Negative, emit, json_option, table
from p2psipd.cli.overlay import faults_of
from p2psipd.cli.provisioning import Place, opened, place_options, with_overlay
from p2psipd.overlay_files import check_aor
from p2psipd.proto.identity.certificate import NodeCertificate
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.sip_usage import EPOCH_KEY_LENGTH
from p2psipd.provisioning_files import ProvisioningFiles
from p2psipd.services.provisioning import Provisioner


@click.group()
def user() -> None:
    """Passwords of phones: add, change and remove users."""


@user.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--from", "source", type=click.File("r"), help="Lines of NAME PASSWORD; - is standard input.")
@click.option("--password", envvar="P2PSIP_PASSWORD", help="Better in $P2PSIP_PASSWORD, or asked for.")
@click.option("--replace", is_flag=True, help="Users that exist already get the new password.")
@place_options
@json_option
def add(place: Place, names: tuple[str, ...], source: Any, password: str | None, replace: bool, as_json: bool) -> None:
    """Give users a password: NAME is alice@overlay.example, or alice for the overlay's first domain."""
    _put(place, _with_passwords(names, source, password), as_json, may_exist=replace, must_exist=False)


@user.command()
@click.argument("name")
@click.option("--password", envvar="P2PSIP_PASSWORD", help="Better in $P2PSIP_PASSWORD, or asked for.")
@place_options
@json_option
def passwd(place: Place, name: str, password: str | None, as_json: bool) -> None:
    """Change a user's password. The new one counts at once; the old one may be taken for ten seconds more, and for a
    minute by a registrar that is cut off from the overlay.
    """
    _put(place, _with_passwords((name,), None, password), as_json, may_exist=True, must_exist=True)


@user.command()
@click.argument("name")
@place_options
@json_option
def remove(place: Place, name: str, as_json: bool) -> None:
    """Remove a user: their phones are refused within ten seconds, within a minute by a registrar that is cut off from
    the overlay. What they registered runs out.
    """
    with opened(place) as (files, configuration, _):
        aor = check_aor(name, configuration)
        _must_be_known(files, aor)

        async def work(provisioner: Provisioner) -> None:
            await provisioner.remove_user(aor)

        with_overlay(place, files, configuration, work)
        files.forget_user(aor)
    emit({"removed": aor}, as_json, lambda done: f"{done['removed']} removed")


@user.command("list")
@place_options
@json_option
def list_users(place: Place, as_json: bool) -> None:
    """The users that were added from this directory."""
    with faults_of(place.directory), ProvisioningFiles.open(place.directory) as files:
        users = [{"user": aor, **entry} for aor, entry in files.users.items()]
    columns = ("user", "added", "changed", "stored", "epoch")
    rows = [[entry.get(column, "") for column in columns] for entry in users]
    emit(users, as_json, lambda _: table(rows, columns) if rows else "none")


@user.command()
@place_options
@json_option
def refresh(place: Place, as_json: bool) -> None:
    """Store everything anew, for 30 days or as long as our certificate lasts. Do it weekly, and after a renewal of it.

    New registrars are given the key. The exit code is 1 if a user's credential is not in the overlay any
    more.
    """
    with opened(place) as (files, configuration, registrars):
        complete = _renew(place, files, configuration, registrars, as_json)
    if not complete:
        raise click.exceptions.Exit(EXIT_NEGATIVE)


@user.command()
@place_options
@json_option
def rekey(place: Place, as_json: bool) -> None:
    """Begin a new epoch: a new key for the registrars of now, every credential encrypted anew.

    Do it after a registrar was revoked (p2psip overlay update --bad-node). What it knew it still knows, and
    an HA1 is as good as a password: the users that are listed should be given new ones.
    """
    with opened(place) as (files, configuration, registrars):
        files.add_epoch(secrets.token_bytes(EPOCH_KEY_LENGTH))
        complete = _renew(place, files, configuration, registrars, as_json)
        if complete:
            files.forget_epochs_before(max(files.epochs))
    if not complete:
        raise click.exceptions.Exit(EXIT_NEGATIVE)


# ---- what the verbs share ----


def _with_passwords(names: tuple[str, ...], source: Any, password: str | None) -> list[tuple[str, str]]:
    """Pairs of name and password from the command line, a file or a prompt."""
    pairs = []
    for number, line in enumerate(source or (), 1):
        name, _, secret = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if not secret.strip():
            raise click.UsageError(f"{getattr(source, 'name', 'input')}:{number}: NAME PASSWORD expected")
        pairs.append((name, secret.strip()))
    if names and password is None:
        if len(names) > 1:
            raise click.UsageError("several users: give their passwords with --from")
        password = click.prompt(f"Password of {names[0]}", hide_input=True, confirmation_prompt=True, err=True)
    pairs += [(name, password or "") for name in names]
    if not pairs:
        raise click.UsageError("no user was named")
    if not all(secret for _, secret in pairs):
        raise click.UsageError("an empty password")
    return pairs


def _must_be_known(files: ProvisioningFiles, aor: str) -> None:
    if aor not in files.users:
        raise Negative(f"{aor} is no user that was added here (p2psip user list)")


def _put(place: Place, pairs: list[tuple[str, str]], as_json: bool, *, may_exist: bool, must_exist: bool) -> None:
    """Store passwords, and the key for all registrars."""
    with opened(place) as (files, configuration, registrars):
        passwords = {check_aor(name, configuration): password for name, password in pairs}
        for aor in passwords:
            if must_exist:
                _must_be_known(files, aor)
            if aor in files.users and not may_exist:
                raise Negative(f"{aor} is a user already: p2psip user passwd {aor} changes the password")

        async def work(provisioner: Provisioner) -> None:
            await provisioner.put_keys(registrars)
            for aor, password in passwords.items():
                await provisioner.put_user(aor, password)
                files.note_user(aor, time.time(), changed=True)

        with_overlay(place, files, configuration, work)
    result = {"users": list(passwords), "registrars": len(registrars), "epoch": max(files.epochs)}
    emit(
        result,
        as_json,
        lambda done: f"{', '.join(done['users'])}: stored, {done['registrars']} registrars have the key",
    )
    if not registrars:
        click.echo("no registrar is known, so no phone can register: --operator or --registrar names them", err=True)


def _renew(
    place: Place,
    files: ProvisioningFiles,
    configuration: OverlayConfiguration,
    registrars: list[NodeCertificate],
    as_json: bool,
) -> bool:
    """Store all keys and credentials anew under the current epoch; whether every user's was there."""
    renewed: list[str] = []
    missing: list[str] = []

    async def work(provisioner: Provisioner) -> None:
        await provisioner.put_keys(registrars)
        for aor in list(files.users):
            if await provisioner.renew_user(aor):
                files.note_user(aor, time.time(), changed=False)
                renewed.append(aor)
            else:
                missing.append(aor)
        for number, target in files.numbers.items():
            await provisioner.put_alias(number, target)

    with_overlay(place, files, configuration, work)
    result = {"epoch": max(files.epochs), "registrars": len(registrars), "renewed": renewed, "missing": missing}
    emit(result, as_json, _render_renewal)
    return not missing


def _render_renewal(result: dict[str, Any]) -> str:
    lines = [f"epoch {result['epoch']}: {result['registrars']} registrars have the key"]
    lines += [f"  {aor}" for aor in result["renewed"]]
    lines += [f"  {aor}: not in the overlay any more; p2psip user passwd {aor}" for aor in result["missing"]]
    return "\n".join(lines)

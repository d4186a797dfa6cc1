"""`p2psip overlay` and `p2psip ca`: an operator makes an overlay, changes its document, and enrolls nodes and users.

What the verbs do is in `p2psipd.overlay_files`; here is how it is asked for and shown.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import click

from p2psipd.cli.console import ConfigFault, Negative, emit, json_option, table
from p2psipd.overlay_files import DOCUMENT, Issued, OverlayFiles, OverlayFilesError
from p2psipd.proto.identity.certificate import DAY, CertificateError, Role
from p2psipd.proto.reload.overlay_config import (
    ConfigurationError,
    OverlayConfiguration,
    domain_pattern,
    parse_configuration,
    trust_fingerprint,
)

DEFAULT_PORT = 6084
_ROLES = {role.value: role for role in (Role.PEER, Role.REGISTRAR, Role.PROVISIONING, Role.USER)}

_dir_option = click.option(
    "--dir",
    "directory",
    default=".",
    show_default="this directory",
    metavar="D",
    type=click.Path(file_okay=False, path_type=Path),
    help="The operator's directory of the overlay: overlay.xml and ca/.",
)


def node_id_option(value: str) -> bytes:
    """A Node-ID of 32 hexadecimal digits, as octets; a usage error for anything else."""
    try:
        node_id = bytes.fromhex(value)
    except ValueError:
        node_id = b""
    if len(node_id) != 16:
        raise click.BadParameter(f"{value!r} is not a Node-ID: 32 hexadecimal digits expected")
    return node_id


def address_option(value: str) -> tuple[str, int]:
    """HOST:PORT with an IP address, IPv6 in brackets; the port may be left out."""
    host, port = value, str(DEFAULT_PORT)
    if value.startswith("["):
        host, _, rest = value[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif value.count(":") == 1:
        host, _, port = value.partition(":")
    try:
        address = str(ipaddress.ip_address(host))
        if not 0 < int(port) < 65536:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an IP address and port (the document holds no host names)")
    return address, int(port)


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Turn the faults of the operator's files into what the command line shows, with their exit codes."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigFault(
            "\n".join(f"{path}:{line}: {text}" if line else f"{path}: {text}" for line, text in error.faults)
        )
    except CertificateError as error:
        raise click.UsageError(error.detail)
    except OverlayFilesError as error:
        raise Negative(str(error))
    except OSError as error:
        raise Negative(f"{error.filename or path}: {error.strerror}")


@click.group()
def overlay() -> None:
    """Make and sign the overlay's configuration document."""


@overlay.command()
@click.argument("name")
@_dir_option
@click.option("--domain", "domains", multiple=True, metavar="DOMAIN", help="A SIP domain it serves. Default: its name.")
@click.option(
    "--bootstrap", "bootstrap", multiple=True, type=address_option, metavar="HOST:PORT", help="A peer to join through."
)
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="The document's validity.")
@json_option
def init(
    name: str,
    directory: Path,
    domains: tuple[str, ...],
    bootstrap: tuple[tuple[str, int], ...],
    days: int,
    as_json: bool,
) -> None:
    """Make an overlay called NAME: certificate authority, configuration signer, signed document."""
    with faults_of(directory / DOCUMENT):
        made = OverlayFiles.create(
            directory, name, domains=domains, bootstrap_nodes=bootstrap, lifetime_seconds=days * DAY
        )
    emit(_summary(made.configuration, made.directory), as_json, _render_summary)


@overlay.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_dir_option
@json_option
def sign(file: Path, directory: Path, as_json: bool) -> None:
    """Sign FILE, a document edited by hand (its sequence must be newer), and put it in force as
    DIR/overlay.xml.
    """
    with faults_of(file):
        configuration = OverlayFiles.open(directory).sign(file.read_bytes())
    emit(_summary(configuration, directory), as_json, _render_summary)


@overlay.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--overlay", "overlay_name", metavar="NAME", help="Which one, if the file holds several.")
@click.option("--fingerprint", metavar="SHA256", help="The fingerprint that is trusted.")
@json_option
def show(file: Path, overlay_name: str | None, fingerprint: str | None, as_json: bool) -> None:
    """Check FILE (grammar, values, signatures, date) and show what it says. The exit code is 78 if it is at
    fault.
    """
    with faults_of(file):
        configuration = parse_configuration(
            file.read_bytes(), wall=time.time(), overlay_name=overlay_name, trusted_fingerprint=fingerprint
        )
    emit(describe(configuration), as_json, _render_details)


@overlay.command()
@_dir_option
@click.option("--bad-node", "bad_nodes", multiple=True, type=node_id_option, metavar="HEX", help="Revoke a Node-ID.")
@click.option(
    "--good-node", "good_nodes", multiple=True, type=node_id_option, metavar="HEX", help="Take back a revocation."
)
@click.option("--domain", "domains", multiple=True, metavar="DOMAIN", help="Serve one more SIP domain.")
@click.option(
    "--bootstrap",
    "bootstrap",
    multiple=True,
    type=address_option,
    metavar="HOST:PORT",
    help="Bootstrap peers from now on.",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Validity from today on. Default: as long as before.")
@json_option
def update(
    directory: Path,
    bad_nodes: tuple[bytes, ...],
    good_nodes: tuple[bytes, ...],
    domains: tuple[str, ...],
    bootstrap: tuple[tuple[str, int], ...],
    days: int | None,
    as_json: bool,
) -> None:
    """Write and sign the next document. Put it on one peer and reload that: it spreads by itself."""
    with faults_of(directory / DOCUMENT):
        files = OverlayFiles.open(directory)
        before = files.configuration
        patterns = before.domain_patterns
        if domains:
            added = [domain_pattern(domain) for domain in domains]
            patterns = tuple(dict.fromkeys((*(patterns or ()), *added)))
        changed = attrs.evolve(
            before,
            bad_nodes=(before.bad_nodes | frozenset(bad_nodes)) - frozenset(good_nodes),
            domain_patterns=patterns,
            bootstrap_nodes=bootstrap or before.bootstrap_nodes,
            expiration=before.expiration if days is None else float(int(time.time()) + days * DAY),
        )
        configuration = files.update(changed)
    emit(_summary(configuration, directory), as_json, _render_summary)


@click.group()
def ca() -> None:
    """The overlay's certificate authority: enroll peers and users."""


@ca.command()
@_dir_option
@click.argument("role", type=click.Choice(list(_ROLES)))
@click.argument("name")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where node.pem and node.key go."
)
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 30), help="The certificate's validity.")
@click.option("--renew", is_flag=True, help="Keep the Node-ID (and the key in --out) that NAME was issued last.")
@json_option
def issue(directory: Path, role: str, name: str, out: Path, days: int, renew: bool, as_json: bool) -> None:
    """Draw a Node-ID and a key for NAME and issue a certificate.

    A peer routes and stores; a registrar is a peer that also vouches for phones (and may assert any user of
    the overlay's domains: grant it with care); provisioning stores users' passwords; a user is a person's
    device, and NAME its address without "sip:".
    """
    with faults_of(directory / DOCUMENT):
        files = OverlayFiles.open(directory)
        issued = files.issue(_ROLES[role], name, out, lifetime_seconds=days * DAY, renew=renew)
    emit(
        {**_entry(issued), "certificate": str(out / "node.pem"), "key": str(out / "node.key")},
        as_json,
        lambda made: f"{made['user']}, until {made['not_after']}\n{made['certificate']} {made['key']}",
    )


@ca.command("list")
@_dir_option
@click.option("--role", type=click.Choice(list(_ROLES)), help="Only these.")
@json_option
def list_issued(directory: Path, role: str | None, as_json: bool) -> None:
    """Who was issued a certificate."""
    with faults_of(directory / DOCUMENT):
        files = OverlayFiles.open(directory)
        entries = [entry for entry in files.issued() if role is None or entry.role is _ROLES[role]]
    revoked = files.configuration.bad_nodes
    shown = [{**_entry(entry), "revoked": entry.node_id in revoked} for entry in entries]
    emit(shown, as_json, _render_issued)


def _entry(issued: Issued) -> dict[str, Any]:
    return {
        "node_id": issued.node_id.hex(),
        "role": issued.role.value,
        "name": issued.name,
        "user": issued.user,
        "not_after": _date(issued.not_after),
    }


def _render_issued(entries: list[dict[str, Any]]) -> str:
    rows = [
        (entry["role"], entry["name"], entry["node_id"], entry["not_after"], "revoked" if entry["revoked"] else "")
        for entry in entries
    ]
    return table(rows, ("role", "name", "node", "until", "")) if rows else "none"


def _date(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _summary(configuration: OverlayConfiguration, directory: Path) -> dict[str, Any]:
    return {
        "overlay": configuration.overlay_name,
        "document": str(directory / DOCUMENT),
        "sequence": configuration.sequence,
        "expiration": _date(configuration.expiration),
        "fingerprint": trust_fingerprint(configuration),
    }


def _render_summary(made: dict[str, Any]) -> str:
    return (
        f"{made['document']}: overlay {made['overlay']}, sequence {made['sequence']}, until {made['expiration']}\n"
        f"fingerprint {made['fingerprint']}"
    )


def describe(configuration: OverlayConfiguration) -> dict[str, Any]:
    """A configuration as JSON types, certificates as their fingerprints."""
    return {
        "overlay": configuration.overlay_name,
        "sequence": configuration.sequence,
        "expiration": _date(configuration.expiration),
        "fingerprint": trust_fingerprint(configuration),
        "topology_plugin": configuration.topology_plugin,
        "domains": list(configuration.domain_patterns) if configuration.domain_patterns is not None else None,
        "bootstrap_nodes": [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in configuration.bootstrap_nodes
        ],
        "clients_permitted": configuration.clients_permitted,
        "no_ice": configuration.no_ice,
        "initial_ttl": configuration.initial_ttl,
        "max_message_size": configuration.max_message_size,
        "overlay_reliability_timer_ms": configuration.reliability_timer_ms,
        "configuration_signers": sorted(node_id.hex() for node_id in configuration.configuration_signers),
        "kind_signers": sorted(node_id.hex() for node_id in configuration.kind_signers),
        "bad_nodes": sorted(node_id.hex() for node_id in configuration.bad_nodes),
        "mandatory_extensions": list(configuration.mandatory_extensions),
        "kinds": [
            {
                "id": kind.id,
                "name": kind.name,
                "data_model": kind.data_model.name,
                "access_control": kind.access_control,
                "max_count": kind.max_count,
                "max_size": kind.max_size,
            }
            for kind in configuration.kinds.values()
        ],
    }


def _render_details(shown: dict[str, Any]) -> str:
    lines = []
    for name, value in shown.items():
        if name == "kinds":
            continue
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        lines.append((name.replace("_", " "), "any" if value is None else value))
    kinds = [
        (
            f"{kind['id']:#x}",
            kind["name"],
            kind["data_model"],
            kind["access_control"],
            kind["max_count"],
            kind["max_size"],
        )
        for kind in shown["kinds"]
    ]
    return f"{table(lines)}\n\n{table(kinds, ('kind', 'name', 'model', 'access', 'count', 'size'))}"

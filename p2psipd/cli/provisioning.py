"""What the verbs of the provisioning side share: its directory, and a client node for a moment.

Twisted is imported when one of them runs.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from p2psipd.cli.console import Negative
from p2psipd.cli.overlay import address_option, faults_of
from p2psipd.overlay_files import OverlayFilesError, issued_registrars, load_certificate
from p2psipd.proto.identity.certificate import NodeCertificate, Role, generate_private_key
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.overlay_config import OverlayConfiguration, parse_configuration
from p2psipd.proto.reload.sip_usage import EPOCH_KEY_LENGTH
from p2psipd.provisioning_files import ProvisioningFiles
from p2psipd.services.provisioning import Provisioner

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Place(NamedTuple):
    """Where a verb works: the options that all of them have."""

    directory: Path
    document: Path | None
    operator: Path | None
    registrars: tuple[Path, ...]
    peers: tuple[tuple[str, int], ...]
    seconds: float

    @property
    def document_path(self) -> Path:
        """The configuration document: as given, else in the directory, else beside it."""
        if self.document is not None:
            return self.document
        here = self.directory / "overlay.xml"
        return here if here.exists() else self.directory.parent / "overlay.xml"


def place_options(command: _Function) -> _Function:
    """The options that say where; the command gets them as one ``Place``."""

    @functools.wraps(command)  # which takes along the options that the command has already
    def bound(**arguments: Any) -> Any:
        place = Place(*(arguments.pop(name) for name in Place._fields))
        return command(place=place, **arguments)

    path = click.Path(path_type=Path)
    decorated: Any = bound
    for option in (
        click.option(
            "--seconds",
            default=15.0,
            show_default=True,
            type=click.FloatRange(0),
            help="How long to wait for the overlay.",
        ),
        click.option("--peer", "peers", multiple=True, type=address_option, metavar="HOST:PORT",
                     help="A peer to go through. Default: the document's bootstrap nodes."),
        click.option("--registrar", "registrars", multiple=True, type=path, metavar="PEM",
                     help="Certificate of one more registrar."),
        click.option("--operator", type=path, metavar="D", help="The operator's directory, whose ca/ lists the "
                     "registrars. Default: the one above --dir, if it is one."),
        click.option("--overlay", "document", type=path, metavar="FILE",
                     help="The configuration document. Default: overlay.xml in --dir or above it."),
        click.option("--dir", "directory", default="provisioning", show_default=True, type=path, metavar="DIR",
                     help="The provisioning node's directory: node.pem, node.key, users.json, epochs.json."),
    ):  # fmt: skip
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@contextmanager
def opened(place: Place) -> Iterator[tuple[ProvisioningFiles, OverlayConfiguration, list[NodeCertificate]]]:
    """The provisioning directory, the document and the registrars, with their faults shown as the command
    line does.
    """
    path = place.document_path
    with faults_of(path):
        if not path.exists():
            raise OverlayFilesError(f"no configuration document {path}: say where it is with --overlay")
        configuration = parse_configuration(path.read_bytes(), wall=time.time())
        registrars = _registrars(place, configuration)
        with ProvisioningFiles.open(place.directory) as files:
            if not files.epochs:
                files.add_epoch(secrets.token_bytes(EPOCH_KEY_LENGTH))
            try:
                yield files, configuration, registrars
            except ReloadError as error:
                raise Negative(str(error)) from None


def _registrars(place: Place, configuration: OverlayConfiguration) -> list[NodeCertificate]:
    """The registrars that are given the key: those of the operator's journal and those that were named."""
    operator = place.operator
    if operator is None and (place.directory.parent / "ca").is_dir():
        operator = place.directory.parent
    found = issued_registrars(operator, configuration) if operator is not None else []
    for path in place.registrars:
        certificate = load_certificate(path)
        if certificate.role is not Role.REGISTRAR:
            raise OverlayFilesError(f"{path}: a registrar's certificate expected, this is {certificate.user}")
        found.append(configuration.trust().check(certificate.der, time.time()))
    return list({certificate.node_id: certificate for certificate in found}.values())


def with_overlay(
    place: Place,
    files: ProvisioningFiles,
    configuration: OverlayConfiguration,
    work: Callable[[Provisioner], Awaitable[None]],
) -> None:
    """Run ``work`` as a client node on a reactor of this process.  Raises what it raises."""
    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from p2psipd.services.overlay_factory import client_session

    reactor: Any = installed
    # A step of the wall clock must not disturb timers.
    reactor.seconds = time.monotonic
    outcome: list[Any] = []

    async def main() -> None:
        session = client_session(reactor, configuration, files.credential, bootstrap=place.peers, seconds=place.seconds)
        async with session as overlay:
            provisioner = Provisioner(
                overlay,
                configuration.overlay_name,
                files.credential,
                files.epochs,
                wall=time.time,
                draw=secrets.token_bytes,
                draw_key=generate_private_key,
            )
            await work(provisioner)

    def begin() -> None:
        Deferred.fromCoroutine(main()).addBoth(outcome.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome:
        raise Negative("interrupted")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()

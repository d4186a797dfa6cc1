"""Puts one overlay node together: trust, storage, peer core, TLS and service; and short-lived client nodes.

:func:`make_overlay` is what the daemon and every client use.  :func:`client_session` is for commands that
are nodes themselves for a moment (`p2psip user add`): no listener, no storage, a credential of their own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import TimeoutError

from p2psipd.net.links import LinkLimits
from p2psipd.net.tls import KeyLog, NodeTls
from p2psipd.proto.identity.signing import Credential, RealVerifier
from p2psipd.proto.reload.errors import ConfigTooOld, Forbidden, RequestTimeout
from p2psipd.proto.reload.overlay_config import ConfigurationError, OverlayConfiguration, parse_configuration
from p2psipd.proto.reload.peer import Peer
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.proto.reload.storage import Storage
from p2psipd.services.overlay import OverlayObserver, OverlayService, TrustKeeper

if TYPE_CHECKING:
    from p2psipd.proto.reload.records import RecordRow
    from p2psipd.store.sqlite import SqliteStore

Endpoint = tuple[str, int]

#: What a client's few links may cost.
CLIENT_LIMITS = LinkLimits(
    links=32,
    links_per_address=32,
    handshakes=16,
    handshakes_per_address=16,
    handshake_seconds=5.0,
    connect_seconds=5.0,
    write_buffer=4_194_304,
)


class OverlayNode(NamedTuple):
    """A node that is put together but not started: ``service`` starts and stops it all."""

    service: OverlayService
    core: Peer
    storage: Storage
    tls: NodeTls
    trust: TrustKeeper


def make_overlay(
    reactor: object,
    configuration: OverlayConfiguration,
    credential: Credential,
    parameters: PeerParameters,
    limits: LinkLimits,
    *,
    listen: Endpoint | None,
    now: float,
    store: SqliteStore | None = None,
    rows: Iterable[RecordRow] = (),
    document: str | None = None,
    keylog: KeyLog | None = None,
    observer: OverlayObserver | None = None,
    wall: Callable[[], float] = time.time,
) -> OverlayNode:
    """A node of the overlay that ``configuration`` describes.

    ``now`` is the reactor's clock; ``rows`` are the records that ``store`` kept from the last run;
    ``document`` is the file to which a newer configuration document is written.
    """
    keeper = TrustKeeper(configuration.trust(), wall)
    verifier = RealVerifier()
    storage = Storage(configuration, keeper.trust, verifier)
    tidied = storage.load(rows, wall())
    if store is not None:
        store.write(tidied)
    core = Peer(
        credential,
        configuration,
        keeper.trust,
        verifier,
        storage,
        SystemRandom(),
        parameters,
        now=now,
        wall=wall(),
        make_trust=keeper.adopt,
        read_document=read_newer,
    )
    tls = NodeTls(
        credential.certificate.der, credential.private_key, configuration.root_certs, keeper.judge, keylog=keylog
    )
    service = OverlayService(
        reactor,
        core,
        configuration=configuration,
        credential=credential,
        tls=tls,
        limits=limits,
        listen=listen,
        store=store,
        document=document,
        observer=observer,
        wall=wall,
    )
    return OverlayNode(service, core, storage, tls, keeper)


def read_newer(document: bytes, previous: OverlayConfiguration, wall: float) -> OverlayConfiguration:
    """A document that another node sent, if the signers of the one in force allow it.

    Raises ConfigTooOld for one that is not newer, Forbidden for one that is not acceptable.
    """
    if document == previous.document:
        return previous
    try:
        return parse_configuration(document, wall=wall, previous=previous)
    except ConfigurationError as error:
        if error.reason == "sequence":
            raise ConfigTooOld(str(error)) from None
        raise Forbidden(str(error)) from None


@asynccontextmanager
async def client_session(
    reactor: object,
    configuration: OverlayConfiguration,
    credential: Credential,
    *,
    bootstrap: Iterable[Endpoint] = (),
    seconds: float = 10.0,
    keylog: KeyLog | None = None,
) -> AsyncIterator[OverlayService]:
    """A client node for a moment: ``async with client_session(...) as overlay: await overlay.fetch(...)``.

    It dials ``bootstrap`` (host, port), else the document's bootstrap nodes.  Raises RequestTimeout when no
    peer admits it within ``seconds``.
    """
    now = reactor.seconds()  # type: ignore[attr-defined]
    parameters = PeerParameters(bootstrap=tuple(bootstrap) or configuration.bootstrap_nodes, client=True)
    node = make_overlay(
        reactor, configuration, credential, parameters, CLIENT_LIMITS, listen=None, now=now, keylog=keylog
    )
    overlay = node.service
    overlay.startService()
    try:
        try:
            await overlay.when_joined().addTimeout(seconds, reactor)  # type: ignore[arg-type]
        except TimeoutError:
            names = ", ".join(f"{host}:{port}" for host, port in parameters.bootstrap) or "none is known"
            reason = f"; {overlay.last_failure}" if overlay.last_failure else ""
            raise RequestTimeout(f"no peer of {configuration.overlay_name} let us in ({names}){reason}") from None
        yield overlay
    finally:
        await overlay.stopService()

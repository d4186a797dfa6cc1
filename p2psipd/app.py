"""``twistd p2psip --config FILE``: the configuration becomes running services.  All wiring is here, and
nothing else.

The order of things at the start matters.  ``reactor.seconds`` becomes the monotonic clock before anything
is scheduled: Twisted follows the wall clock otherwise, and a step of an hour would fire or stop every
timer.  Then the configuration and the files that it names are checked whole; a fault ends the process with
exit code 78 before any socket is opened.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from p2psipd import config
from p2psipd.logs import Log, make_log
from p2psipd.net.links import LinkLimits
from p2psipd.net.tls import CertificateFileError, KeyLog, ServerTls
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.kademlia import Remembered
from p2psipd.proto.reload.overlay_config import newer
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.services.admin import AdminService, BadRequest, ControlSocketInUse, Parameters, Resource, Text
from p2psipd.services.inspection import BadArgument, Inspection
from p2psipd.services.overlay import OverlayObserver, OverlayService
from p2psipd.services.overlay_factory import OverlayNode, make_overlay
from p2psipd.store.sqlite import SqliteStore, StateError
from p2psipd.supervision import SupervisionService, notify, settle_collector

if TYPE_CHECKING:
    from p2psipd.config import Material, NodeConfig
    from p2psipd.metrics import Snapshot
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.services.overlay_location import OverlayCredentials
    from p2psipd.services.sip import SipService

#: RELOAD's Application-ID of SIP over TLS (RFC 7904 section 10.2).
SIPS_APPLICATION = 5061

#: Objects made and not yet freed before the garbage collector looks at the young ones.
_COLLECT_AFTER = 10_000
_SECRET_OCTETS = 32
_SECRET_NAME = "sip-secret"


class Options(UsageOptions):
    """``twistd p2psip``'s options."""

    optParameters = [
        ["config", "c", None, "The configuration file (TOML); every key is explained in etc/p2psipd.toml."]
    ]
    longdesc = "A peer-to-peer SIP node. `p2psip check FILE` checks a configuration without starting."

    def postOptions(self) -> None:
        """The configuration file must be named."""
        if not self["config"]:
            raise UsageError("--config FILE is missing")


def makeService(options: Options) -> IService:
    """twistd's way in: the services of the node that the configuration file describes.

    Ends the process with exit code 78 when the configuration is at fault, with every fault on standard error.
    """
    from twisted.internet import reactor

    cast(Any, reactor).seconds = time.monotonic
    try:
        checked = config.load(options["config"], os.environ)
        material = config.load_material(checked)
        parent: Mapping[str, Any] = options.parent or {}
        log = _log(checked, parent)
    except (config.ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(config.EXIT_CONFIG) from None
    return cast(IService, Launcher(reactor, checked, material, log, os.path.abspath(options["config"])))


class Launcher(MultiService):
    """Makes the node when it is started, which is after twistd has become a daemon.

    SQLite's files must not be carried across a fork.
    """

    def __init__(self, reactor: object, checked: NodeConfig, material: Material, log: Log, file: str) -> None:
        MultiService.__init__(self)
        self._make: Callable[[], NodeService] = lambda: make_node(reactor, checked, material, log, file)
        self._log = log
        self._file = file

    def setServiceParent(self, parent: Any) -> None:
        """Give the application our log observer on the way in; twistd asks it for one."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log.observer)
        MultiService.setServiceParent(self, parent)

    def startService(self) -> None:
        """Make the node and start it; what keeps it from starting ends the process with a line that says so."""
        log = Logger(namespace="p2psipd.node")
        try:
            node: Any = self._make()
            node.setServiceParent(self)
            MultiService.startService(self)
            settle_collector()
        except (config.ConfigError, StateError, CertificateFileError) as error:
            log.critical("{error}", error=error)
            raise SystemExit(config.EXIT_CONFIG) from None
        except (CannotListenError, ControlSocketInUse) as error:
            log.critical("{file}: {error}", file=self._file, error=error)
            raise SystemExit(1) from None


def _log(checked: NodeConfig, parent: Mapping[str, Any]) -> Log:
    """The log as the configuration wants it, else as twistd was told."""
    file = checked.node.log_file or parent.get("logfile") or ("-" if parent.get("nodaemon") else "twistd.log")
    return make_log(file, checked.node.log_format, checked.node.log_level)


def make_node(reactor: object, checked: NodeConfig, material: Material, log: Log, file: str) -> NodeService:
    """The services of one node, wired but not started."""
    peer, now = checked.peer, cast(IReactorTime, reactor).seconds()
    assert peer is not None, "config.load has refused a file without [peer]"
    keylog = KeyLog(checked.node.keylog) if checked.node.keylog else None
    report = Logger(namespace="p2psipd.store")
    store = SqliteStore(checked.node.state, lambda text: report.warn("{text}", text=text))
    state = store.load()
    own = NodeId(material.credential.certificate.node_id)
    if state.node_id not in (None, own):
        text = f"{checked.node.state} belongs to another node, {state.node_id.hex()}; expected a file of this node"
        raise config.ConfigError([checked.fault("node.state", text)])
    store.set_node_id(own)
    observer = _Wiring()
    sip_section = checked.sip if checked.has("sip") else None
    parameters = PeerParameters(
        addresses=tuple((host, port) for host, port in peer.advertised),
        bootstrap=tuple(dict.fromkeys((*peer.bootstrap, *material.configuration.bootstrap_nodes))),
        remembered=tuple(Remembered(known.node_id, known.addresses) for known in state.peers[: peer.remembered_peers]),
        applications=_applications(sip_section),
        first=peer.first,
        client=not checked.has("peer"),
    )
    node = make_overlay(
        reactor,
        material.configuration,
        material.credential,
        parameters,
        _limits(peer),
        listen=(peer.listen.host, peer.listen.port) if checked.has("peer") else None,
        now=now,
        store=store,
        rows=state.rows,
        document=checked.overlay.document,
        keylog=keylog,
        observer=observer,
    )
    sip: SipService | None = None
    phones: ServerTls | None = None
    if sip_section is not None:
        if sip_section.tls:
            phones = ServerTls(sip_section.certificate or "", sip_section.key or "", keylog=keylog)
        secret = state.octets.get(_SECRET_NAME) or secrets.token_bytes(_SECRET_OCTETS)
        store.set_octets(_SECRET_NAME, secret)
        sip = _make_sip(reactor, sip_section, material, node, phones, secret, observer)
    return NodeService(reactor, checked, node, sip, phones, log, file)


def _limits(peer: config.PeerSection) -> LinkLimits:
    return LinkLimits(
        links=peer.max_links,
        links_per_address=peer.max_links_per_address,
        handshakes=peer.max_handshakes,
        handshakes_per_address=peer.max_handshakes_per_address,
        handshake_seconds=peer.handshake_seconds,
        connect_seconds=peer.connect_seconds,
        write_buffer=peer.max_write_buffer_bytes,
    )


def _applications(sip: config.SipSection | None) -> dict[int, tuple[tuple[str, int], ...]]:
    """Where other nodes reach us for SIP."""
    if sip is None or sip.node_listen is None:
        return {}
    host, port = sip.node_advertise or sip.node_listen
    return {SIPS_APPLICATION: ((host, port),)}


def _make_sip(
    reactor: object,
    section: config.SipSection,
    material: Material,
    node: OverlayNode,
    phones: ServerTls | None,
    secret: bytes,
    wiring: _Wiring,
) -> SipService:
    """The SIP side over the overlay.  Its libraries are imported only for nodes that have it."""
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.net.sip_transports import Limits
    from p2psipd.proto.sip.registrar import BindingTable, Bounds
    from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
    from p2psipd.services.overlay_location import OverlayCredentials, OverlayLocation
    from p2psipd.services.sip import SipService, SipSettings

    overlay, configuration = node.service, material.configuration
    domains = section.domains or configuration.domains
    location = OverlayLocation(overlay, overlay.node_id)
    table = BindingTable()
    locator = Locator(
        (
            OwnBindings(table, overlay.node_id, domains),
            OverlayBindings(location, table, overlay.node_id, domains),
        )
    )
    host, port = section.node_listen or config.Address("127.0.0.1", 0)
    interconnect = Interconnect(
        reactor,
        node.tls,
        node.trust.judge,
        listen=(host, port),
        app_attach=lambda node_id: overlay.app_attach(NodeId(node_id), SIPS_APPLICATION),
    )
    settings = SipSettings(
        domains=domains,
        overlay=configuration.overlay_name,
        node_id=overlay.node_id,
        udp=section.udp,
        tcp=section.tcp,
        tls_addresses=section.tls,
        tls=phones,
        public_host=section.public_host or "",
        secret=secret,
        bounds=Bounds(
            section.min_expires_seconds,
            section.max_expires_seconds,
            section.default_expires_seconds,
            section.max_contacts,
        ),
        limits=Limits(connections=section.max_connections, per_address=section.max_connections_per_address),
        ring_seconds=float(section.ring_seconds),
    )
    credentials = OverlayCredentials(overlay, configuration.overlay_name, material.credential)
    wiring.interconnect, wiring.credentials = interconnect, credentials
    return SipService(
        settings,
        location=location,
        credentials=credentials,
        locate=locator.locate,
        connector=interconnect,
        table=table,
        reactor=reactor,
        random=random.SystemRandom(),
        wall=time.time,
    )


class _Wiring(OverlayObserver):
    """What happens in the overlay and concerns the SIP side."""

    interconnect: Interconnect | None = None
    credentials: OverlayCredentials | None = None

    def credential_renewed(self, credential: Credential) -> None:
        """Password keys are wrapped for the new key from now on."""
        if self.credentials is not None:
            self.credentials.renew(credential)

    def dial_application(self, node: NodeId, application: int, addresses: tuple[tuple[str, int], ...]) -> None:
        """Another node wants to speak SIP with us."""
        if application == SIPS_APPLICATION and self.interconnect is not None:
            self.interconnect.dial(node, addresses)

    def configuration_changed(self, configuration: OverlayConfiguration) -> None:
        """A newer document may have revoked nodes that we speak SIP with."""
        if self.interconnect is not None:
            self.interconnect.recheck()


class _SipView:
    """The SIP service as the inspection asks it."""

    def __init__(self, sip: SipService) -> None:
        self._sip = sip

    def registrations(self) -> list[dict[str, object]]:
        """The phones registered here."""
        return self._sip.registrations()

    def calls(self) -> list[dict[str, object]]:
        """Calls, those that have ended among them."""
        return self._sip.calls()

    def ladder(self, call_id: str) -> list[dict[str, object]]:
        """The messages of one call."""
        return [step._asdict() for step in self._sip.ladder(call_id)]


class NodeService(MultiService):
    """The whole node: starts its services in order, reloads on SIGHUP, drains on SIGTERM."""

    def __init__(
        self,
        reactor: object,
        checked: NodeConfig,
        node: OverlayNode,
        sip: SipService | None,
        phones: ServerTls | None,
        log: Log,
        file: str,
    ) -> None:
        MultiService.__init__(self)
        self.overlay: OverlayService = node.service
        self.sip = sip
        self.log = log
        self._logger = Logger(namespace="p2psipd.node")
        self._reactor = reactor
        self._config = checked
        self._node = node
        self._phones = phones
        self._file = file
        self._stopping: Deferred[Any] | None = None
        self._leaving: Deferred[bool] | None = None
        self._registry: Any = None
        self._began = time.time()
        self.inspection = Inspection(
            node.service,
            node.core,
            checked.node.roles,
            _version(),
            _SipView(sip) if sip is not None else None,
            now=cast(IReactorTime, reactor).seconds,
        )
        self.overlay.driver.trace = checked.node.log_level == "debug"
        services: list[Service | None] = [
            self.overlay,
            sip,
            AdminService(reactor, checked.node.control, self._resources(), checked.node.metrics),
            SupervisionService(reactor, lambda: self.overlay.is_joined, self._status_line),
        ]
        for service in services:
            if service is not None:
                service.setServiceParent(cast(Any, self))

    # -- life --------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Start everything, and heed SIGHUP."""
        MultiService.startService(self)
        # What lives now lives until the end: the collector need not look at it again, and it is called less
        # often, because a node makes many objects and few circles.  Both shorten the longest answers.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, 20, 20)
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            from_signal = cast(IReactorFromThreads, self._reactor).callFromThread
            _handle(hangup, lambda: from_signal(self._reload_logged))

    def stopService(self) -> Deferred[Any]:
        """Leave the overlay with hand-over, within ``node.drain_seconds``, then close everything.

        A second SIGTERM or SIGINT ends the hand-over at once.
        """
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._drain())
        return self._stopping

    async def _drain(self) -> None:
        notify("STOPPING=1")
        for number in (signal.SIGTERM, signal.SIGINT):
            _handle(number, lambda: cast(IReactorFromThreads, self._reactor).callFromThread(self.hurry))
        seconds = self._config.node.drain_seconds
        if self.overlay.is_joined:
            self._logger.info("leaving the overlay, at most {seconds} s", seconds=seconds)
            self._leaving = Deferred.fromCoroutine(self.overlay.leave(seconds))
            left = await self._leaving
            self._logger.info("left the overlay" if left else "left the overlay without finishing")
        await MultiService.stopService(self)

    def hurry(self) -> None:
        """End a hand-over that is under way."""
        if self._leaving is not None and not self._leaving.called:
            self._leaving.cancel()

    # -- reload ------------------------------------------------------------------------------------

    def reload(self) -> dict[str, Any]:
        """Read the configuration again and apply what can change while the node runs; raises ConfigError.

        That is: this node's certificate and key, the overlay's document, the phones' certificate, the log
        level.
        """
        checked = config.load(self._file, os.environ)
        material = config.load_material(checked)
        applied: list[str] = []
        old, new = self.overlay.credential.certificate, material.credential.certificate
        if new.node_id != old.node_id:
            raise config.ConfigError(
                [checked.fault("identity.certificate", "expected the same Node-ID; a new one needs a restart")]
            )
        if newer(material.configuration.sequence, self.overlay.configuration.sequence):
            self.overlay.new_document(material.configuration.document)
            applied.append(f"configuration document {material.configuration.sequence}")
        if new.der != old.der:
            self.overlay.new_credential(material.credential)
            applied.append("certificate")
        if self._phones is not None:
            self._phones.reload()
            applied.append("phones' certificate")
        if checked.node.log_level != self.log.level:
            self.log.set_level(checked.node.log_level)
            self.overlay.driver.trace = checked.node.log_level == "debug"
            applied.append(f"log level {checked.node.log_level}")
        kept = [] if _fixed(checked) == _fixed(self._config) else ["other keys changed: they need a restart"]
        return {"applied": applied, "not_applied": kept}

    def _reload_logged(self) -> None:
        """SIGHUP."""
        try:
            result = self.reload()
        except (config.ConfigError, CertificateFileError) as error:
            self._logger.error("not reloaded:\n{error}", error=error)
            return
        self._logger.info(
            "reloaded: {applied}{kept}",
            applied=", ".join(result["applied"]) or "nothing has changed",
            kept="".join(f"; {text}" for text in result["not_applied"]),
        )

    # -- what the control service offers -----------------------------------------------------------

    def _resources(self) -> dict[str, Resource]:
        look = self.inspection
        table: dict[str, Callable[[Parameters], Any]] = {
            "/status": lambda _: look.status(),
            "/peers": lambda _: look.peers(),
            "/members": lambda _: look.members(),
            "/records": lambda _: look.records(),
            "/registrations": lambda _: look.registrations(),
            "/calls": lambda _: look.calls(),
            "/calls/ladder": lambda given: look.ladder(_given(given, "call_id")),
            "/ping": lambda given: look.ping(_given(given, "node")),
            "/probe": lambda given: look.probe(_given(given, "node")),
            "/get": lambda given: look.get(_given(given, "name"), given.get("kind")),
            "/trace": lambda given: look.trace(_given(given, "name")),
            "/metrics": lambda _: self._metrics(),
        }
        resources = {path: Resource("GET", _polite(answer)) for path, answer in table.items()}
        resources["/reload"] = Resource("POST", _polite(lambda _: self.reload()))
        resources["/drain"] = Resource("POST", _polite(lambda _: self._order_drain()))
        return resources

    def _order_drain(self) -> dict[str, Any]:
        """End the process as SIGTERM does, after this answer."""
        reactor = cast(Any, self._reactor)
        reactor.callLater(0.05, cast(IReactorCore, reactor).stop)
        return {"draining": True, "seconds": self._config.node.drain_seconds}

    def _status_line(self) -> str:
        status = self.inspection.status()
        state = "joined" if status["joined"] else "joining"
        counts = ", ".join(f"{status[name]} {name}" for name in ("peers", "links", "records"))
        return f"{state} {status['overlay']}: {counts}"

    def _metrics(self) -> Text:
        from p2psipd import metrics

        if self._registry is None:
            self._registry = metrics.make_registry(self._snapshot)
        return Text(metrics.render(self._registry))

    def _snapshot(self) -> Snapshot:
        from platform import python_version

        from p2psipd.metrics import Snapshot
        from twisted import __version__ as twisted_version

        overlay, node = self.overlay, self._node
        links = overlay.links.info()
        outgoing = sum(1 for info in links if info.outgoing)
        members = node.core.topology.status().get("members", 0)
        return Snapshot(
            build={"version": _version(), "python": python_version(), "twisted": twisted_version},
            overlay=overlay.configuration.overlay_name,
            roles=self._config.node.roles,
            started_at=self._began,
            ready=overlay.is_joined,
            links={"out": outgoing, "in": len(links) - outgoing},
            handshaking=overlay.links.handshaking,
            connection_results=dict(overlay.links.counts),
            inputs=_by_name(overlay.driver.inputs),
            outputs=_by_name(overlay.driver.outputs),
            faults=overlay.driver.faults,
            rejected=dict(overlay.misbehaviour),
            peer_events=dict(node.core.counts),
            members=members if isinstance(members, int) else 0,
            records=len(node.storage),
            stored_bytes=node.storage.stored_bytes,
            certificate_expires_at=overlay.credential.certificate.not_after,
            registrations=len(self.sip.registrations()) if self.sip is not None else None,
            calls=self.inspection.open_calls() if self.sip is not None else None,
            sip_events=self.sip.statistics() if self.sip is not None else {},
        )


def _polite(answer: Callable[[Parameters], Any]) -> Callable[[Parameters], Any]:
    """``answer`` with the faults of whoever asks told as such."""

    async def ask(given: Parameters) -> Any:
        try:
            value = answer(given)
            return await value if hasattr(value, "__await__") else value
        except (BadArgument, config.ConfigError, CertificateFileError) as error:
            raise BadRequest(str(error)) from None

    return ask


def _given(parameters: Parameters, name: str) -> str:
    """A parameter that must be given."""
    value = parameters.get(name, "")
    if not value:
        raise BadRequest(f"expected the parameter {name}")
    return value


def _by_name(counts: Mapping[type, int]) -> dict[str, int]:
    return {kind.__name__.lstrip("_"): count for kind, count in counts.items()}


def _fixed(checked: NodeConfig) -> dict[str, Any]:
    """A configuration's values without what a reload applies."""
    return checked.model_dump(exclude={"node": {"log_level"}})


def _handle(number: int, action: Callable[[], object]) -> None:
    """Have ``action`` called on a signal; nothing happens outside the main thread (in tests)."""
    try:
        signal.signal(number, lambda *_: action())
    except ValueError:
        return


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("p2psipd")
    except PackageNotFoundError:
        return "0 (a checkout)"

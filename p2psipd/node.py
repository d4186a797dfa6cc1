"""A whole node: its services in order, reload, drain, and what the control service offers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.logger import Logger

from p2psipd import __version__, config
from p2psipd.logs import Log
from p2psipd.net.tls import CertificateFileError
from p2psipd.proto.reload.overlay_config import newer
from p2psipd.services.admin import AdminService, BadRequest, Parameters, Resource, Text
from p2psipd.services.inspection import BadArgument, Inspection
from p2psipd.services.overlay import OverlayService
from p2psipd.services.overlay_factory import OverlayNode
from p2psipd.supervision import SupervisionService, notify

if TYPE_CHECKING:
    from p2psipd.config import NodeConfig
    from p2psipd.metrics import Snapshot
    from p2psipd.services.call_records import CallRecords
    from p2psipd.services.sip import SipService
    from p2psipd.sip_wiring import SipFiles, SipSide


class _SipView:
    """The SIP service as the inspection asks it."""

    def __init__(self, sip: SipService, records: CallRecords) -> None:
        self._sip = sip
        self._records = records

    def registrations(self) -> list[dict[str, object]]:
        """The phones registered here."""
        return self._sip.registrations()

    def calls(self) -> list[dict[str, object]]:
        """The records of calls, those that are open last."""
        return self._records.calls()

    def ladder(self, call_id: str) -> list[dict[str, object]]:
        """The messages of one call."""
        return [step._asdict() for step in self._sip.ladder(call_id)]

    def problems(self) -> list[str]:
        """What an operator should see to."""
        fault = self._records.problem
        return [f"call records can't be written: {fault}"] if fault else []


class NodeService(MultiService):
    """The whole node: starts its services in order, reloads on SIGHUP, drains on SIGTERM."""

    def __init__(
        self,
        reactor: object,
        checked: NodeConfig,
        node: OverlayNode,
        sip: SipSide | None,
        sip_files: SipFiles | None,
        log: Log,
        file: str,
    ) -> None:
        MultiService.__init__(self)
        self.overlay: OverlayService = node.service
        self.sip = sip.service if sip is not None else None
        self._records = sip.records if sip is not None else None
        self._echo = sip.echo if sip is not None else None
        self._directory = sip.directory if sip is not None else None
        self._peering = sip.peering if sip is not None else None
        self._dns = sip.dns if sip is not None else None
        self.log = log
        self._logger = Logger(namespace="p2psipd.node")
        self._reactor = reactor
        self._config = checked
        self._node = node
        self._sip_files = sip_files
        self._file = file
        self._stopping: Deferred[Any] | None = None
        self._leaving: Deferred[Any] | None = None
        self._hurried = False
        self._talking: Deferred[None] | None = None
        self._registry: Any = None
        self._began = time.time()
        self.inspection = Inspection(
            node.service,
            node.core,
            checked.node.roles,
            __version__,
            _SipView(sip.service, sip.records) if sip is not None else None,
            now=cast(IReactorTime, reactor).seconds,
        )
        self._set_trace(checked.node.log_level == "debug")
        services: list[Service | None] = [
            self.overlay,
            *(sip or ()),
            AdminService(reactor, checked.node.control, self._resources(), checked.node.metrics),
            SupervisionService(reactor, lambda: self.overlay.is_joined, self._status_line),
        ]
        for service in services:
            if service is not None:
                service.setServiceParent(cast(Any, self))

    def _set_trace(self, on: bool) -> None:
        """Whether lines are made that the log drops unless its level is debug, where there would be very many."""
        self.overlay.driver.trace = on
        if self._peering is not None:
            self._peering.edge.trace = on

    # -- life --------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Start everything, and heed SIGHUP."""
        MultiService.startService(self)
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            from_signal = cast(IReactorFromThreads, self._reactor).callFromThread
            _handle(hangup, lambda: from_signal(self._reload_logged))

    def stopService(self) -> Deferred[Any]:
        """Leave the overlay with hand-over, and let running calls end, within ``node.drain_seconds``; then close
        everything. New calls are refused meanwhile.

        A second SIGTERM or SIGINT ends the waiting at once.
        """
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._drain())
        return self._stopping

    async def _drain(self) -> None:
        notify("STOPPING=1")
        for number in (signal.SIGTERM, signal.SIGINT):
            _handle(number, lambda: cast(IReactorFromThreads, self._reactor).callFromThread(self.hurry))
        seconds = self._config.node.drain_seconds
        if self.sip is not None:
            self._talking = self.sip.drain(seconds)
        if self.overlay.is_joined:
            self._logger.info("leaving the overlay, at most {seconds} s", seconds=seconds)
            left = await self._leave(seconds)
            self._logger.info("left the overlay" if left else "left the overlay without finishing")
        if self._talking is not None:
            await self._talking
        await MultiService.stopService(self)

    async def _leave(self, seconds: float) -> bool:
        """Take back what the overlay says of our services, then leave it, in ``seconds`` altogether.

        The first may take half of them: what is not taken back expires by itself, but records should be handed over.
        """
        clock = cast(IReactorTime, self._reactor)
        until = clock.seconds() + seconds
        services: list[Deferred[Any]] = []
        if self._directory is not None:
            services.append(self._directory.stopService())
        if self._echo is not None:
            services.append(Deferred.fromCoroutine(self._echo.withdraw()))
        self._leaving = DeferredList(services, consumeErrors=True).addTimeout(seconds / 2, cast(Any, self._reactor))
        await self._leaving
        if self._hurried:
            return False
        self._leaving = Deferred.fromCoroutine(self.overlay.leave(until - clock.seconds()))
        return bool(await self._leaving)

    def hurry(self) -> None:
        """End a hand-over that is under way, and calls."""
        self._hurried = True
        if self._talking is not None and not self._talking.called:
            self._talking.cancel()
        if self._leaving is not None and not self._leaving.called:
            self._leaving.cancel()

    # -- reload ------------------------------------------------------------------------------------

    def reload(self) -> dict[str, Any]:
        """Read the configuration again and apply what can change while the node runs; raises ConfigError.

        That is: this node's certificate and key, the overlay's document, the files of [sip], the log
        level.
        """
        read = config.read_unless_in_force(self.overlay.configuration)
        checked, material = config.load_all(self._file, os.environ, read=read)
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
        if self._sip_files is not None:
            self._sip_files.reload(material.users)
            if checked.sip is not None and checked.sip.users_file is not None:
                applied.append("users")
            if self._sip_files.phones is not None:
                applied.append("certificates of [sip]")
        if self._peering is not None and material.peering is not None:
            self._peering.reload(material.peering)
            applied.append("policy of direct peering")
        if self._records is not None:
            self._records.reopen()
        if checked.node.log_level != self.log.level:
            self.log.set_level(checked.node.log_level)
            self._set_trace(checked.node.log_level == "debug")
            applied.append(f"log level {checked.node.log_level}")
        kept = [] if _fixed(checked) == _fixed(self._config) else ["other keys changed: they need a restart"]
        return {"applied": applied, "not_applied": kept}

    def _reload_logged(self) -> None:
        """SIGHUP."""
        try:
            result = self.reload()
        except (config.ConfigError, CertificateFileError) as error:
            self._logger.error("not reloaded: what was in force before stays in force\n{error}", error=error)
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
        peering = self._peering
        if peering is not None:
            table["/peering/refusals"] = lambda _: peering.refusals()
            table["/peering/explain"] = lambda given: peering.explain(_given(given, "target"), _given(given, "from"))
        else:
            table |= dict.fromkeys(("/peering/refusals", "/peering/explain"), _no_edge)
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

    def _sip_events(self) -> dict[str, int]:
        events = self.sip.statistics() if self.sip is not None else {}
        if self._dns is not None:
            events |= {f"dns_{name}": count for name, count in self._dns.counters.items()}
        if self._peering is not None:
            events |= {f"peering_{name}": count for name, count in self._peering.statistics().items()}
        return events

    def _snapshot(self) -> Snapshot:
        from platform import python_version

        from p2psipd.metrics import Snapshot
        from twisted import __version__ as twisted_version

        overlay, node = self.overlay, self._node
        links = overlay.links.info()
        outgoing = sum(1 for info in links if info.outgoing)
        members = node.core.topology.status().get("members", 0)
        return Snapshot(
            build={"version": __version__, "python": python_version(), "twisted": twisted_version},
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
            sip_events=self._sip_events(),
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


def _no_edge(parameters: Parameters) -> Any:
    raise BadRequest("this node is no edge: ask one with the role peering")


def _given(parameters: Parameters, name: str) -> str:
    """A parameter that must be given."""
    value = parameters.get(name, "")
    if not value:
        raise BadRequest(f"expected the parameter {name}")
    return value


def _by_name(counts: Mapping[type, int]) -> dict[str, int]:
    return {kind.__name__.lstrip("_"): count for kind, count in counts.items()}


def _fixed(checked: NodeConfig) -> NodeConfig:
    """A configuration without what a reload applies."""
    return replace(checked, node=replace(checked.node, log_level="info"))


def _handle(number: int, action: Callable[[], object]) -> None:
    """Have ``action`` called on a signal; nothing happens outside the main thread (in tests)."""
    try:
        signal.signal(number, lambda *_: action())
    except ValueError:
        return

"""The parts of a node's SIP side and how they hang together; imported by nodes that have the role."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import SystemRandom
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from p2psipd import config
from p2psipd.net.dns import DnsClient, client_for
from p2psipd.net.interconnect import Interconnect
from p2psipd.net.sip_transports import Limits
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.sip.digest import Algorithm
from p2psipd.proto.sip.limits import LimitSettings
from p2psipd.proto.sip.registrar import BindingTable, Bounds
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.services.call_records import CallRecords
from p2psipd.services.epoch_keys import EpochKeys
from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
from p2psipd.services.numbers import Numbers, OverlayNumbers
from p2psipd.services.overlay_location import FirstKnown, OverlayCredentials, OverlayLocation
from p2psipd.services.peering.elsewhere import NAMESPACE, EdgesElsewhere
from p2psipd.services.service_directory import ServiceDirectory
from p2psipd.services.sip import SipService, SipSettings
from p2psipd.services.sip.call_book import CallLimits
from p2psipd.sip_wiring import SIPS_APPLICATION, SipFiles, SipSide
from p2psipd.store.json_lines import JsonLines

if TYPE_CHECKING:
    from p2psipd.config import Material
    from p2psipd.config.peering import Peering
    from p2psipd.proto.sip.edge import Edge
    from p2psipd.proto.sip.locating import CredentialSource, LocateStep
    from p2psipd.services.echo import EchoService
    from p2psipd.services.overlay_factory import OverlayNode
    from p2psipd.services.peering.service import PeeringService


class SipParts:
    """What `side` puts together; `keys`, `credentials` and `interconnect` are told what happens in the overlay."""

    def __init__(
        self,
        reactor: object,
        checked: config.NodeConfig,
        material: Material,
        node: OverlayNode,
        files: SipFiles,
        secret: bytes,
    ) -> None:
        assert checked.sip is not None, "the role sip has its table"
        overlay, configuration = node.service, material.configuration
        self._reactor = reactor
        self._checked = checked
        self._section = checked.sip
        self._material = material
        self._files = files
        self._secret = secret
        self._node_id = overlay.node_id
        self._domains = self._section.domains or configuration.domains
        self._location = OverlayLocation(overlay, self._node_id)
        self._table = BindingTable()
        self._numbers = OverlayNumbers(overlay, self._domains)
        self._users = OverlayBindings(self._location, self._table, self._node_id, self._domains)
        self._dns = self._names()
        branching = configuration.redir_branching_factor
        self._directory = ServiceDirectory(reactor, overlay, self._node_id, branching, SystemRandom())
        self.keys = EpochKeys(overlay, configuration.overlay_name, material.credential, OwnSecret(secret), reactor)
        self.credentials = OverlayCredentials(overlay, self.keys, read_ahead=self._location.read_ahead)
        self.interconnect = self._interconnect(node)

    def side(self) -> SipSide:
        """The services, wired but not started."""
        checked, section, peering_file = self._checked, self._section, self._material.peering
        echo = self._echo() if checked.has("echo") else None
        peering = None if peering_file is None else self._peering(peering_file)
        elsewhere = EdgesElsewhere(
            self._directory, self._node_id, self._domains, self.interconnect.is_doubtful, section.emergency_numbers
        )
        edge: Edge = elsewhere if peering is None else peering.edge
        emergency, beyond = (elsewhere, elsewhere) if peering is None else (peering, peering.outbound)
        records = self._records()
        service = SipService(
            self._settings(),
            location=self._location,
            credentials=self._passwords(),
            locate=Locator(self._steps(emergency.emergency, echo, beyond)).locate,
            connector=self.interconnect,
            table=self._table,
            reactor=self._reactor,
            random=SystemRandom(),
            wall=time.time,
            owner=self._numbers.owner,
            observers=(records,),
            secrets=self.keys,
            ask=self._dns.ask,
            edges=(edge,),
            is_emergency=emergency.is_emergency,
        )
        if echo is not None:
            echo.attach = service.attach
        return SipSide(records, self._dns, self.keys, service, echo, self._directory, peering)

    def _steps(self, emergency: LocateStep, echo: EchoService | None, beyond: LocateStep) -> list[LocateStep]:
        """Where a called URI is looked for, in this order."""
        own = OwnBindings(self._table, self._node_id, self._domains, self._location)
        return [
            emergency,
            *(() if echo is None else (echo.locate,)),
            own,
            Numbers(self._numbers, self._users),
            self._users,
            beyond,
        ]

    def _passwords(self) -> FirstKnown:
        sources: tuple[CredentialSource, ...] = (self._files.users, self.credentials)
        return FirstKnown(sources if self._section.users_first == "file" else sources[::-1])

    def _names(self) -> DnsClient:
        names = self._checked.dns
        return client_for(
            self._reactor, names.servers, names.timeout_seconds, names.dnssec, SystemRandom(), names.validating
        )

    def _interconnect(self, node: OverlayNode) -> Interconnect:
        """The SIP connections with other nodes of the overlay."""
        host, port = self._section.node_listen or config.Address("127.0.0.1", 0)
        return Interconnect(
            self._reactor,
            node.tls,
            node.trust.judge,
            listen=(host, port),
            app_attach=lambda node_id: node.service.app_attach(NodeId(node_id), SIPS_APPLICATION),
        )

    def _settings(self) -> SipSettings:
        """What the configuration says of SIP."""
        limits, section = self._checked.limits, self._section
        return SipSettings(
            domains=self._domains,
            overlay=self._material.configuration.overlay_name,
            node_id=self._node_id,
            udp=section.udp,
            tcp=section.tcp,
            tls_addresses=section.tls,
            tls=self._files.phones,
            secure_web=section.wss,
            web=section.ws,
            web_origins=section.web_origins,
            tls_client=self._files.domains,
            public_host=section.public_host or "",
            secret=self._secret,
            bounds=Bounds(
                section.min_expires_seconds,
                section.max_expires_seconds,
                section.default_expires_seconds,
                section.max_contacts,
                section.flow_timer_seconds,
                section.service_route,
            ),
            algorithms=tuple(Algorithm(token) for token in section.digest_algorithms),
            limits=Limits(connections=section.max_connections, per_address=section.max_connections_per_address),
            ring_seconds=float(section.ring_seconds),
            turn_seconds=float(section.turn_seconds),
            recurse=section.follow_redirects,
            redirect_domains=frozenset(section.redirect_domains),
            redirect_authenticates=section.redirect_authenticates,
            call_limits=CallLimits(limits.calls_per_user, limits.calls_per_peer, limits.calls),
            abuse=LimitSettings(
                limits.points,
                limits.points_forgiven,
                limits.shut_seconds,
                limits.messages_per_source,
                limits.requests_per_user,
                max(3600.0, section.max_expires_seconds),
            ),
            scanners=tuple(name.lower() for name in limits.scanners),
            keep_alive_seconds=float(section.keep_alive_seconds),
        )

    def _peering(self, policy: Peering) -> PeeringService:
        """This node as an edge of its domains."""
        from p2psipd.services.peering.service import PeeringService  # late: for edges alone

        section = self._checked.peering
        return PeeringService(
            self._reactor,
            policy,
            domains=self._domains,
            listen=section.listen,
            limits=Limits(connections=section.max_connections, per_address=section.max_connections_per_address),
            ask=self._dns.ask,
            addresses=self._dns.addresses,
            secrets=self.keys,
            node_id=self._node_id,
            random=SystemRandom(),
            wall=time.time,
            find_home=Locator([Numbers(self._numbers, self._users), self._users]).locate,
            owner=self._numbers.owner,
            announce=lambda: self._directory.offer(NAMESPACE),
        )

    def _records(self) -> CallRecords:
        """The call records, written on a thread of the reactor's pool."""
        threads, section = cast(Any, self._reactor), self._section

        def in_thread(work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
            written = deferToThreadPool(threads, threads.getThreadPool(), work)
            written.addCallbacks(lambda _: done(None), failed, errbackArgs=(done,))

        def failed(failure: Failure, done: Callable[[OSError | None], None]) -> None:
            failure.trap(OSError)
            done(cast(OSError, failure.value))

        file = JsonLines(section.call_records, in_thread, section.call_records_bytes) if section.call_records else None
        return CallRecords(self._node_id, file)

    def _echo(self) -> EchoService:
        """The user that gives back what it hears."""
        from p2psipd.services.echo import EchoService, EchoSettings  # late: for nodes with that role

        section = self._checked.echo
        settings = EchoSettings(
            self._domains,
            self._node_id,
            section.user,
            config.echo_host(section, self._section),
            section.ports,
            section.max_calls,
            section.max_seconds,
        )
        return EchoService(
            settings, location=self._location, reactor=self._reactor, random=SystemRandom(), wall=time.time
        )

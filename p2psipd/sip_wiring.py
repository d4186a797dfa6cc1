"""The SIP side of a node put together over its overlay; imported by nodes that have the role."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from twisted.python.failure import Failure

from p2psipd import config
from p2psipd.net.domain_tls import DomainTls
from p2psipd.net.tls import KeyLog, ServerTls
from p2psipd.proto.reload.ids import NodeId
from p2psipd.services.overlay import OverlayObserver
from p2psipd.services.overlay_factory import OverlayNode

if TYPE_CHECKING:
    from p2psipd.config import Material
    from p2psipd.config.peering import Peering
    from p2psipd.net.dns import DnsClient
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.proto.sip.edge import Edge
    from p2psipd.proto.sip.locating import CredentialSource, LocateStep
    from p2psipd.proto.sip.user_file import Users
    from p2psipd.services.call_records import CallRecords
    from p2psipd.services.echo import EchoService
    from p2psipd.services.epoch_keys import EpochKeys
    from p2psipd.services.numbers import OverlayNumbers
    from p2psipd.services.overlay_location import OverlayCredentials, OverlayLocation
    from p2psipd.services.peering.service import PeeringService
    from p2psipd.services.service_directory import ServiceDirectory
    from p2psipd.services.sip import SipService, SipSettings

#: RELOAD's Application-ID of SIP over TLS (RFC 7904 section 10.2).
SIPS_APPLICATION = 5061


def applications_of(sip: config.SipSection | None) -> dict[int, tuple[tuple[str, int], ...]]:
    """Where other nodes reach us for SIP."""
    if sip is None or sip.node_listen is None:
        return {}
    host, port = sip.node_advertise or sip.node_listen
    return {SIPS_APPLICATION: ((host, port),)}


class SipFiles:
    """What the SIP side has from files that are read again at a reload: TLS of `phones` who connect to us (None without
    such listeners), of the servers of other `domains` that we connect to, and the `users` of a file. Raises
    CertificateFileError.
    """

    def __init__(self, section: config.SipSection, keylog: KeyLog | None, users: Users) -> None:
        from p2psipd.proto.sip.user_file import FileUsers

        self.users = FileUsers(users)
        certificate, key = section.certificate or "", section.key or ""
        self.phones: ServerTls | None = None
        if section.tls or section.wss:
            authorities = section.client_authorities or ""
            self.phones = ServerTls(certificate, key, client_authorities=authorities, keylog=keylog)
        self.domains = DomainTls(section.authorities or "", certificate, key, keylog=keylog)

    def reload(self, users: Users) -> None:
        """Read the certificates again, for the next connections, and take these users.

        Raises CertificateFileError; then nothing more changes.
        """
        if self.phones is not None:
            self.phones.reload()
        self.domains.reload()
        self.users.replace(users)


class SipSide(NamedTuple):
    """What a node with the role `sip` runs, in the order of its start; it ends in the opposite order."""

    records: CallRecords
    dns: DnsClient
    keys: EpochKeys
    service: SipService
    echo: EchoService | None
    directory: ServiceDirectory
    peering: PeeringService | None


def make_sip(
    reactor: object,
    checked: config.NodeConfig,
    material: Material,
    node: OverlayNode,
    files: SipFiles,
    secret: bytes,
    wiring: SipWiring,
) -> SipSide:
    """The SIP side over the overlay.  Its libraries are imported only for nodes that have it."""
    from p2psipd.net.dns import client_for
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.proto.sip.registrar import BindingTable
    from p2psipd.proto.sip.shared_secret import OwnSecret
    from p2psipd.services.epoch_keys import EpochKeys
    from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
    from p2psipd.services.numbers import Numbers, OverlayNumbers
    from p2psipd.services.overlay_location import FirstKnown, OverlayCredentials, OverlayLocation
    from p2psipd.services.peering.elsewhere import EdgesElsewhere
    from p2psipd.services.service_directory import ServiceDirectory
    from p2psipd.services.sip import SipService

    section = checked.sip
    assert section is not None, "the role sip has its table"
    overlay, configuration = node.service, material.configuration
    domains = section.domains or configuration.domains
    location = OverlayLocation(overlay, overlay.node_id)
    table = BindingTable()
    numbers = OverlayNumbers(overlay, domains)
    users = OverlayBindings(location, table, overlay.node_id, domains)
    echo = _make_echo(reactor, checked, domains, location, overlay.node_id) if checked.has("echo") else None
    keys = EpochKeys(overlay, configuration.overlay_name, material.credential, OwnSecret(secret), reactor)
    names = checked.dns
    dns = client_for(
        reactor, names.servers, names.timeout_seconds, names.dnssec, random.SystemRandom(), names.validating
    )
    directory = ServiceDirectory(
        reactor, overlay, overlay.node_id, configuration.redir_branching_factor, random.SystemRandom()
    )
    steps: list[LocateStep] = [OwnBindings(table, overlay.node_id, domains), Numbers(numbers, users), users]
    if echo is not None:
        steps.insert(0, echo.locate)
    host, port = section.node_listen or config.Address("127.0.0.1", 0)
    interconnect = Interconnect(
        reactor,
        node.tls,
        node.trust.judge,
        listen=(host, port),
        app_attach=lambda node_id: overlay.app_attach(NodeId(node_id), SIPS_APPLICATION),
    )
    elsewhere = EdgesElsewhere(
        directory, overlay.node_id, domains, interconnect.is_doubtful, section.emergency_numbers
    )
    edge: Edge = elsewhere
    peering: PeeringService | None = None
    if material.peering is not None:
        peering = _make_peering(
            reactor, checked, material.peering, domains, dns, keys, users, numbers, directory, overlay.node_id
        )
        steps = [peering.emergency, *steps, peering.outbound]
        edge = peering.edge
    else:
        steps = [elsewhere.emergency, *steps, elsewhere]
    locator = Locator(steps)
    credentials = OverlayCredentials(overlay, keys)
    sources: tuple[CredentialSource, ...] = (files.users, credentials)
    wiring.interconnect, wiring.keys, wiring.credentials = interconnect, keys, credentials
    records = _make_records(reactor, section, overlay.node_id)
    service = SipService(
        _settings(checked, section, configuration, overlay.node_id, files, secret),
        location=location,
        credentials=FirstKnown(sources if section.users_first == "file" else sources[::-1]),
        locate=locator.locate,
        connector=interconnect,
        table=table,
        reactor=reactor,
        random=random.SystemRandom(),
        wall=time.time,
        owner=numbers.owner,
        observers=(records,),
        secrets=keys,
        ask=dns.ask,
        edges=(edge,),
        is_emergency=(peering or elsewhere).is_emergency,
    )
    if echo is not None:
        echo.attach = service.attach
    return SipSide(records, dns, keys, service, echo, directory, peering)


def _settings(
    checked: config.NodeConfig,
    section: config.SipSection,
    configuration: OverlayConfiguration,
    node_id: bytes,
    files: SipFiles,
    secret: bytes,
) -> SipSettings:
    """What the configuration says of SIP."""
    from p2psipd.net.sip_transports import Limits
    from p2psipd.proto.sip.digest import Algorithm
    from p2psipd.proto.sip.limits import LimitSettings
    from p2psipd.proto.sip.registrar import Bounds
    from p2psipd.services.sip import SipSettings
    from p2psipd.services.sip.call_book import CallLimits

    limits = checked.limits
    return SipSettings(
        domains=section.domains or configuration.domains,
        overlay=configuration.overlay_name,
        node_id=node_id,
        udp=section.udp,
        tcp=section.tcp,
        tls_addresses=section.tls,
        tls=files.phones,
        secure_web=section.wss,
        web=section.ws,
        web_origins=section.web_origins,
        tls_client=files.domains,
        public_host=section.public_host or "",
        secret=secret,
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
        ),
        scanners=tuple(name.lower() for name in limits.scanners),
    )


def _make_peering(
    reactor: object,
    checked: config.NodeConfig,
    policy: Peering,
    domains: tuple[str, ...],
    dns: DnsClient,
    keys: EpochKeys,
    users: LocateStep,
    numbers: OverlayNumbers,
    directory: ServiceDirectory,
    node_id: bytes,
) -> PeeringService:
    """This node as an edge of its domains."""
    from p2psipd.net.sip_transports import Limits
    from p2psipd.services.locator import Locator
    from p2psipd.services.numbers import Numbers
    from p2psipd.services.peering.elsewhere import NAMESPACE
    from p2psipd.services.peering.service import PeeringService

    section = checked.peering
    return PeeringService(
        reactor,
        policy,
        domains=domains,
        listen=section.listen,
        limits=Limits(connections=section.max_connections, per_address=section.max_connections_per_address),
        ask=dns.ask,
        addresses=dns.addresses,
        secrets=keys,
        node_id=node_id,
        random=random.SystemRandom(),
        wall=time.time,
        find_home=Locator([Numbers(numbers, users), users]).locate,
        owner=numbers.owner,
        announce=lambda: directory.offer(NAMESPACE),
    )


def _make_records(reactor: object, section: config.SipSection, node_id: bytes) -> CallRecords:
    """The call records, written on a thread of the reactor's pool."""
    from twisted.internet.threads import deferToThreadPool

    from p2psipd.services.call_records import CallRecords
    from p2psipd.store.json_lines import JsonLines

    def in_thread(work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        threads = cast(Any, reactor)
        written = deferToThreadPool(threads, threads.getThreadPool(), work)
        written.addCallbacks(lambda _: done(None), failed, errbackArgs=(done,))

    def failed(failure: Failure, done: Callable[[OSError | None], None]) -> None:
        failure.trap(OSError)
        done(cast(OSError, failure.value))

    file = JsonLines(section.call_records, in_thread, section.call_records_bytes) if section.call_records else None
    return CallRecords(node_id, file)


def _make_echo(
    reactor: object, checked: config.NodeConfig, domains: tuple[str, ...], location: OverlayLocation, node_id: bytes
) -> EchoService:
    """The user that gives back what it hears."""
    from p2psipd.services.echo import EchoService, EchoSettings

    section, sip = checked.echo, checked.sip
    assert sip is not None, "the role echo stands beside the role sip"
    settings = EchoSettings(
        domains,
        node_id,
        section.user,
        config.echo_host(section, sip),
        section.ports,
        section.max_calls,
        section.max_seconds,
    )
    return EchoService(settings, location=location, reactor=reactor, random=random.SystemRandom(), wall=time.time)


class SipWiring(OverlayObserver):
    """What happens in the overlay and concerns the SIP side."""

    interconnect: Interconnect | None = None
    keys: EpochKeys | None = None
    credentials: OverlayCredentials | None = None

    def joined(self) -> None:
        """What registrars share can be asked for."""
        if self.keys is not None:
            self.keys.begin()

    def credential_renewed(self, credential: Credential) -> None:
        """Password keys are wrapped for the new key from now on."""
        if self.keys is not None:
            self.keys.renew(credential)
        if self.credentials is not None:
            self.credentials.forget()

    def dial_application(self, node: NodeId, application: int, addresses: tuple[tuple[str, int], ...]) -> None:
        """Another node wants to speak SIP with us."""
        if application == SIPS_APPLICATION and self.interconnect is not None:
            self.interconnect.dial(node, addresses)

    def peer_lost(self, node: NodeId) -> None:
        """Where there is a choice, others are asked to take SIP from now on."""
        if self.interconnect is not None:
            self.interconnect.lost(node)

    def configuration_changed(self, configuration: OverlayConfiguration) -> None:
        """A newer document may have revoked nodes that we speak SIP with."""
        if self.interconnect is not None:
            self.interconnect.recheck()

"""The SIP side of a node put together over its overlay; imported by nodes that have the role."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NamedTuple

from p2psipd import config
from p2psipd.net.domain_tls import DomainTls
from p2psipd.net.tls import KeyLog, ServerTls
from p2psipd.proto.reload.ids import NodeId
from p2psipd.services.overlay import OverlayObserver
from p2psipd.services.overlay_factory import OverlayNode

if TYPE_CHECKING:
    from p2psipd.config import Material
    from p2psipd.net.dns import DnsClient
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.services.echo import EchoService
    from p2psipd.services.overlay_location import OverlayCredentials, OverlayLocation
    from p2psipd.services.sip import SipService

#: RELOAD's Application-ID of SIP over TLS (RFC 7904 section 10.2).
SIPS_APPLICATION = 5061


def applications_of(sip: config.SipSection | None) -> dict[int, tuple[tuple[str, int], ...]]:
    """Where other nodes reach us for SIP."""
    if sip is None or sip.node_listen is None:
        return {}
    host, port = sip.node_advertise or sip.node_listen
    return {SIPS_APPLICATION: ((host, port),)}


class SipTls:
    """TLS of the SIP side: `phones` for those who connect to us (None without such listeners), `domains` for the
    servers of other domains that we connect to. Raises CertificateFileError.
    """

    def __init__(self, section: config.SipSection, keylog: KeyLog | None) -> None:
        certificate, key = section.certificate or "", section.key or ""
        self.phones: ServerTls | None = None
        if section.tls or section.wss:
            authorities = section.client_authorities or ""
            self.phones = ServerTls(certificate, key, client_authorities=authorities, keylog=keylog)
        self.domains = DomainTls(section.authorities or "", certificate, key, keylog=keylog)

    def reload(self) -> None:
        """Read the files again, for the next connections. Raises CertificateFileError; then nothing more changes."""
        if self.phones is not None:
            self.phones.reload()
        self.domains.reload()


class SipSide(NamedTuple):
    """What a node with the role `sip` runs, in the order of its start."""

    dns: DnsClient
    service: SipService
    echo: EchoService | None


def make_sip(
    reactor: object,
    checked: config.NodeConfig,
    material: Material,
    node: OverlayNode,
    tls: SipTls,
    secret: bytes,
    wiring: SipWiring,
) -> SipSide:
    """The SIP side over the overlay.  Its libraries are imported only for nodes that have it."""
    from p2psipd.net.dns import client_for
    from p2psipd.net.interconnect import Interconnect
    from p2psipd.net.sip_transports import Limits
    from p2psipd.proto.sip.limits import LimitSettings
    from p2psipd.proto.sip.registrar import BindingTable, Bounds
    from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
    from p2psipd.services.numbers import Numbers, OverlayNumbers
    from p2psipd.services.overlay_location import OverlayCredentials, OverlayLocation
    from p2psipd.services.sip import SipService, SipSettings
    from p2psipd.services.sip.call_book import CallLimits

    section, limits = checked.sip, checked.limits
    assert section is not None, "the role sip has its table"
    overlay, configuration = node.service, material.configuration
    domains = section.domains or configuration.domains
    location = OverlayLocation(overlay, overlay.node_id)
    table = BindingTable()
    numbers = OverlayNumbers(overlay, domains)
    users = OverlayBindings(location, table, overlay.node_id, domains)
    echo = _make_echo(reactor, checked, domains, location, overlay.node_id) if checked.has("echo") else None
    steps = (OwnBindings(table, overlay.node_id, domains), Numbers(numbers, users), users)
    locator = Locator(steps if echo is None else (echo.locate, *steps))
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
        tls=tls.phones,
        secure_web=section.wss,
        web=section.ws,
        web_origins=section.web_origins,
        tls_client=tls.domains,
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
        turn_seconds=float(section.turn_seconds),
        recurse=section.follow_redirects,
        redirect_domains=frozenset(section.redirect_domains),
        redirect_authenticates=section.redirect_authenticates,
        call_limits=CallLimits(checked.limits.calls_per_user, checked.limits.calls_per_peer, checked.limits.calls),
        abuse=LimitSettings(
            limits.points,
            limits.points_forgiven,
            limits.shut_seconds,
            limits.messages_per_source,
            limits.requests_per_user,
        ),
        scanners=tuple(name.lower() for name in limits.scanners),
    )
    credentials = OverlayCredentials(overlay, configuration.overlay_name, material.credential)
    wiring.interconnect, wiring.credentials = interconnect, credentials
    names = checked.dns
    dns = client_for(reactor, names.servers, names.timeout_seconds, names.dnssec, random.SystemRandom())
    service = SipService(
        settings,
        location=location,
        credentials=credentials,
        locate=locator.locate,
        connector=interconnect,
        table=table,
        reactor=reactor,
        random=random.SystemRandom(),
        wall=time.time,
        owner=numbers.owner,
        ask=dns.ask,
    )
    if echo is not None:
        echo.attach = service.attach
    return SipSide(dns, service, echo)


def _make_echo(
    reactor: object,
    checked: config.NodeConfig,
    domains: tuple[str, ...],
    location: OverlayLocation,
    node_id: bytes,
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
    return EchoService(
        settings,
        location=location,
        reactor=reactor,
        random=random.SystemRandom(),
        wall=time.time,
    )


class SipWiring(OverlayObserver):
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

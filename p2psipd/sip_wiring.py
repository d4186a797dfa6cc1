"""Where a node and its SIP side meet: what the rest of the node knows of it, the files that it reads, and what it is
told of the overlay. Its parts are in :mod:`p2psipd.sip_parts`, which only nodes with the role import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from p2psipd import config
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
    from p2psipd.proto.sip.user_file import Users
    from p2psipd.services.call_records import CallRecords
    from p2psipd.services.echo import EchoService
    from p2psipd.services.epoch_keys import EpochKeys
    from p2psipd.services.overlay_location import OverlayCredentials
    from p2psipd.services.peering.service import PeeringService
    from p2psipd.services.service_directory import ServiceDirectory
    from p2psipd.services.sip import SipService

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
        from p2psipd.net.domain_tls import DomainTls
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
    from p2psipd.sip_parts import SipParts

    parts = SipParts(reactor, checked, material, node, files, secret)
    wiring.interconnect, wiring.keys, wiring.credentials = parts.interconnect, parts.keys, parts.credentials
    return parts.side()


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

"""A process with two SIP nodes over real sockets, their location and passwords in memory; run by the tests
beside it.

Usage: sip_nodes.py HOST-A HOST-B DOMAIN DIRECTORY USER:PASSWORD... Writes the certificates of the SIPS listeners to
DIRECTORY/HOST.pem. Prints "ready", runs until its stdin is closed, and
then prints its statistics as one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.internet import reactor, stdio
from twisted.internet.protocol import Protocol

from p2psipd.net.interconnect import Interconnect
from p2psipd.net.tls import NodeTls, ServerTls
from p2psipd.proto.identity.certificate import Role, Trust, create_authority, generate_private_key, role_name
from p2psipd.proto.sip.digest import Algorithm, ha1
from p2psipd.proto.sip.locating import Binding
from p2psipd.proto.sip.registrar import BindingTable
from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
from p2psipd.services.sip import SipService, SipSettings

SIP, SIPS, NODE = 5060, 5061, 5062


class Location:
    """What the overlay would hold."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[bytes, Binding]] = {}

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        return [each for each in self._entries.get(aor, {}).values() if each.expires_at > time.time()]

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        entries = self._entries.setdefault(aor, {})
        entries.update((binding.key, binding) for binding in puts)
        for binding in removes:
            entries.pop(binding.key, None)


class Passwords:
    """The users' passwords."""

    def __init__(self, pairs: Sequence[str]) -> None:
        self._passwords = dict(pair.split(":") for pair in pairs)
        self._known: dict[str, Mapping[str, bytes]] = {}

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        if user in self._passwords and user not in self._known:
            self._known[user] = {
                each.value: bytes.fromhex(ha1(each, user, realm, self._passwords[user]))
                for each in (Algorithm.MD5, Algorithm.SHA_256)
            }
        return self._known.get(user)


def server_tls(host: str, directory: Path) -> ServerTls:
    """A self-signed certificate for the SIPS listener."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(key, SHA256())
    )
    files = directory / f"{host}.pem", directory / f"{host}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return ServerTls(str(files[0]), str(files[1]))


class UntilClosed(Protocol):
    """Ends the process when its stdin is closed."""

    def connectionLost(self, reason: object = None) -> None:
        reactor.stop()


def main(hosts: Sequence[str], domain: str, directory: Path, users: Sequence[str]) -> None:
    """Start both nodes and run."""
    location, passwords = Location(), Passwords(users)
    authority = create_authority(domain, time.time())
    links: dict[bytes, Interconnect] = {}
    services: list[SipService] = []
    for index, host in enumerate(hosts, 1):
        node_id, key = bytes([index]) * 16, generate_private_key()
        certificate = authority.issue(
            key.public_key(), node_id, role_name(Role.REGISTRAR, node_id, domain), time.time(), 86400
        )
        trust = Trust([authority.certificate], domain)

        def judge(der: bytes, trust: Trust = trust) -> object:
            return trust.check(der, time.time())

        async def app_attach(wanted: bytes, me: bytes = node_id) -> None:
            links[wanted].dial(me, [links[me].address])

        tls = NodeTls(certificate, key, [authority.certificate], judge)
        links[node_id] = Interconnect(reactor, tls, judge, listen=(host, NODE), app_attach=app_attach)
        table = BindingTable()
        locator = Locator(
            (
                OwnBindings(table, node_id, (domain,)),
                OverlayBindings(location, table, node_id, (domain,)),
            )
        )
        settings = SipSettings(
            domains=(domain,),
            overlay=domain,
            node_id=node_id,
            udp=((host, SIP),),
            tcp=((host, SIP),),
            tls_addresses=((host, SIPS),),
            tls=server_tls(host, directory),
        )
        service = SipService(
            settings,
            location=location,
            credentials=passwords,
            locate=locator.locate,
            connector=links[node_id],
            table=table,
            reactor=reactor,
            random=random.SystemRandom(),
            wall=time.time,
        )
        service.startService()
        services.append(service)
    stdio.StandardIO(UntilClosed())
    print("ready", flush=True)
    reactor.run()
    print(
        json.dumps(
            {
                "statistics": [service.statistics() for service in services],
                "ladders": [[service.ladder(call_id) for call_id in service.ladders()] for service in services],
                "cpu": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:3], sys.argv[3], Path(sys.argv[4]), sys.argv[5:])

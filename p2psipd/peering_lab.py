"""Two overlays that are two SIP domains, peering with each other: for the demonstration, and for tests.

Each domain is a lab of real processes (p2psipd.lab), of which some are edges; a certificate authority that both
believe, and their own name server (knot, which nobody here wrote) complete the world. Everything is on loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2psipd.lab import Lab, LabError, free_network, is_free
from p2psipd.proto.identity.certificate import generate_private_key
from p2psipd.proto.peering.publishing import PublishedServer, domain_records, number_records, zone_text

PEERING_PORT: Final = 5065
IDENTITY_PORT: Final = 8065
_DNS_PORT: Final = 5353
_KNOT_SECONDS: Final = 10.0
_KEY_SECONDS: Final = 3.2
_ENUM: Final = "e164.arpa"

_NODE: Final = """
[peering]
listen = ["{host}:{port}"]
policy = "../peering.toml"

[dns]
servers = ["{dns}"]
timeout_seconds = 2.0
"""

_DNS: Final = """
[dns]
servers = ["{dns}"]
timeout_seconds = 2.0
"""

_POLICY: Final = """\
# Direct peering of {domain} in a lab; every key is explained in etc/peering.toml.
[trust]
system_authorities = false
authorities = ["authority.pem"]

[accept]
domains = [{accepted}]

[identity]
send = "{send}"
url = "http://{{domain}}:{identity_port}/identity"
listen = [{identity_listen}]
private_networks = ["127.0.0.0/8"]

[number_plan]
region = "US"

[emergency]
target = "sip:alice@{domain}"

[[certificate]]
name = "{domain}"
domains = ["{domain}"]
certificate = "domain.pem"
key = "domain.key"

[[certificate]]
name = "{domain}-rsa"
domains = ["{domain}"]
certificate = "rsa.pem"
key = "rsa.key"
use = ["identity"]
"""


class Authority:
    """The certificate authority of the lab: `pem` is its certificate."""

    def __init__(self, name: str = "peering lab authority") -> None:
        self._key = generate_private_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._now = datetime.fromtimestamp(int(time.time()), UTC)
        built = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        self.certificate = built.sign(self._key, SHA256())
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def _builder(self, subject: x509.Name, public_key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(minutes=5))
            .not_valid_after(self._now + timedelta(days=90))
        )

    def issue(self, domain: str, key: EllipticCurvePrivateKey | rsa.RSAPrivateKey, *more: str) -> bytes:
        """A certificate of a domain (PEM), and of `more`, for servers, clients and signatures alike."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        built = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)]), key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in (domain, *more)]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return built.sign(self._key, SHA256()).public_bytes(Encoding.PEM)


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


class Domain:
    """One of the two: its lab, and which of its peers are edges."""

    def __init__(self, name: str, lab: Lab, edges: Sequence[int], numbers: Iterable[str]) -> None:
        self.name = name
        self.lab = lab
        self.edges = tuple(edges)
        self.numbers = tuple(numbers)

    @property
    def servers(self) -> list[PublishedServer]:
        """The edges as the DNS names them, all of one priority."""
        return [
            PublishedServer(f"edge{number}.{self.name}", PEERING_PORT, (self.lab.host(number),))
            for number in self.edges
        ]


class PeeringLab:
    """The two domains, their name server, and the authority. `create` makes it, `up` starts it, `end` ends it."""

    def __init__(self, directory: Path, domains: Sequence[Domain], dns_host: str, authority: Authority) -> None:
        self.directory = directory
        self.authority = authority
        self.domains = tuple(domains)
        self.dns = f"{dns_host}:{_DNS_PORT}"
        self._dns_host = dns_host
        self._knot: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(
        cls,
        directory: Path,
        names: Sequence[str] = ("a.test", "b.test"),
        *,
        peers: int = 4,
        edges: int = 1,
        users: Sequence[Sequence[str]] = (("alice",), ("bob",)),
        numbers: Sequence[Sequence[str]] = (("+12125551212",), ("+442071838750",)),
        send: str = "rfc8224",
        log_level: str = "info",
        progress: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Write all files; nothing is started. The last peers of each overlay are its edges. Raises LabError."""
        if shutil.which("knotd") is None:
            raise LabError("knotd is not installed; as root: apt-get install knot")
        authority = Authority()
        networks: list[str] = []
        domains = []
        for name, people, owned in zip(names, users, numbers, strict=True):
            network = next(each for each in _networks() if each not in networks)
            networks.append(network)
            lab = Lab.create(
                directory / name,
                peers,
                users=people,
                network=network,
                overlay_name=name,
                log_level=log_level,
                progress=progress,
            )
            domains.append(Domain(name, lab, range(peers - edges + 1, peers + 1), owned))
        made = cls(directory, domains, f"{networks[0]}.253", authority)
        for domain in domains:
            made._write_domain(domain, send)
        made._write_zones()
        return made

    def _write_domain(self, domain: Domain, send: str) -> None:
        root, authority = domain.lab.directory, self.authority
        key, rsa_key = generate_private_key(), rsa.generate_private_key(65537, 2048)
        (root / "authority.pem").write_bytes(authority.pem)
        (root / "domain.pem").write_bytes(authority.issue(domain.name, key))
        (root / "rsa.pem").write_bytes(authority.issue(domain.name, rsa_key))
        for name, private in (("domain.key", key), ("rsa.key", rsa_key)):
            octets = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (root / name).touch(mode=0o600)
            (root / name).write_bytes(octets)
        others = [f'"{other.name}"' for other in self.domains if other is not domain]
        for number in domain.lab.peers:
            file = domain.lab.peer_directory(number) / "p2psipd.toml"
            text = file.read_text()
            if number in domain.edges:
                text = text.replace('"peer", "sip"', '"peer", "sip", "peering"')
                text += _NODE.format(host=domain.lab.host(number), port=PEERING_PORT, dns=self.dns)
                text = text.replace("../peering.toml", "peering.toml")
                policy = _POLICY.format(
                    domain=domain.name,
                    accepted=", ".join(others),
                    send=send,
                    identity_port=IDENTITY_PORT,
                    identity_listen=f'"{domain.lab.host(number)}:{IDENTITY_PORT}"',
                )
                for name in ("authority.pem", "domain.pem", "domain.key", "rsa.pem", "rsa.key"):
                    policy = policy.replace(f'"{name}"', f'"../{name}"')
                (domain.lab.peer_directory(number) / "peering.toml").write_text(policy)
            else:
                text += _DNS.format(dns=self.dns)
            file.write_text(text)

    def _write_zones(self) -> None:
        zones = self.directory / "zones"
        zones.mkdir()
        enum = []
        for domain in self.domains:
            records = domain_records(domain.name, domain.servers)
            # The certificates for Identity are served under the domain's own name.
            served = "".join(f"{domain.name}. 60 IN A {domain.lab.host(number)}\n" for number in domain.edges)
            (zones / f"{domain.name}.zone").write_text(_SOA.format(zone=domain.name) + zone_text(records) + served)
            for number in domain.numbers:
                enum += number_records(number, f"sip:{{number}}@{domain.name};user=phone")
        (zones / f"{_ENUM}.zone").write_text(_SOA.format(zone=_ENUM) + zone_text(enum))

    # ---- life --------------------------------------------------------------------------------------------------

    def up(self, timeout: float = 60.0) -> None:
        """Start the name server and both overlays, and provision users and numbers. Raises LabError."""
        self._start_knot()

        def start(domain: Domain) -> None:
            domain.lab.up(timeout)
            domain.lab.provision()
            for number in domain.numbers:
                _give(domain.lab, number, domain.lab.users[0].name)

        with ThreadPoolExecutor(len(self.domains)) as pool:
            for started in [pool.submit(start, domain) for domain in self.domains]:
                started.result()
        # By then every registrar has looked for the key that all share, and any edge knows the others' Route values.
        time.sleep(_KEY_SECONDS)

    def _start_knot(self) -> None:
        run = self.directory / "knot"
        run.mkdir(exist_ok=True)
        lines = [f'server:\n    listen: {self._dns_host}@{_DNS_PORT}\n    rundir: "{run}"\n    udp-workers: 1\n']
        lines.append(f'    tcp-workers: 1\n    background-workers: 1\ndatabase:\n    storage: "{run}"\nzone:\n')
        for zone in sorted((self.directory / "zones").iterdir()):
            lines.append(f'  - domain: "{zone.stem}"\n    file: "{zone}"\n')
            lines.append("    zonefile-sync: -1\n    journal-content: none\n")
        (run / "knot.conf").write_text("".join(lines))
        with (run / "log").open("wb") as log:
            self._knot = subprocess.Popen(
                ["knotd", "-c", str(run / "knot.conf")], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until = time.monotonic() + _KNOT_SECONDS
        while not _answers(self._dns_host, _DNS_PORT):
            if self._knot.poll() is not None or time.monotonic() > until:
                raise LabError(f"knotd does not answer; see {run / 'log'}")
            time.sleep(0.05)

    def end(self) -> None:
        """End every process at once; the files stay."""
        for domain in self.domains:
            domain.lab.kill_all()
        if self._knot is not None and self._knot.poll() is None:
            os.kill(self._knot.pid, signal.SIGKILL)
            self._knot.wait()


_SOA: Final = (
    "{zone}. 60 IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 600 86400 5\n{zone}. 60 IN NS ns.{zone}.\n"
    "ns.{zone}. 60 IN A 127.0.0.1\n"
)


def _give(lab: Lab, number: str, user: str) -> None:
    """Have a number stand for a user: `p2psip number add`."""
    command = [sys.executable, "-m", "p2psipd.cli.main", "number", "add", number, user]
    places = ["--dir", str(lab.directory / "provisioning"), "--overlay", str(lab.directory / "overlay.xml")]
    done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise LabError(f"{number} could not be given to {user}: {done.stderr.strip()}")


def _networks() -> Iterable[str]:
    """Networks where nobody listens yet."""
    first = int(free_network().rpartition(".")[2])
    networks = (f"127.0.{2 + (first - 2 + step) % 248}" for step in range(248))
    return (network for network in networks if is_free(network))


def _answers(host: str, port: int) -> bool:
    """Whether a name server accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.2):
            return True
    except OSError:
        return False

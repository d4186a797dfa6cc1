"""The files of a lab: its certificate authority, its signed configuration document, and a directory for each
peer.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2psipd.overlay_files import DOCUMENT, OverlayFiles, write_key
from p2psipd.proto.identity.certificate import Role, generate_private_key

OVERLAY_PORT = 6084
SIP_PORT = 5060
SIPS_PORT = 5061
WSS_PORT = 5443
WS_PORT = 5080
NODE_SIP_PORT = 5062
_BOOTSTRAP_PEERS = 3
_ECHO_PEERS = 2
"""So many peers answer calls to the echo user; at the others it is found through the overlay."""

_PEER = """\
# Peer {number} of a lab; every key is explained in etc/p2psipd.toml.
[overlay]
document = "overlay.xml"

[identity]
certificate = "node.pem"
key = "node.key"

[node]
roles = [{roles}]
log_level = "{log_level}"
drain_seconds = 3.0

[peer]
listen = "{host}:{overlay_port}"
first = {first}

[sip]
udp = ["{host}:{sip_port}"]
tcp = ["{host}:{sip_port}"]
tls = ["{host}:{sips_port}"]
wss = ["{host}:{wss_port}"]
ws = ["{host}:{ws_port}"]
certificate = "../sip.pem"
key = "../sip.key"
node_listen = "{host}:{node_sip_port}"
call_records = "calls.jsonl"
"""


class User(NamedTuple):
    """A person of the lab: `name` before the "@" of the address, and the password of their phone."""

    name: str
    password: str

    @classmethod
    def of(cls, name: str) -> Self:
        """The user called `name`; a lab is on loopback, so the password may be guessable."""
        return cls(name, f"lab-{name}")


class LabFiles:
    """What a lab is on disk: `root` its directory, `peers` how many, `network` the first three numbers."""

    def __init__(
        self,
        root: Path,
        peers: int,
        network: str,
        overlay_name: str,
        users: tuple[User, ...],
        log_level: str = "info",
    ) -> None:
        self.root = root
        self.peers = peers
        self.network = network
        self.overlay_name = overlay_name
        self.users = users
        self.log_level = log_level

    @classmethod
    def from_description(cls, root: Path, description: dict[str, Any]) -> Self:
        """The files that `description` (from lab.json) tells of; KeyError, TypeError, ValueError if it is
        none.
        """
        users = tuple(User(**user) for user in description["users"])
        return cls(
            root,
            int(description["peers"]),
            description["network"],
            description["overlay_name"],
            users,
            # Older labs do not say.
            description.get("log_level", "info"),
        )

    def description(self) -> dict[str, Any]:
        """What lab.json holds."""
        return {
            "overlay_name": self.overlay_name,
            "peers": self.peers,
            "network": self.network,
            "log_level": self.log_level,
            "users": [user._asdict() for user in self.users],
        }

    def names(self) -> list[str]:
        """Names of the files and directories that belong to the lab, in `root`."""
        peers = [f"peer{number}" for number in range(1, self.peers + 1)]
        return ["lab.json", "overlay.xml", "ca", "provisioning", "sip.pem", "sip.key", *peers]

    def host(self, number: int) -> str:
        """The address of a peer."""
        return f"{self.network}.{number}"

    def peer_directory(self, number: int) -> Path:
        """Where a peer keeps its files."""
        return self.root / f"peer{number}"

    def write(self, progress: Callable[[str], None]) -> None:
        """Make the overlay, and enroll every peer as a registrar."""
        bootstrap = [(self.host(number), OVERLAY_PORT) for number in range(1, self.peers + 1)]
        overlay = OverlayFiles.create(self.root, self.overlay_name, bootstrap_nodes=bootstrap[:_BOOTSTRAP_PEERS])
        self._write_sip_certificate()
        for number in range(1, self.peers + 1):
            progress(f"{number} of {self.peers}")
            directory = self.peer_directory(number)
            overlay.issue(Role.REGISTRAR, f"peer{number}", directory)
            # A copy of its own: a node replaces its document when a newer one spreads.
            shutil.copy(self.root / DOCUMENT, directory / DOCUMENT)
            (directory / "p2psipd.toml").write_text(self._peer_configuration(number))
        overlay.issue(Role.PROVISIONING, "lab", self.root / "provisioning")

    def _peer_configuration(self, number: int) -> str:
        return _PEER.format(
            number=number,
            roles='"peer", "sip", "echo"' if number <= _ECHO_PEERS else '"peer", "sip"',
            host=self.host(number),
            log_level=self.log_level,
            first="true" if number == 1 else "false",
            overlay_port=OVERLAY_PORT,
            sip_port=SIP_PORT,
            sips_port=SIPS_PORT,
            wss_port=WSS_PORT,
            ws_port=WS_PORT,
            node_sip_port=NODE_SIP_PORT,
        )

    def _write_sip_certificate(self) -> None:
        """One self-signed certificate for the SIPS ports of all peers; a phone may trust it as it is."""
        key = generate_private_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.overlay_name)])
        now = datetime.fromtimestamp(int(time.time()), UTC)
        hosts = [x509.IPAddress(ip_address(self.host(number))) for number in range(1, self.peers + 1)]
        names = [x509.DNSName(self.overlay_name), x509.UniformResourceIdentifier(f"sip:{self.overlay_name}")]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.SubjectAlternativeName([*names, *hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, SHA256())
        )
        (self.root / "sip.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        os.chmod(self.root / "sip.pem", 0o644)
        write_key(self.root / "sip.key", key)

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
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

OVERLAY_PORT = 6084
SIP_PORT = 5060
SIPS_PORT = 5061
NODE_SIP_PORT = 5062
_BOOTSTRAP_PEERS = 3

_PEER = """\
# Peer {number} of a lab; every key is explained in etc/p2psipd.toml.
[overlay]
document = "overlay.xml"

[identity]
certificate = "node.pem"
key = "node.key"

[node]
roles = ["peer", "sip"]
log_level = "{log_level}"
drain_seconds = 3.0

[peer]
listen = "{host}:{overlay_port}"
first = {first}

[sip]
udp = ["{host}:{sip_port}"]
tcp = ["{host}:{sip_port}"]
tls = ["{host}:{sips_port}"]
certificate = "../sip.pem"
key = "../sip.key"
node_listen = "{host}:{node_sip_port}"
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
        self, root: Path, peers: int, network: str, overlay_name: str, users: tuple[User, ...]
    ) -> None:
        self.root = root
        self.peers = peers
        self.network = network
        self.overlay_name = overlay_name
        self.users = users

    @classmethod
    def from_description(cls, root: Path, description: dict[str, Any]) -> Self:
        """The files that `description` (from lab.json) tells of; KeyError, TypeError, ValueError if it is
        none.
        """
        users = tuple(User(**user) for user in description["users"])
        return cls(
            root, int(description["peers"]), description["network"], description["overlay_name"], users
        )

    def description(self) -> dict[str, Any]:
        """What lab.json holds."""
        return {
            "overlay_name": self.overlay_name,
            "peers": self.peers,
            "network": self.network,
            "users": [user._asdict() for user in self.users],
        }

    def names(self) -> list[str]:
        """Names of the files and directories that belong to the lab, in `root`."""
        peers = [f"peer{number}" for number in range(1, self.peers + 1)]
        return ["lab.json", "overlay.xml", "ca", "sip.pem", "sip.key", *peers]

    def host(self, number: int) -> str:
        """The address of a peer."""
        return f"{self.network}.{number}"

    def peer_directory(self, number: int) -> Path:
        """Where a peer keeps its files."""
        return self.root / f"peer{number}"

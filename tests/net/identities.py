"""Certificates for tests: an overlay's authority and nodes of it, made once a run."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import load_der_x509_certificate

from p2psipd.net.tls import KeyLog, NodeTls
from p2psipd.proto.identity.certificate import (
    Authority,
    Role,
    Trust,
    create_authority,
    generate_private_key,
    role_name,
)

OVERLAY = "overlay.example"


class Identity(NamedTuple):
    """A node: its Node-ID, certificate (DER) and key, and the root it trusts."""

    node_id: bytes
    certificate: bytes
    key: EllipticCurvePrivateKey
    root: bytes
    overlay: str

    def tls(self, keylog: KeyLog | None = None) -> NodeTls:
        """This node's TLS, judging by a Trust of its own."""
        trust = Trust([self.root], self.overlay)
        return NodeTls(
            self.certificate, self.key, [self.root], lambda der: trust.check(der, time.time()), keylog=keylog
        )

    def write(self, directory: Path, name: str = "node") -> tuple[Path, Path]:
        """The certificate and key as PEM files."""
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        certificate.write_bytes(load_der_x509_certificate(self.certificate).public_bytes(Encoding.PEM))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key


@cache
def authority(overlay: str) -> Authority:
    """The authority of ``overlay``."""
    return create_authority(overlay, time.time())


def node(
    number: int,
    overlay: str = OVERLAY,
    role: Role = Role.PEER,
    issued_at: float = 0.0,
    lifetime: float = 86400.0,
) -> Identity:
    """Node ``number``; ``issued_at`` is a wall time, by default now."""
    ca, key, node_id = authority(overlay), generate_private_key(), number.to_bytes(16, "big")
    user = role_name(role, node_id, overlay)
    certificate = ca.issue(key.public_key(), node_id, user, issued_at or time.time(), lifetime)
    return Identity(node_id, certificate, key, ca.certificate, overlay)

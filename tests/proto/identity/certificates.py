"""Certificates that are wrong in one way each, for tests: an authority that does not look at what it signs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from p2psipd.proto.identity.certificate import (
    DAY,
    Authority,
    Role,
    create_authority,
    generate_private_key,
    parse_certificate,
    reload_uri,
    role_name,
)
from p2psipd.proto.identity.signing import Credential

OVERLAY = "overlay.example"
WALL = 1_800_000_000.0
NODE = bytes(range(1, 17))
OTHER_NODE = bytes(range(101, 117))

# Keys are costly to draw and their values do not matter: every test shares these.
AUTHORITY = create_authority(OVERLAY, WALL)
KEY = generate_private_key()


def odd_certificate(
    *,
    authority: Authority = AUTHORITY,
    names: Sequence[x509.GeneralName] | None = None,
    critical: bool = True,
    subject: str = "",
    ca: bool | None = False,
    digital_signature: bool = True,
    extra: Sequence[tuple[Any, bool]] = (),
    public_key: Any = None,
    not_before: float = WALL - DAY,
    not_after: float = WALL + DAY,
) -> bytes:
    """A certificate (DER) of the authority's key, right in everything that is not named."""
    if names is None:
        names = (uri(), email("alice@overlay.example"))
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.load_der_x509_certificate(authority.certificate).subject)
        .public_key(KEY.public_key() if public_key is None else public_key)
        .serial_number(77)
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
        .add_extension(
            x509.KeyUsage(digital_signature, False, False, False, True, bool(ca), False, False, False), critical=True
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private_key.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=critical)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    for extension, is_critical in extra:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(authority.private_key, SHA256()).public_bytes(Encoding.DER)


def uri(node_id: bytes = NODE, overlay: str = OVERLAY) -> x509.GeneralName:
    """The name of a node."""
    return x509.UniformResourceIdentifier(reload_uri(node_id, overlay))


def email(user: str) -> x509.GeneralName:
    """A user name."""
    # The constructor refuses some of the names that a hostile authority could sign.
    return x509.RFC822Name._init_without_validation(user)


def credential(role: Role = Role.PEER, node_id: bytes = NODE, user: str = "alice@overlay.example") -> Credential:
    """A node of the overlay with a certificate as the authority issues it."""
    name = user if role is Role.USER else role_name(role, node_id, OVERLAY)
    der = AUTHORITY.issue(KEY.public_key(), node_id, name, WALL)
    return Credential(parse_certificate(der), KEY)

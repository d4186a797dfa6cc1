"""What the files that the configuration names hold, checked that it belongs together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from p2psipd.config.apart import apart
from p2psipd.config.faults import ConfigError, Fault
from p2psipd.config.model import NodeConfig, SipSection
from p2psipd.config.reading import load
from p2psipd.config.tables import unsaid

if TYPE_CHECKING:
    from p2psipd.config.peering import Peering
    from p2psipd.proto.identity.certificate import Trust
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.proto.sip.user_file import Users


class Material(NamedTuple):
    """What the files that the configuration names hold, checked that it belongs together."""

    configuration: OverlayConfiguration
    credential: Credential
    trust: Trust
    users: Users = MappingProxyType({})
    peering: Peering | None = None


def load_all(
    path: str | os.PathLike[str], environ: Mapping[str, str] | None = None, read: ReadDocument | None = None
) -> tuple[NodeConfig, Material]:
    """The checked configuration of the file at ``path``, and what the files hold that it names.

    Raises :class:`ConfigError` with the faults of both: whoever mends the one wants to know of the other.
    """
    try:
        checked = load(path, environ)
    except ConfigError as error:
        if error.rest is None:
            raise
        try:
            load_material(error.rest, read=read)
        except ConfigError as of_files:
            raise ConfigError([*error.faults, *unsaid(of_files.faults, error.faults)]) from None
        raise
    return checked, load_material(checked, read=read)


def load_material(
    config: NodeConfig, wall: float | None = None, read: ReadDocument | None = None
) -> Material:
    """Read and check the overlay's document, this node's certificate and key, and the phones' certificate.

    ``wall`` is the time at which they must be valid, by default now; ``read`` reads the document.  Raises
    :class:`ConfigError` with every fault.
    """
    wall = time.time() if wall is None else wall
    faults: list[Fault] = []
    configuration = _read_document(config, wall, read or read_document, faults)
    credential = _read_credential(config, faults)
    trust = configuration.trust() if configuration is not None else None
    if configuration is not None and trust is not None and credential is not None:
        faults += _identity_faults(config, credential, trust, wall)
        for key in ("domains", "redirect_domains"):
            for domain in getattr(config.sip, key, ()):
                if not configuration.serves(domain):
                    faults.append(config.fault(f"sip.{key}", f"expected domains of the overlay: {domain} is none"))
    if config.has("sip") and config.sip is not None:
        faults += _phone_certificate_faults(config, config.sip) if config.sip.tls or config.sip.wss else []
        faults += _authorities_faults(config, config.sip)
    users = _read_users(config, faults)
    peering = _read_peering(config, configuration, wall, faults)
    if configuration is None or credential is None or trust is None or faults:
        raise ConfigError(faults)
    return Material(configuration, credential, trust, users, peering)


def _read_peering(
    config: NodeConfig, configuration: OverlayConfiguration | None, wall: float, faults: list[Fault]
) -> Peering | None:
    """The policy of direct peering, for a node with that role."""
    if not config.has("peering") or config.peering.policy is None:
        return None
    from p2psipd.config.peering import read_peering

    try:
        peering = read_peering(config.peering.policy, wall)
    except ConfigError as error:
        faults += error.faults
        return None
    served = config.sip.domains if config.sip is not None else ()
    domains = served or (configuration.domains if configuration is not None else ())
    for domain in domains:
        if domain not in peering.own.domains:
            text = f"expected a certificate for tls that names {domain}, a domain that is served here"
            faults.append(Fault(config.peering.policy, 0, "certificate", text))
    return peering


def _read_users(config: NodeConfig, faults: list[Fault]) -> Users:
    """The users of the file that ``sip.users_file`` names."""
    file = config.sip.users_file if config.has("sip") and config.sip is not None else None
    if file is None:
        return {}
    from p2psipd.proto.sip.user_file import parse_users

    try:
        users, wrong = parse_users(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(config.fault("sip.users_file", f"{file} cannot be read: {error}"))
        return {}
    faults += [Fault(file, fault.line, "", fault.message) for fault in wrong]
    return users


class DocumentRead(NamedTuple):
    """What came of a document: the configuration, or (line, text) of each fault and in one word what they are."""

    configuration: OverlayConfiguration | None
    faults: tuple[tuple[int, str], ...] = ()
    reason: str = ""


ReadDocument = Callable[[bytes, float, str | None], DocumentRead]
"""Reads a document at a time (unix seconds), trusted by its fingerprint if one is given."""


def read_document(document: bytes, wall: float, fingerprint: str | None) -> DocumentRead:
    """Read it here."""
    from p2psipd.proto.reload.overlay_config import ConfigurationError, parse_configuration

    try:
        return DocumentRead(parse_configuration(document, wall=wall, trusted_fingerprint=fingerprint))
    except ConfigurationError as error:
        return DocumentRead(None, error.faults, error.reason)


def read_document_apart(document: bytes, wall: float, fingerprint: str | None) -> DocumentRead:
    """Read it in a child process: lxml, which nothing else needs, costs 5 MB."""
    # What is imported before the child begins it shares, and need not import again.
    import p2psipd.proto.reload.overlay_config  # noqa: F401

    return apart(lambda: read_document(document, wall, fingerprint))


def read_unless_in_force(in_force: OverlayConfiguration) -> ReadDocument:
    """The document that is in force already is not read again, while it has not run out."""
    from p2psipd.proto.reload.overlay_config import trust_fingerprint

    def read(document: bytes, wall: float, fingerprint: str | None) -> DocumentRead:
        same = document == in_force.document and in_force.expiration > wall
        if same and fingerprint in (None, trust_fingerprint(in_force)):
            return DocumentRead(in_force)
        return read_document(document, wall, fingerprint)

    return read


def _read_document(
    config: NodeConfig, wall: float, read: ReadDocument, faults: list[Fault]
) -> OverlayConfiguration | None:
    file = config.overlay.document
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        faults.append(config.fault("overlay.document", f"{file} cannot be read: {error.strerror}"))
        return None
    configuration, found, reason = read(content, wall, config.overlay.fingerprint)
    if reason == "fingerprint":
        faults += [config.fault("overlay.fingerprint", text) for _, text in found]
    else:
        faults += [Fault(file, line, "", text) for line, text in found]
    return configuration


def _read_credential(config: NodeConfig, faults: list[Fault]) -> Credential | None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    from p2psipd.proto.identity.certificate import CertificateError, parse_certificate
    from p2psipd.proto.identity.signing import Credential

    identity = config.identity
    certificate = key = None
    try:
        loaded = load_pem_x509_certificate(Path(identity.certificate).read_bytes())
        certificate = parse_certificate(loaded.public_bytes(Encoding.DER))
    except (OSError, ValueError) as error:
        text = str(error) if isinstance(error, CertificateError) else f"expected a PEM certificate ({error})"
        faults.append(config.fault("identity.certificate", f"{identity.certificate}: {text}"))
    try:
        key = load_pem_private_key(Path(identity.key).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        text = f"expected a PEM private key without a password ({error})"
        faults.append(config.fault("identity.key", f"{identity.key}: {text}"))
    if certificate is None or key is None:
        return None
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        faults.append(config.fault("identity.key", f"{identity.key}: expected a P-256 or RSA key"))
        return None
    try:
        return Credential(certificate, key)
    except CertificateError as error:
        faults.append(config.fault("identity.key", f"{identity.key}: {error}"))
        return None


def _identity_faults(config: NodeConfig, credential: Credential, trust: Trust, wall: float) -> list[Fault]:
    """Whether the overlay takes this certificate, and for these roles."""
    from p2psipd.proto.identity.certificate import CertificateError, Role

    key, file = "identity.certificate", config.identity.certificate
    try:
        role = trust.check(credential.certificate.der, wall).role
    except CertificateError as error:
        return [config.fault(key, f"{file}: {error}")]
    if config.has("peer") and not role.routes:
        return [config.fault(key, f'{file}: expected a peer\'s certificate, because node.roles names "peer"')]
    if config.has("sip") and role is not Role.REGISTRAR:
        return [config.fault(key, f'{file}: expected a registrar\'s, because node.roles names "sip"')]
    return []


def _authorities_faults(config: NodeConfig, sip: SipSection) -> list[Fault]:
    """Whether the files of roots hold certificates."""
    from cryptography.x509 import load_pem_x509_certificates

    faults = []
    for key in ("authorities", "client_authorities"):
        file = getattr(sip, key)
        try:
            if file is not None:
                load_pem_x509_certificates(Path(file).read_bytes())
        except (OSError, ValueError) as error:
            faults.append(config.fault(f"sip.{key}", f"{file}: expected PEM certificates ({error})"))
    return faults


def _phone_certificate_faults(config: NodeConfig, sip: SipSection) -> list[Fault]:
    """Whether the certificate and key for phones fit."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    try:
        chain = load_pem_x509_certificates(Path(sip.certificate or "").read_bytes())
    except (OSError, ValueError) as error:
        return [config.fault("sip.certificate", f"{sip.certificate}: expected PEM certificates ({error})")]
    try:
        key = load_pem_private_key(Path(sip.key or "").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        return [config.fault("sip.key", f"{sip.key}: expected a PEM private key without a password ({error})")]
    if key.public_key() != chain[0].public_key():
        return [config.fault("sip.key", f"{sip.key}: expected the key of {sip.certificate}")]
    return []

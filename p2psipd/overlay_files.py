"""The files of an overlay's operator: its authority, its configuration signer, its signed document.

    DIR/overlay.xml           the signed configuration document, given to every node
    DIR/ca/in-force.xml       the same, as it was signed last, whatever is edited in the other
    DIR/ca/ca.pem ca.key      the certificate authority; whoever has the key can be anybody in the overlay
    DIR/ca/signer.pem .key    signs configuration documents and kinds
    DIR/ca/issued.jsonl       one line for each certificate issued: who, which Node-ID, until when
    DIR/ca/issued/            the certificates themselves, by Node-ID

The functions are what ``p2psip overlay`` and ``p2psip ca`` do, for other programs to call.  Keys are PEM
(PKCS#8), unencrypted, readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from p2psipd.proto.identity.certificate import (
    DAY,
    MAXIMUM_LIFETIME,
    Authority,
    CertificateError,
    NodeCertificate,
    Role,
    check_user_name,
    create_authority,
    generate_private_key,
    parse_certificate,
    role_name,
)
from p2psipd.proto.identity.signing import Credential, PrivateKey
from p2psipd.proto.reload.kinds import domain_of
from p2psipd.proto.reload.overlay_config import (
    EXTENSION_NAMESPACE,
    OverlayConfiguration,
    build_configuration,
    check_size,
    domain_pattern,
    next_sequence,
    parse_configuration,
    sign_configuration,
)

DOCUMENT: Final = "overlay.xml"
_IN_FORCE: Final = Path("ca") / "in-force.xml"
_AUTHORITY_LIFETIME: Final = 3650 * DAY
_DOCUMENT_LIFETIME: Final = 365 * DAY
_NODE_ID_LENGTH: Final = 16


class OverlayFilesError(Exception):
    """The files are not there, are there already, or do not belong together; the message says what to do."""


class Issued(NamedTuple):
    """A certificate that was issued: the Node-ID, the name that was asked for, and the user name it got.

    ``not_after`` is unix seconds; ``certificate`` is DER.
    """

    node_id: bytes
    role: Role
    name: str
    user: str
    not_after: float
    certificate: bytes


class OverlayFiles:
    """An operator's directory, open: configuration, authority and signer, all consistent."""

    def __init__(
        self, directory: Path, configuration: OverlayConfiguration, authority: Authority, signer: Credential
    ) -> None:
        self.directory = directory
        self.configuration = configuration
        self.authority = authority
        self.signer = signer

    @classmethod
    def create(
        cls,
        directory: str | Path,
        overlay_name: str,
        *,
        domains: Iterable[str] = (),
        bootstrap_nodes: Iterable[tuple[str, int]] = (),
        lifetime_seconds: float = _DOCUMENT_LIFETIME,
        wall: float | None = None,
    ) -> OverlayFiles:
        """Make a new overlay: authority, signer, signed document.

        ``domains`` are the SIP domains it serves (its own name if there are none), ``bootstrap_nodes`` IP
        addresses and ports.  ``OverlayFilesError`` if there is an overlay in the directory already,
        ``CertificateError`` for a name that cannot be, ``ConfigurationError`` for a document that cannot
        be.
        """
        now = time.time() if wall is None else wall
        directory = Path(directory)
        if (directory / DOCUMENT).exists() or (directory / "ca").exists():
            raise OverlayFilesError(f"{directory} holds an overlay already; give another --dir")
        authority = create_authority(overlay_name, now, lifetime_seconds=_AUTHORITY_LIFETIME)
        signer = _issue_signer(authority, now)
        served = tuple(dict.fromkeys(domain.lower() for domain in domains)) or (authority.overlay_name,)
        configuration = OverlayConfiguration(
            overlay_name=authority.overlay_name,
            sequence=1,
            expiration=float(int(now + lifetime_seconds)),
            root_certs=(authority.certificate,),
            bootstrap_nodes=tuple(bootstrap_nodes),
            configuration_signers=frozenset({signer.certificate.node_id}),
            kind_signers=frozenset({signer.certificate.node_id}),
            mandatory_extensions=(EXTENSION_NAMESPACE,),
            domain_patterns=tuple(domain_pattern(domain) for domain in served),
        )
        document = build_configuration(configuration, signer)
        configuration = parse_configuration(document, wall=now)
        (directory / "ca" / "issued").mkdir(parents=True)
        (directory / "ca").chmod(0o700)
        _write_certificate(directory / "ca" / "ca.pem", authority.certificate)
        write_key(directory / "ca" / "ca.key", authority.private_key)
        _write_certificate(directory / "ca" / "signer.pem", signer.certificate.der)
        write_key(directory / "ca" / "signer.key", signer.private_key)
        write_atomically(directory / _IN_FORCE, document)
        write_atomically(directory / DOCUMENT, document)
        return cls(directory, configuration, authority, signer)

    @classmethod
    def open(cls, directory: str | Path, wall: float | None = None, *, resign: bool = False) -> OverlayFiles:
        """The overlay in a directory; an expired document is accepted, for it is here that its successor is made.

        With ``resign`` its signatures need not hold: it was edited and is about to be signed.
        ``OverlayFilesError`` if something is missing, ``ConfigurationError`` for a bad document.
        """
        now = time.time() if wall is None else wall
        directory = Path(directory)
        if not (directory / "ca" / "ca.key").exists():
            raise OverlayFilesError(f"no overlay in {directory}: p2psip overlay init NAME --dir {directory} makes one")
        configuration = parse_configuration(_read(directory / _IN_FORCE), wall=now, allow_expired=True)
        try:
            authority_key = load_key(directory / "ca" / "ca.key")
            if not isinstance(authority_key, EllipticCurvePrivateKey):
                raise OverlayFilesError(f"{directory / 'ca' / 'ca.key'}: a P-256 key expected")
            root = _read_certificate(directory / "ca" / "ca.pem")
            authority = Authority(root, authority_key, configuration.overlay_name)
            signer = load_credential(directory / "ca" / "signer.pem", directory / "ca" / "signer.key")
        except CertificateError as error:
            raise OverlayFilesError(f"{directory / 'ca'}: {error.detail}") from None
        return cls(directory, configuration, authority, signer)

    def issue(
        self,
        role: Role,
        name: str,
        out: str | Path,
        *,
        lifetime_seconds: float = MAXIMUM_LIFETIME,
        renew: bool = False,
        wall: float | None = None,
    ) -> Issued:
        """Draw a Node-ID and a key, issue a certificate, write ``out``/node.pem and ``out``/node.key (0600).

        ``name`` is a label for PEER, REGISTRAR and PROVISIONING, whose user name follows from the Node-ID,
        and the AOR of a USER, completed with the overlay's first domain if it has none.  With ``renew`` the
        Node-ID that was issued last for this role and name stays, and so does the key in ``out`` if it is
        there.
        """
        now = time.time() if wall is None else wall
        out = Path(out)
        name = self._checked_name(role, name)
        node_id = self._known_node_id(role, name) if renew else draw_node_id()
        user = name if role is Role.USER else role_name(role, node_id, self.configuration.overlay_name)
        key_path = out / "node.key"
        if not renew and (key_path.exists() or (out / "node.pem").exists()):
            raise OverlayFilesError(f"{out} holds a node's certificate already; --renew issues it anew")
        key = load_key(key_path) if renew and key_path.exists() else generate_private_key()
        der = self.authority.issue(key.public_key(), node_id, user, now, lifetime_seconds)
        out.mkdir(parents=True, exist_ok=True)
        if not key_path.exists():
            write_key(key_path, key)
        _write_certificate(out / "node.pem", der)
        issued = Issued(node_id, role, name, user, parse_certificate(der).not_after, der)
        self._note(issued)
        return issued

    def update(self, configuration: OverlayConfiguration, wall: float | None = None) -> OverlayConfiguration:
        """Sign ``configuration`` as the next document and write it; the new configuration.

        The sequence number is set here.  ``OverlayFilesError`` if the document in force has elements that
        would be lost: such a one is edited by hand and signed with ``sign``.
        """
        now = time.time() if wall is None else wall
        path = self.directory / DOCUMENT
        if self.configuration.foreign:
            names = ", ".join(self.configuration.foreign)
            raise OverlayFilesError(f"{path} holds {names}, which would be lost; edit it, then p2psip overlay sign")
        if path.exists() and _read(path) != self.configuration.document:
            raise OverlayFilesError(f"{path} was edited, which would be lost; p2psip overlay sign {path} comes first")
        changed = attrs.evolve(configuration, sequence=next_sequence(self.configuration.sequence))
        return self._adopt(build_configuration(changed, self.signer), now)

    def sign(self, document: bytes, wall: float | None = None) -> OverlayConfiguration:
        """Sign a document that was edited by hand, and write it as the overlay's; the configuration in it.

        Its sequence number must be newer than that of the document in force (it may be that very file,
        edited).
        """
        now = time.time() if wall is None else wall
        return self._adopt(sign_configuration(document, self.signer), now)

    def _adopt(self, document: bytes, wall: float) -> OverlayConfiguration:
        configuration = parse_configuration(document, wall=wall, previous=self.configuration)
        check_size(document, configuration)
        write_atomically(self.directory / _IN_FORCE, document)
        write_atomically(self.directory / DOCUMENT, document)
        self.configuration = configuration
        return configuration

    def issued(self) -> list[Issued]:
        """The certificates issued here, the oldest first; only the last one of each Node-ID."""
        return list({entry.node_id: entry for entry in _journal(self.directory)}.values())

    def registrars(self, wall: float | None = None) -> list[NodeCertificate]:
        """The certificates of all registrars that are valid now and not revoked."""
        return issued_registrars(self.directory, self.configuration, wall)

    def _checked_name(self, role: Role, name: str) -> str:
        if role is not Role.USER:
            if not name or len(name) > 100 or not name.isprintable():
                raise CertificateError("form", f"{name[:80]!r} is not a name: 1 to 100 printable characters expected")
            return name
        return check_aor(name, self.configuration)

    def _known_node_id(self, role: Role, name: str) -> bytes:
        found = [entry.node_id for entry in _journal(self.directory) if (entry.role, entry.name) == (role, name)]
        if not found:
            raise OverlayFilesError(f"no certificate was issued to {role.value} {name}, so none can be renewed")
        if found[-1] in self.configuration.bad_nodes:
            raise OverlayFilesError(f"Node-ID {found[-1].hex()} is revoked; issue a new one without --renew")
        return found[-1]

    def _note(self, issued: Issued) -> None:
        _write_certificate(_certificate_path(self.directory, issued.node_id), issued.certificate)
        entry = {
            "node_id": issued.node_id.hex(),
            "role": issued.role.value,
            "name": issued.name,
            "user": issued.user,
            "not_after": issued.not_after,
        }
        with (self.directory / "ca" / "issued.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")


def issued_registrars(
    directory: str | Path, configuration: OverlayConfiguration, wall: float | None = None
) -> list[NodeCertificate]:
    """The certificates of all registrars that were issued in an operator's directory, are valid now and not revoked.

    Needs no key.  ``OverlayFilesError`` for a journal that cannot be read.
    """
    now = time.time() if wall is None else wall
    latest = {entry.node_id: entry for entry in _journal(Path(directory))}
    return [
        parse_certificate(entry.certificate)
        for entry in latest.values()
        if entry.role is Role.REGISTRAR and entry.not_after > now and entry.node_id not in configuration.bad_nodes
    ]


def check_aor(name: str, configuration: OverlayConfiguration) -> str:
    """``name`` as an AOR that the overlay serves: without "sip:", completed with its first domain, the domain in lower
    case.

    ``CertificateError`` for a name that cannot be or a domain that is not served.
    """
    scheme, colon, rest = name.partition(":")
    name = rest if colon and scheme.lower() in ("sip", "sips") else name
    if ":" in name:
        raise CertificateError("form", f"{name[:80]!r} is not an address: a user's name has no colon")
    aor = name if "@" in name else f"{name}@{configuration.domains[0]}"
    if not configuration.serves(domain_of(aor)):
        raise CertificateError("form", f"the domain of {aor} is not served by {configuration.overlay_name}")
    local, _, domain = check_user_name(aor).rpartition("@")
    return f"{local}@{domain.lower()}"


def _certificate_path(directory: Path, node_id: bytes) -> Path:
    return directory / "ca" / "issued" / f"{node_id.hex()}.pem"


def _journal(directory: Path) -> Iterator[Issued]:
    path = directory / "ca" / "issued.jsonl"
    if not path.exists():
        return
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            node_id = bytes.fromhex(entry["node_id"])
            der = _read_certificate(_certificate_path(directory, node_id))
            role = Role(entry["role"])
            yield Issued(node_id, role, entry["name"], entry["user"], float(entry["not_after"]), der)
        except (ValueError, KeyError, TypeError) as error:
            raise OverlayFilesError(f"{path}:{number}: not an entry of this journal: {error}") from None


def _issue_signer(authority: Authority, wall: float) -> Credential:
    key, node_id = generate_private_key(), draw_node_id()
    user = role_name(Role.SIGNER, node_id, authority.overlay_name)
    # As long as the authority: the signature must be verifiable for as long as the document is.
    der = authority.issue(key.public_key(), node_id, user, wall, _AUTHORITY_LIFETIME)
    return Credential(parse_certificate(der), key)


def draw_node_id() -> bytes:
    """A Node-ID that nobody could foresee (RFC 6940 section 11.3), neither the invalid nor the wildcard
    one.
    """
    while True:
        node_id = secrets.token_bytes(_NODE_ID_LENGTH)
        if node_id not in (bytes(_NODE_ID_LENGTH), b"\xff" * _NODE_ID_LENGTH):
            return node_id


def load_credential(certificate: str | Path, key: str | Path) -> Credential:
    """A node's certificate and private key from PEM files.

    ``OverlayFilesError`` if a file is not readable as such, ``CertificateError`` if they are not a node's
    or do not belong together.
    """
    return Credential(load_certificate(certificate), load_key(key))


def load_certificate(path: str | Path) -> NodeCertificate:
    """The node certificate in a PEM file, its form checked; errors as from ``load_credential``."""
    return parse_certificate(_read_certificate(Path(path)))


def load_key(path: str | Path) -> PrivateKey:
    """A P-256 or RSA private key from an unencrypted PEM file; ``OverlayFilesError`` otherwise."""
    try:
        key = load_pem_private_key(_read(Path(path)), None)
    except (ValueError, TypeError) as error:
        raise OverlayFilesError(f"{path}: not an unencrypted private key in PEM: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        raise OverlayFilesError(f"{path}: a P-256 or RSA key expected")
    return key


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a private key as PEM, readable by its owner alone from the first moment; it must not exist yet.
    """
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: whoever reads it sees the old or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _write_certificate(path: Path, der: bytes) -> None:
    write_atomically(path, x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))


def _read_certificate(path: Path) -> bytes:
    """The DER of the first certificate in a PEM file."""
    try:
        return x509.load_pem_x509_certificate(_read(path)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise OverlayFilesError(f"{path}: not a certificate in PEM: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OverlayFilesError(f"{path}: {error.strerror}") from None

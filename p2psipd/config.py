"""The configuration file: one TOML file, checked whole before anything starts; every default stands here,
once.

:func:`load` reads and checks the file and reports all its faults at once, each as ``file:line: key:
expected ...``. :func:`load_material` then reads what the file names (overlay document, certificate, key)
and checks that these belong together. Both raise :class:`ConfigError`, which a command answers with exit
code :data:`EXIT_CONFIG`.

Neither ``tomllib`` nor pydantic knows line numbers, so :mod:`p2psipd.toml_lines` maps each key path to its
line.
"""

from __future__ import annotations

import difflib
import os
import time
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from p2psipd.toml_lines import KeyPath, key_lines

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import Trust
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration

#: The exit code of a process whose configuration is at fault (sysexits.h EX_CONFIG).
EXIT_CONFIG = 78

#: The environment variable that does the same as ``node.keylog``.
KEYLOG_VARIABLE = "P2PSIPD_KEYLOG"

Role = Literal["peer", "sip"]
LogLevel = Literal["debug", "info", "warn", "error"]


class Fault(NamedTuple):
    """One thing wrong: where (``line`` is 0 when the key is nowhere in the file) and what was expected."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(Exception):
    """The configuration is at fault; the message lists every fault, one a line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: (fault.file, fault.line))
        super().__init__("\n".join(str(fault) for fault in self.faults))


class Address(NamedTuple):
    """A numeric IP address or host name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``"192.0.2.1:6084"``, ``"[2001:db8::1]:6084"`` or ``"host.example:6084"`` as an :class:`Address`.

    Raises ValueError when it is none of these.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError('no port: expected "HOST:PORT"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        ip_address(host)
    elif ":" in host or not host or any(character.isspace() for character in host):
        raise ValueError('expected "HOST:PORT", an IPv6 address in brackets')
    return Address(host, int(port))


def _to_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    try:
        if isinstance(value, str):
            return parse_address(value)
    except ValueError:
        # The one message below says what is expected, for a wrong type and a wrong text alike.
        value = str(value)
    raise PydanticCustomError("expected", 'expected an address such as "192.0.2.1:6084" or "[2001:db8::1]:6084"')


def _to_listener(address: Address) -> Address:
    try:
        ip_address(address.host)
    except ValueError:
        raise PydanticCustomError("expected", "expected a numeric IP address to listen on, with a port") from None
    return address


def _to_optional_listener(value: object) -> Address | None:
    return None if value == "" else _to_listener(_to_address(value))


def _to_dialable(address: Address) -> Address:
    if address.port == 0 or address.host in ("0.0.0.0", "::"):
        raise PydanticCustomError("expected", "expected an address that others can dial, with a port")
    return address


def _to_domain(name: str) -> str:
    name = name.rstrip(".").lower()
    labels = name.split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and label.isascii()
        for label in labels
    ):
        raise PydanticCustomError("expected", 'expected a domain name such as "overlay.example"')
    return name


def _to_fingerprint(text: str) -> str:
    digest = text.lower().removeprefix("sha256:").replace(":", "")
    if len(digest) != 64 or any(character not in "0123456789abcdef" for character in digest):
        raise PydanticCustomError("expected", 'expected "sha256:" and 64 hexadecimal digits')
    return f"sha256:{digest}"


AnyAddress = Annotated[Address, BeforeValidator(_to_address)]
Listener = Annotated[Address, BeforeValidator(_to_address), AfterValidator(_to_listener)]
Dialable = Annotated[Address, BeforeValidator(_to_address), AfterValidator(_to_dialable)]
OptionalListener = Annotated[Address | None, BeforeValidator(_to_optional_listener)]
Domain = Annotated[str, AfterValidator(_to_domain)]
Fingerprint = Annotated[str, AfterValidator(_to_fingerprint)]
#: A file name; relative ones are resolved against the directory of the configuration file by :func:`load`.
FileName = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A table of the file: unknown keys are faults, values are not coerced, and nothing changes after the
    check.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class OverlaySection(Section):
    """``[overlay]``: which overlay this is."""

    document: FileName
    fingerprint: Fingerprint | None = None


class IdentitySection(Section):
    """``[identity]``: who this node is."""

    certificate: FileName
    key: FileName


class NodeSection(Section):
    """``[node]``: what this node does and where it keeps its things."""

    roles: tuple[Role, ...] = Field(min_length=1, strict=False)
    state: FileName = "state.sqlite"
    control: FileName = "control.sock"
    log_level: LogLevel = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: str = ""
    drain_seconds: Seconds = 10.0
    keylog: str = ""
    metrics: OptionalListener = None


class PeerSection(Section):
    """``[peer]``: the overlay side, with its limits."""

    listen: Listener
    advertise: tuple[Dialable, ...] = Field(default=(), strict=False)
    first: bool = False
    bootstrap: tuple[Dialable, ...] = Field(default=(), strict=False)
    max_links: Count = 1000
    max_links_per_address: Count = 64
    max_handshakes: Count = 128
    max_handshakes_per_address: Count = 16
    handshake_seconds: Seconds = 5.0
    connect_seconds: Seconds = 5.0
    max_write_buffer_bytes: Annotated[int, Field(ge=65536)] = 4_194_304
    remembered_peers: Annotated[int, Field(ge=0, le=10_000)] = 64

    @property
    def advertised(self) -> tuple[Address, ...]:
        """The addresses that other nodes are told: ``advertise``, else ``listen``."""
        return self.advertise or (self.listen,)


class SipSection(Section):
    """``[sip]``: the phones' side."""

    udp: tuple[Listener, ...] = Field(default=(), strict=False)
    tcp: tuple[Listener, ...] = Field(default=(), strict=False)
    tls: tuple[Listener, ...] = Field(default=(), strict=False)
    certificate: FileName | None = None
    key: FileName | None = None
    domains: tuple[Domain, ...] = Field(default=(), strict=False)
    node_listen: Listener | None = None
    node_advertise: Dialable | None = None
    public_host: str | None = None
    min_expires_seconds: Count = 60
    max_expires_seconds: Count = 3600
    default_expires_seconds: Count = 3600
    max_contacts: Count = 10
    max_connections: Count = 2000
    max_connections_per_address: Count = 64
    ring_seconds: Count = 180


class NodeConfig(Section):
    """The whole file, checked. File names are absolute after :func:`load`."""

    _file: str = PrivateAttr("")
    _lines: dict[KeyPath, int] = PrivateAttr(default_factory=dict)

    overlay: OverlaySection
    identity: IdentitySection
    node: NodeSection
    peer: PeerSection | None = None
    sip: SipSection | None = None

    def fault(self, key: str, message: str) -> Fault:
        """A fault of a dotted key of this file, with its line."""
        return Fault(self._file, _line(self._lines, tuple(key.split("."))), key, message)

    def has(self, role: Role) -> bool:
        """True when this node plays ``role``."""
        return role in self.node.roles


#: The port where other nodes connect for SIP when ``sip.node_listen`` is left out.
DEFAULT_NODE_SIP_PORT = 5062


def load(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> NodeConfig:
    """The checked configuration of the file at ``path``.

    ``environ`` (default: nothing) may hold :data:`KEYLOG_VARIABLE`. Raises :class:`ConfigError` with every
    fault.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise ConfigError([Fault(file, 0, "", f"cannot be read: {error.strerror}")]) from None
    return parse(content, file, environ)


def parse(content: bytes, file: str, environ: Mapping[str, str] | None = None) -> NodeConfig:
    """Check ``content``, the octets of the configuration file named ``file``; as :func:`load`."""
    try:
        text = content.decode("utf-8")
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Fault(file, line, "", "expected UTF-8 text")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_fault(file, text, error)]) from None
    lines = key_lines(text)
    try:
        config = NodeConfig.model_validate(values)
    except ValidationError as error:
        faults = [_fault(file, lines, detail) for detail in error.errors(include_url=False)]
        raise ConfigError(faults) from None
    config._file, config._lines = file, lines
    config = _resolve(config, Path(file).absolute().parent, environ or {})
    faults = [config.fault(key, message) for key, message in _cross_faults(config)]
    if faults:
        raise ConfigError(faults)
    return config


def _syntax_fault(file: str, text: str, error: tomllib.TOMLDecodeError) -> Fault:
    """The line of a syntax error: tomllib tells it only inside its message."""
    message = str(error)
    what, _, place = message.rpartition(" (at ")
    line = 0
    if place.startswith("line "):
        line = int(place[5:].split(",")[0])
    elif place:
        line = text.count("\n") + 1
    return Fault(file, line, "", f"expected TOML: {(what or message)[:1].lower()}{(what or message)[1:]}")


def _resolve(config: NodeConfig, directory: Path, environ: Mapping[str, str]) -> NodeConfig:
    """File names made absolute, and the defaults that depend on other keys filled in."""

    def absolute(section: BaseModel | None, *names: str) -> Any:
        if section is None:
            return None
        changes = {name: str(directory / value) for name in names if (value := getattr(section, name))}
        return section.model_copy(update=changes)

    node = absolute(config.node, "state", "control", "log_file", "keylog")
    if environ.get(KEYLOG_VARIABLE):
        node = node.model_copy(update={"keylog": str(Path(environ[KEYLOG_VARIABLE]).absolute())})
    sip = absolute(config.sip, "certificate", "key")
    if sip is not None and sip.node_listen is None and config.peer is not None:
        sip = sip.model_copy(update={"node_listen": Address(config.peer.listen.host, DEFAULT_NODE_SIP_PORT)})
    return config.model_copy(
        update={
            "overlay": absolute(config.overlay, "document"),
            "identity": absolute(config.identity, "certificate", "key"),
            "node": node,
            "sip": sip,
        }
    )


def _cross_faults(config: NodeConfig) -> list[tuple[str, str]]:
    """Faults that lie between keys: (dotted key, message)."""
    faults: list[tuple[str, str]] = []
    peer, sip = config.peer, config.sip
    if peer is None:
        faults.append(("peer", "expected this table"))
    elif not peer.advertise and peer.listen.host in ("0.0.0.0", "::"):
        faults.append(("peer.listen", "expected peer.advertise beside it: nobody can dial this address"))
    if "sip" in config.node.roles and sip is None:
        faults.append(("sip", 'expected this table, because node.roles names "sip"'))
    if sip is not None and "sip" in config.node.roles:
        faults += _sip_faults(sip)
    names = [
        ("overlay.document", config.overlay.document),
        ("identity.certificate", config.identity.certificate),
    ]
    names.append(("identity.key", config.identity.key))
    if sip is not None and sip.tls:
        names += [(f"sip.{key}", value) for key in ("certificate", "key") if (value := getattr(sip, key))]
    for key, name in names:
        if not os.path.isfile(name):
            faults.append((key, f"expected a file, there is none at {name}"))
        elif not os.access(name, os.R_OK):
            faults.append((key, f"expected a readable file: {name}"))
    for key, name in (("node.state", config.node.state), ("node.control", config.node.control)):
        if not os.path.isdir(os.path.dirname(name)):
            faults.append((key, f"expected a directory at {os.path.dirname(name)}"))
    if len(os.fsencode(config.node.control)) > 107:
        faults.append(("node.control", "expected a path of at most 107 bytes, the limit of Unix sockets"))
    return faults


def _sip_faults(sip: SipSection) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    if not (sip.udp or sip.tcp or sip.tls):
        faults.append(("sip", "expected an address in at least one of udp, tcp and tls"))
    if sip.tls and not (sip.certificate and sip.key):
        faults.append(("sip.tls", "expected sip.certificate and sip.key beside it"))
    for key, listeners in (("sip.udp", sip.udp), ("sip.tcp", (*sip.tcp, *sip.tls))):
        if len(set(listeners)) < len(listeners):
            faults.append((key, "expected each address and port once"))
    node = sip.node_listen
    if node is not None and sip.node_advertise is None and node.host in ("0.0.0.0", "::"):
        faults.append(("sip.node_listen", "expected sip.node_advertise beside it: nobody can dial this address"))
    if not sip.min_expires_seconds <= sip.default_expires_seconds <= sip.max_expires_seconds:
        faults.append(("sip.default_expires_seconds", "expected a time between the shortest and the longest"))
    return faults


# ---- what the file names ----------------------------------------------------------------------------


class Material(NamedTuple):
    """What the files that the configuration names hold, checked that it belongs together."""

    configuration: OverlayConfiguration
    credential: Credential
    trust: Trust


def load_material(config: NodeConfig, wall: float | None = None) -> Material:
    """Read and check the overlay's document, this node's certificate and key, and the phones' certificate.

    ``wall`` is the time at which they must be valid, by default now.  Raises :class:`ConfigError` with every
    fault.
    """
    wall = time.time() if wall is None else wall
    faults: list[Fault] = []
    configuration = _read_document(config, wall, faults)
    credential = _read_credential(config, faults)
    trust = configuration.trust() if configuration is not None else None
    if configuration is not None and trust is not None and credential is not None:
        faults += _identity_faults(config, credential, trust, wall)
        for domain in config.sip.domains if config.sip is not None else ():
            if not configuration.serves(domain):
                faults.append(config.fault("sip.domains", f"expected domains of the overlay: {domain} is none"))
    if config.has("sip") and config.sip is not None and config.sip.tls:
        faults += _phone_certificate_faults(config, config.sip)
    if configuration is None or credential is None or trust is None or faults:
        raise ConfigError(faults)
    return Material(configuration, credential, trust)


def _read_document(config: NodeConfig, wall: float, faults: list[Fault]) -> OverlayConfiguration | None:
    from p2psipd.proto.reload.overlay_config import ConfigurationError, parse_configuration

    file = config.overlay.document
    try:
        content = Path(file).read_bytes()
        return parse_configuration(content, wall=wall, trusted_fingerprint=config.overlay.fingerprint)
    except OSError as error:
        faults.append(config.fault("overlay.document", f"{file} cannot be read: {error.strerror}"))
    except ConfigurationError as error:
        if error.reason == "fingerprint":
            faults += [config.fault("overlay.fingerprint", text) for _, text in error.faults]
        else:
            faults += [Fault(file, line, "", text) for line, text in error.faults]
    return None


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


# ---- faults of single keys -----------------------------------------------------------------------


_EXPECTED = {
    "bool_type": "expected true or false",
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a string",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "model_type": "expected a table",
    "string_too_short": "expected a string that is not empty",
    "too_short": "expected at least one element",
}


def _fault(file: str, lines: Mapping[KeyPath, int], detail: ErrorDetails) -> Fault:
    """pydantic's error as a :class:`Fault`, in words that say what was expected."""
    path = _known_part(lines, detail)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = "unknown key" + _suggestion(str(path[-1]), _siblings(path[:-1]))
    elif kind == "missing":
        message = "missing; expected this table" if len(path) == 1 else "missing; expected this key"
    elif kind in ("greater_than", "greater_than_equal"):
        bound = context.get("gt", context.get("ge"))
        message = f"expected a number {'above' if kind == 'greater_than' else 'of at least'} {bound}"
    elif kind in ("less_than", "less_than_equal"):
        message = f"expected a number of at most {context.get('le', context.get('lt'))}"
    elif kind == "literal_error":
        message = f"expected {context['expected']}".replace("'", '"')
        message += _suggestion(str(detail["input"]), _literals(path))
    else:
        message = _EXPECTED.get(kind, detail["msg"])
    return Fault(file, _line(lines, path), _dotted(path), message)


def _known_part(lines: Mapping[KeyPath, int], detail: ErrorDetails) -> KeyPath:
    """The error's path without the names pydantic adds for the branches of a union."""
    path = tuple(detail["loc"])
    if detail["type"] == "missing":
        return path
    while len(path) > 1 and path not in lines:
        path = path[:-1]
    return path


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of ``path``, else of the nearest table around it, else 0."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 0


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _section_at(path: KeyPath) -> type[BaseModel] | None:
    section: type[BaseModel] | None = NodeConfig
    for part in path:
        field = section.model_fields.get(str(part)) if section is not None else None
        candidates = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return section


def _siblings(path: KeyPath) -> list[str]:
    section = _section_at(path)
    return list(section.model_fields) if section is not None else []


def _literals(path: KeyPath) -> list[str]:
    """The words allowed at ``path``."""
    names = [part for part in path if isinstance(part, str)]
    section = _section_at(tuple(names[:-1]))
    field = section.model_fields.get(names[-1]) if section is not None else None
    pending: list[Any] = [field.annotation if field is not None else None]
    words: list[str] = []
    while pending:
        annotation = pending.pop()
        words += [annotation] if isinstance(annotation, str) else []
        pending += get_args(annotation)
    return words


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'. Did you mean "{near[0]}"?' if near else ""

"""The configuration as a checked model: every section, every key, every default once."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from p2psipd.config.faults import Fault, line_of
from p2psipd.toml_lines import KeyPath

Role = Literal["peer", "sip", "echo", "peering"]
LogLevel = Literal["debug", "info", "warn", "error"]


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


def _to_name_server(value: object) -> Address:
    """Numeric, because asking for its name is what it is needed for; the port may be left out."""
    if isinstance(value, str) and (value.count(":") != 1 and "]" not in value):
        value = f"[{value}]:53" if ":" in value else f"{value}:53"
    return _to_listener(_to_dialable(_to_address(value)))


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
Dialled = Annotated[str, Field(pattern=r"^[0-9*#]{1,32}$")]
NameServer = Annotated[Address, BeforeValidator(_to_name_server)]
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


DigestToken = Literal["MD5", "SHA-256", "SHA-512-256"]


class SipSection(Section):
    """``[sip]``: the phones' side."""

    udp: tuple[Listener, ...] = Field(default=(), strict=False)
    tcp: tuple[Listener, ...] = Field(default=(), strict=False)
    tls: tuple[Listener, ...] = Field(default=(), strict=False)
    wss: tuple[Listener, ...] = Field(default=(), strict=False)
    ws: tuple[Listener, ...] = Field(default=(), strict=False)
    web_origins: tuple[str, ...] = Field(default=(), strict=False)
    certificate: FileName | None = None
    key: FileName | None = None
    authorities: FileName | None = None
    client_authorities: FileName | None = None
    domains: tuple[Domain, ...] = Field(default=(), strict=False)
    node_listen: Listener | None = None
    node_advertise: Dialable | None = None
    public_host: str | None = None
    min_expires_seconds: Count = 60
    max_expires_seconds: Count = 3600
    default_expires_seconds: Count = 3600
    max_contacts: Count = 10
    flow_timer_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    service_route: tuple[str, ...] = Field(default=(), max_length=10, strict=False)
    digest_algorithms: tuple[DigestToken, ...] = Field(
        default=("MD5", "SHA-256", "SHA-512-256"), min_length=1, strict=False
    )
    users_file: FileName | None = None
    users_first: Literal["file", "overlay"] = "file"
    max_connections: Count = 2000
    max_connections_per_address: Count = 64
    ring_seconds: Count = 180
    call_records: str = ""
    call_records_bytes: Annotated[int, Field(ge=0)] = 100_000_000
    turn_seconds: Count = 30
    follow_redirects: bool = True
    redirect_domains: tuple[Domain, ...] = Field(default=(), strict=False)
    redirect_authenticates: bool = True
    emergency_numbers: tuple[Dialled, ...] = Field(default=("112", "911"), strict=False)


class DnsSection(Section):
    """``[dns]``: whom the node asks for other domains."""

    servers: tuple[NameServer, ...] = Field(default=(), max_length=8, strict=False)
    timeout_seconds: Annotated[float, Field(ge=0.1, le=30)] = 5.0
    dnssec: tuple[Domain, ...] = Field(default=(), strict=False)


class EchoSection(Section):
    """``[echo]``: the user that gives back what it hears."""

    user: Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")] = "echo"
    host: str = ""
    ports: Annotated[tuple[int, int], Field(strict=False)] = (30_000, 30_999)
    max_calls: Annotated[int, Field(ge=1, le=1000)] = 20
    max_seconds: Seconds = 120.0


class LimitsSection(Section):
    """``[limits]``: what phones and strangers may do."""

    messages_per_source: Annotated[int, Field(ge=0, le=1_000_000)] = 20_000
    requests_per_user: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    calls_per_user: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    calls_per_peer: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    calls: Annotated[int, Field(ge=0, le=1_000_000)] = 50_000
    points: Count = 2000
    points_forgiven: Annotated[float, Field(ge=0, le=1_000_000)] = 20.0
    shut_seconds: Seconds = 30.0
    scanners: tuple[str, ...] = Field(
        default=("friendly-scanner", "sipvicious", "sipcli", "sip-scan", "sundayddr", "pplsip", "vaxsipuseragent"),
        strict=False,
    )


class PeeringSection(Section):
    """``[peering]``: this node is an edge of its domains (the policy is a file of its own)."""

    listen: tuple[Listener, ...] = Field(default=(), strict=False)
    policy: FileName | None = None
    max_connections: Count = 2000
    max_connections_per_address: Count = 64


class NodeConfig(Section):
    """The whole file, checked. File names are absolute after :func:`load`."""

    _file: str = PrivateAttr("")
    _lines: dict[KeyPath, int] = PrivateAttr(default_factory=dict)

    overlay: OverlaySection
    identity: IdentitySection
    node: NodeSection
    peer: PeerSection | None = None
    sip: SipSection | None = None
    echo: EchoSection = EchoSection()
    peering: PeeringSection = PeeringSection()
    limits: LimitsSection = LimitsSection()
    dns: DnsSection = DnsSection()

    def fault(self, key: str, message: str) -> Fault:
        """A fault of a dotted key of this file, with its line."""
        return Fault(self._file, line_of(self._lines, tuple(key.split("."))), key, message)

    def has(self, role: Role) -> bool:
        """True when this node plays ``role``."""
        return role in self.node.roles

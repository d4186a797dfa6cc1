"""The configuration as checked tables: every section, every key, every default once.

What an annotation may say is in :mod:`p2psipd.config.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Literal, NamedTuple

from p2psipd.config.faults import Fault, line_of
from p2psipd.config.tables import Bounds, Expected, Length, Matches, Read, Then
from p2psipd.proto.sip.limits import SCANNERS
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
    raise Expected('expected an address such as "192.0.2.1:6084" or "[2001:db8::1]:6084"')


def _to_listener(address: Address) -> Address:
    try:
        ip_address(address.host)
    except ValueError:
        raise Expected("expected a numeric IP address to listen on, with a port") from None
    return address


def _to_optional_listener(value: object) -> Address | None:
    return None if value == "" else _to_listener(_to_address(value))


def _to_dialable(address: Address) -> Address:
    if address.port == 0 or address.host in ("0.0.0.0", "::"):
        raise Expected("expected an address that others can dial, with a port")
    return address


def _to_name_server(value: object) -> Address:
    """Numeric, because asking for its name is what it is needed for; the port may be left out."""
    if isinstance(value, str) and (value.count(":") != 1 and "]" not in value):
        value = f"[{value}]:53" if ":" in value else f"{value}:53"
    return _to_listener(_to_dialable(_to_address(value)))


def _to_ip_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise Expected('expected a numeric IP address such as "192.0.2.53"') from None


def _to_domain(name: str) -> str:
    name = name.rstrip(".").lower()
    labels = name.split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() and label.isascii()
        for label in labels
    ):
        raise Expected('expected a domain name such as "overlay.example"')
    return name


def _to_fingerprint(text: str) -> str:
    digest = text.lower().removeprefix("sha256:").replace(":", "")
    if len(digest) != 64 or any(character not in "0123456789abcdef" for character in digest):
        raise Expected('expected "sha256:" and 64 hexadecimal digits')
    return f"sha256:{digest}"


def _to_host(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return _to_domain(text)


AnyAddress = Annotated[Address, Read(_to_address)]
Listener = Annotated[Address, Read(_to_address), Then(_to_listener)]
Dialable = Annotated[Address, Read(_to_address), Then(_to_dialable)]
Dialled = Annotated[str, Matches(r"[0-9*#]{1,32}", "expected a number as it is dialled")]
IpAddress = Annotated[str, Then(_to_ip_address)]
OptionalIpAddress = Annotated[str, Then(lambda text: text and _to_ip_address(text))]
NameServer = Annotated[Address, Read(_to_name_server)]
OptionalListener = Annotated[Address | None, Read(_to_optional_listener)]
Domain = Annotated[str, Then(_to_domain)]
Fingerprint = Annotated[str, Then(_to_fingerprint)]
#: A file name; relative ones are resolved against the directory of the configuration file by :func:`load`.
FileName = Annotated[str, Matches(r"[^\0]+", "expected the name of a file")]
OptionalFileName = Annotated[str, Matches(r"[^\0]*", 'expected the name of a file, or "" for none')]
Host = Annotated[str, Then(_to_host)]
Origin = Annotated[str, Matches(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", 'expected an origin such as "https://phone.example"')]
Seconds = Annotated[float, Bounds(above=0, most=86400)]
Count = Annotated[int, Bounds(1, 1_000_000)]


@dataclass(frozen=True, kw_only=True)
class OverlaySection:
    """``[overlay]``: which overlay this is."""

    document: FileName
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, kw_only=True)
class IdentitySection:
    """``[identity]``: who this node is."""

    certificate: FileName
    key: FileName


@dataclass(frozen=True, kw_only=True)
class NodeSection:
    """``[node]``: what this node does and where it keeps its things."""

    roles: Annotated[tuple[Role, ...], Length(1)]
    state: FileName = "state.sqlite"
    control: FileName = "control.sock"
    log_level: LogLevel = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: OptionalFileName = ""
    drain_seconds: Seconds = 10.0
    keylog: OptionalFileName = ""
    metrics: OptionalListener = None


@dataclass(frozen=True, kw_only=True)
class PeerSection:
    """``[peer]``: the overlay side, with its limits."""

    listen: Listener
    advertise: tuple[Dialable, ...] = ()
    first: bool = False
    bootstrap: tuple[Dialable, ...] = ()
    max_links: Count = 1000
    max_links_per_address: Count = 64
    max_handshakes: Count = 128
    max_handshakes_per_address: Count = 16
    handshake_seconds: Seconds = 5.0
    connect_seconds: Seconds = 5.0
    max_write_buffer_bytes: Annotated[int, Bounds(65536)] = 4_194_304
    remembered_peers: Annotated[int, Bounds(0, 10_000)] = 64

    @property
    def advertised(self) -> tuple[Address, ...]:
        """The addresses that other nodes are told: ``advertise``, else ``listen``."""
        return self.advertise or (self.listen,)


DigestToken = Literal["MD5", "SHA-256", "SHA-512-256"]


@dataclass(frozen=True, kw_only=True)
class SipSection:
    """``[sip]``: the phones' side."""

    udp: tuple[Listener, ...] = ()
    tcp: tuple[Listener, ...] = ()
    tls: tuple[Listener, ...] = ()
    wss: tuple[Listener, ...] = ()
    ws: tuple[Listener, ...] = ()
    web_origins: tuple[Origin, ...] = ()
    certificate: FileName | None = None
    key: FileName | None = None
    authorities: FileName | None = None
    client_authorities: FileName | None = None
    domains: tuple[Domain, ...] = ()
    node_listen: Listener | None = None
    node_advertise: Dialable | None = None
    public_host: Host | None = None
    min_expires_seconds: Count = 60
    max_expires_seconds: Count = 3600
    default_expires_seconds: Count = 3600
    max_contacts: Count = 10
    flow_timer_seconds: Annotated[int, Bounds(0, 3600)] = 120
    keep_alive_seconds: Annotated[int, Bounds(0, 3600)] = 25
    service_route: Annotated[tuple[str, ...], Length(0, 10)] = ()
    digest_algorithms: Annotated[tuple[DigestToken, ...], Length(1)] = ("MD5", "SHA-256", "SHA-512-256")
    users_file: FileName | None = None
    users_first: Literal["file", "overlay"] = "file"
    max_connections: Count = 2000
    max_connections_per_address: Count = 64
    ring_seconds: Count = 180
    call_records: OptionalFileName = ""
    call_records_bytes: Annotated[int, Bounds(0)] = 100_000_000
    turn_seconds: Count = 30
    follow_redirects: bool = True
    redirect_domains: tuple[Domain, ...] = ()
    redirect_authenticates: bool = True
    emergency_numbers: tuple[Dialled, ...] = ("112", "911")


@dataclass(frozen=True, kw_only=True)
class DnsSection:
    """``[dns]``: whom the node asks for other domains."""

    servers: Annotated[tuple[NameServer, ...], Length(0, 8)] = ()
    timeout_seconds: Annotated[float, Bounds(0.1, 30)] = 5.0
    dnssec: tuple[Domain, ...] = ()
    validating: tuple[IpAddress, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EchoSection:
    """``[echo]``: the user that gives back what it hears."""

    user: Annotated[str, Matches("[a-z0-9._-]+", "expected a name of a-z, 0-9, dot, hyphen and underscore")] = "echo"
    host: OptionalIpAddress = ""
    ports: tuple[int, int] = (30_000, 30_999)
    max_calls: Annotated[int, Bounds(1, 1000)] = 20
    max_seconds: Seconds = 120.0


@dataclass(frozen=True, kw_only=True)
class LimitsSection:
    """``[limits]``: what phones and strangers may do."""

    messages_per_source: Annotated[int, Bounds(0, 1_000_000)] = 20_000
    requests_per_user: Annotated[int, Bounds(0, 1_000_000)] = 1000
    calls_per_user: Annotated[int, Bounds(0, 1_000_000)] = 100
    calls_per_peer: Annotated[int, Bounds(0, 1_000_000)] = 10_000
    calls: Annotated[int, Bounds(0, 1_000_000)] = 50_000
    points: Count = 2000
    points_forgiven: Annotated[float, Bounds(0, 1_000_000)] = 20.0
    shut_seconds: Seconds = 30.0
    scanners: tuple[Annotated[str, Length(1)], ...] = SCANNERS


@dataclass(frozen=True, kw_only=True)
class PeeringSection:
    """``[peering]``: this node is an edge of its domains (the policy is a file of its own)."""

    listen: tuple[Listener, ...] = ()
    policy: FileName | None = None
    max_connections: Count = 2000
    max_connections_per_address: Count = 64


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """The whole file, checked. File names are absolute after :func:`load`."""

    overlay: OverlaySection
    identity: IdentitySection
    node: NodeSection
    peer: PeerSection | None = None
    sip: SipSection | None = None
    echo: EchoSection = EchoSection()
    peering: PeeringSection = PeeringSection()
    limits: LimitsSection = LimitsSection()
    dns: DnsSection = DnsSection()

    # Where all this was read, and the line of each key.
    _file: str = field(default="", compare=False)
    _lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False, repr=False)

    def fault(self, key: str, message: str) -> Fault:
        """A fault of a dotted key of this file, with its line."""
        return Fault(self._file, line_of(self._lines, tuple(key.split("."))), key, message)

    def has(self, role: Role) -> bool:
        """True when this node plays ``role``."""
        return role in self.node.roles

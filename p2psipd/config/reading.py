"""From the file to the checked model: TOML, the model, file names, and what lies between keys."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar, cast

from p2psipd.config.faults import ConfigError, Fault
from p2psipd.config.model import Address, DnsSection, EchoSection, NodeConfig, SipSection
from p2psipd.config.tables import read_table, unsaid, without
from p2psipd.toml_lines import KeyPath, key_lines

T = TypeVar("T")

#: The environment variable that does the same as ``node.keylog``.
KEYLOG_VARIABLE = "P2PSIPD_KEYLOG"
#: The port where other nodes connect for SIP when ``sip.node_listen`` is left out.
DEFAULT_NODE_SIP_PORT = 5062

#: The keys of ``[sip]`` that name files.
_SIP_FILES = ("certificate", "key", "authorities", "client_authorities", "users_file")


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
    values, lines = parse_toml(content, file)
    faults: list[Fault] = []
    try:
        config = read_table(NodeConfig, values, file, lines)
    except ConfigError as error:
        faults = error.faults
        # What lies between the other keys is checked all the same: whoever mends the file wants to know it all.
        config = read_table(NodeConfig, _without(values, faults), file, lines)
    config = _resolve(replace(config, _file=file, _lines=lines), Path(file).absolute().parent, environ or {})
    faults += unsaid([config.fault(key, message) for key, message in _cross_faults(config)], faults)
    if faults:
        raise ConfigError(faults, config)
    return config


#: What stands for a key that must be there and is at fault.
_STAND_IN: dict[str, dict[str, Any]] = {
    "overlay": {"document": "none"},
    "identity": {"certificate": "none", "key": "none"},
    "node": {"roles": ["peer"]},
    "peer": {"listen": "127.0.0.1:6084"},
}


def _without(values: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The values of a file without those that are at fault, and with what stands for those that must be there."""
    kept = without(values, faults)
    for name, stand_in in _STAND_IN.items():
        if name != "peer" or name in values:
            kept[name] = {**stand_in, **kept.get(name, {})}
    return kept


def parse_toml(content: bytes, file: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The values of a TOML file and the line of each key path; ConfigError for what is no TOML."""
    try:
        text = content.decode("utf-8")
        return tomllib.loads(text), key_lines(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Fault(file, line, "", "expected UTF-8 text")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_fault(file, text, error)]) from None


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

    def absolute(section: T, *names: str) -> T:
        changes = {name: str(directory / value) for name in names if (value := getattr(section, name))}
        return cast(T, replace(cast(Any, section), **changes))

    node = absolute(config.node, "state", "control", "log_file", "keylog")
    if environ.get(KEYLOG_VARIABLE):
        node = replace(node, keylog=str(Path(environ[KEYLOG_VARIABLE]).absolute()))
    sip = config.sip and absolute(config.sip, *_SIP_FILES, "call_records")
    if sip is not None and sip.node_listen is None and config.peer is not None:
        sip = replace(sip, node_listen=Address(config.peer.listen.host, DEFAULT_NODE_SIP_PORT))
    if sip is not None and ("sip", "default_expires_seconds") not in config._lines:
        usual = max(sip.min_expires_seconds, min(sip.default_expires_seconds, sip.max_expires_seconds))
        sip = replace(sip, default_expires_seconds=usual)
    return replace(
        config,
        overlay=absolute(config.overlay, "document"),
        identity=absolute(config.identity, "certificate", "key"),
        node=node,
        sip=sip,
        peering=absolute(config.peering, "policy"),
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
    if "echo" in config.node.roles:
        faults += _echo_faults(config)
    if "peering" in config.node.roles:
        faults += _peering_faults(config)
    faults += _dns_faults(config.dns)
    return faults + _file_faults(config) + _listener_faults(config)


def _file_faults(config: NodeConfig) -> list[tuple[str, str]]:
    """Files that must be there and are not, and names under which nothing can be written."""
    faults: list[tuple[str, str]] = []
    sip = config.sip
    names = [("overlay.document", config.overlay.document), ("identity.certificate", config.identity.certificate)]
    names.append(("identity.key", config.identity.key))
    if sip is not None and "sip" in config.node.roles:
        names += [(f"sip.{key}", value) for key in _SIP_FILES if (value := getattr(sip, key))]
    for key, name in names:
        if not os.path.isfile(name):
            faults.append((key, f"expected a file, there is none at {name}"))
        elif not os.access(name, os.R_OK):
            faults.append((key, f"expected a readable file: {name}"))
    written = [(f"node.{key}", getattr(config.node, key)) for key in ("state", "control", "log_file", "keylog")]
    if sip is not None:
        written.append(("sip.call_records", sip.call_records))
    for key, name in written:
        if name and not os.path.isdir(os.path.dirname(name)):
            faults.append((key, f"expected a directory at {os.path.dirname(name)}"))
        elif name and os.path.isdir(name):
            faults.append((key, f"expected a file, {name} is a directory"))
    if os.path.exists(config.node.control) and not stat.S_ISSOCK(os.stat(config.node.control).st_mode):
        faults.append(("node.control", f"expected a socket or nothing yet, {config.node.control} is a file"))
    if len(os.fsencode(config.node.control)) > 107:
        faults.append(("node.control", "expected a path of at most 107 bytes, the limit of Unix sockets"))
    return faults


def listeners(config: NodeConfig) -> list[tuple[str, Address]]:
    """Every address where this node listens over TCP, with the key that says so."""
    found = [("peer.listen", config.peer.listen)] if config.peer is not None and config.has("peer") else []
    if config.sip is not None and config.has("sip"):
        sip = config.sip
        found += [(f"sip.{key}", address) for key in ("tcp", "tls", "wss", "ws") for address in getattr(sip, key)]
        if sip.node_listen is not None:
            found.append(("sip.node_listen", sip.node_listen))
    if config.has("peering"):
        found += [("peering.listen", address) for address in config.peering.listen]
    if config.node.metrics is not None:
        found.append(("node.metrics", config.node.metrics))
    return found


def listener_key(config: NodeConfig, host: str | None, port: int | str) -> str:
    """The key that says that the node listens there: at a port of a host, or with a path for a port at a socket."""
    if isinstance(port, str):
        return "node.control"
    for key, address in listeners(config):
        if address == (host, port):
            return key
    udp = config.sip.udp if config.sip is not None else ()
    return "sip.udp" if (host, port) in udp else ""


def _listener_faults(config: NodeConfig) -> list[tuple[str, str]]:
    taken: dict[Address, str] = {}
    faults: list[tuple[str, str]] = []
    for key, address in listeners(config):
        if address in taken and address.port:
            faults.append((key, f"expected an address of its own: {address} is in {taken[address]} already"))
        taken[address] = key
    return faults


def _dns_faults(dns: DnsSection) -> list[tuple[str, str]]:
    hosts = [server.host for server in dns.servers]
    if dns.dnssec and hosts and not any(ip_address(host).is_loopback or host in dns.validating for host in hosts):
        return [("dns.validating", "expected one of dns.servers, whose word on DNSSEC counts: none is on this machine")]
    return []


def _peering_faults(config: NodeConfig) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    if "sip" not in config.node.roles:
        faults.append(("node.roles", 'expected "sip" beside "peering", whose calls go through it'))
    if not config.peering.listen:
        faults.append(("peering.listen", "expected the addresses where other domains connect"))
    policy = config.peering.policy
    if policy is None:
        faults.append(("peering.policy", "expected the file with the policy of direct peering"))
    elif not os.path.isfile(policy):
        faults.append(("peering.policy", f"expected a file, there is none at {policy}"))
    return faults


def _echo_faults(config: NodeConfig) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    if "sip" not in config.node.roles:
        faults.append(("node.roles", 'expected "sip" beside "echo", which is called through it'))
    first, last = config.echo.ports
    if not 1024 <= first < last <= 65535:
        faults.append(("echo.ports", "expected the first and the last of some ports from 1024 to 65535"))
    if config.sip is not None and not _is_reached(echo_host(config.echo, config.sip)):
        faults.append(("echo.host", "expected the address, numeric, at which phones reach its media"))
    return faults


def _is_reached(host: str) -> bool:
    try:
        return not ip_address(host).is_unspecified
    except ValueError:
        return False


def echo_host(echo: EchoSection, sip: SipSection) -> str:
    """The address for the echo user's media: its own, else the one that phones know of the node."""
    if echo.host:
        return echo.host
    addresses = (*sip.udp, *sip.tcp, *sip.tls, *sip.wss, *sip.ws)
    return addresses[0].host if addresses else ""


def _route_fault(value: str) -> str:
    """What is wrong with a Route value; nothing if it is one."""
    from p2psipd.proto.sip.errors import SipError
    from p2psipd.proto.sip.headers import NameAddr
    from p2psipd.proto.sip.uri import SipUri

    try:
        uri = NameAddr.parse(value).uri
    except SipError:
        uri = None
    if isinstance(uri, SipUri) and "lr" in uri.params and value.startswith("<"):
        return ""
    return f"expected values such as <sip:proxy.example;lr>, not {value!r}"


def _sip_faults(sip: SipSection) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    if not (sip.udp or sip.tcp or sip.tls or sip.wss or sip.ws):
        faults.append(("sip", "expected an address in at least one of udp, tcp, tls, wss and ws"))
    foreign = [each for each in sip.redirect_domains if sip.domains and each not in sip.domains]
    if foreign:
        faults.append(("sip.redirect_domains", f"expected domains of sip.domains, not {', '.join(foreign)}"))
    for key, secure in (("sip.tls", sip.tls), ("sip.wss", sip.wss)):
        if secure and not (sip.certificate and sip.key):
            faults.append((key, "expected sip.certificate and sip.key beside it"))
    if len(set(sip.udp)) < len(sip.udp):
        faults.append(("sip.udp", "expected each address and port once"))
    for key in ("udp", "tcp", "tls", "wss", "ws"):
        if not sip.public_host and any(address.host in ("0.0.0.0", "::") for address in getattr(sip, key)):
            text = "expected sip.public_host beside it: Via and Record-Route must name this node"
            faults.append((f"sip.{key}", text))
    node = sip.node_listen
    if node is not None and sip.node_advertise is None and node.host in ("0.0.0.0", "::"):
        faults.append(("sip.node_listen", "expected sip.node_advertise beside it: nobody can dial this address"))
    if sip.min_expires_seconds > sip.max_expires_seconds:
        faults.append(("sip.max_expires_seconds", "expected a time that is not below the shortest"))
    elif not sip.min_expires_seconds <= sip.default_expires_seconds <= sip.max_expires_seconds:
        faults.append(("sip.default_expires_seconds", "expected a time between the shortest and the longest"))
    if len(set(sip.digest_algorithms)) < len(sip.digest_algorithms):
        faults.append(("sip.digest_algorithms", "expected each algorithm once"))
    faults += [("sip.service_route", text) for value in sip.service_route if (text := _route_fault(value))]
    return faults

"""From the elements of a configuration document to an ``OverlayConfiguration``, noting every fault."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from p2psipd.proto.identity.certificate import load_root
from p2psipd.proto.reload.kinds import (
    ACCESS_POLICIES,
    NODE_MULTIPLE,
    PROXY_REGISTRATION,
    REGISTERED_KINDS,
    SIP_REGISTRATION,
    STANDARD_KINDS,
    Kind,
)
from p2psipd.proto.reload.messages import DataModel
from p2psipd.proto.reload.overlay_model import (
    DEFAULT_PORT,
    EXTENSION_NAMESPACE,
    REDIR_NAMESPACE,
    SEQUENCE_MODULUS,
    SIP_NAMESPACE,
    OverlayConfiguration,
    domain_pattern,
    pattern_fault,
)
from p2psipd.proto.reload.overlay_xml import (
    BASE,
    ConfigurationRange,
    ElementReader,
    Faults,
    as_base64,
    as_boolean,
    as_integer,
    as_node_id,
    as_text,
    local_name,
    text_of,
)
from p2psipd.proto.reload.redir import DEFAULT_BRANCHING_FACTOR

_SIP_RESTRICTION: Final = f"{{{SIP_NAMESPACE}}}domain-restriction"
_SIP_PATTERN: Final = f"{{{SIP_NAMESPACE}}}pattern"
_BRANCHING: Final = f"{{{REDIR_NAMESPACE}}}branching-factor"
_SERVICES: Final = f"{{{EXTENSION_NAMESPACE}}}users-provide-services"
_CHORD: Final = "urn:ietf:params:xml:ns:p2p:config-chord"
_PARAMETERS: Final = frozenset(
    {
        "topology-plugin", "max-message-size", "initial-ttl", "overlay-reliability-timer", "root-cert",
        "required-kinds", "enrollment-server", "kind-signer", "configuration-signer", "bad-node", "no-ice",
        "shared-secret", "overlay-link-protocol", "clients-permitted", "turn-density", "node-id-length",
        "mandatory-extension", "self-signed-permitted", "bootstrap-node", _BRANCHING, _SERVICES,
    }
)  # fmt: skip
_KIND_PARAMETERS: Final = frozenset(
    {"max-count", "max-size", "max-node-multiple", "data-model", "access-control", _SIP_RESTRICTION}
)


class ConfigurationReading:
    """Reads one configuration element into an ``OverlayConfiguration``, noting every fault."""

    def __init__(self, element: Any, faults: Faults) -> None:
        self._element = element
        self._faults = faults
        self._reader = ElementReader(element, faults, _PARAMETERS, "configuration")

    def configuration(self, document: bytes, found: ConfigurationRange) -> OverlayConfiguration:
        """The configuration with the RFC's defaults; worthless if a fault was noted."""
        reader = self._reader
        length = reader.value("node-id-length", as_integer(16, 20), 16)
        node_id = as_node_id(length)
        kinds, patterns = read_kinds(self._element, self._faults)
        return OverlayConfiguration(
            overlay_name=self._name(),
            sequence=self._attribute("sequence", as_integer(0, SEQUENCE_MODULUS - 1), 0),
            expiration=self._attribute("expiration", _as_time, 0.0),
            topology_plugin=reader.value("topology-plugin", as_text, "CHORD-RELOAD"),
            node_id_length=length,
            root_certs=reader.values("root-cert", _as_root),
            enrollment_servers=reader.values("enrollment-server", _as_https),
            self_signed_digest=self._self_signed(),
            bootstrap_nodes=self._bootstrap_nodes(),
            turn_density=reader.value("turn-density", as_integer(0, 255), 1),
            clients_permitted=reader.value("clients-permitted", as_boolean, True),
            no_ice=reader.value("no-ice", as_boolean, False),
            shared_secret=reader.value("shared-secret", str, None),
            initial_ttl=reader.value("initial-ttl", as_integer(1, 255), 100),
            max_message_size=reader.value("max-message-size", as_integer(1000, 2**32 - 1), 5000),
            reliability_timer_ms=reader.value("overlay-reliability-timer", as_integer(200, 2**31 - 1), 3000),
            overlay_link_protocols=reader.values("overlay-link-protocol", as_text) or ("TLS",),
            configuration_signers=frozenset(reader.values("configuration-signer", node_id)),
            kind_signers=frozenset(reader.values("kind-signer", node_id)),
            bad_nodes=frozenset(reader.values("bad-node", node_id)),
            mandatory_extensions=reader.values("mandatory-extension", as_text),
            kinds=kinds,
            domain_patterns=self._patterns(patterns),
            redir_branching_factor=reader.value(_BRANCHING, as_integer(2, 65535), DEFAULT_BRANCHING_FACTOR),
            users_provide_services=reader.value(_SERVICES, as_boolean, False),
            document=document,
            foreign=tuple(
                local_name(child) for child in reader.foreign if not local_name(child).startswith(_CHORD)
            ),
            kind_blocks=tuple(block.whole.octets(document) for block in found.kind_blocks),
        )

    def _attribute(self, name: str, convert: Callable[[str], Any], default: Any) -> Any:
        text = self._element.get(name)
        if text is None:
            self._faults.add(self._element, f"configuration: attribute {name} expected")
            return default
        try:
            return convert(text.strip())
        except ValueError as error:
            self._faults.add(self._element, f"{name}: {error}")
            return default

    def _name(self) -> str:
        name: str = self._attribute("instance-name", as_text, "")
        if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", name) and name:
            self._faults.add(self._element, f"instance-name: a DNS name expected, got {name[:80]!r}")
        return name

    def _self_signed(self) -> str | None:
        child = self._reader.one("self-signed-permitted")
        permitted = self._reader.value("self-signed-permitted", as_boolean, False)
        if child is not None and child.get("digest") not in ("sha1", "sha256"):
            self._faults.add(
                child, f"self-signed-permitted: digest sha1 or sha256 expected, got {child.get('digest')}"
            )
            return None
        if not permitted and not self._reader.all("root-cert"):
            self._faults.add(self._element, "configuration: element root-cert expected")
        return child.get("digest") if permitted else None

    def _bootstrap_nodes(self) -> tuple[tuple[str, int], ...]:
        nodes = []
        for child in self._reader.all("bootstrap-node"):
            try:
                address = str(ipaddress.ip_address(child.get("address", "").strip()))
                nodes.append((address, as_integer(1, 65535)(child.get("port", str(DEFAULT_PORT)).strip())))
            except ValueError as error:
                self._faults.add(child, f"bootstrap-node: an IP address and port expected: {error}")
        return tuple(nodes)

    def _patterns(self, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """An empty tuple of patterns from a disabled restriction means the overlay's own domain (RFC
        7904).
        """
        return (domain_pattern(self._name()),) if patterns == _OWN_DOMAIN else patterns


_OWN_DOMAIN: Final = ("",)


def read_kinds(configuration: Any, faults: Faults) -> tuple[dict[int, Kind], tuple[str, ...] | None]:
    """The required kinds by Kind-ID, and the domain restriction of SIP-REGISTRATION."""
    kinds: dict[int, Kind] = {}
    patterns: tuple[str, ...] | None = None
    for block in configuration.iterfind(f"{{{BASE}}}required-kinds/{{{BASE}}}kind-block"):
        element = block.find(f"{{{BASE}}}kind")
        if element is None:
            faults.add(block, "kind-block: element kind expected")
            continue
        reader = ElementReader(element, faults, _KIND_PARAMETERS, "kind")
        kind = _read_kind(element, reader, faults)
        if kind is None:
            continue
        if kind.id in kinds:
            faults.add(element, f"kind {kind.name}: defined twice")
        kinds[kind.id] = kind
        if kind.id == SIP_REGISTRATION:
            patterns = _read_restriction(reader, faults)
    return kinds, patterns


def _read_kind(element: Any, reader: ElementReader, faults: Faults) -> Kind | None:
    name, number = element.get("name"), element.get("id")
    if (name is None) == (number is None):
        faults.add(element, "kind: either a name or an id expected")
        return None
    model = reader.required("data-model", _as_data_model, DataModel.SINGLE)
    policy = reader.required("access-control", as_text, "")
    count = reader.required("max-count", as_integer(1, 2**31 - 1), 1)
    size = reader.required("max-size", as_integer(0, 2**31 - 1), 0)
    multiple = reader.value("max-node-multiple", as_integer(1, 255), 0)
    if name is not None:
        registered = REGISTERED_KINDS.get(name.strip())
        if registered is None:
            faults.add(
                element,
                f"kind: name of a registered kind expected, got {name[:80]!r}; this node must know it",
            )
            return None
        kind = registered
    else:
        try:
            kind_id = as_integer(1, 0xFFFFFFFE)(number.strip())
        except ValueError as error:
            faults.add(element, f"kind id: {error}")
            return None
        kind = STANDARD_KINDS.get(kind_id) or Kind(kind_id, f"{kind_id:#x}", model, policy, count, size)
    if kind.id in STANDARD_KINDS:
        # For registered kinds the registry wins (section 11.1); for our own ones a difference is a mistake.
        if kind.id >= PROXY_REGISTRATION and (model, policy) != (kind.data_model, kind.access_control):
            faults.add(
                element, f"kind {kind.name}: {kind.data_model.name} under {kind.access_control} expected"
            )
        model, policy = kind.data_model, kind.access_control
    if policy not in ACCESS_POLICIES:
        faults.add(
            element,
            f"access-control: one of {', '.join(sorted(ACCESS_POLICIES))} expected, got {policy[:80]}",
        )
    if policy == NODE_MULTIPLE and not multiple:
        faults.add(element, "kind: element max-node-multiple expected with NODE-MULTIPLE")
    return Kind(kind.id, kind.name, model, policy, count, size, multiple if policy == NODE_MULTIPLE else 0)


def _read_restriction(reader: ElementReader, faults: Faults) -> tuple[str, ...] | None:
    element = reader.one(_SIP_RESTRICTION)
    if element is None:
        return None
    try:
        enabled = as_boolean((element.get("enable") or "false").strip())
    except ValueError as error:
        faults.add(element, f"enable: {error}")
        return None
    if not enabled:
        return _OWN_DOMAIN
    patterns = []
    for child in element:
        pattern = text_of(child)
        fault = pattern_fault(pattern) if local_name(child) == _SIP_PATTERN else "element pattern expected"
        if fault is not None:
            faults.add(child, f"pattern: {fault}")
        patterns.append(pattern)
    return tuple(patterns)


def _as_time(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
        if time.utcoffset() is None or time.utcoffset():
            raise ValueError
        return time.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"a time in UTC as 2026-12-31T23:59:59Z expected, got {text[:80]!r}") from None


def _as_root(text: str) -> bytes:
    der = as_base64(text)
    load_root(der)
    return der


def _as_https(text: str) -> str:
    if urlsplit(text).scheme != "https" or not urlsplit(text).hostname:
        raise ValueError(f"an https URL expected, got {text[:80]!r}")
    return text


def _as_data_model(text: str) -> DataModel:
    if text not in DataModel.__members__:
        raise ValueError(f"SINGLE, ARRAY or DICTIONARY expected, got {text[:80]!r}")
    return DataModel[text]

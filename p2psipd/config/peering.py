"""The policy file of direct peering: one TOML file of its own, checked whole, so that it can be reloaded alone.

:func:`read_peering` gives a :class:`Peering`: the policy, our certificates, and the checked file. Like the
configuration it raises :class:`p2psipd.config.ConfigError` with every fault, each with its line; whoever reloads
keeps what was in force before.
"""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from p2psipd.config.faults import ConfigError, Fault, line_of
from p2psipd.config.model import Dialled, Domain, FileName, Fingerprint, Listener
from p2psipd.config.reading import parse_toml
from p2psipd.config.tables import Expected, Length, Matches, Then, place_of, read_table, without
from p2psipd.proto.identity.policy import (
    CertificateRefused,
    SanMatch,
    TrustAnchors,
    Usage,
    fingerprint,
    read_certificate,
)
from p2psipd.proto.peering.enum import CarrierRoot
from p2psipd.proto.peering.number_plan import NumberPlan
from p2psipd.proto.peering.own_certificates import (
    CertificateUse,
    OwnCertificate,
    OwnCertificates,
    served_name,
    warnings_of,
)
from p2psipd.proto.peering.peers import Federation, IdentityKind, PeeringPolicy, PeerSettings
from p2psipd.proto.peering.routing_table import RoutingTable, RoutingTableError, parse_routing_table
from p2psipd.proto.peering.targets import DomainPolicy, NumberSources
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.next_hops import is_numeric
from p2psipd.proto.sip.uri import SipUri
from p2psipd.toml_lines import KeyPath

_KINDS: dict[str, tuple[IdentityKind, ...]] = {
    "none": (),
    "rfc8224": (IdentityKind.RFC8224,),
    "rfc4474": (IdentityKind.RFC4474,),
    # Verifiers are known that look at the first Identity header only, and expect RFC 4474 there.
    "both": (IdentityKind.RFC4474, IdentityKind.RFC8224),
}
_PEM_END = b"-----END CERTIFICATE-----"

Kinds = Literal["none", "rfc8224", "rfc4474", "both"]
Form = Literal["compact", "full"]


def _to_network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise Expected('expected a network such as "10.0.0.0/8"') from None


def _to_identity_url(text: str) -> str:
    parts = urlsplit(text.replace("{domain}", "a.test"))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise Expected('expected a URL such as "https://{domain}:8443/identity"')
    return text.rstrip("/")


def _to_sip_target(text: str) -> str:
    try:
        host = SipUri.parse(text).host
    except SipError:
        raise Expected('expected a SIP URI such as "sip:112@psap.example"') from None
    if is_numeric(host):
        raise Expected("expected a domain: no certificate proves an address")
    return text


def _to_sip_servers(text: str) -> str:
    try:
        SipUri.parse(text)
    except SipError:
        raise Expected('expected a SIP URI such as "sip:inside.b.test:5061"') from None
    return text


Network = Annotated[str, Then(_to_network)]
SipTarget = Annotated[str, Then(_to_sip_target)]
SipServers = Annotated[str, Then(_to_sip_servers)]
CountryCode = Annotated[str, Matches("[1-9][0-9]{0,6}", "expected the digits that numbers begin with, without +")]
IdentityUrl = Annotated[str, Then(_to_identity_url)]
Domains = tuple[Domain, ...]
Files = tuple[FileName, ...]
Pins = tuple[Fingerprint, ...]


@dataclass(frozen=True, kw_only=True)
class TrustSection:
    """``[trust]``: whom certificates are believed from, unless a peer has its own authorities or pins."""

    system_authorities: bool = True
    authorities: Files = ()
    pins: Pins = ()
    revocation_lists: Files = ()


@dataclass(frozen=True, kw_only=True)
class AcceptSection:
    """``[accept]``: who may send us requests. Either rule is enough, ``deny`` is above both."""

    domains: Domains = ()
    authorities: Files = ()
    deny: Domains = ()


@dataclass(frozen=True, kw_only=True)
class PeerIdentitySection:
    """``[identity]``: Identity headers, ours and theirs, and where our certificates are served."""

    send: Kinds = "rfc8224"
    accept: Kinds = "both"
    required: bool = True
    form: Form = "compact"
    shaken: bool = False
    numbers: Literal["any", "owned"] = "any"
    host: Literal["certificate", "any"] = "certificate"
    url: IdentityUrl | None = None
    listen: tuple[Listener, ...] = ()
    private_networks: tuple[Network, ...] = ()

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """``private_networks``: where certificates may be fetched from though the addresses are not public."""
        return tuple(ip_network(text) for text in self.private_networks)


@dataclass(frozen=True, kw_only=True)
class CertificateSection:
    """``[[certificate]]``: one of our own, for these domains."""

    name: str = ""
    domains: Annotated[tuple[Domain, ...], Length(1)]
    certificate: FileName
    key: FileName
    use: Annotated[tuple[Literal["tls", "identity"], ...], Length(1)] = ("tls", "identity")


@dataclass(frozen=True, kw_only=True)
class PeerEntry:
    """``[[peer]]``: one domain whose treatment differs. What is left out is as for everybody."""

    domain: Domain
    identity: Kinds | None = None
    accept_identity: Kinds | None = None
    identity_required: bool | None = None
    form: Form | None = None
    shaken: bool | None = None
    identity_host: Literal["certificate", "any"] | None = None
    san_match: Literal["rfc5922", "any"] = "rfc5922"
    authorities: Files = ()
    pins: Pins = ()
    revocation_lists: Files = ()
    server_certificate_as_client: bool = False
    certificate: str = ""


@dataclass(frozen=True, kw_only=True)
class FederationEntry:
    """``[[federation]]``: a domain that sends, and may be received, through others."""

    domain: Domain
    through: Annotated[tuple[Domain, ...], Length(1)]
    servers: SipServers | None = None


@dataclass(frozen=True, kw_only=True)
class SendSection:
    """``[send]``: which domains requests go to: all but ``deny``, or only ``allow`` where that is given."""

    allow: tuple[Domain, ...] | None = None
    deny: Domains = ()


@dataclass(frozen=True, kw_only=True)
class NumberPlanSection:
    """``[number_plan]``: how what users dial is read."""

    region: str
    emergency: tuple[Dialled, ...] = ()
    short_codes: tuple[Dialled, ...] = ()
    prefixes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EmergencySection:
    """``[emergency]``: where calls to the emergency services go."""

    target: SipTarget | None = None


@dataclass(frozen=True, kw_only=True)
class EnumSection:
    """``[enum]``: where numbers are looked up: our own trees and ranges first, then the public tree."""

    private_roots: Domains = ()
    ranges: FileName | None = None
    roots: Domains = ("e164.arpa",)
    absent_codes: tuple[CountryCode, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CarrierEnumEntry:
    """``[[carrier_enum]]``: one tree of carriers' records."""

    root: Domain = "e164.arpa"
    label: Annotated[str, Matches("[a-z0-9-]{0,63}", "expected a label of a-z, 0-9 and hyphen")] = "i"
    algorithm: Literal["cc", "none", "txt", "ebl"] = "cc"


@dataclass(frozen=True, kw_only=True)
class CarrierSection:
    """``[carrier]``: number ranges of carriers that come before the look-up."""

    ranges: FileName | None = None


@dataclass(frozen=True, kw_only=True)
class RoutingSection:
    """``[routing]``: the table for numbers that ENUM does not know, and for carriers that can't be reached."""

    table: FileName | None = None


@dataclass(frozen=True, kw_only=True)
class PeeringFile:
    """The whole file."""

    trust: TrustSection = TrustSection()
    accept: AcceptSection = AcceptSection()
    identity: PeerIdentitySection = PeerIdentitySection()
    certificate: Annotated[tuple[CertificateSection, ...], Length(1)]
    peer: tuple[PeerEntry, ...] = ()
    federation: tuple[FederationEntry, ...] = ()
    send: SendSection = SendSection()
    number_plan: NumberPlanSection | None = None
    emergency: EmergencySection = EmergencySection()
    enum: EnumSection = EnumSection()
    carrier_enum: tuple[CarrierEnumEntry, ...] = ()
    carrier: CarrierSection = CarrierSection()
    routing: RoutingSection = RoutingSection()


class Peering(NamedTuple):
    """What a policy file says, with everything that it names. ``warnings`` are sentences for the log.

    ``targets`` are the domains that requests may go to, ``plan`` and ``sources`` make URIs of numbers, and
    ``emergency`` is where calls to the emergency services go.
    """

    file: PeeringFile
    policy: PeeringPolicy
    own: OwnCertificates
    warnings: tuple[str, ...]
    targets: DomainPolicy
    plan: NumberPlan | None
    sources: NumberSources
    emergency: SipUri | None

    def identity_url(self, own: OwnCertificate, domain: str, kind: IdentityKind) -> str:
        """Where ``own`` is served for a From address of ``domain``: DER for RFC 4474, PEM with its chain for
        RFC 8224. A new certificate has a new URL (RFC 4474 section 9).
        """
        base = (self.file.identity.url or "").replace("{domain}", domain)
        return f"{base}/{served_name(own, kind)}"


def read_peering(path: str | os.PathLike[str], wall: float) -> Peering:
    """The checked policy file at ``path`` and all files it names, certificates being judged at ``wall``.

    File names in it are relative to its directory. Raises ConfigError with every fault.
    """
    file = os.fspath(path)
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError([Fault(file, 0, "", f"cannot be read: {error.strerror}")]) from None
    values, lines = parse_toml(content, file)
    try:
        checked = read_table(PeeringFile, values, file, lines)
    except ConfigError as error:
        raise ConfigError([*error.faults, *_beside(values, file, lines, wall, error.faults)]) from None
    return _Reader(file, lines, checked, wall).peering()


def _beside(
    values: dict[str, Any], file: str, lines: dict[KeyPath, int], wall: float, faults: list[Fault]
) -> list[Fault]:
    """What is wrong beside `faults`: the rest of the file is checked all the same, if it is a policy without them."""
    told = {place_of(fault) for fault in faults}
    try:
        _Reader(file, lines, read_table(PeeringFile, without(values, faults), file, lines), wall).peering()
    except ConfigError as error:
        return [fault for fault in error.faults if place_of(fault) not in told]
    return []


class _Reader:
    """Reads what the file names, and collects faults on the way."""

    def __init__(self, file: str, lines: dict[KeyPath, int], checked: PeeringFile, wall: float) -> None:
        self._file, self._lines, self._checked, self._wall = file, lines, checked, wall
        self._directory = Path(file).absolute().parent
        self._faults: list[Fault] = []
        self._read: dict[str, bytes] = {}

    def peering(self) -> Peering:
        """Everything, or ConfigError."""
        own = OwnCertificates(
            found
            for index, section in enumerate(self._checked.certificate)
            if (found := self._own_certificate(index, section)) is not None
        )
        policy = self._policy()
        plan, sources = self._plan(), self._sources()
        if not self._faults:
            self._check_names(own)
            self._check_federation(own)
            self._check_identity(own, policy)
        if self._faults:
            raise ConfigError(self._faults)
        send, emergency = self._checked.send, self._checked.emergency.target
        told = warnings_of(own.certificates, self._wall)
        if emergency is None:
            told.append("calls to the emergency services are answered 404: [emergency] target is not set")
        return Peering(
            self._checked,
            policy,
            own,
            tuple(told),
            DomainPolicy((*send.deny, *self._checked.accept.deny), send.allow),
            plan,
            sources,
            None if emergency is None else SipUri.parse(emergency),
        )

    def _fault(self, path: KeyPath, message: str) -> None:
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        self._faults.append(Fault(self._file, line_of(self._lines, path), key, message))

    # -- certificates --------------------------------------------------------------------------------------

    def _own_certificate(self, index: int, section: CertificateSection) -> OwnCertificate | None:
        path: KeyPath = ("certificate", index)
        chain = self._certificates(section.certificate, (*path, "certificate"))
        key = self._key(section.key, (*path, "key"))
        if not chain or key is None:
            return None
        try:
            leaf = read_certificate(chain[0])
        except CertificateRefused as refused:
            self._fault((*path, "certificate"), f"{section.certificate}: {refused.detail}")
            return None
        name = section.name or section.domains[0]
        uses = frozenset(CertificateUse(word) for word in section.use)
        own = OwnCertificate(name, leaf, tuple(chain), key, section.domains, uses)
        if fault := own.fault(self._wall):
            at = "key" if "key" in fault else "domains" if fault.startswith("domain ") else "certificate"
            self._fault((*path, at), fault)
        return own

    def _key(self, name: str, path: KeyPath) -> EllipticCurvePrivateKey | RSAPrivateKey | None:
        content = self._content(name, path)
        if content is None:
            return None
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError) as error:
            self._fault(path, f"{name}: expected a PEM private key without a password ({error})")
            return None
        if isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
            return key
        self._fault(path, f"{name}: expected an elliptic curve or RSA key")
        return None

    def _content(self, name: str, path: KeyPath) -> bytes | None:
        if name not in self._read:
            try:
                self._read[name] = (self._directory / name).read_bytes()
            except OSError as error:
                self._fault(path, f"{name} cannot be read: {error.strerror}")
                return None
        return self._read[name]

    def _certificates(self, name: str, path: KeyPath) -> list[bytes]:
        content = self._content(name, path)
        if content is None:
            return []
        try:
            return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(content)]
        except ValueError as error:
            self._fault(path, f"{name}: expected PEM certificates ({error})")
            return []

    def _revocation_list(self, name: str, path: KeyPath) -> list[bytes]:
        content = self._content(name, path)
        if content is None:
            return []
        try:
            load = x509.load_pem_x509_crl if content.lstrip().startswith(b"-----") else x509.load_der_x509_crl
            return [load(content).public_bytes(Encoding.DER)]
        except ValueError as error:
            self._fault(path, f"{name}: expected a revocation list, PEM or DER ({error})")
            return []

    # -- policy --------------------------------------------------------------------------------------------

    def _policy(self) -> PeeringPolicy:
        file = self._checked
        accepted = self._all(file.accept.authorities, ("accept", "authorities"))
        # Who is accepted by its authority must be believed by it, too.
        roots = [*self._all(file.trust.authorities, ("trust", "authorities")), *accepted]
        if file.trust.system_authorities:
            roots += system_authorities()
        revocations = self._revocations(file.trust.revocation_lists, ("trust", "revocation_lists"))
        anchors = self._anchors(roots, file.trust.pins, revocations, ("trust",))
        identity = file.identity
        default = PeerSettings(
            "",
            _KINDS[identity.send],
            frozenset(_KINDS[identity.accept]),
            identity.required,
            identity.form == "full",
            identity.shaken,
            SanMatch.RFC5922,
            anchors,
            any_identity_host=identity.host == "any",
        )
        peers = [self._peer(index, entry, default, revocations) for index, entry in enumerate(file.peer)]
        self._once(("peer",), [entry.domain for entry in file.peer])
        self._once(("federation",), [entry.domain for entry in file.federation])
        return PeeringPolicy(
            default,
            peers,
            accept_domains=file.accept.domains,
            accept_authorities=[fingerprint(der) for der in accepted],
            deny=file.accept.deny,
            federations=[
                Federation(entry.domain, entry.through, None if entry.servers is None else SipUri.parse(entry.servers))
                for entry in file.federation
            ],
        )

    def _peer(self, index: int, entry: PeerEntry, default: PeerSettings, revocations: list[bytes]) -> PeerSettings:
        path: KeyPath = ("peer", index)
        anchors = default.anchors
        # Who has authorities or pins of its own is believed on nobody else's word.
        if entry.authorities or entry.pins or entry.revocation_lists:
            own = self._all(entry.authorities, (*path, "authorities"))
            roots = own if entry.authorities or entry.pins else list(default.anchors.roots)
            lists = [*revocations, *self._revocations(entry.revocation_lists, (*path, "revocation_lists"))]
            anchors = self._anchors(roots, entry.pins, lists, path)

        def chosen(value: Any, otherwise: Any) -> Any:
            return otherwise if value is None else value

        return PeerSettings(
            entry.domain,
            default.send if entry.identity is None else _KINDS[entry.identity],
            default.accept if entry.accept_identity is None else frozenset(_KINDS[entry.accept_identity]),
            chosen(entry.identity_required, default.required),
            default.full_form if entry.form is None else entry.form == "full",
            chosen(entry.shaken, default.shaken),
            SanMatch(entry.san_match),
            anchors,
            Usage.SERVER_AS_CLIENT if entry.server_certificate_as_client else Usage.CLIENT,
            entry.certificate,
            default.any_identity_host if entry.identity_host is None else entry.identity_host == "any",
        )

    def _anchors(
        self, roots: Iterable[bytes], pins: Sequence[str], lists: Iterable[bytes], path: KeyPath
    ) -> TrustAnchors:
        try:
            return TrustAnchors(roots, [pin.removeprefix("sha256:") for pin in pins], lists)
        except CertificateRefused as refused:
            self._fault(path, f"expected authorities and revocation lists that can be used: {refused.detail}")
            return TrustAnchors()

    def _all(self, names: Sequence[str], path: KeyPath) -> list[bytes]:
        return [der for index, name in enumerate(names) for der in self._certificates(name, (*path, index))]

    def _revocations(self, names: Sequence[str], path: KeyPath) -> list[bytes]:
        return [der for index, name in enumerate(names) for der in self._revocation_list(name, (*path, index))]

    # -- numbers -------------------------------------------------------------------------------------------

    def _plan(self) -> NumberPlan | None:
        section = self._checked.number_plan
        if section is None:
            return None
        try:
            return NumberPlan(section.region, section.emergency, section.short_codes, section.prefixes)
        except ValueError as error:
            self._fault(("number_plan", "region"), str(error))
            return None

    def _sources(self) -> NumberSources:
        file = self._checked
        return NumberSources(
            file.enum.private_roots,
            self._table(file.enum.ranges, ("enum", "ranges")),
            file.enum.roots,
            file.enum.absent_codes,
            self._table(file.carrier.ranges, ("carrier", "ranges")),
            tuple(CarrierRoot(entry.root, entry.label, entry.algorithm) for entry in file.carrier_enum),
            self._table(file.routing.table, ("routing", "table")),
        )

    def _table(self, name: str | None, path: KeyPath) -> RoutingTable | None:
        content = None if name is None else self._content(name, path)
        if content is None:
            return None
        try:
            return parse_routing_table(content.decode("utf-8"))
        except UnicodeDecodeError:
            self._fault(path, f"{name}: expected UTF-8 text")
        except RoutingTableError as error:
            table = str(self._directory / str(name))
            self._faults += [Fault(table, line, "", message) for line, message in error.faults]
        return None

    # -- what lies between keys ----------------------------------------------------------------------------

    def _once(self, path: KeyPath, domains: Sequence[str]) -> None:
        for index, domain in enumerate(domains):
            if domain in domains[:index]:
                self._fault((*path, index, "domain"), f"expected one entry for {domain}, there is another above")

    def _check_names(self, own: OwnCertificates) -> None:
        names = [one.name for one in own.certificates]
        for index, name in enumerate(names):
            if name in names[:index]:
                self._fault(("certificate", index), f"expected a name of its own beside the other {name}")
        for index, entry in enumerate(self._checked.peer):
            named = own.by_name(entry.certificate) if entry.certificate else None
            if entry.certificate and (named is None or CertificateUse.TLS not in named.uses):
                message = f"expected the name of a certificate for tls, one of: {', '.join(names)}"
                self._fault(("peer", index, "certificate"), message)
        if not own.domains:
            self._fault(("certificate",), 'expected one with use "tls": nobody could connect to us')

    def _check_federation(self, own: OwnCertificates) -> None:
        """Whoever receives through us must be reached by another name than the DNS has for them, or by the DNS if that
        does not lead to us: we cannot know, and a call that leads back to us would go round in a circle (482).
        """
        for index, entry in enumerate(self._checked.federation):
            through = next((domain for domain in entry.through if domain in own.domains), None)
            if through is not None and entry.servers is None:
                message = (
                    f"expected where {entry.domain} itself is reached, as {through} is ours: a SIP URI of its servers, "
                    f'or "sip:{entry.domain}" if its DNS does not lead to us'
                )
                self._fault(("federation", index, "servers"), message)

    def _check_identity(self, own: OwnCertificates, policy: PeeringPolicy) -> None:
        """Whether every own domain can sign what is to be sent, under a URL that its peers will accept."""
        wanted: dict[IdentityKind, KeyPath] = dict.fromkeys(policy.default.send, ("identity", "send"))
        for index, entry in enumerate(self._checked.peer):
            for kind in policy.settings(entry.domain).send:
                wanted.setdefault(kind, ("peer", index, "identity"))
        needs = {IdentityKind.RFC4474: "an RSA key", IdentityKind.RFC8224: "a P-256 key"}
        for domain in own.domains:
            for kind, path in wanted.items():
                if own.for_identity(domain, kind) is None:
                    message = f"expected a certificate for {domain} with {needs[kind]}, which {kind.value} needs"
                    self._fault(path, message)
        if not wanted:
            return
        if self._checked.identity.url is None:
            self._fault(("identity",), "expected url: where peers find our certificates")
            return
        for domain in own.domains:
            host = urlsplit(self._checked.identity.url.replace("{domain}", domain)).hostname or ""
            shown = own.for_tls(domain)
            if shown is not None and not shown.certificate.speaks_for(host):
                message = f"expected a host that the TLS certificate of {domain} names, not {host}"
                self._fault(("identity", "url"), message)


def system_authorities() -> list[bytes]:
    """The root certificates of the operating system (DER); what cannot serve as one is passed over."""
    name = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    try:
        content = Path(name).read_bytes()
    except OSError:
        return []
    usable = []
    for block in content.split(_PEM_END)[:-1]:
        with warnings.catch_warnings():
            # What the library only warns of today it refuses tomorrow: one such root must not cost us the others.
            warnings.simplefilter("error")
            try:
                der = x509.load_pem_x509_certificate(block + _PEM_END).public_bytes(Encoding.DER)
                TrustAnchors([der])
            except (ValueError, Warning):
                continue
        usable.append(der)
    return usable

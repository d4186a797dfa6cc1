"""The overlay configuration document: what it says, how it is checked, signed and read (RFC 6940 section
11.1).

A document is XML in UTF-8 with one ``configuration`` for each overlay, followed by its ``signature``: base64
of a SecurityBlock over the element's exact octets.  ``parse_configuration`` takes such a document apart,
``build_configuration`` and ``sign_configuration`` make one.

Readings of the RFC, where it leaves a choice:

- What is signed is the element's exact octets followed by the SignerIdentity, as for messages.
- ``sequence`` and ``expiration`` have no default, so the configuration of our overlay must have both; the
signature
  and each kind's signature, optional in the grammar, are required as the prose says.
- Sequence numbers run from 0 to 65534 and are compared modulo 65535 (65535 itself means "ignore", section
6.3.2.1).
- The first document is trusted by ``trust_fingerprint``: a hash over root certificates and configuration
signers.
  Either alone would not do: anybody with a certificate of the overlay could name itself as a signer.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from typing import Final

from p2psipd.proto.identity.certificate import CertificateError, Trust
from p2psipd.proto.identity.signing import HASH_SHA256, Signer, verify
from p2psipd.proto.octets import OctetsError, Reader
from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import NODE_ID_LENGTH
from p2psipd.proto.reload.kinds import REGISTERED_KINDS, SIP_REGISTRATION, Kind
from p2psipd.proto.reload.overlay_model import (
    EXTENSION_NAMESPACE,
    REDIR_NAMESPACE,
    SIP_NAMESPACE,
    SUPPORTED_EXTENSIONS,
    TOPOLOGY_PLUGIN,
    OverlayConfiguration,
    domain_pattern,
    newer,
    next_sequence,
    trust_fingerprint,
)
from p2psipd.proto.reload.overlay_values import ConfigurationReading, read_kinds
from p2psipd.proto.reload.overlay_xml import (
    BASE,
    MAXIMUM_DOCUMENT_SIZE,
    ConfigurationError,
    ConfigurationRange,
    Faults,
    Range,
    as_base64,
    grammar_faults,
    local_name,
    locate,
    parse_tree,
    tag_prefix,
)
from p2psipd.proto.reload.security import (
    CERT_HASH,
    CERT_HASH_NODE_ID,
    SecurityBlock,
    Signature,
    SignerIdentity,
    read_security_block,
)

__all__ = [
    "EXTENSION_NAMESPACE",
    "TOPOLOGY_PLUGIN",
    "ConfigurationError",
    "OverlayConfiguration",
    "build_configuration",
    "check_size",
    "check_supported",
    "domain_pattern",
    "newer",
    "next_sequence",
    "parse_configuration",
    "parse_kind_block",
    "render_configuration",
    "sign_configuration",
    "trust_fingerprint",
]


def check_supported(configuration: OverlayConfiguration) -> None:
    """Raise ``ConfigurationError`` (reason "unsupported") if this program cannot take part under a
    configuration.
    """
    faults = []
    if configuration.topology_plugin != TOPOLOGY_PLUGIN:
        faults.append((0, f"topology-plugin {configuration.topology_plugin}; this node has {TOPOLOGY_PLUGIN}"))
    if configuration.node_id_length != NODE_ID_LENGTH:
        faults.append((0, f"node-id-length {configuration.node_id_length}; this node has {NODE_ID_LENGTH}"))
    if not configuration.no_ice:
        faults.append((0, "no-ice is false; this node links without ICE only"))
    if "TLS" not in configuration.overlay_link_protocols:
        faults.append((0, "overlay-link-protocol TLS expected among those permitted"))
    if configuration.shared_secret is not None:
        faults.append((0, "shared-secret: this node authenticates by certificates only"))
    for namespace in configuration.mandatory_extensions:
        if namespace not in SUPPORTED_EXTENSIONS:
            faults.append((0, f"mandatory-extension {namespace} is not known to this node"))
    if faults:
        raise ConfigurationError(*faults, reason="unsupported")


# ---- reading ----


def parse_configuration(
    document: bytes,
    *,
    wall: float,
    overlay_name: str | None = None,
    trusted_fingerprint: str | None = None,
    previous: OverlayConfiguration | None = None,
    supported: bool = True,
    allow_expired: bool = False,
) -> OverlayConfiguration:
    """The configuration in a signed document, its grammar, values, signatures and date verified.

    ``overlay_name`` chooses among several configurations.  Trust comes from ``previous``, the configuration
    in force (the new one must be newer and signed by one of its signers), or else from
    ``trusted_fingerprint``; without either the document must only agree with itself, and the caller trusts
    the file it came from.  With ``supported`` a configuration that this program cannot follow is refused too.
     Raises ``ConfigurationError`` with all faults.
    """
    ranges = locate(document)
    tree = parse_tree(document)
    index = _choose(ranges, overlay_name if previous is None else previous.overlay_name)
    element = [child for child in tree if local_name(child) == "configuration"][index]
    faults = Faults()
    configuration = ConfigurationReading(element, faults).configuration(document, ranges[index])
    # The grammar's own messages are hard to read, so they are given only if nothing better was found.
    faults.extend([] if faults else grammar_faults(tree))
    if faults:
        raise ConfigurationError(*faults)
    if configuration.expiration <= wall and not allow_expired:
        until = datetime.fromtimestamp(configuration.expiration, UTC).isoformat()
        raise ConfigurationError((element.sourceline, f"the configuration expired at {until}"), reason="expired")
    if supported:
        check_supported(configuration)
    _check_trust(configuration, trusted_fingerprint, previous)
    _check_signatures(configuration, ranges[index], element.sourceline, wall, previous)
    return configuration


def parse_kind_block(block: bytes, configuration: OverlayConfiguration, wall: float) -> Kind:
    """The kind in a kind-block that came by ConfigUpdate (RFC 6940 section 6.5.4), its signature verified.

    Raises ``ConfigurationError``; whether it may replace a kind that is known is for the caller to judge.
    """
    around = f'<overlay xmlns="{BASE}"><configuration instance-name="x"><required-kinds>'.encode()
    document = around + block + b"</required-kinds></configuration></overlay>"
    ranges = locate(document)
    if len(ranges) != 1 or len(ranges[0].kind_blocks) != 1:
        raise ConfigurationError((0, "one kind-block expected"))
    tree = parse_tree(document)
    faults = Faults()
    kinds, _ = read_kinds(tree[0], faults)
    faults.extend([] if faults else grammar_faults(tree))
    if faults:
        raise ConfigurationError(*faults)
    found = ranges[0].kind_blocks[0]
    fault = _signature_fault(
        found.kind.octets(document), found.signature, configuration.trust(), configuration.kind_signers, wall
    )
    if fault is not None:
        raise ConfigurationError((0, f"kind-signature: {fault}"), reason="signature")
    return next(iter(kinds.values()))


def _choose(ranges: tuple[ConfigurationRange, ...], overlay_name: str | None) -> int:
    names = [found.name.lower() for found in ranges]
    if not names:
        raise ConfigurationError((1, f"no configuration element in an overlay element of {BASE}"))
    if overlay_name is None:
        if len(names) > 1:
            raise ConfigurationError((1, f"configurations of several overlays: say which of {', '.join(names)}"))
        return 0
    if names.count(overlay_name.lower()) != 1:
        raise ConfigurationError((1, f"one configuration of overlay {overlay_name} expected, there is {names}"))
    return names.index(overlay_name.lower())


def _check_trust(
    configuration: OverlayConfiguration, fingerprint: str | None, previous: OverlayConfiguration | None
) -> None:
    if previous is not None:
        if not newer(configuration.sequence, previous.sequence):
            text = f"sequence {configuration.sequence} is not newer than {previous.sequence}"
            raise ConfigurationError((0, text), reason="sequence")
    elif fingerprint is not None and _plain(fingerprint) != _plain(trust_fingerprint(configuration)):
        text = f"fingerprint {trust_fingerprint(configuration)}, but {fingerprint} is trusted"
        raise ConfigurationError((0, text), reason="fingerprint")


def _plain(fingerprint: str) -> str:
    return fingerprint.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")


def _check_signatures(
    configuration: OverlayConfiguration,
    found: ConfigurationRange,
    line: int,
    wall: float,
    previous: OverlayConfiguration | None,
) -> None:
    document = configuration.document
    own_trust = configuration.trust()
    trust = own_trust if previous is None else previous.trust()
    signers = configuration.configuration_signers if previous is None else previous.configuration_signers
    octets = found.whole.octets(document)
    faults = []
    reasons = [_signature_fault(octets, signature, trust, signers, wall) for signature in found.signatures]
    # Any one good signature will do: a document may be signed by an old and a new signer.
    if not reasons:
        faults.append((line, "signature: an element signature after the configuration expected"))
    elif None not in reasons:
        faults.extend((line, f"signature: {reason}") for reason in reasons)
    for block in found.kind_blocks:
        octets = block.kind.octets(document)
        reason = _signature_fault(octets, block.signature, own_trust, configuration.kind_signers, wall)
        if reason is not None:
            faults.append((document.count(b"\n", 0, block.kind.start) + 1, f"kind-signature: {reason}"))
    if faults:
        raise ConfigurationError(*faults, reason="signature")


def _signature_fault(
    octets: bytes, signature: Range | None, trust: Trust, signers: frozenset[bytes], wall: float
) -> str | None:
    """What is wrong with the signature over ``octets``; None if one of ``signers`` made it."""
    if signature is None:
        return "missing, it is required (RFC 6940 section 11.1)"
    try:
        reader = Reader(as_base64(signature.text))
        block = read_security_block(reader)
        reader.expect_end()
    except (OctetsError, InvalidMessage, ValueError) as error:
        return f"not a SecurityBlock: {error}"
    identity = block.signature.identity
    certificate = next((der for der in block.certificates if _identifies(identity, der)), None)
    if certificate is None:
        return "the SecurityBlock does not hold the signer's certificate"
    others = [der for der in block.certificates if der != certificate]
    try:
        signer = trust.check(certificate, wall, others)
    except CertificateError as error:
        return f"the signer's certificate: {error.detail}"
    if not signers.intersection(signer.node_ids):
        return f"signed by {signer.node_id.hex()}, who is not among the permitted signers"
    made = block.signature
    if not verify(signer, made.hash_algorithm, made.signature_algorithm, octets + identity.encode(), made.value):
        return "does not verify over these octets"
    return None


def _identifies(identity: SignerIdentity, der: bytes) -> bool:
    if identity.hash_algorithm != HASH_SHA256 or identity.type not in (CERT_HASH, CERT_HASH_NODE_ID):
        return False
    # Of a certificate with one Node-ID, and a signer has one, the hash over the DER is the identity (section
    # 6.3.4).
    return identity.type == CERT_HASH and sha256(der).digest() == identity.certificate_hash


# ---- writing ----

# What the document needs around it to fit in one ConfigUpdate message.
_MESSAGE_ROOM: Final = 3000
_END_OF_TIME: Final = 32_503_680_000


def build_configuration(
    configuration: OverlayConfiguration, signer: Signer, kind_signer: Signer | None = None
) -> bytes:
    """The signed document of ``configuration``; ``kind_signer`` signs the kinds, by default ``signer``.

    ``ConfigurationError`` if it would not fit in a message of the overlay (the profile's section 1) or has no
    end.
    """
    if not 0 < configuration.expiration < _END_OF_TIME:
        raise ConfigurationError((0, "expiration: a date before the year 3000 expected"))
    document = sign_configuration(render_configuration(configuration), signer, kind_signer)
    check_size(document, configuration)
    return document


def check_size(document: bytes, configuration: OverlayConfiguration) -> None:
    """``ConfigurationError`` unless a document fits in one ConfigUpdate under its own max-message-size."""
    if len(document) + _MESSAGE_ROOM > configuration.max_message_size:
        needed = len(document) + _MESSAGE_ROOM
        text = f"max-message-size: at least {needed} expected, or this document of {len(document)} octets cannot spread"
        raise ConfigurationError((0, text))


def sign_configuration(document: bytes, signer: Signer, kind_signer: Signer | None = None) -> bytes:
    """``document`` with the kinds and the configuration of the signer's overlay signed anew.

    Old signatures are replaced; every other octet stays.  ``ConfigurationError`` if the document is not well
    formed, has no configuration of that overlay, or would not fit in a message.
    """
    overlay_name = signer.certificate.overlay
    found = locate(document)
    ranges = [candidate for candidate in found if candidate.name.lower() == overlay_name]
    if len(ranges) != 1:
        raise ConfigurationError((0, f"one configuration of overlay {overlay_name} expected, there are {len(ranges)}"))
    whole, blocks = ranges[0].whole, ranges[0].kind_blocks
    pieces, position = [], whole.start
    for block in blocks:
        kind = block.kind.octets(document)
        element = _signature_element(b"kind-signature", kind, kind_signer or signer)
        replaced = block.signature or Range(block.kind.end, block.kind.end, "")
        pieces += [document[position : replaced.start], element]
        position = replaced.end
    configuration = b"".join((*pieces, document[position : whole.end]))
    rest = document[whole.end :]
    for old in reversed(ranges[0].signatures):
        rest = rest[: old.start - whole.end].rstrip() + rest[old.end - whole.end :]
    signature = _signature_element(b"signature", configuration, signer)
    signed = b"".join((document[: whole.start], configuration, b"\n", signature, rest))
    if len(signed) > MAXIMUM_DOCUMENT_SIZE:
        raise ConfigurationError((0, f"{len(signed)} octets; at most {MAXIMUM_DOCUMENT_SIZE} expected"))
    return signed


def _signature_element(name: bytes, octets: bytes, signer: Signer) -> bytes:
    """The element that signs the element ``octets``, in the same namespace prefix."""
    der = signer.certificate.der
    identity = SignerIdentity(CERT_HASH, HASH_SHA256, sha256(der).digest())
    made = signer.sign(octets + identity.encode())
    block = SecurityBlock((der,), Signature(made.hash_algorithm, made.signature_algorithm, identity, made.value))
    tag = tag_prefix(octets) + name
    return b"<" + tag + b">" + b64encode(block.encode()) + b"</" + tag + b">"


def render_configuration(configuration: OverlayConfiguration) -> bytes:
    """The document of ``configuration`` without signatures, one element a line."""
    expires = datetime.fromtimestamp(configuration.expiration, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<overlay xmlns="{BASE}" xmlns:redir="{REDIR_NAMESPACE}" xmlns:p2psipd="{EXTENSION_NAMESPACE}">',
        f'<configuration instance-name="{escape(configuration.overlay_name)}"'
        f' sequence="{configuration.sequence}" expiration="{expires}">',
        *[_element(name, value) for name, value in _parameters(configuration)],
        "<required-kinds>",
        *[_kind_element(kind, configuration) for kind in configuration.kinds.values()],
        "</required-kinds>",
        "</configuration>",
        "</overlay>",
        "",
    ]
    return "\n".join(lines).encode()


def _parameters(configuration: OverlayConfiguration) -> list[tuple[str, str]]:
    """The simple elements of a configuration, in the order of the RFC's example."""
    yes_no = {True: "true", False: "false"}
    node_ids = [
        (name, node_id.hex())
        for name, group in (
            ("configuration-signer", configuration.configuration_signers),
            ("kind-signer", configuration.kind_signers),
            ("bad-node", configuration.bad_nodes),
        )
        for node_id in sorted(group)
    ]
    return [
        ("topology-plugin", configuration.topology_plugin),
        ("node-id-length", str(configuration.node_id_length)),
        *[("root-cert", b64encode(der).decode()) for der in configuration.root_certs],
        *[("enrollment-server", url) for url in configuration.enrollment_servers],
        *[
            (f'self-signed-permitted digest="{digest}"', "true")
            for digest in (configuration.self_signed_digest,)
            if digest is not None
        ],
        *[
            (f'bootstrap-node address="{escape(host)}" port="{port}"', "")
            for host, port in configuration.bootstrap_nodes
        ],
        ("turn-density", str(configuration.turn_density)),
        ("clients-permitted", yes_no[configuration.clients_permitted]),
        ("no-ice", yes_no[configuration.no_ice]),
        *[("shared-secret", secret) for secret in (configuration.shared_secret,) if secret is not None],
        ("max-message-size", str(configuration.max_message_size)),
        ("initial-ttl", str(configuration.initial_ttl)),
        ("overlay-reliability-timer", str(configuration.reliability_timer_ms)),
        *[("overlay-link-protocol", protocol) for protocol in configuration.overlay_link_protocols],
        *node_ids,
        ("redir:branching-factor", str(configuration.redir_branching_factor)),
        ("p2psipd:users-provide-services", yes_no[configuration.users_provide_services]),
        *[("mandatory-extension", namespace) for namespace in configuration.mandatory_extensions],
    ]


def _element(start: str, text: str) -> str:
    """An element from its start tag's inside and its text."""
    name = start.partition(" ")[0]
    return f"<{start}>{escape(text, quote=False)}</{name}>" if text else f"<{start}/>"


def _kind_element(kind: Kind, configuration: OverlayConfiguration) -> str:
    identity = f'name="{kind.name}"' if kind.name in REGISTERED_KINDS else f'id="{kind.id}"'
    inside = [
        _element("data-model", kind.data_model.name),
        _element("access-control", kind.access_control),
        _element("max-count", str(kind.max_count)),
        _element("max-size", str(kind.max_size)),
    ]
    if kind.max_node_multiple:
        inside.append(_element("max-node-multiple", str(kind.max_node_multiple)))
    if kind.id == SIP_REGISTRATION and configuration.domain_patterns is not None:
        patterns = [_element("sip:pattern", pattern) for pattern in configuration.domain_patterns]
        # The prefix is declared here, so that a kind can be cut out and sent alone.
        start = f'<sip:domain-restriction xmlns:sip="{SIP_NAMESPACE}" enable="true">'
        inside.append(f"{start}{''.join(patterns)}</sip:domain-restriction>")
    return f"<kind-block>\n<kind {identity}>{''.join(inside)}</kind>\n</kind-block>"

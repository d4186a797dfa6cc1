"""What an overlay's configuration document says, as a value (RFC 6940 section 11.1, RFC 7904 section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Final

import attrs

from p2psipd.proto.identity.certificate import Trust
from p2psipd.proto.reload.ids import NODE_ID_LENGTH, overlay_hash
from p2psipd.proto.reload.kinds import STANDARD_KINDS, Kind
from p2psipd.proto.reload.redir import DEFAULT_BRANCHING_FACTOR

TOPOLOGY_PLUGIN: Final = "P2PSIPD-KADEMLIA"
EXTENSION_NAMESPACE: Final = "urn:x-p2psipd:overlay:1"
SIP_NAMESPACE: Final = "urn:ietf:params:xml:ns:p2p:config-base:sip"
REDIR_NAMESPACE: Final = "urn:ietf:params:xml:ns:p2p:redir"
DEFAULT_PORT: Final = 6084
SEQUENCE_MODULUS: Final = 65535
SUPPORTED_EXTENSIONS: Final = frozenset({EXTENSION_NAMESPACE, REDIR_NAMESPACE, SIP_NAMESPACE})


def _lower(name: str) -> str:
    return name.lower()


@attrs.frozen(kw_only=True)
class OverlayConfiguration:
    """One overlay's parameters.  The defaults are those of the overlays that we make; what a document leaves
    out has the RFC's defaults instead.  Without a document (in simulations and tests) give ``overlay_name``
    and what matters.

    ``expiration`` is unix seconds; ``root_certs`` are DER; ``bootstrap_nodes`` are (address, port);
    ``domain_patterns`` are RFC 7904's patterns, None where the document has no restriction, so that every
    domain is served; ``self_signed_digest`` is "sha1" or "sha256" where self-signed certificates are
    permitted; ``document`` is the whole signed document, ``kind_blocks`` its kind-block elements as they
    stand, and ``foreign`` the names of elements in it that are not kept here.
    """

    overlay_name: str = attrs.field(converter=_lower)
    sequence: int = 0
    expiration: float = float("inf")
    topology_plugin: str = TOPOLOGY_PLUGIN
    node_id_length: int = NODE_ID_LENGTH
    root_certs: tuple[bytes, ...] = ()
    enrollment_servers: tuple[str, ...] = ()
    self_signed_digest: str | None = None
    bootstrap_nodes: tuple[tuple[str, int], ...] = ()
    turn_density: int = 1
    clients_permitted: bool = True
    no_ice: bool = True
    shared_secret: str | None = None
    initial_ttl: int = 20
    max_message_size: int = 65_000
    reliability_timer_ms: int = 1_000
    overlay_link_protocols: tuple[str, ...] = ("TLS",)
    configuration_signers: frozenset[bytes] = frozenset()
    kind_signers: frozenset[bytes] = frozenset()
    bad_nodes: frozenset[bytes] = frozenset()
    mandatory_extensions: tuple[str, ...] = ()
    kinds: Mapping[int, Kind] = attrs.field(factory=lambda: dict(STANDARD_KINDS))
    domain_patterns: tuple[str, ...] | None = None
    redir_branching_factor: int = DEFAULT_BRANCHING_FACTOR
    users_provide_services: bool = False
    document: bytes = b""
    kind_blocks: tuple[bytes, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def overlay_hash(self) -> int:
        """The forwarding header's ``overlay`` field."""
        return overlay_hash(self.overlay_name)

    @property
    def domains(self) -> tuple[str, ...]:
        """The served SIP domains that the document names literally; the overlay's own name if it names
        none.
        """
        literal = [literal_domain(pattern) for pattern in self.domain_patterns or ()]
        return tuple(domain for domain in literal if domain) or (self.overlay_name,)

    def serves(self, domain: str) -> bool:
        """Whether AORs of ``domain`` may be registered in this overlay (RFC 7904 section 3.4)."""
        return _serves(self.domain_patterns, domain.lower())

    def trust(self) -> Trust:
        """Who may take part under this configuration; make one for each new document and keep it."""
        return Trust(
            self.root_certs,
            self.overlay_name,
            self.bad_nodes,
            self_signed_digest=self.self_signed_digest,
            node_id_length=self.node_id_length,
        )


def newer(a: int, b: int) -> bool:
    """Whether sequence number ``a`` is newer than ``b``, counting modulo 65535."""
    return 0 < (a - b) % SEQUENCE_MODULUS <= SEQUENCE_MODULUS // 2


def next_sequence(sequence: int) -> int:
    """The sequence number after this one: 65534 is followed by 0."""
    return (sequence + 1) % SEQUENCE_MODULUS


def trust_fingerprint(configuration: OverlayConfiguration) -> str:
    """What a person compares before the first document is trusted: "sha256:" and 64 hexadecimal digits.

    It covers the root certificates, the configuration signers and whether self-signed certificates are
    permitted, so it stays the same from document to document until one of them changes.
    """
    digest = sha256(b"p2psipd overlay trust")
    digest.update(configuration.overlay_name.encode() + b"\x00")
    digest.update((configuration.self_signed_digest or "").encode() + b"\x00")
    for group in (configuration.root_certs, configuration.configuration_signers):
        digest.update(b"".join(sorted(sha256(item).digest() for item in group)) + b"\x00")
    return f"sha256:{digest.hexdigest()}"


def domain_pattern(domain: str) -> str:
    """The pattern that matches exactly one domain."""
    return domain.lower().replace(".", "\\.")


def literal_domain(pattern: str) -> str:
    """The one domain that a pattern matches, in lower case; empty if it is not of that simple form."""
    if not re.fullmatch(r"(?:[A-Za-z0-9-]|\\[.-])+", pattern):
        return ""
    return pattern.replace("\\", "").lower()


_PATTERN_TOKEN: Final = re.compile(r"\\.|\[\^?\]?[^\]]*\]|\{[0-9]*,?[0-9]*\}|.", re.DOTALL)
_MAXIMUM_PATTERN: Final = 256
_MAXIMUM_DOMAIN: Final = 253
_MAXIMUM_REPETITIONS: Final = 2


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a domain pattern, a POSIX extended regular expression; None if nothing.

    Python's engine matches it, which backtracks: hence at most two repetitions, and none of a group, so that
    the longest domain is matched in some 60,000 steps at the most.  What Python reads otherwise than POSIX is
    refused.
    """
    if not 0 < len(pattern) <= _MAXIMUM_PATTERN or not re.fullmatch(r"[!-~]+", pattern):
        return f"1 to {_MAXIMUM_PATTERN} visible ASCII characters expected"
    repetitions, before = 0, ""
    for token in _PATTERN_TOKEN.findall(pattern):
        repeats = token in ("*", "+", "?") or (token[0] == "{" and len(token) > 1)
        if repeats and (before in ("", "(", "|", "^") or before == "quantifier" or (before == ")" and token != "?")):
            return f"{token!r} after {before or 'nothing'!r}: a repetition of one character or bracket expected"
        if (
            re.fullmatch(r"\\[A-Za-z0-9]", token)
            or (before == "(" and token == "?")
            or re.search(r"(?<=.)\[|--|&&|~~|\|\|", token)
        ):
            return f"{token!r} is not known here"
        repetitions += repeats and token != "?"
        before = "quantifier" if repeats else token
    if repetitions > _MAXIMUM_REPETITIONS:
        return f"{repetitions} repetitions; at most {_MAXIMUM_REPETITIONS} expected"
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        return f"not a regular expression: {error}"
    return None


@lru_cache(maxsize=4096)
def _serves(patterns: tuple[str, ...] | None, domain: str) -> bool:
    if not domain or len(domain) > _MAXIMUM_DOMAIN:
        return False
    if patterns is None:
        return True
    return any(re.fullmatch(pattern, domain, re.IGNORECASE | re.ASCII) for pattern in patterns)

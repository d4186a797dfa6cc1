"""Kinds of stored data, and who may store them (RFC 6940 sections 7.3 and 14.6, RFC 7904, RFC 7374, our
profile).

``check_access`` is the one question: may this signer have written this value at this resource?  It is asked
of the signer of every stored value and, for a Store that is not a replica's, of the signer of the StoreReq
too (section 7.3). It answers from its arguments alone, so it is the same on every holder and every reader.

Readings of the RFCs, where they leave a choice:

- NODE-MULTIPLE hashes the Node-ID and one octet for i, from 1 to the kind's max-node-multiple: TurnServer
carries
  the iteration as a uint8 (RFC 6940 section 9).
- A certificate with several Node-IDs needs the Node-ID that the SignerIdentity indicates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from p2psipd.proto.identity.certificate import NodeCertificate, Role
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage
from p2psipd.proto.reload.ids import NODE_ID_LENGTH, KindId, ResourceId, resource_id
from p2psipd.proto.reload.messages import DataModel, DataValue, DictionaryEntry, StoredDataValue
from p2psipd.proto.reload.redir import RedirServiceProvider, belongs_to_node
from p2psipd.proto.reload.sip_usage import digest_key_resource, is_alias_key, read_claim

SIP_REGISTRATION: Final = KindId(0x1)
TURN_SERVICE: Final = KindId(0x2)
CERTIFICATE_BY_NODE: Final = KindId(0x3)
CERTIFICATE_BY_USER: Final = KindId(0x10)
REDIR: Final = KindId(0x104)
PROXY_REGISTRATION: Final = KindId(0xF0000001)
DIGEST_CREDENTIAL: Final = KindId(0xF0000002)
DIGEST_KEY: Final = KindId(0xF0000003)

USER_MATCH: Final = "USER-MATCH"
NODE_MATCH: Final = "NODE-MATCH"
USER_NODE_MATCH: Final = "USER-NODE-MATCH"
NODE_MULTIPLE: Final = "NODE-MULTIPLE"
NODE_ID_MATCH: Final = "NODE-ID-MATCH"
P2PSIPD_REGISTRAR: Final = "P2PSIPD-REGISTRAR"
P2PSIPD_PROVISIONING: Final = "P2PSIPD-PROVISIONING"


class Kind(NamedTuple):
    """A kind's definition.

    ``max_count`` is the number of values at one resource, ``max_size`` the octets of one value, and
    ``max_node_multiple`` the greatest i of NODE-MULTIPLE (0 for other policies).
    """

    id: int
    name: str
    data_model: DataModel
    access_control: str
    max_count: int
    max_size: int
    max_node_multiple: int = 0


STANDARD_KINDS: Final[dict[int, Kind]] = {
    kind.id: kind
    for kind in (
        Kind(SIP_REGISTRATION, "SIP-REGISTRATION", DataModel.DICTIONARY, USER_NODE_MATCH, 32, 2048),
        Kind(TURN_SERVICE, "TURN-SERVICE", DataModel.SINGLE, NODE_MULTIPLE, 1, 64, 20),
        Kind(CERTIFICATE_BY_NODE, "CERTIFICATE_BY_NODE", DataModel.ARRAY, NODE_MATCH, 4, 4096),
        Kind(CERTIFICATE_BY_USER, "CERTIFICATE_BY_USER", DataModel.ARRAY, USER_MATCH, 16, 4096),
        Kind(REDIR, "REDIR", DataModel.DICTIONARY, NODE_ID_MATCH, 1000, 1024),
        Kind(PROXY_REGISTRATION, "PROXY-REGISTRATION", DataModel.DICTIONARY, P2PSIPD_REGISTRAR, 32, 8192),
        Kind(DIGEST_CREDENTIAL, "DIGEST-CREDENTIAL", DataModel.SINGLE, P2PSIPD_PROVISIONING, 1, 1024),
        Kind(DIGEST_KEY, "DIGEST-KEY", DataModel.DICTIONARY, P2PSIPD_PROVISIONING, 10_000, 256),
    )
}
"""The kinds of our overlays, by Kind-ID, with the limits that ``p2psip overlay init`` writes."""

REGISTERED_KINDS: Final[dict[str, Kind]] = {
    kind.name: kind for kind in STANDARD_KINDS.values() if kind.id < PROXY_REGISTRATION
}
"""The kinds that IANA has registered, by name; data model and access control are the registry's."""


class StorageRules(Protocol):
    """What ``check_access`` needs of the overlay's configuration; ``OverlayConfiguration`` is one."""

    @property
    def overlay_name(self) -> str:
        """The overlay's name, in lower case."""
        ...

    @property
    def redir_branching_factor(self) -> int:
        """The branching factor of ReDiR trees (RFC 7374 section 8)."""
        ...

    @property
    def users_provide_services(self) -> bool:
        """Whether users' devices may announce services with REDIR."""
        ...

    def serves(self, domain: str) -> bool:
        """Whether AORs of this SIP domain belong to the overlay (RFC 7904 section 3.4)."""
        ...


class _Attempt(NamedTuple):
    """One value, one signer: what a policy judges."""

    kind: Kind
    resource: ResourceId
    signer: NodeCertificate
    node_id: bytes
    key: bytes | None
    data: DataValue
    rules: StorageRules


def check_access(
    kind: Kind,
    resource: ResourceId,
    signer: NodeCertificate,
    value: StoredDataValue,
    rules: StorageRules,
    *,
    node_id: bytes | None = None,
) -> None:
    """Raise ``Forbidden``, whose detail names the broken rule, unless ``signer`` may write ``value`` at
    ``resource``.

    ``node_id`` is the Node-ID that the SignerIdentity indicates; needed only for a certificate with several.
    """
    if node_id is None:
        if len(signer.node_ids) != 1:
            raise Forbidden(
                "the signer's certificate has several Node-IDs and the signature does not say which"
            )
        node_id = signer.node_ids[0]
    elif node_id not in signer.node_ids:
        raise Forbidden("the indicated Node-ID is not in the signer's certificate")
    policy = _POLICIES.get(kind.access_control)
    if policy is None:
        raise Forbidden(f"access policy {kind.access_control} is not known here")
    key = value.key if isinstance(value, DictionaryEntry) else None
    data = value if isinstance(value, DataValue) else value.value
    _check_role(kind, signer, rules)
    policy(_Attempt(kind, resource, signer, node_id, key, data, rules))
    if kind.id == SIP_REGISTRATION and not rules.serves(domain_of(signer.user)):
        raise Forbidden(f"{kind.name}: the domain of {signer.user} is not served by this overlay")


def domain_of(aor: str) -> str:
    """The domain of an AOR or user name: what follows the last "@"; empty if there is none."""
    return aor.rpartition("@")[2] if "@" in aor else ""


# ---- the table of roles (overlay profile, section 2) ----

_NODES: Final = (Role.PEER, Role.REGISTRAR)
_ROLES: Final[dict[int, tuple[Role, ...]]] = {
    SIP_REGISTRATION: (Role.USER,),
    TURN_SERVICE: _NODES,
    CERTIFICATE_BY_NODE: (*_NODES, Role.USER),
    CERTIFICATE_BY_USER: (*_NODES, Role.USER),
    REDIR: _NODES,
}


def _check_role(kind: Kind, signer: NodeCertificate, rules: StorageRules) -> None:
    """Kinds that are not in the table are governed by their policy alone, except that a SIGNER is no node at
    all.
    """
    if signer.role is Role.SIGNER:
        raise Forbidden(f"{kind.name}: a configuration signer stores nothing")
    allowed = _ROLES.get(kind.id)
    if allowed is None or signer.role in allowed:
        return
    if kind.id == REDIR and signer.role is Role.USER and rules.users_provide_services:
        return
    raise Forbidden(f"{kind.name}: not for a {signer.role.value} certificate ({signer.user})")


# ---- the policies ----


def _user_match(attempt: _Attempt) -> None:
    if resource_id(attempt.signer.user) != attempt.resource:
        raise Forbidden(
            f"{attempt.kind.access_control}: user name {attempt.signer.user} is not this resource's name"
        )


def _node_match(attempt: _Attempt) -> None:
    if resource_id(attempt.node_id) != attempt.resource:
        raise Forbidden("NODE-MATCH: the signer's Node-ID does not hash to this resource")


def _user_node_match(attempt: _Attempt) -> None:
    _user_match(attempt)
    _key_is_node_id(attempt)


def _key_is_node_id(attempt: _Attempt) -> None:
    if attempt.key is None:
        raise Forbidden(f"{attempt.kind.access_control}: only a dictionary's values can be written so")
    if attempt.key != attempt.node_id:
        raise Forbidden(f"{attempt.kind.access_control}: the dictionary key is not the signer's Node-ID")


def _node_multiple(attempt: _Attempt) -> None:
    greatest = min(attempt.kind.max_node_multiple, 255)
    if not any(
        resource_id(attempt.node_id + bytes((i,))) == attempt.resource for i in range(1, greatest + 1)
    ):
        raise Forbidden(f"NODE-MULTIPLE: no i up to {greatest} makes H(Node-ID || i) this resource")


def _node_id_match(attempt: _Attempt) -> None:
    """RFC 7374 section 5."""
    _key_is_node_id(attempt)
    if not attempt.data.exists:
        return
    try:
        provider = RedirServiceProvider.decode(attempt.data.value)
    except InvalidMessage as fault:
        raise Forbidden(f"NODE-ID-MATCH: {fault.detail}") from None
    if provider.resource != attempt.resource:
        raise Forbidden("NODE-ID-MATCH: H(namespace, level, node) is not this resource")
    if not belongs_to_node(
        attempt.node_id, provider.level, provider.node, attempt.rules.redir_branching_factor
    ):
        raise Forbidden("NODE-ID-MATCH: the Node-ID lies in none of the tree node's intervals")


def _registrar(attempt: _Attempt) -> None:
    """P2PSIPD-REGISTRAR: bindings by registrars, aliases by the provisioning side."""
    role, key = attempt.signer.role, attempt.key
    if role is not Role.REGISTRAR and role is not Role.PROVISIONING:
        raise Forbidden(f"P2PSIPD-REGISTRAR: {attempt.signer.user} is neither a registrar nor provisioning")
    if key is None:
        raise Forbidden("P2PSIPD-REGISTRAR: only a dictionary's values can be written so")
    if not attempt.data.exists:
        if attempt.data.value:
            raise Forbidden("P2PSIPD-REGISTRAR: a removal has an empty value")
        if role is Role.PROVISIONING and not is_alias_key(key):
            raise Forbidden("P2PSIPD-REGISTRAR: a provisioning certificate removes aliases only")
        return
    try:
        stored = read_claim(attempt.data.value)
    except InvalidMessage as fault:
        raise Forbidden(f"P2PSIPD-REGISTRAR: {fault.detail}") from None
    if role is not (Role.PROVISIONING if stored.is_alias else Role.REGISTRAR):
        what = "an alias" if stored.is_alias else "a binding"
        raise Forbidden(f"P2PSIPD-REGISTRAR: {what} is not for a {role.value} certificate")
    if resource_id(stored.aor) != attempt.resource:
        raise Forbidden(f"P2PSIPD-REGISTRAR: {stored.aor} is not this resource's name")
    if not attempt.rules.serves(domain_of(stored.aor)):
        raise Forbidden(f"P2PSIPD-REGISTRAR: the domain of {stored.aor} is not served by this overlay")
    if key != stored.key:
        raise Forbidden("P2PSIPD-REGISTRAR: the dictionary key is not the one that the value demands")


def _provisioning(attempt: _Attempt) -> None:
    """P2PSIPD-PROVISIONING."""
    if attempt.signer.role is not Role.PROVISIONING:
        raise Forbidden(f"P2PSIPD-PROVISIONING: {attempt.signer.user} is not a provisioning name")
    if attempt.kind.id == DIGEST_KEY:
        if attempt.resource != digest_key_resource(attempt.rules.overlay_name):
            raise Forbidden(
                "P2PSIPD-PROVISIONING: wrapped keys are stored at the overlay's digest-key resource"
            )
        if attempt.key is None or len(attempt.key) != NODE_ID_LENGTH + 4:
            raise Forbidden("P2PSIPD-PROVISIONING: the dictionary key is a Node-ID and an epoch")


_POLICIES: Final[dict[str, Callable[[_Attempt], None]]] = {
    USER_MATCH: _user_match,
    NODE_MATCH: _node_match,
    USER_NODE_MATCH: _user_node_match,
    NODE_MULTIPLE: _node_multiple,
    NODE_ID_MATCH: _node_id_match,
    P2PSIPD_REGISTRAR: _registrar,
    P2PSIPD_PROVISIONING: _provisioning,
}
ACCESS_POLICIES: Final = frozenset(_POLICIES)
"""The access policies that a configuration document may name."""

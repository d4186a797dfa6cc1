"""Who may store what: the access policies, and the profile's table of roles, each cell with its negative cases."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import NodeCertificate, Role, role_name
from p2psipd.proto.identity.signing import null_certificate
from p2psipd.proto.reload.errors import ErrorCode, Forbidden
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import (
    CERTIFICATE_BY_NODE,
    CERTIFICATE_BY_USER,
    DIGEST_CREDENTIAL,
    DIGEST_KEY,
    NODE_MULTIPLE,
    PROXY_REGISTRATION,
    REDIR,
    SIP_REGISTRATION,
    STANDARD_KINDS,
    TURN_SERVICE,
    USER_MATCH,
    Kind,
    check_access,
    domain_of,
)
from p2psipd.proto.reload.messages import ArrayEntry, DataModel, DataValue, DictionaryEntry, StoredDataValue
from p2psipd.proto.reload.overlay_config import OverlayConfiguration, domain_pattern
from p2psipd.proto.reload.redir import RedirServiceProvider
from p2psipd.proto.reload.sip_usage import ProxyAlias, ProxyRegistration, digest_key_entry, digest_key_resource
from p2psipd.proto.reload.wire import NodeDestination

OVERLAY = "overlay.example"
NODE = bytes(range(1, 17))
OTHER = bytes(range(101, 117))
RULES = OverlayConfiguration(
    overlay_name=OVERLAY, domain_patterns=(domain_pattern(OVERLAY), domain_pattern("phones.example"))
)
OPEN_RULES = OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=(r".*",), users_provide_services=True)
ALICE = "alice@overlay.example"
BOB = "bob@overlay.example"


def node(role: Role, node_id: bytes = NODE, user: str = ALICE) -> NodeCertificate:
    """A certificate of that role."""
    return null_certificate(node_id, user if role is Role.USER else role_name(role, node_id, OVERLAY), OVERLAY)


PEER, REGISTRAR, PROVISIONING = node(Role.PEER), node(Role.REGISTRAR), node(Role.PROVISIONING)
SIGNER, USER = node(Role.SIGNER), node(Role.USER)
EVERYBODY = (PEER, REGISTRAR, PROVISIONING, SIGNER, USER)


def entry(key: bytes, value: bytes = b"value", exists: bool = True) -> DictionaryEntry:
    """A dictionary entry."""
    return DictionaryEntry(key, DataValue(exists, value))


def binding(aor: str = ALICE, **changes: object) -> ProxyRegistration:
    """A phone's binding."""
    made = ProxyRegistration(
        aor, (NodeDestination(NodeId(NODE)),), "sip:alice@192.0.2.1:5060", instance_id="urn:uuid:1"
    )
    return made._replace(**changes)


def redir(node_id: bytes = NODE, level: int = 0, tree_node: int = 0) -> RedirServiceProvider:
    """A service's announcement."""
    return RedirServiceProvider((NodeDestination(NodeId(node_id)),), "turn-server", level, tree_node)


def keyed(value: ProxyRegistration | ProxyAlias, key: bytes | None = None) -> DictionaryEntry:
    """A value of PROXY-REGISTRATION under its own key, or another."""
    return entry(value.key if key is None else key, value.encode())


class Case(NamedTuple):
    """One cell: the kind, the resource, the value, who may store it, and under which rules."""

    what: str
    kind: int
    resource: ResourceId
    value: StoredDataValue
    allowed: tuple[NodeCertificate, ...]
    rules: OverlayConfiguration = RULES


AT_ALICE = resource_id(ALICE)
AT_KEYS = digest_key_resource(OVERLAY)
A_CERTIFICATE = ArrayEntry(0, DataValue(True, b"der"))
ALIAS = ProxyAlias("+4930123@phones.example", ALICE)
AT_ALIAS = resource_id(ALIAS.aor)

CASES = [
    Case("own AOR, own Node-ID", SIP_REGISTRATION, AT_ALICE, entry(NODE), (USER,)),
    Case("own AOR, removal", SIP_REGISTRATION, AT_ALICE, entry(NODE, b"", False), (USER,)),
    Case("own AOR, another's Node-ID", SIP_REGISTRATION, AT_ALICE, entry(OTHER), ()),
    Case("another's AOR", SIP_REGISTRATION, resource_id(BOB), entry(NODE), ()),
    Case("not a dictionary", SIP_REGISTRATION, AT_ALICE, DataValue(True, b""), ()),
    Case("a peer's own name", SIP_REGISTRATION, resource_id(PEER.user), entry(NODE), (), OPEN_RULES),
    Case("own Node-ID", CERTIFICATE_BY_NODE, resource_id(NODE), A_CERTIFICATE, (PEER, REGISTRAR, USER)),
    Case("another's Node-ID", CERTIFICATE_BY_NODE, resource_id(OTHER), A_CERTIFICATE, ()),
    Case("the Node-ID itself", CERTIFICATE_BY_NODE, ResourceId(NODE), A_CERTIFICATE, ()),
    Case("own user name", CERTIFICATE_BY_USER, AT_ALICE, A_CERTIFICATE, (USER,)),
    Case("a peer's user name", CERTIFICATE_BY_USER, resource_id(PEER.user), A_CERTIFICATE, (PEER,)),
    Case("a registrar's user name", CERTIFICATE_BY_USER, resource_id(REGISTRAR.user), A_CERTIFICATE, (REGISTRAR,)),
    Case("another's user name", CERTIFICATE_BY_USER, resource_id(BOB), A_CERTIFICATE, ()),
    Case("i = 1", TURN_SERVICE, resource_id(NODE + b"\x01"), DataValue(True, b""), (PEER, REGISTRAR)),
    Case("i = 20", TURN_SERVICE, resource_id(NODE + b"\x14"), DataValue(True, b""), (PEER, REGISTRAR)),
    Case("i = 21", TURN_SERVICE, resource_id(NODE + b"\x15"), DataValue(True, b""), ()),
    Case("i = 0", TURN_SERVICE, resource_id(NODE + b"\x00"), DataValue(True, b""), ()),
    Case("another's i = 1", TURN_SERVICE, resource_id(OTHER + b"\x01"), DataValue(True, b""), ()),
    Case("root of the tree", REDIR, redir().resource, entry(NODE, redir().encode()), (PEER, REGISTRAR)),
    Case("users' services", REDIR, redir().resource, entry(NODE, redir().encode()), (PEER, REGISTRAR, USER),
         OPEN_RULES),
    Case("own interval", REDIR, redir(level=1).resource, entry(NODE, redir(level=1).encode()), (PEER, REGISTRAR)),
    Case("not its interval", REDIR, redir(level=1, tree_node=9).resource,
         entry(NODE, redir(level=1, tree_node=9).encode()), ()),
    Case("another tree node", REDIR, redir(level=1).resource, entry(NODE, redir().encode()), ()),
    Case("another's key", REDIR, redir().resource, entry(OTHER, redir().encode()), ()),
    Case("removal", REDIR, redir(level=3).resource, entry(NODE, b"", False), (PEER, REGISTRAR)),
    Case("not a provider", REDIR, redir().resource, entry(NODE, b"rubbish"), ()),
    Case("a binding", PROXY_REGISTRATION, AT_ALICE, keyed(binding()), (REGISTRAR,)),
    Case("of another domain it serves", PROXY_REGISTRATION, resource_id("x@phones.example"),
         keyed(binding("x@phones.example")), (REGISTRAR,)),
    Case("of a domain it does not serve", PROXY_REGISTRATION, resource_id("x@other.example"),
         keyed(binding("x@other.example")), ()),
    Case("at another's resource", PROXY_REGISTRATION, resource_id(BOB), keyed(binding()), ()),
    Case("under another key", PROXY_REGISTRATION, AT_ALICE, keyed(binding(), bytes(16)), ()),
    Case("another's key replaced", PROXY_REGISTRATION, AT_ALICE, keyed(binding(reg_id=2)), (REGISTRAR,)),
    Case("any entry removed", PROXY_REGISTRATION, AT_ALICE, entry(bytes(16), b"", False), (REGISTRAR,)),
    Case("a removal with a value", PROXY_REGISTRATION, AT_ALICE, entry(bytes(16), b"x", False), ()),
    Case("not a registration", PROXY_REGISTRATION, AT_ALICE, entry(bytes(16), b"rubbish"), ()),
    Case("a binding that is no entry", PROXY_REGISTRATION, AT_ALICE, DataValue(True, binding().encode()), ()),
    Case("an alias", PROXY_REGISTRATION, AT_ALIAS, keyed(ALIAS), (PROVISIONING,)),
    Case("an alias at its target", PROXY_REGISTRATION, AT_ALICE, keyed(ALIAS), ()),
    Case("an alias removed", PROXY_REGISTRATION, AT_ALIAS, entry(ALIAS.key, b"", False), (REGISTRAR, PROVISIONING)),
    Case("a password", DIGEST_CREDENTIAL, AT_ALICE, DataValue(True, b"sealed"), (PROVISIONING,)),
    Case("a password removed", DIGEST_CREDENTIAL, AT_ALICE, DataValue(False, b""), (PROVISIONING,)),
    Case("an epoch's key", DIGEST_KEY, AT_KEYS, entry(digest_key_entry(OTHER, 1)), (PROVISIONING,)),
    Case("an epoch's key elsewhere", DIGEST_KEY, AT_ALICE, entry(digest_key_entry(OTHER, 1)), ()),
    Case("an epoch's key under no epoch", DIGEST_KEY, AT_KEYS, entry(OTHER), ()),
]  # fmt: skip


@pytest.mark.parametrize("signer", EVERYBODY, ids=lambda signer: signer.role.value)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{STANDARD_KINDS[case.kind].name}: {case.what}")
def test_the_table_of_roles(case: Case, signer: NodeCertificate) -> None:
    """Each value is stored by exactly the roles that the profile's table names; all others get Error_Forbidden."""
    kind = STANDARD_KINDS[case.kind]
    if signer in case.allowed:
        check_access(kind, case.resource, signer, case.value, case.rules)
        return
    with pytest.raises(Forbidden) as caught:
        check_access(kind, case.resource, signer, case.value, case.rules)
    assert caught.value.code == ErrorCode.FORBIDDEN
    assert caught.value.detail.partition(":")[0] in (kind.name, kind.access_control), "the detail names the rule"


def test_sip_registration_needs_a_served_domain() -> None:
    """An AOR outside the configured namespaces is refused though the user owns it (RFC 7904 section 3.3)."""
    kind, user = STANDARD_KINDS[SIP_REGISTRATION], "alice@other.example"
    signer = node(Role.USER, user=user)
    with pytest.raises(Forbidden, match="not served"):
        check_access(kind, resource_id(user), signer, entry(NODE), RULES)
    check_access(kind, resource_id(user), signer, entry(NODE), OPEN_RULES)


def test_certificate_with_several_node_ids_must_say_which() -> None:
    """With several Node-IDs only the one that the SignerIdentity indicates counts (RFC 6940 section 7.3.2)."""
    several = NodeCertificate(b"der", (NODE, OTHER), ALICE, OVERLAY, b"", 0.0, 4e9)
    kind = STANDARD_KINDS[SIP_REGISTRATION]
    check_access(kind, AT_ALICE, several, entry(OTHER), RULES, node_id=OTHER)
    for key, node_id in ((OTHER, None), (OTHER, NODE), (bytes(16), bytes(16))):
        with pytest.raises(Forbidden):
            check_access(kind, AT_ALICE, several, entry(key), RULES, node_id=node_id)


def test_private_kind_under_a_standard_policy() -> None:
    """A kind that only the document defines is governed by its policy; the signer of documents stores nothing."""
    kind = Kind(0xF0001000, "private", DataModel.SINGLE, USER_MATCH, 1, 100)
    check_access(kind, resource_id(PEER.user), PEER, DataValue(True, b""), RULES)
    check_access(kind, resource_id(PROVISIONING.user), PROVISIONING, DataValue(True, b""), RULES)
    with pytest.raises(Forbidden):
        check_access(kind, resource_id(SIGNER.user), SIGNER, DataValue(True, b""), RULES)
    with pytest.raises(Forbidden, match="EXP-MATCH"):
        check_access(kind._replace(access_control="EXP-MATCH"), AT_ALICE, USER, DataValue(True, b""), RULES)


def test_node_multiple_is_bounded() -> None:
    """However large max-node-multiple is, the verifier tries at most 255 values of i."""
    kind = Kind(0xF0001000, "private", DataModel.SINGLE, NODE_MULTIPLE, 1, 100, 2**31)
    check_access(kind, resource_id(NODE + b"\xff"), PEER, DataValue(True, b""), RULES)
    with pytest.raises(Forbidden):
        check_access(kind, AT_ALICE, PEER, DataValue(True, b""), RULES)


@given(
    kind=st.sampled_from(list(STANDARD_KINDS.values())),
    resource=st.binary(min_size=16, max_size=16) | st.sampled_from([AT_ALICE, AT_KEYS]),
    key=st.binary(max_size=24) | st.just(NODE),
    value=st.binary(max_size=60) | st.sampled_from([binding().encode(), redir().encode()]),
    exists=st.booleans(),
    signer=st.sampled_from(EVERYBODY),
)
def test_any_value_is_judged(
    kind: Kind, resource: bytes, key: bytes, value: bytes, exists: bool, signer: NodeCertificate
) -> None:
    """Whatever the value, the answer is yes or Forbidden."""
    data = DataValue(exists, value)
    for stored in (data, ArrayEntry(3, data), DictionaryEntry(key, data)):
        try:
            check_access(kind, ResourceId(resource), signer, stored, RULES)
        except Forbidden:
            continue
        assert resource in (AT_ALICE, AT_KEYS) or kind.id in (PROXY_REGISTRATION, REDIR, DIGEST_CREDENTIAL)


def test_registered_values_are_the_registry_s() -> None:
    """Data models and policies of the registered kinds are those of RFC 6940, RFC 7904 and RFC 7374."""
    expected = {
        0x1: ("SIP-REGISTRATION", "DICTIONARY", "USER-NODE-MATCH"),
        0x2: ("TURN-SERVICE", "SINGLE", "NODE-MULTIPLE"),
        0x3: ("CERTIFICATE_BY_NODE", "ARRAY", "NODE-MATCH"),
        0x10: ("CERTIFICATE_BY_USER", "ARRAY", "USER-MATCH"),
        0x104: ("REDIR", "DICTIONARY", "NODE-ID-MATCH"),
        0xF0000001: ("PROXY-REGISTRATION", "DICTIONARY", "P2PSIPD-REGISTRAR"),
        0xF0000002: ("DIGEST-CREDENTIAL", "SINGLE", "P2PSIPD-PROVISIONING"),
        0xF0000003: ("DIGEST-KEY", "DICTIONARY", "P2PSIPD-PROVISIONING"),
    }
    assert {k.id: (k.name, k.data_model.name, k.access_control) for k in STANDARD_KINDS.values()} == expected
    assert STANDARD_KINDS[TURN_SERVICE].max_node_multiple == 20


@pytest.mark.parametrize(("aor", "domain"), [(ALICE, OVERLAY), ("a@b@c", "c"), ("nobody", ""), ("", ""), ("a@", "")])
def test_domain_of(aor: str, domain: str) -> None:
    """The domain of an AOR is what follows its last at sign."""
    assert domain_of(aor) == domain

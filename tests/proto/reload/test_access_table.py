"""The table of the overlay's profile, section 2: who may store what, and what answers whoever may not.

Every row is judged three times, since the answer must be the same everywhere: by the responsible peer (an
original Store), by a holder of copies (a replica Store), and by a reader (the values of a FetchAns).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.identity.signing import Credential, RealVerifier
from p2psipd.proto.reload import kinds
from p2psipd.proto.reload.errors import Forbidden, ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import STANDARD_KINDS
from p2psipd.proto.reload.messages import (
    ArrayEntry,
    DataModel,
    DataValue,
    DictionaryEntry,
    FetchAns,
    FetchKindResponse,
    StoredData,
    StoreKindData,
    StoreReq,
)
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.redir import RedirServiceProvider
from p2psipd.proto.reload.sip_usage import (
    ProxyAlias,
    ProxyRegistration,
    SipRegistrationRoute,
    digest_key_entry,
    digest_key_resource,
)
from p2psipd.proto.reload.storage import Storage
from p2psipd.proto.reload.values import sign_value, verify_fetched
from p2psipd.proto.reload.wire import NodeDestination
from tests.proto.reload.storage_world import (
    NOW_MS,
    OVERLAY,
    WALL,
    certificates,
    credential,
    node_id,
    trust,
)

SERVED = "served.example"
ALICE = f"alice@{SERVED}"
STRANGER = "mallory@elsewhere.example"


def configuration(users_provide_services: bool) -> OverlayConfiguration:
    """An overlay that serves its own name and one more domain."""
    return OverlayConfiguration(
        overlay_name=OVERLAY,
        domain_patterns=(r"served\.example", r"overlay\.example"),
        users_provide_services=users_provide_services,
    )


class Attempt(NamedTuple):
    """One attempt to store: a kind, a place, an entry key and a value (None: a removal)."""

    kind: int
    resource: ResourceId
    key: bytes | None
    value: bytes | None


PEER, REGISTRAR, PROVISIONING, SIGNER, USER, OUTSIDER, OTHER = range(11, 18)
OWNERS: dict[int, str | Role] = {
    PEER: Role.PEER,
    REGISTRAR: Role.REGISTRAR,
    PROVISIONING: Role.PROVISIONING,
    SIGNER: Role.SIGNER,
    USER: ALICE,
    OUTSIDER: STRANGER,
    OTHER: Role.PEER,
}


def owner(number: int) -> Credential:
    """The certificate of a row; its Node-ID is `node_id(number)`."""
    return credential(OWNERS[number], number)


def by_node(number: int) -> Attempt:
    """A certificate stored under a Node-ID."""
    return Attempt(kinds.CERTIFICATE_BY_NODE, resource_id(node_id(number)), None, b"certificate")


def by_user(number: int) -> Attempt:
    """A certificate stored under a user name."""
    return Attempt(kinds.CERTIFICATE_BY_USER, resource_id(owner(number).certificate.user), None, b"certificate")


def turn(number: int, iteration: int, value: bytes | None = b"turn") -> Attempt:
    """A relay announced at H(Node-ID || i)."""
    return Attempt(kinds.TURN_SERVICE, resource_id(node_id(number) + bytes((iteration,))), None, value)


def redir(number: int, key: int | None = None, node_shift: int = 0, level: int = 1, removal: bool = False) -> Attempt:
    """A service announced in the tree node whose interval holds the Node-ID."""
    node = int.from_bytes(node_id(number), "big") * 10**level >> 128
    provider = RedirServiceProvider(
        (NodeDestination(NodeId(node_id(number))),), "turn-server", level, (node + node_shift) % 10**level
    )
    value = None if removal else provider.encode()
    return Attempt(kinds.REDIR, provider.resource, node_id(number if key is None else key), value)


def registration(aor: str, key: int, removal: bool = False) -> Attempt:
    """A native user agent's registration."""
    route = SipRegistrationRoute("", (NodeDestination(NodeId(node_id(key))),))
    value = None if removal else route.encode()
    return Attempt(kinds.SIP_REGISTRATION, resource_id(aor), node_id(key), value)


def binding(aor: str, at: str | None = None, key: bytes | None = None, value: bytes | None = None) -> Attempt:
    """A conventional phone's binding, vouched for by a registrar."""
    bound = ProxyRegistration(aor, (NodeDestination(NodeId(node_id(REGISTRAR))),), "sip:phone@127.0.0.1")
    octets = bound.encode() if value is None else value
    return Attempt(kinds.PROXY_REGISTRATION, resource_id(at or aor), bound.key if key is None else key, octets)


def unbinding(aor: str = ALICE) -> Attempt:
    """The removal of a binding."""
    return binding(aor)._replace(value=None)


def alias(name: str = f"100@{SERVED}", removal: bool = False) -> Attempt:
    """A number that stands for an AOR."""
    stored = ProxyAlias(name, ALICE)
    return Attempt(kinds.PROXY_REGISTRATION, resource_id(name), stored.key, None if removal else stored.encode())


def digest_credential() -> Attempt:
    """A user's encrypted password hashes."""
    return Attempt(kinds.DIGEST_CREDENTIAL, resource_id(ALICE), None, b"sealed")


def digest_key(at: ResourceId | None = None, key: bytes | None = None) -> Attempt:
    """The epoch's key wrapped for a registrar."""
    entry = digest_key_entry(node_id(REGISTRAR), 1) if key is None else key
    return Attempt(kinds.DIGEST_KEY, at or digest_key_resource(OVERLAY), entry, b"wrapped")


def nodes(number: int) -> list[tuple[int, Attempt, bool]]:
    """What a peer and a registrar have in common."""
    return [
        (number, by_node(number), True),
        (number, by_node(OTHER), False),
        (number, by_user(number), True),
        (number, by_user(USER), False),
        (number, turn(number, 1), True),
        (number, turn(number, 20), True),
        (number, turn(number, 1, None), True),
        (number, turn(number, 0), False),
        (number, turn(number, 21), False),
        (number, turn(OTHER, 1), False),
        (number, redir(number), True),
        (number, redir(number, level=0), True),
        (number, redir(number, removal=True), True),
        (number, redir(number, key=OTHER), False),
        (number, redir(number, node_shift=1), False),
        (number, redir(number)._replace(resource=resource_id("elsewhere")), False),
        (number, redir(number)._replace(value=b"not a RedirServiceProvider"), False),
        (number, registration(owner(number).certificate.user, number), False),
        (number, digest_credential(), False),
        (number, digest_key(), False),
        (number, alias(), False),
    ]


def table() -> list[tuple[int, Attempt, bool]]:
    """(whose certificate, what it tries, whether it may)."""
    return [
        *nodes(PEER),
        (PEER, binding(ALICE), False),
        (PEER, unbinding(), False),
        *nodes(REGISTRAR),
        (REGISTRAR, binding(ALICE), True),
        (REGISTRAR, binding(f"anyone@{OVERLAY}"), True),
        (REGISTRAR, unbinding(), True),
        (REGISTRAR, binding(STRANGER), False),
        (REGISTRAR, binding(ALICE, at=f"bob@{SERVED}"), False),
        (REGISTRAR, binding(ALICE, key=b"\0" * 16), False),
        (REGISTRAR, binding(ALICE, value=b"not a ProxyRegistration"), False),
        (PROVISIONING, digest_credential(), True),
        (PROVISIONING, digest_key(), True),
        (PROVISIONING, alias(), True),
        (PROVISIONING, alias(removal=True), True),
        (PROVISIONING, alias("100@elsewhere.example"), False),
        (PROVISIONING, digest_key(at=resource_id("elsewhere")), False),
        (PROVISIONING, digest_key(key=b"short"), False),
        (PROVISIONING, binding(ALICE), False),
        (PROVISIONING, unbinding(), False),
        (PROVISIONING, by_node(PROVISIONING), False),
        (PROVISIONING, by_user(PROVISIONING), False),
        (PROVISIONING, turn(PROVISIONING, 1), False),
        (PROVISIONING, redir(PROVISIONING), False),
        (PROVISIONING, registration(owner(PROVISIONING).certificate.user, PROVISIONING), False),
        (USER, registration(ALICE, USER), True),
        (USER, registration(ALICE, USER, removal=True), True),
        (USER, registration(ALICE, OTHER), False),
        (USER, registration(f"bob@{SERVED}", USER), False),
        (USER, registration(ALICE, OTHER, removal=True), False),
        (OUTSIDER, registration(STRANGER, OUTSIDER), False),
        (USER, by_node(USER), True),
        (USER, by_node(OTHER), False),
        (USER, by_user(USER), True),
        (USER, by_user(OTHER), False),
        (USER, turn(USER, 1), False),
        (USER, redir(USER), False),
        (USER, binding(ALICE), False),
        (USER, unbinding(), False),
        (USER, alias(), False),
        (USER, digest_credential(), False),
        (USER, digest_key(), False),
        (SIGNER, by_node(SIGNER), False),
        (SIGNER, by_user(SIGNER), False),
        (SIGNER, digest_credential(), False),
    ]


def row_name(row: object) -> str | None:
    """A readable name of a table row in the test's report."""
    if isinstance(row, Attempt):
        return STANDARD_KINDS[row.kind].name + ("-removal" if row.value is None else "")
    if isinstance(row, int) and row in OWNERS:
        name = OWNERS[row]
        return name.value if isinstance(name, Role) else name
    return None


def signed_by(signer: Credential, attempt: Attempt) -> StoredData:
    """The attempt's value, truly signed."""
    data = DataValue(attempt.value is not None, attempt.value or b"")
    model = STANDARD_KINDS[attempt.kind].data_model
    value: DataValue | ArrayEntry | DictionaryEntry = data
    if model is DataModel.DICTIONARY:
        assert attempt.key is not None
        value = DictionaryEntry(attempt.key, data)
    elif model is DataModel.ARRAY:
        value = ArrayEntry(0, data)
    return sign_value(attempt.resource, attempt.kind, value, NOW_MS, 3600, signer.certificate, signer.sign)


def judged(signer: Credential, attempt: Attempt, config: OverlayConfiguration) -> list[ReloadError | None]:
    """The verdicts of the responsible peer, of a holder of copies and of a reader (None: accepted)."""
    stored = signed_by(signer, attempt)
    ders = certificates(signer)
    data = StoreKindData(attempt.kind, 0, (stored,))
    verdicts: list[ReloadError | None] = []
    storage = Storage(config, trust(), RealVerifier())
    try:
        storage.store(StoreReq(attempt.resource, 0, (data,)), signer.certificate, ders, WALL)
        verdicts.append(None)
    except ReloadError as error:
        verdicts.append(error)
    assert len(storage) == (verdicts[0] is None)
    replica = StoreReq(attempt.resource, 1, (data._replace(generation=1),))
    result = Storage(config, trust(), RealVerifier()).store_replica(replica, ders, WALL)
    assert result.accepted + len(result.refused) == 1
    verdicts.append(result.refused[0].error if result.refused else None)
    answer = FetchAns((FetchKindResponse(attempt.kind, 1, (stored,)),))
    read = verify_fetched(attempt.resource, answer, ders, config, trust(), RealVerifier(), WALL)
    assert len(read.values) + len(read.rejected) == 1
    verdicts.append(read.rejected[0].error if read.rejected else None)
    return verdicts


@pytest.mark.parametrize(("number", "attempt", "allowed"), table(), ids=row_name)
def test_table(number: int, attempt: Attempt, allowed: bool) -> None:
    """What the table allows is taken by every holder and reader; anything else is Error_Forbidden to all."""
    verdicts = judged(owner(number), attempt, configuration(False))
    if allowed:
        assert verdicts == [None, None, None]
    else:
        assert [type(verdict) for verdict in verdicts] == [Forbidden] * 3


def test_users_may_announce_services_where_the_operator_allows() -> None:
    """REDIR by a user's certificate depends on the overlay's configuration, under its own Node-ID only."""
    assert judged(owner(USER), redir(USER), configuration(True)) == [None] * 3
    others = judged(owner(USER), redir(USER, key=OTHER), configuration(True))
    assert [type(verdict) for verdict in others] == [Forbidden] * 3


def test_any_registrar_may_replace_and_remove() -> None:
    """Bindings belong to no registrar: another one replaces and removes them, the storage time decides."""
    storage = Storage(configuration(False), trust(), RealVerifier())
    second = credential(Role.REGISTRAR, 30)
    attempt = binding(ALICE)
    for turn_, (signer, value) in enumerate(
        [(owner(REGISTRAR), attempt.value), (second, attempt.value), (owner(REGISTRAR), None)]
    ):
        assert attempt.key is not None
        entry = DictionaryEntry(attempt.key, DataValue(value is not None, value or b""))
        certificate = signer.certificate
        stored = sign_value(attempt.resource, attempt.kind, entry, NOW_MS + turn_, 3600, certificate, signer.sign)
        request = StoreReq(attempt.resource, 0, (StoreKindData(attempt.kind, 0, (stored,)),))
        storage.store(request, certificate, certificates(signer), WALL)
    (held,) = storage.entries(WALL)
    assert (held.exists, held.storage_time, held.user) == (
        False,
        NOW_MS + 2,
        owner(REGISTRAR).certificate.user,
    )


@pytest.mark.parametrize("kind", sorted(STANDARD_KINDS))
def test_every_kind_has_allowed_and_forbidden_rows(kind: int) -> None:
    """The table above leaves no kind of ours untested in either direction."""
    verdicts = {allowed for _, attempt, allowed in table() if attempt.kind == kind}
    assert verdicts == {True, False}


@pytest.mark.parametrize("number", [PEER, REGISTRAR, PROVISIONING, USER])
def test_store_of_anothers_genuine_value(number: int) -> None:
    """The Store itself must come from someone who may write there: a bystander's is Error_Forbidden."""
    attempt = registration(ALICE, USER) if number != USER else by_node(PEER)
    signer = owner(USER if number != USER else PEER)
    data = StoreKindData(attempt.kind, 0, (signed_by(signer, attempt),))
    storage = Storage(configuration(False), trust(), RealVerifier())
    with pytest.raises(Forbidden):
        request = StoreReq(attempt.resource, 0, (data,))
        storage.store(request, owner(number).certificate, certificates(signer, owner(number)), WALL)
    assert len(storage) == 0


@pytest.mark.parametrize(
    ("number", "routes"),
    [(PEER, True), (REGISTRAR, True), (PROVISIONING, False), (SIGNER, False), (USER, False)],
)
def test_only_peers_and_registrars_route(number: int, routes: bool) -> None:
    """Join, Update and replica Stores are for peer and registrar names; the others are clients."""
    assert owner(number).certificate.role.routes is routes

"""The SIP usage's stored values: registrations, aliases, sealed passwords, wrapped keys."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, STANDARD_KINDS
from p2psipd.proto.reload.sip_usage import (
    DigestAlgorithm,
    DigestCredential,
    DigestKey,
    ProxyAlias,
    ProxyRegistration,
    SipRegistrationRoute,
    SipRegistrationUri,
    alias_key,
    binding_key,
    decode_proxy_registration,
    decode_sip_registration,
    derive_key,
    digest_key_entry,
    digest_key_resource,
    hashed_passwords,
    is_alias_key,
    open_credential,
    read_claim,
    seal,
    unwrap_epoch_key,
    wrap_epoch_key,
)
from p2psipd.proto.reload.wire import NodeDestination, OpaqueDestination

NODE = bytes(range(1, 17))
TEXT = st.text(max_size=30)
NAME = st.text(min_size=1, max_size=30)
U32 = st.integers(0, 0xFFFFFFFF)
DESTINATIONS = st.lists(
    st.binary(min_size=16, max_size=16).filter(any).map(lambda node: NodeDestination(NodeId(node)))
    | st.binary(min_size=3, max_size=9).map(OpaqueDestination),
    min_size=1,
    max_size=3,
).map(tuple)
EXTENSIONS = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=9)), max_size=2).map(tuple)
BINDINGS = st.builds(
    ProxyRegistration,
    NAME, DESTINATIONS, NAME, st.lists(TEXT, max_size=3).map(tuple), st.integers(0, 1000), TEXT, U32, TEXT, U32,
    st.integers(0, 2**64 - 1), st.lists(st.tuples(NAME, st.none() | TEXT), max_size=3).map(tuple), EXTENSIONS,
)  # fmt: skip
ALIASES = st.builds(ProxyAlias, NAME, NAME, EXTENSIONS)
REGISTRATIONS = st.builds(SipRegistrationUri, TEXT) | st.builds(SipRegistrationRoute, TEXT, DESTINATIONS)

ROUTE = (NodeDestination(NodeId(b"\x22" * 16)),)
EPOCH_KEY = bytes(range(32))
NONCE = bytes(range(12))
ALICE = resource_id("alice@overlay.example")


# ---- SIP-REGISTRATION ----


@given(REGISTRATIONS)
def test_sip_registration_round_trip(registration: SipRegistrationUri | SipRegistrationRoute) -> None:
    """A registration survives its encoding."""
    assert decode_sip_registration(registration.encode()) == registration


def test_sip_registration_layout() -> None:
    """Both forms are RFC 7904 section 3.2's, octet for octet."""
    assert SipRegistrationUri("a@b").encode().hex() == "01" + "0005" + "0003" + b"a@b".hex()
    prefs = b"(sip.schemes=SIP)"
    expected = "02" + "0027" + "0011" + prefs.hex() + "0012" + "0110" + "22" * 16
    assert SipRegistrationRoute(prefs.decode(), ROUTE).encode().hex() == expected


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "01",
        "010002" + "0001",  # text cut off
        "010003" + "0001" + "61" + "00",  # something after the structure
        "010004" + "0001" + "6100",  # something after the text
        "010003" + "0001" + "ff",  # not UTF-8
        "020004" + "0000" + "0000",  # a route that leads nowhere
        "030000",  # unknown type
        "020008" + "0000" + "0004" + "01100000",  # a destination cut off
    ],
)
def test_bad_sip_registration(octets: str) -> None:
    """A registration that is malformed in one way is InvalidMessage."""
    with pytest.raises(InvalidMessage):
        decode_sip_registration(bytes.fromhex(octets))


def test_route_to_nowhere_is_not_written() -> None:
    """The destination list of a route has at least one entry (its length begins at 3)."""
    with pytest.raises(InvalidMessage):
        SipRegistrationRoute("", ()).encode()


# ---- PROXY-REGISTRATION ----


@given(BINDINGS | ALIASES)
def test_proxy_registration_round_trip(registration: ProxyRegistration | ProxyAlias) -> None:
    """A binding or alias survives its encoding, also a parameter without a value beside one with an empty one."""
    assert decode_proxy_registration(registration.encode()) == registration


@given(BINDINGS | ALIASES)
def test_claim_of_a_registration(registration: ProxyRegistration | ProxyAlias) -> None:
    """What the access policy reads of a value is what a reader reads, and a value cut short claims nothing."""
    octets = registration.encode()
    claim = (isinstance(registration, ProxyAlias), registration.aor, registration.key)
    assert read_claim(octets) == claim
    for damaged in (octets + b"x", *(octets[:end] for end in range(len(octets)))):
        with pytest.raises(InvalidMessage):
            read_claim(damaged)


@given(st.binary(max_size=120))
def test_whatever_can_be_decoded_claims_the_same(data: bytes) -> None:
    """Any octets give a claim or InvalidMessage, and no value that a reader accepts is refused by its holders."""
    try:
        registration = decode_proxy_registration(data)
    except InvalidMessage:
        with contextlib.suppress(InvalidMessage):
            read_claim(data)
    else:
        assert read_claim(data) == (isinstance(registration, ProxyAlias), registration.aor, registration.key)


def test_proxy_registration_layout() -> None:
    """A binding is laid out as the module's text says, octet for octet."""
    binding = ProxyRegistration(
        "a@b", ROUTE, "sip:x", ("sip:p",), 500, "i", 7, "c", 9, 0x1122334455, (("ob", None), ("k", "")), ((5, b"e"),)
    )
    body = (
        "0003" + b"a@b".hex() + "0012" + "0110" + "22" * 16 + "0005" + b"sip:x".hex() + "0007" + "0005" + b"sip:p".hex()
        + "01f4" + "0001" + b"i".hex() + "00000007" + "0001" + b"c".hex() + "00000009" + "0000001122334455"
        + "000b" + "02" + b"ob".hex() + "00" + "0000" + "01" + b"k".hex() + "01" + "0000"
        + "0005" + "0005" + "0001" + b"e".hex()
    )  # fmt: skip
    assert binding.encode().hex() == "01" + f"{len(body) // 2:08x}" + body


@given(st.binary(max_size=120))
def test_any_octets_as_values(data: bytes) -> None:
    """Any octets in any value's decoder give a value or InvalidMessage."""
    for decode in (
        decode_sip_registration,
        decode_proxy_registration,
        DigestCredential.decode,
        DigestKey.decode,
    ):
        try:
            value = decode(data)
        except InvalidMessage:
            continue
        assert decode(value.encode()) == value


@given(BINDINGS, st.data())
def test_damaged_proxy_registration(binding: ProxyRegistration, data: st.DataObject) -> None:
    """A binding with one octet changed or cut off gives a value or InvalidMessage."""
    octets = binding.encode()
    at = data.draw(st.integers(0, len(octets) - 1))
    changed = data.draw(st.binary(max_size=1))
    try:
        decode_proxy_registration(octets[:at] + changed + octets[at + 1 :])
    except InvalidMessage:
        return


@pytest.mark.parametrize(
    "binding",
    [
        ProxyRegistration("", ROUTE, "sip:x"),
        ProxyRegistration("a@b", (), "sip:x"),
        ProxyRegistration("a@b", ROUTE, ""),
        ProxyRegistration("a@b", ROUTE, "sip:x", q=1001),
        ProxyRegistration("a@b", ROUTE, "sip:x", reg_id=2**32),
        ProxyRegistration("a@b", ROUTE, "x" * 70_000),
        ProxyRegistration("a@b", ROUTE, "sip:\udc80"),
        ProxyRegistration("a@b", ROUTE, "sip:x", parameters=(("", "v"),)),
        ProxyAlias("", "a@b"),
        ProxyAlias("a@b", ""),
    ],
)
def test_impossible_proxy_registration_is_not_written(binding: ProxyRegistration | ProxyAlias) -> None:
    """What lacks a necessary part or does not fit is InvalidMessage when it is encoded."""
    with pytest.raises(InvalidMessage):
        binding.encode()


def test_unknown_type_is_refused_and_extensions_are_kept() -> None:
    """An unknown type is InvalidMessage; an extension of a known type comes through untouched."""
    with pytest.raises(InvalidMessage, match="type 9"):
        decode_proxy_registration(bytes.fromhex("0900000000"))
    binding = ProxyRegistration("a@b", ROUTE, "sip:x", extensions=((77, b"future"),))
    assert decode_proxy_registration(binding.encode()).extensions == ((77, b"future"),)


def test_binding_keys() -> None:
    """A key goes by instance-id and reg-id if there is one, else by the Contact; an alias's has another length."""
    assert binding_key("sip:x", "urn:uuid:1", 1) == binding_key("sip:y", "urn:uuid:1", 1)
    assert binding_key("sip:x", "urn:uuid:1", 1) != binding_key("sip:x", "urn:uuid:1", 2)
    assert binding_key("sip:x") != binding_key("sip:y")
    assert binding_key("sip:x") == hashlib.sha256(b"sip:x").digest()[:16]
    assert binding_key("sip:x", "i", 3) == hashlib.sha256(b"i;3").digest()[:16]
    assert is_alias_key(alias_key("a@b")) and not is_alias_key(binding_key("a@b"))


def test_binding_key_agrees_with_the_registrar_s() -> None:
    """The SIP side computes the same key, or its own bindings would be refused."""
    from p2psipd.proto.sip import locating

    for arguments in (("sip:x", "urn:uuid:1", 1), ("sip:x", "i;1", 0), ("sip:x", "", 5), ("sip:\udc80",)):
        assert binding_key(*arguments) == locating.binding_key(*arguments)


# ---- DIGEST-CREDENTIAL ----


def test_hashed_passwords() -> None:
    """HA1 of RFC 7616 section 3.9.1's example, under MD5, SHA-256 and SHA-512-256, and for the long user name."""
    made = hashed_passwords("Mufasa", "http-auth@example.org", "Circle of Life")
    text = b"Mufasa:http-auth@example.org:Circle of Life"
    assert made[DigestAlgorithm.MD5] == hashlib.md5(text).digest()
    assert made[DigestAlgorithm.SHA_256] == hashlib.sha256(text).digest()
    assert made[DigestAlgorithm.SHA_512_256] == hashlib.new("sha512_256", text).digest()
    text = b"Mufasa@http-auth@example.org:http-auth@example.org:Circle of Life"
    assert made[DigestAlgorithm.MD5_OF_AOR] == hashlib.md5(text).digest()
    assert made[DigestAlgorithm.SHA_256_OF_AOR] == hashlib.sha256(text).digest()
    assert made[DigestAlgorithm.SHA_512_256_OF_AOR] == hashlib.new("sha512_256", text).digest()


def sealed(**changes: object) -> DigestCredential:
    """Alice's password, sealed."""
    arguments = {"epoch_key": EPOCH_KEY, "epoch": 3, "nonce": NONCE, "resource": ALICE, "kind": DIGEST_CREDENTIAL}
    return seal(**{**arguments, "passwords": hashed_passwords("alice", "overlay.example", "secret"), **changes})  # type: ignore[arg-type]


def test_sealed_password_opens() -> None:
    """A sealed credential survives its encoding and opens with the epoch's key; it fits within the kind's limit."""
    octets = sealed().encode()
    opened = open_credential(DigestCredential.decode(octets), EPOCH_KEY, ALICE, DIGEST_CREDENTIAL)
    assert opened == hashed_passwords("alice", "overlay.example", "secret")
    assert len(octets) <= STANDARD_KINDS[DIGEST_CREDENTIAL].max_size
    assert opened[DigestAlgorithm.MD5] not in octets, "nothing is legible"


@given(st.dictionaries(st.sampled_from(DigestAlgorithm), st.binary(min_size=16, max_size=16), max_size=1))
def test_seal_round_trip(passwords: dict[DigestAlgorithm, bytes]) -> None:
    """Whatever algorithms there are come out as they went in, if their lengths are right."""
    credential = sealed(passwords=passwords)
    if set(passwords) <= {DigestAlgorithm.MD5, DigestAlgorithm.MD5_OF_AOR}:
        assert open_credential(credential, EPOCH_KEY, ALICE, DIGEST_CREDENTIAL) == passwords
    else:
        with pytest.raises(InvalidMessage):
            open_credential(credential, EPOCH_KEY, ALICE, DIGEST_CREDENTIAL)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch_key": bytes(32)},
        {"resource": resource_id("bob@overlay.example")},
        {"kind": 1},
    ],
)
def test_sealed_password_is_bound(changes: dict[str, object]) -> None:
    """Another key, resource or kind does not open a credential: none can be moved to another user."""
    arguments = {"epoch_key": EPOCH_KEY, "resource": ALICE, "kind": DIGEST_CREDENTIAL, **changes}
    with pytest.raises(InvalidMessage):
        open_credential(sealed(), **arguments)  # type: ignore[arg-type]


def test_sealed_password_is_bound_to_its_epoch() -> None:
    """A credential under another epoch's number does not open, and no altered octet does."""
    with pytest.raises(InvalidMessage):
        open_credential(sealed()._replace(epoch=4), EPOCH_KEY, ALICE, DIGEST_CREDENTIAL)
    octets = sealed().encode()
    for at in range(4, len(octets)):
        altered = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
        with pytest.raises(InvalidMessage):
            open_credential(DigestCredential.decode(altered), EPOCH_KEY, ALICE, DIGEST_CREDENTIAL)


def test_wrong_sizes_are_refused() -> None:
    """Keys and nonces of another length are refused, not cut or filled."""
    for changes in ({"epoch_key": bytes(16)}, {"nonce": bytes(11)}, {"resource": ResourceId(bytes(256))}):
        with pytest.raises(InvalidMessage):
            sealed(**changes)


def test_derived_keys_differ_by_purpose() -> None:
    """Keys derived for different purposes are different, and the same on every registrar."""
    assert derive_key(EPOCH_KEY, "digest nonce") == derive_key(EPOCH_KEY, "digest nonce")
    assert len({derive_key(EPOCH_KEY, "digest nonce"), derive_key(EPOCH_KEY, "route token"), EPOCH_KEY}) == 3


# ---- DIGEST-KEY ----

REGISTRAR = ec.generate_private_key(ec.SECP256R1())
EPHEMERAL = ec.generate_private_key(ec.SECP256R1())


def test_wrapped_key_unwraps_for_its_registrar() -> None:
    """The epoch's key survives wrapping, encoding and unwrapping with the registrar's private key."""
    wrapped = wrap_epoch_key(EPOCH_KEY, 3, NODE, REGISTRAR.public_key(), EPHEMERAL)
    decoded = DigestKey.decode(wrapped.encode())
    assert decoded == wrapped and len(decoded.wrapped_key) == 40 and len(decoded.ephemeral_key) == 65
    assert unwrap_epoch_key(decoded, NODE, REGISTRAR) == EPOCH_KEY


def test_wrapped_key_is_for_one_registrar_and_epoch() -> None:
    """Another key, Node-ID or epoch does not unwrap, nor does an altered or impossible value."""
    wrapped = wrap_epoch_key(EPOCH_KEY, 3, NODE, REGISTRAR.public_key(), EPHEMERAL)
    attempts = [
        (wrapped, NODE, EPHEMERAL),
        (wrapped, bytes(16), REGISTRAR),
        (wrapped._replace(epoch=4), NODE, REGISTRAR),
        (wrapped._replace(wrapped_key=bytes(40)), NODE, REGISTRAR),
        (wrapped._replace(wrapped_key=b"short"), NODE, REGISTRAR),
        (wrapped._replace(ephemeral_key=bytes(65)), NODE, REGISTRAR),
        (wrapped._replace(ephemeral_key=b""), NODE, REGISTRAR),
        (wrapped, NODE, "no key"),
    ]
    for key, node_id, private_key in attempts:
        with pytest.raises(InvalidMessage):
            unwrap_epoch_key(key, node_id, private_key)


def test_only_p256_registrars_get_a_key() -> None:
    """A registrar with an RSA key cannot be given the epoch's key, and a key of another length is not wrapped."""
    public = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(InvalidMessage, match="P-256"):
        wrap_epoch_key(EPOCH_KEY, 3, NODE, public, EPHEMERAL)
    with pytest.raises(InvalidMessage):
        wrap_epoch_key(bytes(16), 3, NODE, REGISTRAR.public_key(), EPHEMERAL)


def test_where_wrapped_keys_are() -> None:
    """They are at H("digest-key." overlay), each under Node-ID and epoch, so that two epochs stand side by side."""
    assert digest_key_resource("Overlay.Example") == resource_id("digest-key.overlay.example")
    assert digest_key_entry(NODE, 258).hex() == NODE.hex() + "00000102"
    with pytest.raises(InvalidMessage):
        digest_key_entry(NODE, -1)

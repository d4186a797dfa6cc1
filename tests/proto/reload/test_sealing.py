"""Whole messages signed and opened (RFC 6940 section 6.3.4), with the simulator's signatures."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import NodeCertificate, Role, role_name
from p2psipd.proto.identity.signing import (
    NULL_SIGNATURE,
    NullCredential,
    NullTrust,
    NullVerifier,
    null_certificate,
)
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import NodeId, overlay_hash
from p2psipd.proto.reload.messages import MessageCode
from p2psipd.proto.reload.sealing import Opener, Sealer
from p2psipd.proto.reload.security import CERT_HASH, HASH_SHA256, SignerIdentity
from p2psipd.proto.reload.wire import ForwardingHeader, MessageContents, NodeDestination, decode_header

OVERLAY = "overlay.example"
HASH = overlay_hash(OVERLAY)
OWN, OTHER = (
    null_certificate(bytes([n]) * 16, role_name(Role.PEER, bytes([n]) * 16, OVERLAY), OVERLAY) for n in (1, 2)
)
HEADER = ForwardingHeader(HASH, 1, 20, 0, True, 7, 0, (), (NodeDestination(NodeId(bytes([9]) * 16)),))
MESSAGE = Sealer(NullCredential(OWN), HASH).seal(HEADER, MessageCode.PING_REQ, b"a body", (OTHER.der,))
OFFSET = decode_header(MESSAGE)[1]


def opener() -> Opener:
    """One that has seen no message."""
    return Opener(NullTrust(OVERLAY), NullVerifier(), HASH)


KNOWING = opener()
KNOWING.open(7, MESSAGE, OFFSET, 1.0)


def opened(by: Opener, data: bytes) -> tuple[MessageContents, NodeCertificate, Mapping[bytes, bytes]] | str:
    """What it finds in a message, or how it refuses it."""
    try:
        return by.open(7, data, OFFSET, 1.0)
    except ReloadError as error:
        return f"{type(error).__name__}: {error}"


def test_contents_signer_and_certificates() -> None:
    """The first message of a signer and the next ones are read alike."""
    expected = (MessageContents(MessageCode.PING_REQ, b"a body"), OWN, {OWN.hash: OWN.der, OTHER.hash: OTHER.der})
    assert opened(opener(), MESSAGE) == expected
    assert opened(KNOWING, MESSAGE) == expected


@given(st.integers(OFFSET, len(MESSAGE)), st.integers(0, 60), st.binary(max_size=60))
def test_known_certificates_change_no_verdict(at: int, cut: int, put: bytes) -> None:
    """Whatever the octets, to know the certificates makes no difference to what is found or why it is refused."""
    data = MESSAGE[:at] + put + MESSAGE[at + cut :]
    assert opened(KNOWING, data) == opened(opener(), data)


@given(st.integers(0, 0xFFFF), st.binary(max_size=40), st.binary(max_size=8))
def test_known_certificates_change_no_verdict_on_contents(code: int, body: bytes, extensions: bytes) -> None:
    """The same for any code, body and extensions."""
    contents = code.to_bytes(2, "big") + len(body).to_bytes(4, "big") + body
    contents += len(extensions).to_bytes(4, "big") + extensions
    data = MESSAGE[:OFFSET] + contents + MESSAGE[OFFSET + 16 :]
    assert opened(KNOWING, data) == opened(opener(), data)


WALL = 1_800_000_000.0
TRANSACTION = 0x1122334455667788
BODY = b"\x00\x05hello"


def credential(number: int) -> NullCredential:
    """Of a peer."""
    node = number.to_bytes(16, "big")
    return NullCredential(null_certificate(node, role_name(Role.PEER, node, OVERLAY), OVERLAY))


def opened_contents(by: Opener, data: bytes) -> tuple[int, bytes, bytes, Mapping[bytes, bytes]] | str:
    """What `by` makes of a message that begins with its contents, or why it refuses it."""
    try:
        contents, signer, certificates = by.open(TRANSACTION, data, 0, WALL)
    except ReloadError as error:
        return f"{type(error).__name__}: {error.detail}"
    return contents.code, contents.body, signer.der, dict(certificates)


def lengths_and_types(message: bytes) -> list[tuple[int, int]]:
    """Place and size of every field of a message (from its contents on) that says how the rest is to be read."""
    fields = [(0, 2), (2, 4)]
    at = 6 + int.from_bytes(message[2:6], "big")
    fields += [(at, 4), (at + 4, 2)]
    at, end = at + 6, at + 6 + int.from_bytes(message[at + 4 : at + 6], "big")
    while at < end:
        fields += [(at, 1), (at + 1, 2)]
        at += 3 + int.from_bytes(message[at + 1 : at + 3], "big")
    return [*fields, *((at + n, 1) for n in range(6)), (at + 39, 2)]


@pytest.mark.parametrize("others", [0, 1, 3])
def test_known_certificates_change_nothing(others: int) -> None:
    """Whatever the octets are, an opener that has seen the certificates says what one says that has not."""
    sender = Sealer(credential(1), HASH)
    ders = [credential(2 + number).certificate.der for number in range(others)]
    message = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, ders)
    experienced = opener()
    first = opened_contents(experienced, message)
    assert first == opened_contents(experienced, message) == opened_contents(opener(), message)
    assert isinstance(first, tuple) and first[:2] == (MessageCode.PING_REQ, BODY)
    assert list(first[3].values()) == [sender.credential.certificate.der, *ders]
    assert experienced._known_form(message, 0) is not None and opener()._known_form(message, 0) is None

    chance = random.Random(others)
    fields = lengths_and_types(message)
    refused = set()
    for turn in range(6000):
        octets = bytearray(message)
        at, size = fields[turn % len(fields)]
        match chance.randrange(6):
            case 0:
                del octets[chance.randrange(len(octets)) :]
            case 1:
                octets += chance.randbytes(chance.randrange(1, 4))
            case 2:
                place = chance.randrange(len(octets))
                octets[place : place + 1] = chance.randbytes(chance.randrange(3))
            case 3:
                octets[at : at + size] = chance.choice((b"\x00", b"\x80", b"\xff")) + chance.randbytes(size - 1)
            case _:
                by = chance.choice((-3, -2, -1, 1, 2, 3, len(ders[0]) + 3 if ders else 4))
                value = int.from_bytes(octets[at : at + size], "big") + by
                octets[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")
        said = opened_contents(experienced, bytes(octets))
        assert said == opened_contents(opener(), bytes(octets))
        if isinstance(said, str):
            refused.add(said.partition(":")[0])
    assert refused >= {"InvalidMessage", "Forbidden"}


def test_what_does_not_verify_is_not_remembered() -> None:
    """A message full of certificates drives no others out, and large ones are not kept."""
    sender = Sealer(credential(1), HASH)
    plain = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY)
    by = opener()
    opened_contents(by, plain)
    filling = [number.to_bytes(3, "big") for number in range(3000)]
    hostile = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, filling)
    said = opened_contents(by, hostile[:-1] + bytes((hostile[-1] ^ 1,)))
    assert isinstance(said, str) and "signature" in said
    assert by._known_form(plain, 0) is not None
    large = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, [bytes(2049), bytes(2048)])
    assert not isinstance(opened_contents(by, large), str)
    assert sorted(map(len, by._known)) == sorted([len(sender.credential.certificate.der), 2048])


def test_a_certificate_that_runs_past_its_list_is_malformed() -> None:
    """Also where it is known, and what would be the signature then lies inside it."""
    sender = Sealer(credential(1), HASH)
    own = credential(1).certificate
    signed_by_sender = bytes((4, 3)) + SignerIdentity(CERT_HASH, HASH_SHA256, own.hash).encode()
    behind = len(NULL_SIGNATURE) + len(signed_by_sender) + 2  # the true signature of the message
    inside = signed_by_sender + (50 + behind).to_bytes(2, "big") + bytes(50)
    by = opener()
    message = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, [bytes(20) + inside])
    assert not isinstance(opened_contents(by, message), str)
    at = 6 + len(BODY) + 4
    size = int.from_bytes(message[at : at + 2], "big") - len(inside)
    said = opened_contents(by, message[:at] + size.to_bytes(2, "big") + message[at + 2 :])
    assert isinstance(said, str) and said.startswith("InvalidMessage")

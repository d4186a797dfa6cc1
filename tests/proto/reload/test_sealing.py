"""Messages sealed and opened: the quick way to read them gives what the thorough one gives."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from p2psipd.proto.identity.certificate import Role, role_name
from p2psipd.proto.identity.signing import (
    NULL_SIGNATURE,
    NullCredential,
    NullTrust,
    NullVerifier,
    null_certificate,
)
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import overlay_hash
from p2psipd.proto.reload.messages import MessageCode
from p2psipd.proto.reload.sealing import Opener, Sealer
from p2psipd.proto.reload.security import CERT_HASH, HASH_SHA256, SignerIdentity

OVERLAY = "overlay.example"
HASH = overlay_hash(OVERLAY)
WALL = 1_800_000_000.0
TRANSACTION = 0x1122334455667788
BODY = b"\x00\x05hello"


def credential(number: int) -> NullCredential:
    node = number.to_bytes(16, "big")
    return NullCredential(null_certificate(node, role_name(Role.PEER, node, OVERLAY), OVERLAY))


def opener() -> Opener:
    return Opener(NullTrust(OVERLAY), NullVerifier(), HASH)


def opened(by: Opener, data: bytes) -> tuple[int, bytes, bytes, Mapping[bytes, bytes]] | str:
    """What `by` makes of a message, or why it refuses it."""
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
    first = opened(experienced, message)
    assert first == opened(experienced, message) == opened(opener(), message)
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
        said = opened(experienced, bytes(octets))
        assert said == opened(opener(), bytes(octets))
        if isinstance(said, str):
            refused.add(said.partition(":")[0])
    assert refused >= {"InvalidMessage", "Forbidden"}


def test_what_does_not_verify_is_not_remembered() -> None:
    """A message full of certificates drives no others out, and large ones are not kept."""
    sender = Sealer(credential(1), HASH)
    plain = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY)
    by = opener()
    opened(by, plain)
    filling = [number.to_bytes(3, "big") for number in range(3000)]
    hostile = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, filling)
    said = opened(by, hostile[:-1] + b"\x01")
    assert isinstance(said, str) and "signature" in said
    assert by._known_form(plain, 0) is not None
    large = sender.seal_contents(TRANSACTION, MessageCode.PING_REQ, BODY, [bytes(2049), bytes(2048)])
    assert not isinstance(opened(by, large), str)
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
    assert not isinstance(opened(by, message), str)
    at = 6 + len(BODY) + 4
    size = int.from_bytes(message[at : at + 2], "big") - len(inside)
    said = opened(by, message[:at] + size.to_bytes(2, "big") + message[at + 2 :])
    assert isinstance(said, str) and said.startswith("InvalidMessage")

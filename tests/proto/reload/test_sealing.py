"""Messages sealed and opened: what is read without detours is read as everything else is."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from p2psipd.proto.identity.certificate import Role, role_name
from p2psipd.proto.identity.signing import NullCredential, NullTrust, NullVerifier, null_certificate
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import overlay_hash
from p2psipd.proto.reload.messages import MessageCode
from p2psipd.proto.reload.sealing import Opener, Sealer

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

    chance = random.Random(others)
    refused = set()
    for _ in range(3000):
        octets = bytearray(message)
        match chance.randrange(4):
            case 0:
                del octets[chance.randrange(len(octets)) :]
            case 1:
                octets += chance.randbytes(chance.randrange(1, 4))
            case 2:
                at = chance.randrange(len(octets))
                octets[at : at + 1] = chance.randbytes(chance.randrange(3))
            case _:
                # The lengths and types are before, between and behind the certificates.
                octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
        said = opened(experienced, bytes(octets))
        assert said == opened(opener(), bytes(octets))
        if isinstance(said, str):
            refused.add(said.partition(":")[0])
    assert refused == {"InvalidMessage", "Forbidden"}

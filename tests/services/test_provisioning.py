"""Users' passwords in the overlay: what the provisioner stores, registrars can open, and nobody else."""

from __future__ import annotations

import asyncio
import os

import pytest
from twisted.internet.task import Clock

from p2psipd.proto.identity.certificate import DAY, Role, generate_private_key, parse_certificate, role_name
from p2psipd.proto.identity.signing import Credential
from p2psipd.proto.reload.errors import Forbidden, InvalidMessage
from p2psipd.proto.reload.ids import resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, DIGEST_KEY
from p2psipd.proto.reload.overlay_config import OverlayConfiguration, domain_pattern
from p2psipd.proto.reload.sip_usage import (
    DigestCredential,
    DigestKey,
    digest_key_entry,
    digest_key_resource,
    hashed_passwords,
    open_credential,
    unwrap_epoch_key,
)
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.services.epoch_keys import EpochKeys
from p2psipd.services.overlay_location import OverlayCredentials
from p2psipd.services.provisioning import LONGEST_LIFETIME, Provisioner
from tests.proto.identity.certificates import AUTHORITY, NODE, OVERLAY, WALL, credential
from tests.services.provisioning_world import FakeOverlay

CONFIGURATION = OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=(domain_pattern(OVERLAY),))
ALICE = "alice@overlay.example"
PROVISIONING = credential(Role.PROVISIONING)
FIRST_KEY, SECOND_KEY = bytes(range(32)), bytes(range(32, 64))


def registrar(number: int) -> Credential:
    """A registrar with a key of its own."""
    key, node_id = generate_private_key(), bytes([number]) * 16
    user = role_name(Role.REGISTRAR, node_id, OVERLAY)
    return Credential(parse_certificate(AUTHORITY.issue(key.public_key(), node_id, user, WALL)), key)


REGISTRARS = [registrar(1), registrar(2)]


def provisioner(overlay: FakeOverlay, epochs: dict[int, bytes], wall: float = WALL) -> Provisioner:
    """A provisioner on that overlay."""
    return Provisioner(
        overlay,
        OVERLAY,
        PROVISIONING,
        epochs,
        wall=lambda: wall,
        draw=os.urandom,
        draw_key=generate_private_key,
    )


def test_every_registrar_can_read_a_password() -> None:
    """Each registrar unwraps the epoch's key with its own private key, and with it opens the HA1 values."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)

    async def work() -> None:
        side = provisioner(overlay, {1: FIRST_KEY})
        await side.put_keys([owner.certificate for owner in REGISTRARS])
        await side.put_user(ALICE, "secret")

    asyncio.run(work())
    sealed = overlay.held[resource_id(ALICE), DIGEST_CREDENTIAL, b""].value
    for owner in REGISTRARS:
        entry = digest_key_entry(owner.certificate.node_id, 1)
        wrapped = overlay.held[digest_key_resource(OVERLAY), DIGEST_KEY, entry].value
        assert wrapped is not None and sealed is not None
        key = unwrap_epoch_key(DigestKey.decode(wrapped), owner.certificate.node_id, owner.private_key)
        opened = open_credential(DigestCredential.decode(sealed), key, resource_id(ALICE), DIGEST_CREDENTIAL)
        assert opened == hashed_passwords("alice", OVERLAY, "secret")
        with pytest.raises(InvalidMessage):
            unwrap_epoch_key(DigestKey.decode(wrapped), owner.certificate.node_id, generate_private_key())


def test_the_registrar_s_own_reader_finds_the_password() -> None:
    """What the provisioner writes is what the SIP side reads: user name, realm and algorithms agree."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)

    async def work() -> None:
        side = provisioner(overlay, {1: FIRST_KEY})
        await side.put_keys([REGISTRARS[0].certificate])
        await side.put_user(ALICE, "secret")
        keys = EpochKeys(overlay, OVERLAY, REGISTRARS[0], OwnSecret(b"own"), Clock())
        source = OverlayCredentials(overlay, keys)
        found = await source.ha1("alice", OVERLAY)
        assert found is not None
        assert found["SHA-256"] == hashed_passwords("alice", OVERLAY, "secret")[2]
        assert set(found) == {"MD5", "SHA-256", "SHA-512-256"}
        await side.remove_user(ALICE)
        source.forget()
        assert await source.ha1("alice", OVERLAY) is None

    asyncio.run(work())


def test_renewal_moves_a_password_to_the_current_epoch() -> None:
    """After a new epoch a renewed credential opens with the new key only; nobody was asked for the password."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)

    async def work() -> bool:
        await provisioner(overlay, {1: FIRST_KEY}).put_user(ALICE, "secret")
        return await provisioner(overlay, {1: FIRST_KEY, 2: SECOND_KEY}).renew_user(ALICE)

    assert asyncio.run(work())
    octets = overlay.held[resource_id(ALICE), DIGEST_CREDENTIAL, b""].value
    assert octets is not None
    sealed = DigestCredential.decode(octets)
    assert sealed.epoch == 2
    opened = open_credential(sealed, SECOND_KEY, resource_id(ALICE), DIGEST_CREDENTIAL)
    assert opened == hashed_passwords("alice", OVERLAY, "secret")
    with pytest.raises(InvalidMessage):
        open_credential(sealed, FIRST_KEY, resource_id(ALICE), DIGEST_CREDENTIAL)


def test_what_cannot_be_read_is_not_renewed() -> None:
    """A credential that is gone, removed, of an unknown epoch or damaged is told, not replaced by something."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)

    async def work() -> list[bool]:
        side = provisioner(overlay, {1: FIRST_KEY})
        outcomes = [await side.renew_user(ALICE)]
        await side.put_user(ALICE, "secret")
        outcomes.append(await provisioner(overlay, {2: SECOND_KEY}).renew_user(ALICE))
        outcomes.append(await provisioner(overlay, {1: SECOND_KEY}).renew_user(ALICE))
        await side.remove_user(ALICE)
        outcomes.append(await side.renew_user(ALICE))
        return outcomes

    assert asyncio.run(work()) == [False] * 4


def test_two_seals_of_one_password_differ() -> None:
    """Every seal draws its own nonce: equal passwords are not seen to be equal."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)

    async def work() -> list[bytes | None]:
        side, seen = provisioner(overlay, {1: FIRST_KEY}), []
        for _ in range(2):
            await side.put_user(ALICE, "secret")
            seen.append(overlay.held[resource_id(ALICE), DIGEST_CREDENTIAL, b""].value)
        return seen

    first, second = asyncio.run(work())
    assert first != second


def test_nothing_is_stored_beyond_the_certificate() -> None:
    """A value lives for 30 days, but no longer than the certificate that signed it can be verified."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)
    end = PROVISIONING.certificate.not_after
    assert provisioner(overlay, {1: FIRST_KEY}, WALL).lifetime() == LONGEST_LIFETIME
    assert provisioner(overlay, {1: FIRST_KEY}, end - DAY).lifetime() == DAY
    assert provisioner(overlay, {1: FIRST_KEY}, end + DAY).lifetime() == 0


def test_many_registrars_are_given_the_key_in_parts() -> None:
    """The wrapped keys of many registrars go into several Stores, each small enough for a message."""
    overlay = FakeOverlay(CONFIGURATION, PROVISIONING)
    many = [credential(Role.REGISTRAR, number.to_bytes(16, "big")).certificate for number in range(1, 121)]
    asyncio.run(provisioner(overlay, {1: FIRST_KEY}).put_keys(many))
    assert len(overlay.held) == 120 and overlay.stores == 3


def test_only_a_provisioning_certificate_may() -> None:
    """With any other certificate the overlay refuses, and the refusal reaches the caller."""
    peer = credential(Role.REGISTRAR, NODE)
    overlay = FakeOverlay(CONFIGURATION, peer)
    with pytest.raises(Forbidden):
        asyncio.run(provisioner(overlay, {1: FIRST_KEY}).put_user(ALICE, "secret"))

"""Bindings and passwords over the overlay: what is stored is what is read, and what cannot be told is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from p2psipd.proto.identity.certificate import NodeCertificate, Role, parse_certificate
from p2psipd.proto.identity.signing import Credential
from p2psipd.proto.reload.errors import Forbidden, NotFound, ReloadError, RequestTimeout
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, DIGEST_KEY, PROXY_REGISTRATION, SIP_REGISTRATION
from p2psipd.proto.reload.messages import DataValue, DictionaryEntry, StoredData
from p2psipd.proto.reload.peer_io import FetchOutcome, StoreOutcome, StoreValue
from p2psipd.proto.reload.security import NO_SIGNATURE
from p2psipd.proto.reload.sip_usage import (
    ProxyAlias,
    SipRegistrationRoute,
    SipRegistrationUri,
    digest_key_entry,
    digest_key_name,
    hashed_passwords,
    seal,
    wrap_epoch_key,
)
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.reload.values import VerifiedValue
from p2psipd.proto.reload.wire import NodeDestination
from p2psipd.proto.sip.locating import Binding, LocationUnavailable, binding_key
from p2psipd.proto.sip.shared_secret import NONCES, ROUTE_TOKENS, OwnSecret
from p2psipd.proto.sip.user_file import FileUsers, parse_users
from p2psipd.services.epoch_keys import EpochKeys
from p2psipd.services.overlay_location import FirstKnown, OverlayCredentials, OverlayLocation
from tests.net.identities import OVERLAY, node

WALL = 1_800_000_000.0
REGISTRAR = node(1, role=Role.REGISTRAR)
OWNER: NodeCertificate = parse_certificate(REGISTRAR.certificate)
BOB = "sip:bob@overlay.example"


class MemoryOverlay:
    """An overlay that is a dictionary: (resource, kind, key) to value and lifetime."""

    def __init__(self) -> None:
        self.values: dict[tuple[bytes, int, bytes], tuple[bytes | None, int]] = {}
        self.error: ReloadError | None = None
        self.fetches = 0

    def put(self, name: str, kind: int, key: bytes, value: bytes, lifetime: int = 60) -> None:
        self.values[resource_id(name), kind, key] = (value, lifetime)

    async def fetch(
        self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier], *, fresh: bool = False
    ) -> FetchOutcome:
        self.fresh = fresh
        self.fetches += 1
        if self.error is not None:
            raise self.error
        target = resource_id(resource) if isinstance(resource, str) else resource
        found = []
        for kind in kinds:
            wanted = kind if isinstance(kind, StoredDataSpecifier) else StoredDataSpecifier(kind)
            for (at, number, key), (value, lifetime) in self.values.items():
                if (at, number) == (target, wanted.kind) and (wanted.keys is None or key in wanted.keys):
                    found.append(verified(number, key, value, lifetime))
        return FetchOutcome(tuple(found), {}, NodeId(bytes(16)), 1, 0.001)

    async def store(
        self, name: str | ResourceId, kind: int, values: Sequence[StoreValue], credential: Any = None
    ) -> StoreOutcome:
        if self.error is not None:
            raise self.error
        target = resource_id(name) if isinstance(name, str) else name
        for value in values:
            self.values[target, kind, value.key or b""] = (value.value, value.lifetime)
        return StoreOutcome(NodeId(bytes(16)), (), 1, 0.001)


def verified(kind: int, key: bytes, value: bytes | None, lifetime: int) -> VerifiedValue:
    data = DataValue(value is not None, value or b"")
    stored = StoredData(int(WALL * 1000), lifetime, DictionaryEntry(key, data), NO_SIGNATURE)
    return VerifiedValue(kind, key, data.exists, data.value, int(WALL * 1000), lifetime, OWNER, stored)


def binding(contact: str = "sip:bob@192.0.2.7:5060", **more: Any) -> Binding:
    key = binding_key(contact, more.get("instance_id", ""), more.get("reg_id", 0))
    return Binding(BOB, key, contact, more.pop("node_id", OWNER.node_id), expires_at=WALL + 60, **more)


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)
_BINDINGS = st.builds(
    binding,
    contact=_TEXT.filter(bool),
    node_id=st.binary(min_size=16, max_size=16).filter(any),
    path=st.lists(_TEXT, max_size=3).map(tuple),
    q=st.integers(0, 1000).map(lambda thousandths: thousandths / 1000),
    instance_id=_TEXT,
    reg_id=st.integers(0, 2**31),
    call_id=_TEXT,
    cseq=st.integers(0, 2**31 - 1),
    received=_TEXT,
    parameters=st.lists(st.tuples(_TEXT.filter(bool), st.none() | _TEXT), max_size=3).map(tuple),
    user_agent=_TEXT,
)


class LocationTests(SynchronousTestCase):
    """Bindings."""

    def setUp(self) -> None:
        self.overlay = MemoryOverlay()
        self.location = OverlayLocation(self.overlay, OWNER.node_id, lambda: WALL)

    def result(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    @settings(max_examples=50)
    @given(_BINDINGS)
    def test_every_attribute_survives(self, one: Binding) -> None:
        """A binding that is put is found again with every attribute."""
        self.overlay.values.clear()
        self.result(self.location.write(BOB, [one], []))
        self.assertEqual(self.result(self.location.bindings(BOB)), [one._replace(stored_at=WALL)])

    def test_lifetime(self) -> None:
        """A binding is stored for as long as it lives, rounded up."""
        self.result(self.location.write(BOB, [binding()._replace(expires_at=WALL + 59.2)], []))
        ((_, lifetime),) = self.overlay.values.values()
        self.assertEqual(lifetime, math.ceil(59.2))

    def test_a_fresh_look_up_asks_the_responsible_peer(self) -> None:
        """Bindings that proved wrong are asked for past the copies."""
        self.result(self.location.bindings(BOB, fresh=True))
        self.assertTrue(self.overlay.fresh)
        self.result(self.location.bindings(BOB))
        self.assertFalse(self.overlay.fresh)

    def test_refresh_replaces(self) -> None:
        """A binding of the same instance replaces the one before."""
        self.result(self.location.write(BOB, [binding(instance_id="<urn:uuid:1>", reg_id=1)], []))
        self.result(self.location.write(BOB, [binding("sip:bob@192.0.2.9", instance_id="<urn:uuid:1>", reg_id=1)], []))
        (found,) = self.result(self.location.bindings(BOB))
        self.assertEqual(found.contact, "sip:bob@192.0.2.9")

    def test_removed_and_expired(self) -> None:
        """An expired binding is none, and of a removed one no more is known than that and when it was removed."""
        self.result(self.location.write(BOB, [binding()], []))
        self.result(self.location.write(BOB, [], [binding()]))
        self.result(self.location.write(BOB, [binding("sip:late@192.0.2.7")._replace(expires_at=WALL - 1)], []))
        gone = Binding(BOB, binding().key, "", b"", stored_at=WALL)
        self.assertEqual(self.result(self.location.bindings(BOB)), [gone])
        self.assertEqual(len(self.overlay.values), 2)

    def test_native_user_agent(self) -> None:
        """The registration of a native user agent leads to the node that it names."""
        route = SipRegistrationRoute("", (NodeDestination(NodeId(b"p" * 16)), NodeDestination(NodeId(b"n" * 16))))
        self.overlay.put("bob@overlay.example", SIP_REGISTRATION, b"n" * 16, route.encode())
        (found,) = self.result(self.location.bindings(BOB))
        self.assertEqual((found.native, found.node_id, found.expires_at), (True, b"n" * 16, WALL + 60))

    def test_names_that_stand_for_others(self) -> None:
        """A number that stands for a user is followed, in whichever kind it is stored; a circle ends."""
        alias = ProxyAlias("+4930123@overlay.example", "bob@overlay.example")
        self.overlay.put(alias.aor, PROXY_REGISTRATION, alias.key, alias.encode())
        back = SipRegistrationUri("+4930123@overlay.example")
        self.overlay.put("bob@overlay.example", SIP_REGISTRATION, b"n" * 16, back.encode())
        self.result(self.location.write(BOB, [binding()], []))
        (found,) = self.result(self.location.bindings("sip:+4930123@overlay.example"))
        self.assertEqual(found.contact, binding().contact)

    def test_malformed_entries_are_skipped(self) -> None:
        """An entry that says nothing sensible, or names somebody else, does not hide the others."""
        self.result(self.location.write(BOB, [binding()], []))
        self.overlay.put("bob@overlay.example", PROXY_REGISTRATION, b"x", b"\xff\x00")
        self.overlay.put("bob@overlay.example", SIP_REGISTRATION, b"y", b"")
        mallory = OverlayLocation(self.overlay, OWNER.node_id, lambda: WALL)
        self.result(mallory.write("sip:eve@overlay.example", [binding("sip:eve@192.0.2.8")], []))
        (moved,) = [key for key in self.overlay.values if key[0] == resource_id("eve@overlay.example")]
        self.overlay.values[resource_id("bob@overlay.example"), PROXY_REGISTRATION, b"z"] = self.overlay.values[moved]
        self.assertEqual([one.contact for one in self.result(self.location.bindings(BOB))], [binding().contact])

    def test_unknown_user(self) -> None:
        """A user of whom nothing is stored has no bindings, whether that comes as an error or as an empty answer."""
        self.assertEqual(self.result(self.location.bindings(BOB)), [])
        self.overlay.error = NotFound("nothing")
        self.assertEqual(self.result(self.location.bindings(BOB)), [])

    def test_overlay_does_not_answer(self) -> None:
        """What the overlay could not do is LocationUnavailable, never an unknown user."""
        for error in (RequestTimeout("late"), Forbidden("no")):
            self.overlay.error = error
            for work in (self.location.bindings(BOB), self.location.write(BOB, [binding()], [])):
                self.failureResultOf(Deferred.fromCoroutine(work), LocationUnavailable)


class CredentialTests(SynchronousTestCase):
    """Passwords."""

    def setUp(self) -> None:
        self.overlay = MemoryOverlay()
        self.now = 0.0
        self.key = bytes(range(32))
        self.clock = Clock()
        own = OwnSecret(b"this node's")
        self.keys = EpochKeys(self.overlay, OVERLAY, Credential(OWNER, REGISTRAR.key), own, self.clock)
        self.credentials = OverlayCredentials(self.overlay, self.keys, lambda: self.now)

    def provision(self, epoch: int = 1, node_id: bytes = OWNER.node_id, only: int = 99) -> None:
        """Store bob's password, sealed, and the key of its epoch for one registrar; only so many hashes of it."""
        name = "bob@overlay.example"
        hashed = dict(list(hashed_passwords("bob", "overlay.example", "secret").items())[:only])
        sealed = seal(self.key, epoch, bytes(12), resource_id(name), DIGEST_CREDENTIAL, hashed)
        stored = StoredData(0, 60, DataValue(True, sealed.encode()), NO_SIGNATURE)
        value = VerifiedValue(DIGEST_CREDENTIAL, b"", True, sealed.encode(), 0, 60, OWNER, stored)
        self.overlay.put(name, DIGEST_CREDENTIAL, b"", value.value)
        wrapped = wrap_epoch_key(
            self.key, epoch, node_id, REGISTRAR.key.public_key(), generate_private_key(SECP256R1())
        )
        self.overlay.put(digest_key_name(OVERLAY), DIGEST_KEY, digest_key_entry(node_id, epoch), wrapped.encode())

    def ha1(self, user: str = "bob", fresh: bool = False) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.credentials.ha1(user, "overlay.example", fresh))

    def test_opened(self) -> None:
        """A password that was sealed for the overlay opens at a registrar, under each algorithm's token, for both forms
        of the user name; from before there were two, the second has nothing.
        """
        self.provision()
        hashed = hashed_passwords("bob", "overlay.example", "secret")
        for user, first in (("bob", 1), ("bob@overlay.example", 17)):
            expected = {name: hashed[first + index] for index, name in enumerate(("MD5", "SHA-256", "SHA-512-256"))}
            self.assertEqual(self.successResultOf(self.ha1(user)), expected)
        for user in ("bob@elsewhere.example", "@overlay.example", ""):
            self.assertIsNone(self.successResultOf(self.ha1(user)))
        self.provision(only=3)
        self.credentials.forget()
        self.assertEqual(len(self.successResultOf(self.ha1("bob"))), 3)
        self.assertEqual(self.successResultOf(self.ha1("bob@overlay.example")), {})

    def test_read_ahead(self) -> None:
        """The bindings of a user who is asked for the first time are fetched along with the password, and serve the
        registration that comes at once: not a later one, nor a second, nor one after something was stored.
        """
        location = OverlayLocation(self.overlay, OWNER.node_id, lambda: WALL, lambda: self.now)
        self.credentials = OverlayCredentials(self.overlay, self.keys, lambda: self.now, location.read_ahead)
        self.provision()
        bound = binding()
        self.successResultOf(Deferred.fromCoroutine(location.write(bound.aor, [bound], ())))

        def fetches(fresh: bool = True) -> int:
            before = self.overlay.fetches
            found = self.successResultOf(Deferred.fromCoroutine(location.bindings(bound.aor, fresh)))
            self.assertEqual([each.contact for each in found], [bound.contact])
            return self.overlay.fetches - before

        self.successResultOf(self.ha1())
        self.assertEqual((fetches(), fetches()), (0, 1))
        self.credentials.forget()
        self.successResultOf(self.ha1())
        self.assertTrue(self.overlay.fresh)
        self.now += 1.0
        self.assertEqual(fetches(), 1)
        self.credentials.forget()
        self.successResultOf(self.ha1())
        self.successResultOf(Deferred.fromCoroutine(location.write(bound.aor, [bound], ())))
        self.assertEqual(fetches(), 1)
        self.now += 20.0
        self.successResultOf(self.ha1())
        self.assertFalse(self.overlay.fresh)
        self.assertEqual(fetches(), 1)

    def test_unknown_user(self) -> None:
        """An unknown user is None."""
        self.assertIsNone(self.successResultOf(self.ha1("carol")))

    def test_remembered_for_ten_seconds(self) -> None:
        """A password is asked for once in ten seconds: so long may an old one, or a user who was removed, go on."""
        self.provision()
        self.successResultOf(self.ha1())
        asked = self.overlay.fetches
        self.now = 9.9
        self.successResultOf(self.ha1())
        self.assertEqual(self.overlay.fetches, asked)
        self.overlay.values.clear()
        self.now = 10.0
        self.assertIsNone(self.successResultOf(self.ha1()))

    def test_remembered_while_the_overlay_does_not_answer(self) -> None:
        """A user who was known a minute ago still is where nobody can be asked; one whose password has just proved
        wrong is not.
        """
        self.provision()
        known = self.successResultOf(self.ha1())
        self.overlay.error = RequestTimeout("late")
        self.now = 59.0
        self.assertEqual(self.successResultOf(self.ha1()), known)
        self.failureResultOf(self.ha1(fresh=True), LocationUnavailable)
        self.now = 60.0
        self.failureResultOf(self.ha1(), LocationUnavailable)

    def test_not_given_the_key(self) -> None:
        """A registrar without the key of the epoch says so, and what gives it."""
        self.provision(node_id=b"\x07" * 16)
        failure = self.failureResultOf(self.ha1(), LocationUnavailable)
        self.assertIn("rekey", failure.getErrorMessage())

    def test_new_epoch(self) -> None:
        """Passwords of a new epoch are opened with its own key."""
        self.provision()
        self.successResultOf(self.ha1())
        self.key = bytes(reversed(range(32)))
        self.provision(2)
        self.now = 3600.0
        self.assertIsNotNone(self.successResultOf(self.ha1()))

    def test_malformed(self) -> None:
        """A value that does not open is no reason to let anybody in, nor to say that the user is unknown."""
        self.provision()
        self.overlay.put("bob@overlay.example", DIGEST_CREDENTIAL, b"", b"\x00")
        self.failureResultOf(self.ha1(), LocationUnavailable)

    def test_a_changed_password_is_asked_for_at_once(self) -> None:
        """Who knows that what was remembered is wrong gets what the overlay has now, but not many times a second."""
        self.provision()
        self.successResultOf(self.ha1())
        self.overlay.values.clear()
        again = lambda: Deferred.fromCoroutine(self.credentials.ha1("bob", "overlay.example", fresh=True))  # noqa: E731
        asked = self.overlay.fetches
        self.assertIsNotNone(self.successResultOf(again()))
        self.assertEqual(self.overlay.fetches, asked)
        self.now += 1.0
        self.assertIsNone(self.successResultOf(again()))
        self.assertTrue(self.overlay.fresh)

    def test_the_secret_that_registrars_share(self) -> None:
        """Two registrars derive the same keys from the epoch's; until it is known, and for what was signed until then,
        a node's own secret serves.
        """
        other = EpochKeys(self.overlay, OVERLAY, Credential(OWNER, REGISTRAR.key), OwnSecret(b"other"), self.clock)
        alone = self.keys.keys(NONCES)
        self.assertNotEqual(list(alone), list(other.keys(NONCES)))
        self.provision(epoch=20)
        for keys in (self.keys, other):
            keys.startService()
            keys.begin()
        shared = self.keys.keys(NONCES)
        self.assertEqual(shared[0], other.keys(NONCES)[0])
        self.assertEqual(shared[1:], tuple(alone))
        self.assertNotEqual(shared[0], self.keys.keys(ROUTE_TOKENS)[0])
        self.assertIs(self.keys.keys(NONCES), shared, "made once")
        self.key = bytes(reversed(range(32)))
        self.provision(epoch=21)
        self.clock.advance(600.0)
        renewed = self.keys.keys(NONCES)
        self.assertNotEqual(renewed[0], shared[0])
        self.assertEqual(renewed[1:], shared, "what the epoch before signed is still taken")
        for keys in (self.keys, other):
            self.successResultOf(defer.maybeDeferred(keys.stopService))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_founder_joins_before_it_is_started(self) -> None:
        """Who has joined before the service starts looks for the key when it does."""
        self.provision()
        self.keys.begin()
        self.assertEqual(len(self.keys.keys(NONCES)), 1)
        self.keys.startService()
        self.assertEqual(len(self.keys.keys(NONCES)), 2)

    def test_a_registrar_that_is_given_the_key_later(self) -> None:
        """As long as there is no key it is asked for every three seconds."""
        self.keys.startService()
        self.keys.begin()
        self.assertEqual(len(self.keys.keys(NONCES)), 1)
        self.provision()
        self.clock.advance(3.0)
        self.assertEqual(len(self.keys.keys(NONCES)), 2)

    def test_the_file_and_the_overlay(self) -> None:
        """The first source that knows a user counts; one that cannot be asked is no reason to refuse a user of the
        next.
        """
        self.provision()
        users, faults = parse_users(f"carol:overlay.example:{'ab' * 16}\nbob:overlay.example:{'cd' * 16}")
        self.assertEqual(faults, [])
        listed = FileUsers(users)

        def ha1(user: str, *sources: Any, fresh: bool = False) -> Deferred[Any]:
            return Deferred.fromCoroutine(FirstKnown(sources).ha1(user, "overlay.example", fresh))

        self.assertEqual(self.successResultOf(ha1("bob", listed, self.credentials)), {"MD5": b"\xcd" * 16})
        self.assertEqual(len(self.successResultOf(ha1("bob", self.credentials, listed))), 3)
        self.assertIsNone(self.successResultOf(ha1("dave", self.credentials, listed)))
        self.overlay.error = RequestTimeout("late")
        self.assertEqual(self.successResultOf(ha1("carol", self.credentials, listed)), {"MD5": b"\xab" * 16})
        self.assertEqual(self.successResultOf(ha1("carol", listed, self.credentials)), {"MD5": b"\xab" * 16})
        for user in ("erin", "carol"):
            # What is asked after a wrong password has the same answer, be the user in the file or not.
            self.failureResultOf(ha1(user, listed, self.credentials, fresh=True), LocationUnavailable)
        self.failureResultOf(ha1("erin", listed, self.credentials), LocationUnavailable)

    def test_overlay_does_not_answer(self) -> None:
        """A password that could not be asked for is LocationUnavailable."""
        self.overlay.error = RequestTimeout("late")
        self.failureResultOf(self.ha1(), LocationUnavailable)

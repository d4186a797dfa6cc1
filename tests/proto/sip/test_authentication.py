"""The gate: who has proved to be whom, what a refusal tells, and what it costs to guess (RFC 3261 section 22)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from p2psipd.proto.sip.authentication import REFUSAL_SECONDS, DigestGate, Gatekeeper
from p2psipd.proto.sip.digest import Algorithm, Challenge, answer, ha1
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import LocationUnavailable
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.proxy import Home, Refused
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.proto.sip.uri import SipUri
from p2psipd.proto.sip.user_file import FileUsers

DOMAIN = "overlay.example"
WALL = 1_700_000_000.0
PASSWORDS = {"alice": "wonder", "bob": "builder"}
ALL = tuple(Algorithm)


class Place:
    """A gate with its clock and its users; each look-up takes 10 ms if the user is cached, 30 if not."""

    def __init__(self, secret: bytes = b"shared", issuer: bytes = b"here", since: float = 0.0) -> None:
        self.time = 0.0
        self.asked: list[tuple[str, bool]] = []
        self.passwords = dict(PASSWORDS)
        # The overlay does not answer; what is in a file is known all the same.
        self.down = False
        self.numbers = {"+15550100": "sip:alice@overlay.example"}
        digest = DigestGate(OwnSecret(secret), random.Random(1), issuer, since, ALL)
        home = Home(frozenset(), frozenset({DOMAIN}), DOMAIN, b"\1" * 16)
        self.gate = Gatekeeper(home, DOMAIN, digest, self, self, owner=self.owner)

    def now(self) -> float:
        return self.time

    async def wait(self, seconds: float) -> None:
        self.time += seconds

    async def owner(self, uri: SipUri) -> str | None:
        return self.numbers.get(uri.unescaped_user)

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        self.asked.append((user, fresh))
        plain = user.removesuffix(f"@{realm}")
        self.time += 0.01 if plain in self.passwords else 0.03
        if self.down and (fresh or plain not in self.passwords):
            raise LocationUnavailable("no answer")
        if plain not in self.passwords:
            return None
        return {each.value: bytes.fromhex(ha1(each, user, realm, self.passwords[plain])) for each in ALL}

    def register(self, request: Request, source: str = "192.0.2.7", wall: float = WALL) -> str:
        """The AOR that it is about. Raises Refused."""
        flow = Flow("UDP", (source, 5070), ("192.0.2.1", 5060), 0)
        return str(asyncio.run(self.gate.registering(_Phone(flow), request, wall)))

    def refusal(self, request: Request, source: str = "192.0.2.7", wall: float = WALL) -> Refused:
        with pytest.raises(Refused) as caught:
            self.register(request, source, wall)
        return caught.value


class _Phone:
    """A flow to a phone."""

    peer = None

    def __init__(self, flow: Flow) -> None:
        self.remote = flow.remote


def request(user: str = "alice", authorization: str = "") -> Request:
    lines = [
        ("Via", "SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bK1"),
        ("From", f"<sip:{user}@{DOMAIN}>;tag=1"),
        ("To", f"<sip:{user}@{DOMAIN}>"),
        ("Call-ID", "c1"),
        ("CSeq", "1 REGISTER"),
    ]
    if authorization:
        lines.append(("Authorization", authorization))
    return Request("REGISTER", f"sip:{DOMAIN}", lines)


def challenge_of(refused: Refused, algorithm: Algorithm = Algorithm.MD5) -> Challenge:
    found = [Challenge.parse(value) for name, value in refused.headers if name == "WWW-Authenticate"]
    return next(each for each in found if each.algorithm is algorithm)


def answered(challenge: Challenge, user: str = "alice", password: str = "", nc: int = 1, to: str = "") -> Request:
    value = answer(challenge, user, password or PASSWORDS.get(user, "x"), "REGISTER", f"sip:{DOMAIN}", "c0ffee", nc)
    return request(to or user, value)


@pytest.mark.parametrize("algorithm", ALL)
def test_each_algorithm(algorithm: Algorithm) -> None:
    """RFC 8760: whichever challenge the phone answers, MD5, SHA-256 or SHA-512-256, it passes."""
    place = Place()
    first = place.refusal(request())
    assert [Challenge.parse(value).algorithm for _, value in first.headers] == list(ALL), "MD5 leads"
    assert place.register(answered(challenge_of(first, algorithm))) == f"sip:alice@{DOMAIN}"


def test_nothing_is_looked_up_without_credentials_or_with_made_up_nonces() -> None:
    """Nobody learns which users exist: 401 comes before any look-up."""
    place = Place()
    first = place.refusal(request())
    forged = challenge_of(first)._replace(nonce="A" * 48)
    assert (first.status, first.why) == (401, "challenged")
    assert place.refusal(answered(forged)).why == "digest_forged" and place.asked == []


def test_known_and_unknown_users_are_refused_alike() -> None:
    """A wrong password and an unknown user get the same lines after the same time."""
    seen = []
    for user in ("alice", "nobody"):
        place = Place()
        challenge = challenge_of(place.refusal(request(user)))
        refused = place.refusal(answered(challenge, user, "wrong"))
        names = [name for name, _ in refused.headers]
        seen.append((refused.status, refused.args, names, len(refused.headers[0][1]), place.time))
    assert seen[0] == seen[1] and seen[0][-1] == pytest.approx(REFUSAL_SECONDS)


def test_nobody_learns_while_the_overlay_is_down_which_users_are_in_a_file() -> None:
    """A wrong password of a user who is known all the same is refused like one of an unknown user, after the same time,
    and counts; the right one passes.
    """
    seen = []
    for user in ("alice", "nobody"):
        place = Place()
        place.down = True
        challenge = challenge_of(place.refusal(request(user)))
        with pytest.raises(LocationUnavailable):
            place.register(answered(challenge, user, "wrong"))
        seen.append((place.time, place.gate.guesses.may_try("192.0.2.7", user, place.time)))
        if user == "alice":
            assert place.register(answered(challenge, nc=2))
        for _ in range(6):
            with suppress(LocationUnavailable, Refused):
                place.register(answered(challenge_of(place.refusal(request(user))), user, "wrong"))
        assert place.refusal(answered(challenge_of(place.refusal(request(user))), user, "wrong")).why == "digest_slowed"
    assert seen[0] == seen[1] == (pytest.approx(REFUSAL_SECONDS), True)


def test_both_forms_of_the_user_name() -> None:
    """Phones authenticate as "alice" or as "alice@domain"; at another domain there is no such user."""
    for name, passes in ((f"alice@{DOMAIN}", True), ("alice", True), ("alice@elsewhere.example", False)):
        place = Place()
        challenge = challenge_of(place.refusal(request()))
        made = request("alice", answer(challenge, name, "wonder", "REGISTER", f"sip:{DOMAIN}", "c0ffee", 1))
        if passes:
            assert place.register(made) == f"sip:alice@{DOMAIN}"
        else:
            assert place.refusal(made).why == "digest_wrong" and place.asked == []


@pytest.mark.parametrize("algorithm", ALL)
def test_a_form_of_the_name_without_a_password_is_nobodys(algorithm: Algorithm) -> None:
    """Of a user known in one form of the name alone nobody proves to be the other: not by a digest over zeros either,
    against which those are judged whom nobody knows.
    """
    place = Place()
    users = FileUsers({("alice", DOMAIN): {"MD5": bytes.fromhex(ha1(Algorithm.MD5, "alice", DOMAIN, "wonder"))}})
    place.gate = Gatekeeper(place.gate.home, DOMAIN, DigestGate(OwnSecret(b"s"), random.Random(1)), users, place)
    zeros = "00" * (16 if algorithm is Algorithm.MD5 else 32)
    for user in (f"alice@{DOMAIN}", "nobody"):
        challenge = challenge_of(place.refusal(request()), algorithm)
        value = answer(challenge, user, zeros, "REGISTER", f"sip:{DOMAIN}", "c0ffee", is_ha1=True)
        assert place.refusal(request(user.partition("@")[0], value)).why == "digest_wrong"


def test_replayed_counts_are_stale() -> None:
    """RFC 7616 section 3.4: each count of a nonce is good for one request; the next count passes."""
    place = Place()
    challenge = challenge_of(place.refusal(request()))
    place.register(answered(challenge, nc=1))
    again = place.refusal(answered(challenge, nc=1))
    assert challenge_of(again).stale and again.why == "digest_stale"
    place.register(answered(challenge, nc=2))


@pytest.mark.parametrize("other", [{"issuer": b"there"}, {"since": WALL + 1}])
def test_nonces_after_a_restart_and_at_another_registrar(other: dict[str, Any]) -> None:
    """A nonce holds wherever the epoch's key is, also after a restart; what was used there is used, whatever came
    before it as well, and it serves no other address.
    """
    challenge, place = challenge_of(Place().refusal(request())), Place(**other)
    assert place.register(answered(challenge, nc=2), wall=WALL + 2)
    for count in (2, 1):
        again = place.refusal(answered(challenge, nc=count), wall=WALL + 2)
        assert challenge_of(again).stale and again.why == "digest_stale"
    assert place.register(answered(challenge, nc=3), wall=WALL + 2)
    assert challenge_of(place.refusal(answered(challenge, nc=4), "192.0.2.8", WALL + 2)).stale
    assert challenge_of(place.refusal(answered(challenge, nc=5), wall=WALL + 301)).stale
    assert place.gate.guesses.slowed(0.0) == {"addresses": {}, "users": {}}
    assert Place(secret=b"other overlay").refusal(answered(challenge)).why == "digest_forged"


def test_a_changed_password_counts_at_once() -> None:
    """What is remembered of a user is asked for anew before a password is called wrong."""
    place = Place()
    challenge = challenge_of(place.refusal(request()))
    place.register(answered(challenge))
    assert place.asked == [("alice", False)]
    place.refusal(answered(challenge, password="wrong", nc=2))
    assert place.asked[1:] == [("alice", False), ("alice", True)]


def test_guessing_is_slowed_and_tells_nothing() -> None:
    """After some wrong passwords even the right one is refused at this address, unseen, and elsewhere it passes."""
    place = Place()
    for _ in range(5):
        place.refusal(answered(challenge_of(place.refusal(request())), password="wrong"))
    looked_up = len(place.asked)
    right = place.refusal(answered(challenge_of(place.refusal(request()))))
    assert (right.why, right.status, len(place.asked)) == ("digest_slowed", 401, looked_up)
    elsewhere = challenge_of(place.refusal(request(), "198.51.100.1"))
    assert place.register(answered(elsewhere), "198.51.100.1")
    place.time += 60
    assert place.register(answered(challenge_of(place.refusal(request()))))


def test_nobody_slows_an_address_at_which_he_hears_nothing() -> None:
    """Wrong passwords under a forged source address are not held against that address, nor do they let anybody in."""
    place = Place()
    mine = challenge_of(place.refusal(request(), "203.0.113.9"))
    for number in range(1, 30):
        place.refusal(answered(mine, password="wrong", nc=number), "192.0.2.7")
    assert place.refusal(answered(mine, nc=30), "192.0.2.7").why == "digest_stale"
    assert place.register(answered(challenge_of(place.refusal(request()))))


def test_own_name_and_own_number_only() -> None:
    """Who has proved to be alice registers alice and the number that stands for her, and nobody else."""
    place = Place()
    for to, passes in (("alice", True), ("+15550100", True), ("+15550199", False), ("bob", False)):
        challenge = challenge_of(place.refusal(request(to)))
        made = answered(challenge, to=to)
        if passes:
            assert place.register(made) == f"sip:{to}@{DOMAIN}"
        else:
            refused = place.refusal(made)
            assert (refused.status, refused.why) == (403, "refused_identity")

"""Telephone numbers that stand for users: whose a number is, and where a call to it goes."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from p2psipd.proto.reload.errors import NotFound, ReloadError, RequestTimeout
from p2psipd.proto.reload.sip_usage import ProxyAlias
from p2psipd.proto.sip.locating import LocationUnavailable, NotLocated, Origin, Query, Target
from p2psipd.proto.sip.uri import parse_uri
from p2psipd.services.numbers import Numbers, OverlayNumbers

DOMAINS = ("overlay.example", "other.example")
NUMBER = "+12125551212@overlay.example"


class Value:
    def __init__(self, value: bytes | None, storage_time: int) -> None:
        self.exists, self.value, self.storage_time = value is not None, value or b"", storage_time


class Outcome:
    def __init__(self, values: Sequence[Value]) -> None:
        self.values = values


class Aliases:
    """An overlay that holds aliases: name to (target or None, storage time) pairs."""

    def __init__(self, **pairs: str) -> None:
        self.held: dict[str, list[Value]] = {}
        self.fetches = 0
        self.error: ReloadError | None = None

    def put(self, name: str, target: str, storage_time: int = 1) -> Aliases:
        self.held.setdefault(name, []).append(Value(ProxyAlias(name, target).encode(), storage_time))
        return self

    async def fetch(self, resource: Any, kinds: Iterable[Any]) -> Any:
        self.fetches += 1
        if self.error is not None:
            raise self.error
        if resource not in self.held:
            raise NotFound("nothing")
        return Outcome(self.held[resource])


def result(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that needs not wait returns or raises."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def owner(overlay: Aliases, uri: str) -> Any:
    return result(OverlayNumbers(overlay, DOMAINS).owner(parse_uri(uri)))


@pytest.mark.parametrize(
    "uri",
    [
        "tel:+1-212-555-1212",
        "tel:+1(212)555.1212;ext=4",
        "sip:+12125551212@overlay.example;user=phone",
        "sip:+1-212-555-1212;phone-context=+1@other.example;user=phone",
        "sip:+12125551212@overlay.example",
    ],
)
def test_every_form_of_a_number(uri: str) -> None:
    """A tel: URI and a SIP URI of any served domain name the same number, whatever separators it has."""
    assert owner(Aliases().put(NUMBER, "alice@overlay.example"), uri) == "sip:alice@overlay.example"


@pytest.mark.parametrize(
    "uri",
    ["sip:+12125551212@elsewhere.example", "sip:alice@overlay.example", "tel:5551212;phone-context=+1212", "tel:911"],
)
def test_no_number_of_ours(uri: str) -> None:
    """Other domains' URIs, names and local numbers stand for nobody, and nothing is asked."""
    overlay = Aliases().put(NUMBER, "alice@overlay.example")
    assert owner(overlay, uri) is None
    assert overlay.fetches == 0


def test_chains_of_five_are_followed() -> None:
    """Five aliases in a row lead to a user, six to nobody (RFC 7904 section 4.2)."""
    overlay = Aliases().put(NUMBER, "n1@overlay.example")
    for step in range(1, 4):
        overlay.put(f"n{step}@overlay.example", f"n{step + 1}@overlay.example")
    assert owner(overlay, "tel:+12125551212") == "sip:n4@overlay.example"
    for step in range(4, 7):
        overlay.put(f"n{step}@overlay.example", f"n{step + 1}@overlay.example")
    assert owner(overlay, "tel:+12125551212") is None


def test_circles_lead_to_nobody() -> None:
    """An alias that comes back to where it began is refused."""
    overlay = Aliases().put(NUMBER, "n1@overlay.example").put("n1@overlay.example", NUMBER)
    assert owner(overlay, "tel:+12125551212") is None


def test_the_newest_alias_counts() -> None:
    """Of two users that a number was given to, the later one has it; one under another name has not."""
    overlay = Aliases().put(NUMBER, "bob@overlay.example", 2).put(NUMBER, "alice@overlay.example", 1)
    overlay.held[NUMBER].append(Value(ProxyAlias("+1999@overlay.example", "eve@overlay.example").encode(), 9))
    overlay.held[NUMBER].append(Value(b"\xff", 10))
    assert owner(overlay, "tel:+12125551212") == "sip:bob@overlay.example"


def test_an_overlay_that_does_not_answer() -> None:
    """Whose a number is, is unavailable, not unknown, when the overlay fails; and that is not remembered."""
    overlay = Aliases().put(NUMBER, "alice@overlay.example")
    numbers = OverlayNumbers(overlay, DOMAINS)
    overlay.error = RequestTimeout("silence")
    with pytest.raises(LocationUnavailable):
        result(numbers.owner(parse_uri("tel:+12125551212")))
    overlay.error = None
    assert result(numbers.owner(parse_uri("tel:+12125551212"))) == "sip:alice@overlay.example"


def test_remembered_for_seconds() -> None:
    """An answer holds for fifteen seconds, that there is none for three."""
    clock = [0.0]
    overlay = Aliases().put(NUMBER, "alice@overlay.example")
    numbers = OverlayNumbers(overlay, DOMAINS, lambda: clock[0])
    for number, asked in (("tel:+12125551212", 2), ("tel:+12125551212", 2), ("tel:+49891234", 3)):
        result(numbers.owner(parse_uri(number)))
        assert overlay.fetches == asked
    clock[0] = 4.0
    result(numbers.owner(parse_uri("tel:+12125551212")))
    result(numbers.owner(parse_uri("tel:+49891234")))
    assert overlay.fetches == 4
    clock[0] = 16.0
    result(numbers.owner(parse_uri("tel:+12125551212")))
    assert overlay.fetches == 6


def located(overlay: Aliases, uri: str, origin: Origin = Origin.PHONE) -> Any:
    """What the step says, over a step that finds everybody."""

    async def find(query: Query) -> Sequence[Target] | None:
        return (Target(str(query.uri)),)

    return result(Numbers(OverlayNumbers(overlay, DOMAINS), find)(Query(parse_uri(uri), origin, 0.0)))


def test_a_call_to_a_number() -> None:
    """A number of a user's goes to that user; any other is left to the next step, or is 404 for another domain."""
    overlay = Aliases().put(NUMBER, "alice@overlay.example")
    assert located(overlay, "tel:+12125551212") == (Target("sip:alice@overlay.example"),)
    assert located(overlay, "tel:+49891234") is None
    assert located(overlay, "sip:alice@overlay.example") is None
    assert located(overlay, "tel:+12125551212", Origin.NODE) is None
    with pytest.raises(NotLocated):
        located(overlay, "sip:+49891234@overlay.example", Origin.PEER)


def test_a_number_whose_user_is_not_there() -> None:
    """It is answered 480, for other domains, too: no other step, nor ENUM, is to say that there is no such number."""
    overlay = Aliases().put(NUMBER, "alice@overlay.example")

    async def find(query: Query) -> Sequence[Target] | None:
        return ()

    step = Numbers(OverlayNumbers(overlay, DOMAINS), find)
    for origin in (Origin.PHONE, Origin.PEER):
        with pytest.raises(NotLocated) as refused:
            result(step(Query(parse_uri("tel:+12125551212"), origin, 0.0)))
        assert refused.value.status == 480

"""Wrong passwords are counted and slowed, by address and by user, and nobody pays for what others do elsewhere."""

from __future__ import annotations

import pytest

from p2psipd.proto.sip.guessing import Guesses, GuessLimits

LIMITS = GuessLimits(
    of_user_at_address=3, user_at_address_seconds=10, of_address=6, address_seconds=2, of_user=8, user_seconds=5
)


def guess(guesses: Guesses, address: str, user: str, now: float, times: int = 1) -> int:
    """How many of so many wrong passwords were looked at."""
    tried = 0
    for _ in range(times):
        if guesses.may_try(address, user, now):
            tried += 1
            guesses.wrong(address, user, now)
    return tried


def test_one_user_at_one_address() -> None:
    """After so many wrong passwords one is looked at each time that one is forgiven."""
    guesses = Guesses(LIMITS)
    assert guess(guesses, "192.0.2.1", "bob", 0.0, 100) == 3
    assert guess(guesses, "192.0.2.1", "bob", 9.9, 100) == 0
    assert guess(guesses, "192.0.2.1", "bob", 10.0, 100) == 1
    assert guess(guesses, "192.0.2.1", "bob", 20.0, 100) == 1


def test_no_lock_out_of_the_same_user_elsewhere() -> None:
    """A phone at another address registers while its user is being guessed, from one address or from many."""
    guesses = Guesses(LIMITS)
    for number in range(50):
        guess(guesses, f"192.0.2.{number}", "bob", 0.0, 20)
    assert guesses.may_try("198.51.100.7", "bob", 0.0)
    assert guesses.slowed(0.0)["users"] == {"bob": 55}, "3, 3, 2 from the first, then one from each"


def test_a_user_guessed_from_many_addresses_leaves_each_one_try() -> None:
    """A spread attack needs an address for each guess."""
    guesses = Guesses(LIMITS)
    tried = [guess(guesses, f"192.0.2.{number}", "bob", 0.0, 20) for number in range(10)]
    assert tried[:3] == [3, 3, 2] and set(tried[3:]) == {1}


def test_many_users_at_one_address() -> None:
    """Who tries many users from one address is slowed as well."""
    guesses = Guesses(LIMITS)
    assert sum(guess(guesses, "192.0.2.1", f"user{number}", 0.0) for number in range(100)) == 6
    assert guesses.slowed(0.0) == {"addresses": {"192.0.2.1": 6}, "users": {}}
    assert sum(guess(guesses, "192.0.2.1", f"user{number}", 4.0) for number in range(100, 200)) == 2


def test_a_phone_that_has_proved_itself_is_not_its_neighbours_hostage() -> None:
    """Behind one NAT the phones that are known go on, while others there guess."""
    guesses = Guesses(LIMITS)
    guesses.right("192.0.2.1", "alice")
    for number in range(100):
        guess(guesses, "192.0.2.1", f"user{number}", 0.0)
    assert guesses.may_try("192.0.2.1", "alice", 0.0) and not guesses.may_try("192.0.2.1", "carol", 0.0)


def test_the_right_password_clears() -> None:
    """Who mistyped and then knew it begins anew."""
    guesses = Guesses(LIMITS)
    guess(guesses, "192.0.2.1", "bob", 0.0, 2)
    guesses.right("192.0.2.1", "bob")
    assert guess(guesses, "192.0.2.1", "bob", 0.0, 100) == 3


@pytest.mark.parametrize(("other", "same"), [("2001:db8::2", True), ("2001:db8:0:1::1", False)])
def test_an_ipv6_guesser_has_64_bits(other: str, same: bool) -> None:
    """All addresses of one IPv6 network count as one."""
    guesses = Guesses(LIMITS)
    guess(guesses, "2001:db8::1", "bob", 0.0, 100)
    assert guesses.may_try(other, "bob", 0.0) is not same


def test_memory_is_bounded() -> None:
    """However many addresses and users are tried, the tables stay small; the newest are kept."""
    guesses = Guesses(LIMITS, table=100)
    for number in range(1000):
        guesses.wrong(f"10.0.{number // 250}.{number % 250}", f"user{number}", 0.0)
        guesses.right(f"10.1.{number // 250}.{number % 250}", f"user{number}")
    assert all(len(buckets) <= 100 for buckets in (guesses._addresses, guesses._users, guesses._pairs))
    assert len(guesses._proved) == 100
    guess(guesses, "192.0.2.1", "bob", 0.0, 10)
    assert not guesses.may_try("192.0.2.1", "bob", 0.0)

"""Sources that are shut out, and rates that nobody exceeds."""

from __future__ import annotations

from p2psipd.proto.sip.limits import CHALLENGED, MALFORMED, WRONG_PASSWORD, Blame, LimitSettings, Rates, Sources

HOST, OTHER = "192.0.2.1", "192.0.2.2"


def flood(sources: Sources, offence: Blame, times: int, now: float = 0.0, host: str = HOST) -> bool:
    """Whether so many offences at once shut the source out."""
    return sum(sources.blame(host, offence, now) for _ in range(times)) > 0


def test_a_flood_shuts_its_source_out() -> None:
    """Offences beyond the limit shut out their source, and nobody else, for the time that was set."""
    sources = Sources(LimitSettings(points=100, shut_seconds=30))
    assert not flood(sources, MALFORMED, 50) and sources.admit(HOST, 0.0)
    assert flood(sources, MALFORMED, 1)
    assert not sources.admit(HOST, 29.9) and sources.admit(OTHER, 0.0) and sources.admit(HOST, 30.0)
    assert sources.shut(10.0) == {HOST: 20.0}
    assert sources.counters == {"shut": 1, "shut_out": 1}


def test_offences_are_forgiven_with_time() -> None:
    """What leaks away in a second may be done each second for ever."""
    sources = Sources(LimitSettings(points=100, points_forgiven=20))
    assert not any(flood(sources, MALFORMED, 10, float(second)) for second in range(100))


def test_who_comes_again_is_shut_out_longer() -> None:
    """The second time lasts twice as long, after two hours of peace as long as the first."""
    sources = Sources(LimitSettings(points=100, shut_seconds=30))
    assert flood(sources, MALFORMED, 51, 0.0) and flood(sources, MALFORMED, 51, 40.0)
    assert not sources.admit(HOST, 99.0) and sources.admit(HOST, 100.0)
    assert flood(sources, MALFORMED, 51, 10_000.0) and sources.admit(HOST, 10_030.0)


def test_a_challenge_that_is_answered_is_forgiven() -> None:
    """Any number of requests that are challenged and then proved shut nobody out."""
    sources = Sources(LimitSettings(points=10))
    for _ in range(1000):
        assert not sources.blame(HOST, CHALLENGED, 0.0)
        sources.proved(HOST, 0.0)


def test_forged_offences_do_not_hurt_a_user() -> None:
    """What a forger can do in a user's name is not held against the user's address; wrong passwords are."""
    sources = Sources(LimitSettings(points=100))
    sources.proved(HOST, 0.0)
    assert not flood(sources, MALFORMED, 1000, 10.0)
    assert flood(sources, MALFORMED, 51, 3600.0)
    sources.proved(OTHER, 0.0)
    assert flood(sources, WRONG_PASSWORD, 6, 1.0, OTHER)


def test_phones_are_known_as_long_as_they_may_be_registered() -> None:
    """A source is known for as long as the settings say after its proof, and one that never gave any is not."""
    sources = Sources(LimitSettings(proved_seconds=86_400.0))
    sources.proved("192.0.2.7", 0.0)
    assert sources.knows("192.0.2.7", 80_000.0) and not sources.knows("192.0.2.7", 86_400.0)
    assert not sources.knows("192.0.2.8", 0.0)


def test_rates() -> None:
    """A key gets its rate each second, as many at once, and others are not touched by it."""
    rates = Rates(10)
    assert [rates.take("a", 0.0) for _ in range(12)].count(True) == 10
    assert rates.take("b", 0.0)
    assert [rates.take("a", 0.5) for _ in range(7)].count(True) == 5
    assert [rates.take("a", 60.0) for _ in range(12)].count(True) == 10


def test_no_rate_is_no_limit() -> None:
    """A rate of nought limits nothing and remembers nobody."""
    rates = Rates(0)
    assert all(rates.take("a", 0.0) for _ in range(100)) and len(rates) == 0


def test_tables_are_bounded() -> None:
    """However many addresses offend, so many are remembered."""
    sources = Sources(LimitSettings(points=1), table=100)
    for number in range(1000):
        host = f"192.0.2.{number}"
        sources.admit(host, 0.0)
        sources.proved(host, 0.0)
        sources.blame(host, WRONG_PASSWORD, 0.0)
        sources.blame(f"x{host}", CHALLENGED, 0.0)
    assert len(sources.shut(0.0)) == 100
    assert all(len(getattr(sources, name)) <= 100 for name in ("_blamed", "_shut", "_rates"))
    assert len(sources._proved) == 500

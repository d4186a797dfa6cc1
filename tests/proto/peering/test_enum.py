"""ENUM, carrier ENUM and the routing table (checklist lines 12 to 29), hostile zones included."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.peering.enum import (
    CarrierRoot,
    EnumOutcome,
    branch_position,
    carrier_enum,
    domain_of,
    substitute,
    user_enum,
)
from p2psipd.proto.peering.prefixes import prefixes_of_range
from p2psipd.proto.peering.routing_table import RoutingTableError, parse_routing_table
from p2psipd.proto.peering.targets import Candidate, NumberSources, Stage, TargetRules, analyse, candidates
from p2psipd.proto.sip.next_hops import NoRoute
from p2psipd.proto.sip.uri import parse_uri
from tests.proto.dns_zone import Zone, all_of, finished

NUMBER = "+442079460123"
NAME = "3.2.1.0.6.4.9.7.0.2.4.4.e164.arpa"
CARRIER_NAME = "3.2.1.0.6.4.9.7.0.2.i.4.4.e164.arpa"
CARRIER = (CarrierRoot(),)
RULES = TargetRules(frozenset({"a.test"}))
TABLE = parse_routing_table(
    """
    # prefix        alternatives
    +44             sip:{number}@gw1.c.test;user=phone sip:{number}@gw2.c.test
    +4420           sip:{digits}@london.c.test   # nearer
    """
)


def found(*rules: str) -> list[str]:
    """What user ENUM gives for NUMBER with these NAPTR records."""
    outcome = finished(user_enum(NUMBER, Zone({f"{NAME} NAPTR": list(rules)}).ask))
    return [str(result.uri) for result in outcome.results]


def tried(zone: Zone, sources: NumberSources) -> list[tuple[str, Stage]]:
    """The candidates for NUMBER."""
    analysis = analyse(parse_uri(f"tel:{NUMBER}"), RULES)
    given = all_of(candidates(analysis, zone.ask, sources, RULES))
    return [(str(candidate.uri), candidate.stage) for candidate in given]


def test_peering_012_user_enum() -> None:
    """E2U+sip at the reversed number under e164.arpa; the URI is the replacement with its groups."""
    zone = Zone({f"{NAME} NAPTR": ['100 10 "u" "E2U+sip" "!^\\+44(.*)$!sip:\\1@b.test!" .']})
    assert tried(zone, NumberSources()) == [("sip:2079460123@b.test", Stage.USER_ENUM)]
    assert zone.asked == [f"{NAME} NAPTR"]


def test_peering_013_sips_results_stay_sips() -> None:
    """A sips: result keeps its scheme, whether the service is called sip or sips."""
    assert found('10 10 "u" "E2U+sip" "!^.*$!sips:bob@b.test!" .') == ["sips:bob@b.test"]
    assert found('10 10 "u" "E2U+sips:sips" "!^.*$!sips:bob@b.test!" .') == ["sips:bob@b.test"]


def test_peering_014_messaging_results() -> None:
    """E2U+im and E2U+pres lead to im: and pres: URIs, which RFC 3861 resolves."""
    zone = Zone({f"{NAME} NAPTR": ['10 10 "u" "E2U+im" "!^.*$!im:bob@b.test!" .']})
    analysis = analyse(parse_uri(f"tel:{NUMBER}"), RULES)
    (candidate,) = all_of(candidates(analysis, zone.ask, NumberSources(), RULES))
    assert isinstance(candidate, Candidate)
    assert (str(candidate.uri), str(candidate.messaging)) == ("sip:bob@b.test", "im:bob@b.test")


def test_peering_015_order_then_preference() -> None:
    """The lowest ORDER comes first, then the lowest PREFERENCE; a record for mail is passed over."""
    assert found(
        '20 1 "u" "E2U+sip" "!^.*$!sip:third@b.test!" .',
        '10 20 "u" "E2U+sip" "!^.*$!sip:second@b.test!" .',
        '10 10 "u" "E2U+sip" "!^.*$!sip:first@b.test!" .',
        '1 1 "u" "E2U+email:mailto" "!^.*$!mailto:bob@b.test!" .',
    ) == ["sip:first@b.test", "sip:second@b.test", "sip:third@b.test"]


def test_peering_016_rules_that_lead_on() -> None:
    """A rule without flags is followed, at most five times and never in a circle; then the next record counts."""
    last = '20 10 "u" "E2U+sip" "!^.*$!sip:last@b.test!" .'
    zone = Zone(
        {
            f"{NAME} NAPTR": ['10 10 "" "E2U+sip" "" one.test', last],
            "one.test NAPTR": ['10 10 "u" "E2U+sip" "!^\\+(.*)$!sip:\\1@one.test!" .'],
        }
    )
    assert tried(zone, NumberSources())[0][0] == "sip:442079460123@one.test"
    zone.records["one.test NAPTR"] = [f'10 10 "" "" "" {NAME}', '20 10 "" "" "" one.test']
    assert tried(zone, NumberSources()) == [("sip:last@b.test", Stage.USER_ENUM)]
    chain = Zone({f"{NAME} NAPTR": ['10 10 "" "" "" n1.test', last]})
    for step in range(1, 100):
        chain.records[f"n{step}.test NAPTR"] = [f'10 10 "" "" "" n{step + 1}.test']
    assert tried(chain, NumberSources()) == [("sip:last@b.test", Stage.USER_ENUM)]
    assert len(chain.asked) == 6
    wide = Zone({f"{NAME} NAPTR": [f'10 {n} "" "" "" n{n}.test' for n in range(200)] + [last]})
    assert tried(wide, NumberSources()) == [("sip:last@b.test", Stage.USER_ENUM)]
    assert len(wide.asked) == 6


@pytest.mark.parametrize(
    "bad",
    [
        '1 1 "u" "E2U+sip" "!^.*$!sip:x@y.test" .',
        '1 1 "u" "E2U+sip" "!^.*$!sip:x@y.test!!" .',
        '1 1 "u" "E2U+sip" "!^.*$!!" .',
        '1 1 "u" "E2U+sip" "" .',
        '1 1 "u" "E2U+sip" "!(!sip:x@y.test!" .',
        '1 1 "u" "E2U+sip" "!^.*$!sip:\\3@y.test!" .',
        '1 1 "u" "E2U+sip" "!^.*$!sip:x@y.test!g" .',
        '1 1 "u" "E2U+sip" "1^.*$1sip:x@y.test1" .',
        '1 1 "u" "E2U+sip" "!^\\+33!sip:x@y.test!" .',
        '1 1 "z" "E2U+sip" "!^.*$!sip:x@y.test!" .',
        '1 1 "s" "SIP+D2U" "" _sip._udp.y.test',
        '1 1 "u" "E2U+P-sip" "!^.*$!sip:x@y.test!" .',
        '1 1 "u" "sip" "!^.*$!sip:x@y.test!" .',
        '1 1 "u" "E2U+sip" "!^.*$!http://y.test!" .',
        '1 1 "u" "E2U+sip" "!^.*$!no uri!" .',
        '1 1 "u" "E2U+sip" "!^.*$!sip:x@[::::]!" .',
        '1 1 "" "" "" .',
    ],
)
def test_peering_017_bad_records_are_skipped_alone(bad: str) -> None:
    """A record that is malformed or not understood is passed over, and only that one."""
    assert found(bad, '2 1 "u" "E2U+sip" "!^.*$!sip:good@b.test!" .') == ["sip:good@b.test"]


def test_peering_018_spellings() -> None:
    """Other delimiters, an escaped delimiter, the flag i, the flag U and the old sip+E2U are understood."""
    assert found('1 1 "U" "e2u+SIP" "#^.*$#sip:bob@b.test#" .') == ["sip:bob@b.test"]
    assert found('1 1 "u" "E2U+sip" "/^.*$/sip:bob@b.test/i" .') == ["sip:bob@b.test"]
    assert found('1 1 "u" "sip+E2U" "!^.*$!sip:bob@b.test!" .') == ["sip:bob@b.test"]
    assert found('1 1 "u" "E2U+sip" "!^.*$!sip:b\\!b@b.test!" .') == ["sip:b!b@b.test"]
    assert found('1 1 "u" "E2U+sip+im" "!^.*$!im:bob@b.test!" .') == ["im:bob@b.test"]
    assert found('1 1 "u" "E2U+sip" "!^\\+44(\\d+)$!sip:\\1@b.test!" .') == ["sip:2079460123@b.test"]


def test_expressions_are_posix() -> None:
    """The leftmost longest match counts, as POSIX has it, and bracket classes work."""
    assert substitute("!^(.4|.44|.442)(0|7|07.*)$!sip:\\1-\\2@x!", "+44207") == "sip:+442-07@x"
    assert substitute("!(4|44|442)!<\\1>!", "+442079") == "<442>"
    assert substitute("!^[+]([[:digit:]]{2})!sip:\\1@x!", "+4420") == "sip:44@x"
    assert substitute("!^\\+44(20)?(.*)$!<\\1|\\2|\\\\>!", "+4430") == "<|30|\\>"


def test_peering_019_absence_and_failure_go_on_to_the_carrier() -> None:
    """Without records, and also when they can't be had, carrier ENUM is next; a failure is remembered as one."""
    sources = NumberSources(carrier_roots=CARRIER)
    carrier = {f"{CARRIER_NAME} NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:x@c.test!" .']}
    for records in ({}, {f"{NAME} NAPTR": ["SERVFAIL"]}):
        assert tried(Zone({**carrier, **records}), sources) == [("sip:x@c.test", Stage.CARRIER_ENUM)]
    assert finished(user_enum(NUMBER, Zone({f"{NAME} NAPTR": ["SERVFAIL"]}).ask)) == EnumOutcome((), True)
    with pytest.raises(NoRoute) as caught:
        tried(Zone({f"{NAME} NAPTR": ["SERVFAIL"]}), sources)
    assert caught.value.status == 503


def test_peering_021_absent_country_codes() -> None:
    """For a country code that is known to be absent from the tree nothing is asked there."""
    zone = Zone()
    with pytest.raises(NoRoute):
        tried(zone, NumberSources(absent_codes=("1", "44")))
    assert zone.asked == []


def test_peering_022_no_second_round() -> None:
    """A number as the result, at our own domain too, is not looked up again."""
    zone = Zone({f"{NAME} NAPTR": [f'10 10 "u" "E2U+sip" "!^.*$!sip:{NUMBER}@a.test;user=phone!" .']})
    analysis = analyse(parse_uri(f"tel:{NUMBER}"), RULES)
    (candidate,) = all_of(candidates(analysis, zone.ask, NumberSources(), RULES))
    assert candidate.home
    assert zone.asked == [f"{NAME} NAPTR"]


@pytest.mark.parametrize(
    "expression",
    [
        "!^(([0-9+]*)*)*x$!sip:x@y.test!",
        "!^(((((((.*)*)*)*)*)*)*)*!!",
        "!(.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*)x!sip:x@y.test!",
        "!(((.{1,99}){1,99}){1,99}){1,99}x!sip:x@y.test!",
        "!" + "(" * 100 + ".*" + ")" * 100 + "x!sip:x@y.test!",
        "!" + "(.?)" * 60 + "!\\9!",
    ],
)
def test_peering_023_hostile_expressions(expression: str) -> None:
    """An expression made to run for ever costs less than 50 ms and is passed over."""
    begun = time.process_time()
    assert found(f'1 1 "u" "E2U+sip" "{expression}" .', '2 1 "u" "E2U+sip" "!^.*$!sip:good@b.test!" .') == [
        "sip:good@b.test"
    ]
    assert time.process_time() - begun < 0.05


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text("!()[]{}*+?\\|^$.0123456789:a-z", max_size=60))
def test_any_expression(text: str, syntax: str) -> None:
    """No substitution expression raises anything."""
    for expression in (text, syntax, f"!{syntax}!{text}!", f"!{syntax}!\\1{syntax}!i"):
        substitute(expression, NUMBER)


@pytest.mark.parametrize(
    "number,position",
    [
        ("+121255501234", 1),
        ("+442079460123", 2),
        ("+79261234567", 1),
        ("+35312345678", 3),
        ("+3883123456", 4),
        ("+8816123456", 4),
        ("+87810123456", 5),
        ("+88213123456", 5),
        ("+883510012345", 7),
        ("+883130012345", 6),
    ],
)
def test_peering_024_where_the_carriers_branch(number: str, position: int) -> None:
    """The label stands after the digits that RFC 5527 section 5 counts; its two examples come out letter by letter."""
    assert branch_position(number) == position


def test_peering_024_carrier_names() -> None:
    """RFC 5527 section 7, other labels and roots, trees of their own, and a tree that tells the position itself."""
    assert domain_of("+121255501234", "e164.arpa", "i", 1) == "4.3.2.1.0.5.5.5.2.1.2.i.1.e164.arpa"
    assert domain_of(NUMBER, "e164.arpa", "i", 2) == CARRIER_NAME
    record = ['10 10 "u" "E2U+sip" "!^.*$!sip:x@c.test!" .']
    for root, name in (
        (CarrierRoot("private.test", "carrier"), "3.2.1.0.6.4.9.7.0.2.carrier.4.4.private.test"),
        (CarrierRoot("own.test", "i", "none"), "3.2.1.0.6.4.9.7.0.2.4.4.own.test"),
    ):
        zone = Zone({f"{name} NAPTR": record})
        assert finished(carrier_enum(NUMBER, zone.ask, [root])).results
    zone = Zone({"i.4.4.told.test TXT": ["4"], "3.2.1.0.6.4.9.7.i.0.2.4.4.told.test NAPTR": record})
    assert finished(carrier_enum(NUMBER, zone.ask, [CarrierRoot("told.test", "i", "txt")])).results


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("04 01 69 01 63 04 74657374 00", "3.2.1.0.6.4.9.7.i.0.2.4.4.c.test"),
        ("00 00 01 63 04 74657374 00", "3.2.1.0.6.4.9.7.0.2.4.4.c.test"),
        ("02 03 692e6a 01 63 04 74657374 00", "3.2.1.0.6.4.9.7.0.2.i.j.4.4.c.test"),
        ("0d 01 69 01 63 04 74657374 00", ""),
        ("04 01 69 01 63 04 74657374", ""),
        ("04 09 69 01 63 00", ""),
        ("04 01 2e 01 63 00", ""),
        ("04 01 69 00", ""),
        ("04 01 69 01 63 00 00", ""),
        ("", ""),
    ],
)
def test_peering_024_a_record_says_where_the_branch_is(record: str, name: str) -> None:
    """Algorithm "ebl": position, separator and apex of the branch are those of the record below the country code; what
    cannot be one, and its absence, mean that there is no branch, and a failed look-up that nobody knows.
    """
    found = {f"{name} NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:x@c.test!" .']}
    for label, where in (("i", "i.4.4.told.test"), ("", "4.4.told.test")):
        zone = Zone({**found, f"{where} TYPE65300": [record]})
        outcome = finished(carrier_enum(NUMBER, zone.ask, [CarrierRoot("told.test", label, "ebl")]))
        assert (bool(outcome.results), outcome.temporary) == (bool(name), False)
    assert finished(carrier_enum(NUMBER, Zone(found).ask, [CarrierRoot("told.test", "i", "ebl")])) == EnumOutcome()
    failing = Zone({"i.4.4.told.test TYPE65300": ["SERVFAIL"]})
    assert finished(carrier_enum(NUMBER, failing.ask, [CarrierRoot("told.test", "i", "ebl")])).temporary


def test_peering_024_only_after_user_enum() -> None:
    """The carrier is not asked when the user's own records have given a URI."""
    zone = Zone({f"{NAME} NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:u@b.test!" .']})
    assert len(tried(zone, NumberSources(carrier_roots=CARRIER, routing_table=TABLE))) == 1
    assert zone.asked == [f"{NAME} NAPTR"]


def test_peering_025_sip_before_pstn() -> None:
    """Of a carrier's records E2U+sip comes before E2U+pstn:sip; pstn:tel only tells the routing table where to look."""
    rules = [
        '10 10 "u" "E2U+pstn:sip" "!^(.*)$!sip:\\1@pstn.c.test;user=phone!" .',
        '10 20 "u" "E2U+pstn:tel" "!^(.*)$!tel:\\1;npdi;rn=+4430!" .',
        '20 10 "u" "E2U+sip" "!^.*$!sip:x@c.test!" .',
    ]
    zone = Zone({f"{CARRIER_NAME} NAPTR": rules})
    assert tried(zone, NumberSources(carrier_roots=CARRIER)) == [
        ("sip:x@c.test", Stage.CARRIER_ENUM),
        (f"sip:{NUMBER}@pstn.c.test;user=phone", Stage.CARRIER_ENUM),
    ]
    ported = parse_routing_table("+4430 sip:{number}@new.c.test\n+4420 sip:{number}@old.c.test")
    zone.records[f"{CARRIER_NAME} NAPTR"] = ['1 1 "u" "E2U+pstn:tel" "!^(.*)$!tel:\\1;npdi;rn=+4430123456!" .']
    assert tried(zone, NumberSources(carrier_roots=CARRIER, routing_table=ported)) == [
        (f"sip:{NUMBER}@new.c.test", Stage.ROUTING_TABLE)
    ]


def test_peering_026_several_roots_then_the_table() -> None:
    """Carrier roots are asked in order until one has records, and then comes the routing table."""
    roots = (CarrierRoot("one.test"), CarrierRoot("two.test"), CarrierRoot("three.test"))
    zone = Zone(
        {
            "3.2.1.0.6.4.9.7.0.2.i.4.4.one.test NAPTR": ["SERVFAIL"],
            "3.2.1.0.6.4.9.7.0.2.i.4.4.two.test NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:x@two.test!" .'],
        }
    )
    sources = NumberSources(user_roots=(), carrier_roots=roots, routing_table=TABLE)
    assert tried(zone, sources) == [
        ("sip:x@two.test", Stage.CARRIER_ENUM),
        ("sip:442079460123@london.c.test", Stage.ROUTING_TABLE),
    ]
    assert not any("three" in name for name in zone.asked)


def test_peering_027_the_longest_prefix() -> None:
    """The longest prefix decides; its alternatives come in their order, with the number in the place marked."""
    assert [str(uri) for uri in TABLE.find(NUMBER)] == ["sip:442079460123@london.c.test"]
    assert [str(uri) for uri in TABLE.find("+441214960000", "+441214960000;ext=7")] == [
        "sip:+441214960000;ext=7@gw1.c.test;user=phone",
        "sip:+441214960000;ext=7@gw2.c.test",
    ]
    assert TABLE.prefix_of(NUMBER) == "4420"
    assert TABLE.find("+12125551212") == ()


def test_peering_028_the_table_after_an_unreachable_carrier() -> None:
    """Whoever could not reach the carrier takes the next candidate: the routing table; before that it is not read."""
    zone = Zone({f"{CARRIER_NAME} NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:x@c.test!" .']})
    sources = NumberSources(carrier_roots=CARRIER, routing_table=TABLE)
    assert [stage for _, stage in tried(zone, sources)] == [Stage.CARRIER_ENUM, Stage.ROUTING_TABLE]


def test_peering_029_no_route() -> None:
    """A number that nobody knows is 404 "No Route To Peer"."""
    with pytest.raises(NoRoute) as caught:
        tried(Zone(), NumberSources(carrier_roots=CARRIER, routing_table=parse_routing_table("+1 sip:{number}@x.test")))
    assert (caught.value.status, caught.value.reason) == (404, "No Route To Peer")


def test_ranges_before_and_instead_of_enum() -> None:
    """A local table of ranges is asked before the ENUM stage of its name, or instead of it when that has no roots."""
    ranges = parse_routing_table("+442079460000-+442079460999 sip:{number}@ranges.test")
    enum = {f"{NAME} NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:u@b.test!" .']}
    zone = Zone(enum)
    assert tried(zone, NumberSources(user_ranges=ranges)) == [(f"sip:{NUMBER}@ranges.test", Stage.USER_RANGES)]
    assert zone.asked == []
    other = parse_routing_table("+1 sip:{number}@ranges.test")
    assert tried(zone, NumberSources(user_ranges=other)) == [("sip:u@b.test", Stage.USER_ENUM)]
    instead = NumberSources(user_roots=(), carrier_ranges=ranges)
    assert tried(Zone(), instead) == [(f"sip:{NUMBER}@ranges.test", Stage.CARRIER_RANGES)]


def test_faults_of_a_table() -> None:
    """Every fault is told with its line, and nothing of the table is used."""
    text = (
        "+1 sip:{number}@x.test\n\n+1 sip:{number}@y.test\nabc sip:x@y\n+2\n+3 http://x\n+30-+2 sip:x@y\n+4-5-6 sip:x@y"
    )
    with pytest.raises(RoutingTableError) as caught:
        parse_routing_table(text)
    assert [line for line, _ in caught.value.faults] == [3, 4, 5, 6, 7, 8]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99999), st.integers(0, 99999))
def test_ranges_are_exact(one: int, other: int) -> None:
    """The prefixes of a range stand for its numbers and for no others."""
    first, last = min(one, other), max(one, other)
    prefixes = tuple(prefixes_of_range(f"{first:05d}", f"{last:05d}"))
    assert sum(10 ** (5 - len(prefix)) for prefix in prefixes) == last - first + 1
    for number in {max(first - 1, 0), first, last, min(last + 1, 99999)}:
        assert f"{number:05d}".startswith(prefixes) == (first <= number <= last)

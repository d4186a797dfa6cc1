"""What a target is, before anybody is asked (checklist lines 1 to 11 and 30)."""

from __future__ import annotations

from random import Random

import pytest

from p2psipd.proto.peering.number_plan import Dialled, Kind, NumberPlan
from p2psipd.proto.peering.targets import (
    Candidate,
    DomainPolicy,
    NumberSources,
    Place,
    Stage,
    TargetRules,
    analyse,
    candidates,
)
from p2psipd.proto.sip.next_hops import NoRoute, message_hops
from p2psipd.proto.sip.parameters import Parameters
from p2psipd.proto.sip.uri import OpaqueUri, parse_uri
from tests.proto.dns_zone import Zone, all_of

TLS = frozenset({"TLS"})
OURS = frozenset({"a.test", "partner.test"})
AMERICAN, BRITISH = TargetRules(OURS, NumberPlan("US")), TargetRules(OURS, NumberPlan("GB"))


def place(text: str, rules: TargetRules = AMERICAN) -> tuple[Place, str]:
    """What `text` is, and as which number."""
    found = analyse(parse_uri(text), rules)
    return found.place, found.number


def tried(text: str, zone: Zone, sources: NumberSources = NumberSources()) -> list[Candidate]:
    """The candidates for `text`."""
    return all_of(candidates(analyse(parse_uri(text), AMERICAN), zone.ask, sources, AMERICAN))


def hops(text: str, zone: Zone) -> list[str]:
    """Where an im: or pres: URI leads."""
    uri = parse_uri(text)
    assert isinstance(uri, OpaqueUri)
    found = all_of(message_hops(uri, zone.ask, Random(1), transports=TLS, tls_only=True))
    return [f"{hop.host}:{hop.port} {hop.domain}" for hop in found]


def test_peering_001_own_and_federated_domains_stay() -> None:
    """A target in our domains or in our federation is handled here, and no name is looked up for it."""
    zone = Zone()
    for text in ("sip:bob@a.test", "sips:bob@PARTNER.test;transport=tls", "im:bob@a.test", "sip:a.test"):
        assert place(text)[0] is Place.HOME
        assert tried(text, zone) == []
    assert zone.asked == []


def test_peering_002_other_domains_ask_no_enum() -> None:
    """A sip or sips URI of another domain is itself the candidate, even with a number for a user: no ENUM query."""
    zone = Zone()
    for text in ("sip:bob@b.test", "sips:bob@b.test", "sip:+442079460123@b.test;user=phone"):
        (candidate,) = tried(text, zone)
        assert (str(candidate.uri), candidate.stage) == (text, Stage.TARGET)
    assert zone.asked == []


@pytest.mark.parametrize("scheme", ["im", "pres"])
def test_peering_003_messaging_uris_ask_their_own_srv(scheme: str) -> None:
    """im: and pres: URIs of other domains are resolved by _im._sip and _pres._sip (RFC 3861)."""
    zone = Zone({f"_{scheme}._sip.b.test SRV": ["0 0 5099 n1.b.test"], "n1.b.test A": ["192.0.2.1"]})
    (candidate,) = tried(f"{scheme}:bob@b.test", zone)
    assert (str(candidate.uri), str(candidate.messaging)) == ("sip:bob@b.test", f"{scheme}:bob@b.test")
    assert hops(f"{scheme}:bob@b.test", zone) == ["192.0.2.1:5099 b.test"]
    assert zone.asked[0] == f"_{scheme}._sip.b.test SRV"


def test_peering_004_srv_excludes_the_addresses_of_the_domain() -> None:
    """With an SRV record the domain's own address is never asked for; without one it is used at port 5061."""
    zone = Zone({"b.test A": ["192.0.2.9"]})
    assert hops("im:bob@b.test", zone) == ["192.0.2.9:5061 b.test"]
    zone = Zone({"b.test A": ["192.0.2.9"], "_im._sip.b.test SRV": ["0 0 5099 dead.b.test"]})
    with pytest.raises(NoRoute):
        hops("im:bob@b.test", zone)
    assert "b.test A" not in zone.asked


def test_peering_005_a_second_server_is_there_to_be_tried() -> None:
    """Every server of the SRV answer is offered, in the order of priorities (RFC 3861 section 6)."""
    zone = Zone(
        {
            "_im._sip.b.test SRV": ["20 0 5061 n2.b.test", "10 0 5061 n1.b.test"],
            "n1.b.test A": ["192.0.2.1"],
            "n2.b.test A": ["192.0.2.2"],
        }
    )
    assert hops("im:bob@b.test", zone) == ["192.0.2.1:5061 b.test", "192.0.2.2:5061 b.test"]


def test_peering_006_messaging_by_other_protocols_only() -> None:
    """A domain with _im._xmpp and no _im._sip is 404, although it has an address."""
    zone = Zone({"_im._xmpp.b.test SRV": ["0 0 5269 x.b.test"], "b.test A": ["192.0.2.9"]})
    with pytest.raises(NoRoute) as caught:
        hops("im:bob@b.test", zone)
    assert caught.value.status == 404
    assert "b.test A" not in zone.asked


@pytest.mark.parametrize(
    "dialled,rules,number",
    [
        ("011442079460123", AMERICAN, "+442079460123"),
        ("0012125551212", BRITISH, "+12125551212"),
        ("02079460123", BRITISH, "+442079460123"),
        ("(212) 555-1212".replace(" ", ""), AMERICAN, "+12125551212"),
        ("+442079460123", AMERICAN, "+442079460123"),
    ],
)
def test_peering_007_number_plans(dialled: str, rules: TargetRules, number: str) -> None:
    """What is dialled in a country becomes the E.164 number that is meant there."""
    assert place(f"sip:{dialled}@a.test;user=phone", rules) == (Place.NUMBER, number)
    assert place(f"sip:{dialled}@a.test", rules) == (Place.NUMBER, number)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("sip:911@a.test", Place.EMERGENCY),
        ("sip:911@a.test;user=phone", Place.EMERGENCY),
        ("sip:112@a.test", Place.EMERGENCY),
        ("tel:911;phone-context=a.test", Place.EMERGENCY),
        ("sip:+911@a.test;user=phone", Place.EMERGENCY),
        ("urn:service:sos", Place.EMERGENCY),
        ("urn:service:sos.fire", Place.EMERGENCY),
        ("sip:411@a.test", Place.HOME),
        ("sip:999@a.test", Place.HOME),
        ("sip:1001@a.test", Place.HOME),
        ("sip:00442079460123@a.test", Place.HOME),
        ("sip:5551212@a.test;user=phone", Place.HOME),
        ("sip:*67@a.test", Place.HOME),
    ],
)
def test_peering_008_codes_stay_at_home(text: str, expected: Place) -> None:
    """Emergency numbers, short codes and what the plan does not know lead to no ENUM and no peer."""
    zone = Zone()
    assert place(text) == (expected, "")
    assert tried(text, zone) == []
    assert zone.asked == []


def test_peering_008_the_emergency_numbers_of_the_place() -> None:
    """999 is an emergency in Britain and not in America; more can be configured, also behind an access code."""
    assert place("sip:999@a.test", BRITISH)[0] is Place.EMERGENCY
    plan = NumberPlan("US", emergency=["5555"], short_codes=["2125551000"], prefixes={"9": "", "8": "+44"})
    rules = TargetRules(OURS, plan)
    assert place("sip:5555@a.test", rules)[0] is Place.EMERGENCY
    assert place("sip:9911@a.test", rules)[0] is Place.EMERGENCY
    assert place("sip:2125551000@a.test", rules)[0] is Place.HOME
    assert place("sip:92125551212@a.test", rules) == (Place.NUMBER, "+12125551212")
    assert place("sip:82079460123@a.test", rules) == (Place.NUMBER, "+442079460123")


def test_peering_009_separators_and_contexts() -> None:
    """Visual separators go; a local number with the prefix of a country becomes global, with any other it is 404."""
    assert place("tel:+1-212-555-1212") == (Place.NUMBER, "+12125551212")
    assert place("sip:+1(212)555.1212@a.test;user=phone") == (Place.NUMBER, "+12125551212")
    assert place("tel:2079460123;phone-context=+44") == (Place.NUMBER, "+442079460123")
    assert place("tel:02079460123;phone-context=+44") == (Place.NUMBER, "+442079460123")
    assert place("tel:2125551212;phone-context=a.test") == (Place.NUMBER, "+12125551212")
    for text in ("tel:4092;phone-context=+12125554000", "tel:2125551212;phone-context=b.test", "tel:5551212"):
        with pytest.raises(NoRoute) as caught:
            place(text)
        assert caught.value.status == 404


def test_peering_010_tel_uris() -> None:
    """A tel: URI is its number; ;ext and ;isub are not looked up, but stay with the number."""
    found = analyse(parse_uri("tel:+12125551212;ext=42;isub=7;cic=1"), AMERICAN)
    assert (found.number, found.subscriber) == ("+12125551212", "+12125551212;ext=42;isub=7")
    for harmful in ("ext=1:2", "ext=[1]", "ext", "isub=%40evil.test", "isub=" + "9" * 99, "isub=a/b"):
        found = analyse(parse_uri(f"tel:+12125551212;{harmful}"), AMERICAN)
        assert found.subscriber == "+12125551212"
    found = analyse(parse_uri("sip:+12125551212;ext=42@a.test;user=phone"), AMERICAN)
    assert (found.number, found.subscriber) == ("+12125551212", "+12125551212;ext=42")


def test_peering_011_private_roots_come_first() -> None:
    """A private ENUM root is asked before the number counts as somebody else's, and may say that it is ours."""
    zone = Zone({"2.1.2.1.5.5.5.2.1.2.1.private.test NAPTR": ['10 10 "u" "E2U+sip" "!^.*$!sip:bob@a.test!" .']})
    (candidate,) = tried("tel:+12125551212", zone, NumberSources(private_roots=("private.test",)))
    assert (str(candidate.uri), candidate.stage, candidate.home) == ("sip:bob@a.test", Stage.PRIVATE_ENUM, True)
    assert zone.asked == ["2.1.2.1.5.5.5.2.1.2.1.private.test NAPTR"]


def test_peering_030_target_policy() -> None:
    """A denied domain and all below it are refused; with a list of allowed domains all others are; the longest name
    decides.
    """
    policy = DomainPolicy(denied=["bad.test", "worse.good.test"])
    judged = {name: policy.permits(name) for name in ("b.test", "bad.test", "x.bad.test", "notbad.test")}
    assert judged == {"b.test": True, "bad.test": False, "x.bad.test": False, "notbad.test": True}
    policy = DomainPolicy(denied=["worse.good.test"], allowed=["good.test", "fine.worse.good.test"])
    assert policy.permits("x.good.test")
    assert not policy.permits("x.worse.good.test")
    assert policy.permits("fine.worse.good.test")
    assert not policy.permits("b.test")


@pytest.mark.parametrize("text", ["mailto:bob@b.test", "urn:service:counseling", "urn:service:sosx"])
def test_schemes_that_lead_nowhere(text: str) -> None:
    """A scheme that we can't follow is 416."""
    with pytest.raises(NoRoute) as caught:
        place(text)
    assert caught.value.status == 416


@pytest.mark.parametrize("text", ["im:b.test", "pres:@b.test", "im:bob@192.0.2.1", "im:bob@b..test%00"])
def test_messaging_uris_without_a_domain(text: str) -> None:
    """An im: or pres: URI needs a user and a domain name: else 404."""
    with pytest.raises(NoRoute) as caught:
        analyse(parse_uri(text), AMERICAN)
    assert caught.value.status == 404


def test_plans_of_unknown_regions() -> None:
    """A region that does not exist is an error when the plan is made."""
    with pytest.raises(ValueError, match="region"):
        NumberPlan("XX")


def test_hostile_dial_strings() -> None:
    """Whatever is dialled, the plan answers; over-long and strange ones are unknown."""
    plan = NumberPlan("DE")
    for text in ("9" * 4000, "+" + "1" * 40, "", "+", "#" * 33, "\u0661\u0662\u0663", "1;2"):
        assert plan.read(text).kind is Kind.UNKNOWN
    assert plan.read("112", Parameters.parse(";phone-context=" + "x" * 500)) == Dialled(Kind.EMERGENCY, "112")

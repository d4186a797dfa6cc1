"""What a domain publishes, and whether it can be reached (checklist lines 63 and 64)."""

from __future__ import annotations

import pytest

from p2psipd.proto.peering.checking import Finding, ProbeResult, Verdict, check_domain
from p2psipd.proto.peering.enum import CarrierRoot
from p2psipd.proto.peering.publishing import PublishedServer, domain_records, number_records, zone_text
from p2psipd.proto.sip.next_hops import Hop
from tests.proto.dns_zone import Zone, all_of

TEMPLATE = "sip:{number}@b.test;user=phone"


def test_records_of_a_domain() -> None:
    """A domain's lines: NAPTR for TLS, SRV for each server, and the servers' addresses."""
    servers = [
        PublishedServer("n1.b.test", 5061, ("192.0.2.1", "2001:db8::1")),
        PublishedServer("n2.b.test", 5071, ("192.0.2.2",), 20, 5),
    ]
    assert zone_text(domain_records("b.test", servers)).splitlines() == [
        'b.test. 3600 IN NAPTR 10 10 "s" "SIPS+D2T" "" _sips._tcp.b.test.',
        "_sips._tcp.b.test. 3600 IN SRV 10 10 5061 n1.b.test.",
        "_sips._tcp.b.test. 3600 IN SRV 20 5 5071 n2.b.test.",
        "n1.b.test. 3600 IN A 192.0.2.1",
        "n1.b.test. 3600 IN AAAA 2001:db8::1",
        "n2.b.test. 3600 IN A 192.0.2.2",
    ]


def test_peering_063_records_of_numbers() -> None:
    """Numbers, prefixes and ranges become names and wildcards; a backslash of the record is written twice."""
    rule = '"!^(.*)$!sip:\\\\1@b.test;user=phone!" .'
    assert zone_text(number_records("+1 212", TEMPLATE).__iter__()).splitlines() == [
        f'2.1.2.1.e164.arpa. 3600 IN NAPTR 100 10 "u" "E2U+sip" {rule}'
    ]
    carrier = zone_text(number_records("+44207*", TEMPLATE, carrier=CarrierRoot()))
    assert carrier.splitlines() == [
        f'*.7.0.2.i.4.4.e164.arpa. 3600 IN NAPTR 100 10 "u" "E2U+sip" {rule}',
        f'*.7.0.2.i.4.4.e164.arpa. 3600 IN NAPTR 100 20 "u" "E2U+pstn:sip" {rule}',
    ]
    names = [record.name for record in number_records("+12125551190-+12125551201", TEMPLATE, root="x.test.")]
    assert names == ["*.9.1.1.5.5.5.2.1.2.1.x.test", "0.0.2.1.5.5.5.2.1.2.1.x.test", "1.0.2.1.5.5.5.2.1.2.1.x.test"]


@pytest.mark.parametrize(
    "numbers,template",
    [
        ("abc", TEMPLATE),
        ("+1-2-3", TEMPLATE),
        ("+20-+10", TEMPLATE),
        ("+1212", "http://b.test"),
        ("+1212", "sip:{number}!@b.test"),
        ("+1212", "sip:{number}{number}@b.test"),
        ("+1212", f"sip:{{number}}@{'x' * 260}.test"),
    ],
)
def test_what_makes_no_record(numbers: str, template: str) -> None:
    """A number or URI that makes no good record is an error."""
    with pytest.raises(ValueError, match="expected"):
        number_records(numbers, template)


GOOD = {
    "b.test NAPTR": [
        '10 10 "s" "SIPS+D2T" "" _sips._tcp.b.test',
        '20 10 "s" "SIP+D2T" "" _sip._tcp.b.test',
        '30 10 "s" "SIP+D2U" "" _sip._udp.b.test',
    ],
    "_sips._tcp.b.test SRV": ["10 10 5061 n1.b.test", "20 10 5061 n2.b.test"],
    "n1.b.test A": ["192.0.2.1"],
    "n2.b.test AAAA": ["2001:db8::2"],
}


def checked(zone: dict[str, list[str]], reachable: bool = True) -> list[Finding]:
    """The findings about b.test."""

    async def probe(hop: Hop) -> ProbeResult:
        assert (hop.transport, hop.domain) == ("TLS", "b.test")
        return ProbeResult(reachable, "verified" if reachable else "refused")

    return all_of(check_domain("b.test", Zone(zone).ask, probe))


def test_peering_064_a_good_domain() -> None:
    """A domain with all its records and servers is found good at every step."""
    findings = checked(GOOD)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert [finding.step for finding in findings] == [
        "NAPTR b.test",
        "SRV _sips._tcp.b.test",
        "A/AAAA n1.b.test",
        "A/AAAA n2.b.test",
        "TLS 192.0.2.1:5061",
        "TLS [2001:db8::2]:5061",
        "b.test",
    ]


@pytest.mark.parametrize(
    "change,verdict,step,words",
    [
        ({"b.test NAPTR": ['1 1 "s" "SIP+D2U" "" x']}, Verdict.FAULT, "NAPTR b.test", "missing: SIPS+D2T"),
        ({"b.test NAPTR": []}, Verdict.WARNING, "NAPTR b.test", "missing"),
        ({"b.test NAPTR": ["SERVFAIL"]}, Verdict.FAULT, "NAPTR b.test", "cannot be looked up"),
        ({"b.test NAPTR": ['1 1 "u" "SIPS+D2T" "!^.*$!x!" .']}, Verdict.FAULT, "NAPTR b.test", "malformed"),
        ({"b.test NAPTR": ['1 1 "s" "SIPS+D2T" "" other.test']}, Verdict.FAULT, "SRV other.test", "missing"),
        ({"b.test NAPTR": ['1 1 "s" "SIPS+D2T" "" _sips._tcp.b.test']}, Verdict.WARNING, "NAPTR b.test", "RFC 3263"),
        ({"_sips._tcp.b.test SRV": []}, Verdict.WARNING, "SRV _sips._tcp.b.test", "missing"),
        ({"_sips._tcp.b.test SRV": ["0 0 0 ."]}, Verdict.FAULT, "SRV _sips._tcp.b.test", "not offered"),
        ({"n1.b.test A": []}, Verdict.FAULT, "A/AAAA n1.b.test", "no address"),
        ({"n1.b.test A": ["SERVFAIL"]}, Verdict.FAULT, "A n1.b.test", "cannot be looked up"),
    ],
)
def test_peering_064_what_is_missing_is_named(
    change: dict[str, list[str]], verdict: Verdict, step: str, words: str
) -> None:
    """Whatever is missing or wrong is said at its own step."""
    zone = {key: value for key, value in {**GOOD, **change}.items() if value}
    found = [finding for finding in checked(zone) if finding.step == step]
    assert any(finding.verdict is verdict and words in finding.text for finding in found), found


def test_peering_064_tls_decides() -> None:
    """Records alone do not make a domain reachable: a server that refuses TLS is a fault, and so is the domain."""
    findings = checked(GOOD, reachable=False)
    faults = [finding.step for finding in findings if finding.verdict is Verdict.FAULT]
    assert faults == ["TLS 192.0.2.1:5061", "TLS [2001:db8::2]:5061", "b.test"]

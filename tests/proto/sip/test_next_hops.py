"""Next hops by RFC 3263, RFC 7984 and RFC 3861: the table of cases, hostile zones, and the list of dead targets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from p2psipd.proto.dns import Srv
from p2psipd.proto.sip.next_hops import (
    MAX_HOPS,
    DeadTargets,
    Hop,
    NoRoute,
    in_srv_order,
    is_numeric,
    living_first,
    next_hops,
)
from p2psipd.proto.sip.uri import SipUri
from tests.proto.dns_zone import Zone, all_of, finished

ALL = frozenset({"UDP", "TCP", "TLS"})
FULL = {
    "b.test NAPTR": [
        '90 50 "s" "SIP+D2T" "" _sip._tcp.b.test',
        '50 50 "s" "SIPS+D2T" "" _sips._tcp.b.test',
        '100 50 "S" "sip+d2u" "" _sip._udp.b.test',
        '10 50 "u" "E2U+sip" "!^.*$!sip:x@y!" .',
    ],
    "_sips._tcp.b.test SRV": ["0 1 5061 n1.b.test"],
    "_sip._tcp.b.test SRV": ["0 1 5060 n2.b.test"],
    "_sip._udp.b.test SRV": ["0 1 5070 n3.b.test"],
    "n1.b.test A": ["192.0.2.1"],
    "n2.b.test A": ["192.0.2.2"],
    "n3.b.test A": ["192.0.2.3"],
    "b.test A": ["192.0.2.9"],
}


def hops(
    uri: str, zone: Zone, transports: frozenset[str] = ALL, families: frozenset[int] = frozenset({4, 6})
) -> list[str]:
    """The hops for `uri` as "TRANSPORT host:port"."""
    found = all_of(next_hops(SipUri.parse(uri), zone.ask, Random(1), transports=transports, families=families))
    return [f"{hop.transport} {hop.host}:{hop.port}" for hop in found]


def refusal(uri: str, zone: Zone, transports: frozenset[str] = ALL) -> NoRoute:
    """Why there is no hop for `uri`."""
    with pytest.raises(NoRoute) as caught:
        hops(uri, zone, transports)
    return caught.value


@pytest.mark.parametrize(
    "uri,expected",
    [
        ("sip:192.0.2.7", "UDP 192.0.2.7:5060"),
        ("sips:192.0.2.7", "TLS 192.0.2.7:5061"),
        ("sip:192.0.2.7:5070", "UDP 192.0.2.7:5070"),
        ("sip:192.0.2.7;transport=tcp", "TCP 192.0.2.7:5060"),
        ("sip:192.0.2.7;transport=TLS", "TLS 192.0.2.7:5061"),
        ("sips:192.0.2.7;transport=tcp", "TLS 192.0.2.7:5061"),
        ("sip:[2001:db8::7]", "UDP 2001:db8::7:5060"),
        ("sip:b.test;maddr=192.0.2.8", "UDP 192.0.2.8:5060"),
    ],
)
def test_numeric_targets_ask_nothing(uri: str, expected: str) -> None:
    """A numeric target is used as it stands, UDP for sip and TLS for sips unless the URI says otherwise (4.1, 4.2)."""
    zone = Zone()
    assert hops(uri, zone) == [expected]
    assert zone.asked == []


@pytest.mark.parametrize(
    "uri,expected", [("sip:b.test:5060", "UDP 192.0.2.9:5060"), ("sips:b.test:5071", "TLS 192.0.2.9:5071")]
)
def test_a_port_means_addresses_only(uri: str, expected: str) -> None:
    """With a port there is no NAPTR and no SRV look-up, not even for 5060 (4.2)."""
    zone = Zone(FULL)
    assert hops(uri, zone) == [expected]
    assert {asked.split()[1] for asked in zone.asked} == {"A", "AAAA"}


def test_naptr_order_rules() -> None:
    """NAPTR records choose the transport in their order; records of other applications do not count (4.1)."""
    assert hops("sip:bob@b.test", Zone(FULL)) == ["TLS 192.0.2.1:5061", "TCP 192.0.2.2:5060", "UDP 192.0.2.3:5070"]


def test_naptr_of_unsupported_transports_are_passed_over() -> None:
    """A service of a transport that we do not have is discarded (4.1)."""
    assert hops("sip:b.test", Zone(FULL), frozenset({"UDP"})) == ["UDP 192.0.2.3:5070"]


def test_sips_takes_only_sips_services() -> None:
    """For a sips URI every service that is not SIPS is discarded (4.1)."""
    assert hops("sips:b.test", Zone(FULL)) == ["TLS 192.0.2.1:5061"]


def test_naptr_without_any_usable_service_is_an_end() -> None:
    """A domain whose NAPTR records leave us nothing is not tried behind their back: 502."""
    zone = Zone({**FULL, "b.test NAPTR": ['10 10 "s" "SIP+D2S" "" _sip._sctp.b.test']})
    assert refusal("sip:b.test", zone).status == 502
    assert zone.asked == ["b.test NAPTR"]


def test_without_naptr_each_transport_is_asked_by_srv() -> None:
    """Without NAPTR records the SRV records of all supported transports are used, the secure ones first (4.1)."""
    zone = Zone({key: value for key, value in FULL.items() if "NAPTR" not in key})
    assert hops("sip:b.test", zone) == ["TLS 192.0.2.1:5061", "TCP 192.0.2.2:5060", "UDP 192.0.2.3:5070"]
    assert hops("sips:b.test", zone) == ["TLS 192.0.2.1:5061"]


def test_without_srv_the_addresses_at_the_default_port() -> None:
    """Without SRV records a sip URI is sent by UDP, a sips URI by TLS, to the addresses of the name (4.1, 4.2)."""
    zone = Zone({"b.test A": ["192.0.2.9"], "b.test AAAA": ["2001:db8::9"]})
    assert hops("sip:b.test", zone) == ["UDP 2001:db8::9:5060", "UDP 192.0.2.9:5060"]
    assert hops("sips:b.test", zone) == ["TLS 2001:db8::9:5061", "TLS 192.0.2.9:5061"]
    assert hops("sip:b.test", zone, frozenset({"TCP", "TLS"})) == ["TCP 2001:db8::9:5060", "TCP 192.0.2.9:5060"]


def test_a_transport_parameter_asks_its_own_srv() -> None:
    """With a transport parameter there is no NAPTR look-up, only the SRV of that transport (4.1, 4.2)."""
    zone = Zone(FULL)
    assert hops("sip:b.test;transport=tcp", zone) == ["TCP 192.0.2.2:5060"]
    assert zone.asked == ["_sip._tcp.b.test SRV", "n2.b.test AAAA", "n2.b.test A"]
    assert hops("sips:b.test;transport=tcp", zone) == ["TLS 192.0.2.1:5061"]
    assert refusal("sip:b.test;transport=sctp", zone).status == 502
    assert refusal("sips:b.test;transport=udp", zone).status == 502


def test_websocket_has_no_srv_of_its_own() -> None:
    """transport=ws means the addresses of the host at port 80, of a sips URI port 443 (RFC 7118 section 5.4)."""
    web = frozenset({"WS", "WSS"})
    assert hops("sip:b.test;transport=ws", Zone(FULL), web) == ["WS 192.0.2.9:80"]
    assert hops("sips:b.test;transport=ws", Zone(FULL), web) == ["WSS 192.0.2.9:443"]


def test_maddr_is_the_target_and_the_certificate_stays_with_the_host() -> None:
    """TARGET is maddr where there is one (section 4); the certificate is compared with the URI's domain."""
    found = all_of(next_hops(SipUri.parse("sips:c.test;maddr=b.test"), Zone(FULL).ask, Random(1), transports=ALL))
    assert found == [Hop("TLS", "192.0.2.1", 5061, "c.test")]


@pytest.mark.parametrize("failing", ["b.test NAPTR", "_sips._tcp.b.test SRV"])
def test_a_failed_lookup_never_leads_down(failing: str) -> None:
    """SERVFAIL is not "no record": no way less secure than the one that could not be looked up, but 503."""
    error = refusal("sip:b.test", Zone({**FULL, failing: ["SERVFAIL"]}))
    assert (error.status, error.reason) == (503, "DNS Failure")
    assert "SERVFAIL" in error.detail


def test_a_failed_address_lookup_is_passed_over() -> None:
    """Where the addresses of one server can't be had, the next server is tried; where all fail it is 503."""
    zone = Zone({"_sips._tcp.b.test SRV": ["0 0 5061 n1.b.test", "1 0 5061 n2.b.test"], "n2.b.test A": ["192.0.2.2"]})
    zone.records["n1.b.test A"] = ["SERVFAIL"]
    assert hops("sips:b.test", zone) == ["TLS 192.0.2.2:5061"]
    zone.records["n2.b.test A"] = ["SERVFAIL"]
    assert refusal("sips:b.test", zone).status == 503


def test_nothing_there_is_404() -> None:
    """A domain with neither SRV nor address records is 404."""
    assert refusal("sip:nobody.test", Zone()).status == 404


def test_the_root_as_srv_target_ends_the_search() -> None:
    """Target "." says that the service is not offered: the addresses of the domain are not tried (RFC 2782)."""
    zone = Zone({"_sips._tcp.b.test SRV": ["0 0 0 ."], "b.test A": ["192.0.2.9"]})
    assert refusal("sips:b.test", zone).status == 502
    assert not any(asked.endswith(" A") for asked in zone.asked)


def test_lazy() -> None:
    """No name of a second server is looked up before the first hop has been taken and another is wanted."""
    zone = Zone({"_sips._tcp.b.test SRV": ["0 0 5061 n1.b.test", "1 0 5061 n2.b.test"], "n1.b.test A": ["192.0.2.1"]})

    async def first() -> Hop:
        async for hop in next_hops(SipUri.parse("sips:b.test"), zone.ask, Random(1), transports=ALL):
            return hop
        raise AssertionError

    assert finished(first()).host == "192.0.2.1"
    assert not any("n2" in asked for asked in zone.asked)


def test_absurd_zones_are_bounded() -> None:
    """Hundreds of servers with hundreds of addresses cost a bounded number of look-ups and give at most 32 hops."""
    zone = Zone({"_sips._tcp.b.test SRV": [f"{n} 0 5061 n{n}.b.test" for n in range(1000)]})
    for n in range(1000):
        zone.records[f"n{n}.b.test A"] = [f"198.51.{n % 250}.{a}" for a in range(250)]
    assert len(hops("sips:b.test", zone)) == MAX_HOPS
    zone.records = {"_sips._tcp.b.test SRV": zone.records["_sips._tcp.b.test SRV"]}
    zone.asked.clear()
    assert refusal("sips:b.test", zone).status == 404
    assert len(zone.asked) < 80


def test_many_names_of_servers_are_no_way_round_the_bound() -> None:
    """Servers count for the whole search, however many SRV names a zone has; and a few look-ups that fail are enough,
    as each may take as long as a name server is waited for.
    """
    names = [f"s{n}.b.test" for n in range(200)]
    zone = Zone({"b.test NAPTR": [f'{n} 0 "s" "SIPS+D2T" "" {name}' for n, name in enumerate(names)]})
    for name in names:
        zone.records[f"{name} SRV"] = [f"{n} 0 5061 n{n}.{name}" for n in range(200)]
    assert refusal("sips:b.test", zone).status == 404
    assert len(zone.asked) < 120
    for name in names:
        zone.records |= {f"n{n}.{name} {kind}": ["SERVFAIL"] for n in range(200) for kind in ("A", "AAAA")}
    zone.asked.clear()
    assert refusal("sips:b.test", zone).status == 503
    assert len(zone.asked) < 12
    zone.records |= {f"{name} SRV": ["SERVFAIL"] for name in names}
    zone.asked.clear()
    assert refusal("sips:b.test", zone).status == 503
    assert len(zone.asked) < 7


def test_addresses_in_the_order_of_the_policy_table() -> None:
    """IPv6 before IPv4, and what rarely works last, within each server and never across servers (RFC 7984, 6724)."""
    zone = Zone(
        {
            "_sips._tcp.b.test SRV": ["0 0 5061 n1.b.test", "1 0 5061 n2.b.test"],
            "n1.b.test AAAA": ["fd00::1", "2001:db8::1"],
            "n1.b.test A": ["192.0.2.1"],
            "n2.b.test AAAA": ["2001:db8::2"],
        }
    )
    found = [hop.split()[1] for hop in hops("sips:b.test", zone)]
    assert found == ["2001:db8::1:5061", "192.0.2.1:5061", "fd00::1:5061", "2001:db8::2:5061"]
    assert hops("sips:b.test", zone, families=frozenset({4})) == ["TLS 192.0.2.1:5061"]


def test_weights() -> None:
    """Within a priority servers come first in proportion to their weights (RFC 2782): 3 to 1 here, within 5 %."""
    random, first = Random(7), [Srv(1, 75, 5061, "heavy"), Srv(1, 25, 5061, "light"), Srv(2, 0, 5061, "backup")]
    drawn = [in_srv_order(first, random) for _ in range(4000)]
    assert all(order[2].target == "backup" for order in drawn)
    assert 2850 < sum(order[0].target == "heavy" for order in drawn) < 3150


def test_weight_zero_has_a_small_chance() -> None:
    """A server of weight 0 beside one of weight 9 comes first now and then (RFC 2782)."""
    random, both = Random(7), [Srv(1, 0, 5061, "none"), Srv(1, 9, 5061, "some")]
    first = sum(in_srv_order(both, random)[0].target == "none" for _ in range(2000))
    assert 100 < first < 300


def test_numeric_hosts() -> None:
    """Only what is an address whole is numeric."""
    numeric = ["192.0.2.1", "2001:db8::1"]
    assert [host for host in (*numeric, "1.2.3", "999.1.1.1", "b.test", "1.2.3.4.test", ":x") if is_numeric(host)] == (
        numeric
    )


ONE, TWO = Hop("TLS", "192.0.2.1", 5061, "b.test"), Hop("TLS", "192.0.2.2", 5061, "b.test")


async def _both() -> AsyncIterator[Hop]:
    for hop in (ONE, TWO):
        yield hop


def test_dead_targets_come_last() -> None:
    """What failed of late is passed over, for 30 s or its Retry-After; where all is dead the order is as ever."""
    dead, now = DeadTargets(), 1000.0
    dead.mark(ONE, now)
    assert all_of(living_first(_both(), dead, lambda: now)) == [TWO, ONE]
    dead.mark(TWO, now, 5.0)
    assert all_of(living_first(_both(), dead, lambda: now)) == [ONE, TWO]
    assert all_of(living_first(_both(), dead, lambda: now + 6.0)) == [TWO, ONE]
    assert all_of(living_first(_both(), dead, lambda: now + 30.0)) == [ONE, TWO]
    dead.mark(ONE, now)
    dead.forget(ONE)
    assert all_of(living_first(_both(), dead, lambda: now)) == [ONE, TWO]


def test_dead_targets_are_bounded() -> None:
    """The list keeps so many targets, the newest; and no Retry-After holds longer than five minutes."""
    dead = DeadTargets(capacity=10)
    for port in range(1, 101):
        dead.mark(Hop("TLS", "192.0.2.1", port, "b.test"), 0.0, 1e9)
    assert len(dead) == 10
    last = Hop("TLS", "192.0.2.1", 100, "elsewhere.test")
    assert dead.holds(last, 299.0)
    assert not dead.holds(last, 300.0)

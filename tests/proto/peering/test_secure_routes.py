"""RFC 3263 with TLS only, for public peers (checklist lines 31 to 37, 41 and 42)."""

from __future__ import annotations

from random import Random

import pytest

from p2psipd.proto.dns import Srv
from p2psipd.proto.sip.next_hops import NoRoute, in_srv_order, next_hops
from p2psipd.proto.sip.uri import SipUri
from tests.proto.dns_zone import Zone, all_of

ALL = frozenset({"UDP", "TCP", "TLS", "WS", "WSS"})
SECURE = '90 10 "s" "SIPS+D2T" "" _sips._tcp.b.test'
OPEN = ['10 10 "s" "SIP+D2U" "" _sip._udp.b.test', '20 10 "s" "SIP+D2T" "" _sip._tcp.b.test']
SERVERS = {
    "_sips._tcp.b.test SRV": ["0 0 5061 n1.b.test"],
    "_sip._tcp.b.test SRV": ["0 0 5060 n1.b.test"],
    "_sip._udp.b.test SRV": ["0 0 5060 n1.b.test"],
    "n1.b.test A": ["192.0.2.1"],
    "b.test A": ["192.0.2.9"],
}


def hops(text: str, zone: Zone) -> list[str]:
    """The hops for a public peer."""
    found = all_of(next_hops(SipUri.parse(text), zone.ask, Random(1), transports=ALL, tls_only=True))
    return [f"{hop.transport} {hop.host}:{hop.port} {hop.domain}" for hop in found]


def refusal(text: str, zone: Zone) -> int:
    """The status that answers a request that has no secure route."""
    with pytest.raises(NoRoute) as caught:
        hops(text, zone)
    return caught.value.status


def test_peering_031_only_the_secure_naptr() -> None:
    """Among NAPTR records only SIPS+D2T is used, whatever its order."""
    zone = Zone({**SERVERS, "b.test NAPTR": [*OPEN, SECURE]})
    assert hops("sip:bob@b.test", zone) == ["TLS 192.0.2.1:5061 b.test"]
    assert not any("_sip._" in asked for asked in zone.asked)


def test_peering_032_no_secure_naptr() -> None:
    """A domain that offers UDP and TCP only is 502, and none of its servers is even looked up."""
    zone = Zone({**SERVERS, "b.test NAPTR": OPEN})
    assert refusal("sip:bob@b.test", zone) == 502
    assert zone.asked == ["b.test NAPTR"]


def test_peering_033_without_naptr() -> None:
    """Without NAPTR records _sips._tcp is asked, and without that the addresses at port 5061, by TLS."""
    assert hops("sip:bob@b.test", Zone(SERVERS)) == ["TLS 192.0.2.1:5061 b.test"]
    zone = Zone({"b.test A": ["192.0.2.9"]})
    assert hops("sip:bob@b.test", zone) == ["TLS 192.0.2.9:5061 b.test"]
    assert zone.asked == ["b.test NAPTR", "_sips._tcp.b.test SRV", "b.test AAAA", "b.test A"]


def test_peering_034_ports_and_numeric_hosts() -> None:
    """host:port asks for addresses only; a numeric host has no domain that a certificate could prove: 502."""
    zone = Zone(SERVERS)
    assert hops("sip:bob@b.test:5099", zone) == ["TLS 192.0.2.9:5099 b.test"]
    assert zone.asked == ["b.test AAAA", "b.test A"]
    for text in ("sip:bob@192.0.2.1", "sips:bob@[2001:db8::1]:5061", "sip:bob@b.test;maddr=192.0.2.1"):
        assert refusal(text, zone) == 502


def test_peering_035_transport_parameters() -> None:
    """transport=udp, tcp, ws or sctp of a sip URI is 502; transport=tls, and tcp of a sips URI, is TLS."""
    for name in ("udp", "tcp", "ws", "sctp", "UDP"):
        assert refusal(f"sip:bob@b.test;transport={name}", Zone(SERVERS)) == 502
    for text in ("sip:bob@b.test;transport=tls", "sips:bob@b.test;transport=tcp"):
        assert hops(text, Zone(SERVERS)) == ["TLS 192.0.2.1:5061 b.test"]


def test_peering_036_weights_and_the_root() -> None:
    """Weights of 3 to 1 show in 4000 draws within 5 %; target "." ends the search with 502."""
    random, servers = Random(3), [Srv(0, 3, 5061, "three"), Srv(0, 1, 5061, "one")]
    # The weights are drawn from 0 to their sum, both included (RFC 2782): small ones are not quite 3 to 1.
    first = sum(
        in_srv_order([s._replace(weight=s.weight * 100) for s in servers], random)[0].weight for _ in range(4000)
    )
    share = (first / 4000 - 100) / 200
    assert abs(share - 0.75) < 0.05
    assert refusal("sip:bob@b.test", Zone({"_sips._tcp.b.test SRV": ["0 0 0 ."], "b.test A": ["192.0.2.9"]})) == 502


def test_peering_037_both_families() -> None:
    """AAAA and A are both asked; a family that we can't use is left out; servers are not mixed."""
    zone = Zone(
        {
            "_sips._tcp.b.test SRV": ["0 0 5061 n1.b.test", "1 0 5061 n2.b.test"],
            "n1.b.test A": ["192.0.2.1"],
            "n1.b.test AAAA": ["2001:db8::1"],
            "n2.b.test A": ["192.0.2.2"],
            "n2.b.test AAAA": ["2001:db8::2"],
        }
    )
    assert [hop.split()[1] for hop in hops("sip:b.test", zone)] == [
        "2001:db8::1:5061",
        "192.0.2.1:5061",
        "2001:db8::2:5061",
        "192.0.2.2:5061",
    ]
    four = all_of(
        next_hops(
            SipUri.parse("sip:b.test"), zone.ask, Random(1), transports=ALL, tls_only=True, families=frozenset({4})
        )
    )
    assert [hop.host for hop in four] == ["192.0.2.1", "192.0.2.2"]


def test_peering_041_the_uri_is_not_touched() -> None:
    """What the DNS says goes into the hop alone: URI and domain stay what they were (RFC 3263 section 4)."""
    uri = SipUri.parse("sip:Bob@B.test;method=INVITE")
    zone = Zone({**SERVERS, "b.test NAPTR": ['1 1 "s" "SIPS+D2T" "" _sips._tcp.hoster.example']})
    zone.records["_sips._tcp.hoster.example SRV"] = ["0 0 5061 n1.b.test"]
    (hop,) = all_of(next_hops(uri, zone.ask, Random(1), transports=ALL, tls_only=True))
    assert (str(uri), hop.domain) == ("sip:Bob@B.test;method=INVITE", "b.test")


def test_peering_042_sips_works() -> None:
    """A sips URI takes the same way."""
    zone = Zone({**SERVERS, "b.test NAPTR": [*OPEN, SECURE]})
    assert hops("sips:bob@b.test", zone) == ["TLS 192.0.2.1:5061 b.test"]


@pytest.mark.parametrize("failing", ["b.test NAPTR", "_sips._tcp.b.test SRV", "n1.b.test A"])
def test_failures_are_503(failing: str) -> None:
    """When the DNS can't be asked, the request is 503, and no other way is taken."""
    zone = Zone({**SERVERS, failing: ["SERVFAIL"]})
    assert refusal("sip:bob@b.test", zone) == 503

"""Calls to the emergency services, and what an operator is told about calls that are not made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet.task import Clock

from p2psipd.config.peering import Peering
from p2psipd.proto.dns import NO_RECORD, A, Answer, Naptr, Status
from p2psipd.proto.identity.passport import parse_identity_header, read_full_token
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import NotLocated, Origin, Query, Target
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.next_hops import Hop
from p2psipd.proto.sip.uri import Uri, parse_uri
from p2psipd.services.peering.explain import explain
from p2psipd.services.peering.outbound import Outbound
from tests.proto.identity.domain_certificates import WALL
from tests.proto.peering.peering_world import run
from tests.services.sip_world import MemoryFlow
from tests.test_config_peering import FILE, read

PLAN = '[number_plan]\nregion = "US"\n'
PSAP = '[emergency]\ntarget = "sip:psap@help.test"\n[send]\ndeny = ["help.test", "evil.test"]\n'


class Connections:
    """Connections that always succeed; `hops` says where to."""

    def __init__(self) -> None:
        self.hops: list[Hop] = []

    async def reach(self, hop: Hop, own_domain: str, certificate: str = "") -> Flow:
        self.hops.append(hop)
        return MemoryFlow("TLS", (hop.host, hop.port), ("127.0.0.1", 1), 1, lambda flow, data: None)


class Outside:
    """The initiating side of a.test; alice is at home, +12125551212 stands for her; the DNS knows nothing."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.policy: Peering = read(directory, FILE + PLAN + more)
        self.connections = Connections()
        self.asked: list[str] = []
        self.numbers = NO_RECORD
        self.outbound = Outbound(
            lambda: self.policy,
            frozenset({"a.test", "a2.test"}),
            self.ask,
            self.connections,
            Random(1),
            now=Clock().seconds,
            wall=lambda: WALL,
            find_home=self.find,
            owner=self.owner,
            counters=Counter(),
        )

    async def ask(self, name: str, kind: str) -> Answer:
        self.asked.append(name)
        if name.endswith("e164.arpa"):
            return self.numbers
        return Answer(Status.FOUND, (A("192.0.2.9"),), 60) if kind == "A" else NO_RECORD

    async def find(self, query: Query) -> Sequence[Target] | None:
        if str(query.uri) in ("sip:alice@a.test", "tel:+12125551212"):
            return (Target("sip:alice@10.0.0.1"),)
        raise NotLocated(404)

    async def owner(self, uri: Uri) -> str | None:
        return "sip:alice@a.test" if "+12125551212" in str(uri) else None

    def located(self, uri: str, origin: Origin = Origin.PHONE) -> Sequence[Target] | None:
        return run(self.outbound.emergency(Query(parse_uri(uri), origin, WALL)))

    def explained(self, target: str, sender: str = "alice@a.test") -> list[dict[str, Any]]:
        return run(explain(self.outbound, target, sender, self.owner))


CALLS_FOR_HELP = ("urn:service:sos", "urn:service:sos.fire", "tel:911", "sip:911@a.test", "sip:9-1-1@a.test;user=phone")


@pytest.mark.parametrize("uri", CALLS_FOR_HELP)
def test_peering_008_help_before_policy(tmp_path: Path, uri: str) -> None:
    """An emergency call goes to its target though the policy denies that domain, with its Geolocation."""
    outside = Outside(tmp_path, PSAP)
    found = outside.located(uri)
    assert found is not None and found[0].route_maker is not None
    place = "<https://lis.a.test/1>"
    lines = [
        ("Via", "SIP/2.0/TLS 10.0.0.9;branch=z9hG4bK1"),
        ("From", "<sip:alice@a.test>;tag=1"),
        ("To", f"<{uri}>"),
        ("Call-ID", "1"),
        ("CSeq", "1 INVITE"),
        ("Geolocation", place),
        ("Geolocation-Routing", "yes"),
    ]
    attempt = run(found[0].route_maker(Request("INVITE", uri, lines, b""), found[0]).next(None))
    assert attempt is not None and attempt.request.uri_text == "sip:psap@help.test"
    assert attempt.request.get_all("Geolocation") == [place] and attempt.request.get("Geolocation-Routing") == "yes"
    assert [hop.domain for hop in outside.connections.hops] == ["help.test"]
    assert not any("arpa" in name for name in outside.asked)


@pytest.mark.parametrize(
    "sender", ["<sip:12ab@a.test;user=phone>", "<sip:+13125550000@a.test;user=phone>", "<sip:alice@x.test>"]
)
def test_peering_008_help_whatever_the_phone_writes(tmp_path: Path, sender: str) -> None:
    """A From that no other call may bear, and a clock that is wrong, stop no emergency call; ours is the Date then, and
    we do not answer for who it is.
    """
    outside = Outside(tmp_path, PSAP + '[[peer]]\ndomain = "help.test"\nshaken = true\n')
    outside.policy.file.identity.__dict__["numbers"] = "owned"
    found = outside.located("tel:911")
    assert found is not None and found[0].route_maker is not None
    lines = [
        ("Via", "SIP/2.0/TLS 10.0.0.9;branch=z9hG4bK1"),
        ("From", f"{sender};tag=1"),
        ("To", "<tel:911>"),
        ("Call-ID", "1"),
        ("CSeq", "1 INVITE"),
        ("Date", "Thu, 01 Jan 1970 00:00:10 GMT"),
    ]
    attempt = run(found[0].route_maker(Request("INVITE", "tel:911", lines, b""), found[0]).next(None))
    assert attempt is not None
    assert attempt.request.has("identity") is ("a.test" in sender)
    for value in attempt.request.get_all("identity"):
        assert "shaken" not in value or read_full_token(parse_identity_header(value)).claims.attest == "C"
    assert "1970" not in (attempt.request.get("date") or "")


def test_peering_008_help_at_home(tmp_path: Path) -> None:
    """A target in our own domain is a user of ours; other domains have no emergency calls here."""
    outside = Outside(tmp_path, '[emergency]\ntarget = "sip:alice@a.test"\n')
    assert outside.located("sip:911@a2.test") == (Target("sip:alice@10.0.0.1"),)
    assert outside.located("sip:911@a.test", Origin.PEER) is None
    assert outside.located("sip:alice@a.test") is None and outside.located("sip:912@b.test") is None


def test_peering_008_no_help(tmp_path: Path) -> None:
    """Without a target emergency calls are 404."""
    outside = Outside(tmp_path)
    assert any("[emergency]" in warning for warning in outside.policy.warnings)
    with pytest.raises(NotLocated) as refused:
        outside.located("tel:911")
    assert refused.value.status == 404 and outside.outbound.counters["emergency"] == 1


@pytest.mark.parametrize(
    ("target", "sender", "steps"),
    [
        ("911", "alice@a.test", [("ok", "target", "emergency"), ("ok", "emergency", "sip:psap@help.test")]),
        ("212-555-1212", "sip:alice@a.test", [("ok", "answer", "stands for sip:alice@a.test")]),
        ("bob@a2.test", "alice@a.test", [("ok", "answer", "our own domain")]),
        ("sip:bob@evil.test", "alice@a.test", [("no", "answer", "403 Target Not Allowed")]),
        ("sip:bob@b.test", "eve@e.test", [("no", "answer", "403 Foreign From Address")]),
        ("sip:bob@b.test", "tel:+1212", [("no", "answer", "403 Foreign From Address")]),
        ("sip:bob@c.test", "carol@c.test", [("no", "answer", "403 Foreign From Address")]),
        ("4420", "alice@a.test", [("ok", "target", "home")]),
        ("tel:+442079460000", "alice@a.test", [("ok", "target", "number +442079460000")]),
        ("", "alice@a.test", [("no", "target", "not a URI")]),
        ("sip:x@b.test\r\nEvil: 1", "alice@a.test", [("no", "target", "not a URI")]),
    ],
)
def test_explained(tmp_path: Path, target: str, sender: str, steps: list[tuple[str, str, str]]) -> None:
    """What would come of a call is told for whatever can be dialled, by whoever."""
    told = Outside(tmp_path, PSAP).explained(target, sender)
    for verdict, name, text in steps:
        assert any((e["verdict"], e["step"]) == (verdict, name) and text in e["result"] for e in told), told


def test_explained_federation(tmp_path: Path) -> None:
    """Through whom the calls of a domain of ours go is told, and where that leads."""
    outside = Outside(tmp_path)
    outside.policy = read(tmp_path, FILE.replace('domain = "c.test"', 'domain = "a2.test"'))
    told = outside.explained("sip:x@d.test", "alice@a2.test")
    assert any(each["step"] == "federation" and "through b.test" in each["result"] for each in told), told
    assert "b.test" in outside.asked and "d.test" not in outside.asked


def test_peering_011_a_number_of_ours(tmp_path: Path) -> None:
    """What is dialled as a number of this place, or is ours by ENUM, rings at home; ours by ENUM alone is 404."""
    outside = Outside(tmp_path)
    alice = (Target("sip:alice@10.0.0.1"),)

    def called(uri: str) -> Sequence[Target] | None:
        return run(outside.outbound(Query(parse_uri(uri), Origin.NODE, WALL)))

    assert called("sip:2125551212@a.test") == alice and not outside.asked
    outside.numbers = enum("sip:alice@a.test")
    assert called("tel:+12125559999") == alice
    outside.numbers = enum("sip:nobody@a.test")
    with pytest.raises(NotLocated) as refused:
        called("tel:+12125559999")
    assert refused.value.status == 404
    outside.numbers = enum("sip:bob@b.test")
    found = called("sip:2125559999@a.test")
    assert found and found[0].route_maker is not None


def enum(uri: str) -> Answer:
    """What the DNS says of every number."""
    return Answer(Status.FOUND, (Naptr(1, 1, "u", "E2U+sip", f"!.*!{uri}!", ""),), 60)

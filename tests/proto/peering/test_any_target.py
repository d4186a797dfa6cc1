"""Whatever URI comes and whatever a zone says: an answer or NoRoute, and nothing else."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.dns import NO_RECORD, A, Aaaa, Answer, Naptr, Srv, Status
from p2psipd.proto.peering.enum import CarrierRoot
from p2psipd.proto.peering.number_plan import NumberPlan
from p2psipd.proto.peering.routing_table import parse_routing_table
from p2psipd.proto.peering.targets import NumberSources, TargetRules, analyse, candidates
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.next_hops import MAX_HOPS, NoRoute, message_hops, next_hops
from p2psipd.proto.sip.uri import parse_uri
from tests.proto.dns_zone import all_of

RULES = TargetRules(frozenset({"a.test"}), NumberPlan("US"))
SOURCES = NumberSources(
    private_roots=("private.test",),
    carrier_roots=(CarrierRoot(), CarrierRoot("told.test", "i", "txt")),
    routing_table=parse_routing_table("* sip:{number}@gw.test sip:{digits}@gw2.test;user=phone"),
)
WORDS = st.sampled_from([
    "sip:", "sips:", "tel:", "im:", "pres:", "urn:service:sos", "+1212", "911", "5551212", "alice", "@", "a.test",
    "b.test", "192.0.2.1", "[2001:db8::1]", ":5060", ";", "user=phone", "phone-context=", "+44", "ext=", "isub=1",
    "transport=", "udp", "tls", "ws", "maddr=", "%40", "%00", "..", "\\", "{number}", "\u0661", "x" * 70,
])  # fmt: skip
NAMES = st.sampled_from(["b.test", ".", "_sips._tcp.b.test", "n1.b.test", "..", "x" * 300, "\ufffd", "a.test", ""])
TEXTS = st.sampled_from([
    "", "s", "u", "U", "z", "E2U+sip", "sip+E2U", "SIPS+D2T", "SIP+D2U", "E2U+pstn:tel", "E2U+im", "+", "E2U",
    "!^(.*)$!sip:\\1@b.test!", "!^(.*)$!tel:\\1;rn=+1212!", "!^.*$!im:bob@b.test!", "!^.*$!sip:\\1!", "!!!", "!(!x!",
    "!^.*$!sip:b@a.test!", "!^.*$!im:@!", "\ufffd",
])  # fmt: skip
SMALL = st.integers(0, 65535)
RECORDS = st.one_of(
    st.builds(Naptr, SMALL, SMALL, TEXTS, TEXTS, TEXTS, NAMES),
    st.builds(Srv, SMALL, SMALL, SMALL, NAMES),
    st.sampled_from([A("192.0.2.1"), A("0.0.0.0"), Aaaa("2001:db8::1"), Aaaa("::ffff:192.0.2.1")]),
)
ANSWERS = st.one_of(
    st.just(NO_RECORD),
    st.just(Answer(Status.FAILED, reason="SERVFAIL")),
    st.lists(RECORDS, min_size=1, max_size=6).map(lambda records: Answer(Status.FOUND, tuple(records), 1.0)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=9).map("".join), st.lists(ANSWERS, min_size=1, max_size=8))
def test_any_target_in_any_zone(text: str, answers: list[Answer]) -> None:
    """A bounded number of look-ups leads to hops or to NoRoute, for every URI that can be parsed."""
    asked = 0

    async def ask(name: str, type: str) -> Answer:
        nonlocal asked
        asked += 1
        return answers[asked % len(answers)]

    try:
        uri = parse_uri(text)
    except SipError:
        return
    try:
        found = all_of(candidates(analyse(uri, RULES), ask, SOURCES, RULES))
    except NoRoute:
        found = []
    assert asked <= 30
    transports = frozenset({"UDP", "TCP", "TLS", "WS", "WSS"})
    for candidate in found:
        try:
            options = {"transports": transports, "tls_only": len(text) % 2 == 0}
            if candidate.messaging is not None:
                hops = all_of(message_hops(candidate.messaging, ask, Random(1), **options))
            else:
                hops = all_of(next_hops(candidate.uri, ask, Random(1), **options))
        except NoRoute as error:
            assert 400 <= error.status < 600
        else:
            assert 0 < len(hops) <= MAX_HOPS

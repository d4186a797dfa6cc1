"""The registrar's rules (RFC 3261 section 10.3), without a network: what a REGISTER does to the bindings."""

from __future__ import annotations

import pytest

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Binding, binding_key, decode_gr, encode_gr, flow_text, parse_flow_text
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.registrar import (
    BindingTable,
    Bounds,
    Plan,
    RegistrationRefused,
    answer,
    contact_value,
    plan,
)

AOR = "sip:bob@overlay.example"
NODE = b"\1" * 16
FLOW = Flow("UDP", ("192.0.2.7", 5070), ("192.0.2.1", 5060), 0)
WALL = 1_700_000_000.0
INSTANCE = '+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'


def register(*contacts: str, cseq: int = 1, call_id: str = "c1", **headers: str) -> Request:
    """A REGISTER of bob; header names are written with underscores."""
    lines = [
        ("Via", "SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bK1"),
        ("From", f"<{AOR}>;tag=1"),
        ("To", f"<{AOR}>"),
        ("Call-ID", call_id),
        ("CSeq", f"{cseq} REGISTER"),
    ]
    lines += [("Contact", contact) for contact in contacts]
    lines += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request("REGISTER", "sip:overlay.example", lines)


def done(request: Request, existing: tuple[Binding, ...] = (), bounds: Bounds | None = None) -> Plan:
    return plan(request, AOR, existing, FLOW, NODE, bounds or Bounds(), WALL)


def refusal(request: Request, existing: tuple[Binding, ...] = (), bounds: Bounds | None = None) -> RegistrationRefused:
    with pytest.raises(RegistrationRefused) as caught:
        done(request, existing, bounds)
    return caught.value


def test_every_attribute_of_a_contact_is_kept() -> None:
    """A binding carries its URI verbatim, parameters, q, instance, reg-id, Path, Call-ID, CSeq, and where it
    came from.
    """
    request = register(
        f'"Bob" <sip:bob@192.0.2.7:5070;ob;x=%41>;q=0.7;{INSTANCE};reg-id=2;methods="INVITE, BYE";expires=120',
        Path="<sip:edge1;lr>, <sip:edge2;lr>",
        User_Agent="phone 1",
    )
    (binding,) = done(request).puts
    assert binding.contact == "sip:bob@192.0.2.7:5070;ob;x=%41"
    assert (binding.q, binding.reg_id, binding.expires_at) == (0.7, 2, WALL + 120)
    assert binding.instance_id == "urn:uuid:00000000-0000-1000-8000-000A95A0E128"
    assert binding.path == ("<sip:edge1;lr>", "<sip:edge2;lr>")
    assert (binding.call_id, binding.cseq, binding.node_id, binding.user_agent) == ("c1", 1, NODE, "phone 1")
    assert ("methods", '"INVITE, BYE"') in binding.parameters
    assert binding.key == binding_key("", binding.instance_id, 2)
    assert parse_flow_text(binding.received) == ("UDP", FLOW.local, FLOW.remote)
    value = contact_value(binding, WALL + 20)
    assert value.startswith("<sip:bob@192.0.2.7:5070;ob;x=%41>;") and INSTANCE in value
    assert value.endswith(";q=0.7;expires=100")


@pytest.mark.parametrize(
    ("contact", "header", "lifetime"),
    [
        ("<sip:b@192.0.2.7>;expires=90", {"Expires": "200"}, 90),
        ("<sip:b@192.0.2.7>", {"Expires": "200"}, 200),
        ("<sip:b@192.0.2.7>", {}, 1800),
        ("<sip:b@192.0.2.7>;expires=86400", {}, 3600),
        ("<sip:b@192.0.2.7>", {"Expires": "4294967295"}, 3600),
    ],
)
def test_lifetime(contact: str, header: dict[str, str], lifetime: int) -> None:
    """Step 7: the parameter counts before the header, the header before the default, and none above the
    maximum.
    """
    (binding,) = done(register(contact, **header), bounds=Bounds(default_expires=1800)).puts
    assert binding.expires_at - WALL == lifetime


def test_interval_too_brief() -> None:
    """Step 7: below the minimum, and above zero, is 423 with Min-Expires; nothing of the request is carried
    out.
    """
    error = refusal(register("<sip:a@192.0.2.7>;expires=600", "<sip:b@192.0.2.7>;expires=59"))
    assert error.status == 423 and dict(error.headers)["Min-Expires"] == "60"


def test_several_contacts_and_fetch() -> None:
    """Several contacts in one REGISTER are several bindings; a REGISTER without Contact asks for all of
    them.
    """
    both = done(register("<sip:a@192.0.2.7>;q=0.5, <sip:b@192.0.2.8>"))
    assert [each.contact for each in both.puts] == ["sip:a@192.0.2.7", "sip:b@192.0.2.8"]
    asked = register(cseq=2)
    fetched = done(asked, both.current)
    assert not fetched.puts and not fetched.removes and fetched.current == both.current
    response = answer(asked, fetched, WALL)
    assert [each.uri_text for each in response.contacts] == ["sip:a@192.0.2.7", "sip:b@192.0.2.8"]
    assert response.get("date") == "Tue, 14 Nov 2023 22:13:20 GMT"


def test_refresh_replaces_and_keeps_the_others() -> None:
    """A refresh with a higher CSeq updates its own binding alone."""
    first = done(register("<sip:a@192.0.2.7>, <sip:b@192.0.2.8>"))
    again = done(register("<sip:a@192.0.2.7>;q=0.1", cseq=2), first.current)
    assert [each.q for each in again.puts] == [0.1] and not again.removes
    assert len(again.current) == 2


def test_equal_uri_is_the_same_binding() -> None:
    """Step 7: bindings are found by URI comparison, not by text (RFC 3261 section 19.1.4)."""
    first = done(register("<sip:%62ob@192.0.2.7:5070>"))
    again = done(register("<sip:bob@192.0.2.7:5070>", cseq=2), first.current)
    assert len(again.current) == 1
    assert [each.key for each in again.removes] == [first.puts[0].key]


def test_order_by_call_id_and_cseq() -> None:
    """Step 7: the same Call-ID with a CSeq that is not higher fails; another Call-ID is another client's, and
    passes.
    """
    first = done(register("<sip:a@192.0.2.7>", cseq=5))
    assert refusal(register("<sip:a@192.0.2.7>", cseq=5), first.current).status == 500
    assert refusal(register("<sip:a@192.0.2.7>;expires=0", cseq=4), first.current).status == 500
    assert done(register("<sip:a@192.0.2.7>", cseq=1, call_id="c2"), first.current).puts


def test_remove_one_and_all() -> None:
    """expires=0 removes one binding, `Contact: *` with Expires: 0 every one, whoever stored it."""
    first = done(register("<sip:a@192.0.2.7>, <sip:b@192.0.2.8>"))
    one = done(register("<sip:a@192.0.2.7>;expires=0", cseq=2), first.current)
    assert [each.contact for each in one.removes] == ["sip:a@192.0.2.7"]
    assert [each.contact for each in one.current] == ["sip:b@192.0.2.8"]
    foreign = first.current[1]._replace(node_id=b"\2" * 16, call_id="other", cseq=9)
    everything = done(register("*", cseq=2, Expires="0"), (first.current[0], foreign))
    assert len(everything.removes) == 2 and everything.current == ()


def test_removing_what_is_not_there_is_no_error() -> None:
    """A phone that unregisters twice hears 200 twice."""
    assert done(register("<sip:a@192.0.2.7>;expires=0")) == Plan((), (), ())


@pytest.mark.parametrize(
    ("contacts", "headers"),
    [(("*",), {}), (("*",), {"Expires": "60"}), (("*", "<sip:a@192.0.2.7>"), {"Expires": "0"})],
)
def test_star_needs_expires_zero_and_stands_alone(contacts: tuple[str, ...], headers: dict[str, str]) -> None:
    """Step 6: `*` with another lifetime, or beside other contacts, is 400."""
    from p2psipd.proto.sip.errors import SipError

    with pytest.raises(SipError) as caught:
        done(register(*contacts, **headers))
    assert caught.value.status == 400


def test_star_out_of_order() -> None:
    """Step 6: `*` with an old CSeq of the same Call-ID changes nothing."""
    first = done(register("<sip:a@192.0.2.7>", cseq=5))
    assert refusal(register("*", cseq=5, Expires="0"), first.current).status == 500


def test_too_many_contacts() -> None:
    """Profile section 4: the sum of a user's bindings is limited; a removal is always possible."""
    bounds = Bounds(max_contacts=2)
    first = done(register("<sip:a@192.0.2.7>, <sip:b@192.0.2.7>"), bounds=bounds)
    error = refusal(register("<sip:c@192.0.2.7>", cseq=2), first.current, bounds)
    assert (error.status, error.reason) == (403, "Too Many Contacts")
    swap = register("<sip:c@192.0.2.7>, <sip:a@192.0.2.7>;expires=0", cseq=2)
    assert len(done(swap, first.current, bounds).current) == 2


def test_unknown_extension() -> None:
    """Step 2: what the phone requires and we don't know is 420 with Unsupported."""
    error = refusal(register("<sip:a@192.0.2.7>", Require="path, magic"))
    assert error.status == 420 and dict(error.headers)["Unsupported"] == "magic"


def test_outbound_is_said_only_when_it_was_used() -> None:
    """RFC 5626 section 6: Require: outbound answers a phone that supports it and gave instance and reg-id."""
    request = register(f"<sip:a@192.0.2.7>;{INSTANCE};reg-id=1", Supported="path, outbound")
    assert answer(request, done(request), WALL).get("require") == "outbound"
    plain = register("<sip:a@192.0.2.7>", Supported="path, outbound")
    assert answer(plain, done(plain), WALL).get("require") is None


def test_expired_bindings_are_not_current() -> None:
    """A binding whose time has run out is neither listed nor counted."""
    old = done(register("<sip:a@192.0.2.7>")).puts[0]._replace(expires_at=WALL - 1)
    assert done(register(), (old,)).current == ()


def test_table_forgets_with_the_flow_and_with_time() -> None:
    """The table finds bindings best q first, loses their flow with its connection, and drops what has run
    out.
    """
    table = BindingTable(limit=2)
    tcp = Flow("TCP", ("192.0.2.9", 4000), ("192.0.2.1", 5060), 7)
    first, second = done(register("<sip:a@192.0.2.7>;q=0.2, <sip:b@192.0.2.8>;expires=100")).puts
    table.put(first, tcp)
    table.put(second, FLOW)
    assert table.full and len(table) == 2
    assert [own.binding.contact for own in table.of(AOR, WALL)] == ["sip:b@192.0.2.8", "sip:a@192.0.2.7"]
    table.flow_lost(tcp)
    assert [own.flow for own in table.of(AOR, WALL)] == [FLOW, None]
    assert table.expire(WALL + 200) == 1
    assert [own.binding.contact for own in table.of(AOR, WALL + 200)] == ["sip:a@192.0.2.7"]
    table.put(first, None)
    table.drop(AOR, first.key)
    table.drop(AOR, first.key)
    assert len(table) == 0 and not table.full and table.of(AOR, WALL) == []


def test_gruu_round_trip() -> None:
    """RFC 7904 section 6: a destination list in "gr" comes back, with and without an instance; others are
    foreign.
    """
    assert decode_gr(encode_gr(NODE)) == (NODE, b"")
    assert decode_gr(encode_gr(NODE, b"k" * 16)) == (NODE, b"k" * 16)
    assert "=" not in encode_gr(NODE, b"k" * 16)
    for text in ("", "urn:uuid:1", "AAAA", encode_gr(NODE)[:-4], encode_gr(NODE, b"k" * 16)[:-4], "A" * 5000):
        assert decode_gr(text) is None


@pytest.mark.parametrize("text", ["", "UDP", "UDP a b", "UDP 1.2.3.4:5 1.2.3.4:99999", "UDP 1.2.3.4:5 1.2.3.4:x"])
def test_flow_text_of_others_is_refused(text: str) -> None:
    """What a record says about a flow may be anything: only our own form is read."""
    assert parse_flow_text(text) is None
    v6 = Flow("TCP", ("2001:db8::7", 1), ("2001:db8::1", 5060), 1)
    assert parse_flow_text(flow_text(v6)) == ("TCP", v6.local, v6.remote)

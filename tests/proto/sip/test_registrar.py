"""The registrar's rules (RFC 3261 section 10.3), without a network: what a REGISTER does to the bindings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.headers import NameAddr
from p2psipd.proto.sip.locating import (
    Binding,
    LocationUnavailable,
    binding_key,
    decode_gr,
    encode_gr,
    flow_text,
    instance_key,
    parse_flow_text,
    public_gruu,
    resource_of,
)
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.registrar import (
    BindingTable,
    Bounds,
    Plan,
    Registrar,
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
    ("contacts", "headers"), [(("*",), {}), (("*",), {"Expires": "60"}), (("*", "<sip:a@192.0.2.7>"), {"Expires": "0"})]
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


def test_table_ends_what_was_not_refreshed() -> None:
    """Each binding ends at its own latest time, however often it was refreshed, shortened or the clock moved; memory
    stays in proportion to the bindings.
    """
    table = BindingTable()
    for turn in range(400):
        for number in range(10):
            (put,) = done(register(f"<sip:p{number}@192.0.2.7>;expires={100 + number}")).puts
            table.put(put._replace(expires_at=put.expires_at + turn), None)
    assert len(table) == 10 and len(table._ends) < 1100
    assert table.expire(WALL + 499 - 0.5) == 0
    assert table.expire(WALL + 499) == 1
    (short,) = done(register("<sip:p9@192.0.2.7>;expires=60")).puts
    table.put(short, None)
    table.move(1000.0)
    assert table.expire(WALL + 1059) == 0 and table.expire(WALL + 1060) == 1
    assert table.expire(WALL + 1508) == 8 and len(table) == 0


def test_gruu_round_trip() -> None:
    """RFC 7904 section 6: a destination list in "gr" comes back, with and without an instance; others are
    foreign.
    """
    assert decode_gr(encode_gr(NODE)) == (NODE, b"", b"")
    assert decode_gr(encode_gr(NODE, b"k" * 16)) == (NODE, b"k" * 16, b"")
    assert "=" not in encode_gr(NODE, b"k" * 16)
    for text in ("", "urn:uuid:1", "AAAA", encode_gr(NODE)[:-4], encode_gr(NODE, b"k" * 16)[:-4], "A" * 5000):
        assert decode_gr(text) is None


@pytest.mark.parametrize("text", ["", "UDP", "UDP a b", "UDP 1.2.3.4:5 1.2.3.4:99999", "UDP 1.2.3.4:5 1.2.3.4:x"])
def test_flow_text_of_others_is_refused(text: str) -> None:
    """What a record says about a flow may be anything: only our own form is read."""
    assert parse_flow_text(text) is None
    v6 = Flow("TCP", ("2001:db8::7", 1), ("2001:db8::1", 5060), 1)
    assert parse_flow_text(flow_text(v6)) == ("TCP", v6.local, v6.remote)


# ---- outbound, GRUU, routes ----------------------------------------------------------------------------------


def test_first_hop_lacks_outbound_support() -> None:
    """RFC 5626 section 6: behind a proxy whose Path URI does not say "ob", a flow is refused with 439 where the phone
    supports outbound, and else is no flow.
    """
    contact = f"<sip:a@192.0.2.7>;{INSTANCE};reg-id=1"
    behind = {"Via": "SIP/2.0/UDP edge.example;branch=z9hG4bK0"}
    for path in ({}, {"Path": "<sip:edge.example;lr>"}):
        error = refusal(register(contact, Supported="path, outbound", **path, **behind))
        assert (error.status, error.reason) == (439, "First Hop Lacks Outbound Support")
        request = register(contact, **path, **behind)
        (binding,) = done(request).puts
        assert (
            binding.reg_id == 0 and binding.instance_id and answer(request, done(request), WALL).get("require") is None
        )
    request = register(contact, Supported="path, outbound", Path="<sip:edge.example;lr;ob>", **behind)
    assert done(request).puts[0].reg_id == 1 and answer(request, done(request), WALL).get("require") == "outbound"


def test_one_flow_for_each_register() -> None:
    """RFC 5626 section 6: a REGISTER with a reg-id registers one contact, and may remove others; else it is 400. A
    reg-id without an instance counts for nothing.
    """
    flow = f"<sip:a@192.0.2.7>;{INSTANCE};reg-id=1"
    assert refusal(register(flow, "<sip:b@192.0.2.7>")).status == 400
    assert len(done(register(flow, "<sip:b@192.0.2.7>;expires=0")).puts) == 1
    assert [each.reg_id for each in done(register("<sip:a@192.0.2.7>;reg-id=1", "<sip:b@192.0.2.7>")).puts] == [0, 0]
    for number in ("0", "x", "4294967296", "-1"):
        assert refusal(register(f"<sip:a@192.0.2.7>;{INSTANCE};reg-id={number}")).status == 400


def test_several_flows_of_one_instance() -> None:
    """RFC 5626 section 6: a binding is of instance and reg-id, whatever the Contact URI; each flow has its own."""
    first = done(register(f"<sip:a@192.0.2.7:5070>;{INSTANCE};reg-id=1"))
    second = done(register(f"<sip:a@192.0.2.7:5071>;{INSTANCE};reg-id=2", call_id="c2"), first.current)
    assert [each.reg_id for each in second.current] == [1, 2]
    moved = done(register(f"<sip:a@198.51.100.9>;{INSTANCE};reg-id=1", cseq=2), second.current)
    assert [(each.reg_id, each.contact) for each in moved.current] == [
        (1, "sip:a@198.51.100.9"),
        (2, "sip:a@192.0.2.7:5071"),
    ]


def test_flow_timer_and_service_route() -> None:
    """Flow-Timer stands where outbound was used (RFC 5626 section 6), Service-Route in every 200 (RFC 3608)."""
    bounds = Bounds(flow_timer=120, service_route=("<sip:p1.overlay.example;lr>", "<sip:p2.overlay.example;lr>"))
    flow = register(f"<sip:a@192.0.2.7>;{INSTANCE};reg-id=1", Supported="outbound")
    response = answer(flow, done(flow), WALL, bounds)
    assert response.get("flow-timer") == "120" and response.get_all("service-route") == list(bounds.service_route)
    plain = register("<sip:a@192.0.2.7>")
    assert answer(plain, done(plain), WALL, bounds).get("flow-timer") is None
    assert len(answer(plain, done(plain), WALL, bounds).get_all("service-route")) == 2


def test_public_gruu_in_the_answer() -> None:
    """RFC 5627 section 5.2: pub-gruu for each contact with an instance where the phone supports it; the same for every
    registrar and flow; what the phone claims to be its GRUU is ignored.
    """
    contact = f'<sip:a@192.0.2.7>;{INSTANCE};reg-id=1;pub-gruu="sip:eve@evil.example;gr=x"'
    request = register(contact, Supported="gruu, outbound")
    gruu = public_gruu(AOR, "urn:uuid:00000000-0000-1000-8000-000A95A0E128")
    (shown,) = answer(request, done(request), WALL).contacts
    assert shown.params.get("pub-gruu") == f'"{gruu}"'
    uri = NameAddr.parse(f"<{gruu}>").uri
    assert uri.bare().aor == "bob@overlay.example"  # type: ignore[union-attr]
    named = decode_gr(uri.gr)  # type: ignore[union-attr]
    assert named == (b"", instance_key("urn:uuid:00000000-0000-1000-8000-000A95A0E128"), resource_of(AOR))
    for silent in (register(contact), register("<sip:a@192.0.2.7>", Supported="gruu")):
        assert "pub-gruu" not in (answer(silent, done(silent), WALL).get("contact") or "")
    assert done(register(contact, Require="gruu")).puts


@pytest.mark.parametrize(
    ("contact", "status"),
    [
        ("<sip:bob@overlay.example>", 403),
        (f"<{public_gruu(AOR, 'urn:uuid:1')}>", 403),
        (f"<tel:+12125551212>;{INSTANCE}", 403),
        ("<sip:carol@overlay.example>", None),
        ("<sip:bob@overlay.example:5070>", None),
        ("<tel:+12125551212>", None),
        ("<sip:" + "a" * 1100 + "@192.0.2.7>", 400),
        ("<sip:a@192.0.2.7>;x=" + "y" * 7000, 400),
        ("<sip:a@192.0.2.7>;x=\udcff", 400),
        ("<sip:a@192.0.2.7>;q=1.5", 400),
    ],
)
def test_contacts_that_make_no_binding(contact: str, status: int | None) -> None:
    """A contact that is the address of record itself would be looked up for ever (RFC 5627 section 5.1: 403); what does
    not fit into a record is 400.
    """
    from p2psipd.proto.sip.errors import SipError

    if status is None:
        assert done(register(contact)).puts
        return
    with pytest.raises(SipError) as caught:
        done(register(contact))
    assert caught.value.status == status


# ---- what is written, and when -------------------------------------------------------------------------------

HERE, THERE = b"\1" * 16, b"\2" * 16


class Held:
    """What the overlay holds, with a log of who asked what."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Binding] = {}
        self.gone_until: dict[bytes, float] = {}
        self.log: list[str] = []
        self.fails = False
        self.wall = WALL

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        self.log.append("fresh" if fresh else "read")
        return [each for each in self.entries.values() if not each.contact or each.expires_at > self.wall]

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        self.log.append(f"write {len(puts)} {len(removes)}")
        if self.fails:
            raise LocationUnavailable("no answer")
        for binding in puts:
            self.entries[binding.key] = binding._replace(stored_at=self.wall)
        for binding in removes:
            self.entries[binding.key] = Binding(aor, binding.key, "", b"", stored_at=self.wall)
            self.gone_until[binding.key] = binding.expires_at


class Place:
    """Two registrars over one overlay."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.held = Held()
        self.tables = {HERE: BindingTable(), THERE: BindingTable()}
        self.registrars = {
            node: Registrar(self.held, table, node, bounds or Bounds()) for node, table in self.tables.items()
        }

    def register(self, request: Request, after: float = 0.0, node: bytes = HERE, flow: Flow = FLOW) -> Response:
        """The answer, `after` seconds later."""
        self.held.log.clear()
        self.held.wall = WALL + after
        return asyncio.run(self.registrars[node].change(request, AOR, flow, WALL + after))

    def stored(self) -> list[tuple[str, float, bytes]]:
        """What readers see: contact, seconds from the start until it ends, owner."""
        living = [each for each in self.held.entries.values() if each.contact and each.expires_at > self.held.wall]
        return [(each.contact, each.expires_at - WALL, each.node_id) for each in living]


def remaining(response: Response) -> list[int | None]:
    return [contact.expires for contact in response.contacts]


def test_an_unchanged_refresh_is_written_at_half_its_lifetime() -> None:
    """Until then it is answered from memory, with what the phone may count on; and at no time does what readers see end
    before that.
    """
    place = Place()
    written = []
    for number in range(200):
        after = number * 37.0
        request = register("<sip:a@192.0.2.7>;expires=600", cseq=number + 1)
        assert remaining(place.register(request, after)) == [600]
        ((_, until, _),) = place.stored()
        assert after + 600 <= until <= after + 900
        if "write 1 0" in place.held.log:
            written.append(after)
    gaps = [later - earlier for earlier, later in zip(written, written[1:], strict=False)]
    assert len(gaps) > 10 and all(300 < gap <= 337 for gap in gaps)


def test_a_refresh_reads_nothing_that_it_knows() -> None:
    """The first REGISTER asks the peer that holds the truth; refreshes ask nobody, or the nearest copy when what was
    read is half a minute old.
    """
    place = Place()
    place.register(register("<sip:a@192.0.2.7>"))
    assert place.held.log == ["fresh", "write 1 0"]
    place.register(register("<sip:a@192.0.2.7>", cseq=2), 20)
    assert place.held.log == []
    place.register(register("<sip:a@192.0.2.7>", cseq=4), 40)
    assert place.held.log == ["read"], "one in between was challenged"


@pytest.mark.parametrize(
    ("contact", "headers"),
    [
        ("<sip:a@192.0.2.7;ob>", {}),
        ("<sip:a@192.0.2.7>;q=0.5", {}),
        ("<sip:a@192.0.2.7>;methods=INVITE", {}),
        ("<sip:a@192.0.2.7>", {"Path": "<sip:edge;lr>"}),
        ("<sip:a@192.0.2.7>;expires=60", {}),
        ("<sip:a@192.0.2.7>", {"call_id": "c2"}),
        ("<sip:a@192.0.2.7>", {"User_Agent": "another"}),
    ],
)
def test_whatever_changes_is_written_at_once(contact: str, headers: dict[str, str]) -> None:
    """Another URI, q, parameter, Path, Call-ID, or a lifetime that the record would outlive by far."""
    place = Place()
    plain = f"<sip:a@192.0.2.7>;{INSTANCE}"
    place.register(register(plain))
    place.register(register(f"{contact};{INSTANCE}", cseq=2, **headers), 10)
    assert "write 1 0" in place.held.log
    place.register(register(plain, cseq=3), 20, flow=FLOW.towards(("192.0.2.7", 9)))
    assert "write 1 0" in place.held.log, "another flow"


def test_a_phone_that_was_elsewhere_meanwhile_is_written() -> None:
    """A phone goes to another registrar and comes back before half its lifetime: the record says where it is, each
    time, because its CSeq or Call-ID shows that it has spoken to somebody else.
    """
    place = Place()
    place.register(register("<sip:a@192.0.2.7>", cseq=1))
    place.register(register("<sip:a@192.0.2.7>", cseq=3), 10, THERE)
    assert [owner for _, _, owner in place.stored()] == [THERE]
    place.register(register("<sip:a@192.0.2.7>", cseq=4), 20)
    assert [owner for _, _, owner in place.stored()] == [HERE]
    place.register(register("<sip:a@192.0.2.7>", cseq=1, call_id="c2"), 30, THERE)
    place.register(register("<sip:a@192.0.2.7>", cseq=5), 40)
    place.register(register("<sip:a@192.0.2.7>", cseq=6), 60)
    assert [owner for _, _, owner in place.stored()] == [HERE], "found at the latest by the look at a copy"


def test_a_phone_that_began_anew_is_written_and_nothing_is_read() -> None:
    """A phone that was switched off and on has another Call-ID: its binding is stored, over whatever may stand there;
    what other devices there are was read a moment ago.
    """
    place = Place()
    contact = f"<sip:a@192.0.2.7>;{INSTANCE}"
    place.register(register(contact, cseq=7))
    place.register(register(contact, cseq=1, call_id="c2"), 10)
    assert place.held.log == ["write 1 0"]
    place.register(register(contact, cseq=1, call_id="c3"), 60)
    assert place.held.log == ["fresh", "write 1 0"]


def test_what_the_overlay_lost_is_written_again() -> None:
    """A refresh that finds its record gone, or another's in its place, stores it."""
    place = Place()
    place.register(register("<sip:a@192.0.2.7>", cseq=1))
    place.held.entries.clear()
    place.register(register("<sip:a@192.0.2.7>", cseq=2), 40)
    assert place.held.log == ["read", "write 1 0"] and len(place.stored()) == 1


def test_one_store_for_a_register() -> None:
    """All bindings of a REGISTER, those that it adds and those that it removes, are written together."""
    place = Place()
    place.register(register("<sip:a@192.0.2.7>, <sip:b@192.0.2.7>", cseq=1))
    assert place.held.log == ["fresh", "write 2 0"]
    place.register(register("<sip:c@192.0.2.7>, <sip:a@192.0.2.7>;expires=0", cseq=2))
    assert place.held.log == ["fresh", "write 1 1"]
    place.register(register("*", cseq=3, Expires="0"), 1)
    assert place.held.log == ["fresh", "write 0 2"] and place.stored() == []


def test_a_removal_outlives_the_record() -> None:
    """The non-existence is stored for as long as a copy of the binding might live, not only as the phone was told."""
    place = Place()
    place.register(register("<sip:a@192.0.2.7>;expires=600", cseq=1))
    place.register(register("<sip:a@192.0.2.7>;expires=0", cseq=2), 100)
    assert list(place.held.gone_until.values()) == [WALL + 900]


def test_a_failed_write_changes_nothing_here() -> None:
    """When the overlay does not answer, the phone hears 503; its next refresh is written."""
    place = Place()
    place.register(register("<sip:a@192.0.2.7>", cseq=1))
    place.held.fails = True
    with pytest.raises(LocationUnavailable):
        place.register(register("<sip:a@192.0.2.7>;q=0.1", cseq=2), 10)
    place.held.fails = False
    assert [own.binding.q for own in place.tables[HERE].of(AOR, WALL)] == [1.0]
    place.register(register("<sip:a@192.0.2.7>", cseq=3), 20)
    assert "write 1 0" in place.held.log


def test_the_answer_lists_devices_at_other_nodes() -> None:
    """Step 8: all current bindings are in the 200, those at other nodes as of half a minute ago at most."""
    place = Place()
    place.register(register("<sip:far@192.0.2.9>", call_id="c9"), 0, THERE)
    seen = place.register(register("<sip:a@192.0.2.7>", cseq=1))
    assert [contact.uri_text for contact in seen.contacts] == ["sip:far@192.0.2.9", "sip:a@192.0.2.7"]
    assert len(place.register(register("<sip:a@192.0.2.7>", cseq=2), 10).contacts) == 2 and place.held.log == []
    place.register(register("<sip:far@192.0.2.9>;expires=0", cseq=2, call_id="c9"), 11, THERE)
    assert len(place.register(register("<sip:a@192.0.2.7>", cseq=3), 31).contacts) == 1


def test_native_registrations_are_not_removed() -> None:
    """`Contact: *` leaves alone what a user agent of the overlay signed itself, and says so in the answer."""
    place = Place()
    native = Binding(AOR, b"n" * 16, AOR, THERE, expires_at=WALL + 600, native=True)
    place.held.entries[native.key] = native
    place.register(register("<sip:a@192.0.2.7>", cseq=1))
    answered = place.register(register("*", cseq=2, Expires="0"), 1)
    assert place.held.log == ["fresh", "write 0 1"] and len(answered.contacts) == 1


def test_a_jump_of_the_clock_writes_records_with_what_is_left() -> None:
    """After a step of the wall clock the records are stored anew and live as long as they would have."""
    place = Place()
    place.register(register("<sip:a@192.0.2.7>;expires=600"))
    place.tables[HERE].move(3600.0)
    place.held.wall += 3600
    asyncio.run(place.registrars[HERE].renew(AOR, place.held.wall))
    assert [until for _, until, _ in place.stored()] == [900 + 3600]

"""Where is bob: what each step of the locator answers to whom."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import (
    Binding,
    LocationUnavailable,
    NotLocated,
    Origin,
    Query,
    Target,
    binding_key,
    decode_gr,
    encode_gr,
    public_gruu,
)
from p2psipd.proto.sip.registrar import BindingTable
from p2psipd.proto.sip.uri import SipUri, parse_uri
from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings, behind_nat

from .sip_world import DOMAIN, EPOCH, MemoryFlow, MemoryLocation

HERE, THERE = b"\1" * 16, b"\2" * 16
AOR = f"sip:bob@{DOMAIN}"
SOURCE = ("192.0.2.7", 40000)


def binding(contact: str = "sip:bob@192.0.2.7:5070", node: bytes = HERE, **fields: Any) -> Binding:
    made = Binding(AOR, binding_key(contact), contact, node, expires_at=EPOCH + 600)
    return made._replace(**fields)


def udp(remote: tuple[str, int] = SOURCE) -> MemoryFlow:
    return MemoryFlow("UDP", remote, ("192.0.2.1", 5060), 0, lambda flow, data: None)


def tcp() -> MemoryFlow:
    return MemoryFlow("TCP", SOURCE, ("192.0.2.1", 5060), 9, lambda flow, data: None)


class Place:
    """A locator over a table and a store."""

    def __init__(self) -> None:
        self.table = BindingTable()
        self.store = MemoryLocation(lambda: EPOCH)
        self.locator = Locator(
            (OwnBindings(self.table, HERE, (DOMAIN,)), OverlayBindings(self.store, self.table, HERE, (DOMAIN,)))
        )

    def keep(self, each: Binding) -> None:
        self.store.entries.setdefault(each.aor, {})[each.key] = each

    def locate(self, uri: str, origin: Origin = Origin.PHONE) -> Sequence[Target]:
        found: Sequence[Target] = result(self.locator.locate(Query(parse_uri(uri), origin, EPOCH)))
        return found


class Late(MemoryLocation):
    """A store of which a replica answers that has not heard the last of it, unless it is asked afresh."""

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        return await super().bindings(aor, fresh) if fresh else ()


def result(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that needs not wait returns or raises."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def status(place: Place, uri: str, origin: Origin = Origin.PHONE) -> int:
    with pytest.raises(NotLocated) as caught:
        place.locate(uri, origin)
    return caught.value.status


def test_bindings_of_all_nodes_are_found_best_first() -> None:
    """A caller's node sees every binding: its own by their flow, those of others as a GRUU of that node."""
    place = Place()
    own, other = binding(q=0.3), binding("sip:bob@192.0.2.8", THERE, q=0.9)
    place.table.put(own, flow := tcp())
    place.keep(own)
    place.keep(other)
    first, second = place.locate(AOR)
    assert first.node_id == THERE
    uri = SipUri.parse(first.uri)
    assert (uri.user, uri.host, decode_gr(uri.gr or "")) == ("bob", DOMAIN, (THERE, other.key, b""))
    assert (second.uri, second.flow) == (own.contact, flow)


def test_contact_that_is_another_user() -> None:
    """RFC 3261 16.5: who has registered another user's address is where that one is; each user is looked up once."""
    place = Place()
    carol = binding("sip:carol@192.0.2.9")._replace(aor=f"sip:carol@{DOMAIN}")
    place.table.put(carol, tcp())
    place.keep(binding(f"sip:carol@{DOMAIN}", THERE, q=0.5))
    place.keep(binding("sip:bob@192.0.2.8", THERE))
    first, second = place.locate(AOR)
    assert first.node_id == THERE and (second.uri, second.q) == (carol.contact, 0.5)
    place.table.put(binding(AOR)._replace(aor=carol.aor), None)
    assert place.locate(AOR) == [first, second]


def test_contact_that_is_its_own_user() -> None:
    """What a node offers as a user, like echo, has that user as its Contact, and is reached at its node."""
    place = Place()
    place.keep(binding(AOR, THERE))
    (target,) = place.locate(AOR)
    assert target.node_id == THERE


def test_contact_that_is_nobody_known() -> None:
    """Some phones write the domain into their Contact, which is nobody's address: they are reached by their flow."""
    place = Place()
    place.table.put(binding(f"sip:x7@{DOMAIN}"), flow := tcp())
    assert [target.flow for target in place.locate(AOR)] == [flow]


def test_own_bindings_stand_in_for_an_overlay_that_is_silent() -> None:
    """When the overlay can't be asked, the phones registered here can still be called; without any it is an error."""
    place = Place()
    place.store.broken = True
    with pytest.raises(LocationUnavailable):
        place.locate(AOR)
    place.table.put(binding(), tcp())
    assert [target.uri for target in place.locate(AOR)] == [binding().contact]


def test_requests_of_nodes_are_resolved_here_only() -> None:
    """Profile section 7: 404 for a user or instance unknown here, 430 for a flow that is gone, no look-up."""
    place = Place()
    place.keep(binding("sip:bob@192.0.2.8", THERE))
    assert status(place, AOR, Origin.NODE) == 404
    own = binding(reg_id=1, instance_id="urn:uuid:1")
    gruu = f"{AOR};gr={encode_gr(HERE, own.key)}"
    assert status(place, gruu, Origin.NODE) == 404
    place.table.put(own, tcp())
    assert [target.uri for target in place.locate(gruu, Origin.NODE)] == [own.contact]
    assert status(place, f"{AOR};gr={encode_gr(HERE, b'x' * 16)}", Origin.NODE) == 404
    assert status(place, f"{AOR};gr={encode_gr(THERE, own.key)}", Origin.NODE) == 404
    place.table.put(own, None)
    assert status(place, gruu, Origin.NODE) == 430


def test_phones_of_a_nodes_last_life() -> None:
    """Who registered over UDP before the node was started again is still where it was; a connection is gone (404)."""
    place = Place()
    step = OwnBindings(place.table, HERE, (DOMAIN,), place.store)
    own = binding(received="UDP 192.0.2.1:5060 192.0.2.7:40000")
    gruu = f"{AOR};gr={encode_gr(HERE, own.key)}"
    for kept, found in (
        (own, [own.contact]),
        (own._replace(node_id=THERE), []),
        (own._replace(received="TCP 192.0.2.1:5060 192.0.2.7:40000"), []),
        (own._replace(expires_at=EPOCH - 1), []),
    ):
        place.keep(kept)
        query = Query(parse_uri(gruu), Origin.NODE, EPOCH)
        if found:
            assert [target.uri for target in result(step(query))] == found
        else:
            with pytest.raises(NotLocated):
                result(step(query))


def test_gruu_leads_to_its_node_and_instance() -> None:
    """RFC 7904 section 6: a phone's request for a GRUU goes to that node, or to that instance here, without look-up."""
    place = Place()
    (target,) = place.locate(f"{AOR};gr={encode_gr(THERE, b'k' * 16)}")
    assert target.node_id == THERE
    first, second = binding(), binding("sip:bob@192.0.2.9")
    place.table.put(first, tcp())
    place.table.put(second, tcp())
    (target,) = place.locate(f"{AOR};gr={encode_gr(HERE, second.key)}")
    assert target.uri == second.contact


def test_unserved_domains_and_other_schemes_are_not_ours() -> None:
    """What no step knows is 404."""
    place = Place()
    assert status(place, "sip:bob@elsewhere.example") == 404
    assert status(place, "sip:bob@elsewhere.example", Origin.NODE) == 404
    assert status(place, "tel:+15551234") == 404


def test_native_user_agent_is_reached_at_its_node() -> None:
    """A P2PSIP user agent that signed its own registration gets the request itself, without an instance."""
    place = Place()
    place.keep(binding(AOR, THERE, native=True))
    (target,) = place.locate(AOR)
    assert (target.uri, target.node_id) == (AOR, THERE)


def test_name_that_stands_for_another_user() -> None:
    """Bindings found under an alias are asked for by the name that their node knows."""
    place = Place()
    place.store.entries[f"sip:100@{DOMAIN}"] = {b"k": binding("sip:bob@192.0.2.8", THERE)}
    (target,) = place.locate(f"sip:100@{DOMAIN}")
    assert SipUri.parse(target.uri).user == "bob"


def test_phone_that_registered_before_a_restart() -> None:
    """After a restart the record says where a phone is: by its Contact, or behind a NAT by where it came from."""
    place = Place()
    place.keep(binding(received="UDP 192.0.2.1:5060 192.0.2.7:40000"))
    (target,) = place.locate(AOR)
    assert (target.address, target.flow) == (None, None)
    place.store.entries.clear()
    place.keep(binding("sip:bob@10.0.0.5:5070", received="UDP 192.0.2.1:5060 192.0.2.7:40000"))
    (target,) = place.locate(AOR)
    assert target.address == ("UDP", "192.0.2.7", 40000)


@pytest.mark.parametrize(
    ("contact", "fields", "there"),
    [
        ("sip:bob@192.0.2.7:5070", {}, ("192.0.2.7", 5070)),
        ("sip:bob@192.0.2.7", {}, ("192.0.2.7", 5060)),
        ("sip:bob@10.0.0.5:5070", {}, SOURCE),
        ("sip:bob@gone.invalid", {}, SOURCE),
        ("sip:bob@192.0.2.7:5070", {"reg_id": 1, "instance_id": "i"}, SOURCE),
    ],
)
def test_where_a_udp_phone_is(contact: str, fields: dict[str, Any], there: tuple[str, int]) -> None:
    """On its own host a phone is at its Contact's port; behind a NAT, or with outbound, where it came from."""
    place = Place()
    place.table.put(binding(contact, **fields), udp())
    (target,) = place.locate(AOR)
    assert isinstance(target.flow, Flow) and target.flow.remote == there


def test_path_is_followed() -> None:
    """RFC 3327 5.4: a binding with a Path is reached through it, not over the flow of its REGISTER."""
    place = Place()
    place.table.put(binding(path=("<sip:edge.example;lr>",)), tcp())
    (target,) = place.locate(AOR)
    assert (target.route, target.flow) == (("<sip:edge.example;lr>",), None)


def test_contact_elsewhere_is_no_nat() -> None:
    """A public Contact on another host is a third party's registration, and is taken at its word."""
    assert not behind_nat(binding("sip:bob@1.2.3.4"), "192.0.2.7")
    assert not behind_nat(binding("sip:bob@phone.example"), "192.0.2.7")
    assert behind_nat(binding("sip:bob@192.168.1.2"), "203.0.113.7")
    assert behind_nat(binding("sip:bob@172.17.0.2"), "192.168.1.2")
    assert not behind_nat(binding("sip:bob@192.168.1.7"), "192.168.1.2")
    assert not behind_nat(binding("sip:bob@[fd00::7]"), "fd00::2")
    assert behind_nat(binding("sip:bob@[fd00::7]"), "fd01::2")


def test_a_public_gruu_reaches_its_instance_wherever_it_is() -> None:
    """RFC 5627 section 6.1: of the user's devices only those of the instance are targets: here, at another node, or,
    with outbound, several flows that are alternatives, the latest first after our own.
    """
    place = Place()
    gruu = public_gruu(AOR, "urn:uuid:1")
    place.table.put(binding("sip:bob@192.0.2.7", instance_id="urn:uuid:1", reg_id=1, key=b"1" * 16), flow := tcp())
    place.table.put(binding("sip:bob@192.0.2.8", instance_id="urn:uuid:2", key=b"2" * 16), tcp())
    for number, at in ((3, 10.0), (4, 20.0)):
        key = bytes([number]) * 16
        place.keep(binding("sip:bob@192.0.2.7", THERE, instance_id="urn:uuid:1", reg_id=number, key=key, stored_at=at))
    place.keep(binding("sip:bob@192.0.2.9", THERE, instance_id="urn:uuid:3", key=b"9" * 16))
    targets = place.locate(gruu)
    assert [(target.flow, target.node_id) for target in targets] == [(flow, None), (None, THERE), (None, THERE)]
    assert {target.instance for target in targets} == {"urn:uuid:1"}
    assert [decode_gr(parse_uri(target.uri).gr).opaque for target in targets[1:]] == [b"\4" * 16, b"\3" * 16]  # type: ignore[union-attr]
    (only,) = place.locate(public_gruu(AOR, "urn:uuid:3"))
    assert only.instance == "urn:uuid:3"
    assert place.locate(gruu, Origin.NODE)[0].flow is flow


def test_a_public_gruu_of_nobody_registered() -> None:
    """An instance that is not registered now is found nowhere (480 for a user who exists); what is no GRUU of this user
    is 404, and never rings the user's other devices (RFC 5627 section 6.1).
    """
    place = Place()
    place.table.put(binding("sip:bob@192.0.2.8", instance_id="urn:uuid:2"), tcp())
    assert place.locate(public_gruu(AOR, "urn:uuid:1")) == []
    other = public_gruu("sip:carol@overlay.example", "urn:uuid:2").partition(";gr=")[2]
    for gr in (f"gr={other}", "gr=urn:uuid:2", "gr"):
        assert status(place, f"{AOR};{gr}") == 404


def test_nobody_there_is_asked_twice() -> None:
    """A call that comes a moment after the REGISTER finds the phone, though a replica knows nothing of it yet."""
    place = Place()
    place.store = Late(lambda: EPOCH)
    place.locator = Locator((OverlayBindings(place.store, place.table, HERE, (DOMAIN,)),))
    place.keep(binding(node=THERE))
    (target,) = place.locate(AOR)
    assert target.node_id == THERE

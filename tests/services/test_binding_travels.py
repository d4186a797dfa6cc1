"""A binding from the phone's REGISTER into the overlay, to every replica, and back: nothing is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION
from p2psipd.proto.reload.messages import DictionaryEntry
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Binding
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.registrar import BindingTable, Bounds, Registrar
from p2psipd.services.overlay_location import OverlayLocation
from tests.proto.reload.stapled import Node, World

AOR = "sip:bob@overlay.example"
REPLICAS = 8


class Access:
    """The overlay as one of its nodes sees it."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def fetch(
        self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier], *, fresh: bool = False
    ) -> peer_io.FetchOutcome:
        target = resource_id(resource) if isinstance(resource, str) else resource
        wanted = tuple(kind if isinstance(kind, StoredDataSpecifier) else StoredDataSpecifier(kind) for kind in kinds)
        found = self.node.ask(lambda ref: peer_io.Fetch(ref, target, wanted, fresh))
        if isinstance(found, ReloadError):
            raise found
        assert isinstance(found, peer_io.FetchOutcome)
        return found

    async def store(
        self, name: str | ResourceId, kind: int, values: Sequence[peer_io.StoreValue], credential: Any = None
    ) -> peer_io.StoreOutcome:
        stored = self.node.ask(lambda ref: peer_io.Store(ref, name, kind, tuple(values)))
        assert isinstance(stored, peer_io.StoreOutcome), stored
        return stored


@pytest.fixture(scope="module")
def ten() -> World:
    """Ten registrar peers."""
    world = World(seed=21)
    world.overlay(10)
    return world


def at(node: Node) -> tuple[OverlayLocation, Registrar]:
    """What a node reads, and its registrar."""
    location = OverlayLocation(Access(node), node.certificate.node_id, lambda: node.world.wall)
    return location, Registrar(location, BindingTable(), node.certificate.node_id, Bounds())


def register(contact: str, cseq: int = 7) -> Request:
    """A REGISTER of bob's phone, which came through a proxy that keeps its flow."""
    return Request(
        "REGISTER",
        "sip:overlay.example",
        [
            ("Via", "SIP/2.0/UDP edge.example;branch=z9hG4bKedge"),
            ("Via", "SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bK1"),
            ("From", f"<{AOR}>;tag=1"),
            ("To", f"<{AOR}>"),
            ("Call-ID", "a84b4c76e66710"),
            ("CSeq", f"{cseq} REGISTER"),
            ("Contact", contact),
            ("Path", "<sip:edge.example;lr;ob>, <sip:second.example;lr>"),
            ("User-Agent", "Phöne 1"),
            ("Supported", "path, outbound, gruu"),
        ],
    )


FULL = (
    '"Bob" <sip:b%40b@192.0.2.7:5070;transport=tcp;ob?Subject=x>;q=0.7;+sip.instance="<urn:uuid:1>";reg-id=2'
    ';methods="INVITE, BYE";audio;video="";expires=600'
)


def test_every_attribute_on_every_replica(ten: World) -> None:
    """Whatever a REGISTER said is in the record, as eight peers hold it and as any other registrar reads it."""
    owner = ten.nodes[3]
    location, registrar = at(owner)
    flow = Flow("UDP", ("198.51.100.2", 5060), ("192.0.2.1", 5060), 0)
    asyncio.run(registrar.change(register(FULL), AOR, flow, ten.wall))
    ten.run(3)
    (bound,) = (own.binding for own in registrar._table.of(AOR, ten.wall))
    plain = Binding(AOR, bound.key, bound.contact, bound.node_id)
    left_out = {name for name in Binding._fields if getattr(bound, name) == getattr(plain, name)}
    assert left_out == {"aor", "key", "contact", "node_id", "native"}, "each other attribute has a value of its own"

    for reader in ten.nodes:
        (read,) = asyncio.run(at(reader)[0].bindings(AOR))
        # The record lives half as long again as the phone was told, and is dated by its Store.
        assert bound.expires_at < read.expires_at <= bound.expires_at + 301 and read.stored_at >= bound.stored_at
        assert read._replace(expires_at=bound.expires_at, stored_at=bound.stored_at) == bound

    holders = []
    for node in ten.nodes:
        replica = node.storage.records_of(resource_id("bob@overlay.example"), ten.wall)
        if replica is not None:
            holders.append(node)
            values = [each for kind in replica.kinds if kind.kind == PROXY_REGISTRATION for each in kind.values]
            (entry,) = [each.value for each in values if isinstance(each.value, DictionaryEntry)]
            assert entry.key == bound.key and entry.value.exists
    assert len(holders) == REPLICAS


def test_a_binding_survives_its_responsible_peer(ten: World) -> None:
    """With the responsible peer gone a registrar reads the same binding, replaces it, and removes it."""
    target = int.from_bytes(resource_id("bob@overlay.example"), "big")
    nearest, owner, other, *_ = sorted(
        ten.nodes, key=lambda node: int.from_bytes(node.certificate.node_id, "big") ^ target
    )
    location, registrar = at(owner)
    flow = Flow("UDP", ("198.51.100.2", 5060), ("192.0.2.1", 5060), 0)
    asyncio.run(registrar.change(register(FULL, 8), AOR, flow, ten.wall))
    (before,) = asyncio.run(location.bindings(AOR))
    ten.kill(nearest)
    ten.run(5)
    elsewhere, second = at(other)
    assert asyncio.run(elsewhere.bindings(AOR, fresh=True)) == [before]
    asyncio.run(second.change(register(FULL.replace("q=0.7", "q=0.2"), 9), AOR, flow, ten.wall))
    (moved,) = asyncio.run(location.bindings(AOR, fresh=True))
    assert (moved.q, moved.node_id) == (0.2, other.certificate.node_id)
    asyncio.run(second.change(register(FULL.replace("expires=600", "expires=0"), 10), AOR, flow, ten.wall))
    assert [each.contact for each in asyncio.run(elsewhere.bindings(AOR, fresh=True))] == [""], "one that was removed"

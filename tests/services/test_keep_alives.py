"""Keep-alives towards phones behind a NAT."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from p2psipd.proto.sip.locating import Binding, binding_key
from p2psipd.proto.sip.registrar import BindingTable
from p2psipd.services.sip.keep_alives import KeepAlives

from .sip_world import EPOCH, MemoryFlow, Node, Phone, World

SOURCE = ("192.0.2.7", 40000)


def registered(table: BindingTable, user: str, sent: list[str], transport: str = "UDP", **fields: Any) -> None:
    contact = fields.pop("contact", f"sip:{user}@10.0.0.9")
    flow = MemoryFlow(transport, SOURCE, ("192.0.2.1", 5060), 0, lambda flow, data: sent.append(user))
    aor = f"sip:{user}@overlay.example"
    table.put(Binding(aor, binding_key(contact), contact, b"n" * 16, expires_at=EPOCH + 600, **fields), flow)


@pytest.mark.parametrize(
    ("fields", "gets"),
    [
        ({}, True),
        ({"contact": "sip:bob@192.0.2.7:5070"}, False),
        ({"transport": "TCP"}, False),
        ({"reg_id": 1, "instance_id": "urn:uuid:1"}, False),
        ({"path": ("<sip:edge.example;lr>",)}, False),
    ],
)
def test_who_gets_them(fields: dict[str, Any], gets: bool) -> None:
    """RFC 5626 3.5: over UDP, from behind a NAT, and not who keeps its flow itself."""
    table, sent = BindingTable(), list[str]()
    registered(table, "bob", sent, **fields)
    keeping = KeepAlives(table, 25.0, Counter())
    for second in range(0, 50, 2):
        keeping.sweep(float(second), EPOCH)
    assert sent == (["bob", "bob"] if gets else [])


def test_a_round_is_spread() -> None:
    """Each phone is served once in a round, a part of them at a time; none where they are not wanted."""
    table, sent, counters = BindingTable(), list[str](), Counter[str]()
    for number in range(100):
        registered(table, f"u{number}", sent)
    keeping = KeepAlives(table, 20.0, counters)
    most = 0
    for second in range(0, 22, 2):
        before = len(sent)
        keeping.sweep(float(second), EPOCH)
        most = max(most, len(sent) - before)
    assert sorted(sent) == sorted(set(sent)) and len(sent) == 100 == counters["keep_alives"] and most <= 11
    KeepAlives(table, 0.0, counters).sweep(0.0, EPOCH)
    assert len(sent) == 100


def test_the_node_of_the_phone_sends_them() -> None:
    """Who owns the flow sends keep-alives, and no other node that knows the binding."""
    world = World()
    near, far = Node(world, 1, "10.0.0.1"), Node(world, 2, "10.0.0.2")
    bob = Phone(world, "bob", ("203.0.113.9", 40000), near)
    heard: list[bytes] = []
    world.lose = lambda data: data == b"\r\n\r\n" and not heard.append(data)
    bob.register("<sip:bob@192.168.1.2>")
    world.pass_time(45.0, step=1.0)
    assert len(heard) == 2 and near.service.counters["keep_alives"] == 2 and not far.service.counters["keep_alives"]

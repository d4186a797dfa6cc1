"""ReDiR's stored value and tree (RFC 7374)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.reload.errors import InvalidMessage
from p2psipd.proto.reload.ids import NodeId, resource_id
from p2psipd.proto.reload.redir import RedirServiceProvider, belongs_to_node, tree_resource
from p2psipd.proto.reload.wire import NodeDestination

U16 = st.integers(0, 0xFFFF)
DESTINATIONS = st.lists(
    st.binary(min_size=16, max_size=16).filter(any).map(lambda node: NodeDestination(NodeId(node))), max_size=3
).map(tuple)
PROVIDERS = st.builds(
    RedirServiceProvider, DESTINATIONS, st.text(max_size=20), U16, U16, st.integers(0, 255), st.binary(max_size=20)
)


@given(PROVIDERS)
def test_round_trip(provider: RedirServiceProvider) -> None:
    """A provider survives its encoding."""
    assert RedirServiceProvider.decode(provider.encode()) == provider


@given(st.binary(max_size=80))
def test_any_octets(data: bytes) -> None:
    """Any octets are a provider, written the same way again, or InvalidMessage."""
    try:
        provider = RedirServiceProvider.decode(data)
    except InvalidMessage:
        return
    assert RedirServiceProvider.decode(provider.encode()) == provider


def test_layout() -> None:
    """The structure is that of RFC 7374 section 4.1, octet for octet."""
    provider = RedirServiceProvider((NodeDestination(NodeId(b"\x11" * 16)),), "turn-server", 2, 3)
    expected = "00" + "0012" + "0110" + "11" * 16 + "000b" + b"turn-server".hex() + "0002" + "0003" + "0000"
    assert provider.encode().hex() == expected
    assert provider.resource == tree_resource("turn-server", 2, 3) == resource_id(b"turn-server\x00\x02\x00\x03")


def test_too_large_numbers_are_refused() -> None:
    """A level or node that does not fit in 16 bits is InvalidMessage."""
    with pytest.raises(InvalidMessage):
        RedirServiceProvider((), "x", 65536, 0).encode()
    with pytest.raises(InvalidMessage):
        tree_resource("x", 0, -1)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 6), st.integers(2, 12))
def test_every_node_id_belongs_to_one_tree_node_a_level(node_id: bytes, level: int, branching_factor: int) -> None:
    """At every level exactly one tree node's intervals hold a Node-ID (RFC 7374 section 3)."""
    own = int.from_bytes(node_id, "big") * branching_factor**level >> 128
    assert belongs_to_node(node_id, level, own, branching_factor)
    assert not belongs_to_node(node_id, level, own + 1, branching_factor)
    assert not belongs_to_node(node_id, level, own - 1, branching_factor)


def test_the_examples_of_figure_2() -> None:
    """In a binary tree the quarters of the identifier space are the nodes (2,0) to (2,3)."""
    for node in range(4):
        assert belongs_to_node(bytes([node << 6]) + bytes(15), 2, node, 2)
    assert belongs_to_node(b"\xff" * 16, 0, 0, 2)


def test_absurd_levels_cost_nothing() -> None:
    """A level beyond any tree is refused without computing its number of nodes."""
    assert not belongs_to_node(bytes(16), 65535, 0, 65535)

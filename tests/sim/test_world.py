"""The world, with a tiny core in place of a peer: links, order, loss, silence, partitions and clocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.reload.peer_io import (
    CloseLink,
    LinkBytes,
    LinkDown,
    LinkFailed,
    LinkUp,
    OpenLink,
    SendToLink,
)
from p2psipd.sim.latency import Lan
from p2psipd.sim.world import SimNode, World

TRIP = 0.1


class Tape:
    """A core that writes down what happens, with the time, and does what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Any]] = []
        self.walls: list[float] = []
        self.timers: list[float] = []
        self.rang: list[float] = []
        self.greeting: bytes | None = None

    def receive(self, item: Any, now: float, wall: float) -> list[Any]:
        self.seen.append((now, item))
        self.walls.append(wall)
        if isinstance(item, LinkUp) and self.greeting is not None:
            return [SendToLink(item.link, self.greeting)]
        return item if isinstance(item, list) else []

    def next_timer(self) -> float | None:
        return min(self.timers, default=None)

    def handle_timer(self, now: float, wall: float) -> list[Any]:
        self.rang += [at for at in self.timers if at <= now]
        self.timers = [at for at in self.timers if at > now]
        return []

    def of(self, kind: type) -> list[Any]:
        """What happened of one class."""
        return [item for _, item in self.seen if isinstance(item, kind)]

    def data(self) -> bytes:
        """All octets that came, in order."""
        return b"".join(item.data for item in self.of(LinkBytes))


class Net:
    """Some nodes with tapes in a LAN of 100 ms round trips."""

    def __init__(self, count: int = 2, **world: Any) -> None:
        self.world = World(Lan(TRIP), **world)
        self.nodes: list[SimNode] = []
        self.tapes: list[Tape] = []
        for number in range(count):
            node = self.world.add((f"10.0.0.{number}", 1), b"certificate %d" % number)
            tape = Tape()
            node.core = tape
            self.nodes.append(node)
            self.tapes.append(tape)

    def order(self, number: int, *outputs: Any) -> None:
        """Let a core put out these."""
        self.nodes[number].perform(list(outputs))

    def link(self, a: int = 0, b: int = 1) -> tuple[int, int]:
        """Open a link; the ids at both ends."""
        before = len(self.tapes[a].of(LinkUp)), len(self.tapes[b].of(LinkUp))
        self.order(a, OpenLink(99, (self.nodes[b].address,), None))
        self.world.run(1)
        return self.tapes[a].of(LinkUp)[before[0]].link, self.tapes[b].of(LinkUp)[before[1]].link


def test_a_link_costs_three_round_trips() -> None:
    """The listener has the link after two and a half round trips, the dialler after three, with certificates."""
    net = Net()
    start = net.world.now
    net.order(0, OpenLink(5, (net.nodes[1].address,), None))
    net.world.run(1)
    (near_at, near), (far_at, far) = net.tapes[0].seen[0], net.tapes[1].seen[0]
    assert (near_at - start, far_at - start) == (pytest.approx(3 * TRIP), pytest.approx(2.5 * TRIP))
    assert (near.certificate, near.attempt) == (b"certificate 1", 5)
    assert (far.certificate, far.attempt) == (b"certificate 0", None)


def test_the_listeners_first_octets_come_after_the_link_is_up() -> None:
    """What the listener writes at once reaches the dialler after its own LinkUp."""
    net = Net()
    net.tapes[1].greeting = b"hello"
    net.link()
    assert [type(item) for _, item in net.tapes[0].seen] == [LinkUp, LinkBytes]


def test_writes_of_one_step_leave_as_one_and_in_order() -> None:
    """A core's writes to a link in one step are one write, counted as messages, and streams keep their order."""
    net = Net()
    near, _ = net.link()
    net.order(0, SendToLink(near, b"a"), SendToLink(near, b"b"))
    net.order(0, SendToLink(near, b"c"))
    net.world.run(1)
    assert [item.data for item in net.tapes[1].of(LinkBytes)] == [b"ab", b"c"]
    assert (net.nodes[0].messages, net.nodes[0].octets) == (3, 3)


def test_nobody_listens() -> None:
    """A dial to an address where nobody is fails soon; with another address after it, that one is tried."""
    net = Net()
    net.order(0, OpenLink(1, (("10.9.9.9", 1),), None), OpenLink(2, (("10.9.9.9", 1), net.nodes[1].address), None))
    net.order(0, OpenLink(3, (), None))
    net.world.run(2)
    assert sorted(item.attempt for item in net.tapes[0].of(LinkFailed)) == [1, 3]
    assert [item.attempt for item in net.tapes[0].of(LinkUp)] == [2]


def test_closing_follows_the_octets() -> None:
    """The other side learns of a close after all that was written before it; the closer is told nothing."""
    net = Net()
    near, far = net.link()
    net.order(0, SendToLink(near, b"bye"), CloseLink(near, "done"))
    net.world.run(1)
    assert [type(item) for _, item in net.tapes[1].seen] == [LinkUp, LinkBytes, LinkDown]
    assert not net.tapes[0].of(LinkDown)
    net.order(1, SendToLink(far, b"too late"), CloseLink(far, "again"))
    net.world.run(1)
    assert not net.tapes[0].of(LinkBytes)


def test_refused_after_the_handshake() -> None:
    """Such a dialler sees its link up, and then down, with no octet between; the refuser sees nothing."""
    net = Net()
    net.nodes[1].refuses = lambda other: other is net.nodes[0]
    net.order(0, OpenLink(1, (net.nodes[1].address,), None))
    net.world.run(1)
    assert [type(item) for _, item in net.tapes[0].seen] == [LinkUp, LinkDown]
    assert net.tapes[1].seen == []
    assert net.nodes[1].links == {}


def test_a_killed_node_resets_its_links() -> None:
    """SIGKILL is seen at the other end of each link after its delay; later dials are refused."""
    net = Net()
    net.link()
    start = net.world.now
    net.world.kill(net.nodes[1])
    net.order(0, OpenLink(2, (net.nodes[1].address,), None))
    net.world.run(2)
    assert net.tapes[0].of(LinkDown)[0].reason == "connection reset"
    assert net.tapes[0].seen[1][0] - start == pytest.approx(TRIP / 2)
    assert [item.attempt for item in net.tapes[0].of(LinkFailed)] == [2]


def test_a_node_killed_during_the_handshake() -> None:
    """A dial to a node that dies before the handshake ends fails, once."""
    net = Net()
    net.order(0, OpenLink(2, (net.nodes[1].address,), None))
    net.world.run(1.5 * TRIP)
    net.world.kill(net.nodes[1])
    net.world.run(10)
    assert [type(item) for _, item in net.tapes[0].seen] == [LinkFailed]


def test_a_frozen_node_is_silent_and_goes_on_when_thawed() -> None:
    """SIGSTOP: no timer, no answer, links stay; on thawing all that waited is processed, in order."""
    net = Net()
    near, _ = net.link()
    net.tapes[1].timers = [net.world.now + 1]
    net.nodes[1].arm()
    net.world.freeze(net.nodes[1])
    net.order(0, SendToLink(near, b"1"))
    net.order(0, OpenLink(7, (net.nodes[1].address,), None))
    net.world.run(20)
    assert net.tapes[1].data() == b""
    assert net.tapes[1].rang == []
    assert [item.reason for item in net.tapes[0].of(LinkFailed)] == ["timed out"]
    assert not net.tapes[0].of(LinkDown)
    net.world.thaw(net.nodes[1])
    net.world.run(1)
    assert net.tapes[1].data() == b"1"
    assert len(net.tapes[1].rang) == 1


def test_a_partition_holds_what_is_sent_until_it_heals() -> None:
    """Across a partition nothing arrives and no dial succeeds; afterwards the stream goes on without a gap."""
    net = Net(3)
    near, _ = net.link(0, 1)
    net.link(0, 2)
    net.world.partition([[net.nodes[0], net.nodes[2]], [net.nodes[1]]])
    net.order(0, SendToLink(near, b"ab"))
    net.order(0, OpenLink(7, (net.nodes[1].address,), None))
    net.world.run(20)
    assert net.tapes[1].data() == b""
    assert len(net.tapes[0].of(LinkFailed)) == 1
    net.world.heal()
    net.order(0, SendToLink(near, b"cd"))
    net.world.run(1)
    assert net.tapes[1].data() == b"abcd"


def test_a_close_during_a_partition_is_learnt_when_it_heals() -> None:
    """The end of a stream waits like its octets."""
    net = Net()
    near, _ = net.link()
    net.world.partition([[net.nodes[0]], [net.nodes[1]]])
    net.order(0, SendToLink(near, b"last"), CloseLink(near, "enough"))
    net.world.run(5)
    assert not net.tapes[1].of(LinkDown)
    net.world.heal()
    net.world.run(1)
    assert net.tapes[1].data() == b"last"
    assert len(net.tapes[1].of(LinkDown)) == 1


def test_the_wall_clock_jumps_alone() -> None:
    """A step of the wall clock moves no timer and no delivery."""
    net = Net()
    near, _ = net.link()
    net.tapes[0].timers = [net.world.now + 1]
    net.nodes[0].arm()
    net.world.jump_wall(3600)
    net.world.jump_wall(-7200, net.nodes[1])
    net.order(0, SendToLink(near, b"x"))
    start = net.world.now
    net.world.run(2)
    assert net.tapes[0].rang == [start + 1]
    assert net.tapes[1].seen[-1][0] - start == pytest.approx(TRIP / 2)
    assert net.tapes[1].walls[-1] - net.tapes[1].walls[0] == pytest.approx(-3600, abs=5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), pauses=st.lists(st.floats(0, 0.3), min_size=1, max_size=30))
def test_a_lossy_link_is_slower_but_whole(seed: int, pauses: list[float]) -> None:
    """Loss delays and never reorders or loses: TCP is beneath."""
    net = Net(seed=seed, loss=0.4)
    near, _ = net.link()
    sent = b""
    for number, pause in enumerate(pauses):
        octet = bytes([number])
        sent += octet
        net.order(0, SendToLink(near, octet))
        net.world.run(pause)
    net.world.run(600)
    assert net.tapes[1].data() == sent


def test_one_seed_is_one_world() -> None:
    """With loss and all, two worlds of one seed are the same to the last event."""

    def tape(seed: int) -> list[tuple[float, Any]]:
        net = Net(seed=seed, loss=0.3)
        near, _ = net.link()
        for number in range(20):
            net.order(0, SendToLink(near, bytes([number])))
            net.world.run(0.01)
        net.world.run(60)
        return net.tapes[1].seen

    assert tape(3) == tape(3)
    assert tape(3) != tape(4)


def test_a_timer_that_moves_later_rings_once() -> None:
    """A core whose timer moved is woken at the new time only."""
    net = Net(1)
    start = net.world.now
    net.tapes[0].timers = [start + 1]
    net.nodes[0].arm()
    net.tapes[0].timers = [start + 2]
    net.world.run(3)
    assert net.tapes[0].rang == [start + 2]

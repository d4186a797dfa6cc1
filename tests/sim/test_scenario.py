"""Real peer cores in the simulated world: churn, mass failure, partitions, clocks, and replay from the seed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.member_list import KademliaParameters
from p2psipd.sim.latency import King, Lan
from p2psipd.sim.overlay import SimOverlay, SimPeer
from p2psipd.sim.scenario import Scenario, ScenarioParameters, percentile, simulate, spread
from p2psipd.sim.world import World

CPU_SECONDS = 60.0
QUIET = KademliaParameters(max_links=48, ping_siblings_for=15.0, ping_others_for=120.0)
"""Fewer links and rarer pings, so that a thousand peers fit into a minute of CPU; resets are seen at once anyway."""


def within_cpu(run: Callable[[], Any]) -> Any:
    """What `run` gives, and it may cost a minute of CPU at most."""
    started = time.process_time()
    result = run()
    assert time.process_time() - started < CPU_SECONDS
    return result


def test_a_thousand_peers_under_churn() -> None:
    """With hour-long sessions every look-up among 1,000 peers finds its record, and each keeps about 8 copies.

    Now and then one reads a replica in the moment between the acknowledgement of a store and the replica's own copy.
    """
    parameters = ScenarioParameters(churn=3600, seconds=20, records=100, kademlia=QUIET)
    result = within_cpu(lambda: simulate(parameters))
    assert result["peers"]["died"] >= 3
    assert result["lookups"]["asked"] > 300
    assert set(result["lookups"]["outcomes"]) <= {"ok", "stale"}
    assert result["lookups"]["success"] >= 0.99
    assert result["lookups"]["hops"]["mean"] < 3
    assert result["lookups"]["seconds"]["p50"] < 0.4
    assert result["stores"]["success"] >= 0.98
    assert result["copies"]["lost"] == 0
    assert result["copies"]["mean"] > 7.9
    assert result["misbehaved"] == {}


def test_two_hundred_peers_from_nothing() -> None:
    """200 peers that join through one bootstrap peer all become members, and then find every record."""
    parameters = ScenarioParameters(peers=200, cold=True, seconds=10, records=60, joins=15, kademlia=QUIET)
    result = within_cpu(lambda: simulate(parameters))
    assert result["peers"]["members"] == 200
    assert result["peers"]["join_seconds"]["p99"] < 15
    assert result["lookups"]["success"] == 1
    assert result["copies"]["counts"] == {"8": 60}


@pytest.mark.parametrize("silent", [0.0, 1.0], ids=["killed", "stopped silently"])
@pytest.mark.parametrize("dead", [7, 12])
def test_many_of_24_die_at_once(dead: int, silent: float) -> None:
    """What has a surviving holder is found at once, 7 deaths lose nothing, and copies are back to 8 within 60 s."""
    parameters = ScenarioParameters(
        peers=24, strike=dead / 24, silent=silent, seconds=60, records=200, gets=40, puts=0, latency="lan", seed=dead
    )
    result = simulate(parameters)
    lookups, copies = result["lookups"], result["copies"]
    assert result["peers"]["died"] == dead
    assert lookups["success"] == 1, lookups
    assert lookups["seconds"]["p99"] <= 1.0
    assert copies["lost"] <= (0 if dead < 8 else 10 * max(1, copies["expected_lost"]))
    assert {held: number for held, number in copies["counts"].items() if held not in ("0", "8")} == {}


@pytest.mark.parametrize("sign", ["null", "real"])
def test_one_seed_gives_one_result(sign: str) -> None:
    """The result is the same on every run of a seed, whatever the hash seed, and another one for another seed."""
    command = [
        *(sys.executable, "-m", "p2psipd.cli.main", "sim", "--peers", "12", "--minutes", "0.3", "--churn", "2m"),
        *("--records", "20", "--loss", "0.01", "--sign", sign, "--json", "--quiet"),
    ]

    def run(seed: str, hashing: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        return subprocess.run(
            [*command, "--seed", seed], check=True, capture_output=True, timeout=120, env=environment
        ).stdout

    first = run("1", "1")
    assert run("1", "2") == first
    if sign == "null":
        assert run("2", "1") != first


class Small:
    """A settled overlay of some peers in a LAN, with requests made by hand."""

    def __init__(self, count: int, seed: int = 1, latency: King | Lan | None = None) -> None:
        self.world = World(latency or Lan(0.01), seed)
        self.overlay = SimOverlay(self.world)
        self.outcomes: dict[int, Any] = {}
        self.events: list[tuple[SimPeer, object]] = []
        self.overlay.on_output = self._hear
        self.overlay.converge(count)
        self.world.run(5)
        self._refs = 0

    def _hear(self, peer: SimPeer, output: object) -> None:
        if isinstance(output, peer_io.Completed):
            self.outcomes[output.ref] = output.result
        elif isinstance(output, peer_io.Failed):
            self.outcomes[output.ref] = output.error
        else:
            self.events.append((peer, output))

    def ping(self, asker: SimPeer, target: SimPeer) -> object:
        """The outcome of a ping by Node-ID."""
        self._refs += 1
        ref = self._refs
        asker.node.feed(peer_io.Ping(ref, node=target.node_id))
        self.world.run(20, until=lambda: ref in self.outcomes)
        return self.outcomes.get(ref)

    def agree(self) -> bool:
        """Does every peer know exactly all the others?"""
        return all(peer.topology.status()["members"] == len(self.overlay.peers) for peer in self.overlay.peers)


def test_a_converged_overlay_is_one_that_would_have_come_to_be() -> None:
    """Preset peers know each other, are all ready, reach each other, and have nothing to complain of."""
    small = Small(60, latency=King())
    peers = small.overlay.peers
    assert small.agree()
    assert all(peer.topology.ready for peer in peers)
    for target in peers[1:6]:
        pong = small.ping(peers[0], target)
        assert isinstance(pong, peer_io.Pong)
        assert pong.node == target.node_id
    assert not [event for _, event in small.events if isinstance(event, peer_io.Misbehaved | peer_io.PeerLost)]


def test_refused_after_the_handshake() -> None:
    """A newcomer that some peers refuse only after the handshake still becomes a member through the others."""
    small = Small(12)
    refusing = small.overlay.peers[:2]
    newcomer = small.overlay.add(bootstrap=[peer.node.address for peer in small.overlay.peers])
    for peer in refusing:
        peer.node.refuses = lambda other: other is newcomer.node
    small.overlay.start(newcomer)
    assert small.world.run(40, until=lambda: newcomer.topology.ready)
    for peer in refusing:
        peer.node.refuses = None
    assert small.world.run(180, until=small.agree)


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_the_wall_clock_jumps_an_hour(step: float) -> None:
    """A jump of every wall clock, or of one, costs nobody the membership and no look-up its answer."""
    scenario = Scenario(ScenarioParameters(peers=16, seconds=20, records=20, latency="lan", puts=0))
    world = scenario.world
    world.at(world.now + 20, world.jump_wall, step)
    world.at(world.now + 25, lambda: world.jump_wall(-2 * step, world.nodes[0]))
    result = scenario.run()
    assert result["lookups"]["success"] == 1
    assert result["peers"]["members"] == 16
    assert result["copies"]["counts"] == {"8": 20}


def test_a_partition_is_found_and_healed() -> None:
    """Two halves that took each other for dead are one overlay again some minutes after the network is."""
    small = Small(16)
    peers = small.overlay.peers
    halves = [peer.node for peer in peers[:8]], [peer.node for peer in peers[8:]]
    small.world.partition(halves)
    small.world.run(60)
    assert peers[0].topology.status()["members"] == 8
    small.world.heal()
    assert small.world.run(400, until=small.agree)


def test_spread_takes_the_nearest_rank() -> None:
    """Percentiles are values that occurred, by nearest rank."""
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50, 99, 100)
    assert spread([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
    assert spread([]) is None


@pytest.mark.parametrize("wrong", [{"peers": 0}, {"seconds": 0}, {"latency": "moon"}, {"sign": "wax"}, {"loss": 1.0}])
def test_impossible_scenarios(wrong: dict[str, Any]) -> None:
    """Parameters that mean nothing are refused before anything is built."""
    with pytest.raises(ValueError):
        Scenario(ScenarioParameters()._replace(**wrong))

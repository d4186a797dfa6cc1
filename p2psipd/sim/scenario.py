"""A scenario: an overlay, its churn, and users who store and look up records; and what came of it.

Phases, all in virtual time: the overlay comes to be (converged, or joined one by one from one bootstrap peer
with `cold`); every record is stored once; then, while it is measured, peers die and others join, records are
looked up by random members and stored anew. At the end the surviving copies of each record are counted.

A look-up is a success if it gives the newest version that was acknowledged before it began, or a newer one;
older versions are counted as `stale`, none as `missing` (`lost` if a strike took its last holder), an error
as `failed`. A look-up whose asker died is not counted.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import comb
from typing import Any, Final, NamedTuple

from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION
from p2psipd.proto.reload.member_list import KademliaParameters
from p2psipd.proto.reload.messages import StoredDataSpecifier
from p2psipd.proto.reload.sip_usage import ProxyRegistration, decode_proxy_registration
from p2psipd.proto.reload.wire import NodeDestination
from p2psipd.sim.latency import latency_model
from p2psipd.sim.overlay import OVERLAY_NAME, SimOverlay, SimPeer
from p2psipd.sim.world import World

_SETTLE: Final = 5.0
_DRAIN: Final = 12.0
_JOIN_PATIENCE: Final = 60.0
_REPLACED_AFTER: Final = 10.0
_LIFETIME: Final = 86_400
_COPIES: Final = 8


class ScenarioParameters(NamedTuple):
    """What is simulated. Times are seconds, rates per second of the whole overlay.

    `churn` is the mean session of a peer, exponentially distributed (None: nobody dies); each that dies is
    replaced by a new one some seconds later. A share `silent` of deaths is silent (no reset is seen).
    `warm_up` is passed before measuring, `seconds` is measured.
    """

    peers: int = 1000
    churn: float | None = None
    seconds: float = 120.0
    seed: int = 1
    sign: str = "null"
    cold: bool = False
    joins: float = 10.0
    records: int = 500
    gets: float = 20.0
    puts: float = 2.0
    silent: float = 0.0
    strike: float = 0.0
    loss: float = 0.0
    latency: str = "king"
    warm_up: float = _SETTLE
    kademlia: KademliaParameters = KademliaParameters()


class _Record:
    """One binding: its newest acknowledged version."""

    __slots__ = ("aor", "lost", "resource", "sent", "version")

    def __init__(self, number: int) -> None:
        self.aor = f"user{number}@{OVERLAY_NAME}"
        self.resource: ResourceId = resource_id(self.aor)
        self.sent = 0
        self.version = 0
        self.lost = False

    def value(self, version: int, owner: SimPeer) -> peer_io.StoreValue:
        """The binding as the registrar `owner` stores it; the version stands in its CSeq."""
        binding = ProxyRegistration(
            self.aor,
            (NodeDestination(owner.node_id),),
            f"sip:{self.aor.partition('@')[0]}@192.0.2.1:5060",
            instance_id=f"<urn:uuid:00000000-0000-4000-8000-{self.resource.hex()[:12]}>",
            reg_id=1,
            call_id=self.resource.hex(),
            cseq=version,
        )
        return peer_io.StoreValue(binding.encode(), _LIFETIME, key=binding.key)


class _Asked(NamedTuple):
    """A request that is under way."""

    peer: SimPeer
    record: _Record
    version: int
    put: bool
    measured: bool


class _Tally:
    """Outcomes of one sort of request."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.hops: Counter[int] = Counter()

    def summary(self) -> dict[str, Any]:
        """Counts, the share of successes among what could succeed, and seconds and hops of the successes."""
        asked = sum(self.outcomes.values()) - self.outcomes["lost"]
        found = self.outcomes["ok"]
        result: dict[str, Any] = {
            "asked": asked,
            "success": _rounded(found / asked) if asked else None,
            "outcomes": dict(sorted(self.outcomes.items())),
            "seconds": spread(self.seconds),
        }
        if self.hops:
            total = sum(self.hops.values())
            result["hops"] = {
                "mean": _rounded(sum(hops * count for hops, count in self.hops.items()) / total),
                "counts": {str(hops): self.hops[hops] for hops in sorted(self.hops)},
            }
        return result


def _rounded(value: float) -> float:
    return round(value, 6)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of a sorted, non-empty sequence."""
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 90th and 99th percentile and maximum; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "p50": _rounded(percentile(ordered, 0.5)),
        "p90": _rounded(percentile(ordered, 0.9)),
        "p99": _rounded(percentile(ordered, 0.99)),
        "max": _rounded(ordered[-1]),
    }


@contextmanager
def _large_heap() -> Iterator[None]:
    """Keep the collector from walking millions of objects that live to the end, over and over."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


class Scenario:
    """Runs one scenario. `progress(text)` is told of each virtual second, for people."""

    def __init__(self, parameters: ScenarioParameters, progress: Callable[[str], None] | None = None) -> None:
        if parameters.peers < 1 or parameters.seconds <= 0:
            raise ValueError("a scenario has at least one peer and some time")
        self.parameters = parameters
        self.world = World(latency_model(parameters.latency), parameters.seed, loss=parameters.loss)
        self.overlay = SimOverlay(self.world, sign=parameters.sign, kademlia=parameters.kademlia)
        self.overlay.on_output = self._on_output
        self.records = [_Record(number) for number in range(parameters.records)]
        self._random = self.overlay.random
        self._progress = progress or (lambda text: None)
        self._asked: dict[int, _Asked] = {}
        self._refs = 0
        self._gets = _Tally()
        self._puts = _Tally()
        self._joined: list[float] = []
        self._died = 0
        self._born = 0
        self._misbehaved: Counter[str] = Counter()
        self._expected_lost = 0.0
        self._measuring = False

    def run(self) -> dict[str, Any]:
        """The whole scenario; the result as JSON types, the same for one seed on every run."""
        with _large_heap():
            return self._run()

    def _run(self) -> dict[str, Any]:
        parameters = self.parameters
        self._form()
        gc.freeze()
        self._pass(_SETTLE, "settling")
        self._load()
        self._pass(parameters.warm_up, "warming up")
        before = self._traffic()
        self._measuring = True
        self._strike()
        self._arm_churn()
        self._every(parameters.gets, self._get)
        self._every(parameters.puts, self._put)
        self._pass(parameters.seconds, "measuring")
        self._measuring = False
        after = self._traffic()
        self._pass(_DRAIN, "draining")
        return self._result(before, after)

    # ---- phases

    def _form(self) -> None:
        parameters = self.parameters
        if not parameters.cold:
            self._progress("building")
            self.overlay.converge(parameters.peers)
            return
        founder = self.overlay.add(first=True)
        self.overlay.start(founder)
        for number in range(1, parameters.peers):
            self.world.at(self.world.now + number / parameters.joins, self._join_cold, founder)
        end = self.world.now + parameters.peers / parameters.joins + _JOIN_PATIENCE
        while self.world.now < end and len(self._joined) < parameters.peers:
            self._pass(1.0, f"joining, {len(self._joined)} of {parameters.peers} are members")

    def _join_cold(self, founder: SimPeer) -> None:
        self.overlay.start(self.overlay.add(bootstrap=[founder.node.address]))

    def _load(self) -> None:
        for number, record in enumerate(self.records):
            self.world.at(self.world.now + number / 100, self._store, record)
        self._pass(len(self.records) / 100 + 3, "storing records")
        # What a busy moment refused is stored once more, as a registrar would.
        for record in self.records:
            if not record.version:
                self._store(record)
        self._pass(3, "storing records")

    def _pass(self, seconds: float, what: str) -> None:
        end = self.world.now + seconds
        while self.world.now < end - 1e-9:
            self.world.run(min(1.0, end - self.world.now))
            self._progress(f"{what}: {max(0.0, end - self.world.now):.0f} s to go")

    # ---- what users do

    def _every(self, rate: float, action: Callable[[], None]) -> None:
        """Do `action` at random instants, `rate` times a second, while measuring."""
        if rate <= 0:
            return

        def again() -> None:
            if self._measuring:
                action()
                self.world.at(self.world.now + self._random.expovariate(rate), again)

        self.world.at(self.world.now + self._random.expovariate(rate), again)

    def _member(self) -> SimPeer | None:
        """Some live member."""
        peers = self.overlay.peers
        for _ in range(20):
            peer = peers[self._random.randrange(len(peers))]
            if peer.topology.ready:
                return peer
        return None

    def _get(self) -> None:
        peer = self._member()
        if peer is None or not self.records:
            return
        record = self._random.choice(self.records)
        ref = self._remember(_Asked(peer, record, record.version, False, self._measuring))
        specifiers = (StoredDataSpecifier(PROXY_REGISTRATION, keys=()),)
        peer.node.feed(peer_io.Fetch(ref, record.resource, specifiers))

    def _put(self) -> None:
        if self.records:
            self._store(self._random.choice(self.records))

    def _store(self, record: _Record) -> None:
        peer = self._member()
        if peer is None:
            return
        record.sent += 1
        ref = self._remember(_Asked(peer, record, record.sent, True, self._measuring))
        value = record.value(record.sent, peer)
        peer.node.feed(peer_io.Store(ref, record.resource, PROXY_REGISTRATION, (value,)))

    def _remember(self, asked: _Asked) -> int:
        self._refs += 1
        self._asked[self._refs] = asked
        return self._refs

    def _on_output(self, peer: SimPeer, output: object) -> None:
        match output:
            case peer_io.Completed(ref, peer_io.FetchOutcome() as outcome):
                asked = self._asked.pop(ref)
                if asked.measured:
                    self._judge(asked, outcome)
            case peer_io.Completed(ref, peer_io.StoreOutcome() as stored):
                asked = self._asked.pop(ref)
                asked.record.version = max(asked.record.version, asked.version)
                if asked.measured:
                    self._puts.outcomes["ok"] += 1
                    self._puts.seconds.append(stored.seconds)
            case peer_io.Failed(ref, error):
                asked = self._asked.pop(ref)
                if asked.measured:
                    tally = self._puts if asked.put else self._gets
                    tally.outcomes[f"failed: {type(error).__name__}"] += 1
            case peer_io.Joined():
                peer.joined_at = self.world.now
                self._joined.append(self.world.now - peer.born_at)
            case peer_io.Misbehaved():
                self._misbehaved[output.reason] += 1

    def _judge(self, asked: _Asked, outcome: peer_io.FetchOutcome) -> None:
        bindings = (decode_proxy_registration(value.value) for value in outcome.values if value.exists)
        versions = [binding.cseq for binding in bindings if isinstance(binding, ProxyRegistration)]
        if not versions:
            self._gets.outcomes["lost" if asked.record.lost else "missing"] += 1
        elif max(versions) < asked.version:
            self._gets.outcomes["stale"] += 1
        else:
            self._gets.outcomes["ok"] += 1
            self._gets.seconds.append(outcome.seconds)
            self._gets.hops[outcome.hops] += 1

    # ---- churn

    def _strike(self) -> None:
        """The share of peers that dies at once; records whose every holder was among them are lost."""
        peers = self.overlay.peers
        victims = self._random.sample(peers, round(self.parameters.strike * len(peers)))
        for peer in victims:
            self._kill(peer)
        if victims:
            holders = self._holders()
            count, dead = len(peers) + len(victims), len(victims)
            for record in self.records:
                record.lost = not holders[record.resource]
            if dead >= _COPIES and count >= _COPIES:
                self._expected_lost = len(self.records) * comb(count - _COPIES, dead - _COPIES) / comb(count, dead)

    def _arm_churn(self) -> None:
        if self.parameters.churn is not None:
            for peer in list(self.overlay.peers):
                self._arm_death(peer)

    def _arm_death(self, peer: SimPeer) -> None:
        assert self.parameters.churn is not None
        session = self._random.expovariate(1 / self.parameters.churn)
        self.world.at(self.world.now + session, self._die, peer)

    def _die(self, peer: SimPeer) -> None:
        if not self._measuring or len(self.overlay.peers) < 2 or peer not in self.overlay.peers:
            return
        self._kill(peer)
        self.world.at(self.world.now + self._random.expovariate(1 / _REPLACED_AFTER), self._birth)

    def _kill(self, peer: SimPeer) -> None:
        self._died += 1
        self.overlay.remove(peer, silent=self._random.random() < self.parameters.silent)
        for ref in [ref for ref, asked in self._asked.items() if asked.peer is peer]:
            del self._asked[ref]

    def _birth(self) -> None:
        if self._measuring:
            self._born += 1
            self._arm_death(self.overlay.join())

    # ---- the result

    def _traffic(self) -> tuple[int, int]:
        return sum(node.messages for node in self.world.nodes), sum(node.octets for node in self.world.nodes)

    def _holders(self) -> Counter[bytes]:
        """How many live peers hold each resource."""
        holders: Counter[bytes] = Counter()
        for peer in self.overlay.peers:
            holders.update(peer.storage.resources())
        return holders

    def _copies(self) -> dict[str, Any]:
        """How many live peers hold each record, and how many records chance would have lost in the strike."""
        holders = self._holders()
        stored = [record for record in self.records if record.version]
        counts = Counter(holders[record.resource] for record in stored)
        total = sum(copies * number for copies, number in counts.items())
        return {
            "records": len(stored),
            "mean": _rounded(total / len(stored)) if stored else None,
            "least": min(counts, default=None),
            "lost": counts[0],
            "expected_lost": _rounded(self._expected_lost),
            "counts": {str(copies): counts[copies] for copies in sorted(counts) if counts[copies]},
        }

    def _result(self, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
        parameters = self.parameters
        node_seconds = parameters.seconds * parameters.peers
        told = parameters._asdict()
        told["kademlia"] = parameters.kademlia._asdict()
        return {
            "parameters": told,
            "latency_model": self.world.latency.name,
            "peers": {
                "at_end": len(self.overlay.peers),
                "members": len(self.overlay.ready()),
                "died": self._died,
                "born": self._born,
                "join_seconds": spread([seconds for seconds in self._joined if seconds]),
            },
            "lookups": self._gets.summary(),
            "stores": self._puts.summary(),
            "traffic": {
                "messages_per_node_second": _rounded((after[0] - before[0]) / node_seconds),
                "octets_per_node_second": _rounded((after[1] - before[1]) / node_seconds),
            },
            "copies": self._copies(),
            "misbehaved": dict(sorted(self._misbehaved.items())),
            "unanswered": sum(asked.measured for asked in self._asked.values()),
            "virtual_seconds": _rounded(self.world.now - 1000.0),
            "events": self.world.events,
        }


def simulate(parameters: ScenarioParameters, progress: Callable[[str], None] | None = None) -> Mapping[str, Any]:
    """Run one scenario from its beginning; see `Scenario.run`."""
    return Scenario(parameters, progress).run()

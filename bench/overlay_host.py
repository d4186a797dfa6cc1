"""A process of the benchmark with nodes of ours in it.

`python -m bench.overlay_host SPEC.json` starts the nodes that the file lists and obeys commands on standard
input, one JSON object a line; each is answered by one line.  What is measured is done here, close to the nodes;
CPU is this process's own.
"""

from __future__ import annotations

import base64
import json
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import defer, reactor, stdio, task  # noqa: E402
from twisted.protocols.basic import LineOnlyReceiver  # noqa: E402

from p2psipd.net.links import LinkLimits  # noqa: E402
from p2psipd.proto.identity.certificate import parse_certificate  # noqa: E402
from p2psipd.proto.identity.signing import Credential  # noqa: E402
from p2psipd.proto.reload import peer_io  # noqa: E402
from p2psipd.proto.reload.ids import ResourceId, resource_id  # noqa: E402
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION  # noqa: E402
from p2psipd.proto.reload.overlay_config import OverlayConfiguration, parse_configuration  # noqa: E402
from p2psipd.proto.reload.peer_parameters import PeerParameters  # noqa: E402
from p2psipd.proto.reload.sip_usage import ProxyRegistration  # noqa: E402
from p2psipd.proto.reload.wire import NodeDestination  # noqa: E402
from p2psipd.services.overlay_factory import OverlayNode, make_overlay  # noqa: E402
from p2psipd.supervision import settle_collector  # noqa: E402

LIMITS = LinkLimits(2000, 2000, 1000, 1000, 20.0, 20.0, 8_000_000)


def record(name: str, node: bytes, size: int) -> ProxyRegistration:
    """A binding whose encoding has about `size` octets."""
    binding = ProxyRegistration(
        name, (NodeDestination(node),), f"sip:{name.partition('@')[0]}@192.0.2.1:5060",  # type: ignore[arg-type]
        instance_id="urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", call_id="a84b4c76e66710", cseq=1,
        expires_at=int(time.time()) + 3600,
    )
    missing = size - len(binding.encode()) - 12
    return binding._replace(parameters=(("x-fill", "f" * max(0, missing)),))


class Host(LineOnlyReceiver):
    """Nodes and the commands that work on them."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 24

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.configuration = (
            parse_configuration(base64.b64decode(spec["document"]), wall=time.time()) if spec.get("document")
            else OverlayConfiguration(overlay_name=spec["overlay"], root_certs=(base64.b64decode(spec["root"]),))
        )
        self.nodes: list[OverlayNode] = []
        self.sent = [0, 0]
        self.planned: list[tuple[str, ResourceId, OverlayNode]] = []
        for one in spec["nodes"]:
            self.add(one)

    def add(self, one: dict[str, Any]) -> OverlayNode:
        key = load_pem_private_key(one["key"].encode(), None)
        credential = Credential(parse_certificate(base64.b64decode(one["certificate"])), key)  # type: ignore[arg-type]
        address = None if one.get("client") else tuple(one["address"])
        parameters = PeerParameters(
            addresses=(address,) if address else (), bootstrap=tuple(map(tuple, self.spec["bootstrap"])),
            first=one.get("first", False), client=bool(one.get("client")),
        )
        node = make_overlay(
            reactor, self.configuration, credential, parameters, LIMITS, listen=address, now=reactor.seconds()
        )
        self.nodes.append(node)
        return node

    def lineReceived(self, line: bytes) -> None:
        command = json.loads(line)
        action: Callable[..., Awaitable[Any]] = getattr(self, "do_" + command.pop("do"))
        answer = defer.ensureDeferred(action(**command))
        answer.addCallbacks(
            lambda result: self.sendLine(json.dumps({"ok": result}).encode()),
            lambda failure: self.sendLine(json.dumps({"error": failure.getTraceback()}).encode()),
        )

    def connectionLost(self, reason: object = None) -> None:
        if reactor.running:
            reactor.stop()

    # -- commands ------------------------------------------------------------------------------------------

    async def do_start(self, members: int = 0) -> float:
        """Start the nodes that are not running; answer when each has joined and knows `members` members."""
        started = time.perf_counter()
        for node in self.nodes:
            if not node.service.running:
                node.service.startService()
                await node.service.when_joined()
        while any(int(str(n.core.topology.status()["members"])) < members for n in self.nodes):
            await task.deferLater(reactor, 0.05)
        settle_collector()
        return time.perf_counter() - started

    async def do_usage(self) -> dict[str, float]:
        """CPU seconds of this process so far and its resident memory in octets."""
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return {"cpu": time.process_time(), "rss": pages * resource.getpagesize(), "octets": self.sent[0],
                "frames": self.sent[1]}

    async def do_count_wire(self) -> None:
        """From now on count what the nodes write to links (it costs time, so not in timed runs)."""
        for node in self.nodes:
            core = node.core
            receive = core.receive

            def counted(item: Any, now: float, wall: float, receive: Any = receive) -> list[Any]:
                outputs = receive(item, now, wall)
                for output in outputs:
                    if isinstance(output, peer_io.SendToLink):
                        self.sent[0] += len(output.data)
                        self.sent[1] += 1
                return outputs  # type: ignore[no-any-return]

            core.receive = counted  # type: ignore[method-assign]

    async def do_held(self) -> int:
        """Copies of records held by the nodes here."""
        return sum(node.storage.resource_count for node in self.nodes)

    async def do_counts(self) -> dict[str, int]:
        """What the cores here counted, added up."""
        total: dict[str, int] = {}
        for node in self.nodes:
            for reason, number in node.core.counts.items():
                total[reason] = total.get(reason, 0) + number
        return total

    async def do_put(self, names: list[str], size: int, concurrency: int) -> list[float]:
        """Store a record under each name; seconds each, in milliseconds."""
        times: list[float] = []
        queue = list(enumerate(names))

        async def worker() -> None:
            while queue:
                number, name = queue.pop()
                node = self.nodes[number % len(self.nodes)]
                value = record(name, node.service.node_id, size)
                began = time.perf_counter()
                await node.service.store(
                    name, PROXY_REGISTRATION, [peer_io.StoreValue(value.encode(), 3600, value.key)]
                )
                times.append((time.perf_counter() - began) * 1e3)

        await defer.gatherResults([defer.ensureDeferred(worker()) for _ in range(concurrency)])
        return times

    async def do_plan(self, names: list[str]) -> None:
        """Choose for each name a node here that holds no copy of it, so that this is not part of what is measured."""
        rng = random.Random(1)
        self.planned = []
        for name in names:
            target = resource_id(name)
            node = rng.choice(self.nodes)
            for _ in range(100):
                if node.storage.records_of(target, time.time()) is None:
                    break
                node = rng.choice(self.nodes)
            self.planned.append((name, target, node))

    async def do_get(self, concurrency: int) -> list[float]:
        """Fetch each planned name once; milliseconds each."""
        times: list[float] = []
        queue = self.planned

        async def worker() -> None:
            while queue:
                name, target, node = queue.pop()
                began = time.perf_counter()
                outcome = await node.service.fetch(target, [PROXY_REGISTRATION])
                times.append((time.perf_counter() - began) * 1e3)
                if not outcome.values:
                    raise RuntimeError(f"{name} was not found")

        await defer.gatherResults([defer.ensureDeferred(worker()) for _ in range(concurrency)])
        return times

    async def do_first_get(self, one: dict[str, Any], name: str) -> float:
        """Milliseconds from a certificate in hand to the first verified value, as a node that links anew."""
        began = time.perf_counter()
        node = self.add(one)
        node.service.startService()
        while True:
            try:
                outcome = await node.service.fetch(name, [PROXY_REGISTRATION], seconds=5)
            except Exception:
                await task.deferLater(reactor, 0.001)
                continue
            if outcome.values:
                break
        elapsed = (time.perf_counter() - began) * 1e3
        await node.service.stopService()
        self.nodes.remove(node)
        return elapsed


def main() -> None:
    with open(sys.argv[1]) as file:
        host = Host(json.load(file))
    stdio.StandardIO(host)
    reactor.run()


if __name__ == "__main__":
    main()

"""The overlay's figures, side by side with `opendht` and `kademlia` (`make bench-overlay`).

Prints a table and writes `bench-overlay.json`.  Times are wall time in milliseconds, CPU is that of all nodes'
processes together divided by the number of operations.  A machine that is busy with other work shows in the
wall times first; CPU per operation is the firmer figure.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.table import Table

from bench.hosts import HostProcess, ask_all
from p2psipd.overlay_files import OverlayFiles
from p2psipd.proto.identity.certificate import Role, create_authority, role_name
from p2psipd.sim.scenario import ScenarioParameters, simulate

OVERLAY = "bench.example"
SIZE = 400
TARGETS = {
    "pair get p50 ms": 0.75,
    "pair get CPU ms": 0.75,
    "get p50 ms": 1.0,
    "get p99 ms": 3.0,
    "gets/s": 2500.0,
    "puts/s": 350.0,
    "get octets": 3000.0,
    "get frames": 4.0,
    "first get ms": 100.0,
    "RSS MB, 200 links": 70.0,
    "RSS MB, daemon, 200 links": 70.0,
    "simulated get p50 ms": 80.0,
    "simulated get p99 ms": 200.0,
}


class Enrollment:
    """An authority and the nodes that it certifies."""

    def __init__(self, overlay: OverlayFiles | None = None) -> None:
        self.authority = overlay.authority if overlay else create_authority(OVERLAY, time.time())
        self.document = base64.b64encode(overlay.configuration.document).decode() if overlay else None
        self.root = base64.b64encode(self.authority.certificate).decode()

    def node(self, address: tuple[str, int] | None = None, *, first: bool = False) -> dict[str, Any]:
        """A node for `overlay_host`; without an address a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        node_id = secrets.token_bytes(16)
        role = f"u{node_id.hex()}@{OVERLAY}" if address is None else role_name(Role.REGISTRAR, node_id, OVERLAY)
        der = self.authority.issue(key.public_key(), node_id, role, time.time())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {
            "certificate": base64.b64encode(der).decode(),
            "key": pem.decode(),
            "address": address,
            "client": address is None,
            "first": first,
        }

    def host(self, nodes: list[dict[str, Any]], bootstrap: list[tuple[str, int]], core: int | None) -> HostProcess:
        """A process with these nodes."""
        spec = {
            "overlay": OVERLAY, "root": self.root, "document": self.document, "bootstrap": bootstrap, "nodes": nodes
        }  # fmt: skip
        return HostProcess("bench.overlay_host", spec, core)


def percentile(times: list[float], share: float) -> float:
    """The value below which `share` of the times lie."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def cpu(hosts: list[HostProcess]) -> float:
    """CPU seconds of all these processes."""
    return sum(usage["cpu"] for usage in ask_all(hosts, "usage"))


def names(prefix: str, count: int) -> list[str]:
    """Distinct resource names."""
    return [f"{prefix}{number}@{OVERLAY}" for number in range(count)]


def pair(operations: int) -> dict[str, float]:
    """A get between two processes: a peer that holds the record, a client that asks for it."""
    enrollment = Enrollment()
    address = ("127.1.60.1", 6084)
    peer = enrollment.host([enrollment.node(address, first=True)], [], 0)
    client = enrollment.host([enrollment.node()], [address], 1)
    try:
        peer.ask("start")
        client.ask("start")
        records = names("pair", operations)
        peer.ask("put", names=records, size=SIZE, concurrency=4)
        hosts = [peer, client]
        client.ask("plan", names=records)
        before = cpu(hosts)
        times = client.ask("get", concurrency=1)
        spent = cpu(hosts) - before
        first = [client.ask("first_get", one=enrollment.node(), name=records[n]) for n in range(5)]
        client.ask("count_wire")
        peer.ask("count_wire")
        client.ask("plan", names=records[:500])
        client.ask("get", concurrency=1)
        usages = ask_all(hosts, "usage")
    finally:
        client.stop()
        peer.stop()
    return {
        "pair get p50 ms": percentile(times, 0.5),
        "pair get p99 ms": percentile(times, 0.99),
        "pair get CPU ms": spent / operations * 1e3,
        "first get ms": sorted(first)[2],
        "get octets": sum(u["octets"] for u in usages) / 500,
        "get frames": sum(u["frames"] for u in usages) / 500,
    }


def links_memory(links: int) -> dict[str, float]:
    """Resident memory of a process with one peer and many links."""
    enrollment = Enrollment()
    address = ("127.1.61.1", 6084)
    peer = enrollment.host([enrollment.node(address, first=True)], [], 0)
    clients = enrollment.host([enrollment.node() for _ in range(links)], [address], 1)
    try:
        peer.ask("start")
        clients.ask("start")
        usage = peer.ask("usage")
    finally:
        clients.stop()
        peer.stop()
    return {f"RSS MB, {links} links": usage["rss"] / 1e6}


DAEMON = """
[overlay]
document = "overlay.xml"
[identity]
certificate = "node.pem"
key = "node.key"
[node]
roles = ["peer"]
[peer]
listen = "{host}:{port}"
first = true
max_links_per_address = 400
max_handshakes = 400
max_handshakes_per_address = 400
"""


def daemon_memory(links: int) -> dict[str, float]:
    """Resident memory of the daemon as it is installed, with the role of a peer and many links."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        overlay = OverlayFiles.create(directory, OVERLAY)
        overlay.issue(Role.PEER, "peer", directory)
        address = ("127.1.63.1", 6084)
        (directory / "p2psipd.toml").write_text(DAEMON.format(host=address[0], port=address[1]))
        command = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "--logfile", str(directory / "log")]
        daemon = subprocess.Popen([*command, "p2psip", "--config", str(directory / "p2psipd.toml")])
        while "joined" not in ((directory / "log").read_text() if (directory / "log").exists() else ""):
            time.sleep(0.05)
        enrollment = Enrollment(overlay)
        clients = enrollment.host([enrollment.node() for _ in range(links)], [address], 1)
        try:
            clients.ask("start")
            status = Path(f"/proc/{daemon.pid}/status").read_text()
            return {f"RSS MB, daemon, {links} links": int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6}
        finally:
            clients.stop()
            daemon.terminate()
            daemon.wait(20)


def ours(count: int, operations: int) -> dict[str, float]:
    """`count` peers in two processes, each pinned to a core."""
    enrollment = Enrollment()
    addresses = [(f"127.1.62.{1 + number}", 6084) for number in range(count)]
    nodes = [enrollment.node(address, first=number == 0) for number, address in enumerate(addresses)]
    bootstrap = [addresses[0]]
    hosts = [enrollment.host(nodes[half::2], bootstrap, half) for half in (0, 1)]
    try:
        hosts[0].ask("start")
        hosts[1].ask("start")
        ask_all(hosts, "start", [{"members": count}] * 2)
        time.sleep(5)
        sets = [names("a", operations), names("b", operations)]
        # One after the other for latency, then both processes with several at a time for throughput.
        puts = hosts[0].ask("put", names=names("c", operations // 4), size=SIZE, concurrency=1)
        settled = sum(ask_all(hosts, "held"))
        before, began = cpu(hosts), time.perf_counter()
        ask_all(hosts, "put", [{"names": s, "size": SIZE, "concurrency": 4} for s in sets])
        while sum(ask_all(hosts, "held")) - settled < 8 * 2 * operations and time.perf_counter() - began < 120:
            time.sleep(0.01)
        put_seconds, put_cpu = time.perf_counter() - began, cpu(hosts) - before
        copies = (sum(ask_all(hosts, "held")) - settled) / (2 * operations)
        hosts[0].ask("plan", names=sets[1])
        before = cpu(hosts)
        alone = hosts[0].ask("get", concurrency=1)
        get_cpu = cpu(hosts) - before
        ask_all(hosts, "plan", [{"names": s} for s in sets[::-1]])
        began = time.perf_counter()
        ask_all(hosts, "get", [{"concurrency": 8}] * 2)
        get_seconds = time.perf_counter() - began
        rss = sum(u["rss"] for u in ask_all(hosts, "usage")) / count / 1e6
    finally:
        for host in hosts:
            host.stop()
    return {
        "put p50 ms": percentile(puts, 0.5),
        "put p99 ms": percentile(puts, 0.99),
        "puts/s": 2 * operations / put_seconds,
        "put CPU ms": put_cpu / (2 * operations) * 1e3,
        "copies": copies,
        "get p50 ms": percentile(alone, 0.5),
        "get p99 ms": percentile(alone, 0.99),
        "get CPU ms": get_cpu / operations * 1e3,
        "gets/s": 2 * operations / get_seconds,
        "RSS MB a node": rss,
    }


def others(module: str, count: int, operations: int, **extra: Any) -> dict[str, float]:
    """Another implementation in two processes, the same operations."""
    ports = list(range(24000, 24000 + count))
    specs = [{"ports": ports[half::2], "first": ports[0], **extra} for half in (0, 1)]
    hosts = [HostProcess(module, spec, core) for core, spec in enumerate(specs)]
    try:
        for host in hosts:
            host.ask("start")
        time.sleep(5)
        sets = [names("a", operations), names("b", operations)]
        alone_names = names("c", operations)
        # One after the other for latency, then both processes with eight at a time for throughput.
        put_alone = hosts[0].ask("put", names=alone_names, size=SIZE, concurrency=1)
        before, began = cpu(hosts), time.perf_counter()
        ask_all(hosts, "put", [{"names": s, "size": SIZE, "concurrency": 4} for s in sets])
        put_seconds, put_cpu = time.perf_counter() - began, cpu(hosts) - before
        before = cpu(hosts)
        alone = hosts[1].ask("get", names=alone_names, concurrency=1)
        get_cpu = cpu(hosts) - before
        began = time.perf_counter()
        results = ask_all(hosts, "get", [{"names": s, "concurrency": 8} for s in sets[::-1]])
        get_seconds = time.perf_counter() - began
        rss = sum(u["rss"] for u in ask_all(hosts, "usage")) / count / 1e6
    finally:
        for host in hosts:
            host.stop()
    failed = alone["failed"] + sum(r["failed"] for r in results)
    return {
        "put p50 ms": percentile(put_alone, 0.5),
        "put p99 ms": percentile(put_alone, 0.99),
        "puts/s": 2 * operations / put_seconds,
        "put CPU ms": put_cpu / (2 * operations) * 1e3,
        "get p50 ms": percentile(alone["times"], 0.5),
        "get p99 ms": percentile(alone["times"], 0.99),
        "get CPU ms": get_cpu / operations * 1e3,
        "gets/s": 2 * operations / get_seconds,
        "not found": failed,
        "RSS MB a node": rss,
    }


def simulated(peers: int) -> dict[str, float]:
    """Look-ups on the simulator's wide-area model (median round trip 139 ms), settled links, no churn."""
    result = simulate(ScenarioParameters(peers=peers, seconds=30.0, gets=60.0))
    seconds = result["lookups"]["seconds"]
    return {"simulated get p50 ms": seconds["p50"] * 1e3, "simulated get p99 ms": seconds["p99"] * 1e3}


def show(results: dict[str, dict[str, float]]) -> None:
    """The table: a row a figure, a column an implementation, the ratio to each, and the target."""
    console = Console()
    table = Table(title="overlay: ours beside others, in one run")
    table.add_column("figure")
    for name in results:
        table.add_column(name, justify="right")
    table.add_column("target", justify="right")
    rows = list(dict.fromkeys(key for result in results.values() for key in result))
    for row in rows:
        own = results["p2psipd"].get(row)
        cells = []
        for name, result in results.items():
            value = result.get(row)
            if value is None:
                cells.append("")
            elif name == "p2psipd" or not own or not value:
                cells.append(f"{value:,.2f}")
            else:
                cells.append(f"{value:,.2f} ({value / own:.2f}x)")
        target = TARGETS.get(row)
        table.add_row(row, *cells, "" if target is None else f"{target:g}")
    console.print(table)


def main() -> None:
    """Run everything, or what `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--operations", type=int, default=1500)
    parser.add_argument("--json", default="bench-overlay.json")
    parser.add_argument("--only", nargs="*", default=["pair", "memory", "ours", "opendht", "kademlia", "sim"])
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {"p2psipd": {}}
    own = results["p2psipd"]
    if "pair" in options.only:
        own.update(pair(options.operations))
    if "memory" in options.only:
        own.update(links_memory(200))
        own.update(daemon_memory(200))
    if "ours" in options.only:
        own.update(ours(options.nodes, options.operations))
    if "opendht" in options.only:
        results["opendht"] = others("bench.opendht_host", options.nodes, options.operations, signed=False)
        results["opendht signed"] = others("bench.opendht_host", options.nodes, options.operations, signed=True)
    if "kademlia" in options.only:
        results["kademlia"] = others("bench.kademlia_host", options.nodes, options.operations)
    if "sim" in options.only:
        own.update(simulated(1000))
    show(results)
    with open(options.json, "w") as file:
        json.dump({"cores": os.cpu_count(), "nodes": options.nodes, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()

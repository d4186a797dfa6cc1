"""Look-ups a second against knot on this machine: ours beside dnspython's and Twisted's own resolvers.

``python -m bench.dns`` prints a table; ``measure()`` gives the figures to a larger benchmark. Each name is asked
once, 32 at a time, so that nothing comes from a cache but in the line that says so. CPU is that of the asking
process alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dns.resolver
from rich.console import Console
from rich.table import Table
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.names.client import Resolver

from p2psipd.net.dns import DnsClient
from tests.knot import Knot

#: Look-ups a second that an outgoing call may count on.
TARGET = 3500
_UNDER_WAY = 32
_ZONE = """$TTL 300
@ SOA ns hostmaster 1 3600 600 86400 60
@ NS ns
ns A 127.1.70.54
* NAPTR 100 10 "u" "E2U+sip" "!^(.*)$!sip:\\\\1@b.example;user=phone!" .
"""
Figures = dict[str, dict[str, float]]


async def _rate(ask: Callable[[str], Awaitable[Any]], names: list[str]) -> dict[str, float]:
    """Look-ups a second and microseconds of CPU for each."""
    left = iter(names)

    async def asker() -> None:
        for name in left:
            await ask(name)

    wall, cpu = time.perf_counter(), time.process_time()
    await gatherResults([Deferred.fromCoroutine(asker()) for _ in range(_UNDER_WAY)])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"per_second": len(names) / wall, "cpu_microseconds": cpu / len(names) * 1e6}


async def measure(count: int, directory: Path) -> Figures:
    """The figures of each client for `count` look-ups of NAPTR records, by its name."""
    zone = directory / "bench.example.zone"
    zone.write_text(_ZONE)
    knot = Knot(directory, [zone], "127.1.70.54")
    try:
        ours = DnsClient(reactor, [knot.address], random.SystemRandom())

        async def ask(name: str) -> None:
            answer = await ours.ask(name, "NAPTR")
            assert answer.records, answer

        def names(prefix: str) -> list[str]:
            return [f"{number}.{prefix}.bench.example" for number in range(count)]

        figures = {"p2psipd": await _rate(ask, names("p"))}
        figures["p2psipd, cached"] = await _rate(ask, names("p")[: min(count, 10_000)])
        await ours.close()
        twisted = Resolver(servers=[knot.address])
        figures["twisted.names"] = await _rate(twisted.lookupNamingAuthorityPointer, names("t"))
        figures["dnspython"] = _blocking(knot, names("d")[: count // 4])
    finally:
        knot.stop()
    return figures


def _blocking(knot: Knot, names: list[str]) -> dict[str, float]:
    """dnspython's resolver, one look-up after the other."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = [knot.host], knot.port
    wall, cpu = time.perf_counter(), time.process_time()
    for name in names:
        resolver.resolve(name, "NAPTR")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"per_second": len(names) / wall, "cpu_microseconds": cpu / len(names) * 1e6}


def _show(figures: Figures) -> None:
    table = Table(title=f"NAPTR look-ups against knot, {_UNDER_WAY} at a time (target: {TARGET:,}/s)")
    for heading in ("client", "look-ups/s", "CPU µs each"):
        table.add_column(heading, justify="left" if heading == "client" else "right")
    for client, figure in figures.items():
        table.add_row(client, f"{figure['per_second']:,.0f}", f"{figure['cpu_microseconds']:.0f}")
    Console().print(table)


def main() -> int:
    """Print the table; the exit code is 1 when ours misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as directory:

        def done(result: Any) -> None:
            if isinstance(result, dict):
                figures.update(result)
            else:
                result.printTraceback()
            reactor.stop()

        reactor.callWhenRunning(lambda: Deferred.fromCoroutine(measure(options.count, Path(directory))).addBoth(done))
        reactor.run()
    if not figures:
        return 1
    _show(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2))
    return 0 if figures["p2psipd"]["per_second"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())

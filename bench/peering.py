"""Direct peering in figures (`make bench-peering`, `make bench-peering QUICK=1`).

Inbound: requests a second that another domain sends over one TLS connection, each with an Identity of its own that is
verified before it is answered; a real node with the role peering and Kamailio take turns on the same core. Kamailio
keeps certificates of RFC 4474 by itself, those of RFC 8224 only if it is told to: both ways are shown. Outbound:
from a phone's INVITE to a telephone number until its 200, with everything to be found out (ENUM, NAPTR, SRV, A, TLS in
both directions, Identity) and with everything known. Look-ups: bench.dns. The best of several turns counts: on a
machine that does other work CPU a request is the firmer figure. Prints a table and writes `bench-peering.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import dns
from bench.peering_load import Connection, Phone, Sink, signed_requests
from bench.peering_world import Identities, Kamailio, Node
from bench.sip_load import LOAD_CORE
from p2psipd.proto.peering.peers import IdentityKind

Figures = dict[str, float]
OURS, THEIRS, THEIRS_KEEPING = "p2psipd", "Kamailio", "Kamailio, keeping certificates"

#: What is asked of ours: at least so many times Kamailio's figure, at most so many ms, at least so many a second.
TIMES_KAMAILIO = 3.0
AT_MOST_MS = {"cold call ms": 20.0, "warm call ms": 5.0}
LOOK_UPS = "look-ups/s"


class Effort:
    """How much is measured."""

    def __init__(self, quick: bool) -> None:
        self.turns = 2 if quick else 6
        self.requests = 200 if quick else 2000
        self.calls = 5 if quick else 40
        self.look_ups = 2000 if quick else 20_000


@contextmanager
def node(directory: Path, called: int) -> Iterator[Node]:
    """Our node, running, and ended afterwards; it can call `called` domains."""
    made = Node(directory, called)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@contextmanager
def kamailio(directory: Path, identities: Identities, *, keeps: bool = False) -> Iterator[Kamailio]:
    """Kamailio, ended afterwards."""
    made = Kamailio(directory, identities, keeps=keeps)
    try:
        yield made
    finally:
        made.stop()


def inbound(identities: Identities, server: Node | Kamailio, kind: IdentityKind, count: int) -> Figures:
    """One turn of one server."""
    requests = signed_requests(identities, kind, count + 50, server.url_host)
    connection = Connection(identities, server.address)
    try:
        # The first ones fetch the certificate, and wake what sleeps.
        connection.burst(requests[:50], server.pid)
        found = connection.burst(requests[50:], server.pid)
    finally:
        connection.close()
    if found.refused:
        raise RuntimeError(f"{server.name} refused {found.refused} of {count} requests ({kind.value})")
    return {f"{kind.value} requests/s": found.rate, f"{kind.value} CPU us": found.cpu_us}


def better(one: Figures, other: Figures) -> Figures:
    """The better of two turns, figure by figure."""
    return {name: (max if name.endswith("/s") else min)(value, other.get(name, value)) for name, value in one.items()}


def outbound(identities: Identities, server: Node, calls: int) -> Figures:
    """Each of `calls` domains is called twice: the first call is cold, the second warm."""
    sink, phone = Sink(identities, calls), Phone(server)
    try:
        pairs = [(phone.call(place), phone.call(place)) for place in range(calls)]
        if sink.signed != 2 * calls:
            raise RuntimeError(f"{sink.signed} of {2 * calls} INVITEs bore an Identity")
    finally:
        phone.close()
        sink.close()
    cold, warm = ([1000 * pair[place] for pair in pairs] for place in (0, 1))
    return {
        "cold call ms": _best_turn(cold),
        "warm call ms": _best_turn(warm),
        "cold call ms, slowest": max(cold),
        "warm call ms, slowest": max(warm),
    }


def _best_turn(times: Sequence[float]) -> float:
    """The least median of the turns of ten calls."""
    return min(statistics.median(times[at : at + 10]) for at in range(0, len(times), 10))


def look_ups(directory: Path, count: int) -> Figures:
    """`bench.dns` in a process of its own, since it has a reactor."""
    found = directory / "dns.json"
    command = [sys.executable, "-m", "bench.dns", "--count", str(count), "--json", str(found)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if not found.exists():
        raise RuntimeError(ran.stderr[-2000:])
    ours = json.loads(found.read_text())["p2psipd"]
    return {LOOK_UPS: ours["per_second"], "look-up CPU us": ours["cpu_microseconds"]}


def measure(directory: Path, effort: Effort, only: set[str]) -> dict[str, Figures]:
    """The figures by server."""
    found: dict[str, Figures] = {OURS: {}, THEIRS: {}, THEIRS_KEEPING: {}}
    if not only or "lookups" in only:
        found[OURS] |= look_ups(directory, effort.look_ups)
    if only and not only & {"inbound", "outbound"}:
        return found
    os.sched_setaffinity(0, {LOAD_CORE % (os.cpu_count() or 1)})
    with node(directory, effort.calls) as ours:
        identities = Identities(directory, ours.lab.authority)
        try:
            if not only or "outbound" in only:
                found[OURS] |= outbound(identities, ours, effort.calls)
            if not only or "inbound" in only:
                with kamailio(directory, identities) as theirs, kamailio(directory, identities, keeps=True) as keeping:
                    for _ in range(effort.turns):
                        for kind in IdentityKind:
                            for server in (theirs, keeping, ours):
                                turn = inbound(identities, server, kind, effort.requests)
                                found[server.name] |= better(turn, found[server.name])
        finally:
            identities.close()
    return found


def verdict(name: str, mine: float, other: float | None) -> str:
    """What is asked of a figure, and whether it is there; "" where nothing is asked."""
    if name in AT_MOST_MS:
        return f"at most {AT_MOST_MS[name]:.0f}: {'met' if mine <= AT_MOST_MS[name] else 'MISSED'}"
    if name == LOOK_UPS:
        return f"at least {dns.TARGET:,}: {'met' if mine >= dns.TARGET else 'MISSED'}"
    if name.endswith("requests/s") and other:
        return f"{TIMES_KAMAILIO:.0f} times: {'met' if mine >= TIMES_KAMAILIO * other else 'MISSED'}"
    return ""


def show(found: dict[str, Figures]) -> None:
    """Ours, theirs, the ratio, and what is asked of ours."""
    table = Table(title="Direct peering, one core each")
    for column in ("", OURS, THEIRS, "ratio", THEIRS_KEEPING, "ratio", "target"):
        table.add_column(column, justify="right" if column else "left")
    for name, mine in found[OURS].items():
        beside = []
        for other in (found[THEIRS].get(name), found[THEIRS_KEEPING].get(name)):
            beside += [f"{other:,.1f}", f"{mine / other:.2f}"] if other else ["", ""]
        table.add_row(name, f"{mine:,.1f}", *beside, verdict(name, mine, found[THEIRS].get(name)))
    Console(width=110).print(table)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description="Direct peering: our figures and Kamailio's")
    parser.add_argument("--quick", action="store_true", help="short runs: for a look, and for CI")
    parser.add_argument("--only", nargs="*", default=[], choices=("inbound", "outbound", "lookups"))
    parser.add_argument("--json", default="bench-peering.json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bp") as directory:
        found = measure(Path(directory), Effort(options.quick), set(options.only))
    show(found)
    Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

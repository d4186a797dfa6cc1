"""The SIP side's figures, ours and Kamailio's in one run (`make bench-sip`, `make bench-sip QUICK=1`).

The server has core 0 to itself, SIPp (and stunnel, which speaks TLS for it) core 1. A rate is sustained if every call
of the run succeeds, at most one in a thousand is repeated, and 95 % of the asked rate are reached. CPU is user and
system time of the server's processes a call. Prints a table and writes `bench-sip.json`. On a machine that does other
work the rates suffer first; CPU a call is the firmer figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.sip_load import CALLEE, CALLER, DOMAIN, Kamailio, Load, Ours, Result, certificate, memory_kb, stunnels
from p2psipd.lab import Lab

OURS, THEIRS = "127.1.50.1", "127.1.50.2"
LAB_NETWORK = "127.1.51"
FLOOD = 1600
Figures = dict[str, float]

# What is asked of ours; the last word says which way is better.
TARGETS: dict[str, tuple[float, str]] = {
    "registrations/s": (2500, "least"),
    "registration CPU us": (300, "most"),
    "stored registrations/s": (500, "least"),
    "proxy calls/s": (700, "least"),
    "proxy CPU us": (1200, "most"),
    "proxy TLS calls/s": (350, "least"),
    "proxy TLS CPU us": (2400, "most"),
    "redirects/s": (5000, "least"),
}


class Effort:
    """How long and how much is measured."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.seconds = 2.0 if quick else 6.0
        self.users = 2_000 if quick else 10_000
        self.open_calls = 200 if quick else 1_000
        self.many_calls = 3_000 if quick else 100_000

    def sustained(self, run: Callable[[float, int], Result], start: float, name: str) -> Figures:
        """The highest clean rate from `start` on, in steps of a quarter; CPU a call in the cheapest clean run.

        Where something is asked of the rate, the third run of a server that keeps up is at just that rate.
        """
        rate, best, cpu, missed = start, 0.0, float("inf"), 0
        for _ in range(5 if self.quick else 12):
            result = run(rate, max(1, round(rate * self.seconds)))
            if result.clean:
                best, cpu, missed = max(best, rate), min(cpu, result.cpu_us), 0
                rate *= 1.25
                continue
            missed += 1
            if best and missed == 2:
                break
            if missed == 2:
                rate, missed = rate * 0.6, 0
        return {f"{name}/s": best, f"{name.rstrip('s').removesuffix(' call')} CPU us": cpu if best else float("nan")}


Server = Ours | Kamailio


@contextmanager
def ours(directory: Path, **options: Any) -> Iterator[Ours]:
    """Our server, ended afterwards."""
    made = Ours(directory, OURS, **options)
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def kamailio(directory: Path, *options: str) -> Iterator[Kamailio]:
    """Kamailio, ended afterwards."""
    made = Kamailio(directory, THEIRS, *options)
    try:
        yield made
    finally:
        made.stop()


def users(count: int) -> list[str]:
    """User names."""
    return [f"user{number}" for number in range(count)]


# ---- workloads: each gives the figures of one server -------------------------------------------------------


def registrations(server: Server, directory: Path, effort: Effort) -> Figures:
    """Digest registrations, two transactions each; then what a registered user costs in memory."""
    load = Load(directory, server.address, server.pid)
    start = 2000.0 if isinstance(server, Kamailio) else 1600.0
    load.register(users(100), 500, 500)
    before = memory_kb(server.pid)
    load.register([f"mem{number}" for number in range(effort.users)], start / 2, effort.users)
    figures = {"KB a registered user": (memory_kb(server.pid) - before) / effort.users}
    names = users(effort.users)
    return effort.sustained(lambda rate, calls: load.register(names, rate, calls), start, "registrations") | figures


def proxy(server: Server, directory: Path, effort: Effort) -> Figures:
    """Calls through the record-routing proxy over UDP, the caller not challenged; open calls; many calls."""
    load = Load(directory, server.address, server.pid)
    load.register_callee()
    load.call("call", 50, 100)
    figures = effort.sustained(lambda rate, calls: load.call("call", rate, calls), 448, "proxy calls")
    return figures | open_calls(server, load, effort) | many_calls(server, load, effort)


def proxy_digest(server: Server, directory: Path, effort: Effort) -> Figures:
    """The same, each INVITE challenged."""
    load = Load(directory, server.address, server.pid)
    load.register_callee()
    load.call("call_digest", 50, 100)
    return effort.sustained(lambda rate, calls: load.call("call_digest", rate, calls), 250, "proxy digest calls")


def flood(server: Server, directory: Path, effort: Effort) -> Figures:
    """More than twice the calls that are asked for: what becomes of them (RFC 5390)."""
    load = Load(directory, server.address, server.pid)
    load.register_callee()
    load.call("call", 50, 100)
    count = round(FLOOD * effort.seconds * 2)
    connected, refused, lost = load.flood(FLOOD, count)
    share = 100 / count
    of = f"of {FLOOD:,} calls/s: %"
    return {f"{of} connected": connected * share, f"{of} refused": refused * share, f"{of} lost": lost * share}


def proxy_tls(server: Server, directory: Path, effort: Effort) -> Figures:
    """Calls over TLS on both sides, one connection each."""
    with stunnels(directory, server.address):
        load = Load(directory, server.address, server.pid, tls=True)
        load.register_callee()
        load.call("call", 50, 100)
        return effort.sustained(lambda rate, calls: load.call("call", rate, calls), 224, "proxy TLS calls")


def redirects(server: Server, directory: Path, effort: Effort) -> Figures:
    """INVITE, 302, ACK."""
    load = Load(directory, server.address, server.pid)
    load.register_callee()
    return effort.sustained(load.redirected, 3200.0, "redirects")


def open_calls(server: Server, load: Load, effort: Effort) -> Figures:
    """What a call that has been answered holds, once the transactions of its INVITE are over (in a quick run: with
    them).
    """
    count, settle = effort.open_calls, 1.0 if effort.quick else 40.0
    ramp = count / 200
    if not effort.quick:
        time.sleep(35)
    before = memory_kb(server.pid)
    callee = load.callee()
    caller = load.caller("call", 200, count, "-d", str(round((ramp + settle + 2) * 1000)))
    time.sleep(ramp + settle)
    held = (memory_kb(server.pid) - before) / count
    seen = caller.wait(ramp + settle + 60)
    callee.stop()
    return {"KB an open call": held if not int(seen["FailedCall(C)"]) else float("nan")}


def many_calls(server: Server, load: Load, effort: Effort) -> Figures:
    """Resident memory after a fifth of many calls and after all of them, and how many of them failed."""
    count, parts, failed = effort.many_calls, 5, 0
    sizes = []
    for _ in range(parts):
        failed += load.call("call", 250, count // parts).failed
        sizes.append(memory_kb(server.pid) / 1024)
    return {"MB after a fifth of the calls": sizes[0], "MB after all calls": sizes[-1], "failed of many calls": failed}


def stored_registrations(directory: Path, effort: Effort) -> Figures:
    """Registrations at one peer of five, each stored in the overlay before its 200."""
    names = users(50 if effort.quick else 200)
    lab = Lab.create(directory / "lab", 5, users=names, network=LAB_NETWORK)
    try:
        lab.up()
        lab.provision()
        pid = lab.pid(1)
        assert pid is not None
        load = Load(directory, lab.host(1), pid, domain=lab.overlay_name)
        passwords = {name: lab.user(name).password for name in names}

        def run(rate: float, calls: int) -> Result:
            return load.register(names, rate, calls, passwords=passwords, anew=True)

        run(20, 100)
        return effort.sustained(run, 320, "stored registrations")
    finally:
        lab.down()


# ---- the table ---------------------------------------------------------------------------------------------


def measure(directory: Path, effort: Effort, only: set[str]) -> dict[str, dict[str, float]]:
    """Figures by server, workload by workload, one server after the other."""
    found: dict[str, Figures] = {Ours.name: {}, Kamailio.name: {}}
    callee, _ = certificate(directory, CALLEE)
    cert, key = certificate(directory, OURS)
    tls = {"certificate": str(cert), "key": str(key), "authorities": str(callee), "node": CALLER}
    redirecting = {"settings": {"redirect_domains": [DOMAIN], "redirect_authenticates": False}}
    plans: list[tuple[str, Callable[..., Figures], dict[str, Any], tuple[str, ...]]] = [
        ("registrations", registrations, {}, ()),
        ("proxy", proxy, {"node": CALLER}, ()),
        ("flood", flood, {"node": CALLER}, ()),
        ("digest", proxy_digest, {}, ("WITH_AUTH",)),
        ("tls", proxy_tls, tls, ("WITH_TLS",)),
        ("redirect", redirects, redirecting, ("WITH_REDIRECT",)),
    ]
    for name, workload, options, defines in plans:
        if only and name not in only:
            continue
        with ours(directory, **options) as server:
            found[Ours.name] |= workload(server, directory, effort)
        with kamailio(directory, *defines) as other:
            found[Kamailio.name] |= workload(other, directory, effort)
    if not only or "stored" in only:
        found[Ours.name] |= stored_registrations(directory, effort)
    return found


def show(found: dict[str, Figures]) -> None:
    """Ours, theirs, the ratio, and what is asked of ours."""
    table = Table(title=f"SIP, one core each, domain {DOMAIN}")
    for column in ("", Ours.name, Kamailio.name, "ratio", "target"):
        table.add_column(column, justify="right" if column else "left")
    for name, mine in found[Ours.name].items():
        other = found[Kamailio.name].get(name)
        ratio = f"{mine / other:.2f}" if other and other > 0 else ""
        target, way = TARGETS.get(name, (None, ""))
        wanted = ""
        if target is not None:
            met = mine >= target if way == "least" else mine <= target
            wanted = f"{target:,.0f} {'met' if met else 'MISSED'}"
        table.add_row(name, f"{mine:,.1f}", f"{other:,.1f}" if other is not None else "", ratio, wanted)
    Console(width=110).print(table)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description="SIP figures: ours and Kamailio's")
    parser.add_argument("--quick", action="store_true", help="short runs: for a look, and for CI")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORKLOAD")
    parser.add_argument("--json", default="bench-sip.json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bs") as directory:
        found = measure(Path(directory), Effort(options.quick), set(options.only))
    show(found)
    Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

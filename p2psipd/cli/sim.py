"""`p2psip sim`: a large overlay in virtual time, with churn, look-ups and stores.

    p2psip sim --peers 1000 --churn 60m --minutes 2 --seed 1
    p2psip sim --peers 200 --cold --json

The peers are the real protocol cores; only the network, the clocks and (with --sign null) the signatures are
simulated. `--json` of one seed is the same on every run.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from p2psipd.cli.console import emit, json_option

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


def parse_duration(context: click.Context | None, option: click.Parameter | None, text: str | None) -> float | None:
    """`90`, `90s`, `60m`, `1.5h`, `200ms` as seconds; None stays None; click.BadParameter otherwise."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if found is None or not float(found[1]):
        raise click.BadParameter(f"expected a duration such as 90s, 60m or 1.5h, not {text!r}")
    return float(found[1]) * _UNITS[found[2] or ""]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result as (what, figures) for people."""
    peers, copies, traffic = result["peers"], result["copies"], result["traffic"]
    table = [
        ("latency model", result["latency_model"]),
        (
            "peers at the end",
            f"{peers['at_end']} ({peers['members']} members; {peers['died']} died, {peers['born']} born)",
        ),
    ]
    if peers["join_seconds"]:
        joins = peers["join_seconds"]
        table.append(("joining, ms p50 / p99", f"{_ms(joins['p50'])} / {_ms(joins['p99'])}"))
    for name, key in (("look-ups", "lookups"), ("stores", "stores")):
        part = result[key]
        seconds = part["seconds"] or {"p50": None, "p99": None, "max": None}
        others = ", ".join(f"{count} {what}" for what, count in part["outcomes"].items() if what != "ok")
        table.append(
            (f"{name} that succeeded", f"{_percent(part['success'])} of {part['asked']}" + (others and f" ({others})"))
        )
        table.append(
            (f"{name}, ms p50 / p99 / max", " / ".join(_ms(seconds[which]) for which in ("p50", "p99", "max")))
        )
        if "hops" in part:
            counts = ", ".join(f"{hops}: {count}" for hops, count in part["hops"]["counts"].items())
            table.append((f"{name}, hops", f"{part['hops']['mean']:.2f} on average ({counts})"))
    counts = ", ".join(f"{number} with {held}" for held, number in copies["counts"].items())
    mean = "-" if copies["mean"] is None else f"{copies['mean']:.2f}"
    table += [
        ("messages a node and second", f"{traffic['messages_per_node_second']:.2f}"),
        ("octets a node and second", f"{traffic['octets_per_node_second']:.0f}"),
        ("copies a record", f"{mean} on average ({counts})"),
        ("records lost", f"{copies['lost']} of {copies['records']}; chance expects {copies['expected_lost']:.2f}"),
        ("rules broken", ", ".join(f"{count} {why}" for why, count in result["misbehaved"].items()) or "none"),
        ("virtual time, events", f"{result['virtual_seconds']:.0f} s, {result['events']:,}"),
    ]
    return table


def _render(result: Mapping[str, Any], cpu: float) -> str:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    parameters = result["parameters"]
    start = "joined from nothing" if parameters["cold"] else "converged"
    churn = "no churn" if parameters["churn"] is None else f"sessions of {parameters['churn'] / 60:g} min"
    if parameters["strike"]:
        churn += f", {parameters['strike']:.0%} {'silent' if parameters['silent'] else 'killed'} at once"
    signed = f"{parameters['sign']} signatures, seed {parameters['seed']}"
    table = Table(title=f"{parameters['peers']} peers, {start}, {churn}, {signed}")
    table.add_column("what")
    table.add_column("measured")
    for what, figures in rows(result):
        table.add_row(what, figures)
    table.add_row("CPU of this run", f"{cpu:.1f} s")
    console = Console(width=None if sys.stdout.isatty() else 118)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


@click.command()
@click.option("--peers", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="How many.")
@click.option(
    "--churn",
    metavar="DURATION",
    callback=parse_duration,
    help="Mean session of a peer, such as 60m; default: nobody dies.",
)
@click.option("--silent", default=0.0, type=click.FloatRange(0, 1), help="Share of deaths that send no reset.")
@click.option("--strike", default=0.0, type=click.FloatRange(0, 0.9), help="Share of peers that die together at once.")
@click.option("--minutes", default=2.0, show_default=True, type=click.FloatRange(0.01), help="Virtual time measured.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same run.")
@click.option("--sign", default="null", show_default=True, type=click.Choice(["null", "real"]), help="Signatures.")
@click.option("--cold", is_flag=True, help="Let all join, one by one, through one bootstrap peer.")
@click.option("--joins", default=10.0, show_default=True, help="With --cold: joins a second.")
@click.option("--records", default=500, show_default=True, type=click.IntRange(0), help="Records stored.")
@click.option("--gets", default=20.0, show_default=True, help="Look-ups a second in the whole overlay.")
@click.option("--puts", default=2.0, show_default=True, help="Stores a second in the whole overlay.")
@click.option("--loss", default=0.0, type=click.FloatRange(0, 0.5), help="Probability that a segment is lost.")
@click.option("--latency", default="king", show_default=True, type=click.Choice(["king", "lan"]), help="Model.")
@click.option("--links", type=click.IntRange(16), help="Links that a peer keeps open; default: the node's own.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def sim(
    peers: int,
    churn: float | None,
    silent: float,
    strike: float,
    minutes: float,
    seed: int,
    sign: str,
    cold: bool,
    joins: float,
    records: int,
    gets: float,
    puts: float,
    loss: float,
    latency: str,
    links: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Simulate a large overlay of real peer cores in virtual time, and print what came of it.

    Look-ups succeed if they give the newest version that was acknowledged before they began.
    """
    from p2psipd.proto.reload.member_list import KademliaParameters
    from p2psipd.sim.scenario import ScenarioParameters, simulate

    kademlia = KademliaParameters() if links is None else KademliaParameters(max_links=links)
    parameters = ScenarioParameters(
        peers=peers,
        churn=churn,
        seconds=minutes * 60,
        seed=seed,
        sign=sign,
        cold=cold,
        joins=joins,
        records=records,
        gets=gets,
        puts=puts,
        silent=silent,
        strike=strike,
        loss=loss,
        latency=latency,
        kademlia=kademlia,
    )
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        if terminal and not quiet:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    if not quiet and not terminal:
        click.echo(f"simulating {peers} peers ...", err=True)
    started = time.process_time()
    result = simulate(parameters, progress)
    if terminal and not quiet:
        click.echo("\r\x1b[K", nl=False, err=True)
    emit(dict(result), as_json, lambda value: _render(value, time.process_time() - started))

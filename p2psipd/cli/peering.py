"""`p2psip peering`: what a domain publishes for its peers and whether it works, where a call would go, who was refused.

`explain` and `refusals` ask a running edge; `publish` needs nothing, and `check` the DNS and TLS of the domain alone.
"""

from __future__ import annotations

import random
import time
from typing import Any

import click

from p2psipd.cli.console import EXIT_NEGATIVE, ConfigFault, emit, json_option, table
from p2psipd.proto.peering.publishing import PublishedServer, ZoneRecord, domain_records, number_records, zone_text


@click.group()
def peering() -> None:
    """Direct peering with other domains: what to publish, and whether a domain can be reached."""


# ---- publish -----------------------------------------------------------------------------------------------


def _server(text: str) -> PublishedServer:
    """HOST[:PORT][=ADDRESS,...] with the port 5061 when left out."""
    from ipaddress import ip_address

    place, _, listed = text.partition("=")
    host, _, port = place.partition(":")
    try:
        addresses = tuple(str(ip_address(address)) for address in listed.split(",") if address)
        number = int(port or 5061)
        if not host or not 0 < number < 65536:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text!r} is no HOST[:PORT][=ADDRESS,...]") from None
    return PublishedServer(host.lower().rstrip("."), number, addresses)


@peering.command()
@click.argument("domain")
@click.option(
    "-s",
    "--server",
    "servers",
    multiple=True,
    required=True,
    metavar="HOST[:PORT][=ADDR,..]",
    help="A host that listens for peers, with its addresses. The first gets the best priority; may be repeated.",
)
@click.option(
    "-n",
    "--number",
    "numbers",
    multiple=True,
    metavar="RANGE",
    help="Numbers of the domain: +digits, +digits* for all that begin so, or +first-+last. May be repeated.",
)
@click.option("--uri", metavar="URI", help="What a number leads to.  [default: sip:{number}@DOMAIN;user=phone]")
@click.option("--root", default="e164.arpa", show_default=True, help="The ENUM tree.")
@click.option("--carrier", is_flag=True, help="Records of the carrier (RFC 5527) instead of the user.")
@click.option("--label", default="i", show_default=True, help="The label of the carriers' branch.")
@json_option
def publish(
    domain: str,
    servers: tuple[str, ...],
    numbers: tuple[str, ...],
    uri: str | None,
    root: str,
    carrier: bool,
    label: str,
    as_json: bool,
) -> None:
    """Print the records that DOMAIN should publish, as lines of a zone file."""
    from p2psipd.proto.peering.enum import CarrierRoot

    domain = domain.lower().rstrip(".")
    hosts = [_server(text)._replace(priority=10 * place) for place, text in enumerate(servers, 1)]
    tree = CarrierRoot(root, label) if carrier else None
    records: list[ZoneRecord] = []
    try:
        records += domain_records(domain, hosts)
        for text in numbers:
            records += number_records(text, uri or f"sip:{{number}}@{domain};user=phone", root=root, carrier=tree)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    lines = zone_text(records).splitlines()
    emit(lines, as_json, "\n".join)


# ---- check -------------------------------------------------------------------------------------------------


@peering.command()
@click.argument("domain")
@click.option("--dns", "servers", multiple=True, metavar="ADDR[:PORT]", help="The name servers to ask.")
@click.option("--policy", metavar="FILE", help="The node's policy file: its certificates, authorities and pins.")
@click.option("--from", "from_domain", metavar="DOMAIN", help="In whose name, of the domains in the policy file.")
@click.option("--ca", "authorities", default="", metavar="FILE", help="Root certificates instead of the system's.")
@click.option("--certificate", default="", metavar="FILE", help="The certificate to show (PEM chain).")
@click.option("--key", default="", metavar="FILE", help="Its key.")
@json_option
def check(
    domain: str,
    servers: tuple[str, ...],
    policy: str | None,
    from_domain: str | None,
    authorities: str,
    certificate: str,
    key: str,
    as_json: bool,
) -> None:
    """Walk the whole way to DOMAIN, through DNS and TLS, and say at each step what is there and what is missing."""
    if policy and (authorities or certificate or key):
        raise click.UsageError("--policy names authorities and certificates already")
    if bool(certificate) != bool(key):
        raise click.UsageError("--certificate and --key belong together")
    findings = _walk(
        domain.lower().rstrip("."), _name_servers(servers), _towards(policy, from_domain, authorities, certificate, key)
    )
    emit(findings, as_json, _shown)
    if findings[-1]["verdict"] == "fault":
        raise SystemExit(EXIT_NEGATIVE)


def _name_servers(texts: tuple[str, ...]) -> list[tuple[str, int]]:
    from p2psipd.config import ConfigError
    from p2psipd.config.model import DnsSection
    from p2psipd.config.tables import read_table

    try:
        return [(server.host, server.port) for server in read_table(DnsSection, {"servers": texts}).servers]
    except ConfigError:
        raise click.BadParameter("expected numeric addresses such as 192.0.2.53", param_hint="--dns") from None


def _towards(policy: str | None, from_domain: str | None, authorities: str, certificate: str, key: str) -> Any:
    """What makes the TLS side towards a domain."""
    from p2psipd.net.tls import CertificateFileError

    if policy is None:
        from p2psipd.net.domain_tls import DomainTls

        try:
            return DomainTls(authorities, certificate, key).towards
        except CertificateFileError as error:
            raise click.UsageError(str(error)) from None
    from p2psipd.config import ConfigError
    from p2psipd.config.peering import read_peering
    from p2psipd.net.peer_tls import NoOwnCertificate, PeerTls

    try:
        read = read_peering(policy, time.time())
        tls = PeerTls(read.policy, read.own, time.time)
    except (ConfigError, NoOwnCertificate) as error:
        raise ConfigFault(str(error)) from None
    sender = from_domain or read.own.domains[0]
    return lambda domain: tls.towards(domain, sender)


def _walk(domain: str, servers: list[tuple[str, int]], towards: Any) -> list[dict[str, str]]:
    """The findings, on a reactor of this process."""
    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred

    from p2psipd.net.dns import client_for
    from p2psipd.net.tls_probe import probe_tls
    from p2psipd.proto.peering.checking import check_domain

    reactor: Any = installed
    # A step of the wall clock must not disturb timers.
    reactor.seconds = time.monotonic
    client = client_for(reactor, servers, 5.0, (), random.SystemRandom())
    findings: list[dict[str, str]] = []

    async def main() -> None:
        try:
            async for found in check_domain(domain, client.ask, lambda hop: probe_tls(reactor, towards, hop)):
                findings.append({"verdict": found.verdict.value, "step": found.step, "text": found.text})
        except Exception as error:
            findings.append({"verdict": "fault", "step": domain, "text": f"{type(error).__name__}: {error}"})
        finally:
            await client.close()
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
    reactor.run()
    return findings


def _shown(findings: list[dict[str, str]]) -> str:
    return "\n".join([f"{found['verdict']:<8} {found['step']}: {found['text']}" for found in findings])


# ---- what an edge says -------------------------------------------------------------------------------------


@peering.command()
@click.argument("target")
@click.option("--from", "sender", required=True, metavar="AOR", help="Who calls: sip:alice@example.org.")
@json_option
def explain(target: str, sender: str, as_json: bool) -> None:
    """Where a call to TARGET (a URI or what is dialled) would go and why; nothing is sent.

    The exit code is 1 where it would get through to nobody.
    """
    from p2psipd.cli.node import ask

    given: dict[str, Any] = {"target": target, "from": sender}
    steps = ask("/peering/explain", **given)
    emit(steps, as_json, _explained)
    if not steps or steps[-1]["verdict"] == "no":
        click.get_current_context().exit(EXIT_NEGATIVE)


def _explained(steps: list[dict[str, str]]) -> str:
    return "\n".join([f"{step['verdict']:<5} {step['step']}: {step['result']}" for step in steps])


@peering.command()
@json_option
def refusals(as_json: bool) -> None:
    """What other domains were refused, counted by the rule that refused it, and the last of them."""
    from p2psipd.cli.node import ask

    emit(ask("/peering/refusals"), as_json, _refused)


def _refused(answer: dict[str, Any]) -> str:
    counts = [(count, name) for name, count in answer["counts"].items()]
    lines = [f"{answer['admitted']} admitted", *([table(counts)] if counts else ["none refused"])]
    for one in answer["last"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"]))
        to = f" to {one['to']}" if one["to"] else ""
        outcome = f"{to}: {one['status']} {one['reason']}" if one["status"] else f"{to}: handshake refused"
        lines.append(
            f"{at}  {one['method']} from {one['from']}{outcome}\n"
            f"    step {one['step']}, domain {one['domain'] or '?'}, authority {one['authority'] or '?'}: {one['why']}"
        )
    return "\n".join(lines)

"""The Prometheus metrics of a node, defined once.

Nothing here runs between scrapes: services and the driver count in plain dictionaries, and
:class:`NodeCollector` reads them when ``/metrics`` is asked.  prometheus_client is imported with this
module, so ``app.py`` imports this module when the first scrape comes.  No Node-ID and no URI is ever a
label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class Snapshot(NamedTuple):
    """What is counted at one instant.  Counters are totals since the start, by label."""

    build: Mapping[str, str]
    overlay: str
    roles: tuple[str, ...]
    started_at: float
    ready: bool
    links: Mapping[str, int]
    handshaking: int
    connection_results: Mapping[str, int]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    faults: int
    rejected: Mapping[str, int]
    peer_events: Mapping[str, int]
    members: int
    records: int
    stored_bytes: int
    certificate_expires_at: float
    registrations: int | None
    calls: int | None
    sip_events: Mapping[str, int]


class NodeCollector(Collector):
    """Turns a snapshot into Prometheus' families."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All metrics of this instant."""
        now = self._snapshot()
        yield InfoMetricFamily("p2psip_build", "Versions.", value=dict(now.build))
        yield InfoMetricFamily(
            "p2psip_node", "What this node is.", value={"overlay": now.overlay, "roles": ",".join(now.roles)}
        )
        yield GaugeMetricFamily("p2psip_up_since_seconds", "When the node started, Unix time.", now.started_at)
        yield GaugeMetricFamily("p2psip_ready", "1 when the node is a member of the overlay.", int(now.ready))
        yield _gauge("p2psip_connections", "Open overlay links.", "direction", now.links)
        yield GaugeMetricFamily("p2psip_handshakes", "TLS handshakes under way.", now.handshaking)
        yield _counter("p2psip_connection_attempts", "Connections by result.", "result", now.connection_results)
        yield _counter("p2psip_core_inputs", "Inputs of the peer core.", "input", now.inputs)
        yield _counter("p2psip_core_outputs", "Outputs of the peer core.", "output", now.outputs)
        yield CounterMetricFamily("p2psip_core_faults", "Errors in the peer core.", now.faults)
        yield _counter("p2psip_messages_rejected", "Rules that other nodes broke.", "reason", now.rejected)
        yield _counter("p2psip_peer_events", "What the peer core counts.", "event", now.peer_events)
        yield GaugeMetricFamily("p2psip_routing_table_peers", "Members of the overlay known here.", now.members)
        yield GaugeMetricFamily("p2psip_stored_records", "Values held for the overlay.", now.records)
        yield GaugeMetricFamily("p2psip_stored_bytes", "Memory that they take.", now.stored_bytes)
        yield _gauge(
            "p2psip_certificate_expiry_timestamp_seconds",
            "When certificates expire, Unix time.",
            "which",
            {"node": now.certificate_expires_at},
        )
        if now.registrations is not None:
            yield GaugeMetricFamily("p2psip_registrations", "Phones registered here.", now.registrations)
        if now.calls is not None:
            yield GaugeMetricFamily("p2psip_sip_dialogs", "Calls carried by this node.", now.calls)
        yield _counter("p2psip_sip_events", "What the SIP side counts.", "event", now.sip_events)


def _counter(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def make_registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """A registry of one node and its process."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(snapshot))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> str:
    """Prometheus' text format."""
    return generate_latest(registry).decode()

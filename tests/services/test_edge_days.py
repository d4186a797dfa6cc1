"""What an edge does as the days pass, and what a reload of its policy changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher

from p2psipd.net.peer_tls import PeerTls
from p2psipd.net.sip_transports import Limits
from p2psipd.proto.dns import NO_RECORD, Answer
from p2psipd.proto.identity.policy import TrustAnchors
from p2psipd.proto.peering.peers import PeeringPolicy, PeerSettings
from p2psipd.proto.sip.locating import Unreachable
from p2psipd.proto.sip.next_hops import Hop
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.proto.sip.uri import Uri
from p2psipd.services.peering.connections import PeerConnections
from p2psipd.services.peering.service import PeeringService
from tests.proto.identity.domain_certificates import DAY, WALL, dns
from tests.proto.peering.peering_world import run
from tests.services.sip_world import MemoryFlow
from tests.test_config_peering import CA, FILE, OTHER_CA, read


class Days:
    """One edge of a.test, its clock, and the warnings in its log."""

    def __init__(self, directory: Path) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.warnings: list[str] = []
        self.service = PeeringService(
            self.reactor,
            read(directory),
            domains=("a.test",),
            listen=(),
            limits=Limits(),
            ask=self.ask,
            addresses=self.addresses,
            secrets=OwnSecret(b"secret"),
            node_id=bytes(16),
            random=None,
            wall=lambda: WALL + self.reactor.seconds(),
            find_home=self.find,
            owner=self.owner,
            announce=lambda: None,
        )

    async def ask(self, name: str, kind: str) -> Answer:
        return NO_RECORD

    async def addresses(self, host: str) -> list[str]:
        return []

    async def find(self, query: Any) -> None:
        return None

    async def owner(self, uri: Uri) -> None:
        return None

    def heard(self, event: Any) -> None:
        if "warning" in event and event["log_level"].name == "warn":
            self.warnings.append(event["warning"])


@pytest.fixture
def days(tmp_path: Path) -> Iterator[Days]:
    """An edge that is started."""
    made = Days(tmp_path)
    globalLogPublisher.addObserver(made.heard)
    made.service.startService()
    yield made
    made.service.stopService()
    globalLogPublisher.removeObserver(made.heard)
    assert not made.reactor.getDelayedCalls()


def test_peering_048_every_day(days: Days) -> None:
    """Of a certificate the log says each day that it runs out, from 14 days before, and then that it has."""
    end = days.service.peering().own.certificates[0].certificate.not_after
    left = int((end - WALL) / DAY)
    assert left > 15 and not any("expire" in warning for warning in days.warnings)
    days.reactor.pump([DAY] * (left - 15))
    before = len([each for each in days.warnings if "certificate ec" in each])
    days.reactor.pump([DAY] * 10)
    during = [each for each in days.warnings if "certificate ec" in each]
    assert before <= 1 and 9 <= len(during) - before <= 10 and "expires on" in during[-1]
    days.reactor.pump([DAY] * 10)
    assert "expired on" in [each for each in days.warnings if "certificate ec" in each][-1]


def test_a_reload_reaches_the_fetcher(days: Days, tmp_path: Path) -> None:
    """Certificates are fetched by the authorities and networks of the policy in force, of single peers, too."""
    fetcher = days.service._fetcher
    assert set(days.service.peering().policy.roots) == {CA.der, OTHER_CA.der}
    assert not fetcher._endpoints.permits("10.0.0.1")
    text = FILE.replace("[identity]\n", '[identity]\nprivate_networks = ["10.0.0.0/8"]\n')
    text = text.replace('authorities = ["other.pem"]\n', "").replace(
        'san_match = "any"\n', 'san_match = "any"\nauthorities = ["other.pem"]\n'
    )
    trust = fetcher._endpoints.trust
    days.service.reload(read(tmp_path, text))
    assert fetcher._endpoints.permits("10.0.0.1") and fetcher._endpoints.trust is not trust
    assert set(days.service.peering().policy.roots) == {CA.der, OTHER_CA.der}


def test_peering_072_connections_that_we_opened(tmp_path: Path) -> None:
    """An open connection carries nothing more once its certificate is revoked, expired or no longer believed."""
    policy = read(tmp_path)
    wall = [WALL]
    connections = PeerConnections(
        MemoryReactorClock(), tls := PeerTls(policy.policy, policy.own, lambda: wall[0]), Limits()
    )
    hop = Hop("TLS", "192.0.2.1", 5061, "c.test")
    peer = policy.policy.server("c.test", [CA.issue(dns("c.test"))], WALL)
    flow: Any = MemoryFlow("TLS", ("192.0.2.1", 5061), ("10.0.0.9", 1), 1, lambda flow, data: None)

    def reused() -> bool:
        connections._peers[flow] = peer
        connections._table.add(flow, flow.remote, policy.own.certificates[0], peer)
        try:
            return run(connections.reach(hop, "a.test")) is flow
        except Unreachable:
            return False

    assert reused()
    tls.update(PeeringPolicy(PeerSettings(anchors=TrustAnchors([OTHER_CA.der]))), policy.own)
    assert not reused()
    tls.update(policy.policy, policy.own)
    assert reused()
    wall[0] += 31 * DAY
    assert not reused()


def test_what_an_edge_counts(days: Days) -> None:
    """Connections, fetched certificates and remembered requests are among its figures."""
    days.service._fetcher.counters["fetched"] += 1
    figures = days.service.statistics()
    assert {"connections_open", "certificates_fetched", "replays_remembered"} <= figures.keys()

"""The peering benchmark works: its node, Kamailio beside it, both loads, each for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import peering
from bench.peering_world import Identities, Kamailio, Node
from p2psipd.proto.peering.peers import IdentityKind

pytestmark = pytest.mark.system


@pytest.mark.foreign("knotd", "kamailio")
def test_every_request_is_verified_and_every_call_is_signed(tmp_path: Path) -> None:
    """Both servers answer 200 to requests of both kinds, and refuse none; calls get through, cold and warm."""
    with peering.node(tmp_path, 6) as ours:
        identities = Identities(tmp_path, ours.lab.authority)
        try:
            calls = peering.outbound(identities, ours, 6)
            assert 0 < calls["warm call ms"] <= calls["cold call ms"]
            with peering.kamailio(tmp_path, identities, keeps=True) as theirs:
                servers: tuple[Node | Kamailio, ...] = (ours, theirs)
                for server in servers:
                    for kind in IdentityKind:
                        assert peering.inbound(identities, server, kind, 40)[f"{kind.value} requests/s"] > 0
        finally:
            identities.close()


def test_the_better_turn_counts_and_targets_are_judged() -> None:
    """Rates by the highest, times by the lowest; a target says whether it is met."""
    turns = {"x requests/s": 10.0, "x CPU us": 5.0}, {"x requests/s": 8.0, "x CPU us": 4.0}
    assert peering.better(*turns) == {"x requests/s": 10.0, "x CPU us": 4.0}
    assert peering.verdict("x requests/s", 30.0, 10.0).endswith("met")
    assert peering.verdict("x requests/s", 29.0, 10.0).endswith("MISSED")
    assert peering.verdict("cold call ms", 21.0, None).endswith("MISSED")

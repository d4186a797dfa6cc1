"""The end of a node's life: what takes how long, on a virtual clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from p2psipd.logs import make_log
from p2psipd.node import NodeService
from p2psipd.services.overlay_factory import OverlayNode


class _Overlay(Service):
    """An overlay that is joined, and left at once."""

    is_joined = True

    def __init__(self) -> None:
        self.driver = SimpleNamespace(trace=False)
        self.leave_seconds: list[float] = []

    async def leave(self, seconds: float) -> bool:
        """As OverlayService.leave."""
        self.leave_seconds.append(seconds)
        return True


class _Echo:
    """A service whose entry in the overlay can't be taken back: nobody answers."""

    async def withdraw(self) -> None:
        """As EchoService.withdraw."""
        await Deferred()


@pytest.mark.parametrize("hurry", [False, True])
def test_drain_has_one_limit_for_all(hurry: bool, tmp_path: Any) -> None:
    """Where nobody answers, what the overlay says of our services takes half of drain_seconds, and leaving gets the
    rest; a second signal ends the waiting at once."""
    clock, overlay = Clock(), _Overlay()
    checked = SimpleNamespace(
        node=SimpleNamespace(
            roles=["peer"], control=str(tmp_path / "c"), metrics=None, log_level="info", drain_seconds=10.0
        )
    )
    node = NodeService(
        clock, cast(Any, checked), cast(OverlayNode, SimpleNamespace(service=overlay, core=None)), None, None,
        make_log("-", "text", "error"), "p2psipd.toml",
    )  # fmt: skip
    node._echo = cast(Any, _Echo())
    ended: list[object] = []
    node.stopService().addCallback(ended.append)
    if hurry:
        node.hurry()
    clock.advance(4.9)
    assert bool(ended) is hurry
    clock.advance(0.2)
    assert ended
    assert overlay.leave_seconds == ([] if hurry else [pytest.approx(5.0, abs=0.2)])

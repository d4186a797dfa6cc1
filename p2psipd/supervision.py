"""What systemd is told: ready, how it goes, stopping, and that the reactor still turns (sd_notify(3)).

Without ``NOTIFY_SOCKET`` in the environment nothing happens.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from typing import cast

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime


def notify(text: str) -> None:
    """Send one message to systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(text.encode(), address)
    except OSError:
        # The supervisor is gone or does not read; the node's work does not depend on it.
        return


def settle_collector() -> None:
    """Keep the garbage collector from walking what lives as long as the process, and from running at every turn.

    Modules and services are set aside for good; cycles that requests leave behind are still found, in larger
    groups.  Without this its pauses are the slowest per cent of answers.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class SupervisionService(Service):
    """Says READY when ``ready`` first gives True, then the status line, and feeds the watchdog.

    ``WATCHDOG=1`` is sent from the reactor itself, so a reactor that no longer turns is seen and restarted.
    """

    name = "supervision"

    def __init__(self, reactor: object, ready: Callable[[], bool], status: Callable[[], str]) -> None:
        self._clock = cast(IReactorTime, reactor)
        self._ready = ready
        self._status = status
        self._is_ready = False
        self._call: IDelayedCall | None = None
        watchdog = int(os.environ.get("WATCHDOG_USEC", "0") or "0") / 1_000_000
        self._period = min(5.0, watchdog / 3) if watchdog else 5.0
        self._watchdog = bool(watchdog)

    def startService(self) -> None:
        """Begin."""
        Service.startService(self)
        if os.environ.get("NOTIFY_SOCKET"):
            self._turn()

    def stopService(self) -> None:
        """Say that the node is stopping."""
        Service.stopService(self)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        notify("STOPPING=1")

    def _turn(self) -> None:
        lines = [f"STATUS={self._status()}"]
        if not self._is_ready and self._ready():
            self._is_ready = True
            lines.insert(0, "READY=1")
        if self._watchdog:
            lines.append("WATCHDOG=1")
        notify("\n".join(lines))
        # Until it is ready a second is the longest that anybody should wait for the word.
        self._call = self._clock.callLater(self._period if self._is_ready else min(0.5, self._period), self._turn)

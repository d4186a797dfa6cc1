"""The door of the phones' side: who is not let in, and who is sent away for a while.

What a source is held to is :mod:`p2psipd.proto.sip.limits`; here are the events that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.logger import Logger

from p2psipd.proto.sip.limits import (
    CHALLENGED,
    MALFORMED,
    SCANNER,
    WRONG_PASSWORD,
    Blame,
    LimitSettings,
    Rates,
    Sources,
)
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.parameters import Remembered

_OFFENCES: Final = {"challenged": CHALLENGED, "digest_wrong": WRONG_PASSWORD}
"""Why a request was refused (Refused.why), and what that is held to be."""


class Door:
    """Asked before a source's octets are read, and told what became of them.

    `scanners` are beginnings of User-Agent values in lower case whose requests get no answer at all; `now` is the
    reactor's clock.
    """

    log = Logger()

    def __init__(
        self, settings: LimitSettings, scanners: Sequence[str], now: Callable[[], float], counters: Counter[str]
    ) -> None:
        self._sources = Sources(settings)
        self._users = Rates(settings.requests_per_user)
        beginnings = tuple(scanners)
        self._scans = Remembered[str, bool](lambda agent: agent.lower().startswith(beginnings), 1024)
        self._now = now
        self._counters = counters

    def admit(self, host: str) -> bool:
        """Whether a datagram or connection from `host` is read."""
        return self._sources.admit(host, self._now())

    def is_scanner(self, flow: Any, request: Request) -> bool:
        """Whether a request is a scanner's, which gets no answer: any would tell that there is something here."""
        agent = request.get("user-agent")
        if not agent or not self._scans[agent]:
            return False
        self._counters["scanner"] += 1
        self._blame(flow, SCANNER)
        return True

    def malformed(self, flow: Any) -> None:
        """What came was no SIP message."""
        self._blame(flow, MALFORMED)

    def refused(self, flow: Any, why: str) -> None:
        """A request was refused; `why` as in Refused."""
        offence = _OFFENCES.get(why)
        if offence is not None:
            self._blame(flow, offence)

    def proved(self, flow: Any) -> None:
        """The sender has proved to be a user."""
        self._sources.proved(flow.remote[0], self._now())

    def knows(self, flow: Any) -> bool:
        """Whether a request comes from where somebody has lately proved to be a user, or from a node or domain."""
        return flow.peer is not None or self._sources.knows(flow.remote[0], self._now())

    def may_send(self, user: str) -> bool:
        """Whether a user who has proved itself sends no more requests than one may."""
        return self._users.take(user, self._now())

    def _blame(self, flow: Any, offence: Blame) -> None:
        if flow.peer is None and self._sources.blame(flow.remote[0], offence, self._now()):
            self.log.warn(
                "{host} is shut out for scanning, malformed messages, wrong passwords or unanswered challenges"
                " ([limits] points and shut_seconds say when and for how long)",
                host=flow.remote[0],
            )

    def statistics(self) -> dict[str, int]:
        """Counters, and how many sources are shut out now."""
        return {**self._sources.counters, "sources_shut": len(self._sources.shut(self._now()))}

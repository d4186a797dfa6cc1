"""Which part of new calls a node takes: all, fewer where there is too much to do, none when it is about to end."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.transaction import TransactionLayer
from p2psipd.services.sip.admission import Admission
from p2psipd.services.sip.call_book import CallBook
from p2psipd.services.sip.load import Load

_LOOK_SECONDS: Final = 0.5
_IGNORED_FROM: Final = 0.5
"""From this part on everything new from strangers is refused, and no answer is wasted on it any more."""
_MOST_PUT_OFF: Final = 0.875
"""Of the REGISTERs without credentials, so many at most are left to their retransmission."""


class NewCalls:
    """Tells the transaction `layer` what part of new calls it is to refuse, and the `transports` when calls of
    strangers are not even to be read.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        layer: TransactionLayer,
        calls: CallBook,
        transports: Any,
        admission: Admission,
        counters: Counter[str],
    ) -> None:
        self._reactor = reactor
        self._layer = layer
        self._calls = calls
        self._transports = transports
        self._admission = admission
        self._counters = counters
        self._load = Load(reactor, lambda: layer.open_count, layer.most_open, self.refuse, transports.queued)
        self._ended: Deferred[None] | None = None
        self._part = 0.0
        self._put_off = 0.0
        self.start = self._load.start
        self.stop = self._load.stop

    @property
    def draining(self) -> bool:
        """Whether the node is about to end."""
        return self._ended is not None

    def refuse(self, part: float) -> None:
        """This part of new calls (0 to 1) is refused from now on, because there is too much to do."""
        if self._layer.shedding == 0.0:
            self._counters["overloads"] += 1
            self.log.warn(
                "overload: new calls are refused; {lag:.2f} s late, {busy:.0%} busy, unread datagrams {queued:.0%} of"
                " what is too much",
                lag=self._load.lag,
                busy=self._load.busy,
                queued=self._load.queued,
            )
        elif part == 0.0:
            self.log.info("the overload is over")
        self._part = part
        self._layer.shedding = 1.0 if self.draining else part
        self._transports.ignores = self._is_ignored if part > _IGNORED_FROM else None

    def _is_ignored(self, flow: Flow, data: bytes) -> bool:
        """Whether a datagram is a call of a stranger; or one of the REGISTERs without credentials, of which part is
        left to its retransmission: who has been challenged comes before who has not, else nobody gets to the end when
        all phones come back at once.
        """
        if data.startswith(b"REGISTER "):
            return b"uthorization" not in data and self._is_put_off(self._admission.knows(flow))
        return self._admission.is_call_of_stranger(flow, data)

    def _is_put_off(self, known: bool) -> bool:
        """Whether one more REGISTER is left to its retransmission, which costs least: the same parts as of new calls,
        except that some always pass.
        """
        self._put_off += min(_MOST_PUT_OFF, 2.0 * self._part - (1.0 if known else 0.0))
        if self._put_off < 1.0:
            return False
        self._put_off -= 1.0
        return True

    def drain(self, seconds: float) -> Deferred[None]:
        """See SipService.drain."""
        if self._ended is None:
            self._ended = Deferred()
            self._layer.shedding = 1.0
            self.log.info("draining: {count} calls, at most {seconds} s", count=len(self._calls), seconds=seconds)
            self._ended.addTimeout(seconds, self._reactor).addErrback(_gave_up)
            self._look_for_end()
        return self._ended

    def _look_for_end(self) -> None:
        if self._ended is None or self._ended.called:
            return
        if len(self._calls) or self._layer.open_count:
            self._reactor.callLater(_LOOK_SECONDS, self._look_for_end)
        else:
            self._ended.callback(None)


def _gave_up(failure: Failure) -> None:
    """The time for running calls is over, or somebody is in a hurry."""
    failure.trap(TimeoutError, CancelledError)

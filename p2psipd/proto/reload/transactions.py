"""End-to-end reliability (RFC 6940 section 6.2.1): requests under way, and answers kept for their repeats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from p2psipd.proto.reload.ids import NodeId, ResourceId

if TYPE_CHECKING:
    from p2psipd.proto.reload.messages import DataModel
    from p2psipd.proto.reload.topology import OnAnswer
    from p2psipd.proto.reload.wire import Destination

MAX_SENDS = 5
REQUEST_LIFETIME = 15.0
_CACHED_OCTETS = 16_000_000

Key = int | tuple[int, NodeId]


class Outstanding:
    """A request that waits for its answer under `key`: its transaction id, or that and the node where several nodes
    were sent the same.

    The answer must come from `node`, if that is set, or from a plausible holder of `resource`
    (section 6.3.4).  `via` pins the first hop.
    """

    __slots__ = (
        "answer_code",
        "key",
        "kinds",
        "message",
        "next_at",
        "node",
        "on_answer",
        "resource",
        "sends",
        "sent_at",
        "started_at",
        "target",
        "via",
    )

    def __init__(
        self,
        key: Key,
        answer_code: int,
        message: bytes,
        target: Destination,
        node: NodeId | None,
        resource: ResourceId | None,
        via: NodeId | None,
        kinds: Mapping[int, DataModel],
        on_answer: OnAnswer,
        now: float,
    ) -> None:
        self.key = key
        self.answer_code = answer_code
        self.message = message
        self.target = target
        self.node = node
        self.resource = resource
        self.via = via
        self.kinds = kinds
        self.on_answer = on_answer
        self.started_at = now
        self.sent_at = now
        self.next_at = 0.0
        self.sends = 0

    @property
    def is_shared(self) -> bool:
        """Whether several nodes were sent the same."""
        return isinstance(self.key, tuple)


class AnswerCache:
    """Answers to what is no read by (requester, transaction id), for the lifetime of a request, so that a repeat gets
    the same one.

    A request that is still being answered stands here with None, so that its repeat is not started again.
    Bounded in number and in octets.
    """

    def __init__(self, limit: int = 20_000, max_octets: int = _CACHED_OCTETS) -> None:
        self._limit = limit
        self._max_octets = max_octets
        self._octets = 0
        self._answers: OrderedDict[tuple[NodeId, int], tuple[float, bytes | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: tuple[NodeId, int], now: float) -> tuple[bool, bytes | None]:
        """Whether this request was seen within its lifetime, and the answer if there is one yet."""
        found = self._answers.get(key)
        if found is None or now - found[0] > REQUEST_LIFETIME:
            return False, None
        return True, found[1]

    def put(self, key: tuple[NodeId, int], answer: bytes | None, now: float) -> None:
        """Remember; what is too old or too much is forgotten, oldest first."""
        answers = self._answers
        old = answers.get(key)
        if old is not None and old[1]:
            self._octets -= len(old[1])
        if answer is not None:
            self._octets += len(answer)
        # An answer keeps its request's place in the order: it follows within the time that a request lives.
        answers[key] = (now, answer)
        while answers:
            first = next(iter(answers))
            at, kept = answers[first]
            if now - at <= REQUEST_LIFETIME and len(answers) <= self._limit and self._octets <= self._max_octets:
                break
            del answers[first]
            self._octets -= len(kept or b"")

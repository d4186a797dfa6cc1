"""Which nodes offer a service, found and announced in the overlay: ReDiR (RFC 7374).

A service is a namespace: ``peering`` for the edges of direct peering, later ``turn-server`` or ``gateway``. A
provider calls :meth:`ServiceDirectory.offer` and renews itself until it is stopped; whoever needs one asks
:meth:`ServiceDirectory.providers`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from p2psipd.proto.reload.errors import InvalidMessage, NotFound, ReloadError
from p2psipd.proto.reload.ids import NODE_ID_LENGTH, NodeId, ResourceId
from p2psipd.proto.reload.kinds import REDIR
from p2psipd.proto.reload.peer_io import StoreValue
from p2psipd.proto.reload.redir import RedirServiceProvider, tree_resource
from p2psipd.proto.reload.service_tree import Place, Tree, look_up, register
from p2psipd.proto.reload.wire import NodeDestination

if TYPE_CHECKING:
    from p2psipd.proto.reload.peer_io import FetchOutcome, StoreOutcome
    from p2psipd.proto.reload.storage_messages import StoredDataSpecifier

#: How long an entry lives, and when it is renewed (RFC 7374 section 4.4).
LIFETIME_SECONDS: Final = 600
_RENEWAL_SECONDS: Final = 0.9 * LIFETIME_SECONDS
#: A registration that failed is tried again after this time.
_RETRY_SECONDS: Final = 5.0
#: What was found is believed for so long; that there is nobody, for a shorter time.
_KNOWN_SECONDS: Final = 30.0
_NOBODY_SECONDS: Final = 2.0
_MOST_PROVIDERS: Final = 64
_MOST_NAMESPACES: Final = 64


class OverlayAccess(Protocol):
    """What is needed of the overlay; ``services.overlay.OverlayService`` is one."""

    async def fetch(
        self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier], *, fresh: bool = False
    ) -> FetchOutcome:
        """The verified values of these kinds."""
        ...

    async def store(self, name: str | ResourceId, kind: int, values: Sequence[StoreValue]) -> StoreOutcome:
        """Store values of one kind, signed by this node."""
        ...

    def when_joined(self) -> Deferred[None]:
        """Fires when this node is a member of the overlay."""
        ...


class _Known(NamedTuple):
    """The providers of a namespace as they were last seen, good until an instant of the reactor's clock."""

    providers: tuple[NodeId, ...]
    until: float


class _Namespace:
    """The tree of one namespace in the overlay, as ``service_tree`` walks it."""

    def __init__(self, overlay: OverlayAccess, namespace: str, own: NodeId) -> None:
        self._overlay = overlay
        self._namespace = namespace
        self._own = own

    def _resource(self, place: Place) -> ResourceId:
        return tree_resource(self._namespace, place.level, place.node)

    async def providers(self, place: Place) -> Collection[NodeId]:
        """Who is entered in a tree node."""
        try:
            outcome = await self._overlay.fetch(self._resource(place), (REDIR,))
        except NotFound:
            return ()
        found = []
        for value in outcome.values:
            if value.exists and len(value.key) == NODE_ID_LENGTH and self._is_ours(value.value, place):
                found.append(NodeId(value.key))
        return found

    def _is_ours(self, octets: bytes, place: Place) -> bool:
        try:
            provider = RedirServiceProvider.decode(octets)
        except InvalidMessage:
            return False
        return (provider.namespace, provider.level, provider.node) == (self._namespace, *place)

    async def enter(self, place: Place) -> None:
        """Store our own entry in a tree node."""
        entry = RedirServiceProvider((NodeDestination(self._own),), self._namespace, *place)
        await self._store(place, entry.encode())

    async def leave(self, place: Place) -> None:
        """Store that our entry is no more (section 4.6)."""
        await self._store(place, None)

    async def _store(self, place: Place, value: bytes | None) -> None:
        await self._overlay.store(self._resource(place), REDIR, (StoreValue(value, LIFETIME_SECONDS, self._own),))


class ServiceDirectory(Service):
    """The services of one overlay; `branching` is the document's branching-factor (RFC 7374 section 8).

    `random` draws the keys of look-ups, which spreads them over all providers.
    """

    log = Logger()

    def __init__(self, reactor: Any, overlay: OverlayAccess, node_id: NodeId, branching: int, random: Any) -> None:
        self.setName("services")  # type: ignore[no-untyped-call]
        self._clock = reactor
        self._overlay = overlay
        self._own = node_id
        self._tree = Tree(branching)
        self._random = random
        self._offered: dict[str, list[Place]] = {}
        self._renewals: dict[str, Any] = {}
        self._known: dict[str, _Known] = {}

    # ---- offering ------------------------------------------------------------------------------------------

    def offer(self, namespace: str) -> None:
        """Be found under `namespace` from now on, or from when this service has started, until it stops."""
        self._offered.setdefault(namespace, [])
        if self.running:
            self._renew(namespace)

    def startService(self) -> None:
        """Register what is offered as soon as the node is a member of the overlay."""
        super().startService()  # type: ignore[no-untyped-call]
        self._overlay.when_joined().addCallbacks(self._joined, lambda _: None)

    def _joined(self, _: None) -> None:
        for namespace in self._offered if self.running else ():
            self._renew(namespace)

    def _renew(self, namespace: str) -> None:
        waiting = self._renewals.pop(namespace, None)
        if waiting is not None and waiting.active():
            waiting.cancel()
        Deferred.fromCoroutine(self._register(namespace)).addErrback(
            lambda failure: self.log.failure("{namespace}: registration failed", failure=failure, namespace=namespace)
        )

    async def _register(self, namespace: str) -> None:
        seconds = _RENEWAL_SECONDS
        try:
            self._offered[namespace] = await register(
                self._tree, _Namespace(self._overlay, namespace, self._own), self._own
            )
        except ReloadError as error:
            self.log.warn("not yet announced as {namespace}: {error}", namespace=namespace, error=error)
            seconds = _RETRY_SECONDS
        if self.running:
            self._renewals[namespace] = self._clock.callLater(seconds, self._renew, namespace)

    def stopService(self) -> Deferred[Any]:
        """Remove what was announced (section 4.6); resolves when that is done or has failed."""
        super().stopService()  # type: ignore[no-untyped-call]
        for waiting in self._renewals.values():
            if waiting.active():
                waiting.cancel()
        self._renewals.clear()
        offered, self._offered = self._offered, {}
        return DeferredList([Deferred.fromCoroutine(self._withdraw(name, at)) for name, at in offered.items()])

    async def _withdraw(self, namespace: str, places: Sequence[Place]) -> None:
        tree = _Namespace(self._overlay, namespace, self._own)
        for place in places:
            try:
                await tree.leave(place)
            except ReloadError as error:
                # The entry expires by itself within ten minutes; whoever tries us meanwhile takes the next one.
                self.log.info("{namespace}: entry not removed: {error}", namespace=namespace, error=error)
                return

    # ---- finding -------------------------------------------------------------------------------------------

    async def providers(self, namespace: str) -> list[NodeId]:
        """The nodes that offer a service, in random order; none where nobody does. Raises ReloadError.

        One is drawn by the RFC's look-up of a random key; the others, to be tried when it can't be reached, are
        those of the tree's root.
        """
        now = self._clock.seconds()
        known = self._known.get(namespace)
        if known is None or known.until <= now:
            known = await self._ask(namespace, now)
        found = list(known.providers)
        self._random.shuffle(found)
        return found

    async def _ask(self, namespace: str, now: float) -> _Known:
        tree = _Namespace(self._overlay, namespace, self._own)
        found = dict.fromkeys(await tree.providers(Place(0, 0)))
        key = NodeId(self._random.getrandbits(8 * NODE_ID_LENGTH).to_bytes(NODE_ID_LENGTH, "big"))
        drawn = await look_up(self._tree, tree, key)
        if drawn is not None:
            found[drawn] = None
        known = _Known(tuple(found)[:_MOST_PROVIDERS], now + (_KNOWN_SECONDS if found else _NOBODY_SECONDS))
        if len(self._known) >= _MOST_NAMESPACES:
            self._known.clear()
        self._known[namespace] = known
        return known

    def forget(self, namespace: str) -> None:
        """Ask anew next time: one that was found could not be reached."""
        self._known.pop(namespace, None)

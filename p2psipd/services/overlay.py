"""The overlay as the rest of the node sees it: await an answer, or a :class:`ReloadError`.

:class:`OverlayService` owns the peer core, its driver, the links and the record store.  Each method that
asks the overlay something gives the core an input with a fresh ``ref`` and awaits the outcome that carries
it back.  Whoever cancels the awaitable makes the core abandon the request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from p2psipd.net.driver import Driver
from p2psipd.net.links import LinkInfo, LinkLimits, Links
from p2psipd.net.tls import NodeTls
from p2psipd.proto.identity.certificate import NodeCertificate, parse_certificate
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import ReloadError, RequestTimeout
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import Trust
    from p2psipd.proto.identity.signing import Credential, Signer
    from p2psipd.proto.reload.overlay_config import OverlayConfiguration
    from p2psipd.store.sqlite import SqliteStore

Endpoint = tuple[str, int]
_Outcome = TypeVar("_Outcome")

#: Records are written behind in groups, at most this long after a change.
FLUSH_SECONDS: Final = 0.05
#: A disk that is full is tried again after this time.
RETRY_FLUSH_SECONDS: Final = 1.0
#: The state file is tidied this often.
MAINTAIN_SECONDS: Final = 60.0
#: The core gives up each request by itself; this is for the case that it forgets one.
LONGEST_REQUEST_SECONDS: Final = 60.0
#: Lines about misbehaving peers that are logged in one second; the rest is only counted.
_LINES_PER_SECOND: Final = 10
# The core tells of a twin every ten minutes while there is one.
_TWIN_SECONDS: Final = 660.0
#: So many different reasons why there is no link are told while a node joins.
_MOST_REASONS: Final = 20


class LeftOverlay(ReloadError):
    """The node is leaving the overlay or has left it, so nothing can be asked."""

    code = RequestTimeout.code


class Neighbour(NamedTuple):
    """A link as shown to the operator: the connection, and whose certificate it carries."""

    info: LinkInfo
    certificate: NodeCertificate


class _Waiting(NamedTuple):
    """A request that the core has not answered yet; ``asked_at`` on the reactor's clock."""

    answer: Deferred[Any]
    asked_at: float


class OverlayCore(Protocol):
    """What the service needs of the peer core; ``p2psipd.proto.reload.peer.Peer`` is one."""

    def start(self, now: float, wall: float) -> Sequence[Any]:
        """Begin to join."""
        ...

    def receive(self, item: Any, now: float, wall: float) -> list[Any]:
        """Take one input."""
        ...

    def next_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called."""
        ...

    def handle_timer(self, now: float, wall: float) -> list[Any]:
        """Do what is due."""
        ...


class OverlayObserver:
    """What the overlay's events are told to; every method may be replaced by a subclass."""

    def joined(self) -> None:
        """This node is a full member now."""

    def peer_lost(self, node: NodeId) -> None:
        """A peer has left the overlay, or does not answer any more."""

    def configuration_changed(self, configuration: OverlayConfiguration) -> None:
        """A newer configuration document is in force."""

    def credential_renewed(self, credential: Credential) -> None:
        """This node's certificate was renewed."""

    def dial_application(self, node: NodeId, application: int, addresses: tuple[Endpoint, ...]) -> None:
        """Another node asked for a connection: dial it as TLS client and expect its certificate."""


class OverlayService(Service):
    """One node of an overlay.

    ``core`` is the peer core.  ``listen`` is None for a client.  ``store`` is None for a node without
    records. ``document`` is the file that a newer configuration document is written to, None for none.
    """

    name = "overlay"

    def __init__(
        self,
        reactor: object,
        core: OverlayCore,
        *,
        configuration: OverlayConfiguration,
        credential: Credential,
        tls: NodeTls,
        limits: LinkLimits,
        listen: Endpoint | None,
        store: SqliteStore | None = None,
        document: str | None = None,
        observer: OverlayObserver | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.core = core
        self.configuration = configuration
        self.credential = credential
        self.store_file = store
        self.is_joined = False
        self.last_failure = ""
        self._told: set[str] = set()
        self.started_at = 0.0
        self.misbehaviour: dict[str, int] = {}
        self.observer = observer or OverlayObserver()
        self._log = Logger(namespace="p2psipd.overlay")
        self._clock = cast(IReactorTime, reactor)
        self._wall = wall
        self._tls = tls
        self._listen = listen
        self.document = document
        self.is_document_unwritten = False
        self._twin: tuple[float, str] = (float("-inf"), "")
        self._waiting: dict[int, _Waiting] = {}
        self._next_ref = 1
        self._certificates: dict[int, NodeCertificate] = {}
        self._flush_call: IDelayedCall | None = None
        self._maintain_call: IDelayedCall | None = None
        self._when_joined: list[Deferred[None]] = []
        self._stopping: Deferred[None] | None = None
        self._lines_second = 0
        self._lines = 0
        self.links = Links(
            reactor,
            tls,
            self,
            limits,
            node_ids=lambda der: parse_certificate(der).node_ids,
            source=_source(listen),
        )
        self.driver = Driver(
            core,
            self._handlers(),
            self._clock,
            name="overlay",
            flush=self.links.flush,
            on_fault=self._fault,
            wall=wall,
        )

    @property
    def node_id(self) -> NodeId:
        """This node's Node-ID."""
        return NodeId(self.credential.certificate.node_id)

    # -- life --------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Listen, and let the core begin.  Raises twisted's CannotListenError when the address is taken."""
        if self._listen is not None:
            self._listen = self.links.listen(self._listen)
        self.started_at = self._clock.seconds()
        Service.startService(self)
        self._maintain_call = self._clock.callLater(MAINTAIN_SECONDS, self._maintain)
        self.driver.call(self.core.start)

    def stopService(self) -> Deferred[None]:
        """Close everything without leaving in order (:meth:`leave` comes before, where there is time)."""
        if self._stopping is None:
            Service.stopService(self)
            self._stopping = Deferred.fromCoroutine(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        self.driver.stop()
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.answer.errback(LeftOverlay("this node is stopping"))
        joiners, self._when_joined = self._when_joined, []
        for joiner in joiners:
            joiner.errback(LeftOverlay("this node is stopping"))
        for call in (self._flush_call, self._maintain_call):
            if call is not None and call.active():
                call.cancel()
        await self.links.stop()
        if self.store_file is not None:
            self.store_file.close()

    async def leave(self, seconds: float) -> bool:
        """Hand the records over and leave, within ``seconds``; True if the core said that it is done."""
        try:
            await self._ask(object, peer_io.Leave, seconds=seconds)
        except (ReloadError, CancelledError) as error:
            self._log.info("left without hand-over: {error}", error=error)
            return False
        return True

    @property
    def address(self) -> Endpoint | None:
        """Where this node listens, with the real port once it is started; None for a client."""
        return self._listen

    def when_joined(self) -> Deferred[None]:
        """Fires when this node is a full member of the overlay, at once if it is; LeftOverlay if it never
        will.
        """
        joined: Deferred[None] = Deferred(lambda deferred: self._when_joined.remove(deferred))
        if self.is_joined:
            joined.callback(None)
        else:
            self._when_joined.append(joined)
        return joined

    # -- asking the overlay ------------------------------------------------------------------------

    async def fetch(
        self,
        resource: str | ResourceId,
        kinds: Iterable[int | StoredDataSpecifier],
        *,
        fresh: bool = False,
        seconds: float | None = None,
    ) -> peer_io.FetchOutcome:
        """The verified values of these kinds at a Resource Name (text) or Resource-ID (octets).

        ``fresh`` asks the responsible peer itself, not the nearest holder of a copy.

        Where there is nothing there are no values.  Raises RequestTimeout or what the responsible peer
        answered.
        """
        specifiers = tuple(
            [kind if isinstance(kind, StoredDataSpecifier) else StoredDataSpecifier(kind) for kind in kinds]
        )
        target = _resource(resource)
        return await self._ask(
            peer_io.FetchOutcome, lambda ref: peer_io.Fetch(ref, target, specifiers, fresh), seconds=seconds
        )

    async def store(
        self,
        name: str | ResourceId,
        kind: int,
        values: Sequence[peer_io.StoreValue],
        credential: Signer | None = None,
    ) -> peer_io.StoreOutcome:
        """Sign and store values of one kind; returns when the responsible peer holds them.

        ``credential`` signs (default: this node's own).  Raises Forbidden and the other refusals of RFC
        6940 7.4.1.
        """
        return await self._ask(
            peer_io.StoreOutcome,
            lambda ref: peer_io.Store(ref, _resource(name), kind, tuple(values), credential),
        )

    async def stat(self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier]) -> peer_io.Answered:
        """The metadata of these kinds at a resource (a StatAns)."""
        specifiers = tuple(
            kind if isinstance(kind, StoredDataSpecifier) else StoredDataSpecifier(kind) for kind in kinds
        )
        return await self._ask(peer_io.Answered, lambda ref: peer_io.Stat(ref, _resource(resource), specifiers))

    async def find(self, resource: str | ResourceId, kinds: Iterable[int]) -> peer_io.Answered:
        """Which resource nearest to this one holds each kind (a FindAns)."""
        return await self._ask(peer_io.Answered, lambda ref: peer_io.Find(ref, _resource(resource), tuple(kinds)))

    async def ping(self, node: NodeId | None = None, resource: ResourceId | None = None) -> peer_io.Pong:
        """Ping a node, or whoever is responsible for a resource."""
        return await self._ask(peer_io.Pong, lambda ref: peer_io.Ping(ref, node, resource))

    async def probe(self, node: NodeId) -> peer_io.Answered:
        """A node's share of the space, its number of resources and its uptime (a ProbeAns)."""
        return await self._ask(peer_io.Answered, lambda ref: peer_io.Probe(ref, node))

    async def trace(self, resource: str | ResourceId) -> tuple[peer_io.TraceHop, ...]:
        """The path to whoever is responsible for a resource, hop by hop."""
        return await self._ask(tuple[peer_io.TraceHop, ...], lambda ref: peer_io.Trace(ref, _resource(resource)))

    async def app_attach(self, node: NodeId, application: int) -> peer_io.ApplicationAccepted:
        """Ask a node for a connection: it dials this node, which is the TLS server (RFC 6940 section
        6.5.2).
        """
        return await self._ask(peer_io.ApplicationAccepted, lambda ref: peer_io.AppAttach(ref, node, application))

    def new_document(self, document: bytes) -> None:
        """The operator hands us a newer signed configuration document."""
        self.driver.feed(peer_io.NewConfiguration(document))

    def new_credential(self, credential: Credential) -> None:
        """The operator has renewed our certificate (same Node-ID); new connections show it."""
        self.credential = credential
        self._update_tls()
        self.driver.feed(peer_io.NewCredential(credential))
        self.observer.credential_renewed(credential)

    def _ask(
        self, outcome: type[_Outcome], make: Callable[[int], object], *, seconds: float | None = None
    ) -> Awaitable[_Outcome]:
        """Give the core an input and wait for its ``outcome``; on cancellation or after ``seconds`` it is
        abandoned.

        The core ends each request by itself; a delayed call of ours is made only where ``seconds`` asks for
        less.
        """
        if self._stopping is not None or not self.running:
            raise LeftOverlay("this node is not running")
        ref = self._next_ref
        self._next_ref += 1
        answer: Deferred[_Outcome] = Deferred(lambda _: self._abandon(ref))
        self._waiting[ref] = _Waiting(answer, self._clock.seconds())
        self.driver.feed(make(ref))
        return answer if seconds is None or answer.called else self._within(answer, seconds)

    async def _within(self, answer: Deferred[_Outcome], seconds: float) -> _Outcome:
        answer.addTimeout(seconds, self._clock)
        try:
            return await answer
        except TimeoutError:
            raise RequestTimeout(f"no outcome within {seconds:.0f} s") from None

    def _abandon(self, ref: int) -> None:
        if self._waiting.pop(ref, None) is not None:
            self.driver.feed(peer_io.Abandon(ref))

    # -- what the links tell (LinkUser) ------------------------------------------------------------

    def link_up(self, link: int, certificate: bytes, address: Endpoint, attempt: int | None) -> None:
        """A link is there."""
        self._certificates[link] = parse_certificate(certificate)
        self.driver.feed(peer_io.LinkUp(link, certificate, address, attempt))

    def link_failed(self, attempt: int, reason: str) -> None:
        """A link could not be opened."""
        self._note_failure(reason)
        self.driver.feed(peer_io.LinkFailed(attempt, reason))

    def link_down(self, link: int, reason: str) -> None:
        """A link is gone."""
        certificate = self._certificates.pop(link, None)
        if not self.is_joined and self._stopping is None:
            self._note_failure(f"{certificate.user if certificate else 'a peer'} ended the link: {reason}")
        self.driver.feed(peer_io.LinkDown(link, reason))

    def _note_failure(self, reason: str) -> None:
        """Log why there is no link: each reason once while this node is outside, and later for whoever debugs."""
        self.last_failure = reason
        if self.is_joined or reason in self._told or len(self._told) >= _MOST_REASONS:
            self._log.debug("no link: {reason}", reason=reason)
        else:
            self._told.add(reason)
            self._log.warn("not joined yet: {reason}", reason=reason)

    def link_bytes(self, link: int, data: bytes) -> None:
        """Octets from a neighbour."""
        self.driver.feed(peer_io.LinkBytes(link, data))

    def neighbours(self) -> list[Neighbour]:
        """The links that are up, with their certificates."""
        certificates = self._certificates
        return [Neighbour(info, certificates[info.link]) for info in self.links.info() if info.link in certificates]

    # -- what the core orders ----------------------------------------------------------------------

    def _handlers(self) -> Mapping[type, Callable[[Any], object]]:
        return {
            peer_io.SendToLink: lambda order: self.links.send(order.link, order.data),
            peer_io.OpenLink: lambda order: self.links.open(order.attempt, order.addresses, order.node),
            peer_io.CloseLink: self._close_link,
            peer_io.Completed: self._completed,
            peer_io.Failed: self._failed,
            peer_io.WriteRecords: self._write_records,
            peer_io.RememberPeer: self._remember_peer,
            peer_io.DialApplication: lambda order: self.observer.dial_application(
                order.node, order.application, order.addresses
            ),
            peer_io.Joined: self._joined,
            peer_io.PeerJoined: self._peer_joined,
            peer_io.PeerLost: self._peer_lost,
            peer_io.Misbehaved: self._misbehaved,
            peer_io.Refused: self._refused,
            peer_io.Replicated: lambda event: None,
            peer_io.ConfigurationChanged: self._configuration_changed,
        }

    def _close_link(self, order: peer_io.CloseLink) -> None:
        self._certificates.pop(order.link, None)
        self.links.close(order.link, order.reason)

    def _completed(self, outcome: peer_io.Completed) -> None:
        request = self._waiting.pop(outcome.ref, None)
        if request is not None:
            request.answer.callback(outcome.result)

    def _failed(self, outcome: peer_io.Failed) -> None:
        request = self._waiting.pop(outcome.ref, None)
        if request is not None:
            request.answer.errback(outcome.error)

    def _fault(self, item: object) -> None:
        """The core failed at an input: close the link that it came from, fail the request that it was."""
        if isinstance(item, peer_io.LinkBytes | peer_io.LinkUp):
            self.links.cut(item.link, "an error in this node, see its log")
        elif isinstance(item, peer_io.LinkDown | peer_io.LinkFailed | peer_io.Abandon):
            return
        elif (request := self._waiting.pop(getattr(item, "ref", 0), None)) is not None:
            request.answer.errback(ReloadError("an error in this node, see its log"))

    def _peer_joined(self, event: peer_io.PeerJoined) -> None:
        self._log.debug("peer {node} joined", node=event.node.hex())
        if self._listen is None and not self.is_joined:
            # A client joins nothing; it is as good as joined when it knows a peer that can route for it.
            self._joined(peer_io.Joined())

    def _peer_lost(self, event: peer_io.PeerLost) -> None:
        self._log.info("peer {node} lost: {reason}", node=event.node.hex()[:8], reason=event.reason)
        self.observer.peer_lost(event.node)

    def _joined(self, event: peer_io.Joined) -> None:
        self.is_joined = True
        self._told.clear()
        self._log.info("joined {overlay} as {node}", overlay=self.configuration.overlay_name, node=self.node_id.hex())
        joiners, self._when_joined = self._when_joined, []
        for joiner in joiners:
            joiner.callback(None)
        self.observer.joined()

    def _misbehaved(self, event: peer_io.Misbehaved) -> None:
        self.misbehaviour[event.reason] = self.misbehaviour.get(event.reason, 0) + 1
        if event.reason == "identity":
            self._twin = (self._clock.seconds(), event.detail)
        if self._may_log():
            self._log.warn("{who}: {reason}: {detail}", who=self._who(event), reason=event.reason, detail=event.detail)

    def _refused(self, event: peer_io.Refused) -> None:
        if self._may_log():
            method, error = event.method, str(event.error)
            self._log.info("{who}: {method} refused: {error}", who=self._who(event), method=method, error=error)

    @property
    def twin(self) -> str:
        """What was told lately of a node that has our certificate and key, "" for nothing."""
        told_at, detail = self._twin
        return detail if self._clock.seconds() < told_at + _TWIN_SECONDS else ""

    def _may_log(self) -> bool:
        """Whether others have not filled this second's lines yet."""
        second = int(self._clock.seconds())
        if second != self._lines_second:
            self._lines_second, self._lines = second, 0
        self._lines += 1
        return self._lines <= _LINES_PER_SECOND

    def _who(self, event: peer_io.Misbehaved | peer_io.Refused) -> str:
        """The peer that broke a rule, as far as we know it: its Node-ID and where the link leads."""
        names = [event.node.hex()] if event.node is not None else []
        for info in self.links.info() if event.link is not None else ():
            if info.link == event.link:
                host, port = info.address
                names.append(f"{host}:{port}")
        return "peer " + (" at ".join(names) or "unknown")

    def _configuration_changed(self, event: peer_io.ConfigurationChanged) -> None:
        self.configuration = event.configuration
        self._update_tls()
        self._log.info("configuration document {sequence} is in force", sequence=event.configuration.sequence)
        self._write_document()
        self.observer.configuration_changed(event.configuration)

    def _write_document(self) -> None:
        if self.document is None or not self.configuration.document:
            return
        try:
            write_atomically(self.document, self.configuration.document)
        except OSError as error:
            self.is_document_unwritten = True
            self._log.error(
                "the new configuration document cannot be written to {file}: {error}", file=self.document, error=error
            )
        else:
            self.is_document_unwritten = False

    def _update_tls(self) -> None:
        certificate = self.credential.certificate
        self._tls.update(certificate.der, self.credential.private_key, self.configuration.root_certs)

    # -- the record store --------------------------------------------------------------------------

    def _write_records(self, order: peer_io.WriteRecords) -> None:
        if self.store_file is not None:
            self.store_file.write(order.changes)
            self._flush_soon(FLUSH_SECONDS)

    def _remember_peer(self, order: peer_io.RememberPeer) -> None:
        if self.store_file is None:
            return
        if order.addresses:
            from p2psipd.store.sqlite import KnownPeer

            der = next((c.der for c in self._certificates.values() if order.node in c.node_ids), b"")
            self.store_file.remember_peers([KnownPeer(order.node, order.addresses, der, self._wall())])
        else:
            self.store_file.forget_peer(order.node)
        self._flush_soon(RETRY_FLUSH_SECONDS)

    def _flush_soon(self, seconds: float) -> None:
        if self._flush_call is None:
            self._flush_call = self._clock.callLater(seconds, self._flush)
        elif self._flush_call.getTime() > self._clock.seconds() + seconds:
            self._flush_call.cancel()
            self._flush_call = self._clock.callLater(seconds, self._flush)

    def _flush(self) -> None:
        self._flush_call = None
        if self.store_file is not None and not self.store_file.flush():
            self._flush_soon(RETRY_FLUSH_SECONDS)

    def _maintain(self) -> None:
        if self.is_document_unwritten:
            self._write_document()
        if self.store_file is not None:
            self.store_file.maintain(self._wall())
        before = self._clock.seconds() - LONGEST_REQUEST_SECONDS
        for ref in [ref for ref, request in self._waiting.items() if request.asked_at < before]:
            self._waiting.pop(ref).answer.errback(RequestTimeout("no outcome"))
            self.driver.feed(peer_io.Abandon(ref))
        self._maintain_call = self._clock.callLater(MAINTAIN_SECONDS, self._maintain)


class TrustKeeper:
    """Whom this node trusts now; a newer configuration document replaces ``trust``."""

    def __init__(self, trust: Trust, wall: Callable[[], float] = time.time) -> None:
        self.trust = trust
        self._wall = wall

    def adopt(self, configuration: OverlayConfiguration) -> Trust:
        """Trust as a newer configuration document says (the core's ``make_trust``)."""
        self.trust = configuration.trust()
        return self.trust

    def judge(self, der: bytes) -> NodeCertificate:
        """The certificate, if it is valid now; else CertificateError."""
        return self.trust.check(der, self._wall())


def write_atomically(path: str, content: bytes) -> None:
    """Replace a file so that whoever reads it sees the old content or the new, also after a crash."""
    temporary = f"{path}.new"
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _resource(resource: str | bytes) -> ResourceId:
    return resource_id(resource) if isinstance(resource, str) else ResourceId(resource)


def _source(listen: Endpoint | None) -> str | None:
    """The address that dialled links come from: where the node listens, unless that is everywhere."""
    return None if listen is None or listen[0] in ("0.0.0.0", "::") else listen[0]

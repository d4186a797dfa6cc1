"""The overlay as SIP's location service and password store.

:class:`OverlayLocation` keeps bindings as PROXY-REGISTRATION entries and reads these and the
SIP-REGISTRATION entries of native user agents, both in one Fetch.  :class:`OverlayCredentials` opens
DIGEST-CREDENTIAL values with the key that DIGEST-KEY holds for this registrar.  Both are the seams that
``proto.sip.locating`` declares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from twisted.logger import Logger

from p2psipd.proto.identity.certificate import remember
from p2psipd.proto.reload.errors import InvalidMessage, NotFound, ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, PROXY_REGISTRATION, SIP_REGISTRATION
from p2psipd.proto.reload.peer_io import StoreValue
from p2psipd.proto.reload.sip_usage import (
    DigestAlgorithm,
    DigestCredential,
    ProxyAlias,
    ProxyRegistration,
    SipRegistrationUri,
    decode_proxy_registration,
    decode_sip_registration,
    open_credential,
)
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.reload.wire import Destination, NodeDestination
from p2psipd.proto.sip.digest import user_of
from p2psipd.proto.sip.locating import Binding, CredentialSource, LocationUnavailable, binding_key

if TYPE_CHECKING:
    from p2psipd.proto.identity.signing import Signer
    from p2psipd.proto.reload.peer_io import FetchOutcome, StoreOutcome
    from p2psipd.proto.reload.values import VerifiedValue

#: Extensions of ProxyRegistration that hold what the registrar alone needs: the flow it came over, the
#: User-Agent.
RECEIVED_EXTENSION: Final = 1
USER_AGENT_EXTENSION: Final = 2

#: A name that stands for another name is followed this far.
_LONGEST_CHAIN: Final = 5
#: Passwords are asked for anew after this time: so long may one go on who was removed, or uses an old password, and for
#: the longer time where the overlay does not answer. A wrong password is compared with what the overlay has now, if
#: that was not asked a moment ago.
_KNOWN_SECONDS: Final = 10.0
_KEPT_SECONDS: Final = 60.0
_UNKNOWN_SECONDS: Final = 3.0
_MOMENT: Final = 0.5
_CACHED_USERS: Final = 10_000
#: What was read of a name along with its password serves its registration, which comes next: for so long, of so many.
_AHEAD_SECONDS: Final = 1.0
_AHEAD_NAMES: Final = 1000
_BINDINGS: Final = (SIP_REGISTRATION, PROXY_REGISTRATION)

#: The tokens of RFC 7616 for our algorithms.
_TOKENS: Final[Mapping[DigestAlgorithm, str]] = {
    DigestAlgorithm.MD5: "MD5",
    DigestAlgorithm.SHA_256: "SHA-256",
    DigestAlgorithm.SHA_512_256: "SHA-512-256",
}
_TOKENS_OF_AOR: Final[Mapping[DigestAlgorithm, str]] = {
    DigestAlgorithm.MD5_OF_AOR: "MD5",
    DigestAlgorithm.SHA_256_OF_AOR: "SHA-256",
    DigestAlgorithm.SHA_512_256_OF_AOR: "SHA-512-256",
}


class OverlayAccess(Protocol):
    """What is needed of the overlay; ``services.overlay.OverlayService`` is one."""

    async def fetch(
        self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier], *, fresh: bool = False
    ) -> FetchOutcome:
        """The verified values of these kinds; `fresh`: from the responsible peer itself."""
        ...

    async def store(
        self, name: str | ResourceId, kind: int, values: Sequence[StoreValue], credential: Signer | None = None
    ) -> StoreOutcome:
        """Store values of one kind."""
        ...


class OverlayLocation:
    """A ``LocationStore`` over the overlay."""

    def __init__(
        self,
        overlay: OverlayAccess,
        node_id: bytes,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._overlay = overlay
        self._node_id = node_id
        self._wall = wall
        self._now = now
        self._ahead: dict[str, tuple[float, Sequence[VerifiedValue]]] = {}
        self._log = Logger(namespace="p2psipd.location")

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        """The bindings of an AOR, those of names that it stands for included, and what says that one was removed."""
        found: dict[tuple[bytes, bytes], Binding] = {}
        asked: set[str] = set()
        names = [resource_name(aor)]
        for _ in range(_LONGEST_CHAIN):
            further: list[str] = []
            for name in names:
                if name not in asked:
                    asked.add(name)
                    await self._gather(name, fresh, found, further)
            names = further
        return list(found.values())

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        """Store or replace bindings, and store that others no longer exist, for as long as they might still be
        somewhere: in one Store.
        """
        name, wall = resource_name(aor), self._wall()
        self._ahead.pop(name, None)
        values = []
        for binding, stays in [*((put, True) for put in puts), *((gone, False) for gone in removes)]:
            lifetime = max(1, math.ceil(binding.expires_at - wall))
            value = _to_registration(name, binding).encode() if stays else None
            values.append(StoreValue(value, lifetime, binding.key))
        try:
            await self._overlay.store(name, PROXY_REGISTRATION, tuple(values))
        except ReloadError as error:
            raise LocationUnavailable(f"the bindings of {aor} could not be stored: {error}") from error

    def read_ahead(self, name: str, values: Sequence[VerifiedValue]) -> None:
        """These are stored under `name` right now, by the word of the responsible peer; whoever asks for its bindings
        next, and soon, need not ask the overlay again.
        """
        remember(self._ahead, name, (self._now(), values), _AHEAD_NAMES)

    async def _values(self, name: str, fresh: bool) -> Sequence[VerifiedValue]:
        read_at, values = self._ahead.pop(name, (float("-inf"), ()))
        if self._now() - read_at < _AHEAD_SECONDS:
            return values
        return (await self._overlay.fetch(name, _BINDINGS, fresh=fresh)).values

    async def _gather(
        self, name: str, fresh: bool, found: dict[tuple[bytes, bytes], Binding], further: list[str]
    ) -> None:
        """Add the bindings stored under a name to ``found``, the names it stands for to ``further``."""
        try:
            values = await self._values(name, fresh)
        except NotFound:
            return
        except ReloadError as error:
            raise LocationUnavailable(f"where {name} is could not be asked: {error}") from error
        for stored in values:
            if not stored.exists:
                if stored.kind == PROXY_REGISTRATION:
                    gone = Binding(f"sip:{name}", stored.key, "", b"", stored_at=stored.storage_time / 1000)
                    found[b"", stored.key] = gone
                continue
            try:
                read = _read_native if stored.kind == SIP_REGISTRATION else _read_proxy
                item = read(name, stored)
            except InvalidMessage as error:
                self._log.warn("an entry of {name} is skipped: {error}", name=name, error=error)
                continue
            if isinstance(item, str):
                further.append(item)
            elif item.expires_at > self._wall():
                found[item.node_id, item.key] = item


def resource_name(aor: str) -> str:
    """The Resource Name of an AOR: itself without the scheme (RFC 7904 section 3.3)."""
    scheme, colon, rest = aor.partition(":")
    return rest if colon and scheme.lower() in ("sip", "sips") else aor


def _read_proxy(name: str, stored: VerifiedValue) -> Binding | str:
    """A binding, or the name that an alias stands for."""
    registration = decode_proxy_registration(stored.value)
    if isinstance(registration, ProxyAlias):
        return resource_name(registration.target)
    if registration.aor != name:
        raise InvalidMessage(f"it names {registration.aor}")
    extensions = dict(registration.extensions)
    return Binding(
        aor=f"sip:{registration.aor}",
        key=binding_key(registration.contact, registration.instance_id, registration.reg_id),
        contact=registration.contact,
        node_id=_last_node(registration.destination_list),
        path=registration.path,
        q=registration.q / 1000,
        instance_id=registration.instance_id,
        reg_id=registration.reg_id,
        call_id=registration.call_id,
        cseq=registration.cseq,
        expires_at=float(registration.expires_at),
        received=extensions.get(RECEIVED_EXTENSION, b"").decode("utf-8", "replace"),
        parameters=registration.parameters,
        user_agent=extensions.get(USER_AGENT_EXTENSION, b"").decode("utf-8", "replace"),
        stored_at=stored.storage_time / 1000,
    )


def _read_native(name: str, stored: VerifiedValue) -> Binding | str:
    """The same for the registration of a native user agent."""
    registration = decode_sip_registration(stored.value)
    if isinstance(registration, SipRegistrationUri):
        return resource_name(registration.uri)
    return Binding(
        aor=f"sip:{name}",
        key=stored.key,
        contact=f"sip:{name}",
        node_id=_last_node(registration.destination_list),
        expires_at=stored.storage_time / 1000 + stored.lifetime,
        native=True,
    )


def _last_node(destinations: Sequence[Destination]) -> bytes:
    """The node that a destination list leads to."""
    for destination in reversed(destinations):
        if isinstance(destination, NodeDestination):
            return destination.node
    raise InvalidMessage("its destination list names no node")


def _to_registration(name: str, binding: Binding) -> ProxyRegistration:
    extensions = []
    if binding.received:
        extensions.append((RECEIVED_EXTENSION, binding.received.encode()))
    if binding.user_agent:
        extensions.append((USER_AGENT_EXTENSION, binding.user_agent.encode("utf-8", "replace")))
    return ProxyRegistration(
        aor=name,
        destination_list=(NodeDestination(NodeId(binding.node_id)),),
        contact=binding.contact,
        path=binding.path,
        q=round(binding.q * 1000),
        instance_id=binding.instance_id,
        reg_id=binding.reg_id,
        call_id=binding.call_id,
        cseq=binding.cseq,
        expires_at=math.ceil(binding.expires_at),
        parameters=binding.parameters,
        extensions=tuple(extensions),
    )


class _Cached(NamedTuple):
    """What was known of one user at an instant of the monotonic clock: HA1 by token for "alice" and for
    "alice@realm"; None: there was no such user.
    """

    passwords: tuple[Mapping[str, bytes], Mapping[str, bytes]] | None
    asked_at: float


_NEVER_ASKED: Final = _Cached(None, float("-inf"))


class KeySource(Protocol):
    """What gives the key of an epoch; ``services.epoch_keys.EpochKeys`` is one."""

    async def key(self, epoch: int) -> bytes:
        """32 octets. Raises LocationUnavailable or ReloadError."""
        ...


class OverlayCredentials:
    """A ``CredentialSource`` over the overlay's DIGEST-CREDENTIAL values, opened with the ``keys`` of their epochs.

    Who is asked for the first time is most often a phone about to register: `read_ahead` is told what else is stored
    under its name, which was fetched along.
    """

    def __init__(
        self,
        overlay: OverlayAccess,
        keys: KeySource,
        now: Callable[[], float] = time.monotonic,
        read_ahead: Callable[[str, Sequence[VerifiedValue]], None] = lambda name, values: None,
    ) -> None:
        self._overlay = overlay
        self._keys = keys
        self._now = now
        self._read_ahead = read_ahead
        self._users: dict[str, _Cached] = {}

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        """H(user:realm:password) by algorithm token; None for an unknown user.

        `fresh` asks the overlay again, unless it was asked a moment ago. Where the overlay does not answer, one who was
        known a minute ago still is.
        """
        plain = user_of(user, realm)
        if plain is None:
            return None
        name, now = f"{plain}@{realm}", self._now()
        known = self._users.get(name, _NEVER_ASKED)
        age = now - known.asked_at
        if age >= (_MOMENT if fresh else _UNKNOWN_SECONDS if known.passwords is None else _KNOWN_SECONDS):
            try:
                known = _Cached(await self._ask(name, fresh, known is _NEVER_ASKED), now)
            except LocationUnavailable:
                if fresh or known.passwords is None or age >= _KEPT_SECONDS:
                    raise
            else:
                self._users.pop(name, None)
                self._users[name] = known
                while len(self._users) > _CACHED_USERS:
                    del self._users[next(iter(self._users))]
        return None if known.passwords is None else known.passwords[user != plain]

    def forget(self) -> None:
        """Ask for everything anew."""
        self._users.clear()

    async def _ask(self, name: str, fresh: bool, ahead: bool) -> tuple[Mapping[str, bytes], Mapping[str, bytes]] | None:
        try:
            kinds = (DIGEST_CREDENTIAL, *(_BINDINGS if ahead else ()))
            values = (await self._overlay.fetch(name, kinds, fresh=fresh or ahead)).values
            if ahead:
                self._read_ahead(name, [stored for stored in values if stored.kind in _BINDINGS])
            for stored in values:
                if stored.exists and stored.kind == DIGEST_CREDENTIAL:
                    sealed = DigestCredential.decode(stored.value)
                    opened = open_credential(
                        sealed, await self._keys.key(sealed.epoch), resource_id(name), DIGEST_CREDENTIAL
                    )
                    return _by_token(opened, _TOKENS), _by_token(opened, _TOKENS_OF_AOR)
        except NotFound:
            return None
        except ReloadError as error:
            raise LocationUnavailable(f"the password of {name} could not be asked: {error}") from error
        return None


def _by_token(opened: Mapping[DigestAlgorithm, bytes], tokens: Mapping[DigestAlgorithm, str]) -> Mapping[str, bytes]:
    return {tokens[algorithm]: ha1 for algorithm, ha1 in opened.items() if algorithm in tokens}


class FirstKnown:
    """Several ``CredentialSource``s asked in their order: the first that knows the user counts."""

    def __init__(self, sources: Sequence[CredentialSource]) -> None:
        self._sources = tuple(sources)

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        """H(user:realm:password) by algorithm token. LocationUnavailable if one could not be asked and none after it
        knows the user; with `fresh`, when what was known has proved wrong, also if one after it could not be asked: who
        guesses is not told by the kind of refusal which users are in a file.
        """
        failed: LocationUnavailable | None = None
        known: Mapping[str, bytes] | None = None
        for source in self._sources:
            try:
                found = await source.ha1(user, realm, fresh)
            except LocationUnavailable as error:
                failed = error
                continue
            if found is not None and not fresh:
                return found
            known = found if known is None else known
        if failed is not None:
            raise failed
        return known

"""Telephone numbers of the overlay's users: signed aliases, found like users (RFC 7904 section 4.2 step 2).

`p2psip number add +12125551212 alice` stores under ``+12125551212@overlay.example`` that it stands for alice. A
request to that number, as a tel: URI or as a SIP URI of a served domain, goes to her phones; a request from it is
hers if she has proved to be alice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from p2psipd.proto.reload.errors import InvalidMessage, NotFound, ReloadError
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION
from p2psipd.proto.reload.sip_usage import ProxyAlias, decode_proxy_registration
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.locating import LocateStep, LocationUnavailable, NotLocated, Origin, Query, Target
from p2psipd.proto.sip.uri import SipUri, TelUri, Uri

if TYPE_CHECKING:
    from p2psipd.proto.reload.ids import ResourceId
    from p2psipd.proto.reload.peer_io import FetchOutcome
    from p2psipd.proto.reload.storage_messages import StoredDataSpecifier

#: An alias of an alias is followed this far (RFC 7904 section 4.2).
_LONGEST_CHAIN: Final = 5
_KNOWN_SECONDS: Final = 15.0
_UNKNOWN_SECONDS: Final = 3.0
_CACHED_NUMBERS: Final = 10_000

_GLOBAL_NUMBER: Final = re.compile(r"\+[0-9]{2,15}")
_VISUAL_SEPARATORS: Final = re.compile(r"[-.()]")


class OverlayAccess(Protocol):
    """What is needed of the overlay; ``services.overlay.OverlayService`` is one."""

    async def fetch(self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier]) -> FetchOutcome:
        """The verified values of these kinds."""
        ...


class _Known(NamedTuple):
    """Whom a number stands for, until an instant; None: nobody."""

    owner: str | None
    until: float


class OverlayNumbers:
    """Which user a telephone number stands for.

    `domains` are the served SIP domains; numbers are names of the first. What was read is believed for some
    seconds.
    """

    def __init__(
        self, overlay: OverlayAccess, domains: Sequence[str], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._overlay = overlay
        self._domains = tuple(domains)
        self._now = now
        self._known: dict[str, _Known] = {}

    async def owner(self, uri: Uri) -> str | None:
        """The AOR ("sip:alice@overlay.example") that the global number in `uri` stands for, None for nobody.

        Raises LocationUnavailable when the overlay cannot be asked.
        """
        number = self.number(uri)
        if number is None:
            return None
        known = self._known.get(number)
        if known is None or known.until <= self._now():
            owner = await self._follow(f"{number}@{self._domains[0]}")
            known = _Known(owner, self._now() + (_UNKNOWN_SECONDS if owner is None else _KNOWN_SECONDS))
            while len(self._known) >= _CACHED_NUMBERS:
                del self._known[next(iter(self._known))]
            self._known[number] = known
        return known.owner

    def number(self, uri: Uri) -> str | None:
        """The global number, without separators, that a tel: URI or a SIP URI of a served domain names; else None."""
        if isinstance(uri, TelUri):
            text = uri.number
        elif isinstance(uri, SipUri) and uri.host in self._domains and uri.user:
            text = _VISUAL_SEPARATORS.sub("", uri.unescaped_user.partition(";")[0])
        else:
            return None
        return text if _GLOBAL_NUMBER.fullmatch(text) else None

    async def _follow(self, name: str) -> str | None:
        """The end of a chain of aliases; None when there is none, it is too long, or goes round in a circle."""
        seen = {name}
        for _ in range(_LONGEST_CHAIN):
            target = await self._alias(name)
            if target is None:
                return f"sip:{name}" if len(seen) > 1 else None
            if target in seen:
                return None
            seen.add(target)
            name = target
        return None

    async def _alias(self, name: str) -> str | None:
        """What `name` stands for, by the newest alias stored under it."""
        try:
            values = (await self._overlay.fetch(name, (PROXY_REGISTRATION,))).values
        except NotFound:
            return None
        except ReloadError as error:
            raise LocationUnavailable(f"whom {name} stands for could not be asked: {error}") from error
        targets = []
        for value in values:
            if value.exists:
                try:
                    stored = decode_proxy_registration(value.value)
                except InvalidMessage:
                    continue
                if isinstance(stored, ProxyAlias) and stored.aor == name:
                    targets.append((value.storage_time, stored.target))
        return max(targets)[1] if targets else None


class Numbers:
    """The locator's step for telephone numbers that stand for users here: `find` is the step that finds users.

    A number that stands for nobody is left to the steps after it, unless another node or domain asks.
    """

    def __init__(self, numbers: OverlayNumbers, find: LocateStep) -> None:
        self._numbers = numbers
        self._find = find

    async def __call__(self, query: Query) -> Sequence[Target] | None:
        """The step."""
        if query.origin is Origin.NODE or self._numbers.number(query.uri) is None:
            return None
        owner = await self._numbers.owner(query.uri)
        if owner is None:
            if query.origin is Origin.PEER:
                raise NotLocated(404)
            return None
        user, _, host = owner.removeprefix("sip:").rpartition("@")
        try:
            uri = SipUri(host, user=user)
        except SipError:
            raise NotLocated(404) from None
        found = await self._find(query._replace(uri=uri))
        if not found:
            # The number is known, and its user not there: no other step may look for it elsewhere.
            raise NotLocated(480)
        return found

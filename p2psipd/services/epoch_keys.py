"""The keys of the password epochs, which every registrar of the overlay is given (overlay profile, section 4).

With them a registrar opens DIGEST-CREDENTIAL values, and makes the keys of nonces and route tokens that all
registrars share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from p2psipd.proto.reload.errors import NotFound, ReloadError
from p2psipd.proto.reload.ids import ResourceId
from p2psipd.proto.reload.kinds import DIGEST_KEY
from p2psipd.proto.reload.sip_usage import DigestKey, derive_key, digest_key_entry, digest_key_name, unwrap_epoch_key
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.sip.locating import LocationUnavailable
from p2psipd.proto.sip.shared_secret import SharedSecret

if TYPE_CHECKING:
    from p2psipd.proto.identity.signing import Credential
    from p2psipd.proto.reload.peer_io import FetchOutcome

#: Epochs are numbered from 1; so many numbers are asked for at once, and up to this one the first time.
_AHEAD: Final = 16
_HIGHEST_FIRST: Final = 64
#: Seconds until the next look for a key: while there is none, and for a newer one.
LOOK_AGAIN: Final = 3.0
_LOOK_FOR_NEWER: Final = 600.0
#: What the epoch before signed is still taken.
_EPOCHS_KEPT: Final = 2


class OverlayAccess(Protocol):
    """What is needed of the overlay; ``services.overlay.OverlayService`` is one."""

    async def fetch(self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier]) -> FetchOutcome:
        """The verified values of these kinds."""
        ...


class EpochKeys(Service):
    """This registrar's keys, each unwrapped once with the private key of ``credential``; also a ``SharedSecret``.

    As long as no key is known, and for what was signed until then, the node's ``own`` secret serves: what it
    signs holds at this node alone, and the log says so.
    """

    log = Logger(namespace="p2psipd.epoch_keys")

    def __init__(
        self, overlay: OverlayAccess, overlay_name: str, credential: Credential, own: SharedSecret, reactor: object
    ) -> None:
        self.setName("epoch-keys")  # type: ignore[no-untyped-call]
        self._overlay = overlay
        self._name = digest_key_name(overlay_name)
        self._credential = credential
        self._own = own
        self._clock = cast(IReactorTime, reactor)
        self._keys: dict[int, bytes] = {}
        self._derived: dict[str, tuple[bytes, ...]] = {}
        self._next_look: IDelayedCall | None = None
        self._joined = False
        self._said = False

    # -- the keys of an epoch ----------------------------------------------------------------------

    async def key(self, epoch: int) -> bytes:
        """The key of an epoch. LocationUnavailable when this registrar was not given it; ReloadError."""
        if epoch not in self._keys:
            await self._fetch([epoch])
        if epoch not in self._keys:
            raise LocationUnavailable(
                f"this registrar was not given the password key of epoch {epoch}; `p2psip user rekey` gives it"
            )
        return self._keys[epoch]

    async def _fetch(self, epochs: Iterable[int]) -> None:
        """Take the keys of these epochs that there are for this registrar."""
        node_id = self._credential.certificate.node_id
        entries = {digest_key_entry(node_id, epoch): epoch for epoch in epochs}
        wanted = StoredDataSpecifier(DIGEST_KEY, keys=tuple(entries))
        with suppress(NotFound):
            for stored in (await self._overlay.fetch(self._name, (wanted,))).values:
                if stored.exists and stored.key in entries:
                    key = unwrap_epoch_key(DigestKey.decode(stored.value), node_id, self._credential.private_key)
                    self._keys[entries[stored.key]] = key
                    self._derived.clear()
        if self._keys and self._said:
            self._said = False
            self.log.info("this registrar has its key now: passwords of the overlay can be checked")

    def renew(self, credential: Credential) -> None:
        """This registrar's certificate, and perhaps its key, was renewed; keys that are open stay so."""
        self._credential = credential

    # -- the secret that registrars share ----------------------------------------------------------

    def keys(self, purpose: str) -> Sequence[bytes]:
        """See ``proto.sip.shared_secret``: derived from the newest epochs, then this node's own."""
        found = self._derived.get(purpose)
        if found is None:
            newest = sorted(self._keys, reverse=True)[:_EPOCHS_KEPT]
            shared = [derive_key(self._keys[epoch], purpose) for epoch in newest]
            found = self._derived[purpose] = (*shared, *self._own.keys(purpose))
        return found

    # -- looking for newer ones --------------------------------------------------------------------

    def begin(self) -> None:
        """The overlay has been joined: look for the keys, now and from time to time.

        Who founds an overlay joins it before this service is started: then the looking begins with the start.
        """
        self._joined = True
        if self.running and self._next_look is None:
            self._look_now()

    def startService(self) -> None:
        """Look, if the overlay has been joined already."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._joined:
            self.begin()

    def stopService(self) -> Any:
        """Look no more."""
        if self._next_look is not None and self._next_look.active():
            self._next_look.cancel()
        self._next_look = None
        return super().stopService()  # type: ignore[no-untyped-call]

    def _look_now(self) -> None:
        # Set before the answer comes, so that a look that never ends is followed by the next one.
        self._next_look = self._clock.callLater(_LOOK_FOR_NEWER if self._keys else LOOK_AGAIN, self._look_now)
        Deferred.fromCoroutine(self.look())

    async def look(self) -> None:
        """Ask for the keys of epochs newer than those that are known."""
        try:
            newest = max(self._keys, default=0)
            while True:
                await self._fetch(range(newest + 1, newest + 1 + _AHEAD))
                newest += _AHEAD
                if self._keys or newest >= _HIGHEST_FIRST:
                    break
        except ReloadError as error:
            self.log.info("the epoch's key could not be asked for: {error}", error=error)
        if not self._keys and not self._said:
            self._said = True
            self.log.warn(
                "this registrar was given the key of no epoch: no password of the overlay can be checked, and nonces"
                " hold here alone; `p2psip user rekey` gives a key to every registrar of the authority"
            )

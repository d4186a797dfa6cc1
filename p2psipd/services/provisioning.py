"""Users' passwords in the overlay: sealed credentials, and the epoch's key wrapped for each registrar.

:class:`Provisioner` acts through a client node that has a provisioning certificate.  What it must remember
between runs (the keys of the epochs, who the users are) is the caller's: ``p2psipd.provisioning_files``.

Stored values end with the certificate that signed them, after 30 days at the most:
:meth:`Provisioner.renew_user` and :meth:`Provisioner.put_keys` are repeated before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from p2psipd.proto.identity.certificate import DAY, NodeCertificate
from p2psipd.proto.reload.errors import InvalidMessage, NotFound
from p2psipd.proto.reload.ids import ResourceId, resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, DIGEST_KEY, PROXY_REGISTRATION
from p2psipd.proto.reload.peer_io import StoreValue
from p2psipd.proto.reload.sip_usage import (
    NONCE_LENGTH,
    DigestAlgorithm,
    DigestCredential,
    ProxyAlias,
    alias_key,
    digest_key_entry,
    digest_key_name,
    hashed_passwords,
    open_credential,
    seal,
    wrap_epoch_key,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from p2psipd.proto.identity.signing import Credential, Signer
    from p2psipd.proto.reload.peer_io import FetchOutcome, StoreOutcome
    from p2psipd.proto.reload.storage_messages import StoredDataSpecifier

LONGEST_LIFETIME: Final = 30 * DAY
#: So many wrapped keys go into one Store: with their signatures about 20 KB.
_KEYS_AT_ONCE: Final = 50


class OverlayAccess(Protocol):
    """What is needed of the overlay; ``services.overlay.OverlayService`` is one."""

    async def fetch(self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier]) -> FetchOutcome:
        """The verified values of these kinds."""
        ...

    async def store(
        self,
        name: str | ResourceId,
        kind: int,
        values: Sequence[StoreValue],
        credential: Signer | None = None,
    ) -> StoreOutcome:
        """Sign and store values."""
        ...


class Provisioner:
    """Puts credentials and keys into one overlay.

    ``credential`` is the provisioning node's own, with which everything is signed; ``epochs`` holds the
    32-octet keys by epoch, the greatest number is the current one; ``draw`` gives that many random octets
    and ``draw_key`` a fresh P-256 key.  Every method raises ``ReloadError`` when the overlay refuses or
    does not answer.
    """

    def __init__(
        self,
        overlay: OverlayAccess,
        overlay_name: str,
        credential: Credential,
        epochs: Mapping[int, bytes],
        *,
        wall: Callable[[], float],
        draw: Callable[[int], bytes],
        draw_key: Callable[[], EllipticCurvePrivateKey],
    ) -> None:
        self._overlay = overlay
        self._overlay_name = overlay_name
        self._credential = credential
        self._epochs = epochs
        self._wall = wall
        self._draw = draw
        self._draw_key = draw_key

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return max(self._epochs)

    def lifetime(self) -> int:
        """Seconds for which a value stored now can be verified: 30 days, or until our certificate ends."""
        return int(max(0, min(LONGEST_LIFETIME, self._credential.certificate.not_after - self._wall())))

    async def put_keys(self, registrars: Sequence[NodeCertificate]) -> None:
        """Wrap the current epoch's key for every registrar and store it."""
        epoch, lifetime = self.epoch, self.lifetime()
        for start in range(0, len(registrars), _KEYS_AT_ONCE):
            values = [
                StoreValue(
                    wrap_epoch_key(
                        self._epochs[epoch], epoch, registrar.node_id, registrar.public_key, self._draw_key()
                    ).encode(),
                    lifetime,
                    key=digest_key_entry(registrar.node_id, epoch),
                )
                for registrar in registrars[start : start + _KEYS_AT_ONCE]
            ]
            await self._overlay.store(digest_key_name(self._overlay_name), DIGEST_KEY, values)

    async def put_user(self, aor: str, password: str) -> None:
        """Store the credential of ``aor`` ("alice@overlay.example"): user name "alice", realm the domain."""
        user, _, realm = aor.rpartition("@")
        await self._put(aor, hashed_passwords(user, realm, password))

    async def _put(self, aor: str, passwords: Mapping[DigestAlgorithm, bytes]) -> None:
        epoch = self.epoch
        sealed = seal(
            self._epochs[epoch], epoch, self._draw(NONCE_LENGTH), resource_id(aor), DIGEST_CREDENTIAL, passwords
        )
        await self._overlay.store(aor, DIGEST_CREDENTIAL, [StoreValue(sealed.encode(), self.lifetime())])

    async def remove_user(self, aor: str) -> None:
        """Store that ``aor`` has no credential any more; it holds for as long as a credential could have."""
        await self._overlay.store(aor, DIGEST_CREDENTIAL, [StoreValue(None, LONGEST_LIFETIME)])

    async def renew_user(self, aor: str) -> bool:
        """Store the credential of ``aor`` anew, sealed under the current epoch; False if there is none to
        be read.
        """
        passwords = await self._read(aor)
        if passwords is None:
            return False
        await self._put(aor, passwords)
        return True

    async def _read(self, aor: str) -> Mapping[DigestAlgorithm, bytes] | None:
        try:
            values = (await self._overlay.fetch(aor, (DIGEST_CREDENTIAL,))).values
        except NotFound:
            return None
        for value in values:
            if not value.exists:
                continue
            try:
                sealed = DigestCredential.decode(value.value)
                if sealed.epoch in self._epochs:
                    return open_credential(sealed, self._epochs[sealed.epoch], resource_id(aor), DIGEST_CREDENTIAL)
            except InvalidMessage:
                return None
        return None

    async def put_alias(self, name: str, target: str) -> None:
        """Have `name` ("+12125551212@overlay.example") stand for the AOR `target` ("alice@overlay.example").

        RFC 7904 section 4.2 step 2; whoever looks for the name finds the phones of the target.
        """
        alias = ProxyAlias(name, target)
        await self._overlay.store(name, PROXY_REGISTRATION, [StoreValue(alias.encode(), self.lifetime(), alias.key)])

    async def remove_alias(self, name: str, target: str) -> None:
        """Store that `name` no longer stands for `target`."""
        await self._overlay.store(name, PROXY_REGISTRATION, [StoreValue(None, LONGEST_LIFETIME, alias_key(target))])

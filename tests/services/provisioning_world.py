"""An overlay of one dictionary, with the access policies of the real one, for tests of the provisioning side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from p2psipd.proto.identity.certificate import NodeCertificate
from p2psipd.proto.identity.signing import Credential, Signer
from p2psipd.proto.reload.errors import NotFound, ReloadError
from p2psipd.proto.reload.ids import NodeId, ResourceId, resource_id
from p2psipd.proto.reload.kinds import STANDARD_KINDS, check_access
from p2psipd.proto.reload.messages import (
    DataModel,
    DataValue,
    DictionaryEntry,
    Signature,
    StoredData,
    StoredDataSpecifier,
)
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_io import FetchOutcome, StoreOutcome, StoreValue
from p2psipd.proto.reload.security import NO_SIGNATURE
from p2psipd.proto.reload.values import VerifiedValue


class Held(NamedTuple):
    """A value that is stored, until when, and who signed it."""

    value: bytes | None
    lifetime: int
    signer: NodeCertificate


class FakeOverlay:
    """What ``OverlayService`` is to the provisioner.  ``held`` is (resource, kind, key) -> value; ``refusal`` is
    raised by every Store while it is set.
    """

    def __init__(self, configuration: OverlayConfiguration, credential: Credential) -> None:
        self.configuration = configuration
        self.credential = credential
        self.held: dict[tuple[bytes, int, bytes], Held] = {}
        self.stores = 0
        self.refusal: ReloadError | None = None

    async def store(
        self,
        name: str | ResourceId,
        kind: int,
        values: Sequence[StoreValue],
        credential: Signer | None = None,
    ) -> StoreOutcome:
        """Store, if the kind's policy and limits allow it."""
        if self.refusal is not None:
            raise self.refusal
        self.stores += 1
        signer = (credential or self.credential).certificate
        resource, definition = _resource(name), STANDARD_KINDS[kind]
        for value in values:
            data = DataValue(value.value is not None, value.value or b"")
            assert len(data.value) <= definition.max_size
            dictionary = definition.data_model is DataModel.DICTIONARY
            stored = DictionaryEntry(value.key or b"", data) if dictionary else data
            check_access(definition, resource, signer, stored, self.configuration)
            self.held[resource, kind, value.key or b""] = Held(value.value, value.lifetime, signer)
        return StoreOutcome(NodeId(signer.node_id), (), 1, 0.0)

    async def fetch(
        self, resource: str | ResourceId, kinds: Iterable[int | StoredDataSpecifier], *, fresh: bool = False
    ) -> FetchOutcome:
        """The values held, or NotFound."""
        at, found = _resource(resource), []
        for wanted in kinds:
            kind = wanted if isinstance(wanted, int) else wanted.kind
            for (where, held_kind, key), held in self.held.items():
                if (where, held_kind) == (at, kind):
                    exists, value = held.value is not None, held.value or b""
                    data = StoredData(0, held.lifetime, DataValue(exists, value), _SIGNATURE)
                    found.append(VerifiedValue(kind, key, exists, value, 0, held.lifetime, held.signer, data))
        if not found:
            raise NotFound("nothing")
        return FetchOutcome(tuple(found), {}, NodeId(self.credential.certificate.node_id), 1, 0.0)


_SIGNATURE: Signature = NO_SIGNATURE


def _resource(name: str | bytes) -> ResourceId:
    return resource_id(name) if isinstance(name, str) else ResourceId(name)

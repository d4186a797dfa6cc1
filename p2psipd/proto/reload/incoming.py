"""A verified request on its way to the method that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import NodeId

if TYPE_CHECKING:
    from p2psipd.proto.identity.certificate import NodeCertificate
    from p2psipd.proto.reload.messages import Body

Reply = Callable[["Body | ReloadError", Iterable[bytes]], None]


class IncomingRequest:
    """A request whose signature was checked.

    `node` signed it; `link_node` is the node at the other end of the link it came over (None: ourselves), so
    that `node == link_node` says that it came over the connection bound to its signer, as Join and Leave must
    (RFC 6940 sections 6.4.2.1 and 6.4.2.2).  `certificates` maps SHA-256 to DER of what came in the security
    block.  `addressed_to_us` is false when the destination was a Resource-ID or the wildcard.  `answered` is true
    once `answer` or `fail` was called.
    """

    __slots__ = (
        "_reply",
        "addressed_to_us",
        "answered",
        "body",
        "certificates",
        "code",
        "hops",
        "link_node",
        "node",
        "signer",
    )

    def __init__(
        self,
        code: int,
        body: Body,
        signer: NodeCertificate,
        link_node: NodeId | None,
        certificates: Mapping[bytes, bytes],
        hops: int,
        addressed_to_us: bool,
        reply: Reply,
    ) -> None:
        self.code = code
        self.body = body
        self.signer = signer
        self.node = NodeId(signer.node_id)
        self.link_node = link_node
        self.certificates = certificates
        self.hops = hops
        self.addressed_to_us = addressed_to_us
        self.answered = False
        self._reply = reply

    @property
    def direct(self) -> bool:
        """Whether it came over the link that is bound to its signer."""
        return self.node == self.link_node

    def answer(self, body: Body, certificates: Iterable[bytes] = ()) -> None:
        """Send `body` as the response; `certificates` (DER) are needed to verify what is in it."""
        self.answered = True
        self._reply(body, certificates)

    def fail(self, error: ReloadError) -> None:
        """Send an error response."""
        self.answered = True
        self._reply(error, ())

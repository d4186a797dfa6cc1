"""A foreign node worked by hand: it says exactly what a test makes it say, over links of a stapled world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from p2psipd.proto.identity.certificate import Role, role_name
from p2psipd.proto.identity.signing import NullCredential, null_certificate
from p2psipd.proto.reload import peer_io
from p2psipd.proto.reload.errors import InvalidMessage, ReloadError
from p2psipd.proto.reload.framing import FramedLink
from p2psipd.proto.reload.ids import NodeId, overlay_hash
from p2psipd.proto.reload.kinds import STANDARD_KINDS
from p2psipd.proto.reload.messages import Body, ErrorResponse, decode_body, is_request
from p2psipd.proto.reload.sealing import Sealer
from p2psipd.proto.reload.wire import (
    Destination,
    ForwardingHeader,
    NodeDestination,
    decode_contents,
    decode_header,
)
from tests.proto.reload.stapled import OVERLAY, Node, World

HASH = overlay_hash(OVERLAY)
MODELS = {kind.id: kind.data_model for kind in STANDARD_KINDS.values()}


class Heard(NamedTuple):
    """A message that came to a foreign node; `body` is the error for an error response."""

    header: ForwardingHeader
    code: int
    body: Any
    signer: bytes
    data: bytes


def read(data: bytes) -> Heard:
    """A whole message, its signature not looked at."""
    header, offset = decode_header(data)
    contents, _, block = decode_contents(data, offset)
    body: Any = decode_body(contents.code, contents.body, MODELS)
    if isinstance(body, ErrorResponse):
        body = body.error()
    return Heard(header, contents.code, body, block.signature.identity.certificate_hash, data)


class Hand:
    """A node with a certificate of the simulator's kind, linked to `node`, that answers nothing by itself."""

    alive = True
    frozen = None
    #: Whether what comes has to be well-formed; a peer passes on as it is what it is not to read.
    strict = True

    def __init__(
        self, node: Node, role: Role = Role.REGISTRAR, user: str = "hand@overlay.example", not_after: float = 4e9
    ) -> None:
        self.world: World = node.world
        self.node = node
        self.number = -1
        self.node_id = NodeId(self.world.random.getrandbits(128).to_bytes(16, "big"))
        name = user if role is Role.USER else role_name(role, self.node_id, OVERLAY)
        self.certificate = null_certificate(self.node_id, name, OVERLAY, not_after=not_after)
        self.sealer = Sealer(NullCredential(self.certificate), HASH)
        self.address = (f"127.8.{len(self.world.by_address)}.1", 6084)
        self.framed: dict[int, FramedLink] = {}
        self.links: dict[int, tuple[Any, int]] = {}
        self.heard: list[Heard] = []
        self.closed: dict[int, str] = {}
        self.link, theirs = next(self.world.link_ids), next(self.world.link_ids)
        self.links[self.link] = (node, theirs)
        self.theirs = theirs
        node.links[theirs] = (self, self.link)  # type: ignore[assignment]
        node.put(peer_io.LinkUp(theirs, self.certificate.der, self.address, None))

    def listen(self) -> None:
        """Be one that can be dialled."""
        self.world.by_address[self.address] = self  # type: ignore[assignment]

    def put(self, item: peer_io.PeerInput) -> None:
        """What the world brings."""
        if isinstance(item, peer_io.LinkDown):
            self.closed[item.link] = item.reason
        elif isinstance(item, peer_io.LinkBytes):
            framed = self.framed.setdefault(item.link, FramedLink())
            try:
                messages, acks = framed.receive(item.data, self.world.now)
            except InvalidMessage:  # an acknowledgement of octets that a test sent past our own framing
                return
            if acks:
                self.world.sent(self, item.link, acks)  # type: ignore[arg-type]
            for message in messages:
                try:
                    self.heard.append(read(message))
                except InvalidMessage:
                    if self.strict:
                        raise

    def octets(self, data: bytes) -> None:
        """Send octets as they are."""
        self.world.sent(self, self.link, data)  # type: ignore[arg-type]
        self.world.run(0.1)

    def send(self, message: bytes) -> None:
        """Send a message in a frame of its own."""
        self.octets(self.framed.setdefault(self.link, FramedLink()).send(message, self.world.now))

    def message(
        self,
        body: Body,
        destinations: tuple[Destination, ...] | None = None,
        *,
        transaction: int | None = None,
        certificates: Iterable[bytes] = (),
        **header: Any,
    ) -> bytes:
        """A signed message; to our neighbour unless `destinations` say otherwise."""
        number = self.world.random.getrandbits(64) if transaction is None else transaction
        to = destinations or (NodeDestination(self.node.peer.node_id),)
        fields = ForwardingHeader(HASH, 0, 20, 0, True, number, 0, (), to)._replace(**header)
        return self.sealer.seal(fields, body.code, body.encode(), certificates)

    def ask(self, body: Body, destinations: tuple[Destination, ...] | None = None, **options: Any) -> Any:
        """Send a request; the body or error of the answer, None if none came at once."""
        return self.ask_octets(self.message(body, destinations, **options))

    def ask_octets(self, message: bytes) -> Any:
        """Send a request that is already written; likewise."""
        before = len(self.heard)
        self.send(message)
        number = message[20:28]
        for heard in self.heard[before:]:
            if not is_request(heard.code) and heard.data[20:28] == number:
                return heard.body
        return None

    def requests(self, kind: type[Body]) -> list[Heard]:
        """The requests of one method that came in."""
        return [heard for heard in self.heard if isinstance(heard.body, kind)]


def misbehaviours(node: Node) -> list[str]:
    """The reasons of the Misbehaved events of a node, oldest first."""
    return [event.reason for event in node.events if isinstance(event, peer_io.Misbehaved)]


def is_error(answer: Any, kind: type[ReloadError]) -> bool:
    """Whether an answer is exactly this error."""
    return type(answer) is kind

"""What this node writes into Record-Route, and reads again from Route (RFC 3261 section 16.6 step 4, RFC 5626
section 5.2).

Two values stand in each request that makes a dialog, one for each side (RFC 5658), the outgoing side's on
top:

* towards a phone ``<sip:TOKEN@host:port;transport=...;lr>``: TOKEN names the flow to that phone and is
  authenticated, so that requests of the dialog reach phones behind NATs, and nobody can use the proxy as a
  relay;
* towards a node of the overlay ``<sips:TOKEN@OVERLAY;gr=DESTINATION-LIST;lr>``: the destination list is this node's
  Node-ID (RFC 7904 section 6), by which the other node reaches it with AppAttach.

Both tokens are made with a key that all registrars share (profile section 7), and the one for a phone names its
user: when this node has died, another one reads there who is meant, and finds the phone anew.

Every token is good for one Call-ID: whoever has seen one (any callee, any node or domain on the way) could otherwise
send anything that bears a To tag to that phone, and through this node to anywhere, without a password.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from ipaddress import ip_address
from struct import Struct
from typing import Final, NamedTuple

from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import encode_gr
from p2psipd.proto.sip.message import Request
from p2psipd.proto.sip.parameters import LONGEST_REMEMBERED
from p2psipd.proto.sip.shared_secret import ROUTE_TOKENS, SharedSecret
from p2psipd.proto.sip.uri import SipUri

_HEAD: Final = Struct(">B4s")
_UDP: Final = Struct(">BH")
_STREAM: Final = Struct(">IQ")
_KIND_UDP4, _KIND_UDP6, _KIND_STREAM, _KIND_NODE = 1, 2, 3, 4
_ADDRESS_OCTETS: Final = {_KIND_UDP4: 4, _KIND_UDP6: 16}
_MAC_OCTETS: Final = 8
_PARAMETER: Final = {"TCP": "tcp", "TLS": "tls", "WS": "ws", "WSS": "ws"}
"""The transport parameter of a URI by Via transport; there is no "wss" (RFC 7118 section 5.2)."""
_MAX_AOR: Final = 128
_MAX_TOKEN: Final = 240
_KEPT: Final = 20_000


class UdpToken(NamedTuple):
    """A flow over UDP: the number of our listener, and the phone's address."""

    listener: int
    remote: Address


class StreamToken(NamedTuple):
    """A connection: its number in this run of the node."""

    number: int


class Token(NamedTuple):
    """What a token says: the mark of the node that wrote it, the user on that side ("user@domain", "" if nobody
    is known), and its flow, None unless it is one that this node may still have.
    """

    writer: bytes
    user: str
    flow: UdpToken | StreamToken | None


class RecordRouter:
    """Makes this node's Record-Route values, and reads those of every registrar.

    `secrets` gives the keys of the tokens; `run` (32 bits) tells connections of this run from those of an earlier
    one. A flow's `connection` is its listener's number (UDP) or its own (streams).
    """

    def __init__(self, secrets: SharedSecret, run: int, overlay: str, node_id: bytes) -> None:
        self._secrets = secrets
        self._secret_keys: Sequence[bytes] = ()
        self._run = run & 0xFFFFFFFF
        self._mark = writer_mark(node_id)
        self._known: dict[tuple[str, str], Token] = {}
        self._overlay = overlay
        self._node_end = f"@{overlay};gr={encode_gr(node_id)};lr>"

    def value(self, flow: Flow, user: str, call_id: str) -> str:
        """The Record-Route value for the phone of `user` ("user@domain", "" if nobody is known) at the other end of
        `flow`, in the dialogs of `call_id`.
        """
        host, port = flow.sent_by
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        transport = "" if flow.transport == "UDP" else f";transport={_PARAMETER.get(flow.transport, 'tcp')}"
        return f"<sip:{self.token(flow, user, call_id)}@{where}{transport};lr>"

    def node_value(self, call_id: str) -> str:
        """The Record-Route value for other nodes."""
        return f"<sips:{self._node_token(call_id)}{self._node_end}"

    def route_to(self, node_id: bytes, call_id: str) -> str:
        """A Route value for another registrar, which can tell by its token that one of us has written it."""
        return f"<sips:{self._node_token(call_id)}@{self._overlay};gr={encode_gr(node_id)};lr>"

    def token(self, flow: Flow, user: str, call_id: str) -> str:
        """The authenticated name of `flow`, and of its `user`."""
        number = flow.connection if isinstance(flow.connection, int) else 0
        if flow.transport == "UDP":
            host, port = flow.remote
            packed = ip_address(host.partition("%")[0]).packed
            kind = _KIND_UDP4 if len(packed) == _ADDRESS_OCTETS[_KIND_UDP4] else _KIND_UDP6
            return self._sealed(_HEAD.pack(kind, self._mark) + _UDP.pack(number & 0xFF, port) + packed, user, call_id)
        return self._sealed(_HEAD.pack(_KIND_STREAM, self._mark) + _STREAM.pack(self._run, number), user, call_id)

    def _node_token(self, call_id: str) -> str:
        return self._sealed(_HEAD.pack(_KIND_NODE, self._mark), "", call_id)

    def _sealed(self, data: bytes, user: str, call_id: str) -> str:
        name = user.encode("utf-8", "surrogateescape")
        if len(name) <= _MAX_AOR:
            data += name
        data += _mac(self._secrets.keys(ROUTE_TOKENS)[0], data, call_id)
        return urlsafe_b64encode(data).decode("ascii").rstrip("=")

    def read(self, token: str, call_id: str) -> Token | None:
        """What a token names; None if no registrar of ours wrote it for this Call-ID."""
        keys = self._secrets.keys(ROUTE_TOKENS)
        if keys is not self._secret_keys:
            self._secret_keys = keys
            self._known.clear()
        known = self._known.get((token, call_id))
        if known is None:
            known = self._open(token, call_id)
            if known is not None and len(call_id) < LONGEST_REMEMBERED:
                # Each request of a dialog has the same tokens. Forged ones are not kept.
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[token, call_id] = known
        return known

    def drop_routes(self, request: Request) -> Token | None:
        """Take off the Route values on top that one other node of ours wrote; what the last of them said.

        For requests of a dialog whose registrar has died: they come to us instead, or its next hop is dead.
        None (and nothing taken off) if the top Route is none of ours.
        """
        last: Token | None = None
        count = 0
        for route in request.routes:
            hop = route.uri
            token = self.read(hop.user, request.call_id) if isinstance(hop, SipUri) and hop.lr and hop.user else None
            if token is None or (last is not None and token.writer != last.writer):
                break
            last = token
            count += 1
        for _ in range(count):
            request.remove_first("route")
        return last

    def _open(self, token: str, call_id: str) -> Token | None:
        if not token or len(token) > _MAX_TOKEN:
            return None
        try:
            data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (Base64Error, ValueError):
            return None
        body, mac = data[:-_MAC_OCTETS], data[-_MAC_OCTETS:]
        genuine = any(compare_digest(mac, _mac(key, body, call_id)) for key in self._secret_keys)
        if len(body) < _HEAD.size or not genuine:
            return None
        kind, writer = _HEAD.unpack_from(body)
        rest = body[_HEAD.size :]
        flow: UdpToken | StreamToken | None = None
        if kind in _ADDRESS_OCTETS:
            end = _UDP.size + _ADDRESS_OCTETS[kind]
            listener, port = _UDP.unpack_from(rest)
            flow = UdpToken(listener, (str(ip_address(rest[_UDP.size : end])), port))
            rest = rest[end:]
        elif kind == _KIND_STREAM:
            run, number = _STREAM.unpack_from(rest)
            flow = StreamToken(number) if run == self._run else None
            rest = rest[_STREAM.size :]
        return Token(writer, rest.decode("utf-8", "surrogateescape"), flow if writer == self._mark else None)


def writer_mark(node_id: bytes) -> bytes:
    """The four octets by which tokens name the node that wrote them."""
    return blake2b(node_id, digest_size=4).digest()


def _mac(key: bytes, data: bytes, call_id: str) -> bytes:
    named = call_id.encode("utf-8", "surrogateescape") + b"\0" + data
    return blake2b(named, key=key, digest_size=_MAC_OCTETS).digest()

"""What this node writes into Record-Route, and reads again from Route (RFC 3261 section 16.6 step 4, RFC 5626
section 5.2).

Two values stand in each request that makes a dialog, one for each side (RFC 5658), the outgoing side's on
top:

* towards a phone ``<sip:TOKEN@host:port;transport=...;lr>``: TOKEN names the flow to that phone and is
  authenticated, so that requests of the dialog reach phones behind NATs, and nobody can use the proxy as a
  relay;
* towards a node of the overlay ``<sips:p2p@OVERLAY;gr=DESTINATION-LIST;lr>``: the destination list is this node's
  Node-ID (RFC 7904 section 6), by which the other node reaches it with AppAttach. The connection proves who
  sent what comes that way, so the user part carries no secret. (The overlay's profile has a token there that
  other registrars can read after this node's death; its place is kept.)
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b
from hmac import compare_digest
from ipaddress import ip_address
from struct import Struct
from typing import Final, NamedTuple

from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.locating import encode_gr

_UDP: Final = Struct(">BBH")
_STREAM: Final = Struct(">BIQ")
_KIND_UDP, _KIND_STREAM = 1, 2
_MAC_OCTETS: Final = 8
_PARAMETER: Final = {"TCP": "tcp", "TLS": "tls", "WS": "ws", "WSS": "ws"}
"""The transport parameter of a URI by Via transport; there is no "wss" (RFC 7118 section 5.2)."""
_MAX_TOKEN: Final = 80
_KEPT: Final = 20_000


class UdpToken(NamedTuple):
    """A flow token for UDP: the number of our listener, and the phone's address."""

    listener: int
    remote: Address


class StreamToken(NamedTuple):
    """A flow token for a connection: its number in this run of the node."""

    number: int


class RecordRouter:
    """Makes and reads this node's Record-Route values.

    `secret` keys the tokens; `run` (32 bits) tells connections of this run from those of an earlier one. A
    flow's `connection` is its listener's number (UDP) or its own (streams).
    """

    def __init__(self, secret: bytes, run: int, overlay: str, node_id: bytes) -> None:
        self._key = blake2b(b"flow token" + secret, digest_size=32).digest()
        self._run = run & 0xFFFFFFFF
        self._values: dict[Flow, str] = {}
        self._known: dict[str, UdpToken | StreamToken] = {}
        self.node_value = f"<sips:p2p@{overlay};gr={encode_gr(node_id)};lr>"

    def value(self, flow: Flow) -> str:
        """The Record-Route value for the phone at the other end of `flow`."""
        found = self._values.get(flow)
        if found is None:
            if len(self._values) >= _KEPT:
                self._values.clear()
            host, port = flow.sent_by
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            transport = "" if flow.transport == "UDP" else f";transport={_PARAMETER.get(flow.transport, 'tcp')}"
            found = self._values[flow] = f"<sip:{self.token(flow)}@{where}{transport};lr>"
        return found

    def token(self, flow: Flow) -> str:
        """The authenticated name of `flow`."""
        number = flow.connection if isinstance(flow.connection, int) else 0
        if flow.transport == "UDP":
            host, port = flow.remote
            data = _UDP.pack(_KIND_UDP, number & 0xFF, port) + ip_address(host.partition("%")[0]).packed
        else:
            data = _STREAM.pack(_KIND_STREAM, self._run, number)
        return urlsafe_b64encode(data + self._mac(data)).decode("ascii").rstrip("=")

    def read(self, token: str) -> UdpToken | StreamToken | None:
        """What a token names; None if we did not write it, or in an earlier run."""
        known = self._known.get(token)
        if known is None:
            known = self._open(token)
            if known is not None:
                # Each request of a dialog has the same tokens. Forged ones are not kept.
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[token] = known
        return known

    def _open(self, token: str) -> UdpToken | StreamToken | None:
        if not token or len(token) > _MAX_TOKEN:
            return None
        try:
            data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (Base64Error, ValueError):
            return None
        body, mac = data[:-_MAC_OCTETS], data[-_MAC_OCTETS:]
        if not body or not compare_digest(mac, self._mac(body)):
            return None
        if body[0] == _KIND_UDP and len(body) in (_UDP.size + 4, _UDP.size + 16):
            _, listener, port = _UDP.unpack_from(body)
            return UdpToken(listener, (str(ip_address(body[_UDP.size :])), port))
        if body[0] == _KIND_STREAM and len(body) == _STREAM.size:
            _, run, number = _STREAM.unpack(body)
            return StreamToken(number) if run == self._run else None
        return None

    def _mac(self, data: bytes) -> bytes:
        return blake2b(data, key=self._key, digest_size=_MAC_OCTETS).digest()

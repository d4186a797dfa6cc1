"""The vocabulary of "where is bob?": bindings, targets, and the seams to what knows them (RFC 3261 section
10, design D7).

A :class:`Binding` is what a registrar knows about one contact of one user; it becomes one PROXY-REGISTRATION
entry in the overlay, with every attribute. A :class:`Target` is one place that a request may be sent to. What
stores bindings, knows passwords or reaches other nodes is behind the Protocols at the end: the SIP service
takes them as arguments, so that it runs over dictionaries in a test and over the overlay in a node.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from hashlib import sha256
from ipaddress import ip_address
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote

from p2psipd.proto.sip.flow import Address, Flow
from p2psipd.proto.sip.message import Request, Response
from p2psipd.proto.sip.parameters import Remembered
from p2psipd.proto.sip.uri import OpaqueUri, SipUri, TelUri, parse_uri

NODE_ID_OCTETS: Final = 16
KEY_OCTETS: Final = 16
_DIALLED: Final = frozenset("0123456789*#-.()")
_NODE_DESTINATION: Final = 1
_RESOURCE_DESTINATION: Final = 2
_OPAQUE_DESTINATION: Final = 3
_MAX_GR: Final = 512
_USER_SAFE: Final = "-_.!~*'()&=+$,;?/"


class Binding(NamedTuple):
    """One contact of one user, as its registrar vouches for it.

    `aor` is "sip:user@domain", `key` the 16 octets of :func:`binding_key`, `contact` the URI as the phone
    wrote it, `node_id` the node that owns the phone's flow, `path` the Path values in their order (RFC 3327),
    `instance_id` and `reg_id` as in RFC 5626 ("" and 0 without), `expires_at` unix seconds. `received` says
    over what the phone registered, in the form of :func:`flow_text`: enough to send to it over UDP even after
    a restart. `parameters` are the other Contact parameters, verbatim. `native` marks a P2PSIP user agent
    that signed its own registration and takes SIP at `node_id` itself. `stored_at` (unix seconds) orders what
    several nodes say of one key.
    """

    aor: str
    key: bytes
    contact: str
    node_id: bytes
    path: tuple[str, ...] = ()
    q: float = 1.0
    instance_id: str = ""
    reg_id: int = 0
    call_id: str = ""
    cseq: int = 0
    expires_at: float = 0.0
    received: str = ""
    parameters: tuple[tuple[str, str | None], ...] = ()
    user_agent: str = ""
    native: bool = False
    stored_at: float = 0.0

    def until(self, expires_at: float) -> Binding:
        """The same with another end."""
        # One is made for each registration; _replace() takes twice as long.
        return Binding._make((*self[:_EXPIRES_AT], expires_at, *self[_EXPIRES_AT + 1 :]))


_EXPIRES_AT: Final = Binding._fields.index("expires_at")


def binding_key(contact: str, instance_id: str = "", reg_id: int = 0) -> bytes:
    """The dictionary key of a binding: 16 octets of SHA-256 of instance-id and reg-id, else of the Contact
    URI.
    """
    return _keys[f"{instance_id};{reg_id}" if instance_id else contact]


def _key(name: str) -> bytes:
    return sha256(name.encode("utf-8", "surrogateescape")).digest()[:KEY_OCTETS]


_keys = Remembered(_key, 2048)


def aor_of(uri: SipUri) -> str:
    """The address of record that `uri` names: "sip:user@domain", escapes undone, host in lower case, nothing
    else.
    """
    return f"sip:{uri.aor}"


def is_dialled(uri: object) -> bool:
    """Whether the user part of a SIP URI was dialled and not spelt: digits, perhaps a number of somewhere else."""
    if not isinstance(uri, SipUri) or not uri.user:
        return False
    digits = uri.unescaped_user.partition(";")[0].lstrip("+")
    return bool(digits) and not set(digits) - _DIALLED


def flow_text(flow: Flow) -> str:
    """`flow` as text that a record can hold: "UDP 192.0.2.1:5060 198.51.100.7:40000" (transport, local,
    remote).
    """
    return f"{flow.transport} {_hostport(flow.local)} {_hostport(flow.remote)}"


def parse_flow_text(text: str) -> tuple[str, tuple[str, int], tuple[str, int]] | None:
    """(transport, local, remote) of a :func:`flow_text`, or None if it is no such text."""
    return _flow_texts[text]


def _parse_flow_text(text: str) -> tuple[str, tuple[str, int], tuple[str, int]] | None:
    parts = text.split(" ")
    if len(parts) != 3:
        return None
    addresses = []
    for part in parts[1:]:
        host, colon, port = part.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
            return None
        addresses.append((host.strip("[]"), int(port)))
    return parts[0], addresses[0], addresses[1]


_flow_texts = Remembered(_parse_flow_text, 2048)


def _hostport(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def behind_nat(binding: Binding, source: str) -> bool:
    """Whether the phone at `source` can only be reached where it came from, and not by its Contact.

    A private address says so, unless it is a neighbour's of `source`, in the same 24 (IPv6: 64) bits: then somebody has
    registered another host of its network, which we reach as well as itself.
    """
    if binding.reg_id:
        return True
    uri = parse_uri(binding.contact)
    if not isinstance(uri, SipUri) or uri.host == source:
        return False
    if uri.host.endswith(".invalid") or uri.ob:
        return True
    try:
        return ip_address(uri.host).is_private and _network(uri.host) != _network(source)
    except ValueError:
        return False


def _network(host: str) -> int:
    """The first 24 bits of an IPv4 address, the first 64 of an IPv6 one. Raises ValueError."""
    address = ip_address(host)
    return int(address) >> (8 if address.version == 4 else 64)


# ---- GRUU: a destination list in a URI (RFC 7904 section 6) ------------------------------------------------


class Destinations(NamedTuple):
    """The destination list of a "gr" parameter.

    Either a node, and what only that node understands ("" for the node itself); or the resource of a user, and the
    instance of the user's that is meant, wherever it is registered.
    """

    node_id: bytes
    opaque: bytes = b""
    resource: bytes = b""


def encode_gr(node_id: bytes, opaque: bytes = b"") -> str:
    """The value of "gr" for a node, or for an instance behind it (its binding key is the list's last, opaque
    element).

    A RELOAD Destination is type, length, data (RFC 6940 section 6.3.2.2); base64 with "~" for "=" (RFC 7904
    section 6).
    """
    data = bytes((_NODE_DESTINATION, len(node_id))) + node_id
    if opaque:
        data += bytes((_OPAQUE_DESTINATION, len(opaque) + 1, len(opaque))) + opaque
    return _gr_text(data)


def _gr_text(data: bytes) -> str:
    return b64encode(data).decode("ascii").replace("=", "~")


def instance_key(instance_id: str) -> bytes:
    """What names an instance in a public GRUU: 16 octets of SHA-256 of its instance-id."""
    return sha256(instance_id.encode("utf-8", "surrogateescape")).digest()[:KEY_OCTETS]


def resource_of(aor: str) -> bytes:
    """The Resource-ID of an AOR "sip:user@domain": 128 bits of SHA-256 of its Resource Name."""
    return sha256(aor.removeprefix("sip:").encode("utf-8", "surrogateescape")).digest()[:KEY_OCTETS]


def public_gruu(aor: str, instance_id: str) -> str:
    """The public GRUU of an instance of the user `aor` (RFC 5627 section 5.4, in the form of RFC 7904 section 6).

    Its destination list is the resource of the user, and an opaque element that names the instance: the same whichever
    registrar writes it, and valid as long as the user is, wherever the instance is registered.
    """
    data = bytes((_RESOURCE_DESTINATION, KEY_OCTETS + 1, KEY_OCTETS)) + resource_of(aor)
    data += bytes((_OPAQUE_DESTINATION, KEY_OCTETS + 1, KEY_OCTETS)) + instance_key(instance_id)
    user, _, host = aor.removeprefix("sip:").rpartition("@")
    return f"sip:{quote(user, safe=_USER_SAFE, errors='surrogateescape')}@{host};gr={_gr_text(data)}"


def decode_gr(text: str) -> Destinations | None:
    """The destination list in the value of a "gr" parameter; None if it is none that we write (a foreign
    GRUU).
    """
    if not text or len(text) > _MAX_GR:
        return None
    try:
        data = b64decode(text.replace("~", "="), validate=True)
    except (Base64Error, ValueError):
        return None
    if data[:3] == bytes((_RESOURCE_DESTINATION, KEY_OCTETS + 1, KEY_OCTETS)):
        resource, rest = data[3 : 3 + KEY_OCTETS], data[3 + KEY_OCTETS :]
        if rest[:3] != bytes((_OPAQUE_DESTINATION, KEY_OCTETS + 1, KEY_OCTETS)) or len(rest) != 3 + KEY_OCTETS:
            return None
        return Destinations(b"", rest[3:], resource)
    length = 2 + NODE_ID_OCTETS
    if data[:2] != bytes((_NODE_DESTINATION, NODE_ID_OCTETS)) or len(data) < length:
        return None
    node_id, rest = data[2:length], data[length:]
    if not rest:
        return Destinations(node_id)
    if len(rest) < 4 or rest[0] != _OPAQUE_DESTINATION or rest[1] != len(rest) - 2 or rest[2] != len(rest) - 3:
        return None
    return Destinations(node_id, rest[3:])


# ---- looking up --------------------------------------------------------------------------------------------


class NodeIdentity(NamedTuple):
    """Who is at the other end of a connection between nodes, as its certificate says.

    `user` is the certificate's user name; `registrar` whether that name makes it a registrar, which vouches
    for every user of the served domains (profile section 7).
    """

    node_id: bytes
    user: str
    registrar: bool


class DomainIdentity(NamedTuple):
    """Who is at the other end of a connection with another SIP domain: `domains` (lower case) that its certificate
    proves (RFC 5922), and the name of the :class:`p2psipd.proto.sip.edge.Edge` that owns the connection.
    """

    domains: tuple[str, ...]
    edge: str


class Origin(Enum):
    """Who asks: a phone (or whoever speaks SIP to us); another node of the overlay, whose look-up must not travel
    on; or another domain (a peer), which is looked up like a phone's but never leaves the overlay again.
    """

    PHONE = "phone"
    NODE = "node"
    PEER = "peer"


class Query(NamedTuple):
    """One look-up: the Request-URI, who asks, and the time (unix seconds) by which bindings are judged alive.

    `fresh` asks for the truth, past any cache: what was known has just proved wrong.
    """

    uri: SipUri | TelUri | OpaqueUri
    origin: Origin
    wall: float
    fresh: bool = False


class Target(NamedTuple):
    """One place to send a request to (RFC 3261 section 16.5).

    `uri` becomes the Request-URI. Then exactly one of: `flow` (send on it), `node_id` (a node of the overlay,
    reached by the connector), `address` (transport, host, port), or none of them: a Route is made by
    `route_maker`, or without one by RFC 3263 from `uri`. `route` are Route values to put on top (a Path).
    `instance` names the device: targets of one instance are alternatives, never parallel. `binding` is where
    it came from.
    """

    uri: str
    flow: Flow | None = None
    node_id: bytes | None = None
    address: tuple[str, str, int] | None = None
    route: tuple[str, ...] = ()
    q: float = 1.0
    instance: str = ""
    binding: Binding | None = None
    route_maker: RouteMaker | None = None


class Attempt(NamedTuple):
    """One try of a :class:`Route`: send this request on this flow. Our Via is not in it yet."""

    flow: Flow
    request: Request


class Route(Protocol):
    """The tries by which one request may reach one target, made one after the other (RFC 3263 section 4.3)."""

    async def next(self, last: Response | None) -> Attempt | None:
        """The first or next try; None when there are no more: the last outcome stands.

        `last` is what the try before got: None at the first call, after a transport failure and after a timeout
        without any response. Another try follows a 503, a failure and such a timeout, and after any other final
        response that is not a 2xx this is asked whether there is one. Raises Unreachable, or NotLocated with the
        status that is to stand for the target.
        """
        ...


RouteMaker = Callable[[Request, Target], Route]
"""Makes the Route of a target; the request is the copy for this target, without Record-Route and Via."""


class NotLocated(Exception):
    """The look-up ended without a target: `status` and `reason` answer the request (404, 430, 480, 500,
    503).
    """

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(reason or str(status))
        self.status = status
        self.reason = reason or None


class LocationUnavailable(Exception):
    """The location store could not be asked or written: 503 with Retry-After. The message says what went
    wrong.
    """


class Unreachable(Exception):
    """Another node could not be reached for SIP: the branch fails as if it had answered 503 (RFC 3261 section
    16.9).
    """


LocateStep = Callable[[Query], Awaitable[Sequence[Target] | None]]
"""One step of the locator: None means "not mine, ask the next one"; targets end the search; NotLocated ends
it, too.
"""

Locate = Callable[[Query], Awaitable[Sequence[Target]]]


class LocationStore(Protocol):
    """Where bindings are kept. Each method raises LocationUnavailable if it could not do its work."""

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        """The living bindings of `aor` ("sip:user@domain"), verified; an unknown user has none.

        Among them may be some that have run out; one that was removed has no contact, and ran out in 1970.
        `fresh` asks the responsible node itself, not the nearest copy.
        """
        ...

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        """Store or replace the entries of `puts`, and store the non-existence of `removes` for the rest of their
        lifetimes: all of them or none; returns when they are held by the responsible node and its replicas.
        """
        ...


class CredentialSource(Protocol):
    """Who knows the users' passwords, as HA1 values (RFC 7616 section 3.4.2)."""

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        """The raw H(user:realm:password) by algorithm token ("MD5", "SHA-256"); None for an unknown user.

        `user` is as the phone writes it, "alice" or "alice@realm": the hashes are different ones, and none are known
        (an empty mapping) where only the other form was set up. `fresh` asks past what is remembered, which has just
        proved wrong: everybody who may know. Raises LocationUnavailable if that can't be known now.
        """
        ...


class NodeConnector(Protocol):
    """Reaches other nodes of the overlay for SIP: AppAttach and a pooled mutual-TLS connection (profile
    section 5).

    Its flows have `write(data)`, `alive` and `peer`, a NodeIdentity.
    """

    @property
    def address(self) -> Address:
        """(host, port) where it listens once it is started, and which the Vias of its flows name."""
        ...

    def start(self, receive: Callable[[Flow, Request | Response], None], lost: Callable[[Flow], None]) -> None:
        """Begin; messages of other nodes go to `receive`, ended connections to `lost`."""
        ...

    def stop(self) -> object:
        """Close everything; a Deferred or None."""
        ...

    def pooled(self, node_id: bytes) -> Flow | None:
        """A live flow to the node, if there is one already."""
        ...

    async def connect(self, node_id: bytes) -> Flow:
        """A live flow to the node whose certificate carries `node_id`; raises Unreachable."""
        ...

"""A small world for the SIP service: phones, nodes and a network in memory, on a virtual clock."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.task import Clock

from p2psipd.net.sip_transports import Limits
from p2psipd.proto.sip.digest import Algorithm, Challenge, answer, choose, ha1
from p2psipd.proto.sip.errors import SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.locating import Binding, LocateStep, LocationUnavailable, NodeIdentity, Unreachable
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.registrar import BindingTable, Bounds
from p2psipd.services.locator import Locator, OverlayBindings, OwnBindings
from p2psipd.services.sip import SipService, SipSettings

DOMAIN = "overlay.example"
EPOCH = 1_700_000_000.0
Address = tuple[str, int]


class MemoryFlow(Flow):
    """A flow whose `write` hands bytes to the world."""

    __slots__ = ("_deliver", "alive", "peer")

    def __init__(
        self, transport: str, remote: Address, local: Address, number: int, deliver: Callable[[MemoryFlow, bytes], None]
    ) -> None:
        super().__init__(transport, remote, local, number)
        self.alive = True
        self.peer: NodeIdentity | None = None
        self._deliver = deliver

    def towards(self, remote: Address) -> MemoryFlow:
        if self.reliable or remote == self.remote:
            return self
        return MemoryFlow(self.transport, remote, self.local, int(str(self.connection)), self._deliver)

    def write(self, data: bytes) -> None:
        if self.alive:
            self._deliver(self, data)


class MemoryListener:
    """The UDP socket of a node."""

    def __init__(self, number: int, local: Address, deliver: Callable[[MemoryFlow, bytes], None]) -> None:
        self.number, self.local, self._deliver = number, local, deliver

    def flow(self, remote: Address) -> MemoryFlow:
        return MemoryFlow("UDP", remote, self.local, self.number, self._deliver)


class MemoryTransports:
    """In place of SipTransports: UDP datagrams and TCP connections are function calls."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.udp: list[MemoryListener] = []
        self.listening: list[tuple[str, Address]] = []
        self.counters: Counter[str] = Counter()
        self.ignores: Callable[[Flow, bytes], bool] | None = None
        self.connections: dict[int, MemoryFlow] = {}

    def __call__(self, reactor: Any, receive: Any, malformed: Any, lost: Any, **options: Any) -> MemoryTransports:
        self.receive, self.malformed, self.lost = receive, malformed, lost
        return self

    def listen_udp(self, address: Address) -> Address:
        self.udp.append(MemoryListener(len(self.udp), address, self._datagram_out))
        self.listening.append(("UDP", address))
        self.world.nodes[address] = self
        return address

    def listen_tcp(self, address: Address) -> Address:
        self.listening.append(("TCP", address))
        return address

    def stop(self) -> list[Any]:
        return []

    def queued(self) -> float:
        return 0.0

    def _datagram_out(self, flow: MemoryFlow, data: bytes) -> None:
        self.world.send("UDP", flow.local, flow.remote, data)

    def datagram_in(self, source: Address, local: Address, data: bytes) -> None:
        listener = next(each for each in self.udp if each.local == local)
        if self.ignores is not None and self.ignores(listener.flow(source), data):
            return
        try:
            message = parse_message(data)
        except SipError as error:
            self.malformed(listener.flow(source), error)
            return
        self.receive(listener.flow(source), message)

    def connected(self, remote: Address) -> MemoryFlow:
        """A phone opens a TCP connection to this node."""
        local = next(address for name, address in self.listening if name == "TCP")
        number = len(self.connections) + 1
        flow = MemoryFlow("TCP", remote, local, number, self._datagram_out)
        self.connections[number] = flow
        return flow

    def alias(self, flow: Flow, request: Request) -> None:
        """No phone proves a domain."""

    def too_large(self, flow: MemoryFlow, octets: int) -> bool:
        return flow.transport == "UDP" and octets > 1300

    async def congestion_controlled(self, flow: MemoryFlow) -> Flow:
        return await self.reach("TCP", *flow.remote) if flow.remote in self.world.listen_tcp else flow

    def connection(self, number: int) -> MemoryFlow | None:
        flow = self.connections.get(number)
        return flow if flow is not None and flow.alive else None

    async def reach(self, transport: str, host: str, port: int, *, domain: str = "") -> Flow:
        if transport == "TCP" and (host, port) in self.world.listen_tcp:
            return self.connected((host, port))
        if transport != "UDP" or not self.udp:
            raise Unreachable(f"no {transport} here")
        return self.udp[0].flow((host, port))


class MemoryLocation:
    """A LocationStore shared by all nodes of a world; `broken` makes it fail."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self.entries: dict[str, dict[bytes, Binding]] = {}
        self.log: list[tuple[str, str, bytes]] = []
        self.broken = False
        self._wall = wall

    def _check(self) -> None:
        if self.broken:
            raise LocationUnavailable("no answer from the overlay")

    async def bindings(self, aor: str, fresh: bool = False) -> Sequence[Binding]:
        self._check()
        return [each for each in self.entries.get(aor, {}).values() if each.expires_at > self._wall()]

    async def write(self, aor: str, puts: Sequence[Binding], removes: Sequence[Binding]) -> None:
        self._check()
        for binding in puts:
            self.log.append(("put", aor, binding.key))
            self.entries.setdefault(aor, {})[binding.key] = binding
        for binding in removes:
            self.log.append(("remove", aor, binding.key))
            self.entries.get(aor, {}).pop(binding.key, None)


class MemoryCredentials:
    """Passwords by user; `asked` says whom anybody asked for."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self.passwords = dict(passwords)
        self.asked: list[str] = []
        self.broken = False

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        self.asked.append(user)
        if self.broken:
            raise LocationUnavailable("timeout")
        if user not in self.passwords:
            return None
        return {
            algorithm.value: bytes.fromhex(ha1(algorithm, user, realm, self.passwords[user]))
            for algorithm in (Algorithm.MD5, Algorithm.SHA_256)
        }


class MemoryConnector:
    """Connections between the nodes of a world; `refuse` names nodes that can't be reached."""

    def __init__(self, world: World, identity: NodeIdentity) -> None:
        self.world, self.identity = world, identity
        self.address = (f"10.9.0.{identity.node_id[0]}", 5062)
        self.pool: dict[bytes, MemoryFlow] = {}
        self.refuse: set[bytes] = set()
        self.attached: list[bytes] = []

    def start(self, receive: Any, lost: Any) -> None:
        self.receive, self.lost = receive, lost
        self.world.connectors[self.identity.node_id] = self

    def stop(self) -> None:
        self.pool.clear()

    def pooled(self, node_id: bytes) -> Flow | None:
        return self.pool.get(node_id)

    def die(self) -> None:
        """The node is gone: nobody has or gets a connection to it any more."""
        del self.world.connectors[self.identity.node_id]
        for other in self.world.connectors.values():
            flow = other.pool.pop(self.identity.node_id, None)
            if flow is not None:
                flow.alive = False
                other.lost(flow)

    async def connect(self, node_id: bytes) -> Flow:
        other = self.world.connectors.get(node_id)
        if other is None or node_id in self.refuse:
            raise Unreachable("no such node")
        if node_id not in self.pool:
            self.attached.append(node_id)
            self.pool[node_id] = self._flow_to(other)
            other.pool[self.identity.node_id] = other._flow_to(self)
        return self.pool[node_id]

    def _flow_to(self, other: MemoryConnector) -> MemoryFlow:
        def deliver(flow: MemoryFlow, data: bytes) -> None:
            if {self.identity.node_id, other.identity.node_id} & self.world.hung:
                return

            def arrive() -> None:
                other.receive(other.pool[self.identity.node_id], parse_message(data))

            delay = self.world.slow.get(other.identity.node_id, 0.0)
            if delay:
                self.world.clock.callLater(delay, arrive)
            else:
                self.world.queue.append(arrive)
            self.world.trace.append(
                (
                    f"node {self.identity.node_id[:1].hex()}",
                    f"node {other.identity.node_id[:1].hex()}",
                    data.split(b"\r\n")[0].decode(),
                )
            )

        number = other.identity.node_id[0]
        flow = MemoryFlow(
            "TLS", ("198.51.100.1", 40000 + number), (f"10.9.0.{self.identity.node_id[0]}", 5062), number, deliver
        )
        flow.peer = other.identity
        return flow


class Node:
    """One SipService with its fakes."""

    def __init__(
        self,
        world: World,
        index: int,
        host: str,
        *,
        bounds: Bounds | None = None,
        registrar: bool = True,
        settings: Mapping[str, Any] | None = None,
        steps: Sequence[LocateStep] = (),
        **arguments: Any,
    ) -> None:
        """`settings` are further SipSettings, `steps` further steps of the locator, `arguments` of SipService."""
        self.node_id = bytes([index]) * 16
        self.transports = MemoryTransports(world)
        role = "registrar" if registrar else "peer"
        self.identity = NodeIdentity(self.node_id, f"{self.node_id.hex()}@{role}.{DOMAIN}", registrar)
        self.connector = MemoryConnector(world, self.identity)
        self.table = BindingTable()
        locator = Locator(
            (
                OwnBindings(self.table, self.node_id, (DOMAIN,)),
                OverlayBindings(world.location, self.table, self.node_id, (DOMAIN,)),
                *steps,
            )
        )
        self.address = (host, 5060)
        self.service = SipService(
            SipSettings(
                domains=(DOMAIN,),
                overlay=DOMAIN,
                node_id=self.node_id,
                udp=(self.address,),
                tcp=(self.address,),
                bounds=bounds or Bounds(),
                limits=Limits(),
                **{"secret": b"of all nodes in a world" * 2, **(settings or {})},
            ),
            location=world.location,
            credentials=world.credentials,
            locate=locator.locate,
            connector=self.connector,
            table=self.table,
            reactor=world.clock,
            random=random.Random(index),
            wall=world.wall,
            transports=self.transports,
            **arguments,
        )
        self.service.startService()


class World:
    """The clock, the network and everybody on it."""

    def __init__(self, **passwords: str) -> None:
        self.clock = Clock()
        # The wall clock when the other one stood at nought; a test that changes it makes the wall clock jump.
        self.epoch = EPOCH
        self.queue: deque[Callable[[], None]] = deque()
        self.nodes: dict[Address, MemoryTransports] = {}
        self.phones: dict[Address, Phone] = {}
        self.connectors: dict[bytes, MemoryConnector] = {}
        self.trace: list[tuple[str, str, str]] = []
        # Phones that take TCP connections, and nodes that answer nothing though their connections stand.
        self.listen_tcp: set[Address] = set()
        self.hung: set[bytes] = set()
        # Seconds that messages to a node take.
        self.slow: dict[bytes, float] = {}
        self.lose: Callable[[bytes], bool] = lambda data: False
        self.location = MemoryLocation(self.wall)
        self.credentials = MemoryCredentials(passwords or {"alice": "wonder", "bob": "builder"})

    def wall(self) -> float:
        return self.epoch + self.clock.seconds()

    def send(self, transport: str, source: Address, destination: Address, data: bytes) -> None:
        self.trace.append(
            (f"{source[0]}:{source[1]}", f"{destination[0]}:{destination[1]}", data.split(b"\r\n")[0].decode())
        )
        if self.lose(data):
            return
        node, phone = self.nodes.get(destination), self.phones.get(destination)
        if node is not None:
            self.queue.append(lambda: node.datagram_in(source, destination, data))
        elif phone is not None:
            self.queue.append(lambda: phone.inbox.append(parse_message(data)))

    def settle(self) -> None:
        """Let everything that is on its way arrive."""
        for _ in range(10_000):
            if not self.queue:
                return
            self.queue.popleft()()
        raise AssertionError("the network does not come to rest")

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Move the clock on, delivering on the way."""
        self.settle()
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(step, end - self.clock.seconds()))
            self.settle()


class Phone:
    """A SIP phone at `address`, driven by the test line by line; speaks UDP, or TCP after `connect`."""

    def __init__(self, world: World, user: str, address: Address, node: Node, password: str = "") -> None:
        self.world, self.user, self.address, self.node = world, user, address, node
        self.password = password or world.credentials.passwords.get(user, "")
        self.inbox: deque[Request | Response] = deque()
        self.aor = f"sip:{user}@{DOMAIN}"
        self.contact = f"sip:{user}@{address[0]}:{address[1]}"
        self.cseq = 0
        self.calls = 0
        self.flow: MemoryFlow | None = None
        world.phones[address] = self

    def connect(self) -> None:
        self.flow = self.node.transports.connected(self.address)
        self.contact += ";transport=tcp"

    def disconnect(self) -> None:
        assert self.flow is not None
        self.flow.alive = False
        self.node.transports.lost(self.flow)
        self.flow = None

    def send(self, message: Request | Response) -> None:
        data = message.encode()
        if self.flow is not None:
            flow = self.flow
            self.world.trace.append((self.user, "node", data.split(b"\r\n")[0].decode()))
            self.world.queue.append(lambda: self.node.transports.receive(flow, parse_message(data)))
        else:
            self.world.send("UDP", self.address, self.node.address, data)

    def request(
        self,
        method: str,
        uri: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        *,
        body: bytes = b"",
        to: str = "",
        call_id: str = "",
        from_: str = "",
        cseq: int = 0,
    ) -> Request:
        """A request of this phone; ACK and CANCEL reuse `cseq`."""
        self.calls += 1
        if not cseq:
            self.cseq += 1
            cseq = self.cseq
        sent_by = f"{'TCP' if self.flow is not None else 'UDP'} {self.address[0]}:{self.address[1]}"
        lines = [
            ("Via", f"SIP/2.0/{sent_by};branch=z9hG4bK-{self.user}-{self.calls};rport"),
            ("Max-Forwards", "70"),
            ("From", from_ or f"<{self.aor}>;tag=tag-{self.user}"),
            ("To", to or f"<{uri}>"),
            ("Call-ID", call_id or f"call-{self.calls}@{self.address[0]}"),
            ("CSeq", f"{cseq} {method}"),
            *headers,
        ]
        if method in ("INVITE", "SUBSCRIBE") and not any(name == "Contact" for name, _ in headers):
            lines.append(("Contact", f"<{self.contact}>"))
        made = Request(method, uri or self.aor, lines, body)
        return made

    def take(self) -> Request | Response:
        """The next message that came; 100 Trying is passed over."""
        self.world.settle()
        while self.inbox:
            message = self.inbox.popleft()
            if not (isinstance(message, Response) and message.status == 100):
                return message
        raise AssertionError(f"{self.user} got nothing; so far: " + "\n".join(map(str, self.world.trace[-20:])))

    def take_request(self, method: str) -> Request:
        message = self.take()
        assert isinstance(message, Request) and message.method == method, message.encode()
        return message

    def take_response(self, status: int) -> Response:
        message = self.take()
        assert isinstance(message, Response) and message.status == status, message.encode()
        return message

    def quiet(self) -> bool:
        """Nothing came but 100 Trying."""
        self.world.settle()
        return all(isinstance(each, Response) and each.status == 100 for each in self.inbox)

    def answer_challenge(self, request: Request, response: Response, password: str = "") -> Request:
        """The request once more, with credentials."""
        proxy = response.status == 407
        header = "Proxy-Authenticate" if proxy else "WWW-Authenticate"
        challenge = choose(response.get_all(header))
        assert isinstance(challenge, Challenge)
        again = request.copy()
        self.cseq += 1
        self.calls += 1
        again.set("CSeq", f"{self.cseq} {request.method}")
        via = request.get("via") or ""
        again.set("Via", f"{via.split(';branch=')[0]};branch=z9hG4bK-{self.user}-{self.calls};rport")
        value = answer(
            challenge,
            self.user,
            password or self.password,
            request.method,
            request.uri_text,
            "c0ffee",
            body=request.body,
        )
        again.set("Proxy-Authorization" if proxy else "Authorization", value)
        return again

    def ask(self, request: Request) -> Response | Request:
        """Send, answer the challenge, and return what comes next; an INVITE's 407 is acknowledged."""
        self.send(request)
        first = self.take()
        if not isinstance(first, Response) or first.status not in (401, 407):
            return first
        if request.method == "INVITE":
            self.send(ack_for(request, first))
        again = self.answer_challenge(request, first)
        self.last = again
        self.send(again)
        self.world.settle()
        if not self.inbox:
            # A refused password is answered after a while.
            self.world.pass_time(0.3)
        return self.take()

    def register(self, *contacts: str, expires: int | None = 600, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """REGISTER with digest."""
        lines = [("Contact", each) for each in contacts or (f"<{self.contact}>",)]
        if expires is not None:
            lines.append(("Expires", str(expires)))
        request = self.request(
            "REGISTER", f"sip:{DOMAIN}", [*lines, *headers], to=f"<{self.aor}>", call_id=f"reg-{self.user}"
        )
        response = self.ask(request)
        assert isinstance(response, Response)
        return response

    def respond(self, request: Request, status: int, headers: Sequence[tuple[str, str]] = ()) -> Response:
        """Answer `request`; a 2xx or 18x to INVITE has a Contact."""
        lines = list(headers)
        if request.method == "INVITE" and 100 < status < 300:
            lines.append(("Contact", f"<{self.contact}>"))
        response = make_response(request, status, to_tag=f"tag-{self.user}", headers=lines)
        self.send(response)
        return response


def ack_for(request: Request, response: Response) -> Request:
    """The ACK of a final response that is no 2xx (RFC 3261 section 17.1.1.3)."""
    lines = [
        ("Via", request.get("via") or ""),
        ("Max-Forwards", "70"),
        ("From", request.get("from") or ""),
        ("To", response.get("to") or ""),
        ("Call-ID", request.call_id),
        ("CSeq", f"{request.cseq.number} ACK"),
    ]
    return Request("ACK", request.uri_text, lines)


def in_dialog(phone: Phone, method: str, response: Response, cseq: int = 0) -> Request:
    """A request of the caller inside the dialog that `response` made (RFC 3261 section 12.2.1.1)."""
    routes = [("Route", value) for value in reversed(response.get_all("record-route"))]
    target = response.contacts[0].uri_text
    return phone.request(
        method,
        target,
        routes,
        to=response.get("to") or "",
        from_=response.get("from") or "",
        call_id=response.call_id,
        cseq=cseq,
    )


def in_dialog_of_callee(phone: Phone, method: str, invite: Request, cseq: int = 0) -> Request:
    """A request of the callee inside the dialog that `invite` made."""
    routes = [("Route", value) for value in invite.get_all("record-route")]
    return phone.request(
        method,
        invite.contacts[0].uri_text,
        routes,
        to=invite.get("from") or "",
        from_=f"{invite.get('to')};tag=tag-{phone.user}",
        call_id=invite.call_id,
        cseq=cseq,
    )

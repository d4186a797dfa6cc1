"""A SIP phone that a test plays message by message: everything that comes is kept, in order, and must be what the test
expects next."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from p2psipd.proto.sip.digest import Challenge, answer, choose
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message

_numbers = itertools.count(time.time_ns() // 1_000_000)

Message = Request | Response


def sdp(host: str, version: int = 1) -> bytes:
    """A session description of one audio stream at `host`."""
    kind = "IP6" if ":" in host else "IP4"
    lines = ["v=0", f"o=- 1 {version} IN {kind} {host}", "s=-", f"c=IN {kind} {host}", "t=0 0",
             "m=audio 49172 RTP/AVP 0", "a=rtpmap:0 PCMU/8000"]  # fmt: skip
    return "".join(line + "\r\n" for line in lines).encode()


class Line:
    """A phone of `user` at `host`, UDP port `port`, whose outbound proxy is `node` ("host:port").

    `sent` and `received` are all its messages in order; repetitions are counted in `repeated` and passed over.
    """

    def __init__(self, user: str, domain: str, password: str, host: str, node: str, port: int = 5060) -> None:
        self.user, self.domain, self.password, self.host, self.port = user, domain, password, host, port
        self.aor = f"sip:{user}@{domain}"
        self.contact = f"<sip:{user}@{host}:{port}>"
        proxy, _, proxy_port = node.rpartition(":")
        self.node = (proxy.strip("[]"), int(proxy_port))
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.repeated = 0
        self._seen: set[bytes] = set()
        self._cseq = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    # ---- messages ----------------------------------------------------------------------------------------------

    def via(self) -> str:
        """A Via with a branch of its own."""
        return f"SIP/2.0/UDP {self.host}:{self.port};branch=z9hG4bK{next(_numbers)};rport"

    def request(self, method: str, uri: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Request:
        """A request outside of a dialog; `headers` replace those of the same name, empty ones are left out."""
        number = next(_numbers)
        self._cseq += 1
        lines = {
            "Via": self.via(),
            "Max-Forwards": "70",
            "From": f"<{self.aor}>;tag=f{number}",
            "To": f"<{uri}>",
            "Call-ID": f"{number}@{self.host}",
            "CSeq": f"{self._cseq} {method}",
            "Contact": self.contact,
            "Content-Type": "application/sdp" if body else "",
            **(headers or {}),
        }
        return Request(method, uri, [(name, value) for name, value in lines.items() if value], body)

    def invite(self, aor: str, headers: Mapping[str, str] | None = None) -> Request:
        """An INVITE with an offer."""
        return self.request("INVITE", aor, headers, sdp(self.host))

    def within(self, method: str, begun: Message, body: bytes = b"") -> Request:
        """A request in the dialog that `begun` made: a 2xx to our INVITE, or an INVITE that we answered."""
        calling = isinstance(begun, Response)
        routes = begun.get_all("record-route")
        headers = {
            "From": (begun.get("from") if calling else f"{begun.get('to')};tag=callee") or "",
            "To": (begun.get("to") if calling else begun.get("from")) or "",
            "Call-ID": begun.call_id,
            "Route": ", ".join(reversed(routes) if calling else routes),
        }
        if method == "ACK":
            headers["CSeq"] = f"{begun.cseq.number} ACK"
        return self.request(method, begun.contacts[0].uri_text, headers, body)

    def authorized(self, request: Request, *challenges: Response, password: str = "") -> Request:
        """The request once more, as a new transaction, with credentials for each of the challenges."""
        again = request.copy()
        self._cseq = request.cseq.number + 1
        again.set("CSeq", f"{self._cseq} {request.method}")
        again.set("Via", self.via())
        for challenged in challenges:
            proxy = challenged.status == 407
            challenge = choose(challenged.get_all("Proxy-Authenticate" if proxy else "WWW-Authenticate"))
            assert isinstance(challenge, Challenge), challenged.encode()
            value = answer(
                challenge, self.user, password or self.password, request.method, request.uri_text, "c0ffee",
                body=request.body,
            )  # fmt: skip
            again.add("Proxy-Authorization" if proxy else "Authorization", value)
        return again

    # ---- sending and receiving ---------------------------------------------------------------------------------

    def send(self, message: Message, where: tuple[str, int] | None = None) -> None:
        """A message to the proxy, or to `where`."""
        self.sent.append(message)
        self._socket.sendto(message.encode(), where or self.node)

    def send_raw(self, data: bytes) -> None:
        """Octets to the proxy."""
        self._socket.sendto(data, self.node)

    def next(self, seconds: float = 5.0) -> Message:
        """The next message; repetitions, and 100 Trying, which a quick answer makes superfluous, are passed over."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise AssertionError(f"{self.user} waits in vain; so far: {self.story()}")
            data = self._socket.recv(65535)
            if data in self._seen:
                self.repeated += 1
                continue
            self._seen.add(data)
            message = parse_message(data)
            self.received.append(message)
            if not isinstance(message, Response) or message.status > 100:
                return message

    def take(self, status: int, seconds: float = 5.0) -> Response:
        """The next message, which is a response with this status."""
        message = self.next(seconds)
        assert isinstance(message, Response) and message.status == status, f"{status}? {message.encode()!r}"
        return message

    def take_request(self, method: str, seconds: float = 5.0) -> Request:
        """The next message, which is this request."""
        message = self.next(seconds)
        assert isinstance(message, Request) and message.method == method, f"{method}? {message.encode()!r}"
        return message

    def quiet(self, seconds: float = 0.2) -> bool:
        """Nothing new comes for so long."""
        try:
            self.next(seconds)
        except AssertionError:
            return True
        return False

    def next_or_repeated(self, seconds: float = 5.0) -> Message:
        """The next message, though it may have come before."""
        self._seen.clear()
        return self.next(seconds)

    def receive_on(self, connection: socket.socket) -> Request:
        """The next request on a TCP connection to this phone."""
        connection.settimeout(5)
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65535)
        message = parse_message(data)
        assert isinstance(message, Request), data
        return message

    def respond(
        self, request: Request, status: int, headers: Sequence[tuple[str, str]] = (), on: socket.socket | None = None
    ) -> None:
        """Answer, to the proxy or `on` a connection; what makes a dialog has a Contact, and a 200 to an INVITE an
        answer.
        """
        lines, body = list(headers), b""
        if request.method == "INVITE" and 100 < status < 300:
            lines.append(("Contact", self.contact))
            if status == 200:
                body = sdp(self.host)
        if body:
            lines.append(("Content-Type", "application/sdp"))
        tag = "callee" if status > 100 and request.to_tag is None else None
        response = make_response(request, status, to_tag=tag, headers=lines)
        response.body = body
        if on is not None:
            on.sendall(response.encode())
        else:
            self.send(response)

    def acknowledge(self, request: Request, response: Response) -> None:
        """The ACK of a refusal, in the transaction of its INVITE (RFC 3261 section 17.1.1.3)."""
        names = ("via", "max-forwards", "from", "call-id", "route", "proxy-authorization")
        lines = [(name, value) for name in names for value in request.get_all(name)]
        lines += [("to", response.get("to") or ""), ("cseq", f"{request.cseq.number} ACK")]
        self.send(Request("ACK", request.uri_text, lines))

    def register(self, contact: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
        """REGISTER, 401, REGISTER: the answer to the second one. `contact` is that of this phone unless given."""
        request = self.request("REGISTER", f"sip:{self.domain}", {"To": f"<{self.aor}>", **(headers or {})})
        if contact is not None:
            request.remove("contact")
            if contact:
                request.add("Contact", contact)
        self.send(request)
        message = self.next()
        if isinstance(message, Response) and message.status == 401:
            self.send(self.authorized(request, message))
            message = self.next()
        assert isinstance(message, Response), message.encode()
        return message

    def call(self, aor: str, headers: Mapping[str, str] | None = None) -> Request:
        """INVITE, 407, ACK, INVITE: the second of them."""
        request = self.invite(aor, headers)
        self.send(request)
        challenged = self.take(407)
        self.acknowledge(request, challenged)
        again = self.authorized(request, challenged)
        self.send(again)
        return again

    def story(self) -> list[str]:
        """What came, a word each."""
        return [word(message) for message in self.received]


def word(message: Message) -> str:
    """The method, or the status with the method that it answers."""
    if isinstance(message, Request):
        return message.method
    return f"{message.status} {message.cseq.method}"


@contextmanager
def registered(line: Line) -> Iterator[Line]:
    """A phone that is registered with this contact alone, and leaves in the end."""
    with line:
        assert line.register("*", {"Expires": "0"}).status == 200
        assert line.register(headers={"Expires": "600"}).status == 200
        try:
            yield line
        finally:
            assert line.register("*", {"Expires": "0"}).status == 200

"""The load of `bench.peering`: requests of a.test over one TLS connection, and calls of a phone to other domains."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.peering_world import SINK_HOST, SINK_PORT, THEM, US, USER, Identities, Node, called_domain, number
from bench.sip_load import cpu_seconds
from p2psipd.proto.peering.identity import Signing, sign_request
from p2psipd.proto.peering.peers import IdentityKind
from p2psipd.proto.sip.digest import answer, choose
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message

#: So many requests are under way at once on the connection.
WINDOW = 50
_SDP = "v=0\r\no=- 1 1 IN IP4 127.1.100.5\r\ns=-\r\nc=IN IP4 127.1.100.5\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n"
_STATUS = b"SIP/2.0 "


class Burst(NamedTuple):
    """Requests over one connection: how many a second were answered 200, and the server's CPU for each."""

    rate: float
    cpu_us: float
    refused: int


def signed_requests(identities: Identities, kind: IdentityKind, count: int, url_host: str) -> list[bytes]:
    """OPTIONS of a.test with an Identity each, all different, fresh now."""
    wall, run = time.time(), os.urandom(4).hex()
    url = identities.url(url_host)
    signing = Signing((kind,), full_form=True)
    made = []
    for place in range(count):
        request = Request(
            "OPTIONS",
            f"sip:{THEM}",
            [
                ("Via", f"SIP/2.0/TLS {US};branch=z9hG4bK{run}{place}"),
                ("Max-Forwards", "70"),
                ("From", f"<sip:alice@{US}>;tag={run}{place}"),
                ("To", f"<sip:{THEM}>"),
                ("Call-ID", f"{run}{place}@{US}"),
                ("CSeq", "1 OPTIONS"),
                ("Contact", f"<sip:alice@{US}>"),
                ("Accept", "application/sdp"),
            ],
        )
        sign_request(request, signing, identities.own, url, wall)
        made.append(request.encode())
    return made


def client_context(identities: Identities) -> ssl.SSLContext:
    """TLS as a.test towards b.test."""
    context = ssl.create_default_context(cadata=identities.authority.pem.decode())
    context.load_cert_chain(*identities.tls)
    return context


class Connection:
    """One TLS connection of a.test with a server."""

    def __init__(self, identities: Identities, address: tuple[str, int]) -> None:
        raw = socket.create_connection(address, timeout=10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = client_context(identities).wrap_socket(raw, server_hostname=THEM)

    def burst(self, requests: Sequence[bytes], server_pid: int) -> Burst:
        """Send them all, WINDOW at a time, and count the answers."""
        left, answers, good = list(reversed(requests)), 0, 0
        before, began = cpu_seconds(server_pid), time.perf_counter()
        self._send(left, min(WINDOW, len(left)))
        tail = b""
        while answers < len(requests):
            came = self._socket.recv(65536)
            if not came:
                raise RuntimeError(f"the connection was closed after {answers} answers")
            text = tail + came
            found = text.count(_STATUS)
            good += text.count(_STATUS + b"200")
            answers += found
            # What may be the beginning of a status line is looked at again.
            cut = max(text.rfind(_STATUS) + len(_STATUS) + 3, len(text) - len(_STATUS) - 2)
            tail = text[cut:]
            if found:
                self._send(left, min(found, len(left)))
        took, spent = time.perf_counter() - began, cpu_seconds(server_pid) - before
        return Burst(good / took, spent / answers * 1e6, answers - good)

    def _send(self, left: list[bytes], count: int) -> None:
        if count:
            self._socket.sendall(b"".join([left.pop() for _ in range(count)]))

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Sink:
    """The server of every called domain: it demands a certificate, shows the one of the name that was asked for, and
    answers every request.
    """

    def __init__(self, identities: Identities, domains: int) -> None:
        self._contexts = {called_domain(place): self._context(identities, place) for place in range(domains)}
        self._listener = socket.create_server((SINK_HOST, SINK_PORT), backlog=64)
        self._open: list[socket.socket] = []
        #: From the ClientHello of a connection to the first request on it, in seconds.
        self.signed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _context(self, identities: Identities, place: int) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*identities.server_files(called_domain(place)))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=identities.authority.pem.decode())
        return context

    def _accept(self) -> None:
        first = next(iter(self._contexts.values()))

        def choose_context(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self._contexts[name or ""]

        first.sni_callback = choose_context
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(raw)
            threading.Thread(target=self._serve, args=(first, raw), daemon=True).start()

    def _serve(self, context: ssl.SSLContext, raw: socket.socket) -> None:
        buffered = b""
        try:
            connection = context.wrap_socket(raw, server_side=True)
            self._open.append(connection)
            while came := connection.recv(65536):
                buffered += came
                while (end := buffered.find(b"\r\n\r\n")) >= 0:
                    length = _content_length(buffered[:end])
                    if len(buffered) < end + 4 + length:
                        break
                    request, buffered = buffered[: end + 4 + length], buffered[end + 4 + length :]
                    self._answer(connection, parse_message(request))
        except OSError:
            return

    def _answer(self, connection: ssl.SSLSocket, request: Request | Response) -> None:
        if isinstance(request, Response) or request.method == "ACK":
            return
        if request.method == "INVITE":
            self.signed += request.has("identity")
        response = make_response(request, 200, to_tag="sink")
        for value in request.get_all("Record-Route"):
            if not response.has("record-route"):
                response.add("Record-Route", value)
        response.set("Contact", f"<sip:sink@{SINK_HOST}:{SINK_PORT};transport=tls>")
        connection.sendall(response.encode())

    def close(self) -> None:
        """End it and its connections."""
        self._listener.close()
        for each in self._open:
            each.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() in (b"content-length", b"l"):
            return int(value)
    return 0


class Phone:
    """bob's phone over UDP: calls a number, and hangs up."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(node.phone_address)
        self._socket.settimeout(10)
        self._place = 0

    def call(self, place: int) -> float:
        """Call domain `place` by its number; the seconds from the INVITE to its 200."""
        self._place += 1
        host, port = self._socket.getsockname()
        call_id, uri = f"{os.urandom(8).hex()}@{host}", f"tel:{number(place)}"
        challenge = choose(self._ask(self._request("INVITE", uri, call_id, 1), "").get_all("Proxy-Authenticate"))
        assert challenge is not None, "not challenged"
        invite = self._request("INVITE", uri, call_id, 2)
        credentials = answer(challenge, USER, self._node.password, "INVITE", uri, "c0ffee")
        invite.set("Proxy-Authorization", credentials)
        invite.set("Content-Type", "application/sdp")
        invite.body = _SDP.encode()
        began = time.perf_counter()
        ok = self._ask(invite, "")
        took = time.perf_counter() - began
        if ok.status != 200:
            raise RuntimeError(f"{uri}: {ok.status} {ok.reason}")
        routes = list(reversed(ok.get_all("Record-Route")))
        remote, to = ok.contacts[0].uri_text, ok.get("To") or ""
        self._socket.send(self._request("ACK", remote, call_id, 2, to, routes).encode())
        bye = self._ask(self._request("BYE", remote, call_id, 3, to, routes), "")
        if bye.status != 200:
            raise RuntimeError(f"{uri}: BYE {bye.status} {bye.reason}")
        return took

    def _request(
        self, method: str, uri: str, call_id: str, cseq: int, to: str = "", routes: Sequence[str] = ()
    ) -> Request:
        host, port = self._socket.getsockname()
        headers = [
            ("Via", f"SIP/2.0/UDP {host}:{port};branch=z9hG4bK{os.urandom(6).hex()};rport"),
            ("Max-Forwards", "70"),
            *[("Route", route) for route in routes],
            ("From", f"<sip:{USER}@{THEM}>;tag={call_id[:8]}"),
            ("To", to or f"<{uri}>"),
            ("Call-ID", call_id),
            ("CSeq", f"{cseq} {method}"),
            ("Contact", f"<sip:{USER}@{host}:{port}>"),
        ]
        return Request(method, uri, headers)

    def _ask(self, request: Request, body: str) -> Response:
        """Send it and wait for its final response; a refused INVITE is acknowledged."""
        self._socket.send(request.encode())
        while True:
            message = parse_message(self._socket.recv(65536))
            if not isinstance(message, Response) or message.cseq != request.cseq or message.status < 200:
                continue
            if message.call_id != request.call_id:
                continue
            if request.method == "INVITE" and message.status >= 300:
                ack = self._request(
                    "ACK", request.uri_text, request.call_id, request.cseq.number, message.get("To") or ""
                )
                ack.set("Via", request.get("Via") or "")
                self._socket.send(ack.encode())
            return message

    def close(self) -> None:
        """Close its socket."""
        self._socket.close()

"""Ends of SIP conversations that a test plays itself, message by message: a phone on UDP, and a peer on TLS."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from pathlib import Path

from p2psipd.proto.sip.digest import Challenge, answer, choose
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message

SDP = (
    b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n"
    b"a=rtpmap:0 PCMU/8000\r\n"
)
ANSWERED = "answered"
_numbers = itertools.count(int(time.time()))


class Phone:
    """A phone of `aor` at `host` on UDP, whose proxy is `server`; `secret` answers its challenges."""

    def __init__(self, aor: str, host: str, server: tuple[str, int], secret: str = "") -> None:
        self.aor, self.server, self.secret = aor, server, secret
        self.user, _, self.domain = aor.removeprefix("sip:").partition("@")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 5060))
        self.host = host
        self._source = server
        self._cseq = 0

    def close(self) -> None:
        """Give the port back."""
        self.socket.close()

    # ---- requests ----------------------------------------------------------------------------------------------

    def request(self, method: str, uri: str, body: bytes = b"", **headers: str) -> Request:
        """A request outside of a dialog; ``Name=value`` replaces a header, "" drops it."""
        number = next(_numbers)
        self._cseq += 1
        values = {
            "Via": f"SIP/2.0/UDP {self.host}:5060;branch=z9hG4bK{number};rport",
            "Max-Forwards": "70",
            "From": f"<{self.aor}>;tag=t{number}",
            "To": f"<{uri}>",
            "Call-ID": f"{number}@{self.host}",
            "CSeq": f"{self._cseq} {method}",
            "Contact": f"<sip:{self.user}@{self.host}:5060>",
        }
        if body:
            values["Content-Type"] = "application/sdp" if method == "INVITE" else "text/plain"
        values.update({name.replace("_", "-"): value for name, value in headers.items()})
        return Request(method, uri, [(name, value) for name, value in values.items() if value], body)

    def within(self, method: str, response: Response) -> Request:
        """A request of ours, who called, inside the dialog that `response` made."""
        made = self.request(
            method,
            response.contacts[0].uri_text,
            From=response.get("from") or "",
            To=response.get("to") or "",
            Call_ID=response.call_id,
        )
        if method == "ACK":
            self._cseq -= 1
            made.set("CSeq", f"{response.cseq.number} ACK")
        for value in reversed(response.get_all("record-route")):
            made.add("Route", value)
        return made

    def within_answered(self, method: str, invite: Request) -> Request:
        """A request of ours, who were called, inside the dialog that we answered."""
        made = self.request(
            method,
            invite.contacts[0].uri_text,
            From=f"{invite.get('to')};tag={ANSWERED}",
            To=invite.get("from") or "",
            Call_ID=invite.call_id,
        )
        for value in invite.get_all("record-route"):
            made.add("Route", value)
        return made

    def send(self, message: Request | Response) -> None:
        """Requests go to the proxy, responses where the last message came from."""
        self.socket.sendto(message.encode(), self.server if isinstance(message, Request) else self._source)

    def receive(self, seconds: float = 8.0) -> Request | Response:
        """The next message that is no provisional response. TimeoutError when none comes."""
        until = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(until - time.monotonic(), 0.01))
            data, self._source = self.socket.recvfrom(65535)
            message = parse_message(data)
            if not isinstance(message, Response) or message.status >= 200:
                return message

    def final(self, call_id: str, seconds: float = 8.0) -> Response:
        """The final response of a call; what else comes is passed over."""
        while True:
            message = self.receive(seconds)
            if isinstance(message, Response) and message.call_id == call_id:
                return message

    def ask(self, request: Request, seconds: float = 8.0) -> Response:
        """Send, answer a challenge, and return the final response; the ACK of a failed INVITE is sent."""
        challenged = bool(self.secret) and request.to_tag is None
        return self.conclude(self.begin(request) if challenged else request, seconds, sent=challenged)

    def begin(self, request: Request) -> Request:
        """Send, answer the challenge that is to come, and return what was sent then; `conclude` waits for its end."""
        self.send(request)
        challenge = self.final(request.call_id)
        assert challenge.status in (401, 407), challenge.encode()
        self._acknowledge(request, challenge)
        again = self._with_credentials(request, challenge)
        self.send(again)
        return again

    def conclude(self, request: Request, seconds: float = 8.0, *, sent: bool = True) -> Response:
        """The final response to a request, sent before or now; the ACK of a failed INVITE is sent."""
        if not sent:
            self.send(request)
        response = self.final(request.call_id, seconds)
        self._acknowledge(request, response)
        return response

    def register(self) -> None:
        """REGISTER with digest."""
        request = self.request("REGISTER", f"sip:{self.domain}", To=f"<{self.aor}>")
        response = self.ask(request)
        assert response.status == 200, response.encode()

    def _acknowledge(self, request: Request, response: Response) -> None:
        if request.method != "INVITE" or response.status < 300:
            return
        names = ("via", "from", "call-id", "max-forwards")
        values = [(name, request.get(name) or "") for name in names] + [("to", response.get("to") or "")]
        self.send(Request("ACK", request.uri_text, [*values, ("cseq", f"{request.cseq.number} ACK")]))

    def _with_credentials(self, request: Request, response: Response) -> Request:
        proxy = response.status == 407
        challenge = choose(response.get_all("Proxy-Authenticate" if proxy else "WWW-Authenticate"))
        assert isinstance(challenge, Challenge)
        again = request.copy()
        self._cseq = request.cseq.number + 1
        again.set("CSeq", f"{self._cseq} {request.method}")
        again.set("Via", f"SIP/2.0/UDP {self.host}:5060;branch=z9hG4bK{next(_numbers)};rport")
        value = answer(challenge, self.user, self.secret, request.method, request.uri_text, "c0ffee", body=request.body)
        again.set("Proxy-Authorization" if proxy else "Authorization", value)
        return again

    # ---- calls that come in ------------------------------------------------------------------------------------

    def answer(self, method: str, status: int = 200, seconds: float = 8.0) -> Request:
        """Wait for a request and answer it; what it was."""
        while True:
            message = self.receive(seconds)
            if isinstance(message, Request) and message.method == method:
                break
        headers = [("Contact", f"<sip:{self.user}@{self.host}:5060>")] if method == "INVITE" else []
        body = b""
        if method == "INVITE" and status == 200:
            headers.append(("Content-Type", "application/sdp"))
            body = SDP
        response = make_response(message, status, to_tag=None if message.to_tag else ANSWERED, headers=headers)
        response.body = body
        self.send(response)
        return message


class WirePeer:
    """A TLS connection to a server of `domain`, in the name of whoever's certificate it shows."""

    def __init__(
        self, server: tuple[str, int], domain: str, authority: Path, certificate: Path | None, key: Path
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(socket.create_connection(server, 5), server_hostname=domain)
        self._data = b""

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def send(self, request: Request | bytes) -> None:
        """A request, or octets."""
        self.socket.sendall(request if isinstance(request, bytes) else request.encode())

    def ask(self, request: Request | bytes, seconds: float = 8.0) -> Response:
        """The final response to a request. ConnectionError where the connection is closed instead."""
        self.send(request)
        return self.response(seconds)

    def response(self, seconds: float = 8.0) -> Response:
        """The next final response."""
        while True:
            message = self.receive(seconds)
            if isinstance(message, Response) and message.status >= 200:
                return message

    def receive(self, seconds: float = 8.0) -> Request | Response:
        """The next message."""
        self.socket.settimeout(seconds)
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, rest = self._data.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(rest) < length:
            self._more()
            rest = self._data[len(head) + 4 :]
        self._data = rest[length:]
        return parse_message(head + b"\r\n\r\n" + rest[:length])

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self._data += data


def edited(request: Request, *edits: tuple[bytes, bytes], branch: bool = True) -> bytes:
    """A request's octets with some replaced, under a branch of their own."""
    octets = request.encode()
    if branch:
        octets = octets.replace(b";branch=z9hG4bK", b";branch=z9hG4bK%d" % next(_numbers), 1)
    for old, new in edits:
        assert old in octets, (old, octets)
        octets = octets.replace(old, new, 1)
    return octets

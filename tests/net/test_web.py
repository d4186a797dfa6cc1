"""SIP over WebSocket (RFC 7118) over real loopback sockets, with wsproto's client half and with octets by hand."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, capturedLogs
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from p2psipd.net.connections import Limits, StreamFlow
from p2psipd.net.refusals import Refusals
from p2psipd.net.sip_transports import SipTransports
from p2psipd.net.tls import ServerTls
from p2psipd.net.web import DEAD_SECONDS, MAX_MESSAGE, QUIET_SECONDS, SipWebSocket
from p2psipd.proto.sip.message import make_response
from tests.net.identities import node
from tests.net.sip_remotes import HOST, OPTIONS, TransportsCase, told, until

WEB_OPTIONS = OPTIONS.replace(b"SIP/2.0/TCP 127.1.250.9:5060", b"SIP/2.0/WS df7jal23ls0d.invalid").replace(
    b"Content-Length: 0\r\n", b""
)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: sip-ws.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://www.example.com\r\n"
    b"Sec-WebSocket-Protocol: sip\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class WebPhone:
    """The client's half of one WebSocket connection."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote
        self.socket = WSConnection(ConnectionType.CLIENT)
        self.heard: list[Any] = []
        self._read = 0

    def send(self, event: Any) -> None:
        self.remote.transport.write(self.socket.send(event))

    def listen(self) -> list[Any]:
        """All that has come."""
        data, self._read = self.remote.data[self._read :], len(self.remote.data)
        if data:
            self.socket.receive_data(data)
            self.heard += self.socket.events()
        return self.heard


class WebSocketTests(TransportsCase):
    """A listener for browsers."""

    async def connect(self, transports: SipTransports) -> WebPhone:
        phone = WebPhone(await self.dial(transports.listen_web((HOST, 0))))
        phone.send(Request(host="x", target="/", subprotocols=["sip"]))
        await until(phone.listen)
        assert isinstance(phone.heard.pop(0), AcceptConnection)
        return phone

    def test_upgrade_of_rfc_7118(self) -> Deferred[None]:
        """RFC 7118 4.1: the request there gets 101 with the subprotocol and the key's digest."""

        async def scenario() -> None:
            remote = await self.dial(self.make().listen_web((HOST, 0)))
            for octet in range(0, len(UPGRADE), 7):
                remote.transport.write(UPGRADE[octet : octet + 7])
            await until(lambda: remote.data.endswith(b"\r\n\r\n"))
            self.assertTrue(remote.data.startswith(b"HTTP/1.1 101 "))
            head = remote.data.lower()
            self.assertIn(b"\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n", head)
            self.assertIn(b"\r\nsec-websocket-protocol: sip\r\n", head)

        return Deferred.fromCoroutine(scenario())

    def test_what_is_no_upgrade_gets_http(self) -> Deferred[None]:
        """Each request that is no SIP WebSocket handshake gets an HTTP error and the connection's end."""
        cases = (
            (UPGRADE.replace(b"Sec-WebSocket-Protocol: sip\r\n", b""), b"400"),
            (UPGRADE.replace(b"Protocol: sip", b"Protocol: xmpp, sipx"), b"400"),
            (UPGRADE.replace(b"Version: 13", b"Version: 8"), b"426"),
            (UPGRADE.replace(b"http://www.example.com", b"http://evil.example"), b"403"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"400"),
            (UPGRADE.replace(b"Host: sip", b"Host: \xff\xfe"), b"400"),
            (b"\x16\x03\x01" + bytes(60) + b"\r\n\r\n", b"400"),
            (OPTIONS, b"400"),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000, b"4"),
        )

        async def scenario() -> None:
            transports = self.make()
            address = transports.listen_web((HOST, 0), origins=lambda origin: "evil" not in origin)
            for request, status in cases:
                remote = await self.dial(address)
                remote.transport.write(request)
                await until(lambda remote=remote: remote.closed)  # type: ignore[misc]
                self.assertTrue(remote.data.startswith(b"HTTP/1.1 " + status), (request, remote.data))
            self.assertEqual(transports.counters["closed_no_websocket"], len(cases))
            self.assertEqual(len(transports), 0)

        return Deferred.fromCoroutine(scenario())

    def test_one_message_a_frame(self) -> Deferred[None]:
        """Text, binary and fragmented messages arrive without Content-Length; answers go back as text, other octets
        as binary.
        """

        async def scenario() -> None:
            transports = self.make()
            phone = await self.connect(transports)
            phone.send(TextMessage(WEB_OPTIONS.decode()))
            phone.send(BytesMessage(WEB_OPTIONS[:50], message_finished=False))
            phone.send(Ping(b"between"))
            phone.send(BytesMessage(WEB_OPTIONS[50:]))
            await until(lambda: len(self.heard.messages) == 2)
            flow, message = self.heard.messages[0]
            self.assertEqual((flow.transport, flow.reliable, flow.secure), ("WS", True, False))
            self.assertIs(transports.connection(flow.connection), flow)
            flow.write(make_response(message, 200).encode())
            flow.write(b"MESSAGE sip:x SIP/2.0\r\n\r\n\xff")
            await until(lambda: len(phone.listen()) == 3)
            pong, text, binary = phone.heard
            self.assertEqual(pong, Pong(b"between"))
            self.assertIsInstance(text, TextMessage)
            self.assertTrue(text.data.startswith("SIP/2.0 200 OK\r\nVia: SIP/2.0/WS df7jal23ls0d.invalid"))
            self.assertIsInstance(binary, BytesMessage)

        return Deferred.fromCoroutine(scenario())

    def test_keep_alives(self) -> Deferred[None]:
        """A CRLF pair is answered (RFC 5626 3.5.1), and a browser that is quiet is pinged, then given up."""

        async def scenario() -> None:
            transports = self.make()
            phone = await self.connect(transports)
            phone.send(TextMessage("\r\n\r\n"))
            phone.send(TextMessage("\r\n"))
            await until(phone.listen)
            self.assertEqual(phone.heard.pop(0).data, "\r\n")
            (connection,) = transports._connections.values()
            connection.messages = 1
            connection.last_heard -= QUIET_SECONDS + 1
            transports._sweeper.cancel()
            transports._sweep()
            await until(phone.listen)
            self.assertEqual(phone.heard.pop(0), Ping(b""))
            self.assertTrue(connection.alive)
            connection.last_heard -= DEAD_SECONDS
            transports._sweeper.cancel()
            transports._sweep()
            await until(lambda: phone.remote.closed)
            self.assertEqual(transports.counters["closed_dead"], 1)

        return Deferred.fromCoroutine(scenario())

    def test_malformed_message_loses_itself_alone(self) -> Deferred[None]:
        """A frame that is no SIP message is answered with 400 if it can be, and the connection goes on."""

        async def scenario() -> None:
            transports = self.make()
            phone = await self.connect(transports)
            phone.send(TextMessage("hello"))
            phone.send(TextMessage(WEB_OPTIONS.decode().replace("OPTIONS sip:x", "OPTIONS <sip:x>", 1)))
            phone.send(TextMessage(WEB_OPTIONS.decode()))
            await until(lambda: self.heard.messages and phone.listen())
            self.assertTrue(phone.heard[0].data.startswith("SIP/2.0 400 "))
            self.assertEqual(transports.counters["malformed_web"], 2)

        return Deferred.fromCoroutine(scenario())

    def test_close_codes(self) -> Deferred[None]:
        """A close is echoed; a message that is too large gets 1009, text that is no UTF-8 1007, a bad frame 1002."""
        too_large = [BytesMessage(b"a" * 60_000, message_finished=False)] * (1 + MAX_MESSAGE // 60_000)
        cases: tuple[tuple[list[Any], int], ...] = (
            ([CloseConnection(1001)], 1001),
            (too_large, 1009),
            ([b"\x81\x82\0\0\0\0\xff\xfe"], 1007),
            ([b"\x83\x80\0\0\0\0"], 1002),
            ([b"\x81\x01a"], 1002),
        )

        async def scenario() -> None:
            transports = self.make()
            for sent, code in cases:
                phone = await self.connect(transports)
                for each in sent:
                    phone.remote.transport.write(each if isinstance(each, bytes) else phone.socket.send(each))
                await until(lambda phone=phone: phone.remote.closed)  # type: ignore[misc]
                (closed,) = phone.listen()
                self.assertEqual(closed.code, code)
            self.assertEqual(transports.counters["closed_by_browser"], 1)
            self.assertEqual(transports.counters["closed_protocol"], len(cases) - 1)
            self.assertEqual(len(self.heard.lost), len(cases))

        return Deferred.fromCoroutine(scenario())

    def test_slow_upgrade_is_dropped(self) -> Deferred[None]:
        """The deadline of the handshake holds for the upgrade, too."""

        async def scenario() -> None:
            transports = self.make(handshake=0.1)
            remote = await self.dial(transports.listen_web((HOST, 0)))
            remote.transport.write(UPGRADE[:50])
            await until(lambda: remote.closed)
            self.assertEqual(transports.counters["closed_handshake"], 1)

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_who_was_refused_and_why(self) -> Deferred[None]:
        """Each refusal has its line, with a stranger's text made harmless; phones that close have none."""

        async def scenario() -> None:
            transports = self.make(handshake=0.1)
            address = transports.listen_web((HOST, 0), origins=lambda origin: "evil" not in origin)
            sent = (
                UPGRADE.replace(b"www.example.com", b"evil.example/\xe2\x80\xae\x9b31m"),
                UPGRADE.replace(b"Version: 13", b"Version: 8"),
                b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000,
                UPGRADE[:50],
            )
            with capturedLogs() as events:
                for octets in sent:
                    remote = await self.dial(address)
                    remote.transport.write(octets)
                    await until(lambda remote=remote: remote.closed)  # type: ignore[misc]
                remote = await self.dial(address)
                remote.transport.write(UPGRADE[:50])
                await until(lambda: [each for each in transports._connections.values() if each._handshake_octets])
                remote.transport.loseConnection()
                await until(lambda: not len(transports))
                idle = await self.dial(address)
                idle.transport.loseConnection()
                await until(lambda: not len(transports))
            cut = f"connection from 127.0.0.1 to WS port {address[1]} ended: "
            self.assertEqual(
                [line.removeprefix(cut) for line in told(events)],
                [
                    r"no upgrade to WebSocket: this origin is not allowed: http://evil.example/â\x80®\x9b31m",
                    "no upgrade to WebSocket: Missing header, 'Sec-WebSocket-Version'",
                    "no upgrade to WebSocket: the request is too long",
                    "the upgrade to WebSocket took too long",
                    "closed in the midst of the upgrade to WebSocket",
                ],
            )

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_whose_frames_are_refused(self) -> Deferred[None]:
        """A message that is no SIP and a frame that breaks the protocol have a line; a browser that leaves has none."""

        async def scenario() -> None:
            transports = self.make()
            with capturedLogs() as events:
                for octets in (b"", b"\x83\x80\0\0\0\0"):
                    phone = await self.connect(transports)
                    phone.send(TextMessage("hello"))
                    phone.remote.transport.write(octets or phone.socket.send(CloseConnection(4000)))
                    await until(lambda phone=phone: phone.remote.closed)  # type: ignore[misc]
            ports = [address[1] for _, address in transports.listening]
            message = " dropped: no SIP message: bad start line"
            self.assertEqual(
                told(events),
                [
                    f"message from 127.0.0.1 to WS port {ports[0]}{message}",
                    f"message from 127.0.0.1 to WS port {ports[1]}{message}",
                    f"connection from 127.0.0.1 to WS port {ports[1]} ended: the WebSocket failed with code 1002",
                ],
            )

        return Deferred.fromCoroutine(scenario())

    def test_stopping_says_goodbye(self) -> Deferred[None]:
        """A node that stops closes with 1001 (RFC 6455 7.4.1)."""

        async def scenario() -> None:
            transports = self.make()
            phone = await self.connect(transports)
            await transports.stop()[0]
            await until(lambda: phone.remote.closed)
            self.assertEqual(phone.listen()[-1].code, 1001)

        return Deferred.fromCoroutine(scenario())


class CurlTests(TransportsCase):
    """curl as the client of a secure listener."""

    @pytest.mark.foreign("curl")
    def test_curl_upgrades_with_alpn(self) -> Deferred[None]:
        """curl offers ALPN http/1.1 over TLS, upgrades, and is told 101; without the subprotocol 400."""

        async def scenario() -> None:
            transports = self.make()
            directory = Path(self.mktemp())
            directory.mkdir(parents=True)
            certificate, key = node(1).write(directory)
            host, port = transports.listen_web((HOST, 0), ServerTls(str(certificate), str(key)))
            command = [
                "curl",
                "-ksSi",
                "--http1.1",
                "--max-time",
                "1",
                f"https://{host}:{port}/",
                "-H",
                "Upgrade: websocket",
            ]
            command += ["-H", "Connection: Upgrade", "-H", "Sec-WebSocket-Version: 13"]
            command += ["-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
            more = ["-H", "Sec-WebSocket-Protocol: sip"]
            done = await deferToThread(subprocess.run, command, capture_output=True, timeout=10)
            self.assertTrue(done.stdout.startswith(b"HTTP/1.1 400"), done)
            done = await deferToThread(subprocess.run, command + more, capture_output=True, timeout=10)
            self.assertTrue(done.stdout.startswith(b"HTTP/1.1 101"), done)

        reactor.suggestThreadPoolSize(2)
        return Deferred.fromCoroutine(scenario())


class Owner:
    """A table of one connection, without a socket."""

    log = Logger()
    refusals = Refusals(log, Clock())
    greets = False
    identify = None

    def __init__(self) -> None:
        self.clock = Clock()
        self.limits = Limits()
        self.counters: Counter[str] = Counter()
        self.heard: list[Any] = []

    def receive(self, flow: Any, message: Any) -> None:
        self.heard.append(message)

    def opened(self, connection: Any, remote: Any, local: Any) -> StreamFlow:
        return StreamFlow("WS", remote, local, 1, local, connection)

    def usable(self, flow: Any) -> None:
        pass

    def closed(self, connection: Any) -> None:
        pass


class Socket(StringTransportWithDisconnection):
    """A transport in memory."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass


def web_connection() -> tuple[SipWebSocket, Socket, Owner]:
    """A connection that has been accepted, its transport, and what stands for its table."""
    owner, transport = Owner(), Socket()
    connection = SipWebSocket(owner, 1, "WS", HOST)
    transport.protocol = connection
    connection.makeConnection(transport)
    return connection, transport, owner


@given(st.binary(max_size=200), st.integers(0, len(UPGRADE)), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_any_octets_instead_of_an_upgrade(noise: bytes, at: int, cut: int) -> None:
    """Whatever stands in the place of a part of the upgrade request, the answer is HTTP or waits for more."""
    connection, transport, _ = web_connection()
    connection.dataReceived(UPGRADE[:at] + noise + UPGRADE[at + cut :])
    assert transport.value() == b"" or transport.value().startswith(b"HTTP/1.1 ")


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(0, 15), st.booleans(), st.integers(0, 80))
@settings(max_examples=300, deadline=None)
def test_any_octets_instead_of_frames(payloads: list[bytes], opcode: int, final: bool, cut: int) -> None:
    """Whatever follows the upgrade, the connection goes on or ends with a close frame; messages stay messages."""
    connection, transport, owner = web_connection()
    connection.dataReceived(UPGRADE)
    transport.clear()
    octets = b""
    for payload in payloads:
        octets += bytes(((0x80 if final else 0) | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload
    connection.dataReceived(octets[:cut])
    connection.dataReceived(octets[cut:])
    assert not owner.heard
    if connection.closing_since is not None:
        assert b"\x88" in transport.value()

"""Which socket and which connection a message takes: IPv6, large requests, admission, domains over TLS, aliases."""

from __future__ import annotations

import socket
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from ssl import get_server_certificate
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from p2psipd.net.domain_tls import DomainTls
from p2psipd.net.sip_transports import LARGEST_DATAGRAM, SipTransports
from p2psipd.net.tls import CertificateFileError, ServerTls
from p2psipd.proto.identity.certificate import generate_private_key
from p2psipd.proto.sip.locating import Unreachable
from p2psipd.proto.sip.message import Request
from tests.net.sip_remotes import HOST, OPTIONS, RemoteUdp, TransportsCase, until

STUN = bytes.fromhex("000100002112a442b7e7a701bc34d686fa87dfae")


class AddressTests(TransportsCase):
    """Sockets of both families, and who may use them."""

    def test_ipv6(self) -> Deferred[None]:
        """UDP, TCP and WebSocket listen and dial on IPv6; Via names the listener of the connection's family."""

        async def scenario() -> None:
            transports, other = self.make(), self.make()
            transports.listen_udp((HOST, 0))
            transports.listen_tcp((HOST, 0))
            udp, tcp = transports.listen_udp(("::1", 0)), transports.listen_tcp(("::1", 0))
            web = transports.listen_web(("::1", 0))
            remote = RemoteUdp()
            port: Any = reactor.listenUDP(0, remote, interface="::1")
            remote.transport.write(OPTIONS, udp)
            await until(lambda: self.heard.messages)
            flow, _ = self.heard.messages.pop()
            self.assertEqual((flow.remote[0], flow.local, flow.sent_by), ("::1", udp, udp))
            flow.write(b"back")
            back = await transports.reach("UDP", *flow.remote)
            back.write(b"again")
            await until(lambda: remote.data == [b"back", b"again"])
            await port.stopListening()
            dialled: Any = await other.reach("TCP", *tcp)
            dialled.write(OPTIONS)
            await until(lambda: self.heard.messages)
            self.assertEqual(self.heard.messages[0][0].sent_by, tcp)
            there = other.listen_tcp(("::1", 0))
            self.assertEqual((await transports.reach("TCP", *there)).sent_by, tcp)
            self.assertFalse((await self.dial(web)).closed)

        return Deferred.fromCoroutine(scenario())

    def test_dialled_connections_name_a_listener(self) -> Deferred[None]:
        """RFC 3261 18.1.1: sent-by on a connection that we dialled is a listener of its transport, whatever local
        address the kernel chose; one that listens everywhere is named by that local address.
        """

        async def scenario() -> None:
            other = self.make()
            there = other.listen_tcp((HOST, 0))
            transports, everywhere = self.make(), self.make()
            here = transports.listen_tcp(("127.1.250.2", 0))
            self.assertEqual((await transports.reach("TCP", *there)).sent_by, here)
            _, port = everywhere.listen_tcp(("0.0.0.0", 0))
            flow = await everywhere.reach("TCP", *there)
            self.assertEqual(flow.sent_by, (flow.local[0], port))
            lonely = await self.make().reach("TCP", *there)
            self.assertEqual(lonely.sent_by, lonely.local)

        return Deferred.fromCoroutine(scenario())

    def test_admission_is_asked_before_anything_is_read(self) -> Deferred[None]:
        """A source that is shut out gets neither its datagrams parsed nor a connection, and both are counted."""

        async def scenario() -> None:
            asked: list[str] = []

            def admit(host: str) -> bool:
                asked.append(host)
                return host != "127.1.250.9"

            transports = self.make(admit=admit)
            address, tcp = transports.listen_udp((HOST, 0)), transports.listen_tcp((HOST, 0))
            remote = RemoteUdp()
            port: Any = reactor.listenUDP(0, remote, interface="127.1.250.9")
            for data in (OPTIONS, STUN, b"\xff" * 100):
                remote.transport.write(data, address)
            await until(lambda: transports.counters["datagrams_refused"] == 3)
            with socket.create_connection(tcp, 2, ("127.1.250.9", 0)) as refused:
                await until(lambda: transports.counters["refused_admission"])
                self.assertEqual(await deferToThread(refused.recv, 1), b"")
            await self.dial(tcp)
            await until(lambda: len(transports) == 1)
            self.assertEqual((self.heard.messages, self.heard.malformed, remote.data), ([], [], []))
            self.assertEqual(set(asked), {"127.1.250.9", "127.0.0.1"})
            await port.stopListening()

        return Deferred.fromCoroutine(scenario())

    def test_stun_keep_alive(self) -> Deferred[None]:
        """RFC 5626 3.5.2: a STUN Binding request to the SIP port is answered with the sender's address."""

        async def scenario() -> None:
            transports = self.make()
            address = transports.listen_udp((HOST, 0))
            remote = RemoteUdp()
            port: Any = reactor.listenUDP(0, remote, interface="127.1.250.9")
            remote.transport.write(STUN, address)
            await until(lambda: remote.data)
            (answer,) = remote.data
            self.assertEqual(answer[:2] + answer[8:20], b"\1\1" + STUN[8:])
            self.assertEqual(int.from_bytes(answer[26:28], "big") ^ 0x2112, port.getHost().port)
            self.assertEqual(transports.counters["stun_bindings"], 1)
            await port.stopListening()

        return Deferred.fromCoroutine(scenario())

    def test_large_requests_take_tcp_where_there_is_any(self) -> Deferred[None]:
        """RFC 3261 18.1.1: above 1300 octets a TCP connection to the same address, UDP where it is refused; a host that
        refused is not asked again at once.
        """

        async def scenario() -> None:
            transports, other = self.make(), self.make()
            transports.listen_udp((HOST, 0))
            there = other.listen_tcp((HOST, 0))
            udp = await transports.reach("UDP", *there)
            self.assertFalse(transports.too_large(udp, LARGEST_DATAGRAM))
            self.assertTrue(transports.too_large(udp, LARGEST_DATAGRAM + 1))
            tcp = await transports.congestion_controlled(udp)
            self.assertEqual((tcp.transport, tcp.remote), ("TCP", there))
            self.assertFalse(transports.too_large(tcp, 60_000))
            self.assertIs(await transports.congestion_controlled(udp), tcp)
            with socket.socket() as unused:
                unused.bind((HOST, 0))
                nobody = await transports.reach("UDP", *unused.getsockname())
            self.assertIs(await transports.congestion_controlled(nobody), nobody)
            before = transports._number
            self.assertIs(await transports.congestion_controlled(nobody), nobody)
            self.assertEqual((transports._number, transports.counters["large_over_udp"]), (before, 1))

        return Deferred.fromCoroutine(scenario())

    def test_tcp_that_never_answers_is_not_waited_for(self) -> Deferred[None]:
        """A host that swallows TCP connections gets the large request over UDP after two seconds, and nothing stays."""

        async def scenario() -> None:
            transports = self.make()
            transports.listen_udp((HOST, 0))
            connectors: list[Any] = []

            class Swallowing:
                """A reactor whose connections never come about."""

                def __getattr__(self, name: str) -> Any:
                    return getattr(reactor, name)

                def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 0) -> Any:
                    connectors.append(factory)
                    return self

                def disconnect(self) -> None:
                    connectors.append("given up")

                def callLater(self, seconds: float, *given: Any) -> Any:
                    return reactor.callLater(min(seconds, 0.1), *given)

            transports.clock = Swallowing()
            udp = await transports.reach("UDP", "127.1.250.77", 5060)
            self.assertIs(await transports.congestion_controlled(udp), udp)
            self.assertEqual(connectors[1:], ["given up"])
            self.assertEqual((len(transports), transports._opening), (0, {}))
            transports.clock = reactor

        return Deferred.fromCoroutine(scenario())

    def test_a_torrent_of_messages_is_slowed(self) -> Deferred[None]:
        """A connection that sends more than its rate is read from no more until the second is over; nothing is lost."""

        async def scenario() -> None:
            transports = self.make(rate=20)
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(OPTIONS * 50)
            await until(lambda: transports.counters["slowed_down"])
            remote.transport.write(OPTIONS)
            self.assertEqual(len(self.heard.messages), 50)
            (connection,) = transports._connections.values()
            self.assertTrue(connection._held.active())
            connection._held.reset(0.01)
            await until(lambda: len(self.heard.messages) == 51)

        return Deferred.fromCoroutine(scenario())

    def test_partial_messages(self) -> Deferred[None]:
        """A stream that always stands in the middle of a message is no stalled one as long as messages end; one whose
        body never comes is dropped.
        """

        async def scenario() -> None:
            transports = self.make(partial=0.0)
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            stream = OPTIONS * 4 + OPTIONS[:60]
            for start in range(0, len(stream), 150):
                remote.transport.write(stream[start : start + 150])
                end = min(start + 150, len(stream))
                await until(lambda end=end: len(self.heard.messages) == end // len(OPTIONS))  # type: ignore[misc]
            (connection,) = transports._connections.values()
            now = reactor.seconds()
            self.assertIsNotNone(connection.partial_since)
            self.assertGreater(connection.partial_since, connection.since)
            head = OPTIONS.replace(b"Content-Length: 0", b"Content-Length: 5")
            other = await self.dial((HOST, transports.listening[0][1][1]))
            other.transport.write(head)
            await until(lambda: list(transports._connections.values())[-1].partial_since is not None)
            last = list(transports._connections.values())[-1]
            self.assertEqual(last.overdue(now + 100, transports.limits), "partial")

        return Deferred.fromCoroutine(scenario())

    def test_peer_that_never_says_goodbye(self) -> Deferred[None]:
        """A connection that was closed gently and whose other side does not close is cut off."""

        async def scenario() -> None:
            transports = self.make()
            await self.dial(transports.listen_tcp((HOST, 0)))
            await until(lambda: len(transports) == 1)
            (connection,) = transports._connections.values()
            connection.closing_since = 100.0
            self.assertIsNone(connection.overdue(101.0, transports.limits))
            self.assertEqual(connection.overdue(106.0, transports.limits), "unclosed")

        return Deferred.fromCoroutine(scenario())


class Domains:
    """An authority, and certificates of domains under it as PEM files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = generate_private_key()
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        self.root = self._write("root", self._certificate("authority", self._key, [], ca=True))

    def _certificate(self, name: str, key: Any, names: list[x509.GeneralName], ca: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, SHA256())

    def _write(self, name: str, certificate: x509.Certificate, key: Any = None) -> str:
        path = self._directory / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        if key is not None:
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (self._directory / f"{name}.key").write_bytes(private)
        return str(path)

    def issue(self, domain: str) -> tuple[str, str]:
        """Certificate and key of `domain`, a name (as RFC 5922's URI) or a numeric host."""
        key = generate_private_key()
        named: x509.GeneralName
        if domain.replace(".", "").isdigit():
            named = x509.IPAddress(ip_address(domain))
        else:
            named = x509.UniformResourceIdentifier(f"sip:{domain}")
        path = self._write(domain, self._certificate(domain, key, [named]), key)
        return path, path.removesuffix(".pem") + ".key"


class DomainTests(TransportsCase):
    """TLS with servers and proxies of other domains."""

    def setUp(self) -> None:
        super().setUp()
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        self.domains = Domains(directory)

    def server(self, domain: str) -> tuple[SipTransports, tuple[str, int]]:
        """A TLS listener with the certificate of `domain`, that asks for client certificates."""
        transports = self.make()
        tls = ServerTls(*self.domains.issue(domain), client_authorities=self.domains.root)
        return transports, transports.listen_tls((HOST, 0), tls)

    def test_server_must_be_of_the_domain(self) -> Deferred[None]:
        """RFC 5922 7.3: only a server that proves the domain asked for is used, and its connection for no other."""

        async def scenario() -> None:
            _, address = self.server("one.example")
            client = self.make(tls_client=DomainTls(self.domains.root))
            flow: Any = await client.reach("TLS", *address, domain="one.example")
            self.assertEqual(flow.domains, ("one.example",))
            self.assertIs(await client.reach("TLS", *address, domain="ONE.example"), flow)
            for wrong in ("two.example", "sub.one.example", "*.example", ""):
                with pytest.raises(Unreachable, match=r"certificate is .*'s, not|label"):
                    await client.reach("TLS", *address, domain=wrong)
            self.assertEqual(len(client), 1)

        return Deferred.fromCoroutine(scenario())

    def test_numeric_host_and_foreign_authority(self) -> Deferred[None]:
        """A numeric host must stand in the certificate; a chain that our roots do not vouch for is refused."""

        async def scenario() -> None:
            _, address = self.server(HOST)
            client = self.make(tls_client=DomainTls(self.domains.root))
            flow = await client.reach("TLS", *address)
            self.assertIs(await client.reach("TLS", *address), flow)
            stranger = self.make(tls_client=DomainTls())
            with pytest.raises(Unreachable, match="refused"):
                await stranger.reach("TLS", *address)
            hurried = self.make(tls_client=DomainTls(self.domains.root), handshake=0.05)
            with socket.create_server((HOST, 0)) as silent, pytest.raises(Unreachable, match="took too long"):
                await hurried.reach("TLS", *silent.getsockname())
            nobody = self.make()
            with pytest.raises(Unreachable, match="can't be dialled"):
                await nobody.reach("TLS", *address)
            with pytest.raises(CertificateFileError):
                DomainTls(self.domains.root + ".missing")

        return Deferred.fromCoroutine(scenario())

    def test_files_are_read_again(self) -> Deferred[None]:
        """After a reload new connections see the new certificate, listening and dialling; files that are broken leave
        the old one in force.
        """

        async def scenario() -> None:
            certificate, key = self.domains.issue("one.example")
            server = self.make()
            tls = ServerTls(certificate, key)
            address = server.listen_web((HOST, 0), tls)
            dialling = DomainTls(self.domains.root, certificate, key)
            first = await deferToThread(get_server_certificate, address)
            self.domains.issue("one.example")
            self.assertEqual(await deferToThread(get_server_certificate, address), first)
            tls.reload()
            dialling.reload()
            second = await deferToThread(get_server_certificate, address)
            self.assertNotEqual(second, first)
            Path(key).write_text("no key")
            for each in (tls, dialling):
                with pytest.raises(CertificateFileError):
                    each.reload()
            self.assertEqual(await deferToThread(get_server_certificate, address), second)
            self.assertTrue(dialling.shows_certificate)

        return Deferred.fromCoroutine(scenario())

    def test_alias(self) -> Deferred[None]:
        """RFC 5923: a proxy that proved its domain and says "alias" is reached over its own connection, by the address
        in its Via and for that domain alone; without alias, or without a certificate, it is not.
        """

        async def scenario() -> None:
            server, address = self.server("one.example")
            known = DomainTls(self.domains.root, *self.domains.issue("two.example"))
            for tls, via, expected in (
                (known, b"two.example:5071;branch=z9hG4bK1;alias", 1),
                (known, b"two.example:5071;branch=z9hG4bK1", 0),
                (DomainTls(self.domains.root), b"two.example:5071;branch=z9hG4bK1;alias", 0),
            ):
                self.heard.messages.clear()
                client = self.make(tls_client=tls)
                there: Any = await client.reach("TLS", *address, domain="one.example")
                self.assertIs(there.alias, tls is known)
                there.write(OPTIONS.replace(b"TCP 127.1.250.9:5060;branch=z9hG4bK1;rport", b"TLS " + via))
                await until(lambda: self.heard.messages)
                flow, message = self.heard.messages[0]
                assert isinstance(message, Request)
                self.assertEqual(flow.domains, ("two.example",) if tls is known else ())
                server.counters.clear()
                server.alias(flow, message)
                self.assertEqual(server.counters["aliases"], expected)
                found = server._open_to("TLS", flow.remote[0], 5071, "two.example")
                self.assertIs(found, flow if expected else None)
                self.assertIsNone(server._open_to("TLS", flow.remote[0], 5071, "one.example"))
                for waiting in client.stop():
                    await waiting
                await until(lambda server=server: len(server) == 0)  # type: ignore[misc]
                self.assertEqual((server._by_remote, server._aliases), ({}, {}))

        return Deferred.fromCoroutine(scenario())

    @pytest.mark.foreign("openssl")
    def test_openssl_sees_the_request_for_a_certificate(self) -> Deferred[None]:
        """openssl s_client without a certificate is served; with one of another authority too, unverified; with one of
        ours its domain is known.
        """

        async def scenario() -> None:
            server, (host, port) = self.server("one.example")
            foreign = Path(self.mktemp())
            foreign.mkdir()
            command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", self.domains.root, "-quiet"]
            own = self.domains.issue("two.example")
            strange = Domains(foreign).issue("two.example")
            for more, domains in (([], ()), (strange, ()), (own, ("two.example",))):
                named = ["-cert", more[0], "-key", more[1]] if more else []
                self.heard.messages.clear()
                running = deferToThread(subprocess.run, command + named, input=OPTIONS, capture_output=True, timeout=10)
                await until(lambda: self.heard.messages)
                (flow, _) = self.heard.messages[0]
                self.assertEqual(flow.domains, domains)
                flow.protocol.drop("test", gently=True)
                done = await running
                self.assertEqual(done.returncode, 0, done.stderr)

        return Deferred.fromCoroutine(scenario())

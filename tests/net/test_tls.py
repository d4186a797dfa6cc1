"""TLS as a foreign program sees it: who gets in, and what clients that offer too much are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from p2psipd.net.links import LinkLimits, Links
from p2psipd.net.tls import CertificateFileError, EagerTransport, ServerTls, read_pem_chain, tls_factory
from p2psipd.proto.identity.certificate import parse_certificate
from tests.net.identities import Identity, node

LIMITS = LinkLimits(20, 10, 8, 4, 2.0, 2.0, 1 << 20)
ALICE, BOB = node(1), node(2)


class Count:
    """A LinkUser that counts links."""

    def __init__(self) -> None:
        self.links = 0

    def link_up(self, link: int, certificate: bytes, address: tuple[str, int], attempt: int | None) -> None:
        self.links += 1

    def link_failed(self, attempt: int, reason: str) -> None:
        raise AssertionError(reason)

    def link_down(self, link: int, reason: str) -> None:
        """Not counted."""

    def link_bytes(self, link: int, data: bytes) -> None:
        raise AssertionError(data)


@pytest.mark.foreign("openssl")
class OpensslClientTests(TestCase):
    """``openssl s_client`` against an overlay listener."""

    timeout = 20

    def setUp(self) -> None:
        self.user = Count()
        links = Links(reactor, BOB.tls(), self.user, LIMITS, node_ids=lambda der: parse_certificate(der).node_ids)
        self.addCleanup(lambda: Deferred.fromCoroutine(links.stop()))
        self.address = links.listen(("127.0.0.1", 0))
        self.counts = links.counts
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    async def client(self, identity: Identity | None, *more: str, version: str = "-tls1_3") -> str:
        """What s_client prints; its standard input ends at once."""
        host, port = self.address
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", version, *more]
        if identity is not None:
            certificate, key = identity.write(self.directory)
            command += ["-cert", str(certificate), "-key", str(key)]

        def run() -> str:
            process = subprocess.run(command, input=b"", capture_output=True, timeout=10, check=False)
            return (process.stdout + process.stderr).decode()

        return await deferToThread(run)

    async def test_own_certificate(self) -> None:
        """A certificate of the overlay gets in, with TLS 1.2 and 1.3."""
        for version in ("-tls1_2", "-tls1_3"):
            output = await self.client(ALICE, version=version)
            self.assertIn("-----BEGIN CERTIFICATE-----", output)
        self.assertEqual(self.user.links, 2)

    async def test_no_certificate(self) -> None:
        """A client without a certificate is refused in the handshake."""
        output = await self.client(None, version="-tls1_2")
        self.assertIn("alert handshake failure", output)
        await self.client(None)
        self.assertEqual(self.user.links, 0)

    async def test_other_overlay(self) -> None:
        """A certificate of another overlay, signed by another authority, is refused in the handshake."""
        output = await self.client(node(3, "other.example"), version="-tls1_2")
        self.assertIn("alert", output)
        self.assertEqual((self.user.links, self.counts["certificate_refused"]), (0, 1))

    async def test_old_versions(self) -> None:
        """Below TLS 1.2 there is no connection."""
        output = await self.client(ALICE, "-cipher", "ALL:@SECLEVEL=0", version="-tls1_1")
        self.assertIn("alert protocol version", output)

    async def test_alpn(self) -> None:
        """A client that offers application protocols is answered without one, not with internal_error."""
        output = await self.client(ALICE, "-alpn", "h2,http/1.1")
        self.assertIn("No ALPN negotiated", output)
        self.assertEqual(self.user.links, 1)

    async def test_no_resumption(self) -> None:
        """No session is resumed, so that every connection's certificate is judged anew."""
        output = await self.client(ALICE, "-reconnect", version="-tls1_2")
        self.assertIn("New, ", output)
        self.assertNotIn("Reused, ", output)


class ServerTlsTests(TestCase):
    """TLS for phones."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    @pytest.mark.foreign("openssl")
    async def test_phone_without_certificate(self) -> None:
        """A phone needs no certificate, and is shown ours."""
        certificate, key = BOB.write(self.directory)
        factory = tls_factory(ServerTls(str(certificate), str(key)), False, Factory.forProtocol(Protocol), reactor)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port.getHost().port}", "-alpn", "sip"]
        process = await deferToThread(subprocess.run, command, input=b"", capture_output=True, timeout=10, check=False)
        self.assertIn(certificate.read_text().splitlines()[1].encode(), process.stdout)

    def test_files_do_not_fit(self) -> None:
        """A key that is not the certificate's is refused with the names of both files."""
        certificate, _ = BOB.write(self.directory)
        _, key = ALICE.write(self.directory, "other")
        with self.assertRaises(CertificateFileError) as raised:
            ServerTls(str(certificate), str(key))
        self.assertIn(str(key), str(raised.exception))

    def test_no_certificate_in_file(self) -> None:
        """A file without a certificate is refused with its name."""
        path = self.directory / "empty.pem"
        path.write_text("nothing\n")
        with self.assertRaises(CertificateFileError) as raised:
            read_pem_chain(path)
        self.assertIn("empty.pem", str(raised.exception))


class FakeTcp:
    """A TCP transport whose socket takes everything; what each system call was given, and how it ended."""

    def __init__(self) -> None:
        self.connected, self.dataBuffer, self._tempDataBuffer = True, b"", []
        self.calls: list[bytes] = []

    def writeSomeData(self, data: bytes) -> int:
        self.calls.append(data)
        return len(data)

    def loseConnection(self) -> None:
        self.calls.append(b"closed")


def test_small_records_of_one_read_go_out_together() -> None:
    """In their order, before a close, and not held back once there are many octets."""
    tcp = FakeTcp()
    transport = EagerTransport(tcp)
    transport.write(b"1")
    transport.gather()
    transport.write(b"2")
    transport.write(b"3")
    assert tcp.calls == [b"1"]
    transport.release()
    transport.gather()
    transport.write(b"4")
    transport.loseConnection()
    assert tcp.calls == [b"1", b"23", b"4", b"closed"]
    transport.gather()
    transport.write(bytes(5000))
    assert tcp.calls[-1] == bytes(5000)

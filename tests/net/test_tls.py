"""TLS as a foreign program sees it: who gets in, and what clients that offer too much are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from p2psipd.net.links import LinkLimits, Links
from p2psipd.net.tls import (
    CertificateFileError,
    EagerTransport,
    RecordBoundary,
    ServerTls,
    TlsProtocol,
    read_pem_chain,
    tls_factory,
)
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


class EagerPipe(StringTransport):
    """A transport that takes all octets at once, as a socket with room does."""

    connected = True
    dataBuffer = b""
    _tempDataBuffer: tuple[bytes, ...] = ()

    def writeSomeData(self, data: bytes) -> int:
        self.write(data)
        return len(data)

    def taken(self) -> bytes:
        """What was written since the last time."""
        octets = self.value()
        self.clear()
        return octets


class Sink(Protocol):
    """Keeps what comes, and why it ended."""

    def __init__(self) -> None:
        self.octets = b""
        self.reason = ""

    def dataReceived(self, data: bytes) -> None:
        self.octets += data

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:
        self.reason = str(reason.value)


class End:
    """One end of a TLS connection in memory."""

    def __init__(self, identity: Identity, *, client: bool) -> None:
        self.sink, self.pipe = Sink(), EagerPipe()
        factory = tls_factory(identity.tls(), client, Factory.forProtocol(lambda: self.sink), Clock())
        protocol = factory.buildProtocol(None)
        assert isinstance(protocol, TlsProtocol)
        self.tls = protocol


def connected() -> tuple[End, End]:
    """Two ends after their handshake."""
    near, far = End(ALICE, client=True), End(BOB, client=False)
    for end in (near, far):
        end.tls.makeConnection(end.pipe)
    while octets := near.pipe.taken():
        far.tls.dataReceived(octets)
        near.tls.dataReceived(far.pipe.taken())
    return near, far


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40_000), max_size=6), st.lists(st.integers(1, 20_000), max_size=30), st.booleans())
def test_a_stream_may_be_cut_anywhere(sizes: list[int], cuts: list[int], closes: bool) -> None:
    """However TCP cuts the records, all that was sent arrives at once, and the closing alert is understood."""
    near, far = connected()
    for size in sizes:
        near.tls.write(bytes(size))
    if closes:
        near.tls.loseConnection()
    stream = near.pipe.taken()
    for cut in [*cuts, len(stream)]:
        if stream[:cut]:
            far.tls.dataReceived(stream[:cut])
        stream = stream[cut:]
    assert len(far.sink.octets) == sum(sizes)
    assert far.pipe.disconnecting is closes


def test_a_damaged_record_ends_the_connection_with_its_reason() -> None:
    """One octet of a record is changed: nothing of it is delivered, and OpenSSL's reason is told."""
    near, far = connected()
    near.tls.write(b"one")
    far.tls.dataReceived(near.pipe.taken())
    near.tls.write(b"two")
    record = near.pipe.taken()
    far.tls.dataReceived(record[:-1] + bytes((record[-1] ^ 1,)))
    far.tls.connectionLost(Failure(ConnectionError()))
    assert far.sink.octets == b"one"
    assert "decryption failed or bad record mac" in far.sink.reason


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.integers(1, 30), max_size=20))
def test_record_boundary(bodies: list[bytes], cuts: list[int]) -> None:
    """Octets are whole records if and only if they begin where one begins and end where one ends."""
    records = [b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body for body in bodies]
    starts = [sum(map(len, records[:number])) for number in range(len(records) + 1)]
    stream, boundary, position = b"".join(records), RecordBoundary(), 0
    for cut in [*cuts, len(stream)]:
        data = stream[position : position + cut]
        if data:
            end = position + len(data)
            whole = starts.index(end) - starts.index(position) if position in starts and end in starts else 0
            assert boundary.whole_records(data) == whole
        position += cut

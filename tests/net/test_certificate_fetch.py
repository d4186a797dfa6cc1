"""Certificates over http and https: guards, merging, keeping, and serving our own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from p2psipd.net import certificate_fetch
from p2psipd.net.certificate_fetch import CertificateFetcher, ServedCertificates
from p2psipd.net.certificate_server import MOST_OF_ADDRESS, CertificateServer
from p2psipd.net.peer_tls import PeerTls
from p2psipd.proto.identity.chain import read_chain
from p2psipd.proto.identity.policy import TrustAnchors
from p2psipd.proto.peering.own_certificates import OwnCertificates, served_name
from p2psipd.proto.peering.peers import PeeringPolicy, PeerSettings
from p2psipd.proto.peering.verification import CertificateUnavailable
from tests.proto.identity.domain_certificates import TestAuthority, dns, ec_key, pem
from tests.proto.peering.peering_world import KINDS, own_certificate

NOW = float(int(time.time()))
CA = TestAuthority(wall=NOW)
LEAF = CA.issue(dns("a.test"), ec_key(1))
LOOPBACK = ip_network("127.0.0.0/8")
HOST = "127.1.80.2"


class Pages(Resource):
    """A server that answers as its dictionary says: (status, body, headers), or never (None)."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[bytes, tuple[int, bytes, dict[bytes, bytes]] | None] = {}
        self.asked: list[bytes] = []
        self.open: list[Any] = []

    def render_GET(self, request: Any) -> Any:
        """The next answer."""
        self.asked.append(request.path)
        answer = self.answers.get(request.path, (404, b"", {}))
        if answer is None:
            self.open.append(request)
            return NOT_DONE_YET
        request.setResponseCode(answer[0])
        for name, value in answer[2].items():
            request.setHeader(name, value)
        return answer[1]


class FetchTests(TestCase):
    """The fetcher against a server on loopback."""

    timeout = 20

    def setUp(self) -> None:
        self.pages = Pages()
        self.pages.answers[b"/der"] = (200, LEAF, {})
        self.port = reactor.listenTCP(0, Site(self.pages), interface=HOST)  # type: ignore[attr-defined]
        self.addCleanup(self.port.stopListening)
        self.names = {"a.test": [HOST]}
        self.base = f"http://a.test:{self.port.getHost().port}"
        self.fetcher = self.make()

    def make(self, networks: Sequence[Any] = (LOOPBACK,)) -> CertificateFetcher:
        async def addresses(host: str) -> list[str]:
            return self.names.get(host, [])

        return CertificateFetcher(reactor, addresses, roots=[CA.der], private_networks=networks)

    async def fault(self, url: str, fetcher: CertificateFetcher | None = None) -> str:
        """Why there is no certificate at ``url``."""
        with pytest.raises(CertificateUnavailable) as unavailable:
            await (fetcher or self.fetcher).fetch(url)
        return str(unavailable.value)

    async def test_der_and_pem(self) -> None:
        """One DER certificate, or PEM with its chain."""
        chain = b"".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in (LEAF, CA.der))
        self.pages.answers[b"/pem"] = (200, chain, {})
        assert list(await self.fetcher.fetch(f"{self.base}/der")) == [LEAF]
        assert list(await self.fetcher.fetch(f"{self.base}/pem")) == [LEAF, CA.der]

    async def test_peering_091_a_hundred_at_once_are_one_fetch(self) -> None:
        """Equal fetches are merged, and the result is kept."""
        url = f"{self.base}/der"
        got = await gatherResults([ensureDeferred(self.fetcher.fetch(url)) for _ in range(100)])
        assert all(list(chain) == [LEAF] for chain in got) and self.pages.asked == [b"/der"]
        await self.fetcher.fetch(url)
        assert len(self.pages.asked) == 1 and self.fetcher.counters["kept"] == 1

    async def test_peering_091_failures_are_kept_for_a_while(self) -> None:
        """A URL that gave nothing is not asked again at once."""
        for _ in range(3):
            assert "404" in await self.fault(f"{self.base}/none")
        assert len(self.pages.asked) == 1

    async def test_peering_077_guards(self) -> None:
        """Not http, too big, no certificate, no address, a closed port: each is a failure with its reason."""
        self.pages.answers[b"/big"] = (200, b"x" * (64 * 1024 + 1), {})
        self.pages.answers[b"/junk"] = (200, b"junk", {})
        assert "more than 65536 octets" in await self.fault(f"{self.base}/big")
        assert "no certificate" in await self.fault(f"{self.base}/junk")
        assert "no address" in await self.fault("http://unknown.test/")
        for url in ("ftp://a.test/x", "http://u@a.test/", "http://a.test:x/", "http:///x", "http://a.test/\u00e9", "x"):
            assert "not an http or https URL" in await self.fault(url)
        assert "refused" in await self.fault("http://a.test:1/")
        self.pages.answers[b"/head"] = (200, LEAF, {b"x-%d" % number: b"x" * 1000 for number in range(200)})
        assert "octets of headers" in await self.fault(f"{self.base}/head")

    async def test_peering_077_private_addresses_are_refused(self) -> None:
        """Loopback, private, link-local, mapped and translated addresses are not connected to unless configured."""
        guarded = self.make(networks=())
        assert "private address" in await self.fault(f"{self.base}/der", guarded)
        for number, address in enumerate(
            (
                "10.0.0.1",
                "169.254.169.254",
                "::1",
                "fe80::1",
                "::ffff:127.0.0.1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "0.0.0.0",
            )
        ):
            self.names[f"n{number}.test"] = [address]
            assert "private address" in await self.fault(f"http://n{number}.test/", guarded)
        assert "private address" in await self.fault(f"http://[::1]:{self.port.getHost().port}/", guarded)
        assert self.pages.asked == []

    async def test_peering_077_redirects_are_guarded_too(self) -> None:
        """A redirect is followed a few times; one to a private address or in circles is not."""
        self.names["inside.test"] = ["10.0.0.1"]
        self.pages.answers[b"/moved"] = (302, b"", {b"location": b"/der"})
        self.pages.answers[b"/inside"] = (302, b"", {b"location": b"http://inside.test/"})
        self.pages.answers[b"/round"] = (302, b"", {b"location": b"/round"})
        assert list(await self.fetcher.fetch(f"{self.base}/moved")) == [LEAF]
        assert "private address" in await self.fault(f"{self.base}/inside")
        assert "redirects" in await self.fault(f"{self.base}/round")

    async def test_peering_077_a_slow_server_is_given_up(self) -> None:
        """Three seconds in all; here a tenth of one."""
        self.patch(certificate_fetch, "FETCH_SECONDS", 0.1)
        self.pages.answers[b"/slow"] = None
        assert await self.fault(f"{self.base}/slow") == "not there within 0.1 s"
        assert self.fetcher.counters["failed"] == 1
        for request in self.pages.open:
            request.notifyFinish().addErrback(lambda _: None)

    async def test_too_many_at_once_are_refused(self) -> None:
        """The number of fetches under way is bounded; what is refused is not kept as a failure."""
        self.patch(certificate_fetch, "MAXIMUM_PENDING", 1)
        never: Deferred[Sequence[str]] = Deferred()

        async def addresses(host: str) -> Sequence[str]:
            return await never if host == "slow.test" else [HOST]

        fetcher = CertificateFetcher(reactor, addresses, private_networks=[LOOPBACK])
        first = ensureDeferred(fetcher.fetch("http://slow.test/"))
        assert "too many" in await self.fault(f"{self.base}/der", fetcher)
        never.callback([])
        self.failureResultOf(first, CertificateUnavailable)
        assert list(await fetcher.fetch(f"{self.base}/der")) == [LEAF]

    async def test_one_host_does_not_stand_in_the_way(self) -> None:
        """Of a host whose certificates never arrive a few are waited for; those of others come meanwhile."""
        never: Deferred[Sequence[str]] = Deferred()

        async def addresses(host: str) -> Sequence[str]:
            return await never if host == "slow.test" else [HOST]

        fetcher = CertificateFetcher(reactor, addresses, private_networks=[LOOPBACK])
        most = certificate_fetch.MAXIMUM_PENDING_OF_HOST
        waiting = [ensureDeferred(fetcher.fetch(f"http://slow.test/{number}")) for number in range(most)]
        assert "too many" in await self.fault("http://SLOW.test/more", fetcher)
        assert list(await fetcher.fetch(f"{self.base}/der")) == [LEAF]
        never.callback([])
        for each in waiting:
            self.failureResultOf(each, CertificateUnavailable)
        assert "too many" not in await self.fault("http://slow.test/more", fetcher)


@pytest.mark.foreign("openssl")
class HttpsTests(TestCase):
    """https against ``openssl s_server -WWW``."""

    timeout = 20

    async def test_https_servers_are_verified(self) -> None:
        """The server's certificate must be of a configured authority and of the host of the URL."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "a.cer").write_bytes(LEAF)
        for name, octets in (
            ("s.pem", x509.load_der_x509_certificate(LEAF).public_bytes(Encoding.PEM)),
            ("s.key", pem(ec_key(1))),
        ):
            (directory / name).write_bytes(octets)
        probe = reactor.listenTCP(0, Site(Pages()), interface=HOST)  # type: ignore[attr-defined]
        port = probe.getHost().port
        await probe.stopListening()
        command = ["openssl", "s_server", "-accept", f"{HOST}:{port}", "-WWW", "-cert", "s.pem", "-key", "s.key"]
        program = subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            await deferToThread(lambda: b"ACCEPT\n" in program.stdout)  # type: ignore[operator]

            async def addresses(host: str) -> list[str]:
                return [HOST]

            fetcher = CertificateFetcher(reactor, addresses, roots=[CA.der], private_networks=[LOOPBACK])
            assert list(await fetcher.fetch(f"https://a.test:{port}/a.cer")) == [LEAF]
            for bad, host in (
                (fetcher, "b.test"),
                (CertificateFetcher(reactor, addresses, private_networks=[LOOPBACK]), "a.test"),
            ):
                with pytest.raises(CertificateUnavailable):
                    await bad.fetch(f"https://{host}:{port}/a.cer")
        finally:
            program.kill()
            program.communicate()


class ServedTests(TestCase):
    """Our own certificates under their URLs."""

    timeout = 20

    async def test_what_we_serve_is_what_a_verifier_fetches(self) -> None:
        """DER under .cer and the chain under .pem; old certificates for another hour; nothing else."""
        clock = Clock()
        first = OwnCertificates([own_certificate(kind) for kind in KINDS])
        resource = ServedCertificates(clock, "/identity", first)
        port = reactor.listenTCP(0, resource.site(), interface=HOST)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)

        async def addresses(host: str) -> list[str]:
            return [HOST]

        async def get(path: str) -> Sequence[bytes]:
            fetcher = CertificateFetcher(reactor, addresses, private_networks=[LOOPBACK])
            return await fetcher.fetch(f"http://a.test:{port.getHost().port}{path}")

        names = [one.certificate.fingerprint[:16] for one in first.certificates]
        assert list(await get(f"/identity/{names[0]}.cer")) == [first.certificates[0].chain[0]]
        assert list(await get(f"/identity/{names[1]}.pem")) == list(first.certificates[1].chain)
        for path in (f"/{names[0]}.cer", f"/identity/x/{names[0]}.cer", "/identity/", "/identity/../etc/passwd"):
            with pytest.raises(CertificateUnavailable):
                await get(path)
        resource.update(OwnCertificates([own_certificate(KINDS[0], ("c.test",))]))
        assert await get(f"/identity/{names[0]}.cer")
        clock.advance(3601)
        with pytest.raises(CertificateUnavailable):
            await get(f"/identity/{names[0]}.cer")


class ServerTests(TestCase):
    """The listeners, plain and over TLS."""

    timeout = 20

    async def test_https_shows_the_certificate_of_the_named_domain(self) -> None:
        """One listener, two domains: the fetcher, which verifies, gets the certificate from both."""
        pairs = [(KINDS[1], ("a.test",)), (KINDS[1], ("c.test",))]
        own = OwnCertificates([own_certificate(kind, domains, ca=CA) for kind, domains in pairs])
        policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([CA.der])))
        for scheme in ("https", "http"):
            server = CertificateServer(reactor, f"{scheme}://{{domain}}/x", own, PeerTls(policy, own, time.time))
            ((_, port),) = server.listen([(HOST, 0)])
            self.addCleanup(server.stop)

            async def addresses(host: str) -> list[str]:
                return [HOST]

            fetcher = CertificateFetcher(reactor, addresses, roots=[CA.der], private_networks=[LOOPBACK])
            for one, host in zip(own.certificates, ("a.test", "c.test"), strict=True):
                url = f"{scheme}://{host}:{port}/x/{served_name(one, KINDS[1])}"
                assert list(await fetcher.fetch(url)) == list(one.chain)


class _Transport(StringTransport):
    """What an HTTP server asks of TCP."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to do."""


def test_connections_to_our_certificates_are_capped() -> None:
    """Of one address only so many are open at a time; when one has ended another may come."""
    own = OwnCertificates([own_certificate(KINDS[1], ("a.test",), ca=CA)])
    policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([CA.der])))
    memory = MemoryReactorClock()
    CertificateServer(memory, "http://{domain}/x", own, PeerTls(policy, own, time.time)).listen([(HOST, 8443)])
    factory, address = memory.tcpServers[0][1], IPv4Address("TCP", "192.0.2.7", 4000)
    factory.doStart()

    def connect() -> Any:
        protocol = factory.buildProtocol(address)
        if protocol is not None:
            protocol.makeConnection(_Transport(peerAddress=address))
        return protocol

    opened = [connect() for _ in range(MOST_OF_ADDRESS)]
    assert all(opened) and connect() is None
    opened.pop().connectionLost(Failure(ConnectionDone()))
    opened.append(connect())
    assert opened[-1] is not None
    other = factory.buildProtocol(IPv4Address("TCP", "192.0.2.8", 4000))
    assert other is not None
    for one in opened:
        one.connectionLost(Failure(ConnectionDone()))
    factory.doStop()


def test_chains_are_bounded() -> None:
    """A bundle of more certificates than a chain can have is none."""
    one = x509.load_der_x509_certificate(LEAF).public_bytes(Encoding.PEM)
    assert len(read_chain(one * 7)) == 7
    with pytest.raises(ValueError):
        read_chain(one * 8)

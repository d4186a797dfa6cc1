"""TLS between domains: who gets in, whose certificate is shown, and what OpenSSL's own programs see of it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import classImplements

from p2psipd.net.peer_tls import NoOwnCertificate, PeerTls, own_of, peer_of, refusal_of
from p2psipd.net.tls import tls_factory
from p2psipd.proto.identity.policy import Step, TrustAnchors, Usage, read_certificate
from p2psipd.proto.peering.connections import ConnectionTable
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import PeeringPolicy, PeerSettings
from tests.proto.identity.domain_certificates import (
    CLIENT_AUTH,
    DAY,
    SERVER_AUTH,
    TestAuthority,
    dns,
    ec_key,
    pem,
    rsa_key,
    self_signed,
)

NOW = float(int(time.time()))
CA = TestAuthority(wall=NOW)
OTHER_CA = TestAuthority("Other CA", wall=NOW)
KEY = ec_key(7)


def certificate(*domains: str, ca: TestAuthority = CA, **parts: Any) -> OwnCertificate:
    der = ca.issue(dns(*domains), KEY, **parts)
    return own(der, *domains)


def own(der: bytes, *domains: str, key: Any = KEY, chain: tuple[bytes, ...] = ()) -> OwnCertificate:
    return OwnCertificate(domains[0], read_certificate(der), (der, *chain), key, domains)


def tls(*certificates: OwnCertificate, peers: tuple[PeerSettings, ...] = (), **anchors: Any) -> PeerTls:
    anchors.setdefault("roots", [CA.der])
    policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors(**anchors)), peers)
    return PeerTls(policy, OwnCertificates(certificates), lambda: NOW, refused=lambda *told: REFUSED.append(told))


REFUSED: list[Any] = []


class FakeProtocol(SimpleNamespace):
    """What Twisted's TLS protocol is to a creator."""

    def getPeer(self) -> Any:
        """From nowhere."""
        return SimpleNamespace(host="127.1.80.9")


class End:
    """One end of a connection in memory."""

    def __init__(self, connection: SSL.Connection, client: bool) -> None:
        self.connection, self.done, self.error = connection, False, ""
        self.transport = connection.get_app_data()
        connection.set_connect_state() if client else connection.set_accept_state()

    def step(self) -> None:
        """Go on with the handshake, or look for what came after it."""
        try:
            if self.done:
                self.connection.recv(1000)
            else:
                self.connection.do_handshake()
                self.done = True
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            self.error = self.error or str(error.args[0])

    def read(self) -> bytes:
        """What the other side has said so far."""
        try:
            return self.connection.recv(1 << 16)
        except SSL.WantReadError:
            return b""
        except SSL.Error as error:
            self.error = str(error.args[0])
            return b""

    def take(self) -> bytes:
        """What is to be sent."""
        try:
            return self.connection.bio_read(1 << 16)
        except SSL.WantReadError:
            return b""


def handshake(client: PeerTls, server: PeerTls, domain: str = "b.test", from_domain: str = "a.test") -> tuple[End, End]:
    """Both ends after all has been said."""
    dialler = client.towards(domain, from_domain).clientConnectionForTLS(FakeProtocol())  # type: ignore[arg-type]
    acceptor = server.server.serverConnectionForTLS(FakeProtocol())  # type: ignore[arg-type]
    ends = End(dialler, True), End(acceptor, False)
    for _ in range(6):
        for end, other in (ends, ends[::-1]):
            end.step()
            if data := end.take():
                other.connection.bio_write(data)
    return ends


A = tls(certificate("a.test"))
B = tls(certificate("b.test"))


def refused_by_server(client: OwnCertificate, server: PeerTls) -> tuple[Step, str]:
    """The step that refused a client's certificate, and what the client was told."""
    ends = handshake(tls(client), server, from_domain=client.domains[0])
    refusal = refusal_of(ends[1].transport)
    assert refusal is not None and peer_of(ends[1].transport) is None
    return refusal.step, ends[0].error


def test_both_sides_know_each_other() -> None:
    """After the handshake each side has the domains of the other, and what vouched for them."""
    client, server = handshake(A, B)
    assert client.done and server.done and not client.error and not server.error
    assert client.connection.get_protocol_version_name() == "TLSv1.3"
    there, here = peer_of(client.transport), peer_of(server.transport)
    assert there is not None and there.domains == {"b.test"} and here is not None and here.domains == {"a.test"}
    assert here.authorities["a.test"].name == "CN=Test CA"


def test_peering_044_a_server_for_another_domain_is_left() -> None:
    """The dialler refuses a server that does not speak for the domain that was asked for, and says so."""
    client, server = handshake(A, tls(certificate("c.test")))
    refusal = refusal_of(client.transport)
    assert refusal is not None and refusal.step is Step.DOMAIN and "c.test" in str(refusal)
    assert "alert" in server.error and peer_of(client.transport) is None
    expired, _ = handshake(A, tls(certificate("b.test", not_after=NOW - 1)))
    assert refusal_of(expired.transport).step is Step.DATE  # type: ignore[union-attr]


def test_peering_067_clients_are_refused_with_the_alert_that_says_why() -> None:
    """Expired: 45, unknown authority: 48, revoked: 44 (RFC 8446 section 6.2)."""
    revoked = certificate("a.test")
    server = tls(certificate("b.test"), crls=[CA.revocation_list(revoked.chain[0])])
    step, told = refused_by_server(certificate("a.test", not_after=NOW - 1), server)
    assert step is Step.DATE and "expired" in told
    step, told = refused_by_server(certificate("a.test", ca=OTHER_CA), server)
    assert step is Step.AUTHORITY and "unknown ca" in told
    step, told = refused_by_server(revoked, server)
    assert step is Step.REVOKED and "revoked" in told
    assert peer_of(handshake(A, server)[1].transport) is not None


def test_peering_068_a_client_without_sip_identity_is_refused() -> None:
    """A certificate that names only a mail address ends the handshake."""
    der = CA.issue([x509.RFC822Name("alice@a.test")], KEY, subject="Alice")
    client = End(tls(certificate("a.test")).towards("b.test", "a.test").clientConnectionForTLS(FakeProtocol()), True)  # type: ignore[arg-type]
    client.connection.use_certificate(x509.load_der_x509_certificate(der))
    client.connection.use_privatekey(KEY)
    server = End(B.server.serverConnectionForTLS(FakeProtocol()), False)  # type: ignore[arg-type]
    for _ in range(4):
        for end, other in ((client, server), (server, client)):
            end.step()
            if data := end.take():
                other.connection.bio_write(data)
    refusal = refusal_of(server.transport)
    assert refusal is not None and refusal.step is Step.DOMAIN


def test_a_servers_certificate_as_a_client_is_a_setting_of_the_peer() -> None:
    """Public authorities issue no clientAuth any more: taken where the peer's entry says so, refused elsewhere."""
    web = certificate("a.test", usages=[SERVER_AUTH])
    step, _ = refused_by_server(web, B)
    assert step is Step.USAGE
    loose = PeerSettings("a.test", anchors=TrustAnchors([CA.der]), client_usage=Usage.SERVER_AS_CLIENT)
    assert peer_of(handshake(tls(web), tls(certificate("b.test"), peers=(loose,)))[1].transport) is not None


def test_pinned_certificates() -> None:
    """A self-signed certificate that is pinned for its domain gets in, on either side; another one does not."""
    mine, other = (own(self_signed(dns("a.test"), KEY, NOW - serial), "a.test") for serial in (0, 60))
    pin = PeerSettings("a.test", anchors=TrustAnchors(pins=[mine.certificate.fingerprint]))
    server = tls(certificate("b.test"), peers=(pin,))
    here = peer_of(handshake(tls(mine), server)[1].transport)
    assert here is not None and here.authorities["a.test"].pinned
    assert refused_by_server(other, server)[0] is Step.AUTHORITY
    there = peer_of(handshake(server, tls(mine), domain="a.test", from_domain="b.test")[0].transport)
    assert there is not None and there.domains == {"a.test"}
    assert refused_by_server(certificate("a.test"), server)[0] is Step.AUTHORITY


def test_intermediates_are_sent_and_used() -> None:
    """A chain over an intermediate is shown whole, and believed."""
    between = TestAuthority("Intermediate", parent=CA, wall=NOW)
    der = between.issue(dns("a.test"), KEY)
    assert peer_of(handshake(tls(own(der, "a.test", chain=(between.der,))), B)[1].transport) is not None
    assert refused_by_server(own(der, "a.test"), B)[0] is Step.AUTHORITY


def test_peering_049_the_from_domain_chooses_the_certificate() -> None:
    """Calls of x.test show x.test's certificate; a domain without certificate connects nowhere."""
    both = tls(certificate("a.test"), certificate("x.test"))
    for domain in ("a.test", "x.test"):
        client, server = handshake(both, B, from_domain=domain)
        here = peer_of(server.transport)
        assert here is not None and here.domains == {domain}
        assert own_of(client.transport).name == domain  # type: ignore[union-attr]
    with pytest.raises(NoOwnCertificate):
        both.towards("b.test", "z.test")


def test_peering_066_sni_chooses_the_servers_certificate() -> None:
    """The certificate shown is that of the domain that the client names; an unknown name gets the first."""
    server = tls(certificate("b.test"), certificate("c.test", "d.test"))
    for domain in ("b.test", "c.test", "D.test"):
        client, other = handshake(A, server, domain=domain)
        there = peer_of(client.transport)
        assert there is not None and domain.lower() in there.domains
        assert domain.lower() in own_of(other.transport).domains  # type: ignore[union-attr]
        assert peer_of(other.transport) is not None
    assert refusal_of(handshake(A, server, domain="e.test")[0].transport).step is Step.DOMAIN  # type: ignore[union-attr]


def test_a_new_policy_holds_for_new_connections() -> None:
    """After an update the next handshake is judged by the new authorities and shows the new certificate."""
    server = tls(certificate("b.test"))
    assert peer_of(handshake(A, server)[1].transport) is not None
    server.update(
        PeeringPolicy(PeerSettings(anchors=TrustAnchors([OTHER_CA.der]))), OwnCertificates([certificate("b.test")])
    )
    assert refused_by_server(certificate("a.test"), server)[0] is Step.AUTHORITY


def test_peering_043_connections_are_reused_by_identity() -> None:
    """Same address: reused for a domain that the certificate names and a From that ours names; else a new one."""
    server = tls(certificate("b.test", "c.test"))
    client, _ = handshake(A, server)
    peer, shown = peer_of(client.transport), own_of(client.transport)
    assert peer is not None and shown is not None
    table: ConnectionTable[str] = ConnectionTable()
    at = ("127.1.80.1", 5061)
    table.add("one", at, shown, peer)
    table.add("one", at, shown, peer)
    assert table.find(at, "B.test", "a.test") == "one" and table.find(at, "c.test", "a.test") == "one"
    assert table.find(at, "d.test", "a.test") is None
    assert table.find(at, "b.test", "x.test") is None
    assert table.find(("127.1.80.2", 5061), "b.test", "a.test") is None
    assert table.find_any([("127.1.80.2", 5061), at], "b.test", "a.test") == "one"
    table.remove("one")
    assert table.find(at, "b.test", "a.test") is None and len(table) == 0


class Known(Protocol):
    """Keeps whom its transport knows at the end of the handshake."""

    def __init__(self) -> None:
        self.ready: Deferred[object] = Deferred()
        self.lost: Deferred[object] = Deferred()

    def handshakeCompleted(self) -> None:
        """Both names are known now."""
        self.ready.callback((peer_of(self.transport), own_of(self.transport)))

    def connectionLost(self, reason: object = None) -> None:
        """Why is kept."""
        self.lost.callback(refusal_of(self.transport))


classImplements(Known, IHandshakeListener)


class TwistedTests(TestCase):
    """The same through Twisted's own TLS."""

    timeout = 20

    async def connect(self, client: PeerTls, server: PeerTls) -> tuple[Known, Known]:
        """Both protocols, connected over loopback."""
        ends = Known(), Known()
        accepting, dialling = (ClientFactory.forProtocol(lambda end=end: end) for end in ends[::-1])
        port = reactor.listenTCP(0, tls_factory(server.server, False, accepting, reactor), interface="127.1.80.1")  # type: ignore[arg-type]
        self.addCleanup(port.stopListening)
        creator = tls_factory(client.towards("b.test", "a.test"), True, dialling, reactor)
        reactor.connectTCP("127.1.80.1", port.getHost().port, creator)  # type: ignore[attr-defined]
        return ends

    async def test_both_sides_know_each_other(self) -> None:
        """peer_of and own_of hold in handshakeCompleted on both sides."""
        client, server = await self.connect(A, B)
        for end, other, mine in ((client, "b.test", "a.test"), (server, "a.test", "b.test")):
            peer, shown = await end.ready  # type: ignore[misc]
            assert peer.domains == {other} and shown.domains == (mine,)
        client.transport.loseConnection()  # type: ignore[union-attr]
        await client.lost
        await server.lost

    async def test_a_refusal_is_kept(self) -> None:
        """After connectionLost the side that refused knows why."""
        client, server = await self.connect(tls(certificate("a.test", ca=OTHER_CA)), B)
        refusal = await server.lost
        assert REFUSED[-1] == (refusal, "127.0.0.1")
        assert refusal.step is Step.AUTHORITY  # type: ignore[attr-defined]
        await client.lost


# ---- programs of OpenSSL -----------------------------------------------------------------------------------


def write(directory: Path, name: str, one: OwnCertificate) -> list[str]:
    """The arguments that show a certificate."""
    path = directory / name
    loaded = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in one.chain]
    path.with_suffix(".pem").write_bytes(b"".join(loaded))
    path.with_suffix(".key").write_bytes(pem(one.key))
    return ["-cert", f"{path}.pem", "-key", f"{path}.key"]


@contextmanager
def running(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the test, also where that fails while both wait for each other."""
    with subprocess.Popen(command, **streams) as program:
        try:
            yield program
        finally:
            if program.poll() is None:
                program.kill()


def s_client(directory: Path, server: PeerTls, *arguments: str) -> tuple[End, str]:
    """Our end, and what ``openssl s_client`` prints."""
    with socket.create_server(("127.1.80.1", 0)) as listener:
        host, port = listener.getsockname()
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-ign_eof", *arguments]
        with running(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as program:
            accepted, _ = listener.accept()
            end = End(server.server.serverConnectionForTLS(FakeProtocol()), False)  # type: ignore[arg-type]
            pump(end, accepted)
            if end.done and not end.error:
                end.connection.send(b"welcome")
                accepted.sendall(end.take())
            accepted.close()
            output, _ = program.communicate(timeout=10)
    return end, output.decode(errors="replace")


def pump(end: End, connected: socket.socket) -> None:
    """Carry octets until the handshake has ended, one way or the other."""
    connected.settimeout(5)
    while True:
        end.step()
        if data := end.take():
            connected.sendall(data)
        if end.done or end.error:
            return
        came = connected.recv(1 << 16)
        if not came:
            end.error = end.error or "closed"
            return
        end.connection.bio_write(came)


@pytest.mark.foreign("openssl")
def test_peering_067_what_openssl_s_client_is_told(tmp_path: Path) -> None:
    """No certificate: alert 116 under TLS 1.3, 40 under TLS 1.2; a good one gets in, also under TLS 1.2."""
    good = write(tmp_path, "a", certificate("a.test", usages=[CLIENT_AUTH]))
    for version in ("-tls1_3", "-tls1_2"):
        end, output = s_client(tmp_path, B, version, *good)
        assert peer_of(end.transport).domains == {"a.test"} and "welcome" in output  # type: ignore[union-attr]
    _, output = s_client(tmp_path, B, "-tls1_3")
    assert "alert number 116" in output
    _, output = s_client(tmp_path, B, "-tls1_2")
    assert "alert number 40" in output
    _, output = s_client(tmp_path, B, *write(tmp_path, "old", certificate("a.test", not_after=NOW - DAY / 2)))
    assert "alert number 45" in output
    _, output = s_client(tmp_path, B, *write(tmp_path, "foreign", certificate("a.test", ca=OTHER_CA)))
    assert "alert number 48" in output
    bad = certificate("a.test")
    listed = tls(certificate("b.test"), crls=[CA.revocation_list(bad.chain[0])])
    _, output = s_client(tmp_path, listed, *write(tmp_path, "revoked", bad))
    assert "alert number 44" in output


@pytest.mark.foreign("openssl")
def test_everybody_may_fetch_our_certificates(tmp_path: Path) -> None:
    """The creator for https asks for no certificate, and shows the one of the host that is named."""
    server = tls(certificate("b.test"), certificate("c.test"))
    with socket.create_server(("127.1.80.1", 0)) as listener:
        host, port = listener.getsockname()
        (tmp_path / "ca.pem").write_bytes(x509.load_der_x509_certificate(CA.der).public_bytes(Encoding.PEM))
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "c.test", "-CAfile"]
        command += [str(tmp_path / "ca.pem"), "-verify_hostname", "c.test", "-verify_return_error"]
        with running(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as program:
            accepted, _ = listener.accept()
            end = End(server.public.serverConnectionForTLS(FakeProtocol()), False)  # type: ignore[arg-type]
            pump(end, accepted)
            accepted.close()
            output, _ = program.communicate(timeout=10)
    assert end.done and b"Verification: OK" in output and b"No client certificate CA names sent" in output


@pytest.mark.foreign("openssl")
def test_peering_050_nothing_below_tls_1_2(tmp_path: Path) -> None:
    """A client that can do no more than TLS 1.1 is turned away (RFC 8996)."""
    good = write(tmp_path, "a", certificate("a.test"))
    end, output = s_client(tmp_path, B, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0", *good)
    assert not end.done and "alert" in output


@pytest.mark.foreign("openssl")
def test_sessions_are_not_resumed(tmp_path: Path) -> None:
    """No ticket and no session is given, so that every connection is judged anew."""
    good = write(tmp_path, "a", certificate("a.test"))
    for version in ("-tls1_2", "-tls1_3"):
        session = tmp_path / f"session{version}"
        s_client(tmp_path, B, version, "-sess_out", str(session), *good)
        offered = ["-sess_in", str(session)] if session.exists() else []
        _, output = s_client(tmp_path, B, version, "-no_ign_eof", *offered, *good)
        assert "New, TLS" in output or not offered
        assert "Reused" not in output


@pytest.mark.foreign("openssl")
def test_peering_047_openssl_s_server_takes_our_certificate(tmp_path: Path) -> None:
    """A server that demands a certificate gets the one of the From domain, RSA or not, and verifies it."""
    (tmp_path / "ca.pem").write_bytes(x509.load_der_x509_certificate(CA.der).public_bytes(Encoding.PEM))
    rsa = own(CA.issue(dns("x.test", "a.test"), rsa_key()), "x.test", "a.test", key=rsa_key())
    with socket.create_server(("127.1.80.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.1.80.1:{port}", "-Verify", "3", "-verify_return_error"]
    command += ["-CAfile", str(tmp_path / "ca.pem"), "-naccept", "1", *write(tmp_path, "b", certificate("b.test"))]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith(b"ACCEPT"):
                break
        with socket.create_connection(("127.1.80.1", port)) as connected:
            creator = tls(rsa).towards("b.test", "a.test")
            end = End(creator.clientConnectionForTLS(FakeProtocol()), True)  # type: ignore[arg-type]
            pump(end, connected)
            assert peer_of(end.transport).domains == {"b.test"}  # type: ignore[union-attr]
            end.connection.send(b"hello\n")
            connected.sendall(end.take())
            output = b""
            for line in program.stdout:
                output += line
                if line == b"hello\n":
                    break
        program.communicate(timeout=10)
    assert b"verify return:1" in output and b"hello" in output

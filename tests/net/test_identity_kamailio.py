"""Against Kamailio: Identity by auth_identity (RFC 4474) and secsipid (RFC 8224), it verifying ours and we its; and
mutual TLS both ways.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import end
from p2psipd.net.peer_tls import PeerTls, peer_of
from p2psipd.proto.identity.policy import TrustAnchors, read_certificate
from p2psipd.proto.identity.sip_date import write_sip_date
from p2psipd.proto.peering.identity import Signing, sign_request
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeeringPolicy, PeerSettings
from p2psipd.proto.peering.replay import ReplayCache
from p2psipd.proto.peering.verification import IdentityVerifier, Verification
from p2psipd.proto.sip.message import Request, Response, parse_message
from tests.net.test_peer_tls import End, FakeProtocol, pump
from tests.proto.identity.domain_certificates import TestAuthority, dns, ec_key, rsa_key
from tests.proto.peering.peering_world import KINDS, own_certificate, request, run

pytestmark = pytest.mark.foreign("kamailio")

KAMAILIO, US, WEB = "127.1.80.3", "127.1.80.4", "127.1.80.5"

CONFIGURATION = """\
#!KAMAILIO
debug=0
log_stderror=yes
children=1
auto_aliases=no
tcp_children=1
enable_tls=yes
listen=udp:{kamailio}:5070
listen=tls:{kamailio}:5061
loadmodule "tls.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "auth_identity.so"
loadmodule "secsipid.so"
modparam("tls", "config", "{directory}/tls.cfg")
modparam("auth_identity", "cainfo_path", "{directory}/ca.pem")
modparam("auth_identity", "privatekey_path", "{directory}/rsa.key")
modparam("auth_identity", "certificate_path", "{directory}/rsa.pem")
modparam("auth_identity", "certificate_url", "http://{web}:{port}/k.cer")
modparam("secsipid", "libopt", "CertCAFile={directory}/ca.pem")
modparam("secsipid", "libopt", "CertVerify=5")
modparam("secsipid", "expire", 60)
request_route {{
    if ($rU == "verify4474") {{
        if (!vrfy_check_date()) {{ sl_send_reply("403", "Stale Date"); exit; }}
        if (!vrfy_get_certificate()) {{ sl_send_reply("436", "Bad Identity-Info"); exit; }}
        if (!vrfy_check_certificate()) {{ sl_send_reply("437", "Unsupported Certificate"); exit; }}
        if (!vrfy_check_msgvalidity()) {{ sl_send_reply("438", "Invalid Identity Header"); exit; }}
        if (!vrfy_check_callid()) {{ sl_send_reply("403", "Replay"); exit; }}
        sl_send_reply("200", "OK");
    }} else if ($rU == "verify8224") {{
        if (secsipid_check_identity("")) {{ sl_send_reply("200", "OK"); exit; }}
        sl_send_reply("438", "Invalid Identity Header");
    }} else if ($rU == "over-tls") {{
        $du = "sip:{us}:5071;transport=tls";
        t_relay();
    }} else if ($rU == "sign4474") {{
        $du = "sip:{us}:5070";
        auth_date_proc();
        auth_add_identity();
        t_relay();
    }} else if ($rU == "sign8224") {{
        $du = "sip:{us}:5070";
        secsipid_add_identity("$fU", "$tU", "B", "", "http://{web}:{port}/k.pem", "{directory}/ec.key");
        t_relay();
    }} else {{
        sl_send_reply("404", "Not Found");
    }}
}}
"""


TLS = """\
[server:default]
method = TLSv1.2+
verify_certificate = yes
require_certificate = yes
certificate = {directory}/rsa.pem
private_key = {directory}/rsa.key
ca_list = {directory}/ca.pem
[client:default]
method = TLSv1.2+
verify_certificate = yes
require_certificate = yes
certificate = {directory}/rsa.pem
private_key = {directory}/rsa.key
ca_list = {directory}/ca.pem
"""


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


class Oracle:
    """Kamailio on UDP, a web server with certificates, and our socket."""

    def __init__(self, directory: Path) -> None:
        self.now = time.time()
        self.ca = TestAuthority(wall=self.now)
        self.own = OwnCertificates([own_certificate(kind, ca=self.ca) for kind in KINDS])
        self.pages: dict[str, bytes] = {}
        self.web = ThreadingHTTPServer((WEB, 0), self._handler())
        threading.Thread(target=self.web.serve_forever, args=(0.05,), daemon=True).start()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((US, 5070))
        self.socket.settimeout(0.2)
        self.number = 0
        self._write(directory)
        command = ["kamailio", "-DD", "-E", "-f", str(directory / "kamailio.cfg"), "-m", "32", "-M", "8"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(50):
            if self.process.poll() is None and self.ask("ready", None) is not None:
                break
        self.socket.settimeout(5)

    def _write(self, directory: Path) -> None:
        issued = {"rsa": self.ca.issue(dns("k.test"), rsa_key()), "ec": self.ca.issue(dns("k.test"), ec_key(1))}
        for name, key in (("rsa", rsa_key()), ("ec", ec_key(1))):
            octets = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
            (directory / f"{name}.key").write_bytes(octets)
            (directory / f"{name}.pem").write_bytes(pem(issued[name]))
        (directory / "ca.pem").write_bytes(pem(self.ca.der))
        places = {"kamailio": KAMAILIO, "us": US, "web": WEB, "port": self.web.server_port, "directory": directory}
        (directory / "kamailio.cfg").write_text(CONFIGURATION.format(**places))
        (directory / "tls.cfg").write_text(TLS.format(directory=directory))
        self.theirs = {"k.cer": issued["rsa"], "k.pem": issued["ec"]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path, b"")
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        return Handler

    def url(self, own: OwnCertificate, domain: str, kind: IdentityKind) -> str:
        """Kamailio keeps certificates by URL and does not look again: a URL for each request."""
        old = kind is IdentityKind.RFC4474
        path = f"/{self.number}.{'cer' if old else 'pem'}"
        self.pages[path] = own.chain[0] if old else pem(own.chain[0])
        return f"http://{WEB}:{self.web.server_port}{path}"

    def ask(
        self, user: str, kind: IdentityKind | None, *edits: tuple[bytes, bytes], **headers: str
    ) -> Request | Response | None:
        """What comes back for a request to ``user``, signed by us as ``kind`` and edited on its way."""
        self.number += 1
        headers = {"Via": f"SIP/2.0/UDP {US}:5070;branch=z9hG4bK{self.number}", "Content_Type": "text/plain", **headers}
        message = request("MESSAGE", b"hello\r\n", call_id=f"{self.number}@a.test", **headers)
        message.set_uri(f"sip:{user}@{KAMAILIO}:5070")
        if kind is not None:
            sign_request(message, Signing((kind,), full_form=True), self.own, self.url, self.now)
        octets = message.encode()
        for old, new in edits:
            assert old in octets
            octets = octets.replace(old, new)
        self.socket.sendto(octets, (KAMAILIO, 5070))
        while True:
            try:
                answer = parse_message(self.socket.recv(1 << 16))
            except TimeoutError:
                return None
            # Answers to what was asked while it was starting come late.
            if answer.call_id == message.call_id:
                return answer

    def status(self, user: str, kind: IdentityKind | None, *edits: tuple[bytes, bytes], **headers: str) -> int:
        """The status of the answer."""
        answer = self.ask(user, kind, *edits, **headers)
        assert isinstance(answer, Response)
        return answer.status

    def signed_by_them(self, user: str, **headers: str) -> Verification:
        """What our verifier says of a request that Kamailio signed."""
        message = self.ask(user, None, **headers)
        assert isinstance(message, Request)

        async def fetch(url: str) -> Sequence[bytes]:
            return [self.theirs[url.rpartition("/")[2]]]

        policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([self.ca.der])))
        return run(IdentityVerifier(fetch, ReplayCache()).verify(message, policy, time.time()))

    def tls(self, ca: TestAuthority | None = None) -> PeerTls:
        """Our side of connections, as a.test."""
        der = (ca or self.ca).issue(dns("a.test"), ec_key(3))
        own = OwnCertificate("a", read_certificate(der), (der,), ec_key(3), ("a.test",))
        policy = PeeringPolicy(PeerSettings(anchors=TrustAnchors([self.ca.der])))
        return PeerTls(policy, OwnCertificates([own]), time.time)

    def close(self) -> None:
        """End everything."""
        end(self.process)
        self.web.shutdown()
        self.web.server_close()
        self.socket.close()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """One Kamailio for all tests."""
    made = Oracle(tmp_path_factory.mktemp("kamailio"))
    yield made
    made.close()


def test_peering_059_kamailio_accepts_our_rfc4474_signatures(oracle: Oracle) -> None:
    """With a body, without Contact, anonymous, as a number; altered or from a foreign authority it refuses."""
    old = IdentityKind.RFC4474
    assert oracle.status("verify4474", old) == 200
    assert oracle.status("verify4474", old, Contact="") == 200
    assert oracle.status("verify4474", old, From="<sip:anonymous@a.test>;tag=1") == 200
    assert oracle.status("verify4474", old, From="<sip:+12125551212@a.test;user=phone>;tag=1") == 200
    assert oracle.status("verify4474", old, (b"hello", b"hallo")) == 438
    assert oracle.status("verify4474", old, (b"To: <sip:bob", b"To: <sip:eve")) == 438
    stranger = own_certificate(old, ca=TestAuthority("Other CA", wall=oracle.now))
    kept, oracle.own = oracle.own, OwnCertificates([stranger])
    try:
        assert oracle.status("verify4474", old) == 437
    finally:
        oracle.own = kept


def test_peering_096_secsipid_accepts_our_rfc8224_tokens(oracle: Oracle) -> None:
    """Our full form verifies there, an altered one does not."""
    assert oracle.status("verify8224", IdentityKind.RFC8224) == 200
    assert oracle.status("verify8224", IdentityKind.RFC8224, (b"Identity: ey", b"Identity: eY")) == 438
    assert oracle.status("verify8224", None) == 438


def test_peering_096_we_accept_what_kamailio_signs(oracle: Oracle) -> None:
    """auth_identity's pair, and secsipid's "shaken" token, which comes without Date."""
    found = oracle.signed_by_them("sign4474", From="<sip:alice@k.test>;tag=1")
    assert (found.status, found.kind, found.authority) == (0, IdentityKind.RFC4474, "CN=Test CA")
    numbers = {"From": "<sip:12155550121@k.test>;tag=1", "To": "<sip:12155550131@b.test>"}
    found = oracle.signed_by_them("sign8224", **numbers)
    assert (found.status, found.kind, found.attest) == (0, IdentityKind.RFC8224, "B")
    assert len(found.origid) == 36
    found = oracle.signed_by_them("sign8224", Date=write_sip_date(time.time()), **numbers)
    assert found.status == 0
    found = oracle.signed_by_them("sign4474", From="<sip:alice@victim.test>;tag=1")
    assert (found.status, found.step) == (437, "domain")


def test_peering_047_kamailio_takes_our_connection(oracle: Oracle) -> None:
    """Its server demands and verifies our certificate, we verify its; a foreign one is refused after the handshake."""
    options = request("OPTIONS", b"", Via="SIP/2.0/TLS 127.1.80.4:5071;branch=z9hG4bKt").encode()
    for ca, answered in ((None, True), (TestAuthority("Other CA", wall=oracle.now), False)):
        with socket.create_connection((KAMAILIO, 5061)) as connected:
            creator = oracle.tls(ca).towards("k.test", "a.test")
            end = End(creator.clientConnectionForTLS(FakeProtocol()), True)  # type: ignore[arg-type]
            pump(end, connected)
            peer = peer_of(end.transport)
            assert peer is not None and peer.domains == {"k.test"}
            end.connection.send(options)
            connected.sendall(end.take())
            answer = b""
            while not end.error and not answer and (came := connected.recv(1 << 16)):
                end.connection.bio_write(came)
                answer = end.read()
        assert answer.startswith(b"SIP/2.0 404") if answered else "unknown ca" in end.error


def test_peering_067_kamailio_connects_to_us(oracle: Oracle) -> None:
    """A call that Kamailio routes to us over TLS comes with its certificate, which names its domain."""
    with socket.create_server((US, 5071)) as listener:
        listener.settimeout(5)
        oracle.socket.settimeout(0.05)
        oracle.ask("over-tls", None)
        oracle.socket.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            end = End(oracle.tls().server.serverConnectionForTLS(FakeProtocol()), False)  # type: ignore[arg-type]
            pump(end, accepted)
            peer = peer_of(end.transport)
            assert peer is not None and peer.domains == {"k.test"}
            accepted.sendall(end.take())
            octets = end.read()
            while not octets and not end.error and (came := accepted.recv(1 << 16)):
                end.connection.bio_write(came)
                octets = end.read()
    assert octets.startswith(b"MESSAGE sip:over-tls@")

"""One overlay a.test with an edge, and Kamailio as the border of other domains, for test_peering_kamailio.py.

On the network of the lab: .1 is a node with phones, .2 the edge (.3 to .5 are more listeners of it), .9 is dead, .53
the name server, .60 Kamailio (.62 to .66 are listeners of it with faults), .61 a web server with its certificates,
.70 a server of a.test that answers 503, .71 and up are phones.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import end
from p2psipd.lab import Lab, free_network
from p2psipd.proto.identity.policy import read_certificate
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.sip.message import Request, make_response, parse_message
from tests.knot import Knot
from tests.proto.identity.domain_certificates import DAY, TestAuthority, dns, ec_key, rsa_key

from .wire_phone import Phone, WirePeer

TEMPLATES: Final = Path(__file__).parent / "kamailio"
NUMBER: Final = "+12125551212"
#: Domains of Kamailio with one server each, by the last part of its address.
SERVERS: Final = {
    "k4474.test": ".60",
    "k8224.test": ".60",
    "blocked.test": ".60",
    "expired.test": ".62",
    "unknown.test": ".63",
    "wrong.test": ".64",
    "stranger.test": ".66",
}
THEIRS: Final = ("k4474.test", "k8224.test", "k.test", "blocked.test", "stranger.test")
_EDGE: Final = """
[peering]
listen = ["{net}.2:5065", "{net}.3:5065", "{net}.4:5065", "{net}.5:5065"]
policy = "../peering.toml"
"""
_DNS: Final = """
[dns]
servers = ["{net}.53:53"]
timeout_seconds = 2.0
"""


class KamailioWorld:
    """Everything, running; `stop` ends it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="p2psip-kam-"))
        self.network = free_network()
        self.now = time.time()
        self.ca, self.other_ca = TestAuthority(wall=self.now), TestAuthority("Other CA", wall=self.now)
        self.pages: dict[str, bytes] = {}
        self._closing: list[Any] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.lab = Lab.create(
            self.directory, 2, users=("alice", "bob"), network=self.network, overlay_name="a.test", log_level="debug"
        )
        try:
            self._write_certificates()
            self._start_names()
            self._configure_nodes()
            self._start_web()
            self._start_busy()
            self._start_kamailio()
            self.lab.up()
            self.lab.provision()
            self._give_number()
            self._wait_kamailio()
        except BaseException:
            self.stop()
            raise

    # ---- parts -------------------------------------------------------------------------------------------------

    def host(self, number: int) -> str:
        """An address of the network."""
        return f"{self.network}.{number}"

    @property
    def edge(self) -> tuple[str, int]:
        """The edge's first listener."""
        return self.host(2), 5065

    def phone(self, name: str, number: int) -> Phone:
        """A phone of a user of ours, registered at the node that is no edge."""
        made = Phone(f"sip:{name}@a.test", self.host(number), (self.host(1), 5060), self.lab.user(name).password)
        made.register()
        return made

    def foreign_phone(self, aor: str, number: int) -> Phone:
        """A phone behind Kamailio."""
        return Phone(aor, self.host(number), (self.host(60), 5060))

    def to_us(self, certificate: str = "k") -> WirePeer:
        """A connection to the edge with one of the certificates of others."""
        return self._wire(self.edge, "a.test", certificate, "k")

    def to_them(self) -> WirePeer:
        """A connection to Kamailio with the certificate of our domain."""
        return self._wire((self.host(60), 5061), "k4474.test", "a", "a")

    def _wire(self, server: tuple[str, int], domain: str, certificate: str, key: str) -> WirePeer:
        files = self.directory / "ca.pem", self.directory / f"{certificate}.pem", self.directory / f"{key}.key"
        return WirePeer(server, domain, *files)

    def refusals(self) -> list[dict[str, Any]]:
        """What the edge has refused, the last ones."""
        return list(self.lab.control(2).get("/peering/refusals")["last"])

    def log(self, number: int = 2) -> str:
        """The log of a node of ours."""
        return (self.lab.peer_directory(number) / "log").read_text(errors="replace")

    def kamailio_log(self) -> str:
        """What Kamailio says."""
        return (self.directory / "kamailio.log").read_text(errors="replace")

    # ---- making ------------------------------------------------------------------------------------------------

    def _fill(self, name: str, **more: str) -> str:
        text = (TEMPLATES / name).read_text().replace("@NET@", self.network).replace("@DIR@", str(self.directory))
        for key, value in more.items():
            text = text.replace(f"@{key}@", value)
        return text

    def _write(self, name: str, der: bytes) -> None:
        octets = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        (self.directory / f"{name}.pem").write_bytes(octets)

    def _write_certificates(self) -> None:
        keys = {"a": ec_key(11), "a-rsa": rsa_key(11), "k": ec_key(12), "k-rsa": rsa_key(12), "k-ec": ec_key(13)}
        for name, key in keys.items():
            octets = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
            (self.directory / f"{name}.key").touch(mode=0o600)
            (self.directory / f"{name}.key").write_bytes(octets)
        issue, key = self.ca.issue, keys["k"]
        self._write("ca", self.ca.der)
        self._write("a", issue(dns("a.test"), keys["a"]))
        self._write("a-rsa", issue(dns("a.test"), keys["a-rsa"]))
        self._write("a-stranger", self.other_ca.issue(dns("a.test"), keys["a"]))
        self._write("k", issue(dns(*THEIRS), key))
        self._write("expired", issue(dns("expired.test", *THEIRS), key, not_after=self.now - DAY / 2))
        self._write("unknown", self.other_ca.issue(dns("unknown.test", *THEIRS), key))
        self._write("wrong", issue(dns("other.test"), key))
        self._write("c", issue(dns("c.test"), key))
        old, new = issue(dns("k4474.test", "k.test"), keys["k-rsa"]), issue(dns("k8224.test", "k.test"), keys["k-ec"])
        self._write("k-rsa", old)
        self.pages["/k.cer"] = old
        self.pages["/k.pem"] = x509.load_der_x509_certificate(new).public_bytes(Encoding.PEM)
        # What they sign with, for requests that no Kamailio would sign.
        self.their_own = OwnCertificates(
            OwnCertificate(
                f"k{index}", read_certificate(der), (der,), keys[key], ("k.test", "k4474.test", "k8224.test")
            )
            for index, (der, key) in enumerate(((old, "k-rsa"), (new, "k-ec")))
        )

    def _start_names(self) -> None:
        zones = self.directory / "zones"
        zones.mkdir()
        for name in ("a.test.zone", "k.test.zone", "e164.arpa.zone"):
            (zones / name).write_text(self._fill(name))
        for zone, host in SERVERS.items():
            (zones / f"{zone}.zone").write_text(self._fill("simple.zone", ZONE=zone, HOST=host))
        knot = self.directory / "knot"
        knot.mkdir()
        self._closing.append(Knot(knot, sorted(zones.iterdir()), self.host(53), 53).stop)

    def _configure_nodes(self) -> None:
        (self.directory / "peering.toml").write_text(self._fill("peering.toml"))
        for number in (1, 2):
            file = self.lab.peer_directory(number) / "p2psipd.toml"
            text = file.read_text() + _DNS.format(net=self.network)
            if number == 2:
                text = text.replace('"peer", "sip"', '"peer", "sip", "peering"') + _EDGE.format(net=self.network)
            file.write_text(text)

    def _start_web(self) -> None:
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/slow"):
                    time.sleep(5.0)
                body = pages.get(self.path, b"")
                with contextlib.suppress(ConnectionError):
                    self.send_response(200 if body else 404)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        web = ThreadingHTTPServer((self.host(61), 8066), Handler)
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        self._closing += [web.server_close, web.shutdown]

    def _start_busy(self) -> None:
        """The server of a.test that answers 503; `refused` holds what came to it."""
        self.refused: list[Request] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "a.pem", self.directory / "a.key")
        listener = socket.create_server((self.host(70), 5065))
        self._closing.append(listener.close)

        def refuse(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                while data := secured.recv(65536):
                    message = parse_message(data)
                    assert isinstance(message, Request)
                    self.refused.append(message)
                    secured.sendall(make_response(message, 503, to_tag="busy").encode())

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=refuse, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    def _start_kamailio(self) -> None:
        for name in ("peer.cfg", "tls.cfg"):
            (self.directory / name).write_text(self._fill(name))
        (self.directory / "resolv.conf").write_text(f"nameserver {self.host(53)}\n")
        where = self.directory
        command = f"mount --bind {where}/resolv.conf $(realpath /etc/resolv.conf) && exec kamailio -DD -E -m 32 -M 8"
        with (where / "kamailio.log").open("wb") as log:
            kamailio = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", f"{command} -w {where} -P {where}/kamailio.pid -f {where}/peer.cfg"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(kamailio)

    def _wait_kamailio(self) -> None:
        until = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection((self.host(60), 5061), timeout=0.2).close()
                return
            except OSError:
                assert time.monotonic() < until and self._processes[0].poll() is None, self.kamailio_log()
                time.sleep(0.05)

    def _give_number(self) -> None:
        command = [sys.executable, "-m", "p2psipd.cli.main", "number", "add", NUMBER, "alice"]
        places = ["--dir", str(self.directory / "provisioning"), "--overlay", str(self.directory / "overlay.xml")]
        done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """End every process, and clear the files away."""
        for process in self._processes:
            end(process)
        self.lab.kill_all()
        for close in reversed(self._closing):
            close()
        shutil.rmtree(self.directory, ignore_errors=True)

"""Who takes part in `bench.peering`: b.test, which is a real node with the role peering or Kamailio, and a.test.

Both servers believe the same authority, demand a client certificate, and answer an OPTIONS to their domain themselves
once its Identity has been verified. Kamailio does nothing else; the node also judges the certificate, the peer, the
From, the Request-URI and Route of each request.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import end
from bench.sip_load import LOAD_CORE, SERVER_CORE, await_socket, pinned
from p2psipd.peering_lab import PEERING_PORT, Authority, PeeringLab
from p2psipd.proto.identity.certificate import generate_private_key
from p2psipd.proto.identity.policy import read_certificate
from p2psipd.proto.peering.identity import IdentityUrl
from p2psipd.proto.peering.own_certificates import OwnCertificate, OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind
from p2psipd.proto.peering.publishing import PublishedServer, domain_records, number_records, zone_text

US, THEM = "a.test", "b.test"
KAMAILIO_HOST, WEB_HOST, SINK_HOST = "127.1.100.2", "127.1.100.3", "127.1.100.4"
WEB_PORT, SINK_PORT = 10080, 10061
USER: Final = "bob"
_ZONE: Final = "$ORIGIN {zone}.\n@ 60 IN SOA ns hostmaster 1 3600 600 86400 5\n@ 60 IN NS ns\nns 60 IN A 127.0.0.1\n"


def number(place: int) -> str:
    """The telephone number of a domain to call."""
    return f"+4420{place:08d}"


def called_domain(place: int) -> str:
    """A domain to call; each has its own zone entries and its own certificate."""
    return f"d{place}.called.test"


class Identities:
    """The certificates of a.test, for TLS and for both kinds of Identity, and the web server that has them."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.authority = authority
        self.directory = directory
        keys = (generate_private_key(), rsa.generate_private_key(65537, 2048))
        self.tls = self._files("client", US, keys[0])
        found = []
        for name, key in zip(("ec", "rsa"), keys, strict=True):
            der = _der(authority.issue(US, key))
            found.append(OwnCertificate(name, read_certificate(der), (der,), key, (US,)))
        self.own = OwnCertificates(found)
        self._pages = {"/ec": authority.issue(US, keys[0]), "/rsa": found[1].chain[0]}
        self._pages["/ec"] = x509.load_der_x509_certificate(found[0].chain[0]).public_bytes(Encoding.PEM)
        self._web = ThreadingHTTPServer((WEB_HOST, WEB_PORT), self._handler())
        threading.Thread(target=self._web.serve_forever, args=(0.05,), daemon=True).start()

    def _files(self, name: str, domain: str, key: EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
        """A certificate of a domain and its key as files; the key as OpenSSL's older programs read it."""
        files = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        files[0].write_bytes(self.authority.issue(domain, key))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        return files

    def server_files(self, domain: str) -> tuple[Path, Path]:
        """A certificate and key of another domain."""
        return self._files(domain, domain, generate_private_key())

    def rsa_files(self, domain: str) -> tuple[Path, Path]:
        """The same with an RSA key."""
        return self._files(f"{domain}-rsa", domain, rsa.generate_private_key(65537, 2048))

    def url(self, host: str) -> IdentityUrl:
        """Where the certificates are, for a verifier that knows the web server as `host`."""
        return lambda own, domain, kind: f"http://{host}:{WEB_PORT}/{own.name}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages = self._pages

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

    def close(self) -> None:
        """End the web server."""
        self._web.shutdown()
        self._web.server_close()


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def pin(pid: int, core: int) -> None:
    """Bind a process that runs already, all its threads, to a core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core % (os.cpu_count() or 1)})


class Node:
    """b.test as a real node on the server core, an overlay of its own, and knot on the other one."""

    name = "p2psipd"

    def __init__(self, directory: Path, called: int, kinds: Sequence[IdentityKind] = tuple(IdentityKind)) -> None:
        self.lab = PeeringLab.create(
            directory / "lab",
            (THEM,),
            peers=1,
            users=((USER,),),
            numbers=(("+442071838750",),),
            send="both" if len(kinds) > 1 else kinds[0].value,
            log_level="warn",
        )
        (domain,) = self.lab.domains
        peer = domain.lab.peer_directory(1)
        policy = peer / "peering.toml"
        policy.write_text(policy.read_text().replace("domains = []", f'domains = ["{US}"]'))
        self._write_zones(called)
        self.address = (domain.lab.host(1), PEERING_PORT)
        self.phone_address = (domain.lab.host(1), 5060)
        self.password = domain.lab.user(USER).password

    def _write_zones(self, called: int) -> None:
        """a.test, and domains to call, each with the number that leads to it."""
        zones = self.lab.directory / "zones"
        (zones / f"{US}.zone").write_text(_ZONE.format(zone=US) + f"@ 60 IN A {WEB_HOST}\n")
        text, enum = _ZONE.format(zone="called.test"), ""
        for place in range(called):
            domain = called_domain(place)
            servers = [PublishedServer(f"edge.{domain}", SINK_PORT, (SINK_HOST,))]
            text += zone_text(domain_records(domain, servers))
            enum += zone_text(number_records(number(place), f"sip:{{number}}@{domain};user=phone"))
        (zones / "called.test.zone").write_text(text)
        with (zones / "e164.arpa.zone").open("a") as file:
            file.write(enum)

    def start(self) -> None:
        """Start the node and its name server."""
        self.lab.up()
        pin(self.pid, SERVER_CORE)

    @property
    def pid(self) -> int:
        """The node's process."""
        pid = self.lab.domains[0].lab.pid(1)
        if pid is None:
            raise RuntimeError(f"the node died: {self.lab.domains[0].lab.log_tail(1)}")
        return pid

    @property
    def url_host(self) -> str:
        """What it knows the web server as: a name, for it must lie in the domain that the connection proves."""
        return US

    def stop(self) -> None:
        """End both."""
        self.lab.end()


class Kamailio:
    """b.test as Kamailio on the server core: auth_identity and secsipid, one worker for each transport.

    secsipid fetches the certificate for every request, which is its default, or keeps it in a file (`keeps`).
    """

    url_host = WEB_HOST

    def __init__(self, directory: Path, identities: Identities, *, keeps: bool = False) -> None:
        self.name = "Kamailio, keeping certificates" if keeps else "Kamailio"
        self.address = (KAMAILIO_HOST, PEERING_PORT + keeps)
        run = directory / f"kamailio-{keeps}"
        (run / "cache").mkdir(parents=True)
        (run / "ca.pem").write_bytes(identities.authority.pem)
        certificate, key = identities.server_files(THEM)
        rsa_certificate, rsa_key = identities.rsa_files(THEM)
        places = {
            "ADDRESS": KAMAILIO_HOST, "PORT": str(self.address[1]), "RUN": str(run),
            "TLS_CERTIFICATE": str(certificate), "TLS_KEY": str(key),
            "RSA_CERTIFICATE": str(rsa_certificate), "RSA_KEY": str(rsa_key),
        }  # fmt: skip
        for name in ("peering.cfg", "tls.cfg"):
            text = (Path(__file__).parent / "kamailio" / name).read_text()
            for word, value in places.items():
                text = text.replace(f"@{word}@", value)
            (run / name).write_text(text)
        self._log = run / "log"
        command = pinned(
            SERVER_CORE, shutil.which("kamailio") or "kamailio", "-DD", "-E", "-f", str(run / "peering.cfg"),
            "-Y", str(run), "-w", str(run), "-P", str(run / "pid"), "-m", "256", "-M", "64",
            *(("-A", "WITH_KEPT_CERTIFICATES") if keeps else ()),
        )  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            await_socket(*self.address, udp=False)
        except RuntimeError:
            self.stop()
            raise RuntimeError(self._log.read_text()[-2000:]) from None
        time.sleep(0.2)

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self._process.pid

    def stop(self) -> None:
        """End it, and wait for its workers."""
        end(self._process)


__all__ = ["LOAD_CORE", "Identities", "Kamailio", "Node", "called_domain", "number", "pin"]

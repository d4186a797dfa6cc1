"""`p2psip peering publish` and `check`: what is printed is loaded into knot, and TLS is that of openssl."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from p2psipd.cli.main import main
from tests.knot import Knot
from tests.proto.identity.domain_certificates import TestAuthority, dns, ec_key, pem

HOST = "127.1.70.61"
NUMBERS = ("+1212555*", "+442079460000-+442079460999")


def run(*arguments: str) -> Any:
    """A verb in this process."""
    return CliRunner().invoke(main, ["peering", *arguments])


class OpenSsl:
    """openssl's own TLS server with a certificate for one domain."""

    def __init__(self, directory: Path, authority: TestAuthority, domain: str, port: int, *options: str) -> None:
        certificate, key = directory / f"{domain}.pem", directory / f"{domain}.key"
        der = authority.issue(dns(domain), ec_key(1))
        certificate.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        key.write_bytes(pem(ec_key(1)))
        command = ["openssl", "s_server", "-accept", f"{HOST}:{port}", "-cert", certificate, "-key", key, "-quiet"]
        self._process = subprocess.Popen(
            [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("openssl s_server does not listen")

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(5)


class Published:
    """A zone of what `publish` prints, served by knot, and the authority of its certificates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        numbers = [word for text in NUMBERS for word in ("--number", text)]
        server = ("--server", f"n1.pub.test:{self.port}={HOST}")
        self.user = run("publish", "pub.test", *server, *numbers, "--root", "pub.test").output
        self.carrier = run("publish", "Pub.Test.", *server, *numbers, "--root", "pub.test", "--carrier").output
        zone = directory / "pub.test.zone"
        head = "pub.test. 60 IN SOA ns.pub.test. h.pub.test. 1 2 3 4 5\npub.test. 60 IN NS ns.pub.test.\n"
        lines = dict.fromkeys((self.user + self.carrier).splitlines(True))
        zone.write_text(head + "".join(lines))
        self.knot = Knot(directory, [zone], "127.1.70.62")
        self.authority = TestAuthority(wall=time.time())
        self.roots = directory / "ca.pem"
        self.roots.write_bytes(self.authority.certificate.public_bytes(Encoding.PEM))

    def check(self, domain: str, *options: str) -> tuple[int, list[dict[str, str]]]:
        """The exit code and the findings of `check`, from a process of its own, because it runs a reactor."""
        command = [sys.executable, "-m", "p2psipd.cli.main", "peering", "check", domain, "--json"]
        address = f"{self.knot.host}:{self.knot.port}"
        ran = subprocess.run(
            [*command, "--dns", address, "--ca", str(self.roots), *options], capture_output=True, text=True, timeout=30
        )
        assert not ran.stderr, ran.stderr
        return ran.returncode, json.loads(ran.stdout)

    def serving(self, domain: str, *options: str) -> OpenSsl:
        """A TLS server at the published address."""
        return OpenSsl(self.directory, self.authority, domain, self.port, *options)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """What is published, being served."""
    if shutil.which("knotd") is None:
        pytest.skip("not installed: knotd")
    made = Published(tmp_path_factory.mktemp("published"))
    yield made
    made.knot.stop()


@pytest.mark.foreign("knotd", "kdig", "openssl")
def test_peering_063_what_is_published_is_what_is_found(published: Published) -> None:
    """knot loads every line as it was printed, and answers with the very same records."""
    assert published.knot.kdig("pub.test", "NAPTR") == ['10 10 "s" "SIPS+D2T" "" _sips._tcp.pub.test.']
    assert published.knot.kdig("_sips._tcp.pub.test", "SRV") == [f"10 10 {published.port} n1.pub.test."]
    leads = '"!^(.*)$!sip:\\\\1@pub.test;user=phone!" .'
    user = f'100 10 "u" "E2U+sip" {leads}'
    assert published.knot.kdig("2.1.2.1.5.5.5.2.1.2.1.pub.test", "NAPTR") == [user]
    assert published.knot.kdig("9.9.9.0.6.4.9.7.0.2.4.4.pub.test", "NAPTR") == [user]
    carrier = published.knot.kdig("9.9.9.0.6.4.9.7.0.2.i.4.4.pub.test", "NAPTR")
    assert carrier == [user, f'100 20 "u" "E2U+pstn:sip" {leads}']


@pytest.mark.foreign("knotd", "openssl")
def test_peering_064_a_domain_that_works(published: Published) -> None:
    """With its records and a TLS server that speaks for it a domain is good at every step: exit code 0."""
    server = published.serving("pub.test")
    try:
        code, findings = published.check("pub.test")
    finally:
        server.stop()
    assert (code, findings[-1]["verdict"]) == (0, "ok")
    assert "fault" not in {finding["verdict"] for finding in findings}
    assert any("TLSv1.3" in finding["text"] for finding in findings)


@pytest.mark.foreign("knotd", "openssl")
@pytest.mark.parametrize(
    "domain,options,words",
    [("evil.test", (), "we refuse it"), ("pub.test", ("-Verify", "1"), "it refuses us after the handshake")],
)
def test_peering_064_a_server_that_does_not_do(
    published: Published, domain: str, options: tuple[str, ...], words: str
) -> None:
    """A certificate of another domain, and a server that wants one of ours, are told apart: exit code 1."""
    server = published.serving(domain, *options)
    try:
        code, findings = published.check("pub.test")
    finally:
        server.stop()
    assert code == 1
    assert [words in finding["text"] for finding in findings if finding["step"].startswith("TLS")] == [True]


@pytest.mark.foreign("knotd")
def test_peering_064_what_is_missing(published: Published) -> None:
    """Nobody listening, and a domain without records: each is said in words, and the exit code is 1."""
    code, findings = published.check("pub.test")
    assert code == 1
    assert any("no connection" in finding["text"] for finding in findings)
    code, findings = published.check("nobody.pub.test")
    assert (code, findings[-1]["text"]) == (1, "cannot be reached by peers")
    assert [finding["step"] for finding in findings[:3]] == [
        "NAPTR nobody.pub.test",
        "SRV _sips._tcp.nobody.pub.test",
        "A/AAAA nobody.pub.test",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "b.test"),
        ("publish", "b.test", "-s", "n1.b.test:99999"),
        ("publish", "b.test", "-s", "n1.b.test=nonsense"),
        ("publish", "b.test", "-s", "n1.b.test", "-n", "abc"),
        ("publish", "b.test", "-s", "n1.b.test", "-n", "+1", "--uri", "mailto:x"),
        ("publish", "b test", "-s", "n1.b.test"),
        ("publish", "b.test", "-s", "n1..b.test"),
        ("publish", "b.test", "-s", "n1.b.test", "-n", "+1", "--root", 'a"b'),
        ("publish", "b.test", "-s", "n1.b.test", "-n", "+1", "--carrier", "--label", "a b"),
        ("check", "b.test", "--certificate", "x"),
        ("check", "b.test", "--dns", "name.test"),
        ("check", "b.test", "--policy", "x", "--ca", "y"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    """What can't be meant is a usage error: exit code 2."""
    assert run(*arguments).exit_code == 2

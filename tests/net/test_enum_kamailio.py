"""ENUM beside Kamailio: over the same records in knot both of us come to the same URIs.

Kamailio knows name servers only from /etc/resolv.conf, so it runs in a mount namespace with one of its own, and knot
listens on port 53: both want root.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from bench.processes import end
from p2psipd.net.dns import DnsClient
from p2psipd.proto.peering.enum import CarrierRoot, carrier_enum, user_enum
from p2psipd.proto.peering.publishing import PublishedServer, domain_records, number_records, zone_text
from tests.knot import ZONES, Knot

KAMAILIO, US, NAMES = "127.1.70.64", "127.1.70.65", "127.1.70.63"
#: Another one, that knows of branches by EBL records: its algorithm is one for all queries.
BRANCHES = "127.1.70.66"

CONFIGURATION = """\
#!KAMAILIO
debug=0
log_stderror=yes
children=1
auto_aliases=no
disable_tcp=yes
listen=udp:{kamailio}:7064
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "textops.so"
loadmodule "enum.so"
modparam("enum", "bl_algorithm", "{algorithm}")
request_route {{
    if ($hdr(Subject) == "user") {{ enum_query("e164.arpa."); }}
    if ($hdr(Subject) == "published") {{ enum_query("pub.test."); }}
    if ($hdr(Subject) == "published carrier") {{ i_enum_query("pub.test."); }}
    append_to_reply("Contact: <$ru>\\r\\n");
    sl_send_reply("302", "Found");
}}
"""
#: By number and tree, what both must say. Left out is what Kamailio is known to do otherwise: it does not follow rules
#: that lead on, nor DNAME (RFC 5527 section 6), and takes a result that is no URI (octets 255 and 254 in its user).
EXPECTED = {
    ("+12125551212", "user"): "sip:2125551212@b.test;user=phone",
    ("+12125550123", "published"): "sip:+12125550123@pub.test;user=phone",
    ("+442079460999", "published"): "sip:+442079460999@pub.test;user=phone",
    ("+442079460123", "published carrier"): "sip:+442079460123@pub.test;user=phone",
    ("+442079460123", "published carrier by EBL"): "sip:+442079460123@branch.test;user=phone",
}
#: The branch of +44 begins after four digits, with the label x.
BRANCH = """\
i.4.4.pub.test. 60 IN TYPE65300 \\# 13 04017803707562047465737400
3.2.1.0.6.4.9.7.x.0.2.4.4.pub.test. 60 IN NAPTR 1 1 "u" "E2U+sip" "!^(.*)$!sip:\\\\1@branch.test;user=phone!" .
"""


class Oracle:
    """Kamailio that answers each request with the URI that it has found, and knot with the records."""

    def __init__(self, directory: Path) -> None:
        records = domain_records("pub.test", [PublishedServer("n1.pub.test", 5061, ("192.0.2.1",))])
        for numbers in ("+1212555*", "+442079460000-+442079460999"):
            for tree in (None, CarrierRoot("pub.test")):
                template = "sip:{number}@pub.test;user=phone"
                records += number_records(numbers, template, root="pub.test", carrier=tree)
        zone = directory / "published" / "pub.test.zone"
        zone.parent.mkdir()
        head = "pub.test. 60 IN SOA ns.pub.test. h.pub.test. 1 2 3 4 5\npub.test. 60 IN NS ns.pub.test.\n"
        zone.write_text(head + zone_text(records) + BRANCH)
        self.knot = Knot(directory, [*sorted(ZONES.glob("*.zone")), zone], NAMES, 53)
        (directory / "resolv.conf").write_text(f"nameserver {NAMES}\n")
        self.processes = [self._start(directory, KAMAILIO, "cc"), self._start(directory, BRANCHES, "ebl")]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((US, 0))
        self.socket.settimeout(0.1)
        hosts = (KAMAILIO, BRANCHES)
        for process, tree, host in zip(self.processes, ("nothing", "nothing by EBL"), hosts, strict=True):
            if not any(self.ask("+1", tree) for _ in range(100) if process.poll() is None):
                self.stop()
                raise AssertionError((directory / f"{host}.log").read_text())
        self.socket.settimeout(5.0)

    def _start(self, directory: Path, host: str, algorithm: str) -> subprocess.Popen[bytes]:
        (directory / f"{host}.cfg").write_text(CONFIGURATION.format(kamailio=host, algorithm=algorithm))
        inside = f"mount --bind {directory}/resolv.conf $(realpath /etc/resolv.conf) && exec kamailio -DD -E -m 32 -M 8"
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{inside} -f {directory}/{host}.cfg"],
            stdout=(directory / f"{host}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, number: str, tree: str) -> str:
        """The URI that Kamailio makes of `number`; "" without an answer in time."""
        host = BRANCHES if "EBL" in tree else KAMAILIO
        port = self.socket.getsockname()[1]
        lines = [
            f"OPTIONS sip:{number}@{host};user=phone SIP/2.0",
            f"Via: SIP/2.0/UDP {US}:{port};branch=z9hG4bK{random.getrandbits(64):x}",
            "From: <sip:a@a.test>;tag=1",
            f"To: <sip:{number}@{host}>",
            f"Call-ID: {random.getrandbits(64):x}",
            "CSeq: 1 OPTIONS",
            f"Subject: {tree.removesuffix(' by EBL')}",
            "Content-Length: 0",
        ]
        self.socket.sendto("\r\n".join([*lines, "", ""]).encode(), (host, 7064))
        try:
            answer = self.socket.recv(65535).decode()
        except (TimeoutError, ConnectionRefusedError):
            return ""
        found = re.search(r"^Contact: <(.*)>\r$", answer, re.MULTILINE)
        return found[1] if found else ""

    def stop(self) -> None:
        """End both."""
        for process in self.processes:
            end(process)
        self.socket.close()
        self.knot.stop()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """Kamailio and knot, running."""
    if shutil.which("kamailio") is None or shutil.which("knotd") is None:
        pytest.skip("not installed: kamailio, knotd")
    made = Oracle(tmp_path_factory.mktemp("enum"))
    yield made
    made.stop()


@pytest.mark.foreign("kamailio", "knotd", "unshare")
@pytest.mark.usefixtures("beside")
class EnumTests(TestCase):
    """Both of us over the same records."""

    timeout = 20
    oracle: Oracle

    @pytest.fixture
    def beside(self, oracle: Oracle) -> None:
        """Kamailio."""
        type(self).oracle = oracle

    async def test_peering_063_the_same_uris_as_kamailio(self) -> None:
        """Users' and carriers' records, written by hand and as we publish them, lead both of us to the same URI."""
        client = DnsClient(reactor, [self.oracle.knot.address], random.SystemRandom())
        self.addCleanup(client.close)
        for (number, tree), uri in EXPECTED.items():
            root = "pub.test" if "published" in tree else "e164.arpa"
            if "carrier" in tree:
                algorithm = "ebl" if "EBL" in tree else "cc"
                outcome = await carrier_enum(number, client.ask, [CarrierRoot(root, "i", algorithm)])
            else:
                outcome = await user_enum(number, client.ask, [root])
            assert str(outcome.results[0].uri) == uri
            assert self.oracle.ask(number, tree) == uri, (number, tree)

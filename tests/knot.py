"""knot, a name server that nobody here wrote, over zones of the tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import dns.exception
import dns.message
import dns.query

ZONES = Path(__file__).parent / "vectors" / "dns"


class Knot:
    """A running knotd on a loopback address: every ``NAME.zone`` among `zones` is the zone NAME."""

    def __init__(self, directory: Path, zones: list[Path], host: str = "127.1.70.53", port: int = 0) -> None:
        self.host, self.port = host, port or _free_port(host)
        lines = [
            f'server:\n    listen: {host}@{self.port}\n    rundir: "{directory}"\n    udp-workers: 1\n',
            f'    tcp-workers: 1\n    background-workers: 1\ndatabase:\n    storage: "{directory}"\nzone:\n',
        ]
        for zone in zones:
            expanded = directory / zone.name
            expanded.write_text("".join([_expanded(line) for line in zone.read_text().splitlines()]))
            lines.append(f'  - domain: "{zone.name.removesuffix(".zone")}"\n    file: "{expanded}"\n')
            lines.append("    zonefile-sync: -1\n    journal-content: none\n")
        configuration = directory / "knot.conf"
        configuration.write_text("".join(lines))
        self._log = directory / "knot.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(["knotd", "-c", configuration], stdout=log, stderr=subprocess.STDOUT)
        self._wait(zones[-1].name.removesuffix(".zone"))

    @property
    def address(self) -> tuple[str, int]:
        """Where it answers."""
        return self.host, self.port

    def _wait(self, domain: str) -> None:
        question = dns.message.make_query(domain, "SOA")
        end = time.monotonic() + 10.0
        while time.monotonic() < end:
            try:
                if dns.query.udp(question, self.host, timeout=0.2, port=self.port).answer:
                    return
            except (dns.exception.Timeout, OSError):
                if self._process.poll() is not None:
                    break
                time.sleep(0.02)
        self.stop()
        raise AssertionError(f"knotd does not answer:\n{self._log.read_text()}")

    def kdig(self, name: str, type: str) -> list[str]:
        """What knot's own client is told: the data of the records, one a line, sorted."""
        command = ["kdig", f"@{self.host}", "-p", str(self.port), name, type, "+short"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return sorted(line for line in told.splitlines() if line)

    def stop(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)


def _expanded(line: str) -> str:
    """A line of a zone file; $GENERATE, which knot does not have, as the lines that it stands for.

    "$" is the number and "${1}" the one after it.
    """
    word, _, rest = line.partition(" ")
    if word != "$GENERATE":
        return f"{line}\n"
    span, record = rest.split(" ", 1)
    first, last = span.split("-")
    numbers = range(int(first), int(last) + 1)
    return "".join([record.replace("${1}", str(n + 1)).replace("$", str(n)) + "\n" for n in numbers])


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

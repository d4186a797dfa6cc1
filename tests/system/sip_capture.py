"""All SIP that a lab speaks in the clear, captured, and Wireshark's judgement of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .capture import TCPDUMP, WARNING


class SipCapture:
    """The capture file of a network; `messages` and `faults` end the capture first."""

    def __init__(self, file: Path, process: subprocess.Popen[str]) -> None:
        self._file = file
        self._process = process

    def end(self) -> None:
        """Write no more. AssertionError if packets were lost."""
        if self._process.poll() is None:
            # What is on its way through the loopback interface still belongs to it.
            time.sleep(0.1)
            self._process.terminate()
            assert self._process.stderr is not None
            said = self._process.stderr.read()
            self._process.wait(10)
            assert "\n0 packets dropped by kernel" in f"\n{said}", said

    def _read(self, only: str, *fields: str) -> list[str]:
        self.end()
        command = ["tshark", "-n", "-r", str(self._file), "-Y", only, "-T", "fields", "-E", "occurrence=f"]
        for field in fields:
            command += ["-e", field]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    def messages(self) -> set[str]:
        """The methods and statuses that it has seen."""
        return {line.strip() for line in self._read("sip", "sip.Method", "sip.Status-Code")}

    def faults(self, among: str = "sip") -> list[str]:
        """What is malformed, or worth a warning or an error, `among` the packets of a display filter."""
        only = f"({among}) && (_ws.malformed || (sip && _ws.expert.severity >= {WARNING}))"
        return self._read(only, "frame.number", "ip.src", "sip.Request-Line", "sip.Status-Line", "_ws.expert.message")


@contextmanager
def sip_capture(file: Path, network: str, port: int = 5060) -> Iterator[SipCapture]:
    """Capture what the addresses of a network (127.0.x) send and get over UDP and TCP on the SIP port."""
    command = [*TCPDUMP, str(file), f"net {network}.0/24 and port {port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert "listening on lo" in first, first
            running = SipCapture(file, process)
            yield running
            running.end()
        finally:
            process.kill()

"""Captures of a lab's overlay traffic, and Wireshark's reading of them beside our own."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from p2psipd.lab_files import OVERLAY_PORT
from p2psipd.proto.reload.framing import DataFrame, Frame, FrameDecoder
from p2psipd.proto.reload.messages import DataModel

SCRIPT = Path(__file__).with_name("reload_over_tls.lua")
#: Expert information from here on is a warning or an error (_ws.expert.severity).
WARNING = 0x00600000
APPLICATION_DATA = 23


#: Every packet is written when it arrives (-U, immediate mode), so that ending the program loses none; root stays root
#: (-Z), for the directory is nobody else's.
TCPDUMP = "tcpdump -i lo -n -U --immediate-mode -s 0 -B 32768 -Z root -w".split()


@contextmanager
def capturing(file: Path, network: str, port: int = OVERLAY_PORT) -> Iterator[None]:
    """Write the traffic of a TCP port (that of the overlay) of the lab network (127.0.x) to `file`; fails if the kernel
    lost a packet.

    The test is skipped where this user may not capture.
    """
    command = [*TCPDUMP, str(file), f"net {network}.0/24 and tcp port {port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(120.0, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            if "permi" in first:
                pytest.skip(f"may not capture: {first.strip()}")
            assert "listening on lo" in first, first
            yield
            time.sleep(0.1)  # what was sent last is still on its way to it
            process.terminate()
            said = process.stderr.read()
            assert "\n0 packets dropped by kernel" in f"\n{said}", said
        finally:
            watchdog.cancel()
            process.kill()


class Stream(NamedTuple):
    """One direction of a connection, decrypted by Wireshark and cut into frames by us."""

    frames: list[Frame]
    left_over: int


class Reading(NamedTuple):
    """What Wireshark made of the packets that hold RELOAD: all values of each field, packet by packet."""

    packets: list[dict[str, list[str]]]

    def all(self, field: str) -> list[str]:
        """All values of a field."""
        return [value for packet in self.packets for value in packet[field]]

    def numbers(self, field: str) -> list[int]:
        """All values of a field as integers."""
        return [int(value, 0) for value in self.all(field)]


class Capture:
    """A capture file with the TLS keys of its connections, and the data models of the overlay's own kinds."""

    def __init__(self, file: Path, keys: Path, kinds: Iterable[tuple[int, str, DataModel]]) -> None:
        self._command = ["tshark", "-r", str(file), "-X", f"lua_script:{SCRIPT}", "-n"]
        options = [f"tls.keylog_file:{keys}", "reload.topology_plugin:KADEMLIA"]
        # The UAT takes numbers in decimal only.
        options += [f'uat:reload_kindids:"{kind}","{name}","{model.name}"' for kind, name, model in kinds]
        for option in options:
            self._command += ["-o", option]

    def _run(self, *arguments: str) -> str:
        ran = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def read(self, fields: Iterable[str], only: str = "reload-framing || _ws.malformed") -> Reading:
        """The fields of the packets that a display filter selects."""
        names = list(fields)
        arguments = ["-Y", only, "-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]
        for name in names:
            arguments += ["-e", name]
        return Reading([
            {
                name: column.split("|") if column else []
                for name, column in zip(names, line.split("\t"), strict=True)
            }
            for line in self._run(*arguments).splitlines()
        ])  # fmt: skip

    def connections(self) -> list[int]:
        """Numbers of the connections over which TLS carried something."""
        packets = self.read(["tcp.stream"], f"tls.record.content_type == {APPLICATION_DATA}")
        return sorted(set(packets.numbers("tcp.stream")))

    def streams(self) -> list[Stream]:
        """Both directions of every connection, read by our own framing."""
        arguments = ["-q"]
        for number in self.connections():
            arguments += ["-z", f"follow,tls,raw,{number}"]
        streams = []
        for text in re.split(r"^=+\nFollow: .*\n", self._run(*arguments), flags=re.MULTILINE)[1:]:
            lines = re.findall(r"^\t?[0-9a-f]+$", text, re.MULTILINE)
            for indent in (True, False):
                data = b"".join(bytes.fromhex(line) for line in lines if line.startswith("\t") is indent)
                decoder = FrameDecoder(1 << 24)
                streams.append(Stream(decoder.feed(data), decoder.buffered))
        return streams


def messages(streams: Iterable[Stream]) -> list[bytes]:
    """The RELOAD messages in these streams."""
    return [frame.message for stream in streams for frame in stream.frames if isinstance(frame, DataFrame)]


def missing(wanted: Iterable[object], found: Iterable[object]) -> Counter[object]:
    """What stands more often in `wanted` than in `found`."""
    return Counter(wanted) - Counter(found)

"""SIP phones and test programs, driven from a test: our own, and baresip, SIPp and sipsak of other projects."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
import wave
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2psipd.lab import Lab
from p2psipd.proto.media.tone import tone_shares

SCENARIOS = Path(__file__).parent / "sipp"
BARESIP_MODULES = "/usr/lib/baresip/modules"
TONE_RATE = 8000

CONFIG = """\
sip_listen {host}:{port}
net_interface {host}
audio_source ausine,{tone}
audio_player aubridge,{user}
ausrc_srate 48000
ausrc_channels 2
auplay_srate 48000
auplay_channels 2
rtp_ports 20000-20100
module_path {modules}
module g711.so
module ausine.so
module aubridge.so
module sndfile.so
module_tmp uuid.so
module_tmp account.so
module_app ctrl_tcp.so
module_app menu.so
ctrl_tcp_listen {host}:{control}
snd_path {directory}
"""
# Its sine source runs at 48 kHz with two channels only; at other rates it never answers a call.


def free_ports(host: str, count: int = 1) -> list[int]:
    """Ports of `host` that nobody has at this moment, neither for UDP nor for TCP."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            tcp = stack.enter_context(socket.socket())
            tcp.bind((host, 0))
            port = int(tcp.getsockname()[1])
            udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            try:
                udp.bind((host, port))
            except OSError:
                continue
            found.append(port)
    return found


def run(*command: str, seconds: float = 30.0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and fail if that takes longer."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=cwd, stdin=subprocess.DEVNULL, errors="replace"
    )


# ---- p2psip ua ---------------------------------------------------------------------------------------------


def ua(lab: Lab, verb: str, name: str, at: int, *arguments: str, server: str = "") -> subprocess.Popen[str]:
    """`p2psip ua VERB` for one of the people of a lab, at one of its peers (by UDP unless `server` says otherwise);
    `outcome` waits for it.
    """
    user = lab.user(name)
    command = [sys.executable, "-m", "p2psipd.cli.main", "ua", verb, *arguments, "--json"]
    command += ["--user", f"{name}@{lab.overlay_name}", "--password", user.password]
    command += ["--server", server or lab.host(at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(phone: subprocess.Popen[str], *, fails: bool = False, seconds: float = 30.0) -> Any:
    """What a phone of ours says of its call; AssertionError if it did not go as expected."""
    try:
        output, errors = phone.communicate(timeout=seconds)
    finally:
        phone.kill()
        phone.wait()
    assert (phone.returncode != 0) is fails, output + errors
    return json.loads(output)


# ---- sipsak ------------------------------------------------------------------------------------------------


def sipsak_options(host: str, port: int = 5060) -> subprocess.CompletedProcess[str]:
    """OPTIONS to a node; its return code is 0 when a final answer came."""
    return run("sipsak", "-v", "-s", f"sip:{host}:{port}", seconds=15)


def sipsak_register(
    user: str, password: str, contact: str, host: str, port: int = 5060
) -> subprocess.CompletedProcess[str]:
    """A whole registration with digest; the user's domain is written as the node's address."""
    return run(
        "sipsak",
        "-U",
        "-v",
        "-C",
        contact,
        "-x",
        "600",
        "-u",
        user,
        "-a",
        password,
        "-s",
        f"sip:{user}@{host}:{port}",
        seconds=15,
    )


def sipsak_unregister(user: str, password: str, host: str, port: int = 5060) -> subprocess.CompletedProcess[str]:
    """Remove every binding of a user (RFC 3261 section 10.2.2)."""
    return run(
        "sipsak", "-U", "-C", "*", "-x", "0", "-u", user, "-a", password, "-s", f"sip:{user}@{host}:{port}",
        seconds=15,
    )  # fmt: skip


# ---- SIPp --------------------------------------------------------------------------------------------------


class Sipp:
    """One SIPp at `host` in a scenario of ours; a context manager that ends with it."""

    def __init__(
        self,
        directory: Path,
        scenario: str,
        host: str,
        port: int,
        target: str = "",
        *,
        service: str = "service",
        keys: Sequence[tuple[str, str]] = (),
        user: str = "",
        password: str = "",
        calls: int = 1,
        rate: float = 10.0,
        hold_ms: int = 100,
        transport: str = "udp",
        lost: int = 0,
        patient: bool = False,
        seconds: int = 30,
    ) -> None:
        """`lost` percent of what it sends and gets are lost; one that is `patient` does not give up for a message that
        it does not expect, such as an ACK that comes twice, or a BYE before the ACK that was lost.
        """
        mode = {"udp": "u1", "tcp": "t1"}[transport]
        command = [
            "sipp",
            "-sf",
            str(SCENARIOS / f"{scenario}.xml"),
            "-i",
            host,
            "-p",
            str(port),
            "-t",
            mode,
            "-s",
            service,
            "-m",
            str(calls),
            "-r",
            str(rate),
            "-d",
            str(hold_ms),
            "-timeout",
            str(seconds),
            "-timeout_error",
            "-nostdin",
            "-trace_err",
            "-error_file",
            str(directory / f"{scenario}-{port}.err"),
        ]
        for name, value in keys:
            command += ["-key", name, value]
        if user:
            command += ["-au", user, "-ap", password]
        if lost:
            command += ["-lost", str(lost)]
        if patient:
            command += ["-default_behaviors", "all,-abortunexp,-bye"]
        if target:
            command.append(target)
        self._errors = directory / f"{scenario}-{port}.err"
        self._seconds = seconds
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory
        )

    def wait(self) -> None:
        """Its scenario has ended for all calls without one failure."""
        output, _ = self._process.communicate(timeout=self._seconds + 10)
        if self._process.returncode != 0:
            errors = self._errors.read_text(errors="replace")[-3000:] if self._errors.exists() else ""
            raise AssertionError(
                f"SIPp: {self._process.returncode}\n{errors}\n{output.decode(errors='replace')[-2500:]}"
            )

    def __enter__(self) -> Sipp:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def sipp_register(
    directory: Path,
    user: str,
    password: str,
    domain: str,
    host: str,
    port: int,
    node: str,
    *,
    contact_port: int,
    transport: str = "udp",
    instance: str = "",
    q: str = "",
) -> None:
    """Register `user` at `node` ("host:port") with digest, for the phone at host:contact_port (RFC 5626 `instance`)."""
    parameter = (f';+sip.instance="{instance}"' if instance else "") + (f";q={q}" if q else "")
    keys = (("domain", domain), ("contact_port", str(contact_port)), ("instance", parameter))
    with Sipp(
        directory,
        "register",
        host,
        port,
        node,
        service=user,
        keys=keys,
        user=user,
        password=password,
        transport=transport,
    ) as sipp:
        sipp.wait()


# ---- baresip -----------------------------------------------------------------------------------------------


class Baresip:
    """A baresip registered as `user`, which sends a tone and records what it hears; a context manager."""

    def __init__(
        self,
        directory: Path,
        user: str,
        password: str,
        domain: str,
        host: str,
        node: str,
        *,
        tone: int,
        transport: str = "udp",
        answers: bool = False,
        ca_file: Path | None = None,
        second_node: str = "",
    ) -> None:
        """With a `second_node` it keeps a flow to each of them (RFC 5626)."""
        self.user, self.domain = user, domain
        self.directory = directory / f"baresip-{user}"
        self.directory.mkdir(parents=True)
        self.host = host
        self.port, self._control_port = free_ports(host, 2)
        config = CONFIG.format(
            host=host,
            port=self.port,
            tone=tone,
            user=user,
            control=self._control_port,
            directory=self.directory,
            modules=BARESIP_MODULES,
        )
        if ca_file is not None:
            config += f"sip_cafile {ca_file}\n"
        (self.directory / "config").write_text(config)
        (self.directory / "contacts").write_text("")
        second = f';outbound2="sip:{second_node};transport={transport}";sipnat=outbound' if second_node else ""
        mode = "auto" if answers else "manual"
        (self.directory / "accounts").write_text(
            f"<sip:{user}@{domain};transport={transport}>;auth_user={user};auth_pass={password};"
            f'outbound="sip:{node};transport={transport}"{second};regint=600;answermode={mode};audio_codecs=pcmu/8000/1\n'
        )
        self.events: list[dict[str, Any]] = []
        self._data = b""
        self._socket: socket.socket | None = None
        self._log = open(self.directory / "log", "wb")
        self._process = subprocess.Popen(
            ["baresip", "-f", str(self.directory), "-n", host],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Baresip:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._socket is not None:
            self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def connect(self, seconds: float = 10.0) -> None:
        """Take up its control connection as soon as it listens."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._socket = socket.create_connection((self.host, self._control_port), timeout=1.0)
                return
            select.select([], [], [], 0.05)
        raise AssertionError(f"baresip does not listen: {self.log()}")

    def log(self) -> str:
        """What it printed."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def command(self, name: str, params: str = "") -> None:
        """Send a command, netstring-framed JSON."""
        assert self._socket is not None
        data = json.dumps({"command": name, "params": params, "token": name}).encode()
        self._socket.sendall(b"%d:%s," % (len(data), data))

    def wait_for(self, kind: str, seconds: float = 15.0) -> dict[str, Any]:
        """The first event of this type, past or to come."""
        deadline = time.monotonic() + seconds
        while True:
            for event in self.events:
                if event.get("type") == kind:
                    return event
            left = deadline - time.monotonic()
            if left <= 0:
                seen = [event.get("type") or event for event in self.events]
                raise AssertionError(f"{self.user}: no {kind}; events {seen}; {self.log()}")
            self._read(left)

    def hold(self, seconds: float) -> None:
        """Let a call go on for so long, reading events."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def _read(self, seconds: float) -> None:
        assert self._socket is not None
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        data = self._socket.recv(65536)
        if not data:
            raise AssertionError(f"{self.user}: baresip has gone; {self.log()}")
        self._data += data
        while (colon := self._data.find(b":")) > 0:
            length = int(self._data[:colon])
            if len(self._data) < colon + length + 2:
                return
            self.events.append(json.loads(self._data[colon + 1 : colon + 1 + length]))
            self._data = self._data[colon + length + 2 :]

    def wait_registered(self, seconds: float = 15.0) -> None:
        """It has registered: it was told so, or says so when it is asked."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(event.get("type") == "REGISTER_OK" for event in self.events):
                return
            self.command("reginfo")
            self._read(0.2)
            if any("OK" in str(event.get("data", "")) for event in self.events if event.get("response")):
                return
        raise AssertionError(f"{self.user} did not register: {self.events[-3:]} {self.log()}")

    def heard(self, *tones: int) -> dict[int, float]:
        """The share of each tone in what it recorded of the far side."""
        (path,) = self.directory.glob("dump-*-dec.wav")
        with wave.open(str(path)) as file:
            channels, rate = file.getnchannels(), file.getframerate()
            samples = array("h", file.readframes(file.getnframes()))[::channels]
        scale = TONE_RATE / rate
        shares = tone_shares(samples, tuple(tone * scale for tone in tones))
        return {tone: shares[tone * scale] for tone in tones}


@contextlib.contextmanager
def baresip_pair(
    directory: Path,
    domain: str,
    caller: tuple[str, str, str, str],
    callee: tuple[str, str, str, str],
    transports: tuple[str, str] = ("udp", "udp"),
    ca_file: Path | None = None,
) -> Iterator[tuple[Baresip, Baresip]]:
    """Two registered phones; each is (user, password, own host, node "host:port"). They send 440 and 880
    Hz.
    """
    calling = Baresip(directory, *caller[:2], domain, *caller[2:], tone=440, transport=transports[0], ca_file=ca_file)
    with calling as first, Baresip(
        directory, *callee[:2], domain, *callee[2:], tone=880, transport=transports[1], answers=True, ca_file=ca_file
    ) as second:  # fmt: skip
        for phone in (first, second):
            phone.connect()
        for phone in (first, second):
            phone.wait_registered()
        yield first, second


def call_with_audio(caller: Baresip, callee: Baresip, seconds: float = 2.0) -> None:
    """Call, let tones pass, hang up, and check that each side heard the other's tone and not its own."""
    caller.command("dial", f"sip:{callee.user}@{callee.domain}")
    caller.wait_for("CALL_ESTABLISHED")
    callee.wait_for("CALL_ESTABLISHED")
    caller.hold(seconds)
    caller.command("hangup")
    caller.wait_for("CALL_CLOSED")
    callee.wait_for("CALL_CLOSED")
    for phone, wanted, other in ((caller, 880, 440), (callee, 440, 880)):
        heard = phone.heard(440, 880)
        assert heard[wanted] > 0.8 and heard[other] < 0.05, f"{phone.user} heard {heard}"

"""What the SIP benchmark is made of: SIPp as load, stunnel as its TLS, and CPU and memory of the server under it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import end

HERE = Path(__file__).parent / "sipp"
DOMAIN = "bench.example"
CALLER, CALLEE = "127.1.50.11", "127.1.50.12"
CALLER_PORT, CALLEE_PORT, REGISTER_PORT = 50011, 50012, 50013
TLS_ENTRY, TLS_EXIT = 50014, 50015
SERVER_CORE, LOAD_CORE = 0, 1
#: A process's clock is its number with this (clock_getcpuclockid(3)).
_CPU_CLOCK = 2


class Result(NamedTuple):
    """One run of SIPp: what was asked and what came of it; CPU is that of the server alone."""

    rate: float
    achieved: float
    calls: int
    failed: int
    retransmissions: int
    cpu_us: float

    @property
    def clean(self) -> bool:
        """No call lost, next to nothing repeated, and as fast as asked."""
        return (
            self.calls > 0
            and self.failed == 0
            and self.retransmissions <= max(1, self.calls // 1000)
            and self.achieved >= 0.95 * self.rate
        )


def processes(pid: int) -> list[int]:
    """`pid` and everything that it has started."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, to the nanosecond: /proc counts in hundredths of a second."""
    found = 0.0
    for each in processes(pid):
        # One that has ended meanwhile has no clock any more.
        with suppress(OSError):
            found += time.clock_gettime(~each << 3 | _CPU_CLOCK)
    return found


def memory_kb(pid: int) -> float:
    """Resident memory of a process tree, shared pages counted once a process that has them to itself (PSS)."""
    total = 0.0
    for each in processes(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def pinned(core: int, *command: str) -> list[str]:
    """A command bound to a core; a machine with one core has no choice."""
    count = os.cpu_count() or 1
    return ["taskset", "-c", str(core % count), *command]


class Sipp:
    """One SIPp process on the load core; `wait` gives its statistics."""

    def __init__(self, directory: Path, scenario: str, host: str, port: int, *options: str) -> None:
        self._statistics = directory / f"{scenario}-{time.monotonic_ns()}.csv"
        self._errors = self._statistics.with_suffix(".log")
        command = pinned(
            LOAD_CORE, "sipp", "-sf", str(HERE / f"{scenario}.xml"), "-i", host, "-p", str(port), "-nostdin",
            "-trace_stat", "-stf", str(self._statistics), "-fd", "1", "-buff_size", "4000000",
            "-trace_err", "-error_file", str(self._errors), "-recv_timeout", "20000", *options,
        )  # fmt: skip
        self._process = subprocess.Popen(
            command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )

    def running(self) -> bool:
        """Whether it has still something to do."""
        return self._process.poll() is None

    def wait(self, timeout: float) -> dict[str, Any]:
        """The last line of its statistics, when it has ended."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
        lines = list(csv.reader(self._statistics.read_text().splitlines(), delimiter=";"))
        return dict(zip(lines[0], lines[-1], strict=False))

    @property
    def errors(self) -> str:
        """What it complained about first."""
        return self._errors.read_text(errors="replace")[:1500] if self._errors.exists() else ""

    def stop(self) -> None:
        """End it."""
        if self.running():
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


class Load:
    """The phones: users in a file, one callee, and any number of callers, over UDP or (through stunnel) over TLS."""

    def __init__(
        self, directory: Path, server: str, server_pid: int, *, tls: bool = False, domain: str = DOMAIN
    ) -> None:
        self.directory = directory
        self.server = server
        self.pid = server_pid
        self.tls = tls
        self._target = f"{CALLER}:{TLS_ENTRY}" if tls else f"{server}:5060"
        self._keys = ["-key", "domain", domain]

    def _users(self, names: Sequence[str], passwords: Mapping[str, str]) -> Path:
        """The file that SIPp draws users from: name, credentials, and an instance (RFC 5626 section 4.1)."""
        path = self.directory / f"users-{len(names)}-{names[0]}.csv"
        lines = ["SEQUENTIAL"]
        for number, name in enumerate(names):
            instance = f"<urn:uuid:00000000-0000-1000-8000-{number:012x}>"
            password = passwords.get(name, "secret")
            lines.append(f"{name};[authentication username={name} password={password}];{instance}")
        path.write_text("\n".join(lines) + "\n")
        return path

    def register(
        self,
        names: Sequence[str],
        rate: float,
        calls: int,
        contact: str = "",
        *,
        passwords: Mapping[str, str] | None = None,
        anew: bool = False,
    ) -> Result:
        """`calls` registrations with digest at `rate` a second. With `anew` each has another Contact of the same
        device, so that it is no refresh.
        """
        host = CALLEE if contact else CALLER
        options = ["-inf", str(self._users(names, passwords or {}))]
        options += ["-key", "contact", contact or f"{CALLER}:{REGISTER_PORT}"]
        scenario = "register_anew" if anew else "register"
        return self._run(scenario, (host, REGISTER_PORT), rate, calls, options, over_udp=True)

    def register_callee(self) -> None:
        """bob is where our callee listens."""
        contact = f"{CALLEE}:{TLS_EXIT};transport=tls" if self.tls else f"{CALLEE}:{CALLEE_PORT}"
        done = self.register(["bob"], 10, 1, contact)
        if done.failed or not done.calls:
            raise RuntimeError(f"bob could not register: {done}")

    def call(self, scenario: str, rate: float, calls: int, *, hold_ms: int = 0) -> Result:
        """`calls` calls to bob at `rate` a second, each answered and held for `hold_ms`."""
        callee = self.callee()
        try:
            return self._run(scenario, (CALLER, CALLER_PORT), rate, calls, ["-d", str(hold_ms)])
        finally:
            callee.stop()

    def flood(self, rate: float, calls: int) -> tuple[int, int, int]:
        """`calls` calls at a `rate` that may be too much: how many were connected, refused (503), and lost."""
        callee = self.callee()
        try:
            seen = self._sipp("flood", (CALLER, CALLER_PORT), rate, calls, ["-d", "0"]).wait(calls / rate * 2 + 40)
        finally:
            callee.stop()
        ended, refused = int(seen["SuccessfulCall(C)"]), int(seen["GenericCounter1(C)"])
        return ended - refused, refused, calls - ended

    def redirected(self, rate: float, calls: int) -> Result:
        """`calls` INVITEs that are answered 302."""
        return self._run("redirect", (CALLER, CALLER_PORT), rate, calls, [])

    def callee(self) -> Sipp:
        """The process that answers every call."""
        transport = ["-t", "t1"] if self.tls else []
        made = Sipp(self.directory, "callee", CALLEE, CALLEE_PORT, *transport, "-rtp_echo")
        await_socket(CALLEE, CALLEE_PORT, udp=not self.tls)
        return made

    def caller(self, scenario: str, rate: float, calls: int, *options: str) -> Sipp:
        """A process that makes calls; for who wants to look while it runs."""
        return self._sipp(scenario, (CALLER, CALLER_PORT), rate, calls, options)

    def _sipp(
        self,
        scenario: str,
        at: tuple[str, int],
        rate: float,
        calls: int,
        options: Sequence[str],
        *,
        over_udp: bool = False,
    ) -> Sipp:
        transport = [] if over_udp or not self.tls else ["-t", "t1"]
        target = f"{self.server}:5060" if over_udp else self._target
        return Sipp(
            self.directory, scenario, *at, *transport, *self._keys, *options,
            "-r", str(round(rate)), "-m", str(calls), "-l", str(max(1000, calls)), target,
        )  # fmt: skip

    def _run(
        self,
        scenario: str,
        at: tuple[str, int],
        rate: float,
        calls: int,
        options: Sequence[str],
        *,
        over_udp: bool = False,
    ) -> Result:
        before, began = cpu_seconds(self.pid), time.monotonic()
        sipp = self._sipp(scenario, at, rate, calls, options, over_udp=over_udp)
        seen = sipp.wait(calls / rate * 2 + 40)
        took = time.monotonic() - began
        spent = cpu_seconds(self.pid) - before
        good, failed = int(seen["SuccessfulCall(C)"]), int(seen["FailedCall(C)"])
        # The last calls end when their BYE is answered; SIPp itself starts in about a tenth of a second.
        achieved = good / max(took - 0.15, 0.001)
        lost = failed + (calls - good - failed)
        return Result(rate, achieved, good, lost, int(seen["Retransmissions(C)"]), spent / max(good, 1) * 1e6)


def await_socket(host: str, port: int, *, udp: bool, timeout: float = 10.0) -> None:
    """Until somebody has bound that address."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        with socket.socket(type=kind) as probe:
            try:
                if udp:
                    probe.bind((host, port))
                else:
                    probe.connect((host, port))
                    return
            except OSError:
                if udp:
                    return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on {host}:{port}")


def certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """A self-signed certificate of `host` (PEM) and its key; the same for every server."""
    files = directory / f"{host}.pem", directory / f"{host}.key"
    if not files[0].exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "30", "-subj", f"/CN={host}", "-addext", f"subjectAltName=IP:{host},URI:sip:{host}", "-keyout",
             str(files[1]), "-out", str(files[0])],
            check=True, capture_output=True,
        )  # fmt: skip
    return files


@contextmanager
def stunnels(directory: Path, server: str) -> Iterator[None]:
    """TLS for SIPp on the load core: one way in (caller to server), one way out (server to callee)."""
    cert, key = certificate(directory, CALLEE)
    config = directory / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\ndebug = 3\nsslVersionMin = TLSv1.2\n"
        f"[caller]\nclient = yes\nlocal = {CALLER}\n"
        f"accept = {CALLER}:{TLS_ENTRY}\nconnect = {server}:5061\nverifyChain = no\n"
        f"[callee]\nclient = no\naccept = {CALLEE}:{TLS_EXIT}\nconnect = {CALLEE}:{CALLEE_PORT}\n"
        f"cert = {cert}\nkey = {key}\n"
    )
    program = shutil.which("stunnel4") or "stunnel"
    process = subprocess.Popen(
        pinned(LOAD_CORE, program, str(config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_socket(CALLER, TLS_ENTRY, udp=False)
        yield
    finally:
        process.terminate()
        process.wait()


class Kamailio:
    """Kamailio with one worker on the server core; `options` are WITH_AUTH, WITH_REDIRECT, WITH_TLS."""

    name = "Kamailio"

    def __init__(self, directory: Path, address: str, *options: str) -> None:
        self.address = address
        cert, key = certificate(directory, address)
        run = directory / f"kamailio-{time.monotonic_ns()}"
        run.mkdir()
        text = (HERE / "kamailio.cfg").read_text().replace("ADDRESS", address)
        config = run / "kamailio.cfg"
        config.write_text(text.replace("CERTIFICATE", str(cert)).replace("PRIVATE_KEY", str(key)))
        defines = [part for option in options for part in ("-A", option)]
        self._log = (run / "log").open("wb")
        command = pinned(
            SERVER_CORE, "kamailio", "-DD", "-E", "-f", str(config), "-Y", str(run), "-w", str(run),
            "-P", str(run / "pid"), "-m", "512", "-M", "64", *defines,
        )  # fmt: skip
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)
        try:
            await_socket(address, 5060, udp=False)
        except RuntimeError:
            self.stop()
            raise RuntimeError((run / "log").read_text()[-2000:]) from None

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self._process.pid

    def stop(self) -> None:
        """End it, and wait for its workers."""
        end(self._process)
        self._log.close()


class Ours:
    """`bench.sip_host` on the server core; `options` go into its specification."""

    name = "p2psipd"

    def __init__(self, directory: Path, address: str, **options: Any) -> None:
        self.address = address
        spec = directory / f"ours-{time.monotonic_ns()}.json"
        spec.write_text(json.dumps({"address": address, "domain": DOMAIN, "password": "secret", **options}))
        self._log = spec.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            pinned(SERVER_CORE, sys.executable, "-m", "bench.sip_host", str(spec)),
            cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            self._process.kill()
            self._process.wait()
            raise RuntimeError(spec.with_suffix(".log").read_text()[-3000:])

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def stop(self) -> dict[str, int]:
        """End it; what it counted."""
        try:
            output, _ = self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
        self._log.close()
        lines = output.splitlines()
        statistics: dict[str, int] = json.loads(lines[-1]) if lines else {}
        if statistics.get("fault"):
            raise RuntimeError(f"our server had faults: {statistics}")
        return statistics

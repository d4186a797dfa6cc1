"""The daemon as a process: it starts or says why not, reloads, drains, and tells systemd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from p2psipd.control import Control, ControlUnreachable
from p2psipd.overlay_files import OverlayFiles
from p2psipd.proto.identity.certificate import Role


class Daemon:
    """One ``twistd p2psip`` in a directory of its own."""

    def __init__(self, directory: Path, files: OverlayFiles) -> None:
        self.directory = directory
        self.files = files
        self.config = directory / "p2psipd.toml"
        self.control = Control(directory / "control.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, **changes: str) -> None:
        """The configuration file: a first peer with phones, on free ports."""
        values = {"log_level": "info", "more": "", "listen": "127.0.0.1:0", **changes}
        self.config.write_text(
            f"""
[overlay]
document = "overlay.xml"
[identity]
certificate = "node.pem"
key = "node.key"
[node]
roles = ["peer", "sip"]
log_level = "{values["log_level"]}"
log_format = "json"
drain_seconds = 5.0
{values["more"]}
[peer]
listen = "{values["listen"]}"
advertise = ["127.0.0.1:6084"]
first = true
[sip]
udp = ["127.0.0.1:0"]
node_listen = "127.0.0.1:0"
node_advertise = "127.0.0.1:5062"
"""
        )

    def command(self) -> list[str]:
        twistd = Path(sys.executable).with_name("twistd")
        return [str(twistd), "-n", "--pidfile=", "p2psip", "--config", str(self.config)]

    def start(self, **environment: str) -> None:
        """Start it and wait until it has joined."""
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        self.until(lambda: self.control.get("/status")["joined"])

    def run(self) -> subprocess.CompletedProcess[str]:
        """Start what is not going to live long."""
        return subprocess.run(
            self.command(), cwd=self.directory, capture_output=True, text=True, timeout=30, check=False
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait for a condition; a process cannot be waited for on a clock of ours."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            with contextlib.suppress(ControlUnreachable):
                if condition():
                    return
            time.sleep(0.02)
        pytest.fail("did not come to be:\n" + (self.directory / "log").read_text())

    def messages(self) -> list[str]:
        """What was logged; every line is a JSON object."""
        return [json.loads(line)["msg"] for line in (self.directory / "log").read_text().splitlines()]

    def end(self) -> int:
        """SIGTERM, and the exit code: twistd ends itself by the same signal once all is closed."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(20)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A configured node that is not started."""
    files = OverlayFiles.create(tmp_path, "overlay.example", bootstrap_nodes=[("127.0.0.1", 6084)])
    files.issue(Role.REGISTRAR, "first", tmp_path)
    made = Daemon(tmp_path, files)
    made.write()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.mark.system
def test_life(daemon: Daemon) -> None:
    """A node starts, answers on its control socket, reloads what can be reloaded, and drains on SIGTERM; it
    warns of a key that others may read."""
    (daemon.directory / "node.key").chmod(0o644)
    daemon.start()
    assert any("identity.key: everybody on this machine may read" in message for message in daemon.messages())
    status = daemon.control.get("/status")
    assert (status["overlay"], status["roles"], status["problems"]) == ("overlay.example", ["peer", "sip"], [])
    assert "p2psip_ready 1.0" in daemon.control.get("/metrics")
    assert daemon.control.post("/reload")["applied"] == []
    # The document was read in a child, and need not be read again: its library is not here.
    assert "/lxml/" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()

    daemon.files.update(attrs.evolve(daemon.files.configuration, initial_ttl=21))
    daemon.write(log_level="debug")
    assert daemon.control.post("/reload") == {
        "applied": ["configuration document 2", "log level debug"],
        "not_applied": [],
    }
    assert daemon.control.get("/status")["configuration"] == 2

    daemon.files.issue(Role.REGISTRAR, "first", daemon.directory, renew=True)
    daemon.write(log_level="info", more='metrics = "127.0.0.1:9"')
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: any(message.startswith("reloaded: ") for message in daemon.messages()))
    (reloaded,) = [message for message in daemon.messages() if message.startswith("reloaded: ")]
    assert reloaded == "reloaded: certificate, log level info; other keys changed: they need a restart"

    daemon.config.write_text("[overlay]\n")
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: any(message.startswith("not reloaded:") for message in daemon.messages()))
    assert daemon.control.get("/status")["joined"]

    assert daemon.end() == -signal.SIGTERM
    assert "left the overlay" in daemon.messages()
    assert not (daemon.directory / "control.sock").exists()


@pytest.mark.system
def test_systemd(daemon: Daemon) -> None:
    """systemd hears READY once the node has joined, its status, the watchdog's sign of life, and STOPPING."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(daemon.directory / "notify"))
        channel.settimeout(20)
        daemon.start(NOTIFY_SOCKET=str(daemon.directory / "notify"), WATCHDOG_USEC="900000")
        heard: list[str] = []
        while "WATCHDOG=1" not in heard or "READY=1" not in heard:
            heard += channel.recv(4096).decode().split("\n")
        assert "STATUS=joined overlay.example: 0 peers, 0 links, 0 records" in heard
        assert daemon.end() == -signal.SIGTERM
        while "STOPPING=1" not in heard:
            heard += channel.recv(4096).decode().split("\n")
    assert heard.count("READY=1") == 1


@pytest.mark.system
def test_faults_of_the_configuration(daemon: Daemon) -> None:
    """A fault in the configuration ends the start with exit code 78 and every fault by file, line and key."""
    daemon.write(more='sate = "x"', log_level="loud")
    ended = daemon.run()
    assert ended.returncode == 78
    assert ended.stderr.splitlines() == [
        f'{daemon.config}:9: node.log_level: expected "debug", "info", "warn" or "error"',
        f'{daemon.config}:12: node.sate: unknown key. Did you mean "state"?',
    ]
    assert not (daemon.directory / "state.sqlite").exists()


@pytest.mark.system
def test_state_of_another_node(daemon: Daemon) -> None:
    """The state file of another node is not taken up: its records and its place are not ours."""
    daemon.start()
    daemon.end()
    daemon.files.issue(Role.REGISTRAR, "second", daemon.directory / "second")
    for name in ("node.pem", "node.key"):
        (daemon.directory / "second" / name).replace(daemon.directory / name)
    ended = daemon.run()
    assert ended.returncode == 78
    last = json.loads(ended.stdout.splitlines()[-1])["msg"]
    assert ": node.state: " in last
    assert "belongs to another node" in last


@pytest.mark.system
def test_address_taken(daemon: Daemon) -> None:
    """An address that another program has is one line with file, line and key."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon.write(listen=f"127.0.0.1:{port}")
        ended = daemon.run()
    assert ended.returncode == 1
    last = json.loads(ended.stdout.splitlines()[-1])
    assert last["level"] == "critical"
    line = 1 + daemon.config.read_text().splitlines().index(f'listen = "127.0.0.1:{port}"')
    assert last["msg"].startswith(f"{daemon.config}:{line}: peer.listen: cannot listen there: ")


@pytest.mark.system
def test_second_node(daemon: Daemon) -> None:
    """A second node on the same state or control socket does not start, and leaves the first alone."""
    daemon.start()
    ended = daemon.run()
    assert ended.returncode == 1, "it may pass, so systemd is to try again"
    assert ": node.state: " in ended.stdout and "in use by another process" in ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout
    assert daemon.control.get("/status")["joined"]
    assert daemon.end() == -signal.SIGTERM


@pytest.mark.system
def test_becomes_a_daemon(daemon: Daemon) -> None:
    """Without -n twistd goes into the background, and the node works there as it does in front."""
    pid = daemon.directory / "twistd.pid"
    command = [part for part in daemon.command() if part not in ("-n", "--pidfile=")]
    daemon.write(more=f'log_file = "{daemon.directory / "log"}"')
    subprocess.run(command, cwd=daemon.directory, check=True, timeout=30, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        joined = False
        while not joined and time.monotonic() < deadline:
            with contextlib.suppress(ControlUnreachable):
                joined = daemon.control.get("/status")["joined"]
            time.sleep(0.02)
        assert joined, (daemon.directory / "log").read_text()
    finally:
        os.kill(int(pid.read_text()), signal.SIGTERM)
    while pid.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "left the overlay" in daemon.messages()


def test_lazy_imports() -> None:
    """What only some roles or requests need is not imported with the application."""
    code = "import sys, p2psipd.app; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    late = {"prometheus_client", "twisted.web.server", "p2psipd.services.sip", "p2psipd.net.interconnect", "treq"}
    assert not late & set(loaded)
    assert "twisted.internet.reactor" not in loaded


def test_monotonic_clock(tmp_path: Path) -> None:
    """The reactor follows the monotonic clock before anything is scheduled, even when the start fails."""
    code = (
        "import sys, time\n"
        "from p2psipd.app import Options, makeService\n"
        "options = Options(); options.parseOptions(['--config', sys.argv[1]])\n"
        "try: makeService(options)\n"
        "except SystemExit as error: print(error.code)\n"
        "from twisted.internet import reactor\n"
        "print(reactor.seconds is time.monotonic, len(reactor.getDelayedCalls()))\n"
    )
    missing = str(tmp_path / "none.toml")
    ended = subprocess.run([sys.executable, "-c", code, missing], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["78", "True", "0"]
    assert "none.toml: cannot be read" in ended.stderr


def test_no_file() -> None:
    """Without --config there is a usage error, not a traceback."""
    twistd = Path(sys.executable).with_name("twistd")
    ended = subprocess.run([str(twistd), "-n", "p2psip"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "--config FILE is missing" in ended.stdout + ended.stderr

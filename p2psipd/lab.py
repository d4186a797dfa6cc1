"""An overlay of real `twistd p2psip` processes on one machine, for trying out, tests, the demo and
benchmarks.

Peer K of a lab listens on <network>.K (127.0.1.K unless another network is asked for): overlay port 6084, SIP
5060 over UDP and TCP, SIPS 5061, WebSocket 5080 and over TLS 5443. Everything a lab is lies in its directory:

    lab.json                 what was asked for: peers, network, log level, overlay name, users
    overlay.xml  ca/         the signed configuration document and the certificate authority
    sip.pem  sip.key         the certificate that phones see on ports 5061 and 5443, valid for every peer
    peerK/                   p2psipd.toml overlay.xml node.pem node.key state.sqlite control.sock log pid

Processes outlive the command that started them; they are found again by their pid file, and a process is only
ever signalled if its command line names the peer's configuration file.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple, Self

from p2psipd.control import Control, ControlRefused, ControlUnreachable
from p2psipd.lab_files import OVERLAY_PORT, SIP_PORT, LabFiles, User
from p2psipd.proto.identity.certificate import CertificateError, check_user_name

DEFAULT_NETWORK = "127.0.1"
DEFAULT_OVERLAY = "lab.example"
MAXIMUM_PEERS = 250
# The path of a Unix socket holds 107 octets (sun_path); "peer250/control.sock" takes 21 of them with its
# slash.
_MAXIMUM_PATH = 107 - 21
_POLL_SECONDS = 0.1

Progress = Callable[[str], None]


class LabError(Exception):
    """Something about the lab is not as it must be; the message says what, and what to do."""


class PeerState(NamedTuple):
    """One peer of a lab as seen from outside: `state` is joined, joining, stopped (SIGSTOP), dead or off."""

    number: int
    state: str
    pid: int | None
    address: str
    status: dict[str, Any] | None


def _silent(_text: str) -> None:
    """Progress that nobody wants to see."""


def check_network(network: str) -> str:
    """`network` if it is the first three numbers of loopback addresses. Raises LabError."""
    try:
        if IPv4Address(f"{network}.1").is_loopback:
            return network
    except ValueError:
        pass
    raise LabError(f"{network!r} is not three numbers such as {DEFAULT_NETWORK}: 127, and two from 0 to 255")


def check_user(name: str, overlay_name: str = DEFAULT_OVERLAY) -> str:
    """`name` if a user of the overlay can be called so, before the "@". Raises LabError."""
    try:
        check_user_name(f"{name}@{overlay_name}")
    except CertificateError as error:
        raise LabError(error.detail) from None
    return name


def is_free(network: str) -> bool:
    """Whether nobody listens on the overlay's and SIP's ports of the network's first address."""
    try:
        for port in (OVERLAY_PORT, SIP_PORT):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((f"{network}.1", port))
    except OSError:
        return False
    return True


def free_network() -> str:
    """A network 127.0.2 to 127.0.249 whose first address nobody uses for SIP or overlay, so that labs can stand
    side by side.
    """
    # Two that look at the same moment should not find the same one.
    start = os.getpid()
    for step in range(248):
        network = f"127.0.{2 + (start + step) % 248}"
        if is_free(network):
            return network
    raise LabError("every network 127.0.x has a listener: end some labs first")


class Lab:
    """A lab in `directory`. `Lab.create` makes one, `Lab.open` takes up one that exists."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        files: LabFiles,
        progress: Progress = _silent,
        daemon: Sequence[str] = (),
    ) -> None:
        self.directory = Path(directory)
        self.files = files
        self._progress = progress
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        # What stands before the arguments of the daemon; twistd unless a test says otherwise.
        self._daemon = tuple(daemon) or _twistd()

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        peers: int = 8,
        *,
        users: Iterable[str] = ("alice", "bob"),
        network: str = DEFAULT_NETWORK,
        overlay_name: str = DEFAULT_OVERLAY,
        log_level: str = "info",
        progress: Progress = _silent,
    ) -> Self:
        """Write the files of a new lab; nothing is started. Raises LabError."""
        root = _real(directory)
        if not 1 <= peers <= MAXIMUM_PEERS:
            raise LabError(f"a lab has 1 to {MAXIMUM_PEERS} peers, not {peers}")
        if len(os.fsencode(root)) > _MAXIMUM_PATH:
            raise LabError(f"{root} is too long for the control sockets in it: at most {_MAXIMUM_PATH} octets")
        if (root / "lab.json").exists():
            raise LabError(f"there is a lab in {root}: p2psip lab down --dir {root} ends it, --remove clears it away")
        people = tuple(User.of(check_user(name, overlay_name)) for name in users)
        files = LabFiles(root, peers, check_network(network), overlay_name, people, log_level)
        root.mkdir(parents=True, exist_ok=True)
        files.write(progress)
        (root / "lab.json").write_text(json.dumps(files.description(), indent=2) + "\n")
        return cls(root, files, progress)

    @classmethod
    def open(cls, directory: str | os.PathLike[str], progress: Progress = _silent) -> Self:
        """The lab that is in `directory`. Raises LabError if there is none."""
        root = _real(directory)
        try:
            description = json.loads((root / "lab.json").read_text())
            return cls(root, LabFiles.from_description(root, description), progress)
        except FileNotFoundError:
            raise LabError(f"no lab in {root}: p2psip lab up --dir {root} makes one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{root / 'lab.json'} is not what a lab writes: {error!r}") from None

    # ---- what and where ------------------------------------------------------------------------------------

    @property
    def peers(self) -> range:
        """The numbers of the peers, from 1."""
        return range(1, self.files.peers + 1)

    @property
    def users(self) -> tuple[User, ...]:
        """The people of the lab, with their passwords."""
        return self.files.users

    @property
    def overlay_name(self) -> str:
        """The overlay's name, which is also the SIP domain of the lab."""
        return self.files.overlay_name

    def host(self, number: int) -> str:
        """The address of a peer."""
        return self.files.host(number)

    def peer_directory(self, number: int) -> Path:
        """Where a peer keeps its files. Raises LabError for a number that is no peer's."""
        if number not in self.peers:
            raise LabError(f"there is no peer {number}: this lab has peers 1 to {self.files.peers}")
        return self.files.peer_directory(number)

    def control(self, number: int, timeout: float = 15.0) -> Control:
        """The control socket of a peer."""
        return Control(self.peer_directory(number) / "control.sock", timeout)

    def aor(self, name: str) -> str:
        """The SIP address of one of the people."""
        return f"sip:{name}@{self.overlay_name}"

    def on_progress(self, progress: Progress) -> None:
        """Tell `progress` from now on how far a wait is."""
        self._progress = progress

    def user(self, name: str) -> User:
        """One of the people, by the part of the address before the "@". Raises LabError."""
        for user in self.users:
            if user.name == name:
                return user
        raise LabError(f"nobody called {name} in this lab")

    # ---- processes -----------------------------------------------------------------------------------------

    def pid(self, number: int) -> int | None:
        """The process of a peer if it lives (a stopped one does), else None."""
        directory = self.peer_directory(number)
        child = self._children.get(number)
        if child is not None:
            if child.poll() is None:
                return child.pid
            del self._children[number]
        try:
            pid = int((directory / "pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(directory / "p2psipd.toml") in _command_line(pid) else None

    def start(self, number: int, *, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> int:
        """Start the process of a peer and return its pid; a peer that lives is left alone.

        `environment` is added to the process's own, `prefix` stands before the command (for example
        faketime). Raises LabError if a process that is not found by the pid file is this peer already.
        """
        # Two that start the same peer at once would both find it dead, and the later pid file would hide the process
        # that lives.
        with _held(self.peer_directory(number)):
            pid = self.pid(number)
            return self._launch(number, environment or {}, prefix) if pid is None else pid

    def _launch(self, number: int, environment: dict[str, str], prefix: Sequence[str]) -> int:
        other = self._listener(number)
        if other is not None and _command_line(other):
            raise LabError(
                f"peer {number} runs already, as process {other}, but its pid file or command line says otherwise: "
                f"kill {other} ends it"
            )
        directory = self.peer_directory(number)
        command = [
            *prefix,
            *self._daemon,
            "-n",
            "--pidfile=",
            "p2psip",
            "--config",
            str(directory / "p2psipd.toml"),
        ]
        with (directory / "log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        # For a moment a new process has no command line yet, and whoever reads the pid file would take it for dead.
        while child.poll() is None and not _command_line(child.pid):
            time.sleep(0.001)
        (directory / "pid").write_text(f"{child.pid}\n")
        self._children[number] = child
        return child.pid

    def signal(self, number: int, which: signal.Signals) -> None:
        """Send a signal to the process of a peer; nothing happens if it is dead."""
        pid = self.pid(number)
        if pid is not None:
            os.kill(pid, which)
            if which is signal.SIGKILL:
                self._await_end([number], 10.0)
            elif which is signal.SIGSTOP:
                until = time.monotonic() + 2.0
                while not _is_stopped(pid) and time.monotonic() < until:
                    time.sleep(0.005)

    def kill(self, number: int) -> None:
        """End a peer at once and without a word (SIGKILL)."""
        self.signal(number, signal.SIGKILL)

    def freeze(self, number: int) -> None:
        """Silence a peer: the process stays, its connections stay open, and it does nothing (SIGSTOP)."""
        self.signal(number, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """Let a frozen peer go on (SIGCONT)."""
        self.signal(number, signal.SIGCONT)

    def leave(self, number: int, timeout: float = 15.0) -> None:
        """Let a peer leave the overlay in order (SIGTERM) and wait until it is gone. Raises LabError."""
        self.signal(number, signal.SIGTERM)
        if self._await_end([number], timeout):
            raise LabError(f"peer {number} did not end within {timeout:.0f} s of SIGTERM")

    def up(self, timeout: float = 60.0) -> float:
        """Start every peer, wait until all have joined and know each other; the seconds that it took.

        Raises LabError.
        """
        started = time.monotonic()
        self.start(1)
        self.wait_joined([1], timeout)
        for number in self.peers:
            self.start(number)
        self.wait_joined(self.peers, timeout)
        self.wait_acquainted(timeout)
        # One that joined may have ended while the others came; those who wait to know each other do not miss it.
        self.wait_joined(self.peers, timeout)
        return time.monotonic() - started

    def down(self, timeout: float = 5.0) -> int:
        """End every process of the lab, politely first; the number of processes that had to be killed."""
        alive = [number for number in self.peers if self.pid(number) is not None]
        for number in alive:
            self.signal(number, signal.SIGCONT)
            self.signal(number, signal.SIGTERM)
        late = self._await_end(alive, timeout)
        for number in late:
            pid = self.pid(number)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self._await_end(late, 10.0)
        return len(late)

    def kill_all(self) -> None:
        """End every process of the lab at once (SIGKILL): for tests, where nobody needs an orderly end."""
        alive = [number for number in self.peers if self.pid(number) is not None]
        for number in alive:
            pid = self.pid(number)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self._await_end(alive, 10.0)

    def _await_end(self, numbers: Iterable[int], timeout: float) -> list[int]:
        """Wait until these peers are dead; those that are not after `timeout` seconds."""
        until = time.monotonic() + timeout
        waiting = list(numbers)
        while waiting and time.monotonic() < until:
            waiting = [number for number in waiting if self.pid(number) is not None]
            if waiting:
                time.sleep(0.02)
        return waiting

    # ---- what they say -------------------------------------------------------------------------------------

    def peer_state(self, number: int) -> PeerState:
        """How one peer is, asked over its control socket if it lives."""
        address = f"{self.host(number)}:{OVERLAY_PORT}"
        pid = self.pid(number)
        if pid is None:
            state = "dead" if (self.peer_directory(number) / "pid").exists() else "off"
            return PeerState(number, state, None, address, None)
        if _is_stopped(pid):
            return PeerState(number, "stopped", pid, address, None)
        if not self._is_listener(number, pid):
            return PeerState(number, "joining", pid, address, None)
        try:
            status = self.control(number, 2.0).get("/status")
        except (ControlUnreachable, ControlRefused):
            return PeerState(number, "joining", pid, address, None)
        return PeerState(number, "joined" if status.get("joined") else "joining", pid, address, status)

    def _listener(self, number: int) -> int | None:
        """The process behind a peer's control socket, whether it answers or not."""
        try:
            return self.control(number, 2.0).listener()
        except ControlUnreachable:
            return None

    def _is_listener(self, number: int, pid: int) -> bool:
        """Whether a peer's control socket is this process's, and not that of one which lived there before."""
        other = self._listener(number)
        try:
            # Each peer is a session of its own: what a prefix such as faketime starts in it is the peer, too.
            return other is not None and os.getsid(other) == pid
        except ProcessLookupError:
            return False

    def status(self) -> list[PeerState]:
        """How every peer is."""
        return [self.peer_state(number) for number in self.peers]

    def wait_joined(self, numbers: Iterable[int], timeout: float = 60.0) -> None:
        """Wait until these peers have joined. Raises LabError with the last lines of a peer's log if one does
        not.
        """
        until = time.monotonic() + timeout
        wanted = list(numbers)
        waiting = list(wanted)
        while waiting:
            states = [self.peer_state(number) for number in waiting]
            for state in states:
                if state.pid is None:
                    raise LabError(f"peer {state.number} ended while it started:\n{self.log_tail(state.number)}")
            waiting = [state.number for state in states if state.state != "joined"]
            self._progress(f"{len(wanted) - len(waiting)} of {len(wanted)}")
            if waiting and time.monotonic() > until:
                names = ", ".join(map(str, waiting))
                raise LabError(
                    f"peers {names} have not joined after {timeout:.0f} s; "
                    f"the log of peer {waiting[0]} ends:\n"
                    f"{self.log_tail(waiting[0])}"
                )
            if waiting:
                time.sleep(_POLL_SECONDS)

    def provision(self, users: Iterable[User] | None = None, timeout: float = 60.0) -> None:
        """Store the passwords of `users` (those of the lab unless others are named) in the overlay.

        It is `p2psip user add` in a process of its own, for that verb is a node and has a reactor. Raises
        LabError.
        """
        lines = "".join(f"{user.name} {user.password}\n" for user in (self.users if users is None else users))
        alive = [number for number in self.peers if self.pid(number) is not None]
        command = [sys.executable, "-m", "p2psipd.cli.main", "user", "add", "--from", "-", "--replace"]
        command += ["--dir", str(self.directory / "provisioning")]
        for number in alive[:3]:
            command += ["--peer", f"{self.host(number)}:{OVERLAY_PORT}"]
        try:
            ran = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"the users' passwords were not stored within {timeout:.0f} s") from None
        if ran.returncode:
            raise LabError(f"the users' passwords were not stored: {(ran.stderr or ran.stdout).strip()}")

    def wait_acquainted(self, timeout: float = 60.0) -> None:
        """Wait until every peer that lives knows every other one that lives. Raises LabError."""
        until = time.monotonic() + timeout
        while True:
            states = [state for state in self.status() if state.state not in ("off", "dead", "stopped")]
            waiting = [
                state for state in states if state.status is None or state.status.get("peers", 0) != len(states) - 1
            ]
            self._progress(f"{len(states) - len(waiting)} of {len(states)} know all others")
            if not waiting:
                return
            if time.monotonic() > until:
                known = ", ".join(
                    f"peer {state.number} knows {(state.status or {}).get('peers', 'nobody')}" for state in waiting
                )
                raise LabError(f"after {timeout:.0f} s the peers do not all know each other: {known}")
            time.sleep(_POLL_SECONDS)

    def log_tail(self, number: int, lines: int = 15) -> str:
        """The last lines of a peer's log."""
        try:
            text = (self.peer_directory(number) / "log").read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.splitlines()[-lines:])


def _real(directory: str | os.PathLike[str]) -> Path:
    """A directory's one path: by any other the processes, which are known by their command lines, would not be found.

    Unlike Path.resolve it leaves a loop of symbolic links to whoever opens it, as an OSError.
    """
    return Path(os.path.realpath(directory))


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Nobody else has the directory meanwhile; waits for who has it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _command_line(pid: int) -> list[bytes]:
    """The words of a process's command line; none if it has ended, even if it still waits to be reaped."""
    try:
        return [word for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
    except OSError:
        return []


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (its state in /proc/PID/stat, after the name in brackets)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return bool(state) and state[0] in "tT"


def _twistd() -> tuple[str, ...]:
    """The command that is twistd, of the environment that this process runs in."""
    script = Path(sys.executable).with_name("twistd")
    if script.exists():
        return sys.executable, str(script)
    return sys.executable, "-c", "from twisted.scripts.twistd import run; run()"

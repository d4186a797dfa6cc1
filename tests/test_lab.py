"""The lab's handling of processes, with a daemon of a few lines in the place of twistd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2psipd.control import Control, ControlRefused, ControlUnreachable
from p2psipd.lab import Lab, LabError, free_network
from p2psipd.lab_files import LabFiles, User

DAEMON = """
import http.server, json, os, socketserver, sys
directory = os.path.dirname(sys.argv[-1])
if os.path.exists(os.path.join(directory, "broken")):
    sys.exit("the configuration is at fault")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/status"
        joined = not os.path.exists(os.path.join(directory, "lonely"))
        body = json.dumps({"joined": joined, "node_id": "ab" * 16, "peers": 1} if known else {"error": "no such thing"})
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *words): pass
    def address_string(self): return "-"
path = os.path.join(directory, "control.sock")
if os.path.exists(path): os.unlink(path)
socketserver.UnixStreamServer(path, Handler).serve_forever(0.05)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab of two peers whose daemon only says that it has joined."""
    files = LabFiles(tmp_path, 2, "127.0.1", "lab.example", (User.of("alice"),))
    for number in (1, 2):
        files.peer_directory(number).mkdir()
        (files.peer_directory(number) / "p2psipd.toml").touch()
    lab = Lab(tmp_path, files, daemon=[sys.executable, "-c", DAEMON])
    yield lab
    lab.kill_all()


def test_no_test_has_an_address_where_a_lab_may_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks among which labs choose appear nowhere in tests and benches; their own lie in 127.1."""
    monkeypatch.setattr("p2psipd.lab.is_free", lambda network: True)
    chosen = set()
    for number in range(300):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        chosen.add(free_network())
    assert len(chosen) == 248 and not {"127.0.0", "127.0.1"} & chosen
    root = Path(__file__).parents[1]
    files = [path for part in ("tests", "bench") for path in (root / part).rglob("*.*")]
    for path in files:
        if path.is_file() and not {"node_modules", "__pycache__"} & set(path.parts):
            named = {octets.decode() for octets in re.findall(rb"127\.0\.\d+\b", path.read_bytes())}
            assert not named & chosen, path


def test_life_of_a_lab(lab: Lab) -> None:
    """Peers come up, are found again, freeze and thaw, die alone, come back, and go down together."""
    assert [state.state for state in lab.status()] == ["off", "off"]
    lab.up(timeout=20)
    assert [state.state for state in lab.status()] == ["joined", "joined"]
    assert lab.start(2) == lab.pid(2)
    lab.freeze(2)
    assert lab.peer_state(2).state == "stopped"
    lab.thaw(2)
    lab.wait_joined([2], 10)
    lab.kill(1)
    assert [state.state for state in lab.status()] == ["dead", "joined"]
    lab.start(1)
    lab.wait_joined([1], 20)
    assert lab.down() == 0
    assert [lab.pid(number) for number in lab.peers] == [None, None]


def test_another_process_is_never_signalled(lab: Lab) -> None:
    """A pid file that was left behind and now names somebody else's process means a dead peer."""
    (lab.peer_directory(1) / "pid").write_text(f"{os.getpid()}\n")
    assert lab.peer_state(1).state == "dead"
    lab.signal(1, signal.SIGKILL)


@pytest.mark.parametrize("way", ["peer1/..", "link"])
def test_a_lab_by_another_path(lab: Lab, way: str) -> None:
    """Whichever way leads to the directory, the same processes are found."""
    (lab.directory / "lab.json").write_text(json.dumps(lab.files.description()))
    (lab.directory / "link").symlink_to(lab.directory)
    lab.start(1)
    lab.wait_joined([1], 20)
    again = Lab.open(lab.directory / way)
    assert again.directory == lab.directory
    assert again.start(1) == again.pid(1) == lab.pid(1)


def test_a_new_lab_by_another_path(lab: Lab) -> None:
    """A lab that is made through a symbolic link lies where the link leads to; a loop of them is the system's error."""
    (lab.directory / "link").symlink_to(lab.directory / "new")
    assert Lab.create(lab.directory / "link", 1).directory == lab.directory / "new"
    (lab.directory / "loop").symlink_to(lab.directory / "loop")
    with pytest.raises(OSError, match="loop"):
        Lab.create(lab.directory / "loop", 1)


def test_a_process_that_is_not_found_by_the_pid_file(lab: Lab) -> None:
    """A peer that runs already is not started again over its head, and its pid file stays as it is."""
    lab.start(1)
    lab.wait_joined([1], 20)
    (lab.peer_directory(1) / "pid").write_text("1\n")
    with pytest.raises(LabError, match=f"peer 1 runs already, as process {lab.pid(1)}"):
        Lab(lab.directory, lab.files).start(1)
    assert (lab.peer_directory(1) / "pid").read_text() == "1\n"


def test_started_by_many_at_once(lab: Lab) -> None:
    """Of many that start the same peer at the same moment one does, and all find that process."""
    labs = [Lab(lab.directory, lab.files, daemon=[sys.executable, "-c", DAEMON]) for _ in range(8)]
    try:
        with ThreadPoolExecutor(len(labs)) as pool:
            assert set(pool.map(lambda each: each.start(1), labs)) == {lab.pid(1)}
    finally:
        for each in labs:
            each.kill_all()


def test_another_process_answers(lab: Lab) -> None:
    """The answer of a process that was not started as the peer counts for nothing; the peer's end is told."""
    lab.start(1)
    lab.wait_joined([1], 20)
    os.unlink(lab.peer_directory(1) / "control.sock")
    other = subprocess.Popen([sys.executable, "-c", DAEMON, str(lab.peer_directory(1) / "p2psipd.toml")])
    try:
        while not (lab.peer_directory(1) / "control.sock").exists():
            time.sleep(0.01)
        assert lab.peer_state(1).state == "joining"
        lab.kill(1)
        with pytest.raises(LabError, match="peer 1 ended while it started"):
            lab.wait_joined([1], 20)
    finally:
        other.kill()
        other.wait()


def test_a_peer_that_ends_while_others_start(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab is not up if a peer that had joined is dead when all others know each other."""
    monkeypatch.setattr(lab, "wait_acquainted", lambda timeout: lab.kill(2))
    with pytest.raises(LabError, match="peer 2 ended while it started"):
        lab.up(timeout=20)


def test_a_peer_that_does_not_start(lab: Lab) -> None:
    """A peer that ends while it starts is reported at once, with what it said last."""
    (lab.peer_directory(2) / "broken").touch()
    with pytest.raises(LabError, match="peer 2 ended while it started:\nthe configuration is at fault"):
        lab.up(timeout=20)


def test_a_peer_that_does_not_join(lab: Lab) -> None:
    """Waiting for a peer that stays alone ends with its number and its log."""
    (lab.peer_directory(2) / "lonely").touch()
    with pytest.raises(LabError, match="peers 2 have not joined"):
        lab.up(timeout=1)
    assert lab.peer_state(2).state == "joining"


def test_peers_that_do_not_know_each_other(lab: Lab) -> None:
    """Waiting until all know each other ends with who knows how many; a dead peer need not be known."""
    for number in lab.peers:
        lab.start(number)
    lab.wait_joined(lab.peers, 20)
    lab.wait_acquainted(5)
    lab.kill(2)
    with pytest.raises(LabError, match="peer 1 knows 1"):
        lab.wait_acquainted(0.2)


def test_description_survives(lab: Lab) -> None:
    """What lab.json holds describes the same lab again; a directory without one is no lab."""
    again = LabFiles.from_description(lab.directory, lab.files.description())
    assert again.description() == lab.files.description()
    assert again.users == (User("alice", "lab-alice"),)
    with pytest.raises(LabError, match="no lab in"):
        Lab.open(lab.directory)
    (lab.directory / "lab.json").write_text("[1]")
    with pytest.raises(LabError, match="not what a lab writes"):
        Lab.open(lab.directory)


def test_numbers_and_names_that_do_not_exist(lab: Lab) -> None:
    """A peer or user that the lab does not have is named in the error."""
    with pytest.raises(LabError, match="no peer 3"):
        lab.pid(3)
    with pytest.raises(LabError, match="nobody called carol"):
        lab.user("carol")
    with pytest.raises(LabError, match="1 to 250 peers"):
        Lab.create(lab.directory / "x", 0)
    with pytest.raises(LabError, match="too long"):
        Lab.create(lab.directory / ("x" * 90), 1)


@pytest.mark.parametrize(
    "network", ["300.1.1", "127.256.1", "10.0.1", "127.1", "127.1.1.1", "127.01.1", "127.1.x", "::1", ""]
)
def test_networks_that_cannot_be(lab: Lab, network: str) -> None:
    """A lab's network is three numbers of loopback; nothing is written for another."""
    with pytest.raises(LabError, match="is not three numbers such as"):
        Lab.create(lab.directory / "x", 1, network=network)
    assert not (lab.directory / "x").exists()


@pytest.mark.parametrize("name", ["bad user", "dave@lab.example", "", "d\u00e4ve", "d" * 250])
def test_users_that_cannot_be(lab: Lab, name: str) -> None:
    """A lab's users have names that `p2psip user add` takes; nothing is written for another."""
    with pytest.raises(LabError, match="is not of the form name@domain"):
        Lab.create(lab.directory / "x", 1, users=("alice", name))
    assert not (lab.directory / "x").exists()


def test_control_socket(lab: Lab) -> None:
    """The client of the control socket tells nobody there, an error answer, and a value apart."""
    with pytest.raises(ControlUnreachable, match=r"no node answers at .*control\.sock"):
        lab.control(1).get("/status")
    lab.start(1)
    lab.wait_joined([1], 20)
    assert Control(lab.peer_directory(1) / "control.sock").get("/status")["joined"] is True
    with pytest.raises(ControlRefused, match="no such thing") as refused:
        lab.control(1).get("/else", name="x", nothing=None)
    assert refused.value.status == 404

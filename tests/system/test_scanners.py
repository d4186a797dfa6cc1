"""SIPVicious against a node: it finds nothing, where at a leaky registrar it finds everything; phones are not
disturbed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from p2psipd.lab import Lab

from .phones import free_ports, sipsak_register

ATTACKER, DISGUISED, LEAKY = "127.1.250.66", "127.1.250.67", "127.1.250.1"
PASSWORD = "letmein"
METHODS = ("REGISTER", "INVITE", "OPTIONS")
PATH = "/usr/bin:/bin"

#: Runs a scanner that does not say what it is: its User-Agent is the default of one function.
_IN_DISGUISE = """
import sys
sys.path.insert(0, "/usr/share/sipvicious")
from sipvicious.libs import svhelper
svhelper.makeRequest.__defaults__ = tuple(
    "phone" if value == "friendly-scanner" else value for value in svhelper.makeRequest.__defaults__
)
import importlib
name = sys.argv.pop(1)
importlib.import_module("sipvicious." + name).main()
"""


@pytest.fixture(scope="module")
def leaky() -> Iterator[str]:
    """The control: a registrar with the users 100 and 101."""
    command = [sys.executable, str(Path(__file__).with_name("leaky_registrar.py")), LEAKY, "5060"]
    process = subprocess.Popen([*command, f"100:{PASSWORD}", "101:secret"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield LEAKY
    process.kill()
    process.wait()


def vicious(directory: Path, source: str, tool: str, *arguments: str) -> str:
    """What a tool of SIPVicious prints on standard output; from DISGUISED it does not say what it is."""
    program = [tool] if source == ATTACKER else ["/usr/bin/python3", "-c", _IN_DISGUISE, tool]
    port = str(free_ports(source)[0])
    command = [*program, "-b", source, "-x", source, "-P", port, "-t", "0.01", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=directory, env={"HOME": str(directory), "PATH": PATH}
    )
    return done.stdout


def words(directory: Path, password: str, before: int) -> str:
    """A dictionary with so many wrong passwords before the right one."""
    path = directory / f"words{before}"
    path.write_text("".join(f"wrong{number}\n" for number in range(before)) + password + "\n")
    return str(path)


def all_at_once(runs: dict[str, Callable[[], str]]) -> dict[str, str]:
    """What each of these scans prints; they take seconds, and most of that they wait."""
    with ThreadPoolExecutor(len(runs)) as pool:
        started = {name: pool.submit(scan) for name, scan in runs.items()}
        return {name: future.result() for name, future in started.items()}


@pytest.mark.foreign("svmap", "svwar", "svcrack")
def test_the_tools_find_what_leaks(tmp_path: Path, leaky: str) -> None:
    """At the leaky registrar every tool finds the device, its users, and a password; in disguise, too."""
    runs = {}
    for source in (ATTACKER, DISGUISED):
        run = partial(vicious, tmp_path, source)
        runs[f"svmap {source}"] = partial(run, "svmap", "-e", "100", leaky)
        for method in METHODS:
            runs[f"svwar {method} {source}"] = partial(run, "svwar", "-m", method, "-e", "99-102", leaky)
        runs[f"svcrack {source}"] = partial(run, "svcrack", "-u", "100", "-d", words(tmp_path, PASSWORD, 3), leaky)
    for name, found in all_at_once(runs).items():
        if name.startswith("svmap"):
            assert leaky in found
        elif name.startswith("svcrack"):
            assert PASSWORD in found
        else:
            assert "| 100 " in found and "| 101 " in found and "| 99 " not in found, f"{name}: {found}"


@pytest.mark.foreign("svmap", "svwar", "svcrack", "sipsak")
def test_nothing_is_found_here(tmp_path: Path, lab: Lab) -> None:
    """No device under the scanner's own name; under another no user and no password; a phone registers meanwhile."""
    peer, password = lab.host(2), lab.user("carol").password
    names = tmp_path / "names"
    names.write_text("alice\nnobody\nbob\n")
    runs = {"svmap": partial(vicious, tmp_path, ATTACKER, "svmap", peer)}
    for source in (ATTACKER, DISGUISED):
        for method in METHODS:
            scan = partial(vicious, tmp_path, source, "svwar", "-m", method, "-d", str(names), "--force", peer)
            runs[f"svwar {method} {source}"] = scan
    guesses = words(tmp_path, password, 30)
    runs["svcrack"] = partial(vicious, tmp_path, DISGUISED, "svcrack", "-u", "carol", "-d", guesses, peer)
    results = all_at_once(runs)
    assert peer not in results["svmap"]
    assert password not in results["svcrack"]
    for name, found in results.items():
        assert not any(user in found for user in ("alice", "nobody", "bob")), f"{name}: {found}"
    done = sipsak_register("carol", password, "sip:carol@127.1.252.13:17000", peer)
    assert done.returncode == 0, done.stdout + done.stderr

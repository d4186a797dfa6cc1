"""The SIP service over real sockets against phones and test programs of other projects.

Two nodes in one process, their location in memory and a real mutual-TLS connection between them: what is
tested is SIP, not the overlay. The helpers in phones.py are those that the lab's tests use.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .phones import (
    Sipp,
    baresip_pair,
    call_with_audio,
    free_ports,
    sipp_register,
    sipsak_options,
    sipsak_register,
    sipsak_unregister,
)

DOMAIN = "sip.example"
PASSWORDS = {"alice": "wonder", "bob": "builder", "carol": "christmas"}
NODE_A, NODE_B = "127.1.251.1", "127.1.251.2"
PHONE_A, PHONE_B = "127.1.251.11", "127.1.251.12"


class Nodes:
    """The process with both nodes."""

    def __init__(self, directory: Path, node_a: str = NODE_A, node_b: str = NODE_B) -> None:
        self.directory = directory
        script = Path(__file__).with_name("sip_nodes.py")
        users = [f"{user}:{password}" for user, password in PASSWORDS.items()]
        self._process = subprocess.Popen(
            [sys.executable, str(script), node_a, node_b, DOMAIN, str(directory), *users],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        line = self._process.stdout.readline() if ready else b""
        if line.strip() != b"ready":
            self._process.kill()
            raise AssertionError(f"the nodes did not start: {self._process.communicate()}")

    def stop(self) -> dict[str, Any]:
        """End them, and return what they counted."""
        output, errors = self._process.communicate(timeout=15)
        assert self._process.returncode == 0, errors.decode()[-3000:]
        assert b"Traceback" not in errors, errors.decode()[-3000:]
        report: dict[str, Any] = json.loads(output.splitlines()[-1])
        return report


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Both nodes; when all tests are done nothing may have gone wrong inside them."""
    running = Nodes(tmp_path_factory.mktemp("nodes"))
    yield running
    report = running.stop()
    for statistics in report["statistics"]:
        assert "fault" not in statistics, statistics


@pytest.mark.foreign("sipsak")
def test_sipsak_options(nodes: Nodes) -> None:
    """sipsak's OPTIONS ping is answered 200."""
    done = sipsak_options(NODE_A)
    assert done.returncode == 0 and "200 OK" in done.stdout, done.stdout + done.stderr


@pytest.mark.foreign("sipsak")
def test_sipsak_registers_with_digest(nodes: Nodes) -> None:
    """sipsak's registration test passes with the right password, and fails with a wrong one."""
    done = sipsak_register("carol", PASSWORDS["carol"], f"sip:carol@{PHONE_A}:17000", NODE_A)
    assert done.returncode == 0, done.stdout + done.stderr
    done = sipsak_register("carol", "wrong", f"sip:carol@{PHONE_A}:17000", NODE_A)
    assert done.returncode != 0, done.stdout


@pytest.mark.foreign("sipp", "sipsak")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("callee_node", [NODE_A, NODE_B])
def test_sipp_calls(nodes: Nodes, tmp_path: Path, transport: str, callee_node: str) -> None:
    """Twenty SIPp calls through one node, or from one to the other, over UDP and TCP, without one failure."""
    port, register_port, caller_port = (*free_ports(PHONE_B, 2), *free_ports(PHONE_A))
    if transport == "udp":
        sipp_register(
            tmp_path, "bob", PASSWORDS["bob"], DOMAIN, PHONE_B, register_port, f"{callee_node}:5060", contact_port=port
        )
    else:
        # The binding of this node's TCP phone is its Contact: SIPp's registering socket is gone by then.
        sipp_register(
            tmp_path,
            "bob",
            PASSWORDS["bob"],
            DOMAIN,
            PHONE_B,
            register_port,
            f"{callee_node}:5060",
            contact_port=port,
            transport="tcp",
        )
    keys = (("domain", DOMAIN), ("caller", "alice"))
    with (
        Sipp(tmp_path, "callee", PHONE_B, port, calls=20, transport=transport) as callee,
        Sipp(
            tmp_path,
            "caller",
            PHONE_A,
            caller_port,
            f"{NODE_A}:5060",
            service="bob",
            keys=keys,
            user="alice",
            password=PASSWORDS["alice"],
            calls=20,
            rate=20,
            transport=transport,
        ) as caller,
    ):
        caller.wait()
        callee.wait()
    # Its address is gone now, and must not be a target of the next test.
    done = sipsak_unregister("bob", PASSWORDS["bob"], callee_node)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.foreign("baresip")
@pytest.mark.parametrize(("transports"), [("udp", "udp"), ("tcp", "udp"), ("udp", "tcp")])
def test_baresip_pair_calls_with_audio(nodes: Nodes, tmp_path: Path, transports: tuple[str, str]) -> None:
    """Two baresips at two nodes call each other; each hears the other's tone and not its own."""
    with baresip_pair(
        tmp_path,
        DOMAIN,
        ("alice", PASSWORDS["alice"], PHONE_A, f"{NODE_A}:5060"),
        ("bob", PASSWORDS["bob"], PHONE_B, f"{NODE_B}:5060"),
        transports,
    ) as (alice, bob):
        call_with_audio(alice, bob)


@pytest.mark.foreign("baresip")
def test_baresip_over_tls(nodes: Nodes, tmp_path: Path) -> None:
    """A baresip that checks our certificate registers over TLS, is called over that connection, and hangs up there."""
    authorities = tmp_path / "ca.pem"
    authorities.write_text("".join((nodes.directory / f"{node}.pem").read_text() for node in (NODE_A, NODE_B)))
    with baresip_pair(
        tmp_path,
        DOMAIN,
        ("alice", PASSWORDS["alice"], PHONE_A, f"{NODE_A}:5061"),
        ("bob", PASSWORDS["bob"], PHONE_B, f"{NODE_B}:5061"),
        ("tls", "tls"),
        authorities,
    ) as (alice, bob):
        call_with_audio(alice, bob)


def test_garbage_on_every_port_leaves_the_nodes_up(nodes: Nodes) -> None:
    """Any bytes on any port: silence, an error or a closed connection, and the node still answers."""
    for port in (5060, 5061, 5062):
        with socket.create_connection((NODE_A, port), timeout=10) as stream:
            stream.sendall(b"\x16\x03\x01\xff\xff" + bytes(range(256)) * 16 + b"\r\n\r\n")
            stream.settimeout(10)
            try:
                while stream.recv(4096):
                    continue
            except ConnectionError:
                continue
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((PHONE_A, 0))
        for data in (b"", b"\r\n\r\n", b"\0" * 500, b"\xff" * 65000, b"INVITE sip:x SIP/2.0\r\n\r\n"):
            datagrams.sendto(data, (NODE_A, 5060))
        options = (
            f"OPTIONS sip:{NODE_A} SIP/2.0\r\nVia: SIP/2.0/UDP {PHONE_A}:9;branch=z9hG4bKx;rport\r\n"
            "From: <sip:x@y>;tag=1\r\nTo: <sip:y>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 5\r\n\r\n"
        )
        datagrams.settimeout(5)
        datagrams.sendto(options.encode(), (NODE_A, 5060))
        answers = []
        while not any(b" 200 " in answer for answer in answers):
            answers.append(datagrams.recv(4096).split(b"\r\n")[0])

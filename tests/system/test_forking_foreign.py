"""Forks of our proxy with SIPp's phones at their ends (RFC 3261 section 16): parallel, by q, cancelled, lossy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from .phones import Sipp, free_ports, sipp_register, sipsak_unregister
from .test_sip_foreign import DOMAIN, PASSWORDS, Nodes

NODE_A, NODE_B = "127.1.20.1", "127.1.20.2"
CALLER, PHONES = "127.1.20.11", "127.1.20.12"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Both nodes; when all tests are done nothing may have gone wrong inside them."""
    running = Nodes(tmp_path_factory.mktemp("nodes"), NODE_A, NODE_B)
    yield running
    for statistics in running.stop()["statistics"]:
        assert "fault" not in statistics, statistics


class Phone(NamedTuple):
    """One of bob's phones: its scenario, its node and its q."""

    scenario: str
    node: str = NODE_A
    q: str = ""


@pytest.mark.foreign("sipp", "sipsak")
@pytest.mark.parametrize(
    "phones",
    [
        [Phone("cancelled"), Phone("callee", NODE_B)],
        [Phone("cancelled"), Phone("cancelled"), Phone("callee")],
        [Phone("refuse", q="0.9"), Phone("callee", NODE_B, q="0.3")],
        [Phone("refuse", NODE_B, "0.9"), Phone("cancelled", q="0.5"), Phone("callee", NODE_B, q="0.5")],
    ],
    ids=["two_nodes", "parallel", "by_q", "mixed"],
)
def test_fork(nodes: Nodes, tmp_path: Path, phones: list[Phone]) -> None:
    """Ten calls fork to bob's phones at one or two nodes: one answers, the others are asked and cancelled."""
    ports = free_ports(PHONES, len(phones) + 1)
    for phone, port in zip(phones, ports, strict=False):
        sipp_register(
            tmp_path,
            "bob",
            PASSWORDS["bob"],
            DOMAIN,
            PHONES,
            ports[-1],
            f"{phone.node}:5060",
            contact_port=port,
            q=phone.q,
        )
    with ExitStack() as stack:
        callees = [
            stack.enter_context(Sipp(tmp_path, phone.scenario, PHONES, port, calls=10))
            for phone, port in zip(phones, ports, strict=False)
        ]
        caller = stack.enter_context(_caller(tmp_path, calls=10))
        caller.wait()
        for callee in callees:
            callee.wait()
    for node in (NODE_A, NODE_B):
        sipsak_unregister("bob", PASSWORDS["bob"], node)


def _caller(directory: Path, calls: int) -> Sipp:
    return Sipp(
        directory,
        "caller",
        CALLER,
        free_ports(CALLER)[0],
        f"{NODE_A}:5060",
        service="bob",
        keys=(("domain", DOMAIN), ("caller", "alice")),
        user="alice",
        password=PASSWORDS["alice"],
        calls=calls,
        rate=20,
    )

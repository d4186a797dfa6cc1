"""The SIP benchmark works: its server, its load, and Kamailio beside it, each for a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import sip, sip_load
from bench.sip import Effort, kamailio, ours
from bench.sip_load import DOMAIN, Load, Ours, Result, certificate, stunnels

pytestmark = pytest.mark.system


SERVER, CALLER, CALLEE = "127.1.250.1", "127.1.250.11", "127.1.250.12"


@pytest.fixture(autouse=True)
def own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other addresses than those of a benchmark that may be running."""
    monkeypatch.setattr(sip, "OURS", SERVER)
    monkeypatch.setattr(sip, "THEIRS", "127.1.250.2")
    monkeypatch.setattr(sip_load, "CALLER", CALLER)
    monkeypatch.setattr(sip_load, "CALLEE", CALLEE)


def good(result: Result, calls: int) -> bool:
    """Every call succeeded."""
    return result.calls == calls and not result.failed


@pytest.mark.foreign("sipp")
def test_registrations_calls_and_redirects(tmp_path: Path) -> None:
    """Our server registers, connects calls and redirects them without a failure, and takes the ACK of a 302 for it."""
    with ours(tmp_path, node=CALLER) as server:
        load = Load(tmp_path, server.address, server.pid)
        load.register_callee()
        result = load.call("call", 50, 40)
        assert good(result, 40)
        # Kamailio's sixty registrations below take less than the kernel's tick.
        assert result.cpu_us > 0
        assert load.flood(50, 20) == (20, 0, 0)
    server = Ours(tmp_path, SERVER, settings={"redirect_domains": [DOMAIN], "redirect_authenticates": False})
    try:
        load = Load(tmp_path, server.address, server.pid)
        load.register_callee()
        assert good(load.redirected(100, 60), 60)
        assert good(load.register([f"user{number}" for number in range(20)], 100, 60), 60)
        assert good(load.register(["carol"], 50, 10, anew=True), 10)
    finally:
        counted = server.stop()
    assert "ack_dropped" not in counted


@pytest.mark.foreign("sipp", "stunnel4", "openssl")
def test_calls_over_tls(tmp_path: Path) -> None:
    """Calls over TLS on both sides, through stunnel."""
    callee, _ = certificate(tmp_path, CALLEE)
    cert, key = certificate(tmp_path, SERVER)
    options = {"certificate": str(cert), "key": str(key), "authorities": str(callee), "node": CALLER}
    with ours(tmp_path, **options) as server, stunnels(tmp_path, server.address):
        load = Load(tmp_path, server.address, server.pid, tls=True)
        load.register_callee()
        assert good(load.call("call", 50, 40), 40)


@pytest.mark.foreign("sipp", "kamailio", "openssl")
def test_kamailio_takes_the_same_load(tmp_path: Path) -> None:
    """Kamailio's configuration answers the same scenarios; a challenged call passes through it as well."""
    with kamailio(tmp_path, "WITH_AUTH") as server:
        load = Load(tmp_path, server.address, server.pid)
        assert good(load.register([f"user{number}" for number in range(20)], 100, 60), 60)
        load.register_callee()
        assert good(load.call("call_digest", 50, 40), 40)


def test_sustained_rate_is_the_highest_clean_one() -> None:
    """The search climbs while runs are clean, forgives one that is not, and reports the cheapest clean run."""

    def run(rate: float, calls: int) -> Result:
        lost = 0 if rate < 150 else 1
        return Result(rate, rate, calls, lost, 0, 1e6 / rate)

    effort = Effort(quick=False)
    figures = effort.sustained(run, 100, "things")
    assert figures["things/s"] == 125 and figures["thing CPU us"] == 8000

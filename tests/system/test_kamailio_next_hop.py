"""Kamailio beside a lab: as the proxy that phones register and call through (Path, RFC 3327; RFC 3665 section 3.5), as
what a registered Contact leads to, and as a client that registers and calls by itself.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.processes import end
from p2psipd.lab import Lab
from p2psipd.proto.sip.message import Request, Response

from .phones import Sipp, free_ports
from .sip_capture import SipCapture, sip_capture
from .sip_line import Line, registered
from .waiting import wait_until

pytestmark = pytest.mark.foreign("kamailio", "tshark", "tcpdump")

PROXY, ALICE, PHONES = "127.1.110.50", "127.1.110.51", "127.1.110.52"
ONE, TWO = 4, 5
TABLE = (
    "id(int,auto) l_uuid(string) l_username(string) l_domain(string) r_username(string) r_domain(string) realm(string) "
    "auth_username(string) auth_password(string) auth_ha1(string,null) auth_proxy(string) expires(int) flags(int) "
    "reg_delay(int) contact_addr(string,null) socket(string,null)\n"
)
KAMAILIOS_PHONE = 17050
"""The port of who is called as the user that Kamailio has registered."""


@pytest.fixture(scope="module")
def capture(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipCapture]:
    """All of SIP that the lab speaks during these tests."""
    with sip_capture(tmp_path_factory.mktemp("kamailio") / "all.pcap", shared_lab.files.network) as running:
        yield running


@pytest.fixture(scope="module")
def world(shared_lab: Lab, capture: SipCapture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab, and Kamailio, whose next hop is peer TWO."""
    lab, directory = shared_lab, tmp_path_factory.mktemp("kamailio")
    carol, domain = lab.user("carol"), lab.overlay_name
    (directory / "version").write_text("table_name(string) table_version(int)\nuacreg:5\n")
    values = ["1", f"carol-{KAMAILIOS_PHONE}", "carol", domain, "carol", domain, domain, "carol", carol.password, "",
              f"sip\\:{lab.host(TWO)}\\:5060", "600", "0", "0", "", ""]  # fmt: skip
    (directory / "uacreg").write_text(TABLE + ":".join(values) + "\n")
    config = (Path(__file__).parent / "kamailio" / "proxy.cfg").read_text()
    for name, value in {
        "HOST": PROXY, "NODE": lab.host(TWO), "PHONES": PHONES, "DIR": str(directory), "DOMAIN": domain,
        "USER": "alice", "PASSWORD": lab.user("alice").password,
    }.items():  # fmt: skip
        config = config.replace(f"@{name}@", value)
    (directory / "kamailio.cfg").write_text(config)
    command = ["kamailio", "-DD", "-f", str(directory / "kamailio.cfg"), "-Y", str(directory), "-m", "32", "-M", "8"]
    with (directory / "log").open("wb") as log, subprocess.Popen(
        [*command, "-P", str(directory / "pid")], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:

            def answers() -> bool:
                assert process.poll() is None, (directory / "log").read_text()[-3000:]
                with suppress(OSError), socket.create_connection((PROXY, 5060), timeout=1):
                    return True
                return False

            wait_until(answers, "Kamailio listens", 10)
            yield lab
        finally:
            end(process)
            with line(lab, "carol", PHONES, lab.host(TWO)) as phone:
                phone.register("*", {"Expires": "0"})


def line(lab: Lab, user: str, host: str, server: str, port: int = 5060) -> Line:
    """A phone of one of the people, whose proxy is `server`."""
    return Line(user, lab.overlay_name, lab.user(user).password, host, f"{server}:5060", port)


def converse(caller: Line, callee: Line, invite: Request, incoming: Request) -> None:
    """180, 200, ACK; a re-INVITE of the callee, and its BYE: every message of the dialog arrives."""
    callee.respond(incoming, 180)
    caller.take(180)
    callee.respond(incoming, 200)
    accepted = caller.take(200)
    assert [via.branch for via in accepted.vias] == [invite.vias[0].branch]
    caller.send(caller.within("ACK", accepted))
    assert callee.take_request("ACK").uri_text == callee.contact[1:-1]
    again = callee.within("INVITE", incoming, incoming.body)
    callee.send(again)
    caller.respond(caller.take_request("INVITE"), 200)
    callee.take(200)
    ack = callee.within("ACK", incoming)
    ack.set("CSeq", f"{again.cseq.number} ACK")
    callee.send(ack)
    caller.take_request("ACK")
    callee.send(callee.within("BYE", incoming))
    caller.respond(caller.take_request("BYE"), 200)
    callee.take(200)


def test_rfc3327_registered_and_called_through_kamailio(world: Lab) -> None:
    """Bob's phone registers through Kamailio, whose Path the 200 repeats and every registrar keeps: a call from another
    peer comes to him through Kamailio, and so does all of its dialog.
    """
    with line(world, "bob", PHONES, PROXY) as bob, line(world, "alice", ALICE, world.host(ONE)) as alice:
        bob.register("*", {"Expires": "0"})
        answer = bob.register(headers={"Expires": "600", "Supported": "path"})
        (path,) = answer.get_all("path")
        assert answer.status == 200 and f"@{PROXY}" in path or f":{PROXY}" in path, path
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        assert len(incoming.vias) == 4 and incoming.vias[0].host == PROXY and not incoming.has("route")
        assert incoming.uri_text == bob.contact[1:-1] and incoming.max_forwards == 67
        assert [route.uri.host for route in incoming.record_routes][0] == PROXY
        converse(alice, bob, invite, incoming)
        assert not bob.register("*", {"Expires": "0"}).has("contact")


def test_rfc3665_3_5_caller_behind_kamailio(world: Lab) -> None:
    """Alice's phone calls through Kamailio, as through an ALG: she proves herself to our proxy behind it."""
    bob_line = line(world, "bob", PHONES, world.host(ONE))
    with registered(bob_line) as bob, line(world, "alice", ALICE, PROXY) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        assert len(incoming.vias) == 4 and incoming.body == invite.body
        converse(alice, bob, invite, incoming)


@pytest.mark.foreign("sipp")
def test_rfc3261_16_contact_that_leads_to_kamailio(world: Lab, tmp_path: Path) -> None:
    """Bob's Contact is an address at Kamailio, which forwards to SIPp: ten calls, with Kamailio in the route set."""
    (port,) = free_ports(PHONES)
    # A phone whose Contact is at another private address than its own is taken to be behind a NAT, and called where it
    # is: so this one is where its Contact is.
    with line(world, "bob", PROXY, world.host(TWO), 5070) as bob:
        bob.register("*", {"Expires": "0"})
        assert bob.register(f"<sip:bob-{port}@{PROXY}>", {"Expires": "600"}).status == 200
        with (
            Sipp(tmp_path, "callee", PHONES, port, calls=10) as callee,
            Sipp(
                tmp_path, "caller", ALICE, free_ports(ALICE)[0], f"{world.host(ONE)}:5060", service="bob",
                keys=(("domain", world.overlay_name), ("caller", "alice")), user="alice",
                password=world.user("alice").password, calls=10,
            ) as caller,
        ):  # fmt: skip
            caller.wait()
            callee.wait()
        bob.register("*", {"Expires": "0"})


def test_rfc3261_22_kamailio_registers_and_calls_by_itself(world: Lab) -> None:
    """Kamailio's own user agent answers our 401 and is registered; a call to that user comes to it; and it answers our
    407 for a phone that has no password.
    """

    def bindings() -> list[str]:
        values = world.control(ONE).get("/get", name=world.aor("carol"))["values"]
        return [value["value"] for value in values]

    wait_until(lambda: any(f"carol-{KAMAILIOS_PHONE}@{PROXY}" in each for each in bindings()), "carol is there", 15)
    with (
        Line("carol", world.overlay_name, "", PHONES, f"{PROXY}:5060", KAMAILIOS_PHONE) as carol,
        Line("alice", world.overlay_name, "", ALICE, f"{PROXY}:5060") as alice,
    ):
        invite = alice.invite(carol.aor, {"Subject": "for me"})
        alice.send(invite)
        incoming = carol.take_request("INVITE")
        assert incoming.get("subject") == "for me" and not incoming.has("proxy-authorization")
        carol.respond(incoming, 200)
        accepted = alice.take(200)
        alice.send(alice.within("ACK", accepted))
        carol.take_request("ACK")
        alice.send(alice.within("BYE", accepted))
        carol.respond(carol.take_request("BYE"), 200)
        assert isinstance(alice.take(200), Response)


def test_wireshark_reads_it_all(world: Lab, capture: SipCapture) -> None:
    """No message of the lab to and from Kamailio is malformed to Wireshark, and it has no complaint about one."""
    assert {"REGISTER", "INVITE", "ACK", "BYE", "100", "180", "200", "401", "407"} <= capture.messages()
    assert not capture.faults()

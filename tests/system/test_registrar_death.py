"""Any registrar does for any phone: nonces hold at all of them; when one dies, who has a second flow goes on, and who
has one comes back with the next REGISTER.
"""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from p2psipd.lab import Lab
from p2psipd.proto.sip.digest import Challenge, answer
from p2psipd.proto.sip.message import Request, Response, parse_message

from .phones import Baresip, Sipp, free_ports, outcome, sipp_register, sipsak_unregister, ua
from .sip_line import Line, registered

CALLER, DIES, LIVES = 2, 5, 6
PHONE = "127.1.252.31"
INSTANCE = "<urn:uuid:00000000-0000-4000-8000-000000000031>"


def incoming(phone: Baresip) -> int:
    """How many calls have reached it."""
    return len({event["id"] for event in phone.events if event.get("direction") == "incoming"})


@pytest.mark.foreign("baresip")
@pytest.mark.parametrize("death", ["killed", "silent"])
def test_a_phone_with_two_flows_is_called_at_once(lab: Lab, tmp_path: Path, death: str) -> None:
    """RFC 5626: bob's baresip keeps a flow to each of two peers. One of them dies, and a call that begins then rings
    bob within five seconds, once, over the other flow.
    """
    bob = lab.user("bob")
    first, second = (f"{lab.host(number)}:5060" for number in (DIES, LIVES))
    sipsak_unregister("bob", bob.password, lab.host(LIVES))
    with Baresip(
        tmp_path, "bob", bob.password, lab.overlay_name, PHONE, first, tone=880, answers=True,
        transport="tcp", second_node=second,
    ) as phone:  # fmt: skip
        phone.connect()
        phone.wait_registered()
        deadline = time.monotonic() + 10
        while len(values := lab.control(CALLER).get("/get", name=lab.aor("bob"))["values"]) < 2:
            assert time.monotonic() < deadline, values
            phone.hold(0.1)
        outcome(ua(lab, "call", "alice", CALLER, lab.aor("bob"), "--seconds", "0.5"))
        phone.hold(0.3)
        assert incoming(phone) == 1, f"both flows at work: {phone.events}"
        try:
            (lab.kill if death == "killed" else lab.freeze)(DIES)
            began = time.monotonic()
            call = ua(lab, "call", "alice", CALLER, lab.aor("bob"), "--seconds", "0.5")
            while incoming(phone) == 1 and time.monotonic() < began + 10:
                phone.hold(0.05)
            took = time.monotonic() - began
            outcome(call)
            phone.hold(0.3)
            assert took < 5.0 and incoming(phone) == 2, (took, phone.events)
        finally:
            (lab.start if death == "killed" else lab.thaw)(DIES)


@pytest.mark.foreign("sipp", "sipsak")
def test_a_phone_with_one_flow_is_back_with_its_next_register(lab: Lab, tmp_path: Path) -> None:
    """Carol's phone was registered at a peer that dies: it cannot be called, and nobody waits long to hear so; as soon
    as it has registered at another peer it is called there.
    """
    password, domain = lab.user("carol").password, lab.overlay_name
    sipsak_unregister("carol", password, lab.host(LIVES))
    ports = free_ports(PHONE, 3)

    def register(at: int, port: int) -> None:
        sipp_register(
            tmp_path, "carol", password, domain, PHONE, port, f"{lab.host(at)}:5060",
            contact_port=ports[0], instance=INSTANCE,
        )  # fmt: skip

    register(DIES, ports[1])
    try:
        lab.kill(DIES)
        began = time.monotonic()
        refused = outcome(ua(lab, "call", "alice", CALLER, lab.aor("carol")), fails=True)
        assert refused["status"] in (408, 480) and time.monotonic() - began < 10, refused
        register(LIVES, ports[2])
        keys = (("domain", domain), ("caller", "alice"))
        caller_port = free_ports(PHONE)[0]
        with (
            Sipp(tmp_path, "callee", PHONE, ports[0]) as callee,
            Sipp(
                tmp_path, "caller", PHONE, caller_port, f"{lab.host(CALLER)}:5060", service="carol", keys=keys,
                user="alice", password=lab.user("alice").password,
            ) as caller,
        ):  # fmt: skip
            caller.wait()
            callee.wait()
    finally:
        lab.start(DIES)
    assert sipsak_unregister("carol", password, lab.host(LIVES)).returncode == 0


class BarePhone:
    """REGISTERs of carol, message by message, over UDP."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.password = lab.user("carol").password
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind((PHONE, 0))
        self.socket.settimeout(10)
        self.cseq = 0

    def register(self, at: int, challenge: Challenge | None = None, count: int = 1, name: str = "carol") -> Response:
        """The answer of a peer; with a challenge the REGISTER bears the answer to it, in this name."""
        self.cseq += 1
        domain, port = self.lab.overlay_name, self.socket.getsockname()[1]
        lines = [
            ("Via", f"SIP/2.0/UDP {PHONE}:{port};rport;branch=z9hG4bK{at}-{self.cseq}"),
            ("Max-Forwards", "70"),
            ("From", f"<sip:carol@{domain}>;tag=bare"),
            ("To", f"<sip:carol@{domain}>"),
            ("Call-ID", "bare"),
            ("CSeq", f"{self.cseq} REGISTER"),
        ]
        if challenge is not None:
            value = answer(challenge, name, self.password, "REGISTER", f"sip:{domain}", "c0ffee", count)
            lines.append(("Authorization", value))
        self.socket.sendto(Request("REGISTER", f"sip:{domain}", lines).encode(), (self.lab.host(at), 5060))
        received = parse_message(self.socket.recv(65536))
        assert isinstance(received, Response)
        return received


def test_a_nonce_is_known_at_every_registrar(lab: Lab) -> None:
    """A phone goes on at another registrar with the nonce that it has: its next count passes there, and each once; what
    nobody here made is a challenge like the first.
    """
    phone = BarePhone(lab)
    with phone.socket:
        deadline = time.monotonic() + 10
        first = Challenge.parse(phone.register(1).get("www-authenticate") or "")
        assert phone.register(1, first).status == 200
        for count, peer in enumerate((3, 7), 2):
            # Peers of a lab that was just provisioned look for the epoch's key every three seconds until they have it.
            while (passed := phone.register(peer, first, count)).status != 200 and time.monotonic() < deadline:
                time.sleep(0.2)
                first = Challenge.parse(phone.register(1).get("www-authenticate") or "")
            assert passed.status == 200, passed
            again = phone.register(peer, first, count)
            assert again.status == 401 and Challenge.parse(again.get("www-authenticate") or "").stale
        # Many phones authenticate as user@realm.
        assert phone.register(3, first, 9, f"carol@{lab.overlay_name}").status == 200
        assert phone.register(3, first, 10, "carol@elsewhere.example").status == 401
        made_up = phone.register(3, first._replace(nonce="A" * 48))
        assert made_up.status == 401
        assert not Challenge.parse(made_up.get("www-authenticate") or "").stale


def test_a_node_that_ends_lets_its_calls_end(lab: Lab) -> None:
    """SIGTERM: new calls are 503 with Retry-After, and who calls a phone of this node hears soon that it is not there;
    the call that stands goes on, its BYE passes, and then the node is gone at once.
    """
    domain = lab.overlay_name

    def line(user: str, number: int, host: str) -> Line:
        return Line(user, domain, lab.user(user).password, host, f"{lab.host(number)}:5060")

    with (
        registered(line("bob", LIVES, "127.1.252.32")) as bob,
        line("alice", DIES, "127.1.252.33") as alice,
        line("carol", CALLER, "127.1.252.34") as carol,
    ):
        assert alice.register(headers={"Expires": "600"}).status == 200
        alice.call(bob.aor)
        bob.respond(bob.take_request("INVITE"), 200)
        accepted = alice.take(200)
        alice.send(alice.within("ACK", accepted))
        bob.take_request("ACK")
        pid = lab.pid(DIES)
        try:
            lab.signal(DIES, signal.SIGTERM)
            time.sleep(0.5)
            alice.send(refused := alice.invite(bob.aor))
            answer = alice.take(503)
            assert answer.get("retry-after") is not None and bob.quiet(0.1)
            alice.acknowledge(refused, answer)
            carol.call(alice.aor)
            late = carol.next()
            assert isinstance(late, Response) and late.status in (480, 500), late.encode()
            assert alice.quiet(0.1)
            alice.send(alice.within("BYE", accepted))
            bob.respond(bob.take_request("BYE"), 200)
            alice.take(200)
            began = time.monotonic()
            while lab.pid(DIES) == pid and time.monotonic() < began + 10:
                time.sleep(0.02)
            assert lab.pid(DIES) is None and time.monotonic() - began < 3.0, time.monotonic() - began
        finally:
            lab.kill(DIES)
            lab.start(DIES)
            lab.wait_joined([DIES])

"""What a SIP server meets every day, section by section of RFC 3261: messages lost and repeated, CANCEL too late, TCP
and TLS behind UDP, large requests, IPv6, registrations changed, requests that may go no further. SIPp and baresip are
the phones where they can be, and message by message where it must be exact.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.lab import Lab
from p2psipd.proto.sip.message import Request, Response

from .phones import Baresip, Sipp, free_ports, sipp_register, sipsak_unregister
from .sip_capture import SipCapture, sip_capture
from .sip_line import Line, registered
from .test_sip_foreign import DOMAIN, PASSWORDS, Nodes

ALICE, BOB = "127.1.110.11", "127.1.110.12"
ONE, TWO = 3, 6
INSTANCE = "<urn:uuid:00000000-0000-4000-8000-000000000110>"


@pytest.fixture(scope="module")
def capture(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipCapture]:
    """All of SIP that the lab speaks during these tests."""
    with sip_capture(tmp_path_factory.mktemp("scenarios") / "all.pcap", shared_lab.files.network) as running:
        yield running


@pytest.fixture
def world(lab: Lab, capture: SipCapture) -> Lab:
    """The lab, and what it says is captured."""
    return lab


def line(lab: Lab, user: str, host: str, number: int, port: int = 5060) -> Line:
    """A phone of one of the people, whose proxy is this peer."""
    return Line(user, lab.overlay_name, lab.user(user).password, host, f"{lab.host(number)}:5060", port)


def caller(lab: Lab, directory: Path, *, calls: int = 1, lost: int = 0, service: str = "bob") -> Sipp:
    """SIPp, which calls as alice."""
    return Sipp(
        directory, "caller", ALICE, free_ports(ALICE)[0], f"{lab.host(ONE)}:5060", service=service,
        keys=(("domain", lab.overlay_name), ("caller", "alice")), user="alice", password=lab.user("alice").password,
        calls=calls, lost=lost,
    )  # fmt: skip


def cancel_of(invite: Request) -> Request:
    """RFC 3261 section 9.1: the CANCEL of an INVITE."""
    lines = [(name, invite.get(name) or "") for name in ("via", "max-forwards", "from", "to", "call-id")]
    return Request("CANCEL", invite.uri_text, [*lines, ("cseq", f"{invite.cseq.number} CANCEL")])


# ---- 17: loss and repetition -------------------------------------------------------------------------------


@pytest.mark.foreign("sipp", "sipsak")
def test_rfc3261_17_caller_loses_every_tenth_message(world: Lab, tmp_path: Path) -> None:
    """A SIPp that loses a tenth of what it sends and of what it gets makes its calls all the same."""
    port, register_port = free_ports(BOB, 2)
    password = world.user("bob").password
    sipsak_unregister("bob", password, world.host(TWO))
    sipp_register(
        tmp_path, "bob", password, world.overlay_name, BOB, register_port, f"{world.host(TWO)}:5060",
        contact_port=port,
    )  # fmt: skip
    callee = Sipp(tmp_path, "callee", BOB, port, calls=8, patient=True)
    with callee, caller(world, tmp_path, calls=8, lost=10) as calling:
        calling.wait()
    sipsak_unregister("bob", password, world.host(TWO))


def test_rfc3261_17_1_callee_loses_the_first_of_each(world: Lab) -> None:
    """Bob's phone hears each request the second time only: the proxy repeats INVITE and BYE, his 200 fetches ACK."""
    with registered(line(world, "bob", BOB, TWO)) as bob, line(world, "alice", ALICE, ONE) as alice:
        alice.call(bob.aor)
        lost = bob.take_request("INVITE")
        incoming = bob.next_or_repeated()
        assert isinstance(incoming, Request) and incoming.encode() == lost.encode()
        bob.respond(incoming, 200)
        accepted = alice.take(200)
        alice.send(ack := alice.within("ACK", accepted))
        bob.take_request("ACK")
        bob.send(bob.sent[-1])
        assert alice.next_or_repeated().encode() == accepted.encode()
        alice.send(ack)
        assert isinstance(acknowledged := bob.next_or_repeated(), Request) and acknowledged.method == "ACK"
        alice.send(alice.within("BYE", accepted))
        lost = bob.take_request("BYE")
        assert isinstance(bye := bob.next_or_repeated(), Request) and bye.encode() == lost.encode()
        bob.respond(bye, 200)
        alice.take(200)


def test_rfc3261_17_2_1_repeated_requests(world: Lab) -> None:
    """A repeated INVITE is answered by what was answered last, and forwarded once; so is a repeated BYE. A repeated ACK
    goes through, and the callee's repeated 200 too: both are end to end (13.2.2.4, 13.3.1.4).
    """
    with registered(line(world, "bob", BOB, TWO)) as bob, line(world, "alice", ALICE, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        bob.respond(incoming, 180)
        ringing = alice.take(180)
        alice.send(invite)
        assert alice.quiet() and alice.repeated == 1 and alice.received[-1] is ringing
        assert bob.quiet(0.05) and bob.repeated == 0
        bob.respond(incoming, 200)
        accepted = alice.take(200)
        bob.send(bob.sent[-1])
        assert alice.quiet() and alice.repeated == 2
        alice.send(ack := alice.within("ACK", accepted))
        bob.take_request("ACK")
        alice.send(ack)
        assert isinstance(again := bob.next_or_repeated(), Request) and again.method == "ACK"
        alice.send(bye := alice.within("BYE", accepted))
        bob.respond(bob.take_request("BYE"), 200)
        alice.take(200)
        alice.send(bye)
        assert alice.quiet() and alice.repeated == 3 and bob.quiet(0.05)


# ---- 9: CANCEL ---------------------------------------------------------------------------------------------


def test_rfc3261_9_2_late_cancel(world: Lab) -> None:
    """A CANCEL that comes after the 200 is answered 200 and changes nothing: the phone hears nothing of it."""
    with registered(line(world, "bob", BOB, TWO)) as bob, line(world, "alice", ALICE, ONE) as alice:
        invite = alice.call(bob.aor)
        bob.respond(bob.take_request("INVITE"), 200)
        accepted = alice.take(200)
        alice.send(cancel_of(invite))
        assert alice.take(200).cseq.method == "CANCEL"
        assert bob.quiet()
        alice.send(alice.within("ACK", accepted))
        bob.take_request("ACK")
        alice.send(alice.within("BYE", accepted))
        bob.respond(bob.take_request("BYE"), 200)
        alice.take(200)


def test_rfc3261_9_1_cancel_and_200_cross(world: Lab) -> None:
    """The phone answers while the CANCEL is on its way: the 200 reaches the caller, who ends the call by BYE."""
    with registered(line(world, "bob", BOB, TWO)) as bob, line(world, "alice", ALICE, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        bob.respond(incoming, 180)
        alice.take(180)
        alice.send(cancel_of(invite))
        assert alice.take(200).cseq.method == "CANCEL"
        cancel = bob.take_request("CANCEL")
        bob.respond(incoming, 200)
        bob.respond(cancel, 481)
        accepted = alice.take(200)
        assert accepted.cseq.method == "INVITE"
        alice.send(alice.within("ACK", accepted))
        bob.take_request("ACK")
        alice.send(alice.within("BYE", accepted))
        bob.respond(bob.take_request("BYE"), 200)
        alice.take(200)


# ---- 18: transports ----------------------------------------------------------------------------------------


@pytest.mark.foreign("sipp", "sipsak")
def test_rfc3261_18_udp_caller_tcp_callee(world: Lab, tmp_path: Path) -> None:
    """A phone that registered over TCP is called by one on UDP, and answers, and is hung up on."""
    password = world.user("bob").password
    port, register_port = free_ports(BOB, 2)
    sipsak_unregister("bob", password, world.host(TWO))
    sipp_register(
        tmp_path, "bob", password, world.overlay_name, BOB, register_port, f"{world.host(TWO)}:5060",
        contact_port=port, transport="tcp",
    )  # fmt: skip
    with (
        Sipp(tmp_path, "callee", BOB, port, calls=5, transport="tcp") as callee,
        caller(world, tmp_path, calls=5) as calling,
    ):
        calling.wait()
        callee.wait()
    sipsak_unregister("bob", password, world.host(TWO))


@pytest.mark.foreign("sipp", "sipsak", "baresip")
def test_rfc3261_18_udp_caller_tls_callee(world: Lab, tmp_path: Path) -> None:
    """baresip, registered over TLS, is called by SIPp on UDP."""
    bob = world.user("bob")
    sipsak_unregister("bob", bob.password, world.host(TWO))
    with Baresip(
        tmp_path, "bob", bob.password, world.overlay_name, BOB, f"{world.host(TWO)}:5061", tone=880, transport="tls",
        answers=True, ca_file=Path(world.directory) / "sip.pem",
    ) as phone:  # fmt: skip
        phone.connect()
        phone.wait_registered()
        with caller(world, tmp_path) as calling:
            calling.wait()
        phone.wait_for("CALL_CLOSED")
    sipsak_unregister("bob", bob.password, world.host(TWO))


def test_rfc3261_18_1_1_large_invite_goes_over_tcp(world: Lab) -> None:
    """An INVITE above 1300 octets goes to a phone that registered over UDP by TCP, since that listens there too."""
    with (
        socket.create_server((BOB, 5060)) as listener,
        registered(line(world, "bob", BOB, TWO)) as bob,
        line(world, "alice", ALICE, ONE) as alice,
    ):
        invite = alice.call(bob.aor, {"Subject": "s" * 1200})
        listener.settimeout(5)
        connection, _ = listener.accept()
        with connection:
            incoming = bob.receive_on(connection)
            assert incoming.get("subject") == invite.get("subject") and incoming.vias[0].transport == "TCP"
            bob.respond(incoming, 486, on=connection)
            refused = alice.take(486)
            alice.acknowledge(invite, refused)
            assert bob.receive_on(connection).method == "ACK"
        assert bob.quiet(0.05)


@pytest.fixture(scope="module")
def nodes6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes, of which one is at ::1."""
    running = Nodes(tmp_path_factory.mktemp("nodes6"), "::1", "127.1.110.21")
    yield running
    for statistics in running.stop()["statistics"]:
        assert "fault" not in statistics, statistics


@pytest.mark.foreign("sipp", "sipsak")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_rfc3261_18_over_ipv6(nodes6: Nodes, tmp_path: Path, transport: str) -> None:
    """SIPp at ::1 calls through a node at ::1 over UDP and over TCP, to a phone with an IPv4 address at another node,
    and back.
    """
    six, four = "::1", BOB
    for here, there, name in ((six, four, "bob"), (four, six, "carol")):
        nodes = {six: "[::1]:5060", four: "127.1.110.21:5060"}
        directory = tmp_path / name
        directory.mkdir()
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((six, 0))
            free6 = probe.getsockname()[1]
        ports = {six: [free6, free6 + 1], four: free_ports(four, 2)}
        sipp_register(
            directory, name, PASSWORDS[name], DOMAIN, there, ports[there][1], nodes[there],
            contact_port=ports[there][0], transport=transport,
        )  # fmt: skip
        with (
            Sipp(directory, "callee", there, ports[there][0], calls=3, transport=transport) as callee,
            Sipp(
                directory, "caller", here, ports[here][0], nodes[here], service=name,
                keys=(("domain", DOMAIN), ("caller", "alice")), user="alice", password=PASSWORDS["alice"],
                calls=3, transport=transport,
            ) as calling,
        ):  # fmt: skip
            calling.wait()
            callee.wait()


# ---- 10: registrations -------------------------------------------------------------------------------------


def test_rfc3261_10_contacts(world: Lab) -> None:
    """Two contacts with q and times of their own are fetched elsewhere as they were given; one is removed, then all."""
    with line(world, "carol", BOB, TWO) as carol, line(world, "carol", BOB, ONE, 5070) as elsewhere:
        first, second = "sip:carol@127.1.110.31:5060", "sip:carol@127.1.110.32:5060"
        carol.register("*", {"Expires": "0"})
        carol.register(f"<{first}>;q=0.3;expires=300, <{second}>;q=0.7;expires=120")
        kept = {each.uri_text: each for each in elsewhere.register("").contacts}
        assert {uri: each.q for uri, each in kept.items()} == {first: 0.3, second: 0.7}
        assert 290 < (kept[first].expires or 0) <= 300 and 110 < (kept[second].expires or 0) <= 120, kept
        left = elsewhere.register(f"<{first}>;expires=0").contacts
        assert [each.uri_text for each in left] == [second]
        assert [each.uri_text for each in carol.register("").contacts] == [second]
        assert not carol.register("*", {"Expires": "0"}).has("contact")
        assert not elsewhere.register("").has("contact")


@pytest.mark.parametrize(
    ("contact", "headers", "status", "header"),
    [
        ("<sip:carol@127.1.110.31>;expires=5", {}, 423, ("Min-Expires", "60")),
        ("<sip:carol@127.1.110.31>", {"Expires": "7"}, 423, ("Min-Expires", "60")),
        ("*", {"Expires": "60"}, 400, None),
        ("*, <sip:carol@127.1.110.31>", {"Expires": "0"}, 400, None),
        ("<sip:carol@127.1.110.31>", {"Require": "nothing-we-know"}, 420, ("Unsupported", "nothing-we-know")),
        ("<sip:carol@lab.example>", {}, 403, None),
    ],
    ids=["contact_too_brief", "expires_too_brief", "star_without_0", "star_not_alone", "require", "own_aor"],
)
def test_rfc3261_10_3_refused_registration(
    world: Lab, contact: str, headers: dict[str, str], status: int, header: tuple[str, str] | None
) -> None:
    """A REGISTER that must fail changes nothing, and its answer says what would help."""
    with line(world, "carol", BOB, TWO) as carol:
        answer = carol.register(contact, headers)
        assert answer.status == status and (header is None or answer.get(header[0]) == header[1]), answer.encode()
        assert not carol.register("").has("contact")


def test_rfc3261_10_3_order(world: Lab) -> None:
    """Step 7: a REGISTER of the same Call-ID whose CSeq is lower than that of the binding comes too late."""
    with line(world, "carol", BOB, TWO) as carol:
        call_id = {"Call-ID": "order@127.1.110.12", "Expires": "600"}
        assert carol.register(headers=call_id).status == 200
        assert carol.register(headers={**call_id, "CSeq": "0 REGISTER", "Expires": "0"}).status == 500
        assert carol.register("*", {"Expires": "0"}).status == 200


# ---- 16.3: requests that may go no further -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "status", "says"),
    [
        (b"Max-Forwards: 70", b"Max-Forwards: 0", 483, b""),
        (
            b"Max-Forwards: 70",
            b"Max-Forwards: 70\r\nProxy-Require: privacy, x-none",
            420,
            b"Unsupported: privacy, x-none",
        ),
        (b"INVITE sip:bob@lab.example SIP/2.0", b"INVITE nobody:knows SIP/2.0", 416, b""),
        (b"INVITE sip:bob@lab.example SIP/2.0", b"INVITE sip:bob@lab.example SIP/7.0", 505, b""),
        (b"INVITE sip:bob@lab.example SIP/2.0", b"INVITE sip:bob@other.example SIP/2.0", 407, b"Proxy-Authenticate: "),
    ],
    ids=["483_max_forwards", "420_proxy_require", "416_scheme", "505_version", "407_foreign_domain"],
)
def test_rfc3261_16_3_refused_request(world: Lab, old: bytes, new: bytes, status: int, says: bytes) -> None:
    """Each is answered with its own status, without a password and without anything being looked up."""
    with line(world, "alice", ALICE, ONE) as alice:
        octets = alice.invite(f"sip:bob@{world.overlay_name}").encode()
        assert old in octets
        alice.send_raw(octets.replace(old, new, 1))
        answer = alice.take(status)
        assert answer.to_tag and says in answer.encode()


def test_rfc3261_8_2_7_stateless_challenge(world: Lab) -> None:
    """An INVITE that proves nothing is answered each time it comes, with the same To tag, and by nothing else."""
    with line(world, "alice", ALICE, ONE) as alice:
        invite = alice.invite(world.aor("bob"))
        alice.send(invite)
        first = alice.take(407)
        # No repetition of the 407 by itself (timer G would be due after half a second).
        assert alice.quiet(0.7) and alice.repeated == 0
        alice.send(invite)
        assert alice.take(407).to_tag == first.to_tag
        alice.acknowledge(invite, first)
        assert alice.quiet(0.1)


def test_rfc5393_loop_and_spiral(world: Lab) -> None:
    """Bob's phone sends an INVITE back to alice's proxy: as it came it is a loop, 482; for another user it is a spiral,
    which is no fault: the proxy asks for a password.
    """
    with registered(line(world, "bob", BOB, TWO)) as bob, line(world, "alice", ALICE, ONE) as alice:
        invite = alice.call(bob.aor)
        incoming = bob.take_request("INVITE")
        for target, status in ((bob.aor, 482), (f"sip:carol@{world.overlay_name}", 407)):
            back = incoming.copy()
            back.set_uri(target)
            back.prepend("Via", bob.via())
            bob.send(back, (world.host(ONE), 5060))
            answer = bob.take(status)
            assert len(answer.vias) == 4
        bob.respond(incoming, 486)
        bob.take_request("ACK")
        alice.acknowledge(invite, alice.take(486))


def test_rfc3261_16_4_no_relay(world: Lab) -> None:
    """Nobody reaches the world through us without direct peering: a foreign domain is 404, a Route of one's own 403."""
    with line(world, "alice", ALICE, ONE) as alice:
        for aor, route, status in (
            ("sip:bob@other.example", "", 404),
            ("sip:bob@127.1.110.40:5080", "", 404),
            (f"sip:bob@{world.overlay_name}", "<sip:127.1.110.40:5080;lr>", 403),
        ):
            invite = alice.call(aor, {"Route": route})
            refused = alice.next()
            assert isinstance(refused, Response) and refused.status == status, refused.encode()
            alice.acknowledge(invite, refused)


@pytest.mark.foreign("tshark", "tcpdump")
def test_wireshark_reads_it_all(world: Lab, capture: SipCapture) -> None:
    """Apart from what was sent broken on purpose, no message is malformed to Wireshark, and it complains of none."""
    seen = capture.messages()
    assert {"REGISTER", "INVITE", "ACK", "CANCEL", "BYE", "423", "420", "482", "483", "416", "505"} <= seen
    network = world.files.network
    assert not capture.faults(f"ip.src == {network}.0/24")

"""Direct peering with a domain whose border is Kamailio 5.6: calls both ways, and what each side must refuse.

What Kamailio is known to do otherwise is not asked of it: it takes a Date in the future, and a token's orig, dest and
iat unread; it compares a certificate from its cache with no From, and sees the first name of one only; it keeps
leading zeros of CSeq, reads no compact token, and the RFC 4474 header only where it is the first; a request of its
own users that bears a Date it signs without the Contact; it follows no ENUM rule that leads on; a signature that it
finds bad costs it the TLS connection that it reads next (OpenSSL's queue of errors is one for both).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psipd.proto.identity.sip_date import write_sip_date
from p2psipd.proto.peering.identity import Signing, sign_request
from p2psipd.proto.peering.own_certificates import OwnCertificate
from p2psipd.proto.peering.peers import IdentityKind
from p2psipd.proto.sip.message import Request, Response

from .kamailio_world import NUMBER, KamailioWorld
from .phones import Sipp
from .waiting import wait_until
from .wire_phone import SDP, Phone, edited

pytestmark = pytest.mark.foreign("kamailio", "knotd", "sipp", "unshare")

OLD, NEW = IdentityKind.RFC4474, IdentityKind.RFC8224
CAROL = "sip:carol@k4474.test"
DAVE = "sip:+13125551000@k8224.test;user=phone"
#: Nobody has registered as bob: who is let in gets this.
LET_IN = 480


@pytest.fixture(scope="module")
def world() -> Iterator[KamailioWorld]:
    """Everything of these tests."""
    made = KamailioWorld()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def alice(world: KamailioWorld) -> Iterator[Phone]:
    """Our user."""
    phone = world.phone("alice", 75)
    yield phone
    phone.close()


@pytest.fixture(scope="module")
def carol(world: KamailioWorld) -> Iterator[Phone]:
    """Kamailio's user."""
    phone = world.foreign_phone(CAROL, 76)
    yield phone
    phone.close()


def reply(response: Response) -> tuple[int, str]:
    """What a test looks at."""
    return response.status, response.reason


# ---- our node calls Kamailio -----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["k4474.test", "k8224.test", "k.test"])
def test_peering_096_kamailio_verifies_what_we_send(world: KamailioWorld, alice: Phone, domain: str) -> None:
    """OPTIONS and MESSAGE pass auth_identity, secsipid, and with both Identities, an anonymous caller's among them;
    failing servers are passed over.
    """
    for method, body in (("OPTIONS", b""), ("MESSAGE", b"hello\r\n")):
        request = alice.request(method, f"sip:bob@{domain}", body)
        assert reply(alice.ask(request)) == (200, "Verified")
    unnamed = '"Anonymous" <sip:anonymous@a.test>;tag=1'
    anonymous = alice.request("MESSAGE", f"sip:bob@{domain}", b"hello\r\n", Contact="", From=unnamed)
    assert reply(alice.ask(anonymous)) == (200, "Verified")
    if domain == "k.test":
        # The dead server, then the one that answers 503, and both only once: they are avoided for a while.
        assert world.log().count(f"k.test at {world.host(9)}:5061") == 1
        assert world.kamailio_log().count("busy for") == 1


@pytest.mark.parametrize("target", ["sip:bob@k8224.test", "sip:+442071838750@a.test;user=phone"])
def test_peering_096_a_call_to_kamailio(world: KamailioWorld, alice: Phone, tmp_path: Path, target: str) -> None:
    """INVITE with SDP, ACK and BYE by address with a token, and by number (ENUM) with RFC 4474."""
    with Sipp(tmp_path, "callee", world.host(71), 5060) as callee:
        answered = alice.ask(alice.request("INVITE", target, SDP))
        assert answered.status == 200, answered.encode()
        assert any(world.host(60) in value for value in answered.get_all("record-route"))
        alice.send(alice.within("ACK", answered))
        assert alice.ask(alice.within("BYE", answered)).status == 200
        callee.wait()


def test_peering_096_kamailio_finds_what_is_altered_of_ours(world: KamailioWorld, alice: Phone) -> None:
    """A request of our node, altered in one part on its way, is refused 438; stale it is 403, and again a replay."""
    bob = Phone("sip:bob@k4474.test", world.host(71), (world.host(60), 5060))
    invite = alice.begin(alice.request("INVITE", "sip:bob@k4474.test", SDP))
    try:
        sent = bob.answer("INVITE", 486)
        assert alice.conclude(invite).status == 486
    finally:
        bob.close()
    for name in ("Record-Route", "Via"):
        sent.remove(name)
    sent.set("Via", f"SIP/2.0/TLS {world.host(2)}:5065;branch=z9hG4bK1")
    alterations = [
        (b"From: <sip:alice@", b"From: <sip:mallory@"),
        (b"To: <sip:bob@", b"To: <sip:bert@"),
        (f"Call-ID: {sent.call_id}".encode(), b"Call-ID: other@a.test"),
        (f"CSeq: {sent.cseq.number} ".encode(), b"CSeq: 77 "),
        (f"Date: {sent.get('date')}".encode(), f"Date: {write_sip_date(time.time() - 900)}".encode()),
        (b"Contact: <sip:alice", b"Contact: <sip:mallory"),
        (b"m=audio 40000", b"m=audio 40002"),
    ]
    for edit in alterations:
        assert answered_alone(world, edited(sent, edit))[0] == 438, edit
    stale = (f"Date: {sent.get('date')}".encode(), f"Date: {write_sip_date(time.time() - 7200)}".encode())
    assert answered_alone(world, edited(sent, stale)) == (403, "Stale Date")
    foreign = (b"From: <sip:alice@a.test", b"From: <sip:alice@c.test")
    assert answered_alone(world, edited(sent, foreign)) == (403, "Unsupported Peer")
    assert answered_alone(world, edited(sent)) == (403, "Replayed Request")


def answered_alone(world: KamailioWorld, octets: bytes) -> tuple[int, str]:
    """What Kamailio answers on a connection of its own: a signature that it finds bad costs the connection that it
    reads next.
    """
    wire = world.to_them()
    try:
        return reply(wire.ask(octets))
    finally:
        wire.close()


@pytest.mark.parametrize(
    ("domain", "step"), [("expired.test", "date"), ("unknown.test", "authority"), ("wrong.test", "domain")]
)
def test_peering_044_kamailio_shows_a_certificate_that_will_not_do(
    world: KamailioWorld, alice: Phone, domain: str, step: str
) -> None:
    """Expired, of an unknown authority, of another domain: nothing is sent, the caller gets 502, the log says why."""
    answer = alice.ask(alice.request("MESSAGE", f"sip:bob@{domain}", b"hello\r\n"))
    assert answer.status == 502
    assert re.search(rf"{domain} at .*step {step}", world.log())


def test_peering_044_kamailio_does_not_know_our_certificate(world: KamailioWorld, alice: Phone) -> None:
    """Under TLS 1.3 its refusal comes after the request: 502 as in a handshake, no loop, and log and list have it."""
    answer = alice.ask(alice.request("MESSAGE", "sip:bob@stranger.test", b"hello\r\n"))
    assert reply(answer) == (502, "No Secure Connection")
    said = re.findall(r"step (\S+) it refuses our certificate stranger: alert (\S+)", world.log())
    assert said == [("authority:", "unknown_ca")]
    listed = world.lab.control(2).get("/peering/refusals")
    assert listed["counts"]["refused_by_peer_authority"] == 1
    assert listed["last"][-1]["to"].startswith("stranger.test at ")


def test_peering_088_a_peer_that_does_not_want_us(alice: Phone) -> None:
    """Its 403 Unsupported Peer reaches the caller as it is."""
    answer = alice.ask(alice.request("MESSAGE", "sip:bob@blocked.test", b"hello\r\n"))
    assert reply(answer) == (403, "Unsupported Peer")


# ---- Kamailio calls our node -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [CAROL, DAVE])
def test_peering_096_kamailio_finds_us_by_number(world: KamailioWorld, alice: Phone, carol: Phone, sender: str) -> None:
    """ENUM, NAPTR, SRV, a dead server, one that answers 503, mutual TLS, and its Identity of either kind."""
    domain = sender.partition("@")[2].partition(";")[0]
    request = carol.request("MESSAGE", f"sip:{NUMBER}@{domain};user=phone", b"hi\r\n", From=f"<{sender}>;tag=9")
    carol.send(request)
    got = alice.answer("MESSAGE")
    assert carol.final(request.call_id).status == 200
    if sender == CAROL:
        # The one of the two servers before ours; Kamailio, too, passes it over for a while.
        assert [each.call_id for each in world.refused] == [request.call_id]
    assert got.body == b"hi\r\n" and got.has("identity")
    assert "verstat=TN-Validation-Passed" in (got.get("p-asserted-identity") or "")


@pytest.mark.parametrize("sender", [CAROL, DAVE])
@pytest.mark.parametrize("ends", ["caller", "callee"])
def test_peering_096_a_call_from_kamailio(alice: Phone, carol: Phone, sender: str, ends: str) -> None:
    """INVITE, ACK and BYE from either side; the BYE finds our edge by the domain in Record-Route."""
    to = f"<sip:{NUMBER}@a.test;user=phone>"
    invite = carol.request("INVITE", "sip:alice@a.test", SDP, From=f"<{sender}>;tag=9", To=to)
    carol.send(invite)
    got = alice.answer("INVITE")
    answered = carol.final(invite.call_id)
    assert answered.status == 200
    assert any(".a.test" not in value and "@a.test;lr" in value for value in answered.get_all("record-route"))
    carol.send(carol.within("ACK", answered))
    assert isinstance(ack := alice.receive(), Request) and ack.method == "ACK"
    if ends == "caller":
        carol.send(carol.within("BYE", answered))
        alice.answer("BYE")
        assert carol.final(invite.call_id).status == 200
    else:
        alice.send(alice.within_answered("BYE", got))
        carol.answer("BYE")
        assert alice.final(invite.call_id).status == 200


def signed_by_kamailio(world: KamailioWorld, carol: Phone, sender: str, method: str = "INVITE") -> Request:
    """A request to bob as Kamailio would have sent it to us."""
    to = "<sip:+12125550000@a.test;user=phone>"
    request = carol.request(method, "sip:bob@a.test", SDP, From=f"<{sender}>;tag=9", To=to)
    request.set("Subject", f"sip:{world.host(77)}:5060")
    sink = Phone("sip:sink@a.test", world.host(77), (world.host(60), 5060))
    carol.send(request)
    try:
        taken = sink.answer(method, 486)
        assert carol.final(request.call_id).status == 486
    finally:
        sink.close()
    for name in ("Record-Route", "Via", "Subject"):
        taken.remove(name)
    taken.set("Via", f"SIP/2.0/TLS {world.host(60)}:5061;branch=z9hG4bK1")
    return taken


def test_peering_078_what_kamailio_signed_and_somebody_altered(world: KamailioWorld, carol: Phone) -> None:
    """Each signed part altered is 438; others may change; what is let in once is a replay the next time."""
    sent = signed_by_kamailio(world, carol, CAROL)
    wire = world.to_us()
    alterations = [
        (b"From: <sip:carol@", b"From: <sip:mallory@"),
        (b"To: <sip:+12125550000@", b"To: <sip:+12125550001@"),
        (f"Call-ID: {sent.call_id}".encode(), b"Call-ID: other@k4474.test"),
        (f"CSeq: {sent.cseq.number} ".encode(), b"CSeq: 77 "),
        (f"Date: {sent.get('date')}".encode(), f"Date: {write_sip_date(time.time() - 900)}".encode()),
        (b"Contact: <sip:carol", b"Contact: <sip:mallory"),
        (b"m=audio 40000", b"m=audio 40002"),
    ]
    for edit in alterations:
        assert reply(wire.ask(edited(sent, edit))) == (438, "Invalid Identity Header"), edit
    assert wire.ask(edited(sent, (b"Max-Forwards: ", b"Max-Forwards: 1"))).status == LET_IN
    assert reply(wire.ask(edited(sent))) == (403, "Replayed Request")
    token = signed_by_kamailio(world, carol, DAVE)
    for edit in ((b"From: <sip:+1312", b"From: <sip:+1313"), alterations[1], (b"Identity: ey", b"Identity: eY")):
        assert wire.ask(edited(token, edit)).status in (436, 438), edit
    assert wire.ask(edited(token)).status == LET_IN
    wire.close()


def test_peering_074_kamailio_must_not_relay_through_us(world: KamailioWorld, carol: Phone) -> None:
    """A Route that is left, a Request-URI elsewhere, a To tag without our Route: refused before Identity is read."""
    sent = signed_by_kamailio(world, carol, CAROL)
    wire = world.to_us()
    assert reply(wire.ask(edited(sent, (b"From:", b"Route: <sip:c.test;lr>\r\nFrom:")))) == (403, "Unexpected Route")
    assert reply(wire.ask(edited(sent, (b"INVITE sip:bob@a.test", b"INVITE sip:bob@c.test")))) == (404, "Not Found")
    tagged = (b"To: <sip:+12125550000@a.test;user=phone>", b"To: <sip:bob@a.test>;tag=1")
    assert reply(wire.ask(edited(sent, tagged))) == (403, "Unexpected Route")
    assert wire.ask(edited(sent)).status == LET_IN
    wire.close()


def test_peering_083_kamailio_speaks_for_others(carol: Phone) -> None:
    """A From that its TLS certificate does not name: 403; one that only its signing certificate lacks: 437."""
    foreign = carol.request("MESSAGE", "sip:bob@a.test", b"x", From="<sip:eve@victim.test>;tag=9")
    assert reply(carol.ask(foreign)) == (403, "Unsupported Peer")
    unsigned = carol.request("MESSAGE", "sip:bob@a.test", b"x", From="<sip:eve@stranger.test>;tag=9")
    assert carol.ask(unsigned).status == 437


@pytest.mark.parametrize(
    ("shown", "listener", "step"), [("expired", 3, "date"), ("unknown", 4, "authority"), ("none", 5, "form")]
)
def test_peering_067_kamailio_calls_with_a_certificate_that_will_not_do(
    world: KamailioWorld, carol: Phone, shown: str, listener: int, step: str
) -> None:
    """Expired, of an unknown authority, none: no request of it is read, and the refusal is on the list."""
    request = carol.request("MESSAGE", "sip:bob@a.test", b"x", Organization=shown)
    request.set("Subject", f"sip:{world.host(listener)}:5065;transport=tls")
    assert carol.ask(request).status >= 400
    refused = [each for each in world.refusals() if each["method"] == "TLS"]
    assert refused and refused[-1]["step"] == step, world.refusals()[-3:]


def test_peering_088_unsupported_peer_and_nothing_else(world: KamailioWorld, carol: Phone) -> None:
    """A domain with a good certificate that no rule accepts: exactly this line; its ACK gets no answer at all."""
    wire = world.to_us("c")
    request = carol.request("MESSAGE", "sip:bob@a.test", b"x", From="<sip:eve@c.test>;tag=9")
    assert wire.ask(request).encode().startswith(b"SIP/2.0 403 Unsupported Peer\r\n")
    wire.send(carol.request("ACK", "sip:bob@a.test", From="<sip:eve@c.test>;tag=9"))
    assert wire.ask(carol.request("OPTIONS", "sip:a.test", From="<sip:eve@c.test>;tag=9")).cseq.method == "OPTIONS"
    wire.close()


def signed_by_hand(
    world: KamailioWorld, carol: Phone, kind: IdentityKind, *, url: str = "", ago: float = 0.0, **headers: str
) -> Request:
    """A request of k.test that is right in everything that is not named."""
    page = f"http://k.test:8066/{'k.cer' if kind is OLD else 'k.pem'}"

    def where(own: OwnCertificate, domain: str, kind: IdentityKind) -> str:
        return url or page

    request = carol.request("MESSAGE", "sip:bob@a.test", b"x", From="<sip:carol@k.test>;tag=9", **headers)
    sign_request(request, Signing((kind,), full_form=True), world.their_own, where, time.time() - ago)
    return request


@pytest.mark.parametrize("kind", [OLD, NEW])
def test_peering_080_dates_of_a_peer(world: KamailioWorld, carol: Phone, kind: IdentityKind) -> None:
    """Stale and future ones are refused by name, a good one is let in."""
    wire = world.to_us()
    for ago in (4000.0, -4000.0):
        assert reply(wire.ask(signed_by_hand(world, carol, kind, ago=ago))) == (403, "Stale Date"), ago
    assert wire.ask(signed_by_hand(world, carol, kind)).status == LET_IN
    wire.close()


@pytest.mark.parametrize("kind", [OLD, NEW])
def test_peering_077_urls_of_a_peer(world: KamailioWorld, carol: Phone, kind: IdentityKind) -> None:
    """Nobody there, no such page, a private address, and a server that never ends: 436, in bounded time."""
    wire = world.to_us()
    urls = ["http://k.test:8067/k.cer", "http://k.test:8066/none", "http://private.k.test/k.cer"]
    if kind is OLD:
        urls.append("http://k.test:8066/slow")
    for url in urls:
        began = time.monotonic()
        assert wire.ask(signed_by_hand(world, carol, kind, url=url)).status == 436, url
        assert time.monotonic() - began < 4.0, url
    wire.close()


def test_peering_076_identity_of_a_peer_is_required(world: KamailioWorld, carol: Phone) -> None:
    """Without Identity 428, without Identity-Info 436."""
    wire = world.to_us()
    bare = carol.request("MESSAGE", "sip:bob@a.test", b"x", From="<sip:carol@k.test>;tag=9")
    assert reply(wire.ask(bare)) == (428, "Use Identity Header")
    lacking = signed_by_hand(world, carol, OLD)
    lacking.remove("Identity-Info")
    assert wire.ask(lacking).status == 436
    wire.close()


def test_peering_nothing_went_wrong_inside(world: KamailioWorld) -> None:
    """After all this neither node of ours has met an error that it did not foresee."""
    for number in world.lab.peers:
        assert "Traceback" not in world.log(number)
    wait_until(lambda: world.lab.peer_state(2).state == "joined", "the edge lives")

"""The registrar as phones see it: GRUUs that follow their instance, refreshes that cost no write, guessers."""

from __future__ import annotations

import pytest

from p2psipd.proto.sip.headers import unquote
from p2psipd.proto.sip.message import Request, Response

from .sip_world import Node, Phone, World

INSTANCES = ("<urn:uuid:00000000-0000-4000-8000-000000000001>", "<urn:uuid:00000000-0000-4000-8000-000000000002>")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def nodes(world: World) -> tuple[Node, Node]:
    return Node(world, 1, "10.0.0.1"), Node(world, 2, "10.0.0.2")


def register(phone: Phone, instance: str, reg_id: int = 0) -> Response:
    flow = f";reg-id={reg_id}" if reg_id else ""
    return phone.register(
        f'<{phone.contact}>;+sip.instance="{instance}"{flow}', headers=[("Supported", "gruu, outbound, path")]
    )


def gruu_of(phone: Phone, response: Response) -> str:
    """The public GRUU that the registrar gave this phone."""
    (mine,) = [contact for contact in response.contacts if contact.uri_text == phone.contact]
    return unquote(mine.params.get("pub-gruu") or "")


def rings(caller: Phone, gruu: str, callee: Phone, others: tuple[Phone, ...]) -> Request:
    """A MESSAGE to `gruu` as `callee` gets it; nobody else hears anything."""
    request = caller.request("MESSAGE", gruu, body=b"hello")
    caller.send(request)
    caller.send(caller.answer_challenge(request, caller.take_response(407)))
    got = callee.take_request("MESSAGE")
    callee.respond(got, 200)
    caller.take_response(200)
    assert all(other.quiet() for other in others)
    return got


def test_a_gruu_reaches_its_instance_wherever_it_is_registered(world: World, nodes: tuple[Node, Node]) -> None:
    """RFC 5627: of bob's two devices the GRUU of one reaches that one alone, at whichever node it is registered now,
    from whichever node it is called, with the device's own Contact as Request-URI.
    """
    here, there = nodes
    alice = Phone(world, "alice", ("10.1.0.1", 5070), here)
    desk = Phone(world, "bob", ("10.1.0.2", 5070), here)
    mobile = Phone(world, "bob", ("10.2.0.2", 5070), there)
    gruus = [gruu_of(phone, register(phone, each)) for phone, each in zip((desk, mobile), INSTANCES, strict=True)]
    assert gruus[0] != gruus[1]
    assert rings(alice, gruus[0], desk, (mobile,)).uri_text == desk.contact
    assert rings(alice, gruus[1], mobile, (desk,)).uri_text == mobile.contact
    world.pass_time(1.0)
    mobile.node = here
    assert gruu_of(mobile, register(mobile, INSTANCES[1])) == gruus[1]
    rings(alice, gruus[1], mobile, (desk,))
    alice.node = there
    rings(alice, gruus[1], mobile, (desk,))


def test_a_gruu_of_a_device_that_is_off(world: World, nodes: tuple[Node, Node]) -> None:
    """RFC 5627 section 6.1: 480 while the instance is not registered; no other device rings. 404 for a made-up one."""
    alice = Phone(world, "alice", ("10.1.0.1", 5070), nodes[0])
    desk = Phone(world, "bob", ("10.1.0.2", 5070), nodes[0])
    mobile = Phone(world, "bob", ("10.2.0.2", 5070), nodes[1])
    register(desk, INSTANCES[0])
    gruu = gruu_of(mobile, register(mobile, INSTANCES[1]))
    mobile.register("*", expires=0)
    register(desk, INSTANCES[0])
    for uri, status in ((gruu, 480), (f"{desk.aor};gr=made-up", 404)):
        refused = alice.ask(alice.request("MESSAGE", uri))
        assert isinstance(refused, Response) and refused.status == status
    assert desk.quiet() and mobile.quiet()


def test_a_refresh_writes_nothing(world: World, nodes: tuple[Node, Node]) -> None:
    """A phone that registers again every minute for ten is stored about every five minutes, and can be called all the
    time from another node; when it stops it is gone after its ten minutes.
    """
    alice = Phone(world, "alice", ("10.1.0.1", 5070), nodes[1])
    bob = Phone(world, "bob", ("10.1.0.2", 5070), nodes[0])
    for _ in range(21):
        assert bob.register(expires=600).contacts[0].expires == 600
        rings(alice, bob.aor, bob, ())
        world.pass_time(60.0, step=0.5)
    assert 4 <= len(world.location.log) <= 6
    world.pass_time(545.0, step=0.5)
    refused = alice.ask(alice.request("MESSAGE", bob.aor))
    assert isinstance(refused, Response) and refused.status in (404, 480) and bob.quiet()


def test_a_guesser_and_a_phone_elsewhere(world: World, nodes: tuple[Node, Node]) -> None:
    """Somebody tries bob's passwords: after some he is slowed and even the right one is refused unseen, while bob's
    phone at another address registers.
    """
    guesser = Phone(world, "bob", ("10.9.0.9", 5070), nodes[0])
    bob = Phone(world, "bob", ("10.1.0.2", 5070), nodes[0])
    for number in range(6):
        guesser.password = f"guess {number}"
        assert guesser.register().status == 401
    asked = len(world.credentials.asked)
    guesser.password = "builder"
    assert guesser.register().status == 401 and len(world.credentials.asked) == asked
    counters = nodes[0].service.statistics()
    assert (counters["digest_wrong"], counters["digest_slowed"]) == (5, 2)
    assert bob.register().status == 200
    world.pass_time(60.0, step=1.0)
    assert guesser.register().status == 200

"""Dialogs: what they take from the messages that make them, and what they write into requests."""

from __future__ import annotations

import pytest

from p2psipd.proto.sip.dialog import Dialog
from p2psipd.proto.sip.errors import MalformedMessage
from p2psipd.proto.sip.message import Request, make_response

VIA = ("Via", "SIP/2.0/UDP 127.0.0.9:5060;branch=z9hG4bK1")


def invite(*more: tuple[str, str]) -> Request:
    """Alice's INVITE to bob as it reaches bob."""
    return Request(
        "INVITE",
        "sip:bob@127.0.0.2",
        [
            VIA,
            ("From", "<sip:alice@x.example>;tag=a"),
            ("To", "<sip:bob@x.example>"),
            ("Call-ID", "id"),
            ("CSeq", "7 INVITE"),
            ("Contact", "<sip:alice@127.0.0.1:5070>"),
            *more,
        ],
    )


ROUTED = (("Record-Route", "<sip:p2.example;lr>"), ("Record-Route", "<sip:p1.example;lr>"))


def both() -> tuple[Dialog, Dialog]:
    """The dialog of the caller and of the callee, through two proxies."""
    request = invite(*ROUTED)
    response = make_response(request, 200, None, "b", [("Contact", "<sip:bob@127.0.0.2:5080>")])
    return Dialog.of_caller(request, response), Dialog.of_callee(request, "b")


def test_route_sets_are_each_others_reverse() -> None:
    """Record-Route is taken in order by the callee and in reverse by the caller (RFC 3261 section 12.1)."""
    caller, callee = both()
    assert [str(route.uri) for route in caller.routes] == ["sip:p1.example;lr", "sip:p2.example;lr"]
    assert [str(route.uri) for route in callee.routes] == ["sip:p2.example;lr", "sip:p1.example;lr"]
    assert str(caller.next_hop) == "sip:p1.example;lr"


def test_requests_of_one_match_the_other() -> None:
    """A request that one side makes belongs to the dialog of the other, with its CSeq one higher."""
    caller, callee = both()
    bye = caller.request("BYE")
    assert callee.matches(bye, from_remote=True)
    assert (bye.cseq.number, bye.uri_text) == (8, "sip:bob@127.0.0.2:5080")
    assert [str(route.uri) for route in bye.routes] == ["sip:p1.example;lr", "sip:p2.example;lr"]
    assert caller.matches(callee.request("BYE"), from_remote=True)
    assert not callee.matches(callee.request("BYE"), from_remote=True)


def test_ack_has_the_number_of_its_invite() -> None:
    """The ACK for a 2xx repeats the INVITE's CSeq number and moves none (RFC 3261 section 13.2.2.4)."""
    caller, _ = both()
    assert caller.ack(7).cseq.number == 7
    assert caller.request("BYE").cseq.number == 8


def test_old_numbers_are_out_of_order() -> None:
    """A CSeq that is not higher than the last is refused, an ACK is always in order (RFC 3261 section
    12.2.2)."""
    caller, callee = both()
    bye = caller.request("BYE")
    assert callee.accept(bye)
    assert not callee.accept(bye)
    assert callee.accept(caller.ack(7))


def test_a_strict_router_gets_itself_in_the_request_uri() -> None:
    """Without lr the first route is the Request-URI and the target the last Route (RFC 3261 section
    12.2.1.1)."""
    dialog = Dialog.of_callee(
        invite(("Record-Route", "<sip:old.example>"), ("Record-Route", "<sip:p1.example;lr>")), "b"
    )
    bye = dialog.request("BYE")
    assert bye.uri_text == "sip:old.example"
    assert [str(route.uri) for route in bye.routes] == ["sip:p1.example;lr", "sip:alice@127.0.0.1:5070"]


def test_target_refresh() -> None:
    """A re-INVITE's Contact is where the next request goes; without one the target stays."""
    _, callee = both()
    moved = invite()
    moved.set("Contact", "<sip:alice@127.0.0.7:5070>")
    callee.refresh_target(moved)
    moved.remove("Contact")
    callee.refresh_target(moved)
    assert callee.request("BYE").uri_text == "sip:alice@127.0.0.7:5070"


def test_no_dialog_without_a_contact() -> None:
    """A dialog needs a remote target: a missing Contact is a malformed message."""
    request = invite()
    request.remove("Contact")
    with pytest.raises(MalformedMessage):
        Dialog.of_callee(request, "b")

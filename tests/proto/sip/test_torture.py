"""The messages of RFC 4475 and RFC 5118, each with the outcome that its RFC asks of a parser."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from p2psipd.proto.sip.errors import MalformedMessage, SipError
from p2psipd.proto.sip.flow import Flow
from p2psipd.proto.sip.message import Request, Response, make_response, parse_message
from p2psipd.proto.sip.stream import StreamParser
from p2psipd.proto.sip.transaction import (
    Limits,
    MessageReceived,
    MessageRejected,
    RequestReceived,
    SendMessage,
    SendRequest,
    SendResponse,
    Timers,
    TransactionLayer,
)
from p2psipd.proto.sip.uri import OpaqueUri, SipUri

VECTORS = Path(__file__).parents[2] / "vectors" / "sip"
ACCEPT = 0
DROP = -1

# Outcome at the parser: ACCEPT, the status of the answer, or DROP (a response, or nothing to answer to).  Where the RFC
# leaves a choice ("may be lenient") the strict one is taken; what only a proxy, registrar or UAS can judge (416, 420,
# 415, 406, 483, 501, 401) is accepted here.
RFC4475 = {
    "wsinv": ("3.1.1.1", ACCEPT), "intmeth": ("3.1.1.2", ACCEPT), "esc01": ("3.1.1.3", ACCEPT),
    "escnull": ("3.1.1.4", ACCEPT), "esc02": ("3.1.1.5", ACCEPT), "lwsdisp": ("3.1.1.6", ACCEPT),
    "longreq": ("3.1.1.7", ACCEPT), "dblreq": ("3.1.1.8", ACCEPT), "semiuri": ("3.1.1.9", ACCEPT),
    "transports": ("3.1.1.10", ACCEPT), "mpart01": ("3.1.1.11", ACCEPT), "unreason": ("3.1.1.12", ACCEPT),
    "noreason": ("3.1.1.13", ACCEPT),
    "badinv01": ("3.1.2.1", 400), "clerr": ("3.1.2.2", 400), "ncl": ("3.1.2.3", 400), "scalar02": ("3.1.2.4", 400),
    "scalarlg": ("3.1.2.5", DROP), "quotbal": ("3.1.2.6", 400), "ltgtruri": ("3.1.2.7", 400),
    "lwsruri": ("3.1.2.8", 400), "lwsstart": ("3.1.2.9", 400), "trws": ("3.1.2.10", 400), "escruri": ("3.1.2.11", 400),
    "baddate": ("3.1.2.12", ACCEPT), "regbadct": ("3.1.2.13", 400), "badaspec": ("3.1.2.14", 400),
    "baddn": ("3.1.2.15", 400), "badvers": ("3.1.2.16", 505), "mismatch01": ("3.1.2.17", 400),
    "mismatch02": ("3.1.2.18", 501), "bigcode": ("3.1.2.19", DROP),
    "badbranch": ("3.2.1", ACCEPT), "insuf": ("3.3.1", 400), "unkscm": ("3.3.2", ACCEPT), "novelsc": ("3.3.3", ACCEPT),
    "unksm2": ("3.3.4", ACCEPT), "bext01": ("3.3.5", ACCEPT), "invut": ("3.3.6", ACCEPT), "regaut01": ("3.3.7", ACCEPT),
    "multi01": ("3.3.8", 400), "mcl01": ("3.3.9", 400), "bcast": ("3.3.10", ACCEPT), "zeromf": ("3.3.11", ACCEPT),
    "cparam01": ("3.3.12", ACCEPT), "cparam02": ("3.3.13", ACCEPT), "regescrt": ("3.3.14", ACCEPT),
    "sdp01": ("3.3.15", ACCEPT), "inv2543": ("3.4.1", ACCEPT),
}
RFC5118 = {
    "ipv6-good": ("4.1", ACCEPT), "ipv6-bad": ("4.2", 400), "port-ambiguous": ("4.3", ACCEPT),
    "port-unambiguous": ("4.4", ACCEPT), "via-received-param-with-delim": ("4.5", ACCEPT),
    "via-received-param-no-delim": ("4.5", ACCEPT), "ipv6-in-sdp": ("4.6", ACCEPT),
    "mult-ip-in-header": ("4.7", ACCEPT), "mult-ip-in-sdp": ("4.8", ACCEPT), "ipv4-mapped-ipv6": ("4.9", ACCEPT),
    "ipv6-bug-abnf-3-colons": ("4.10", ACCEPT), "ipv6-correct-abnf-2-colons": ("4.10", ACCEPT),
}
CASES = [pytest.param("rfc4475", name, outcome, id=f"rfc4475-{section}-{name}")
         for name, (section, outcome) in RFC4475.items()]
CASES += [pytest.param("rfc5118", name, outcome, id=f"rfc5118-{section}-{name}")
          for name, (section, outcome) in RFC5118.items()]
UDP = Flow("UDP", ("192.0.2.77", 5060), ("192.0.2.1", 5060))


class Zeros:
    """Randomness without surprises."""

    def getrandbits(self, k: int, /) -> int:
        return 1


def data_of(name: str, rfc: str = "rfc4475") -> bytes:
    return (VECTORS / rfc / f"{name}.dat").read_bytes()


def checked(name: str, rfc: str = "rfc4475") -> Request | Response:
    message = parse_message(data_of(name, rfc))
    message.check()
    return message


def request(name: str, rfc: str = "rfc4475") -> Request:
    message = checked(name, rfc)
    assert isinstance(message, Request)
    return message


def sip(uri: object) -> SipUri:
    assert isinstance(uri, SipUri)
    return uri


def outcome_of(data: bytes) -> int:
    try:
        message = parse_message(data)
        message.check()
    except SipError as error:
        return error.status if error.request is not None else DROP
    return ACCEPT


def test_every_message_has_an_outcome() -> None:
    """The table names each message of both RFCs, and no other."""
    for rfc, table, count in (("rfc4475", RFC4475, 49), ("rfc5118", RFC5118, 12)):
        assert {path.stem for path in (VECTORS / rfc).glob("*.dat")} == set(table)
        assert len(table) == count


@pytest.mark.parametrize(("rfc", "name", "outcome"), CASES)
def test_outcome(rfc: str, name: str, outcome: int) -> None:
    """A valid message is accepted, an invalid request answered with the RFC's code, an invalid response dropped."""
    assert outcome_of(data_of(name, rfc)) == outcome


@pytest.mark.parametrize(("rfc", "name", "outcome"), [case for case in CASES if case.values[2] == ACCEPT])
def test_forwarded_unchanged(rfc: str, name: str, outcome: int) -> None:
    """An accepted message that nobody edits leaves as it came: headers, folding, order and body."""
    data = data_of(name, rfc)
    message = parse_message(data)
    message.check()
    head, _, body = data.partition(b"\r\n\r\n")
    encoded = message.encode()
    if message.has("content-length") and b"Content-Length: " not in encoded[len(head):]:
        assert encoded == head + b"\r\n\r\n" + body[: len(message.body)]
    else:
        assert encoded == head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(("rfc", "name", "outcome"), [case for case in CASES if case.values[2] in (400, 501)])
def test_answered_by_the_layer(rfc: str, name: str, outcome: int) -> None:
    """The refusal can be formed and sent: it has the request's Via and parses again."""
    layer = TransactionLayer(Zeros())
    try:
        outputs = layer.receive(MessageReceived(UDP, parse_message(data_of(name, rfc))), 0.0)
    except SipError:
        return  # refused before the transaction layer; the transport answers
    sent, rejected = outputs
    assert isinstance(sent, SendMessage) and isinstance(rejected, MessageRejected)
    answer = parse_message(sent.data)
    assert isinstance(answer, Response) and answer.status == outcome and answer.has("via")


def test_baddn_display_name() -> None:
    """4475 3.1.2.15: it is the display name that is refused, not only the missing empty line of the archive's copy."""
    with pytest.raises(MalformedMessage, match="bad address"):
        parse_message(data_of("baddn") + b"\r\n").check()


def test_wsinv_values() -> None:
    """4475 3.1.1.1: folding, compact forms and odd white space are read through."""
    message = request("wsinv")
    assert message.get("subject") == "" and message.max_forwards == 68 and message.cseq == (9, "INVITE")
    assert message.to_tag == "1918181833n" and message.from_.display == 'J Rosenberg \\"'
    assert [via.branch for via in message.vias] == ["390skdjuw", "z9hG4bK9ikj8", "z9hG4bK30239"]
    assert [via.transport for via in message.vias] == ["UDP", "TCP", "UDP"]
    assert message.get("NewFangledHeader") == "newfangled value continued newfangled value"
    assert message.contacts[0].params.get("secondparam") == "" and message.contacts[0].q == 0.33
    assert sip(message.routes[0].uri).lr


def test_intmeth_values() -> None:
    """4475 3.1.1.2: every token character in the method, and a display name with escaped control characters."""
    message = request("intmeth")
    assert message.cseq.method == message.method
    assert message.to.display == 'BEL:\x07 NUL:\x00 DEL:\x7f'
    assert message.from_.display == "token1~` token2'+_ token3*%!.-"
    assert message.from_tag == "_token~1'+`*%!-."
    assert sip(message.uri).user == "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"


def test_esc01_values() -> None:
    """4475 3.1.1.3: the escaped user part is one user whose name contains a URI."""
    message = request("esc01")
    assert sip(message.uri).unescaped_user == "sips:user@example.com"
    assert sip(message.to.uri).user == "%75se%72" and sip(message.to.uri).aor == "user@example.com"
    assert message.to.uri == SipUri.parse("sip:user@example.com")
    assert sip(message.from_.uri).aor == "I have spaces@example.net"


def test_escnull_values() -> None:
    """4475 3.1.1.4: escaped NULs neither end a name nor make two names one."""
    message = request("escnull")
    first, second = (sip(contact.uri) for contact in message.contacts)
    assert sip(message.to.uri).unescaped_user == "null-\0-null"
    assert (first.unescaped_user, second.unescaped_user) == ("\0", "\0\0") and first != second


def test_esc02_values() -> None:
    """4475 3.1.1.5: a percent sign in a token is no escape: this is not REGISTER, and there are two Contacts."""
    message = request("esc02")
    assert message.method == "RE%47IST%45R" and message.to.display == "%Z%45" and len(message.contacts) == 2


def test_dblreq_body() -> None:
    """4475 3.1.1.8: octets beyond Content-Length are no part of the message."""
    message = request("dblreq")
    assert message.method == "REGISTER" and message.body == b"" and b"INVITE" not in message.encode()


def test_semiuri_values() -> None:
    """4475 3.1.1.9: the semicolon belongs to the user part."""
    uri = sip(request("semiuri").uri)
    assert uri.user == "user;par=u%40example.net" and not uri.params and uri.host == "example.com"


def test_mpart01_body() -> None:
    """4475 3.1.1.11: a binary body is kept octet by octet."""
    message = request("mpart01")
    assert data_of("mpart01").endswith(message.body) and b"\x82" in message.body


def test_reasons() -> None:
    """4475 3.1.1.12 and 3.1.1.13: a UTF-8 reason and an empty one."""
    long, none = checked("unreason"), checked("noreason")
    assert isinstance(long, Response) and "девяносто девять" in long.reason
    assert isinstance(none, Response) and none.reason == "" and none.encode().startswith(b"SIP/2.0 100 \r\n")


def test_badbranch_is_rfc2543() -> None:
    """4475 3.2.1: a branch that is only the cookie does not identify a transaction."""
    layer = TransactionLayer(Zeros())
    message, other = request("badbranch"), request("badbranch")
    other.set("Call-ID", "another")
    for received in (message, other):
        outputs = layer.receive(MessageReceived(UDP, received), 0.0)
        assert isinstance(outputs[-1], RequestReceived)
    assert layer.open_count == 2


def test_unknown_schemes() -> None:
    """4475 3.3.2 to 3.3.4: URIs of other schemes are kept, for a proxy to forward or answer 416."""
    assert isinstance(request("unkscm").uri, OpaqueUri) and request("novelsc").uri.scheme == "soap.beep"
    assert request("unksm2").to.uri.scheme == "isbn" and request("unksm2").contacts[0].uri.scheme == "name"


def test_bext01_values() -> None:
    """4475 3.3.5: the option tags are readable, for the proxy's 420."""
    message = request("bext01")
    assert message.require == ("nothingsupportsthis", "nothingsupportsthiseither")
    assert message.proxy_require == ("noproxiessupportthis", "nordoanyproxiessupportthis")


def test_bcast_is_stray() -> None:
    """4475 3.3.10: a 200 whose sent-by is not ours is dropped."""
    message = checked("bcast")
    assert TransactionLayer(Zeros()).receive(MessageReceived(UDP, message), 0.0) == []


def test_contact_parameters() -> None:
    """4475 3.3.12 and 3.3.13: a parameter inside <> is the URI's, one outside is the header's."""
    outside, inside = request("cparam01").contacts[0], request("cparam02").contacts[0]
    assert "unknownparam" in outside.params and not sip(outside.uri).params
    assert "unknownparam" in sip(inside.uri).params and not inside.params


def test_regescrt_contact() -> None:
    """4475 3.3.14: the escaped Route header of a Contact survives."""
    contact = request("regescrt").contacts[0]
    assert sip(contact.uri).headers == "Route=%3Csip:sip.example.com%3E" and "Route=%3C" in str(contact)


def test_inv2543_values() -> None:
    """4475 3.4.1: without branch and From tag the message is still a request, and its parts are None."""
    message = request("inv2543")
    assert message.top_via.branch is None and message.from_tag is None and message.max_forwards is None


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [("port-ambiguous", "2001:db8::10:5070", None), ("port-unambiguous", "2001:db8::10", 5070),
     ("ipv6-bug-abnf-3-colons", "2001:db8::192.0.2.1", None),
     ("ipv6-correct-abnf-2-colons", "2001:db8::192.0.2.1", None)],
)
def test_ipv6_hosts(name: str, host: str, port: int | None) -> None:
    """5118 4.3, 4.4 and 4.10: the port is outside the brackets, and an extra colon is tolerated."""
    uri = sip(request(name, "rfc5118").uri)
    assert (uri.host, uri.port) == (host, port)


@pytest.mark.parametrize("name", ["via-received-param-with-delim", "via-received-param-no-delim"])
def test_ipv6_received(name: str) -> None:
    """5118 4.5: received is read with and without brackets."""
    via = request(name, "rfc5118").top_via
    assert via.received == "2001:db8::9:255" and via.host == "2001:db8::9:1"


def test_ipv6_mixed_vias() -> None:
    """5118 4.7: IPv4 and IPv6 stand side by side in the Via stack."""
    vias = request("mult-ip-in-header", "rfc5118").vias
    assert [via.sent_by for via in vias] == [("2001:db8::9:1", 6050), ("192.0.2.1", 5060), ("2001:db8::9:255", 5060)]


FRAGMENTS = [
    b"\r\n", b" ", b"\t", b";", b",", b"<", b">", b'"', b"\\", b":", b"=", b"%", b"\0", b"\xff", b"@", b"?", b"Via: ",
    b"z9hG4bK", b"0", b"99999999999", b"*", b"[", b"]", b"\r", b"\n",
]


def mutated(source: random.Random, seeds: list[bytes]) -> bytes:
    """A torture message with a few pieces inserted, dropped, or taken from another one."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.choice((1, 1, 2, 3, 8))):
        at, kind = source.randrange(len(data) + 1), source.random()
        if kind < 0.4:
            data[at:at] = source.choice(FRAGMENTS) * source.choice((1, 1, 2, 50))
        elif kind < 0.6:
            del data[at : at + source.randrange(1, 20)]
        elif kind < 0.8:
            data[at : at + 1] = bytes([source.randrange(256)])
        else:
            other = source.choice(seeds)
            begin = source.randrange(len(other))
            data[at:at] = other[begin : begin + source.randrange(1, 80)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_torture_messages(seed: int) -> None:
    """Whatever 2,000 damaged messages hold, only SipError is raised, and all that we send ourselves is well formed."""
    source = random.Random(seed)
    seeds = [path.read_bytes() for path in sorted(VECTORS.glob("*/*.dat"))]
    layer = TransactionLayer(source, Timers(), Limits(100, 100))
    for number in range(2000):
        data, now, sent = mutated(source, seeds), number * 0.1, list[SendMessage]()
        try:
            for output in layer.receive(MessageReceived(UDP, parse_message(data)), now):
                sent += [output] if isinstance(output, SendMessage) else []
                if isinstance(output, RequestReceived) and output.transaction is not None:
                    answer = make_response(output.request, source.choice((100, 180, 200, 404)), to_tag="t")
                    onward = layer.receive(SendResponse(output.transaction, answer), now)
                    if output.request.method != "ACK":
                        onward += layer.receive(SendRequest(UDP, output.request, number), now)
                    sent += [item for item in onward if isinstance(item, SendMessage)]
        except SipError as error:
            if error.request is not None:
                parse_message(make_response(error.request, error.status, error.reason, "t").encode())
        for item in sent:
            message = parse_message(item.data)
            if not item.data.startswith((b"SIP/2.0 400", b"SIP/2.0 501")):
                message.check()
        sent += [item for item in layer.handle_timer(now) if isinstance(item, SendMessage)]
        with contextlib.suppress(SipError):
            parser = StreamParser()
            for piece in (data[:50], data[50:], b""):
                parser.feed(piece)

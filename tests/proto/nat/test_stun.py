"""STUN Binding requests on a SIP port."""

from __future__ import annotations

from binascii import unhexlify

import pytest

from p2psipd.proto.nat.stun import binding_response

#: The transaction of RFC 5769's samples.
TRANSACTION = unhexlify("b7e7a701bc34d686fa87dfae")
HEADER = unhexlify("000100002112a442") + TRANSACTION


def test_ipv4_answer_is_that_of_rfc_5769() -> None:
    """RFC 5769 2.2: XOR-MAPPED-ADDRESS of 192.0.2.1 port 32853 in the sample response."""
    answer = binding_response(HEADER, ("192.0.2.1", 32853))
    assert answer == unhexlify("0101000c2112a442") + TRANSACTION + unhexlify("002000080001a147e112a643")


def test_ipv6_answer_is_that_of_rfc_5769() -> None:
    """RFC 5769 2.3: XOR-MAPPED-ADDRESS of 2001:db8:1234:5678:11:2233:4455:6677 port 32853."""
    answer = binding_response(HEADER, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))
    assert answer is not None
    assert answer[20:] == unhexlify("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")


def test_attributes_that_must_be_understood() -> None:
    """RFC 8489 6.3.1: an unknown comprehension-required attribute gets 420 naming it; an optional one is ignored."""
    required = HEADER[:2] + b"\0\4" + HEADER[4:] + unhexlify("00030000")
    answer = binding_response(required, ("192.0.2.1", 1))
    assert answer is not None and answer[:2] == b"\1\x11"
    assert unhexlify("000a00020003") in answer and b"\0\0\4\x14Unknown Attribute" in answer
    assert len(answer) == 20 + int.from_bytes(answer[2:4], "big")
    optional = HEADER[:2] + b"\0\10" + HEADER[4:] + unhexlify("8022000461626300")
    assert (binding_response(optional, ("192.0.2.1", 1)) or b"")[:2] == b"\1\1"


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        HEADER[:19],
        HEADER + b"\0",
        b"\0\x11" + HEADER[2:],
        b"\1\1" + HEADER[2:],
        HEADER[:4] + b"\0\0\0\0" + HEADER[8:],
        HEADER[:2] + b"\0\4" + HEADER[4:] + unhexlify("80220008"),
    ],
    ids=["empty", "short", "longer", "indication", "response", "no cookie", "overrun"],
)
def test_everything_else_is_not_answered(datagram: bytes) -> None:
    """What is no Binding request of RFC 8489 gets no answer."""
    assert binding_response(datagram, ("192.0.2.1", 1)) is None

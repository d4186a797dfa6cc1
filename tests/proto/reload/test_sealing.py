"""Whole messages signed and opened (RFC 6940 section 6.3.4), with the simulator's signatures."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import NodeCertificate, Role, role_name
from p2psipd.proto.identity.signing import NullCredential, NullTrust, NullVerifier, null_certificate
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import NodeId, overlay_hash
from p2psipd.proto.reload.messages import MessageCode
from p2psipd.proto.reload.sealing import Opener, Sealer
from p2psipd.proto.reload.wire import ForwardingHeader, MessageContents, NodeDestination, decode_header

OVERLAY = "overlay.example"
HASH = overlay_hash(OVERLAY)
OWN, OTHER = (
    null_certificate(bytes([n]) * 16, role_name(Role.PEER, bytes([n]) * 16, OVERLAY), OVERLAY) for n in (1, 2)
)
HEADER = ForwardingHeader(HASH, 1, 20, 0, True, 7, 0, (), (NodeDestination(NodeId(bytes([9]) * 16)),))
MESSAGE = Sealer(NullCredential(OWN), HASH).seal(HEADER, MessageCode.PING_REQ, b"a body", (OTHER.der,))
OFFSET = decode_header(MESSAGE)[1]


def opener() -> Opener:
    """One that has seen no message."""
    return Opener(NullTrust(OVERLAY), NullVerifier(), HASH)


KNOWING = opener()
KNOWING.open(7, MESSAGE, OFFSET, 1.0)


def opened(by: Opener, data: bytes) -> tuple[MessageContents, NodeCertificate, Mapping[bytes, bytes]] | str:
    """What it finds in a message, or how it refuses it."""
    try:
        return by.open(7, data, OFFSET, 1.0)
    except ReloadError as error:
        return f"{type(error).__name__}: {error}"


def test_contents_signer_and_certificates() -> None:
    """The first message of a signer and the next ones are read alike."""
    expected = (MessageContents(MessageCode.PING_REQ, b"a body"), OWN, {OWN.hash: OWN.der, OTHER.hash: OTHER.der})
    assert opened(opener(), MESSAGE) == expected
    assert opened(KNOWING, MESSAGE) == expected


@given(st.integers(OFFSET, len(MESSAGE)), st.integers(0, 60), st.binary(max_size=60))
def test_known_certificates_change_no_verdict(at: int, cut: int, put: bytes) -> None:
    """Whatever the octets, to know the certificates makes no difference to what is found or why it is refused."""
    data = MESSAGE[:at] + put + MESSAGE[at + cut :]
    assert opened(KNOWING, data) == opened(opener(), data)


@given(st.integers(0, 0xFFFF), st.binary(max_size=40), st.binary(max_size=8))
def test_known_certificates_change_no_verdict_on_contents(code: int, body: bytes, extensions: bytes) -> None:
    """The same for any code, body and extensions."""
    contents = code.to_bytes(2, "big") + len(body).to_bytes(4, "big") + body
    contents += len(extensions).to_bytes(4, "big") + extensions
    data = MESSAGE[:OFFSET] + contents + MESSAGE[OFFSET + 16 :]
    assert opened(KNOWING, data) == opened(opener(), data)

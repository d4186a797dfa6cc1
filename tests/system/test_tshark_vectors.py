"""An independent decoder, Wireshark's, reads the golden vectors from a capture of a plain TCP connection."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from p2psipd.proto.reload.errors import ErrorCode, error_name
from p2psipd.proto.reload.framing import FramedLink
from p2psipd.proto.reload.messages import (
    DataModel,
    ErrorResponse,
    FetchAns,
    MessageCode,
    StoreReq,
    decode_body,
    is_request,
)
from p2psipd.proto.reload.wire import decode_contents, decode_header
from tests.vectors.reload_vectors import MESSAGE_NAMES, load

pytestmark = [
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark not installed"),
    pytest.mark.foreign("tshark"),
]

ARRAY_KIND = 0xF0000005
KINDS = {1: DataModel.DICTIONARY, 2: DataModel.SINGLE, ARRAY_KIND: DataModel.ARRAY}
FRAGMENTS = ("fragment_1", "fragment_2")

# What the decoder (4.0, and its later versions as far as their source tells) gets wrong; nothing else may differ.
# By vector: the text of its expert error, and why it is none of ours.
KNOWN_ERRORS = {
    # SignerIdentityType none(3) is in the RFC (6.3.4), for values that a storing peer synthesizes (7.4.2.2).
    "fetch_ans": "Unknown identity type",
}
# By vector: what it calls the message, and why.
KNOWN_NAMES = {
    # It does not know Error_Invalid_Message, 0x14 of the registry (14.9).
    "error_invalid_message": "Error Response Unknown",
}
# Faults that show in fields which are not compared here: it calls version 0x0a unknown, reads an ICE candidate's
# priority from the candidate's first octets, does not name forwarding option 1 (exp-forward), and takes bit 0 of an
# ACK's bitmap for the frame before (we take bit 1; framing.py says why).

FIELDS = (
    "frame.protocols",
    "_ws.col.Info",
    "_ws.malformed",
    "_ws.expert.message",
    "_ws.expert.severity",
    "reload_framing.type",
    "reload_framing.ack_sequence",
    "reload_framing.received",
    "reload.forwarding.trans_id",
    "reload.forwarding.overlay",
    "reload.forwarding.ttl",
    "reload.forwarding.fragment.offset",
    "reload.message.code",
    "reload.error_response.code",
    "reload.kinddata.kind",
    "reload.storeddata.lifetime",
    "reload.message_extension.type",
    "reload.forwarding.option.type",
    "reload.opaque.data",
)
WARNING = 0x00600000  # _ws.expert.severity: chat and note lie below


class Packet(NamedTuple):
    """One packet as the decoder reports it: the values of each field."""

    values: dict[str, list[str]]

    def one(self, field: str) -> str:
        """The only value of a field."""
        (value,) = self.values[field]
        return value

    def numbers(self, field: str) -> list[int]:
        """A field's values as integers."""
        return [int(value, 0) for value in self.values[field]]


class Capture:
    """A TCP connection between two hosts, written as a pcap file packet by packet."""

    CLIENT = (bytes((192, 0, 2, 1)), 40000)
    SERVER = (bytes((192, 0, 2, 2)), 6084)

    def __init__(self) -> None:
        self._sequence = {self.CLIENT: 1000, self.SERVER: 5000}
        self._octets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)]
        self._packet(self.CLIENT, self.SERVER, 0x02, b"")
        self._packet(self.SERVER, self.CLIENT, 0x12, b"")
        self._packet(self.CLIENT, self.SERVER, 0x10, b"")

    def send(self, from_client: bool, payload: bytes) -> None:
        """One segment of data."""
        ends = (self.CLIENT, self.SERVER) if from_client else (self.SERVER, self.CLIENT)
        self._packet(*ends, 0x18, payload)

    def _packet(self, source: tuple[bytes, int], to: tuple[bytes, int], flags: int, payload: bytes) -> None:
        acknowledged = self._sequence[to] if flags & 0x10 else 0
        ports = struct.pack(">HHII", source[1], to[1], self._sequence[source], acknowledged)
        tcp = ports + struct.pack(">BBHHH", 0x50, flags, 65535, 0, 0) + payload
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + source[0] + to[0]
        frame = bytes.fromhex("020000000002 020000000001 0800") + ip + tcp
        number = len(self._octets)
        self._octets.append(struct.pack("<IIII", 1767225600, 1000 * number, len(frame), len(frame)) + frame)
        self._sequence[source] += len(payload) + (flags & 0x02 == 0x02)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_bytes(b"".join(self._octets))


def order(name: str) -> tuple[int, int, int]:
    """Requests stand before their answers, fragments in their order."""
    header, offset = decode_header(load(name))
    code = 0 if name in FRAGMENTS else decode_contents(load(name), offset)[0].code
    return header.transaction_id, code, header.fragment_offset


def goes_to_server(name: str) -> bool:
    """Requests come from the client, answers and errors from the server."""
    return not (name.endswith("_ans") or name.startswith("error_"))


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Packet], list[Packet], list[Packet]]:
    """The packet of each vector, the acknowledgements, and all packets, as the decoder sees them."""
    names = sorted([name for name in MESSAGE_NAMES if name != "whole"] + list(FRAGMENTS), key=order)
    capture, links = Capture(), {True: FramedLink(), False: FramedLink()}
    for name in names:
        to_server = goes_to_server(name)
        frame = links[to_server].send(load(name), 0.0)
        capture.send(to_server, frame)
        messages, ack = links[not to_server].receive(frame, 0.0)
        assert messages == [load(name)]
        capture.send(not to_server, ack)
    path = tmp_path_factory.mktemp("tshark") / "vectors.pcap"
    capture.write(path)
    command = ["tshark", "-r", str(path), "-o", "reload.topology_plugin:KADEMLIA"]
    command += ["-o", f'uat:reload_kindids:"{ARRAY_KIND}","PRIVATE-ARRAY","ARRAY"']
    command += ["-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]
    for field in FIELDS:
        command += ["-e", field]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    packets = [
        Packet({
            field: column.split("|") if column else []
            for field, column in zip(FIELDS, line.split("\t"), strict=True)
        })
        for line in result.stdout.splitlines()
    ]  # fmt: skip
    data = packets[3:]
    assert len(data) == 2 * len(names)
    return dict(zip(names, data[::2], strict=True)), data[1::2], packets


Decoded = tuple[dict[str, Packet], list[Packet], list[Packet]]


def method(name: str) -> str:
    """The decoder's name of a vector's message."""
    contents, _, _ = decode_contents(load(name), decode_header(load(name))[1])
    if contents.code == MessageCode.ERROR:
        body = decode_body(contents.code, contents.body)
        assert isinstance(body, ErrorResponse)
        return f"Error Response {error_name(body.error_code)}"
    word = MessageCode(contents.code).name.rpartition("_")[0].title().replace("_", "")
    return f"{word} {'Request' if is_request(contents.code) else 'Response'}"


@pytest.mark.parametrize("name", [name for name in MESSAGE_NAMES if name != "whole"])
def test_every_message_is_decoded(decoded: Decoded, name: str) -> None:
    """Each vector is decoded to its last octet, with the right method, numbers, kinds and signature."""
    packet = decoded[0][name]
    header, offset = decode_header(load(name))
    contents, _, block = decode_contents(load(name), offset)
    assert packet.one("frame.protocols").startswith("eth:ethertype:ip:tcp:reload-framing:reload")
    assert packet.one("_ws.col.Info").strip() == KNOWN_NAMES.get(name, method(name))
    assert packet.numbers("reload.forwarding.trans_id") == [header.transaction_id]
    assert packet.numbers("reload.forwarding.overlay") == [header.overlay]
    assert packet.numbers("reload.forwarding.ttl") == [header.ttl]
    assert packet.numbers("reload.forwarding.option.type") == [option.type for option in header.options]
    assert packet.numbers("reload.message.code") == [contents.code]
    assert packet.numbers("reload.message_extension.type") == [item.type for item in contents.extensions]
    # The signature ends the message, so finding it means that all before it was understood.
    assert packet.values["reload.opaque.data"][-2:] == [
        block.signature.identity.certificate_hash.hex(),
        block.signature.value.hex(),
    ]
    body = decode_body(contents.code, contents.body, KINDS)
    if isinstance(body, StoreReq | FetchAns):
        assert packet.numbers("reload.kinddata.kind") == [item.kind for item in body.kinds]
        lifetimes = [value.lifetime for item in body.kinds for value in item.values]
        assert packet.numbers("reload.storeddata.lifetime") == lifetimes
    if isinstance(body, ErrorResponse):
        assert packet.numbers("reload.error_response.code") == [body.error_code]


def test_nothing_is_malformed_and_no_fault_is_new(decoded: Decoded) -> None:
    """No packet is malformed, and there is no expert warning or error but the decoder's known faults."""
    by_name, _, packets = decoded
    assert not any(packet.values["_ws.malformed"] for packet in packets)
    found = {
        name: "|".join(packet.values["_ws.expert.message"])
        for name, packet in by_name.items()
        if any(severity >= WARNING for severity in packet.numbers("_ws.expert.severity"))
    }
    assert found == KNOWN_ERRORS
    known = [by_name[name] for name in KNOWN_ERRORS]
    for packet in packets:
        if packet not in known:
            assert all(severity < WARNING for severity in packet.numbers("_ws.expert.severity"))


def test_every_acknowledgement_is_decoded(decoded: Decoded) -> None:
    """Each DATA frame's ACK is decoded with its sequence number and the bitmap of those before it."""
    by_name, acks, _ = decoded
    counts = {True: 0, False: 0}
    for name, ack in zip(by_name, acks, strict=True):
        number = counts[goes_to_server(name)]
        counts[goes_to_server(name)] += 1
        assert ack.numbers("reload_framing.type") == [129]
        assert ack.numbers("reload_framing.ack_sequence") == [number]
        assert ack.numbers("reload_framing.received") == [((1 << min(number, 31)) - 1) << 1]


def test_fragments_are_joined(decoded: Decoded) -> None:
    """The decoder joins the two fragments to the Ping that they were cut from."""
    first, second = (decoded[0][name] for name in FRAGMENTS)
    assert first.numbers("reload.forwarding.fragment.offset") == [0]
    assert first.values["reload.message.code"] == []
    whole = load("whole")
    header, offset = decode_header(load("fragment_2"))
    assert second.numbers("reload.forwarding.fragment.offset") == [header.fragment_offset]
    assert second.numbers("reload.message.code") == [MessageCode.PING_REQ]
    block = decode_contents(whole, offset)[2]
    assert second.values["reload.opaque.data"][-1] == block.signature.value.hex()


def test_the_known_faults_are_still_there() -> None:
    """The lists above name vectors that exist, and the only error they excuse by name is Invalid_Message."""
    assert set(KNOWN_ERRORS) | set(KNOWN_NAMES) <= set(MESSAGE_NAMES)
    assert f"error_{ErrorCode.INVALID_MESSAGE.name.lower()}" in KNOWN_NAMES

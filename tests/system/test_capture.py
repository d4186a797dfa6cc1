"""What peers say to each other, captured and decoded by Wireshark: every message of a lab's life."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from p2psipd.lab import Lab
from p2psipd.net.user_agent import UserAgent
from p2psipd.overlay_files import OverlayFiles, load_credential
from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.reload.framing import AckFrame, DataFrame
from p2psipd.proto.reload.ids import resource_id
from p2psipd.proto.reload.kinds import (
    CERTIFICATE_BY_USER,
    DIGEST_CREDENTIAL,
    DIGEST_KEY,
    PROXY_REGISTRATION,
    SIP_REGISTRATION,
)
from p2psipd.proto.reload.messages import (
    ArrayEntry,
    DataModel,
    DataValue,
    DictionaryEntry,
    FetchAns,
    MessageCode,
    StoreReq,
    decode_body,
)
from p2psipd.proto.reload.peer_io import StoreValue
from p2psipd.proto.reload.sip_usage import SipRegistrationUri, digest_key_resource
from p2psipd.proto.reload.storage_messages import StoredDataSpecifier
from p2psipd.proto.reload.wire import decode_contents, decode_header
from p2psipd.services.overlay_factory import client_session

from .capture import WARNING, Capture, Reading, Stream, capturing, messages, missing
from .conftest import end_lab, make_lab
from .waiting import spin, wait_until

pytestmark = pytest.mark.foreign("tshark", "tcpdump")

KEYLOG = "P2PSIPD_KEYLOG"

#: Texts of expert warnings and errors that are the decoder's own fault (Wireshark 4.0, and later ones as far as their
#: source tells), and why.  `test_tshark_vectors.py` lists its faults that it does not report as such.
KNOWN_FAULTS = {
    "Unknown identity type": "SignerIdentityType none(3) is in RFC 6940 (6.3.4), for values not there (7.4.2.2)",
    "Computed length > max_field length": "it reads the keys of a StoredDataSpecifier (7.4.2.1) from the Kind-ID on",
}
#: What TCP does on a busy machine, and RELOAD has no part in.
OF_TCP = {"D-SACK Sequence"}

OWN_KINDS = (PROXY_REGISTRATION, DIGEST_CREDENTIAL, DIGEST_KEY)

FIELDS = (
    "_ws.malformed",
    "_ws.expert.message",
    "_ws.expert.severity",
    "reload_framing.type",
    "reload.forwarding.trans_id",
    "reload.message.code",
    "reload.kinddata.kind",
    "reload.storeddata.lifetime",
    "reload.arrayentry.index",
    "reload.opaque.data",
)


class Recorded(NamedTuple):
    """The same traffic by Wireshark's reading and by our own, and the data models of the overlay's kinds."""

    reading: Reading
    streams: list[Stream]
    models: dict[int, DataModel]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """The life of a lab of three peers, from the first join to the last leave."""
    directory = tmp_path_factory.mktemp("capture")
    file, keys = directory / "lab.pcap", directory / "keys"
    lab = make_lab(3, users=("alice", "bob"))
    try:
        with pytest.MonkeyPatch.context() as patch, capturing(file, lab.files.network):
            patch.setenv(KEYLOG, str(keys))
            live(lab)
        kinds = OverlayFiles.open(lab.directory).configuration.kinds.values()
        capture = Capture(file, keys, [(kind.id, kind.name, kind.data_model) for kind in kinds])
        yield Recorded(capture.read(FIELDS), capture.streams(), {kind.id: kind.data_model for kind in kinds})
    finally:
        end_lab(lab)


def live(lab: Lab) -> None:
    """Join, store, fetch, attach for SIP, ask all that can be asked, change the configuration, leave."""
    lab.up(30)
    lab.provision()
    spin(send_a_text(lab))
    spin(use_as_client(lab))
    control = lab.control(1)
    third = lab.control(3).get("/status")["node_id"]
    control.get("/ping", node=third)
    control.get("/probe", node=third)
    # One of them is not responsible, and asks the way.
    for number in (1, 2):
        assert lab.control(number).get("/trace", name=lab.aor("bob"))["answered_by"]
    files = OverlayFiles.open(lab.directory)
    sequence = files.update(files.configuration).sequence
    shutil.copy(lab.directory / "overlay.xml", lab.peer_directory(2) / "overlay.xml")
    lab.control(2).post("/reload")
    wait_until(
        lambda: all(lab.control(number).get("/status")["configuration"] == sequence for number in lab.peers),
        "every peer has the new configuration",
    )
    for number in reversed(lab.peers):
        lab.leave(number)


async def send_a_text(lab: Lab) -> None:
    """Alice's text reaches bob: his binding is fetched, and her peer attaches to his."""
    alice, bob = (
        UserAgent(reactor, lab.aor(name), lab.user(name).password, server=(lab.host(number), 5060))
        for name, number in (("alice", 1), ("bob", 3))
    )
    arrived: Deferred[str] = Deferred()
    bob.on_message = lambda sender, text: arrived.callback(text)
    try:
        await alice.register()
        await bob.register()
        assert await alice.message(lab.aor("bob"), "hello") == 200
        assert await arrived == "hello"
        await bob.unregister()
    finally:
        await alice.stop()
        await bob.stop()


async def use_as_client(lab: Lab) -> None:
    """Values of the two models that a lab's own life does not show, and the requests that nothing else makes."""
    files = OverlayFiles.open(lab.directory)
    me = lab.directory / "carol"
    files.issue(Role.USER, "carol", me)
    credential = load_credential(me / "node.pem", me / "node.key")
    aor, der = credential.certificate.user, credential.certificate.der
    async with client_session(reactor, files.configuration, credential) as overlay:
        await overlay.store(aor, CERTIFICATE_BY_USER, [StoreValue(der, 3600)])
        binding = SipRegistrationUri(f"sip:{aor}").encode()
        await overlay.store(aor, SIP_REGISTRATION, [StoreValue(binding, 3600, credential.certificate.node_id)])
        kinds = [SIP_REGISTRATION, CERTIFICATE_BY_USER]
        fetched = await overlay.fetch(aor, kinds, fresh=True)
        assert {value.value for value in fetched.values} == {binding, der}
        await overlay.stat(aor, kinds)
        await overlay.find(resource_id(aor), kinds)
        # A key that is not there: the answer holds a value that says so.
        keys = StoredDataSpecifier(DIGEST_KEY, keys=(bytes(20),))
        await overlay.fetch(digest_key_resource(lab.overlay_name), [keys], fresh=True)


def test_everything_was_captured(recorded: Recorded) -> None:
    """In both directions of every connection frames are numbered and acknowledged without a gap, and whole."""
    assert recorded.streams
    for stream in recorded.streams:
        assert stream.frames
        assert stream.left_over == 0
        numbers = [frame.sequence for frame in stream.frames if isinstance(frame, DataFrame)]
        assert numbers == list(range(len(numbers)))
        acknowledged = [frame.sequence for frame in stream.frames if isinstance(frame, AckFrame)]
        assert acknowledged == list(range(len(acknowledged)))


def test_every_message_is_decoded(recorded: Recorded) -> None:
    """Wireshark finds each frame and message that we find, and reads each one up to the signature at its end."""
    frames = [frame for stream in recorded.streams for frame in stream.frames]
    reading = recorded.reading
    types = reading.numbers("reload_framing.type")
    assert types.count(128) == sum(1 for frame in frames if isinstance(frame, DataFrame))
    assert types.count(129) == sum(1 for frame in frames if isinstance(frame, AckFrame))
    expected, signatures = [], []
    for message in messages(recorded.streams):
        header, offset = decode_header(message)
        contents, _, block = decode_contents(message, offset)
        expected.append((header.transaction_id, contents.code))
        signatures.append(block.signature.value.hex())
    found = list(
        zip(reading.numbers("reload.forwarding.trans_id"), reading.numbers("reload.message.code"), strict=True)
    )
    assert sorted(found) == sorted(expected)
    assert not missing(signatures, reading.all("reload.opaque.data"))


def test_every_method_is_seen(recorded: Recorded) -> None:
    """Each request and answer of RFC 6940 (section 14.8) is among the messages."""
    seen = set(recorded.reading.numbers("reload.message.code"))
    assert set(MessageCode) - {MessageCode.ERROR} <= seen


def test_stored_values_are_decoded(recorded: Recorded) -> None:
    """Every stored value has its kind and lifetime, array elements have their index, our own kinds their octets."""
    reading = recorded.reading
    stored = []
    for message in messages(recorded.streams):
        contents, _, _ = decode_contents(message, decode_header(message)[1])
        if contents.code in (MessageCode.STORE_REQ, MessageCode.FETCH_ANS):
            body = decode_body(contents.code, contents.body, recorded.models)
            assert isinstance(body, StoreReq | FetchAns)
            stored += [(data.kind, value.lifetime, value.value) for data in body.kinds for value in data.values]
    assert {recorded.models[kind] for kind, _, _ in stored} == set(DataModel)
    assert {kind for kind, _, _ in stored} <= set(reading.numbers("reload.kinddata.kind"))
    assert not missing((lifetime for _, lifetime, _ in stored), reading.numbers("reload.storeddata.lifetime"))
    indices = [value.index for _, _, value in stored if isinstance(value, ArrayEntry)]
    assert not missing(indices, reading.numbers("reload.arrayentry.index"))
    octets = [plain(value) for kind, _, value in stored if kind in OWN_KINDS]
    assert not missing((value.hex() for value in octets if value), reading.all("reload.opaque.data"))


def plain(value: DataValue | ArrayEntry | DictionaryEntry) -> bytes:
    """A stored value's own octets."""
    return value.value if isinstance(value, DataValue) else value.value.value


def test_nothing_is_malformed_and_no_fault_is_new(recorded: Recorded) -> None:
    """No packet is malformed, and there is no expert warning or error but the decoder's known faults."""
    reading = recorded.reading
    assert not reading.all("_ws.malformed")
    pairs = zip(reading.all("_ws.expert.message"), reading.numbers("_ws.expert.severity"), strict=True)
    assert {text for text, severity in pairs if severity >= WARNING} - OF_TCP == set(KNOWN_FAULTS)

"""What peers tell each other of the members: bounded messages, and claims that harm nobody."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from p2psipd.proto.identity.signing import NULL_SIGNATURE, null_certificate
from p2psipd.proto.reload.ids import NodeId, resource_id
from p2psipd.proto.reload.kademlia import Kademlia
from p2psipd.proto.reload.member_list import KademliaParameters, _fingerprint
from p2psipd.proto.reload.membership import (
    RANGES,
    Delta,
    MemberDigest,
    MemberEntry,
    MemberState,
    MemberSummary,
    PageRequest,
    Pushed,
    RecordSummary,
    Unlink,
    decode_update,
)
from p2psipd.proto.reload.messages import UpdateAns, UpdateReq
from tests.proto.reload.by_hand import HASH, Hand
from tests.proto.reload.stapled import OVERLAY, Node, World


@pytest.fixture
def lone() -> Node:
    """A peer that is the whole overlay."""
    return World(seed=4).add(first=True)


def plug_in(node: Node) -> Kademlia:
    topology = node.peer.topology
    assert isinstance(topology, Kademlia)
    return topology


def entry_of(
    node: bytes, incarnation: int = 1, addresses: int = 1, state: MemberState = MemberState.READY
) -> tuple[MemberEntry, bytes]:
    """A member's entry as the simulator signs it, and its certificate."""
    certificate = null_certificate(node, f"{node.hex()}@peer.{OVERLAY}", OVERLAY)
    where = tuple((f"2001:db8::{n + 1:x}", 6084) for n in range(addresses))
    signature = b"\x04\x03" + NULL_SIGNATURE
    return MemberEntry(NodeId(node), state, incarnation, where, certificate.hash, signature), certificate.der


def crowd(count: int) -> list[tuple[MemberEntry, bytes]]:
    rng = random.Random(count)
    return [entry_of(rng.randbytes(16), 5, addresses=8) for _ in range(count)]


def updates(hand: Hand) -> list[object]:
    return [decode_update(heard.body.data) for heard in hand.requests(UpdateReq)]


def test_summaries_of_a_large_overlay_fit_in_messages(lone: Node) -> None:
    """Where all ranges differ the members are summarised in several Updates, each range once."""
    plug_in(lone).preload(crowd(2500))
    hand = Hand(lone)
    hand.heard.clear()
    hand.ask(UpdateReq(MemberDigest(((0, 0),) * RANGES).encode()))
    summaries = [update for update in updates(hand) if isinstance(update, MemberSummary)]
    assert len(summaries) >= 2
    assert sum(one.ranges for one in summaries) == (1 << RANGES) - 1
    assert sum(len(one.members) - 1 for one in summaries) == 2500
    assert all(len(heard.data) <= 65_000 for heard in hand.heard)


def test_pages_of_a_large_overlay_fit_in_messages(lone: Node) -> None:
    """All members with eight addresses each come in Updates of bounded size, certificates once a link."""
    plug_in(lone).preload(crowd(1000))
    hand = Hand(lone)
    for _ in range(2):
        hand.heard.clear()
        hand.ask(UpdateReq(PageRequest(hand.node_id, 0).encode()))
        entries = [e for update in updates(hand) if isinstance(update, Delta) for e in update.entries]
        assert len({entry.node for entry in entries}) == 1001
        assert all(len(heard.data) <= 65_000 for heard in hand.heard)
    assert sum(len(heard.data) for heard in hand.heard) < 1000 * 400


@pytest.mark.parametrize("incarnation", [2**64 - 1, 2**63])
def test_nobody_drives_our_incarnation_away(lone: Node, incarnation: int) -> None:
    """A suspicion, a summary or an entry of us with an absurd incarnation changes nothing."""
    hand = Hand(lone)
    before = plug_in(lone).own_entry
    own = lone.peer.node_id
    for update in (
        Delta((), ((own, incarnation),)),
        MemberSummary(0, False, ((own, incarnation, 0),)),
        Delta((entry_of(own, incarnation)[0],)),
    ):
        assert isinstance(hand.ask(UpdateReq(update.encode())), UpdateAns)
    assert plug_in(lone).own_entry == before


def test_a_suspicion_of_us_is_refuted(lone: Node) -> None:
    """Whoever doubts us hears our entry again with a higher incarnation."""
    hand = Hand(lone)
    own = plug_in(lone).own_entry
    hand.ask(UpdateReq(Delta((), ((own.node, own.incarnation),)).encode()))
    said = [e for update in updates(hand) if isinstance(update, Delta) for e in update.entries]
    assert said[-1].incarnation == own.incarnation + 1
    hand.heard.clear()
    hand.ask(UpdateReq(Delta((), ((own.node, own.incarnation),)).encode()))
    assert not updates(hand)


@pytest.mark.parametrize("fault", ["signature", "role", "node", "certificate"])
def test_an_entry_that_its_subject_did_not_sign_is_refused(lone: Node, fault: str) -> None:
    """A wrong signature, a user's certificate, another's certificate or none: no member, and it is reported."""
    hand = Hand(lone)
    subject = bytes(range(16))
    entry, der = entry_of(subject)
    if fault == "signature":
        entry = entry._replace(signature=entry.signature[:-1] + bytes((entry.signature[-1] ^ 1,)))
    elif fault == "role":
        user = null_certificate(subject, "someone@overlay.example", OVERLAY)
        entry, der = entry._replace(certificate_hash=user.hash), user.der
    elif fault == "node":
        entry = entry._replace(node=NodeId(bytes(range(1, 17))))
    hand.ask(UpdateReq(Delta((entry,)).encode()), certificates=() if fault == "certificate" else (der,))
    assert not plug_in(lone).members()
    assert lone.peer.counts.get("misbehaved-member-entry", 0) == (fault != "certificate")


def test_a_genuine_entry_is_learned_once(lone: Node) -> None:
    """The newest incarnation counts; an older or equal one changes nothing."""
    hand = Hand(lone)
    subject = bytes(range(16))
    for incarnation, state in ((5, MemberState.READY), (4, MemberState.LEFT), (5, MemberState.LEFT)):
        entry, der = entry_of(subject, incarnation, state=state)
        hand.ask(UpdateReq(Delta((entry,)).encode()), certificates=(der,))
        assert [row["state"] for row in plug_in(lone).members()] == ["ready"]
    entry, der = entry_of(subject, 6, state=MemberState.LEFT)
    hand.ask(UpdateReq(Delta((entry,)).encode()), certificates=(der,))
    assert [row["state"] for row in plug_in(lone).members()] == ["left"]


def test_a_flood_of_entries_is_cut(lone: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries than can be verified in time are not kept in memory."""
    monkeypatch.setattr("p2psipd.proto.reload.member_list._MAX_UNVERIFIED", 100)
    hand = Hand(lone)
    entries = [entry for entry, _ in crowd(300)]
    same = null_certificate(entries[0].node, f"{entries[0].node.hex()}@peer.{OVERLAY}", OVERLAY)
    flood = tuple(entry._replace(certificate_hash=same.hash, addresses=()) for entry in entries)
    hand.ask(UpdateReq(Delta(flood).encode()), certificates=(same.der,))
    assert "more entries than can be verified" in [getattr(event, "detail", "") for event in lone.events]


def test_an_unknown_update_is_an_error(lone: Node) -> None:
    """A type that is not in the plug-in's document, or octets left over: Error_Invalid_Message."""
    hand = Hand(lone)
    for data in (b"", b"\x7f", b"\x07\x00", b"\x01\x00", RecordSummary(False, ()).encode() + b"\x00"):
        answer = hand.ask(UpdateReq(data))
        assert getattr(answer, "code", None) == 0x14


# -- the plug-in's document --------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[3] / "docs" / "kademlia-topology.md").read_text()


def octets_after(words: str) -> bytes:
    """The hexadecimal octets on the line of the document's annex that begins with `words`."""
    line = next(line for line in DOCUMENT.splitlines() if line.startswith(words))
    return bytes.fromhex("".join(line[len(words) :].split()))


def test_the_octets_in_the_document() -> None:
    """What a second implementer tests with is what we write and sign."""
    node = NodeId(bytes(range(0x10, 0x20)))
    where = (("192.0.2.1", 6084), ("2001:db8::1", 6084))
    entry = MemberEntry(node, MemberState.READY, 1_800_000_000_001, where, bytes(range(32)), b"")
    block = DOCUMENT[DOCUMENT.index("503250") :].split("```")[0]
    digits = "".join(line.split("  ")[0] for line in block.splitlines())
    assert bytes.fromhex("".join(digits.split())) == entry.signed_octets(HASH)
    assert f"fingerprint is {_fingerprint(entry):016x}" in DOCUMENT
    assert octets_after("Delta without entries, one suspicion") == Delta((), ((node, entry.incarnation),)).encode()
    assert octets_after("PageRequest, 32 nearest to that node") == PageRequest(node, 32).encode()
    assert octets_after("Pushed  ") == Pushed().encode()
    assert octets_after("Unlink  ") == Unlink().encode()
    alice = resource_id("alice@overlay.example")
    assert octets_after("RecordSummary, reply, one row") == RecordSummary(True, ((alice, bytes(8)),)).encode()
    assert alice.hex() in DOCUMENT


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("copies (replica set)", "{0.copies}"),
        ("siblings", "{0.siblings}"),
        ("bucket size k", "{0.bucket_size}"),
        ("links in all, about", "{0.max_links}"),
        ("full membership up to", "{0.full_membership:,}"),
        ("maintenance of links", "{0.maintain_for:g} s"),
        ("ping siblings, others when idle for", "{0.ping_siblings_for:g} s, {0.ping_others_for:g} s"),
        ("compare members", "{0.compare_members_for:g} s"),
        ("compare records", "{0.repair_for:g} s"),
        ("look for partitions", "{0.partition_for:g} s"),
        ("suspect to dead", "{0.suspect_for:g} s"),
        ("the dead are remembered for", "{0.dead_for:g} s"),
        ("admission, readiness at the latest", "{0.join_for:g} s"),
        ("release of slow links", "{0.release_for:g} s"),
    ],
)
def test_the_constants_in_the_document(row: str, value: str) -> None:
    """The document's table has the values that a node starts with."""
    assert f"| {row} | {value.format(KademliaParameters())} |" in DOCUMENT

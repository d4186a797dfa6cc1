"""Replica sets are the nearest by XOR, however few of a resource's bits they are kept by."""

from __future__ import annotations

import random

import pytest

from p2psipd.proto.reload.membership import IdSet
from p2psipd.proto.reload.replica_sets import ReplicaSets

COPIES = 8


def nearest(members: set[int], target: int) -> list[int]:
    """By trying all."""
    return sorted(members, key=target.__xor__)[:COPIES]


def numbers(sets: ReplicaSets, target: int) -> list[int]:
    return [int.from_bytes(node, "big") for node in sets.of(target)]


@pytest.mark.parametrize("crowded", [False, True], ids=["spread out", "alike in many bits"])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 40, 300])
def test_the_nearest_members_whatever_was_asked_before(size: int, crowded: bool) -> None:
    """Also after members came and went, once it has been said, and whether or not we are a member ourselves."""
    chance = random.Random(size)
    head = chance.getrandbits(100) << 28

    def draw() -> int:
        return head | chance.getrandbits(28) if crowded else chance.getrandbits(128)

    live, own = IdSet(), draw()
    sets = ReplicaSets(live, own, COPIES)
    for with_own in (False, True, True):
        members = {draw() for _ in range(size)} - {own}
        live.load(members)
        sets.renew(with_own)
        for _ in range(400):
            # Near members and each other as well as anywhere: the last bits count there.
            base = chance.choice([*members, own])
            target = base ^ (1 << chance.randrange(128)) if chance.random() < 0.7 else chance.getrandbits(128)
            assert numbers(sets, target) == nearest(members | ({own} if with_own else set()), target)


def test_records_alike_in_their_first_bits_share_one_answer() -> None:
    """Where 17 members differ in their first five bits there are 32 answers, however many records there are."""
    chance = random.Random(1)
    members = [first << 124 | chance.getrandbits(124) for first in range(16)]
    live = IdSet()
    live.load(members)
    sets = ReplicaSets(live, members[5] ^ (1 << 123), COPIES)
    sets.renew(True)
    assert len({id(sets.of(chance.getrandbits(128))) for _ in range(5000)}) == 32

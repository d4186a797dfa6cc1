"""The file of users: what counts, and what is said about a line that does not."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.sip.digest import Algorithm, ha1
from p2psipd.proto.sip.user_file import FileUsers, parse_users


def test_htdigest_lines_and_algorithms() -> None:
    """Lines as htdigest writes them are MD5; RFC 8760's algorithms have a fourth field; comments count for nothing."""
    lines = ["# phones", "", f"alice:overlay.example:{ha1(Algorithm.MD5, 'alice', 'overlay.example', 'wonder')}"]
    for algorithm in Algorithm:
        lines.append(f"bob:Overlay.Example:{ha1(algorithm, 'bob', 'overlay.example', 'x').upper()}:{algorithm.value}")
    users, faults = parse_users("\n".join(lines))
    assert faults == [] and set(users) == {("alice", "overlay.example"), ("bob", "overlay.example")}
    held = FileUsers(users)
    known = asyncio.run(held.ha1("bob", "overlay.example"))
    assert known == {each.value: bytes.fromhex(ha1(each, "bob", "overlay.example", "x")) for each in Algorithm}
    assert asyncio.run(held.ha1("alice", "elsewhere.example")) is None
    held.replace({})
    assert asyncio.run(held.ha1("bob", "overlay.example")) is None


def test_both_forms_of_a_user_name() -> None:
    """The hash is over the user name as the phone writes it: one who is there in the other form alone is known, with no
    password that fits.
    """
    users, _ = parse_users(f"alice:a.example:{'ab' * 16}\nbob@a.example:a.example:{'cd' * 16}")
    held = FileUsers(users)
    assert asyncio.run(held.ha1("alice", "a.example")) == {"MD5": b"\xab" * 16}
    assert asyncio.run(held.ha1("bob@a.example", "a.example")) == {"MD5": b"\xcd" * 16}
    assert asyncio.run(held.ha1("alice@a.example", "a.example")) == asyncio.run(held.ha1("bob", "a.example")) == {}
    assert asyncio.run(held.ha1("alice@b.example", "a.example")) is None


@pytest.mark.parametrize(
    "line",
    [
        "alice:overlay.example",
        ":overlay.example:" + "0" * 32,
        "alice::" + "0" * 32,
        "alice:overlay.example:secret",
        "alice:overlay.example:" + "0" * 31,
        "alice:overlay.example:" + "0" * 31 + " ",
        "alice:overlay.example:" + "0" * 32 + ":SHA-256",
        "alice:overlay.example:" + "0" * 32 + ":SHA-1",
        "alice:overlay.example:" + "0" * 32 + ":MD5:more",
        "alice:overlay.example:" + "0" * 32 + "\nalice:overlay.example:" + "1" * 32,
    ],
)
def test_faulty_lines_are_named(line: str) -> None:
    """Each fault names its line, and shows nothing of a password."""
    _, (fault,) = parse_users("# first\n" + line)
    assert fault.line >= 2 and "secret" not in fault.message and "000" not in fault.message


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever the file holds gives users and faults, and raises nothing."""
    parse_users(text)

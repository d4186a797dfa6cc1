"""Reads the golden vectors of tests/vectors/reload."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent / "reload"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.hex"))
NOT_MESSAGES = frozenset(
    ("certificate_alice", "certificate_peer", "fragment_1", "fragment_2", "frame_ack", "frame_data")
)
MESSAGE_NAMES = [name for name in NAMES if name not in NOT_MESSAGES]


def load(name: str) -> bytes:
    """The octets of NAME.hex without its comments."""
    lines = (DIRECTORY / f"{name}.hex").read_text("utf-8").splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))

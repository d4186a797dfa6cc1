"""A file of users with their digest passwords, in the form of htdigest: ``user:realm:ha1[:algorithm]``.

One line for each user and algorithm (RFC 8760: MD5 unless it says SHA-256 or SHA-512-256); ha1 is
H(user:realm:password) in hexadecimal, and as good as the password. Phones that authenticate as ``alice@realm`` need
lines with that as user: it is in the hash. Empty lines and lines that begin with "#"
count for nothing. A phone chooses among the algorithms that are offered to everybody, so a user with a line for
MD5 alone needs a phone that takes MD5, or `sip.digest_algorithms` without the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from p2psipd.proto.sip.digest import Algorithm

_LENGTHS: Final = {Algorithm.MD5: 32, Algorithm.SHA_256: 64, Algorithm.SHA_512_256: 64}

Users = Mapping[tuple[str, str], Mapping[str, bytes]]
"""HA1 values by algorithm token, by user and realm."""


class UserFault(NamedTuple):
    """What is wrong with a line; lines count from 1."""

    line: int
    message: str


def parse_users(text: str) -> tuple[Users, list[UserFault]]:
    """The users of a file, and what is wrong with it; nothing of a password is in a message."""
    users: dict[tuple[str, str], dict[str, bytes]] = {}
    faults: list[UserFault] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = line.split(":")
        if len(fields) not in (3, 4) or not fields[0] or not fields[1]:
            faults.append(UserFault(number, "expected user:realm:ha1 or user:realm:ha1:algorithm"))
            continue
        algorithm = _algorithm(fields[3] if len(fields) == 4 else "MD5")
        if algorithm is None:
            faults.append(UserFault(number, f"expected an algorithm of MD5, SHA-256 and SHA-512-256, not {fields[3]}"))
            continue
        ha1 = _octets(fields[2], _LENGTHS[algorithm])
        if ha1 is None:
            faults.append(UserFault(number, f"expected {_LENGTHS[algorithm]} hexadecimal digits for {algorithm.value}"))
            continue
        values = users.setdefault((fields[0], fields[1].lower()), {})
        if algorithm.value in values:
            faults.append(UserFault(number, f"{fields[0]}:{fields[1]} has a line for {algorithm.value} already"))
        values[algorithm.value] = ha1
    return users, faults


def _algorithm(token: str) -> Algorithm | None:
    try:
        return Algorithm(token.strip().upper())
    except ValueError:
        return None


def _octets(digits: str, length: int) -> bytes | None:
    try:
        return bytes.fromhex(digits) if len(digits) == length and digits.isalnum() else None
    except ValueError:
        return None


class FileUsers:
    """A ``CredentialSource`` over such a file; `replace` when it was read again."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def __len__(self) -> int:
        return len(self._users)

    def replace(self, users: Users) -> None:
        """These are the users from now on."""
        self._users = users

    async def ha1(self, user: str, realm: str, fresh: bool = False) -> Mapping[str, bytes] | None:
        """H(user:realm:password) by algorithm token; None for a user who is not in the file in either form, empty for
        one who is there in the other form alone.
        """
        found = self._users.get((user, realm))
        if found is None:
            plain = user.removesuffix(f"@{realm}")
            if (f"{user}@{realm}" if plain == user else plain, realm) in self._users:
                return {}
        return found

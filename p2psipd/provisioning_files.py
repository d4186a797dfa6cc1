"""What the provisioning side keeps between runs of `p2psip user`.

DIR/node.pem node.key     its certificate (p2psip ca issue provisioning NAME --out DIR)
DIR/epochs.json           the keys of the epochs; with them every user's HA1 values can be read
DIR/users.json            who the users are, and since when; no passwords
DIR/numbers.json          which telephone numbers and names stand for which users
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from p2psipd.overlay_files import OverlayFilesError, load_credential
from p2psipd.proto.identity.certificate import CertificateError, Role
from p2psipd.proto.identity.signing import Credential
from p2psipd.proto.reload.sip_usage import EPOCH_KEY_LENGTH

_EPOCHS: Final = "epochs.json"
_USERS: Final = "users.json"
_NUMBERS: Final = "numbers.json"


class ProvisioningFiles:
    """A provisioning directory, open: ``credential``, ``epochs`` (keys by number), ``users`` (by AOR).

    ``numbers`` holds by "number@domain" the AOR that it stands for.
    """

    def __init__(
        self,
        directory: Path,
        credential: Credential,
        epochs: dict[int, bytes],
        users: dict[str, dict[str, Any]],
        numbers: dict[str, str],
    ) -> None:
        self.directory = directory
        self.credential = credential
        self.epochs = epochs
        self.users = users
        self.numbers = numbers

    @classmethod
    @contextmanager
    def open(cls, directory: str | Path) -> Iterator[ProvisioningFiles]:
        """The directory's contents, for one process at a time; ``OverlayFilesError`` if something is wrong with them.

        The epochs and users are empty the first time.
        """
        directory = Path(directory)
        try:
            credential = load_credential(directory / "node.pem", directory / "node.key")
        except CertificateError as error:
            raise OverlayFilesError(f"{directory / 'node.pem'}: {error.detail}") from None
        if credential.certificate.role is not Role.PROVISIONING:
            user = credential.certificate.user
            raise OverlayFilesError(f"{directory / 'node.pem'}: a provisioning certificate expected, this is {user}")
        with open(directory / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            epochs, users = _read_epochs(directory / _EPOCHS), _read_users(directory / _USERS)
            yield cls(directory, credential, epochs, users, _read_numbers(directory / _NUMBERS))

    def add_epoch(self, key: bytes) -> int:
        """Begin a new epoch with this key; its number."""
        number = max(self.epochs, default=0) + 1
        self.epochs[number] = key
        self._write_epochs()
        return number

    def forget_epochs_before(self, number: int) -> None:
        """Delete the keys of older epochs, under which nothing is sealed any more."""
        self.epochs = {epoch: key for epoch, key in self.epochs.items() if epoch >= number}
        self._write_epochs()

    def note_user(self, aor: str, wall: float, *, changed: bool) -> None:
        """Remember that ``aor`` was stored under the current epoch; ``changed``: with a new password."""
        date = datetime.fromtimestamp(int(wall), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = self.users.setdefault(aor, {"added": date, "changed": date})
        entry.update({"stored": date, "epoch": max(self.epochs)})
        if changed:
            entry["changed"] = date
        self._write_users()

    def forget_user(self, aor: str) -> None:
        """Forget a user."""
        self.users.pop(aor, None)
        self._write_users()

    def note_number(self, number: str, target: str) -> None:
        """Remember that a number stands for an AOR."""
        self.numbers[number] = target
        self._write_numbers()

    def forget_number(self, number: str) -> None:
        """Forget a number."""
        self.numbers.pop(number, None)
        self._write_numbers()

    def _write_numbers(self) -> None:
        _write_private(self.directory / _NUMBERS, dict(sorted(self.numbers.items())))

    def _write_epochs(self) -> None:
        content = {str(number): b64encode(key).decode() for number, key in self.epochs.items()}
        _write_private(self.directory / _EPOCHS, content)

    def _write_users(self) -> None:
        _write_private(self.directory / _USERS, dict(sorted(self.users.items())))


def _read_epochs(path: Path) -> dict[int, bytes]:
    try:
        epochs = {int(number): b64decode(key, validate=True) for number, key in _read_object(path).items()}
    except (ValueError, TypeError):
        raise OverlayFilesError(f"{path}: numbers with keys in base64 expected") from None
    if any(len(key) != EPOCH_KEY_LENGTH or number < 1 for number, key in epochs.items()):
        raise OverlayFilesError(f"{path}: keys of {EPOCH_KEY_LENGTH} octets expected")
    return epochs


def _read_users(path: Path) -> dict[str, dict[str, Any]]:
    users = _read_object(path)
    if not all(isinstance(entry, dict) for entry in users.values()):
        raise OverlayFilesError(f"{path}: an object for each user expected")
    return users


def _read_numbers(path: Path) -> dict[str, str]:
    numbers = _read_object(path)
    if not all(isinstance(target, str) for target in numbers.values()):
        raise OverlayFilesError(f"{path}: an address of record for each number expected")
    return numbers


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OverlayFilesError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise OverlayFilesError(f"{path}: a JSON object expected")
    return content


def _write_private(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole; its owner alone can read it (``mkstemp`` makes it so)."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise

"""The node's durable state: stored values, high-water marks, known peers, own Node-ID.  One SQLite file.

The node serves from memory and writes behind: `write` and its like only queue, `flush` commits everything
queued in one transaction.  The owner calls `flush` at most every 50 ms, and on shutdown `close`.

Why WAL with synchronous=NORMAL is enough: what must survive is the death of the *process* (SIGKILL).  A
commit in WAL mode has handed its pages to the operating system before `flush` returns, and the kernel
writes them whatever happens to us.  NORMAL leaves out the fsync at each commit; only a loss of power may
cost the last commits (never the file's consistency), and then seven other peers hold copies of each value.

No thread is needed: a commit of 100 rows takes well under 3 ms.  All times in the file are wall time (Unix
seconds).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.records import (
    DropCertificate,
    DropGeneration,
    DropMark,
    DropRecord,
    PutCertificate,
    PutGeneration,
    PutMark,
    PutRecord,
    RecordChange,
    RecordRow,
)

SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x50325053  # "P2PS"
# A checkpoint syncs, which takes 10 to 40 ms: `maintain` does it once a minute, `flush` only under a load
# that has filled 32 MB of log in between.
_CHECKPOINT_PAGES: Final = 8000
_KEEP_EXPIRED_FOR: Final = 86400.0
_MAX_PEERS: Final = 10_000
_NODE_ID_NAME: Final = "node-id"

_SCHEMA: Final = """
CREATE TABLE records (
    resource BLOB NOT NULL, kind INTEGER NOT NULL, key BLOB NOT NULL, storage_time INTEGER NOT NULL,
    expires_at REAL NOT NULL, until REAL NOT NULL, present INTEGER NOT NULL,
    value BLOB NOT NULL, signer BLOB NOT NULL, identity BLOB NOT NULL,
    hash_algorithm INTEGER NOT NULL, signature_algorithm INTEGER NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (resource, kind, key)) STRICT, WITHOUT ROWID;
CREATE TABLE generations (
    resource BLOB NOT NULL, kind INTEGER NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY (resource, kind)) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    resource BLOB NOT NULL, kind INTEGER NOT NULL, key BLOB NOT NULL, storage_time INTEGER NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (resource, kind, key)) STRICT, WITHOUT ROWID;
CREATE TABLE certificates (hash BLOB PRIMARY KEY NOT NULL, der BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE peers (
    node_id BLOB PRIMARY KEY NOT NULL, addresses TEXT NOT NULL, certificate BLOB NOT NULL,
    seen_at REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE octets (name TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""

_PUT: Final = {
    "records": "INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
    "generations": "INSERT OR REPLACE INTO generations VALUES (?,?,?)",
    "marks": "INSERT OR REPLACE INTO marks VALUES (?,?,?,?,?)",
    "certificates": "INSERT OR REPLACE INTO certificates VALUES (?,?)",
    "peers": "INSERT OR REPLACE INTO peers VALUES (?,?,?,?)",
    # A high-water mark never sinks, not even by a bug of its owner.
    "numbers": "INSERT INTO numbers VALUES (?,?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
    "octets": "INSERT OR REPLACE INTO octets VALUES (?,?)",
}
_DROP: Final = {
    "records": "DELETE FROM records WHERE resource=? AND kind=? AND key=?",
    "generations": "DELETE FROM generations WHERE resource=? AND kind=?",
    "marks": "DELETE FROM marks WHERE resource=? AND kind=? AND key=?",
    "certificates": "DELETE FROM certificates WHERE hash=?",
    "peers": "DELETE FROM peers WHERE node_id=?",
}

_Row = tuple[object, ...]
_Key = tuple[object, ...]


class StateError(Exception):
    """The state file can't be used: locked by another node, of a newer version, not ours, or not
    accessible."""


class ForeignStateError(StateError):
    """The state file is of another program or of a newer version: it will not do by itself."""


class KnownPeer(NamedTuple):
    """A peer to try after a restart: where it listens and its certificate (DER), last seen alive at
    `seen_at`."""

    node_id: NodeId
    addresses: tuple[tuple[str, int], ...]
    certificate: bytes
    seen_at: float


class LoadedState(NamedTuple):
    """What the file held.  `rows` go to `Storage.load`; `peers` are the most recently seen first.

    `numbers` are the high-water marks kept by `raise_number`, `octets` the values kept by `set_octets`.
    """

    rows: tuple[RecordRow, ...]
    peers: tuple[KnownPeer, ...]
    numbers: Mapping[str, int]
    octets: Mapping[str, bytes]
    node_id: NodeId | None


class SqliteStore:
    """One node's state file.

    `report` is called with one sentence for each thing an operator should know: a corrupt file was moved
    aside, the disk is full, writing works again.  Nothing but `StateError` (from the constructor) is raised
    for a bad file.
    """

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self._path = Path(path)
        self._report = report
        # By table and primary key: only the last change of a row is written, and a disk that stays full for
        # hours costs no more memory than the rows themselves.
        self._pending: dict[tuple[str, _Key], _Row | None] = {}
        self._failing = False
        self._database = self._open_or_start_anew()

    @property
    def path(self) -> Path:
        """The state file."""
        return self._path

    @property
    def pending(self) -> int:
        """Rows that wait for `flush`."""
        return len(self._pending)

    @property
    def failing(self) -> bool:
        """Whether the last `flush` could not write."""
        return self._failing

    # Opening

    def _open_or_start_anew(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            raise StateError(f"{self._path}: {_explain(error)}") from error
        except sqlite3.DatabaseError as error:
            self._move_aside(error)
        try:
            return self._open()
        except sqlite3.Error as error:
            raise StateError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        try:
            # Certificates and addresses are nobody else's business; SQLite gives its log the same mode.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StateError(f"{self._path}: {error.strerror}") from error
        database = sqlite3.connect(self._path, timeout=0.5, isolation_level=None)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # The lock keeps a second node off the same file, and saves the shared-memory file.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise ForeignStateError(f"{self._path}: a database, but not a state file of p2psipd")
        if version > SCHEMA_VERSION:
            newer = f"written by a newer p2psipd (version {version}, not {SCHEMA_VERSION})"
            raise ForeignStateError(f"{self._path}: {newer}")
        if empty:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        database.execute("PRAGMA journal_size_limit=16777216")
        if empty:
            database.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION_ID};"
                f" PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            )
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        """Keep a corrupt file (and its log) for whoever wants to look at it, under a name that is free."""
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
            number += 1
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                log = self._path.with_name(self._path.name + suffix)
                if log.exists():
                    log.rename(aside.with_name(aside.name + suffix))
        except OSError as failure:
            raise StateError(f"{self._path}: corrupt ({error}), can't be moved aside: {failure.strerror}") from failure
        self._report(f"{self._path}: corrupt ({error}); moved to {aside.name}, the node starts without its records")

    # Reading

    def load(self) -> LoadedState:
        """Everything the file holds.  Call once, before anything is written.

        A file that proves corrupt only now is moved aside as well, and the state is empty.
        """
        try:
            return self._load()
        except (sqlite3.DatabaseError, ValueError) as error:
            self._database.close()
            self._move_aside(sqlite3.DatabaseError(str(error)))
            self._database = self._open_or_start_anew()
            return self._load()

    def _load(self) -> LoadedState:
        query = self._database.execute
        rows: list[RecordRow] = [PutCertificate(*row) for row in query("SELECT hash, der FROM certificates")]
        rows += [
            PutGeneration(ResourceId(resource), kind, _unsigned(generation))
            for resource, kind, generation in query("SELECT resource, kind, generation FROM generations")
        ]
        rows += [
            PutMark(ResourceId(resource), kind, key, _unsigned(storage_time), until)
            for resource, kind, key, storage_time, until in query("SELECT * FROM marks")
        ]
        rows += [
            PutRecord(ResourceId(row[0]), row[1], row[2], _unsigned(row[3]), row[4], row[5], bool(row[6]), *row[7:])
            for row in query("SELECT * FROM records")
        ]
        peers = tuple(
            KnownPeer(NodeId(node_id), _parse_addresses(addresses), certificate, seen_at)
            for node_id, addresses, certificate, seen_at in query("SELECT * FROM peers ORDER BY seen_at DESC")
        )
        numbers: dict[str, int] = dict(query("SELECT name, value FROM numbers").fetchall())
        octets: dict[str, bytes] = dict(query("SELECT name, value FROM octets").fetchall())
        own = octets.pop(_NODE_ID_NAME, None)
        return LoadedState(tuple(rows), peers, numbers, octets, None if own is None else NodeId(own))

    # Writing

    def write(self, changes: Iterable[RecordChange]) -> None:
        """Queue what `Storage` changed."""
        pending = self._pending
        for change in changes:
            match change:
                case PutRecord():
                    pending["records", change[:3]] = (*change[:3], _signed(change.storage_time), *change[4:])
                case PutGeneration(resource, kind, generation):
                    pending["generations", (resource, kind)] = (resource, kind, _signed(generation))
                case PutMark(resource, kind, key, storage_time, until):
                    pending["marks", change[:3]] = (resource, kind, key, _signed(storage_time), until)
                case PutCertificate(hash_, _):
                    pending["certificates", (hash_,)] = tuple(change)
                case DropRecord():
                    pending["records", tuple(change)] = None
                case DropGeneration():
                    pending["generations", tuple(change)] = None
                case DropMark():
                    pending["marks", tuple(change)] = None
                case DropCertificate():
                    pending["certificates", tuple(change)] = None

    def remember_peers(self, peers: Iterable[KnownPeer]) -> None:
        """Queue peers to be tried after a restart; a peer already known is replaced."""
        for peer in peers:
            addresses = "\n".join(f"{host} {port}" for host, port in peer.addresses)
            row = (peer.node_id, addresses, peer.certificate, peer.seen_at)
            self._pending["peers", (peer.node_id,)] = row

    def forget_peer(self, node_id: NodeId) -> None:
        """Queue the removal of a known peer."""
        self._pending["peers", (node_id,)] = None

    def raise_number(self, name: str, value: int) -> None:
        """Queue a high-water mark (0 to 2**63-1) under a name of its owner's; a lower one than before is
        ignored."""
        queued = self._pending.get(("numbers", (name,)))
        if queued is None or _integer(queued[1]) < value:
            self._pending["numbers", (name,)] = (name, value)

    def set_octets(self, name: str, value: bytes) -> None:
        """Queue a named value of its owner's, the configuration document for instance."""
        self._pending["octets", (name,)] = (name, value)

    def set_node_id(self, node_id: NodeId) -> None:
        """Queue this node's own Node-ID: a state file belongs to one node."""
        self.set_octets(_NODE_ID_NAME, node_id)

    def flush(self) -> bool:
        """Commit everything queued in one transaction; True if nothing is left to write.

        When it can't be written (the disk is full), it stays queued, the fault is reported once, and the
        next `flush` tries again.
        """
        if not self._pending:
            return True
        try:
            self._commit()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            if not self._failing:
                self._failing = True
                self._report(f"{self._path}: can't be written ({error}); the node goes on and tries again")
            return False
        self._pending.clear()
        if self._failing:
            self._failing = False
            self._report(f"{self._path}: written again, nothing was lost")
        return True

    def _commit(self) -> None:
        puts: dict[str, list[_Row]] = {}
        drops: dict[str, list[_Key]] = {}
        for (table, key), row in self._pending.items():
            if row is None:
                drops.setdefault(table, []).append(key)
            else:
                puts.setdefault(table, []).append(row)
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        for table, keys in drops.items():
            database.executemany(_DROP[table], keys)
        for table, rows in puts.items():
            database.executemany(_PUT[table], rows)
        database.execute("COMMIT")

    def maintain(self, wall: float) -> None:
        """Bound the file: call every minute or so.

        `Storage` drops what expires; this removes what it no longer knows of (values of kinds that the
        overlay has given up), the peers beyond the most recent 10,000, empties the log into the file, and
        gives free pages back in small slices.
        """
        try:
            query = self._database.execute
            query("DELETE FROM records WHERE expires_at < ?", (wall - _KEEP_EXPIRED_FOR,))
            query("DELETE FROM marks WHERE until < ?", (wall - _KEEP_EXPIRED_FOR,))
            query(
                "DELETE FROM peers WHERE node_id NOT IN (SELECT node_id FROM peers ORDER BY seen_at DESC LIMIT ?)",
                (_MAX_PEERS,),
            )
            query("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            # execute() would step this pragma once and free one page; executescript() runs it to its end.
            self._database.executescript("PRAGMA incremental_vacuum(500)")
        except sqlite3.Error as error:
            if not self._failing:
                self._failing = True
                self._report(f"{self._path}: can't be tidied ({error}); the node goes on and tries again")

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        with contextlib.suppress(sqlite3.Error):
            self._database.close()


def _explain(error: sqlite3.OperationalError) -> str:
    if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "in use by another process (is the node running already?)"
    return str(error)


def _parse_addresses(text: str) -> tuple[tuple[str, int], ...]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines())
    return tuple((host, int(port)) for host, port in pairs)


def _signed(value: int) -> int:
    """SQLite's integers are signed: the wire's uint64 is kept in two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _unsigned(value: int) -> int:
    return value + (1 << 64) if value < 0 else value


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value

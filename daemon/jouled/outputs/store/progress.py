"""What a restarted daemon goes on from: the last checkpoint, the inputs of every commit since, and failed attempts.

The tables stand beside the books in one file and are written in the same transactions. An older jouled that knows
nothing of them leaves them behind its books; the numbers of the commits tell.
"""

import logging
import sqlite3
import zlib

from msgspec import Struct

from jouled.core.state import Frozen, StateError
from jouled.model.units import NANOSECONDS_PER_SECOND

FAILED, RESTORING = "failed", "restoring"
ATTEMPTS = {FAILED: 2, RESTORING: 5}
ATTEMPTS_NS = 600 * NANOSECONDS_PER_SECOND
"""After so many bad ends within ten minutes nothing is gone on from (design: open requests are not restored): ends for
which the books were to blame, or starts that did not live to their first commit, as a kill at that moment is one."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoint (
    only INTEGER PRIMARY KEY CHECK (only = 1), sequence INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS journal (sequence INTEGER PRIMARY KEY, inputs BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bad_ends (wall_ns INTEGER NOT NULL, kind TEXT NOT NULL);
"""
_FASTEST = 1

_log = logging.getLogger(__name__)


class Progress(Struct, frozen=True):
    """What one commit brings: its inputs, or a checkpoint that makes all earlier ones needless; or neither."""

    inputs: bytes = b""
    checkpoint: Frozen | None = None


class Packed(Struct, frozen=True):
    """The same as compressed bytes."""

    inputs: bytes = b""
    state: bytes = b""


class Saved(Struct, frozen=True):
    """A checkpoint, and the inputs of every commit after it up to the last one."""

    state: bytes
    inputs: list[bytes]


def create(connection: sqlite3.Connection) -> None:
    """Make the tables where they are missing."""
    connection.executescript(_SCHEMA)


def packed(progress: Progress) -> Packed:
    """What a commit brings as bytes; takes a while and is to be called outside of a transaction."""
    if progress.checkpoint is None:
        return Packed(inputs=zlib.compress(progress.inputs, _FASTEST) if progress.inputs else b"")
    packer = zlib.compressobj(_FASTEST)
    try:
        return Packed(state=b"".join([*map(packer.compress, progress.checkpoint.chunks()), packer.flush()]))
    except StateError as error:
        _log.error("open requests would not outlive a restart, the state %s", error)
        return Packed()


def write(connection: sqlite3.Connection, sequence: int, progress: Packed) -> None:
    """Add what a commit brings, inside its transaction; that nothing is known is kept too."""
    if progress.state:
        connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?)", (sequence, progress.state))
        connection.execute("DELETE FROM journal")
    elif progress.inputs:
        connection.execute("INSERT OR REPLACE INTO journal VALUES (?, ?)", (sequence, progress.inputs))
    else:
        forget(connection)
    connection.execute("DELETE FROM bad_ends WHERE kind = ?", (RESTORING,))


def forget(connection: sqlite3.Connection) -> None:
    """Nothing is gone on from."""
    connection.execute("DELETE FROM journal")
    connection.execute("DELETE FROM checkpoint")


def read(connection: sqlite3.Connection, last_sequence: int) -> Saved | None:
    """What leads to the last commit; `None` where something of it is missing or damaged."""
    row = connection.execute("SELECT sequence, state FROM checkpoint").fetchone()
    if row is None:
        return None
    begun, state = row
    rows = connection.execute("SELECT sequence, inputs FROM journal WHERE sequence > ? ORDER BY sequence", (begun,))
    found = rows.fetchall()
    if [sequence for sequence, _ in found] != list(range(begun + 1, last_sequence + 1)):
        return None
    try:
        return Saved(zlib.decompress(state), [zlib.decompress(inputs) for _, inputs in found])
    except zlib.error:
        return None


def note_bad_end(connection: sqlite3.Connection, wall_ns: int, kind: str) -> None:
    """Remember an end for which the state may be to blame, or an attempt to go on until its first commit."""
    connection.execute("DELETE FROM bad_ends WHERE NOT wall_ns BETWEEN ? AND ?", (wall_ns - ATTEMPTS_NS, wall_ns))
    connection.execute("INSERT INTO bad_ends VALUES (?, ?)", (wall_ns, kind))


def has_failed_too_often(connection: sqlite3.Connection, wall_ns: int) -> bool:
    """Whether going on from the state has ended badly too often of late."""
    counted = "SELECT kind, count(*) FROM bad_ends WHERE wall_ns BETWEEN ? AND ? GROUP BY kind"
    rows = connection.execute(counted, (wall_ns - ATTEMPTS_NS, wall_ns))
    return any(count >= ATTEMPTS.get(kind, 1) for kind, count in rows)

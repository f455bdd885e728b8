"""Opening the SQLite file: schema, identity, and setting aside what is not ours or broken."""

import logging
import sqlite3
import zlib
from itertools import count
from pathlib import Path

from jouled.model.errors import JouledError
from jouled.outputs.store import history, progress

_log = logging.getLogger(__name__)

APPLICATION_ID = 0x6A6F756C
"""The letters `joul` in the file's header."""

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE books (
    only INTEGER PRIMARY KEY CHECK (only = 1), sequence INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
    crc32 INTEGER NOT NULL, books BLOB NOT NULL
);
CREATE TABLE receipts (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, engine TEXT NOT NULL, model TEXT NOT NULL, tenant TEXT NOT NULL,
    outcome TEXT NOT NULL, last_token_ns INTEGER NOT NULL, receipt BLOB NOT NULL
);
CREATE INDEX receipts_by_id ON receipts (id);
CREATE INDEX receipts_by_time ON receipts (last_token_ns);
"""

_JOURNAL_BYTES = 16 * 1024 * 1024
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreError(JouledError):
    """The store cannot be opened, or did not take what it was given."""


class _UnusableFileError(Exception):
    """A database that SQLite can read and jouled cannot go on from."""


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the file itself is damaged, as against full, locked or unreadable."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BROKEN


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create the database for writing; a corrupt or foreign file is set aside first.

    Raises:
        StoreError: the file is of a newer version, or cannot be opened at all.
    """
    try:
        return _open(path)
    except _UnusableFileError as error:
        set_aside(path, str(error))
    except sqlite3.Error as error:
        if not is_broken(error):
            raise _cannot_open(path, error) from error
        set_aside(path, str(error))
    try:
        return _open(path)
    except sqlite3.Error as error:
        raise _cannot_open(path, error) from error


def open_reader(path: Path) -> sqlite3.Connection:
    """A second connection that reads beside the writer and can change nothing."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def set_aside(path: Path, reason: str) -> None:
    """Rename the file with its journal to the first free `*.broken-N`, and say so.

    Raises:
        StoreError: it cannot be renamed.
    """
    target = next(name for number in count(1) if not (name := path.with_name(f"{path.name}.broken-{number}")).exists())
    try:
        # The journal first: a fresh database must never find that of the old one.
        for suffix in ("-wal", "-shm"):
            journal = path.with_name(path.name + suffix)
            if journal.exists():
                journal.replace(target.with_name(target.name + suffix))
        path.replace(target)
    except OSError as error:
        raise _cannot_open(path, error) from error
    _log.warning("%s cannot be used (%s): set aside as %s, starting with an empty store", path, reason, target.name)


def _open(path: Path) -> sqlite3.Connection:
    # Transactions are written out (isolation_level=None): the module opens none behind our back.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        _identify(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        progress.create(connection)
        history.create(connection)
        for books, crc32 in connection.execute("SELECT books, crc32 FROM books"):
            if zlib.crc32(books) != crc32:
                raise _UnusableFileError("the checksum of the books is wrong")  # noqa: TRY301 - one clean-up for all
    except BaseException:
        connection.close()
        raise
    return connection


def _identify(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and application in {0, APPLICATION_ID}:
        _create(connection)
    elif application != APPLICATION_ID:
        raise _UnusableFileError("it is a database of another program")
    elif version > SCHEMA_VERSION:
        raise StoreError(
            f"the store was written by a newer jouled (schema {version}, this one knows {SCHEMA_VERSION})",
            mend="Run that version, or choose another directory with --state DIR",
        )


def _create(connection: sqlite3.Connection) -> None:
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT;")


def _cannot_open(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the store {path} cannot be opened: {error}",
        mend="Make its directory writable for this user, or choose another one with --state DIR",
    )

"""The store: one synced transaction for each commit, with the state to go on from; receipts with retention."""

import asyncio
import fcntl
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from jouled.model.history import EngineChange, EngineMark, History
from jouled.model.points import Kind, NumberedReceipt
from jouled.model.receipt import Receipt
from jouled.model.units import NANOSECONDS_PER_SECOND
from jouled.outputs.store import history, spool
from jouled.outputs.store import progress as going_on
from jouled.outputs.store.database import StoreError, is_broken, open_database, open_reader, set_aside
from jouled.outputs.store.progress import Packed, Progress, Saved
from jouled.outputs.store.query import ReceiptQuery, sql
from jouled.outputs.store.spool import NOTHING_OUT, Limits, Outgoing, Spool, Stream, Waiting

_log = logging.getLogger(__name__)

FILE_NAME = "jouled.sqlite3"
_SECONDS_PER_DAY = 86_400
_BYTES_PER_MEBIBYTE = 1024 * 1024
_REMOVED_AT_ONCE = 2_000
"""Receipts that one commit removes at most, so that a shortened retention does not hold up the books."""

_REMOVED_PER_PAGE = 8
"""Receipts for each page beyond the size: a receipt takes at least half a kilobyte of a page's four."""

NO_PROGRESS = Progress()

_T = TypeVar("_T")


class Committed(Struct, frozen=True):
    """The last commit: its number, the books as they were given, and Unix nanoseconds of that moment."""

    sequence: int
    books: bytes
    wall_ns: int


_Found_co = TypeVar("_Found_co", covariant=True)


class Behind(NamedTuple, Generic[_Found_co]):
    """Records behind a place in the spool, in order, and the numbers of those among them that are damaged."""

    records: Sequence[_Found_co]
    damaged: Sequence[int]


class Store:
    """Committed books, receipts, the spool and state in `<directory>/jouled.sqlite3`.

    One thread writes and one reads, so neither the event loop nor a commit ever waits for a query. `removed` counts
    receipts taken out by retention, by reason (`age`, `size`), until somebody takes them over and sets them to 0;
    `waiting` is what sinks had still to take at the last commit.
    """

    def __init__(
        self,
        directory: Path,
        *,
        receipt_days: float = 7.0,
        receipt_mebibytes: float = 512.0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        """Open or create the store.

        Raises:
            StoreError: the directory cannot be used, another jouled uses it, or a newer one wrote it.
        """
        self._path = directory / FILE_NAME
        self._keep_ns = int(receipt_days * _SECONDS_PER_DAY * NANOSECONDS_PER_SECOND)
        self._keep_bytes = int(receipt_mebibytes * _BYTES_PER_MEBIBYTE)
        self.removed: dict[str, int] = {"age": 0, "size": 0}
        self._spool = Spool(limits)
        self.waiting = Waiting()
        self._lock = _lock(directory)
        try:
            self._writer = open_database(self._path)
            self._spool.open(self._writer)
        except BaseException:
            os.close(self._lock)
            raise
        self._reader: sqlite3.Connection | None = None
        self._reader_access = threading.Lock()
        self._damage = ""
        self._sequence = 0
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="store-read")

    def load(self) -> Committed | None:
        """The last commit, or `None` for a fresh store; blocks.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._write_thread.submit(self._load).result()

    def saved(self, wall_ns: int) -> Saved | None:
        """What leads to the last commit, or `None` if that is not to be had, or not to be tried again; blocks.

        Until the next commit the attempt counts as a bad end: a state that kills whoever takes it up is left alone
        the third time.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._write_thread.submit(self._saved, wall_ns).result()

    def note_failure(self, wall_ns: int) -> None:
        """The daemon ends because its books cannot be trusted; blocks. Raises `StoreError`."""
        self._write_thread.submit(self._note, wall_ns, going_on.FAILED).result()

    def subscribe(self, streams: Sequence[Stream]) -> dict[Stream, int]:
        """The streams that sinks take from now on; returns how far each of them has come; blocks.

        What waits for others is kept until `keep_only`. `certain` then says behind which number each may begin again.

        Raises:
            StoreError: the file cannot be written.
        """
        return self._write_thread.submit(self._subscribe, streams).result()

    def certain(self, stream: Stream) -> int:
        """The number up to which a stream that was subscribed to need not be sent again."""
        return self._spool.certain[stream]

    async def keep_only(self, streams: Sequence[Stream]) -> None:
        """No other stream is wanted any more. Raises `StoreError`."""
        await self._run(self._write_thread, lambda: self._keep_only(streams))

    async def commit(
        self,
        books: bytes,
        receipts: Sequence[Receipt],
        wall_ns: int,
        progress: Progress = NO_PROGRESS,
        outgoing: Outgoing = NOTHING_OUT,
    ) -> int:
        """Write books, receipts and what is to be sent in one transaction; returns its number once the disk has it.

        progress: what leads from the commit before to this one; without any, no restart goes on from here.

        Raises:
            StoreError: nothing of it was kept (disk full, input/output error); the next commit may succeed and must
                bring these receipts again.
        """
        return await self._run(self._write_thread, lambda: self._commit(books, receipts, wall_ns, progress, outgoing))

    async def points_after(self, number: int, most: int, read: Callable[[int, bytes], _T]) -> "Behind[_T]":
        """The spool's points behind a number, in order, each made something of by `read` in the reading thread.

        Those for which it raises `ValueError` are damaged. Raises `StoreError` itself.
        """
        return await self._run(self._read_thread, lambda: self._behind("points", number, most, read))

    async def receipts_after(self, number: int, most: int) -> "Behind[NumberedReceipt]":
        """The receipts behind a number, in order. Raises `StoreError`."""
        return await self._run(self._read_thread, lambda: self._behind("receipts", number, most, _numbered))

    async def forget(self, tenant: str | None, *, with_state: bool = False) -> int:
        """Remove a tenant's receipts (`None`: all) for good, so that no byte of them stays in the file.

        Takes as long as writing the file anew. with_state: the state to go on from, which may name the tenant, goes
        too; for a file that no daemon uses. Returns how many receipts there were.

        Raises:
            StoreError: the file cannot be written.
        """
        return await self._run(self._write_thread, lambda: self._forget(tenant, with_state=with_state))

    def take_dropped(self) -> dict[tuple[str, Kind, str], int]:
        """Records that limits took from sinks since the last call, by sink, stream and reason."""
        dropped, self._spool.dropped = self._spool.dropped, {}
        return dropped

    async def receipts(self, query: ReceiptQuery) -> list[Receipt]:
        """The receipts asked for, newest first.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._run(self._read_thread, lambda: self._query(query))

    def last_changes(self) -> list[EngineChange]:
        """What each engine was last; blocks. Raises `StoreError`."""
        return self._write_thread.submit(self._last_changes).result()

    async def note(self, changes: Sequence[EngineChange], marks: Sequence[EngineMark], wall_ns: int) -> None:
        """Keep them for reports, as long as receipts are kept.

        Raises:
            StoreError: nothing of it was kept.
        """
        await self._run(self._write_thread, lambda: self._note_history(changes, marks, wall_ns))

    async def history(self, since_ns: int) -> History:
        """What is known of the time from then on. Raises `StoreError`."""
        return await self._run(self._read_thread, lambda: self._history(since_ns))

    def close(self) -> None:
        """Finish what was begun and close the file."""
        self._write_thread.shutdown()
        self._read_thread.shutdown()
        self._close_reader()
        self._writer.close()
        os.close(self._lock)

    @staticmethod
    async def _run(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    def _load(self) -> Committed | None:
        try:
            row = self._writer.execute("SELECT sequence, books, wall_ns FROM books").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"the books in {self._path} cannot be read: {error}") from error
        if row is None:
            return None
        self._sequence = row[0]
        return Committed(*row)

    def _saved(self, wall_ns: int) -> Saved | None:
        try:
            if self._sequence == 0 or going_on.has_failed_too_often(self._writer, wall_ns):
                return None
            found = going_on.read(self._writer, self._sequence)
        except sqlite3.Error as error:
            raise StoreError(f"the state in {self._path} cannot be read: {error}") from error
        if found is not None:
            self._note(wall_ns, going_on.RESTORING)
        return found

    def _note(self, wall_ns: int, kind: str) -> None:
        try:
            going_on.note_bad_end(self._writer, wall_ns, kind)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error

    def _last_changes(self) -> list[EngineChange]:
        try:
            return history.last_changes(self._writer)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"the changes of engines in {self._path} cannot be read: {error}") from error

    def _note_history(self, changes: Sequence[EngineChange], marks: Sequence[EngineMark], wall_ns: int) -> None:
        try:
            with _transaction(self._writer, self._spool):
                history.write(self._writer, changes, marks, wall_ns, self._keep_ns)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error

    def _history(self, since_ns: int) -> History:
        try:
            with self._reader_access:
                if self._reader is None:
                    self._reader = open_reader(self._path)
                return history.read(self._reader, since_ns)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"the marks in {self._path} cannot be read: {error}") from error

    def _subscribe(self, streams: Sequence[Stream]) -> dict[Stream, int]:
        try:
            # All or nothing: a sink whose place is lost would begin at the end.
            with _transaction(self._writer, self._spool):
                self._spool.subscribe(self._writer, streams)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error
        return {stream: self._spool.cursors[stream] for stream in streams}

    def _keep_only(self, streams: Sequence[Stream]) -> None:
        try:
            with _transaction(self._writer, self._spool):
                self._spool.keep_only(self._writer, streams)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error

    def _commit(
        self, books: bytes, receipts: Sequence[Receipt], wall_ns: int, progress: Progress, outgoing: Outgoing
    ) -> int:
        packed = going_on.packed(progress)
        if self._damage:
            self._replace_file(self._damage)
        try:
            return self._write(books, receipts, wall_ns, packed, outgoing)
        except sqlite3.Error as error:
            if not is_broken(error):
                raise StoreError(
                    f"the books were not committed to {self._path}: {error}",
                    mend="Free space on that disk, or choose another directory with --state DIR",
                ) from error
            self._replace_file(str(error))
        try:
            return self._write(books, receipts, wall_ns, packed, outgoing)
        except sqlite3.Error as error:
            raise StoreError(f"the books were not committed to the fresh {self._path}: {error}") from error

    def _write(
        self, books: bytes, receipts: Sequence[Receipt], wall_ns: int, packed: Packed, outgoing: Outgoing
    ) -> int:
        connection = self._writer
        with _transaction(connection, self._spool):
            row = connection.execute("SELECT sequence FROM books").fetchone()
            sequence = max(self._sequence, row[0] if row else 0) + 1
            connection.execute(
                "INSERT OR REPLACE INTO books (only, sequence, wall_ns, crc32, books) VALUES (1, ?, ?, ?, ?)",
                (sequence, wall_ns, zlib.crc32(books), books),
            )
            connection.executemany(
                "INSERT INTO receipts (number, id, engine, model, tenant, outcome, last_token_ns, receipt)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [_row(self._spool.next_number("receipts"), receipt) for receipt in receipts],
            )
            going_on.write(connection, sequence, packed)
            self._spool.write(connection, outgoing, wall_ns)
            removed = self._retain(wall_ns)
            self._spool.retain(connection, wall_ns)
            self._spool.keep_numbers(connection)
            waiting = self._spool.waiting(connection)
        self._sequence = sequence
        self.waiting = waiting
        for reason, number in removed.items():
            self.removed[reason] += number
        return sequence

    def _retain(self, wall_ns: int) -> dict[str, int]:
        """Remove the oldest receipts beyond the limits of age and size; a large excess takes several commits."""
        execute = self._writer.execute
        by_age = self._remove_receipts(
            "WHERE last_token_ns < ? ORDER BY last_token_ns LIMIT ?", (wall_ns - self._keep_ns, _REMOVED_AT_ONCE), "age"
        )
        pages, free, page_bytes = (
            execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        excess_pages = pages - free - (self._keep_bytes + self._spool.points_bytes) // page_bytes
        by_size = 0
        if excess_pages > 0:
            number = min(excess_pages * _REMOVED_PER_PAGE, _REMOVED_AT_ONCE)
            by_size = self._remove_receipts("ORDER BY number LIMIT ?", (number,), "size")
        return {"age": by_age, "size": by_size}

    def _remove_receipts(self, which: str, bounds: tuple[int, ...], reason: str) -> int:
        oldest = f"DELETE FROM receipts WHERE number IN (SELECT number FROM receipts {which}) RETURNING number"  # noqa: S608 - fixed words
        numbers = [number for (number,) in self._writer.execute(oldest, bounds)]
        if numbers:
            self._spool.removed("receipts", numbers, reason)
        return len(numbers)

    def _forget(self, tenant: str | None, *, with_state: bool) -> int:
        connection = self._writer
        where, values = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
        try:
            with _transaction(connection, self._spool):
                rows = connection.execute(f"DELETE FROM receipts{where} RETURNING number", values).fetchall()  # noqa: S608 - fixed words
                self._spool.removed("receipts", [number for (number,) in rows], "forgotten")
                if with_state:
                    going_on.forget(connection)
            if rows or with_state:
                # Removed rows lie in free pages and in the journal until the file is written anew.
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be written: {error}") from error
        return len(rows)

    def _replace_file(self, reason: str) -> None:
        """Go on with a fresh file: the books to commit are whole, and the numbering goes on from memory."""
        self._damage = ""
        with self._reader_access:
            self._close_reader()
            self._writer.close()
            set_aside(self._path, reason)
            self._writer = open_database(self._path)
            self._spool.reopen(self._writer)

    def _behind(self, kind: Kind, number: int, most: int, read: Callable[[int, bytes], _T]) -> "Behind[_T]":
        found: list[_T] = []
        damaged: list[int] = []
        for row, data in self._read_spool(kind, number, most):
            try:
                found.append(read(row, data))
            except (ValueError, msgspec.MsgspecError):
                damaged.append(row)
        return Behind(found, damaged)

    def _read_spool(self, kind: Kind, number: int, most: int) -> list[tuple[int, bytes]]:
        try:
            with self._reader_access:
                if self._reader is None:
                    self._reader = open_reader(self._path)
                return spool.read(self._reader, kind, number, most)
        except sqlite3.Error as error:
            raise self._unreadable("the spool", error) from error

    def _query(self, query: ReceiptQuery) -> list[Receipt]:
        statement, parameters = sql(query)
        try:
            with self._reader_access:
                if self._reader is None:
                    self._reader = open_reader(self._path)
                rows = self._reader.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable("the receipts", error) from error
        return [_decoder.decode(blob) for (blob,) in rows]

    def _unreadable(self, what: str, error: sqlite3.Error) -> StoreError:
        if is_broken(error):
            self._damage = str(error)  # the writer may go on for long in pages that it remembers
        return StoreError(f"{what} in {self._path} cannot be read: {error}")

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


_decoder = msgspec.msgpack.Decoder(Receipt)
_encoder = msgspec.msgpack.Encoder()


@contextmanager
def _transaction(connection: sqlite3.Connection, spool: Spool) -> Iterator[None]:
    """All or nothing, of the file and of what the spool remembers of it."""
    mark = spool.mark()
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        spool.back_to(mark)
        # SQLite has rolled back by itself after some errors; then there is no transaction left to end.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _row(number: int, receipt: Receipt) -> tuple[object, ...]:
    return (
        number,
        receipt.id,
        receipt.engine,
        receipt.model,
        receipt.tenant,
        receipt.outcome.value,
        receipt.last_token_ns,
        _encoder.encode(receipt),
    )


def _numbered(number: int, data: bytes) -> NumberedReceipt:
    return NumberedReceipt(number, _decoder.decode(data))


def _lock(directory: Path) -> int:
    """Make the directory and hold it for this process; the kernel lets go of it when the process ends."""
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StoreError(
            f"the state directory {directory} cannot be used: {error.strerror}",
            mend="Make it writable for this user, or choose another one with --state DIR",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"another jouled uses the state directory {directory}",
            mend="Stop it, or choose another directory with --state DIR",
        ) from error
    return descriptor

"""The store read by somebody who is not the daemon: nothing is locked, written or set aside."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from jouled.model.history import History
from jouled.outputs.store import history
from jouled.outputs.store.database import APPLICATION_ID, StoreError, open_reader

Told = TypeVar("Told")


class StoreReader(Generic[Told]):
    """A store's receipts, each as a `told` (a struct with some of their fields), and its history."""

    def __init__(self, path: Path, told: type[Told]) -> None:
        """Open the file. Raises `StoreError` if it is not there, is not a store, or may not be read."""
        self._path = path
        self._decoder = msgspec.msgpack.Decoder(told)
        if not path.exists():
            raise StoreError(f"there is no store at {path}", mend="Name its directory by --state DIR")
        try:
            self._connection = open_reader(path)
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        if application != APPLICATION_ID:
            raise StoreError(f"{path} is a database of another program", mend="Name the directory by --state DIR")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def receipts(self, since_ns: int, until_ns: int) -> Iterator[Told]:
        """Final receipts of requests that ended within this time. Raises `StoreError`."""
        # In the order in which the daemon tells them, so that sums are the same to the last digit.
        order = "ORDER BY last_token_ns DESC, number DESC"
        statement = f"SELECT receipt FROM receipts WHERE last_token_ns >= ? AND last_token_ns < ? {order}"  # noqa: S608 - fixed words
        try:
            for (blob,) in self._connection.execute(statement, (since_ns, until_ns)):
                yield self._decoder.decode(blob)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._unreadable(error) from error

    def history(self, since_ns: int) -> History:
        """Marks and changes from a time on; none where an older jouled wrote the file. Raises `StoreError`."""
        try:
            named = self._connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'marks'").fetchone()
            return history.read(self._connection, since_ns) if named[0] else History()
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self._path} cannot be read: {error}",
            mend="Run this as the user of the daemon, as in `sudo -u jouled jouled report`",
        )

"""The spool: points and receipts in the order in which they were committed, and how far each sink has come.

Points have a table of their own. Receipts are those of the store, so each is written once. A stream's numbers only
grow, whatever is removed, so that a cursor always means the same place. All functions run inside the transaction of a
commit; an older jouled that knows nothing of these tables leaves them alone.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from jouled.model.points import Kind

KINDS: tuple[Kind, ...] = ("points", "receipts")
DEAD_LETTERS_KEPT = 1_000
"""Records that a sink refused for good, kept to be looked at; older ones are dropped."""
_REMOVED_AT_ONCE = 2_000
LONGEST_UNCERTAIN_NS = 600_000_000_000
"""A daemon that ends every few seconds makes nothing certain; all of it would be sent again at each of its starts."""


_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (number INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, points BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS cursors (
    sink TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (sink, kind)
);
CREATE TABLE IF NOT EXISTS certain (
    sink TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, taken INTEGER NOT NULL, since_ns INTEGER NOT NULL,
    PRIMARY KEY (sink, kind)
);
CREATE TABLE IF NOT EXISTS numbers (kind TEXT PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL, sink TEXT NOT NULL, kind TEXT NOT NULL,
    record INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL
);
"""

_CERTAIN = """
SELECT sink, kind, certain.number, since_ns FROM certain JOIN cursors USING (sink, kind)
WHERE cursors.number = certain.taken
"""

Stream = tuple[str, Kind]
"""A sink's name and one of the streams it takes."""


_Mark = tuple[int, dict[Stream, int], dict[Stream, int], dict[tuple[str, Kind, str], int], list[tuple[Kind, int]]]


class Limits(Struct, frozen=True, kw_only=True):
    """How much may wait: points by their bytes and age; receipts by the limits of the store."""

    points_bytes: int = 256 * 1024 * 1024
    points_ns: int = 7 * 86_400 * 1_000_000_000


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A record that a sink refused for good."""

    sink: str
    kind: Kind
    record: int
    wall_ns: int
    reason: str
    message: str


class Outgoing(Struct, frozen=True, kw_only=True):
    """What a commit brings to the spool.

    points: with their Unix nanoseconds. cursors: the number up to which sinks have taken a stream. certain: the number
    up to which they need it no more, even if their receiver forgets what it has just taken; where missing, the cursor.
    """

    points: Sequence[tuple[int, bytes]] = ()
    cursors: Mapping[Stream, int] = {}
    certain: Mapping[Stream, int] = {}
    dead_letters: Sequence[DeadLetter] = ()


NOTHING_OUT = Outgoing()


class Waiting(Struct, frozen=True, kw_only=True):
    """What waits after a commit.

    points_bytes: of all points. oldest_ns: by stream, Unix nanoseconds of the oldest record that its sink has not
    taken; streams with nothing waiting are missing.
    """

    points_bytes: int = 0
    oldest_ns: Mapping[Stream, int] = {}


class Spool:
    """The spool's tables in one database. `dropped` counts what limits took from sinks, until somebody takes it over.

    points_bytes: of all points that wait; cursors: the number up to which each sink has taken each of its streams;
    certain: the number up to which it will not be sent again.

    Used by the writing thread only.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.points_bytes = 0
        self._next: dict[Kind, int] = {"points": 1, "receipts": 1}
        self._numbers_kept: list[tuple[Kind, int]] = []
        self.cursors: dict[Stream, int] = {}
        self.certain: dict[Stream, int] = {}
        self._since_ns: dict[Stream, int] = {}
        self.dropped: dict[tuple[str, Kind, str], int] = {}

    def open(self, connection: sqlite3.Connection) -> None:
        """Make the tables where they are missing, and see what is in them."""
        connection.executescript(_SCHEMA)
        (self.points_bytes,) = connection.execute("SELECT coalesce(sum(length(points)), 0) FROM points").fetchone()
        rows = connection.execute("SELECT sink, kind, number FROM cursors").fetchall()
        self.cursors = {(sink, kind): number for sink, kind, number in rows}
        # An older jouled moves cursors without a word in `certain`, which then says nothing.
        rows = connection.execute(_CERTAIN).fetchall()
        self.certain = self.cursors | {(sink, kind): number for sink, kind, number, _ in rows}
        self._since_ns = {(sink, kind): since_ns for sink, kind, _, since_ns in rows}
        given = dict(connection.execute("SELECT kind, last FROM numbers").fetchall())
        for kind in KINDS:
            # An older jouled gives receipts the next number without a word here.
            (last,) = connection.execute(f"SELECT coalesce(max(number), 0) FROM {kind}").fetchone()  # noqa: S608 - one of two words
            self._next[kind] = max(self._next[kind], last + 1, given.get(kind, 0) + 1)

    def reopen(self, connection: sqlite3.Connection) -> None:
        """Go on in a fresh file: numbers go on from memory, and what waited in the lost one is dropped."""
        cursors = self.cursors
        self.open(connection)
        self.cursors, self.certain = {}, {}
        for (sink, kind), number in cursors.items():
            self._drop(sink, kind, "store_lost", self._next[kind] - 1 - number)
        self.subscribe(connection, cursors)

    def subscribe(self, connection: sqlite3.Connection, streams: Iterable[Stream]) -> None:
        """These streams are wanted from now on, beside those that are already: a new one begins at the end."""
        fresh = {stream: self._next[stream[1]] - 1 for stream in sorted(set(streams) - self.cursors.keys())}
        self.cursors |= fresh
        self.certain |= fresh
        self._write_cursors(connection, fresh)

    def keep_only(self, connection: sqlite3.Connection, streams: Iterable[Stream]) -> None:
        """No others are wanted any more: nothing waits for them."""
        gone = self.cursors.keys() - set(streams)
        for table in ("cursors", "certain"):
            connection.executemany(f"DELETE FROM {table} WHERE sink = ? AND kind = ?", sorted(gone))  # noqa: S608 - one of two words
        self.cursors = {stream: number for stream, number in self.cursors.items() if stream not in gone}
        self.certain = {stream: number for stream, number in self.certain.items() if stream not in gone}

    def mark(self) -> _Mark:
        """The state in memory, for `back_to` where a transaction fails; numbers that were given stay given."""
        return self.points_bytes, dict(self.cursors), dict(self.certain), dict(self.dropped), self._numbers_kept

    def back_to(self, mark: _Mark) -> None:
        """The transaction was rolled back."""
        self.points_bytes, self.cursors, self.certain, self.dropped, self._numbers_kept = mark

    def next_number(self, kind: Kind) -> int:
        """The number of the next record of a stream; each is given once."""
        number = self._next[kind]
        self._next[kind] += 1
        return number

    def write(self, connection: sqlite3.Connection, outgoing: Outgoing, wall_ns: int) -> None:
        """Take what a commit brings at this Unix time."""
        rows = [(self.next_number("points"), wall_ns, points) for wall_ns, points in outgoing.points]
        connection.executemany("INSERT INTO points VALUES (?, ?, ?)", rows)
        self.points_bytes += sum(len(points) for _, _, points in rows)
        moved = {stream: number for stream, number in outgoing.cursors.items() if stream in self.cursors}
        self.cursors.update(moved)
        for stream, taken in moved.items():
            self._make_certain(stream, outgoing.certain.get(stream, taken), wall_ns)
        self._write_cursors(connection, moved)
        connection.executemany(
            "INSERT INTO dead_letters (wall_ns, sink, kind, record, reason, message) VALUES (?, ?, ?, ?, ?, ?)",
            [(dead.wall_ns, dead.sink, dead.kind, dead.record, dead.reason, dead.message)
             for dead in outgoing.dead_letters],
        )  # fmt: skip
        if outgoing.dead_letters:
            connection.execute(
                "DELETE FROM dead_letters WHERE number <= (SELECT max(number) FROM dead_letters) - ?",
                (DEAD_LETTERS_KEPT,),
            )

    def _make_certain(self, stream: Stream, number: int, wall_ns: int) -> None:
        taken, before = self.cursors[stream], self.certain[stream]
        since_ns = self._since_ns.get(stream, wall_ns)
        if number > before or taken == before:
            since_ns = wall_ns
        elif wall_ns - since_ns > LONGEST_UNCERTAIN_NS:
            number, since_ns = taken, wall_ns
        self.certain[stream] = max(number, before)
        self._since_ns[stream] = since_ns

    def retain(self, connection: sqlite3.Connection, wall_ns: int) -> None:
        """Remove points that every sink has, and the oldest beyond the limits; a large excess takes several commits."""
        certain = min(
            (number for (_, kind), number in self.certain.items() if kind == "points"), default=self._next["points"]
        )
        self._remove(connection, "number <= ?", certain, "")
        self._remove(connection, "wall_ns < ?", wall_ns - self._limits.points_ns, "age")
        while self.points_bytes > self._limits.points_bytes and self._remove(
            connection, "number > ?", 0, "size", at_once=100
        ):
            pass

    def _remove(
        self, connection: sqlite3.Connection, where: str, bound: int, reason: str, at_once: int = _REMOVED_AT_ONCE
    ) -> int:
        oldest = f"SELECT number FROM points WHERE {where} ORDER BY number LIMIT ?"  # noqa: S608 - fixed words
        removed = connection.execute(
            f"DELETE FROM points WHERE number IN ({oldest}) RETURNING number, length(points)",  # noqa: S608 - fixed words
            (bound, at_once),
        ).fetchall()
        self.points_bytes -= sum(length for _, length in removed)
        if reason:
            self.removed("points", [number for number, _ in removed], reason)
        return len(removed)

    def removed(self, kind: Kind, numbers: Sequence[int], reason: str) -> None:
        """Records are gone: count for each sink those that it had not taken."""
        for (sink, of), cursor in self.cursors.items():
            if of == kind:
                self._drop(sink, kind, reason, sum(number > cursor for number in numbers))

    def keep_numbers(self, connection: sqlite3.Connection) -> None:
        """Remember how far the numbers have come, whatever is removed later."""
        last = [(kind, following - 1) for kind, following in self._next.items()]
        if last != self._numbers_kept:
            connection.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?)", last)
            self._numbers_kept = last

    def waiting(self, connection: sqlite3.Connection) -> Waiting:
        """What waits now."""
        oldest = {}
        for (sink, kind), number in self.cursors.items():
            time = "wall_ns" if kind == "points" else "last_token_ns"
            row = connection.execute(
                f"SELECT {time} FROM {kind} WHERE number > ? ORDER BY number LIMIT 1",  # noqa: S608 - fixed words
                (number,),
            ).fetchone()
            if row is not None:
                oldest[sink, kind] = row[0]
        return Waiting(points_bytes=self.points_bytes, oldest_ns=oldest)

    def _drop(self, sink: str, kind: Kind, reason: str, number: int) -> None:
        if number > 0:
            key = (sink, kind, reason)
            self.dropped[key] = self.dropped.get(key, 0) + number

    def _write_cursors(self, connection: sqlite3.Connection, streams: Iterable[Stream]) -> None:
        rows = [
            (sink, kind, self.cursors[sink, kind], self.certain[sink, kind], self._since_ns.get((sink, kind), 0))
            for sink, kind in streams
        ]
        connection.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", [row[:3] for row in rows])
        connection.executemany(
            "INSERT OR REPLACE INTO certain (sink, kind, taken, number, since_ns) VALUES (?, ?, ?, ?, ?)", rows
        )


def read(connection: sqlite3.Connection, kind: Kind, after: int, most: int) -> list[tuple[int, bytes]]:
    """Numbers and bytes of the records behind a cursor, in order."""
    column = "points" if kind == "points" else "receipt"
    statement = f"SELECT number, {column} FROM {kind} WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608 - fixed words
    return connection.execute(statement, (after, most)).fetchall()

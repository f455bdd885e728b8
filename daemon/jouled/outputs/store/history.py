"""Marks of the books and changes of engines, for `jouled report`: two tables beside the receipts.

They are written after the commit that they tell of, in a transaction of their own: a report that lacks a minute is
none the worse for it.
"""

import sqlite3
from collections.abc import Sequence

import msgspec

from jouled.model.history import EngineChange, EngineMark, History
from jouled.model.snapshot import Snapshot

_SCHEMA = """
CREATE TABLE IF NOT EXISTS engine_changes (
    engine TEXT NOT NULL, since_ns INTEGER NOT NULL, facts BLOB NOT NULL, PRIMARY KEY (engine, since_ns)
);
CREATE TABLE IF NOT EXISTS marks (wall_ns INTEGER PRIMARY KEY, marks BLOB NOT NULL);
"""
_LAST = "SELECT engine, max(since_ns), facts FROM engine_changes GROUP BY engine"
_ALL = "SELECT engine, since_ns, facts FROM engine_changes ORDER BY engine, since_ns"
_SUCCEEDED = """
DELETE FROM engine_changes WHERE EXISTS (
    SELECT 1 FROM engine_changes AS later
    WHERE later.engine = engine_changes.engine AND later.since_ns > engine_changes.since_ns AND later.since_ns < ?
)
"""

_encode = msgspec.msgpack.Encoder().encode
_facts = msgspec.msgpack.Decoder(dict[str, str])
_marks = msgspec.msgpack.Decoder(tuple[EngineMark, ...])


def create(connection: sqlite3.Connection) -> None:
    """Make the tables where they are missing."""
    connection.executescript(_SCHEMA)


def write(
    connection: sqlite3.Connection,
    changes: Sequence[EngineChange],
    marks: Sequence[EngineMark],
    wall_ns: int,
    keep_ns: int,
) -> None:
    """Add what is new at `wall_ns`, and remove what is older than `keep_ns`."""
    connection.executemany(
        "INSERT OR REPLACE INTO engine_changes VALUES (?, ?, ?)",
        [(change.engine, change.since_ns, _encode(change.facts)) for change in changes],
    )
    if marks:
        connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (wall_ns, _encode(marks)))
    connection.execute("DELETE FROM marks WHERE wall_ns < ?", (wall_ns - keep_ns,))
    connection.execute(_SUCCEEDED, (wall_ns - keep_ns,))


def last_changes(connection: sqlite3.Connection) -> list[EngineChange]:
    """What each engine was last."""
    return [_change(*row) for row in connection.execute(_LAST)]


def read(connection: sqlite3.Connection, since_ns: int) -> History:
    """All changes, and the marks that tell of the time from `since_ns` on: the one before it is the first."""
    changes = tuple(_change(*row) for row in connection.execute(_ALL))
    first = "SELECT wall_ns FROM marks WHERE wall_ns <= ? ORDER BY wall_ns DESC LIMIT 1"
    begin_ns = (connection.execute(first, (since_ns,)).fetchone() or (since_ns,))[0]
    rows = connection.execute("SELECT marks FROM marks WHERE wall_ns >= ? ORDER BY wall_ns", (begin_ns,))
    return History(changes, tuple(mark for (row,) in rows for mark in _marks.decode(row)))


def marks_of(snapshot: Snapshot) -> tuple[EngineMark, ...]:
    """How far the books of a snapshot are."""
    offset_ns = snapshot.wall_minus_core_ns
    until_ns = {view.engine.name: view.watermark_ns for view in snapshot.engines}
    owners: dict[tuple[str, str, str], dict[str, int]] = {}
    for (engine, model, owner, quality), amount in snapshot.counters.get("energy_joules_total", {}).items():
        owners.setdefault((engine, model, quality), {})[owner] = int(amount)
    marks = []
    tokens, unreported = (snapshot.counters.get(f"{name}_tokens_total", {}) for name in ("request", "unreported"))
    for (engine, model, quality), owners_uj in owners.items():
        told = {kind: int(tokens.get((engine, model, kind), 0)) for kind in ("prompt_computed", "prompt_cached")}
        watermark_ns = until_ns.get(engine) if engine else snapshot.t_ns
        if watermark_ns is None:
            continue  # its books have not begun, or it is gone
        marks.append(
            EngineMark(
                engine=engine,
                model=model,
                t_ns=watermark_ns + offset_ns,
                quality=quality,
                prompt_tokens=sum(told.values()),
                generation_tokens=int(tokens.get((engine, model, "generation"), 0)),
                unreported_prompt_tokens=int(unreported.get((engine, model, "prompt"), 0)),
                unreported_generation_tokens=int(unreported.get((engine, model, "generation"), 0)),
                owners_uj=owners_uj,
            )
        )
    return tuple(marks)


def _change(engine: str, since_ns: int, facts: bytes) -> EngineChange:
    return EngineChange(engine=engine, since_ns=since_ns, facts=_facts.decode(facts))

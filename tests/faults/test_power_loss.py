"""Power loss: the files are what had been synced, with any part of what came after; nothing acknowledged is gone.

After each commit the database and its journal are copied: that much is on the disk, for a commit returns when it is.
A loss of power is then made of one copy and of a random part of what the next one has beyond it, in sectors, as a disk
may have written them in any order.
"""

import random
from pathlib import Path

import pytest
from tests.support.snapshots import NOW_NS, receipt

from jouled.outputs.store import NO_PROGRESS, Outgoing, ReceiptQuery, Store, may_continue
from jouled.outputs.store.store import FILE_NAME

COMMITS, LOSSES_PER_COMMIT = 60, 2
SECTOR = 512
SALTS = slice(16, 24)
"""Of a journal's header: another generation of it has others (sqlite.org/fileformat2.html, section 4.1)."""


def books(sequence: int) -> bytes:
    return f"books {sequence} ".encode() * 400


class Disk:
    """What was on the disk after each commit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.synced: list[tuple[bytes, bytes]] = []

    def look(self) -> None:
        journal = self._folder / f"{FILE_NAME}-wal"
        self.synced.append(((self._folder / FILE_NAME).read_bytes(), journal.read_bytes() if journal.exists() else b""))

    def after_loss(self, commit: int, dice: random.Random) -> tuple[bytes, bytes]:
        """Database and journal after the power went some time between this commit and the next one."""
        (before, journal), (after, later) = self.synced[commit], self.synced[commit + 1]
        if journal[SALTS] != later[SALTS]:
            # The pages had been carried over; the journal begins anew over the old one.
            assert before == after
            written = dice.randrange(len(later) + 1)
            return after, later[:written] + journal[written:]
        if before != after and dice.random() < 0.5:
            # After the commit was synced its pages are carried over, in any order, from a journal that is whole.
            return mixed(before, after, dice), later
        return before, journal + torn(later[len(journal) :], dice)


def torn(new: bytes, dice: random.Random) -> bytes:
    """A prefix of what was being written, some sectors of which never were."""
    kept = bytearray(new[: dice.randrange(len(new) + 1)])
    for begin in range(0, len(kept), SECTOR):
        if dice.random() < 0.2:
            size = len(kept[begin : begin + SECTOR])
            kept[begin : begin + SECTOR] = dice.choice([bytes(size), dice.randbytes(size)])
    return bytes(kept)


def mixed(before: bytes, after: bytes, dice: random.Random) -> bytes:
    """Sectors of either."""
    found = bytearray(after[: max(len(before), dice.randrange(len(after) + 1))])
    for begin in range(0, min(len(before), len(found)), SECTOR):
        if dice.random() < 0.5:
            found[begin : begin + SECTOR] = before[begin : begin + SECTOR]
    return bytes(found)


@pytest.mark.parametrize("seed", range(3))
async def test_no_commit_that_was_acknowledged_is_lost(tmp_path, seed):
    dice = random.Random(seed)
    folder = tmp_path / "written"
    store = Store(folder)
    store._writer.execute("PRAGMA wal_autocheckpoint = 30")
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: a commit returns when it is synced"
    store.subscribe([("influx", "points"), ("influx", "receipts")])
    disk = Disk(folder)
    for sequence in range(1, COMMITS + 1):
        cursors = {("influx", "points"): sequence // 2, ("influx", "receipts"): sequence // 3}
        points = [(NOW_NS + sequence, dice.randbytes(dice.randrange(1, 4000)))]
        outgoing = Outgoing(points=points, cursors=cursors)
        assert await store.commit(books(sequence), [receipt(sequence)], NOW_NS, NO_PROGRESS, outgoing) == sequence
        disk.look()
    store.close()
    assert len({journal[SALTS] for _, journal in disk.synced}) > 2, "the journal began anew several times"
    for commit in range(COMMITS - 1):
        for loss in range(LOSSES_PER_COMMIT):
            remains = tmp_path / f"{commit}-{loss}"
            lay(remains, *disk.after_loss(commit, dice))
            await check(remains, acknowledged=commit + 1)
            assert broken_in(remains) == []


def lay(folder: Path, database: bytes, journal: bytes) -> None:
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(database)
    (folder / f"{FILE_NAME}-wal").write_bytes(journal)


async def check(folder: Path, acknowledged: int) -> None:
    """The store opens on it and goes on from what was last published, or from the commit that was being written."""
    store = Store(folder)
    found = store.load()
    assert found is not None
    assert found.sequence in {acknowledged, acknowledged + 1}
    assert may_continue(found.sequence, acknowledged)
    assert found.books == books(found.sequence)
    assert len(await store.receipts(ReceiptQuery(limit=1000))) == found.sequence
    places = store.subscribe([("influx", "points"), ("influx", "receipts")])
    assert places == {("influx", "points"): found.sequence // 2, ("influx", "receipts"): found.sequence // 3}
    behind = await store.points_after(places["influx", "points"], 1000, lambda number, _: number)
    assert behind.records == list(range(found.sequence // 2 + 1, found.sequence + 1))
    store.close()


def broken_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.broken*"))

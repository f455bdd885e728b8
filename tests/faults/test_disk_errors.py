"""Input/output errors by injection: a commit that the disk refused was not acknowledged, and the next one brings it."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.snapshots import receipt
from tests.support.tools import REPOSITORY, tool

from jouled.outputs.store import Store

COMMITS = 40

WRITER = """
import asyncio, sys
from pathlib import Path
from jouled.outputs.store import NO_PROGRESS, Outgoing, Store, StoreError
from tests.support.snapshots import NOW_NS, receipt
async def main():
    store = None
    while store is None:
        try:
            store = Store(Path(sys.argv[1]))
        except StoreError:
            pass
    store._writer.execute("PRAGMA wal_autocheckpoint = 10")
    waiting, points = [], []
    for number in range(1, int(sys.argv[2]) + 1):
        waiting.append(receipt(number))
        points.append((NOW_NS + number, b"point %d" % number))
        try:
            await store.commit(b"books", waiting, NOW_NS, NO_PROGRESS, Outgoing(points=points))
        except StoreError as error:
            print("failed", error, flush=True)
            continue
        print("kept", number, flush=True)
        waiting, points = [], []
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=8",
        "fdatasync:error=EIO:when=12+9",
        "pwrite64:error=EIO:when=40+23",
        "pwrite64:error=ENOSPC:when=30..90",
        "fdatasync:error=ENOSPC:when=11+5",
    ],
)
def test_what_was_acknowledged_is_there_and_nothing_twice(tmp_path: Path, fault: str) -> None:
    begun = Store(tmp_path / "state")
    begun.subscribe([("influx", "points")])
    begun.close()
    calls = fault.partition(":")[0]
    command = [tool("strace"), "-f", "-qq", "-o", tmp_path / "trace", "-e", f"trace={calls}", "-e", f"inject={fault}"]
    command += [sys.executable, "-c", WRITER, tmp_path / "state", str(COMMITS)]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=500, cwd=REPOSITORY, check=False
    )
    lines = done.stdout.splitlines()
    kept = [int(line.split()[1]) for line in lines if line.startswith("kept")]
    assert any(line.startswith("failed") for line in lines), f"nothing was refused: {lines} {done.stderr}"
    assert kept, "it never recovered"
    assert "INJECTED" in (tmp_path / "trace").read_text()
    found, points = what_is_there(tmp_path / "state")
    last = kept[-1]
    # What came after the last acknowledged commit may be there too: its writer was told that it is not sure.
    assert found[:last] == [receipt(number).id for number in range(1, last + 1)]
    assert len(found) == len(set(found))
    assert points[:last] == [f"point {number}" for number in range(1, last + 1)]
    assert len(points) == len(set(points))


def what_is_there(folder: Path) -> tuple[list[str], list[str]]:
    """Ids of the receipts, and names of the points, in the order of their numbers; of the file that is in use."""
    store = Store(folder)
    store.load()
    rows = sorted(folder.glob("*.broken-*"))
    assert rows == [], "an error of the disk is no damage of the file"
    store.close()
    with sqlite3.connect(folder / "jouled.sqlite3") as database:
        ids = [row[0] for row in database.execute("SELECT id FROM receipts ORDER BY number")]
        points = [row[0].decode() for row in database.execute("SELECT points FROM points ORDER BY number")]
    database.close()
    return ids, points

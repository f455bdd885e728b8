import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys

import pytest
from tests.support.snapshots import NOW_NS, receipt
from tests.support.tools import REPOSITORY

from jouled.outputs.store import ReceiptQuery, Store, StoreError
from jouled.outputs.store.database import SCHEMA_VERSION
from jouled.outputs.store.store import FILE_NAME

DAY_NS = 86_400 * 1_000_000_000


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def run_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


async def test_a_fresh_store_has_no_books(store):
    assert store.load() is None
    assert await store.receipts(ReceiptQuery()) == []


def test_a_directory_that_is_made_is_closed_to_other_users(tmp_path):
    """Receipts name tenants."""
    Store(tmp_path / "state").close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) & 0o027 == 0


async def test_the_last_commit_comes_back_after_a_restart(tmp_path):
    store = Store(tmp_path / "made/on/the/way")
    assert await store.commit(b"one", [], NOW_NS) == 1
    assert await store.commit(b"two", [receipt(1)], NOW_NS + 1) == 2
    store.close()
    again = Store(tmp_path / "made/on/the/way")
    committed = again.load()
    assert committed is not None
    assert (committed.sequence, committed.books, committed.wall_ns) == (2, b"two", NOW_NS + 1)
    assert await again.receipts(ReceiptQuery()) == [receipt(1)]
    assert await again.commit(b"three", [], NOW_NS) == 3
    again.close()


KILLED_MID_COMMIT = """
import asyncio, sys
from pathlib import Path
from jouled.outputs.store import Store
from tests.support.snapshots import receipt
async def main():
    store = Store(Path(sys.argv[1]))
    for number in range(10**6):
        books = str(number).encode() * 5000
        sequence = await store.commit(books, [receipt(number), receipt(number)], 1795000000000000000)
        print(sequence, flush=True)
asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9_and_books_go_with_their_receipts(tmp_path):
    for _ in range(3):
        process = run_python(KILLED_MID_COMMIT, tmp_path)
        acknowledged = [int(process.stdout.readline()) for _ in range(20)][-1]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        process.wait()
        process.stdin.close()
        process.stdout.close()
        acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        store = Store(tmp_path)
        committed = store.load()
        assert committed.sequence in {acknowledged, acknowledged + 1}
        number = committed.books[: len(committed.books) // 5000]
        assert committed.books == number * 5000
        everything = await store.receipts(ReceiptQuery(limit=10**6))
        assert len(everything) == 2 * committed.sequence
        assert everything[0].id == receipt(max(int(r.id[9:], 16) for r in everything)).id
        store.close()
        assert list(tmp_path.glob("*.broken*")) == []


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from jouled.outputs.store import ReceiptQuery, Store, StoreError
from tests.support.snapshots import receipt
async def main():
    store = Store(Path(sys.argv[1]))
    await store.commit(b"good", [receipt(1)], 1795000000000000000)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        await store.commit(b"x" * 1_000_000, [receipt(2)], 1795000000000000000)
    except StoreError as error:
        print("refused:", error)
    print(store.load().books, len(await store.receipts(ReceiptQuery())))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(await store.commit(b"after", [receipt(2)], 1795000000000000000))
    print(store.load().books, len(await store.receipts(ReceiptQuery())))
    store.close()
asyncio.run(main())
"""


def test_a_full_disk_is_an_error_that_passes(tmp_path):
    process = run_python(FULL_DISK, tmp_path)
    lines = process.communicate(timeout=30)[0].splitlines()
    assert lines[0].startswith("refused: the books were not committed")
    assert "--state DIR" in lines[0]
    assert lines[1:] == ["b'good' 1", "2", "b'after' 2"]


@pytest.mark.parametrize("content", [b"this is no database, not at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_corrupt_file_is_set_aside(tmp_path, caplog, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    store = Store(tmp_path)
    assert store.load() is None
    assert await store.commit(b"fresh", [], NOW_NS) == 1
    store.close()
    assert (tmp_path / f"{FILE_NAME}.broken-1").read_bytes() == content
    assert "set aside" in caplog.text


async def test_books_with_a_flipped_bit_are_not_believed(tmp_path, caplog):
    store = Store(tmp_path)
    await store.commit(b"the total is 1000", [], NOW_NS)
    store.close()
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    assert content.count(b"the total is 1000") == 1
    path.write_bytes(content.replace(b"the total is 1000", b"the total is 9000"))
    again = Store(tmp_path)
    assert again.load() is None
    again.close()
    assert "checksum" in caplog.text


def test_the_database_of_another_program_is_set_aside_unharmed(tmp_path):
    path = tmp_path / FILE_NAME
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE recipes (name)")
    foreign.close()
    content = path.read_bytes()
    for number in (1, 2):
        store = Store(tmp_path)
        assert store.load() is None
        store.close()
        assert (tmp_path / f"{FILE_NAME}.broken-{number}").read_bytes() == content
        path.write_bytes(content)


def test_a_newer_store_is_refused_and_left_alone(tmp_path):
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=r"newer jouled.*--state DIR"):
        Store(tmp_path)
    assert list(tmp_path.glob("*.broken*")) == []


async def test_a_file_that_breaks_while_in_use_is_replaced_and_the_numbering_goes_on(tmp_path, caplog):
    store = Store(tmp_path)
    for number in range(5):
        await store.commit(b"books", [receipt(n) for n in range(number * 200, number * 200 + 200)], NOW_NS)
    await store.receipts(ReceiptQuery())
    store.close()
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    store = Store(tmp_path)
    assert store.load().sequence == 5
    content[8192:] = b"\xa5" * len(content[8192:])
    path.write_bytes(content)
    assert await store.commit(b"whole", [receipt(1)], NOW_NS) == 6
    assert store.load().books == b"whole"
    assert await store.receipts(ReceiptQuery()) == [receipt(1)]
    store.close()
    assert "set aside" in caplog.text


def test_a_directory_that_cannot_be_used_is_named_with_the_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/state cannot be used: Not a directory.*--state DIR"):
        Store(tmp_path / "file/state")


def test_two_daemons_do_not_share_a_state_directory(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="another jouled uses the state directory"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


async def test_receipts_are_removed_by_age(tmp_path):
    store = Store(tmp_path, receipt_days=7)
    old = [receipt(n, last_token_ns=NOW_NS - 8 * DAY_NS + n) for n in range(30)]
    await store.commit(b"", [*old, receipt(99)], NOW_NS)
    assert [r.id for r in await store.receipts(ReceiptQuery())] == [receipt(99).id]
    assert store.removed == {"age": 30, "size": 0}
    store.close()


async def test_receipts_are_removed_by_size_oldest_first(tmp_path):
    store = Store(tmp_path, receipt_mebibytes=1)
    for batch in range(40):
        await store.commit(b"books", [receipt(n) for n in range(batch * 100, batch * 100 + 100)], NOW_NS)
    kept = [int(r.id[9:], 16) for r in await store.receipts(ReceiptQuery(limit=10_000))]
    assert store.removed["size"] == 4000 - len(kept) > 0
    assert sorted(kept) == list(range(4000 - len(kept), 4000))
    assert len(kept) > 400
    store.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 2 * 1024 * 1024


async def test_reading_and_committing_at_once(store):
    async def read() -> None:
        for _ in range(30):
            found = await store.receipts(ReceiptQuery(limit=1000))
            # A commit of ten is seen whole or not at all.
            assert len(found) % 10 == 0

    async def write() -> None:
        for batch in range(30):
            await store.commit(b"b", [receipt(batch * 10 + n) for n in range(10)], NOW_NS)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        group.create_task(read())
        group.create_task(write())
    assert len(await store.receipts(ReceiptQuery(limit=1000))) == 300


async def test_filters_join_and_the_newest_come_first(store):
    await store.commit(b"", [receipt(n, tenant="red" if n % 2 else "") for n in range(1, 13)], NOW_NS)
    everything = await store.receipts(ReceiptQuery())
    assert [r.id for r in everything] == [receipt(n).id for n in range(12, 0, -1)]
    red = await store.receipts(ReceiptQuery(engine=receipt(1).engine, tenant="red"))
    assert [r.id for r in red] == [receipt(n).id for n in (9, 5, 1)]
    assert {r.outcome for r in await store.receipts(ReceiptQuery(outcome="cancelled"))} == {"cancelled"}
    middle = ReceiptQuery(since_ns=receipt(3).last_token_ns, until_ns=receipt(6).last_token_ns)
    assert [r.id for r in await store.receipts(middle)] == [receipt(n).id for n in (5, 4, 3)]
    assert await store.receipts(ReceiptQuery(limit=2, offset=3)) == everything[3:5]
    assert await store.receipts(ReceiptQuery(model=receipt(1).model, limit=1)) == [everything[3]]
    assert await store.receipts(ReceiptQuery(tenant="' OR 1=1 --")) == []


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        ("chatcmpl-abc", "chatcmpl-abc", True),
        ("chatcmpl-abc", "abc", True),
        ("cmpl-abc", "abc", True),
        ("cmpl-abc-0", "cmpl-abc-0", True),
        ("cmpl-abc-0", "cmpl-abc", True),
        ("cmpl-abc-12", "abc", True),
        ("abc", "abc", True),
        ("cmpl-abc-d", "abc", False),
        ("cmpl-abc-0-1", "abc", False),
        ("chatcmpl-abc", "cmpl-abc", False),
        ("chatcmpl-abc", "ab", False),
        ("chatcmpl-abc", "%", False),
        ("abc", "chatcmpl-abc", False),
    ],
)
async def test_a_request_is_found_by_the_id_its_client_knows(store, stored, asked, found):
    await store.commit(b"", [receipt(1, id=stored)], NOW_NS)
    assert bool(await store.receipts(ReceiptQuery(id=asked))) is found


async def test_a_retry_under_one_id_is_another_receipt_and_the_newest_comes_first(store):
    first, second = receipt(1, id="chatcmpl-x"), receipt(2, id="chatcmpl-x")
    await store.commit(b"", [first], NOW_NS)
    await store.commit(b"", [second], NOW_NS)
    assert await store.receipts(ReceiptQuery(id="x")) == [second, first]


async def test_a_forgotten_tenant_leaves_no_byte_behind(tmp_path):
    store = Store(tmp_path)
    store.subscribe([("influx", "receipts")])
    named = [receipt(number, tenant=("acme-corporation", "globex")[number % 2]) for number in range(40)]
    await store.commit(b"books", named, NOW_NS)
    await store.receipts(ReceiptQuery())
    assert await store.forget("acme-corporation") == 20
    left = await store.receipts(ReceiptQuery(limit=100))
    assert {each.tenant for each in left} == {"globex"}
    assert store.take_dropped() == {("influx", "receipts", "forgotten"): 20}
    assert await store.forget("acme-corporation") == 0
    assert holding(tmp_path, b"acme-corporation") == []
    assert holding(tmp_path, b"globex") == [FILE_NAME]
    store.close()


def holding(folder, text):
    return [path.name for path in folder.iterdir() if text in path.read_bytes()]

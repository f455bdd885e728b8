"""The spool: everything once, in order, until every sink has it or a limit took it and said so."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.support.snapshots import NOW_NS, receipt
from tests.support.tools import REPOSITORY

from jouled.outputs.store import NO_PROGRESS, DeadLetter, Limits, Outgoing, ReceiptQuery, Store, StoreError
from jouled.outputs.store.spool import DEAD_LETTERS_KEPT
from jouled.outputs.store.store import FILE_NAME

SECOND_NS = 1_000_000_000
POINTS, RECEIPTS = ("influx", "points"), ("influx", "receipts")


def point(number: int) -> tuple[int, bytes]:
    return NOW_NS + number * SECOND_NS, f"point {number}".encode() * 20


async def commit(store: Store, points=(), receipts=(), at_ns: int = NOW_NS, **outgoing) -> int:
    return await store.commit(b"books", receipts, at_ns, NO_PROGRESS, Outgoing(points=tuple(points), **outgoing))


async def points_after(store: Store, number: int, most: int) -> list[tuple[int, bytes]]:
    return list((await store.points_after(number, most, lambda number, data: (number, data))).records)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


async def test_what_a_commit_brings_is_read_back_in_order(store):
    assert store.subscribe([POINTS, RECEIPTS]) == {POINTS: 0, RECEIPTS: 0}
    await commit(store, [point(1), point(2)], [receipt(1)])
    await commit(store, [point(3)], [receipt(2), receipt(3)])
    assert await points_after(store, 0, 10) == [(number, point(number)[1]) for number in (1, 2, 3)]
    assert await points_after(store, 1, 1) == [(2, point(2)[1])]
    records, damaged = await store.receipts_after(1, 10)
    assert [(r.number, r.receipt) for r in records] == [(2, receipt(2)), (3, receipt(3))]
    assert damaged == []


async def test_places_outlive_a_restart_and_what_everybody_has_is_removed(tmp_path):
    store = Store(tmp_path)
    store.subscribe([POINTS, ("mqtt", "points")])
    await commit(store, [point(number) for number in range(1, 6)])
    await commit(store, cursors={POINTS: 4, ("mqtt", "points"): 2})
    assert [number for number, _ in await points_after(store, 0, 10)] == [3, 4, 5], "the slower one holds them"
    store.close()
    store = Store(tmp_path)
    assert store.subscribe([POINTS, ("mqtt", "points")]) == {POINTS: 4, ("mqtt", "points"): 2}
    await commit(store, cursors={("mqtt", "points"): 5, POINTS: 5})
    assert await points_after(store, 0, 10) == []
    assert store.waiting.points_bytes == 0
    assert store.take_dropped() == {}
    store.close()


async def test_points_that_may_have_to_be_sent_again_stay_and_their_place_outlives_a_restart(tmp_path):
    store = Store(tmp_path)
    store.subscribe([POINTS])
    await commit(store, [point(number) for number in range(1, 6)])
    await commit(store, cursors={POINTS: 4}, certain={POINTS: 2})
    assert [number for number, _ in await points_after(store, 0, 10)] == [3, 4, 5]
    assert store.waiting.oldest_ns == {POINTS: point(5)[0]}, "what was sent does not wait"
    store.close()
    store = Store(tmp_path)
    assert store.subscribe([POINTS]) == {POINTS: 4}
    assert store.certain(POINTS) == 2
    await commit(store, at_ns=point(0)[0] + 8 * 86_400 * SECOND_NS)
    assert store.take_dropped() == {("influx", "points", "age"): 1}, "only what it never had"
    store.close()


async def test_a_daemon_that_ends_all_the_time_does_not_send_everything_again_for_ever(tmp_path):
    store = Store(tmp_path)
    store.subscribe([POINTS])
    for minute in range(12):
        at_ns = NOW_NS + minute * 60 * SECOND_NS
        await commit(store, [point(minute)], at_ns=at_ns)
        await commit(store, cursors={POINTS: minute + 1}, certain={POINTS: 0}, at_ns=at_ns)
        store.close()
        store = Store(tmp_path)
        store.subscribe([POINTS])
    assert store.certain(POINTS) == 12
    store.close()


async def test_a_place_that_an_older_jouled_moved_is_certain(tmp_path):
    store = Store(tmp_path)
    store.subscribe([POINTS])
    await commit(store, [point(number) for number in range(1, 6)], cursors={POINTS: 4}, certain={POINTS: 2})
    store._writer.execute("UPDATE cursors SET number = 5")
    store.close()
    store = Store(tmp_path)
    store.subscribe([POINTS])
    assert store.certain(POINTS) == 5
    store.close()


async def test_a_new_sink_begins_at_the_end_and_a_removed_one_holds_nothing(store):
    store.subscribe([POINTS])
    await commit(store, [point(1)], [receipt(1)])
    wanted = [("mqtt", "points"), ("mqtt", "receipts")]
    assert store.subscribe(wanted) == dict.fromkeys(wanted, 1)
    await commit(store, [point(2)])
    assert [number for number, _ in await points_after(store, 0, 10)] == [1, 2], "the other may come back"
    await store.keep_only(wanted)
    await commit(store)
    assert [number for number, _ in await points_after(store, 0, 10)] == [2]


async def test_a_sink_that_comes_back_gets_no_numbers_again(tmp_path):
    store = Store(tmp_path)
    store.subscribe([POINTS])
    await commit(store, [point(number) for number in range(1, 7)], cursors={POINTS: 6})
    await store.keep_only([])
    await commit(store)
    store.close()
    for _ in range(2):  # two lives without it
        store = Store(tmp_path)
        await commit(store)
        store.close()
    store = Store(tmp_path)
    assert store.subscribe([POINTS]) == {POINTS: 6}
    await commit(store, [point(7)])
    assert [number for number, _ in await points_after(store, 0, 10)] == [7]
    store.close()


async def test_numbers_are_never_given_twice(tmp_path):
    store = Store(tmp_path, receipt_days=1.0)
    store.subscribe([POINTS, RECEIPTS])
    await commit(store, [point(1)], [receipt(1)])
    await commit(store, cursors={POINTS: 1, RECEIPTS: 1}, at_ns=NOW_NS + 2 * 86_400 * SECOND_NS)
    assert (await store.receipts_after(0, 10)).records == [], "all of them are too old"
    store.close()
    store = Store(tmp_path)
    store.subscribe([POINTS, RECEIPTS])
    await commit(store, [point(2)], [receipt(2)])
    assert [number for number, _ in await points_after(store, 0, 10)] == [2]
    assert [r.number for r in (await store.receipts_after(0, 10)).records] == [2]
    store.close()


async def test_limits_take_the_oldest_and_say_from_whom(tmp_path):
    size = len(point(1)[1])
    store = Store(tmp_path, limits=Limits(points_bytes=150 * size, points_ns=1000 * SECOND_NS))
    store.subscribe([POINTS, ("mqtt", "points")])
    await commit(store, [point(number) for number in range(100, 200)])
    await commit(store, [point(number) for number in range(200, 300)], cursors={POINTS: 50})
    assert store.take_dropped() == {("influx", "points", "size"): 50, ("mqtt", "points", "size"): 100}
    assert store.waiting.points_bytes <= 150 * size
    await commit(store, at_ns=point(1250)[0])
    assert store.take_dropped() == {("influx", "points", "age"): 50, ("mqtt", "points", "age"): 50}
    assert [number for number, _ in await points_after(store, 0, 1000)] == list(range(151, 201))
    store.close()


async def test_receipts_that_retention_takes_from_a_sink_are_counted(tmp_path):
    store = Store(tmp_path, receipt_days=1.0)
    store.subscribe([RECEIPTS, ("mqtt", "receipts")])
    await commit(store, receipts=[receipt(number) for number in range(10)])
    await commit(store, cursors={RECEIPTS: 4}, at_ns=NOW_NS + 2 * 86_400 * SECOND_NS)
    assert store.take_dropped() == {("influx", "receipts", "age"): 6, ("mqtt", "receipts", "age"): 10}
    assert store.removed == {"age": 10, "size": 0}
    store.close()


async def test_the_oldest_that_waits_is_told_by_stream(store):
    store.subscribe([POINTS, RECEIPTS])
    await commit(store, [point(1), point(2)], [receipt(5)])
    assert store.waiting.oldest_ns == {POINTS: point(1)[0], RECEIPTS: receipt(5).last_token_ns}
    await commit(store, cursors={POINTS: 1, RECEIPTS: 1})
    assert store.waiting.oldest_ns == {POINTS: point(2)[0]}


async def test_a_commit_that_fails_leaves_no_trace(store):
    store.subscribe([POINTS])
    await commit(store, [point(1)])
    before = store.waiting
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        await commit(store, [point(number) for number in range(2, 2000)], cursors={POINTS: 1})
    store._writer.execute("PRAGMA max_page_count = 1000000")
    await commit(store)
    assert store.waiting == before
    assert await points_after(store, 0, 10) == [(1, point(1)[1])]


async def test_a_lost_file_is_told_and_numbers_go_on(store, tmp_path, caplog):
    store.subscribe([POINTS])
    await commit(store, [point(1), point(2)], cursors={POINTS: 1})
    path = tmp_path / FILE_NAME
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(b"nonsense" * 4096)
    with pytest.raises(StoreError, match="cannot be read"):
        await points_after(store, 0, 10)
    await commit(store, [point(3)])
    assert [number for number, _ in await points_after(store, 0, 10)] == [3]
    assert store.take_dropped() == {("influx", "points", "store_lost"): 1}
    assert "set aside" in caplog.text


async def test_dead_letters_are_bounded(store):
    store.subscribe([POINTS])
    letters = [
        DeadLetter(sink="influx", kind="points", record=number, wall_ns=NOW_NS, reason="refused", message="why")
        for number in range(DEAD_LETTERS_KEPT + 50)
    ]
    await commit(store, dead_letters=letters)
    kept = [record for (record,) in store._writer.execute("SELECT record FROM dead_letters ORDER BY number")]
    assert kept == list(range(50, DEAD_LETTERS_KEPT + 50))


async def test_an_older_jouled_may_write_between(tmp_path):
    """It knows nothing of the spool: its receipts get the next numbers, and the places stay."""
    store = Store(tmp_path)
    store.subscribe([RECEIPTS])
    await commit(store, receipts=[receipt(1)])
    store.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as older:
        older.execute(
            "INSERT INTO receipts (id, engine, model, tenant, outcome, last_token_ns, receipt)"
            " SELECT 'older', engine, model, tenant, outcome, last_token_ns, receipt FROM receipts"
        )
    older.close()
    store = Store(tmp_path)
    assert store.subscribe([RECEIPTS]) == {RECEIPTS: 0}
    await commit(store, receipts=[receipt(3)])
    assert [r.number for r in (await store.receipts_after(0, 10)).records] == [1, 2, 3]
    store.close()


async def test_a_store_of_before_the_spool_is_gone_on_from(tmp_path):
    """The file was written by the version before (commit 2e5baa0): three commits with a receipt each."""
    shutil.copy(REPOSITORY / "tests/fixtures/store/before-the-spool.sqlite3", tmp_path / FILE_NAME)
    store = Store(tmp_path)
    committed = store.load()
    assert (committed.sequence, committed.books) == (3, b"books 3")
    assert store.subscribe([RECEIPTS]) == {RECEIPTS: 3}, "what was there before was never to be sent"
    assert await commit(store, [], [receipt(4)]) == 4
    assert [each.number for each in (await store.receipts_after(3, 10)).records] == [4]
    assert len(await store.receipts(ReceiptQuery())) == 4
    store.close()


class SpoolMachine(RuleBasedStateMachine):
    """Two sinks, commits, restarts: what each may read is what was committed and it has not acknowledged."""

    @initialize()
    def begin(self):
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.written: list[tuple[int, bytes]] = []
        self.places = {"a": 0, "b": 0}
        self.open()

    def open(self):
        self.store = Store(self.folder)
        assert self.store.subscribe([("a", "points"), ("b", "points")]) == {
            (name, "points"): place for name, place in self.places.items()
        }

    def do(self, work):
        return asyncio.run(work)

    @rule(count=st.integers(0, 5), steps=st.fixed_dictionaries({"a": st.integers(0, 4), "b": st.integers(0, 4)}))
    def commit(self, count, steps):
        for name, step in steps.items():
            self.places[name] = min(self.places[name] + step, len(self.written))
        points = [point(len(self.written) + 1 + k) for k in range(count)]
        cursors = {(name, "points"): place for name, place in self.places.items()}
        self.do(commit(self.store, points, cursors=cursors))
        self.written += [(len(self.written) + 1 + k, data) for k, (_, data) in enumerate(points)]

    @rule()
    def restart(self):
        self.store.close()
        self.open()

    @rule()
    def lose_power(self):
        """Another process opens a copy of the files as they are now, nothing having been closed in order."""
        other = self.folder.with_name(self.folder.name + "-next")
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(self.folder, other)
        self.store.close()
        shutil.rmtree(self.folder)
        other.rename(self.folder)
        self.open()

    @invariant()
    def each_reads_what_it_lacks(self):
        if not hasattr(self, "store"):
            return
        for place in self.places.values():
            assert self.do(points_after(self.store, place, 1000)) == self.written[place:]

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)

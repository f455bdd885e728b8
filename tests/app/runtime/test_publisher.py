"""Commit first, then publish; and what counters go on from after a start."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from jouled.app.runtime import publisher as publisher_module
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.publisher import Commit, Publisher, restore
from jouled.core.books import Books, CounterSeries
from jouled.model.device import Quality
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome
from jouled.model.snapshot import Snapshot
from jouled.outputs.store import (
    NO_PROGRESS,
    NOTHING_OUT,
    Outgoing,
    Progress,
    Published,
    ReceiptQuery,
    Store,
    StoreError,
)


def commit(value: int) -> Commit:
    own = OwnCounts.empty()
    own.reads(Batch(source="x", boot_ns=0, wall_ns=0, read_seconds=[0.002] * value, lateness_seconds=[0.5]))
    own.reject("wrong_type")
    return Commit(books=Books(counters={"requests_total": [CounterSeries(("e", "m", "completed"), value)]}), own=own)


def receipt(request_id: str) -> Receipt:
    return Receipt(
        id=request_id,
        engine="e",
        model="m",
        outcome=Outcome.COMPLETED,
        arrival_ns=1,
        first_token_ns=2,
        last_token_ns=10**18,
        prompt_tokens=1,
        generation_tokens=1,
        joules=3.0,
        joules_prefill=1.0,
        joules_decode=1.0,
        joules_resident=1.0,
        quality=Quality.MEASURED,
        provisional=False,
        validity="ok",
    )


SNAPSHOT = Snapshot(t_ns=10**18)


async def test_committed_books_come_back(tmp_path: Path) -> None:
    store, published = Store(tmp_path), Published(tmp_path / "published")
    assert restore(store, published) is None
    publisher = Publisher(store, published, OwnCounts.empty())
    publisher.hold([receipt("a")])
    await publisher.publish(commit(7), SNAPSHOT)
    assert publisher.snapshot.sequence == 1
    assert publisher.snapshot.gauges["store_failing"] == {(): 0.0}
    assert [found.id for found in await store.receipts(ReceiptQuery())] == ["a"]
    restored = restore(store, published)
    assert restored == commit(7)
    store.close()


async def test_older_store_than_published_starts_from_zero(tmp_path: Path) -> None:
    store, published = Store(tmp_path), Published(tmp_path / "published")
    publisher = Publisher(store, published, OwnCounts.empty())
    await publisher.publish(commit(7), SNAPSHOT)
    published.write(5)
    assert restore(store, published) is None
    await publisher.publish(commit(0), SNAPSHOT)
    assert restore(store, published) == commit(0), "the world has seen the zero by now"
    store.close()


async def test_books_of_another_kind_start_from_zero(tmp_path: Path) -> None:
    store, published = Store(tmp_path), Published(tmp_path / "published")
    await store.commit(b"\x93\x01\x02\x03", [], 10**18)
    assert restore(store, published) is None
    store.close()


class BrokenStore(Store):
    """Fails as often as told."""

    failures = 0
    committed: list[str]

    async def commit(
        self,
        books: bytes,
        receipts: Sequence[Receipt],
        wall_ns: int,
        progress: Progress = NO_PROGRESS,
        outgoing: Outgoing = NOTHING_OUT,
    ) -> int:
        if self.failures:
            self.failures -= 1
            raise StoreError("disk full")
        self.committed = [each.id for each in receipts]
        return await super().commit(books, receipts, wall_ns, progress, outgoing)


async def test_what_is_not_committed_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, published = BrokenStore(tmp_path), Published(tmp_path / "published")
    publisher = Publisher(store, published, OwnCounts.empty())
    store.failures = 2
    publisher.hold([receipt("a")])
    await publisher.publish(commit(1), SNAPSHOT)
    publisher.hold([receipt("b")])
    await publisher.publish(commit(2), SNAPSHOT)
    assert publisher.snapshot.sequence == 0
    assert publisher.trouble == "disk full"
    assert publisher.snapshot.gauges["store_failing"] == {(): 1.0}, "the one thing that may be shown uncommitted"
    await publisher.publish(commit(3), SNAPSHOT)
    assert publisher.trouble == ""
    assert publisher.snapshot.sequence == 1
    assert store.committed == ["a", "b"], "receipts wait for the commit that has them"
    assert sum("disk full" in record.message for record in caplog.records) == 1
    store.close()


async def test_receipts_that_find_no_store_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MOST_WAITING_RECEIPTS", 3)
    store, own = BrokenStore(tmp_path), OwnCounts.empty()
    publisher = Publisher(store, Published(tmp_path / "published"), own)
    store.failures = 1
    publisher.hold([receipt(name) for name in "ab"])
    await publisher.publish(commit(1), SNAPSHOT)
    publisher.hold([receipt(name) for name in "cde"])
    assert publisher.waiting == 3
    await publisher.publish(commit(2), SNAPSHOT)
    assert store.committed == ["c", "d", "e"], "the oldest are dropped"
    assert own.added_to(Snapshot()).counters["receipts_dropped_total"] == {("store_failing",): 2}
    assert "receipts_removed_total" not in own.added_to(Snapshot()).counters
    store.close()


async def test_a_burst_larger_than_what_waits_for_a_broken_store_is_committed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MOST_WAITING_RECEIPTS", 3)
    monkeypatch.setattr(publisher_module, "MOST_UNCOMMITTED_RECEIPTS", 6)
    store, own = BrokenStore(tmp_path), OwnCounts.empty()
    publisher = Publisher(store, Published(tmp_path / "published"), own)
    for names in ("abcd", "ef"):
        publisher.hold([receipt(name) for name in names])
    await publisher.publish(commit(1), SNAPSHOT)
    assert store.committed == list("abcdef")
    assert "receipts_dropped_total" not in own.added_to(Snapshot()).counters

    publisher.hold([receipt(name) for name in "ghijklm"])
    assert publisher.waiting == 6, "a commit that never ends does not fill the memory"
    store.failures = 1
    await publisher.publish(commit(2), SNAPSHOT)
    assert publisher.waiting == 3, "the store has been seen to fail"
    assert own.added_to(Snapshot()).counters["receipts_dropped_total"] == {("store_failing",): 4}
    store.close()


async def test_what_retention_removes_is_counted_once(tmp_path: Path) -> None:
    store, own = Store(tmp_path, receipt_days=1), OwnCounts.empty()
    publisher = Publisher(store, Published(tmp_path / "published"), own)
    publisher.hold([receipt("a"), receipt("b")])
    for _ in range(2):
        await publisher.publish(commit(1), Snapshot(t_ns=10**18 + 2 * 86_400 * 10**9))
    assert own.added_to(Snapshot()).counters["receipts_removed_total"] == {("age",): 2}
    store.close()


def test_own_counts_are_added_to_the_snapshot() -> None:
    own = commit(3).own
    own.forwarded["sent"] = 2
    shown = own.added_to(Snapshot(counters={"rejected_events_total": {("wrong_type",): 4}}))
    assert shown.counters["rejected_events_total"] == {("wrong_type",): 5}
    assert shown.counters["forwarded_bodies_total"] == {("sent",): 2}
    histogram = shown.histograms["source_read_duration_seconds"][()]
    assert histogram.counts[-1] == 3
    assert histogram.counts[histogram.bounds.index(0.003)] == 3
    assert histogram.counts[histogram.bounds.index(0.001)] == 0
    assert histogram.sum == pytest.approx(0.006)

"""Marks and changes go into the store beside the receipts, and come back to whoever reads it."""

import sqlite3

import pytest
from tests.support.snapshots import NOW_NS, receipt

from jouled.core.accounting.report import ToldReceipt
from jouled.model.engine import Engine
from jouled.model.history import EngineChange, EngineMark, History
from jouled.model.snapshot import EngineView, Snapshot
from jouled.outputs.store import Store, StoreError, marks_of
from jouled.outputs.store.reading import StoreReader
from jouled.outputs.store.store import FILE_NAME

DAY_NS = 86_400 * 1_000_000_000


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def mark(t_ns: int, tokens: int = 0) -> EngineMark:
    return EngineMark(engine="e", model="m", t_ns=t_ns, generation_tokens=tokens, owners_uj={"decode": 7})


def change(since_ns: int, version: str, engine: str = "e") -> EngineChange:
    return EngineChange(engine=engine, since_ns=since_ns, facts={"version": version})


async def test_what_was_noted_comes_back(store):
    for minute in range(5):
        await store.note([], [mark(minute, minute)], NOW_NS + minute)
    await store.note([change(NOW_NS, "1"), change(NOW_NS + 1, "2")], [], NOW_NS)
    history = await store.history(NOW_NS + 2)
    assert history.marks == (mark(2, 2), mark(3, 3), mark(4, 4))
    assert history.changes == (change(NOW_NS, "1"), change(NOW_NS + 1, "2"))
    assert (await store.history(NOW_NS + 99)).marks == (mark(4, 4),), "the one before tells where a time begins"
    assert len((await store.history(0)).marks) == 5


async def test_a_change_is_known_better_later(store):
    await store.note([change(1, "1")], [], NOW_NS)
    await store.note([change(1, "1.5"), change(9, "2", "f")], [], NOW_NS)
    assert store.last_changes() == [change(1, "1.5"), change(9, "2", "f")]


async def test_they_go_with_the_receipts(tmp_path):
    store = Store(tmp_path, receipt_days=1.0)
    await store.note([change(NOW_NS, "1"), change(NOW_NS + 1, "2")], [mark(1)], NOW_NS)
    await store.note([], [mark(2)], NOW_NS + 2 * DAY_NS)
    history = await store.history(0)
    assert history.marks == (mark(2),)
    assert history.changes == (change(NOW_NS + 1, "2"),), "what an engine is still holds"
    store.close()


async def test_a_store_of_before_gets_its_tables(tmp_path):
    store = Store(tmp_path)
    await store.commit(b"books", [receipt(1)], NOW_NS)
    store.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("DROP TABLE marks")
        connection.execute("DROP TABLE engine_changes")
    connection.close()
    reader = StoreReader(tmp_path / FILE_NAME, ToldReceipt)
    assert reader.history(0) == History()
    assert len(list(reader.receipts(0, 2 * NOW_NS))) == 1
    reader.close()
    again = Store(tmp_path)
    assert again.last_changes() == []
    await again.note([change(1, "1")], [mark(1)], NOW_NS)
    again.close()


async def test_it_is_read_beside_the_daemon(store, tmp_path):
    await store.commit(b"books", [receipt(1), receipt(2)], NOW_NS)
    await store.note([change(1, "1")], [mark(1)], NOW_NS)
    reader = StoreReader(tmp_path / FILE_NAME, ToldReceipt)
    told = list(reader.receipts(0, 2 * NOW_NS))
    assert sorted(r.joules for r in told) == sorted(r.joules for r in (receipt(1), receipt(2)))
    assert list(reader.receipts(0, 1)) == []
    assert reader.history(0) == History((change(1, "1"),), (mark(1),))
    reader.close()


@pytest.mark.parametrize("content", [None, b"garbage" * 1000, b""])
def test_what_is_no_store_is_said(tmp_path, content):
    path = tmp_path / FILE_NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"no store|cannot be read|another program"):
        StoreReader(path, ToldReceipt)
    assert content is None or path.read_bytes() == content


async def test_damaged_marks_are_said(store, tmp_path):
    await store.note([], [mark(1)], NOW_NS)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE marks SET marks = X'c1'")
    connection.close()
    with pytest.raises(StoreError, match="marks"):
        await store.history(0)


def test_the_marks_of_a_snapshot():
    snapshot = Snapshot(
        t_ns=100,
        wall_minus_core_ns=1000,
        counters={
            "energy_joules_total": {
                ("e", "m", "decode", "measured"): 5,
                ("e", "m", "idle", "measured"): 2,
                ("", "", "idle", "measured"): 9,
                ("begun not", "m", "idle", "measured"): 1,
            },
            "request_tokens_total": {
                ("e", "m", "prompt_computed"): 3,
                ("e", "m", "prompt_cached"): 4,
                ("e", "m", "generation"): 6,
            },
            "unreported_tokens_total": {("e", "m", "prompt"): 8, ("e", "m", "generation"): 1},
        },
        engines=(EngineView(engine=Engine(name="e"), watermark_ns=70), EngineView(engine=Engine(name="begun not"))),
    )
    assert marks_of(snapshot) == (
        EngineMark(
            engine="e",
            model="m",
            t_ns=1070,
            prompt_tokens=7,
            generation_tokens=6,
            unreported_prompt_tokens=8,
            unreported_generation_tokens=1,
            owners_uj={"decode": 5, "idle": 2},
        ),
        EngineMark(engine="", model="", t_ns=1100, owners_uj={"idle": 9}),
    )

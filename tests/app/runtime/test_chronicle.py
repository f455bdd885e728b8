"""What an engine was, and from when on: told by one row for each change, however it comes and goes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from jouled.app.runtime.chronicle import Chronicle
from jouled.core.accounting.epochs import Span
from jouled.core.accounting.report import used
from jouled.model.engine import Engine
from jouled.model.history import EngineChange
from jouled.model.snapshot import EngineView, Snapshot
from jouled.outputs.store import Store, StoreError

SECOND = 1_000_000_000
OFFSET = 1_800_000_000 * SECOND
ENGINE = Engine(name="e", model="m", version="1", url="http://127.0.0.1:1")
FACTS = {"model": "m", "version": "1", "role": "unified"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def snapshot(at: float, engine: Engine = ENGINE, *, sampled: float | None = None) -> Snapshot:
    t_ns = round(at * SECOND)
    last_ns = t_ns if sampled is None else round(sampled * SECOND)
    view = EngineView(engine=engine, last_sample_ns=last_ns, watermark_ns=t_ns)
    counters = {"energy_joules_total": {("e", "m", "decode", "measured"): round(at)}}
    return Snapshot(t_ns=t_ns, wall_minus_core_ns=OFFSET, engines=(view,), counters=counters)


def engine(**changes: str) -> Engine:
    return Engine(**{"name": "e", "model": "m", "version": "1", "url": "http://127.0.0.1:1", **changes})


async def live(chronicle: Chronicle, since: int, until: int, told: Engine = ENGINE, **options: float) -> None:
    for second in range(since, until):
        await chronicle.look(snapshot(second, told, **options))


async def rows(store: Store) -> list[tuple[float, dict[str, str]]]:
    changes = (await store.history(0)).changes
    return [((change.since_ns - OFFSET) / SECOND, change.facts) for change in changes]


async def test_an_engine_is_noted_once_it_has_held(store):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 30)
    assert await rows(store) == []
    await live(chronicle, 30, 500)
    assert await rows(store) == [(0.0, FACTS)]


@pytest.mark.parametrize(
    ("now", "facts"),
    [
        ({"version": "2"}, {"version": "2"}),
        ({"precision": "fp8"}, {"precision": "fp8"}),
        ({"parallelism": "tp4 pp2 cp2"}, {"parallelism": "tp4 pp2 cp2"}),
        ({"speculation": "eagle"}, {"speculation": "eagle"}),
        ({"kv_connector": "nixl"}, {"kv_connector": "nixl"}),
        ({"role": "decode"}, {"role": "decode"}),
        ({"model": "n"}, {"model": "n"}),
    ],
)
async def test_every_change_is_a_row(store, now, facts):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100)
    await live(chronicle, 100, 200, engine(**now))
    assert await rows(store) == [(0.0, FACTS), (100.0, {**FACTS, **facts})]
    await live(chronicle, 200, 300)
    assert (await rows(store))[2:] == [(200.0, FACTS)], "and so is the way back"


async def test_what_is_learned_later_is_no_change(store):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100, engine(version=""))
    await live(chronicle, 100, 200, engine(driver="570"))
    assert await rows(store) == [(0.0, {**FACTS, "driver": "570"})]
    await live(chronicle, 200, 300, engine(version="", driver=""))
    assert await rows(store) == [(0.0, {**FACTS, "driver": "570"})], "that nothing tells it any more is none either"
    await live(chronicle, 300, 400, engine(driver="580"))
    assert len(await rows(store)) == 2


async def test_a_role_that_shows_by_what_a_pool_does_is_no_change(store):
    """After each start it is not known for a while; what else changed with the start is."""
    chronicle, pool = Chronicle(store), {"kv_connector": "nixl"}
    await live(chronicle, 0, 100, engine(**pool))
    await live(chronicle, 100, 200, engine(**pool, role="decode"))
    assert await rows(store) == [(0.0, {**FACTS, **pool, "role": "decode"})]
    await live(chronicle, 200, 300, engine(**pool, version="2"))
    await live(chronicle, 300, 400, engine(**pool, version="2", role="decode"))
    assert (await rows(store))[1:] == [(200.0, {**FACTS, **pool, "role": "decode", "version": "2"})]
    await live(chronicle, 400, 500, engine(**pool, version="2", role="prefill"))
    await live(chronicle, 500, 600, engine(version="2"))
    assert [facts["role"] for _, facts in await rows(store)] == ["decode", "decode", "prefill", "unified"]


async def test_what_does_not_hold_is_no_change(store):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100)
    for second in range(100, 400, 20):
        await live(chronicle, second, second + 10, engine(version="2"))
        await live(chronicle, second + 10, second + 20)
    assert await rows(store) == [(0.0, FACTS)]


async def test_an_engine_that_is_not_read_tells_nothing(store):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100)
    await live(chronicle, 100, 300, engine(version="2"), sampled=60.0)
    assert await rows(store) == [(0.0, FACTS)]


async def test_a_restart_of_the_daemon_goes_on(store):
    await live(Chronicle(store), 0, 100)
    again = Chronicle(store)
    await live(again, 110, 200)
    assert await rows(store) == [(0.0, FACTS)]
    await live(again, 200, 300, engine(version="2"))
    assert [facts["version"] for _, facts in await rows(store)] == ["1", "2"]


async def test_an_endless_name_is_cut(store):
    await live(Chronicle(store), 0, 60, engine(version="9" * 100_000))
    assert len((await rows(store))[0][1]["version"]) == 200


async def test_the_books_are_marked_every_minute(store):
    await live(Chronicle(store), 0, 200)
    marks = (await store.history(0)).marks
    assert [mark.owners_uj["decode"] for mark in marks] == [0, 60, 120, 180]


async def test_the_last_books_are_marked_too(store):
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100)
    chronicle.mark_next()
    await live(chronicle, 100, 101)
    assert [mark.owners_uj["decode"] for mark in (await store.history(0)).marks] == [0, 60, 100]


async def test_a_disk_that_is_full_is_said_once_and_tried_again(tmp_path, caplog):
    class FullStore(Store):
        is_full = True

        async def note(self, changes, marks, wall_ns):
            if self.is_full:
                raise StoreError("the disk is full")
            await super().note(changes, marks, wall_ns)

    store = FullStore(tmp_path)
    chronicle = Chronicle(store)
    await live(chronicle, 0, 100)
    assert await rows(store) == []
    store.is_full = False
    await live(chronicle, 100, 110)
    assert await rows(store) == [(0.0, FACTS)]
    assert len((await store.history(0)).marks) == 1
    assert [record.getMessage() for record in caplog.records] == ["reports will lack some minutes: the disk is full"]
    store.close()


async def test_what_cannot_be_read_at_the_start_is_begun_anew(store, monkeypatch):
    def fail() -> list[EngineChange]:
        raise StoreError("it is damaged")

    monkeypatch.setattr(store, "last_changes", fail)
    chronicle = Chronicle(store)
    await live(chronicle, 0, 60)
    assert await rows(store) == [(0.0, FACTS)]


async def test_a_report_has_all_of_books_that_begin(store):
    """The first mark of an engine, or of its new model, is not where counting begins: the zero before it is."""
    chronicle = Chronicle(store)

    def books(at: int, **decode: int) -> Snapshot:
        views = [EngineView(engine=engine(name=name), watermark_ns=(at - 20) * SECOND) for name in decode]
        counters = {(name, "m", "decode", "measured"): joules * 1_000_000 for name, joules in decode.items()}
        told = {"energy_joules_total": counters}
        return Snapshot(t_ns=at * SECOND, wall_minus_core_ns=OFFSET, engines=tuple(views), counters=told)

    for at in range(200):
        decode = {"old": 5_000 + at} | ({"new": 100 + at} if at >= 70 else {})
        await chronicle.look(books(at, **decode))
    chronicle.mark_next()
    await chronicle.look(books(200, old=5_200, new=300))
    marks = (await store.history(0)).marks
    assert used(marks, Span(0, 2 * OFFSET), {"new"}).joules == pytest.approx(300)
    assert used(marks, Span(0, 2 * OFFSET), {"old"}).joules == pytest.approx(200), "what an earlier run has counted"


async def test_books_of_an_earlier_run_whose_engine_is_not_there_yet_do_not_begin_anew(store):
    chronicle = Chronicle(store)
    gone = snapshot(100)
    for at in range(100, 130):
        await chronicle.look(replace(gone, t_ns=at * SECOND, engines=()))
    await live(chronicle, 130, 300)
    assert used((await store.history(0)).marks, Span(0, 2 * OFFSET)).joules * 1_000_000 <= 300 - 130

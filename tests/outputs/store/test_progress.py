"""What a restart goes on from: saved with the books, bounded, and believed only as a whole."""

import sqlite3
from contextlib import closing

import pytest
from tests.support.snapshots import NOW_NS

from jouled.core.pipeline import Pipeline
from jouled.core.state import freeze
from jouled.model.parameters import Parameters
from jouled.outputs.store import Progress, Saved, Store
from jouled.outputs.store.progress import ATTEMPTS, RESTORING
from jouled.outputs.store.store import FILE_NAME

MINUTE_NS = 60 * 1_000_000_000


def whole() -> Progress:
    return Progress(checkpoint=freeze(Pipeline(Parameters()), "1"))


STATE = b"".join(whole().checkpoint.chunks())


async def committed(store, *progress) -> None:
    for each in progress:
        await store.commit(b"books", [], NOW_NS, each)


def reopened(directory) -> Saved | None:
    store = Store(directory)
    store.load()
    try:
        return store.saved(NOW_NS)
    finally:
        store.close()


def change(directory, statement: str) -> None:
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection, connection:
        connection.execute(statement)


async def test_a_checkpoint_and_the_inputs_since_come_back_in_order(tmp_path):
    store = Store(tmp_path)
    await committed(store, Progress(inputs=b"lost"), whole(), *(Progress(inputs=bytes([n])) for n in range(12)))
    store.close()
    assert reopened(tmp_path) == Saved(STATE, [bytes([n]) for n in range(12)])


async def test_a_checkpoint_replaces_all_inputs_before_it_and_the_file_stays_small(tmp_path):
    store = Store(tmp_path)
    for _ in range(40):
        await committed(store, whole(), *(Progress(inputs=n.to_bytes(2, "big") * 20_000) for n in range(5)))
    store.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT count(*) FROM journal").fetchone() == (5,)
    assert (tmp_path / FILE_NAME).stat().st_size < 300_000
    assert len(reopened(tmp_path).inputs) == 5


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM journal WHERE sequence = 3",
        "DELETE FROM journal WHERE sequence = 4",
        "DELETE FROM checkpoint",
        "UPDATE checkpoint SET state = substr(state, 1, 100)",
        "UPDATE journal SET inputs = x'0102' WHERE sequence = 4",
        "UPDATE books SET sequence = 9",
    ],
)
async def test_what_has_a_hole_is_not_gone_on_from(tmp_path, harm):
    store = Store(tmp_path)
    await committed(store, whole(), *(Progress(inputs=b"x") for _ in range(3)))
    store.close()
    change(tmp_path, harm)
    assert reopened(tmp_path) is None


async def test_a_commit_without_progress_leaves_nothing_to_go_on_from(tmp_path):
    store = Store(tmp_path)
    await committed(store, whole(), Progress())
    store.close()
    assert reopened(tmp_path) is None


async def test_a_state_whose_user_never_commits_is_left_alone_in_the_end(tmp_path):
    store = Store(tmp_path)
    await committed(store, whole())
    store.close()
    for _ in range(ATTEMPTS[RESTORING]):
        assert reopened(tmp_path)
    assert reopened(tmp_path) is None


async def test_a_commit_clears_the_attempt_but_not_failures(tmp_path):
    store = Store(tmp_path)
    await committed(store, whole())
    for _ in range(3):
        assert store.saved(NOW_NS)
        await committed(store, whole())
    store.note_failure(NOW_NS - 11 * MINUTE_NS)
    store.note_failure(NOW_NS - 2 * MINUTE_NS)
    await committed(store, whole())
    assert store.saved(NOW_NS), "one failure in ten minutes"
    await committed(store, whole())
    store.note_failure(NOW_NS - MINUTE_NS)
    assert store.saved(NOW_NS) is None
    assert store.saved(NOW_NS + 10 * MINUTE_NS)
    store.close()


async def test_a_store_of_an_older_version_is_opened(tmp_path):
    store = Store(tmp_path)
    await committed(store, whole())
    store.close()
    for table in ("checkpoint", "journal", "bad_ends"):
        change(tmp_path, f"DROP TABLE {table}")
    store = Store(tmp_path)
    assert store.load().books == b"books"
    assert store.saved(NOW_NS) is None
    await committed(store, whole())
    store.close()
    assert reopened(tmp_path)

"""TensorRT-LLM's files from the folder to the core: lives of its servers, rotation, faults, two clocks."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from jouled.api import Received
from jouled.app.runtime.requests.follow import Follower
from jouled.model.engine import Engine
from jouled.model.requests import RequestEvent
from jouled_collectors.requests.tensorrt_llm_files import TensorrtLlmFilesReceiver, TensorrtLlmFilesSettings

FIXTURE = Path(__file__).parents[3] / "fixtures/requests/tensorrt-llm-64815b5-perf-metrics.jsonl"
FIRST = "perf_metrics-server-gpu1-4711-20261127T080000Z.jsonl"
SECOND = "perf_metrics-server-gpu1-5812-20261127T093000Z.jsonl"
ENDED_SECONDS = 4_995.0  # of the fixture's first request, by its host's steady clock
LASTED_NS = 5_010_000_000


class Core:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[RequestEvent] = []
        self.refused: Counter[str] = Counter()

    async def accept(self, received: Received) -> Received:
        self.events += [each.event for each in received.requests if isinstance(each.event, RequestEvent)]
        self.refused.update(each.reason for each in received.rejected)
        self.refused.update(received.more_rejected)
        return received

    def count(self, reason: str, number: int) -> None:
        self.refused[reason] += number

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "perf_metrics"
    made.mkdir()
    return made


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def follow(core: Core, folder: Path) -> Callable[[], Follower]:
    """Begins to follow, as a daemon does that starts."""
    settings = TensorrtLlmFilesSettings(directory=str(folder))
    engines = [Engine(name="trt-8000", type="tensorrt_llm")]
    return lambda: Follower(
        TensorrtLlmFilesReceiver(), settings, core.accept, core.count, lambda: engines, folder.parent
    )


async def read_all(follower: Follower) -> None:
    while await follower.follow_once():
        pass


def line(request_id: int, ended_ago: float = 0.1) -> str:
    """A line as the server writes it, of a request that ended so many seconds ago by this host's steady clock."""
    record = json.loads(FIXTURE.read_bytes().splitlines()[0]) | {"request_id": request_id}
    timing = record["perf_metrics"]["timing_metrics"]
    moved = time.monotonic() - ended_ago - ENDED_SECONDS
    record["perf_metrics"]["timing_metrics"] = {name: seconds + moved for name, seconds in timing.items()}
    return json.dumps(record, separators=(",", ":")) + "\n"


def append(path: Path, *texts: str) -> None:
    with path.open("a") as file:
        file.writelines(texts)


async def test_a_request_is_where_it_was_on_the_wall_clock(folder, core, follow):
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(1, ended_ago=2.0))
    written_ns = time.time_ns()
    await read_all(follower)
    (event,) = core.events
    assert event.last_token_ns == pytest.approx(written_ns - 2e9, abs=0.2e9)
    assert event.last_token_ns - event.arrival_ns == pytest.approx(LASTED_NS, abs=1_000)


async def test_what_was_there_before_the_first_start_is_not_read(folder, core, follow):
    append(folder / FIRST, line(1))
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(2))
    await read_all(follower)
    assert core.ids == ["2"]


async def test_a_server_that_starts_again_writes_another_file(folder, core, follow):
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(1))
    await read_all(follower)
    append(folder / FIRST, line(2))
    append(folder / SECOND, line(1, ended_ago=0.0))
    await read_all(follower)
    assert sorted(core.ids) == ["1", "1", "2"]
    assert not core.refused


async def test_a_file_that_is_rotated_is_read_to_its_end(folder, core, follow):
    """The server opens the file for each write: after a renaming it goes on in a new one of the old name."""
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(1))
    await read_all(follower)
    append(folder / FIRST, line(2))
    (folder / FIRST).rename(folder / FIRST.replace(".jsonl", ".1.jsonl"))
    append(folder / FIRST, line(3))
    await read_all(follower)
    assert sorted(core.ids) == ["1", "2", "3"]


async def test_a_line_that_is_cut_waits_for_its_rest(folder, core, follow):
    follower = follow()
    await read_all(follower)
    whole = line(1)
    append(folder / FIRST, whole[:200])
    await read_all(follower)
    assert core.ids == []
    append(folder / FIRST, whole[200:], line(2))
    await read_all(follower)
    assert core.ids == ["1", "2"]


async def test_a_line_that_a_full_disk_cut_costs_what_was_written_to_it(folder, core, follow):
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(1)[:200], line(2), line(3))
    await read_all(follower)
    assert core.ids == ["3"]
    assert core.refused == {"broken_json": 1}


async def test_foreign_lines_are_counted_and_foreign_files_not_read(folder, core, follow):
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, "not ours\n", '{"level":"INFO"}\n', "\n", line(1))
    append(folder / "perf_metrics-disagg-gpu1-4713-20261127T080000Z.jsonl", line(2))
    append(folder / "requests-2026112708-trace.jsonl", line(3))
    (folder / SECOND).symlink_to(folder / FIRST)
    await read_all(follower)
    assert core.ids == ["1"]
    assert core.refused == {"broken_json": 1, "missing_field": 1}


async def test_a_file_that_vanishes_is_counted_if_something_was_unread(folder, core, follow):
    follower = follow()
    await read_all(follower)
    append(folder / FIRST, line(1))
    append(folder / SECOND, line(2), "unfinished")
    await read_all(follower)
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()
    await read_all(follower)
    append(folder / FIRST, line(3))
    await read_all(follower)
    assert sorted(core.ids) == ["1", "2", "3"]
    assert core.refused == {"file_removed": 1}


async def test_a_restart_loses_nothing_and_repeats_nothing(folder, core, follow):
    first = follow()
    await read_all(first)
    append(folder / FIRST, line(1))
    await read_all(first)
    append(folder / FIRST, line(2, ended_ago=60.0))
    append(folder / SECOND, line(3))
    await read_all(follow())
    assert sorted(core.ids) == ["1", "2", "3"]
    ages = {event.id: time.time_ns() - event.last_token_ns for event in core.events}
    assert ages["2"] == pytest.approx(60e9, abs=5e9)


async def test_what_an_earlier_boot_left_unread_is_refused(folder, core, follow):
    """Its seconds are of another clock: put on this one, they would lie after the file's last writing."""
    await read_all(follow())
    append(folder / FIRST, line(1), line(2))
    hours_ago_ns = time.time_ns() - 3 * 3600 * 10**9
    os.utime(folder / FIRST, ns=(hours_ago_ns, hours_ago_ns))
    append(folder / SECOND, line(3))
    await read_all(follow())
    assert core.ids == ["3"]
    assert core.refused == {"foreign_clock": 2}

"""Real child processes: batches arrive, deaths and hangs are noticed, nothing is left behind."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest
from tests.app.runtime.fakes import FakeCollector, FakeSettings
from tests.support.tools import REPOSITORY

from jouled.app.runtime.batch import Batch
from jouled.app.runtime.children import ChildSupervisor
from jouled.app.runtime.clock import BootClock
from jouled.model.errors import SourceState


class Inbox:
    """What was delivered."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._news = asyncio.Event()

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._news.set()

    async def until(self, condition: Callable[[Batch], object]) -> Batch:
        async with asyncio.timeout(10):
            while True:
                for batch in self.batches:
                    if condition(batch):
                        return batch
                self._news.clear()
                await self._news.wait()


def with_state(state: SourceState, reason: str = "") -> Callable[[Batch], bool]:
    return lambda batch: any(report.state is state and report.reason.startswith(reason) for report in batch.reports)


@contextlib.asynccontextmanager
async def supervised(
    monkeypatch: pytest.MonkeyPatch, behaviour: str, hung_seconds: float = 30.0
) -> AsyncIterator[tuple[ChildSupervisor, Inbox]]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    inbox = Inbox()
    supervisor = ChildSupervisor(
        "jouled.power",
        FakeCollector(),
        FakeSettings(behaviour=behaviour),
        BootClock.equal_to_wall_now(),
        inbox.deliver,
        hung_seconds=hung_seconds,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, inbox
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


async def test_child_delivers_and_is_gone_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "steady") as (supervisor, inbox):
        first = await inbox.until(lambda batch: batch.readings)
        assert first.devices[0].name == "gpu0"
        assert abs(first.readings[0].t_ns - time.time_ns()) < 5e9
        await inbox.until(lambda batch: len(batch.readings) >= 5)
        pid = supervisor.pid
        assert pid is not None
    assert not is_alive(pid)


async def test_crash_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "crash") as (_, inbox):
        batch = await inbox.until(with_state(SourceState.DOWN, "child_ended"))
        assert "code 7" in batch.reports[0].message


async def test_fatal_error_is_told_once_and_a_new_process_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "fatal") as (_, inbox):
        await inbox.until(lambda batch: batch.reports and batch is not inbox.batches[0])
        reports = [report for batch in inbox.batches for report in batch.reports]
        assert {report.reason for report in reports} == {"driver_reloaded"}


async def test_hung_child_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "hang", hung_seconds=1.0) as (_, inbox):
        await inbox.until(with_state(SourceState.DOWN, "hung"))


async def test_release_frees_the_device_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "steady") as (supervisor, inbox):
        await inbox.until(lambda batch: batch.readings)
        pid = supervisor.pid
        assert pid is not None
        begun = time.monotonic()
        assert await supervisor.release(0.5)
        assert time.monotonic() - begun < 2
        assert not is_alive(pid)
        await inbox.until(with_state(SourceState.RELEASED))
        inbox.batches.clear()
        await inbox.until(lambda batch: batch.readings)
        assert supervisor.pid not in {None, pid}
        states = {report.state for batch in inbox.batches for report in batch.reports}
        assert states == {SourceState.OK}


async def test_the_parts_of_a_released_source_are_released_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(monkeypatch, "parted") as (supervisor, inbox):
        await inbox.until(lambda batch: batch.readings)
        await supervisor.release(0.3)
        told = await inbox.until(with_state(SourceState.RELEASED))
        assert [(r.source, r.state.value) for r in told.reports] == [("fake", "released"), ("fake/gpu0", "released")]
        inbox.batches.clear()
        again = await inbox.until(lambda batch: batch.readings)
        assert {(r.source, r.state.value) for r in again.reports} == {("fake", "ok"), ("fake/gpu0", "ok")}


PARENT = """
import asyncio, sys
from jouled.app.runtime.children import ChildSupervisor
from jouled.app.runtime.clock import BootClock
from tests.app.runtime.fakes import FakeCollector, FakeSettings
def deliver(batch):
    print(supervisor.pid, flush=True)
supervisor = ChildSupervisor("jouled.power", FakeCollector(), FakeSettings(behaviour=sys.argv[1]),
                             BootClock.equal_to_wall_now(), deliver)
async def main():
    task = asyncio.create_task(supervisor.run())
    while supervisor.pid is None:
        await asyncio.sleep(0.01)
    print(supervisor.pid, flush=True)
    await task
asyncio.run(main())
"""


@pytest.mark.parametrize("behaviour", ["steady", "hang"])
def test_killed_parent_leaves_no_orphan(behaviour: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, behaviour], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    with parent.stdout:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
    ended, _, _ = select.select([pidfd], [], [], 5)
    os.close(pidfd)
    assert ended, "the child outlived its parent"

"""What commits save, and what a start makes of it: core, clock, and the words in the log."""

import time
from pathlib import Path

import pytest

from jouled.app.runtime import continuity
from jouled.app.runtime.clock import BootClock, ClockState
from jouled.app.runtime.continuity import Continuity, boot_id, take_up
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.publisher import Commit, Publisher, restore
from jouled.core.journal import Journal
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, EnergyReading
from jouled.model.snapshot import Snapshot
from jouled.outputs.store import Published, Store

PARAMETERS = Parameters()
HOUR_NS = 3600 * 10**9


class Run:
    """A daemon's core with its store, committed by hand."""

    def __init__(self, directory: Path, clock: BootClock) -> None:
        self.store = Store(directory)
        self.clock = clock
        self.pipeline = Pipeline(PARAMETERS)
        self.journal = Journal()
        self.continuity = Continuity(self.pipeline, self.journal)
        self.publisher = Publisher(self.store, Published(directory / "published"), OwnCounts.empty())

    def feed(self, *items: object) -> None:
        for item in items:
            self.journal.fed(item, self.pipeline.feed(item))  # type: ignore[arg-type]

    def tick(self) -> None:
        now_ns = self.clock.now_ns()
        self.pipeline.advance(now_ns)
        self.journal.advanced(now_ns)

    async def commit(self, boot: str | None = None) -> None:
        clock = ClockState(boot_id() if boot is None else boot, self.clock.offset_ns)
        commit = Commit(books=self.pipeline.books(), own=OwnCounts.empty(), clock=clock)
        await self.publisher.publish(commit, Snapshot(t_ns=self.clock.now_ns()), self.continuity.progress())


async def ended(directory: Path, *, clock: BootClock, boot: str | None = None, step_ns: int = 0) -> int:
    """A run of two commits that has ended; the core's last moment."""
    run = Run(directory, clock)
    now_ns = clock.now_ns()
    run.feed(Device(name="gpu0", kind=DeviceKind.GPU), EnergyReading("gpu0", now_ns, 5_000_000))
    run.tick()
    await run.commit(boot)
    run.feed(EnergyReading("gpu0", now_ns + 10**8, 6_000_000))
    if step_ns:
        run.feed(ClockStep(now_ns, step_ns))
    run.tick()
    await run.commit(boot)
    run.store.close()
    return run.pipeline.now_ns


def started(directory: Path, parameters: Parameters = PARAMETERS) -> continuity.TakenUp:
    store = Store(directory)
    try:
        return take_up(store, restore(store, Published(directory / "published")), parameters)
    finally:
        store.close()


async def test_core_time_goes_on_with_boot_time_whatever_the_wall_clock_did(tmp_path: Path) -> None:
    offset_ns = BootClock.equal_to_wall_now().offset_ns - 7 * HOUR_NS
    last_ns = await ended(tmp_path, clock=BootClock(offset_ns))
    taken = started(tmp_path)
    assert taken.result == "resumed"
    assert taken.clock.offset_ns == offset_ns
    assert last_ns <= taken.clock.now_ns() < last_ns + 60 * 10**9


async def test_after_a_reboot_core_time_goes_on_with_the_wall_clock(tmp_path: Path) -> None:
    last_ns = await ended(tmp_path, clock=BootClock.equal_to_wall_now(), boot="another", step_ns=-HOUR_NS)
    taken = started(tmp_path)
    assert taken.result == "resumed"
    assert taken.clock.now_ns() == pytest.approx(time.time_ns() + HOUR_NS, abs=10**9)
    assert taken.clock.now_ns() >= last_ns
    now_ns = taken.clock.now_ns()
    taken.pipeline.feed(EnergyReading("gpu0", now_ns, 90_000_000))
    taken.pipeline.advance(now_ns)
    assert taken.pipeline.snapshot(now_ns).total.downtime_uj == 0, "counters began anew with the machine"


async def test_core_time_never_goes_back_over_a_reboot(tmp_path: Path) -> None:
    ahead = BootClock(BootClock.equal_to_wall_now().offset_ns + 5 * HOUR_NS)
    last_ns = await ended(tmp_path, clock=ahead, boot="another")
    assert started(tmp_path).clock.now_ns() >= last_ns


async def test_another_configuration_goes_on_from_the_books_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await ended(tmp_path, clock=BootClock.equal_to_wall_now())
    taken = started(tmp_path, Parameters(wait_seconds=3.0))
    assert taken.result == "books_only"
    assert "another configuration" in caplog.text
    total = taken.pipeline.snapshot(0).total
    assert total.unattributed_uj == total.measured_uj - total.idle_uj > 0


def test_the_first_run_goes_on_from_nothing(tmp_path: Path) -> None:
    assert started(tmp_path).result == ""


def test_inputs_until_a_checkpoint_is_due_or_something_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keeper = Continuity(Pipeline(PARAMETERS), Journal())
    assert keeper.progress().checkpoint
    assert not keeper.progress().checkpoint
    keeper.lost()
    assert keeper.progress().checkpoint
    now = 159.0
    assert keeper.progress().inputs
    now = 161.0
    assert keeper.progress().checkpoint
    keeper.whole_next()
    assert keeper.progress().checkpoint


def test_a_flood_of_inputs_is_not_kept_but_the_core_saved_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jouled.core.journal.MOST_ENTRIES", 10)
    monkeypatch.setattr(continuity, "MOST_JOURNAL_BYTES", 300)
    journal = Journal()
    keeper = Continuity(Pipeline(PARAMETERS), journal)
    keeper.progress()
    journal.fed_readings([EnergyReading("gpu0", n, n) for n in range(11)])
    journal.advanced(1)
    assert len(journal) == 0
    assert keeper.progress().checkpoint
    journal.fed_readings([EnergyReading("a-long-name" * 5, n, n) for n in range(6)])
    assert keeper.progress().inputs
    assert keeper.progress().checkpoint


def test_a_core_that_cannot_be_saved_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(PARAMETERS)
    pipeline.stray = print  # type: ignore[attr-defined]
    keeper = Continuity(pipeline, Journal())
    for _ in range(2):
        keeper.lost()
        assert not keeper.progress().checkpoint
    assert sum("none of the core's classes" in record.message for record in caplog.records) == 1

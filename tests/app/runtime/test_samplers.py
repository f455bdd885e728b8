"""The sampler: schedule, batches, errors and back-off, without waiting."""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal

import pytest
from tests.app.runtime.fakes import FakeSource, InstantStop, ManualClock

from jouled.api import Clock, PowerSettings
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.samplers import sample
from jouled.model.errors import SourceError, SourceState


class Scripted:
    """Opens as scripted: an exception is raised, a source is returned."""

    name: ClassVar[str] = "scripted"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = PowerSettings

    def __init__(self, *opens: Callable[[Clock], FakeSource] | Exception) -> None:
        self.opens = list(opens)
        self.sources: list[FakeSource] = []

    def open(self, settings: PowerSettings, clock: Clock) -> FakeSource:
        act = self.opens.pop(0) if len(self.opens) > 1 else self.opens[0]
        if isinstance(act, Exception):
            raise act
        self.sources.append(act(clock))
        return self.sources[-1]


def run(collector: Scripted, waits: int, clock: ManualClock | None = None) -> tuple[list[Batch], InstantStop]:
    clock = clock or ManualClock()
    batches: list[Batch] = []
    stop = InstantStop(clock, waits)
    sample(collector, PowerSettings(), clock, batches.append, stop)
    return batches, stop


def test_first_reading_comes_at_once_with_devices_and_state() -> None:
    batches, _ = run(Scripted(FakeSource), waits=1)
    first = batches[0]
    assert [device.name for device in first.devices] == ["gpu0"]
    assert len(first.readings) == 1
    assert first.reports[0].state is SourceState.OK
    assert first.source == "scripted"
    assert first.wall_ns > 0 < first.boot_ns


def test_ten_reads_a_second_are_one_batch_a_second() -> None:
    batches, _ = run(Scripted(FakeSource), waits=50)
    assert 5 <= len(batches) <= 7
    assert [len(batch.readings) for batch in batches[2:5]] == [10, 10, 10]
    assert all(len(batch.read_seconds) == len(batch.readings) == len(batch.lateness_seconds) for batch in batches)
    assert not batches[1].devices, "known devices are not repeated"


def test_reads_stand_on_an_absolute_grid() -> None:
    batches, _ = run(Scripted(FakeSource), waits=50)
    times = [reading.t_ns for batch in batches[1:] for reading in batch.readings]
    assert all(t_ns % 100_000_000 < 1_000_000 for t_ns in times)


def test_slow_read_skips_ticks_and_counts_them_as_lateness() -> None:
    clock = ManualClock()
    slow_at = iter([False, False, False, True])

    def on_read() -> None:
        if next(slow_at, False):
            clock.ns += 5_000_000_000

    batches, _ = run(Scripted(lambda c: FakeSource(c, on_read)), waits=30, clock=clock)
    late = [value for batch in batches for value in batch.lateness_seconds]
    assert max(late) == pytest.approx(4.9, abs=0.05)
    assert sum(value > 0.01 for value in late) == 1, "no burst of reads makes up for what was missed"
    assert max(value for batch in batches for value in batch.read_seconds) == pytest.approx(5.0, abs=0.01)


def test_error_is_reported_closed_and_opened_again() -> None:
    reads = iter(["ok", "fail"])

    def on_read() -> None:
        if next(reads, "ok") == "fail":
            raise SourceError(SourceState.DOWN, "gpu_lost", "the GPU is lost", mend="Reboot")

    collector = Scripted(lambda c: FakeSource(c, on_read))
    batches, _ = run(collector, waits=20)
    reports = [report for batch in batches for report in batch.reports]
    assert [report.state for report in reports][:3] == [SourceState.OK, SourceState.DOWN, SourceState.OK]
    assert reports[1].reason == "gpu_lost"
    assert (reports[1].message, reports[1].mend) == ("the GPU is lost", "Reboot")
    assert collector.sources[0].closed
    assert len(collector.sources) == 2


def test_parts_are_sources_of_their_own_told_at_each_change() -> None:
    down = SourceError(SourceState.DOWN, "timeout", "pdu2 does not answer", mend="ping pdu2")
    states = iter([{"pdu1": None, "pdu2": None}, {"pdu1": None, "pdu2": down}, {"pdu1": None, "pdu2": down}])
    gone = SourceError(SourceState.DOWN, "network", "no network")

    class Parted(FakeSource):
        def read(self):
            self.parts = next(states, None)
            if self.parts is None:
                raise gone
            return super().read()

        parts = None

    batches, _ = run(Scripted(Parted, gone), waits=40)
    told = [(r.source, r.state.value, r.mend) for batch in batches for r in batch.reports]
    assert told[:6] == [
        ("scripted/pdu1", "ok", ""),
        ("scripted/pdu2", "ok", ""),
        ("scripted", "ok", ""),
        ("scripted/pdu2", "down", "ping pdu2"),
        ("scripted", "down", ""),
        ("scripted/pdu1", "down", ""),
    ]


def test_a_part_that_is_none_any_more_after_opening_again_is_told() -> None:
    gone = SourceError(SourceState.DOWN, "network", "no network")
    sessions = iter([{"pdu1": None, "pdu2": None}, {"pdu1": None}])

    class Parted(FakeSource):
        def __init__(self, clock):
            super().__init__(clock)
            self.parts = next(sessions)
            self.reads = 0

        def read(self):
            self.reads += 1
            if self.reads == 2 and "pdu2" in self.parts:
                raise gone
            return super().read()

    batches, _ = run(Scripted(Parted, Parted), waits=30)
    last = {report.source: (report.state.value, report.reason) for batch in batches for report in batch.reports}
    assert last == {"scripted": ("ok", ""), "scripted/pdu1": ("ok", ""), "scripted/pdu2": ("absent", "gone")}


def test_a_part_that_is_taken_away_while_the_source_works_is_told_once() -> None:
    looks = iter([{"gpu0": None, "gpu1": None}])

    class Parted(FakeSource):
        parts = None

        def read(self):
            self.parts = next(looks, {"gpu0": None})
            return super().read()

    batches, _ = run(Scripted(Parted), waits=10)
    told = [(report.source, report.state.value) for batch in batches for report in batch.reports]
    assert told.count(("scripted/gpu1", "absent")) == 1
    assert told.count(("scripted/gpu0", "ok")) == 1


def test_bug_in_a_collector_is_an_error_like_others(caplog: pytest.LogCaptureFixture) -> None:
    batches, _ = run(Scripted(ZeroDivisionError("by zero"), FakeSource), waits=5)
    reports = [report for batch in batches for report in batch.reports]
    assert (reports[0].state, reports[0].reason) == (SourceState.DOWN, "crash")
    assert reports[1].state is SourceState.OK
    assert "scripted" in caplog.text


@pytest.mark.parametrize(
    ("state", "least", "most"),
    [(SourceState.DOWN, 0.5, 1.0), (SourceState.ABSENT, 30, 60), (SourceState.DENIED, 30, 60)],
)
def test_back_off_depends_on_the_state(state: SourceState, least: float, most: float) -> None:
    clock = ManualClock()
    begun_ns = clock.ns
    batches, _ = run(Scripted(SourceError(state, "why", "because"), FakeSource), waits=70, clock=clock)
    opened = next(report for batch in batches for report in batch.reports if report.state is SourceState.OK)
    assert least <= (opened.t_ns - begun_ns) / 1e9 <= most + 0.1


def test_an_ignored_source_is_asked_again_rarely() -> None:
    clock = ManualClock()
    stop = InstantStop(clock, 200)
    down = SourceError(SourceState.DOWN, "broken", "it is broken")
    batches: list[Batch] = []
    sample(Scripted(down), PowerSettings(startup="ignore"), clock, batches.append, stop)
    asked = [report.t_ns for batch in batches for report in batch.reports]
    assert min(later - before for before, later in pairwise(asked)) >= 30_000_000_000


def test_gives_a_sign_of_life_while_it_waits() -> None:
    batches, stop = run(Scripted(SourceError(SourceState.ABSENT, "none", "no such device")), waits=10)
    assert len(batches) == 10
    assert all(not batch.readings and not batch.reports for batch in batches[1:])
    assert max(stop.waited) <= 1.5


def test_fatal_error_ends_the_sampler() -> None:
    fatal = SourceError(SourceState.DOWN, "driver_reloaded", "another driver", fatal=True)
    batches, stop = run(Scripted(fatal), waits=10)
    assert len(batches) == 1
    assert not stop.waited
    assert not stop.is_set()


def test_what_was_read_last_is_emitted_at_the_stop() -> None:
    collector = Scripted(FakeSource)
    clock = ManualClock()
    batches, _ = run(collector, waits=25, clock=clock)
    times = [reading.t_ns for batch in batches for reading in batch.readings]
    assert clock.ns - times[-1] < 200_000_000
    assert len(times) == 25

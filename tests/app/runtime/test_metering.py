"""What stands around the core: clock steps, sources, failures, recordings."""

import time
from pathlib import Path

import pytest

from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.metering import FAILED, Metering
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.recording.recording import Entry, Writer, read
from jouled.core.pipeline import Input, Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceState
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, EnergyReading, SourceReport


class ListeningPipeline(Pipeline):
    """Keeps what it is fed, and fails on request."""

    def __init__(self) -> None:
        super().__init__(Parameters())
        self.fed: list[Input] = []
        self.fails = False

    def feed(self, item: Input) -> str:
        if self.fails:
            raise ZeroDivisionError("a bug")
        self.fed.append(item)
        return super().feed(item)


def metering(recorder: Writer | None = None) -> tuple[Metering, ListeningPipeline, list[Exception]]:
    pipeline = ListeningPipeline()
    failures: list[Exception] = []
    clock = BootClock.equal_to_wall_now()
    return Metering(pipeline, clock, OwnCounts.empty(), failures.append, recorder), pipeline, failures


def batch(t_ns: int) -> Batch:
    return Batch(
        source="fake",
        boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        wall_ns=t_ns,
        devices=[Device(name="gpu0", kind=DeviceKind.GPU)],
        readings=[EnergyReading("gpu0", t_ns, 5)],
        reports=[SourceReport(source="fake", state=SourceState.OK, t_ns=t_ns)],
    )


def test_batch_is_fed_devices_first() -> None:
    core, pipeline, _ = metering()
    core.take_batch(batch(core.clock.now_ns()))
    assert [type(item) for item in pipeline.fed] == [Device, EnergyReading, SourceReport]
    assert core.sources.view("fake") is not None


def test_step_of_the_wall_clock_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    core, pipeline, _ = metering()
    core.advance()
    assert not pipeline.fed
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_600_000_000_000)
    core.advance()
    core.advance()
    [step] = pipeline.fed
    assert isinstance(step, ClockStep)
    assert step.wall_minus_core_ns == pytest.approx(3_600_000_000_000, abs=50_000_000)
    wall_ns = core.clock.now_ns() + 3_600_000_000_000
    assert core.wall.to_core(wall_ns) == pytest.approx(core.clock.now_ns(), abs=100_000_000)


def test_silent_source_becomes_stale() -> None:
    core, pipeline, _ = metering()
    core.take_batch(batch(core.clock.now_ns()))
    core.clock.offset_ns += 4_000_000_000
    core.advance()
    last = pipeline.fed[-1]
    assert isinstance(last, ClockStep | SourceReport)
    assert core.sources.view("fake").state is SourceState.STALE


def test_error_of_the_core_is_told_once_and_nothing_is_taken_after_it() -> None:
    core, pipeline, failures = metering()
    pipeline.fails = True
    core.take_batch(batch(core.clock.now_ns()))
    assert [type(error) for error in failures] == [ZeroDivisionError]
    pipeline.fails = False
    assert core.feed(EnergyReading("gpu0", 1, 5)) == FAILED
    assert core.advance() == []
    assert not pipeline.fed


def test_everything_fed_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    now_ns = time.time_ns()
    core, _, _ = metering(Writer(path, node="n", started_ns=now_ns, boot_offset_ns=0))
    core.take_batch(batch(now_ns))
    core.close()
    items = [line.item for line in read(path) if isinstance(line, Entry)]
    assert [type(item) for item in items] == [ClockStep, Device, EnergyReading, SourceReport]


def test_full_disk_ends_the_recording_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(tmp_path / "out.jsonl", node="n", started_ns=time.time_ns(), boot_offset_ns=0)
    core, pipeline, failures = metering(writer)

    def full(_item: object) -> None:
        raise OSError(28, "No space left on device")

    writer.write = full  # type: ignore[method-assign, assignment]
    core.take_batch(batch(core.clock.now_ns()))
    assert len(pipeline.fed) == 3
    assert not failures
    assert "No space left" in caplog.text
    writer.close()

"""What is kept of the last ten minutes, and that it is written once when an engine is set aside."""

import gzip
import stat
from pathlib import Path

import pytest

from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.recording import last_minutes
from jouled.app.runtime.recording.last_minutes import MOST_SECONDS, LastMinutes, QuarantineRecorder
from jouled.app.runtime.recording.recording import Entry, Heading, Item, read
from jouled.core.attribution.engine import EngineBook
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading
from jouled.model.snapshot import Snapshot

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
GPU = Device(name="gpu0", kind=DeviceKind.GPU)
ENGINE = Engine(name="e", model="m", devices=("gpu0",))


def reading(second: int) -> EnergyReading:
    return EnergyReading("gpu0", START + second * SECOND + 1, second * 200_000_000)


def ring(seconds: int, first: int = 0) -> LastMinutes:
    kept = LastMinutes(node="n", started_ns=START, boot_offset_ns=1_600_000_000_000_000_000)
    kept.take(GPU)
    kept.take(ENGINE)
    for second in range(first, first + seconds):
        kept.take(DeviceStatus(device="gpu0", t_ns=START))
        kept.take(reading(second))
        kept.turn(START + (second + 1) * SECOND)
    return kept


def items(kept: LastMinutes, tmp_path: Path, now_ns: int = START) -> list[Item]:
    path = tmp_path / "kept.jsonl.gz"
    path.write_bytes(b"".join(kept.members(now_ns)))
    lines = list(read(path))
    assert isinstance(lines[0], Heading)
    assert all(isinstance(line, Entry) for line in lines[1:])
    return [line.item for line in lines if isinstance(line, Entry)]


def test_it_is_a_recording(tmp_path: Path) -> None:
    kept = ring(3)
    kept.take(reading(3))
    found = items(kept, tmp_path)
    assert found[0] == ClockStep(START, 0)
    assert [item for item in found if isinstance(item, EnergyReading)] == [reading(second) for second in range(4)]


def test_what_is_older_goes_and_descriptions_stay(tmp_path: Path) -> None:
    found = items(ring(MOST_SECONDS + 50), tmp_path)
    readings = [item for item in found if isinstance(item, EnergyReading)]
    assert readings == [reading(second) for second in range(50, MOST_SECONDS + 50)]
    assert [type(item) for item in found[:3]] == [ClockStep, Device, Engine]
    assert found[0] == ClockStep(START + 50 * SECOND, 0)


def test_a_flood_shortens_the_time_and_not_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_minutes, "MOST_BYTES", 2_000)
    kept = ring(100)
    members = kept.members(START)
    assert sum(map(len, members[1:])) <= 2_000
    assert items(kept, tmp_path)[-1] == reading(99)


def test_steps_of_the_wall_clock_keep_their_place(tmp_path: Path) -> None:
    kept = ring(2)
    kept.take(ClockStep(START + 2 * SECOND, 3_600 * SECOND))
    for second in range(2, MOST_SECONDS + 3):  # the step itself has gone by then
        kept.take(reading(second))
        kept.turn(START + (second + 1) * SECOND)
    first, *_, last = items(kept, tmp_path)
    assert isinstance(first, ClockStep)
    assert isinstance(last, EnergyReading)
    assert last.t_ns - first.t_ns == pytest.approx((MOST_SECONDS - 1) * SECOND, abs=10)


async def test_an_engine_that_fails_leaves_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_book: EngineBook, _sample: EngineSample) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(EngineBook, "sample", fails)
    failures: list[Exception] = []
    clock = BootClock.equal_to_wall_now()
    kept = LastMinutes(node="n", started_ns=clock.now_ns(), boot_offset_ns=clock.offset_ns)
    core = Metering(Pipeline(Parameters()), clock, OwnCounts.empty(), failures.append, last_minutes=kept)
    recorder = QuarantineRecorder(kept, tmp_path)
    healthy = Snapshot()
    assert await recorder.look(healthy) is healthy
    for item in (GPU, ENGINE, EnergyReading("gpu0", clock.now_ns(), 5)):
        core.feed(item)
    core.feed(EngineSample(engine="e", t_ns=clock.now_ns(), generation_tokens=1))
    core.advance()
    shown = await recorder.look(core.pipeline.snapshot(clock.now_ns()))
    again = await recorder.look(core.pipeline.snapshot(clock.now_ns()))
    [path] = tmp_path.glob("quarantine-*.jsonl.gz")  # noqa: ASYNC240 - a local folder
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shown.degraded == again.degraded
    assert str(path) in shown.degraded[-1]
    assert str(path) in caplog.text
    assert '"engine_counters"' in gzip.decompress(path.read_bytes()).decode(), "what broke it is in it"
    assert not failures, "an engine that is set aside does not end the process"


async def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    recorder = QuarantineRecorder(ring(1), tmp_path / "none")
    shown = await recorder.look(Snapshot(t_ns=START, degraded=("engine e is quarantined",)))
    assert "could not be written" in shown.degraded[-1]

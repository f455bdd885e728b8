"""One look at a power source: whatever it does, an answer comes."""

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from tests.app.runtime.fakes import FakeSource

from jouled.api import PowerSettings
from jouled.app.runtime import probe as probe_module
from jouled.app.runtime.probe import look, probe_all
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading


class Good:
    """Two devices; prints, as vendor libraries do."""

    name: ClassVar[str] = "good"
    isolation = "thread"
    settings_type = PowerSettings
    devices = (Device(name="a", kind=DeviceKind.GPU), Device(name="b", kind=DeviceKind.GPU))
    interval_seconds = 1.0

    def open(self, settings, clock):
        os.write(1, b"hello from the vendor\n")
        return self

    def read(self):
        status = DeviceStatus(device="a", t_ns=1, processes=(41, 42))
        return [EnergyReading("a", 1, 5_000_000), PowerReading("b", 1, 7.0), status]

    def close(self):
        pass


class TellsOnce(Good):
    """As NVML and AMD do: the processes with the first reading, and then every ten seconds."""

    def __init__(self):
        self.reads = 0

    def read(self):
        self.reads += 1
        return super().read()[: 3 if self.reads == 1 else 2]


class Denied(Good):
    """May not be read."""

    name: ClassVar[str] = "denied"

    def open(self, settings, clock):
        raise SourceError(SourceState.DENIED, "permission", "Not allowed", mend="chmod it")


class Crashing(Good):
    """Has a bug."""

    name: ClassVar[str] = "crashing"

    def read(self):
        raise KeyError("oops")


class Dying(Good):
    """Takes its process with it."""

    name: ClassVar[str] = "dying"

    def open(self, settings, clock):
        os.abort()


class Hanging(Good):
    """Never answers."""

    name: ClassVar[str] = "hanging"

    def open(self, settings, clock):
        time.sleep(3600)


@pytest.fixture
def importable(monkeypatch, tmp_path):
    """The collectors of this file, importable by the child."""
    name = "probed_collectors"
    (tmp_path / f"{name}.py").write_bytes(Path(__file__).read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    return __import__(name)


def test_every_source_gets_its_answer_and_the_worst_ones_do_not_delay_the_rest(importable):
    kinds = [importable.Good, importable.Denied, importable.Crashing, importable.Dying, importable.Hanging]
    collectors = {kind.name: kind() for kind in kinds}
    begun = time.monotonic()
    good, denied, crashing, dying, hanging = probe_all(collectors, dict.fromkeys(collectors, PowerSettings()), 5.0)
    assert time.monotonic() - begun < 15
    assert good.state is SourceState.OK
    assert [device.name for device in good.devices] == ["a", "b"]
    assert good.energies[0].microjoules == 5_000_000
    assert good.powers[0].watts == 7.0
    assert good.processes == {"a": (41, 42)}
    assert good.read_seconds >= 0
    assert (denied.state, denied.reason, denied.message, denied.mend) == (
        SourceState.DENIED, "permission", "Not allowed", "chmod it",
    )  # fmt: skip
    assert (crashing.state, crashing.reason) == (SourceState.DOWN, "crash")
    assert "KeyError: 'oops'" in crashing.message
    assert (dying.state, dying.reason) == (SourceState.DOWN, "crash")
    assert (hanging.state, hanging.reason) == (SourceState.DOWN, "timeout")


def test_a_meter_that_tells_by_itself_gets_time_for_its_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_LOOK_SECONDS", 0.0)
    waiting = SourceError(SourceState.DOWN, "waiting", "plug1 has told nothing yet")

    class Slow(FakeSource):
        parts = {"plug1": waiting}  # noqa: RUF012
        reads = 0

        def read(self):
            self.reads += 1
            self.parts = {"plug1": waiting if self.reads < 4 else None, "plug2": None}
            return super().read()

    class Collector:
        name = "slow"

        def open(self, settings, clock):
            return Slow(clock)

    assert look("slow", Collector(), PowerSettings()).parts == ()
    monkeypatch.setattr(probe_module, "WAIT_SECONDS", -1.0)
    assert [part.source for part in look("slow", Collector(), PowerSettings()).parts] == ["slow/plug1"]


def test_processes_are_taken_from_whichever_reading_told_them():
    found = look("good", TellsOnce(), PowerSettings())
    assert found.processes == {"a": (41, 42)}
    assert len(found.energies) == len(found.powers) == 1

"""The estimate from CPU load."""

from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collectors.power.clocks import StepClock

from jouled.api import PowerSource
from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.parameters import Limits
from jouled.model.readings import PowerReading
from jouled_collectors.power.estimate import EstimateCollector, EstimateSettings, power_range_watts

FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


class Load:
    """The kernel's CPU times, moved by the test."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(FIELDS, 100.0)

    def add(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.seconds[name] += value

    def times(self) -> Any:
        return SimpleNamespace(**self.seconds)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    load = Load()
    monkeypatch.setattr(psutil, "cpu_times", load.times)
    return load


def open_source(clock: StepClock, **options: object) -> PowerSource:
    return EstimateCollector().open(msgspec.convert(options, EstimateSettings), clock)


def watts(source: PowerSource) -> list[float]:
    return [one.watts for one in source.read() if isinstance(one, PowerReading)]


class TestReads:
    @pytest.mark.parametrize(
        ("spent", "expected"),
        [
            ({"idle": 10}, 50.0),
            ({"user": 10}, 150.0),
            ({"user": 2, "system": 1, "nice": 1, "irq": 0.5, "softirq": 0.5, "idle": 5}, 100.0),
            ({"iowait": 5, "user": 5}, 100.0),
            ({"steal": 5, "user": 5}, 100.0),
            ({"user": 5, "guest": 5, "idle": 5}, 100.0),
        ],
    )
    def test_power_follows_load_in_a_line(self, load: Load, spent: dict[str, float], expected: float) -> None:
        source = open_source(StepClock(), idle_watts=50, max_watts=150)
        load.add(**spent)
        assert watts(source) == [pytest.approx(expected)]

    def test_a_reading_is_estimated_and_stands_in_the_middle_of_its_time(self, load: Load) -> None:
        clock = StepClock()
        source = open_source(clock, idle_watts=50, max_watts=150)
        load.add(idle=1)
        clock.advance(0.1)
        assert source.read() == [PowerReading("cpu_estimate", 1_000_050_000_000, 50.0, Quality.ESTIMATED)]
        load.add(user=1)
        clock.advance(0.1)
        assert source.read() == [PowerReading("cpu_estimate", 1_000_150_000_000, 150.0, Quality.ESTIMATED)]

    def test_counters_that_rest_give_no_reading_and_lose_no_time(self, load: Load) -> None:
        clock = StepClock()
        source = open_source(clock, idle_watts=50, max_watts=150)
        clock.advance(0.01)
        assert source.read() == []
        load.add(user=1)
        clock.advance(0.09)
        assert [one.t_ns for one in source.read()] == [1_000_050_000_000]

    def test_a_cpu_taken_away_is_survived(self, load: Load) -> None:
        source = open_source(StepClock(), idle_watts=50, max_watts=150)
        load.add(idle=-80, user=-80)
        assert source.read() == []
        load.add(user=1)
        assert watts(source) == [150.0]

    def test_a_sinking_iowait_stays_within_the_line(self, load: Load) -> None:
        source = open_source(StepClock(), idle_watts=50, max_watts=150)
        load.add(user=2, iowait=-1)
        assert watts(source) == [150.0]

    def test_the_real_counters(self) -> None:
        source = open_source(StepClock(), idle_watts=50, max_watts=150)
        readings = watts(source)
        assert all(50 <= value <= 150 for value in readings)
        source.close()

    def test_unreadable_counters_are_denied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise PermissionError(13, "Permission denied", "/proc/stat")

        monkeypatch.setattr(psutil, "cpu_times", refuse)
        with pytest.raises(SourceError) as caught:
            open_source(StepClock())
        assert caught.value.state is SourceState.DENIED
        assert "/proc/stat" in caught.value.mend


class TestDevice:
    def test_one_device_marked_as_estimated(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda: 100)
        [device] = open_source(StepClock()).devices
        assert (device.name, device.kind) == ("cpu_estimate", DeviceKind.CPU_PACKAGE)
        assert (device.source, device.method, device.quality) == ("estimate", "linear_cpu_load", Quality.ESTIMATED)
        assert (device.idle_watts, device.max_watts) == (pytest.approx(74.0), pytest.approx(350.0))

    @pytest.mark.parametrize(
        ("options", "model"),
        [
            ({}, "linear in CPU load: Cloud Carbon Footprint AWS mean x 100 CPUs"),
            ({"idle_watts": 50, "max_watts": 150}, "linear in CPU load: idle and max configured"),
            (
                {"idle_watts": 50},
                "linear in CPU load: idle configured, max above it by Cloud Carbon Footprint AWS mean x 100 CPUs",
            ),
            (
                {"max_watts": 150},
                "linear in CPU load: max configured, idle by the ratio of Cloud Carbon Footprint AWS mean x 100 CPUs",
            ),
        ],
    )
    def test_it_names_its_model_and_where_the_figures_come_from(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, options: dict[str, float], model: str
    ) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda: 100)
        [device] = open_source(StepClock(), **options).devices
        assert device.product == model
        assert len(model) <= Limits().label_length

    def test_the_interval(self, load: Load) -> None:
        assert open_source(StepClock()).interval_seconds == 0.1
        assert open_source(StepClock(), interval_seconds=1).interval_seconds == 1.0

    @given(
        idle=st.none() | st.floats(0, 1e4),
        highest=st.none() | st.floats(0, 1e4),
        cpus=st.integers(1, 1024),
    )
    def test_the_range_is_never_upside_down(self, idle: float | None, highest: float | None, cpus: int) -> None:
        if idle is not None and highest is not None:
            idle, highest = sorted((idle, highest))
        low, high = power_range_watts(idle, highest, cpus)
        assert 0 <= low <= high
        assert idle is None or low == idle
        assert highest is None or high == highest


class TestSettings:
    def test_it_is_asked_for_rarely_and_quietly_by_default(self) -> None:
        assert EstimateSettings().startup == "ignore"
        assert (EstimateCollector.name, EstimateCollector.isolation) == ("estimate", "thread")
        assert EstimateCollector.settings_type is EstimateSettings

    def test_a_range_upside_down_is_refused_by_name(self) -> None:
        with pytest.raises(msgspec.ValidationError, match="max_watts"):
            msgspec.convert({"idle_watts": 100, "max_watts": 50}, EstimateSettings)

    @pytest.mark.parametrize("wrong", [{"interval_seconds": 0}, {"idle_watts": -1}, {"tdp": 100}])
    def test_wrong_settings_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, EstimateSettings)

"""The counters of HPE Cray nodes, over fake trees."""

import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.collectors.power.clocks import StepClock
from tests.support.hwmon_tree import bind_driver
from tests.support.unprivileged import unprivileged

from jouled.api import PowerSource
from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading
from jouled_collectors.power.cray import FROZEN_NS, CrayCollector, CraySettings

FROZEN_SECONDS = FROZEN_NS / 1e9


class Node:
    """A node's pm_counters, filled by its controller when the test says so."""

    def __init__(self, root: Path, *parts: str) -> None:
        self.root = root
        self.folder = root / "cray" / "pm_counters"
        self.folder.mkdir(parents=True)
        self.scans = 0
        self.write(version="2", generation="14", startup="1699999999999999", raw_scan_hz="10", power_cap="0 W")
        for number, part in enumerate(parts):
            self.write(
                **{part: f"{1000 + number} J 1700000000000000 us", part.replace("energy", "power"): "300 W 17 us"}
            )
        self.scan()

    def write(self, **files: str) -> None:
        for file, content in files.items():
            (self.folder / file).write_text(f"{content}\n")

    def scan(self) -> None:
        self.scans += 1
        self.write(freshness=str(self.scans))


SHASTA = ("energy", "cpu_energy", "memory_energy", "accel0_energy", "accel1_energy")
ALPS = ("energy", "cpu_energy", "cpu0_energy", "cpu1_energy", "accel0_energy", "accel1_energy")


def open_source(
    root: Path, clock: StepClock | None = None, collector: CrayCollector | None = None, **options: object
) -> PowerSource:
    config = msgspec.convert({"sysfs_root": str(root), **options}, CraySettings)
    return (collector or CrayCollector()).open(config, clock or StepClock())


def microjoules(source: PowerSource) -> dict[str, int]:
    return {one.device: one.microjoules for one in source.read() if isinstance(one, EnergyReading)}


def refusal(root: Path, **options: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_source(root, **options)
    return caught.value


def make_packages(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        zone = root / "class" / "powercap" / ("intel-rapl:0" if number == 0 else f"intel-rapl:0/intel-rapl:0:{number}")
        zone.mkdir(parents=True)
        for file, content in {"name": name, "energy_uj": 5, "max_energy_range_uj": 262_143_328_850}.items():
            (zone / file).write_text(f"{content}\n")


class TestDevices:
    def test_each_part_once(self, tmp_path: Path) -> None:
        Node(tmp_path, *SHASTA)
        source = open_source(tmp_path)
        assert {device.name: device.kind for device in source.devices} == {
            "cray_node": DeviceKind.NODE,
            "cray_cpu": DeviceKind.CPU_PACKAGE,
            "cray_memory": DeviceKind.DRAM,
            "cray_accel0": DeviceKind.GPU,
            "cray_accel1": DeviceKind.GPU,
        }
        assert microjoules(source)["cray_node"] == 1_000_000_000
        device = source.devices[0]
        assert (device.source, device.method, device.quality) == ("cray", "cray_pm_counters", Quality.MEASURED)
        assert (device.wrap_microjoules, device.max_watts) == (None, None)

    def test_sockets_one_by_one_where_they_are_told(self, tmp_path: Path) -> None:
        Node(tmp_path, *ALPS)
        names = {device.name for device in open_source(tmp_path).devices}
        assert names == {"cray_node", "cray_cpu0", "cray_cpu1", "cray_accel0", "cray_accel1"}

    def test_a_cap_is_a_limit(self, tmp_path: Path) -> None:
        Node(tmp_path, *ALPS).write(power_cap="2500 W", accel0_power_cap="660 W", accel1_power_cap="0 W")
        limits = {device.name: device.max_watts for device in open_source(tmp_path).devices}
        assert (limits["cray_node"], limits["cray_accel0"], limits["cray_accel1"]) == (2500.0, 660.0, None)

    def test_a_counter_at_zero_is_of_a_part_that_is_not_there(self, tmp_path: Path) -> None:
        Node(tmp_path, "energy", "accel_energy").write(accel_energy="0 J 1700000000000000 us")
        assert set(microjoules(open_source(tmp_path))) == {"cray_node"}

    def test_without_unit_and_time(self, tmp_path: Path) -> None:
        Node(tmp_path, "energy").write(energy="77")
        assert microjoules(open_source(tmp_path)) == {"cray_node": 77_000_000}


class TestNothingTwice:
    @pytest.mark.parametrize(
        ("zones", "left"),
        [
            ((), {"cray_node", "cray_cpu", "cray_memory"}),
            (("package-0",), {"cray_node", "cray_memory"}),
            (("package-0", "dram"), {"cray_node"}),
            (("psys",), {"cray_node", "cray_cpu", "cray_memory"}),
        ],
    )
    def test_what_rapl_meters_is_left_to_it(self, tmp_path: Path, zones: tuple[str, ...], left: set[str]) -> None:
        Node(tmp_path, "energy", "cpu_energy", "memory_energy")
        make_packages(tmp_path, *zones)
        assert set(microjoules(open_source(tmp_path))) == left

    @pytest.mark.parametrize("driver", ["nvidia", "amdgpu"])
    def test_gpus_are_left_to_the_vendors_library(self, tmp_path: Path, driver: str) -> None:
        Node(tmp_path, *SHASTA)
        bind_driver(tmp_path, driver, "0000:c1:00.0")
        assert set(microjoules(open_source(tmp_path))) == {"cray_node", "cray_cpu", "cray_memory"}
        assert set(microjoules(open_source(tmp_path, devices=["cray_accel1"]))) == {"cray_accel1"}

    def test_a_name_that_is_none_is_told(self, tmp_path: Path) -> None:
        Node(tmp_path, *SHASTA)
        error = refusal(tmp_path, devices=["accel0"])
        assert error.state is SourceState.ABSENT
        assert "cray_accel0" in error.message
        source = open_source(tmp_path, devices=["cray_accel0", "accel1"])
        assert set(microjoules(source)) == {"cray_accel0"}
        assert source.parts["accel1"].reason == "unknown_device"

    def test_what_is_left_to_others_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        Node(tmp_path, *SHASTA)
        make_packages(tmp_path, "package-0")
        with caplog.at_level("INFO"):
            assert "cray_cpu" not in microjoules(open_source(tmp_path))
            assert "cray_cpu" in caplog.text
            caplog.clear()
            open_source(tmp_path, devices=["cray_node"])
            assert "leaves" not in caplog.text

    def test_nothing_left_is_absent(self, tmp_path: Path) -> None:
        Node(tmp_path, "cpu_energy")
        make_packages(tmp_path, "package-0")
        assert refusal(tmp_path).state is SourceState.ABSENT


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [("N/A", "garbage"), ("", "garbage"), ("-5 J 1 us", "negative"), ("4294967295 J 1 us", "sentinel")],
    )
    def test_a_fault_is_told_beside_what_works(self, tmp_path: Path, content: str, reason: str) -> None:
        node = Node(tmp_path, "energy", "cpu_energy")
        source = open_source(tmp_path)
        node.write(cpu_energy=content)
        assert set(microjoules(source)) == {"cray_node"}
        assert (source.parts["cray_cpu"].state, source.parts["cray_cpu"].reason) == (SourceState.DOWN, reason)
        node.write(cpu_energy="2000 J 2 us")
        assert microjoules(source)["cray_cpu"] == 2_000_000_000
        assert source.parts == {"cray_cpu": None}

    def test_a_reset_is_passed_on_as_it_is(self, tmp_path: Path) -> None:
        node = Node(tmp_path, "energy")
        source = open_source(tmp_path)
        node.write(energy="3 J 2 us", startup="1700000000000001")
        assert microjoules(source) == {"cray_node": 3_000_000}

    def test_a_controller_that_hangs_stays_down_until_it_scans(self, tmp_path: Path) -> None:
        node, clock, collector = Node(tmp_path, "energy"), StepClock(), CrayCollector()
        source = open_source(tmp_path, clock, collector)
        for _ in range(3):
            clock.advance(FROZEN_SECONDS)
            node.scan()
            assert microjoules(source)
        clock.advance(FROZEN_SECONDS)
        assert microjoules(source)
        clock.advance(0.1)
        for _ in range(3):
            with pytest.raises(SourceError) as caught:
                source.read()
            assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "frozen")
            with pytest.raises(SourceError, match="has filled no counter"):
                open_source(tmp_path, clock, collector)
            clock.advance(1)
        node.scan()
        assert microjoules(open_source(tmp_path, clock, collector))

    def test_a_node_that_does_not_tell_freshness(self, tmp_path: Path) -> None:
        node, clock = Node(tmp_path, "energy"), StepClock()
        (node.folder / "freshness").unlink()
        source = open_source(tmp_path, clock)
        clock.advance(10 * FROZEN_SECONDS)
        assert microjoules(source)

    def test_no_cray(self, tmp_path: Path) -> None:
        error = refusal(tmp_path)
        assert (error.state, error.reason) == (SourceState.ABSENT, "no_counters")
        assert str(tmp_path / "cray" / "pm_counters") in error.message

    def test_denied_says_the_exact_mend(self, open_root: Path) -> None:
        node = Node(open_root, "energy")
        (node.folder / "energy").chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            error = refusal(open_root)
        assert (error.state, error.reason) == (SourceState.DENIED, "permission")
        assert error.mend == f"As root: chmod 0444 {node.folder}/*"

    def test_a_folder_that_may_not_be_listed(self, open_root: Path) -> None:
        node = Node(open_root, "energy")
        node.folder.chmod(0o700)
        if os.geteuid() == 0:
            with unprivileged():
                assert refusal(open_root).state is SourceState.DENIED

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=80))
    @example(content=b"9" * 5_000 + b" J")
    @example(content=b"\xb2 J 1 us")
    def test_no_content_stops_the_others(self, tmp_path: Path, content: bytes) -> None:
        node = Node(Path(tempfile.mkdtemp(dir=tmp_path)), "energy", "cpu_energy")
        for file in ("cpu_energy", "freshness", "power_cap"):
            (node.folder / file).write_bytes(content)
        assert microjoules(open_source(node.root))["cray_node"] == 1_000_000_000


def test_as_often_as_the_controller_scans(tmp_path: Path) -> None:
    Node(tmp_path, "energy")
    assert open_source(tmp_path).interval_seconds == 0.1
    assert open_source(tmp_path, interval_seconds=2).interval_seconds == 2.0


def test_the_collector_is_a_thread() -> None:
    assert (CrayCollector.name, CrayCollector.isolation) == ("cray", "thread")
    assert CrayCollector.settings_type is CraySettings
    assert CraySettings() == msgspec.convert({}, CraySettings)

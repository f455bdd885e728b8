"""The hwmon collector over fake trees."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.collectors.power.clocks import StepClock
from tests.support.hwmon_tree import bind_driver, make_chip, make_meter, make_supply
from tests.support.tools import run
from tests.support.unprivileged import unprivileged

from jouled.api import PowerSource
from jouled.app.config.reference import render
from jouled.app.runtime.probe import look
from jouled.core.ledger.tree import leaves
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.cray import CraySettings
from jouled_collectors.power.hwmon import HwmonCollector, HwmonSettings
from jouled_collectors.power.hwmon_find import IGNORED
from jouled_collectors.power.rapl import RaplSettings
from jouled_collectors.power.sysfs_source import RETRY_NS

SECOND = 1_000_000_000
BEYOND_RETRY_SECONDS = RETRY_NS / SECOND + 1


def open_source(root: Path, clock: StepClock | None = None, **options: object) -> PowerSource:
    config = msgspec.convert({"sysfs_root": str(root), **options}, HwmonSettings)
    return HwmonCollector().open(config, clock or StepClock())


def values(source: PowerSource) -> dict[str, float]:
    """Watts of gauges, microjoules of counters."""
    return {
        one.device: one.watts if isinstance(one, PowerReading) else one.microjoules
        for one in source.read()
        if isinstance(one, PowerReading | EnergyReading)
    }


def refusal(root: Path, **options: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_source(root, **options)
    return caught.value


def by_name(source: PowerSource) -> dict[str, Device]:
    return {device.name: device for device in source.devices}


def make_grace(root: Path, sockets: int = 1, *, module: bool = False) -> None:
    parts = {"Grace": 200_000_000, "CPU": 150_000_000, "SysIO": 20_000_000} | (
        {"Module": 700_000_000} if module else {}
    )
    for socket in range(sockets):
        for place, (part, microwatts) in enumerate(parts.items()):
            number = socket * len(parts) + place
            make_meter(root, number, f"{part} Power Socket {socket}", microwatts, power1_average_interval=1000)


def make_package(root: Path) -> Path:
    zone = root / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for file, content in {"name": "package-0", "energy_uj": 5, "max_energy_range_uj": 262_143_328_850}.items():
        (zone / file).write_text(f"{content}\n")
    return zone / "energy_uj"


class TestAcpi:
    def test_a_meter_that_names_no_socket_is_the_nodes(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 0, "", 512_500_000, power1_average_interval=1000, power1_model_number="IBM PM")
        source = open_source(tmp_path)
        [device] = source.devices
        assert (device.name, device.kind) == ("acpi_node", DeviceKind.NODE)
        assert (device.source, device.method, device.product) == ("hwmon", "acpi_power_meter", "IBM PM")
        assert device.quality is Quality.DERIVED
        assert values(source) == {"acpi_node": 512.5}

    @pytest.mark.parametrize(
        ("window_ms", "earlier_ns"),
        [(1000, SECOND // 2), (250, SECOND // 8), (0, 0), ("unknown", 0), (4294967295, 0)],
    )
    def test_stamped_half_a_window_earlier(self, tmp_path: Path, window_ms: object, earlier_ns: int) -> None:
        make_meter(tmp_path, 0, "", 512_500_000, power1_average_interval=window_ms)
        clock = StepClock()
        [reading] = open_source(tmp_path, clock).read()
        assert reading.t_ns == clock.time_ns - earlier_ns

    @pytest.mark.parametrize(
        ("window_ms", "seconds"), [(50, 0.1), (250, 0.25), (1000, 1.0), (5000, 1.0), (0, 1.0), ("unknown", 1.0)]
    )
    def test_read_once_in_a_window(self, tmp_path: Path, window_ms: object, seconds: float) -> None:
        make_meter(tmp_path, 0, "", 512_500_000, power1_average_interval=window_ms)
        assert open_source(tmp_path).interval_seconds == seconds
        assert open_source(tmp_path, interval_seconds=3).interval_seconds == 3

    def test_grace_contains_its_rails(self, tmp_path: Path) -> None:
        make_grace(tmp_path, sockets=2)
        source = open_source(tmp_path)
        assert values(source) == {"grace0": 200.0, "grace1": 200.0}
        assert {device.kind for device in source.devices} == {DeviceKind.CPU_PACKAGE}
        assert [device.vendor for device in leaves(source.devices)] == ["nvidia", "nvidia"]

    def test_the_cpu_rail_stands_in_where_grace_is_not_told(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 0, "CPU Power Socket 0", 150_000_000)
        make_meter(tmp_path, 1, "SysIO Power Socket 0", 20_000_000)
        source = open_source(tmp_path)
        assert [(device.name, device.method) for device in source.devices] == [("grace0", "acpi_cpu_rail")]

    def test_a_module_contains_its_grace(self, tmp_path: Path) -> None:
        make_grace(tmp_path, module=True)
        source = open_source(tmp_path)
        assert by_name(source)["module0"].kind is DeviceKind.MODULE
        assert by_name(source)["grace0"].parent == "module0"
        assert [device.name for device in leaves(source.devices)] == ["module0"]

    def test_a_module_whose_gpus_nvml_meters_is_not_counted_again(self, tmp_path: Path) -> None:
        make_grace(tmp_path, module=True)
        bind_driver(tmp_path, "nvidia", "0009:01:00.0")
        source = open_source(tmp_path)
        assert [(device.name, device.parent) for device in source.devices] == [("grace0", "")]

    def test_a_driver_without_a_gpu_meters_none(self, tmp_path: Path) -> None:
        make_grace(tmp_path, module=True)
        bind_driver(tmp_path, "nvidia")
        assert set(values(open_source(tmp_path))) == {"module0", "grace0"}

    def test_the_operator_may_choose(self, tmp_path: Path) -> None:
        make_grace(tmp_path, module=True)
        bind_driver(tmp_path, "nvidia", "0009:01:00.0")
        assert values(open_source(tmp_path, devices=["module0"])) == {"module0": 700.0}
        error = refusal(tmp_path, devices=["modul0"])
        assert error.state is SourceState.ABSENT
        assert "module0" in error.message

    def test_what_the_operator_chose_and_is_not_here_is_told(self, tmp_path: Path) -> None:
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        clock = StepClock()
        source = open_source(tmp_path, clock, devices=["psu-3-0058", "psu-3-0059"])
        for _ in range(2):
            assert values(source) == {"psu-3-0058": 460.0}
            missing = source.parts["psu-3-0059"]
            assert (missing.state, missing.reason) == (SourceState.ABSENT, "unknown_device")
            clock.advance(BEYOND_RETRY_SECONDS)
        make_supply(tmp_path, 1, "3-0059", 450_000_000)
        clock.advance(BEYOND_RETRY_SECONDS)
        assert values(source) == {"psu-3-0058": 460.0, "psu-3-0059": 450.0}
        assert source.parts == {"psu-3-0059": None}

    def test_the_cap_of_a_socket_is_its_limit(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 0, "Grace Power Socket 0", 1_000_000, power1_cap=300_000_000)
        make_meter(tmp_path, 1, "Grace Power Socket 1", 1_000_000, power1_cap=4294967295000)
        make_meter(tmp_path, 2, "", 1_000_000, power1_cap=1_000_000)
        devices = by_name(open_source(tmp_path))
        assert [devices[name].max_watts for name in ("grace0", "grace1", "acpi_node")] == [300.0, None, None]

    def test_of_several_meters_without_a_name_one_counts(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 3, "vendor text", 400_000_000)
        make_meter(tmp_path, 1, "", 500_000_000)
        assert values(open_source(tmp_path)) == {"acpi_node": 500.0}

    def test_a_battery_is_no_node(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 0, "", 5_000_000, power1_is_battery=1)
        assert refusal(tmp_path).state is SourceState.ABSENT

    def test_attributes_of_the_old_registration(self, tmp_path: Path) -> None:
        make_chip(tmp_path, 0, "power_meter", "ACPI000D:00", old=True, power1_average=7_000_000, power1_oem_info="")
        assert values(open_source(tmp_path)) == {"acpi_node": 7.0}


class TestSupplies:
    def test_the_input_of_each_and_never_the_output(self, tmp_path: Path) -> None:
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        make_supply(tmp_path, 1, "3-0059", 455_000_000)
        source = open_source(tmp_path)
        assert values(source) == {"psu-3-0058": 460.0, "psu-3-0059": 455.0}
        assert {(device.kind, device.product) for device in source.devices} == {(DeviceKind.PSU, "cffps2")}
        assert source.interval_seconds == 1.0

    @pytest.mark.parametrize("millivolts", [12_000, 54_000])
    def test_a_regulator_on_the_board_is_no_supply(self, tmp_path: Path, millivolts: int) -> None:
        make_supply(tmp_path, 0, "9-0060", 100_000_000, millivolts)
        assert refusal(tmp_path).state is SourceState.ABSENT

    def test_what_does_not_tell_its_voltage_is_no_supply(self, tmp_path: Path) -> None:
        make_chip(tmp_path, 0, "xdpe12284", "9-0060", power1_label="pin", power1_input=100_000_000)
        assert refusal(tmp_path).state is SourceState.ABSENT

    @pytest.mark.parametrize("millivolts", [0, 110_000, 380_000])
    def test_a_supply_on_any_mains_and_one_that_was_unplugged(self, tmp_path: Path, millivolts: int) -> None:
        make_supply(tmp_path, 0, "3-0058", 0, millivolts)
        assert values(open_source(tmp_path)) == {"psu-3-0058": 0.0}

    def test_names_do_not_follow_the_order_of_drivers(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        for root, order in ((first, (0, 1)), (second, (7, 2))):
            make_supply(root, order[0], "3-0058", 1_000_000)
            make_supply(root, order[1], "3-0059", 2_000_000)
        assert values(open_source(first)) == values(open_source(second)) == {"psu-3-0058": 1.0, "psu-3-0059": 2.0}


class TestIntelGpus:
    def test_the_cards_counter_and_not_its_packages(self, tmp_path: Path) -> None:
        make_chip(
            tmp_path,
            4,
            "xe",
            "0000:03:00.0",
            energy1_input=10,
            energy2_input=7,
            power1_max=0,
            power1_rated_max=190_000_000,
        )
        make_chip(tmp_path, 5, "i915", "0000:9a:00.0", energy1_input=20, power1_max=150_000_000)
        make_chip(tmp_path, 6, "i915_gt0", "0000:9a:00.1", energy1_input=11)
        source = open_source(tmp_path)
        assert values(source) == {"intel_gpu-0000:03:00.0": 10, "intel_gpu-0000:9a:00.0": 20}
        card, other = source.devices
        assert (card.kind, card.vendor, card.pci_bus_id) == (DeviceKind.GPU, "intel", "0000:03:00.0")
        assert (card.method, card.quality, card.wrap_microjoules) == ("hwmon_card_energy", Quality.MEASURED, None)
        assert (card.max_watts, other.max_watts) == (190.0, 150.0)

    def test_the_package_where_there_is_no_card(self, tmp_path: Path) -> None:
        make_chip(tmp_path, 0, "xe", "0000:03:00.0", energy2_input=7, power2_max=120_000_000)
        [device] = open_source(tmp_path).devices
        assert (device.method, device.max_watts) == ("hwmon_package_energy", 120.0)

    def test_other_vendors_gpus_do_not_displace_them(self, tmp_path: Path) -> None:
        make_chip(tmp_path, 0, "xe", "0000:03:00.0", energy1_input=7)
        bind_driver(tmp_path, "nvidia", "0000:17:00.0")
        assert set(values(open_source(tmp_path))) == {"intel_gpu-0000:03:00.0"}

    def test_read_each_minute_at_least(self, tmp_path: Path) -> None:
        make_chip(tmp_path, 0, "i915", "0000:03:00.0", energy1_input=7)
        assert open_source(tmp_path).interval_seconds <= 60
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"interval_seconds": 31}, HwmonSettings)


class TestAmdSockets:
    def make(self, root: Path) -> Path:
        return make_chip(
            root,
            0,
            "amd_energy",
            "amd_energy.0",
            energy1_label="Ecore000",
            energy1_input=1,
            energy2_label="Esocket0",
            energy2_input=64,
            energy10_label="Esocket1",
            energy10_input=65,
        )

    def test_sockets_and_not_their_cores(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        source = open_source(tmp_path)
        assert values(source) == {"amd_energy0": 64, "amd_energy1": 65}
        assert {device.kind for device in source.devices} == {DeviceKind.CPU_PACKAGE}

    def test_rapl_wins_where_it_may_be_read(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        make_package(tmp_path)
        error = refusal(tmp_path)
        assert (error.state, error.reason) == (SourceState.ABSENT, "no_meter")
        assert "amd_energy" in error.message
        assert values(open_source(tmp_path, devices=["amd_energy1"])) == {"amd_energy1": 65}

    def test_denied_rapl_leaves_them_until_it_is_mended(self, open_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make(open_root)
        make_supply(open_root, 1, "3-0058", 460_000_000)
        energy = make_package(open_root)
        access, is_granted = os.access, False
        monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (path != energy or is_granted))
        clock = StepClock()
        source = open_source(open_root, clock)
        assert set(values(source)) == {"amd_energy0", "amd_energy1", "psu-3-0058"}
        is_granted = True
        clock.advance(BEYOND_RETRY_SECONDS)
        assert set(values(source)) == {"psu-3-0058"}
        assert list(by_name(source)) == ["psu-3-0058"]

    def test_nothing_left_is_absent(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        make_package(tmp_path)
        clock.advance(BEYOND_RETRY_SECONDS)
        with pytest.raises(SourceError) as caught:
            source.read()
        assert caught.value.state is SourceState.ABSENT

    def test_for_root_alone_says_the_exact_mend(self, open_root: Path) -> None:
        folder = self.make(open_root)
        for file in folder.glob("energy*_input"):
            file.chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            error = refusal(open_root)
        assert (error.state, error.reason) == (SourceState.DENIED, "permission")
        assert "energy2_input" in error.message
        for part in ('ATTR{name}=="amd_energy"', "90-jouled-hwmon.rules", "udevadm trigger --subsystem-match=hwmon"):
            assert part in error.mend
        for file in folder.glob("energy*_input"):
            file.chmod(0o444)
        with unprivileged():
            assert values(open_source(open_root)) == {"amd_energy0": 64, "amd_energy1": 65}

    def test_the_mend_is_one_that_a_shell_takes(self, open_root: Path) -> None:
        folder = self.make(open_root)
        for file in folder.glob("energy*_input"):
            file.chmod(0o400 if os.geteuid() == 0 else 0)
        with unprivileged():
            mend = refusal(open_root).mend
        command = mend.removeprefix("As root: ").partition(" > /etc/udev")[0]
        rule = run(["sh", "-c", command]).stdout.strip()
        assert rule.startswith('SUBSYSTEM=="hwmon", ACTION=="add|change", ATTR{name}=="amd_energy", RUN+="/bin/sh -c ')
        assert rule.endswith("chmod 0440 /sys%p/*_input'\"")


class TestNamedSensors:
    def make_jetson(self, root: Path) -> Path:
        return make_chip(
            root,
            0,
            "ina3221",
            "1-0040",
            in1_label="VDD_IN",
            in1_input=19_000,
            curr1_input=1_500,
            in2_label="VDD_CPU_GPU_CV",
            in2_input=5_000,
            curr2_input=2_000,
            in3_label="VDD_SOC",
            in3_input=5_000,
            curr3_input=400,
            in7_label="sum of shunt voltages",
            in7_input=9,
        )

    def test_volts_times_amperes(self, tmp_path: Path) -> None:
        self.make_jetson(tmp_path)
        source = open_source(tmp_path)
        assert values(source) == {"ina3221-vdd_in": 28.5, "ina3221-vdd_cpu_gpu_cv": 10.0}
        kinds = {device.product: device.kind for device in source.devices}
        assert kinds == {"VDD_IN": DeviceKind.NODE, "VDD_CPU_GPU_CV": DeviceKind.MODULE}

    @pytest.mark.parametrize(("file", "content"), [("curr2_input", "-3"), ("in2_input", ""), ("curr2_input", None)])
    def test_half_a_pair_is_no_power(self, tmp_path: Path, file: str, content: str | None) -> None:
        folder = self.make_jetson(tmp_path)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(content)
        assert values(open_source(tmp_path)) == {"ina3221-vdd_in": 28.5}

    def test_the_table_is_the_operators(self, tmp_path: Path) -> None:
        self.make_jetson(tmp_path)
        make_chip(
            tmp_path,
            1,
            "scmi_sensors",
            energy1_label="soc",
            energy1_input=900,
            power1_label="soc",
            power1_input=3_000_000,
            power2_label="DDR power",
            power2_input=2_000_000,
        )
        source = open_source(
            tmp_path,
            sensors={
                "ina3221/VDD_CPU_GPU_CV": "none",
                "scmi_sensors/soc": "cpu_package",
                "scmi_sensors/DDR power": "dram",
            },
        )
        assert values(source) == {"ina3221-vdd_in": 28.5, "scmi_sensors-soc": 900, "scmi_sensors-ddr_power": 2.0}
        assert by_name(source)["scmi_sensors-soc"].kind is DeviceKind.CPU_PACKAGE

    def test_a_kind_that_is_none_is_refused(self) -> None:
        with pytest.raises(msgspec.ValidationError, match="soc"):
            msgspec.convert({"sensors": {"scmi_sensors/soc": "soc"}}, HwmonSettings)


class TestIgnored:
    @pytest.mark.parametrize("name", [*IGNORED, "nvme", "coretemp", "BAT0", "scmi_sensors", "i915_gt1", ""])
    def test_chips_that_others_read_or_nobody_can_explain(self, tmp_path: Path, name: str) -> None:
        make_chip(
            tmp_path, 0, name, power1_label="pin0", power1_input=5, power1_average=5, energy1_input=5, in1_input=5
        )
        error = refusal(tmp_path)
        assert error.state is SourceState.ABSENT
        assert IGNORED.get(name, name) in error.message

    def test_cray_counts_the_cpus_better(self, tmp_path: Path) -> None:
        make_grace(tmp_path)
        make_meter(tmp_path, 9, "", 900_000_000)
        counters = tmp_path / "cray" / "pm_counters"
        counters.mkdir(parents=True)
        (counters / "energy").write_text("900 J 1 us\n")
        assert set(values(open_source(tmp_path))) == {"acpi_node", "grace0"}
        (counters / "cpu0_energy").write_text("300 J 1 us\n")
        assert set(values(open_source(tmp_path))) == {"acpi_node"}


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "state", "reason"),
        [
            ("4294967295000", SourceState.DOWN, "sentinel"),
            ("4294967295", SourceState.DOWN, "sentinel"),
            ("18446744073709551615", SourceState.DOWN, "sentinel"),
            ("65535", SourceState.DOWN, "sentinel"),
            ("-1", SourceState.DOWN, "negative"),
            ("0", SourceState.DOWN, "zero"),
            ("N/A", SourceState.DOWN, "garbage"),
            ("nan", SourceState.DOWN, "garbage"),
            ("", SourceState.DOWN, "garbage"),
            ("12.5", SourceState.DOWN, "garbage"),
            (None, SourceState.DOWN, "unreadable"),
        ],
    )
    def test_a_fault_is_told_beside_what_works(
        self, tmp_path: Path, content: str | None, state: SourceState, reason: str
    ) -> None:
        folder = make_meter(tmp_path, 0, "", 500_000_000)
        make_supply(tmp_path, 1, "3-0058", 460_000_000)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        assert source.parts == {}
        if content is None:
            source.close()
            (folder / "power1_average").rename(folder / "aside")
        else:
            (folder / "power1_average").write_text(content)
        assert set(values(source)) == {"psu-3-0058"}
        error = source.parts["acpi_node"]
        assert (error.state, error.reason) == (state, reason)
        assert "power1_average" in error.message
        if content is None:
            (folder / "aside").rename(folder / "power1_average")
        (folder / "power1_average").write_text("480000000")
        clock.advance(BEYOND_RETRY_SECONDS)
        assert values(source) == {"acpi_node": 480.0, "psu-3-0058": 460.0}
        assert source.parts == {"acpi_node": None}

    def test_a_fault_of_the_only_meter_is_the_sources(self, tmp_path: Path) -> None:
        make_meter(tmp_path, 0, "", 4294967295000)
        error = refusal(tmp_path)
        assert (error.state, error.reason) == (SourceState.DOWN, "sentinel")

    def test_a_folder_that_may_not_be_listed(self, open_root: Path) -> None:
        make_supply(open_root, 0, "3-0058", 460_000_000)
        (open_root / "class" / "hwmon").chmod(0o700)
        if os.geteuid() == 0:
            with unprivileged():
                assert refusal(open_root).state is SourceState.DENIED

    def test_a_chip_that_may_not_be_entered_stops_no_other(self, open_root: Path) -> None:
        make_supply(open_root, 0, "3-0058", 460_000_000)
        make_supply(open_root, 1, "3-0059", 450_000_000).chmod(0o700 if os.geteuid() == 0 else 0)
        with unprivileged():
            assert values(open_source(open_root)) == {"psu-3-0058": 460.0}

    def test_a_chip_that_is_closed_later_stops_no_other(self, open_root: Path) -> None:
        make_supply(open_root, 0, "3-0058", 460_000_000)
        other, clock = make_supply(open_root, 1, "3-0059", 450_000_000), StepClock()
        with unprivileged():
            source = open_source(open_root, clock)
        other.chmod(0o700 if os.geteuid() == 0 else 0)
        clock.advance(BEYOND_RETRY_SECONDS)
        with unprivileged():
            assert values(source)["psu-3-0058"] == 460.0

    def test_no_hwmon(self, tmp_path: Path) -> None:
        error = refusal(tmp_path)
        assert (error.state, error.reason) == (SourceState.ABSENT, "no_meter")
        assert str(tmp_path / "class" / "hwmon") in error.message
        assert "modprobe" in error.mend

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=80), oem_info=st.binary(max_size=40), name=st.binary(max_size=20))
    @example(content=b"9" * 80, oem_info=b"Grace Power Socket " + b"9" * 30, name=b"power_meter")
    @example(content="²".encode(), oem_info="Grace Power Socket ²".encode(), name=b"\xff")
    def test_no_content_stops_the_others(self, tmp_path: Path, content: bytes, oem_info: bytes, name: bytes) -> None:
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        make_supply(root, 0, "3-0058", 460_000_000)
        folder = make_meter(root, 1, "", 1)
        (folder / "power1_oem_info").write_bytes(oem_info)
        for file in ("power1_average", "power1_average_interval", "power1_cap"):
            (folder / file).write_bytes(content)
        odd = make_chip(root, 2, "", energy1_input=1, energy1_label="")
        (odd / "name").write_bytes(name)
        (odd / "energy1_label").write_bytes(content)
        assert values(open_source(root))["psu-3-0058"] == 460.0


class TestDriversComeAndGo:
    def test_loaded_again_under_another_number(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_chip(tmp_path, 0, "xe", "0000:03:00.0", energy1_input=100)
        make_chip(tmp_path, 1, "xe", "0000:04:00.0", energy1_input=200)
        source = open_source(tmp_path)
        stale = open_descriptors()
        shutil.rmtree(tmp_path / "devices")
        shutil.rmtree(tmp_path / "class")
        make_chip(tmp_path, 1, "xe", "0000:03:00.0", energy1_input=101)
        make_chip(tmp_path, 0, "xe", "0000:04:00.0", energy1_input=201)
        pread = os.pread

        def gone(descriptor: int, size: int, offset: int) -> bytes:
            if descriptor in stale:
                stale.discard(descriptor)
                raise OSError(errno.ENODEV, "No such device")
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", gone)
        assert values(source) == {"intel_gpu-0000:03:00.0": 101, "intel_gpu-0000:04:00.0": 201}

    def test_a_driver_that_left_is_told_and_taken_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        make_chip(tmp_path, 1, "xe", "0000:04:00.0", energy1_input=200)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        link, pread, gone = tmp_path / "class/hwmon/hwmon1", os.pread, {descriptor_of(tmp_path, "energy1_input")}

        def vanished(descriptor: int, size: int, offset: int) -> bytes:
            if descriptor in gone:
                gone.discard(descriptor)
                raise OSError(errno.ENODEV, "No such device")
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", vanished)
        target = link.readlink()
        link.unlink()
        for _ in range(2):
            assert values(source) == {"psu-3-0058": 460.0}
            error = source.parts["intel_gpu-0000:04:00.0"]
            assert (error.state, error.reason) == (SourceState.DOWN, "unreadable")
        (tmp_path / "class/hwmon/hwmon5").symlink_to(target)
        clock.advance(BEYOND_RETRY_SECONDS)
        assert values(source)["intel_gpu-0000:04:00.0"] == 200
        assert source.parts["intel_gpu-0000:04:00.0"] is None

    def test_its_number_taken_by_another_chip(self, tmp_path: Path) -> None:
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        make_supply(tmp_path, 1, "3-0059", 450_000_000)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        (tmp_path / "class/hwmon/hwmon1").unlink()
        make_supply(tmp_path, 2, "7-0010", 3_000_000, millivolts=12_000)
        (tmp_path / "class/hwmon/hwmon2").rename(tmp_path / "class/hwmon/hwmon1")
        clock.advance(BEYOND_RETRY_SECONDS)
        assert values(source) == {"psu-3-0058": 460.0}

    def test_a_chip_that_appears_later(self, tmp_path: Path) -> None:
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        clock = StepClock()
        source = open_source(tmp_path, clock)
        make_supply(tmp_path, 1, "3-0059", 450_000_000)
        clock.advance(BEYOND_RETRY_SECONDS)
        assert values(source) == {"psu-3-0058": 460.0, "psu-3-0059": 450.0}
        assert list(by_name(source)) == ["psu-3-0058", "psu-3-0059"]

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = open_descriptors()
        make_supply(tmp_path, 0, "3-0058", 460_000_000)
        source = open_source(tmp_path)
        assert len(open_descriptors()) == len(before) + 1
        source.close()
        assert open_descriptors() == before


def open_descriptors() -> set[int]:
    """All that are open; the listing's own is closed again."""
    return {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def descriptor_of(root: Path, file: str) -> int:
    [descriptor] = [
        int(path.name)
        for path in Path("/proc/self/fd").iterdir()
        if path.exists() and path.resolve().name == file and path.resolve().is_relative_to(root)
    ]
    return descriptor


def test_the_collector_is_a_thread() -> None:
    assert (HwmonCollector.name, HwmonCollector.isolation) == ("hwmon", "thread")
    assert HwmonCollector.settings_type is HwmonSettings
    assert HwmonSettings() == msgspec.convert({}, HwmonSettings)


def test_the_daemon_looks_at_it(tmp_path: Path) -> None:
    """Settings travel as JSON, and what fails is told as a part."""
    make_supply(tmp_path, 0, "3-0058", 460_000_000)
    make_meter(tmp_path, 1, "", 4294967295000)
    config = msgspec.convert({"sysfs_root": str(tmp_path), "sensors": {"scmi_sensors/soc": "gpu"}}, HwmonSettings)
    carried = msgspec.json.decode(msgspec.json.encode(config), type=HwmonSettings)
    seen = look("hwmon", HwmonCollector(), carried)
    assert seen.state is SourceState.OK
    assert {device.name for device in seen.devices} == {"acpi_node", "psu-3-0058"}
    assert [(part.source, part.reason) for part in seen.parts] == [("hwmon/acpi_node", "sentinel")]


def test_every_key_is_explained() -> None:
    page = render({"hwmon": HwmonSettings, "cray": CraySettings, "rapl": RaplSettings}, {})
    for name in ("hwmon", "cray", "rapl"):
        section = page.partition(f"`[power.{name}]`")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `") and "startup" not in line]
        assert rows
        assert all(line.split("|")[4].strip() for line in rows)


@pytest.mark.parametrize("wrong", [{"interval_seconds": 0}, {"root": "/sys"}, {"devices": "psu"}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, HwmonSettings)

"""The AMD collector through the real binding, over a stub of the library."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.amdsmi_stub import Controls, binding_folder, build
from tests.support.amdsmi_stub.child import START_NS, Child, start

from jouled.app.runtime.probe import probe_all
from jouled.core.topology import Group, groups
from jouled.model.device import DeviceKind, Quality
from jouled.model.engine import Engine
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.amd import AmdCollector, AmdSettings

NOT_SUPPORTED, RETRY, NO_PERMISSION, IO, BUSY = 2, 9, 10, 12, 30
UNKNOWN_32 = 0xFFFFFFFF
SECOND_UUID = "00ff74a0-0000-1000-80aa-000000000001"


@pytest.fixture(scope="module")
def rocm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("amd") / "rocm")


@pytest.fixture(scope="module")
def shared_controls(tmp_path_factory: pytest.TempPathFactory) -> Controls:
    return Controls(tmp_path_factory.mktemp("controls"))


@pytest.fixture(scope="module")
def process(rocm: Path, shared_controls: Controls) -> Iterator[Child]:
    with start(rocm, shared_controls) as running:
        yield running


@pytest.fixture
def controls(shared_controls: Controls) -> Controls:
    """Every control back at its default."""
    shared_controls.clear_all()
    return shared_controls


@pytest.fixture
def child(process: Child, controls: Controls) -> Iterator[Child]:
    """The shared process, closed again behind each test."""
    process.rewind()
    yield process
    controls.clear_all()
    process.close_if_open()


def no_energy(controls: Controls, gpu: int) -> None:
    controls.set(f"gpu{gpu}.energy.code", NOT_SUPPORTED)


def no_meter(controls: Controls, gpu: int, code: int = NOT_SUPPORTED) -> None:
    for call in ("energy", "power"):
        controls.set(f"gpu{gpu}.{call}.code", code)


def only_ticks(controls: Controls, gpu: int, ticks: int) -> None:
    """A counter that stands where the test wants it, and no gauge that would contradict it."""
    controls.set(f"gpu{gpu}.power.code", NOT_SUPPORTED)
    controls.set(f"gpu{gpu}.ticks", ticks)


class TestDevices:
    def test_a_gpu_says_who_it_is(self, child: Child) -> None:
        first, second = child.open()
        assert (first.name, second.name) == ("amdgpu0", "amdgpu1")
        assert first.kind is DeviceKind.GPU
        assert first.vendor == "amd"
        assert first.product == "AMD Instinct Stub 0"
        assert first.uuid == "00ff74a0-0000-1000-80aa-000000000000"
        assert first.pci_bus_id == "0000:10:00.0"
        assert (first.index, second.index) == (0, 1)
        assert first.source == "amd"
        assert first.max_watts == 750.0
        assert (first.idle_watts, first.wrap_microjoules, first.fraction) == (None, None, None)

    def test_names_are_unlike_those_of_nvml(self, child: Child) -> None:
        """A node may have GPUs of both vendors, and both sources count from 0."""
        assert all(device.name.startswith("amdgpu") for device in child.open())

    def test_they_are_counted_by_pci_address(self, child: Child, controls: Controls) -> None:
        controls.set("count", 3)
        controls.set("gpu0.bdf", "1 5 0 0")
        controls.set("gpu1.bdf", "0 c5 0 0")
        controls.set("gpu2.bdf", "0 5 0 0")
        found = [(device.name, device.product, device.pci_bus_id) for device in child.open()]
        assert found == [
            ("amdgpu0", "AMD Instinct Stub 2", "0000:05:00.0"),
            ("amdgpu1", "AMD Instinct Stub 1", "0000:c5:00.0"),
            ("amdgpu2", "AMD Instinct Stub 0", "0001:05:00.0"),
        ]

    def test_configured_watts_are_of_each_gpu(self, child: Child) -> None:
        for device in child.open(idle_watts=140.0, uplift_watts=60):
            assert (device.idle_watts, device.uplift_watts) == (140.0, 60.0)

    def test_missing_descriptions_cost_no_joules(self, child: Child, controls: Controls) -> None:
        for call in ("bdf", "uuid", "kfd", "asic", "cap", "driver", "mode", "metrics"):
            controls.set(f"gpu0.{call}.code", NOT_SUPPORTED)
        first, second = child.open()
        assert (first.name, first.uuid) == ("amdgpu0", SECOND_UUID), "one without an address comes last"
        assert (second.product, second.uuid, second.pci_bus_id, second.max_watts) == ("", "", "", None)
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}

    def test_garbage_in_a_description_costs_no_joules(self, child: Child, controls: Controls) -> None:
        (controls.folder / "gpu0.name").write_bytes(b"MI\xff\xfe300")
        (controls.folder / "gpu0.mode").write_bytes(b"\xff")
        assert child.open()[0].product == ""
        assert "amdgpu0" in child.meters()

    @pytest.mark.parametrize("selected", [[1], [SECOND_UUID], [SECOND_UUID.upper()], ["0000:20:00.0"]])
    def test_devices_selects(self, child: Child, selected: list[int | str]) -> None:
        (device,) = child.open(devices=selected)
        assert (device.name, device.index) == ("amdgpu1", 1)

    @pytest.mark.parametrize("unknown", [7, "GPU-nobody", ""])
    def test_an_unknown_device_is_refused_by_name(self, child: Child, unknown: int | str) -> None:
        with pytest.raises(SourceError) as caught:
            child.open(devices=[0, unknown])
        assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "unknown_device")
        assert str(unknown) in caught.value.message
        assert SECOND_UUID in caught.value.message
        assert "[power.amd]" in caught.value.mend

    def test_none_selected_is_told(self, child: Child) -> None:
        with pytest.raises(SourceError) as caught:
            child.open(devices=[])
        assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "none_selected")
        assert "[power.amd]" in caught.value.mend

    def test_a_gpu_without_a_uuid_is_not_the_one_without_a_name(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.uuid.code", NOT_SUPPORTED)
        with pytest.raises(SourceError) as caught:
            child.open(devices=[""])
        assert caught.value.reason == "unknown_device"

    def test_an_apu_is_a_module(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.name", "AMD Instinct MI300A")
        assert [device.kind for device in child.open()] == [DeviceKind.MODULE, DeviceKind.GPU]

    def test_the_second_die_of_a_package_has_no_meter_and_shows_no_zeros(
        self, child: Child, controls: Controls
    ) -> None:
        """MI250: the first die tells the power of both, the second tells 0."""
        for key in ("ticks", "current", "average"):
            controls.set(f"gpu1.{key}", 0)
        assert [device.name for device in child.open()] == ["amdgpu0"]
        assert list(child.meters()) == ["amdgpu0"]
        told = child.parts()["amdgpu1"]
        assert told is not None
        assert (told.state, told.reason) == (SourceState.ABSENT, "no_meter")
        assert "MI250" in told.mend


class TestPartitions:
    @pytest.mark.parametrize(
        ("mode", "processors", "told", "expected"),
        [
            ("SPX", 1, 0xFFFF, 0),
            ("DPX", 2, 0xFFFF, 2),
            ("QPX", 4, 0xFFFF, 4),
            ("CPX", 8, 8, 8),
            ("CPX", 6, 6, 6),
            ("CPX", 8, 0xFFFF, 8),
            ("CPX", 2, 8, 8),
            ("CPX", 8, 5000, 8),
            ("QPX", 1, 0xFFFF, 4),
        ],
    )
    def test_one_meter_for_a_socket_and_a_share_for_each_partition(
        self, child: Child, controls: Controls, mode: str, processors: int, told: int, expected: int
    ) -> None:
        controls.set("gpu0.mode", mode)
        controls.set("gpu0.partitions", processors)
        controls.set("gpu0.xcp", told)
        devices = child.open()
        parts = [device for device in devices if device.kind is DeviceKind.PARTITION]
        assert [device.name for device in devices if device.kind is DeviceKind.GPU] == ["amdgpu0", "amdgpu1"]
        assert [part.name for part in parts] == [f"amdgpu0-p{number}" for number in range(expected)]
        assert {part.parent for part in parts} <= {"amdgpu0"}
        assert sum(part.fraction or 0.0 for part in parts) == pytest.approx(1.0 if parts else 0.0)
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}, "only the socket has a meter"

    def test_a_partition_says_which_processor_it_is(self, child: Child, controls: Controls) -> None:
        controls.set("gpu1.mode", "DPX")
        controls.set("gpu1.partitions", 2)
        part = child.open()[3]
        assert (part.name, part.source, part.quality, part.fraction) == ("amdgpu1-p1", "amd", Quality.ESTIMATED, 0.5)
        assert (part.uuid, part.pci_bus_id) == ("01ff74a0-0000-1000-80aa-000000000001", "0000:20:00.1")

    def test_functions_of_one_slot_are_gpus_of_their_own(self, child: Child, controls: Controls) -> None:
        """A virtual machine may put several GPUs there; a partition says that it is one."""
        controls.set("gpu0.bdf", "0 5 0 0")
        controls.set("gpu1.bdf", "0 5 0 1")
        assert [(device.name, device.kind) for device in child.open()] == [
            ("amdgpu0", DeviceKind.GPU),
            ("amdgpu1", DeviceKind.GPU),
        ]

    def test_partitions_of_one_never_mix_with_another_gpu_of_the_slot(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.bdf", "0 5 0 0")
        controls.set("gpu1.bdf", "0 5 0 4")
        controls.set("gpu0.mode", "DPX")
        controls.set("gpu0.partitions", 2)
        whole, first, _, other = child.open()
        assert first.uuid == whole.uuid
        assert other.uuid == SECOND_UUID

    def test_partitions_without_the_first_have_no_meter(self, child: Child, controls: Controls) -> None:
        """A container that was given some of them only; they are nobody else's."""
        controls.set("gpu1.partitions", 4)
        controls.set("gpu1.hidden", 1)
        assert [device.name for device in child.open()] == ["amdgpu0"]
        assert list(child.meters()) == ["amdgpu0"]

    @pytest.mark.parametrize("garbage", [64, 5_000_000, UNKNOWN_32])
    def test_a_number_of_no_partition_is_a_whole_gpu(self, child: Child, controls: Controls, garbage: int) -> None:
        controls.set("gpu1.partition_id", garbage)
        assert [device.kind for device in child.open()] == [DeviceKind.GPU, DeviceKind.GPU]

    def test_an_engine_may_name_a_partition(self, child: Child, controls: Controls) -> None:
        """The books are of the whole GPU; what is asked for by a partition is its parent's."""
        controls.set("gpu0.mode", "DPX")
        controls.set("gpu0.partitions", 2)
        engine = Engine(name="e", devices=("amdgpu0-p1",))
        assert Group(("amdgpu0",), ("e",)) in groups(child.open(), [engine])

    def test_split_otherwise_under_way_needs_a_new_list(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("gpu1.mode", "CPX")
        error = child.refused(for_seconds=11)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "repartitioned", True)
        assert "amdgpu1 went from SPX to CPX" in error.message


class TestReadings:
    def test_the_energy_counter_comes_first(self, child: Child, controls: Controls) -> None:
        only_ticks(controls, 0, 65_536_000_000)
        device = child.open()[0]
        assert (device.method, device.quality) == ("amdsmi_energy", Quality.MEASURED)
        assert child.meters()["amdgpu0"] == EnergyReading("amdgpu0", START_NS, 1_000_000_000_000)

    def test_its_joules_are_those_of_the_power(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.watts", 750)
        child.open()
        before = child.meters()["amdgpu0"]
        begun = time.monotonic()
        time.sleep(0.2)
        after, elapsed = child.meters()["amdgpu0"], time.monotonic() - begun
        assert isinstance(before, EnergyReading)
        assert isinstance(after, EnergyReading)
        assert after.microjoules - before.microjoules == pytest.approx(750e6 * elapsed, rel=0.1)

    def test_a_resolution_of_another_kind_is_followed(self, child: Child, controls: Controls) -> None:
        only_ticks(controls, 0, 1_000_000)
        controls.set("gpu0.resolution", 0.5)
        child.open()
        assert child.meters()["amdgpu0"] == EnergyReading("amdgpu0", START_NS, 500_000)

    def test_then_the_current_power(self, child: Child, controls: Controls) -> None:
        no_energy(controls, 0)
        controls.set("gpu0.average", 333)
        device = child.open()[0]
        assert (device.method, device.quality) == ("amdsmi_power_current", Quality.DERIVED)
        assert child.meters()["amdgpu0"] == PowerReading("amdgpu0", START_NS, 400.0)

    @pytest.mark.parametrize("unknown", [0, 0xFFFF, UNKNOWN_32])
    def test_then_the_average_of_older_generations(self, child: Child, controls: Controls, unknown: int) -> None:
        no_energy(controls, 0)
        controls.set("gpu0.current", unknown)
        controls.set("gpu0.average", 333)
        assert child.open()[0].method == "amdsmi_power_average"
        assert child.meters()["amdgpu0"] == PowerReading("amdgpu0", START_NS, 333.0)

    @pytest.mark.parametrize("ticks", [0, UNKNOWN_32, 2**64 - 1])
    def test_a_counter_that_is_not_known_passes_to_the_gauge(
        self, child: Child, controls: Controls, ticks: int
    ) -> None:
        controls.set("gpu0.ticks", ticks)
        assert child.open()[0].method == "amdsmi_power_current"

    @pytest.mark.parametrize("resolution", [0, "nan", "inf", -1])
    def test_a_counter_without_a_unit_passes_to_the_gauge(
        self, child: Child, controls: Controls, resolution: object
    ) -> None:
        controls.set("gpu0.resolution", resolution)
        assert child.open()[0].method == "amdsmi_power_current"

    def test_each_gpu_has_its_own_method(self, child: Child, controls: Controls) -> None:
        no_energy(controls, 1)
        assert [device.method for device in child.open()] == ["amdsmi_energy", "amdsmi_power_current"]

    @pytest.mark.parametrize("sentinel", [0, 0xFFFF, UNKNOWN_32])
    def test_a_sentinel_is_a_reading_less(self, child: Child, controls: Controls, sentinel: int) -> None:
        no_energy(controls, 0)
        child.open()
        controls.set("gpu0.current", sentinel)
        assert list(child.meters()) == ["amdgpu1"]
        controls.clear("gpu0.current")
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}

    @pytest.mark.parametrize("ticks", [5, 2**40])
    def test_resets_and_jumps_are_passed_on_for_the_ledger_to_judge(
        self, child: Child, controls: Controls, ticks: int
    ) -> None:
        only_ticks(controls, 0, 65536)
        child.open()
        controls.set("gpu0.ticks", ticks)
        assert child.meters()["amdgpu0"] == EnergyReading("amdgpu0", START_NS, ticks * 1_000_000 // 65536)

    def test_a_gpu_without_any_meter_is_left_out(self, child: Child, controls: Controls) -> None:
        no_meter(controls, 0)
        assert [device.name for device in child.open()] == ["amdgpu1"]


class TestInterval:
    def test_cheap_reads_come_every_tenth_of_a_second(self, child: Child) -> None:
        child.open()
        assert child.interval_seconds == 0.1

    def test_a_configured_interval_wins(self, child: Child) -> None:
        child.open(interval_seconds=0.5)
        assert child.interval_seconds == 0.5

    def test_dear_reads_come_rarely(self, rocm: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.slow", 20_000)
        with start(rocm, controls) as child:
            child.real_clock()
            child.open()
            assert 0.4 <= child.interval_seconds < 2.0


class TestStatus:
    def test_limit_and_driver(self, child: Child) -> None:
        child.open()
        status = child.statuses()["amdgpu0"]
        assert (status.power_limit_watts, status.driver, status.t_ns) == (750.0, "6.14.14", START_NS)
        assert status.throttle_seconds == {}, "the default stub is of a part without residencies"

    def test_throttling_is_the_share_of_the_rounds(self, rocm: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.throttle", "1000 0 500 0 0 0")
        with start(rocm, controls) as child:
            child.open()
            first = child.statuses()["amdgpu0"].throttle_seconds
            assert first == dict.fromkeys(("power", "thermal", "memory_thermal", "vr_thermal", "prochot"), 0.0)
            controls.set("gpu0.throttle", "11000 0 3000 1000 0 0")
            child.advance(10)
            later = child.statuses()["amdgpu0"].throttle_seconds
            assert later["power"] == pytest.approx(2.5)
            assert later["thermal"] == pytest.approx(1.0)
            assert later["prochot"] == 0.0
            controls.set("gpu0.throttle", "10 0 5 0 0 0")
            child.advance(10)
            assert child.statuses()["amdgpu0"].throttle_seconds["power"] == pytest.approx(2.5), "counters began anew"
            controls.set("gpu0.throttle", f"110 0 15 {2**64 - 1} 0 0")
            child.advance(20)
            last = child.statuses()["amdgpu0"].throttle_seconds
            assert last["power"] == pytest.approx(4.5)
            assert "thermal" not in last

    def test_it_comes_about_every_ten_seconds(self, rocm: Path, tmp_path: Path) -> None:
        with start(rocm, Controls(tmp_path)) as child:
            child.open()
            seen = []
            for _ in range(5):
                seen.append(bool(child.statuses()))
                child.advance(5)
            assert seen == [True, False, True, False, True]

    def test_a_changed_limit_is_told_and_a_missing_one_is_absent(self, rocm: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(rocm, controls) as child:
            child.open()
            child.read()
            for cap, told in ((500_000_000, 500.0), (500, 500.0), (0, None), (UNKNOWN_32, None)):
                controls.set("gpu0.cap", cap)
                child.advance(10)
                assert child.statuses()["amdgpu0"].power_limit_watts == told

    def test_the_processes_that_compute_on_it_and_on_its_partitions(self, rocm: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu1.partitions", 2)
        controls.set("gpu1.mode", "DPX")
        controls.compute(4711, _1000=4096, _2000=0, _2001=0)
        controls.compute(4712, _1000=0, _2000=0, _2001=8192)
        controls.compute(4713, _1000=1, _2000=1)
        controls.compute(4714, _1000=0, _3000=5)
        (controls.sysfs / "class/kfd/kfd/proc/4715").mkdir()  # it is just ending
        with start(rocm, controls) as child:
            child.open()
            told = {name: status.processes for name, status in child.statuses().items()}
            assert told == {"amdgpu0": (4711, 4713), "amdgpu1": (4712, 4713)}

    @pytest.mark.parametrize("number", [0, 2**64 - 1])
    def test_without_the_drivers_number_nobody_is_told_to_compute(
        self, rocm: Path, tmp_path: Path, number: int
    ) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.kfd", number)
        controls.compute(4711, _0=4096)
        with start(rocm, controls) as child:
            child.open()
            assert child.statuses()["amdgpu0"].processes == ()


class TestStandingStill:
    def test_a_counter_that_stands_from_the_start_is_not_used(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.ticks", 65536)
        assert child.open()[0].method == "amdsmi_power_current"
        for _ in range(8):
            child.advance(10)
            assert "amdgpu0" in child.meters()

    @pytest.mark.parametrize("scale", [0.01, 100])
    def test_a_counter_in_other_units_is_not_used(self, child: Child, controls: Controls, scale: float) -> None:
        controls.set("gpu0.scale", scale)
        assert [device.method for device in child.open()] == ["amdsmi_power_current", "amdsmi_energy"]
        child.advance(61)
        assert len(child.meters()) == 2

    def test_a_counter_that_stops_under_way_gives_way_to_the_gauge(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("gpu0.ticks", 2**30)
        error = child.refused(for_seconds=12)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "counter_stuck", False)
        assert "amdgpu0" in error.message
        child.close()
        assert child.open()[0].method == "amdsmi_power_current"

    def test_a_counter_that_stands_without_a_gauge_to_contradict_it_is_believed(
        self, child: Child, controls: Controls
    ) -> None:
        only_ticks(controls, 0, 65536)
        child.open()
        for _ in range(5):
            child.advance(10)
            assert "amdgpu0" in child.meters()

    def test_frozen_readings_need_a_new_process(self, child: Child, controls: Controls) -> None:
        """ROCm/amdsmi issue 22: within a process the same values for ever, while others see them move."""
        child.open()
        controls.set("gpu0.ticks", 2**30)
        controls.set("gpu0.stamp", 77)
        error = child.refused(for_seconds=12)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "frozen", True)
        assert "amdgpu0" in error.message
        assert error.mend

    def test_one_frozen_from_the_start_is_left_out_until_it_lives(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.ticks", 2**30)
        controls.set("gpu0.stamp", 77)
        assert [device.name for device in child.open()] == ["amdgpu1"]
        for _ in range(7):
            child.advance(10)
            assert list(child.meters()) == ["amdgpu1"]
        controls.clear("gpu0.stamp")
        controls.clear("gpu0.ticks")
        assert child.refused(for_seconds=61).reason == "reading_returned"
        child.close()
        assert len(child.open()) == 2

    def test_all_frozen_from_the_start(self, child: Child, controls: Controls) -> None:
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.ticks", 2**30)
            controls.set(f"gpu{gpu}.stamp", 77)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert (caught.value.reason, caught.value.fatal) == ("frozen", True)


class TestComingAndGoing:
    @pytest.mark.parametrize("code", [RETRY, IO, BUSY, 8, 31, 40])
    def test_one_that_fails_is_left_out_at_once_and_back_at_once(
        self, child: Child, controls: Controls, code: int
    ) -> None:
        child.open()
        controls.set("gpu0.energy.code", code)
        assert list(child.meters()) == ["amdgpu1"]
        controls.clear("gpu0.energy.code")
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}

    def test_single_failures_do_not_add_up(self, child: Child, controls: Controls) -> None:
        child.open()
        for _ in range(3):
            controls.set("gpu0.all.code", BUSY)
            assert list(child.meters()) == ["amdgpu1"]
            assert child.parts() == {}
            controls.clear("gpu0.all.code")
            assert set(child.meters()) == {"amdgpu0", "amdgpu1"}
            child.advance(6)

    def test_a_lost_one_is_asked_rarely_and_comes_back(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("gpu0.all.code", IO)
        for _ in range(7):
            assert list(child.meters()) == ["amdgpu1"]
            child.advance(1)
        controls.clear("gpu0.all.code")
        child.advance(20)
        assert list(child.meters()) == ["amdgpu1"], "it is asked every half minute"
        child.advance(10)
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}

    def test_a_flapping_one_never_stops_the_others(self, child: Child, controls: Controls) -> None:
        child.open()
        for turn in range(20):
            if turn % 2:
                controls.clear("gpu0.all.code")
            else:
                controls.set("gpu0.all.code", BUSY)
            child.advance(3)
            assert "amdgpu1" in child.meters()

    def test_all_lost_is_the_source_down(self, child: Child, controls: Controls) -> None:
        child.open()
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.all.code", IO)
        assert child.meters() == {}, "a reset takes a moment"
        error = child.refused(for_seconds=6)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "gpu_lost", False)
        assert "amd-smi reset" in error.mend
        child.close()
        controls.clear_all()
        assert len(child.open()) == 2

    def test_a_reading_that_vanishes_is_replaced_and_used_again_when_it_returns(
        self, child: Child, controls: Controls
    ) -> None:
        """ROCm/device-metrics-exporter issue 315: after two days the field is told no more."""
        child.open()
        no_energy(controls, 0)
        error = child.refused(for_seconds=6)
        assert (error.state, error.reason) == (SourceState.DOWN, "reading_vanished")
        assert "amdgpu0" in error.message
        child.close()
        assert child.open()[0].method == "amdsmi_power_current"
        controls.clear("gpu0.energy.code")
        error = child.refused(for_seconds=61)
        assert (error.state, error.reason) == (SourceState.DOWN, "reading_returned")
        child.close()
        assert child.open()[0].method == "amdsmi_energy"

    def test_one_that_was_silent_at_the_start_is_taken_in_later(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.all.code", IO)
        assert [device.product for device in child.open()] == ["AMD Instinct Stub 1"]
        controls.clear("gpu0.all.code")
        assert child.refused(for_seconds=61).reason == "reading_returned"
        child.close()
        assert len(child.open()) == 2

    def test_a_gpu_that_appears_needs_a_new_list(self, child: Child, controls: Controls) -> None:
        (controls.bound / "0000:10:00.0").touch()
        (controls.bound / "module").touch()
        child.open()
        (controls.bound / "bind").touch()
        child.read()
        (controls.bound / "0000:30:00.0").touch()
        error = child.refused(for_seconds=11)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "gpu_appeared", True)
        assert "0000:30:00.0" in error.message

    def test_a_gpu_that_left_the_bus_and_came_back_needs_a_new_list(self, child: Child, controls: Controls) -> None:
        address = controls.bound / "0000:10:00.0"
        address.touch()
        child.open()
        address.unlink()
        child.advance(10)
        child.read()
        address.touch()
        assert child.refused(for_seconds=11).reason == "gpu_appeared"


class TestParts:
    """What is wrong with one GPU while the others go on."""

    @pytest.mark.parametrize(
        ("fault", "settings", "state", "reason"),
        [
            ("lost", {"all.code": 31}, SourceState.DOWN, "gpu_lost"),
            ("fails", {"energy.code": IO, "power.code": IO}, SourceState.DOWN, "gpu_lost"),
            ("time-out", {"energy.code": 8, "power.code": 8}, SourceState.DOWN, "gpu_lost"),
            ("unknown error", {"energy.code": 999, "power.code": 999}, SourceState.DOWN, "gpu_lost"),
            ("denied", {"energy.code": 10, "power.code": 10}, SourceState.DENIED, "no_permission"),
            ("sentinel", {"ticks": 2**64 - 1, "current": UNKNOWN_32}, SourceState.DOWN, "gpu_lost"),
            ("nothing told", {"ticks": 0, "current": 0}, SourceState.DOWN, "gpu_lost"),
        ],
    )
    def test_under_way(
        self,
        child: Child,
        controls: Controls,
        fault: str,
        settings: dict[str, object],
        state: SourceState,
        reason: str,
    ) -> None:
        child.open()
        assert child.parts() == {}
        for key, value in settings.items():
            controls.set(f"gpu0.{key}", value)
        assert list(child.meters()) == ["amdgpu1"]
        assert child.parts() == {}, "one failure may pass"
        child.advance(5)
        assert list(child.meters()) == ["amdgpu1"]
        told = child.parts()["amdgpu0"]
        assert told is not None, fault
        assert (told.state, told.reason) == (state, reason)
        assert told.mend
        for key in settings:
            controls.clear(f"gpu0.{key}")
        child.advance(30)
        assert set(child.meters()) == {"amdgpu0", "amdgpu1"}
        assert child.parts() == {"amdgpu0": None}

    @pytest.mark.parametrize(
        ("code", "state", "reason"),
        [
            (IO, SourceState.DOWN, "amdsmi_12"),
            (NO_PERMISSION, SourceState.DENIED, "no_permission"),
            (NOT_SUPPORTED, SourceState.ABSENT, "no_meter"),
        ],
    )
    def test_at_the_start(self, child: Child, controls: Controls, code: int, state: SourceState, reason: str) -> None:
        no_meter(controls, 0, code)
        assert [device.name for device in child.open()] == ["amdgpu1"]
        told = child.parts()["amdgpu0"]
        assert told is not None
        assert (told.state, told.reason) == (state, reason)

    def test_the_source_says_what_can_be_mended_where_none_is_left(self, child: Child, controls: Controls) -> None:
        no_meter(controls, 0, NOT_SUPPORTED)
        no_meter(controls, 1, NO_PERMISSION)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert caught.value.state is SourceState.DENIED


class TestFaults:
    @pytest.mark.parametrize(
        ("faults", "state", "reason", "mend"),
        [
            ({"init.code": NO_PERMISSION}, SourceState.DENIED, "no_permission", "SupplementaryGroups=render video"),
            ({"init.code": 34}, SourceState.DOWN, "driver_not_loaded", "modprobe amdgpu"),
            ({"init.code": 43}, SourceState.DOWN, "amdsmi_43", ""),
            ({"init.code": 9}, SourceState.DOWN, "amdsmi_9", ""),
            ({"all.code": 12}, SourceState.DOWN, "amdsmi_12", ""),
            ({"count": 0}, SourceState.ABSENT, "no_gpu", "amd-smi list"),
            ({"*.energy.code": 2, "*.power.code": 2}, SourceState.ABSENT, "no_meter", "BMC"),
            ({"*.energy.code": 43, "*.power.code": 2}, SourceState.ABSENT, "no_meter", "BMC"),
            ({"*.ticks": 0, "*.current": 0xFFFF}, SourceState.ABSENT, "no_meter", "BMC"),
            ({"*.energy.code": 10, "*.power.code": 10}, SourceState.DENIED, "no_permission", "DeviceAllow=char-kfd"),
            ({"*.energy.code": 30, "*.power.code": 30}, SourceState.DOWN, "amdsmi_30", ""),
            ({"*.energy.code": 32}, SourceState.DOWN, "uninitialized", ""),
        ],
    )
    def test_what_opening_says(
        self, child: Child, controls: Controls, faults: dict[str, int], state: SourceState, reason: str, mend: str
    ) -> None:
        for key, value in faults.items():
            for gpu in ("gpu0", "gpu1"):
                controls.set(key.replace("*", gpu), value)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert (caught.value.state, caught.value.reason, caught.value.fatal) == (state, reason, False)
        assert mend in caught.value.mend
        controls.clear_all()
        assert len(child.open()) == 2, "it heals in the same process"

    @pytest.mark.parametrize(("code", "reason"), [(34, "driver_not_loaded"), (32, "uninitialized")])
    def test_a_driver_that_goes_under_way_needs_a_new_process(
        self, child: Child, controls: Controls, code: int, reason: str
    ) -> None:
        child.open()
        controls.set("all.code", code)
        with pytest.raises(SourceError) as caught:
            child.read()
        assert (caught.value.state, caught.value.reason, caught.value.fatal) == (SourceState.DOWN, reason, True)

    def test_a_failed_opening_leaves_nothing_initialised(self, rocm: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(rocm, controls) as child:
            controls.set("count", 0)
            with pytest.raises(SourceError):
                child.open()
            controls.clear("count")
            child.open()
            child.close()
            with pytest.raises(SourceError) as caught:
                child.read()
            assert caught.value.reason == "uninitialized"

    def test_closing_twice_is_harmless(self, child: Child) -> None:
        child.open()
        for _ in range(3):
            child.close()


class TestBinding:
    """Each in a process of its own; the driver would trip over anything printed on standard output."""

    @pytest.fixture
    def controls(self, tmp_path: Path) -> Controls:
        return Controls(tmp_path)

    @staticmethod
    def refusal(rocm: Path | None, controls: Controls, **environment: str) -> SourceError:
        with start(rocm, controls, **environment) as child, pytest.raises(SourceError) as caught:
            child.open()
        return caught.value

    @staticmethod
    def in_place_of_it(folder: Path, text: str) -> str:
        """A folder for PYTHONPATH whose `amdsmi` hides the installed one."""
        (folder / "hiding").mkdir()
        (folder / "hiding" / "amdsmi.py").write_text(text)
        return str(folder / "hiding")

    def without_it(self, folder: Path) -> str:
        return self.in_place_of_it(folder, "raise ModuleNotFoundError(\"No module named 'amdsmi'\", name='amdsmi')\n")

    def test_without_rocm_the_source_is_absent(self, controls: Controls) -> None:
        with start(None, controls) as child:
            for _ in range(2):
                with pytest.raises(SourceError) as caught:
                    child.open()
                assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "library_not_found")
                assert "libamd_smi.so" in caught.value.message
                assert "/opt/rocm/lib" in caught.value.message
                assert "install amd-smi-lib" in caught.value.mend

    def test_without_rocm_and_binding_too(self, controls: Controls, tmp_path: Path) -> None:
        error = self.refusal(None, controls, PYTHONPATH=self.without_it(tmp_path))
        assert (error.state, error.reason) == (SourceState.ABSENT, "library_not_found")

    def test_with_rocm_and_no_binding_it_says_what_to_install(
        self, rocm: Path, controls: Controls, tmp_path: Path
    ) -> None:
        tree = tmp_path / "rocm"
        shutil.copytree(rocm, tree)
        (tree / ".info").mkdir()
        (tree / ".info" / "version").write_text("6.4.1-83\n")
        error = self.refusal(tree, controls, PYTHONPATH=self.without_it(tmp_path))
        assert (error.state, error.reason) == (SourceState.ABSENT, "binding_not_found")
        assert "-m pip install 'amdsmi==6.4.1'" in error.mend

    def test_a_library_that_cannot_be_loaded_is_no_absence(self, controls: Controls, tmp_path: Path) -> None:
        (tmp_path / "rocm" / "lib").mkdir(parents=True)
        library = tmp_path / "rocm" / "lib" / "libamd_smi.so"
        library.write_text("not an ELF file")
        error = self.refusal(tmp_path / "rocm", controls)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "library_unloadable", True)
        assert str(library) in error.message
        assert f"ldd {library}" in error.mend

    def test_a_library_older_than_the_binding(self, controls: Controls, tmp_path: Path) -> None:
        old = build(tmp_path / "rocm", without=["amdsmi_get_power_cap_info"])
        error = self.refusal(old, controls)
        assert (error.state, error.reason, error.fatal) == (SourceState.DOWN, "version_mismatch", True)
        assert "amdsmi_get_power_cap_info" in error.message
        assert "pip install" in error.mend

    @pytest.mark.parametrize(("version", "fits"), [("7.0.0-38", True), ("6.3.1-48", False), ("7.1.0", False)])
    def test_a_binding_of_another_rocm_would_read_nonsense(
        self, rocm: Path, controls: Controls, tmp_path: Path, version: str, fits: bool
    ) -> None:
        tree = tmp_path / "rocm"
        shutil.copytree(rocm, tree)
        (tree / ".info").mkdir()
        (tree / ".info" / "version").write_text(version)
        if fits:
            with start(tree, controls) as child:
                assert len(child.open()) == 2
            return
        error = self.refusal(tree, controls)
        assert (error.reason, error.fatal) == ("version_mismatch", True)
        assert "7.0.2" in error.message
        assert f"amdsmi=={version.partition('-')[0]}" in error.mend

    def test_the_binding_that_rocm_brought_is_preferred(self, rocm: Path, controls: Controls, tmp_path: Path) -> None:
        tree = tmp_path / "rocm"
        shutil.copytree(rocm, tree)
        (tree / ".info").mkdir()
        (tree / ".info" / "version").write_text("6.3.1-48")
        shutil.copytree(binding_folder(), tree / "share" / "amd_smi" / "amdsmi")
        with (tree / "share" / "amd_smi" / "amdsmi" / "__init__.py").open("a") as binding:
            binding.write("\namdsmi_get_gpu_asic_info = lambda handle: {'market_name': 'told by the one of ROCm'}\n")
        with start(tree, controls) as child:
            assert child.open()[0].product == "told by the one of ROCm"

    def test_rocm_path_may_be_configured(self, rocm: Path, controls: Controls) -> None:
        with start(None, controls, AMDSMI_STUB_DIR=str(controls.folder)) as child:
            assert len(child.open(rocm_path=str(rocm))) == 2

    @pytest.mark.parametrize("text", ["import nothing_like_it\n", "1 +\n", "raise OSError('disk')\n"])
    def test_a_broken_binding_is_told(self, rocm: Path, controls: Controls, tmp_path: Path, text: str) -> None:
        error = self.refusal(rocm, controls, PYTHONPATH=self.in_place_of_it(tmp_path, text))
        assert (error.state, error.reason) == (SourceState.DOWN, "binding_broken")

    def test_a_binding_without_a_call_tells_the_rest(self, rocm: Path, controls: Controls, tmp_path: Path) -> None:
        tree = tmp_path / "rocm"
        shutil.copytree(rocm, tree)
        shutil.copytree(binding_folder(), tree / "share" / "amd_smi" / "amdsmi")
        with (tree / "share" / "amd_smi" / "amdsmi" / "__init__.py").open("a") as binding:
            binding.write("\ndel amdsmi_get_gpu_kfd_info, amdsmi_get_gpu_compute_partition, amdsmi_get_energy_count\n")
        with start(tree, controls) as child:
            assert [device.method for device in child.open()] == ["amdsmi_power_current"] * 2


class TestFromTheDaemon:
    def test_one_look_in_a_process_of_its_own(
        self, rocm: Path, controls: Controls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AMDSMI_STUB_DIR", str(controls.folder))
        settings = AmdSettings(rocm_path=str(rocm), sysfs_root=str(controls.sysfs))
        (found,) = probe_all({"amd": AmdCollector()}, {"amd": settings})
        assert (found.state, found.message) == (SourceState.OK, "")
        assert [device.name for device in found.devices] == ["amdgpu0", "amdgpu1"]
        assert [energy.device for energy in found.energies] == ["amdgpu0", "amdgpu1"]


class TestSettings:
    def test_the_collector_is_for_a_child_process(self) -> None:
        assert (AmdCollector.name, AmdCollector.isolation) == ("amd", "process")
        assert AmdCollector.settings_type is AmdSettings

    def test_it_is_found_without_being_told(self) -> None:
        assert msgspec.convert({}, AmdSettings) == AmdSettings()

    @pytest.mark.parametrize(
        "wrong", [{"interval_seconds": 0}, {"idle_watts": -1}, {"device": [0]}, {"devices": 3}, {"startup": "maybe"}]
    )
    def test_wrong_settings_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, AmdSettings)

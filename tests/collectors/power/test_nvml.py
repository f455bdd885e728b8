"""The NVML collector through the real binding, over a stub of the driver's library."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.nvml_stub import Controls, build
from tests.support.nvml_stub.child import START_NS, Child, start

from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.nvml import NvmlCollector, NvmlSettings

UINT, ULONGLONG = 1, 3
NOT_SUPPORTED = f"3 {UINT} 0"
ENERGY, AVERAGE, INSTANT, CURRENT_LIMIT = 83, 185, 186, 190
GPU_SCOPE, MODULE_SCOPE = 0, 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Controls:
    return Controls(tmp_path_factory.mktemp("controls"))


@pytest.fixture(scope="module")
def process(library: Path, controls: Controls) -> Iterator[Child]:
    with start(library, controls) as running:
        yield running


@pytest.fixture
def child(process: Child, controls: Controls) -> Child:
    """The shared process, with every control back at its default."""
    controls.clear_all()
    return process


def without_gpu_scope(controls: Controls, gpu: int) -> None:
    """A superchip's GPU: nothing is told at the GPU's own scope."""
    for call in ("energy", "power"):
        controls.set(f"gpu{gpu}.{call}.code", 3)
    for field in (ENERGY, AVERAGE, INSTANT):
        controls.set(f"gpu{gpu}.field.{field}.{GPU_SCOPE}", NOT_SUPPORTED)


class TestDevices:
    def test_a_gpu_says_who_it_is(self, child: Child) -> None:
        first, second = child.open()
        assert (first.name, second.name) == ("gpu0", "gpu1")
        assert first.kind is DeviceKind.GPU
        assert first.vendor == "nvidia"
        assert first.product == "NVIDIA Stub 0"
        assert first.uuid == "GPU-00000000-stub-0000-0000-000000000000"
        assert first.pci_bus_id == "00000000:10:00.0"
        assert (first.index, second.index) == (0, 1)
        assert first.source == "nvml"
        assert first.max_watts == 700.0
        assert first.idle_watts is None

    def test_configured_watts_are_of_each_gpu(self, child: Child) -> None:
        for device in child.open(idle_watts=70.0, uplift_watts=30):
            assert (device.idle_watts, device.uplift_watts) == (70.0, 30.0)

    def test_missing_descriptions_cost_no_joules(self, child: Child, controls: Controls) -> None:
        for call in ("name", "uuid", "pci", "limit"):
            controls.set(f"gpu0.{call}.code", 3)
        device = child.open()[0]
        assert (device.product, device.uuid, device.pci_bus_id) == ("", "", "")
        assert device.max_watts is None
        assert "gpu0" in child.meters()

    @pytest.mark.parametrize("selected", [[1], ["GPU-00000001-stub-0000-0000-000000000000"]])
    def test_devices_selects(self, child: Child, selected: list[int | str]) -> None:
        assert [device.name for device in child.open(devices=selected)] == ["gpu1"]

    @pytest.mark.parametrize("unknown", [7, "GPU-nobody", "MIG-6c3b2a1e-9f0d-5e4c-8b7a-123456789abc"])
    def test_an_unknown_device_is_refused_by_name(self, child: Child, unknown: int | str) -> None:
        with pytest.raises(SourceError) as caught:
            child.open(devices=[0, unknown])
        assert caught.value.state is SourceState.ABSENT
        assert caught.value.reason == "unknown_device"
        assert str(unknown) in caught.value.message
        assert "GPU-00000001-stub" in caught.value.message
        assert "[power.nvml]" in caught.value.mend

    def test_a_selected_gpu_that_is_lost_does_not_stop_the_others(self, child: Child, controls: Controls) -> None:
        controls.set("gpu1.handle.code", 15)
        selected = [0, "GPU-00000001-stub-0000-0000-000000000000"]
        assert [device.name for device in child.open(devices=selected)] == ["gpu0"]

    def test_no_gpu_at_all(self, child: Child, controls: Controls) -> None:
        controls.set("count", 0)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "no_gpu")


class TestReadings:
    def test_the_energy_counter_comes_first(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.millijoules", 123_456_789)
        device = child.open()[0]
        assert (device.method, device.quality) == ("nvml_energy", Quality.MEASURED)
        assert child.meters()["gpu0"] == EnergyReading("gpu0", START_NS, 123_456_789_000)

    def test_then_the_energy_field(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set(f"gpu0.field.{ENERGY}.{GPU_SCOPE}", f"0 {ULONGLONG} 5000000000000")
        device = child.open()[0]
        assert (device.method, device.quality) == ("nvml_energy_field", Quality.MEASURED)
        assert child.meters()["gpu0"] == EnergyReading("gpu0", START_NS, 5_000_000_000_000_000)

    def test_then_the_average_set_back_by_half_its_second(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set(f"gpu0.field.{ENERGY}.{GPU_SCOPE}", NOT_SUPPORTED)
        controls.set("gpu0.milliwatts", 512_250)
        device = child.open()[0]
        assert (device.method, device.quality) == ("nvml_power_average", Quality.DERIVED)
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS - 500_000_000, 512.25)

    def test_then_the_instant_where_it_was_taken(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.energy.code", 3)
        for field in (ENERGY, AVERAGE):
            controls.set(f"gpu0.field.{field}.{GPU_SCOPE}", NOT_SUPPORTED)
        assert child.open()[0].method == "nvml_power_instant"
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS, 400.0)

    def test_then_power_usage(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set("gpu0.fields.code", 3)
        assert child.open()[0].method == "nvml_power_usage"
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS, 400.0)

    def test_each_gpu_has_its_own_method(self, child: Child, controls: Controls) -> None:
        controls.set("gpu1.energy.code", 3)
        assert [device.method for device in child.open()] == ["nvml_energy", "nvml_energy_field"]

    @pytest.mark.parametrize(
        ("value_type", "value", "watts"),
        [
            (0, 250000.5, 250.0),
            (1, 250000, 250.0),
            (2, 250000, 250.0),
            (3, 250000, 250.0),
            (4, 250000, 250.0),
            (5, 250000, 250.0),
            (6, 65000, 65.0),
        ],
    )
    def test_a_field_is_read_by_its_own_type(
        self, child: Child, controls: Controls, value_type: int, value: float, watts: float
    ) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set(f"gpu0.field.{ENERGY}.{GPU_SCOPE}", NOT_SUPPORTED)
        controls.set(f"gpu0.field.{AVERAGE}.{GPU_SCOPE}", f"0 {value_type} {value}")
        child.open()
        reading = child.meters()["gpu0"]
        assert isinstance(reading, PowerReading)
        assert reading.watts == watts

    @pytest.mark.parametrize("odd", ["0 9 250000", "0 0 nan", "0 0 inf", "0 -1 1"])
    def test_an_unknown_layout_passes_to_the_next_method(self, child: Child, controls: Controls, odd: str) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set(f"gpu0.field.{ENERGY}.{GPU_SCOPE}", odd)
        assert child.open()[0].method == "nvml_power_average"

    def test_sentinels_are_passed_on_for_the_ledger_to_refuse(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set("gpu0.fields.code", 3)
        child.open()
        controls.set("gpu0.milliwatts", 0xFFFFFFFF)
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS, 4_294_967.295)

    def test_a_gpu_without_any_meter_is_left_out(self, child: Child, controls: Controls) -> None:
        for call in ("energy", "fields", "power"):
            controls.set(f"gpu0.{call}.code", 3)
        assert [device.name for device in child.open()] == ["gpu1"]

    @pytest.mark.parametrize(("code", "state"), [(3, SourceState.ABSENT), (4, SourceState.DENIED)])
    def test_no_gpu_with_a_meter(self, child: Child, controls: Controls, code: int, state: SourceState) -> None:
        for gpu in (0, 1):
            for call in ("energy", "fields", "power"):
                controls.set(f"gpu{gpu}.{call}.code", code)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert caught.value.state is state
        assert caught.value.mend


class TestModules:
    def test_a_gpu_without_its_own_scope_is_read_as_its_module(self, child: Child, controls: Controls) -> None:
        without_gpu_scope(controls, 0)
        controls.set(f"gpu0.field.{INSTANT}.{MODULE_SCOPE}", f"0 {UINT} 910000")
        controls.set(f"gpu0.field.{CURRENT_LIMIT}.{MODULE_SCOPE}", f"0 {UINT} 1000000")
        module, gpu = child.open()
        assert (module.name, module.kind) == ("gpu0", DeviceKind.MODULE)
        assert module.method == "nvml_power_instant"
        assert module.max_watts == 1000.0
        assert gpu.kind is DeviceKind.GPU
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS, 910.0)

    def test_the_gpu_limit_is_no_limit_of_its_module(self, child: Child, controls: Controls) -> None:
        without_gpu_scope(controls, 0)
        controls.set(f"gpu0.field.{AVERAGE}.{MODULE_SCOPE}", f"0 {UINT} 910000")
        assert child.open()[0].max_watts is None

    @pytest.mark.parametrize(
        ("modules", "names"),
        [
            ((3, 3), ["gpu0"]),
            ((3, 4), ["gpu0", "gpu1"]),
            ((0, 0), ["gpu0", "gpu1"]),
            ((None, None), ["gpu0", "gpu1"]),
        ],
    )
    def test_a_module_shared_by_two_gpus_is_counted_once(
        self, child: Child, controls: Controls, modules: tuple[int | None, ...], names: list[str]
    ) -> None:
        for gpu, module in enumerate(modules):
            without_gpu_scope(controls, gpu)
            controls.set(f"gpu{gpu}.field.{AVERAGE}.{MODULE_SCOPE}", f"0 {UINT} 1800000")
            if module is not None:
                controls.set(f"gpu{gpu}.module", module)
        assert [device.name for device in child.open()] == names
        assert list(child.meters()) == names

    def test_gpus_with_their_own_scope_are_never_merged(self, child: Child, controls: Controls) -> None:
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.module", 3)
        assert len(child.open()) == 2


class TestInterval:
    def test_cheap_reads_are_fast(self, child: Child) -> None:
        child.open()
        assert child.interval_seconds == 0.02

    def test_a_configured_interval_wins(self, child: Child) -> None:
        child.open(interval_seconds=0.5)
        assert child.interval_seconds == 0.5

    def test_dear_reads_are_slow(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.slow", 3_000)
        with start(library, controls) as child:
            child.real_clock()
            child.open()
            assert child.interval_seconds == 0.1
            controls.set("gpu0.slow", 150_000)
            child.open()
            assert 0.3 <= child.interval_seconds < 1.5


class TestStatus:
    def test_limit_driver_and_throttling(self, child: Child, controls: Controls) -> None:
        controls.set(f"gpu0.field.74.{GPU_SCOPE}", f"0 {ULONGLONG} 2500000000")
        controls.set(f"gpu0.field.75.{GPU_SCOPE}", f"0 {ULONGLONG} 0")
        child.open()
        status = child.statuses()["gpu0"]
        assert status.power_limit_watts == 700.0
        assert status.driver == "999.1"
        assert status.throttle_seconds == {"power": 2.5, "thermal": 0.0}
        assert status.t_ns == START_NS

    def test_it_comes_about_every_ten_seconds(self, library: Path, tmp_path: Path) -> None:
        with start(library, Controls(tmp_path)) as child:
            child.open()
            seen = []
            for _ in range(5):
                seen.append(bool(child.statuses()))
                child.advance(5)
            assert seen == [True, False, True, False, True]

    def test_a_changed_limit_is_told(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            child.read()
            controls.set("gpu0.limit", 500_000)
            child.advance(10)
            assert child.statuses()["gpu0"].power_limit_watts == 500.0

    def test_an_unsupported_field_is_not_asked_again(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.limit.code", 3)
        with start(library, controls) as child:
            child.open()
            first = child.statuses()["gpu0"]
            assert (first.power_limit_watts, first.throttle_seconds) == (None, {})
            controls.clear("gpu0.limit.code")
            controls.set(f"gpu0.field.74.{GPU_SCOPE}", f"0 {ULONGLONG} 2500000000")
            child.advance(10)
            later = child.statuses()["gpu0"]
            assert (later.power_limit_watts, later.throttle_seconds) == (None, {})

    def test_a_passing_failure_is_asked_again(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set(f"gpu0.field.74.{GPU_SCOPE}", f"0 {ULONGLONG} 2500000000")
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.limit.code", 10)
            controls.set("gpu0.fields.code", 10)
            first = child.statuses()["gpu0"]
            assert (first.power_limit_watts, first.throttle_seconds) == (None, {})
            controls.clear("gpu0.limit.code")
            controls.clear("gpu0.fields.code")
            child.advance(10)
            later = child.statuses()["gpu0"]
            assert (later.power_limit_watts, later.throttle_seconds) == (700.0, {"power": 2.5})


class TestLostGpu:
    @pytest.mark.parametrize("code", [15, 16, 28])
    def test_the_others_go_on_and_it_comes_back_after_half_a_minute(
        self, library: Path, tmp_path: Path, code: int
    ) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.all.code", code)
            assert list(child.meters()) == ["gpu1"]
            controls.clear("gpu0.all.code")
            child.advance(29)
            assert list(child.meters()) == ["gpu1"]
            child.advance(1)
            assert list(child.meters()) == ["gpu0", "gpu1"]

    def test_a_handle_without_readings_is_not_back(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.energy.code", 16)
            child.read()
            child.advance(31)
            assert list(child.meters()) == ["gpu1"]

    def test_all_lost_is_the_source_down(self, child: Child, controls: Controls) -> None:
        child.open()
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.all.code", 15)
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                child.read()
            assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "gpu_lost")
            assert not caught.value.fatal
            assert "nvidia-smi --gpu-reset" in caught.value.mend

    def test_lost_at_the_start_asks_for_opening_again_once_it_is_back(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.all.code", 15)
        with start(library, controls) as child:
            assert [device.name for device in child.open()] == ["gpu1"]
            child.advance(30)
            assert list(child.meters()) == ["gpu1"]
            controls.clear("gpu0.all.code")
            child.advance(30)
            with pytest.raises(SourceError) as caught:
                child.read()
            assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "gpu_returned")
            child.close()
            assert [device.name for device in child.open()] == ["gpu0", "gpu1"]

    def test_all_lost_at_the_start(self, child: Child, controls: Controls) -> None:
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.handle.code", 15)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "gpu_lost")

    def test_a_passing_failure_of_one_gpu_is_one_reading_less(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("gpu0.energy.code", 10)
        assert list(child.meters()) == ["gpu1"]
        controls.clear("gpu0.energy.code")
        assert list(child.meters()) == ["gpu0", "gpu1"]

    def test_a_reading_no_longer_supported_is_replaced_on_opening_again(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("gpu0.energy.code", 3)
        with pytest.raises(SourceError) as caught:
            child.read()
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "reading_vanished")
        assert "gpu0" in caught.value.message
        child.close()
        assert [device.method for device in child.open()] == ["nvml_energy_field", "nvml_energy"]


class TestDriver:
    def test_without_the_library_the_source_is_absent(self, tmp_path: Path) -> None:
        with start(None, Controls(tmp_path)) as child:
            for _ in range(2):
                with pytest.raises(SourceError) as caught:
                    child.open()
                assert (caught.value.state, caught.value.reason) == (SourceState.ABSENT, "library_not_found")
                assert "libnvidia-ml.so.1" in caught.value.message
                assert "install the driver" in caught.value.mend

    def test_a_driver_not_loaded_at_the_start_heals_in_the_same_process(self, child: Child, controls: Controls) -> None:
        controls.set("init.code", 9)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "driver_not_loaded")
        assert "modprobe nvidia" in caught.value.mend
        controls.clear("init.code")
        assert len(child.open()) == 2

    @pytest.mark.parametrize("code", [1, 9])
    def test_a_driver_unloaded_under_way(self, child: Child, controls: Controls, code: int) -> None:
        child.open()
        controls.set("all.code", code)
        with pytest.raises(SourceError) as caught:
            child.read()
        assert caught.value.state is SourceState.DOWN
        assert not caught.value.fatal
        child.close()
        controls.clear("all.code")
        child.open()
        assert len(child.meters()) == 2

    def test_a_replaced_driver_needs_a_new_process(self, child: Child, controls: Controls) -> None:
        child.open()
        controls.set("all.code", 18)
        with pytest.raises(SourceError) as caught:
            child.read()
        assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "driver_mismatch")
        assert caught.value.fatal

    @pytest.mark.parametrize(("code", "state"), [(4, SourceState.DENIED), (999, SourceState.DOWN)])
    def test_other_failures_of_the_start(self, child: Child, controls: Controls, code: int, state: SourceState) -> None:
        controls.set("init.code", code)
        with pytest.raises(SourceError) as caught:
            child.open()
        assert caught.value.state is state

    def test_a_failed_opening_leaves_nothing_initialised(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
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

    def test_an_old_driver_without_the_newer_calls(self, tmp_path: Path) -> None:
        old = build(tmp_path / "library", without=["ENERGY", "FIELDS"])
        with start(old, Controls(tmp_path / "controls")) as child:
            assert [device.method for device in child.open()] == ["nvml_power_usage"] * 2
            status = child.statuses()["gpu0"]
            assert (status.power_limit_watts, status.throttle_seconds) == (700.0, {})


class TestSettings:
    def test_the_collector_is_for_a_child_process(self) -> None:
        assert (NvmlCollector.name, NvmlCollector.isolation) == ("nvml", "process")
        assert NvmlCollector.settings_type is NvmlSettings

    @pytest.mark.parametrize(
        "wrong", [{"interval_seconds": 0}, {"idle_watts": -1}, {"device": [0]}, {"devices": 3}, {"startup": "maybe"}]
    )
    def test_wrong_settings_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, NvmlSettings)

"""The NVML collector through the real binding, over a stub of the driver's library."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.nvml_stub import Controls, build
from tests.support.nvml_stub.child import START_NS, Child, start

from jouled.model.device import DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.nvml import NvmlCollector, NvmlSettings
from jouled_collectors.power.nvml_meters import field_value

UINT, ULONGLONG, SIGNED_LONGLONG = 1, 3, 4
NOT_SUPPORTED = f"3 {UINT} 0"
ENERGY, AVERAGE, INSTANT, CURRENT_LIMIT = 83, 185, 186, 190
GPU_SCOPE, MODULE_SCOPE = 0, 1
TURING, AMPERE, HOPPER, UNKNOWN_ARCHITECTURE = 6, 7, 9, 0xFFFFFFFF
HOUR = 3600


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

    def test_power_beside_the_counter_is_told_each_second(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.millijoules", 5_000)
        child.open()
        [gauge] = [one for name, one in child.gauges().items() if name == "gpu0"]
        assert gauge.watts > 0
        assert "gpu0" not in child.gauges(), "not at every read"
        child.advance(1.0)
        assert "gpu0" in child.gauges()
        child.advance(-1.0)  # one process and its clock serve many tests

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

    @pytest.mark.parametrize(
        ("unsupported", "key", "sentinel"),
        [
            ((), "millijoules", 2**64 - 1),
            ((), "millijoules", 2**63),
            (("energy.code",), f"field.{ENERGY}.{GPU_SCOPE}", f"0 {ULONGLONG} {2**64 - 1}"),
            (("energy.code",), f"field.{ENERGY}.{GPU_SCOPE}", f"0 {SIGNED_LONGLONG} -1"),
            (("energy.code", "fields.code"), "milliwatts", 2**32 - 1),
        ],
    )
    def test_a_sentinel_is_no_reading(
        self, library: Path, tmp_path: Path, unsupported: tuple[str, ...], key: str, sentinel: object
    ) -> None:
        controls = Controls(tmp_path)
        for call in unsupported:
            controls.set(f"gpu0.{call}", 3)
        with start(library, controls) as child:
            child.open()
            method = child.devices[0].method
            controls.set(f"gpu0.{key}", sentinel)
            assert list(child.meters()) == ["gpu1"]
            controls.clear(f"gpu0.{key}")
            child.advance(1)
            assert list(child.meters()) == ["gpu0", "gpu1"]
            assert child.devices_now()["gpu0"].method == method

    def test_a_counter_that_is_not_available_is_not_chosen(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.millijoules", 2**64 - 1)
        assert child.open()[0].method == "nvml_power_average"

    @pytest.mark.parametrize(
        ("architecture", "device_id", "lag_ns"),
        [
            (AMPERE, 0x20B2, 0),
            (AMPERE, 0x2235, 500_000_000),
            (HOPPER, 0x2330, 500_000_000),
            (TURING, 0x1EB8, 0),
            (UNKNOWN_ARCHITECTURE, 0x2330, 0),
            (None, 0x2330, 0),
        ],
    )
    def test_power_usage_is_an_average_on_newer_generations_except_ga100(
        self, child: Child, controls: Controls, architecture: int | None, device_id: int, lag_ns: int
    ) -> None:
        controls.set("gpu0.energy.code", 3)
        controls.set("gpu0.fields.code", 3)
        controls.set("gpu0.device_id", device_id)
        if architecture is not None:
            controls.set("gpu0.arch", architecture)
        assert child.open()[0].method == ("nvml_power_usage_average" if lag_ns else "nvml_power_usage")
        assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS - lag_ns, 400.0)

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


class TestAnyField:
    @given(st.binary(min_size=8, max_size=8), st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 0, 0, 3, 15, 999]))
    def test_any_bytes_are_a_value_or_an_nvml_error(self, content: bytes, value_type: int, code: int) -> None:
        for told_type in (value_type, value_type % 7):
            entry = pynvml.c_nvmlFieldValue_t()
            entry.value = pynvml.c_nvmlValue_t.from_buffer_copy(content)
            entry.valueType, entry.nvmlReturn = told_type, code
            value, error = None, None
            try:
                value = field_value(entry)
            except pynvml.NVMLError as refused:
                error = refused.value
            assert (error is None) == (value is not None)
            assert code in {0, error}
            assert value is None or 0 <= value < 2**64 - 1


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

    @pytest.mark.parametrize("supported", [ENERGY, AVERAGE])
    def test_meters_that_move_together_are_one_module_whatever_their_ids(
        self, library: Path, tmp_path: Path, supported: int
    ) -> None:
        controls = Controls(tmp_path)
        for gpu in (0, 1):
            without_gpu_scope(controls, gpu)
            controls.set(f"gpu{gpu}.module", gpu + 1)
            controls.set(f"gpu{gpu}.twin", 0)
            controls.set(f"gpu{gpu}.wobble", 7)
            if supported != ENERGY:
                controls.set(f"gpu{gpu}.field.{ENERGY}.{MODULE_SCOPE}", NOT_SUPPORTED)
        with start(library, controls) as child:
            assert [device.name for device in child.open()] == ["gpu0"]
            assert list(child.meters()) == ["gpu0"]

    def test_meters_that_move_apart_are_two_modules(self, child: Child, controls: Controls) -> None:
        for gpu in (0, 1):
            without_gpu_scope(controls, gpu)
            controls.set(f"gpu{gpu}.twin", gpu)
        assert [device.name for device in child.open()] == ["gpu0", "gpu1"]

    def test_gpus_with_their_own_scope_are_never_merged(self, child: Child, controls: Controls) -> None:
        for gpu in (0, 1):
            controls.set(f"gpu{gpu}.module", 3)
        assert len(child.open()) == 2


class TestInterval:
    def test_it_is_read_as_often_as_its_counter_moves(self, child: Child) -> None:
        child.open()
        assert child.interval_seconds == 0.1

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
    def test_the_processes_that_compute_on_it(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.processes", "4711 4712 4711")
        controls.set("gpu1.processes.code", 3)
        child.open()
        told = child.statuses()
        assert (told["gpu0"].processes, told["gpu1"].processes) == ((4711, 4712), ())

    def test_a_failing_list_of_processes_costs_nothing_else(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.processes.code", 999)
        child.open()
        status = child.statuses()["gpu0"]
        assert status.processes == ()
        assert status.power_limit_watts == 700.0

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

    @pytest.mark.parametrize("none", [0, 2**32 - 1])
    def test_a_limit_that_means_none_is_absent(self, child: Child, controls: Controls, none: int) -> None:
        controls.set("gpu0.limit", none)
        assert child.open()[0].max_watts is None
        assert child.statuses()["gpu0"].power_limit_watts is None

    def test_throttling_that_is_not_available_is_absent(self, child: Child, controls: Controls) -> None:
        controls.set(f"gpu0.field.74.{GPU_SCOPE}", f"0 {ULONGLONG} {2**64 - 1}")
        controls.set(f"gpu0.field.75.{GPU_SCOPE}", f"0 {ULONGLONG} {10**16}")
        child.open()
        assert child.statuses()["gpu0"].throttle_seconds == {"thermal": 1e7}

    def test_an_unsupported_field_is_asked_again_after_an_hour(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.limit.code", 3)
        with start(library, controls) as child:
            child.open()
            first = child.statuses()["gpu0"]
            assert (first.power_limit_watts, first.throttle_seconds) == (None, {})
            controls.clear("gpu0.limit.code")
            controls.set(f"gpu0.field.74.{GPU_SCOPE}", f"0 {ULONGLONG} 2500000000")
            child.advance(HOUR - 10)
            later = child.statuses()["gpu0"]
            assert (later.power_limit_watts, later.throttle_seconds) == (None, {})
            child.advance(10)
            again = child.statuses()["gpu0"]
            assert (again.power_limit_watts, again.throttle_seconds) == (700.0, {"power": 2.5})

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

    @pytest.mark.parametrize("code", [10, 21, 27])
    def test_a_passing_failure_of_one_gpu_is_a_second_without_it(
        self, library: Path, tmp_path: Path, code: int
    ) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.energy.code", code)
            assert list(child.meters()) == ["gpu1"]
            controls.clear("gpu0.energy.code")
            child.advance(0.9)
            assert list(child.meters()) == ["gpu1"]
            child.advance(0.1)
            assert list(child.meters()) == ["gpu0", "gpu1"]

    def test_a_gpu_that_times_out_does_not_slow_the_others(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.real_clock()
            child.open()
            controls.set("gpu0.slow", 200_000)
            controls.set("gpu0.energy.code", 10)
            begun = time.monotonic()
            assert all("gpu1" in child.meters() for _ in range(10))
            assert time.monotonic() - begun < 1.0


class TestVanishing:
    def test_a_meter_that_keeps_failing_is_changed_for_another(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.millijoules", 2**64 - 1)
            for _ in range(30):
                assert list(child.meters()) == ["gpu1"]
                child.advance(1)
            child.read()
            child.advance(1)
            assert isinstance(child.meters()["gpu0"], PowerReading)
            assert child.parts() == {"gpu0": None, "gpu1": None}
            controls.clear("gpu0.millijoules")
            child.advance(HOUR)
            assert isinstance(child.meters()["gpu0"], EnergyReading)

    def test_a_handle_that_a_reset_took_along_is_made_anew(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            child.read()
            controls.set("gpu0.stale", 1)
            assert list(child.meters()) == ["gpu1"]
            child.advance(30)
            assert list(child.meters()) == ["gpu0", "gpu1"]

    def test_a_reading_no_longer_supported_is_replaced_while_the_others_go_on(
        self, library: Path, tmp_path: Path
    ) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.energy.code", 3)
            assert list(child.meters()) == ["gpu0", "gpu1"]
            assert [device.method for device in child.devices_now().values()] == ["nvml_energy_field", "nvml_energy"]
            assert child.parts() == {"gpu0": None, "gpu1": None}

    def test_it_is_read_again_within_an_hour_after_it_returned(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.energy.code", 3)
        controls.set("gpu0.fields.code", 3)
        with start(library, controls) as child:
            child.open()
            child.read()
            controls.clear("gpu0.energy.code")
            child.advance(HOUR - 1)
            assert isinstance(child.meters()["gpu0"], PowerReading)
            child.advance(1)
            assert isinstance(child.meters()["gpu0"], EnergyReading)
            gpu = child.devices_now()["gpu0"]
            assert (gpu.method, gpu.quality) == ("nvml_energy", Quality.MEASURED)

    def test_all_readings_of_a_gpu_vanish_and_return(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            for call in ("energy", "fields", "power"):
                controls.set(f"gpu0.{call}.code", 3)
            assert list(child.meters()) == ["gpu1"]
            told = child.parts()["gpu0"]
            assert told is not None
            assert (told.state, told.reason) == (SourceState.ABSENT, "no_meter")
            controls.clear("gpu0.power.code")
            child.advance(30)
            assert isinstance(child.meters()["gpu0"], PowerReading)
            assert child.parts() == {"gpu0": None, "gpu1": None}

    def test_a_gpu_is_never_read_as_its_module_later(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            without_gpu_scope(controls, 0)
            controls.set(f"gpu0.field.{AVERAGE}.{MODULE_SCOPE}", f"0 {UINT} 910000")
            assert list(child.meters()) == ["gpu1"]
            assert child.devices_now()["gpu0"].kind is DeviceKind.GPU


class TestFrozenCounter:
    def test_a_counter_that_stands_still_is_replaced_by_power(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.millijoules", 5_000)
        with start(library, controls) as child:
            child.open()
            for _ in range(3):
                assert isinstance(child.meters()["gpu0"], EnergyReading)
                child.advance(10)
            assert child.meters()["gpu0"] == PowerReading("gpu0", START_NS + 29_500_000_000, 400.0)
            assert child.devices_now()["gpu0"].method == "nvml_power_average"
            assert child.devices_now()["gpu1"].method == "nvml_energy"

    def test_it_is_trusted_again_once_it_moved(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.millijoules", 5_000)
        with start(library, controls) as child:
            child.open()
            for _ in range(2):
                child.read()
                child.advance(30)
            child.advance(HOUR)
            assert isinstance(child.meters()["gpu0"], PowerReading)
            controls.set("gpu0.millijoules", 5_001)
            child.advance(HOUR)
            assert child.meters()["gpu0"] == EnergyReading("gpu0", START_NS + 7_260_000_000_000, 5_001_000)

    def test_a_step_within_half_a_minute_is_none(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            for step in range(5):
                controls.set("gpu0.millijoules", 1_000 + step)
                child.read()
                child.advance(29)
            assert child.devices_now()["gpu0"].method == "nvml_energy"

    def test_without_another_reading_the_gpu_is_absent(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu0.millijoules", 0)
        controls.set("gpu0.power.code", 3)
        for field in (AVERAGE, INSTANT):
            controls.set(f"gpu0.field.{field}.{GPU_SCOPE}", NOT_SUPPORTED)
        with start(library, controls) as child:
            child.open()
            child.read()
            child.advance(30)
            assert list(child.meters()) == ["gpu1"]
            child.advance(30)
            assert list(child.meters()) == ["gpu1"]
            controls.set("gpu0.millijoules", 1)
            child.advance(30)
            assert list(child.meters()) == ["gpu0", "gpu1"]


class TestMig:
    def test_each_instance_is_a_partition_by_its_slices(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.mig", "1 0 3\n5 0 2\n5 1 1\n")
        devices = {device.name: device for device in child.open()}
        assert list(devices) == ["gpu0", "gpu1", "gpu0-gi1-ci0", "gpu0-gi5-ci0", "gpu0-gi5-ci1"]
        first = devices["gpu0-gi1-ci0"]
        assert (first.kind, first.parent, first.source) == (DeviceKind.PARTITION, "gpu0", "nvml")
        assert first.product == "NVIDIA Stub 0 MIG 3g"
        assert first.uuid == "MIG-00000000-stub-0001-0000-000000000000"
        assert [devices[name].fraction for name in list(devices)[2:]] == [3 / 7, 2 / 7, 1 / 7]
        assert list(child.meters()) == ["gpu0", "gpu1"]

    @pytest.mark.parametrize(
        ("controls_of_mig", "names"),
        [
            ({"mig": ""}, []),
            ({}, []),
            ({"mig": "1 0 3", "mig.code": 3}, []),
            ({"mig": "1 0 3", "attributes.code": 3}, []),
            ({"mig": "1 0 9"}, []),
            ({"mig": "0 0 4", "mig_slices": 4}, ["gpu0-gi0-ci0"]),
        ],
    )
    def test_what_cannot_be_listed_is_no_partition(
        self, child: Child, controls: Controls, controls_of_mig: dict[str, object], names: list[str]
    ) -> None:
        for key, value in controls_of_mig.items():
            controls.set(f"gpu0.{key}", value)
        assert [device.name for device in child.open()] == ["gpu0", "gpu1", *names]
        assert list(child.meters()) == ["gpu0", "gpu1"]

    def test_an_a30_has_four_slices(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.mig", "3 0 1")
        controls.set("gpu0.mig_slices", 4)
        assert child.open()[-1].fraction == 0.25

    def test_instances_made_later_appear_within_half_a_minute(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        controls.set("gpu1.mig", "")
        with start(library, controls) as child:
            child.open()
            controls.set("gpu1.mig", "7 0 1")
            child.advance(30)
            child.read()
            assert list(child.devices_now()) == ["gpu0", "gpu1", "gpu1-gi7-ci0"]
            controls.clear("gpu1.mig")
            child.advance(30)
            child.read()
            assert list(child.devices_now()) == ["gpu0", "gpu1"]


class TestAddedGpu:
    @pytest.mark.parametrize("seen_by", ["nvml", "proc"])
    def test_the_source_is_opened_again(self, library: Path, tmp_path: Path, seen_by: str) -> None:
        controls = Controls(tmp_path / "controls")
        folder = tmp_path / "proc" / "driver" / "nvidia" / "gpus"
        (folder / "0000:10:00.0").mkdir(parents=True)
        with start(library, controls) as child:
            child.open(proc_root=str(tmp_path / "proc"))
            child.advance(30)
            assert list(child.meters()) == ["gpu0", "gpu1"]
            if seen_by == "proc":
                (folder / "0000:11:00.0").mkdir()
            controls.set("count", 2 if seen_by == "proc" else 3)
            child.advance(30)
            with pytest.raises(SourceError) as caught:
                child.read()
            assert (caught.value.state, caught.value.reason) == (SourceState.DOWN, "gpu_added")
            child.close()
            assert len(child.open(proc_root=str(tmp_path / "proc"))) == (2 if seen_by == "proc" else 3)
            child.advance(30)
            child.read()

    def test_a_gpu_that_leaves_is_no_news(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path / "controls")
        gpu = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:10:00.0"
        gpu.mkdir(parents=True)
        with start(library, controls) as child:
            child.open(proc_root=str(tmp_path / "proc"))
            gpu.rmdir()
            child.advance(30)
            child.read()


class TestParts:
    """What is wrong with one GPU while the others go on, and that the source as a whole says it where none does."""

    FAULTS = (
        ("lost", {"all.code": 15}, SourceState.DOWN, "gpu_lost"),
        ("needs a reset", {"energy.code": 16}, SourceState.DOWN, "gpu_lost"),
        ("denied", {"energy.code": 4}, SourceState.DENIED, "no_permission"),
        ("time-out", {"energy.code": 10}, SourceState.DOWN, "nvml_10"),
        ("no data", {"energy.code": 21}, SourceState.DOWN, "no_reading"),
        ("sentinel", {"millijoules": 2**64 - 1}, SourceState.DOWN, "no_reading"),
        ("unknown error", {"energy.code": 999}, SourceState.DOWN, "nvml_999"),
        ("nothing supported", {"energy.code": 3, "fields.code": 3, "power.code": 3}, SourceState.ABSENT, "no_meter"),
    )

    @pytest.mark.parametrize(("fault", "settings", "state", "reason"), FAULTS)
    def test_under_way(
        self,
        library: Path,
        tmp_path: Path,
        fault: str,
        settings: dict[str, object],
        state: SourceState,
        reason: str,
    ) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            for key, value in settings.items():
                controls.set(f"gpu0.{key}", value)
            assert list(child.meters()) == ["gpu1"]
            told = child.parts()["gpu0"]
            assert told is not None, fault
            assert (told.state, told.reason) == (state, reason)
            assert "gpu0" in told.message
            for key in settings:
                controls.clear(f"gpu0.{key}")
            child.advance(30)
            assert list(child.meters()) == ["gpu0", "gpu1"]
            assert child.parts() == {"gpu0": None, "gpu1": None}

    @pytest.mark.parametrize(
        ("code", "state", "reason"),
        [
            (15, SourceState.DOWN, "gpu_lost"),
            (4, SourceState.DENIED, "no_permission"),
            (10, SourceState.DOWN, "nvml_10"),
            (3, SourceState.ABSENT, "no_meter"),
        ],
    )
    def test_at_the_start(self, library: Path, tmp_path: Path, code: int, state: SourceState, reason: str) -> None:
        controls = Controls(tmp_path)
        for call in ("energy", "fields", "power"):
            controls.set(f"gpu0.{call}.code", code)
        with start(library, controls) as child:
            assert [device.name for device in child.open()] == ["gpu1"]
            told = child.parts()["gpu0"]
            assert told is not None
            assert (told.state, told.reason) == (state, reason)
            assert told.mend or code == 10
            for call in ("energy", "fields", "power"):
                controls.clear(f"gpu0.{call}.code")
            child.advance(HOUR if state is SourceState.ABSENT else 30)
            with pytest.raises(SourceError) as caught:
                child.read()
            assert caught.value.reason == "gpu_returned"
            for gpu in (0, 1):
                for call in ("energy", "fields", "power"):
                    controls.set(f"gpu{gpu}.{call}.code", code)
            child.close()
            with pytest.raises(SourceError) as caught:
                child.open()
            assert (caught.value.state, caught.value.reason) == (state, reason)

    def test_a_gpu_that_is_not_selected_is_not_told(self, child: Child, controls: Controls) -> None:
        controls.set("gpu0.all.code", 15)
        child.open(devices=[1])
        assert child.parts() == {"gpu1": None}

    def test_a_selected_gpu_without_a_meter_is_told(self, child: Child, controls: Controls) -> None:
        for call in ("energy", "fields", "power"):
            controls.set(f"gpu1.{call}.code", 3)
        child.open(devices=[0, "GPU-00000001-stub-0000-0000-000000000000"])
        told = child.parts()
        assert told.keys() == {"gpu0", "gpu1"}
        assert told["gpu0"] is None
        assert told["gpu1"] is not None


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

    def test_a_replaced_driver_is_told_also_where_a_gpu_is_lost(self, library: Path, tmp_path: Path) -> None:
        controls = Controls(tmp_path)
        with start(library, controls) as child:
            child.open()
            controls.set("gpu0.all.code", 15)
            child.read()
            controls.set("all.code", 18)
            with pytest.raises(SourceError) as caught:
                child.read()
            assert caught.value.reason == "driver_mismatch"

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

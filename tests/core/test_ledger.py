"""Meters: wraps, resets, jumps, gaps, stale counters, containment."""

import pytest
from tests.core.scenario import SECOND, START, gpu

from jouled.core.ledger.counters import CounterTrack, GaugeTrack, Step
from jouled.core.ledger.curve import EnergyCurve
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.tree import leaves, meters
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.readings import EnergyReading, PowerReading


def counter(*rows: tuple[float, int], **device: object) -> list[tuple[Step, int]]:
    track = CounterTrack(gpu(0, **device))
    return [track.step(START + round(at * SECOND), raw) for at, raw in rows]


def test_a_counter_tells_increases():
    assert counter((0, 10), (1, 200_000_010), (2, 200_000_010)) == [
        (Step.FIRST, 0),
        (Step.MOVED, 200_000_000),
        (Step.SAME, 0),
    ]


def test_a_decrease_is_a_wrap_only_with_a_range_and_a_plausible_power():
    rows = ((0, 262_143_000_000), (1, 100_000))
    assert counter(*rows)[1] == (Step.RESET, 0)
    assert counter(*rows, wrap_microjoules=262_143_328_850)[1] == (Step.MOVED, 428_850)
    assert counter((0, 100_000_000_000), (1, 5), wrap_microjoules=262_143_328_850)[1] == (Step.RESET, 0)


@pytest.mark.parametrize("sentinel", [0xFFFFFFFF * 1000, 2**63, 4294967295000])
def test_a_sentinel_is_rejected_and_the_next_reading_goes_on(sentinel):
    steps = counter((0, 0), (1, 100_000_000), (2, sentinel), (3, 300_000_000))
    assert steps[2] == (Step.IMPLAUSIBLE, 0)
    assert steps[3] == (Step.MOVED, 200_000_000)


@pytest.mark.parametrize("raw", [2**63, 2**64 - 1, -1])
def test_a_number_that_cannot_be_saved_is_no_first_reading(raw):
    assert counter((0, raw), (1, 5), (2, 6)) == [(Step.IMPLAUSIBLE, 0), (Step.FIRST, 0), (Step.MOVED, 1)]


def test_a_jump_that_stays_is_a_new_counter():
    steps = counter((0, 0), (1, 10**13), (2, 10**13 + 10**8), (3, 10**13 + 2 * 10**8))
    assert [step for step, _ in steps] == [Step.FIRST, Step.IMPLAUSIBLE, Step.RESET, Step.MOVED]
    assert sum(delta for _, delta in steps) == 10**8


def test_two_close_reads_of_a_stepping_counter_are_plausible():
    assert counter((0, 0), (0.09, 70_000_000), (0.1, 140_000_000))[2] == (Step.MOVED, 70_000_000)


def test_a_reading_out_of_order_is_rejected():
    assert counter((1, 5), (0.5, 6))[1] == (Step.OUT_OF_ORDER, 0)


@pytest.mark.parametrize("watts", [float("nan"), -1.0, 65535.0, float("inf")])
def test_a_gauge_rejects_what_is_no_power(watts):
    track = GaugeTrack(gpu(0))
    track.step(START, 100.0)
    assert track.step(START + SECOND, watts) == (Step.IMPLAUSIBLE, 0)


def test_a_gauge_is_integrated_by_trapezoids_but_not_over_gaps():
    track = GaugeTrack(gpu(0))
    steps = [track.step(START + t * SECOND, 100.0 + t) for t in (0, 1, 2, 3, 4, 24, 25)]
    assert steps[1] == (Step.MOVED, 100_500_000)
    assert steps[5] == (Step.GAP, 0)
    assert steps[6][0] is Step.MOVED


def test_the_curve_is_linear_between_knots_and_constant_outside():
    curve = EnergyCurve()
    curve.append(10, 0)
    curve.append(20, 7)
    assert [curve.value_at(t) for t in (0, 10, 15, 20, 99)] == [0, 0, 3, 7, 7]


def test_stale_readings_are_no_knots():
    meter = Meter(gpu(0))
    for k in range(21):
        meter.energy(EnergyReading("gpu0", START + k * SECOND // 100, 1_000_000 * (k // 10)))
    assert meter.curve.value_at(START + 5 * SECOND // 100) == 500_000
    assert meter.measured_uj == 2_000_000


def test_a_counter_that_stands_still_is_believed_after_a_while():
    meter = Meter(gpu(0))
    for k in range(20):
        meter.energy(EnergyReading("gpu0", START + k * SECOND, 77))
    assert meter.curve.last_ns >= START + 15 * SECOND
    assert meter.watts(START + 20 * SECOND) in (None, 0.0)


def test_power_is_a_mean_over_a_second_and_absent_when_silent():
    meter = Meter(gpu(0))
    for k in range(31):
        meter.energy(EnergyReading("gpu0", START + k * SECOND // 10, 30_000_000 * k))
    assert meter.watts(START + 3 * SECOND) == pytest.approx(300.0)
    assert meter.watts(START + 60 * SECOND) is None
    assert meter.peak_watts(START + 60 * SECOND) is None


def test_coverage_and_gaps_are_counted_apart():
    meter = Meter(gpu(0))
    for t, watts in ((0, 100.0), (1, 100.0), (2, 100.0), (3, 100.0), (63, 100.0)):
        meter.power(PowerReading("gpu0", START + t * SECOND, watts))
    assert meter.covered_ns == 3 * SECOND
    assert meter.gap_ns == {"gap": 60 * SECOND}
    assert meter.measured_uj == 300_000_000


def device(name: str, kind: DeviceKind, parent: str = "", quality: Quality = Quality.MEASURED) -> Device:
    return Device(name=name, kind=kind, parent=parent, quality=quality)


def test_packages_beside_a_module_that_stands_for_all_are_inside_it():
    """GH200 and MI300A tell one power of the whole superchip, and hwmon or RAPL its processor once more."""
    module, grace = device("gpu0", DeviceKind.MODULE), device("grace0", DeviceKind.CPU_PACKAGE)
    assert [d.name for d in leaves([module, grace])] == ["gpu0"]
    elsewhere = device("cpu1", DeviceKind.CPU_PACKAGE, "node")
    assert [d.name for d in leaves([module, grace, elsewhere])] == ["gpu0", "cpu1"]
    assert [d.name for d in leaves([device("gpu0", DeviceKind.GPU), grace])] == ["gpu0", "grace0"]


def test_a_module_replaces_its_parts_unless_its_gpu_has_a_meter():
    module, cpu = device("m0", DeviceKind.MODULE), device("cpu0", DeviceKind.CPU_PACKAGE, "m0")
    board = device("gpu0", DeviceKind.GPU, "m0")
    assert [d.name for d in leaves([module, cpu])] == ["m0"]
    assert [d.name for d in leaves([module, cpu, board])] == ["cpu0", "gpu0"]
    assert [d.name for d in meters([module, cpu, board])] == ["m0"]


def test_a_gauge_beside_a_counter_adds_nothing_and_stands_in_once_the_counter_is_silent():
    meter = Meter(gpu(0))
    for t in range(5):
        assert not meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 100_000_000))
        assert not meter.power(PowerReading("gpu0", START + t * SECOND, 300.0))
    assert meter.measured_uj == 400_000_000
    for t in range(30, 35):
        assert not meter.power(PowerReading("gpu0", START + t * SECOND, 300.0))
    assert meter.measured_uj == 400_000_000 + 4 * 300_000_000
    for t in range(35, 38):
        assert not meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 100_000_000))
    assert meter.measured_uj == 37 * 100_000_000, "as the counter tells when it is back"
    assert meter.take_late() == (31 * 100_000_000 - 4 * 300_000_000)


def test_a_gauge_beside_a_counter_that_is_read_rarely_adds_nothing():
    """Every 20 s it is no silence, and even after one what the gauge told in between is not told twice."""
    for every, seconds in ((20, 300), (60, 600)):
        meter = Meter(gpu(0))
        for t in range(seconds + 1):
            if t % every == 0:
                meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 300_000_000))
            meter.power(PowerReading("gpu0", START + t * SECOND, 300.0))
        assert meter.measured_uj == seconds * 300_000_000, every


def test_a_counter_takes_over_from_a_gauge():
    meter = Meter(gpu(0))
    for t in range(5):
        meter.power(PowerReading("gpu0", START + t * SECOND, 300.0))
    for t in range(5, 9):
        assert not meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 100_000_000))
    assert meter.measured_uj == 4 * 300_000_000 + 3 * 100_000_000
    assert meter.gauge_seconds == 0.0


@pytest.mark.parametrize("every", [10, 20, 60, 300])
def test_a_gauge_that_is_read_rarely_is_integrated_once_its_pace_is_known(every):
    meter = Meter(Device(name="bmc", kind=DeviceKind.NODE))
    for t in range(0, 30 * every + 1, every):
        meter.power(PowerReading("bmc", START + t * SECOND, 500.0))
    assert meter.measured_uj >= 27 * every * 500 * 10**6
    before_uj = meter.measured_uj
    meter.power(PowerReading("bmc", START + 40 * every * SECOND, 500.0))
    assert meter.measured_uj == before_uj, "ten readings left out are a gap all the same"


def test_a_refused_reading_of_a_counter_does_not_bring_it_back():
    """A gauge stood in for it; what that told would be counted again by the next good reading."""
    meter = Meter(Device(name="bmc", kind=DeviceKind.NODE))
    for t in range(100):
        meter.energy(EnergyReading("bmc", START + t * SECOND, t * 500_000_000))
    for t in range(100, 300):
        meter.power(PowerReading("bmc", START + t * SECOND, 500.0))
    assert meter.energy(EnergyReading("bmc", START + 300 * SECOND, -1)) == "implausible"
    for t in range(301, 400):
        meter.energy(EnergyReading("bmc", START + t * SECOND, t * 500_000_000))
    assert meter.measured_uj == 399 * 500_000_000
    assert meter.rejected["implausible"] == 1

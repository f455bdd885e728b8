"""Which meters speak for the node, what is lost between levels, and how far all of it can be trusted."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START

from jouled.core.ledger.calibration import calibrate
from jouled.core.ledger.levels import Level, NodeBook, complete, levels
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.residual import ResidualBook, Window
from jouled.core.ledger.tree import leaves
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.parameters import DeviceChange
from jouled.model.readings import EnergyReading, PowerReading


def device(name: str, kind: DeviceKind, source: str = "", parent: str = "", **more: object) -> Device:
    return Device(name=name, kind=kind, source=source, parent=parent, **more)


BMC = device("bmc", DeviceKind.NODE, "redfish")
A, B = (device(name, DeviceKind.OUTLET, "snmp_pdu", "feed") for name in ("a", "b"))


def names(found: list[Level]) -> list[tuple[str, ...]]:
    return [level.members for level in found]


def test_levels_stand_highest_first_and_guesses_are_none():
    guessed = device("feed", DeviceKind.FEED, quality=Quality.ESTIMATED)
    assert names(levels([BMC, A, B, guessed])) == [("a", "b"), ("bmc",)]
    assert levels([device("gpu0", DeviceKind.GPU)]) == []


def test_a_node_measured_twice_alike_is_counted_once_as_preferred():
    ipmi = device("ipmi", DeviceKind.NODE, "ipmi")
    assert names(levels([BMC, ipmi], ("redfish", "ipmi"))) == [("bmc",)]
    assert names(levels([BMC, ipmi], ("ipmi", "redfish"))) == [("ipmi",)]
    assert len(levels([BMC, ipmi])[0].members) == 1


def test_members_of_one_feed_belong_together_from_whatever_source():
    plug = device("plug", DeviceKind.OUTLET, "mqtt_meter", "feed")
    assert names(levels([A, plug])) == [("a", "plug")]


def test_an_incomplete_level_does_not_speak():
    found = levels([BMC, A, B])
    assert names(complete(found, {"a", "b", "bmc"}.__contains__)) == [("a", "b"), ("bmc",)]
    assert names(complete(found, {"a", "bmc"}.__contains__)) == [("bmc",)]
    assert complete(found, {"a"}.__contains__) == []


def test_a_gpu_that_two_sources_show_is_counted_where_it_is_read_directly():
    direct = device("gpu0", DeviceKind.GPU, "nvml", uuid="GPU-1")
    page = device("dcgm-gpu0", DeviceKind.GPU, "dcgm", uuid="GPU-1", indirect=True)
    other = device("dcgm-gpu1", DeviceKind.GPU, "dcgm", uuid="GPU-2", indirect=True)
    assert leaves([page, other, direct]) == [other, direct]
    assert leaves([page, other]) == [page, other]
    same = [device("gpu1", DeviceKind.GPU, "nvml"), device("gpu2", DeviceKind.GPU, "nvml")]
    assert leaves(same) == same, "no uuid is no likeness"


# the node's energy while outlets come and go


def feed_of(meter: Meter, begin: int, end: int, watts: float, offset: float = 0.0) -> None:
    """A counter, one reading a second in [begin, end)."""
    for t in range(begin, end):
        meter.energy(EnergyReading(meter.device.name, START + t * SECOND, round((offset + watts * t) * 1e6)))


def book_of(by_name: dict[str, Meter], book: NodeBook, at: int) -> int:
    found = levels([meter.device for meter in by_name.values()])

    def is_heard(name: str) -> bool:
        return bool(by_name[name].curve) and not by_name[name].silent(START + at * SECOND)

    return book.advance(complete(found, is_heard), by_name)


def test_an_outlet_that_falls_silent_makes_the_sum_late_and_never_low():
    """A and B draw 400 W each, the BMC sees 760 W. B is silent from 100 s to 200 s, its counter goes on."""
    by_name = {name: Meter(known) for name, known in (("a", A), ("b", B), ("bmc", BMC))}
    book, booked = NodeBook(), []
    for t in range(300):
        feed_of(by_name["a"], t, t + 1, 400.0)
        feed_of(by_name["bmc"], t, t + 1, 760.0)
        if not 100 <= t < 200:
            feed_of(by_name["b"], t, t + 1, 400.0)
        booked.append(book_of(by_name, book, t))
    assert sum(booked[:100]) == 99 * 800 * 10**6
    assert sum(booked[100:115]) == 0, "nobody knows yet what b draws"
    assert booked[120] == 760 * 10**6, "the board's meter speaks"
    assert booked[250] == 800 * 10**6, "both are back"
    told_by_bmc = sum(booked) - 99 * 800 * 10**6 - 99 * 800 * 10**6
    assert told_by_bmc == pytest.approx(101 * 760 * 10**6, abs=2 * 800 * 10**6)


def test_without_another_level_the_late_energy_is_booked_when_it_comes():
    by_name = {"a": Meter(A), "b": Meter(B)}
    book, booked = NodeBook(), []
    for t in range(300):
        feed_of(by_name["a"], t, t + 1, 400.0)
        if not 100 <= t < 200:
            feed_of(by_name["b"], t, t + 1, 400.0)
        booked.append(book_of(by_name, book, t))
    assert sum(booked) == 299 * 800 * 10**6
    assert sum(booked[100:200]) == 0


@given(st.lists(st.tuples(st.sampled_from("abm"), st.integers(1, 40)), max_size=12), st.booleans())
def test_no_order_of_silences_books_a_joule_twice_or_takes_one_back(silences, with_bmc):
    """Every source tells the same 500 W of the node, so what is booked can never be above 500 W of the time."""
    known = {"a": A} | ({"m": BMC} if with_bmc else {})
    by_name = {each.name: Meter(each) for each in known.values()}
    book, booked, t = NodeBook(), 0, 0
    for who, seconds in [("", 5), *silences, ("", 60)]:
        for _ in range(seconds):
            for key, each in known.items():
                if key != who:
                    feed_of(by_name[each.name], t, t + 1, 500.0)
            grown = book_of(by_name, book, t)
            assert grown >= 0
            booked += grown
            assert booked <= 500 * t * 10**6
            t += 1
    assert booked >= 500 * (t - 20) * 10**6 - 500 * 10**6


# residual and conversion losses


def square(t: float) -> float:
    """Joules of 2 kW with 3 kW more in every other half minute."""
    periods, rest = divmod(t, 60.0)
    return 2000.0 * t + 3000.0 * (30.0 * periods + min(rest, 30.0))


def tell(meter: Meter, joules: Callable[[float], float], seconds: int, every: int = 1) -> Meter:
    for t in range(0, seconds + 1, every):
        meter.energy(EnergyReading(meter.device.name, START + t * SECOND, round(joules(t) * 1e6)))
    return meter


@pytest.mark.parametrize("every", [1, 5, 10])
def test_a_bmc_that_lags_ten_seconds_nets_to_the_truth_of_the_hour(every):
    """The twin: boards as a square wave, 300 W of fans; the BMC shows it 10 s later."""
    gpu = tell(Meter(device("gpu0", DeviceKind.GPU, max_watts=10_000.0)), square, 3600)
    bmc = tell(Meter(BMC), lambda t: 1e6 + 300.0 * t + square(max(t - 10.0, 0.0)), 3600, every)
    book, before = ResidualBook(), (0, 0)
    for _ in range(4):
        book.advance([bmc], [gpu])
        now = (book.residual_uj, book.deficit_uj)
        assert now[0] >= before[0]
        assert now[1] >= before[1]
        before = now
    truth = 300.0 * 60.0 * len(book.windows)
    assert len(book.windows) >= 59
    assert (book.residual_uj - book.deficit_uj) / 1e6 == pytest.approx(truth, rel=0.01)


def test_a_window_in_which_a_meter_was_silent_is_not_booked():
    gpu, bmc = Meter(device("gpu0", DeviceKind.GPU, max_watts=10_000.0)), Meter(BMC)
    tell(bmc, lambda t: 1300.0 * t, 900)
    for t in [*range(301), *range(400, 901)]:
        gpu.power(PowerReading("gpu0", START + t * SECOND, 1000.0))
    book = ResidualBook()
    book.advance([bmc], [gpu])
    assert book.residual_uj == 300 * 10**6 * 60 * len(book.windows)
    assert len(book.windows) == 13, "of 15 whole minutes two are not known"


def test_members_that_change_book_no_time_twice():
    gpu = tell(Meter(device("gpu0", DeviceKind.GPU, max_watts=10_000.0)), lambda t: 1000.0 * t, 600)
    bmc = tell(Meter(BMC), lambda t: 1200.0 * t, 600)
    outlet = tell(Meter(A), lambda t: 1300.0 * t, 600)
    book = ResidualBook()
    book.advance([bmc], [gpu])
    windows = len(book.windows)
    book.advance([outlet], [gpu])
    assert len(book.windows) == windows


def test_what_is_lost_between_outlets_and_board_has_a_series():
    pipeline = Pipeline(PARAMETERS)
    for known in (A, B, BMC):
        pipeline.feed(known)
    for t in range(400):
        for name, watts in (("a", 500.0), ("b", 500.0), ("bmc", 940.0)):
            pipeline.feed(EnergyReading(name, START + t * SECOND, round(watts * t * 1e6)))
        pipeline.advance(START + t * SECOND)
    counters = pipeline.snapshot(START + 400 * SECOND).counters
    lost = counters["conversion_loss_joules_total"]["outlet", "node"]
    assert lost in {60 * 60 * 10**6 * n for n in (4, 5, 6)}
    assert counters["conversion_deficit_joules_total"]["outlet", "node"] == 0
    assert counters["boundary_energy_joules_total"][("node",)] == 399 * 1000 * 10**6


# calibration


def windows_of(parts_watts: list[float], whole: Callable[[float], float]) -> list[Window]:
    return [
        Window(k * 60 * SECOND, (k + 1) * 60 * SECOND, 0, round(watts * 60e6), round(whole(watts) * 60e6))
        for k, watts in enumerate(parts_watts)
    ]


def test_a_wall_meter_calibrates_the_sum_of_the_parts():
    load = [1000.0 + 100.0 * (k % 7) for k in range(30)]
    fit = calibrate(windows_of(load, lambda watts: 250.0 + 1.06 * watts))
    assert fit.offset_watts == pytest.approx(250.0, abs=0.1)
    assert fit.slope_ratio == pytest.approx(1.06, abs=1e-4)
    assert fit.band_ratio < 1e-4
    assert fit.windows == 30


def test_the_band_covers_what_the_fit_leaves():
    load = [1000.0 + 100.0 * (k % 7) for k in range(60)]
    noise = iter([20.0, -20.0] * 30)
    fit = calibrate(windows_of(load, lambda watts: 100.0 + watts + next(noise)))
    mean = 100.0 + sum(load) / len(load)
    assert fit.band_ratio == pytest.approx(1.96 * 20.0 / mean, rel=0.05)


@pytest.mark.parametrize("load", [[1000.0] * 30, [1000.0, 2000.0] * 4, [0.0] * 30])
def test_a_steady_load_and_too_few_windows_calibrate_nothing(load):
    assert calibrate(windows_of(load, lambda watts: 100.0 + watts)) is None


# validity


def validity(meter: Meter, at: float) -> str:
    return meter.validity(START + round(at * SECOND)).reason


def test_a_counter_that_agrees_with_its_gauge_is_valid():
    meter = Meter(device("gpu0", DeviceKind.GPU, max_watts=700.0))
    for t in range(200):
        meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 300_000_000))
        meter.power(PowerReading("gpu0", START + t * SECOND, 303.0))
    assert validity(meter, 200) == "ok"
    assert meter.check.ratio == pytest.approx(300 / 303, rel=1e-3)
    told = meter.validity(START + 200 * SECOND)
    assert (told.known_ratio, told.largest_gap_seconds) == (1.0, 1.0)


@pytest.mark.parametrize("watts", [330.0, 270.0, 30.0])
def test_a_counter_that_disagrees_with_its_gauge_is_told(watts):
    meter = Meter(device("gpu0", DeviceKind.GPU, max_watts=700.0))
    for t in range(200):
        meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 300_000_000))
        meter.power(PowerReading("gpu0", START + t * SECOND, watts))
    assert validity(meter, 200) == "counter_disagrees"
    assert meter.measured_uj == 199 * 300_000_000, "the counter is the meter all the same"


def test_a_frozen_counter_beside_a_living_gauge_is_told():
    meter = Meter(device("gpu0", DeviceKind.GPU, max_watts=700.0))
    for t in range(200):
        meter.energy(EnergyReading("gpu0", START + t * SECOND, min(t, 20) * 300_000_000))
        meter.power(PowerReading("gpu0", START + t * SECOND, 300.0))
    assert validity(meter, 200) == "counter_disagrees"


def test_gaps_and_silence_are_told_by_name():
    meter = Meter(device("gpu0", DeviceKind.GPU, max_watts=700.0))
    assert meter.validity(START) is None
    for t in [*range(60), *range(64, 120)]:
        meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 300_000_000))
    assert validity(meter, 120) == "gap"
    assert validity(meter, 200) == "silent"
    for t in range(200, 600):
        meter.energy(EnergyReading("gpu0", START + t * SECOND, t * 300_000_000))
    assert validity(meter, 600) == "ok", "the last minutes are good again"


def test_a_source_that_is_read_rarely_is_judged_by_its_own_pace():
    meter = Meter(device("bmc", DeviceKind.NODE))
    for t in range(0, 600, 10):
        meter.power(PowerReading("bmc", START + t * SECOND, 300.0))
    assert validity(meter, 600) == "ok"


# what the operator knows better


def test_the_operator_names_parents_and_limits_and_leaves_devices_out():
    changes = (
        DeviceChange(name="a", parent="feed-of-this-node"),
        DeviceChange(name="b", ignore=True),
        DeviceChange(name="bmc", max_watts=1234.0),
    )
    pipeline = Pipeline(change(PARAMETERS, device_changes=changes))
    for known in (A, B, BMC):
        pipeline.feed(known)
    for t in range(3):
        for name in ("a", "b", "bmc"):
            pipeline.feed(EnergyReading(name, START + t * SECOND, t * 10**8))
    pipeline.advance(START + 3 * SECOND)
    shown = {view.device.name: view.device for view in pipeline.snapshot(START + 3 * SECOND).meters}
    assert shown.keys() == {"a", "bmc"}
    assert (shown["a"].parent, shown["bmc"].max_watts) == ("feed-of-this-node", 1234.0)


def test_the_snapshot_says_which_level_speaks_and_what_is_missing():
    pipeline = Pipeline(PARAMETERS)
    for known in (A, B, BMC):
        pipeline.feed(known)
    for t in range(60):
        for name in ("a", "bmc") if t > 20 else ("a", "b", "bmc"):
            pipeline.feed(EnergyReading(name, START + t * SECOND, t * 10**8))
        pipeline.advance(START + t * SECOND)
    gauges = pipeline.snapshot(START + 60 * SECOND).gauges
    assert gauges["node_meters_expected"] == {("outlet",): 2.0, ("node",): 1.0}
    assert gauges["node_meters_heard"] == {("outlet",): 1.0, ("node",): 1.0}
    assert gauges["node_level_speaks"] == {("outlet",): 0.0, ("node",): 1.0}
    assert gauges["device_valid"]["b", "silent"] == 0.0
    assert gauges["device_valid"]["a", "ok"] == 1.0


# what a hostile reader found


def test_a_slow_meter_takes_over_where_it_has_told_of_the_moment():
    """The BMC is asked once a minute; its reading behind the outlets' last one spans time that they have booked."""
    by_name = {"a": Meter(A), "bmc": Meter(BMC)}
    book, booked = NodeBook(), 0
    for t in range(1500):
        if not 526 <= t < 565:
            feed_of(by_name["a"], t, t + 1, 500.0)
        if t % 60 == 30:
            feed_of(by_name["bmc"], t, t + 1, 500.0)
        booked += book_of(by_name, book, t)
        assert booked <= 500 * t * 10**6, t
    assert booked >= 500 * 1490 * 10**6


def test_a_fit_is_of_the_present_meters_only():
    """The board draws 300 W beyond its GPU; outlets that were heard for the first half hour tell 400 W."""
    pipeline = Pipeline(PARAMETERS)
    for known in (A, B, BMC, device("gpu0", DeviceKind.GPU, "nvml")):
        pipeline.feed(known)
    gpu_joules = 0
    for t in range(2700):
        gpu_joules += 300 if t // 120 % 2 else 600
        told = {"a": 200 * t + gpu_joules / 2, "bmc": 300 * t + gpu_joules, "gpu0": gpu_joules}
        for name, joules in (told | ({"b": told["a"]} if t < 1350 else {})).items():
            pipeline.feed(EnergyReading(name, START + t * SECOND, round(joules * 1e6)))
        pipeline.advance(START + t * SECOND)
    gauges = pipeline.snapshot(START + 2700 * SECOND).gauges
    assert gauges["calibration_offset_watts"][()] == pytest.approx(300.0, abs=1.0)
    assert gauges["calibration_slope_ratio"][()] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("gauge_first", [False, True])
@pytest.mark.parametrize("per_second", [1, 20])
def test_counter_and_gauge_are_compared_in_any_order_and_at_any_pace(per_second, gauge_first):
    """Without a node meter nothing but the open cells holds the knots of a fast counter."""
    pipeline = Pipeline(PARAMETERS)
    pipeline.feed(device("gpu0", DeviceKind.GPU, "nvml", max_watts=700.0))
    for k in range(150 * per_second):
        t_ns = START + k * SECOND // per_second
        told = [EnergyReading("gpu0", t_ns, k * 300_000_000 // per_second), PowerReading("gpu0", t_ns, 200.0)]
        for reading in reversed(told) if gauge_first else told:
            pipeline.feed(reading)
        if k % per_second == 0:
            pipeline.advance(t_ns)
    gauges = pipeline.snapshot(START + 150 * SECOND).gauges
    assert gauges["device_energy_check_ratio"][("gpu0",)] == pytest.approx(1.5, rel=0.01)


def test_when_nobody_is_heard_no_level_speaks():
    pipeline = Pipeline(PARAMETERS)
    pipeline.feed(BMC)
    for t in range(3):
        pipeline.feed(EnergyReading("bmc", START + t * SECOND, t * 10**8))
        pipeline.advance(START + t * SECOND)
    assert pipeline.snapshot(START + 3 * SECOND).gauges["node_level_speaks"] == {("node",): 1.0}
    pipeline.advance(START + 60 * SECOND)
    assert pipeline.snapshot(START + 60 * SECOND).gauges["node_level_speaks"] == {("node",): 0.0}


def test_behind_a_slow_outlet_that_falls_silent_the_bmc_goes_on_from_its_last_word():
    """Read every five minutes it is missed after fifteen; until then the BMC's knots must be there."""
    pipeline = Pipeline(PARAMETERS)
    pipeline.feed(A)
    pipeline.feed(BMC)
    for t in range(2800):
        if t % 300 == 0 and t <= 1500:
            pipeline.feed(EnergyReading("a", START + t * SECOND, 500 * t * 10**6))
        pipeline.feed(EnergyReading("bmc", START + t * SECOND, 500 * t * 10**6))
        pipeline.advance(START + t * SECOND)
    counters = pipeline.snapshot(START + 2800 * SECOND).counters
    lost_uj = 2799 * 500 * 10**6 - counters["boundary_energy_joules_total"]["node",]
    assert 0 <= lost_uj <= 5 * 500 * 10**6, "a second at each change of levels before its pace is known"


def test_a_source_that_is_read_every_ten_minutes_is_valid_between_its_readings():
    meter = Meter(BMC)
    for t in range(0, 6001, 600):
        meter.energy(EnergyReading("bmc", START + t * SECOND, 500 * t * 10**6))
    assert [validity(meter, 6000 + later) for later in (1, 300, 599)] == ["ok"] * 3
    assert validity(meter, 6000 + 1900) == "silent"

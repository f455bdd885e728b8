"""What is around the compute devices: host CPU and memory, the rest of the node, the facility, the idle policies."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, Result, gpu, request, request_sets, run, when

from jouled.core.attribution.activity import Activity
from jouled.core.continuity import checkpoint
from jouled.core.ledger.meter import Meter
from jouled.core.ledger.residual import ResidualBook
from jouled.core.pipeline import Input, Pipeline
from jouled.core.state import thaw
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import Engine, EngineSample
from jouled.model.parameters import IdlePolicy, Parameters, Price
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.requests import RequestEvent, RequestStart

CPU = Device(name="cpu0", kind=DeviceKind.CPU_PACKAGE, source="rapl", idle_watts=50.0, max_watts=400.0)
DRAM = Device(name="dram0", kind=DeviceKind.DRAM, source="rapl", idle_watts=10.0, max_watts=100.0)
Energy = Callable[[float], float]
"""Joules used up to so many seconds after the start."""


def meter(device: str, joules: Energy, seconds: float, interval: float = 0.1) -> list[Input]:
    count = round(seconds / interval)
    return [
        EnergyReading(device, START + round(k * interval * SECOND), round(joules(k * interval) * 1e6))
        for k in range(count + 1)
    ]


def within(t: float, begin: float, end: float) -> float:
    """Seconds of [begin, end) before t."""
    return max(0.0, min(t, end) - begin)


def in_order(things: Iterable[Input]) -> list[Input]:
    return sorted(things, key=when)


def policy(which: IdlePolicy, **changes: object) -> Parameters:
    return change(PARAMETERS, idle_policy=which, **changes)


# a request from 2 s to 6 s and another from 4 s to 8 s: 4 s with one resident, 2 s with both
PAIR = (
    request("a", 2.0, prefill=0.5, decode=3.5, prompt=100, generated=100),
    request("b", 4.0, prefill=0.5, decode=3.5, prompt=100, generated=100),
)


def cpu_joules(t: float) -> float:
    """50 W of idle power, and 100 W more from 2 s to 8 s."""
    return 50.0 * t + 100.0 * within(t, 2.0, 8.0)


def with_host(node: Node, *readings: Iterable[Input], devices: tuple[Device, ...] = (CPU,)) -> list[Input]:
    inputs = node.inputs()
    described = [*devices, *inputs[: node.gpus + 1]]
    return [*described, *in_order([*inputs[node.gpus + 1 :], *(reading for told in readings for reading in told)])]


def host_uj(result: Result) -> int:
    return sum(round((receipt.joules_host or 0.0) * 1e6) for receipt in result.receipts.values())


def assert_host_adds_up(result: Result, measured: float) -> None:
    host = result.pipeline.host
    assert host.attributed_uj == host_uj(result)
    assert host.attributed_uj + host.idle_uj + host.unattributed_uj == round(measured * 1e6)
    assert host.open_uj == 0
    counted = result.snapshot.counters["attributed_energy_joules_total"]
    assert sum(value for labels, value in counted.items() if labels[2] == "host") == host.attributed_uj


@pytest.mark.parametrize(
    ("which", "each"),
    [
        (IdlePolicy.RESIDENT, 2 * 150.0 + 2 * 75.0),
        (IdlePolicy.DYNAMIC, 2 * 150.0 + 2 * 75.0),
        (IdlePolicy.SEPARATE, 2 * 100.0 + 2 * 50.0),
    ],
)
def test_the_host_is_shared_by_whoever_is_resident(which, each):
    node = Node(PAIR, seconds=20.0)
    result = run(with_host(node, meter("cpu0", cpu_joules, 20.0)), parameters=policy(which))
    assert [result.receipts[name].joules_host for name in "ab"] == pytest.approx([each, each], abs=1e-5)
    assert result.receipts["a"].method["host_idle_power"] == "configured"
    assert_host_adds_up(result, cpu_joules(20.0))
    assert result.pipeline.host.unattributed_uj <= 6
    assert result.energies == run(node.inputs(), parameters=policy(which)).energies, "compute is untouched"


def test_without_a_host_meter_its_part_is_absent():
    result = run(Node(PAIR, seconds=20.0).inputs())
    receipt = result.receipts["a"]
    assert (receipt.joules_host, receipt.joules_residual, receipt.joules_facility_surplus) == (None, None, None)
    assert {labels[2] for labels in result.snapshot.counters["attributed_energy_joules_total"]} == {"compute"}


def test_an_estimated_host_enters_nothing():
    guess = change(CPU, quality=Quality.ESTIMATED)
    told = [PowerReading("cpu0", START + k * SECOND, 150.0, Quality.ESTIMATED) for k in range(21)]
    result = run(with_host(Node(PAIR, seconds=20.0), told, devices=(guess,)))
    assert result.receipts["a"].joules_host is None
    assert result.pipeline.host.attributed_uj == result.pipeline.host.idle_uj == 0


def test_a_package_that_an_engine_computes_on_is_no_host():
    engine = Engine(name="e", type="llama_cpp", model="tiny-1B", devices=("cpu0",))
    inputs = [CPU, DRAM, engine]
    readings = [*meter("cpu0", cpu_joules, 20.0), *meter("dram0", lambda t: 20.0 * t, 20.0)]
    result = run([*inputs, *in_order([*readings, *PAIR])])
    assert result.book.devices == ("cpu0",)
    assert result.book.measured_uj == round(cpu_joules(20.0) * 1e6)
    assert [result.receipts[name].joules_host for name in "ab"] == pytest.approx([60.0, 60.0], abs=1e-5)
    assert_host_adds_up(result, 20.0 * 20.0)


def test_a_package_that_becomes_an_engines_device_is_counted_once():
    early = Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",))
    late = Engine(name="c", type="llama_cpp", model="tiny-1B", devices=("cpu0",))
    node = Node(PAIR, seconds=20.0, engine=early, samples=True)
    inputs = with_host(node, meter("cpu0", lambda t: 150.0 * t, 100.0), meter("gpu0", lambda t: 5.0 + 100.0 * t, 0.0))
    more = [request("cpu", 70.0, engine="c"), *meter("gpu0", lambda t: 1e5 + 90.0 * t, 100.0)[250:]]
    timed = in_order([*[i for i in inputs if when(i)], *more])
    untimed = [i for i in inputs if not when(i)]
    cut = next(k for k, i in enumerate(timed) if when(i) > START + 60 * SECOND)
    result = run([*untimed, *timed[:cut], late, *timed[cut:]])
    computed = sum(book.measured_uj for book in result.snapshot.groups if book.devices == ("cpu0",))
    host = result.pipeline.host
    assert computed + host.attributed_uj + host.idle_uj + host.unattributed_uj == 150 * 100 * 10**6
    assert computed > 30 * 150 * 10**6
    assert host.attributed_uj == pytest.approx(6 * 150e6, abs=10)


# several engines


def two_engines(looks: Callable[[str, int], dict]) -> Result:
    """Two engines that serve one request each, from 2 s to 8 s, on a host as above."""
    engines = [Engine(name=n, type="vllm", model="tiny-8B", devices=(d,)) for n, d in (("e", "gpu0"), ("f", "gpu1"))]
    requests = [request(n, 2.0, prefill=0.5, decode=5.5, prompt=0, engine=n) for n in "ef"]
    samples = [EngineSample(engine=n, t_ns=START + k * 2 * SECOND, **looks(n, k * 2)) for k in range(21) for n in "ef"]
    boards = [*meter("gpu0", lambda t: 200.0 * t, 40.0), *meter("gpu1", lambda t: 200.0 * t, 40.0)]
    host = meter("cpu0", cpu_joules, 40.0)
    result = run([CPU, gpu(0), gpu(1), *engines, *in_order([*boards, *host, *samples, *requests])])
    assert_host_adds_up(result, cpu_joules(40.0))
    return result


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        (lambda _engine, _t: {}, (450.0, 450.0)),
        (lambda n, t: {"requests_running": (3 if n == "e" else 1) * (2 <= t <= 8)}, (675.0, 225.0)),
        (lambda n, t: {"cpu_seconds": t * (0.5 if n == "e" else 2.0)}, (150.0 + 120.0, 150.0 + 480.0)),
    ],
    ids=["nothing told: alike", "by requests running", "dynamic by CPU seconds"],
)
def test_engines_share_the_host_by_what_they_tell(looks, expected):
    result = two_engines(looks)
    assert [result.receipts[n].joules_host for n in "ef"] == pytest.approx(list(expected), rel=1e-6)


def test_an_engine_whose_cells_stay_open_delays_no_other_ones_receipts():
    engines = [Engine(name=n, type="vllm", model="tiny-8B", devices=(d,)) for n, d in (("e", "gpu0"), ("f", "gpu1"))]
    pipeline = Pipeline(PARAMETERS)
    for item in [CPU, gpu(0), gpu(1), *engines]:
        pipeline.feed(item)
    boards = [*meter("gpu0", lambda t: 200.0 * t, 60.0), *meter("gpu1", lambda t: 200.0 * t, 60.0)]
    busy_for_ever = [EngineSample(engine="f", t_ns=START + k * SECOND, requests_running=1) for k in range(61)]
    finished = [EngineSample(engine="e", t_ns=START + k * SECOND, requests_running=int(2 <= k < 8)) for k in range(61)]
    told = request("e", 2.0, prefill=0.5, decode=5.5)
    receipts = []
    for item in in_order([*boards, *meter("cpu0", cpu_joules, 60.0), *busy_for_ever, *finished, told]):
        pipeline.feed(item)
        receipts += pipeline.advance(when(item))
    assert [receipt.id for receipt in receipts] == ["e"]
    assert receipts[0].joules_host == pytest.approx(5 * 75.0 + 50.0, abs=1e-5), (
        "one of two; in its last second 0.5 of 1.5"
    )
    assert pipeline.host.open_uj > 0, "the other engine's part waits for its rows"


@settings(deadline=None)
@given(
    requests=request_sets(most=8, seconds=25.0),
    which=st.sampled_from(IdlePolicy),
    interval=st.sampled_from([0.1, 0.7, 3.0]),
    starts=st.booleans(),
    idle=st.sampled_from([None, 50.0]),
)
def test_every_microjoule_of_the_host_is_owned_once(requests, which, interval, starts, idle):
    devices = (change(CPU, idle_watts=idle), DRAM)
    node = Node(requests, seconds=40.0, samples=True)
    begun = [RequestStart(engine="e", id=r.id, arrival_ns=r.arrival_ns) for r in requests] if starts else []
    dram = meter("dram0", lambda t: 3.0 + 17.3 * t, 40.0)
    inputs = with_host(node, meter("cpu0", cpu_joules, 39.9, interval), dram, devices=devices)
    pipeline, receipts, last = Pipeline(policy(which)), [], 0
    for item in in_order([*inputs, *begun]):
        pipeline.feed(item)
        if when(item) - last >= SECOND:
            last = when(item)
            receipts += pipeline.advance(last)
            assert_host_balanced(pipeline, receipts)
    receipts += pipeline.finish()
    assert_host_balanced(pipeline, receipts)
    assert pipeline.host.open_uj == 0


def assert_host_balanced(pipeline: Pipeline, receipts: list) -> None:
    host = pipeline.host
    views = {view.device.name: view.energy_uj for view in pipeline.snapshot(START).devices}
    assert host.attributed_uj == sum(round((receipt.joules_host or 0.0) * 1e6) for receipt in receipts)
    owned = host.attributed_uj + host.idle_uj + host.unattributed_uj
    assert owned + host.open_uj == views.get("cpu0", 0) + views.get("dram0", 0)
    assert host.open_uj >= 0


def test_a_silent_host_meter_delays_nothing_for_long_and_its_later_energy_is_nobodys():
    node = Node((*PAIR, request("c", 100.0, decode=3.0)), seconds=180.0, samples=True)
    heard = [
        r for r in meter("cpu0", lambda t: 100.0 * t, 180.0) if not START + 5 * SECOND < when(r) < START + 90 * SECOND
    ]
    result = run(with_host(node, heard))
    assert result.receipts["c"].joules_host == pytest.approx(100.0 * 3.2, rel=0.01)
    assert result.pipeline.host.unattributed_uj == pytest.approx(85 * 100e6, rel=0.02)
    assert_host_adds_up(result, 100.0 * 180.0)


def test_a_quarantined_engine_leaves_its_part_of_the_host_to_nobody(monkeypatch):
    pipeline = Pipeline(PARAMETERS)
    node = Node(PAIR, seconds=20.0)
    for item in with_host(node, meter("cpu0", cpu_joules, 20.0)):
        pipeline.feed(item)
    pipeline.advance(START + 20 * SECOND)
    monkeypatch.setattr("jouled.core.attribution.engine.EngineBook.sample", lambda *_: 1 / 0)
    pipeline.feed(EngineSample(engine="e", t_ns=START + 21 * SECOND))
    pipeline.finish()
    host = pipeline.host
    assert host.attributed_uj == host.open_uj == 0
    assert host.idle_uj + host.unattributed_uj == round(cpu_joules(20.0) * 1e6)


def test_a_gap_of_days_is_one_step_for_the_host_too():
    node = Node((*PAIR, request("late", 86400.0 * 30 + 5.0)), seconds=20.0)
    far = 86400.0 * 30
    later = [
        change(r, t_ns=r.t_ns + round(far * SECOND), microjoules=r.microjoules + 10**10)
        for told in (meter("gpu0", lambda t: 100.0 * t, 20.0), meter("cpu0", cpu_joules, 20.0))
        for r in told
    ]
    result = run(with_host(node, meter("cpu0", cpu_joules, 20.0), later))
    assert result.receipts["a"].joules_host == pytest.approx(450.0, abs=1e-5)
    assert_host_adds_up(result, cpu_joules(20.0) + 1e4)


# the rest of the node


def curve_of(name: str, kind: DeviceKind, joules: Energy, seconds: int, interval: float = 1.0) -> Meter:
    told = Meter(Device(name=name, kind=kind, max_watts=20_000.0))
    for reading in meter(name, joules, seconds, interval):
        told.energy(reading)
    return told


def board_joules(t: float) -> float:
    """1 kW, and 2 kW more during 50 s of every 130 s."""
    return 1000.0 * t + 2000.0 * sum(within(t, k * 130.0 + 30.0, k * 130.0 + 80.0) for k in range(-1, 12))


@pytest.mark.parametrize("lag", [0.0, 3.0, 10.0])
@pytest.mark.parametrize("interval", [1.0, 5.0])
def test_a_node_meter_that_lags_makes_no_deficit(lag, interval):
    parts = [curve_of("gpu0", DeviceKind.GPU, board_joules, 1200)]
    node = [curve_of("bmc", DeviceKind.NODE, lambda t: 200.0 * t + board_joules(t - lag) + 1e6, 1200, interval)]
    book = ResidualBook()
    book.advance(node, parts)
    settled = 1140.0 if lag else 1200.0
    assert book.deficit_uj == 0
    assert book.residual_uj == pytest.approx(200e6 * settled, rel=0.06)
    assert book.lag_seconds == pytest.approx(lag, abs=1)


def test_parts_above_the_node_are_a_deficit():
    book = ResidualBook()
    parts = [curve_of("gpu0", DeviceKind.GPU, lambda t: 1000.0 * t, 300)]
    node = [curve_of("bmc", DeviceKind.NODE, lambda t: 970.0 * t, 300)]
    book.advance(node, parts)
    assert (book.residual_uj, book.deficit_uj) == (0, 300 * 30 * 10**6)
    assert book.claim(10**6, START, START + 10 * SECOND) == 0


NOTHING_TOLD = Price()


def whole_node(
    price: Price = NOTHING_TOLD, *, requests: tuple[RequestEvent, ...] = PAIR, seconds: float = 200.0
) -> Result:
    """A board as the scenario has it, a package of 150 W, memory of 20 W, and a node with 30 W more than these."""
    node = Node(requests, seconds=seconds)
    bmc = Device(name="bmc", kind=DeviceKind.NODE, source="bmc", max_watts=5000.0)
    board = lambda t: node.joules_at(START + round(t * SECOND)) / 1e6  # noqa: E731 - a curve, as the others
    readings = [
        *meter("cpu0", lambda t: 150.0 * t, seconds),
        *meter("dram0", lambda t: 20.0 * t, seconds),
        *meter("bmc", lambda t: 200.0 * t + board(t), seconds, 1.0),
    ]
    return run(with_host(node, readings, devices=(CPU, DRAM, bmc)), parameters=change(PARAMETERS, price=price))


def test_the_residual_goes_with_the_joules_of_boards_and_host():
    result = whole_node()
    counters = result.snapshot.counters
    settled = 180
    assert counters["residual_energy_joules_total"][()] == pytest.approx(settled * 30 * 10**6, abs=10)
    assert result.snapshot.boundaries_uj["node"] == result.book.measured_uj + 200 * 200 * 10**6
    windows = [(w.residual_uj, w.parts_uj) for w in result.pipeline._live.residual._windows]
    ratio = windows[0][0] / windows[0][1]
    for name in "ab":
        receipt = result.receipts[name]
        assert receipt.joules_residual == pytest.approx((receipt.joules + receipt.joules_host) * ratio, abs=2e-6)
    taken = sum(v for k, v in counters["attributed_energy_joules_total"].items() if k[2] == "residual")
    assert taken == sum(round(receipt.joules_residual * 1e6) for receipt in result.receipts.values())
    assert taken < counters["residual_energy_joules_total"][()]


def test_a_request_takes_no_more_residual_than_there_is():
    book = ResidualBook()
    book.advance(
        [curve_of("bmc", DeviceKind.NODE, lambda t: 1100.0 * t, 90)],
        [curve_of("gpu0", DeviceKind.GPU, lambda t: 1000.0 * t, 90)],
    )
    assert book.claim(10 * 10**6, START, START + SECOND) == 10**6
    assert book.claim(10**12, START, START + SECOND) == 60 * 100 * 10**6 - 10**6
    assert book.claim(10**12, START, START + SECOND) == 0
    assert book.claim(10**6, START + 1000 * SECOND, START + 1001 * SECOND) is None, "the latest window is too old"


def test_the_facility_is_in_proportion_to_the_whole_node_and_said_to_be_configured():
    price = Price(pue=1.3, price_per_kwh=0.5, grid_grams_per_kwh=400.0)
    result = whole_node(price)
    counted = result.snapshot.counters["attributed_energy_joules_total"]
    for receipt in result.receipts.values():
        inside = receipt.joules + receipt.joules_host + receipt.joules_residual
        assert receipt.joules_facility_surplus == pytest.approx(0.3 * inside, abs=1e-6)
        assert receipt.cost == pytest.approx(1.3 * inside / 3.6e6 * 0.5)
        assert receipt.co2e_grams == pytest.approx(1.3 * inside / 3.6e6 * 400.0)
        assert receipt.method["pue"] == "configured"
    surplus = sum(value for labels, value in counted.items() if labels[2] == "facility_surplus")
    assert surplus == sum(round(r.joules_facility_surplus * 1e6) for r in result.receipts.values())
    beyond = sum(value for labels, value in counted.items() if labels[2] in ("host", "residual"))
    booked = (result.book.measured_uj + beyond) / 1e6
    assert sum(result.snapshot.counters["energy_cost_total"].values()) == pytest.approx(booked * 1.3 / 3.6e6 * 0.5)


# the idle policies, on the boards


@pytest.mark.parametrize(
    ("which", "resident", "idle"),
    [
        (IdlePolicy.RESIDENT, 150.0 * 6, 100.0 * 14),
        (IdlePolicy.DYNAMIC, 0.0, 100.0 * 14),
        (IdlePolicy.SEPARATE, 50.0 * 6, 100.0 * 20),
    ],
)
@pytest.mark.parametrize("pue", [None, 1.4])
def test_idle_policies_by_hand(which, resident, idle, pue):
    """A board with 100 W of idle power, an uplift of 50 W, and 250 W in the 6 s in which somebody is there."""
    price = Price(pue=pue, price_per_kwh=0.36)
    board = meter("gpu0", lambda t: 100.0 * t + 150.0 * within(t, 2.0, 8.0), 20.0)
    engine = Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",))
    result = run([gpu(0), engine, *in_order([*board, *PAIR])], parameters=policy(which, price=price))
    book, receipts = result.book, result.receipts
    assert book.measured_uj == 2900 * 10**6
    assert book.idle_uj == pytest.approx(idle * 1e6, abs=100)
    assert book.resident_uj == pytest.approx(resident * 1e6, abs=100)
    assert book.prefill_uj + book.decode_uj == pytest.approx((2900.0 - idle - resident) * 1e6, abs=100)
    assert [receipts[n].joules_resident for n in "ab"] == pytest.approx([resident / 2] * 2, abs=1e-4)
    assert sum(round(r.joules * 1e6) for r in receipts.values()) == book.prefill_uj + book.decode_uj + book.resident_uj
    factor = pue or 1.0
    cost = sum(result.snapshot.counters["energy_cost_total"].values())
    assert cost == pytest.approx(2900.0 * factor / 3.6e6 * 0.36)
    surplus = [receipts[n].joules_facility_surplus for n in "ab"]
    assert surplus == (
        [None, None] if pue is None else pytest.approx([0.4 * receipts[n].joules for n in "ab"], abs=1e-6)
    )


@pytest.mark.parametrize(
    ("told", "cores"),
    [((10.0, 14.0), 2.0), ((10.0, 9.99), 0.0), ((500.0, 3.0), 1.5), ((None, 3.0), None)],
    ids=["grows", "rounding", "a new process", "not told"],
)
def test_cpu_seconds_of_an_engine(told, cores):
    activity = Activity()
    for k, seconds in enumerate(told):
        activity.take(EngineSample(engine="e", t_ns=START + 2 * k * SECOND, cpu_seconds=seconds))
    assert activity.cores(START + SECOND) == cores
    assert activity.cores(START + 60 * SECOND) == cores


def test_the_books_of_the_host_outlive_a_restart():
    node = Node((*PAIR, request("long", 15.0, decode=60.0)), seconds=90.0, samples=True)
    inputs = with_host(node, meter("cpu0", lambda t: 120.0 * t, 90.0))

    def shares(cut: float | None) -> list[tuple[str, float | None]]:
        pipeline, receipts = Pipeline(PARAMETERS), []
        for item in inputs:
            pipeline.feed(item)
            receipts += pipeline.advance(when(item)) if when(item) else []
            if cut is not None and when(item) >= START + cut * SECOND:
                cut = None
                pipeline = thaw(b"".join(checkpoint(pipeline, "1").chunks()), "1")
        receipts += pipeline.finish()
        return [(receipt.id, receipt.joules_host) for receipt in receipts]

    whole = shares(None)
    assert dict(whole)["long"] == pytest.approx(120.0 * 60.2, abs=1e-5)
    assert shares(40.0) == whole

"""Faults that a review found, each with the case that showed it."""

import random

import msgspec
import pytest
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, assert_balanced, gpu, request, run, when

from jouled.core.attribution.engine import EngineBook
from jouled.core.books import Books
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import ClockStep, EnergyReading, PowerReading
from jouled.model.requests import RequestEvent, RequestStart

ENGINE = Engine(name="e", type="vllm", model="x-8B", devices=("gpu0",))


def begin(*items) -> Pipeline:
    pipeline = Pipeline(PARAMETERS)
    for item in items:
        pipeline.feed(item)
    return pipeline


def reading(seconds: float, watts: int = 300) -> EnergyReading:
    return EnergyReading("gpu0", START + round(seconds * SECOND), round(seconds * watts * 1e6))


def test_receipts_that_become_final_as_groups_change_are_handed_out():
    node = Node(tuple(request(f"r{i}", 1.0 + i * 2, decode=1.0) for i in range(10)), seconds=60.0)
    pipeline, finals = begin(*node.devices(), node.engine), []
    for item in node.inputs()[2:]:
        pipeline.feed(item)
        if when(item) == START + 40 * SECOND:
            pipeline.feed(Engine(name="f", type="vllm", model="x", devices=("gpu0",)))
        finals += pipeline.advance(when(item))
    finals += pipeline.finish()
    assert {receipt.id for receipt in finals} == {r.id for r in node.requests}
    assert len(finals) == 10


def test_a_device_that_was_never_read_stops_nothing():
    pipeline = begin(gpu(0), gpu(1))
    for k in range(20):
        pipeline.feed(reading(k))
        pipeline.advance(START + k * SECOND)
    pipeline.feed(ENGINE)
    pipeline.advance(START + 21 * SECOND)
    assert pipeline.snapshot(START + 21 * SECOND).degraded == ()


def test_what_a_meter_told_before_it_had_a_group_is_nobodys():
    pipeline = begin(Device(name="cpu0", kind=DeviceKind.CPU_PACKAGE, source="rapl", idle_watts=20.0, max_watts=300.0))
    finals = []
    for k in range(20_000):
        pipeline.feed(EnergyReading("cpu0", START + k * SECOND // 10, k * 10_000_000))
        if k == 19_000:
            pipeline.feed(Engine(name="e", model="x-8B", devices=("cpu0",)))
        if k == 19_500:
            pipeline.feed(request("a", 1870.0, decode=60.0, prefill=2.0))
        if k % 10 == 0:
            finals += pipeline.advance(START + k * SECOND // 10)
    finals += pipeline.finish()
    assert finals[0].joules < 62 * 100
    assert pipeline.snapshot(START).boundaries_uj["compute"] < 110 * 100 * 10**6


def test_events_from_before_the_first_reading_become_final():
    early, over, later = (
        request("a", 1.0, decode=1.0),
        request("b", 1.5, decode=30.0),
        request("late", 70.0, decode=1.0),
    )
    pipeline, finals = begin(gpu(0), ENGINE, early, over), []
    for k in range(5, 400):
        if k == 72:
            pipeline.feed(later)
        pipeline.feed(reading(k))
        finals += pipeline.advance(START + k * SECOND)
    assert {receipt.id for receipt in finals} == {"a", "b", "late"}
    assert next(r for r in finals if r.id == "b").joules > 25 * 100


def test_requests_to_an_engine_without_a_living_meter_are_told_without_joules():
    pipeline = begin(gpu(0), ENGINE, request("a", 1.0))
    assert [r.id for k in range(0, 400, 10) for r in pipeline.advance(START + k * SECOND)] == ["a"]
    assert [r.validity for r in begin(gpu(0), ENGINE, request("a", 1.0)).finish()] == ["beyond_end"]


def unreported_share(node: Node, told=None) -> float:
    swap = told or {}
    result = run([swap.get(item.id, item) if isinstance(item, RequestEvent) else item for item in node.inputs()])
    return result.book.unreported_uj / result.book.measured_uj


def test_a_page_without_a_cached_counter_makes_no_lost_work():
    requests = tuple(
        request(f"r{i:03d}", 1 + i * 0.5, decode=4.0, generated=200, prompt=2000, cached_prompt_tokens=1500)
        for i in range(200)
    )
    assert unreported_share(Node(requests, seconds=150.0, samples=True)) == 0.0


def test_answers_in_one_piece_make_little_lost_work():
    requests = tuple(request(f"r{i:03d}", 1 + i * 0.5, decode=4.0, generated=200) for i in range(200))
    told = {r.id: change(r, first_token_ns=r.last_token_ns) for r in requests}
    assert unreported_share(Node(requests, seconds=150.0, samples=True), told) < 0.03


def test_requests_that_do_not_say_when_they_left_the_queue_are_held_against_the_queue_too():
    """One runs unknown while a known one still queues: the gauge alone would look complete."""
    unknown = request("unknown", 2.0, decode=100.0)
    queued = change(request("queued", 10.0, queue=80.0, decode=2.0), scheduled_ns=None)
    pipeline = begin(gpu(0), ENGINE)
    for k in range(80):
        pipeline.feed(reading(k))
        if k % 5 == 0:
            waiting = int(k >= 10)
            sample = EngineSample(engine="e", t_ns=START + k * SECOND, requests_running=1, requests_waiting=waiting)
            pipeline.feed(sample)
        if k == 60:
            pipeline.feed(change(queued, last_token_ns=queued.last_token_ns))
        pipeline.advance(START + k * SECOND)
    [engine] = pipeline.snapshot(START).engines
    assert engine.watermark_ns < START + 10 * SECOND, unknown.id


def test_memory_follows_the_requests_in_flight():
    pipeline = begin(gpu(0), ENGINE)
    for k in range(1500):
        pipeline.feed(reading(k))
        if k > 600:
            pipeline.feed(request(f"late{k}", k - 500.0, decode=1.5))
            pipeline.feed(request("health", k - 2.0, decode=1.5))
        pipeline.advance(START + k * SECOND)
    book = pipeline._groups.books["e"]
    assert len(book.census._recent) < 200
    assert len(book._starts._first_tokens) < 800
    for k in range(1500, 5700, 5):
        pipeline.feed(reading(k))
        pipeline.feed(request("health", k - 2.0, decode=1.5))
        pipeline.advance(START + k * SECOND)
    remembered = pipeline._admission._by_id
    assert {key for part in remembered._generations for key in part} == {hash(("e", "health"))}, "half an hour later"
    assert len([*remembered.get(hash(("e", "health")))]) <= 361 + 60


def test_a_request_that_was_final_before_a_restart_is_a_duplicate_after_it():
    node = Node((request("a", 1.0),), seconds=150.0)
    first = run(node.inputs())
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(first.pipeline.books()), type=Books)
    again = Pipeline(PARAMETERS, stored)
    again.remember(first.receipts.values())
    for item in (gpu(0), node.engine, reading(160)):
        again.feed(item)
    assert again.feed(node.requests[0]) == "duplicate"


def test_a_page_read_out_of_order_is_no_restart_of_the_engine():
    pipeline = begin(gpu(0), ENGINE)
    samples = [(0, 1000), (10, 3000), (5, 2000), (15, 3000)]
    reasons = [
        pipeline.feed(EngineSample(engine="e", t_ns=START + t * SECOND, generation_tokens=tokens))
        for t, tokens in samples
    ]
    assert reasons == ["", "", "out_of_order", ""]
    assert pipeline.snapshot(START).counters["engine_tokens_total"] == {("e", "x-8B", "generation"): 2000}


def test_cached_tokens_counted_before_their_prompt_are_not_computed():
    pipeline = begin(gpu(0), ENGINE)
    for t, prompt, cached in ((0, 0, 0), (5, 0, 300), (10, 400, 300)):
        pipeline.feed(
            EngineSample(engine="e", t_ns=START + t * SECOND, prompt_tokens=prompt, cached_prompt_tokens=cached)
        )
    counters = pipeline.snapshot(START).counters["engine_tokens_total"]
    assert counters == {("e", "x-8B", "prompt_computed"): 100, ("e", "x-8B", "prompt_cached"): 300}


def test_what_was_open_at_a_restart_is_paid_for_too():
    parameters = msgspec.structs.replace(
        PARAMETERS, price=msgspec.structs.replace(PARAMETERS.price, price_per_kwh=0.36)
    )
    pipeline = Pipeline(parameters)
    for item in (gpu(0), ENGINE, *(reading(k) for k in range(100))):
        pipeline.feed(item)
    pipeline.advance(START + 99 * SECOND)
    again = Pipeline(parameters, msgspec.msgpack.decode(msgspec.msgpack.encode(pipeline.books()), type=Books))
    booked = again.snapshot(START).total.measured_uj / 1e6
    assert sum(again.snapshot(START).counters["energy_cost_total"].values()) == pytest.approx(booked / 3.6e6 * 0.36)


def test_a_gap_with_thousands_of_requests_closes_fast():
    """Counted in sweeps, not seconds: one for each touched cell, whatever the gap's length."""
    pipeline = begin(gpu(0), ENGINE, reading(0), reading(1))
    for i in range(3000):
        pipeline.feed(request(f"r{i}", 2.0 + i * 0.4, decode=0.5))
    pipeline.feed(EnergyReading("gpu0", START + 1500 * SECOND, 10**9))
    pipeline.feed(EnergyReading("gpu0", START + 1501 * SECOND, 10**9 + 10**6))
    finals = [*pipeline.advance(START + 1501 * SECOND), *pipeline.finish()]
    assert len(finals) == 3000


def test_one_request_with_an_absurd_arrival_does_not_stretch_the_horizon():
    pipeline = begin(gpu(0), ENGINE)
    for k in range(400):
        pipeline.feed(reading(k))
        if k % 10 == 5:
            pipeline.feed(request(f"r{k}", k - 3.0, decode=1.0))
        if k == 50:
            pipeline.feed(change(request("old", -80_000.0), last_token_ns=START + 50 * SECOND))
        pipeline.advance(START + k * SECOND)
    [engine] = pipeline.snapshot(START).engines
    assert engine.watermark_ns > START + 200 * SECOND


@pytest.mark.parametrize(
    ("name", "arrival_ns", "reason"),
    [
        ("", START, "no_id"),
        ("a", -1, "before_the_epoch"),
        ("a", START + 90 * SECOND, "in_the_future"),
        ("a", START + 50 * SECOND, ""),
    ],
)
def test_an_unsound_start_is_refused(name, arrival_ns, reason):
    """One from the far future would never be abandoned."""
    pipeline = begin(gpu(0), ENGINE, reading(0))
    pipeline.advance(START)
    assert pipeline.feed(RequestStart(engine="e", id=name, arrival_ns=arrival_ns)) == reason
    assert len(pipeline._groups.books["e"].in_flight) == (not reason)
    refused = pipeline.snapshot(START).counters.get("rejected_events_total", {})
    assert refused == ({(reason,): 1} if reason else {})


def test_a_clock_that_steps_for_ever_is_remembered_for_a_day():
    pipeline = begin(gpu(0), ENGINE)
    for hour in range(200):
        t_ns = START + hour * 3600 * SECOND
        pipeline.feed(ClockStep(t_ns, hour))
        pipeline.advance(t_ns)
    assert len(pipeline.clock_steps) <= 26
    assert pipeline._wall.at(START + 175 * 3600 * SECOND) == 175, "a day ago"


def test_what_ended_before_the_clock_was_first_set_keeps_its_time():
    node = Node((request("a", 3.0, decode=4.0),), seconds=60.0)
    pipeline = Pipeline(PARAMETERS)
    for item in node.inputs():
        pipeline.feed(item)
        pipeline.advance(when(item) or START)
    pipeline.feed(ClockStep(START + 60 * SECOND, 3600 * SECOND))
    [receipt] = pipeline.finish()
    [event] = node.requests
    assert (receipt.arrival_ns, receipt.last_token_ns) == (event.arrival_ns, event.last_token_ns)


def test_one_id_for_all_requests_stays_cheap():
    pipeline = begin(gpu(0), ENGINE, reading(0))
    events = [request("same", 2.0 * k, decode=1.0) for k in range(1000)]
    assert {pipeline.feed(event) for event in events} == {""}
    assert pipeline.feed(events[-300]) == "duplicate"
    assert len([*pipeline._admission._by_id.get(hash(("e", "same")))]) == 400


def swept(monkeypatch) -> list[int]:
    """How many cells are swept from now on, one by one."""
    cells, plain = [], EngineBook._sweep_cell
    monkeypatch.setattr(EngineBook, "_sweep_cell", lambda book, cell: (cells.append(cell), plain(book, cell))[1])
    return cells


@pytest.mark.parametrize("back", [("gpu0",), ("gpu1",), ("gpu0", "gpu1"), ()])
def test_a_gap_of_days_costs_the_same_whoever_is_back_first(monkeypatch, back):
    """A suspended host: some devices are read before time passes, the others after it, or never again."""
    engine = change(ENGINE, devices=("gpu0", "gpu1"))
    told = [
        gpu(0),
        gpu(1),
        engine,
        *(EnergyReading(f"gpu{i}", START + k * SECOND, k * 10**8) for k in range(30) for i in (0, 1)),
    ]
    pipeline = begin(*told)
    pipeline.advance(START + 29 * SECOND)
    cells, woken = swept(monkeypatch), START + 30 * 86_400 * SECOND
    for name in back:
        pipeline.feed(EnergyReading(name, woken, 30 * 10**8))
    pipeline.advance(woken)
    for name in {"gpu0", "gpu1"} - set(back):
        pipeline.feed(EnergyReading(name, woken + SECOND, 30 * 10**8))
    pipeline.advance(woken + 40 * SECOND)
    pipeline.finish()
    assert len(cells) < 20_000, "at most the horizon is closed cell by cell"
    [book] = pipeline.snapshot(woken).groups
    assert book.open_uj == 0
    assert book.measured_uj == 2 * 30 * 10**8
    assert book.idle_uj == 2 * 29 * 10**8


def test_hours_of_silence_are_passed_over(monkeypatch):
    """A replay that jumps from hour to hour, a request at each, no meter."""
    pipeline, cells = begin(gpu(0), ENGINE, *(reading(k) for k in range(30))), swept(monkeypatch)
    finals = []
    for hour in range(1, 100):
        now_ns = START + (hour * 3600 + 3) * SECOND
        assert not pipeline.feed(request(f"r{hour}", hour * 3600.0, decode=1.0, seen_ns=now_ns))
        finals += pipeline.advance(now_ns)
    finals += pipeline.finish()
    assert len({receipt.id for receipt in finals}) == 99
    assert len(cells) < 99 * 3600 * 10 / 10


def test_energy_told_late_before_the_first_advance_is_nobodys():
    """A device that is silent for a day before its books begin: what it tells then belongs to no cell of theirs."""
    pipeline = begin(gpu(0), ENGINE, *(reading(k) for k in range(5)), reading(86_400, watts=1))
    pipeline.advance(START + 10 * SECOND)
    pipeline.finish()
    assert_balanced(pipeline.snapshot(START))


def test_who_was_there_while_a_meter_told_nothing_is_flagged_and_its_band_says_what_may_be_missing():
    node = Node(tuple(request(f"r{i:02}", 2.0 + i * 2, decode=1.5) for i in range(38)), seconds=90.0)
    told = [i for i in node.inputs() if not (isinstance(i, EnergyReading) and 30 < (i.t_ns - START) / SECOND < 60)]
    whole, found = run(node.inputs()).receipts, run(told).receipts
    gone = [name for name in whole if found[name].validity == "meter_gap"]
    assert gone == [f"r{i:02}" for i in range(14, 29)]
    assert all(found[name].joules < 0.9 * whole[name].joules for name in gone)
    for name, receipt in found.items():
        assert abs(receipt.joules - whole[name].joules) < 2 * receipt.sigma_joules, name


def test_requests_known_from_their_start_keep_their_joules_past_the_horizon_before_any_has_ended():
    """Their pace is the page's: means of ended requests would know nothing of it."""
    longest = tuple(request(f"r{i}", 5.0 + i, decode=400.0 + i, generated=32_000, prompt=500) for i in range(3))
    short = tuple(request(f"s{i}", 20.0 + 20 * i, decode=10.0, generated=800) for i in range(19))
    node = Node((*longest, *short), seconds=480.0, samples=True)
    begun = [RequestStart(engine="e", id=r.id, arrival_ns=r.arrival_ns) for r in longest]
    inputs = sorted(
        [*node.readings(), *node.engine_samples(), *node.requests, *begun],
        key=lambda item: item.arrival_ns if isinstance(item, RequestStart) else when(item),
    )
    result = run([*node.devices(), node.engine, *inputs])
    waiting = change(PARAMETERS, horizon_min_seconds=600.0, horizon_max_seconds=600.0)
    waited = run([*node.devices(), node.engine, *inputs], parameters=waiting)
    for r in node.requests:
        assert result.receipts[r.id].joules == pytest.approx(waited.receipts[r.id].joules, rel=0.05), r.id
    assert result.snapshot.total.unreported_uj < 0.02 * result.snapshot.total.measured_uj


def test_a_prompt_computed_later_than_its_turn_is_not_taken_for_late_itself():
    """Its service start is set once more when its cell comes, by what is known of the pace by then."""
    dice, first, told = random.Random(0), 1.0, []
    for i in range(24):
        prompt = dice.choice((512, 1024, 4096))
        first += prompt / dice.choice((4000, 8000, 16000))
        arrival = 0.9 + 0.01 * i
        told.append(request(f"r{i:02}", arrival, prefill=first - arrival, decode=1.0, prompt=prompt))
    receipts = run(Node(tuple(told), seconds=30.0).inputs()).receipts
    assert {receipt.validity for receipt in receipts.values()} == {"ok"}


def test_no_expectation_of_any_power_divides_by_zero():
    """A device without idle power, and a broken gauge that tells 0 W."""
    device = change(gpu(0), idle_watts=0.0, uplift_watts=70.0)
    told = (request("a", 2.0, decode=3.0), request("b", 9.0, decode=0.5))
    node = Node(told, seconds=20.0)
    broken = [PowerReading("gpu0", START + round(k * 0.1 * SECOND), 0.0) for k in range(200)]
    for readings in (broken, node.readings()):
        result = run([device, node.engine, *sorted([*readings, *told], key=when)])
        assert not result.snapshot.degraded
        assert result.receipts.keys() == {"a", "b"}


def test_a_silence_of_several_devices_is_one_silence():
    told, sigmas = (request("long", 10.0, decode=70.0, generated=3000),), []
    for gpus in (1, 4):
        node = Node(told, seconds=90.0, base_watts=100.0 * gpus, watts_per_request=80.0 * gpus).with_gpus(gpus)
        items = [i for i in node.inputs() if not (isinstance(i, EnergyReading) and 30 < (i.t_ns - START) / SECOND < 50)]
        (receipt,) = run(items).receipts.values()
        assert receipt.validity == "meter_gap"
        sigmas.append(receipt.sigma_joules / gpus)
    assert sigmas[1] == pytest.approx(sigmas[0], rel=0.01)


def retried(second_id: str, first_seen: float) -> tuple[float, float]:
    """Joules of a request that fails after half a minute, and of its retry, which starts while that is not told yet."""
    first = change(request("a", 10.0, decode=29.0, generated=600), seen_ns=START + round(first_seen * SECOND))
    retry = request(second_id, 40.5, decode=300.0, generated=6000)
    node = Node((first, retry), seconds=400.0, samples=True)
    begun = [
        RequestStart(engine="e", id=told.id, arrival_ns=told.arrival_ns, seen_ns=told.arrival_ns + SECOND)
        for told in (first, retry)
    ]
    timed = sorted(
        [*node.readings(), *node.engine_samples(), first, retry, *begun],
        key=lambda item: item.seen_ns if isinstance(item, RequestStart) else when(item),
    )
    receipts, pipeline = [], Pipeline(PARAMETERS_OF_RETRY)
    for item in [*node.devices(), node.engine, *timed]:
        assert not pipeline.feed(item)
        if when(item):
            receipts += pipeline.advance(when(item))
    receipts += pipeline.finish()
    by_arrival = {receipt.arrival_ns: receipt.joules for receipt in receipts}
    return by_arrival[first.arrival_ns], by_arrival[retry.arrival_ns]


PARAMETERS_OF_RETRY = change(PARAMETERS, horizon_min_seconds=60.0, horizon_max_seconds=60.0)


def test_a_retry_under_the_same_id_is_a_request_of_its_own():
    """Whenever its first try is told of, before or after the retry's start."""
    distinct = retried("b", 41.0)
    for first_seen in (41.0, 43.0):
        assert retried("a", first_seen) == pytest.approx(distinct, rel=1e-6)


def test_a_lag_is_no_gap_of_the_meter():
    """Also where it ends: at the recording's last reading there is nothing later to correct by."""
    dice, told, at = random.Random(5), [], 2.0
    while at < 180.0:
        told.append(request(f"r{len(told):03}", at, decode=dice.uniform(0.5, 3.0)))
        at += dice.uniform(0.5, 4.0)
    node = Node(tuple(told), seconds=190.0, base_watts=100.0, watts_per_request=300.0)
    behind = [
        change(item, t_ns=item.t_ns + 3 * SECOND // 10) if isinstance(item, EnergyReading) else item
        for item in node.inputs()
    ]
    result = run(sorted(behind, key=when))
    assert {receipt.validity for receipt in result.receipts.values()} == {"ok"}
    group = next(iter(result.pipeline._groups.living.values()))
    assert group._lag.corrected_ns == pytest.approx(300_000_000, abs=60_000_000)


def test_steps_of_who_came_just_before_a_look_are_nobody_elses():
    """In the same cell: the idle seconds before it had been called unreported work."""
    told = tuple(request(f"r{i}", 10.02 + 20 * i, prefill=0.01, decode=3.0) for i in range(4))
    node = Node(told, seconds=90.0)
    looks = [node.sample_at(START + k * 5 * SECOND + SECOND // 16) for k in range(18)]
    steps = [sum(max(0, min(x.t_ns, r.last_token_ns) - r.arrival_ns) * 100 // SECOND for r in told) for x in looks]
    counted = [change(sample, steps=count) for sample, count in zip(looks, steps, strict=True)]
    book = run([*node.devices(), node.engine, *sorted([*node.readings(), *counted, *told], key=when)]).book
    assert book.unreported_uj == 0
    assert book.idle_uj == pytest.approx(100e6 * (90.0 - 4 * 3.01), rel=0.01)

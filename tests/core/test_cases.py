"""Cases that a node meets: long requests, lost events, silent meters, shared devices, restarts."""

import msgspec
import pytest
from msgspec.structs import replace as change
from tests.core.scenario import (
    PARAMETERS,
    SECOND,
    START,
    Node,
    Result,
    assert_balanced,
    gpu,
    owners_uj,
    request,
    run,
    when,
)

from jouled.core.attribution.engine import EngineBook
from jouled.core.books import Books
from jouled.core.pipeline import Pipeline
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import Engine
from jouled.model.parameters import IdlePolicy, Parameters, Price
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.requests import Outcome, RequestStart


def staggered(count: int, every: float, *, decode: float) -> tuple:
    return tuple(
        request(f"r{i:03d}", 1.0 + i * every, decode=decode, generated=round(decode * 25)) for i in range(count)
    )


def feed_until(node: Node, seconds: float) -> tuple[Pipeline, dict]:
    pipeline, finals = Pipeline(PARAMETERS), {}
    for item in node.inputs():
        if when(item) <= START + seconds * SECOND:
            pipeline.feed(item)
            finals.update({receipt.id: receipt for receipt in pipeline.advance(when(item))} if when(item) else {})
    return pipeline, finals


def test_a_cell_waits_for_the_requests_that_the_gauge_counts():
    long = request("long", 2.0, decode=70.0, generated=1000)
    node = Node((long, *staggered(10, 2.0, decode=1.0)), seconds=150.0, samples=True)
    _, early = feed_until(node, 65.0)
    assert early == {}, "the gauge counts one more than is known: nothing may close"
    _, later = feed_until(node, 120.0)
    assert set(later) == {r.id for r in node.requests}
    assert later["long"].validity == "ok"


def test_without_a_gauge_cells_close_at_the_horizon():
    node = Node((request("a", 2.0),), seconds=200.0)
    _, before = feed_until(node, 121.0)
    _, after = feed_until(node, 160.0)
    assert not before
    assert set(after) == {"a"}


def test_an_engine_seen_doing_nothing_closes_at_once():
    node = Node((), seconds=60.0, samples=True)
    pipeline, _ = feed_until(node, 59.0)
    [engine] = pipeline.snapshot(START + 59 * SECOND).engines
    assert START + 59 * SECOND - engine.watermark_ns < 10 * SECOND


def total_of(result: Result) -> float:
    return sum(receipt.joules for receipt in result.receipts.values())


@pytest.mark.parametrize(("learns", "most"), [(False, 1e-9), (True, 0.01)])
def test_long_requests_told_at_their_end_get_what_they_would_have_got_with_a_start(learns, most):
    """Requests of 1 s to 20 min; the same once the horizon has seen such, but for what was learned before that.

    What is learned stays within one point (attribution.md section 4).
    """
    spans = [1.0, 5.0, 20.0, 60.0, 180.0, 400.0, 700.0, 1200.0]
    requests = tuple(
        request(f"r{i:03d}", 3.0 + i * 23.0, decode=spans[i % len(spans)], generated=round(spans[i % len(spans)] * 20))
        for i in range(200)
    )
    node = Node(requests, seconds=6000.0, samples=True, interval=1.0)
    parameters = change(PARAMETERS, learn_ratios=learns)
    plain = run(node.inputs(), every=30.0, parameters=parameters)
    starts = [RequestStart(engine="e", id=r.id, arrival_ns=r.arrival_ns, seen_ns=r.arrival_ns) for r in requests]
    timed = sorted([*node.inputs()[2:], *starts], key=lambda item: getattr(item, "seen_ns", 0) or when(item))
    told = run([*node.devices(), node.engine, *timed], every=30.0, parameters=parameters)
    settled = [r.id for r in requests if r.arrival_ns > START + 2000 * SECOND]
    difference = sum(abs(told.receipts[name].joules - plain.receipts[name].joules) for name in settled)
    assert difference / sum(told.receipts[name].joules for name in settled) < most
    assert {plain.receipts[name].validity for name in settled} == {"ok"}
    whole = sum(abs(told.receipts[r.id].joules - plain.receipts[r.id].joules) for r in requests) / total_of(told)
    assert whole < 0.25, "before, the horizon is two minutes and the rest of a long request is unreported"


def test_a_request_beyond_the_horizon_keeps_what_is_open_and_says_so():
    parameters = msgspec.structs.replace(PARAMETERS, horizon_max_seconds=60.0, horizon_min_seconds=60.0)
    long = request("long", 2.0, decode=200.0, generated=4000)
    node = Node((long, *staggered(30, 6.0, decode=2.0)), seconds=260.0, samples=True, parameters=parameters)
    result = run(node.inputs(), parameters=parameters)
    assert result.receipts["long"].validity == "truncated"
    assert result.receipts["long"].joules > 0.0
    assert result.book.unreported_uj > 0, "its earlier tokens were counted and nobody had told of them"
    assert result.snapshot.counters["late_events_total"] == {("late",): 1}


def test_aborted_work_is_unreported():
    everyone = staggered(60, 2.0, decode=6.0)
    node = Node(everyone, seconds=200.0, samples=True)
    told = tuple(r for i, r in enumerate(everyone) if i % 5)
    inputs = [item for item in node.inputs() if item not in everyone or item in told]
    result = run(inputs)
    whole = run(node.inputs())
    lost_tokens = 12 / 60
    attributed = result.book.prefill_uj + result.book.decode_uj + result.book.resident_uj
    assert result.book.unreported_uj / (attributed + result.book.unreported_uj) == pytest.approx(lost_tokens, abs=0.05)
    assert whole.book.unreported_uj == 0
    [engine] = result.snapshot.engines
    assert engine.coverage == pytest.approx(0.8, abs=0.1)


def test_a_silent_source_holds_no_cell_and_its_later_energy_is_unattributed():
    node = Node(staggered(4, 2.0, decode=1.0), seconds=100.0, samples=True).with_gpus(2)
    inputs = [
        i for i in node.inputs() if not (getattr(i, "device", "") == "gpu1" and 20 < (i.t_ns - START) / SECOND < 80)
    ]
    result = run(inputs)
    assert set(result.receipts) == {r.id for r in node.requests}
    silent_uj = node.joules_at(START + 80 * SECOND) // 2 - node.joules_at(START + 20 * SECOND) // 2
    assert result.book.unattributed_uj == pytest.approx(silent_uj, rel=0.02)


def test_two_engines_on_one_device_share_it_without_loss():
    first = Node(staggered(10, 3.0, decode=2.0), seconds=60.0)
    other = Engine(name="f", type="vllm", model="tiny-8B", devices=("gpu0",))
    extra = [change(request(f"f{i}", 2.0 + 5 * i), engine="f") for i in range(5)]
    result = run([*first.devices(), first.engine, other, *sorted([*first.inputs()[2:], *extra], key=when)])
    [book] = [book for book in result.snapshot.groups if book.engines]
    assert book.engines == ("e", "f")
    assert len(result.receipts) == 15
    assert book.unattributed_uj < book.measured_uj // 1000


def test_devices_that_get_an_engine_later_keep_their_books():
    node = Node(staggered(5, 3.0, decode=2.0), seconds=60.0)
    readings = node.readings()
    before = [r for r in readings if r.t_ns <= START + 10 * SECOND]
    after = [r for r in readings if r.t_ns > START + 10 * SECOND]
    late = [
        change(
            r,
            arrival_ns=r.arrival_ns + 15 * SECOND,
            scheduled_ns=r.scheduled_ns + 15 * SECOND,
            first_token_ns=r.first_token_ns + 15 * SECOND,
            last_token_ns=r.last_token_ns + 15 * SECOND,
        )
        for r in node.requests
    ]
    result = run([*node.devices(), *before, node.engine, *sorted([*after, *late], key=when)])
    assert result.snapshot.total.measured_uj == node.joules_at(START + 60 * SECOND)
    assert len(result.receipts) == 5


def test_an_estimated_group_has_owners_and_receipts_and_stays_apart():
    device = Device(name="cpu_estimate", kind=DeviceKind.CPU_PACKAGE, quality=Quality.ESTIMATED, source="estimate")
    engine = Engine(name="e", type="vllm", model="tiny")
    watts = [PowerReading("cpu_estimate", START + k * SECOND // 2, 20.0, Quality.ESTIMATED) for k in range(120)]
    result = run([device, engine, *sorted([*watts, request("a", 5.0)], key=when)])
    assert result.receipts["a"].quality is Quality.ESTIMATED
    assert result.receipts["a"].joules > 0
    assert result.snapshot.boundaries_uj["compute"] == 0
    assert ("compute",) not in result.snapshot.counters.get("boundary_energy_joules_total", {})
    assert "device_energy_joules_total" not in result.snapshot.counters
    assert {k[3] for k in result.snapshot.counters["energy_joules_total"]} == {"estimated"}
    assert "tokens_per_joule" not in result.snapshot.gauges
    counters = result.snapshot.counters
    halves_of_ratios = ("slo_tokens_total", "slo_energy_joules_total", "slo_deadline_tokens_total")
    assert not any(counters.get(name) for name in (*halves_of_ratios, "attributed_energy_joules_total"))
    assert not result.snapshot.histograms["request_energy_joules"]
    assert counters["requests_total"] == {("e", "tiny", "completed"): 1}
    assert sum(counters["slo_requests_total"].values()) == 1


def test_idle_policies_move_static_power_and_nothing_else():
    results = {}
    for policy in IdlePolicy:
        parameters = msgspec.structs.replace(PARAMETERS, idle_policy=policy)
        results[policy] = run(Node(staggered(5, 2.0, decode=3.0)).inputs(), parameters=parameters)
    assert len({result.book.measured_uj for result in results.values()}) == 1
    resident, dynamic, separate = (
        results[p].book for p in (IdlePolicy.RESIDENT, IdlePolicy.DYNAMIC, IdlePolicy.SEPARATE)
    )
    assert dynamic.resident_uj == 0 < resident.resident_uj
    assert separate.idle_uj > resident.idle_uj
    assert resident.idle_uj == dynamic.idle_uj


def test_cost_counts_every_booked_joule_at_the_facilitys_meter():
    parameters = Parameters(
        price=Price(price_per_kwh=0.36, pue=1.5, grid_grams_per_kwh=400.0, hardware_price_per_hour=36.0)
    )
    node = Node(staggered(5, 2.0, decode=3.0))
    result = run(node.inputs(), parameters=parameters)
    joules = result.book.measured_uj / 1e6
    counters = result.snapshot.counters
    assert sum(counters["energy_cost_total"].values()) == pytest.approx(joules * 1.5 / 3.6e6 * 0.36)
    assert sum(counters["co2e_grams_total"].values()) == pytest.approx(joules * 1.5 / 3.6e6 * 400)
    receipt = next(iter(result.receipts.values()))
    assert receipt.cost == pytest.approx(receipt.joules * 1.5 / 3.6e6 * 0.36)
    assert receipt.joules_facility_surplus == pytest.approx(receipt.joules * 0.5, abs=1e-6)
    paid_seconds = sum(counters["hardware_cost_total"].values()) * 3600 / 36.0
    assert 0.0 <= paid_seconds <= 40.1


def test_goodput_follows_the_limits():
    fast = request("fast", 2.0, prefill=0.1, decode=1.0, generated=101)
    slow = request("slow", 6.0, prefill=0.9, decode=1.0, generated=101)
    gone = request("gone", 9.0, outcome=Outcome.CANCELLED)
    result = run(Node((fast, slow, gone)).inputs())
    assert result.receipts["fast"].good == {"chat": True}
    assert result.receipts["slow"].good == {"chat": False}
    counters = result.snapshot.counters["slo_requests_total"]
    assert {labels[3]: count for labels, count in counters.items()} == {"good": 1, "late": 1, "failed": 1}
    assert result.snapshot.counters["slo_tokens_total"][("chat", "e", "tiny-8B", "good")] == 101


BAD = [
    (request("", 2.0), "no_id"),
    (request("x", 2.0, last_token_ns=START), "end_before_start"),
    (request("x", 2.0, first_token_ns=START), "first_token_outside"),
    (request("x", 2.0, prompt_tokens=-1), "negative_tokens"),
    (request("x", 2.0, generation_tokens=10**8), "absurd_tokens"),
    (request("x", 10_000.0), "in_the_future"),
    (request("x", 2.0, engine="nobody"), "unknown_engine"),
    (request("x", -200_000.0, last_token_ns=START), "absurd_duration"),
]


@pytest.mark.parametrize(("event", "reason"), BAD)
def test_an_unsound_event_is_refused_and_counted(event, reason):
    node = Node((request("good", 3.0),))
    clean = run(node.inputs())
    soiled = run([*node.inputs()[:50], event, *node.inputs()[50:]])
    assert soiled.refused == (reason,)
    assert soiled.snapshot.counters["rejected_events_total"] == {(reason,): 1}
    assert soiled.energies == clean.energies


def test_a_retry_under_one_id_is_another_request_and_other_content_a_conflict():
    first = request("same", 2.0)
    retry = request("same", 20.0)
    other = change(first, generation_tokens=99)
    node = Node((first, retry))
    result = run([*node.inputs(), other])
    assert result.refused == ("conflict",)
    assert result.snapshot.counters["requests_total"] == {("e", "tiny-8B", "completed"): 2}


# restart


def restart(pipeline: Pipeline) -> Pipeline:
    stored = msgspec.msgpack.encode(pipeline.books())
    return Pipeline(PARAMETERS, msgspec.msgpack.decode(stored, type=Books))


def flat(pipeline: Pipeline) -> dict:
    counters = pipeline.snapshot(START + 100 * SECOND).counters
    return {(name, labels): value for name, series in counters.items() for labels, value in series.items()}


def test_a_restart_lowers_no_counter_and_books_the_time_away_as_downtime():
    node = Node(staggered(8, 3.0, decode=2.0), seconds=80.0, samples=True)
    pipeline, _ = feed_until(node, 40.0)
    before = flat(pipeline)
    opened = pipeline.snapshot(START + 40 * SECOND).total.open_uj
    again = restart(pipeline)
    for key, value in before.items():
        assert flat(again)[key] >= value, key
    for item in node.inputs():
        if when(item) == 0 or when(item) > START + 60 * SECOND:
            again.feed(item)
    again.advance(START + 80 * SECOND)
    snapshot = again.snapshot(START + 80 * SECOND)
    assert_balanced(snapshot)
    assert snapshot.total.downtime_uj == pytest.approx(20 * 100 * 1e6, rel=0.02)
    assert snapshot.total.unattributed_uj >= opened
    assert snapshot.total.measured_uj == node.joules_at(START + 80 * SECOND)


def test_another_device_under_the_name_is_no_downtime():
    node = Node((), seconds=80.0)
    pipeline, _ = feed_until(node, 40.0)
    again = restart(pipeline)
    again.feed(gpu(0, uuid="GPU-other"))
    again.feed(EnergyReading("gpu0", START + 60 * SECOND, 10**13))
    again.advance(START + 61 * SECOND)
    assert again.snapshot(START + 61 * SECOND).total.downtime_uj == 0


def test_books_of_an_older_version_are_read():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode({}), type=Books) == Books()


def test_node_boundary_and_residual_come_from_the_highest_meter():
    feed = Device(name="outlet_a", kind=DeviceKind.OUTLET, parent="feed", source="pdu", max_watts=5000.0)
    node = Node(staggered(5, 3.0, decode=2.0), seconds=130.0)
    watts = [PowerReading("outlet_a", START + k * SECOND, 500.0) for k in range(131)]
    result = run([feed, *node.devices(), node.engine, *sorted([*node.inputs()[2:], *watts], key=when)])
    assert result.snapshot.boundaries_uj["node"] == 130 * 500 * 10**6
    counters = result.snapshot.counters
    parts = node.joules_at(START + 120 * SECOND)
    assert counters["residual_energy_joules_total"][()] == pytest.approx(120 * 500 * 10**6 - parts, rel=1e-6)
    assert counters["residual_deficit_joules_total"][()] == 0
    assert owners_uj(result.book) == result.book.measured_uj


@pytest.mark.parametrize("days", [1, 30])
def test_a_gap_of_days_is_one_step_and_its_energy_unattributed(days):
    node = Node((request("before", 3.0), request("over", 39.0)), seconds=40.0)
    gap_ns = days * 86_400 * SECOND
    after = [change(r, t_ns=r.t_ns + gap_ns, microjoules=r.microjoules + 10**12) for r in node.readings()]
    later = change(
        request("later", 5.0),
        **{
            field: getattr(request("later", 5.0), field) + gap_ns
            for field in ("arrival_ns", "scheduled_ns", "first_token_ns", "last_token_ns")
        },
    )
    result = run([*node.devices(), node.engine, *sorted([*node.readings(), *after, *node.requests, later], key=when)])
    assert set(result.receipts) == {"before", "over", "later"}
    assert result.receipts["later"].joules > 0
    assert result.book.unattributed_uj == pytest.approx(10**12 - node.joules_at(START + 40 * SECOND), rel=1e-3)
    assert result.snapshot.counters["source_gap_seconds_total"][("test", "silent")] == pytest.approx(days * 86_400 - 40)


def test_a_bug_in_one_engines_attribution_quarantines_it_and_metering_goes_on(monkeypatch):
    node = Node(staggered(8, 3.0, decode=2.0), seconds=120.0, samples=True)
    other = [EnergyReading("gpu9", START + k * SECOND, 70_000_000 * k) for k in range(121)]
    inputs = [gpu(9), *node.devices(), node.engine, *sorted([*node.inputs()[2:], *other], key=when)]
    broken = EngineBook.close

    def close(self, cell, row, split):
        if cell > START // (SECOND // 10) + 500:
            raise ZeroDivisionError("made up")
        return broken(self, cell, row, split)

    monkeypatch.setattr(EngineBook, "close", close)
    result = run([*inputs, request("after", 100.0)])
    assert result.snapshot.total.measured_uj == node.joules_at(START + 120 * SECOND) + 120 * 70_000_000
    assert result.book.unattributed_uj > 0
    assert result.refused == ("quarantined",)
    assert "ZeroDivisionError" in result.snapshot.degraded[0]


def test_readings_fed_at_once_are_readings_fed_one_by_one():
    node = Node(staggered(5, 3.0, decode=2.0), seconds=60.0)
    singly, at_once = Pipeline(PARAMETERS), Pipeline(PARAMETERS)
    for item in (*node.devices(), node.engine, *node.requests):
        singly.feed(item)
        at_once.feed(item)
    unknown = EnergyReading("nobody", START, 1)
    for reading in (*node.readings(), unknown):
        singly.feed(reading)
    at_once.feed_readings([*node.readings(), unknown])
    assert at_once.finish() == singly.finish()
    assert at_once.snapshot(START) == singly.snapshot(START)

"""Long uptimes, crowds, gaps and absurd figures: no drift, no growth, no exception, and the books add up.

Nothing here is timed: what could become slow is counted.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import count
from math import isfinite

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
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

from jouled.core.attribution.cells import CELL_NS, cell_of
from jouled.core.attribution.load import REFRESH_CELLS, Load
from jouled.core.attribution.request import Request
from jouled.core.attribution.service_start import ServiceStart
from jouled.core.attribution.work import Work
from jouled.core.continuity import checkpoint
from jouled.core.pipeline import Input, Pipeline
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart

DAY = 86_400
CROWD = 20_000
"""100 000 in one cell pass as well, in the same time per request."""
ENGINE = Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",))
TIMES = ("arrival_ns", "scheduled_ns", "first_token_ns", "last_token_ns")


def begin(*items: Input) -> Pipeline:
    pipeline = Pipeline(PARAMETERS)
    for item in items:
        pipeline.feed(item)
    return pipeline


def reading(seconds: float, watts: int = 300) -> EnergyReading:
    return EnergyReading("gpu0", START + round(seconds * SECOND), round(seconds * watts * 1e6))


def moved(event: RequestEvent, by_ns: int, name: str) -> RequestEvent:
    return change(event, id=name, **{field: getattr(event, field) + by_ns for field in TIMES})


def assert_sound(receipts: Iterable[Receipt]) -> None:
    for receipt in receipts:
        assert isfinite(receipt.joules)
        assert receipt.joules >= 0.0
        for sigma in (receipt.sigma_joules, receipt.sigma_prefill_joules, receipt.sigma_decode_joules):
            if sigma is None:
                assert receipt.joules == 0.0 or receipt.validity != "ok"
                continue
            assert isfinite(sigma)
            assert sigma >= 0.0


def assert_whole(result: Result) -> None:
    """Every joule measured has an owner, and every figure is a figure."""
    assert_balanced(result.snapshot)
    assert result.book.open_uj == 0
    assert owners_uj(result.book) == result.book.measured_uj
    assert result.snapshot.degraded == ()
    assert_sound(result.receipts.values())


# thirty days

EPISODE = tuple(request(f"r{i}", 20.0 + 0.7 * i, decode=3.0 + i % 4, prompt=100 + 97 * i) for i in range(24))


def test_thirty_days_of_uptime_cost_no_microjoule():
    """One busy minute every six hours, the device off in between: day 30 gets what the first days got.

    The first episodes teach the engine its prefill rate; from then on every episode must be the same to a microjoule.
    Ratios are left as the priors have them: what the meter teaches month by month is not what this is about.
    """
    minute = Node(EPISODE, seconds=60.0, base_watts=150.0)
    every_ns, episodes = 6 * 3600 * SECOND, 4 * 30
    pipeline, finals, drawn = Pipeline(change(PARAMETERS, learn_ratios=False)), {}, 0
    for item in (gpu(0), ENGINE):
        pipeline.feed(item)
    timed = sorted([*minute.readings(), *EPISODE], key=when)
    for episode in range(episodes):
        by_ns = episode * every_ns
        pipeline.feed(EnergyReading("gpu0", START + by_ns - SECOND, drawn + 5_000_000))
        finals.update({receipt.id: receipt for receipt in pipeline.advance(START + by_ns)})
        for item in timed:
            if isinstance(item, RequestEvent):
                pipeline.feed(moved(item, by_ns, f"{episode}:{item.id}"))
            else:
                pipeline.feed(change(item, t_ns=item.t_ns + by_ns, microjoules=item.microjoules + drawn))
        drawn += minute.joules_at(START + 60 * SECOND)
        for after in (60.0, 300.0, 3600.0):
            at_ns = START + by_ns + round(after * SECOND)
            pipeline.feed(EnergyReading("gpu0", at_ns + 1, drawn + 5_000_000))
            finals.update({receipt.id: receipt for receipt in pipeline.advance(at_ns + 1)})
    finals.update({receipt.id: receipt for receipt in pipeline.finish()})
    assert len(finals) == episodes * len(EPISODE)
    for event in EPISODE:
        early, late = finals[f"8:{event.id}"], finals[f"{episodes - 1}:{event.id}"]
        assert late.joules > 1.0
        for part in ("joules_prefill", "joules_decode", "joules_resident"):
            assert getattr(late, part) == pytest.approx(getattr(early, part), abs=1.5e-6)
    assert_balanced(pipeline.snapshot(START + 31 * DAY * SECOND))


def test_the_age_of_the_clock_costs_no_microjoule():
    """The same minute in 1970, today, and in the year 2200: integers all the way, no float holds a time stamp."""
    plain = run(Node(EPISODE, seconds=60.0).inputs())
    for by_ns in (-START + 600 * SECOND, 30 * DAY * SECOND, 175 * 365 * DAY * SECOND):
        shift_ns = by_ns - by_ns % CELL_NS
        told = [
            moved(item, shift_ns, item.id)
            if isinstance(item, RequestEvent)
            else change(item, t_ns=item.t_ns + shift_ns)
            if hasattr(item, "t_ns")
            else item
            for item in Node(EPISODE, seconds=60.0).inputs()
        ]
        assert run(told).energies == plain.energies


def test_running_sums_of_a_load_that_never_pauses_do_not_drift():
    """24 000 requests, always some prefilling, some with a huge prompt done within a few milliseconds.

    The running sums at the end are held against the sums of those who are left, in exact arithmetic.
    """
    load, active, cell = Load(), [], cell_of(START)
    first = cell
    for i in range(24_000):
        start_ns = cell * CELL_NS + (i * 37) % 100 * 1_000_003
        span_ns = (2 + i % 9) * 10**6 if i % 3 else (1 + i % 40) * 10**8
        computed = 100_000 + i % 3000
        work = Work(start_ns, start_ns + span_ns, start_ns + span_ns, computed, 0, computed, 1, start_ns)
        load.insert(Request(request("r", 0.0), work, ()))
        active.append(work)
        if i % 2:
            load.sweep(cell)
            cell += 1
            active = [w for w in active if w.first_ns >= cell * CELL_NS]
    prefilling = [w for w in active if w.start_ns < cell * CELL_NS <= w.first_ns]
    assert cell - first == 2 * REFRESH_CELLS
    assert load._prefill == pytest.approx(float(sum(Fraction(w.prefill_rate) for w in prefilling)), rel=1e-12)
    assert load._attention == pytest.approx(float(sum(Fraction(w.attention_rate) for w in prefilling)), rel=1e-12)


# memory


def sizes(pipeline: Pipeline) -> dict[str, int]:
    """Entries of what in the core grows with time or requests; and of whatever else there is, its size when saved."""
    book, meter = pipeline._groups.books["e"], pipeline._devices.meters["gpu0"]
    return {
        "looks": len(book.census.looks),
        "recent residents": len(book.census._recent),
        "span windows": len(book.census._spans._windows),
        "pending": len(book._pending),
        "open": len(book.open),
        "in flight": len(book.in_flight),
        "carried": len(book._carried),
        "cells": len(book._load.cells),
        "first tokens": sum(map(len, book._starts._first_tokens.values())),
        "rates": len(book._starts._rates),
        "knots": len(meter.curve._t_ns),
        "peaks": len(meter._peaks),
        "identities": len(pipeline._admission._by_id) + len(pipeline._admission._by_span),
        "waiting": len(pipeline._waiting._by_id),
        "recent receipts": len(pipeline._account.recent),
        "owed": len(pipeline._groups._owed),
        "history": len(pipeline._efficiency._history._times),
        "window": len(pipeline._efficiency._live_window._times) + len(pipeline._efficiency._book_window._times),
        "series": sum(map(len, pipeline._account.counters.values.values())),
        "bytes of all of it": sum(map(len, checkpoint(pipeline, "1").chunks())),
    }


def hour(pipeline: Pipeline, k: int, *, told: bool = True) -> int:
    """An hour of an engine that is always busy, with aborts nobody tells of and starts whose end never comes."""
    finals = 0
    for second in range(k * 3600, (k + 1) * 3600, 2):
        pipeline.feed(reading(second))
        name = f"r{second}"
        t_ns = START + second * SECOND
        told_by_page = {"steps": second * 30, "generation_tokens": second * 50, "requests_running": 3}
        pipeline.feed(EngineSample(engine="e", t_ns=t_ns, **told_by_page))
        if second % 30 == 0:
            pipeline.feed(RequestStart(engine="e", id=f"{name}-lost", arrival_ns=START + second * SECOND))
        if told:
            event = request(name, second - 6.0, decode=5.0, trace_id=name, span_id="1", tenant=f"t{second % 977}")
            pipeline.feed(event)
        finals += len(pipeline.advance(START + second * SECOND))
    return finals


def test_memory_is_bounded_whatever_the_uptime():
    pipeline = begin(gpu(0), ENGINE)
    held, finals = [], 0
    for k in range(3):
        finals += hour(pipeline, k)
        held.append(sizes(pipeline))
    assert finals > 3 * 1800 - 200
    assert held[2].keys() == held[1].keys()
    grown = {name: (held[1][name], size) for name, size in held[2].items() if size > 1.1 * held[1][name] + 5}
    assert grown.keys() <= {"knots"}, "they are dropped some hundreds at a time"
    assert held[2]["identities"] <= 2 * 1000 * 7 / 6, "they are forgotten five minutes at a time"
    assert held[2]["knots"] < 1000
    assert held[2]["in flight"] <= 130


def test_memory_is_bounded_where_the_meter_was_never_read():
    """Events, looks and starts of an engine whose device tells nothing: for days, perhaps."""
    pipeline = begin(gpu(0), gpu(1), change(ENGINE, devices=("gpu1",)))
    pipeline.feed(reading(0))
    held = []
    for k in range(3):
        for second in range(k * 3600, (k + 1) * 3600, 10):
            t_ns = START + second * SECOND
            pipeline.feed(EngineSample(engine="e", t_ns=t_ns, generation_tokens=second, requests_running=1))
            pipeline.feed(request(f"r{second}", second - 3.0, decode=2.0))
            pipeline.feed(RequestStart(engine="e", id=f"lost{second}", arrival_ns=t_ns))
            pipeline.advance(t_ns)
        held.append(sizes(pipeline))
    grown = {name: (held[1][name], size) for name, size in held[2].items() if size > 1.1 * held[1][name] + 5}
    assert grown == {}


# crowds and lengths


def test_ten_thousand_concurrent_requests():
    """Cells hold entries where something changes only: their number does not follow the residents."""
    crowd = tuple(
        request(f"r{i:05d}", 2.0 + i * 0.0005, decode=20.0, generated=500, prompt=i % 3000) for i in range(10_000)
    )
    node = Node(crowd, seconds=40.0, watts_per_request=0.05)
    pipeline = begin(*node.devices(), node.engine, *crowd, *node.readings())
    told = pipeline.advance(START + 10 * SECOND)
    assert told == []
    receipts = pipeline.finish()
    assert len(receipts) == 10_000
    assert_sound(receipts)
    book = next(b for b in pipeline.snapshot(START + 40 * SECOND).groups if b.engines)
    assert owners_uj(book) == book.measured_uj
    assert book.unattributed_uj <= 3 * 10_000 + 400, "no more than the floors of three parts per request, and of cells"
    assert sizes(pipeline)["cells"] == 0


def test_a_crowd_in_one_cell():
    crowd = [
        request(f"r{i}", 5.01 + (i % 800) * 1e-4, prefill=0.004, decode=0.004, generated=1 + i % 5)
        for i in range(CROWD)
    ]
    base = Node((), seconds=20.0, base_watts=400.0)
    pipeline = begin(*base.devices(), base.engine, *crowd, *base.readings())
    receipts = pipeline.finish()
    assert len(receipts) == CROWD
    assert_sound(receipts)
    book = next(b for b in pipeline.snapshot(START + 20 * SECOND).groups if b.engines)
    assert owners_uj(book) == book.measured_uj
    assert sum(r.joules for r in receipts) == pytest.approx(40.0, rel=0.35), "the cell's 40 J less its idle part"


@pytest.mark.parametrize("generated", [0, 1, 2])
def test_one_token_and_zero_length_requests(generated):
    requests = (
        request("instant", 5.0, prefill=0.0, decode=0.0, generated=generated, prompt=0),
        request("prefill only", 10.0, prefill=0.3, decode=0.0, generated=generated),
        request("no prompt", 15.0, prefill=0.0, decode=1.0, generated=generated, prompt=0),
        request("on the edge", 20.0, prefill=0.1, decode=0.1, generated=generated),
    )
    result = run(Node(requests).inputs())
    assert_whole(result)
    assert result.receipts["prefill only"].joules_decode == 0.0
    assert result.receipts["prefill only"].joules_prefill > 0.0


def test_a_queue_of_a_day_is_not_searched_cell_by_cell():
    """Where the last first token was long before, finding it takes steps by what is known, not by time."""
    looked = Counting()
    starts = ServiceStart()
    starts._first_tokens = looked
    starts.known(START)
    looked.steps = 0
    assert starts.start_ns(START + SECOND, START + DAY * SECOND, 100) == START + SECOND
    assert looked.steps < 20


class Counting(dict):
    """A dictionary that counts how often it is asked."""

    steps = 0

    def get(self, *args):
        self.steps += 1
        return super().get(*args)

    def __getitem__(self, key):
        self.steps += 1
        return super().__getitem__(key)


# gaps and extremes


def test_hours_without_a_reading_while_requests_are_there():
    long = request("long", 5.0, decode=7000.0, generated=20_000, seen_ns=START + 7210 * SECOND)
    inside = request("inside", 3000.0, decode=60.0, seen_ns=START + 7220 * SECOND)
    readings = [reading(k / 2) for k in range(40)] + [reading(7200 + k / 2) for k in range(240)]
    timed = sorted([*readings, long, inside, request("after", 7250.0)], key=when)
    result = run([gpu(0), ENGINE, *timed])
    assert_whole(result)
    assert result.receipts["inside"].joules == 0.0
    assert result.receipts["after"].joules > 10.0
    assert result.book.unattributed_uj == pytest.approx((7200 - 20) * 300e6, rel=0.01)


def test_a_long_idle_leaves_nothing_behind():
    """Three hours, a reading a minute; whether that many seconds are no gap shows after a few readings."""
    pipeline, hours = begin(gpu(0), ENGINE), 3
    for k in range(0, hours * 3600 + 1, 60):
        pipeline.feed(reading(k, watts=100))
        pipeline.advance(START + k * SECOND)
    pipeline.finish()
    total = pipeline.snapshot(START + hours * 3600 * SECOND).total
    assert total.idle_uj + total.unattributed_uj == total.measured_uj == hours * 3600 * 100_000_000
    assert total.unattributed_uj <= 3 * 60 * 100_000_000
    assert sizes(pipeline)["cells"] == 0
    assert sizes(pipeline)["knots"] <= 400


def test_events_a_day_late_are_told_without_harm():
    node = Node(tuple(request(f"r{i}", 3.0 + 4 * i) for i in range(8)), seconds=400.0, interval=0.5)
    late = [change(request(f"late{i}", 3.0 + i), seen_ns=START + DAY * SECOND) for i in range(5)]
    after = [
        EnergyReading(
            "gpu0", START + (DAY + k) * SECOND, node.joules_at(START + 400 * SECOND) + 5_000_000 + k * 100_000_000
        )
        for k in range(-2, 60)
    ]
    result = run([*node.devices(), node.engine, *sorted([*node.inputs()[2:], *late, *after], key=when)])
    assert_whole(result)
    assert {f"late{i}" for i in range(5)} <= result.receipts.keys()
    assert all(result.receipts[f"late{i}"].joules == 0.0 for i in range(5))
    assert result.snapshot.counters["late_events_total"] == {("late",): 5}
    plain = run(node.inputs())
    assert {k: v for k, v in result.energies.items() if k in plain.energies} == plain.energies


def test_readings_that_come_after_their_cells_were_closed_without_them_find_an_owner():
    """A silent device tells of three moments behind the closed edge at once: all of it is booked, none stays open."""
    pipeline = begin(gpu(0), gpu(1), change(ENGINE, devices=("gpu0", "gpu1")))
    for k in range(300):
        pipeline.feed(reading(k))
        if k < 10:
            pipeline.feed(change(reading(k), device="gpu1"))
        if k == 299:
            for late in (20, 40, 60, 299):
                pipeline.feed(change(reading(late), device="gpu1"))
        pipeline.advance(START + k * SECOND)
    pipeline.finish()
    total = pipeline.snapshot(START + 300 * SECOND).total
    assert total.measured_uj == 2 * 299 * 300_000_000
    assert total.open_uj == 0


TIME = st.one_of(
    st.sampled_from([0, 1, CELL_NS, START - 1, START, START + DAY * SECOND, 2**62, 2**63 - 1, -1, -(2**62)]),
    st.integers(START, START + 200 * SECOND),
)
TOKENS = st.sampled_from([0, 1, 2, 1000, 10_000_000, 10**9, 2**63 - 1])


@st.composite
def absurd_inputs(draw: st.DrawFn) -> list[Input]:
    """Requests, starts, looks and readings with times and figures from end to end, among ordinary ones."""
    names = count()
    items: list[Input] = []
    for kind in draw(st.lists(st.sampled_from(["request", "start", "look", "energy", "power"]), max_size=12)):
        name, t_ns = f"x{next(names)}", draw(TIME)
        if kind == "request":
            spans = [draw(st.sampled_from([0, 1, SECOND // 1000, SECOND, 3600 * SECOND, DAY * SECOND])) for _ in "sf"]
            items.append(
                RequestEvent(
                    engine="e",
                    id=name,
                    arrival_ns=t_ns,
                    scheduled_ns=draw(st.one_of(st.none(), TIME)),
                    first_token_ns=t_ns + spans[0],
                    last_token_ns=t_ns + sum(spans),
                    prompt_tokens=draw(TOKENS),
                    cached_prompt_tokens=draw(st.one_of(st.none(), TOKENS)),
                    generation_tokens=draw(TOKENS),
                    seen_ns=draw(st.one_of(st.just(0), TIME)),
                )
            )
        elif kind == "start":
            items.append(RequestStart(engine="e", id=name, arrival_ns=t_ns))
        elif kind == "look":
            items.append(
                EngineSample(
                    engine="e",
                    t_ns=t_ns,
                    steps=draw(TOKENS),
                    prompt_tokens=draw(TOKENS),
                    generation_tokens=draw(TOKENS),
                    requests_running=draw(st.sampled_from([0, 1, 2**31])),
                )
            )
        elif kind == "energy":
            items.append(EnergyReading("gpu0", t_ns, draw(TOKENS)))
        else:
            items.append(PowerReading("gpu1", t_ns, draw(st.floats())))
    return items


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@example(items=[EnergyReading("gpu0", 0, 0)], at=2, samples=False)
@given(items=absurd_inputs(), at=st.integers(0, 400), samples=st.booleans())
def test_absurd_figures_are_refused_or_carried_and_the_books_add_up(items, at, samples):
    """No exception, no engine quarantined, sums whole, sigma a figure; what is refused is refused under a name."""
    node = Node((request("a", 3.0), request("b", 50.0)), seconds=200.0, interval=0.5, samples=samples)
    ordinary = node.inputs()
    pipeline, receipts = Pipeline(PARAMETERS), []
    for position, item in enumerate([*ordinary[:at], *items, *ordinary[at:]]):
        pipeline.feed(item)
        if position % 10 == 0 and item not in items and when(item):
            receipts += pipeline.advance(when(item))
    receipts += pipeline.finish()
    snapshot = pipeline.snapshot(START + 200 * SECOND)
    assert_balanced(snapshot)
    assert snapshot.degraded == ()
    assert_sound(receipts)
    assert all(book.open_uj == 0 for book in snapshot.groups)

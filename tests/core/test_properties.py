"""What must hold of the books whatever happens (attribution.md section 8, properties)."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, gpu, receipts_uj, request, request_sets, run

from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading
from jouled.model.requests import RequestEvent

LIGHT = settings(max_examples=40, deadline=None)


@LIGHT
@given(request_sets(), st.sampled_from([0.05, 0.1, 0.37, 1.0]), st.booleans())
def test_every_joule_has_one_owner(requests, interval, samples):
    result = run(Node(requests, interval=interval, samples=samples).inputs())
    assert result.book.open_uj == 0
    owned = result.book.prefill_uj + result.book.decode_uj + result.book.resident_uj
    assert receipts_uj(list(result.receipts.values())) == owned
    assert set(result.receipts) == {r.id for r in requests}


@LIGHT
@given(request_sets(), st.randoms(use_true_random=False))
def test_order_and_batching_of_events_change_no_final(requests, rng: random.Random):
    node = Node(requests)
    plain = run(node.inputs())
    shuffled = [*node.requests]
    rng.shuffle(shuffled)
    result = run([*node.devices(), node.engine, *shuffled, *node.readings()], every=rng.choice([0.3, 1.0, 7.0, 100.0]))
    assert result.energies == plain.energies


@LIGHT
@given(request_sets(), st.integers(1, 3))
def test_duplicates_change_nothing(requests, copies):
    node = Node(requests)
    plain = run(node.inputs())
    doubled = run([item for item in node.inputs() for _ in range(1 + copies * isinstance(item, RequestEvent))])
    assert doubled.energies == plain.energies
    assert doubled.refused == ("duplicate",) * copies * len(requests)


@LIGHT
@given(request_sets(), st.integers(1, 6))
def test_a_shift_by_whole_ranges_changes_nothing(requests, ranges):
    by_ns = ranges * 30 * SECOND

    def moved(item):
        if isinstance(item, RequestEvent):
            return change(
                item,
                arrival_ns=item.arrival_ns + by_ns,
                scheduled_ns=item.scheduled_ns + by_ns,
                first_token_ns=item.first_token_ns + by_ns,
                last_token_ns=item.last_token_ns + by_ns,
            )
        return change(item, t_ns=item.t_ns + by_ns) if hasattr(item, "t_ns") else item

    node = Node(requests)
    assert run(map(moved, node.inputs())).energies == run(node.inputs()).energies


@LIGHT
@given(request_sets(), st.integers(2, 5))
def test_energy_times_k_gives_all_times_k(requests, k):
    node = Node(requests)

    def devices(factor):
        told = {"idle_watts": 100.0 * factor, "uplift_watts": 50.0 * factor, "max_watts": 7000.0}
        return gpu(0, **told)

    once = run([devices(1), node.engine, *sorted([*node.readings(), *requests], key=_time)])
    larger = replace(node, scale=k)
    many = run([devices(k), node.engine, *sorted([*larger.readings(), *requests], key=_time)])
    for name, parts in once.energies.items():
        assert many.energies[name] == pytest.approx([k * part for part in parts], abs=1e-5 * k)


def _time(item):
    return getattr(item, "t_ns", 0) or item.last_token_ns


@LIGHT
@given(request_sets(), st.integers(2, 8))
def test_eight_counters_or_one_sum_give_the_same(requests, gpus):
    one = Node(requests)
    total = [
        gpu(0, idle_watts=100.0 * gpus, uplift_watts=50.0 * gpus, max_watts=700.0 * gpus),
        one.engine,
        *sorted([*one.readings(), *requests], key=_time),
    ]
    alone, together = run(total), run(one.with_gpus(gpus).inputs())
    for name, parts in alone.energies.items():
        assert together.energies[name] == pytest.approx(parts, abs=2e-4)


@LIGHT
@given(request_sets())
def test_identical_twins_get_equal_joules(requests):
    twins = (request("twin-a", 3.0), request("twin-b", 3.0))
    result = run(Node((*requests, *twins)).inputs())
    assert result.energies["twin-a"] == pytest.approx(result.energies["twin-b"], abs=2e-6)


@LIGHT
@given(request_sets())
def test_an_added_idle_gpu_changes_only_idle(requests):
    node = Node(requests)
    idle = [EnergyReading("gpu9", START + k * SECOND, 70_000_000 * k) for k in range(41)]
    more = run([gpu(9), *node.devices(), node.engine, *sorted([*node.readings(), *idle, *requests], key=_time)])
    plain = run(node.inputs())
    assert more.energies == plain.energies
    alone = next(book for book in more.snapshot.groups if not book.engines)
    assert alone.idle_uj == alone.measured_uj == 40 * 70_000_000


@LIGHT
@given(request_sets(), st.floats(0.5, 1000.0))
def test_only_ratios_of_the_priors_matter(requests, factor):
    plain = Engine(
        name="e",
        model="x",
        devices=("gpu0",),
        parameters=8e9,
        weight_bytes=16e9,
        layers=32,
        hidden_size=4096,
        kv_bytes_per_token=131072.0,
    )
    scaled = change(
        plain,
        parameters=8e9 * factor,
        weight_bytes=16e9 * factor,
        layers=32,
        hidden_size=4096 * factor,
        kv_bytes_per_token=131072.0 * factor,
    )
    first, second = run(Node(requests, engine=plain).inputs()), run(Node(requests, engine=scaled).inputs())
    for name, parts in first.energies.items():
        assert second.energies[name] == pytest.approx(parts, abs=2e-5)


@LIGHT
@given(request_sets(most=6), st.floats(1.0, 38.0))
def test_cutting_a_recording_at_any_time_leaves_the_sum(requests, at):
    inputs = [item for item in Node(requests).inputs() if _seen(item) <= START + at * SECOND]
    result = run(inputs)
    assert result.book.open_uj == 0


def _seen(item):
    return getattr(item, "t_ns", 0) or getattr(item, "last_token_ns", 0)


def test_no_residency_no_joules_and_nobody_active_is_all_idle():
    result = run(Node((request("nothing", 5.0, prefill=0.0, decode=0.0, generated=1),)).inputs())
    assert result.receipts["nothing"].joules == pytest.approx(0.0, abs=0.5)
    empty = run(Node(()).inputs())
    assert empty.book.idle_uj == empty.book.measured_uj > 0


def test_no_energy_no_joules():
    node = Node((request("a", 3.0),), base_watts=0.0, watts_per_request=0.0)
    result = run(node.inputs())
    assert result.receipts["a"].joules == 0.0
    assert result.book.measured_uj == 0


@LIGHT
@given(request_sets(), st.integers(1, 39), st.booleans())
def test_a_wrap_changes_nothing_and_a_reset_costs_one_interval(requests, at, wraps):
    node = Node(requests)
    range_uj = 10_000_000_000
    cut_ns = START + at * SECOND
    edge = node.joules_at(cut_ns) + 5_000_000

    def turned(item):
        if isinstance(item, EnergyReading):
            raw = (
                item.microjoules - edge if item.t_ns > cut_ns else item.microjoules + (range_uj - edge if wraps else 0)
            )
            return change(item, microjoules=raw)
        return item

    device = gpu(0, wrap_microjoules=range_uj if wraps else None)
    result = run([device, *(turned(item) for item in node.inputs()[1:])])
    whole = node.joules_at(START + 40 * SECOND)
    if wraps:
        assert result.book.measured_uj == whole
        assert result.energies == run(node.inputs()).energies
    else:
        lost = node.joules_at(cut_ns + SECOND // 10) - node.joules_at(cut_ns)
        assert result.book.measured_uj == whole - lost


@LIGHT
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(-(2**40), 2**44)), max_size=60))
def test_any_readings_leave_balanced_books(rows):
    readings = [EnergyReading("gpu0", START + k * SECOND // 10, raw) for k, raw in rows]
    run([gpu(0), Node(()).engine, request("a", 3.0), *readings])


@LIGHT
@given(request_sets(), st.data())
def test_any_engine_counters_leave_balanced_books(requests, data):
    small = st.one_of(st.none(), st.integers(0, 100_000))
    samples = [
        EngineSample(
            engine="e",
            t_ns=START + k * 5 * SECOND,
            steps=data.draw(small),
            prompt_tokens=data.draw(small),
            cached_prompt_tokens=data.draw(small),
            generation_tokens=data.draw(small),
            requests_running=data.draw(st.one_of(st.none(), st.integers(0, 20))),
        )
        for k in range(9)
    ]
    node = Node(requests)
    result = run(
        [gpu(0), node.engine, *sorted([*node.readings(), *samples, *requests], key=_time)], parameters=PARAMETERS
    )
    assert result.book.open_uj == 0

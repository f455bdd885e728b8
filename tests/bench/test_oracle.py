"""The simulator's truths add up, and are what they are by hand."""

import random
from itertools import pairwise

import pytest
from bench.oracle import parts, workload
from bench.oracle.cases import CASES
from bench.oracle.engine import Curve, Run, Settings, simulate
from bench.oracle.meter import Meter, Walk, readings, watts
from bench.oracle.parts import H100, MIXTURES, Model, Physics
from bench.oracle.scenario import Scenario, build
from bench.oracle.telling import name_of
from bench.oracle.workload import Job

from jouled.model.device import Device
from jouled.model.engine import EngineSample
from jouled.model.readings import EnergyReading
from jouled.model.requests import RequestEvent, RequestStart

BY_NAME = {case.name: case for case in CASES}
TINY = Model(
    name="tiny",
    parameters=5.0,
    active_parameters=5.0,
    layers=1,
    hidden_size=1,
    weight_bytes=100.0,
    kv_bytes_per_token=1.0,
)
"""10 FLOPs a token, 4 FLOPs and 1 byte for every token of its context, 100 bytes of weights a step."""

BY_HAND = Physics(
    devices=1,
    idle_watts=3.0,
    uplift_watts=1.0,
    cap_watts=1e9,
    flops_per_second=1e9,
    bytes_per_second=1e9,
    joules_per_flop=0.5,
    joules_per_byte=0.25,
    launch_seconds=1.0,
    launch_joules=1.0,
)
"""Steps of one second (FLOPs and bytes take no time to speak of) that cost 25 J for weights and 1 J for the launch."""


def small(name: str, seed: int = 1, requests: int = 150) -> Scenario:
    return build(BY_NAME[name], seed, requests)


def served(*jobs: Job, physics: Physics = BY_HAND, step_tokens: int = 100) -> Run:
    return simulate(jobs, TINY, physics, Settings(step_tokens=step_tokens, lead_seconds=2.0, tail_seconds=2.0))


def test_two_requests_by_hand() -> None:
    """A alone in the first step; A decodes beside the prefill of B in the second; B decodes alone in the third.

    Prefill of 4 tokens: 40 FLOPs + 4 · (4 · 2) FLOPs = 72, and 4 bytes: 36 + 1 = 37 J. A token over a context of 5:
    10 + 20 FLOPs and 5 bytes: 15 + 1.25 = 16.25 J. Static power: 4 W.
    """
    a, b = served(Job(0.0, 4, 0, 2), Job(0.5, 4, 0, 2)).served
    assert (a.start, a.first, a.last) == pytest.approx((2.0, 3.0, 4.0))
    assert (b.start, b.first, b.last) == pytest.approx((3.0, 4.0, 5.0))
    assert (a.prefill, a.decode, a.resident) == pytest.approx((37 + 26, 16.25 + 13, 4 + 2), rel=1e-6)
    assert (b.prefill, b.decode, b.resident) == pytest.approx((37 + 13, 16.25 + 26, 2 + 4), rel=1e-6)


def test_idle_costs_idle_power_without_the_uplift() -> None:
    run = served(Job(0.0, 4, 0, 2), Job(7.0, 4, 0, 2))
    assert run.idle_joules == pytest.approx(3.0 * (2 + 5 + 2), rel=1e-6)


def test_cached_tokens_are_not_computed_but_attended_to() -> None:
    (cold,) = served(Job(0.0, 40, 0, 1)).served
    (warm,) = served(Job(0.0, 40, 30, 1)).served
    assert cold.prefill - 26 == pytest.approx(0.5 * (400 + 4 * 40 * 20) + 0.25 * 40, rel=1e-6)
    assert warm.prefill - 26 == pytest.approx(0.5 * (100 + 4 * 10 * 35) + 0.25 * 40, rel=1e-6)


def test_a_prompt_longer_than_a_step_is_computed_in_chunks() -> None:
    (whole,) = served(Job(0.0, 40, 0, 1)).served
    (chunked,) = served(Job(0.0, 40, 0, 1), step_tokens=10).served
    assert chunked.first - chunked.start == pytest.approx(4.0)
    # Three more steps, and the KV of 10, 20 and 30 tokens read again.
    assert chunked.prefill - whole.prefill == pytest.approx(3 * 26 + 0.25 * 60, rel=1e-6)


def test_a_power_cap_stretches_steps() -> None:
    (free,) = served(Job(0.0, 40, 0, 1)).served
    (held,) = served(Job(0.0, 40, 0, 1), physics=parts.capped(BY_HAND, 1e-6)).served
    assert held.prefill == pytest.approx(free.prefill)
    assert held.first - held.start == pytest.approx(free.prefill / 500.0)


@pytest.mark.parametrize("name", BY_NAME)
def test_what_everybody_owes_and_idle_is_the_energy_curve(name: str) -> None:
    run = small(name).run
    owed = sum(truth.joules for truth in run.served) + run.idle_joules
    assert owed == pytest.approx(run.curve.joules[-1], rel=1e-9)
    assert all(truth.start < truth.first <= truth.last for truth in run.served)
    assert all(before < after for before, after in pairwise(run.curve.seconds))


@pytest.mark.parametrize("name", ["steady", "bursty", "shuffled_duplicates", "moe_name"])
def test_a_seed_is_a_world(name: str) -> None:
    assert small(name, seed=7).items == small(name, seed=7).items
    assert small(name, seed=7).items != small(name, seed=8).items


def test_a_case_told_more_has_the_same_truth() -> None:
    less, more = small("long_answers", requests=20), small("long_answers_starts", requests=20)
    assert less.run.served == more.run.served
    assert [item for item in more.items if not isinstance(item, RequestStart)] == less.items


def test_the_page_ends_at_all_tokens_even_those_of_untold_requests() -> None:
    scenario = small("unreported")
    last = [item for item in scenario.items if isinstance(item, EngineSample)][-1]
    assert last.requests_running == last.requests_waiting == 0
    assert last.prompt_tokens == sum(job.prompt_tokens for job in scenario.jobs)
    assert last.generation_tokens == sum(job.generation_tokens for job in scenario.jobs)
    told = {item.id for item in scenario.items if isinstance(item, RequestEvent)}
    assert told == {name_of(number) for number, job in enumerate(scenario.jobs) if job.told}
    assert 0 < len(told) < len(scenario.jobs)


def test_items_come_in_the_order_seen_and_tell_only_what_the_case_tells() -> None:
    scenario = small("idle_unknown")
    seen = [item.seen_ns if isinstance(item, RequestEvent) else item.t_ns for item in scenario.items[2:]]  # type: ignore[union-attr]
    assert seen == sorted(seen)
    (device,) = [item for item in scenario.items if isinstance(item, Device)]
    assert (device.idle_watts, device.uplift_watts) == (None, None)
    assert all(item.scheduled_ns is None for item in small("arrivals_only").items if isinstance(item, RequestEvent))


def test_experts_touched_grow_with_the_tokens_of_a_step() -> None:
    for mixture in MIXTURES:
        read = [mixture.bytes_read(tokens) for tokens in (1, 2, 8, 64, 4_096)]
        assert read == sorted(read)
        assert read[0] == pytest.approx(2 * mixture.active_parameters, rel=1e-6)
        assert read[-1] == pytest.approx(mixture.weight_bytes, rel=1e-3)


def test_true_parameters_are_around_the_priors_or_off_by_the_mismatch() -> None:
    drawn = [parts.draw(H100, 1, random.Random(seed)) for seed in range(50)]
    assert all(0.7 <= physics.joules_per_flop / H100.joules_per_flop <= 1.3 for physics in drawn)
    wrong = [parts.draw(H100, 1, random.Random(seed), mismatch=2.0) for seed in range(50)]
    ratios = {
        (w.joules_per_flop / H100.joules_per_flop, w.joules_per_byte / H100.joules_per_byte) for w in wrong
    }  # fmt: skip
    assert ratios == {(2.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.0, 0.5)}


def test_bursts_leave_gaps_in_which_nobody_is_there() -> None:
    scenario = small("bursty")
    gaps = [b.seconds - a.seconds for a, b in pairwise(scenario.jobs)]
    assert max(gaps) > 10.0
    assert scenario.run.idle_joules > 10.0 * scenario.physics.idle_watts


def test_lengths_stay_within_their_bounds() -> None:
    dice = random.Random(1)
    for lengths in (workload.CHAT, workload.SHORT_ANSWERS, workload.LONG_PROMPTS):
        for prompt, cached, generation in (lengths.draw(dice) for _ in range(500)):
            assert 0 <= cached < prompt <= lengths.prompt[2]
            assert 1 <= generation <= lengths.generation[2]


def test_long_answers_take_a_minute_and_the_widest_a_second_to_twenty_minutes() -> None:
    spans = [truth.last - truth.start for truth in small("long_answers").run.served]
    assert min(spans) > 50.0
    wide = [truth.last - truth.start for truth in small("one_second_to_twenty_minutes").run.served]
    assert min(wide) < 2.0
    assert 400.0 < max(wide) < 1_300.0


LINE = Curve([0.0, 10.0, 20.0], [0.0, 1_000.0, 1_500.0])


def test_a_perfect_meter_reads_the_curve_in_its_resolution() -> None:
    found = readings(LINE, Meter(jitter=0.0), 1.0, random.Random(1))
    assert len(found) == 201
    assert found[-1] == (20.0, 1_500_000_000)
    assert all(microjoules % 1_000 == 0 for _, microjoules in found)


def test_a_stale_counter_moves_at_its_own_phase() -> None:
    found = readings(LINE, Meter(interval_seconds=0.02, moves_seconds=0.1), 1.0, random.Random(1))
    moved = [after[0] for before, after in pairwise(found) if after[1] != before[1]]
    assert len(moved) == pytest.approx(len(found) / 5, rel=0.03)
    # Each move is seen within a poll of it.
    assert all(0.07 < after - before < 0.13 for before, after in pairwise(moved))


def test_gain_lag_and_noise() -> None:
    scaled = readings(LINE, Meter(jitter=0.0), 1.05, random.Random(1))
    assert scaled[100][1] == pytest.approx(1_050e6, rel=1e-5)
    late = readings(LINE, Meter(jitter=0.0, lag_seconds=0.5), 1.0, random.Random(1))
    assert late[50][1] == pytest.approx(450e6, rel=1e-5)
    noisy = readings(LINE, Meter(jitter=0.0, noise=0.03), 1.0, random.Random(1))
    steps = [(b[1] - a[1]) / 10e6 for a, b in pairwise(noisy[:101])]
    assert 0.02 < (sum((step - 1) ** 2 for step in steps) / 100) ** 0.5 < 0.04
    assert all(before[1] <= after[1] for before, after in pairwise(noisy))


def test_reads_come_at_irregular_moments() -> None:
    seconds = [moment for moment, _ in readings(LINE, Meter(jitter=0.5), 1.0, random.Random(1))]
    assert len({round(b - a, 6) for a, b in pairwise(seconds)}) > 100


def test_the_same_meter_as_a_power_gauge() -> None:
    found = readings(LINE, Meter(jitter=0.0), 1.0, random.Random(1))
    assert [power for _, power in watts(found)][:99] == pytest.approx([100.0] * 99, rel=1e-3)


def test_a_walk_stands_still_outside_the_curve() -> None:
    walk = Walk(LINE)
    assert [walk.joules(moment) for moment in (-1.0, 5.0, 10.0, 15.0, 99.0)] == [0.0, 500.0, 1_000.0, 1_250.0, 1_500.0]


def test_devices_of_a_group_share_what_the_meters_say() -> None:
    scenario = small("tensor_parallel")
    assert len(scenario.meters.names) in (2, 4)
    last = {item.device: item.microjoules for item in scenario.items if isinstance(item, EnergyReading)}
    whole = scenario.run.curve.joules[-1] * scenario.meters.gain * 1e6
    assert sum(last.values()) == pytest.approx(whole, rel=1e-3)

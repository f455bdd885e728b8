"""One engine in virtual time: what its steps do, and where their joules go."""

from itertools import count

import pytest

from jouled_collectors.twin.load import Arrival, Lengths, Load, arrivals
from jouled_collectors.twin.physics import LLAMA_8B, ONE_GPU, seeded, shared_joules
from jouled_collectors.twin.scheduler import EngineSimulation, EngineSpec, Track

SECOND = 1_000_000_000
SPEC = EngineSpec(
    name="engine",
    architecture=LLAMA_8B,
    machine=ONE_GPU,
    devices=("gpu0",),
    idle_watts=90.0,
    uplift_watts=60.0,
    max_batch=4,
)


def asked(*requests):
    """Arrivals of (seconds, prompt, output, leaves_after), then nobody for ever."""
    numbers = count(1)
    for seconds, prompt, output, leaves in (*requests, (1e6, 1, 1, None)):
        number = next(numbers)
        yield Arrival(
            id=f"r{number}",
            trace_id=number.to_bytes(16),
            span_id=number.to_bytes(8),
            parent_span_id=number.to_bytes(8),
            arrival_ns=round(seconds * SECOND),
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=2048,
            leaves_after=leaves,
        )


def engine(*requests):
    return EngineSimulation(SPEC, asked(*requests), seeded("test"), 0)


def run(simulation, seconds):
    simulation.advance(round(seconds * SECOND))
    return {truth.request.arrival.id: truth for truth in simulation.take_ended()}


def loaded(share_per_second, seconds, seed=1, aborted=0.02):
    load = Load(lengths=Lengths(), aborted=aborted)
    asked_for = arrivals(load, share_per_second, 0, seeded(seed), seeded(seed, "ids"))
    simulation = EngineSimulation(SPEC, asked_for, seeded(seed, "steps"), 0)
    simulation.advance(round(seconds * SECOND))
    return simulation, simulation.take_ended()


def measured_joules(simulation, t_ns):
    dynamic, busy = simulation.track.at(t_ns)
    return dynamic + SPEC.idle_watts * t_ns * 1e-9 + SPEC.uplift_watts * busy


def idle_joules(simulation, t_ns):
    return SPEC.idle_watts * (t_ns * 1e-9 - simulation.track.at(t_ns)[1])


def test_a_lone_request_pays_for_everything_but_idle_time():
    simulation = engine((1.0, 500, 20, None))
    (truth,) = run(simulation, 10).values()
    paid = truth.microjoules / 1e6
    assert paid == pytest.approx(measured_joules(simulation, 10 * SECOND) - idle_joules(simulation, 10 * SECOND))
    assert simulation.steps == 20
    assert truth.decode_uj > 19 * shared_joules(LLAMA_8B, ONE_GPU) * 1e6


def test_identical_twins_pay_the_same_and_less_than_alone():
    together = run(engine((1.0, 500, 50, None), (1.0, 500, 50, None)), 10)
    alone = run(engine((1.0, 500, 50, None)), 10)
    assert together["r1"].microjoules == together["r2"].microjoules
    assert together["r1"].microjoules < 0.8 * alone["r1"].microjoules


@pytest.mark.parametrize("at_seconds", [3.0, 20.0, 47.123456789])
def test_every_joule_has_an_owner_at_any_moment(at_seconds):
    simulation, ended = loaded(2.0, at_seconds)
    t_ns = round(at_seconds * SECOND)
    owned = sum(truth.microjoules for truth in ended) / 1e6
    owned += simulation.in_flight_joules(t_ns) + idle_joules(simulation, t_ns)
    assert owned == pytest.approx(measured_joules(simulation, t_ns), abs=2e-6 * (len(ended) + 1))


def test_an_idle_engine_draws_idle_power_only():
    simulation = engine()
    assert run(simulation, 100) == {}
    assert measured_joules(simulation, 100 * SECOND) == pytest.approx(9000.0)
    assert simulation.steps == 0


def test_a_long_prompt_is_computed_in_chunks_beside_the_decoding_ones():
    simulation = engine((0.0, 100, 400, None), (1.0, 5000, 2, None))
    ended = run(simulation, 20)
    long = ended["r2"].request
    assert 3 * 0.05 < (long.first_token_ns - long.scheduled_ns) * 1e-9 < 3 * 0.1
    assert simulation.tallies.iteration_tokens.sum == 5100 + 402


def test_a_full_batch_makes_others_wait_in_order():
    simulation = engine(*[(0.0, 100, 100, None)] * 6)
    simulation.advance(SECOND // 2)
    assert (simulation.running, simulation.waiting) == (4, 2)
    ended = run(simulation, 20)
    last_of_first_four = max(ended[f"r{n}"].request.last_token_ns for n in range(1, 5))
    assert ended["r5"].request.scheduled_ns == last_of_first_four
    assert ended["r5"].request.scheduled_ns > ended["r5"].request.queued_ns


def test_a_request_that_does_not_fit_the_cache_waits():
    capacity = ONE_GPU.kv_capacity_tokens
    simulation = engine((0.0, capacity - 200, 100, None), (0.0, 100, 100, None))
    simulation.advance(SECOND)
    assert (simulation.running, simulation.waiting) == (1, 1)


def test_a_client_that_leaves_is_in_the_counters_but_in_no_histogram_of_requests():
    simulation = engine((0.0, 300, 100, 40), (0.0, 300, 100, None))
    ended = run(simulation, 20)
    left, stayed = ended["r1"], ended["r2"]
    assert (left.aborted, stayed.aborted) == (True, False)
    assert (left.request.generated, stayed.request.generated) == (40, 100)
    assert left.microjoules > 0
    tallies = simulation.tallies
    assert (tallies.prompt_tokens, tallies.generation_tokens) == (600, 140)
    assert sum(tallies.finished.values()) == tallies.e2e.count == tallies.request_generation_tokens.count == 1
    assert tallies.finished["abort"] == 0
    assert tallies.time_to_first_token.count == 2


def test_an_answer_of_one_token_has_no_decode():
    (truth,) = run(engine((0.0, 50, 1, None)), 5).values()
    assert truth.decode_uj == 0
    assert truth.request.first_token_ns == truth.request.last_token_ns


def test_tokens_add_up():
    simulation, ended = loaded(2.0, 60.0)
    tallies = simulation.tallies
    generated = sum(truth.request.generated for truth in ended)
    assert 0 < tallies.generation_tokens - generated < 4 * 2048
    assert tallies.iteration_tokens.count == simulation.steps
    assert tallies.inter_token_latency.count + tallies.time_to_first_token.count == tallies.generation_tokens


def test_the_same_seed_repeats_and_slices_do_not_matter():
    _, once = loaded(2.0, 30.0)
    load = Load(lengths=Lengths())
    simulation = EngineSimulation(SPEC, arrivals(load, 2.0, 0, seeded(1), seeded(1, "ids")), seeded(1, "steps"), 0)
    for tenth in range(1, 301):
        simulation.advance(tenth * SECOND // 10)
    assert simulation.take_ended() == once
    assert loaded(2.0, 30.0, seed=2)[1] != once


def test_the_track_interpolates_forgets_the_past_and_is_flat_beyond_its_ends():
    track = Track(0)
    for n in range(1, 3000):
        track.append(n * 10, float(n), n / 2)
    assert track.at(29_985) == (2998.5, 1499.25)
    assert track.at(10**9) == (2999.0, 1499.5)
    assert 0 < track.at(0)[0] <= 3000 - 512


def test_bursts_leave_silence_in_every_other_stretch():
    load = Load(burst_seconds=5.0)
    asked_for = arrivals(load, 10.0, 0, seeded(1), seeded(2))
    at_seconds = [next(asked_for).arrival_ns * 1e-9 for _ in range(500)]
    assert all(second % 10 <= 5 for second in at_seconds)
    assert at_seconds == sorted(at_seconds)
    assert 35 < at_seconds[-1] < 65

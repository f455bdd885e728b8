"""The attribution against an oracle that shares neither its code nor its affine axiom: exact Shapley values."""

import random
from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise

import pytest
from tests.core.oracle_shapley import (
    MEMBERS_MAX,
    History,
    Machine,
    Workload,
    shapley,
    shapley_by_permutations,
    simulate,
)
from tests.core.scenario import SECOND, START, gpu, run, when

from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading
from jouled.model.requests import RequestEvent

MACHINE = Machine()
SEEDS = range(4)


def joules_at(history: History, seconds: float) -> float:
    course = history.course
    right = bisect_right(course, seconds, key=lambda point: point[0])
    if right >= len(course):
        return course[-1][1]
    (t0, e0, *_), (t1, e1, *_) = course[max(right - 1, 0)], course[right]
    return e0 + (e1 - e0) * (seconds - t0) / (t1 - t0)


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def readings(history: History, rng: random.Random) -> list[EnergyReading]:
    """A counter of whole millijoules, read about every 100 ms."""
    seconds, told = 0.0, []
    while seconds < history.course[-1][0]:
        told.append(EnergyReading("gpu0", at(seconds), 1000 * int(1000 * joules_at(history, seconds))))
        seconds += rng.uniform(0.09, 0.11)
    return told


def samples(history: History, every: float = 5.0) -> list[EngineSample]:
    told = []
    for k in range(int(history.course[-1][0] / every) + 1):
        seconds = k * every
        _, _, steps, prompts, tokens = history.course[
            max(bisect_right(history.course, seconds, key=lambda point: point[0]) - 1, 0)
        ]
        running = sum(1 for r in history.requests if r.start <= seconds < r.last)
        told.append(
            EngineSample(
                engine="e",
                t_ns=at(seconds),
                steps=steps,
                prompt_tokens=prompts,
                generation_tokens=tokens,
                requests_running=running,
                requests_waiting=0,
            )
        )
    return told


def events(history: History) -> list[RequestEvent]:
    return [
        RequestEvent(
            engine="e",
            id=r.name,
            arrival_ns=at(r.arrival),
            scheduled_ns=at(r.start),
            first_token_ns=at(r.first),
            last_token_ns=at(r.last),
            prompt_tokens=r.prompt,
            generation_tokens=r.generated,
        )
        for r in history.requests
    ]


def estimate(history: History, seed: int) -> dict[str, float]:
    """Joules by request, as the daemon's own path tells them."""
    engine = Engine(
        name="e",
        model="x",
        devices=("gpu0",),
        parameters=MACHINE.parameters,
        weight_bytes=MACHINE.weight_bytes,
        layers=MACHINE.layers,
        hidden_size=MACHINE.hidden,
        kv_bytes_per_token=MACHINE.kv_bytes_per_token,
    )
    device = gpu(idle_watts=MACHINE.idle_watts, uplift_watts=MACHINE.uplift_watts, max_watts=1400.0)
    timed = [*readings(history, random.Random(seed)), *samples(history), *events(history)]
    result = run([device, engine, *sorted(timed, key=when)])
    assert result.book.open_uj == 0
    return {name: receipt.joules for name, receipt in result.receipts.items()}


def wmape(told: dict[str, float], history: History) -> float:
    """Weighted mean absolute percentage error against the oracle, in percent."""
    return 100 * sum(abs(told[r.name] - r.joules) for r in history.requests) / sum(r.joules for r in history.requests)


def test_shapley_of_an_affine_cost_is_own_work_and_an_equal_share():
    rng = random.Random(5)
    for members in range(1, MEMBERS_MAX + 1):
        shared = Fraction(rng.randint(1, 9999), 7)
        own = [Fraction(rng.randint(0, 9999), 11) for _ in range(members)]
        costs = [Fraction(0)]
        costs += [shared + sum(b for i, b in enumerate(own) if subset >> i & 1) for subset in range(1, 1 << members)]
        assert shapley(costs, members) == [b + shared / members for b in own]


def test_shapley_by_subsets_is_shapley_by_permutations():
    rng = random.Random(6)
    members = 6
    costs = [Fraction(0), *(Fraction(rng.randint(0, 999)) for _ in range(1, 1 << members))]
    by_order = shapley_by_permutations(lambda joined: costs[sum(1 << i for i in joined)], members)
    assert shapley(costs, members) == by_order
    assert sum(by_order) == costs[-1]


def test_the_oracle_shares_all_energy_and_is_not_affine():
    """Two chunks that each hide behind the reading of the weights, but not together."""
    chunks = [MACHINE.member(100, 0), MACHINE.member(100, 500)]
    both = MACHINE.step_joules(chunks[0][0] + chunks[1][0], chunks[0][1] + chunks[1][1])
    alone = [MACHINE.step_joules(*chunk) for chunk in chunks]
    assert both > 1.03 * (sum(alone) - MACHINE.step_joules(0.0, 0.0))
    assert sum(MACHINE.shares(chunks)) == pytest.approx(both, rel=1e-12)
    history = simulate(MACHINE, Workload(requests=20), 1)
    idle_seconds = sum(after[0] - before[0] for before, after in pairwise(history.course) if after[2] == before[2])
    busy = history.course[-1][1] - MACHINE.idle_watts * idle_seconds
    assert sum(r.joules for r in history.requests) == pytest.approx(busy, rel=1e-9)


WORKLOADS = {
    # name: (workload, wMAPE allowed against Shapley, against own work + equal share, how much better than 1/B)
    "chat": (Workload(requests=80, per_second=0.5, prompt=(50, 800), generated=(40, 400)), 3.0, 1.0, 1.6),
    "mixed": (Workload(), 12.0, 4.5, 1.5),
    "bursts with idle gaps": (Workload(per_second=1.5, burst=12, pause_seconds=8.0), 16.0, 6.0, 1.5),
    "long prompts": (Workload(per_second=0.35, prompt=(1500, 8000), generated=(8, 160)), 19.0, 4.5, 1.8),
    "short answers": (Workload(per_second=1.5, prompt=(50, 1500), generated=(1, 12)), 16.0, 9.5, 1.1),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_requests_get_what_they_owe_by_shapley(name):
    """Measured over seeds 0 to 11 (median, worst wMAPE in percent, priors from the configuration):

    | load | to Shapley | to own work + equal share | 1/B(t) to Shapley |
    |---|---|---|---|
    | chat | 1.5, 1.9 | 0.4, 0.5 | 3.1, 3.8 |
    | mixed | 8.5, 10.3 | 2.4, 3.3 | 17.3, 21.3 |
    | bursts with idle gaps | 9.0, 12.9 | 2.8, 4.5 | 19.2, 25.2 |
    | long prompts | 14.0, 15.1 | 2.6, 2.9 | 31.1, 34.4 |
    | short answers | 8.1, 12.3 | 3.6, 7.3 | 12.3, 20.3 |

    What is missing to Shapley is mostly the axiom: a prompt in a step makes it longer for all members, Shapley has the
    prompt pay for that, the method shares static power by residence. The second column is the error of estimation.
    """
    workload, band, affine_band, better = WORKLOADS[name]
    for seed in SEEDS:
        history = simulate(MACHINE, workload, seed)
        told = estimate(history, seed)
        error = wmape(told, history)
        to_affine = sum(abs(told[r.name] - r.affine_joules) for r in history.requests)
        assert error < band, seed
        assert 100 * to_affine / sum(told.values()) < affine_band, seed
        assert wmape({r.name: r.equal_share_joules for r in history.requests}, history) > better * error, seed

"""A case with a seed: what is drawn, what is simulated, and what is told of it."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from math import sqrt

from bench import recordings
from bench.oracle import parts, workload
from bench.oracle.cases import Case
from bench.oracle.engine import Run, Settings, simulate
from bench.oracle.parts import Model, Physics
from bench.oracle.telling import Meters, inventory, read_meters, told
from bench.oracle.workload import Job, Lengths, log_uniform
from msgspec import Struct
from msgspec.structs import replace

from jouled.app.runtime.recording.recording import Item


class Scenario(Struct, frozen=True, kw_only=True):
    """A case with a seed: the truth and what is told of it."""

    case: Case
    seed: int
    jobs: Sequence[Job]
    run: Run
    physics: Physics
    model: Model
    meters: Meters
    items: Sequence[Item]


def build(case: Case, seed: int, requests: int) -> Scenario:
    """Simulate a case. The same case, seed and number of requests give the same, to the last digit."""
    dice = random.Random(f"{case.beside or case.name}/{seed}")
    devices = dice.choice(case.devices)
    model = dice.choice(case.models) if case.models else parts.unknown_mixture(dice)
    physics = parts.draw(case.accelerator, devices, dice, mismatch=case.mismatch)
    if case.cap_share:
        physics = parts.capped(physics, case.cap_share)
    jobs = _told(_jobs(case, requests, model, physics, dice), case, dice)
    settings = Settings(
        step_tokens=dice.choice((1_024, 2_048, 4_096)),
        most_requests=dice.choice((64, 128, 256)),
        page_phase=dice.uniform(0.0, 5.0),
        lead_seconds=case.lead_seconds,
    )
    run = simulate(jobs, model, physics, settings)
    meters = read_meters(run, case.meter, devices, dice)
    items = [
        *inventory(model, case.accelerator, physics, meters, case.telling),
        *told(jobs, run, meters, case.telling, case.lead_seconds, dice),
    ]
    return Scenario(
        case=case, seed=seed, jobs=jobs, run=run, physics=physics, model=model, meters=meters, items=items
    )  # fmt: skip


def _jobs(case: Case, requests: int, model: Model, physics: Physics, dice: random.Random) -> list[Job]:
    if case.trace:
        return [
            Job(arrival.seconds, arrival.prompt_tokens, 0, max(arrival.generation_tokens, 1))
            for arrival in islice(recordings.trace(case.trace), requests)
        ]
    batch = log_uniform(dice, *case.batch)
    lengths = _lengths(case, batch, model, physics)
    rate = _rate(batch, lengths, model, physics, random.Random(dice.random()))
    make: Callable[..., list[Job]] = workload.poisson
    if case.gap_seconds:
        make = partial(workload.bursty, gap_seconds=case.gap_seconds)
    return make(requests, rate, lengths, dice)


def _rate(batch: float, lengths: Lengths, model: Model, physics: Physics, dice: random.Random) -> float:
    """Arrivals per second that keep about so many requests in flight, by Little's law."""
    drawn = [lengths.draw(dice) for _ in range(500)]
    computed = sum(prompt - cached for prompt, cached, _ in drawn) / len(drawn)
    generated = sum(generation for _, _, generation in drawn) / len(drawn)
    context = sum(generation * (prompt + generation / 2) for prompt, _, generation in drawn) / sum(g for *_, g in drawn)
    moved = model.bytes_read(round(batch)) + batch * context * model.kv_bytes_per_token
    decode_seconds = generated * (moved / physics.bytes_per_second + physics.launch_seconds)
    prefill_seconds = 2.0 * model.active_parameters * computed / physics.flops_per_second + physics.launch_seconds
    # Decodes stand still for a part of the time, the part in which prefills run.
    return batch / (decode_seconds + batch * prefill_seconds)


def _told(jobs: list[Job], case: Case, dice: random.Random) -> list[Job]:
    """Some events are lost; some requests are aborted, and of those vLLM tells nobody."""
    found = []
    for job in jobs:
        if dice.random() < case.aborted:
            found.append(replace(job, told=False, generation_tokens=max(1, int(job.generation_tokens * dice.random()))))
        else:
            found.append(replace(job, told=dice.random() >= case.untold))
    return found


def _lengths(case: Case, batch: float, model: Model, physics: Physics) -> Lengths:
    """The case's lengths; where answers are given in seconds, as tokens at the speed of such a batch.

    The longer the answers, the longer a token takes: length and speed are found together.
    """
    if case.answer_seconds is None:
        return case.lengths
    least, most = case.answer_seconds
    token_seconds = physics.launch_seconds + model.weight_bytes / physics.bytes_per_second
    for _ in range(30):
        # A log-uniform length, met at a random moment, has so many tokens behind it on average.
        context = case.lengths.prompt[0] + (least + most) / token_seconds / 4
        moved = model.bytes_read(round(batch)) + batch * context * model.kv_bytes_per_token
        token_seconds = sqrt(token_seconds * (physics.launch_seconds + moved / physics.bytes_per_second))
    return replace(case.lengths, generation_between=(least / token_seconds, most / token_seconds))

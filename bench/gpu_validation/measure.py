"""The run itself: idle, grid, load, in this order, on whatever executes steps."""

import random
from collections.abc import Sequence

from bench.gpu_validation.load import Engine, Scheduler, arrivals, mean_tokens, rate
from bench.gpu_validation.nvml import Clock, Counter
from bench.gpu_validation.plan import CONCURRENCY, Plan, Spec, grid
from bench.gpu_validation.records import NO_WORK, Block, Measured, Point, step_work


def measure(plan: Plan, engine: Engine, counter: Counter, clock: Clock) -> Measured:
    """Everything that needs the GPU; somebody polls the counter meanwhile. What the run is about is left empty."""
    clock.sleep(plan.idle_settle_seconds)
    start_ns = clock.now_ns()
    clock.sleep(plan.idle_seconds)
    idle_ns = (start_ns, clock.now_ns())
    specs = grid(engine.slots, engine.max_context)
    points = [_point(spec, plan, engine, clock) for spec in specs]
    scheduler = Scheduler(engine, clock)
    blocks = _blocks(plan, engine, scheduler, clock, _step_seconds(specs, points))
    return Measured(
        about={},
        model={},
        limit_watts=None,
        idle_ns=idle_ns,
        points=points,
        blocks=blocks,
        requests=scheduler.requests,
        steps=scheduler.steps,
        moves=counter.moves,
    )


def _point(spec: Spec, plan: Plan, engine: Engine, clock: Clock) -> Point:
    """The same step over and over; nobody's context grows."""
    prompt = (engine.slots - 1, spec.prompt_tokens) if spec.prompt_tokens else None
    decode = [(slot, spec.context) for slot in range(spec.batch)]
    once = step_work([spec.context] * spec.batch, spec.prompt_tokens)
    end_ns = clock.now_ns() + round(plan.settle_seconds * 1e9)
    while clock.now_ns() < end_ns:
        engine.step(decode, prompt)
    start_ns = clock.now_ns()
    work = NO_WORK
    while clock.now_ns() < start_ns + round(plan.point_seconds * 1e9):
        engine.step(decode, prompt)
        work = work.plus(once)
    return Point(spec.label, start_ns, clock.now_ns(), work)


def _step_seconds(specs: Sequence[Spec], points: Sequence[Point]) -> tuple[float, float]:
    """Seconds of a half-full decode step, and what a typical prompt takes."""
    each = {
        spec: (point.end_ns - point.start_ns) / 1e9 / point.work.steps
        for spec, point in zip(specs, points, strict=True)
    }
    decode = sorted((spec.batch, spec.context, seconds) for spec, seconds in each.items() if not spec.prompt_tokens)
    prompt = max((spec.prompt_tokens, seconds) for spec, seconds in each.items() if not spec.batch)
    return decode[len(decode) // 2][2], prompt[1] * mean_tokens()[0] / prompt[0]


def _blocks(
    plan: Plan, engine: Engine, scheduler: Scheduler, clock: Clock, step_seconds: tuple[float, float]
) -> list[Block]:
    blocks = []
    dice = random.Random(plan.seed)
    clock.sleep(plan.gap_seconds / 2)
    for number, share in enumerate(CONCURRENCY):
        name = f"block{number}"
        start_ns = clock.now_ns()
        per_second = rate(max(share * engine.slots, 1), *step_seconds)
        coming = list(arrivals(per_second, plan.block_seconds, engine.max_context, dice))
        scheduler.serve(coming, name)
        blocks.append(Block(name, start_ns, clock.now_ns()))
        clock.sleep(plan.gap_seconds)
    return blocks

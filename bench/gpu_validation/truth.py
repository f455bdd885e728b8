"""What every request owes by the step table: its own part, 1/|S| of what a step shares, its static power."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.gpu_validation.records import NO_WORK, Curve, Request, Step, Work, step_work
from bench.gpu_validation.step_table import StepTable


@dataclass
class Parts:
    """Joules of one request."""

    prefill: float = 0.0
    decode: float = 0.0
    resident: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.prefill + self.decode + self.resident


def works(requests: Sequence[Request], steps: Sequence[Step]) -> Iterator[tuple[Step, list[int], Work]]:
    """Each step with the context of each of its decoding members (tokens attended to) and its work."""
    generated = [0] * len(requests)
    for step in steps:
        contexts = [requests[i].prompt_tokens + generated[i] for i in step.decode]
        prompt_tokens = 0
        for i in step.decode:
            generated[i] += 1
        if step.prefill is not None:
            prompt_tokens = requests[step.prefill].prompt_tokens
            generated[step.prefill] += 1
        yield step, contexts, step_work(contexts, prompt_tokens)


def shapley(table: StepTable, requests: Sequence[Request], steps: Sequence[Step]) -> list[Parts]:
    """Joules of every request: the Shapley value of an affine step, and equal parts of the static power by time."""
    owed = [Parts() for _ in requests]
    units = table.unit_joules
    for step, contexts, work in works(requests, steps):
        members = len(step.decode) + (step.prefill is not None)
        shared = units.steps / members
        static = table.static_watts * (step.end_ns - step.start_ns) / 1e9 / members
        for i, context in zip(step.decode, contexts, strict=True):
            owed[i].decode += shared + units.decode_tokens + units.context_tokens * context
            owed[i].resident += static
        if step.prefill is not None:
            own = units.prompt_tokens * work.prompt_tokens + units.prompt_pairs * work.prompt_pairs
            owed[step.prefill].prefill += shared + own
            owed[step.prefill].resident += static
    return owed


def work_between(requests: Sequence[Request], steps: Sequence[Step], start_ns: int, end_ns: int) -> Work:
    """The work of the steps that began in [start, end)."""
    total = NO_WORK
    for step, _, work in works(requests, steps):
        if start_ns <= step.start_ns < end_ns:
            total = total.plus(work)
    return total


def equal_split(curve: Curve, requests: Sequence[Request]) -> list[float]:
    """The yardstick 1/B(t): whatever the meter shows at a moment, shared equally by who is in service then."""
    changes = sorted([(r.scheduled_ns, 1) for r in requests] + [(r.last_ns, -1) for r in requests])
    each, before_ns, active = 0.0, changes[0][0] if changes else 0, 0
    each_by_time: dict[int, float] = {}
    for t_ns, change in changes:
        if active:
            each += curve.joules(before_ns, t_ns) / active
        each_by_time[t_ns] = each
        before_ns, active = t_ns, active + change
    return [each_by_time[r.last_ns] - each_by_time[r.scheduled_ns] for r in requests]

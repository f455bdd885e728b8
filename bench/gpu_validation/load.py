"""Mixed load: Poisson arrivals of short and long requests, and the continuous-batching scheduler that serves them."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from bench.gpu_validation.nvml import Clock
from bench.gpu_validation.records import Request, Step

KINDS = {"short": (128, 64), "long": (1024, 256)}
"""Median prompt and output tokens; each request is one or the other with equal chance."""
SPREAD = 0.5
"""Standard deviation of the logarithm of both."""


class Engine(Protocol):
    """What executes steps."""

    slots: int
    max_context: int

    def step(self, decode: Sequence[tuple[int, int]], prompt: tuple[int, int] | None) -> None:
        """One step, to its end: (slot, context) of those that decode, (slot, tokens) of the prompt computed."""


class Arrival(NamedTuple):
    """A request to come."""

    seconds: float
    kind: str
    prompt_tokens: int
    generation_tokens: int


def mean_tokens() -> tuple[float, float]:
    """Typical prompt and output tokens over both kinds."""
    prompts, outputs = zip(*KINDS.values(), strict=True)
    return sum(prompts) / len(prompts), sum(outputs) / len(outputs)


def rate(in_service: float, decode_seconds: float, prompt_seconds: float) -> float:
    """Arrivals a second that keep so many in service, where a step takes that long, and longer with a prompt in it."""
    return in_service / (mean_tokens()[1] * decode_seconds + in_service * prompt_seconds)


def arrivals(per_second: float, seconds: float, max_context: int, dice: random.Random) -> Iterator[Arrival]:
    """Independent arrivals until the time is over; prompt and output fit a slot."""
    now = dice.expovariate(per_second)
    while now < seconds:
        kind = dice.choice(list(KINDS))
        prompt, output = (round(median * dice.lognormvariate(0, SPREAD)) for median in KINDS[kind])
        yield Arrival(now, kind, min(max(prompt, 4), max_context // 2), min(max(output, 1), max_context // 2 - 1))
        now += dice.expovariate(per_second)


class _Active:
    """A request in a slot."""

    def __init__(self, index: int, slot: int, request: Request) -> None:
        self.index, self.slot, self.request = index, slot, request
        self.generated = 0
        self.first_ns = 0

    @property
    def context(self) -> int:
        """Tokens that its next token attends to, the newest one included."""
        return self.request.prompt_tokens + self.generated


class Scheduler:
    """First come, first served: each step computes at most one waiting prompt, whole, and a token of everyone else."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.requests: list[Request] = []
        self.steps: list[Step] = []
        self._engine = engine
        self._clock = clock
        self._free = list(range(engine.slots))
        self._running: list[_Active] = []
        self._waiting: deque[int] = deque()
        self._busy_since_ns: int | None = None

    def serve(self, coming: Sequence[Arrival], block: str) -> None:
        """Serve a block to its last token."""
        start_ns = self._clock.now_ns()
        queue = deque(coming)
        while queue or self._waiting or self._running:
            now_ns = self._clock.now_ns()
            while queue and start_ns + round(queue[0].seconds * 1e9) <= now_ns:
                self._enqueue(queue.popleft(), start_ns, block)
            if self._waiting or self._running:
                self._step()
            else:
                self._clock.sleep(max(start_ns + round(queue[0].seconds * 1e9) - now_ns, 1) / 1e9)
        self._busy_since_ns = None

    def _enqueue(self, arrival: Arrival, start_ns: int, block: str) -> None:
        arrival_ns = start_ns + round(arrival.seconds * 1e9)
        number = len(self.requests)
        # The times to come are filled in when they have come.
        request = Request(f"{block}-{number:05d}", arrival.kind, arrival_ns, 0, 0, 0, *arrival[2:])
        self.requests.append(request)
        self._waiting.append(number)

    def _step(self) -> None:
        # What the scheduler itself takes between two steps is time of the next one.
        start_ns = self._busy_since_ns or self._clock.now_ns()
        new = self._admit(start_ns)
        members = list(self._running)
        prompt = (new.slot, new.request.prompt_tokens) if new else None
        self._engine.step([(one.slot, one.context) for one in members], prompt)
        end_ns = self._clock.now_ns()
        decode = tuple(one.index for one in members)
        self.steps.append(Step(start_ns, end_ns, decode, new.index if new else None))
        if new:
            new.first_ns = end_ns
            self._running.append(new)
        for one in list(self._running):
            one.generated += 1
            if one.generated == one.request.generation_tokens:
                self._end(one, end_ns)
        self._busy_since_ns = end_ns if self._running or self._waiting else None

    def _admit(self, now_ns: int) -> _Active | None:
        if not self._waiting or not self._free:
            return None
        index = self._waiting.popleft()
        scheduled_ns = max(now_ns, self.requests[index].arrival_ns)
        return _Active(index, self._free.pop(), self.requests[index]._replace(scheduled_ns=scheduled_ns))

    def _end(self, one: _Active, now_ns: int) -> None:
        self._running.remove(one)
        self._free.append(one.slot)
        self.requests[one.index] = one.request._replace(first_ns=one.first_ns, last_ns=now_ns)

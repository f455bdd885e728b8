"""A continuous-batching engine, step by step, and the true joules of every request in it.

joules = static · t + e_F · FLOPs + e_B · bytes. A request owes its own FLOPs and KV bytes, and in every step it is in
an equal share of what the step costs anyway: weights, launch, and static power for as long as the step takes.

A step costs the same work whatever is in it: shares are differences of running sums, and the own work of a decode is
an arithmetic series, so nothing is booked token by token.
"""

from collections import deque
from collections.abc import Sequence

from bench.oracle.parts import Model, Physics
from bench.oracle.workload import Job
from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True):
    """How the engine schedules, and how long the recording goes on before and after it has work."""

    step_tokens: int = 2_048
    most_requests: int = 128
    page_seconds: float = 5.0
    page_phase: float = 0.0
    lead_seconds: float = 5.0
    tail_seconds: float = 40.0


class Served(Struct):
    """The truth of a request: seconds of service start, first and last token, and its joules.

    `prefill` is up to the first token, `decode` after it, both without static power, which is `resident`.
    """

    start: float = 0.0
    first: float = 0.0
    last: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    resident: float = 0.0

    @property
    def joules(self) -> float:
        """All that it owes."""
        return self.prefill + self.decode + self.resident


class Page(Struct, frozen=True, gc=False):
    """What the engine's page says: the state after the last step that has ended."""

    seconds: float
    steps: int
    prompt_tokens: int
    generation_tokens: int
    running: int
    waiting: int


class Curve(Struct):
    """Cumulative joules of all devices over seconds, linear between its points."""

    seconds: list[float]
    joules: list[float]


class Run(Struct, frozen=True, kw_only=True):
    """What came of a workload. `served` is in the order of the jobs."""

    served: Sequence[Served]
    curve: Curve
    pages: Sequence[Page]
    idle_joules: float


def simulate(jobs: Sequence[Job], model: Model, physics: Physics, settings: Settings) -> Run:
    """Serve all jobs, first come, first served; jobs are in the order of their arrival."""
    return _Engine(jobs, model, physics, settings).run()


class _Engine:
    def __init__(self, jobs: Sequence[Job], model: Model, physics: Physics, settings: Settings) -> None:
        self._jobs = jobs
        self._model = model
        self._physics = physics
        self._settings = settings
        self._prices = _Prices(model, physics)
        self._served = [Served() for _ in jobs]
        self._clock = _Clock(settings)
        self._arrived = self._admitted = 0
        self._prefilling: deque[_Prompt] = deque()
        self._decoding = self._contexts = 0  # how many decode, and the tokens of all their contexts
        self._finishing: dict[int, list[int]] = {}  # number of a step -> jobs whose last token it gives
        self._steps = self._prompt_tokens = self._generation_tokens = 0
        self._step_sum = self._static_sum = 0.0  # joules of one member, over all steps so far
        self._sums_at: dict[int, tuple[float, float]] = {}  # what those were when a job's phase began

    def run(self) -> Run:
        lead = self._settings.lead_seconds
        arrivals = [lead + job.seconds for job in self._jobs]
        while self._admitted < len(arrivals) or self._prefilling or self._decoding:
            if not self._prefilling and not self._decoding:
                self._idle_until(arrivals[self._admitted])
            while self._arrived < len(arrivals) and arrivals[self._arrived] <= self._clock.now:
                self._arrived += 1
            self._step()
        self._idle_until(self._clock.now + self._settings.tail_seconds)
        clock = self._clock
        return Run(served=self._served, curve=clock.curve, pages=clock.pages, idle_joules=clock.idle_joules)

    def _idle_until(self, seconds: float) -> None:
        if seconds > self._clock.now:
            joules = self._physics.idle_watts * (seconds - self._clock.now)
            self._clock.idle_joules += joules
            self._clock.advance(seconds, joules)

    def _step(self) -> None:
        chunks = self._schedule()
        members = self._decoding + len(chunks)
        tokens = self._decoding + sum(count for _, count in chunks)
        own, flops, moved = self._prices.decode(self._decoding, self._contexts)
        for prompt, count in chunks:
            joules, chunk_flops, chunk_bytes = self._prices.chunk(prompt.done, count)
            prompt.done += count
            self._served[prompt.job].prefill += joules
            own, flops, moved = own + joules, flops + chunk_flops, moved + chunk_bytes
        weights = self._model.bytes_read(tokens)
        shared = self._prices.shared(weights)
        seconds = self._prices.seconds(flops, moved + weights, own + shared)
        static = self._prices.static_watts * seconds
        self._clock.advance(self._clock.now + seconds, own + shared + static)
        self._step_sum += shared / members
        self._static_sum += static / members
        self._count_tokens(chunks)

    def _schedule(self) -> "list[tuple[_Prompt, int]]":
        """Decodes come first, one token each; what is left of the step goes to prompts in their order."""
        left = self._settings.step_tokens - self._decoding
        chunks: list[tuple[_Prompt, int]] = []
        for prompt in self._prefilling:
            count = min(left, prompt.tokens - prompt.done)
            chunks.append((prompt, count))
            left -= count
        while left > 0 and self._admitted < self._arrived and self._has_room():
            job = self._jobs[self._admitted]
            prompt = _Prompt(self._admitted, job.cached_tokens, job.prompt_tokens)
            self._served[self._admitted].start = self._clock.now
            self._sums_at[self._admitted] = self._step_sum, self._static_sum
            self._prefilling.append(prompt)
            self._admitted += 1
            count = min(left, prompt.tokens - prompt.done)
            chunks.append((prompt, count))
            left -= count
        return chunks

    def _has_room(self) -> bool:
        return self._decoding + len(self._prefilling) < self._settings.most_requests

    def _count_tokens(self, chunks: "list[tuple[_Prompt, int]]") -> None:
        self._steps += 1
        self._generation_tokens += self._decoding
        self._contexts += self._decoding
        for job in self._finishing.pop(self._steps, ()):
            self._decoding -= 1
            self._contexts -= self._jobs[job].prompt_tokens + self._jobs[job].generation_tokens
            self._end_decode(job)
        for prompt, _ in chunks:
            if prompt.done == prompt.tokens:
                self._prefilling.popleft()
                self._end_prefill(prompt.job)
        running = self._decoding + len(self._prefilling)
        waiting = self._arrived - self._admitted
        self._clock.shown = self._steps, self._prompt_tokens, self._generation_tokens, running, waiting

    def _end_prefill(self, number: int) -> None:
        job, served = self._jobs[number], self._served[number]
        step_sum, static_sum = self._sums_at.pop(number)
        served.first = served.last = self._clock.now
        served.prefill += self._step_sum - step_sum
        served.resident = self._static_sum - static_sum
        self._prompt_tokens += job.prompt_tokens
        self._generation_tokens += 1
        if job.generation_tokens > 1:
            self._sums_at[number] = self._step_sum, self._static_sum
            self._decoding += 1
            self._contexts += job.prompt_tokens + 1
            self._finishing.setdefault(self._steps + job.generation_tokens - 1, []).append(number)

    def _end_decode(self, number: int) -> None:
        job, served = self._jobs[number], self._served[number]
        step_sum, static_sum = self._sums_at.pop(number)
        served.last = self._clock.now
        # Token i + 1 is computed over a context of the prompt and i tokens, i from 1 to generated − 1.
        count = job.generation_tokens - 1
        contexts = count * job.prompt_tokens + count * job.generation_tokens // 2
        served.decode = self._prices.decode(count, contexts)[0] + self._step_sum - step_sum
        served.resident += self._static_sum - static_sum


class _Prompt(Struct):
    """A prompt under way: of which job, how many of its tokens are done, how many there are."""

    job: int
    done: int
    tokens: int


class _Clock:
    """Time, the energy curve, and the pages that fall into it."""

    def __init__(self, settings: Settings) -> None:
        self.now = 0.0
        self.curve = Curve([0.0], [0.0])
        self.pages: list[Page] = []
        self.idle_joules = 0.0
        self.shown = (0, 0, 0, 0, 0)
        self._joules = 0.0
        self._page_seconds = settings.page_seconds
        self._next_page = settings.page_phase

    def advance(self, seconds: float, joules: float) -> None:
        while self._next_page < seconds:
            self.pages.append(Page(self._next_page, *self.shown))
            self._next_page += self._page_seconds
        self.now = seconds
        self._joules += joules
        self.curve.seconds.append(seconds)
        self.curve.joules.append(self._joules)


class _Prices:
    """Joules, FLOPs and bytes of the parts of a step."""

    def __init__(self, model: Model, physics: Physics) -> None:
        self._physics = physics
        self._flops_per_token = 2.0 * model.active_parameters
        self._flops_per_context = 4.0 * model.layers * model.hidden_size
        self._kv_bytes = model.kv_bytes_per_token
        self.static_watts = physics.idle_watts + physics.uplift_watts

    def decode(self, tokens: int, contexts: int) -> tuple[float, float, float]:
        """Of one token each of several requests, given the sum of their contexts: (joules, FLOPs, bytes)."""
        flops = tokens * self._flops_per_token + contexts * self._flops_per_context
        moved = contexts * self._kv_bytes
        return self._joules(flops, moved), flops, moved

    def chunk(self, done: int, tokens: int) -> tuple[float, float, float]:
        """Of the next tokens of a prompt: every token attends to all before it, their KV is read once a chunk."""
        contexts = tokens * (done + 0.5 * tokens)
        flops = tokens * self._flops_per_token + contexts * self._flops_per_context
        moved = (done + tokens) * self._kv_bytes
        return self._joules(flops, moved), flops, moved

    def shared(self, weight_bytes: float) -> float:
        """Joules that a step costs whoever is in it, without static power."""
        return weight_bytes * self._physics.joules_per_byte + self._physics.launch_joules

    def seconds(self, flops: float, moved: float, dynamic_joules: float) -> float:
        """A step takes as long as its FLOPs or its bytes need, and longer where the power limit stretches it."""
        part = self._physics
        seconds = max(flops / part.flops_per_second, moved / part.bytes_per_second) + part.launch_seconds
        return max(seconds, dynamic_joules / (part.cap_watts - self.static_watts))

    def _joules(self, flops: float, moved: float) -> float:
        return flops * self._physics.joules_per_flop + moved * self._physics.joules_per_byte

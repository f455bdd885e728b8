"""One engine, step by step: a waiting queue, continuous batching, chunked prefill. Pure, in virtual time.

A step takes one token of every decoding request and fills the rest of its token budget with prompt chunks, first
come, first served. Everything that a step will do is known when it starts, so time can stand anywhere inside it.

The truth of a request: its own FLOPs and KV traffic, an equal share of each step it was in (weights and launch), and
an equal share of static power while it was resident. Decode work is booked in closed form and shares as differences
of running sums, so a step costs the same however many requests decode in it.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from random import Random

from msgspec import Struct

from jouled_collectors.twin.load import Arrival
from jouled_collectors.twin.physics import (
    Architecture,
    Machine,
    decode_work,
    joules,
    prefill_work,
    shared_joules,
    step_seconds,
)
from jouled_collectors.twin.tallies import Tallies

_STEP_JITTER = 0.02
_TOKENISE_NS = 1_500_000
_TOKENISE_NS_PER_TOKEN = 1_000
OUTPUT_LAG_NS = 400_000
"""Between the engine core and the client: tokenising on the way in, detokenising on the way out."""
_KEPT_POINTS = 512


class EngineSpec(Struct, frozen=True, kw_only=True):
    """An engine to simulate. Static watts are of all its accelerators together; step_tokens is the step's budget."""

    name: str
    architecture: Architecture
    machine: Machine
    devices: tuple[str, ...]
    idle_watts: float
    uplift_watts: float
    max_batch: int = 64
    step_tokens: int = 2048


class Request(Struct, kw_only=True):
    """A request on its way through the engine. Times in nanoseconds, 0 while they lie ahead; energies in joules."""

    arrival: Arrival
    queued_ns: int
    scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    generated: int = 0
    computed: int = 0
    own_prefill: float = 0.0
    shared_at_start: float = 0.0
    shared_at_first: float = 0.0
    static_at_start: float = 0.0
    first_step: int = 0

    @property
    def last_output(self) -> int:
        """Output tokens after which it ends: its own end, or the client's leaving."""
        return self.arrival.leaves_after or self.arrival.output_tokens


class Truth(Struct, frozen=True, kw_only=True):
    """What a request that has ended did and what it cost, whole microjoules."""

    engine: str
    request: Request
    prefill_uj: int
    decode_uj: int
    resident_uj: int

    @property
    def aborted(self) -> bool:
        """Whether its client left: the engine tells nobody of such a request."""
        return self.request.arrival.leaves_after is not None

    @property
    def microjoules(self) -> int:
        """All of it."""
        return self.prefill_uj + self.decode_uj + self.resident_uj


class Track:
    """Cumulative dynamic joules and busy seconds over time, linear between points; the recent past only."""

    def __init__(self, start_ns: int) -> None:
        self._times = [start_ns]
        self._joules = [0.0]
        self._busy = [0.0]

    def append(self, t_ns: int, joules: float, busy_seconds: float) -> None:
        """Add a point not before the last one."""
        self._times.append(t_ns)
        self._joules.append(joules)
        self._busy.append(busy_seconds)
        if len(self._times) >= 2 * _KEPT_POINTS:
            for column in (self._times, self._joules, self._busy):
                del column[:_KEPT_POINTS]

    def at(self, t_ns: int) -> tuple[float, float]:
        """Dynamic joules and busy seconds at a moment of the last seconds; flat beyond the ends."""
        after = bisect_right(self._times, t_ns)
        if after == 0 or after == len(self._times):
            edge = min(after, len(self._times) - 1)
            return self._joules[edge], self._busy[edge]
        before = after - 1
        part = (t_ns - self._times[before]) / (self._times[after] - self._times[before])
        return (
            self._joules[before] + part * (self._joules[after] - self._joules[before]),
            self._busy[before] + part * (self._busy[after] - self._busy[before]),
        )


class _Step(Struct, frozen=True):
    """A step that runs: its end, length in seconds, number of decoding members, prompt chunks."""

    end_ns: int
    seconds: float
    decoding: int
    chunks: list[tuple[Request, int]]


class EngineSimulation:
    """An engine and those who ask it. `advance` moves it; `take_ended` hands over who has ended since."""

    def __init__(self, spec: EngineSpec, asked: Iterator[Arrival], jitter: Random, start_ns: int) -> None:
        self.spec = spec
        self.tallies = Tallies()
        self.track = Track(start_ns)
        self.steps = 0
        self.now_ns = start_ns
        self._arrivals = asked
        self._next = self._draw()
        self._closed = False
        self._jitter = jitter
        self._shared = shared_joules(spec.architecture, spec.machine)
        self._waiting: deque[Request] = deque()
        self._prefilling: deque[Request] = deque()
        self._decoding: dict[str, Request] = {}
        self._ending: dict[int, list[Request]] = {}
        self._contexts = 0
        self._reserved_tokens = 0
        self._step: _Step | None = None
        self._dynamic_joules = 0.0
        self._busy_seconds = 0.0
        self._shared_sum = 0.0
        self._static_sum = 0.0
        self._ended: list[Truth] = []

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def kv_tokens(self) -> int:
        """Tokens in the KV cache."""
        return self._contexts + sum(request.computed for request in self._prefilling)

    def stop_arrivals(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    def take_ended(self) -> list[Truth]:
        """Requests that ended since the last call, in order of their end."""
        ended, self._ended = self._ended, []
        return ended

    def advance(self, until_ns: int) -> None:
        """Run every step that ends by `until_ns`, and start the one that runs then."""
        while True:
            if self._step is not None:
                if self._step.end_ns > until_ns:
                    break
                self._end_step(self._step)
            self._let_in(self.now_ns)
            if not (self._waiting or self.running):
                if self._closed or self._next.queued_ns > until_ns:
                    break
                self.now_ns = self._next.queued_ns
                self._let_in(self.now_ns)
            self._begin_step()

    def in_flight_joules(self, t_ns: int) -> float:
        """What the requests in the batch have cost by `t_ns`: up to the last step's end each, then the step itself."""
        dynamic, busy = self.track.at(t_ns)
        before_dynamic, before_busy = self.track.at(self.now_ns)
        static_watts = self.spec.idle_watts + self.spec.uplift_watts
        total = dynamic - before_dynamic + static_watts * (busy - before_busy)
        for request in self._prefilling:
            total += request.own_prefill
        for request in self._decoding.values():
            total += request.own_prefill + self._own_decode(request, self.steps - request.first_step)
        for request in (*self._prefilling, *self._decoding.values()):
            total += self._shared_sum - request.shared_at_start + self._static_sum - request.static_at_start
        return total

    def _draw(self) -> Request:
        arrival = next(self._arrivals)
        delay = _TOKENISE_NS + _TOKENISE_NS_PER_TOKEN * arrival.prompt_tokens
        return Request(arrival=arrival, queued_ns=arrival.arrival_ns + delay)

    def _let_in(self, now_ns: int) -> None:
        while not self._closed and self._next.queued_ns <= now_ns:
            self._waiting.append(self._next)
            self._next = self._draw()

    def _begin_step(self) -> None:
        spec = self.spec
        decoding = len(self._decoding)
        chunks = self._choose_chunks(spec.step_tokens - decoding)
        work = decode_work(spec.architecture, decoding, self._contexts)
        for request, tokens in chunks:
            work += prefill_work(spec.architecture, tokens, request.computed)
        seconds = step_seconds(spec.architecture, spec.machine, work) * self._jitter.uniform(
            1 - _STEP_JITTER, 1 + _STEP_JITTER
        )
        nanoseconds = round(seconds * 1e9)
        self.track.append(self.now_ns, self._dynamic_joules, self._busy_seconds)
        self._dynamic_joules += joules(spec.machine, work) + self._shared
        self._busy_seconds += nanoseconds * 1e-9
        end_ns = self.now_ns + nanoseconds
        self.track.append(end_ns, self._dynamic_joules, self._busy_seconds)
        self._step = _Step(end_ns, nanoseconds * 1e-9, decoding, chunks)

    def _choose_chunks(self, budget: int) -> list[tuple[Request, int]]:
        """Prompt chunks for what the decoding requests leave of the step: half-done prompts, then the queue."""
        chunks = []
        for request in self._prefilling:
            tokens = min(budget, request.arrival.prompt_tokens - request.computed)
            budget -= tokens
            chunks.append((request, tokens))
        while budget > 0 and self._waiting and self._has_room(self._waiting[0]):
            request = self._waiting.popleft()
            self._reserved_tokens += request.arrival.prompt_tokens + request.last_output
            request.scheduled_ns = self.now_ns
            request.shared_at_start = self._shared_sum
            request.static_at_start = self._static_sum
            self._prefilling.append(request)
            self.tallies.prefix_queries += request.arrival.prompt_tokens
            tokens = min(budget, request.arrival.prompt_tokens)
            budget -= tokens
            chunks.append((request, tokens))
        return chunks

    def _has_room(self, request: Request) -> bool:
        """Whether the batch has a place and the cache room for it to its end: nobody is ever preempted."""
        needed = self._reserved_tokens + request.arrival.prompt_tokens + request.last_output
        return self.running < self.spec.max_batch and (
            needed <= self.spec.machine.kv_capacity_tokens or self.running == 0
        )

    def _end_step(self, step: _Step) -> None:
        spec, tallies = self.spec, self.tallies
        self._step = None
        self.now_ns = step.end_ns
        self.steps += 1
        members = step.decoding + len(step.chunks)
        self._shared_sum += self._shared / members
        self._static_sum += (spec.idle_watts + spec.uplift_watts) * step.seconds / members
        self._contexts += step.decoding
        if step.decoding:
            tallies.inter_token_latency.observe(step.seconds, step.decoding)
        for request in self._ending.pop(self.steps, ()):
            self._end_decode(request)
        firsts = sum(self._compute(request, tokens) for request, tokens in step.chunks)
        generated = step.decoding + firsts
        tallies.generation_tokens += generated
        tallies.iteration_tokens.observe(generated + sum(tokens for _, tokens in step.chunks))

    def _compute(self, request: Request, tokens: int) -> bool:
        """Book a prompt chunk; whether it was the last one, which brings the first token."""
        spec, arrival = self.spec, request.arrival
        request.own_prefill += joules(spec.machine, prefill_work(spec.architecture, tokens, request.computed))
        request.computed += tokens
        if request.computed < arrival.prompt_tokens:
            return False
        self._prefilling.remove(request)
        request.first_token_ns = self.now_ns
        request.shared_at_first = self._shared_sum
        request.first_step = self.steps
        self.tallies.prompt_tokens += arrival.prompt_tokens
        self.tallies.time_to_first_token.observe((self.now_ns + OUTPUT_LAG_NS - arrival.arrival_ns) * 1e-9)
        if request.last_output == 1:
            self._end(request)
        else:
            self._decoding[arrival.id] = request
            self._contexts += arrival.prompt_tokens + 1
            self._ending.setdefault(self.steps + request.last_output - 1, []).append(request)
        return True

    def _end_decode(self, request: Request) -> None:
        del self._decoding[request.arrival.id]
        self._contexts -= request.arrival.prompt_tokens + request.last_output
        self._end(request)

    def _own_decode(self, request: Request, tokens: int) -> float:
        """Joules of the first `tokens` decode tokens: contexts P+1, P+2, … add up to an arithmetic series."""
        contexts = tokens * request.arrival.prompt_tokens + tokens * (tokens + 1) // 2
        return joules(self.spec.machine, decode_work(self.spec.architecture, tokens, contexts))

    def _end(self, request: Request) -> None:
        request.last_token_ns = self.now_ns
        request.generated = request.last_output
        self._reserved_tokens -= request.arrival.prompt_tokens + request.generated
        decode = self._own_decode(request, request.generated - 1) + self._shared_sum - request.shared_at_first
        truth = Truth(
            engine=self.spec.name,
            request=request,
            prefill_uj=round((request.own_prefill + request.shared_at_first - request.shared_at_start) * 1e6),
            decode_uj=round(decode * 1e6),
            resident_uj=round((self._static_sum - request.static_at_start) * 1e6),
        )
        self._ended.append(truth)
        answered_seconds = (request.last_token_ns + OUTPUT_LAG_NS - request.arrival.arrival_ns) * 1e-9
        self.tallies.http.observe(answered_seconds)
        self.tallies.http_fine.observe(answered_seconds)
        if not truth.aborted:
            self._tally_finished(request)

    def _tally_finished(self, request: Request) -> None:
        tallies, arrival = self.tallies, request.arrival
        decode_seconds = (request.last_token_ns - request.first_token_ns) * 1e-9
        tallies.finished["length" if request.generated == arrival.max_tokens else "stop"] += 1
        tallies.e2e.observe((request.last_token_ns + OUTPUT_LAG_NS - arrival.arrival_ns) * 1e-9)
        tallies.queue_time.observe((request.scheduled_ns - request.queued_ns) * 1e-9)
        tallies.prefill_time.observe((request.first_token_ns - request.scheduled_ns) * 1e-9)
        tallies.decode_time.observe(decode_seconds)
        tallies.inference_time.observe((request.last_token_ns - request.scheduled_ns) * 1e-9)
        tallies.time_per_output_token.observe(decode_seconds / max(request.generated - 1, 1))
        tallies.request_prompt_tokens.observe(arrival.prompt_tokens)
        tallies.request_generation_tokens.observe(request.generated)
        tallies.max_num_generation_tokens.observe(request.generated)
        tallies.params_max_tokens.observe(arrival.max_tokens)
        tallies.prefill_kv_computed_tokens.observe(arrival.prompt_tokens)
        tallies.params_n.observe(1)
        tallies.num_preemptions.observe(0)

"""Small made-up nodes for the core's tests: devices, an engine, requests and meters that follow their work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from msgspec.structs import replace as change

from jouled.core.pipeline import Input, Pipeline
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.parameters import Parameters, Slo
from jouled.model.readings import EnergyReading
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent
from jouled.model.snapshot import GroupBook, Owner, Snapshot

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
PARAMETERS = Parameters(slos=(Slo("chat", ttft=500.0, tpot=50.0),))


def gpu(index: int = 0, **changes: object) -> Device:
    told = {"idle_watts": 100.0, "uplift_watts": 50.0, "max_watts": 700.0, "uuid": f"GPU-{index}", "source": "test"}
    return Device(name=f"gpu{index}", kind=DeviceKind.GPU, **{**told, **changes})


def request(
    name: str,
    arrival: float,
    *,
    prefill: float = 0.2,
    decode: float = 2.0,
    prompt: int = 400,
    generated: int = 100,
    queue: float = 0.0,
    **changes: object,
) -> RequestEvent:
    """A request by seconds after the scenario's start."""
    arrival_ns = START + round(arrival * SECOND)
    first_ns = arrival_ns + round((queue + prefill) * SECOND)
    event = RequestEvent(
        engine="e",
        id=name,
        arrival_ns=arrival_ns,
        scheduled_ns=arrival_ns + round(queue * SECOND),
        first_token_ns=first_ns,
        last_token_ns=first_ns + round(decode * SECOND),
        prompt_tokens=prompt,
        generation_tokens=generated,
    )
    return change(event, **changes) if changes else event


@dataclass(frozen=True)
class Node:
    """One engine on some GPUs, its requests, and counters that are read every `interval` seconds."""

    requests: tuple[RequestEvent, ...]
    seconds: float = 40.0
    gpus: int = 1
    interval: float = 0.1
    base_watts: float = 100.0
    watts_per_request: float = 80.0
    parameters: Parameters = PARAMETERS
    engine: Engine = field(default_factory=lambda: Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",)))
    samples: bool = False
    scale: int = 1

    def with_gpus(self, count: int) -> "Node":
        names = tuple(f"gpu{i}" for i in range(count))
        return replace(self, gpus=count, engine=Engine(name="e", type="vllm", model="tiny-8B", devices=names))

    def joules_at(self, t_ns: int) -> int:
        """Cumulative microjoules of the node's only work: base power, and some for each resident request."""
        busy = sum(max(0, min(t_ns, r.last_token_ns) - r.arrival_ns) for r in self.requests)
        return self.scale * round((self.base_watts * (t_ns - START) + self.watts_per_request * busy) / 1000)

    def devices(self) -> list[Input]:
        return [gpu(i) for i in range(self.gpus)]

    def readings(self) -> list[Input]:
        count = round(self.seconds / self.interval)
        readings: list[Input] = []
        for k in range(count + 1):
            t_ns = START + round(k * self.interval * SECOND)
            total = self.joules_at(t_ns)
            for i in range(self.gpus):
                part = total // self.gpus if i < self.gpus - 1 else total - (self.gpus - 1) * (total // self.gpus)
                readings.append(EnergyReading(f"gpu{i}", t_ns, 5_000_000 + part))
        return readings

    def engine_samples(self) -> list[Input]:
        if not self.samples:
            return []
        return [self.sample_at(START + k * 5 * SECOND) for k in range(int(self.seconds // 5) + 1)]

    def sample_at(self, t_ns: int) -> EngineSample:
        running = sum(1 for r in self.requests if (r.scheduled_ns or r.arrival_ns) <= t_ns < r.last_token_ns)
        generated = prompt = 0
        for r in self.requests:
            if r.first_token_ns <= t_ns:
                prompt += r.prompt_tokens
                span = max(r.last_token_ns - r.first_token_ns, 1)
                generated += 1 + int((r.generation_tokens - 1) * min(t_ns - r.first_token_ns, span) / span)
        return EngineSample(
            engine="e",
            t_ns=t_ns,
            model="tiny-8B",
            prompt_tokens=prompt,
            generation_tokens=generated,
            requests_running=running,
            requests_waiting=0,
        )

    def inputs(self) -> list[Input]:
        """Everything in the order of time; requests are told at their end."""
        timed = [*self.readings(), *self.engine_samples(), *self.requests]
        return [*self.devices(), self.engine, *sorted(timed, key=when)]


def when(item: Input) -> int:
    if isinstance(item, RequestEvent):
        return item.seen_ns or item.last_token_ns
    return getattr(item, "t_ns", 0)


@dataclass(frozen=True)
class Result:
    receipts: dict[str, Receipt]
    snapshot: Snapshot
    refused: tuple[str, ...]
    pipeline: Pipeline

    @property
    def energies(self) -> dict[str, tuple[float, float, float]]:
        return {k: (r.joules_prefill, r.joules_decode, r.joules_resident) for k, r in self.receipts.items()}

    @property
    def book(self) -> GroupBook:
        return next(book for book in self.snapshot.groups if book.engines)


def run(inputs: Iterable[Input], *, parameters: Parameters = PARAMETERS, every: float = 1.0) -> Result:
    """Drive the core over inputs under a virtual clock, as a replay does."""
    pipeline = Pipeline(parameters)
    receipts: list[Receipt] = []
    refused: list[str] = []
    now = last = 0
    for item in inputs:
        reason = pipeline.feed(item)
        if reason:
            refused.append(reason)
        now = now if reason else max(now, when(item))
        if now - last >= every * SECOND:
            last = now
            receipts += pipeline.advance(now)
            assert_balanced(pipeline.snapshot(now))
    receipts += pipeline.finish()
    snapshot = pipeline.snapshot(now)
    assert_balanced(snapshot)
    return Result({receipt.id: receipt for receipt in receipts}, snapshot, tuple(refused), pipeline)


def owners_uj(book: GroupBook) -> int:
    return sum(getattr(book, f"{owner.value}_uj") for owner in Owner)


def assert_balanced(snapshot: Snapshot) -> None:
    """The identity of the books, in every form in which it is published."""
    for book in (*snapshot.groups, snapshot.total):
        assert owners_uj(book) + book.open_uj == book.measured_uj, book
        assert book.open_uj >= 0
    measured = [book for book in snapshot.groups if book.quality != "estimated"]
    if not measured:
        return
    counted = sum(v for k, v in snapshot.counters.get("energy_joules_total", {}).items() if k[3] == "measured")
    assert counted + sum(book.open_uj for book in measured) == snapshot.boundaries_uj["compute"]


def receipts_uj(receipts: Sequence[Receipt]) -> int:
    return sum(round(r.joules * 1e6) for r in receipts)


def request_sets(most: int = 12, seconds: float = 30.0) -> st.SearchStrategy[tuple[RequestEvent, ...]]:
    """Sets of requests that overlap in every way, one-token and instant ones among them."""
    one = st.builds(
        lambda arrival, prefill, decode, prompt, generated, queue: (arrival, prefill, decode, prompt, generated, queue),
        st.floats(0.0, seconds - 8.0),
        st.floats(0.0, 2.0),
        st.floats(0.0, 5.0),
        st.integers(0, 4000),
        st.integers(0, 400),
        st.floats(0.0, 1.0),
    )
    return st.lists(one, max_size=most).map(
        lambda rows: tuple(
            request(f"r{i}", a, prefill=p, decode=d, prompt=n, generated=g, queue=q)
            for i, (a, p, d, n, g, q) in enumerate(rows)
        )
    )

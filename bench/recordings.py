"""Synthetic recordings for benchmarks: arrivals, lengths and a smooth power curve, with no truth in them.

`python -m bench.recordings OUT.jsonl [--requests N] [--rate R] [--trace FILE.csv]` writes one. A trace has the columns
TIMESTAMP,ContextTokens,GeneratedTokens (the public Azure LLM inference traces do). Nothing here comes from the twin:
what measures the core's speed must not share the code that judges its precision.
"""

import argparse
import csv
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import accumulate
from pathlib import Path

from msgspec import Struct

from jouled.app.runtime.recording.recording import Item, Writer
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading
from jouled.model.requests import RequestEvent
from jouled.model.units import nanoseconds

START_NS = 1_790_000_000_000_000_000
GPU, ENGINE = "gpu0", "engine"
TTFT_SECONDS, PREFILL_TOKENS_PER_SECOND, TOKENS_PER_SECOND = 0.03, 20_000.0, 50.0
EXPORT_SECONDS = 5.0
"""Spans leave an engine in batches every 5 s (OTEL_BSP_SCHEDULE_DELAY), pages are read as often."""

READING_NS = nanoseconds(0.1)
IDLE_WATTS, BUSY_WATTS, HALF_AT_REQUESTS = 75.0, 560.0, 40.0


class Arrival(Struct, frozen=True, gc=False):
    """One request as it comes: seconds from the start, tokens in and out."""

    seconds: float
    prompt_tokens: int
    generation_tokens: int


def poisson(requests: int, rate: float, seed: int = 1) -> Iterator[Arrival]:
    """Independent arrivals of chat-like length (log-normal: medians of 600 in and 150 out)."""
    dice = random.Random(seed)
    seconds = 0.0
    for _ in range(requests):
        seconds += dice.expovariate(rate)
        prompt = min(max(round(600 * dice.lognormvariate(0, 1.0)), 1), 16_384)
        output = min(max(round(150 * dice.lognormvariate(0, 0.8)), 1), 2_048)
        yield Arrival(seconds, prompt, output)


def trace(path: Path) -> Iterator[Arrival]:
    """The arrivals of a trace file."""
    start: datetime | None = None
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # The traces write seven decimals of a second, datetime reads six.
            when = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or when
            tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            yield Arrival((when - start).total_seconds(), *tokens)


def items(arrivals: Iterable[Arrival]) -> list[Item]:
    """Everything the core is fed with, in the order in which a daemon would have seen it."""
    events = [event(number, arrival, START_NS) for number, arrival in enumerate(arrivals)]
    end_ns = max(event.seen_ns for event in events) + nanoseconds(1.0)
    timed: list[tuple[int, Item]] = [(event.seen_ns, event) for event in events]
    timed += [(reading.t_ns, reading) for reading in _readings(events, end_ns)]
    timed += [(sample.t_ns, sample) for sample in _samples(events, end_ns)]
    timed.sort(key=lambda entry: entry[0])
    return [*_inventory(), *(item for _, item in timed)]


def event(number: int, arrival: Arrival, start_ns: int) -> RequestEvent:
    """The request as its engine tells of it: prefill and decode at constant speed, told with the next batch."""
    arrival_ns = start_ns + nanoseconds(arrival.seconds)
    first_ns = arrival_ns + nanoseconds(TTFT_SECONDS + arrival.prompt_tokens / PREFILL_TOKENS_PER_SECOND)
    last_ns = first_ns + nanoseconds((arrival.generation_tokens - 1) / TOKENS_PER_SECOND)
    export_ns = nanoseconds(EXPORT_SECONDS)
    return RequestEvent(
        engine=ENGINE,
        id=f"chatcmpl-{number:08x}",
        arrival_ns=arrival_ns,
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        prompt_tokens=arrival.prompt_tokens,
        generation_tokens=arrival.generation_tokens,
        seen_ns=-(-last_ns // export_ns) * export_ns,
    )


def write(path: Path, recorded: Iterable[Item]) -> None:
    """Write a recording; the file must not exist."""
    writer = Writer(path, node="bench", started_ns=START_NS, boot_offset_ns=START_NS)
    for item in recorded:
        writer.write(item)
    writer.close()


def _inventory() -> tuple[Device, Engine]:
    device = Device(
        name=GPU, kind=DeviceKind.GPU, vendor="nvidia", product="H100", idle_watts=IDLE_WATTS, max_watts=700.0
    )
    return device, Engine(name=ENGINE, type="vllm", model="Llama-3.1-8B", devices=(GPU,))


def _running(events: Iterable[RequestEvent], step_ns: int, steps: int) -> list[int]:
    """Requests in flight at each point of a grid that starts at START_NS."""
    changes: Counter[int] = Counter()
    for event in events:
        changes[-(-(event.arrival_ns - START_NS) // step_ns)] += 1
        changes[-(-(event.last_token_ns - START_NS) // step_ns)] -= 1
    return list(accumulate(changes[point] for point in range(steps)))


def _readings(events: Iterable[RequestEvent], end_ns: int) -> Iterator[EnergyReading]:
    """The GPU's counter every 100 ms: power rises with the number of requests in flight and saturates."""
    microjoules = 0
    for point, running in enumerate(_running(events, READING_NS, (end_ns - START_NS) // READING_NS + 1)):
        yield EnergyReading(GPU, START_NS + point * READING_NS, microjoules)
        watts = IDLE_WATTS + BUSY_WATTS * running / (running + HALF_AT_REQUESTS)
        microjoules += round(watts * READING_NS / 1000)


def _samples(events: Iterable[RequestEvent], end_ns: int) -> Iterator[EngineSample]:
    """The engine's page every 5 s, counting as vLLM does: prompts at the first token, generated tokens as they come."""
    step_ns = nanoseconds(EXPORT_SECONDS)
    steps = (end_ns - START_NS) // step_ns + 1
    prompts, generated = _tokens(events, step_ns)
    prompt_tokens = generation_tokens = 0
    for point, running in enumerate(_running(events, step_ns, steps)):
        prompt_tokens += prompts[point]
        generation_tokens += generated[point]
        yield EngineSample(
            engine=ENGINE,
            t_ns=START_NS + point * step_ns,
            steps=point * round(EXPORT_SECONDS * TOKENS_PER_SECOND),
            prompt_tokens=prompt_tokens,
            generation_tokens=generation_tokens,
            requests_running=running,
        )


def _tokens(events: Iterable[RequestEvent], step_ns: int) -> tuple[Counter[int], Counter[int]]:
    """Prompt and generated tokens that enter the counters between each point of the grid and the one before."""
    prompts: Counter[int] = Counter()
    generated: Counter[int] = Counter()
    for event in events:
        first = -(-(event.first_token_ns - START_NS) // step_ns)
        last = -(-(event.last_token_ns - START_NS) // step_ns)
        prompts[first] += event.prompt_tokens
        before = 0
        for point in range(first, last):
            elapsed_ns = START_NS + point * step_ns - event.first_token_ns
            told = 1 + int(elapsed_ns * TOKENS_PER_SECOND / 1e9)
            generated[point] += told - before
            before = told
        generated[last] += event.generation_tokens - before
    return prompts, generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--trace", type=Path, help="a CSV trace instead of synthetic arrivals")
    options = parser.parse_args()
    arrivals = trace(options.trace) if options.trace else poisson(options.requests, options.rate)
    write(options.out, items(arrivals))


if __name__ == "__main__":
    main()

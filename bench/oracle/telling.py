"""What a daemon hears of a run: recording items in the order in which it would have seen them."""

import random
from collections.abc import Iterator, Sequence

from bench.oracle.engine import Page, Run, Served
from bench.oracle.meter import Meter, Reading, readings, watts
from bench.oracle.parts import Accelerator, Model, Physics
from bench.oracle.workload import Job
from msgspec import Struct, structs

from jouled.app.runtime.recording.recording import Item
from jouled.model.device import Device, DeviceKind
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import nanoseconds

START_NS = 1_790_000_000_000_000_000
ENGINE = "engine"
EXPORT_SECONDS = 5.0
"""Spans leave an engine in batches every 5 s (OTEL_BSP_SCHEDULE_DELAY)."""


class Telling(Struct, frozen=True, kw_only=True):
    """What is told and how. `delay_seconds`: events come shuffled within so long; `duplicates`: share told twice."""

    scheduled: bool = True
    starts: bool = False
    architecture: bool = True
    idle: bool = True
    uplift: bool = False
    delay_seconds: float = 0.0
    duplicates: float = 0.0
    power_gauge: bool = False


class Meters(Struct, frozen=True, kw_only=True):
    """What the devices showed: names, each one's part of the whole, reads. `gain`: what all of them read too much."""

    names: tuple[str, ...]
    parts: tuple[float, ...]
    reads: tuple[list[Reading], ...]
    gain: float


def read_meters(run: Run, meter: Meter, devices: int, dice: random.Random) -> Meters:
    """Every device's meter, read at moments of its own. Devices share the work almost evenly."""
    weights = [dice.uniform(0.93, 1.07) for _ in range(devices)]
    parts = tuple(weight / sum(weights) for weight in weights)
    gain = dice.uniform(0.95, 1.05)
    reads = tuple(readings(run.curve, meter, gain * part, dice) for part in parts)
    return Meters(names=tuple(f"gpu{i}" for i in range(devices)), parts=parts, reads=reads, gain=gain)


def inventory(model: Model, part: Accelerator, physics: Physics, meters: Meters, telling: Telling) -> list[Item]:
    """The engine and its devices."""
    devices: list[Item] = [
        Device(
            name=name,
            kind=DeviceKind.GPU,
            vendor="nvidia",
            product=part.product,
            index=index,
            idle_watts=physics.idle_watts * share * meters.gain if telling.idle else None,
            uplift_watts=physics.uplift_watts * share * meters.gain if telling.uplift else None,
            max_watts=physics.cap_watts / physics.devices,
        )
        for index, (name, share) in enumerate(zip(meters.names, meters.parts, strict=True))
    ]
    return [*devices, _engine(model, meters.names, telling)]


def told(
    jobs: Sequence[Job], run: Run, meters: Meters, telling: Telling, lead_seconds: float, dice: random.Random
) -> list[Item]:
    """Readings, pages and events in the order seen."""
    timed: list[tuple[int, int, Item]] = []
    for name, reads in zip(meters.names, meters.reads, strict=True):
        timed += [(item.t_ns, 0, item) for item in _energy(name, reads, telling)]
    timed += [(sample.t_ns, 1, sample) for sample in map(_sample, run.pages)]
    end_ns = at_ns(run.curve.seconds[-1])
    for number, (job, served) in enumerate(zip(jobs, run.served, strict=True)):
        if telling.starts:
            start_ns = at_ns(job.seconds + lead_seconds)
            timed.append((start_ns, 2, RequestStart(engine=ENGINE, id=name_of(number), arrival_ns=start_ns)))
        if job.told:
            event = _event(number, job, served, lead_seconds, telling)
            timed += [(seen.seen_ns, 3, seen) for seen in _deliveries(event, telling, end_ns, dice)]
    timed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in timed]


def at_ns(seconds: float) -> int:
    """Seconds of the run as a time stamp."""
    return START_NS + nanoseconds(seconds)


def name_of(number: int) -> str:
    """The id of a job."""
    return f"cmpl-{number:06d}"


def _engine(model: Model, devices: tuple[str, ...], telling: Telling) -> Engine:
    if not telling.architecture:
        return Engine(name=ENGINE, type="vllm", model=model.name, devices=devices)
    return Engine(
        name=ENGINE,
        type="vllm",
        model=model.name,
        devices=devices,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        layers=model.layers,
        hidden_size=model.hidden_size,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
    )


def _energy(device: str, reads: list[Reading], telling: Telling) -> Iterator[EnergyReading | PowerReading]:
    if telling.power_gauge:
        yield from (PowerReading(device, at_ns(seconds), power) for seconds, power in watts(reads))
    else:
        yield from (EnergyReading(device, at_ns(seconds), microjoules) for seconds, microjoules in reads)


def _sample(page: Page) -> EngineSample:
    return EngineSample(
        engine=ENGINE,
        t_ns=at_ns(page.seconds),
        steps=page.steps,
        prompt_tokens=page.prompt_tokens,
        generation_tokens=page.generation_tokens,
        requests_running=page.running,
        requests_waiting=page.waiting,
    )


def _event(number: int, job: Job, served: Served, lead_seconds: float, telling: Telling) -> RequestEvent:
    last_ns, export_ns = at_ns(served.last), nanoseconds(EXPORT_SECONDS)
    return RequestEvent(
        engine=ENGINE,
        id=name_of(number),
        arrival_ns=at_ns(job.seconds + lead_seconds),
        scheduled_ns=at_ns(served.start) if telling.scheduled else None,
        first_token_ns=at_ns(served.first),
        last_token_ns=last_ns,
        prompt_tokens=job.prompt_tokens,
        cached_prompt_tokens=job.cached_tokens,
        generation_tokens=job.generation_tokens,
        seen_ns=-(-last_ns // export_ns) * export_ns,
    )


def _deliveries(event: RequestEvent, telling: Telling, end_ns: int, dice: random.Random) -> Iterator[RequestEvent]:
    times = 2 if dice.random() < telling.duplicates else 1
    for _ in range(times):
        delay_ns = nanoseconds(telling.delay_seconds * dice.random())
        yield _seen(event, min(event.seen_ns + delay_ns, max(end_ns, event.seen_ns)))


def _seen(event: RequestEvent, seen_ns: int) -> RequestEvent:
    return structs.replace(event, seen_ns=seen_ns) if seen_ns != event.seen_ns else event

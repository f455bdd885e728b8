"""The lines of a recording as types, each with the way to the model's type and back. Times in them are Unix time."""

import re
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Annotated

from msgspec import Meta, Raw, Struct

from jouled.app.runtime.wall_clock import WallClock
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.engine import CounterSemantics, Engine, EngineSample, Latency, LatencyHistogram
from jouled.model.errors import SourceState
from jouled.model.readings import EnergyReading, PowerReading, SourceReport
from jouled.model.requests import Outcome, RequestEvent, RequestStart
from jouled.model.units import MICROJOULES_PER_JOULE

Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Text = Annotated[str, Meta(max_length=1024)]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
CpuSeconds = Annotated[float, Meta(ge=0.0, le=1e12)]

_MOST_JOULES = Decimal(10**15)  # 31 years of a gigawatt; keeps a number like 1e999999999 from becoming an integer
_ABSENT = Raw(b"")
_SECRET = re.compile(r"//[^/\s@]+@|\?\S+|(?i:bearer|token|password|secret|key)[\s=:]+\S+")


class Header(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="header"):
    """Who wrote the recording, and in which version of the format."""

    version: int
    node: Text | None = None
    started_ns: Nanoseconds | None = None
    jouled_version: Text | None = None


class ClockLine(Struct, frozen=True, kw_only=True, tag="clock"):
    """Wall and boot time of one moment."""

    t_ns: Nanoseconds
    boot_ns: Nanoseconds


class DeviceLine(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="device"):
    """A device. Its serial number and bus address stay out: a recording is made to be passed on.

    identity: a short hash of the serial number, by which two sources that show one device are known to.
    """

    device: Name
    kind: DeviceKind
    parent: Text | None = None
    vendor: Text | None = None
    model: Text | None = None
    idle_watts: float | None = None
    uplift_watts: float | None = None
    max_watts: float | None = None
    wrap_joules: Raw = _ABSENT
    index: int | None = None
    source: Text | None = None
    method: Text | None = None
    quality: Quality | None = None
    fraction: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    identity: Text | None = None
    indirect: bool = False

    def item(self, _clock: WallClock) -> Device:
        """As the core takes it."""
        return Device(
            name=self.device,
            kind=self.kind,
            parent=self.parent or "",
            vendor=self.vendor or "",
            product=self.model or "",
            index=self.index,
            source=self.source or "",
            method=self.method or "",
            quality=self.quality or Quality.MEASURED,
            idle_watts=self.idle_watts,
            uplift_watts=self.uplift_watts,
            max_watts=self.max_watts,
            wrap_microjoules=None if _absent(self.wrap_joules) else _microjoules(self.wrap_joules, "wrap_joules"),
            fraction=self.fraction,
            uuid=self.identity or "",
            indirect=self.indirect,
        )

    @classmethod
    def of(cls, device: Device, _clock: WallClock) -> "DeviceLine":
        """As a recording has it."""
        return cls(
            device=device.name,
            kind=device.kind,
            parent=device.parent or None,
            vendor=device.vendor or None,
            model=device.product or None,
            idle_watts=device.idle_watts,
            uplift_watts=device.uplift_watts,
            max_watts=device.max_watts,
            wrap_joules=_ABSENT if device.wrap_microjoules is None else _joules(device.wrap_microjoules),
            index=device.index,
            source=device.source or None,
            method=device.method or None,
            quality=None if device.quality is Quality.MEASURED else device.quality,
            fraction=device.fraction,
            identity=sha256(device.uuid.encode()).hexdigest()[:8] if device.uuid else None,
            indirect=device.indirect,
        )


class EngineLine(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="engine"):
    """An engine. Its URL and process id stay out: the one may hold secrets, the other means nothing elsewhere."""

    engine: Name
    model: Text
    devices: list[Name]
    role: Text | None = None
    version: Text | None = None
    precision: Text | None = None
    parameters: float | None = None
    active_parameters: float | None = None
    layers: Count | None = None
    hidden_size: Count | None = None
    attention_width: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    expert_share: float | None = None
    sizes_from: Text | None = None
    counter_semantics: CounterSemantics | None = None
    engine_type: Text | None = None
    parallelism: Text | None = None
    driver: Text | None = None
    kv_connector: Text | None = None
    speculation: Text | None = None

    def item(self, _clock: WallClock) -> Engine:
        """As the core takes it."""
        return Engine(
            name=self.engine,
            type=self.engine_type or "",
            model=self.model,
            devices=tuple(self.devices),
            role=self.role or "unified",
            version=self.version or "",
            precision=self.precision or "",
            parallelism=self.parallelism or "",
            driver=self.driver or "",
            kv_connector=self.kv_connector or "",
            speculation=self.speculation or "",
            parameters=self.parameters,
            active_parameters=self.active_parameters,
            layers=self.layers,
            hidden_size=self.hidden_size,
            attention_width=self.attention_width,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            expert_share=self.expert_share,
            sizes_from=self.sizes_from or "",
            counter_semantics=self.counter_semantics or CounterSemantics(),
        )

    @classmethod
    def of(cls, engine: Engine, _clock: WallClock) -> "EngineLine":
        """As a recording has it."""
        semantics = engine.counter_semantics
        return cls(
            engine=engine.name,
            model=engine.model,
            devices=list(engine.devices),
            role=None if engine.role == "unified" else engine.role,
            version=engine.version or None,
            precision=engine.precision or None,
            parameters=engine.parameters,
            active_parameters=engine.active_parameters,
            layers=engine.layers,
            hidden_size=engine.hidden_size,
            attention_width=engine.attention_width,
            weight_bytes=engine.weight_bytes,
            kv_bytes_per_token=engine.kv_bytes_per_token,
            expert_share=engine.expert_share,
            sizes_from=engine.sizes_from or None,
            counter_semantics=None if semantics == CounterSemantics() else semantics,
            engine_type=engine.type or None,
            parallelism=engine.parallelism or None,
            driver=engine.driver or None,
            kv_connector=engine.kv_connector or None,
            speculation=engine.speculation or None,
        )


class EnergyLine(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="energy"):
    """A cumulative energy counter. Joules are kept as written: as a float, a large counter would lose microjoules."""

    device: Name
    t_ns: Nanoseconds
    joules: Raw
    quality: Quality | None = None

    def item(self, clock: WallClock) -> EnergyReading:
        """As the core takes it."""
        return EnergyReading(
            self.device,
            clock.to_core(self.t_ns),
            _microjoules(self.joules, "joules"),
            self.quality or Quality.MEASURED,
        )

    @classmethod
    def of(cls, reading: EnergyReading, clock: WallClock) -> "EnergyLine":
        """As a recording has it."""
        return cls(
            device=reading.device,
            t_ns=clock.to_wall(reading.t_ns),
            joules=_joules(reading.microjoules),
            quality=None if reading.quality is Quality.MEASURED else reading.quality,
        )


class PowerLine(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="power"):
    """A power gauge."""

    device: Name
    t_ns: Nanoseconds
    watts: float
    quality: Quality | None = None

    def item(self, clock: WallClock) -> PowerReading:
        """As the core takes it."""
        return PowerReading(self.device, clock.to_core(self.t_ns), self.watts, self.quality or Quality.DERIVED)

    @classmethod
    def of(cls, reading: PowerReading, clock: WallClock) -> "PowerLine":
        """As a recording has it."""
        return cls(
            device=reading.device,
            t_ns=clock.to_wall(reading.t_ns),
            watts=reading.watts,
            quality=None if reading.quality is Quality.DERIVED else reading.quality,
        )


class CountersLine(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag="engine_counters"):
    """One look at an engine's page."""

    engine: Name
    t_ns: Nanoseconds
    model: Text | None = None
    steps: Count | None = None
    prompt_tokens: Count | None = None
    cached_prompt_tokens: Count | None = None
    generation_tokens: Count | None = None
    requests_running: Count | None = None
    requests_waiting: Count | None = None
    cpu_seconds: CpuSeconds | None = None
    reported_energy_joules: float | None = None
    forward_seconds: dict[Text, float] | None = None
    latencies: dict[Latency, LatencyHistogram] | None = None
    departed_counts: dict[Text, Count] | None = None

    def item(self, clock: WallClock) -> EngineSample:
        """As the core takes it."""
        return EngineSample(
            engine=self.engine,
            t_ns=clock.to_core(self.t_ns),
            model=self.model or "",
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            generation_tokens=self.generation_tokens,
            requests_running=self.requests_running,
            requests_waiting=self.requests_waiting,
            cpu_seconds=self.cpu_seconds,
            reported_energy_joules=self.reported_energy_joules,
            forward_seconds=self.forward_seconds or {},
            latencies=self.latencies or {},
            departed_counts=self.departed_counts or {},
        )

    @classmethod
    def of(cls, sample: EngineSample, clock: WallClock) -> "CountersLine":
        """As a recording has it."""
        return cls(
            engine=sample.engine,
            t_ns=clock.to_wall(sample.t_ns),
            model=sample.model or None,
            steps=sample.steps,
            prompt_tokens=sample.prompt_tokens,
            cached_prompt_tokens=sample.cached_prompt_tokens,
            generation_tokens=sample.generation_tokens,
            requests_running=sample.requests_running,
            requests_waiting=sample.requests_waiting,
            cpu_seconds=sample.cpu_seconds,
            reported_energy_joules=sample.reported_energy_joules,
            forward_seconds=dict(sample.forward_seconds) or None,
            latencies=dict(sample.latencies) or None,
            departed_counts=dict(sample.departed_counts) or None,
        )


class RequestLine(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="request"):
    """A request that has ended."""

    engine: Name
    id: Name
    arrival_ns: Nanoseconds
    first_token_ns: Nanoseconds
    last_token_ns: Nanoseconds
    prompt_tokens: Count
    generation_tokens: Count
    scheduled_ns: Nanoseconds | None = None
    cached_prompt_tokens: Count | None = None
    outcome: Outcome | None = None
    trace_id: Text | None = None
    span_id: Text | None = None
    tenant: Text | None = None
    adapter: Text | None = None
    preemptions: Count | None = None
    seen_ns: Nanoseconds | None = None
    answer: Count | None = None

    def item(self, clock: WallClock) -> RequestEvent:
        """As the core takes it."""
        return RequestEvent(
            engine=self.engine,
            id=self.id,
            arrival_ns=clock.to_core(self.arrival_ns),
            first_token_ns=clock.to_core(self.first_token_ns),
            last_token_ns=clock.to_core(self.last_token_ns),
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            scheduled_ns=None if self.scheduled_ns is None else clock.to_core(self.scheduled_ns),
            cached_prompt_tokens=self.cached_prompt_tokens,
            outcome=self.outcome or Outcome.COMPLETED,
            trace_id=self.trace_id or "",
            span_id=self.span_id or "",
            tenant=self.tenant or "",
            adapter=self.adapter or "",
            preemptions=self.preemptions or 0,
            seen_ns=clock.to_core(self.seen_ns) if self.seen_ns else 0,
            answer=self.answer or 0,
        )

    @classmethod
    def of(cls, event: RequestEvent, clock: WallClock) -> "RequestLine":
        """As a recording has it."""
        return cls(
            engine=event.engine,
            id=event.id,
            arrival_ns=clock.to_wall(event.arrival_ns),
            first_token_ns=clock.to_wall(event.first_token_ns),
            last_token_ns=clock.to_wall(event.last_token_ns),
            prompt_tokens=event.prompt_tokens,
            generation_tokens=event.generation_tokens,
            scheduled_ns=None if event.scheduled_ns is None else clock.to_wall(event.scheduled_ns),
            cached_prompt_tokens=event.cached_prompt_tokens,
            outcome=None if event.outcome is Outcome.COMPLETED else event.outcome,
            trace_id=event.trace_id or None,
            span_id=event.span_id or None,
            tenant=event.tenant or None,
            adapter=event.adapter or None,
            preemptions=event.preemptions or None,
            seen_ns=clock.to_wall(event.seen_ns) if event.seen_ns else None,
            answer=event.answer or None,
        )


class RequestStartLine(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="request_start"):
    """A request known to be in flight."""

    engine: Name
    id: Name
    arrival_ns: Nanoseconds
    seen_ns: Nanoseconds | None = None

    def item(self, clock: WallClock) -> RequestStart:
        """As the core takes it."""
        return RequestStart(
            engine=self.engine,
            id=self.id,
            arrival_ns=clock.to_core(self.arrival_ns),
            seen_ns=clock.to_core(self.seen_ns) if self.seen_ns else 0,
        )

    @classmethod
    def of(cls, start: RequestStart, clock: WallClock) -> "RequestStartLine":
        """As a recording has it."""
        return cls(
            engine=start.engine,
            id=start.id,
            arrival_ns=clock.to_wall(start.arrival_ns),
            seen_ns=clock.to_wall(start.seen_ns) if start.seen_ns else None,
        )


class SourceLine(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="source"):
    """A source changed its state."""

    source: Name
    state: SourceState
    t_ns: Nanoseconds
    reason: Text | None = None

    def item(self, clock: WallClock) -> SourceReport:
        """As the core takes it."""
        return SourceReport(
            source=self.source, state=self.state, t_ns=clock.to_core(self.t_ns), reason=self.reason or ""
        )

    @classmethod
    def of(cls, report: SourceReport, clock: WallClock) -> "SourceLine":
        """As a recording has it, without whatever looks like a secret."""
        return cls(
            source=report.source,
            state=report.state,
            t_ns=clock.to_wall(report.t_ns),
            reason=redacted(report.reason) or None,
        )


ItemLine = (
    DeviceLine
    | EngineLine
    | EnergyLine
    | PowerLine
    | CountersLine
    | RequestLine
    | RequestStartLine
    | SourceLine
)  # fmt: skip


def redacted(text: str) -> str:
    """The text without user names in URLs, query strings, tokens and passwords."""
    return _SECRET.sub("…", text)


def _absent(number: Raw) -> bool:
    return bytes(number) in {b"", b"null"}


def _microjoules(number: Raw, field: str) -> int:
    try:
        joules = Decimal(bytes(number).decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError):
        raise ValueError(f"`{field}` is no number") from None
    if not -_MOST_JOULES < joules < _MOST_JOULES:
        raise ValueError(f"`{field}` is out of range")
    return int((joules * MICROJOULES_PER_JOULE).to_integral_value())


def _joules(microjoules: int) -> Raw:
    sign = "-" if microjoules < 0 else ""
    whole, part = divmod(abs(microjoules), MICROJOULES_PER_JOULE)
    return Raw(f"{sign}{whole}.{part:06d}")

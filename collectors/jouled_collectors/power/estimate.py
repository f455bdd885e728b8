"""A guess of CPU power from CPU load, for machines without any sensor. Never mixed with what was measured."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import psutil
from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import PowerReading
from jouled_collectors.power.settings import IntervalSeconds, Watts

IDLE_WATTS_PER_CPU = 0.74
MAX_WATTS_PER_CPU = 3.5
"""Per logical CPU of a whole server, memory included: Cloud Carbon Footprint, methodology, appendix I, AWS (the mean
of SPECpower results of its server types). Between machines the truth differs by a factor of two.
"""

DEFAULT_INTERVAL_SECONDS = 0.1


class EstimateSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.estimate]`. Where only one of the watts is set, the other keeps its distance or ratio."""

    startup: Literal["require", "retry", "ignore"] = "ignore"
    interval_seconds: Annotated[IntervalSeconds | None, Meta(description="Time between two reads. Unset: 0.1.")] = None
    idle_watts: Annotated[
        Watts | None,
        Meta(description="Of the whole machine's CPUs at no load. Unset: 0.74 W for each logical CPU."),
    ] = None
    max_watts: Annotated[
        Watts | None,
        Meta(description="Of the whole machine's CPUs at full load. Unset: 3.5 W for each logical CPU."),
    ] = None

    def __post_init__(self) -> None:
        if self.idle_watts is not None and self.max_watts is not None and self.max_watts < self.idle_watts:
            raise ValueError(f"max_watts ({self.max_watts}) is below idle_watts ({self.idle_watts})")


class EstimateCollector:
    """Guesses the power of the CPUs. Reads /proc/stat in a thread."""

    name: ClassVar[str] = "estimate"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = EstimateSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Take the first look at the load. Raises `SourceError`."""
        options = cast("EstimateSettings", settings)
        cpus = psutil.cpu_count() or 1
        idle_watts, max_watts = power_range_watts(options.idle_watts, options.max_watts, cpus)
        model = model_name(options.idle_watts, options.max_watts, cpus)
        source = EstimateSource(clock, idle_watts, max_watts, model)
        if options.interval_seconds is not None:
            source.interval_seconds = options.interval_seconds
        return source


def power_range_watts(idle_watts: float | None, max_watts: float | None, cpus: int) -> tuple[float, float]:
    """Watts at no load and at full load; what is not given follows from `cpus`, the number of logical CPUs."""
    if idle_watts is None:
        if max_watts is None:
            return IDLE_WATTS_PER_CPU * cpus, MAX_WATTS_PER_CPU * cpus
        return max_watts * IDLE_WATTS_PER_CPU / MAX_WATTS_PER_CPU, max_watts
    if max_watts is None:
        return idle_watts, idle_watts + (MAX_WATTS_PER_CPU - IDLE_WATTS_PER_CPU) * cpus
    return idle_watts, max_watts


def model_name(idle_watts: float | None, max_watts: float | None, cpus: int) -> str:
    """The model and where its figures come from, for whoever reads the device's label `product`."""
    shipped = f"Cloud Carbon Footprint AWS mean x {cpus} CPUs"
    if idle_watts is not None and max_watts is not None:
        return "linear in CPU load: idle and max configured"
    if idle_watts is not None:
        return f"linear in CPU load: idle configured, max above it by {shipped}"
    if max_watts is not None:
        return f"linear in CPU load: max configured, idle by the ratio of {shipped}"
    return f"linear in CPU load: {shipped}"


class CpuTimes(NamedTuple):
    """Cumulative CPU seconds of all logical CPUs."""

    busy: float
    total: float


class EstimateSource:
    """One pretended device: all CPUs of the machine."""

    def __init__(self, clock: Clock, idle_watts: float, max_watts: float, model: str) -> None:
        self.devices: Sequence[Device] = (
            Device(
                name="cpu_estimate",
                kind=DeviceKind.CPU_PACKAGE,
                product=model,
                source="estimate",
                method="linear_cpu_load",
                quality=Quality.ESTIMATED,
                idle_watts=idle_watts,
                max_watts=max_watts,
            ),
        )
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self._clock = clock
        self._idle_watts = idle_watts
        self._max_watts = max_watts
        self._last_ns = clock.now_ns()
        self._last = cpu_times()

    def read(self) -> list[Reading]:
        """The mean power since the last read, stamped at its middle; nothing while the kernel's counters rest."""
        now_ns, now = self._clock.now_ns(), cpu_times()
        total = now.total - self._last.total
        if total <= 0:
            if total < 0:  # a CPU was taken away, and its time with it
                self._last_ns, self._last = now_ns, now
            return []
        utilisation = min(1.0, max(0.0, (now.busy - self._last.busy) / total))
        middle_ns = (self._last_ns + now_ns) // 2
        self._last_ns, self._last = now_ns, now
        watts = self._idle_watts + (self._max_watts - self._idle_watts) * utilisation
        return [PowerReading("cpu_estimate", middle_ns, watts, Quality.ESTIMATED)]

    def close(self) -> None:
        """Nothing is held."""


def cpu_times() -> CpuTimes:
    """CPU seconds so far. Time stolen by other machines of the host is no work of ours; guests are part of `user`.

    Raises `SourceError`.
    """
    try:
        times = psutil.cpu_times()
    except (OSError, ValueError) as error:
        raise SourceError(
            SourceState.DENIED,
            "no_cpu_times",
            f"The CPU load cannot be read: {error}",
            mend="Let the daemon read /proc/stat; a systemd unit must not set ProcSubset=pid",
        ) from error
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return CpuTimes(busy, busy + times.idle + times.iowait + times.steal)

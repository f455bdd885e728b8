"""NVIDIA GPUs by NVML, the management library that comes with the driver."""

from typing import ClassVar, Literal, cast

from jouled.api import Clock, PowerSettings, PowerSource
from jouled_collectors.power.settings import IntervalSeconds, Watts


class NvmlSettings(PowerSettings, kw_only=True):
    """Settings of `[power.nvml]`.

    interval_seconds: unset, 0.02 where reading all devices costs at most 5 % of it, else 0.1. idle_watts,
    uplift_watts: of each GPU; unset, they are learned. devices: only these GPUs, by index or UUID; unset, all.
    """

    interval_seconds: IntervalSeconds | None = None
    idle_watts: Watts | None = None
    uplift_watts: Watts | None = None
    devices: list[int | str] | None = None


class NvmlCollector:
    """Reads NVIDIA GPUs. Runs in a child process: the library may hang, crash and outlive its driver."""

    name: ClassVar[str] = "nvml"
    isolation: ClassVar[Literal["thread", "process"]] = "process"
    settings_type: ClassVar[type[PowerSettings]] = NvmlSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Load NVML and choose for each GPU the best reading it supports. Raises `SourceError`."""
        # The daemon asks collectors for their settings only; the binding's 330 kB are for the child alone.
        from jouled_collectors.power.nvml_source import open_source

        options = cast("NvmlSettings", settings)
        return open_source(
            clock,
            selected=options.devices,
            interval_seconds=options.interval_seconds,
            idle_watts=options.idle_watts,
            uplift_watts=options.uplift_watts,
        )

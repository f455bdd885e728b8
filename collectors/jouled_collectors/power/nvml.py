"""NVIDIA GPUs by NVML, the management library that comes with the driver."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource
from jouled_collectors.power.settings import IntervalSeconds, Watts


class NvmlSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.nvml]`."""

    interval_seconds: Annotated[
        IntervalSeconds | None,
        Meta(description="Time between two reads. Unset: 0.1, or more where reading all GPUs takes long."),
    ] = None
    idle_watts: Annotated[Watts | None, Meta(description="Idle power of each GPU. Unset: it is learned.")] = None
    uplift_watts: Annotated[
        Watts | None, Meta(description="What being busy adds to each GPU before any work. Unset: it is learned.")
    ] = None
    devices: Annotated[list[int | str] | None, Meta(description="Only these GPUs, by index or UUID. Unset: all.")] = (
        None
    )
    proc_root: Annotated[
        str, Meta(description="Where /proc of the host is mounted; GPUs that are added are seen there.")
    ] = "/proc"


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
            proc_root=Path(options.proc_root),
        )

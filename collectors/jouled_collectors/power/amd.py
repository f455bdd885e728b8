"""AMD GPUs by AMD SMI, the management library of ROCm."""

from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource
from jouled_collectors.power.settings import IntervalSeconds, Watts


class AmdSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.amd]`."""

    interval_seconds: Annotated[
        IntervalSeconds | None,
        Meta(description="Time between two reads. Unset: 0.1, or more where reading all GPUs costs over 5 % of it."),
    ] = None
    idle_watts: Annotated[Watts | None, Meta(description="Of each GPU, idle. Unset: learned.")] = None
    uplift_watts: Annotated[Watts | None, Meta(description="Of each GPU, what being busy adds. Unset: learned.")] = None
    devices: Annotated[
        list[int | str] | None, Meta(description="Only these GPUs, by index, UUID or PCI address. Unset: all.")
    ] = None
    rocm_path: Annotated[
        str, Meta(description="Where ROCm is installed. Empty: `$ROCM_HOME`, `$ROCM_PATH`, then `/opt/rocm`.")
    ] = ""
    sysfs_root: Annotated[str, Meta(description="Where `/sys` is mounted.")] = "/sys"


class AmdCollector:
    """Reads AMD GPUs. Runs in a child process: the library may hang, crash and outlive its driver."""

    name: ClassVar[str] = "amd"
    isolation: ClassVar[Literal["thread", "process"]] = "process"
    settings_type: ClassVar[type[PowerSettings]] = AmdSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Load AMD SMI and choose for each GPU the best reading it supports. Raises `SourceError`."""
        # The daemon asks collectors for their settings only; what follows is for the child alone.
        from jouled_collectors.power.amd_source import open_source

        return open_source(clock, cast("AmdSettings", settings))

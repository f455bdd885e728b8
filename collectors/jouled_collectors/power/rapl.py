"""CPU packages and their memory by RAPL, the energy counters under /sys/class/powercap (Intel and AMD)."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError
from jouled_collectors.power.rapl_zones import counted_zones, denied
from jouled_collectors.power.settings import IntervalSeconds
from jouled_collectors.power.sysfs_source import SysfsSource

DEFAULT_INTERVAL_SECONDS = 0.1
"""One cell of the attribution grid: a pread costs about 5 µs, and the counter moves about every millisecond."""

_logger = logging.getLogger(__name__)


class RaplSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.rapl]`."""

    interval_seconds: Annotated[IntervalSeconds | None, Meta(description="Time between two reads. Unset: 0.1.")] = None
    sysfs_root: Annotated[str, Meta(description="Where /sys is mounted.")] = "/sys"


class RaplCollector:
    """Reads RAPL zones in a thread: sysfs does not hang."""

    name: ClassVar[str] = "rapl"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = RaplSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the zones that together are the CPUs, each once. Raises `SourceError`."""
        options = cast("RaplSettings", settings)
        find = partial(counted_zones, Path(options.sysfs_root) / "class" / "powercap")
        source = SysfsSource(clock, find(), find, denied, options.interval_seconds or DEFAULT_INTERVAL_SECONDS)
        try:
            source.read()
        except SourceError:
            source.close()
            raise
        _tell_missing_memory(source.devices)
        return source


def _tell_missing_memory(devices: Iterable[Device]) -> None:
    """AMD and most desktop parts have no DRAM zone: their memory is not metered, which is not 0 W."""
    kinds = {device.kind for device in devices}
    if DeviceKind.CPU_PACKAGE in kinds and DeviceKind.DRAM not in kinds:
        _logger.info("RAPL has no zone for memory here: the power of DRAM is not measured")

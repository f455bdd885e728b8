"""CPU packages and their memory by RAPL, the energy counters under /sys/class/powercap (Intel and AMD)."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, cast

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading
from jouled.model.units import nanoseconds
from jouled_collectors.power.rapl_zones import Zone, counted_zones, denied
from jouled_collectors.power.settings import IntervalSeconds

DEFAULT_INTERVAL_SECONDS = 0.1
"""One cell of the attribution grid: a pread costs about 5 µs, and the counter moves about every millisecond."""

RETRY_NS = nanoseconds(30)
STALE_DESCRIPTOR = frozenset({errno.ENODEV, errno.EIO, errno.ESTALE})
"""The zone behind an open descriptor went away, as when its module is loaded again; the path may be back at once."""


class RaplSettings(PowerSettings, kw_only=True):
    """Settings of `[power.rapl]`. sysfs_root: where /sys is mounted. interval_seconds: unset, 0.1."""

    interval_seconds: IntervalSeconds | None = None
    sysfs_root: str = "/sys"


class RaplCollector:
    """Reads RAPL zones in a thread: sysfs does not hang."""

    name: ClassVar[str] = "rapl"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = RaplSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the zones that together are the CPUs, each once. Raises `SourceError`."""
        options = cast("RaplSettings", settings)
        source = RaplSource(clock, counted_zones(Path(options.sysfs_root) / "class" / "powercap"))
        if options.interval_seconds is not None:
            source.interval_seconds = options.interval_seconds
        try:
            source.read()
        except SourceError:
            source.close()
            raise
        return source


class _Counter:
    """One zone's counter behind a kept descriptor (a pread costs a tenth of opening the file)."""

    def __init__(self, zone: Zone) -> None:
        self.device = zone.device
        self.path = zone.energy_path
        self.retry_at_ns = 0
        self._descriptor: int | None = None

    def read(self) -> int:
        """Microjoules. Raises `OSError`, or `ValueError` where the file holds no number."""
        if self._descriptor is not None:
            try:
                return int(os.pread(self._descriptor, 32, 0))
            except OSError as error:
                self.close()
                if error.errno not in STALE_DESCRIPTOR:
                    raise
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return int(os.pread(self._descriptor, 32, 0))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RaplSource:
    """The opened zones."""

    def __init__(self, clock: Clock, zones: Sequence[Zone]) -> None:
        self.devices: Sequence[Device] = tuple(zone.device for zone in zones)
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self._clock = clock
        self._counters = [_Counter(zone) for zone in zones]
        self._failures: dict[str, OSError | ValueError] = {}

    def read(self) -> list[Reading]:
        """Read every zone; one that fails is left out and asked again after 30 s. Raises `SourceError` if all fail."""
        readings: list[Reading] = []
        before_ns = self._clock.now_ns()
        for counter in self._counters:
            if before_ns < counter.retry_at_ns:
                continue
            try:
                microjoules = counter.read()
            except (OSError, ValueError) as error:
                self._failures[counter.device.name] = error
                if isinstance(error, OSError):
                    counter.retry_at_ns = before_ns + RETRY_NS
                continue
            after_ns = self._clock.now_ns()
            readings.append(EnergyReading(counter.device.name, (before_ns + after_ns) // 2, microjoules))
            before_ns = after_ns
        if not readings:
            raise self._nothing_read()
        return readings

    def close(self) -> None:
        """Close all descriptors."""
        for counter in self._counters:
            counter.close()

    def _nothing_read(self) -> SourceError:
        failures = list(self._failures.values())
        if any(isinstance(failure, PermissionError) for failure in failures):
            return denied(self._counters[0].path)
        return SourceError(SourceState.DOWN, "unreadable", f"No RAPL zone can be read: {failures[-1]}")

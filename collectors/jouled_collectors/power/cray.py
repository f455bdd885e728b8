"""Nodes, CPUs, memory and accelerators of HPE Cray machines, by the energy counters of their node controller."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.units import nanoseconds
from jouled_collectors.power.cray_counters import counters_folder, cray_sensors, first_number
from jouled_collectors.power.hwmon_overlap import chosen, counted_parts, gpus_are_metered, tell_left
from jouled_collectors.power.settings import IntervalSeconds
from jouled_collectors.power.sysfs_sensor import Sensor
from jouled_collectors.power.sysfs_source import SysfsSource

DEFAULT_INTERVAL_SECONDS = 0.1
"""As often as the controller fills the counters."""

FROZEN_NS = nanoseconds(5)
"""50 scans of the controller without news: it hangs, and the counters tell the past."""


class CraySettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.cray]`."""

    interval_seconds: Annotated[IntervalSeconds | None, Meta(description="Unset: 0.1.")] = None
    sysfs_root: Annotated[str, Meta(description="Where /sys is mounted.")] = "/sys"
    devices: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Devices to read, by name (`cray_node`, `cray_accel0`), even if another source meters the same."
            " Unset: all that no other source of this node meters."
        ),
    ] = None


class CrayCollector:
    """Reads pm_counters in a thread. Remembers over sessions since when the controller is silent."""

    name: ClassVar[str] = "cray"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = CraySettings

    def __init__(self) -> None:
        self._freshness = _Freshness()

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the counters. Raises `SourceError`."""
        options = cast("CraySettings", settings)
        root = Path(options.sysfs_root)

        def find() -> list[Sensor]:
            return _find(root, options.devices)

        sensors, interval_seconds = find(), options.interval_seconds or DEFAULT_INTERVAL_SECONDS
        source = CraySource(clock, sensors, find, denied, interval_seconds, options.devices or ())
        source.watch(counters_folder(root) / "freshness", self._freshness)
        try:
            source.read()
        except SourceError:
            source.close()
            raise
        if options.devices is None:
            tell_left(self.name, cray_sensors(counters_folder(root)), sensors)
        return source


class _Freshness:
    """The controller's count of scans, and when it moved last."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._moved_ns = 0

    def check(self, path: Path, now_ns: int) -> None:
        """Raises `SourceError` where the controller has not scanned for too long; a node without the file passes."""
        scans = first_number(path)
        if scans is None or scans != self._seen:
            self._seen, self._moved_ns = scans, now_ns
        elif now_ns - self._moved_ns > FROZEN_NS:
            raise SourceError(
                SourceState.DOWN,
                "frozen",
                f"The node controller has filled no counter for {FROZEN_NS // nanoseconds(1)} s ({path} stays {scans})",
                mend="Have the node controller (nC) looked at; the node itself may go on",
            )


class CraySource(SysfsSource):
    """The counters, as long as the controller fills them."""

    def watch(self, path: Path, freshness: _Freshness) -> None:
        """Look at this count of scans before each read."""
        self._freshness_path, self._freshness = path, freshness

    def read(self) -> list[Reading]:
        """Read all counters. Raises `SourceError` too where the controller stands still."""
        self._freshness.check(self._freshness_path, self._clock.now_ns())
        return super().read()


def denied(path: Path) -> SourceError:
    """The counters are for everybody unless a site says otherwise."""
    return SourceError(
        SourceState.DENIED, "permission", f"{path} may not be read", mend=f"As root: chmod 0444 {path.parent}/*"
    )


def _find(sysfs_root: Path, devices: Sequence[str] | None) -> list[Sensor]:
    """The counters to read. Raises `SourceError`."""
    folder = counters_folder(sysfs_root)
    try:
        sensors = cray_sensors(folder)
    except PermissionError:
        raise denied(folder / "energy") from None
    except OSError:
        raise _absent(f"No {folder}: this is no HPE Cray node") from None
    elsewhere = counted_parts(sysfs_root)
    if gpus_are_metered(sysfs_root):
        elsewhere |= {DeviceKind.GPU}
    kept = chosen(sensors, devices, elsewhere)
    if not kept:
        here = ", ".join(sensor.device.name for sensor in sensors) or "none"
        raise _absent(f"No counter in {folder} is named, or metered by no other source of this node; there is {here}")
    return kept


def _absent(message: str) -> SourceError:
    return SourceError(SourceState.ABSENT, "no_counters", message)

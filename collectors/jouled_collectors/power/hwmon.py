"""Meters under /sys/class/hwmon: ACPI power meters and Grace, power supplies, Intel GPUs, named sensors of boards."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta, field, structs

from jouled.api import Clock, PowerSettings, PowerSource
from jouled.model.device import DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.units import seconds
from jouled_collectors.power import cray_counters
from jouled_collectors.power.hwmon_chips import chips
from jouled_collectors.power.hwmon_find import Named, absent, find_sensors, nothing_left
from jouled_collectors.power.hwmon_overlap import chosen, counted_parts, gpus_are_metered, tell_left
from jouled_collectors.power.own_group import group_name
from jouled_collectors.power.settings import IntervalSeconds
from jouled_collectors.power.sysfs_file import text
from jouled_collectors.power.sysfs_sensor import Sensor
from jouled_collectors.power.sysfs_source import SysfsSource

LONGEST_INTERVAL_SECONDS, SHORTEST_INTERVAL_SECONDS = 1.0, 0.1
"""Gauges are read once in what they average over, between these. Counters need a read each minute at least: behind
the 64 bits of an Intel GPU stand 32 of hardware.
"""

_SENSORS_FILE = Path(__file__).with_name("hwmon_sensors.toml")

SensorKind = Literal["gpu", "cpu_package", "dram", "module", "node", "psu", "none"]


class HwmonSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.hwmon]`."""

    interval_seconds: Annotated[
        IntervalSeconds | None, Meta(description="Unset: the shortest window of the gauges, from 0.1 to 1 s.")
    ] = None
    sysfs_root: Annotated[str, Meta(description="Where /sys is mounted.")] = "/sys"
    devices: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Devices to read, by name, even if another source meters the same. Unset: all that no other"
            " source of this node meters."
        ),
    ] = None
    sensors: Annotated[
        dict[str, SensorKind],
        Meta(
            description="What sensors are that only their board explains, by `CHIP/LABEL`, such as"
            ' `"scmi_sensors/soc_power" = "cpu_package"`; each must be outside every other one of its kind.'
        ),
    ] = field(default_factory=dict)


class HwmonCollector:
    """Reads hwmon in a thread."""

    name: ClassVar[str] = "hwmon"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = HwmonSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the meters. Raises `SourceError`."""
        options = cast("HwmonSettings", settings)
        named = named_sensors(options.sensors)

        def find() -> list[Sensor]:
            return _find(Path(options.sysfs_root), named, options.devices)

        sensors = find()
        pace_seconds = options.interval_seconds or interval_seconds(sensors)
        source = SysfsSource(clock, sensors, find, denied, pace_seconds, options.devices or ())
        try:
            source.read()
        except SourceError:
            source.close()
            raise
        if options.devices is None:
            here = find_sensors(chips(Path(options.sysfs_root) / "class" / "hwmon"), named)
            tell_left(self.name, here, sensors)
        return source


def named_sensors(configured: Mapping[str, SensorKind]) -> Named:
    """The table of hwmon_sensors.toml with what is configured over it."""
    content = _SENSORS_FILE.read_text(encoding="utf-8")
    shipped = {
        f"{chip}/{label}": kind for chip, kinds in tomllib.loads(content).items() for label, kind in kinds.items()
    }
    return {name: DeviceKind(kind) for name, kind in {**shipped, **configured}.items() if kind != "none"}


def interval_seconds(sensors: Sequence[Sensor]) -> float:
    """The shortest window that a gauge averages over, so that no part of it stays unseen."""
    windows = [seconds(sensor.window_ns) for sensor in sensors if sensor.window_ns]
    return max(SHORTEST_INTERVAL_SECONDS, min([LONGEST_INTERVAL_SECONDS, *windows]))


def denied(path: Path) -> SourceError:
    """A file for root alone, as amd_energy's; how to let this daemon's group in, for good."""
    chip = text(path.parent / "name") or "amd_energy"
    rule = (
        f'SUBSYSTEM=="hwmon", ACTION=="add|change", ATTR{{name}}=="{chip}", '
        f"RUN+=\"/bin/sh -c 'chgrp {group_name()} /sys%p/*_input && chmod 0440 /sys%p/*_input'\""
    )
    return SourceError(
        SourceState.DENIED,
        "permission",
        f"{path} may not be read",
        mend=f"As root: echo {_quoted(rule)} > /etc/udev/rules.d/90-jouled-hwmon.rules && udevadm control --reload"
        " && udevadm trigger --subsystem-match=hwmon --action=add",
    )


def _hidden(hwmon: Path) -> SourceError:
    return SourceError(
        SourceState.DENIED,
        "permission",
        f"{hwmon} may not be listed",
        mend="Let the daemon's user see it; in a container mount the host's /sys and set `sysfs_root` in [power.hwmon]",
    )


def _quoted(rule: str) -> str:
    quote = "'\"'\"'"
    return "'" + rule.replace("'", quote) + "'"


def _find(sysfs_root: Path, named: Named, devices: Sequence[str] | None) -> list[Sensor]:
    """The sensors to read. Raises `SourceError` where none is left."""
    hwmon = sysfs_root / "class" / "hwmon"
    try:
        present = chips(hwmon)
    except PermissionError:
        raise _hidden(hwmon) from None
    except OSError:
        raise absent(f"No {hwmon}") from None
    elsewhere = counted_parts(sysfs_root, cray_counters.counted_kinds(sysfs_root))
    if gpus_are_metered(sysfs_root):
        elsewhere |= {DeviceKind.MODULE}
    here = find_sensors(present, named)
    sensors = chosen(here, devices, elsewhere)
    if not sensors:
        raise nothing_left(present, here)
    kept = {sensor.device.name for sensor in sensors}
    return [_without_lost_parent(sensor, kept) for sensor in sensors]


def _without_lost_parent(sensor: Sensor, kept: set[str]) -> Sensor:
    if sensor.device.parent in kept:
        return sensor
    return dataclasses.replace(sensor, device=structs.replace(sensor.device, parent=""))

"""What other sources of this node meter already, so that no joule is counted twice.

The better meter wins: RAPL (a counter of each package, each ms), then Cray's pm_counters (counters, 10 Hz), then hwmon;
GPUs are the vendor libraries'.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from jouled.model.device import DeviceKind
from jouled_collectors.power.rapl_zones import readable_kinds
from jouled_collectors.power.sysfs_sensor import Sensor

GPU_DRIVERS = ("nvidia", "amdgpu")
"""Drivers whose GPUs have a source of their own, by the vendor's library."""

_PARTS = frozenset({DeviceKind.CPU_PACKAGE, DeviceKind.DRAM})
"""Kinds of which all devices are added up; of meters of the whole node the core believes one (`[node] meters`)."""

_logger = logging.getLogger(__name__)


def counted_parts(sysfs_root: Path, *others: frozenset[DeviceKind]) -> frozenset[DeviceKind]:
    """CPU packages and memory that RAPL, or one of `others`, meters here."""
    return _PARTS & readable_kinds(sysfs_root).union(*others)


def gpus_are_metered(sysfs_root: Path) -> bool:
    """Whether a driver holds GPUs that the vendor's library meters: a PCI driver's folder links to each of them."""
    drivers = sysfs_root / "bus" / "pci" / "drivers"
    return any(any((drivers / name).glob("*:*:*.*")) for name in GPU_DRIVERS)


def chosen(sensors: Sequence[Sensor], names: Sequence[str] | None, elsewhere: frozenset[DeviceKind]) -> list[Sensor]:
    """Those that the operator named, whatever else meters them; else those that nothing else meters."""
    if names is None:
        return [sensor for sensor in sensors if sensor.device.kind not in elsewhere]
    return [sensor for sensor in sensors if sensor.device.name in names]


def tell_left(source: str, here: Sequence[Sensor], kept: Sequence[Sensor]) -> None:
    """What is not read, as another source could: whether that one is configured is not known here."""
    names = {sensor.device.name for sensor in kept}
    left = ", ".join(sensor.device.name for sensor in here if sensor.device.name not in names)
    if left:
        _logger.info("%s leaves these to other sources; name them in `devices` to read them here: %s", source, left)

"""The counters of HPE Cray nodes under /sys/cray/pm_counters: `VALUE UNIT TIME us`, filled at 10 Hz by the controller.

HPE, "User Access to Compute Node Power Data" (Cray System Management documentation); listings of CSCS Alps (GH200).
"""

import os
import re
from pathlib import Path

from jouled.model.device import Device, DeviceKind
from jouled.model.units import MICROJOULES_PER_JOULE
from jouled_collectors.power.sysfs_file import text, whole_number
from jouled_collectors.power.sysfs_sensor import Sensor

_ENERGY = re.compile(r"(?:(cpu|memory|accel)(\d*)_)?energy")
_KINDS = {
    "": DeviceKind.NODE,
    "cpu": DeviceKind.CPU_PACKAGE,
    "memory": DeviceKind.DRAM,
    "accel": DeviceKind.GPU,
}


def counters_folder(sysfs_root: Path) -> Path:
    """Where the counters are."""
    return sysfs_root / "cray" / "pm_counters"


def cray_sensors(folder: Path) -> list[Sensor]:
    """One sensor for each energy that is told: sockets and accelerators one by one, else as one. Raises `OSError`.

    A counter at zero is of a part that the node does not have.
    """
    matches = [(match, path) for path in folder.iterdir() if (match := _ENERGY.fullmatch(path.name))]
    told = {match.groups(default=""): path for match, path in matches if first_number(path) != 0}
    numbered = {part for part, number in told if number}
    return [
        _sensor(part, number, path) for (part, number), path in sorted(told.items()) if number or part not in numbered
    ]


def counted_kinds(sysfs_root: Path) -> frozenset[DeviceKind]:
    """The kinds of devices that can be read here."""
    try:
        sensors = cray_sensors(counters_folder(sysfs_root))
    except OSError:
        return frozenset()
    return frozenset(sensor.device.kind for sensor in sensors if all(os.access(file, os.R_OK) for file in sensor.files))


def first_number(path: Path) -> int | None:
    """The value before unit and time; `None` if there is none."""
    return whole_number(text(path).partition(" ")[0])


def _sensor(part: str, number: str, path: Path) -> Sensor:
    prefix = f"{part}{number}_" if part else ""
    cap_watts = first_number(path.with_name(f"{prefix}power_cap"))
    device = Device(
        name=f"cray_{part or 'node'}{number}",
        kind=_KINDS[part],
        vendor="hpe",
        source="cray",
        method="cray_pm_counters",
        max_watts=float(cap_watts) if cap_watts else None,
    )
    return Sensor(device, (path,), counts_energy=True, unit_micro=MICROJOULES_PER_JOULE)

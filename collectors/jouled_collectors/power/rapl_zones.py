"""Which powercap zones to count so that every joule of the CPUs is counted once, and what mends a denied one."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.own_group import group_name
from jouled_collectors.power.sysfs_file import positive_number, text
from jouled_collectors.power.sysfs_sensor import MICROWATTS_PER_WATT, Sensor

_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?")
"""A zone or its child. AMD uses the same prefix; intel-rapl-mmio:* shows the same package a second time."""

_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")

_logger = logging.getLogger(__name__)


def counted_zones(powercap: Path) -> list[Sensor]:
    """Packages (or dies) and their memory, which lies outside the package; the platform where no package is told.

    Core and uncore are parts of their package. `enabled` tells of the power limit, not of the counter, and is not
    asked. Raises `SourceError` with state absent or denied.
    """
    folders = _zone_folders(powercap)
    names = {number: text(folder / "name") for number, folder in folders.items()}
    zones: dict[str, Sensor] = {}
    for number, folder in folders.items():
        device = _package_or_memory(number, names, folder)
        if device is None or device.name in zones:
            _logger.debug("%s (%r) is not counted: unknown, or part of another zone", folder.name, names[number])
            continue
        zones[device.name] = _sensor(device, folder)
    if not any(zone.device.kind is DeviceKind.CPU_PACKAGE for zone in zones.values()):
        zones.update(_platform(folders, names))
    if not zones:
        raise _absent(f"No RAPL zone of a CPU package in {powercap}")
    return list(zones.values())


def readable_kinds(sysfs_root: Path) -> frozenset[DeviceKind]:
    """The kinds of devices that RAPL meters on this node, as far as its counters may be read."""
    try:
        zones = counted_zones(sysfs_root / "class" / "powercap")
    except SourceError:
        return frozenset()
    return frozenset(zone.device.kind for zone in zones if all(os.access(file, os.R_OK) for file in zone.files))


def denied(path: Path) -> SourceError:
    """The kernel lets only root read the counters; how to let this daemon's group in, for good."""
    group = group_name()
    rule = (
        'SUBSYSTEM=="powercap", ACTION=="add|change", TEST=="energy_uj", '
        f'RUN+="/bin/chgrp {group} /sys%p/energy_uj", RUN+="/bin/chmod 0440 /sys%p/energy_uj"'
    )
    return SourceError(
        SourceState.DENIED,
        "permission",
        f"RAPL counters may not be read: {path} is for root alone since CVE-2020-8694",
        mend=f"As root: echo '{rule}' > /etc/udev/rules.d/90-jouled-powercap.rules && udevadm control --reload"
        " && udevadm trigger --subsystem-match=powercap --action=add"
        " -- or give the service CAP_DAC_READ_SEARCH: PrivateUsers=no, AmbientCapabilities=CAP_DAC_READ_SEARCH and"
        " CapabilityBoundingSet=CAP_DAC_READ_SEARCH by `systemctl edit jouled`",
    )


def _zone_folders(powercap: Path) -> dict[tuple[int, ...], Path]:
    """Zone folders by number, sorted: (0,) is a package, (0, 1) its child. Raises `SourceError`."""
    try:
        top = list(powercap.iterdir())
    except PermissionError:
        raise denied(powercap) from None
    except OSError:
        raise _absent(f"No {powercap}") from None
    found: dict[tuple[int, ...], Path] = {}
    for folder in [*top, *_children(top)]:
        if match := _ZONE.fullmatch(folder.name):
            found.setdefault(tuple(int(part) for part in match.groups() if part is not None), folder)
    return dict(sorted(found.items()))


def _children(top: Iterable[Path]) -> list[Path]:
    """Children lie inside their zone; /sys/class lists them beside it too."""
    children: list[Path] = []
    for folder in top:
        if _ZONE.fullmatch(folder.name):
            try:
                children.extend(folder.iterdir())
            except OSError as error:
                _logger.info("the parts of %s cannot be listed: %s", folder, error)
    return children


def _package_or_memory(number: tuple[int, ...], names: Mapping[tuple[int, ...], str], folder: Path) -> Device | None:
    package = _PACKAGE.fullmatch(names.get(number[:1], ""))
    if package is None:
        return None
    socket, die = package.groups()
    suffix = socket if die is None else f"{socket}-die{die}"
    if len(number) == 1:
        return _device(f"cpu{suffix}", DeviceKind.CPU_PACKAGE, "rapl_package", folder)
    if names[number] == "dram":
        return _device(f"dram{suffix}", DeviceKind.DRAM, "rapl_dram", folder)
    return None


def _platform(folders: Mapping[tuple[int, ...], Path], names: Mapping[tuple[int, ...], str]) -> dict[str, Sensor]:
    """The platform zone is the node, so that nothing it may contain is added to it."""
    for number, folder in folders.items():
        if len(number) == 1 and names[number] == "psys":
            return {"psys": _sensor(_device("psys", DeviceKind.NODE, "rapl_psys", folder), folder)}
    return {}


def _device(name: str, kind: DeviceKind, method: str, folder: Path) -> Device:
    limit_microwatts = positive_number(folder / "constraint_0_power_limit_uw")
    return Device(
        name=name,
        kind=kind,
        source="rapl",
        method=method,
        max_watts=limit_microwatts / MICROWATTS_PER_WATT if limit_microwatts else None,
        wrap_microjoules=positive_number(folder / "max_energy_range_uj"),
    )


def _sensor(device: Device, folder: Path) -> Sensor:
    return Sensor(device, (folder / "energy_uj",), counts_energy=True)


def _absent(message: str) -> SourceError:
    return SourceError(
        SourceState.ABSENT,
        "no_powercap",
        message,
        mend="On bare metal load the driver: modprobe intel_rapl_msr; a virtual machine has none: use [power.estimate]",
    )

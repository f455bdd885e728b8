"""ACPI power meters: the whole node, or the sockets of NVIDIA's Grace, told apart by `power1_oem_info`.

Names and what contains what: NVIDIA Grace performance tuning guide, "Power Telemetry"; as read by DCGM
(modules/sysmon/DcgmSystemMonitor.cpp) and Alumet (plugins/grace-hopper).
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.units import NANOSECONDS_PER_MILLISECOND
from jouled_collectors.power.hwmon_chips import Chip
from jouled_collectors.power.sysfs_file import positive_number
from jouled_collectors.power.sysfs_sensor import MICROWATTS_PER_WATT, SENTINELS, Sensor

CHIP = "power_meter"

_SOCKET = re.compile(r"(\w+) Power Socket (\d+)")
_LONGEST_WINDOW_MS = 60_000
"""A longer interval is no averaging window of a meter but a word for "not known"."""


def acpi_sensors(meters: Iterable[Chip]) -> list[Sensor]:
    """The meters that count.

    Module ⊇ Grace + GPU + its memory; Grace ⊇ CPU + SysIO + LPDDR, so that the CPU rail only counts where Grace is not
    told, and SysIO, a part without a kind of its own, never. A meter that names no socket is the node's; of several
    the first, for the others may measure the same.
    """
    nodes: list[Chip] = []
    sockets: dict[tuple[int, str], Chip] = {}
    for chip in meters:
        match = _SOCKET.fullmatch(chip.text("power1_oem_info"))
        if match:
            sockets.setdefault((int(match[2]), match[1]), chip)
        elif chip.text("power1_is_battery") != "1":
            nodes.append(chip)
    return [*(_node(chip) for chip in nodes[:1]), *_sockets(sockets)]


def _sockets(sockets: Mapping[tuple[int, str], Chip]) -> Iterator[Sensor]:
    for (socket, part), chip in sorted(sockets.items(), key=lambda item: item[0]):
        module = f"module{socket}" if (socket, "Module") in sockets else ""
        if part == "Module":
            yield _sensor(chip, module, DeviceKind.MODULE, "acpi_module")
        elif part == "Grace":
            yield _sensor(chip, f"grace{socket}", DeviceKind.CPU_PACKAGE, "acpi_grace", module)
        elif part == "CPU" and (socket, "Grace") not in sockets:
            yield _sensor(chip, f"grace{socket}", DeviceKind.CPU_PACKAGE, "acpi_cpu_rail", module)


def _node(chip: Chip) -> Sensor:
    return _sensor(chip, "acpi_node", DeviceKind.NODE, "acpi_power_meter")


def _sensor(chip: Chip, name: str, kind: DeviceKind, method: str, parent: str = "") -> Sensor:
    device = Device(
        name=name,
        kind=kind,
        parent=parent,
        vendor="" if kind is DeviceKind.NODE else "nvidia",
        product=chip.text("power1_model_number"),
        source="hwmon",
        method=method,
        quality=Quality.DERIVED,
        # A node's cap is often a figure that nobody set; a socket's is what the firmware keeps.
        max_watts=None if kind is DeviceKind.NODE else _cap_watts(chip),
    )
    window_ms = positive_number(chip.file("power1_average_interval")) or 0
    window_ns = window_ms * NANOSECONDS_PER_MILLISECOND if window_ms <= _LONGEST_WINDOW_MS else 0
    return Sensor(device, (chip.file("power1_average"),), counts_energy=False, window_ns=window_ns)


def _cap_watts(chip: Chip) -> float | None:
    cap = positive_number(chip.file("power1_cap"))
    return cap / MICROWATTS_PER_WATT if cap and cap not in SENTINELS else None

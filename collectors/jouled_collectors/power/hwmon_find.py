"""Which hwmon chips meter something, and what: each joule once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.hwmon_acpi import CHIP as ACPI_CHIP
from jouled_collectors.power.hwmon_acpi import acpi_sensors
from jouled_collectors.power.hwmon_chips import Chip
from jouled_collectors.power.sysfs_file import exists, positive_number
from jouled_collectors.power.sysfs_sensor import MICROWATTS_PER_WATT, SENTINELS, Sensor

IGNORED: Mapping[str, str] = {
    "amdgpu": "the source `amd` reads the same GPU by AMD's library",
    "nouveau": "a driver for displays; serving runs on NVIDIA's, which the source `nvml` asks",
    "corsairpsu": "tells what a desktop's supply gives, not what it takes",
}
"""Chips with a power or energy that is not taken unless the operator names its sensor, and why.

Never taken: `i915_gtN` (a part of the card `i915`), cores of amd_energy (parts of their socket), `pout` of a supply
(what is left of `pin`), chips without a power (nvme, coretemp, k10temp, drivetemp) and every label that neither this
file nor hwmon_sensors.toml knows.
"""

Named = Mapping[str, DeviceKind]
"""By `CHIP/LABEL`, what a sensor is that only its board's maker can explain."""

_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SOCKET_LABEL = re.compile(r"Esocket(\d+)")
_SUPPLY_MILLIVOLTS = 90_000
"""Least input of a node's supply: mains or 380 V DC. Regulators on the board tell `pin` too, of 12 or 54 V."""


def find_sensors(chips: Sequence[Chip], named: Named) -> list[Sensor]:
    """All sensors that count, each device once."""
    sensors: dict[str, Sensor] = {}
    acpi = acpi_sensors(chip for chip in chips if chip.name == ACPI_CHIP)
    for sensor in chain(acpi, *(_sensors(chip, named) for chip in chips)):
        sensors.setdefault(sensor.device.name, sensor)
    return list(sensors.values())


def nothing_left(chips: Sequence[Chip], here: Sequence[Sensor]) -> SourceError:
    """None of these meters what no other source meters."""
    names = sorted({chip.name or "without a name" for chip in chips})
    told = "; ".join(f"{name} ({IGNORED[name]})" if name in IGNORED else name for name in names)
    metered = ", ".join(sensor.device.name for sensor in here)
    chosen = f"; devices left to other sources, or not named: {metered}" if here else ""
    return absent(f"No hwmon chip meters power that no other source meters; chips: {told or 'none'}{chosen}")


def absent(message: str) -> SourceError:
    """Nothing here meters power."""
    return SourceError(
        SourceState.ABSENT,
        "no_meter",
        message,
        mend="Load the driver of the meter if there is one (modprobe acpi_power_meter), or say what a sensor is in"
        " [power.hwmon.sensors]; a virtual machine has none",
    )


def _sensors(chip: Chip, named: Named) -> Iterator[Sensor]:
    if chip.name in {"i915", "xe"}:
        yield from _intel_gpu(chip)
    elif chip.name == "amd_energy":
        yield from _amd_sockets(chip)
    else:
        yield from _supply(chip)
        yield from _named(chip, named)


def _intel_gpu(chip: Chip) -> Iterator[Sensor]:
    """The card's counter, or its package's where the card has none: 64 bits that the driver fills from 32.

    Linux, Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon.
    """
    for number, method in (("1", "hwmon_card_energy"), ("2", "hwmon_package_energy")):
        file = chip.file(f"energy{number}_input")
        if exists(file):
            limit = _watts(chip, f"power{number}_max") or _watts(chip, f"power{number}_rated_max")
            address = chip.place if _PCI.fullmatch(chip.place) else ""
            device = _device(f"intel_gpu-{chip.place}", DeviceKind.GPU, method, limit, "intel", address)
            yield Sensor(device, (file,), counts_energy=True)
            return


def _amd_sockets(chip: Chip) -> Iterator[Sensor]:
    """Sockets; the driver keeps 64 bits. Linux 5.8, Documentation/hwmon/amd_energy.rst."""
    for number, label in chip.labelled("energy"):
        if match := _SOCKET_LABEL.fullmatch(label):
            device = _device(f"amd_energy{match[1]}", DeviceKind.CPU_PACKAGE, "amd_energy", vendor="amd")
            yield Sensor(device, (chip.file(f"energy{number}_input"),), counts_energy=True)


def _supply(chip: Chip) -> Iterator[Sensor]:
    """A power supply's input, by PMBus: `pin` at mains voltage; what has no `vin` may be a regulator on the board.

    Linux, Documentation/hwmon/pmbus.rst.
    """
    pin = next((number for number, label in chip.labelled("power") if label == "pin"), None)
    vin = next((number for number, label in chip.labelled("in") if label == "vin"), None)
    if pin is None or vin is None:
        return
    millivolts = positive_number(chip.file(f"in{vin}_input"))
    if millivolts is not None and millivolts < _SUPPLY_MILLIVOLTS:
        return
    limit = _watts(chip, f"power{pin}_rated_max") or _watts(chip, f"power{pin}_max")
    device = _device(f"psu-{chip.place}", DeviceKind.PSU, "pmbus_pin", limit, product=chip.name, counts_energy=False)
    yield Sensor(device, (chip.file(f"power{pin}_input"),), counts_energy=False)


def _named(chip: Chip, named: Named) -> Iterator[Sensor]:
    """Sensors that a table explains: an energy, a power, or volts times amperes (INA3221)."""
    for quantity in ("energy", "power", "in"):
        for number, label in chip.labelled(quantity):
            kind = named.get(f"{chip.name}/{label}")
            if kind is not None:
                yield _named_sensor(chip, quantity, number, label, kind)


def _named_sensor(chip: Chip, quantity: str, number: str, label: str, kind: DeviceKind) -> Sensor:
    """A channel of this kind; millivolts times milliamperes are microwatts."""
    name = re.sub(r"[^a-z0-9_-]", "_", f"{chip.name}-{label}".lower())
    counts_energy = quantity == "energy"
    device = _device(name, kind, f"hwmon_{chip.name}", product=label, counts_energy=counts_energy)
    files = [chip.file(f"{quantity}{number}_input")]
    if quantity == "in":
        files.append(chip.file(f"curr{number}_input"))
    return Sensor(device, tuple(files), counts_energy=counts_energy)


def _device(
    name: str,
    kind: DeviceKind,
    method: str,
    max_watts: float | None = None,
    vendor: str = "",
    pci_bus_id: str = "",
    *,
    product: str = "",
    counts_energy: bool = True,
) -> Device:
    return Device(
        name=name,
        kind=kind,
        vendor=vendor,
        product=product,
        pci_bus_id=pci_bus_id,
        source="hwmon",
        method=method,
        quality=Quality.MEASURED if counts_energy else Quality.DERIVED,
        max_watts=max_watts,
    )


def _watts(chip: Chip, name: str) -> float | None:
    """A limit; 0 is one that is switched off."""
    microwatts = positive_number(chip.file(name))
    return microwatts / MICROWATTS_PER_WATT if microwatts and microwatts not in SENTINELS else None

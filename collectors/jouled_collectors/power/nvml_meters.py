"""The ways in which a GPU can tell its energy or power, best first."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pynvml

from jouled.model.device import DeviceKind, Quality
from jouled.model.readings import EnergyReading, PowerReading
from jouled_collectors.power.nvml_errors import DEVICE_LOST, SOURCE_GONE

Handle = Any
"""The binding's opaque device handle."""

MICROJOULES_PER_MILLIJOULE = 1_000
MILLIWATTS_PER_WATT = 1_000
AVERAGE_LAG_NS = 500_000_000
"""Field 185 averages over the last second: its value belongs half a second back.

The window of field 186, at most 100 ms and of unknown phase, lies within one cell of the attribution grid: no shift.
"""

NOT_AVAILABLE_64_BITS = 2**64 - 1
NOT_AVAILABLE_32_BITS = 2**32 - 1
"""NVML_VALUE_NOT_AVAILABLE (pynvml.py), which some calls give in place of a code."""

MOST_MILLIJOULES = (2**63 - 1) // MICROJOULES_PER_MILLIJOULE
"""What signed microjoules hold: 300 years at 1 kW."""

_GA100_DEVICE_IDS = range(0x2000, 0x2100)
"""PCI device ids of GA100 (A100, A800, A30, CMP 170HX) and of nothing else (pci.ids)."""

_UNION_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t by NVML_VALUE_TYPE."""


def field_value(entry: Any) -> int:
    """The number in one entry of `nvmlDeviceGetFieldValues`.

    The call succeeds where single entries failed, and the type of a field differs between drivers.
    Raises `NVMLError` with the entry's own return code, or NO_DATA where its type or value makes no number, among them
    the values that mean "not available".
    """
    if entry.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(entry.nvmlReturn)
    if not 0 <= entry.valueType < len(_UNION_MEMBERS):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
    value = getattr(entry.value, _UNION_MEMBERS[entry.valueType])
    if not math.isfinite(value) or not 0 <= value < NOT_AVAILABLE_64_BITS:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
    return int(value)


def read_field(handle: Handle, field: int, scope: int) -> int:
    """One field of one scope. Raises `NVMLError`."""
    return field_value(pynvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])[0])


def usable_milliwatts(value: int) -> int:
    """`value`; raises `NVMLError` with NO_DATA where it means "not available"."""
    if not 0 <= value < NOT_AVAILABLE_32_BITS:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
    return value


@dataclass(frozen=True, slots=True)
class Meter:
    """One way to read a device: an energy counter in millijoules, or a power gauge in milliwatts.

    ask: the call; `read` refuses what it may give in place of a value. fits: whether the meter is what it says on this
    device, asked once before it is chosen.
    """

    method: str
    kind: DeviceKind
    counts_energy: bool
    ask: Callable[[Handle], int]
    lag_ns: int = 0
    fits: Callable[[Handle], bool] = lambda _handle: True

    @property
    def quality(self) -> Quality:
        """Energy that the device counted is measured; energy integrated from its power is derived."""
        return Quality.MEASURED if self.counts_energy else Quality.DERIVED

    def read(self, handle: Handle) -> int:
        """Millijoules or milliwatts now. Raises `NVMLError`, NO_DATA for values that mean "not available"."""
        value = self.ask(handle)
        if not self.counts_energy:
            return usable_milliwatts(value)
        if not 0 <= value <= MOST_MILLIJOULES:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
        return value

    def reading(self, device: str, t_ns: int, value: int) -> EnergyReading | PowerReading:
        """What `value`, read at `t_ns`, says."""
        if self.counts_energy:
            return EnergyReading(device, t_ns, value * MICROJOULES_PER_MILLIJOULE)
        return PowerReading(device, t_ns - self.lag_ns, value / MILLIWATTS_PER_WATT)


def _field_meter(method: str, kind: DeviceKind, field: int, lag_ns: int = 0) -> Meter:
    scope = pynvml.NVML_POWER_SCOPE_MODULE if kind is DeviceKind.MODULE else pynvml.NVML_POWER_SCOPE_GPU
    counts_energy = field == pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
    return Meter(method, kind, counts_energy, lambda handle: read_field(handle, field, scope), lag_ns)


def _field_meters(kind: DeviceKind) -> tuple[Meter, ...]:
    return (
        _field_meter("nvml_energy_field", kind, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
        _field_meter("nvml_power_average", kind, pynvml.NVML_FI_DEV_POWER_AVERAGE, AVERAGE_LAG_NS),
        _field_meter("nvml_power_instant", kind, pynvml.NVML_FI_DEV_POWER_INSTANT),
    )


def _power_usage(handle: Handle) -> int:
    return int(pynvml.nvmlDeviceGetPowerUsage(handle))


def _averages_usage(handle: Handle) -> bool:
    """Whether `nvmlDeviceGetPowerUsage` is an average over 1 s: Ampere without GA100, and newer (NVML reference)."""
    try:
        architecture = pynvml.nvmlDeviceGetArchitecture(handle)
        device_id = pynvml.nvmlDeviceGetPciInfo(handle).pciDeviceId >> 16
    except pynvml.NVMLError:
        return False
    if architecture == pynvml.NVML_DEVICE_ARCH_UNKNOWN:
        return False
    return bool(architecture >= pynvml.NVML_DEVICE_ARCH_AMPERE) and device_id not in _GA100_DEVICE_IDS


METERS = (
    Meter("nvml_energy", DeviceKind.GPU, True, lambda handle: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))),
    *_field_meters(DeviceKind.GPU),
    Meter("nvml_power_usage_average", DeviceKind.GPU, False, _power_usage, AVERAGE_LAG_NS, _averages_usage),
    Meter("nvml_power_usage", DeviceKind.GPU, False, _power_usage),
    *_field_meters(DeviceKind.MODULE),
)
"""In order of preference. Some superchips have no GPU scope: their module is CPU, GPU and memory together."""


def probe(handle: Handle, kind: DeviceKind | None = None, frozen: Collection[int] = ()) -> Meter:
    """The best meter that answers, of this kind of device if one is given.

    frozen: values at which the counter stood still; while it shows one of them it is passed over, by any call.

    Raises `NVMLError`: of the source or the lost device at once, else the refusal of the first meter when all refuse.
    """
    refusals = []
    for meter in METERS:
        if kind not in {None, meter.kind} or not meter.fits(handle):
            continue
        try:
            value = meter.read(handle)
        except pynvml.NVMLError as error:
            if error.value in SOURCE_GONE | DEVICE_LOST:
                raise
            refusals.append(error)
            continue
        if not (meter.counts_energy and value in frozen):
            return meter
    raise refusals[0] if refusals else pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)

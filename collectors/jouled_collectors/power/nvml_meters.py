"""The ways in which a GPU can tell its energy or power, best first."""

import math
from collections.abc import Callable
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
"""Field 185 averages over the last second: its value belongs half a second back."""

_UNION_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t by NVML_VALUE_TYPE."""


def field_value(entry: Any) -> int:
    """The number in one entry of `nvmlDeviceGetFieldValues`.

    The call succeeds where single entries failed, and the type of a field differs between drivers.
    Raises `NVMLError` with the entry's own return code, or NO_DATA where its type or value makes no number.
    """
    if entry.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(entry.nvmlReturn)
    if not 0 <= entry.valueType < len(_UNION_MEMBERS):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
    value = getattr(entry.value, _UNION_MEMBERS[entry.valueType])
    if not math.isfinite(value):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_DATA)
    return int(value)


def read_field(handle: Handle, field: int, scope: int) -> int:
    """One field of one scope. Raises `NVMLError`."""
    return field_value(pynvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])[0])


@dataclass(frozen=True, slots=True)
class Meter:
    """One way to read a device: an energy counter in millijoules, or a power gauge in milliwatts."""

    method: str
    kind: DeviceKind
    counts_energy: bool
    read: Callable[[Handle], int]
    lag_ns: int = 0

    @property
    def quality(self) -> Quality:
        """Energy that the device counted is measured; energy integrated from its power is derived."""
        return Quality.MEASURED if self.counts_energy else Quality.DERIVED

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


METERS = (
    Meter("nvml_energy", DeviceKind.GPU, True, lambda handle: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))),
    *_field_meters(DeviceKind.GPU),
    # Unshifted: parts on which it is a 1-s average have the energy counter, so it is reached on older ones only.
    Meter("nvml_power_usage", DeviceKind.GPU, False, lambda handle: int(pynvml.nvmlDeviceGetPowerUsage(handle))),
    *_field_meters(DeviceKind.MODULE),
)
"""In order of preference. Some superchips have no GPU scope: their module is CPU, GPU and memory together."""


def probe(handle: Handle) -> Meter:
    """The best meter that answers.

    Raises `NVMLError`: of the source or the lost device at once, else the refusal of the first meter when all refuse.
    """
    refusals = []
    for meter in METERS:
        try:
            meter.read(handle)
        except pynvml.NVMLError as error:
            if error.value in SOURCE_GONE | DEVICE_LOST:
                raise
            refusals.append(error)
        else:
            return meter
    raise refusals[0]

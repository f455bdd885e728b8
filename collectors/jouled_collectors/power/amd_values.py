"""What the answers of AMD SMI mean. The library marks what it does not know by all-ones of some width, 0 or "N/A"."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MICROWATTS_PER_WATT = 1_000_000

LEAST_MICROWATTS = 100_000
"""A power cap from here on is in microwatts: no cap is below 0.1 W or above 100 kW, and amdsmi.h has both units."""

UNKNOWN_WATTS = 0xFFFF
"""The narrowest all-ones, 65 kW: no GPU's power, whatever the width of the field."""

UNKNOWN_COUNTS = frozenset({0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})
"""All-ones of a counter. That of 16 bits is a value every counter passes."""

MOST_MICROJOULES = 2**63 - 1
"""What the books hold: 300 years at 1 kW."""

NOMINAL_RESOLUTION = (15.2, 15.4)
"""Resolutions between these mean 2^-16 J: rocm_smi.cc says 15.3 (0.27 % too much), the header 15.259."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: microjoules of a counter or watts of a gauge, and the driver's own time stamp, if it has one."""

    amount: float
    stamp_ns: int | None = None


def number(value: object) -> float | None:
    """A number that is not negative, or `None`. Integers stay as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value >= 0 else None


def count(value: object) -> int | None:
    """What a counter of at most 64 bits says, or `None`."""
    if isinstance(value, float):
        return None
    told = number(value)
    return int(told) if told is not None and told < max(UNKNOWN_COUNTS) and told not in UNKNOWN_COUNTS else None


def watts(value: object) -> float | None:
    """Watts, or `None`; a GPU that draws 0 W is one that does not tell."""
    told = number(value)
    return float(told) if told is not None and 0 < told < UNKNOWN_WATTS else None


def cap_watts(value: object) -> float | None:
    """A power cap in watts, whichever of its two units it has."""
    told = count(value)
    if told is None:
        return None
    return watts(told / MICROWATTS_PER_WATT if told >= LEAST_MICROWATTS else told)


def power(answer: object, key: str) -> Sample | None:
    """A gauge of `amdsmi_get_power_info`."""
    told = watts(answer.get(key)) if isinstance(answer, Mapping) else None
    return Sample(told) if told is not None else None


def energy(answer: object) -> Sample | None:
    """The counter of `amdsmi_get_energy_count` (its key was `power` before ROCm 6.4). 0 is a die without a meter."""
    if not isinstance(answer, Mapping):
        return None
    ticks = count(answer.get("energy_accumulator", answer.get("power")))
    resolution = number(answer.get("counter_resolution"))
    if not ticks or not resolution or resolution > MICROWATTS_PER_WATT:
        return None
    amount = _microjoules(ticks, resolution)
    return Sample(amount, count(answer.get("timestamp")) or None) if amount <= MOST_MICROJOULES else None


def text(value: object) -> str:
    """A description, empty where the library does not know."""
    told = value.strip() if isinstance(value, str) else ""
    return "" if told == "N/A" else told


def _microjoules(ticks: int, resolution: float) -> int:
    low, high = NOMINAL_RESOLUTION
    if low < resolution < high:
        return (ticks * MICROWATTS_PER_WATT) >> 16
    return round(ticks * resolution)

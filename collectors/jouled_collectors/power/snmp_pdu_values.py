"""What an agent's number means: watts, microjoules, or nothing at all. Pure."""

from fractions import Fraction

from jouled.model.units import MICROJOULES_PER_JOULE
from jouled_collectors.power.snmp_pdu_profile import Column, EnergyColumn, PowerColumn

NO_POWER = frozenset({0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF})
NO_ENERGY = frozenset({0x7FFFFFFF, 0xFFFFFFFF})
"""All bits set, which agents send for `unknown`. As energy, 65 535 Wh are as good as any."""

MOST_MICROJOULES = 2**63 - 1
"""What the books hold: 300 years at 1 kW."""

MOST_DIGITS = 6
"""PDU2-MIB has digits of 0 to 3; more is garbage."""

AVAILABLE = 1
"""TruthValue `true` (RFC 2579)."""


class NoValueError(Exception):
    """There is no reading; the text says why."""


def watts_of(column: PowerColumn, raw: int, digits: int = 0) -> float:
    """Watts of a raw gauge. Raises `NoValueError`."""
    _refuse_absent(column, raw, NO_POWER)
    return float(_exact(column.watts) * raw / _power_of_ten(digits))


def microjoules(column: EnergyColumn, raw: int, digits: int = 0) -> int:
    """Microjoules of a raw counter, of the same raw value always the same. Raises `NoValueError`."""
    _refuse_absent(column, raw, NO_ENERGY)
    found = _microjoules(column, raw, digits)
    if found > MOST_MICROJOULES:
        raise NoValueError(f"says {raw}, which is more than any socket has given")
    return found


def wrap_microjoules(column: EnergyColumn, digits: int = 0) -> int | None:
    """Range of the counter in microjoules; `None` if it never wraps, as 2^32 Wh do not: the books hold less."""
    found = None if column.wraps_at is None else _microjoules(column, column.wraps_at, digits)
    return None if found is None or found > MOST_MICROJOULES else found


def step_joules(column: EnergyColumn, digits: int = 0) -> float:
    """What one count is worth."""
    return float(_exact(column.joules) / _power_of_ten(digits))


def checked_digits(raw: int) -> int:
    """Decimal digits as a digits column gives them. Raises `NoValueError`."""
    if not 0 <= raw <= MOST_DIGITS:
        raise NoValueError(f"has {raw} decimal digits")
    return raw


def _microjoules(column: EnergyColumn, raw: int, digits: int) -> int:
    return round(_exact(column.joules) * raw * MICROJOULES_PER_JOULE / _power_of_ten(digits))


def _power_of_ten(digits: int) -> int:
    power: int = 10**digits
    return power


def _exact(scale: float) -> Fraction:
    """The decimal fraction that was written, not the nearest binary one."""
    return Fraction(str(scale))


def _refuse_absent(column: Column, raw: int, sentinels: frozenset[int]) -> None:
    if raw < 0 or raw in sentinels or raw in column.invalid:
        raise NoValueError(f"says {raw}, which means that it has no such reading")

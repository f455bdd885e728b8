"""What energy costs: money and grams of CO2 equivalent."""

from jouled.model.parameters import Price
from jouled.model.units import JOULES_PER_KILOWATT_HOUR


def facility_factor(price: Price) -> float:
    """Joules at the facility's meter per joule of IT equipment: the PUE, 1 where nobody said (nothing is invented)."""
    return 1.0 if price.pue is None else price.pue


def energy_cost(price: Price, joules: float) -> float | None:
    """Cost of IT joules at the facility's meter, in the price's currency; `None` without a price."""
    if price.price_per_kwh is None:
        return None
    return joules * facility_factor(price) / JOULES_PER_KILOWATT_HOUR * price.price_per_kwh


def co2e_grams(price: Price, joules: float) -> float | None:
    """Grams of CO2 equivalent of IT joules at the facility's meter; `None` without a grid intensity."""
    if price.grid_grams_per_kwh is None:
        return None
    return joules * facility_factor(price) / JOULES_PER_KILOWATT_HOUR * price.grid_grams_per_kwh

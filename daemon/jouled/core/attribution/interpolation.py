"""A meter's energy at cell edges: between two readings it runs as expected power does.

A straight line between two readings lends the energy of a prefill to the idle cell beside it. Expected power knows
better where in between it was used; how much was used is the meter's to tell (docs/attribution.md, the meter).
"""

from collections.abc import Sequence
from itertools import accumulate

from jouled.core.attribution.cells import CELL_NS, start_of
from jouled.core.ledger.curve import EnergyCurve


class Shape:
    """Expected power over a range of cells, in any unit, above zero; even within a cell."""

    def __init__(self, begin: int, power: Sequence[float]) -> None:
        self._begin_ns = start_of(begin)
        self._power = power
        self._sums = list(accumulate(power, initial=0.0))
        self.begin = begin
        self.end = begin + len(power)

    def until(self, t_ns: int) -> float:
        """Expected energy from the range's begin to a moment of it, its end included."""
        index, offset_ns = divmod(t_ns - self._begin_ns, CELL_NS)
        if index >= len(self._power):
            return self._sums[-1]
        return self._sums[index] + self._power[index] * offset_ns / CELL_NS


def edge_values(curve: EnergyCurve, shape: Shape, begin_uj: int, lag_ns: int) -> list[int]:
    """Cumulative microjoules at every cell edge of the range but its first, at which the value is `begin_uj`.

    What the curve shows at a moment plus `lag_ns` had been used by that moment. The last edge is linear: beyond it
    nothing is expected yet.
    """
    begin_ns, end_ns = start_of(shape.begin), start_of(shape.end)
    last_uj = max(curve.value_at(end_ns + lag_ns), begin_uj)
    inside = ((t_ns - lag_ns, uj) for t_ns, uj in curve.between(begin_ns + lag_ns, end_ns + lag_ns))
    values: list[int] = []
    from_ns, from_uj = begin_ns, begin_uj
    for to_ns, known_uj in (*inside, (end_ns, last_uj)):
        to_uj = min(max(known_uj, from_uj), last_uj)
        edge_ns = start_of(shape.begin + len(values) + 1)
        if edge_ns <= to_ns:
            low, high = shape.until(from_ns), shape.until(to_ns)
            while edge_ns < to_ns:
                part = (shape.until(edge_ns) - low) / (high - low)
                values.append(from_uj + int((to_uj - from_uj) * min(part, 1.0)))
                edge_ns += CELL_NS
            if edge_ns == to_ns:
                values.append(to_uj)
        from_ns, from_uj = to_ns, to_uj
    return values

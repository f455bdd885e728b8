"""A meter's energy at cell edges: between two readings it runs as expected power does.

A straight line between two readings lends the energy of a prefill to the idle cell beside it. Expected power knows
better where in between it was used; how much was used is the meter's to tell (docs/attribution.md, the meter).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_NS, start_of
from jouled.core.ledger.curve import EnergyCurve

Knot = tuple[int, int]
"""(core time in nanoseconds, cumulative microjoules)"""


class Shape:
    """Expected power over a range of cells, in any unit, above zero; even within a cell.

    busy: whether somebody is there all through a cell.
    """

    def __init__(self, begin: int, power: Sequence[float], busy: Sequence[bool]) -> None:
        self._begin_ns = start_of(begin)
        self._power = power
        self._sums = list(accumulate(power, initial=0.0))
        self._busy = busy
        self.begin = begin
        self.end = begin + len(power)

    def until(self, t_ns: int) -> float:
        """Expected energy from the range's begin to a moment of it, its end included."""
        index, offset_ns = divmod(t_ns - self._begin_ns, CELL_NS)
        if index >= len(self._power):
            return self._sums[-1]
        return self._sums[index] + self._power[index] * offset_ns / CELL_NS

    def busy_around(self, t_ns: int) -> bool:
        """Whether somebody is there all through the cell of a moment, and the cells beside it."""
        index = (t_ns - self._begin_ns) // CELL_NS
        return all(self._busy[max(index - 1, 0) : index + 2])


class Lags(NamedTuple):
    """By how much a meter runs behind at a range's begin and at its end, nanoseconds; evenly changing in between."""

    begin_ns: int = 0
    end_ns: int = 0


def edge_values(curve: EnergyCurve, shape: Shape, begin_uj: int, lags: Lags, apart_ns: int = 0) -> list[int]:
    """Cumulative microjoules at every cell edge of the range but its first, at which the value is `begin_uj`.

    What the curve shows at a moment plus the lag had been used by that moment. The last edge is linear: beyond it
    nothing is expected yet. apart_ns: of readings amid busy time, only such as are so far apart count.
    """
    begin_ns, end_ns = start_of(shape.begin), start_of(shape.end)
    from_meter_ns, until_meter_ns = begin_ns + lags.begin_ns, end_ns + lags.end_ns
    last_uj = max(curve.value_at(until_meter_ns), begin_uj)
    span_ns, meter_span_ns = end_ns - begin_ns, until_meter_ns - from_meter_ns
    inside = [
        (begin_ns + (t_ns - from_meter_ns) * span_ns // meter_span_ns, uj)
        for t_ns, uj in curve.between(from_meter_ns, until_meter_ns)
    ]
    if apart_ns:
        inside = _apart(inside, shape, apart_ns)
    values: list[int] = []
    from_ns, from_uj = begin_ns, begin_uj
    for to_ns, known_uj in (*inside, (end_ns, last_uj)):
        to_uj = min(max(known_uj, from_uj), last_uj)
        edge_ns = start_of(shape.begin + len(values) + 1)
        if edge_ns <= to_ns:
            low, high = shape.until(from_ns), shape.until(to_ns)
            while edge_ns < to_ns:
                part = _share(shape.until(edge_ns) - low, high - low, edge_ns - from_ns, to_ns - from_ns)
                values.append(from_uj + int((to_uj - from_uj) * min(part, 1.0)))
                edge_ns += CELL_NS
            if edge_ns == to_ns:
                values.append(to_uj)
        from_ns, from_uj = to_ns, to_uj
    return values


def _share(expected: float, of_expected: float, span_ns: int, of_span_ns: int) -> float:
    """A share by what is expected; by time where so little is that running sums do not show it."""
    return expected / of_expected if of_expected > 0.0 else span_ns / of_span_ns


def _apart(knots: Sequence[Knot], shape: Shape, apart_ns: int) -> list[Knot]:
    """The knots where somebody comes to an empty engine or it empties, and of the others such as are far apart."""
    found: list[Knot] = []
    last_ns = start_of(shape.begin)
    for t_ns, uj in knots:
        if t_ns - last_ns >= apart_ns or not shape.busy_around(t_ns):
            found.append((t_ns, uj))
            last_ns = t_ns
    return found

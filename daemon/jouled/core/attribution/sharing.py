"""Equal shares at every instant of a cell in which members come and go.

Somebody who is there from a to b gets ∫ dt / B(t) of what is shared, with B the number of members: what a cell costs
per second is parted among those who are there in that second, not among all who are there at some time of it.
"""

from bisect import bisect_right
from collections.abc import Iterable

from jouled.core.attribution.cells import CELL_NS
from jouled.model.units import NANOSECONDS_PER_SECOND


class SharedTime:
    """∫ dt / B(t) from a cell's begin on, seconds; it stands still while nobody is there.

    members: how many are there at the cell's begin; changes: (core time in the cell, +1 or −1).
    """

    def __init__(self, cell_ns: int, members: int, changes: Iterable[tuple[int, int]]) -> None:
        self._times, self._values, self._slopes = [cell_ns], [0.0], [1.0 / members if members else 0.0]
        self._at_changes = {cell_ns: 0.0}
        self.busy_seconds = 0.0
        last_ns, value, slope = cell_ns, 0.0, self._slopes[0]
        for t_ns, change in (*sorted(changes), (cell_ns + CELL_NS, 0)):
            if t_ns > last_ns:
                seconds = (t_ns - last_ns) / NANOSECONDS_PER_SECOND
                self.busy_seconds += seconds if slope else 0.0
                value += slope * seconds
                self._times.append(t_ns)
                self._values.append(value)
                self._at_changes[t_ns] = value
                self._slopes.append(0.0)
                last_ns = t_ns
            members += change
            slope = self._slopes[-1] = 1.0 / members if members > 0 else 0.0

    def at(self, t_ns: int) -> float:
        """The value at a moment of the cell, its end included."""
        known = self._at_changes.get(t_ns)
        if known is not None:
            return known
        index = bisect_right(self._times, t_ns) - 1
        return self._values[index] + self._slopes[index] * (t_ns - self._times[index]) / NANOSECONDS_PER_SECOND

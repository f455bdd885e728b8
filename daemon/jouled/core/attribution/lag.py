"""By how much an engine's meter runs behind its events, from measured against expected power.

Clocks differ, counters average, spans are stamped at the far side of a queue: 0.1 s of it costs several points on
short work (attribution.md section 4). Power expected from events, shifted by whole cells, is fitted to measured power
with three taps around the best shift; their centre of mass is the lag.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

from jouled.core.attribution.cells import CELL_NS
from jouled.core.attribution.learning import solve

REACH = 15
"""Cells: lags of up to a second and a half are looked for."""
LONGEST_CELLS = REACH + 1
"""No lag that is found is longer; cells whose energy may only be read so much later wait for it."""
CELLS_MIN = 200
"""Shorter ranges tell too little."""
FORGET = 0.95
"""Per range of half a minute: half of the weight is gone after seven minutes."""
CORRELATION_MIN = 0.3
CORRECTED_NS = 50_000_000
"""Smaller lags are left alone (attribution.md section 4)."""
GRAIN_NS = 10_000_000


class Lag:
    """Cross-correlation of changes in measured and in expected power, over the last ranges."""

    def __init__(self) -> None:
        self._cross = [0.0] * (2 * REACH + 1)
        self._auto = [0.0] * 3
        self._weight = 0.0
        self.corrected_ns = 0

    def observe(self, measured: Sequence[float], expected: Sequence[float]) -> None:
        """Take one range of cells."""
        m = [after - before for before, after in pairwise(measured)]
        e = [after - before for before, after in pairwise(expected)]
        size = sqrt(sum(x * x for x in m) * sum(x * x for x in e))
        if len(m) < CELLS_MIN or size <= 0.0:
            return
        inner = range(REACH, len(m) - REACH)
        for index, shift in enumerate(range(-REACH, REACH + 1)):
            product = sum(m[k] * e[k - shift] for k in inner)
            self._cross[index] = FORGET * self._cross[index] + product / size
        for shift in range(3):
            product = sum(e[k] * e[k - shift] for k in inner)
            self._auto[shift] = FORGET * self._auto[shift] + product / sum(x * x for x in e)
        self._weight = FORGET * self._weight + 1.0
        self.corrected_ns = self._correction()

    def _correction(self) -> int:
        peak = max(range(1, 2 * REACH), key=self._cross.__getitem__)
        if self._cross[peak] < CORRELATION_MIN * self._weight:
            return 0
        near, next_to, far = self._auto
        if not _is_positive_definite(near, next_to, far):
            return 0
        matrix = [[near, next_to, far], [next_to, near, next_to], [far, next_to, near]]
        taps = [max(tap, 0.0) for tap in solve(matrix, self._cross[peak - 1 : peak + 2])]
        if sum(taps) <= 0.0:
            return 0
        centre = peak - REACH + (taps[2] - taps[0]) / sum(taps)
        lag_ns = round(centre * CELL_NS / GRAIN_NS) * GRAIN_NS
        return lag_ns if abs(lag_ns) >= CORRECTED_NS else 0


def _is_positive_definite(near: float, next_to: float, far: float) -> bool:
    """Whether changes of expected power at three shifts can be told apart; not where all were at a range's ends."""
    return near > abs(next_to) and (near - far) * (near * (near + far) - 2 * next_to * next_to) > 1e-9 * near**3

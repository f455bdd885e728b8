"""When an engine's steps happened, and with them the decoding: from its step counter.

A step that carries a chunk of a prompt takes several times as long, so decode does not advance evenly in time: every
member gets its tokens step by step. The steps counted between two looks at the page are spread over the cells by how
dense they are with and without a prefill; the ratio r of both follows by least squares over the last minutes
(attribution.md section 3.5).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, cell_of, start_of
from jouled.core.attribution.census import Look
from jouled.core.attribution.load import Row
from jouled.model.units import nanoseconds

LOWEST, HIGHEST = 0.02, 1.0
INTERVALS_MIN = 8
LONGEST_INTERVAL_NS = nanoseconds(10.0)
"""Looks further apart than this tell too little of when the steps between them happened."""
FORGET = 0.992
"""Per look, every 5 s: half of the weight is gone after seven minutes."""
LEAST_PACE = 1e-3
"""Steps per second where none were counted: a request that is told to have decoded there still did."""
TOKENS_WEIGHT = 0.2


class StepClock:
    """Least squares of counted steps on busy seconds without and with prefill, by the last minutes."""

    def __init__(self) -> None:
        self._plain2 = self._both = self._prefill2 = self._plain_steps = self._prefill_steps = 0.0
        self._intervals = 0
        self.tokens_per_step: float | None = None

    @property
    def ratio(self) -> float:
        """Steps per second with a prefill over those without; 1 until enough was seen."""
        determinant = self._plain2 * self._prefill2 - self._both * self._both
        if self._intervals < INTERVALS_MIN or determinant <= 1e-9 * self._plain2 * self._prefill2:
            return 1.0
        plain = self._plain_steps * self._prefill2 - self._prefill_steps * self._both
        prefill = self._prefill_steps * self._plain2 - self._plain_steps * self._both
        return min(max(prefill / plain, LOWEST), HIGHEST) if plain > 0.0 else 1.0

    def set(self, begin: int, rows: Sequence[Row], looks: Sequence[Look]) -> bool:
        """Give rows from cell `begin` on their steps and their pace, if looks come closely; else leave them alone.

        Before the first look and after the last one steps are as dense as beside them. A counter that stands still
        while requests decode counts no steps.
        """
        counted = [look for look in looks if look.steps is not None]
        intervals = [(a, b) for a, b in pairwise(counted) if b.t_ns - a.t_ns <= LONGEST_INTERVAL_NS]
        if not intervals or len(intervals) < len(counted) - 1:
            return False
        if intervals[-1][1].steps == intervals[0][0].steps and any(row.decoders > 0.0 for row in rows):
            return False
        begin_ns, end_ns = start_of(begin), start_of(begin + len(rows))
        for before, after in intervals:
            if before.t_ns >= begin_ns and after.t_ns <= end_ns:
                self._observe(rows[cell_of(before.t_ns) - begin : cell_of(after.t_ns) - begin], _steps(before, after))
        ratio = self.ratio
        weights = [row.busy * (1.0 - (1.0 - ratio) * row.prefilling) for row in rows]
        per_weight = [_per_weight(begin, weights, before, after) for before, after in intervals]
        ends = [after.t_ns for _, after in intervals]
        for index, (row, weight) in enumerate(zip(rows, weights, strict=True)):
            row.steps = weight * _mean_over_cell(start_of(begin + index), ends, per_weight)
            row.pace = max(row.steps / CELL_SECONDS, LEAST_PACE)
        return True

    def observe_tokens(self, per_step: float | None) -> None:
        """Take what every member got by each step of a range; `None`: nobody decoded."""
        if per_step is not None:
            last = self.tokens_per_step
            self.tokens_per_step = per_step if last is None else last + TOKENS_WEIGHT * (per_step - last)

    def _observe(self, rows: Sequence[Row], steps: float) -> None:
        if steps <= 0.0:
            return
        prefill = sum(row.prefilling for row in rows)
        plain = sum(row.busy for row in rows) - prefill
        self._plain2 = FORGET * self._plain2 + plain * plain
        self._both = FORGET * self._both + plain * prefill
        self._prefill2 = FORGET * self._prefill2 + prefill * prefill
        self._plain_steps = FORGET * self._plain_steps + plain * steps
        self._prefill_steps = FORGET * self._prefill_steps + prefill * steps
        self._intervals += 1


def _steps(before: Look, after: Look) -> float:
    return max((after.steps or 0) - (before.steps or 0), 0)


def _per_weight(begin: int, weights: Sequence[float], before: Look, after: Look) -> float:
    """Steps per unit of weight between two looks; where only a part of the time is in the range, that part's share."""
    first_ns = max(before.t_ns, start_of(begin))
    last_ns = min(after.t_ns, start_of(begin + len(weights)))
    if last_ns <= first_ns:
        return 0.0
    total = 0.0
    for index in range(cell_of(first_ns) - begin, min(cell_of(last_ns) - begin + 1, len(weights))):
        cell_ns = start_of(begin + index)
        total += weights[index] * (min(last_ns, cell_ns + CELL_NS) - max(first_ns, cell_ns)) / CELL_NS
    share = (last_ns - first_ns) / (after.t_ns - before.t_ns)
    return _steps(before, after) * share / total if total > 0.0 else 0.0


def _mean_over_cell(cell_ns: int, ends: Sequence[int], values: Sequence[float]) -> float:
    """A value that changes at `ends`, over one cell; the last one lasts for ever."""
    first = min(bisect_right(ends, cell_ns), len(values) - 1)
    last = min(bisect_right(ends, cell_ns + CELL_NS - 1), len(values) - 1)
    if first == last:
        return values[first]
    part = (ends[first] - cell_ns) / CELL_NS
    return part * values[first] + (1.0 - part) * values[last]

"""An engine's steps where its page counts none, or too seldom: from what each member decodes."""

from collections.abc import Sequence

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, cell_of, start_of
from jouled.core.attribution.census import Census
from jouled.core.attribution.load import Row
from jouled.core.attribution.step_clock import CHUNK_TOKENS

RATIO_WEIGHT = 0.2
LEAST_STEPS = 20
"""Fewer estimated steps of a range tell too little of the ratio."""


class EstimatedSteps:
    """Goes by the ratio of counted to estimated steps, as far as it is known."""

    def __init__(self) -> None:
        self._ratio = 1.0

    def fill(self, census: Census, begin: int, rows: Sequence[Row]) -> None:
        """Give rows from cell `begin` on their steps."""
        for row in rows:
            if row.decoders > 0.0:
                row.steps = row.decode / row.decoders * min(row.decoders, CELL_SECONDS * row.busy)
            elif row.prefill > 0.0:
                row.steps = row.prefill / CHUNK_TOKENS
        counted = _counted_over(census, begin, len(rows))
        if counted is not None:
            low, high, steps = counted
            estimated = sum(row.steps for row in rows[low - begin : high - begin])
            if estimated > LEAST_STEPS and steps > 0:
                ratio = min(max(steps / estimated, 0.05), 4.0)
                self._ratio += RATIO_WEIGHT * (ratio - self._ratio)
        for row in rows:
            row.steps *= self._ratio


def _counted_over(census: Census, begin: int, count: int) -> tuple[int, int, float] | None:
    """(first cell, end cell, steps) of the part of a range that looks cover; `None` without."""
    looks = [look for look in census.looks if look.steps is not None]
    if len(looks) < 2:
        return None
    low = max(begin, cell_of(looks[0].t_ns + CELL_NS - 1))
    high = min(begin + count, cell_of(looks[-1].t_ns))
    if high <= low:
        return None
    start, end = census.counter_at("steps", start_of(low)), census.counter_at("steps", start_of(high))
    return None if start is None or end is None else (low, high, end - start)

"""When an engine's steps happened, and with them the decoding: from its step counter and from what events tell.

A step that carries prompt tokens takes several times as long as one that only decodes, so decode does not advance
evenly in time. But what ends is known: a service start is the begin of a step, a first token the end of one. Between
two such moments prompts were computed in one step, or in as many as chunks fit their tokens. Those steps are put where
they were; what else was counted between two looks at the page is spread evenly over the time without a prefill
(attribution.md section 3.5, ADR 0008).
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, start_of
from jouled.core.attribution.census import Look
from jouled.core.attribution.load import Row
from jouled.core.attribution.prefill_stretches import Stretch, stretches_of
from jouled.core.attribution.request import Request
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

CHUNKS = (512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
"""Most tokens of a step (vLLM: max_num_batched_tokens); which one an engine has shows in its step counter."""
CHUNK_TOKENS = 2048.0
"""Taken for it before that (attribution.md section 3.4)."""
INTERVALS_MIN = 4
LONGEST_INTERVAL_NS = nanoseconds(10.0)
"""Looks further apart than this tell too little of when the steps between them happened."""
FORGET = 0.99
"""Per look, every 5 s: half of the weight is gone after six minutes."""
PLAIN_RATE_REACH = 2.5
"""An interval in which steps without a prefill come by more than this factor denser or sparser than usual had other
prefill steps than were thought."""
LEAST_PACE = 1e-3
"""Steps per second where none were counted: a request that is told to have decoded there still did."""
TOKENS_WEIGHT = 0.2

Interval = tuple[Look, Look]


class StepClock:
    """Steps per second without a prefill, and tokens of a step, by least squares over the last minutes."""

    def __init__(self) -> None:
        self._intervals = 0
        self._seconds2 = 0.0
        self._seconds_steps = [0.0] * len(CHUNKS)
        self._steps2 = [0.0] * len(CHUNKS)
        self.chunk_tokens = CHUNK_TOKENS
        self.tokens_per_step: float | None = None

    @property
    def plain_rate(self) -> float | None:
        """Steps per second without a prefill; `None` until enough was seen."""
        if self._intervals < INTERVALS_MIN or self._seconds2 <= 0.0:
            return None
        return max(self._seconds_steps[CHUNKS.index(self.chunk_tokens)] / self._seconds2, 1.0)

    def set(self, begin: int, rows: Sequence[Row], looks: Sequence[Look], requests: Iterable[Request] = ()) -> bool:
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
        stretches = stretches_of(requests, start_of(begin), start_of(begin + len(rows)))
        prefilling = _Spread(begin, len(rows))
        for stretch in stretches:
            prefilling.add(stretch, (stretch.until_ns - stretch.from_ns) / NANOSECONDS_PER_SECOND)
        plain = _Spread(begin, len(rows))
        plain.cells = [
            max(row.busy * CELL_SECONDS - seconds, 0.0) for row, seconds in zip(rows, prefilling.cells, strict=True)
        ]
        self._observe(intervals, plain, stretches)
        steps = _Spread(begin, len(rows))
        for stretch in stretches:
            steps.add(stretch, stretch.steps(self.chunk_tokens))
        rates = [self._rates(interval, plain, steps) for interval in intervals]
        _fill(begin, rows, plain, steps, [after.t_ns for _, after in intervals], rates)
        return True

    def observe_tokens(self, per_step: float | None) -> None:
        """Take what every member got by each step of a range; `None`: nobody decoded."""
        if per_step is not None:
            last = self.tokens_per_step
            self.tokens_per_step = per_step if last is None else last + TOKENS_WEIGHT * (per_step - last)

    def _observe(self, intervals: Sequence[Interval], plain: "_Spread", stretches: Sequence[Stretch]) -> None:
        """Take the intervals that lie in the range; the chunk is the one with which plain steps come most evenly."""
        for before, after in intervals:
            if before.t_ns < plain.begin_ns or after.t_ns > plain.end_ns:
                continue
            seconds = plain.over(before.t_ns, after.t_ns)
            inside = [stretch for stretch in stretches if before.t_ns < stretch.until_ns <= after.t_ns]
            self._seconds2 = FORGET * self._seconds2 + seconds * seconds
            for index, chunk in enumerate(CHUNKS):
                steps = _steps(before, after) - sum(stretch.steps(chunk) for stretch in inside)
                self._seconds_steps[index] = FORGET * self._seconds_steps[index] + seconds * steps
                self._steps2[index] = FORGET * self._steps2[index] + steps * steps
            self._intervals += 1
        if self._intervals >= INTERVALS_MIN and self._seconds2 > 0.0:
            left = [s2 - ts * ts / self._seconds2 for s2, ts in zip(self._steps2, self._seconds_steps, strict=True)]
            self.chunk_tokens = CHUNKS[min(range(len(left)), key=left.__getitem__)]

    def _rates(self, interval: Interval, plain: "_Spread", steps: "_Spread") -> tuple[float, float]:
        """Steps per second without a prefill between two looks, and by what to multiply those with one."""
        before, after = interval
        from_ns, until_ns = max(before.t_ns, plain.begin_ns), min(after.t_ns, plain.end_ns)
        if until_ns <= from_ns:
            return 0.0, 1.0
        counted = _steps(before, after) * (until_ns - from_ns) / (after.t_ns - before.t_ns)
        seconds, prefills = plain.over(from_ns, until_ns), steps.over(from_ns, until_ns)
        usual, rest = self.plain_rate, counted - prefills
        if seconds > 0.0 and rest > 0.0:
            rate = rest / seconds
            if usual is None or usual / PLAIN_RATE_REACH < rate < usual * PLAIN_RATE_REACH:
                return rate, 1.0
        expected = (usual or 0.0) * seconds + prefills
        factor = counted / expected if expected > 0.0 else 0.0
        return (usual or 0.0) * factor, factor


class _Spread:
    """An amount in each cell of a range."""

    def __init__(self, begin: int, count: int) -> None:
        self._begin = begin
        self.begin_ns, self.end_ns = start_of(begin), start_of(begin + count)
        self.cells = [0.0] * count

    def add(self, stretch: Stretch, amount: float) -> None:
        """Spread an amount evenly over a stretch of the range."""
        per_ns = amount / (stretch.until_ns - stretch.from_ns)
        for cell, shared_ns in self._cells(stretch.from_ns, stretch.until_ns):
            self.cells[cell] += per_ns * shared_ns

    def over(self, from_ns: int, until_ns: int) -> float:
        """The amount in a part of the range."""
        return sum(self.cells[cell] * shared_ns for cell, shared_ns in self._cells(from_ns, until_ns)) / CELL_NS

    def _cells(self, from_ns: int, until_ns: int) -> Iterable[tuple[int, int]]:
        """The cells that an interval touches, and how long it lasts in each."""
        first, last = from_ns // CELL_NS - self._begin, (until_ns - 1) // CELL_NS - self._begin
        if first == last:
            return ((first, until_ns - from_ns),)
        inner = ((cell, CELL_NS) for cell in range(first + 1, last))
        end_ns = start_of(self._begin + first + 1)
        return ((first, end_ns - from_ns), *inner, (last, until_ns - start_of(self._begin + last)))


def _fill(
    begin: int,
    rows: Sequence[Row],
    plain: _Spread,
    steps: _Spread,
    ends: Sequence[int],
    rates: Sequence[tuple[float, float]],
) -> None:
    plain_rates, factors = [rate for rate, _ in rates], [factor for _, factor in rates]
    for index, row in enumerate(rows):
        cell_ns = start_of(begin + index)
        row.steps = plain.cells[index] * _mean_over_cell(cell_ns, ends, plain_rates)
        if steps.cells[index]:
            row.steps += steps.cells[index] * _mean_over_cell(cell_ns, ends, factors)
        row.pace = max(row.steps / CELL_SECONDS, LEAST_PACE)


def _steps(before: Look, after: Look) -> float:
    return max((after.steps or 0) - (before.steps or 0), 0)


def _mean_over_cell(cell_ns: int, ends: Sequence[int], values: Sequence[float]) -> float:
    """A value that changes at `ends`, over one cell; the last one lasts for ever."""
    first = min(bisect_right(ends, cell_ns), len(values) - 1)
    last = min(bisect_right(ends, cell_ns + CELL_NS - 1), len(values) - 1)
    if first == last:
        return values[first]
    part = (ends[first] - cell_ns) / CELL_NS
    return part * values[first] + (1.0 - part) * values[last]

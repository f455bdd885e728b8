"""Decode in step time: the tokens of every known request over one range of cells, and the KV cache that they read.

A request's tokens follow the engine's steps, not the wall clock: within a range by the pace of its cells, over several
ranges by what a step gave every member lately; its last range gets what is left. Where no steps are counted the wall
clock has to do. KV reads grow with the context, so their rate is affine in step time.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, start_of
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Request
from jouled.model.units import NANOSECONDS_PER_SECOND


class Pace:
    """Step time over a range: it begins at 0 and runs `pace` units per second in each cell."""

    def __init__(self, begin: int, rows: Sequence[Row]) -> None:
        self._begin_ns = start_of(begin)
        self._rows = rows
        for row, elapsed in zip(rows, accumulate((row.pace * CELL_SECONDS for row in rows), initial=0.0), strict=False):
            row.elapsed = elapsed
        self.end_ns = start_of(begin + len(rows))

    def at(self, t_ns: int) -> float:
        """Step time at a moment of the range, its end included."""
        index, offset_ns = divmod(t_ns - self._begin_ns, CELL_NS)
        if index == len(self._rows):
            index, offset_ns = index - 1, CELL_NS
        row = self._rows[index]
        return row.elapsed + row.pace * offset_ns / NANOSECONDS_PER_SECOND


SPECULATES, TOO_MANY = 1.3, 32.0
"""Tokens that a request gets per counted step, on average, above which its engine checks drafts: without any it is 1,
but for what counting between looks leaves open. From the other on, the counter stands still: nobody drafts so many."""


class Span(NamedTuple):
    """One request's decode in a range, from step time `low` to `high`: `tokens`, after `made` earlier ones."""

    request: Request
    from_ns: int
    until_ns: int
    low: float
    high: float
    made: float
    tokens: float


class Decoding:
    """Running sums of a range: entries at cells in which a request's decode begins or ends."""

    def __init__(self, begin: int, rows: Sequence[Row]) -> None:
        self._begin = begin
        self._rows = rows
        self._pace = Pace(begin, rows)
        size = len(rows) + 1
        self._count = [0] * size
        self._rate, self._kv, self._slope = [0.0] * size, [0.0] * size, [0.0] * size

    def fill(
        self, requests: Sequence[Request], *, counted: bool = False, tokens_per_step: float | None = None
    ) -> float | None:
        """Set the requests' rates in step time, and the rows' `decode` and `kv`; returns tokens by unit of step time.

        counted: step time is the engine's own; tokens_per_step: what a step gave every member lately; `None`, before
        that is known: what it gives those whose whole decode lies in the range. With speculative decoding every member
        of a step computes as many drafts, however many are accepted: then all get the mean rate, and rejected drafts
        fall on their request.
        """
        if counted and tokens_per_step is None:
            tokens_per_step = self._tokens_per_step(requests)
        plain = counted and tokens_per_step is not None and tokens_per_step <= SPECULATES
        spans = list(self._spans(requests, tokens_per_step if plain else None))
        even = 0.0
        if spans:
            even = sum(span.tokens for span in spans) / sum(span.high - span.low for span in spans)
        speculates = counted and SPECULATES < even < TOO_MANY
        for request, from_ns, until_ns, low, high, made, tokens in spans:
            paced = even if speculates else tokens / (high - low)
            context = request.work.prompt + made - paced * low
            request.tokens_per_pace, request.context_at_origin = paced, context
            self._insert(from_ns, low, until_ns, high, paced, context)
        self._sweep()
        return even if spans else None

    def _spans(self, requests: Iterable[Request], tokens_per_step: float | None) -> Iterator[Span]:
        begin_ns, pace = start_of(self._begin), self._pace
        for request in requests:
            work = request.work
            rate = work.decode_rate
            from_ns = max(work.first_ns, work.from_ns, begin_ns)
            until_ns = min(work.last_ns, pace.end_ns)
            if rate > 0.0 and until_ns > from_ns:
                low, high = pace.at(from_ns), pace.at(until_ns)
                if request.decoded is None:
                    request.decoded = rate * (from_ns - work.first_ns) / NANOSECONDS_PER_SECOND
                left = max(work.generated - 1 - request.decoded, 0.0)
                if work.last_ns <= pace.end_ns:
                    tokens = left
                elif tokens_per_step is not None:
                    tokens = min(tokens_per_step * (high - low), left)
                else:
                    tokens = min(rate * (until_ns - from_ns) / NANOSECONDS_PER_SECOND, left)
                made, request.decoded = request.decoded, request.decoded + tokens
                yield Span(request, from_ns, until_ns, low, high, made, tokens)

    def _tokens_per_step(self, requests: Iterable[Request]) -> float | None:
        """What a step gave the members whose whole decode lies in the range; `None` without any."""
        tokens = steps = 0.0
        for request in requests:
            work = request.work
            if work.decode_rate > 0.0 and start_of(self._begin) <= work.first_ns and work.last_ns <= self._pace.end_ns:
                tokens += work.generated - 1
                steps += self._pace.at(work.last_ns) - self._pace.at(work.first_ns)
        return tokens / steps if steps > 0.0 else None

    def _insert(self, from_ns: int, low: float, until_ns: int, high: float, rate: float, context: float) -> None:
        self._turn(from_ns // CELL_NS - self._begin, low, rate, context, 1)
        last = until_ns // CELL_NS - self._begin
        if last < len(self._rows):
            self._turn(last, high, rate, context, -1)

    def _turn(self, index: int, at: float, rate: float, context: float, sign: int) -> None:
        """From step time `at` on, in cell `index`, a request decodes (+1) or no longer does (−1)."""
        row = self._rows[index]
        end = row.elapsed + row.pace * CELL_SECONDS
        rest = end - at
        slope = rate * rate
        row.decode += sign * rate * rest
        row.kv += sign * (rate * context * rest + slope * (end * end - at * at) / 2)
        self._count[index + 1] += sign
        self._rate[index + 1] += sign * rate
        self._kv[index + 1] += sign * rate * context
        self._slope[index + 1] += sign * slope

    def _sweep(self) -> None:
        count, rate, kv, slope = 0, 0.0, 0.0, 0.0
        for index, row in enumerate(self._rows):
            count += self._count[index]
            if count:
                rate, kv, slope = rate + self._rate[index], kv + self._kv[index], slope + self._slope[index]
                length = row.pace * CELL_SECONDS
                row.decode += rate * length
                row.kv += kv * length + slope * length * (row.elapsed + length / 2)
            else:
                rate = kv = slope = 0.0
            row.decode, row.kv = max(row.decode, 0.0), max(row.kv, 0.0)

"""Decode in step time: the tokens of every known request over one range of cells, and the KV cache that they read.

A request's tokens follow the engine's steps, not the wall clock: within a range by the pace of its cells, over several
ranges by what a step gave every member lately; its last range gets what is left. Where no steps are counted the wall
clock has to do. KV reads grow with the context, so their rate is affine in step time.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from jouled.core.attribution.cells import CELL_NS, CELL_SECONDS, start_of
from jouled.core.attribution.load import Row
from jouled.core.attribution.request import Request
from jouled.model.units import NANOSECONDS_PER_SECOND

SPECULATES, TOO_MANY = 1.3, 32.0
"""Tokens that a request gets per counted step, on average, above which its engine checks drafts: without any it is 1,
but for what counting between looks leaves open. From the other on, the counter stands still: nobody drafts so many."""


Span = tuple[Request, int, float, int, float, float, float]
"""One request's decode in a range: the cell of its begin, counted from the range's, and step time there; the same of
its end; tokens made before, and in it."""


class Decoding:
    """Running sums of a range of cells: entries where a request's decode begins or ends.

    Step time begins at 0 with the range and runs `pace` units per second in each cell.
    """

    def __init__(self, begin: int, rows: Sequence[Row]) -> None:
        self._begin_ns, self._end_ns = start_of(begin), start_of(begin + len(rows))
        self._rows = rows
        self._elapsed = list(accumulate((row.pace * CELL_SECONDS for row in rows), initial=0.0))
        for row, elapsed in zip(rows, self._elapsed, strict=False):
            row.elapsed = elapsed
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
            even = sum(tokens for *_, tokens in spans) / sum(high - low for _, _, low, _, high, _, _ in spans)
        speculates = counted and SPECULATES < even < TOO_MANY
        cells = len(self._rows)
        for request, first, low, last, high, made, tokens in spans:
            paced = even if speculates else tokens / (high - low)
            context = request.work.prompt + made - paced * low
            request.tokens_per_pace, request.context_at_origin = paced, context
            self._turn(first, low, 1, paced, paced * context, paced * paced)
            if last < cells:
                self._turn(last, high, -1, -paced, -paced * context, -paced * paced)
        self._sweep()
        return even if spans else None

    def _spans(self, requests: Iterable[Request], tokens_per_step: float | None) -> Iterator[Span]:
        begin_ns, end_ns, at = self._begin_ns, self._end_ns, self._at
        for request in requests:
            work = request.work
            rate = work.decode_rate
            if rate <= 0.0:
                continue
            from_ns, until_ns = work.turn_ns, work.last_ns
            if from_ns < begin_ns:
                from_ns = begin_ns
            if until_ns > end_ns:
                until_ns = end_ns
            if until_ns <= from_ns:
                continue
            first, low = at(from_ns)
            last, high = at(until_ns)
            made = request.decoded
            if made is None:
                made = rate * (from_ns - work.first_ns) / NANOSECONDS_PER_SECOND
            left = work.generated - 1 - made
            if left < 0.0:
                left = 0.0
            if work.last_ns <= end_ns:
                tokens = left
            elif tokens_per_step is not None:
                tokens = min(tokens_per_step * (high - low), left)
            else:
                tokens = min(rate * (until_ns - from_ns) / NANOSECONDS_PER_SECOND, left)
            request.decoded = made + tokens
            yield request, first, low, last, high, made, tokens

    def _at(self, t_ns: int) -> tuple[int, float]:
        """The cell of a moment of the range, and step time there; its end is the begin of the cell after the last."""
        index, offset_ns = divmod(t_ns - self._begin_ns, CELL_NS)
        elapsed = self._elapsed[index]
        if offset_ns:
            elapsed += self._rows[index].pace * offset_ns / NANOSECONDS_PER_SECOND
        return index, elapsed

    def _tokens_per_step(self, requests: Iterable[Request]) -> float | None:
        """What a step gave the members whose whole decode lies in the range; `None` without any."""
        tokens = steps = 0.0
        for request in requests:
            work = request.work
            if work.decode_rate > 0.0 and self._begin_ns <= work.first_ns and work.last_ns <= self._end_ns:
                tokens += work.generated - 1
                steps += self._at(work.last_ns)[1] - self._at(work.first_ns)[1]
        return tokens / steps if steps > 0.0 else None

    def _turn(self, index: int, at: float, sign: int, rate: float, kv: float, slope: float) -> None:
        """From step time `at` on, in cell `index`, a request decodes (+1) or no longer does (−1, and rates below 0)."""
        row, following = self._rows[index], index + 1
        end = self._elapsed[following]
        rest = end - at
        row.decode += rate * rest
        row.kv += kv * rest + slope * (end * end - at * at) / 2
        self._count[following] += sign
        self._rate[following] += rate
        self._kv[following] += kv
        self._slope[following] += slope

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

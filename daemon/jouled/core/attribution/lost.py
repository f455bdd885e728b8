"""Work that an engine's counters saw and no event told of: client aborts, dropped or sampled spans.

Counter minus tokens of events, over settled ranges; what exceeds 3 % and the noise of both becomes work in the cells
where the counter ran ahead, with the mean shape of reported requests (attribution.md section 4, unreported).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jouled.core.attribution.cells import CELL_SECONDS, cell_of, start_of
from jouled.core.attribution.census import Census
from jouled.core.attribution.load import Lost, Row
from jouled.core.attribution.means import Means
from jouled.core.attribution.request import IN_FLIGHT
from jouled.core.attribution.work import Work
from jouled.model.engine import CounterSemantics
from jouled.model.requests import RequestEvent
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

THRESHOLD = 0.03
NOISE_FLOOR_TOKENS = 8.0
NOISE_TOKENS_PER_CROSSING = 16.0
"""By how much linear decode may be off for a request that crosses the end of a range: half a second of tokens."""
CARRY_LIMITS = 3.0
"""Tokens told in excess of the counter are remembered up to this multiple of the threshold."""
LONGEST_INTERVAL_NS = nanoseconds(25.0)
"""Counters say too little of when tokens were made between looks further apart."""
STEPS_OF_A_CELL = 50.0
"""No engine makes more steps in a cell of 0.1 s."""
COVERAGE_WEIGHT = 0.2
MEAN_WEIGHT = 0.01


class Piece(NamedTuple):
    """Rows `low` to `high` of a range, between two looks: what a counter grew by and what events explain."""

    low: int
    high: int
    counted: float
    expected: float


class LostWork:
    """Compares one engine's counters with its events.

    `coverage`: events' tokens over counted ones, lately; `mismatch`: by what share they differ in the last range.
    """

    def __init__(self, semantics: CounterSemantics) -> None:
        self._semantics = semantics
        self._carry = {"generation": 0.0, "prompt": 0.0}
        self.coverage: float | None = None
        self.mismatch = 0.0
        self.mean_computed = 512.0
        self.mean_prefill_seconds = 0.1
        self._requests = 0
        self._computed_only = True

    def describe(self, semantics: CounterSemantics) -> None:
        """The page turned out to count otherwise."""
        self._semantics = semantics

    def begin(self, census: Census) -> None:
        """A range begins: see what the page counts."""
        self._computed_only = self._semantics.prompt == "computed" or census.counts_cached

    def expect(self, row: Row) -> None:
        """Book what the requests of a cell add to the engine's counters there, into its row."""
        semantics = self._semantics
        by_step, prompt_first = semantics.generation_at == "step", semantics.prompt_at == "first_token"
        first = int(semantics.generation == "all")
        for request in row.turning:
            work = request.work
            if work.first_ns < work.from_ns or (request.flags and IN_FLIGHT in request.flags):
                continue
            if by_step:
                # What the load does not spread over decode: the first token, or all that came at once.
                row.generation_expected += first if work.decode_rate else max(work.generated - 1 + first, 0)
            if prompt_first:
                row.prompt_expected += work.computed if self._computed_only else work.prompt
            if work.computed > 0:
                self._learn(work)
        if semantics.generation_at == "finish" or semantics.prompt_at == "finish":
            self._expect_at_finish(row)

    def _expect_at_finish(self, row: Row) -> None:
        semantics = self._semantics
        for request in row.ending:
            if request.flags and IN_FLIGHT in request.flags:
                continue
            if semantics.generation_at == "finish":
                row.generation_expected += max(request.work.generated - (semantics.generation != "all"), 0)
            if semantics.prompt_at == "finish":
                row.prompt_expected += request.work.computed if self._computed_only else request.work.prompt

    def _learn(self, work: Work) -> None:
        """The mean prefill, of requests that had one."""
        self._requests += 1
        weight = MEAN_WEIGHT if self._requests >= 1 / MEAN_WEIGHT else 1 / self._requests
        seconds = (work.first_ns - work.start_ns) / NANOSECONDS_PER_SECOND
        self.mean_computed += weight * (work.computed - self.mean_computed)
        self.mean_prefill_seconds += weight * (seconds - self.mean_prefill_seconds)

    def told_late(self, event: RequestEvent, edge_ns: int) -> None:
        """A request of closed cells became known after all: its tokens there are no longer missing."""
        span = max(event.last_token_ns - event.first_token_ns, 1)
        closed = min(max((edge_ns - event.first_token_ns) / span, 0.0), 1.0)
        self._found("generation", closed * event.generation_tokens)
        if event.first_token_ns < edge_ns:
            self._found("prompt", event.prompt_tokens)

    def _found(self, name: str, tokens: float) -> None:
        if self._carry[name] > 0.0:
            self._carry[name] = max(self._carry[name] - tokens, 0.0)

    def assess(self, census: Census, begin: int, rows: Sequence[Row], means: Means) -> None:
        """Add lost work to the rows of a settled range, if looks come often enough to tell it from noise."""
        looks = census.around(start_of(begin), start_of(begin + len(rows)))
        if any(after.t_ns - before.t_ns > LONGEST_INTERVAL_NS for before, after in pairwise(looks)):
            return
        generation = self._pieces(census, "generation", begin, rows)
        prompt = self._pieces(census, "prompt", begin, rows)
        lost_generation = self._missing("generation", generation, _noise(rows))
        lost_prompt = self._missing("prompt", prompt, 2.0 * self.mean_computed)
        if generation:
            counted = sum(piece.counted for piece in generation)
            if counted > 10 * NOISE_FLOOR_TOKENS:
                expected = sum(piece.expected for piece in generation)
                self.mismatch = abs(1.0 - expected / counted)
                ratio = min(expected / counted, 1.0)
                self.coverage = (
                    ratio if self.coverage is None else self.coverage + COVERAGE_WEIGHT * (ratio - self.coverage)
                )
        for piece, tokens in _spread(generation, lost_generation):
            self._add(rows[piece.low : piece.high], means, generated=tokens, computed=0.0)
        for piece, tokens in _spread(prompt, lost_prompt):
            self._add(rows[piece.low : piece.high], means, generated=0.0, computed=tokens)
        self._unexplained_steps(census, begin, rows)

    def _pieces(self, census: Census, name: str, begin: int, rows: Sequence[Row]) -> list[Piece]:
        end = begin + len(rows)
        inner = [cell_of(look.t_ns) for look in census.between(start_of(begin) + 1, start_of(end) - 1)]
        edges = sorted({begin, *inner, end})
        pieces = []
        for low, high in pairwise(edges):
            counted = self.counted(census, name, low, high)
            if counted is not None:
                chosen = rows[low - begin : high - begin]
                expected = sum(self._expected(name, row) for row in chosen)
                pieces.append(Piece(low - begin, high - begin, counted, expected))
        return pieces

    def counted(self, census: Census, name: str, low: int, high: int) -> float | None:
        """What a counter grew by from one cell's start to another's; `None` where looks do not tell."""
        start, end = census.counter_near(name, low), census.counter_near(name, high)
        if start is None or end is None:
            return None
        grown = end - start
        if name == "prompt" and self._semantics.prompt == "total":
            cached_start, cached_end = census.counter_near("cached", low), census.counter_near("cached", high)
            grown -= (cached_end or 0.0) - (cached_start or 0.0)
        return max(grown, 0.0)

    def _expected(self, name: str, row: Row) -> float:
        if name == "prompt":
            return row.prefill if self._semantics.prompt_at == "step" else row.prompt_expected
        live = row.decode if self._semantics.generation_at == "step" else 0.0
        return live + row.generation_expected

    def _missing(self, name: str, pieces: list[Piece], noise: float) -> float:
        """Tokens to call lost now: the balance of what is missing, once it stands out from threshold and noise.

        The balance remembers both ways: linear decode runs ahead of the counter as often as behind it. What was
        missing earlier is not laid on a range that misses little itself.
        """
        counted = sum(piece.counted for piece in pieces)
        missing = counted - sum(piece.expected for piece in pieces)
        balance = self._carry[name] + missing
        limit = max(THRESHOLD * counted, noise)
        lost = min(balance, max(missing, 0.0) + THRESHOLD * counted) if balance > limit else 0.0
        self._carry[name] = max(balance - lost, -CARRY_LIMITS * limit)
        return lost

    def _add(self, rows: Sequence[Row], means: Means, *, generated: float, computed: float) -> None:
        seconds = generated * means.tpot_seconds + computed / max(self.mean_computed, 1.0) * self.mean_prefill_seconds
        if 0.0 < seconds <= sum(row.resident for row in rows):
            # There is room for it beside the known requests: the engine was not at work while nobody was there.
            rows = [row for row in rows if row.active]
        generated, computed, seconds = generated / len(rows), computed / len(rows), seconds / len(rows)
        for row in rows:
            old = row.lost or Lost(0.0, 0.0, 0.0, 0.0, 0.0)
            row.lost = Lost(
                resident=old.resident + seconds,
                prefill=old.prefill + computed,
                attention=old.attention + computed * self.mean_computed / 2,
                decode=old.decode + generated,
                kv=old.kv + generated * means.context,
            )
            row.busy = min(max(row.busy, row.lost.resident / CELL_SECONDS), 1.0)
            row.active = row.active or row.lost.resident > 0.0
            if row.decoders <= 0.0 and generated:
                row.steps = max(row.steps, CELL_SECONDS * row.busy / means.tpot_seconds)

    def _unexplained_steps(self, census: Census, begin: int, rows: Sequence[Row]) -> None:
        """Steps were counted where nobody is known: the engine worked for somebody who is not told of."""
        looked = {cell_of(look.t_ns) - begin for look in census.around(start_of(begin), start_of(begin + len(rows)))}
        for piece in self._pieces(census, "steps", begin, rows):
            chosen = rows[piece.low : piece.high]
            between_looks = piece.low in looked and piece.high in looked
            # Steps up to the look may be of somebody who came in its own cell, just before it.
            others = piece.high == len(rows) or rows[piece.high].active
            least = STEPS_OF_A_CELL if others else 1.0
            if not between_looks or piece.counted < least or any(row.active for row in chosen):
                continue
            for row in chosen:
                row.lost = Lost(CELL_SECONDS, 0.0, 0.0, 0.0, 0.0)
                row.steps = piece.counted / len(chosen)
                row.busy, row.active = 1.0, True


def _noise(rows: Sequence[Row]) -> float:
    """Tokens by which linear decode may be off at both ends of a range."""
    if not rows:
        return NOISE_FLOOR_TOKENS
    return NOISE_FLOOR_TOKENS + NOISE_TOKENS_PER_CROSSING * (rows[0].decoders + rows[-1].decoders) / CELL_SECONDS


def _spread(pieces: list[Piece], tokens: float) -> list[tuple[Piece, float]]:
    """Lost tokens over the pieces in which the counter ran ahead of the events."""
    if tokens <= 0.0 or not pieces:
        return []
    ahead = [max(piece.counted - piece.expected, 0.0) for piece in pieces]
    total = sum(ahead)
    if total <= 0.0:
        ahead, total = [piece.counted for piece in pieces], sum(piece.counted for piece in pieces)
    return [(piece, tokens * share / total) for piece, share in zip(pieces, ahead, strict=True) if share > 0.0]

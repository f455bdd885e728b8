"""How many of an engine's tokens no request event told of: client aborts, dropped or sampled spans.

A counter that never takes a token back must not call one unreported that is told of later. So at every look at the
page, once the cells before it are closed, all tokens of every request that had begun by then are set against the
counter, also those that the request made later: what the counter shows beyond them is nobody's. Then

    counted tokens = told tokens + unreported tokens + open,

where open lies between the tokens in flight (told, not yet counted) and nothing, and is nothing while the engine is at
rest. An event that comes after its time was closed makes it negative; what goes unreported next makes up for that
first.
"""

from collections import deque
from typing import NamedTuple

from jouled.core.attribution.cells import cell_of
from jouled.core.attribution.census import SKEW_NS, Monotone
from jouled.model.engine import CounterSemantics, EngineSample
from jouled.model.requests import RequestEvent

PROMPT, GENERATION = "prompt", "generation"
KINDS = (PROMPT, GENERATION)
LOOKS_MAX = 2000
"""Looks that wait for their cells to close: more than the longest wait of the books has at one every second."""


class Tokens(NamedTuple):
    """Prompt tokens (computed, and taken from the cache where the page counts those), and generated ones."""

    prompt: int
    generation: int


class _Look(NamedTuple):
    t_ns: int
    counted: Tokens
    began_anew: bool
    at_rest: bool


class UnreportedTokens:
    """One engine's tokens by its counters since the first look, and by its events.

    counted, told, unreported: tokens by kind up to the last look that is settled.
    """

    def __init__(self, semantics: CounterSemantics) -> None:
        self._semantics = semantics
        self._counters = {name: Monotone() for name in (PROMPT, "cached", GENERATION)}
        self._seen = Tokens(0, 0)
        self._last: EngineSample | None = None
        self._counts_cached = False
        self._looks: deque[_Look] = deque(maxlen=LOOKS_MAX)
        self._by_cell: dict[int, tuple[int, int, int]] = {}
        self._began_at_rest = False
        self.counted = dict.fromkeys(KINDS, 0)
        self.told = dict.fromkeys(KINDS, 0)
        self.unreported = dict.fromkeys(KINDS, 0)

    def describe(self, semantics: CounterSemantics) -> None:
        """The page turned out to count otherwise."""
        self._semantics = semantics

    def sample(self, sample: EngineSample) -> None:
        """Take a look at the page."""
        last, self._last = self._last, sample
        departed = sample.departed_counts.get
        prompt = self._counters[PROMPT].take(sample.prompt_tokens, departed(PROMPT, 0))
        cached = self._counters["cached"].take(sample.cached_prompt_tokens)
        generated = self._counters[GENERATION].take(sample.generation_tokens, departed(GENERATION, 0))
        self._counts_cached = sample.cached_prompt_tokens is not None
        at_rest = last is not None and _nobody(last) and _nobody(sample) and not (prompt or cached or generated)
        # By what it grew, not from the totals: another release of the engine may count otherwise from here on.
        prompt += cached if self._semantics.prompt == "computed" else 0
        self._seen = Tokens(self._seen.prompt + prompt, self._seen.generation + generated)
        self._looks.append(_Look(sample.t_ns, self._seen, last is not None and _less(sample, last), at_rest))

    def tell(self, event: RequestEvent) -> None:
        """An event told of a request."""
        self._add(event, 1)

    def untell(self, event: RequestEvent) -> None:
        """It is told otherwise now: undo what `tell` did with it."""
        self._add(event, -1)

    def _add(self, event: RequestEvent, sign: int) -> None:
        generated = event.generation_tokens
        if generated and self._semantics.generation == "without_first":
            generated -= 1
        cached = min(event.cached_prompt_tokens or 0, event.prompt_tokens)
        begun_ns = event.arrival_ns if event.scheduled_ns is None else event.scheduled_ns
        cell = cell_of(min(begun_ns, event.first_token_ns))
        prompt_before, cached_before, generated_before = self._by_cell.get(cell, (0, 0, 0))
        self._by_cell[cell] = (
            prompt_before + sign * event.prompt_tokens,
            cached_before + sign * cached,
            generated_before + sign * generated,
        )

    def settle(self, edge_ns: int) -> Tokens:
        """The cells before this time are closed; returns how many tokens turned out to be unreported by that."""
        before = dict(self.unreported)
        while self._looks and self._looks[0].t_ns <= edge_ns:
            self._settle(self._looks.popleft())
        if not self._looks:
            self._gather(cell_of(edge_ns))
        return Tokens(*(self.unreported[kind] - before[kind] for kind in KINDS))

    def _gather(self, until_cell: int) -> None:
        """No look waits: what was told of closed cells is kept as one sum, however long no page is read.

        Before the first look it is nothing that a counter will show, for all of it had ended by then.
        """
        cells = [cell for cell in self._by_cell if cell < until_cell]
        if self._last is None:
            for cell in cells:
                del self._by_cell[cell]
        elif len(cells) > 1:
            told = [self._by_cell.pop(cell) for cell in cells]
            prompt, cached, generated = (sum(part) for part in zip(*told, strict=True))
            self._by_cell[min(cells)] = (prompt, cached, generated)

    def _settle(self, look: _Look) -> None:
        if look.began_anew or (look.at_rest and not self._began_at_rest):
            # Whoever began before is gone, and what is told of them beyond the counter has never been counted: made
            # between the last look and the end of the process, or before the first look.
            self.told = {kind: min(self.told[kind], self.counted[kind] - self.unreported[kind]) for kind in KINDS}
        self._began_at_rest |= look.at_rest
        self._take_told(cell_of(look.t_ns + SKEW_NS))
        for kind, counted in zip(KINDS, look.counted, strict=True):
            self.counted[kind] = counted
            self.unreported[kind] += max(counted - self.told[kind] - self.unreported[kind], 0)

    def _take_told(self, until_cell: int) -> None:
        shows_cached = self._semantics.prompt == "total" or self._counts_cached
        for cell in [cell for cell in self._by_cell if cell <= until_cell]:
            prompt, cached, generated = self._by_cell.pop(cell)
            self.told[PROMPT] += prompt if shows_cached else prompt - cached
            self.told[GENERATION] += generated


def _nobody(sample: EngineSample) -> bool:
    return sample.requests_running == 0 and not sample.requests_waiting


def _less(now: EngineSample, before: EngineSample) -> bool:
    """Whether a counter went back by more than what departed from it: the engine's process is another one."""
    departed = now.departed_counts.get
    kinds = (
        (before.generation_tokens, now.generation_tokens, departed(GENERATION, 0)),
        (before.prompt_tokens, now.prompt_tokens, departed(PROMPT, 0)),
    )
    return any(old is not None and new is not None and new < old - gone for old, new, gone in kinds)

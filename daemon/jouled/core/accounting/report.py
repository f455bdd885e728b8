"""Figures of a time for `jouled report`: marks of the books tell what engines used, receipts what requests did.

Joules and tokens of a time are differences of counters at its ends; between two marks these count as linear. Ratios are
quotients of such sums. Their uncertainty is that from minute to minute: a ratio estimator over minutes (Cochran,
Sampling Techniques, 3rd edition, chapter 6), as requests that ran together are not independent of each other.

Books close behind time, an engine's tokens with the last cell of their request: no tokens in them is a fact only of a
time that all of it is closed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil, exp, log, sqrt
from typing import NamedTuple

from msgspec import Struct

from jouled.core.accounting.epochs import Span
from jouled.core.attribution.roles import counts_generation, counts_prompt
from jouled.model.history import EngineMark
from jouled.model.units import MICROJOULES_PER_JOULE, nanoseconds

BLOCK_NS = nanoseconds(60.0)
LEAST_BLOCKS = 10
"""A spread that is seen over fewer minutes says nothing."""
NORMAL_95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""

Measures = Mapping[str, float]
_TOKENS = ("prompt_tokens", "generation_tokens", "unreported_prompt_tokens", "unreported_generation_tokens")


class ToldReceipt(Struct):
    """What a report needs of a receipt; fields as there."""

    engine: str
    model: str
    last_token_ns: int
    prompt_tokens: int
    generation_tokens: int
    joules: float
    tenant: str = ""
    role: str = ""
    joules_host: float | None = None
    joules_residual: float | None = None
    cost: float | None = None
    currency: str = ""
    co2e_grams: float | None = None
    good: dict[str, bool] = {}


class Row(Struct):
    """Requests of one model, tenant or engine, summed up. joules: of compute devices; node_joules: with host and rest.

    cost is by currency; where no price or no carbon intensity is configured, there is none.
    """

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    joules: float = 0.0
    node_joules: float = 0.0
    cost: dict[str, float] = {}
    co2e_grams: float | None = None

    def add(self, receipt: ToldReceipt) -> None:
        """Count a receipt. Of a request that two pools share each tells its half of the joules."""
        self.requests += counts_generation(receipt.role)
        self.prompt_tokens += receipt.prompt_tokens if counts_prompt(receipt.role) else 0
        self.generation_tokens += receipt.generation_tokens if counts_generation(receipt.role) else 0
        self.joules += receipt.joules
        self.node_joules += receipt.joules + (receipt.joules_host or 0.0) + (receipt.joules_residual or 0.0)
        if receipt.cost is not None:
            self.cost[receipt.currency] = self.cost.get(receipt.currency, 0.0) + receipt.cost
        if receipt.co2e_grams is not None:
            self.co2e_grams = (self.co2e_grams or 0.0) + receipt.co2e_grams


class Requests:
    """Receipts of one side of a comparison: joules of each request, and how many were good by SLO."""

    def __init__(self) -> None:
        self.joules: list[float] = []
        self.good: dict[str, int] = {}
        self.judged: dict[str, int] = {}

    def add(self, receipt: ToldReceipt) -> None:
        """Count a receipt."""
        self.joules.append(receipt.joules)
        if counts_generation(receipt.role):
            for slo, good in receipt.good.items():
                self.judged[slo] = self.judged.get(slo, 0) + 1
                self.good[slo] = self.good.get(slo, 0) + good

    def quantile(self, share: float) -> float | None:
        """The joules that so large a share of the requests stays at or below (nearest rank)."""
        if not self.joules:
            return None
        ranked = sorted(self.joules)
        return ranked[max(ceil(share * len(ranked)), 1) - 1]

    def attainment(self) -> dict[str, float]:
        """Share of good requests, by SLO."""
        return {slo: self.good[slo] / judged for slo, judged in self.judged.items()}


class Ratio(NamedTuple):
    """A quotient of sums. relative_sigma: standard deviation over it, `None` where it is not known."""

    value: float
    relative_sigma: float | None


class Difference(Struct, frozen=True):
    """How much more the second is than the first, as a share; low and high are the ends of the 95 % interval."""

    share: float
    low: float | None
    high: float | None


class Used:
    """What engines used over a time, by minute: tokens of events and others, joules by owner.

    is_estimated: some of it is guessed, not measured. is_closed: the books of these engines reach the end of it.
    """

    def __init__(self) -> None:
        self.is_estimated = False
        self.is_closed = False
        self.owners_joules: dict[str, float] = {}
        self.tokens: dict[str, float] = {}
        self._blocks: dict[int, tuple[float, float, float]] = {}

    def add(self, t_ns: int, grown: Measures) -> None:
        """Add an increase of counters that ended at a time."""
        for name, amount in grown.items():
            sums = self.tokens if name in _TOKENS else self.owners_joules
            sums[name] = sums.get(name, 0.0) + amount
        generated = grown["generation_tokens"] + grown["unreported_generation_tokens"]
        joules = _joules(grown)
        before = self._blocks.get(t_ns // BLOCK_NS, (0.0, 0.0, 0.0))
        added = (generated, joules, joules - grown.get("idle", 0.0))
        self._blocks[t_ns // BLOCK_NS] = (before[0] + added[0], before[1] + added[1], before[2] + added[2])

    @property
    def generation_tokens(self) -> float:
        """Generated tokens, those that no event told of included."""
        return self.tokens.get("generation_tokens", 0.0) + self.tokens.get("unreported_generation_tokens", 0.0)

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens, likewise."""
        return self.tokens.get("prompt_tokens", 0.0) + self.tokens.get("unreported_prompt_tokens", 0.0)

    @property
    def joules(self) -> float:
        """Joules of all owners but what was used while the daemon was away, of which no tokens are known."""
        return _joules(self.owners_joules)

    @property
    def prompt_tokens_per_joule(self) -> float | None:
        """Prompt tokens over joules, with idle; `None` without joules, and while any tokens may yet come."""
        return self.prompt_tokens / self.joules if self.joules > 0.0 and self._tells_tokens else None

    def tokens_per_joule(self, *, with_idle: bool) -> Ratio | None:
        """Generated tokens over joules; `None` without joules, and while any tokens may yet come."""
        blocks = [(tokens, joules if with_idle else busy) for tokens, joules, busy in self._blocks.values()]
        tokens, joules = (sum(part) for part in zip(*blocks, strict=True)) if blocks else (0.0, 0.0)
        if joules <= 0.0 or not self._tells_tokens:
            return None
        value = tokens / joules
        if len(blocks) < LEAST_BLOCKS or value <= 0.0:
            return Ratio(value, None)
        count = len(blocks)
        spread = sum((made - value * used) ** 2 for made, used in blocks) / (count - 1)
        return Ratio(value, sqrt(spread / count) / (joules / count) / value)

    @property
    def _tells_tokens(self) -> bool:
        return self.is_closed or any(self.tokens.values())


def used(marks: Iterable[EngineMark], span: Span, engines: Collection[str] | None = None) -> Used:
    """What these engines (`None`: all, and devices of none) used within a time, measured energy and guessed alike."""
    series: dict[tuple[str, str, str], dict[int, EngineMark]] = {}
    for mark in marks:
        if engines is None or mark.engine in engines:
            series.setdefault((mark.engine, mark.model, mark.quality), {})[mark.t_ns] = mark
    found = Used()
    found.is_closed = _closed_ns(series) >= span.until_ns
    for (_, _, quality), by_time in series.items():
        ordered = [by_time[t_ns] for t_ns in sorted(by_time)]
        for before, after in pairwise(ordered):
            low, high = max(before.t_ns, span.since_ns), min(after.t_ns, span.until_ns)
            if high > low:
                share = (high - low) / (after.t_ns - before.t_ns)
                found.is_estimated |= quality == "estimated"
                found.add(high, {name: share * amount for name, amount in _grown(before, after).items()})
    return found


def _closed_ns(series: Mapping[tuple[str, str, str], Mapping[int, EngineMark]]) -> int:
    """Up to here the books of all these engines are closed; 0 without an engine."""
    ends: dict[str, int] = {}
    for (engine, _, _), by_time in series.items():
        if engine:
            ends[engine] = max(ends.get(engine, 0), *by_time)
    return min(ends.values(), default=0)


def _grown(before: EngineMark, after: EngineMark) -> Measures:
    """By how much counters grew from mark to mark, energies in joules. Some may have started over at zero."""
    owners = {*before.owners_uj, *after.owners_uj}
    uj = {name: _increase(before.owners_uj.get(name, 0), after.owners_uj.get(name, 0)) for name in owners}
    tokens = {name: _increase(getattr(before, name), getattr(after, name)) for name in _TOKENS}
    return {**tokens, **{name: amount / MICROJOULES_PER_JOULE for name, amount in uj.items()}}


def _increase(before: int, after: int) -> int:
    return after - before if after >= before else after


def _joules(measures: Measures) -> float:
    return sum(amount for name, amount in measures.items() if name not in _TOKENS and name != "downtime")


def difference(before: Ratio | None, after: Ratio | None) -> Difference | None:
    """By how much the second ratio is above the first; normal interval of the logarithm of their quotient."""
    if before is None or after is None or before.value <= 0.0 or after.value <= 0.0:
        return None
    quotient = after.value / before.value
    if before.relative_sigma is None or after.relative_sigma is None:
        return Difference(quotient - 1.0, None, None)
    width = NORMAL_95 * sqrt(before.relative_sigma**2 + after.relative_sigma**2)
    return Difference(quotient - 1.0, exp(log(quotient) - width) - 1.0, exp(log(quotient) + width) - 1.0)


def rows_by(receipts: Iterable[ToldReceipt], key: str) -> list[Row]:
    """Receipts summed up by a field, the largest consumer first."""
    rows: dict[str, Row] = {}
    for receipt in receipts:
        name = getattr(receipt, key)
        if name not in rows:
            rows[name] = Row(name)
        rows[name].add(receipt)
    for row in rows.values():  # receipts are exact to the microjoule; their sum does not depend on their order
        row.joules, row.node_joules = round(row.joules, 6), round(row.node_joules, 6)
    return sorted(rows.values(), key=lambda row: (-row.joules, row.name))


def sides(receipts: Iterable[ToldReceipt], spans: Sequence[tuple[str, Span]]) -> list[Requests]:
    """For each engine and time the receipts of requests that ended in it."""
    found = [Requests() for _ in spans]
    for receipt in receipts:
        for side, (engine, span) in zip(found, spans, strict=True):
            if receipt.engine == engine and span.since_ns <= receipt.last_token_ns < span.until_ns:
                side.add(receipt)
    return found

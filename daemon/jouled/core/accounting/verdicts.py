"""Service levels: what a request's times were, and whether they were good enough."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum

from jouled.model.parameters import Slo, Tier
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND, NANOSECONDS_PER_SECOND


class Verdict(StrEnum):
    """good: completed and every limit held; late: completed, a limit missed; failed: not completed."""

    GOOD = "good"
    LATE = "late"
    FAILED = "failed"


def tpot_seconds(event: RequestEvent) -> float | None:
    """Mean time per output token after the first; `None` where there was only one."""
    if event.generation_tokens <= 1:
        return None
    return (event.last_token_ns - event.first_token_ns) / NANOSECONDS_PER_SECOND / (event.generation_tokens - 1)


def limit_ns(milliseconds: float) -> int:
    """A limit in whole nanoseconds, as the times it is held against."""
    return round(milliseconds * NANOSECONDS_PER_MILLISECOND)


def holds(slo: Slo, event: RequestEvent) -> bool:
    """Whether every limit of `slo` holds; a request with one token has no TPOT to miss.

    TPOT is judged as the whole span against so many limits: divided, a request just in time could be late by a
    rounding.
    """
    arrival_ns, first_ns, last_ns = event.arrival_ns, event.first_token_ns, event.last_token_ns
    decoded = max(event.generation_tokens - 1, 0)
    return (
        (slo.ttft is None or first_ns - arrival_ns <= limit_ns(slo.ttft))
        and (slo.tpot is None or decoded == 0 or last_ns - first_ns <= limit_ns(slo.tpot) * decoded)
        and (slo.e2el is None or last_ns - arrival_ns <= limit_ns(slo.e2el))
    )


def is_good(slo: Slo, event: RequestEvent) -> bool:
    """Whether a request completed within every limit."""
    return event.outcome is Outcome.COMPLETED and holds(slo, event)


def verdict_of(outcome: Outcome, *, good: bool) -> Verdict:
    """The verdict of a request that was good, or not, and ended as told."""
    if outcome is not Outcome.COMPLETED:
        return Verdict.FAILED
    return Verdict.GOOD if good else Verdict.LATE


class Tiers:
    """Classes of service by interactivity (1 / TPOT), in order."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        by_bound = {tier.min_tokens_per_second_per_user: tier.name for tier in reversed(tiers)}
        self._bounds = sorted(by_bound)
        self._names = ["", *(by_bound[bound] for bound in self._bounds)]

    def of(self, tpot_seconds: float | None) -> str:
        """The highest tier whose bound the request's interactivity reaches; empty where it reaches none.

        Tokens that came all at once are as interactive as can be; without a TPOT nothing is known of it.
        """
        rate = 0.0 if tpot_seconds is None else math.inf if tpot_seconds <= 0.0 else 1.0 / tpot_seconds
        return self._names[bisect_right(self._bounds, rate)]

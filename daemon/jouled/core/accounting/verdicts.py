"""Service levels: what a request's times were, and whether they were good enough."""

from collections.abc import Sequence
from enum import StrEnum

from jouled.model.parameters import Slo, Tier
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import seconds


class Verdict(StrEnum):
    """good: completed and every limit held; late: completed, a limit missed; failed: not completed."""

    GOOD = "good"
    LATE = "late"
    FAILED = "failed"


def ttft_seconds(event: RequestEvent) -> float:
    """Time to first token: from arrival."""
    return seconds(event.first_token_ns - event.arrival_ns)


def tpot_seconds(event: RequestEvent) -> float | None:
    """Mean time per output token after the first; `None` where there was only one."""
    if event.generation_tokens <= 1:
        return None
    return seconds(event.last_token_ns - event.first_token_ns) / (event.generation_tokens - 1)


def e2e_seconds(event: RequestEvent) -> float:
    """End-to-end latency: arrival to last token."""
    return seconds(event.last_token_ns - event.arrival_ns)


def holds(slo: Slo, event: RequestEvent) -> bool:
    """Whether every limit of `slo` (milliseconds) holds; a request with one token has no TPOT to miss."""
    tpot = tpot_seconds(event)
    measured = ((slo.ttft, ttft_seconds(event)), (slo.tpot, tpot), (slo.e2el, e2e_seconds(event)))
    return all(limit is None or value is None or value * 1000.0 <= limit for limit, value in measured)


def is_good(slo: Slo, event: RequestEvent) -> bool:
    """Whether a request completed within every limit."""
    return event.outcome is Outcome.COMPLETED and holds(slo, event)


def verdict_of(outcome: Outcome, *, good: bool) -> Verdict:
    """The verdict of a request that was good, or not, and ended as told."""
    if outcome is not Outcome.COMPLETED:
        return Verdict.FAILED
    return Verdict.GOOD if good else Verdict.LATE


def tier_of(tiers: Sequence[Tier], event: RequestEvent) -> str:
    """The highest tier whose bound the request's interactivity (1 / TPOT) reaches; the first one without a TPOT."""
    tpot = tpot_seconds(event)
    rate = 1.0 / tpot if tpot else 0.0
    reached = [tier for tier in tiers if rate >= tier.min_tokens_per_second_per_user]
    return max(reached, key=lambda tier: tier.min_tokens_per_second_per_user).name if reached else ""

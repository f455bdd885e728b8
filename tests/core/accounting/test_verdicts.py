"""Goodput of single requests: verdicts, tokens in time, tiers; against the definitions, token by token."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import request

from jouled.core.accounting.deadlines import tokens_in_time
from jouled.core.accounting.verdicts import Tiers, Verdict, holds, is_good, tpot_seconds, verdict_of
from jouled.model.parameters import Parameters, Slo
from jouled.model.requests import Outcome, RequestEvent

MILLISECOND = 1_000_000
ARRIVAL_NS = 1_800_000_000_000_000_000


def event(ttft_ns: int, decode_ns: int, generated: int, outcome: Outcome = Outcome.COMPLETED) -> RequestEvent:
    return change(
        request("r", 0.0),
        arrival_ns=ARRIVAL_NS,
        first_token_ns=ARRIVAL_NS + ttft_ns,
        last_token_ns=ARRIVAL_NS + ttft_ns + decode_ns,
        generation_tokens=generated,
        outcome=outcome,
    )


def counted_one_by_one(told: RequestEvent, ttft: float, tpot: float) -> int:
    """The definition: token i is in time if t_i ≤ arrival + ttft + i · tpot, in exact fractions."""
    ttft_ns, tpot_ns = round(ttft * MILLISECOND), round(tpot * MILLISECOND)
    step = Fraction(told.last_token_ns - told.first_token_ns, max(told.generation_tokens - 1, 1))
    return sum(
        told.first_token_ns + i * step <= told.arrival_ns + ttft_ns + i * tpot_ns for i in range(told.generation_tokens)
    )


SPANS = st.integers(0, 3_000 * MILLISECOND) | st.integers(0, 60).map(lambda k: 50 * k * MILLISECOND)
LIMITS = st.integers(0, 2_000).map(float) | st.floats(0.001, 2_000.0)


@given(SPANS, SPANS, st.integers(0, 200), LIMITS, LIMITS)
@example(500 * MILLISECOND, 99 * 50 * MILLISECOND, 100, 500.0, 50.0)
@example(600 * MILLISECOND, 0, 2, 500.0, 100.0)
def test_the_closed_form_counts_as_one_by_one(ttft_ns, decode_ns, generated, ttft, tpot):
    told = event(ttft_ns, decode_ns, generated)
    assert tokens_in_time(told, ttft, tpot) == counted_one_by_one(told, ttft, tpot)


@given(SPANS, SPANS, st.integers(1, 200), LIMITS, LIMITS)
def test_all_tokens_of_a_good_request_are_in_time(ttft_ns, decode_ns, generated, ttft, tpot):
    told = event(ttft_ns, decode_ns, generated)
    if is_good(Slo("s", ttft=ttft, tpot=tpot), told):
        assert tokens_in_time(told, ttft, tpot) == generated


@pytest.mark.parametrize(
    ("ttft_ms", "tpot_ms", "generated", "in_time"),
    [
        (400, 40, 11, 11),  # early and fast
        (600, 40, 11, 1),  # 100 ms behind, 10 ms won with each token: the last one has caught up
        (600, 30, 11, 6),
        (400, 60, 11, 11),  # 100 ms ahead, 10 ms lost with each token: just enough for ten
        (400, 70, 11, 6),
        (600, 50, 11, 0),
        (500, 0, 1, 1),
        (501, 0, 1, 0),
        (100, 0, 0, 0),
    ],
)
def test_by_hand(ttft_ms, tpot_ms, generated, in_time):
    told = event(ttft_ms * MILLISECOND, tpot_ms * MILLISECOND * max(generated - 1, 0), generated)
    assert tokens_in_time(told, 500.0, 50.0) == in_time


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.FAILED])
def test_tokens_of_a_request_that_did_not_complete_are_never_good(outcome):
    told = event(1, 1, 100, outcome)
    slo = Slo("s", ttft=500.0, tpot=50.0)
    assert holds(slo, told)
    assert not is_good(slo, told)
    assert verdict_of(outcome, good=False) is Verdict.FAILED
    assert tokens_in_time(told, 500.0, 50.0) == 0


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.integers(1, 5_000))
def test_a_request_just_in_time_is_good_and_a_nanosecond_later_it_is_late(ttft, tpot, generated):
    decode_ns = tpot * MILLISECOND * (generated - 1)
    e2el = ttft + tpot * (generated - 1)
    slo = Slo("s", ttft=float(ttft), tpot=float(tpot), e2el=float(e2el))
    assert is_good(slo, event(ttft * MILLISECOND, decode_ns, generated))
    assert not is_good(slo, event(ttft * MILLISECOND + 1, decode_ns, generated))
    if generated > 1:
        assert not is_good(Slo("s", tpot=float(tpot)), event(ttft * MILLISECOND, decode_ns + 1, generated))


@pytest.mark.parametrize("generated", [0, 1])
def test_a_request_of_at_most_one_token_has_no_tpot_to_miss(generated):
    told = event(100 * MILLISECOND, 900 * MILLISECOND, generated)
    assert tpot_seconds(told) is None
    assert is_good(Slo("s", tpot=1.0), told)
    assert not is_good(Slo("s", tpot=1.0, e2el=999.0), told)


def test_tiers_go_by_interactivity():
    tiers = Parameters().tiers

    def tier(tpot_ms: float, generated: int = 11) -> str:
        return Tiers(tiers).of(tpot_seconds(event(0, round(tpot_ms * MILLISECOND) * (generated - 1), generated)))

    assert [tier(51.0), tier(50.0), tier(16.0), tier(0.0)] == [
        "bulk",
        "goldilocks",
        "low_latency",
        "low_latency",
    ]
    assert tier(1.0, generated=1) == "bulk"

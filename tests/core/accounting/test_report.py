"""A report's sums are those of the counters, its ratios quotients of sums, its interval as wide as minutes differ."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.core.accounting.epochs import Changed, Span, between, last_changes
from jouled.core.accounting.report import (
    Ratio,
    Requests,
    ToldReceipt,
    Used,
    difference,
    rows_by,
    sides,
    used,
)
from jouled.model.history import EngineChange, EngineMark

MINUTE = 60_000_000_000
T0 = 30_000_000 * MINUTE
LIGHT = settings(max_examples=80, deadline=None)


def mark(minute: float, engine: str = "e", **told: object) -> EngineMark:
    owners = {name: told.pop(name) for name in ("decode", "idle", "downtime", "unreported") if name in told}
    return EngineMark(engine=engine, model="m", t_ns=T0 + round(minute * MINUTE), owners_uj=owners, **told)


def span(begin: float, end: float) -> Span:
    return Span(T0 + round(begin * MINUTE), T0 + round(end * MINUTE))


def receipt(**told: object) -> ToldReceipt:
    usual = {
        "engine": "e",
        "model": "m",
        "last_token_ns": T0,
        "prompt_tokens": 10,
        "generation_tokens": 5,
        "joules": 2.0,
    }
    return ToldReceipt(**{**usual, **told})


# marks


def test_a_time_between_two_marks_has_its_part_of_them():
    marks = [
        mark(0, generation_tokens=100, decode=1_000_000),
        mark(10, generation_tokens=1100, decode=101_000_000, unreported_generation_tokens=50, unreported=10_000_000),
    ]
    whole = used(marks, span(2.5, 5))
    assert whole.generation_tokens == pytest.approx(1050 / 4)
    assert whole.owners_joules == {"decode": pytest.approx(25.0), "unreported": pytest.approx(2.5)}
    assert whole.tokens_per_joule(with_idle=True) == Ratio(pytest.approx(1050 / 110), None)


def test_idle_counts_in_one_ratio_and_downtime_in_none():
    marks = [mark(0), mark(1, generation_tokens=300, decode=100_000_000, idle=200_000_000, downtime=900_000_000)]
    whole = used(marks, span(0, 1))
    assert whole.joules == pytest.approx(300.0)
    assert whole.tokens_per_joule(with_idle=True).value == pytest.approx(1.0)
    assert whole.tokens_per_joule(with_idle=False).value == pytest.approx(3.0)


def test_counters_that_began_anew_are_not_taken_back():
    marks = [mark(0, decode=5_000_000), mark(1, decode=9_000_000), mark(2, decode=1_000_000), mark(3, decode=2_000_000)]
    assert used(marks, span(0, 3)).joules == pytest.approx(4.0 + 1.0 + 1.0)


def test_engines_are_chosen_and_nothing_known_is_nothing():
    marks = [mark(0), mark(1, decode=1_000_000), mark(0, "f"), mark(1, "f", decode=2_000_000)]
    assert used(marks, span(0, 1), {"f"}).joules == pytest.approx(2.0)
    assert used(marks, span(0, 1)).joules == pytest.approx(3.0)
    assert used(marks, span(5, 9)).joules == 0.0
    assert used([], span(0, 1)).tokens_per_joule(with_idle=True) is None
    assert used(marks[:1], span(0, 1)).tokens_per_joule(with_idle=True) is None


@pytest.mark.parametrize(
    ("marks", "known"),
    [
        ([mark(0), mark(1, idle=9_000_000)], None),
        ([mark(0), mark(1, idle=9_000_000), mark(2, idle=18_000_000)], 0.0),
        ([mark(0, ""), mark(2, "", idle=9_000_000)], None),
        ([mark(0), mark(1, idle=9_000_000), mark(0, ""), mark(3, "", idle=9_000_000)], None),
        ([mark(0), mark(2, idle=9_000_000), mark(0, "f"), mark(1, "f", idle=9_000_000)], None),
        ([mark(0), mark(2, idle=9_000_000), mark(0, "f"), mark(2, "f", idle=9_000_000)], 0.0),
    ],
)
def test_no_tokens_are_none_only_of_a_time_that_every_engine_has_closed(marks, known):
    """The time is of two minutes; until the books of an engine reach its end tokens may come. Without one, none do."""
    whole = used(marks, span(0, 2))
    assert whole.joules > 0.0
    told = whole.tokens_per_joule(with_idle=True)
    assert (told if told is None else told.value) == known
    assert whole.prompt_tokens_per_joule == known


def test_tokens_of_either_kind_are_known_before_a_time_is_closed():
    """A prefill pool counts no generated ones."""
    whole = used([mark(0), mark(1, prompt_tokens=50, decode=10_000_000)], span(0, 2))
    assert whole.prompt_tokens_per_joule == pytest.approx(5.0)
    assert whole.tokens_per_joule(with_idle=True).value == 0.0
    assert used([mark(0), mark(1, prompt_tokens=50)], span(0, 2)).prompt_tokens_per_joule is None


def test_guesses_are_called_so():
    marks = [mark(0, quality="estimated"), mark(1, quality="estimated", decode=1_000_000)]
    assert used(marks, span(0, 1)).is_estimated
    assert not used([mark(0), mark(1, decode=1)], span(0, 1)).is_estimated


@LIGHT
@given(
    st.lists(st.tuples(st.floats(0.05, 20.0), st.integers(0, 10**9), st.integers(0, 10**6)), min_size=1, max_size=20),
    st.lists(st.floats(0.0, 1.0), max_size=6),
    st.randoms(use_true_random=False),
)
def test_parts_of_a_time_add_up_to_it(steps, cuts, rng: random.Random):
    """However marks lie and a time is cut; marks may come in any order and twice, as the daemon's last one does."""
    at, uj, tokens = 0.0, 0, 0
    marks = [mark(0)]
    for minutes, grown_uj, grown_tokens in steps:
        at, uj, tokens = at + minutes, uj + grown_uj, tokens + grown_tokens
        marks.append(mark(at, decode=uj, generation_tokens=tokens))
    given_marks = [*marks, *rng.sample(marks, rng.randint(0, len(marks)))]
    rng.shuffle(given_marks)
    edges = sorted({0.0, *(share * at for share in cuts), at})
    parts = [used(given_marks, span(a, b)) for a, b in pairwise(edges)]
    assert sum(part.joules for part in parts) == pytest.approx(uj * 1e-6, rel=1e-9, abs=1e-9)
    assert sum(part.generation_tokens for part in parts) == pytest.approx(tokens, rel=1e-9, abs=1e-6)


# the interval


def minutes_of(rng: random.Random, count: int, per_joule: float, noise: float) -> Used:
    found = Used()
    for minute in range(count):
        joules = rng.uniform(2_000.0, 40_000.0)
        tokens = max(joules * per_joule * (1.0 + rng.gauss(0.0, noise)), 0.0)
        found.add(
            T0 + minute * MINUTE,
            {
                "prompt_tokens": 0.0,
                "unreported_prompt_tokens": 0.0,
                "generation_tokens": tokens,
                "unreported_generation_tokens": 0.0,
                "decode": joules,
            },
        )
    return found


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """500 pairs of hours whose minutes vary by a fifth, the second one 10 % better."""
    rng, held = random.Random(7), 0
    for _ in range(500):
        before, after = (minutes_of(rng, 60, mean, 0.2).tokens_per_joule(with_idle=True) for mean in (0.4, 0.44))
        told = difference(before, after)
        assert told.low < told.share < told.high
        held += told.low <= 0.1 <= told.high
    assert 0.92 <= held / 500 <= 0.98


def test_a_few_minutes_have_no_interval():
    before = minutes_of(random.Random(1), 9, 0.4, 0.2).tokens_per_joule(with_idle=True)
    after = minutes_of(random.Random(2), 60, 0.4, 0.2).tokens_per_joule(with_idle=True)
    assert before.relative_sigma is None
    told = difference(before, after)
    assert (told.low, told.high) == (None, None)
    assert told.share == pytest.approx(after.value / before.value - 1.0)
    assert difference(None, after) is None
    assert difference(Ratio(0.0, None), after) is None


# receipts


def test_rows_sum_up_by_who_asked():
    receipts = [
        receipt(tenant="a", cost=0.5, currency="EUR", co2e_grams=1.0, joules_host=0.5),
        receipt(tenant="a", cost=0.25, currency="EUR", co2e_grams=2.0, joules_residual=0.25),
        receipt(tenant="b", joules=9.0),
    ]
    first, second = rows_by(receipts, "tenant")
    assert (first.name, first.joules, first.cost, first.co2e_grams) == ("b", 9.0, {}, None)
    assert (second.name, second.requests, second.prompt_tokens, second.generation_tokens) == ("a", 2, 20, 10)
    assert (second.joules, second.node_joules) == (4.0, 4.75)
    assert (second.cost, second.co2e_grams) == ({"EUR": 0.75}, 3.0)


def test_two_halves_of_a_request_are_one_request():
    halves = [receipt(role="prefill", joules=1.0), receipt(role="decode", joules=3.0)]
    (row,) = rows_by(halves, "model")
    assert (row.requests, row.prompt_tokens, row.generation_tokens, row.joules) == (1, 10, 5, 4.0)


@LIGHT
@given(st.lists(st.floats(0.0, 1e6), max_size=60), st.floats(0.001, 1.0))
def test_a_quantile_is_a_value_that_so_many_stay_below(joules, share):
    requests = Requests()
    for value in joules:
        requests.add(receipt(joules=value))
    told = requests.quantile(share)
    if not joules:
        assert told is None
        return
    assert told in joules
    assert sum(value <= told for value in joules) >= share * len(joules) - 1e-9
    assert sum(value < told for value in joules) < share * len(joules) + 1e-9


def test_attainment_is_of_those_that_were_judged():
    requests = Requests()
    for good in (True, True, False):
        requests.add(receipt(good={"chat": good}))
    requests.add(receipt())
    requests.add(receipt(role="prefill", good={"chat": False}))
    assert requests.attainment() == {"chat": pytest.approx(2 / 3)}


def test_sides_take_what_ended_in_them():
    spans = [("e", span(0, 1)), ("e", span(1, 2)), ("f", span(0, 2))]
    receipts = [receipt(last_token_ns=T0 + at * MINUTE // 2, engine=name) for at, name in enumerate("eeeffe")]
    assert [len(side.joules) for side in sides(receipts, spans)] == [2, 1, 1]


# what changed


def change(engine: str, minute: float, **facts: str) -> EngineChange:
    return EngineChange(engine=engine, since_ns=T0 + round(minute * MINUTE), facts=facts)


def test_the_last_change_of_each_engine():
    changes = [
        change("e", 50, version="3", parallelism="tp4"),
        change("e", 0, version="1"),
        change("e", 20, version="2"),
        change("f", 0, version="1"),
        change("g", 0, version="1"),
        change("g", 90, version="2"),
    ]
    (found,) = last_changes(changes, T0 + 10 * MINUTE, T0 + 80 * MINUTE)
    assert (found.engine, found.before, found.after) == ("e", span(20, 50), span(50, 80))
    assert found.facts == (Changed("version", "2", "3"), Changed("parallelism", "", "tp4"))
    (cut,) = [each for each in last_changes(changes, T0 + 30 * MINUTE, T0 + 80 * MINUTE) if each.engine == "e"]
    assert cut.before == span(30, 50), "what lies before the asked time is left out"
    (before,) = last_changes(changes, T0 + 10 * MINUTE, T0 + 40 * MINUTE)
    assert (before.before, before.after) == (span(10, 20), span(20, 40)), "and what comes after it"


def test_what_differs_between_two_times():
    changes = [change("e", 0, version="1"), change("e", 20, version="2"), change("e", 40, version="1")]
    assert between(changes, "e", span(0, 10), span(20, 30)) == (Changed("version", "1", "2"),)
    assert between(changes, "e", span(0, 10), span(50, 60)) == ()
    assert between(changes, "f", span(0, 10), span(20, 30)) == ()

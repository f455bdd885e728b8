"""A model that is unloaded takes its part of the engine's counters along: no restart, and nothing counts twice."""

import pytest
from msgspec.structs import replace
from tests.core.scenario import SECOND, START, Node, request, run, when

from jouled.core.attribution.census import Census, Monotone
from jouled.core.attribution.unreported import UnreportedTokens
from jouled.model.engine import CounterSemantics, Engine, EngineSample

ENGINE = Engine(name="e", type="triton", model="tiny-8B", devices=("gpu0",))
NODE = Node((), seconds=60.0, interval=1.0, engine=ENGINE)

# Two models have 5 000 and 900 tokens; the first is gone at 10 s, while the second goes on, and comes back at 20 s.
TOLD = {0.0: 5_900, 5.0: 5_950, 10.0: 960, 15.0: 970, 20.0: 1_000, 25.0: 1_007}
DEPARTED = {10.0: {"prompt": 5_000, "generation": 5_000, "steps": 5_000}}


def samples(departed=DEPARTED) -> list[EngineSample]:
    return [
        replace(
            NODE.sample_at(START + round(seconds * SECOND)),
            steps=tokens,
            prompt_tokens=tokens,
            cached_prompt_tokens=None,
            generation_tokens=tokens,
            requests_running=0,
            requests_waiting=0,
            departed_counts=departed.get(seconds, {}),
        )
        for seconds, tokens in TOLD.items()
    ]


def snapshot(departed=DEPARTED):
    inputs = [*NODE.devices(), ENGINE, *sorted([*NODE.readings(), *samples(departed)], key=when)]
    return run(inputs).snapshot


def counted(shown, name: str) -> dict[str, int]:
    return {kind: tokens for (_, _, kind), tokens in shown.counters[name].items()}


@pytest.mark.parametrize("name", ["engine_tokens_total", "unreported_tokens_total"])
def test_only_what_was_made_is_counted(name: str) -> None:
    told = counted(snapshot(), name)
    assert told["generation"] == 107
    assert told.get("prompt_computed", told.get("prompt")) == 107


def test_the_looks_at_the_engine_count_on() -> None:
    census = Census(wait_ns=15 * SECOND, horizon_min_ns=120 * SECOND, horizon_max_ns=1800 * SECOND)
    grown = [census.sample(sample) for sample in samples()]
    for kind in ("steps", "prompt", "generation"):
        assert [each[kind] for each in grown] == [0, 50, 10, 10, 30, 7]


def test_requests_in_flight_are_still_expected_in_the_counters() -> None:
    """After a restart they would never come to be counted."""
    book = UnreportedTokens(CounterSemantics(prompt_at="finish", generation_at="finish"))
    book.tell(request("r", 4.0, prefill=0.5, decode=16.0, prompt=60, generated=60))
    for sample in samples():
        book.sample(sample)
    book.settle(START + 30 * SECOND)
    assert book.unreported == {"prompt": 107 - 60, "generation": 107 - 60}


def test_what_one_counter_lost_hides_no_restart_that_another_shows() -> None:
    """After it nobody waits for the tokens of those in flight."""
    book = UnreportedTokens(CounterSemantics(prompt_at="finish", generation_at="finish"))
    book.tell(request("r", 4.0, prefill=0.5, decode=16.0, prompt=60, generated=60))
    first, second, anew = samples({})[:3]
    book.sample(first)
    book.sample(replace(second, prompt_tokens=first.prompt_tokens, generation_tokens=first.generation_tokens))
    book.sample(replace(anew, prompt_tokens=50, generation_tokens=6_000, departed_counts={"generation": 5_900}))
    book.settle(START + 30 * SECOND)
    assert book.unreported == {"prompt": 50, "generation": 6_000}


def test_a_counter_that_goes_back_by_itself_is_a_restart() -> None:
    assert counted(snapshot({}), "engine_tokens_total")["generation"] == 50 + 960 + 47


def test_a_counter_goes_on_from_what_is_left_of_it() -> None:
    counter = Monotone()
    told = [(100, 0), (160, 0), (50, 120), (55, 0), (3, 60)]
    assert [counter.take(raw, departed) for raw, departed in told] == [0, 60, 10, 5, 3]

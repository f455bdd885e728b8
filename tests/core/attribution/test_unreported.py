"""Engine tokens = tokens of events + unreported + open, whatever is told, when, and however an engine counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, gpu, request, run, when

from jouled.core.attribution.unreported import UnreportedTokens
from jouled.core.pipeline import Pipeline
from jouled.model.engine import CounterSemantics, Engine, EngineSample
from jouled.model.requests import RequestEvent

LIGHT = settings(max_examples=60, deadline=None)
SEMANTICS = (
    CounterSemantics(),
    CounterSemantics(generation="without_first"),
    CounterSemantics(prompt_at="finish", generation_at="finish"),
    CounterSemantics(prompt="computed", prompt_at="step", generation_at="finish"),
)
REST = 40.0
"""Seconds after which nobody is there any more."""


@dataclass(frozen=True)
class Served:
    """A request, whether anybody tells of it, and how unevenly it decodes (a power of elapsed time)."""

    event: RequestEvent
    told: bool
    bend: float

    def counted(self, t_ns: int, semantics: CounterSemantics) -> tuple[int, int, int]:
        """What it has added to the counters of prompt, cached and generated tokens."""
        e = self.event
        cached = e.cached_prompt_tokens or 0
        share = (t_ns - e.first_token_ns) / max(e.last_token_ns - e.first_token_ns, 1)
        if t_ns < e.first_token_ns:
            return 0, 0, 0
        made = e.generation_tokens
        if share < 1.0:
            made = 0 if semantics.generation_at == "finish" else min(1 + int(made * share**self.bend), made)
        has_prompt = share >= 1.0 or semantics.prompt_at != "finish"
        made -= semantics.generation == "without_first" and made > 0
        prompt = e.prompt_tokens - (cached if semantics.prompt == "computed" else 0)
        return prompt * has_prompt, cached * has_prompt, made

    def __post_init__(self) -> None:
        assert self.event.last_token_ns < START + REST * SECOND


def look(t: float, served: Sequence[Served], semantics: CounterSemantics, **changes: object) -> EngineSample:
    t_ns = START + round(t * SECOND)
    prompt, cached, generated = (
        sum(part) for part in zip((0, 0, 0), *(s.counted(t_ns, semantics) for s in served), strict=True)
    )
    there = sum(s.event.arrival_ns <= t_ns < s.event.last_token_ns for s in served)
    told = {"prompt_tokens": prompt, "cached_prompt_tokens": cached, "generation_tokens": generated}
    return EngineSample(engine="e", t_ns=t_ns, **{**told, "requests_running": there, "requests_waiting": 0, **changes})


def all_served() -> st.SearchStrategy[list[Served]]:
    rows = st.tuples(
        st.floats(1.0, 30.0), st.floats(0.0, 2.0), st.floats(0.0, 7.0), st.integers(0, 3000), st.integers(0, 900),
        st.floats(0.0, 1.0), st.booleans(), st.floats(0.2, 5.0),
    )  # fmt: skip
    return st.lists(rows, max_size=15).map(
        lambda them: [
            Served(
                request(
                    f"r{i}", at, prefill=p, decode=d, prompt=n, generated=g, cached_prompt_tokens=int(n * hit)
                ),
                told,
                bend,
            )
            for i, (at, p, d, n, g, hit, told, bend) in enumerate(them)
        ]
    )  # fmt: skip


def looks_at() -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(1.0, REST), max_size=20).map(lambda times: [0.0, *sorted(times), REST, REST + 5.0])


@LIGHT
@given(all_served(), looks_at(), st.sampled_from(SEMANTICS))
def test_engine_tokens_are_told_unreported_or_open(served, times, semantics):
    ledger = UnreportedTokens(semantics)
    for s in served:
        if s.told:
            ledger.tell(s.event)
    last_ns = -1
    for t in times:
        sample = look(t, served, semantics)
        if sample.t_ns == last_ns:
            continue
        last_ns = sample.t_ns
        ledger.sample(sample)
        grown = ledger.settle(sample.t_ns)
        assert min(grown) >= 0
        untold = [s.counted(sample.t_ns, semantics) for s in served if not s.told]
        assert ledger.unreported["generation"] <= sum(made for _, _, made in untold)
        has_cached = semantics.prompt == "computed"
        assert ledger.unreported["prompt"] <= sum(prompt + cached * has_cached for prompt, cached, _ in untold)
        for kind in ("prompt", "generation"):
            # Open: between what is told of those in flight and not counted yet, and nothing.
            assert ledger.told[kind] + ledger.unreported[kind] >= ledger.counted[kind]
    for kind in ("prompt", "generation"):
        assert ledger.counted[kind] == ledger.told[kind] + ledger.unreported[kind], "the engine is at rest"
    first = semantics.generation == "without_first"
    untold_made = sum(max(s.event.generation_tokens - first, 0) for s in served if not s.told)
    assert ledger.unreported["generation"] == untold_made
    assert ledger.unreported["prompt"] == sum(s.event.prompt_tokens for s in served if not s.told)


@LIGHT
@given(all_served(), st.integers(0, 3000))
def test_what_is_told_late_is_made_up_for_by_what_is_lost_next(served, more):
    ledger, semantics = UnreportedTokens(CounterSemantics()), CounterSemantics()
    for t in (0.0, REST):
        ledger.sample(look(t, served, semantics))
        ledger.settle(START + round(t * SECOND))
    all_tokens = sum(s.event.generation_tokens for s in served)
    assert ledger.unreported["generation"] == all_tokens, "nobody has told yet"
    for s in served:
        if s.told:
            ledger.tell(s.event)
    late = sum(s.event.generation_tokens for s in served if s.told)
    lost = look(REST + 60.0, served, semantics, generation_tokens=all_tokens + more)
    ledger.sample(lost)
    assert ledger.settle(lost.t_ns).generation == max(more - late, 0)
    assert ledger.counted["generation"] - ledger.told["generation"] - ledger.unreported["generation"] == min(
        more - late, 0
    )


@LIGHT
@given(all_served(), st.integers(0, 900), st.integers(0, 900), st.integers(1, 100))
def test_a_new_process_begins_without_the_debts_of_the_old(served, uncounted, aborted, after):
    """A process made tokens that nobody looked at any more, died, and another one lost some."""
    semantics = CounterSemantics()
    ledger = UnreportedTokens(semantics)
    ledger.sample(look(0.0, served, semantics))
    sample = look(REST, served, semantics)
    ledger.sample(sample)
    for s in served:
        if s.told:
            ledger.tell(s.event)
    ledger.tell(request("uncounted", REST - 3.0, generated=uncounted))
    ledger.settle(sample.t_ns)
    before = ledger.unreported["generation"]
    fresh = look(
        REST + 20.0, [], semantics, generation_tokens=aborted, prompt_tokens=0, cached_prompt_tokens=0
    )  # fmt: skip
    if not sample.generation_tokens or aborted >= sample.generation_tokens:
        return
    ledger.sample(fresh)
    assert ledger.settle(fresh.t_ns).generation == aborted
    ledger.tell(request("new", REST + 25.0, generated=after))
    last = change(fresh, t_ns=fresh.t_ns + 60 * SECOND, generation_tokens=aborted + after)
    ledger.sample(last)
    assert ledger.settle(last.t_ns).generation == 0
    assert ledger.unreported["generation"] == before + aborted


def test_requests_that_began_before_the_first_look_leave_nothing_behind():
    semantics = CounterSemantics()
    early = Served(request("early", 0.0, prefill=0.5, decode=9.0, generated=100), told=True, bend=1.0)
    lost = Served(request("lost", 20.0, decode=3.0, generated=60), told=False, bend=1.0)
    ledger = UnreportedTokens(semantics)
    ledger.tell(early.event)
    for t in (5.0, 12.0, 15.0, 30.0):
        ledger.sample(look(t, [early, lost], semantics))
        ledger.settle(START + round(t * SECOND))
    assert ledger.unreported == {"prompt": lost.event.prompt_tokens, "generation": 60}


def test_a_richer_telling_replaces_the_tokens_of_the_poorer():
    semantics = CounterSemantics()
    whole = Served(request("r", 5.0, decode=3.0, generated=60), told=True, bend=1.0)
    cut = change(whole.event, generation_tokens=20)
    ledger = UnreportedTokens(semantics)
    ledger.tell(cut)
    ledger.untell(cut)
    ledger.tell(whole.event)
    for t in (0.0, 30.0):
        ledger.sample(look(t, [whole], semantics))
        ledger.settle(START + round(t * SECOND))
    assert ledger.unreported == {"prompt": 0, "generation": 0}
    assert ledger.told["generation"] == 60


def test_looks_wait_for_their_cells():
    semantics = CounterSemantics()
    lost = Served(request("lost", 5.0, decode=3.0, generated=60), told=False, bend=1.0)
    ledger = UnreportedTokens(semantics)
    for t in (0.0, 20.0):
        ledger.sample(look(t, [lost], semantics))
    assert ledger.settle(START + 19 * SECOND).generation == 0
    assert ledger.settle(START + 20 * SECOND).generation == 60


# through the whole core


def _tokens(result, name: str) -> dict[str, float]:
    return {labels[2]: value for labels, value in result.snapshot.counters.get(name, {}).items()}


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(1.0, 30.0), st.integers(1, 400), st.booleans()), max_size=10))
def test_the_counters_of_the_core_add_up(rows):
    events = [request(f"r{i}", at, decode=4.0, generated=made) for i, (at, made, _) in enumerate(rows)]
    told = {event.id for event, (_, _, is_told) in zip(events, rows, strict=True) if is_told}
    node = Node(tuple(events), seconds=60.0, interval=1.0, samples=True)
    inputs = [item for item in node.inputs() if not isinstance(item, RequestEvent) or item.id in told]
    result = run(inputs)
    engine, requests = _tokens(result, "engine_tokens_total"), _tokens(result, "request_tokens_total")
    unreported = _tokens(result, "unreported_tokens_total")
    assert engine["generation"] == requests.get("generation", 0) + unreported["generation"]
    assert engine["prompt_computed"] == requests.get("prompt_computed", 0) + unreported["prompt"]
    assert unreported["generation"] == sum(made for _, made, is_told in rows if not is_told)


@pytest.mark.parametrize(("role", "kinds"), [("prefill", {"prompt"}), ("decode", {"generation"})])
def test_of_halves_each_engine_counts_its_own(role, kinds):
    events = tuple(request(f"r{i}", 2.0 * i + 1.0, generated=1 if role == "prefill" else 50) for i in range(5))
    engine = Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",), role=role)
    node = Node(events, seconds=40.0, samples=True, engine=engine)
    told = sorted(
        [*node.readings(), *node.engine_samples(), *events[:3]],
        key=when,
    )
    result = run([*node.devices(), engine, *told])
    lost = {kind: tokens for kind, tokens in _tokens(result, "unreported_tokens_total").items() if tokens}
    assert set(_tokens(result, "unreported_tokens_total")) == kinds
    assert lost == ({"prompt": 800} if role == "prefill" else {"generation": 100})


def busy_look(t: float, made: int) -> EngineSample:
    """A look at an engine that never rests."""
    t_ns = START + round(t * SECOND)
    gauges = {"requests_running": 1, "requests_waiting": 0}
    return EngineSample(engine="e", t_ns=t_ns, prompt_tokens=9, generation_tokens=made, **gauges)


def settled_at(ledger: UnreportedTokens, t: float) -> int:
    return ledger.settle(START + round(t * SECOND)).generation


def test_what_is_told_before_the_first_look_takes_no_room_and_hides_nothing():
    ledger = UnreportedTokens(CounterSemantics())
    for second in range(600):
        ledger.tell(request(f"r{second}", float(second), generated=50))
        settled_at(ledger, second - 15.0)
    assert len(ledger._by_cell) <= 16
    settled_at(ledger, 900.0)
    for t, made in ((1000.0, 0), (1010.0, 70)):
        ledger.sample(busy_look(t, made))
        grown = settled_at(ledger, t)
    assert grown == 70


def test_while_a_page_is_away_what_is_told_is_kept_as_one_sum():
    ledger = UnreportedTokens(CounterSemantics())
    ledger.sample(busy_look(0.0, 0))
    for second in range(600):
        ledger.tell(request(f"r{second}", float(second), generated=50))
        settled_at(ledger, second - 15.0)
    assert len(ledger._by_cell) <= 17
    ledger.sample(busy_look(1000.0, 600 * 50 + 70))
    assert settled_at(ledger, 1000.0) == 70


@pytest.mark.parametrize(("before", "after"), [("total", "computed"), ("computed", "total")])
def test_another_release_that_counts_cached_tokens_otherwise_loses_and_hides_none(before, after):
    counters = {"requests_running": 1, "requests_waiting": 0, "generation_tokens": 0}
    ledger = UnreportedTokens(CounterSemantics(prompt=before))
    looks = [(0.0, 0, 0), (5.0, 1000, 900), (10.0, 0, 0), (15.0, 70, 0)]
    for t, prompt, cached in looks:
        if t == 10.0:
            ledger.describe(CounterSemantics(prompt=after))
        t_ns = START + round(t * SECOND)
        ledger.sample(
            EngineSample(engine="e", t_ns=t_ns, prompt_tokens=prompt, cached_prompt_tokens=cached, **counters)
        )
        grown = ledger.settle(t_ns).prompt
    assert grown == 70
    assert ledger.unreported["prompt"] == 1070 + (900 if before == "computed" else 0)


def test_without_any_reading_tokens_are_counted_and_nothing_piles_up():
    pipeline = Pipeline(PARAMETERS)
    for item in [gpu(), Engine(name="e", type="vllm", model="tiny-8B", devices=("gpu0",))]:
        pipeline.feed(item)
    for second in range(1200):
        t_ns = START + second * SECOND
        pipeline.feed(change(request(f"r{second}", second - 3.0), seen_ns=t_ns))
        pipeline.feed(busy_look(float(second), 105 * second))
        pipeline.advance(t_ns)
    counters = pipeline.snapshot(t_ns).counters["unreported_tokens_total"]
    assert counters["e", "tiny-8B", "generation"] == pytest.approx(1199 * 5, rel=0.3)
    assert len(pipeline._engines.unreported["e"]._by_cell) < 200

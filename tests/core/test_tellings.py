"""One request told by several paths counts once, with all that any of them knows."""

import random
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as change
from tests.core.scenario import PARAMETERS, SECOND, START, Node, request, request_sets, run, when

from jouled.core import identity
from jouled.core.attribution.by_request import bare_id
from jouled.core.attribution.census import Census
from jouled.core.attribution.tellings import merged
from jouled.core.pipeline import Pipeline
from jouled.model.engine import EngineSample
from jouled.model.receipt import Receipt
from jouled.model.requests import Outcome, RequestEvent

MILLISECOND = 1_000_000
LIGHT = settings(max_examples=40, deadline=None)


def by_gateway(event: RequestEvent, **changes: object) -> RequestEvent:
    """As a gateway before the engine sees it: a little longer, nothing of queue and cache, but who asked."""
    told = change(
        event,
        id=bare_id(event.id),
        arrival_ns=event.arrival_ns - 3 * MILLISECOND,
        first_token_ns=event.first_token_ns + MILLISECOND,
        last_token_ns=event.last_token_ns + 4 * MILLISECOND,
        scheduled_ns=None,
        cached_prompt_tokens=None,
        tenant="team-a",
    )
    return change(told, **changes)


def by_engine(event: RequestEvent) -> RequestEvent:
    return change(event, id=f"chatcmpl-{event.id}", cached_prompt_tokens=event.prompt_tokens // 2, trace_id="ab" * 16)


def totals(result) -> dict:
    counters = result.snapshot.counters
    return {name: counters.get(name) for name in ("requests_total", "request_tokens_total", "energy_joules_total")}


@LIGHT
@given(request_sets(), st.randoms(use_true_random=False))
def test_two_tellings_count_as_the_richer_alone(requests, rng: random.Random):
    engine = tuple(by_engine(event) for event in requests)
    alone = run(Node(engine).inputs())
    tellings = [*engine, *(by_gateway(event) for event in engine)]
    rng.shuffle(tellings)
    node = Node(engine)
    both = run([*node.devices(), node.engine, *tellings, *node.readings()])
    assert both.refused == ()
    assert totals(both) == totals(alone)
    assert both.energies == alone.energies
    assert both.snapshot.counters.get("merged_events_total", {}).get(("e",), 0) == len(requests)
    for receipt in both.receipts.values():
        assert (receipt.tenant, receipt.trace_id) == ("team-a", "ab" * 16)


@LIGHT
@given(request_sets(), st.integers(1, 3), st.booleans())
def test_each_telling_once_more_changes_nothing(requests, copies, samples):
    tellings = [telling for event in requests for telling in (by_gateway(by_engine(event)), by_engine(event))]
    node = Node(requests, samples=samples)
    rest = [*node.readings(), *node.engine_samples()]
    rest.sort(key=lambda item: item.t_ns)
    once = run([*node.devices(), node.engine, *tellings, *rest])
    often = run([*node.devices(), node.engine, *tellings * (1 + copies), *rest])
    assert often.energies == once.energies
    assert often.refused == ("duplicate",) * copies * len(tellings)
    assert totals(often) == totals(once)


@given(st.permutations(["engine", "gateway", "plugin"]))
def test_the_order_of_the_paths_does_not_matter(order):
    event = request("x", 2.0)
    told = {
        "engine": change(by_engine(event), cached_prompt_tokens=None),
        "gateway": by_gateway(event),
        "plugin": change(by_engine(event), trace_id="", arrival_ns=event.arrival_ns + MILLISECOND, adapter="lora"),
    }
    node = Node((event,))
    result = run([*node.devices(), node.engine, *(told[path] for path in order), *node.readings()])
    (receipt,) = result.receipts.values()
    assert receipt.id == "chatcmpl-x"
    assert (receipt.tenant, receipt.adapter, receipt.trace_id) == ("team-a", "lora", "ab" * 16)
    assert (receipt.cached_prompt_tokens, receipt.arrival_ns) == (200, told["plugin"].arrival_ns)
    assert result.snapshot.counters["merged_events_total"] == {("e",): 2}


@given(st.data())
def test_merging_is_idempotent_and_keeps_the_order_of_times(data):
    event = by_engine(request("x", 2.0))
    shift = st.integers(-400 * MILLISECOND, 400 * MILLISECOND)
    other = by_gateway(
        event,
        arrival_ns=event.arrival_ns + data.draw(shift),
        scheduled_ns=data.draw(st.sampled_from([None, event.scheduled_ns])),
        outcome=data.draw(st.sampled_from(list(Outcome))),
        preemptions=data.draw(st.integers(0, 3)),
    )
    whole = merged(event, other)
    assert merged(whole, other) == merged(whole, event) == whole
    assert change(merged(other, event), seen_ns=0) == change(whole, seen_ns=0)
    assert (whole.arrival_ns, whole.first_token_ns) in [
        (telling.arrival_ns, telling.first_token_ns) for telling in (event, other)
    ]


def test_a_client_that_left_is_cancelled_though_the_gateway_saw_fewer_tokens():
    event = by_engine(request("x", 2.0))
    left = by_gateway(event, generation_tokens=60, outcome=Outcome.CANCELLED)
    node = Node((event,))
    for order in ([left, event], [event, left]):
        result = run([*node.devices(), node.engine, *order, *node.readings()])
        (receipt,) = result.receipts.values()
        assert (receipt.outcome, receipt.generation_tokens) == ("cancelled", 100)
        assert result.refused == ()


def test_other_tokens_of_a_request_that_ran_to_its_end_are_a_conflict():
    event = request("x", 2.0)
    node = Node((event,))
    result = run([*node.inputs(), by_gateway(event, generation_tokens=99)])
    assert result.refused == ("conflict",)
    assert "merged_events_total" not in result.snapshot.counters


def until(pipeline: Pipeline, node: Node, seconds: float) -> list[Receipt]:
    """Feed meters and looks up to a time, second by second; returns the receipts."""
    timed = [*node.readings(), *node.engine_samples()]
    receipts = []
    for second in range(1, round(seconds) + 1):
        begin, end = START + (second - 1) * SECOND, START + second * SECOND
        for item in sorted((each for each in timed if begin <= each.t_ns < end), key=lambda each: each.t_ns):
            pipeline.feed(item)
        receipts += pipeline.advance(end)
    return receipts


@pytest.mark.parametrize("tokens", [100, 99])
def test_a_telling_after_the_receipt_changes_nothing(tokens):
    event = request("x", 2.0)
    node = Node((event,), seconds=200.0, samples=True)
    pipeline = Pipeline(PARAMETERS)
    for item in [*node.devices(), node.engine, event]:
        pipeline.feed(item)
    assert until(pipeline, node, 180.0)
    late = pipeline.feed(by_gateway(event, generation_tokens=tokens))
    assert late == ("duplicate" if tokens == 100 else "conflict")


def test_of_a_request_whose_energy_is_being_shared_names_and_cached_tokens_are_taken():
    event = request("x", 2.0, decode=100.0)
    node = Node((event,), seconds=300.0, samples=True)
    pipeline = Pipeline(PARAMETERS)
    for item in [*node.devices(), node.engine, event]:
        pipeline.feed(item)
    until(pipeline, node, 60.0)
    assert pipeline.feed(by_gateway(event, scheduled_ns=event.arrival_ns, cached_prompt_tokens=77)) == ""
    (receipt,) = until(pipeline, node, 300.0)
    assert (receipt.tenant, receipt.cached_prompt_tokens) == ("team-a", 77)
    assert receipt.arrival_ns == event.arrival_ns


def tries(first: Outcome, *, gap: float = 0.3) -> tuple[RequestEvent, RequestEvent]:
    """A request that is tried twice under one id within a second."""
    broken = request("x", 2.0, prefill=0.05, decode=0.15, generated=2, outcome=first)
    return broken, request("x", 2.2 + gap, generated=100)


@pytest.mark.parametrize("first", [Outcome.FAILED, Outcome.CANCELLED])
@pytest.mark.parametrize("turn", [1, -1])
def test_the_next_try_of_a_request_that_was_cut_off_is_another_request(first, turn):
    broken, whole = tries(first)
    told = [broken, whole][::turn]
    node = Node((broken, whole))
    twice = run([*node.devices(), node.engine, *told, *(by_gateway(each) for each in told), *told, *node.readings()])
    counters = twice.snapshot.counters
    labels = ("e", "tiny-8B")
    assert counters["requests_total"] == {(*labels, first): 1, (*labels, "completed"): 1}
    assert counters["request_tokens_total"][*labels, "generation"] == 102
    assert counters["merged_events_total"] == {("e",): 2}
    assert twice.refused == ("duplicate", "duplicate")


def test_tries_that_ran_at_once_are_tellings_of_one():
    broken, whole = tries(Outcome.FAILED, gap=-0.1)
    node = Node((broken, whole))
    result = run([*node.devices(), node.engine, broken, whole, *node.readings()])
    assert result.snapshot.counters["requests_total"] == {("e", "tiny-8B", "failed"): 1}


def answers_of(drawn: list[tuple[int, int]]) -> tuple[RequestEvent, ...]:
    """Answers to one prompt as vLLM's plug-in tells them: one id, one arrival, and a number among those alike.

    drawn: of each its tokens, and by how many steps of 50 ms it ends later than the first can.
    """
    told: Counter[int] = Counter()
    answers = []
    for generated, steps in sorted(drawn, key=itemgetter(1)):
        told[generated] += 1
        event = request("x", 2.0, decode=0.5 + 0.05 * steps, generated=generated, cached_prompt_tokens=16)
        answers.append(change(event, id="chatcmpl-x", answer=told[generated]))
    return tuple(answers)


def by_spans(answers: tuple[RequestEvent, ...]) -> list[RequestEvent]:
    """The same answers as vLLM's spans tell them."""
    return [
        change(event, cached_prompt_tokens=None, trace_id="ab" * 16, span_id=f"{number:016x}")
        for number, event in enumerate(answers)
    ]


def counted(result) -> dict[str, int]:
    """Requests and their tokens."""
    counters = result.snapshot.counters
    tokens: Counter[str] = Counter()
    for (*_, kind), value in counters.get("request_tokens_total", {}).items():
        tokens[kind.partition("_")[0]] += value
    return {"requests": sum(counters.get("requests_total", {}).values()), **tokens}


def made(answers: Iterable[RequestEvent]) -> dict[str, int]:
    """What the engine's own page counts of them."""
    events = list(answers)
    generated = sum(event.generation_tokens for event in events)
    return {"requests": len(events), "prompt": 400 * len(events), "generation": generated}


ANSWERS = st.lists(st.tuples(st.sampled_from([3, 40, 41]), st.integers(0, 9)), min_size=1, max_size=8).map(answers_of)


@LIGHT
@given(ANSWERS, st.booleans(), st.data())
def test_each_answer_to_a_prompt_counts_once(answers, plugin_is_whole, data):
    """One of the two paths tells of all, the other of some; in any order, and any telling may come again."""
    whole, other = (answers, by_spans(answers)) if plugin_is_whole else (by_spans(answers), answers)
    some = [event for event in other if data.draw(st.booleans())]
    again = [event for event in (*whole, *some) if data.draw(st.booleans())]
    tellings = data.draw(st.permutations([*whole, *some, *again]))
    node = Node(answers, samples=True)
    rest = sorted([*node.readings(), *node.engine_samples()], key=when)
    result = run([*node.devices(), node.engine, *tellings, *rest])
    assert counted(result) == made(answers)
    assert not any(result.snapshot.counters.get("unreported_tokens_total", {}).values())
    assert result.snapshot.counters.get("merged_events_total", {}).get(("e",), 0) == len(some)
    assert result.refused == ("duplicate",) * len(again)


@LIGHT
@given(ANSWERS, st.data())
def test_answers_of_which_both_paths_lose_some_never_count_twice(answers, data):
    """Spans are numbered as they come: of answers alike the first to come is taken for the first."""
    tellings, numbers = [event for event in answers if data.draw(st.booleans())], Counter()
    for span in data.draw(st.permutations(by_spans(answers))):
        if data.draw(st.booleans()):
            numbers[span.generation_tokens] += 1
            tellings.append(change(span, answer=numbers[span.generation_tokens]))
    node = Node(answers)
    result = run([*node.devices(), node.engine, *data.draw(st.permutations(tellings)), *node.readings()])
    assert all(value <= made(answers)[kind] for kind, value in counted(result).items())
    assert result.refused == ()


@LIGHT
@given(ANSWERS, st.data())
def test_the_order_in_which_answers_are_told_changes_no_joule(answers, data):
    def parts(told) -> list[tuple[object, ...]]:
        pipeline = Pipeline(PARAMETERS)
        node = Node(answers)
        for item in [*node.devices(), node.engine, *told, *node.readings()]:
            pipeline.feed(item)
        receipts = [*pipeline.advance(START + 40 * SECOND), *pipeline.finish()]
        return [(r.last_token_ns, r.generation_tokens, r.joules_prefill, r.joules_decode) for r in receipts]

    found = parts(answers)
    assert len(found) == len(answers)
    assert parts(data.draw(st.permutations(answers))) == found


ALIKE = answers_of([(40, 0), (40, 0), (41, 1)])


def refusals(*told: RequestEvent) -> list[str]:
    """What the core says to each of these."""
    pipeline = Pipeline(PARAMETERS)
    node = Node(ALIKE)
    for item in [*node.devices(), node.engine]:
        pipeline.feed(item)
    return [pipeline.feed(event) for event in told]


def test_what_a_gateway_saw_of_all_answers_together_counts_beside_none_of_them():
    whole = by_gateway(ALIKE[2], generation_tokens=121, answer=0)
    assert refusals(*ALIKE, whole) == ["", "", "", "conflict"]
    assert refusals(whole, *ALIKE) == ["", "conflict", "conflict", "conflict"]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_a_gateway_that_saw_one_answer_tells_of_that_one(order):
    told = [*ALIKE, by_gateway(ALIKE[2], answer=0)]
    assert refusals(*(told[place] for place in order)) == [""] * 4


@pytest.mark.parametrize("first", [Outcome.COMPLETED, Outcome.FAILED])
@pytest.mark.parametrize("order", [1, -1])
def test_each_span_is_joined_with_its_own_answer(first, order):
    """Also where one of them failed: a gateway's telling of that one might have other tokens."""
    answers = answers_of([(3, 0), (40, 0), (40, 0)])
    answers = (change(answers[0], outcome=first), *answers[1:])
    node = Node(answers)
    pipeline = Pipeline(PARAMETERS)
    spans = [change(span, outcome=Outcome.COMPLETED) for span in by_spans(answers)]
    for item in [*node.devices(), node.engine, *answers, *spans[::order], *node.readings()]:
        assert pipeline.feed(item) == ""
    receipts = [*pipeline.advance(START + 40 * SECOND), *pipeline.finish()]
    told = sorted((r.span_id, r.generation_tokens, r.outcome, r.cached_prompt_tokens) for r in receipts)
    assert told == [
        (f"{0:016x}", 3, first, 16),
        (f"{1:016x}", 40, Outcome.COMPLETED, 16),
        (f"{2:016x}", 40, Outcome.COMPLETED, 16),
    ]


def test_a_merged_telling_keeps_the_number_of_its_answer():
    rich = by_gateway(ALIKE[1], scheduled_ns=ALIKE[1].scheduled_ns, cached_prompt_tokens=20, answer=0)
    for one, other in ((rich, ALIKE[1]), (ALIKE[1], rich)):
        assert (merged(one, other).answer, merged(one, other).arrival_ns) == (2, rich.arrival_ns)


def test_beyond_what_is_remembered_of_an_id_no_further_answers_are_taken(monkeypatch):
    """Of the first ones it is not known any more that they were told."""
    monkeypatch.setattr(identity, "REMEMBER_PER_ID", 3)
    answers = answers_of([(generated, 0) for generated in range(1, 6)])
    assert refusals(*answers, *answers) == ["", "", "", "conflict", "conflict"] + ["duplicate"] * 3 + ["conflict"] * 2


def test_after_a_restart_answers_whose_siblings_have_their_receipts_are_not_taken():
    """Receipts do not say which answer they are of: rather none than one twice."""
    node = Node(ALIKE, seconds=200.0)
    before = Pipeline(PARAMETERS)
    for item in [*node.devices(), node.engine, *ALIKE[:2]]:
        before.feed(item)
    receipts = [receipt for receipt in until(before, node, 180.0) if not receipt.provisional]
    assert len(receipts) == 2
    for waiting, third in (((), "conflict"), (ALIKE[2:], "duplicate")):
        after = Pipeline(PARAMETERS)
        after.remember(receipts)
        for item in [*node.devices(), node.engine]:
            after.feed(item)
        for event in waiting:
            after._admission.remember(event)  # as `remember_waiting` does
        assert [after.feed(event) for event in (*by_spans(ALIKE), *ALIKE)] == ["duplicate", "duplicate", third] * 2


@pytest.mark.parametrize("seconds", [20.0, 70.0])
def test_what_the_cache_held_is_counted_whoever_tells_first(seconds):
    event = change(request("x", 2.0, decode=seconds, generated=1000), cached_prompt_tokens=300)
    node = Node((event,), seconds=300.0, samples=True)
    tokens = []
    for paths in ([by_gateway(event), event], [event, by_gateway(event)]):
        pipeline = Pipeline(PARAMETERS)
        for item in [*node.devices(), node.engine]:
            pipeline.feed(item)
        told_ns = max(path.last_token_ns for path in paths)
        tellings = [change(path, seen_ns=told_ns + k * 4 * SECOND) for k, path in enumerate(paths)]
        last_ns = START
        for item in sorted([*node.readings(), *node.engine_samples(), *tellings], key=when):
            pipeline.feed(item)
            if when(item) - last_ns >= SECOND:
                last_ns = when(item)
                pipeline.advance(last_ns)
        tokens.append(pipeline.snapshot(last_ns).counters["request_tokens_total"])
    assert tokens[0] == tokens[1]
    assert tokens[0]["e", "tiny-8B", "prompt_cached"] == 300


@LIGHT
@given(request_sets(), st.lists(st.floats(0.0, 40.0), max_size=20), st.randoms(use_true_random=False))
def test_a_request_that_was_told_twice_is_at_every_look_once(requests, looks, rng: random.Random):
    """Whether looks come before a telling, between both or after them."""
    tellings = [(event.last_token_ns, telling) for event in requests for telling in (event, by_gateway(event))]
    again = Census(wait_ns=0, horizon_min_ns=0, horizon_max_ns=SECOND)
    once = Census(wait_ns=0, horizon_min_ns=0, horizon_max_ns=SECOND)
    told: dict[str, RequestEvent] = {}
    items = [*tellings, *((START + round(t * SECOND), t) for t in looks)]
    for t_ns, item in sorted(items, key=lambda pair: (pair[0], rng.random())):
        if not isinstance(item, RequestEvent):
            for census in (again, once):
                census.sample(EngineSample(engine="e", t_ns=t_ns, requests_running=1))
            continue
        known = told.get(item.id)
        if known is not None:
            again.untold(known.arrival_ns, known.last_token_ns, scheduled=True)
        first = told.setdefault(item.id, item)
        for census in (again, once) if known is None else (again,):
            census.known(first.arrival_ns, first.last_token_ns, t_ns, scheduled=True)
    for one, other in zip(once.looks, again.looks, strict=True):
        assert (one.least, one.most) == (other.least, other.most)


@pytest.mark.parametrize(
    ("request_id", "bare"),
    [
        ("x", "x"),
        ("x-0", "x-0"),
        ("chatcmpl-x", "x"),
        ("chatcmpl-x-0", "x-0"),
        ("cmpl-x-0", "x"),
        ("cmpl-x-1", "x-1"),
        ("cmpl-", ""),
        ("chatcmpl-chatcmpl-x", "x"),
        ("cmpl-chatcmpl-x-0", "x"),
    ],
)
def test_the_id_that_a_client_knows(request_id, bare):
    assert bare_id(request_id) == bare


def test_spans_sent_again_do_not_count_twice_under_an_id_that_all_requests_have():
    """A client may send one X-Request-Id with each of its requests: more than are remembered of an id."""
    events = [
        request("same", 1.0 + 1.2 * number, trace_id=f"{number:032x}", span_id=f"{number + 1:016x}")
        for number in range(identity.REMEMBER_PER_ID + 10)
    ]
    admission = identity.Admission()
    assert {admission.refuse(event, 0) for event in events} == {""}
    assert {admission.refuse(event, 0) for event in events} == {"duplicate"}


def test_two_paths_do_not_count_twice_under_an_id_that_all_requests_have(monkeypatch):
    """Spans come seconds after the plug-in's records, and by then more was told of the id than is remembered."""
    monkeypatch.setattr(identity, "REMEMBER_PER_ID", 5)
    records = [request("same", 1.0 + 0.6 * number, generated=20 + number, answer=1) for number in range(30)]
    spans = [change(event, cached_prompt_tokens=3, trace_id=f"{event.generation_tokens:032x}") for event in records]
    node = Node(tuple(records))
    result = run([*node.devices(), node.engine, *records, *spans, *node.readings()])
    assert result.refused == ()
    assert result.snapshot.counters["requests_total"] == {("e", "tiny-8B", "completed"): 30}
    assert result.snapshot.counters["merged_events_total"] == {("e",): 30}

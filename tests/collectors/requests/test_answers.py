"""Several answers to one prompt in vLLM's spans: which is which, and that a span sent again is the same one."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.scenario import Node, request, run

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.requests import RequestEvent, RequestStart
from jouled_collectors.requests import answers as module
from jouled_collectors.requests import vllm_plugin
from jouled_collectors.requests.answers import Answers

NOW = 1_795_423_133_000_000_000


def span(number: int, **changed: Any) -> ReceivedRequest:
    """A span of an answer to one prompt."""
    told = {"id": "chatcmpl-1", "arrival_ns": NOW, "prompt_tokens": 7, "generation_tokens": 8, "answer": 1} | changed
    pid = told.pop("pid", 4)
    event = RequestEvent(
        engine="",
        first_token_ns=NOW + 1,
        last_token_ns=NOW + 2,
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        **told,
    )
    return ReceivedRequest(event=event, hint=EngineHint(engine_type="vllm", pid=pid))


def number_of(answers: Answers, request: ReceivedRequest) -> int:
    event = answers.numbered(request).event
    assert isinstance(event, RequestEvent)
    return event.answer


@given(st.lists(st.integers(1, 5), max_size=30))
def test_each_span_has_a_number_and_keeps_it(sent: list[int]) -> None:
    answers, expected = Answers(), dict[int, int]()
    for number in sent:
        expected.setdefault(number, len(expected) + 1)
        assert number_of(answers, span(number)) == expected[number]


@pytest.mark.parametrize(
    "changed",
    [{"id": "chatcmpl-2"}, {"arrival_ns": NOW - 1}, {"prompt_tokens": 6}, {"generation_tokens": 9}, {"pid": 5}],
)
def test_what_differs_in_more_than_its_span_is_counted_for_itself(changed: dict[str, Any]) -> None:
    answers = Answers()
    assert number_of(answers, span(1)) == 1
    assert number_of(answers, span(2, **changed)) == 1
    assert number_of(answers, span(3)) == 2


def test_what_tells_of_one_answer_only_is_left_as_it_is() -> None:
    answers = Answers()
    start = ReceivedRequest(event=RequestStart(engine="", id="a", arrival_ns=NOW))
    for told in (span(1, answer=0), span(2, answer=0), start):
        assert answers.numbered(told) is told


@pytest.mark.parametrize("prompts", [1, 2, 40])
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, prompts: int) -> None:
    monkeypatch.setattr(module, "MOST_NUMBERED", 50)
    answers, dice = Answers(), random.Random(1)
    for number in range(5_000):
        answers.numbered(span(number, id=f"chatcmpl-{dice.randrange(prompts)}"))
        held = [numbers for half in (answers._newer, answers._older) for numbers in half.values()]
        assert sum(map(len, held)) <= 2 * 50 + 50


def test_what_was_forgotten_is_numbered_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the core takes it for a repeat of the first."""
    monkeypatch.setattr(module, "MOST_NUMBERED", 2)
    answers = Answers()
    assert [number_of(answers, span(number)) for number in (1, 2, 2, 1)] == [1, 2, 2, 1]
    for number in range(3, 7):
        number_of(answers, span(number, id=f"chatcmpl-{number}"))
    assert [number_of(answers, span(number)) for number in (2, 7)] == [1, 2]


def by_plugin(answers: list[RequestEvent]) -> list[RequestEvent]:
    """As vLLM's plug-in tells of answers in the order in which they end."""
    numbers = vllm_plugin.Answers()

    def record(event: RequestEvent) -> dict[str, Any]:
        finished = event.last_token_ns / 1e9
        tokens = {"prompt_tokens": event.prompt_tokens, "generation_tokens": event.generation_tokens}
        return {"id": event.id, "finished": finished, "e2e": finished - event.arrival_ns / 1e9, **tokens}

    return [replace(event, cached_prompt_tokens=16, answer=numbers.number(record(event))) for event in answers]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([3, 40]), st.integers(0, 4)), min_size=1, max_size=7),
    st.sampled_from(["plugin", "spans", "both"]),
    st.data(),
)
def test_both_paths_together_count_what_the_engine_counted(
    drawn: list[tuple[int, int]], paths: str, data: st.DataObject
) -> None:
    """Answers alike and not, told by either path or both, in any order and some of them again."""
    ends = sorted(drawn, key=lambda answer: answer[1])
    answers = [request("x", 2.0, decode=0.5 + step / 16, generated=generated) for generated, step in ends]
    spans = [
        ReceivedRequest(event=replace(event, trace_id="ab" * 16, span_id=f"{number:016x}", answer=1))
        for number, event in enumerate(answers)
    ]
    again = [span for span in spans if data.draw(st.booleans())]
    numbers = Answers()
    tellings = {
        "plugin": by_plugin(answers),
        "spans": [numbers.numbered(span).event for span in data.draw(st.permutations([*spans, *again]))],
    }
    told = [event for path in tellings if paths in {path, "both"} for event in tellings[path]]
    node = Node(tuple(answers))
    result = run([*node.devices(), node.engine, *data.draw(st.permutations(told)), *node.readings()])
    counters = result.snapshot.counters
    tokens = {kind: value for (*_, kind), value in counters["request_tokens_total"].items()}
    assert sum(counters["requests_total"].values()) == len(answers)
    assert tokens.pop("generation") == sum(event.generation_tokens for event in answers)
    assert sum(tokens.values()) == sum(event.prompt_tokens for event in answers)
    assert set(result.refused) <= {"duplicate"}

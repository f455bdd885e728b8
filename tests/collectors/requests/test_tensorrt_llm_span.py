"""Spans printed by TensorRT-LLM's own trace code, and what they may become."""

from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.support.otlp import change, decode_both, message

from jouled.api import EngineHint, Received
from jouled.model.requests import Outcome, RequestEvent

BODY = (Path(__file__).parents[2] / "fixtures/requests/tensorrt-llm-4caf1ba-otlp.jsonl").read_bytes()
START = 1_795_423_132_000_000_000
MILLISECOND = 1_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"


def decode(attributes: dict[str, object], scope: str = "trt.llm") -> Received:
    """The first request alone, changed."""
    request = message(BODY)
    spans = request.resource_spans[0].scope_spans[0]
    spans.scope.name = scope
    change(spans.spans[0], attributes)
    kept = Span.FromString(spans.spans[0].SerializeToString())
    del spans.spans[:]
    spans.spans.append(kept)
    return decode_both(request)


def events() -> list[RequestEvent]:
    return [each.event for each in decode_both(message(BODY)).requests if isinstance(each.event, RequestEvent)]


def told(attributes: dict[str, object]) -> RequestEvent:
    (request,) = decode(attributes).requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def test_a_request_with_all_its_times() -> None:
    first = events()[0]
    assert first == RequestEvent(
        engine="",
        id="2048",
        arrival_ns=START,
        scheduled_ns=START + 20 * MILLISECOND,
        first_token_ns=START + 100 * MILLISECOND,
        last_token_ns=START + 880 * MILLISECOND,
        prompt_tokens=192,
        generation_tokens=40,
        trace_id=TRACE,
        span_id=first.span_id,
    )
    assert decode({}).requests[0].hint == EngineHint(engine_type="tensorrt_llm", service_name="trt-0")


def test_all_that_were_printed() -> None:
    """Of the one with two answers the later one's tokens are told; the one cut off in the queue has no times at all."""
    received = decode_both(message(BODY))
    assert [(event.id, event.generation_tokens, event.outcome) for event in events()] == [
        ("2048", 40, Outcome.COMPLETED),
        ("2049", 12, Outcome.CANCELLED),
        ("2051", 5, Outcome.COMPLETED),
        ("2052", 1, Outcome.COMPLETED),
        ("2053", 40, Outcome.COMPLETED),
        ("2054", 8, Outcome.FAILED),
    ]
    assert [(refused.position[-8:], refused.reason) for refused in received.rejected] == [("spans[2]", "bad_latency")]
    assert not received.ignored


def test_both_halves_of_a_split_request_are_of_one_trace_and_have_numbers_of_their_own() -> None:
    context, generation = events()[3:5]
    assert (context.trace_id, generation.trace_id) == (TRACE, TRACE)
    assert context.first_token_ns == context.last_token_ns == START + 100 * MILLISECOND


def test_scheduled_at_once() -> None:
    assert events()[-1].scheduled_ns == START


def test_the_scope_tells_it_from_vllm() -> None:
    vllm = decode({"gen_ai.request.id": "chatcmpl-1"}, scope="vllm.tracing.otel")
    assert [request.hint.engine_type for request in vllm.requests] == ["vllm"]


def test_an_id_in_words_is_taken_as_well() -> None:
    assert told({"gen_ai.request.id": "r-1"}).id == "r-1"


@pytest.mark.parametrize(
    ("reasons", "outcome"),
    [('["cancelled"]', Outcome.CANCELLED), ('["timeout"]', Outcome.FAILED), ('["stop"]', Outcome.COMPLETED)],
)
def test_finish_reasons(reasons: str, outcome: Outcome) -> None:
    assert told({"gen_ai.response.finish_reasons": reasons}).outcome is outcome


def test_a_queue_that_is_not_known_or_too_long() -> None:
    assert told({"gen_ai.latency.time_in_queue": -1}).scheduled_ns is None
    assert told({"gen_ai.latency.time_in_queue": 5.0}).scheduled_ns == START + 100 * MILLISECOND


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"gen_ai.latency.time_to_first_token": -1}, "bad_latency"),
        ({"gen_ai.request.id": True}, "bad_attribute"),
        ({"gen_ai.request.id": ...}, "missing_attribute"),
        ({"gen_ai.usage.prompt_tokens": ...}, "missing_attribute"),
    ],
)
def test_refusals(attributes: dict[str, object], reason: str) -> None:
    assert [refused.reason for refused in decode(attributes).rejected] == [reason]

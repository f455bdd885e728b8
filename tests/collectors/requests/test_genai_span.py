"""Spans of OpenTelemetry's instrumentation of the OpenAI client (1.3b0), and what the conventions allow."""

from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.support.otlp import as_json, change, decode_both, message

from jouled.api import EngineHint, Received
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests import otlp_json, otlp_protobuf
from jouled_collectors.requests.otlp import READERS
from jouled_collectors.requests.spans import Wanted

CAPTURE = (Path(__file__).parents[2] / "fixtures/requests/openai-client-1.3b0-otlp.jsonl").read_bytes()
CAPTURED = message(CAPTURE)
HINT = EngineHint(address="127.0.0.1", port=8000, model="tiny", may_be_elsewhere=True)
TTFT = "gen_ai.response.time_to_first_chunk"


def decode_first(attributes: dict[str, object], **fields: object) -> Received:
    """The streamed call alone, changed."""
    request = message(CAPTURE)
    spans = request.resource_spans[0].scope_spans[0].spans
    change(spans[0], attributes, **fields)
    kept = Span.FromString(spans[0].SerializeToString())
    del spans[:]
    spans.append(kept)
    return decode_both(request)


def first(attributes: dict[str, object], **fields: object) -> RequestEvent:
    (request,) = decode_first(attributes, **fields).requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def test_calls_that_were_streamed_or_made_one_token_are_requests() -> None:
    received = decode_both(CAPTURED)
    assert [request.event.id for request in received.requests] == ["chatcmpl-1", "chatcmpl-4"]
    assert [(refused.position[-2], refused.reason) for refused in received.rejected] == [("2", "no_first_token")]
    assert received.ignored == 3  # one that told no usage, one that failed, and an embedding
    assert all(request.hint == HINT for request in received.requests)


def test_a_streamed_call_with_all_its_times() -> None:
    span = CAPTURED.resource_spans[0].scope_spans[0].spans[0]
    to_first = next(each.value.double_value for each in span.attributes if each.key == TTFT)
    assert first({}) == RequestEvent(
        engine="",
        id="chatcmpl-1",
        arrival_ns=span.start_time_unix_nano,
        first_token_ns=span.start_time_unix_nano + round(to_first * 1e9),
        last_token_ns=span.end_time_unix_nano,
        prompt_tokens=192,
        cached_prompt_tokens=128,
        generation_tokens=8,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
    )


def test_the_only_token_came_at_the_end() -> None:
    single = decode_both(CAPTURED).requests[1].event
    assert isinstance(single, RequestEvent)
    assert single.generation_tokens == 1
    assert single.first_token_ns == single.last_token_ns > single.arrival_ns


def test_no_text_of_prompt_or_answer_is_taken_out_of_a_body() -> None:
    assert b"PROMPT-TEXT-THAT-NOBODY-READS" in CAPTURE
    wanted = Wanted(READERS)
    for batch in (
        otlp_protobuf.read_spans(CAPTURED.SerializeToString(), wanted),
        otlp_json.read_spans(as_json(CAPTURED), wanted),
    ):
        assert "chatcmpl-1" in repr(batch)
        assert "PROMPT" not in repr(batch)
        assert "xxxxxxxx" not in repr(batch)


def test_older_names_of_the_token_counts() -> None:
    older = first(
        {
            "gen_ai.usage.input_tokens": ...,
            "gen_ai.usage.output_tokens": ...,
            "gen_ai.usage.cache_read.input_tokens": ...,
            "gen_ai.usage.prompt_tokens": 11,
            "gen_ai.usage.completion_tokens": 7,
        }
    )
    assert (older.prompt_tokens, older.cached_prompt_tokens, older.generation_tokens) == (11, None, 7)


@pytest.mark.parametrize("operation", ["chat", "text_completion", "generate_content"])
def test_operations_that_generate(operation: str) -> None:
    for name in (f"{operation} tiny", operation):
        assert first({"gen_ai.operation.name": operation}, name=name).id == "chatcmpl-1"


@pytest.mark.parametrize(
    ("attributes", "fields"),
    [
        ({"gen_ai.operation.name": "invoke_agent"}, {}),
        ({"gen_ai.operation.name": ["chat"]}, {}),
        ({"gen_ai.operation.name": ...}, {}),
        ({}, {"name": "POST /v1/chat/completions"}),
        ({}, {"name": "chatter"}),
        ({"gen_ai.usage.input_tokens": ..., "gen_ai.usage.output_tokens": ...}, {}),
    ],
)
def test_spans_that_tell_of_no_request(attributes: dict[str, object], fields: dict[str, object]) -> None:
    received = decode_first(attributes, **fields)
    assert (received.requests, received.rejected, received.ignored) == ([], [], 1)


def test_what_helps_to_find_the_engine() -> None:
    def hint(attributes: dict[str, object]) -> EngineHint:
        return decode_first(attributes).requests[0].hint

    assert hint({"gen_ai.response.model": "served"}).model == "served"
    assert hint({"gen_ai.response.model": ..., "gen_ai.request.model": "asked"}).model == "asked"
    assert hint({"server.address": ..., "server.port": ...}) == EngineHint(model="tiny", may_be_elsewhere=True)
    assert hint({"server.port": "8000"}).port is None
    assert hint({"server.port": True}).port is None


def test_a_call_that_failed_while_it_streamed() -> None:
    request = message(CAPTURE)
    request.resource_spans[0].scope_spans[0].spans[0].status.code = 2
    failed = decode_both(request).requests[0].event
    assert isinstance(failed, RequestEvent)
    assert failed.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({TTFT: ...}, "no_first_token"),
        ({TTFT: "soon"}, "bad_attribute"),
        ({TTFT: -0.1}, "bad_latency"),
        ({TTFT: 1e6}, "first_token_after_end"),
        ({"gen_ai.response.id": ...}, "missing_attribute"),
        ({"gen_ai.response.id": ""}, "empty_id"),
        ({"gen_ai.usage.input_tokens": ...}, "missing_attribute"),
        ({"gen_ai.usage.output_tokens": ...}, "missing_attribute"),
        ({"gen_ai.usage.output_tokens": -8}, "absurd_tokens"),
        ({"gen_ai.usage.cache_read.input_tokens": 193}, "absurd_tokens"),
    ],
)
def test_refusals(attributes: dict[str, object], reason: str) -> None:
    assert [refused.reason for refused in decode_first(attributes).rejected] == [reason]

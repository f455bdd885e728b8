"""Spans printed by the trace code of SGLang 0.5.23, and what they may become."""

from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.support.otlp import change, decode_both, message

from jouled.api import EngineHint, Received
from jouled.model.requests import Outcome, RequestEvent

FIXTURES = Path(__file__).parents[2] / "fixtures/requests"
CAPTURED = message((FIXTURES / "sglang-0.5.23-otlp.jsonl").read_bytes())
RID = "5f0c1a2e00004000800000000000000"
MILLISECOND = 1_000_000


def decode_first(attributes: dict[str, object], **fields: object) -> Received:
    """The first request alone, changed."""
    request = message((FIXTURES / "sglang-0.5.23-otlp.jsonl").read_bytes())
    spans = request.resource_spans[0].scope_spans[0].spans
    span: Span = next(each for each in spans if each.name == " Req 5f0c1a2e")
    change(span, attributes, **fields)
    kept = Span.FromString(span.SerializeToString())
    del spans[:]
    spans.append(kept)
    return decode_both(request)


def first(attributes: dict[str, object], **fields: object) -> RequestEvent:
    (request,) = decode_first(attributes, **fields).requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def events() -> list[RequestEvent]:
    return [request.event for request in decode_both(CAPTURED).requests if isinstance(request.event, RequestEvent)]


def test_of_all_spans_those_with_token_counts_are_requests() -> None:
    received = decode_both(CAPTURED)
    spans = CAPTURED.resource_spans[0].scope_spans[0].spans
    assert [request.event.id[-1] for request in received.requests] == ["1", "2", "4", "5", "5"]
    assert not received.rejected
    assert received.ignored == len(spans) - 5


def test_a_request_with_all_its_times() -> None:
    served = events()[0]
    assert served == RequestEvent(
        engine="",
        id=RID + "1",
        arrival_ns=served.arrival_ns,
        first_token_ns=pytest.approx(served.arrival_ns + 120 * MILLISECOND, abs=1000),
        last_token_ns=pytest.approx(served.arrival_ns + 1500 * MILLISECOND, abs=1000),
        prompt_tokens=300,
        cached_prompt_tokens=128,
        generation_tokens=40,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id=served.span_id,
    )
    assert served.scheduled_ns is None  # prefill time begins before the queue


def test_aborted_by_its_finish_reason() -> None:
    assert [event.outcome for event in events()][:3] == [Outcome.COMPLETED, Outcome.CANCELLED, Outcome.COMPLETED]


def test_an_embedding_generates_nothing() -> None:
    embedding = events()[2]
    assert (embedding.prompt_tokens, embedding.generation_tokens) == (12, 0)
    assert embedding.first_token_ns == embedding.last_token_ns


def test_both_halves_of_a_split_request_are_told_apart_by_their_roles() -> None:
    hints = [request.hint for request in decode_both(CAPTURED).requests]
    assert hints[0] == EngineHint(engine_type="sglang", service_name="sglang")
    assert [hint.role for hint in hints[3:]] == ["prefill", "decode"]
    assert {event.trace_id for event in events()[3:]} == {"0af7651916cd43dd8448eb211c80319c"}
    assert [event.generation_tokens for event in events()[3:]] == [1, 40]


def test_the_queue_of_older_releases_gives_the_moment_of_scheduling() -> None:
    queued = first({"gen_ai.latency.time_in_queue": 0.03})
    assert queued.scheduled_ns == queued.arrival_ns + 30 * MILLISECOND
    assert first({"gen_ai.latency.time_in_queue": 9.0}).scheduled_ns == queued.first_token_ns
    assert first({"gen_ai.latency.time_in_queue": -1.0}).scheduled_ns is None


def test_without_the_request_id_the_rid_stands_for_it() -> None:
    assert first({"gen_ai.request.id": ..., "rid": "7"}).id == "7"


@pytest.mark.parametrize(
    ("reasons", "outcome"),
    [
        ('["abort"]', Outcome.CANCELLED),
        ('["stop", "abort"]', Outcome.CANCELLED),
        ("abort", Outcome.CANCELLED),
        ('["abort"', Outcome.COMPLETED),
        ("[[[[", Outcome.COMPLETED),
        ('[{"abort": 1}, 7]', Outcome.COMPLETED),
        ("[" * 10_000, Outcome.COMPLETED),
    ],
)
def test_finish_reasons_in_a_string(reasons: str, outcome: Outcome) -> None:
    assert first({"gen_ai.response.finish_reasons": reasons}).outcome is outcome


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"gen_ai.latency.time_to_first_token": ...}, "missing_attribute"),
        ({"gen_ai.request.id": ..., "rid": ...}, "missing_attribute"),
        ({"gen_ai.usage.cached_tokens": 301}, "absurd_tokens"),
        ({"gen_ai.usage.completion_tokens": "40"}, "bad_attribute"),
        ({"gen_ai.latency.time_to_first_token": 2.0}, "first_token_after_end"),
    ],
)
def test_refusals(attributes: dict[str, object], reason: str) -> None:
    assert [refused.reason for refused in decode_first(attributes).rejected] == [reason]

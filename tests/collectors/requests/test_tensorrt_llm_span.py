"""TensorRT-LLM's span, made by hand from the attribute names of its source: no server was met."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.support.otlp import attribute, change, decode_both

from jouled.api import EngineHint, Received
from jouled.model.requests import Outcome, RequestEvent

START = 1_795_423_132_928_712_704
MILLISECOND = 1_000_000
ATTRIBUTES: dict[str, object] = {
    "gen_ai.request.id": 2048,
    "gen_ai.request.max_tokens": 64,
    "gen_ai.usage.prompt_tokens": 192,
    "gen_ai.usage.completion_tokens": 40,
    "gen_ai.latency.time_to_first_token": 0.1,
    "gen_ai.latency.e2e": 0.9,
    "gen_ai.latency.time_in_queue": 0.02,
    "gen_ai.response.finish_reasons": '["length"]',
}


def decode(attributes: dict[str, object], scope: str = "trt.llm") -> Received:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(attribute("service.name", "trt-0"))
    spans = resource.scope_spans.add()
    spans.scope.name = scope
    span = spans.spans.add(name="llm_request", start_time_unix_nano=START, end_time_unix_nano=START + 10**9)
    change(span, ATTRIBUTES | attributes)
    return decode_both(request)


def told(attributes: dict[str, object]) -> RequestEvent:
    (request,) = decode(attributes).requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def test_a_request_with_all_its_times() -> None:
    assert told({}) == RequestEvent(
        engine="",
        id="2048",
        arrival_ns=START,
        scheduled_ns=START + 20 * MILLISECOND,
        first_token_ns=START + 100 * MILLISECOND,
        last_token_ns=START + 900 * MILLISECOND,
        prompt_tokens=192,
        generation_tokens=40,
    )
    assert decode({}).requests[0].hint == EngineHint(engine_type="tensorrt_llm", service_name="trt-0")


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

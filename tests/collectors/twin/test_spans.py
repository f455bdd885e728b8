"""Spans as vLLM sends them, and an exporter that outlasts a receiver's absence."""

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jouled_collectors.twin import spans
from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import Node
from jouled_collectors.twin.spans import SpanExporter, export_request, resource_of, span_of

START = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def finished():
    node = Node(5, Load(), START)
    return [truth for truth in node.advance(START + 20_000_000_000) if not truth.aborted]


def decoded(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def test_a_span_carries_what_a_real_one_does(finished):
    truth = finished[0]
    request, arrival = truth.request, truth.request.arrival
    body = export_request(resource_of("llama-8b"), [span_of(truth, 7_000)]).SerializeToString()
    (exported,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = decoded(exported.resource.attributes)
    assert resource["service.name"] == "llama-8b"
    assert isinstance(resource["vllm.process_id"], str)
    assert resource["vllm.instrumenting_module_name"] == "vllm.llm_engine"
    (scope,) = exported.scope_spans
    assert scope.scope.name == "vllm.tracing.otel"
    (span,) = scope.spans
    assert (span.name, span.kind, span.flags) == ("llm_request", span.SPAN_KIND_SERVER, 768)
    assert (len(span.trace_id), len(span.span_id), len(span.parent_span_id)) == (16, 8, 8)
    assert span.start_time_unix_nano == arrival.arrival_ns + 7_000
    told = decoded(span.attributes)
    assert set(told) == {
        *(f"gen_ai.latency.{name}" for name in ("time_to_first_token", "e2e", "time_in_queue")),
        *(f"gen_ai.latency.time_in_model_{name}" for name in ("prefill", "decode", "inference")),
        *(f"gen_ai.usage.{name}_tokens" for name in ("prompt", "completion")),
        *(f"gen_ai.request.{name}" for name in ("id", "top_p", "max_tokens", "temperature", "n")),
    }
    assert told["gen_ai.request.id"].startswith("chatcmpl-")
    assert told["gen_ai.usage.prompt_tokens"] == arrival.prompt_tokens
    assert told["gen_ai.usage.completion_tokens"] == request.generated
    e2e = told["gen_ai.latency.e2e"]
    assert e2e == pytest.approx((span.end_time_unix_nano - span.start_time_unix_nano) * 1e-9)
    decode = told["gen_ai.latency.time_in_model_decode"]
    assert told["gen_ai.latency.time_to_first_token"] + decode == pytest.approx(e2e)
    assert told["gen_ai.latency.time_in_model_prefill"] + decode == pytest.approx(
        told["gen_ai.latency.time_in_model_inference"]
    )


class Receiver:
    """Takes exports, answering with the statuses it is given, then 200."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.ids = []

    async def take(self, request):
        body = ExportTraceServiceRequest.FromString(await request.read())
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            batch = [decoded(s.attributes) for s in body.resource_spans[0].scope_spans[0].spans]
            self.ids += [one["gen_ai.request.id"] for one in batch]
        return web.Response(status=status)


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as client:
        yield client


async def receiving(aiohttp_server, receiver):
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    return str((await aiohttp_server(app)).make_url("/v1/traces"))


async def test_spans_wait_for_a_receiver_that_is_away_and_arrive_once_in_order(aiohttp_server, session, finished):
    receiver = Receiver(503, 503)
    exporter = SpanExporter("llama-8b", "http://127.0.0.1:1/v1/traces")
    for truth in finished:
        exporter.put(span_of(truth, 0))
    assert not await exporter.flush(session)
    exporter.url = await receiving(aiohttp_server, receiver)
    for _ in range(2):
        assert not await exporter.flush(session)
    assert len(exporter._queue) == len(finished)
    assert await exporter.flush(session)
    assert receiver.ids == [truth.request.arrival.id for truth in finished]
    assert (exporter.sent, len(exporter._queue), exporter.dropped, exporter.rejected) == (len(finished), 0, 0, 0)


async def test_what_is_refused_for_good_is_counted_and_not_sent_again(aiohttp_server, session, finished):
    exporter = SpanExporter("llama-8b", await receiving(aiohttp_server, Receiver(400)))
    exporter.put(span_of(finished[0], 0))
    assert await exporter.flush(session)
    assert (exporter.rejected, len(exporter._queue)) == (1, 0)


def test_a_full_queue_gives_up_the_oldest_and_counts_it(monkeypatch, finished):
    monkeypatch.setattr(spans, "_QUEUE", 3)
    exporter = SpanExporter("llama-8b", "http://127.0.0.1:1/v1/traces")
    for truth in finished[:5]:
        exporter.put(span_of(truth, 0))
    assert (len(exporter._queue), exporter.dropped) == (3, 2)

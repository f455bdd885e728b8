"""Traces by HTTP from OpenTelemetry's own exporter: batches, gzip, and what it does when the door says no."""

import asyncio
import time

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jouled.api import Received, Rejected
from jouled.model.errors import JouledError
from jouled_collectors.requests.otlp import OtlpReceiver


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


class Core:
    """Takes what comes; `trouble` is raised as often as it is there, and the first spans of a body are refused."""

    def __init__(self, trouble=(), refusals=()):
        self.bodies = []
        self.trouble = list(trouble)
        self.refusals = list(refusals)

    async def accept(self, _, received):
        if self.trouble:
            raise self.trouble.pop()
        self.bodies.append([request.event.id for request in received.requests])
        return Received(requests=received.requests[len(self.refusals) :], rejected=self.refusals)


def finish_spans(provider, count):
    now_ns = time.time_ns()
    for number in range(count):
        attributes = {
            "gen_ai.request.id": f"r{number}",
            "gen_ai.usage.prompt_tokens": 100,
            "gen_ai.usage.completion_tokens": 50,
            "gen_ai.latency.time_to_first_token": 0.2,
        }
        span = provider.get_tracer("vllm.tracing.otel").start_span(
            "llm_request", start_time=now_ns - 10**9, attributes=attributes
        )
        span.end(now_ns)


def some_spans(count):
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    finish_spans(provider, count)
    return kept.get_finished_spans()


async def export(served, spans):
    def at_once():
        exporter = OTLPSpanExporter(endpoint=served.url("/v1/traces"))
        try:
            return exporter.export(spans)
        finally:
            exporter.shutdown()

    return await asyncio.to_thread(at_once)


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_batches_of_spans_are_taken(serve, compression):
    core = Core()
    served = await serve(ingests=[OtlpReceiver()], accept=core.accept)

    def send():
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=served.url("/v1/traces"), compression=compression)
        provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=256))
        finish_spans(provider, 600)
        provider.shutdown()

    await asyncio.to_thread(send)
    assert [len(body) for body in core.bodies] == [256, 256, 88]
    assert [one for body in core.bodies for one in body] == [f"r{number}" for number in range(600)]


async def test_what_cannot_be_kept_is_sent_again(serve):
    core = Core(trouble=[JouledError("disk full")])
    served = await serve(ingests=[OtlpReceiver()], accept=core.accept)
    assert await export(served, some_spans(2)) is SpanExportResult.SUCCESS
    assert core.bodies == [["r0", "r1"]]


async def test_a_span_that_is_refused_is_partial_success(serve):
    core = Core(refusals=[Rejected("spans[0]", "unknown_engine", "no engine matches")])
    served = await serve(ingests=[OtlpReceiver()], accept=core.accept, forward=lambda *told: bodies.append(told[1]))
    bodies = []
    assert await export(served, some_spans(2)) is SpanExportResult.SUCCESS
    headers = {"Content-Type": "application/x-protobuf"}
    async with served.session.post(served.url("/v1/traces"), data=bodies[0], headers=headers) as answer:
        told = ExportTraceServiceResponse.FromString(await answer.read())
    assert told.partial_success.rejected_spans == 1
    assert told.partial_success.error_message == "spans[0]: unknown_engine: no engine matches"


async def test_a_body_of_which_nothing_was_taken_is_not_sent_again(serve):
    core = Core(refusals=[Rejected("spans[0]", "unknown_engine", "no engine matches")])
    served = await serve(ingests=[OtlpReceiver()], accept=core.accept)
    assert await export(served, some_spans(1)) is SpanExportResult.FAILURE
    assert core.bodies == [["r0"]]

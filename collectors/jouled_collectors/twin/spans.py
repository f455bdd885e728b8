"""What an engine tells of a request: an OTLP span as vLLM writes it, sent in batches as OpenTelemetry's exporter does.

Attributes, their types and the resource are those seen from a running vLLM 0.32.0. A client that has left leaves no
span behind.
"""

import asyncio
import contextlib
import os
import uuid
from collections import deque

import aiohttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from jouled_collectors.twin.scheduler import OUTPUT_LAG_NS, Truth

_SCOPE = "vllm.tracing.otel"
_HAS_REMOTE_PARENT = 0x300
_BATCH = 512
_QUEUE = 50_000
_SEND_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_RETRY_SECONDS_MAX = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_WORTH_RETRYING = frozenset({408, 429, 502, 503, 504})
"""Answers after which OTLP/HTTP wants the batch again; any other refusal is final."""


def resource_of(service_name: str) -> Resource:
    """The resource of one engine process; the process id is a string there, as vLLM has it."""
    attributes = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": "1.45.2",
        "service.instance.id": str(uuid.uuid4()),
        "vllm.instrumenting_module_name": "vllm.llm_engine",
        "vllm.process_id": str(os.getpid()),
        "service.name": service_name,
    }
    return Resource(attributes=[_attribute(key, value) for key, value in attributes.items()])


def span_of(truth: Truth, wall_minus_core_ns: int) -> Span:
    """The `llm_request` span of a request that has ended. Starts and ends at the front end, in Unix nanoseconds."""
    request, arrival = truth.request, truth.request.arrival
    end_ns = request.last_token_ns + OUTPUT_LAG_NS
    attributes: dict[str, str | int | float] = {
        "gen_ai.latency.time_to_first_token": (request.first_token_ns + OUTPUT_LAG_NS - arrival.arrival_ns) * 1e-9,
        "gen_ai.latency.e2e": (end_ns - arrival.arrival_ns) * 1e-9,
        "gen_ai.latency.time_in_queue": (request.scheduled_ns - request.queued_ns) * 1e-9,
        "gen_ai.usage.prompt_tokens": arrival.prompt_tokens,
        "gen_ai.usage.completion_tokens": request.generated,
        "gen_ai.latency.time_in_model_prefill": (request.first_token_ns - request.scheduled_ns) * 1e-9,
        "gen_ai.latency.time_in_model_decode": (request.last_token_ns - request.first_token_ns) * 1e-9,
        "gen_ai.latency.time_in_model_inference": (request.last_token_ns - request.scheduled_ns) * 1e-9,
        "gen_ai.request.id": arrival.id,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": arrival.max_tokens,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.n": 1,
    }
    return Span(
        trace_id=arrival.trace_id,
        span_id=arrival.span_id,
        parent_span_id=arrival.parent_span_id,
        flags=_HAS_REMOTE_PARENT,
        name="llm_request",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=arrival.arrival_ns + wall_minus_core_ns,
        end_time_unix_nano=end_ns + wall_minus_core_ns,
        attributes=[_attribute(key, value) for key, value in attributes.items()],
    )


def export_request(resource: Resource, spans: list[Span]) -> ExportTraceServiceRequest:
    """One export of one engine's spans."""
    scope = ScopeSpans(spans=spans)
    scope.scope.name = _SCOPE
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])])


def _attribute(key: str, value: str | float) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(double_value=value))


class SpanExporter:
    """Sends one engine's spans once a second, and keeps them in a bounded queue while nobody takes them.

    sent, dropped, rejected: spans taken by the receiver; lost because the queue was full; refused for good.
    """

    def __init__(self, service_name: str, url: str) -> None:
        self.url = url
        self.sent = 0
        self.dropped = 0
        self.rejected = 0
        self._resource = resource_of(service_name)
        self._queue: deque[Span] = deque()

    def put(self, span: Span) -> None:
        """Queue a span; the oldest one gives way when the queue is full."""
        if len(self._queue) >= _QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(span)

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Send until cancelled, with growing pauses while the receiver is away."""
        pause = _SEND_SECONDS
        while True:
            await asyncio.sleep(pause)
            if await self.flush(session):
                pause = _SEND_SECONDS
            else:
                pause = _RETRY_SECONDS if pause == _SEND_SECONDS else min(2 * pause, _RETRY_SECONDS_MAX)

    async def flush(self, session: aiohttp.ClientSession) -> bool:
        """Send all that waits, batch by batch; false when the receiver is away."""
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            status = None
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                status = await self._post(session, batch)
            if status is None or status in _WORTH_RETRYING:
                self._queue.extendleft(reversed(batch))
                return False
            if status == 200:
                self.sent += len(batch)
            else:
                self.rejected += len(batch)
        return True

    async def _post(self, session: aiohttp.ClientSession, batch: list[Span]) -> int:
        body = export_request(self._resource, batch).SerializeToString()
        headers = {"Content-Type": "application/x-protobuf"}
        async with session.post(self.url, data=body, headers=headers, timeout=_TIMEOUT) as answer:
            await answer.read()
            return answer.status

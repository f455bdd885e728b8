"""vLLM's span `llm_request`: what one request of a vLLM server (V1 engine) told when it ended.

Durations in it come from two clocks (as measured on 0.32.0 and read in `OutputProcessor.do_tracing`). The front end's
wall clock gives the start (arrival), `time_to_first_token` and `e2e`: both taken when the step's output reaches the
front end. The engine core's monotonic clock gives queue and prefill times. They are not added up across the clocks
without need: the front end tokenizes before the engine's queue begins, so that TTFT ≠ queue + prefill.
"""

from msgspec.structs import replace

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.units import nanoseconds
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.latency_span import (
    ATTRIBUTES,
    GENERATION_TOKENS,
    IN_PREFILL,
    IN_QUEUE,
    REQUEST_ID,
    engine_seconds,
    request_of,
    tokens_of,
)
from jouled_collectors.requests.spans import SERVICE_NAME, Span, SpanReader, Value

_PID = "vllm.process_id"
_LONGEST_PID = 10  # digits


def read_request(span: Span) -> ReceivedRequest:
    """Turn the span into a request. Raises `RefusedError`."""
    request_id = said.text(span.attributes, REQUEST_ID)
    generation_tokens = said.count(span.attributes, GENERATION_TOKENS)
    tokens = tokens_of(span, generation_tokens)
    queue, prefill = engine_seconds(span, IN_QUEUE), engine_seconds(span, IN_PREFILL)
    scheduled = scheduled_ns(span.start_ns, tokens.first_ns, queue, prefill)
    event = request_of(span, request_id, generation_tokens, tokens, scheduled)
    return ReceivedRequest(event=replace(event, answer=1), hint=_hint(span))  # `Answers` counts the further ones


READER = SpanReader(
    names=frozenset({"llm_request"}),
    attributes=ATTRIBUTES | {IN_PREFILL},
    resource=frozenset({SERVICE_NAME, _PID}),
    read=read_request,
)


def scheduled_ns(
    arrival_ns: int, first_token_ns: int, queue_seconds: float | None, prefill_seconds: float | None
) -> int | None:
    """The later of arrival + queue and first token − prefill: the queue begins only after the front end's work.

    In the samples that work took 42 and 5 ms, the queue 0.04 ms and the prefill 23 and 10 ms.
    """
    bounds = []
    if queue_seconds is not None:
        bounds.append(arrival_ns + nanoseconds(queue_seconds))
    if prefill_seconds is not None:
        bounds.append(first_token_ns - nanoseconds(prefill_seconds))
    return min(max(arrival_ns, *bounds), first_token_ns) if bounds else None


def _hint(span: Span) -> EngineHint:
    return EngineHint(
        engine_type="vllm",
        pid=_pid(span.resource.get(_PID)),
        service_name=said.hint(span.resource, SERVICE_NAME),
    )


def _pid(value: Value | None) -> int | None:
    """The process id, which vLLM sends as a string."""
    digits = str(value)
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_PID else None

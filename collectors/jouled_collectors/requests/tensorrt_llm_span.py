"""TensorRT-LLM's span (`trtllm-serve` with `otlp_traces_endpoint` and `return_perf_metrics`). Documents only.

Attribute names and scope are those of `tensorrt_llm/llmapi/otel_tracing.py` and `tensorrt_llm/llmapi/llm.py`
(`init_tracer("trt.llm", …)`) of 2025. That the span is called `llm_request` as vLLM's is, that its request id is the
executor's number, and that −1 stands for a time that the engine does not know, is believed and was not seen.
"""

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.units import nanoseconds
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.latency_span import (
    ATTRIBUTES,
    GENERATION_TOKENS,
    IN_QUEUE,
    REQUEST_ID,
    engine_seconds,
    request_of,
    tokens_of,
)
from jouled_collectors.requests.spans import SERVICE_NAME, Span, SpanReader

_SCOPE = "trt.llm"


def read_request(span: Span) -> ReceivedRequest | None:
    """Turn the span into a request, unless another engine made it. Raises `RefusedError`."""
    if span.scope != _SCOPE:
        return None
    generation_tokens = said.count(span.attributes, GENERATION_TOKENS)
    tokens = tokens_of(span, generation_tokens)
    queue = engine_seconds(span, IN_QUEUE)
    scheduled_ns = None if queue is None else min(span.start_ns + nanoseconds(queue), tokens.first_ns)
    event = request_of(span, _request_id(span), generation_tokens, tokens, scheduled_ns)
    service_name = said.hint(span.resource, SERVICE_NAME)
    return ReceivedRequest(event=event, hint=EngineHint(engine_type="tensorrt_llm", service_name=service_name))


READER = SpanReader(names=frozenset({"llm_request"}), attributes=ATTRIBUTES, read=read_request)


def _request_id(span: Span) -> str:
    """A number in the releases that were read; one that is a string is taken as well."""
    number = span.attributes.get(REQUEST_ID)
    if isinstance(number, int) and not isinstance(number, bool):
        return str(number)
    return said.text(span.attributes, REQUEST_ID)

"""TensorRT-LLM's span of a request (`trtllm-serve` with `otlp_traces_endpoint` and `return_perf_metrics`).

The reader met spans that its own code printed: `do_tracing` of `executor/result.py` at 4caf1ba (2026) with
`llmapi/tracing.py` at 0fb7f75; no server was met. The request id is the executor's number, not the response's; there is
no count of cached tokens; −1 stands for a time that never came. A request that was cut off before its first token has
only those and is refused. Of several answers (`n` above 1) the span tells the tokens of the one that ended last; with
beam search there is a span for each beam.
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

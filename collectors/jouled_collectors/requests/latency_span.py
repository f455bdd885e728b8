"""Spans that tell of a request in `gen_ai.latency.*`: vLLM's own names, which SGLang and TensorRT-LLM took over.

All durations are seconds. Source: `vllm/tracing/utils.py` 0.33.0, `sglang/srt/observability/trace.py` 0.5.23,
`tensorrt_llm/llmapi/otel_tracing.py` of 2025.
"""

from msgspec import Struct

from jouled.model.requests import RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND, nanoseconds
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.spans import Span

REQUEST_ID = "gen_ai.request.id"
PROMPT_TOKENS = "gen_ai.usage.prompt_tokens"
GENERATION_TOKENS = "gen_ai.usage.completion_tokens"
CACHED_TOKENS = ("gen_ai.usage.cached_tokens", "gen_ai.usage.cache_read.input_tokens")
TTFT = "gen_ai.latency.time_to_first_token"
END_TO_END = "gen_ai.latency.e2e"
IN_QUEUE = "gen_ai.latency.time_in_queue"
IN_PREFILL = "gen_ai.latency.time_in_model_prefill"

ATTRIBUTES = frozenset(
    {REQUEST_ID, PROMPT_TOKENS, GENERATION_TOKENS, *CACHED_TOKENS, TTFT, END_TO_END, IN_QUEUE, *said.FINISH_REASONS}
)

_TOLERANCE_NS = 10 * NANOSECONDS_PER_MILLISECOND
"""The first token may seem this much later than the end: a clock that is being slewed, rounding of floats."""


class Tokens(Struct, frozen=True):
    """When the first and the last token came, in Unix nanoseconds."""

    first_ns: int
    last_ns: int


def tokens_of(span: Span, generation_tokens: int) -> Tokens:
    """Place first and last token on the span's time line. Raises `RefusedError`.

    The last token is at arrival + e2e, bounded by the span's end: that is the clock and the place in the code of the
    first token, so that (e2e − ttft) / (n − 1) is a TPOT on one clock, as `vllm bench serve` sees it. First token +
    decode time would mix two. The end of the span is 0.6 to 0.8 ms later in the samples: detokenizing and the
    exporter's own work. Without a token the prefill lasted to the end.
    """
    if span.end_ns < span.start_ns:
        raise RefusedError("end_before_start", "the span ends before it starts")
    to_first_token = said.positive_seconds(span.attributes, TTFT)
    if to_first_token is None:
        raise said.missing(TTFT)
    first_token_ns = span.start_ns + nanoseconds(to_first_token)
    end_to_end = said.positive_seconds(span.attributes, END_TO_END)
    last_token_ns = span.end_ns if end_to_end is None else min(span.start_ns + nanoseconds(end_to_end), span.end_ns)
    if first_token_ns - last_token_ns > _TOLERANCE_NS:
        raise RefusedError("first_token_after_end", f"{TTFT} is longer than the request")
    return Tokens(min(first_token_ns, last_token_ns) if generation_tokens else last_token_ns, last_token_ns)


def request_of(
    span: Span, request_id: str, generation_tokens: int, tokens: Tokens, scheduled_ns: int | None
) -> RequestEvent:
    """The request, checked. Raises `RefusedError`."""
    event = RequestEvent(
        engine="",
        id=request_id,
        arrival_ns=span.start_ns,
        scheduled_ns=scheduled_ns,
        first_token_ns=tokens.first_ns,
        last_token_ns=tokens.last_ns,
        prompt_tokens=said.count(span.attributes, PROMPT_TOKENS),
        cached_prompt_tokens=said.optional_count(span.attributes, *CACHED_TOKENS),
        generation_tokens=generation_tokens,
        outcome=said.outcome(span),
        trace_id=span.trace_id,
        span_id=span.span_id,
    )
    check_request(event)
    return event


def engine_seconds(span: Span, key: str) -> float | None:
    """A duration of the engine core; a negative one counts as absent: of two moments one never came, and is 0."""
    seconds = said.optional_seconds(span.attributes, key)
    return None if seconds is not None and seconds < 0 else seconds

"""A model call in OpenTelemetry's GenAI conventions, as instrumented applications and gateways tell of it.

The span is the client's: its start is when the call was made, `gen_ai.response.time_to_first_chunk` (seconds) when the
first piece of the answer came back, its end when the last one did. Network and gateway are in it, so that the engine's
own span is the better witness; jouled joins both by the response id. A span without token counts, or of another
operation, tells of no request. One without the time of its first chunk (the call was not streamed) is refused, as
prefill and decode cannot be told apart, unless at most one token was generated: then the first is the last.

The engine is found by `server.address` and `server.port`, else by the model. A call to a server elsewhere is none of
this host's business and left alone. Texts in attributes are never kept.
Source: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/client-inference.md, of 2026 (in
development), and semantic conventions 1.36 for the older names.
"""

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.requests import RequestEvent
from jouled.model.units import nanoseconds
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.spans import Span, SpanReader

_OPERATIONS = ("chat", "text_completion", "generate_content")

_OPERATION = "gen_ai.operation.name"
_ID = "gen_ai.response.id"
_MODELS = ("gen_ai.response.model", "gen_ai.request.model")
_ADDRESS, _PORT = "server.address", "server.port"
_PROMPT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_GENERATION_TOKENS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
_TOKENS = (*_PROMPT_TOKENS, *_GENERATION_TOKENS, _CACHED_TOKENS)
_TTFT = "gen_ai.response.time_to_first_chunk"


def read_request(span: Span) -> ReceivedRequest | None:
    """Turn the span into a request if it tells of one. Raises `RefusedError`."""
    attributes = span.attributes
    if attributes.get(_OPERATION) not in _OPERATIONS:
        return None
    if not said.is_there(attributes, _PROMPT_TOKENS) and not said.is_there(attributes, _GENERATION_TOKENS):
        return None
    generation_tokens = said.count(attributes, *_GENERATION_TOKENS)
    event = RequestEvent(
        engine="",
        id=said.text(attributes, _ID),
        arrival_ns=span.start_ns,
        first_token_ns=_first_token_ns(span, generation_tokens),
        last_token_ns=span.end_ns,
        prompt_tokens=said.count(attributes, *_PROMPT_TOKENS),
        cached_prompt_tokens=said.optional_count(attributes, _CACHED_TOKENS),
        generation_tokens=generation_tokens,
        outcome=said.outcome(span),
        trace_id=span.trace_id,
        span_id=span.span_id,
    )
    check_request(event)
    return ReceivedRequest(event=event, hint=_hint(span))


READER = SpanReader(
    names=frozenset(_OPERATIONS),
    prefixes=tuple(f"{operation} " for operation in _OPERATIONS),
    attributes=frozenset((_OPERATION, _ID, *_MODELS, _ADDRESS, _PORT, *_TOKENS, _TTFT, *said.FINISH_REASONS)),
    resource=frozenset(),
    read=read_request,
)


def _first_token_ns(span: Span, generation_tokens: int) -> int:
    if generation_tokens <= 1:
        return span.end_ns
    to_first_chunk = said.positive_seconds(span.attributes, _TTFT)
    if to_first_chunk is None:
        raise RefusedError(
            "no_first_token",
            f"the span has no {_TTFT}: stream the call, or let the engine itself send its spans",
        )
    return span.start_ns + nanoseconds(to_first_chunk)


def _hint(span: Span) -> EngineHint:
    port = span.attributes.get(_PORT)
    return EngineHint(
        address=said.hint(span.attributes, _ADDRESS),
        port=port if isinstance(port, int) and not isinstance(port, bool) else None,
        model=next(filter(None, (said.hint(span.attributes, key) for key in _MODELS)), ""),
        may_be_elsewhere=True,
    )

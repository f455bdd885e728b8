"""SGLang's root span of a request (`--enable-trace`): ` Req 3f2a1b22`, `prefill Req …` or `decode Req …`.

All times are of one clock. For a request that is not streamed the first token is the scheduler's. A request that was
aborted bears no token counts, a KV transfer is a root span of its own without them: neither tells of a request here.
`time_in_model_prefill` begins at the dispatch to the scheduler and holds its queue, so that the moment of scheduling
is not told. Source: `sglang/srt/observability/{trace,req_time_stats}.py` and
`TokenizerManager.convert_to_span_attrs` of 0.5.23.
"""

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.units import nanoseconds
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.latency_span import (
    ATTRIBUTES,
    GENERATION_TOKENS,
    IN_QUEUE,
    PROMPT_TOKENS,
    REQUEST_ID,
    engine_seconds,
    request_of,
    tokens_of,
)
from jouled_collectors.requests.spans import SERVICE_NAME, Span, SpanReader

_UNIFIED, _PREFILL, _DECODE = " Req ", "prefill Req ", "decode Req "
_ID = "rid"
_ROLES = {_PREFILL: "prefill", _DECODE: "decode"}


def read_request(span: Span) -> ReceivedRequest | None:
    """Turn the span into a request if it tells of one. Raises `RefusedError`."""
    if PROMPT_TOKENS not in span.attributes:
        return None
    generation_tokens = said.optional_count(span.attributes, GENERATION_TOKENS) or 0  # an embedding has no such count
    tokens = tokens_of(span, generation_tokens)
    queue = engine_seconds(span, IN_QUEUE)  # releases before 0.5.23 had it
    scheduled_ns = None if queue is None else min(span.start_ns + nanoseconds(queue), tokens.first_ns)
    request_id = said.text(span.attributes, REQUEST_ID, _ID)
    event = request_of(span, request_id, generation_tokens, tokens, scheduled_ns)
    return ReceivedRequest(event=event, hint=_hint(span))


READER = SpanReader(prefixes=(_UNIFIED, _PREFILL, _DECODE), attributes=ATTRIBUTES | {_ID}, read=read_request)


def _hint(span: Span) -> EngineHint:
    role = next((role for prefix, role in _ROLES.items() if span.name.startswith(prefix)), "")
    return EngineHint(engine_type="sglang", role=role, service_name=said.hint(span.resource, SERVICE_NAME))

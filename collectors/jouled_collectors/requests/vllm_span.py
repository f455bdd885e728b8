"""vLLM's span `llm_request`: what one request of a vLLM server (V1 engine) told when it ended.

Durations in it come from two clocks (as measured on 0.32.0 and read in `OutputProcessor.do_tracing`). The front end's
wall clock gives the start (arrival), `time_to_first_token` and `e2e`: both taken when the step's output reaches the
front end. The engine core's monotonic clock gives queue and prefill times. They are not added up across the clocks
without need: the front end tokenizes before the engine's queue begins, so that TTFT ≠ queue + prefill.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND, nanoseconds
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.spans import Span, Value

T = TypeVar("T")

SPAN_NAME = "llm_request"

_ID = "gen_ai.request.id"
_PROMPT_TOKENS = "gen_ai.usage.prompt_tokens"
_GENERATION_TOKENS = "gen_ai.usage.completion_tokens"
_CACHED_TOKENS = ("gen_ai.usage.cached_tokens", "gen_ai.usage.cache_read.input_tokens")
_TTFT = "gen_ai.latency.time_to_first_token"
_END_TO_END = "gen_ai.latency.e2e"
_IN_QUEUE = "gen_ai.latency.time_in_queue"
_IN_PREFILL = "gen_ai.latency.time_in_model_prefill"
_FINISH_REASONS = ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason")
_OUTCOMES = {"abort": Outcome.CANCELLED, "error": Outcome.FAILED}  # others: stop, length, repetition

_LONGEST_SECONDS = 30 * 86_400.0
_LONGEST_PID = 10  # digits
_TOLERANCE_NS = 10 * NANOSECONDS_PER_MILLISECOND
"""The first token may seem this much later than the end: a clock that is being slewed, rounding of floats."""


class _Times(Struct, frozen=True):
    scheduled_ns: int | None
    first_token_ns: int
    last_token_ns: int


def read_request(span: Span) -> ReceivedRequest:
    """Turn the span into a request. Raises `RefusedError`."""
    attributes = span.attributes
    generation_tokens = _count(attributes, _GENERATION_TOKENS)
    times = _times(span, generation_tokens)
    event = RequestEvent(
        engine="",
        id=_request_id(attributes),
        arrival_ns=span.start_ns,
        scheduled_ns=times.scheduled_ns,
        first_token_ns=times.first_token_ns,
        last_token_ns=times.last_token_ns,
        prompt_tokens=_count(attributes, _PROMPT_TOKENS),
        cached_prompt_tokens=_optional_count(attributes, _CACHED_TOKENS),
        generation_tokens=generation_tokens,
        outcome=_outcome(span),
        trace_id=span.trace_id,
        span_id=span.span_id,
    )
    check_request(event)
    return ReceivedRequest(event=event, hint=_hint(span))


def _times(span: Span, generation_tokens: int) -> _Times:
    """Place the moments on the span's time line.

    The last token is at arrival + e2e, bounded by the span's end: that is the clock and the place in the code of the
    first token, so that (e2e − ttft) / (n − 1) is a TPOT on one clock, as `vllm bench serve` sees it. First token +
    decode time would mix two. The end of the span is 0.6 to 0.8 ms later in the samples: detokenizing and the
    exporter's own work. Without a token the prefill lasted to the end.
    """
    if span.end_ns < span.start_ns:
        raise RefusedError("end_before_start", "the span ends before it starts")
    to_first_token = _required(_front_end_seconds(span.attributes, _TTFT), _TTFT)
    first_token_ns = span.start_ns + nanoseconds(to_first_token)
    end_to_end = _front_end_seconds(span.attributes, _END_TO_END)
    last_token_ns = span.end_ns if end_to_end is None else min(span.start_ns + nanoseconds(end_to_end), span.end_ns)
    if first_token_ns - last_token_ns > _TOLERANCE_NS:
        raise RefusedError("first_token_after_end", f"{_TTFT} is longer than the request")
    first_token_ns = min(first_token_ns, last_token_ns) if generation_tokens else last_token_ns
    return _Times(_scheduled_ns(span, first_token_ns), first_token_ns, last_token_ns)


def _scheduled_ns(span: Span, first_token_ns: int) -> int | None:
    """The later of arrival + queue and first token − prefill: the queue begins only after the front end's work.

    In the samples that work took 42 and 5 ms, the queue 0.04 ms and the prefill 23 and 10 ms.
    """
    queue = _engine_seconds(span.attributes, _IN_QUEUE)
    prefill = _engine_seconds(span.attributes, _IN_PREFILL)
    bounds = []
    if queue is not None:
        bounds.append(span.start_ns + nanoseconds(queue))
    if prefill is not None:
        bounds.append(first_token_ns - nanoseconds(prefill))
    return min(max(span.start_ns, *bounds), first_token_ns) if bounds else None


def _request_id(attributes: Mapping[str, Value]) -> str:
    value = _required(attributes.get(_ID), _ID)
    if not isinstance(value, str):
        raise RefusedError("bad_attribute", f"{_ID} is no string")
    return value


def _count(attributes: Mapping[str, Value], key: str) -> int:
    value = _required(attributes.get(key), key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedError("bad_attribute", f"{key} is no integer")
    return value


def _optional_count(attributes: Mapping[str, Value], keys: Sequence[str]) -> int | None:
    return next((_count(attributes, key) for key in keys if key in attributes), None)


def _front_end_seconds(attributes: Mapping[str, Value], key: str) -> float | None:
    seconds = _seconds(attributes, key)
    if seconds is not None and seconds < 0:
        raise RefusedError("bad_latency", f"{key} is negative")
    return seconds


def _engine_seconds(attributes: Mapping[str, Value], key: str) -> float | None:
    """A duration of the engine core; a negative one counts as absent: of two moments one never came, and is 0."""
    seconds = _seconds(attributes, key)
    return None if seconds is not None and seconds < 0 else seconds


def _seconds(attributes: Mapping[str, Value], key: str) -> float | None:
    value = attributes.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("bad_attribute", f"{key} is no number")
    if not math.isfinite(value) or value > _LONGEST_SECONDS:
        raise RefusedError("bad_latency", f"{key} is not finite, or above {_LONGEST_SECONDS:.0f} s")
    return float(value)


def _required(value: T | None, key: str) -> T:
    if value is None:
        raise RefusedError("missing_attribute", f"the span has no {key}")
    return value


def _outcome(span: Span) -> Outcome:
    if span.failed:
        return Outcome.FAILED
    for key in _FINISH_REASONS:
        reasons = span.attributes.get(key, ())
        for reason in [reasons] if isinstance(reasons, str) else reasons if isinstance(reasons, Sequence) else ():
            if reason in _OUTCOMES:
                return _OUTCOMES[reason]
    return Outcome.COMPLETED


def _hint(span: Span) -> EngineHint:
    service_name = span.resource.get("service.name")
    return EngineHint(
        engine_type="vllm",
        pid=_pid(span.resource.get("vllm.process_id")),
        service_name=service_name if isinstance(service_name, str) else "",
    )


def _pid(value: Value | None) -> int | None:
    """The process id, which vLLM sends as a string."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_PID else None

"""NVIDIA Dynamo's spans: a frontend and one or two workers each tell a part of one request.

As measured on 1.6.1, and read in `lib/runtime/src/logging.rs` and `lib/llm/src/http/service/metrics.rs`. The frontend's
`http-request` has the tokens, the time to the first one, and which workers served it. A worker's `handle_payload` has
none of that but lasts as long as the worker was at it: a prefill worker's ends with the prompt, a decode worker's
begins when the prompt was computed. Both name the request by `request_id`, with which the response's id ends
(`X-Request-Id` is another one). Numbers are strings. How many prompt tokens came from a cache no span tells. Of a
request whose client left, the frontend tells no tokens.
"""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from jouled.api import EngineHint, ReceivedRequest
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import NANOSECONDS_PER_MILLISECOND
from jouled_collectors.requests import span_attributes as said
from jouled_collectors.requests.checks import LONGEST_TEXT, MAXIMUM_TOKENS, RefusedError, check_request
from jouled_collectors.requests.spans import SERVICE_NAME, Span, SpanKind

_FRONTEND_SPAN, _WORKER_SPAN = "http-request", "handle_payload"
KIND = SpanKind(
    names=frozenset({_FRONTEND_SPAN, _WORKER_SPAN}),
    attributes=frozenset({
        "request_id", "endpoint", "instance_id", "uri", "input_tokens", "output_tokens", "ttft_ms",
        "prefill_worker_id", "decode_worker_id", "request.outcome",
    }),
)  # fmt: skip

_ENGINE_TYPE = "dynamo"
_ENDPOINT = "generate"
_PREFIXES = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}
_OUTCOMES = {"": Outcome.COMPLETED, "success": Outcome.COMPLETED, "cancelled": Outcome.CANCELLED}
_LARGEST_INSTANCE = 2**64 - 1
_LONGEST_MILLISECONDS = 30 * 86_400_000.0


class Worked(Struct, frozen=True, kw_only=True):
    """What a worker told. instance: its id in hexadecimal, as on its page; service_name: that of its process."""

    request_id: str
    instance: str
    service_name: str
    start_ns: int
    end_ns: int


class Asked(Struct, frozen=True, kw_only=True):
    """What the frontend told: the whole request, and the instances that served it, "" where it named none."""

    request_id: str
    event: RequestEvent
    prefill: str
    decode: str

    @property
    def is_split(self) -> bool:
        """Whether a prefill worker began it and another one went on."""
        return bool(self.prefill and self.decode) and self.prefill != self.decode

    @property
    def instances(self) -> frozenset[str]:
        """Who is expected to tell of it."""
        return frozenset({self.prefill, self.decode} - {""})


class Untold(Struct, frozen=True, kw_only=True):
    """What the frontend told of a request without tokens: its client left, or it was refused."""

    request_id: str


Part = Asked | Untold | Worked


def read(span: Span) -> Part | None:
    """What a span tells of a request; `None`: nothing of Dynamo's. Raises `RefusedError`."""
    if not KIND.wants(span.name) or not said.is_there(span.attributes, ["request_id"]):
        return None
    if span.end_ns < span.start_ns:
        raise RefusedError("end_before_start", "the span ends before it starts")
    return _worked(span) if span.name == _WORKER_SPAN else _asked(span)


def requests_of(asked: Asked, workers: Mapping[str, Worked]) -> Sequence[ReceivedRequest]:
    """The request as each of its engines served it: two halves if a prefill worker began it, else one whole.

    workers: what workers told, by instance; a half without it has the frontend's times.
    """
    event, prefill, decode = asked.event, workers.get(asked.prefill), workers.get(asked.decode)
    if not asked.is_split:
        worker = decode or prefill
        return [_received(_scheduled(event, worker), asked.decode or asked.prefill, "", worker)]
    return [
        _received(_prefill_half(event, prefill), asked.prefill, "prefill", prefill),
        _received(_scheduled(event, decode), asked.decode, "decode", decode),
    ]


def _prefill_half(event: RequestEvent, worker: Worked | None) -> RequestEvent:
    """Its service ends with the prompt: the client's first token came from the decode worker, somewhat later.

    How the request ended is told with the decode half, which is always told beside it: it must count once.
    """
    event = _scheduled(event, worker)
    if worker is not None:
        earliest_ns = event.arrival_ns if event.scheduled_ns is None else event.scheduled_ns
        event = replace(event, first_token_ns=min(max(worker.end_ns, earliest_ns), event.first_token_ns))
    return replace(event, outcome=Outcome.COMPLETED)


def _scheduled(event: RequestEvent, worker: Worked | None) -> RequestEvent:
    """The worker's work began when the request reached it, by clocks that may differ between hosts."""
    if worker is None:
        return event
    return replace(event, scheduled_ns=min(max(worker.start_ns, event.arrival_ns), event.first_token_ns))


def _received(event: RequestEvent, instance: str, role: str, worker: Worked | None) -> ReceivedRequest:
    service_name = "" if worker is None else worker.service_name
    hint = EngineHint(engine_type=_ENGINE_TYPE, role=role, instance=instance, service_name=service_name)
    return ReceivedRequest(event=event, hint=hint)


def _worked(span: Span) -> Worked | None:
    if span.attributes.get("endpoint") != _ENDPOINT:
        return None
    return Worked(
        request_id=_request_id(span),
        instance=_instance(span, "instance_id"),
        service_name=said.hint(span.resource, SERVICE_NAME),
        start_ns=span.start_ns,
        end_ns=span.end_ns,
    )


def _asked(span: Span) -> Asked | Untold:
    request_id = _request_id(span)
    if not said.is_there(span.attributes, ["output_tokens"]):
        return Untold(request_id=request_id)
    generation_tokens = _tokens(span, "output_tokens")
    first_token_ns = _first_token_ns(span) if generation_tokens else span.end_ns
    event = RequestEvent(
        engine="",
        id=_PREFIXES.get(said.hint(span.attributes, "uri"), "") + request_id,
        arrival_ns=span.start_ns,
        first_token_ns=first_token_ns,
        last_token_ns=span.end_ns,
        prompt_tokens=_tokens(span, "input_tokens"),
        generation_tokens=generation_tokens,
        outcome=_outcome(span),
        trace_id=span.trace_id,
        span_id=span.span_id,
    )
    check_request(event)
    return Asked(
        request_id=request_id,
        event=event,
        prefill=_instance(span, "prefill_worker_id"),
        decode=_instance(span, "decode_worker_id"),
    )


def _request_id(span: Span) -> str:
    """What parts are held by: a long one would make them large."""
    text = said.text(span.attributes, "request_id")
    if not text.strip():
        raise RefusedError("empty_id", "the request has no id")
    if len(text) > LONGEST_TEXT:
        raise RefusedError("bad_text", f"request_id is longer than {LONGEST_TEXT} characters")
    return text


def _first_token_ns(span: Span) -> int:
    text = said.text(span.attributes, "ttft_ms")
    try:
        milliseconds = float(text)
    except ValueError:
        raise RefusedError("bad_attribute", "ttft_ms is no number") from None
    if not math.isfinite(milliseconds) or not 0 <= milliseconds <= _LONGEST_MILLISECONDS:
        raise RefusedError("bad_latency", "ttft_ms is negative, not finite, or above a month")
    return min(span.start_ns + round(milliseconds * NANOSECONDS_PER_MILLISECOND), span.end_ns)


def _outcome(span: Span) -> Outcome:
    if span.failed:
        return Outcome.FAILED
    return _OUTCOMES.get(said.hint(span.attributes, "request.outcome"), Outcome.FAILED)


def _tokens(span: Span, key: str) -> int:
    return _number(span, key, MAXIMUM_TOKENS)


def _instance(span: Span, key: str) -> str:
    return f"{_number(span, key, _LARGEST_INSTANCE):x}" if key in span.attributes else ""


def _number(span: Span, key: str, largest: int) -> int:
    value = span.attributes.get(key)
    if value is None:
        raise said.missing(key)
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) <= len(str(largest))):
        raise RefusedError("bad_attribute", f"{key} is no integer from 0 on")
    if int(text) > largest:
        raise RefusedError("absurd_count", f"{key} is above {largest}")
    return int(text)

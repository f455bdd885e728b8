"""`POST /api/v1/requests`: a neutral event from a gateway, as JSON or JSON lines.

One record is an object with the fields of a recording's `request` line, times in Unix nanoseconds:

    {"id": "chatcmpl-1", "engine": "vllm-8000", "arrival_ns": 1795423132928712704,
     "first_token_ns": 1795423132993842461, "last_token_ns": 1795423133035762884,
     "prompt_tokens": 192, "generation_tokens": 8}

`engine` may be left out where there is only one engine. A gateway that knows no names of jouled's gives `server`, the
`HOST:PORT` that it called, and `model`: what it sent to an engine elsewhere is left alone. A sender that measured
durations gives `ttft_seconds` in place of `first_token_ns`, and `e2e_seconds` in place of `last_token_ns`. Optional:
scheduled_ns, cached_prompt_tokens, outcome, trace_id, span_id, tenant, adapter, preemptions. `"type": "request_start"`
with id and arrival_ns tells of a request in flight. `seen_ns` and `answer`, which recordings have, are allowed and left
out: the daemon stamps what it sees itself, and how answers to one prompt are told apart is between it and the engine.
Every other field is refused, text of prompts and answers above all.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, TypeVar

import msgspec
from msgspec import Struct

from jouled.api import (
    MOST_RECORDS,
    EngineHint,
    Received,
    ReceivedRequest,
    TooManyRecordsError,
)
from jouled.model.requests import Outcome, RequestEvent, RequestStart
from jouled.model.units import nanoseconds
from jouled_collectors.requests import json_body
from jouled_collectors.requests.checks import RefusedError, check_request, check_start
from jouled_collectors.requests.each_alone import each_alone

T = TypeVar("T")

_LINE_TYPES = ("application/x-ndjson", "application/jsonl")
_ELEMENTS_DEPTH = 1
_LONGEST_SPAN_SECONDS = 1e9
_LARGEST_PORT = 65_535

# How msgspec words these two faults; a change of its wording fails this receiver's tests.
_FIELD_FAULT = re.compile(r"^Object (missing required|contains unknown) field `(.*?)`", re.DOTALL)


class _Kind(Struct):
    type: str = "request"


class _Request(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["request"] = "request"
    id: str
    engine: str = ""
    arrival_ns: int
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    ttft_seconds: float | None = None
    last_token_ns: int | None = None
    e2e_seconds: float | None = None
    prompt_tokens: int
    cached_prompt_tokens: int | None = None
    generation_tokens: int
    outcome: Outcome = Outcome.COMPLETED
    trace_id: str = ""
    span_id: str = ""
    tenant: str = ""
    adapter: str = ""
    preemptions: int = 0
    seen_ns: int | None = None
    answer: int | None = None
    server: str = ""
    model: str = ""


class _Start(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["request_start"]
    id: str
    engine: str = ""
    arrival_ns: int
    seen_ns: int | None = None


class HttpEventsReceiver:
    """Takes events one by one: a record that is wrong is refused with its position, the others are taken."""

    name: ClassVar[str] = "http_events"
    path: ClassVar[str] = "/api/v1/requests"
    content_types: ClassVar[Sequence[str]] = ("application/json", *_LINE_TYPES)

    def decode(self, body: bytes, content_type: str) -> Received:
        """Read one object or an array of them, or JSON lines.

        Positions are `$` (the one object), `[2]` (counted from 0) or `line 3` (counted from 1). Raises
        `MalformedBodyError` if a JSON document is broken as a whole; of JSON lines, a broken one is refused alone.
        """
        lines = json_body.media_type(content_type) in _LINE_TYPES
        return each_alone(_lines(body) if lines else _elements(body), _read)

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:  # noqa: ARG002  # one answer for both
        """`{"accepted": 2, "rejected": [{"position": "line 3", "reason": …, "message": …}]}`.

        Beyond the first hundred refusals there is `"more_rejected": {"wrong_type": 4711}`, and `"ignored": 3` where
        requests went to servers elsewhere.
        """
        answer: dict[str, object] = {"accepted": len(received.requests), "rejected": received.rejected}
        if received.more_rejected:
            answer["more_rejected"] = received.more_rejected
        if received.ignored:
            answer["ignored"] = received.ignored
        return msgspec.json.encode(answer), {"Content-Type": "application/json"}


def _lines(body: bytes) -> Iterator[tuple[str, bytes]]:
    records = 0
    for number, line in enumerate(io.BytesIO(body), start=1):
        if record := line.strip():
            records += 1
            if records > MOST_RECORDS:
                raise TooManyRecordsError
            yield f"line {number}", record


def _elements(body: bytes) -> Iterator[tuple[str, msgspec.Raw]]:
    if body.lstrip()[:1] == b"[":
        json_body.check_records(body, _ELEMENTS_DEPTH)
        for index, element in enumerate(json_body.decode(body, list[msgspec.Raw])):
            yield f"[{index}]", element
    else:
        yield "$", json_body.decode(body, msgspec.Raw)


def _read(record: bytes | msgspec.Raw, position: str) -> ReceivedRequest:
    kind = _decode(record, _Kind).type
    if kind == "request":
        request = _decode(record, _Request)
        event = _event(request)
        check_request(event)
        return ReceivedRequest(event=event, hint=_hint(request), position=position)
    if kind == "request_start":
        start = _decode(record, _Start)
        started = RequestStart(engine=start.engine, id=start.id, arrival_ns=start.arrival_ns)
        check_start(started)
        return ReceivedRequest(event=started, hint=EngineHint(engine=start.engine), position=position)
    raise RefusedError("unknown_type", "neither `request` nor `request_start` - at `$.type`")


def _event(request: _Request) -> RequestEvent:
    return RequestEvent(
        engine=request.engine,
        id=request.id,
        arrival_ns=request.arrival_ns,
        scheduled_ns=request.scheduled_ns,
        first_token_ns=_instant(request, "first_token_ns", "ttft_seconds"),
        last_token_ns=_instant(request, "last_token_ns", "e2e_seconds"),
        prompt_tokens=request.prompt_tokens,
        cached_prompt_tokens=request.cached_prompt_tokens,
        generation_tokens=request.generation_tokens,
        outcome=request.outcome,
        trace_id=request.trace_id,
        span_id=request.span_id,
        tenant=request.tenant,
        adapter=request.adapter,
        preemptions=request.preemptions,
    )


def _hint(request: _Request) -> EngineHint:
    if not request.server or request.engine:
        return EngineHint(engine=request.engine)
    address, _, port = request.server.rpartition(":")
    if not (address and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= _LARGEST_PORT):
        raise RefusedError("bad_server", "not of the form HOST:PORT - at `$.server`")
    return EngineHint(address=address.strip("[]"), port=int(port), model=request.model, may_be_elsewhere=True)


def _instant(request: _Request, time_field: str, span_field: str) -> int:
    """A moment given as Unix nanoseconds or as seconds after the arrival, by exactly one of the two fields."""
    unix_ns: int | None = getattr(request, time_field)
    seconds: float | None = getattr(request, span_field)
    if unix_ns is not None:
        if seconds is not None:
            raise RefusedError("contradiction", f"{time_field} is given as well - at `$.{span_field}`")
        return unix_ns
    if seconds is None:
        raise RefusedError("missing_field", f"neither it nor {span_field} is given - at `$.{time_field}`")
    if not math.isfinite(seconds) or not 0 <= seconds <= _LONGEST_SPAN_SECONDS:
        raise RefusedError("bad_latency", f"not in 0..{_LONGEST_SPAN_SECONDS:.0f} - at `$.{span_field}`")
    return request.arrival_ns + nanoseconds(seconds)


def _decode(record: bytes | msgspec.Raw, expected: type[T]) -> T:
    try:
        return msgspec.json.decode(record, type=expected)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError("broken_json", str(error)) from None


def _refused(message: str) -> RefusedError:
    """Sort msgspec's message; values, which might be text of a prompt, are not repeated."""
    if field := _FIELD_FAULT.match(message):
        missing = field[1] == "missing required"
        reason, problem = ("missing_field", "required field") if missing else ("unknown_field", "unknown field")
        return RefusedError(reason, f"{problem} - at `$.{field[2]}`")
    if message.startswith("Invalid enum value"):
        allowed = ", ".join(Outcome)
        return RefusedError("wrong_value", f"not one of {allowed} - at `$.outcome`")
    return RefusedError("wrong_type", message)

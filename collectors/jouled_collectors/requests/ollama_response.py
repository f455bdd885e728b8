"""`POST /api/v1/requests/ollama`: an answer of Ollama's own API, as it came.

Whoever passes requests on (a gateway, a client) sends on what `/api/generate` or `/api/chat` answered: the one object,
or the lines of a stream, of which only the last of each answer has figures. Text is skipped by the parser and never
becomes an object. The sender may add `id`, as the answer has none, and `engine` where several Ollamas run:

    {"model": "llama3.2", "created_at": "2026-11-26T10:15:42.123456789Z", "response": "…", "done": true,
     "done_reason": "stop", "total_duration": 5043500667, "load_duration": 5025959, "prompt_eval_count": 26,
     "prompt_eval_duration": 325953000, "eval_count": 290, "eval_duration": 4709213000}

Facts of `server/routes.go` and `api/types.go` in ollama/ollama: durations are nanoseconds; `created_at` of the last
part is when the last token was there; `total_duration` counts from the request's arrival, `load_duration` from there to
when the model was ready, `eval_duration` from the first token on. Zero is left out. `prompt_eval_count` includes cached
tokens; `prompt_eval_cached_count` says how many (0.34 on). A client that goes away gets no last part: such a request is
never told of. Models of Ollama's cloud (`remote_host`) compute elsewhere and are ignored.

Ollama's OpenAI-compatible answers are not taken: they have no durations, and an id out of 999.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Raw, Struct

from jouled.api import (
    MOST_RECORDS,
    EngineHint,
    Received,
    ReceivedRequest,
    Refusals,
    Rejected,
    TooManyRecordsError,
)
from jouled.model.requests import RequestEvent
from jouled_collectors.requests import json_body
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.each_alone import LONGEST_MESSAGE

_LINE_TYPES = ("application/x-ndjson", "application/jsonl")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LONGEST_NS = 30 * 86_400 * 10**9


class _Answer(Struct, kw_only=True):
    """What is read of an answer; `error` tells only whether there is one, as its text may repeat the prompt."""

    done: bool = False
    error: Raw = Raw(b"")
    remote_host: str = ""
    id: str = ""
    engine: str = ""
    created_at: Annotated[datetime, Meta(tz=True)] | None = None
    total_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_cached_count: int | None = None
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class OllamaReceiver:
    """Takes answers one by one: one that is wrong is refused with its position, the others are taken."""

    name: ClassVar[str] = "ollama"
    path: ClassVar[str] = "/api/v1/requests/ollama"
    content_types: ClassVar[Sequence[str]] = ("application/json", *_LINE_TYPES)

    def decode(self, body: bytes, content_type: str) -> Received:
        """Read one object, or JSON lines. Positions are `$`, or `line 3` (counted from 1).

        Parts of a stream before the last, answers that only load or unload a model, and those of remote models are
        ignored. Raises `MalformedBodyError` if a JSON document is broken as a whole; a broken line is refused alone.
        """
        requests: list[ReceivedRequest] = []
        refusals = Refusals()
        ignored = 0
        for position, record in _records(body, content_type):
            try:
                request = _read(record, position)
            except RefusedError as error:
                refusals.add(Rejected(position, error.reason, str(error)[:LONGEST_MESSAGE]))
                continue
            if request is None:
                ignored += 1
            elif len(requests) == MOST_RECORDS:
                raise TooManyRecordsError
            else:
                requests.append(request)
        return Received(requests=requests, rejected=refusals.kept, ignored=ignored, more_rejected=refusals.more)

    def respond(self, received: Received, content_type: str) -> tuple[bytes, Mapping[str, str]]:  # noqa: ARG002  # one answer for both
        """`{"accepted": 1, "rejected": [{"position": "line 3", "reason": …, "message": …}], "ignored": 289}`."""
        answer: dict[str, object] = {
            "accepted": len(received.requests),
            "rejected": received.rejected,
            "ignored": received.ignored,
        }
        if received.more_rejected:
            answer["more_rejected"] = received.more_rejected
        return msgspec.json.encode(answer), {"Content-Type": "application/json"}


def _records(body: bytes, content_type: str) -> Iterator[tuple[str, bytes | Raw]]:
    if json_body.media_type(content_type) not in _LINE_TYPES:
        yield "$", json_body.decode(body, Raw)
        return
    for number, line in enumerate(io.BytesIO(body), start=1):
        if record := line.strip():
            yield f"line {number}", record


def _read(record: bytes | Raw, position: str) -> ReceivedRequest | None:
    answer = _decode(record)
    if answer.error:
        raise RefusedError("failed_without_figures", "the answer is an error, which tells no tokens - at `$.error`")
    if not answer.done or answer.remote_host or not (answer.prompt_eval_count or answer.eval_count):
        return None
    event = _event(answer)
    check_request(event)
    return ReceivedRequest(event=event, hint=EngineHint(engine=answer.engine, engine_type="ollama"), position=position)


def _event(answer: _Answer) -> RequestEvent:
    if answer.created_at is None or not answer.total_duration:
        field = "total_duration" if answer.created_at else "created_at"
        raise RefusedError("missing_field", f"the last part of an answer has it - at `$.{field}`")
    last_token_ns = (answer.created_at - _EPOCH) // _MICROSECOND * 1000
    arrival_ns = last_token_ns - _duration(answer, "total_duration")
    first_token_ns = last_token_ns - (_duration(answer, "eval_duration") if answer.eval_count else 0)
    prefill_ns = _duration(answer, "prompt_eval_duration")
    return RequestEvent(
        engine=answer.engine,
        id=answer.id or f"ollama-{last_token_ns}-{answer.total_duration}",
        arrival_ns=arrival_ns,
        # Between the two lie loading the model and the queue.
        scheduled_ns=max(first_token_ns - prefill_ns, arrival_ns) if prefill_ns else None,
        first_token_ns=first_token_ns,
        last_token_ns=last_token_ns,
        prompt_tokens=answer.prompt_eval_count,
        cached_prompt_tokens=answer.prompt_eval_cached_count,
        generation_tokens=answer.eval_count,
    )


def _duration(answer: _Answer, field: str) -> int:
    nanoseconds: int = getattr(answer, field)
    if not 0 <= nanoseconds <= _LONGEST_NS:
        raise RefusedError("bad_latency", f"not in 0..{_LONGEST_NS} nanoseconds - at `$.{field}`")
    return nanoseconds


def _decode(record: bytes | Raw) -> _Answer:
    try:
        return msgspec.json.decode(record, type=_Answer)
    except msgspec.ValidationError as error:
        raise RefusedError("wrong_type", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError("broken_json", str(error)) from None

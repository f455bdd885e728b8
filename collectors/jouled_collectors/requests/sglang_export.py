"""SGLang's request files: a JSON line for each finished request, in a new file every hour.

SGLang writes them with `--export-metrics-to-file --export-metrics-to-file-dir DIR`; the time stamps are in them only
with `--enable-metrics`. Names and meanings as read and run in 0.5.23 (`request_metrics_exporter.py`,
`req_time_stats.py`, `tokenizer_manager.py` of `sglang.srt`):

- `*_ts`, `forward_entry_time` and `prefill_finished_time` are wall time in seconds: readings of `perf_counter()` plus
  one offset to `time.time()`, so that differences are free of steps of the wall clock. `first_token_latency` and
  `e2e_latency` are differences of the same readings, from `request_received_ts` on.
- `request_parameters` is a string that holds the prompt, unless the level of request logging leaves it out. It is
  skipped as bytes: no object is made of it.
- A request that was aborted while it waited has neither time stamps nor prompt tokens, only its end and `e2e_latency`:
  nothing was computed for it.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import msgspec
from msgspec import Struct

from jouled.api import EngineHint, FollowSettings, LinesRead, Received, ReceivedRequest
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import nanoseconds
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.each_alone import each_alone, numbered

_LATEST_SECONDS = 9e9  # the year 2255; nanoseconds stay within 63 bits
_LONGEST_SECONDS = 30 * 86_400.0


class _FinishReason(Struct):
    type: str = ""
    status_code: int | None = None


class _Line(Struct, kw_only=True):
    """The figures of a line; whatever else it holds, text above all, is left unread."""

    id: str
    finish_reason: _FinishReason | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int = 0  # lines of embeddings have none, and none were generated
    num_retractions: int = 0
    request_received_ts: float | None = None
    forward_entry_time: float | None = None
    prefill_finished_time: float | None = None
    first_token_latency: float | None = None
    response_sent_to_client_ts: float | None = None
    e2e_latency: float | None = None


class SglangExportReceiver:
    """Takes every line that holds a finished request; one that is wrong is refused alone."""

    name: ClassVar[str] = "sglang_export"
    settings_type: ClassVar[type[FollowSettings]] = FollowSettings
    engine_type: ClassVar[str] = "sglang"
    pattern: ClassVar[str] = "sglang-request-metrics-*.log"

    def decode_lines(self, lines: Sequence[bytes], read: LinesRead, settings: FollowSettings) -> Received:  # noqa: ARG002 - its times are wall time already
        """Turn lines into requests. Positions count the lines given, from 1."""
        hint = EngineHint(engine=settings.engine, engine_type=self.engine_type)
        return each_alone(
            numbered(lines),
            lambda line, position: ReceivedRequest(event=_event(_read(line)), hint=hint, position=position),
        )


def _read(line: bytes) -> _Line:
    # No message of the decoder is repeated where it could hold a piece of the line.
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.ValidationError as error:
        reason = "missing_field" if "missing required field" in str(error) else "wrong_type"
        raise RefusedError(reason, str(error)) from None
    except (ValueError, RecursionError):
        raise RefusedError("broken_json", "the line is no JSON") from None


def _event(line: _Line) -> RequestEvent:
    end_to_end = _span("e2e_latency", line.e2e_latency)
    scheduled_ns: int | None
    if line.request_received_ts is None and _was_never_run(line):
        scheduled_ns = first_ns = last_ns = _time("response_sent_to_client_ts", line.response_sent_to_client_ts)
        arrival_ns = last_ns - end_to_end
    else:
        arrival_ns = _time("request_received_ts", line.request_received_ts)
        last_ns = arrival_ns + end_to_end
        first_ns = _first_token_ns(line, arrival_ns, last_ns)
        scheduled_ns = _scheduled_ns(line, arrival_ns, first_ns)
    event = RequestEvent(
        engine="",
        id=line.id,
        arrival_ns=arrival_ns,
        scheduled_ns=scheduled_ns,
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        prompt_tokens=_prompt_tokens(line),
        cached_prompt_tokens=line.cached_tokens,
        generation_tokens=line.completion_tokens,
        outcome=_outcome(line.finish_reason),
        preemptions=line.num_retractions,
    )
    check_request(event)
    return event


def _was_never_run(line: _Line) -> bool:
    """Whether it was aborted in the queue: nothing was computed, so nothing has a time."""
    aborted = line.finish_reason is not None and line.finish_reason.type == "abort"
    return aborted and line.prompt_tokens is None and not line.completion_tokens


def _prompt_tokens(line: _Line) -> int:
    if line.prompt_tokens is not None:
        return line.prompt_tokens
    if _was_never_run(line):
        return 0
    raise RefusedError("missing_field", "required field - at `$.prompt_tokens`")


def _first_token_ns(line: _Line, arrival_ns: int, last_ns: int) -> int:
    """Where `first_token_latency` is missing, the end of the prefill; without a token the prefill lasted to the end."""
    if not line.completion_tokens:
        return last_ns
    if line.first_token_latency is not None:
        first_ns = arrival_ns + _span("first_token_latency", line.first_token_latency)
    elif line.prefill_finished_time is not None:
        first_ns = _time("prefill_finished_time", line.prefill_finished_time)
    elif line.completion_tokens == 1:
        return last_ns
    else:
        raise RefusedError(
            "missing_field", "neither it nor prefill_finished_time is there - at `$.first_token_latency`"
        )
    return min(max(first_ns, arrival_ns), last_ns)


def _scheduled_ns(line: _Line, arrival_ns: int, first_ns: int) -> int | None:
    if line.forward_entry_time is None:
        return None
    return min(max(_time("forward_entry_time", line.forward_entry_time), arrival_ns), first_ns)


def _outcome(reason: _FinishReason | None) -> Outcome:
    """An abort with an HTTP status was SGLang's own refusal or fault; one without was asked for."""
    if reason is None or reason.type != "abort":
        return Outcome.COMPLETED
    return Outcome.CANCELLED if reason.status_code is None else Outcome.FAILED


def _time(field: str, seconds: float | None) -> int:
    if seconds is None:
        raise RefusedError("missing_field", f"start SGLang with --enable-metrics - at `$.{field}`")
    if not math.isfinite(seconds) or not 0 < seconds < _LATEST_SECONDS:
        raise RefusedError("bad_time", f"no time in Unix seconds - at `$.{field}`")
    return nanoseconds(seconds)


def _span(field: str, seconds: float | None) -> int:
    if seconds is None:
        raise RefusedError("missing_field", f"required field - at `$.{field}`")
    if not math.isfinite(seconds) or not 0 <= seconds <= _LONGEST_SECONDS:
        raise RefusedError("bad_latency", f"not in 0..{_LONGEST_SECONDS:.0f} s - at `$.{field}`")
    return nanoseconds(seconds)

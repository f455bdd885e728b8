"""TensorRT-LLM's `/perf_metrics`: finished requests of `trtllm-serve`, told once and forgotten by being read.

The server keeps them with `return_perf_metrics: true` and `perf_metrics_max_requests` above 0. Names and meanings from
`tensorrt_llm/serve/openai_server.py` (2025, releases 1.0 and 1.1) and `batch_manager/llmRequest.h`; no such server was
met yet. Later sources write files instead and answer with 404.

- Times are seconds of the steady clock, on Linux CLOCK_MONOTONIC: one clock for all processes of a host. They are put
  on the wall clock by what both clocks show as the answer arrives: an error of microseconds. A disaggregated server on
  another host shifts them to its own clock (`POST /steady_clock_offset`); times that then lie ahead are refused.
- `first_iter` and `last_iter` are the iterations of the first and the last token. **There is no count of tokens.** Of
  generated tokens it is one for each iteration between, and the accepted drafts: right for a request that took part in
  all of them, too many where pipeline stages take turns or a request was paused. Of prompt tokens it is the blocks of
  the KV cache that the prompt took, the last one taken as half full: half a block too many or too few; with several
  attention windows the engine adds their blocks up.
- Requests whose client went away are not told.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta, Raw, Struct, ValidationError
from msgspec import json as msgspec_json

from jouled.api import DrainSettings, EngineHint, PageRead, Received, ReceivedRequest, Refusals, Rejected
from jouled.model.requests import RequestEvent
from jouled.model.units import nanoseconds
from jouled_collectors.requests import json_body
from jouled_collectors.requests.checks import RefusedError, check_request

_LATEST_SECONDS = 4e9  # 126 years of uptime
_AHEAD_NS = nanoseconds(1.0)
_RECORDS_DEPTH = 1


class TensorrtLlmRecordsSettings(DrainSettings, kw_only=True):
    """Reads `/perf_metrics` of `trtllm-serve`, which empties it: with `own` jouled must be the only reader."""

    tokens_per_block: Annotated[
        int,
        Meta(
            ge=1,
            description="Tokens in a block of the KV cache, as in the engine's `kv_cache_config.tokens_per_block`.",
        ),
    ] = 32


class _Timing(Struct):
    arrival_time: float
    last_token_time: float
    first_token_time: float | None = None
    first_scheduled_time: float | None = None
    server_arrival_time: float | None = None


class _Blocks(Struct, frozen=True):
    num_total_allocated_blocks: int = 0
    num_reused_blocks: int = 0
    num_missed_blocks: int = 0


class _Drafts(Struct, frozen=True):
    total_accepted_draft_tokens: int = 0


class _Metrics(Struct):
    timing_metrics: _Timing
    first_iter: int | None = None
    last_iter: int | None = None
    kv_cache_metrics: _Blocks = _Blocks()
    speculative_decoding: _Drafts = _Drafts()


class _Record(Struct):
    request_id: int | str
    perf_metrics: _Metrics


class TensorrtLlmRecordsReceiver:
    """Takes every finished request; a record that is wrong is refused with its position, the others are taken."""

    name: ClassVar[str] = "tensorrt_llm_records"
    settings_type: ClassVar[type[DrainSettings]] = TensorrtLlmRecordsSettings
    engine_type: ClassVar[str] = "tensorrt_llm"
    path: ClassVar[str] = "/perf_metrics"

    def decode_page(self, body: bytes, read: PageRead, settings: DrainSettings) -> Received:
        """Read the list of records. Raises `MalformedBodyError`."""
        assert isinstance(settings, TensorrtLlmRecordsSettings)  # noqa: S101 - the runtime gives our own
        json_body.check_records(body, _RECORDS_DEPTH)
        hint = EngineHint(engine=read.engine)
        requests = []
        refusals = Refusals()
        for index, raw in enumerate(json_body.decode(body, list[Raw])):
            position = f"[{index}]"
            try:
                event = _event(_record(raw), read, settings.tokens_per_block)
            except RefusedError as error:
                refusals.add(Rejected(position, error.reason, str(error)))
            else:
                requests.append(ReceivedRequest(event=event, hint=hint, position=position))
        return Received(requests=requests, rejected=refusals.kept, more_rejected=refusals.more)


def _record(raw: Raw) -> _Record:
    try:
        return msgspec_json.decode(raw, type=_Record)
    except ValidationError as error:
        reason = "missing_field" if "missing required field" in str(error) else "wrong_type"
        raise RefusedError(reason, str(error)) from None


def _event(record: _Record, read: PageRead, tokens_per_block: int) -> RequestEvent:
    metrics = record.perf_metrics
    timing = metrics.timing_metrics
    last_ns = _unix_ns("last_token_time", timing.last_token_time, read)
    arrivals = [timing.arrival_time, *_told(timing.server_arrival_time)]
    arrival_ns = min(_unix_ns("arrival_time", arrival, read) for arrival in arrivals)
    first_ns = _within(timing.first_token_time, read, arrival_ns, last_ns)
    prompt_tokens, cached_tokens = _prompt(metrics.kv_cache_metrics, tokens_per_block)
    event = RequestEvent(
        engine="",
        id=str(record.request_id),
        arrival_ns=arrival_ns,
        scheduled_ns=_within(timing.first_scheduled_time, read, arrival_ns, first_ns or last_ns),
        first_token_ns=last_ns if first_ns is None else first_ns,
        last_token_ns=last_ns,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=cached_tokens,
        generation_tokens=_generated(metrics),
    )
    check_request(event)
    return event


def _generated(metrics: _Metrics) -> int:
    if metrics.first_iter is None or metrics.last_iter is None:
        raise RefusedError("missing_field", "nothing tells how many tokens it made - at `$.perf_metrics.first_iter`")
    return metrics.last_iter - metrics.first_iter + 1 + metrics.speculative_decoding.total_accepted_draft_tokens


def _prompt(blocks: _Blocks, tokens_per_block: int) -> tuple[int, int]:
    """Prompt tokens, and those of them from the cache. Without reuse the engine counts allocated blocks only."""
    taken = blocks.num_reused_blocks + blocks.num_missed_blocks or blocks.num_total_allocated_blocks
    prompt_tokens = max(taken * tokens_per_block - tokens_per_block // 2, 0)
    return prompt_tokens, min(blocks.num_reused_blocks * tokens_per_block, prompt_tokens)


def _within(seconds: float | None, read: PageRead, earliest_ns: int, latest_ns: int) -> int | None:
    """A moment of the engine's, moved into these bounds; one that never came is told as 0 or not at all."""
    if not _told(seconds):
        return None
    return min(max(_unix_ns("first_token_time", seconds, read), earliest_ns), latest_ns)


def _told(seconds: float | None) -> Sequence[float]:
    return [seconds] if seconds else []


def _unix_ns(field: str, seconds: float | None, read: PageRead) -> int:
    place = f"at `$.perf_metrics.timing_metrics.{field}`"
    if seconds is None or not math.isfinite(seconds) or not 0 < seconds < _LATEST_SECONDS:
        raise RefusedError("bad_time", f"no time of a steady clock - {place}")
    age_ns = read.steady_ns - nanoseconds(seconds)
    if age_ns < -_AHEAD_NS:
        raise RefusedError("foreign_clock", f"ahead of this host's steady clock: another host's? - {place}")
    return read.unix_ns - age_ns

"""A finished request as `trtllm-serve` records it, the same at `/perf_metrics` and in its files.

Meanings as read in `tensorrt_llm/serve/openai_server.py` and `batch_manager/llmRequest.h`.

- Times are seconds of the steady clock, on Linux CLOCK_MONOTONIC: one clock for all processes of a host. They are put
  on the wall clock by what both clocks show at reading: an error of microseconds, and whatever the wall clock was
  stepped and the host slept since. A disaggregated server on another host shifts them to its own clock
  (`POST /steady_clock_offset`); times that then lie ahead are refused.
- `first_iter` and `last_iter` are the iterations of the first and the last token. **There is no count of tokens.** Of
  generated tokens it is one for each iteration between, and the accepted drafts: right for a request that took part in
  all of them, too many where pipeline stages take turns or a request was paused, too few where the PyTorch backend
  tells of no drafts, as at 4bc58bc. Of prompt tokens it is the blocks of the KV cache that the prompt took, the last
  one taken as half full: half a block too many or too few; with several attention windows the engine adds their blocks
  up. Of several answers (`n` above 1) it tells the figures of the first.
- Of requests whose client went away those that were streamed are not told, others as if they had been served. One that
  never had a token has times of 0, in files none, and is refused.
"""

import math
from collections.abc import Sequence
from typing import Annotated, TypeVar

from msgspec import Meta, Raw, Struct, ValidationError
from msgspec import json as msgspec_json

from jouled.model.requests import RequestEvent
from jouled.model.units import nanoseconds
from jouled_collectors.requests.checks import RefusedError, check_request

_LATEST_SECONDS = 4e9  # 126 years of uptime
_AHEAD_NS = nanoseconds(1.0)

TokensPerBlock = Annotated[
    int,
    Meta(
        ge=1,
        description="Tokens in a block of the KV cache, as in the engine's `kv_cache_config.tokens_per_block`.",
    ),
]
"""The setting of a receiver of such records."""

USUAL_TOKENS_PER_BLOCK = 32
"""The engine's own default (`KvCacheConfig` of `tensorrt_llm/llmapi/llm_args.py`)."""


class HostClocks(Struct, frozen=True, kw_only=True):
    """What the host's clocks showed at one moment, and how late a record can have been made.

    unix_ns, latest_ns: the wall clock; steady_ns: CLOCK_MONOTONIC.
    """

    unix_ns: int
    steady_ns: int
    latest_ns: int


class _Timing(Struct):
    arrival_time: float | None
    last_token_time: float | None
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


class Record(Struct):
    """The figures of a record; whatever else it holds is left unread."""

    request_id: int | str
    perf_metrics: _Metrics


SomeRecord = TypeVar("SomeRecord", bound=Record)


def read_record(raw: bytes | Raw, record_type: type[SomeRecord]) -> SomeRecord:
    """Decode one record. Raises `RefusedError`; no message repeats what is no JSON."""
    try:
        return msgspec_json.decode(raw, type=record_type)
    except ValidationError as error:
        reason = "missing_field" if "missing required field" in str(error) else "wrong_type"
        raise RefusedError(reason, str(error)) from None
    except (ValueError, RecursionError):
        raise RefusedError("broken_json", "the record is no JSON") from None


def event_of(record: Record, clocks: HostClocks, tokens_per_block: int) -> RequestEvent:
    """The record as a request, times in Unix nanoseconds. Raises `RefusedError`."""
    metrics = record.perf_metrics
    timing = metrics.timing_metrics
    last_ns = _unix_ns("last_token_time", timing.last_token_time, clocks)
    arrivals = [timing.arrival_time, *_told(timing.server_arrival_time)]
    arrival_ns = min(_unix_ns("arrival_time", arrival, clocks) for arrival in arrivals)
    first_ns = _within(timing.first_token_time, clocks, arrival_ns, last_ns)
    prompt_tokens, cached_tokens = _prompt(metrics.kv_cache_metrics, tokens_per_block)
    event = RequestEvent(
        engine="",
        id=str(record.request_id),
        arrival_ns=arrival_ns,
        scheduled_ns=_within(timing.first_scheduled_time, clocks, arrival_ns, first_ns or last_ns),
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


def _within(seconds: float | None, clocks: HostClocks, earliest_ns: int, latest_ns: int) -> int | None:
    """A moment of the engine's, moved into these bounds; one that never came is told as 0 or not at all."""
    if not _told(seconds):
        return None
    return min(max(_unix_ns("first_token_time", seconds, clocks), earliest_ns), latest_ns)


def _told(seconds: float | None) -> Sequence[float]:
    return [seconds] if seconds else []


def _unix_ns(field: str, seconds: float | None, clocks: HostClocks) -> int:
    place = f"at `$.perf_metrics.timing_metrics.{field}`"
    if seconds is None or not math.isfinite(seconds) or not 0 < seconds < _LATEST_SECONDS:
        raise RefusedError("bad_time", f"no time of a steady clock - {place}")
    unix_ns = clocks.unix_ns - (clocks.steady_ns - nanoseconds(seconds))
    if unix_ns > clocks.latest_ns + _AHEAD_NS:
        raise RefusedError("foreign_clock", f"ahead of this host's steady clock: another host's, or boot's? - {place}")
    return unix_ns

"""The datagrams of `vllm_plugin`, which runs inside vLLM: finished requests and counts of steps.

One datagram is one JSON object of at most 60 000 bytes in version 1. Fields may be added, and are then passed over by
an older reader; a change of meaning is a new version.

    {"version": 1, "service_name": "vllm-8000", "engine_index": 0,
     "lost": {"unsent": 3, "fault": 0, "no_id": 0},
     "counts": {"steps": 812, "prompt_computed": 2048, "prompt_cached": 128, "generation": 5120},
     "scheduled": {"prefill_tokens": 2048, "decode_tokens": 5100, "elapsed_microseconds": 5311204},
     "requests": [{"id": "chatcmpl-1", "finished": 1795423133.0357628, "first_token": 1795423132.9938424,
                   "e2e": 0.10705, "queued": 0.00004, "prefill": 0.02261, "decode": 0.04237, "prompt_tokens": 192,
                   "cached_tokens": 128, "generation_tokens": 8, "preemptions": 0, "reason": "length",
                   "answer": 1}]}

`lost`: requests that the plug-in could not tell of since the last datagram that it sent; left out is 0. `counts`: since
the engine's start, so that a lost datagram loses none. `scheduled`: the same as the scheduler tells it, with
`--enable-logging-iteration-details` only. Neither is read here: the engine's page has the same.

`first_token` and `finished` are Unix seconds by the front end's wall clock, when a step's output reached it
(`IterationStats`, as read in vLLM 0.32.0 and 0.33.0); `e2e` counts from the arrival to `finished` on the same clock.
`first_token` is `null` where it is not known; of several answers to one prompt it may be a neighbour's, some steps off.
`answer` counts those to one prompt that have as many tokens, from 1 on; an older plug-in tells none, and those alike
are then taken for repeats of one.
`queued`, `prefill` and `decode` are seconds of the engine core's monotonic clock, `null` where that vLLM has none.
"""

import math
from typing import ClassVar, TypeVar

import msgspec
from msgspec import Struct

from jouled.api import EngineHint, MalformedBodyError, Received, ReceivedRequest, Refusals, Rejected
from jouled.model.requests import Outcome, RequestEvent
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds
from jouled_collectors.requests import json_body
from jouled_collectors.requests.checks import RefusedError, check_request
from jouled_collectors.requests.vllm_span import scheduled_ns

T = TypeVar("T")

VERSION = 1
MOST_LOST = 10_000_000
MOST_REQUESTS = 1_000
"""Of one datagram: a request takes some 200 bytes."""
_LONGEST_SECONDS = 30 * 86_400.0
_LATEST_SECONDS = 9.2e9
"""Year 2261, the last that nanoseconds in 64 bits reach."""

_OUTCOMES = {"abort": Outcome.CANCELLED, "error": Outcome.FAILED}  # others: stop, length, repetition


class _Lost(Struct, frozen=True):
    unsent: int = 0
    fault: int = 0
    no_id: int = 0


class _Datagram(Struct, kw_only=True):
    version: int
    service_name: str = ""
    lost: _Lost = _Lost()
    requests: list[msgspec.Raw] = []


class _Finished(Struct, kw_only=True):
    id: str
    finished: float
    first_token: float | None = None
    e2e: float
    queued: float | None = None
    prefill: float | None = None
    decode: float | None = None
    prompt_tokens: int
    cached_tokens: int | None = None
    generation_tokens: int
    preemptions: int = 0
    reason: str = ""
    answer: int = 1


class VllmDatagramReceiver:
    """Takes finished requests from vLLM's stat-logger plug-in; one that is wrong is refused alone."""

    name: ClassVar[str] = "vllm_plugin"
    socket_name: ClassVar[str] = "vllm.sock"

    def decode(self, datagram: bytes) -> Received:
        """Read one datagram. Whose engine it is, the runtime knows by the sender's process.

        Raises `MalformedBodyError`. What the plug-in lost is among the refused: `plugin_unsent` (the daemon was away
        for too long), `plugin_fault` (this vLLM tells it in another form), `plugin_no_id`.
        """
        told = json_body.decode(datagram, _Datagram)
        if told.version != VERSION:
            raise MalformedBodyError(
                f"version {told.version} of the plug-in's datagrams is not known here", "$.version"
            )
        if len(told.requests) > MOST_REQUESTS:
            raise MalformedBodyError(f"more than {MOST_REQUESTS} requests in one datagram", "$.requests")
        hint = EngineHint(engine_type="vllm", service_name=told.service_name)
        requests = []
        refusals = Refusals(more=_lost(told.lost))
        for index, record in enumerate(told.requests):
            position = f"requests[{index}]"
            try:
                event = _event(_decode(record, _Finished))
                check_request(event)
                requests.append(ReceivedRequest(event=event, hint=hint, position=position))
            except RefusedError as error:
                refusals.add(Rejected(position, error.reason, str(error)))
        return Received(requests=requests, rejected=refusals.kept, more_rejected=refusals.more)


def _lost(lost: _Lost) -> dict[str, int]:
    reasons = {"plugin_unsent": lost.unsent, "plugin_fault": lost.fault, "plugin_no_id": lost.no_id}
    if not all(0 <= count <= MOST_LOST for count in reasons.values()):
        raise MalformedBodyError(f"not in 0..{MOST_LOST}", "$.lost")
    return {reason: count for reason, count in reasons.items() if count}


def _event(told: _Finished) -> RequestEvent:
    """Place the moments: see `vllm_span` for the two clocks. Without a token the prefill lasted to the end."""
    last_token_ns = _unix_ns(told.finished, "finished")
    arrival_ns = last_token_ns - nanoseconds(_within(told.e2e, "e2e", _LONGEST_SECONDS))
    first_token_ns = max(arrival_ns, _first_token_ns(told, last_token_ns)) if told.generation_tokens else last_token_ns
    cached = told.cached_tokens
    return RequestEvent(
        engine="",
        id=told.id,
        arrival_ns=arrival_ns,
        scheduled_ns=scheduled_ns(
            arrival_ns, first_token_ns, _engine_seconds(told.queued, "queued"), _engine_seconds(told.prefill, "prefill")
        ),
        first_token_ns=first_token_ns,
        last_token_ns=last_token_ns,
        prompt_tokens=told.prompt_tokens,
        # vLLM's -1 is a request that was never scheduled.
        cached_prompt_tokens=cached if cached is None or cached >= 0 else None,
        generation_tokens=told.generation_tokens,
        outcome=_OUTCOMES.get(told.reason, Outcome.COMPLETED),
        preemptions=told.preemptions,
        answer=told.answer,
    )


def _first_token_ns(told: _Finished, last_token_ns: int) -> int:
    """As told, else counted back by the core's decode time.

    That is off by how much longer the way from core to front end took for the last token than for the first: 0.45 ms in
    the sample, half a second on a machine with more to do than it can.
    """
    if told.first_token is not None:
        return min(_unix_ns(told.first_token, "first_token"), last_token_ns)
    return last_token_ns - nanoseconds(_engine_seconds(told.decode, "decode") or 0.0)


def _unix_ns(seconds: float, field: str) -> int:
    """A moment; whole seconds apart, as the product with 10⁹ is known to 128 ns only."""
    whole = int(_within(seconds, field, _LATEST_SECONDS))
    return NANOSECONDS_PER_SECOND * whole + nanoseconds(seconds - whole)


def _within(seconds: float, field: str, longest: float) -> float:
    if not math.isfinite(seconds) or not 0 <= seconds <= longest:
        raise RefusedError("bad_latency", f"not in 0..{longest:.0f} - at `$.{field}`")
    return seconds


def _engine_seconds(seconds: float | None, field: str) -> float | None:
    """A duration of the engine core; a negative one counts as absent: of two moments one never came, and is 0."""
    return None if seconds is None or seconds < 0 else _within(seconds, field, _LONGEST_SECONDS)


def _decode(record: msgspec.Raw, expected: type[T]) -> T:
    try:
        return msgspec.json.decode(record, type=expected)
    except (ValueError, RecursionError) as error:
        raise RefusedError("wrong_type", str(error)) from None

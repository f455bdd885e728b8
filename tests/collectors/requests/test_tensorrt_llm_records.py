"""TensorRT-LLM's drained records: clocks, estimated tokens, and everything that can be wrong with one.

Those in the fixture were built by the methods of `openai_server.py`, those here are like them; no server was met.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import MalformedBodyError, PageRead, Received, TooManyRecordsError
from jouled.model.requests import RequestEvent
from jouled_collectors.requests import json_body
from jouled_collectors.requests.tensorrt_llm_records import TensorrtLlmRecordsReceiver, TensorrtLlmRecordsSettings

PRINTED = Path(__file__).parents[2] / "fixtures/requests/tensorrt-llm-4bc58bc-perf-metrics.json"
SECOND = 1_000_000_000
NOW_UNIX_NS = 1_795_000_000 * SECOND
UPTIME_SECONDS = 5_000
READ = PageRead(engine="trt", unix_ns=NOW_UNIX_NS, steady_ns=UPTIME_SECONDS * SECOND)
SETTINGS = TensorrtLlmRecordsSettings(own=True)
RECEIVER = TensorrtLlmRecordsReceiver()


def record(**changes: Any) -> dict[str, Any]:
    """A request that arrived 10 s before the read, ended 5 s later, took three blocks and 100 iterations."""
    timing = {
        "server_arrival_time": UPTIME_SECONDS - 10.0,
        "arrival_time": UPTIME_SECONDS - 9.99,
        "first_scheduled_time": UPTIME_SECONDS - 9.9,
        "first_token_time": UPTIME_SECONDS - 9.5,
        "server_first_token_time": UPTIME_SECONDS - 9.49,
        "last_token_time": UPTIME_SECONDS - 5.0,
    }
    blocks = {
        "num_total_allocated_blocks": 3,
        "num_new_allocated_blocks": 2,
        "num_reused_blocks": 1,
        "num_missed_blocks": 2,
    }
    metrics = {"first_iter": 1000, "last_iter": 1099, "timing_metrics": timing, "kv_cache_metrics": blocks}
    for part in (timing, blocks, metrics):
        part.update({key: value for key, value in changes.items() if key in part})
        for key in [key for key, value in part.items() if value is ...]:
            del part[key]
    metrics |= {key: changes[key] for key in ("speculative_decoding",) if key in changes}
    return {"request_id": changes.get("request_id", 7), "perf_metrics": metrics}


def decode(*records: object, settings: TensorrtLlmRecordsSettings = SETTINGS) -> Received:
    return RECEIVER.decode_page(json.dumps(records).encode(), READ, settings)


def event_of(**changes: Any) -> RequestEvent:
    (received,) = decode(record(**changes)).requests
    assert isinstance(received.event, RequestEvent)
    return received.event


def seconds_ago(unix_ns: int | None) -> float:
    assert unix_ns is not None
    return (NOW_UNIX_NS - unix_ns) / SECOND


def test_the_records_that_its_own_code_built() -> None:
    """Drafts, blocks, a transfer of the cache; of the request that never had a token no time is told."""
    received = RECEIVER.decode_page(PRINTED.read_bytes(), READ, SETTINGS)
    events = [each.event for each in received.requests if isinstance(each.event, RequestEvent)]
    told = [(event.id, event.generation_tokens, event.prompt_tokens, event.cached_prompt_tokens) for event in events]
    assert told == [
        ("7", 100, 3 * 32 - 16, 32),
        ("8", 40 + 25, 4 * 32 - 16, 0),
        ("9", 90, 3 * 32 - 16, 0),
    ]
    assert [seconds_ago(moment) for moment in (events[0].arrival_ns, events[0].scheduled_ns)] == pytest.approx(
        [10.01, 9.9], abs=1e-6
    )
    assert [seconds_ago(moment) for moment in (events[0].first_token_ns, events[0].last_token_ns)] == pytest.approx(
        [9.5, 5.0], abs=1e-6
    )
    assert [(refused.position, refused.reason) for refused in received.rejected] == [("[3]", "bad_time")]


def test_steady_seconds_become_wall_time() -> None:
    event = event_of()
    assert seconds_ago(event.arrival_ns) == pytest.approx(10.0, abs=1e-6)
    assert seconds_ago(event.scheduled_ns) == pytest.approx(9.9, abs=1e-6)
    assert seconds_ago(event.first_token_ns) == pytest.approx(9.5, abs=1e-6)
    assert seconds_ago(event.last_token_ns) == pytest.approx(5.0, abs=1e-6)


def test_without_the_servers_own_arrival_the_executors_counts() -> None:
    assert seconds_ago(event_of(server_arrival_time=None).arrival_ns) == pytest.approx(9.99, abs=1e-6)


def test_tokens_are_estimated_from_iterations_and_blocks() -> None:
    event = event_of()
    assert event.generation_tokens == 100
    assert (event.prompt_tokens, event.cached_prompt_tokens) == (3 * 32 - 16, 32)


def test_accepted_drafts_are_tokens_beside_the_iterations() -> None:
    drafts = {"acceptance_rate": 0.5, "total_accepted_draft_tokens": 40, "total_draft_tokens": 80}
    assert event_of(speculative_decoding=drafts).generation_tokens == 140


def test_the_size_of_a_block_is_a_setting() -> None:
    settings = TensorrtLlmRecordsSettings(own=True, tokens_per_block=64)
    (received,) = decode(record(), settings=settings).requests
    assert isinstance(received.event, RequestEvent)
    assert received.event.prompt_tokens == 3 * 64 - 32


def test_without_reuse_the_allocated_blocks_count() -> None:
    event = event_of(num_reused_blocks=0, num_missed_blocks=0, num_total_allocated_blocks=5)
    assert (event.prompt_tokens, event.cached_prompt_tokens) == (5 * 32 - 16, 0)


def test_it_belongs_to_the_engine_that_was_asked() -> None:
    (received,) = decode(record()).requests
    assert received.hint.engine == "trt"
    assert received.event.id == "7"
    assert received.position == "[0]"


def test_no_token_at_all() -> None:
    event = event_of(first_token_time=0.0, first_scheduled_time=0.0)
    assert event.first_token_ns == event.last_token_ns
    assert event.scheduled_ns is None


def test_an_empty_queue() -> None:
    received = decode()
    assert not received.requests
    assert received.rejected_count == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"request_id": 1}, "missing_field"),
        ({"perf_metrics": {}, "request_id": 1}, "missing_field"),
        (7, "wrong_type"),
        (record(request_id=None), "wrong_type"),
        (record(request_id=""), "empty_id"),
        (record(last_token_time="soon"), "wrong_type"),
        (record(last_token_time=None), "bad_time"),
        (record(last_token_time=0.0), "bad_time"),
        (record(arrival_time=-4.0), "bad_time"),
        (record(arrival_time=1e30), "bad_time"),
        (record(last_token_time=UPTIME_SECONDS + 60.0), "foreign_clock"),
        (record(last_token_time=UPTIME_SECONDS - 20.0), "end_before_start"),
        (record(first_iter=...), "missing_field"),
        (record(first_iter=2000), "absurd_tokens"),
        (record(num_reused_blocks=-9), "absurd_tokens"),
        (record(num_missed_blocks=10**9), "absurd_tokens"),
    ],
)
def test_a_record_that_is_wrong_is_refused_alone(wrong: object, reason: str) -> None:
    received = decode(record(request_id=1), wrong, record(request_id=2))
    assert [each.event.id for each in received.requests] == ["1", "2"]
    (rejected,) = received.rejected
    assert (rejected.position, rejected.reason) == ("[1]", reason)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"null", b"[1", b'{"detail":"Not Found"}'])
def test_what_is_no_list_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        RECEIVER.decode_page(body, READ, SETTINGS)


def test_a_flood_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MOST_RECORDS", 10)
    with pytest.raises(TooManyRecordsError):
        decode(*range(20))


ANYTHING = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)


@given(
    st.dictionaries(
        st.sampled_from([
            "arrival_time", "last_token_time", "first_token_time", "first_scheduled_time", "server_arrival_time",
            "first_iter", "last_iter", "num_reused_blocks", "num_missed_blocks", "num_total_allocated_blocks",
            "speculative_decoding", "request_id",
        ]),
        ANYTHING,
        max_size=4,
    )
)  # fmt: skip
def test_whatever_stands_in_a_field(changes: dict[str, Any]) -> None:
    received = decode(record(**changes))
    assert len(received.requests) + received.rejected_count == 1
    for each in received.requests:
        assert isinstance(each.event, RequestEvent)
        assert 0 < each.event.arrival_ns <= each.event.first_token_ns <= each.event.last_token_ns
        assert each.event.last_token_ns <= NOW_UNIX_NS + SECOND


@given(st.binary(max_size=100))
def test_no_body_breaks_it(body: bytes) -> None:
    with contextlib.suppress(MalformedBodyError):
        RECEIVER.decode_page(body, READ, SETTINGS)

"""TensorRT-LLM's request files: lines that its own writer wrote, and everything that can be wrong with one."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.api import LinesRead, Received
from jouled.model.requests import RequestEvent
from jouled_collectors.requests.tensorrt_llm_files import TensorrtLlmFilesReceiver, TensorrtLlmFilesSettings

FIXTURE = Path(__file__).parents[2] / "fixtures/requests/tensorrt-llm-64815b5-perf-metrics.jsonl"
LINES = FIXTURE.read_bytes().splitlines()
SERVED = LINES[:-1]
SECOND = 1_000_000_000
NOW_UNIX_NS = 1_795_000_000 * SECOND
UPTIME_SECONDS = 5_000
ENDED_SECONDS = 4_995  # the last token of the fixture
RECEIVER = TensorrtLlmFilesReceiver()


def unix_ns(uptime_seconds: float) -> int:
    return NOW_UNIX_NS - round((UPTIME_SECONDS - uptime_seconds) * SECOND)


def read_at(uptime_seconds: float = UPTIME_SECONDS, *, written_ns: int = unix_ns(ENDED_SECONDS)) -> LinesRead:
    """Lines read then, of a file last written to as the fixture's last request ended."""
    return LinesRead(unix_ns=unix_ns(uptime_seconds), steady_ns=round(uptime_seconds * SECOND), written_ns=written_ns)


def decode(*lines: bytes, read: LinesRead | None = None, **keys: Any) -> Received:
    return RECEIVER.decode_lines(lines, read or read_at(), TensorrtLlmFilesSettings(directory="/x", **keys))


def events_of(received: Received) -> list[RequestEvent]:
    return [each.event for each in received.requests if isinstance(each.event, RequestEvent)]


def changed(number: int = 0, **changes: object) -> bytes:
    """A line of the fixture with other fields; `...` removes one. Times and iterations are found by their name."""
    line = json.loads(LINES[number])
    metrics = line["perf_metrics"]
    for part in (line, metrics, metrics["timing_metrics"], metrics["kv_cache_metrics"]):
        part.update({key: value for key, value in changes.items() if key in part})
        for key in [key for key, value in part.items() if value is ...]:
            del part[key]
    return json.dumps(line).encode()


def reason_of(line: bytes, read: LinesRead | None = None) -> str:
    received = decode(line, read=read)
    assert not received.requests
    (rejected,) = received.rejected
    assert rejected.position == "line 1"
    return rejected.reason


def test_the_lines_that_its_own_writer_wrote() -> None:
    """Drafts, steps, a transfer of the cache, two prompts of one answer; one that never had a token has no time."""
    received = decode(*LINES)
    told = [
        (event.id, event.generation_tokens, event.prompt_tokens, event.cached_prompt_tokens)
        for event in events_of(received)
    ]
    assert told == [
        ("7", 100, 3 * 32 - 16, 32),
        ("8", 40 + 25, 4 * 32 - 16, 0),
        ("9", 90, 3 * 32 - 16, 0),
        ("10", 60, 2 * 32 - 16, 0),
        ("11", 60, 2 * 32 - 16, 0),
    ]
    assert [(refused.position, refused.reason) for refused in received.rejected] == [("line 6", "bad_time")]


def test_steady_seconds_become_wall_time() -> None:
    event = events_of(decode(LINES[0]))[0]
    moments = (event.arrival_ns, event.scheduled_ns, event.first_token_ns, event.last_token_ns)
    assert moments == tuple(map(unix_ns, (4_989.99, 4_990.1, 4_990.5, 4_995.0)))


def test_a_line_that_is_read_a_day_later_has_the_same_times() -> None:
    assert decode(*LINES, read=read_at(UPTIME_SECONDS + 86_400)) == decode(*LINES)


def test_a_line_of_an_earlier_boot_is_refused() -> None:
    """After a reboot the steady clock begins anew, so that its seconds would lie after the file's last writing."""
    written_ns = unix_ns(ENDED_SECONDS)
    rebooted = LinesRead(unix_ns=written_ns + 7_200 * SECOND, steady_ns=7_100 * SECOND, written_ns=written_ns)
    assert {reason_of(line, rebooted) for line in SERVED} == {"foreign_clock"}


@pytest.mark.parametrize(("ahead_seconds", "is_taken"), [(0.9, True), (1.1, False), (300.0, False)])
def test_a_line_from_after_the_last_writing_is_another_clocks(ahead_seconds: float, is_taken: bool) -> None:
    read = read_at(written_ns=unix_ns(ENDED_SECONDS - ahead_seconds))
    assert bool(decode(LINES[0], read=read).requests) == is_taken


def test_a_file_dated_in_the_future_lets_no_future_in() -> None:
    read = read_at(4_000, written_ns=unix_ns(9_000))
    assert reason_of(LINES[0], read) == "foreign_clock"


def test_whose_it_is() -> None:
    assert decode(LINES[0]).requests[0].hint.engine_type == "tensorrt_llm"
    assert decode(LINES[0], engine="trt-8001").requests[0].hint.engine == "trt-8001"


def test_the_size_of_a_block_is_a_setting() -> None:
    assert events_of(decode(LINES[0], tokens_per_block=64))[0].prompt_tokens == 3 * 64 - 32


def test_a_line_without_status_is_taken() -> None:
    assert decode(changed(status=...)).requests


@pytest.mark.parametrize(
    ("name", "is_followed"),
    [
        ("perf_metrics-server-gpu1-4711-20261127T003600Z.jsonl", True),
        ("perf_metrics-context-gpu1-4711-20261127T003600Z.jsonl", True),
        ("perf_metrics-generation-gpu1-4712-20261127T003600Z.jsonl", True),
        ("perf_metrics-disagg-gpu1-4713-20261127T003600Z.jsonl", False),
        ("perf_metrics-server-gpu1-4711-20261127T003600Z.jsonl.gz", False),
        ("perf_metrics.json", False),
    ],
)
def test_which_files_are_followed(name: str, is_followed: bool) -> None:
    assert fnmatchcase(name, RECEIVER.pattern) == is_followed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINES[0][:60], "broken_json"),
        (LINES[0] + LINES[1], "broken_json"),
        (b"\x00\x00\x00", "broken_json"),
        (b'{"request_id": "\xff"}', "broken_json"),
        (b'{"x": ' + b"[" * 5_000, "broken_json"),
        (b"[]", "wrong_type"),
        (b"{}", "missing_field"),
        (b'{"ctx_server": "a", "gen_server": "b", "status": "complete"}', "missing_field"),
        (changed(status="cancelled"), "unknown_status"),
        (changed(status=7), "wrong_type"),
        (changed(request_id=...), "missing_field"),
        (changed(request_id=""), "empty_id"),
        (changed(request_id="x" * 300), "bad_text"),
        (changed(perf_metrics=None), "wrong_type"),
        (changed(arrival_time=None), "bad_time"),
        (changed(arrival_time=...), "missing_field"),
        (changed(last_token_time=-1), "bad_time"),
        (changed(last_token_time=4_000.0), "end_before_start"),
        (changed(last_token_time="soon"), "wrong_type"),
        (changed(first_iter=None), "missing_field"),
        (changed(first_iter=2_000), "absurd_tokens"),
        (changed(num_missed_blocks=10**9), "absurd_tokens"),
    ],
)
def test_a_line_that_is_wrong_is_refused_alone(line: bytes, reason: str) -> None:
    received = decode(LINES[0], line, LINES[1])
    assert [event.id for event in events_of(received)] == ["7", "8"]
    assert [refused.position for refused in received.rejected] == ["line 2"]
    assert reason_of(line) == reason


def test_no_text_is_repeated() -> None:
    secret = "PROMPT-TEXT-THAT-NOBODY-READS"
    lines = [changed(request_id=[secret]), changed(status=secret), changed(last_token_time=secret), secret.encode()]
    received = decode(*lines, f'{{"{secret}"'.encode())
    assert received.rejected_count == len(lines) + 1
    assert secret not in repr(received)


def test_empty_lines_are_nothing() -> None:
    received = decode(b"", b"  \r")
    assert not received.requests
    assert received.rejected_count == 0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_line_breaks_it(lines: list[bytes]) -> None:
    received = decode(*lines)
    assert len(received.requests) + received.rejected_count == sum(bool(line.strip()) for line in lines)


@settings(deadline=None)
@given(
    st.sampled_from(range(len(LINES))),
    st.dictionaries(
        st.sampled_from([
            "arrival_time", "last_token_time", "first_token_time", "first_scheduled_time", "server_arrival_time",
            "first_iter", "last_iter", "num_reused_blocks", "num_missed_blocks", "num_total_allocated_blocks",
            "request_id", "perf_metrics", "status",
        ]),
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        max_size=4,
    ),
)  # fmt: skip
def test_whatever_stands_in_a_field(number: int, changes: dict[str, object]) -> None:
    received = decode(changed(number, **changes))
    assert len(received.requests) + received.rejected_count == 1
    for event in events_of(received):
        assert 0 < event.arrival_ns <= event.first_token_ns <= event.last_token_ns
        assert event.last_token_ns <= unix_ns(ENDED_SECONDS) + SECOND

"""SGLang's request files: lines that its own exporter wrote, and everything that can be wrong with one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import FollowSettings, LinesRead, Received
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests.sglang_export import SglangExportReceiver

FIXTURE = Path(__file__).parents[2] / "fixtures/requests/sglang-0.5.23-export.jsonl"
LINES = FIXTURE.read_bytes().splitlines()
SECOND = 1_000_000_000
MICROSECOND = 1_000
READ = LinesRead(unix_ns=1, steady_ns=1, written_ns=1)
RECEIVER = SglangExportReceiver()


def decode(*lines: bytes, engine: str = "") -> Received:
    return RECEIVER.decode_lines(lines, READ, FollowSettings(directory="/x", engine=engine))


def events() -> dict[str, RequestEvent]:
    return {received.event.id: received.event for received in decode(*LINES).requests}


def changed(number: int = 0, **changes: object) -> bytes:
    line = json.loads(LINES[number])
    line |= {key: value for key, value in changes.items() if value is not ...}
    return json.dumps({key: value for key, value in line.items() if changes.get(key) is not ...}).encode()


def reason_of(line: bytes) -> str:
    received = decode(line)
    assert not received.requests
    (rejected,) = received.rejected
    assert rejected.position == "line 1"
    return rejected.reason


def test_all_lines_of_the_exporter_are_taken() -> None:
    received = decode(*LINES)
    assert received.rejected_count == 0
    assert [each.event.id for each in received.requests] == [
        "r-stop", "r-cached", "r-one", "r-abort", "r-fault", "r-queued",
    ]  # fmt: skip


def test_figures_and_times_of_a_request() -> None:
    event = events()["r-stop"]
    assert (event.prompt_tokens, event.cached_prompt_tokens, event.generation_tokens) == (512, 0, 64)
    assert event.first_token_ns - event.arrival_ns == pytest.approx(0.25 * SECOND, abs=MICROSECOND)
    assert event.last_token_ns - event.arrival_ns == pytest.approx(1.5 * SECOND, abs=MICROSECOND)
    assert event.scheduled_ns is not None
    assert event.scheduled_ns - event.arrival_ns == pytest.approx(0.012 * SECOND, abs=MICROSECOND)
    told = json.loads(LINES[0])
    assert event.last_token_ns == pytest.approx(told["request_finished_ts"] * SECOND, abs=MICROSECOND)


def test_cached_tokens_and_retractions() -> None:
    assert events()["r-cached"].cached_prompt_tokens == 448
    assert events()["r-abort"].preemptions == 1


def test_how_requests_ended() -> None:
    assert {name: event.outcome for name, event in events().items()} == {
        "r-stop": Outcome.COMPLETED,
        "r-cached": Outcome.COMPLETED,
        "r-one": Outcome.COMPLETED,
        "r-abort": Outcome.CANCELLED,
        "r-fault": Outcome.FAILED,
        "r-queued": Outcome.CANCELLED,
    }


def test_one_aborted_in_the_queue_computed_nothing() -> None:
    event = events()["r-queued"]
    assert (event.prompt_tokens, event.generation_tokens) == (0, 0)
    assert event.last_token_ns - event.arrival_ns == pytest.approx(2.0 * SECOND, abs=MICROSECOND)
    assert event.scheduled_ns == event.first_token_ns == event.last_token_ns


def test_whose_it_is() -> None:
    assert decode(LINES[0]).requests[0].hint.engine_type == "sglang"
    assert decode(LINES[0], engine="sglang-30001").requests[0].hint.engine == "sglang-30001"


def test_the_end_of_the_prefill_stands_in_for_the_first_token() -> None:
    (received,) = decode(changed(first_token_latency=...)).requests
    event = received.event
    assert isinstance(event, RequestEvent)
    assert event.first_token_ns - event.arrival_ns == pytest.approx(0.249 * SECOND, abs=MICROSECOND)


def test_an_embedding_generates_nothing() -> None:
    (received,) = decode(changed(completion_tokens=..., cached_tokens=..., first_token_latency=...)).requests
    event = received.event
    assert isinstance(event, RequestEvent)
    assert (event.generation_tokens, event.cached_prompt_tokens) == (0, None)
    assert event.first_token_ns == event.last_token_ns


def test_a_moment_outside_the_request_is_moved_into_it() -> None:
    (received,) = decode(changed(forward_entry_time=1.0, first_token_latency=9.0)).requests
    event = received.event
    assert isinstance(event, RequestEvent)
    assert event.scheduled_ns == event.arrival_ns
    assert event.first_token_ns == event.last_token_ns


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "r1"', "broken_json"),
        (b"\x00\x00\x00", "broken_json"),
        (b'{"id": "\xff"}', "broken_json"),
        (b'{"x": ' + b"[" * 5_000, "broken_json"),
        (b"[]", "wrong_type"),
        (b"{}", "missing_field"),
        (changed(id=...), "missing_field"),
        (changed(id=""), "empty_id"),
        (changed(id="x" * 300), "bad_text"),
        (changed(prompt_tokens=...), "missing_field"),
        (changed(prompt_tokens="512"), "wrong_type"),
        (changed(prompt_tokens=-1), "absurd_tokens"),
        (changed(completion_tokens=10**9), "absurd_tokens"),
        (changed(cached_tokens=513), "absurd_tokens"),
        (changed(num_retractions=-1), "absurd_count"),
        (changed(request_received_ts=...), "missing_field"),
        (changed(request_received_ts=0), "bad_time"),
        (changed(request_received_ts=1e30), "bad_time"),
        (changed(e2e_latency=...), "missing_field"),
        (changed(e2e_latency=-1), "bad_latency"),
        (changed(e2e_latency=1e9), "bad_latency"),
        (changed(e2e_latency=float("nan")), "broken_json"),
        (changed(first_token_latency=-1), "bad_latency"),
        (changed(first_token_latency=..., prefill_finished_time=...), "missing_field"),
        (changed(5, completion_tokens=3), "missing_field"),
    ],
)
def test_a_line_that_is_wrong_is_refused_alone(line: bytes, reason: str) -> None:
    received = decode(LINES[0], line, LINES[1])
    assert len(received.requests) == 2
    assert reason_of(line) == reason


def test_without_metrics_it_says_what_to_switch_on() -> None:
    (rejected,) = decode(changed(request_received_ts=...)).rejected
    assert "--enable-metrics" in rejected.message


def test_no_text_of_a_prompt_is_repeated() -> None:
    secret = "PROMPT-TEXT-THAT-NOBODY-READS"
    assert any(secret.encode() in line for line in LINES)
    lines = [*LINES, changed(prompt_tokens=secret), changed(request_parameters={secret: secret}), LINES[0][:200]]
    lines += [changed(finish_reason=secret), changed(id=[secret]), secret.encode(), changed(cached_tokens={secret: 1})]
    assert secret not in repr(decode(*lines))


def test_empty_lines_are_nothing() -> None:
    received = decode(b"", b"  \r")
    assert not received.requests
    assert received.rejected_count == 0


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_line_breaks_it(lines: list[bytes]) -> None:
    received = decode(*lines)
    wanted = sum(bool(line.strip()) for line in lines)
    assert len(received.requests) + received.rejected_count == wanted


@given(
    st.sampled_from(range(len(LINES))),
    st.dictionaries(
        st.sampled_from(sorted({key for line in LINES for key in json.loads(line)})),
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just({"type": "abort"}),
        max_size=4,
    ),
)
def test_whatever_stands_in_a_field(number: int, changes: dict[str, object]) -> None:
    received = decode(changed(number, **changes))
    assert len(received.requests) + received.rejected_count == 1
    for each in received.requests:
        assert isinstance(each.event, RequestEvent)
        assert 0 < each.event.arrival_ns <= each.event.first_token_ns <= each.event.last_token_ns

"""The Ollama receiver on answers as Ollama's documentation prints them, and on what strangers could send."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import MOST_RECORDS, EngineHint, HttpIngest, MalformedBodyError, Received, TooManyRecordsError
from jouled.model.requests import RequestEvent
from jouled_collectors.requests.ollama_response import OllamaReceiver

OLLAMA = OllamaReceiver()
LINES = "application/x-ndjson"
END_NS = 1_795_688_142_123_456_000  # 2026-11-26T10:15:42.123456Z
SECRET = "nobody reads this"
FINAL = {
    "model": "llama3.2",
    "created_at": "2026-11-26T10:15:42.123456Z",
    "response": SECRET,
    "context": [1, 2, 3],
    "done": True,
    "done_reason": "stop",
    "total_duration": 5_043_500_667,
    "load_duration": 5_025_959,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 325_953_000,
    "eval_count": 290,
    "eval_duration": 4_709_213_000,
}
PART = {"model": "llama3.2", "created_at": "2026-11-26T10:15:38Z", "response": SECRET, "done": False}


def body(*answers: object) -> bytes:
    return b"\n".join(json.dumps(answer).encode() for answer in answers)


def one(**changes: object) -> Received:
    return OLLAMA.decode(body({**FINAL, **changes}), "application/json")


def event_of(received: Received) -> RequestEvent:
    (request,) = received.requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def reason_of(received: Received) -> str:
    assert not received.requests
    (rejected,) = received.rejected
    return rejected.reason


def test_is_an_http_ingest_of_its_own_path() -> None:
    receiver: HttpIngest = OLLAMA
    assert (receiver.name, receiver.path) == ("ollama", "/api/v1/requests/ollama")
    assert isinstance(OLLAMA, HttpIngest)


def test_durations_become_times_before_the_end() -> None:
    received = one()
    assert event_of(received) == RequestEvent(
        engine="",
        id=f"ollama-{END_NS}-5043500667",
        arrival_ns=END_NS - 5_043_500_667,
        scheduled_ns=END_NS - 4_709_213_000 - 325_953_000,
        first_token_ns=END_NS - 4_709_213_000,
        last_token_ns=END_NS,
        prompt_tokens=26,
        generation_tokens=290,
    )
    assert received.requests[0].hint == EngineHint(engine_type="ollama")
    assert received.requests[0].position == "$"


def test_the_same_answer_twice_is_one_request() -> None:
    assert event_of(one()).id == event_of(one()).id


def test_the_sender_may_name_request_and_engine() -> None:
    received = one(id="req-7", engine="ollama-b")
    assert (event_of(received).id, received.requests[0].hint.engine) == ("req-7", "ollama-b")


def test_cached_tokens_are_part_of_the_prompt() -> None:
    assert event_of(one(prompt_eval_cached_count=20)).cached_prompt_tokens == 20
    assert event_of(one()).cached_prompt_tokens is None
    assert reason_of(one(prompt_eval_cached_count=27)) == "absurd_tokens"


def test_a_chat_of_which_only_the_last_line_counts() -> None:
    last = {key: value for key, value in FINAL.items() if key != "response"} | {
        "message": {"role": "assistant", "content": SECRET}
    }
    received = OLLAMA.decode(body(PART, PART, last) + b"\n\n", LINES)
    assert event_of(received).generation_tokens == 290
    assert received.ignored == 2
    assert received.requests[0].position == "line 3"


def test_an_answer_without_generated_tokens_ends_with_its_prefill() -> None:
    event = event_of(one(eval_count=0))
    assert (event.generation_tokens, event.first_token_ns) == (0, event.last_token_ns)


def test_a_prefill_by_another_clock_does_not_begin_before_the_arrival() -> None:
    event = event_of(one(prompt_eval_duration=335_000_000))
    assert event.scheduled_ns == event.arrival_ns


def test_a_prompt_wholly_from_the_cache_has_no_time_of_its_own() -> None:
    answer = {key: value for key, value in FINAL.items() if key != "prompt_eval_duration"}
    assert event_of(OLLAMA.decode(body(answer), "application/json")).scheduled_ns is None


@pytest.mark.parametrize(
    "answer",
    [
        PART,
        {**FINAL, "done": False},
        {"model": "m", "created_at": "2026-11-26T10:15:38Z", "response": "", "done": True, "done_reason": "load"},
        {**FINAL, "remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443"},
        {},
    ],
)
def test_what_is_no_request_of_this_node_is_ignored(answer: dict[str, object]) -> None:
    received = OLLAMA.decode(body(answer), "application/json")
    assert (received.requests, received.rejected, received.ignored) == ([], [], 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": "model runner has stopped"}, "failed_without_figures"),
        ({"created_at": None}, "missing_field"),
        ({"total_duration": 0}, "missing_field"),
        ({"created_at": "2026-11-26T10:15:42"}, "wrong_type"),
        ({"created_at": "yesterday"}, "wrong_type"),
        ({"created_at": "0001-01-01T00:00:00Z"}, "bad_time"),
        ({"total_duration": -1}, "bad_latency"),
        ({"total_duration": 10**30}, "bad_latency"),
        ({"eval_duration": -5}, "bad_latency"),
        ({"prompt_eval_duration": 10**18}, "bad_latency"),
        ({"eval_duration": 6_000_000_000}, "first_token_before_start"),
        ({"eval_count": -1}, "absurd_tokens"),
        ({"eval_count": 10**12}, "absurd_tokens"),
        ({"eval_count": 1.5}, "wrong_type"),
        ({"prompt_eval_count": "26"}, "wrong_type"),
        ({"done": "yes"}, "wrong_type"),
        ({"id": " "}, "empty_id"),
        ({"id": "x" * 300}, "bad_text"),
    ],
)
def test_one_that_is_wrong_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    assert reason_of(one(**changes)) == reason
    beside = OLLAMA.decode(body({**FINAL, **changes}, FINAL), LINES)
    assert event_of(beside).generation_tokens == 290
    assert beside.rejected[0].position == "line 1"


def test_no_text_is_kept_or_repeated() -> None:
    received = OLLAMA.decode(
        body(PART, FINAL, {"error": SECRET}, {**FINAL, "eval_count": -1}) + b'\n{"response": "' + SECRET.encode(), LINES
    )
    assert received.rejected_count == 3
    assert SECRET not in repr(received)
    assert SECRET.encode() not in OLLAMA.respond(received, LINES)[0]


def test_a_broken_document_is_refused_as_a_whole_and_a_broken_line_alone() -> None:
    with pytest.raises(MalformedBodyError):
        OLLAMA.decode(body(FINAL)[:-1], "application/json")
    received = OLLAMA.decode(body(FINAL)[:-1] + b"\n[]\n" + body(FINAL), LINES)
    assert [rejected.reason for rejected in received.rejected] == ["broken_json", "wrong_type"]
    assert event_of(received).generation_tokens == 290


def test_too_many_answers_are_refused() -> None:
    with pytest.raises(TooManyRecordsError):
        OLLAMA.decode((body(FINAL) + b"\n") * (MOST_RECORDS + 1), LINES)


def test_the_answer_says_what_became_of_it() -> None:
    received = OLLAMA.decode(body(PART, FINAL, {"error": "x"}), LINES)
    answer, headers = OLLAMA.respond(received, LINES)
    assert headers["Content-Type"] == "application/json"
    told = msgspec.json.decode(answer)
    assert (told["accepted"], told["ignored"], told["rejected"][0]["position"]) == (1, 1, "line 3")


@given(
    st.dictionaries(
        st.sampled_from(sorted(FINAL)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers()),
    )
)
def test_any_values_give_a_sound_request_or_a_refusal(changes: dict[str, object]) -> None:
    received = OLLAMA.decode(body({**FINAL, **changes}), LINES)
    assert len(received.requests) + received.rejected_count + received.ignored == 1
    for request in received.requests:
        assert isinstance(request.event, RequestEvent)
        assert request.event.arrival_ns <= request.event.first_token_ns <= request.event.last_token_ns
        assert request.event.generation_tokens >= 0


@given(st.binary(max_size=80), st.sampled_from([LINES, "application/json"]))
def test_any_bytes_are_counted_or_malformed(data: bytes, content_type: str) -> None:
    try:
        received = OLLAMA.decode(data, content_type)
    except MalformedBodyError:
        return
    assert not received.requests

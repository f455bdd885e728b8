"""The JSON and JSON lines receiver: what is taken, what is refused and where."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import (
    EngineHint,
    HttpIngest,
    MalformedBodyError,
    Received,
    ReceivedRequest,
    Rejected,
    TooManyRecordsError,
)
from jouled.model.requests import Outcome, RequestEvent, RequestStart
from jouled_collectors.requests.http_events import HttpEventsReceiver

EVENTS = HttpEventsReceiver()
JSON = "application/json"
LINES = "application/x-ndjson"
ARRIVAL = 1_795_423_132_928_712_704

PLAIN: dict[str, Any] = {
    "id": "chatcmpl-1",
    "arrival_ns": ARRIVAL,
    "first_token_ns": ARRIVAL + 65_000_000,
    "last_token_ns": ARRIVAL + 107_000_000,
    "prompt_tokens": 192,
    "generation_tokens": 8,
}
TAKEN = RequestEvent(
    engine="",
    id="chatcmpl-1",
    arrival_ns=ARRIVAL,
    first_token_ns=ARRIVAL + 65_000_000,
    last_token_ns=ARRIVAL + 107_000_000,
    prompt_tokens=192,
    generation_tokens=8,
)


def decode(record: object, content_type: str = JSON) -> Received:
    return EVENTS.decode(json.dumps(record).encode(), content_type)


def refusal(**changes: object) -> Rejected:
    """The one refusal of a record with these fields changed; `...` leaves a field out."""
    record = {key: value for key, value in (PLAIN | changes).items() if value is not ...}
    received = decode(record)
    assert not received.requests
    (rejected,) = received.rejected
    return rejected


def test_is_an_http_ingest() -> None:
    receiver: HttpIngest = EVENTS
    assert (receiver.name, receiver.path) == ("http_events", "/api/v1/requests")
    assert {JSON, LINES, "application/jsonl"} == set(receiver.content_types)


def test_one_object() -> None:
    assert decode(PLAIN) == Received(requests=[ReceivedRequest(event=TAKEN, position="$")], rejected=[])


def test_a_line_of_a_recording_with_every_field() -> None:
    record = PLAIN | {
        "type": "request",
        "engine": "vllm-8000",
        "scheduled_ns": ARRIVAL + 1_000_000,
        "cached_prompt_tokens": 128,
        "outcome": "cancelled",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "8e48fd1e77e22a25",
        "tenant": "Zürich north",
        "adapter": "legal",
        "preemptions": 2,
        "seen_ns": ARRIVAL + 200_000_000,
        "answer": 2,
    }
    expected = msgspec.structs.replace(
        TAKEN,
        engine="vllm-8000",
        scheduled_ns=ARRIVAL + 1_000_000,
        cached_prompt_tokens=128,
        outcome=Outcome.CANCELLED,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="8e48fd1e77e22a25",
        tenant="Zürich north",
        adapter="legal",
        preemptions=2,
    )
    (received,) = decode(record).requests
    assert received == ReceivedRequest(event=expected, hint=EngineHint(engine="vllm-8000"), position="$")


def test_durations_in_place_of_moments() -> None:
    record = PLAIN | {"ttft_seconds": 0.065, "e2e_seconds": 0.107}
    del record["first_token_ns"], record["last_token_ns"]
    assert decode(record).requests == [ReceivedRequest(event=TAKEN, position="$")]


def test_the_start_of_a_request() -> None:
    record = {"type": "request_start", "id": "a", "engine": "e", "arrival_ns": ARRIVAL, "seen_ns": ARRIVAL}
    (received,) = decode(record).requests
    assert received == ReceivedRequest(
        event=RequestStart(engine="e", id="a", arrival_ns=ARRIVAL), hint=EngineHint(engine="e"), position="$"
    )


def test_an_array_refuses_its_broken_elements_only() -> None:
    received = decode([PLAIN, PLAIN | {"prompt_tokens": "many"}, 5, PLAIN])
    assert len(received.requests) == 2
    assert [(each.position, each.reason) for each in received.rejected] == [
        ("[1]", "wrong_type"),
        ("[2]", "wrong_type"),
    ]


@pytest.mark.parametrize("content_type", [LINES, "application/jsonl", "Application/X-NDJSON; charset=utf-8"])
def test_lines_refuse_the_broken_ones_only(content_type: str) -> None:
    line = json.dumps(PLAIN).encode()
    body = b"\n".join([line + b"\r", b"", b'{"id": ', b'{"id": "\xff"}', b'{"x":' + b"[" * 100_000, line])
    received = EVENTS.decode(body, content_type)
    assert len(received.requests) == 2
    assert [(each.position, each.reason) for each in received.rejected] == [
        ("line 3", "broken_json"),
        ("line 4", "broken_json"),
        ("line 5", "broken_json"),
    ]


@pytest.mark.parametrize("body", [b"[]", b" [ ] "])
def test_an_empty_array_is_nothing(body: bytes) -> None:
    assert EVENTS.decode(body, JSON) == Received(requests=[], rejected=[])
    assert EVENTS.decode(b"\n\n", LINES) == Received(requests=[], rejected=[])


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b"", "byte 0 (line 1, column 1)"),
        (b'{"id":\n "a",,}', "byte 12 (line 2, column 6)"),
        (b"[{},\n", "byte 5 (line 2, column 1)"),
        (b"{} {}", "byte 4 (line 1, column 5)"),
        (b"[" * 100_000, "$"),
        (b"[NaN]", "byte 1 (line 1, column 2)"),
    ],
)
def test_a_broken_document_is_malformed_with_its_position(body: bytes, position: str) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        EVENTS.decode(body, "application/json; charset=utf-8")
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"prompt_tokens": "192"}, "wrong_type", "prompt_tokens"),
        ({"prompt_tokens": 192.5}, "wrong_type", "prompt_tokens"),
        ({"prompt_tokens": True}, "wrong_type", "prompt_tokens"),
        ({"prompt_tokens": None}, "wrong_type", "prompt_tokens"),
        ({"id": 7}, "wrong_type", "id"),
        ({"type": 7}, "wrong_type", "type"),
        ({"type": "header"}, "unknown_type", "type"),
        ({"outcome": "my secret text"}, "wrong_value", "outcome"),
        ({"id": ...}, "missing_field", "id"),
        ({"arrival_ns": ...}, "missing_field", "arrival_ns"),
        ({"generation_tokens": ...}, "missing_field", "generation_tokens"),
        ({"first_token_ns": ...}, "missing_field", "first_token_ns"),
        ({"last_token_ns": ...}, "missing_field", "last_token_ns"),
        ({"ttft_seconds": 0.065}, "contradiction", "ttft_seconds"),
        ({"first_token_ns": ..., "ttft_seconds": -1.0}, "bad_latency", "ttft_seconds"),
        ({"last_token_ns": ..., "e2e_seconds": 1e300}, "bad_latency", "e2e_seconds"),
        ({"prompt": "my secret text"}, "unknown_field", "prompt"),
        ({"messages": []}, "unknown_field", "messages"),
        ({"id": " "}, "empty_id", "id"),
        ({"id": "a" * 257}, "bad_text", "id"),
        ({"tenant": "a\nb"}, "bad_text", "tenant"),
        ({"prompt_tokens": -1}, "absurd_tokens", "prompt_tokens"),
        ({"generation_tokens": 10_000_001}, "absurd_tokens", "generation_tokens"),
        ({"generation_tokens": 10**40}, "absurd_tokens", "generation_tokens"),
        ({"cached_prompt_tokens": -1}, "absurd_tokens", "cached_prompt_tokens"),
        ({"cached_prompt_tokens": 193}, "absurd_tokens", "cached_prompt_tokens"),
        ({"preemptions": -1}, "absurd_count", "preemptions"),
        ({"arrival_ns": 0}, "bad_time", "arrival_ns"),
        ({"arrival_ns": 10**40}, "bad_time", "arrival_ns"),
        ({"last_token_ns": 10**40}, "bad_time", "last_token_ns"),
        ({"last_token_ns": ARRIVAL - 1}, "end_before_start", "last_token_ns"),
        ({"first_token_ns": ARRIVAL - 1}, "first_token_before_start", "first_token_ns"),
        ({"first_token_ns": ARRIVAL + 107_000_001}, "first_token_after_end", "first_token_ns"),
        ({"scheduled_ns": ARRIVAL - 1}, "scheduled_out_of_order", "scheduled_ns"),
        ({"scheduled_ns": ARRIVAL + 65_000_001}, "scheduled_out_of_order", "scheduled_ns"),
    ],
)
def test_refusals_name_the_reason_and_the_field(changes: dict[str, object], reason: str, field: str) -> None:
    rejected = refusal(**changes)
    assert (rejected.position, rejected.reason) == ("$", reason)
    assert f"`$.{field}`" in rejected.message
    assert "secret" not in rejected.message


def test_a_start_has_no_tokens() -> None:
    record = {"type": "request_start", "id": "a", "arrival_ns": ARRIVAL, "prompt_tokens": 3}
    assert decode(record).rejected[0].reason == "unknown_field"
    assert decode({"type": "request_start", "id": "", "arrival_ns": ARRIVAL}).rejected[0].reason == "empty_id"


def test_a_message_stays_short() -> None:
    assert len(refusal(**{"x" * 100_000: 1}).message) <= 300


def test_the_answer_tells_what_was_taken_and_what_was_not() -> None:
    body, headers = EVENTS.respond(decode([PLAIN, PLAIN | {"prompt_tokens": -1}]), JSON)
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body) == {
        "accepted": 1,
        "rejected": [
            {"position": "[1]", "reason": "absurd_tokens", "message": "not in 0..10000000 - at `$.prompt_tokens`"}
        ],
    }


@given(st.binary(max_size=80), st.sampled_from([JSON, LINES]))
def test_any_bytes_are_taken_refused_or_malformed(body: bytes, content_type: str) -> None:
    position = "none"
    try:
        received = EVENTS.decode(body, content_type)
    except MalformedBodyError as error:
        position = error.position
    else:
        json.loads(EVENTS.respond(received, content_type)[0])
    assert position


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
)


@given(st.dictionaries(st.sampled_from([*PLAIN, "type", "outcome", "ttft_seconds", "e2e_seconds", "x"]), SCALARS))
def test_any_field_may_be_wrong(changes: dict[str, Any]) -> None:
    received = decode(PLAIN | changes)
    assert len(received.requests) + len(received.rejected) == 1


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs", "Cf", "Co", "Cn"]), max_size=20)
COUNT = st.integers(0, 10_000_000)
PAUSE = st.integers(0, 10**13)


@st.composite
def events(draw: st.DrawFn) -> RequestEvent:
    arrival = draw(st.integers(1, 2**62))
    scheduled = arrival + draw(PAUSE)
    first = scheduled + draw(PAUSE)
    prompt = draw(COUNT)
    engine = draw(TEXT)
    return RequestEvent(
        engine=engine,
        id=draw(TEXT.filter(bool)),
        arrival_ns=arrival,
        scheduled_ns=draw(st.just(scheduled) | st.none()),
        first_token_ns=first,
        last_token_ns=first + draw(PAUSE),
        prompt_tokens=prompt,
        cached_prompt_tokens=draw(st.none() | st.integers(0, prompt)),
        generation_tokens=draw(COUNT),
        outcome=draw(st.sampled_from(Outcome)),
        tenant=draw(TEXT),
        adapter=draw(TEXT),
        preemptions=draw(st.integers(0, 100)),
    )


@given(st.lists(events(), max_size=4))
def test_events_survive_the_round_trip(sent: list[RequestEvent]) -> None:
    def at(position: str, first: int) -> list[ReceivedRequest]:
        return [
            ReceivedRequest(event=event, hint=EngineHint(engine=event.engine), position=position.format(number))
            for number, event in enumerate(sent, start=first)
        ]

    assert EVENTS.decode(msgspec.json.encode(sent), JSON).requests == at("[{}]", 0)
    lines = b"\n".join(msgspec.json.encode(event) for event in sent)
    assert EVENTS.decode(lines, LINES).requests == at("line {}", 1)


def peak_bytes(body: bytes, content_type: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(TooManyRecordsError, match="send them in parts"):
            EVENTS.decode(body, content_type)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_too_many_records_are_refused_before_they_are_built() -> None:
    assert peak_bytes(b"[" + b"0," * 200_000 + b"0]", JSON) < 1_000_000
    nested = b'["\\",[' + b"," * 300_000 + b'",' + b"[0],{}," * 25_000 + b"0]"
    assert peak_bytes(nested, JSON) < 1_000_000


def test_too_many_lines_are_refused_at_the_first_one_too_many() -> None:
    with pytest.raises(TooManyRecordsError):
        EVENTS.decode(b"0\n" * 50_001, LINES)
    assert EVENTS.decode(b"\n" * 200_000 + b"0\n" * 50_000, LINES).rejected_count == 50_000


@pytest.mark.parametrize("body", [b"[" + b"0," * 49_999 + b"0]", b'[{"id": [' + b"0," * 90_000 + b"0]}]"])
def test_the_limit_counts_records_only(body: bytes) -> None:
    received = EVENTS.decode(body, JSON)
    assert received.rejected_count in {50_000, 1}


def test_a_string_that_is_cut_off_is_looked_at_once() -> None:
    with pytest.raises(MalformedBodyError):
        EVENTS.decode(b"[" + b"0," * 10 + b'"' + b',\\"' * 2_000_000, JSON)


def test_of_many_refusals_a_hundred_are_named_and_the_others_counted() -> None:
    received = decode([0] * 250)
    assert len(received.rejected) == 100
    assert received.more_rejected == {"wrong_type": 150}
    answer = json.loads(EVENTS.respond(received, JSON)[0])
    assert (answer["accepted"], answer["more_rejected"]) == (0, {"wrong_type": 150})


@pytest.mark.parametrize(
    ("server", "address", "port"),
    [("gpu1:8000", "gpu1", 8000), ("10.0.0.7:80", "10.0.0.7", 80), ("[::1]:8000", "::1", 8000), ("::1:1", "::1", 1)],
)
def test_a_gateway_names_the_server_and_the_model(server: str, address: str, port: int) -> None:
    (received,) = decode({**PLAIN, "server": server, "model": "tiny"}).requests
    assert received.hint == EngineHint(address=address, port=port, model="tiny", may_be_elsewhere=True)
    (named,) = decode({**PLAIN, "server": server, "engine": "vllm-8000"}).requests
    assert named.hint == EngineHint(engine="vllm-8000")


@pytest.mark.parametrize(
    "server", ["gpu1", ":8000", "gpu1:", "gpu1:0", "gpu1:65536", "gpu1:x", "gpu1:٣", "gpu1:" + "1" * 5000]
)
def test_a_server_that_is_none_is_refused(server: str) -> None:
    (rejected,) = decode({**PLAIN, "server": server}).rejected
    assert rejected.reason == "bad_server"


def test_what_went_elsewhere_is_in_the_answer() -> None:
    answer, _ = EVENTS.respond(Received(ignored=3), JSON)
    assert json.loads(answer) == {"accepted": 0, "rejected": [], "ignored": 3}

"""The reader of the plug-in's datagrams: where a request's moments lie, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.api import DatagramIngest, EngineHint, MalformedBodyError
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests.vllm_datagram import MOST_LOST, VllmDatagramReceiver

RECEIVER = VllmDatagramReceiver()
END_SECONDS = 1_795_423_133.5
END_NS = 1_795_423_133_500_000_000
MILLISECOND = 1_000_000

# The example of the module's docstring, with durations that binary fractions hold exactly.
REQUEST = {
    "id": "chatcmpl-1",
    "finished": END_SECONDS,
    "first_token": END_SECONDS - 0.25,
    "e2e": 0.5,
    "queued": 0.125,
    "prefill": 0.125,
    "decode": 0.25,
    "prompt_tokens": 192,
    "cached_tokens": 128,
    "generation_tokens": 8,
    "preemptions": 2,
    "reason": "length",
}


def datagram(*requests: object, **fields: object) -> bytes:
    return json.dumps({"version": 1, "service_name": "vllm-8000", "requests": requests} | fields).encode()


def event_of(**changed: Any) -> RequestEvent:
    received = RECEIVER.decode(datagram(REQUEST | changed))
    assert not received.rejected
    [request] = received.requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def reasons(*requests: object) -> list[str]:
    return [refused.reason for refused in RECEIVER.decode(datagram(*requests)).rejected]


def test_it_is_a_datagram_ingest() -> None:
    assert isinstance(RECEIVER, DatagramIngest)


def test_a_request_lies_where_the_front_end_saw_it() -> None:
    assert event_of() == RequestEvent(
        engine="",
        id="chatcmpl-1",
        arrival_ns=END_NS - 500 * MILLISECOND,
        scheduled_ns=END_NS - 375 * MILLISECOND,
        first_token_ns=END_NS - 250 * MILLISECOND,
        last_token_ns=END_NS,
        prompt_tokens=192,
        cached_prompt_tokens=128,
        generation_tokens=8,
        outcome=Outcome.COMPLETED,
        preemptions=2,
        answer=1,
    )


def test_whose_it_is_goes_by_the_service_name() -> None:
    [request] = RECEIVER.decode(datagram(REQUEST)).requests
    assert request.hint == EngineHint(engine_type="vllm", service_name="vllm-8000")


@pytest.mark.parametrize(
    ("changed", "scheduled_ms", "first_token_ms"),
    [
        ({"queued": 0.0}, -375, -250),  # the front end's work came before the queue
        ({"prefill": 0.0625}, -312.5, -250),
        ({"queued": None}, -375, -250),
        ({"prefill": None}, -375, -250),
        ({"queued": None, "prefill": None}, None, -250),
        ({"queued": -3.0, "prefill": -7.0}, None, -250),  # it was never scheduled
        ({"prefill": 9.0}, -375, -250),
        ({"queued": 9.0}, -250, -250),
        ({"first_token": END_SECONDS - 0.125}, -250, -125),
        ({"first_token": END_SECONDS - 9}, -500, -500),  # no further back than the arrival
        ({"first_token": END_SECONDS + 9}, -125, 0),
        ({"first_token": None}, -375, -250),
        ({"first_token": None, "decode": None}, -125, 0),
        ({"first_token": None, "decode": 9.0}, -500, -500),
        ({"first_token": None, "generation_tokens": 1, "decode": 0.0}, -125, 0),
        ({"generation_tokens": 0}, -125, 0),
    ],
)
def test_moments_that_are_missing_or_contradict_each_other(
    changed: dict[str, object], scheduled_ms: float | None, first_token_ms: float
) -> None:
    event = event_of(**changed)
    scheduled = None if scheduled_ms is None else END_NS + round(scheduled_ms * MILLISECOND)
    assert (event.scheduled_ns, event.first_token_ns) == (scheduled, END_NS + round(first_token_ms * MILLISECOND))


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("stop", "completed"), ("abort", "cancelled"), ("error", "failed"), ("", "completed"), ("later", "completed")],
)
def test_outcomes(reason: str, outcome: str) -> None:
    assert event_of(reason=reason).outcome == outcome


def test_a_negative_count_of_cached_tokens_is_none_at_all() -> None:
    assert event_of(cached_tokens=-1).cached_prompt_tokens is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"id": ""}, "empty_id"),
        ({"id": "x" * 257}, "bad_text"),
        ({"id": "a\nb"}, "bad_text"),
        ({"id": 7}, "wrong_type"),
        ({"finished": None}, "wrong_type"),
        ({"finished": -1.0}, "bad_latency"),
        ({"finished": 1e300}, "bad_latency"),
        ({"finished": 0.25}, "bad_time"),
        ({"e2e": -0.001}, "bad_latency"),
        ({"e2e": 1e9}, "bad_latency"),
        ({"first_token": -1.0}, "bad_latency"),
        ({"first_token": None, "decode": 1e9}, "bad_latency"),
        ({"queued": 1e300}, "bad_latency"),
        ({"prompt_tokens": -1}, "absurd_tokens"),
        ({"generation_tokens": 10**12}, "absurd_tokens"),
        ({"generation_tokens": 1.5}, "wrong_type"),
        ({"cached_tokens": 193}, "absurd_tokens"),
        ({"preemptions": -1}, "absurd_count"),
        ({"answer": -1}, "absurd_count"),
        ({"answer": 2**63}, "absurd_count"),
        ({"answer": None}, "wrong_type"),
    ],
)
def test_a_request_that_is_wrong_is_refused_alone(changed: dict[str, object], reason: str) -> None:
    received = RECEIVER.decode(datagram(REQUEST, REQUEST | changed, REQUEST))
    assert [(refused.position, refused.reason) for refused in received.rejected] == [("requests[1]", reason)]
    assert len(received.requests) == 2


@pytest.mark.parametrize("record", [[], 7, None, "text", {}])
def test_a_request_that_is_none_is_refused_alone(record: object) -> None:
    assert reasons(REQUEST, record) == ["wrong_type"]


def test_what_a_later_plugin_adds_is_passed_over() -> None:
    received = RECEIVER.decode(datagram(REQUEST | {"later": [1]}, later={}, lost={"unsent": 1, "later": 2}))
    assert len(received.requests) == 1
    assert not received.rejected


def test_what_the_plugin_lost_is_counted_by_reason() -> None:
    received = RECEIVER.decode(datagram(lost={"unsent": 3, "fault": 2, "no_id": 1}))
    assert received.more_rejected == {"plugin_unsent": 3, "plugin_fault": 2, "plugin_no_id": 1}
    assert received.rejected_count == 6


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "truncated"),
        (b"{}", "missing required field `version`"),
        (b"[]", "Expected `object`"),
        (b'{"version": 1, "requests": [', "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 50_000, "Expected `object`"),
        (b'{"version": 1, "requests": [' + b"[" * 50_000, "nested too deeply"),
        (datagram(version=2), "version 2"),
        (datagram(version="1"), "Expected `int`"),
        (datagram(lost={"unsent": -1}), "not in 0"),
        (datagram(lost={"fault": MOST_LOST + 1}), "not in 0"),
    ],
)
def test_a_datagram_that_is_wrong_as_a_whole(body: bytes, message: str) -> None:
    with pytest.raises(MalformedBodyError, match=message):
        RECEIVER.decode(body)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_it(body: bytes) -> None:
    try:
        RECEIVER.decode(body)
    except MalformedBodyError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from([*REQUEST]), JSON).map(lambda changed: REQUEST | changed), max_size=4))
def test_every_record_is_taken_in_order_or_refused(records: list[dict[str, object]]) -> None:
    try:
        received = RECEIVER.decode(datagram(*records))
    except MalformedBodyError:  # Python writes NaN, which is no JSON
        return
    assert len(received.requests) + received.rejected_count == len(records)
    for request in received.requests:
        event = request.event
        assert isinstance(event, RequestEvent)
        assert event.arrival_ns <= event.first_token_ns <= event.last_token_ns
        assert event.scheduled_ns is None or event.arrival_ns <= event.scheduled_ns <= event.first_token_ns


def test_a_datagram_with_more_records_than_any_engine_sends_is_refused_whole() -> None:
    with pytest.raises(MalformedBodyError, match="more than 1000"):
        RECEIVER.decode(b'{"version":1,"requests":[' + b",".join([b"1"] * 25_000) + b"]}")

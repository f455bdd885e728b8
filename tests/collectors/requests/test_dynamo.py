"""Dynamo's spans: recorded ones of a live disaggregated 1.6.1, and made-up ones by real exporters' rules."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouled.api import EngineHint, JoinsParts, Received, ReceivedRequest
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests.dynamo_join import FRONTEND_NS, WORKERS_NS, DynamoJoin
from jouled_collectors.requests.dynamo_span import Asked, Worked
from jouled_collectors.requests.otlp import OtlpReceiver

BODIES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "fixtures/requests/dynamo-1.6.1-spans.jsonl").read_text().splitlines()
]
PREFILL, DECODE = f"{10148477148286663518:x}", f"{5302546517873382883:x}"
START_NS = 1_795_425_538_483_677_170
MILLISECOND = 1_000_000


def body(*spans: Mapping[str, Any], service: str = "fe") -> bytes:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}).encode()


def span(name: str, start_ms: float, end_ms: float, **attributes: object) -> dict[str, Any]:
    return {
        "name": name,
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "1855ab4eb2dabb2e",
        "startTimeUnixNano": START_NS + round(start_ms * MILLISECOND),
        "endTimeUnixNano": START_NS + round(end_ms * MILLISECOND),
        "attributes": [{"key": key, "value": {"stringValue": str(value)}} for key, value in attributes.items()],
    }


def asked(request_id: str = "r", **changes: object) -> dict[str, Any]:
    told: dict[str, object] = {
        "request_id": request_id,
        "uri": "/v1/chat/completions",
        "input_tokens": 700,
        "output_tokens": 20,
        "ttft_ms": "28.20",
        "prefill_worker_id": 1,
        "decode_worker_id": 2,
        "request.outcome": "success",
    }
    wanted = {key: value for key, value in {**told, **changes}.items() if value is not None}
    return span("http-request", 0, 139, **wanted)


def worked(instance: int, start_ms: float, end_ms: float, request_id: str = "r") -> dict[str, Any]:
    return span(
        "handle_payload", start_ms, end_ms, request_id=request_id, endpoint="generate", instance_id=str(instance)
    )


def receive(receiver: OtlpReceiver, *bodies: bytes) -> Received:
    received = Received()
    for each in bodies:
        received = receiver.decode(each, "application/json")
    return received


def events(received: Received) -> list[RequestEvent]:
    found = [request.event for request in received.requests]
    assert all(isinstance(event, RequestEvent) for event in found)
    return found  # type: ignore[return-value]


def hints(received: Received) -> list[EngineHint]:
    return [request.hint for request in received.requests]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_recorded_request_becomes_two_halves_whatever_body_comes_last(order: tuple[int, ...]) -> None:
    receiver = OtlpReceiver()
    *early, last = [receive(receiver, json.dumps(BODIES[index]).encode()) for index in order]
    assert [received.requests for received in early] == [[], []]
    prefill, decode = events(last)
    assert hints(last) == [
        EngineHint(engine_type="dynamo", role="prefill", instance=PREFILL, service_name="pre"),
        EngineHint(engine_type="dynamo", role="decode", instance=DECODE, service_name="dec"),
    ]
    for half in (prefill, decode):
        assert half.id == "chatcmpl-bfd168d7-df3d-42ef-85c5-8526a72c9277"
        assert half.trace_id == "0af7651916cd43dd8448eb211c80319c"
        assert half.span_id == base64.b64decode("GFWrTrLadu4=").hex()
        assert (half.prompt_tokens, half.generation_tokens, half.cached_prompt_tokens) == (28, 20, None)
        assert (half.arrival_ns, half.last_token_ns) == (START_NS, START_NS + 138_867_038)
    assert (prefill.scheduled_ns, prefill.first_token_ns) == (1795425538485228688, 1795425538485228688 + 19_229_705)
    assert (decode.scheduled_ns, decode.first_token_ns) == (1795425538505433888, START_NS + 28_200_000)


def test_it_is_a_receiver_that_joins_parts() -> None:
    assert isinstance(OtlpReceiver(), JoinsParts)


def test_an_aggregated_request_is_one_event() -> None:
    receiver = OtlpReceiver()
    for told in ({"prefill_worker_id": None}, {"prefill_worker_id": 2}):
        received = receive(receiver, body(worked(2, 1, 138), service="worker"), body(asked(**told)))
        assert hints(received) == [EngineHint(engine_type="dynamo", instance="2", service_name="worker")]
        assert events(received)[0].scheduled_ns == START_NS + MILLISECOND


def test_a_frontend_that_names_no_worker_needs_none() -> None:
    received = receive(OtlpReceiver(), body(asked(prefill_worker_id=None, decode_worker_id=None)))
    assert hints(received) == [EngineHint(engine_type="dynamo")]


def test_two_requests_of_one_trace_are_two() -> None:
    receiver = OtlpReceiver()
    spans = [worked(1, 1, 20, "a"), worked(2, 21, 138, "b"), worked(2, 21, 138, "a"), worked(1, 1, 20, "b")]
    receive(receiver, body(*spans))
    assert [event.id for event in events(receive(receiver, body(asked("a"), asked("b"))))] == [
        *["chatcmpl-a"] * 2,
        *["chatcmpl-b"] * 2,
    ]


@pytest.mark.parametrize(
    ("changes", "prefill", "decode"),
    [
        ({}, Outcome.COMPLETED, Outcome.COMPLETED),
        ({"request.outcome": None}, Outcome.COMPLETED, Outcome.COMPLETED),
        ({"request.outcome": "cancelled"}, Outcome.COMPLETED, Outcome.CANCELLED),
        ({"request.outcome": "error"}, Outcome.COMPLETED, Outcome.FAILED),
        ({"request.outcome": "cancelled", "output_tokens": 0, "ttft_ms": None}, Outcome.COMPLETED, Outcome.CANCELLED),
    ],
)
def test_a_prefill_half_completed_once_there_was_a_token(
    changes: dict[str, object], prefill: Outcome, decode: Outcome
) -> None:
    receiver = OtlpReceiver()
    received = receive(receiver, body(worked(1, 1, 20), worked(2, 21, 138)), body(asked(**changes)))
    assert [event.outcome for event in events(received)] == [prefill, decode]


def test_clocks_that_differ_between_hosts_put_no_half_outside_its_request() -> None:
    receiver = OtlpReceiver()
    received = receive(receiver, body(worked(1, -500, -480), worked(2, 521, 638)), body(asked()))
    for event in events(received):
        assert event.scheduled_ns is not None
        assert event.arrival_ns <= event.scheduled_ns <= event.first_token_ns <= event.last_token_ns


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"output_tokens": "many"}, "bad_attribute"),
        ({"output_tokens": "-1"}, "bad_attribute"),
        ({"output_tokens": "99999999"}, "absurd_count"),
        ({"output_tokens": "9" * 5000}, "bad_attribute"),
        ({"input_tokens": None}, "missing_attribute"),
        ({"ttft_ms": None}, "missing_attribute"),
        ({"ttft_ms": "soon"}, "bad_attribute"),
        ({"ttft_ms": "nan"}, "bad_latency"),
        ({"ttft_ms": "-1"}, "bad_latency"),
        ({"ttft_ms": "1e300"}, "bad_latency"),
        ({"decode_worker_id": "18446744073709551616"}, "absurd_count"),
        ({"request_id": " "}, "empty_id"),
        ({"request_id": "x" * 300}, "bad_text"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(changes: dict[str, object], reason: str) -> None:
    received = receive(OtlpReceiver(), body(asked(**changes)))
    [refused] = received.rejected
    assert (refused.position, refused.reason) == ("resourceSpans[0].scopeSpans[0].spans[0]", reason)


def test_other_spans_are_left_alone() -> None:
    others = [
        span("http-request", 0, 1, method="GET"),
        span("handle_payload", 0, 1, request_id="r", endpoint="worker_kv_query_source_6ba37bc392c3b"),
        span("handle_payload", 0, 1),
    ]
    received = receive(OtlpReceiver(), body(*others))
    assert (received.ignored, received.requests, received.rejected_count) == (3, [], 0)


# waiting


def test_a_request_whose_worker_says_nothing_is_told_with_the_frontends_times() -> None:
    receiver = OtlpReceiver()
    receive(receiver, body(worked(2, 21, 138), service="dec"), body(asked()))
    assert receiver.overdue(1).requests == []
    assert receiver.overdue(WORKERS_NS).requests == []
    late = receiver.overdue(WORKERS_NS + 1)
    prefill, decode = events(late)
    assert (prefill.scheduled_ns, prefill.first_token_ns) == (None, START_NS + 28_200_000)
    assert decode.scheduled_ns == START_NS + 21 * MILLISECOND
    assert [rejected.reason for rejected in late.rejected] == ["worker_span_missing"]
    assert receiver.overdue(10 * WORKERS_NS) == Received(requests=[], rejected=[])


def test_a_worker_whose_frontend_says_nothing_is_counted_when_given_up() -> None:
    receiver = OtlpReceiver()
    receive(receiver, body(worked(1, 1, 20)))
    receiver.overdue(1)
    assert receiver.overdue(FRONTEND_NS).rejected_count == 0
    given_up = receiver.overdue(FRONTEND_NS + 1)
    assert (given_up.requests, [rejected.reason for rejected in given_up.rejected]) == ([], ["no_frontend_span"])


@pytest.mark.parametrize("frontend_first", [True, False])
def test_a_request_whose_client_left_is_counted_by_its_halves(frontend_first: bool) -> None:
    receiver = OtlpReceiver()
    spans = [span("http-request", 0, 60, request_id="r", **{"request.outcome": "cancelled"})]
    spans += [worked(1, 1, 20), worked(2, 21, 60)]
    receive(receiver, *(body(each) for each in (spans if frontend_first else reversed(spans))))
    receiver.overdue(1)
    left = receiver.overdue(WORKERS_NS + 1)
    assert (left.requests, [rejected.reason for rejected in left.rejected]) == ([], ["no_tokens_told"] * 2)


def test_a_request_that_came_to_no_worker_is_no_loss() -> None:
    receiver = OtlpReceiver()
    receive(receiver, body(span("http-request", 0, 1, request_id="r", **{"request.outcome": "error"})))
    receiver.overdue(1)
    assert receiver.overdue(WORKERS_NS + 1).rejected_count == 0


def test_the_wait_for_workers_begins_with_the_frontends_word() -> None:
    """A prefill worker tells minutes before the request ends."""
    receiver = OtlpReceiver()
    receive(receiver, body(worked(1, 1, 20)))
    receiver.overdue(1)
    receive(receiver, body(asked()))
    assert receiver.overdue(FRONTEND_NS - 1).requests == []
    assert len(receiver.overdue(FRONTEND_NS - 1 + WORKERS_NS).requests) == 2


def test_the_oldest_make_room() -> None:
    join = DynamoJoin(most=2)
    for number in range(5):
        join.add(Worked(request_id=f"r{number}", instance="1", service_name="", start_ns=1, end_ns=2), "")
    assert join.overdue(1).rejected_count == 3
    assert join.overdue(FRONTEND_NS + 1).rejected_count == 2


@settings(max_examples=50)
@given(st.permutations([(request, part) for request in range(4) for part in range(3)]), st.sets(st.integers(0, 11)))
def test_every_request_is_told_once_with_all_its_halves_or_counted(
    order: list[tuple[int, int]], lost: set[int]
) -> None:
    join, told, refused = DynamoJoin(), list[ReceivedRequest](), 0
    left = [part for index, part in enumerate(order) if index not in lost]
    for request, part in left:
        told += join.add(part_of(f"r{request}", part), "")
    for now_ns in (1, WORKERS_NS + 1, FRONTEND_NS + 1):
        late = join.overdue(now_ns)
        told += late.requests
        refused += late.rejected_count
    asked_for = {request for request, part in left if part == 0}
    halves = [(request.event.id, request.hint.role) for request in told]
    assert sorted(halves) == sorted((f"r{request}", role) for request in asked_for for role in ("prefill", "decode"))
    orphans = [request for request, part in left if part and request not in asked_for]
    missing = sum(1 for request in asked_for for part in (1, 2) if (request, part) not in left)
    assert refused == missing + len(orphans)


def part_of(request_id: str, part: int) -> Asked | Worked:
    if part:
        return Worked(request_id=request_id, instance=str(part), service_name="", start_ns=1, end_ns=20)
    event = RequestEvent(
        engine="",
        id=request_id,
        arrival_ns=1,
        first_token_ns=30,
        last_token_ns=90,
        prompt_tokens=5,
        generation_tokens=3,
    )
    return Asked(request_id=request_id, event=event, prefill="1", decode="2")


@given(st.dictionaries(st.sampled_from(["request_id", "output_tokens", "ttft_ms", "decode_worker_id"]), st.text()))
def test_any_attributes_are_taken_or_refused(attributes: dict[str, str]) -> None:
    for made in (asked(**attributes), {**worked(1, 0, 1), "attributes": asked(**attributes)["attributes"]}):
        received = receive(OtlpReceiver(), body(made))
        assert len(received.requests) + received.rejected_count + received.ignored <= 1


def test_workers_without_end_of_one_request_take_no_memory_without_end() -> None:
    receiver = OtlpReceiver()
    received = receiver.decode(body(*(worked(number, 0, 1) for number in range(1, 41))), "application/json")
    assert [refused.reason for refused in received.rejected] == ["too_many_workers"] * 24
    assert receiver.overdue(1).rejected_count == 0
    assert receiver.overdue(1 + FRONTEND_NS).rejected_count == 16


def test_a_body_with_parts_that_are_held_is_no_refused_one() -> None:
    received = OtlpReceiver().decode(body(worked(1, 0, 1), worked(2, 1, 0)), "application/json")
    assert [refused.reason for refused in received.rejected] == ["end_before_start"]
    assert received.ignored == 1


def test_a_service_name_longer_than_any_name_is_not_held() -> None:
    receiver = OtlpReceiver()
    receiver.decode(body(worked(1, 0, 1), service="s" * 100_000), "application/json")
    told = receiver.decode(body(asked(prefill_worker_id=None, decode_worker_id=1)), "application/json")
    assert [request.hint.service_name for request in told.requests] == [""]

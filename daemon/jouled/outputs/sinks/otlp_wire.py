"""Pieces that all signals of OTLP have: attributes, resource, scope, and ids of traces.

https://opentelemetry.io/docs/specs/otlp/
"""

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

import jouled

TRACE_ID_BYTES, SPAN_ID_BYTES = 16, 8

M = TypeVar("M", bound=Message)

Scalar = str | bool | int | float


def attributes(values: Mapping[str, Scalar]) -> list[KeyValue]:
    """Attributes; an empty text is an absent value and left out."""
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items() if value != ""]


def resource(node: str) -> Resource:
    """Who sends: jouled on this node."""
    named = {"service.name": "jouled", "service.version": jouled.__version__, "host.name": node}
    return Resource(attributes=attributes(named))


def scope() -> InstrumentationScope:
    """What made the records."""
    return InstrumentationScope(name="jouled", version=jouled.__version__)


def id_bytes(text: str, size: int) -> bytes:
    """A trace or span id out of hexadecimal digits; empty where it is none (all zeros are invalid too)."""
    try:
        found = bytes.fromhex(text) if len(text) == 2 * size else b""
    except ValueError:
        return b""
    return found if any(found) else b""


def decoded(kind: type[M], answer: bytes) -> M:
    """An answer as its message; an empty one, which says that all is well, where a receiver sends something else."""
    try:
        return kind.FromString(answer)
    except DecodeError:
        return kind()


def _value(value: Scalar) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
    return AnyValue(double_value=value)

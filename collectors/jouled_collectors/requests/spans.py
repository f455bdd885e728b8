"""A span of a trace as both encodings of OTLP bring it, and what a body of spans held."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from jouled.api import Refusals

Value = str | int | float | bool | Sequence[str]


class Span(Struct, frozen=True, kw_only=True):
    """One span. Times are Unix nanoseconds, ids lower-case hex or empty.

    `attributes` and `resource` (those of the process that made the span) hold plain values and lists of strings.
    """

    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, Value]
    resource: Mapping[str, Value]


class SpanBatch(Struct, kw_only=True):
    """One body's spans of the wanted name, each with its position; how many bear another name; what is broken."""

    wanted: list[tuple[str, Span]] = field(default_factory=list)
    ignored: int = 0
    rejected: Refusals = field(default_factory=Refusals)


def position(resource: int, scope: int, span: int) -> str:
    """Where a span stands in an export request, counted from 0."""
    return f"resourceSpans[{resource}].scopeSpans[{scope}].spans[{span}]"

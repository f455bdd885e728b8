"""A span of a trace as both encodings of OTLP bring it, what a body of spans held, and who reads which spans."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from jouled.api import ReceivedRequest, Refusals

Value = str | int | float | bool | Sequence[str]

SERVICE_NAME = "service.name"
"""Of the resource: by convention the name of the engine, set by OTEL_SERVICE_NAME."""


class Span(Struct, frozen=True, kw_only=True):
    """One span. Times are Unix nanoseconds, ids lower-case hex or empty.

    `scope`: name of the library that made it. `attributes` and `resource` (those of the process that made the span)
    hold plain values and lists of strings, and of all there are only those that a reader asks for.
    """

    name: str
    scope: str
    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, Value]
    resource: Mapping[str, Value]


class SpanKind(Struct, frozen=True, kw_only=True):
    """Which spans a reader is shown, and what of them.

    names, prefixes: by their whole name or its beginning. attributes, resource: what is read of them; nothing else is
    taken out of a body, as prompts may stand there.
    """

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    attributes: frozenset[str]
    resource: frozenset[str] = frozenset({SERVICE_NAME})

    def wants(self, name: str) -> bool:
        """Whether it is shown spans of this name."""
        return name in self.names or name.startswith(self.prefixes)


class SpanReader(SpanKind, frozen=True, kw_only=True):
    """Who reads one kind of span.

    read: turns a span into a request; `None` is a span that tells of no request, or that is another's. It raises
    `RefusedError`.
    """

    read: Callable[[Span], ReceivedRequest | None]


class Wanted:
    """What some readers together want of a body."""

    def __init__(self, readers: Sequence[SpanKind]) -> None:
        self.attributes = frozenset[str]().union(*(reader.attributes for reader in readers))
        self.resource = frozenset[str]().union(*(reader.resource for reader in readers))
        self._names = frozenset[str]().union(*(reader.names for reader in readers))
        self._prefixes = tuple(prefix for reader in readers for prefix in reader.prefixes)

    def name(self, name: str) -> bool:
        """Whether any of them is shown spans of this name."""
        return name in self._names or name.startswith(self._prefixes)


class SpanBatch(Struct, kw_only=True):
    """One body's spans that are wanted, each with its position; how many are not; what is broken."""

    wanted: list[tuple[str, Span]] = field(default_factory=list)
    ignored: int = 0
    rejected: Refusals = field(default_factory=Refusals)


def position(resource: int, scope: int, span: int) -> str:
    """Where a span stands in an export request, counted from 0."""
    return f"resourceSpans[{resource}].scopeSpans[{scope}].spans[{span}]"

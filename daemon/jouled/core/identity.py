"""Which request events are taken: sound ones, each once."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

TOKENS_MAX = 10_000_000
DURATION_MAX_NS = nanoseconds(24 * 3600.0)
FUTURE_MAX_NS = nanoseconds(60.0)
SAME_ARRIVAL_NS = NANOSECONDS_PER_SECOND
"""A gateway may retry under one id: the same id with another arrival is another request (attribution.md section 4)."""
REMEMBER_NS = nanoseconds(1800.0)
REMEMBER_MAX = 500_000


class Admission:
    """Refuses unsound events and duplicates. Remembers half an hour of requests, half a million at most."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[tuple[str, str], list[tuple[int, int, int]]] = OrderedDict()
        self._by_span: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def refuse(self, event: RequestEvent, now_ns: int) -> str:
        """The reason to refuse an event, or an empty string."""
        return unsound(event, now_ns) or self._repeated(event)

    def has_ended(self, start: RequestStart) -> bool:
        """Whether the end of a request was told before its start."""
        seen = self._by_id.get((start.engine, start.id), ())
        return any(abs(arrival_ns - start.arrival_ns) <= SAME_ARRIVAL_NS for arrival_ns, *_ in seen)

    def remember(self, request: RequestEvent | Receipt) -> None:
        """A request was taken before a restart: it is not taken again. Times are core time."""
        content = content_of(request)
        entry = (request.arrival_ns, content, request.last_token_ns)
        self._by_id.setdefault((request.engine, request.id), []).append(entry)

    def _repeated(self, event: RequestEvent) -> str:
        content = content_of(event)
        seen_ns = max(event.seen_ns, event.last_token_ns)
        seen = self._by_id.setdefault((event.engine, event.id), [])
        for arrival_ns, known, _ in seen:
            if abs(arrival_ns - event.arrival_ns) <= SAME_ARRIVAL_NS:
                return "duplicate" if known == content else "conflict"
        if event.trace_id and event.span_id:
            span = self._by_span.setdefault((event.trace_id, event.span_id), (seen_ns, content))
            if span[1] != content:
                return "conflict"
        seen[:] = [entry for entry in seen if entry[2] > seen_ns - REMEMBER_NS]
        seen.append((event.arrival_ns, content, seen_ns))
        self._by_id.move_to_end((event.engine, event.id))
        return ""

    def forget_before(self, now_ns: int) -> None:
        """Forget requests that arrived longer ago than an event may be repeated."""
        limit_ns = now_ns - REMEMBER_NS
        while self._by_id and (len(self._by_id) > REMEMBER_MAX or _last(next(iter(self._by_id.values()))) < limit_ns):
            self._by_id.popitem(last=False)
        while self._by_span and (len(self._by_span) > REMEMBER_MAX or next(iter(self._by_span.values()))[0] < limit_ns):
            self._by_span.popitem(last=False)


def content_of(request: RequestEvent | Receipt) -> int:
    """A hash of what may not differ between two tellings of one request."""
    return hash((request.first_token_ns, request.last_token_ns, request.prompt_tokens, request.generation_tokens))


def _last(seen: list[tuple[int, int, int]]) -> int:
    return max((seen_ns for *_, seen_ns in seen), default=0)


class Waiting:
    """Requests that ended and are not final, for provisional receipts."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[RequestEvent]] = {}

    def add(self, event: RequestEvent) -> None:
        """A request has ended."""
        self._by_id.setdefault(event.id, []).append(event)

    def remove(self, event: RequestEvent) -> None:
        """A request is final."""
        left = [other for other in self._by_id.get(event.id, ()) if other is not event]
        if left:
            self._by_id[event.id] = left
        else:
            self._by_id.pop(event.id, None)

    def remove_engine(self, engine: str) -> None:
        """Requests of an engine will not become final."""
        for events in list(self._by_id.values()):
            for event in events:
                if event.engine == engine:
                    self.remove(event)

    def __iter__(self) -> Iterator[RequestEvent]:
        return (event for events in self._by_id.values() for event in events)

    def find(self, request_id: str) -> RequestEvent | None:
        """The newest one under this id."""
        events = self._by_id.get(request_id)
        return events[-1] if events else None

    def newest(self, count: int) -> list[RequestEvent]:
        """The last ones that ended."""
        return [events[-1] for events in islice(reversed(self._by_id.values()), count)][::-1]


def unsound(event: RequestEvent, now_ns: int) -> str:
    """What is wrong with an event's own figures, in a word; empty if nothing is."""
    tokens = (event.prompt_tokens, event.generation_tokens, event.cached_prompt_tokens or 0)
    faults = {
        "no_id": not event.id,
        "negative_tokens": min(*tokens, event.preemptions) < 0,
        "absurd_tokens": max(tokens) > TOKENS_MAX,
        "before_the_epoch": event.arrival_ns < 0,
        "end_before_start": event.last_token_ns < event.arrival_ns,
        "first_token_outside": not event.arrival_ns <= event.first_token_ns <= event.last_token_ns,
        "absurd_duration": event.last_token_ns - event.arrival_ns > DURATION_MAX_NS,
        "in_the_future": bool(now_ns) and event.last_token_ns > now_ns + FUTURE_MAX_NS,
    }
    return next((word for word, found in faults.items() if found), "")

"""Which request events are taken: sound ones, each once."""

from collections import OrderedDict

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
        self._by_id: OrderedDict[tuple[str, str], list[tuple[int, int]]] = OrderedDict()
        self._by_span: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def refuse(self, event: RequestEvent, now_ns: int) -> str:
        """The reason to refuse an event, or an empty string."""
        return unsound(event, now_ns) or self._repeated(event)

    def has_ended(self, start: RequestStart) -> bool:
        """Whether the end of a request was told before its start."""
        seen = self._by_id.get((start.engine, start.id), ())
        return any(abs(arrival_ns - start.arrival_ns) <= SAME_ARRIVAL_NS for arrival_ns, _ in seen)

    def _repeated(self, event: RequestEvent) -> str:
        content = hash((event.first_token_ns, event.last_token_ns, event.prompt_tokens, event.generation_tokens))
        seen = self._by_id.setdefault((event.engine, event.id), [])
        for arrival_ns, known in seen:
            if abs(arrival_ns - event.arrival_ns) <= SAME_ARRIVAL_NS:
                return "duplicate" if known == content else "conflict"
        if event.trace_id and event.span_id:
            span = self._by_span.setdefault((event.trace_id, event.span_id), (event.arrival_ns, content))
            if span != (event.arrival_ns, content):
                return "conflict"
        seen.append((event.arrival_ns, content))
        return ""

    def forget_before(self, now_ns: int) -> None:
        """Forget requests that arrived longer ago than an event may be repeated."""
        limit_ns = now_ns - REMEMBER_NS
        while self._by_id and (len(self._by_id) > REMEMBER_MAX or _last(next(iter(self._by_id.values()))) < limit_ns):
            self._by_id.popitem(last=False)
        while self._by_span and (len(self._by_span) > REMEMBER_MAX or next(iter(self._by_span.values()))[0] < limit_ns):
            self._by_span.popitem(last=False)


def _last(seen: list[tuple[int, int]]) -> int:
    return max((arrival_ns for arrival_ns, _ in seen), default=0)


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

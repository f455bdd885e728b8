"""Which request events are taken: sound ones, each once."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

from jouled.core.attribution.by_request import SAME_ARRIVAL_NS
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import nanoseconds

TOKENS_MAX = 10_000_000
DURATION_MAX_NS = nanoseconds(24 * 3600.0)
FUTURE_MAX_NS = nanoseconds(60.0)
REMEMBER_NS = nanoseconds(1800.0)
REMEMBER_MAX = 500_000
GENERATION_NS = nanoseconds(300.0)
_ENTRY = 2
REMEMBER_PER_ID = 400
"""Of one id used for request after request: half an hour of a probe every 5 s. Each new one is held against all."""


class _Remembered:
    """What is remembered of keys, by the time when it was seen, in generations that are forgotten whole.

    One by one they would leave their holes in one table, which then grows by tens of megabytes at once.
    """

    def __init__(self, most: int) -> None:
        """most: numbers that are held of one key."""
        self._most = most
        self._numbers: deque[int] = deque()
        self._generations: deque[dict[tuple[str, ...], tuple[int, ...]]] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Keys, each counted once for every generation that has it."""
        return self._count

    def get(self, key: tuple[str, ...]) -> tuple[int, ...]:
        """The latest of a key, oldest first, as many as are to be held; empty if there is nothing."""
        found: tuple[int, ...] = ()
        for generation in self._generations:
            here = generation.get(key)
            if here is not None:
                found = (*found, *here) if found else here
        return found[-self._most :]

    def add(self, key: tuple[str, ...], entry: tuple[int, ...], seen_ns: int) -> None:
        """Remember one more thing of a key."""
        number = seen_ns // GENERATION_NS
        if not self._numbers or number > self._numbers[-1]:
            self._numbers.append(number)
            self._generations.append({})
        newest = self._generations[-1]
        before = newest.get(key)
        self._count += before is None
        newest[key] = entry if before is None else (*before, *entry)[-self._most :]

    def forget_before(self, limit_ns: int) -> None:
        """Forget generations that ended before, and the oldest beyond `REMEMBER_MAX` keys."""
        while self._numbers and ((self._numbers[0] + 1) * GENERATION_NS <= limit_ns or self._count > REMEMBER_MAX):
            self._numbers.popleft()
            self._count -= len(self._generations.popleft())


class Admission:
    """Refuses unsound events and duplicates. Remembers half an hour of requests, half a million at most."""

    def __init__(self) -> None:
        # Arrival and content of each request of an id, one behind the other: there may be half a million.
        self._by_id = _Remembered(_ENTRY * REMEMBER_PER_ID)
        self._by_span = _Remembered(1)

    def refuse(self, event: RequestEvent, now_ns: int) -> str:
        """The reason to refuse an event, or an empty string."""
        return unsound(event, now_ns) or self._repeated(event)

    @staticmethod
    def refuse_start(start: RequestStart, now_ns: int) -> str:
        """The reason to refuse the start of a request, or an empty string."""
        faults = {
            "no_id": not start.id,
            "before_the_epoch": start.arrival_ns < 0,
            "in_the_future": bool(now_ns) and start.arrival_ns > now_ns + FUTURE_MAX_NS,
        }
        return next((word for word, found in faults.items() if found), "")

    def has_ended(self, start: RequestStart) -> bool:
        """Whether the end of a request was told before its start."""
        seen = self._by_id.get((start.engine, start.id))
        return any(abs(arrival_ns - start.arrival_ns) <= SAME_ARRIVAL_NS for arrival_ns in seen[::_ENTRY])

    def remember(self, request: RequestEvent | Receipt) -> None:
        """A request was taken before a restart: it is not taken again. Times are core time."""
        self._keep((request.engine, request.id), request.arrival_ns, content_of(request), request.last_token_ns)

    def _keep(self, key: tuple[str, str], arrival_ns: int, content: int, seen_ns: int) -> None:
        self._by_id.add(key, (arrival_ns, content), seen_ns)

    def _repeated(self, event: RequestEvent) -> str:
        content = content_of(event)
        seen_ns = event.seen_ns if event.seen_ns > event.last_token_ns else event.last_token_ns
        key = (event.engine, event.id)
        seen = self._by_id.get(key)
        for place in range(0, len(seen), _ENTRY):
            if abs(seen[place] - event.arrival_ns) <= SAME_ARRIVAL_NS:
                return "duplicate" if seen[place + 1] == content else "conflict"
        if event.trace_id and event.span_id:
            # Pools that share a request may tell of their halves under one span.
            span_key = (event.engine, event.trace_id, event.span_id)
            span = self._by_span.get(span_key)
            if not span:
                self._by_span.add(span_key, (content,), seen_ns)
            elif span[-1] != content:
                return "conflict"
        self._keep(key, event.arrival_ns, content, seen_ns)
        return ""

    def forget_before(self, now_ns: int) -> None:
        """Forget requests that were told longer ago than an event may be repeated."""
        limit_ns = now_ns - REMEMBER_NS
        self._by_id.forget_before(limit_ns)
        self._by_span.forget_before(limit_ns)


def content_of(request: RequestEvent | Receipt) -> int:
    """A hash of what may not differ between two tellings of one request."""
    return hash((request.first_token_ns, request.last_token_ns, request.prompt_tokens, request.generation_tokens))


class Waiting:
    """Requests that ended and are not final, for provisional receipts."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[RequestEvent]] = {}

    def add(self, event: RequestEvent) -> None:
        """A request has ended."""
        known = self._by_id.get(event.id)
        if known is None:
            self._by_id[event.id] = [event]
        else:
            known.append(event)

    def remove(self, event: RequestEvent) -> None:
        """A request is final."""
        known = self._by_id.get(event.id, ())
        if len(known) <= 1:
            if known and known[0] is event:
                del self._by_id[event.id]
            return
        self._by_id[event.id] = [other for other in known if other is not event]

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


def unsound(event: RequestEvent, now_ns: int) -> str:  # noqa: PLR0911 - a line for each fault, and most events have none
    """What is wrong with an event's own figures, in a word; empty if nothing is."""
    prompt, generated, cached = event.prompt_tokens, event.generation_tokens, event.cached_prompt_tokens or 0
    arrival_ns, last_ns = event.arrival_ns, event.last_token_ns
    if not event.id:
        return "no_id"
    if prompt < 0 or generated < 0 or cached < 0 or event.preemptions < 0:
        return "negative_tokens"
    if prompt > TOKENS_MAX or generated > TOKENS_MAX or cached > TOKENS_MAX:
        return "absurd_tokens"
    if arrival_ns < 0:
        return "before_the_epoch"
    if not arrival_ns <= event.first_token_ns <= last_ns:
        return "end_before_start" if last_ns < arrival_ns else "first_token_outside"
    if last_ns - arrival_ns > DURATION_MAX_NS:
        return "absurd_duration"
    return "in_the_future" if now_ns and last_ns > now_ns + FUTURE_MAX_NS else ""

"""Which request events are taken: sound ones, each once."""

import struct
from collections import deque
from collections.abc import Iterator
from itertools import islice

from jouled.core.attribution.by_request import SAME_ARRIVAL_NS, bare_id
from jouled.core.attribution.tellings import is_another_try, is_one_answer, is_same
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import nanoseconds

TOKENS_MAX = 10_000_000
DURATION_MAX_NS = nanoseconds(24 * 3600.0)
FUTURE_MAX_NS = nanoseconds(60.0)
REMEMBER_NS = nanoseconds(1800.0)
REMEMBER_MAX = 500_000
GENERATION_NS = nanoseconds(300.0)
LATEST_NS = 1 << 62
"""The year 2116: what is remembered of a request fits into 64 bits."""

_ENTRY, _CONTENT = "<qqqq", "<q"
REMEMBER_PER_ID = 400
"""Of one id used for request after request: half an hour of a probe every 5 s. Each new one is held against all.

Answers to one prompt have one id, too: beyond so many tellings no further ones are taken, as the first is forgotten.
"""

DUPLICATE, CONFLICT = "duplicate", "conflict"
TOLD_OTHERWISE = "told_otherwise"
"""The same tokens with other times or names: another telling of one request."""


class _Remembered:
    """What is remembered of keys, by the time when it was seen, in generations that are forgotten whole.

    One by one they would leave their holes in one table, which then grows by tens of megabytes at once. Keys are
    hashes, of another seed in each process, and entries are packed: there may be half a million.
    """

    def __init__(self, entry: str, most: int) -> None:
        """entry: format of one (`struct`); most: entries that are held of one key."""
        self._entry = entry
        self._most_bytes = most * struct.calcsize(entry)
        self._numbers: deque[int] = deque()
        self._generations: deque[dict[int, bytes]] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Keys, each counted once for every generation that has it."""
        return self._count

    def get(self, key: int) -> Iterator[tuple[int, ...]]:
        """The latest entries of a key, oldest first, as many as are to be held."""
        found = b""
        for generation in self._generations:
            here = generation.get(key)
            if here is not None:
                found += here
        return struct.iter_unpack(self._entry, found[-self._most_bytes :])

    def add(self, key: int, entry: tuple[int, ...], seen_ns: int) -> None:
        """Remember one more thing of a key."""
        number = seen_ns // GENERATION_NS
        if not self._numbers or number > self._numbers[-1]:
            self._numbers.append(number)
            self._generations.append({})
        newest = self._generations[-1]
        packed, before = struct.pack(self._entry, *entry), newest.get(key)
        self._count += before is None
        newest[key] = packed if before is None else (before + packed)[-self._most_bytes :]

    def forget_before(self, limit_ns: int) -> None:
        """Forget generations that ended before, and the oldest beyond `REMEMBER_MAX` keys."""
        while self._numbers and ((self._numbers[0] + 1) * GENERATION_NS <= limit_ns or self._count > REMEMBER_MAX):
            self._numbers.popleft()
            self._count -= len(self._generations.popleft())


class Admission:
    """Refuses unsound events and duplicates. Remembers half an hour of requests, half a million at most."""

    def __init__(self) -> None:
        self._by_id = _Remembered(_ENTRY, REMEMBER_PER_ID)  # arrival, content, tokens, answer of each request of an id
        self._by_span = _Remembered(_CONTENT, 1)

    def refuse(self, event: RequestEvent, now_ns: int) -> str:
        """The reason to refuse an event, or an empty string.

        `TOLD_OTHERWISE` and `CONFLICT` say that the request is known with other content.
        """
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
        seen = self._by_id.get(_key(start))
        return any(abs(arrival_ns - start.arrival_ns) <= SAME_ARRIVAL_NS for arrival_ns, *_ in seen)

    def remember(self, request: RequestEvent | Receipt) -> None:
        """A request was taken before: it is not taken again. Times are core time."""
        content = content_of(request) if isinstance(request, RequestEvent) else 0
        self._keep(request, content, request.last_token_ns)

    def forgets(self, event: RequestEvent) -> bool:
        """Whether more was told under its id than is remembered: a repeat may then be taken for a new request."""
        return sum(1 for _ in self._by_id.get(_key(event))) >= REMEMBER_PER_ID

    def _keep(self, request: RequestEvent | Receipt, content: int, seen_ns: int) -> None:
        answer = request.answer if isinstance(request, RequestEvent) else 0
        entry = (request.arrival_ns, content, tokens_of(request), answer)
        self._by_id.add(_key(request), entry, seen_ns)

    def _repeated(self, event: RequestEvent) -> str:
        content = content_of(event)
        seen_ns = event.seen_ns if event.seen_ns > event.last_token_ns else event.last_token_ns
        if known := _known_as(self._by_id.get(_key(event)), event, content):
            return known
        if event.trace_id and event.span_id:
            # Pools that share a request may tell of their halves under one span.
            span_key = hash((event.engine, event.trace_id, event.span_id))
            span = next(self._by_span.get(span_key), None)
            if span is None:
                self._by_span.add(span_key, (content,), seen_ns)
            else:
                return DUPLICATE if span == (content,) else CONFLICT
        self._keep(event, content, seen_ns)
        return ""

    def forget_before(self, now_ns: int) -> None:
        """Forget requests that were told longer ago than an event may be repeated."""
        limit_ns = now_ns - REMEMBER_NS
        self._by_id.forget_before(limit_ns)
        self._by_span.forget_before(limit_ns)


def _key(request: RequestEvent | RequestStart | Receipt) -> int:
    return hash((request.engine, bare_id(request.id)))


def _known_as(seen: Iterator[tuple[int, ...]], event: RequestEvent, content: int) -> str:
    """What an event is beside those seen of its id: nothing yet, the same once more, or the same told otherwise."""
    arrival_ns = event.arrival_ns
    tellings = [entry for entry in seen if abs(entry[0] - arrival_ns) <= SAME_ARRIVAL_NS]
    if not tellings:
        return ""
    if any(known == content for _, known, *_ in tellings):
        return DUPLICATE
    tokens = tokens_of(event)
    if any(known == tokens and is_one_answer(answer, event.answer) for *_, known, answer in tellings):
        return TOLD_OTHERWISE
    is_another_answer = event.answer and any(answer for *_, answer in tellings) and len(tellings) < REMEMBER_PER_ID
    return "" if is_another_answer else CONFLICT


def tokens_of(request: RequestEvent | Receipt) -> int:
    """A hash of what all tellings of one request have in common."""
    return hash((request.prompt_tokens, request.generation_tokens))


def content_of(event: RequestEvent) -> int:
    """A hash of all that a telling says of its request; another one in another process."""
    times = (event.scheduled_ns, event.first_token_ns, event.last_token_ns)
    tokens = (event.prompt_tokens, event.generation_tokens, event.cached_prompt_tokens)
    return hash((times, tokens, event.answer, event.outcome, event.trace_id, event.tenant, event.adapter))


class Waiting:
    """Requests that ended and are not final, for provisional receipts; ids are bare ones."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[RequestEvent]] = {}

    def add(self, event: RequestEvent) -> None:
        """A request has ended."""
        key = bare_id(event.id)
        known = self._by_id.get(key)
        if known is None:
            self._by_id[key] = [event]
        else:
            known.append(event)

    def remove(self, event: RequestEvent) -> None:
        """A request is final."""
        key = bare_id(event.id)
        known = self._by_id.get(key, ())
        if len(known) <= 1:
            if known and known[0] is event:
                del self._by_id[key]
            return
        self._by_id[key] = [other for other in known if other is not event]

    def told_again(self, event: RequestEvent) -> RequestEvent | None:
        """The request of which this event tells once more; `None` if it is final or was never there."""
        return next((known for known in self._near(event) if is_same(known, event)), None)

    def tried_before(self, event: RequestEvent) -> bool:
        """Whether a client tried twice under this id, one after the other, and one try was cut off."""
        return any(is_another_try(known, event) for known in self._near(event))

    def _near(self, event: RequestEvent) -> Iterator[RequestEvent]:
        """Those of its id and engine that arrived with it: of an id that all requests have, few among thousands."""
        earliest_ns, latest_ns, engine = (
            event.arrival_ns - SAME_ARRIVAL_NS,
            event.arrival_ns + SAME_ARRIVAL_NS,
            event.engine,
        )
        for known in self._by_id.get(bare_id(event.id), ()):
            if earliest_ns <= known.arrival_ns <= latest_ns and known.engine == engine:
                yield known

    def replace(self, known: RequestEvent, amended: RequestEvent) -> None:
        """More is known of a request."""
        events = self._by_id[bare_id(known.id)]
        events[:] = [amended if event is known else event for event in events]

    def remove_engine(self, engine: str) -> None:
        """Requests of an engine will not become final."""
        for events in list(self._by_id.values()):
            for event in list(events):
                if event.engine == engine:
                    self.remove(event)

    def __iter__(self) -> Iterator[RequestEvent]:
        return (event for events in self._by_id.values() for event in events)

    def find(self, request_id: str) -> RequestEvent | None:
        """The newest one under this id, with the prefix of a response or without."""
        events = self._by_id.get(bare_id(request_id))
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
    return "in_the_future" if last_ns > (now_ns + FUTURE_MAX_NS if now_ns else LATEST_NS) else ""

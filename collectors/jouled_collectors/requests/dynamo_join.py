"""Joins what Dynamo's processes tell of one request: their spans come in different bodies, in any order.

Held in memory alone, some seconds as a rule: what is held when the daemon ends is lost, and its energy unreported.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from jouled.api import Received, ReceivedRequest, Refusals, Rejected
from jouled.model.units import nanoseconds
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.dynamo_span import Asked, Part, Untold, Worked, requests_of

WORKERS_NS = nanoseconds(15.0)
"""How long a request waits for its workers' spans: OpenTelemetry's exporters send every 5 s, within 10 s."""

FRONTEND_NS = nanoseconds(900.0)
"""How long a worker's span waits for the end of its request: as long as books wait for one in flight."""

MOST_HELD = 20_000
"""Requests of which parts are held, about a kilobyte each; beyond, the oldest are given up."""

MOST_WORKERS = 16
"""Workers that may tell of one request: two, and one more each time it is moved to another."""

_SENTENCES = {
    "no_frontend_span": "no frontend told of the request that this worker served",
    "no_tokens_told": "the frontend told no tokens of the request that this worker served: its client left",
    "worker_span_missing": "a worker has not told when it served the request: the frontend's times stand for it",
}


class _Held(Struct):
    """What is known of one request. since_ns: when the first look saw it, 0: no look has."""

    asked: Asked | Untold | None = None
    position: str = ""
    workers: dict[str, Worked] = field(default_factory=dict)
    since_ns: int = 0

    @property
    def is_whole(self) -> bool:
        return isinstance(self.asked, Asked) and self.asked.instances <= self.workers.keys()

    @property
    def lost(self) -> tuple[str, int]:
        """Once it is given up: why parts are lost, and how many."""
        if isinstance(self.asked, Asked):
            return "worker_span_missing", len(self.asked.instances - self.workers.keys())
        return "no_frontend_span" if self.asked is None else "no_tokens_told", len(self.workers)


class DynamoJoin:
    """The parts of requests that are not whole yet; for several threads."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._given_up: list[_Held] = []
        self._lock = threading.Lock()

    def add(self, part: Part, position: str) -> Sequence[ReceivedRequest]:
        """Take a part; returns the request as its engines served it once all of it is known. Raises `RefusedError`."""
        with self._lock:
            held = self._held.setdefault(part.request_id, _Held())
            if isinstance(part, Worked):
                if len(held.workers) >= MOST_WORKERS and part.instance not in held.workers:
                    raise RefusedError("too_many_workers", f"more than {MOST_WORKERS} workers tell of one request")
                held.workers[part.instance] = part
            else:
                held.asked, held.position, held.since_ns = part, position, 0
            if held.is_whole:
                del self._held[part.request_id]
                return _told(held)
            if len(self._held) > self._most:
                self._given_up.append(self._held.popitem(last=False)[1])
        return []

    def overdue(self, now_ns: int) -> Received:
        """What has waited too long, or had to make room, as far as it is known; to be asked every second or so.

        What was added since the last call counts from `now_ns` on, on any clock that only goes forward.
        """
        requests: list[ReceivedRequest] = []
        refusals = Refusals()
        with self._lock:
            keys = [key for key, held in self._held.items() if _is_late(held, now_ns)]
            late = [*self._given_up, *map(self._held.pop, keys)]
            self._given_up = []
        for held in late:
            requests += _told(held)
            reason, parts = held.lost
            for _ in range(parts):
                refusals.add(Rejected(held.position, reason, _SENTENCES[reason]))
        return Received(requests=requests, rejected=refusals.kept, more_rejected=refusals.more)


def _is_late(held: _Held, now_ns: int) -> bool:
    held.since_ns = held.since_ns or now_ns
    return now_ns - held.since_ns >= (FRONTEND_NS if held.asked is None else WORKERS_NS)


def _told(held: _Held) -> Sequence[ReceivedRequest]:
    if not isinstance(held.asked, Asked):
        return []
    return [replace(request, position=held.position) for request in requests_of(held.asked, held.workers)]

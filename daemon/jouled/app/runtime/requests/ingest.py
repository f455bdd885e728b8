"""From what a receiver decoded to the core: whose request it is, and when it was in core time."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from jouled.api import Clock, Received, ReceivedRequest, Refusals, Rejected
from jouled.app.runtime.engines.find import find_engine, whose
from jouled.app.runtime.requests.pseudonyms import Pseudonyms
from jouled.app.runtime.wall_clock import WallClock
from jouled.model.engine import Engine
from jouled.model.errors import JouledError
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import nanoseconds

_KNOWN_ALREADY = frozenset({"duplicate", "conflict"})
"""Reasons of the core that are no fault of the sender: it repeated what it was not sure to have delivered."""

_UNKNOWN_ENGINE = "unknown_engine"

_FUTURE_NS = nanoseconds(60.0)
_OLDEST_START_NS = nanoseconds(24 * 3600.0)
"""Bounds of a start's arrival, those that the core sets to the events of ended requests."""


class Ingest:
    """Routes requests to engines and feeds them to the core.

    feed: the core's; it returns why it refused an event, the empty string if it took it. count: takes the reason of
    events that never reached the core, and how many. pseudonyms: what ids are replaced by before anybody keeps them.
    hosts: names and addresses of this host. are_known: whether the engines that run have been looked for.
    """

    def __init__(
        self,
        engines: Callable[[], Iterable[Engine]],
        feed: Callable[[RequestEvent | RequestStart], str],
        count: Callable[[str, int], None],
        clock: Clock,
        wall: WallClock,
        pseudonyms: Pseudonyms | None = None,
        hosts: frozenset[str] = frozenset(),
        are_known: Callable[[], bool] = lambda: True,
    ) -> None:
        self._engines = engines
        self._feed = feed
        self._count = count
        self._clock = clock
        self._wall = wall
        self._pseudonyms = pseudonyms
        self._hosts = hosts
        self._are_known = are_known

    def take(self, received: Received) -> Received:
        """Feed what was received; returns it with what was refused here added to `rejected`.

        Raises `JouledError` while nobody knows yet which engines there are.
        """
        for refused in received.rejected:
            self._count(refused.reason, 1)
        for reason, number in received.more_rejected.items():
            self._count(reason, number)
        if received.requests and not self._are_known():
            raise JouledError("the engines of this host are still being looked for: send it again in a second")
        engines = list(self._engines())
        now_ns = self._clock.now_ns()
        accepted: list[ReceivedRequest] = []
        refusals = Refusals(received.rejected, received.more_rejected)
        ignored = received.ignored
        for request in received.requests:
            engine = find_engine(request.hint, engines, self._hosts)
            if engine is None and request.hint.may_be_elsewhere:
                ignored += 1
                continue
            refusal = self._take_one(request, engine, engines, now_ns)
            if refusal is None:
                accepted.append(request)
            else:
                refusals.add(refusal)
        return replace(
            received, requests=accepted, rejected=refusals.kept, more_rejected=refusals.more, ignored=ignored
        )

    def _take_one(
        self, request: ReceivedRequest, engine: Engine | None, engines: list[Engine], now_ns: int
    ) -> Rejected | None:
        position = request.position or f"request {request.event.id}"
        if engine is None:
            self._count(_UNKNOWN_ENGINE, 1)
            return Rejected(position, _UNKNOWN_ENGINE, whose(request.hint, engines))
        event = self._in_core_time(request.event, engine, now_ns)
        if self._pseudonyms is not None:
            event = self._pseudonyms.of_event(event)
        if isinstance(event, RequestStart) and (refusal := _out_of_time(event, position, now_ns)):
            self._count(refusal.reason, 1)
            return refusal
        reason = self._feed(event)
        if reason and reason not in _KNOWN_ALREADY:
            return Rejected(position, reason, f"refused: {reason.replace('_', ' ')}")
        return None

    def _in_core_time(
        self, event: RequestEvent | RequestStart, engine: Engine, now_ns: int
    ) -> RequestEvent | RequestStart:
        to_core = self._wall.to_core
        if isinstance(event, RequestStart):
            return replace(event, engine=engine.name, arrival_ns=to_core(event.arrival_ns), seen_ns=now_ns)
        # One shift for the whole request: a step of the wall clock within it changes none of its durations.
        shift_ns = to_core(event.last_token_ns) - event.last_token_ns
        return replace(
            event,
            engine=engine.name,
            arrival_ns=event.arrival_ns + shift_ns,
            scheduled_ns=None if event.scheduled_ns is None else event.scheduled_ns + shift_ns,
            first_token_ns=event.first_token_ns + shift_ns,
            last_token_ns=event.last_token_ns + shift_ns,
            seen_ns=now_ns,
        )


def _out_of_time(start: RequestStart, position: str, now_ns: int) -> Rejected | None:
    """Why no request can have arrived then and be in flight now."""
    ahead_seconds = (start.arrival_ns - now_ns) / 1e9
    if start.arrival_ns > now_ns + _FUTURE_NS:
        message = f"arrival_ns is {ahead_seconds:.0f} s in the future: set the sender's clock"
        return Rejected(position, "in_the_future", message)
    if start.arrival_ns < now_ns - _OLDEST_START_NS:
        return Rejected(position, "too_old", f"arrival_ns is {-ahead_seconds / 3600:.0f} h ago, more than a day")
    return None

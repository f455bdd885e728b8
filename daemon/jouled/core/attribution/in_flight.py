"""Requests known to have begun and not to have ended: what stands in for them in cells that close before they end."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from jouled.core.attribution.by_request import ByRequest
from jouled.core.attribution.census import SKEW_NS, Census
from jouled.core.attribution.means import Means
from jouled.core.attribution.request import IN_FLIGHT, Request
from jouled.core.attribution.work import Work
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

ABANDON_NS = nanoseconds(3600.0)
"""A request in flight for longer is taken for lost."""
COUNTED_TOKENS_MIN = 20
PACE_REACH = 2.0
"""By how much faster or slower than everybody's those in flight may be told to decode: what else is missing or too much
is not theirs."""


class Decode(NamedTuple):
    """When a request whose end is known makes its output tokens."""

    first_ns: int
    last_ns: int
    generated: int

    def tokens_within(self, from_ns: int, until_ns: int) -> float:
        """Tokens between two times, evenly after the first."""
        tokens = float(from_ns < self.first_ns <= until_ns)
        shared_ns = min(self.last_ns, until_ns) - max(self.first_ns, from_ns)
        if shared_ns > 0:
            tokens += max(self.generated - 1, 0) * shared_ns / (self.last_ns - self.first_ns)
        return tokens


class InFlight:
    """Starts of requests, until an event tells of the end."""

    def __init__(self) -> None:
        self._starts: ByRequest[RequestStart] = ByRequest()

    def __len__(self) -> int:
        return len(self._starts)

    def has(self, request_id: str, arrival_ns: int) -> bool:
        """Whether a request is in flight as far as is known."""
        return self._starts.get(request_id, arrival_ns) is not None

    def begun(self, start: RequestStart) -> None:
        """A request is known to be in flight."""
        if not self.has(start.id, start.arrival_ns):
            self._starts.put(start.id, start.arrival_ns, start)

    def ended(self, event: RequestEvent) -> None:
        """An event told of a request's end."""
        self._starts.take(event.id, event.arrival_ns)

    def abandon(self, before_ns: int | None) -> None:
        """Those that began before a time (`None`: all) never end."""
        for request_id, arrival_ns, _ in self._starts:
            if before_ns is None or arrival_ns < before_ns:
                self._starts.take(request_id, arrival_ns)

    def stand_ins(
        self,
        census: Census,
        begin_ns: int,
        end_ns: int,
        means: Means,
        told: Iterable[Decode] | None,
    ) -> list[Request]:
        """A request for each, with mean figures, over the range of time that is about to close.

        Their pace is what the engine's counter leaves them beside `told`, those whose end is known; `None`: it does not
        move with every step. Means of what events told know nothing of an engine all of whose requests are in flight.
        """
        tpot_seconds = means.tpot_seconds
        starts = sorted(self._plausible(census, begin_ns, end_ns), key=lambda start: (start.id, start.arrival_ns))
        if starts and told is not None:
            first_tokens_ns = [start.arrival_ns + nanoseconds(means.prefill_seconds) for start in starts]
            counted = _counted_tpot_seconds(census, begin_ns, end_ns, first_tokens_ns, told)
            tpot_seconds = tpot_seconds if counted is None else counted
        return [_stand_in(start, begin_ns, end_ns, means, tpot_seconds) for start in starts]

    def _plausible(self, census: Census, begin_ns: int, end_ns: int) -> list[RequestStart]:
        """Those begun before the range's end, the latest first, no more than the gauge saw beside those told of.

        The end of a request that a client gave up may never be told; without the gauge it would go on for an hour.
        """
        begun = [start for _, _, start in self._starts if start.arrival_ns < end_ns]
        untold = [(look.t_ns, look.untold) for look in census.between(begin_ns, end_ns) if look.untold is not None]
        if not untold:
            return begun
        seen_ns, most = untold[-1][0] - SKEW_NS, max(count for _, count in untold)
        seen = sorted((s for s in begun if s.arrival_ns <= seen_ns), key=lambda s: (-s.arrival_ns, s.id))
        return [*seen[:most], *(start for start in begun if start.arrival_ns > seen_ns)]


def _stand_in(start: RequestStart, begin_ns: int, end_ns: int, means: Means, tpot_seconds: float) -> Request:
    first_ns = min(start.arrival_ns + nanoseconds(means.prefill_seconds), end_ns)
    generated = 1 + max(0, round((end_ns - first_ns) / NANOSECONDS_PER_SECOND / tpot_seconds))
    work = Work(
        start_ns=start.arrival_ns,
        first_ns=first_ns,
        last_ns=end_ns,
        computed=round(means.computed),
        cached=0,
        prompt=round(means.computed),
        generated=generated,
        from_ns=max(begin_ns, start.arrival_ns),
    )
    event = RequestEvent(
        engine=start.engine,
        id=start.id,
        arrival_ns=start.arrival_ns,
        first_token_ns=work.first_ns,
        last_token_ns=work.last_ns,
        prompt_tokens=work.prompt,
        generation_tokens=work.generated,
    )
    return Request(event, work, (IN_FLIGHT,))


def _counted_tpot_seconds(
    census: Census, begin_ns: int, end_ns: int, first_tokens_ns: Sequence[int], told: Iterable[Decode]
) -> float | None:
    """Time per output token of those in flight (each from its first token on), as the page's counter has it."""
    looks = [look for look in census.around(begin_ns, end_ns) if look.generation is not None]
    if len(looks) < 2:
        return None
    from_ns, until_ns = looks[0].t_ns, looks[-1].t_ns
    counted = (looks[-1].generation or 0) - (looks[0].generation or 0)
    running_ns = sum(
        ((before.running or 0) + (after.running or 0)) / 2 * (after.t_ns - before.t_ns)
        for before, after in pairwise(looks)
    )
    if counted < COUNTED_TOKENS_MIN or running_ns <= 0.0:
        return None
    everybodys_ns = running_ns / counted
    left = counted - sum(decode.tokens_within(from_ns, until_ns) for decode in told)
    in_flight_ns = sum(max(until_ns - max(first_ns, from_ns), 0) for first_ns in first_tokens_ns)
    own_ns = in_flight_ns / left if left > 0.0 else PACE_REACH * everybodys_ns
    paced_ns = min(max(own_ns, everybodys_ns / PACE_REACH), everybodys_ns * PACE_REACH)
    return paced_ns / NANOSECONDS_PER_SECOND

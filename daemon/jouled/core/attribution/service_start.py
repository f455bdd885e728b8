"""When a request's service began, where the engine does not say it exactly.

Engines that serve first come, first served prefill one prompt after another: a request's prefill starts when the one
before it got its first token. The fluid form lets it overlap where the known prefill rate says that it must have
(attribution.md section 3.8).
"""

from bisect import bisect_left, insort
from collections import deque

from jouled.core.attribution.cells import CELL_NS
from jouled.model.units import NANOSECONDS_PER_MILLISECOND, NANOSECONDS_PER_SECOND

SHORTEST_PREFILL_NS = NANOSECONDS_PER_MILLISECOND
SAME_STEP_NS = 2 * NANOSECONDS_PER_MILLISECOND
"""Service starts and first tokens closer than this belong to one engine step."""
RATE_PROMPT_TOKENS = 256
RATE_SAMPLES = 129
RATE_SAMPLES_MIN = 17


class ServiceStart:
    """First tokens of one engine's known requests, and its median prefill rate."""

    def __init__(self) -> None:
        self._first_tokens: dict[int, list[int]] = {}
        self._cells: list[int] = []
        self._floor = 0
        self._rates: list[float] = []
        self._order: deque[float] = deque()

    def known(self, first_ns: int) -> None:
        """A request's first token has become known."""
        cell = first_ns // CELL_NS
        known = self._first_tokens.get(cell)
        if known is not None:
            insort(known, first_ns)
        elif cell >= self._floor:
            self._first_tokens[cell] = [first_ns]
            insort(self._cells, cell)

    def unknown(self, first_ns: int) -> None:
        """It is known otherwise now."""
        cell = first_ns // CELL_NS
        known = self._first_tokens.get(cell)
        if known is None or first_ns not in known:
            return
        known.remove(first_ns)
        if not known:
            del self._first_tokens[cell]
            self._cells.remove(cell)

    def start_ns(self, earliest_ns: int, first_ns: int, computed: int) -> int:
        """Service start of a request that could not start before `earliest_ns` (scheduled, else arrival)."""
        latest_ns = first_ns - SHORTEST_PREFILL_NS
        serial_ns = self._latest_before(first_ns - SAME_STEP_NS, earliest_ns)
        if serial_ns is None:
            return earliest_ns if earliest_ns < latest_ns else latest_ns
        rates = self._rates
        if computed and len(rates) >= RATE_SAMPLES_MIN:
            usual_ns = first_ns - round(computed * NANOSECONDS_PER_SECOND / rates[len(rates) // 2])
            if usual_ns < serial_ns:
                serial_ns = usual_ns if usual_ns > earliest_ns else earliest_ns
        return serial_ns if serial_ns < latest_ns else latest_ns

    def observe(self, start_ns: int, first_ns: int, computed: int) -> None:
        """Learn from a placed request."""
        if computed < RATE_PROMPT_TOKENS:
            return
        rate = computed * NANOSECONDS_PER_SECOND / (first_ns - start_ns)
        insort(self._rates, rate)
        self._order.append(rate)
        if len(self._order) > RATE_SAMPLES:
            del self._rates[bisect_left(self._rates, self._order.popleft())]

    def forget(self, cell: int) -> None:
        """First tokens up to this cell are needed no more; called for cell after cell."""
        self.forget_before(cell + 1)

    def forget_before(self, cell: int) -> None:
        """First tokens before this cell are needed no more, however many cells that is."""
        self._floor = max(self._floor, cell)
        if not self._cells or self._cells[0] >= cell:
            return
        gone = bisect_left(self._cells, cell)
        for known in self._cells[:gone]:
            del self._first_tokens[known]
        del self._cells[:gone]

    def _latest_before(self, before_ns: int, not_before_ns: int) -> int | None:
        """The latest first token in (not_before, before), or `None`."""
        cell = before_ns // CELL_NS
        known, earlier = self._first_tokens.get(cell), 0
        if known is not None:
            earlier = bisect_left(known, before_ns)
        if not earlier:
            index = bisect_left(self._cells, cell)
            if not index:
                return None
            known, earlier = self._first_tokens[self._cells[index - 1]], 0
        if known is None:
            return None
        latest_ns = known[earlier - 1]
        return latest_ns if latest_ns > not_before_ns else None


KEEP_CELLS = 60 * NANOSECONDS_PER_SECOND // CELL_NS
"""First tokens stay known for a minute behind the closed edge."""

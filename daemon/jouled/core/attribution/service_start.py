"""When a request's service began, where the engine does not say it exactly.

Engines that serve first come, first served prefill one prompt after another: a request's prefill starts when the one
before it got its first token. The fluid form lets it overlap where the known prefill rate says that it must have
(attribution.md section 3.8).
"""

from bisect import bisect_left, bisect_right, insort

from jouled.core.attribution.cells import CELL_NS, cell_of
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
        self._order: list[float] = []

    def known(self, first_ns: int) -> None:
        """A request's first token has become known."""
        cell = cell_of(first_ns)
        if cell < self._floor:
            return
        if cell not in self._first_tokens:
            self._first_tokens[cell] = []
            insort(self._cells, cell)
        insort(self._first_tokens[cell], first_ns)

    def start_ns(self, earliest_ns: int, first_ns: int, computed: int) -> int:
        """Service start of a request that could not start before `earliest_ns` (scheduled, else arrival)."""
        latest = first_ns - SHORTEST_PREFILL_NS
        serial = self._latest_before(first_ns - SAME_STEP_NS, earliest_ns)
        if serial is None:
            return min(earliest_ns, latest)
        if len(self._rates) >= RATE_SAMPLES_MIN and computed:
            median_rate = self._rates[len(self._rates) // 2]
            serial = min(serial, first_ns - round(computed * NANOSECONDS_PER_SECOND / median_rate))
        return min(latest, max(earliest_ns, serial))

    def observe(self, start_ns: int, first_ns: int, computed: int) -> None:
        """Learn from a placed request."""
        if computed < RATE_PROMPT_TOKENS:
            return
        rate = computed * NANOSECONDS_PER_SECOND / (first_ns - start_ns)
        insort(self._rates, rate)
        self._order.append(rate)
        if len(self._order) > RATE_SAMPLES:
            self._rates.remove(self._order.pop(0))

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
        reach = bisect_right(self._cells, cell_of(before_ns))
        for cell in reversed(self._cells[max(reach - 2, 0) : reach]):
            known = self._first_tokens[cell]
            earlier = bisect_left(known, before_ns)
            if earlier:
                return known[earlier - 1] if known[earlier - 1] > not_before_ns else None
        return None


KEEP_CELLS = 60 * NANOSECONDS_PER_SECOND // CELL_NS
"""First tokens stay known for a minute behind the closed edge."""

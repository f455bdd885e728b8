"""Ratios over the last minute, computed from counters, never averaged."""

from bisect import bisect_right
from collections import deque

from jouled.model.units import nanoseconds

WINDOW_NS = nanoseconds(60.0)
AT_FINISH_WINDOW_NS = nanoseconds(600.0)
"""For tokens that are counted when a request finishes: over less than several requests' length they come in bursts."""
KEEP_NS = nanoseconds(1300.0)


class RatioWindow:
    """Samples of cumulative quantities over time; the increase of each over the last minute, or another `span_ns`."""

    def __init__(self) -> None:
        self.span_ns = WINDOW_NS
        self._times: deque[int] = deque()
        self._values: deque[dict[str, float]] = deque()

    def add(self, t_ns: int, values: dict[str, float]) -> None:
        """Add a sample later than all others; what is older than the window is dropped, but for one."""
        if self._times and t_ns <= self._times[-1]:
            return
        self._times.append(t_ns)
        self._values.append(values)
        while len(self._times) > 2 and self._times[1] <= t_ns - self.span_ns:
            self._times.popleft()
            self._values.popleft()

    def increase(self, name: str) -> float | None:
        """Increase of a quantity over the window; `None` where it was not known at both ends."""
        if len(self._times) < 2:
            return None
        new, old = self._values[-1].get(name), self._values[0].get(name)
        return None if new is None or old is None else new - old

    def per_second(self, name: str) -> float | None:
        """Rate of a quantity over the window; `None` where it was not known at both ends."""
        increase = self.increase(name)
        return None if increase is None else increase / ((self._times[-1] - self._times[0]) / 1e9)

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Quotient of two increases; `None` where the denominator did not grow."""
        top, bottom = self.increase(numerator), self.increase(denominator)
        return None if top is None or not bottom or bottom <= 0.0 else top / bottom


class History:
    """Cumulative quantities over the last twenty minutes, to look up where the books are behind."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self._values: list[dict[str, int]] = []

    def add(self, t_ns: int, values: dict[str, int]) -> None:
        """Add a sample later than all others."""
        if self._times and t_ns <= self._times[-1]:
            return
        self._times.append(t_ns)
        self._values.append(values)
        if self._times[0] < t_ns - 2 * KEEP_NS:
            keep_from = bisect_right(self._times, t_ns - KEEP_NS)
            del self._times[:keep_from]
            del self._values[:keep_from]

    def at(self, t_ns: int, name: str) -> int | None:
        """The last value known at `t_ns`."""
        index = bisect_right(self._times, t_ns) - 1
        return self._values[index].get(name) if index >= 0 else None

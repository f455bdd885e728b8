"""Counters that only grow, by metric name and label values; and the histogram of request energies."""

from bisect import bisect_left
from itertools import pairwise

from jouled.model.parameters import Limits
from jouled.model.snapshot import Histogram, Labels

OTHER = "other"
REQUEST_ENERGY_BOUNDS_JOULES = (
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10_000.0,
    50_000.0,
)


class CounterTable:
    """Counters by metric name (the catalogue's, without the prefix) and label values."""

    def __init__(self) -> None:
        self.values: dict[str, dict[Labels, float]] = {}

    def add(self, name: str, labels: Labels, amount: float) -> None:
        """Add to a counter; the series exists from its first addition on, even of zero."""
        series = self.values.setdefault(name, {})
        series[labels] = series.get(labels, 0) + amount

    def series(self, name: str, *begun: Labels) -> dict[Labels, float]:
        """All series of a counter, to add to without looking it up again; those of `begun` exist from now on."""
        series = self.values.setdefault(name, {})
        for labels in begun:
            series.setdefault(labels, 0)
        return series

    def get(self, name: str, labels: Labels) -> float:
        """A counter's value; 0 before its first addition."""
        return self.values.get(name, {}).get(labels, 0)

    def copy(self) -> dict[str, dict[Labels, float]]:
        """A copy that later additions do not change."""
        return {name: dict(series) for name, series in self.values.items()}


class BoundedLabel:
    """Label values from outside, bounded in number and length; what is beyond goes to `other`."""

    def __init__(self, name: str, most: int, limits: Limits, counters: CounterTable) -> None:
        self._name = name
        self._most = most
        self._length = limits.label_length
        self._counters = counters
        self._known: set[str] = set()

    def bound(self, value: str) -> str:
        """The label value to use for `value`."""
        value = value[: self._length]
        if value in self._known or not value:
            return value
        if len(self._known) < self._most:
            self._known.add(value)
            return value
        self._counters.add("label_overflow_total", (self._name,), 1)
        return OTHER


class HistogramBook:
    """One cumulative histogram with an exemplar per bucket."""

    def __init__(self, bounds: tuple[float, ...] = REQUEST_ENERGY_BOUNDS_JOULES) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: list[tuple[float, str, float] | None] = [None] * (len(bounds) + 1)

    def observe(self, value: float, trace_id: str, unix_seconds: float) -> None:
        """Count one value; with a trace id it becomes its bucket's exemplar."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if trace_id:
            self.exemplars[bucket] = (value, trace_id, unix_seconds)

    def view(self) -> Histogram:
        """The cumulative form."""
        running, counts = 0, []
        for count in self.counts:
            running += count
            counts.append(running)
        return Histogram(bounds=self.bounds, counts=tuple(counts), sum=self.sum, exemplars=tuple(self.exemplars))

    def restore(self, histogram: Histogram) -> None:
        """Go on from a cumulative form; one with other bounds is not taken."""
        if histogram.bounds == self.bounds:
            upto = (0, *histogram.counts)
            self.counts = [high - low for low, high in pairwise(upto)]
            self.sum = histogram.sum

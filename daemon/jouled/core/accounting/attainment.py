"""What an engine's own histograms say of an SLO: bounds, for they do not tell which requests kept all its limits.

Of a limit between two bucket bounds, the share of requests that kept it lies between the shares at these bounds:
F(lo) ≤ F(limit) ≤ F(hi). Of k limits together, at least Σ F(lo) − (k − 1) of the requests kept all, and at most the
least F(hi) (Fréchet's bounds). Multiplied shares would be a guess that late requests are late by chance; they are not.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence

from msgspec import Struct

from jouled.model.engine import EngineSample, Latency, LatencyHistogram
from jouled.model.parameters import Slo
from jouled.model.units import nanoseconds

WINDOW_NS = nanoseconds(300.0)
EVENTS_SILENT_NS = nanoseconds(1800.0)
"""After so long without a request event an engine is one without events; the longest horizon of the books."""

MILLISECONDS = 1000.0

Limit = tuple[Latency, float]


class Tally(Struct, frozen=True, gc=False):
    """Requests of one histogram around a limit: surely within it, possibly within it, and seen at all."""

    surely: int = 0
    possibly: int = 0
    seen: int = 0

    def plus(self, other: "Tally", sign: int = 1) -> "Tally":
        """The sum, or with sign −1 the difference."""
        return Tally(
            self.surely + sign * other.surely, self.possibly + sign * other.possibly, self.seen + sign * other.seen
        )


class Attainment:
    """Bounds of the attainment of one engine's SLOs over the last five minutes.

    told_ns: when the last request event of the engine came; `None`: none did.
    """

    def __init__(self, slos: Sequence[Slo]) -> None:
        self.told_ns: int | None = None
        self._slos = slos
        self._last: dict[Latency, LatencyHistogram] = {}
        self._grown: deque[tuple[int, dict[Limit, Tally]]] = deque()
        self._sums: dict[Limit, Tally] = {}

    def take(self, sample: EngineSample) -> None:
        """Take a look at the engine's page, later than all before."""
        grown: dict[Limit, Tally] = {}
        for name, histogram in sample.latencies.items():
            if histogram.is_sound:
                before, self._last[name] = self._last.get(name), histogram
                if before is not None:
                    grown.update(self._tallies(name, before, histogram))
        for limit, tally in grown.items():
            self._sums[limit] = self._sums.get(limit, Tally()).plus(tally)
        self._grown.append((sample.t_ns, grown))
        while self._grown[0][0] <= sample.t_ns - WINDOW_NS:
            for limit, tally in self._grown.popleft()[1].items():
                self._sums[limit] = self._sums[limit].plus(tally, -1)

    def bounds(self, now_ns: int) -> dict[str, tuple[float, float]]:
        """Least and greatest share of requests that kept an SLO, by its name.

        Only of an engine without request events, and where requests were seen for each of the limits.
        """
        if self.told_ns is not None and now_ns - self.told_ns < EVENTS_SILENT_NS:
            return {}
        if not self._grown or self._grown[-1][0] <= now_ns - WINDOW_NS:
            return {}
        found = {}
        for slo in self._slos:
            tallies = [self._sums.get(limit, Tally()) for limit in slo.limits.items()]
            if tallies and all(tally.seen for tally in tallies):
                found[slo.name] = joint_bounds(tallies)
        return found

    def _tallies(self, name: Latency, before: LatencyHistogram, now: LatencyHistogram) -> dict[Limit, Tally]:
        limits = {slo.limits[name] for slo in self._slos if name in slo.limits}
        grown = {(name, limit): tally_of(now, limit) for limit in limits}
        if _has_restarted(before, now):
            return grown
        return {limit: tally.plus(tally_of(before, limit[1]), -1) for limit, tally in grown.items()}


def joint_bounds(tallies: Sequence[Tally]) -> tuple[float, float]:
    """Least and greatest share of requests within all limits, from what is known of each."""
    lower = sum(tally.surely / tally.seen for tally in tallies) - (len(tallies) - 1)
    upper = min(tally.possibly / tally.seen for tally in tallies)
    return min(max(0.0, lower), upper), upper


def tally_of(histogram: LatencyHistogram, limit: float) -> Tally:
    """A histogram's counts at the bounds around a limit in milliseconds; on a bound, both are the same."""
    bounds, counts = histogram.bounds_seconds, histogram.counts
    limit_seconds = limit / MILLISECONDS
    below = bisect_right(bounds, limit_seconds)
    return Tally(counts[below - 1] if below else 0, counts[bisect_left(bounds, limit_seconds)], counts[-1])


def off_bounds(slos: Sequence[Slo], latencies: Mapping[Latency, LatencyHistogram]) -> list[str]:
    """A sentence for each limit that lies between two of the engine's bucket bounds, with these two."""
    return [
        sentence
        for slo in slos
        for name, limit in slo.limits.items()
        if name in latencies and (sentence := _off_bound(slo, name, limit, latencies[name].bounds_seconds))
    ]


def _off_bound(slo: Slo, name: Latency, limit: float, bounds_seconds: Sequence[float]) -> str:
    bounds = [round(bound * MILLISECONDS, 6) for bound in bounds_seconds]
    above = bisect_left(bounds, limit)
    if above < len(bounds) and bounds[above] == limit:
        return ""
    near = [f"{bound:g}" for bound in bounds[max(above - 1, 0) : above + 1]]
    return (
        f"SLO {slo.name}: {name} = {limit:g} ms is none of the engine's bucket bounds (nearest: {' and '.join(near)});"
        " without request events its attainment is known between wide bounds only"
    )


def _has_restarted(before: LatencyHistogram, now: LatencyHistogram) -> bool:
    """Whether another process counts now: a count went back, or the bounds are others."""
    return before.bounds_seconds != now.bounds_seconds or any(
        new < old for old, new in zip(before.counts, now.counts, strict=True)
    )
